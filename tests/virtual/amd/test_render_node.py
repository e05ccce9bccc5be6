"""The virtual render node: who the card is, GEM and PRIME, as in Linux amdgpu_kms.c and amdgpu_gem.c."""

from __future__ import annotations

import errno
import os

from devrt.ioctl import amdgpu, drm
from devrt.ioctl.amdgpu import AMDGPU, Query
from devrt.ioctl.system import MAP_SHARED, PROT_READ, PROT_WRITE, view
from devrt.virtual.amd.machine import MODELS
from tests.virtual.amd.kfd_client import Client, driver, refused

RW = PROT_READ | PROT_WRITE


def test_render_node(one: Client) -> None:
    system, fd, model = one.system, one.render[0], MODELS["gfx1100"]
    assert drm.driver_of(system, fd) == ("amdgpu", (3, 64, 0))
    assert drm.capability(system, fd, "DRM_CAP_PRIME") == 3
    device = amdgpu.info(system, fd, Query.DEV_INFO)
    assert (device.device_id, device.family, device.cu_active_number, device.wave_front_size) == (0x744C, 145, 96, 32)
    assert sum(bits.bit_count() for row in device.cu_bitmap for bits in row) == 96
    assert device.gpu_counter_freq == 100_000
    memory = amdgpu.info(system, fd, Query.MEMORY)
    assert (memory.vram.total_heap_size, memory.vram.usable_heap_size) == (model.vram_bytes, 64 << 20)
    engine = amdgpu.info(system, fd, Query.HW_IP_INFO, query_hw_ip={"type": amdgpu.HwIp.DMA})
    assert (engine.hw_ip_version_major, engine.hw_ip_version_minor, engine.available_rings) == (6, 0, 15)
    firmware = amdgpu.info(system, fd, Query.FW_VERSION, query_fw={"fw_type": amdgpu.Firmware.GFX_MEC})
    assert firmware.ver == 2140
    assert amdgpu.info(system, fd, Query.SENSOR, sensor_info={"type": amdgpu.Sensor.GPU_TEMP}) == 41000
    assert amdgpu.info(system, fd, Query.TIMESTAMP) > 0
    with refused(errno.EINVAL):
        amdgpu.info(system, fd, Query.SENSOR, sensor_info={"type": 99})


def test_gem_and_prime(one: Client) -> None:
    system, fd = one.system, one.render[0]
    wanted = {"bo_size": 8192, "domains": amdgpu.GemDomain.VRAM}
    made = AMDGPU.call(system, fd, "DRM_IOCTL_AMDGPU_GEM_CREATE", **{"in": wanted}).out.handle
    offset = AMDGPU.call(system, fd, "DRM_IOCTL_AMDGPU_GEM_MMAP", **{"in": {"handle": made}}).out.addr_ptr
    address = system.mmap(fd, 8192, RW, MAP_SHARED, offset)
    view(address, 8192)[:3] = b"gem"
    AMDGPU.call(system, fd, "DRM_IOCTL_AMDGPU_GEM_VA", handle=made, operation=1, flags=0xE, va_address=0x400000, map_size=8192)
    vm = driver(system).processes[os.getpid()].devices[one.gpus[0]].vm
    assert vm is not None and vm.space.read(0x400000, 3) == b"gem"  # the VM that KFD acquired
    prime = drm.DRM.call(system, fd, "DRM_IOCTL_PRIME_HANDLE_TO_FD", handle=made, flags=drm.DRM_CLOEXEC).fd
    assert drm.DRM.call(system, fd, "DRM_IOCTL_PRIME_FD_TO_HANDLE", fd=prime).handle == made
    imported = one.call("IMPORT_DMABUF", va_addr=0x600000, gpu_id=one.gpus[0], dmabuf_fd=prime)
    AMDGPU.call(system, fd, "DRM_IOCTL_AMDGPU_GEM_VA", handle=made, operation=2, va_address=0x400000, map_size=8192)
    assert not vm.space.entry(0x400000)
    drm.DRM.call(system, fd, "DRM_IOCTL_GEM_CLOSE", handle=made)
    with refused(errno.EINVAL):
        drm.DRM.call(system, fd, "DRM_IOCTL_GEM_CLOSE", handle=made)
    with refused(errno.ENOENT):
        AMDGPU.call(system, fd, "DRM_IOCTL_AMDGPU_GEM_MMAP", **{"in": {"handle": made}})
    system.close(prime)
    assert bytes(view(address, 3)) == b"gem"
    one.call("FREE_MEMORY_OF_GPU", handle=imported.handle)
    assert amdgpu.info(system, fd, Query.VRAM_USAGE) == 0
    system.munmap(address, 8192)
