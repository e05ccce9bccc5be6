"""The AMD device: one GPU of the driver, its memory and queues."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from devrt.amd import packets, registers, topology
from devrt.amd.commands import AmdCommandList
from devrt.amd.driver import NODE, Gpu, connect
from devrt.amd.engines import ComputeEngine, CopyEngine
from devrt.amd.memory import CODE, FLAGS, USER, GpuMemory, Region
from devrt.amd.program import AmdProgram
from devrt.amd.queue import AmdQueue
from devrt.amd.topology import Node
from devrt.device import URI, DeviceHang, DeviceLost, DevrtError, InvalidArgument, Placement, Properties, Unsupported
from devrt.gpu.device import GpuDevice
from devrt.gpu.memory import PAGE, GpuBuffer
from devrt.ioctl import amdgpu
from devrt.ioctl.errors import reported_as
from devrt.ioctl.kfd import AllocFlag, MmapType, mmap_offset
from devrt.ioctl.system import MAP_SHARED, PROT_READ, PROT_WRITE, System
from devrt.memory import host_bytes

LDS_BYTES = 64 << 10  # of a group
MAX_PRIVATE_BYTES = 64 << 10  # of scratch a lane: what a gfx9 wave's TMPRING_SIZE can say is more
MAX_WAVES = 4095  # TMPRING_SIZE.WAVES
TRIAL_TIMEOUT_S = 2.0
FMA_PER_LANE = {9: 1, 10: 1, 11: 2, 12: 2}  # RDNA3 and later issue two a clock


class AmdDevice(GpuDevice):
    """One AMD GPU. Thread-safe, except that one thread at a time records a command list."""

    lists, programs = AmdCommandList, AmdProgram

    def __init__(self, uri: str, system: System, index: int = 0) -> None:
        self.gpu: Gpu = connect(system, index).attach(index)
        if self.gpu.device is not None:
            raise InvalidArgument(f"{uri} is open already", evidence=repr(self.gpu.device), remedy="use devrt.open()")
        super().__init__(uri, system, index, self.gpu.driver)
        node = self.gpu.node
        self.gfx = packets.generation(node.gfx)
        self.compute_engine, self.copy_engine = ComputeEngine(self.gfx), CopyEngine(self.gfx)
        self.properties = _properties(node, self.gfx)
        self.max_private_bytes = MAX_PRIVATE_BYTES
        self._scratch: dict[int, tuple[GpuBuffer, int]] = {}
        self._hdp: Region | None = None
        host = host_bytes(system)
        self._manage({placement: GpuMemory(self.gpu, uri if placement is not Placement.HOST else "host", FLAGS[placement],
                                           host if placement is Placement.HOST else node.vram) for placement in Placement},
                     GpuMemory(self.gpu, uri, CODE, node.vram))
        with reported_as(f"can't ask for the clock of {uri}"):
            self._ns_per_tick = 1e6 / _counter_khz(system, self.gpu)
        self.driver.watch(self)
        try:
            self.compute = AmdQueue(self, "compute", True)
            self._queues = (self.compute,)
            self.transfer = AmdQueue(self, "transfer", False)
            self._queues = (self.compute, self.transfer)
            if self.driver.renewed:
                self._try()
        except BaseException:
            with contextlib.suppress(DevrtError):  # what came first is told
                self.close()
            raise
        self._opened()

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

    @property
    def owner(self) -> Gpu:
        return self.gpu

    def _pin(self, address: int, nbytes: int) -> Region:
        return Region(self.gpu, nbytes, USER, host=False, pointer=address)

    def _out_of_reach(self, other: AmdDevice) -> str:
        reach = self.driver.topology.reach(self.gpu.node, other.gpu.node)
        return "" if reach.possible else str(reach.why)

    def scratch(self, private_bytes: int) -> tuple[GpuBuffer, int]:
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
        return registers.pack("COMPUTE_TMPRING_SIZE", self.gfx, WAVES=waves, WAVESIZE=wave_units)

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
                self._hdp_page = self.system.mmap(self.driver.fd, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
                                                  mmap_offset(MmapType.MMIO, self.gpu.id))
            import cffi
            self._hdp_register: Any = cffi.FFI().cast("volatile uint32_t *", self._hdp_page)
            self._hdp, self.host_visible = region, True

    # ----- work and the end

    def nanoseconds(self, ticks: int) -> int:
        return int(ticks * self._ns_per_tick)

    def _deaf(self) -> None:
        self.driver.unwatch(self)

    def _release(self) -> None:
        if self._hdp is not None:
            self.system.munmap(self._hdp_page, PAGE)
            self._hdp.release()
            self._hdp = None
        self._scratch.clear()

    def _try(self) -> None:
        """Raises DeviceLost where the driver takes queues and does not run them, as in a context that had a fault."""
        try:
            self.compute.wait(self.compute.submit(self.command_list()), TRIAL_TIMEOUT_S)
        except DeviceHang as hang:
            raise DeviceLost(f"{self.uri} was opened again after a fault, and runs nothing", evidence=hang.evidence,
                             remedy="start the process again") from hang


def _properties(node: Node, gfx: int) -> Properties:
    clock = node.max_clock * 1e6
    return Properties(name=f"{node.name or 'AMD GPU'} ({node.gfx}, {node.compute_units} CUs)", vendor="amd", isa=node.gfx,
                      compute_units=node.compute_units, lanes=node.wave_size, memory_bytes=node.vram, scratch_bytes=LDS_BYTES,
                      peak_f32_flops_per_s=clock * node.compute_units * 64 * FMA_PER_LANE[gfx] * 2)


def _counter_khz(system: System, gpu: Gpu) -> int:
    """The frequency of the GPU's clock counter."""
    return amdgpu.info(system, gpu.vm, amdgpu.Query.DEV_INFO).gpu_counter_freq or 100_000
