"""Contraction on a GPU: C[batch, m, n] = sum over k of A[batch, m, k] * B[batch, k, n], as LIR, with the bits of contract.py.

    group   a rectangle of C in the registers of a wave, or of several, which share what is brought. Lanes form a grid; a lane
            has runs of RUN neighbouring rows and columns, as many lanes apart, so that a wave reads whole lines of shared memory,
            RUN elements a lane at once
    step    a few k: A's rows and B's columns in shared memory, k by k. While one step is computed the next one is on its way from
            memory to registers; it goes to the other half of shared memory, so that a step needs one barrier
    k       every lane multiplies its rows by its columns

Rows beyond m and columns beyond n repeat the last one, whose sums nobody stores. The last k are a shorter step: nothing is added
that is not in the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from devrt.compiler.lir import Builder, Reg
from devrt.compiler.lowering.contract import Contraction
from devrt.compiler.lowering.contract_plan import Tuning

RUN = 4  # neighbouring rows or columns of a lane: 16 bytes of float32
_STEP = 8  # of k
_PADDING = 4  # elements between the k in shared memory, so that lanes that walk down k use different banks
_LEAST = 16  # rows and columns from which on a rectangle is better than rows of vectors
_SIDES = (4, 8, 16)  # rows or columns of a lane
_WAVES = 4  # of a group that shares what it brings
_SUMS = 0.8  # of a lane's registers
_UNROLLED_EPILOGUE = 4  # instructions; a longer one is not repeated for every accumulator
_SHARED_CYCLES = 2.0  # to read an element of shared memory
_MEMORY_CYCLES = 4.0  # to bring an element from memory to shared memory


@dataclass(frozen=True)
class Tile:
    """`rows` x `columns` accumulators a lane; lanes form a grid of `down` x `across`. Sizes of C in elements."""

    rows: int
    columns: int
    down: int
    across: int

    @property
    def height(self) -> int:
        return self.rows * self.down

    @property
    def width(self) -> int:
        return self.columns * self.across

    @property
    def lanes(self) -> int:
        return self.down * self.across

    def groups(self, c: Contraction) -> int:
        return c.batch * _over(c.m, self.height) * _over(c.n, self.width)


def plan(c: Contraction, t: Tuning) -> Tile | None:
    """The tile that is done soonest, None where rows of vectors are better: few rows or columns, or no GPU."""
    if not t.gathers or min(c.m, c.n) < _LEAST or c.k == 0 or c.batch == 0:
        return None
    words = c.dtype.bits // 32
    found = [tile for tile in _tiles(t) if tile.rows * tile.columns * words <= _SUMS * t.vector_registers
             and _shared_bytes(c, tile) <= min(t.scratch_bytes * tile.lanes // t.lanes, t.group_bytes)]
    return min(found, key=lambda tile: _cost(c, t, tile, words), default=None)


def _tiles(t: Tuning) -> Iterator[Tile]:
    for lanes in {t.lanes, t.lanes * min(t.waves, _WAVES)}:
        half = (lanes.bit_length() - 1) // 2
        for down in {1 << half, lanes >> half}:
            for rows in _SIDES:
                for columns in _SIDES:
                    yield Tile(rows, columns, down, lanes // down)


def _cost(c: Contraction, t: Tuning, tile: Tile, words: int) -> float:
    """Cycles of a unit until the last group is done; what does not fit evenly is done all the same."""
    a_k = tile.rows * tile.columns * words + words * (_SHARED_CYCLES * (tile.rows + tile.columns)
                                                      + _MEMORY_CYCLES * (tile.height + tile.width) / tile.lanes)
    at_once = max(1, t.units * t.lanes // tile.lanes)
    return _over(tile.groups(c), at_once) * (a_k * c.k + 200.0)


def _shared_bytes(c: Contraction, tile: Tile) -> int:
    sums = tile.rows * tile.columns * tile.lanes if c.store_work > _UNROLLED_EPILOGUE else 0
    return c.dtype.bits // 8 * (2 * _STEP * (tile.height + tile.width + 2 * _PADDING) + sums)


def lower(b: Builder, c: Contraction, tile: Tile) -> None:
    """Write the contraction into `b`, which was created with `groups=tile.groups(c)` and the tile's lanes."""
    _Lowering(b, c, tile).run()


@dataclass(frozen=True)
class _Side:
    """One operand: `size` of its rows (columns of B) in a group, `limit` in all, `base` the group's first; a row of `pitch`
    elements for each k in shared memory, which begins at `place`. `along_k`: neighbouring k are neighbours in memory."""

    size: int
    limit: int
    base: Reg
    pitch: int
    place: int
    along_k: bool
    value: Callable[[Reg, Reg], Reg]  # (row, k)


class _Lowering:
    def __init__(self, b: Builder, c: Contraction, tile: Tile) -> None:
        self.b, self.c, self.tile = b, c, tile
        self.lane, self.lanes = b.lane(), tile.lanes
        a_pitch, b_pitch = tile.height + _PADDING, tile.width + _PADDING
        self.half = _STEP * (a_pitch + b_pitch)
        self.shared = b.shared("step", c.dtype, 2 * self.half)
        self.staged = c.store_work > _UNROLLED_EPILOGUE
        if self.staged:
            self.kept = b.shared("sums", c.dtype, tile.rows * tile.columns * self.lanes)
        group = b.group()
        across, down = b.idx(_over(c.n, tile.width)), b.idx(_over(c.m, tile.height))
        rest = b.div(group, across)
        self.n0, self.m0 = b.mul(b.rem(group, across), b.idx(tile.width)), b.mul(b.rem(rest, down), b.idx(tile.height))
        self.batch = b.div(rest, down)
        self.sides = (
            _Side(tile.height, c.m, self.m0, a_pitch, 0, c.a_contiguous != "m",
                  lambda m, k: c.a(b, self.batch, m, k, None)),
            _Side(tile.width, c.n, self.n0, b_pitch, _STEP * a_pitch, c.b_contiguous == "k",
                  lambda n, k: c.b(b, self.batch, k, n, None)))
        # The first of a lane's rows and columns; runs of them are a run of every lane apart.
        self.row = b.mul(b.div(self.lane, b.idx(tile.across)), b.idx(RUN))
        self.column = b.mul(b.rem(self.lane, b.idx(tile.across)), b.idx(RUN))

    def run(self) -> None:
        b, c = self.b, self.c
        steps, rest = divmod(c.k, _STEP)
        sums = [b.const(c.dtype, 0)] * (self.tile.rows * self.tile.columns)
        counts = [_STEP] * steps + [rest] * bool(rest)
        self.keep(self.bring(b.idx(0), counts[0]), b.idx(0))
        b.barrier()
        turns = max(0, steps - 1)  # those behind which a whole step comes

        def turn(i: Reg, carried: list[Reg]) -> list[Reg]:
            at = b.and_(i, b.idx(1))
            return self.turn(b.mul(b.add(i, b.idx(1)), b.idx(_STEP)), _STEP, b.mul(at, b.idx(self.half)),
                             b.mul(b.xor(at, b.idx(1)), b.idx(self.half)), carried)
        if turns:
            sums = b.loop(0, turns, sums, turn)
        if len(counts) > turns + 1:
            here = turns & 1
            sums = self.turn(b.idx(steps * _STEP), rest, b.idx(here * self.half), b.idx((1 - here) * self.half), sums)
        last = len(counts) - 1
        self.finish(self.multiply(b.idx((last & 1) * self.half), counts[last], sums))

    def turn(self, k0: Reg, count: int, here: Reg, there: Reg, sums: list[Reg]) -> list[Reg]:
        """The sums with the step at `here` added, while the one of `count` k from k0 on is brought `there`."""
        coming = self.bring(k0, count)
        sums = self.multiply(here, _STEP, sums)
        self.keep(coming, there)
        self.b.barrier()
        return sums

    # ----- operands

    def bring(self, k0: Reg, count: int) -> list[tuple[Reg, Reg, Reg | None]]:
        """(place in the step, element, mask) of what this lane brings of `count` k from k0 on."""
        return [found for side in self.sides for found in self.brought(side, k0, count)]

    def brought(self, side: _Side, k0: Reg, count: int) -> Iterator[tuple[Reg, Reg, Reg | None]]:
        """Lanes lie side by side along k or along the rows, whichever lies so in memory; each brings runs of neighbours."""
        b = self.b
        inner, outer = (count, side.size) if side.along_k else (side.size, count)
        run = max(r for r in (1, 2, RUN) if inner % r == 0)
        near = inner // run
        total = near * outer
        for first in range(0, total, self.lanes):
            at = b.add(self.lane, b.idx(first))
            mask = None
            if first + self.lanes > total:
                mask = b.lt(at, b.idx(total))
                at = b.min(at, b.idx(total - 1))
            far, start = b.div(at, b.idx(near)), b.mul(b.rem(at, b.idx(near)), b.idx(run))
            for e in range(run):
                here = b.add(start, b.idx(e))
                row, k = (far, here) if side.along_k else (here, far)
                position = b.add(side.base, row)
                if side.limit % side.size:
                    position = b.min(position, b.idx(side.limit - 1))
                place = b.add(b.add(b.mul(k, b.idx(side.pitch)), row), b.idx(side.place))
                yield place, side.value(position, b.add(k0, k)), mask

    def keep(self, brought: list[tuple[Reg, Reg, Reg | None]], half: Reg) -> None:
        for place, value, mask in brought:
            self.b.store(self.shared, self.b.add(place, half), value, mask)

    # ----- sums

    def multiply(self, half: Reg, count: int, sums: list[Reg]) -> list[Reg]:
        b, tile = self.b, self.tile
        out = list(sums)
        for k in range(count):
            rows = self.read(half, self.sides[0], k, self.row, tile.rows, tile.down)
            columns = self.read(half, self.sides[1], k, self.column, tile.columns, tile.across)
            for i, x in enumerate(rows):
                for j, y in enumerate(columns):
                    n = i * tile.columns + j
                    out[n] = b.fma(x, y, out[n]) if self.c.dtype.is_float else b.add(out[n], b.mul(x, y))
        return out

    def read(self, half: Reg, side: _Side, k: int, first: Reg, count: int, lanes: int) -> list[Reg]:
        """A lane's `count` elements of a side for one k."""
        b = self.b
        start = b.add(half, first)
        return [b.load(self.shared, b.add(start, b.idx(side.place + k * side.pitch + n // RUN * RUN * lanes + n % RUN)))
                for n in range(count)]

    # ----- results

    def finish(self, sums: list[Reg]) -> None:
        """Store what a lane has. A long epilogue is a loop, the sums in shared memory, each read by the lane that wrote it."""
        b, lanes = self.b, self.lanes
        if not self.staged:
            for n, value in enumerate(sums):
                i, j = divmod(n, self.tile.columns)
                self.put(b.idx(i), b.idx(j), value)
            return
        for n, value in enumerate(sums):
            b.store(self.kept, b.add(b.idx(n * lanes), self.lane), value)

        def one(n: Reg, _: list[Reg]) -> list[Reg]:
            value = b.load(self.kept, b.add(b.mul(n, b.idx(lanes)), self.lane))
            self.put(b.div(n, b.idx(self.tile.columns)), b.rem(n, b.idx(self.tile.columns)), value)
            return []
        b.loop(0, len(sums), [], one)

    def put(self, i: Reg, j: Reg, value: Reg) -> None:
        """Store row i, column j of this lane."""
        b, c, tile = self.b, self.c, self.tile
        m = b.add(b.add(self.m0, self.row), self.apart(i, tile.down))
        n = b.add(b.add(self.n0, self.column), self.apart(j, tile.across))
        tests = [b.lt(at, b.idx(size)) for at, size, block in ((m, c.m, tile.height), (n, c.n, tile.width)) if size % block]
        c.store(b, self.batch, m, n, value, b.and_(*tests) if len(tests) == 2 else tests[0] if tests else None)

    def apart(self, n: Reg, lanes: int) -> Reg:
        """How far the n-th of a lane's rows (columns) is behind its first."""
        b = self.b
        return b.add(b.mul(b.div(n, b.idx(RUN)), b.idx(RUN * lanes)), b.rem(n, b.idx(RUN)))


def _over(a: int, b: int) -> int:
    return -(-a // b)
