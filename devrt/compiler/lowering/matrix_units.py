"""Contraction on matrix units: C[batch, m, n] = sum over k of A[batch, m, k] * B[batch, k, n] of float16 or bfloat16, as LIR.

The fast tier: sums are float32, in the order that the device's matrix units have.

    group   a block of 16x16 tiles of C, in the registers of one wave
    step    up to 32 of k: the rows of A and the columns of B that the block needs, in shared memory with k contiguous; then
            every tile of A meets every tile of B

Every lane brings runs of neighbouring k, which a backend may read as one where they lie so in memory. Rows beyond m and n repeat
the last one, whose sums nobody stores; beyond k there are zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from devrt.compiler.dtypes import DType, float32
from devrt.compiler.lir import LAYOUTS, MMA_SIDE, Builder, Part, Reg
from devrt.compiler.lowering.contract_plan import Tuning

_STEP = 32  # of k
_PADDING = 8  # elements between rows in shared memory, so that they start in different banks
_RUN = 8  # of k that a lane brings at once: 16 bytes
_TILES = (1, 2, 4)  # a side of a block: 4x4 tiles are 128 registers of a wave of 32 lanes
_ROOM = 64  # registers of sums beside which a wave holds what it brings of both operands
_UNROLLED_EPILOGUE = 4  # instructions; a longer one is not repeated for every register


@dataclass(frozen=True)
class Product:
    """What to compute; sizes in elements.

    dtype:   of the operands, float16 or bfloat16
    a, b:    (builder, batch, m, k) and (builder, batch, k, n) -> the value as `dtype`, any of the indexes differing between lanes
    a_along_k, b_along_k: whether neighbouring k are neighbours in memory
    store:   (builder, batch, m, n, value, mask), epilogue included; `store_work` its instructions beside load and store
    """

    batch: int
    m: int
    n: int
    k: int
    dtype: DType
    a: Callable[[Builder, Reg, Reg, Reg], Reg]
    b: Callable[[Builder, Reg, Reg, Reg], Reg]
    a_along_k: bool
    b_along_k: bool
    store: Callable[[Builder, Reg, Reg, Reg, Reg, Reg | None], None]
    store_work: int


@dataclass(frozen=True)
class Block:
    """Tiles of a group: `rows` x `columns`."""

    rows: int
    columns: int

    def groups(self, p: Product) -> int:
        return p.batch * _over(p.m, MMA_SIDE * self.rows) * _over(p.n, MMA_SIDE * self.columns)


def plan(p: Product, t: Tuning) -> Block:
    """The block that is done soonest: tiles take a unit of time each, bringing the operands of one half of that."""
    def cost(block: Block) -> float:
        turns = _over(block.groups(p), t.units)
        return turns * (block.rows * block.columns + (block.rows + block.columns) / 2)
    return min((Block(r, c) for r in _TILES for c in _TILES), key=cost)


def lower(b: Builder, p: Product, block: Block, units: str) -> None:
    """Write the product into `b`, which was created with `groups=block.groups(p)`, for matrix units with the layout `units`."""
    _Lowering(b, p, block, units).run()


class _Lowering:
    def __init__(self, b: Builder, p: Product, block: Block, units: str) -> None:
        self.b, self.p, self.block, self.units = b, p, block, units
        self.layout, self.lane = LAYOUTS[units], b.lane()
        self.height, self.width = MMA_SIDE * block.rows, MMA_SIDE * block.columns
        self.depth = min(_STEP, _round_up(p.k, MMA_SIDE))
        self.row = self.depth + _PADDING
        self.tiles = b.shared("tiles", p.dtype, (self.height + self.width) * self.row)
        self.staged = p.store_work > _UNROLLED_EPILOGUE
        if self.staged:
            self.sums = b.shared("sums", float32, block.columns * self.layout.registers * self.layout.lanes)

    def run(self) -> None:
        b, p = self.b, self.p
        across = b.idx(_over(p.n, self.width))
        group, down = b.group(), b.idx(_over(p.m, self.height))
        rest = b.div(group, across)
        self.n0 = b.mul(b.rem(group, across), b.idx(self.width))
        self.m0 = b.mul(b.rem(rest, down), b.idx(self.height))
        self.batch = b.div(rest, down)
        steps, last = divmod(p.k, self.depth)
        sums = [b.const(float32, 0)] * (self.block.rows * self.block.columns * self.layout.registers)
        if steps:
            sums = b.loop(0, steps, sums, lambda i, carried: self.step(b.mul(i, b.idx(self.depth)), self.depth, carried))
        if last:
            sums = self.step(b.idx(steps * self.depth), last, sums)
        each = self.layout.registers * self.block.columns
        for row in range(self.block.rows):
            self.finish(row, sums[row * each:(row + 1) * each])

    # ----- sums

    def step(self, k0: Reg, count: int, sums: list[Reg]) -> list[Reg]:
        """The sums with `count` of k from k0 on added."""
        b, p, registers = self.b, self.p, self.layout.registers

        def rows() -> list[tuple[Reg, Reg]]:
            return self.values(0, self.height, p.m, self.m0, k0, count, p.a_along_k,
                               lambda m, k: p.a(b, self.batch, m, k))

        def columns() -> list[tuple[Reg, Reg]]:
            return self.values(self.height, self.width, p.n, self.n0, k0, count, p.b_along_k,
                               lambda n, k: p.b(b, self.batch, k, n))
        brought = rows()
        if len(sums) <= _ROOM:
            brought += columns()
        b.barrier()  # the last reader of what is overwritten is done
        for at, value in brought:
            b.store(self.tiles, at, value)
        if len(sums) > _ROOM:
            for at, value in columns():
                b.store(self.tiles, at, value)
        b.barrier()
        out = list(sums)
        for k in range(0, count, MMA_SIDE):
            for tile in range(self.block.rows * self.block.columns):
                i, j = divmod(tile, self.block.columns)
                mine = slice(tile * registers, (tile + 1) * registers)
                out[mine] = b.mma(self.tiles, b.idx(i * MMA_SIDE * self.row + k), self.row,
                                  b.idx((self.height + j * MMA_SIDE) * self.row + k), self.row, out[mine], self.units)
        return out

    def values(self, place: int, rows: int, size: int, base: Reg, k0: Reg, count: int, along_k: bool,
               value: Callable[[Reg, Reg], Reg]) -> list[tuple[Reg, Reg]]:
        """(where in shared memory, element) of rows base.. and `count` of k from k0 on, for this lane; `place`: of the first row.

        Lanes lie side by side along k or along the rows, whichever lies so in memory.
        """
        b, lanes, depth = self.b, self.layout.lanes, _round_up(count, MMA_SIDE)
        run = min(_RUN, rows * depth // lanes)
        runs = depth // run
        found = []
        for turn in range(rows * runs // lanes):
            at = b.add(self.lane, b.idx(turn * lanes))
            near = b.idx(runs if along_k else rows)
            row, which = (b.div(at, near), b.rem(at, near)) if along_k else (b.rem(at, near), b.div(at, near))
            first = b.mul(which, b.idx(run))
            position = b.add(base, row)
            if size % rows:
                position = b.min(position, b.idx(size - 1))
            for e in range(run):
                inner = b.add(first, b.idx(e))
                k = b.add(b.add(k0, first), b.idx(e))
                if count == depth:
                    x = value(position, k)
                else:
                    inside = b.lt(inner, b.idx(count))
                    x = b.select(inside, value(position, b.min(k, b.idx(self.p.k - 1))), b.const(self.p.dtype, 0))
                found.append((b.add(b.add(b.mul(row, b.idx(self.row)), inner), b.idx(place * self.row)), x))
        return found

    # ----- results

    def finish(self, row: int, values: list[Reg]) -> None:
        """Store a row of tiles. A long epilogue is a loop, its sums in shared memory, each read by the lane that wrote it."""
        b, registers, lanes = self.b, self.layout.registers, self.layout.lanes
        if not self.staged:
            for n, value in enumerate(values):
                self.put(row, b.idx(n // registers), b.idx(n % registers), value)
            return
        for n, value in enumerate(values):
            b.store(self.sums, b.add(b.idx(n * lanes), self.lane), value)

        def one(n: Reg, _: list[Reg]) -> list[Reg]:
            value = b.load(self.sums, b.add(b.mul(n, b.idx(lanes)), self.lane))
            self.put(row, b.div(n, b.idx(registers)), b.rem(n, b.idx(registers)), value)
            return []
        b.loop(0, len(values), [], one)

    def put(self, row: int, column: Reg, register: Reg, value: Reg) -> None:
        """Store one register of the tile at row, column of the block."""
        b, p = self.b, self.p
        m = b.add(b.add(self.m0, b.idx(row * MMA_SIDE)), self.total(self.layout.rows, register))
        n = b.add(b.add(self.n0, b.mul(column, b.idx(MMA_SIDE))), self.total(self.layout.columns, register))
        tests = [b.lt(i, b.idx(size)) for i, size, block in ((m, p.m, self.height), (n, p.n, self.width)) if size % block]
        p.store(b, self.batch, m, n, value, b.and_(*tests) if len(tests) == 2 else tests[0] if tests else None)

    def total(self, parts: tuple[Part, ...], register: Reg) -> Reg:
        """The row or column in a tile that these parts of a layout say."""
        b, total = self.b, None
        for part in parts:
            x = b.div(register if part.of == "register" else self.lane, b.idx(part.divided))
            if part.modulo is not None:
                x = b.rem(x, b.idx(part.modulo))
            x = b.mul(x, b.idx(part.times))
            total = x if total is None else b.add(total, x)
        assert total is not None
        return total


def _over(a: int, b: int) -> int:
    return -(-a // b)


def _round_up(value: int, multiple: int) -> int:
    return _over(value, multiple) * multiple
