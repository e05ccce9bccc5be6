"""How a contraction is cut: register tile, K blocks, packing, groups. Depends on shapes and the machine's sizes only.

Costs are in cycles of one core with two vector fma units and two load ports. They rank plans; they predict no times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

SCRATCH = 4 << 20  # bytes a group of the CPU device may use
_GROUP_FMAS = 1 << 19  # below this a group is too short for what handing it out costs
_PAGE = 4096
_FEW_ROWS = 4  # up to here a panel is so wide that walking down it reads memory well
_SPILL = 10  # cycles a vector of sums, stored by one K block and read by the next; measured, the short loops' ends included
_MOST_VECTORS = 8  # of a register tile
_LATENCY = 8  # independent fma chains that keep both units busy (latency 4)


@dataclass(frozen=True)
class Tuning:
    """The machine: f32 lanes of a vector register, vector registers, data cache bytes of a core, groups that run at once (on a
    CPU: cores), and the bytes of shared memory that a group may use. `matrix_units`: the layout of a product in their registers
    (lir.LAYOUTS), "" without; only what a kernel of the fast tier becomes depends on it. `byte_units`: the same for products of
    bytes, in every tier. `chunk`: elements that a group of an
    element-wise kernel handles, long enough to hide its start, short enough to balance. `gathers`: lanes read shared memory at
    places of their own as fast as side by side (a GPU). `waves`: how many a group may have; `lanes` are those of one, and
    `scratch_bytes` its share of the `group_bytes` at most."""

    lanes: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    units: int
    scratch_bytes: int = SCRATCH
    matrix_units: str = field(default="", repr=False)
    chunk: int = 16384
    gathers: bool = False
    waves: int = 1
    group_bytes: int = SCRATCH
    byte_units: str = ""


@dataclass(frozen=True)
class Shape:
    """What planning needs to know of a contraction; `bits` of an accumulator, `fused` where it is one fma, the rest as
    in Contraction."""

    batch: int
    m: int
    n: int
    k: int
    bits: int
    fused: bool
    a_contiguous: str
    b_contiguous: str
    a_work: int
    b_work: int


@dataclass(frozen=True)
class Axis:
    """`size` elements in `full` tiles of `tile` and, unless 0, one of `rest`; split over `parts` groups."""

    size: int
    tile: int
    parts: int

    @property
    def full(self) -> int:
        return self.size // self.tile

    @property
    def rest(self) -> int:
        return self.size % self.tile

    @property
    def tiles(self) -> int:
        return self.full + (self.rest > 0)

    @property
    def most(self) -> int:
        """Tiles of the largest share."""
        return -(-self.tiles // self.parts)

    def split(self, parts: int) -> Axis:
        return Axis(self.size, self.tile, parts)


@dataclass(frozen=True)
class ContractionPlan:
    """The cut. m.tile x n.tile is the register tile; the last K block may be shorter than `k_block`.

    A group uses at most `scratch_bytes`.
    """

    lanes: int
    m: Axis
    n: Axis
    k_block: int
    k_blocks: int
    batch_parts: int
    pack_a: bool
    pack_b: bool
    scratch_bytes: int

    @property
    def groups(self) -> int:
        return self.batch_parts * self.m.parts * self.n.parts

    def __str__(self) -> str:
        packed = " and ".join(name for name, is_so in (("A", self.pack_a), ("B", self.pack_b)) if is_so)
        return (f"tile {self.m.tile}x{self.n.tile} ({self.m.tile}x{-(-self.n.tile // self.lanes)} vectors), "
                f"k {self.k_blocks} x {self.k_block}, {packed or 'nothing'} packed, "
                f"groups {self.groups} = {self.batch_parts} batch x {self.m.parts} m x {self.n.parts} n, "
                f"scratch {self.scratch_bytes / 1024:.0f} KiB")


def plan_shape(s: Shape, t: Tuning) -> ContractionPlan:
    """The cheapest plan by the cost model, for the machine `t`; tiles as narrow as its shared memory asks for."""
    for most_vectors in range(_MOST_VECTORS, 0, -1):
        best = _best(s, t, most_vectors)
        if best.scratch_bytes <= t.scratch_bytes:
            break
    return best


def _best(s: Shape, t: Tuning, most_vectors: int) -> ContractionPlan:
    words = max(1, s.bits // 32)
    rows, vectors = _register_tile(s, t, words, most_vectors)
    m, n = Axis(s.m, rows, 1), Axis(s.n, min(vectors * t.lanes, max(1, s.n)), 1)
    if s.n > n.tile or n.tile % t.lanes:
        n = Axis(s.n, -(-n.tile // t.lanes) * t.lanes, 1)
    best: tuple[float, ContractionPlan] | None = None
    for candidate in _candidates(s, t, m, n, words):
        cost = _cost(s, t, candidate, words)
        if best is None or cost < best[0]:
            best = cost, candidate
    assert best is not None
    return best[1]


def _tile_cycles(rows: int, vectors: int, words: int, fused: bool) -> float:
    """Cycles a k: the fma units, the load ports, the latency of short tiles; and a little for the ways from L2, where B is
    one stream and A as many as it has rows."""
    fmas = rows * vectors * words * (1 if fused else 3)
    return max(fmas / 2, (rows + vectors * words) / 2, _LATENCY / 2) + 0.16 * vectors * words + 0.08 * rows


def _axis_tiles(size: int, tile: int) -> list[tuple[int, int]]:
    """(how many, elements) of each kind of tile."""
    return [(count, width) for count, width in ((size // tile, tile), (1, size % tile)) if count and width]


def _register_tile(s: Shape, t: Tuning, words: int, most_vectors: int) -> tuple[int, int]:
    """Rows and vectors: accumulators, one vector of b a column and one broadcast a fit the registers."""
    best = (float("inf"), 1, 1)
    spare = t.vector_registers - words * (1 if s.fused else 2)
    for vectors in range(1, max(1, min(most_vectors, -(-s.n // t.lanes), spare // words - 1)) + 1):
        for rows in range(1, max(1, min((spare // words - vectors) // vectors, s.m)) + 1):
            kinds = [(cm * cn, r, -(-w // t.lanes)) for cm, r in _axis_tiles(s.m, rows)
                     for cn, w in _axis_tiles(s.n, vectors * t.lanes)]
            cycles = sum(count * _tile_cycles(r, v, words, s.fused) for count, r, v in kinds)
            panels = -(-s.n // (vectors * t.lanes))
            uneven = -(-panels // t.units) * t.units / panels if panels >= 4 * t.units else 1
            # Every kind of tile is code to compile.
            best = min(best, (cycles * uneven * (1 + 0.002 * len(kinds)), rows, vectors))
    return best[1], best[2]


def _k_block(s: Shape, t: Tuning, rows: int, n: Axis) -> tuple[int, int]:
    """Length and number of K blocks. Panels stream well from L2, and a block that ends in the middle of K writes its sums
    and reads them again: so it is as long as L2 holds the group's panels, and at least what a strip of A and a panel of B
    fill of L1."""
    size = s.bits // 8
    longest = max(t.lanes, t.l1_bytes // ((rows + n.tile) * size), _panels_bytes(t) // (n.most * n.tile * size))
    blocks = max(1, -(-s.k // longest))
    length = -(-max(1, s.k) // blocks)
    return (-(-length // t.lanes) * t.lanes, blocks) if blocks > 1 else (max(1, s.k), 1)


def _candidates(s: Shape, t: Tuning, m: Axis, n: Axis, words: int) -> Iterator[ContractionPlan]:
    """Every sensible grid of groups that fits the scratch memory; the last one always does."""
    work = max(1, s.m * s.n * s.k)
    per_group = max(1, min(s.batch // (4 * t.units), -(-_GROUP_FMAS // work)))
    batch_parts = -(-max(1, s.batch) // per_group)
    found = False
    for m_parts in _parts(m.tiles):
        for n_parts in _parts(n.tiles):
            small = work // (m_parts * n_parts) < _GROUP_FMAS and m_parts * n_parts > 1
            if small or (found and batch_parts * m_parts * n_parts > 64 * t.units):
                continue
            p = _fit(s, t, m.split(m_parts), n.split(n_parts), batch_parts)
            if p.scratch_bytes <= t.scratch_bytes and _block_bytes(s, p) <= _panels_bytes(t):
                found = True
                yield p
    if not found:
        yield _fit(s, t, m.split(max(1, m.tiles)), n.split(max(1, n.tiles)), batch_parts)


def _parts(tiles: int) -> list[int]:
    return sorted({p for p in (*range(1, 17), 20, 24, 32, 48, 64, 96, 128, 256) if p <= max(1, tiles)})


def _fit(s: Shape, t: Tuning, m: Axis, n: Axis, batch_parts: int) -> ContractionPlan:
    """The plan of one grid: packing pays where a packed element is used several times and is not good where it lies."""
    pack_b = s.b_contiguous == "k" or _far(s, t, m) or (m.most >= 2 and (s.b_work > 0 or s.b_contiguous == ""))
    pack_a = n.most >= 2 and (s.a_work > 0 or s.a_contiguous != "k" or _aliased(s, t, m))
    k_block, k_blocks = _k_block(s, t, m.tile, n) if pack_b else (max(1, s.k), 1)
    size = s.bits // 8
    tiles = m.most * n.most if k_blocks > 1 else 1
    rounded = -(-m.tile // t.lanes) * t.lanes
    strip = max(k_block * rounded, m.tile * (k_block + 2 * t.lanes))
    if strip * size > t.scratch_bytes // 2:
        pack_a = False
    square = -(-k_block // t.lanes) * t.lanes
    scratch = size * (tiles * m.tile * n.tile + strip * pack_a + (n.most * (square * n.tile + t.lanes) if pack_b else 0))
    return ContractionPlan(t.lanes, m, n, square if pack_b else k_block, k_blocks, batch_parts, pack_a, pack_b, scratch)


def _aliased(s: Shape, t: Tuning, m: Axis) -> bool:
    """Whether the rows of a strip of A fall on so few sets of L1 that they evict each other.

    A way of L1 is a page; rows a multiple of half a page apart share one or two of its lines. Assumes dense rows.
    """
    return m.tile * 3 // 2 > t.l1_bytes // math.gcd(max(1, s.k) * s.bits // 8, _PAGE)


def _far(s: Shape, t: Tuning, m: Axis) -> bool:
    """Whether columns of B are bad to walk in place. Assumes dense rows.

    L2 does not hold B, and so little of each row is read at a time that memory is slow; or several strips of A walk
    down it, and its rows fall on few sets of L2 (a way is a sixteenth of it) or its vectors cross lines.
    """
    big = s.k * s.n * s.bits // 8 > t.l2_bytes * (1 if m.tiles > 1 else 4)
    rows = t.l2_bytes // math.gcd(s.n * s.bits // 8, t.l2_bytes // 16)
    return (big and s.m > _FEW_ROWS) or (m.tiles > 1 and (s.k > rows // 2 or s.n % t.lanes != 0))


def _panels_bytes(t: Tuning) -> int:
    """What packed panels may take of L2; the rest is for the rows of A and C that pass through. Pages fall unevenly on the
    sets: of an L2 of 2 MiB panels of 0.8 MB were kept, of 1.2 MB nearly all, of 1.6 MB a tenth of the time was lost."""
    return min(t.l2_bytes * 3 // 4, 1 << 20)


def _block_bytes(s: Shape, p: ContractionPlan) -> int:
    return p.n.most * p.n.tile * p.k_block * s.bits // 8 if p.pack_b else 0


def _cost(s: Shape, t: Tuning, p: ContractionPlan, words: int) -> float:
    """Cycles until the last unit is done: the largest groups' work, in turns; fewer turns balance noise worse."""
    per_group = -(-s.batch // p.batch_parts)
    rows, columns = min(s.m, p.m.most * p.m.tile), min(s.n, p.n.most * p.n.tile)
    vectors = -(-p.n.tile // t.lanes)
    cycles = p.m.most * p.n.most * _tile_cycles(p.m.tile, vectors, words, s.fused) * s.k
    # The way from memory, which packing does not overlap with arithmetic.
    first = s.k * words * (rows * (1.2 if p.pack_a else 0.3) + columns * (1.2 if p.pack_b else 0.3))
    spill = _SPILL * (p.k_blocks - 1) * rows * columns * words / t.lanes
    group = per_group * (cycles + first + spill + 200)
    turns = -(-p.groups // t.units)
    return turns * group * (1 + 0.15 * t.units / p.groups)
