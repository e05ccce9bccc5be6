# NVIDIA open-gpu-kernel-modules src/common/sdk/nvidia/inc/{nvos.h,alloc/alloc_channel.h,class/*.h} (570.133.20)
"""Parameters of NV_ESC_RM_ALLOC by class, what is mapped for objects, and the flags of memory.

Later branches replace some of these structs: devrt.ioctl.nv_versions. hObjectNew 0 lets RM choose the handle.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

STRUCTS = """
struct NV0080_ALLOC_PARAMETERS {
    uint32_t deviceId, hClientShare, hTargetClient, hTargetDevice, flags;
    uint64_t vaSpaceSize, vaStartInternal, vaLimitInternal; uint32_t vaMode;
};
struct NV2080_ALLOC_PARAMETERS { uint32_t subDeviceId; };
struct NV_MEMORY_VIRTUAL_ALLOCATION_PARAMS { uint64_t offset, limit; uint32_t hVASpace; };
struct NV_VASPACE_ALLOCATION_PARAMETERS {
    uint32_t index, flags; uint64_t vaSize, vaStartInternal, vaLimitInternal; uint32_t bigPageSize; uint64_t vaBase;
};
struct NV_MEMORY_ALLOCATION_PARAMS {
    uint32_t owner, type, flags, width, height; int32_t pitch; uint32_t attr, attr2, format, comprCovg, zcullCovg;
    uint64_t rangeLo, rangeHi, size, alignment, offset, limit, address; uint32_t ctagOffset, hVASpace, internalflags, tag;
    int32_t numaNode;
};
struct NV_CHANNEL_GROUP_ALLOCATION_PARAMETERS {
    uint32_t hObjectError, hObjectEccError, hVASpace, engineType; uint8_t bIsCallingContextVgpuPlugin;
};
struct NV_CTXSHARE_ALLOCATION_PARAMETERS { uint32_t hVASpace, flags, subctxId; };
struct NV_MEMORY_DESC_PARAMS { uint64_t base, size; uint32_t addressSpace, cacheAttrib; };
struct NV_CHANNEL_ALLOC_PARAMS {
    uint32_t hObjectError, hObjectBuffer; uint64_t gpFifoOffset;
    uint32_t gpFifoEntries, flags, hContextShare, hVASpace, hUserdMemory[8]; uint64_t userdOffset[8];
    uint32_t engineType, cid, subDeviceId, hObjectEccError;
    struct NV_MEMORY_DESC_PARAMS instanceMem, userdMem, ramfcMem, mthdbufMem; uint32_t hPhysChannelGroup, internalFlags;
    struct NV_MEMORY_DESC_PARAMS errorNotifierMem, eccErrorNotifierMem;
    uint32_t ProcessID, SubProcessID, encryptIv[3], decryptIv[3], hmacNonce[8], tpcConfigID;
};
struct NV_HOPPER_USERMODE_A_PARAMS { uint8_t bBar1Mapping, bPriv; };
struct NVB0B5_ALLOCATION_PARAMETERS { uint32_t version, engineType; };
struct NV_GR_ALLOCATION_PARAMETERS { uint32_t version, flags, size, caps; };
struct NV83DE_ALLOC_PARAMETERS { uint32_t hDebuggerClient_Obsolete, hAppClient, hClass3dObject; };
struct NV0005_ALLOC_PARAMETERS { uint32_t hParentClient, hSrcResource, hClass, notifyIndex; uint64_t data; };
struct NV00DE_ALLOC_PARAMETERS { uint64_t polledDataMask; };
struct NvNotification { struct { uint32_t nanoseconds[2]; } timeStamp; uint32_t info32; uint16_t info16, status; };
"""

NO_PARAMETERS = ""  # of a class that takes none

# Class -> its parameters (NV_RESOURCE_LIST of src/nvidia/interface; the classes of engines: devrt.ioctl.nv_classes).
PARAMETERS: Mapping[int, str] = {
    0x0000: NO_PARAMETERS, 0x0001: NO_PARAMETERS, 0x0041: NO_PARAMETERS,
    0x0005: "NV0005_ALLOC_PARAMETERS", 0x0079: "NV0005_ALLOC_PARAMETERS",
    0x003E: "NV_MEMORY_ALLOCATION_PARAMS", 0x0040: "NV_MEMORY_ALLOCATION_PARAMS",
    0x0070: "NV_MEMORY_VIRTUAL_ALLOCATION_PARAMS",
    0x0080: "NV0080_ALLOC_PARAMETERS", 0x2080: "NV2080_ALLOC_PARAMETERS",
    0x00DE: "NV00DE_ALLOC_PARAMETERS",
    0x83DE: "NV83DE_ALLOC_PARAMETERS",
    0x9067: "NV_CTXSHARE_ALLOCATION_PARAMETERS", 0x90F1: "NV_VASPACE_ALLOCATION_PARAMETERS",
    0xA06C: "NV_CHANNEL_GROUP_ALLOCATION_PARAMETERS",
    0xC461: NO_PARAMETERS, 0xC561: NO_PARAMETERS,
    0xC661: "NV_HOPPER_USERMODE_A_PARAMS", 0xC761: "NV_HOPPER_USERMODE_A_PARAMS",
    **dict.fromkeys((0xC46F, 0xC56F, 0xC86F, 0xC96F, 0xCA6F), "NV_CHANNEL_ALLOC_PARAMS"),
    **dict.fromkeys((0xC5C0, 0xC6C0, 0xC7C0, 0xC9C0, 0xCBC0, 0xCDC0, 0xCEC0), "NV_GR_ALLOCATION_PARAMETERS"),
    **dict.fromkeys((0xC5B5, 0xC6B5, 0xC7B5, 0xC8B5, 0xC9B5, 0xCAB5), "NVB0B5_ALLOCATION_PARAMETERS"),
}

# Multi-bit fields of the flag words: header's name -> ((high bit, low bit), value by name).
Field = tuple[tuple[int, int], Mapping[str, int]]
ATTR: Mapping[str, Field] = {  # NVOS32_ATTR_*
    "FORMAT": ((17, 16), {"PITCH": 0, "SWIZZLED": 1, "BLOCK_LINEAR": 2}),
    "PAGE_SIZE": ((24, 23), {"DEFAULT": 0, "4KB": 1, "BIG": 2, "HUGE": 3}),
    "LOCATION": ((26, 25), {"VIDMEM": 0, "PCI": 1, "ANY": 3}),
    "PHYSICALITY": ((28, 27), {"DEFAULT": 0, "NONCONTIGUOUS": 1, "CONTIGUOUS": 2, "ALLOW_NONCONTIGUOUS": 3}),
    "COHERENCY": ((31, 29), {
        "UNCACHED": 0, "CACHED": 1, "WRITE_COMBINE": 2, "WRITE_THROUGH": 3, "WRITE_PROTECT": 4, "WRITE_BACK": 5}),
}
ATTR2: Mapping[str, Field] = {  # NVOS32_ATTR2_*
    "ZBC": ((1, 0), {"DEFAULT": 0, "PREFER_NO_ZBC": 1, "PREFER_ZBC": 2}),
    "GPU_CACHEABLE": ((3, 2), {"DEFAULT": 0, "YES": 1, "NO": 2}),
    "PAGE_SIZE_HUGE": ((21, 20), {"DEFAULT": 0, "2MB": 1, "512MB": 2, "256GB": 3}),
    "PROTECTION_USER": ((22, 22), {"READ_WRITE": 0, "READ_ONLY": 1}),
    "PROTECTION_DEVICE": ((23, 23), {"READ_WRITE": 0, "READ_ONLY": 1}),
}
NVOS02_FLAGS: Mapping[str, Field] = {  # of NV_ESC_RM_ALLOC_MEMORY
    "PHYSICALITY": ((7, 4), {"CONTIGUOUS": 0, "NONCONTIGUOUS": 1}),
    "LOCATION": ((11, 8), {"PCI": 0, "VIDMEM": 2}),
    "COHERENCY": ((15, 12), {
        "UNCACHED": 0, "CACHED": 1, "WRITE_COMBINE": 2, "WRITE_THROUGH": 3, "WRITE_PROTECT": 4, "WRITE_BACK": 5}),
    "GPU_CACHEABLE": ((18, 18), {"NO": 0, "YES": 1}),
    "ALLOC_USER_READ_ONLY": ((21, 21), {"NO": 0, "YES": 1}),
    "ALLOC_DEVICE_READ_ONLY": ((22, 22), {"NO": 0, "YES": 1}),
    "MAPPING": ((31, 30), {"DEFAULT": 0, "NO_MAP": 1, "NEVER_MAP": 2}),
}
NVOS33_FLAGS: Mapping[str, Field] = {  # of NV_ESC_RM_MAP_MEMORY
    "ACCESS": ((1, 0), {"READ_WRITE": 0, "READ_ONLY": 1, "WRITE_ONLY": 2}),
    "MAPPING": ((16, 15), {"DEFAULT": 0, "DIRECT": 1, "REFLECTED": 2}),
    "MAP_FIXED": ((18, 18), {"DISABLE": 0, "ENABLE": 1}),
    "CACHING_TYPE": ((25, 23), {
        "CACHED": 0, "UNCACHED": 1, "WRITECOMBINED": 2, "WRITEBACK": 5, "DEFAULT": 6, "UNCACHED_WEAK": 7}),
}
NVOS46_FLAGS: Mapping[str, Field] = {  # of NV_ESC_RM_MAP_MEMORY_DMA
    "ACCESS": ((1, 0), {"READ_WRITE": 0, "READ_ONLY": 1, "WRITE_ONLY": 2}),
    "CACHE_SNOOP": ((4, 4), {"DISABLE": 0, "ENABLE": 1}),
    "PAGE_SIZE": ((11, 8), {"DEFAULT": 0, "4KB": 1, "BIG": 2, "BOTH": 3, "HUGE": 4}),
    "DMA_OFFSET_FIXED": ((15, 15), {"FALSE": 0, "TRUE": 1}),
}
FLAG_WORDS: Mapping[str, Mapping[str, Field]] = {
    "NVOS32_ATTR_": ATTR, "NVOS32_ATTR2_": ATTR2, "NVOS02_FLAGS_": NVOS02_FLAGS, "NVOS33_FLAGS_": NVOS33_FLAGS,
    "NVOS46_FLAGS_": NVOS46_FLAGS,
}


def flags(fields: Mapping[str, Field], **values: str) -> int:
    """The flag word with fields set by their names: flags(ATTR, LOCATION="PCI", PAGE_SIZE="4KB"). Raises KeyError."""
    word = 0
    for name, value in values.items():
        (_, low), names = fields[name]
        word |= names[value] << low
    return word


def flag(fields: Mapping[str, Field], name: str, word: int) -> int:
    """The number in one field of a flag word."""
    (high, low), _ = fields[name]
    return word >> low & (1 << high - low + 1) - 1


class AllocFlag(enum.IntFlag):
    """NV_MEMORY_ALLOCATION_PARAMS.flags."""

    IGNORE_BANK_PLACEMENT = 0x1
    FIXED_ADDRESS_ALLOCATE = 0x10
    ALIGNMENT_FORCE = 0x100
    MEMORY_HANDLE_PROVIDED = 0x4000
    MAP_NOT_REQUIRED = 0x8000
    PERSISTENT_VIDMEM = 0x10000


class MemoryType(enum.IntEnum):
    """NV_MEMORY_ALLOCATION_PARAMS.type."""

    IMAGE = 0
    NOTIFIER = 13


class VaSpaceFlag(enum.IntFlag):
    """NV_VASPACE_ALLOCATION_PARAMETERS.flags."""

    MINIMIZE_PTETABLE_SIZE = 1 << 0
    RETRY_PTE_ALLOC_IN_SYS = 1 << 1
    SHARED_MANAGEMENT = 1 << 2
    IS_EXTERNALLY_OWNED = 1 << 3
    ENABLE_NVLINK_ATS = 1 << 4
    ENABLE_PAGE_FAULTING = 1 << 6


class CtxShareFlag(enum.IntEnum):
    """NV_CTXSHARE_ALLOCATION_PARAMETERS.flags."""

    SUBCONTEXT_SYNC = 0
    SUBCONTEXT_ASYNC = 1
    SUBCONTEXT_SPECIFIED = 2


class EngineType(enum.IntEnum):
    """An engine of a GPU (class/cl2080_notification.h); COPY10 and up do not follow COPY9."""

    NULL = 0
    GRAPHICS = 1
    COPY0, COPY1, COPY2, COPY3, COPY4, COPY5, COPY6, COPY7, COPY8, COPY9 = range(0x09, 0x13)
    NVDEC0 = 0x13
    COPY10, COPY11, COPY12, COPY13, COPY14, COPY15, COPY16, COPY17, COPY18, COPY19 = range(0x34, 0x3E)


def copy_engine(index: int) -> EngineType:
    """The engine type of COPY`index`."""
    return EngineType[f"COPY{index}"]


class Notifier(enum.IntEnum):
    """Events of a subdevice (class/cl2080_notification.h): NV0005's notifyIndex, EVENT_SET_NOTIFICATION's event."""

    RC_ERROR = 37
    ECC_SBE = 111
    ECC_DBE = 112
    GPU_UNAVAILABLE = 191
    GPU_RC_RESET = 197


# What the header puts before each member's name.
CONSTANTS: Mapping[str, type[enum.IntEnum] | type[enum.IntFlag]] = {
    "NVOS32_ALLOC_FLAGS_": AllocFlag, "NVOS32_TYPE_": MemoryType, "NV_VASPACE_ALLOCATION_FLAGS_": VaSpaceFlag,
    "NV_CTXSHARE_ALLOCATION_FLAGS_": CtxShareFlag, "NV2080_ENGINE_TYPE_": EngineType, "NV2080_NOTIFIERS_": Notifier,
}
