"""Encodings of the instruction sets: which bits name the format, which bits are which field.

A bit range is [high:low], counted from bit 0 of the first dword. A bit that no field covers must be 0. Sources: "AMD Instinct
MI200/MI300 ISA", "RDNA 2", "RDNA 3", "RDNA 4 ISA" (chapters on microcode formats); every field is checked against LLVM's
assembler text in tests/virtual/amd/test_isa.py.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

Gen = Literal["gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201"]
GENS: tuple[Gen, ...] = get_args(Gen)
WAVE_SIZE: dict[Gen, int] = {"gfx90a": 64, "gfx942": 64, "gfx1030": 32, "gfx1100": 32, "gfx1201": 32}

# Columns: format, bytes, generations, match, fields (a second line goes on with them). VOP3SD shares the match of VOP3, MAI that
# of VOP3P: the opcode decides.
TABLE = """
SOP2     4  all             [31:30]=10         op[29:23] sdst[22:16] ssrc1[15:8] ssrc0[7:0]
SOPK     4  all             [31:28]=1011       op[27:23] sdst[22:16] simm16[15:0]
SOP1     4  all             [31:23]=101111101  sdst[22:16] op[15:8] ssrc0[7:0]
SOPC     4  all             [31:23]=101111110  op[22:16] ssrc1[15:8] ssrc0[7:0]
SOPP     4  all             [31:23]=101111111  op[22:16] simm16[15:0]
SMEM     8  gfx90a gfx942   [31:26]=110000     op[25:18] imm[17] glc[16] soffset_en[14] sdata[12:6] sbase[5:0] soffset[63:57]
                                               offset[52:32]
SMEM     8  gfx1030         [31:26]=111101     op[25:18] glc[16] dlc[14] sdata[12:6] sbase[5:0] soffset[63:57] offset[52:32]
SMEM     8  gfx1100         [31:26]=111101     op[25:18] glc[14] dlc[13] sdata[12:6] sbase[5:0] soffset[63:57] offset[52:32]
SMEM     8  gfx1201         [31:26]=111101     th[24:23] scope[22:21] op[18:13] sdata[12:6] sbase[5:0] soffset[63:57]
                                               offset[55:32]
VOP2     4  all             [31:31]=0          op[30:25] vdst[24:17] vsrc1[16:9] src0[8:0]
VOP1     4  all             [31:25]=0111111    vdst[24:17] op[16:9] src0[8:0]
VOPC     4  all             [31:25]=0111110    op[24:17] vsrc1[16:9] src0[8:0]
VOP3     8  gfx90a gfx942   [31:26]=110100     op[25:16] clamp[15] op_sel[14:11] abs[10:8] vdst[7:0] neg[63:61] omod[60:59]
                                               src2[58:50] src1[49:41] src0[40:32]
VOP3     8  rdna            [31:26]=110101     op[25:16] clamp[15] op_sel[14:11] abs[10:8] vdst[7:0] neg[63:61] omod[60:59]
                                               src2[58:50] src1[49:41] src0[40:32]
VOP3SD   8  gfx90a gfx942   [31:26]=110100     op[25:16] clamp[15] sdst[14:8] vdst[7:0] neg[63:61] omod[60:59] src2[58:50]
                                               src1[49:41] src0[40:32]
VOP3SD   8  rdna            [31:26]=110101     op[25:16] clamp[15] sdst[14:8] vdst[7:0] neg[63:61] omod[60:59] src2[58:50]
                                               src1[49:41] src0[40:32]
VOP3P    8  gfx90a gfx942   [31:23]=110100111  op[22:16] clamp[15] op_sel_hi2[14] op_sel[13:11] neg_hi[10:8] vdst[7:0] neg[63:61]
                                               op_sel_hi[60:59] src2[58:50] src1[49:41] src0[40:32]
MAI      8  gfx90a gfx942   [31:23]=110100111  op[22:16] acc_cd[15] abid[14:11] cbsz[10:8] vdst[7:0] blgp[63:61] acc[60:59]
                                               src2[58:50] src1[49:41] src0[40:32]
VOP3P    8  rdna            [31:23]=110011000  op[22:16] clamp[15] op_sel_hi2[14] op_sel[13:11] neg_hi[10:8] vdst[7:0] neg[63:61]
                                               op_sel_hi[60:59] src2[58:50] src1[49:41] src0[40:32]
VOPD     8  gfx1100 gfx1201 [31:26]=110010     opx[25:22] opy[21:17] vsrcx1[16:9] srcx0[8:0] vdstx[63:56] vdsty[55:49]
                                               vsrcy1[48:41] srcy0[40:32]
DS       8  gfx90a gfx942   [31:26]=110110     acc[25] op[24:17] gds[16] offset1[15:8] offset0[7:0] vdst[63:56] data1[55:48]
                                               data0[47:40] addr[39:32]
DS       8  gfx1030 gfx1100 [31:26]=110110     op[25:18] gds[17] offset1[15:8] offset0[7:0] vdst[63:56] data1[55:48] data0[47:40]
                                               addr[39:32]
DS       8  gfx1201         [31:26]=110110     op[25:18] offset1[15:8] offset0[7:0] vdst[63:56] data1[55:48] data0[47:40]
                                               addr[39:32]
FLAT     8  gfx90a          [31:26]=110111     scc[25] op[24:18] slc[17] glc[16] seg[15:14] lds[13] offset[12:0] vdst[63:56]
                                               acc[55] saddr[54:48] data[47:40] addr[39:32]
FLAT     8  gfx942          [31:26]=110111     sc1[25] op[24:18] nt[17] sc0[16] seg[15:14] sve[13] offset[12:0] vdst[63:56]
                                               acc[55] saddr[54:48] data[47:40] addr[39:32]
FLAT     8  gfx1030         [31:26]=110111     op[24:18] slc[17] glc[16] seg[15:14] lds[13] dlc[12] offset[11:0] vdst[63:56]
                                               saddr[54:48] data[47:40] addr[39:32]
FLAT     8  gfx1100         [31:26]=110111     op[24:18] seg[17:16] slc[15] glc[14] dlc[13] offset[12:0] vdst[63:56] sve[55]
                                               saddr[54:48] data[47:40] addr[39:32]
FLAT    12  gfx1201         [31:26]=111011     seg[25:24] op[21:14] saddr[6:0] vsrc[62:55] th[54:52] scope[51:50] sve[49]
                                               vdst[39:32] offset[95:72] addr[71:64]
MUBUF    8  gfx90a          [31:26]=111000     op[24:18] slc[17] lds[16] scc[15] glc[14] idxen[13] offen[12] offset[11:0]
                                               soffset[63:56] acc[55] srsrc[52:48] vdata[47:40] vaddr[39:32]
MUBUF    8  gfx942          [31:26]=111000     op[24:18] nt[17] lds[16] sc1[15] sc0[14] idxen[13] offen[12] offset[11:0]
                                               soffset[63:56] acc[55] srsrc[52:48] vdata[47:40] vaddr[39:32]
MUBUF    8  gfx1030         [31:26]=111000     op[25:18] lds[16] dlc[15] glc[14] idxen[13] offen[12] offset[11:0] soffset[63:56]
                                               tfe[55] slc[54] srsrc[52:48] vdata[47:40] vaddr[39:32]
MUBUF    8  gfx1100         [31:26]=111000     op[25:18] glc[14] dlc[13] slc[12] offset[11:0] soffset[63:56] idxen[55] offen[54]
                                               tfe[53] srsrc[52:48] vdata[47:40] vaddr[39:32]
MUBUF   12  gfx1201         [31:26]=110001     tfe[22] op[21:14] soffset[6:0] idxen[63] offen[62] format[61:55] th[54:52]
                                               scope[51:50] srsrc[49:41] vdata[39:32] offset[95:72] vaddr[71:64]
"""

# One more dword after VOP1, VOP2, VOPC (and VOP3, VOP3P where DPP reaches them), announced by the code in src0.
SUFFIXES = """
DPP16    4  all             src0=250           row_mask[31:28] bank_mask[27:24] src1_abs[23] src1_neg[22] src0_abs[21]
                                               src0_neg[20] bound_ctrl[19] fi[18] ctrl[16:8] src0[7:0]
DPP8     4  rdna            src0=233           sel[31:8] src0[7:0]
DPP8FI   4  rdna            src0=234           sel[31:8] src0[7:0]
SDWA     4  gfx90a gfx942 gfx1030 src0=249           s1[31] src1_abs[29] src1_neg[28] src1_sext[27] src1_sel[26:24] s0[23]
                                                     src0_abs[21] src0_neg[20] src0_sext[19] src0_sel[18:16] omod[15:14] clamp[13]
                                                     dst_unused[12:11] dst_sel[10:8] src0[7:0]
SDWAC    4  gfx90a gfx942 gfx1030 src0=249           s1[31] src1_abs[29] src1_neg[28] src1_sext[27] src1_sel[26:24] s0[23]
                                                     src0_abs[21] src0_neg[20] src0_sext[19] src0_sel[18:16] sd[15] sdst[14:8]
                                                     src0[7:0]
"""

_GROUPS: dict[str, tuple[Gen, ...]] = {"all": GENS, "rdna": ("gfx1030", "gfx1100", "gfx1201")}


@dataclass(frozen=True, slots=True)
class Format:
    """One encoding of one generation: `size` bytes; a word belongs to it if `word & mask == match`."""

    name: str
    size: int
    mask: int
    match: int
    fields: dict[str, tuple[int, int]] = field(repr=False)  # name -> (lowest bit, mask of its width)
    reserved: int = field(repr=False)

    def unpack(self, word: int) -> dict[str, int]:
        return {name: word >> low & mask for name, (low, mask) in self.fields.items()}


_RANGE = re.compile(r"(\w*)\[(\d+)(?::(\d+))?\]")


def _format(line: str) -> tuple[Format, tuple[Gen, ...]]:
    name, size, *rest = line.split()
    at = next(i for i, text in enumerate(rest) if "=" in text)
    gens = tuple(gen for gen in GENS if any(gen in _GROUPS.get(group, (group,)) for group in rest[:at]))
    mask = match = 0
    where, value = rest[at].split("=")
    if found := _RANGE.fullmatch(where):
        high, low = int(found[2]), int(found[3])
        mask, match = ((1 << high - low + 1) - 1) << low, int(value, 2) << low
    fields = {}
    used = mask
    for text in rest[at + 1:]:
        found = _RANGE.fullmatch(text)
        assert found, text
        high, low = int(found[2]), int(found[3] or found[2])
        fields[found[1]] = (low, (1 << high - low + 1) - 1)
        used |= fields[found[1]][1] << low
    return Format(name, int(size), mask, match, fields, ((1 << 8 * int(size)) - 1) & ~used), gens


@functools.cache
def formats(gen: Gen) -> dict[str, Format]:
    """The formats of `gen` and its suffix dwords by name."""
    rows = [_format(line) for line in re.sub(r"\n +", " ", TABLE + SUFFIXES).splitlines() if line]
    return {fmt.name: fmt for fmt, gens in rows if gen in gens}


@functools.cache
def families(gen: Gen) -> tuple[Format, ...]:
    """The formats that a first dword is compared with, the longest match first."""
    found = {}
    for fmt in formats(gen).values():
        if fmt.mask and fmt.name not in ("VOP3SD", "MAI"):
            found[fmt.name] = fmt
    return tuple(sorted(found.values(), key=lambda fmt: -fmt.mask.bit_count()))
