"""Each LIR instruction on each type, compiled, against the interpreter, bit for bit, on special and random operands."""

from __future__ import annotations

import numpy as np
import pytest

from devrt.compiler import dtypes as dt
from devrt.compiler import lir
from devrt.compiler.lir import Builder
from tests.compiler import random_programs as programs

ELEMENTS = 4096
ARITHMETIC = tuple(d for d in programs.TYPES if not d.storage and (not d.is_float or d.bits >= 32))


class Sweep:
    """A program over ELEMENTS rows of operands; each result goes to an output of its own."""

    def __init__(self, lanes, seed):
        self.b = Builder("sweep", lanes=lanes, groups=ELEMENTS // lanes)
        self.rng = np.random.default_rng(seed)
        self.arrays = {}
        self.at = self.b.add(self.b.mul(self.b.group(), self.b.idx(lanes)), self.b.lane())

    def operand(self, dtype, values=None):
        p = self.b.param(f"in{len(self.arrays)}", dtype, ELEMENTS)
        if values is None:
            values = programs.special_data(dtype, ELEMENTS, self.rng)
        self.arrays[p.name] = programs.aligned(values)
        return self.b.load(p, self.at)

    def result(self, name, r):
        p = self.b.param(name, r.dtype, ELEMENTS, writable=True)
        self.arrays[name] = programs.special_data(r.dtype, ELEMENTS, self.rng)
        self.b.store(p, self.at, r)

    def check(self):
        program = self.b.finish()
        for to in programs.targets():
            assert not programs.disagreement(program, self.arrays, to), to.cpu


def settled(b, r):
    """`r` with any NaN made canonical."""
    if not r.dtype.is_float:
        return r
    if r.dtype.bits >= 32:
        return b.canon(r)
    return b.cast(b.canon(b.cast(r, dt.float32)), r.dtype)


@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("dtype", ARITHMETIC)
def test_arithmetic(dtype, lanes):
    s = Sweep(lanes, 1)
    x, y, z = (s.operand(dtype) for _ in range(3))
    kind = "float" if dtype.is_float else "bool" if dtype.kind == "bool" else "int"
    for op, kinds in lir.KINDS.items():
        if kind not in kinds:
            continue
        if op in lir.COMPARE:
            r = s.b.emit(op, dt.bool_, x, y)
        elif op == "fma":
            r = s.b.fma(x, y, z)
        else:
            r = s.b.unary(op, x) if op in lir.UNARY else s.b.binary(op, x, y)
        s.result(op, settled(s.b, r))
    if dtype.is_float:
        product = s.b.mul(x, y)  # what a fused multiply-add could swallow
        s.result("mul_add", s.b.canon(s.b.add(product, z)))
        s.result("nearly_cancelled", s.b.canon(s.b.fma(x, y, s.b.neg(product))))
        s.result("is_root_a_number", s.b.eq(s.b.sqrt(x), s.b.sqrt(x)))
    s.check()


@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("dtype", [d for d in ARITHMETIC if d.is_int])
def test_constant_shifts_and_divisors(dtype, lanes):
    s = Sweep(lanes, 2)
    x = s.operand(dtype)
    for amount in (0, 1, dtype.bits - 1, dtype.bits, dtype.bits + 1, dtype.max):
        for op in ("shl", "shr"):
            s.result(f"{op}_{amount}", s.b.binary(op, x, s.b.const(dtype, amount)))
    for n, divisor in enumerate((0, 1, 2, 3, 7, dtype.min, dtype.max, max(dtype.min, -1), max(dtype.min, -5))):
        for op in ("div", "rem", "mulhi"):
            s.result(f"{op}_{n}", s.b.binary(op, x, s.b.const(dtype, divisor)))
    s.check()


@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("source", programs.TYPES)
def test_casts(source, lanes):
    s = Sweep(lanes, 3)
    x = s.operand(source)
    for to in programs.TYPES:
        if to is not source:
            s.result(f"to_{to.short}", settled(s.b, s.b.cast(x, to)))
    s.check()


@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("source", [dt.float32, dt.float64])
def test_casts_where_rounding_is_close(source, lanes):
    """Values at, and one bit beside, the midpoints of the narrow types."""
    for to in (dt.float8_e4m3, dt.float8_e5m2, dt.float16, dt.bfloat16):
        s = Sweep(lanes, 4)
        bits = s.rng.integers(0, 1 << source.bits, ELEMENTS, f"u{source.bits // 8}")
        drop = source.mantissa - to.mantissa
        bits = (bits >> drop << drop) + (1 << drop - 1) + s.rng.integers(-1, 2, ELEMENTS).astype(bits.dtype)
        values = bits.view(source.name)
        with np.errstate(invalid="ignore"):
            scaled = np.ldexp(np.frexp(values)[0], s.rng.integers(-160, 129, ELEMENTS)).astype(source.name)
        s.result("wide", settled(s.b, s.b.cast(s.operand(source, values), to)))
        s.result("near", settled(s.b, s.b.cast(s.operand(source, scaled), to)))
        s.check()


@pytest.mark.parametrize("lanes", [1, 16])
def test_moves_keep_every_bit(lanes):
    s = Sweep(lanes, 5)
    chosen = s.operand(dt.bool_)
    for dtype in programs.TYPES:
        x, y = s.operand(dtype), s.operand(dtype)
        s.result(f"copy_{dtype.short}", x)
        s.result(f"select_{dtype.short}", s.b.select(chosen, x, y))
        if lanes > 1:
            s.result(f"xor_{dtype.short}", s.b.lane_xor(x, 5))
            s.result(f"get_{dtype.short}", s.b.lane_get(x, 3))
        for to in programs.TYPES:
            if to.bits == dtype.bits and dt.bool_ not in (to, dtype):
                s.result(f"{dtype.short}_as_{to.short}", s.b.bitcast(x, to))
    s.check()
