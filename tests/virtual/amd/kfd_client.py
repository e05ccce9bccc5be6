"""A small program of KFD for the tests of the virtual driver, and an engine that only remembers what it was told."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from devrt.ioctl.kfd import KFD, AllocFlag, QueueType
from devrt.ioctl.system import (
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    LinuxSystem,
)
from devrt.virtual.amd.driver import AmdDriver
from devrt.virtual.amd.machine import MODELS, Notify, parse_topology
from devrt.virtual.faults import parse_query
from devrt.virtual.system import VirtualSystem

GTT = AllocFlag.GTT | AllocFlag.WRITABLE | AllocFlag.EXECUTABLE | AllocFlag.COHERENT | AllocFlag.UNCACHED
VRAM = AllocFlag.VRAM | AllocFlag.WRITABLE | AllocFlag.PUBLIC


@dataclass
class FakeQueue:
    arguments: dict[str, Any]
    faulted: object = None
    calls: list[Any] = field(default_factory=list)

    @property
    def notify(self) -> Notify:
        found: Notify = self.arguments["notify"]
        return found

    def update(self, *values: int) -> None: self.calls.append(("update", *values))
    def destroy(self) -> None: self.calls.append("destroy")
    def evict(self) -> None: self.calls.append("evict")
    def restore(self) -> None: self.calls.append("restore")


class FakeEngine:
    """One for each GPU, in `made`."""

    made: list[FakeEngine]

    def __init__(self, model: Any, system: Any, faults: Any) -> None:
        self.model, self.queues, self.closed = model, [], False
        FakeEngine.made.append(self)

    def create_queue(self, space: Any, kind: Any, **arguments: Any) -> FakeQueue:
        self.queues.append(FakeQueue({"space": space, "kind": kind, **arguments}))
        return self.queues[-1]

    def close(self) -> None:
        self.closed = True


@contextlib.contextmanager
def machine(topology: str, query: str = "") -> Iterator[VirtualSystem]:
    """A virtual machine with fake engines, shut down at the end."""
    FakeEngine.made = []
    faults, sizes = parse_query(query)
    host = LinuxSystem()
    system = VirtualSystem(host, [AmdDriver(parse_topology(topology, **sizes), host, faults, FakeEngine)], faults)
    try:
        yield system
    finally:
        system.shut_down()


def driver(system: VirtualSystem) -> AmdDriver:
    found = system.drivers[0]
    assert isinstance(found, AmdDriver)
    return found


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """The block fails with this errno."""
    with pytest.raises(OSError) as raised:
        yield
    assert raised.value.errno == number, (errno.errorcode.get(raised.value.errno or 0), errno.errorcode.get(number))


@dataclass
class Buffer:
    handle: int
    va: int
    nbytes: int
    offset: int


class Client:
    """Opens everything of a machine and acquires the VM of every GPU."""

    def __init__(self, system: VirtualSystem, acquire: bool = True) -> None:
        self.system = system
        self.kfd = system.open("/dev/kfd", os.O_RDWR)
        self.gpus = [gpu.gpu_id for gpu in driver(system).machine.gpus]
        self.render = [system.open(f"/dev/dri/renderD{128 + n}", os.O_RDWR) for n in range(len(self.gpus))]
        self.mapped: list[tuple[int, int]] = []
        for fd, gpu_id in zip(self.render, self.gpus, strict=True) if acquire else ():
            self.call("ACQUIRE_VM", drm_fd=fd, gpu_id=gpu_id)

    def call(self, name: str, **fields: Any) -> Any:
        return KFD.call(self.system, self.kfd, f"AMDKFD_IOC_{name}", **fields)

    def reserve(self, nbytes: int) -> int:
        """Addresses that nothing lies at, as runtimes take them."""
        address = self.system.mmap(-1, nbytes, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE)
        self.mapped.append((address, nbytes))
        return address

    def alloc(self, nbytes: int, flags: int = GTT, gpu: int = 0, va: int | None = None) -> Buffer:
        va = va if va is not None else self.reserve(nbytes)
        made = self.call("ALLOC_MEMORY_OF_GPU", va_addr=va, size=nbytes, gpu_id=self.gpus[gpu], flags=flags)
        return Buffer(made.handle, va, nbytes, made.mmap_offset)

    def map(self, buffer: Buffer, *gpus: int, n_success: int = 0) -> int:
        return self._each("MAP_MEMORY_TO_GPU", buffer.handle, gpus or (0,), n_success)

    def unmap(self, buffer: Buffer, *gpus: int) -> int:
        return self._each("UNMAP_MEMORY_FROM_GPU", buffer.handle, gpus or (0,), 0)

    def _each(self, name: str, handle: int, gpus: tuple[int, ...], n_success: int) -> int:
        ids = KFD.ffi.new("uint32_t[]", [self.gpus[gpu] for gpu in gpus])
        address = int(KFD.ffi.cast("uintptr_t", ids))
        fields = {"handle": handle, "device_ids_array_ptr": address, "n_devices": len(gpus), "n_success": n_success}
        return int(self.call(name, **fields).n_success)

    def free(self, buffer: Buffer) -> None:
        self.call("FREE_MEMORY_OF_GPU", handle=buffer.handle)

    def cpu(self, buffer: Buffer, gpu: int = 0) -> int:
        """Map a buffer into this process at its own address."""
        return self.system.mmap(self.render[gpu], buffer.nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, buffer.offset,
                                buffer.va)

    def mapped_buffer(self, nbytes: int, flags: int = GTT, gpu: int = 0) -> Buffer:
        buffer = self.alloc(nbytes, flags, gpu)
        self.map(buffer, gpu)
        return buffer

    def queue_fields(self, kind: QueueType = QueueType.COMPUTE, gpu: int = 0, ring_bytes: int = 65536) -> dict[str, Any]:
        """Good arguments of CREATE_QUEUE, with fresh buffers."""
        model = driver(self.system).cards[gpu].model
        pointers, ring = self.mapped_buffer(4096, gpu=gpu), self.mapped_buffer(ring_bytes, gpu=gpu)
        fields = {"ring_base_address": ring.va, "ring_size": ring_bytes, "write_pointer_address": pointers.va + 0x38,
                  "read_pointer_address": pointers.va + 0x80, "gpu_id": self.gpus[gpu], "queue_type": kind,
                  "queue_percentage": 100, "queue_priority": 7}
        if kind in (QueueType.COMPUTE, QueueType.COMPUTE_AQL):
            area = model.save_area
            eop, cwsr = self.mapped_buffer(4096, gpu=gpu), self.mapped_buffer(area.allocation, gpu=gpu)
            fields |= {"eop_buffer_address": eop.va, "eop_buffer_size": 4096, "ctx_save_restore_address": cwsr.va,
                       "ctx_save_restore_size": area.cwsr, "ctl_stack_size": area.control_stack}
        return fields

    def create_queue(self, fields: dict[str, Any]) -> Any:
        return self.call("CREATE_QUEUE", **fields)

    def event_page(self) -> Buffer:
        """The page of events, mapped, and given to the driver with a first event."""
        page = self.mapped_buffer(32768)
        self.cpu(page)
        return page

    def close(self) -> None:
        for fd in (self.kfd, *self.render):
            self.system.close(fd)
        for address, nbytes in self.mapped:
            self.system.munmap(address, nbytes)


@contextlib.contextmanager
def client(system: VirtualSystem, acquire: bool = True) -> Iterator[Client]:
    made = Client(system, acquire)
    try:
        yield made
    finally:
        made.close()


def entry(made: Client, va: int, gpu: int = 0) -> int:
    """What the page table of a GPU says of an address."""
    vm = driver(made.system).processes[os.getpid()].devices[made.gpus[gpu]].vm
    assert vm is not None
    return vm.space.entry(va)


ALL_GFX = tuple(MODELS)
