"""Command lists of the CPU device: recorded once into packed words, submitted by one packet that points at them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from devrt.cpu import packets
from devrt.cpu.memory import CpuBuffer
from devrt.cpu.program import CpuProgram
from devrt.device import Buffer, InvalidArgument, Program
from devrt.recorder import MAX_ARGUMENTS, Recorder

if TYPE_CHECKING:
    from devrt.cpu.device import CpuDevice
    from devrt.cpu.queue import CpuQueue

MAX_GROUPS = 1 << 48


class CpuCommandList(Recorder):
    """Commands that run one after another, each seeing what the ones before it wrote.

    A list in flight is never altered: recording or patching then goes to a copy of the words, which the next submission
    uses, while the queue keeps the old ones until it is done with them. Neither waits. One thread records at a time.
    """

    buffers, programs = CpuBuffer, CpuProgram

    def __init__(self, device: CpuDevice) -> None:
        super().__init__(device)
        self.words: array[int] = array("Q")
        self.offsets: list[int] = []  # word at which each command starts
        self.dispatches: dict[int, CpuProgram] = {}  # by command index
        self.flight: dict[CpuQueue, int] = {}  # queue -> value of the last submission there

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
            self._place(word, argument)
        self.dispatches[len(self.offsets)] = program
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
        program = self.dispatches.get(index)
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
        self._place(at, value)
        self.words[at] = word

    def address(self) -> int:
        return self.words.buffer_info()[0]

    def name_of(self, word: int) -> str:
        """What the command at that word is, or "" where none begins there."""
        if word not in self.offsets:
            return ""
        index = self.offsets.index(word)
        name = self.dispatches[index].name if index in self.dispatches else packets.Opcode(self.words[word] & 255).name
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
