"""DPP and SDWA dwords: lanes rearranged and parts of registers selected.

Source: "RDNA 3 ISA", DPP; "AMD Instinct MI200 ISA", DPP and SDWA; LLVM's names of the controls.
"""

from __future__ import annotations

from devrt.virtual.amd.isa.formats import Gen
from devrt.virtual.amd.isa.instruction import Dpp, Sdwa

SELECTS = ("BYTE_0", "BYTE_1", "BYTE_2", "BYTE_3", "WORD_0", "WORD_1", "DWORD")
UNUSED = ("UNUSED_PAD", "UNUSED_SEXT", "UNUSED_PRESERVE")

# First control, last control, name; the argument is the distance from `first - base`. CDNA has waves and broadcasts, RDNA shares.
_ROWS = ((0x101, 0x10F, "row_shl"), (0x111, 0x11F, "row_shr"), (0x121, 0x12F, "row_ror"))
_CDNA = {0x130: "wave_shl", 0x134: "wave_rol", 0x138: "wave_shr", 0x13C: "wave_ror"}
_BROADCAST = {0x142: 15, 0x143: 31}


def control(code: int, gen: Gen) -> tuple[str, str, tuple[int, ...]] | None:
    """DPP control `code` as (text, operation, arguments)."""
    cdna = gen in ("gfx90a", "gfx942")
    if code <= 0xFF:
        lanes = tuple(code >> 2 * i & 3 for i in range(4))
        return f"quad_perm:[{','.join(map(str, lanes))}]", "quad_perm", lanes
    for first, last, name in _ROWS:
        if first <= code <= last:
            return f"{name}:{code - first + 1}", name, (code - first + 1,)
    if code == 0x140:
        return "row_mirror", "row_mirror", ()
    if code == 0x141:
        return "row_half_mirror", "row_half_mirror", ()
    if cdna and code in _CDNA:
        return f"{_CDNA[code]}:1", _CDNA[code], (1,)
    if cdna and code in _BROADCAST:
        return f"row_bcast:{_BROADCAST[code]}", "row_bcast", (_BROADCAST[code],)
    if 0x150 <= code <= 0x15F:
        name = "row_newbcast" if cdna else "row_share"
        return f"{name}:{code - 0x150}", name, (code - 0x150,)
    if not cdna and 0x160 <= code <= 0x16F:
        return f"row_xmask:{code - 0x160}", "row_xmask", (code - 0x160,)
    return None


def dpp16(fields: dict[str, int], gen: Gen) -> Dpp | None:
    found = control(fields["ctrl"], gen)
    if found is None or fields["fi"] and gen in ("gfx90a", "gfx942"):
        return None
    return Dpp(*found, fields["row_mask"], fields["bank_mask"], bool(fields["bound_ctrl"]), bool(fields["fi"]))


def dpp8(selects: int, fi: bool) -> Dpp:
    lanes = tuple(selects >> 3 * i & 7 for i in range(8))
    return Dpp(f"dpp8:[{','.join(map(str, lanes))}]", "dpp8", lanes, fi=fi)


def sdwa(fields: dict[str, int]) -> Sdwa | None:
    """None if a selection does not exist. Compares have no destination part."""
    if max(fields["src0_sel"], fields["src1_sel"]) > 6 or fields.get("dst_sel", 0) > 6 or fields.get("dst_unused", 0) > 2:
        return None
    return Sdwa(SELECTS[fields["dst_sel"]], UNUSED[fields["dst_unused"]]) if "dst_sel" in fields else Sdwa("", "")
