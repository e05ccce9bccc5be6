"""Queues of AMD GPUs: rings that the GPU reads, and the order between them.

A Ring is one queue of the driver. An AmdQueue is what a device shows: commands in order, on a compute engine, a copy engine,
or both in turns; then the end of one segment raises a timeline that the next one's engine waits for. Submitting is writing
packets into a ring, then its write pointer and its doorbell: no system call.

Progress is read from timelines alone. What a ring holds is over when the submission is, so its room is counted by them too.
"""

from __future__ import annotations

import itertools
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from devrt.amd.commands import AmdCommandList, Instance, Profile
from devrt.amd.driver import PAGE
from devrt.amd.engines import COPY_DWORDS, LOW, ComputeEngine, Engine
from devrt.amd.memory import CODE, FLAGS, Region
from devrt.amd.signal import AmdSignal
from devrt.device import CommandList, DeviceHang, InvalidArgument, Placement, Signal, Unsupported
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
FULL_RING_TIMEOUT_S = 30.0
_PLAIN = struct.Struct("<12I")  # INDIRECT_BUFFER and RELEASE_MEM: a whole submission
_PLAIN_WORDS = _PLAIN.size // 4
_SEMAPHORE_LIMIT = LOW  # a copy engine compares 32 bits


class Ring:
    """One queue of the driver and its memory. Positions count dwords since its creation: `put` where the next packet goes,
    `tail` up to where it was read; `claim` moves the first, whoever knows what is done the second."""

    def __init__(self, device: AmdDevice, engine: Engine, nbytes: int, name: str) -> None:
        self.device, self.engine, self.name = device, engine, name
        self.size = nbytes // 4
        self.put = self.tail = self.at = 0
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

    def claim(self, count: int) -> int:
        """The byte where `count` dwords of packets go, at the end of what was written before or at the ring's start; -1 while
        there is no room. What is skipped at the end becomes NOPs."""
        at = self.at
        skipped = self.size - at if at + count > self.size else 0
        if self.put + skipped + count - self.tail >= self.size:
            return -1
        if skipped:
            self.memory[4 * at:] = self.engine.padding.to_bytes(4, "little") * skipped
            at = 0
        self.at = at + count
        self.put += skipped + count
        return 4 * at

    def kick(self) -> None:
        """Tell the engine of everything written. The packets are in memory before the pointer, and that before the doorbell:
        x86-64 keeps the order of stores."""
        value = self.put * self._scale
        self._wptr[0] = value
        self._doorbell[0] = value

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


class AmdQueue:
    """Runs command lists in order. `compute`: its own engine runs kernels; the other kind of ring is made when it is needed."""

    def __init__(self, device: AmdDevice, name: str, compute: bool) -> None:
        self.device, self.name, self._compute = device, name, compute
        self.submitted = 0  # value the timeline reaches when all submitted work is done
        self._lock = threading.Lock()
        # What queued work uses, until it is done: value, (ring, its put) of each ring, list, instance, profile and signals.
        self._flight: deque[tuple[int, tuple[tuple[Ring, int], ...], AmdCommandList, Instance, tuple[object, ...]]] = deque()
        self._timeline = AmdSignal(device)
        self._timeline.raiser = self
        self._semaphore = AmdSignal(device)  # between segments
        self._steps = 0  # of the semaphore
        self._rings: dict[bool, Ring] = {}
        self._event = device.gpu.driver.create_event()
        self._armed = 0
        try:
            self._home = self._last = self._ring(compute)
        except BaseException:
            device.gpu.driver.destroy_event(self._event)
            raise
        address = self._timeline.address
        self._fence = (*device.compute_engine.fence_head, address & LOW, address >> 32)

    @property
    def completed(self) -> int:
        """The timeline's value: the last submission that is done."""
        return self._timeline.peek()

    def submit(self, commands: CommandList, *, wait: Sequence[tuple[Signal, int]] = (),
               signal: Sequence[tuple[Signal, int]] = (), profile: Profile | None = None) -> int:
        """Queue `commands` behind the waits; returns the value the queue's own timeline reaches when they are done.

        `profile` receives the time of every command. Blocks while the ring is full; DeviceHang when it stays full
        for 30 s without progress. Nothing is queued when an argument is wrong (InvalidArgument).
        """
        if not isinstance(commands, AmdCommandList) or commands.device is not self.device:
            raise InvalidArgument(f"{commands!r} is no command list of this device", remedy="use this device's command_list()")
        if commands.stale:
            commands.check()
        if profile is not None and not profile.fits(commands):
            raise InvalidArgument("the profile was made for another list", evidence=f"the list has {len(commands)} commands")
        for awaited, value in (*wait, *signal):
            self._check_signal(awaited, value)
        device = self.device
        instance = commands.instance(self._compute) if profile is None else commands.build(self._compute, profile.address)
        if not self._compute and any(segment.compute for segment in instance.segments):
            raise Unsupported("the transfer queue runs no kernels", remedy="submit the list to the compute queue")
        with self._lock:
            if device.failure is not None:
                device.check()
            value = self.submitted + 1
            head, ring = instance.head, self._home
            if device.host_visible:
                device.flush_host_writes()
            if head is not None and not wait and not signal and self._last is ring:
                at = ring.claim(_PLAIN_WORDS)
                if at < 0:
                    at = self._reserve(ring, _PLAIN_WORDS)
                _PLAIN.pack_into(ring.memory, at, *head, *self._fence, value & LOW, value >> 32, 0)
                ends: tuple[tuple[Ring, int], ...] = ((ring, ring.put),)
                self.submitted = value
                ring.kick()
            else:
                ends = self._write(instance, value, wait, signal)
            self._flight.append((value, ends, commands, instance, (profile, *wait, *signal)))
            instance.flight[self] = value
            if self._flight[0][0] <= self._timeline.peek():
                self._retire()
        return value

    def wait(self, value: int, timeout_s: float | None = None) -> None:
        """Block until the queue's own timeline reaches `value`; see Signal.wait for the timeout and Ctrl-C."""
        if value > self.submitted:
            raise InvalidArgument(f"the {self.name} queue will not reach {value}",
                                  evidence=f"{self.submitted} submissions so far",
                                  remedy="wait for what submit() returned")
        self._timeline.wait(value, timeout_s)

    def doze(self, milliseconds: int) -> None:
        """Sleep until the work submitted so far may be done, at most that long."""
        if self.device.failure is not None:
            return
        if self._armed < self.submitted and self._lock.acquire(timeout=milliseconds / 1e3):
            try:
                self._arm()
            finally:
                self._lock.release()
        self.device.gpu.driver.wait_events((self._event,), milliseconds)

    def settle(self) -> None:
        """Let go of what is done, unless another thread is submitting, which does the same."""
        if self._flight and self._lock.acquire(blocking=False):
            try:
                self._retire()
            finally:
                self._lock.release()

    def progress(self) -> tuple[int, ...]:
        return self.completed, *(ring.read for ring in self._rings.values())

    def running(self) -> str:
        """The kernels of the oldest list that is not done."""
        completed = self.completed
        for value, _, commands, _, _ in list(self._flight):
            if value > completed:
                return commands.describe()
        return ""

    def describe(self) -> str:
        """The queue's state in one line, for errors."""
        rings = ", ".join(ring.describe() for ring in list(self._rings.values()))
        return f"{self.name} queue: {self.completed} of {self.submitted} submissions done, {rings}"

    def wake(self) -> None:
        """End the sleep of those who wait for it."""
        self.device.gpu.driver.set_event(self._event)

    def close(self) -> None:
        """Stop it where it is; what is queued is dropped."""
        with self._lock:
            while self._rings:
                self._rings.popitem()[1].close()
            self._flight.clear()
            self.device.gpu.driver.destroy_event(self._event)

    def after_fork(self) -> None:
        """In a forked child: whoever held the lock is not here."""
        self._lock = threading.Lock()

    # ----- writing

    def _write(self, instance: Instance, value: int, wait: Sequence[tuple[Signal, int]],
               signal: Sequence[tuple[Signal, int]]) -> tuple[tuple[Ring, int], ...]:
        """The packets of a submission that is not one indirect buffer alone: segments in turns, waits before the first,
        signals after the last."""
        segments = instance.segments
        parts: list[tuple[Ring, list[bytes]]] = []
        for segment in segments:
            ring = self._ring(segment.compute)
            if parts and parts[-1][0] is ring:
                parts[-1][1].append(segment.packets)
            else:
                parts.append((ring, [segment.packets]))
        if not parts:
            parts.append((self._last, []))
        if self._steps + len(parts) + (1 << 20) > _SEMAPHORE_LIMIT:
            self._restart_semaphore()
        first, last = parts[0][0], parts[-1]
        before = [first.engine.wait(self._timeline.address, value - 1)] if first is not self._last and self.submitted else []
        before += [first.engine.wait(s.address, v) for s, v in wait if isinstance(s, AmdSignal) and s.peek() < v]
        parts[0][1][:0] = before
        for (ring, packets), (next_ring, next_packets) in itertools.pairwise(parts):
            self._steps += 1
            packets.append(ring.engine.fence(self._semaphore.address, self._steps))
            next_packets.insert(0, next_ring.engine.wait(self._semaphore.address, self._steps))
        last[1].append(last[0].engine.fence(self._timeline.address, value))
        for s, v in signal:
            assert isinstance(s, AmdSignal)
            s.raiser = self
            last[1].append(last[0].engine.fence(s.address, v))
        ends: dict[Ring, int] = {}
        for ring, packets in parts:
            for data in packets:
                self._put(ring, data)
            ring.kick()
            ends[ring] = ring.put
        self.submitted = value
        self._last = last[0]
        return tuple(ends.items())

    def _put(self, ring: Ring, data: bytes) -> None:
        """Packets of one engine. What fills much of a ring goes in pieces, and the host waits for each; pieces hold whole
        packets, as only copies are that many."""
        limit = ring.size // 4 // COPY_DWORDS * COPY_DWORDS * 4
        if len(data) > limit:
            for start in range(0, len(data), limit):
                self._steps += 1
                self._put(ring, data[start:start + limit])
                self._put(ring, ring.engine.fence(self._semaphore.address, self._steps))
                ring.kick()
                self._semaphore.wait(self._steps, FULL_RING_TIMEOUT_S)
                ring.tail = ring.put
        elif data:
            at = ring.claim(len(data) // 4)
            if at < 0:
                at = self._reserve(ring, len(data) // 4)
            ring.memory[at:at + len(data)] = data

    def _reserve(self, ring: Ring, count: int) -> int:
        """Wait until the ring has room. The caller holds the lock."""
        seen, started = (-1, 0), time.monotonic()
        while True:
            self._retire()
            at = ring.claim(count)
            if at >= 0:
                return at
            self.device.check()
            now = (self.completed, ring.read)
            if now != seen:
                seen, started = now, time.monotonic()
            elif time.monotonic() - started > FULL_RING_TIMEOUT_S:
                raise DeviceHang(f"the {self.name} queue's ring stayed full", completed=self.completed, expected=self.submitted,
                                 evidence=self.describe(),
                                 remedy="submit what raises the signal the queue waits for from another thread")
            self.device.gpu.driver.wait_events((self._event,), 1)

    def _restart_semaphore(self) -> None:
        """Start it at 0 again, with nothing in flight that looks at it."""
        self._timeline.wait(self.submitted)
        self._semaphore = AmdSignal(self.device)
        self._steps = 0

    def _arm(self) -> None:
        """Have the GPU interrupt when what was submitted so far is done."""
        if self._armed < self.submitted and self._last.id >= 0:
            data = self._last.engine.interrupt(self.device.gpu.driver.slot(self._event), self._event)
            at = self._last.claim(len(data) // 4)
            if at >= 0:
                self._last.memory[at:at + len(data)] = data
                self._last.kick()
                self._armed = self.submitted

    def _retire(self) -> None:
        completed = self.completed
        stamps: set[int] = set()
        while self._flight and self._flight[0][0] <= completed:
            _, ends, _, instance, _ = self._flight.popleft()
            stamps.update(instance.stamps)
            for ring, put in ends:
                ring.tail = put
        if stamps:
            # A list in flight again will write its stamps anew.
            for _, _, _, instance, _ in self._flight:
                stamps.difference_update(instance.stamps)
            for address in stamps:
                clock = words(address)
                clock[0] = self.device.nanoseconds(int(clock[0]))

    def _ring(self, compute: bool) -> Ring:
        ring = self._rings.get(compute)
        if ring is None:
            device = self.device
            engine: Engine = device.compute_engine if compute else device.copy_engine
            nbytes = COMPUTE_RING_BYTES if compute else COPY_RING_BYTES
            ring = self._rings[compute] = Ring(device, engine, nbytes, f"{self.name} {engine.kind.name}")
        return ring

    def _check_signal(self, signal: Signal, value: int) -> None:
        if not isinstance(signal, AmdSignal) or signal.device.gpu.driver is not self.device.gpu.driver:
            raise InvalidArgument(f"{signal!r} is no signal of this device", remedy="use this device's signal()")
        if not isinstance(value, int) or not 0 <= value < 1 << 64:
            raise InvalidArgument(f"a signal's value is an int from 0 to 2^64 - 1, not {value!r}")
        if signal.device is not self.device:
            signal.device.show(signal.address, self.device)
