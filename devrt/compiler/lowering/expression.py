"""Expressions of the kernel IR as LIR, at a given point of the loop nest.

A float16, bfloat16 or fp8 value lives in a float32 register that holds it exactly: arithmetic is done in float32 and
rounded to the type after every op. A int4 value lives in int8.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from devrt.compiler import dtypes as dt
from devrt.compiler import transcendental
from devrt.compiler.dtypes import DType, compute_type
from devrt.compiler.index import Axis, Index, Quotient, Remainder
from devrt.compiler.kernel import Ex, Kernel, Name
from devrt.compiler.lir import Builder, Param, Reg
from devrt.compiler.ops import Op
from devrt.device import CompileError


class Scope:
    """Evaluates expressions where `axes` gives the position and `values` what earlier stages computed.

    `mask`, if any, says in which lanes the point exists: loads outside touch nothing. `stream` says that lanes and loops
    run along the arrays, so that loads may fetch ahead. Registers are remembered, so a
    Scope must not outlive the block it was made in.
    """

    def __init__(self, b: Builder, params: list[Param], axes: dict[Axis, Reg], values: dict[Name, Reg],
                 mask: Reg | None = None, stream: bool = False) -> None:
        self.b, self.params, self.axes, self.values, self.mask = b, params, axes, values, mask
        self.stream = stream
        self.known: dict[int, Reg] = {}

    def at(self, axes: dict[Axis, Reg], mask: Reg | None = None) -> Scope:
        """The same scope at more axes, in an inner block."""
        return Scope(self.b, self.params, self.axes | axes, self.values, mask if mask is not None else self.mask,
                     self.stream)

    # ----- indexes

    def index(self, i: Index) -> Reg:
        b = self.b
        total = b.idx(i.constant)
        for atom, coefficient in i.terms:
            if isinstance(atom, Axis):
                r = self.axes[atom]
            elif isinstance(atom, Quotient):
                r = b.div(self.index(atom.x), b.idx(atom.by))
            elif isinstance(atom, Remainder):
                r = b.rem(self.index(atom.x), b.idx(atom.by))
            else:
                v = self.value(atom.value)
                if atom.value.dtype.kind == "uint" and atom.value.dtype.bits == 64:
                    v = b.min(v, b.const(v.dtype, atom.size - 1))
                r = b.cast(v, b.index)
                r = b.max(b.min(r, b.idx(atom.size - 1)), b.idx(0))
            total = b.add(total, b.mul(r, b.idx(coefficient)))
        return total

    # ----- values

    def value(self, e: Ex) -> Reg:
        """The register that holds `e`, of type compute_type(e.dtype)."""
        r = self.known.get(id(e))
        if r is None:
            r = self.known[id(e)] = self._evaluate(e)
        return r

    def _evaluate(self, e: Ex) -> Reg:
        b = self.b
        if e.op == "const":
            return b.const(compute_type(e.dtype), _rounded(e.arg, e.dtype))
        if e.op == "load":
            return self._load(e)
        if e.op == "index":
            return b.cast(self.index(e.arg), e.dtype)
        if e.op == "inside":
            i, lo, hi = e.arg
            r = self.index(i)
            tests = [b.le(b.idx(lo), r)] if i.lo < lo else []
            tests += [b.lt(r, b.idx(hi))] if i.hi >= hi else []
            return b.const(dt.bool_, True) if not tests else tests[0] if len(tests) == 1 else b.and_(*tests)
        if e.op == "value":
            return self.values[e.arg]
        assert isinstance(e.op, Op)
        args = [self.value(a) for a in e.args]
        return _OPS[e.op](self, e, *args)

    def _load(self, e: Ex) -> Reg:
        b = self.b
        slot, index = e.arg
        mask = self.mask
        if e.args:
            own = self.value(e.args[0])
            mask = own if mask is None else b.and_(mask, own)
        param = self.params[slot]
        if e.dtype is not dt.int4:
            return b.cast(b.load(param, self.index(index), mask, self.stream), compute_type(e.dtype))
        i = self.index(index)
        byte = b.cast(b.load(param, b.div(i, b.idx(2)), mask), dt.int32)
        left = b.sub(b.const(dt.int32, 28), b.cast(b.mul(b.rem(i, b.idx(2)), b.idx(4)), dt.int32))
        return b.cast(b.shr(b.shl(byte, left), b.const(dt.int32, 28)), dt.int8)


def _rounded(value: int | float | bool, d: DType) -> int | float | bool:
    """A constant as its type holds it."""
    if not d.is_float or d is dt.float64 or math.isnan(value) or math.isinf(value):
        return value
    import numpy as np

    from devrt.compiler import convert
    return float(convert.decode(convert.encode(np.array([value], np.float64), d), d, 1)[0])


def round_to(b: Builder, r: Reg, d: DType) -> Reg:
    """A float32 register rounded to what `d` holds; other types as they are."""
    if d.is_float and d not in (dt.float32, dt.float64):
        return b.cast(b.cast(r, d), dt.float32)
    return r


def storable(b: Builder, e: Ex, r: Reg) -> Reg:
    """What is written to memory for `e`: NaNs that arithmetic made get the one canonical pattern, then the type."""
    if e.dtype.is_float and makes_nan(e):
        r = b.canon(r)
    return r if e.dtype is dt.int4 else b.cast(r, e.dtype)


def makes_nan(e: Ex) -> bool:
    """Whether a NaN of `e` could come from arithmetic, so that its bits would depend on the device."""
    if e.op is Op.WHERE:
        return makes_nan(e.args[1]) or makes_nan(e.args[2])
    return e.op not in ("load", "const") or e.op == "load" and e.dtype is not compute_type(e.dtype) and e.dtype.bits < 16


Rule = Callable[..., Reg]


def _simple(name: str) -> Rule:
    return lambda s, e, *a: round_to(s.b, getattr(s.b, name)(*a), e.dtype)


def _add(s: Scope, e: Ex, x: Reg, y: Reg) -> Reg:
    """a + b * -1 is a - b, with the same bits."""
    for one, other in ((0, 1), (1, 0)):
        m = e.args[other]
        if m.op is Op.MUL and m.dtype.kind != "uint" and _is_const(m.args[1], -1):
            return round_to(s.b, s.b.sub(s.value(e.args[one]), s.value(m.args[0])), e.dtype)
    return round_to(s.b, s.b.add(x, y), e.dtype)


def _mul(s: Scope, e: Ex, x: Reg, y: Reg) -> Reg:
    if _is_const(e.args[1], -1) and e.dtype.kind in ("float", "int"):
        return s.b.neg(x)
    return round_to(s.b, s.b.mul(x, y), e.dtype)


def _is_const(e: Ex, value: int) -> bool:
    return e.op == "const" and e.arg == value


def _cast(s: Scope, e: Ex, x: Reg) -> Reg:
    src, dst = e.args[0].dtype, e.dtype
    if dst is dt.int4:  # saturates, from integers too
        x = s.b.cast(x, dt.int32) if src.is_float or src.bits < 32 else x
        x = s.b.min(x, s.b.const(x.dtype, 7))
        return s.b.cast(x if x.dtype.kind == "uint" else s.b.max(x, s.b.const(x.dtype, -8)), dt.int8)
    if dst.is_float and dst not in (dt.float32, dt.float64):
        return s.b.cast(s.b.cast(x, dst), dt.float32)
    return s.b.cast(x, dst)


def _bitcast(s: Scope, e: Ex, x: Reg) -> Reg:
    src = e.args[0]
    if src.dtype.is_float and makes_nan(src):
        x = s.b.canon(x)
    raw = s.b.bitcast(s.b.cast(x, src.dtype), e.dtype)
    return s.b.cast(raw, compute_type(e.dtype))


def _divide(s: Scope, e: Ex, x: Reg, y: Reg) -> Reg:
    return round_to(s.b, s.b.div(x, y), e.dtype)


_OPS: dict[Op, Rule] = {
    Op.CAST: _cast, Op.BITCAST: _bitcast, Op.ADD: _add, Op.MUL: _mul, Op.DIV: _divide,
    Op.SQRT: _simple("sqrt"), Op.FLOOR: _simple("floor"), Op.MAX: _simple("max"),
    Op.LESS: _simple("lt"), Op.EQUAL: _simple("eq"), Op.AND: _simple("and_"), Op.OR: _simple("or_"), Op.XOR: _simple("xor"),
    Op.SHL: _simple("shl"), Op.SHR: _simple("shr"), Op.WHERE: _simple("select"), Op.FMA: _simple("fma"),
    Op.EXP2: lambda s, e, x: round_to(s.b, transcendental.exp2(s.b, x), e.dtype),
    Op.LOG2: lambda s, e, x: round_to(s.b, transcendental.log2(s.b, x), e.dtype),
    Op.SIN: lambda s, e, x: round_to(s.b, transcendental.sin(s.b, x, e.arg or 0), e.dtype),
}


def params_of(b: Builder, k: Kernel) -> list[Param]:
    """Declare the kernel's slots as LIR parameters; int4 arrays are bytes there."""
    out = []
    for n, s in enumerate(k.slots):
        d, count = (dt.uint8, s.nbytes) if s.dtype is dt.int4 else (s.dtype, s.count)
        out.append(b.param(f"p{n}", d, count, s.writable))
    return out


def check(condition: bool, why: str) -> None:
    """An invariant of the scheduler that a lowering relies on."""
    if not condition:
        raise CompileError(why, remedy="this is a defect of devrt: please report it with explain()'s kernel dump")
