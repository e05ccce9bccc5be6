"""ioctls of /dev/kfd about the process and its GPUs. Linux kfd_chardev.c, kfd_flat_memory.c."""

from __future__ import annotations

import errno
import time

from devrt.ioctl.kfd import KFD, CachePolicy, RuntimeEnableMode
from devrt.virtual.amd.calls import Call, handles
from devrt.virtual.amd.files import DrmFile, SmiFile
from devrt.virtual.amd.machine import KFD_VERSION
from devrt.virtual.amd.smi import SmiClient
from devrt.virtual.errors import fail

# kfd_flat_memory.c, gfx9 and later: (base, limit)
LDS = 0x1_0000_0000_0000, 0x1_0000_FFFF_FFFF
SCRATCH = 0x2_0000_0000_0000, 0x2_0000_FFFF_FFFF
GPUVM = 0x1_0000, 0x7FFF_FFFF_FFFF
AVAILABLE_UNIT = 2 << 20  # bytes


@handles("AMDKFD_IOC_GET_VERSION")
def get_version(call: Call) -> None:
    call.args.major_version, call.args.minor_version = KFD_VERSION


@handles("AMDKFD_IOC_GET_CLOCK_COUNTERS")
def get_clock_counters(call: Call) -> None:
    card = call.driver.card(call.args.gpu_id)
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    call.args.gpu_clock_counter = now * card.model.counter_khz // 1_000_000 if card is not None else 0
    call.args.cpu_clock_counter = now
    call.args.system_clock_counter = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    call.args.system_clock_freq = 1_000_000_000


def _apertures(call: Call) -> list[dict[str, int]]:
    return [{"lds_base": LDS[0], "lds_limit": LDS[1], "scratch_base": SCRATCH[0], "scratch_limit": SCRATCH[1],
             "gpuvm_base": GPUVM[0], "gpuvm_limit": GPUVM[1], "gpu_id": gpu_id} for gpu_id in call.process.devices]


@handles("AMDKFD_IOC_GET_PROCESS_APERTURES")
def get_process_apertures(call: Call) -> None:
    found = _apertures(call)[:len(call.args.process_apertures)]
    for n, fields in enumerate(found):
        for name, value in fields.items():
            setattr(call.args.process_apertures[n], name, value)
    call.args.num_of_nodes = len(found)


@handles("AMDKFD_IOC_GET_PROCESS_APERTURES_NEW")
def get_process_apertures_new(call: Call) -> None:
    found = _apertures(call)
    if call.args.num_of_nodes:
        found = found[:call.args.num_of_nodes]
        data = b"".join(bytes(KFD.ffi.buffer(KFD.new("kfd_process_device_apertures", **fields))) for fields in found)
        call.client.memory.write(call.args.kfd_process_device_apertures_ptr, data)
    call.args.num_of_nodes = len(found)


@handles("AMDKFD_IOC_ACQUIRE_VM")
def acquire_vm(call: Call) -> None:
    device = call.process.device(call.args.gpu_id)
    try:
        file = call.client.files.find(call.args.drm_fd)
    except OSError:
        fail(errno.EINVAL)
    if not isinstance(file, DrmFile) or file.card is not device.card:
        fail(errno.EINVAL)
    if device.drm_file is not None:
        if device.drm_file is not file:
            fail(errno.EBUSY)
        return
    device.drm_file, device.vm = file, file.address_space(call.driver.host, call.client).hold()


@handles("AMDKFD_IOC_AVAILABLE_MEMORY")
def available_memory(call: Call) -> None:
    card = call.process.device(call.args.gpu_id).card
    call.args.available = (card.node.vram_usable - card.vram_used) // AVAILABLE_UNIT * AVAILABLE_UNIT


@handles("AMDKFD_IOC_SET_MEMORY_POLICY")
def set_memory_policy(call: Call) -> None:
    known = {int(policy) for policy in CachePolicy}
    if call.args.default_policy not in known or call.args.alternate_policy not in known:
        fail(errno.EINVAL)
    device, _ = call.process.bound(call.args.gpu_id, errno.ESRCH)
    device.policy = call.args.default_policy, call.args.alternate_policy


@handles("AMDKFD_IOC_SET_TRAP_HANDLER")
def set_trap_handler(call: Call) -> None:
    device, _ = call.process.bound(call.args.gpu_id, errno.ESRCH)
    device.trap = call.args.tba_addr, call.args.tma_addr


@handles("AMDKFD_IOC_SET_SCRATCH_BACKING_VA")
def set_scratch_backing_va(call: Call) -> None:
    device, _ = call.process.bound(call.args.gpu_id)
    device.scratch = call.args.va_addr


@handles("AMDKFD_IOC_GET_TILE_CONFIG")
def get_tile_config(call: Call) -> None:
    call.process.device(call.args.gpu_id)
    for name in ("num_tile_configs", "num_macro_tile_configs", "gb_addr_config", "num_banks", "num_ranks"):
        setattr(call.args, name, 0)  # no tables: images are tiled by drivers that are not modelled


@handles("AMDKFD_IOC_RUNTIME_ENABLE")
def runtime_enable(call: Call) -> None:
    if not call.args.mode_mask & RuntimeEnableMode.ENABLE_MASK:
        call.process.runtime = False
        return
    if call.process.runtime:
        fail(errno.EBUSY)
    if call.process.queues:
        fail(errno.EEXIST)
    call.process.runtime = True


@handles("AMDKFD_IOC_SET_XNACK_MODE")
def set_xnack_mode(call: Call) -> None:
    if call.args.xnack_enabled < 0:
        call.args.xnack_enabled = int(call.process.xnack)
        return
    wanted = bool(call.args.xnack_enabled)
    if wanted and not all(device.card.model.major == 9 for device in call.process.devices.values()):
        fail(errno.EPERM)
    if wanted != call.process.xnack and call.process.queues:
        fail(errno.EBUSY)
    call.process.xnack = wanted


@handles("AMDKFD_IOC_SMI_EVENTS")
def smi_events(call: Call) -> None:
    client = SmiClient(call.process.device(call.args.gpuid).card)
    call.process.smi.append(client)
    call.args.anon_fd = call.client.files.install(client.fd, SmiFile())


@handles("AMDKFD_IOC_CRIU_OP")
def criu_op(call: Call) -> None:
    fail(errno.EPERM)  # without CAP_CHECKPOINT_RESTORE


@handles("AMDKFD_IOC_DBG_TRAP")
def dbg_trap(call: Call) -> None:
    fail(errno.EPERM)  # without the debugger attached by ptrace
