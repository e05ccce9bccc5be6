"""Comparison, logic, bits, and where."""

from __future__ import annotations

from devrt.array import Array, Scalar, asarray, broadcast, broadcast_shapes, operands
from devrt.compiler import dtypes as dt
from devrt.compiler.composite import fill
from devrt.compiler.ops import Op, make
from devrt.functions.basic import _two


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
