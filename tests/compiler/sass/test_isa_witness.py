"""The instruction set against nvdisasm: our text of our words, and of what ptxas writes for the kernels in ptx/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from devrt.compiler.sass.isa import GENERATIONS, assemble, decode, encode, text
from tests.compiler.sass import random_ptx, vendor
from tests.compiler.sass.words import words
from tests.witness import nvdisasm

PTX = sorted(Path(__file__).with_name("ptx").glob("*.ptx"))
LEFT_OUT = {(120, "RPCMOV")}  # half of the return address of a warp, by itself


def _compare(sm: int, seed: int) -> None:
    drawn = list(words(sm, seed))
    witness = nvdisasm.disassemble([word for _, word, _ in drawn], sm)
    wrong = []
    for n, ((_, word, _), theirs) in enumerate(zip(drawn, witness, strict=True)):
        ours = text(decode(word, 16 * n, sm), sm)
        if ours != theirs and "???" not in theirs:  # a register that nvdisasm has no name for
            wrong.append(f"{word:032x}: ours {ours!r}, nvdisasm {theirs!r}")
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("sm", GENERATIONS)
def test_forms(sm: int) -> None:
    """Every form with every modifier, the other fields drawn."""
    _compare(sm, seed=10)


@pytest.mark.slow
@pytest.mark.parametrize("sm", GENERATIONS)
def test_forms_often(sm: int) -> None:
    for seed in range(20, 40):
        _compare(sm, seed)


def _kernels(ptx: str, sm: int, level: int = 3) -> None:
    seen = 0
    for name, code in nvdisasm.code(vendor.ptxas(ptx, sm, level)):
        for n, theirs in enumerate(nvdisasm.disassemble(code, sm)):
            word = int.from_bytes(code[16 * n:16 * n + 16], "little")
            if (sm, re.sub(r"^@!?\w+ ", "", theirs).split(".")[0]) in LEFT_OUT:
                continue
            i = decode(word, 16 * n, sm)
            assert text(i, sm) == theirs, f"{name} at {16 * n:#x}: {word:032x}"
            assert encode(i, sm) == word, f"{name} at {16 * n:#x}: {theirs}"
            seen += 1
    assert seen


# Each file once, on generations that take turns
SOME = [(path, here[k % len(here)], 3) for k, path in enumerate(PTX)
        for here in [[sm for sm in GENERATIONS if sm >= vendor.since(path.read_text())]]]


def _name(value: object) -> str:
    return value.stem if isinstance(value, Path) else str(value)


@pytest.mark.parametrize(("path", "sm", "level"), SOME, ids=_name)
def test_what_ptxas_writes(path: Path, sm: int, level: int) -> None:
    _kernels(path.read_text(), sm, level)


@pytest.mark.parametrize("sm", GENERATIONS)
def test_random_code_of_ptxas(sm: int) -> None:
    _kernels(random_ptx.module(sm, sm, 120), sm)


@pytest.mark.slow
@pytest.mark.parametrize("sm", GENERATIONS)
def test_all_that_ptxas_writes(sm: int) -> None:
    for ptx in (path.read_text() for path in PTX):
        if sm >= vendor.since(ptx):
            for level in range(4):
                _kernels(ptx, sm, level)
    for seed in range(200, 220):
        _kernels(random_ptx.module(seed, sm, 60 + 20 * (seed % 8)), sm, 3 * (seed % 2))


@pytest.mark.parametrize(("line", "sm"), [
    ("@!P2 IADD3.X R4, P1, ~R5, R6, RZ, P0, !PT", 80), ("FFMA.FTZ R0, -R1, R2, c[0x0][0x160]", 86),
    ("LDS.U.64 R2, [R4.X8+0x20]", 75),
    ("SHFL.BFLY PT, R3, R4, 0x10, 0x1f", 89), ("STG.E.128 desc[UR4][R2.64+-0x10], R8", 90),
    ("LOP3.LUT P0, RZ, R1, 0x1, RZ, 0xc0, !PT", 90),
    ("BAR.RED.OR.DEFER_BLOCKING 0x4, 0x40, !P3", 90), ("REDG.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R5", 120),
    ("HFMA2.BF16_V2 R1, R2, 1, 0.5, -R3", 120), ("DEPBAR.LE SB0, 0x1", 80), ("RET.REL.NODEC R20 0x0", 90),
    ("@UP1 UMOV UR4, 0x400", 90),
])
def test_assembled(line: str, sm: int) -> None:
    assert nvdisasm.disassemble([encode(assemble(line, sm), sm)], sm) == [line]
