"""Modifiers that nvdisasm derives from operands: IMAD.MOV is an IMAD whose factors are RZ. They have no bits of their own."""

from __future__ import annotations

from devrt.compiler.sass.instruction import Imm, Operand, Reg
from devrt.compiler.sass.isa.fields import Mods


def _zero(operand: Operand) -> bool:
    return isinstance(operand.value, Reg) and operand.value.zero


def _imad(mods: Mods, srcs: list[Operand]) -> Mods:
    """MOV: both factors RZ. SHL: times a power of two, plus RZ. IADD: times one."""
    if mods not in ((), ("U32",)):
        return mods
    a, b, c = srcs[:3]
    if _zero(a) and _zero(b):
        return ("MOV", *mods)
    if isinstance(b.value, Imm) and not a.neg:
        if b.value.value == 1:
            return ("IADD",)
        if _zero(c) and b.value.value.bit_count() == 1:
            return ("SHL", *mods)
    return mods


derived = {"IMAD": _imad}
DERIVED = {"IMAD": {"MOV", "SHL", "IADD"}}


def underived(op: str, mods: Mods) -> Mods:
    """The modifiers that have bits."""
    if op in DERIVED and mods and mods[0] in DERIVED[op]:
        return mods[1:]
    return mods
