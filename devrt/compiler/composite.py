"""Graphs that several layers must agree on: the derived functions over nodes, softmax, and the update of rows.

The Array API builds them and the scheduler recognises them, by building them again: equal nodes are one object.
"""

from __future__ import annotations

from devrt.compiler import derived
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.ops import Node, Op, make


def constant(like: Node, value: int | float | bool) -> Node:
    """`value` in the type and shape of `like`."""
    return fill(value, like.dtype, like.shape)


def fill(value: int | float | bool, dtype: DType, shape: tuple[int, ...]) -> Node:
    value = float(value) if dtype.is_float else bool(value) if dtype.kind == "bool" else int(value)
    c = make(Op.CONST, (), (value, dtype))
    return expand(make(Op.RESHAPE, (c,), (1,) * len(shape)), shape) if shape else c


def expand(n: Node, shape: tuple[int, ...]) -> Node:
    return n if n.shape == shape else make(Op.EXPAND, (n,), shape)


class NodeMath:
    """The arithmetic that derived functions are written in, building nodes: one primitive a method."""

    def dtype(self, a: Node) -> DType: return a.dtype
    def const(self, like: Node, value: int | float | bool) -> Node: return constant(like, value)
    def add(self, a: Node, b: Node) -> Node: return make(Op.ADD, (a, b))
    def mul(self, a: Node, b: Node) -> Node: return make(Op.MUL, (a, b))
    def div(self, a: Node, b: Node) -> Node: return make(Op.DIV, (a, b))
    def fma(self, a: Node, b: Node, c: Node) -> Node: return make(Op.FMA, (a, b, c))
    def max(self, a: Node, b: Node) -> Node: return make(Op.MAX, (a, b))
    def floor(self, a: Node) -> Node: return make(Op.FLOOR, (a,))
    def sqrt(self, a: Node) -> Node: return make(Op.SQRT, (a,))
    def exp2(self, a: Node) -> Node: return make(Op.EXP2, (a,))
    def log2(self, a: Node) -> Node: return make(Op.LOG2, (a,))
    def sin(self, a: Node, quarter: int = 0) -> Node: return make(Op.SIN, (a,), quarter)
    def less(self, a: Node, b: Node) -> Node: return make(Op.LESS, (a, b))
    def equal(self, a: Node, b: Node) -> Node: return make(Op.EQUAL, (a, b))
    def where(self, c: Node, a: Node, b: Node) -> Node: return make(Op.WHERE, (c, a, b))
    def bitand(self, a: Node, b: Node) -> Node: return make(Op.AND, (a, b))
    def bitor(self, a: Node, b: Node) -> Node: return make(Op.OR, (a, b))
    def bitxor(self, a: Node, b: Node) -> Node: return make(Op.XOR, (a, b))
    def shl(self, a: Node, b: Node) -> Node: return make(Op.SHL, (a, b))
    def shr(self, a: Node, b: Node) -> Node: return make(Op.SHR, (a, b))
    def cast(self, a: Node, dtype: DType) -> Node: return a if a.dtype is dtype else make(Op.CAST, (a,), dtype)
    def bitcast(self, a: Node, dtype: DType) -> Node: return a if a.dtype is dtype else make(Op.BITCAST, (a,), dtype)


MATH = NodeMath()


def softmax(x: Node) -> Node:
    """exp(x - max) * (1 / sum) over the last axis, the row's maximum always subtracted. Narrow floats are computed in float32."""
    wide = MATH.cast(x, dt.compute_type(x.dtype))
    axis = (len(x.shape) - 1,)
    top = expand(make(Op.REDUCE, (wide,), ("max", axis)), x.shape)
    e = derived.exp(MATH, MATH.add(wide, MATH.mul(top, constant(top, -1))))
    total = make(Op.REDUCE, (e,), ("sum", axis))
    inverse = expand(MATH.div(constant(total, 1), total), x.shape)  # one division a row
    return MATH.cast(MATH.mul(e, inverse), x.dtype)


def update_rows(old: Node, new: Node, start: Node) -> Node:
    """old [n, ..] with its rows from the integer scalar `start` on replaced by new [t, ..]; start is clipped to 0..n-t."""
    n, t, d = old.shape[0], new.shape[0], start.dtype
    at = MATH.where(MATH.less(start, constant(start, 0)), constant(start, 0), start) if d.kind == "int" else start
    at = MATH.where(MATH.less(constant(at, n - t), at), constant(at, n - t), at)
    return _update_at(old, new, at)


def _update_at(old: Node, new: Node, at: Node) -> Node:
    n, t = old.shape[0], new.shape[0]
    slots = make(Op.IOTA, (), (n, dt.int64))
    first = expand(make(Op.RESHAPE, (MATH.cast(at, dt.int64),), (1,)), (n,))
    row = MATH.add(slots, MATH.mul(first, constant(first, -1)))
    fresh = MATH.bitand(MATH.less(constant(row, -1), row), MATH.less(row, constant(row, t)))
    if len(old.shape) > 1:
        fresh = expand(make(Op.RESHAPE, (fresh,), (n, *(1,) * (len(old.shape) - 1))), old.shape)
    return MATH.where(fresh, make(Op.GATHER, (new, row)), old)


def updated_rows(n: Node) -> tuple[Node, Node, Node] | None:
    """(old, new, start) where `n` is update_rows of them, its start already clipped; None where it is something else."""
    if n.op is not Op.WHERE or n.src[1].op is not Op.GATHER or n.src[1].src[1].op is not Op.ADD:
        return None
    old, (new, row) = n.src[2], n.src[1].src
    at = row.src[1]
    for op in (Op.MUL, Op.EXPAND, Op.RESHAPE):
        if at.op is op:
            at = at.src[0]
    if at.op is Op.CAST:
        at = at.src[0]
    return (old, new, at) if at.shape == () and _update_at(old, new, at) is n else None
