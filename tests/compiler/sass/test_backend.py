"""From kernels to cubins: every kind of kernel for every generation, as nvdisasm reads it; what inner loops are made of."""

from __future__ import annotations

import collections
import importlib.util
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import devrt
from devrt.compiler import compile as pipeline
from devrt.compiler import convert, interpreter, lir
from devrt.compiler import dtypes as dt
from devrt.compiler.sass import backend, mir, target
from devrt.compiler.sass.instruction import Instruction
from devrt.compiler.sass.isa import text
from devrt.compiler.sass.layout import layout
from devrt.compiler.sass.select import select
from devrt.device import CompileError, Properties, Unsupported
from devrt.scheduler.plan import schedule
from devrt.scheduler.simplify import resolve
from tests.compiler.sass.machine import Machine
from tests.compiler.test_amdgcn import EXPRESSIONS
from tests.compiler.test_matrix_units import mma_program, random

SMS = tuple(target.PARAMS)


def backend_of(sm: int) -> pipeline.Backend:
    return pipeline.backend_for(Properties(f"sm_{sm}", "nvidia", f"sm_{sm}", 132, 32, 1 << 34, target.SHARED_BYTES[sm]))


def programs(sm: int, y: devrt.Array) -> list[lir.Program]:
    plan, _ = schedule(resolve([y.node]), devrt.open("cpu").properties)
    return [pipeline.lower(x.kernel, pipeline.entry_name(x.kernel), backend_of(sm).tuning) for x in plan.launches if x.kernel]


def nvdisasm(image: bytes, folder: Path) -> list[str]:
    """Its lines, spaces and targets of branches taken out; skips the test where there is none."""
    spec = importlib.util.find_spec("nvidia")
    tools = [Path(p) / "cu13" / "bin" / "nvdisasm" for p in (spec.submodule_search_locations or ()) if spec]
    tool = next((t for t in tools if t.exists()), None)
    if tool is None:
        pytest.skip("no nvdisasm (nvidia-cuda-nvdisasm)")
    path = folder / "kernel.cubin"
    path.write_bytes(image)
    done = subprocess.run([str(tool), "-plr", "-c", str(path)], capture_output=True, text=True, check=True)
    return [plain(line) for line in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", done.stdout)]


def plain(line: str) -> str:
    line = re.sub(r"(?<=\w )PT, PT, (?=.*,.*,)|(?<=P\d, )PT, ", "", line) if line.startswith(("IADD3", "@")) else line
    return re.sub(r"`\(.*?\)|0x[0-9a-f]+$", "L", line).replace(" ", "") if "BRA" in line else line.replace(" ", "")


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_kernels_are_what_nvdisasm_reads(name: str, tmp_path: Path) -> None:
    _compare(name, 90, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sm", [sm for sm in SMS if sm != 90])
def test_kernels_of_other_generations_are_what_nvdisasm_reads(sm: int, tmp_path: Path) -> None:
    for name in EXPRESSIONS:
        _compare(name, sm, tmp_path)


def _compare(name: str, sm: int, folder: Path) -> None:
    for program in programs(sm, EXPRESSIONS[name]()):
        t = target.SassTarget(sm)
        ours = [plain(text(i)) for i in layout(backend.machine_code(program, t))]
        theirs = nvdisasm(backend.compile_program(program, t), folder)
        end = len(ours) - next(n for n, line in enumerate(reversed(ours)) if line != "NOP")
        assert ours[:end] == theirs[:end] if sm < 100 else len(theirs) >= end


def inner_loop(f: mir.Function, op: str) -> list[Instruction]:
    """The block with the most instructions `op`."""
    return max((b.instructions for b in f.blocks), key=lambda code: sum(i.op == op for i in code))


def counts(code: list[Instruction]) -> collections.Counter[str]:
    return collections.Counter(".".join((i.op, *i.mods)) for i in code)


@pytest.mark.parametrize("sm", [80, 90])
def test_inner_loops_of_products_are_products(sm: int) -> None:
    a = devrt.zeros((1024, 1024)).realize()
    (program,) = programs(sm, a @ devrt.zeros((1024, 1024)).realize())
    f = backend.machine_code(program, target.SassTarget(sm))
    loop = counts(inner_loop(f, "FFMA"))
    assert loop["FFMA"] > 0.83 * loop.total() and loop["LDG.E.128.CONSTANT"] and loop["LDS.128"] and not loop["MOV"]


@pytest.mark.parametrize("b_along_k", [True, False])
def test_inner_loops_of_fast_products(b_along_k: bool) -> None:
    """8 warps share 128 x 256 of C; B comes by wide loads however it lies, and fragments before they are needed."""
    half = devrt.zeros((4096, 4096), dtype=devrt.bfloat16).realize()
    with devrt.fast():
        (program,) = programs(90, half @ (half.T if b_along_k else half))
    f = backend.machine_code(program, target.SassTarget(90))
    loop = inner_loop(f, "HMMA")
    count = counts(loop)
    assert program.lanes == 256 and count["HMMA.16816.F32.BF16"] == 64 > 0.58 * count.total() and not f.local_bytes
    assert count["LDG.E.128.CONSTANT"] == count["STS.128"] == 6 and count["BAR.SYNC.DEFER_BLOCKING"] == 1
    assert count["LDSM.16.M88.4"] + count["LDSM.16.MT88.4"] == 16 and count["LDSM.16.MT88.4"] == 8 * (not b_along_k)
    assert sum(i.op == "HMMA" and i.control.wait > 0 for i in loop) <= 6
    ops = [i.op for i in loop]  # products stand behind the first loads and the first stores alike
    assert ops[ops.index("HMMA"):].count("LDG") >= 2 and ops[ops.index("STS"):].count("HMMA") >= 8
    coming: set[int] = set()  # scoreboards of what is on its way from memory: nothing but its store waits for them
    for i in loop:
        assert i.op == "STS" or not any(i.control.wait >> board & 1 for board in coming)
        coming |= {i.control.write} if i.op == "LDG" else set()


def test_what_a_loop_does_not_change_stands_in_front_of_it() -> None:
    """A reciprocal, its branch and all, and the address but for one instruction."""
    b = lir.Builder("hoisted", lanes=32, groups=4)
    x, y = b.param("x", dt.float32, 1 << 16), b.param("y", dt.float32, 1 << 16, writable=True)
    divisor = b.load(x, b.group())

    def body(i: lir.Reg, _: list[lir.Reg]) -> list[lir.Reg]:
        at = b.add(b.mul(b.group(), b.idx(1024)), b.add(b.mul(i, b.idx(32)), b.lane()))
        b.store(y, at, b.mul(b.load(x, at), b.div(b.const(dt.float32, 1.0), divisor)))
        return []
    b.loop(0, 32, [], body)
    f = select(b.finish(), target.SassTarget(90))
    loop = inner_loop(f, "STG")
    assert counts(loop) == {"IMAD.WIDE": 2, "LDG.E.CONSTANT": 1, "FMUL": 1, "STG.E": 1, "IADD3": 1, "ISETP.LT.AND": 1, "BRA": 1}


def test_sums_stay_in_their_registers() -> None:
    """Around a loop and beside what the loop only reads."""
    b = lir.Builder("sums", lanes=32, groups=2)
    x, y = b.param("x", dt.float32, 64), b.param("y", dt.float32, 64, writable=True)
    at = b.add(b.mul(b.group(), b.idx(32)), b.lane())
    kept = b.load(x, at)
    other = b.mul(kept, b.const(dt.float32, 3.0))

    def body(i: lir.Reg, carried: list[lir.Reg]) -> list[lir.Reg]:
        first, second, third = carried
        near = b.fma(kept, first, other)  # must not overwrite what the next turn reads
        return [b.fma(near, second, first), first, b.add(b.fma(second, second, third), near)]
    b.store(y, at, b.canon(b.add(*b.loop(0, 5, [kept, b.const(dt.float32, 0.5), kept], body)[1:])))
    program = b.finish()
    values = np.linspace(-1, 1, 64, dtype=np.float32)
    want, got = ({"x": values, "y": np.zeros(64, np.float32)} for _ in range(2))
    interpreter.run(program, want)
    Machine(select(program, target.SassTarget(90)), program, got)
    np.testing.assert_array_equal(got["y"], want["y"])


def test_limits() -> None:
    b = lir.Builder("large", lanes=32, groups=1)
    b.shared("all", dt.float32, 1 << 16)
    with pytest.raises(CompileError, match="263168 bytes of shared memory"):
        backend.compile_program(b.finish(), target.target("sm_90"))
    b = lir.Builder("tables", lanes=32, groups=1)
    out = b.param("out", dt.int64, 32, writable=True)
    b.store(out, b.lane(), b.table(dt.int64, range(1 << 14), b.lane()))
    with pytest.raises(CompileError, match="bytes of constants"):
        backend.compile_program(b.finish(), target.target("sm_90"))
    with pytest.raises(Unsupported, match="sm_70"):
        target.target("sm_70")


def test_assembly_has_blocks_and_scheduled_lines() -> None:
    (program,) = programs(86, EXPRESSIONS["softmax"]())
    lines = backend_of(86).assembly(program).splitlines()
    assert lines[0] == "entry:" and lines[-1].strip() == "EXIT ;" and any("FMNMX.NAN" in line for line in lines)


@pytest.mark.parametrize(("sm", "dtype", "turned", "waves"), [
    (75, dt.float16, "", 1), (80, dt.float16, "a", 1), (90, dt.bfloat16, "b", 4), (75, dt.float16, "ab", 2)])
def test_products_of_tiles(sm: int, dtype: dt.DType, turned: str, waves: int) -> None:
    """Fragments lie where the layout says: in the order of the interpreter's sums the bits are the same."""
    program = mma_program(target.SassTarget(sm).matrix_units, dtype, turned=turned, waves=waves)
    arrays = {name: convert.encode(random(dtype, 512 * waves), dtype) for name in ("x", "y")}
    arrays |= {"c": random(dt.float32, 512 * waves).astype(np.float32), "out": np.zeros(512 * waves, np.float32)}
    want = {name: a.copy() for name, a in arrays.items()}
    interpreter.run(program, want)
    Machine(select(program, target.SassTarget(sm)), program, arrays)
    np.testing.assert_array_equal(arrays["out"], want["out"])
