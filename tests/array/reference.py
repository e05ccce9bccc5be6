"""NumPy as the judge: arrays of every devrt type beside the NumPy arrays of the same values."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import devrt
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType

NP: dict[DType, Any] = {d: np.dtype(d.name) for d in dt.ALL if not d.storage and d not in (dt.bool_, dt.bfloat16)}
NP |= {dt.bool_: np.dtype(bool), dt.bfloat16: np.dtype(ml_dtypes.bfloat16), dt.int4: np.dtype(np.int8),
       dt.float8_e4m3: np.dtype(ml_dtypes.float8_e4m3fn), dt.float8_e5m2: np.dtype(ml_dtypes.float8_e5m2)}

ARITHMETIC = tuple(d for d in dt.ALL if not d.storage)
INTS = tuple(d for d in ARITHMETIC if d.is_int)
FLOATS = tuple(d for d in ARITHMETIC if d.is_float)
SIZES = (0, 1, 31, 32, 33, 63, 64, 65, 127, 1000)

EDGES_FLOAT = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, -7.0, 1e-3, 100.0, np.inf, -np.inf, np.nan)


def numbers(d: DType, shape: Any, seed: int = 0) -> NDArray[Any]:
    """Random values of a type that NumPy computes in: small enough that products stay finite."""
    rng = np.random.default_rng(seed + 1)
    if d.kind == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if d.is_int:
        lo, hi = max(d.min, -100), min(d.max, 100)
        return rng.integers(lo, hi + 1, shape).astype(NP[d])
    return rng.standard_normal(shape).astype(np.float32).astype(NP[d])


def edges(d: DType) -> NDArray[Any]:
    """The values where semantics are decided."""
    if d.kind == "bool":
        return np.array([False, True])
    if d.is_int:
        small = [v for v in (-7, -3, -2, -1, 0, 1, 2, 3, 7, 31, 32, 63, 64, 65) if d.min <= v <= d.max]
        return np.array([d.min, d.min + 1, *small, d.max - 1, d.max], NP[d])
    f = np.finfo(np.float64 if d is dt.float64 else np.float32) if d is not dt.bfloat16 else ml_dtypes.finfo("bfloat16")
    f = np.finfo(np.float16) if d is dt.float16 else f
    extra = [float(f.max), float(-f.max), float(f.tiny), float(f.smallest_subnormal), -float(f.smallest_subnormal)]
    return np.array([*EDGES_FLOAT, *extra]).astype(NP[d])


def pairs(d: DType) -> tuple[NDArray[Any], NDArray[Any]]:
    """Every pair of edge values."""
    e = edges(d)
    a, b = np.meshgrid(e, e, indexing="ij")
    return np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)


def array(values: NDArray[Any], d: DType | None = None) -> devrt.Array:
    """`values` as a devrt array of type `d`."""
    if d is dt.int4:
        return devrt.asarray(values.astype(np.int8)).astype(dt.int4).realize()
    return devrt.asarray(values, dtype=d)


def value(x: devrt.Array) -> NDArray[Any]:
    """What `x` holds, bfloat16 and fp8 as ml_dtypes arrays."""
    return x.numpy().astype(NP[x.dtype])


def same(got: devrt.Array, want: Any, rtol: float = 0.0, atol: float = 0.0) -> None:
    """`got` has the type, shape and values of the NumPy array `want`: exactly (signs of zero too), or within bounds."""
    want = np.asarray(want)
    assert got.shape == want.shape, f"shape {got.shape}, NumPy {want.shape}"
    assert NP[got.dtype] == want.dtype, f"type {got.dtype}, NumPy {want.dtype}"
    close(value(got), want, rtol, atol)


def close(have: NDArray[Any], want: NDArray[Any], rtol: float = 0.0, atol: float = 0.0) -> None:
    have, want = np.asarray(have), np.asarray(want)
    if want.dtype.kind in "fV":
        have, want = have.astype(np.float64), want.astype(np.float64)
    if rtol or atol:
        np.testing.assert_allclose(have, want, rtol=rtol, atol=atol)
        return
    np.testing.assert_array_equal(have, want)
    if want.dtype.kind == "f":
        known = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(have)[known], np.signbit(want)[known], "signs of zeros")


def tolerance(d: DType) -> float:
    """One or two roundings of the type, relative."""
    return {dt.float16: 2e-3, dt.bfloat16: 1.6e-2, dt.float32: 1e-6, dt.float64: 1e-14}.get(d, 1e-6)
