# NVIDIA open-gpu-kernel-modules src/nvidia/generated/g_gpu_class_list.c and src/common/sdk/nvidia/inc/class/*.h (595.45.04)
"""Classes that RM makes objects of: those of every GPU, and those of its engines by generation."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from devrt.device import Unsupported


class Class(enum.IntEnum):
    """Named as the headers name them, without the names' numbers where there are two."""

    NV01_ROOT = 0x0000
    NV01_ROOT_NON_PRIV = 0x0001
    NV01_ROOT_CLIENT = 0x0041
    NV01_DEVICE_0 = 0x0080
    NV20_SUBDEVICE_0 = 0x2080
    NV01_EVENT = 0x0005
    NV01_EVENT_OS_EVENT = 0x0079
    NV01_MEMORY_SYSTEM = 0x003E
    NV01_MEMORY_LOCAL_USER = 0x0040
    NV01_MEMORY_VIRTUAL = 0x0070
    NV01_MEMORY_SYSTEM_OS_DESCRIPTOR = 0x0071
    RM_USER_SHARED_DATA = 0x00DE
    GT200_DEBUGGER = 0x83DE
    FERMI_CONTEXT_SHARE_A = 0x9067
    FERMI_VASPACE_A = 0x90F1
    KEPLER_CHANNEL_GROUP_A = 0xA06C
    KEPLER_INLINE_TO_MEMORY_B = 0xA140
    BLACKWELL_INLINE_TO_MEMORY_A = 0xCD40
    VOLTA_USERMODE_A = 0xC361
    TURING_USERMODE_A = 0xC461
    AMPERE_USERMODE_A = 0xC561
    HOPPER_USERMODE_A = 0xC661
    BLACKWELL_USERMODE_A = 0xC761
    VOLTA_CHANNEL_GPFIFO_A = 0xC36F
    TURING_CHANNEL_GPFIFO_A = 0xC46F
    AMPERE_CHANNEL_GPFIFO_A = 0xC56F
    HOPPER_CHANNEL_GPFIFO_A = 0xC86F
    BLACKWELL_CHANNEL_GPFIFO_A = 0xC96F
    BLACKWELL_CHANNEL_GPFIFO_B = 0xCA6F
    TURING_COMPUTE_A = 0xC5C0
    AMPERE_COMPUTE_A = 0xC6C0
    AMPERE_COMPUTE_B = 0xC7C0
    ADA_COMPUTE_A = 0xC9C0
    HOPPER_COMPUTE_A = 0xCBC0
    BLACKWELL_COMPUTE_A = 0xCDC0
    BLACKWELL_COMPUTE_B = 0xCEC0
    TURING_DMA_COPY_A = 0xC5B5
    AMPERE_DMA_COPY_A = 0xC6B5
    AMPERE_DMA_COPY_B = 0xC7B5
    HOPPER_DMA_COPY_A = 0xC8B5
    BLACKWELL_DMA_COPY_A = 0xC9B5
    BLACKWELL_DMA_COPY_B = 0xCAB5
    AMPERE_SMC_PARTITION_REF = 0xC637
    AMPERE_SMC_EXEC_PARTITION_REF = 0xC638
    NV_CONFIDENTIAL_COMPUTE = 0xCB33


@dataclass(frozen=True)
class Generation:
    """Classes of the engines of a family of chips; a runtime takes the first of each that the device lists."""

    chips: tuple[str, ...]
    compute: Class
    copy: tuple[Class, ...]
    channel: tuple[Class, ...]
    usermode: tuple[Class, ...]


_USERMODE = (Class.BLACKWELL_USERMODE_A, Class.HOPPER_USERMODE_A, Class.AMPERE_USERMODE_A, Class.TURING_USERMODE_A,
             Class.VOLTA_USERMODE_A)
_CHANNEL = (Class.BLACKWELL_CHANNEL_GPFIFO_B, Class.BLACKWELL_CHANNEL_GPFIFO_A, Class.HOPPER_CHANNEL_GPFIFO_A,
            Class.AMPERE_CHANNEL_GPFIFO_A, Class.TURING_CHANNEL_GPFIFO_A, Class.VOLTA_CHANNEL_GPFIFO_A)

# The newest first. From Hopper on a device lists usermode and channel classes of several generations.
GENERATIONS = (
    Generation(("GB202", "GB203", "GB205", "GB206", "GB207", "GB20B", "GB20C"), Class.BLACKWELL_COMPUTE_B,
               (Class.BLACKWELL_DMA_COPY_B, Class.BLACKWELL_DMA_COPY_A), _CHANNEL[:-2], _USERMODE[:-2]),
    Generation(("GB100", "GB102", "GB110"), Class.BLACKWELL_COMPUTE_A, (Class.BLACKWELL_DMA_COPY_A,), _CHANNEL[1:-2],
               _USERMODE[1:-2]),
    Generation(("GH100",), Class.HOPPER_COMPUTE_A, (Class.HOPPER_DMA_COPY_A,), _CHANNEL[2:-1], _USERMODE[1:]),
    Generation(("AD102", "AD103", "AD104", "AD106", "AD107"), Class.ADA_COMPUTE_A, (Class.AMPERE_DMA_COPY_B,), _CHANNEL[3:-1],
               _USERMODE[2:]),
    Generation(("GA102", "GA103", "GA104", "GA106", "GA107"), Class.AMPERE_COMPUTE_B, (Class.AMPERE_DMA_COPY_B,),
               _CHANNEL[3:-1], _USERMODE[2:]),
    Generation(("GA100",), Class.AMPERE_COMPUTE_A, (Class.AMPERE_DMA_COPY_A,), _CHANNEL[3:-1], _USERMODE[2:]),
    Generation(("TU102", "TU104", "TU106", "TU116", "TU117"), Class.TURING_COMPUTE_A, (Class.TURING_DMA_COPY_A,), _CHANNEL[4:-1],
               _USERMODE[3:]),
)

CHIPS: Mapping[str, Generation] = {chip: generation for generation in GENERATIONS for chip in generation.chips}


@dataclass(frozen=True)
class Classes:
    """What a runtime makes on one device."""

    usermode: int
    channel: int
    compute: int
    copy: int


def choose(listed: Collection[int]) -> Classes:
    """The classes to use on a device whose class list is given. Raises Unsupported, with the list."""
    for generation in GENERATIONS:
        found = [next((int(one) for one in row if one in listed), None)
                 for row in (generation.usermode, generation.channel, (generation.compute,), generation.copy)]
        if None not in found:
            return Classes(*(one for one in found if one is not None))
    raise Unsupported("the GPU has no compute class that devrt knows",
                      evidence=f"class list: {', '.join(f'{one:04X}' for one in sorted(set(listed)))}",
                      remedy="devrt knows Turing, Ampere, Ada, Hopper and Blackwell")
