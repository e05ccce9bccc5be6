"""The driver with its real engines, from /dev/kfd down: packets in a ring, a doorbell, an event; and another process's memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator

import pytest

from devrt.amd import sdma
from devrt.device import parse_uri
from devrt.ioctl.kfd import KFD, AllocFlag, EventType, QueueType, WaitResult
from devrt.ioctl.system import MAP_SHARED, PROT_READ, PROT_WRITE, view
from devrt.virtual.client import Client as DriverClient
from devrt.virtual.client import Memory
from devrt.virtual.faults import inject
from devrt.virtual.memory import Access
from devrt.virtual.system import OpenFiles, VirtualSystem, make_system
from tests.virtual.amd.kfd_client import VRAM, Buffer, Client, client, driver, machine

GFX = 11


class Copier:
    """One copy queue of a client, with an event that it signals."""

    def __init__(self, made: Client, gpu: int = 0) -> None:
        self.made, system = made, made.system
        fields = made.queue_fields(QueueType.SDMA, gpu)
        queue = made.create_queue(fields)
        self.ring = self._cpu(fields["ring_base_address"], gpu)
        self.wptr = view(self._cpu(fields["write_pointer_address"], gpu) + 0x38, 8).cast("Q")
        page = queue.doorbell_offset & ~0x1FFF
        self.bells = system.mmap(made.kfd, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, page)
        made.mapped.append((self.bells, 8192))
        self.bell = view(self.bells + (queue.doorbell_offset & 0x1FFF), 8).cast("Q")
        self.written = 0

    def _cpu(self, va: int, gpu: int) -> int:
        device = driver(self.made.system).processes[os.getpid()].devices[self.made.gpus[gpu]]
        bo = next(bo for bo in device.handles.values() if bo.va == va // 4096 * 4096)
        return self.made.cpu(Buffer(bo.handle, bo.va, bo.nbytes, bo.offset), gpu)

    def push(self, *packets: list[int]) -> None:
        for words in packets:
            view(self.ring + self.written, 4 * len(words)).cast("I")[:] = memoryview((ctypes.c_uint32 * len(words))(*words)).cast(
                "B").cast("I")
            self.written += 4 * len(words)
        self.wptr[0] = self.written
        self.bell[0] = self.written


def signal(page: Buffer, event: int) -> list[list[int]]:
    slot = page.va + 8 * event
    return [sdma.encode("FENCE", GFX, address=slot, data=event), sdma.encode("TRAP", GFX, int_context=event)]


def wait(made: Client, *events: int, timeout: int = 5000) -> tuple[int, list[dict[str, int]]]:
    data = KFD.ffi.new("struct kfd_event_data[]", [{"event_id": event} for event in events])
    answer = made.call("WAIT_EVENTS", events_ptr=int(KFD.ffi.cast("uintptr_t", data)), num_events=len(events), timeout=timeout)
    return answer.wait_result, [KFD.fields("kfd_event_data", bytes(KFD.ffi.buffer(data))[48 * n:48 * n + 48])
                                for n in range(len(events))]


@pytest.fixture
def system() -> Iterator[VirtualSystem]:
    made = make_system(parse_uri("virtual:amd/2xgfx1100?vram=64M&gtt=64M"))
    threads = threading.active_count()
    yield made
    made.shut_down()
    assert threading.active_count() == threads  # engines are gone


def events(made: Client) -> tuple[Buffer, int, int, int]:
    """(the page, a signal event, the MEMORY event, the HW_EXCEPTION event)"""
    page = made.event_page()
    first = made.call("CREATE_EVENT", event_page_offset=page.handle, auto_reset=1).event_id
    memory = made.call("CREATE_EVENT", event_type=EventType.MEMORY, auto_reset=1).event_id
    return page, first, memory, made.call("CREATE_EVENT", event_type=EventType.HW_EXCEPTION, auto_reset=1).event_id


def test_a_copy_to_a_peer_and_its_event(system: VirtualSystem) -> None:
    with client(system) as made:
        page, first, _, _ = events(made)
        source, target = made.mapped_buffer(65536), made.alloc(65536, VRAM, gpu=1)
        made.map(target, 0, 1)
        view(made.cpu(source), 65536)[:] = bytes(range(256)) * 256
        copier = Copier(made)
        copier.push(sdma.encode("COPY_LINEAR", GFX, count=65535, src=source.va, dst=target.va), *signal(page, first))
        assert wait(made, first)[0] == WaitResult.COMPLETE
        assert bytes(view(made.cpu(target, 1), 65536)) == bytes(range(256)) * 256


def test_a_fault_ends_the_context_and_a_new_one_works(system: VirtualSystem) -> None:
    for _ in range(2):
        with client(system) as made:
            page, first, memory, _ = events(made)
            target, copier = made.mapped_buffer(4096), Copier(made)
            copier.push(*signal(page, first))
            assert wait(made, first)[0] == WaitResult.COMPLETE
            copier.push(sdma.encode("COPY_LINEAR", GFX, count=15, src=0x7000_0000_0000, dst=target.va), *signal(page, first))
            result, told = wait(made, first, memory)
            about = told[1]["memory_exception_data"]
            assert result == WaitResult.COMPLETE and about["va"] == 0x7000_0000_0000 and about["failure"]["NotPresent"]
            assert wait(made, first, timeout=20)[0] == WaitResult.TIMEOUT


def test_injected_faults(system: VirtualSystem) -> None:
    for spec, kind in (("lost-interrupt", None), ("hang", None), ("page-fault", "memory"), ("reset", "hardware"),
                       ("ecc", "memory")):
        with client(system) as made:
            page, first, memory, hardware = events(made)
            source, copier = made.mapped_buffer(4096), Copier(made)
            inject(system, spec)
            copy = sdma.encode("COPY_LINEAR", GFX, count=15, src=source.va, dst=source.va + 64)
            copier.push(copy, *signal(page, first))
            if kind is None:
                assert wait(made, first, memory, hardware, timeout=100)[0] == WaitResult.TIMEOUT, spec
            else:
                assert wait(made, {"memory": memory, "hardware": hardware}[kind])[0] == WaitResult.COMPLETE, spec
        with client(system) as made:  # and it works again
            page, first, _, _ = events(made)
            Copier(made).push(*signal(page, first))
            assert wait(made, first)[0] == WaitResult.COMPLETE, spec


def test_another_process() -> None:
    """A child holds memory; the driver here serves it: arguments, lists and user pages are read and written there."""
    shared = mmap.mmap(-1, 8192, flags=mmap.MAP_SHARED)
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        own = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        own[4096:4101] = b"child"
        address = ctypes.addressof(ctypes.c_char.from_buffer(own))
        shared[:8] = address.to_bytes(8, "little")
        os.write(ready[1], b"1")
        os.read(done[0], 1)
        shared[8:16] = own[4096:4104]
        shared[16:24] = own[:8]
        os._exit(0)
    os.read(ready[0], 1)
    address = int.from_bytes(shared[:8], "little")
    with machine("gfx1100") as system:
        kfd_driver = driver(system)
        files = OpenFiles(kfd_driver.release)
        child = DriverClient(pid, files, Memory(pid), foreign=True)
        kfd, _ = kfd_driver.open(child, "/dev/kfd")
        render, pages_fd = kfd_driver.open(child, "/dev/dri/renderD128")
        render_fd = files.install(os.dup(pages_fd), render)
        gpu_id = kfd_driver.cards[0].node.gpu_id

        def call(name: str, **fields: int) -> dict[str, int]:
            struct = KFD.ioctls[f"AMDKFD_IOC_{name}"].struct
            child.memory.write(address, bytes(KFD.ffi.buffer(KFD.new(struct, **fields))))
            kfd_driver.ioctl(child, kfd, KFD.request(f"AMDKFD_IOC_{name}"), address)
            return KFD.fields(struct, child.memory.read(address, KFD.size(struct)))

        assert call("GET_VERSION") == {"major_version": 1, "minor_version": 18}
        call("ACQUIRE_VM", drm_fd=render_fd, gpu_id=gpu_id)
        made = call("ALLOC_MEMORY_OF_GPU", va_addr=address + 4096, size=4096, gpu_id=gpu_id, mmap_offset=address + 4096,
                    flags=AllocFlag.USERPTR | AllocFlag.WRITABLE)
        child.memory.write(address + 512, gpu_id.to_bytes(4, "little"))
        call("MAP_MEMORY_TO_GPU", handle=made["handle"], n_devices=1, device_ids_array_ptr=address + 512)
        vm = kfd_driver.processes[pid].devices[gpu_id].vm
        assert vm is not None and vm.space.entry(address + 4096) & Access.FOREIGN
        assert vm.space.read(address + 4096, 5) == b"child"
        vm.space.write(address + 4096, b"PARENT")
        kfd_driver.release(kfd)
        assert pid not in kfd_driver.processes
        files.close(render_fd)
    os.write(done[1], b"1")
    os.waitpid(pid, 0)
    assert shared[8:14] == b"PARENT"
    for fd in (*ready, *done):
        os.close(fd)
