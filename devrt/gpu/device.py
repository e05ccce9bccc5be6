"""What every GPU's device does alike: buffers, work, and what happens at faults, close, fork and exit. A vendor's device opens
the driver, and says which memory and which queues there are.
"""

from __future__ import annotations

import abc
import atexit
import contextlib
import copy
import dataclasses
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from devrt.device import (
    Buffer,
    CommandList,
    DeviceLost,
    DevrtError,
    InvalidArgument,
    PermissionDenied,
    Placement,
    Program,
    Properties,
    Unsupported,
)
from devrt.gpu.commands import GpuCommandList, Profile
from devrt.gpu.memory import PAGE, GpuBuffer, Ledger, PeerMemory, Region, UserMemory
from devrt.gpu.queue import GpuQueue
from devrt.gpu.signal import GpuSignal
from devrt.ioctl.system import System
from devrt.memory import Allocator, Block, Retirement

MAX_BYTES = 1 << 47
DRAIN_TIMEOUT_S = 5.0
CALIBRATION_BYTES = 64 << 20

_open: set[GpuDevice] = set()


class GpuDevice(abc.ABC):
    """One GPU. Thread-safe, except that one thread at a time records a command list.

    A subclass sets `properties`, makes the allocators with `_manage`, then the queues, and says `_opened` at last.
    """

    lists: ClassVar[type[GpuCommandList]]
    programs: ClassVar[type[Any]]
    stamp_bytes: ClassVar[int] = 8  # of what an engine writes as a time stamp; the clock is the last u64
    properties: Properties
    compute: GpuQueue
    transfer: GpuQueue
    code_memory: Allocator

    def __init__(self, uri: str, system: System, index: int, driver: Any) -> None:
        self.uri, self.system, self.index, self.driver = uri, system, index, driver
        self.failure: DevrtError | None = None
        self.ledger = Ledger()
        self.host_visible = False  # whether the host may have written to VRAM
        self._closed = self._gone = False
        self.loaded: dict[str, Program] = {}
        self._queues: tuple[GpuQueue, ...] = ()
        self._lock = threading.RLock()
        self._failing = threading.Lock()  # of its own: who finds a fault may hold a queue that another waits for with `_lock`
        self._allocators: dict[Placement, Allocator] = {}
        self._memory: Mapping[Placement, Any] = {}
        self.retirement = Retirement(self._submitted, self._reached)

    def _manage(self, memory: Mapping[Placement, Any], code: Any) -> None:
        """Cut buffers from these sources of memory, programs from `code`."""
        self._memory = memory
        self._allocators = {placement: self._allocator(source) for placement, source in memory.items()}
        self.host_memory = self._allocators[Placement.HOST]
        self.code_memory = self._allocator(code)

    def _opened(self) -> None:
        _open.add(self)

    # ----- memory

    def alloc(self, nbytes: int, placement: Placement = Placement.DEVICE) -> GpuBuffer:
        """Memory aligned to 64 bytes (2 MiB and more: to 2 MiB), contents undefined. Raises OutOfMemory; Unsupported for
        HOST_VISIBLE where the CPU does not see all of the GPU's memory."""
        if self.failure is not None:
            self.check()
        if not isinstance(nbytes, int) or not 0 <= nbytes < MAX_BYTES:
            raise InvalidArgument(f"a buffer has 0 to 2^47 - 1 bytes, not {nbytes!r}")
        if not isinstance(placement, Placement):
            raise InvalidArgument(f"{placement!r} is no Placement")
        if placement is Placement.HOST_VISIBLE:
            self._need_window()
        allocator = self._allocators[placement]
        block = allocator.take(nbytes)
        self.ledger.add(block.address, nbytes, f"a {placement.value} buffer")
        return GpuBuffer(self, allocator, nbytes, block.address, placement, block)

    def free(self, buffer: Buffer) -> None:
        """Give a buffer back; its memory is reused when the work submitted so far is done on every queue. Raises
        InvalidArgument if freed before."""
        if not isinstance(buffer, GpuBuffer) or buffer.device is not self:
            raise InvalidArgument(f"{buffer!r} is no buffer of this device")
        buffer.release()

    def wrap(self, address: int, nbytes: int, owner: object) -> GpuBuffer:
        """Host memory as a buffer, not copied: its pages are mapped to the GPU, which reads them over PCIe. `owner` is kept
        until the buffer is gone and queued work is done. Raises Unsupported where the driver can't pin the pages, as those of
        a file mapped read-only."""
        self.check()
        if not isinstance(address, int) or not isinstance(nbytes, int) or address <= 0 or nbytes < 0 \
                or address + nbytes > 1 << 47:
            raise InvalidArgument(f"no memory of {nbytes!r} bytes at {address!r}")
        start = address // PAGE * PAGE
        end = -(-(address + nbytes) // PAGE) * PAGE
        try:
            memory = UserMemory(self._pin(start, max(end - start, PAGE)), address - start, owner)
        except (InvalidArgument, PermissionDenied) as error:
            raise Unsupported(f"{self.uri} can't reach {nbytes} bytes of host memory at {address:#x} as they lie",
                              evidence=error.evidence, remedy="copy them to a buffer of Placement.HOST") from error
        self.ledger.add(memory.address, nbytes, "wrapped host memory")
        return GpuBuffer(self, self.host_memory, nbytes, memory.address, Placement.HOST, None, memory)

    def peer(self, buffer: Buffer) -> GpuBuffer:
        """Another GPU's buffer as one of this device, at the same address: its copy engines and kernels read and write it
        over the link. Raises Unsupported where the topology has no such link."""
        self.check()
        if not isinstance(buffer, GpuBuffer) or buffer.device.driver is not self.driver:
            raise InvalidArgument(f"{buffer!r} is no buffer of a GPU on the same machine")
        buffer.check()
        if buffer.device is self:
            return buffer
        if buffer.placement is not Placement.HOST:
            why = self._out_of_reach(buffer.device)
            if why:
                raise Unsupported(f"{self.uri} does not reach the memory of {buffer.device.uri}", evidence=why,
                                  remedy="copy through the host")
        buffer.device.show(buffer.address, self)
        self.ledger.add(buffer.address, buffer.nbytes, f"a buffer of {buffer.device.uri}")
        return GpuBuffer(self, self.host_memory, buffer.nbytes, buffer.address, buffer.placement, None, PeerMemory(buffer))

    def show(self, address: int, other: GpuDevice) -> None:
        """Map the memory around one of this device's addresses to another GPU, at the same address."""
        for source in self._memory.values():
            region = source.region(address)
            if region is not None:
                region.share(other.owner)
                return
        raise InvalidArgument(f"{address:#x} is no memory of {self.uri}", remedy="wrapped memory is wrapped by every device anew")

    def code_buffer(self, block: Block, address: int, nbytes: int) -> GpuBuffer:
        """A view of a block of code memory, to be written to; it owns nothing."""
        return GpuBuffer(self, self.code_memory, nbytes, address, Placement.DEVICE, None)

    @abc.abstractmethod
    def flush_host_writes(self) -> None:
        """What the host wrote to VRAM leaves the buffers in front of it."""

    @abc.abstractmethod
    def _need_window(self) -> None:
        """Make HOST_VISIBLE memory usable. Raises Unsupported where the CPU does not see the GPU's memory."""

    @property
    @abc.abstractmethod
    def owner(self) -> Any:
        """What a region of memory is shared with to be this device's too."""

    @abc.abstractmethod
    def _pin(self, address: int, nbytes: int) -> Region:
        """Whole pages of the process, mapped to the GPU."""

    @abc.abstractmethod
    def _out_of_reach(self, other: Any) -> str:
        """Why this GPU can't reach the memory of another one of its driver; "" where it can."""

    # ----- work

    def load(self, image: bytes, entry: str) -> Any:
        """The kernel `entry` of an image for this isa. Raises InvalidArgument for an image of other code or a damaged one,
        CompileError for a kernel that asks for more than the device gives."""
        self.check()
        self.retirement.collect()
        return self.programs(self, image, entry)

    def signal(self, value: int = 0) -> GpuSignal:
        self.check()
        return GpuSignal(self, value)

    def command_list(self) -> Any:
        return self.lists(self)

    def profile(self, commands: CommandList) -> Profile:
        if not isinstance(commands, GpuCommandList) or commands.device is not self:
            raise InvalidArgument(f"{commands!r} is no command list of this device")
        return Profile(commands)

    def calibrate(self, fresh: bool = False) -> Properties:
        """The properties with memory_bytes_per_s as the copy engine reaches it within the GPU: reads and writes together.
        peak_f32_flops_per_s is clock x lanes x 2 operations."""
        if fresh or not self.properties.memory_bytes_per_s:
            first, second = self.alloc(CALIBRATION_BYTES), self.alloc(CALIBRATION_BYTES)
            commands = self.command_list()
            commands.copy(second, first, CALIBRATION_BYTES)
            best = float("inf")
            for _ in range(3):
                profile = self.profile(commands)
                self.transfer.wait(self.transfer.submit(commands, profile=profile))
                best = min(best, max(profile.durations_ns[0], 1))
            self.properties = dataclasses.replace(self.properties, memory_bytes_per_s=2e9 * CALIBRATION_BYTES / best)
        return self.properties

    def nanoseconds(self, ticks: int) -> int:
        """What the GPU writes as a time stamp, in nanoseconds."""
        return ticks

    def settle(self) -> None:
        """Let every queue go of what is done."""
        for queue in self._queues:
            queue.settle()

    def progress(self) -> tuple[int, ...]:
        return tuple(number for queue in self._queues for number in queue.progress())

    def running(self) -> str:
        """The kernels that were running when the device stopped, as far as the host knows."""
        return next((names for queue in self._queues if (names := queue.running())), "")

    def describe_queues(self) -> str:
        return "; ".join(queue.describe() for queue in self._queues)

    # ----- the end

    def check(self) -> None:
        """Raise what failed the device, DeviceLost after close."""
        if self.failure is not None:
            raise copy.copy(self.failure)

    def fail(self, error: DevrtError) -> None:
        """The GPU can't go on: every call and every wait raises `error` from now on."""
        with self._failing:
            if self.failure is not None:
                return
            self.failure = error
        for queue in self._queues:
            queue.wake()

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Stop the queues where they are and give memory back. Buffers and their views stay readable until they are dropped.
        Closing twice is harmless. Raises what the driver refused, once everything else is given back."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.fail(DeviceLost(f"{self.uri} was closed", remedy="open it again"))
        _open.discard(self)
        self._deaf()
        with contextlib.ExitStack() as last:  # what is put on it is done from the end on
            for allocator in (*self._allocators.values(), self.code_memory):
                last.callback(allocator.close)
            last.callback(self._stopped)
            for queue in self._queues[::-1]:
                last.callback(queue.close)

    def _stopped(self) -> None:
        self._gone = True
        self.loaded.clear()
        self._release()
        self.retirement.collect()

    @abc.abstractmethod
    def _deaf(self) -> None:
        """Before the queues stop: no exception of the driver is meant for this device any more."""

    @abc.abstractmethod
    def _release(self) -> None:
        """After the queues stopped: drop what the device itself holds of its memory."""

    def after_fork(self) -> None:
        self.failure = DeviceLost(f"{self.uri} was opened before this process was forked",
                                  evidence="the driver's context belongs to the parent", remedy="open it again in the child")
        self._closed = self._gone = True
        self._lock, self._failing = threading.RLock(), threading.Lock()
        for allocator in (*self._allocators.values(), self.code_memory):
            allocator.after_fork()
        for queue in self._queues:
            queue.after_fork()

    def __repr__(self) -> str:
        return f"<device {self.uri}: {self.properties.name}{', closed' if self.closed else ''}>"

    def _allocator(self, source: Any) -> Allocator:
        return Allocator(source, self.retirement, self._drain)

    def _submitted(self) -> tuple[int, ...]:
        return tuple(queue.submitted for queue in self._queues)

    def _reached(self, stamp: tuple[int, ...]) -> bool:
        if self._gone:
            return True
        return all(queue.completed >= value for queue, value in zip(self._queues, stamp, strict=False))

    def _drain(self) -> None:
        """Wait for queued work to end, so that freed memory can be reused; not for work that is stuck."""
        until = time.monotonic() + DRAIN_TIMEOUT_S
        for queue in self._queues:
            try:
                queue.wait(queue.submitted, max(0.0, until - time.monotonic()))
            except DevrtError:
                return


def _close_all() -> None:
    for device in list(_open):
        try:
            device.close()
        except DevrtError:
            continue  # exiting ends the queues as well


def _forked() -> None:
    for device in list(_open):
        device.after_fork()
    _open.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forked)
