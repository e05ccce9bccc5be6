"""Programs on which the machine code once differed from the interpreter, shrunk; each says what was wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest

from devrt.compiler import dtypes as dt
from devrt.compiler.lir import Builder
from devrt.compiler.llvm import backend, target
from tests.compiler import random_programs as programs


def check(b, seed=0, **arrays):
    """Compare on every target; parameters not given hold random data."""
    program = b.finish()
    rng = np.random.default_rng(seed)
    arrays = {p.name: programs.aligned(arrays.get(p.name, programs.special_data(p.dtype, p.count, rng)))
              for p in program.params}
    for to in programs.targets():
        assert not programs.disagreement(program, arrays, to), to.cpu
    return program


@pytest.mark.parametrize("dtype", [dt.float32, dt.float64])
def test_canon_of_a_root(dtype):
    """LLVM's code generator takes `sqrt(x) is NaN ? NaN : sqrt(x)` for sqrt(x), whose NaN has another sign."""
    b = Builder("root", lanes=8, groups=1)
    x, y = b.param("x", dtype, 8), b.param("y", dtype, 8, writable=True)
    b.store(y, b.lane(), b.canon(b.sqrt(b.load(x, b.lane()))))
    check(b, x=np.array([-1, -2, -np.inf, 4, 0, np.nan, 9, -0.0], dtype.name))


@pytest.mark.parametrize("index", [dt.int32, dt.int64])
def test_index_arithmetic_wraps(index):
    """lane + u once was `add nsw`: LLVM knew that lane + u < lane + u + 1."""
    b = Builder("wrap", lanes=16, groups=1, index=index)
    x, y = b.param("x", index, 1), b.param("y", dt.bool_, 16, writable=True)
    here = b.add(b.lane(), b.load(x, b.idx(0)))
    b.store(y, b.lane(), b.lt(b.lane_get(here, 0), b.lane_get(b.add(here, b.idx(1)), 0)))
    check(b, x=np.array([index.max], index.name))


@pytest.mark.parametrize("dtype", [dt.float8_e4m3, dt.float8_e5m2, dt.float16, dt.bfloat16])
def test_constants_of_narrow_floats(dtype):
    """Types that LLVM sees as integers or as half need their bits, not a double's."""
    b = Builder("narrow", lanes=4, groups=1)
    y = b.param("y", dtype, 8, writable=True)
    b.store(y, b.lane(), b.const(dtype, -1.3))
    b.store(y, b.add(b.lane(), b.idx(4)), b.table(dtype, (0.1, -0.0, 1e9, 3e-8), b.lane()))
    check(b)


def test_tables_of_both_zeros():
    """The builder once took a table of -0.0 for one of 0.0."""
    b = Builder("zeros", lanes=4, groups=1)
    y, z = (b.param(name, dt.float32, 4, writable=True) for name in "yz")
    b.store(y, b.lane(), b.table(dt.float32, (0.0,) * 4, b.lane()))
    b.store(z, b.lane(), b.table(dt.float32, (-0.0,) * 4, b.lane()))
    assert len(check(b).tables) == 2


def test_vmovmsk_has_no_high_registers():
    """A masked gather of 16-bit elements, its mask one loaded bool, amid vectors enough to use registers 16 to 31:
    LLVM 22 moves such a mask by vmovmskps %ymm16, which is encoded as another register."""
    b = Builder("crowded", lanes=8, groups=1)
    flags, halves = b.param("flags", dt.bool_, 8), b.param("halves", dt.uint16, 8)
    outs = [b.param(f"out{n}", d, 32, writable=True)
            for n, d in enumerate((dt.int8, dt.int32, dt.int16, dt.uint64, dt.uint64))]
    s = b.shared("s", dt.float64, 16)
    lane, group = b.lane(), b.group()
    flag = b.load(flags, b.idx(3), b.lt(lane, b.idx(8)))
    for value, at in ((1.25, 0), (2.5, 0), (-2.5, 1)):
        b.store(s, b.add(b.mul(lane, b.idx(2)), b.idx(at)), b.const(dt.float64, value))
    low = b.and_(b.cast(b.load(halves, b.idx(7), flag), dt.int32), b.const(dt.int32, 7))
    found = b.table(dt.int16, (3, 1, 4, 1, 5, 9, 2, 6), low)
    b.store(outs[0], b.add(b.mul(lane, b.idx(4)), group), b.const(dt.int8, 0))
    b.store(outs[1], b.idx(0), low, b.lt(lane, b.idx(2)))
    b.store(outs[2], b.add(group, b.sub(b.idx(7), lane)), found)
    b.store(outs[3], lane, b.const(dt.uint64, 15539943672352118147))
    b.store(outs[4], b.sub(b.idx(7), lane), b.const(dt.uint64, 0), b.lt(lane, b.idx(7)))
    program = check(b, flags=np.ones(8, np.bool_), halves=np.full(8, 5, np.uint16))
    for name in ("x86-64-avx512", "x86-64-spr"):
        assert not re.search(r"movmsk\w+\s+%[xy]mm(1[6-9]|2\d|3\d)", backend.assembly(program, target.named(name)))
