"""Arithmetic of 32- and 64-bit floats."""

from __future__ import annotations

from devrt.compiler.sass.isa.fields import Bits, Group, bits, choice, flag, ones
from devrt.compiler.sass.isa.form import BLACKWELL, SINCE_90, TO_90, Alu, alu
from devrt.compiler.sass.isa.integer import COMBINE

ROUND = choice(78, 2, "", "RM", "RP", "RZ")
SAT, FTZ = flag("SAT", 77), flag("FTZ", 80)
ZERO = Group(Bits(((76, 1), (80, 1))), ("", "FMZ", "FTZ", None))  # FMZ: 0 times anything is 0
SCALE = choice(84, 3, None, "D8", "D4", "D2", "", "M2", "M4", "M8")  # of a product, by a power of two
COMPARE = choice(76, 4, "F", "LT", "EQ", "LE", "GT", "NE", "GE", "NUM", "NAN", "LTU", "EQU", "LEU", "GTU", "NEU", "GEU", "T")
NO_C = ones(64, 8)  # a third source's number where there is none: 0, by NAK RZ
COMPARE_DOUBLE = choice(76, 4, "MIN", *COMPARE.names[1:15], "MAX")

SINGLE = (
    alu("FADD", 0x021, "Rd", "-|A -|C", FTZ, ROUND, SAT, imm="f32", register_c=32, ignored=NO_C),
    alu("FMUL", 0x020, "Rd", "-|A -|B", ZERO, SCALE, ROUND, SAT, imm="f32", ignored=NO_C),
    alu("FFMA", 0x023, "Rd", "-A -B -C", ZERO, ROUND, SAT, imm="f32"),
    alu("FMNMX", 0x009, "Rd", "-|A -|B Pp", FTZ, imm="f32", sms=(75,), ignored=NO_C),
    alu("FMNMX", 0x009, "Rd", "-|A -|B Pp", FTZ, flag("NAN", 81), imm="f32", sms=(80,), ignored=NO_C),
    alu("FMNMX", 0x009, "Rd", "-|A -|B Pp", FTZ, flag("NAN", 81), flag("XORSIGN", 82), imm="f32", sms=(86, 89), ignored=NO_C),
    alu("FMNMX", 0x009, "Rd", "-|A -|B Pp", FTZ, flag("NAN", 81), flag("XORSIGN", 82), imm="f32", sms=SINCE_90),
    alu("FMNMX", 0x009, "Rd P66", "-|A -|B Pp", FTZ, flag("NAN", 81), flag("XORSIGN", 82), Group(bits(65), (None, "IS_A")),
        imm="f32", sms=SINCE_90, ignored=1 << 64 | ones(69, 3)),
    alu("FSEL", 0x008, "Rd", "-|A -|B Pp", FTZ, imm="f32"),
    alu("FSETP", 0x00B, "Pu Pv", "-|A -|B Pp", COMPARE, FTZ, COMBINE, imm="f32"),
    alu("FSET.BF", 0x00A, "Rd", "-|A -|B Pp", COMPARE, FTZ, COMBINE, imm="f32"),
    alu("FCHK", 0x102, "Pu", "-|A -|B", imm="f32", reuse=""),
)


def _doubles(sms: tuple[int, ...], reuse: str) -> tuple[Alu, ...]:
    return (
        alu("DADD", 0x029, "Rd*2", "-|A*2 -|C*2", ROUND, imm="f64", sms=sms, reuse=reuse),
        alu("DMUL", 0x028, "Rd*2", "-|A*2 -|B*2", ROUND, imm="f64", sms=sms, reuse=reuse),
        alu("DFMA", 0x02B, "Rd*2", "-A*2 -B*2 -C*2", ROUND, imm="f64", sms=sms, reuse=reuse),
        alu("DSETP", 0x02A, "Pu Pv", "-|A*2 -|C*2 Pp", COMPARE_DOUBLE, COMBINE, imm="f64", register_c=32, sms=sms, reuse=reuse),
    )


ROWS = (*SINGLE, *_doubles(TO_90, "ABC"), *_doubles(BLACKWELL, ""))
