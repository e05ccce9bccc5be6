"""The judge of launch descriptors: what a QMD's fields may hold beyond what their tables say. Each refusal names the field.

Limits of an SM: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; codes of shared memory
configurations and the SASS version: Mesa's nak/qmd.rs and tinygrad's ops_nv.py.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from devrt.nvidia import qmd
from devrt.nvidia.fields import BadField
from devrt.virtual.nvidia.dispatch import Launch
from devrt.virtual.nvidia.engine import Refused

REGISTER_FILE = 65536   # 32-bit registers of an SM
_REGISTER_UNIT = 8      # registers of a thread are given out in eights
_THREADS, _DEPTH = 1024, 64
_BARRIERS = 16
_CODE_ALIGNMENT = 128
_CONSTANT_BYTES, _CONSTANT_ALIGNMENT = 65536, 64
_SHARED_UNIT = 128
_LOCAL_UNIT = 16
_SMS = 2  # of a TPC
_TPC_UNIT = 0x8000  # bytes: Mesa's nvk_device.c, tinygrad's ops_nv.py
_SCHEDULE, _INVALIDATE_COPY_SCHEDULE = 1, 3  # DEPENDENT_QMD0_ACTION


@dataclass(frozen=True)
class Limits:
    """`carve_outs`: KiB that shared memory may take of an SM's L1."""

    sass_version: int
    carve_outs: tuple[int, ...]
    warps: int  # of an SM


_SM80 = 0, 8, 16, 32, 64, 100, 132, 164
_SM86 = 0, 8, 16, 32, 64, 100
LIMITS = {
    75: Limits(0x75, (32, 64), 32),
    80: Limits(0x80, _SM80, 64),
    86: Limits(0x86, _SM86, 48),
    89: Limits(0x89, _SM86, 48),
    90: Limits(0x90, (*_SM80, 196, 228), 64),
    100: Limits(0xA0, (*_SM80, 196, 228), 64),
    120: Limits(0xA4, _SM86, 48),
}


@dataclass(frozen=True)
class LocalMemory:
    """What the channel set up for local memory: SHADER_LOCAL_MEMORY, NON_THROTTLED (bytes of a TPC; the most SMs), and the GPU's
    TPCs."""

    base: int
    tpc_bytes: int
    most_sms: int
    tpcs: int


class Judged(NamedTuple):
    """A descriptor that was found right: its fields, its launch, and the ranges (address, bytes, access) that must be mapped."""

    fields: Mapping[str, int]
    launch: Launch
    needs: tuple[tuple[int, int, str], ...]


@functools.lru_cache(maxsize=1024)
def judge(sm: int, data: bytes, local: LocalMemory, windows: tuple[int, int]) -> Judged:
    """The launch that a descriptor asks for. Raises Refused."""
    f, limits, needs = decode(sm, data), LIMITS[sm], []
    _kind(f)
    grid, block = _dimensions(f)
    threads = block[0] * block[1] * block[2]
    _need(f, "sass_version", f["sass_version"] == limits.sass_version, f"this GPU's is {limits.sass_version:#x}")
    registers = f["register_count"]
    taken = -(-registers // _REGISTER_UNIT) * _REGISTER_UNIT * 32 * -(-threads // 32)
    _need(f, "register_count", 0 < registers <= 255, "a thread has 1 to 255")
    _need(f, "register_count", taken <= REGISTER_FILE, f"{threads} threads take {taken} of {REGISTER_FILE} registers")
    _need(f, "barrier_count", f["barrier_count"] <= _BARRIERS, f"a block has {_BARRIERS}")
    _shared(sm, f, limits)
    low, high = f["shader_local_memory_low_size"], f["shader_local_memory_high_size"]
    if low or high:
        _local(f, low + high, limits, local)
        needs.append((local.base, local.tpc_bytes * local.tpcs, "write"))
    entry = f["program_address"]
    _need(f, "program_address", not entry % _CODE_ALIGNMENT, f"code begins at a multiple of {_CODE_ALIGNMENT}")
    needs.append((entry, 16, "execute"))
    if f["program_prefetch_size"]:
        prefetched = (f["program_prefetch_addr_upper"] << 32 | f["program_prefetch_addr_lower"]) << 8
        needs.append((prefetched, f["program_prefetch_size"], "execute"))
    constants = _constants(f)
    needs += [(va, size, "read") for va, size in constants.values()]
    return Judged(f, Launch(entry=entry, grid=grid, block=block, registers=registers, shared_bytes=f["shared_memory_size"],
                            local_low=low, local_high=high, constants=constants, shared_window=windows[0],
                            local_window=windows[1]), tuple(needs))


def decode(sm: int, data: bytes) -> Mapping[str, int]:
    """The fields of a descriptor. Raises Refused."""
    row = qmd.table(sm)
    number = int.from_bytes(data, "little")
    major, minor = (number >> row.place(name).lsb & 15 for name in ("qmd_major_version", "qmd_version"))
    wanted = qmd.major_of(sm), qmd.VERSIONS[qmd.major_of(sm)][0]
    if (major, minor) != wanted:
        raise Refused(f"qmd_major_version and qmd_version are {major}.{minor}, this class takes {wanted[0]}.{wanted[1]}")
    try:
        return row.unpack(number)
    except BadField as error:
        raise Refused(error.what) from error


def _need(f: Mapping[str, int], name: str, holds: bool, why: str) -> None:
    if not holds:
        raise Refused(f"{name} is {f[name]:#x}: {why}")


def _kind(f: Mapping[str, int]) -> None:
    if "qmd_type" in f:
        _need(f, "qmd_type", f["qmd_type"] == qmd.QmdType.GRID_CTA, f"a grid of blocks is {int(qmd.QmdType.GRID_CTA)}")
    else:
        _need(f, "is_queue", not f["is_queue"], "queues of descriptors are not modelled")
    for name in ("gpc_cga_width", "gpc_cga_height", "gpc_cga_depth"):
        if name in f:
            _need(f, name, f[name] <= 1, "clusters are not modelled")
    if "dependence_counter" in f:
        _need(f, "dependence_counter", not f["dependence_counter"], "counted dependences are not modelled")
    if f["dependent_qmd0_enable"] and "dependent_qmd0_action" in f:
        _need(f, "dependent_qmd0_action", f["dependent_qmd0_action"] in (_SCHEDULE, _INVALIDATE_COPY_SCHEDULE),
              "only what schedules it is modelled")
    for n in range(3):
        if f.get(f"release_enable_{n}"):
            _need(f, f"release_structure_size_{n}", f[f"release_structure_size_{n}"] <= 2, "four words, one or two: 0, 1, 2")


def _dimensions(f: Mapping[str, int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    grid, block = ("grid_width", "grid_height", "grid_depth"), [f"cta_thread_dimension{n}" for n in range(3)]
    for name in (*grid, *block):
        _need(f, name, f[name] > 0, "a grid of nothing")
    _need(f, "grid_width", f["grid_width"] < 1 << 31, "the most is 0x7fffffff")
    for name, most in zip(block, (_THREADS, _THREADS, _DEPTH), strict=True):
        _need(f, name, f[name] <= most, f"the most is {most}")
    x, y, z = (f[name] for name in block)
    _need(f, block[0], x * y * z <= _THREADS, f"{x}x{y}x{z} threads, a block has at most {_THREADS}")
    return (f[grid[0]], f[grid[1]], f[grid[2]]), (x, y, z)


def _shared(sm: int, f: Mapping[str, int], limits: Limits) -> None:
    """A block's shared memory must fit in the smallest carve-out that it is allowed to run on."""
    size = f["shared_memory_size"]
    _need(f, "shared_memory_size", not size % _SHARED_UNIT, f"it counts in units of {_SHARED_UNIT}")
    _need(f, "shared_memory_size", size <= limits.carve_outs[-1] << 10, f"sm_{sm} has {limits.carve_outs[-1]} KiB")
    codes = {kib // 4 + 1: kib for kib in limits.carve_outs}
    names = [f"{which}_sm_config_shared_mem_size" for which in ("min", "target", "max")]
    for name in names:
        _need(f, name, f[name] in codes, f"sm_{sm} has the codes {' '.join(f'{c:#x}' for c in codes)}")
    low, target, high = (f[name] for name in names)
    _need(f, names[1], low <= target <= high, f"it is not within {low:#x} and {high:#x}, min and max")
    _need(f, names[0], codes[low] << 10 >= size, f"{codes[low]} KiB don't hold a block's {size} bytes")


def _local(f: Mapping[str, int], size: int, limits: Limits, local: LocalMemory) -> None:
    names = "shader_local_memory_low_size", "shader_local_memory_high_size"
    for name in names:
        _need(f, name, not f[name] % _LOCAL_UNIT, f"it counts in units of {_LOCAL_UNIT}")
    if local.tpc_bytes % _TPC_UNIT or not local.most_sms >= _SMS * local.tpcs:
        raise Refused(f"SET_SHADER_LOCAL_MEMORY_NON_THROTTLED says {local.tpc_bytes:#x} bytes of a TPC, {local.most_sms} SMs: "
                      f"multiples of {_TPC_UNIT:#x}, and this GPU has {_SMS * local.tpcs} SMs")
    name = names[0] if f[names[0]] else names[1]
    warp = -(-size * 32 // 0x200) * 0x200
    _need(f, name, warp * limits.warps * _SMS <= local.tpc_bytes,
          f"{limits.warps * _SMS} warps of {warp} bytes need more than SET_SHADER_LOCAL_MEMORY_NON_THROTTLED's "
          f"{local.tpc_bytes:#x} bytes of a TPC")


def _constants(f: Mapping[str, int]) -> dict[int, tuple[int, int]]:
    found = {}
    for n in range(qmd.CONSTANT_BANKS):
        if f[f"constant_buffer_valid_{n}"]:
            address, size = f[f"constant_buffer_addr_{n}"], f[f"constant_buffer_size_{n}"]
            _need(f, f"constant_buffer_addr_{n}", not address % _CONSTANT_ALIGNMENT, f"a multiple of {_CONSTANT_ALIGNMENT}")
            _need(f, f"constant_buffer_size_{n}", 0 < size <= _CONSTANT_BYTES, f"a valid bank has up to {_CONSTANT_BYTES} bytes")
            found[n] = address, size
    return found
