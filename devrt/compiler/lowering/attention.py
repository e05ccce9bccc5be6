"""Attention without its score matrix, as LIR: out[i] = sum over j of softmax(score(q[i] . k[j]))[j] * v[j].

The bits (exact tier) depend on the shapes, causal_offset and window alone. For each query i, in float32:

    m = -inf, l = 0, O[e] = 0
    for each block of 64 keys (64 t <= j < min(64 t + 64, keys)), t ascending, that holds a key visible to i:
        s[j]  = score(fma chain of q[i, d] * k[j, d] over d = 0, 1, .. from 0); -inf where j is not visible to i
        n     = the largest of m and the s[j] that are no NaN    (a NaN gets into l and O through its p)
        c     = n, or 0 where n is -inf                        a row of -inf so far must not give -inf - -inf
        p[j]  = exp2(s[j] - c)
        a     = exp2(m - c)
        l     = fma(l, a, p[first] + p[first+1] + ..)          the sum in the order of j, from 0
        O[e]  = fma chain of p[j] * v[j, e] over j, from O[e] * a
        m     = n
    out[e] = O[e] * (1 / l)

A query that sees no key at all gets 0 * (1 / 0) = NaN, as softmax of a row of -inf does.

Lanes run along queries, in blocks of a few vectors. S^T and P^T have a row a key, O^T a row an element of v: so rows
of K and V are broadcast straight from memory, maxima and sums need no exchange between lanes, and only Q and the
result are transposed, once a query block. The size of the query block never shows in the bits: key blocks that no
query of it sees are skipped by the loop's bounds, and where a key block is visible to some of its queries only, the
others keep their O (m and l come out unchanged: n = m, a = exp2(0) = 1, the sum is 0; O would not always: -0 + 0 is 0,
and 0 * inf is NaN).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from devrt.compiler import dtypes as dt
from devrt.compiler.lir import Builder, Reg
from devrt.compiler.lowering.contract_plan import Tuning
from devrt.compiler.lowering.transpose import transpose
from devrt.compiler.transcendental import exp2

KEY_BLOCK = 64  # part of the definition of the result

Element = Callable[[Builder, Reg, Reg, Reg, "Reg | None"], Reg]


@dataclass(frozen=True)
class Attention:
    """What to compute. `batch` counts all leading axes, heads included.

    q, k, v: (builder, batch, i or j, d or e, mask) -> float32. k and v are asked for with the same indices in all
             lanes, q with d = base + lane. Where mask is false the value is not used and nothing may be read.
    score:   (builder, batch, i, j, q . k) -> what exp2 takes, log2(e) multiplied in; -inf hides a key. i differs
             between lanes and may lie beyond the last query, whose result is dropped: clamp an address made of it.
    store:   (builder, batch, i, e, value, mask); e = base + lane
    causal_offset: key j is visible to query i only if j <= i + causal_offset; None: no such bound
    window:  with causal_offset c, only if also j > i + c - window: the last `window` keys. None: no such bound
    """

    batch: int
    queries: int
    keys: int
    depth: int
    value_depth: int
    q: Element
    k: Element
    v: Element
    score: Callable[[Builder, Reg, Reg, Reg, Reg], Reg]
    store: Callable[[Builder, Reg, Reg, Reg, Reg, Reg | None], None]
    causal_offset: int | None = None
    window: int | None = None


@dataclass(frozen=True)
class AttentionPlan:
    """Queries in blocks of `vectors` vectors, a block a group; tiles of `rows` keys (or elements of v) x vectors."""

    lanes: int
    vectors: int
    rows: int
    groups: int
    scratch_bytes: int

    def __str__(self) -> str:
        return (f"{self.groups} blocks of {self.vectors * self.lanes} queries, keys by {KEY_BLOCK}, "
                f"tile {self.rows}x{self.vectors} vectors, scratch {self.scratch_bytes / 1024:.0f} KiB")


def plan(a: Attention, tuning: Tuning) -> AttentionPlan:
    """How `a` is cut for the machine `tuning`; changes speed and never bits."""
    vectors = min(2, -(-a.queries // tuning.lanes))
    most = max(1, (tuning.vector_registers - vectors - 1) // vectors)
    # A high tile loads less; what it leaves over is done row by row, where latency shows.
    rows = min(range(1, most + 1), key=lambda r: sum(size / r + size % r * 3 for size in (KEY_BLOCK, a.value_depth)))
    size = vectors * tuning.lanes
    height = _round_up(a.depth, tuning.lanes) + _round_up(a.value_depth, tuning.lanes) + KEY_BLOCK + 3
    scratch = 4 * size * height
    return AttentionPlan(tuning.lanes, vectors, rows, a.batch * -(-a.queries // size), scratch)


def lower(b: Builder, a: Attention, plan: AttentionPlan) -> None:
    """Write the kernel into `b`, which was created with `groups=plan.groups, lanes=plan.lanes`."""
    _Lowering(b, a, plan).run()


class _Lowering:
    def __init__(self, b: Builder, a: Attention, plan: AttentionPlan) -> None:
        self.b, self.a, self.p = b, a, plan
        self.lanes, self.size = plan.lanes, plan.vectors * plan.lanes
        self.lane = b.lane()
        self.value_rows = _round_up(a.value_depth, self.lanes)
        self.qt = b.shared("q_t", dt.float32, _round_up(a.depth, self.lanes) * self.size)
        self.ot = b.shared("o_t", dt.float32, self.value_rows * self.size)
        self.st = b.shared("s_t", dt.float32, KEY_BLOCK * self.size)
        self.most = b.shared("most", dt.float32, self.size)
        self.total = b.shared("total", dt.float32, self.size)
        self.scale = b.shared("scale", dt.float32, self.size)

    def f32(self, value: float) -> Reg:
        return self.b.const(dt.float32, value)

    def at(self, row: Reg, offset: int = 0) -> list[Reg]:
        """The places of the vectors of a row of Q^T, S^T or O^T; `offset` rows further."""
        start = self.b.add(self.b.mul(row, self.b.idx(self.size)), self.b.idx(offset * self.size))
        return [self.b.add(self.b.add(start, self.b.idx(v * self.lanes)), self.lane) for v in range(self.p.vectors)]

    def each(self, lo: Reg, hi: Reg, body: Callable[[Reg], None], step: int = 1) -> None:
        if self.b.constant_value(lo) is not None and self.b.constant_value(lo) == self.b.constant_value(hi):
            return

        def inner(i: Reg, _: list[Reg]) -> list[Reg]:
            body(i)
            return []
        self.b.loop(lo, hi, [], inner, step=step)

    # ----- structure

    def run(self) -> None:
        b, a = self.b, self.a
        blocks = b.idx(-(-a.queries // self.size))
        g = b.group()
        batch = b.div(g, blocks)
        # The last query block first: under a causal bound it is the longest, and short ones at the end balance.
        block = b.sub(b.sub(blocks, b.idx(1)), b.rem(g, blocks))
        first = b.mul(block, b.idx(self.size))
        lane_queries = [b.add(b.add(first, b.idx(v * self.lanes)), self.lane) for v in range(self.p.vectors)]
        self.pack_queries(batch, first)
        for at in self.at(b.idx(0)):
            b.store(self.most, at, self.f32(float("-inf")))
            b.store(self.total, at, self.f32(0.0))
        self.each(b.idx(0), b.idx(self.value_rows), self.clear)
        lo, hi = self.key_blocks(first)
        self.each(lo, hi, lambda t: self.key_block(batch, lane_queries, t))
        self.finish(batch, first)

    def clear(self, e: Reg) -> None:
        for at in self.at(e):
            self.b.store(self.ot, at, self.f32(0.0))

    def key_blocks(self, first: Reg) -> tuple[Reg, Reg]:
        """The key blocks that some query of the block at `first` sees."""
        b, a = self.b, self.a
        lo, hi = b.idx(0), b.idx(-(-a.keys // KEY_BLOCK))
        if a.causal_offset is not None:
            last = b.min(b.add(first, b.idx(self.size - 1)), b.idx(a.queries - 1))
            seen = b.max(b.add(last, b.idx(a.causal_offset + 1)), b.idx(0))
            hi = b.min(hi, b.div(b.add(seen, b.idx(KEY_BLOCK - 1)), b.idx(KEY_BLOCK)))
            if a.window is not None:
                nearest = b.max(b.add(first, b.idx(a.causal_offset - a.window + 1)), b.idx(0))
                lo = b.div(nearest, b.idx(KEY_BLOCK))
        return lo, hi

    def pack_queries(self, batch: Reg, first: Reg) -> None:
        """Q^T: read along d, a square of queries at a time. Queries beyond the last are 0."""
        b, a, lanes = self.b, self.a, self.lanes

        def square(d: Reg) -> None:
            def some(v: Reg) -> None:
                inside = b.lt(b.add(d, self.lane), b.idx(a.depth)) if a.depth % lanes else None
                rows = []
                for r in range(lanes):
                    i = b.add(b.add(first, v), b.idx(r))
                    mask = inside
                    if a.queries % self.size:
                        real = b.lt(i, b.idx(a.queries))
                        mask = real if mask is None else b.and_(mask, real)
                    rows.append(a.q(b, batch, i, b.add(d, self.lane), mask))
                for r, value in enumerate(transpose(b, rows, self.lane)):
                    row = b.mul(b.add(d, b.idx(r)), b.idx(self.size))
                    b.store(self.qt, b.add(b.add(row, v), self.lane), value)
            self.each(b.idx(0), b.idx(self.size), some, step=lanes)
        self.each(b.idx(0), b.idx(a.depth), square, step=lanes)

    # ----- one block of keys

    def key_block(self, batch: Reg, queries: list[Reg], t: Reg) -> None:
        b, a = self.b, self.a
        j0 = b.mul(t, b.idx(KEY_BLOCK))
        count = b.idx(KEY_BLOCK) if a.keys % KEY_BLOCK == 0 else b.min(b.idx(KEY_BLOCK), b.sub(b.idx(a.keys), j0))
        most = self.scores(batch, queries, j0, count)
        for at, m in zip(self.at(b.idx(0)), most, strict=True):
            b.store(self.scale, at, m)
        self.each(b.idx(0), b.idx(self.size), lambda v: self.softmax(b.add(v, self.lane), count), step=self.lanes)
        self.values(batch, self.partly_visible(queries, j0), j0, count)

    def scores(self, batch: Reg, queries: list[Reg], j0: Reg, count: Reg) -> list[Reg]:
        """S^T for this key block; returns the largest score of each query."""
        b, a, rows = self.b, self.a, self.p.rows

        def tile(j: Reg, height: int, most: list[Reg]) -> list[Reg]:
            def one_d(d: Reg, acc: list[Reg]) -> list[Reg]:
                q = [b.load(self.qt, at) for at in self.at(d)]
                out = []
                for r in range(height):
                    k = a.k(b, batch, b.add(b.add(j0, j), b.idx(r)), d, None)
                    out += [b.fma(k, x, c) for x, c in zip(q, acc[r * len(q):], strict=False)]
                return out
            zero = [self.f32(0.0)] * (height * self.p.vectors)
            for at, value in zip(self.places(j, height), b.loop(0, a.depth, zero, one_d), strict=True):
                b.store(self.st, at, value)

            # The score is written once a vector of a row, not once an accumulator: the tile passes through L1.
            def one_row(r: Reg, most: list[Reg]) -> list[Reg]:
                row = b.add(j, r)
                out = []
                for at, i, m in zip(self.at(row), queries, most, strict=True):
                    s = self.visible(i, b.add(j0, row), a.score(b, batch, i, b.add(j0, row), b.load(self.st, at)))
                    b.store(self.st, at, s)
                    out.append(self.larger(m, s))
                return out
            return b.loop(0, height, most, one_row)

        full = b.mul(b.div(count, b.idx(rows)), b.idx(rows))
        least = [self.f32(float("-inf"))] * self.p.vectors
        most = b.loop(b.idx(0), full, least, lambda j, m: tile(j, rows, m), step=rows)
        if a.keys % KEY_BLOCK % rows or KEY_BLOCK % rows:
            most = b.loop(full, count, most, lambda j, m: tile(j, 1, m))
        return most

    def places(self, row: Reg, height: int) -> list[Reg]:
        return [at for r in range(height) for at in self.at(row, r)]

    def visible(self, i: Reg, j: Reg, s: Reg) -> Reg:
        b, a = self.b, self.a
        if a.causal_offset is None:
            return s
        i, j = b.cast(i, dt.int32), b.cast(j, dt.int32)  # half the registers of an index, and both are small
        hidden = b.lt(b.add(i, b.const(dt.int32, a.causal_offset)), j)
        if a.window is not None:
            hidden = b.or_(hidden, b.le(j, b.add(i, b.const(dt.int32, a.causal_offset - a.window))))
        return b.select(hidden, self.f32(float("-inf")), s)

    def softmax(self, i: Reg, count: Reg) -> None:
        """For one vector of queries: P^T over S^T, and m, l. `scale` holds the block's maximum, and then a."""
        b = self.b
        before = b.load(self.most, i)
        after = self.larger(before, b.load(self.scale, i))
        base = b.select(b.eq(after, self.f32(float("-inf"))), self.f32(0.0), after)

        def one_key(j: Reg, total: list[Reg]) -> list[Reg]:
            at = b.add(b.mul(j, b.idx(self.size)), i)
            p = exp2(b, b.sub(b.load(self.st, at), base))
            b.store(self.st, at, p)
            return [b.add(total[0], p)]
        total = b.loop(b.idx(0), count, [self.f32(0.0)], one_key)[0]
        scale = exp2(b, b.sub(before, base))
        b.store(self.most, i, after)
        b.store(self.scale, i, scale)
        b.store(self.total, i, b.fma(b.load(self.total, i), scale, total))

    def larger(self, m: Reg, x: Reg) -> Reg:
        return self.b.select(self.b.lt(m, x), x, m)

    def partly_visible(self, queries: list[Reg], j0: Reg) -> list[Reg] | None:
        """Which queries see a key of this block; None where those of a query block always agree."""
        b, a = self.b, self.a
        if a.causal_offset is None:
            return None
        if a.window is None and KEY_BLOCK % self.size == 0 and a.causal_offset % self.size == 0:
            return None
        out = []
        for i in queries:
            last = b.add(i, b.idx(a.causal_offset))  # the last key that i sees
            sees = b.le(j0, last)
            if a.window is not None:
                end = b.min(b.add(j0, b.idx(KEY_BLOCK)), b.idx(a.keys))
                sees = b.and_(sees, b.lt(b.sub(last, b.idx(a.window)), b.sub(end, b.idx(1))))
            out.append(sees)
        return out

    def values(self, batch: Reg, sees: list[Reg] | None, j0: Reg, count: Reg) -> None:
        """O^T = O^T * scale + V^T P^T."""
        b, a = self.b, self.a

        scales = [b.load(self.scale, at) for at in self.at(b.idx(0))]

        def tile(e: Reg, height: int) -> None:
            at = self.places(e, height)
            before = [b.load(self.ot, x) for x in at]

            def one_key(j: Reg, acc: list[Reg]) -> list[Reg]:
                p = [b.load(self.st, x) for x in self.at(j)]
                out = []
                for r in range(height):
                    v = a.v(b, batch, b.add(j0, j), b.add(e, b.idx(r)), None)
                    out += [b.fma(x, v, c) for x, c in zip(p, acc[r * len(p):], strict=False)]
                return out
            scaled = [b.mul(x, scales[n % len(scales)]) for n, x in enumerate(before)]
            after = b.loop(b.idx(0), count, scaled, one_key)
            for n, (x, old, new) in enumerate(zip(at, before, after, strict=True)):
                b.store(self.ot, x, new if sees is None else b.select(sees[n % len(sees)], new, old))
        full = a.value_depth // self.p.rows * self.p.rows
        self.each(b.idx(0), b.idx(full), lambda e: tile(e, self.p.rows), step=self.p.rows)
        self.each(b.idx(full), b.idx(a.value_depth), lambda e: tile(e, 1))

    # ----- the end

    def finish(self, batch: Reg, first: Reg) -> None:
        """out = O / l: scaled, turned square by square, stored along e."""
        b, a, lanes = self.b, self.a, self.lanes
        for at in self.at(b.idx(0)):
            b.store(self.scale, at, b.div(self.f32(1.0), b.load(self.total, at)))

        def square(e: Reg) -> None:
            def some(v: Reg) -> None:
                factor = b.load(self.scale, b.add(v, self.lane))
                rows = [b.mul(b.load(self.ot, b.add(b.add(b.mul(b.add(e, b.idx(r)), b.idx(self.size)), v), self.lane)),
                              factor) for r in range(lanes)]
                inside = b.lt(b.add(e, self.lane), b.idx(a.value_depth)) if a.value_depth % lanes else None
                for r, value in enumerate(transpose(b, rows, self.lane)):
                    i = b.add(b.add(first, v), b.idx(r))
                    mask = inside
                    if a.queries % self.size:
                        real = b.lt(i, b.idx(a.queries))
                        mask = real if mask is None else b.and_(mask, real)
                    a.store(b, batch, i, b.add(e, self.lane), value, mask)
            self.each(b.idx(0), b.idx(self.size), some, step=lanes)
        self.each(b.idx(0), b.idx(a.value_depth), square, step=lanes)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
