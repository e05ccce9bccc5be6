"""Element-wise arithmetic and functions."""

from __future__ import annotations

from devrt.array import Array, Scalar, default_float, operands
from devrt.compiler import derived
from devrt.compiler import dtypes as dt
from devrt.compiler.ops import Op, make
from devrt.device import InvalidArgument
from devrt.functions.basic import _derived, _primitive, _two, full, full_like, inf, ones_like, zeros_like
from devrt.functions.logic import (
    bitwise_and,
    bitwise_invert,
    bitwise_right_shift,
    equal,
    less,
    logical_and,
    logical_or,
    not_equal,
    where,
)


def add(a: Array | Scalar, b: Array | Scalar, /) -> Array: return _two(Op.ADD, a, b)
def multiply(a: Array | Scalar, b: Array | Scalar, /) -> Array: return _two(Op.MUL, a, b)
def maximum(a: Array | Scalar, b: Array | Scalar, /) -> Array: return _two(Op.MAX, a, b)


def negative(x: Array, /) -> Array:
    """-x: for floats the sign flipped, for unsigned integers modulo 2^bits."""
    if x.dtype.kind == "bool":
        raise InvalidArgument("bool has no negative", remedy="use logical_not")
    if x.dtype.kind == "uint":
        return bitwise_invert(x) + 1
    return multiply(x, -1)


def subtract(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    x, y = operands(a, b)
    return add(x, negative(y))


def divide(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    """True division; integers become float32 (64-bit ones float64)."""
    x, y = operands(a, b)
    if not x.dtype.is_float:
        both = isinstance(a, Array) and isinstance(b, Array)
        wide = dt.float64 if x.dtype.bits == 64 and both else default_float
        x, y = x.astype(wide), y.astype(wide)
    return Array(make(Op.DIV, (x.node, y.node)))


def minimum(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    x, y = operands(a, b)
    if x.dtype.is_float:
        return negative(maximum(negative(x), negative(y)))
    return bitwise_invert(maximum(bitwise_invert(x), bitwise_invert(y)))


def clip(x: Array, /, min: Array | Scalar | None = None, max: Array | Scalar | None = None) -> Array:
    out = x if min is None else maximum(x, min)
    return out if max is None else minimum(out, max)


def abs(x: Array, /) -> Array:
    if not x.dtype.is_signed:
        return x
    if x.dtype.is_float and x.dtype.bits >= 16:
        u = dt.unsigned_of(x.dtype.bits)
        bits = bitwise_and(Array(make(Op.BITCAST, (x.node,), u)), (1 << (x.dtype.bits - 1)) - 1)
        return Array(make(Op.BITCAST, (bits.node,), x.dtype))
    return where(x < 0, negative(x), x)


def sign(x: Array, /) -> Array:
    """-1, 0 or 1 of x's type; NaN stays."""
    if x.dtype.kind == "uint":
        return (x != 0).astype(x.dtype)
    ones = where(x < 0, full_like(x, -1), (x > 0).astype(x.dtype))
    return where(x == x, ones, x) if x.dtype.is_float else ones


def floor_divide(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    """floor(a / b). Integers: x // 0 is 0."""
    x, y = operands(a, b)
    if x.dtype.is_float:
        return floor(divide(x, y))
    q = Array(make(Op.DIV, (x.node, y.node)))
    if not x.dtype.is_signed:
        return q
    inexact = logical_and(q * y != x, (x < 0) != (y < 0))
    return where(logical_and(inexact, y != 0), q - 1, q)


def remainder(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    """a - floor(a/b)*b, with the sign of b. Integers: x % 0 is 0."""
    x, y = operands(a, b)
    if x.dtype.is_float:
        r = x - trunc(divide(x, y)) * y
        return where(logical_and(r != 0, (r < 0) != (y < 0)), r + y, r)
    return where(y == 0, 0, x - floor_divide(x, y) * y)


def pow(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    """a to the power b. Integer powers wrap; a negative integer exponent gives 0, except for bases 1 and -1."""
    x, y = operands(a, b)
    if x.dtype.is_float:
        if isinstance(b, int) and 0 <= b <= 4:
            return _power(x, b)
        return _derived(derived.pow, x, y)
    if isinstance(b, int):
        if b >= 0:
            return _power(x, b)
        return where(x == 1, ones_like(x), where(x == -1, 1 - 2 * (b & 1), zeros_like(x)) if x.dtype.is_signed else 0)
    result, square = ones_like(x), x
    for bit in range(x.dtype.bits - x.dtype.is_signed):
        result = where(bitwise_and(bitwise_right_shift(y, bit), 1) == 1, result * square, result)
        square = square * square
    if x.dtype.is_signed:
        odd = bitwise_and(y, 1) == 1
        result = where(y < 0, where(x == 1, 1, where(x == -1, where(odd, full_like(x, -1), 1), zeros_like(x))), result)
    return result


def _power(x: Array, n: int) -> Array:
    result = ones_like(x) if n == 0 else None
    while n:
        if n & 1:
            result = x if result is None else result * x
        x, n = x * x, n >> 1
    assert result is not None
    return result


def square(x: Array, /) -> Array: return multiply(x, x)
def sqrt(x: Array, /) -> Array: return _primitive(Op.SQRT, x)
def exp2(x: Array, /) -> Array: return _primitive(Op.EXP2, x)
def log2(x: Array, /) -> Array: return _primitive(Op.LOG2, x)
def sin(x: Array, /) -> Array: return _primitive(Op.SIN, x, 0)
def cos(x: Array, /) -> Array: return _primitive(Op.SIN, x, 1)
def tan(x: Array, /) -> Array: return divide(sin(x), cos(x))
def exp(x: Array, /) -> Array: return _derived(derived.exp, x)
def log(x: Array, /) -> Array: return _derived(derived.log, x)
def tanh(x: Array, /) -> Array: return _derived(derived.tanh, x)
def erf(x: Array, /) -> Array: return _derived(derived.erf, x)
def sigmoid(x: Array, /) -> Array: return _derived(derived.sigmoid, x)
def reciprocal(x: Array, /) -> Array: return divide(1, x)


def fma(a: Array | Scalar, b: Array | Scalar, c: Array | Scalar, /) -> Array:
    """a*b + c rounded once (float32, float64)."""
    return Array(make(Op.FMA, [x.node for x in operands(a, b, c)]))


def floor(x: Array, /) -> Array: return x if not x.dtype.is_float else _primitive(Op.FLOOR, x)
def ceil(x: Array, /) -> Array: return x if not x.dtype.is_float else negative(floor(negative(x)))
def trunc(x: Array, /) -> Array: return x if not x.dtype.is_float else where(x < 0, ceil(x), floor(x))


def round(x: Array, /) -> Array:
    """To the nearest integer, halves to even."""
    if not x.dtype.is_float:
        return x
    low = floor(x)
    gap = subtract(x, low)
    odd = floor(low * 0.5) * 2.0 != low
    up = logical_or(gap > 0.5, logical_and(gap == 0.5, odd))
    nearest = where(up, low + 1.0, low)
    return where(x < 0, negative(abs(nearest)), where(x == 0, x, nearest))  # -0.3 rounds to -0


def isnan(x: Array, /) -> Array: return not_equal(x, x)
def isfinite(x: Array, /) -> Array: return less(abs(x), inf) if x.dtype.is_float else full(x.shape, True)
def isinf(x: Array, /) -> Array: return equal(abs(x), inf) if x.dtype.is_float else full(x.shape, False)


def signbit(x: Array, /) -> Array:
    return Array(make(Op.BITCAST, (x.node,), dt.signed_of(x.dtype.bits))) < 0 if x.dtype.is_float else x < 0
