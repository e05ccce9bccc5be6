"""devrt.compiler.arithmetic against exact arithmetic: Fractions and Python integers, rounded here."""

from __future__ import annotations

import math
import operator
from fractions import Fraction

import numpy as np
import pytest

from devrt.compiler import dtypes as dt
from devrt.compiler.arithmetic import evaluate
from devrt.device import CompileError

INTS = tuple(d for d in dt.ALL if d.is_int and not d.storage)
SPECIAL = {
    dt.float32: [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0**-149, -2.0**-149, 2.0**-126, 1.5 * 2.0**-127,
                 (2 - 2.0**-23) * 2.0**127, -(2 - 2.0**-23) * 2.0**127, 1 + 2.0**-23, 1 - 2.0**-24, 2.0**24 + 2, 3.0,
                 0.1],
    dt.float64: [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 5e-324, -5e-324, 2.0**-1022, 1.5 * 2.0**-1023,
                 (2 - 2.0**-52) * 2.0**1023, -(2 - 2.0**-52) * 2.0**1023, 1 + 2.0**-52, 1 - 2.0**-53, 3.0, 0.1],
}


def floats(dtype, count, seed):
    """Any bit pattern, values of few bits (which make ties), values of like size, and the special ones."""
    rng = np.random.default_rng(seed)
    kind = f"u{dtype.bits // 8}"
    anywhere = rng.integers(0, 1 << dtype.bits, count, dtype=kind).view(dtype.name)
    short = np.ldexp(rng.integers(-64, 64, count), rng.integers(-30, 30, count)).astype(dtype.name)
    near = rng.uniform(-2, 2, count).astype(dtype.name)
    special = rng.choice(np.array(SPECIAL[dtype], dtype.name), count)
    with np.errstate(all="ignore"):
        return rng.permuted(np.stack((anywhere, short, near, special)), axis=0)[0]


def rounded(exact, dtype):
    """A non-zero Fraction to the nearest float of `dtype`, ties to even, as a Python float."""
    precision, least = dtype.mantissa + 1, 2 - (1 << dtype.exponent - 1) - dtype.mantissa
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    if abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    quantum = Fraction(2) ** max(exponent - precision + 1, least)
    units = round(exact / quantum)
    value = units * quantum
    if abs(value) >= Fraction(2) ** (1 << dtype.exponent - 1):
        return math.inf if exact > 0 else -math.inf
    return math.copysign(float(abs(value)), 1 if exact > 0 else -1)


def assert_same(got, want, dtype):
    """Bit for bit, but any NaN for a NaN."""
    want = np.array(want, dtype.name)
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    kind = f"u{dtype.bits // 8}"
    np.testing.assert_array_equal(got[~nan].view(kind), want[~nan].view(kind))


def exact_fma(a, b, c, dtype):
    if math.isfinite(a) and math.isfinite(b) and not math.isfinite(c):
        return c  # however large the product
    if not all(map(math.isfinite, (a, b, c))):
        return a * b + c  # no rounding in what is left: infinities and NaNs
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact:
        return rounded(exact, dtype)
    if a == 0 or b == 0:  # zeros: a sum of exact terms follows IEEE's rules for the signs
        return math.copysign(1, a) * math.copysign(1, b) * 0.0 + c
    return 0.0  # x - x


@pytest.mark.parametrize("dtype", [dt.float32, dt.float64])
def test_fma_is_rounded_once(dtype):
    a, b, c = (floats(dtype, 6000, seed) for seed in (1, 2, 3))
    # Hard cases: c close to -a*b, and c a tie away from a*b.
    with np.errstate(all="ignore"):
        c[::3] = -(a * b)[::3]
        c[1::3] = np.ldexp(a[1::3] * b[1::3], dtype.mantissa + 1 + np.arange(2000) % 3 - 1)
    want = [exact_fma(*map(float, row), dtype) for row in zip(a, b, c, strict=True)]
    assert_same(evaluate("fma", a, b, c), want, dtype)


def test_fma_where_two_roundings_differ():
    a = np.array([1 + 2.0**-12], np.float32)
    c = np.array([2.0**-90], np.float32)  # a*a is a tie in float32; c breaks it, below float64's reach
    assert float(evaluate("fma", a, a, c)[0]) == 1 + 2.0**-11 + 2.0**-23
    assert float(evaluate("fma", a, a, -c)[0]) == 1 + 2.0**-11
    tiny = np.array([5e-324])
    assert evaluate("fma", tiny, np.array([0.5]), tiny)[0] == 1e-323  # 1.5 subnormals: a tie, to even
    huge = np.array([2.0**1023])
    assert evaluate("fma", huge, np.array([2.0]), -huge)[0] == huge[0]  # the product alone would overflow


@pytest.mark.parametrize("dtype", [dt.float32, dt.float64])
@pytest.mark.parametrize(("op", "exact"), [("add", operator.add), ("sub", operator.sub), ("mul", operator.mul),
                                           ("div", operator.truediv)])
def test_float_arithmetic_is_correctly_rounded(op, exact, dtype):
    a, b = floats(dtype, 4000, 4), floats(dtype, 4000, 5)
    got = evaluate(op, a, b)
    simple = np.isfinite(a) & np.isfinite(b) & (a != 0) & (b != 0)
    results = [exact(Fraction(float(x)), Fraction(float(y))) for x, y in zip(a[simple], b[simple], strict=True)]
    assert_same(got[simple], [rounded(r, dtype) if r else 0.0 for r in results], dtype)
    with np.errstate(all="ignore"):  # exact in any precision: NumPy serves as the witness of IEEE's special cases
        assert_same(got[~simple], exact(a[~simple], b[~simple]), dtype)


@pytest.mark.parametrize("dtype", [dt.float32, dt.float64])
def test_sqrt_is_correctly_rounded(dtype):
    a = np.abs(floats(dtype, 4000, 6))
    a = a[np.isfinite(a) & (a > 0)]
    for x, root in zip(a, evaluate("sqrt", a), strict=True):
        near = np.nextafter(root, -root), root, np.nextafter(root, root * 2)
        below, here, above = (Fraction(float(v)) for v in near)
        # sqrt(x) lies between the midpoints beside the root; it never is a midpoint.
        assert ((here + below) / 2) ** 2 < Fraction(float(x)) < ((here + above) / 2) ** 2
    special = np.array([0.0, -0.0, -1.0, np.inf, np.nan], dtype.name)
    assert_same(evaluate("sqrt", special), [0.0, -0.0, np.nan, np.inf, np.nan], dtype)


@pytest.mark.parametrize("dtype", [dt.float32, dt.float64])
def test_maximum_and_minimum(dtype):
    values = SPECIAL[dtype]
    a, b = (np.array(v, dtype.name) for v in zip(*[(x, y) for x in values for y in values], strict=True))

    def order(x):
        return x, math.copysign(1, x)  # -0 < +0

    for op, pick in (("max", max), ("min", min)):
        want = [math.nan if math.isnan(x) or math.isnan(y) else pick(float(x), float(y), key=order)
                for x, y in zip(a, b, strict=True)]
        assert_same(evaluate(op, a, b), want, dtype)


@pytest.mark.parametrize("dtype", [dt.float32, dt.float64])
def test_signs_floor_canon(dtype):
    a = np.array([*SPECIAL[dtype], -np.nan, 2.5, -2.5, 1e30], dtype.name)
    floors = [v if not math.isfinite(v) or v == 0 else math.floor(v) for v in a.tolist()]
    assert_same(evaluate("floor", a), floors, dtype)
    top = 1 << dtype.bits - 1
    bits = a.view(f"u{dtype.bits // 8}").tolist()
    numbers = ~np.isnan(a)
    assert evaluate("neg", a)[numbers].view(f"u{dtype.bits // 8}").tolist() == \
        [b ^ top for b, n in zip(bits, numbers, strict=True) if n]
    assert evaluate("abs", a)[numbers].view(f"u{dtype.bits // 8}").tolist() == \
        [b & top - 1 for b, n in zip(bits, numbers, strict=True) if n]
    quiet = 0x7FC00000 if dtype is dt.float32 else 0x7FF8000000000000
    nans = np.array([quiet | 1, quiet | top, quiet ^ 1 << dtype.mantissa - 1 | 5], f"u{dtype.bits // 8}")
    assert set(evaluate("canon", nans.view(dtype.name)).view(nans.dtype).tolist()) == {quiet}
    assert_same(evaluate("canon", a), a, dtype)


@pytest.mark.parametrize("dtype", [dt.float32, dt.float64])
def test_comparisons_are_ordered_but_for_ne(dtype):
    nan, one = np.array([np.nan], dtype.name), np.array([1], dtype.name)
    for op in ("lt", "le", "eq", "ne"):
        assert evaluate(op, nan, one)[0] == evaluate(op, one, nan)[0] == evaluate(op, nan, nan)[0] == (op == "ne")
    zero = np.array([0], dtype.name)
    assert evaluate("eq", zero, -zero)[0] and not evaluate("lt", -zero, zero)[0]


def integers(dtype, seed):
    rng = np.random.default_rng(seed)
    edge = {s * (1 << k) + d for k in range(dtype.bits + 1) for s in (1, -1) for d in (-1, 0, 1)}
    anywhere = rng.integers(dtype.min, dtype.max, 200, dtype.name, endpoint=True)
    values = [*sorted(v for v in edge if dtype.min <= v <= dtype.max), 0, *anywhere.tolist()]
    return rng.choice(np.array(values, dtype.name), 3000)


def wrap(value, dtype):
    return (value - dtype.min) % (1 << dtype.bits) + dtype.min


def c_divide(a, b):
    return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


INTEGER = {
    "add": lambda a, b, d: wrap(a + b, d), "sub": lambda a, b, d: wrap(a - b, d), "mul": lambda a, b, d: wrap(a * b, d),
    "mulhi": lambda a, b, d: a * b >> d.bits,
    "div": lambda a, b, d: wrap(c_divide(a, b), d), "rem": lambda a, b, d: a - c_divide(a, b) * b,
    "max": lambda a, b, d: max(a, b), "min": lambda a, b, d: min(a, b),
    "and": lambda a, b, d: a & b, "or": lambda a, b, d: a | b, "xor": lambda a, b, d: a ^ b,
    "shl": lambda a, b, d: wrap(a << min(b % (1 << d.bits), d.bits), d),
    "shr": lambda a, b, d: a >> min(b % (1 << d.bits), d.bits),
    "lt": lambda a, b, d: a < b, "le": lambda a, b, d: a <= b,
    "eq": lambda a, b, d: a == b, "ne": lambda a, b, d: a != b,
}


@pytest.mark.parametrize("dtype", INTS)
@pytest.mark.parametrize("op", INTEGER)
def test_integer_arithmetic(op, dtype):
    a, b = integers(dtype, 7), integers(dtype, 8)
    if op in ("shl", "shr"):
        b[::2] = np.arange(len(b[::2])) % (dtype.bits + 3)
    want = [INTEGER[op](x, y, dtype) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    got = evaluate(op, a, b)
    assert got.tolist() == want
    assert got.dtype == (np.bool_ if op in ("lt", "le", "eq", "ne") else dtype.name)


@pytest.mark.parametrize("dtype", INTS)
def test_integer_unary(dtype):
    a = integers(dtype, 9)
    assert evaluate("neg", a).tolist() == [wrap(-x, dtype) for x in a.tolist()]
    assert evaluate("abs", a).tolist() == [wrap(abs(x), dtype) for x in a.tolist()]
    assert evaluate("not", a).tolist() == [wrap(~x, dtype) for x in a.tolist()]


def test_bool():
    a, b = np.array([0, 0, 1, 1], np.bool_), np.array([0, 1, 0, 1], np.bool_)
    for op, want in {"and": [0, 0, 0, 1], "or": [0, 1, 1, 1], "xor": [0, 1, 1, 0], "max": [0, 1, 1, 1],
                     "min": [0, 0, 0, 1], "eq": [1, 0, 0, 1], "ne": [0, 1, 1, 0]}.items():
        assert evaluate(op, a, b).tolist() == want
        assert evaluate(op, a, b).dtype == np.bool_
    assert evaluate("not", a).tolist() == [1, 1, 0, 0]


def test_select_moves_bits():
    a = np.array([0x7F800001, 0xFFC12345], np.uint32).view(np.float32)
    out = evaluate("select", np.array([True, False]), a, a[::-1].copy())
    assert out.view(np.uint32).tolist() == [0x7F800001, 0x7F800001]


def test_unknown_arithmetic():
    with pytest.raises(CompileError, match="frobnicate"):
        evaluate("frobnicate")
