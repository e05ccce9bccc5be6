"""Operand codes: which register or constant an 8 or 9-bit source field means.

Source: "RDNA 3 ISA" and "AMD Instinct MI300 ISA", tables of scalar and vector source operands.
"""

from __future__ import annotations

import struct

from devrt.virtual.amd.isa.formats import Gen
from devrt.virtual.amd.isa.instruction import Kind
from devrt.virtual.amd.isa.opcodes import bits

LITERAL, DPP16, DPP8, DPP8FI, SDWA = 255, 250, 233, 234, 249
INLINE_FLOATS = {240: 0.5, 241: -0.5, 242: 1.0, 243: -1.0, 244: 2.0, 245: -2.0, 246: 4.0, 247: -4.0, 248: 0.15915494309189532}
NULL: dict[Gen, int] = {"gfx90a": 127, "gfx942": 127, "gfx1030": 125, "gfx1100": 124, "gfx1201": 124}  # as saddr and soffset
_REGISTERS: dict[Gen, int] = {"gfx90a": 102, "gfx942": 102, "gfx1030": 106, "gfx1100": 106, "gfx1201": 106}


def scalar(code: int, dwords: int, gen: Gen) -> tuple[Kind, int] | None:
    """The register that a 7-bit code means, if `dwords` of it exist and are aligned; None if not."""
    align = 1 if dwords == 1 else 2 if dwords == 2 else 4
    limit = _REGISTERS[gen]
    if code < limit:
        return ("sgpr", code) if code % align == 0 and code + dwords <= limit else None
    if code in (124, 125):
        if gen in ("gfx90a", "gfx942"):
            return ("m0", 0) if code == 124 and dwords == 1 else None
        if code == NULL[gen]:
            return "null", 0
        return ("m0", 0) if dwords == 1 else None
    if 108 <= code < 124:
        return ("ttmp", code - 108) if (code - 108) % align == 0 and code - 108 + dwords <= 16 else None
    pairs: dict[int, Kind] = {102: "flat_scratch", 104: "xnack_mask", 106: "vcc", 126: "exec"}
    kind = pairs.get(code & ~1)
    if kind is None or dwords > 2 or dwords == 2 and code & 1:
        return None
    return kind, code & 1


def special(code: int) -> tuple[Kind, int] | None:
    """The read-only registers among the source codes above 208."""
    if 235 <= code <= 238:
        return "aperture", code - 235
    return {251: ("vccz", 0), 252: ("execz", 0), 253: ("scc", 0)}.get(code)  # type: ignore[return-value]


def inline(code: int, type: str) -> tuple[Kind, int] | None:
    """The inline constant of codes 128 to 208 and 240 to 248, as bits of `type`; packed types get it in the low half."""
    width = 64 if bits(type) == 64 and "x" not in type else 32 if bits(type) != 16 else 16
    if 128 <= code <= 208:
        value = code - 128 if code <= 192 else 192 - code
        return "int", value & (1 << width) - 1
    if code not in INLINE_FLOATS:
        return None
    number = INLINE_FLOATS[code]
    if "bf16" in type:
        return "float", int.from_bytes(struct.pack("<f", number), "little") >> 16
    if width == 16 or type in ("f16x2", "i16x2", "u16x2"):
        return "float", int.from_bytes(struct.pack("<e", number), "little")
    return "float", int.from_bytes(struct.pack("<d" if width == 64 else "<f", number), "little")


def widen(literal: int, type: str) -> int:
    """A 32-bit literal as bits of `type`: the high half of an f64, sign-extended for i64, its low half for 16 bits."""
    if type == "f64":
        return literal << 32
    if type == "i64":
        return (literal ^ 0x80000000) - 0x80000000 & (1 << 64) - 1
    return literal & 0xFFFF if bits(type) == 16 else literal
