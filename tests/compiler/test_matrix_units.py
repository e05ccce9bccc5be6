"""The fast tier: matrix units in LIR, in generated code and on virtual GPUs. Judges: NumPy, and float64 with the stated error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import devrt
from devrt import nn
from devrt.array import Array
from devrt.compiler import arithmetic, convert, interpreter, lir, ops
from devrt.compiler import compile as pipeline
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.kernel import Kernel
from devrt.compiler.llvm import amdgcn
from devrt.compiler.lowering import matrix_units
from devrt.compiler.lowering.contract_plan import Tuning
from devrt.device import CompileError, InvalidArgument, Properties
from devrt.scheduler.plan import schedule
from devrt.scheduler.simplify import resolve

HALVES = (dt.float16, dt.bfloat16)
SHAPES = [(64, 64, 64), (8, 8, 1), (33, 40, 50), (17, 129, 31), (70, 9, 100)]  # m, n, k


def random(dtype: DType, *shape: int) -> np.ndarray:
    """float64 numbers that `dtype` holds, of magnitudes that make every rounding matter."""
    rng = np.random.default_rng(shape)
    x = (rng.standard_normal(shape) * 2.0 ** rng.integers(-4, 4, shape)).astype(np.float32)
    return convert.cast(convert.cast(x.ravel(), dt.float32, dtype), dtype, dt.float64).reshape(shape)


def on(device: str, x: np.ndarray, dtype: DType) -> Array:
    return devrt.asarray(x, device=device).astype(dtype).realize()


# ----- LIR


def mma_program(layout: str, dtype: DType, broken: str = "", turned: str = "", waves: int = 1) -> lir.Program:
    """out = a[16, depth] @ b[16, depth].T + c, all row-major, in each wave of 2 groups; `turned` operands lie the other way in
    shared memory."""
    form = lir.LAYOUTS[layout]
    depth, a = form.depth, form.align
    lda, ldb = depth + a, depth + 3 * a
    b = lir.Builder("mma", lanes=form.lanes * waves, groups=2)
    count = 512 * waves
    x, y = b.param("x", dtype, count * depth // 16), b.param("y", dtype, count * depth // 16)
    c, out = b.param("c", form.sums, count), b.param("out", form.sums, count, writable=True)
    size = 16 * (lda + ldb)
    tiles = b.shared("tiles", dtype, a + size * waves)
    lane, wave = (b.rem(b.lane(), b.idx(form.lanes)), b.div(b.lane(), b.idx(form.lanes))) if waves > 1 else (b.lane(), b.idx(0))
    tile = b.add(b.mul(b.group(), b.idx(waves)), wave)
    group = b.mul(tile, b.idx(256))
    mine = b.mul(wave, b.idx(size))
    for turn in range(16 * depth // form.lanes - (broken == "unwritten")):
        at = b.add(lane, b.idx(turn * form.lanes))
        row, k = b.div(at, b.idx(depth)), b.rem(at, b.idx(depth))
        for name, source, stride, first in (("a", x, lda, a), ("b", y, ldb, a + 16 * lda)):
            far, near = (k, row) if name in turned else (row, k)
            place = b.add(b.add(b.mul(far, b.idx(stride)), near), b.add(mine, b.idx(first)))
            b.store(tiles, place, b.load(source, b.add(b.mul(tile, b.idx(16 * depth)), at)))
    if broken != "race":
        b.barrier()
    elements = [[16 * i + j for i, j in (form.place(v, lane) for lane in range(form.lanes))] for v in range(form.registers)]
    assert sorted(e for each in elements for e in each) == list(range(256))
    places = [b.add(group, b.table(dt.int64, each, lane)) for each in elements]
    start = b.mul(lane, b.idx(8)) if broken == "lanes" else b.idx(4 if broken == "odd" else 4096 if broken == "outside" else a)
    sums = b.mma(tiles, b.add(mine, start), lda, b.add(mine, b.idx(a + 16 * lda)), ldb, [b.load(c, p) for p in places], layout,
                 turned)
    for place, value in zip(places, sums, strict=True):
        b.store(out, place, value)
    return b.finish()


@pytest.mark.parametrize(("layout", "dtype", "turned", "waves"), [
    *[(name, d, "", 1) for name, x in lir.LAYOUTS.items() for d in HALVES if d.name in x.types],
    ("hmma", dt.bfloat16, "a", 2), ("hmma8", dt.float16, "b", 1), ("hmma", dt.float16, "ab", 4)])
def test_mma_in_the_interpreter(layout: str, dtype: DType, turned: str, waves: int) -> None:
    tiles = 2 * waves
    x, y = random(dtype, tiles, 16, 16), random(dtype, tiles + 1, 16, 16)[:tiles]
    c = random(dt.float32, tiles, 16, 16).astype(np.float32)
    raw = [convert.cast(v.ravel(), dt.float64, dtype) for v in (x, y)]
    out = np.zeros(256 * tiles, np.float32)
    stored = [r.view(convert.storage_numpy(dtype)) for r in raw]
    program = mma_program(layout, dtype, turned=turned, waves=waves)
    interpreter.run(program, {"x": stored[0], "y": stored[1], "c": c.ravel(), "out": out})
    expected = c
    for k in range(16):
        left, right = np.broadcast_arrays(x[:, :, None, k].astype(np.float32), y[:, None, :, k].astype(np.float32))
        expected = arithmetic.evaluate("fma", left, right, expected)
    np.testing.assert_array_equal(out.reshape(tiles, 16, 16), expected)


@pytest.mark.parametrize(("broken", "why"), [("unwritten", "nothing has written"), ("race", "race"), ("odd", "multiple of 8"),
                                             ("lanes", "same in all lanes of a wave"), ("outside", "outside tiles")])
def test_the_interpreter_refuses(broken: str, why: str) -> None:
    zeros = {"x": np.zeros(512, np.float16), "y": np.zeros(512, np.float16), "c": np.zeros(512, np.float32)}
    with pytest.raises(CompileError, match=why):
        interpreter.run(mma_program("wmma", dt.float16, broken=broken), {**zeros, "out": np.zeros(512, np.float32)})


@pytest.mark.parametrize(("layout", "dtype"), [("imma", dt.int8), ("imma8", dt.uint8)])
def test_mma_of_bytes_wraps(layout: str, dtype: DType) -> None:
    rng = np.random.default_rng(5)
    numbers = np.uint8 if dtype is dt.uint8 else np.int8
    x, y = (rng.integers(np.iinfo(numbers).min, np.iinfo(numbers).max, (2, 16, 32), numbers, endpoint=True) for _ in range(2))
    c, out = rng.integers(-(1 << 31), (1 << 31) - 1, (2, 16, 16), np.int32, endpoint=True), np.zeros(512, np.int32)
    c[0, 0] = (1 << 31) - 1
    interpreter.run(mma_program(layout, dtype), {"x": x.ravel(), "y": y.ravel(), "c": c.ravel(), "out": out})
    np.testing.assert_array_equal(out.reshape(2, 16, 16), (c + x.astype(np.int64) @ y.transpose(0, 2, 1)).astype(np.int32))


def test_the_verifier_refuses() -> None:
    def program(lanes: int = 32, dtype: DType = dt.float16, layout: str = "wmma", stride: int = 16, sums: int = 8,
                turned: str = "") -> None:
        b = lir.Builder("mma", lanes=lanes, groups=1)
        zero = b.const(dt.float32, 0)
        b.mma(b.shared("tiles", dtype, 512), b.idx(0), stride, b.idx(256), 16, [zero] * sums, layout, turned)
        b.finish()
    program()
    program(64, layout="mfma", sums=4, dtype=dt.bfloat16)
    program(128, layout="hmma", turned="ab")
    for options, why in (({"lanes": 16}, "layouts"), ({"layout": "dot"}, "layouts"), ({"turned": "b"}, "turned"),
                         ({"turned": "c", "layout": "hmma"}, "turned"), ({"dtype": dt.float32}, "bfloat16 in a shared"),
                         ({"dtype": dt.bfloat16, "layout": "hmma8"}, "float16 in a shared"),
                         ({"stride": 20}, "multiple of 8"), ({"stride": 8}, "at least 16"), ({"sums": 4}, "8 registers")):
        with pytest.raises(CompileError, match=why):
            program(**options)


def test_mma_as_text() -> None:
    text = str(mma_program("mfma", dt.bfloat16))
    assert "= mma.mfma tiles[" in text and "0..15*24] x tiles[" in text
    assert "0..15*40].turned + " in str(mma_program("hmma", dt.bfloat16, turned="b"))


# ----- graphs and kernels


def test_only_halves_inside_fast_are_fast() -> None:
    half, single = devrt.ones((16, 16), dtype=devrt.float16), devrt.ones((16, 16))
    exact = (half @ half).node
    with devrt.fast():
        fast, of_singles = (half @ half).node, (single @ single).node
    assert (half @ half).node is exact and fast is not exact
    assert "fast" in ops.dump([fast]) and "fast" not in ops.dump([exact]) + ops.dump([of_singles])
    assert of_singles is (single @ single).node


def test_fast_ends_where_an_error_leaves_it() -> None:
    half = devrt.ones((16, 16), dtype=devrt.float16)
    with pytest.raises(RuntimeError), devrt.fast():
        raise RuntimeError
    assert "fast" not in ops.dump([(half @ half).node])


def test_a_fast_product_of_singles_is_refused() -> None:
    single = devrt.ones((1, 16, 16)).node
    with pytest.raises(InvalidArgument, match="no fast product"):
        ops.make(ops.Op.CONTRACT, (single, single), (dt.float32, "fast"))


def test_captured_functions_know_the_tier() -> None:
    half = devrt.ones((16, 16), dtype=devrt.float16).realize()
    step = devrt.capture(lambda x: x @ x)
    step(half)
    with devrt.fast():
        step(half)
    exact, fast = step.schedules()
    assert [".fast" in str(s.launches[0].kernel) for s in (exact, fast)] == [False, True]


def kernels(y: Array) -> list[Kernel]:
    plan, _ = schedule(resolve([y.node]), devrt.open("cpu").properties)
    return [x.kernel for x in plan.launches if x.kernel is not None]


def product(dtype: DType, m: int = 40, n: int = 70, k: int = 50) -> tuple[Array, Array]:
    """(exact, fast) of the same operands, in memory."""
    a, b = devrt.ones((m, k)).astype(dtype).realize(), devrt.ones((k, n)).astype(dtype).realize()
    with devrt.fast():
        fast = nn.gelu(a @ b)
    return nn.gelu(a @ b), fast


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("gfx", amdgcn.TARGETS)
def test_the_code_holds_matrix_instructions(gfx: str, dtype: DType) -> None:
    wave, _ = amdgcn.TARGETS[gfx]
    backend = pipeline.backend_for(Properties(gfx, "amd", gfx, 60, wave, 1 << 34, 64 << 10))
    exact, fast = ([backend.assembly(pipeline.lower(k, "k", backend.tuning)) for k in kernels(y)] for y in product(dtype))
    name = {"gfx1100": f"v_wmma_f32_16x16x16_{'f16' if dtype is dt.float16 else 'bf16'}",
            "gfx90a": f"v_mfma_f32_16x16x16{'f16' if dtype is dt.float16 else 'bf16_1k'}",
            "gfx942": f"v_mfma_f32_16x16x16_{'f16' if dtype is dt.float16 else 'bf16'}"}.get(gfx)
    assert not any("v_wmma" in text or "v_mfma" in text for text in exact)
    if name is None:
        assert not any("v_wmma" in text or "v_mfma" in text for text in fast)
    else:
        assert any(name in text for text in fast)


def test_blocks_follow_the_shape() -> None:
    def block(m: int, n: int) -> tuple[int, int]:
        p = matrix_units.Product(1, m, n, 64, dt.float16, None, None, True, True, None, 0)  # type: ignore[arg-type]
        found = matrix_units.plan(p, Tuning(32, 192, 8192, 32768, 60, 65536), "wmma")
        return found.rows, found.columns
    assert block(4096, 4096) == (4, 4) and block(64, 64) == (1, 1)
    assert block(16, 1 << 16)[0] == 1


def test_groups_of_several_waves() -> None:
    """128 x 256 of C where shared memory holds it, beside the sums of an epilogue too, and fewer waves where not."""
    def block(room: int, work: int, m: int = 4096) -> matrix_units.Block:
        p = matrix_units.Product(1, m, 4096, 4096, dt.float16, None, None, True, False, None, work)  # type: ignore[arg-type]
        return matrix_units.plan(p, Tuning(32, 160, 7168, 14336, 1056, 28672, waves=8, group_bytes=room), "hmma")
    assert [(x.height, x.width, x.waves) for x in (block(99 << 10, 0), block(99 << 10, 9))] == [(128, 256, 8)] * 2
    assert block(64 << 10, 9).waves == 4 and block(99 << 10, 0, 64).height <= 64


def run_interpreted(k: Kernel, lanes: int, units: str, arrays: list[np.ndarray], waves: int = 1) -> None:
    program = pipeline.lower(k, "k", Tuning(lanes, 128, 8192, 32768, 4, 65536, waves=waves, **{
        "byte_units" if lir.LAYOUTS[units].sums is dt.int32 else "matrix_units": units}))
    assert lanes * min(waves, 2) <= program.lanes <= lanes * waves
    assert any(i.op == "mma" for i in lir.walk(program.body))
    interpreter.run(program, {f"p{n}": x for n, x in enumerate(arrays)})


@pytest.mark.parametrize(("units", "waves"), [*[(name, 1) for name in lir.LAYOUTS], ("hmma", 4), ("hmma8", 8), ("imma", 4)])
@pytest.mark.parametrize("shape", [(33, 40, 50), (8, 70, 5), (128, 130, 64)])
def test_lowered_products_in_the_interpreter(units: str, waves: int, shape: tuple[int, int, int]) -> None:
    """No index leaves its array, nothing races, and sums over k in order are the exact tier's."""
    m, n, k = shape
    a, b = (random(dt.float16, *s).astype(np.float16) for s in ((m, k), (k, n)))
    kind = lir.LAYOUTS[units].sums
    if kind is dt.int32:
        k = max(k, 16)
        a, b = (np.random.default_rng(k).integers(-128, 127, s, np.int8, endpoint=True) for s in ((m, k), (k, n)))
    with devrt.fast():
        (kernel,) = kernels(devrt.matmul(devrt.asarray(a).realize(), devrt.asarray(b).realize(), dtype=kind))
    out = np.zeros(m * n, np.float32 if kind is dt.float32 else np.int32)
    run_interpreted(kernel, lir.LAYOUTS[units].lanes, units, [out, a.ravel(), b.ravel()], waves)
    exact = devrt.matmul(devrt.asarray(a), devrt.asarray(b), dtype=kind).numpy()
    np.testing.assert_array_equal(out.reshape(m, n), exact)


# ----- on virtual GPUs


@pytest.fixture(params=["gfx1100", "gfx942"])
def device(request: pytest.FixtureRequest) -> str:
    return f"virtual:amd/{request.param}"


def within(got: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """The error that docs/numerics.md states, of float64 operands a and b."""
    bound = 2 * a.shape[-1] * 2.0 ** -24 * (np.abs(a) @ np.abs(b))
    error = np.abs(got.astype(np.float64) - a @ b)
    assert (error <= bound).all(), f"off by {np.max(error / np.maximum(bound, 1e-300)):.2f} of the bound"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("shape", "layout"), [*zip(SHAPES, ["kn", "mn", "kk", "mk", "kk"], strict=True)], ids=str)
def test_products(device: str, shape: tuple[int, int, int], layout: str, dtype: DType) -> None:
    """`layout`: the contiguous index of A and of B. The same bits twice."""
    m, n, k = shape
    a, b = random(dtype, m, k), random(dtype, k, n)
    left = on(device, a, dtype) if layout[0] == "k" else on(device, a.T, dtype).T
    right = on(device, b, dtype) if layout[1] == "n" else on(device, b.T, dtype).T
    with devrt.fast():
        got = devrt.matmul(left, right, dtype=devrt.float32).numpy()
        again = devrt.matmul(left, right * 1, dtype=devrt.float32).numpy()
    within(got, a, b)
    np.testing.assert_array_equal(got, again)


@pytest.mark.parametrize(("sm", "shape", "layout", "dtype"), [
    (86, (64, 64, 64), "kn", dt.float16), (86, (33, 40, 50), "kk", dt.bfloat16), (86, (17, 129, 31), "mk", dt.bfloat16),
    (86, (128, 264, 96), "kn", dt.bfloat16), (86, (256, 136, 40), "mn", dt.float16), (75, (70, 9, 100), "mn", dt.float16),
    (75, (128, 130, 64), "kn", dt.float16), (75, (40, 40, 40), "kn", dt.bfloat16)], ids=str)
def test_products_on_nvidia(sm: int, shape: tuple[int, int, int], layout: str, dtype: DType) -> None:
    """Groups of several waves. Turing multiplies no bfloat16: the exact tier does."""
    m, n, k = shape
    a, b, r = random(dtype, m, k), random(dtype, k, n), random(dt.float32, m, n).astype(np.float32)
    name = f"virtual:nvidia/sm_{sm}"
    left = on(name, a, dtype) if layout[0] == "k" else on(name, a.T, dtype).T
    right = on(name, b, dtype) if layout[1] == "n" else on(name, b.T, dtype).T
    with devrt.fast():
        product = devrt.matmul(left, right, dtype=devrt.float32)
        got, biased = product.numpy(), (nn.gelu(product * 0.1) + devrt.asarray(r, device=name)).numpy()
    within(got, a, b)
    expected = nn.gelu(devrt.asarray(got) * 0.1) + devrt.asarray(r)
    np.testing.assert_array_equal(biased, expected.numpy())


@pytest.mark.parametrize("along_k", [False, True])
def test_the_largest_groups_on_nvidia(along_k: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 x 256 of C in 8 warps, which plans give to large products alone; the last step is short."""
    monkeypatch.setenv("DEVRT_CACHE", str(tmp_path))
    monkeypatch.setattr(matrix_units, "plan", lambda p, t, units: matrix_units.Block(4, 4, 2, 4))
    a, b = random(dt.bfloat16, 130, 88), random(dt.bfloat16, 88, 264)
    left, right = (on("virtual:nvidia/sm_86", x, dt.bfloat16) for x in (a if along_k else a.T, b.T if along_k else b))
    with devrt.fast():
        got = devrt.matmul(left if along_k else left.T, right.T if along_k else right, dtype=devrt.float32).numpy()
    within(got, a, b)


@pytest.mark.parametrize(("sm", "dtype", "shape", "layout"), [
    (86, np.int8, (40, 50, 64), "kn"), (86, np.uint8, (17, 33, 40), "mk"), (75, np.int8, (33, 40, 99), "kk"),
    (75, np.uint8, (64, 16, 64), "kn")], ids=str)
def test_products_of_bytes(sm: int, dtype: type, shape: tuple[int, int, int], layout: str) -> None:
    """On matrix units in the exact tier, with the CPU's bits: signs, the largest numbers, sums that are rounded or wrap."""
    m, n, k = shape
    rng, ends = np.random.default_rng(m), np.iinfo(dtype)
    a, b = (rng.integers(ends.min, ends.max, s, dtype, endpoint=True) for s in ((m, k), (k, n)))
    a[3], b[:, 5] = ends.min or 255, ends.min or 255

    def products(device: str) -> list[np.ndarray]:
        left, right = devrt.asarray(a if layout[0] == "k" else a.T, device=device).realize(), devrt.asarray(
            b if layout[1] == "n" else b.T, device=device).realize()
        left, right = left if layout[0] == "k" else left.T, right if layout[1] == "n" else right.T
        wide = devrt.int32 if dtype is np.int8 else devrt.uint32
        return [devrt.matmul(left, right, dtype=wide).numpy(), (left @ right).numpy(),
                (left.astype(wide) @ right.astype(wide)).astype(devrt.float32).numpy()]
    for got, want in zip(products(f"virtual:nvidia/sm_{sm}"), products("cpu"), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(products("cpu")[0], a.astype(np.int64) @ b.astype(np.int64))


def test_only_products_of_bytes_are_on_byte_units() -> None:
    """What was only made wider counts; different signs, other types and a handful of k do not."""
    t = pipeline.backend_for(Properties("sm_90", "nvidia", "sm_90", 132, 32, 1 << 34, 227 << 10)).tuning

    def units(a: devrt.DType, b: devrt.DType, wide: devrt.DType, k: int = 64) -> bool:
        x, y = devrt.zeros((32, k), dtype=a).realize(), devrt.zeros((k, 32), dtype=b).realize()
        (kernel,) = kernels(devrt.matmul(x.astype(wide), y.astype(wide)))
        return any(i.op == "mma" for i in lir.walk(pipeline.lower(kernel, "k", t).body))
    assert units(devrt.int8, devrt.int8, devrt.int32) and units(devrt.uint8, devrt.uint8, devrt.uint32)
    assert not units(devrt.int8, devrt.uint8, devrt.int32) and not units(devrt.int16, devrt.int16, devrt.int32)
    assert not units(devrt.int8, devrt.int8, devrt.int64) and not units(devrt.int8, devrt.int8, devrt.int32, k=9)


@pytest.mark.parametrize("other", ["cpu", "virtual:amd/gfx90a", "virtual:amd/gfx1030", "virtual:amd/gfx1201"])
def test_every_device_has_the_fast_tier(other: str) -> None:
    """Without matrix units it is the exact one."""
    a, b = random(dt.float16, 33, 50), random(dt.float16, 50, 40)
    left, right = on(other, a, dt.float16), on(other, b, dt.float16)
    with devrt.fast():
        got = devrt.matmul(left, right, dtype=devrt.float32).numpy()
    within(got, a, b)
    if "gfx90a" not in other:
        np.testing.assert_array_equal(got, devrt.matmul(left, right, dtype=devrt.float32).numpy())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_batches(device: str, dtype: DType) -> None:
    a, b = random(dtype, 3, 2, 20, 24), random(dtype, 2, 24, 18)
    with devrt.fast():
        got = devrt.matmul(on(device, a, dtype), on(device, b, dtype), dtype=devrt.float32).numpy()
    within(got, a, b)


EPILOGUES: dict[str, Callable[[Array, Array], Array]] = {
    "residual": lambda y, r: y + r,
    "gelu": lambda y, r: nn.gelu(y * 0.1),
    "both, transposed": lambda y, r: (nn.gelu(y * 0.1) + r).T,
    "bias and rounding": lambda y, r: (y + r[0]).astype(devrt.float16).astype(devrt.float32),
}


@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(device: str, name: str) -> None:
    """In float32 after a product whose own error is far below the tolerance."""
    a, b, r = random(dt.float16, 45, 40), random(dt.float16, 40, 37), random(dt.float32, 45, 37).astype(np.float32)
    left, right, residual = on(device, a, dt.float16), on(device, b, dt.float16), devrt.asarray(r, device=device)
    with devrt.fast():
        got = EPILOGUES[name](devrt.matmul(left, right, dtype=devrt.float32), residual).numpy()
    expected = EPILOGUES[name](devrt.asarray((a @ b).astype(np.float32)), devrt.asarray(r)).numpy()
    np.testing.assert_allclose(got, expected, rtol=2e-3 if "rounding" in name else 1e-4, atol=1e-3)


def test_prologues(device: str) -> None:
    """Padding, casts and gathered rows before the product."""
    a, b = random(dt.float16, 30, 21), random(dt.float16, 40, 26)
    rows = np.arange(29, -1, -1) % 7
    with devrt.fast():
        left = devrt.take(on(device, a, dt.float16), devrt.asarray(rows, device=device), axis=0) * 2
        right = devrt.pad(on(device, b, dt.float16), ((0, 0), (2, 3)))[5:26]
        got = devrt.matmul(left, right, dtype=devrt.float32).numpy()
    within(got, 2 * a[rows], np.pad(b, ((0, 0), (2, 3)))[5:26])


def test_what_is_not_finite_stays_where_it_is(device: str) -> None:
    a, b = random(dt.float16, 20, 33), random(dt.float16, 33, 20)
    a[3, 5], b[32, 7] = np.inf, np.nan
    with devrt.fast():
        got = devrt.matmul(on(device, a, dt.float16), on(device, b, dt.float16), dtype=devrt.float32).numpy()
    assert np.isnan(got[:, 7]).all() and not np.isfinite(got[3]).any()
    assert np.isfinite(np.delete(np.delete(got, 3, 0), 7, 1)).all()
