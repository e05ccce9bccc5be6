"""WMMA and MFMA against NumPy, by the lane layouts that AMD's documents draw: small integers, so that every order of summing
gives the same number."""

from __future__ import annotations

import numpy as np
import pytest

from devrt.virtual.amd.isa import Gen
from devrt.virtual.amd.translate import fp8
from tests.virtual.amd.emulator import Emulator, compile_ir
from tests.virtual.amd.kernels import PARAMETERS

RNG = np.random.default_rng(5)
# What a kernel loads: LLVM type -> (bytes of a lane, type of an element)
V8F, V16F, V4F, V32F = "<8 x float>", "<16 x float>", "<4 x float>", "<32 x float>"


def ir(result: str, a: str, b: str, call: str) -> str:
    loads = "".join(f"  %p{n} = getelementptr {t}, ptr addrspace(1) %{n}, i32 %i\n"
                    f"  %{v} = load {t}, ptr addrspace(1) %p{n}, align 4\n"
                    for n, v, t in (("a", "x", a), ("b", "y", b), ("c", "z", result)))
    name = call.split("(")[0].split("@")[1]
    types = ", ".join(p.split(" %")[0] if "%" in p else p.split()[0] for p in call[call.index("(") + 1:-1].split(", "))
    return (f"target triple = \"amdgcn-amd-amdhsa\"\ndeclare i32 @llvm.amdgcn.workitem.id.x()\n"
            f"declare {result} @{name}({types})\n"
            f"define amdgpu_kernel void @k({PARAMETERS}) {{\n  %i = call i32 @llvm.amdgcn.workitem.id.x()\n{loads}"
            f"  %r = call {result} {call}\n  %po = getelementptr {result}, ptr addrspace(1) %o, i32 %i\n"
            f"  store {result} %r, ptr addrspace(1) %po, align 4\n  ret void\n}}\n")


def run(gen: Gen, text: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Registers of A, B and C, a row a lane, to those of the result."""
    gpu = Emulator(gen)
    buffers = [gpu.alloc(bytes(c.nbytes)), *(gpu.alloc(np.ascontiguousarray(x)) for x in (a, b, c))]
    gpu.run(compile_ir(text, gen), "k", b"".join(x.va.to_bytes(8, "little") for x in buffers) + bytes(20))
    got = buffers[0].array(c.dtype).reshape(c.shape).copy()
    gpu.close()
    return got


def integers(*shape: int, low: int = -4, high: int = 5) -> np.ndarray:
    return RNG.integers(low, high, shape)


# ----- MFMA: element e of lane l of A or B is row or column l % m; register v of lane l of D is row i, column l % n.

KINDS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "i8": np.int8, "f64": np.float64}
# name for gfx942, gfx90a's if another; m, n, k, blocks; element type and LLVM type; result; elements of a lane
MFMA = (
    ("f32.32x32x2f32", 32, 2, 1, "f32", "float", V16F), ("f32.16x16x4f32", 16, 4, 1, "f32", "float", V4F),
    ("f32.32x32x1f32", 32, 1, 2, "f32", "float", V32F), ("f32.16x16x1f32", 16, 1, 4, "f32", "float", V16F),
    ("f32.4x4x1f32", 4, 1, 16, "f32", "float", V4F), ("f32.16x16x16f16", 16, 16, 1, "f16", "<4 x half>", V4F),
    ("f32.32x32x8f16", 32, 8, 1, "f16", "<4 x half>", V16F), ("f32.4x4x4f16", 4, 4, 16, "f16", "<4 x half>", V4F),
    ("f32.16x16x4f16", 16, 4, 4, "f16", "<4 x half>", V16F), ("f32.32x32x4f16", 32, 4, 2, "f16", "<4 x half>", V32F),
    ("f32.16x16x16bf16.1k", 16, 16, 1, "bf16", "<4 x i16>", V4F), ("f32.32x32x8bf16.1k", 32, 8, 1, "bf16", "<4 x i16>", V16F),
    ("f64.16x16x4f64", 16, 4, 1, "f64", "double", "<4 x double>"),
    ("i32.16x16x32.i8", 16, 32, 1, "i8", "i64", "<4 x i32>"), ("i32.32x32x16.i8", 32, 16, 1, "i8", "i64", "<16 x i32>"),
    ("i32.16x16x16i8", 16, 16, 1, "i8", "i32", "<4 x i32>"), ("i32.32x32x8i8", 32, 8, 1, "i8", "i32", "<16 x i32>"),
)


def encoded(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(KINDS[kind])


@pytest.mark.parametrize("gen", ("gfx90a", "gfx942"))
@pytest.mark.parametrize("case", MFMA, ids=lambda c: c[0])
def test_mfma(gen: Gen, case: tuple[str, int, int, int, str, str, str]) -> None:
    name, m, k, blocks, kind, a_type, result = case
    if name.endswith(".i8") and gen == "gfx90a" or name.endswith(("16i8", "8i8")) and gen == "gfx942":
        pytest.skip("of the other generation")
    held = m * k * blocks // 64
    a, b, lane = integers(64, held), integers(64, held), np.arange(64)
    out = np.float64 if kind == "f64" else np.int32 if kind == "i8" else np.float32
    registers = m * m * blocks // 64
    c = integers(64, registers).astype(out)
    call = f"@llvm.amdgcn.mfma.{name}({a_type} %x, {a_type} %y, {result} %z, i32 0, i32 0, i32 0)"
    got = run(gen, ir(result, a_type, a_type, call), encoded(a, kind), encoded(b, kind), c)
    want = c.copy()
    for v in range(registers):
        if m == 4:
            block, row = lane // 4, np.full(64, v)
        elif m == 32:
            block, row = np.full(64, v // 16), 8 * (v % 16 // 4) + 4 * (lane // 32) + v % 4
        elif kind == "f64":
            block, row = np.zeros(64, int), 4 * v + lane // 16
        else:
            block, row = np.full(64, v // 4), 4 * (lane // 16) + v % 4
        column = lane % m
        for at in range(k):
            place = m * (block + blocks * (at // held))
            want[:, v] += (a[row + place, at % held] * b[column + place, at % held]).astype(out)
    assert np.array_equal(got, want)


def test_mfma_of_8_bit_floats_and_broadcasts() -> None:
    codes = RNG.integers(0, 256, (2, 64, 8)).astype(np.uint8)
    codes = np.where(codes & 0x7F > 0x48, codes & 0x47, codes).astype(np.uint8)
    codes = np.where(codes == 0x80, 0, codes).astype(np.uint8)
    values = [np.array([fp8.number(n, fp8.FORMATS["gfx942", kind]) for n in range(256)]) for kind in ("fp8", "bf8")]
    a, b, lane, c = values[0][codes[0]], values[1][codes[1]], np.arange(64), np.zeros((64, 4), np.float32)
    call = f"@llvm.amdgcn.mfma.f32.16x16x32.fp8.bf8(i64 %x, i64 %y, {V4F} %z, i32 0, i32 0, i32 0)"
    got = run("gfx942", ir(V4F, "i64", "i64", call), codes[0], codes[1], c)
    for v in range(4):
        want = sum(a[4 * (lane // 16) + v + 16 * (k // 8), k % 8] * b[lane % 16 + 16 * (k // 8), k % 8] for k in range(32))
        assert np.allclose(got[:, v], want, rtol=1e-5, atol=1e-5)
    a, b, c = integers(64, 4), integers(64, 4), np.zeros((64, 4), np.float32)
    text = ir(V4F, "<4 x half>", "<4 x half>", f"@llvm.amdgcn.mfma.f32.4x4x4f16(<4 x half> %x, <4 x half> %y, {V4F} %z, "
              "i32 2, i32 1, i32 4)")  # blocks of four take the A of their second; all lanes the B of lanes 0 to 15
    got = run("gfx942", text, encoded(a, "f16"), encoded(b, "f16"), c)
    block = lane // 16 * 4 + 1
    for v in range(4):
        want = sum(a[4 * block + v, k] * b[lane % 16, k] for k in range(4))
        assert np.array_equal(got[:, v], want.astype(np.float32))


# ----- WMMA

@pytest.mark.parametrize("kind", ("f16", "bf16"))
def test_wmma_rdna3(kind: str) -> None:
    lane = np.arange(32)
    a, b = (np.tile(integers(16, 16), (2, 1)) for _ in range(2))  # lanes 16 to 31 repeat
    c = integers(32, 8).astype(np.float32)
    t = "<16 x half>" if kind == "f16" else "<16 x i16>"
    suffix = "v16f16" if kind == "f16" else "v16i16"
    got = run("gfx1100", ir(V8F, t, t, f"@llvm.amdgcn.wmma.f32.16x16x16.{kind}.v8f32.{suffix}({t} %x, {t} %y, {V8F} %z)"),
              encoded(a, kind), encoded(b, kind), c)
    for v in range(8):
        want = c[:, v] + np.einsum("lk,lk->l", a[2 * v + lane // 16], b[lane % 16])
        assert np.array_equal(got[:, v], want)


@pytest.mark.parametrize("high", (False, True))
def test_wmma_rdna3_half_results(high: bool) -> None:
    lane, t = np.arange(32), "<16 x half>"
    a, b = (np.tile(integers(16, 16), (2, 1)) for _ in range(2))
    c = integers(32, 16).astype(np.float16)
    got = run("gfx1100", ir(t, t, t, f"@llvm.amdgcn.wmma.f16.16x16x16.f16.v16f16.v16f16({t} %x, {t} %y, {t} %z, "
                            f"i1 {str(high).lower()})"), encoded(a, "f16"), encoded(b, "f16"), c)
    for v in range(8):
        want = c[:, 2 * v + high] + np.einsum("lk,lk->l", a[2 * v + lane // 16], b[lane % 16])
        assert np.array_equal(got[:, 2 * v + high], want.astype(np.float16))


@pytest.mark.parametrize("clamp", ("false", "true"))
def test_wmma_rdna3_integers(clamp: str) -> None:
    lane, t, r = np.arange(32), "<4 x i32>", "<8 x i32>"
    a = np.tile(RNG.integers(-128, 128, (16, 16)), (2, 1))
    b = np.tile(RNG.integers(0, 256, (16, 16)), (2, 1))
    c = integers(32, 8, low=2**31 - 4000, high=2**31).astype(np.int32)
    text = ir(r, t, t, f"@llvm.amdgcn.wmma.i32.16x16x16.iu8.v8i32.v4i32(i1 true, {t} %x, i1 false, {t} %y, {r} %z, i1 {clamp})")
    got = run("gfx1100", text, a.astype(np.int8), b.astype(np.uint8), c)
    for v in range(8):
        want = c[:, v].astype(np.int64) + np.einsum("lk,lk->l", a[2 * v + lane // 16], b[lane % 16])
        want = np.clip(want, -2**31, 2**31 - 1) if clamp == "true" else want
        assert np.array_equal(got[:, v], want.astype(np.int32))


def test_wmma_rdna4() -> None:
    lane, t = np.arange(32), "<8 x half>"
    a, b, c = integers(32, 8), integers(32, 8), integers(32, 8).astype(np.float32)
    got = run("gfx1201", ir(V8F, t, t, f"@llvm.amdgcn.wmma.f32.16x16x16.f16.v8f32.v8f16({t} %x, {t} %y, {V8F} %z)"),
              encoded(a, "f16"), encoded(b, "f16"), c)
    for v in range(8):
        row = v + 8 * (lane // 16)
        want = c[:, v] + sum(np.einsum("lk,lk->l", a[row + half], b[lane % 16 + half]) for half in (0, 16))
        assert np.array_equal(got[:, v], want)
