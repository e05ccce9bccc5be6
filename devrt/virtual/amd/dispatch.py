"""One dispatch: what the command processors hand to the machine that runs waves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from devrt.device import Unsupported
from devrt.ioctl.system import System
from devrt.virtual.amd.memory import AddressSpace


class Touched(Protocol):
    """Takes the addresses that a dispatch reads and writes in global memory, as ranges in any order."""

    def read(self, va: int, nbytes: int) -> None: ...
    def wrote(self, va: int, nbytes: int) -> None: ...


@dataclass(frozen=True)
class Dispatch:
    """`groups` workgroups from the id `start` on, of `group_size` threads; the last one in each dimension has `partial`
    threads, which is `group_size` where the grid divides evenly."""

    entry: int  # address of the first instruction
    groups: tuple[int, int, int]
    group_size: tuple[int, int, int]
    user_sgprs: tuple[int, ...]
    rsrc1: int
    rsrc2: int
    rsrc3: int
    lds_bytes: int
    scratch_base: int
    scratch_bytes_per_wave: int
    wave: int  # threads of a wave, 32 or 64
    partial: tuple[int, int, int] = (0, 0, 0)
    start: tuple[int, int, int] = (0, 0, 0)
    touched: Touched | None = field(default=None, compare=False, repr=False)


class WaveFault(Exception):
    """What a wave did that hardware would punish. `kind` is a word, `lane` -1 where it is of the whole wave."""

    def __init__(self, kind: str, pc: int, lane: int, detail: str) -> None:
        super().__init__(f"{kind} at {pc:#x}, lane {lane}: {detail}")
        self.kind, self.pc, self.lane, self.detail = kind, pc, lane, detail


class Executor:
    """Runs the waves of dispatches on one GPU."""

    def __init__(self, gfx: str, system: System) -> None:
        self.gfx, self.system = gfx, system

    def run(self, d: Dispatch, space: AddressSpace) -> None:
        """Raises MemoryFault or WaveFault."""
        raise Unsupported(f"{self.gfx} cannot run waves")
