"""Exact arithmetic for comparison: fractions rounded to any float format in any mode; values that are hard."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FORMATS = {"half": (11, -14, 15), "bfloat": (8, -126, 127), "float": (24, -126, 127), "double": (53, -1022, 1023),
           "tf32": (11, -126, 127)}  # digits, exponents of the least normal number and of the largest one
MODES = ("RN", "RZ", "RM", "RP")


def rounded(x: Fraction, fmt: str, mode: str, zero: float = 0.0) -> float:
    """The number of the format, as float; `zero`: what an exact zero is."""
    if x == 0:
        return zero
    sign = 1 if x > 0 else -1
    digits, low, high = FORMATS[fmt]
    size = abs(x)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    step = Fraction(2) ** (max(exponent, low) - digits + 1)
    whole, rest = divmod(size, step)
    up = {"RN": rest > step / 2 or (rest == step / 2 and whole % 2 == 1), "RZ": False, "RM": x < 0 and rest > 0,
          "RP": x > 0 and rest > 0}[mode]
    result = (whole + up) * step
    if result >= Fraction(2) ** (high + 1):
        largest = float(Fraction(2) ** (high + 1) - Fraction(2) ** (high - digits + 1))
        back = mode == "RZ" or mode == ("RM" if x > 0 else "RP")
        return sign * (largest if back else math.inf)
    return math.copysign(float(result), sign)


def fma(a: float, b: float, c: float, fmt: str, mode: str = "RN") -> float:
    """a * b + c, rounded once."""
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        with np.errstate(all="ignore"):
            if math.isfinite(a) and math.isfinite(b):
                return c
            return float(np.float64(a) * np.float64(b) + np.float64(c if not math.isfinite(c) else 0.0))
    product, total = Fraction(a) * Fraction(b), Fraction(a) * Fraction(b) + Fraction(c)
    zero = -0.0 if mode == "RM" else 0.0
    if product == 0 and c == 0:
        sign = math.copysign(1, a) * math.copysign(1, b)
        zero = c if math.copysign(1, c) == sign else zero
    return rounded(total, fmt, mode, zero)


def multiplied(a: float, b: float, fmt: str, mode: str = "RN") -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        with np.errstate(all="ignore"):
            return float(np.float64(a) * np.float64(b))
    return rounded(Fraction(a) * Fraction(b), fmt, mode, math.copysign(1, a) * math.copysign(1, b) * 0.0)


def quotient(a: float, b: float, fmt: str, mode: str = "RN") -> float:
    if not (math.isfinite(a) and math.isfinite(b)) or a == 0 or b == 0:
        with np.errstate(all="ignore"):
            return float(np.float64(a) / np.float64(b))
    return rounded(Fraction(a) / Fraction(b), fmt, mode)


def root(x: float, fmt: str, mode: str = "RN") -> float:
    if x <= 0 or not math.isfinite(x):
        with np.errstate(all="ignore"):
            return float(np.sqrt(np.float64(x)))
    f = Fraction(x)
    shift = 1200  # more digits than any format has, from 2^-1074 up
    square = f.numerator * f.denominator << 2 * shift
    whole = math.isqrt(square)  # of sqrt(f) * denominator * 2^shift; one digit more says that something is left
    return rounded(Fraction(2 * whole + (whole * whole != square), f.denominator << shift + 1), fmt, mode)


# Bit patterns by format: zeros, denormals, ones and their neighbours, largest numbers, infinities, NaNs.
EDGES32 = np.array([0, 1, 2, 0x7FFFFF, 0x800000, 0x800001, 0xFFFFFF, 0x1000000, 0x33800000, 0x33800001, 0x34000000, 0x3EFFFFFF,
                    0x3F000000, 0x3F000001, 0x3F7FFFFF, 0x3F800000, 0x3F800001, 0x3FC00000, 0x40000000, 0x40490FDB, 0x4B000000,
                    0x4B000001, 0x4B7FFFFF, 0x4EFFFFFF, 0x4F000000, 0x4F7FFFFF, 0x4F800000, 0x5F000000, 0x7E800000,
                    0x7F000000, 0x7F7FFFFE, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF], np.uint32)
EDGES32 = np.concatenate((EDGES32, EDGES32 | np.uint32(1 << 31)))
EDGES16 = np.array([0, 1, 2, 0x7F, 0x80, 0x81, 0x3FF, 0x400, 0x401, 0x1400, 0x3BFF, 0x3C00, 0x3C01, 0x3F7F, 0x3F80, 0x3F81,
                    0x4000, 0x4248, 0x57FF, 0x5800, 0x5801, 0x7BFF, 0x7C00, 0x7C01, 0x7F7F, 0x7F80, 0x7F81, 0x7E00,
                    0x7FFF], np.uint16)
EDGES16 = np.concatenate((EDGES16, EDGES16 | np.uint16(0x8000)))
EDGES64 = np.array([0, 1, (1 << 52) - 1, 1 << 52, (1 << 52) + 1, 0x3FEFFFFFFFFFFFFF, 0x3FF0000000000000, 0x3FF0000000000001,
                    0x3FF8000000000000, 0x400921FB54442D18, 0x4330000000000000, 0x43E0000000000000, 0x47EFFFFFE0000000,
                    0x47EFFFFFF0000000, 0x3690000000000000, 0x3690000000000001, 0x7FE0000000000000, 0x7FEFFFFFFFFFFFFF,
                    0x7FF0000000000000, 0x7FF8000000000000], np.uint64)
EDGES64 = np.concatenate((EDGES64, EDGES64 | np.uint64(1 << 63)))


def triples(edges: Array, bits: int, count: int, seed: int, center: int, spread: int) -> tuple[Array, Array, Array]:
    """Three columns of bit patterns: edges with edges, anything with anything, and numbers near each other, where sums cancel or
    tie. `center` and `spread` place the exponent fields of the last kind, in units of the last bit of the field."""
    rng = np.random.default_rng(seed)
    t = edges.dtype
    columns = []
    for _ in range(3):
        anything = rng.integers(0, 1 << bits, count, dtype=np.uint64).astype(t)
        near = (rng.integers(center - spread, center + spread, count, dtype=np.uint64)).astype(t)
        near |= (rng.integers(0, 2, count, dtype=np.uint64) << np.uint64(bits - 1)).astype(t)
        cut = t.type(~((1 << int(rng.integers(bits // 4, bits // 2))) - 1) & (1 << bits) - 1)
        near = np.where(rng.integers(0, 2, count) == 1, near & cut, near).astype(t)
        columns.append(np.concatenate((rng.choice(edges, count), anything, near)))
    return columns[0], columns[1], columns[2]


def bfloat(raw: Array) -> Array:
    """bfloat16 bits as float32."""
    return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_half(values: list[float]) -> Array:
    """Numbers that are float16s to their bits, NaN to the canonical one."""
    with np.errstate(invalid="ignore"):
        out = np.array(values, np.float64).astype(np.float16)
    return np.where(np.isnan(out), np.uint16(0x7FFF), out.view(np.uint16))


def to_bfloat(values: list[float]) -> Array:
    with np.errstate(invalid="ignore"):
        out = np.array(values, np.float64).astype(np.float32)
    return np.where(np.isnan(out), np.uint16(0x7FFF), (out.view(np.uint32) >> np.uint32(16)).astype(np.uint16))


def to_float(values: list[float]) -> Array:
    with np.errstate(invalid="ignore"):
        out = np.array(values, np.float64).astype(np.float32)
    return np.where(np.isnan(out), np.uint32(0x7FFFFFFF), out.view(np.uint32))
