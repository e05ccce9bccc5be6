"""Sums, extremes, statistics over axes; running sums."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence

from devrt.array import Array, broadcast, default_float, default_int
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.ops import Op, make
from devrt.device import InvalidArgument
from devrt.functions.basic import _axes, _axis, arange, full
from devrt.functions.elementwise import sqrt
from devrt.functions.logic import _truth, logical_or, where
from devrt.functions.movement import pad, reshape


def _reduce(kind: str, x: Array, axis: int | Sequence[int] | None, keepdims: builtins.bool) -> Array:
    axes = _axes(axis, x.ndim)
    wide = x.astype(dt.compute_type(x.dtype)) if x.dtype.storage else x
    out = make(Op.REDUCE, (wide.node,), (kind, axes))
    shape = out.shape if keepdims else tuple(n for a, n in enumerate(x.shape) if a not in axes)
    return Array(make(Op.RESHAPE, (out,), shape))


def _accumulator(x: Array, dtype: DType | None) -> DType:
    if dtype is not None:
        return dtype
    if x.dtype.is_float:
        return x.dtype
    return dt.uint64 if x.dtype.kind == "uint" else dt.int64


def sum(x: Array, /, *, axis: int | Sequence[int] | None = None, dtype: DType | None = None,
        keepdims: builtins.bool = False) -> Array:
    """Sum in the fixed order of docs/numerics.md. Integers are summed in 64 bits, float16 and bfloat16 in float32."""
    return _reduce("sum", x.astype(_accumulator(x, dtype)), axis, keepdims)


def prod(x: Array, /, *, axis: int | Sequence[int] | None = None, dtype: DType | None = None,
         keepdims: builtins.bool = False) -> Array:
    return _reduce("prod", x.astype(_accumulator(x, dtype)), axis, keepdims)


def max(x: Array, /, *, axis: int | Sequence[int] | None = None, keepdims: builtins.bool = False) -> Array:
    return _reduce("max", x, axis, keepdims)


def min(x: Array, /, *, axis: int | Sequence[int] | None = None, keepdims: builtins.bool = False) -> Array:
    return _reduce("min", x, axis, keepdims)


def any(x: Array, /, *, axis: int | Sequence[int] | None = None, keepdims: builtins.bool = False) -> Array:
    return _logical("max", x, axis, keepdims, False)


def all(x: Array, /, *, axis: int | Sequence[int] | None = None, keepdims: builtins.bool = False) -> Array:
    return _logical("min", x, axis, keepdims, True)


def _logical(kind: str, x: Array, axis: int | Sequence[int] | None, keepdims: builtins.bool,
             of_none: builtins.bool) -> Array:
    axes = _axes(axis, x.ndim)
    if builtins.any(x.shape[a] == 0 for a in axes):
        return full([1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes], of_none)
    return _reduce(kind, _truth(x), axis, keepdims)


def mean(x: Array, /, *, axis: int | Sequence[int] | None = None, keepdims: builtins.bool = False) -> Array:
    """sum / count; integers become float32."""
    d = x.dtype if x.dtype.is_float and not x.dtype.storage else default_float
    count = math.prod(x.shape[a] for a in _axes(axis, x.ndim))
    wide = x.astype(dt.compute_type(d))
    return (sum(wide, axis=axis, keepdims=keepdims) / float(count)).astype(d)


def var(x: Array, /, *, axis: int | Sequence[int] | None = None, correction: float = 0.0,
        keepdims: builtins.bool = False) -> Array:
    """Mean squared distance from the mean, in two passes."""
    d = x.dtype if x.dtype.is_float and not x.dtype.storage else default_float
    wide = x.astype(dt.compute_type(d))
    count = math.prod(x.shape[a] for a in _axes(axis, x.ndim))
    off = wide - mean(wide, axis=axis, keepdims=True)
    return (sum(off * off, axis=axis, keepdims=keepdims) / builtins.max(count - correction, 0.0)).astype(d)


def std(x: Array, /, *, axis: int | Sequence[int] | None = None, correction: float = 0.0,
        keepdims: builtins.bool = False) -> Array:
    return sqrt(var(x, axis=axis, correction=correction, keepdims=keepdims))


def argmax(x: Array, /, *, axis: int | None = None, keepdims: builtins.bool = False) -> Array:
    """The first position of the maximum (of the first NaN, if any), int64."""
    return _position("max", x, axis, keepdims)


def argmin(x: Array, /, *, axis: int | None = None, keepdims: builtins.bool = False) -> Array:
    return _position("min", x, axis, keepdims)


def _position(kind: str, x: Array, axis: int | None, keepdims: builtins.bool) -> Array:
    if axis is None:
        out = _position(kind, reshape(x, (-1,)), 0, False)
        return reshape(out, (1,) * x.ndim) if keepdims else out
    at = _axis(axis, x.ndim)
    best = _reduce(kind, x, at, True)
    hit = logical_or(x == best, x != x) if x.dtype.is_float else x == best
    place = reshape(arange(x.shape[at]), [x.shape[at] if d == at else 1 for d in range(x.ndim)])
    return _reduce("min", where(hit, broadcast(place, x.shape), x.shape[at]), at, keepdims)


def count_nonzero(x: Array, /, *, axis: int | Sequence[int] | None = None, keepdims: builtins.bool = False) -> Array:
    return sum(_truth(x).astype(default_int), axis=axis, keepdims=keepdims)


def cumulative_sum(x: Array, /, *, axis: int | None = None, dtype: DType | None = None) -> Array:
    """Running sums by doubling: element i adds the partial sums of 1, 2, 4, .. elements before it."""
    at = _axis(0 if axis is None and x.ndim == 1 else axis if axis is not None else 0, x.ndim)
    if axis is None and x.ndim != 1:
        raise InvalidArgument("cumulative_sum needs an axis for arrays of more than one")
    out, n, step = x.astype(_accumulator(x, dtype)), x.shape[at], 1
    while step < n:
        kept = out[tuple(slice(0, n - step) if d == at else slice(None) for d in range(x.ndim))]
        out = out + pad(kept, [(step, 0) if d == at else (0, 0) for d in range(x.ndim)])
        step *= 2
    return out
