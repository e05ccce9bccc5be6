"""One launch of a grid: what the compute engine hands to the machine that runs warps."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from devrt.compiler.sass import convergence
from devrt.compiler.sass.flow import WORD
from devrt.compiler.sass.instruction import Instruction
from devrt.compiler.sass.isa import GENERATIONS, IllegalInstruction, text
from devrt.ioctl.system import System, view
from devrt.virtual import native
from devrt.virtual.memory import PAGE, Access, AddressSpace, MemoryFault, Ranges
from devrt.virtual.nvidia.translate import copies, layout
from devrt.virtual.nvidia.translate.kernel import Function
from devrt.virtual.nvidia.translate.writer import LANES
from devrt.virtual.pace import Share
from devrt.virtual.turns import Marks, Part, Room, take_turns


@dataclass(frozen=True)
class Launch:
    """`grid` blocks of `block` threads each. A lane's local memory: `local_low` bytes from address 0 up, `local_high` below
    1 << 24. Constant banks by number: (address, bytes). The windows are where generic addresses find shared and local memory,
    1 << 24 bytes each."""

    entry: int  # address of the first instruction
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    registers: int  # of a lane: R0 to R(registers - 1)
    shared_bytes: int = 0
    local_low: int = 0
    local_high: int = 0
    constants: dict[int, tuple[int, int]] = field(default_factory=dict)
    shared_window: int = 0
    local_window: int = 0
    touched: Ranges = field(default_factory=Ranges, compare=False, repr=False)


class WarpFault(Exception):
    """What a warp did that hardware would punish. `kind` is one of context.KINDS; `warp` counts in its block, `lane` is -1 where
    it is of the whole warp; `block` is the block's id."""

    def __init__(self, kind: str, pc: int, warp: int, lane: int, detail: str, block: tuple[int, int, int] = (0, 0, 0)) -> None:
        super().__init__(f"{kind} at {pc:#x}, block {block}, warp {warp}, lane {lane}: {detail}")
        self.kind, self.pc, self.warp, self.lane, self.detail, self.block = kind, pc, warp, lane, detail, block


_WINDOW = 1 << 20  # bytes of code looked at around a kernel's entry
_BLOCKS_A_THREAD = 4
_BUDGET = 1 << 30  # branches backwards before a block counts as hung
_MOST_THREADS = 1024
_WRITES = ("STG", "ST", "RED", "ATOM", "ATOMG")


class Executor:
    """Runs the warps of launches on one GPU, in turns: one thread calls. `budget`: branches backwards before a block counts as
    hung. `mufu_error`: how many units in the last place MUFU is off (translate/special.py)."""

    def __init__(self, sm: int, system: System, budget: int = _BUDGET, mufu_error: int = 0) -> None:
        self.sm, self.system, self.budget, self.mufu_error = sm, system, budget, mufu_error
        self.kernels: dict[tuple[int, int], Kernel] = {}
        self.clock = np.zeros(1, np.uint64)
        self.hurry = False  # others wait for their turn
        self._rooms: list[Room] = []  # that no launch is in
        self._marks = Marks()

    def run(self, launch: Launch, space: AddressSpace) -> Iterator[None]:
        """Each step is a turn of the launch; it ends when the launch does. Raises MemoryFault or WarpFault."""
        x, y, z = launch.block
        if not 0 < x * y * z <= _MOST_THREADS:
            raise WarpFault("unsupported", launch.entry, 0, -1, f"a block of {x} x {y} x {z} threads")
        kernel = self._kernel(launch, space)
        room = self._rooms.pop() if self._rooms else Room()
        try:
            yield from self._turns(launch, space, kernel, room)
        finally:
            self._rooms.append(room)

    def collect(self, launch: Launch, space: AddressSpace) -> None:
        """Enter in the launch's book what it touched since the last time."""
        self._marks.collect(space, launch.touched)

    def code(self, launch: Launch, space: AddressSpace) -> list[tuple[int, bytes]]:
        """(address, bytes) of the instructions that a launch may run. Raises MemoryFault or WarpFault."""
        return self._kernel(launch, space).parts

    def _kernel(self, launch: Launch, space: AddressSpace) -> Kernel:
        """The kernel at the entry, translated unless its code is known and the same."""
        key = (launch.entry, launch.registers)
        found = self.kernels.get(key)
        if found is None or not found.unchanged(launch, space):
            found = self.kernels[key] = Kernel(self.sm, launch, space, self.mufu_error)
        return found

    def _turns(self, launch: Launch, space: AddressSpace, kernel: Kernel, room: Room) -> Iterator[None]:
        """Run the parts of the grid, in a thread each, until all have ended."""
        masks = _masks(launch)
        banks = self._constants(launch, space, kernel)
        parts = self._parts(launch, space, kernel, room, masks, banks)
        failed = yield from take_turns(kernel.run, parts, kernel.share, layout.BLOCK, lambda: self.hurry,
                                       lambda: self._marks.turn(space, launch.touched))
        if failed is not None:
            raise _fault(kernel, failed.context)

    def _parts(self, launch: Launch, space: AddressSpace, kernel: Kernel, room: Room, masks: NDArray[np.uint32],
               banks: Mapping[int, NDArray[np.uint8]]) -> list[Part]:
        """Contexts for equal parts of the grid. They point to what is passed."""
        warps = len(masks)
        count = launch.grid[0] * launch.grid[1] * launch.grid[2]
        local = launch.local_low + launch.local_high
        parts = max(1, min(len(os.sched_getaffinity(0)), count // _BLOCKS_A_THREAD))
        found = []
        for n in range(parts):
            states = room.take("states", n, warps * layout.STATE_BYTES)
            for warp, numbers in enumerate(_numbers(launch.block)):
                view(states + warp * layout.STATE_BYTES + layout.THREADS, len(numbers))[:] = numbers
            part = Part(np.zeros(layout.CONTEXT_BYTES, np.uint8), count * n // parts, count * (n + 1) // parts)
            values = {
                layout.PAGE_TABLE: space.root, layout.BLOCK_BUDGET: self.budget, layout.CLOCK: self.clock.ctypes.data,
                layout.MATH: native.library(layout.FUNCTIONS), layout.CODE: kernel.base,
                layout.SHARED: room.take("shared", n, 2 * (launch.shared_bytes + 4) + copies.CLEARED),
                layout.SHARED_BYTES: launch.shared_bytes,
                layout.LOCAL: room.take("local", n, max(local * LANES * warps, 64)), layout.LOCAL_LANE: local,
                layout.LOCAL_LOW: launch.local_low, layout.LOCAL_WARP: local * LANES, layout.STATES: states,
                layout.LIVE_MASKS: masks.ctypes.data, layout.SHARED_WINDOW: launch.shared_window,
                layout.LOCAL_WINDOW: launch.local_window}
            for offset, value in values.items():
                part.put(offset, value)
            words = {layout.WARPS: warps, layout.GRID_X: launch.grid[0], layout.GRID_Y: launch.grid[1],
                     layout.ENTRY: launch.entry - kernel.base, layout.SM: n}
            for offset, value in words.items():
                part.context[offset:offset + 4].view(np.uint32)[0] = value
            for bank, data in banks.items():
                part.put(layout.BANKS + 8 * bank, data.ctypes.data)
                part.context[layout.BANK_BYTES + 4 * bank:][:4].view(np.uint32)[0] = launch.constants[bank][1]
            found.append(part)
        return found

    def _constants(self, launch: Launch, space: AddressSpace, kernel: Kernel) -> dict[int, NDArray[np.uint8]]:
        """What the kernel may read of each constant bank: it stays as it is while the launch runs."""
        found = {}
        for bank, (reach, pc) in kernel.banks.items():
            va, nbytes = launch.constants.get(bank, (0, 0))
            if reach > nbytes:
                raise WarpFault("outside constant bank", pc, 0, -1, f"byte {reach - 4:#x} of bank {bank} of {nbytes} bytes")
            found[bank] = np.frombuffer(space.read(va, nbytes) + bytes(16), np.uint8)
        return found


def _masks(launch: Launch) -> NDArray[np.uint32]:
    """The lanes that live in each warp of a block."""
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    return np.array([(1 << min(LANES, threads - first)) - 1 for first in range(0, threads, LANES)], np.uint32)


@functools.lru_cache(maxsize=64)
def _numbers(block: tuple[int, int, int]) -> tuple[bytes, ...]:
    """The threads' numbers, as the states of a block's warps hold them."""
    threads = np.arange(-(-block[0] * block[1] * block[2] // LANES) * LANES)
    numbers = [threads % block[0], threads // block[0] % block[1], threads // (block[0] * block[1])]
    return tuple(warp.tobytes() for warp in np.stack([n.reshape(-1, LANES) for n in numbers], 1).astype(np.uint32))


def _fault(kernel: Kernel, context: NDArray[np.uint8]) -> Exception:
    def field(at: int, kind: type[np.generic], size: int) -> int:
        return int(context[at:at + size].view(kind)[0])
    va, pc = field(layout.FAULT_VA, np.uint64, 8), field(layout.FAULT_PC, np.uint64, 8)
    kind, lane = layout.KINDS[field(layout.FAULT_KIND, np.uint32, 4)], field(layout.FAULT_LANE, np.int32, 4)
    warp = field(layout.FAULT_WARP, np.uint32, 4)
    block = tuple(field(at, np.uint32, 4) for at in (layout.CTA_X, layout.CTA_Y, layout.CTA_Z))
    what = kernel.instruction(pc)
    if kind in layout.MEMORY:
        write = what is not None and what.op in _WRITES
        fault = MemoryFault(va, "write" if write else "read", kind)
        fault.pc, fault.warp, fault.lane = pc, warp, lane
        return fault
    detail = text(what) if what is not None else "no instruction of the kernel"
    if pc - kernel.base in kernel.found:
        detail += f": {kernel.found[pc - kernel.base]}"
    elif kind == "missing wait":
        detail += f": LDGSTS may still be writing byte {va:#x} of shared memory"
    elif kind == "bad barrier" and what is not None:
        detail += f": {convergence.LANES.get(what.op, '')}"
    elif va:
        detail += f", address {va:#x}"
    return WarpFault(kind, pc, warp, lane, detail, (block[0], block[1], block[2]))


class Kernel:
    """The native code of one kernel."""

    def __init__(self, sm: int, launch: Launch, space: AddressSpace, mufu_error: int = 0) -> None:
        entry = launch.entry
        if sm not in GENERATIONS:
            raise WarpFault("unsupported", entry, 0, -1, f"no instruction set of sm_{sm}")
        self.base, code = window(space, entry)
        try:
            function = Function(code, entry - self.base, sm, launch.registers, _Banks(launch, space), mufu_error)
        except IllegalInstruction as e:
            raise WarpFault("illegal instruction", self.base + e.address, 0, -1, e.detail) from e
        self.instructions, self.found = function.instructions, function.hazards | function.misuse
        self.parts = [(self.base + a, code[a:b]) for a, b in spans(self.instructions)]
        self.run, self.share = native.function(function.text()), Share()
        self.tables = function.tables
        self.banks = {bank: (reach, entry) for bank, reach in function.w.banks.items()}

    def unchanged(self, launch: Launch, space: AddressSpace) -> bool:
        """Whether the code, and the tables it branches by, are still what was translated."""
        return all(space.read(va, len(code)) == code for va, code in self.parts) and all(
            _Banks(launch, space)[bank][at:at + len(content)] == content for (bank, at), content in self.tables.items())

    def instruction(self, pc: int) -> Instruction | None:
        return self.instructions.get(pc - self.base)


class _Banks(Mapping[int, bytes]):
    """The constant banks of a launch, read when they are asked for."""

    def __init__(self, launch: Launch, space: AddressSpace) -> None:
        self.places, self.space = launch.constants, space

    def __getitem__(self, bank: int) -> bytes:
        return self.space.read(*self.places[bank])

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def spans(addresses: Iterable[int]) -> list[tuple[int, int]]:
    """(start, end) of the runs of instructions that lie together."""
    found: list[tuple[int, int]] = []
    for a in sorted(addresses):
        if found and found[-1][1] == a:
            found[-1] = (found[-1][0], a + WORD)
        else:
            found.append((a, a + WORD))
    return found


def window(space: AddressSpace, entry: int) -> tuple[int, bytes]:
    """(address, code): the pages around an entry that lie together. Any page that can be read can run. Raises MemoryFault."""
    AddressSpace.check(entry, space.entry(entry), "read")
    first = last = entry // PAGE * PAGE
    while entry - first < _WINDOW and first >= PAGE and space.entry(first - PAGE) & Access.VALID:
        first -= PAGE
    while last - entry < _WINDOW and space.entry(last) & Access.VALID:
        last += PAGE
    return first, space.read(first, last - first)
