"""Integer arithmetic of lanes: add, multiply, shift, logic, compare, select, bits."""

from __future__ import annotations

from devrt.compiler.sass.instruction import File
from devrt.compiler.sass.isa.fields import Bits, Group, always, bits, choice, flag, unset
from devrt.compiler.sass.isa.form import BLACKWELL, SINCE_80, TO_89, TO_90, Marks, alu, row
from devrt.compiler.sass.isa.slots import ImmSlot, RegSlot

COMPARE = choice(76, 3, "F", "LT", "EQ", "LE", "GT", "NE", "GE", "T")
COMBINE = choice(74, 2, "AND", "OR", "XOR")
U32 = unset("U32", 73)
X = Group(bits(74), (None, "X"))     # reads a carry; in its rows a sign that negates inverts instead
EX = Group(bits(72), (None, "EX"))
NO_CARRY = {77: 15, 87: 15}          # carries that are not read: !PT
NO_C = {64: 255}                     # a third source that is not there: RZ
LONG = "134567"                      # products of 64 bits add no constant
WIDE = {"wide": {"U64": 2, "S64": 2, "64": 2}}

PAIRS = {"a": RegSlot(file=File.R, lo=24, words=2, reuse=122), "b": RegSlot(file=File.R, lo=32, words=2, reuse=123)}
LANES = {"lanes": ImmSlot(at=bits(72, 4), default=15)}  # a bit for each lane of four that moves
LUT = {"lut": ImmSlot(at=bits(72, 8))}
SHIFT = {"shift": ImmSlot(at=bits(75, 5))}
SIGNS = {lo: Marks(select=always("SIGN")) for lo in (24, 32, 64)}  # the sign of a register as a predicate
LUTS = {"lut": ImmSlot(at=Bits(((64, 3), (72, 5)))), "second": ImmSlot(at=bits(16, 8))}

MOVES = (
    alu("MOV", 0x002, "Rd", "B [lanes]", where=LANES),
    alu("MOV.64", 0x002, "Rd*2", "B*2", fixed={72: 15, 80: 1}, kinds="16", sms=BLACKWELL),
    row("MOV.64", 0x402, "Rd*2", "value", where={"value": ImmSlot(at=bits(24, 64))}, sms=BLACKWELL),
    alu("SEL", 0x007, "Rd", "A B Pp"),
    row("SEL.64", 0x607, "Rd*2", "a b Pp", where=PAIRS, sms=BLACKWELL),
    row("SEL.64", 0x407, "Rd*2", "Ra*2 value Pp", where={"value": ImmSlot(at=bits(32, 33), style="int")}, sms=BLACKWELL),
    alu("PRMT", 0x016, "Rd", "A B C", choice(72, 3, "", "F4E", "B4E", "RC8", "ECL", "ECR", "RC16")),
    alu("SGXT", 0x01A, "Rd", "A B", flag("W", 75), U32),
)

ADDS = (
    alu("IADD3", 0x010, "Rd [Pu] [Pv]", "-A -B -C", kinds="1456", fixed=NO_CARRY, imm="int"),
    alu("IADD3", 0x010, "Rd [Pu] [Pv]", "~A ~B ~C Pp Pq", X, kinds="1456", imm="int"),
    alu("IADD", 0x035, "Rd*wide [Pu]", "-A*wide -B*wide", flag("64", 73), fixed={87: 15}, imm="int", words=WIDE, sms=BLACKWELL),
    alu("IADD", 0x035, "Rd*wide [Pu]", "~A*wide ~B*wide Pp", flag("64", 73), X, imm="int", words=WIDE, sms=BLACKWELL),
    alu("VIADD", 0x036, "Rd", "A -B", flag("16x2", 73), sms=(90,)),
    alu("VIADD", 0x036, "Rd", "-A -B", choice(73, 3, "32", "16x2", "S32", "S16x2", "U8x4", "S8x4"), flag("ISAT", 80),
        sms=BLACKWELL),
    alu("VABSDIFF", 0x014, "Rd [Pu]", "A B C", U32, sms=TO_90),
    alu("VABSDIFF4", 0x015, "Rd [Pu]", "A B C", choice(73, 1, "U8", ""), flag("ACC", 75), kinds="1", sms=TO_90),
    alu("IABS", 0x013, "Rd", "B", imm="int"),
)

PRODUCTS = (
    alu("IMAD", 0x024, "Rd", "A B -C", U32, fixed={81: 7, 87: 15}, imm="int"),
    alu("IMAD", 0x024, "Rd", "A B ~C Pp", U32, X, fixed={81: 7}, imm="int"),
    alu("IMAD.WIDE", 0x025, "Rd*2 [Pu]", "A B -C*2", U32, kinds=LONG, fixed={87: 15}, imm="int"),
    alu("IMAD.WIDE", 0x025, "Rd*2 [Pu]", "A B ~C*2 Pp", U32, X, kinds=LONG, imm="int"),
    alu("IMAD.HI", 0x027, "Rd [Pu]", "A B -C", U32, kinds=LONG, fixed={87: 15}, imm="int"),
    alu("IMAD.HI", 0x027, "Rd [Pu]", "A B ~C Pp", U32, X, kinds=LONG, imm="int"),
    alu("IDP.4A", 0x026, "Rd", "A B -C", choice(73, 1, "U8", "S8"), choice(74, 1, "U8", "S8"), kinds="156"),
    alu("IDP.2A.LO", 0x026, "Rd", "A B -C", choice(73, 1, "U16", "S16"), choice(74, 1, "U8", "S8"), kinds="156", fixed={76: 1}),
    alu("IDP.2A.HI", 0x026, "Rd", "A B -C", choice(73, 1, "U16", "S16"), choice(74, 1, "U8", "S8"), kinds="156", fixed={76: 3}),
)

# LEA: (A << shift) + B, with .HI the high word of (C:A << shift) + B
ADDRESSES = (
    alu("LEA", 0x011, "Rd [Pu]", "-A -B shift", where=SHIFT, fixed={87: 15, **NO_C}),
    alu("LEA", 0x011, "Rd [Pu]", "~A ~B shift Pp", X, where=SHIFT, fixed=NO_C),
    alu("LEA.HI", 0x011, "Rd [Pu]", "-A -B C shift", where=SHIFT, fixed={80: 1, 87: 15}, kinds="1456"),
    alu("LEA.HI", 0x011, "Rd [Pu]", "~A ~B C shift Pp", X, where=SHIFT, fixed={80: 1}, kinds="1456"),
    alu("LEA.HI.SX32", 0x011, "Rd [Pu]", "-A -B shift", where=SHIFT, fixed={73: 1, 80: 1, 87: 15, **NO_C}),
    alu("LEA.HI.X.SX32", 0x011, "Rd [Pu]", "~A ~B shift Pp", where=SHIFT, fixed={73: 1, 74: 1, 80: 1, **NO_C}),
)

LOGIC = (
    alu("LOP3.LUT", 0x012, "[Pu] Rd", "A B C lut Pp", flag("PAND", 80), kinds="1456", where=LUT),
    row("PLOP3.LUT", 0x81C, "Pu Pv", "Pp Pq Pr lut second", where=LUTS),
    row("PLOP3.LUT", 0x81C, "Pu Pv", "Pp Pq 71!UP68 lut second", fixed={67: 1}, where=LUTS),
    row("PLOP3.LUT", 0x81C, "Pu Pv", "Pp Pq UPr lut second", where=LUTS, fixed={67: 1}),
    alu("PLOP3.LUT", 0x01F, "Pu Pv", "A B C lut second", kinds="1", places=SIGNS, sms=TO_90,
        where={**LUTS, "lut": ImmSlot(at=bits(72, 8))}),
    alu("SHF", 0x019, "Rd", "A B C", choice(76, 1, "L", "R"), flag("W", 75), choice(73, 2, "S64", "U64", "S32", "U32"),
        flag("HI", 80)),
    alu("BMSK", 0x01B, "Rd", "A B", flag("W", 75)),
    alu("POPC", 0x109, "Rd", "~B", reuse=""),
    alu("BREV", 0x101, "Rd", "B", reuse=""),
    alu("FLO", 0x100, "Rd [Pu]", "~B", U32, flag("SH", 74), reuse=""),
)

COMPARISONS = (
    alu("ISETP", 0x00C, "Pu Pv", "A B Pp", COMPARE, U32, COMBINE, imm="int", fixed={68: 7}, sms=TO_90),
    alu("ISETP", 0x00C, "Pu Pv", "A B Pp [Pr]", COMPARE, U32, COMBINE, EX, imm="int", sms=(75,)),
    alu("ISETP", 0x00C, "Pu Pv", "A B Pp Pr", COMPARE, U32, COMBINE, EX, imm="int", sms=SINCE_80),
    alu("ISETP", 0x00C, "Pu Pv", "A*wide B*wide Pp", COMPARE, Group(Bits(((73, 1), (80, 1))), ("U32", "", "U64", "S64")), COMBINE,
        imm="int", fixed={68: 7}, words=WIDE, sms=BLACKWELL),
    alu("IMNMX", 0x017, "Rd", "A B Pp", U32, imm="int", sms=TO_89),
    alu("IMNMX", 0x017, "Pu Pv Rd*wide", "A*wide B*wide Pp Pq", choice(73, 2, "U32", "", "U64", "S64"), imm="int", words=WIDE,
        sms=BLACKWELL),
    alu("VIMNMX", 0x048, "Rd", "A B Pp", choice(72, 2, "U32", "", "U16x2", "S16x2"), flag("RELU", 76), imm="int",
        fixed={81: 7, 84: 7}, sms=(90,)),
    alu("VIMNMX", 0x048, "Rd", "A B Pp", choice(72, 3, "U32", "S32", "U16x2", "S16x2", "U8x4", "S8x4"), flag("RELU", 76),
        imm="int", fixed={81: 7, 84: 7}, sms=BLACKWELL),
    alu("VIMNMX3", 0x00F, "Rd", "A B C Pp", choice(72, 2, "U32", "", "U16x2", "S16x2"), flag("RELU", 76), kinds="1456",
        fixed={81: 0}, sms=(90,)),
    alu("VIADDMNMX", 0x046, "Rd", "A -B C Pp", choice(72, 2, "U32", "", "U16x2", "S16x2"), flag("RELU", 76), sms=(90,)),
)

ROWS = (*MOVES, *ADDS, *PRODUCTS, *ADDRESSES, *LOGIC, *COMPARISONS)
