"""Double-float: a float64-like number as the unevaluated sum of two float32, for devices without float64.

    high  the number rounded to float32
    low   the rest, at most half a unit in the last place of `high`

Together they hold 48 bits and the sign of `low` (float64 holds 53), with float32's exponents. Everything is built from
two exact steps: the rounding error of a sum, and by fma that of a product. Bounds, relative to the exact result of the
operands as they are (M. Joldes, J.-M. Muller, V. Popescu, "Tight and rigorous error bounds for basic building blocks of
double-word arithmetic", ACM TOMS 44(2), 2017), with u = 2^-24 and no overflow or underflow:

    add       3u^2 + 13u^3      multiply  5u^2      divide  9.8u^2 (here through the residual)
"""

from __future__ import annotations

from dataclasses import dataclass

from devrt import functions as f
from devrt.array import Array
from devrt.compiler import dtypes as dt
from devrt.device import InvalidArgument


@dataclass(frozen=True)
class DoubleFloat:
    """high + low, two float32 arrays of one shape."""

    high: Array
    low: Array

    def __add__(self, other: DoubleFloat) -> DoubleFloat: return add(self, other)
    def __sub__(self, other: DoubleFloat) -> DoubleFloat: return add(self, -other)
    def __mul__(self, other: DoubleFloat) -> DoubleFloat: return multiply(self, other)
    def __truediv__(self, other: DoubleFloat) -> DoubleFloat: return divide(self, other)
    def __neg__(self) -> DoubleFloat: return DoubleFloat(-self.high, -self.low)

    def float64(self) -> Array:
        """The value as float64, exactly; for devices that have it."""
        return self.high.astype(dt.float64) + self.low.astype(dt.float64)


def from_float64(x: Array) -> DoubleFloat:
    """The nearest pair: high is x rounded, low what is missing, rounded."""
    if x.dtype is not dt.float64:
        raise InvalidArgument(f"a double-float is split from float64, not {x.dtype}", remedy="from_float32() is exact")
    high = x.astype(dt.float32)
    return DoubleFloat(high, (x - high.astype(dt.float64)).astype(dt.float32))


def from_float32(x: Array) -> DoubleFloat:
    return DoubleFloat(x, f.zeros_like(x))


# ----- exact steps


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """(s, e): s = a + b rounded and s + e = a + b exactly (Knuth), in any order of magnitude."""
    s = a + b
    late = s - a
    return s, (a - (s - late)) + (b - late)


def quick_two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """two_sum where |a| >= |b| or a = 0 (Dekker)."""
    s = a + b
    return s, b - (s - a)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """(p, e): p = a * b rounded and p + e = a * b exactly, where nothing underflows."""
    p = a * b
    return p, f.fma(a, b, -p)


# ----- arithmetic


def add(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    s, e = two_sum(a.high, b.high)
    t, g = two_sum(a.low, b.low)
    s, e = quick_two_sum(s, e + t)
    return DoubleFloat(*quick_two_sum(s, e + g))


def multiply(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    p, e = two_product(a.high, b.high)
    e = f.fma(a.high, b.low, f.fma(a.low, b.high, e))
    return DoubleFloat(*quick_two_sum(p, e))


def divide(a: DoubleFloat, b: DoubleFloat) -> DoubleFloat:
    q = a.high / b.high
    rest = a - multiply(b, from_float32(q))
    return DoubleFloat(*quick_two_sum(q, rest.high / b.high))


__all__ = ["DoubleFloat", "add", "divide", "from_float32", "from_float64", "multiply", "quick_two_sum", "two_product",
           "two_sum"]
