"""Arrays filled with one value, ranges, and what element-wise functions are built with."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence

from devrt.array import Array, Scalar, asarray, default_float, default_int, operands
from devrt.compiler import dtypes as dt
from devrt.compiler.composite import MATH, fill
from devrt.compiler.dtypes import DType
from devrt.compiler.ops import Op, Shape, make
from devrt.device import InvalidArgument

e, inf, nan, pi, newaxis = math.e, math.inf, math.nan, math.pi, None


def full(shape: int | Sequence[int], value: Scalar, *, dtype: DType | None = None, device: str | None = None) -> Array:
    """An array filled with one value."""
    kind = dt.bool_ if isinstance(value, builtins.bool) else default_int if isinstance(value, int) else default_float
    return _placed(Array(fill(value, dtype or kind, _shape(shape))), device)


def _placed(x: Array, device: str | None) -> Array:
    """What needs no device goes where it is used; one that is named gets it now."""
    return x if device is None else x.to_device(device)


def zeros(shape: int | Sequence[int], *, dtype: DType = default_float, device: str | None = None) -> Array:
    return full(shape, 0, dtype=dtype, device=device)


def ones(shape: int | Sequence[int], *, dtype: DType = default_float, device: str | None = None) -> Array:
    return full(shape, 1, dtype=dtype, device=device)


def empty(shape: int | Sequence[int], *, dtype: DType = default_float, device: str | None = None) -> Array:
    return zeros(shape, dtype=dtype, device=device)


def zeros_like(x: Array, /, *, dtype: DType | None = None) -> Array: return full(x.shape, 0, dtype=dtype or x.dtype)
def ones_like(x: Array, /, *, dtype: DType | None = None) -> Array: return full(x.shape, 1, dtype=dtype or x.dtype)


def full_like(x: Array, /, value: Scalar, *, dtype: DType | None = None) -> Array:
    return full(x.shape, value, dtype=dtype or x.dtype)


def _shape(shape: int | Sequence[int]) -> Shape:
    out = (shape,) if isinstance(shape, int) else tuple(shape)
    if not builtins.all(isinstance(n, int) and not isinstance(n, builtins.bool) and n >= 0 for n in out):
        raise InvalidArgument(f"a shape is made of non-negative integers, not {shape!r}")
    return out


def arange(start: Scalar, /, stop: Scalar | None = None, step: Scalar = 1, *, dtype: DType | None = None) -> Array:
    """start, start+step, .. below stop."""
    start, stop = (0, start) if stop is None else (start, stop)
    if step == 0:
        raise InvalidArgument("arange needs a step that is not 0")
    count = builtins.max(0, math.ceil((stop - start) / step))
    whole = builtins.all(isinstance(v, int) for v in (start, stop, step))
    d = dtype or (default_int if whole else default_float)
    index = Array(make(Op.IOTA, (), (count, dt.int64)))
    if whole and (d.is_int or d.kind == "bool"):
        return (index * step + start).astype(d)
    wide = dt.float64 if d is dt.float64 else dt.float32
    return (index.astype(wide) * float(step) + float(start)).astype(d)


def _floating(x: Array) -> Array:
    if not x.dtype.is_float:
        return x.astype(default_float)
    return x.astype(dt.compute_type(x.dtype)) if x.dtype.storage else x


def _primitive(op: Op, x: Array, arg: object = None) -> Array:
    return Array(make(op, (_floating(x).node,), arg))


def _derived(function, *xs: Array | Scalar) -> Array:  # type: ignore[no-untyped-def]
    """A derived function, computed in float32 (float64) and rounded once for the narrow types."""
    arrays = [asarray(xs[0])] if len(xs) == 1 else operands(*xs)
    arrays = [_floating(a) for a in arrays]
    d = arrays[0].dtype
    wide = [a.astype(dt.compute_type(d)).node for a in arrays]
    return Array(MATH.cast(function(MATH, *wide), d))


def _two(op: Op, a: Array | Scalar, b: Array | Scalar) -> Array:
    x, y = operands(a, b)
    if x.dtype.kind == "bool" and op in (Op.ADD, Op.MUL):
        return Array(make(Op.OR if op is Op.ADD else Op.AND, (x.node, y.node)))
    return Array(make(op, (x.node, y.node)))


def _axis(axis: int, rank: int) -> int:
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise InvalidArgument(f"axis {axis} is outside an array of {rank} axes")
    return axis % rank


def _axes(axis: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(rank))
    axes = tuple(_axis(a, rank) for a in ((axis,) if isinstance(axis, int) else axis))
    if len(set(axes)) != len(axes):
        raise InvalidArgument(f"an axis is named twice in {axis}")
    return axes
