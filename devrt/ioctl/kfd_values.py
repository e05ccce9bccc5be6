# Linux include/uapi/linux/kfd_ioctl.h (7.3)
"""Values of /dev/kfd's fields and flags, named as the header names them without its prefixes; CONSTANTS has those."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class QueueType(enum.IntEnum):
    COMPUTE = 0  # PM4
    SDMA = 1
    COMPUTE_AQL = 2
    SDMA_XGMI = 3
    SDMA_BY_ENG_ID = 4


class CachePolicy(enum.IntEnum):
    COHERENT = 0
    NONCOHERENT = 1


class AllocFlag(enum.IntFlag):
    VRAM = 1 << 0
    GTT = 1 << 1
    USERPTR = 1 << 2
    DOORBELL = 1 << 3
    MMIO_REMAP = 1 << 4
    CONTIGUOUS = 1 << 23
    EXT_COHERENT = 1 << 24
    UNCACHED = 1 << 25
    COHERENT = 1 << 26
    AQL_QUEUE_MEM = 1 << 27
    NO_SUBSTITUTE = 1 << 28
    PUBLIC = 1 << 29
    EXECUTABLE = 1 << 30
    WRITABLE = 1 << 31


class EventType(enum.IntEnum):
    SIGNAL = 0
    NODECHANGE = 1
    DEVICESTATECHANGE = 2
    HW_EXCEPTION = 3
    SYSTEM_EVENT = 4
    DEBUG_EVENT = 5
    PROFILE_EVENT = 6
    QUEUE_EVENT = 7
    MEMORY = 8


class WaitResult(enum.IntEnum):
    COMPLETE = 0
    TIMEOUT = 1
    FAIL = 2


class ResetType(enum.IntEnum):
    WHOLE_GPU_RESET = 0
    PER_ENGINE_RESET = 1


class ResetCause(enum.IntEnum):
    GPU_HANG = 0
    ECC = 1


class MemoryError_(enum.IntEnum):
    """kfd_hsa_memory_exception_data.ErrorType"""

    NO_RAS = 0
    SRAM_ECC = 1
    POISON_CONSUMED = 2
    GPU_HANG = 3


class SmiEvent(enum.IntEnum):
    """Subscribe by writing the u64 mask of 1 << (event - 1) into the fd of AMDKFD_IOC_SMI_EVENTS."""

    VMFAULT = 1
    THERMAL_THROTTLE = 2
    GPU_PRE_RESET = 3
    GPU_POST_RESET = 4
    MIGRATE_START = 5
    MIGRATE_END = 6
    PAGE_FAULT_START = 7
    PAGE_FAULT_END = 8
    QUEUE_EVICTION = 9
    QUEUE_RESTORE = 10
    UNMAP_FROM_GPU = 11
    PROCESS_START = 12
    PROCESS_END = 13
    ALL_PROCESS = 64  # of every process; root only


class SvmOp(enum.IntEnum):
    SET_ATTR = 0
    GET_ATTR = 1


class SvmAttribute(enum.IntEnum):
    PREFERRED_LOC = 0
    PREFETCH_LOC = 1
    ACCESS = 2
    ACCESS_IN_PLACE = 3
    NO_ACCESS = 4
    SET_FLAGS = 5
    CLR_FLAGS = 6
    GRANULARITY = 7


class SvmFlag(enum.IntFlag):
    HOST_ACCESS = 0x01
    COHERENT = 0x02
    HIVE_LOCAL = 0x04
    GPU_RO = 0x08
    GPU_EXEC = 0x10
    GPU_READ_MOSTLY = 0x20
    GPU_ALWAYS_MAPPED = 0x40
    EXT_COHERENT = 0x80


class SvmLocation(enum.IntEnum):
    SYSMEM = 0
    UNDEFINED = 0xFFFFFFFF


class CriuOp(enum.IntEnum):
    PROCESS_INFO = 0
    CHECKPOINT = 1
    UNPAUSE = 2
    RESTORE = 3
    RESUME = 4


class MmioRemap(enum.IntEnum):
    """Byte offsets in the page that MMIO_REMAP maps."""

    HDP_MEM_FLUSH_CNTL = 0
    HDP_REG_FLUSH_CNTL = 4


class RuntimeEnableMode(enum.IntFlag):
    ENABLE_MASK = 1
    TTMP_SAVE_MASK = 2


class DebugOp(enum.IntEnum):
    ENABLE = 0
    DISABLE = 1
    SEND_RUNTIME_EVENT = 2
    SET_EXCEPTIONS_ENABLED = 3
    SET_WAVE_LAUNCH_OVERRIDE = 4
    SET_WAVE_LAUNCH_MODE = 5
    SUSPEND_QUEUES = 6
    RESUME_QUEUES = 7
    SET_NODE_ADDRESS_WATCH = 8
    CLEAR_NODE_ADDRESS_WATCH = 9
    SET_FLAGS = 10
    QUERY_DEBUG_EVENT = 11
    QUERY_EXCEPTION_INFO = 12
    GET_QUEUE_SNAPSHOT = 13
    GET_DEVICE_SNAPSHOT = 14


class ExceptionCode(enum.IntEnum):
    NONE = 0
    QUEUE_WAVE_ABORT = 1
    QUEUE_WAVE_TRAP = 2
    QUEUE_WAVE_MATH_ERROR = 3
    QUEUE_WAVE_ILLEGAL_INSTRUCTION = 4
    QUEUE_WAVE_MEMORY_VIOLATION = 5
    QUEUE_WAVE_APERTURE_VIOLATION = 6
    QUEUE_PACKET_DISPATCH_DIM_INVALID = 16
    QUEUE_PACKET_DISPATCH_GROUP_SEGMENT_SIZE_INVALID = 17
    QUEUE_PACKET_DISPATCH_CODE_INVALID = 18
    QUEUE_PACKET_RESERVED = 19
    QUEUE_PACKET_UNSUPPORTED = 20
    QUEUE_PACKET_DISPATCH_WORK_GROUP_SIZE_INVALID = 21
    QUEUE_PACKET_DISPATCH_REGISTER_INVALID = 22
    QUEUE_PACKET_VENDOR_UNSUPPORTED = 23
    QUEUE_PREEMPTION_ERROR = 30
    QUEUE_NEW = 31
    DEVICE_QUEUE_DELETE = 32
    DEVICE_MEMORY_VIOLATION = 33
    DEVICE_RAS_ERROR = 34
    DEVICE_FATAL_HALT = 35
    DEVICE_NEW = 36
    PROCESS_RUNTIME = 48
    PROCESS_DEVICE_REMOVE = 49


class MmapType(enum.IntEnum):
    """Bits 63:62 of the offset that mmap of /dev/kfd takes. Linux drivers/gpu/drm/amd/amdkfd/kfd_priv.h."""

    MMIO = 0
    RESERVED_MEM = 1
    EVENTS = 2
    DOORBELL = 3


# What the header puts before each member's name.
CONSTANTS: Mapping[str, type[enum.IntEnum] | type[enum.IntFlag]] = {
    "KFD_IOC_QUEUE_TYPE_": QueueType, "KFD_IOC_CACHE_POLICY_": CachePolicy, "KFD_IOC_ALLOC_MEM_FLAGS_": AllocFlag,
    "KFD_IOC_EVENT_": EventType, "KFD_IOC_WAIT_RESULT_": WaitResult, "KFD_HW_EXCEPTION_": ResetType,
    "KFD_HW_EXCEPTION_ ": ResetCause, "KFD_MEM_ERR_": MemoryError_, "KFD_SMI_EVENT_": SmiEvent, "KFD_IOCTL_SVM_OP_": SvmOp,
    "KFD_IOCTL_SVM_ATTR_": SvmAttribute, "KFD_IOCTL_SVM_FLAG_": SvmFlag, "KFD_IOCTL_SVM_LOCATION_": SvmLocation,
    "KFD_CRIU_OP_": CriuOp, "KFD_MMIO_REMAP_": MmioRemap, "KFD_RUNTIME_ENABLE_MODE_": RuntimeEnableMode,
    "KFD_IOC_DBG_TRAP_": DebugOp, "EC_": ExceptionCode,
}
