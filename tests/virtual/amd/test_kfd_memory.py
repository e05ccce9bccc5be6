"""Memory of the virtual KFD: each check and its errno, as in Linux kfd_chardev.c, amdgpu_amdkfd_gpuvm.c and kfd_svm.c."""

from __future__ import annotations

import errno
import os

import pytest

from devrt.ioctl import amdgpu, kfd
from devrt.ioctl.amdgpu import AMDGPU
from devrt.ioctl.kfd import (
    KFD,
    AllocFlag,
    MmapType,
    SvmAttribute,
    SvmFlag,
    SvmOp,
    mmap_offset,
    split_mmap_offset,
)
from devrt.ioctl.system import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE, view
from devrt.virtual.amd.machine import MODELS
from devrt.virtual.memory import Access
from tests.virtual.amd.kfd_client import GTT, VRAM, Client, client, driver, entry, machine, refused

RW = PROT_READ | PROT_WRITE


# ---------------------------------------------------------------------------------------------------------------------
# Memory


@pytest.mark.parametrize(("fields", "number"), [
    ({"size": 0}, errno.EINVAL), ({"flags": AllocFlag.WRITABLE}, errno.EINVAL), ({"gpu_id": 1}, errno.EINVAL),
    ({"flags": AllocFlag.DOORBELL, "size": 4096}, errno.EINVAL), ({"flags": AllocFlag.MMIO_REMAP, "size": 8192}, errno.EINVAL),
    ({"flags": AllocFlag.USERPTR, "mmap_offset": 0}, errno.EINVAL),
    ({"flags": AllocFlag.USERPTR, "mmap_offset": 0x10001}, errno.EINVAL),
    ({"flags": AllocFlag.USERPTR, "mmap_offset": 0x10000}, errno.EFAULT),
    ({"flags": VRAM, "size": 65 << 20}, errno.ENOMEM), ({"flags": GTT, "size": 257 << 20}, errno.ENOMEM),
])
def test_alloc_refuses(one: Client, fields: dict[str, int], number: int) -> None:
    with refused(number):
        one.call("ALLOC_MEMORY_OF_GPU", **{"va_addr": 0x200000, "size": 4096, "gpu_id": one.gpus[0], "flags": GTT, **fields})


def test_memory_is_accounted(one: Client) -> None:
    free = one.call("AVAILABLE_MEMORY", gpu_id=one.gpus[0]).available
    assert free == 64 << 20
    buffer = one.alloc(32 << 20, VRAM)
    used = "/sys/class/drm/renderD128/device/mem_info_vram_used"
    assert one.call("AVAILABLE_MEMORY", gpu_id=one.gpus[0]).available == 32 << 20
    assert one.system.read_text(used) == f"{32 << 20}\n"
    with refused(errno.ENOMEM):
        one.alloc(33 << 20, VRAM)
    one.free(buffer)
    assert one.system.read_text(used) == "0\n"
    for _ in range(5):  # holes never keep all of it from being allocated
        parts = [one.alloc(8 << 20, VRAM) for _ in range(8)]
        for part in parts[::2]:
            one.free(part)
        one.free(one.alloc(32 << 20, VRAM))
        for part in parts[1::2]:
            one.free(part)


def test_handles_and_free(one: Client) -> None:
    a, b = one.alloc(4096), one.alloc(4096)
    assert (a.handle >> 32, b.handle) == (one.gpus[0], a.handle + 1)
    one.free(a)
    assert one.alloc(4096).handle == a.handle  # the lowest free one
    one.map(b)
    with refused(errno.EBUSY):
        one.free(b)
    one.unmap(b)
    one.free(b)
    for handle in (b.handle, 1 << 32, one.gpus[0] << 32 | 77):
        with refused(errno.EINVAL):
            one.call("FREE_MEMORY_OF_GPU", handle=handle)


def test_cpu_and_gpu_see_the_same_bytes(one: Client) -> None:
    for flags in (GTT, VRAM):
        buffer = one.mapped_buffer(8192, flags)
        address = one.cpu(buffer)
        assert address == buffer.va
        view(address, 8192)[4090:4100] = b"0123456789"
        process = driver(one.system).processes[os.getpid()]
        vm = process.devices[one.gpus[0]].vm
        assert vm is not None and vm.space.read(buffer.va + 4090, 10) == b"0123456789"
        expected = Access.VRAM if flags is VRAM else Access.SYSTEM
        assert entry(one, buffer.va) & (Access.VRAM | Access.SYSTEM | Access.PEER) == expected


def test_freed_memory_reads_as_zeros(one: Client) -> None:
    buffer = one.alloc(4096, VRAM)
    view(one.cpu(buffer), 4096)[:] = b"x" * 4096
    one.free(buffer)
    assert bytes(view(one.cpu(one.alloc(4096, VRAM, va=buffer.va)), 4096)) == bytes(4096)


def test_a_legacy_aql_ring_lies_twice_in_a_row(one: Client) -> None:
    ring = one.mapped_buffer(8192, GTT | AllocFlag.AQL_QUEUE_MEM)
    assert entry(one, ring.va) == entry(one, ring.va + 4096)
    assert driver(one.system).cards[0].gtt_used == 4096
    one.unmap(ring)
    assert not entry(one, ring.va) and not entry(one, ring.va + 4096)
    one.free(ring)


def test_map_refuses(two: Client) -> None:
    buffer = two.alloc(4096)
    ids = KFD.ffi.new("uint32_t[]", [two.gpus[0], 1])
    pointer = int(KFD.ffi.cast("uintptr_t", ids))
    good = {"handle": buffer.handle, "device_ids_array_ptr": pointer, "n_devices": 1, "n_success": 0}
    for name in ("MAP_MEMORY_TO_GPU", "UNMAP_MEMORY_FROM_GPU"):
        for change, number in (({"n_devices": 0}, errno.EINVAL), ({"n_success": 2}, errno.EINVAL),
                               ({"handle": two.gpus[0] << 32 | 99}, errno.ENOMEM), ({"handle": 1 << 32}, errno.EINVAL),
                               ({"device_ids_array_ptr": 64}, errno.EFAULT)):
            with refused(number):
                two.call(name, **{**good, **change})
    with refused(errno.EINVAL):  # not mapped anywhere
        two.call("UNMAP_MEMORY_FROM_GPU", **good)


def test_n_success_says_how_far_it_came(two: Client) -> None:
    buffer = two.alloc(4096)
    ids = KFD.ffi.new("uint32_t[]", [two.gpus[0], 1])
    argument = KFD.new("kfd_ioctl_map_memory_to_gpu_args", handle=buffer.handle, n_devices=2,
                       device_ids_array_ptr=int(KFD.ffi.cast("uintptr_t", ids)))
    with refused(errno.EINVAL):
        two.system.ioctl(two.kfd, KFD.request("AMDKFD_IOC_MAP_MEMORY_TO_GPU"), memoryview(KFD.ffi.buffer(argument)))
    assert argument.n_success == 1 and entry(two, buffer.va)
    ids[1] = two.gpus[1]
    two.system.ioctl(two.kfd, KFD.request("AMDKFD_IOC_MAP_MEMORY_TO_GPU"), memoryview(KFD.ffi.buffer(argument)))
    assert argument.n_success == 2 and entry(two, buffer.va, 1)
    assert two.map(buffer, 0, 1) == 2  # once more: already there
    assert two.unmap(buffer, 0, 1) == 2 and not entry(two, buffer.va) and not entry(two, buffer.va, 1)


def test_a_gpu_that_was_not_acquired() -> None:
    with machine("2xgfx1100") as system, client(system, acquire=False) as made:
        made.call("ACQUIRE_VM", drm_fd=made.render[0], gpu_id=made.gpus[0])
        buffer = made.alloc(4096)
        made.map(buffer)
        with refused(errno.ENODEV):
            made.map(buffer, 1)
        with refused(errno.ENODEV):
            made.unmap(buffer, 1)


def test_addresses_that_can_not_be_mapped(one: Client) -> None:
    first = one.mapped_buffer(8192)
    for va in (first.va + 4096, first.va - 4096, first.va + 1, 0, 1 << 47):
        with refused(errno.EINVAL):
            one.map(one.alloc(8192, va=va))
    one.map(one.alloc(4096, va=first.va + 8192))


@pytest.mark.parametrize(("topology", "access"), [
    ("2xgfx1100", Access.PEER), ("2xgfx942", Access.PEER), ("2xgfx942-pcie", Access.PEER), ("2xgfx1100-nop2p", None),
    ("2xgfx942-nop2p", None)])
def test_peers(topology: str, access: Access | None) -> None:
    with machine(topology, "vram=16M&gtt=16M") as system, client(system) as made:
        buffer = made.alloc(4096, VRAM)
        if access is None:
            with refused(errno.EINVAL):
                made.map(buffer, 0, 1)
        else:
            assert made.map(buffer, 0, 1) == 2
            assert entry(made, buffer.va, 1) & (access | Access.VRAM) == access | Access.VRAM
            assert not entry(made, buffer.va, 0) & Access.PEER
        shared = made.alloc(4096, GTT)  # system memory reaches everybody
        assert made.map(shared, 0, 1) == 2
        assert entry(made, shared.va, 1) & (Access.SYSTEM | Access.PEER) == Access.SYSTEM


def test_a_link_that_goes_down(two: Client) -> None:
    two.map(two.alloc(4096, VRAM), 0, 1)
    two.system.faults.inject("link-down")
    with refused(errno.EINVAL):
        two.map(two.alloc(4096, VRAM), 0, 1)
    two.system.faults.mend("link-down")
    two.map(two.alloc(4096, VRAM), 0, 1)


def test_userptr_are_the_callers_pages(one: Client) -> None:
    address = one.system.mmap(-1, 8192, RW, MAP_PRIVATE | MAP_ANONYMOUS)
    view(address, 8192)[5000:5003] = b"abc"
    made = one.call("ALLOC_MEMORY_OF_GPU", va_addr=address, size=8192, gpu_id=one.gpus[0], mmap_offset=address,
                    flags=AllocFlag.USERPTR | AllocFlag.WRITABLE)
    ids = KFD.ffi.new("uint32_t[]", [one.gpus[0]])
    one.call("MAP_MEMORY_TO_GPU", handle=made.handle, n_devices=1, device_ids_array_ptr=int(KFD.ffi.cast("uintptr_t", ids)))
    vm = driver(one.system).processes[os.getpid()].devices[one.gpus[0]].vm
    assert vm is not None and vm.space.read(address + 5000, 3) == b"abc"
    vm.space.write(address + 5001, b"X")
    assert bytes(view(address, 8192)[5000:5003]) == b"aXc"
    one.system.munmap(address + 4096, 4096)  # half of it goes away: GPUs lose that half
    assert entry(one, address) and not entry(one, address + 4096)
    one.system.munmap(address, 4096)
    assert not entry(one, address)


def test_userptr_needs_the_rights(one: Client) -> None:
    address = one.system.mmap(-1, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS)
    with refused(errno.EFAULT):
        one.call("ALLOC_MEMORY_OF_GPU", va_addr=address, size=4096, gpu_id=one.gpus[0], mmap_offset=address,
                 flags=AllocFlag.USERPTR | AllocFlag.WRITABLE)
    one.call("ALLOC_MEMORY_OF_GPU", va_addr=address, size=4096, gpu_id=one.gpus[0], mmap_offset=address, flags=AllocFlag.USERPTR)
    one.system.munmap(address, 4096)


def test_render_mappings_are_checked(two: Client) -> None:
    system, hidden, shown = two.system, two.alloc(4096, AllocFlag.VRAM | AllocFlag.WRITABLE), two.alloc(8192, VRAM)
    with refused(errno.EPERM):  # not PUBLIC
        system.mmap(two.render[0], 4096, RW, MAP_SHARED, hidden.offset)
    system.munmap(system.mmap(two.render[0], 4096, PROT_NONE, MAP_PRIVATE, hidden.offset), 4096)  # as ROCm's thunk does it
    for length, offset in ((12288, shown.offset), (4096, shown.offset + 4096), (4096, 0)):
        with refused(errno.EINVAL):
            system.mmap(two.render[0], length, RW, MAP_SHARED, offset)
    with refused(errno.EINVAL):  # of the other card
        system.mmap(two.render[1], 8192, RW, MAP_SHARED, shown.offset)
    again = system.open("/dev/dri/renderD128", os.O_RDWR)
    with refused(errno.EACCES):
        system.mmap(again, 8192, RW, MAP_SHARED, shown.offset)
    system.close(again)


def test_a_reused_offset_is_not_mapped_by_who_had_it_before(one: Client) -> None:
    """The descriptor passed on keeps the pages alive; afterwards they are another's, and the first owner may not map them."""
    system = one.system
    first = one.alloc(4096, VRAM)
    fd = one.call("EXPORT_DMABUF", handle=first.handle).dmabuf_fd
    one.free(first)
    with refused(errno.EACCES):
        system.mmap(one.render[0], 4096, RW, MAP_SHARED, first.offset)
    system.close(fd)
    other = system.open("/dev/dri/renderD128", os.O_RDWR)
    wanted = {"bo_size": 4096, "domains": amdgpu.GemDomain.VRAM}
    made = AMDGPU.call(system, other, "DRM_IOCTL_AMDGPU_GEM_CREATE", **{"in": wanted}).out.handle
    assert AMDGPU.call(system, other, "DRM_IOCTL_AMDGPU_GEM_MMAP", **{"in": {"handle": made}}).out.addr_ptr == first.offset
    with refused(errno.EACCES):
        system.mmap(one.render[0], 4096, RW, MAP_SHARED, first.offset)
    system.munmap(system.mmap(other, 4096, RW, MAP_SHARED, first.offset), 4096)
    system.close(other)


def test_kfd_mappings_are_checked(one: Client) -> None:
    system, gpu_id = one.system, one.gpus[0]
    for length, offset, number in ((4096, mmap_offset(MmapType.DOORBELL, gpu_id), errno.EINVAL),
                                   (8192, mmap_offset(MmapType.DOORBELL, 1), errno.ENODEV),
                                   (8192, mmap_offset(MmapType.MMIO, gpu_id), errno.EINVAL),
                                   (8192, mmap_offset(MmapType.RESERVED_MEM, gpu_id), errno.EFAULT),
                                   (4096, mmap_offset(MmapType.EVENTS, 0), errno.EINVAL)):
        with refused(number):
            system.mmap(one.kfd, length, RW, MAP_SHARED, offset)
    for flag, size, kind in ((AllocFlag.DOORBELL, 8192, MmapType.DOORBELL), (AllocFlag.MMIO_REMAP, 4096, MmapType.MMIO)):
        buffer = one.mapped_buffer(size, flag | AllocFlag.WRITABLE | AllocFlag.COHERENT)
        assert split_mmap_offset(buffer.offset) == (kind, gpu_id, 0)
        system.munmap(system.mmap(one.kfd, size, RW, MAP_SHARED, buffer.offset), size)


def test_dmabuf(two: Client) -> None:
    buffer = two.alloc(8192, VRAM)
    view(two.cpu(buffer), 8192)[:4] = b"ping"
    fd = two.call("EXPORT_DMABUF", handle=buffer.handle, flags=os.O_CLOEXEC).dmabuf_fd
    about = two.call("GET_DMABUF_INFO", dmabuf_fd=fd)
    assert (about.size, about.gpu_id, about.flags & AllocFlag.VRAM) == (8192, two.gpus[0], AllocFlag.VRAM)
    va = two.reserve(8192)
    imported = two.call("IMPORT_DMABUF", va_addr=va, gpu_id=two.gpus[1], dmabuf_fd=fd)
    ids = KFD.ffi.new("uint32_t[]", [two.gpus[1]])
    two.call("MAP_MEMORY_TO_GPU", handle=imported.handle, n_devices=1, device_ids_array_ptr=int(KFD.ffi.cast("uintptr_t", ids)))
    assert entry(two, va, 1) & Access.PEER
    address = two.system.mmap(fd, 8192, RW, MAP_SHARED)
    assert bytes(view(address, 4)) == b"ping"
    two.free(buffer)  # the pages live on under the other names
    assert two.system.read_text("/sys/class/drm/card0/device/mem_info_vram_used") == "8192\n"
    assert bytes(view(address, 4)) == b"ping"
    two.system.munmap(address, 8192)
    two.system.close(fd)
    for bad, number in ((fd, errno.EBADF), (two.kfd, errno.EINVAL)):
        with refused(number):
            two.call("GET_DMABUF_INFO", dmabuf_fd=bad)


def test_other_descriptors_are_no_dmabuf(one: Client) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with refused(errno.EINVAL):
        one.call("IMPORT_DMABUF", va_addr=0x200000, gpu_id=one.gpus[0], dmabuf_fd=fd)
    os.close(fd)
    with refused(errno.EINVAL):
        one.call("EXPORT_DMABUF", handle=one.gpus[0] << 32 | 5)


# ---------------------------------------------------------------------------------------------------------------------
# SVM


def test_svm_maps_the_process_memory(one: Client) -> None:
    system, gpu = one.system, one.gpus[0]
    address = system.mmap(-1, 16384, RW, MAP_PRIVATE | MAP_ANONYMOUS)
    kfd.svm(system, one.kfd, SvmOp.SET_ATTR, address, 16384, [(SvmAttribute.ACCESS, gpu), (SvmAttribute.SET_FLAGS, 0x40)])
    assert entry(one, address) & Access.WRITE and not entry(one, address) & Access.EXECUTE
    kfd.svm(system, one.kfd, SvmOp.SET_ATTR, address + 4096, 4096, [(SvmAttribute.NO_ACCESS, gpu)])
    assert [bool(entry(one, address + at)) for at in (0, 4096, 8192)] == [True, False, True]
    got = kfd.svm(system, one.kfd, SvmOp.GET_ATTR, address, 4096, [
        (SvmAttribute.SET_FLAGS, 0), (SvmAttribute.GRANULARITY, 0), (SvmAttribute.PREFERRED_LOC, 0), (SvmAttribute.ACCESS, gpu)])
    assert got == [(SvmAttribute.SET_FLAGS, SvmFlag.HOST_ACCESS | SvmFlag.COHERENT | SvmFlag.GPU_ALWAYS_MAPPED),
                   (SvmAttribute.GRANULARITY, 9), (SvmAttribute.PREFERRED_LOC, 0xFFFFFFFF), (SvmAttribute.ACCESS, gpu)]
    with refused(errno.EADDRINUSE):
        one.alloc(4096, va=address)
    buffer = one.mapped_buffer(4096)
    with refused(errno.EADDRINUSE):
        kfd.svm(system, one.kfd, SvmOp.SET_ATTR, one.cpu(buffer), 4096, [(SvmAttribute.ACCESS, gpu)])
    system.munmap(address, 16384)
    assert not entry(one, address)


def test_svm_refuses(one: Client) -> None:
    address = one.system.mmap(-1, 8192, RW, MAP_PRIVATE | MAP_ANONYMOUS)
    for start, size, attributes, number in ((address + 1, 4096, [], errno.EINVAL), (address, 0, [], errno.EINVAL),
                                            (address, 4096, [(8, 0)], errno.EINVAL), (address, 4096, [(2, 1)], errno.EINVAL),
                                            (0x10000, 4096, [(2, one.gpus[0])], errno.EFAULT)):
        with refused(number):
            kfd.svm(one.system, one.kfd, SvmOp.SET_ATTR, start, size, attributes)
    one.system.munmap(address, 8192)


def test_a_save_area_may_be_svm(one: Client) -> None:
    size = MODELS["gfx1100"].save_area.allocation
    address = one.system.mmap(-1, size, RW, MAP_PRIVATE | MAP_ANONYMOUS | 0x4000)
    fields = {**one.queue_fields(), "ctx_save_restore_address": address}
    kfd.svm(one.system, one.kfd, SvmOp.SET_ATTR, address, size, [(SvmAttribute.ACCESS, one.gpus[0])])
    with refused(errno.EINVAL):
        one.create_queue(fields)
    kfd.svm(one.system, one.kfd, SvmOp.SET_ATTR, address, size, [(SvmAttribute.SET_FLAGS, SvmFlag.GPU_ALWAYS_MAPPED)])
    one.create_queue(fields)
    one.system.munmap(address, size)
