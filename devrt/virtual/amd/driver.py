"""The virtual driver: opens, ioctls and mappings of /dev/kfd and the render nodes, for any number of processes.

It answers as Linux 6.17 does (interface 1.18). Where it is simpler: a process context ends with its last descriptor of
/dev/kfd, not with the process; CRIU and the debugger are refused; a poisoned read raises events but no SIGBUS.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from typing import Any

from devrt.ioctl.amdgpu import AMDGPU
from devrt.ioctl.drm import DRM
from devrt.ioctl.kfd import (
    KFD,
    SINCE,
    EventType,
    MemoryError_,
    MmapType,
    ResetCause,
    ResetType,
    SmiEvent,
    split_mmap_offset,
)
from devrt.ioctl.system import PROT_NONE, Argument, LogLine, System
from devrt.ioctl.uapi import Uapi
from devrt.virtual.amd import calls, device_calls, drm, event_calls, memory_calls, queue_calls, svm, sysfs
from devrt.virtual.amd.calls import BLOCKING, HANDLERS, Call
from devrt.virtual.amd.card import Card, EngineFactory, native_engine
from devrt.virtual.amd.events import PAGE_BYTES
from devrt.virtual.amd.files import DmaBuf, DrmFile, KfdFile
from devrt.virtual.amd.machine import DOORBELL_BYTES, KFD_VERSION, Machine
from devrt.virtual.amd.process import Process
from devrt.virtual.client import Client, Place
from devrt.virtual.errors import fail
from devrt.virtual.faults import Faults
from devrt.virtual.memory import PAGE
from devrt.virtual.pool import KernelLock, Pool, host_memory, take
from devrt.virtual.tree import Tree

# The modules whose import registers the handlers.
HANDLER_MODULES = (calls, device_calls, drm, event_calls, memory_calls, queue_calls, svm)

_KFD_POOL = 64 << 20  # bytes of doorbells and event pages of all processes
_LOG_LINES = 1000
_TO_USER = 2  # bit of an ioctl's direction


class AmdDriver:
    """`host` is the system that memory comes from. Any thread may call; a wait for events blocks only its own."""

    def __init__(self, machine: Machine, host: System, faults: Faults, make_engine: EngineFactory = native_engine) -> None:
        self.machine, self.host, self.faults = machine, host, faults
        self.lock = KernelLock()
        self.pool = Pool(host, "kfd", _KFD_POOL)
        self.registers = take(self.pool, PAGE)  # the page of MMIO_REMAP: writes to it flush, which memory here needs not
        self.cards = [Card(gpu, host, faults, make_engine) for gpu in machine.gpus]
        self.processes: dict[int, Process] = {}
        self.owned: tuple[str, ...] = sysfs.OWNED
        self.uapis: tuple[Uapi, ...] = (KFD, DRM, AMDGPU)
        self.tree: Tree = sysfs.build(machine, host_processors=len(host.host().affinity), host_memory=host_memory(host),
                                      live=self)
        self._log: deque[LogLine] = deque(maxlen=_LOG_LINES)

    def card(self, gpu_id: int) -> Card | None:
        return next((card for card in self.cards if card.node.gpu_id == gpu_id), None)

    def write_log(self, level: int, text: str) -> None:
        """A line of the kernel log."""
        self._log.append(LogLine(level, time.clock_gettime(time.CLOCK_BOOTTIME), text))

    def kernel_log(self) -> list[LogLine]:
        return list(self._log)

    def vram_used(self, index: int) -> int:
        return self.cards[index].vram_used

    def gtt_used(self, index: int) -> int:
        return self.cards[index].gtt_used

    def close(self) -> None:
        with self.lock:
            for process in self.processes.values():
                process.close()
            self.processes.clear()
            for card in self.cards:
                card.close()
            self.pool.close()

    # -----------------------------------------------------------------------------------------------------------------
    # Descriptors

    def open(self, client: Client, path: str) -> tuple[KfdFile | DrmFile, int]:
        """What a descriptor of a node is from now on, and the file of pages that it must be a duplicate of. Raises OSError:
        ENOENT."""
        with self.lock:
            if path == "/dev/kfd":
                process = self.processes.get(client.key)
                if process is None:
                    process = self.processes[client.key] = Process(client, self.cards, self.pool, self.write_log)
                process.opens += 1
                return KfdFile(client.key, process), self.pool.file.fd
            for card in self.cards:
                if path in (f"/dev/dri/renderD{card.node.render_minor}", f"/dev/dri/card{card.node.index}"):
                    return DrmFile(client.key, card), card.pool.file.fd
        fail(errno.ENOENT, path)

    def release(self, what: object) -> None:
        """A descriptor was closed."""
        with self.lock:
            if isinstance(what, KfdFile):
                what.process.opens -= 1
                if not what.process.opens:
                    what.process.close()
                    self.processes.pop(what.key, None)
            elif isinstance(what, DrmFile):
                drm.release(what)
            elif isinstance(what, DmaBuf):
                what.store.drop()

    def invalidate(self, client: Client, address: int, nbytes: int) -> None:
        """Pages of the client are unmapped: GPUs lose them too."""
        with self.lock:
            process = self.processes.get(client.key)
            if process is not None:
                process.invalidate(address, nbytes)

    def mmap(self, what: object, length: int, offset: int, prot: int) -> Place:
        """Where `length` bytes at an mmap offset of a descriptor lie. Raises OSError: EINVAL, EFAULT, ENODEV, EACCES, EPERM."""
        with self.lock:
            if isinstance(what, KfdFile):
                return self._mmap_kfd(what.process, length, offset)
            if isinstance(what, DmaBuf):
                if offset + length > what.store.nbytes:
                    fail(errno.EINVAL)
                return Place(what.store.pool.file.fd, what.store.offset + offset)
            if isinstance(what, DrmFile):
                store = what.card.live.get(offset)
                if store is None or length > store.nbytes:
                    fail(errno.EINVAL)
                shown, touchable = what.visible.get(offset, (None, False))
                if shown is not store:
                    fail(errno.EACCES)
                if not touchable and prot != PROT_NONE:
                    fail(errno.EPERM)
                return Place(what.card.pool.file.fd, offset)
        fail(errno.ENODEV)

    def _mmap_kfd(self, process: Process, length: int, offset: int) -> Place:
        kind, gpu_id, _ = split_mmap_offset(offset)
        if kind == MmapType.EVENTS:
            if length > PAGE_BYTES or process.event_page is None or process.event_handle is not None:
                fail(errno.EINVAL)
            return Place(self.pool.file.fd, process.event_page.offset)
        if kind == MmapType.RESERVED_MEM:  # of APUs
            fail(errno.EFAULT)
        device = process.device(gpu_id, errno.ENODEV)
        if length != (DOORBELL_BYTES if kind == MmapType.DOORBELL else PAGE):
            fail(errno.EINVAL)
        page = process.doorbells(device) if kind == MmapType.DOORBELL else self.registers
        return Place(self.pool.file.fd, page.offset)

    # -----------------------------------------------------------------------------------------------------------------
    # ioctls

    def ioctl(self, client: Client, what: object, request: int, argument: Argument) -> int:
        """Answer an ioctl on what `open` gave. An `argument` that is a number is an address of the client. Raises OSError."""
        if isinstance(what, KfdFile):
            if what.key != client.key:
                fail(errno.EBADF)
            table = KFD
            name = KFD.find(request & 0xFF | KFD.magic << 8)
            if name is None or SINCE.get(name, 0) > KFD_VERSION[1]:
                fail(errno.ENOTTY)
        elif isinstance(what, DrmFile):
            number = request & 0xFF | DRM.magic << 8
            name = DRM.find(number) or AMDGPU.find(number)
            table = AMDGPU if name in AMDGPU.ioctls else DRM
        else:
            fail(errno.ENOTTY)
        if name is None or name not in HANDLERS:
            fail(errno.EINVAL)
        size = request >> 16 & 0x3FFF
        data = client.memory.read(argument, size) if isinstance(argument, int) else bytes(argument[:size])
        if len(data) < size:
            fail(errno.EFAULT)
        planned = self.faults.errno(name)
        if planned:
            fail(planned)
        struct_name = table.ioctls[name].struct
        buffer = table.ffi.new("char[]", max(table.size(struct_name), size, 1))
        raw = table.ffi.buffer(buffer)  # no memoryview, which a failure's traceback would hold: see LinuxSystem.ioctl
        raw[:size] = data
        pointer: Any = table.ffi.cast(f"{table.ctype(struct_name)} *", buffer) if struct_name else None
        call = Call(self, client, what, pointer, raw)
        try:
            if name in BLOCKING:
                HANDLERS[name](call)
            else:
                with self.lock:
                    HANDLERS[name](call)
        finally:
            # What a failed call has to say (n_success) comes back too, as the kernel copies it.
            if table.ioctls[name].direction & _TO_USER:
                if isinstance(argument, int):
                    client.memory.write(argument, raw[:size])
                else:
                    argument[:size] = raw[:size]
        return 0

    # -----------------------------------------------------------------------------------------------------------------
    # What engines cause. Nothing here takes the driver's lock: who holds it may be waiting for the engine that calls.

    def reset(self, process: Process, card: Card, kind: int, cause: int, memory_lost: bool) -> None:
        """A GPU's reset: of the whole of it, for every process, or of one process's engines."""
        pci, gpu_id = card.node.pci, card.node.gpu_id
        if cause == ResetCause.ECC:
            self.write_log(3, f"amdgpu {pci}: amdgpu: 1 uncorrectable hardware errors detected in umc block")
            process.events.broadcast(EventType.MEMORY, {
                "failure": {"imprecise": 1}, "gpu_id": gpu_id, "ErrorType": MemoryError_.POISON_CONSUMED})
        else:
            self.write_log(3, f"amdgpu {pci}: amdgpu: ring compute_1.0.0 timeout, signaled seq=1, emitted seq=2")
        whole = kind == ResetType.WHOLE_GPU_RESET
        concerned = list(self.processes.values()) if whole else [process]
        if whole:
            self.write_log(6, f"amdgpu {pci}: amdgpu: GPU reset begin!")
        for one in concerned if whole else ():  # a reset of one engine ends the queue that hung, and no other
            self._tell(one, card, SmiEvent.GPU_PRE_RESET)
            for queue in one.queues_on(card):
                queue.engine.evict()
                one.devices[gpu_id].lost = True
        if memory_lost:
            card.lose_memory()
            self.write_log(6, f"amdgpu {pci}: amdgpu: VRAM is lost due to GPU reset!")
        if whole:
            self.write_log(6, f"amdgpu {pci}: amdgpu: GPU reset(1) succeeded!")
        for one in concerned:
            if whole:
                self._tell(one, card, SmiEvent.GPU_POST_RESET)
            heard = one.events.broadcast(EventType.HW_EXCEPTION, {
                "reset_type": kind, "reset_cause": cause, "memory_lost": int(memory_lost), "gpu_id": gpu_id})
            if not heard:
                self.write_log(3, f"kfd kfd: amdgpu: Process {one.client.key} got unhandled exception")

    @staticmethod
    def _tell(process: Process, card: Card, event: SmiEvent) -> None:
        for client in process.smi:
            client.tell(card, event, f"{card.vram_lost:x}")
