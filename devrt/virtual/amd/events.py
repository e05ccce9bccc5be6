"""Events of one process: what its threads wait for and its GPUs signal. Linux kfd_events.c.

The event page holds a u64 a signal event, at 8 times its number: all ones until a GPU writes anything else there and
interrupts. Numbers of other events begin at 0x40000000.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from devrt.ioctl.kfd import EventType, WaitResult
from devrt.virtual.errors import fail

SLOTS = 4096
PAGE_BYTES = 8 * SLOTS       # what an event page must have at least
FIRST_OTHER = 0x40000000
UNSIGNALLED = (1 << 64) - 1
INFINITE = 0xFFFFFFFF        # ms
MOST_WAITED = 4096
_GPU_SIGNALS = (EventType.SIGNAL, EventType.DEBUG_EVENT)


@dataclass(eq=False)
class Event:
    number: int
    type: int
    auto_reset: bool
    signalled: bool = False
    age: int = 1
    data: Mapping[str, Any] = field(default_factory=dict)  # of the exception that set it: fields of its struct
    waiters: list[_Waiter] = field(default_factory=list)


@dataclass(eq=False)
class _Waiter:
    event: Event | None  # None: it was destroyed meanwhile
    aged: bool
    activated: bool = False


@dataclass(frozen=True)
class Waited:
    """What one event of a wait has to tell: the data of an exception, or its age where the caller asked by age."""

    type: int
    data: Mapping[str, Any]
    age: int


class Events:
    """Any thread may call any method; `wait` blocks with nothing locked."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: dict[int, Event] = {}
        self._slots: memoryview | None = None
        self._next_other = FIRST_OTHER
        self._closed = False

    def set_page(self, page: memoryview) -> None:
        """The event page: at least PAGE_BYTES of writable memory. Raises OSError: EINVAL for a second one or a small one."""
        if self._slots is not None or len(page) < PAGE_BYTES:
            fail(errno.EINVAL)
        page[:PAGE_BYTES] = b"\xff" * PAGE_BYTES
        self._slots = page.cast("Q")

    @property
    def has_page(self) -> bool:
        return self._slots is not None

    def close(self) -> None:
        """Ends every wait with EIO. The page is not touched afterwards."""
        with self._changed:
            self._closed = True
            for number in list(self._events):
                self._drop(number)
            self._slots = None

    def create(self, kind: int, auto_reset: bool) -> Event:
        """Raises OSError: ENOSPC when all slots are taken."""
        with self._changed:
            if kind in _GPU_SIGNALS:
                assert self._slots is not None, "the driver gives a page first"
                most = min(SLOTS, len(self._slots))
                number = next((n for n in range(1, most) if n not in self._events), None)
                if number is None:
                    fail(errno.ENOSPC)
                self._slots[number] = UNSIGNALLED
            else:
                number, self._next_other = self._next_other, self._next_other + 1
            event = self._events[number] = Event(number, kind, auto_reset)
            return event

    def destroy(self, number: int) -> None:
        """Raises OSError: EINVAL. Who waits for it is told by EIO."""
        with self._changed:
            self._find(number)
            self._drop(number)

    def set(self, number: int) -> None:
        """From the host. Raises OSError: EINVAL for what only a GPU or the driver may signal."""
        with self._changed:
            self._signal(self._of_host(number))

    def reset(self, number: int) -> None:
        with self._changed:
            self._of_host(number).signalled = False

    def interrupt(self, context_id: int) -> list[int]:
        """A GPU's interrupt: the event of that number where its slot was written, else every one whose slot was. Returns
        their numbers; none: nobody knows what it was for."""
        with self._changed:
            if self._slots is None:
                return []
            written = [context_id] if self._written(context_id) else [n for n in list(self._events) if self._written(n)]
            for number in written:
                self._slots[number] = UNSIGNALLED
                event = self._events.get(number)
                if event is not None:
                    self._signal(event)
            return written

    def broadcast(self, kind: EventType, data: Mapping[str, Any]) -> int:
        """Set every event of a type with the data of an exception; returns how many there are."""
        with self._changed:
            found = [event for event in self._events.values() if event.type == kind]
            for event in found:
                event.data = data
                self._signal(event)
            return len(found)

    def wait(self, wanted: Sequence[tuple[int, int]], every: bool, timeout_ms: int) -> tuple[WaitResult, list[Waited | None]]:
        """Wait for one or all of (number, last age seen or 0), and what each has to tell (None: not set). Raises OSError:
        EINVAL for an unknown number, ENOMEM for too many, EIO when one is destroyed meanwhile."""
        if len(wanted) > MOST_WAITED:
            fail(errno.ENOMEM)
        deadline = None if timeout_ms == INFINITE else time.monotonic() + min(timeout_ms, 0x7FFFFFFF) / 1000
        waiters: list[_Waiter] = []
        with self._changed:
            try:
                for number, age in wanted:
                    waiters.append(self._enlist(self._find(number), age))
                while not self._satisfied(waiters, every):
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        return WaitResult.TIMEOUT, [None] * len(waiters)
                    self._changed.wait(left)
                return WaitResult.COMPLETE, [self._told(waiter) for waiter in waiters]
            finally:
                for waiter in waiters:
                    if waiter.event is not None and waiter in waiter.event.waiters:
                        waiter.event.waiters.remove(waiter)

    def _enlist(self, event: Event, age: int) -> _Waiter:
        waiter = _Waiter(event, aged=bool(age) and event.type == EventType.SIGNAL, activated=event.signalled)
        event.signalled = event.signalled and not event.auto_reset
        if waiter.aged and age != event.age:
            waiter.activated = True
        if not waiter.activated:
            event.waiters.append(waiter)
        return waiter

    @staticmethod
    def _satisfied(waiters: list[_Waiter], every: bool) -> bool:
        if any(waiter.event is None for waiter in waiters):
            fail(errno.EIO)
        done = sum(waiter.activated for waiter in waiters)
        return done == len(waiters) or (done > 0 and not every)

    @staticmethod
    def _told(waiter: _Waiter) -> Waited | None:
        event = waiter.event
        if event is None or not waiter.activated:
            return None
        return Waited(event.type, event.data, event.age if waiter.aged else 0)

    def _signal(self, event: Event) -> None:
        # An auto-reset event that somebody waits for goes to them and stays unset.
        event.signalled = not event.auto_reset or not event.waiters
        event.age = event.age + 1 if event.age < UNSIGNALLED else 2  # 0 and 1 mean "none seen"
        for waiter in event.waiters:
            waiter.activated = True
        self._changed.notify_all()

    def _drop(self, number: int) -> None:
        for waiter in self._events.pop(number).waiters:
            waiter.event = None
        self._changed.notify_all()

    def _written(self, number: int) -> bool:
        event = self._events.get(number)
        return (event is not None and event.type in _GPU_SIGNALS and self._slots is not None
                and self._slots[number] != UNSIGNALLED)

    def _find(self, number: int) -> Event:
        event = self._events.get(number)
        return event if event is not None else fail(errno.EINVAL)

    def _of_host(self, number: int) -> Event:
        event = self._find(number)
        return event if event.type == EventType.SIGNAL else fail(errno.EINVAL)
