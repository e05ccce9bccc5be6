"""What differs by generation where kernels are loaded and launched: limits, and where code expects what in constant bank 0.

Limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". Bank 0: read off what NVIDIA's compiler
emits; code that devrt compiles keeps to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from devrt.device import Unsupported

STACK_TOP = 0xFFFDC0  # where the vendor's code starts its stack, growing down; above it lies what calls save
STACK_RESERVE = 0x1000000 - STACK_TOP
REGISTER_FILE, REGISTER_UNIT = 65536, 256  # 32-bit registers of an SM; of a warp they are given out in these units
MAX_THREADS = 1024  # of a block
MAX_LOCAL_BYTES = 512 << 10  # of a thread

# NV2080_CTRL_GR_INFO_INDEX_SM_VERSION -> generation
SM_VERSIONS: Mapping[int, int] = {0x705: 75, 0x800: 80, 0x802: 80, 0x806: 86, 0x809: 89, 0x900: 90, 0xA00: 100, 0xA04: 120}


@dataclass(frozen=True)
class Bank0:
    """Byte offsets. `shared_window` -1: the code reads it from a special register."""

    params: int
    block: int        # three u32
    grid: int         # three u32
    shared_window: int
    local_window: int
    stack: int


@dataclass(frozen=True)
class Generation:
    """`carve_outs`: KiB that shared memory may take of an SM's L1. `lanes`: f32 operations an SM starts a clock. `clock_mhz`: the
    boost clock of the fastest card, for predicted times."""

    sass_version: int
    shared_bytes: int  # of a block
    carve_outs: tuple[int, ...]
    warps: int         # of an SM
    lanes: int
    clock_mhz: int
    bank0: Bank0


_OLD = Bank0(0x160, 0x00, 0x0C, 0x18, 0x20, 0x28)
_HOPPER = Bank0(0x210, 0x00, 0x0C, -1, 0x20, 0x28)
_BLACKWELL = Bank0(0x380, 0x360, 0x370, 0x2F0, 0x2F8, 0x37C)
_SM80 = 0, 8, 16, 32, 64, 100, 132, 164
_SM86 = 0, 8, 16, 32, 64, 100
GENERATIONS: Mapping[int, Generation] = {
    75: Generation(0x75, 64 << 10, (32, 64), 32, 64, 1770, _OLD),
    80: Generation(0x80, 163 << 10, _SM80, 64, 64, 1410, _OLD),
    86: Generation(0x86, 99 << 10, _SM86, 48, 128, 1860, _OLD),
    89: Generation(0x89, 99 << 10, _SM86, 48, 128, 2520, _OLD),
    90: Generation(0x90, 227 << 10, (*_SM80, 196, 228), 64, 128, 1980, _HOPPER),
    100: Generation(0xA0, 227 << 10, (*_SM80, 196, 228), 64, 128, 1965, _BLACKWELL),
    120: Generation(0xA4, 99 << 10, _SM86, 48, 128, 2410, _BLACKWELL),
}

# PCI device ids, first and last of a family -> generation: NVIDIA's list of supported chips, README.txt of the driver
_FAMILIES = ((0x1E02, 0x1FFF, 75), (0x2182, 0x21FF, 75), (0x20B0, 0x20FF, 80), (0x2203, 0x22FF, 86), (0x2302, 0x23FF, 90),
             (0x2414, 0x25FF, 86), (0x2681, 0x28FF, 89), (0x2901, 0x29FF, 100), (0x2B80, 0x2FFF, 120))


def of_version(sm_version: int, name: str) -> int:
    """The generation of a GPU by what its driver calls it. Raises Unsupported."""
    if sm_version not in SM_VERSIONS:
        raise Unsupported(f"devrt knows no GPU of SM version {sm_version:#x}", evidence=name,
                          remedy="devrt knows sm_75, 80, 86, 89, 90, 100 and 120")
    return SM_VERSIONS[sm_version]


def of_pci(device_id: int) -> int:
    """The generation of a card by its PCI device id, 0 where devrt knows none."""
    return next((sm for first, last, sm in _FAMILIES if first <= device_id <= last), 0)


def carve_out(sm: int, shared_bytes: int) -> int:
    """The code of the smallest division of the L1 that holds a block's shared memory."""
    return next(kib for kib in GENERATIONS[sm].carve_outs if kib << 10 >= shared_bytes) // 4 + 1
