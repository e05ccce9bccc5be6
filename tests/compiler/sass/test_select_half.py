"""Packed arithmetic of float16 and bfloat16: the bits of LIR's interpreter, which rounds twice, of NumPy and of the CPU device,
for every number with the hard ones. What the code is made of."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import devrt
from devrt import nn
from devrt.compiler import convert, interpreter, lir
from devrt.compiler import dtypes as dt
from devrt.compiler.sass import backend, reader, target, verify
from devrt.compiler.sass.isa import decode, text
from devrt.compiler.sass.layout import layout
from devrt.compiler.sass.select import select
from tests.compiler.sass import random_ptx, vendor
from tests.compiler.sass.machine import Machine
from tests.compiler.sass.test_backend import counts, inner_loop, nvdisasm, plain, programs
from tests.witness import nvdisasm as witness

SMS = tuple(target.PARAMS)
PAIRED = [(sm, d) for sm in SMS for d in (dt.float16, dt.bfloat16) if sm >= 80 or d is dt.float16]
# Zeros, denormals and the least normal number, numbers whose sums and products with others are ties, halves of the last place of
# the greatest number, infinities, NaNs that are quiet or not, of either sign.
HARD = {
    dt.float16: [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x8400, 0x1000, 0x1400, 0x9401, 0x3800, 0x3BFF, 0x3C00, 0x3C01,
                 0xBC00, 0x3E00, 0x4C00, 0xCBFF, 0x6800, 0x7800, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x7C01, 0xFD55],
    dt.bfloat16: [0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x0080, 0x8080, 0x2000, 0x3B80, 0xBB81, 0x3F00, 0x3F7F, 0x3F80, 0x3F81,
                  0xBF80, 0x3FC0, 0x4300, 0xC37F, 0x7B80, 0x7E80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x7F81, 0xFFAA],
}
EACH = 8  # neighbours a lane


def numbers(d: dt.DType, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Each `every`th number with each hard one, as raw arrays; a number of elements that lanes share evenly."""
    hard = np.array(HARD[d], np.uint16)
    a = np.concatenate([np.arange(n % every, 1 << 16, every, dtype=np.uint16) for n in range(len(hard))])
    b = np.repeat(hard, (1 << 16) // every)
    return a.view(convert.storage_numpy(d)), b.view(convert.storage_numpy(d))


def program(d: dt.DType, count: int, one: bool = False) -> lir.Program:
    """Outputs by operation, of two arrays; `one`: of an array and one number."""
    b = lir.Builder("halves", lanes=32, groups=count // (32 * EACH))
    x, y = b.param("x", d, count), b.param("y", d, count)
    first = b.add(b.mul(b.group(), b.idx(32 * EACH)), b.mul(b.lane(), b.idx(EACH)))

    def rounded(r: lir.Reg) -> lir.Reg:
        return b.cast(b.cast(r, d), dt.float32)
    outs = {name: b.param(name, d, count, writable=True) for name in ("add", "sub", "mul", "max", "min", "neg", "chain", "moved")}
    for n in range(EACH):
        at = b.add(first, b.idx(n))
        p, q = b.cast(b.load(x, at), dt.float32), b.cast(b.load(y, b.idx(0) if one else at), dt.float32)
        results = {op: rounded(b.binary(op, p, q)) for op in ("add", "sub", "mul", "max", "min")}
        results["neg"] = b.neg(b.abs(p))
        results["chain"] = rounded(b.sub(b.abs(results["mul"]), b.neg(q)))
        for name, r in results.items():
            b.store(outs[name], at, b.cast(b.canon(r), d))
        b.store(outs["moved"], at, b.load(x, at))
    return b.finish()


def arrays(program: lir.Program, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    return {p.name: {"x": x, "y": y}.get(p.name, np.zeros(p.count, x.dtype)) for p in program.params}


def check(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    for name, values in want.items():
        a, b = values.view(np.uint16), got[name].view(np.uint16)
        bad = np.flatnonzero(a != b)
        x, y = want["x"].view(np.uint16), want["y"].view(np.uint16)
        assert not len(bad), [(name, *(hex(int(v[n])) for v in (x, y, a, b))) for n in bad[:5]]


def numpys(d: dt.DType, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """NumPy's results, ml_dtypes' for bfloat16; NaNs as they are stored."""
    if d is dt.bfloat16:
        bfloat = pytest.importorskip("ml_dtypes").bfloat16
        x, y = x.view(bfloat), y.view(bfloat)
    with np.errstate(all="ignore"):
        found = {"add": x + y, "sub": x - y, "mul": x * y, "neg": -abs(x)}
        nan = convert.encode(np.array([np.nan]), d).view(np.uint16)[0]
        return {name: np.where(v != v, nan, v.view(np.uint16)) for name, v in found.items()}


@pytest.mark.parametrize("every", [64, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("d", HARD, ids=str)
def test_every_number_with_the_hard_ones(d: dt.DType, every: int) -> None:
    x, y = numbers(d, every)
    p = program(d, len(x))
    want = arrays(p, x, y)
    interpreter.run(p, want)
    for name, values in numpys(d, x, y).items():
        np.testing.assert_array_equal(want[name].view(np.uint16), values, err_msg=name)
    for sm in [75, 80, 90] if every > 1 else SMS:
        got = arrays(p, x, y)
        Machine(select(p, target.SassTarget(sm)), p, got)
        check(got, want)


@pytest.mark.parametrize("sm, d", [pytest.param(sm, d, id=f"{sm}-{d}", marks=[] if sm == 90 else pytest.mark.slow)
                                   for sm, d in PAIRED])
def test_the_bits_of_the_cpu(sm: int, d: dt.DType) -> None:
    """Through the encoder, the driver and the emulator."""
    x, y = numbers(d, 16 if sm == 90 else 1)
    found = []
    for uri in ("cpu", f"virtual:nvidia/sm_{sm}?seed={16 * sm + d.exponent}"):
        a, b = (devrt.asarray(v, device=uri) for v in (x, y)) if d is dt.float16 else \
            (devrt.bitcast(devrt.asarray(v, device=uri), devrt.bfloat16) for v in (x, y))
        results = [a + b, a - b, a * b, devrt.maximum(a, b), devrt.minimum(a, b), -a, nn.relu(a), devrt.abs(a) * 0.5 - b]
        devrt.realize(*results)
        found.append([r._raw().copy() for r in results])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(theirs.view(np.uint16), ours.view(np.uint16))


@pytest.mark.parametrize("sm", [75, 80])
def test_one_number_for_both_halves(sm: int) -> None:
    x, _ = numbers(dt.float16, 1024)
    p = program(dt.float16, len(x), one=True)
    for bits in HARD[dt.float16][::3]:
        y = np.full(len(x), bits, np.uint16).view(np.float16)
        want, got = arrays(p, x, y), arrays(p, x, y)
        interpreter.run(p, want)
        Machine(select(p, target.SassTarget(sm)), p, got)
        check(got, want)


def test_constants_of_either_sign() -> None:
    """As max and min of sm_75 take zeros, and as the operand that only one place of an instruction can hold."""
    for sm, d in ((75, dt.float16), (80, dt.bfloat16), (90, dt.bfloat16)):
        x, y = numbers(d, 2048)
        b = lir.Builder("constants", lanes=32, groups=len(x) // 64)
        source, _ = b.param("x", d, len(x)), b.param("y", d, len(x))
        first = b.add(b.mul(b.group(), b.idx(64)), b.mul(b.lane(), b.idx(2)))
        for value in (0.0, -0.0, 1.5, -2.0, float("inf"), 1e-3):
            for op in ("add", "sub", "mul", "max", "min"):
                out = b.param(f"{op}_{value}", d, len(x), writable=True)
                for n in range(2):
                    at = b.add(first, b.idx(n))
                    operands = b.const(dt.float32, value), b.cast(b.load(source, at), dt.float32)
                    b.store(out, at, b.cast(b.canon(b.cast(b.cast(b.binary(op, *operands), d), dt.float32)), d))
        p = b.finish()
        want, got = arrays(p, x, y), arrays(p, x, y)
        interpreter.run(p, want)
        f = select(p, target.SassTarget(sm))
        Machine(f, p, got)
        check(got, want)
        ops = collections.Counter(i.op for block in f.blocks for i in block.instructions)
        assert (ops["FADD"], ops["FMUL"], ops["FMNMX"]) == (4, 2, 4), "1e-3, which the type has not, in float32"


def of(d: dt.DType) -> Iterator[devrt.Array]:
    while True:
        yield devrt.zeros((1 << 14,), dtype=d).realize()


@pytest.mark.parametrize("sm, d", [pytest.param(sm, d, id=f"{sm}-{d}") for sm, d in PAIRED if sm in (75, 80, 90)])
def test_what_loops_are_made_of(sm: int, d: dt.DType, tmp_path: Path) -> None:
    """Two instructions for eight numbers' operation, two for their NaNs; nvdisasm reads the same."""
    a, b, c = (x for x, _ in zip(of(d), range(3), strict=False))
    mark = "" if d is dt.float16 else ".BF16_V2"
    (p,) = programs(sm, (a + b) * c)
    loop = counts(inner_loop(backend.machine_code(p, target.SassTarget(sm)), "STG"))
    if mark and sm < 90:
        assert loop[f"HFMA2{mark}"] == 8
    else:
        assert loop[f"HADD2{mark}"] == loop[f"HMUL2{mark}"] == 4
    assert loop.total() == 27 and loop["LOP3.LUT"] == loop["HSET2.NAN.AND" if sm < 80 else f"HMNMX2{mark}"] == 4
    (p,) = programs(sm, nn.relu(a * 0.5 - b))
    f = backend.machine_code(p, target.SassTarget(sm))
    assert not {"F2F", "F2FP", "PRMT", "FADD", "SEL"} & {i.op for i in inner_loop(f, "STG")}
    ours = [plain(text(i)) for i in layout(f)]
    theirs = nvdisasm(backend.compile_program(p, target.SassTarget(sm)), tmp_path)
    assert [line for line in ours if line.startswith("H")] == [line for line in theirs if line.startswith("H")] != []


@pytest.mark.parametrize("sm", [75, 90])
def test_what_is_no_operation_on_pairs(sm: int) -> None:
    """A fma is float32's, rounded; pairs go into it by their halves, and come out by one conversion."""
    a, b, c = (x for x, _ in zip(of(dt.float16), range(3), strict=False))
    wide = (x.astype(devrt.float32) for x in (a + b, b, c))
    (p,) = programs(sm, devrt.fma(*wide).astype(devrt.float16))
    loop = counts(inner_loop(backend.machine_code(p, target.SassTarget(sm)), "STG"))
    assert loop["FFMA"] == 8 and loop["HADD2"] == 4 and loop["HADD2.F32"] == 24
    assert not loop["HFMA2"] and not loop["FADD"] and not loop["PRMT"] - (4 if sm == 75 else 0)
    assert loop["F2FP.F16.F32.PACK_AB"] == (4 if sm == 90 else 0)


def test_what_branches_stands_between_loads_and_stores() -> None:
    """The quotient's rare case: eight numbers come and go at once all the same, and the product is of pairs."""
    a, b, _ = (x for x, _ in zip(of(dt.bfloat16), range(3), strict=False))
    (p,) = programs(90, nn.silu(a) * b)
    code = [i for block in backend.machine_code(p, target.SassTarget(90)).blocks for i in block.instructions]
    count = counts(code)
    assert (count["LDG.E.128.CONSTANT"], count["STG.E.128"], count["HMUL2.BF16_V2"], count["MUFU.RCP"]) == (2, 1, 4, 8)
    assert not any("U16" in i.mods for i in code)


def test_a_number_that_all_read_is_loaded_once() -> None:
    a, b, _ = (x for x, _ in zip(of(dt.float16), range(3), strict=False))
    (p,) = programs(90, a * devrt.zeros((1,), dtype=dt.float16).realize() + b)
    loop = counts(inner_loop(backend.machine_code(p, target.SassTarget(90)), "STG"))
    assert loop["LDG.E.U16.CONSTANT"] == 1 and not loop["PRMT"]


@pytest.mark.parametrize("sm, count", [pytest.param(sm, n, id=f"{sm}-{n}", marks=[] if n == 1 else pytest.mark.slow)
                                       for sm in SMS for n in (1, 60)])
def test_packed_code_of_ptxas(sm: int, count: int) -> None:
    """It keeps to our latencies, and nvdisasm prints it as we do."""
    for seed in range(sm, sm + count):
        image = vendor.ptxas(random_ptx.module(seed, sm, 150, halves=True), sm)
        for k in reader.read(image).kernels.values():
            assert verify.hazards(vendor.walked(k), k.entry, k.sm) == {}
        ((_, code),) = witness.code(image)
        theirs = witness.disassemble(code, sm)
        ours = [text(decode(int.from_bytes(code[n:n + 16], "little"), n, sm), sm) for n in range(0, len(code), 16)]
        assert [x for x in ours if "H" in x.split()[0]] == [x for x in theirs if "H" in x.split()[0]]


def test_tiles_of_a_product_are_rounded_in_pairs() -> None:
    """Their rows and columns are computed anew for each element, from quotients of the lane."""
    half = devrt.zeros((1024, 1024), dtype=devrt.bfloat16).realize()
    with devrt.fast():
        (p,) = programs(90, half @ half.T)
    count = counts([i for block in backend.machine_code(p, target.SassTarget(90)).blocks for i in block.instructions])
    assert count["F2FP.BF16.F32.PACK_AB"] == count["STG.E"] == 16 and not count["SEL"] and not count["PRMT"]
