"""How a virtual GPU is split into instances, as data.

    mig                    MIG mode is on, and nobody has made an instance
    mig=3g,1g,1g           GPU instances of that many slices, each with one compute instance that fills it
    mig=3g.1c.2c           one with two compute instances

Sources: NVIDIA's MIG user guide (slices, SMs, memory and copy engines by profile), kernel_mig_manager.c (numbers by size).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from devrt.device import DeviceNotFound
from devrt.ioctl.nv_modes import ComputeSize, MemorySize

SLICES = 7


@dataclass(frozen=True)
class Size:
    """What a GPU instance of so many slices has: TPCs by GPC, eighths of the memory, copy engines."""

    tpcs: tuple[int, ...]
    eighths: int
    copies: int
    compute: ComputeSize


def _sizes(tpcs: int, three: tuple[int, ...], all_of_it: tuple[int, ...], copies: int) -> Mapping[int, Size]:
    return {1: Size((tpcs,), 1, 1, ComputeSize.EIGHTH), 2: Size((tpcs,) * 2, 2, 2, ComputeSize.QUARTER),
            3: Size(three, 4, 3, ComputeSize.MINI_HALF), 4: Size((tpcs,) * 4, 4, 4, ComputeSize.HALF),
            SLICES: Size(all_of_it, 8, copies, ComputeSize.FULL)}


_HOPPER = _sizes(8, (8, 8, 7, 7), (9, 9, 8, 8, 8, 8, 8, 8), 8)
SIZES: Mapping[str, Mapping[int, Size]] = {"a100": _sizes(7, (7, 7, 7), (7,) * 7, 7), "h100": _HOPPER, "h200": _HOPPER}

# Eighths of the memory -> (MEMORY_SIZE, the numbers of instances of that size)
_NUMBERS: Mapping[int, tuple[MemorySize, range]] = {
    8: (MemorySize.FULL, range(1)), 4: (MemorySize.HALF, range(1, 3)), 2: (MemorySize.QUARTER, range(3, 7)),
    1: (MemorySize.EIGHTH, range(7, 15))}
_INSTANCE = re.compile(r"(?P<slices>[1-7])g(?P<computes>(?:\.[1-7]c){0,7})")


@dataclass(frozen=True)
class ComputeInstance:
    number: int
    tpcs: tuple[int, ...]
    compute: ComputeSize


@dataclass(frozen=True)
class GpuInstance:
    """`number` is its swizzId, `first_gpc` the first of its GPCs, `first_copy` the first of its copy engines among those of the
    GPU that are no GRCE."""

    number: int
    size: Size
    memory: MemorySize
    first_gpc: int
    first_copy: int
    computes: tuple[ComputeInstance, ...]

    @property
    def flag(self) -> int:
        """partitionFlag."""
        return self.memory | self.size.compute << 2

    def part(self, nbytes: int) -> int:
        """Its part of so many bytes."""
        return nbytes * self.size.eighths // 8


def split(model: str, text: str) -> tuple[GpuInstance, ...]:
    """The instances that a text names, none for "". Raises DeviceNotFound."""
    made: list[GpuInstance] = []
    sizes, used, gpcs, copies = SIZES.get(model), 0, 0, 0
    free = {eighths: list(numbers) for eighths, (_, numbers) in _NUMBERS.items()}
    for word in text.split(",") if text else ():
        match = _INSTANCE.fullmatch(word)
        size = sizes.get(int(match["slices"])) if match and sizes else None
        if match is None or size is None:
            raise _refused(model, word, "no such instance")
        slices = int(match["slices"])
        used += slices
        if used > SLICES or not free[size.eighths] or sum(one.size.eighths for one in made) + size.eighths > 8:
            raise _refused(model, word, "the GPU has no room for it")
        made.append(GpuInstance(free[size.eighths].pop(0), size, _NUMBERS[size.eighths][0], gpcs, copies,
                                _computes(model, word, slices, [int(one[:-1]) for one in match["computes"].split(".")[1:]])))
        gpcs, copies = gpcs + len(size.tpcs), copies + size.copies
    return tuple(made)


def _computes(model: str, word: str, slices: int, wanted: list[int]) -> tuple[ComputeInstance, ...]:
    size = SIZES[model][slices]
    if not wanted:
        return (ComputeInstance(0, size.tpcs, size.compute),)
    if sum(wanted) > slices or any(one not in SIZES[model] for one in wanted):
        raise _refused(model, word, "its compute instances do not fit")
    return tuple(ComputeInstance(number, (size.tpcs[0],) * part, SIZES[model][part].compute)
                 for number, part in enumerate(wanted))


def _refused(model: str, word: str, why: str) -> DeviceNotFound:
    return DeviceNotFound(f"a virtual {model} can't be split into mig={word}: {why}",
                          remedy=f"models that can: {', '.join(SIZES)}; mig=SIZE,SIZE,.. with SIZE one of 1g, 2g, 3g, 4g, 7g, or "
                                 "as 3g.1c.2c")
