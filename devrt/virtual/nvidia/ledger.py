"""What happens before what: launches and copies that nothing separates may run at once, so they must not touch each other's
memory; and what the constant and instruction caches still hold.

A channel's works are numbered. A clock says, for each channel, up to which number its works have ended for sure. It grows

    in a channel    by a wait for idle (all of its own), by a semaphore it acquires (what that semaphore's releaser knew, and
                    what it waited for), and when it is rung (the host may have seen every semaphore so far)
    in the host     by every semaphore that is released

Channels of several GPUs share semaphores, so those books are the process's.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from devrt.virtual.memory import AddressSpace
from devrt.virtual.pieces import Piece, overlap

_SEMAPHORES = 4096  # remembered; one that is forgotten counts as the host's
_CONSTANTS = 4096   # ranges of constant banks and of code remembered

_keys = itertools.count(1)
_lock = threading.Lock()
_host: dict[int, int] = {}
_released: OrderedDict[int, tuple[int, dict[int, int]]] = OrderedDict()  # place -> (value, clock of its releaser)


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
        with _lock:
            _join(self.known, _host)

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

    def released(self, place: int, value: int, *, up_to: int, reduction: bool = False) -> None:
        """A semaphore at a host address was written after the channel's works up to a number had ended."""
        clock = dict(self.known)
        clock[self.key] = max(clock.get(self.key, 0), up_to)
        with _lock:
            _join(_host, clock)
            if reduction and place in _released:
                _join(clock, _released[place][1])
            _released[place] = value, clock
            _released.move_to_end(place)
            if len(_released) > _SEMAPHORES:
                _released.popitem(last=False)

    def acquired(self, place: int, value: int) -> None:
        """The channel saw a value at a host address: an engine's, or else the host's, which had seen everything so far."""
        with _lock:
            found, clock = _released.get(place, (-1, {}))
            _join(self.known, clock if found == value else _host)

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
        self._held: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def read(self, space: AddressSpace, va: int, data: bytes) -> bool:
        """Whether a launch that finds these bytes in memory sees them, rather than others that it has in the cache."""
        key = space.root, va
        held = self._held.get(key)
        if held is None or len(held) < len(data):
            if held is not None and data[:len(held)] != held:
                return False
            self._held[key] = data
            if len(self._held) > _CONSTANTS:
                self._held.popitem(last=False)
            return True
        return held[:len(data)] == data

    def invalidate(self, space: AddressSpace, va: int = -1) -> None:
        """Forget what a space's launches read: all of it, or the range at an address."""
        if va >= 0:
            self._held.pop((space.root, va), None)
        else:
            self._held = OrderedDict((key, data) for key, data in self._held.items() if key[0] != space.root)
