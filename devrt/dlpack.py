"""DLPack: arrays of other libraries read in place, and devrt's own memory handed out.

NumPy carries the memory: its capsules and views own the lifetimes in C, so they are safe on any thread and at exit, and
each deleter runs once. What NumPy has no name for (bfloat16, fp8) travels under the code of the unsigned integer of the
same width; the true code is written into the DLTensor on the way.

Read-only is said as it is: an Array never changes, so versioned capsules (DLPack 1.0) of devrt's memory carry the
read-only flag. Unversioned ones cannot carry it, so those consumers get a copy of their own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from devrt.compiler import convert
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.device import InvalidArgument, Unsupported
from devrt.staging import read, shared

if TYPE_CHECKING:
    from devrt.scheduler.storage import Storage

CPU, CUDA_HOST, ROCM_HOST = 1, 3, 11  # the kinds of memory that a host thread can read
HOST = frozenset({CPU, CUDA_HOST, ROCM_HOST})
DEVICES = {1: "cpu", 2: "cuda", 3: "cuda host", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 11: "rocm host",
           13: "cuda managed", 14: "oneapi", 15: "webgpu", 16: "hexagon", 17: "maia", 18: "trainium"}

_INT, _UINT, _FLOAT, _BFLOAT, _BOOL, _E4M3FN, _E5M2 = 0, 1, 2, 4, 6, 10, 12
_KINDS = {"bool": _BOOL, "int": _INT, "uint": _UINT, "float": _FLOAT}
_OWN_CODE = {dt.bfloat16: _BFLOAT, dt.float8_e4m3: _E4M3FN, dt.float8_e5m2: _E5M2}
_BY_CODE = {(_OWN_CODE.get(d, _KINDS[d.kind]), d.bits): d for d in dt.ALL if d is not dt.int4}

_VERSIONED_NUMPY = np.lib.NumpyVersion(np.__version__) >= "2.1.0"


# ---------------------------------------------------------------------------------------------------------------------
# dlpack.h (v1.1)


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("dtype", _DataType), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64))


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
                ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", _Tensor))


_FORMS: tuple[tuple[bytes, type[_Managed] | type[_ManagedVersioned]], ...] = (
    (b"dltensor_versioned", _ManagedVersioned), (b"dltensor", _Managed))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi))


def _tensor_in(capsule: object) -> _Tensor:
    """The DLTensor of a capsule that nobody has taken yet. Raises InvalidArgument."""
    for name, form in _FORMS:
        if _is_valid(capsule, name):
            tensor: _Tensor = form.from_address(_pointer(capsule, name)).tensor
            return tensor
    raise InvalidArgument("this is no DLPack capsule, or it was taken before", evidence=repr(capsule),
                          remedy="call __dlpack__() anew for every consumer")


# ---------------------------------------------------------------------------------------------------------------------
# Out


def export(storage: Storage, versioned: bool, copy: bool | None) -> Any:
    """A DLPack capsule of the memory behind `storage`, which it keeps alive. The contents must be settled.

    copy: True always, None where an unversioned consumer could write, False never (BufferError where it must). Raises
    Unsupported for int4, and for fp8 where the consumer asks for no version.
    """
    dtype = storage.dtype
    if dtype is dt.int4:
        raise Unsupported("int4 is packed two elements a byte, which DLPack consumers do not take",
                          remedy="export astype(int8)")
    if dtype.bits == 8 and dtype.is_float and not versioned:
        raise Unsupported(f"unversioned DLPack has no {dtype}",
                          remedy="use a consumer of DLPack 1.0, or export astype(float32)")
    if not versioned and copy is False:
        raise BufferError("unversioned DLPack cannot say that devrt's memory is read-only; use DLPack 1.0 or copy=None")
    here = shared(storage.device)
    if not here and copy is False:
        raise BufferError(f"this array lies in memory of {storage.device.uri}, which only a copy shows; use copy=None")
    copied = copy is True or not versioned or not _VERSIONED_NUMPY or not here
    view = memory(storage, convert.storage_numpy(dtype)).reshape(storage.shape)
    view = view.copy() if copied and here else view
    view.flags.writeable = copied
    capsule = view.__dlpack__(max_version=(1, 0)) if versioned and _VERSIONED_NUMPY else view.__dlpack__()
    tensor = _tensor_in(capsule)
    tensor.dtype.code = _OWN_CODE.get(dtype, tensor.dtype.code)
    if copied and versioned and _VERSIONED_NUMPY:
        _ManagedVersioned.from_address(_pointer(capsule, b"dltensor_versioned")).flags |= 2  # IS_COPIED
    return capsule


def memory(storage: Storage, element: np.dtype[Any]) -> NDArray[Any]:
    """The host memory of a storage as a one-dimensional array, which keeps the storage alive; a copy where the host does not
    see the device's memory. The contents must be settled."""
    nbytes = storage.nbytes
    if not shared(storage.device):
        copied = np.empty(nbytes, np.uint8)
        read(storage.device, storage.buffer, copied.data)
        return copied.view(element)
    storage.shared = True
    held = (ctypes.c_char * max(nbytes, 1)).from_address(storage.buffer.address)
    held._storage = storage  # type: ignore[attr-defined]
    whole: NDArray[Any] = np.frombuffer(memoryview(held), np.uint8)[:nbytes].view(element)
    return whole


# ---------------------------------------------------------------------------------------------------------------------
# In


class _Retyped:
    """Hands one capsule to NumPy."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]: return (CPU, 0)
    def __dlpack__(self, **_: object) -> object: return self._capsule


def receive(x: Any) -> tuple[NDArray[Any], DType]:
    """(array, dtype): the memory of a DLPack exporter as stored, not copied, perhaps strided; it keeps the exporter's
    memory until the array is gone. Raises InvalidArgument or Unsupported.
    """
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        raise InvalidArgument(f"{type(x).__name__} does not export DLPack", remedy="use asarray()")
    kind, number = map(int, _ask(x, x.__dlpack_device__))
    if kind not in HOST:
        raise Unsupported(f"this array lies on {DEVICES.get(kind, 'an unknown device')}, not in host memory",
                          evidence=f"DLPack device ({kind}, {number})", remedy="move it to the host first")
    capsule = _capsule(x)
    tensor = _tensor_in(capsule)
    code, bits, lanes = tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes
    dtype = _BY_CODE.get((code, bits)) if lanes == 1 else None
    if dtype is None:
        raise Unsupported("no devrt type for this DLPack tensor",
                          evidence=f"type code {code}, {bits} bits, {lanes} lanes",
                          remedy="convert it to a number type first")
    if tensor.ndim > 32:
        raise Unsupported(f"an array of {tensor.ndim} axes", remedy="reshape it to at most 32")
    if dtype in _OWN_CODE:
        tensor.dtype.code = _UINT  # the capsule is ours; only the reader that follows looks at it
    try:
        raw: NDArray[Any] = np.from_dlpack(_Retyped(capsule))  # type: ignore[arg-type]
    except (BufferError, RuntimeError, ValueError, TypeError) as e:
        raise InvalidArgument("this DLPack tensor cannot be read", evidence=str(e)) from e
    return raw, dtype


def _capsule(x: Any) -> object:
    """The exporter's capsule, versioned where both sides can."""
    try:
        return _ask(x, x.__dlpack__, max_version=(1, 1)) if _VERSIONED_NUMPY else _ask(x, x.__dlpack__)
    except TypeError:  # an exporter from before DLPack 1.0
        return _ask(x, x.__dlpack__)


def _ask(x: object, method: Callable[..., Any], **arguments: object) -> Any:
    try:
        return method(**arguments)
    except (BufferError, RuntimeError, ValueError) as e:
        raise InvalidArgument(f"{type(x).__name__} refuses to export its memory", evidence=str(e)) from e


__all__ = ["export", "memory", "receive"]
