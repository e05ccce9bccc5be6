"""Command lists of GPUs: recorded once, submitted as packets that lie in memory the GPU reads.

A list is cut into segments, one engine each: kernels go to a compute engine, copies to a copy engine. The kernels' arguments
lie behind the packets. An argument is replaced in that memory, so no packet changes; where the list is in flight, another copy
of it (an Instance) is used. A vendor's list builds the instances.
"""

from __future__ import annotations

import abc
import itertools
import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from devrt.device import Buffer, InvalidArgument, Placement, Program, Unsupported
from devrt.gpu.memory import GpuBuffer
from devrt.memory import Allocator, Block, words
from devrt.recorder import MAX_ARGUMENTS, Recorder

if TYPE_CHECKING:
    from devrt.gpu.queue import GpuQueue

MAX_INSTANCES = 8  # submissions of one list, each with its own arguments, that may be in flight
_WORD = struct.Struct("<Q")


class Dispatch(NamedTuple):
    program: Any
    groups: int
    offset: int  # of its first argument, bytes
    arguments: int


class Copy(NamedTuple):
    dst: int
    src: int
    nbytes: int


class Stamp(NamedTuple):
    address: int
    buffer: Any  # that has it


Command = Dispatch | Copy | Stamp


class Run:
    """Indexes of commands in a row that engines of one kind carry out. `kernels`: a compute engine's; None for time stamps alone,
    which any engine writes."""

    __slots__ = ("indexes", "kernels")

    def __init__(self, kernels: bool | None) -> None:
        self.kernels = kernels
        self.indexes: list[int] = []


class Segment(NamedTuple):
    """A run as its engine's ring takes it."""

    compute: bool
    packets: tuple[Any, ...]


class Instance:
    """One copy of a list's packets and arguments in GPU memory. `head` is what a submission of the whole list takes where that
    is one segment and a queue's own engine runs it, `flight` has the last submission of it on each queue, `stamps` (where the
    nanoseconds go, the address where the GPU writes its clock)."""

    __slots__ = ("allocator", "arguments", "block", "flight", "head", "outdated", "segments", "stamps")

    def __init__(self, allocator: Allocator) -> None:
        self.allocator = allocator
        self.flight: dict[GpuQueue, int] = {}
        self.head: Any = None
        self.segments: list[Segment] = []
        self.stamps: list[tuple[Stamp, int]] = []
        self.block: Block | None = None
        self.arguments: memoryview | None = None
        self.outdated: set[int] = set()  # offsets of arguments that were replaced since

    @property
    def busy(self) -> bool:
        return any(queue.completed < value for queue, value in self.flight.items())

    def update(self, arguments: bytearray) -> None:
        """Make its arguments those of the list."""
        if self.arguments is not None:
            for at in self.outdated:
                self.arguments[at:at + 8] = arguments[at:at + 8]
        self.outdated.clear()

    def __del__(self) -> None:
        # The queues hold an instance until it is done, so nothing queued uses it.
        if self.block is not None:
            self.allocator.drop(self.block, idle=True)


class GpuCommandList(Recorder, abc.ABC):
    """Commands that run one after another, each seeing what the ones before it wrote. One thread records at a time.

    A list in flight is never altered: a patch takes effect at the next submission, which may wait for one of eight
    submissions before it.
    """

    buffers = GpuBuffer
    alignment: ClassVar[int]  # of arguments and of packets
    max_groups: ClassVar[int] = 1 << 32

    def __init__(self, device: Any) -> None:
        super().__init__(device)
        self.commands: list[Command] = []
        self._arguments = bytearray()
        self._runs: list[Run] = []
        self._instances: list[Instance] = []
        self._current: Instance | None = None
        self._patched = False
        self._compute = True  # what it was built for last

    # ----- recording

    def dispatch(self, program: Program, arguments: Sequence[Buffer | int], groups: int) -> int:
        if not isinstance(program, self.programs) or program.device is not self.device:
            raise InvalidArgument(f"{program!r} is no program of this device", remedy="load it with this device's load()")
        if program.closed:
            program.check()
        if not isinstance(groups, int) or not 0 <= groups < self.max_groups:
            raise InvalidArgument(f"{program.name}: groups must be an int from 0 to 2^{self.max_groups.bit_length() - 1} - 1, "
                                  f"not {groups!r}")
        if len(arguments) > MAX_ARGUMENTS or 8 * len(arguments) < program.argument_bytes:
            raise InvalidArgument(f"{program.name}: {len(arguments)} arguments", evidence=f"it reads "
                                  f"{program.argument_bytes} bytes of them, at most {MAX_ARGUMENTS} are taken")
        values = [self._value(argument, program.name) for argument in arguments]
        self._use(program)
        self._arguments += program.prologue(groups)
        offset = len(self._arguments)
        for at, argument in enumerate(arguments):
            self._place(offset + 8 * at, argument)
        self._arguments += array("Q", values)
        self._arguments += bytes(-len(self._arguments) % self.alignment)
        return self._append(Dispatch(program, groups, offset, len(values)))

    def copy(self, dst: Buffer, src: Buffer, nbytes: int, dst_offset: int = 0, src_offset: int = 0) -> int:
        """Copy bytes. Raises InvalidArgument where a range leaves its buffer or the two overlap."""
        to = self._range(dst, dst_offset, nbytes, "destination")
        from_ = self._range(src, src_offset, nbytes, "source")
        if to < from_ + nbytes and from_ < to + nbytes:
            raise InvalidArgument("source and destination of a copy overlap",
                                  evidence=f"{nbytes} bytes from {from_:#x} to {to:#x}", remedy="copy through a third buffer")
        self._use(dst)
        self._use(src)
        return self._append(Copy(to, from_, nbytes))

    def timestamp(self, dst: Buffer, offset: int) -> int:
        """The nanoseconds are there when the host learns that they are, by a wait through a queue or a signal of the device. So
        `dst` must be memory that the host sees (Unsupported)."""
        at = self._range(dst, offset, 8, "destination")
        if at % 8:
            raise InvalidArgument(f"a time stamp at {at:#x}", remedy="give a multiple of 8")
        if dst.placement is Placement.DEVICE:
            raise Unsupported("time stamps go to memory that the host sees", remedy="use a buffer of Placement.HOST")
        self._use(dst)
        return self._append(Stamp(at, dst))

    def patch(self, index: int, argument: int, value: Buffer | int) -> None:
        """Replace one argument of a recorded dispatch, for the next submission; one in flight is not touched."""
        command = self.commands[index] if isinstance(index, int) and 0 <= index < len(self.commands) else None
        if not isinstance(command, Dispatch):
            raise InvalidArgument(f"command {index!r} is no dispatch", evidence=f"{len(self.commands)} commands recorded")
        if not isinstance(argument, int) or not 0 <= argument < command.arguments:
            raise InvalidArgument(f"{command.program.name} has no argument {argument!r}",
                                  evidence=f"it was recorded with {command.arguments}")
        word = self._value(value, command.program.name)
        at = command.offset + 8 * argument
        self._place(at, value)
        _WORD.pack_into(self._arguments, at, word)
        for instance in self._instances:
            instance.outdated.add(at)
        self._patched = True

    def __len__(self) -> int:
        return len(self.commands)

    def describe(self) -> str:
        """The kernels of the list by name, three at most."""
        names = [command.program.name for command in self.commands if isinstance(command, Dispatch)]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def _append(self, command: Command) -> int:
        self._instances.clear()
        self._current = None
        index = len(self.commands)
        self.commands.append(command)
        # A time stamp goes with what is before it, or behind it where it comes first.
        kernels = None if isinstance(command, Stamp) else isinstance(command, Dispatch)
        run = self._runs[-1] if self._runs else None
        if run is None or kernels is not None and run.kernels not in (None, kernels):
            run = Run(kernels)
            self._runs.append(run)
        elif run.kernels is None:
            run.kernels = kernels
        run.indexes.append(index)
        return index

    # ----- submitting

    def instance(self, compute: bool) -> Instance:
        """A copy of the list that holds its arguments as they are now. `compute`: the queue's own engine runs kernels."""
        current = self._current
        if compute is not self._compute and self._runs and self._runs[0].kernels is None:
            current = None  # time stamps alone go to the queue's own engine
            self._instances.clear()
        self._compute = compute
        if current is None:
            current = self._current = self.build(compute)
            self._instances.append(current)
        elif self._patched:
            current = self._current = self._idle(compute)
            current.update(self._arguments)
        self._patched = False
        return current

    def _idle(self, compute: bool) -> Instance:
        for instance in self._instances:
            if not instance.busy:
                return instance
        if len(self._instances) < MAX_INSTANCES:
            made = self.build(compute)
            self._instances.append(made)
            return made
        oldest = self._instances.pop(0)
        self._instances.append(oldest)
        for queue, value in oldest.flight.items():
            queue.wait(value)
        return oldest

    @abc.abstractmethod
    def build(self, compute: bool, stamps: int = 0) -> Instance:
        """The packets of the list in GPU memory. `stamps`: the address of len(self) + 1 slots that receive the clock before the
        first command and after each, for a profile."""


def pieces(start: int, cuts: Iterable[int], end: int, limit: int) -> list[tuple[int, int]]:
    """(first byte, end) of the parts of a segment from `start` to `end`, divided at `cuts` into at most `limit` bytes each."""
    bounds, last = [], start
    for cut in (*cuts, end) if end - start > limit else ():
        if cut - start > limit:
            bounds.append((start, last))
            start = last
        last = cut
    return [*bounds, (start, end)] if end > start else bounds


class Profile:
    """Measured time per command of one submission: pass it to `submit`, read it after the wait."""

    def __init__(self, commands: GpuCommandList) -> None:
        self.commands, self.device, self._count = commands, commands.device, len(commands)
        self._slot: int = self.device.stamp_bytes  # of a stamp; the clock is its last u64
        self._block = self.device.host_memory.take(self._slot * (self._count + 1))
        self.address = self._block.address
        self._words = words(self.address)
        for at in range(self._slot // 8 * (self._count + 1)):
            self._words[at] = 0

    def fits(self, commands: GpuCommandList) -> bool:
        return len(commands) == self._count and commands.device is self.device

    @property
    def durations_ns(self) -> list[int]:
        """Nanoseconds per command, in order; each stamp waits for the command."""
        step = self._slot // 8
        stamps = [int(self._words[at * step + step - 1]) for at in range(self._count + 1)]
        if not all(stamps):
            raise InvalidArgument("the profile is not complete", remedy="wait for the submission first")
        ns = [self.device.nanoseconds(ticks) for ticks in stamps]
        return [after - before for before, after in itertools.pairwise(ns)]

    def __del__(self) -> None:
        block = getattr(self, "_block", None)
        if block is not None:
            self.device.host_memory.drop(block)
