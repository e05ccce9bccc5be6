"""The compute driver of one process: /dev/kfd, the GPUs behind it, and the events that say what went wrong.

A process has one context in the driver, and it lasts as long as the process: a GPU's address space belongs to the first
render node that was given with it, so the nodes stay open when devices are closed. After a fault the driver runs none of the
context's queues on that GPU any more, new ones included; interface 1.19 can give the process another context.

Every call is one of the table in devrt.ioctl.kfd; failures come as devrt's errors.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from devrt.amd import faults, topology
from devrt.amd.topology import Node
from devrt.device import DeviceLost, DeviceNotFound, DriverMismatch, InvalidArgument, PermissionDenied, Unsupported
from devrt.gpu.memory import PAGE, reserve
from devrt.ioctl.errors import devrt_error, reported_as
from devrt.ioctl.kfd import KFD, AllocFlag, EventType, QueueType, WaitResult, version
from devrt.ioctl.system import (
    MADV_DONTFORK,
    MAP_FIXED,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    System,
)

if TYPE_CHECKING:
    from devrt.amd.device import AmdDevice

NODE = "/dev/kfd"
MAJOR, MINOR = 1, 11  # the oldest interface devrt speaks: Linux 6.1
_AVAILABLE_MEMORY, _RUNTIME_ENABLE, _CREATE_PROCESS = 9, 13, 19  # minors that brought these calls
EVENT_PAGE_BYTES = 8 * 4096  # one u64 for each signal event
DOORBELL_BYTES = 8192  # a process's doorbells of one GPU, 8 bytes each
FOREVER = 0xFFFFFFFF
_EVENT = struct.Struct("<32sQII")  # kfd_event_data

_drivers: dict[int, Driver] = {}  # by the identity of their System
_lock = threading.Lock()


def connect(system: System, index: int = -1) -> Driver:
    """The driver context of this process behind `system`, opened once, and again where GPU `index` was stopped in it. Raises
    DeviceNotFound, PermissionDenied, DriverMismatch, DeviceLost."""
    with _lock:
        found = _drivers.get(id(system))
        if found is None:
            found = _drivers[id(system)] = Driver(system)
        elif 0 <= index < len(found.gpus) and found.gpus[index].stopped:
            found = _drivers[id(system)] = found.renew()
        return found


class Gpu:
    """One GPU as this process's context sees it. `vm`: its render node, once its address space is this process's."""

    def __init__(self, driver: Driver, node: Node) -> None:
        self.driver, self.node, self.id = driver, node, node.gpu_id
        self.vm = -1
        self.vm_limit = 0
        self.device: AmdDevice | None = None
        self.stopped = False  # whether the driver runs nothing more on it
        self._doorbells = 0
        self._doorbell_users = 0

    def doorbell(self, offset: int) -> int:
        """The address of the doorbell at a CREATE_QUEUE's doorbell_offset; give it back by `doorbell_done`."""
        if not self._doorbells:
            with reported_as(f"can't map the doorbells of GPU {self.id:#x}"):
                self._doorbells = self.driver.system.mmap(self.driver.fd, DOORBELL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
                                                          offset & ~(DOORBELL_BYTES - 1))
                self.driver.system.madvise(self._doorbells, DOORBELL_BYTES, MADV_DONTFORK)
        self._doorbell_users += 1
        return self._doorbells + (offset & DOORBELL_BYTES - 1)

    def doorbell_done(self) -> None:
        self._doorbell_users -= 1
        if not self._doorbell_users:
            self.driver.system.munmap(self._doorbells, DOORBELL_BYTES)
            self._doorbells = 0


class Driver:
    """One process's context of amdkfd. `interface` is the version (major, minor) it speaks; `renewed`: it follows one that
    was stopped."""

    def __init__(self, system: System, renewed: bool = False) -> None:
        self.system, self.renewed = system, renewed
        self.fd = _open(system)
        try:
            with reported_as("the compute driver does not say its version"):
                self.interface = version(system, self.fd)
            if self.interface[0] != MAJOR or self.interface < (MAJOR, MINOR):
                raise DriverMismatch(f"the compute driver speaks interface {_dotted(self.interface)}, "
                                     f"devrt {MAJOR}.{MINOR} and newer of {MAJOR}.x", evidence=f"{NODE}: GET_VERSION",
                                     remedy="use Linux 6.1 or newer" if self.interface < (MAJOR, MINOR) else "update devrt")
            if renewed and self.interface >= (1, _CREATE_PROCESS):
                with reported_as("the compute driver gives this process no second context"):
                    system.ioctl(self.fd, KFD.request("AMDKFD_IOC_CREATE_PROCESS"), 0)
            self.topology = topology.read(system, caches=False)
            self.gpus = [Gpu(self, node) for node in self.topology.gpus]
        except BaseException:
            system.close(self.fd)
            raise
        self.forked = False  # whether this process is a child of the one that the context belongs to
        self.lock = threading.RLock()
        self.event_page = 0  # address
        self._page_handle = self._event_page_handle = 0  # of the page, and until it was given to the driver
        self._event_page_gpus: list[int] = []
        self._enabled = False
        self._alarms: dict[int, EventType] = {}  # MEMORY and HW_EXCEPTION events
        self._wake = 0  # event that ends the watcher's wait
        self._watcher: threading.Thread | None = None
        self._watched = 0  # open devices

    # ----- GPUs

    def attach(self, index: int) -> Gpu:
        """GPU number `index`, its address space this process's. Raises DeviceNotFound, PermissionDenied, DeviceLost."""
        self.topology.gpu(index)
        gpu = self.gpus[index]
        with self.lock:
            if gpu.vm < 0:
                self._acquire(gpu)
            self._prepare(gpu)
        return gpu

    def _acquire(self, gpu: Gpu) -> None:
        with reported_as(f"can't open the render node of AMD GPU {gpu.id:#x}"):
            fd = self.system.open(gpu.node.render_path, os.O_RDWR)
        try:
            limits = self._apertures().get(gpu.id)
            if limits is None:
                raise DeviceNotFound(f"the driver gives this process no addresses on AMD GPU {gpu.id:#x}",
                                     evidence="GET_PROCESS_APERTURES_NEW", remedy="the GPU may be hidden by a device cgroup")
            try:
                KFD.call(self.system, self.fd, "AMDKFD_IOC_ACQUIRE_VM", drm_fd=fd, gpu_id=gpu.id)
            except OSError as error:
                taken = error.errno == errno.EBUSY
                if taken and self.renewed:
                    raise _stopped(gpu) from error
                raise devrt_error(error, f"can't take the address space of AMD GPU {gpu.id:#x}",
                                  remedy="another runtime of this process (ROCm?) has it: use one of them" if taken else "") \
                    from error
        except BaseException:
            self.system.close(fd)
            raise
        gpu.vm, gpu.vm_limit = fd, limits

    def _apertures(self) -> dict[int, int]:
        """gpu_id -> highest address a GPU reaches."""
        row = struct.Struct("<6QII")
        data = bytearray(row.size * max(1, len(self.gpus)))
        self.call("GET_PROCESS_APERTURES_NEW", "can't ask for the address ranges of the GPUs",
                  kfd_process_device_apertures_ptr=KFD.ffi.cast("uintptr_t", KFD.ffi.from_buffer(data)),
                  num_of_nodes=len(self.gpus))
        return {values[6]: values[5] for values in row.iter_unpack(data) if values[6]}

    def _prepare(self, gpu: Gpu) -> None:
        """What the process needs once: exceptions reported to it, and the page of signals, which every GPU writes to."""
        if not self._enabled and self.interface >= (1, _RUNTIME_ENABLE):
            try:
                KFD.call(self.system, self.fd, "AMDKFD_IOC_RUNTIME_ENABLE", mode_mask=0)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.EEXIST):  # another runtime of this process did it
                    raise devrt_error(error, "the driver does not start the compute runtime") from error
            self._enabled = True
        if not self.event_page:
            self.event_page, self._page_handle = self.allocate(
                gpu, EVENT_PAGE_BYTES, AllocFlag.GTT | AllocFlag.WRITABLE | AllocFlag.EXECUTABLE | AllocFlag.NO_SUBSTITUTE
                | AllocFlag.COHERENT | AllocFlag.UNCACHED)
            self._event_page_handle = self._page_handle
        if gpu.id not in self._event_page_gpus:
            self.map(self._page_handle, [*self._event_page_gpus, gpu.id])
            self._event_page_gpus.append(gpu.id)

    # ----- memory

    def allocate(self, gpu: Gpu, nbytes: int, flags: int, *, alignment: int = PAGE, host: bool = True,
                 address: int = 0) -> tuple[int, int]:
        """(address, handle) of a buffer object at an address of its own, not mapped to any GPU yet. `host`: the process
        sees it at the same address; `address`: that of USERPTR memory. Raises OutOfMemory and whatever the errno means."""
        va = reserve(self.system, nbytes, alignment)
        try:
            if va + nbytes - 1 > gpu.vm_limit:
                raise Unsupported(f"address {va:#x} is beyond what AMD GPU {gpu.id:#x} reaches", evidence=f"{gpu.vm_limit:#x}")
            made = self.call("ALLOC_MEMORY_OF_GPU", f"can't allocate {nbytes} bytes on AMD GPU {gpu.id:#x}", va_addr=va,
                             size=nbytes, gpu_id=gpu.id, flags=flags, mmap_offset=address)
            try:
                if host:
                    with reported_as(f"can't map {nbytes} bytes of AMD GPU {gpu.id:#x}"):
                        self.system.mmap(gpu.vm, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, made.mmap_offset, va)
                with reported_as("can't keep GPU memory out of child processes"):
                    self.system.madvise(va, nbytes, MADV_DONTFORK)
            except BaseException:
                self.call("FREE_MEMORY_OF_GPU", "can't free what could not be mapped", handle=made.handle)
                raise
        except BaseException:
            self.system.munmap(va, nbytes)
            raise
        return va, int(made.handle)

    def release(self, address: int, nbytes: int, handle: int, gpu_ids: Sequence[int]) -> None:
        """Undo `allocate` and `map`. Raises InvalidArgument where the driver says that a queue uses the memory."""
        if self.forked:  # nothing of it is in this process, and something else may be at that address
            return
        try:
            if self.fd < 0:  # the context is gone, and with it the buffer object
                self.system.munmap(address, nbytes)
                return
            if gpu_ids:
                self.unmap(handle, gpu_ids)
            self.system.munmap(address, nbytes)
            KFD.call(self.system, self.fd, "AMDKFD_IOC_FREE_MEMORY_OF_GPU", handle=handle)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise InvalidArgument(f"{nbytes} bytes at {address:#x} are in use by a queue", evidence="EBUSY: the driver",
                                      remedy="close what uses the memory before it is freed") from error
            raise devrt_error(error, f"can't free {nbytes} bytes at {address:#x}") from error

    def map(self, handle: int, gpu_ids: Sequence[int]) -> None:
        """Let these GPUs reach a buffer object at its address; those that already do are no error. Raises OutOfMemory .."""
        with reported_as(f"can't map memory to {len(gpu_ids)} GPUs"):
            self._mapping("AMDKFD_IOC_MAP_MEMORY_TO_GPU", handle, gpu_ids)

    def unmap(self, handle: int, gpu_ids: Sequence[int]) -> None:
        """Raises OSError."""
        self._mapping("AMDKFD_IOC_UNMAP_MEMORY_FROM_GPU", handle, gpu_ids)

    def _mapping(self, name: str, handle: int, gpu_ids: Sequence[int]) -> None:
        ids = KFD.ffi.new("uint32_t[]", list(gpu_ids))
        KFD.call(self.system, self.fd, name, handle=handle, n_devices=len(gpu_ids),
                 device_ids_array_ptr=KFD.ffi.cast("uintptr_t", ids))

    def available(self, gpu: Gpu) -> int | None:
        """Bytes of VRAM nobody uses, None where the driver does not say."""
        if self.interface < (1, _AVAILABLE_MEMORY):
            return None
        answer = self.call("AVAILABLE_MEMORY", f"can't ask for the free memory of AMD GPU {gpu.id:#x}", gpu_id=gpu.id)
        return int(answer.available)

    # ----- queues

    def create_queue(self, gpu: Gpu, kind: QueueType, **fields: Any) -> tuple[int, int]:
        """(queue id, doorbell offset). Raises OutOfMemory where the GPU has no queue left."""
        made = self.call("CREATE_QUEUE", f"can't create a {kind.name} queue on AMD GPU {gpu.id:#x}", gpu_id=gpu.id,
                         queue_type=kind, **fields)
        return made.queue_id, made.doorbell_offset

    def destroy_queue(self, queue: int) -> None:
        self.call("DESTROY_QUEUE", f"can't destroy queue {queue}", queue_id=queue)

    # ----- events

    def create_event(self, kind: EventType = EventType.SIGNAL) -> int:
        """The id of a fresh event; a waiter consumes it."""
        with self.lock:
            made = self.call("CREATE_EVENT", "can't create an event", event_type=kind, auto_reset=1,
                             event_page_offset=self._event_page_handle)
            self._event_page_handle = 0  # the first event brings the page
            return int(made.event_id)

    def destroy_event(self, event: int) -> None:
        self.call("DESTROY_EVENT", f"can't destroy event {event}", event_id=event)

    def set_event(self, event: int) -> None:
        self.call("SET_EVENT", f"can't set event {event}", event_id=event)

    def slot(self, event: int) -> int:
        """The address a GPU writes to before it interrupts for a signal event."""
        return self.event_page + 8 * event

    def wait_events(self, events: Sequence[int], timeout_ms: int) -> list[bytes] | None:
        """The data of every event once one of them is set, None after the timeout."""
        data = bytearray(b"".join(_EVENT.pack(bytes(32), 0, event, 0) for event in events))
        answer = self.call("WAIT_EVENTS", "can't wait for events", num_events=len(events), timeout=timeout_ms,
                           events_ptr=KFD.ffi.cast("uintptr_t", KFD.ffi.from_buffer(data)))
        if answer.wait_result != WaitResult.COMPLETE:
            return None
        return [bytes(data[at:at + _EVENT.size]) for at in range(0, len(data), _EVENT.size)]

    def watch(self, device: AmdDevice) -> None:
        """Tell `device` of exceptions of its GPU until `unwatch`. The first device starts the thread that listens."""
        with self.lock:
            for kind in (EventType.MEMORY, EventType.HW_EXCEPTION):
                if kind not in self._alarms.values():
                    self._alarms[self.create_event(kind)] = kind
            self._wake = self._wake or self.create_event()
            device.gpu.device = device
            self._watched += 1
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._listen, name="devrt-amd-events", daemon=True)
                self._watcher.start()

    def unwatch(self, device: AmdDevice) -> None:
        with self.lock:
            device.gpu.device = None
            self._watched -= 1
            watcher = self._watcher
            if self._watched or watcher is None:
                return
            self._watcher = None
            self.set_event(self._wake)
        if watcher is not threading.current_thread():
            watcher.join()

    def _listen(self) -> None:
        events = [*self._alarms, self._wake]
        while self._watcher is threading.current_thread():
            try:
                answer = self.wait_events(events, FOREVER)
            except Exception as error:
                lost = DeviceLost("the compute driver stopped answering", evidence=str(error))
                for gpu in self.gpus:
                    if gpu.device is not None:
                        gpu.device.fail(lost)
                return
            for data, kind in zip(answer or (), self._alarms.values(), strict=False):
                self._alarm(kind, data)

    def _alarm(self, kind: EventType, data: bytes) -> None:
        gpu_id = faults.gpu_of(kind, data)
        for gpu in self.gpus:
            device = gpu.device
            if device is not None and gpu.id == gpu_id:
                gpu.stopped = True
                device.fail(faults.error_of(kind, data, device))

    # ----- the end

    def call(self, name: str, what: str, /, **fields: Any) -> Any:
        """One ioctl of /dev/kfd; `what` says what could not be done when it fails."""
        try:
            return KFD.call(self.system, self.fd, f"AMDKFD_IOC_{name}", **fields)
        except OSError as error:
            raise devrt_error(error, what) from error

    def renew(self) -> Driver:
        """A context that follows this one. Raises DeviceLost where that takes closing other devices."""
        if not self._watched:
            self._close()
        elif self.interface < (1, _CREATE_PROCESS):
            raise DeviceLost("a GPU that faulted is not opened again beside others",
                             evidence=f"interface {_dotted(self.interface)}",
                             remedy="close the other AMD devices of this process too, then open all again")
        return Driver(self.system, renewed=True)

    def close(self) -> None:
        """Give everything back; on a real system the process can't attach to its GPUs again. No device may be open."""
        with _lock:
            _drivers.pop(id(self.system), None)
        self._close()

    def _close(self) -> None:
        with self.lock:
            for event in [*self._alarms, *([self._wake] if self._wake else [])]:
                self.destroy_event(event)
            self._alarms.clear()
            if self.event_page:
                self.unmap(self._page_handle, self._event_page_gpus)
                self.system.munmap(self.event_page, EVENT_PAGE_BYTES)
                self.event_page = 0
            for gpu in self.gpus:
                if gpu.vm >= 0:
                    self.system.close(gpu.vm)
                    gpu.vm = -1
            self.system.close(self.fd)
            self.fd = -1


def _open(system: System) -> int:
    if sys.maxsize < 1 << 32:
        raise Unsupported("the compute driver takes no 32-bit processes", remedy="use a 64-bit Python")
    try:
        return system.open(NODE, os.O_RDWR)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise DeviceNotFound("this machine has no AMD compute driver", evidence=f"{NODE} does not exist",
                                 remedy="load the amdgpu module; in a container, pass /dev/kfd and /dev/dri to it") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PermissionDenied(f"this process may not open {NODE}", evidence=f"{errno.errorcode[error.errno]}",
                                   remedy="add the user to the group render (or video); in a container, pass the device to it") \
                from error
        if error.errno == errno.EAGAIN:
            raise DeviceLost("the AMD driver is resetting a GPU", evidence=f"{NODE}: EAGAIN",
                             remedy="try again in some seconds") from error
        raise devrt_error(error, f"can't open {NODE}") from error


def _stopped(gpu: Gpu) -> DeviceLost:
    return DeviceLost(f"the driver runs nothing more on AMD GPU {gpu.id:#x} for this process since a fault",
                      remedy="start the process again; Linux with interface 1.19 could open the GPU anew")


def _dotted(number: tuple[int, int]) -> str:
    return f"{number[0]}.{number[1]}"


def _forked() -> None:
    """The child's context in the driver is another one, and the parent's descriptors do not serve it."""
    global _lock
    _lock = threading.Lock()
    for driver in _drivers.values():
        driver.forked = True
    _drivers.clear()


os.register_at_fork(after_in_child=_forked)
