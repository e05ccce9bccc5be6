"""Arithmetic that ptxas compiled, on the emulator: many operations in one kernel, each thread with its own operands.

ptxas's divisions and roots start from MUFU and are right for every last bit of it, but for a few numbers. Of the 8 million
fractions, rcp.rn.f32 is wrong for the greatest where MUFU.RCP is an ulp too small, for 32 where it is an ulp too large, and for
powers of two beyond 2^125; div.rn.f32 of a power of two for the greatest; sqrt.rn.f32 for 3 or 2 of 16 million. Hardware's tables
must be right there.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from tests.virtual.nvidia import numbers
from tests.virtual.nvidia.emulator import Emulator, cubin, module
from tests.virtual.nvidia.numbers import (
    EDGES32,
    EDGES64,
    Array,
    bfloat,
    fma,
    multiplied,
    quotient,
    root,
    rounded,
    to_bfloat,
    to_float,
    to_half,
)
from tests.virtual.nvidia.test_matrix import fragment_a, fragment_b, fragment_c, packed

A, B, C = numbers.triples(EDGES32, 32, 100, 41, 127 << 23, 30 << 23)
D, E, F = (np.where(np.isnan(x.view(np.float64)), np.uint64(0x7FF8 << 48), x)
           for x in numbers.triples(EDGES64, 64, 100, 42, 1023 << 52, 300 << 52))
COUNT = len(A)
SLOT = 8  # bytes of a result

_HEAD = """.visible .entry k(.param .u64 in, .param .u64 out) {{
 .reg .b64 %rd<9>; .reg .f32 %f<9>; .reg .f64 %d<9>; .reg .b32 %r<9>; .reg .b16 %h<9>; .reg .pred %p<5>; .reg .b64 %l<9>;
 .reg .b32 %i<4>;
 ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out];
 mov.u32 %i1, %tid.x; mov.u32 %i2, %ctaid.x; mad.lo.u32 %i1, %i2, 32, %i1;
 mul.wide.u32 %rd3, %i1, 48; add.s64 %rd1, %rd1, %rd3; mul.wide.u32 %rd3, %i1, {size}; add.s64 %rd2, %rd2, %rd3;
 ld.global.b32 %r1, [%rd1]; ld.global.b32 %r2, [%rd1+4]; ld.global.b32 %r3, [%rd1+8];
 ld.global.b64 %l1, [%rd1+16]; ld.global.b64 %l2, [%rd1+24]; ld.global.b64 %l3, [%rd1+32];
 mov.b32 %f1, %r1; mov.b32 %f2, %r2; mov.b32 %f3, %r3; mov.b64 %d1, %l1; mov.b64 %d2, %l2; mov.b64 %d3, %l3;
 mov.b32 {{%h1, %h2}}, %r1; mov.b32 {{%h3, %h4}}, %r2;
{body} ret;
}}
"""
# A result's register -> how it is stored.
STORES = {"%f8": "b32", "%d8": "b64", "%r8": "b32", "%h8": "b16", "%l8": "b64"}


def run(sm: int, operations: list[str], mufu_error: int = 0) -> list[Array]:
    """Results of PTX operations on A, B, C (%f1, %r1, %h1 ..) and D, E, F (%d1, %l1 ..): 64 bits each."""
    body = ""
    for n, text in enumerate(operations):
        register = next(r for r in STORES if r in text)
        body += f" {text} st.global.{STORES[register]} [%rd2+{SLOT * n}], {register};\n"
    image = cubin(module(sm, _HEAD.format(size=SLOT * len(operations), body=body)).replace(".version 8.0", ".version 8.8"), sm)
    gpu = Emulator(sm, mufu_error=mufu_error)
    threads = -(-COUNT // 32) * 32
    rows = np.zeros((threads, 6), np.uint64)
    rows.view(np.uint32)[:COUNT, :3] = np.stack((A, B, C), 1)
    rows[:COUNT, 2:5] = np.stack((D, E, F), 1)
    inputs, out = gpu.alloc(rows), gpu.alloc(threads * SLOT * len(operations))
    gpu.run(image, inputs.va, out.va, grid=(threads // 32, 1, 1))
    found = out.array(np.uint64).reshape(threads, len(operations))[:COUNT].T.copy()
    gpu.close()
    return list(found)


def same(got: Array, want: Array, what: str, *inputs: Array) -> None:
    bad = np.flatnonzero(got != want)
    assert not len(bad), (what, len(bad), [tuple(hex(int(x[n])) for x in (got, want, *inputs)) for n in bad[:4]])


def floats(raw: Array) -> list[float]:
    with np.errstate(invalid="ignore"):
        return [float(x) for x in raw.view(np.float32)]


def quiet64(values: Array) -> Array:
    return np.where(np.isnan(values), np.nan, values).view(np.uint64)


def flushed(raw: Array) -> Array:
    return np.where(raw & 0x7FFFFFFF < 0x800000, raw & np.uint32(1 << 31), raw).astype(np.uint32)


@pytest.mark.parametrize("error", (-1, 0, 1))
@pytest.mark.parametrize("sm", (86, 90))
def test_divisions_and_roots_are_exact(sm: int, error: int) -> None:
    operations = ["div.rn.f32 %f8, %f1, %f2;", "rcp.rn.f32 %f8, %f1;", "sqrt.rn.f32 %f8, %f1;", "div.rn.ftz.f32 %f8, %f1, %f2;",
                  "div.rz.f32 %f8, %f1, %f2;", "div.rn.f64 %d8, %d1, %d2;", "rcp.rn.f64 %d8, %d1;", "sqrt.rn.f64 %d8, %d1;"]
    got = run(sm, operations, error)
    with np.errstate(all="ignore"):
        a, b, d, e = A.view(np.float32), B.view(np.float32), D.view(np.float64), E.view(np.float64)
        fa, fb = flushed(A).view(np.float32), flushed(B).view(np.float32)
        singles = [a / b, 1 / a, np.sqrt(a), None, None]
        fractions = [x & np.uint32(0x7FFFFF) for x in (B, A, A, B)]
        usual = [(x != 0x7FFFFF) & (x != 0) if error else x == x for x in fractions]
        for n, want in enumerate(singles[:3]):
            same(got[n][usual[n]], to_float(want.tolist())[usual[n]], operations[n], A[usual[n]], B[usual[n]])
        same(got[3][usual[3]], flushed(to_float((fa / fb).tolist()))[usual[3]], operations[3], A[usual[3]], B[usual[3]])
        cut = [quotient(x, y, "float", "RZ") for x, y in zip(floats(A), floats(B), strict=True)]
        same(got[4], to_float(cut), operations[4], A, B)
        for n, exact in ((5, d / e), (6, 1 / d), (7, np.sqrt(d))):
            same(quiet64(got[n].view(np.float64)), quiet64(exact), operations[n], D, E)


@pytest.mark.parametrize("sm", (86, 90))
def test_divisions_and_roots_in_directed_modes(sm: int) -> None:
    operations = ["div.rp.f32 %f8, %f1, %f2;", "sqrt.rm.f32 %f8, %f1;", "rcp.rz.f32 %f8, %f1;", "div.rm.f64 %d8, %d1, %d2;",
                  "sqrt.rz.f64 %d8, %d1;", "rcp.rp.f64 %d8, %d1;"]
    got = run(sm, operations)
    a, b = floats(A), floats(B)
    d, e = ([float(x) for x in raw.view(np.float64)] for raw in (D, E))
    for n, want in enumerate(([quotient(x, y, "float", "RP") for x, y in zip(a, b, strict=True)],
                              [root(x, "float", "RM") for x in a], [quotient(1.0, x, "float", "RZ") for x in a])):
        same(got[n], to_float(want), operations[n], A, B)
    for n, want in enumerate(([quotient(x, y, "double", "RM") for x, y in zip(d, e, strict=True)],
                              [root(x, "double", "RZ") for x in d], [quotient(1.0, x, "double", "RP") for x in d]), 3):
        same(quiet64(got[n].view(np.float64)), quiet64(np.array(want)), operations[n], D, E)


@pytest.mark.parametrize("sm", (86, 90))
def test_fused_multiply_add_in_every_mode(sm: int) -> None:
    modes = ("rn", "rz", "rm", "rp")
    operations = [f"fma.{m}.f32 %f8, %f1, %f2, %f3;" for m in modes] + [f"fma.{m}.f64 %d8, %d1, %d2, %d3;" for m in modes]
    got = run(sm, [*operations, "mul.rp.f32 %f8, %f1, %f2;", "sub.rm.f32 %f8, %f1, %f2;", "add.rz.f64 %d8, %d1, %d2;"])
    a, b, c = floats(A), floats(B), floats(C)
    d, e, f = ([float(x) for x in raw.view(np.float64)] for raw in (D, E, F))
    for n, mode in enumerate(modes):
        same(got[n], to_float([fma(x, y, z, "float", mode.upper()) for x, y, z in zip(a, b, c, strict=True)]), mode, A, B, C)
        want = np.array([fma(x, y, z, "double", mode.upper()) for x, y, z in zip(d, e, f, strict=True)])
        same(quiet64(got[4 + n].view(np.float64)), quiet64(want), mode, D, E, F)
    same(got[8], to_float([multiplied(x, y, "float", "RP") for x, y in zip(a, b, strict=True)]), "mul", A, B)
    same(got[9], to_float([fma(x, 1.0, -y, "float", "RM") for x, y in zip(a, b, strict=True)]), "sub", A, B)
    want = np.array([fma(x, 1.0, y, "double", "RZ") for x, y in zip(d, e, strict=True)])
    same(quiet64(got[10].view(np.float64)), quiet64(want), "add", D, E)


def clamped(values: list[float], bits: int, signed: bool, whole: Callable[[Fraction], int], nan: int) -> Array:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    ends = {-np.inf: low, np.inf: high}
    out = [nan if x != x else ends[x] if x in ends else min(max(whole(Fraction(x)), low), high) for x in values]
    return np.array([x & (1 << bits) - 1 for x in out], np.uint64)


@pytest.mark.parametrize("sm", (86, 90))
def test_conversions(sm: int) -> None:
    """As the PTX ISA says of cvt; stores take 16 or 32 bits of a register."""
    a, d = floats(A), [float(x) for x in D.view(np.float64)]
    halves = [float(x) for x in (A & 0xFFFF).astype(np.uint16).view(np.float16)]
    signed, unsigned = A.view(np.int32).tolist(), A.tolist()
    wide, short = D.view(np.int64).tolist(), (A & 0xFFFF).astype(np.int16).tolist()

    def cut(values: list[float], fmt: str, mode: str = "RN") -> list[float]:
        return [x if not np.isfinite(x) else rounded(Fraction(x), fmt, mode, x) for x in values]

    cases = [
        ("cvt.rn.f16.f32 %h8, %f1;", to_half(cut(a, "half"))), ("cvt.rz.f16.f32 %h8, %f1;", to_half(cut(a, "half", "RZ"))),
        ("cvt.rp.f16.f32 %h8, %f1;", to_half(cut(a, "half", "RP"))), ("cvt.rn.bf16.f32 %h8, %f1;", to_bfloat(cut(a, "bfloat"))),
        ("cvt.rn.f16.f64 %h8, %d1;", to_half(cut(d, "half"))), ("cvt.rn.f32.f64 %f8, %d1;", to_float(cut(d, "float"))),
        ("cvt.rm.f32.f64 %f8, %d1;", to_float(cut(d, "float", "RM"))), ("cvt.f32.f16 %f8, %h1;", to_float(halves)),
        ("cvt.rn.sat.f16.f32 %h8, %f1;", to_half([min(x, 1.0) if x > 0 else 0.0 for x in cut(a, "half")])),
        ("cvt.rni.f32.f32 %f8, %f1;", to_float([x if not np.isfinite(x) else float(np.rint(x)) for x in a])),
        ("cvt.rpi.f16.f16 %h8, %h1;", to_half([x if not np.isfinite(x) else float(np.ceil(x)) for x in halves])),
        ("cvt.rzi.s32.f32 %r8, %f1;", clamped(a, 32, True, int, 0)),
        ("cvt.rni.u32.f32 %r8, %f1;", clamped(a, 32, False, round, 0)),
        ("cvt.rmi.s16.f32 %h8, %f1;", clamped(a, 16, True, lambda x: x.__floor__(), 0)),
        ("cvt.rzi.u8.f32 %r8, %f1;", clamped(a, 8, False, int, 0)),
        ("cvt.rzi.s64.f32 %l8, %f1;", clamped(a, 64, True, int, 1 << 63)),
        ("cvt.rpi.u64.f64 %l8, %d1;", clamped(d, 64, False, lambda x: x.__ceil__(), 1 << 63)),
        ("cvt.rni.s32.f64 %r8, %d1;", clamped(d, 32, True, round, 1 << 31)),
        ("cvt.rzi.u16.f16 %h8, %h1;", clamped(halves, 16, False, int, 0)),
        ("cvt.rn.f32.s32 %f8, %r1;", to_float([rounded(Fraction(x), "float", "RN") for x in signed])),
        ("cvt.rz.f32.u32 %f8, %r1;", to_float([rounded(Fraction(x), "float", "RZ") for x in unsigned])),
        ("cvt.rp.f32.s64 %f8, %l1;", to_float([rounded(Fraction(x), "float", "RP") for x in wide])),
        ("cvt.rn.f16.s64 %h8, %l1;", to_half([rounded(Fraction(x), "half", "RN") for x in wide])),
        ("cvt.rn.f16.s16 %h8, %h1;", to_half([rounded(Fraction(x), "half", "RN") for x in short])),
        ("cvt.sat.s8.s32 %r8, %r1;", np.clip(A.view(np.int32), -128, 127).view(np.uint32)),
        ("cvt.sat.u16.s32 %h8, %r1;", np.clip(A.view(np.int32), 0, 65535).view(np.uint32)),
    ]
    for n, got in enumerate(run(sm, [text for text, _ in cases])):
        same(got, cases[n][1].astype(np.uint64), cases[n][0], A, D)
    text = "cvt.rm.f64.s64 %d8, %l1;"
    same(run(sm, [text])[0], np.array([rounded(Fraction(x), "double", "RM") for x in wide]).view(np.uint64), text, D)


@pytest.mark.parametrize("sm", (86, 90))
def test_pairs_of_halves(sm: int) -> None:
    wide = {"f16": lambda raw: raw.view(np.float16).astype(np.float64), "bf16": lambda raw: bfloat(raw).astype(np.float64)}
    bits = {"f16": to_half, "bf16": to_bfloat}
    fmt = {"f16": "half", "bf16": "bfloat"}

    def pairs(kind: str, compute: Callable[..., float]) -> Array:
        halves = []
        for shift in (0, 16):
            with np.errstate(invalid="ignore"):
                columns = [[float(v) for v in wide[kind]((x >> np.uint32(shift)).astype(np.uint16))] for x in (A, B, C)]
            halves.append(bits[kind]([compute(*row) for row in zip(*columns, strict=True)]).astype(np.uint64))
        return halves[0] | halves[1] << np.uint64(16)

    cases = []
    for kind in ("f16", "bf16") if sm >= 90 else ("f16",):
        f = fmt[kind]
        cases += [(f"add.{kind}x2 %r8, %r1, %r2;", kind, lambda x, y, z, f=f: fma(x, 1.0, y, f)),
                  (f"sub.{kind}x2 %r8, %r1, %r2;", kind, lambda x, y, z, f=f: fma(x, 1.0, -y, f)),
                  (f"mul.{kind}x2 %r8, %r1, %r2;", kind, lambda x, y, z, f=f: multiplied(x, y, f))]
    for kind in ("f16", "bf16"):
        f = fmt[kind]
        cases += [(f"fma.rn.{kind}x2 %r8, %r1, %r2, %r3;", kind, lambda x, y, z, f=f: fma(x, y, z, f)),
                  (f"fma.rn.relu.{kind}x2 %r8, %r1, %r2, %r3;", kind,
                   lambda x, y, z, f=f: v if (v := fma(x, y, z, f)) > 0 or v != v else 0.0)]
    for n, got in enumerate(run(sm, [text for text, _, _ in cases])):
        same(got, pairs(*cases[n][1:]), cases[n][0], A, B, C)


@pytest.mark.parametrize("sm", (86, 90))
def test_approximations_are_near(sm: int) -> None:
    """Without .ftz ptxas scales around what MUFU takes for zero, so denormals count."""
    cases = (("rcp.approx.f32 %f8, %f1;", lambda x: 1 / x), ("rsqrt.approx.f32 %f8, %f1;", lambda x: 1 / np.sqrt(x)),
             ("sqrt.approx.f32 %f8, %f1;", np.sqrt), ("ex2.approx.f32 %f8, %f1;", np.exp2), ("lg2.approx.f32 %f8, %f1;", np.log2),
             ("tanh.approx.f32 %f8, %f1;", np.tanh))
    for (text, reference), got in zip(cases, run(sm, [text for text, _ in cases]), strict=True):
        with np.errstate(all="ignore"):
            want = reference(A.view(np.float32).astype(np.float64)).astype(np.float32)
            found = got.astype(np.uint32).view(np.float32)
            assert np.allclose(found, want, rtol=1e-6, atol=2e-45, equal_nan=True), text


@pytest.mark.parametrize("sm", (86, 90))
def test_comparisons_and_extremes_of_float64(sm: int) -> None:
    got = run(sm, ["min.f64 %d8, %d1, %d2;", "max.f64 %d8, %d1, %d2;",
                   "setp.gtu.f64 %p1, %d1, %d2; selp.f64 %d8, %d2, %d1, %p1;",
                   "setp.lt.f32 %p1, %f1, %f2; selp.f32 %f8, %f1, %f2, %p1;"])
    d, e = D.view(np.float64), E.view(np.float64)
    with np.errstate(invalid="ignore"):
        low = np.where((d == 0) & (e == 0), np.where(np.signbit(d), d, e), np.fmin(d, e))
        high = np.where((d == 0) & (e == 0), np.where(np.signbit(d), e, d), np.fmax(d, e))
        same(quiet64(got[0].view(np.float64)), quiet64(low), "min", D, E)
        same(quiet64(got[1].view(np.float64)), quiet64(high), "max", D, E)
        same(got[2], np.where(~(d <= e), E, D), "selp", D, E)
        same(got[3], np.where(A.view(np.float32) < B.view(np.float32), A, B).astype(np.uint64), "selp", A, B)


# ---------------------------------------------------------------------------------------------------------------------
# mma.sync


def product(sm: int, text: str, a: Array, b: Array, c: Array, words: int) -> Array:
    """Registers of a warp, (words, 32) each, through one mma.sync: its result's words."""
    registers = ".reg .b64 %rd<5>; .reg .b32 %i<2>; " + " ".join(f".reg .b32 %{n}<4>;" for n in "abc")
    body = " ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out]; mov.u32 %i1, %tid.x; mul.wide.u32 %rd3, %i1, 4;\n"
    body += " add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3;\n"
    at = 0
    for name, values in (("a", a), ("b", b), ("c", c)):
        for n in range(len(values)):
            body += f" ld.global.b32 %{name}{n}, [%rd1+{128 * at}];\n"
            at += 1
    lists = {name: "{" + ", ".join(f"%{name}{n}" for n in range(len(values))) + "}"
             for name, values in (("a", a), ("b", b), ("c", c))}
    body += f" {text} {lists['c']}, {lists['a']}, {lists['b']}, {lists['c']};\n"
    body += "".join(f" st.global.b32 [%rd2+{128 * n}], %c{n};\n" for n in range(words))
    image = cubin(module(sm, f".visible .entry k(.param .u64 in, .param .u64 out) {{\n {registers}\n{body} ret;\n}}\n"), sm)
    gpu = Emulator(sm)
    inputs, out = gpu.alloc(np.concatenate((a, b, c))), gpu.alloc(128 * words)
    gpu.run(image, inputs.va, out.va)
    found = out.array(np.uint32).reshape(words, 32).copy()
    gpu.close()
    return found


@pytest.mark.parametrize("sm", (80, 90))
@pytest.mark.parametrize("kind", ("f16", "bf16", "tf32", "s8"))
def test_matrix_products(sm: int, kind: str) -> None:
    """Small whole numbers, of which every order of summing gives the same: fragments as the PTX ISA draws them."""
    rng = np.random.default_rng(51)
    k, held = {"f16": (16, 2), "bf16": (16, 2), "tf32": (8, 1), "s8": (32, 4)}[kind]
    bits = 32 // held
    a, b, c = (rng.integers(-8, 9, shape) for shape in ((16, k), (k, 8), (16, 8)))

    def raw(values: Array) -> Array:
        if kind == "s8":
            return values & 0xFF
        single = values.astype(np.float32)
        if kind == "f16":
            return single.astype(np.float16).view(np.uint16)
        return single.view(np.uint32) >> (16 if kind == "bf16" else 0)

    accumulated = c if kind == "s8" else c.astype(np.float32).view(np.uint32)
    name = "s32.s8.s8.s32" if kind == "s8" else f"f32.{kind}.{kind}.f32"
    registers = [np.stack(x) for x in (packed(raw(a), fragment_a(16, k, held), bits), packed(raw(b), fragment_b(k, held), bits),
                                       packed(accumulated & 0xFFFFFFFF, fragment_c(16), 32))]
    got = product(sm, f"mma.sync.aligned.m16n8k{k}.row.col.{name}", *registers, 4)
    want = c + a @ b
    for n, place in enumerate(fragment_c(16)):
        found = got[n].view(np.int32) if kind == "s8" else got[n].view(np.float32)
        assert np.array_equal(found, want[place])


@pytest.mark.parametrize("sm", (80, 90))
def test_float64_products(sm: int) -> None:
    rng = np.random.default_rng(52)
    lane = np.arange(32)
    group, thread = lane // 4, lane % 4
    a, b, c = rng.normal(0, 1, (8, 4)), rng.normal(0, 1, (4, 8)), rng.normal(0, 1, (8, 8))
    text = """.visible .entry k(.param .u64 in, .param .u64 out) {
 .reg .b64 %rd<5>; .reg .b32 %i<2>; .reg .f64 %d<5>;
 ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out]; mov.u32 %i1, %tid.x; mul.wide.u32 %rd3, %i1, 8;
 add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3;
 ld.global.f64 %d1, [%rd1]; ld.global.f64 %d2, [%rd1+256]; ld.global.f64 %d3, [%rd1+512]; ld.global.f64 %d4, [%rd1+768];
 mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d3, %d4}, {%d1}, {%d2}, {%d3, %d4};
 st.global.f64 [%rd2], %d3; st.global.f64 [%rd2+256], %d4; ret;
}
"""
    gpu = Emulator(sm)
    places = [(group, 2 * thread), (group, 2 * thread + 1)]
    inputs = gpu.alloc(np.stack((a[group, thread], b[thread, group], *(c[p] for p in places))))
    out = gpu.alloc(512)
    gpu.run(cubin(module(sm, text), sm), inputs.va, out.va)
    want = c + a @ b
    for found, place in zip(out.array(np.float64).reshape(2, 32), places, strict=True):
        assert np.allclose(found, want[place], rtol=1e-14, atol=1e-14)
    gpu.close()

