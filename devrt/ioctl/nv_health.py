# NVIDIA open-gpu-kernel-modules src/common/sdk/nvidia/inc/{ctrl/ctrl2080/*.h,class/cl00de.h} (570.133.20)
"""Controls and shared data that tell how a GPU is doing: errors, temperature, power, clocks, links. None needs privileges.

RM_USER_SHARED_DATA (class 0xDE) is a page that RM keeps up to date: NV00DE_SHARED_DATA. Each block begins with a u64 that is 0
while the block says nothing and all ones while it is being written.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from devrt.ioctl.nv_controls import Control

STRUCTS = """
struct NV2080_CTRL_GPU_QUERY_ECC_EXCEPTION_STATUS { uint64_t count; };
struct NV2080_CTRL_GPU_QUERY_ECC_UNIT_STATUS {
    uint8_t enabled, scrubComplete, supported;
    struct NV2080_CTRL_GPU_QUERY_ECC_EXCEPTION_STATUS dbe, dbeNonResettable, sbe, sbeNonResettable;
};
struct NV2080_CTRL_GPU_QUERY_ECC_STATUS_PARAMS {
    struct NV2080_CTRL_GPU_QUERY_ECC_UNIT_STATUS units[36]; uint8_t bFatalPoisonError, uncorrectableError; uint32_t flags;
    struct NV0080_CTRL_GR_ROUTE_INFO grRouteInfo;
};
struct NV2080_CTRL_GPU_GET_PIDS_PARAMS { uint32_t idType, id, pidTblCount, pidTbl[950]; };
struct NV2080_CTRL_CMD_GET_GPU_FABRIC_PROBE_INFO_PARAMS {
    uint8_t state; uint32_t status; uint8_t clusterUuid[16]; uint16_t fabricPartitionId; uint64_t fabricCaps;
    uint32_t fabricCliqueId, fabricHealthMask;
};
struct NV2080_CTRL_GPU_GET_RECOVERY_ACTION_PARAMS { uint32_t action; };
struct NV0080_CTRL_GPU_QUERY_SW_STATE_PERSISTENCE_PARAMS { uint32_t swStatePersistence; };
struct NV2080_CTRL_FB_REMAP_ENTRY { uint32_t remapRegVal, timestamp; uint8_t fbpa, sublocation, source, flags; };
struct NV2080_CTRL_FB_GET_REMAPPED_ROWS_PARAMS {
    uint32_t entryCount; uint8_t flags; struct NV2080_CTRL_FB_REMAP_ENTRY entries[512];
};
struct NV2080_CTRL_FB_GET_ROW_REMAPPER_HISTOGRAM_PARAMS { uint32_t histogram[5]; };
struct NV2080_CTRL_BUS_GET_PCI_INFO_PARAMS { uint32_t pciDeviceId, pciSubSystemId, pciRevisionId, pciExtDeviceId; };
struct NV2080_CTRL_BUS_PCI_BAR_INFO { uint32_t flags, barSize; uint64_t barSizeBytes, barOffset; };
struct NV2080_CTRL_BUS_GET_PCI_BAR_INFO_PARAMS { uint32_t pciBarCount; struct NV2080_CTRL_BUS_PCI_BAR_INFO pciBarInfo[8]; };
struct NV2080_CTRL_BUS_GET_PEX_COUNTERS_PARAMS {
    uint32_t pexCounterMask, pexTotalCorrectableErrors; uint16_t pexCorrectableErrors;
    uint8_t pexTotalNonFatalErrors, pexTotalFatalErrors, pexTotalUnsupportedReqs; uint16_t pexCounters[31];
};
struct NV2080_CTRL_BUS_GET_INFO_V2_PARAMS { uint32_t busInfoListSize; struct NVXXXX_CTRL_XXX_INFO busInfoList[52]; };
struct NV2080_CTRL_PERF_GET_CURRENT_PSTATE_PARAMS { uint32_t currPstate; };
struct NV2080_CTRL_RC_GET_ERROR_COUNT_PARAMS { uint32_t errorCount; };
struct NV2080_CTRL_RC_GET_ERROR_V2_PARAMS { uint32_t whichBuffer, outputRecordSize; uint8_t recordBuffer[8192]; };
struct NV2080_CTRL_CMD_NVLINK_GET_NVLINK_CAPS_PARAMS {
    uint32_t capsTbl; uint8_t lowestNvlinkVersion, highestNvlinkVersion, lowestNciVersion, highestNciVersion;
    uint32_t discoveredLinkMask, enabledLinkMask; uint64_t discoveredLinks, enabledLinks;
};
struct NV2080_CTRL_NVLINK_DEVICE_INFO {
    uint32_t deviceIdFlags, domain; uint16_t bus, device, function; uint32_t pciDeviceId; uint64_t deviceType;
    uint8_t deviceUUID[16]; uint32_t fabricRecoveryStatusMask;
};
struct NV2080_CTRL_NVLINK_LINK_STATUS_INFO {
    uint32_t capsTbl; uint8_t phyType, subLinkWidth; uint32_t linkState;
    uint8_t rxSublinkStatus, txSublinkStatus, bLaneReversal, nvlinkVersion, nciVersion, phyVersion;
    uint32_t nvlinkLinkClockKHz, nvlinkCommonClockSpeedKHz, nvlinkRefClkSpeedKHz, nvlinkCommonClockSpeedMhz,
        nvlinkLineRateMbps, nvlinkLinkClockMhz;
    uint8_t nvlinkRefClkType; uint32_t nvlinkLinkDataRateKiBps, nvlinkRefClkSpeedMhz;
    uint8_t connected, loopProperty, remoteDeviceLinkNumber, localDeviceLinkNumber; uint64_t remoteLinkSid, localLinkSid;
    uint32_t laneRxdetStatusMask, nvlinkMinL1Threshold, nvlinkMaxL1Threshold, nvlinkL1ThresholdUnits;
    struct NV2080_CTRL_NVLINK_DEVICE_INFO remoteDeviceInfo, localDeviceInfo;
};
struct NV2080_CTRL_CMD_NVLINK_GET_NVLINK_STATUS_PARAMS {
    uint32_t enabledLinkMask; uint8_t bSublinkStateInst; struct NV2080_CTRL_NVLINK_LINK_STATUS_INFO linkInfo[64];
};
struct NV2080_CTRL_NVLINK_ERR_INFO {
    uint32_t TLErrlog, TLIntrEn, TLCTxErrStatus0, TLCTxErrStatus1, TLCTxSysErrStatus0, TLCRxErrStatus0, TLCRxErrStatus1,
        TLCRxSysErrStatus0, TLCTxErrLogEn0, TLCTxErrLogEn1, TLCTxSysErrLogEn0, TLCRxErrLogEn0, TLCRxErrLogEn1,
        TLCRxSysErrLogEn0, MIFTxErrStatus0, MIFRxErrStatus0, NVLIPTLnkErrStatus0, NVLIPTLnkErrLogEn0,
        NVLIPTLnkCtrlLinkStateRequest, DLSpeedStatusTx, DLSpeedStatusRx, NVLDLRxSlsmErrCntl, NVLDLTopLinkState,
        NVLDLTopIntr, DLStatMN00, DLStatUC01, MinionNvlinkLinkIntr;
    uint8_t bExcessErrorDL;
};
struct NV2080_CTRL_NVLINK_COMMON_ERR_INFO { uint32_t NVLIPTErrStatus0, NVLIPTErrLogEn0; };
struct NV2080_CTRL_NVLINK_GET_ERR_INFO_PARAMS {
    uint32_t linkMask; struct NV2080_CTRL_NVLINK_ERR_INFO linkErrInfo[64]; uint32_t ioctrlMask;
    struct NV2080_CTRL_NVLINK_COMMON_ERR_INFO commonErrInfo[3]; uint8_t ErrInfoFlags;
};
struct NV2080_CTRL_ECC_GET_CLIENT_EXPOSED_COUNTERS_PARAMS {
    uint64_t sramParityUncorrectedUnique, sramSecDedUncorrectedUnique, sramCorrectedUnique, dramUncorrectedTotal,
        dramCorrectedTotal;
    uint32_t lastClearedTimestamp;
    uint64_t sramBucketL2, sramBucketSM, sramBucketPcie, sramBucketFirmware, sramBucketOther;
    uint8_t sramErrorThresholdExceeded;
};
struct NV2080_CTRL_ECC_GET_VOLATILE_COUNTS_PARAMS {
    uint64_t sramCorUni, sramUncParityUni, sramUncSecDedUni, dramCorTot, dramUncTot;
};
struct NV2080_CTRL_GSP_GET_FEATURES_PARAMS { uint32_t gspFeatures; uint8_t bValid, bDefaultGspRmGpu, firmwareVersion[64]; };
struct NV00DE_CTRL_REQUEST_DATA_POLL_PARAMS { uint64_t polledDataMask; };
struct RUSD_BAR1_MEMORY_INFO { uint64_t lastModifiedTimestamp; uint32_t bar1Size, bar1AvailSize; };
struct RUSD_PMA_MEMORY_INFO { uint64_t lastModifiedTimestamp, totalPmaMemory, freePmaMemory; };
struct RUSD_SHADOW_ERR_CONT { uint64_t lastModifiedTimestamp; uint32_t shadowErrContVal; };
struct RUSD_GR_INFO { uint64_t lastModifiedTimestamp; uint8_t bCtxswLoggingEnabled; };
struct RUSD_CLK_PUBLIC_DOMAIN_INFO { uint32_t targetClkMHz; };
struct RUSD_CLK_PUBLIC_DOMAIN_INFOS { uint64_t lastModifiedTimestamp; struct RUSD_CLK_PUBLIC_DOMAIN_INFO info[4]; };
struct RUSD_CLK_THROTTLE_REASON { uint64_t lastModifiedTimestamp; uint32_t reasonMask; };
struct RUSD_ENG_UTILIZATION { uint32_t clkPercentBusy, samplingPeriodUs; };
struct RUSD_PERF_DEVICE_UTILIZATION_INFO {
    uint32_t gpuPercentBusy, memoryPercentBusy; struct RUSD_ENG_UTILIZATION engUtil[4];
};
struct RUSD_PERF_DEVICE_UTILIZATION { uint64_t lastModifiedTimestamp; struct RUSD_PERF_DEVICE_UTILIZATION_INFO info; };
struct RUSD_MEM_ERROR_COUNTS { uint64_t correctedVolatile, correctedAggregate, uncorrectedVolatile, uncorrectedAggregate; };
struct RUSD_MEM_ECC { uint64_t lastModifiedTimestamp; struct RUSD_MEM_ERROR_COUNTS count[3]; };
struct RUSD_PERF_CURRENT_PSTATE { uint64_t lastModifiedTimestamp; uint32_t currentPstate; };
struct RUSD_POWER_LIMIT_INFO { uint32_t requestedmW, enforcedmW; };
struct RUSD_POWER_LIMITS { uint64_t lastModifiedTimestamp; struct RUSD_POWER_LIMIT_INFO info; };
struct RUSD_TEMPERATURE { uint64_t lastModifiedTimestamp; int32_t temperature; };
struct RUSD_MEM_ROW_REMAP_INFO {
    uint32_t histogramMax, histogramHigh, histogramPartial, histogramLow, histogramNone, correctableRows, uncorrectableRows;
    uint8_t isPending, hasFailureOccurred;
};
struct RUSD_MEM_ROW_REMAP { uint64_t lastModifiedTimestamp; struct RUSD_MEM_ROW_REMAP_INFO info; };
struct RUSD_AVG_POWER_INFO { uint32_t averageGpuPower, averageModulePower, averageMemoryPower; };
struct RUSD_AVG_POWER_USAGE { uint64_t lastModifiedTimestamp; struct RUSD_AVG_POWER_INFO info; };
struct RUSD_INST_POWER_INFO { uint32_t instGpuPower, instModulePower, instCpuPower; };
struct RUSD_INST_POWER_USAGE { uint64_t lastModifiedTimestamp; struct RUSD_INST_POWER_INFO info; };
struct RUSD_PCIE_DATA_INFO { uint32_t data[9]; };
struct RUSD_PCIE_DATA { uint64_t lastModifiedTimestamp; struct RUSD_PCIE_DATA_INFO info; };
struct NV00DE_SHARED_DATA {
    struct RUSD_BAR1_MEMORY_INFO bar1MemoryInfo; struct RUSD_PMA_MEMORY_INFO pmaMemoryInfo;
    struct RUSD_SHADOW_ERR_CONT shadowErrCont; struct RUSD_GR_INFO grInfo;
    struct RUSD_CLK_PUBLIC_DOMAIN_INFOS clkPublicDomainInfos; struct RUSD_CLK_THROTTLE_REASON clkThrottleReason;
    struct RUSD_PERF_DEVICE_UTILIZATION perfDevUtil; struct RUSD_MEM_ECC memEcc;
    struct RUSD_PERF_CURRENT_PSTATE perfCurrentPstate; struct RUSD_POWER_LIMITS powerLimitGpu;
    struct RUSD_TEMPERATURE temperatures[2]; struct RUSD_MEM_ROW_REMAP memRowRemap;
    struct RUSD_AVG_POWER_USAGE avgPowerUsage; struct RUSD_INST_POWER_USAGE instPowerUsage;
    struct RUSD_PCIE_DATA pciBusData;
};
"""

CONTROLS: Mapping[str, Control] = {
    "NV0080_CTRL_CMD_GPU_QUERY_SW_STATE_PERSISTENCE": Control(
        0x00800288, "NV0080_CTRL_GPU_QUERY_SW_STATE_PERSISTENCE_PARAMS"),
    "NV2080_CTRL_CMD_GPU_QUERY_ECC_STATUS": Control(0x2080012F, "NV2080_CTRL_GPU_QUERY_ECC_STATUS_PARAMS"),
    "NV2080_CTRL_CMD_GPU_GET_PIDS": Control(0x2080018D, "NV2080_CTRL_GPU_GET_PIDS_PARAMS"),
    "NV2080_CTRL_CMD_GET_GPU_FABRIC_PROBE_INFO": Control(0x208001A3, "NV2080_CTRL_CMD_GET_GPU_FABRIC_PROBE_INFO_PARAMS"),
    "NV2080_CTRL_CMD_GPU_GET_RECOVERY_ACTION": Control(0x208001B2, "NV2080_CTRL_GPU_GET_RECOVERY_ACTION_PARAMS"),
    "NV2080_CTRL_CMD_FB_GET_REMAPPED_ROWS": Control(0x20801344, "NV2080_CTRL_FB_GET_REMAPPED_ROWS_PARAMS"),
    "NV2080_CTRL_CMD_FB_GET_ROW_REMAPPER_HISTOGRAM": Control(0x20801347, "NV2080_CTRL_FB_GET_ROW_REMAPPER_HISTOGRAM_PARAMS"),
    "NV2080_CTRL_CMD_BUS_GET_PCI_INFO": Control(0x20801801, "NV2080_CTRL_BUS_GET_PCI_INFO_PARAMS"),
    "NV2080_CTRL_CMD_BUS_GET_PCI_BAR_INFO": Control(0x20801803, "NV2080_CTRL_BUS_GET_PCI_BAR_INFO_PARAMS"),
    "NV2080_CTRL_CMD_BUS_GET_PEX_COUNTERS": Control(0x20801813, "NV2080_CTRL_BUS_GET_PEX_COUNTERS_PARAMS"),
    "NV2080_CTRL_CMD_BUS_GET_INFO_V2": Control(0x20801823, "NV2080_CTRL_BUS_GET_INFO_V2_PARAMS"),
    "NV2080_CTRL_CMD_PERF_GET_CURRENT_PSTATE": Control(0x20802068, "NV2080_CTRL_PERF_GET_CURRENT_PSTATE_PARAMS"),
    "NV2080_CTRL_CMD_RC_GET_ERROR_COUNT": Control(0x20802205, "NV2080_CTRL_RC_GET_ERROR_COUNT_PARAMS"),
    "NV2080_CTRL_CMD_RC_GET_ERROR_V2": Control(0x20802213, "NV2080_CTRL_RC_GET_ERROR_V2_PARAMS"),
    "NV2080_CTRL_CMD_NVLINK_GET_NVLINK_CAPS": Control(0x20803001, "NV2080_CTRL_CMD_NVLINK_GET_NVLINK_CAPS_PARAMS"),
    "NV2080_CTRL_CMD_NVLINK_GET_NVLINK_STATUS": Control(0x20803002, "NV2080_CTRL_CMD_NVLINK_GET_NVLINK_STATUS_PARAMS"),
    "NV2080_CTRL_CMD_NVLINK_GET_ERR_INFO": Control(0x20803003, "NV2080_CTRL_NVLINK_GET_ERR_INFO_PARAMS"),
    "NV2080_CTRL_CMD_ECC_GET_CLIENT_EXPOSED_COUNTERS": Control(0x20803400, "NV2080_CTRL_ECC_GET_CLIENT_EXPOSED_COUNTERS_PARAMS"),
    "NV2080_CTRL_CMD_ECC_GET_VOLATILE_COUNTS": Control(0x20803401, "NV2080_CTRL_ECC_GET_VOLATILE_COUNTS_PARAMS"),
    "NV2080_CTRL_CMD_GSP_GET_FEATURES": Control(0x20803601, "NV2080_CTRL_GSP_GET_FEATURES_PARAMS"),
    "NV00DE_CTRL_CMD_REQUEST_DATA_POLL": Control(0x00DE0001, "NV00DE_CTRL_REQUEST_DATA_POLL_PARAMS"),
}


class BusInfo(enum.IntEnum):
    """Index of a pair of BUS_GET_INFO_V2."""

    PCIE_GPU_LINK_CAPS = 0x03
    PCIE_GPU_LINK_CTRL_STATUS = 0x07
    PCIE_GPU_LINK_ERRORS = 0x11
    PCIE_GPU_LINK_AER = 0x15
    PCIE_GPU_LINK_CRC_ERRORS = 0x1D
    PCIE_GPU_LINK_NAKS_RECEIVED = 0x1E
    PCIE_GPU_LINK_CORRECTABLE_ERRORS = 0x24
    PCIE_GPU_LINK_NONFATAL_ERRORS = 0x25
    PCIE_GPU_LINK_FATAL_ERRORS = 0x26
    PCIE_GPU_LINK_UNSUPPORTED_REQUESTS = 0x27
    PCIE_GEN_INFO = 0x2D


class Poll(enum.IntFlag):
    """What RM_USER_SHARED_DATA keeps up to date: polledDataMask."""

    CLOCK = 0x1
    PERF = 0x2
    MEMORY = 0x4
    POWER = 0x8
    THERMAL = 0x10
    PCI = 0x20
    FAN = 0x40


class RecoveryAction(enum.IntEnum):
    """What NV2080_CTRL_CMD_GPU_GET_RECOVERY_ACTION asks for."""

    NONE = 0
    GPU_RESET = 1
    NODE_REBOOT = 2
    DRAIN_P2P = 3
    DRAIN_AND_RESET = 4


# What the header puts before each member's name.
CONSTANTS: Mapping[str, type[enum.IntEnum] | type[enum.IntFlag]] = {
    "NV2080_CTRL_BUS_INFO_INDEX_": BusInfo, "NV00DE_RUSD_POLL_": Poll, "NV2080_CTRL_GPU_RECOVERY_ACTION_": RecoveryAction,
}
