"""Attention against its definition in NumPy, bit for bit, over shapes, bounds and machines; and against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from devrt.compiler import arithmetic, interpreter
from devrt.compiler import dtypes as dt
from devrt.compiler.convert import Array
from devrt.compiler.lir import Builder, Program, Reg
from devrt.compiler.lowering.attention import Attention, AttentionPlan, lower, plan
from devrt.compiler.lowering.contract_plan import SCRATCH, Tuning
from devrt.compiler.transcendental import exp2
from tests.compiler.on_cpu import run_on_cpu

AVX512 = Tuning(16, 32, 48 << 10, 2 << 20, 2)
AVX2 = Tuning(8, 16, 32 << 10, 512 << 10, 4)
NEON = Tuning(4, 32, 64 << 10, 1 << 20, 8)
Shape = tuple[int, int, int, int, int]  # batch, queries, keys, depth, value depth


def program(shape: Shape, *, causal: int | None = None, window: int | None = None, tuning: Tuning = AVX512,
            cut: AttentionPlan | None = None) -> Program:
    batch, queries, keys, depth, value_depth = shape

    def element(b: Builder, name: str, rows: int, width: int, at: tuple[Reg, Reg, Reg], mask: Reg | None) -> Reg:
        row = b.add(b.mul(at[0], b.idx(rows)), at[1])
        return b.load(arrays[name], b.add(b.mul(row, b.idx(width)), at[2]), mask)

    def score(b: Builder, t: Reg, i: Reg, j: Reg, value: Reg) -> Reg:
        return b.mul(value, b.const(dt.float32, factor(depth)))

    def store(b: Builder, t: Reg, i: Reg, e: Reg, value: Reg, mask: Reg | None) -> None:
        row = b.add(b.mul(t, b.idx(queries)), i)
        b.store(arrays["o"], b.add(b.mul(row, b.idx(value_depth)), e), b.canon(value), mask)

    a = Attention(batch, queries, keys, depth, value_depth,
                  lambda b, t, i, d, mask: element(b, "q", queries, depth, (t, i, d), mask),
                  lambda b, t, j, d, mask: element(b, "k", keys, depth, (t, j, d), mask),
                  lambda b, t, j, e, mask: element(b, "v", keys, value_depth, (t, j, e), mask),
                  score, store, causal, window)
    cut = cut or plan(a, tuning)
    builder = Builder("attention", lanes=cut.lanes, groups=cut.groups)
    sizes = {"q": queries * depth, "k": keys * depth, "v": keys * value_depth, "o": queries * value_depth}
    arrays = {name: builder.param(name, dt.float32, batch * size, writable=name == "o") for name, size in sizes.items()}
    lower(builder, a, cut)
    result = builder.finish()
    assert result.shared_bytes <= SCRATCH
    return result


def factor(depth: int) -> float:
    return float(np.float32(math.log2(math.e) / math.sqrt(depth)))


def operands(shape: Shape) -> dict[str, Array]:
    batch, queries, keys, depth, value_depth = shape
    rng = np.random.default_rng(shape)
    return {"q": 3 * rng.standard_normal((batch, queries, depth)).astype(np.float32),
            "k": rng.standard_normal((batch, keys, depth)).astype(np.float32),
            "v": rng.standard_normal((batch, keys, value_depth)).astype(np.float32)}


def run(p: Program, x: dict[str, Array], shape: Shape, *, interpret: bool = False) -> Array:
    arrays = {name: a.reshape(-1) for name, a in x.items()}
    arrays["o"] = np.zeros(shape[0] * shape[1] * shape[4], np.float32)
    (interpreter.run if interpret else run_on_cpu)(p, arrays)
    return arrays["o"].reshape(shape[0], shape[1], shape[4])


def two_to(x: Array) -> Array:
    """exp2 as the compiler defines it, by the interpreter."""
    b = Builder("powers", lanes=1, groups=x.size)
    source, result = b.param("x", dt.float32, x.size), b.param("y", dt.float32, x.size, writable=True)
    b.store(result, b.group(), exp2(b, b.load(source, b.group())))
    y = np.zeros(x.size, np.float32)
    interpreter.run(b.finish(), {"x": np.ascontiguousarray(x).reshape(-1), "y": y})
    return y.reshape(x.shape)


def fma(a: Array, b: Array, c: Array) -> Array:
    return arithmetic.evaluate("fma", *np.broadcast_arrays(a, b, c))


def seen(shape: Shape, causal: int | None, window: int | None) -> Array:
    """[queries, keys]: which keys are visible."""
    i, j = np.arange(shape[1])[:, None], np.arange(shape[2])[None, :]
    visible = np.ones((shape[1], shape[2]), bool)
    if causal is not None:
        visible &= j <= i + causal
        if window is not None:
            visible &= j > i + causal - window
    return visible


def reference(shape: Shape, x: dict[str, Array], causal: int | None = None, window: int | None = None) -> Array:
    """The definition in attention.py, a query a row, all batch elements at once."""
    batch, queries, keys, depth, value_depth = shape
    q, k, v = x["q"], x["k"], x["v"]
    visible = seen(shape, causal, window)
    s = np.zeros((batch, queries, keys), np.float32)
    for d in range(depth):
        s = fma(q[:, :, None, d], k[:, None, :, d], s)
    s = np.where(visible, s * np.float32(factor(depth)), np.float32(-np.inf))
    m = np.full((batch, queries), -np.inf, np.float32)
    total = np.zeros_like(m)
    out = np.zeros((batch, queries, value_depth), np.float32)
    with np.errstate(all="ignore"):
        for first in range(0, keys, 64):
            block = range(first, min(first + 64, keys))
            sees = visible[:, block].any(1)
            n = np.fmax(m, np.fmax.reduce(s[:, :, block], axis=2))
            c = np.where(n == -np.inf, np.float32(0), n)
            p, a = two_to(s[:, :, block] - c[:, :, None]), two_to(m - c)
            added = np.zeros_like(m)
            for j in range(len(block)):
                added = added + p[:, :, j]
            new = out * a[:, :, None]
            for j, key in enumerate(block):
                new = fma(p[:, :, j, None], v[:, None, key, :], new)
            out = np.where(sees[None, :, None], new, out)
            total = np.where(sees[None], fma(total, a, added), total)
            m = np.where(sees[None], n, m)
        out = out * (np.float32(1) / total)[:, :, None]
    return arithmetic.evaluate("canon", out)


def same(a: Array, b: Array) -> bool:
    return a.tobytes() == b.tobytes()


SHAPES: list[Shape] = [(1, 1, 1, 1, 1), (2, 31, 33, 17, 15), (1, 64, 64, 64, 64), (1, 65, 127, 20, 33),
                       (3, 5, 200, 8, 40), (1, 100, 63, 16, 16), (2, 16, 130, 33, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_ragged_shapes(shape: Shape) -> None:
    x = operands(shape)
    assert same(run(program(shape), x, shape), reference(shape, x))


@pytest.mark.parametrize("tuning", [AVX512, AVX2, NEON], ids=["avx512", "avx2", "neon"])
@pytest.mark.parametrize("causal,window", [(None, None), (0, None), (64, None), (37, None), (-5, None), (30, 20),
                                           (64, 64), (0, 1)])
def test_every_machine_gives_the_same_bits(causal: int | None, window: int | None, tuning: Tuning) -> None:
    shape = (2, 90, 150, 24, 20)
    x = operands(shape)
    assert same(run(program(shape, causal=causal, window=window, tuning=tuning), x, shape),
                reference(shape, x, causal, window))


@pytest.mark.parametrize("vectors,rows", [(1, 3), (2, 8), (3, 5), (4, 6), (5, 1)])
def test_every_cut_gives_the_same_bits(vectors: int, rows: int) -> None:
    """Also where hidden keys carry values that would show: infinities, and products that vanish to -0."""
    shape = (1, 150, 150, 8, 24)
    x = operands(shape)
    x["v"][:, 70::3] = np.inf
    x["v"][:, :60, ::2] = -1e-45
    for causal, window in ((0, None), (13, None), (5, 30)):
        cut = AttentionPlan(16, vectors, rows, -(-150 // (16 * vectors)), 0)
        assert same(run(program(shape, causal=causal, window=window, cut=cut), x, shape),
                    reference(shape, x, causal, window))


def test_special_values() -> None:
    """A query that sees nothing, infinite scores, NaN in each operand."""
    shape = (1, 40, 70, 8, 8)
    x = operands(shape)
    x["q"][0, 7] = np.nan
    x["k"][0, 3] = np.inf
    x["v"][0, 20, 2] = np.nan
    result = run(program(shape, causal=-10), x, shape)
    assert same(result, reference(shape, x, -10))
    assert np.isnan(result[0, :10]).all() and np.isnan(result[0, 30:, 2]).all()


@pytest.mark.parametrize("causal,window", [(None, None), (3, None), (3, 9)])
def test_interpreter_finds_no_race_and_nothing_undefined(causal: int | None, window: int | None) -> None:
    shape = (1, 19, 70, 5, 6)
    x = operands(shape)
    p = program(shape, causal=causal, window=window, tuning=NEON)
    assert same(run(p, x, shape, interpret=True), reference(shape, x, causal, window))


@pytest.mark.parametrize("causal", [None, 0])
def test_close_to_float64(causal: int | None) -> None:
    """The scores lose the most: |s| is up to 30, and half an ulp of it is a relative error of a weight."""
    shape = (4, 256, 256, 64, 64)
    x = operands(shape)
    q, k, v = (x[name].astype(np.float64) for name in "qkv")
    s = np.where(seen(shape, causal, None), q @ k.swapaxes(1, 2) / 8, -np.inf)
    weights = np.exp(s - s.max(-1, keepdims=True))
    exact = weights / weights.sum(-1, keepdims=True) @ v
    assert np.abs(run(program(shape, causal=causal), x, shape) - exact).max() < 30 * 2.0**-22
