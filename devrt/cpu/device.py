"""The CPU device: properties of the host, two queues, and what happens at close, fork and exit."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import threading

from devrt.cpu import probe
from devrt.cpu.commands import CpuCommandList, Profile
from devrt.cpu.host import properties
from devrt.cpu.memory import CpuBuffer, HostMemory
from devrt.cpu.processor import Processor
from devrt.cpu.program import CpuProgram
from devrt.cpu.queue import SCRATCH_BYTES, CpuQueue
from devrt.cpu.signal import CpuSignal
from devrt.device import (
    URI,
    Buffer,
    CommandList,
    DeviceHang,
    DeviceLost,
    DevrtError,
    InvalidArgument,
    OutOfMemory,
    Placement,
    Program,
    Properties,
)
from devrt.ioctl.system import LinuxSystem, System
from devrt.memory import Allocator, Retirement

MAX_BYTES = 1 << 47
COPY_WORKERS = 2  # streaming copies saturate memory with few threads, and more would take cores from kernels
DRAIN_TIMEOUT_S = 5.0

_open: set[CpuDevice] = set()  # devices with running workers


class CpuDevice:
    """The host CPU. Thread-safe, except that one thread at a time records a command list."""

    def __init__(self, uri: str = "cpu", system: System | None = None) -> None:
        self.uri = uri
        self.system: System = system if system is not None else LinuxSystem()
        self.processor = _processor()
        self._failure: DevrtError | None = None
        self._workers_gone = False
        self.loaded: dict[str, Program] = {}
        self._queues: tuple[CpuQueue, ...] = ()
        self._lock = threading.Lock()
        self.retirement = Retirement(self._submitted, self._reached)
        memory = HostMemory(self.system)
        self.allocator = Allocator(memory, self.retirement, self._drain)
        cores = sorted(os.sched_getaffinity(0))
        self.properties: Properties = properties(self.system, self.processor, len(cores), memory.limit, SCRATCH_BYTES)
        self.leader_core = cores[0]
        self.compute = CpuQueue(self, "compute", cores)
        # Copies overlap with kernels, so their workers go wherever a core is free.
        try:
            self.transfer = CpuQueue(self, "transfer", [None] * min(COPY_WORKERS, len(cores)))
        except OutOfMemory:
            self.compute.stop()
            self.compute.join()
            raise
        self._queues = (self.compute, self.transfer)
        _open.add(self)

    @classmethod
    def open(cls, uri: URI, system: System) -> CpuDevice:
        return cls(str(uri), system)

    def alloc(self, nbytes: int, placement: Placement = Placement.DEVICE) -> CpuBuffer:
        """Memory aligned to 64 bytes, contents undefined. Raises OutOfMemory before touching any."""
        self.check()
        if not isinstance(nbytes, int) or not 0 <= nbytes < MAX_BYTES:
            raise InvalidArgument(f"a buffer has 0 to 2^47 - 1 bytes, not {nbytes!r}")
        if not isinstance(placement, Placement):
            raise InvalidArgument(f"{placement!r} is no Placement")
        block = self.allocator.take(nbytes)
        return CpuBuffer(self, self.allocator, nbytes, block.address, placement, block)

    def free(self, buffer: Buffer) -> None:
        """Give a buffer back; its memory is reused when the work submitted so far is done on every queue. Views of it
        end here: reading one afterwards shows whatever comes next. Raises InvalidArgument if freed before."""
        if not isinstance(buffer, CpuBuffer) or buffer.device is not self:
            raise InvalidArgument(f"{buffer!r} is no buffer of this device")
        buffer.release()

    def wrap(self, address: int, nbytes: int, owner: object) -> CpuBuffer:
        """Host memory as a buffer, not copied. `owner` is kept until the buffer is gone and queued work is done. Where
        a kernel asks for alignment, it is the caller's to check."""
        self.check()
        if not isinstance(address, int) or not isinstance(nbytes, int) or address <= 0 or nbytes < 0 \
                or address + nbytes > 1 << 57:
            raise InvalidArgument(f"no memory of {nbytes!r} bytes at {address!r}")
        return CpuBuffer(self, self.allocator, nbytes, address, Placement.HOST, None, owner)

    def load(self, image: bytes, entry: str) -> CpuProgram:
        self.check()
        self.retirement.collect()
        return CpuProgram(self, image, entry)

    def signal(self, value: int = 0) -> CpuSignal:
        self.check()
        return CpuSignal(self, value)

    def command_list(self) -> CpuCommandList:
        return CpuCommandList(self)

    def profile(self, commands: CommandList) -> Profile:
        if not isinstance(commands, CpuCommandList) or commands.device is not self:
            raise InvalidArgument(f"{commands!r} is no command list of this device")
        return Profile(commands)

    def calibrate(self, fresh: bool = False) -> Properties:
        """The properties with measured peaks; measured (about a second) if asked to, or if no earlier process has."""
        if fresh or not self.properties.memory_bytes_per_s:
            probe.measure(self)
        return self.properties

    def check(self) -> None:
        """Raise DeviceLost if the device was closed or this process is a fork of the one that opened it."""
        if self._failure is not None:
            raise type(self._failure)(self._failure.what, evidence=self._failure.evidence, remedy=self._failure.remedy)

    def progress(self) -> tuple[int, ...]:
        return tuple(queue.progress() for queue in self._queues)

    def describe_queues(self) -> str:
        return "; ".join(queue.describe() for queue in self._queues)

    @property
    def closed(self) -> bool:
        return self._failure is not None

    def close(self) -> None:
        """Stop the workers after their current command, drop what is queued behind it, and give memory back.

        Buffers and their views stay readable until they are dropped. Closing twice is harmless.

        Raises DeviceHang if a kernel is still running after 10 s; its memory is then kept for good.
        """
        with self._lock:
            if self._failure is not None:
                return
            self._failure = DeviceLost("the cpu device was closed", remedy="open it again")
        _open.discard(self)
        described = self.describe_queues()
        for queue in self._queues:
            queue.stop()
        joined = [queue.join() for queue in self._queues]
        if not all(joined):
            # What the kernel runs and uses must stay, even while the interpreter takes its modules apart.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
            raise DeviceHang("a kernel did not end while the cpu device was closed", evidence=described,
                             remedy="its memory is kept; look at the kernel's trip counts")
        self._workers_gone = True
        self.loaded.clear()
        self.retirement.collect()
        self.allocator.close()

    def after_fork(self) -> None:
        self._failure = DeviceLost("the cpu device was opened before this process was forked",
                                   evidence="worker threads do not survive a fork", remedy="open it again in the child")
        self._lock = threading.Lock()
        self._workers_gone = True
        self.allocator.after_fork()
        for queue in self._queues:
            queue.after_fork()

    def __repr__(self) -> str:
        return f"<device {self.uri}: {self.properties.name}{', closed' if self.closed else ''}>"

    def _submitted(self) -> tuple[int, ...]:
        return tuple(queue.submitted for queue in self._queues)

    def _reached(self, stamp: tuple[int, ...]) -> bool:
        if self._workers_gone:
            return True
        return all(queue.completed >= value for queue, value in zip(self._queues, stamp, strict=False))

    def _drain(self) -> None:
        """Wait for queued work to end, so that freed memory can be reused; not for work that is stuck."""
        for queue in self._queues:
            try:
                queue.wait(queue.submitted, DRAIN_TIMEOUT_S)
            except DeviceHang:
                return


@functools.lru_cache(maxsize=1)
def _processor() -> Processor:
    """One per process and never unmapped: a host thread may be inside it at any time."""
    return Processor(LinuxSystem())


def _close_all() -> None:
    for device in list(_open):
        try:
            device.close()
        except DeviceHang:
            continue  # exiting ends the kernel as well


def _forked() -> None:
    for device in list(_open):
        device.after_fork()
    _open.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forked)
