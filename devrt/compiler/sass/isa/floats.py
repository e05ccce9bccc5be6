"""Float arithmetic of lanes."""

from __future__ import annotations

from devrt.compiler.sass.isa.fields import choice, flag
from devrt.compiler.sass.isa.form import alu

ROUND = choice(78, 2, "", "RM", "RP", "RZ")
SCALE = choice(84, 3, None, "D8", "D4", "D2", "", "M2", "M4", "M8")
SAT, FTZ = flag("SAT", 77), flag("FTZ", 80)

ROWS = (
    alu("FADD", 0x021, "Rd", "-|A -|C", FTZ, ROUND, SAT, imm="f32", register_c=32),
    alu("FMUL", 0x020, "Rd", "-|A -|B", FTZ, SCALE, ROUND, SAT, imm="f32"),
    alu("FFMA", 0x023, "Rd", "-A -B -C", FTZ, ROUND, SAT, imm="f32"),
)
