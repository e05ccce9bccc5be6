"""Expressions of the kernel IR as LIR, at a given point of the loop nest.

A float16, bfloat16 or fp8 value lives in a float32 register that holds it exactly: arithmetic is done in float32 and
rounded to the type after every op. An int4 value lives in int8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from devrt.compiler import dtypes as dt
from devrt.compiler import transcendental
from devrt.compiler.dtypes import DType, compute_type
from devrt.compiler.index import Axis, Index, Quotient, Remainder, axes_of
from devrt.compiler.kernel import Ex, Kernel, Name
from devrt.compiler.lir import Builder, Param, Reg
from devrt.compiler.ops import Op
from devrt.device import CompileError

CACHE_LINE = 512  # bits
AHEAD = 4096  # bytes, at least, from a load to what is fetched with it


@dataclass(frozen=True)
class Stream:
    """Lanes and loops run along arrays: where one has `least` bytes, loads fetch ahead, once a cache line.

    `phase`: elements from the start of a loop's turn to the first lane. `block`: elements of the rows that are read side by
    side, if several: what is read next is not further on in a row, but in a later block.
    """

    least: int = 2 << 20  # what no second-level cache keeps
    phase: int = 0
    block: int = 0

    def ahead(self, d: DType, count: int) -> int:
        """How many bytes ahead of a load from an array of `count` `d` to fetch; 0: nothing."""
        if d.nbytes(count) < self.least or self.phase * d.bits % CACHE_LINE:
            return 0
        block = max(d.nbytes(self.block), 1)
        return -(-AHEAD // block) * block


class Scope:
    """Evaluates expressions where `axes` gives the position and `values` what earlier stages computed.

    `mask`, if any, says in which lanes the point exists: loads outside touch nothing. `stream`, if any, says that loads may
    fetch ahead. `first`, if not empty, names the only axis that differs between lanes, which count on from a multiple of
    `lanes`, and where lane 0 is. Registers are remembered, so a Scope must not outlive the block it was made in.
    """

    def __init__(self, b: Builder, params: list[Param], axes: dict[Axis, Reg], values: dict[Name, Reg],
                 mask: Reg | None = None, stream: Stream | None = None, first: dict[Axis, Reg] | None = None) -> None:
        self.b, self.params, self.axes, self.values, self.mask = b, params, axes, values, mask
        self.stream, self.first = stream, first or {}
        self.known: dict[int, Reg] = {}

    def at(self, axes: dict[Axis, Reg], mask: Reg | None = None, phase: int = 0,
           first: dict[Axis, Reg] | None = None) -> Scope:
        """The same scope at more axes, in an inner block."""
        return Scope(self.b, self.params, self.axes | axes, self.values, mask if mask is not None else self.mask,
                     self.stream and replace(self.stream, phase=phase), first or self.first)

    def streaming(self, stream: Stream) -> Scope:
        """The same scope, its loads run along arrays."""
        return Scope(self.b, self.params, self.axes, self.values, self.mask, stream, self.first)

    # ----- indexes

    def index(self, i: Index) -> Reg:
        b = self.b
        total = b.idx(i.constant)
        for atom, coefficient in i.terms:
            if isinstance(atom, Axis):
                r = self.axes[atom]
            elif isinstance(atom, Quotient):
                here = self._at_first_lane() if self._in_one_block(atom) else self
                r = b.div(here.index(atom.x), b.idx(atom.by))
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

    def _at_first_lane(self) -> Scope:
        return Scope(self.b, self.params, self.axes | self.first, self.values)

    def _in_one_block(self, q: Quotient) -> bool:
        """Whether all lanes have the quotient of lane 0: blocks of `by` start and end between vectors."""
        lanes = self.b.lanes
        linear = all(isinstance(a, Axis) and c == 1 if axes_of(a) & self.first.keys() else c % lanes == 0 for a, c in q.x.terms)
        return bool(self.first) and linear and q.by % lanes == 0 and q.x.constant % lanes == 0

    def _alike(self, i: Index) -> bool:
        """Whether all lanes are known to have the same index."""
        return bool(self.first) and all(not axes_of(a) & self.first.keys() or isinstance(a, Quotient) and self._in_one_block(a)
                                        for a, _ in i.terms)

    def _paired(self, i: Index) -> bool:
        """Whether the lanes are known to count on from an even index."""
        even = i.constant % 2 == 0 and self.b.lanes % 2 == 0
        return even and any(a in self.first for a, _ in i.terms) and all(
            a in self.first and c == 1 or c % 2 == 0 and not axes_of(a) & self.first.keys() for a, c in i.terms)

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
        return self.b.cast(self.loaded(e), compute_type(e.dtype))

    def loaded(self, e: Ex) -> Reg:
        """What a load finds, in the type it is stored in."""
        b = self.b
        slot, index = e.arg
        mask = None if self._alike(index) else self.mask  # the first lane always exists
        if e.args:
            own = self.value(e.args[0])
            mask = own if mask is None else b.and_(mask, own)
        param = self.params[slot]
        if e.dtype is dt.int4:
            ahead = self.stream.ahead(e.dtype, 2 * param.count) if self.stream else 0
            return b.nibble(param, self.index(index), mask, ahead, self._paired(index))
        ahead = self.stream.ahead(e.dtype, param.count) if self.stream else 0
        return b.load(param, self.index(index), mask, ahead)


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
