# NVIDIA open-gpu-kernel-modules kernel-open/nvidia-uvm/{uvm_ioctl.h,uvm_linux_ioctl.h} (570.133.20)
"""NVIDIA's unified memory driver: /dev/nvidia-uvm, which owns the GPU's page tables.

A request is the bare command number. UVM answers in rmStatus, by codes of devrt.ioctl.nv_status; the first call on a
descriptor is UVM_INITIALIZE. Addresses are GPU addresses and, for external ranges, need not be mapped by the process. Structs
that later branches replace are in devrt.ioctl.nv_versions; UVM here is that of the oldest branch.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from devrt.ioctl.nv_status import Status
from devrt.ioctl.uapi import BARE, Uapi

UVM = Uapi(
    name="uvm",
    header="uvm_linux_ioctl.h",
    nodes=("/dev/nvidia-uvm",),
    magic=0,
    structs="""
struct NvUuid { uint8_t uuid[16]; };
struct UvmGpuMappingAttributes {
    struct NvUuid gpuUuid; uint32_t gpuMappingType, gpuCachingType, gpuFormatType, gpuElementBits, gpuCompressionType;
};

struct UVM_INITIALIZE_PARAMS { uint64_t flags; uint32_t rmStatus; };
struct UVM_MM_INITIALIZE_PARAMS { int32_t uvmFd; uint32_t rmStatus; };
struct UVM_PAGEABLE_MEM_ACCESS_PARAMS { uint8_t pageableMemAccess; uint32_t rmStatus; };

struct UVM_REGISTER_GPU_PARAMS {
    struct NvUuid gpu_uuid; uint8_t numaEnabled; int32_t numaNodeId, rmCtrlFd; uint32_t hClient, hSmcPartRef, rmStatus;
};
struct UVM_UNREGISTER_GPU_PARAMS { struct NvUuid gpu_uuid; uint32_t rmStatus; };
struct UVM_REGISTER_GPU_VASPACE_PARAMS { struct NvUuid gpuUuid; int32_t rmCtrlFd; uint32_t hClient, hVaSpace, rmStatus; };
struct UVM_UNREGISTER_GPU_VASPACE_PARAMS { struct NvUuid gpuUuid; uint32_t rmStatus; };
struct UVM_REGISTER_CHANNEL_PARAMS {
    struct NvUuid gpuUuid; int32_t rmCtrlFd; uint32_t hClient, hChannel; uint64_t base, length; uint32_t rmStatus;
};
struct UVM_UNREGISTER_CHANNEL_PARAMS { struct NvUuid gpuUuid; uint32_t hClient, hChannel, rmStatus; };
struct UVM_ENABLE_PEER_ACCESS_PARAMS { struct NvUuid gpuUuidA, gpuUuidB; uint32_t rmStatus; };
struct UVM_DISABLE_PEER_ACCESS_PARAMS { struct NvUuid gpuUuidA, gpuUuidB; uint32_t rmStatus; };

struct UVM_CREATE_EXTERNAL_RANGE_PARAMS { uint64_t base, length; uint32_t rmStatus; };
struct UVM_MAP_EXTERNAL_ALLOCATION_PARAMS {
    uint64_t base, length, offset; struct UvmGpuMappingAttributes perGpuAttributes[256]; uint64_t gpuAttributesCount;
    int32_t rmCtrlFd; uint32_t hClient, hMemory, rmStatus;
};
struct UVM_UNMAP_EXTERNAL_PARAMS { uint64_t base, length; struct NvUuid gpuUuid; uint32_t rmStatus; };
struct UVM_FREE_PARAMS { uint64_t base, length; uint32_t rmStatus; };
struct UVM_VALIDATE_VA_RANGE_PARAMS { uint64_t base, length; uint32_t rmStatus; };
""",
    ioctls={
        "UVM_INITIALIZE": BARE(0x30000001, "UVM_INITIALIZE_PARAMS"),
        "UVM_DEINITIALIZE": BARE(0x30000002, ""),
        "UVM_REGISTER_GPU_VASPACE": BARE(25, "UVM_REGISTER_GPU_VASPACE_PARAMS"),
        "UVM_UNREGISTER_GPU_VASPACE": BARE(26, "UVM_UNREGISTER_GPU_VASPACE_PARAMS"),
        "UVM_REGISTER_CHANNEL": BARE(27, "UVM_REGISTER_CHANNEL_PARAMS"),
        "UVM_UNREGISTER_CHANNEL": BARE(28, "UVM_UNREGISTER_CHANNEL_PARAMS"),
        "UVM_ENABLE_PEER_ACCESS": BARE(29, "UVM_ENABLE_PEER_ACCESS_PARAMS"),
        "UVM_DISABLE_PEER_ACCESS": BARE(30, "UVM_DISABLE_PEER_ACCESS_PARAMS"),
        "UVM_MAP_EXTERNAL_ALLOCATION": BARE(33, "UVM_MAP_EXTERNAL_ALLOCATION_PARAMS"),
        "UVM_FREE": BARE(34, "UVM_FREE_PARAMS"),
        "UVM_REGISTER_GPU": BARE(37, "UVM_REGISTER_GPU_PARAMS"),
        "UVM_UNREGISTER_GPU": BARE(38, "UVM_UNREGISTER_GPU_PARAMS"),
        "UVM_PAGEABLE_MEM_ACCESS": BARE(39, "UVM_PAGEABLE_MEM_ACCESS_PARAMS"),
        "UVM_UNMAP_EXTERNAL": BARE(66, "UVM_UNMAP_EXTERNAL_PARAMS"),
        "UVM_VALIDATE_VA_RANGE": BARE(72, "UVM_VALIDATE_VA_RANGE_PARAMS"),
        "UVM_CREATE_EXTERNAL_RANGE": BARE(73, "UVM_CREATE_EXTERNAL_RANGE_PARAMS"),
        "UVM_MM_INITIALIZE": BARE(75, "UVM_MM_INITIALIZE_PARAMS"),
    },
    names={"rmStatus": {int(status): status.name for status in Status}},
)


class InitFlag(enum.IntFlag):
    """UVM_INITIALIZE_PARAMS.flags."""

    DISABLE_HMM = 0x1
    MULTI_PROCESS_SHARING_MODE = 0x2


class Mapping_(enum.IntEnum):
    """UvmGpuMappingAttributes.gpuMappingType (uvm_types.h)."""

    Default = 0
    ReadWriteAtomic = 1
    ReadWrite = 2
    ReadOnly = 3


class Caching(enum.IntEnum):
    """UvmGpuMappingAttributes.gpuCachingType (uvm_types.h)."""

    Default = 0
    ForceUncached = 1
    ForceCached = 2


# What the header puts before each member's name.
CONSTANTS: Mapping[str, type[enum.IntEnum] | type[enum.IntFlag]] = {
    "UVM_INIT_FLAGS_": InitFlag, "UvmGpuMappingType": Mapping_, "UvmGpuCachingType": Caching,
}
