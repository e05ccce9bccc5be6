"""The virtual KFD against what Linux's amdkfd does: each check and its errno, read in drivers/gpu/drm/amd/amdkfd."""

from __future__ import annotations

import errno
import gc
import os
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from devrt.ioctl import amdgpu, drm, kfd
from devrt.ioctl.amdgpu import AMDGPU, Query
from devrt.ioctl.errors import ENOTSUPP
from devrt.ioctl.kfd import (
    KFD,
    AllocFlag,
    MmapType,
    QueueType,
    ResetCause,
    ResetType,
    SmiEvent,
    SvmAttribute,
    SvmFlag,
    SvmOp,
    mmap_offset,
    split_mmap_offset,
)
from devrt.ioctl.system import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE, view
from devrt.virtual.amd.machine import MODELS
from devrt.virtual.amd.memory import Access, MemoryFault
from tests.virtual.amd.kfd_client import ALL_GFX, GTT, VRAM, Client, FakeEngine, client, driver, machine, refused

RW = PROT_READ | PROT_WRITE


@pytest.fixture
def one() -> Iterator[Client]:
    with machine("gfx1100", "vram=64M&gtt=256M") as system, client(system) as made:
        yield made


@pytest.fixture
def two() -> Iterator[Client]:
    with machine("2xgfx1100", "vram=64M&gtt=256M") as system, client(system) as made:
        yield made


def entry(made: Client, va: int, gpu: int = 0) -> int:
    vm = driver(made.system).processes[os.getpid()].devices[made.gpus[gpu]].vm
    assert vm is not None
    return vm.space.entry(va)


# ---------------------------------------------------------------------------------------------------------------------
# The dispatcher


def test_version_and_sizes_of_structs(one: Client) -> None:
    assert kfd.version(one.system, one.kfd) == (1, 18)
    fields = one.queue_fields(QueueType.SDMA)
    for size in (88, 96, 128):  # an older header, this one, a newer one
        argument = bytearray(size)
        argument[:min(size, 96)] = bytes(KFD.ffi.buffer(KFD.new("kfd_ioctl_create_queue_args", **fields)))[:size]
        one.system.ioctl(one.kfd, 3 << 30 | size << 16 | 0x4B02, argument)
        assert split_mmap_offset(struct.unpack_from("<Q", argument, 24)[0])[0] is MmapType.DOORBELL


def test_unknown_requests(one: Client) -> None:
    for number in (0x00, 0x27, 0x28, 0x7F):  # CREATE_PROCESS and PROFILER came after 1.18
        with refused(errno.ENOTTY):
            one.system.ioctl(one.kfd, 0x4B00 | number, bytearray(8))
    with refused(errno.EINVAL):
        one.system.ioctl(one.render[0], 3 << 30 | 8 << 16 | 0x649F, bytearray(8))


def test_an_argument_shorter_than_its_request_is_efault(one: Client) -> None:
    with refused(errno.EFAULT):
        one.system.ioctl(one.kfd, KFD.request("AMDKFD_IOC_GET_VERSION"), bytearray(4))
    with refused(errno.EFAULT):
        one.system.ioctl(one.kfd, KFD.request("AMDKFD_IOC_GET_VERSION"), 64)


def test_a_forked_child_may_not_use_the_descriptor(one: Client) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            one.call("GET_VERSION")
            os.write(write, b"\0")
        except OSError as error:
            os.write(write, bytes([error.errno or 0]))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 1)[0] == errno.EBADF
    os.close(read)
    os.close(write)
    one.call("GET_VERSION")


def test_an_injected_errno() -> None:
    with machine("gfx1100", "errno=ENOMEM:ALLOC_MEMORY_OF_GPU@2") as system, client(system) as made:
        first = made.alloc(4096)
        with refused(errno.ENOMEM):
            made.alloc(4096)
        assert made.alloc(4096).handle == first.handle + 1


# ---------------------------------------------------------------------------------------------------------------------
# Processes and devices


def test_apertures(two: Client) -> None:
    count = two.call("GET_PROCESS_APERTURES_NEW").num_of_nodes
    rows = KFD.ffi.new("struct kfd_process_device_apertures[]", count)
    pointer = int(KFD.ffi.cast("uintptr_t", rows))
    assert two.call("GET_PROCESS_APERTURES_NEW", kfd_process_device_apertures_ptr=pointer, num_of_nodes=5).num_of_nodes == 2
    assert [row.gpu_id for row in rows] == two.gpus
    assert (rows[0].lds_base, rows[0].scratch_base) == (1 << 48, 2 << 48)
    assert (rows[0].gpuvm_base, rows[0].gpuvm_limit) == (0x10000, 0x7FFFFFFFFFFF)
    assert two.call("GET_PROCESS_APERTURES").num_of_nodes == 2
    with refused(errno.EFAULT):
        two.call("GET_PROCESS_APERTURES_NEW", kfd_process_device_apertures_ptr=64, num_of_nodes=2)


def test_acquire_vm() -> None:
    with machine("2xgfx1100") as system, client(system, acquire=False) as made:
        for bad in ({"drm_fd": 9999, "gpu_id": made.gpus[0]}, {"drm_fd": made.render[0], "gpu_id": 1},
                    {"drm_fd": made.kfd, "gpu_id": made.gpus[0]}, {"drm_fd": made.render[1], "gpu_id": made.gpus[0]}):
            with refused(errno.EINVAL):
                made.call("ACQUIRE_VM", **bad)
        with refused(errno.ENODEV):
            made.alloc(4096)
        made.call("ACQUIRE_VM", drm_fd=made.render[0], gpu_id=made.gpus[0])
        made.call("ACQUIRE_VM", drm_fd=made.render[0], gpu_id=made.gpus[0])
        other = system.open("/dev/dri/renderD128", os.O_RDWR)
        with refused(errno.EBUSY):
            made.call("ACQUIRE_VM", drm_fd=other, gpu_id=made.gpus[0])
        system.close(other)


def test_clocks(one: Client) -> None:
    first, second = (one.call("GET_CLOCK_COUNTERS", gpu_id=one.gpus[0]) for _ in range(2))
    assert first.system_clock_freq == 10**9
    assert second.cpu_clock_counter > first.cpu_clock_counter and second.gpu_clock_counter >= first.gpu_clock_counter
    assert abs(first.gpu_clock_counter * 10 - first.cpu_clock_counter) < 20  # 100 MHz
    assert one.call("GET_CLOCK_COUNTERS", gpu_id=1).gpu_clock_counter == 0


def test_small_calls(one: Client) -> None:
    gpu_id = one.gpus[0]
    with refused(errno.EINVAL):
        one.call("SET_MEMORY_POLICY", gpu_id=gpu_id, default_policy=2)
    one.call("SET_MEMORY_POLICY", gpu_id=gpu_id, default_policy=1, alternate_policy=0)
    one.call("SET_TRAP_HANDLER", gpu_id=gpu_id, tba_addr=0x1000, tma_addr=0x2000)
    one.call("SET_SCRATCH_BACKING_VA", gpu_id=gpu_id, va_addr=0x100000)
    assert one.call("GET_TILE_CONFIG", gpu_id=gpu_id).num_tile_configs == 0
    for name in ("SET_MEMORY_POLICY", "SET_TRAP_HANDLER", "SET_SCRATCH_BACKING_VA", "AVAILABLE_MEMORY", "GET_TILE_CONFIG"):
        with refused(errno.EINVAL):
            one.call(name, gpu_id=1)
    for name in ("CRIU_OP", "DBG_TRAP"):
        with refused(errno.EPERM):
            one.call(name)
    assert one.call("SET_XNACK_MODE", xnack_enabled=-1).xnack_enabled == 0
    with refused(errno.EPERM):
        one.call("SET_XNACK_MODE", xnack_enabled=1)  # RDNA can't retry


def test_calls_that_need_a_vm() -> None:
    with machine("gfx1100") as system, client(system, acquire=False) as made:
        for name in ("SET_MEMORY_POLICY", "SET_TRAP_HANDLER"):
            with refused(errno.ESRCH):
                made.call(name, gpu_id=made.gpus[0])
        with refused(errno.ENODEV):
            made.call("SET_SCRATCH_BACKING_VA", gpu_id=made.gpus[0])
        with refused(errno.ESRCH):
            made.call("CREATE_QUEUE", gpu_id=made.gpus[0], queue_percentage=100)


def test_runtime_enable(one: Client) -> None:
    one.call("RUNTIME_ENABLE", mode_mask=1)
    with refused(errno.EBUSY):
        one.call("RUNTIME_ENABLE", mode_mask=1)
    one.call("RUNTIME_ENABLE", mode_mask=0)
    one.create_queue(one.queue_fields(QueueType.SDMA))
    with refused(errno.EEXIST):
        one.call("RUNTIME_ENABLE", mode_mask=1)


def test_xnack_on_cdna() -> None:
    with machine("gfx90a", "gtt=512M") as system, client(system) as made:
        assert made.call("SET_XNACK_MODE", xnack_enabled=1).xnack_enabled == 1
        assert made.call("SET_XNACK_MODE", xnack_enabled=-1).xnack_enabled == 1
        made.create_queue(made.queue_fields(QueueType.SDMA))
        with refused(errno.EBUSY):
            made.call("SET_XNACK_MODE", xnack_enabled=0)


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
# Queues


@pytest.mark.parametrize("gfx", ALL_GFX)
@pytest.mark.parametrize("kind", [QueueType.COMPUTE, QueueType.COMPUTE_AQL, QueueType.SDMA, QueueType.SDMA_BY_ENG_ID])
def test_queues_are_created(gfx: str, kind: QueueType) -> None:
    with machine(gfx, "gtt=1G") as system, client(system) as made:
        fields = made.queue_fields(kind)
        answer = made.create_queue(fields)
        where, gpu_id, slot = split_mmap_offset(answer.doorbell_offset)
        assert (answer.queue_id, where, gpu_id) == (0, MmapType.DOORBELL, made.gpus[0]) and slot % 8 == 0
        told = FakeEngine.made[0].queues[0].arguments
        assert told["kind"] == {0: "pm4", 2: "aql"}.get(kind, "sdma")
        assert (told["ring"], told["ring_bytes"], told["rptr"], told["wptr"]) == (
            fields["ring_base_address"], 65536, fields["read_pointer_address"], fields["write_pointer_address"])
        address = system.mmap(made.kfd, 8192, RW, MAP_SHARED, answer.doorbell_offset & ~0x1FFF)
        view(address + slot, 8).cast("Q")[0] = 0x1122334455667788
        assert told["doorbell"].cast("Q")[0] == 0x1122334455667788
        system.munmap(address, 8192)
        made.call("DESTROY_QUEUE", queue_id=answer.queue_id)
        assert FakeEngine.made[0].queues[0].calls[-1] == "destroy"


@pytest.mark.parametrize(("change", "number"), [
    ({"queue_percentage": 101}, errno.EINVAL), ({"queue_priority": 16}, errno.EINVAL), ({"ring_size": 3000}, errno.EINVAL),
    ({"gpu_id": 1}, errno.EINVAL), ({"queue_type": 5}, ENOTSUPP), ({"ring_base_address": 1 << 48}, errno.EFAULT),
    ({"read_pointer_address": 1 << 48}, errno.EFAULT), ({"write_pointer_address": 1 << 63}, errno.EFAULT),
    ({"queue_type": QueueType.SDMA_BY_ENG_ID, "sdma_engine_id": 2}, errno.EINVAL),
    ({"queue_type": QueueType.SDMA_XGMI}, errno.ENOMEM), ({"ring_size": 32768}, errno.EINVAL),
    ({"eop_buffer_size": 8192}, errno.EINVAL), ({"ctl_stack_size": 4096}, errno.EINVAL),
    ({"ctx_save_restore_size": 4096}, errno.EINVAL),
    ({"ctx_save_restore_address": 0}, errno.EINVAL), ({"read_pointer_address": 0x10000}, errno.EINVAL),
    ({"write_pointer_address": 0}, errno.EINVAL),
])
def test_create_queue_refuses(one: Client, change: dict[str, int], number: int) -> None:
    fields = one.queue_fields()
    with refused(number):
        one.create_queue({**fields, **change})
    one.create_queue({**fields, "queue_percentage": 100 | 3 << 8})  # bits 15:8 name an XCC


def test_queue_buffers_have_exact_sizes(one: Client) -> None:
    fields, big, local = one.queue_fields(), one.mapped_buffer(131072), one.mapped_buffer(4096, VRAM)
    for change in ({"ring_base_address": big.va}, {"ring_base_address": big.va + 65536}, {"read_pointer_address": big.va},
                   {"write_pointer_address": local.va}, {"eop_buffer_address": big.va}, {"ctx_save_restore_address": big.va}):
        with refused(errno.EINVAL):
            one.create_queue({**fields, **change})
    one.create_queue({**fields, "eop_buffer_address": 0, "eop_buffer_size": 0, "read_pointer_address": local.va})


def test_gfx9_takes_pointers_in_vram() -> None:
    with machine("gfx90a", "gtt=512M") as system, client(system) as made:
        local = made.mapped_buffer(4096, VRAM)
        made.create_queue({**made.queue_fields(QueueType.SDMA), "write_pointer_address": local.va + 8})


def test_small_rings_are_clamped(one: Client) -> None:
    one.create_queue({**one.queue_fields(QueueType.SDMA, ring_bytes=4096), "ring_size": 512})
    assert FakeEngine.made[0].queues[0].arguments["ring_bytes"] == 1024


def test_a_live_queues_buffers_stay_mapped(one: Client) -> None:
    pointers, ring = one.mapped_buffer(4096), one.mapped_buffer(65536)
    queue = one.create_queue({"ring_base_address": ring.va, "ring_size": 65536, "write_pointer_address": pointers.va,
                              "read_pointer_address": pointers.va + 8, "gpu_id": one.gpus[0], "queue_type": QueueType.SDMA,
                              "queue_percentage": 100})
    for buffer in (pointers, ring):
        with refused(errno.EBUSY):
            one.unmap(buffer)
    one.call("DESTROY_QUEUE", queue_id=queue.queue_id)
    for buffer in (pointers, ring):
        one.unmap(buffer)
        one.free(buffer)


def test_update_and_destroy(one: Client) -> None:
    fields = one.queue_fields(QueueType.SDMA)
    queue_id = one.create_queue(fields).queue_id
    update = {"queue_id": queue_id, "ring_base_address": fields["ring_base_address"], "ring_size": 65536, "queue_percentage": 50,
              "queue_priority": 3}
    one.call("UPDATE_QUEUE", **update)
    assert FakeEngine.made[0].queues[0].calls[-1] == ("update", fields["ring_base_address"], 65536, 50, 3)
    other = one.mapped_buffer(8192)
    one.call("UPDATE_QUEUE", **{**update, "ring_base_address": other.va, "ring_size": 8192})
    with refused(errno.EBUSY):
        one.unmap(other)
    for change, number in (({"queue_percentage": 101}, errno.EINVAL), ({"queue_priority": 16}, errno.EINVAL),
                           ({"ring_size": 100}, errno.EINVAL), ({"queue_id": 9}, errno.EFAULT),
                           ({"ring_base_address": 0x10000}, errno.EFAULT)):
        with refused(number):
            one.call("UPDATE_QUEUE", **{**update, **change})
    one.call("UPDATE_QUEUE", **{**update, "queue_percentage": 0})
    one.call("DESTROY_QUEUE", queue_id=queue_id)
    with refused(errno.EINVAL):
        one.call("DESTROY_QUEUE", queue_id=queue_id)


def test_cu_masks_and_wave_state(one: Client) -> None:
    queue_id = one.create_queue(one.queue_fields()).queue_id
    mask = KFD.ffi.new("uint32_t[]", [0xFFFFFFFF] * 64)
    pointer = int(KFD.ffi.cast("uintptr_t", mask))
    one.call("SET_CU_MASK", queue_id=queue_id, num_cu_mask=2048, cu_mask_ptr=pointer)
    for fields, number in (({"num_cu_mask": 0}, errno.EINVAL), ({"num_cu_mask": 33}, errno.EINVAL),
                           ({"num_cu_mask": 32, "cu_mask_ptr": 64}, errno.EFAULT),
                           ({"num_cu_mask": 32, "queue_id": 7}, errno.EFAULT)):
        with refused(number):
            one.call("SET_CU_MASK", **{"queue_id": queue_id, "cu_mask_ptr": pointer, **fields})
    with refused(errno.EINVAL):
        one.call("GET_QUEUE_WAVE_STATE", queue_id=queue_id)  # it is active
    with refused(errno.ENODEV):
        one.call("ALLOC_QUEUE_GWS", queue_id=queue_id, num_gws=1)


def test_too_many_queues() -> None:
    with machine("gfx942", "gtt=1G") as system, client(system) as made:
        shared = made.queue_fields(QueueType.COMPUTE_AQL)
        slots = {made.create_queue(shared).doorbell_offset for _ in range(255)}
        assert len(slots) == 255
        with refused(errno.ENOSPC):
            made.create_queue(shared)
        made.call("DESTROY_QUEUE", queue_id=17)
        assert made.create_queue(shared).queue_id == 17
    with machine("gfx1100") as system, client(system) as made:
        shared = made.queue_fields(QueueType.SDMA)
        slots = {made.create_queue(shared).doorbell_offset for _ in range(12)}  # 2 engines of 6
        assert len(slots) == 12
        with refused(errno.ENOMEM):
            made.create_queue(shared)


# ---------------------------------------------------------------------------------------------------------------------
# Faults and resets


def test_a_page_fault_evicts_the_process(two: Client) -> None:
    two.create_queue(two.queue_fields(QueueType.SDMA))
    two.create_queue(two.queue_fields(QueueType.SDMA, gpu=1))
    here, there = (engine.queues[0] for engine in FakeEngine.made)
    here.notify.memory_fault(MemoryFault(0x123456, "write", "not mapped"))
    assert here.calls[-1] == "evict" and "evict" not in there.calls
    fault = amdgpu.info(two.system, two.render[0], Query.GPUVM_FAULT)
    assert fault.addr == 0x123000 and fault.status
    assert any("[gfxhub] page fault" in line.text for line in two.system.kernel_log())
    two.create_queue(two.queue_fields(QueueType.SDMA))
    assert FakeEngine.made[0].queues[1].calls[-1] == "evict"  # new ones don't run either


def test_a_reset_takes_queues_and_vram() -> None:
    with machine("gfx1100") as system:
        with client(system) as made:
            buffer = made.mapped_buffer(4096, VRAM)
            view(made.cpu(buffer), 4)[:] = b"data"
            fields = made.queue_fields(QueueType.SDMA)
            queue_id = made.create_queue(fields).queue_id
            FakeEngine.made[0].queues[0].notify.hardware_exception(ResetType.WHOLE_GPU_RESET, ResetCause.GPU_HANG, True)
            assert bytes(view(buffer.va, 4)) == bytes(4)
            assert amdgpu.info(system, made.render[0], Query.VRAM_LOST_COUNTER) == 1
            with refused(errno.EIO):
                made.create_queue(fields)
            with refused(errno.EIO):
                made.call("UPDATE_QUEUE", queue_id=queue_id, queue_percentage=100)
            made.call("DESTROY_QUEUE", queue_id=queue_id)
        with client(system) as made:
            made.create_queue(made.queue_fields(QueueType.SDMA))


def test_a_reset_of_one_engine_spares_the_rest(one: Client) -> None:
    fields = one.queue_fields(QueueType.SDMA)
    for _ in range(2):
        one.create_queue(fields)
    first, second = FakeEngine.made[0].queues
    first.notify.hardware_exception(ResetType.PER_ENGINE_RESET, ResetCause.GPU_HANG, False)
    assert "evict" not in second.calls
    one.create_queue(fields)


def test_smi_events(one: Client) -> None:
    with refused(errno.EINVAL):
        one.call("SMI_EVENTS", gpuid=1)
    fd = one.call("SMI_EVENTS", gpuid=one.gpus[0]).anon_fd
    one.create_queue(one.queue_fields(QueueType.SDMA))
    notify = FakeEngine.made[0].queues[0].notify
    notify.memory_fault(MemoryFault(0x1000, "read", "not mapped"))
    with pytest.raises(BlockingIOError):  # nobody asked
        os.read(fd, 96)
    os.write(fd, (1 << SmiEvent.VMFAULT - 1).to_bytes(8, "little"))
    notify.memory_fault(MemoryFault(0x1000, "read", "not mapped"))
    assert os.read(fd, 4096).startswith(f"1 {os.getpid():x}:".encode())
    one.system.close(fd)


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


# ---------------------------------------------------------------------------------------------------------------------
# The render node


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


# ---------------------------------------------------------------------------------------------------------------------
# What is left behind


def resources() -> tuple[int, int]:
    """(descriptors, memfd mappings) of this process."""
    with open("/proc/self/maps") as maps:
        return len(os.listdir("/proc/self/fd")), sum("memfd:" in line for line in maps)


def test_nothing_is_left_after_close() -> None:
    before = resources()
    for _ in range(3):
        with machine("2xgfx1100") as system, client(system) as made:
            for flags in (GTT, VRAM, AllocFlag.DOORBELL | AllocFlag.WRITABLE):
                made.mapped_buffer(8192, flags)
            made.create_queue(made.queue_fields())
            made.call("CREATE_EVENT", event_page_offset=made.event_page().handle)
            made.call("SMI_EVENTS", gpuid=made.gpus[0])
            made.call("EXPORT_DMABUF", handle=made.alloc(4096).handle)
    assert resources() == before
    assert all(engine.closed for engine in FakeEngine.made)


def test_a_closed_process_frees_what_it_had() -> None:
    with machine("gfx1100") as system:
        with client(system) as made:
            made.mapped_buffer(1 << 20, VRAM)
            made.create_queue(made.queue_fields())
        card = driver(system).cards[0]
        assert (card.vram_used, card.gtt_used, card.live, card.sdma_taken) == (0, 0, {}, set())
        assert "destroy" in FakeEngine.made[0].queues[0].calls


def test_many_threads_at_once(one: Client) -> None:
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for n in range(40):
                buffer = one.alloc(4096 * (1 + (seed + n) % 5), VRAM if n % 2 else GTT)
                one.map(buffer)
                view(one.cpu(buffer), 8)[:] = bytes([seed]) * 8
                assert entry(one, buffer.va)
                one.unmap(buffer)
                one.free(buffer)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert driver(one.system).cards[0].vram_used == 0


def test_finalizers_never_run_inside_a_call(one: Client) -> None:
    """A collection in the midst of an ioctl would re-enter the driver: buffers that are freed by it, while others are made."""
    class Owner:
        def __init__(self) -> None:
            self.buffer, self.me = one.alloc(4096 * 3, VRAM, va=0x10000000), self  # a cycle: only the collector ends it

        def __del__(self) -> None:
            one.free(self.buffer)

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for n in range(300):
            Owner()
            one.free(one.alloc(4096 * (1 + n % 4), VRAM, va=0x20000000))
    finally:
        gc.set_threshold(*before)
        gc.collect()
    card = driver(one.system).cards[0]
    assert gc.isenabled() and card.vram_used == 0 and not card.live


def test_a_wait_does_not_hold_up_other_calls(one: Client) -> None:
    event = one.call("CREATE_EVENT", event_page_offset=one.event_page().handle).event_id
    data = KFD.new("kfd_event_data", event_id=event)
    waiting = threading.Thread(target=one.call, args=("WAIT_EVENTS",), kwargs={
        "events_ptr": int(KFD.ffi.cast("uintptr_t", data)), "num_events": 1, "timeout": 5000})
    waiting.start()
    started = time.monotonic()
    one.free(one.alloc(4096))
    one.call("SET_EVENT", event_id=event)
    waiting.join()
    assert time.monotonic() - started < 2

