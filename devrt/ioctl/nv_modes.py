# NVIDIA open-gpu-kernel-modules src/common/sdk/nvidia/inc/{class,ctrl}/*.h, kernel-open/nvidia/nv-caps.c (570.133.20)
"""Modes that a data-centre GPU can be in: split into instances (MIG), part of a virtual machine (vGPU), confidential computing.

MIG: a GPU instance (class C637, "partition", numbered by swizzId) has memory and engines of its own; a compute instance (C638,
"exec partition") in it has SMs. A client that subscribes its subdevice to both sees nothing else from then on: counts, sizes and
engines are the instance's, engines numbered anew. Who may subscribe is who can open two nodes of /dev/nvidia-caps.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from devrt.ioctl.nv_controls import Control

STRUCTS = """
struct NVC637_ALLOCATION_PARAMETERS { uint64_t capDescriptor; uint32_t swizzId; };
struct NVC638_ALLOCATION_PARAMETERS { uint64_t capDescriptor; uint32_t execPartitionId; };
struct NV_CONFIDENTIAL_COMPUTE_ALLOC_PARAMS { uint32_t hClient; };
struct NV2080_CTRL_GPU_PARTITION_SPAN { uint64_t lo, hi; };
struct NV2080_CTRL_GPU_GET_PARTITION_INFO {
    uint32_t swizzId, partitionFlag, grEngCount, veidCount, smCount, ceCount, nvEncCount, nvDecCount, nvJpgCount, nvOfaCount,
        gpcCount, virtualGpcCount, gfxGpcCount, gpcsPerGr[8], virtualGpcsPerGr[8], gfxGpcPerGr[8], veidsPerGr[8];
    uint64_t memSize; struct NV2080_CTRL_GPU_PARTITION_SPAN span; uint8_t bValid, bPartitionError;
    uint64_t validCTSIdMask, validGfxCTSIdMask;
};
struct NV2080_CTRL_GPU_GET_PARTITIONS_PARAMS {
    struct NV2080_CTRL_GPU_GET_PARTITION_INFO queryPartitionInfo[8]; uint32_t validPartitionCount; uint8_t bGetAllPartitionInfo;
};
struct NV2080_CTRL_GPU_GET_ACTIVE_PARTITION_IDS_PARAMS { uint32_t swizzId[9], partitionCount; };
struct NVC637_CTRL_EXEC_PARTITIONS_INFO {
    uint32_t gpcCount, gfxGpcCount, veidCount, ceCount, nvEncCount, nvDecCount, nvJpgCount, ofaCount, sharedEngFlag,
        veidStartOffset, smCount, spanStart, computeSize;
};
struct NVC637_CTRL_EXEC_PARTITIONS_GET_PARAMS {
    uint32_t execPartCount, execPartId[8]; struct NVC637_CTRL_EXEC_PARTITIONS_INFO execPartInfo[8];
};
struct NVC638_CTRL_GET_UUID_PARAMS { uint8_t uuid[16]; char uuidStr[41]; };
struct NV0080_CTRL_GPU_GET_VIRTUALIZATION_MODE_PARAMS { uint32_t virtualizationMode; uint8_t isGridBuild; };
struct NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_CAPABILITIES_PARAMS {
    uint8_t cpuCapability, gpusCapability, environment, ccFeature, devToolsMode, multiGpuMode;
};
struct NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_GPUS_STATE_PARAMS { uint8_t bAcceptClientRequest; };
"""

# Class -> its parameters.
PARAMETERS: Mapping[int, str] = {
    0xC637: "NVC637_ALLOCATION_PARAMETERS", 0xC638: "NVC638_ALLOCATION_PARAMETERS",
    0xCB33: "NV_CONFIDENTIAL_COMPUTE_ALLOC_PARAMS"}

CONTROLS: Mapping[str, Control] = {
    "NV0080_CTRL_CMD_GPU_GET_VIRTUALIZATION_MODE": Control(0x00800289, "NV0080_CTRL_GPU_GET_VIRTUALIZATION_MODE_PARAMS"),
    "NV2080_CTRL_CMD_GPU_GET_PARTITIONS": Control(0x20800175, "NV2080_CTRL_GPU_GET_PARTITIONS_PARAMS"),
    "NV2080_CTRL_CMD_GPU_GET_ACTIVE_PARTITION_IDS": Control(0x2080018B, "NV2080_CTRL_GPU_GET_ACTIVE_PARTITION_IDS_PARAMS"),
    "NVC637_CTRL_CMD_EXEC_PARTITIONS_GET": Control(0xC6370103, "NVC637_CTRL_EXEC_PARTITIONS_GET_PARAMS"),
    "NVC638_CTRL_CMD_GET_UUID": Control(0xC6380101, "NVC638_CTRL_GET_UUID_PARAMS"),
    "NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_CAPABILITIES": Control(
        0xCB330101, "NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_CAPABILITIES_PARAMS"),
    "NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_GPUS_STATE": Control(
        0xCB330104, "NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_GPUS_STATE_PARAMS"),
}

WHOLE_GPU = 0xFFFFFFFE  # NVC637_DEVICE_PROFILING_SWIZZID: listed among the instances, and is none


class GpuInfo(enum.IntEnum):
    """Index of a pair of GPU_GET_INFO_V2."""

    GPU_SMC_MODE = 0x2A
    GPU_SM_VERSION = 0x2C


class MigMode(enum.IntEnum):
    """Value of GpuInfo.GPU_SMC_MODE; a pending change comes with the next reset."""

    UNSUPPORTED = 0
    ENABLED = 1
    DISABLED = 2
    ENABLE_PENDING = 3
    DISABLE_PENDING = 4


class MemorySize(enum.IntEnum):
    """Bits 1:0 of partitionFlag: how much of the GPU's memory an instance has."""

    FULL = 0
    HALF = 1
    QUARTER = 2
    EIGHTH = 3


class ComputeSize(enum.IntEnum):
    """Bits 4:2 of partitionFlag, and computeSize: how many of the slices that a GPU is cut into."""

    FULL = 0
    HALF = 1
    MINI_HALF = 2
    QUARTER = 3
    MINI_QUARTER = 4
    EIGHTH = 5


class Virtualization(enum.IntEnum):
    """Answer of NV0080_CTRL_CMD_GPU_GET_VIRTUALIZATION_MODE."""

    NONE = 0
    NMOS = 1  # the whole GPU is a virtual machine's
    VGX = 2   # this is a virtual machine, and the GPU a part of one
    HOST_VGPU = 3
    HOST_VSGA = 4


class Feature(enum.IntEnum):
    """ccFeature: whether confidential computing is on, of Ampere's or of Hopper's kind."""

    DISABLED = 0
    APM_ENABLED = 1
    HCC_ENABLED = 2


class MultiGpu(enum.IntEnum):
    """multiGpuMode; with PROTECTED_PCIE ccFeature says DISABLED."""

    NONE = 0
    PROTECTED_PCIE = 1
    NVLE = 2


# What the header puts before each member's name.
CONSTANTS: Mapping[str, type[enum.IntEnum] | type[enum.IntFlag]] = {
    "NV2080_CTRL_GPU_INFO_INDEX_": GpuInfo, "NV2080_CTRL_GPU_INFO_GPU_SMC_MODE_": MigMode,
    "NV2080_CTRL_GPU_PARTITION_FLAG_MEMORY_SIZE_": MemorySize, "NV2080_CTRL_GPU_PARTITION_FLAG_COMPUTE_SIZE_": ComputeSize,
    "NV0080_CTRL_GPU_VIRTUALIZATION_MODE_": Virtualization,
    "NV_CONF_COMPUTE_SYSTEM_FEATURE_": Feature, "NV_CONF_COMPUTE_SYSTEM_MULTI_GPU_MODE_": MultiGpu,
}

# ---------------------------------------------------------------------------------------------------------------------
# Capabilities: which node stands for which instance

CAPABILITIES = "/proc/driver/nvidia/capabilities"
NODES = "/dev/nvidia-caps"


def gpu_instance_file(minor: int, gpu_instance: int) -> str:
    """What says which node a GPU instance's is, by the minor number of its card."""
    return f"{CAPABILITIES}/gpu{minor}/mig/gi{gpu_instance}/access"


def compute_instance_file(minor: int, gpu_instance: int, compute_instance: int) -> str:
    return f"{CAPABILITIES}/gpu{minor}/mig/gi{gpu_instance}/ci{compute_instance}/access"


def node_of(number: int) -> str:
    """The node of the capability whose file says DeviceFileMinor: `number`."""
    return f"{NODES}/nvidia-cap{number}"


def capability_number(minor: int, gpu_instance: int, compute_instance: int | None = None) -> int:
    """The minor number that the driver gives a capability: those of the whole machine come first, then 15 GPU instances a card,
    each with 8 compute instances (nv-caps.c, g_nv_cap_*_table)."""
    return 3 + 9 * (15 * minor + gpu_instance) + (0 if compute_instance is None else 1 + compute_instance)
