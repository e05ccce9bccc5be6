"""The one reduction order of the exact tier, in two layouts.

A sum of K terms depends on K alone. K is cut into chunks of 16384; in a chunk, virtual lane l of 64 adds terms l, l+64,
l+128, .. in order, starting from the identity; the 64 lanes are then folded by halves (lane l with l+32, then l+16, .. l+1).
The chunks' totals are a sequence again, summed by the same rule. Integer sums, max and min give the same bits in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Builder, Reg, Shared
from devrt.compiler.lowering.loops import Point
from devrt.device import CompileError

LANES = 64
CHUNK = 16384

Terms = Callable[[Point], Sequence[Sequence[Reg]]]  # for each row, the terms at a point


def identity(kind: str, d: DType) -> int | float | bool:
    """The value that leaves every other unchanged."""
    if kind in ("sum", "dot"):
        return 0
    if kind == "prod":
        return 1
    if d.is_float:
        return -math.inf if kind == "max" else math.inf
    if d.kind == "bool":
        return kind == "min"
    return d.min if kind == "max" else d.max


def fold(b: Builder, kind: str, acc: Reg, terms: Sequence[Reg]) -> Reg:
    """acc with one more term (two factors for dot)."""
    if kind == "dot":
        x, y = terms
        return b.fma(x, y, acc) if acc.dtype.is_float else b.add(acc, b.mul(x, y))
    return combine(b, kind, acc, terms[0])


def combine(b: Builder, kind: str, x: Reg, y: Reg) -> Reg:
    """Two partial results."""
    if kind in ("sum", "dot"):
        return b.add(x, y)
    return b.mul(x, y) if kind == "prod" else b.max(x, y) if kind == "max" else b.min(x, y)


def ordered(kind: str, d: DType) -> bool:
    return d.is_float and kind in ("sum", "dot", "prod")


def along_lanes(b: Builder, kind: str, d: DType, count: int, terms: Terms, scratch: Callable[[int], Shared],
                turns: int = 2, rows: int = 1) -> list[Reg]:
    """Reduce terms(at), at = 0..count-1, with lanes along them, in several rows at once. Each row's result is the same in
    all lanes.

    `scratch(n)` gives a shared array of n elements of `d`. A loop takes `turns` times 64 terms of a row at once: their loads
    start together, the order stays. Several rows, a power of two up to the lanes, have at most a chunk of terms each; they
    share what their terms share, and the registers in which lanes are folded.
    """
    if LANES % b.lanes:
        raise CompileError(f"reductions need lanes that divide {LANES}, not {b.lanes}")
    if count <= CHUNK or not ordered(kind, d):
        return _block(b, kind, d, b.idx(0), count, terms, turns, rows)
    full, rest = divmod(count, CHUNK)
    partial = scratch(full + bool(rest))

    def chunk(c: Reg, _: list[Reg]) -> Sequence[Reg]:
        (total,) = _block(b, kind, d, b.mul(c, b.idx(CHUNK)), CHUNK, terms, turns, 1)
        b.store(partial, c, total)
        return []
    b.loop(0, full, [], chunk)
    if rest:
        (total,) = _block(b, kind, d, b.idx(full * CHUNK), rest, terms, turns, 1)
        b.store(partial, b.idx(full), total)
    b.barrier()
    again = "sum" if kind == "dot" else kind
    return along_lanes(b, again, d, full + bool(rest), lambda at: [[b.load(partial, at.k, at.mask)]], scratch)


def _block(b: Builder, kind: str, d: DType, start: Reg, count: int, terms: Terms, turns: int, rows: int) -> list[Reg]:
    lanes, lane = b.lanes, b.lane()
    n = LANES // lanes
    acc = [b.const(d, identity(kind, d)) for _ in range(n * rows)]  # of row r: acc[r], acc[r + rows], ..
    whole = count // LANES * LANES

    def step_at(acc: list[Reg], first: Reg, u: int, phase: int, tail: Reg | None = None) -> None:
        """Vector u of a turn, whose lane 0 is `first`."""
        own = slice(u * rows, u * rows + rows)
        more = terms(Point(b.add(first, lane), first, tail, phase))
        folded = [fold(b, kind, a, t) for a, t in zip(acc[own], more, strict=True)]
        acc[own] = folded if tail is None else [b.select(tail, f, a) for f, a in zip(folded, acc[own], strict=True)]

    def turn(i: Reg, carried: list[Reg], phase: int = 0) -> list[Reg]:
        acc = list(carried)
        for u in range(n):
            step_at(acc, b.add(b.add(start, i), b.idx(u * lanes)), u, phase + u * lanes)
        return acc

    def several(i: Reg, carried: list[Reg]) -> list[Reg]:
        for k in range(turns):
            carried = turn(b.add(i, b.idx(k * LANES)), carried, k * LANES)
        return carried
    step = turns * LANES
    done = whole // step * step if whole > step else 0
    if done:
        acc = b.loop(0, done, acc, several, step=step)
    if whole - done == LANES:
        acc = turn(b.idx(done), acc)
    elif whole > done:
        acc = b.loop(done, whole, acc, turn, step=LANES)
    rest = count - whole
    for u in range(n):
        here = min(rest - u * lanes, lanes)
        if here > 0:
            step_at(acc, b.add(start, b.idx(whole + u * lanes)), u, u * lanes, None if here == lanes else b.lt(lane, b.idx(here)))
    while len(acc) > rows:
        half = len(acc) // 2
        acc = [combine(b, kind, x, y) for x, y in zip(acc[:half], acc[half:], strict=True)]
    return _fold_lanes(b, kind, acc)


def _fold_lanes(b: Builder, kind: str, rows: list[Reg]) -> list[Reg]:
    """The lanes of each register folded by halves. A row needs half the lanes after each step, so two then share them."""
    regs, step = rows, b.lanes // 2
    while step:
        if len(regs) > 1:
            low = b.lt(b.rem(b.lane(), b.idx(2 * step)), b.idx(step))
            regs = [combine(b, kind, b.select(low, x, y), b.lane_xor(b.select(low, y, x), step))
                    for x, y in zip(regs[::2], regs[1::2], strict=True)]
        else:
            regs = [combine(b, kind, regs[0], b.lane_xor(regs[0], step))]
        step //= 2
    return [b.lane_get(regs[0], _place(n, b.lanes)) for n in range(len(rows))]


def _place(row: int, lanes: int) -> int:
    """The lane that has the result of a row: its number's bits, the last one first, choose between halves."""
    return sum((row >> k & 1) * (lanes >> k + 1) for k in range(row.bit_length()))


ColumnTerms = Callable[[Reg, int], Sequence[Reg]]


class Columns:
    """Reductions with lanes across `vectors` vectors of columns: the 64 virtual lanes are rows of a shared array."""

    def __init__(self, b: Builder, vectors: int) -> None:
        self.b, self.vectors = b, vectors
        self.width = vectors * b.lanes
        self.arrays: dict[tuple[DType, int], Shared] = {}

    def reduce(self, kind: str, d: DType, count: int, terms: ColumnTerms) -> list[Reg]:
        """terms(k, v), k = 0..count-1, for every vector v of columns: one result register a vector."""
        if ordered(kind, d):
            acc = self._chunked(kind, d, count, terms, 0)
            lane = self.b.lane()
            return [self.b.load(acc, self.b.add(self.b.idx(v * self.b.lanes), lane)) for v in range(self.vectors)]
        b = self.b

        def turn(k: Reg, carried: list[Reg]) -> list[Reg]:
            return [fold(b, kind, a, terms(k, v)) for v, a in enumerate(carried)]
        return b.loop(0, count, [b.const(d, identity(kind, d))] * self.vectors, turn)

    def _array(self, d: DType, level: int) -> Shared:
        if (d, level) not in self.arrays:
            self.arrays[d, level] = self.b.shared(f"acc{level}_{d.short}", d, LANES * self.width)
        return self.arrays[d, level]

    def _chunked(self, kind: str, d: DType, count: int, terms: ColumnTerms, level: int) -> Shared:
        """Row 0 of the returned array holds the result."""
        b = self.b
        if count <= CHUNK:
            return self._fold(kind, d, count, terms, level)
        total = self._array(d, level)
        self._clear(kind, d, total)
        again = "sum" if kind == "dot" else kind
        full, rest = divmod(count, CHUNK)

        def add_chunk(c: Reg, size: int) -> None:
            base = b.mul(c, b.idx(CHUNK))
            part = self._fold(kind, d, size, lambda k, v: terms(b.add(base, k), v), level + 1)
            row = b.rem(c, b.idx(LANES))
            for v in range(self.vectors):
                at = self._at(row, v)
                b.store(total, at, fold(b, again, b.load(total, at), [b.load(part, self._at(b.idx(0), v))]))

        def chunk(c: Reg, _: list[Reg]) -> Sequence[Reg]:
            add_chunk(c, CHUNK)
            return []
        if full + bool(rest) > CHUNK:
            raise CompileError(f"a reduction over {count} rows is longer than any array")
        b.loop(0, full, [], chunk)
        if rest:
            add_chunk(b.idx(full), rest)
        self._tree(again, total)
        return total

    def _at(self, row: Reg, v: int) -> Reg:
        b = self.b
        return b.add(b.add(b.mul(row, b.idx(self.width)), b.idx(v * b.lanes)), b.lane())

    def _clear(self, kind: str, d: DType, array: Shared) -> None:
        b = self.b
        zero = b.const(d, identity(kind, d))

        def clear(i: Reg, _: list[Reg]) -> Sequence[Reg]:
            b.store(array, b.add(i, b.lane()), zero)
            return []
        b.loop(0, LANES * self.width, [], clear, step=b.lanes)

    def _fold(self, kind: str, d: DType, count: int, terms: ColumnTerms, level: int) -> Shared:
        b = self.b
        acc = self._array(d, level)
        self._clear(kind, d, acc)

        def sweep(base: Reg, rows: int) -> None:
            def row(l: Reg, _: list[Reg]) -> Sequence[Reg]:
                k = b.add(base, l)
                for v in range(self.vectors):
                    at = self._at(l, v)
                    b.store(acc, at, fold(b, kind, b.load(acc, at), terms(k, v)))
                return []
            b.loop(0, rows, [], row)

        def block(base: Reg, _: list[Reg]) -> Sequence[Reg]:
            sweep(base, LANES)
            return []
        whole = count // LANES * LANES
        if whole:
            b.loop(0, whole, [], block, step=LANES)
        if count > whole:
            sweep(b.idx(whole), count - whole)
        self._tree("sum" if kind == "dot" else kind, acc)
        return acc

    def _tree(self, kind: str, acc: Shared) -> None:
        b = self.b
        step = LANES // 2
        while step:
            def pair(l: Reg, _: list[Reg], step: int = step) -> Sequence[Reg]:
                for v in range(self.vectors):
                    at = self._at(l, v)
                    b.store(acc, at, combine(b, kind, b.load(acc, at), b.load(acc, self._at(b.add(l, b.idx(step)), v))))
                return []
            b.loop(0, step, [], pair)
            step //= 2
