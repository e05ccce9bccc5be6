# Linux include/uapi/linux/kfd_ioctl.h (7.3, interface 1.23; what is newer than 1.11 of Linux 6.1 is listed in SINCE)
"""AMD's compute driver: /dev/kfd, one process context a process, queues and memory of every GPU.

Fields keep the header's names. Addresses and sizes are in bytes unless said. The kernel picks the handler by the number
alone and takes a struct of any size: a shorter one is extended by zeros, so the structs here are the newest ones.
"""

from __future__ import annotations

import struct as packing
from collections.abc import Mapping, Sequence

from devrt.ioctl.kfd_values import (
    CONSTANTS,
    AllocFlag,
    CachePolicy,
    CriuOp,
    DebugOp,
    EventType,
    ExceptionCode,
    MemoryError_,
    MmapType,
    MmioRemap,
    QueueType,
    ResetCause,
    ResetType,
    RuntimeEnableMode,
    SmiEvent,
    SvmAttribute,
    SvmFlag,
    SvmLocation,
    SvmOp,
    WaitResult,
)
from devrt.ioctl.system import System
from devrt.ioctl.uapi import IO, IOR, IOW, IOWR, Pointer, Uapi

__all__ = [
    "CONSTANTS", "KFD", "RELEASES", "SINCE", "AllocFlag", "CachePolicy", "CriuOp", "DebugOp", "EventType", "ExceptionCode",
    "MemoryError_", "MmapType", "MmioRemap", "QueueType", "ResetCause", "ResetType", "RuntimeEnableMode", "SmiEvent",
    "SvmAttribute", "SvmFlag", "SvmLocation", "SvmOp", "WaitResult", "mmap_offset", "size_at", "split_mmap_offset", "svm",
    "svm_attributes", "version",
]

KFD = Uapi(
    name="kfd",
    header="linux/kfd_ioctl.h",
    nodes=("/dev/kfd",),
    magic=ord("K"),
    structs="""
struct kfd_ioctl_get_version_args { uint32_t major_version, minor_version; };

struct kfd_ioctl_create_queue_args {
    uint64_t ring_base_address, write_pointer_address, read_pointer_address, doorbell_offset;
    uint32_t ring_size, gpu_id, queue_type, queue_percentage, queue_priority, queue_id;
    uint64_t eop_buffer_address, eop_buffer_size, ctx_save_restore_address;
    uint32_t ctx_save_restore_size, ctl_stack_size, sdma_engine_id, metadata_ring_size;
};
struct kfd_ioctl_destroy_queue_args { uint32_t queue_id, pad; };
struct kfd_ioctl_update_queue_args {
    uint64_t ring_base_address;
    uint32_t queue_id, ring_size, queue_percentage, queue_priority;
};
struct kfd_ioctl_set_cu_mask_args { uint32_t queue_id, num_cu_mask; uint64_t cu_mask_ptr; };
struct kfd_ioctl_get_queue_wave_state_args {
    uint64_t ctl_stack_address;
    uint32_t ctl_stack_used_size, save_area_used_size, queue_id, pad;
};
struct kfd_ioctl_alloc_queue_gws_args { uint32_t queue_id, num_gws, first_gws, pad; };

struct kfd_ioctl_set_memory_policy_args {
    uint64_t alternate_aperture_base, alternate_aperture_size;
    uint32_t gpu_id, default_policy, alternate_policy, misc_process_flag;
};
struct kfd_ioctl_get_clock_counters_args {
    uint64_t gpu_clock_counter, cpu_clock_counter, system_clock_counter, system_clock_freq;
    uint32_t gpu_id, pad;
};
struct kfd_ioctl_get_available_memory_args { uint64_t available; uint32_t gpu_id, pad; };
struct kfd_ioctl_get_tile_config_args {
    uint64_t tile_config_ptr, macro_tile_config_ptr;
    uint32_t num_tile_configs, num_macro_tile_configs, gpu_id, gb_addr_config, num_banks, num_ranks;
};
struct kfd_ioctl_set_trap_handler_args { uint64_t tba_addr, tma_addr; uint32_t gpu_id, pad; };
struct kfd_ioctl_set_scratch_backing_va_args { uint64_t va_addr; uint32_t gpu_id, pad; };
struct kfd_ioctl_set_xnack_mode_args { int32_t xnack_enabled; };

struct kfd_process_device_apertures {
    uint64_t lds_base, lds_limit, scratch_base, scratch_limit, gpuvm_base, gpuvm_limit;
    uint32_t gpu_id, pad;
};
struct kfd_ioctl_get_process_apertures_args {
    struct kfd_process_device_apertures process_apertures[7];
    uint32_t num_of_nodes, pad;
};
struct kfd_ioctl_get_process_apertures_new_args {
    uint64_t kfd_process_device_apertures_ptr;
    uint32_t num_of_nodes, pad;
};
struct kfd_ioctl_acquire_vm_args { uint32_t drm_fd, gpu_id; };

struct kfd_ioctl_alloc_memory_of_gpu_args { uint64_t va_addr, size, handle, mmap_offset; uint32_t gpu_id, flags; };
struct kfd_ioctl_free_memory_of_gpu_args { uint64_t handle; };
struct kfd_ioctl_map_memory_to_gpu_args { uint64_t handle, device_ids_array_ptr; uint32_t n_devices, n_success; };
struct kfd_ioctl_unmap_memory_from_gpu_args { uint64_t handle, device_ids_array_ptr; uint32_t n_devices, n_success; };
struct kfd_ioctl_get_dmabuf_info_args {
    uint64_t size, metadata_ptr;
    uint32_t metadata_size, gpu_id, flags, dmabuf_fd;
};
struct kfd_ioctl_import_dmabuf_args { uint64_t va_addr, handle; uint32_t gpu_id, dmabuf_fd; };
struct kfd_ioctl_export_dmabuf_args { uint64_t handle; uint32_t flags, dmabuf_fd; };

struct kfd_ioctl_create_event_args {
    uint64_t event_page_offset;
    uint32_t event_trigger_data, event_type, auto_reset, node_id, event_id, event_slot_index;
};
struct kfd_ioctl_destroy_event_args { uint32_t event_id, pad; };
struct kfd_ioctl_set_event_args { uint32_t event_id, pad; };
struct kfd_ioctl_reset_event_args { uint32_t event_id, pad; };
struct kfd_memory_exception_failure { uint32_t NotPresent, ReadOnly, NoExecute, imprecise; };
struct kfd_hsa_memory_exception_data {
    struct kfd_memory_exception_failure failure;
    uint64_t va;
    uint32_t gpu_id, ErrorType;
};
struct kfd_hsa_hw_exception_data { uint32_t reset_type, reset_cause, memory_lost, gpu_id; };
struct kfd_hsa_signal_event_data { uint64_t last_event_age; };
struct kfd_event_data {
    union {
        struct kfd_hsa_memory_exception_data memory_exception_data;
        struct kfd_hsa_hw_exception_data hw_exception_data;
        struct kfd_hsa_signal_event_data signal_event_data;
    };
    uint64_t kfd_event_data_ext;
    uint32_t event_id, pad;
};
struct kfd_ioctl_wait_events_args { uint64_t events_ptr; uint32_t num_events, wait_for_all, timeout, wait_result; };
struct kfd_ioctl_smi_events_args { uint32_t gpuid, anon_fd; };

struct kfd_ioctl_svm_attribute { uint32_t type, value; };
struct kfd_ioctl_svm_args { uint64_t start_addr, size; uint32_t op, nattr; };

struct kfd_ioctl_criu_args {
    uint64_t devices, bos, priv_data, priv_data_size;
    uint32_t num_devices, num_bos, num_objects, pid, op;
};
struct kfd_criu_device_bucket { uint32_t user_gpu_id, actual_gpu_id, drm_fd, pad; };
struct kfd_criu_bo_bucket {
    uint64_t addr, size, offset, restored_offset;
    uint32_t gpu_id, alloc_flags, dmabuf_fd, pad;
};

struct kfd_ioctl_runtime_enable_args { uint64_t r_debug; uint32_t mode_mask, capabilities_mask; };
struct kfd_runtime_info { uint64_t r_debug; uint32_t runtime_state, ttmp_setup; };
struct kfd_queue_snapshot_entry {
    uint64_t exception_status, ring_base_address, write_pointer_address, read_pointer_address, ctx_save_restore_address;
    uint32_t queue_id, gpu_id, ring_size, queue_type, ctx_save_restore_area_size, reserved;
};
struct kfd_dbg_device_info_entry {
    uint64_t exception_status, lds_base, lds_limit, scratch_base, scratch_limit, gpuvm_base, gpuvm_limit;
    uint32_t gpu_id, location_id, vendor_id, device_id, revision_id, subsystem_vendor_id, subsystem_device_id;
    uint32_t fw_version, gfx_target_version, simd_count, max_waves_per_simd, array_count, simd_arrays_per_engine;
    uint32_t num_xcc, capability, debug_prop, capability2, pad;
};
struct kfd_context_save_area_header {
    struct { uint32_t control_stack_offset, control_stack_size, wave_state_offset, wave_state_size; } wave_state;
    uint32_t debug_offset, debug_size;
    uint64_t err_payload_addr;
    uint32_t err_event_id, reserved1;
};
struct kfd_ioctl_dbg_trap_enable_args { uint64_t exception_mask, rinfo_ptr; uint32_t rinfo_size, dbg_fd; };
struct kfd_ioctl_dbg_trap_send_runtime_event_args { uint64_t exception_mask; uint32_t gpu_id, queue_id; };
struct kfd_ioctl_dbg_trap_set_exceptions_enabled_args { uint64_t exception_mask; };
struct kfd_ioctl_dbg_trap_set_wave_launch_override_args {
    uint32_t override_mode, enable_mask, support_request_mask, pad;
};
struct kfd_ioctl_dbg_trap_set_wave_launch_mode_args { uint32_t launch_mode, pad; };
struct kfd_ioctl_dbg_trap_suspend_queues_args {
    uint64_t exception_mask, queue_array_ptr;
    uint32_t num_queues, grace_period;
};
struct kfd_ioctl_dbg_trap_resume_queues_args { uint64_t queue_array_ptr; uint32_t num_queues, pad; };
struct kfd_ioctl_dbg_trap_set_node_address_watch_args { uint64_t address; uint32_t mode, mask, gpu_id, id; };
struct kfd_ioctl_dbg_trap_clear_node_address_watch_args { uint32_t gpu_id, id; };
struct kfd_ioctl_dbg_trap_set_flags_args { uint32_t flags, pad; };
struct kfd_ioctl_dbg_trap_query_debug_event_args { uint64_t exception_mask; uint32_t gpu_id, queue_id; };
struct kfd_ioctl_dbg_trap_query_exception_info_args {
    uint64_t info_ptr;
    uint32_t info_size, source_id, exception_code, clear_exception;
};
struct kfd_ioctl_dbg_trap_queue_snapshot_args {
    uint64_t exception_mask, snapshot_buf_ptr;
    uint32_t num_queues, entry_size;
};
struct kfd_ioctl_dbg_trap_device_snapshot_args {
    uint64_t exception_mask, snapshot_buf_ptr;
    uint32_t num_devices, entry_size;
};
struct kfd_ioctl_dbg_trap_args {
    uint32_t pid, op;
    union {
        struct kfd_ioctl_dbg_trap_enable_args enable;
        struct kfd_ioctl_dbg_trap_send_runtime_event_args send_runtime_event;
        struct kfd_ioctl_dbg_trap_set_exceptions_enabled_args set_exceptions_enabled;
        struct kfd_ioctl_dbg_trap_set_wave_launch_override_args launch_override;
        struct kfd_ioctl_dbg_trap_set_wave_launch_mode_args launch_mode;
        struct kfd_ioctl_dbg_trap_suspend_queues_args suspend_queues;
        struct kfd_ioctl_dbg_trap_resume_queues_args resume_queues;
        struct kfd_ioctl_dbg_trap_set_node_address_watch_args set_node_address_watch;
        struct kfd_ioctl_dbg_trap_clear_node_address_watch_args clear_node_address_watch;
        struct kfd_ioctl_dbg_trap_set_flags_args set_flags;
        struct kfd_ioctl_dbg_trap_query_debug_event_args query_debug_event;
        struct kfd_ioctl_dbg_trap_query_exception_info_args query_exception_info;
        struct kfd_ioctl_dbg_trap_queue_snapshot_args queue_snapshot;
        struct kfd_ioctl_dbg_trap_device_snapshot_args device_snapshot;
    };
};

struct kfd_ioctl_pmc_settings { uint32_t gpu_id, lock, perfcount_enable; };
struct kfd_ioctl_ptl_control { uint32_t gpu_id, enable; };
struct kfd_ioctl_profiler_args {
    uint32_t op;
    union {
        struct kfd_ioctl_pmc_settings pmc;
        struct kfd_ioctl_ptl_control ptl;
        uint32_t version;
    };
};
""",
    ioctls={
        "AMDKFD_IOC_GET_VERSION": IOR(0x01, "kfd_ioctl_get_version_args"),
        "AMDKFD_IOC_CREATE_QUEUE": IOWR(0x02, "kfd_ioctl_create_queue_args", addresses=(
            "ring_base_address", "write_pointer_address", "read_pointer_address", "eop_buffer_address",
            "ctx_save_restore_address")),
        "AMDKFD_IOC_DESTROY_QUEUE": IOWR(0x03, "kfd_ioctl_destroy_queue_args"),
        "AMDKFD_IOC_SET_MEMORY_POLICY": IOW(0x04, "kfd_ioctl_set_memory_policy_args", addresses=("alternate_aperture_base",)),
        "AMDKFD_IOC_GET_CLOCK_COUNTERS": IOWR(0x05, "kfd_ioctl_get_clock_counters_args"),
        "AMDKFD_IOC_GET_PROCESS_APERTURES": IOR(0x06, "kfd_ioctl_get_process_apertures_args"),
        "AMDKFD_IOC_UPDATE_QUEUE": IOW(0x07, "kfd_ioctl_update_queue_args", addresses=("ring_base_address",)),
        "AMDKFD_IOC_CREATE_EVENT": IOWR(0x08, "kfd_ioctl_create_event_args"),
        "AMDKFD_IOC_DESTROY_EVENT": IOW(0x09, "kfd_ioctl_destroy_event_args"),
        "AMDKFD_IOC_SET_EVENT": IOW(0x0A, "kfd_ioctl_set_event_args"),
        "AMDKFD_IOC_RESET_EVENT": IOW(0x0B, "kfd_ioctl_reset_event_args"),
        "AMDKFD_IOC_WAIT_EVENTS": IOWR(0x0C, "kfd_ioctl_wait_events_args", Pointer("events_ptr", "num_events", 48)),
        "AMDKFD_IOC_SET_SCRATCH_BACKING_VA": IOWR(0x11, "kfd_ioctl_set_scratch_backing_va_args", addresses=("va_addr",)),
        "AMDKFD_IOC_GET_TILE_CONFIG": IOWR(
            0x12, "kfd_ioctl_get_tile_config_args", Pointer("tile_config_ptr", "num_tile_configs", 4),
            Pointer("macro_tile_config_ptr", "num_macro_tile_configs", 4)),
        "AMDKFD_IOC_SET_TRAP_HANDLER": IOW(0x13, "kfd_ioctl_set_trap_handler_args", addresses=("tba_addr", "tma_addr")),
        "AMDKFD_IOC_GET_PROCESS_APERTURES_NEW": IOWR(
            0x14, "kfd_ioctl_get_process_apertures_new_args",
            Pointer("kfd_process_device_apertures_ptr", "num_of_nodes", 56)),
        "AMDKFD_IOC_ACQUIRE_VM": IOW(0x15, "kfd_ioctl_acquire_vm_args"),
        "AMDKFD_IOC_ALLOC_MEMORY_OF_GPU": IOWR(0x16, "kfd_ioctl_alloc_memory_of_gpu_args", addresses=("va_addr", "mmap_offset")),
        "AMDKFD_IOC_FREE_MEMORY_OF_GPU": IOW(0x17, "kfd_ioctl_free_memory_of_gpu_args"),
        "AMDKFD_IOC_MAP_MEMORY_TO_GPU": IOWR(
            0x18, "kfd_ioctl_map_memory_to_gpu_args", Pointer("device_ids_array_ptr", "n_devices", 4)),
        "AMDKFD_IOC_UNMAP_MEMORY_FROM_GPU": IOWR(
            0x19, "kfd_ioctl_unmap_memory_from_gpu_args", Pointer("device_ids_array_ptr", "n_devices", 4)),
        "AMDKFD_IOC_SET_CU_MASK": IOW(0x1A, "kfd_ioctl_set_cu_mask_args", Pointer("cu_mask_ptr", "num_cu_mask", 4, per=32)),
        "AMDKFD_IOC_GET_QUEUE_WAVE_STATE": IOWR(
            0x1B, "kfd_ioctl_get_queue_wave_state_args", addresses=("ctl_stack_address",)),
        "AMDKFD_IOC_GET_DMABUF_INFO": IOWR(0x1C, "kfd_ioctl_get_dmabuf_info_args", Pointer("metadata_ptr", "metadata_size")),
        "AMDKFD_IOC_IMPORT_DMABUF": IOWR(0x1D, "kfd_ioctl_import_dmabuf_args", addresses=("va_addr",)),
        "AMDKFD_IOC_ALLOC_QUEUE_GWS": IOWR(0x1E, "kfd_ioctl_alloc_queue_gws_args"),
        "AMDKFD_IOC_SMI_EVENTS": IOWR(0x1F, "kfd_ioctl_smi_events_args"),
        "AMDKFD_IOC_SVM": IOWR(0x20, "kfd_ioctl_svm_args", addresses=("start_addr",)),
        "AMDKFD_IOC_SET_XNACK_MODE": IOWR(0x21, "kfd_ioctl_set_xnack_mode_args"),
        "AMDKFD_IOC_CRIU_OP": IOWR(
            0x22, "kfd_ioctl_criu_args", Pointer("devices", "num_devices", 16), Pointer("bos", "num_bos", 48),
            Pointer("priv_data", "priv_data_size")),
        "AMDKFD_IOC_AVAILABLE_MEMORY": IOWR(0x23, "kfd_ioctl_get_available_memory_args"),
        "AMDKFD_IOC_EXPORT_DMABUF": IOWR(0x24, "kfd_ioctl_export_dmabuf_args"),
        "AMDKFD_IOC_RUNTIME_ENABLE": IOWR(0x25, "kfd_ioctl_runtime_enable_args", addresses=("r_debug",)),
        "AMDKFD_IOC_DBG_TRAP": IOWR(0x26, "kfd_ioctl_dbg_trap_args"),
        "AMDKFD_IOC_CREATE_PROCESS": IO(0x27),
        "AMDKFD_IOC_PROFILER": IOWR(0x28, "kfd_ioctl_profiler_args"),
    },
)

# Interface minor that brought an ioctl, a struct, a field or a constant; what is not listed was there at 1.11.
SINCE: Mapping[str, int] = {
    "AMDKFD_IOC_EXPORT_DMABUF": 12, "kfd_ioctl_export_dmabuf_args": 12,
    "AMDKFD_IOC_RUNTIME_ENABLE": 13, "kfd_ioctl_runtime_enable_args": 13, "kfd_runtime_info": 13,
    "AMDKFD_IOC_DBG_TRAP": 13, "kfd_queue_snapshot_entry": 13, "kfd_dbg_device_info_entry": 13,
    "kfd_context_save_area_header": 13,
    **{name: 13 for name in KFD.struct_names if "_dbg_trap_" in name},
    **{prefix + member: 13 for prefix in ("KFD_RUNTIME_ENABLE_MODE_", "KFD_IOC_DBG_TRAP_", "EC_")
       for member in CONSTANTS[prefix].__members__},
    "kfd_hsa_signal_event_data": 14, "kfd_event_data.signal_event_data": 14,
    "KFD_IOC_ALLOC_MEM_FLAGS_CONTIGUOUS": 16,
    "KFD_IOC_QUEUE_TYPE_SDMA_BY_ENG_ID": 17, "kfd_ioctl_create_queue_args.sdma_engine_id": 17,
    "kfd_ioctl_set_memory_policy_args.misc_process_flag": 18,
    "AMDKFD_IOC_CREATE_PROCESS": 19,
    "kfd_ioctl_create_queue_args.metadata_ring_size": 22,
    "AMDKFD_IOC_PROFILER": 23, "kfd_ioctl_profiler_args": 23, "kfd_ioctl_pmc_settings": 23, "kfd_ioctl_ptl_control": 23,
}

# Interface minor -> a release of Linux whose header has it (Debian's and Ubuntu's linux-libc-dev).
RELEASES: Mapping[int, str] = {11: "6.1", 14: "6.8", 17: "6.12", 18: "6.17", 23: "7.2"}


def size_at(struct: str, minor: int) -> int:
    """sizeof the struct, in bytes, in a header of interface 1.`minor`; 0 where that one lacks it."""
    if SINCE.get(struct, 0) > minor:
        return 0
    ends = [offset for field, (offset, _) in KFD.layout(struct).items() if offset and SINCE.get(f"{struct}.{field}", 0) > minor]
    return min([KFD.size(struct), *(-(-end // 8) * 8 for end in ends)])  # a field that took padding's place adds nothing


def mmap_offset(kind: MmapType, gpu_id: int, offset: int = 0) -> int:
    """The offset for mmap of /dev/kfd: `offset` bytes into what `kind` names of one GPU."""
    return kind << 62 | (gpu_id & 0xFFFF) << 46 | offset


def split_mmap_offset(value: int) -> tuple[MmapType, int, int]:
    """(kind, gpu_id, byte offset) that an mmap offset was made of."""
    return MmapType(value >> 62), value >> 46 & 0xFFFF, value & (1 << 46) - 1


def version(system: System, fd: int) -> tuple[int, int]:
    """(major, minor) of the interface. Raises OSError."""
    answer = KFD.call(system, fd, "AMDKFD_IOC_GET_VERSION")
    return answer.major_version, answer.minor_version


def svm(system: System, fd: int, op: SvmOp, start: int, size: int,
        attributes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Set or get (type, value) attributes of a range of addresses, and return them as the driver left them. Raises OSError.

    The attributes follow the struct in the argument, and the request number counts them.
    """
    head = KFD.new("kfd_ioctl_svm_args", start_addr=start, size=size, op=op, nattr=len(attributes))
    argument = bytearray(bytes(KFD.ffi.buffer(head)) + b"".join(packing.pack("<II", *pair) for pair in attributes))
    system.ioctl(fd, KFD.request("AMDKFD_IOC_SVM") + (8 * len(attributes) << 16), argument)
    return svm_attributes(argument)


def svm_attributes(argument: bytes | bytearray) -> list[tuple[int, int]]:
    """The (type, value) pairs of an AMDKFD_IOC_SVM argument."""
    return list(packing.iter_unpack("<II", bytes(argument[KFD.size("kfd_ioctl_svm_args"):])))
