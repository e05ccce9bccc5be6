"""The uniform datapath: one register for all lanes of a warp. Its guards are uniform predicates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from devrt.compiler.sass.isa.convert import NTZ, TOWARD
from devrt.compiler.sass.isa.fields import Group, bits, choice, flag
from devrt.compiler.sass.isa.floats import COMPARE as COMPARE_FLOATS
from devrt.compiler.sass.isa.floats import FTZ, ROUND, SAT, SCALE, ZERO
from devrt.compiler.sass.isa.form import ALL, BLACKWELL, TO_90, Row, Slots, row, uniform_slot
from devrt.compiler.sass.isa.integer import COMBINE, COMPARE, EX, LUT, LUTS, NO_CARRY, SHIFT, U32, X
from devrt.compiler.sass.isa.slots import CbufSlot, ImmSlot

SIZES = {"64": 2, "128": 4}
SOURCE = re.compile(r"(?P<mark>[-|~]*)(?P<letter>[ABC])(?P<words>\*\w+)?$")
REGISTERS = {"A": "URa", "B": "URb", "C": "URc"}


def uniform(name: str, base: int, dsts: str, srcs: str, *groups: Group, imm: str = "hex", sms: Sequence[int] = ALL,
            fixed: Mapping[int, int] | None = None, where: Slots | None = None) -> tuple[Row, Row]:
    """Two rows over uniform registers A, B, C: in the second B is a constant."""
    registers, constant = [], []
    for token in srcs.split():
        match = SOURCE.match(token)
        register = f"{match['mark']}{REGISTERS[match['letter']]}{match['words'] or ''}" if match else token
        registers.append(register)
        constant.append("value" if match and match["letter"] == "B" else register)
    places = {**(where or {}), "value": ImmSlot(at=bits(32, 32), style=imm)}
    bound = {91: 1, **(fixed or {})}
    return (row(name, base | 0x200, dsts, " ".join(registers), *groups, sms=sms, fixed=bound, where=places, uniform=True),
            row(name, base | 0x800, dsts, " ".join(constant), *groups, sms=sms, fixed=bound, where=places, uniform=True))


def _indexed(sm: int) -> CbufSlot:
    """c[bank][UR + offset]"""
    if sm < 100:
        return CbufSlot(index=replace(uniform_slot(24, sm), present=True), offset=bits(38, 16), unit=1, words=SIZES)
    return CbufSlot(index=uniform_slot(24, sm), offset=bits(37, 16), unit=1, signed=False, words=SIZES)


def _addresses(sms: Sequence[int], no_c: Mapping[int, int]) -> list[Row]:
    """(A << shift) + B, where the third source is not there."""
    high = {80: 1, 73: 1, **no_c}
    rows = (
        uniform("ULEA", 0x091, "URd [UPu]", "-A -B shift", where=SHIFT, fixed={87: 15, **no_c}, sms=sms),
        uniform("ULEA", 0x091, "URd [UPu]", "~A ~B shift UPp", X, where=SHIFT, fixed=no_c, sms=sms),
        uniform("ULEA.HI.SX32", 0x091, "URd [UPu]", "-A -B shift", where=SHIFT, fixed={87: 15, **high}, sms=sms),
        uniform("ULEA.HI.X.SX32", 0x091, "URd [UPu]", "~A ~B shift UPp", where=SHIFT, fixed={74: 1, **high}, sms=sms),
    )
    return [form for pair in rows for form in pair]


FLOATS: tuple[Row, ...] = (
    row("UFADD", 0x254, "URd", "-|URa -|URc", FTZ, ROUND, SAT, fixed={91: 1}, sms=BLACKWELL, uniform=True),
    row("UFADD", 0x454, "URd", "-|URa value", FTZ, ROUND, SAT, fixed={91: 1}, sms=BLACKWELL, uniform=True,
        where={"value": ImmSlot(at=bits(32, 32), style="f32")}),
    *uniform("UFMUL", 0x056, "URd", "-|A -|B", ZERO, SCALE, ROUND, SAT, imm="f32", sms=BLACKWELL),
    *uniform("UFFMA", 0x055, "URd", "-A -B -C", ZERO, ROUND, SAT, imm="f32", sms=BLACKWELL),
    *uniform("UFSEL", 0x051, "URd", "-|A -|B UPp", FTZ, imm="f32", sms=BLACKWELL),
    *uniform("UFMNMX", 0x050, "URd", "-|A -|B UPp", FTZ, flag("NAN", 81), flag("XORSIGN", 82), imm="f32", sms=BLACKWELL),
    *uniform("UFSET.BF", 0x052, "URd", "-|A -|B UPp", COMPARE_FLOATS, FTZ, COMBINE, imm="f32", sms=BLACKWELL),
    *uniform("UFSETP", 0x053, "UPu UPv", "-|A -|B UPp", COMPARE_FLOATS, FTZ, COMBINE, imm="f32", sms=BLACKWELL),
    row("UF2I", 0x25C, "URd", "-|URb", FTZ, choice(72, 1, "U32", ""), TOWARD, NTZ, fixed={75: 2, 84: 2, 91: 1}, sms=BLACKWELL,
        uniform=True),
    row("UFRND", 0x25D, "URd", "-|URb", FTZ, TOWARD, fixed={75: 2, 84: 2, 91: 1}, sms=BLACKWELL, uniform=True),
    row("UI2F.U32", 0x85A, "URd", "value", ROUND, fixed={75: 2, 84: 2, 91: 1}, where={"value": ImmSlot(at=bits(32, 32))},
        sms=BLACKWELL, uniform=True),
    row("UI2FP.F32", 0x25E, "URd", "URb", choice(74, 1, "U32", "S32"), choice(78, 2, "", None, None, "RZ"),
        fixed={75: 2, 84: 2, 91: 1}, sms=BLACKWELL, uniform=True),
)

ROWS: tuple[Row, ...] = (
    *FLOATS,
    row("UMOV", 0x882, "URd", "value", where={"value": ImmSlot(at=bits(32, 32))}, uniform=True),
    row("UMOV", 0xC82, "URd", "URb", fixed={91: 1}, uniform=True),
    row("UMOV.64", 0xC82, "URd*2", "URb*2", fixed={80: 1, 91: 1}, sms=BLACKWELL, uniform=True),
    row("UMOV.64", 0x482, "URd*2", "value", where={"value": ImmSlot(at=bits(24, 64))}, fixed={91: 1}, sms=BLACKWELL,
        uniform=True),
    *uniform("UIADD3", 0x090, "URd [UPu] [UPv]", "-A -B -C", fixed=NO_CARRY, imm="int"),
    *uniform("UIADD3", 0x090, "URd [UPu] [UPv]", "~A ~B ~C UPp UPq", X, imm="int"),
    *uniform("UIADD3.64", 0x097, "URd*2 [UPu] [UPv]", "-A*2 -B*2 -C*2", fixed=NO_CARRY, imm="int", sms=BLACKWELL),
    *uniform("UIADD3.64", 0x097, "URd*2 [UPu] [UPv]", "~A*2 ~B*2 ~C*2 UPp UPq", X, imm="int", sms=BLACKWELL),
    *uniform("UIMAD", 0x0A4, "URd", "A B -C", U32, fixed={81: 7, 87: 15}, imm="int"),
    *uniform("UIMAD.WIDE", 0x0A5, "URd*2 [UPu]", "A B -C*2", U32, fixed={87: 15}, imm="int"),
    *uniform("ULOP3.LUT", 0x092, "[UPu] URd", "A B C lut UPp", flag("PAND", 80), where=LUT),
    *uniform("USHF", 0x099, "URd", "A B C", choice(76, 1, "L", "R"), flag("W", 75), choice(73, 2, "S64", "U64", "S32", "U32"),
             flag("HI", 80)),
    *_addresses(TO_90, {64: 63}), *_addresses(BLACKWELL, {64: 255}),
    *uniform("ULEA.HI", 0x091, "URd [UPu]", "-A -B C shift", where=SHIFT, fixed={80: 1, 87: 15}),
    *uniform("ULEA.HI", 0x091, "URd [UPu]", "~A ~B C shift UPp", X, where=SHIFT, fixed={80: 1}),
    *uniform("UVIMNMX", 0x04A, "URd", "A B UPp", choice(72, 3, "U32", "S32", "U16x2", "S16x2", "U8x4", "S8x4"), flag("RELU", 76),
             imm="int", fixed={81: 7, 84: 7}, sms=BLACKWELL),
    *uniform("USEL", 0x087, "URd", "A B UPp"),
    *uniform("UPRMT", 0x096, "URd", "A B C"),
    *uniform("USGXT", 0x09A, "URd", "A B", flag("W", 75), U32),
    *uniform("UBMSK", 0x09B, "URd", "A B", flag("W", 75)),
    *uniform("UISETP", 0x08C, "UPu UPv", "A B UPp", COMPARE, U32, COMBINE, imm="int", fixed={68: 7}),
    *uniform("UISETP", 0x08C, "UPu UPv", "A B UPp UPr", COMPARE, U32, COMBINE, EX, imm="int", sms=(80, 86, 89, 90, 120)),
    row("UPLOP3.LUT", 0x89C, "UPu UPv", "UPp UPq UPr lut second", where=LUTS, uniform=True),
    row("UPOPC", 0x2BF, "URd", "~URb", fixed={91: 1}, uniform=True),
    row("UBREV", 0x2BE, "URd", "URb", fixed={91: 1}, uniform=True),
    row("UFLO", 0x2BD, "URd [UPu]", "~URb", U32, flag("SH", 74), fixed={91: 1}, uniform=True),
    row("ULDC", 0xAB9, "URd*size", "constant", choice(73, 3, "U8", "S8", "U16", "S16", "", "64"), sms=TO_90,
        where={"constant": CbufSlot(offset=bits(38, 16), unit=1, words=SIZES)}, words={"size": SIZES}, uniform=True),
    row("ULDC", 0xABB, "URd*size", "constant", choice(73, 3, "U8", "S8", "U16", "S16", "", "64"), sms=TO_90, fixed={91: 1},
        where={"constant": _indexed}, words={"size": SIZES}, uniform=True),
    row("LDCU", 0x7AC, "URd*size", "constant", choice(73, 3, "U8", "S8", "U16", "S16", "", "64", "128"), sms=BLACKWELL,
        fixed={91: 1}, where={"constant": _indexed}, words={"size": SIZES}, uniform=True),
)
