"""The AMD device: one GPU of the driver, its memory and queues, and what happens at faults, close, fork and exit."""

from __future__ import annotations

import atexit
import copy
import dataclasses
import os
import threading
import time
from typing import Any

from devrt.amd import packets, topology
from devrt.amd.commands import AmdCommandList, Profile
from devrt.amd.driver import NODE, PAGE, Gpu, connect
from devrt.amd.engines import ComputeEngine, CopyEngine
from devrt.amd.memory import CODE, FLAGS, AmdBuffer, GpuMemory, Ledger, PeerMemory, Region, UserMemory
from devrt.amd.program import AmdProgram
from devrt.amd.queue import AmdQueue
from devrt.amd.signal import AmdSignal
from devrt.amd.topology import Node
from devrt.device import (
    URI,
    Buffer,
    CommandList,
    DeviceHang,
    DeviceLost,
    DevrtError,
    InvalidArgument,
    PermissionDenied,
    Placement,
    Properties,
    Unsupported,
)
from devrt.ioctl import amdgpu
from devrt.ioctl.errors import reported_as
from devrt.ioctl.kfd import AllocFlag, MmapType, mmap_offset
from devrt.ioctl.system import MAP_SHARED, PROT_READ, PROT_WRITE, System
from devrt.memory import Allocator, Block, Retirement, host_bytes

MAX_BYTES = 1 << 47
LDS_BYTES = 64 << 10  # of a group
MAX_PRIVATE_BYTES = 64 << 10  # of scratch a lane: what a gfx9 wave's TMPRING_SIZE can say is more
MAX_WAVES = 4095  # TMPRING_SIZE.WAVES
DRAIN_TIMEOUT_S = 5.0
TRIAL_TIMEOUT_S = 2.0
CALIBRATION_BYTES = 64 << 20
FMA_PER_LANE = {9: 1, 10: 1, 11: 2, 12: 2}  # RDNA3 and later issue two a clock

_open: set[AmdDevice] = set()


class AmdDevice:
    """One AMD GPU. Thread-safe, except that one thread at a time records a command list."""

    def __init__(self, uri: str, system: System, index: int = 0) -> None:
        self.uri, self.index = uri, index
        self.gpu: Gpu = connect(system, index).attach(index)
        node = self.gpu.node
        if self.gpu.device is not None:
            raise InvalidArgument(f"{uri} is open already", evidence=repr(self.gpu.device), remedy="use devrt.open()")
        self.system = system
        self.failure: DevrtError | None = None
        self.gfx = packets.generation(node.gfx)
        self.compute_engine, self.copy_engine = ComputeEngine(self.gfx), CopyEngine(self.gfx)
        self.properties = _properties(node, self.gfx)
        self.max_private_bytes = MAX_PRIVATE_BYTES
        self.ledger = Ledger()
        self.host_visible = False  # whether the host may have written to VRAM
        self._closed = self._gone = False
        self._queues: tuple[AmdQueue, ...] = ()
        self._lock = threading.RLock()
        self._scratch: dict[int, tuple[AmdBuffer, int]] = {}
        self._hdp: Region | None = None
        self.retirement = Retirement(self._submitted, self._reached)
        host = host_bytes(system)
        self._memory = {placement: GpuMemory(self.gpu, uri if placement is not Placement.HOST else "host", FLAGS[placement],
                                             host if placement is Placement.HOST else node.vram) for placement in Placement}
        self._allocators = {placement: self._allocator(source) for placement, source in self._memory.items()}
        self.host_memory = self._allocators[Placement.HOST]
        self.code_memory = self._allocator(GpuMemory(self.gpu, uri, CODE, node.vram))
        with reported_as(f"can't ask for the clock of {uri}"):
            self._ns_per_tick = 1e6 / _counter_khz(system, self.gpu)
        self.gpu.driver.watch(self)
        try:
            self.compute = AmdQueue(self, "compute", True)
            self._queues = (self.compute,)
            self.transfer = AmdQueue(self, "transfer", False)
            self._queues = (self.compute, self.transfer)
            if self.gpu.driver.renewed:
                self._try()
        except BaseException:
            self.close()
            raise
        _open.add(self)

    @classmethod
    def open(cls, uri: URI, system: System) -> AmdDevice:
        return cls(str(uri), system, uri.index)

    @classmethod
    def describe_all(cls, system: System) -> list[Properties]:
        """The GPUs that this process could open, without opening any; none where there is no driver."""
        try:
            if not system.access(NODE, os.R_OK | os.W_OK):
                return []
            return [_properties(node, packets.generation(node.gfx)) for node in topology.read(system, caches=False).gpus]
        except (OSError, DevrtError):
            return []

    # ----- memory

    def alloc(self, nbytes: int, placement: Placement = Placement.DEVICE) -> AmdBuffer:
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
        return AmdBuffer(self, allocator, nbytes, block.address, placement, block)

    def free(self, buffer: Buffer) -> None:
        """Give a buffer back; its memory is reused when the work submitted so far is done on every queue. Raises
        InvalidArgument if freed before."""
        if not isinstance(buffer, AmdBuffer) or buffer.device is not self:
            raise InvalidArgument(f"{buffer!r} is no buffer of this device")
        buffer.release()

    def wrap(self, address: int, nbytes: int, owner: object) -> AmdBuffer:
        """Host memory as a buffer, not copied: its pages are mapped to the GPU, which reads them over PCIe. `owner` is kept
        until the buffer is gone and queued work is done. Raises Unsupported where the driver can't pin the pages, as those of
        a file mapped read-only."""
        self.check()
        if not isinstance(address, int) or not isinstance(nbytes, int) or address <= 0 or nbytes < 0 \
                or address + nbytes > 1 << 47:
            raise InvalidArgument(f"no memory of {nbytes!r} bytes at {address!r}")
        try:
            memory = UserMemory(self.gpu, address, nbytes, owner)
        except (InvalidArgument, PermissionDenied) as error:
            raise Unsupported(f"{self.uri} can't reach {nbytes} bytes of host memory at {address:#x} as they lie",
                              evidence=error.evidence, remedy="copy them to a buffer of Placement.HOST") from error
        self.ledger.add(memory.address, nbytes, "wrapped host memory")
        return AmdBuffer(self, self.host_memory, nbytes, memory.address, Placement.HOST, None, memory)

    def peer(self, buffer: Buffer) -> AmdBuffer:
        """Another GPU's buffer as one of this device, at the same address: its copy engines and kernels read and write it
        over the link. Raises Unsupported where the topology has no such link."""
        self.check()
        if not isinstance(buffer, AmdBuffer) or buffer.device.gpu.driver is not self.gpu.driver:
            raise InvalidArgument(f"{buffer!r} is no buffer of a GPU on the same machine")
        buffer.check()
        if buffer.device is self:
            return buffer
        if buffer.placement is not Placement.HOST:
            reach = self.gpu.driver.topology.reach(self.gpu.node, buffer.device.gpu.node)
            if not reach.possible:
                raise Unsupported(f"{self.uri} does not reach the memory of {buffer.device.uri}", evidence=reach.why,
                                  remedy="copy through the host")
        buffer.device.show(buffer.address, self)
        self.ledger.add(buffer.address, buffer.nbytes, f"a buffer of {buffer.device.uri}")
        return AmdBuffer(self, self.host_memory, buffer.nbytes, buffer.address, buffer.placement, None, PeerMemory(buffer))

    def show(self, address: int, other: AmdDevice) -> None:
        """Map the memory around one of this device's addresses to another GPU, at the same address."""
        for source in self._memory.values():
            region = source.region(address)
            if region is not None:
                region.share(other.gpu)
                return
        raise InvalidArgument(f"{address:#x} is no memory of {self.uri}", remedy="wrapped memory is wrapped by every device anew")

    def scratch(self, private_bytes: int) -> tuple[AmdBuffer, int]:
        """(memory, TMPRING_SIZE) for kernels that spill `private_bytes` a lane, as many waves as run at once."""
        with self._lock:
            node, unit = self.gpu.node, 1024 if self.gfx <= 10 else 256
            wave_units = -(-private_bytes * self.properties.lanes // unit)
            found = self._scratch.get(wave_units)
            if found is None:
                waves = min(node.compute_units // node.xccs * node.scratch_slots_per_cu, MAX_WAVES)
                per_engine = 1 if self.gfx <= 10 else max(1, node.arrays // node.arrays_per_engine)
                memory = self.alloc(waves * wave_units * unit)
                size = self._tmpring(waves // per_engine, wave_units)
                found = self._scratch[wave_units] = memory, size
            return found

    def _tmpring(self, waves: int, wave_units: int) -> int:
        from devrt.amd import registers
        return registers.pack("COMPUTE_TMPRING_SIZE", self.gfx, WAVES=waves, WAVESIZE=wave_units)

    def code_buffer(self, block: Block, address: int, nbytes: int) -> AmdBuffer:
        """A view of a block of code memory, to be written to; it owns nothing."""
        return AmdBuffer(self, self.code_memory, nbytes, address, Placement.DEVICE, None)

    def flush_host_writes(self) -> None:
        """What the host wrote to VRAM through the PCIe window leaves the buffer in front of it (HDP)."""
        if self._hdp is not None:
            self._hdp_register[0] = 1

    def _need_window(self) -> None:
        """Make HOST_VISIBLE memory usable. Raises Unsupported without a large BAR."""
        if self.host_visible:
            return
        if not self.gpu.node.large_bar:
            raise Unsupported(f"the CPU does not see the memory of {self.uri}", evidence="its heap is private: no large BAR",
                              remedy="switch on Resizable BAR in the firmware's setup, or use Placement.HOST")
        with self._lock:
            flags = AllocFlag.MMIO_REMAP | AllocFlag.WRITABLE | AllocFlag.COHERENT
            region = Region(self.gpu, PAGE, flags, host=False)
            with reported_as(f"can't map the registers of {self.uri}"):
                self._hdp_page = self.system.mmap(self.gpu.driver.fd, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
                                                  mmap_offset(MmapType.MMIO, self.gpu.id))
            import cffi
            self._hdp_register: Any = cffi.FFI().cast("volatile uint32_t *", self._hdp_page)
            self._hdp, self.host_visible = region, True

    # ----- work

    def load(self, image: bytes, entry: str) -> AmdProgram:
        """The kernel `entry` of an amdgcn object. Raises InvalidArgument for an image of other code or a damaged one,
        CompileError for a kernel that asks for more than the device gives."""
        self.check()
        self.retirement.collect()
        return AmdProgram(self, image, entry)

    def signal(self, value: int = 0) -> AmdSignal:
        self.check()
        return AmdSignal(self, value)

    def command_list(self) -> AmdCommandList:
        return AmdCommandList(self)

    def profile(self, commands: CommandList) -> Profile:
        if not isinstance(commands, AmdCommandList) or commands.device is not self:
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
        return int(ticks * self._ns_per_tick)

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
        with self._lock:
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
        Closing twice is harmless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.fail(DeviceLost(f"{self.uri} was closed", remedy="open it again"))
        _open.discard(self)
        self.gpu.driver.unwatch(self)
        for queue in self._queues:
            queue.close()
        self._gone = True
        if self._hdp is not None:
            self.system.munmap(self._hdp_page, PAGE)
            self._hdp.release()
            self._hdp = None
        self._scratch.clear()
        self.retirement.collect()
        for allocator in (*self._allocators.values(), self.code_memory):
            allocator.close()

    def after_fork(self) -> None:
        self.failure = DeviceLost(f"{self.uri} was opened before this process was forked",
                                  evidence="the driver's context belongs to the parent", remedy="open it again in the child")
        self._closed = self._gone = True
        self._lock = threading.RLock()
        for allocator in (*self._allocators.values(), self.code_memory):
            allocator.after_fork()
        for queue in self._queues:
            queue.after_fork()

    def __repr__(self) -> str:
        return f"<device {self.uri}: {self.properties.name}{', closed' if self.closed else ''}>"

    def _allocator(self, source: GpuMemory) -> Allocator:
        return Allocator(source, self.retirement, self._drain)

    def _try(self) -> None:
        """Raises DeviceLost where the driver takes queues and does not run them, as in a context that had a fault."""
        try:
            self.compute.wait(self.compute.submit(self.command_list()), TRIAL_TIMEOUT_S)
        except DeviceHang as hang:
            raise DeviceLost(f"{self.uri} was opened again after a fault, and runs nothing", evidence=hang.evidence,
                             remedy="start the process again") from hang

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


def _properties(node: Node, gfx: int) -> Properties:
    clock = node.max_clock * 1e6
    return Properties(name=f"{node.name or 'AMD GPU'} ({node.gfx}, {node.compute_units} CUs)", vendor="amd", isa=node.gfx,
                      compute_units=node.compute_units, lanes=node.wave_size, memory_bytes=node.vram, scratch_bytes=LDS_BYTES,
                      peak_f32_flops_per_s=clock * node.compute_units * 64 * FMA_PER_LANE[gfx] * 2)


def _counter_khz(system: System, gpu: Gpu) -> int:
    """The frequency of the GPU's clock counter."""
    return amdgpu.info(system, gpu.vm, amdgpu.Query.DEV_INFO).gpu_counter_freq or 100_000


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
