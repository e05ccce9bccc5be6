"""What happens before what: launches and copies that nothing separates may run at once, so they must not touch each other's
memory; and what the constant and instruction caches still hold.

A channel's works are numbered. A clock says, for each channel, up to which number its works have ended for sure, or have told
that they are far enough. It grows

    in a channel    by a wait for idle (all of its own), by a semaphore that it acquires, and when it is rung; by what its
                    launches poll: volatile, relaxed and acquiring loads, atomics
    in the host     by every semaphore that is released: what its channel knew, and what it waited for

Who acquires a semaphore, or was rung by a host that looked at one, may know all that any semaphore told so far: which one it was
is not asked, since the host writes semaphores too and memory is used again. So what is called a race is one. Channels of several
GPUs share semaphores, so the host's clock is the process's.

Launches run in turns, others move between them. A launch is in the books from its beginning, and what it touches from when
somebody else moves, or it ends. Who polls a page knows the works that wrote there, whether they have ended or not, and what they
knew; so does a channel that acquires a semaphore where kernels write, and whom a host rings that may have read what kernels tell.
A launch that gave way may have been told something by any load since. Nobody is charged with writing where a launch that still
runs has read or done atomics: it may wait for that.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from devrt.virtual.memory import PAGE, Access, AddressSpace
from devrt.virtual.pieces import Piece, overlap, union

_RANGES = 4096   # of constant banks or of code, remembered for a space
_SIGNALS = 1024  # pages with semaphores, remembered

_numbers = itertools.count(1)
_lock = threading.RLock()
_host: dict[int, int] = {}
_signals: dict[int, None] = {}  # host addresses of pages where semaphores were released
_tracks: tuple[Track, ...] = ()


class Race(Exception):
    """Two works that nothing separates, and that touch the same memory."""

    def __init__(self, va: int, first: str, second: str, what: str) -> None:
        super().__init__(f"race at {va:#x}: nothing waits for {first} to end, and {second} {what}")
        self.va, self.first, self.second = va, first, second


@dataclass
class Touches:
    """What a work touched: `reads`, `writes` and `tells` are compared with those of others, where writes that tell something may
    meet each other. `polls` is all that it polled, `looks` what it read otherwise, `written` all that it wrote; `told`: some of
    it to tell others."""

    reads: Sequence[Piece] = ()
    writes: Sequence[Piece] = ()
    tells: Sequence[Piece] = ()
    polls: Sequence[Piece] = ()
    looks: Sequence[Piece] = ()
    written: Sequence[Piece] = ()
    told: bool = False


class Work:
    """A launch or a copy. `began` orders the works of all channels."""

    def __init__(self, number: int, who: str) -> None:
        self.number, self.who, self.began = number, who, next(_numbers)
        self.touches = Touches()
        self.runs, self.entered = True, False
        self._host = dict(_host)

    def add(self, more: Touches) -> None:
        t = self.touches
        self.touches = Touches(union(t.reads, more.reads), union(t.writes, more.writes), union(t.tells, more.tells),
                               written=union(t.written, more.written), told=t.told or more.told)
        self.entered = True

    def may_be_told(self) -> bool:
        """Whether anything happened since it began."""
        return self.entered or self._host != _host


def _join(clock: dict[int, int], other: dict[int, int]) -> None:
    for key, number in other.items():
        if number > clock.get(key, 0):
            clock[key] = number


class Order:
    """The works of one GPU."""

    def __init__(self) -> None:
        self.tracks: tuple[Track, ...] = ()
        self._later: tuple[Track, Callable[[], None]] | None = None

    def track(self) -> Track:
        """The books of a new channel."""
        global _tracks
        made = Track(self)
        with _lock:
            self.tracks, _tracks = (*self.tracks, made), (*_tracks, made)
        return made

    def postpone(self, track: Track, enter: Callable[[], None]) -> None:
        """A launch of a channel gave way: what it touched is entered before any other channel does anything."""
        with _lock:
            self._later = track, enter

    def settle(self, track: Track) -> None:
        """A channel is about to do something."""
        with _lock:
            if self._later is not None and self._later[0] is not track:
                (_, enter), self._later = self._later, None
                enter()

    def forget(self, track: Track) -> None:
        """What was postponed is not to be entered."""
        with _lock:
            if self._later is not None and self._later[0] is track:
                self._later = None


class Track:
    """The books of one channel."""

    def __init__(self, order: Order) -> None:
        self.order, self.key, self.count = order, next(_numbers), 0
        self.known: dict[int, int] = {}
        self.works: deque[Work] = deque()
        self.busy = False  # it has work that the host rang for

    def close(self) -> None:
        """The channel ended: what it did is over."""
        global _tracks
        with _lock:
            self.order.forget(self)
            self.order.tracks = tuple(track for track in self.order.tracks if track is not self)
            _tracks = tuple(track for track in _tracks if track is not self)
            _host.pop(self.key, None)

    def halt(self) -> None:
        """The channel stopped: launches that still run never end, and nothing of them counts."""
        with _lock:
            self.busy = False
            for work in [work for work in self.works if work.runs]:
                self.drop(work)

    def rang(self) -> None:
        """The host may have seen every semaphore, and what kernels tell."""
        with _lock:
            self.busy = True
            self.order.settle(self)
            self._hear(lambda work: work.touches.told or work.runs and any(
                p.flags & Access.SYSTEM for p in work.touches.written))
            _join(self.known, _host)

    # --- works ---

    def begin(self, who: str) -> Work:
        """A launch begins."""
        with _lock:
            self.order.settle(self)
            self.count += 1
            work = Work(self.count, who)
            self.works.append(work)
            return work

    def enter(self, work: Work, touches: Touches, after: Collection[int] = (), gave_way: bool = False) -> None:
        """What a launch has touched since the last time. It comes after those works of its own channel that are named. Raises
        Race."""
        with _lock:
            late = touches.looks if gave_way and work.may_be_told() else ()
            if touches.polls or late:
                self._hear(lambda other: other is not work and (
                    overlap(touches.polls, other.touches.written) is not None
                    or other.began > work.began and overlap(late, other.touches.written) is not None))
            if touches.polls or late or _signalled(touches.looks):
                _join(self.known, _host)
            self._compare(work.who, touches, after, work)
            work.add(touches)

    def end(self, work: Work) -> None:
        """A launch has ended."""
        with _lock:
            work.runs = False
            self._prune()

    def drop(self, work: Work) -> None:
        """A launch never ends: nothing of it counts."""
        with _lock:
            self.order.forget(self)
            self.works = deque(other for other in self.works if other is not work)

    def copy(self, who: str, reads: Sequence[Piece], writes: Sequence[Piece]) -> None:
        """A copy is carried out. Raises Race."""
        with _lock:
            self.look(who, reads, writes)
            work = self.begin(who)
            work.add(Touches(reads, writes, written=writes))
            self.end(work)

    def look(self, who: str, reads: Sequence[Piece], writes: Sequence[Piece]) -> None:
        """Compare what is about to touch memory with the works that may still run. Raises Race."""
        with _lock:
            self.order.settle(self)
            self._compare(who, Touches(reads, writes), (), None)

    def _compare(self, who: str, touches: Touches, after: Collection[int], own: Work | None) -> None:
        for track in self.order.tracks:
            known = self.known.get(track.key, 0)
            for work in reversed(track.works):
                if work.number <= known:
                    break
                if work is not own and (track is not self or work.number not in after):
                    _compare(work, who, touches)

    def _prune(self) -> None:
        """Forget what nobody can collide with any more."""
        for track in self.order.tracks:
            works = track.works
            if len(works) < 2:
                continue
            ended = min([_host.get(track.key, 0), *(t.known.get(track.key, 0) for t in self.order.tracks if t.busy)])
            while works and works[0].number <= ended:
                works.popleft()

    # --- waiting and telling ---

    def idle(self) -> None:
        """The channel waited for all its works."""
        with _lock:
            self.known[self.key] = self.count

    def released(self, up_to: int, found: Sequence[Piece]) -> None:
        """A semaphore is written, after the channel's works up to a number have ended."""
        with _lock:
            self.order.settle(self)
            _join(_host, {**self.known, self.key: max(self.known.get(self.key, 0), up_to)})
            for piece in found:
                _signals.pop(piece.host // PAGE, None)
                _signals[piece.host // PAGE] = None
            while len(_signals) > _SIGNALS:
                _signals.pop(next(iter(_signals)))

    def acquired(self, found: Sequence[Piece]) -> None:
        """The channel saw the value that it waited for."""
        with _lock:
            self.order.settle(self)
            self._hear(lambda work: overlap(found, work.touches.written) is not None)
            _join(self.known, _host)

    def _hear(self, tells: Callable[[Work], bool]) -> None:
        """Know what works know that tell it. Launches that run on another GPU may have told more than is in the books."""
        for track in _tracks:
            for work in track.works:
                if work.number > self.known.get(track.key, 0) and (
                        work.runs and track.order is not self.order or tells(work)):
                    _join(self.known, track.known)
                    self.known[track.key] = max(work.number, self.known.get(track.key, 0))


def _signalled(looks: Sequence[Piece]) -> bool:
    """Whether semaphores were released in some of these pages."""
    for piece in looks:
        first, last = piece.host // PAGE, (piece.host + piece.nbytes - 1) // PAGE
        if last - first < len(_signals):
            if any(page in _signals for page in range(first, last + 1)):
                return True
        elif any(first <= page <= last for page in _signals):
            return True
    return False


def _compare(work: Work, who: str, mine: Touches) -> None:
    theirs = work.touches
    reads, tells = ((), ()) if work.runs else (theirs.reads, theirs.tells)
    for a, b, what in ((mine.reads, theirs.writes, "reads what it writes"), (mine.reads, tells, "reads what it writes"),
                       (mine.writes, theirs.writes, "writes it too"), (mine.writes, tells, "writes it too"),
                       (mine.tells, theirs.writes, "writes it too"),
                       (mine.writes, reads, "writes what it reads"), (mine.tells, reads, "writes what it reads")):
        va = overlap(a, b)
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
