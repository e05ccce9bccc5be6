"""Arrays made of indexes: linspace, eye, triangles."""

from __future__ import annotations

import builtins

from devrt.array import Array, default_float
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.ops import Op, make
from devrt.device import InvalidArgument
from devrt.functions.basic import arange
from devrt.functions.logic import where
from devrt.functions.movement import expand_dims


def linspace(start: float, stop: float, /, num: int, *, dtype: DType = default_float,
             endpoint: builtins.bool = True) -> Array:
    """`num` evenly spaced values; the last is `stop` itself if endpoint."""
    if num < 0:
        raise InvalidArgument("linspace needs num >= 0")
    gaps = num - 1 if endpoint else num
    index = Array(make(Op.IOTA, (), (num, dt.int64)))
    wide = dt.float64 if dtype is dt.float64 else dt.float32
    line = index.astype(wide) * ((stop - start) / builtins.max(gaps, 1)) + float(start)
    return where(index == num - 1, float(stop), line).astype(dtype) if endpoint and num > 1 else line.astype(dtype)


def eye(rows: int, columns: int | None = None, /, *, k: int = 0, dtype: DType = default_float) -> Array:
    """Ones on the k-th diagonal."""
    columns = rows if columns is None else columns
    return (expand_dims(arange(rows), axis=1) + k == arange(columns)).astype(dtype)


def tril(x: Array, /, *, k: int = 0) -> Array:
    """Zeros above the k-th diagonal of the last two axes."""
    rows, columns = _indices(x)
    return where(columns <= rows + k, x, 0)


def triu(x: Array, /, *, k: int = 0) -> Array:
    rows, columns = _indices(x)
    return where(columns < rows + k, 0, x)


def _indices(x: Array) -> tuple[Array, Array]:
    if x.ndim < 2:
        raise InvalidArgument(f"two axes are needed, not shape {list(x.shape)}")
    return expand_dims(arange(x.shape[-2]), axis=1), arange(x.shape[-1])
