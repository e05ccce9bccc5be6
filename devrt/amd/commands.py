"""Command lists of AMD GPUs: recorded once, submitted as one indirect buffer.

A list is cut into segments, one engine each: kernels go to a compute queue, copies to a copy engine. What a compute segment
holds lies as packets in memory that the GPU reads, the kernels' arguments behind them. An argument is replaced in that memory,
so no packet changes; where the list is in flight, another copy of it (an Instance) is used. Copies are put into the ring.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from devrt.amd import pm4
from devrt.amd.engines import LOW, ComputeEngine, CopyEngine
from devrt.amd.memory import AmdBuffer
from devrt.amd.program import AmdProgram
from devrt.device import Buffer, InvalidArgument, Placement, Program, Unsupported
from devrt.ioctl.system import view
from devrt.memory import Allocator, Block, words
from devrt.recorder import MAX_ARGUMENTS, Recorder

if TYPE_CHECKING:
    from devrt.amd.device import AmdDevice
    from devrt.amd.queue import AmdQueue

MAX_GROUPS = 1 << 32
MAX_INSTANCES = 8  # submissions of one list, each with its own arguments, that may be in flight
_ALIGNMENT = 64  # of arguments and of packets
_WORD = struct.Struct("<Q")


class Dispatch(NamedTuple):
    program: AmdProgram
    groups: int
    offset: int  # of its arguments, bytes
    arguments: int


class Copy(NamedTuple):
    dst: int
    src: int
    nbytes: int


class Stamp(NamedTuple):
    address: int


Command = Dispatch | Copy | Stamp


class Segment(NamedTuple):
    """What one engine does of a list: for a compute engine INDIRECT_BUFFER packets, for a copy engine the copies."""

    compute: bool
    packets: bytes


class Instance:
    """One copy of a list's packets and arguments in GPU memory. `head` are the words of its INDIRECT_BUFFER where all of
    the list is one, `flight` has the last submission of it on each queue."""

    __slots__ = ("allocator", "arguments", "block", "flight", "head", "segments", "stamps")

    def __init__(self, allocator: Allocator) -> None:
        self.allocator = allocator
        self.flight: dict[AmdQueue, int] = {}
        self.head: tuple[int, ...] | None = None
        self.segments: list[Segment] = []
        self.stamps: tuple[int, ...] = ()  # addresses that receive the device's clock
        self.block: Block | None = None
        self.arguments: memoryview | None = None

    @property
    def busy(self) -> bool:
        return any(queue.completed < value for queue, value in self.flight.items())

    def __del__(self) -> None:
        if self.block is not None:
            self.allocator.drop(self.block)


class AmdCommandList(Recorder):
    """Commands that run one after another, each seeing what the ones before it wrote. One thread records at a time.

    A list in flight is never altered: a patch takes effect at the next submission, which may wait for one of eight
    submissions before it.
    """

    buffers, programs = AmdBuffer, AmdProgram
    device: AmdDevice

    def __init__(self, device: AmdDevice) -> None:
        super().__init__(device)
        self.commands: list[Command] = []
        self._arguments = bytearray()
        self._held: dict[int, AmdBuffer] = {}  # offset of an argument -> the buffer it is
        self._instances: list[Instance] = []
        self._current: Instance | None = None
        self._patched = False
        self._neutral = True  # whether any engine can do all of it
        self._compute = True  # what it was built for last, where it is neutral

    # ----- recording

    def dispatch(self, program: Program, arguments: Sequence[Buffer | int], groups: int) -> int:
        if not isinstance(program, AmdProgram) or program.device is not self.device:
            raise InvalidArgument(f"{program!r} is no program of this device", remedy="load it with this device's load()")
        program.check()
        if not isinstance(groups, int) or not 0 <= groups < MAX_GROUPS:
            raise InvalidArgument(f"{program.name}: groups must be an int from 0 to 2^32 - 1, not {groups!r}")
        if len(arguments) > MAX_ARGUMENTS or 8 * len(arguments) < program.descriptor.kernarg_bytes:
            raise InvalidArgument(f"{program.name}: {len(arguments)} arguments", evidence=f"it reads "
                                  f"{program.descriptor.kernarg_bytes} bytes of them, at most {MAX_ARGUMENTS} are taken")
        values = [self._value(argument, program.name) for argument in arguments]
        self._use(program)
        offset = len(self._arguments)
        for at, argument in enumerate(arguments):
            self._use(argument)
            if isinstance(argument, AmdBuffer):
                self._held[offset + 8 * at] = argument
        self._arguments += struct.pack(f"<{len(values)}Q", *values)
        self._arguments += bytes(-len(self._arguments) % _ALIGNMENT)
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
        """The GPU writes ticks; they become nanoseconds when the host learns that they are there, by a wait through a
        queue or a signal of the device. So `dst` must be memory that the host sees (Unsupported)."""
        at = self._range(dst, offset, 8, "destination")
        if at % 8:
            raise InvalidArgument(f"a time stamp at {at:#x}", remedy="give a multiple of 8")
        if dst.placement is Placement.DEVICE:
            raise Unsupported("time stamps go to memory that the host sees", remedy="use a buffer of Placement.HOST")
        self._use(dst)
        return self._append(Stamp(at))

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
        self._use(value)
        self._unuse(self._held.pop(at, None))
        if isinstance(value, AmdBuffer):
            self._held[at] = value
        _WORD.pack_into(self._arguments, at, word)
        self._patched = True

    def __len__(self) -> int:
        return len(self.commands)

    def __str__(self) -> str:
        """The packets of the compute segments as text."""
        instance = self.build(compute=True)
        parts = []
        for segment in instance.segments:
            if not segment.compute:
                parts.append(f"copy engine, {len(segment.packets)} bytes of packets")
                continue
            for _, address_low, address_high, size in struct.iter_unpack("<4I", segment.packets):
                n = size & pm4.MAX_IB_DWORDS
                data = bytes(view(address_high << 32 | address_low, 4 * n))
                parts.append(pm4.dump(struct.unpack(f"<{n}I", data), self.device.gfx))
        return "\n".join(parts)

    def describe(self) -> str:
        """The kernels of the list by name, three at most."""
        names = [command.program.name for command in self.commands if isinstance(command, Dispatch)]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def _append(self, command: Command) -> int:
        self._instances.clear()
        self._current = None
        self.commands.append(command)
        self._neutral = self._neutral and isinstance(command, Stamp)
        return len(self.commands) - 1

    # ----- submitting

    def instance(self, compute: bool) -> Instance:
        """A copy of the list that holds its arguments as they are now. `compute`: the queue's own engine runs kernels."""
        current = self._current
        if self._neutral and compute is not self._compute:  # time stamps alone go to the queue's own engine
            current, self._compute = None, compute
            self._instances.clear()
        if current is None:
            current = self._current = self.build(compute)
            self._instances.append(current)
        elif self._patched:
            current = self._current = self._idle(compute)
            if current.arguments is not None:
                current.arguments[:] = self._arguments
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

    def build(self, compute: bool, stamps: int = 0) -> Instance:
        """The packets of the list in GPU memory. `stamps`: the address of len(self) + 1 u64 that receive the clock before
        the first command and after each, for a profile."""
        runs = self._runs(compute)
        engine, copier = self.device.compute_engine, self.device.copy_engine
        made = Instance(self.device.host_memory)
        made.stamps = tuple(command.address for command in self.commands if isinstance(command, Stamp))
        bodies = [self._compute_words(run, engine, stamps) if kernels else self._copy_words(run, copier, stamps)
                  for kernels, run in runs]
        packet_bytes = sum(-(-4 * len(body.words) // _ALIGNMENT) * _ALIGNMENT
                           for (kernels, _), body in zip(runs, bodies, strict=True) if kernels)
        if packet_bytes:
            total = packet_bytes + len(self._arguments)
            made.block = self.device.host_memory.take(total)
            memory, base = view(made.block.address, total), made.block.address
            made.arguments = memory[packet_bytes:]
            made.arguments[:] = self._arguments
        at = 0
        for (kernels, _), body in zip(runs, bodies, strict=True):
            if not kernels:
                made.segments.append(Segment(False, body.words.tobytes()))
                continue
            for place, offset in body.holes:
                address = base + packet_bytes + offset
                body.words[place], body.words[place + 1] = address & LOW, address >> 32
            data = body.words.tobytes()
            memory[at:at + len(data)] = data
            heads = [engine.indirect(base + at + 4 * start, end - start) for start, end in body.pieces()]
            made.segments.append(Segment(True, b"".join(struct.pack("<4I", *head) for head in heads)))
            if len(runs) == len(heads) == 1:
                made.head = heads[0]
            at += -(-len(data) // _ALIGNMENT) * _ALIGNMENT
        return made

    def _runs(self, compute: bool) -> list[tuple[bool, list[int]]]:
        """(whether a compute engine runs them, indexes of commands), in order. A time stamp goes with what is before it,
        or behind it where it comes first."""
        runs: list[tuple[bool, list[int]]] = []
        leading: list[int] = []
        for index, command in enumerate(self.commands):
            kernels = None if isinstance(command, Stamp) else isinstance(command, Dispatch)
            if kernels is None and not runs:
                leading.append(index)
            elif runs and (kernels is None or runs[-1][0] == kernels):
                runs[-1][1].append(index)
            else:
                runs.append((bool(kernels), [*leading, index]))
                leading = []
        return [*runs, (compute, leading)] if leading else runs

    def _compute_words(self, run: list[int], engine: ComputeEngine, stamps: int) -> _Body:
        body = _Body()
        words = body.words
        words.extend(engine.start)
        if stamps and run[0] == 0:
            words.extend(engine.stamp(stamps))
        begun = False
        for index in run:
            command = self.commands[index]
            if isinstance(command, Stamp):
                words.extend(engine.stamp(command.address))
            elif isinstance(command, Dispatch) and command.groups:
                if begun:
                    words.extend(engine.between)
                body.cuts.append(len(words))
                begun = True
                launch = command.program.launch
                body.holes.append((len(words) + launch.arguments_at, command.offset))
                groups_at = len(words) + launch.groups_at
                words.extend(launch.words)
                words[groups_at] = command.groups
            if stamps:
                words.extend(engine.stamp(stamps + 8 * index + 8))
        return body

    def _copy_words(self, run: list[int], engine: CopyEngine, stamps: int) -> _Body:
        body = _Body()
        if stamps and run[0] == 0:
            body.words.extend(engine.stamp(stamps))
        for index in run:
            command = self.commands[index]
            if isinstance(command, Stamp):
                body.words.extend(engine.stamp(command.address))
            elif isinstance(command, Copy):
                body.words.extend(engine.copy(*command))
            if stamps:
                body.words.extend(engine.stamp(stamps + 8 * index + 8))
        return body


class _Body:
    """The packets of one segment: `holes` are the words that take the address of arguments (offsets of them beside), `cuts`
    are places where it may be divided."""

    def __init__(self) -> None:
        self.words: array[int] = array("I")
        self.holes: list[tuple[int, int]] = []
        self.cuts: list[int] = []

    def pieces(self) -> list[tuple[int, int]]:
        """(first word, end) of parts that one INDIRECT_BUFFER can name."""
        bounds, start, last = [], 0, 0
        for cut in [*self.cuts, len(self.words)]:
            if cut - start > pm4.MAX_IB_DWORDS:
                bounds.append((start, last))
                start = last
            last = cut
        return [*bounds, (start, len(self.words))]


class Profile:
    """Measured time per command of one submission: pass it to `submit`, read it after the wait."""

    def __init__(self, commands: AmdCommandList) -> None:
        self.commands, self.device, self._count = commands, commands.device, len(commands)
        self._block = self.device.host_memory.take(8 * (self._count + 1))
        self.address = self._block.address
        self._stamps = words(self.address)
        for at in range(self._count + 1):
            self._stamps[at] = 0

    def fits(self, commands: AmdCommandList) -> bool:
        return len(commands) == self._count and commands.device is self.device

    @property
    def durations_ns(self) -> list[int]:
        """Nanoseconds per command, in order; the clock ticks every 10 ns, and each stamp waits for the command."""
        stamps = [int(self._stamps[at]) for at in range(self._count + 1)]
        if not all(stamps):
            raise InvalidArgument("the profile is not complete", remedy="wait for the submission first")
        ns = [self.device.nanoseconds(ticks) for ticks in stamps]
        return [after - before for before, after in itertools.pairwise(ns)]

    def __del__(self) -> None:
        block = getattr(self, "_block", None)
        if block is not None:
            self.device.host_memory.drop(block)
