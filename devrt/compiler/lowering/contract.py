"""Contraction: C[batch, m, n] = sum over k of A[batch, m, k] * B[batch, k, n], as LIR.

The bits (exact tier): every output element is acc = 0; for k = 0 .. K-1: acc = fma(a[m, k], b[k, n], acc), integers
with mul and add. Tiling never shows: each accumulator sees its k in that order, and where K is cut into blocks the
partial sums rest in scratch memory at full precision between them.

The shape of the code, from the outside in:

    group      a rectangle of C of one batch element (or several small batch elements)
    K block    B[k block, the group's columns] packed into panels of one register tile's width, to stay in L2
    strip      A[a register tile's rows, k block] packed, to stay in L1
    tile       rows x vectors accumulators in registers; lanes run along n, a's elements are broadcast
    k          one vector of b a column vector, one scalar of a a row

Shapes are static, so a ragged edge is one more, smaller tile: fewer rows, or fewer vectors with the last one masked.
Packing also runs the prologue (conversion, element-wise work) once an element instead of once a use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Builder, Reg, Shared
from devrt.compiler.lowering.contract_plan import Axis, ContractionPlan, Shape, Tuning, plan_shape
from devrt.compiler.lowering.transpose import transpose

_UNROLLED_EPILOGUE = 4  # instructions; a longer one is not repeated for every accumulator

Operand = Callable[[Builder, Reg, Reg, Reg, "Reg | None"], Reg]
Store = Callable[[Builder, Reg, Reg, Reg, Reg, "Reg | None"], None]


@dataclass(frozen=True)
class Contraction:
    """What to compute.

    dtype:   of the accumulator: float32, float64, int32, int64
    a, b:    (builder, batch, m, k, mask) and (builder, batch, k, n, mask) -> the value as `dtype`, prologue included.
             At most one of the two indices differs between lanes, in steps of 1. Where mask is false the value is
             not used and nothing may be read.
    a_contiguous: "k", "m" or "": the index along which neighbouring calls touch neighbouring memory;
    b_contiguous: "n", "k" or ""
    a_work, b_work, store_work: arithmetic instructions of prologue and epilogue, beside load and store; 0 where plain
    store:   (builder, batch, m, n, value, mask), epilogue included; m is the same in all lanes, n is base + lane
    """

    batch: int
    m: int
    n: int
    k: int
    dtype: DType
    a: Operand
    b: Operand
    a_contiguous: str
    b_contiguous: str
    store: Store
    a_work: int = 0
    b_work: int = 0
    store_work: int = 0


def plan(c: Contraction, tuning: Tuning) -> ContractionPlan:
    """How `c` is cut for the machine `tuning`; changes speed and never bits. `str()` of it is one readable line."""
    return plan_shape(Shape(c.batch, c.m, c.n, c.k, c.dtype.bits, c.dtype.is_float,
                            c.a_contiguous, c.b_contiguous, c.a_work, c.b_work), tuning)


def lower(b: Builder, c: Contraction, plan: ContractionPlan) -> None:
    """Write the contraction into `b`, which was created with `groups=plan.groups, lanes=plan.lanes`."""
    _Lowering(b, c, plan).run()


@dataclass(frozen=True)
class _Piece:
    """Tiles lo..hi of an axis, each `size` elements, `first` the group's first tile."""

    lo: Reg
    hi: Reg
    size: int
    first: Reg


class _Lowering:
    def __init__(self, b: Builder, c: Contraction, plan: ContractionPlan) -> None:
        self.b, self.c, self.p = b, c, plan
        self.lane = b.lane()
        tiles = plan.m.most * plan.n.most if plan.k_blocks > 1 else 1
        self.partial: Shared | None = None
        if plan.k_blocks > 1 or c.store_work > _UNROLLED_EPILOGUE:
            self.partial = b.shared("partial", c.dtype, tiles * plan.m.tile * plan.n.tile)
        # One vector of padding a row of A, and a panel of B: a power of two apart they would share few sets of L1.
        self.a_row, self.a_step = (1, _round_up(plan.m.tile, plan.lanes)) if c.a_contiguous == "m" \
            else (_round_up(plan.k_block, plan.lanes) + plan.lanes, 1)
        self.panel = plan.k_block * plan.n.tile + plan.lanes
        self.a_strip: Shared | None = None
        self.b_block: Shared | None = None
        if plan.pack_a:
            self.a_strip = b.shared("a_strip", c.dtype, plan.m.tile * self.a_row if self.a_step == 1
                                    else plan.k_block * self.a_step)
        if plan.pack_b:
            self.b_block = b.shared("b_block", c.dtype, plan.n.most * self.panel)

    # ----- structure

    def run(self) -> None:
        b, p = self.b, self.p
        g = b.group()
        gn, rest = b.rem(g, b.idx(p.n.parts)), b.div(g, b.idx(p.n.parts))
        gm, gb = b.rem(rest, b.idx(p.m.parts)), b.div(rest, b.idx(p.m.parts))
        lo, hi = self.span(self.c.batch, p.batch_parts, gb)
        ms, ns = list(self.pieces(p.m, gm)), list(self.pieces(p.n, gn))

        def each_batch(batch: Reg) -> None:
            self.each(b.idx(0), b.idx(p.k_blocks), lambda block: self.k_block(batch, ms, ns, block))

        self.each(lo, hi, each_batch)

    def k_block(self, batch: Reg, ms: list[_Piece], ns: list[_Piece], block: Reg) -> None:
        b, p = self.b, self.p
        k0 = b.mul(block, b.idx(p.k_block))
        length = b.idx(p.k_block) if self.c.k % p.k_block == 0 and self.c.k else \
            b.min(b.idx(p.k_block), b.sub(b.idx(self.c.k), k0))
        if p.pack_b:
            b.barrier()  # the last reader of what packing overwrites is done
            for n in ns:
                self.pack_b(batch, n, k0, length)
            b.barrier()
        for m in ms:
            def strip(i: Reg, m: _Piece = m) -> None:
                m0 = b.mul(i, b.idx(p.m.tile))
                if p.pack_a:
                    b.barrier()
                    self.pack_a(batch, m0, m.size, k0, length)
                    b.barrier()
                for n in ns:
                    def tile(j: Reg, n: _Piece = n) -> None:
                        column = b.sub(j, n.first)
                        place = b.add(b.mul(b.sub(i, m.first), b.idx(p.n.most)), column)
                        n0 = b.mul(j, b.idx(p.n.tile))
                        self.tile(batch, m0, m.size, n0, n.size, k0, length, block, column, place)
                    self.each(n.lo, n.hi, tile)
            self.each(m.lo, m.hi, strip)

    def each(self, lo: Reg, hi: Reg, body: Callable[[Reg], None]) -> None:
        """body(i) for i in lo..hi, without a loop where the trip is known to be one."""
        a, z = self.b.constant_value(lo), self.b.constant_value(hi)
        if a is not None and z is not None and z - a == 1:
            body(lo)
            return

        def inner(i: Reg, _: list[Reg]) -> list[Reg]:
            body(i)
            return []

        if a is None or z is None or z > a:
            self.b.loop(lo, hi, [], inner)

    def span(self, total: int, parts: int, part: Reg) -> tuple[Reg, Reg]:
        """The part-th of `parts` nearly equal runs of 0..total."""
        b = self.b
        if parts == 1:
            return b.idx(0), b.idx(total)
        lo = b.div(b.mul(part, b.idx(total)), b.idx(parts))
        return lo, b.div(b.mul(b.add(part, b.idx(1)), b.idx(total)), b.idx(parts))

    def pieces(self, axis: Axis, part: Reg) -> Iterator[_Piece]:
        """The group's share of an axis: its full tiles, and for the last group the smaller one at the edge."""
        b = self.b
        lo, hi = self.span(axis.tiles, axis.parts, part)
        if axis.full:
            yield _Piece(lo, b.min(hi, b.idx(axis.full)) if axis.rest else hi, axis.tile, lo)
        if axis.rest:
            last = b.eq(part, b.idx(axis.parts - 1))
            end = b.idx(axis.full + 1) if axis.parts == 1 else \
                b.add(b.idx(axis.full), b.select(last, b.idx(1), b.idx(0)))
            yield _Piece(b.idx(axis.full), end, axis.rest, lo)

    # ----- packing

    def along(self, base: Reg, offset: int = 0) -> Reg:
        """base + offset + lane"""
        return self.b.add(self.b.add(base, self.b.idx(offset)), self.lane)

    def columns(self, size: int) -> list[Reg | None]:
        """A mask for each vector of a tile `size` columns wide; None where all its lanes are inside."""
        lanes, b = self.p.lanes, self.b
        return [None if size - v >= lanes else b.lt(self.lane, b.idx(size - v)) for v in range(0, size, lanes)]

    def pack_a(self, batch: Reg, m0: Reg, rows: int, k0: Reg, length: Reg) -> None:
        b, c, lanes = self.b, self.c, self.p.lanes
        assert self.a_strip is not None
        strip = self.a_strip
        if self.a_step > 1:
            def one_k(k: Reg) -> None:
                for v, mask in enumerate(self.columns(rows)):
                    value = c.a(b, batch, self.along(m0, v * lanes), b.add(k0, k), mask)
                    b.store(strip, self.along(b.mul(k, b.idx(self.a_step)), v * lanes), value)
            self.each(b.idx(0), length, one_k)
            return

        def one_row(r: Reg) -> None:
            def some_k(k: Reg, _: list[Reg]) -> list[Reg]:
                at = self.along(k)
                mask = b.lt(at, length) if c.k % lanes else None
                value = c.a(b, batch, b.add(m0, r), b.add(k0, at), mask)
                b.store(strip, self.along(b.add(b.mul(r, b.idx(self.a_row)), k)), value)
                return []
            b.loop(b.idx(0), length, [], some_k, step=lanes)
        self.each(b.idx(0), b.idx(rows), one_row)

    def pack_b(self, batch: Reg, n: _Piece, k0: Reg, length: Reg) -> None:
        """Columns of panel j, k: b_block[(j - first) * panel + k * tile + column]."""
        b, c, p = self.b, self.c, self.p
        assert self.b_block is not None
        block = self.b_block
        if c.b_contiguous == "k":
            self.each(n.lo, n.hi, lambda j: self.pack_b_transposed(block, batch, j, n, k0, length))
            return

        def one_k(k: Reg) -> None:
            def panel(j: Reg) -> None:
                row = b.add(b.mul(b.sub(j, n.first), b.idx(self.panel)), b.mul(k, b.idx(p.n.tile)))
                n0 = b.mul(j, b.idx(p.n.tile))
                for v, mask in enumerate(self.columns(n.size)):
                    value = c.b(b, batch, b.add(k0, k), self.along(n0, v * p.lanes), mask)
                    b.store(block, self.along(row, v * p.lanes), value)
            self.each(n.lo, n.hi, panel)
        self.each(b.idx(0), length, one_k)

    def pack_b_transposed(self, block: Shared, batch: Reg, j: Reg, n: _Piece, k0: Reg, length: Reg) -> None:
        """Read along k, `lanes` columns at a time, and turn each square in registers."""
        b, c, p = self.b, self.c, self.p
        base = b.mul(b.sub(j, n.first), b.idx(self.panel))
        n0 = b.mul(j, b.idx(p.n.tile))
        ragged = n.size % p.lanes != 0

        def squares(v: Reg) -> None:
            def square(k: Reg, _: list[Reg]) -> list[Reg]:
                at = self.along(k)
                inside = b.lt(at, length) if c.k % p.lanes else None
                rows = []
                for r in range(p.lanes):
                    column = b.add(b.mul(v, b.idx(p.lanes)), b.idx(r))
                    mask = inside
                    if ragged:
                        real = b.lt(column, b.idx(n.size))
                        mask = real if inside is None else b.and_(inside, real)
                    rows.append(c.b(b, batch, b.add(k0, at), b.add(n0, column), mask))
                for r, value in enumerate(transpose(b, rows, self.lane)):
                    to = b.add(base, b.mul(b.add(k, b.idx(r)), b.idx(p.n.tile)))
                    b.store(block, self.along(b.add(to, b.mul(v, b.idx(p.lanes)))), value)
                return []
            b.loop(b.idx(0), length, [], square, step=p.lanes)
        self.each(b.idx(0), b.idx(-(-n.size // p.lanes)), squares)

    # ----- the register tile

    def tile(self, batch: Reg, m0: Reg, rows: int, n0: Reg, width: int, k0: Reg, length: Reg, block: Reg,
             column: Reg, place: Reg) -> None:
        """rows x width elements of C, one K block: partial sums in, partial sums or results out."""
        b, c, p = self.b, self.c, self.p
        masks = self.columns(width)
        panel = b.mul(column, b.idx(self.panel))

        def b_value(k: Reg, v: int) -> Reg:
            if self.b_block is not None:
                return b.load(self.b_block, self.along(b.add(panel, b.mul(k, b.idx(p.n.tile))), v * p.lanes))
            return c.b(b, batch, b.add(k0, k), self.along(n0, v * p.lanes), masks[v])

        def a_value(k: Reg, r: int) -> Reg:
            if self.a_strip is not None:
                return b.load(self.a_strip, b.add(b.mul(k, b.idx(self.a_step)), b.idx(r * self.a_row)))
            return c.a(b, batch, b.add(m0, b.idx(r)), b.add(k0, k), None)

        def one_k(k: Reg, acc: list[Reg]) -> list[Reg]:
            values = [b_value(k, v) for v in range(len(masks))]
            out = []
            for r in range(rows):
                a = a_value(k, r)
                for v, value in enumerate(values):
                    out.append(self.accumulate(a, value, acc[r * len(masks) + v]))
            return out

        def finish(r: Reg, values: list[Reg]) -> None:
            for v, (value, mask) in enumerate(zip(values, masks, strict=True)):
                c.store(b, batch, b.add(m0, r), self.along(n0, v * p.lanes), value, mask)

        zero = [b.const(c.dtype, 0)] * (rows * len(masks))
        partial = self.partial
        if partial is None:
            done = b.loop(b.idx(0), length, zero, one_k)
            for r in range(rows):
                finish(b.idx(r), done[r * len(masks):(r + 1) * len(masks)])
            return

        rest = b.mul(place, b.idx(p.m.tile * p.n.tile)) if p.k_blocks > 1 else b.idx(0)
        places = [self.along(rest, r * p.n.tile + v * p.lanes) for r in range(rows) for v in range(len(masks))]
        if p.k_blocks > 1:
            resumed = b.lt(b.idx(0), block)  # a load whose mask is false reads 0
            zero = [b.load(partial, at, resumed) for at in places]
        for at, value in zip(places, b.loop(b.idx(0), length, zero, one_k), strict=True):
            b.store(partial, at, value)

        # The results pass through memory (L1) so that the epilogue is written once a vector, not once an accumulator.
        def reload(r: Reg) -> None:
            row = b.add(rest, b.mul(r, b.idx(p.n.tile)))
            finish(r, [b.load(partial, self.along(row, v * p.lanes)) for v in range(len(masks))])

        end = b.idx(rows) if p.k_blocks == 1 else \
            b.select(b.eq(block, b.idx(p.k_blocks - 1)), b.idx(rows), b.idx(0))
        self.each(b.idx(0), end, reload)

    def accumulate(self, a: Reg, x: Reg, acc: Reg) -> Reg:
        return self.b.fma(a, x, acc) if self.c.dtype.is_float else self.b.add(acc, self.b.mul(a, x))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
