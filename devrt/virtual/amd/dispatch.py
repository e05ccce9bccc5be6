"""One dispatch: what the command processors hand to the machine that runs waves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from devrt.ioctl.system import System
from devrt.virtual import native
from devrt.virtual.amd.isa import GENS, IllegalInstruction, Instruction
from devrt.virtual.amd.translate import layout
from devrt.virtual.amd.translate.kernel import Function
from devrt.virtual.memory import PAGE, Access, AddressSpace, MemoryFault, Ranges
from devrt.virtual.pace import Share
from devrt.virtual.turns import Marks, Part, Room, take_turns


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
    touched: Ranges = field(default_factory=Ranges, compare=False, repr=False)


class WaveFault(Exception):
    """What a wave did that hardware would punish. `kind` is a word, `lane` -1 where it is of the whole wave."""

    def __init__(self, kind: str, pc: int, lane: int, detail: str) -> None:
        super().__init__(f"{kind} at {pc:#x}, lane {lane}: {detail}")
        self.kind, self.pc, self.lane, self.detail = kind, pc, lane, detail


_WINDOW = 1 << 20  # bytes of code looked at around a kernel's entry
_GROUPS_A_THREAD = 4
_BUDGET = 1 << 30  # branches backwards before a workgroup counts as hung


class Executor:
    """Runs the waves of dispatches on one GPU, in turns: one thread calls."""

    def __init__(self, gfx: str, system: System, budget: int = _BUDGET) -> None:
        self.gfx, self.system, self.budget = gfx, system, budget
        self.kernels: dict[tuple[int, int], Kernel] = {}
        self.clock = np.zeros(1, np.uint64)
        self.hurry = False  # others wait for their turn
        self._rooms: list[Room] = []  # that no dispatch is in
        self._marks = Marks()

    def run(self, d: Dispatch, space: AddressSpace) -> Iterator[None]:
        """Each step is a turn of the dispatch; when it has ended, its book says what it touched. Raises MemoryFault or
        WaveFault."""
        kernel = self._kernel(d, space)
        room = self._rooms.pop() if self._rooms else Room()
        try:
            for groups, size, first in pieces(d):
                yield from self._turns(d, space, kernel, room, groups, size, first)
        finally:
            self._rooms.append(room)
        self._marks.collect(space, d.touched)

    def _kernel(self, d: Dispatch, space: AddressSpace) -> Kernel:
        """The kernel at the entry, translated unless its code is known and the same."""
        key = (d.entry, d.wave)
        found = self.kernels.get(key)
        if found is None or not found.unchanged(space):
            found = self.kernels[key] = Kernel(self.gfx, d.entry, d.wave, space)
        return found

    def _turns(self, d: Dispatch, space: AddressSpace, kernel: Kernel, room: Room, groups: tuple[int, int, int],
               size: tuple[int, int, int], first: tuple[int, int, int]) -> Iterator[None]:
        """Workgroups of one size: `groups` of them from the id `first` on, in threads over the host's cores."""
        threads = size[0] * size[1] * size[2]
        waves = -(-threads // d.wave)
        template = templates(self.gfx, d, size, waves)
        lanes_private = -(-d.scratch_bytes_per_wave // d.wave)
        count = groups[0] * groups[1] * groups[2]
        many = max(1, min(len(os.sched_getaffinity(0)), count // _GROUPS_A_THREAD))
        parts = []
        for n in range(many):
            part = Part(np.zeros(layout.CONTEXT_BYTES, np.uint8), count * n // many, count * (n + 1) // many)
            values = {
                layout.PAGE_TABLE: space.root,
                layout.LDS: room.take("lds", n, max(d.lds_bytes, 64)), layout.LDS_BYTES: d.lds_bytes,
                layout.SCRATCH: room.take("scratch", n, max(lanes_private * d.wave * waves, 64)),
                layout.SCRATCH_LANE: lanes_private, layout.GROUP_BUDGET: self.budget,
                layout.CLOCK: self.clock.ctypes.data, layout.MATH: native.library(layout.FUNCTIONS), layout.CODE: kernel.base,
                layout.STATES: room.take("states", n, waves * layout.state_bytes(d.wave)),
                layout.TEMPLATES: template.ctypes.data, layout.SCRATCH_WAVE: lanes_private * d.wave}
            for offset, value in values.items():
                part.put(offset, value)
            words = {layout.WAVES: waves, layout.GROUPS_X: groups[0], layout.GROUPS_Y: groups[1],
                     layout.EXEC_AND_MODE: d.rsrc1 >> 12 & 0xFF, **id_places(self.gfx, d),
                     layout.FIRST_X: first[0], layout.FIRST_Y: first[1], layout.FIRST_Z: first[2]}
            for offset, value in words.items():
                part.context[offset:offset + 4].view(np.int32)[0] = value
            parts.append(part)
        failed = yield from take_turns(kernel.run, parts, kernel.share, layout.GROUP, lambda: self.hurry,
                                       lambda: self._marks.turn(space, d.touched))
        if failed is not None:
            raise self._fault(kernel, failed.context)

    @staticmethod
    def _fault(kernel: Kernel, context: NDArray[np.uint8]) -> Exception:
        def field(at: int, kind: type[np.generic], size: int) -> int:
            return int(context[at:at + size].view(kind)[0])
        va, pc = field(layout.FAULT_VA, np.uint64, 8), field(layout.FAULT_PC, np.uint64, 8)
        kind, lane = layout.KINDS[field(layout.FAULT_KIND, np.uint32, 4)], field(layout.FAULT_LANE, np.int32, 4)
        what = kernel.instruction(pc)
        if kind in layout.MEMORY:
            write = what is not None and what.memory is not None and what.memory.action != "load"
            fault = MemoryFault(va, "write" if write else "read", kind)
            fault.pc, fault.lane = pc, lane
            return fault
        detail = str(what) if what is not None else "unknown code"
        return WaveFault(kind, pc, lane, f"{detail}, address {va:#x}" if va else detail)


class Kernel:
    """The native code of one kernel."""

    def __init__(self, gfx: str, entry: int, wave: int, space: AddressSpace) -> None:
        if gfx not in GENS:
            raise WaveFault("unsupported", entry, -1, f"no instruction set of {gfx}")
        self.base, code = window(space, entry)
        try:
            function = Function(code, entry - self.base, gfx, wave)
        except IllegalInstruction as e:
            raise WaveFault("illegal instruction", self.base + e.address, -1, str(e)) from e
        self.instructions = function.instructions
        spans = [(b.address, b.end) for b in function.blocks.values()]
        self.parts = [(self.base + a, code[a:b]) for a, b in spans]
        self.run, self.share = native.function(function.text()), Share()

    def unchanged(self, space: AddressSpace) -> bool:
        """Whether the code is still what was translated."""
        return all(space.read(va, len(code)) == code for va, code in self.parts)

    def instruction(self, pc: int) -> Instruction | None:
        return self.instructions.get(pc - self.base)


def window(space: AddressSpace, entry: int) -> tuple[int, bytes]:
    """(address, code): the executable pages around an entry that lie together. Raises MemoryFault."""
    def executable(va: int) -> bool:
        return space.entry(va) & (Access.VALID | Access.EXECUTE) == Access.VALID | Access.EXECUTE
    AddressSpace.check(entry, space.entry(entry), "execute")
    first = last = entry // PAGE * PAGE
    while entry - first < _WINDOW and first >= PAGE and executable(first - PAGE):
        first -= PAGE
    while last - entry < _WINDOW and executable(last):
        last += PAGE
    return first, space.read(first, last - first)


def pieces(d: Dispatch) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]]:
    """(workgroups, their size, first id): one piece where all are whole, else up to eight with the ragged edges apart."""
    spans = []
    for count, size, partial, start in zip(d.groups, d.group_size, d.partial, d.start, strict=True):
        ragged = bool(partial) and partial != size
        whole = count - ragged
        spans.append([s for s in ((whole, size, start), (int(ragged), partial, start + whole)) if s[0]])
    for z in spans[2]:
        for y in spans[1]:
            for x in spans[0]:
                yield (x[0], y[0], z[0]), (x[1], y[1], z[1]), (x[2], y[2], z[2])


def templates(gfx: str, d: Dispatch, size: tuple[int, int, int], waves: int) -> NDArray[np.uint8]:
    """What the waves of a group start with: 128 SGPRs and v0 to v2 each."""
    packed = gfx not in ("gfx1030",)
    stride = 512 + 3 * d.wave * 4
    out = np.zeros((waves, stride), np.uint8)
    threads = np.arange(waves * d.wave)
    x, y, z = threads % size[0], threads // size[0] % size[1], threads // (size[0] * size[1])
    count = size[0] * size[1] * size[2]
    ids = [x | y << 10 | z << 20, 0 * x, 0 * x] if packed else [x, y, z]
    for n in range(waves):
        sgprs = out[n, :512].view(np.uint32)
        sgprs[:len(d.user_sgprs)] = d.user_sgprs
        left = min(d.wave, count - n * d.wave)
        exec_ = (1 << left) - 1
        sgprs[126], sgprs[127] = exec_ & 0xFFFFFFFF, exec_ >> 32
        lanes = slice(n * d.wave, (n + 1) * d.wave)
        out[n, 512:].view(np.uint32)[:] = np.concatenate([i[lanes] for i in ids])
    return out


def id_places(gfx: str, d: Dispatch) -> dict[int, int]:
    """Which SGPRs take the workgroup's id: behind the user SGPRs where RSRC2 asks for it; gfx12 has them in trap registers."""
    none = {layout.ID_X: -1, layout.ID_Y: -1, layout.ID_Z: -1, layout.ID_YZ: -1}
    if gfx.startswith("gfx12"):
        return none | {layout.ID_X: 108 + 9, layout.ID_YZ: 108 + 7}
    at = d.rsrc2 >> 1 & 31
    for bit, place in ((7, layout.ID_X), (8, layout.ID_Y), (9, layout.ID_Z)):
        if d.rsrc2 >> bit & 1:
            none[place] = at
            at += 1
    return none
