"""Functions that move elements without computing: shapes, axes, joining, indexing."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence

from devrt.array import Array, Scalar, asarray, broadcast
from devrt.compiler import composite
from devrt.compiler import dtypes as dt
from devrt.compiler.ops import Op, make
from devrt.device import InvalidArgument
from devrt.functions.basic import _axes, _axis, _shape, arange
from devrt.functions.elementwise import clip
from devrt.functions.logic import where


def reshape(x: Array, /, shape: Sequence[int]) -> Array:
    """The same elements under another shape; one -1 is worked out."""
    shape = tuple(shape)
    if shape.count(-1) == 1:
        known = math.prod(n for n in shape if n != -1)
        if known == 0 or x.size % known:
            raise InvalidArgument(f"shape {list(x.shape)} does not reshape to {list(shape)}")
        shape = tuple(x.size // known if n == -1 else n for n in shape)
    return Array(make(Op.RESHAPE, (x.node,), _shape(shape)))


def permute_dims(x: Array, /, axes: Sequence[int]) -> Array:
    return Array(make(Op.PERMUTE, (x.node,), tuple(_axis(a, x.ndim) for a in axes)))


def matrix_transpose(x: Array, /) -> Array: return x.mT
def broadcast_to(x: Array, /, shape: Sequence[int]) -> Array: return broadcast(x, _shape(tuple(shape)))


def moveaxis(x: Array, source: int, destination: int, /) -> Array:
    axes = [a for a in range(x.ndim) if a != _axis(source, x.ndim)]
    axes.insert(_axis(destination, x.ndim), _axis(source, x.ndim))
    return permute_dims(x, axes)


def expand_dims(x: Array, /, *, axis: int = 0) -> Array:
    at = _axis(axis, x.ndim + 1)
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


def squeeze(x: Array, /, axis: int | Sequence[int]) -> Array:
    axes = _axes(axis, x.ndim)
    if builtins.any(x.shape[a] != 1 for a in axes):
        raise InvalidArgument(f"only axes of size 1 are squeezed, shape {list(x.shape)}")
    return reshape(x, [n for a, n in enumerate(x.shape) if a not in axes])


def flip(x: Array, /, *, axis: int | Sequence[int] | None = None) -> Array:
    axes = _axes(axis, x.ndim)
    if x.size == 0:
        return x
    slices = tuple((n - 1, n, -1) if a in axes else (0, n, 1) for a, n in enumerate(x.shape))
    return Array(make(Op.SLICE, (x.node,), slices))


def pad(x: Array, /, widths: Sequence[tuple[int, int]], *, value: Scalar = 0) -> Array:
    """`widths` (before, after) of every axis, filled with `value`."""
    fill_value = float(value) if x.dtype.is_float else builtins.bool(value) if x.dtype.kind == "bool" else int(value)
    return Array(make(Op.PAD, (x.node,), (tuple((int(b), int(a)) for b, a in widths), fill_value)))


def concat(arrays: Sequence[Array], /, *, axis: int | None = 0) -> Array:
    """Arrays one after another along an axis (None: flattened)."""
    if not arrays:
        raise InvalidArgument("concat needs at least one array")
    if axis is None:
        arrays, axis = [reshape(a, (-1,)) for a in arrays], 0
    at = _axis(axis, arrays[0].ndim)
    if builtins.any(a.ndim != arrays[0].ndim
                    or a.shape[:at] + a.shape[at + 1:] != arrays[0].shape[:at] + arrays[0].shape[at + 1:]
                    for a in arrays):
        raise InvalidArgument(f"shapes {[list(a.shape) for a in arrays]} differ beside axis {at}")
    dtype = arrays[0].dtype
    for a in arrays[1:]:
        dtype = dtype if a.dtype is dtype else dt.promote(dtype, a.dtype)
    total = builtins.sum(a.shape[at] for a in arrays)
    place = reshape(arange(total), [total if d == at else 1 for d in range(arrays[0].ndim)])
    out, before = None, 0
    for a in arrays:
        size = a.shape[at]
        if size == 0:
            continue
        padded = pad(a.astype(dtype), [(before, total - before - size) if d == at else (0, 0) for d in range(a.ndim)])
        out = padded if out is None else _select(place < before, out, padded)
        before += size
    return arrays[0].astype(dtype) if out is None else out


def _select(c: Array, a: Array, b: Array) -> Array:
    """a where c, else b, in their own type, be it one that only stores."""
    return Array(make(Op.WHERE, (broadcast(c, a.shape).node, a.node, b.node)))


def stack(arrays: Sequence[Array], /, *, axis: int = 0) -> Array:
    return concat([expand_dims(a, axis=_axis(axis, a.ndim + 1)) for a in arrays], axis=axis)


def roll(x: Array, /, shift: int, *, axis: int | None = None) -> Array:
    """Elements moved along an axis (None: flattened), those that leave coming back at the start."""
    if axis is None:
        return reshape(roll(reshape(x, (-1,)), shift, axis=0), x.shape)
    at = _axis(axis, x.ndim)
    n = x.shape[at]
    if n == 0 or shift % n == 0:
        return x
    cut = n - shift % n
    def part(lo: int, hi: int) -> Array:
        return x[tuple(slice(lo, hi) if d == at else slice(None) for d in range(x.ndim))]
    return concat([part(cut, n), part(0, cut)], axis=at)


def repeat(x: Array, repeats: int, /, *, axis: int | None = None) -> Array:
    """Every element `repeats` times."""
    if axis is None:
        x, axis = reshape(x, (-1,)), 0
    at = _axis(axis, x.ndim)
    wide = broadcast(expand_dims(x, axis=at + 1), (*x.shape[:at + 1], repeats, *x.shape[at + 1:]))
    return reshape(wide, (*x.shape[:at], x.shape[at] * repeats, *x.shape[at + 1:]))


def tile(x: Array, repetitions: Sequence[int], /) -> Array:
    """x repeated as a whole along every axis; missing axes of either are 1."""
    if any(n < 0 for n in repetitions):
        raise InvalidArgument(f"tile repeats {list(repetitions)} times")
    rank = max(x.ndim, len(repetitions))
    shape = (1,) * (rank - x.ndim) + x.shape
    times = (1,) * (rank - len(repetitions)) + tuple(repetitions)
    pairs = [n for pair in zip(times, shape, strict=True) for n in pair]
    apart = reshape(x, [n for size in shape for n in (1, size)])
    return reshape(broadcast(apart, tuple(pairs)), [t * n for t, n in zip(times, shape, strict=True)])


def take(x: Array, indices: Array, /, *, axis: int = 0) -> Array:
    """Rows by index along an axis; negative indexes count from the end, others are clipped."""
    key = (*([slice(None)] * _axis(axis, x.ndim)), asarray(indices))
    return x[key]


def take_along_axis(x: Array, indices: Array, /, *, axis: int = -1) -> Array:
    """x[.., indices[.., j, ..], ..]: one index for every position of the other axes."""
    at = _axis(axis, x.ndim)
    moved, index = moveaxis(x, at, x.ndim - 1), moveaxis(indices, at, x.ndim - 1)
    rows = math.prod(moved.shape[:-1])
    n = moved.shape[-1]
    wide = index.astype(dt.int64)
    wide = clip(where(wide < 0, wide + n, wide), 0, n - 1)
    base = reshape(arange(rows) * n, (*moved.shape[:-1], 1))
    return moveaxis(take(reshape(moved, (-1,)), wide + base), x.ndim - 1, at)


def update_rows(x: Array, rows: Array, start: Array | int, /) -> Array:
    """x [n, ..] with `rows` [t, ..] in place of its rows start..start+t; start is clipped to 0..n-t.

    In a captured function that was given x to keep (capture(donate=...)) only these rows are written, where x lies.
    """
    x, rows, at = asarray(x), asarray(rows), asarray(start)
    if x.ndim == 0 or rows.shape[1:] != x.shape[1:] or rows.ndim != x.ndim or rows.shape[0] > x.shape[0]:
        raise InvalidArgument("update_rows puts rows [t, ..] into x [n, ..] with t <= n",
                              evidence=f"x {list(x.shape)}, rows {list(rows.shape)}")
    if at.shape != () or not at.dtype.is_int or at.dtype is dt.int4:
        raise InvalidArgument("update_rows starts at an integer scalar", evidence=f"{at.dtype}{list(at.shape)}")
    if rows.dtype is not x.dtype:
        raise InvalidArgument(f"rows are {rows.dtype}, x is {x.dtype}", remedy="use rows.astype(x.dtype)")
    return x if rows.shape[0] == 0 else Array(composite.update_rows(x.node, rows.node, at.node))
