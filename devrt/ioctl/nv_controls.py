# NVIDIA open-gpu-kernel-modules src/common/sdk/nvidia/inc/ctrl/*.h (570.133.20)
"""NV_ESC_RM_CONTROL: commands that a runtime needs, and their parameters.

paramsSize must be this driver's size of them. The middle of a command's number names the class of the object it is for.
What tells a GPU's health: devrt.ioctl.nv_health. What later branches replace: devrt.ioctl.nv_versions.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Control:
    """A command: its number, and the struct of its parameters ("" for none)."""

    number: int
    struct: str = ""


STRUCTS = """
struct NV0000_CTRL_SYSTEM_GET_BUILD_VERSION_V2_PARAMS {
    char driverVersionBuffer[256], versionBuffer[256], driverBranch[256], titleBuffer[256];
    uint32_t changelistNumber, officialChangelistNumber;
};
struct NV0000_CTRL_SYSTEM_GET_P2P_CAPS_V2_PARAMS {
    uint32_t gpuIds[32], gpuCount, p2pCaps, p2pOptimalReadCEs, p2pOptimalWriteCEs; uint8_t p2pCapsStatus[9];
    uint32_t busPeerIds[1024], busEgmPeerIds[1024];
};
struct NV0000_CTRL_GPU_GET_ATTACHED_IDS_PARAMS { uint32_t gpuIds[32]; };
struct NV0000_CTRL_GPU_GET_ID_INFO_V2_PARAMS {
    uint32_t gpuId, gpuFlags, deviceInstance, subDeviceInstance, sliStatus, boardId, gpuInstance; int32_t numaId;
};
struct NV0000_CTRL_GPU_GET_PROBED_IDS_PARAMS { uint32_t gpuIds[32], excludedGpuIds[32]; };
struct NV0000_CTRL_GPU_ATTACH_IDS_PARAMS { uint32_t gpuIds[32], failedId; };
struct NV0000_CTRL_GPU_DETACH_IDS_PARAMS { uint32_t gpuIds[32]; };
struct NV0000_CTRL_GPU_GET_PCI_INFO_PARAMS { uint32_t gpuId, domain; uint16_t bus, slot; };
struct NV0000_CTRL_GPU_GET_UUID_FROM_GPU_ID_PARAMS { uint32_t gpuId, flags; uint8_t gpuUuid[256]; uint32_t uuidStrLen; };
struct NV0080_CTRL_GPU_GET_CLASSLIST_PARAMS { uint32_t numClasses; uint64_t classList; };
struct NV0080_CTRL_GPU_GET_CLASSLIST_V2_PARAMS { uint32_t numClasses, classList[100]; };
struct NV0080_CTRL_GPU_GET_NUM_SUBDEVICES_PARAMS { uint32_t numSubDevices; };
struct NVXXXX_CTRL_XXX_INFO { uint32_t index, data; };
struct NV2080_CTRL_GPU_GET_INFO_V2_PARAMS { uint32_t gpuInfoListSize; struct NVXXXX_CTRL_XXX_INFO gpuInfoList[65]; };
struct NV2080_CTRL_GPU_GET_NAME_STRING_PARAMS {
    uint32_t gpuNameStringFlags; union { uint8_t ascii[64]; uint16_t unicode[64]; } gpuNameString;
};
struct NV0080_CTRL_GR_ROUTE_INFO { uint32_t flags; uint64_t route; };
struct NV2080_CTRL_GPU_SET_COMPUTE_MODE_RULES_PARAMS { uint32_t rules, flags; };
struct NV2080_CTRL_GPU_QUERY_COMPUTE_MODE_RULES_PARAMS { uint32_t rules; };
struct NV2080_CTRL_GPU_GET_GID_INFO_PARAMS { uint32_t index, flags, length; uint8_t data[256]; };
struct NV2080_CTRL_GPU_GET_ENGINES_V2_PARAMS { uint32_t engineCount, engineList[84]; };
struct NV2080_CTRL_EVENT_SET_NOTIFICATION_PARAMS {
    uint32_t event, action; uint8_t bNotifyState; uint32_t info32; uint16_t info16;
};
struct NV2080_CTRL_TIMER_GET_TIME_PARAMS { uint64_t time_nsec; };
struct NV2080_CTRL_TIMER_GPU_CPU_TIME_SAMPLE { uint64_t cpuTime, gpuTime; };
struct NV2080_CTRL_TIMER_GET_GPU_CPU_TIME_CORRELATION_INFO_PARAMS {
    uint8_t cpuClkId, sampleCount; struct NV2080_CTRL_TIMER_GPU_CPU_TIME_SAMPLE samples[16];
};
struct NV2080_CTRL_GR_GET_INFO_PARAMS {
    uint32_t grInfoListSize; uint64_t grInfoList; struct NV0080_CTRL_GR_ROUTE_INFO grRouteInfo;
};
struct NV0080_CTRL_GR_GET_INFO_V2_PARAMS {
    uint32_t grInfoListSize; struct NVXXXX_CTRL_XXX_INFO grInfoList[58]; struct NV0080_CTRL_GR_ROUTE_INFO grRouteInfo;
};
struct NV2080_CTRL_GR_GET_GLOBAL_SM_ORDER_PARAMS {
    struct { uint16_t gpcId, localTpcId, localSmId, globalTpcId, virtualGpcId, migratableTpcId; } globalSmId[512];
    uint16_t numSm, numTpc; struct NV0080_CTRL_GR_ROUTE_INFO grRouteInfo;
};
struct NV2080_CTRL_GR_GET_GPC_MASK_PARAMS { struct NV0080_CTRL_GR_ROUTE_INFO grRouteInfo; uint32_t gpcMask; };
struct NV2080_CTRL_GR_GET_TPC_MASK_PARAMS { struct NV0080_CTRL_GR_ROUTE_INFO grRouteInfo; uint32_t gpcId, tpcMask; };
struct NV2080_CTRL_FB_GET_INFO_V2_PARAMS { uint32_t fbInfoListSize; struct NVXXXX_CTRL_XXX_INFO fbInfoList[57]; };
struct NV2080_CTRL_FB_FLUSH_GPU_CACHE_PARAMS {
    uint64_t addressArray[500]; uint32_t addressArraySize, addressAlign; uint64_t memBlockSizeBytes; uint32_t flags;
};
struct NV2080_CTRL_MC_GET_ARCH_INFO_PARAMS { uint32_t architecture, implementation, revision; uint8_t subRevision; };
struct NV2080_CTRL_PERF_BOOST_PARAMS { uint32_t flags, duration; };
struct NV2080_CTRL_CE_GET_CAPS_V2_PARAMS { uint32_t ceEngineType; uint8_t capsTbl[2]; };
struct NV83DE_CTRL_DEBUG_SET_EXCEPTION_MASK_PARAMS { uint32_t exceptionMask; };
struct NV83DE_SM_ERROR_STATE_REGISTERS {
    uint32_t hwwGlobalEsr, hwwWarpEsr, hwwWarpEsrPc, hwwGlobalEsrReportMask, hwwWarpEsrReportMask;
    uint64_t hwwEsrAddr, hwwWarpEsrPc64; uint32_t hwwCgaEsr, hwwCgaEsrReportMask;
};
struct NV83DE_CTRL_DEBUG_READ_SINGLE_SM_ERROR_STATE_PARAMS {
    uint32_t hTargetChannel, smID; struct NV83DE_SM_ERROR_STATE_REGISTERS smErrorState;
};
struct NV83DE_MMU_FAULT_INFO { uint8_t valid; uint32_t faultInfo; };
struct NV83DE_CTRL_DEBUG_READ_ALL_SM_ERROR_STATES_PARAMS {
    uint32_t hTargetChannel, numSMsToRead; struct NV83DE_SM_ERROR_STATE_REGISTERS smErrorStateArray[100];
    uint32_t mmuFaultInfo; struct NV83DE_MMU_FAULT_INFO mmuFault; uint32_t startingSM;
};
struct NV83DE_CTRL_DEBUG_CLEAR_ALL_SM_ERROR_STATES_PARAMS { uint32_t hTargetChannel, numSMsToClear; };
struct NV83DE_CTRL_DEBUG_READ_MMU_FAULT_INFO_ENTRY { uint64_t faultAddress; uint32_t faultType, accessType; };
struct NV83DE_CTRL_DEBUG_READ_MMU_FAULT_INFO_PARAMS {
    struct NV83DE_CTRL_DEBUG_READ_MMU_FAULT_INFO_ENTRY mmuFaultInfoList[4]; uint32_t count;
};
struct NV906F_CTRL_CMD_RESET_CHANNEL_PARAMS { uint32_t engineID, subdeviceInstance, resetReason; uint8_t bIsRcPending; };
struct NV906F_CTRL_GET_MMU_FAULT_INFO_PARAMS {
    uint32_t addrHi, addrLo, faultType; char faultString[32]; uint64_t shaderProgramVA[7];
};
struct NVA06F_CTRL_GPFIFO_SCHEDULE_PARAMS { uint8_t bEnable, bSkipSubmit; };
struct NVA06F_CTRL_BIND_PARAMS { uint32_t engineType; };
struct NVC36F_CTRL_CMD_GPFIFO_GET_WORK_SUBMIT_TOKEN_PARAMS { uint32_t workSubmitToken; };
"""

CONTROLS: Mapping[str, Control] = {
    "NV0000_CTRL_CMD_SYSTEM_GET_BUILD_VERSION_V2": Control(0x0000013E, "NV0000_CTRL_SYSTEM_GET_BUILD_VERSION_V2_PARAMS"),
    "NV0000_CTRL_CMD_SYSTEM_GET_P2P_CAPS_V2": Control(0x0000012B, "NV0000_CTRL_SYSTEM_GET_P2P_CAPS_V2_PARAMS"),
    "NV0000_CTRL_CMD_GPU_GET_ATTACHED_IDS": Control(0x00000201, "NV0000_CTRL_GPU_GET_ATTACHED_IDS_PARAMS"),
    "NV0000_CTRL_CMD_GPU_GET_ID_INFO_V2": Control(0x00000205, "NV0000_CTRL_GPU_GET_ID_INFO_V2_PARAMS"),
    "NV0000_CTRL_CMD_GPU_GET_PROBED_IDS": Control(0x00000214, "NV0000_CTRL_GPU_GET_PROBED_IDS_PARAMS"),
    "NV0000_CTRL_CMD_GPU_ATTACH_IDS": Control(0x00000215, "NV0000_CTRL_GPU_ATTACH_IDS_PARAMS"),
    "NV0000_CTRL_CMD_GPU_DETACH_IDS": Control(0x00000216, "NV0000_CTRL_GPU_DETACH_IDS_PARAMS"),
    "NV0000_CTRL_CMD_GPU_GET_PCI_INFO": Control(0x0000021B, "NV0000_CTRL_GPU_GET_PCI_INFO_PARAMS"),
    "NV0000_CTRL_CMD_GPU_GET_UUID_FROM_GPU_ID": Control(0x00000275, "NV0000_CTRL_GPU_GET_UUID_FROM_GPU_ID_PARAMS"),
    "NV0080_CTRL_CMD_GPU_GET_CLASSLIST": Control(0x00800201, "NV0080_CTRL_GPU_GET_CLASSLIST_PARAMS"),
    "NV0080_CTRL_CMD_GPU_GET_CLASSLIST_V2": Control(0x00800292, "NV0080_CTRL_GPU_GET_CLASSLIST_V2_PARAMS"),
    "NV0080_CTRL_CMD_GPU_GET_NUM_SUBDEVICES": Control(0x00800280, "NV0080_CTRL_GPU_GET_NUM_SUBDEVICES_PARAMS"),
    "NV2080_CTRL_CMD_GPU_GET_INFO_V2": Control(0x20800102, "NV2080_CTRL_GPU_GET_INFO_V2_PARAMS"),
    "NV2080_CTRL_CMD_GPU_GET_NAME_STRING": Control(0x20800110, "NV2080_CTRL_GPU_GET_NAME_STRING_PARAMS"),
    "NV2080_CTRL_CMD_GPU_SET_COMPUTE_MODE_RULES": Control(0x20800130, "NV2080_CTRL_GPU_SET_COMPUTE_MODE_RULES_PARAMS"),
    "NV2080_CTRL_CMD_GPU_QUERY_COMPUTE_MODE_RULES": Control(0x20800131, "NV2080_CTRL_GPU_QUERY_COMPUTE_MODE_RULES_PARAMS"),
    "NV2080_CTRL_CMD_GPU_GET_GID_INFO": Control(0x2080014A, "NV2080_CTRL_GPU_GET_GID_INFO_PARAMS"),
    "NV2080_CTRL_CMD_GPU_GET_ENGINES_V2": Control(0x20800170, "NV2080_CTRL_GPU_GET_ENGINES_V2_PARAMS"),
    "NV2080_CTRL_CMD_EVENT_SET_NOTIFICATION": Control(0x20800301, "NV2080_CTRL_EVENT_SET_NOTIFICATION_PARAMS"),
    "NV2080_CTRL_CMD_TIMER_GET_TIME": Control(0x20800403, "NV2080_CTRL_TIMER_GET_TIME_PARAMS"),
    "NV2080_CTRL_CMD_TIMER_GET_GPU_CPU_TIME_CORRELATION_INFO": Control(
        0x20800406, "NV2080_CTRL_TIMER_GET_GPU_CPU_TIME_CORRELATION_INFO_PARAMS"),
    "NV2080_CTRL_CMD_GR_GET_INFO": Control(0x20801201, "NV2080_CTRL_GR_GET_INFO_PARAMS"),
    "NV2080_CTRL_CMD_GR_GET_INFO_V2": Control(0x20801228, "NV0080_CTRL_GR_GET_INFO_V2_PARAMS"),
    "NV2080_CTRL_CMD_GR_GET_GLOBAL_SM_ORDER": Control(0x2080121B, "NV2080_CTRL_GR_GET_GLOBAL_SM_ORDER_PARAMS"),
    "NV2080_CTRL_CMD_GR_GET_GPC_MASK": Control(0x2080122A, "NV2080_CTRL_GR_GET_GPC_MASK_PARAMS"),
    "NV2080_CTRL_CMD_GR_GET_TPC_MASK": Control(0x2080122B, "NV2080_CTRL_GR_GET_TPC_MASK_PARAMS"),
    "NV2080_CTRL_CMD_FB_GET_INFO_V2": Control(0x20801303, "NV2080_CTRL_FB_GET_INFO_V2_PARAMS"),
    "NV2080_CTRL_CMD_FB_FLUSH_GPU_CACHE": Control(0x2080130E, "NV2080_CTRL_FB_FLUSH_GPU_CACHE_PARAMS"),
    "NV2080_CTRL_CMD_MC_GET_ARCH_INFO": Control(0x20801701, "NV2080_CTRL_MC_GET_ARCH_INFO_PARAMS"),
    "NV2080_CTRL_CMD_PERF_BOOST": Control(0x2080200A, "NV2080_CTRL_PERF_BOOST_PARAMS"),
    "NV2080_CTRL_CMD_CE_GET_CAPS_V2": Control(0x20802A03, "NV2080_CTRL_CE_GET_CAPS_V2_PARAMS"),
    "NV2080_CTRL_CMD_CE_GET_PHYSICAL_CAPS": Control(0x20802A07, "NV2080_CTRL_CE_GET_CAPS_V2_PARAMS"),
    "NV83DE_CTRL_CMD_SM_DEBUG_MODE_ENABLE": Control(0x83DE0301),
    "NV83DE_CTRL_CMD_SM_DEBUG_MODE_DISABLE": Control(0x83DE0302),
    "NV83DE_CTRL_CMD_DEBUG_SET_EXCEPTION_MASK": Control(0x83DE0309, "NV83DE_CTRL_DEBUG_SET_EXCEPTION_MASK_PARAMS"),
    "NV83DE_CTRL_CMD_DEBUG_READ_SINGLE_SM_ERROR_STATE": Control(
        0x83DE030B, "NV83DE_CTRL_DEBUG_READ_SINGLE_SM_ERROR_STATE_PARAMS"),
    "NV83DE_CTRL_CMD_DEBUG_READ_ALL_SM_ERROR_STATES": Control(0x83DE030C, "NV83DE_CTRL_DEBUG_READ_ALL_SM_ERROR_STATES_PARAMS"),
    "NV83DE_CTRL_CMD_DEBUG_CLEAR_ALL_SM_ERROR_STATES": Control(0x83DE0310, "NV83DE_CTRL_DEBUG_CLEAR_ALL_SM_ERROR_STATES_PARAMS"),
    "NV83DE_CTRL_CMD_DEBUG_READ_MMU_FAULT_INFO": Control(0x83DE0328, "NV83DE_CTRL_DEBUG_READ_MMU_FAULT_INFO_PARAMS"),
    "NV906F_CTRL_CMD_RESET_CHANNEL": Control(0x906F0102, "NV906F_CTRL_CMD_RESET_CHANNEL_PARAMS"),
    "NV906F_CTRL_CMD_GET_MMU_FAULT_INFO": Control(0x906F0106, "NV906F_CTRL_GET_MMU_FAULT_INFO_PARAMS"),
    "NVA06C_CTRL_CMD_GPFIFO_SCHEDULE": Control(0xA06C0101, "NVA06F_CTRL_GPFIFO_SCHEDULE_PARAMS"),
    "NVA06F_CTRL_CMD_GPFIFO_SCHEDULE": Control(0xA06F0103, "NVA06F_CTRL_GPFIFO_SCHEDULE_PARAMS"),
    "NVA06F_CTRL_CMD_BIND": Control(0xA06F0104, "NVA06F_CTRL_BIND_PARAMS"),
    "NVC36F_CTRL_CMD_GPFIFO_GET_WORK_SUBMIT_TOKEN": Control(0xC36F0108, "NVC36F_CTRL_CMD_GPFIFO_GET_WORK_SUBMIT_TOKEN_PARAMS"),
}


class GrInfo(enum.IntEnum):
    """Index of a pair of GR_GET_INFO. Counts are those of the whole chip, before parts of it were switched off."""

    SM_VERSION = 0x0C
    MAX_WARPS_PER_SM = 0x0D
    MAX_THREADS_PER_WARP = 0x0E
    LITTER_NUM_GPCS = 0x14
    LITTER_NUM_TPC_PER_GPC = 0x17
    GPU_CORE_COUNT = 0x1D
    LITTER_NUM_SM_PER_TPC = 0x20
    MAX_SUBCONTEXT_COUNT = 0x2C


class FbInfo(enum.IntEnum):
    """Index of a pair of FB_GET_INFO_V2. Sizes are in KiB, that of the L2 cache in bytes."""

    BAR1_SIZE = 0x05
    RAM_SIZE = 0x07
    TOTAL_RAM_SIZE = 0x08
    HEAP_SIZE = 0x09
    BUS_WIDTH = 0x0B
    HEAP_FREE = 0x16
    L2CACHE_SIZE = 0x1B
    BAR1_AVAIL_SIZE = 0x1D
    USABLE_RAM_SIZE = 0x20


class ComputeMode(enum.IntEnum):
    """Rules of NV2080_CTRL_CMD_GPU_QUERY_COMPUTE_MODE_RULES."""

    NONE = 0
    EXCLUSIVE_COMPUTE = 1
    COMPUTE_PROHIBITED = 2
    EXCLUSIVE_COMPUTE_PROCESS = 3


class BoostFlag(enum.IntFlag):
    """NV2080_CTRL_PERF_BOOST_PARAMS.flags."""

    CMD_CLEAR = 0
    CMD_BOOST_1LEVEL = 1
    CMD_BOOST_TO_MAX = 2
    CUDA_YES = 1 << 4
    ASYNC_YES = 1 << 5
    CUDA_PRIORITY_HIGH = 1 << 6


class FlushFlag(enum.IntFlag):
    """NV2080_CTRL_FB_FLUSH_GPU_CACHE_PARAMS.flags."""

    WRITE_BACK_YES = 1 << 2
    INVALIDATE_YES = 1 << 3
    FLUSH_MODE_FULL_CACHE = 1 << 4


class P2pCaps(enum.IntFlag):
    """NV0000_CTRL_SYSTEM_GET_P2P_CAPS_V2_PARAMS.p2pCaps."""

    WRITES_SUPPORTED = 1 << 0
    READS_SUPPORTED = 1 << 1
    PROP_SUPPORTED = 1 << 2
    NVLINK_SUPPORTED = 1 << 3
    ATOMICS_SUPPORTED = 1 << 4
    LOOPBACK_SUPPORTED = 1 << 5
    PCI_SUPPORTED = 1 << 6


class P2pStatus(enum.IntEnum):
    """Entries of NV0000_CTRL_SYSTEM_GET_P2P_CAPS_V2_PARAMS.p2pCapsStatus, one for each kind of access of P2pIndex."""

    OK = 0
    CHIPSET_NOT_SUPPORTED = 1
    GPU_NOT_SUPPORTED = 2
    IOH_TOPOLOGY_NOT_SUPPORTED = 3
    DISABLED_BY_REGKEY = 4
    NOT_SUPPORTED = 5


class P2pIndex(enum.IntEnum):
    READ = 0
    WRITE = 1
    NVLINK = 2
    ATOMICS = 3
    PROP = 4
    LOOPBACK = 5
    PCI = 6


class FaultType(enum.IntEnum):
    """NV83DE_CTRL_DEBUG_READ_MMU_FAULT_INFO_ENTRY.faultType (hwref/*/dev_fault.h: NV_PFAULT_FAULT_TYPE_*)."""

    PDE = 0x0
    PDE_SIZE = 0x1
    PTE = 0x2
    VA_LIMIT_VIOLATION = 0x3
    UNBOUND_INST_BLOCK = 0x4
    PRIV_VIOLATION = 0x5
    RO_VIOLATION = 0x6
    WO_VIOLATION = 0x7
    PITCH_MASK_VIOLATION = 0x8
    WORK_CREATION = 0x9
    UNSUPPORTED_APERTURE = 0xA
    COMPRESSION_FAILURE = 0xB
    UNSUPPORTED_KIND = 0xC
    REGION_VIOLATION = 0xD
    POISONED = 0xE
    ATOMIC_VIOLATION = 0xF


class AccessType(enum.IntEnum):
    """NV83DE_CTRL_DEBUG_READ_MMU_FAULT_INFO_ENTRY.accessType (NV_PFAULT_ACCESS_TYPE_*); 8 and up are physical addresses."""

    VIRT_READ = 0
    VIRT_WRITE = 1
    VIRT_ATOMIC_STRONG = 2
    VIRT_PREFETCH = 3
    VIRT_ATOMIC_WEAK = 4


# What the header puts before each member's name.
CONSTANTS: Mapping[str, type[enum.IntEnum] | type[enum.IntFlag]] = {
    "NV0080_CTRL_GR_INFO_INDEX_": GrInfo, "NV2080_CTRL_FB_INFO_INDEX_": FbInfo,
    "NV2080_CTRL_GPU_COMPUTE_MODE_RULES_": ComputeMode,
    "NV0000_P2P_CAPS_STATUS_": P2pStatus, "NV0000_CTRL_P2P_CAPS_INDEX_": P2pIndex,
}
