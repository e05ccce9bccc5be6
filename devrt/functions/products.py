"""Matrix products and their kin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from devrt import tier
from devrt.array import Array, broadcast, broadcast_shapes
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.ops import Op, make
from devrt.device import InvalidArgument
from devrt.functions.basic import _axis
from devrt.functions.movement import expand_dims, moveaxis, permute_dims, reshape, squeeze


def matmul(a: Array, b: Array, /, *, dtype: DType | None = None) -> Array:
    """Matrix product over the last two axes, the others broadcast. float16, bfloat16 and fp8 accumulate in float32, small
    integers in int32; the result has the operands' type, or `dtype`. Inside `with devrt.fast():` float16 and bfloat16 may be
    multiplied by matrix units (docs/numerics.md)."""
    if a.ndim == 0 or b.ndim == 0:
        raise InvalidArgument("matmul needs at least one axis on both sides")
    if a.ndim == 1:
        return _drop(matmul(expand_dims(a, axis=0), b, dtype=dtype), -1 if b.ndim == 1 else -2)
    if b.ndim == 1:
        return _drop(matmul(a, expand_dims(b, axis=1), dtype=dtype), -1)
    if a.shape[-1] != b.shape[-2]:
        raise InvalidArgument(f"cannot multiply {list(a.shape)} by {list(b.shape)}",
                              evidence=f"{a.shape[-1]} columns meet {b.shape[-2]} rows")
    common = a.dtype if a.dtype is b.dtype else dt.promote(a.dtype, b.dtype)
    acc = _accumulate_in(common, dtype)
    out_type = dtype or (dt.compute_type(common) if common.storage else common)
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    arg: Any = (acc, "fast") if common in (dt.float16, dt.bfloat16) and tier.is_fast() else acc
    a, b = a.astype(common), b.astype(common)
    if math.prod(b.shape[:-2]) == 1:  # one matrix on the right: all rows of the left are one tall matrix
        batch = a.shape[:-2] if a.ndim >= b.ndim else broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left, right, shape = reshape(a, (1, math.prod(a.shape[:-1]), k)), reshape(b, (1, k, n)), (*batch, m, n)
    else:
        batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left = reshape(broadcast(a, (*batch, m, k)), (math.prod(batch), m, k))
        right = reshape(broadcast(b, (*batch, k, n)), (math.prod(batch), k, n))
        shape = (*batch, m, n)
    return reshape(Array(make(Op.CONTRACT, (left.node, right.node), arg)), shape).astype(out_type)


def _accumulate_in(d: DType, wanted: DType | None) -> DType:
    if d.is_float:
        return dt.float64 if d is dt.float64 else dt.float32
    if d.kind == "bool":
        raise InvalidArgument("bool has no matrix product", remedy="cast it to an integer")
    wide = d.bits == 64 or wanted is not None and wanted.bits == 64
    return (dt.uint64 if wide else dt.uint32) if d.kind == "uint" else (dt.int64 if wide else dt.int32)


def _drop(x: Array, axis: int) -> Array:
    return squeeze(x, axis)


def vecdot(a: Array, b: Array, /, *, axis: int = -1) -> Array:
    """Sum of products along an axis."""
    x, y = moveaxis(a, axis, a.ndim - 1), moveaxis(b, axis, b.ndim - 1)
    return _drop(_drop(matmul(expand_dims(x, axis=-2), expand_dims(y, axis=-1)), -1), -1)


def tensordot(a: Array, b: Array, /, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Array:
    """Sum of products over pairs of axes."""
    left, right = (list(range(a.ndim - axes, a.ndim)), list(range(axes))) if isinstance(axes, int) else map(list, axes)
    left, right = [_axis(x, a.ndim) for x in left], [_axis(x, b.ndim) for x in right]
    if [a.shape[i] for i in left] != [b.shape[i] for i in right]:
        raise InvalidArgument(f"axes {left} of {list(a.shape)} do not match {right} of {list(b.shape)}")
    rows, columns = [i for i in range(a.ndim) if i not in left], [i for i in range(b.ndim) if i not in right]
    k = math.prod(a.shape[i] for i in left)
    out = matmul(reshape(permute_dims(a, rows + left), (math.prod(a.shape[i] for i in rows), k)),
                 reshape(permute_dims(b, right + columns), (k, math.prod(b.shape[i] for i in columns))))
    return reshape(out, [a.shape[i] for i in rows] + [b.shape[i] for i in columns])


def outer(a: Array, b: Array, /) -> Array: return expand_dims(a, axis=1) * b
