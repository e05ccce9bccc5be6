"""The instruction set by itself: what encode writes decode reads, and what neither lets pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from devrt.compiler.sass.instruction import (
    PT,
    RZ,
    TRUE,
    UPT,
    Address,
    Cbuf,
    Control,
    File,
    Imm,
    Instruction,
    Label,
    Operand,
    Reg,
    Special,
)
from devrt.compiler.sass.isa import GENERATIONS, IllegalInstruction, assemble, decode, encode, forms, text
from devrt.device import CompileError
from tests.compiler.sass.words import words


def reg(index: int, words: int = 1, **marks: bool) -> Operand:
    return Operand(Reg(File.R, index, words), **marks)


def pred(index: int, **marks: bool) -> Operand:
    return Operand(Reg(File.P, index), **marks)


FADD = Instruction("FADD", ("FTZ",), (reg(1),), (reg(2, neg=True), reg(3, abs=True)))
LDG = Instruction("LDG", ("E", "64"), (reg(4, 2),), (Operand(Address(Reg(File.R, 2, 2), 0x10, descriptor=Reg(File.UR, 4, 2))),))
BRA = Instruction("BRA", (), (), (Operand(Label(0x50)),), address=0x100)


@pytest.mark.parametrize("sm", GENERATIONS)
def test_round_trip(sm: int) -> None:
    """decode, then encode: the same word but for bits that nothing reads, for every form and modifier."""
    for form, word, i in words(sm, seed=1):
        assert encode(i, sm) == word & ~form.ignored | form.value & form.ignored, (form.op, hex(word), text(i, sm))


@pytest.mark.parametrize("sm", GENERATIONS)
def test_text_assembles(sm: int) -> None:
    """Text, read again, is the same text; before sm_90 the descriptor is not printed."""
    for _, word, i in words(sm, seed=2):
        if "QNAN" not in (line := text(i, sm)) and "SNAN" not in line and "???" not in line:
            assert text(assemble(line, sm, i.address), sm) == line, hex(word)


@pytest.mark.parametrize("sm", GENERATIONS)
def test_strict(sm: int) -> None:
    """A bit that no field owns is an illegal instruction, or turns the word into that of another form."""
    for form, word, i in words(sm, seed=3):
        free = [bit for bit in range(12, 105) if not form.covered >> bit & 1]
        for bit in free[::7]:
            try:
                other = decode(word ^ 1 << bit, i.address, sm)
            except IllegalInstruction as e:
                assert e.address == i.address and e.detail
            else:
                assert (other.op, other.mods, other.dsts, other.srcs) != (i.op, i.mods, i.dsts, i.srcs), (text(i, sm), bit)


def test_known_words() -> None:
    """Words that ptxas wrote."""
    assert text(decode(0x000FC000078E0209000000110A0D7224, 0, 90), 90) == "IMAD R13, R10, R17, R9"
    assert text(decode(0x000FC0000000180C000000100404723C, 0, 120), 120) == "HMMA.16816.F32 R4, R4, R16, R12"
    assert text(decode(0x000EA2000C1E0900000000040204_7981 | 1 << 76, 0, 90), 90) == "LDG.E R4, desc[UR4][R2.64]"
    assert text(decode(0x000FE20000000A0000008400000_67AB9, 0, 90), 90) == "ULDC.64 UR6, c[0x0][0x210]"


def test_unknown_opcode() -> None:
    with pytest.raises(IllegalInstruction, match=r"illegal instruction at 0x40: sm_90 has no opcode 0xfff"):
        decode(0x7FFF | 0xFC0 << 100, 0x40, 90)


def test_modifier_without_meaning() -> None:
    word = encode(assemble("PRMT R1, R2, R3, R4", 90), 90)
    with pytest.raises(IllegalInstruction, match="has no meaning"):
        decode(word | 7 << 72, 0, 90)


@pytest.mark.parametrize(("i", "sm", "why"), [
    (replace(FADD, op="FNORD"), 90, "has no FNORD"),
    (replace(FADD, mods=("FTZ", "WAT")), 90, "no modifiers"),
    (replace(FADD, dsts=(pred(1),)), 90, "takes no operands of kinds P"),
    (replace(FADD, dsts=(reg(256),)), 90, "there is no R256"),
    (replace(FADD, dsts=(reg(2, 2),)), 90, "2 words where 1 are wanted"),
    (replace(FADD, dsts=(reg(2, inv=True),)), 90, "no inv here"),
    (replace(FADD, srcs=(reg(2), Operand(Cbuf(0, 0x162)))), 90, "no multiple of 4"),
    (replace(FADD, srcs=(reg(2), Operand(Cbuf(0, 0x160)))), 120, "takes no operands"),
    (replace(FADD, srcs=(reg(2), Operand(Reg(File.UR, 63)))), 90, "there is no UR63"),
    (replace(FADD, srcs=(reg(2), Operand(Imm(1 << 32)))), 90, "does not fit 32 bits"),
    (replace(LDG, dsts=(reg(5, 2),)), 90, "must be a multiple of 2"),
    (replace(LDG, dsts=(reg(4),)), 90, "1 words where 2 are wanted"),
    (replace(LDG, srcs=(Operand(Address(Reg(File.R, 2, 2), 1 << 23, descriptor=Reg(File.UR, 4, 2))),)), 90, "not fit 24 bits"),
    (LDG, 75, "takes no operands"),
    (replace(BRA, address=-1), 90, "not known before layout"),
    (replace(BRA, srcs=(Operand(Label("loop")),)), 90, "not known before layout"),
    (replace(BRA, srcs=(Operand(Label(0x54)),)), 90, "no place of an instruction"),
    (replace(FADD, guard=Operand(Reg(File.UP, 1))), 90, "no guard here"),
    (replace(FADD, control=Control(stall=12)), 90, "stall of 12 without the yield hint"),
    (replace(FADD, control=Control(stall=16, yields=True)), 90, "stall of 16"),
    (replace(FADD, control=Control(yields=True), srcs=(reg(2, reuse=True), reg(3))), 90, "reuse"),
    (Instruction("BAR", ("SYNC",), (), (reg(1), reg(2))), 90, "one register that holds both"),
    (Instruction("S2R", (), (reg(1),), (Operand(Special(0x88)),)), 80, "no special register 0x88"),
    (Instruction("HMNMX2", (), (reg(1),), (reg(1), reg(2), TRUE)), 75, "has no HMNMX2"),
])
def test_what_does_not_fit(i: Instruction, sm: int, why: str) -> None:
    with pytest.raises(CompileError, match=why):
        encode(i, sm)


def test_generation() -> None:
    with pytest.raises(CompileError, match="sm_70"):
        encode(FADD, 70)


def test_control() -> None:
    """Every bit of it comes back."""
    for control in (Control(), Control(stall=15, yields=True), Control(2, False, 0, 5, 0b101010), Control(0, True, 3, 1, 63)):
        assert decode(encode(replace(FADD, control=control), 90), 0, 90).control == control
    with pytest.raises(IllegalInstruction, match="stall of 0"):
        decode(encode(FADD, 90) & ~(15 << 105), 0, 90)


def test_reads_and_writes() -> None:
    """Registers with all their words: pairs of 64 bits, fragments, addresses, the descriptor."""
    def sets(line: str, sm: int = 90) -> tuple[set[str], set[str]]:
        i = assemble(line, sm)
        return ({f"{r}:{r.words}" for r in i.reads()}, {f"{r}:{r.words}" for r in i.writes()})

    assert sets("@P3 IMAD.WIDE R2, P1, R4, R5, R6") == ({"P3:1", "R4:1", "R5:1", "R6:2"}, {"R2:2", "P1:1"})
    assert sets("DFMA R2, R4, UR6, -R8") == ({"R4:2", "UR6:2", "R8:2"}, {"R2:2"})
    assert sets("LDG.E.128 R4, desc[UR6][R2.64+0x10]") == ({"R2:2", "UR6:2"}, {"R4:4"})
    assert sets("STG.E.64 desc[UR6][R2.64], R8") == ({"R2:2", "UR6:2", "R8:2"}, set())
    assert sets("LDG.E R4, [R2.U32+UR8]") == ({"R2:1", "UR8:1"}, {"R4:1"}) or sets("LDG.E R4, [R2.U32+UR8]")[1] == {"R4:1"}
    assert sets("HMMA.16816.F32 R4, R8, R12, R16") == ({"R8:4", "R12:2", "R16:4"}, {"R4:4"})
    assert sets("P2R R1, PR, RZ, 0x7f") == ({"P0:7"}, {"R1:1"})
    assert sets("BSSY B3, 0x40") == (set(), {"B3:1"})
    assert sets("ISETP.GE.U64.AND P0, PT, R2, R4, !P1", 120) == ({"R2:2", "R4:2", "P1:1"}, {"P0:1"})


def test_names_that_come_from_operands() -> None:
    """IMAD.MOV is an IMAD: the encoder takes it with or without the name, the decoder gives it."""
    plain = Instruction("IMAD", ("U32",), (reg(1),), (Operand(RZ), Operand(RZ), reg(2)))
    assert encode(plain, 90) == encode(replace(plain, mods=("MOV", "U32")), 90)
    assert decode(encode(plain, 90), 0, 90).mods == ("MOV", "U32")


def test_guards() -> None:
    for guard in (TRUE, pred(3), pred(3, inv=True), Operand(PT, inv=True)):
        assert decode(encode(replace(FADD, guard=guard), 90), 0, 90).guard == guard
    assert encode(replace(FADD, guard=Operand(UPT)), 90) == encode(FADD, 90)


def test_every_generation_has_forms() -> None:
    counts = {sm: len(forms(sm)) for sm in GENERATIONS}
    assert min(counts.values()) > 300, counts


def test_text_before_layout() -> None:
    """Virtual registers and block names print, though nothing encodes them."""
    i = Instruction("MOV", (), (Operand(Reg(File.R, 1 << 16, 2)),), (Operand(Imm(5)),), guard=pred(1, inv=True))
    assert text(i) == "@!P1 MOV %r0:2, 0x5"
    assert text(replace(BRA, srcs=(Operand(Label("loop")),))) == "BRA `(loop)"
