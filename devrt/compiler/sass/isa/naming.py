"""Modifiers that nvdisasm derives from operands: IMAD.MOV is an IMAD whose factors are RZ. They have no bits of their own, and
encode takes them or leaves them."""

from __future__ import annotations

from devrt.compiler.sass.instruction import Cbuf, File, Imm, Operand, Reg
from devrt.compiler.sass.isa.fields import Mods


def _zero(operand: Operand) -> bool:
    return isinstance(operand.value, Reg) and operand.value.zero


def _imad(mods: Mods, srcs: list[Operand]) -> Mods:
    """MOV: times zero, or once and plus RZ. SHL: times a power of two, plus RZ. IADD: times one."""
    if mods not in ((), ("U32",)):
        return mods
    a, b, c = srcs
    if any(isinstance(o.value, Reg) and o.value.file is File.UR or isinstance(o.value, Cbuf) and o.value.handle for o in srcs):
        return mods
    if _zero(a) or _zero(b) or b.value == Imm(0) or (b.value == Imm(1) and _zero(c)):
        return ("MOV", *mods)
    if isinstance(b.value, Imm):
        value = b.value.value
        if value == 1:
            return ("IADD", *mods)
        if _zero(c) and value.bit_count() == 1 and value not in (1 << 16, 1 << 31):
            return ("SHL", *mods)
    return mods


DERIVED = {"IMAD": frozenset({"MOV", "SHL", "IADD"})}
derived = {"IMAD": _imad}


def underived(op: str, mods: Mods) -> Mods:
    """The modifiers that have bits."""
    return mods[1:] if op in DERIVED and mods and mods[0] in DERIVED[op] else mods
