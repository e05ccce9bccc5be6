"""The functions of the array API standard that devrt has, each a composition of the 32 primitives."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence

from devrt.array import Array, Scalar, asarray, broadcast, broadcast_shapes, default_float, default_int, operands
from devrt.compiler import derived
from devrt.compiler import dtypes as dt
from devrt.compiler.composite import MATH, fill
from devrt.compiler.dtypes import DType
from devrt.compiler.ops import Op, Shape, make
from devrt.device import InvalidArgument, Unsupported

e, inf, nan, pi, newaxis = math.e, math.inf, math.nan, math.pi, None

# ---------------------------------------------------------------------------------------------------------------------
# Creation


def full(shape: int | Sequence[int], value: Scalar, *, dtype: DType | None = None) -> Array:
    """An array filled with one value."""
    kind = dt.bool_ if isinstance(value, builtins.bool) else default_int if isinstance(value, int) else default_float
    return Array(fill(value, dtype or kind, _shape(shape)))


def zeros(shape: int | Sequence[int], *, dtype: DType = default_float) -> Array: return full(shape, 0, dtype=dtype)
def ones(shape: int | Sequence[int], *, dtype: DType = default_float) -> Array: return full(shape, 1, dtype=dtype)
def empty(shape: int | Sequence[int], *, dtype: DType = default_float) -> Array: return zeros(shape, dtype=dtype)
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


# ---------------------------------------------------------------------------------------------------------------------
# Element-wise


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


def add(a: Array | Scalar, b: Array | Scalar, /) -> Array: return _two(Op.ADD, a, b)
def multiply(a: Array | Scalar, b: Array | Scalar, /) -> Array: return _two(Op.MUL, a, b)
def maximum(a: Array | Scalar, b: Array | Scalar, /) -> Array: return _two(Op.MAX, a, b)


def _two(op: Op, a: Array | Scalar, b: Array | Scalar) -> Array:
    x, y = operands(a, b)
    if x.dtype.kind == "bool" and op in (Op.ADD, Op.MUL):
        return Array(make(Op.OR if op is Op.ADD else Op.AND, (x.node, y.node)))
    return Array(make(op, (x.node, y.node)))


def negative(x: Array, /) -> Array:
    """-x: for floats the sign flipped, for unsigned integers modulo 2^bits."""
    if x.dtype.kind == "bool":
        raise InvalidArgument("bool has no negative", remedy="use logical_not")
    if x.dtype.kind == "uint":
        return bitwise_invert(x) + 1
    return multiply(x, -1)


def subtract(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    x, y = operands(a, b)
    return add(x, negative(y))


def divide(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    """True division; integers become float32 (64-bit ones float64)."""
    x, y = operands(a, b)
    if not x.dtype.is_float:
        both = isinstance(a, Array) and isinstance(b, Array)
        wide = dt.float64 if x.dtype.bits == 64 and both else default_float
        x, y = x.astype(wide), y.astype(wide)
    return Array(make(Op.DIV, (x.node, y.node)))


def minimum(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    x, y = operands(a, b)
    if x.dtype.is_float:
        return negative(maximum(negative(x), negative(y)))
    return bitwise_invert(maximum(bitwise_invert(x), bitwise_invert(y)))


def clip(x: Array, /, min: Array | Scalar | None = None, max: Array | Scalar | None = None) -> Array:
    out = x if min is None else maximum(x, min)
    return out if max is None else minimum(out, max)


def abs(x: Array, /) -> Array:
    if not x.dtype.is_signed:
        return x
    if x.dtype.is_float and x.dtype.bits >= 16:
        u = dt.unsigned_of(x.dtype.bits)
        bits = bitwise_and(Array(make(Op.BITCAST, (x.node,), u)), (1 << (x.dtype.bits - 1)) - 1)
        return Array(make(Op.BITCAST, (bits.node,), x.dtype))
    return where(x < 0, negative(x), x)


def sign(x: Array, /) -> Array:
    """-1, 0 or 1 of x's type; NaN stays."""
    if x.dtype.kind == "uint":
        return (x != 0).astype(x.dtype)
    ones = where(x < 0, full_like(x, -1), (x > 0).astype(x.dtype))
    return where(x == x, ones, x) if x.dtype.is_float else ones


def floor_divide(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    """floor(a / b). Integers: x // 0 is 0."""
    x, y = operands(a, b)
    if x.dtype.is_float:
        return floor(divide(x, y))
    q = Array(make(Op.DIV, (x.node, y.node)))
    if not x.dtype.is_signed:
        return q
    inexact = logical_and(q * y != x, (x < 0) != (y < 0))
    return where(logical_and(inexact, y != 0), q - 1, q)


def remainder(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    """a - floor(a/b)*b, with the sign of b. Integers: x % 0 is 0."""
    x, y = operands(a, b)
    if x.dtype.is_float:
        r = x - trunc(divide(x, y)) * y
        return where(logical_and(r != 0, (r < 0) != (y < 0)), r + y, r)
    return where(y == 0, 0, x - floor_divide(x, y) * y)


def pow(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    """a to the power b. Integer powers wrap; a negative integer exponent gives 0, except for bases 1 and -1."""
    x, y = operands(a, b)
    if x.dtype.is_float:
        if isinstance(b, int) and 0 <= b <= 4:
            return _power(x, b)
        return _derived(derived.pow, x, y)
    if isinstance(b, int):
        if b >= 0:
            return _power(x, b)
        return where(x == 1, ones_like(x), where(x == -1, 1 - 2 * (b & 1), zeros_like(x)) if x.dtype.is_signed else 0)
    result, square = ones_like(x), x
    for bit in range(x.dtype.bits - x.dtype.is_signed):
        result = where(bitwise_and(bitwise_right_shift(y, bit), 1) == 1, result * square, result)
        square = square * square
    if x.dtype.is_signed:
        odd = bitwise_and(y, 1) == 1
        result = where(y < 0, where(x == 1, 1, where(x == -1, where(odd, full_like(x, -1), 1), zeros_like(x))), result)
    return result


def _power(x: Array, n: int) -> Array:
    result = ones_like(x) if n == 0 else None
    while n:
        if n & 1:
            result = x if result is None else result * x
        x, n = x * x, n >> 1
    assert result is not None
    return result


def square(x: Array, /) -> Array: return multiply(x, x)
def sqrt(x: Array, /) -> Array: return _primitive(Op.SQRT, x)
def exp2(x: Array, /) -> Array: return _primitive(Op.EXP2, x)
def log2(x: Array, /) -> Array: return _primitive(Op.LOG2, x)
def sin(x: Array, /) -> Array: return _primitive(Op.SIN, x, 0)
def cos(x: Array, /) -> Array: return _primitive(Op.SIN, x, 1)
def tan(x: Array, /) -> Array: return divide(sin(x), cos(x))
def exp(x: Array, /) -> Array: return _derived(derived.exp, x)
def log(x: Array, /) -> Array: return _derived(derived.log, x)
def tanh(x: Array, /) -> Array: return _derived(derived.tanh, x)
def erf(x: Array, /) -> Array: return _derived(derived.erf, x)
def sigmoid(x: Array, /) -> Array: return _derived(derived.sigmoid, x)
def reciprocal(x: Array, /) -> Array: return divide(1, x)


def fma(a: Array | Scalar, b: Array | Scalar, c: Array | Scalar, /) -> Array:
    """a*b + c rounded once (float32, float64)."""
    return Array(make(Op.FMA, [x.node for x in operands(a, b, c)]))


def floor(x: Array, /) -> Array: return x if not x.dtype.is_float else _primitive(Op.FLOOR, x)
def ceil(x: Array, /) -> Array: return x if not x.dtype.is_float else negative(floor(negative(x)))
def trunc(x: Array, /) -> Array: return x if not x.dtype.is_float else where(x < 0, ceil(x), floor(x))


def round(x: Array, /) -> Array:
    """To the nearest integer, halves to even."""
    if not x.dtype.is_float:
        return x
    low = floor(x)
    gap = subtract(x, low)
    odd = floor(low * 0.5) * 2.0 != low
    up = logical_or(gap > 0.5, logical_and(gap == 0.5, odd))
    nearest = where(up, low + 1.0, low)
    return where(x < 0, negative(abs(nearest)), where(x == 0, x, nearest))  # -0.3 rounds to -0


def isnan(x: Array, /) -> Array: return not_equal(x, x)
def isfinite(x: Array, /) -> Array: return less(abs(x), inf) if x.dtype.is_float else full(x.shape, True)
def isinf(x: Array, /) -> Array: return equal(abs(x), inf) if x.dtype.is_float else full(x.shape, False)
def signbit(x: Array, /) -> Array:
    return Array(make(Op.BITCAST, (x.node,), dt.signed_of(x.dtype.bits))) < 0 if x.dtype.is_float else x < 0


# ---------------------------------------------------------------------------------------------------------------------
# Comparison, logic, bits


def less(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    x, y = operands(a, b)
    if x.dtype.kind == "bool":
        x, y = x.astype(dt.uint8), y.astype(dt.uint8)
    return Array(make(Op.LESS, (x.node, y.node)))


def greater(a: Array | Scalar, b: Array | Scalar, /) -> Array: return less(b, a)
def less_equal(a: Array | Scalar, b: Array | Scalar, /) -> Array: return logical_or(less(a, b), equal(a, b))
def greater_equal(a: Array | Scalar, b: Array | Scalar, /) -> Array: return less_equal(b, a)


def equal(a: Array | Scalar, b: Array | Scalar, /) -> Array:
    x, y = operands(a, b)
    return Array(make(Op.EQUAL, (x.node, y.node)))


def not_equal(a: Array | Scalar, b: Array | Scalar, /) -> Array: return logical_not(equal(a, b))


def _truth(x: Array | Scalar) -> Array:
    x = asarray(x)
    return x if x.dtype.kind == "bool" else x.astype(dt.bool_)


def logical_not(x: Array, /) -> Array: return Array(make(Op.XOR, (_truth(x).node, fill(True, dt.bool_, x.shape))))
def logical_and(a: Array | Scalar, b: Array | Scalar, /) -> Array: return bitwise_and(_truth(a), _truth(b))
def logical_or(a: Array | Scalar, b: Array | Scalar, /) -> Array: return bitwise_or(_truth(a), _truth(b))
def logical_xor(a: Array | Scalar, b: Array | Scalar, /) -> Array: return bitwise_xor(_truth(a), _truth(b))
def bitwise_and(a: Array | Scalar, b: Array | Scalar, /) -> Array: return _two(Op.AND, a, b)
def bitwise_or(a: Array | Scalar, b: Array | Scalar, /) -> Array: return _two(Op.OR, a, b)
def bitwise_xor(a: Array | Scalar, b: Array | Scalar, /) -> Array: return _two(Op.XOR, a, b)
def bitwise_left_shift(a: Array | Scalar, b: Array | Scalar, /) -> Array: return _two(Op.SHL, a, b)
def bitwise_right_shift(a: Array | Scalar, b: Array | Scalar, /) -> Array: return _two(Op.SHR, a, b)


def bitwise_invert(x: Array, /) -> Array:
    if x.dtype.kind == "bool":
        return logical_not(x)
    return bitwise_xor(x, -1 if x.dtype.kind == "int" else x.dtype.max)


def where(c: Array, a: Array | Scalar, b: Array | Scalar, /) -> Array:
    """a where c, else b."""
    if not isinstance(a, Array) and not isinstance(b, Array):
        a = asarray(a)
    x, y = operands(a, b)
    shape = broadcast_shapes(c.shape, x.shape)
    return Array(make(Op.WHERE, (broadcast(_truth(c), shape).node, broadcast(x, shape).node, broadcast(y, shape).node)))


# ---------------------------------------------------------------------------------------------------------------------
# Movement


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
    for axis, n in enumerate(repetitions):
        x = concat([x] * n, axis=axis) if n > 1 else x
    return x


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


# ---------------------------------------------------------------------------------------------------------------------
# Reductions


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


# ---------------------------------------------------------------------------------------------------------------------
# Products


def matmul(a: Array, b: Array, /, *, dtype: DType | None = None) -> Array:
    """Matrix product over the last two axes, the others broadcast. float16, bfloat16 and fp8 accumulate in float32, small
    integers in int32; the result has the operands' type, or `dtype`."""
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
    a, b = a.astype(common), b.astype(common)
    if math.prod(b.shape[:-2]) == 1:  # one matrix on the right: all rows of the left are one tall matrix
        batch = a.shape[:-2] if a.ndim >= b.ndim else broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left, right, shape = reshape(a, (1, math.prod(a.shape[:-1]), k)), reshape(b, (1, k, n)), (*batch, m, n)
    else:
        batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left = reshape(broadcast(a, (*batch, m, k)), (math.prod(batch), m, k))
        right = reshape(broadcast(b, (*batch, k, n)), (math.prod(batch), k, n))
        shape = (*batch, m, n)
    return reshape(Array(make(Op.CONTRACT, (left.node, right.node), acc)), shape).astype(out_type)


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


# ---------------------------------------------------------------------------------------------------------------------
# Types and random numbers


def astype(x: Array, dtype: DType, /, *, copy: builtins.bool = True) -> Array: return x.astype(dtype, copy=copy)
def result_type(*xs: Array | DType) -> DType:
    types = [x.dtype if isinstance(x, Array) else x for x in xs]
    out = types[0]
    for d in types[1:]:
        out = dt.promote(out, d)
    return out


def bitcast(x: Array, dtype: DType, /) -> Array:
    """The bits of x as another type of the same width."""
    return Array(make(Op.BITCAST, (x.node,), dtype))


def random_bits(shape: int | Sequence[int], *, seed: int, stream: int = 0) -> Array:
    """uint32 from a counter: Threefry 2x32, 20 rounds (Salmon et al., SC 2011). The same on every device."""
    shape = _shape(shape)
    count = math.prod(shape)
    if count >= 1 << 32:
        raise Unsupported("one random stream gives at most 2^32 numbers", remedy="use several streams")
    keys = [seed & 0xFFFFFFFF, (seed >> 32 ^ stream * 0x9E3779B9) & 0xFFFFFFFF]
    keys.append(keys[0] ^ keys[1] ^ 0x1BD11BDA)
    half = (count + 1) // 2
    x0 = add(arange(half, dtype=dt.uint32), keys[0])
    x1 = full(half, keys[1], dtype=dt.uint32)
    for block in range(5):
        for r in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            x0 = x0 + x1
            x1 = bitwise_or(bitwise_left_shift(x1, r), bitwise_right_shift(x1, 32 - r)) ^ x0
        x0 = x0 + keys[(block + 1) % 3]
        x1 = x1 + (keys[(block + 2) % 3] + block + 1 & 0xFFFFFFFF)
    return reshape(concat([x0, x1])[:count], shape)


def random_uniform(shape: int | Sequence[int], *, seed: int, stream: int = 0) -> Array:
    """float32 in [0, 1), multiples of 2^-24."""
    return bitwise_right_shift(random_bits(shape, seed=seed, stream=stream), 8).astype(dt.float32) * 2.0**-24


def random_normal(shape: int | Sequence[int], *, seed: int, stream: int = 0) -> Array:
    """float32 of the standard normal distribution (Box-Muller)."""
    u = 1.0 - random_uniform(shape, seed=seed, stream=2 * stream)
    v = random_uniform(shape, seed=seed, stream=2 * stream + 1)
    return sqrt(log(u) * -2.0) * cos(v * (2 * math.pi))


__all__ = sorted(name for name, value in list(globals().items()) if not name.startswith("_") and (
    getattr(value, "__module__", "") == __name__ or name in ("e", "inf", "nan", "pi", "newaxis")))
