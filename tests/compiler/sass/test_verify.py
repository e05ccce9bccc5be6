"""The verifier of waits: it finds nothing in what ptxas emits, and each wait or cycle that is taken out of devrt's code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from devrt.compiler.sass import flow, reader, verify
from devrt.compiler.sass.allocate import allocate
from devrt.compiler.sass.control import control
from devrt.compiler.sass.instruction import PT, RZ, TRUE, Address, Control, File, Imm, Instruction, Label, Operand, Reg
from devrt.compiler.sass.latency import least_stall
from devrt.compiler.sass.layout import layout
from devrt.compiler.sass.schedule import order
from tests.compiler.sass import random_ptx
from tests.compiler.sass.symbolic import random_function
from tests.compiler.sass.test_schedule import GENERATIONS, compiled, product, symbolic
from tests.compiler.sass.vendor import ptxas, since, walked

SOURCES = sorted(Path(__file__).parent.glob("ptx/*.ptx"))


def check(image: bytes) -> None:
    for k in reader.read(image).kernels.values():
        assert verify.hazards(walked(k), k.entry, k.sm) == {}, k.name


@pytest.mark.parametrize("n, path", list(enumerate(SOURCES)), ids=[path.stem for path in SOURCES])
def test_nothing_in_kernels_of_ptxas(n: int, path: Path) -> None:
    possible = [sm for sm in GENERATIONS if sm >= since(path.read_text())]
    check(ptxas(path.read_text(), possible[n % len(possible)]))


@pytest.mark.slow
@pytest.mark.parametrize("sm", GENERATIONS)
def test_nothing_in_all_kernels_of_ptxas(sm: int) -> None:
    for path in SOURCES:
        if sm >= since(path.read_text()):
            check(ptxas(path.read_text(), sm))


@pytest.mark.parametrize("sm", GENERATIONS)
def test_nothing_in_code_without_a_schedule(sm: int) -> None:
    """What ptxas -O0 writes takes no scoreboard: with a stall of 0 an instruction is over before the next begins."""
    text = next(path for path in SOURCES if path.stem == "memory").read_text()
    for k in reader.read(ptxas(text, sm, 0)).kernels.values():
        blocks = walked(k)
        assert all(i.control == Control(0, True) for b in blocks.values() for i in b.instructions if i.op not in ("LDS", "NOP"))
        assert verify.hazards(blocks, k.entry, sm) == {}
        for b in blocks.values():
            b.instructions[:] = [replace(i, control=Control(1)) for i in b.instructions]
        assert verify.hazards(blocks, k.entry, sm)


@pytest.mark.slow
@pytest.mark.parametrize("sm", GENERATIONS)
def test_nothing_in_any_code_without_a_schedule(sm: int) -> None:
    for path in SOURCES:
        if sm >= since(path.read_text()):
            for k in reader.read(ptxas(path.read_text(), sm, 0)).kernels.values():
                assert verify.hazards(walked(k), k.entry, sm) == {}, (path.stem, k.name)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_in_random_kernels_of_ptxas(seed: int) -> None:
    check(ptxas(random_ptx.module(seed, GENERATIONS[seed % 6], 120), GENERATIONS[seed % 6]))


@pytest.mark.slow
@pytest.mark.parametrize("sm", GENERATIONS)
def test_nothing_in_more_random_kernels_of_ptxas(sm: int) -> None:
    for seed in range(100, 140):
        check(ptxas(random_ptx.module(seed, sm, 60 + 20 * (seed % 8)), sm))


# ---------------------------------------------------------------------------------------------------------------------
# Mutations

def without(code: list[Instruction], n: int, **changes: int) -> list[Instruction]:
    return [*code[:n], replace(code[n], control=replace(code[n].control, **changes)), *code[n + 1:]]


def hazards(code: list[Instruction], sm: int) -> dict[int, str]:
    return verify.hazards(flow.blocks_of(code), 0, sm)


@pytest.mark.parametrize("sm", GENERATIONS)
def test_waits_that_are_taken_out_are_found(sm: int) -> None:
    code = layout(compiled(product(sm, side=4, steps=2), 64))
    waits = [(n, board) for n, i in enumerate(code) for board in range(6) if i.control.wait >> board & 1]
    assert hazards(code, sm) == {} and waits
    for n, board in waits:
        assert hazards(without(code, n, wait=code[n].control.wait & ~(1 << board)), sm), f"scoreboard {board} of {code[n]}"


@pytest.mark.parametrize("sm", GENERATIONS)
def test_most_waits_of_random_code_are_needed(sm: int) -> None:
    """Not all: what is read and then written in the same queue needs none, which the scheduler does not make use of."""
    code = layout(symbolic(random_function(sm, generation=sm), 32))
    waits = [n for n, i in enumerate(code) if i.control.wait]
    assert hazards(code, sm) == {} and len(waits) > 4
    assert sum(bool(hazards(without(code, n, wait=0), sm)) for n in waits) > 0.7 * len(waits)


@pytest.mark.parametrize("sm", GENERATIONS)
def test_scoreboards_that_are_not_taken_are_found(sm: int) -> None:
    code = layout(compiled(product(sm, side=4, steps=2), 64))
    for n, i in enumerate(code):
        if i.control.write < 6:
            code = without(code, n, write=7)
    found = hazards(code, sm)
    assert len(found) > 8 and all("under no scoreboard" in text for text in found.values())


@pytest.mark.parametrize("sm", GENERATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_every_stall_that_is_shortened_is_found(sm: int, seed: int) -> None:
    """In straight code every cycle is needed."""
    f = random_function(seed, blocks=2, length=80, generation=sm)
    f.blocks = [f.blocks[1]]
    f.blocks[0].instructions[:] = [i for i in f.blocks[0].instructions if i.op not in ("LDG", "CHANCE")]
    code = layout(control(order(allocate(f, 64))))
    assert hazards(code, sm) == {}
    shortened = 0
    for n, i in enumerate(code):
        if i.control.stall > max(2, least_stall(i)) and i.op != "BRA":
            assert hazards(without(code, n, stall=i.control.stall - 1), sm), f"{i} at {n}"
            shortened += 1
    assert shortened > 2


# ---------------------------------------------------------------------------------------------------------------------
# One of each

def reg(*sources: Reg | int) -> tuple[Operand, ...]:
    return tuple(Operand(Imm(s)) if isinstance(s, int) else Operand(s) for s in sources)


def r(index: int, words: int = 1) -> Reg:
    return Reg(File.R, index, words)


def p(index: int) -> Reg:
    return Reg(File.P, index)


def add(d: int, a: int, stall: int = 1, guard: Operand = TRUE, **fields: int) -> Instruction:
    return Instruction("FADD", (), reg(r(d)), reg(r(a), r(a)), guard, Control(stall, **fields))


def load(d: int, at: int, guard: Operand = TRUE, **fields: int) -> Instruction:
    return Instruction("LDG", ("E",), reg(r(d)), (Operand(Address(r(at, 2))),), guard, Control(**{"stall": 2, **fields}))


def store(at: int, x: int, **fields: int) -> Instruction:
    return Instruction("STG", ("E",), (), (Operand(Address(r(at, 2))), *reg(r(x))), control=Control(**{"stall": 2, **fields}))


def shared(d: int, **fields: int) -> Instruction:
    return Instruction("LDS", (), reg(r(d)), (Operand(Address(r(2))),), control=Control(**{"stall": 2, **fields}))


def depbar(board: int, count: int, *others: int) -> Instruction:
    return Instruction("DEPBAR", ("LE",), (), (Operand(Reg(File.SB, board)), *reg(count, *others)), control=Control(4))


def compare(d: int, a: int, stall: int) -> Instruction:
    return Instruction("ISETP", ("LT", "AND"), reg(p(d), PT), reg(r(a), 5, PT), control=Control(stall, stall > 11))


def branch(target: int, guard: Operand = TRUE, stall: int = 5) -> Instruction:
    return Instruction("BRA", (), (), (Operand(Label(target)),), guard, Control(stall))


EXIT = Instruction("EXIT", control=Control(5))

GOOD: dict[str, list[Instruction]] = {
    "a result that is there": [add(0, 1, 4), add(2, 0)],
    "a load that is waited for": [load(4, 2, write=0), add(5, 4, wait=1)],
    "an address that has been read": [store(2, 4, read=1), add(2, 1, wait=2)],
    "a store behind it in the queue": [store(2, 4), store(6, 7, read=1), add(4, 1, wait=2)],
    "two loads under one scoreboard": [load(4, 2, write=0), load(5, 2, write=0), add(6, 4, wait=1), add(7, 5)],
    "DEPBAR": [load(4, 2, write=0), depbar(0, 0), add(5, 4)],
    "DEPBAR of a set": [load(4, 2, write=3), depbar(0, 0, 0b1000), add(5, 4)],
    "DEPBAR of the first of two": [shared(4, write=0), shared(5, write=0), depbar(0, 1), add(6, 4), add(7, 5, wait=1)],
    "DEPBAR of two of three": [shared(4, write=1), shared(5, write=1), shared(6, write=1), depbar(1, 1), add(7, 4), add(8, 5)],
    "DEPBAR of one of two ways": [compare(0, 1, 13), shared(4, write=0), branch(0x40, Operand(p(0))), shared(5, write=0),
                                  shared(6, write=0), depbar(0, 1), add(7, 4)],
    "a stall of 0": [load(4, 2, stall=0), add(5, 4, 0), add(6, 5, 0), store(2, 6, stall=0), add(2, 1)],
    "a stall of 0 between them": [compare(0, 1, 1), add(5, 4, 0), add(2, 1, guard=Operand(p(0)))],
    "a stall of 0 over what comes": [load(4, 2, write=0), add(4, 1, 0, wait=1), add(5, 4)],
    "opposite guards": [load(4, 2, Operand(p(0)), write=0), add(2, 1, guard=Operand(p(0), inv=True))],
    "a guard that is there": [compare(0, 1, 13), add(2, 1, guard=Operand(p(0)))],
    "a predicate as an operand": [compare(0, 1, 4), Instruction("SEL", (), reg(r(2)), reg(r(1), RZ, p(0)))],
    "a load over a branch": [load(4, 2, write=0), branch(0x30), add(9, 8), add(5, 4, wait=1)],
    "another way": [compare(0, 1, 13), branch(0x40, Operand(p(0))), add(4, 1, 1), branch(0x50), add(4, 2, 4), add(5, 4)],
}
BAD: dict[str, tuple[list[Instruction], int, str]] = {
    "a result too early": ([add(0, 1, 3), add(2, 0)], 0x10, "reads R0 3 cycles after 0x0, whose result takes 4"),
    "a load that is not waited for": ([load(4, 2, write=0), add(5, 4)], 0x10, "reads R4, which 0x0 writes under scoreboard 0"),
    "another scoreboard": ([load(4, 2, write=0), add(5, 4, wait=2)], 0x10, "reads R4"),
    "no scoreboard": ([load(4, 2), add(5, 4, wait=63)], 0x10, "under no scoreboard"),
    "a result over a load's": ([load(4, 2, write=0), add(4, 1)], 0x10, "writes R4, which 0x0 writes"),
    "a load's over a result": ([add(4, 1, 1), load(4, 2, write=0)], 0x10, "writes R4 1 cycles after 0x0 wrote it"),
    "an address in use": ([store(2, 4, read=1), add(2, 1)], 0x10, "writes R2, which 0x0 reads under scoreboard 1"),
    "data in use": ([store(2, 4), add(4, 1)], 0x10, "writes R4, which 0x0 reads under no scoreboard"),
    "DEPBAR that leaves it": ([shared(4, write=0), shared(5, write=0), depbar(0, 2), add(6, 4)], 0x30, "reads R4"),
    "DEPBAR that leaves the second": ([shared(4, write=0), shared(5, write=0), depbar(0, 1), add(6, 5)], 0x30, "reads R5"),
    "DEPBAR of what has no order": ([load(4, 2, write=0), load(5, 2, write=0), depbar(0, 1), add(6, 4)], 0x30, "reads R4"),
    "DEPBAR of two queues": ([shared(4, write=0), load(5, 2, write=0), depbar(0, 1), add(6, 4)], 0x30, "reads R4"),
    "DEPBAR of another scoreboard": ([shared(4, write=0), shared(5, write=0), depbar(1, 1), add(6, 4)], 0x30, "reads R4"),
    "DEPBAR where one way has less": ([compare(0, 1, 13), shared(4, write=0), branch(0x40, Operand(p(0))), shared(5, write=0),
                                       depbar(0, 1), add(7, 4)], 0x50, "reads R4"),
    "a stall of 0 of another": ([load(4, 2, write=0), add(7, 6, 0), add(5, 4)], 0x20, "reads R4"),
    "a guard too early": ([compare(0, 1, 12), add(2, 1, guard=Operand(p(0)))], 0x10, "reads P0 12 cycles after 0x0"),
    "a scoreboard in the next cycle": ([load(4, 2, write=0, stall=1), add(5, 6, wait=1)], 0x10, "in the cycle after"),
    "a guard that changed": ([load(4, 2, Operand(p(0)), write=0), compare(0, 1, 13),
                              add(2, 1, guard=Operand(p(0), inv=True))], 0x20, "writes R2"),
    "one of two ways": ([compare(0, 1, 13), branch(0x40, Operand(p(0))), add(4, 1, 4), branch(0x50), add(4, 2, 3), add(5, 4)],
                        0x50, "reads R4 3 cycles after 0x40"),
    "the next round": ([add(5, 4), load(4, 2, write=0), branch(0, Operand(p(0)))], 0, "reads R4, which 0x10 writes"),
    "too short a loop": ([add(5, 5, 1), branch(0, Operand(p(0)), stall=2)], 0, "reads R5 3 cycles after 0x0"),
}


def placed(row: list[Instruction]) -> list[Instruction]:
    return [replace(i, address=16 * n) for n, i in enumerate([*row, EXIT])]


@pytest.mark.parametrize("name", GOOD)
def test_what_is_right(name: str) -> None:
    assert hazards(placed(GOOD[name]), 90) == {}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong(name: str) -> None:
    code, address, message = BAD[name]
    found = hazards(placed(code), 90)
    assert min(found) == address and message in found[address]
