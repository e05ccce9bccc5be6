"""What selection writes, run by a NumPy machine, against LIR's interpreter bit for bit; MUFU is off by up to two units either
way."""

from __future__ import annotations

import numpy as np
import pytest

from devrt.compiler import dtypes as dt
from devrt.compiler import lir
from devrt.compiler.sass import select, target
from devrt.device import CompileError
from tests.compiler import random_programs as programs
from tests.compiler import test_single_ops as single
from tests.compiler.sass.machine import Machine

SMS = tuple(target.PARAMS)


def difference(program: lir.Program, arrays: dict[str, np.ndarray], sm: int, off: int) -> str:
    """How the code for `sm` differs from the interpreter, with MUFU off by so many units."""
    want, got = programs.interpreted(program, arrays), programs.copies(program, arrays)
    Machine(select.select(program, target.SassTarget(sm)), program, got, off)
    return programs.difference(program, want, got)


class Sweep(single.Sweep):
    """One instruction over many operands, on an old and a new generation."""

    def check(self) -> None:
        program = self.b.finish()
        for sm, off in ((75, 2), (90, -2)):
            assert not difference(program, self.arrays, sm, off), f"sm_{sm}"


@pytest.fixture(autouse=True)
def sweeps(monkeypatch):
    monkeypatch.setattr(single, "Sweep", Sweep)
    monkeypatch.setattr(single, "ELEMENTS", 1024)


@pytest.mark.parametrize("dtype", single.ARITHMETIC, ids=str)
def test_arithmetic(dtype):
    single.test_arithmetic(dtype, 32)


@pytest.mark.parametrize("dtype", [d for d in single.ARITHMETIC if d.is_int], ids=str)
def test_constant_shifts_and_divisors(dtype):
    single.test_constant_shifts_and_divisors(dtype, 32)


@pytest.mark.parametrize("source", programs.TYPES, ids=str)
def test_casts(source):
    single.test_casts(source, 32)


@pytest.mark.parametrize("source", [dt.float32, dt.float64], ids=str)
def test_casts_where_rounding_is_close(source):
    single.test_casts_where_rounding_is_close(source, 32)


def test_moves_keep_every_bit():
    single.test_moves_keep_every_bit(32)


@pytest.mark.parametrize("count", [25, pytest.param(1500, marks=pytest.mark.slow)])
def test_random_programs(count):
    for seed in range(count):
        g = programs.Generator(seed, lanes=32 if seed % 2 else None, size=50)
        why = difference(g.program, g.arrays, SMS[seed % len(SMS)], seed % 5 - 2)
        assert not why, f"{why}\nseed {seed}, sm_{SMS[seed % len(SMS)]}\n{g.program}"


def test_a_wrong_instruction_is_seen(monkeypatch):
    """The machine and the comparison can fail."""
    monkeypatch.setattr("devrt.compiler.sass.division._UP", 0x3F800000)
    with pytest.raises(AssertionError):
        single.test_arithmetic(dt.float32, 32)


def test_exchanges_between_warps_are_refused():
    b = lir.Builder("wide", lanes=64, groups=1)
    b.lane_get(b.lane(), 3)
    with pytest.raises(CompileError, match="64 lanes"):
        select.select(b.finish(), target.target("sm_90"))


@pytest.mark.parametrize("dtype", [dt.int8, dt.uint8, dt.bool_, dt.uint16], ids=str)
def test_narrow_neighbours_are_one_access(dtype):
    """Elements that are used, with their signs, and those that are only moved, by way of shared memory; some in another order."""
    each = 128 // max(8, dtype.bits)
    b = lir.Builder("neighbours", lanes=32, groups=2)
    x, out = b.param("x", dtype, 64 * each), b.param("out", dtype, 64 * each, writable=True)
    sums, kept = b.param("sums", dt.int32, 64, writable=True), b.shared("kept", dtype, 32 * each)
    me = b.add(b.mul(b.group(), b.idx(32)), b.lane())
    taken = [b.load(x, b.add(b.mul(me, b.idx(each)), b.idx(n))) for n in range(each)]
    for n, value in enumerate(taken):
        b.store(kept, b.add(b.mul(b.lane(), b.idx(each)), b.idx(n)), value)
    moved = [b.load(kept, b.add(b.mul(b.lane(), b.idx(each)), b.idx(n))) for n in range(each)]
    for n in range(each):
        b.store(out, b.add(b.mul(me, b.idx(each)), b.idx(n)), moved[n if n < each // 2 else each - 1 - n + each // 2])
    total = b.const(dt.int32, 0)
    for n, value in enumerate(taken):
        total = b.add(total, b.mul(b.cast(value, dt.int32), b.const(dt.int32, n + 1)))
    b.store(sums, me, total)
    program = b.finish()
    numbers = np.random.default_rng(each).integers(0, 256 if dtype.bits > 1 else 2, 64 * each).astype(np.uint8)
    raw = {"int8": np.int8, "uint8": np.uint8, "bool": np.bool_, "uint16": np.uint16}[dtype.name]
    arrays = {"x": numbers.astype(raw), "out": np.zeros(64 * each, raw), "sums": np.zeros(64, np.int32)}
    for sm in (75, 90):
        assert not difference(program, arrays, sm, 0)
    code = [i for block in select.select(program, target.SassTarget(90)).blocks for i in block.instructions]
    accesses = [i for i in code if i.op[:2] in ("LD", "ST") and i.op != "LDC"]
    widths = [".".join((i.op, *(m for m in i.mods if m in ("128", "U8", "S8", "U16")))) for i in accesses]
    assert widths == ["LDG.128", "STS.128", "LDS.128", "STG.128", "STG"]


class Addresses(Machine):
    """Notes where it would load, and loads 0."""

    def op_ldg(self, i, m, a):
        self.found = [*getattr(self, "found", []), self.places(a.value)]
        self.put(i, i.dsts[0], self.full(np.uint32(0)))

    def op_stg(self, i, m, a, value):
        pass


def test_addresses_beyond_words():
    """Arrays of 2^40 elements, with factors and constants that fit no instruction."""
    b = lir.Builder("large", lanes=32, groups=5)
    x, y = b.param("x", dt.float32, 1 << 40), b.param("y", dt.float32, 32, writable=True)
    factors, constant = (((1 << 33) + 64, 3, 1 << 31), (1 << 28) + 5)
    group, lane = b.mul(b.group(), b.idx(factors[0])), b.mul(b.lane(), b.idx(factors[1]))
    total = b.loop(0, 3, [b.const(dt.float32, 0)], lambda i, sums: [b.add(sums[0], b.load(
        x, b.add(b.add(group, b.mul(i, b.idx(factors[2]))), b.add(lane, b.idx(constant)))))])
    b.store(y, b.lane(), b.canon(total[0]))
    program = b.finish()
    for sm in (80, 90):
        arrays = {"x": np.zeros(1, np.float32), "y": np.zeros(32, np.float32)}
        machine = Addresses(select.select(program, target.SassTarget(sm)), program, arrays)
        for turn, places in enumerate(machine.found):
            expected = np.arange(5)[:, None] * factors[0] + np.arange(32) * factors[1] + turn * factors[2] + constant
            np.testing.assert_array_equal(places, 4 * expected)
        assert len(machine.found) == 3


# ----- division and roots where they are hard


def hard(dtype: dt.DType, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Dividends and divisors: fractions at either end, quotients near the middle of two floats, any exponents."""
    bits, kind = dtype.mantissa, np.dtype(dtype.name)
    word = np.dtype(f"u{kind.itemsize}")
    ends = np.concatenate([np.arange(4), (1 << bits) - 1 - np.arange(60), [1 << bits - 1]]).astype(word)
    a, b = (rng.choice(ends, count) for _ in range(2))
    a[::3] = rng.integers(0, 1 << bits, len(a[::3]))
    q, y = (x.astype(word) | word.type(1 << bits) for x in (rng.integers(0, 1 << bits, count), b))
    near = (q.astype(object) * 2 + 1) * y.astype(object)  # (q + 1/2) * b, rounded
    close = np.array([int(n) >> int(n).bit_length() - bits - 1 for n in near], object) + rng.integers(-1, 2, count)
    a[1::3] = (close & (1 << bits) - 1).astype(word)[1::3]
    most = (1 << dtype.exponent) - 1
    middle = most // 2
    exponents = [np.where(rng.random(count) < 0.6, middle + rng.integers(-3, 4, count), rng.integers(0, most, count))
                 for _ in range(2)]
    return tuple(((e.astype(word) << word.type(bits)) | f).view(kind) for e, f in zip(exponents, (a, b), strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("off", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("dtype", [dt.float32, dt.float64], ids=str)
def test_hard_quotients_and_roots(dtype, off):
    rng = np.random.default_rng(off + 9)
    s = single.Sweep(32, 0)
    a, b = hard(dtype, rng, single.ELEMENTS)
    x, y = s.operand(dtype, a), s.operand(dtype, b)
    s.result("div", single.settled(s.b, s.b.div(x, y)))
    s.result("one", single.settled(s.b, s.b.div(s.b.const(dtype, 1.0), y)))
    s.result("sqrt", single.settled(s.b, s.b.sqrt(y)))
    s.result("square", single.settled(s.b, s.b.sqrt(s.b.mul(y, y))))
    assert not difference(s.b.finish(), s.arrays, 80, off)


@pytest.mark.slow
@pytest.mark.parametrize("below", [1, 2, 3, 4])
def test_every_dividend(below, monkeypatch):
    """Of divisors just below a power of two, where a reciprocal that is off by one unit gives a wrong quotient."""
    monkeypatch.setattr(single, "ELEMENTS", 1 << 20)
    b = np.full(1 << 20, 0x40000000 - below, np.uint32).view(np.float32)
    for first in range(0x3F800000, 0x40000000, 1 << 20):
        s = single.Sweep(32, 0)
        a = np.arange(first, first + (1 << 20), dtype=np.uint32).view(np.float32)
        s.result("quotient", s.b.div(s.operand(dt.float32, a), s.operand(dt.float32, b)))
        for off in (-2, -1, 1, 2):
            assert not difference(s.b.finish(), s.arrays, 90, off)


@pytest.mark.parametrize("dtype", [dt.int32, dt.uint32, dt.int64, dt.uint64], ids=str)
def test_integer_quotients(dtype):
    """Of any size, by any size."""
    rng = np.random.default_rng(3)
    s = single.Sweep(32, 0)
    bits, drop = (rng.integers(low, high, (2, single.ELEMENTS), np.uint64) for low, high in ((0, 1 << 64), (64 - dtype.bits, 64)))
    x, y = (s.operand(dtype, n) for n in (bits >> drop).astype(dtype.name))
    s.result("div", s.b.div(x, y))
    s.result("rem", s.b.rem(x, y))
    for off in (-2, 2):
        assert not difference(s.b.finish(), s.arrays, 86, off)
