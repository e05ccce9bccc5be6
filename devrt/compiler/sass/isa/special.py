"""Special registers by number, as S2R, S2UR and CS2R name them: those that compute work can read (nvdisasm's names)."""

from __future__ import annotations

_ALL = {
    0x00: "SR_LANEID",
    0x01: "SR_CLOCK",
    0x02: "SR_VIRTCFG",
    0x03: "SR_VIRTID",            # warp and SM numbers, packed
    0x13: "SR_THREAD_KILL",
    0x20: "SR_TID",
    0x21: "SR_TID.X",
    0x22: "SR_TID.Y",
    0x23: "SR_TID.Z",
    0x25: "SR_CTAID.X",
    0x26: "SR_CTAID.Y",
    0x27: "SR_CTAID.Z",
    0x28: "SR_NTID",
    0x2E: "SR_LWINHI",            # where local and shared memory lie in generic addresses
    0x2F: "SR_SWINHI",
    0x30: "SR_SWINLO",
    0x31: "SR_SWINSZ",
    0x32: "SR_SMEMSZ",
    0x33: "SR_SMEMBANKS",
    0x34: "SR_LWINLO",
    0x35: "SR_LWINSZ",
    0x36: "SR_LMEMLOSZ",
    0x37: "SR_LMEMHIOFF",
    0x38: "SR_EQMASK",            # lanes equal to, below, .. this one
    0x39: "SR_LTMASK",
    0x3A: "SR_LEMASK",
    0x3B: "SR_GTMASK",
    0x3C: "SR_GEMASK",
    0x3D: "SR_REGALLOC",
    0x3E: "SR_BARRIERALLOC",
    0x40: "SR_GLOBALERRORSTATUS",
    0x42: "SR_WARPERRORSTATUS",
    0x43: "SR_VIRTUALSMID",
    0x44: "SR_VIRTUALENGINEID",
    0x50: "SR_CLOCKLO",
    0x51: "SR_CLOCKHI",
    0x52: "SR_GLOBALTIMERLO",
    0x53: "SR_GLOBALTIMERHI",
    0x54: "SR_ESR_PC",
    0x55: "SR_ESR_PC_HI",
    0x60: "SR_HWTASKID",
    **{0x64 + n: f"SR_PM{'_HI' * (n % 2)}{n // 2}" for n in range(16)},  # counters of performance
    0xFF: "SRZ",
}
_SINCE_90 = {0x41: "SR_CGAERRORSTATUS", 0x88: "SR_CgaCtaId", 0x89: "SR_GpcLocalCgaId", 0x8B: "SR_CTARegPoolSz"}
_SINCE_100 = {0x8A: "SR_CgaSize"}
SPECIAL = {**_ALL, **_SINCE_90, **_SINCE_100}


def names(sm: int) -> dict[int, str]:
    """The special registers of a generation."""
    return SPECIAL if sm >= 100 else {**_ALL, **_SINCE_90} if sm >= 90 else _ALL
