"""The compute registers that a queue may set: dword offsets from the start of the SH space, and their bits.

Source: Linux drivers/gpu/drm/amd/include/asic_reg/gc/gc_{9_4_3,10_3_0,11_0_0,12_0_0}_{offset,sh_mask}.h. There an offset
counts from its segment: 0x2000 of gfx9, 0x1260 of gfx10 and up; the sum is the absolute dword address, 0x2e00 for
COMPUTE_DISPATCH_INITIATOR.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from devrt.amd.packets import ALL, GFX9, GFX10_UP, GFX11_UP, BadPacket, Compiled, F, Field, Layout
from devrt.device import InvalidArgument

SH_BASE, SH_END = 0x2C00, 0x3000  # dwords: PACKET3_SET_SH_REG_START and _END of nvd.h
UCONFIG_BASE, UCONFIG_END = 0xC000, 0xC400

_GFX9_TO_11 = (9, 11)
_GFX10 = (10, 10)
_GFX11 = (11, 11)
_GFX12 = (12, 12)


def _whole(msb: int = 31) -> tuple[Field, ...]:
    return (F("DATA", 0, msb, 0),)


_DISPATCH_INITIATOR = (
    F("COMPUTE_SHADER_EN", 0, 0, 0),
    F("PARTIAL_TG_EN", 0, 1, 1),
    F("FORCE_START_AT_000", 0, 2, 2),
    F("ORDERED_APPEND_ENBL", 0, 3, 3),
    F("ORDERED_APPEND_MODE", 0, 4, 4),
    F("USE_THREAD_DIMENSIONS", 0, 5, 5),
    F("ORDER_MODE", 0, 6, 6),
    F("SCALAR_L1_INV_VOL", 0, 10, 10),
    F("VECTOR_L1_INV_VOL", 0, 11, 11),
    F("PING_PONG_EN", 0, 12, 12, gfx=_GFX12),
    F("TUNNEL_ENABLE", 0, 13, 13, gfx=GFX10_UP),
    F("RESTORE", 0, 14, 14),
    F("CS_W32_EN", 0, 15, 15, gfx=GFX10_UP),
    F("AMP_SHADER_EN", 0, 16, 16, gfx=GFX11_UP),
    F("DISABLE_DISP_PREMPT_EN", 0, 17, 17, gfx=GFX11_UP),
    F("INTERLEAVE_2D_EN", 0, 18, 18, gfx=_GFX12),
    F("TTRACE_QUEUE_ID", 0, 31, 29, gfx=_GFX12),
)
_NUM_THREAD = (  # threads of a full group, and of the last one where USE_THREAD_DIMENSIONS leaves a part
    F("NUM_THREAD_FULL", 0, 15, 0, gfx=_GFX9_TO_11),
    F("NUM_THREAD_FULL", 0, 12, 0, gfx=_GFX12),
    F("INTERLEAVE_BITS", 0, 15, 13, gfx=_GFX12),
    F("NUM_THREAD_PARTIAL", 0, 31, 16),
)
_PGM_RSRC1 = (
    F("VGPRS", 0, 5, 0),  # granules - 1: 8 registers in wave32 and on gfx90a and gfx942, else 4
    F("SGPRS", 0, 9, 6),
    F("PRIORITY", 0, 11, 10),
    F("FLOAT_MODE", 0, 19, 12),  # round f32, round f16 and f64, denormals f32, denormals f16 and f64; two bits each
    F("PRIV", 0, 20, 20),
    F("DX10_CLAMP", 0, 21, 21, gfx=_GFX9_TO_11),
    F("WG_RR_EN", 0, 21, 21, gfx=_GFX12),
    F("DEBUG_MODE", 0, 22, 22),
    F("IEEE_MODE", 0, 23, 23, gfx=_GFX9_TO_11),
    F("DISABLE_PERF", 0, 23, 23, gfx=_GFX12),
    F("BULKY", 0, 24, 24),
    F("CDBG_USER", 0, 25, 25),
    F("FP16_OVFL", 0, 26, 26),
    F("WGP_MODE", 0, 29, 29, gfx=GFX10_UP),
    F("MEM_ORDERED", 0, 30, 30, gfx=GFX10_UP),
    F("FWD_PROGRESS", 0, 31, 31, gfx=GFX10_UP),
)
_PGM_RSRC2 = (
    F("SCRATCH_EN", 0, 0, 0),
    F("USER_SGPR", 0, 5, 1),
    F("TRAP_PRESENT", 0, 6, 6, gfx=_GFX9_TO_11),
    F("DYNAMIC_VGPR", 0, 6, 6, gfx=_GFX12),
    F("TGID_X_EN", 0, 7, 7),
    F("TGID_Y_EN", 0, 8, 8),
    F("TGID_Z_EN", 0, 9, 9),
    F("TG_SIZE_EN", 0, 10, 10),
    F("TIDIG_COMP_CNT", 0, 12, 11),  # work-item ids: 0 x, 1 xy, 2 xyz
    F("EXCP_EN_MSB", 0, 14, 13),
    F("LDS_SIZE", 0, 23, 15),  # in 512 bytes; the launcher sets it
    F("EXCP_EN", 0, 30, 24),
    F("SKIP_USGPR0", 0, 31, 31, gfx=GFX9),
    F("WGP_TAKEOVER", 0, 31, 31, gfx=_GFX12),
)
_PGM_RSRC3 = (
    F("ACCUM_OFFSET", 0, 5, 0, gfx=GFX9),  # first AGPR / 4 - 1
    F("SHARED_VGPR_CNT", 0, 3, 0, gfx=GFX10_UP),
    F("INST_PREF_SIZE", 0, 9, 4, gfx=_GFX11),
    F("INST_PREF_SIZE", 0, 11, 4, gfx=_GFX12),
    F("TRAP_ON_START", 0, 10, 10, gfx=GFX9),
    F("TRAP_ON_END", 0, 11, 11, gfx=GFX9),
    F("TRAP_ON_START", 0, 10, 10, gfx=_GFX11),
    F("TRAP_ON_END", 0, 11, 11, gfx=_GFX11),
    F("GLG_EN", 0, 13, 13, gfx=_GFX12),
    F("TG_SPLIT", 0, 16, 16, gfx=GFX9),
    F("IMAGE_OP", 0, 31, 31, gfx=GFX11_UP),
)
_RESOURCE_LIMITS = (  # 0 is no limit
    F("WAVES_PER_SH", 0, 9, 0),
    F("TG_PER_CU", 0, 15, 12),
    F("LOCK_THRESHOLD", 0, 21, 16),
    F("SIMD_DEST_CNTL", 0, 22, 22),
    F("FORCE_SIMD_DIST", 0, 23, 23),
    F("CU_GROUP_COUNT", 0, 26, 24),
    F("SIMD_DISABLE", 0, 30, 27, gfx=GFX9),
)
_TMPRING_SIZE = (  # WAVESIZE in 1 KiB on gfx9 and gfx10, in 256 bytes on gfx11 and up
    F("WAVES", 0, 11, 0),
    F("WAVESIZE", 0, 24, 12, gfx=(9, 10)),
    F("WAVESIZE", 0, 26, 12, gfx=_GFX11),
    F("WAVESIZE", 0, 29, 12, gfx=_GFX12),
)
_SE = (F("SH0_CU_EN", 0, 15, 0), F("SH1_CU_EN", 0, 31, 16))

# name, offset, first and last generation, bits
_ROWS: tuple[tuple[str, int, tuple[int, int], tuple[Field, ...]], ...] = (
    ("COMPUTE_DISPATCH_INITIATOR", 0x200, ALL, _DISPATCH_INITIATOR),
    ("COMPUTE_DIM_X", 0x201, ALL, _whole()),
    ("COMPUTE_DIM_Y", 0x202, ALL, _whole()),
    ("COMPUTE_DIM_Z", 0x203, ALL, _whole()),
    ("COMPUTE_START_X", 0x204, ALL, _whole()),
    ("COMPUTE_START_Y", 0x205, ALL, _whole()),
    ("COMPUTE_START_Z", 0x206, ALL, _whole()),
    ("COMPUTE_NUM_THREAD_X", 0x207, ALL, _NUM_THREAD),
    ("COMPUTE_NUM_THREAD_Y", 0x208, ALL, _NUM_THREAD),
    ("COMPUTE_NUM_THREAD_Z", 0x209, ALL, _NUM_THREAD),
    ("COMPUTE_PIPELINESTAT_ENABLE", 0x20A, ALL, _whole(0)),
    ("COMPUTE_PERFCOUNT_ENABLE", 0x20B, ALL, _whole(0)),
    ("COMPUTE_PGM_LO", 0x20C, ALL, _whole()),  # address >> 8
    ("COMPUTE_PGM_HI", 0x20D, ALL, _whole(7)),
    ("COMPUTE_DISPATCH_PKT_ADDR_LO", 0x20E, ALL, _whole()),
    ("COMPUTE_DISPATCH_PKT_ADDR_HI", 0x20F, ALL, _whole(7)),
    ("COMPUTE_DISPATCH_SCRATCH_BASE_LO", 0x210, ALL, _whole()),  # address >> 8
    ("COMPUTE_DISPATCH_SCRATCH_BASE_HI", 0x211, ALL, _whole(7)),
    ("COMPUTE_PGM_RSRC1", 0x212, ALL, _PGM_RSRC1),
    ("COMPUTE_PGM_RSRC2", 0x213, ALL, _PGM_RSRC2),
    ("COMPUTE_VMID", 0x214, ALL, _whole(3)),
    ("COMPUTE_RESOURCE_LIMITS", 0x215, ALL, _RESOURCE_LIMITS),
    ("COMPUTE_STATIC_THREAD_MGMT_SE0", 0x216, ALL, _SE),
    ("COMPUTE_STATIC_THREAD_MGMT_SE1", 0x217, ALL, _SE),
    ("COMPUTE_TMPRING_SIZE", 0x218, ALL, _TMPRING_SIZE),
    ("COMPUTE_STATIC_THREAD_MGMT_SE2", 0x219, ALL, _SE),
    ("COMPUTE_STATIC_THREAD_MGMT_SE3", 0x21A, ALL, _SE),
    ("COMPUTE_RESTART_X", 0x21B, ALL, _whole()),
    ("COMPUTE_RESTART_Y", 0x21C, ALL, _whole()),
    ("COMPUTE_RESTART_Z", 0x21D, ALL, _whole()),
    ("COMPUTE_THREAD_TRACE_ENABLE", 0x21E, ALL, _whole(0)),
    ("COMPUTE_MISC_RESERVED", 0x21F, ALL, _whole()),
    ("COMPUTE_DISPATCH_ID", 0x220, ALL, _whole()),
    ("COMPUTE_THREADGROUP_ID", 0x221, ALL, _whole()),
    ("COMPUTE_RELAUNCH", 0x222, GFX9, _whole()),
    ("COMPUTE_REQ_CTRL", 0x222, GFX10_UP, _whole()),
    ("COMPUTE_STATIC_THREAD_MGMT_SE8", 0x223, _GFX12, _SE),
    ("COMPUTE_USER_ACCUM_0", 0x224, GFX10_UP, _whole(6)),
    ("COMPUTE_USER_ACCUM_1", 0x225, GFX10_UP, _whole(6)),
    ("COMPUTE_USER_ACCUM_2", 0x226, GFX10_UP, _whole(6)),
    ("COMPUTE_USER_ACCUM_3", 0x227, GFX10_UP, _whole(6)),
    # of gfx90a; gfx942 has CURRENT_LOGIC_XCC_ID at 0x225 and TG_CHUNK_SIZE at 0x227, which only the driver sets
    ("COMPUTE_STATIC_THREAD_MGMT_SE4", 0x225, GFX9, _SE),
    ("COMPUTE_STATIC_THREAD_MGMT_SE5", 0x226, GFX9, _SE),
    ("COMPUTE_STATIC_THREAD_MGMT_SE6", 0x227, GFX9, _SE),
    ("COMPUTE_STATIC_THREAD_MGMT_SE7", 0x228, GFX9, _SE),
    ("COMPUTE_PGM_RSRC3", 0x228, GFX10_UP, _PGM_RSRC3),
    ("COMPUTE_PGM_RSRC3", 0x22D, GFX9, _PGM_RSRC3),
    ("COMPUTE_RELAUNCH", 0x22B, _GFX10, _whole()),
    ("COMPUTE_STATIC_THREAD_MGMT_SE4", 0x22B, GFX11_UP, _SE),
    ("COMPUTE_STATIC_THREAD_MGMT_SE5", 0x22C, GFX11_UP, _SE),
    ("COMPUTE_STATIC_THREAD_MGMT_SE6", 0x22D, GFX11_UP, _SE),
    ("COMPUTE_STATIC_THREAD_MGMT_SE7", 0x22E, GFX11_UP, _SE),
    ("COMPUTE_DISPATCH_INTERLEAVE", 0x22F, _GFX11, _whole(9)),
    ("COMPUTE_DISPATCH_INTERLEAVE", 0x22F, _GFX12, _whole()),
    ("COMPUTE_RELAUNCH", 0x230, GFX11_UP, _whole()),
    *((f"COMPUTE_USER_DATA_{index}", 0x240 + index, ALL, _whole()) for index in range(16)),
    ("COMPUTE_DISPATCH_TUNNEL", 0x27D, GFX10_UP, _whole()),
)


@functools.cache
def table(gfx: int) -> Mapping[str, tuple[int, Compiled]]:
    """Name -> (offset, bits) of one generation, in the order of the offsets."""
    rows = sorted((row for row in _ROWS if row[2][0] <= gfx <= row[2][1]), key=lambda row: row[1])
    return {name: (offset, Layout(name, 1, fields, span).of(gfx)) for name, offset, span, fields in rows}


@functools.cache
def names(gfx: int) -> Mapping[int, str]:
    """Offset -> name."""
    return {offset: name for name, (offset, _) in table(gfx).items()}


def offset(name: str, gfx: int) -> int:
    """Dwords from SH_BASE. Raises InvalidArgument where the generation lacks the register."""
    return _row(name, gfx)[0]


def pack(name: str, gfx: int, /, **fields: int) -> int:
    """The register's value; fields left out are 0. Raises InvalidArgument."""
    return _row(name, gfx)[1].pack(fields)


def unpack(name: str, gfx: int, value: int, at: int = 0) -> dict[str, int]:
    """The fields of a value. Raises BadPacket for reserved bits."""
    return _row(name, gfx)[1].unpack(value, at)


def writes(first: int, values: tuple[int, ...], gfx: int, at: int = 0) -> dict[str, int]:
    """The registers that SET_SH_REG writes, by name. Raises BadPacket for an offset or a bit that the generation lacks."""
    found = {}
    for index, value in enumerate(values):
        name = names(gfx).get(first + index)
        if name is None:
            raise BadPacket(f"gfx{gfx} has no compute register at SH offset {first + index:#x}", at + index)
        unpack(name, gfx, value, at + index)
        found[name] = value
    return found


def _row(name: str, gfx: int) -> tuple[int, Compiled]:
    found = table(gfx).get(name)
    if found is None:
        raise InvalidArgument(f"gfx{gfx} has no register {name}")
    return found
