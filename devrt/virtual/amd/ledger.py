"""The visibility ledger: which 128-byte lines the caches of a GPU hold, which of them are dirty, and which are stale.

Memory itself is always current here, so the ledger is what tells a program that works from one that hardware would punish:

    a shader writes      the line is dirty in L2 until a writeback, and stale in the L1 of whoever read it before
    a shader reads       the line is in L1 and L2; a stale line there is a fault
    others write         (a copy engine, a command processor to memory, another GPU): the line is stale where it is cached
    others read          a line that is dirty in some L2 is a fault
    acquire              invalidates L1 (vector, GL1 and scalar together), L2, or both
    writeback            L2 is clean

Dispatches run in turns, others move between them. A dispatch is entered when it ends, and not charged with reading what others
wrote meanwhile: it may have waited for that with loads that no cache answers.

L1 stands for the vector, scalar and GL1 caches together, L2 is the GPU's last cache before memory. State is a byte per line,
kept for the 2 MiB blocks of host memory that anything touched since the last full acquire and writeback.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from devrt.virtual.memory import Access
from devrt.virtual.pieces import Piece, apart, overlap

LINE = 128  # bytes; what L2 of gfx9 to gfx12 keeps together
_BLOCK = 21  # log2 of the bytes one state array stands for
_SHIFT = _BLOCK - 7  # log2 of its lines

DIRTY, IN_L2, IN_L1, STALE_L2, STALE_L1 = 1, 2, 4, 8, 16
_HISTORY = 1024  # writes remembered so that a fault can name its writer


class VisibilityFault(Exception):
    """A read that hardware may answer with old data, or may make while the data is still being written."""

    def __init__(self, va: int, writer: str, reader: str, why: str) -> None:
        super().__init__(f"{reader} reads {va:#x}, written by {writer}: {why}")
        self.va, self.writer, self.reader, self.why = va, writer, reader, why


class _Write(NamedTuple):
    who: str
    pieces: Sequence[Piece]


class Flight:
    """The dispatches of one queue that nothing waited for yet. Hardware may run them all at once, so one of them must
    not touch what another writes."""

    def __init__(self) -> None:
        self._running: list[tuple[str, Sequence[Piece], Sequence[Piece]]] = []
        self._signalled = 0  # how many of them end before an event that the queue already wrote

    def add(self, who: str, reads: Sequence[Piece], writes: Sequence[Piece]) -> None:
        """A dispatch begins. Raises VisibilityFault."""
        for other, their_reads, their_writes in self._running:
            for mine, theirs, what in ((reads, their_writes, "reads what it writes"), (writes, their_writes, "writes it too"),
                                       (writes, their_reads, "writes what it reads")):
                va = overlap(mine, theirs)
                if va is not None:
                    raise VisibilityFault(va, other, who, f"nothing waited for the first to end, and the second {what}")
        if reads or writes:
            self._running.append((who, reads, writes))

    def signalled(self) -> None:
        """An end-of-pipe event was written: a wait for it is a wait for all dispatches so far."""
        self._signalled = len(self._running)

    def waited(self) -> None:
        """The queue waited for a value in memory, or the host had the chance to before it rang again."""
        del self._running[:self._signalled]
        self._signalled = 0

    def drained(self) -> None:
        """The queue waited for all its dispatches."""
        self._running.clear()
        self._signalled = 0


_all: tuple[Ledger, ...] = ()
_lock = threading.Lock()  # engines of several GPUs mark each other's lines


class Ledger:
    """The caches of one GPU."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._blocks: dict[int, NDArray[np.uint8]] = {}
        self._dirty: set[int] = set()
        self._dirtied: deque[_Write] = deque(maxlen=_HISTORY)
        self._outdated: deque[_Write] = deque(maxlen=_HISTORY)
        self._untold: dict[object, _Write] = {}  # the first write of a queue to system memory that is still in L2
        self._meanwhile: list[list[Piece]] = []  # what others wrote while each dispatch runs
        global _all
        with _lock:
            _all = (*_all, self)

    def close(self) -> None:
        global _all
        with _lock:
            _all = tuple(ledger for ledger in _all if ledger is not self)

    # --- shaders ---

    def begin(self) -> list[Piece]:
        """A dispatch begins. What others write until it ends is appended."""
        with _lock:
            self._meanwhile.append([])
            return self._meanwhile[-1]

    def end(self, meanwhile: list[Piece]) -> None:
        with _lock:
            self._meanwhile = [other for other in self._meanwhile if other is not meanwhile]

    def shader(self, who: str, queue: object, reads: Sequence[Piece], writes: Sequence[Piece],
               meanwhile: Sequence[Piece] = ()) -> None:
        """What a dispatch read and wrote, and others while it ran. Raises VisibilityFault."""
        with _lock:
            self._read(who, apart(reads, meanwhile), IN_L1 | IN_L2, STALE_L1 | STALE_L2)
            self._write_l2(who, queue, writes)

    def cp_read(self, who: str, pieces: Sequence[Piece]) -> None:
        """The command processor reads through L2. Raises VisibilityFault."""
        with _lock:
            self._read(who, pieces, IN_L2, STALE_L2)

    def cp_write(self, who: str, queue: object, pieces: Sequence[Piece]) -> None:
        """The command processor writes into L2."""
        with _lock:
            self._write_l2(who, queue, pieces)

    def _read(self, who: str, pieces: Sequence[Piece], cached: int, stale: int) -> None:
        self._check_dirty(who, pieces, self._others())
        for block, lines, piece in _lines(pieces):
            state = self._state(block)[lines]
            bad = state & stale
            if bad.any():
                at = _address(block, lines, bad, piece)
                level = "L2" if int(bad[bad != 0][0]) & STALE_L2 else "L1"
                raise VisibilityFault(at.va, _writer(self._outdated, at), who,
                                      f"{self.name} read the line before that write, and no acquire invalidated {level} since")
            state |= cached

    def _write_l2(self, who: str, queue: object, pieces: Sequence[Piece]) -> None:
        if not pieces:
            return
        write = _Write(who, pieces)
        self._written(write)
        hit = False
        for block, lines, _ in _lines(pieces):
            state = self._state(block)[lines]
            cached = state & IN_L1
            hit = hit or bool(cached.any())
            state |= DIRTY | IN_L2 | cached << 2
            self._dirty.add(block)
        self._dirtied.append(write)
        if hit:
            self._outdated.append(write)
        if any(p.flags & Access.SYSTEM for p in pieces):
            self._untold.setdefault(queue, write)
        self._mark_stale(write, self._others())

    def _written(self, write: _Write) -> None:
        for meanwhile in self._meanwhile:
            meanwhile.extend(write.pieces)

    def _others(self) -> Sequence[Ledger]:
        return [ledger for ledger in _all if ledger is not self]

    # --- engines that go past these caches ---

    def memory_read(self, who: str, pieces: Sequence[Piece]) -> None:
        """A copy engine or a command processor reads memory. Raises VisibilityFault."""
        with _lock:
            self._check_dirty(who, pieces, _all)

    def memory_write(self, who: str, pieces: Sequence[Piece]) -> None:
        """A copy engine or a command processor writes memory."""
        with _lock:
            self._mark_stale(_Write(who, pieces), _all)

    @staticmethod
    def _check_dirty(who: str, pieces: Sequence[Piece], ledgers: Sequence[Ledger]) -> None:
        for ledger in ledgers:
            if not ledger._dirty:
                continue
            for block, lines, piece in _lines(pieces):
                if block in ledger._dirty:
                    bad = ledger._blocks[block][lines] & DIRTY
                    if bad.any():
                        at = _address(block, lines, bad, piece)
                        raise VisibilityFault(at.va, _writer(ledger._dirtied, at), who,
                                              f"the line is dirty in L2 of {ledger.name}: no release wrote it back")

    @staticmethod
    def _mark_stale(write: _Write, ledgers: Sequence[Ledger]) -> None:
        for ledger in ledgers:
            ledger._written(write)
            if not ledger._blocks:
                continue
            hit = False
            for block, lines, _ in _lines(write.pieces):
                array = ledger._blocks.get(block)
                if array is not None:
                    state = array[lines]
                    cached = state & (IN_L1 | IN_L2)
                    if cached.any():
                        hit = True
                        state |= cached << 2
            if hit:
                ledger._outdated.append(write)

    # --- acquire and release ---

    def acquire(self, l1: bool, l2: bool, pieces: Sequence[Piece] | None = None) -> None:
        """Invalidate caches, all of them or those of some addresses. Dirty lines stay."""
        keep = np.uint8(0xff & ~((IN_L1 | STALE_L1 if l1 else 0) | (IN_L2 | STALE_L2 if l2 else 0)))
        with _lock:
            if pieces is None:
                for array in self._blocks.values():
                    array &= keep
                if l1 and l2:
                    self._outdated.clear()
                    self._drop_clean()
            else:
                for block, lines, _ in _lines(pieces):
                    if block in self._blocks:
                        self._blocks[block][lines] &= keep

    def writeback(self, pieces: Sequence[Piece] | None = None) -> None:
        """Write dirty lines of L2 to memory, all or those of some addresses."""
        keep = np.uint8(0xff & ~DIRTY)
        with _lock:
            if pieces is None:
                for block in self._dirty:
                    self._blocks[block] &= keep
                self._dirty.clear()
                self._dirtied.clear()
                self._untold.clear()
            else:
                for block, lines, _ in _lines(pieces):
                    if block in self._dirty:
                        self._blocks[block][lines] &= keep
                self._untold = {q: w for q, w in self._untold.items() if self._still_dirty(w)}

    def tell_host(self, who: str, queue: object) -> None:
        """An interrupt says that the queue's work is done: what it wrote to system memory must not be left in L2. Raises
        VisibilityFault."""
        with _lock:
            write = self._untold.get(queue)
            if write is not None:
                piece = next(p for p in write.pieces if p.flags & Access.SYSTEM)
                raise VisibilityFault(piece.va, write.who, "the host", f"{who} tells it to, but the line is dirty in L2 of "
                                      f"{self.name}: no release wrote it back")

    def forget_queue(self, queue: object) -> None:
        """A queue is destroyed: nobody is told of its work any more."""
        with _lock:
            self._untold.pop(queue, None)

    @property
    def clean(self) -> bool:
        """Whether no line is dirty, and none is known to be cached."""
        return not self._blocks

    def _still_dirty(self, write: _Write) -> bool:
        system = [p for p in write.pieces if p.flags & Access.SYSTEM]
        return any((self._blocks[b][lines] & DIRTY).any() for b, lines, _ in _lines(system) if b in self._dirty)

    def _state(self, block: int) -> NDArray[np.uint8]:
        array = self._blocks.get(block)
        if array is None:
            array = self._blocks[block] = np.zeros(1 << _SHIFT, np.uint8)
        return array

    def _drop_clean(self) -> None:
        for block in [b for b in self._blocks if b not in self._dirty]:
            del self._blocks[block]


def forget(host: int, nbytes: int) -> None:
    """Pages are freed: the driver flushes them from the caches of every GPU."""
    with _lock:
        for ledger in _all:
            for block, lines, _ in _lines([Piece(0, host, nbytes, 0)]):
                if block in ledger._blocks:
                    ledger._blocks[block][lines] = 0


def _lines(pieces: Iterable[Piece]) -> Iterator[tuple[int, slice, Piece]]:
    """(block, its lines, the piece they are of)."""
    for piece in pieces:
        first, last = piece.host // LINE, (piece.host + piece.nbytes - 1) // LINE
        while first <= last:
            block = first >> _SHIFT
            end = min(last, (block + 1 << _SHIFT) - 1)
            yield block, slice(first - (block << _SHIFT), end - (block << _SHIFT) + 1), piece
            first = end + 1


def _address(block: int, lines: slice, bad: NDArray[Any], piece: Piece) -> Piece:
    """The part of a piece in its first bad line."""
    line = (block << _SHIFT) + int(lines.start) + int(np.flatnonzero(bad)[0])
    host = max(line * LINE, piece.host)
    end = min((line + 1) * LINE, piece.host + piece.nbytes)
    return Piece(piece.va + host - piece.host, host, end - host, piece.flags)


def _writer(history: deque[_Write], at: Piece) -> str:
    """Who wrote to the line of a piece last."""
    first = at.host // LINE * LINE
    for write in reversed(history):
        if any(p.host < first + LINE and first < p.host + p.nbytes for p in write.pieces):
            return write.who
    return "an earlier command"
