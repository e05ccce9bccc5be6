"""Scheduling: the same is stored in the new order, every wait is in place, and a matrix product's loop loses no cycles."""

from __future__ import annotations

import itertools

import pytest

from devrt.compiler.sass import flow, mir, verify
from devrt.compiler.sass.allocate import allocate
from devrt.compiler.sass.control import control
from devrt.compiler.sass.instruction import PT, RZ, Address, File, Imm, Instruction, Label, Operand, Reg
from devrt.compiler.sass.isa.codec import decode
from devrt.compiler.sass.layout import assemble, layout
from devrt.compiler.sass.schedule import arrange, order, schedule
from tests.compiler.sass.symbolic import random_function, run

GENERATIONS = (75, 80, 86, 89, 90, 120)


def compiled(f: mir.Function, limit: int) -> mir.Function:
    return schedule(allocate(arrange(f, limit), limit))


def symbolic(f: mir.Function, limit: int) -> mir.Function:
    """The same for instructions that no generation has."""
    return control(order(allocate(arrange(f, limit), limit)))


def proven(f: mir.Function) -> list[Instruction]:
    """The laid out code, in which the verifier finds nothing missing."""
    code = layout(f)
    assert verify.hazards(flow.blocks_of(code), 0, f.sm) == {}
    return code


@pytest.mark.parametrize("seed", range(12))
def test_random_functions(seed: int) -> None:
    f = random_function(seed, generation=GENERATIONS[seed % 6])
    g = symbolic(f, 40)
    for path in range(4):
        assert run(g, path) == run(f, path)
    proven(g)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 250, 30))
def test_more_random_functions(first: int) -> None:
    for seed in range(first, first + 30):
        _one_more(seed)


def _one_more(seed: int) -> None:
    f = random_function(seed, blocks=3 + seed % 9, length=5 + seed % 20, live=10 + seed % 40, generation=GENERATIONS[seed % 6])
    g = symbolic(f, 24 + seed % 50)
    for path in range(8):
        assert run(g, path) == run(f, path)
    proven(g)


def reg(*sources: Reg | int) -> tuple[Operand, ...]:
    return tuple(Operand(Imm(s)) if isinstance(s, int) else Operand(s) for s in sources)


def product(sm: int, side: int = 8, steps: int = 4) -> mir.Function:
    """The inner loop of a matrix product: each lane keeps side x side sums, and reads side values of both sides at each step."""
    f = mir.Function("product", sm, 256)
    a_at, b_at, count, more, out = f.new(File.R), f.new(File.R), f.new(File.R), f.new(File.P), f.new(File.R, 2)
    sums = [[f.new(File.R) for _ in range(side)] for _ in range(side)]
    entry = [Instruction("MOV", (), reg(x), reg(n)) for n, x in enumerate((a_at, b_at, count, out.part(0), out.part(1)))]
    entry += [Instruction("MOV", (), reg(x), reg(RZ)) for row in sums for x in row]
    loop = []
    for step in range(steps):
        a, b = ([f.new(File.R, 4) for _ in range(side // 4)] for _ in range(2))
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            loop.append(Instruction("LDS", ("128",), reg(x), (Operand(Address(a_at, 512 * step + 16 * n)),)))
            loop.append(Instruction("LDS", ("128",), reg(y), (Operand(Address(b_at, 8192 + 512 * step + 16 * n)),)))
        loop += [Instruction("FFMA", (), reg(sums[i][j]), reg(a[i // 4].part(i % 4), b[j // 4].part(j % 4), sums[i][j]))
                 for i in range(side) for j in range(side)]
    loop += [Instruction("IADD3", (), reg(a_at), reg(a_at, 512 * steps, RZ)),
             Instruction("IADD3", (), reg(b_at), reg(b_at, 512 * steps, RZ)),
             Instruction("IADD3", (), reg(count), reg(count, 1, RZ)),
             Instruction("ISETP", ("LT", "AND"), reg(more, PT), reg(count, 64, PT)),
             Instruction("BRA", (), (), (Operand(Label("loop")),), Operand(more))]
    store = ("E", "SYS") if sm == 75 else ("E",)
    end = [Instruction("STG", store, (), (Operand(Address(out, 4 * (i * side + j))), *reg(sums[i][j])))
           for i in range(side) for j in range(side)]
    f.blocks = [mir.Block("entry", entry), mir.Block("loop", loop), mir.Block("end", [*end, Instruction("EXIT")])]
    return f


@pytest.mark.parametrize("sm", GENERATIONS)
def test_a_matrix_products_loop_loses_no_cycles(sm: int) -> None:
    f = product(sm)
    g = compiled(f, 128)
    assert g.local_bytes == 0
    proven(g)
    loop = g.blocks[1].instructions
    issued = sum(i.control.stall for i in loop)
    assert len(loop) == len(f.blocks[1].instructions)
    assert issued <= len(loop) + 10  # BRA's own cycles, and the predicate's in front of it
    # Every load but the first step's is issued long before it is waited for.
    cycle, taken, distances = 0, {}, []
    for i in loop:
        for board in [b for b in taken if i.control.wait >> b & 1]:
            distances.append(cycle - taken.pop(board))
        if i.control.write < 6:
            taken[i.control.write] = cycle
        cycle += i.control.stall
    assert sum(distance >= 26 for distance in distances) >= 3


def test_a_matrix_product_reads_the_banks_seldom() -> None:
    """Sources that the operand collector keeps, and no three in one bank, which would take a cycle more."""
    products = [i for i in compiled(product(90), 128).blocks[1].instructions if i.op == "FFMA"]
    kept = [any(o.reuse for o in i.srcs) for i in products]
    assert sum(kept) > 0.8 * len(products)
    conflicts = 0
    for before, i in itertools.pairwise(products):
        held = {(k, o.value) for k, o in enumerate(before.srcs) if o.reuse}
        read = {o.value.index % 2 for k, o in enumerate(i.srcs) if isinstance(o.value, Reg) and (k, o.value) not in held}
        count = sum((k, o.value) not in held for k, o in enumerate(i.srcs))
        conflicts += count == 3 and len(read) == 1
    assert conflicts <= 0.05 * len(products)


def test_loads_go_early_and_in_one_go() -> None:
    f = mir.Function("f", 90, 32)
    at, out = f.new(File.R, 2), f.new(File.R, 2)
    xs = [f.new(File.R) for _ in range(8)]
    body = [Instruction("MOV", (), reg(at.part(n)), reg(n)) for n in range(2)] + \
           [Instruction("MOV", (), reg(out.part(n)), reg(n)) for n in range(2)]
    for n, x in enumerate(xs):
        body += [Instruction("LDG", ("E", "CONSTANT"), reg(x), (Operand(Address(at, 4 * n)),)),
                 Instruction("FADD", (), reg(x), reg(x, x)),
                 Instruction("STG", ("E",), (), (Operand(Address(out, 4 * n)), *reg(x)))]
    f.blocks = [mir.Block("entry", [*body, Instruction("EXIT")])]
    g = compiled(f, 64)
    order = [i.op for i in g.blocks[0].instructions if i.op in ("LDG", "FADD")]
    assert order == ["LDG"] * 8 + ["FADD"] * 8
    proven(g)


def test_stores_and_loads_that_may_meet_keep_their_order() -> None:
    f = mir.Function("f", 90, 32)
    a, b, x, y = (f.new(File.R, 2) for _ in range(4))
    f.blocks = [mir.Block("entry", [
        *(Instruction("MOV", (), reg(r.part(n)), reg(n)) for r in (a, b, x) for n in range(2)),
        Instruction("STG", ("E", "64"), (), (Operand(Address(a, 0)), *reg(x))),
        Instruction("LDG", ("E", "64"), reg(y), (Operand(Address(b, 0)),)),
        Instruction("BAR", ("SYNC", "DEFER_BLOCKING"), (), reg(0)),
        Instruction("STG", ("E", "64"), (), (Operand(Address(a, 8)), *reg(y))), Instruction("EXIT")])]
    order = [i.op for i in compiled(f, 64).blocks[0].instructions if i.op != "MOV"]
    assert order == ["STG", "LDG", "BAR", "STG", "EXIT"]


def test_what_a_loop_leaves_open_is_waited_for_in_the_next_round() -> None:
    f = mir.Function("f", 90, 32)
    at, x, total, p = Reg(File.R, 2, 2), Reg(File.R, 4), Reg(File.R, 5), Reg(File.P, 0)
    load = Instruction("LDG", ("E",), reg(x), (Operand(Address(at, 0)),))
    f.blocks = [mir.Block("entry", [load]),
                mir.Block("loop", [Instruction("FADD", (), reg(total), reg(total, x)), load,
                                   Instruction("BRA", (), (), (Operand(Label("loop")),), Operand(p))]),
                mir.Block("end", [Instruction("STG", ("E",), (), (Operand(Address(at, 0)), *reg(total))), Instruction("EXIT")])]
    g = schedule(f)
    first = g.blocks[1].instructions[0]
    boards = {i.control.write for block in g.blocks for i in block.instructions if i.op == "LDG"}
    assert first.op == "FADD" and first.control.wait == sum(1 << board for board in boards)
    assert all(not i.control.wait for i in g.blocks[1].instructions[1:])
    proven(g)


def test_a_latency_that_reaches_over_a_branch_is_paid_in_front_of_it() -> None:
    f = mir.Function("f", 90, 32)
    p, x = Reg(File.P, 0), Reg(File.R, 4)
    f.blocks = [mir.Block("loop", [Instruction("FADD", (), reg(x), reg(x, x), Operand(p)),
                                   Instruction("ISETP", ("LT", "AND"), reg(p, PT), reg(x, 64, PT)),
                                   Instruction("BRA", (), (), (Operand(Label("loop")),))]),
                mir.Block("end", [Instruction("EXIT")])]
    g = schedule(f)
    assert sum(i.control.stall for i in g.blocks[0].instructions if i.op != "FADD") >= 13
    proven(g)


def test_long_latencies_take_nops() -> None:
    f = mir.Function("f", 80, 32)
    a, b, c, d = Reg(File.R, 0, 4), Reg(File.R, 4, 2), Reg(File.R, 8, 4), Reg(File.R, 12)
    f.blocks = [mir.Block("entry", [Instruction("HMMA", ("16816", "F32"), reg(c), reg(a, b, c)),
                                    Instruction("FADD", (), reg(d), reg(c.part(0), d)), Instruction("EXIT")])]
    g = control(order(f))
    assert [i.op for i in g.blocks[0].instructions] == ["HMMA", "NOP", "FADD", "EXIT"]
    assert all(i.control.stall <= 15 for i in g.blocks[0].instructions)
    proven(g)


def test_layout() -> None:
    f = mir.Function("f", 90, 32)
    p = Reg(File.P, 0)
    f.blocks = [mir.Block("a", [Instruction("NOP"), Instruction("BRA", (), (), (Operand(Label("c")),), Operand(p))]),
                mir.Block("b", [Instruction("NOP"), Instruction("BRA", (), (), (Operand(Label("c")),))]),
                mir.Block("c", [Instruction("BRA", (), (), (Operand(Label("a")),), Operand(p)), Instruction("EXIT")])]
    code = layout(order(f))
    assert [i.op for i in code] == ["NOP", "BRA", "NOP", "BRA", "EXIT", "BRA", "NOP", "NOP"]  # b goes on into c
    assert [i.address for i in code] == list(range(0, 128, 16))
    assert [o.value for i in code if i.op == "BRA" for o in i.srcs] == [Label(0x30), Label(0), Label(0x50)]


@pytest.mark.parametrize("sm", GENERATIONS)
def test_spilled_code_is_encoded(sm: int) -> None:
    g = compiled(product(sm, side=8, steps=1), 40)
    proven(g)
    words = assemble(g)
    ops = [decode(int.from_bytes(words[at:at + 16], "little"), at, sm).op for at in range(0, len(words), 16)]
    assert g.local_bytes > 0 and {"LDL", "STL"} <= set(ops) and len(words) % 128 == 0
