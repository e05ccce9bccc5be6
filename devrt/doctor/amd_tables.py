"""Tables for AMD's GPUs: what sensors, counters and status words mean, and where that is written."""

from __future__ import annotations

import struct
from typing import NamedTuple

from devrt.doctor.findings import NOTE, WARNING, Severity

# ---------------------------------------------------------------------------------------------------------------------
# gpu_metrics: a header (size u16, format u8, content u8), then what that version holds. All ones: not available.


class Metric(NamedTuple):
    name: str
    offset: int
    format: str  # of struct, little-endian


METRICS_HEADER = struct.Struct("<HBB")

# (format, content) -> its fields. Linux drivers/gpu/drm/amd/include/kgd_pp_interface.h, gpu_metrics_v1_3: gfx90a, gfx1030,
# gfx11 and gfx12 have it. Versions without a row here are named, not read.
METRICS = {
    (1, 3): (
        Metric("edge_c", 4, "H"), Metric("hotspot_c", 6, "H"), Metric("memory_c", 8, "H"), Metric("gfx_busy_percent", 16, "H"),
        Metric("power_w", 22, "H"), Metric("gfx_mhz", 54, "H"), Metric("memory_mhz", 58, "H"),
        Metric("throttle_status", 68, "I"), Metric("fan_rpm", 72, "H"), Metric("indep_throttle_status", 112, "Q")),
}


def metrics(data: bytes) -> tuple[tuple[int, int] | None, dict[str, int]]:
    """(version, fields that are available) of a gpu_metrics file. The version is None where the data is no such thing; the
    fields are empty where the version has no table."""
    if len(data) < METRICS_HEADER.size:
        return None, {}
    size, form, content = METRICS_HEADER.unpack_from(data)
    found = {}
    for name, offset, letter in METRICS.get((form, content), ()):
        width = struct.calcsize("<" + letter)
        if offset + width <= min(size, len(data)):
            (value,) = struct.unpack_from("<" + letter, data, offset)
            if value != (1 << 8 * width) - 1:
                found[name] = value
    return (form, content), found


class Throttler(NamedTuple):
    first: int  # bits
    last: int
    severity: Severity
    cause: str
    remedy: str


# Bits of indep_throttle_status by the kind of limit that they stand for. Linux drivers/gpu/drm/amd/pm/swsmu/inc/amdgpu_smu.h,
# SMU_THROTTLER_*.
THROTTLERS = (
    Throttler(0, 15, NOTE, "power", "normal at full load; raise power1_cap if the supply and the cooling allow it"),
    Throttler(16, 31, NOTE, "current", "normal in short peaks; if it stays, check the power cables and the supply"),
    Throttler(32, 47, WARNING, "temperature", "check fans, air flow and dust; look again when it is cool"),
    Throttler(48, 63, NOTE, "its platform", "look at the power profile of the firmware set-up"),
)
THROTTLER_BITS = {
    0: "PPT0", 1: "PPT1", 2: "PPT2", 3: "PPT3", 4: "SPL", 5: "FPPT", 6: "SPPT", 7: "SPPT_APU", 16: "TDC_GFX", 17: "TDC_SOC",
    18: "TDC_MEM", 19: "TDC_VDD", 20: "TDC_CVIP", 21: "EDC_CPU", 22: "EDC_GFX", 23: "APCC", 32: "TEMP_GPU", 33: "TEMP_CORE",
    34: "TEMP_MEM", 35: "TEMP_EDGE", 36: "TEMP_HOTSPOT", 37: "TEMP_SOC", 38: "TEMP_VR_GFX", 39: "TEMP_VR_SOC",
    40: "TEMP_VR_MEM0", 41: "TEMP_VR_MEM1", 42: "TEMP_LIQUID0", 43: "TEMP_LIQUID1", 44: "VRHOT0", 45: "VRHOT1",
    46: "PROCHOT_CPU", 47: "PROCHOT_GFX", 56: "PPM", 57: "FIT",
}

# ---------------------------------------------------------------------------------------------------------------------
# Performance levels other than auto. Linux drivers/gpu/drm/amd/pm/amdgpu_pm.c, power_dpm_force_performance_level.


class Level(NamedTuple):
    severity: Severity
    what: str


LEVELS = {
    "low": Level(WARNING, "held at the lowest clocks, so everything is many times slower"),
    "profile_min_sclk": Level(WARNING, "held at the lowest engine clock, so kernels are many times slower"),
    "profile_min_mclk": Level(WARNING, "held at the lowest memory clock, so kernels are many times slower"),
    "manual": Level(WARNING, "clocks were set by hand, and do not follow the load"),
    "profile_standard": Level(NOTE, "held at the clocks for profiling, below its highest"),
    "perf_determinism": Level(NOTE, "the highest clock is limited, for even timing"),
    "high": Level(NOTE, "held at the highest clocks, also at rest"),
    "profile_peak": Level(NOTE, "held at the highest clocks, also at rest"),
}

# ---------------------------------------------------------------------------------------------------------------------
# Words of *_L2_PROTECTION_FAULT_STATUS. Linux drivers/gpu/drm/amd/include/asic_reg/gc/gc_*_sh_mask.h (gfx9 to gfx11 alike);
# the meaning of the bits: Documentation/gpu/amdgpu/debugging.rst.


class Bits(NamedTuple):
    name: str
    lsb: int
    width: int


FAULT_STATUS = (Bits("more", 0, 1), Bits("walker", 1, 3), Bits("permission", 4, 4), Bits("mapping", 8, 1), Bits("client", 9, 9),
                Bits("write", 18, 1), Bits("atomic", 19, 1), Bits("vmid", 20, 4))
PERMISSIONS = ("the page is not valid", "the page may not be read", "the page may not be written", "the page may not be executed")


def fault_status(word: int) -> str:
    """A status word in words: `a read; the page is not valid; the page may not be read; client 0x8, vmid 3`."""
    bits = {name: word >> lsb & (1 << width) - 1 for name, lsb, width in FAULT_STATUS}
    said = ["an atomic" if bits["atomic"] else "a write" if bits["write"] else "a read"]
    said += [text for bit, text in enumerate(PERMISSIONS) if bits["permission"] >> bit & 1]
    said += ["the page tables are damaged or missing"] if bits["walker"] else []
    said += ["the address is not mapped"] if bits["mapping"] else []
    said += ["more faults followed"] if bits["more"] else []
    return "; ".join([*said, f"client {bits['client']:#x}, vmid {bits['vmid']}"])


# ---------------------------------------------------------------------------------------------------------------------
# Others

# Files of fw_version/ in the order they are named. Linux drivers/gpu/drm/amd/amdgpu/amdgpu_ucode.c, fw_version attributes.
FIRMWARE = ("mec", "mec2", "sdma", "sdma2", "mes", "mes_kiq", "imu", "rlc", "smc", "sos", "asd")

# gpu_vram_bad_pages: `0xADDRESS : 0xSIZE : F` a line. Linux drivers/gpu/drm/amd/amdgpu/amdgpu_ras.c.
BAD_PAGES = {"R": "reserved", "P": "pending", "F": "not reservable"}
