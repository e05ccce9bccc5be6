"""Code objects for AMD GPUs: every kind of kernel assembles for every target, whole and within the machine's limits."""

from __future__ import annotations

import io

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

import devrt
from devrt import nn
from devrt.array import Array
from devrt.compiler import compile as pipeline
from devrt.compiler import lir
from devrt.compiler.llvm import amdgcn
from devrt.device import CompileError, Properties, Unsupported
from devrt.scheduler.plan import schedule
from devrt.scheduler.simplify import resolve


def f32(*shape: int) -> Array:
    return devrt.asarray(np.zeros(shape, np.float32))


EXPRESSIONS = {
    "map": lambda: nn.gelu(f32(7, 33)),
    "trigonometry": lambda: devrt.sin(f32(100)),
    "double": lambda: devrt.exp(f32(50).astype(devrt.float64)) / 3.0,
    "narrow": lambda: (f32(40).astype(devrt.float16) * 2.0).astype(devrt.float8_e4m3),
    "integers": lambda: f32(9, 9).astype(devrt.int64) // 7,
    "softmax": lambda: nn.softmax(f32(9, 500)),
    "sum of columns": lambda: f32(500, 40).sum(axis=0),
    "long sum": lambda: f32(300000).sum(),
    "argmax": lambda: devrt.argmax(f32(3, 1000), axis=-1),
    "product": lambda: nn.gelu(f32(64, 100) @ f32(100, 70)),
    "attention": lambda: nn.attention(f32(1, 4, 32, 64), f32(1, 2, 32, 64), f32(1, 2, 32, 64), causal=True),
    "int4": lambda: nn.quantised_linear(f32(1, 64), devrt.zeros((40, 64), dtype=devrt.int4), f32(40, 2)),
    "gather": lambda: devrt.take(f32(20, 30), devrt.arange(7)),
}


def programs(gfx: str, name: str) -> list[lir.Program]:
    """The kernels of one expression in LIR, for one target."""
    wave, _ = amdgcn.TARGETS[gfx]
    p = Properties(gfx, "amd", gfx, 60, wave, 1 << 34, 64 << 10)
    tuning = pipeline.backend_for(p).tuning
    plan, _ = schedule(resolve([EXPRESSIONS[name]().node]), devrt.open("cpu").properties)
    return [pipeline.lower(x.kernel, pipeline.entry_name(x.kernel), tuning) for x in plan.launches if x.kernel is not None]


@pytest.mark.parametrize("gfx", amdgcn.TARGETS)
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_kernel_becomes_a_whole_code_object(gfx: str, name: str) -> None:
    for program in programs(gfx, name):
        elf = ELFFile(io.BytesIO(amdgcn.compile_program(program, amdgcn.target(gfx))))
        assert elf.header["e_machine"] == "EM_AMDGPU" and elf.header["e_type"] == "ET_REL"
        symbols = {s.name: s for s in elf.get_section_by_name(".symtab").iter_symbols()}
        assert program.name in symbols and symbols[f"{program.name}.kd"]["st_size"] == 64
        outside = [s.name for s in symbols.values() if s["st_shndx"] == "SHN_UNDEF" and s.name]
        assert not outside, outside
        descriptor = elf.get_section_by_name(".rodata").data()[symbols[f"{program.name}.kd"]["st_value"]:][:64]
        lds, private, kernarg = np.frombuffer(descriptor[:12], np.uint32)
        assert lds <= 64 << 10 and private == 0 and kernarg == 8 * len(program.params)


def test_what_is_refused() -> None:
    with pytest.raises(Unsupported, match="gfx803"):
        amdgcn.target("gfx803")
    (program,) = programs("gfx1100", "softmax")
    with pytest.raises(CompileError, match="32 lanes"):
        amdgcn.compile_program(program, amdgcn.target("gfx942"))


def test_assembly_names_the_target() -> None:
    (program,) = programs("gfx1100", "gather")
    text = amdgcn.assembly(program, amdgcn.target("gfx1100"))
    assert "gfx1100" in text and "s_endpgm" in text and "global_store" in text
