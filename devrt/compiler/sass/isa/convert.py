"""Conversions between types, and the functions of the special function unit."""

from __future__ import annotations

from typing import Any

from devrt.compiler.sass.isa.fields import Group, always, bits, choice, flag
from devrt.compiler.sass.isa.floats import FTZ, ROUND
from devrt.compiler.sass.isa.form import ALL, BLACKWELL, SINCE_80, SINCE_86, SINCE_89, SINCE_90, TO_89, Alu, Marks, alu

HALF = {32: Marks(63, 62, choice(60, 1, "", "H1"))}          # reads the low half, or the high one
BYTE = {32: Marks(select=choice(60, 2, "", "B1", "B2", "B3"))}
WORD = {32: Marks(63, 62)}
ROUND_PACK = choice(79, 2, "", None, None, "RZ")
TOWARD = choice(78, 2, "", "FLOOR", "CEIL", "TRUNC")
NTZ, NTZ_PACK = flag("NTZ", 77), flag("NTZ", 74)
FLOATS = {"F16": 1, "F32": 2, "F64": 3, "BF16": 4}           # log2 of the bytes, or 4
BYTES = {"8": 0, "16": 1, "32": 2, "64": 3}


MUFU = choice(74, 4, "COS", "SIN", "EX2", "LG2", "RCP", "RSQ", "RCP64H", "RSQ64H", "SQRT", "TANH")
MUFU_HALF = choice(74, 4, *(name if name and "64" not in name else None for name in MUFU.names[:10]))


def _sms(*types: str) -> tuple[int, ...]:
    return SINCE_80 if "BF16" in types else ALL


def _source(name: str) -> dict[str, Any]:
    """How a source of a type of floats is written: kinds, how constants are printed, which half."""
    half = "16" in name
    return {"kinds": "16" if half else "156", "imm": "f64" if name == "F64" else "f32", "reuse": "",
            "places": HALF if half else WORD}


def _float_to_float(to: str, source: str) -> Alu:
    sms = SINCE_90 if source == "BF16" or to == "BF16" and source != "F32" else _sms(to)
    return alu("F2F", 0x110 if "F64" in (to, source) else 0x104, "Rd*2" if to == "F64" else "Rd",
               "-|B*2" if source == "F64" else "-|B", FTZ, always(f"{to}.{source}"), ROUND,
               fixed={75: FLOATS[to], 84: FLOATS[source]}, sms=sms,
               **_source(source))


def _float_to_int(to: str, source: str) -> Alu:
    """`to`: 8, 16, 32 or 64 bits; the sign is bit 72."""
    signed = choice(72, 1, f"U{to}", "" if to == "32" else f"S{to}")
    printed = [] if source == "F32" else [always(source)]
    return alu("F2I", 0x111 if to == "64" or source == "F64" else 0x105, "Rd*2" if to == "64" else "Rd",
               "-|B*2" if source == "F64" else "-|B", FTZ, signed, *printed, TOWARD, NTZ,
               fixed={75: BYTES[to], 84: FLOATS[source]}, sms=SINCE_90 if source == "BF16" else ALL, **_source(source))


def _int_to_float(to: str, source: str) -> Alu:
    signed = choice(74, 1, f"U{source}", "" if source == "32" else f"S{source}")
    places = {"8": BYTE, "16": HALF}.get(source, {32: Marks()})
    return alu("I2F" if to == "F32" else f"I2F.{to}", 0x112 if "64" in to + source else 0x106, "Rd*2" if to == "F64" else "Rd",
               "B*2" if source == "64" else "B", signed, ROUND, fixed={75: FLOATS[to], 84: BYTES[source]}, reuse="",
               kinds="156" if source == "32" else "16", places=places, sms=SINCE_90 if to == "BF16" else ALL)


def _round(source: str) -> Alu:
    return alu("FRND", 0x113 if source == "F64" else 0x107, "Rd*2" if source == "F64" else "Rd",
               "-|B*2" if source == "F64" else "-|B", FTZ, *([] if source == "F32" else [always(source)]), TOWARD,
               fixed={75: FLOATS[source], 84: FLOATS[source]},
               sms=SINCE_90 if source == "BF16" else ALL, **_source(source))


# Two floats to one register of halves: Ra to the high half, Rb to the low one; MERGE_C takes the other half from Rc
PACK = (
    alu("F2FP", 0x03E, "Rd", "A B", flag("RELU", 75), choice(76, 1, "", "BF16"), always("PACK_AB"), ROUND_PACK,
        imm="f32", fixed={64: 255}, kinds="156", sms=(80, 86)),
    alu("F2FP", 0x03E, "Rd", "A B", flag("RELU", 75), choice(76, 1, "F16", "BF16"), always("F32.PACK_AB"), ROUND_PACK,
        imm="f32", fixed={64: 255}, kinds="156", sms=SINCE_89),
    alu("F2FP", 0x03E, "Rd", "B C", flag("RELU", 75), choice(76, 1, "", "BF16"), always("MERGE_C"), ROUND_PACK,
        fixed={24: 255, 78: 1}, kinds="1", sms=(80, 86)),
    alu("F2FP", 0x03E, "Rd", "B C", flag("RELU", 75), choice(76, 1, "F16", "BF16"), always("F32.MERGE_C"), ROUND_PACK,
        fixed={24: 255, 78: 1}, kinds="1", sms=SINCE_89),
)

# Two integers or floats to narrow integers, Ra above Rb; of 8 bits, above them the low half of Rc, with H1 its high one
NARROW = choice(76, 2, "U8", "S8", "U16", "S16")
MERGED = {24: Marks(), 32: Marks(), 64: Marks(select=choice(72, 1, "", "H1"))}
PACK_INTEGERS = (
    alu("I2I", 0x038, "Rd", "B", NARROW, always("S32.SAT"), kinds="1", places=MERGED),
    alu("I2IP", 0x039, "Rd", "A B C", NARROW, always("S32.SAT"), kinds="1", places=MERGED, sms=(75, 80)),
    alu("I2IP", 0x039, "Rd", "A B C", NARROW, always("S32"), choice(74, 1, "SAT", ""), kinds="1", places=MERGED, sms=(86, 89)),
    alu("I2IP", 0x039, "Rd", "A B C", NARROW, always("S32"), choice(74, 1, "", "SAT"), kinds="1", places=MERGED, sms=SINCE_90),
    alu("F2IP", 0x043, "Rd", "A B C", choice(76, 2, "U8", "S8"), always("F32"), choice(78, 2, "", None, None, "TRUNC"), NTZ_PACK,
        flag("RELU", 75), kinds="1", places=MERGED, sms=SINCE_86),
)

# Floats of 8 bits, two at a time
PACK_8 = (
    alu("F2FP.SATFINITE", 0x03E, "Rd", "A B C", flag("RELU", 75), choice(76, 1, "E5M2", "E4M3"), always("F32.PACK_AB_MERGE_C"),
        fixed={77: 3, 87: 9}, kinds="1", sms=SINCE_89),
    alu("F2FP.SATFINITE", 0x03E, "Rd", "B C", flag("RELU", 75), choice(76, 1, "E5M2", "E4M3"), always("F16.UNPACK_B_MERGE_C"),
        fixed={24: 255, 73: 1, 77: 1, 87: 9}, kinds="1", sms=SINCE_89),
    alu("F2FP", 0x03E, "Rd", "B", flag("RELU", 75), always("F16"), choice(73, 1, "E5M2", "E4M3"), always("UNPACK_B"),
        fixed={24: 255, 64: 255, 74: 1, 89: 1}, kinds="1", places={32: Marks(select=choice(88, 1, "", "H1"))}, sms=SINCE_89),
)

PACK_TF32 = tuple(
    alu("F2FP", 0x03E, "Rd", "B", *finite, flag("RELU", 75), always("TF32.F32.PACK_B"), ROUND_PACK, kinds="1", sms=sms,
        fixed={24: 255, 64: 255, 76: 1, 78: 1, 86: 1, 89: 1})
    for finite, sms in (((), (90,)), ((flag("SATFINITE", 77),), BLACKWELL)))

ROWS = (
    alu("MUFU", 0x108, "Rd", "-|B", MUFU, kinds="156", reuse=""),
    alu("MUFU", 0x108, "Rd", "B", MUFU_HALF, imm="f32", kinds="4"),
    alu("MUFU", 0x108, "Rd", "-|B", MUFU_HALF, Group(bits(73), (None, "F16")), kinds="1", places=HALF, reuse="", sms=TO_89),
    alu("MUFU", 0x108, "Rd", "-|B", MUFU_HALF, Group(bits(72, 2), (None, "F16", "BF16", None)), kinds="1", places=HALF, reuse="",
        sms=SINCE_90),
    *(_float_to_float(to, source) for to in FLOATS for source in FLOATS if to != source and (to, source) != ("F16", "BF16")),
    *(_float_to_int(to, source) for to in BYTES for source in FLOATS),
    *(_int_to_float(to, source) for to in FLOATS for source in BYTES),
    alu("I2F.U32", 0x106, "Rd", "B", ROUND, fixed={75: 2, 84: 2}, kinds="4"),
    *(_round(source) for source in FLOATS),
    *PACK, *PACK_INTEGERS, *PACK_8, *PACK_TF32,
    alu("I2FP.F32", 0x045, "Rd", "B", choice(74, 1, "U32", "S32"), choice(78, 2, "", None, None, "RZ"),
        fixed={75: 2, 84: 2}, kinds="156", sms=SINCE_86),
)
