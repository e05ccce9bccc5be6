"""Basic blocks of machine code: ptxas's kernels are covered, calls return, and what is no code is refused."""

from __future__ import annotations

import itertools

import pytest

from devrt.compiler.sass import flow, reader
from devrt.compiler.sass.flow import End
from devrt.compiler.sass.instruction import Control, File, Instruction, Label, Operand, Reg
from devrt.compiler.sass.isa.codec import IllegalInstruction
from tests.compiler.sass.test_cubin import EXIT, GENERATIONS, NOP, PTX
from tests.compiler.sass.vendor import ptxas, walked


@pytest.mark.parametrize("sm", GENERATIONS)
def test_blocks_cover_a_kernel(sm: int) -> None:
    for k in reader.read(ptxas(PTX, sm)).kernels.values():
        blocks = walked(k)
        seen = [i for block in blocks.values() for i in block.instructions]
        assert len({i.address for i in seen}) == len(seen)
        reached = {i.address for i in seen}
        for at in set(range(0, len(k.code), 16)) - reached:  # padding, and branches to themselves that end functions
            word = int.from_bytes(k.code[at:at + 16], "little")
            assert word & 0xFFF in (0x918, 0x947), f"{at:#x} is not reached"
        for block in blocks.values():
            assert all(way in blocks for way in block.successors)
            assert block.successors or block.end is End.EXIT
            assert all(b.address == a.address + 16 for a, b in itertools.pairwise(block.instructions))


@pytest.mark.parametrize("sm", (75, 90, 120))
def test_calls_return_behind_themselves(sm: int) -> None:
    k = reader.read(ptxas(PTX, sm)).kernel("first")
    blocks = walked(k)
    calls = [block for block in blocks.values() if block.end is End.CALL]
    returns = [block for block in blocks.values() if block.end is End.RETURN]
    assert calls and {block.target for block in calls} == set(k.functions.values())
    for block in returns:
        assert set(block.successors) == {call.falls for call in calls}


@pytest.mark.parametrize("sm", (75, 90, 120))
def test_indirect_branches_go_where_the_image_says(sm: int) -> None:
    k = reader.read(ptxas(PTX, sm)).kernel("second")
    (branch, targets), = k.indirect.items()
    blocks = walked(k)
    assert next(b for b in blocks.values() if b.instructions[-1].address == branch).successors == tuple(dict.fromkeys(targets))


def test_code_may_lie_anywhere() -> None:
    code = b"".join(word.to_bytes(16, "little") for word in (NOP, EXIT))
    assert list(flow.walk(code, 0x70010, 90, base=0x70000)) == [0x70010]


def test_a_loop() -> None:
    guard = Operand(Reg(File.P, 0))
    code = [Instruction("NOP"), Instruction("NOP"), Instruction("BRA", srcs=(Operand(Label(0x10)),), guard=guard),
            Instruction("EXIT", control=Control(5))]
    blocks = flow.blocks_of([Instruction(i.op, i.mods, i.dsts, i.srcs, i.guard, i.control, 16 * n) for n, i in enumerate(code)])
    assert {a: (b.end, b.successors) for a, b in blocks.items()} == {
        0: (End.FALL, (0x10,)), 0x10: (End.BRANCH, (0x10, 0x30)), 0x30: (End.EXIT, ())}


@pytest.mark.parametrize("words, address", [((NOP,), 0x10), ((NOP, 0xFFF), 0x10), ((), 0)])
def test_what_is_no_code(words: tuple[int, ...], address: int) -> None:
    with pytest.raises(IllegalInstruction) as caught:
        flow.walk(b"".join(word.to_bytes(16, "little") for word in words), 0, 90)
    assert caught.value.address == address
