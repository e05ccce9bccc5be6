"""Ranges of GPU addresses as the runs of host memory behind them: what engines copy, compare and account for."""

from __future__ import annotations

import bisect
import ctypes
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from devrt.ioctl.system import view
from devrt.virtual.memory import LEVEL, MARKS, PAGE, SPAN, Access, AddressSpace, MemoryFault

_NEED = {"read": int(Access.VALID), "write": int(Access.VALID | Access.WRITE), "execute": int(Access.VALID | Access.EXECUTE)}
_FOREIGN = int(Access.FOREIGN)
_FLAGS = PAGE - 1 & ~int(MARKS)  # of an entry: what does not change while a dispatch runs
_FEW = 16  # pages up to which a range is walked page by page


class Piece(NamedTuple):
    """Bytes at GPU address `va` that lie together at `host`. `flags` are the page's, of memory.Access. A FOREIGN page's `host`
    is a number that no other page has."""

    va: int
    host: int
    nbytes: int
    flags: int


def pieces(space: AddressSpace, va: int, nbytes: int, access: str) -> list[Piece]:
    """The parts of a range that lie together. Raises MemoryFault."""
    end = va + nbytes
    if not 0 <= va < end <= SPAN:
        raise MemoryFault(va, access, "not a GPU address")
    found: list[Piece] = []
    need = _NEED[access]
    if nbytes <= _FEW * PAGE:
        while va < end:
            entry = space.entry(va)
            if entry & need != need:
                space.check(va, entry, access)
            size = min(end - va, PAGE - va % PAGE)
            _append(found, Piece(va, _place(space, entry) + va % PAGE, size, entry & _FLAGS))
            va += size
        return found
    for at, entries in _leaves(space, va, end):
        if entries is None:
            raise MemoryFault(at, access, "not mapped")
        bad = np.flatnonzero(entries & np.uint64(need) != need)
        if len(bad):
            space.check(max(va, (at // PAGE + int(bad[0])) * PAGE), int(entries[bad[0]]), access)
        _runs(found, space, at, entries, va, end)
    return found


def mapped(space: AddressSpace, va: int, nbytes: int) -> list[Piece]:
    """The parts of a range that are mapped at all."""
    found: list[Piece] = []
    end = min(va + nbytes, SPAN)
    for at, entries in _leaves(space, va, end):
        if entries is not None:
            _runs(found, space, at, entries, va, end)
    return [p for p in found if p.flags & Access.VALID]


_KEEP = np.uint64((1 << 64) - PAGE | _FLAGS)


def _leaves(space: AddressSpace, va: int, end: int) -> Iterator[tuple[int, NDArray[np.uint64] | None]]:
    """(first address, entries) of the parts of a range that one table holds; None where there is no table."""
    while va < end:
        page = va // PAGE
        middle = _entry(space.root, page >> 24)
        leaf = _entry(middle, page >> 12 & LEVEL - 1) if middle else 0
        span = LEVEL if middle else LEVEL * LEVEL
        count = min(-(-end // PAGE) - page, span - page % span)
        yield va, np.frombuffer(view(leaf + 8 * (page % LEVEL), 8 * count), np.uint64) & _KEEP if leaf else None
        va = (page + count) * PAGE


def _place(space: AddressSpace, entry: int) -> int:
    """Where a page lies: in this process, or, beyond all addresses, in the process that a space is of."""
    return (entry & ~(PAGE - 1)) + (space.root << 64 if entry & _FOREIGN else 0)


def _runs(found: list[Piece], space: AddressSpace, at: int, entries: NDArray[np.uint64], va: int, end: int) -> None:
    """Append the pieces of `entries`, the first of which is that of address `at`, as far as they lie in va..end."""
    first_page = at // PAGE
    cuts = [0, *(np.flatnonzero(np.diff(entries) != PAGE) + 1).tolist(), len(entries)]
    for first, last in itertools.pairwise(cuts):
        start, stop = max(va, (first_page + first) * PAGE), min(end, (first_page + last) * PAGE)
        entry = int(entries[first])
        host = _place(space, entry) + start - (first_page + first) * PAGE
        _append(found, Piece(start, host, stop - start, entry & _FLAGS))


def _entry(table: int, index: int) -> int:
    return int.from_bytes(view(table + 8 * index, 8), "little")


def _append(found: list[Piece], piece: Piece) -> None:
    last = found[-1] if found else None
    if last and last.host + last.nbytes == piece.host and last.flags == piece.flags:
        found[-1] = Piece(last.va, last.host, last.nbytes + piece.nbytes, last.flags)
    else:
        found.append(piece)


def foreign(found: Sequence[Piece]) -> bool:
    """Whether some of it lies in another process, where only read and write of its AddressSpace reach."""
    return any(p.flags & _FOREIGN for p in found)


def overlap(a: Sequence[Piece], b: Sequence[Piece]) -> int | None:
    """The first address of `a` that is in `b` too."""
    for p in _met(a, b):
        shared = (max(o.host, p.host) for o in b if o.host < p.host + p.nbytes and o.host + o.nbytes > p.host)
        return p.va + min(shared) - p.host
    return None


def apart(a: Sequence[Piece], b: Sequence[Piece]) -> list[Piece]:
    """The pieces of `a` that share no byte with `b`."""
    met = set(map(id, _met(a, b)))
    return [p for p in a if id(p) not in met]


def _met(a: Sequence[Piece], b: Sequence[Piece]) -> Iterator[Piece]:
    """The pieces of `a` that share a byte with `b`."""
    if not a or not b:
        return
    ordered = sorted((p.host, p.host + p.nbytes) for p in b)
    starts = [start for start, _ in ordered]
    reach = list(itertools.accumulate((end for _, end in ordered), max))
    for p in a:
        n = bisect.bisect_left(starts, p.host + p.nbytes)
        if n and reach[n - 1] > p.host:
            yield p


def union(a: Sequence[Piece], b: Sequence[Piece]) -> Sequence[Piece]:
    """What both have, once for each address that it is known by, in no order."""
    if not a or not b:
        return a or b
    found: list[Piece] = []
    for p in sorted((*a, *b), key=lambda p: (p.va - p.host, p.flags, p.host)):
        last = found[-1] if found else None
        if last is None or p.host > last.host + last.nbytes or (p.va - p.host, p.flags) != (last.va - last.host, last.flags):
            found.append(p)
        else:
            found[-1] = Piece(last.va, last.host, max(last.nbytes, p.host + p.nbytes - last.host), last.flags)
    return found


def move(read: Sequence[Piece], written: Sequence[Piece]) -> None:
    """Copy pieces of the same total length."""
    sources, targets = iter(read), iter(written)
    from_host = from_left = to_host = to_left = 0
    while True:
        if not from_left:
            piece = next(sources, None)
            if piece is None:
                return
            from_host, from_left = piece.host, piece.nbytes
        if not to_left:
            piece = next(targets)
            to_host, to_left = piece.host, piece.nbytes
        size = min(from_left, to_left)
        ctypes.memmove(to_host, from_host, size)
        from_host, from_left, to_host, to_left = from_host + size, from_left - size, to_host + size, to_left - size
