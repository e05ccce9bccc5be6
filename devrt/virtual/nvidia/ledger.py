"""What happens before what: launches and copies that nothing separates may run at once, so they must not touch each other's
memory; and what the constant and instruction caches still hold.

A channel's works are numbered. A clock says, for each channel, up to which number its works have ended for sure. It grows

    in a channel    by a wait for idle (all of its own), by a semaphore that it acquires, and when it is rung
    in the host     by every semaphore that is released: what its channel knew, and what it waited for

Who acquires a semaphore, or was rung by a host that looked at one, may know all that any semaphore told so far: which one it was
is not asked, since the host writes semaphores too and memory is used again. So what is called a race is one. Channels of several
GPUs share semaphores, so the host's clock is the process's.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from devrt.virtual.memory import AddressSpace
from devrt.virtual.pieces import Piece, overlap

_RANGES = 4096  # of constant banks or of code, remembered for a space

_keys = itertools.count(1)
_lock = threading.Lock()
_host: dict[int, int] = {}


class Race(Exception):
    """Two works that nothing separates, and that touch the same memory."""

    def __init__(self, va: int, first: str, second: str, what: str) -> None:
        super().__init__(f"race at {va:#x}: nothing waits for {first} to end, and {second} {what}")
        self.va, self.first, self.second = va, first, second


class Work(NamedTuple):
    """A launch or a copy."""

    number: int
    who: str
    reads: Sequence[Piece]
    writes: Sequence[Piece]


def _join(clock: dict[int, int], other: dict[int, int]) -> None:
    for key, number in other.items():
        if number > clock.get(key, 0):
            clock[key] = number


class Order:
    """The works of one GPU."""

    def __init__(self) -> None:
        self.tracks: tuple[Track, ...] = ()

    def track(self) -> Track:
        """The books of a new channel."""
        made = Track(self)
        with _lock:
            self.tracks = (*self.tracks, made)
        return made


class Track:
    """The books of one channel. Only its engine calls, so it needs no lock of its own."""

    def __init__(self, order: Order) -> None:
        self.order, self.key, self.count = order, next(_keys), 0
        self.known: dict[int, int] = {}
        self.works: deque[Work] = deque()
        self.busy = False  # it has work that the host rang for

    def close(self) -> None:
        """The channel ended: what it did is over."""
        with _lock:
            self.order.tracks = tuple(track for track in self.order.tracks if track is not self)
            _host.pop(self.key, None)

    def rang(self) -> None:
        self.busy = True
        self.acquired()

    def begin(self, who: str, reads: Sequence[Piece], writes: Sequence[Piece], after: Iterable[int] = ()) -> int:
        """A work begins, after those of its own channel that are named. Returns its number; raises Race."""
        if reads or writes:
            self.compare(who, reads, writes, frozenset(after))
        self.count += 1
        if reads or writes:
            self.works.append(Work(self.count, who, reads, writes))
            self._prune()
        return self.count

    def compare(self, who: str, reads: Sequence[Piece], writes: Sequence[Piece], after: Collection[int] = ()) -> None:
        """Look for a race of what is about to touch memory with the works that may still run. Raises Race."""
        for track in self.order.tracks:
            known = self.known.get(track.key, 0)
            for work in reversed(track.works):
                if work.number <= known:
                    break
                if track is not self or work.number not in after:
                    _compare(work, who, reads, writes)

    def idle(self) -> None:
        """The channel waited for all its works."""
        self.known[self.key] = self.count

    def released(self, up_to: int) -> None:
        """A semaphore was written after the channel's works up to a number had ended."""
        with _lock:
            _join(_host, {**self.known, self.key: max(self.known.get(self.key, 0), up_to)})

    def acquired(self) -> None:
        """The channel saw the value that it waited for."""
        with _lock:
            _join(self.known, _host)

    def _prune(self) -> None:
        """Forget what nobody can collide with any more."""
        for track in self.order.tracks:
            works = track.works
            if len(works) < 2:
                continue
            ended = min([_host.get(track.key, 0), *(t.known.get(track.key, 0) for t in self.order.tracks if t.busy)])
            while works and works[0].number <= ended:
                works.popleft()


def _compare(work: Work, who: str, reads: Sequence[Piece], writes: Sequence[Piece]) -> None:
    for mine, theirs, what in ((reads, work.writes, "reads what it writes"), (writes, work.writes, "writes it too"),
                               (writes, work.reads, "writes what it reads")):
        va = overlap(mine, theirs)
        if va is not None:
            raise Race(va, work.who, who, what)


class Cache:
    """What launches read since the last invalidation, by address: a range that has changed since is stale."""

    def __init__(self) -> None:
        self._held: WeakKeyDictionary[AddressSpace, dict[int, bytes]] = WeakKeyDictionary()

    def read(self, space: AddressSpace, va: int, data: bytes) -> bool:
        """Whether a launch that finds these bytes in memory sees them, rather than others that it has in the cache."""
        ranges = self._held.setdefault(space, {})
        held = ranges.get(va, b"")
        size = min(len(held), len(data))
        if held[:size] != data[:size]:
            return False
        if len(held) < len(data):
            if len(ranges) >= _RANGES:  # a cache has an end: what was read first is gone from it
                ranges.pop(next(iter(ranges)))
            ranges[va] = data
        return True

    def invalidate(self, space: AddressSpace, va: int = -1) -> None:
        """Forget what a space's launches read: all of it, or the range at an address."""
        ranges = self._held.get(space, {})
        if va >= 0:
            ranges.pop(va, None)
        else:
            ranges.clear()
