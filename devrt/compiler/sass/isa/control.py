"""Branches, barriers, what steers a warp."""

from __future__ import annotations

from devrt.compiler.sass.isa.fields import Bits, LabelSlot, SpecialSlot, bits, choice
from devrt.compiler.sass.isa.form import SINCE_90, TO_89, row
from devrt.compiler.sass.isa.special import names

NEAR, SPLIT = Bits(((34, 48),)), Bits(((16, 8), (34, 48)))  # a branch's distance: to sm_89, from sm_90 on
UNIFORM = choice(32, 2, "", "U", "DIV")


def special(sm: int) -> SpecialSlot:
    return SpecialSlot(at=bits(72, 8), names=names(sm))


ROWS = (
    row("BRA", 0x947, "", "to", UNIFORM, sms=TO_89, fixed={87: 7}, where={"to": LabelSlot(at=NEAR)}),
    row("BRA", 0x947, "", "to", UNIFORM, sms=SINCE_90, fixed={87: 7}, where={"to": LabelSlot(at=SPLIT)}),
    row("EXIT", 0x94D, fixed={87: 7}),
    row("NOP", 0x918),
    row("S2R", 0x919, "Rd", "special", where={"special": special}),
)
