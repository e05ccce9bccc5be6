"""Misuse of convergence barriers on paths: nothing in what ptxas emits, and each barrier that a test takes away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from devrt.compiler.sass import convergence, reader
from devrt.compiler.sass.flow import FlowBlock
from devrt.compiler.sass.instruction import File, Instruction, Operand, Reg
from tests.compiler.sass.test_schedule import GENERATIONS
from tests.compiler.sass.vendor import ptxas, since, walked

SOURCES = sorted(Path(__file__).parent.glob("ptx/*.ptx"))


def kernels(sm: int, names: tuple[str, ...] = (), level: int = 3) -> dict[str, tuple[dict[int, FlowBlock], int]]:
    """The blocks and entries of ptxas's kernels of some files, or all."""
    chosen = [path for path in SOURCES if sm >= since(path.read_text()) and (not names or path.stem in names)]
    return {k.name: (walked(k), k.entry) for path in chosen
            for k in reader.read(ptxas(path.read_text(), sm, level)).kernels.values()}


@pytest.mark.parametrize(("sm", "level"), [(sm, 3 * (n % 2)) for n, sm in enumerate(GENERATIONS)])
def test_nothing_in_kernels_of_ptxas(sm: int, level: int) -> None:
    for name, (blocks, entry) in kernels(sm, ("control", "warp"), level).items():
        assert convergence.misuse(blocks, entry) == {}, name


@pytest.mark.slow
@pytest.mark.parametrize("sm", GENERATIONS)
@pytest.mark.parametrize("level", [0, 3])
def test_nothing_in_all_kernels_of_ptxas(sm: int, level: int) -> None:
    for name, (blocks, entry) in kernels(sm, (), level).items():
        assert convergence.misuse(blocks, entry) == {}, name


def other(i: Instruction) -> Instruction:
    """The instruction with barrier B15."""
    def put(o: Operand) -> Operand:
        return Operand(Reg(File.B, 15)) if isinstance(o.value, Reg) and o.value.file is File.B else o
    return replace(i, dsts=tuple(map(put, i.dsts)), srcs=tuple(map(put, i.srcs)))


def nothing(i: Instruction) -> Instruction:
    return Instruction("NOP", address=i.address)


@pytest.mark.parametrize("sm", GENERATIONS)
@pytest.mark.parametrize(("op", "change"), [("BSSY", nothing), ("BSSY", other), ("BSYNC", other)])
def test_what_is_taken_away(sm: int, op: str, change: Callable[[Instruction], Instruction]) -> None:
    seen = 0
    for name, (blocks, entry) in kernels(sm, ("control",)).items():
        for block in blocks.values():
            for n, i in enumerate(block.instructions):
                if i.op == op:
                    block.instructions[n] = change(i)
                    assert convergence.misuse(blocks, entry), f"{i} at {i.address:#x} of {name}"
                    block.instructions[n] = i
                    seen += 1
    assert seen > 2
