"""The lazy Array, named after the Python array API standard (2024.12).

Every operation builds a node; nothing is computed until a value is asked for (numpy, item, print, DLPack, realize). Work is
submitted asynchronously and waited for where the host reads.

    zero copy    asarray(ndarray) reads the array's own memory where it is C-contiguous, and numpy() and DLPack views read
                 devrt's. Do not write to memory that an unfinished expression still reads.
    types        Python scalars take the array's type; int / int is float32; int64 and float32 are the defaults
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from devrt import registry
from devrt.compiler import dtypes as dt
from devrt.compiler.composite import expand, fill
from devrt.compiler.dtypes import DType
from devrt.compiler.ops import Node, Op, Shape, make
from devrt.device import Device, InvalidArgument, Unsupported
from devrt.scheduler import run
from devrt.scheduler.storage import Storage, buffer_node
from devrt.staging import shared, write

if TYPE_CHECKING:
    import numpy as np

Scalar = builtins.bool | int | float
default_float, default_int = dt.float32, dt.int64


class Array:
    """A lazily computed array. Immutable except for item assignment, which rebinds it to a new expression."""

    __slots__ = ("__weakref__", "node")
    __array_priority__ = 1000

    def __init__(self, node: Node) -> None:
        self.node = node

    # ----- what it is

    @property
    def shape(self) -> Shape:
        return self.node.shape

    @property
    def dtype(self) -> DType:
        return self.node.dtype

    @property
    def ndim(self) -> int:
        return len(self.node.shape)

    @property
    def size(self) -> int:
        return self.node.size

    @property
    def nbytes(self) -> int:
        """Bytes its elements take in memory."""
        return self.dtype.nbytes(self.size)

    @property
    def device(self) -> str:
        """The URI of the device it is or will be computed on."""
        return run.device_of([self.node]).uri

    @property
    def T(self) -> Array:
        if self.ndim != 2:
            raise InvalidArgument(f"T needs two axes, not shape {list(self.shape)}", remedy="use mT or permute_dims")
        return self.mT

    @property
    def mT(self) -> Array:
        """The last two axes swapped."""
        if self.ndim < 2:
            raise InvalidArgument(f"mT needs two axes, not shape {list(self.shape)}")
        axes = (*range(self.ndim - 2), self.ndim - 1, self.ndim - 2)
        return Array(make(Op.PERMUTE, (self.node,), axes))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a zero-dimensional array has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self)))

    # ----- values

    def realize(self) -> Array:
        """Compute it (asynchronously) and keep the result. Returns itself."""
        if self.node.op is not Op.BUFFER:
            realize(self)
        return self

    def wait(self) -> Array:
        """Compute it and block until that is done."""
        run.wait(self.storage)
        return self

    @property
    def storage(self) -> Storage:
        """The memory behind a realised array."""
        if self.node.op is not Op.BUFFER:
            self.realize()
        storage: Storage = self.node.arg
        return storage

    def _raw(self) -> np.ndarray[Any, Any]:
        """Its elements as stored, one-dimensional, not copied."""
        from devrt import dlpack
        from devrt.compiler import convert
        view = dlpack.memory(self.wait().storage, convert.storage_numpy(self.dtype))
        view.flags.writeable = False
        return view

    def numpy(self) -> np.ndarray[Any, Any]:
        """Its values as a read-only NumPy array: devrt's own memory for the types NumPy has; bfloat16 and fp8 are widened
        to float32, int4 to int8, exactly."""
        from devrt.compiler import convert
        raw = self._raw()
        if self.dtype is dt.int4 or self.dtype in convert.BITS_ONLY:
            return convert.decode(raw, self.dtype, self.size).reshape(self.shape)
        return raw.reshape(self.shape)

    def item(self) -> Scalar:
        """The value of a one-element array as a Python number."""
        if self.size != 1:
            raise InvalidArgument(f"item() needs one element, not shape {list(self.shape)}")
        value: Scalar = self.numpy().reshape(-1)[0].item()
        return value

    def tolist(self) -> Any:
        return self.numpy().tolist()

    def __array__(self, dtype: Any = None, copy: builtins.bool | None = None) -> np.ndarray[Any, Any]:
        import numpy as np
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __bool__(self) -> builtins.bool: return builtins.bool(self.item())
    def __int__(self) -> int: return int(self.item())
    def __float__(self) -> float: return float(self.item())
    def __index__(self) -> int:
        if not self.dtype.is_int:
            raise TypeError("only integer arrays are indexes")
        return int(self.item())

    def __repr__(self) -> str:
        if self.size > 1000:
            return f"Array({self.dtype}{list(self.shape)}, {'in memory' if self.node.op is Op.BUFFER else 'lazy'})"
        return f"Array({self.numpy()!s}, {self.dtype})"

    __hash__ = None  # type: ignore[assignment]

    # ----- other places

    def to_device(self, device: str | Device, /, *, stream: None = None) -> Array:
        """The array on another device, by URI."""
        target = registry.open(device) if isinstance(device, str) else device
        if target.uri == self.device:
            return self
        return Array(run.to_device(self.realize().node, target))

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, *, stream: None = None, max_version: tuple[int, int] | None = None,
                   dl_device: tuple[int, int] | None = None, copy: builtins.bool | None = None) -> Any:
        """A DLPack capsule of devrt's own memory, read-only; see dlpack.export."""
        from devrt import dlpack
        if dl_device is not None and tuple(dl_device) != (1, 0):
            raise BufferError(f"devrt exports host memory (1, 0), not {dl_device}")
        return dlpack.export(self.wait().storage, max_version is not None and max_version[0] >= 1, copy)

    # ----- operators

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        import devrt
        return devrt

    def __neg__(self) -> Array: return _call("negative", self)
    def __pos__(self) -> Array: return self
    def __abs__(self) -> Array: return _call("abs", self)
    def __invert__(self) -> Array: return _call("bitwise_invert", self)

    def __add__(self, other: Array | Scalar) -> Array: return _binary("add", self, other)
    def __radd__(self, other: Array | Scalar) -> Array: return _binary("add", other, self)
    def __sub__(self, other: Array | Scalar) -> Array: return _binary("subtract", self, other)
    def __rsub__(self, other: Array | Scalar) -> Array: return _binary("subtract", other, self)
    def __mul__(self, other: Array | Scalar) -> Array: return _binary("multiply", self, other)
    def __rmul__(self, other: Array | Scalar) -> Array: return _binary("multiply", other, self)
    def __truediv__(self, other: Array | Scalar) -> Array: return _binary("divide", self, other)
    def __rtruediv__(self, other: Array | Scalar) -> Array: return _binary("divide", other, self)
    def __floordiv__(self, other: Array | Scalar) -> Array: return _binary("floor_divide", self, other)
    def __rfloordiv__(self, other: Array | Scalar) -> Array: return _binary("floor_divide", other, self)
    def __mod__(self, other: Array | Scalar) -> Array: return _binary("remainder", self, other)
    def __rmod__(self, other: Array | Scalar) -> Array: return _binary("remainder", other, self)
    def __pow__(self, other: Array | Scalar) -> Array: return _binary("pow", self, other)
    def __rpow__(self, other: Array | Scalar) -> Array: return _binary("pow", other, self)
    def __and__(self, other: Array | Scalar) -> Array: return _binary("bitwise_and", self, other)
    def __rand__(self, other: Array | Scalar) -> Array: return _binary("bitwise_and", other, self)
    def __or__(self, other: Array | Scalar) -> Array: return _binary("bitwise_or", self, other)
    def __ror__(self, other: Array | Scalar) -> Array: return _binary("bitwise_or", other, self)
    def __xor__(self, other: Array | Scalar) -> Array: return _binary("bitwise_xor", self, other)
    def __rxor__(self, other: Array | Scalar) -> Array: return _binary("bitwise_xor", other, self)
    def __lshift__(self, other: Array | Scalar) -> Array: return _binary("bitwise_left_shift", self, other)
    def __rlshift__(self, other: Array | Scalar) -> Array: return _binary("bitwise_left_shift", other, self)
    def __rshift__(self, other: Array | Scalar) -> Array: return _binary("bitwise_right_shift", self, other)
    def __rrshift__(self, other: Array | Scalar) -> Array: return _binary("bitwise_right_shift", other, self)
    def __matmul__(self, other: Array | Scalar) -> Array: return _binary("matmul", self, other)
    def __rmatmul__(self, other: Array | Scalar) -> Array: return _binary("matmul", other, self)
    def __lt__(self, other: Array | Scalar) -> Array: return _binary("less", self, other)
    def __le__(self, other: Array | Scalar) -> Array: return _binary("less_equal", self, other)
    def __gt__(self, other: Array | Scalar) -> Array: return _binary("greater", self, other)
    def __ge__(self, other: Array | Scalar) -> Array: return _binary("greater_equal", self, other)
    def __eq__(self, other: object) -> Array: return _binary("equal", self, other)  # type: ignore[override]
    def __ne__(self, other: object) -> Array: return _binary("not_equal", self, other)  # type: ignore[override]

    def astype(self, dtype: DType, /, *, copy: builtins.bool = True) -> Array:
        """The values in another type: floats to integers truncate and saturate, NaN becomes 0."""
        return self if dtype is self.dtype else Array(make(Op.CAST, (self.node,), dtype))

    def reshape(self, *shape: int | Sequence[int]) -> Array:
        return _call("reshape", self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)

    def sum(self, axis: int | Sequence[int] | None = None, *, dtype: DType | None = None,
            keepdims: builtins.bool = False) -> Array:
        return _call("sum", self, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis: int | Sequence[int] | None = None, *, keepdims: builtins.bool = False) -> Array:
        return _call("mean", self, axis=axis, keepdims=keepdims)

    def max(self, axis: int | Sequence[int] | None = None, *, keepdims: builtins.bool = False) -> Array:
        return _call("max", self, axis=axis, keepdims=keepdims)

    def min(self, axis: int | Sequence[int] | None = None, *, keepdims: builtins.bool = False) -> Array:
        return _call("min", self, axis=axis, keepdims=keepdims)

    # ----- indexing

    def __getitem__(self, key: Any) -> Array:
        """Integers, slices, None, Ellipsis, and one integer array on the first axis it meets. Bounds are checked for
        integers; elements of an integer array are clipped."""
        view, gather = _parse_key(self.shape, key)
        node = _apply_view(self.node, view)
        if gather is None:
            return Array(make(Op.RESHAPE, (node,), view.shape) if node.shape != view.shape else node)
        axis, index = gather
        node = make(Op.RESHAPE, (node,), view.shape)
        order = (axis, *(a for a in range(len(view.shape)) if a != axis))
        node = make(Op.GATHER, (make(Op.PERMUTE, (node,), order), _wrap_negative(index, view.shape[axis]).node))
        rank = index.ndim
        back = [*range(rank, rank + axis), *range(rank), *range(rank + axis, len(node.shape))]
        return Array(make(Op.PERMUTE, (node,), tuple(back)))

    def __setitem__(self, key: Any, value: Array | Scalar) -> None:
        """Rebind to an array that equals `value` at `key`. Steps of slices must be 1."""
        view, gather = _parse_key(self.shape, key)
        if gather is not None or any(step != 1 for _, _, step in view.slices):
            raise Unsupported("item assignment takes integers and slices of step 1", remedy="use where()")
        v = value if isinstance(value, Array) else Array(fill(value, self.dtype, ()))
        v = v.astype(self.dtype)
        block = tuple(count for _, count, _ in view.slices)
        spread = make(Op.RESHAPE, (broadcast(v, view.shape).node,), block)
        pads = tuple((start, n - start - count) for n, (start, count, _) in zip(self.shape, view.slices, strict=True))
        if any(count == 0 for count in block):
            return
        inside = make(Op.PAD, (fill(True, dt.bool_, block),), (pads, False))
        zero = 0.0 if self.dtype.is_float else False if self.dtype.kind == "bool" else 0
        padded = make(Op.PAD, (spread,), (pads, zero))
        self.node = make(Op.WHERE, (inside, padded, self.node))


def _call(name: str, *arguments: Any, **options: Any) -> Array:
    """devrt.functions.<name>, which is written in terms of this module."""
    from devrt import functions
    result: Array = getattr(functions, name)(*arguments, **options)
    return result


def _binary(name: str, left: object, right: object) -> Array:
    """The array API function `name`; NotImplemented for operands that are no arrays, as Python wants."""
    sides = []
    for x in (left, right):
        if not isinstance(x, (Array, builtins.bool, int, float)):
            if not hasattr(x, "__array__") and not hasattr(x, "__dlpack__"):
                return NotImplemented  # type: ignore[no-any-return]
            x = asarray(x)
        sides.append(x)
    return _call(name, *sides)


def realize(*arrays: Array) -> None:
    """Compute several arrays in one schedule (asynchronously), sharing what they have in common."""
    for a, node in zip(arrays, run.realize([a.node for a in arrays]), strict=True):
        a.node = node


# ---------------------------------------------------------------------------------------------------------------------
# Construction


def asarray(obj: Any, /, *, dtype: DType | None = None, device: str | None = None,
            copy: builtins.bool | None = None) -> Array:
    """`obj` (an Array, ndarray, DLPack exporter, nested sequence or scalar) as an Array.

    copy: None copies only where it must, True always, False never (InvalidArgument where it must). A C-contiguous
    ndarray of a type devrt has is read in place; others (strided, byte-swapped) are copied.
    """
    import numpy as np

    from devrt.compiler import convert
    if isinstance(obj, Array):
        out = obj if dtype is None else obj.astype(dtype)
        out = out if device is None else out.to_device(device)
        return Array(make(Op.COPY, (out.node,), out.device)) if copy else out
    if not isinstance(obj, np.ndarray) and hasattr(obj, "__dlpack__"):
        out = from_dlpack(obj, copy=copy)
        return out if dtype is None else out.astype(dtype)
    if isinstance(obj, (builtins.bool, int, float)) and not isinstance(obj, np.generic):
        d = dtype or (dt.bool_ if isinstance(obj, builtins.bool) else default_int if isinstance(obj, int)
                      else default_float)
        out = Array(fill(obj, d, ()))
        return out if device is None else out.to_device(device)
    try:
        array = np.asarray(obj)
    except ValueError as e:
        raise InvalidArgument("this is no array", evidence=str(e),
                              remedy="nested sequences must be of equal lengths") from e
    if not isinstance(obj, (np.ndarray, np.generic)) and array.dtype == np.float64 and dtype is None:
        array = array.astype(np.float32)
    source = _dtype_of(array)
    if source is None:
        raise InvalidArgument(f"no devrt type for NumPy's {array.dtype}", remedy="convert it to a number type first")
    raw = array.view(convert.storage_numpy(source)) if source in convert.BITS_ONLY else array
    out = Array(_wrapped(raw, source, device, copy if isinstance(obj, np.ndarray) else None))
    return out if dtype is None else out.astype(dtype)


def _dtype_of(array: np.ndarray[Any, Any]) -> DType | None:
    names = {"float8_e4m3fn": dt.float8_e4m3, "float8_e5m2": dt.float8_e5m2, "bfloat16": dt.bfloat16}
    if array.dtype.name in names:
        return names[array.dtype.name]
    found = dt._BY_NAME.get(array.dtype.name)
    return found if found is not None and found is not dt.int4 else None


def _wrapped(raw: np.ndarray[Any, Any], dtype: DType, device: str | None, copy: builtins.bool | None) -> Node:
    """A BUFFER node on an ndarray's own memory, or on a copy where that is not dense, aligned and in native order, or where
    the device does not share the host's memory."""
    import numpy as np
    native = raw.dtype.newbyteorder("=")
    dense = raw.flags.c_contiguous and raw.flags.aligned and raw.dtype == native
    if not dense and copy is False:
        raise InvalidArgument("this array cannot be read in place",
                              evidence=f"strides {raw.strides}, dtype {raw.dtype}",
                              remedy="pass copy=None, or an aligned C-contiguous array")
    target = registry.open(device)
    here = shared(target)
    if not here and copy is False:
        raise InvalidArgument(f"{target.uri} cannot read this array in place", remedy="pass copy=None")
    held = raw if dense and not (copy and here) else np.array(raw, dtype=native, order="C", copy=True)
    if held.size == 0 or not here:
        made = Storage.alloc(held.shape, dtype, target)
        if held.size:
            write(target, made.buffer, held.reshape(-1).view(np.uint8).data)
        return buffer_node(made)
    return buffer_node(Storage(held.shape, dtype, target, target.wrap(held.ctypes.data, held.nbytes, held)))


def from_dlpack(x: Any, /, *, device: str | None = None, copy: builtins.bool | None = None) -> Array:
    """An array from any DLPack exporter in host memory, read in place where it is dense. copy as in asarray."""
    from devrt import dlpack
    return Array(_wrapped(*dlpack.receive(x), device, copy))


# ---------------------------------------------------------------------------------------------------------------------
# Broadcasting and promotion


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The common shape. Raises InvalidArgument."""
    rank = max(map(len, shapes), default=0)
    out = []
    for axis in range(rank):
        sizes = {s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0} - {1}
        if len(sizes) > 1:
            raise InvalidArgument(f"shapes {' and '.join(str(list(s)) for s in shapes)} do not broadcast")
        out.append(sizes.pop() if sizes else 1)
    return tuple(out)


def broadcast(x: Array, shape: Shape) -> Array:
    """`x` repeated to `shape`. Raises InvalidArgument."""
    if x.shape == shape:
        return x
    if len(x.shape) > len(shape):
        raise InvalidArgument(f"shape {list(x.shape)} does not broadcast to {list(shape)}")
    node = make(Op.RESHAPE, (x.node,), (1,) * (len(shape) - x.ndim) + x.shape)
    return Array(expand(node, shape))


def operands(*xs: Array | Scalar) -> list[Array]:
    """Arrays and scalars, promoted and broadcast to one type and shape; scalars take the arrays' type."""
    arrays = [x for x in xs if isinstance(x, Array)]
    if not arrays:
        raise InvalidArgument("at least one operand must be an array")
    dtype = arrays[0].dtype if not arrays[0].dtype.storage else dt.compute_type(arrays[0].dtype)
    for a in arrays[1:]:
        dtype = dt.promote(dtype, a.dtype)
    for x in xs:
        if isinstance(x, Array):
            continue
        if not isinstance(x, (builtins.bool, int, float)):
            raise InvalidArgument(f"{type(x).__name__} is no operand", remedy="use asarray()")
        if isinstance(x, float) and not dtype.is_float:
            dtype = default_float
        elif isinstance(x, int) and not isinstance(x, builtins.bool) and dtype.kind == "bool":
            dtype = default_int
    shape = broadcast_shapes(*(a.shape for a in arrays))
    return [broadcast(x.astype(dtype), shape) if isinstance(x, Array) else Array(fill(x, dtype, shape)) for x in xs]


# ---------------------------------------------------------------------------------------------------------------------
# Indexing


class _View:
    """Slices of every source axis, and the shape that results (axes dropped by integers, added by None)."""

    def __init__(self) -> None:
        self.slices: list[tuple[int, int, int]] = []
        self.result: list[int] = []

    @property
    def shape(self) -> Shape:
        return tuple(self.result)


def _parse_key(shape: Shape, key: Any) -> tuple[_View, tuple[int, Array] | None]:
    parts = list(key) if isinstance(key, tuple) else [key]
    used = sum(p is not None and not isinstance(p, EllipsisType) for p in parts)
    dots = [n for n, p in enumerate(parts) if isinstance(p, EllipsisType)]
    if len(dots) > 1 or used > len(shape):
        raise InvalidArgument(f"{used} indexes for shape {list(shape)}" if len(dots) < 2 else "only one Ellipsis")
    at = dots[0] if dots else len(parts)
    parts[at:at + 1] = [slice(None)] * (len(shape) - used)
    view, gather, axis = _View(), None, 0
    for p in parts:
        if p is None:
            view.result.append(1)
            continue
        n = shape[axis]
        axis += 1
        if isinstance(p, slice):
            start, stop, step = p.indices(n)
            count = len(range(start, stop, step))
            view.slices.append((start if count else 0, count, step))
            view.result.append(count)
        elif hasattr(p, "__index__") and not isinstance(p, Array) and not hasattr(p, "shape") or isinstance(p, (int,)):
            i = operator.index(p)
            if not -n <= i < n:
                raise InvalidArgument(f"index {i} is outside an axis of {n}")
            view.slices.append((i % n, 1, 1))
        else:
            index = asarray(p)
            if not index.dtype.is_int:
                raise Unsupported(f"indexing by {index.dtype}: shapes must not depend on data", remedy="use where()")
            if gather is not None:
                raise Unsupported("indexing by more than one array", remedy="use take() on the flattened array")
            gather = (len(view.result), index)
            view.slices.append((0, n, 1))
            view.result.append(n)
    return view, gather


def _apply_view(node: Node, view: _View) -> Node:
    if all(s == (0, n, 1) for s, n in zip(view.slices, node.shape, strict=True)):
        return node
    return make(Op.SLICE, (node,), tuple(view.slices))


def _wrap_negative(index: Array, n: int) -> Array:
    if not index.dtype.is_signed:
        return index
    wide = index.astype(dt.int64) if index.dtype.bits < 32 else index
    zero, size = operands(wide, 0)[1], operands(wide, n)[1]
    moved = make(Op.ADD, (wide.node, size.node))
    return Array(make(Op.WHERE, (make(Op.LESS, (wide.node, zero.node)), moved, wide.node)))


__all__ = ["Array", "Scalar", "asarray", "broadcast", "broadcast_shapes", "from_dlpack", "operands", "realize"]
