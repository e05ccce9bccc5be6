"""The virtual KFD against what Linux's amdkfd does: how calls are found, processes, faults, what is left behind. Read in
drivers/gpu/drm/amd/amdkfd."""

from __future__ import annotations

import errno
import gc
import os
import struct
import threading
import time
import traceback

import pytest

from devrt.ioctl import amdgpu, kfd
from devrt.ioctl.amdgpu import Query
from devrt.ioctl.kfd import (
    KFD,
    AllocFlag,
    MmapType,
    QueueType,
    ResetCause,
    ResetType,
    SmiEvent,
    split_mmap_offset,
)
from devrt.ioctl.system import view
from devrt.virtual.memory import MemoryFault
from tests.virtual.amd.kfd_client import GTT, VRAM, Client, FakeEngine, client, driver, entry, machine, refused

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


def test_failed_calls_leave_no_views_to_the_collector(one: Client) -> None:
    """Some versions of Python crash on a memoryview that only the traceback of an exception in a cycle holds."""
    calls: tuple[tuple[str, dict[str, int]], ...] = (
        ("FREE_MEMORY_OF_GPU", {"handle": 1 << 40}), ("WAIT_EVENTS", {"num_events": 1, "events_ptr": 64}),
        ("MAP_MEMORY_TO_GPU", {"handle": 1 << 40, "n_devices": 1, "device_ids_array_ptr": 64}), ("SVM", {"start_addr": 1}))
    for name, fields in calls:
        with pytest.raises(OSError) as raised:
            one.call(name, **fields)
        views = [value for frame, _ in traceback.walk_tb(raised.value.__traceback__) for value in frame.f_locals.values()
                 if isinstance(value, memoryview)]
        assert views  # the caller's
        for view_ in views:
            with pytest.raises(ValueError, match="released"):
                len(view_)
        raised.value.again = raised.value  # type: ignore[attr-defined]
        del raised, views, view_
        gc.collect()


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
