"""LIR's arithmetic on NumPy arrays: what each instruction computes, exactly (see lir.py for the semantics).

Operands are element arrays (see convert.py) of one arithmetic type and of shapes that broadcast. NumPy's own operators
serve where they do what LIR says on every machine: IEEE add, sub, mul, div, sqrt, floor in float32 and float64, and
wrapping integers. The rest is built here from those.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from devrt.compiler.convert import Array
from devrt.device import CompileError


def evaluate(op: str, *operands: Array) -> Array:
    """The result of arithmetic, comparison or logic instruction `op`. Raises CompileError on an unknown one."""
    function = _FUNCTIONS.get(op)
    if function is None:
        raise CompileError(f"no such arithmetic: {op}")
    with np.errstate(all="ignore"):
        return function(*operands)


def _bits(a: Array) -> Array:
    """Floats and signed integers as unsigned ones of the same bits."""
    return a.view(f"u{a.dtype.itemsize}")


def _is_float(a: Array) -> bool:
    return a.dtype.kind == "f"


def _negate(a: Array) -> Array:
    negated: Array = np.negative(a)  # floats: the sign bit alone; unsigned: two's complement
    return negated


def _canonical(a: Array) -> Array:
    return np.where(np.isnan(a), a.dtype.type(np.nan), a)


def _extreme(a: Array, b: Array, larger: bool) -> Array:
    """IEEE 754-2019 maximum or minimum. Equal floats have equal bits, but for zeros, whose sign bits are combined."""
    if not _is_float(a):
        chosen: Array = np.maximum(a, b) if larger else np.minimum(a, b)
        return chosen
    zero = (_bits(a) & _bits(b) if larger else _bits(a) | _bits(b)).view(a.dtype)
    picked = np.where((a > b) == larger, a, b)
    number = np.where(a == b, zero, picked)
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), number)


def _remainder(a: Array, b: Array) -> Array:
    """Truncating remainder. b = 0 leaves a; b = -1 leaves 0 (NumPy never sees it: MIN rem -1 traps in C)."""
    trivial = (b == 0) | (b == b.dtype.type(-1)) if a.dtype.kind == "i" else b == 0
    rest = np.fmod(a, np.where(trivial, b.dtype.type(1), b))
    return np.where(b == 0, a, rest)


def _divide(a: Array, b: Array) -> Array:
    """IEEE division, or truncating integer division with x / 0 = 0 and MIN / -1 = MIN."""
    if _is_float(a):
        quotient: Array = np.divide(a, b)
        return quotient
    one = b.dtype.type(1)
    minus = b == b.dtype.type(-1) if a.dtype.kind == "i" else np.zeros_like(b, np.bool_)
    exact = np.floor_divide(a - _remainder(a, b), np.where((b == 0) | minus, one, b))
    return np.where(b == 0, a.dtype.type(0), np.where(minus, np.negative(a), exact))


def _multiply_high(a: Array, b: Array) -> Array:
    """The high half of the full product."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}").type
        product = a.astype(wide) * b.astype(wide) >> wide(bits)
        top: Array = product.astype(a.dtype)
        return top
    # Unsigned first, in halves of 32 bits: (ah*2**32 + al) * (bh*2**32 + bl). No sum below leaves 64 bits.
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    ua, ub = _bits(a), _bits(b)
    ah, al, bh, bl = ua >> half, ua & low, ub >> half, ub & low
    middle = ah * bl + (al * bl >> half)
    other = al * bh + (middle & low)
    high = ah * bh + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":  # a signed operand is the unsigned one less 2**64 where it is negative
        high = high - np.where(a < 0, ub, np.uint64(0)) - np.where(b < 0, ua, np.uint64(0))
    out: Array = high.view(a.dtype)
    return out


def _shift(a: Array, b: Array, left: bool) -> Array:
    bits = 8 * a.dtype.itemsize
    amount = np.minimum(_bits(b), bits - 1)
    beyond = _bits(b) >= bits
    if left:
        return np.where(beyond, np.zeros_like(_bits(a)), np.left_shift(_bits(a), amount)).view(a.dtype)
    if a.dtype.kind == "i":  # bits - 1 places already leave nothing but sign bits
        shifted: Array = np.right_shift(a, amount.astype(a.dtype))
        return shifted
    return np.where(beyond, np.zeros_like(a), np.right_shift(a, amount))


@functools.cache
def _libm_fma() -> Callable[..., Any]:
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    library.fma.restype = ctypes.c_double
    library.fma.argtypes = [ctypes.c_double] * 3
    return np.frompyfunc(library.fma, 3, 1)


def _fma(a: Array, b: Array, c: Array) -> Array:
    """a*b + c rounded once.

    float64: C's fma, one element at a time (IEC 60559 leaves it no freedom).

    float32: the product is exact in float64 (48 bits). The sum is rounded to odd there: TwoSum gives the exact error e
    of the rounded sum s; where e is not 0 and s is even, the float64 next to s on e's side is the odd one of the two
    around the exact sum. Rounding that to float32 rounds the exact sum, since 53 >= 24 + 2 (Boldo and Melquiond 2008).
    Nothing overflows: |a*b + c| < 2**257; nothing is subnormal in float64: the least product is 2**-298.
    """
    if a.dtype == np.float64:
        return np.asarray(_libm_fma()(a, b, c)).astype(np.float64)
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    even = (total.view(np.uint64) & np.uint64(1)) == 0
    inexact = np.isfinite(total) & (error != 0)  # error is NaN beside an infinite or NaN total
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(inexact & even, odd, total).astype(np.float32)


def _not(a: Array) -> Array:
    inverted: Array = np.invert(a)  # logical on bool
    return inverted


def _numpy(function: Callable[..., Any]) -> Callable[..., Array]:
    return lambda *operands: np.asarray(function(*operands))


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "neg": _negate, "abs": _numpy(np.abs), "sqrt": _numpy(np.sqrt), "floor": _numpy(np.floor), "not": _not,
    "canon": _canonical,
    "add": _numpy(np.add), "sub": _numpy(np.subtract), "mul": _numpy(np.multiply), "mulhi": _multiply_high,
    "div": _divide, "rem": _remainder,
    "max": lambda a, b: _extreme(a, b, True), "min": lambda a, b: _extreme(a, b, False),
    "and": _numpy(np.bitwise_and), "or": _numpy(np.bitwise_or), "xor": _numpy(np.bitwise_xor),
    "shl": lambda a, b: _shift(a, b, True), "shr": lambda a, b: _shift(a, b, False),
    "lt": _numpy(np.less), "le": _numpy(np.less_equal), "eq": _numpy(np.equal), "ne": _numpy(np.not_equal),
    "fma": _fma,
    "select": _numpy(np.where),
}
