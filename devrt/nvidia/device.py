"""The NVIDIA device: one GPU of the driver, its memory and queues."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from devrt.device import URI, DeviceLost, DevrtError, InvalidArgument, PermissionDenied, Placement, Properties, Unsupported
from devrt.gpu.device import GpuDevice
from devrt.gpu.memory import GpuBuffer
from devrt.ioctl.nv_alloc import EngineType
from devrt.ioctl.nv_classes import Class
from devrt.ioctl.nv_controls import FbInfo, GrInfo
from devrt.ioctl.nv_versions import tables_for
from devrt.ioctl.system import System
from devrt.memory import host_bytes
from devrt.nvidia import driver as drivers
from devrt.nvidia import faults, generation, modes
from devrt.nvidia.channel import Channel
from devrt.nvidia.commands import NvidiaCommandList
from devrt.nvidia.driver import CONTROL_NODE, Card, Driver, connect, undo
from devrt.nvidia.engines import STAMP_BYTES, ComputeEngine, CopyEngine
from devrt.nvidia.generation import GENERATIONS
from devrt.nvidia.memory import KINDS, GpuMemory, Kind, Region
from devrt.nvidia.objects import Objects
from devrt.nvidia.program import NvidiaProgram
from devrt.nvidia.queue import NvidiaQueue

LANES = 32
_LOCAL_UNIT, _WARP_UNIT, _TPC_UNIT, _TOTAL_UNIT = 32, 0x200, 0x8000, 0x20000  # bytes that local memory is rounded to


class NvidiaDevice(GpuDevice):
    """One NVIDIA GPU. Thread-safe, except that one thread at a time records a command list."""

    lists, programs = NvidiaCommandList, NvidiaProgram
    stamp_bytes = STAMP_BYTES
    driver: Driver
    compute: NvidiaQueue
    transfer: NvidiaQueue

    def __init__(self, uri: str, system: System, index: int = 0) -> None:
        driver = connect(system)
        self.debugger = self.compute_object = 0
        try:
            card = driver.card(index)
            if index in driver.devices:
                raise InvalidArgument(f"{uri} is open already", evidence=repr(driver.devices[index]), remedy="use devrt.open()")
            super().__init__(uri, system, index, driver)
            self.objects = Objects(driver, card, uri)
        except BaseException:
            driver.leave()
            raise
        try:
            self._describe()
        except BaseException:
            self.objects.close()
            driver.leave()
            raise
        driver.devices[index] = self
        try:
            self._start()
        except DevrtError as error:
            self.close()
            raise modes.explained(error, self.objects.modes) from error.__cause__
        except BaseException:
            self.close()
            raise
        self._opened()

    def _describe(self) -> None:
        """What the GPU is, and what memory it has."""
        objects = self.objects
        sm_version, warps, gpcs, tpcs, sms = objects.graphics_info(
            GrInfo.SM_VERSION, GrInfo.MAX_WARPS_PER_SM, GrInfo.LITTER_NUM_GPCS, GrInfo.LITTER_NUM_TPC_PER_GPC,
            GrInfo.LITTER_NUM_SM_PER_TPC)
        self.sm = generation.of_version(sm_version, objects.model)
        self._warps_per_tpc, self._most_tpcs = warps * sms, gpcs * tpcs
        total, heap = objects.memory_info(FbInfo.TOTAL_RAM_SIZE, FbInfo.HEAP_SIZE)
        units = sum(objects.tpcs()) * sms
        model = f"{objects.model} {objects.part}" if objects.part else objects.model
        self.properties = _properties(model, self.sm, units, (total or heap) << 10)
        self.compute_engine, self.copy_engine = ComputeEngine(self.sm), CopyEngine(self.sm)
        self._local = 0  # bytes a thread that local memory was set up for
        self._local_memory: list[GpuBuffer] = []
        self.programs_at: dict[int, tuple[int, int, str]] = {}  # block of code -> (address, bytes, kernel)
        vram, host = self.properties.memory_bytes, host_bytes(self.system)
        names = {Placement.HOST: "host"}
        self._manage({p: GpuMemory(objects, names.get(p, self.uri), KINDS[p], host if p is Placement.HOST else vram)
                      for p in Placement}, GpuMemory(objects, self.uri, Kind.VRAM, vram))
        self.command_memory = self._allocators[Placement.HOST_VISIBLE]

    def _start(self) -> None:
        objects, rm = self.objects, self.driver.rm
        objects.boost()
        self.compute = compute = NvidiaQueue(self, "compute", True)
        self._queues = (self.compute,)
        channel = compute.channels[0]
        self.compute_object = channel.object
        with contextlib.suppress(PermissionDenied, Unsupported):  # of a hypervisor or a sandbox: faults are told with less
            self.debugger = rm.alloc(f"can't watch the compute object of {self.uri}", objects.device, Class.GT200_DEBUGGER,
                                     hAppClient=rm.client, hClass3dObject=channel.object)
        self.transfer = NvidiaQueue(self, "transfer", False)
        self._queues = (self.compute, self.transfer)
        for queue in self._queues:
            queue.wait(queue.submit(self.command_list()))

    @classmethod
    def open(cls, uri: URI, system: System) -> NvidiaDevice:
        return cls(str(uri), system, uri.index)

    @classmethod
    def describe_all(cls, system: System) -> list[Properties]:
        """The GPUs that this process could open, without waking any; none where there is no driver. How much memory they have is
        known only to those who open them: 0."""
        try:
            if not system.access(CONTROL_NODE, os.R_OK | os.W_OK):
                return []
            tables = tables_for(drivers.version(system))
            fd = system.open(CONTROL_NODE, os.O_RDWR)
            try:
                found = drivers.here(system, drivers.cards(system, tables, fd))
            finally:
                system.close(fd)
            return [_properties(_model(system, card), generation.of_pci(card.device_id), 0, 0) for card in found]
        except (OSError, DevrtError):
            return []

    # ----- memory

    @property
    def owner(self) -> Objects:
        return self.objects

    def _pin(self, address: int, nbytes: int) -> Region:
        return Region(self.objects, nbytes, Kind.PINNED, pointer=address)

    def _out_of_reach(self, other: Any) -> str:
        return self.objects.out_of_reach(other.objects)

    def flush_host_writes(self) -> None:
        """The doorbell's fence does it."""

    def _need_window(self) -> None:
        """The packets need the window already."""

    def need_local(self, nbytes: int) -> None:
        """Have at least `nbytes` of local memory for each thread that can run at once. It is moved behind what is queued."""
        with self._lock:
            if nbytes <= self._local:
                return
            size = -(-nbytes // _LOCAL_UNIT) * _LOCAL_UNIT
            warp = -(-size * LANES // _WARP_UNIT) * _WARP_UNIT
            tpc = -(-warp * self._warps_per_tpc // _TPC_UNIT) * _TPC_UNIT
            total = -(-tpc * self._most_tpcs // _TOTAL_UNIT) * _TOTAL_UNIT
            memory = self.alloc(total + _TOTAL_UNIT)
            base = -(-memory.address // _TOTAL_UNIT) * _TOTAL_UNIT
            self.compute.configure(self.compute_engine.local_memory(base, tpc).tobytes())
            self._local_memory[:] = [memory]
            self._local = size

    def copy_kind(self, compute: bool) -> int:
        """The engine for a queue's copies: each queue has its own where there are two, all share the graphics engine's runlist
        where no copy engine has one of its own."""
        found = self.objects.copy_engines
        return found[min(1, len(found) - 1) if compute else 0] if found else EngineType.GRAPHICS

    # ----- faults

    @property
    def channels(self) -> list[Channel]:
        return [channel for queue in self._queues if isinstance(queue, NvidiaQueue) for channel in queue.channels]

    def check(self) -> None:
        if self.failure is None:
            self.look()
        super().check()

    def look(self) -> None:
        """Take notice of a channel that the driver has ended."""
        for channel in self.channels:
            if channel.failed and self.failure is None:
                self.fail(faults.error_of(self, channel))

    def look_for_card(self) -> None:
        """Take notice of a GPU that is gone: nobody writes errors for it."""
        if self.failure is None and self.objects.lost:
            self.fail(DeviceLost(f"{self.uri} has fallen off the bus", evidence=f"its registers read as ones; "
                                 f"{self.describe_queues()}", remedy="read the kernel log for Xid 79; reset the machine"))

    def place_of(self, pc: int) -> tuple[str, str]:
        """(offset in its code, kernel) of an address of code; empty where it is none."""
        for start, nbytes, name in list(self.programs_at.values()):
            if start <= pc < start + nbytes:
                return f"at +{pc - start:#x}", name
        return "", ""

    # ----- the end

    def _deaf(self) -> None:
        if self.driver.devices.get(self.index) is self:
            del self.driver.devices[self.index]

    def _release(self) -> None:
        self._local_memory.clear()

    def close(self) -> None:
        """Stop the queues where they are and give memory back. Buffers and their views stay readable until they are dropped.
        Closing twice is harmless."""
        again = self.closed
        if not again and self.debugger:
            debugger, self.debugger = self.debugger, 0
            undo(lambda: self.driver.rm.free(self.objects.device, debugger))
        super().close()
        if not again:
            self.objects.close()
            self.driver.leave()


def _properties(model: str, sm: int, units: int, memory_bytes: int) -> Properties:
    about = GENERATIONS.get(sm)
    name = model or "NVIDIA GPU"
    return Properties(name=f"{name} (sm_{sm}, {units} SMs)" if units else name, vendor="nvidia", isa=f"sm_{sm}",
                      compute_units=units, lanes=LANES, memory_bytes=memory_bytes,
                      scratch_bytes=about.shared_bytes if about else 0,
                      peak_f32_flops_per_s=2e6 * about.clock_mhz * about.lanes * units if about else 0.0)


def _model(system: System, card: Card) -> str:
    """A card's name as the driver's file has it, and its instance; "" in a sandbox that shows no files of the driver."""
    try:
        text = system.read_text(f"/proc/driver/nvidia/gpus/{card.pci}/information")
    except FileNotFoundError:
        return ""
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Model:")), "")
    return f"{name} {card.instance}" if name and card.instance is not None else name
