"""Register allocation: what a function stores is the same with virtual and with real registers, however few there are."""

from __future__ import annotations

import pytest

from devrt.compiler.sass import mir
from devrt.compiler.sass.allocate import allocate
from devrt.compiler.sass.instruction import RZ, Address, File, Imm, Instruction, Label, Operand, Reg
from devrt.compiler.sass.liveness import analyse
from devrt.device import CompileError
from tests.compiler.sass.symbolic import random_function, run

PATHS = range(4)


def check(f: mir.Function, limit: int) -> mir.Function:
    """Allocates, and compares what is stored on some paths, and that every register is one that exists."""
    g = allocate(f, limit)
    for block in g.blocks:
        for i in block.instructions:
            for r in (*i.reads(), *i.writes()):
                assert not r.virtual and r.sub == 0
                assert r.index + r.words <= {File.R: limit, File.P: 7}.get(r.file, 63)
                assert r.index % (1 << (r.words - 1).bit_length()) == 0 or r.file is not File.R or r.words == 1
    for seed in PATHS:
        assert run(g, seed) == run(f, seed)
    return g


@pytest.mark.parametrize("seed", range(12))
def test_random_functions(seed: int) -> None:
    check(random_function(seed), 64)


@pytest.mark.parametrize("seed", range(12))
def test_random_functions_in_few_registers(seed: int) -> None:
    g = check(random_function(seed, live=24), 24)
    assert g.local_bytes % 4 == 0


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 300, 50))
def test_more_random_functions(first: int) -> None:
    for seed in range(first, first + 50):
        check(random_function(seed, blocks=3 + seed % 9, length=5 + seed % 20, live=10 + seed % 40), 16 + seed % 50)


def reg(*sources: Reg | int) -> tuple[Operand, ...]:
    return tuple(Operand(Imm(s)) if isinstance(s, int) else Operand(s) for s in sources)


def straight(f: mir.Function, *instructions: Instruction) -> mir.Function:
    f.blocks = [mir.Block("entry", [*instructions, Instruction("EXIT")])]
    return f


def test_few_registers_spill_and_many_do_not() -> None:
    f = random_function(1, live=24)
    assert allocate(f, 64).local_bytes == 0
    assert allocate(f, 24).local_bytes > 0


def test_copies_vanish() -> None:
    f = mir.Function("f", 90, 32)
    a, b, c = f.new(File.R), f.new(File.R), f.new(File.R)
    g = check(straight(f, Instruction("S2R", (), reg(a), reg(1)), Instruction("MOV", (), reg(b), reg(a)),
                       Instruction("MOV", (), reg(c), reg(b)), Instruction("STG", (), (), reg(c))), 8)
    assert [i.op for i in g.blocks[0].instructions] == ["S2R", "STG", "EXIT"]


def test_a_vector_is_put_together_in_place() -> None:
    f = mir.Function("f", 90, 32)
    parts, vector = [f.new(File.R) for _ in range(4)], f.new(File.R, 4)
    g = check(straight(f, *(Instruction("FADD", (), reg(p), reg(n, n)) for n, p in enumerate(parts)),
                       *(Instruction("MOV", (), reg(vector.part(n)), reg(p)) for n, p in enumerate(parts)),
                       Instruction("STG", ("E", "128"), (), reg(vector))), 8)
    assert "MOV" not in [i.op for i in g.blocks[0].instructions]


def test_loop_carried_copies_vanish() -> None:
    f = mir.Function("f", 90, 32)
    total, new, p = f.new(File.R), f.new(File.R), f.new(File.P)
    f.blocks = [mir.Block("entry", [Instruction("MOV", (), reg(total), reg(0))]),
                mir.Block("loop", [Instruction("FFMA", (), reg(new), reg(total, total, total)),
                                   Instruction("MOV", (), reg(total), reg(new)),
                                   Instruction("CHANCE", (), reg(p)),
                                   Instruction("BRA", (), (), (Operand(Label("loop")),), Operand(p))]),
                mir.Block("end", [Instruction("STG", (), (), reg(total)), Instruction("EXIT")])]
    g = check(f, 8)
    assert [i.op for i in g.blocks[1].instructions] == ["FFMA", "CHANCE", "BRA"]


def test_a_guarded_write_keeps_what_was() -> None:
    f = mir.Function("f", 90, 32)
    a, b, p = f.new(File.R), f.new(File.R), f.new(File.P)
    check(straight(f, Instruction("CHANCE", (), reg(p)), Instruction("S2R", (), reg(a), reg(1)),
                   Instruction("S2R", (), reg(b), reg(2)), Instruction("MOV", (), reg(a), reg(b), Operand(p)),
                   Instruction("STG", (), (), reg(b)), Instruction("STG", (), (), reg(a))), 8)


def test_complementary_writes_hold_nothing_before_them() -> None:
    f = mir.Function("f", 90, 32)
    a, p = f.new(File.R), f.new(File.P)
    straight(f, Instruction("CHANCE", (), reg(p)), Instruction("S2R", (), reg(a), reg(1), Operand(p)),
             Instruction("S2R", (), reg(a), reg(2), Operand(p, inv=True)), Instruction("STG", (), (), reg(a)))
    live = analyse(f)
    starts = [start for word, start, _ in live.intervals if live.names[word][1] == a.index]
    assert min(starts) == 4  # where the first S2R writes


def test_predicates_live_in_registers_where_there_are_too_many() -> None:
    f = mir.Function("f", 90, 32)
    flags = [f.new(File.P) for _ in range(12)]
    x = f.new(File.R)
    f = straight(f, *(Instruction("CHANCE", (), reg(p)) for p in flags), Instruction("S2R", (), reg(x), reg(0)),
                 *(Instruction("IADD3", (), reg(x), reg(x, n, RZ), Operand(p)) for n, p in enumerate(flags)),
                 *(Instruction("STG", (), (), reg(x), Operand(p, inv=True)) for p in flags))
    g = check(f, 24)
    assert {"SEL", "ISETP"} <= {i.op for i in g.blocks[0].instructions} and g.local_bytes == 0


def test_constants_are_made_again_and_not_stored() -> None:
    f = mir.Function("f", 90, 32)
    constants = [f.new(File.R) for _ in range(30)]
    f = straight(f, *(Instruction("MOV", (), reg(c), reg(n)) for n, c in enumerate(constants)),
                 *(Instruction("STG", (), (), reg(c)) for c in constants))
    assert check(f, 16).local_bytes == 0


def test_real_registers_stay_and_are_kept_clear_of() -> None:
    f = mir.Function("f", 90, 32)
    fixed, a = Reg(File.R, 0), f.new(File.R)
    g = check(straight(f, Instruction("S2R", (), reg(fixed), reg(1)), Instruction("S2R", (), reg(a), reg(2)),
                       Instruction("STG", (), (), (Operand(Address(None)), *reg(fixed, a)))), 8)
    first, second = (i.dsts[0].value for i in g.blocks[0].instructions[:2])
    assert first == fixed and second != fixed


def test_a_matrix_product_overwrites_no_operand_that_it_still_reads() -> None:
    f = mir.Function("f", 90, 32)
    a, b, c = f.new(File.R, 4), f.new(File.R, 2), f.new(File.R, 4)
    d = f.new(File.R, 4)
    g = check(straight(f, *(Instruction("LDG", ("E",), reg(x), reg(1)) for x in (a, b, c)),
                       Instruction("HMMA", ("16816", "F32"), reg(d), reg(a, b, c)), Instruction("STG", (), (), reg(d))), 16)
    product = next(i for i in g.blocks[0].instructions if i.op == "HMMA")
    assert isinstance(product.dsts[0].value, Reg) and isinstance(product.srcs[2].value, Reg)
    used = {o.value for o in product.srcs[:2]}
    assert product.dsts[0].value not in used and product.dsts[0].value == product.srcs[2].value


def test_too_few_registers_are_an_error() -> None:
    f = mir.Function("f", 90, 32)
    xs = [f.new(File.R, 4) for _ in range(3)]
    straight(f, *(Instruction("LDG", ("E",), reg(x), reg(1)) for x in xs), Instruction("HMMA", (), reg(xs[0]), reg(*xs)),
             Instruction("STG", (), (), reg(xs[0])))
    with pytest.raises(CompileError, match="registers"):
        allocate(f, 8)
    uniform = [f.new(File.UR) for _ in range(70)]
    straight(f, *(Instruction("R2UR", (), reg(u), reg(1)) for u in uniform),
             *(Instruction("STG", (), (), reg(u)) for u in uniform))
    with pytest.raises(CompileError, match="UR"):
        allocate(f, 64)


