"""What recording a command list checks on every device: arguments, ranges, and that what it uses is still there."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import Any, ClassVar

from devrt.device import Buffer, InvalidArgument

WORD = 1 << 64
MAX_ARGUMENTS = 4096


class Watched:
    """Base of buffers and programs: what command lists use, and are told of when it goes."""

    _lists: Collection[weakref.ref[Recorder]] = ()

    def watch(self, commands: Recorder) -> None:
        """Tell `commands` when this goes."""
        # Other threads may do the same meanwhile, or let go of a list: each line is one step of the interpreter.
        lists = self.__dict__.setdefault("_lists", set())
        lists.add(weakref.ref(commands, lists.discard))

    def _tell(self) -> None:
        for reference in set(self._lists):  # a tuple's memory may cost a collection, and that a list, in the middle of the copy
            commands = reference()
            if commands is not None:
                commands.stale = True


class Recorder:
    """Base of command lists. It keeps what the list uses alive, and knows when a buffer or a program of it has gone: a list that
    is submitted once looks at them all, from the second submission on they tell it.

    A subclass names its device's classes of buffers and programs, which have `device` and `check()`.
    """

    buffers: ClassVar[type[Any]]
    programs: ClassVar[type[Any]]

    def __init__(self, device: Any) -> None:
        self.device = device
        self.stale = True  # something it uses may have gone since it was looked at
        self._submitted = False
        self._used: list[Any] = []  # programs, and buffers that no patch replaces
        self._placed: dict[int, Any] = {}  # where an argument stands -> the buffer it is

    def check(self) -> None:
        """Before a submission, where `stale`: raise InvalidArgument if a buffer or a program it uses is gone."""
        try:
            if self._submitted:
                self.stale = False
                for thing in (*self._used, *self._placed.values()):
                    thing.watch(self)
            for thing in self._used:
                thing.check()
            for thing in self._placed.values():
                thing.check()
        except BaseException:
            self.stale = True
            raise
        self._submitted = True

    def _use(self, thing: Any) -> None:
        self._used.append(thing)
        if not self.stale:
            thing.watch(self)

    def _place(self, at: int, argument: object) -> None:
        """`argument` stands at `at` now."""
        if isinstance(argument, self.buffers):
            self._placed[at] = argument
            if not self.stale:
                argument.watch(self)
        else:
            self._placed.pop(at, None)

    def _value(self, argument: object, name: str) -> int:
        if isinstance(argument, self.buffers):
            if argument.device is not self.device or argument.freed:
                self._refuse(argument)
            address: int = argument.address
            return address
        if isinstance(argument, int) and -(WORD >> 1) <= argument < WORD:
            return argument % WORD
        raise InvalidArgument(f"{name}: an argument is a buffer of this device or a 64-bit int, not {argument!r}")

    def _range(self, buffer: Buffer, offset: int, nbytes: int, role: str) -> int:
        if not isinstance(buffer, self.buffers):
            raise InvalidArgument(f"the {role} is {buffer!r}, no buffer of this device")
        if buffer.device is not self.device or buffer.freed:
            self._refuse(buffer)
        if not isinstance(offset, int) or not isinstance(nbytes, int) or offset < 0 or nbytes < 0 \
                or offset + nbytes > buffer.nbytes:
            raise InvalidArgument(f"the {role} range leaves its buffer",
                                  evidence=f"{nbytes!r} bytes at {offset!r} of {buffer.nbytes}")
        at: int = buffer.address + offset
        return at

    def _refuse(self, buffer: Any) -> None:
        """Raise what is wrong with a buffer."""
        if buffer.device is not self.device:
            raise InvalidArgument(f"{buffer!r} belongs to another device",
                                  remedy="copy it, or show its memory here by wrap() or peer()")
        buffer.check()
