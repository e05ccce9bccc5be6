"""Element-wise functions against NumPy, on every pair of edge values of every type, bit for bit where they are exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import devrt
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from tests.array.reference import ARITHMETIC, FLOATS, INTS, NP, array, edges, numbers, pairs, same, tolerance, value

pytestmark = pytest.mark.filterwarnings("ignore")


def exact_binary(name: str, reference: Callable[..., Any], d: DType) -> None:
    a, b = pairs(d)
    same(getattr(devrt, name)(array(a), array(b)), reference(a, b))


@pytest.mark.parametrize("d", ARITHMETIC, ids=str)
@pytest.mark.parametrize("name, reference", [
    ("add", np.add), ("multiply", np.multiply), ("equal", np.equal), ("not_equal", np.not_equal), ("less", np.less),
    ("less_equal", np.less_equal), ("greater", np.greater), ("greater_equal", np.greater_equal),
    ("logical_and", np.logical_and), ("logical_or", np.logical_or), ("logical_xor", np.logical_xor)], ids=lambda x: x)
def test_binary(name: str, reference: Callable[..., Any], d: DType) -> None:
    exact_binary(name, reference, d)


@pytest.mark.parametrize("d", [*INTS, *FLOATS], ids=str)
def test_subtract(d: DType) -> None:
    exact_binary("subtract", np.subtract, d)


@pytest.mark.parametrize("d", ARITHMETIC, ids=str)
@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_maximum_minimum(name: str, d: DType) -> None:
    """NaN if either is; -0 is less than +0, where NumPy takes either."""
    a, b = pairs(d)
    want = getattr(np, name)(a, b)
    if d.is_float:
        zeros = (a == 0) & (b == 0)
        both = np.signbit(a) & np.signbit(b) if name == "maximum" else np.signbit(a) | np.signbit(b)
        want = np.where(zeros, np.where(both, -0.0, 0.0).astype(NP[d]), want)
    same(getattr(devrt, name)(array(a), array(b)), want)


@pytest.mark.parametrize("d", [dt.bool_, *INTS], ids=str)
@pytest.mark.parametrize("name", ["bitwise_and", "bitwise_or", "bitwise_xor"])
def test_bitwise(name: str, d: DType) -> None:
    exact_binary(name, getattr(np, name), d)


@pytest.mark.parametrize("d", [dt.bool_, *INTS], ids=str)
def test_bitwise_invert(d: DType) -> None:
    same(devrt.bitwise_invert(array(edges(d))), np.invert(edges(d)))
    same(~array(edges(d)), np.invert(edges(d)))


@pytest.mark.parametrize("d", INTS, ids=str)
def test_shifts(d: DType) -> None:
    """By amounts up to twice the width and beyond: left gives 0, right gives the sign. Negative amounts count as large."""
    a = edges(d)
    amounts = [n for n in (0, 1, 3, d.bits - 1, d.bits, d.bits + 1, min(d.max, 2 * d.bits)) if n <= d.max]
    for n in amounts:
        b = np.full(a.shape, n, NP[d])
        wide = [int(v) << n if n < d.bits else 0 for v in a]
        left = np.array([v & (1 << d.bits) - 1 for v in wide], np.uint64).astype(NP[d])
        same(devrt.bitwise_left_shift(array(a), array(b)), left)
        same(devrt.bitwise_right_shift(array(a), array(b)), np.array([int(v) >> n for v in a], NP[d]))


@pytest.mark.parametrize("d", INTS, ids=str)
def test_integer_division(d: DType) -> None:
    """Floor division and remainder as Python's; x // 0 = x % 0 = 0, and the least value by -1 wraps."""
    a, b = pairs(d)
    mask = (1 << d.bits) - 1
    q = [int(x) // int(y) if y else 0 for x, y in zip(a, b, strict=True)]
    r = [int(x) % int(y) if y else 0 for x, y in zip(a, b, strict=True)]
    same(array(a) // array(b), np.array([v & mask for v in q], np.uint64).astype(NP[d]))
    same(array(a) % array(b), np.array([v & mask for v in r], np.uint64).astype(NP[d]))


@pytest.mark.parametrize("d", FLOATS, ids=str)
def test_float_division(d: DType) -> None:
    exact_binary("divide", np.divide, d)


@pytest.mark.parametrize("d", (dt.float32, dt.float64), ids=str)
def test_float_floor_divide_and_remainder(d: DType) -> None:
    a, b = numbers(d, 1000), numbers(d, 1000, 5)
    b[b == 0] = 1
    same(devrt.floor_divide(array(a), array(b)), np.floor(a / b))
    got, want = value(devrt.remainder(array(a), array(b))), np.remainder(a, b)
    quotient = np.abs(a / b) + 1
    gap = np.abs(got - want)
    assert np.all(np.minimum(gap, np.abs(gap - np.abs(b))) <= quotient * np.abs(b) * np.finfo(NP[d]).eps)
    assert np.all((got == 0) | (np.signbit(got) == np.signbit(b)))


@pytest.mark.parametrize("a, b, want", [(dt.int32, dt.int32, dt.float32), (dt.int64, dt.int64, dt.float64),
                                        (dt.uint8, dt.int8, dt.float32),
                                        (dt.bool_, dt.bool_, dt.float32)], ids=str)
def test_true_division_of_integers(a: DType, b: DType, want: DType) -> None:
    x, y = numbers(a, 100), numbers(b, 100, 3)
    y = np.where(y == 0, 1, y).astype(y.dtype)
    same(array(x) / array(y), x.astype(NP[want]) / y.astype(NP[want]))


@pytest.mark.parametrize("d", [*INTS, *FLOATS], ids=str)
@pytest.mark.parametrize("name", ["negative", "abs", "sign", "square", "floor", "ceil", "trunc", "round"])
def test_exact_unary(name: str, d: DType) -> None:
    a = edges(d)
    a = np.concatenate([a, numbers(d, 200)])
    wide = a.astype(np.float32) if d is dt.bfloat16 else a
    want = {"round": np.rint}.get(name, getattr(np, name, None))(wide)
    if d.is_int and name in ("floor", "ceil", "trunc", "round"):
        want = a
    if name == "sign" and d.is_float:
        want = np.where(wide == 0, np.zeros_like(want), want)  # sign(-0) = 0
    same(getattr(devrt, name)(array(a)), np.asarray(want).astype(NP[d]))


@pytest.mark.parametrize("d", ARITHMETIC, ids=str)
@pytest.mark.parametrize("name", ["isnan", "isinf", "isfinite", "logical_not"])
def test_predicates(name: str, d: DType) -> None:
    a = edges(d)
    same(getattr(devrt, name)(array(a)), getattr(np, name)(a))


@pytest.mark.parametrize("d", [*INTS, *FLOATS], ids=str)
def test_signbit(d: DType) -> None:
    a = edges(d)
    same(devrt.signbit(array(a)), np.signbit(a) if d.is_float else a < 0)


@pytest.mark.parametrize("d", FLOATS, ids=str)
def test_sqrt_and_reciprocal_are_correctly_rounded(d: DType) -> None:
    a = np.concatenate([edges(d), numbers(d, 500)])
    same(devrt.sqrt(array(a)), np.sqrt(a))
    same(devrt.reciprocal(array(a)), (np.ones_like(a) / a))


@pytest.mark.parametrize("d", FLOATS, ids=str)
@pytest.mark.parametrize("name, low, high", [
    ("exp", -20, 20), ("exp2", -20, 20), ("log", 1e-3, 1e3), ("log2", 1e-3, 1e3), ("sin", -30, 30), ("cos", -30, 30),
    ("tan", -1.5, 1.5), ("tanh", -5, 5), ("erf", -4, 4), ("sigmoid", -10, 10)])
def test_transcendental(name: str, low: float, high: float, d: DType) -> None:
    a = np.random.default_rng(1).uniform(low, high, 1000).astype(NP[d])
    if d is dt.float16 and name in ("exp", "exp2"):
        a = a / 2
    wide = torch.tensor(a.astype(np.float64))
    want = getattr(torch, name)(wide).numpy()
    got = value(getattr(devrt, name)(array(a))).astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=2 * tolerance(d),
                               atol=tolerance(d) if name in ("sin", "cos", "log", "log2") else
                               6e-8 if d is dt.float16 else 0)


@pytest.mark.parametrize("name, at, want", [
    ("exp", [-math.inf, math.inf, math.nan, 0.0, 1000.0, -1000.0], [0, math.inf, math.nan, 1, math.inf, 0]),
    ("log", [0.0, -0.0, -1.0, math.inf, math.nan, 1.0], [-math.inf, -math.inf, math.nan, math.inf, math.nan, 0]),
    ("log2", [0.0, -1.0, math.inf, math.nan, 8.0, 2.0**-149], [-math.inf, math.nan, math.inf, math.nan, 3, -149]),
    ("exp2", [-math.inf, math.inf, math.nan, -149.0, 10.0, 128.0], [0, math.inf, math.nan, 2.0**-149, 1024, math.inf]),
    ("sin", [0.0, -0.0, math.inf, math.nan], [0.0, -0.0, math.nan, math.nan]),
    ("cos", [0.0, math.inf, math.nan], [1.0, math.nan, math.nan]),
    ("tanh", [math.inf, -math.inf, math.nan, 0.0, -0.0, 50.0], [1, -1, math.nan, 0.0, -0.0, 1]),
    ("erf", [math.inf, -math.inf, math.nan, 0.0], [1, -1, math.nan, 0]),
    ("sigmoid", [math.inf, -math.inf, math.nan, 0.0], [1, 0, math.nan, 0.5])])
@pytest.mark.parametrize("d", (dt.float32, dt.float64), ids=str)
def test_limits(name: str, at: list[float], want: list[float], d: DType) -> None:
    if name in ("log2", "exp2") and d is dt.float64:
        kept = [(a, v) for a, v in zip(at, want, strict=True) if abs(a) not in (128, 149)]  # float32's ends
        at, want = [a for a, _ in kept], [v for _, v in kept]
    same(getattr(devrt, name)(array(np.array(at, NP[d]))), np.array(want, NP[d]))


@pytest.mark.parametrize("d", (dt.float32, dt.float64), ids=str)
def test_fma_rounds_once(d: DType) -> None:
    eps = float(np.finfo(NP[d]).eps)
    a = np.array([1 + eps, 1 + eps], NP[d])
    c = np.array([-(1 + 2 * eps), 0], NP[d])
    same(devrt.fma(array(a), array(a), array(c)), np.array([eps * eps, 1 + 2 * eps], NP[d]))
    same(array(a) * array(a) + array(c), a * a + c)  # no contraction of separate operations


@pytest.mark.parametrize("d", [*INTS, *FLOATS], ids=str)
def test_pow(d: DType) -> None:
    a = numbers(d, 300)
    for n in (0, 1, 2, 3, 4, 7):
        if d.is_int:
            same(array(a) ** n, np.array([pow(int(v), n) & (1 << d.bits) - 1 for v in a], np.uint64).astype(NP[d]))
        else:
            want = np.power(a.astype(np.float64), n)
            np.testing.assert_allclose(value(array(a) ** n).astype(np.float64), want, rtol=4 * tolerance(d),
                                       atol=tolerance(d) ** 2)
    if d.is_int:
        b = np.abs(numbers(d, 300, 9)) % 9
        same(devrt.pow(array(a), array(b)), np.array([pow(int(x), int(y)) & (1 << d.bits) - 1 for x,
                                                      y in zip(a, b, strict=True)],
                                                     np.uint64).astype(NP[d]))
    else:
        x, y = np.abs(a) + NP[d].type(0.1), numbers(d, 300, 4)
        np.testing.assert_allclose(value(devrt.pow(array(x), array(y))).astype(np.float64),
                                   np.power(x.astype(np.float64), y.astype(np.float64)), rtol=4 * tolerance(d))


def test_pow_of_special_values() -> None:
    base = np.array([0, -0.0, 1, -1, 2, -2, 0.5, np.inf, -np.inf, np.nan], np.float32)
    a, b = (x.reshape(-1) for x in np.meshgrid(base, np.array([0, 1, -1, 2, -2, 3, -3, 0.5, np.inf, -np.inf, np.nan],
                                                              np.float32)))
    same(devrt.pow(array(a.copy()), array(b.copy())), np.power(a, b))


def test_integer_pow_of_negative_exponents() -> None:
    a = np.array([1, -1, 2, 0, -3], np.int32)
    assert devrt.pow(array(a), array(np.full(5, -3, np.int32))).tolist() == [1, -1, 0, 0, 0]
    assert (array(a) ** -2).tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("d", [*INTS, *FLOATS], ids=str)
def test_clip(d: DType) -> None:
    a = numbers(d, 100)
    lo, hi = (-1, 5) if d.is_signed else (2, 5)
    same(devrt.clip(array(a), lo, hi), np.minimum(np.maximum(a, NP[d].type(lo)), NP[d].type(hi)))
    same(devrt.clip(array(a), min=lo), np.maximum(a, NP[d].type(lo)))
    same(devrt.clip(array(a), max=array(np.full(100, hi, NP[d]))), np.minimum(a, NP[d].type(hi)))


@pytest.mark.parametrize("d", ARITHMETIC, ids=str)
def test_where(d: DType) -> None:
    c, a, b = numbers(dt.bool_, (4, 33)), numbers(d, (33,)), numbers(d, (4, 1), 2)
    same(devrt.where(array(c), array(a), array(b)), np.where(c, a, b))
    zero = NP[d].type(0)
    same(devrt.where(array(c), array(a), False), np.where(c, a, zero))


def test_python_operators() -> None:
    """Each operator, arrays on both sides, scalars on either."""
    a, b = numbers(dt.float32, 20), np.abs(numbers(dt.float32, 20, 7)) + np.float32(0.5)
    x, y = array(a), array(b)
    for got, want in [(x + y, a + b), (x - y, a - b), (x * y, a * b), (x / y, a / b), (2 - x, 2 - a), (2 * x, 2 * a),
                      (x - 1.5, a - np.float32(1.5)),
                      (1 / y, 1 / b), (-x, -a), (+x, a), (abs(x), np.abs(a)), (x < y, a < b), (x <= 0, a <= 0),
                      (x > y, a > b),
                      (x >= y, a >= b), (x == x, a == a), (x != y, a != b), (devrt.less(1.0, x), a > 1), (5 + x, 5 + a),
                      (x // y, np.floor(a / b))]:
        same(got, np.asarray(want))
    i, j = numbers(dt.int32, 20), np.abs(numbers(dt.int32, 20, 8)) % 8 + 1
    p, q = array(i), array(j.astype(np.int32))
    for got, want in [(p & q, i & j), (p | q, i | j), (p ^ q, i ^ j), (p << q, i << j), (p >> q, i >> j),
                      (p // q, i // j), (p % q, i % j),
                      (~p, ~i), (7 & p, 7 & i), (7 | p, 7 | i), (7 ^ p, 7 ^ i), (1 << q, 1 << j),
                      (1000 >> q, 1000 >> j), (100 // q, 100 // j),
                      (100 % q, 100 % j), (p ** 2, i ** 2), (2 ** q, 2 ** j)]:
        same(got, np.asarray(want).astype(np.int32))
    m = numbers(dt.float32, (3, 20))
    same(array(m) @ x, (m @ a), rtol=1e-5, atol=1e-6)
    assert type(x.__add__("text")) is type(NotImplemented)
    np.testing.assert_array_equal((a + x).numpy(), a + a)  # NumPy defers to Array


@pytest.mark.parametrize("a", dt.ALL, ids=str)
def test_promotion(a: DType) -> None:
    """NumPy's table where it has the types, with three exceptions: integers with floats keep the float."""
    for b in dt.ALL:
        got = (array(numbers(a, 3), a) + array(numbers(b, 3), b)).dtype
        assert got is dt.promote(a, b) is dt.promote(b, a) is devrt.result_type(a, b)
        if a.storage or b.storage or dt.bfloat16 in (a, b):
            continue
        want = np.promote_types(NP[a], NP[b])
        if a.is_float != b.is_float and "bool" not in (a.kind, b.kind):
            want = NP[a if a.is_float else b]
        assert NP[got] == want, (a, b)


@pytest.mark.parametrize("d", dt.ALL, ids=str)
def test_scalars_take_the_type_of_the_array(d: DType) -> None:
    own = dt.compute_type(d) if d.storage else d
    x = array(numbers(d, 3), d)
    assert (x + True).dtype is own
    assert (x * 2).dtype is (dt.int64 if d.kind == "bool" else own)
    assert (x * 2.0).dtype is (own if own.is_float else dt.float32)


@pytest.mark.parametrize("src", dt.ALL, ids=str)
@pytest.mark.parametrize("dst", dt.ALL, ids=str)
def test_casts(src: DType, dst: DType) -> None:
    """Against devrt.compiler.convert, whose own judge is ml_dtypes: nearest even, saturation, NaN -> 0."""
    from devrt.compiler import convert
    a = edges(src) if src not in (dt.int4, dt.float8_e4m3, dt.float8_e5m2) else None
    if a is None:
        raw = np.arange(256, dtype=np.uint8)
        elements = convert.unpack(raw, src, 512 if src is dt.int4 else 256)
        x = array(elements, dt.int4) if src is dt.int4 else devrt.asarray(raw.view(NP[src]))
    else:
        elements = a.view(convert.element_numpy(src)) if src is dt.bfloat16 else a
        x = array(a)
    got = x.astype(dst)
    want = convert.widen(convert.cast(elements, src, dst), dst)
    np.testing.assert_array_equal(np.asarray(got.numpy(), want.dtype), want)
    assert got.dtype is dst


@pytest.mark.parametrize("a, b", [(dt.float32, dt.uint32), (dt.float64, dt.int64), (dt.float16, dt.int16),
                                  (dt.int8, dt.uint8)], ids=str)
def test_bitcast(a: DType, b: DType) -> None:
    x = numbers(a, 65)
    same(devrt.bitcast(array(x), b), x.view(NP[b]))
    same(devrt.bitcast(devrt.bitcast(array(x), b), a), x)
