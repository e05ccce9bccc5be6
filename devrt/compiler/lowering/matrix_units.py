"""Contraction on matrix units: C[batch, m, n] = sum over k of A[batch, m, k] * B[batch, k, n] of halves or bytes, as LIR.

Of float16 and bfloat16, for the fast tier: sums are float32, in the order that the device's matrix units have. Of int8 and uint8,
for every tier: sums are int32 and wrap, so that their order makes no difference.

    group   a rectangle of C in the registers of a wave, or of a grid of waves, which share what is brought; a wave has a block of
            16x16 tiles of it
    step    up to two tiles of k: the rows of A and the columns of B that the group needs, in shared memory; every tile of A meets
            every tile of B of a wave. While one step is computed the next one is on its way from memory to registers; it goes to
            the other half of shared memory, so that a step needs one barrier

Every lane brings runs of neighbours, which a backend may read as one where they lie so in memory, and stores them as they lie if
matrix units take turned operands; if not, k becomes contiguous. Rows beyond m and n repeat others, whose sums nobody stores;
beyond k there are zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from devrt.compiler.dtypes import DType
from devrt.compiler.lir import LAYOUTS, MMA_SIDE, Builder, Layout, Part, Reg
from devrt.compiler.lowering.contract_plan import Tuning

_STEP = 2  # tiles of k
_BROUGHT = 128  # bytes of a step that a lane holds beside its sums; a step that asks for more is shorter
_TILES = (1, 2, 4)  # a side of a wave's block: 4x4 tiles are 128 registers of a wave of 32 lanes
_GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (2, 4), (4, 2))  # of waves
_UNROLLED_EPILOGUE = 4  # instructions; a longer one is not repeated for every register
# Of a unit that runs several waves at once, what each of them gets in a cycle: multiplications of halves, bytes from memory (the
# cache that all units share; measured on no device, for NVIDIA a guess from 24 a multiprocessor) and from shared memory.
_PRODUCTS, _MEMORY_BYTES, _SHARED_BYTES = 128, 3, 16
_START = 500  # cycles of a group outside its steps


@dataclass(frozen=True)
class Product:
    """What to compute; sizes in elements.

    dtype:   of the operands
    a, b:    (builder, batch, m, k) and (builder, batch, k, n) -> the value as `dtype`, any of the indexes differing between lanes
    a_along_k, b_along_k: whether neighbouring k are neighbours in memory
    store:   (builder, batch, m, n, value in the type of the units' sums, mask), epilogue included; `store_work` its instructions
             beside load and store
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

    @property
    def staged(self) -> bool:
        """Whether sums go through shared memory to the epilogue, which is then a loop."""
        return self.store_work > _UNROLLED_EPILOGUE


@dataclass(frozen=True)
class Block:
    """Tiles of a wave, `rows` x `columns`, in a grid of `down` x `across` waves."""

    rows: int
    columns: int
    down: int = 1
    across: int = 1

    @property
    def height(self) -> int:
        return MMA_SIDE * self.rows * self.down

    @property
    def width(self) -> int:
        return MMA_SIDE * self.columns * self.across

    @property
    def waves(self) -> int:
        return self.down * self.across

    def groups(self, p: Product) -> int:
        return p.batch * _over(p.m, self.height) * _over(p.n, self.width)

    def depth(self, p: Product, layout: Layout) -> int:
        """Of a step."""
        step = _STEP * layout.depth
        if (self.height + self.width) * step * p.dtype.bits // 8 > _BROUGHT * layout.lanes * self.waves:
            step = layout.depth
        return min(step, _round_up(p.k, layout.depth))


def plan(p: Product, t: Tuning, units: str) -> Block:
    """The block that is done soonest on matrix units with the layout `units`."""
    layout = LAYOUTS[units]
    found = [Block(r, c, *grid) for grid in _GRIDS for r in _TILES for c in _TILES]
    return min((block for block in found if block.waves <= t.waves and _fits(block, p, t, layout)),
               key=lambda block: _cost(block, p, t))


def _fits(block: Block, p: Product, t: Tuning, layout: Layout) -> bool:
    sides = [side.count * p.dtype.bits // 8 for side in _places(block, p, layout, block.depth(p, layout))]
    sums = 4 * block.columns * layout.registers * layout.lanes * block.waves
    return 2 * sum(sides) + sums * p.staged <= min(t.scratch_bytes * block.waves, t.group_bytes)


def _cost(block: Block, p: Product, t: Tuning) -> float:
    """Cycles until the last group is done: what takes longest of a step, and some of the rest, which does not overlap fully."""
    size = p.dtype.bits // 8
    edge = size * (block.height + block.width) / block.waves  # bytes that a wave brings for each k
    parts = (block.rows * block.columns * MMA_SIDE ** 2 * size / 2 / _PRODUCTS, edge / _MEMORY_BYTES,
             (size * MMA_SIDE * (block.rows + block.columns) + edge) / _SHARED_BYTES)
    turns = _over(block.groups(p), max(1, t.units // block.waves))
    return turns * ((max(parts) + sum(parts) / 4) * p.k + _START)


def lower(b: Builder, p: Product, block: Block, units: str) -> None:
    """Write the product into `b`, which was created with `groups=block.groups(p)` and the lanes of its waves, for matrix units
    with the layout `units`."""
    _Lowering(b, p, block, units).run()


@dataclass(frozen=True)
class _Place:
    """An operand in shared memory: a row of `pitch` elements for each of its rows, or, `turned`, for each k; `count` in all."""

    pitch: int
    count: int
    turned: bool


def _places(block: Block, p: Product, layout: Layout, depth: int) -> tuple[_Place, _Place]:
    """Of both operands for one step."""
    def place(size: int, along_k: bool) -> _Place:
        turned = layout.turns and not along_k
        pitch = (size if turned else depth) + layout.align  # a row starts in other banks than the one before
        return _Place(pitch, pitch * (depth if turned else size), turned)
    return place(block.height, p.a_along_k), place(block.width, p.b_along_k)


@dataclass(frozen=True)
class _Side:
    """One operand: `size` of its rows (columns of B) in a group, `limit` in all, `base` the group's first; it begins at `start`
    in a half of shared memory. `mine`: the first row of this wave."""

    size: int
    limit: int
    base: Reg
    mine: Reg
    start: int
    place: _Place
    along_k: bool
    value: Callable[[Reg, Reg], Reg]  # (row, k)


class _Lowering:
    def __init__(self, b: Builder, p: Product, block: Block, units: str) -> None:
        self.b, self.p, self.block, self.units, self.layout = b, p, block, units, LAYOUTS[units]
        self.thread, lanes = b.lane(), b.idx(self.layout.lanes)
        self.threads = self.layout.lanes * block.waves
        self.lane, wave = (b.rem(self.thread, lanes), b.div(self.thread, lanes)) if block.waves > 1 else (self.thread, b.idx(0))
        self.depth = block.depth(p, self.layout)
        places = _places(block, p, self.layout, self.depth)
        self.half = sum(place.count for place in places)
        self.tiles = b.shared("tiles", p.dtype, (1 + (p.k > self.depth)) * self.half)
        if p.staged:
            self.sums = b.shared("sums", self.layout.sums, block.columns * self.layout.registers * self.threads)
        across = b.idx(_over(p.n, block.width))
        group, down = b.group(), b.idx(_over(p.m, block.height))
        rest = b.div(group, across)
        n0, m0 = b.mul(b.rem(group, across), b.idx(block.width)), b.mul(b.rem(rest, down), b.idx(block.height))
        self.batch = b.div(rest, down)
        self.sides = (
            _Side(block.height, p.m, m0, b.mul(b.div(wave, b.idx(block.across)), b.idx(MMA_SIDE * block.rows)), 0, places[0],
                  p.a_along_k, lambda m, k: p.a(b, self.batch, m, k)),
            _Side(block.width, p.n, n0, b.mul(b.rem(wave, b.idx(block.across)), b.idx(MMA_SIDE * block.columns)),
                  places[0].count, places[1], p.b_along_k, lambda n, k: p.b(b, self.batch, k, n)))
        self.turned = "".join(name for name, place in zip("ab", places, strict=True) if place.turned)

    def run(self) -> None:
        b, p, block = self.b, self.p, self.block
        steps, rest = divmod(p.k, self.depth)
        counts = [self.depth] * steps + [rest] * bool(rest)
        sums = [b.const(self.layout.sums, 0)] * (block.rows * block.columns * self.layout.registers)
        self.keep(self.bring(b.idx(0), counts[0]), b.idx(0))
        b.barrier()
        turns = max(0, steps - 1)  # those behind which a whole step comes

        def turn(i: Reg, carried: list[Reg]) -> list[Reg]:
            at = b.and_(i, b.idx(1))
            return self.turn(b.mul(b.add(i, b.idx(1)), b.idx(self.depth)), self.depth, b.mul(at, b.idx(self.half)),
                             b.mul(b.xor(at, b.idx(1)), b.idx(self.half)), carried)
        if turns:
            sums = b.loop(0, turns, sums, turn)
        if len(counts) > turns + 1:
            here = turns & 1
            sums = self.turn(b.idx(steps * self.depth), rest, b.idx(here * self.half), b.idx((1 - here) * self.half), sums)
        last = len(counts) - 1
        sums = self.multiply(b.idx((last & 1) * self.half), counts[last], sums)
        each = self.layout.registers * block.columns
        for row in range(block.rows):
            self.finish(row, sums[row * each:(row + 1) * each])

    def turn(self, k0: Reg, count: int, here: Reg, there: Reg, sums: list[Reg]) -> list[Reg]:
        """The sums with the step at `here` added, while the one of `count` k from k0 on is brought `there`."""
        coming = self.bring(k0, count)
        sums = self.multiply(here, self.depth, sums)
        self.keep(coming, there)
        self.b.barrier()
        return sums

    # ----- operands

    def bring(self, k0: Reg, count: int) -> list[tuple[Reg, Reg]]:
        """(place in the half, element) of what this lane brings of `count` k from k0 on."""
        return [found for side in self.sides for found in self.brought(side, k0, count)]

    def brought(self, side: _Side, k0: Reg, count: int) -> Iterator[tuple[Reg, Reg]]:
        """Lanes lie side by side along k or along the rows, whichever lies so in memory; runs are along what is contiguous in
        shared memory."""
        b, place, depth = self.b, side.place, _round_up(count, self.layout.depth)
        run = min(self.layout.align, side.size * depth // self.threads)
        inner, outer = (side.size, depth) if place.turned else (depth, side.size)
        runs = inner // run
        for first in range(0, runs * outer, self.threads):
            at = b.add(self.thread, b.idx(first))
            if place.turned or side.along_k:
                far, which = b.div(at, b.idx(runs)), b.rem(at, b.idx(runs))
            else:
                far, which = b.rem(at, b.idx(outer)), b.div(at, b.idx(outer))
            start = b.mul(which, b.idx(run))
            row = b.add(side.base, start if place.turned else far)
            neighbours = run if place.turned and side.limit % run == 0 else 1
            if side.limit % side.size and not (place.turned and neighbours == 1):
                row = b.min(row, b.idx(side.limit - neighbours))
            for e in range(run):
                here = b.add(start, b.idx(e))
                position, k = (b.add(row, b.idx(e)), far) if place.turned else (row, here)
                if side.limit % side.size and place.turned and neighbours == 1:
                    position = b.min(position, b.idx(side.limit - 1))
                if count == depth:
                    x = side.value(position, b.add(k0, k))
                else:
                    x = b.select(b.lt(k, b.idx(count)), side.value(position, b.min(b.add(k0, k), b.idx(self.p.k - 1))),
                                 b.const(self.p.dtype, 0))
                yield b.add(b.add(b.mul(far, b.idx(place.pitch)), here), b.idx(side.start)), x

    def keep(self, brought: list[tuple[Reg, Reg]], half: Reg) -> None:
        for place, value in brought:
            self.b.store(self.tiles, self.b.add(place, half), value)

    # ----- sums

    def multiply(self, half: Reg, count: int, sums: list[Reg]) -> list[Reg]:
        """The sums with the step in `half`, of `count` k, added."""
        b, registers = self.b, self.layout.registers
        out = list(sums)
        a, c = self.sides
        for k in range(0, count, self.layout.depth):
            for tile in range(self.block.rows * self.block.columns):
                i, j = divmod(tile, self.block.columns)
                mine = slice(tile * registers, (tile + 1) * registers)
                out[mine] = b.mma(self.tiles, self.tile(a, half, i, k), a.place.pitch, self.tile(c, half, j, k), c.place.pitch,
                                  out[mine], self.units, self.turned)
        return out

    def tile(self, side: _Side, half: Reg, n: int, k: int) -> Reg:
        """Where the n-th of this wave's tiles of an operand begins for k."""
        b, place = self.b, side.place
        row, far = (1, place.pitch) if place.turned else (place.pitch, 1)
        mine = b.add(b.mul(side.mine, b.idx(row)), b.idx(n * MMA_SIDE * row + k * far + side.start))
        return b.add(half, mine)

    # ----- results

    def finish(self, row: int, values: list[Reg]) -> None:
        """Store a row of tiles. A long epilogue is a loop, its sums in shared memory, each read by the lane that wrote it."""
        b, registers, threads = self.b, self.layout.registers, self.threads
        if not self.p.staged:
            for n, value in enumerate(values):
                self.put(row, b.idx(n // registers), b.idx(n % registers), value)
            return
        for n, value in enumerate(values):
            b.store(self.sums, b.add(b.idx(n * threads), self.thread), value)

        def one(n: Reg, _: list[Reg]) -> list[Reg]:
            value = b.load(self.sums, b.add(b.mul(n, b.idx(threads)), self.thread))
            self.put(row, b.div(n, b.idx(registers)), b.rem(n, b.idx(registers)), value)
            return []
        b.loop(0, len(values), [], one)

    def put(self, row: int, column: Reg, register: Reg, value: Reg) -> None:
        """Store one register of the tile at row, column of this wave's block."""
        b, p = self.b, self.p
        down, right = self.sides
        m = b.add(b.add(b.add(down.base, down.mine), b.idx(row * MMA_SIDE)), self.total(self.layout.rows, register))
        n = b.add(b.add(b.add(right.base, right.mine), b.mul(column, b.idx(MMA_SIDE))), self.total(self.layout.columns, register))
        tests = [b.lt(i, b.idx(side.limit)) for i, side in ((m, down), (n, right)) if side.limit % side.size]
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
