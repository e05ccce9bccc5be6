"""What lanes of a warp do together: shuffles, votes, matches, reductions; and what moves predicates and special registers.

PR, all predicates at once, is a predicate register P0 of seven words; the constant behind it says which of them are meant.
"""

from __future__ import annotations

from devrt.compiler.sass.isa.fields import Group, bits, choice, flag
from devrt.compiler.sass.isa.form import BLACKWELL, SINCE_80, SINCE_90, TO_89, Alu, Row, alu, row
from devrt.compiler.sass.isa.slots import ImmSlot, PredicatesSlot, SpecialSlot
from devrt.compiler.sass.isa.special import names

MODE = choice(58, 2, "IDX", "UP", "DOWN", "BFLY")
LANE, CLAMP = ImmSlot(at=bits(53, 5)), ImmSlot(at=bits(40, 13))


def special(sm: int) -> SpecialSlot:
    return SpecialSlot(at=bits(72, 8), names=names(sm))


SPECIAL = {"special": special}
ALL_PREDICATES = {"PR": PredicatesSlot(), "mask": ImmSlot(at=bits(32, 32))}
U64 = Group(bits(73), ("", "U64"))
WIDE = {"wide": {"U64": 2}}

ROWS: tuple[Row | Alu, ...] = (
    row("SHFL", 0x389, "Pu Rd", "Ra Rb Rc", MODE),
    row("SHFL", 0x589, "Pu Rd", "Ra Rb clamp", MODE, where={"clamp": CLAMP}),
    row("SHFL", 0x989, "Pu Rd", "Ra lane Rc", MODE, where={"lane": LANE}),
    row("SHFL", 0xF89, "Pu Rd", "Ra lane clamp", MODE, where={"lane": LANE, "clamp": CLAMP}),
    row("VOTE", 0x806, "[Rd] Pu", "Pp", choice(72, 2, "ALL", "ANY", "EQ")),
    row("VOTEU", 0x886, "[URd] UPu", "Pp", choice(72, 2, "ALL", "ANY", "EQ")),
    row("MATCH.ANY", 0x3A1, "Rd", "Ra*wide", U64, fixed={79: 1, 81: 7}, words=WIDE),
    row("MATCH.ALL", 0x3A1, "Pu Rd", "Ra*wide", U64, words=WIDE),
    row("REDUX", 0x3C4, "URd", "Ra", choice(78, 3, "", "OR", "XOR", "SUM", "MIN", "MAX"), flag("S32", 73), sms=SINCE_80),
    row("R2UR", 0x3C2, "[Pu] URd", "Ra", sms=TO_89),
    alu("R2UR", 0x0CA, "[Pu] URd", "A", kinds="1", sms=SINCE_90),
    row("S2R", 0x919, "Rd", "special", where=SPECIAL),
    row("S2UR", 0x9C3, "URd", "special", where=SPECIAL, uniform=True),
    row("CS2R.32", 0x805, "Rd", "special", where=SPECIAL),
    row("CS2R", 0x805, "Rd*2", "special", fixed={80: 1}, where=SPECIAL),
    row("CS2UR.32", 0x8CB, "URd", "special", sms=BLACKWELL, where=SPECIAL, uniform=True),
    row("CS2UR", 0x8CB, "URd*2", "special", fixed={80: 1}, sms=BLACKWELL, where=SPECIAL, uniform=True),
    row("P2R", 0x803, "Rd", "PR Ra mask", sms=TO_89, where={**ALL_PREDICATES, "mask": ImmSlot(at=bits(32, 32), style="int")}),
    row("P2R", 0x803, "Rd", "PR Ra mask", sms=SINCE_90, where=ALL_PREDICATES),
    row("R2P", 0x804, "PR", "Ra mask", where=ALL_PREDICATES),
    row("ELECT", 0x82F, "Pu URd", "Pp", sms=SINCE_90),
)
