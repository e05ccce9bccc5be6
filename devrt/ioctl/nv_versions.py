# NVIDIA open-gpu-kernel-modules at 570.133.20, 580.105.08, 590.44.01, 595.45.04 and 610.43.03
"""The tables of a running driver: what each branch of it replaced, by the number before the first dot of its version.

    tables = tables_for("580.105.08")
    tables.nvrm.new("NV_CHANNEL_ALLOC_PARAMS", ...)

A branch keeps its structs: 570.86 has those of 570.211, and a call of another size is refused by the driver.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from devrt.device import DriverMismatch
from devrt.ioctl.nv_controls import Control
from devrt.ioctl.nvrm import CONTROLS, NVRM
from devrt.ioctl.uapi import Uapi
from devrt.ioctl.uvm import UVM

VERSION_FILE = "/proc/driver/nvidia/version"

# Branch -> the structs that it replaced or brought; what is not there is as in the branch before.
CHANGES: Mapping[int, str] = {
    570: "",
    580: """
struct NVOS46_PARAMETERS {
    uint32_t hClient, hDevice, hDma, hMemory; uint64_t offset, length; uint32_t flags, flags2, kindOverride;
    uint64_t dmaOffset; uint32_t status;
};
struct NV_VASPACE_ALLOCATION_PARAMETERS {
    uint32_t index, flags; uint64_t vaSize, vaStartInternal, vaLimitInternal; uint32_t bigPageSize; uint64_t vaBase;
    uint32_t pasid;
};
struct RUSD_CLK_VIOLATION_STATUS { uint32_t perfPointMask; uint64_t timeNs[6]; };
struct RUSD_CLK_THROTTLE_REASON {
    uint64_t lastModifiedTimestamp; uint32_t reasonMask; uint64_t referenceTimeNs; uint32_t supportedViolationTimeMask;
    struct RUSD_CLK_VIOLATION_STATUS violation[32], globalViolation;
};
struct RUSD_ECC_INFO {
    struct NV2080_CTRL_ECC_GET_VOLATILE_COUNTS_PARAMS volatileCounts;
    struct NV2080_CTRL_ECC_GET_CLIENT_EXPOSED_COUNTERS_PARAMS clientExposedCounts;
};
struct RUSD_MEM_ECC { uint64_t lastModifiedTimestamp; struct RUSD_MEM_ERROR_COUNTS count[3]; struct RUSD_ECC_INFO info; };
struct RUSD_POWER_POLICY_STATUS_INFO { uint32_t tgpmW; };
struct RUSD_POWER_POLICY_STATUS { uint64_t lastModifiedTimestamp; struct RUSD_POWER_POLICY_STATUS_INFO info; };
struct RUSD_FAN_COOLER_INFO { uint32_t rpmCurr[16]; };
struct RUSD_FAN_COOLER_STATUS { uint64_t lastModifiedTimestamp; struct RUSD_FAN_COOLER_INFO info; };
struct NV00DE_SHARED_DATA {
    struct RUSD_BAR1_MEMORY_INFO bar1MemoryInfo; struct RUSD_PMA_MEMORY_INFO pmaMemoryInfo;
    struct RUSD_SHADOW_ERR_CONT shadowErrCont; struct RUSD_GR_INFO grInfo;
    struct RUSD_CLK_PUBLIC_DOMAIN_INFOS clkPublicDomainInfos; struct RUSD_CLK_THROTTLE_REASON clkThrottleInfo;
    struct RUSD_PERF_DEVICE_UTILIZATION perfDevUtil; struct RUSD_MEM_ECC memEcc;
    struct RUSD_PERF_CURRENT_PSTATE perfCurrentPstate; struct RUSD_POWER_LIMITS powerLimitGpu;
    struct RUSD_TEMPERATURE temperatures[5]; struct RUSD_MEM_ROW_REMAP memRowRemap;
    struct RUSD_AVG_POWER_USAGE avgPowerUsage; struct RUSD_INST_POWER_USAGE instPowerUsage;
    struct RUSD_POWER_POLICY_STATUS powerPolicyStatus; struct RUSD_PCIE_DATA pciBusData;
    struct RUSD_FAN_COOLER_STATUS fanCoolerStatus;
};
struct NV0000_CTRL_GPU_GET_PROBED_IDS_PARAMS { uint32_t gpuIds[32], excludedGpuIds[32], gpuFlags[32]; };
struct NV0080_CTRL_GPU_GET_CLASSLIST_V2_PARAMS { uint32_t numClasses, classList[200]; };
struct NV2080_CTRL_GPU_GET_INFO_V2_PARAMS { uint32_t gpuInfoListSize; struct NVXXXX_CTRL_XXX_INFO gpuInfoList[70]; };
struct NV2080_CTRL_CMD_GET_GPU_FABRIC_PROBE_INFO_PARAMS {
    uint8_t state; uint32_t status; uint8_t clusterUuid[16]; uint16_t fabricPartitionId; uint64_t fabricCaps;
    uint32_t fabricCliqueId, fabricHealthMask; uint8_t fabricHealthSummary;
};
struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_TARGETS_AVAILABLE_OPERANDS { uint32_t availableTargets; };
struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_TARGET_TYPE_OPERANDS { uint32_t targetIndex, type; };
struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_PROVIDER_TYPE_OPERANDS { uint32_t providerIndex, type; };
struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_SENSORS_AVAILABLE_OPERANDS { uint32_t availableSensors; };
struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_SENSOR_PROVIDER_OPERANDS { uint32_t sensorIndex, providerIndex; };
struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_SENSOR_TARGET_OPERANDS { uint32_t sensorIndex, targetIndex; };
struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_SENSOR_READING_RANGE_OPERANDS { uint32_t sensorIndex; int32_t minimum, maximum; };
struct NV2080_CTRL_THERMAL_SYSTEM_GET_STATUS_SENSOR_READING_OPERANDS { uint32_t sensorIndex; int32_t value; };
union NV2080_CTRL_THERMAL_SYSTEM_INSTRUCTION_OPERANDS {
    struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_TARGETS_AVAILABLE_OPERANDS getInfoTargetsAvailable;
    struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_TARGET_TYPE_OPERANDS getInfoTargetType;
    struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_PROVIDER_TYPE_OPERANDS getInfoProviderType;
    struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_SENSORS_AVAILABLE_OPERANDS getInfoSensorsAvailable;
    struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_SENSOR_PROVIDER_OPERANDS getInfoSensorProvider;
    struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_SENSOR_TARGET_OPERANDS getInfoSensorTarget;
    struct NV2080_CTRL_THERMAL_SYSTEM_GET_INFO_SENSOR_READING_RANGE_OPERANDS getInfoSensorReadingRange;
    struct NV2080_CTRL_THERMAL_SYSTEM_GET_STATUS_SENSOR_READING_OPERANDS getStatusSensorReading; uint32_t space[8];
};
struct NV2080_CTRL_THERMAL_SYSTEM_INSTRUCTION {
    uint32_t result, executed, opcode; union NV2080_CTRL_THERMAL_SYSTEM_INSTRUCTION_OPERANDS operands;
};
struct NV2080_CTRL_THERMAL_SYSTEM_EXECUTE_V2_PARAMS {
    uint32_t clientAPIVersion, clientAPIRevision, clientInstructionSizeOf, executeFlags, successfulInstructions,
        instructionListSize;
    struct NV2080_CTRL_THERMAL_SYSTEM_INSTRUCTION instructionList[32];
};
struct NV2080_CTRL_GR_GET_GLOBAL_SM_ORDER_PARAMS {
    struct { uint16_t gpcId, localTpcId, localSmId, globalTpcId, virtualGpcId, migratableTpcId, ugpuId, physicalCpcId,
        virtualTpcId; } globalSmId[512];
    uint16_t numSm, numTpc; struct NV0080_CTRL_GR_ROUTE_INFO grRouteInfo;
};
struct NV2080_CTRL_FB_GET_INFO_V2_PARAMS { uint32_t fbInfoListSize; struct NVXXXX_CTRL_XXX_INFO fbInfoList[128]; };
struct NV2080_CTRL_NVLINK_LINK_MASK { uint8_t lenMasks; uint64_t masks[1]; };
struct NV2080_CTRL_CMD_NVLINK_GET_NVLINK_CAPS_PARAMS {
    uint32_t capsTbl; uint8_t lowestNvlinkVersion, highestNvlinkVersion, lowestNciVersion, highestNciVersion;
    uint32_t discoveredLinkMask, enabledLinkMask; struct NV2080_CTRL_NVLINK_LINK_MASK discoveredLinks, enabledLinks;
};
struct NV2080_CTRL_CMD_NVLINK_GET_NVLINK_STATUS_PARAMS {
    uint32_t enabledLinkMask; struct NV2080_CTRL_NVLINK_LINK_MASK enabledLinks;
    uint8_t bSublinkStateInst, bNvleModeEnabled; struct NV2080_CTRL_NVLINK_LINK_STATUS_INFO linkInfo[64];
};
struct NV2080_CTRL_NVLINK_GET_ERR_INFO_PARAMS {
    uint32_t linkMask; struct NV2080_CTRL_NVLINK_LINK_MASK links; struct NV2080_CTRL_NVLINK_ERR_INFO linkErrInfo[64];
    uint32_t ioctrlMask; struct NV2080_CTRL_NVLINK_COMMON_ERR_INFO commonErrInfo[3]; uint8_t ErrInfoFlags;
};
struct NVA06F_CTRL_GPFIFO_SCHEDULE_PARAMS { uint8_t bEnable, bSkipSubmit, bSkipEnable; };
""",
    590: """
struct RUSD_CLK_PUBLIC_DOMAIN_INFO { uint32_t targetClkMHz, actualClkKHz; };
struct RUSD_CTRL_PERF_GPUMON_ENGINE_UTIL_SAMPLE { uint32_t util, vgpuScale, procId, subProcessID; };
struct RUSD_CTRL_PERF_GPUMON_PERFMON_UTIL_SAMPLE {
    uint64_t timeStamp; struct RUSD_CTRL_PERF_GPUMON_ENGINE_UTIL_SAMPLE fb, gr, nvenc, nvdec, nvjpg, nvofa;
};
struct RUSD_PROC_UTIL_INFO { struct RUSD_CTRL_PERF_GPUMON_PERFMON_UTIL_SAMPLE samples[5]; };
struct RUSD_PROC_UTIL { uint64_t lastModifiedTimestamp; struct RUSD_PROC_UTIL_INFO info; };
struct NV00DE_SHARED_DATA {
    struct RUSD_BAR1_MEMORY_INFO bar1MemoryInfo; struct RUSD_PMA_MEMORY_INFO pmaMemoryInfo;
    struct RUSD_SHADOW_ERR_CONT shadowErrCont; struct RUSD_GR_INFO grInfo;
    struct RUSD_CLK_PUBLIC_DOMAIN_INFOS clkPublicDomainInfos; struct RUSD_CLK_THROTTLE_REASON clkThrottleInfo;
    struct RUSD_PERF_DEVICE_UTILIZATION perfDevUtil; struct RUSD_MEM_ECC memEcc;
    struct RUSD_PERF_CURRENT_PSTATE perfCurrentPstate; struct RUSD_POWER_LIMITS powerLimitGpu;
    struct RUSD_TEMPERATURE temperatures[5]; struct RUSD_MEM_ROW_REMAP memRowRemap;
    struct RUSD_AVG_POWER_USAGE avgPowerUsage; struct RUSD_INST_POWER_USAGE instPowerUsage;
    struct RUSD_POWER_POLICY_STATUS powerPolicyStatus; struct RUSD_PCIE_DATA pciBusData;
    struct RUSD_FAN_COOLER_STATUS fanCoolerStatus; struct RUSD_PROC_UTIL procUtil;
};
struct NV2080_CTRL_GPU_QUERY_ECC_STATUS_PARAMS {
    struct NV2080_CTRL_GPU_QUERY_ECC_UNIT_STATUS units[41]; uint8_t bFatalPoisonError, uncorrectableError; uint32_t flags;
    struct NV0080_CTRL_GR_ROUTE_INFO grRouteInfo;
};
struct NV0080_CTRL_GR_GET_INFO_V2_PARAMS {
    uint32_t grInfoListSize; struct NVXXXX_CTRL_XXX_INFO grInfoList[59]; struct NV0080_CTRL_GR_ROUTE_INFO grRouteInfo;
};
struct NV2080_CTRL_NVLINK_LINK_STATUS_INFO {
    uint32_t capsTbl; uint8_t phyType, subLinkWidth; uint32_t linkState;
    uint8_t rxSublinkStatus, txSublinkStatus, bLaneReversal, nvlinkVersion, nciVersion, phyVersion;
    uint32_t nvlinkLinkClockKHz, nvlinkCommonClockSpeedKHz, nvlinkRefClkSpeedKHz, nvlinkCommonClockSpeedMhz,
        nvlinkLineRateMbps, nvlinkLinkClockMhz;
    uint8_t nvlinkRefClkType; uint32_t nvlinkLinkDataRateKiBps, nvlinkRefClkSpeedMhz;
    uint8_t connected, loopProperty, remoteDeviceLinkNumber, localDeviceLinkNumber; uint64_t remoteLinkSid, localLinkSid;
    uint32_t laneRxdetStatusMask, nvlinkMinL1Threshold, nvlinkMaxL1Threshold, nvlinkL1ThresholdUnits;
    struct NV2080_CTRL_NVLINK_DEVICE_INFO remoteDeviceInfo, localDeviceInfo; uint32_t nvlpwIdx;
};
struct NV2080_CTRL_CMD_NVLINK_GET_NVLINK_STATUS_PARAMS {
    uint32_t enabledLinkMask; struct NV2080_CTRL_NVLINK_LINK_MASK enabledLinks;
    uint8_t bSublinkStateInst, bNvleModeEnabled; struct NV2080_CTRL_NVLINK_LINK_STATUS_INFO linkInfo[64];
    uint64_t enabledNvlpwMask;
};
struct UVM_UNREGISTER_CHANNEL_PARAMS { uint32_t hClient, hChannel, rmStatus; };
struct UVM_FREE_PARAMS { uint64_t base; uint32_t rmStatus; };
""",
    595: """
struct NV2080_CTRL_GPU_GET_NAME_STRING_PARAMS { uint32_t gpuNameStringFlags; struct { uint8_t ascii[64]; } gpuNameString; };
""",
    610: """
struct NV_CHANNEL_ALLOC_PARAMS {
    uint32_t hObjectError, hObjectBuffer; uint64_t gpFifoOffset;
    uint32_t gpFifoEntries, flags, hContextShare, hVASpace, hHandleVASpace, hUserdMemory[8]; uint64_t userdOffset[8];
    uint32_t engineType, cid, subDeviceId, hObjectEccError;
    struct NV_MEMORY_DESC_PARAMS instanceMem, userdMem, ramfcMem, mthdbufMem; uint32_t hPhysChannelGroup, internalFlags;
    struct NV_MEMORY_DESC_PARAMS errorNotifierMem, eccErrorNotifierMem;
    uint32_t ProcessID, SubProcessID, encryptIv[3], decryptIv[3], hmacNonce[8], tpcConfigID;
};
struct NV0080_CTRL_GR_GET_INFO_V2_PARAMS {
    uint32_t grInfoListSize; struct NVXXXX_CTRL_XXX_INFO grInfoList[63]; struct NV0080_CTRL_GR_ROUTE_INFO grRouteInfo;
};
struct NV2080_CTRL_GPU_GET_INFO_V2_PARAMS { uint32_t gpuInfoListSize; struct NVXXXX_CTRL_XXX_INFO gpuInfoList[72]; };
""",
}

# Branch -> the controls that it brought.
NEW_CONTROLS: Mapping[int, Mapping[str, Control]] = {
    580: {"NV2080_CTRL_CMD_THERMAL_SYSTEM_EXECUTE_V2": Control(0x20800513, "NV2080_CTRL_THERMAL_SYSTEM_EXECUTE_V2_PARAMS")},
}

BRANCHES = tuple(CHANGES)

# Where NV00DE_SHARED_DATA has been compared with the branch's header.
SHARED_DATA = (570, 580, 590, 595)


@dataclass(frozen=True, eq=False)
class Tables:
    """The interface of one branch of the driver."""

    branch: int
    nvrm: Uapi
    uvm: Uapi
    controls: Mapping[str, Control]

    @property
    def uapis(self) -> tuple[Uapi, Uapi]:
        return self.nvrm, self.uvm


def tables_for(version: str) -> Tables:
    """The tables of a driver by its version, "580.105.08". Raises DriverMismatch for a branch that devrt does not know."""
    match = re.match(r"(\d+)\.", version)
    branch = int(match[1]) if match else 0
    if branch not in CHANGES:
        known = ", ".join(str(one) for one in BRANCHES)
        raise DriverMismatch(f"NVIDIA driver {version} is of no branch that devrt knows", evidence=f"running: {version}; "
                             f"known branches: {known}", remedy=f"install a driver of branch {known}, or a newer devrt")
    return _tables(branch)


def running_version(text: str) -> str:
    """The version in /proc/driver/nvidia/version. Raises DriverMismatch where there is none."""
    match = re.search(r"^NVRM version:.*?(\d+\.\d+(?:\.\d+)?)", text, re.MULTILINE)
    if not match:
        raise DriverMismatch("the NVIDIA driver names no version", evidence=f"{VERSION_FILE}: {text[:200]!r}",
                             remedy="install NVIDIA's kernel driver, branch " + ", ".join(str(one) for one in BRANCHES))
    return match[1]


@functools.cache
def _tables(branch: int) -> Tables:
    changes = "".join(text for number, text in CHANGES.items() if number <= branch)
    controls = {**CONTROLS}
    for number, rows in NEW_CONTROLS.items():
        controls.update(rows if number <= branch else {})
    commands = {row.number: row.struct for row in controls.values() if row.struct}
    names = {row.number: name for name, row in controls.items()}
    nvrm = replace(NVRM, structs=_merged(NVRM.structs, changes, commands.values()), variants={**NVRM.variants, "cmd": commands},
                   names={**NVRM.names, "cmd": names})
    return Tables(branch, nvrm, replace(UVM, structs=_merged(UVM.structs, changes)), controls)


_STRUCT = re.compile(r"^(?:struct|union) (\w+) \{(?:[^\n]*\};$|.*?^\};$)", re.MULTILINE | re.DOTALL)


def _merged(structs: str, changes: str, also: Iterable[str] = ()) -> str:
    """`structs` with those of `changes` in place of theirs, and new ones where one of them or `also` names them; each before
    what uses it."""
    base, texts = ({match[1]: match[0] for match in _STRUCT.finditer(text)} for text in (structs, structs + changes))
    done: dict[str, str] = {}

    def put(name: str) -> None:
        if name in texts and name not in done:
            for used in re.findall(r"(?:struct|union) (\w+) \w", texts[name]):
                put(used)
            done[name] = texts[name]

    for name in (*base, *also):
        put(name)
    return "\n".join(done.values())
