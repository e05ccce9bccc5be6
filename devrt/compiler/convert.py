"""Exact conversions between the element types, in NumPy, including the types NumPy lacks.

An *element* array holds one value an entry: NumPy's own type where there is one, the bits of a bfloat16 in uint16, the
bits of a float8 in uint8, and the value of an int4 in int8. A *raw* array is what lies in memory: the same, but for
int4, which packs two elements a byte, the low nibble first.

Every conversion rounds at most once:

    float -> float   nearest even. Overflow gives infinity; in float8_e4m3 (OCP OFP8 2023, ml_dtypes' float8_e4m3fn) it
                     gives NaN, as infinity does. A NaN becomes the type's quiet NaN with its sign kept:
                     0x7e00, 0x7fc0, 0x7f (e4m3), 0x7e (e5m2), 0x7fc00000, 0x7ff8000000000000
    float -> int     truncates, saturates, NaN -> 0
    int -> float     nearest even
    int -> int       wraps; to int4 it saturates
    x -> bool        x != 0; bool -> x gives 0 or 1
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.device import InvalidArgument

Array = NDArray[Any]

_STORAGE: dict[DType, np.dtype[Any]] = {
    dt.bool_: np.dtype(np.bool_), dt.int4: np.dtype(np.uint8), dt.bfloat16: np.dtype(np.uint16),
    dt.float8_e4m3: np.dtype(np.uint8), dt.float8_e5m2: np.dtype(np.uint8),
}
BITS_ONLY = (dt.bfloat16, dt.float8_e4m3, dt.float8_e5m2)  # element arrays of these hold bits, not values
_NARROW = (dt.float8_e4m3, dt.float8_e5m2, dt.float16, dt.bfloat16)


def storage_numpy(dtype: DType) -> np.dtype[Any]:
    """The NumPy type of a raw array of `dtype`."""
    return _STORAGE.get(dtype) or np.dtype(dtype.name)


def element_numpy(dtype: DType) -> np.dtype[Any]:
    """The NumPy type of an element array of `dtype`: the storage type, but int8 for int4."""
    return np.dtype(np.int8) if dtype is dt.int4 else storage_numpy(dtype)


def unpack(raw: Array, dtype: DType, count: int) -> Array:
    """The first `count` elements of `raw` as a 1-D element array; a view, but for int4.

    Raises InvalidArgument where `raw` has the wrong type, is not contiguous or holds fewer elements.
    """
    if raw.dtype != storage_numpy(dtype) or not raw.flags.c_contiguous or raw.nbytes < dtype.nbytes(count):
        raise InvalidArgument(f"{count} {dtype} are held by a contiguous {storage_numpy(dtype)} array of "
                              f"{dtype.nbytes(count)} bytes or more", evidence=f"{raw.dtype} {raw.shape}")
    flat: Array = raw.reshape(-1)
    if dtype is not dt.int4:
        return flat[:count]
    nibbles = np.stack((flat & np.uint8(15), flat >> np.uint8(4)), axis=-1).reshape(-1)[:count].astype(np.int8)
    signed: Array = (nibbles ^ np.int8(8)) - np.int8(8)
    return signed


def pack(elements: Array, dtype: DType) -> Array:
    """An element array as a 1-D raw array; an odd int4 leaves the last high nibble 0."""
    flat = np.ascontiguousarray(elements).reshape(-1)
    if dtype is not dt.int4:
        return flat
    nibbles = flat.astype(np.uint8) & np.uint8(15)
    nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8))
    packed: Array = nibbles[0::2] | nibbles[1::2] << np.uint8(4)
    return packed


def decode(raw: Array, dtype: DType, count: int) -> Array:
    """The first `count` elements of `raw`, widened exactly to a type NumPy computes in.

    bfloat16 and float8 give float32, int4 gives int8, any other type stays (as a copy). Raises InvalidArgument as
    `unpack` does.
    """
    elements = unpack(raw, dtype, count)
    return widen(elements, dtype) if dtype in _NARROW and dtype is not dt.float16 else elements.copy()


def encode(values: Array, dtype: DType) -> Array:
    """`values` (any type of NumPy's that devrt has, float32 or float64 as a rule) converted once to a 1-D raw array."""
    return pack(cast(values, dt.named(values.dtype.name), dtype), dtype)


def cast(values: Array, src: DType, dst: DType) -> Array:
    """An element array of `src` as one of `dst`, with LIR's cast semantics (module docstring). Shape is kept."""
    with np.errstate(all="ignore"):
        if src is dst:
            return np.array(values)
        if dst is dt.bool_:
            truth: Array = widen(values, src) != 0
            return truth
        if src.is_float:
            return _float_to_float(values, src, dst) if dst.is_float else _float_to_int(widen(values, src), dst)
        if dst.is_float:
            return _int_to_float(values, dst)
        if dst is dt.int4:
            return _int_to_int4(values)
        return values.astype(element_numpy(dst))


def widen(elements: Array, dtype: DType) -> Array:
    """An element array in a type NumPy computes in: bfloat16, float16, float8 exactly in float32, the rest as it is."""
    if dtype is dt.bfloat16:
        bits: Array = elements.astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32)
    if dtype is dt.float16:
        with np.errstate(invalid="ignore"):  # of a signalling NaN
            return elements.astype(np.float32)
    if dtype in _NARROW:
        return _FLOAT8[dtype][elements]
    return elements


def _int_to_int4(values: Array) -> Array:
    if values.dtype.kind == "i":
        values = np.maximum(values, values.dtype.type(dt.int4.min))
    clipped: Array = np.minimum(values, values.dtype.type(dt.int4.max)).astype(np.int8)
    return clipped


def _float_to_int(values: Array, dst: DType) -> Array:
    wide = np.trunc(values.astype(np.float64))
    low, high = float(dst.min), float(dst.max + 1)  # powers of two (or 0): exact, which dst.max need not be
    inside = (wide >= low) & (wide < high)
    out = np.where(inside, wide, 0.0).astype(element_numpy(dst))
    out[wide >= high] = dst.max
    out[wide < low] = dst.min
    return out


def _int_to_float(values: Array, dst: DType) -> Array:
    """Where `dst` is narrower than float64, go through it without a second rounding.

    An integer beyond 2**53 first loses its low 11 bits to a sticky bit (rounding to odd), which leaves at least 42
    significant bits: exact in float64, and rounded to `dst` (at most 24 bits) as the integer itself would be.
    """
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if dst is dt.float64:
        return values.astype(np.float64)
    negative = values < 0
    size = values.astype(np.uint64)
    size = np.where(negative, np.uint64(0) - size, size)
    low = np.uint64((1 << 11) - 1)
    odd = (size & ~low) | ((size & low) != 0).astype(np.uint64) << np.uint64(11)
    wide = np.where(size >= np.uint64(1 << 53), odd, size).astype(np.float64)
    return _float_to_float(np.where(negative, -wide, wide), dt.float64, dst)


def _float_to_float(values: Array, src: DType, dst: DType) -> Array:
    wide = widen(values, src)
    if dst in _NARROW:
        return _narrow(wide.astype(np.float64), dst)
    out = wide.astype(element_numpy(dst))  # NumPy rounds float64 -> float32 once, to nearest even
    return np.where(np.isnan(out), np.copysign(out.dtype.type(np.nan), out), out)


def _infinity(dst: DType) -> int:
    """The code that overflow gives, without its sign: infinity, or e4m3's NaN."""
    return 0x7F if dst is dt.float8_e4m3 else ((1 << dst.exponent) - 1) << dst.mantissa


def _narrow(wide: Array, dst: DType) -> Array:
    """float64 rounded once, to nearest even, to the element array of a narrow float type.

    Works on the integer significand of 53 bits: shift out what `dst` has no room for (more below its normal range) and
    round by what was shifted out. A carry out of the significand runs into the exponent field, which is right. A
    float64 subnormal lies far below half of any narrow type's least value, so it may be taken for a number of
    exponent -1023.
    """
    bits = wide.view(np.uint64)
    magnitude = bits & np.uint64((1 << 63) - 1)
    exponent = (magnitude >> np.uint64(52)).astype(np.int64) - 1023
    significand = (magnitude & np.uint64((1 << 52) - 1)) | np.uint64(1 << 52)
    bias = (1 << (dst.exponent - 1)) - 1
    below = np.maximum(1 - bias - exponent, 0)
    shift = np.minimum(52 - dst.mantissa + below, 63).astype(np.uint64)
    kept = significand >> shift
    lost = significand & ((np.uint64(1) << shift) - np.uint64(1))
    half = np.uint64(1) << (shift - np.uint64(1))
    kept += (lost > half) | ((lost == half) & (kept & np.uint64(1) == 1))
    # `kept` holds the implicit bit where the number is normal: one exponent step, hence the -1.
    field = np.where(below > 0, 0, exponent + bias - 1).astype(np.uint64)
    infinity = np.uint64(_infinity(dst))
    code = np.minimum((field << np.uint64(dst.mantissa)) + kept, infinity)
    quiet = 0x7F if dst is dt.float8_e4m3 else _infinity(dst) | 1 << (dst.mantissa - 1)
    code = np.where(magnitude == 0, np.uint64(0), np.where(np.isnan(wide), np.uint64(quiet), code))
    code |= (bits >> np.uint64(63)) << np.uint64(dst.bits - 1)
    out: Array = code.astype(f"u{dst.bits // 8}").view(element_numpy(dst))
    return out


def _float8_values(dtype: DType) -> Array:
    """The value of each of the 256 codes, float32. A NaN code gives the quiet NaN of its sign."""
    code = np.arange(256, dtype=np.int32)
    field, fraction = code >> dtype.mantissa & (1 << dtype.exponent) - 1, code & (1 << dtype.mantissa) - 1
    bias = (1 << (dtype.exponent - 1)) - 1
    implicit = np.where(field > 0, 1 << dtype.mantissa, 0)
    value = np.ldexp((fraction + implicit).astype(np.float32), np.maximum(field, 1) - bias - dtype.mantissa)
    magnitude = code & 0x7F
    value[magnitude == _infinity(dtype)] = np.inf
    value[magnitude > _infinity(dtype)] = np.nan
    if dtype is dt.float8_e4m3:
        value[magnitude == 0x7F] = np.nan
    signed: Array = np.copysign(value, np.where(code >> 7, np.float32(-1), np.float32(1)))
    return signed


_FLOAT8 = {d: _float8_values(d) for d in (dt.float8_e4m3, dt.float8_e5m2)}
