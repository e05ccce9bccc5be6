"""Storage: the array behind a BUFFER node, and which nodes already have one."""

from __future__ import annotations

import math
import weakref

from devrt.compiler.dtypes import DType
from devrt.compiler.ops import Node, Op, Shape, make
from devrt.device import Buffer, Device, InvalidArgument


class Storage:
    """A dense row-major array of `shape` and `dtype` on `device`. Its memory goes back with the buffer's last reference.

    `ready` is the value of the compute queue's timeline at which its contents are written (0: now). `shared` says that
    somebody outside looks at the memory, so that nothing else may be written there.
    """

    __slots__ = ("__weakref__", "_buffer", "device", "dtype", "ready", "shape", "shared")

    def __init__(self, shape: Shape, dtype: DType, device: Device, buffer: Buffer) -> None:
        need = dtype.nbytes(math.prod(shape))
        if buffer.nbytes < need:
            raise InvalidArgument(f"a buffer of {buffer.nbytes} bytes is too small for {dtype}{list(shape)}",
                                  evidence=f"{need} bytes needed")
        self.shape, self.dtype, self.device = shape, dtype, device
        self._buffer: Buffer | None = buffer
        self.ready = 0
        self.shared = False

    @classmethod
    def alloc(cls, shape: Shape, dtype: DType, device: Device) -> Storage:
        """Uninitialised memory. Raises OutOfMemory."""
        return cls(shape, dtype, device, device.alloc(max(dtype.nbytes(math.prod(shape)), 1)))

    @property
    def buffer(self) -> Buffer:
        """Its memory. Raises InvalidArgument where that was given away."""
        self.check()
        assert self._buffer is not None
        return self._buffer

    def check(self) -> None:
        """Raises InvalidArgument where its memory was given away."""
        if self._buffer is None:
            raise InvalidArgument(f"this {self.dtype}{list(self.shape)} was donated to a captured function",
                                  evidence="its memory holds a result of that call now",
                                  remedy="use the result, or leave the argument out of capture(donate=...)")

    @property
    def donated(self) -> bool:
        return self._buffer is None

    def donate(self) -> None:
        """Give the memory away: whoever holds the buffer keeps it, this array is not read any more."""
        self._buffer = None

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(math.prod(self.shape))


def buffer_node(s: Storage) -> Node:
    """The BUFFER node that reads `s`."""
    return make(Op.BUFFER, (), s)


_computed: weakref.WeakKeyDictionary[Node, Node] = weakref.WeakKeyDictionary()


def remember(node: Node, storage: Storage) -> Node:
    """Note that `storage` holds the value of `node`: later graphs read it instead of computing it again."""
    b = buffer_node(storage)
    _computed[node] = b
    return b


def known(node: Node) -> Node | None:
    """The BUFFER node that holds the value of `node`, if it was computed on a device that is still open and is still there."""
    b = _computed.get(node)
    return b if b is not None and not b.arg.device.closed and not b.arg.donated else None
