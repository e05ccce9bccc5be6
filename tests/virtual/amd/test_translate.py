"""The translator. Witness for what has no AMD intrinsic: the same LLVM IR, compiled by LLVM for the host and run lane by lane."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable

import llvmlite.binding as llvm
import numpy as np
import pytest

from devrt.virtual.amd.dispatch import WaveFault
from devrt.virtual.amd.isa import GENS, Gen
from devrt.virtual.memory import PAGE, Access, MemoryFault
from tests.virtual.amd.emulator import Emulator, compile_ir
from tests.virtual.amd.kernels import HEADER, PARAMETERS, module

FLOATS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "f64": np.float64}
_engines = []  # whose code is called


TO_BFLOAT = """
define bfloat @__truncsfbf2(float %x) {
  %raw = bitcast float %x to i32
  %high = lshr i32 %raw, 16
  %odd = and i32 %high, 1
  %more = add i32 %odd, 32767
  %sum = add i32 %raw, %more
  %near = lshr i32 %sum, 16
  %quiet = or i32 %high, 64
  %nan = fcmp uno float %x, %x
  %chosen = select i1 %nan, i32 %quiet, i32 %near
  %short = trunc i32 %chosen to i16
  %r = bitcast i16 %short to bfloat
  ret bfloat %r
}
"""  # compiler-rt's, which not every system has


@functools.cache
def on_host(name: str) -> Callable[..., None]:
    """A kernel as a function of its parameters and the lane."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    for library in ("libgcc_s.so.1", "libm.so.6"):  # conversions of halves, fma
        llvm.load_library_permanently(library)
    text = re.sub(r",? ?addrspace\(\d\)", "", module("gfx1100", [name])).replace("amdgpu_kernel ", "").replace(" #0 {", " {")
    text = re.sub(r"target triple.*", "", text).replace("%size) {", "%size, i32 %work.item) {")
    text = text.replace("call i32 @llvm.amdgcn.workitem.id.x()", "add i32 %work.item, 0")
    text = re.sub(r"attributes #0.*|declare i32 @llvm.amdgcn.*", "", text)
    parsed = llvm.parse_assembly(text + TO_BFLOAT)
    cpu = "x86-64-v3" if "x86_64" in llvm.get_default_triple() else ""
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=cpu, opt=0, jit=True)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _engines.append(engine)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 6, ctypes.c_int, ctypes.c_int)(engine.get_function_address(name))


def numbers(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random and special numbers of a float type, as bits or values."""
    t = FLOATS[kind]
    width = 8 * np.dtype(t).itemsize
    ordinary = (rng.standard_normal(count) * 10.0 ** rng.integers(-3, 4, count)).astype(np.float32)
    if kind == "bf16":
        values = (ordinary.view(np.uint32) >> 16).astype(np.uint16)
        infinity = 0x7F80
    else:
        values = ordinary.astype(t).view(f"u{width // 8}")
        infinity = int(np.array(np.inf, t).view(f"u{width // 8}"))
    one_bit = 1 << width - 1
    special = np.array([0, one_bit, infinity, infinity | one_bit, infinity + (infinity & -infinity) // 2, 1, one_bit | 1,
                        infinity - 1, infinity & -infinity], dtype=values.dtype)
    chosen = rng.random(count) < 0.3
    return np.where(chosen, rng.choice(special, count), values).view(t)


def same(a: np.ndarray, b: np.ndarray, kind: str) -> np.ndarray:
    """Bits alike, or both NaN."""
    if kind not in FLOATS:
        return a == b
    if kind == "bf16":
        nan = [(x & 0x7FFF) > 0x7F80 for x in (a, b)]
    else:
        nan = [np.isnan(x) for x in (a, b)]
        a, b = (x.view(f"u{x.itemsize}") for x in (a, b))
    return (a == b) | nan[0] & nan[1]


def aligned(x: np.ndarray) -> np.ndarray:
    """A copy at an address that vector instructions take."""
    room = np.zeros(x.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start:start + x.nbytes].view(x.dtype)
    copy[:] = x
    return copy


def compare(gen: Gen, name: str, opt: int, kind: str, data: list[np.ndarray], size: int = 3, lanes: int = 0) -> None:
    """Run a kernel both ways on the same six buffers; all of them must be alike afterwards."""
    gpu = Emulator(gen)
    lanes = lanes or gpu.wave
    mine, theirs = [gpu.alloc(x) for x in data], [aligned(x) for x in data]
    arguments = b"".join(x.va.to_bytes(8, "little") for x in mine) + size.to_bytes(4, "little")
    gpu.run(compile_ir(module(gen, [name]), gen, opt), name, arguments, size=(lanes, 1, 1))
    function = on_host(name)
    for lane in range(lanes):
        function(*(x.ctypes.data for x in theirs), size, lane)
    for n, (buffer, want) in enumerate(zip(mine, theirs, strict=True)):
        got = buffer.array(want.dtype)
        alike = same(got, want, kind)
        assert alike.all(), (n, np.flatnonzero(~alike)[:8], got[~alike][:8], want[~alike][:8])
    gpu.close()


@pytest.mark.parametrize("opt", (0, 2))
@pytest.mark.parametrize("kind", ("f32", "f64", "f16", "bf16"))
@pytest.mark.parametrize("gen", GENS)
def test_floats(gen: Gen, kind: str, opt: int) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        compare(gen, f"float_{kind}", opt, kind, [numbers(kind, 64, rng) for _ in range(6)])


@pytest.mark.parametrize("opt", (0, 2))
@pytest.mark.parametrize("gen", GENS)
def test_integers(gen: Gen, opt: int) -> None:
    for bits in (8, 16, 32, 64):
        rng = np.random.default_rng(bits)
        data = [rng.integers(1, 1 << bits - 1, 64, dtype=np.uint64).astype(f"u{bits // 8}") for _ in range(6)]
        for x in data:
            x[:3] = ((1 << bits) - 1, 1 << bits - 1, 1)
        compare(gen, f"integer_{bits}", opt, "", data)


@pytest.mark.parametrize("opt", (0, 2))
@pytest.mark.parametrize("gen", GENS)
def test_packed(gen: Gen, opt: int) -> None:
    for name, kind in (("i16", ""), ("f32", "f32"), ("bf16", "bf16")):
        rng = np.random.default_rng(1)
        data = [numbers(kind, 128, rng) if kind else rng.integers(0, 16, 128, dtype=np.uint16) for _ in range(6)]
        compare(gen, f"packed_{name}", opt, kind, data)


@pytest.mark.parametrize("opt", (0, 2))
@pytest.mark.parametrize("gen", GENS)
def test_conversions_memory_branches_and_calls(gen: Gen, opt: int) -> None:
    rng = np.random.default_rng(2)

    def raw(nbytes: int) -> np.ndarray:
        return rng.integers(0, 256, nbytes, dtype=np.uint8)
    floats, doubles = (rng.random(64) * 250).astype(np.float32), rng.random(64) * 60000
    compare(gen, "convert", opt, "", [raw(8192), floats.view(np.uint8), doubles.view(np.uint8), *(raw(8192) for _ in range(3))])
    for size in (3, 5, 40):
        compare(gen, "loop", opt, "f32", [rng.standard_normal(256).astype(np.float32) for _ in range(6)], size)
    compare(gen, "call", opt, "", [raw(64) for _ in range(6)], 0, lanes=1)
    compare(gen, "scalar", opt, "", [raw(1024) for _ in range(6)], 3, lanes=1)
    for name in ("global_global", "flat_flat"):
        compare(gen, name, opt, "", [raw(16384) for _ in range(6)], lanes=1)
    compare(gen, "global_global", opt, "", [raw(16384) for _ in range(6)])
    compare(gen, "atomics_global", opt, "", [rng.integers(1, 50, 256, dtype=np.uint8) for _ in range(6)], lanes=1)
    compare(gen, "atomics_flat", opt, "", [rng.integers(1, 50, 256, dtype=np.uint8) for _ in range(6)], lanes=1)


# ---------------------------------------------------------------------------------------------------------------------
# AMD's own operations: a model in NumPy of what the ISA documents say


def results(gen: Gen, type: str, calls: list[str], x: np.ndarray) -> list[np.ndarray]:
    """Each call's result of every lane; %x is a lane's value, %i its number."""
    wave = 64 if gen in ("gfx90a", "gfx942") else 32
    lines = []
    for n, call in enumerate(calls):
        t = call.split(" @")[0]
        lines += [f"  %r{n} = call {call}", f"  %q{n} = getelementptr i8, ptr addrspace(1) %o, i32 {n * 8 * wave}",
                  f"  %s{n} = getelementptr {t}, ptr addrspace(1) %q{n}, i32 %i", f"  store {t} %r{n}, ptr addrspace(1) %s{n}"]
    text = (f"{HEADER}define amdgpu_kernel void @k({PARAMETERS}) {{\n  %i = call i32 @llvm.amdgcn.workitem.id.x()\n"
            f"  %p = getelementptr {type}, ptr addrspace(1) %a, i32 %i\n  %x = load {type}, ptr addrspace(1) %p\n"
            + "\n".join(lines) + "\n  ret void\n}\n")
    gpu = Emulator(gen)
    out, a = gpu.alloc(bytes(len(calls) * 8 * wave)), gpu.alloc(x)
    gpu.run(compile_ir(text, gen), "k", out.va.to_bytes(8, "little") + a.va.to_bytes(8, "little") + bytes(36))
    kinds = {"i32": np.uint32, "float": np.float32, "i64": np.uint64}
    found = [np.frombuffer(out.host, kinds.get(c.split(" @")[0], np.uint32), wave, n * 8 * wave).copy()
             for n, c in enumerate(calls)]
    gpu.close()
    return found


@pytest.mark.parametrize("gen", GENS)
def test_lanes(gen: Gen) -> None:
    wave = 64 if gen in ("gfx90a", "gfx942") else 32
    i = np.arange(wave)
    x = np.random.default_rng(4).integers(0, 1 << 32, wave, dtype=np.uint64).astype(np.uint32)
    row, at = i & ~15, i & 15

    def dpp(ctrl: int, rows: int, banks: int, bound: str) -> str:
        return f"i32 @llvm.amdgcn.update.dpp.i32(i32 %i, i32 %x, i32 {ctrl}, i32 {rows}, i32 {banks}, i1 {bound})"

    def model(source: np.ndarray, there: np.ndarray, rows: int, banks: int, bound: bool) -> np.ndarray:
        value = np.where(there, x[np.clip(source, 0, wave - 1)], 0)
        written = (rows >> (i // 16 & 3) & banks >> (i // 4 & 3) & 1).astype(bool) & (there | bound)
        return np.where(written, value, i).astype(np.uint32)
    yes = np.ones(wave, bool)
    cases = [
        (dpp(27, 15, 15, "false"), model((i & ~3) + 3 - (i & 3), yes, 15, 15, False)),
        (dpp(0x111, 15, 15, "true"), model(i - 1, at >= 1, 15, 15, True)),
        (dpp(0x111, 15, 15, "false"), model(i - 1, at >= 1, 15, 15, False)),
        (dpp(0x122, 10, 15, "false"), model(row + (at - 2) % 16, yes, 10, 15, False)),
        (dpp(0x103, 15, 7, "true"), model(i + 3, at < 13, 15, 7, True)),
        (dpp(0x140, 15, 15, "false"), model(row + 15 - at, yes, 15, 15, False)),
        (dpp(0x141, 15, 15, "true"), model((i & ~7) + 7 - (i & 7), yes, 15, 15, True)),
        ("i32 @llvm.amdgcn.ds.bpermute(i32 %x, i32 %i)", (x >> 2) % wave),
        ("i32 @llvm.amdgcn.ds.swizzle(i32 %x, i32 31775)", x[i ^ 31]),
        ("i32 @llvm.amdgcn.ds.swizzle(i32 %x, i32 32795)", x[(i & ~3) + 3 - (i & 3)]),
        ("i32 @llvm.amdgcn.readlane(i32 %x, i32 5)", np.full(wave, x[5])),
        ("i32 @llvm.amdgcn.readfirstlane(i32 %x)", np.full(wave, x[0])),
        ("i32 @llvm.amdgcn.writelane(i32 7, i32 3, i32 %x)", np.where(i == 3, 7, x)),
        ("i32 @llvm.amdgcn.mbcnt.lo(i32 -1, i32 %x)", x + np.minimum(i, 32).astype(np.uint32)),
        ("i32 @llvm.amdgcn.perm(i32 %x, i32 %i, i32 50462976)", i),
        ("i32 @llvm.amdgcn.ubfe.i32(i32 %x, i32 3, i32 9)", x >> 3 & 511),
        ("i32 @llvm.amdgcn.sbfe.i32(i32 %x, i32 3, i32 9)", ((x >> 3 & 511).astype(np.int32) ^ 256) - 256),
        ("i32 @llvm.amdgcn.sad.u8(i32 %x, i32 %i, i32 1)",
         1 + sum(np.abs((x >> 8 * n & 255).astype(int) - (i >> 8 * n & 255)) for n in range(4))),
    ]
    target = np.zeros(wave, np.uint32)
    for lane in range(wave):
        target[x[lane] // 4 % wave] = lane
    cases.append(("i32 @llvm.amdgcn.ds.permute(i32 %x, i32 %i)", target))
    if wave == 32:
        selects = [1985229328 >> 4 * n & 15 for n in range(8)] + [(-19088744 & 0xFFFFFFFF) >> 4 * n & 15 for n in range(8)]
        pick = row + np.array(selects)[at]
        eight = (i & ~7) + np.array([3450 >> 3 * n & 7 for n in range(8)])[i & 7]
        cases += [("i32 @llvm.amdgcn.permlane16.i32(i32 %i, i32 %x, i32 1985229328, i32 -19088744, i1 false, i1 true)", x[pick]),
                  ("i32 @llvm.amdgcn.permlanex16.i32(i32 %i, i32 %x, i32 1985229328, i32 -19088744, i1 true, i1 false)",
                   x[pick ^ 16]),
                  ("i32 @llvm.amdgcn.mov.dpp8.i32(i32 %x, i32 3450)", x[eight])]
    for (call, want), got in zip(cases, results(gen, "i32", [c for c, _ in cases], x), strict=True):
        assert np.array_equal(got, np.asarray(want).astype(np.int64).astype(np.uint32)), call


@pytest.mark.parametrize("gen", GENS)
def test_numbers(gen: Gen) -> None:
    wave = 64 if gen in ("gfx90a", "gfx942") else 32
    x = np.resize(numbers("f32", 32, np.random.default_rng(8)), wave).astype(np.float32)
    x[:4] = (1.5, -0.3, 1e30, 65504.0)
    calls = ["float @llvm.amdgcn.fmed3.f32(float %x, float 1.0, float 3.0)", "float @llvm.ldexp.f32.i32(float %x, i32 -130)",
             "<2 x half> @llvm.amdgcn.cvt.pkrtz(float %x, float 2.0)",
             "float @llvm.amdgcn.cubeid(float %x, float 1.0, float -2.0)",
             "float @llvm.amdgcn.frexp.mant.f32(float %x)", "i32 @llvm.amdgcn.frexp.exp.i32.f32(float %x)"]
    got = results(gen, "float", calls, x)
    with np.errstate(all="ignore"):
        finite = np.isfinite(x)
        assert np.array_equal(got[0][~np.isnan(x)], np.clip(x, 1, 3)[~np.isnan(x)])
        assert same(got[1], (x.astype(np.float64) * 2.0 ** -130).astype(np.float32), "f32").all()
        half = (got[2] & 0xFFFF).astype(np.uint16).view(np.float16)
        near = x.astype(np.float16)
        step = np.where(np.abs(near.astype(np.float64)) > np.abs(x), np.nextafter(near, np.float16(0)), near)
        assert same(half[finite], step[finite].astype(np.float16), "f16").all() and (got[2] >> 16 == 0x4000).all()
        ordered = ~np.isnan(x)
        assert np.array_equal(got[3][ordered], np.where(np.abs(x) > 2, np.where(x < 0, 1, 0), 5)[ordered])
        mantissa, exponent = np.frexp(x)
        assert same(got[4][finite], mantissa[finite], "f32").all()
        assert np.array_equal(got[5][finite].view(np.int32), exponent[finite])


@pytest.mark.parametrize("gen", ("gfx942", "gfx1201"))
def test_8_bit_floats(gen: Gen) -> None:
    from devrt.virtual.amd.translate import fp8
    wave = 64 if gen == "gfx942" else 32
    rng = np.random.default_rng(9)
    x = (rng.standard_normal(wave) * 2.0 ** rng.integers(-9, 7, wave)).astype(np.float32)
    for kind in ("fp8", "bf8"):
        calls = [f"i32 @llvm.amdgcn.cvt.pk.{kind}.f32(float %x, float 1.0, i32 -1, i1 true)"]
        (packed,) = results(gen, "float", calls, x)
        form = fp8.FORMATS[gen, kind]
        table = np.array([fp8.number(n, form) for n in range(form.largest + 1)])
        for value, got in zip(x, packed, strict=True):
            code = got >> 16 & 255
            distance = np.abs(table - abs(float(value)))
            nearest = np.flatnonzero(distance == distance.min())
            best = nearest[0] if len(nearest) == 1 or nearest[0] % 2 == 0 else nearest[1]
            if abs(value) < table[-1]:
                assert code & 127 == best and got & 0xFFFF == 0xFFFF and (code >> 7 == (value < 0) or best == 0)


# ---------------------------------------------------------------------------------------------------------------------
# Workgroups

GRID = """
@tile = internal addrspace(3) global [1024 x i32] poison, align 16
declare i32 @llvm.amdgcn.workitem.id.x()
declare i32 @llvm.amdgcn.workitem.id.y()
declare i32 @llvm.amdgcn.workitem.id.z()
declare i32 @llvm.amdgcn.workgroup.id.x()
declare i32 @llvm.amdgcn.workgroup.id.y()
declare i32 @llvm.amdgcn.workgroup.id.z()
declare void @llvm.amdgcn.s.barrier()
define amdgpu_kernel void @grid(ptr addrspace(1) %o, i32 %sx, i32 %sy, i32 %sz, i32 %gx, i32 %gy) #0 {
  %x = call i32 @llvm.amdgcn.workitem.id.x()
  %y = call i32 @llvm.amdgcn.workitem.id.y()
  %z = call i32 @llvm.amdgcn.workitem.id.z()
  %u = call i32 @llvm.amdgcn.workgroup.id.x()
  %v = call i32 @llvm.amdgcn.workgroup.id.y()
  %w = call i32 @llvm.amdgcn.workgroup.id.z()
  %a = mul i32 %z, %sy
  %b = add i32 %a, %y
  %c = mul i32 %b, %sx
  %t = add i32 %c, %x
  %n1 = mul i32 %sx, %sy
  %n = mul i32 %n1, %sz
  %d = mul i32 %w, %gy
  %e = add i32 %d, %v
  %f = mul i32 %e, %gx
  %g = add i32 %f, %u
  %h = mul i32 %g, %n
  %i = add i32 %h, %t
  %p = getelementptr i32, ptr addrspace(3) @tile, i32 %t
  store i32 %i, ptr addrspace(3) %p
  fence syncscope("workgroup") release
  call void @llvm.amdgcn.s.barrier()
  fence syncscope("workgroup") acquire
  %last = sub i32 %n, 1
  %other = sub i32 %last, %t
  %q = getelementptr i32, ptr addrspace(3) @tile, i32 %other
  %r = load i32, ptr addrspace(3) %q
  %s = getelementptr i32, ptr addrspace(1) %o, i32 %i
  store i32 %r, ptr addrspace(1) %s
  ret void
}
attributes #0 = { "amdgpu-flat-work-group-size"="1,1024" }
"""


@pytest.mark.parametrize("gen", GENS)
@pytest.mark.parametrize(("groups", "size"), (((2, 3, 2), (5, 3, 2)), ((3, 1, 4), (20, 5, 3)), ((40, 1, 1), (256, 1, 1))))
def test_waves_barriers_and_ids(gen: Gen, groups: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    gpu = Emulator(gen)
    image = compile_ir('target triple = "amdgcn-amd-amdhsa"\n' + GRID, gen)
    n, count = int(np.prod(size)), int(np.prod(groups))
    out = gpu.alloc(4 * n * count)
    gpu.run(image, "grid", out.va.to_bytes(8, "little") + np.array([*size, *groups[:2]], np.int32).tobytes(), groups, size)
    want = (np.arange(count)[:, None] * n + np.arange(n)[::-1]).ravel()
    assert np.array_equal(out.array(np.int32), want)
    gpu.close()


@pytest.mark.parametrize("gen", ("gfx942", "gfx1100"))
def test_a_ragged_edge(gen: Gen) -> None:
    gpu = Emulator(gen)
    image = compile_ir('target triple = "amdgcn-amd-amdhsa"\n' + GRID, gen)
    out = gpu.alloc(4 * 3 * 64)
    gpu.run(image, "grid", out.va.to_bytes(8, "little") + np.array([64, 1, 1, 3, 1], np.int32).tobytes(), (3, 1, 1), (64, 1, 1),
            partial=(40, 1, 1))
    got = out.array(np.int32)
    assert np.array_equal(got[:128], np.concatenate([np.arange(64)[::-1], np.arange(64, 128)[::-1]]))
    assert not got[128 + 40:].any()
    gpu.close()


# ---------------------------------------------------------------------------------------------------------------------
# Faults

TOUCH = f"""{HEADER}
define amdgpu_kernel void @load({PARAMETERS}) {{
  %i = call i32 @llvm.amdgcn.workitem.id.x()
  %n = mul i32 %i, %size
  %p = getelementptr i8, ptr addrspace(1) %a, i32 %n
  %v = load i32, ptr addrspace(1) %p
  %q = getelementptr i32, ptr addrspace(1) %o, i32 %i
  store i32 %v, ptr addrspace(1) %q
  ret void
}}
define amdgpu_kernel void @add({PARAMETERS}) {{
  %i = call i32 @llvm.amdgcn.workitem.id.x()
  %n = mul i32 %i, %size
  %p = getelementptr i8, ptr addrspace(1) %a, i32 %n
  %v = atomicrmw add ptr addrspace(1) %p, i32 %i syncscope("agent") monotonic
  %q = getelementptr i32, ptr addrspace(1) %o, i32 %i
  store i32 %v, ptr addrspace(1) %q
  ret void
}}
"""


def touch(gpu: Emulator, name: str, o: int, a: int, size: int) -> None:
    gpu.run(compile_ir(TOUCH, gpu.gen), name, o.to_bytes(8, "little") + a.to_bytes(8, "little") + bytes(32)
            + size.to_bytes(4, "little"))


@pytest.mark.parametrize("gen", GENS)
def test_memory_faults_say_where(gen: Gen) -> None:
    gpu = Emulator(gen)
    o, a, fixed = gpu.alloc(4096), gpu.alloc(np.arange(1024, dtype=np.int32)), gpu.alloc(4096, Access.SYSTEM)

    def instruction(pc: int) -> str:
        return next(str(k.instruction(pc)) for k in gpu.executor.kernels.values() if k.instruction(pc) is not None)
    with pytest.raises(MemoryFault) as fault:
        touch(gpu, "load", o.va, a.va, 400)
    assert (fault.value.why, fault.value.access, fault.value.lane, fault.value.va) == ("not mapped", "read", 11, a.va + 4400)
    assert "load" in instruction(fault.value.pc)
    with pytest.raises(MemoryFault) as fault:
        touch(gpu, "load", fixed.va, a.va, 4)
    assert (fault.value.why, fault.value.access, fault.value.va) == ("read-only", "write", fixed.va)
    assert "store" in instruction(fault.value.pc)
    with pytest.raises(WaveFault) as wave:
        touch(gpu, "add", o.va, a.va, 3)
    assert (wave.value.kind, wave.value.lane) == ("misaligned", 1) and "atomic" in instruction(wave.value.pc)
    assert o.va % PAGE == 0
    touch(gpu, "load", o.va, a.va, 8)
    assert np.array_equal(o.array(np.int32)[:gpu.wave], 2 * np.arange(gpu.wave))
    gpu.close()


@pytest.mark.parametrize(("kind", "at", "words"), (
    ("hang", 4, [0xBF800000, 0xBFA0FFFF]),                                   # s_nop; s_branch -1
    ("trap", 0, [0xBF900002, 0xBFB00000]),                                   # s_trap 2
    ("missing wait", 8, [0xF4000002, 0xF8000000, 0xBE810000, 0xBFB00000]),   # s_load_b32 s0, s[4:5]; s_mov_b32 s1, s0
    ("illegal instruction", 4, [0xBF800000, 0xFFFFFFFF, 0xBFB00000]),
))
def test_waves_that_go_wrong(kind: str, at: int, words: list[int]) -> None:
    gpu = Emulator("gfx1100", budget=1000)
    entry = gpu.words(words)
    data = gpu.alloc(64)
    for _ in range(2):
        with pytest.raises(WaveFault) as fault:
            gpu.start(entry, user=(0, 0, 0, 0, data.va & 0xFFFFFFFF, data.va >> 32))
        assert (fault.value.kind, fault.value.pc, fault.value.lane) == (kind, entry + at, -1)
    gpu.start(gpu.words([0xBFB00000]))
    gpu.close()
