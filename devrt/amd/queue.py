"""Queues of AMD GPUs: rings that the GPU reads. Submitting is writing packets into a ring, then its write pointer and its
doorbell.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from devrt.amd.engines import LOW, MAX_WRITE, ComputeEngine, Engine, grouped
from devrt.amd.memory import CODE, FLAGS, Region
from devrt.device import Placement
from devrt.gpu.memory import PAGE
from devrt.gpu.queue import FULL_RING_TIMEOUT_S, GpuQueue
from devrt.gpu.signal import GpuSignal
from devrt.ioctl.kfd import KFD
from devrt.ioctl.system import view
from devrt.memory import words

if TYPE_CHECKING:
    from devrt.amd.device import AmdDevice

COMPUTE_RING_BYTES = 256 << 10
COPY_RING_BYTES = 1 << 20
EOP_BYTES = 4096
WPTR, RPTR = 0x38, 0x80  # bytes into their page, where an AQL queue has them
PERCENT, PRIORITY = 100, 7
_VALUE = struct.Struct("<QI")  # the end of a fence: what it writes, and its context


class Ring:
    """One queue of the driver and its memory. Positions count dwords since its creation: `put` where the next packet goes,
    `told` up to where the engine was told of them, `tail` up to where they were read, as those know who know what is done."""

    def __init__(self, device: AmdDevice, engine: Engine, nbytes: int, name: str) -> None:
        self.device, self.engine, self.name = device, engine, name
        self.size = nbytes // 4
        self.put = self.told = self.tail = 0
        self._regions: list[Region] = []
        self._doorbells = 0
        self.id = -1
        gpu, flags = device.gpu, FLAGS[Placement.HOST]
        try:
            ring = self._region(nbytes, flags)
            pointers = self._region(PAGE, flags)
            fields = {"ring_base_address": ring.address, "ring_size": nbytes, "queue_percentage": PERCENT,
                      "queue_priority": PRIORITY, "write_pointer_address": pointers.address + WPTR,
                      "read_pointer_address": pointers.address + RPTR}
            if isinstance(engine, ComputeEngine):
                save = gpu.node.save_area
                eop, area = self._region(EOP_BYTES, CODE, host=False), self._region(save.total, flags)
                self._describe_save_area(area, save.cwsr, save.debug, gpu.node.xccs)
                fields |= {"eop_buffer_address": eop.address, "eop_buffer_size": EOP_BYTES,
                           "ctx_save_restore_address": area.address, "ctx_save_restore_size": save.cwsr,
                           "ctl_stack_size": save.control_stack}
            self.id, doorbell = gpu.driver.create_queue(gpu, engine.kind, **fields)
            self._doorbell = words(gpu.doorbell(doorbell))
            self._doorbells = 1
        except BaseException:
            self.close()
            raise
        self.memory = view(ring.address, nbytes)
        self._wptr, self._rptr = words(pointers.address + WPTR), words(pointers.address + RPTR)
        self._scale = 4 // engine.unit  # of positions to what the engine counts

    def write(self, packets: bytes) -> int:
        """Put packets behind what was written before, or at the ring's start; then what is left of its end becomes NOPs. The
        dword where they lie, -1 while there is no room."""
        count, at = len(packets) // 4, self.put % self.size
        skipped = self.size - at if at + count > self.size else 0
        if self.put + skipped + count - self.tail >= self.size:
            return -1
        if skipped:
            self.memory[4 * at:] = self.engine.padding.to_bytes(4, "little") * skipped
            at = 0
        self.memory[4 * at:4 * at + len(packets)] = packets
        self.put += skipped + count  # only now: who is interrupted before leaves nothing behind
        return at

    def retire(self, mark: int) -> None:
        self.tail = mark

    def rewind(self) -> None:
        self.put = self.told

    def kick(self) -> None:
        """Tell the engine of everything written. The packets are in memory before the pointer, and that before the doorbell:
        x86-64 keeps the order of stores."""
        value = self.put * self._scale
        self._wptr[0] = value
        self._doorbell[0] = value
        self.told = self.put

    @property
    def read(self) -> int:
        """Up to where the engine says it has read, as it counts."""
        return int(self._rptr[0])

    def describe(self) -> str:
        return f"{self.name} ring read {self.read:#x} of {self.put * self._scale:#x}"

    def close(self) -> None:
        """Destroy the queue, whatever it does, and free its memory."""
        if self.id >= 0:
            self.device.gpu.driver.destroy_queue(self.id)
            self.id = -1
        if self._doorbells:
            self._doorbells = 0
            self.device.gpu.doorbell_done()
        while self._regions:
            region = self._regions.pop()
            region.user = ""
            region.release()

    def _region(self, nbytes: int, flags: int, host: bool = True) -> Region:
        region = Region(self.device.gpu, nbytes, flags, host=host, user=f"the {self.name} ring of {self.device.uri}")
        self._regions.append(region)
        return region

    @staticmethod
    def _describe_save_area(area: Region, cwsr: int, debug: int, xccs: int) -> None:
        """kfd_context_save_area_header at the start of every XCC's part: where the debugger's part is."""
        at = KFD.offset("kfd_context_save_area_header", "debug_offset")
        for xcc in range(xccs):
            struct.pack_into("<II", view(area.address + xcc * cwsr, PAGE), at, (xccs - xcc) * cwsr, debug * xccs)


class AmdQueue(GpuQueue):
    """Runs command lists in order on rings of the driver; long waits are ended by an interrupt."""

    device: AmdDevice
    step_limit: ClassVar[int] = LOW  # a copy engine compares 32 bits

    def __init__(self, device: AmdDevice, name: str, compute: bool) -> None:
        self._event = device.gpu.driver.create_event()
        self._armed = 0
        try:
            super().__init__(device, name, compute)
        except BaseException:
            device.gpu.driver.destroy_event(self._event)
            raise
        self._fence = device.compute_engine.fence(self._timeline.address, 0)[:-_VALUE.size]

    def doze(self, signal: GpuSignal, value: int, milliseconds: int) -> None:
        """Sleep until the work submitted so far may be done, at most that long."""
        if self.device.failure is not None:
            return
        if self._armed < self.submitted and self._lock.acquire(timeout=milliseconds / 1e3):
            try:
                self._arm()
            finally:
                self._lock.release()
        self.device.gpu.driver.wait_events((self._event,), milliseconds)

    def wake(self) -> None:
        """End the sleep of those who wait for it."""
        self.device.gpu.driver.set_event(self._event)

    def close(self) -> None:
        """Stop it where it is; what is queued is dropped."""
        try:
            super().close()
        finally:
            self.device.gpu.driver.destroy_event(self._event)

    # ----- writing

    def _make_ring(self, compute: bool) -> Ring:
        device = self.device
        engine: Engine = device.compute_engine if compute else device.copy_engine
        nbytes = COMPUTE_RING_BYTES if compute else COPY_RING_BYTES
        return Ring(device, engine, nbytes, f"{self.name} {engine.kind.name}")

    def _plain(self, ring: Ring, head: bytes, value: int) -> None:
        self._append(ring, head + self._fence + _VALUE.pack(value, 0))

    def _put(self, ring: Ring, packets: Sequence[bytes]) -> None:
        """What fills much of a ring goes in groups, and the host waits for each."""
        data, limit = b"".join(packets), min(MAX_WRITE, ring.size)  # a quarter of its bytes: what is written does not wrap
        if len(data) <= limit:
            self._append(ring, data)
            return
        passed = GpuSignal(self.device)
        for number, group in enumerate(grouped(packets, limit), 1):
            self._append(ring, group + ring.engine.fence(passed.address, number))
            ring.kick()
            passed.wait(number, FULL_RING_TIMEOUT_S)
            ring.tail = ring.put

    def _append(self, ring: Ring, packets: bytes) -> None:
        if ring.write(packets) < 0:
            self._room(ring, lambda: ring.write(packets))

    def _pause(self) -> None:
        self.device.gpu.driver.wait_events((self._event,), 1)

    def _arm(self) -> None:
        """Have the GPU interrupt when what was submitted so far is done."""
        ring = self._last
        if self._armed < self.submitted and ring.id >= 0:
            interrupt = ring.engine.interrupt(self.device.gpu.driver.slot(self._event), self._event)
            if ring.write(interrupt) >= 0:
                ring.kick()
                self._armed = self.submitted
