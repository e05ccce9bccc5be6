"""Every function keeps its bound, and docs/numerics.md says what is measured."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest

from devrt.compiler import dtypes as dt
from devrt.compiler import interpreter
from tests.numerics import error_table
from tests.numerics.functions import FUNCTIONS, quarter_turns
from tests.numerics.measure import evaluate, measure, measure_every_float32, points, program

ONE = [n for n, f in FUNCTIONS.items() if f.arguments == 1]
# Another C library may err by a little in the reference; the maximum over random points moves no further than that.
DRIFT = 0.002


@pytest.mark.parametrize("d", error_table.TYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bound_and_document(name, d):
    """Judges: float64 NumPy and the C library for the types up to float32, mpmath for float64."""
    m = measure(name, d)
    largest, bound = error_table.committed()[name, d.name]
    assert m.largest <= FUNCTIONS[name].bounds[d], f"at {m.at}"
    assert bound == FUNCTIONS[name].bounds[d]
    assert largest == pytest.approx(m.largest, abs=DRIFT)


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_huge_arguments_against_mpmath(name):
    """Around multiples of pi/2 and at random, up to the greatest float32; the bound is float32's, 0.90 ulp."""
    rng = np.random.default_rng(3)
    with np.errstate(over="ignore"):
        near = quarter_turns().astype(np.float32)
    x = np.concatenate([near[np.isfinite(near)], np.exp2(rng.uniform(17, 128, 500)).astype(np.float32),
                        np.array([1e30, np.finfo(np.float32).max, 16367173 * 2.0 ** 72], np.float32)])
    x = x[np.isfinite(x)]
    y = evaluate(name, dt.float32, x)
    with mp.workprec(400):
        for at, got in zip(x.tolist(), y.tolist(), strict=True):
            want = getattr(mp, name)(mp.mpf(at))
            ulp = mp.mpf(2) ** max(mp.frexp(want)[1] - 24, -149)
            assert abs(got - want) <= FUNCTIONS[name].bounds[dt.float32] * ulp, at


@pytest.mark.parametrize("d", error_table.TYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_machine_code_agrees_with_the_interpreter(name, d):
    """The same bits, on 8,192 of the measured arguments."""
    xs = points(FUNCTIONS[name], d)
    pick = np.random.default_rng(4).integers(0, xs[0].size, 8192)
    xs = tuple(np.ascontiguousarray(x[pick]) for x in xs)
    y = np.empty_like(xs[0])
    bits = f"u{y.itemsize}"
    interpreter.run(program(name, d, 8192), {**{f"x{k}": _raw(x) for k, x in enumerate(xs)}, "y": _raw(y)})
    assert np.array_equal(evaluate(name, d, *xs).view(bits), y.view(bits))


def _raw(x):
    """As the interpreter takes it: bfloat16 by its bits."""
    return x if x.dtype.kind == "f" else x.view(np.uint16)


INF, NAN, TINY = math.inf, math.nan, 2.0 ** -149
SPECIAL = {
    "exp2": [(0.0, 1), (-0.0, 1), (INF, INF), (-INF, 0), (NAN, NAN), (128, INF), (-149, TINY), (-151, 0), (10, 1024),
             (TINY, 1), (127, 2.0 ** 127)],
    "log2": [(0.0, -INF), (-0.0, -INF), (INF, INF), (-INF, NAN), (NAN, NAN), (-1, NAN), (1, 0.0), (TINY, -149),
             (1024, 10), (-TINY, NAN)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (NAN, NAN), (TINY, TINY), (-TINY, -TINY)],
    "cos": [(0.0, 1), (-0.0, 1), (INF, NAN), (-INF, NAN), (NAN, NAN), (TINY, 1)],
    "exp": [(0.0, 1), (-0.0, 1), (INF, INF), (-INF, 0.0), (NAN, NAN), (1e30, INF), (-1e30, 0.0)],
    "log": [(0.0, -INF), (-0.0, -INF), (INF, INF), (-INF, NAN), (NAN, NAN), (-1, NAN), (1, 0.0)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1), (NAN, NAN), (TINY, TINY), (-TINY, -TINY)],
    "sigmoid": [(0.0, 0.5), (INF, 1), (-INF, 0.0), (NAN, NAN), (-1e30, 0.0)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1), (NAN, NAN), (TINY, TINY)],
    "gelu": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -0.0), (NAN, NAN), (1e30, float(np.float32(1e30)))],
    "gelu_tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -0.0), (NAN, NAN), (1e30, float(np.float32(1e30)))],
}


@pytest.mark.parametrize("name", ONE)
def test_special_values(name):
    """Exactly, the sign of zero included, and NaN as the canonical one; judge: C99 annex F where it speaks."""
    x, want = (np.array(v, np.float32) for v in zip(*SPECIAL[name], strict=True))
    want = np.where(np.isnan(want), np.float32(np.nan), want)
    assert evaluate(name, dt.float32, x).view(np.uint32).tolist() == want.view(np.uint32).tolist()


@pytest.mark.parametrize("d", [dt.float32, dt.float64], ids=str)
def test_pow_special_values(d):
    """Judge: Python's math.pow, which is the C library's, with its exceptions as IEEE 754 results."""
    values = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, INF, -INF, NAN, 2.5, 1e10, -1e10, 16777217.0]
    kind = np.float32 if d is dt.float32 else np.float64
    x, y = (v.ravel().astype(kind) for v in np.meshgrid(values, values))
    for a, b, got in zip(x.tolist(), y.tolist(), evaluate("pow", d, x, y).tolist(), strict=True):
        with np.errstate(all="ignore"):
            want = float(np.power(np.array([a]), np.array([b])).astype(kind)[0])
        assert math.isnan(got) and math.isnan(want) or got == pytest.approx(want, rel=1e-6) \
            and math.copysign(1, got) == math.copysign(1, want), (a, b, got, want)


@pytest.mark.parametrize("n", [-149, -126, -1, 0, 1, 64, 127])
def test_powers_of_two_are_exact(n):
    assert evaluate("exp2", dt.float32, np.array([n], np.float32))[0] == 2.0 ** n
    assert evaluate("log2", dt.float32, np.array([2.0 ** n], np.float32))[0] == n


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE)
def test_every_float32(name):
    """All 2^32 arguments keep the bound; judges: NumPy and the C library in float64."""
    m = measure_every_float32(name)
    assert m.largest <= FUNCTIONS[name].bounds[dt.float32], f"at {m.at}"
