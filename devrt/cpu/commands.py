"""Command lists of the CPU device: recorded once into packed words, submitted by one packet that points at them."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from devrt.cpu import packets
from devrt.cpu.memory import CpuBuffer
from devrt.cpu.program import CpuProgram
from devrt.device import Buffer, InvalidArgument, Program

if TYPE_CHECKING:
    from devrt.cpu.device import CpuDevice
    from devrt.cpu.queue import CpuQueue

_WORD = 1 << 64
MAX_GROUPS = 1 << 48
MAX_ARGUMENTS = 4096


class CpuCommandList:
    """Commands that run one after another, each seeing what the ones before it wrote.

    A list in flight is never altered: recording or patching then goes to a copy of the words, which the next submission
    uses, while the queue keeps the old ones until it is done with them. Neither waits. One thread records at a time.
    """

    def __init__(self, device: CpuDevice) -> None:
        self.device = device
        self.words: array[int] = array("Q")
        self.offsets: list[int] = []  # word at which each command starts
        self.programs: dict[int, CpuProgram] = {}  # by command index
        self.stale = False  # something it uses was freed since the last submission
        self.flight: dict[CpuQueue, int] = {}  # queue -> value of the last submission there
        self._uses: dict[int, list[Any]] = {}  # id -> [buffer or program, how often]
        self._arguments: dict[int, CpuBuffer] = {}  # word of an argument -> the buffer it is

    def dispatch(self, program: Program, arguments: Sequence[Buffer | int], groups: int) -> int:
        if not isinstance(program, CpuProgram) or program.device is not self.device:
            raise InvalidArgument(f"{program!r} is no program of this device",
                                  remedy="load it with this device's load()")
        program.check()
        if not isinstance(groups, int) or not 0 <= groups < MAX_GROUPS:
            raise InvalidArgument(f"{program.name}: groups must be an int from 0 to 2^48 - 1, not {groups!r}")
        if len(arguments) > MAX_ARGUMENTS:
            raise InvalidArgument(f"{program.name}: {len(arguments)} arguments", evidence=f"at most {MAX_ARGUMENTS}")
        values = [self._value(argument, program.name) for argument in arguments]
        self._use(program)
        first = len(self.words) + packets.ARGUMENT_0
        for word, argument in enumerate(arguments, first):
            self._use(argument)
            if isinstance(argument, CpuBuffer):
                self._arguments[word] = argument
        self.programs[len(self.offsets)] = program
        return self._append(packets.dispatch(program.address, groups, values))

    def copy(self, dst: Buffer, src: Buffer, nbytes: int, dst_offset: int = 0, src_offset: int = 0) -> int:
        """Copy bytes. Raises InvalidArgument where a range leaves its buffer or the two overlap."""
        to = self._range(dst, dst_offset, nbytes, "destination")
        from_ = self._range(src, src_offset, nbytes, "source")
        if to < from_ + nbytes and from_ < to + nbytes:
            raise InvalidArgument("source and destination of a copy overlap",
                                  evidence=f"{nbytes} bytes from {from_:#x} to {to:#x}",
                                  remedy="copy through a third buffer")
        self._use(dst)
        self._use(src)
        return self._append(packets.copy(to, from_, nbytes))

    def timestamp(self, dst: Buffer, offset: int) -> int:
        at = self._range(dst, offset, 8, "destination")
        self._use(dst)
        return self._append(packets.timestamp(at))

    def patch(self, index: int, argument: int, value: Buffer | int) -> None:
        """Replace one argument of a recorded dispatch, for the next submission; one in flight is not touched."""
        program = self.programs.get(index)
        if program is None:
            raise InvalidArgument(f"command {index!r} is no dispatch",
                                  evidence=f"{len(self.offsets)} commands recorded")
        at = self.offsets[index]
        count = (self.words[at] >> 32) - packets.ARGUMENT_0
        if not isinstance(argument, int) or not 0 <= argument < count:
            raise InvalidArgument(f"{program.name} has no argument {argument!r}",
                                  evidence=f"it was recorded with {count}")
        word = self._value(value, program.name)
        self._own()
        at += packets.ARGUMENT_0 + argument
        self._use(value)
        self._unuse(self._arguments.pop(at, None))
        if isinstance(value, CpuBuffer):
            self._arguments[at] = value
        self.words[at] = word

    def check(self) -> None:
        """Raise InvalidArgument if a buffer or a program it uses is gone."""
        if self.stale:
            for thing, _ in self._uses.values():
                thing.check()
            self.stale = False

    def address(self) -> int:
        return self.words.buffer_info()[0]

    def name_of(self, word: int) -> str:
        """What the command at that word is, or "" where none begins there."""
        if word not in self.offsets:
            return ""
        index = self.offsets.index(word)
        name = self.programs[index].name if index in self.programs else packets.Opcode(self.words[word] & 255).name
        return f"command {index} of {len(self.offsets)}, {name}"

    def __len__(self) -> int:
        return len(self.offsets)

    def __str__(self) -> str:
        return packets.dump(self.words)

    def _append(self, packet: tuple[int, ...]) -> int:
        self._own()
        self.offsets.append(len(self.words))
        self.words.extend(packet)
        return len(self.offsets) - 1

    def _own(self) -> None:
        if self.flight:
            if any(queue.completed < value for queue, value in self.flight.items()):
                self.words = array("Q", self.words)
            self.flight.clear()

    def _use(self, thing: object) -> None:
        if isinstance(thing, int):
            return
        entry = self._uses.get(id(thing))
        if entry is not None:
            entry[1] += 1
            return
        self._uses[id(thing)] = [thing, 1]
        if isinstance(thing, CpuBuffer | CpuProgram):
            if thing.lists is None:
                thing.lists = weakref.WeakSet()
            thing.lists.add(self)

    def _unuse(self, buffer: CpuBuffer | None) -> None:
        """An argument was replaced: forget its buffer once nothing else here uses it."""
        if buffer is None:
            return
        entry = self._uses[id(buffer)]
        entry[1] -= 1
        if not entry[1]:
            del self._uses[id(buffer)]

    def _value(self, argument: object, name: str) -> int:
        if isinstance(argument, CpuBuffer):
            self._check_buffer(argument)
            return argument.address
        if isinstance(argument, int) and -(_WORD >> 1) <= argument < _WORD:
            return argument % _WORD
        raise InvalidArgument(f"{name}: an argument is a buffer of this device or a 64-bit int, not {argument!r}")

    def _range(self, buffer: Buffer, offset: int, nbytes: int, role: str) -> int:
        if not isinstance(buffer, CpuBuffer):
            raise InvalidArgument(f"the {role} is {buffer!r}, no buffer of this device")
        self._check_buffer(buffer)
        if not isinstance(offset, int) or not isinstance(nbytes, int) or offset < 0 or nbytes < 0 \
                or offset + nbytes > buffer.nbytes:
            raise InvalidArgument(f"the {role} range leaves its buffer",
                                  evidence=f"{nbytes!r} bytes at {offset!r} of {buffer.nbytes}")
        return buffer.address + offset

    def _check_buffer(self, buffer: CpuBuffer) -> None:
        if buffer.device is not self.device:
            raise InvalidArgument(f"{buffer!r} belongs to another device",
                                  remedy="copy it, or wrap() its host memory here")
        buffer.check()


class Profile:
    """Measured time per command of one submission: pass it to `submit`, read it after the wait."""

    def __init__(self, commands: CpuCommandList) -> None:
        self.stamps: array[int] = array("Q", bytes(8 * (len(commands) + 1)))

    @property
    def durations_ns(self) -> list[int]:
        """Nanoseconds per command, in order; each holds the cost of one clock reading (about 20 ns)."""
        if not self.stamps[-1]:
            raise InvalidArgument("the profile is not complete", remedy="wait for the submission first")
        return [after - before for before, after in zip(self.stamps, self.stamps[1:], strict=False)]
