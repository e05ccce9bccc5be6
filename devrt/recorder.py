"""What recording a command list checks on every device: arguments, ranges, and that what it uses is still there."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

from devrt.device import Buffer, InvalidArgument

WORD = 1 << 64
MAX_ARGUMENTS = 4096


class Recorder:
    """Base of command lists. It keeps what the list uses alive, and learns from buffers and programs when they go.

    A subclass names its device's classes of buffers and programs; both have `device`, `check()` and `lists`.
    """

    buffers: ClassVar[type[Any]]
    programs: ClassVar[type[Any]]

    def __init__(self, device: Any) -> None:
        self.device = device
        self.stale = False  # something it uses was freed since the last submission
        self._uses: dict[int, list[Any]] = {}  # id -> [buffer or program, how often]

    def check(self) -> None:
        """Raise InvalidArgument if a buffer or a program it uses is gone."""
        if self.stale:
            for thing, _ in self._uses.values():
                thing.check()
            self.stale = False

    def _use(self, thing: object) -> None:
        if isinstance(thing, int):
            return
        entry = self._uses.get(id(thing))
        if entry is not None:
            entry[1] += 1
            return
        self._uses[id(thing)] = [thing, 1]
        if isinstance(thing, (self.buffers, self.programs)):
            if thing.lists is None:
                thing.lists = weakref.WeakSet()
            thing.lists.add(self)

    def _unuse(self, buffer: Any | None) -> None:
        """An argument was replaced: forget its buffer once nothing else here uses it."""
        if buffer is None:
            return
        entry = self._uses[id(buffer)]
        entry[1] -= 1
        if not entry[1]:
            del self._uses[id(buffer)]

    def _value(self, argument: object, name: str) -> int:
        if isinstance(argument, self.buffers):
            self._check_buffer(argument)
            address: int = argument.address
            return address
        if isinstance(argument, int) and -(WORD >> 1) <= argument < WORD:
            return argument % WORD
        raise InvalidArgument(f"{name}: an argument is a buffer of this device or a 64-bit int, not {argument!r}")

    def _range(self, buffer: Buffer, offset: int, nbytes: int, role: str) -> int:
        if not isinstance(buffer, self.buffers):
            raise InvalidArgument(f"the {role} is {buffer!r}, no buffer of this device")
        self._check_buffer(buffer)
        if not isinstance(offset, int) or not isinstance(nbytes, int) or offset < 0 or nbytes < 0 \
                or offset + nbytes > buffer.nbytes:
            raise InvalidArgument(f"the {role} range leaves its buffer",
                                  evidence=f"{nbytes!r} bytes at {offset!r} of {buffer.nbytes}")
        at: int = buffer.address + offset
        return at

    def _check_buffer(self, buffer: Any) -> None:
        if buffer.device is not self.device:
            raise InvalidArgument(f"{buffer!r} belongs to another device",
                                  remedy="copy it, or show its memory here by wrap() or peer()")
        buffer.check()
