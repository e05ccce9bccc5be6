"""Code for machines that are not here: every kind of kernel compiles for each named target, for the right machine and
without a single outside symbol. Whether it computes the right thing is checked where it can run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from devrt.compiler.compile import lower
from devrt.compiler.llvm import backend, target
from devrt.compiler.lowering.contract_plan import Tuning
from devrt.device import Unsupported
from devrt.registry import open
from devrt.scheduler.plan import schedule
from tests.compiler.test_lowering_lanes import EXPRESSIONS

KINDS = ("map", "map bf16", "map int4", "gather", "sum rows", "softmax", "sum columns", "gemm epilogue", "gemv",
         "gemv int4", "gemv int4 odd", "gemv int8 groups",
         "attention causal")
MNEMONICS = {"aarch64": "fmla", "x86-64-avx2": "vfmadd", "x86-64-avx512": "zmm", "x86-64-spr": "zmm"}


@pytest.mark.parametrize("name", MNEMONICS)
def test_objects_for(name: str) -> None:
    t = target.named(name)
    machine = Tuning(t.lanes, t.vector_registers, 32 << 10, 1 << 20, 4)
    text = ""
    for expression in KINDS:
        s, _ = schedule([EXPRESSIONS[expression]().node], open("cpu").properties)
        for launch in s.launches:
            assert launch.kernel is not None
            program = lower(launch.kernel, "entry", machine)
            elf = ELFFile(io.BytesIO(backend.compile_program(program, t)))
            assert elf["e_machine"] == ("EM_AARCH64" if name == "aarch64" else "EM_X86_64")
            symbols = elf.get_section_by_name(".symtab")
            outside = [x.name for x in symbols.iter_symbols() if x["st_shndx"] == "SHN_UNDEF" and x.name]
            assert not outside, f"{expression}: calls {outside}"
            assert any(x.name == "entry" and x["st_info"]["type"] == "STT_FUNC" for x in symbols.iter_symbols())
        text += backend.assembly(program, t)
    assert MNEMONICS[name] in text


def test_host_target_reports_what_the_cpu_has() -> None:
    flags = next(line for line in _cpuinfo() if line.startswith(("flags", "Features"))).split()
    t = target.host()
    for ours, theirs in (("avx2", "avx2"), ("avx512f", "avx512f"), ("avx512fp16", "avx512_fp16"), ("avx512bf16", "avx512_bf16"),
                         ("amx-tile", "amx_tile")):
        assert t.has(ours) == (theirs in flags), ours
    assert t.lanes == (16 if "avx512f" in flags else 8 if "avx2" in flags else 4)


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()


def test_unknown_target() -> None:
    with pytest.raises(Unsupported, match="no LLVM target"):
        target.named("z80")
