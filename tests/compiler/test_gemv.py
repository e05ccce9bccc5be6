"""One row times a matrix: every type of weights against NumPy, where sums of small integers are exact, and the lowering's
pieces: int4 elements in all the ways they are read, rows folded side by side, scales shared by the lanes."""

from __future__ import annotations

import numpy as np
import pytest

import devrt
from devrt import nn
from devrt.compiler import dtypes as dt
from devrt.compiler import interpreter, lir
from devrt.compiler.compile import lower
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Builder, Program, Reg
from devrt.compiler.llvm import amdgcn
from devrt.compiler.llvm.emit import varying_registers
from devrt.compiler.lowering.contract_plan import Tuning
from devrt.compiler.lowering.loops import Point
from devrt.compiler.lowering.reduction import along_lanes
from devrt.device import CompileError
from devrt.scheduler.plan import schedule
from tests.compiler.on_cpu import run_on_cpu
from tests.compiler.random_programs import aligned

SIZES = [(1, 1), (2, 7), (6, 64), (5, 65), (8, 129), (64, 768), (7, 1000), (4, 2049)]
HOST = Tuning(16, 32, 32 << 10, 1 << 20, 2)


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 8, shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [devrt.float32, devrt.float16, devrt.bfloat16, devrt.int8, devrt.int4], ids=str)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_against_numpy(n: int, k: int, dtype: DType) -> None:
    x, w = integers(1, k), integers(n, k, seed=1)
    weight = devrt.asarray(w).astype(dtype)
    weight.realize()
    y = nn.linear(devrt.asarray(x), weight.astype(devrt.float32))
    assert np.array_equal(y.numpy(), x @ w.T)


@pytest.mark.parametrize("dtype", [devrt.int8, devrt.int4], ids=str)
@pytest.mark.parametrize(("n", "k", "group"), [(6, 64, 32), (5, 192, 64), (8, 768, 128), (3, 96, 48), (4, 36, 12), (7, 15, 5)])
def test_groups_of_scales(n: int, k: int, group: int, dtype: DType) -> None:
    x, w = integers(1, k), integers(n, k, seed=1)
    scales = 2.0 ** np.random.default_rng(2).integers(-2, 3, (n, k // group)).astype(np.float32)
    codes = devrt.asarray(w).astype(dtype)
    codes.realize()
    y = nn.quantised_linear(devrt.asarray(x), codes, devrt.asarray(scales))
    assert np.array_equal(y.numpy(), x @ (w * np.repeat(scales, group, axis=1)).T)


def lowered(y: devrt.Array, machine: Tuning = HOST) -> Program:
    s, _ = schedule([y.node], devrt.open("cpu").properties)
    (launch,) = s.launches
    assert launch.kernel is not None
    return lower(launch.kernel, "k", machine)


def quantised(n: int, k: int, group: int) -> devrt.Array:
    codes = devrt.asarray(integers(n, k)).astype(devrt.int4)
    codes.realize()
    return nn.quantised_linear(devrt.asarray(integers(1, k)), codes, devrt.asarray(integers(n, k // group)))


def test_an_even_k_reads_pairs() -> None:
    def pairs(k: int) -> set[bool]:
        program = lowered(quantised(4, k, k))
        return {i.attrs["pairs"] for i in lir.walk(program.body) if i.op == "nibble"}
    assert pairs(128) == {True}
    assert pairs(129) == {False}


def test_a_group_s_scale_is_one_load_for_all_lanes() -> None:
    """Groups that are whole vectors: no index differs between lanes other than by counting on."""
    for k, group, alike in ((128, 32, True), (120, 24, False)):
        program = lowered(quantised(4, k, group))
        varying = varying_registers(program)
        assert any(i.op == "div" and i.args[0] in varying for i in lir.walk(program.body)) is not alike


def test_matrices_are_fetched_ahead_once_a_line() -> None:
    """64 int8 are a line: of the four vectors of a turn one fetches. Two rows at once: beyond both."""
    weight = devrt.asarray(integers(256, 512)).astype(devrt.int8)
    weight.realize()
    program = lowered(nn.linear(devrt.asarray(integers(1, 512)), weight.astype(devrt.float32)))
    ahead = [i.attrs["ahead"] for i in lir.walk(program.body) if i.op == "load" and i.out[0].dtype is dt.int8]
    assert len(ahead) % 4 == 0 and len([a for a in ahead if a]) == len(ahead) // 4
    assert set(ahead) == {0, 4096}


@pytest.mark.parametrize("lanes", [4, 16, 64])
@pytest.mark.parametrize("rows", [2, 4])
def test_rows_at_once_have_the_bits_of_one(rows: int, lanes: int) -> None:
    count = 200
    data = aligned(np.random.default_rng(0).standard_normal(rows * count).astype(np.float32))
    together, alone = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    interpreter.run(_sums(rows, count, lanes, at_once=True), {"x": data, "y": together})
    interpreter.run(_sums(rows, count, lanes, at_once=False), {"x": data, "y": alone})
    assert together.tobytes() == alone.tobytes()


def _sums(rows: int, count: int, lanes: int, *, at_once: bool) -> Program:
    b = Builder("sums", lanes=lanes, groups=1)
    x, y = b.param("x", dt.float32, rows * count), b.param("y", dt.float32, rows, writable=True)

    def term(at: Point, row: int) -> list[Reg]:
        return [b.load(x, b.add(at.k, b.idx(row * count)), at.mask)]

    def never(_: int) -> lir.Shared:
        raise AssertionError
    for first in range(0, rows, rows if at_once else 1):
        here = range(first, first + (rows if at_once else 1))

        def terms(at: Point, here: range = here) -> list[list[Reg]]:
            return [term(at, r) for r in here]
        totals = along_lanes(b, "sum", dt.float32, count, terms, never, rows=len(here))
        for r, total in zip(here, totals, strict=True):
            b.store(y, b.idx(r), total)
    return b.finish()


def nibbles(lanes: int, start: int, *, pairs: bool = False, stride: int = 1, count: int = 0) -> Program:
    """y[l] = element start + stride*l of x, masked to l < count where that is not 0."""
    b = Builder("nibbles", lanes=lanes, groups=1)
    x, y = b.param("x", dt.uint8, 64), b.param("y", dt.int8, lanes, writable=True)
    mask = b.lt(b.lane(), b.idx(count)) if count else None
    b.store(y, b.lane(), b.nibble(x, b.add(b.idx(start), b.mul(b.lane(), b.idx(stride))), mask, pairs=pairs))
    return b.finish()


@pytest.mark.parametrize("lanes", [2, 4, 8, 16, 64])
def test_nibbles(lanes: int) -> None:
    raw = aligned(np.random.default_rng(0).integers(0, 256, 64).astype(np.uint8))
    elements = np.stack([raw << 4, raw], axis=1).reshape(-1).view(np.int8) >> 4
    cases = [(0, True, 1, 0), (6, True, 1, 0), (2, True, 1, lanes - 1), (0, False, 1, 0), (3, False, 1, 0),
             (128 - lanes, False, 1, 0), (129 - lanes, False, 1, lanes - 1), (5, False, 0, 0), (1, False, 128 // lanes - 1, 0)]
    for start, pairs, stride, count in cases:
        want = np.zeros(lanes, np.int8)
        active = count or lanes
        want[:active] = elements[start + stride * np.arange(active)]
        for run in (interpreter.run, run_on_cpu):
            got = aligned(np.zeros(lanes, np.int8))
            run(nibbles(lanes, start, pairs=pairs, stride=stride, count=count), {"x": raw, "y": got})
            assert np.array_equal(got, want), f"{start} {pairs} {stride} {count} {run}"


def test_pairs_must_start_at_a_byte() -> None:
    with pytest.raises(CompileError, match="pairs start at an even index"):
        interpreter.run(nibbles(4, 1, pairs=True), {"x": np.zeros(64, np.uint8), "y": np.zeros(4, np.int8)})


def test_nibbles_are_of_bytes() -> None:
    b = Builder("wrong", lanes=4, groups=1)
    b.nibble(b.param("x", dt.int8, 4), b.lane())
    with pytest.raises(CompileError, match="nibble reads int8 from uint8"):
        b.finish()


def test_nibble_text() -> None:
    assert "nibble.pairs x[" in str(nibbles(4, 0, pairs=True))


@pytest.mark.parametrize("count", [0, 10])
def test_nibbles_compile_for_a_gpu(count: int) -> None:
    assert amdgcn.compile_program(nibbles(64, 0, pairs=True, count=count), amdgcn.target("gfx942"))
