"""What the SASS compiler makes of each LIR operation, on the emulator, against LIR's interpreter, bit for bit. MUFU is an ulp off
either way, so that nothing exact leans on an approximation better than hardware's."""

from __future__ import annotations

import numpy as np
import pytest

from devrt.compiler import convert, interpreter, lir
from devrt.compiler import dtypes as dt
from devrt.compiler.sass.backend import compile_program
from devrt.compiler.sass.target import target
from tests.compiler import random_programs as programs
from tests.compiler.test_matrix_units import mma_program, random
from tests.compiler.test_single_ops import ARITHMETIC, ELEMENTS, Sweep, settled
from tests.virtual.nvidia import numbers
from tests.virtual.nvidia.emulator import Emulator

LANES = 32
ERRORS = {75: 1, 80: 0, 86: -1, 89: 0, 90: -1, 120: 1}
USUAL = (75, 90)  # the others are slow tests


def on_emulator(program: lir.Program, arrays: dict[str, np.ndarray], sm: int, error: int) -> None:
    image = compile_program(program, target(f"sm_{sm}"))
    gpu = Emulator(sm, mufu_error=error)
    buffers = [gpu.alloc(arrays[p.name]) for p in program.params]
    gpu.run(image, *(b.va for b in buffers), grid=(program.groups, 1, 1), block=(program.lanes, 1, 1))
    for p, b in zip(program.params, buffers, strict=True):
        arrays[p.name].view(np.uint8)[:] = b.array(np.uint8)
    gpu.close()


def check(s: Sweep, runs: tuple[tuple[int, int], ...]) -> None:
    program = s.b.finish()
    wanted = {name: a.copy() for name, a in s.arrays.items()}
    interpreter.run(program, wanted)
    for sm, error in runs:
        found = {name: a.copy() for name, a in s.arrays.items()}
        on_emulator(program, found, sm, error)
        for p in program.params:
            if p.writable:
                word = f"u{p.dtype.bits // 8}"
                got, want = found[p.name].view(word), wanted[p.name].view(word)
                bad = np.flatnonzero(got != want)
                operands = {name: hex(int(a.view(f"u{a.itemsize}")[bad[0]])) for name, a in s.arrays.items()
                            if name.startswith("in")} if len(bad) else {}
                assert not len(bad), (sm, error, p.name, len(bad), hex(int(got[bad[0]])), hex(int(want[bad[0]])), operands)


@pytest.mark.parametrize("dtype", (dt.float32, dt.float64))
@pytest.mark.parametrize("sm", (86, 90))
def test_division_and_roots_whatever_the_approximation(dtype: dt.DType, sm: int) -> None:
    s = Sweep(LANES, 5)
    edges, bits = (numbers.EDGES32, 32) if dtype is dt.float32 else (numbers.EDGES64, 64)
    bias = dtype.mantissa
    center = ((1 << dtype.exponent - 1) - 1) << bias
    a, b, _ = numbers.triples(edges, bits, ELEMENTS // 3 + 1, 61, center, (1 << dtype.exponent - 2) << bias)
    tied = ties(dtype, ELEMENTS)
    name = dtype.name
    x, y = (s.operand(dtype, v[:ELEMENTS].view(name)) for v in (a, b))
    p, q = (s.operand(dtype, v.view(name)) for v in tied)
    s.result("quotient", s.b.canon(s.b.div(x, y)))
    s.result("tied", s.b.canon(s.b.div(p, q)))
    s.result("root", s.b.canon(s.b.unary("sqrt", x)))
    s.result("near_tie", s.b.canon(s.b.unary("sqrt", s.operand(dtype, squares(dtype, ELEMENTS)))))
    s.result("inverse", s.b.canon(s.b.div(s.b.const(dtype, 1.0), q)))
    s.result("squared", s.b.canon(s.b.unary("sqrt", s.b.mul(p, p))))
    check(s, tuple((sm, e) for e in (-1, 0, 1)))


def ties(dtype: dt.DType, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Operands whose quotient lies close to halfway between two numbers, a third of them where quotients are denormal."""
    rng = np.random.default_rng(62)
    digits = dtype.mantissa + 1
    half = [int(v) for v in rng.integers(1 << digits - 1, 1 << digits, count)]
    by = [int(v) for v in rng.integers(1 << digits - 1, 1 << digits, count)]
    above, below = [], []
    for n, (q, d) in enumerate(zip(half, by, strict=True)):
        product = (2 * q + 1) * d
        top = product >> product.bit_length() - digits
        top = min(top + int(rng.integers(0, 2)), (1 << digits) - 1)
        low = -(1 << dtype.exponent - 1) + 3
        if n % 3:
            above.append(float(np.ldexp(float(top), -digits)))
            below.append(float(np.ldexp(float(d), -digits)))
        else:
            above.append(float(np.ldexp(float(top), -digits + low // 2)))
            below.append(float(np.ldexp(float(d), -digits - low // 2 + int(rng.integers(0, digits)))))
    word = f"u{dtype.bits // 8}"
    return tuple(np.array(v, dtype.name).view(word) for v in (above, below))


def squares(dtype: dt.DType, count: int) -> np.ndarray:
    """Numbers whose root lies close to halfway between two others, of all sizes."""
    rng = np.random.default_rng(63)
    digits, reach = dtype.mantissa + 1, (1 << dtype.exponent - 2) - 2
    out = []
    for q in rng.integers(1 << digits - 1, 1 << digits, count):
        square = (2 * int(q) + 1) ** 2
        drop = square.bit_length() - digits
        top = (square >> drop) + int(rng.integers(0, 2))
        out.append(float(np.ldexp(float(top), drop - 2 * (digits + 1) + 2 * int(rng.integers(-reach, reach)))))
    return np.array(out, dtype.name)


@pytest.mark.parametrize("dtype", ARITHMETIC)
@pytest.mark.parametrize("sm", USUAL)
def test_arithmetic(dtype: dt.DType, sm: int) -> None:
    s = Sweep(LANES, 1)
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
    check(s, ((sm, ERRORS[sm]),))


@pytest.mark.parametrize("source", programs.TYPES)
@pytest.mark.parametrize("sm", USUAL)
def test_casts(source: dt.DType, sm: int) -> None:
    s = Sweep(LANES, 3)
    x = s.operand(source)
    for to in programs.TYPES:
        if to is not source:
            s.result(f"to_{to.short}", settled(s.b, s.b.cast(x, to)))
    check(s, ((sm, ERRORS[sm]),))


@pytest.mark.slow
@pytest.mark.parametrize("sm", sorted(set(ERRORS) - set(USUAL)))
def test_every_generation(sm: int) -> None:
    for dtype in ARITHMETIC:
        test_arithmetic(dtype, sm)
    for source in programs.TYPES:
        test_casts(source, sm)


@pytest.mark.parametrize("source", (dt.float32, dt.float64))
@pytest.mark.parametrize("sm", USUAL)
def test_casts_where_rounding_is_close(source: dt.DType, sm: int) -> None:
    s = Sweep(LANES, 4)
    for to in (dt.float8_e4m3, dt.float8_e5m2, dt.float16, dt.bfloat16):
        bits = s.rng.integers(0, 1 << source.bits, ELEMENTS, f"u{source.bits // 8}")
        drop = source.mantissa - to.mantissa
        bits = (bits >> drop << drop) + (1 << drop - 1) + s.rng.integers(-1, 2, ELEMENTS).astype(bits.dtype)
        values = bits.view(source.name)
        with np.errstate(invalid="ignore"):
            scaled = np.ldexp(np.frexp(values)[0], s.rng.integers(-160, 129, ELEMENTS)).astype(source.name)
        s.result(f"wide_{to.short}", settled(s.b, s.b.cast(s.operand(source, values), to)))
        s.result(f"near_{to.short}", settled(s.b, s.b.cast(s.operand(source, scaled), to)))
    check(s, ((sm, ERRORS[sm]),))


@pytest.mark.parametrize("count", (12, pytest.param(600, marks=pytest.mark.slow)))
def test_random_programs(count: int) -> None:
    for seed in range(count):
        sm = tuple(ERRORS)[seed % len(ERRORS)]
        g = programs.Generator(seed, lanes=LANES if seed % 2 else None, size=50)
        want, got = programs.interpreted(g.program, g.arrays), programs.copies(g.program, g.arrays)
        on_emulator(g.program, got, sm, seed % 3 - 1)
        why = programs.difference(g.program, want, got)
        assert not why, f"{why}\nseed {seed}, sm_{sm}\n{g.program}"


@pytest.mark.parametrize("sm", ERRORS)
def test_products_of_tiles(sm: int) -> None:
    """Both the emulator and the interpreter sum in the order of k, by fma."""
    layout = target(f"sm_{sm}").matrix_units
    for name in lir.LAYOUTS[layout].types:
        dtype = dt.named(name)
        program = mma_program(layout, dtype)
        arrays = {x: convert.encode(random(dtype, 512), dtype) for x in ("x", "y")}
        arrays |= {"c": random(dt.float32, 512).astype(np.float32), "out": np.zeros(512, np.float32)}
        want, got = programs.interpreted(program, arrays), programs.copies(program, arrays)
        on_emulator(program, got, sm, 0)
        assert np.array_equal(got["out"], want["out"])
