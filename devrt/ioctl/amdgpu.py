# Linux include/uapi/drm/amdgpu_drm.h (7.3; what is newer than libdrm 2.4.114 is listed in SINCE)
"""AMD's graphics driver on a render node: what a GPU is, its memory as GEM objects, and their mapping into its VM.

Compute queues go through devrt.ioctl.kfd; this interface answers questions and maps its buffers into the CPU. Sizes are
in bytes, clocks in kHz unless said.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from devrt.ioctl.system import System
from devrt.ioctl.uapi import IOW, IOWR, Pointer, Uapi

AMDGPU = Uapi(
    name="amdgpu",
    header="amdgpu_drm.h",
    nodes=("/dev/dri/renderD*", "/dev/dri/card*"),
    magic=ord("d"),
    structs="""
struct drm_amdgpu_gem_create_in { uint64_t bo_size, alignment, domains, domain_flags; };
struct drm_amdgpu_gem_create_out { uint32_t handle, _pad; };
union drm_amdgpu_gem_create { struct drm_amdgpu_gem_create_in in; struct drm_amdgpu_gem_create_out out; };

struct drm_amdgpu_gem_mmap_in { uint32_t handle, _pad; };
struct drm_amdgpu_gem_mmap_out { uint64_t addr_ptr; };
union drm_amdgpu_gem_mmap { struct drm_amdgpu_gem_mmap_in in; struct drm_amdgpu_gem_mmap_out out; };

struct drm_amdgpu_gem_op { uint32_t handle, op; uint64_t value; uint32_t num_entries, padding; };
struct drm_amdgpu_gem_vm_entry { uint64_t addr, size, offset, flags; };
struct drm_amdgpu_gem_va {
    uint32_t handle, _pad, operation, flags;
    uint64_t va_address, offset_in_bo, map_size, vm_timeline_point;
    uint32_t vm_timeline_syncobj_out, num_syncobj_handles;
    uint64_t input_fence_syncobj_handles;
};

struct drm_amdgpu_ctx_in { uint32_t op, flags, ctx_id; int32_t priority; };
union drm_amdgpu_ctx_out {
    struct { uint32_t ctx_id, _pad; } alloc;
    struct { uint64_t flags; uint32_t hangs, reset_status; } state;
    struct { uint32_t flags, _pad; } pstate;
};
union drm_amdgpu_ctx { struct drm_amdgpu_ctx_in in; union drm_amdgpu_ctx_out out; };

struct drm_amdgpu_cs_in { uint32_t ctx_id, bo_list_handle, num_chunks, flags; uint64_t chunks; };
struct drm_amdgpu_cs_out { uint64_t handle; };
union drm_amdgpu_cs { struct drm_amdgpu_cs_in in; struct drm_amdgpu_cs_out out; };

struct drm_amdgpu_query_fw { uint32_t fw_type, ip_instance, index, _pad; };
struct drm_amdgpu_info {
    uint64_t return_pointer;
    uint32_t return_size, query;
    union {
        struct { uint32_t id, _pad; } mode_crtc;
        struct { uint32_t type, ip_instance; } query_hw_ip;
        struct { uint32_t dword_offset, count, instance, flags; } read_mmr_reg;
        struct drm_amdgpu_query_fw query_fw;
        struct { uint32_t type, offset; } vbios_info;
        struct { uint32_t type; } sensor_info;
        struct { uint32_t type; } video_cap;
    };
};
struct drm_amdgpu_info_vram_gtt { uint64_t vram_size, vram_cpu_accessible_size, gtt_size; };
struct drm_amdgpu_heap_info { uint64_t total_heap_size, usable_heap_size, heap_usage, max_allocation; };
struct drm_amdgpu_memory_info {
    struct drm_amdgpu_heap_info vram, cpu_accessible_vram, gtt;
};
struct drm_amdgpu_info_firmware { uint32_t ver, feature; };
struct drm_amdgpu_info_vbios {
    uint8_t name[64], vbios_pn[64];
    uint32_t version, pad;
    uint8_t vbios_ver_str[32], date[32];
};
struct drm_amdgpu_info_hw_ip {
    uint32_t hw_ip_version_major, hw_ip_version_minor;
    uint64_t capabilities_flags;
    uint32_t ib_start_alignment, ib_size_alignment, available_rings, ip_discovery_version, userq_num_slots;
};
struct drm_amdgpu_info_gpuvm_fault { uint64_t addr; uint32_t status, vmhub; };
struct drm_amdgpu_info_device {
    uint32_t device_id, chip_rev, external_rev, pci_rev, family;
    uint32_t num_shader_engines, num_shader_arrays_per_engine, gpu_counter_freq;
    uint64_t max_engine_clock, max_memory_clock;
    uint32_t cu_active_number, cu_ao_mask, cu_bitmap[4][4];
    uint32_t enabled_rb_pipes_mask, num_rb_pipes, num_hw_gfx_contexts, pcie_gen;
    uint64_t ids_flags, virtual_address_offset, virtual_address_max;
    uint32_t virtual_address_alignment, pte_fragment_size, gart_page_size, ce_ram_size;
    uint32_t vram_type, vram_bit_width, vce_harvest_config, gc_double_offchip_lds_buf;
    uint64_t prim_buf_gpu_addr, pos_buf_gpu_addr, cntl_sb_buf_gpu_addr, param_buf_gpu_addr;
    uint32_t prim_buf_size, pos_buf_size, cntl_sb_buf_size, param_buf_size;
    uint32_t wave_front_size, num_shader_visible_vgprs, num_cu_per_sh, num_tcc_blocks;
    uint32_t gs_vgt_table_depth, gs_prim_buffer_depth, max_gs_waves_per_vgt, pcie_num_lanes;
    uint32_t cu_ao_bitmap[4][4];
    uint64_t high_va_offset, high_va_max;
    uint32_t pa_sc_tile_steering_override;
    uint64_t tcc_disabled_mask, min_engine_clock, min_memory_clock;
    uint32_t tcp_cache_size, num_sqc_per_wgp, sqc_data_cache_size, sqc_inst_cache_size, gl1c_cache_size, gl2c_cache_size;
    uint64_t mall_size;
    uint32_t enabled_rb_pipes_mask_hi, shadow_size, shadow_alignment, csa_size, csa_alignment, userq_ip_mask;
};
""",
    ioctls={
        "DRM_IOCTL_AMDGPU_GEM_CREATE": IOWR(0x40, "drm_amdgpu_gem_create"),
        "DRM_IOCTL_AMDGPU_GEM_MMAP": IOWR(0x41, "drm_amdgpu_gem_mmap"),
        "DRM_IOCTL_AMDGPU_CTX": IOWR(0x42, "drm_amdgpu_ctx"),
        "DRM_IOCTL_AMDGPU_CS": IOWR(0x44, "drm_amdgpu_cs"),
        "DRM_IOCTL_AMDGPU_INFO": IOW(0x45, "drm_amdgpu_info", Pointer("return_pointer", "return_size")),
        "DRM_IOCTL_AMDGPU_GEM_VA": IOW(0x48, "drm_amdgpu_gem_va", addresses=("va_address",)),
        "DRM_IOCTL_AMDGPU_GEM_OP": IOWR(0x50, "drm_amdgpu_gem_op", addresses=("value",)),
    },
)

# The first release of Linux known to have a field or constant (by Debian's and Ubuntu's linux-libc-dev); what is not
# listed was in libdrm 2.4.114, of Linux 6.0.
SINCE: Mapping[str, str] = {
    "drm_amdgpu_info_device.pcie_gen": "6.8", "drm_amdgpu_info_device.pcie_num_lanes": "6.8",
    **{f"drm_amdgpu_info_device.{field}": "6.8" for field in (
        "min_engine_clock", "min_memory_clock", "tcp_cache_size", "num_sqc_per_wgp", "sqc_data_cache_size",
        "sqc_inst_cache_size", "gl1c_cache_size", "gl2c_cache_size", "mall_size", "enabled_rb_pipes_mask_hi", "shadow_size",
        "shadow_alignment", "csa_size", "csa_alignment")},
    "drm_amdgpu_info_hw_ip.ip_discovery_version": "6.8", "drm_amdgpu_info_gpuvm_fault": "6.8",
    "AMDGPU_GEM_DOMAIN_DOORBELL": "6.8", "AMDGPU_GEM_CREATE_DISCARDABLE": "6.8", "AMDGPU_GEM_CREATE_COHERENT": "6.8",
    "AMDGPU_GEM_CREATE_UNCACHED": "6.8", "AMDGPU_GEM_CREATE_EXT_COHERENT": "6.8", "AMDGPU_VM_PAGE_NOALLOC": "6.8",
    "AMDGPU_HW_IP_VPE": "6.8", "AMDGPU_INFO_MAX_IBS": "6.8", "AMDGPU_INFO_GPUVM_FAULT": "6.8",
    "AMDGPU_INFO_FW_CAP": "6.8", "AMDGPU_INFO_FW_GFX_RLCP": "6.8", "AMDGPU_INFO_FW_GFX_RLCV": "6.8",
    "AMDGPU_INFO_FW_MES_KIQ": "6.8", "AMDGPU_INFO_FW_MES": "6.8", "AMDGPU_INFO_FW_IMU": "6.8", "AMDGPU_INFO_FW_VPE": "6.8",
    "AMDGPU_INFO_SENSOR_PEAK_PSTATE_GFX_SCLK": "6.8", "AMDGPU_INFO_SENSOR_PEAK_PSTATE_GFX_MCLK": "6.8",
    "AMDGPU_INFO_SENSOR_GPU_INPUT_POWER": "6.12",
    "AMDGPU_GEM_CREATE_GFX12_DCC": "6.12",
    "AMDGPU_VRAM_TYPE_LPDDR4": "6.8", "AMDGPU_VRAM_TYPE_LPDDR5": "6.8", "AMDGPU_VRAM_TYPE_HBM3E": "6.17",
    "AMDGPU_VRAM_TYPE_HBM4": "7.2",
    "AMDGPU_FAMILY_GC_11_0_0": "6.8", "AMDGPU_FAMILY_GC_11_5_0": "6.8", "AMDGPU_FAMILY_GC_12_0_0": "6.12",
    "drm_amdgpu_gem_va.vm_timeline_point": "6.17", "drm_amdgpu_gem_va.vm_timeline_syncobj_out": "6.17",
    "drm_amdgpu_gem_va.num_syncobj_handles": "6.17", "drm_amdgpu_gem_va.input_fence_syncobj_handles": "6.17",
    "drm_amdgpu_info_device.userq_ip_mask": "6.17", "drm_amdgpu_info_hw_ip.userq_num_slots": "6.17",
    "AMDGPU_INFO_UQ_FW_AREAS": "6.17",
    "drm_amdgpu_gem_op.num_entries": "7.2", "drm_amdgpu_gem_op.padding": "7.2", "drm_amdgpu_gem_vm_entry": "7.2",
    "AMDGPU_GEM_OP_GET_MAPPING_INFO": "7.2",
}


class GemDomain(enum.IntFlag):
    CPU = 0x1
    GTT = 0x2
    VRAM = 0x4
    GDS = 0x8
    GWS = 0x10
    OA = 0x20
    DOORBELL = 0x40


class GemCreate(enum.IntFlag):
    CPU_ACCESS_REQUIRED = 1 << 0
    NO_CPU_ACCESS = 1 << 1
    CPU_GTT_USWC = 1 << 2
    VRAM_CLEARED = 1 << 3
    VRAM_CONTIGUOUS = 1 << 5
    VM_ALWAYS_VALID = 1 << 6
    EXPLICIT_SYNC = 1 << 7
    CP_MQD_GFX9 = 1 << 8
    VRAM_WIPE_ON_RELEASE = 1 << 9
    ENCRYPTED = 1 << 10
    PREEMPTIBLE = 1 << 11
    DISCARDABLE = 1 << 12
    COHERENT = 1 << 13
    UNCACHED = 1 << 14
    EXT_COHERENT = 1 << 15
    GFX12_DCC = 1 << 16


class GemOp(enum.IntEnum):
    GET_GEM_CREATE_INFO = 0
    SET_PLACEMENT = 1
    GET_MAPPING_INFO = 2


class VaOp(enum.IntEnum):
    MAP = 1
    UNMAP = 2
    CLEAR = 3
    REPLACE = 4


class VmPage(enum.IntFlag):
    READABLE = 1 << 1
    WRITEABLE = 1 << 2
    EXECUTABLE = 1 << 3
    PRT = 1 << 4
    NOALLOC = 1 << 9


class VmMtype(enum.IntEnum):
    DEFAULT = 0 << 5
    NC = 1 << 5
    WC = 2 << 5
    CC = 3 << 5
    UC = 4 << 5
    RW = 5 << 5


class CtxOp(enum.IntEnum):
    ALLOC_CTX = 1
    FREE_CTX = 2
    QUERY_STATE = 3
    QUERY_STATE2 = 4
    GET_STABLE_PSTATE = 5
    SET_STABLE_PSTATE = 6


class HwIp(enum.IntEnum):
    GFX = 0
    COMPUTE = 1
    DMA = 2
    UVD = 3
    VCE = 4
    UVD_ENC = 5
    VCN_DEC = 6
    VCN_ENC = 7
    VCN_JPEG = 8
    VPE = 9


class Query(enum.IntEnum):
    ACCEL_WORKING = 0x00
    CRTC_FROM_ID = 0x01
    HW_IP_INFO = 0x02
    HW_IP_COUNT = 0x03
    TIMESTAMP = 0x05
    FW_VERSION = 0x0E
    NUM_BYTES_MOVED = 0x0F
    VRAM_USAGE = 0x10
    GTT_USAGE = 0x11
    GDS_CONFIG = 0x13
    VRAM_GTT = 0x14
    READ_MMR_REG = 0x15
    DEV_INFO = 0x16
    VIS_VRAM_USAGE = 0x17
    NUM_EVICTIONS = 0x18
    MEMORY = 0x19
    VCE_CLOCK_TABLE = 0x1A
    VBIOS = 0x1B
    NUM_HANDLES = 0x1C
    SENSOR = 0x1D
    NUM_VRAM_CPU_PAGE_FAULTS = 0x1E
    VRAM_LOST_COUNTER = 0x1F
    RAS_ENABLED_FEATURES = 0x20
    VIDEO_CAPS = 0x21
    MAX_IBS = 0x22
    GPUVM_FAULT = 0x23
    UQ_FW_AREAS = 0x24


class Firmware(enum.IntEnum):
    VCE = 0x01
    UVD = 0x02
    GMC = 0x03
    GFX_ME = 0x04
    GFX_PFP = 0x05
    GFX_CE = 0x06
    GFX_RLC = 0x07
    GFX_MEC = 0x08
    SMC = 0x0A
    SDMA = 0x0B
    SOS = 0x0C
    ASD = 0x0D
    VCN = 0x0E
    DMCU = 0x12
    TA = 0x13
    DMCUB = 0x14
    TOC = 0x15
    CAP = 0x16
    GFX_RLCP = 0x17
    GFX_RLCV = 0x18
    MES_KIQ = 0x19
    MES = 0x1A
    IMU = 0x1B
    VPE = 0x1C


class Sensor(enum.IntEnum):
    """Clocks in MHz, temperature in millidegrees Celsius, load in percent, power in W, voltages in mV."""

    GFX_SCLK = 0x1
    GFX_MCLK = 0x2
    GPU_TEMP = 0x3
    GPU_LOAD = 0x4
    GPU_AVG_POWER = 0x5
    VDDNB = 0x6
    VDDGFX = 0x7
    STABLE_PSTATE_GFX_SCLK = 0x8
    STABLE_PSTATE_GFX_MCLK = 0x9
    PEAK_PSTATE_GFX_SCLK = 0xA
    PEAK_PSTATE_GFX_MCLK = 0xB
    GPU_INPUT_POWER = 0xC


class VbiosQuery(enum.IntEnum):
    SIZE = 0x1
    IMAGE = 0x2
    INFO = 0x3


class VramType(enum.IntEnum):
    UNKNOWN = 0
    GDDR1 = 1
    DDR2 = 2
    GDDR3 = 3
    GDDR4 = 4
    GDDR5 = 5
    HBM = 6
    DDR3 = 7
    DDR4 = 8
    GDDR6 = 9
    DDR5 = 10
    LPDDR4 = 11
    LPDDR5 = 12
    HBM3E = 13
    HBM4 = 14


class Family(enum.IntEnum):
    AI = 141
    NV = 143
    GC_11_0_0 = 145
    GC_11_5_0 = 150
    GC_12_0_0 = 152


# What the header puts before each member's name.
CONSTANTS: Mapping[str, type[enum.IntEnum] | type[enum.IntFlag]] = {
    "AMDGPU_GEM_DOMAIN_": GemDomain, "AMDGPU_GEM_CREATE_": GemCreate, "AMDGPU_GEM_OP_": GemOp, "AMDGPU_VA_OP_": VaOp,
    "AMDGPU_VM_PAGE_": VmPage, "AMDGPU_VM_MTYPE_": VmMtype, "AMDGPU_CTX_OP_": CtxOp, "AMDGPU_HW_IP_": HwIp,
    "AMDGPU_INFO_": Query, "AMDGPU_INFO_FW_": Firmware, "AMDGPU_INFO_SENSOR_": Sensor, "AMDGPU_INFO_VBIOS_": VbiosQuery,
    "AMDGPU_VRAM_TYPE_": VramType, "AMDGPU_FAMILY_": Family,
}

# What a query answers with: a struct above, or one integer of that many bytes.
ANSWERS: Mapping[Query, str | int] = {
    Query.ACCEL_WORKING: 4, Query.HW_IP_COUNT: 4, Query.TIMESTAMP: 8, Query.NUM_BYTES_MOVED: 8, Query.VRAM_USAGE: 8,
    Query.GTT_USAGE: 8, Query.VIS_VRAM_USAGE: 8, Query.NUM_EVICTIONS: 8, Query.SENSOR: 4, Query.NUM_VRAM_CPU_PAGE_FAULTS: 8,
    Query.VRAM_LOST_COUNTER: 4, Query.RAS_ENABLED_FEATURES: 8,
    Query.HW_IP_INFO: "drm_amdgpu_info_hw_ip", Query.FW_VERSION: "drm_amdgpu_info_firmware",
    Query.VRAM_GTT: "drm_amdgpu_info_vram_gtt", Query.DEV_INFO: "drm_amdgpu_info_device",
    Query.MEMORY: "drm_amdgpu_memory_info", Query.VBIOS: "drm_amdgpu_info_vbios",
    Query.GPUVM_FAULT: "drm_amdgpu_info_gpuvm_fault",
}


def info(system: System, fd: int, query: Query, /, **selector: Mapping[str, int]) -> Any:
    """The answer to a query: an int, or its struct with what an older kernel does not know as 0. Raises OSError.

    `selector` fills the query's member of the argument: query_fw={"fw_type": Firmware.GFX_MEC}.
    """
    answer = ANSWERS[query]
    room = AMDGPU.ffi.new(f"uint{answer * 8}_t *") if isinstance(answer, int) else AMDGPU.new(answer)
    AMDGPU.call(system, fd, "DRM_IOCTL_AMDGPU_INFO", return_pointer=int(AMDGPU.ffi.cast("uintptr_t", room)),
                return_size=AMDGPU.ffi.sizeof(room[0]) if isinstance(answer, str) else answer, query=query, **selector)
    return int(room[0]) if isinstance(answer, int) else room
