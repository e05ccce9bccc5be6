"""Integer arithmetic of lanes."""

from __future__ import annotations

from devrt.compiler.sass.isa.fields import Group, ImmSlot, bits, choice, flag, unset
from devrt.compiler.sass.isa.form import SINCE_90, TO_89, alu, row

PD, PV, PP, PQ = {81: 7}, {84: 7}, {87: 7}, {77: 7}  # predicates that are not there
NO_CARRY = {87: 7, 90: 1, 77: 7, 80: 1}
COMPARE = choice(76, 3, "F", "LT", "EQ", "LE", "GT", "NE", "GE", "T")
COMBINE = choice(74, 2, "AND", "OR", "XOR")
U32 = unset("U32", 73)
EX = Group(bits(72), (None, "EX"))

ROWS = (
    alu("MOV", 0x002, "Rd", "B lanes", where={"lanes": ImmSlot(at=bits(72, 4), style="hex")}),
    alu("IADD3", 0x010, "Rd [Pu] [Pv]", "-A -B -C", kinds="1456", fixed=NO_CARRY, imm="int"),
    alu("IADD3.X", 0x010, "Rd [Pu] [Pv]", "~A ~B ~C Pp Pq", kinds="1456", fixed={74: 1}, imm="int"),
    alu("IMAD", 0x024, "Rd", "A B -C", U32, fixed={**PD, **NO_CARRY}, imm="int"),
    alu("LOP3.LUT", 0x012, "[Pu] Rd", "A B C lut Pp", flag("PAND", 80), kinds="1456", where={"lut": ImmSlot(at=bits(72, 8))}),
    alu("SHF", 0x019, "Rd", "A B C", choice(76, 1, "L", "R"), flag("W", 75), choice(73, 2, "S64", "U64", "S32", "U32"),
        flag("HI", 80)),
    alu("ISETP", 0x00C, "Pu Pv", "A B Pp", COMPARE, U32, COMBINE, imm="int", fixed={68: 7}),
    alu("ISETP", 0x00C, "Pu Pv", "A B Pp Pr", COMPARE, U32, COMBINE, EX, imm="int"),
)

__all__ = ["ROWS", "SINCE_90", "TO_89", "row"]
