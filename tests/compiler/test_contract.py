"""Contractions against an fma a step in NumPy, bit for bit, over shapes, layouts, types and machines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from devrt.compiler import arithmetic, interpreter
from devrt.compiler import dtypes as dt
from devrt.compiler.convert import Array
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Builder, Program, Reg
from devrt.compiler.lowering import tiles
from devrt.compiler.lowering.contract import Contraction, lower, plan
from devrt.compiler.lowering.contract_plan import SCRATCH, Axis, ContractionPlan, Tuning
from tests.compiler.on_cpu import run_on_cpu

AVX512 = Tuning(16, 32, 48 << 10, 2 << 20, 2)
AVX2 = Tuning(8, 16, 32 << 10, 512 << 10, 4)
NEON = Tuning(4, 32, 64 << 10, 1 << 20, 8)
TINY = Tuning(16, 32, 2 << 10, 24 << 10, 2)  # caches so small that everything is cut into blocks
LAYOUTS = ("kn", "kk", "mn", "mk")  # contiguous index of A, of B
NUMPY = {dt.float32: np.float32, dt.float64: np.float64, dt.int32: np.int32, dt.int64: np.int64, dt.int8: np.int8,
         dt.float16: np.float16}


def program(batch: int, m: int, n: int, k: int, *, layout: str = "kn", dtype: DType = dt.float32,
            stored: DType | None = None, tuning: Tuning = AVX512, cut: ContractionPlan | None = None,
            hints: str | None = None, work: int = 0, tile: tiles.Tile | None = None) -> Program:
    """C = 2 * (A B) + n for the given layouts; `hints` is what the lowering is told of them. `tile`: as on a GPU."""
    stored = stored or dtype
    tell = hints or layout

    def a(b: Builder, t: Reg, i: Reg, j: Reg, mask: Reg | None) -> Reg:
        fast, slow, size = (j, i, k) if layout[0] == "k" else (i, j, m)
        at = b.add(b.mul(t, b.idx(m * k)), b.add(b.mul(slow, b.idx(size)), fast))
        return b.cast(b.load(array_a, at, mask), dtype)

    def b_(b: Builder, t: Reg, i: Reg, j: Reg, mask: Reg | None) -> Reg:
        fast, slow, size = (j, i, n) if layout[1] == "n" else (i, j, k)
        at = b.add(b.mul(t, b.idx(n * k)), b.add(b.mul(slow, b.idx(size)), fast))
        return b.cast(b.load(array_b, at, mask), dtype)

    def store(b: Builder, t: Reg, i: Reg, j: Reg, value: Reg, mask: Reg | None) -> None:
        at = b.add(b.mul(t, b.idx(m * n)), b.add(b.mul(i, b.idx(n)), j))
        b.store(array_c, at, b.add(b.mul(value, b.const(dtype, 2)), b.cast(j, dtype)), mask)

    c = Contraction(batch, m, n, k, dtype, a, b_, tell[0].strip("-"), tell[1].strip("-"), store, work, work, work)
    cut = cut or plan(c, tuning)
    lanes, groups = (tile.lanes, tile.groups(c)) if tile else (cut.lanes, cut.groups)
    builder = Builder("contract", lanes=lanes, groups=groups)
    array_a = builder.param("a", stored, max(1, batch * m * k))
    array_b = builder.param("b", stored, max(1, batch * k * n))
    array_c = builder.param("c", dtype, batch * m * n, writable=True)
    if tile:
        tiles.lower(builder, c, tile)
    else:
        lower(builder, c, cut)
    result = builder.finish()
    assert result.shared_bytes <= SCRATCH
    return result


def operands(batch: int, m: int, n: int, k: int, stored: DType) -> tuple[Array, Array]:
    """A[batch, m, k] and B[batch, k, n], of magnitudes that make every rounding matter."""
    rng = np.random.default_rng([batch, m, n, k])
    if stored.is_int:
        return tuple(rng.integers(stored.min, stored.max, s, endpoint=True).astype(NUMPY[stored])  # type: ignore
                     for s in ((batch, m, k), (batch, k, n)))
    return tuple((rng.standard_normal(s) * 2.0 ** rng.integers(-4, 4, s)).astype(NUMPY[stored])  # type: ignore
                 for s in ((batch, m, k), (batch, k, n)))


def reference(a: Array, b: Array, dtype: DType) -> Array:
    """The documented order, one k at a time."""
    (batch, m, depth), n = a.shape, b.shape[2]
    a, b = a.astype(NUMPY[dtype]), b.astype(NUMPY[dtype])
    acc = np.zeros((batch, m, n), NUMPY[dtype])
    for k in range(depth):
        x, y = np.broadcast_arrays(a[:, :, k, None], b[:, k, None, :])
        acc = arithmetic.evaluate("fma", x, y, acc) if dtype.is_float else acc + x * y
    with np.errstate(over="ignore"):
        return acc * NUMPY[dtype](2) + np.arange(n).astype(NUMPY[dtype])


def memory(x: Array, contiguous: str, last: str) -> Array:
    return np.ascontiguousarray(x if contiguous == last else x.swapaxes(1, 2)).reshape(-1)


def check(p: Program, batch: int, m: int, n: int, k: int, *, layout: str = "kn", dtype: DType = dt.float32,
          stored: DType | None = None, interpret: bool = False) -> None:
    a, b = operands(batch, m, n, k, stored or dtype)
    arrays = {"a": memory(a, layout[0], "k"), "b": memory(b, layout[1], "n"),
              "c": np.zeros(batch * m * n, NUMPY[dtype])}
    arrays = {name: x if x.size else np.zeros(1, x.dtype) for name, x in arrays.items()}
    (interpreter.run if interpret else run_on_cpu)(p, arrays)
    expected = reference(a, b, dtype)
    assert arrays["c"].tobytes() == expected.tobytes(), np.argwhere(arrays["c"] != expected.reshape(-1))[:5]


RAGGED = [(1, 1, 1, 1), (1, 1, 1, 0), (2, 31, 33, 63), (1, 65, 127, 64), (1, 14, 32, 128), (3, 15, 17, 1),
          (1, 1, 1000, 65), (1, 127, 1, 65), (40, 3, 5, 7), (1, 64, 64, 64), (1, 200, 160, 31), (5, 28, 48, 33)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", RAGGED, ids=lambda s: "x".join(map(str, s)))
def test_ragged_shapes_and_layouts(shape: tuple[int, int, int, int], layout: str) -> None:
    for tuning in (AVX512, TINY):
        check(program(*shape, layout=layout, tuning=tuning), *shape, layout=layout)


@pytest.mark.parametrize("tuning", [AVX512, AVX2, NEON, TINY], ids=["avx512", "avx2", "neon", "tiny"])
def test_every_machine_gives_the_same_bits(tuning: Tuning) -> None:
    for layout in LAYOUTS:
        check(program(2, 45, 70, 129, layout=layout, tuning=tuning), 2, 45, 70, 129, layout=layout)


@pytest.mark.parametrize("pack_a", [False, True])
@pytest.mark.parametrize("pack_b", [False, True])
@pytest.mark.parametrize("block", [(16, 5), (32, 3), (80, 1)])
def test_every_cut_gives_the_same_bits(pack_a: bool, pack_b: bool, block: tuple[int, int]) -> None:
    shape = (2, 33, 75, 77)
    for rows, width, m_parts, n_parts in ((14, 32, 2, 3), (5, 48, 7, 1), (33, 16, 1, 2), (4, 80, 1, 1), (6, 64, 3, 2),
                                          (9, 48, 1, 2)):
        cut = ContractionPlan(16, Axis(33, rows, m_parts), Axis(75, width, n_parts), *block, 2, pack_a, pack_b, 0)
        for layout in LAYOUTS if pack_b else ("kn", "mn"):
            check(program(*shape, layout=layout, cut=cut), *shape, layout=layout)


@pytest.mark.parametrize("dtype,stored", [(dt.float64, dt.float64), (dt.int32, dt.int32), (dt.int64, dt.int64),
                                          (dt.int32, dt.int8), (dt.float32, dt.float16)], ids=str)
def test_types(dtype: DType, stored: DType) -> None:
    for layout in ("kn", "mk"):
        for tuning in (AVX512, AVX2, TINY):
            p = program(1, 37, 50, 70, layout=layout, dtype=dtype, stored=stored, tuning=tuning)
            check(p, 1, 37, 50, 70, layout=layout, dtype=dtype, stored=stored)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands_contiguous_along_nothing(layout: str) -> None:
    """The same addresses, with nothing said about them: gathers."""
    check(program(2, 45, 70, 33, layout=layout, hints="--", tuning=TINY), 2, 45, 70, 33, layout=layout)


@pytest.mark.parametrize("tuning", [AVX512, TINY], ids=["avx512", "tiny"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpreter_finds_no_race_and_nothing_undefined(layout: str, tuning: Tuning) -> None:
    shape = (2, 17, 37, 35)
    check(program(*shape, layout=layout, tuning=tuning), *shape, layout=layout, interpret=True)


def test_work_of_prologue_and_epilogue_changes_the_plan_only() -> None:
    for layout in ("kn", "mk"):
        check(program(2, 45, 70, 129, layout=layout, work=9), 2, 45, 70, 129, layout=layout)


def test_thousand() -> None:
    shape = (1, 1000, 130, 1000)
    check(program(*shape), *shape)


def test_close_to_float64() -> None:
    """The error of a sum of K products in order stays below K half-ulps of sum |a b|."""
    p = program(1, 100, 100, 500)
    a, b = operands(1, 100, 100, 500, dt.float32)
    arrays = {"a": a.reshape(-1), "b": b.reshape(-1), "c": np.zeros(100 * 100, np.float32)}
    run_on_cpu(p, arrays)
    exact = 2 * (a.astype(np.float64) @ b) + np.arange(100)
    bound = 502 * 2.0**-24 * (2 * (np.abs(a).astype(np.float64) @ np.abs(b)) + np.arange(100))
    assert (np.abs(arrays["c"].reshape(exact.shape) - exact) <= bound).all()


def test_scratch_stays_within_bounds() -> None:
    rng = np.random.default_rng(0)
    nothing = lambda *_: None
    for _ in range(150):
        batch, m, n, k = (int(2 ** rng.uniform(0, high)) for high in (6, 16, 16, 20))
        c = Contraction(batch, m, n, k, [dt.float32, dt.float64, dt.int32][rng.integers(3)],
                        nothing, nothing, ["k", "m", ""][rng.integers(3)], ["n", "k", ""][rng.integers(3)],
                        nothing, *map(int, rng.integers(2, size=3)))  # type: ignore[arg-type]
        for tuning in (AVX512, AVX2, NEON):
            p = plan(c, tuning)
            assert p.scratch_bytes <= SCRATCH and p.groups >= 1, (c, p)


def test_plans_balance_and_read_well() -> None:
    for size in (1024, 2048, 4096):
        p = program(1, size, size, size)
        assert p.groups % 2 == 0 and p.groups >= 4
    c = Contraction(1, 1024, 1024, 1024, dt.float32, *(2 * [lambda *_: None]), "k", "n", lambda *_: None)  # type: ignore
    text = str(plan(c, AVX512))
    assert text.startswith("tile 6x64 (6x4 vectors), k 1 x 1024, B packed")
    heads = plan(replace(c, batch=64, m=64, n=64, k=64), AVX512)
    assert heads.groups >= 8 and heads.m.parts == heads.n.parts == 1


def test_k_is_cut_only_where_l2_does_not_hold_the_panels() -> None:
    def linear(m: int, n: int, k: int) -> ContractionPlan:
        return plan(Contraction(1, m, n, k, dt.float32, *(2 * [lambda *_: None]), "k", "k", lambda *_: None), AVX512)  # type: ignore
    for m in (64, 512, 2048):
        for n, k in ((768, 768), (2048, 768), (768, 2048), (256, 768)):
            p = linear(m, n, k)
            assert p.k_blocks == 1 and p.pack_b and p.groups % 2 == 0
            assert p.n.most * p.n.tile * k * 4 <= AVX512.l2_bytes // 2
    deep = linear(512, 768, 1 << 16)
    assert deep.k_blocks > 1 and deep.n.most * deep.n.tile * deep.k_block * 4 <= AVX512.l2_bytes // 2


TILES = [tiles.Tile(4, 4, 4, 8), tiles.Tile(8, 16, 4, 8), tiles.Tile(8, 8, 8, 8)]


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.height}x{t.width} by {t.lanes}")
@pytest.mark.parametrize("shape", [(1, 16, 32, 8), (2, 33, 70, 29), (1, 64, 128, 16), (3, 17, 100, 3), (1, 129, 65, 41)],
                         ids=lambda s: "x".join(map(str, s)))
def test_tiles_of_gpus(shape: tuple[int, int, int, int], tile: tiles.Tile) -> None:
    for layout in LAYOUTS:
        check(program(*shape, layout=layout, tile=tile), *shape, layout=layout, interpret=True)


@pytest.mark.parametrize("work", [0, 5])
@pytest.mark.parametrize("dtype, stored", [(dt.float64, dt.float64), (dt.int32, dt.int8), (dt.float32, dt.float16)])
def test_types_and_epilogues_of_tiles(dtype: DType, stored: DType, work: int) -> None:
    p = program(1, 20, 40, 19, dtype=dtype, stored=stored, tile=TILES[0], work=work)
    check(p, 1, 20, 40, 19, dtype=dtype, stored=stored, interpret=True)


def test_tiles_fit_the_machine() -> None:
    machine = replace(AVX512, lanes=32, vector_registers=160, units=1056, scratch_bytes=28 << 10, gathers=True)

    def found(m: int, n: int, dtype: DType = dt.float32) -> tiles.Tile | None:
        return tiles.plan(Contraction(1, m, n, 4096, dtype, *[None] * 2, "k", "n", None), machine)  # type: ignore[list-item,arg-type]
    big, wide = found(8192, 8192), found(8192, 8192, dt.float64)
    assert big is not None and big.rows * big.columns == 128
    assert wide is not None and wide.rows * wide.columns <= 64
    assert found(1, 4096) is None
    machine = AVX512
    assert found(64, 64) is None
