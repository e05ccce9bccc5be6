"""The render node: who the card is, its memory as GEM objects, their place in a VM. Linux amdgpu_kms.c, amdgpu_gem.c,
drm_ioctl.c, drm_prime.c.

Contexts and command submission are not modelled (EINVAL): compute goes through /dev/kfd.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any

from devrt.ioctl.amdgpu import AMDGPU, Firmware, GemCreate, GemDomain, GemOp, HwIp, Query, Sensor, VaOp, VmPage
from devrt.ioctl.drm import CAPS, DRM_CLOEXEC, DRM_RDWR, PRIME_EXPORT, PRIME_IMPORT
from devrt.ioctl.kfd import AllocFlag
from devrt.virtual.amd import sysfs
from devrt.virtual.amd.calls import Call, handles
from devrt.virtual.amd.card import Card
from devrt.virtual.amd.files import DmaBuf, DrmFile, Gem
from devrt.virtual.amd.machine import DRM_VERSION
from devrt.virtual.amd.vm import LIMIT
from devrt.virtual.errors import fail
from devrt.virtual.memory import PAGE, Access, pages

NAME, DATE, DESCRIPTION = b"amdgpu", b"20150101", b"AMD GPU"
_VA_START = 0x200000  # below it: reserved by the driver
_HIGH_VA = 0xFFFF_8000_0000_0000


def release(file: DrmFile) -> None:
    """The last descriptor of an open render node was closed."""
    for gem in file.gems.values():
        _forget(file, gem)
    file.gems.clear()
    if file.vm is not None:
        file.vm.drop()


def _forget(file: DrmFile, gem: Gem) -> None:
    if file.vm is not None:
        for mapping in file.vm.owned(gem):
            file.vm.unmap(mapping)
    gem.store.drop()


@handles("DRM_IOCTL_VERSION")
def version(call: Call) -> None:
    args = call.args
    args.version_major, args.version_minor, args.version_patchlevel = DRM_VERSION
    for field, text in (("name", NAME), ("date", DATE), ("desc", DESCRIPTION)):
        room, address = getattr(args, f"{field}_len"), getattr(args, field)
        if room and address:
            call.client.memory.write(int(AMDGPU.ffi.cast("uintptr_t", address)), text[:room])
        setattr(args, f"{field}_len", len(text))


@handles("DRM_IOCTL_GET_CAP")
def get_cap(call: Call) -> None:
    known = {CAPS["DRM_CAP_PRIME"]: PRIME_IMPORT | PRIME_EXPORT, CAPS["DRM_CAP_SYNCOBJ"]: 1, CAPS["DRM_CAP_SYNCOBJ_TIMELINE"]: 1}
    if call.args.capability not in known:
        fail(errno.EINVAL)
    call.args.value = known[call.args.capability]


# ---------------------------------------------------------------------------------------------------------------------
# GEM


@handles("DRM_IOCTL_AMDGPU_GEM_CREATE")
def gem_create(call: Call) -> None:
    wanted, file = getattr(call.args, "in"), call.file
    size, domains, flags = wanted.bo_size, wanted.domains, wanted.domain_flags
    if not size or domains & ~(GemDomain.VRAM | GemDomain.GTT | GemDomain.CPU) or not domains:
        fail(errno.EINVAL)
    store = file.card.allocate(size, vram=bool(domains & GemDomain.VRAM))
    gem = Gem(store, size, domains, flags, wanted.alignment)
    file.show(store, not flags & GemCreate.NO_CPU_ACCESS)
    call.args.out.handle = _new_handle(file, gem)
    call.args.out._pad = 0


def _new_handle(file: DrmFile, gem: Gem) -> int:
    number = next(n for n in range(1, len(file.gems) + 2) if n not in file.gems)
    file.gems[number] = gem
    return number


def _gem(call: Call, handle: int) -> Gem:
    found: Gem | None = call.file.gems.get(handle)
    return found if found is not None else fail(errno.ENOENT)


@handles("DRM_IOCTL_AMDGPU_GEM_MMAP")
def gem_mmap(call: Call) -> None:
    gem = _gem(call, getattr(call.args, "in").handle)
    if gem.flags & GemCreate.NO_CPU_ACCESS:
        fail(errno.EPERM)
    call.args.out.addr_ptr = gem.store.offset


@handles("DRM_IOCTL_GEM_CLOSE")
def gem_close(call: Call) -> None:
    gem = call.file.gems.pop(call.args.handle, None)
    if gem is None:
        fail(errno.EINVAL)
    call.file.hide(gem.store)
    _forget(call.file, gem)


@handles("DRM_IOCTL_AMDGPU_GEM_OP")
def gem_op(call: Call) -> None:
    gem = _gem(call, call.args.handle)
    if call.args.op == GemOp.GET_GEM_CREATE_INFO:
        fields = {"bo_size": gem.nbytes, "alignment": gem.alignment, "domains": gem.domains, "domain_flags": gem.flags}
        info = AMDGPU.new("drm_amdgpu_gem_create_in", **fields)
        call.client.memory.write(call.args.value, bytes(AMDGPU.ffi.buffer(info)))
    elif call.args.op != GemOp.SET_PLACEMENT:
        fail(errno.EINVAL)


@handles("DRM_IOCTL_AMDGPU_GEM_VA")
def gem_va(call: Call) -> None:
    args, file = call.args, call.file
    known = VmPage.READABLE | VmPage.WRITEABLE | VmPage.EXECUTABLE | VmPage.PRT | VmPage.NOALLOC | 0xF << 5
    if args.operation not in tuple(VaOp) or args.flags & ~known or args.va_address < _VA_START:
        fail(errno.EINVAL)
    vm = file.address_space(call.driver.host, call.client)
    if args.operation in (VaOp.UNMAP, VaOp.CLEAR, VaOp.REPLACE):
        found = [m for m in vm.overlapping(args.va_address, max(args.map_size, 1)) if isinstance(m.owner, Gem)]
        if args.operation == VaOp.UNMAP and not any(m.va == args.va_address for m in found):
            fail(errno.ENOENT)
        if any(m.queues for m in found):
            fail(errno.EBUSY)
        for mapping in found:
            vm.unmap(mapping)
    if args.operation in (VaOp.MAP, VaOp.REPLACE):
        gem = _gem(call, args.handle)
        if not args.map_size or args.map_size % PAGE or args.offset_in_bo % PAGE or (
                args.offset_in_bo + args.map_size > pages(gem.nbytes)):
            fail(errno.EINVAL)
        access = Access.VRAM if gem.store.vram else Access.SYSTEM
        if gem.store.card is not file.card and gem.store.vram:
            access |= Access.PEER
        if args.flags & VmPage.WRITEABLE:
            access |= Access.WRITE
        if args.flags & VmPage.EXECUTABLE:
            access |= Access.EXECUTE
        vm.map(args.va_address, args.map_size, gem.store.host + args.offset_in_bo, access, gem)


@handles("DRM_IOCTL_PRIME_HANDLE_TO_FD")
def prime_handle_to_fd(call: Call) -> None:
    if call.args.flags & ~(DRM_CLOEXEC | DRM_RDWR):
        fail(errno.EINVAL)
    gem = _gem(call, call.args.handle)
    flags = (AllocFlag.VRAM if gem.store.vram else AllocFlag.GTT) | AllocFlag.PUBLIC
    buffer = DmaBuf(gem.store.hold(), gem.store.card or call.file.card, gem.nbytes, int(flags))
    call.args.fd = call.client.files.install(os.dup(gem.store.pool.file.fd), buffer)


@handles("DRM_IOCTL_PRIME_FD_TO_HANDLE")
def prime_fd_to_handle(call: Call) -> None:
    buffer = call.client.files.find(call.args.fd)
    if not isinstance(buffer, DmaBuf):
        fail(errno.EINVAL)
    for number, gem in call.file.gems.items():
        if gem.store is buffer.store:  # a file has one handle for one buffer
            call.args.handle = number
            return
    domain = GemDomain.VRAM if buffer.store.vram else GemDomain.GTT
    call.file.show(buffer.store, True)
    call.args.handle = _new_handle(call.file, Gem(buffer.store.hold(), buffer.nbytes, int(domain), 0, PAGE))


# ---------------------------------------------------------------------------------------------------------------------
# INFO


@handles("DRM_IOCTL_AMDGPU_INFO")
def info(call: Call) -> None:
    args = call.args
    if not args.return_size or not args.return_pointer:
        fail(errno.EINVAL)
    answer = _answer(call, call.file.card, args)
    call.client.memory.write(args.return_pointer, answer[:args.return_size])


def _struct(struct: str, /, **fields: Any) -> bytes:
    return bytes(AMDGPU.ffi.buffer(AMDGPU.ffi.new(f"struct {struct} *", fields)))


def _answer(call: Call, card: Card, args: Any) -> bytes:
    """Raises OSError: EINVAL for a query, firmware, engine or sensor that this card lacks."""
    model, node = card.model, card.node
    simple = {
        Query.ACCEL_WORKING: (1, 4), Query.VRAM_LOST_COUNTER: (card.vram_lost, 4), Query.RAS_ENABLED_FEATURES: (0, 8),
        Query.VRAM_USAGE: (card.vram_used, 8), Query.VIS_VRAM_USAGE: (card.vram_used, 8), Query.GTT_USAGE: (card.gtt_used, 8),
        Query.NUM_BYTES_MOVED: (0, 8), Query.NUM_EVICTIONS: (0, 8), Query.NUM_VRAM_CPU_PAGE_FAULTS: (0, 8),
        Query.TIMESTAMP: (time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) * model.counter_khz // 1_000_000, 8)}
    if args.query in simple:
        value, size = simple[args.query]
        return int(value).to_bytes(size, "little")
    if args.query == Query.DEV_INFO:
        return _struct("drm_amdgpu_info_device", **_device(card))
    if args.query == Query.MEMORY:
        vram = {"total_heap_size": model.vram_bytes, "usable_heap_size": node.vram_usable, "heap_usage": card.vram_used,
                "max_allocation": node.vram_usable * 3 // 4}
        gtt = {"total_heap_size": node.gtt_usable, "usable_heap_size": node.gtt_usable, "heap_usage": card.gtt_used,
               "max_allocation": node.gtt_usable * 3 // 4}
        return _struct("drm_amdgpu_memory_info", vram=vram, cpu_accessible_vram=vram, gtt=gtt)
    if args.query == Query.VRAM_GTT:
        return _struct("drm_amdgpu_info_vram_gtt", vram_size=model.vram_bytes, vram_cpu_accessible_size=model.vram_bytes,
                       gtt_size=node.gtt_usable)
    if args.query == Query.GPUVM_FAULT:
        return _struct("drm_amdgpu_info_gpuvm_fault", addr=card.last_fault[0], status=card.last_fault[1], vmhub=0)
    if args.query == Query.FW_VERSION:
        return _struct("drm_amdgpu_info_firmware", ver=_firmware(card, args.query_fw.fw_type), feature=1)
    if args.query in (Query.HW_IP_INFO, Query.HW_IP_COUNT):
        return _engine(card, args)
    if args.query == Query.SENSOR:
        return _sensor(card, args.sensor_info.type).to_bytes(4, "little")
    if args.query == Query.READ_MMR_REG:  # configuration of render backends and tiling: none
        return bytes(4 * min(args.read_mmr_reg.count, 128))
    if args.query == Query.VBIOS:
        return _struct("drm_amdgpu_info_vbios", name=model.name.encode()[:63], vbios_pn=b"113-VIRTUAL-001", version=1,
                       vbios_ver_str=b"022.001.000.001", date=b"2025/01/01 00:00")
    fail(errno.EINVAL)


def _firmware(card: Card, kind: int) -> int:
    known = sysfs.firmware(card.model)
    names = {Firmware.GFX_MEC: "mec", Firmware.SDMA: "sdma", Firmware.GFX_RLC: "rlc", Firmware.SMC: "smc", Firmware.SOS: "sos",
             Firmware.MES: "mes", Firmware.MES_KIQ: "mes_kiq", Firmware.IMU: "imu"}
    if kind not in tuple(Firmware):
        fail(errno.EINVAL)
    return known.get(names.get(Firmware(kind), ""), 0)


def _engine(card: Card, args: Any) -> bytes:
    model, kind = card.model, args.query_hw_ip.type
    blocks = {HwIp.GFX: (model.gc, 1), HwIp.COMPUTE: (model.gc, 1), HwIp.DMA: (model.sdma, model.sdma_engines)}
    if kind not in tuple(HwIp):
        fail(errno.EINVAL)
    number, count = blocks.get(HwIp(kind), ((0, 0, 0), 0))
    if args.query == Query.HW_IP_COUNT:
        return count.to_bytes(4, "little")
    if args.query_hw_ip.ip_instance >= max(count, 1):
        fail(errno.EINVAL)
    return _struct("drm_amdgpu_info_hw_ip", hw_ip_version_major=number[0], hw_ip_version_minor=number[1],
                   ib_start_alignment=32, ib_size_alignment=32, available_rings=0xF if count else 0,
                   ip_discovery_version=number[0] << 16 | number[1] << 8 | number[2])


def _sensor(card: Card, kind: int) -> int:
    """In the units of devrt.ioctl.amdgpu.Sensor."""
    model, idle = card.model, sysfs.IDLE
    known = {Sensor.GFX_SCLK: idle["sclk_mhz"], Sensor.GFX_MCLK: idle["mclk_mhz"], Sensor.GPU_TEMP: idle["temperature_c"] * 1000,
             Sensor.GPU_LOAD: 0, Sensor.GPU_AVG_POWER: sysfs.idle_power_w(model), Sensor.VDDGFX: idle["vddgfx_mv"],
             Sensor.PEAK_PSTATE_GFX_SCLK: model.clock_khz // 1000, Sensor.PEAK_PSTATE_GFX_MCLK: model.memory_khz // 1000,
             Sensor.GPU_INPUT_POWER: sysfs.idle_power_w(model)}
    return known[Sensor(kind)] if kind in known else fail(errno.EINVAL)


def _device(card: Card) -> dict[str, Any]:
    model = card.model
    engines = model.arrays // model.arrays_per_engine
    per_array = -(-model.compute_units // model.arrays)
    # Bits of working compute units of each engine (row) and array (column); a big GPU's further engines follow in the columns.
    bitmap = [[0] * 4 for _ in range(4)]
    left = model.compute_units
    for array in range(min(model.arrays, 16)):
        count = min(per_array, left)
        engine = array // model.arrays_per_engine
        bitmap[engine % 4][array % model.arrays_per_engine + engine // 4 * model.arrays_per_engine] = (1 << count) - 1
        left -= count
    return {
        "device_id": model.device_id, "chip_rev": 0, "external_rev": 1, "pci_rev": model.revision, "family": model.family,
        "num_shader_engines": engines, "num_shader_arrays_per_engine": model.arrays_per_engine,
        "gpu_counter_freq": model.counter_khz, "max_engine_clock": model.clock_khz, "max_memory_clock": model.memory_khz,
        "cu_active_number": model.compute_units, "cu_bitmap": bitmap, "enabled_rb_pipes_mask": 0xFF, "num_rb_pipes": 8,
        "num_hw_gfx_contexts": 8, "pcie_gen": {16.0: 4, 32.0: 5}[model.pcie_gts], "pcie_num_lanes": 16,
        "virtual_address_offset": _VA_START, "virtual_address_max": LIMIT, "virtual_address_alignment": PAGE,
        "pte_fragment_size": 2 << 20, "gart_page_size": PAGE, "vram_type": model.vram_type, "vram_bit_width": model.vram_bits,
        "wave_front_size": model.wave, "num_shader_visible_vgprs": 256, "num_cu_per_sh": model.cus_per_array,
        "num_tcc_blocks": 16, "high_va_offset": _HIGH_VA, "high_va_max": _HIGH_VA + LIMIT - PAGE,
        "tcp_cache_size": model.l1_kib, "num_sqc_per_wgp": 1, "sqc_data_cache_size": 16, "sqc_inst_cache_size": 32,
        "gl1c_cache_size": model.gl1_kib * model.arrays, "gl2c_cache_size": model.l2_kib * model.xccs,
        "mall_size": model.l3_kib << 10,
    }
