"""One virtual GPU: its queues, their doorbells, and the thread that carries their packets out, in turns.

A turn is a few packets, a part of a copy, or a dispatch for a millisecond or so: queues and engines run beside each other as if
they were many.

A doorbell is eight bytes that the engine reads over and over: at once while work arrives, then ever more seldom. PM4 and copy
queues ring with their write pointer, in dwords and bytes; an AQL queue rings with the index of its last packet. Read pointers
are written back after every packet: of a PM4 queue the dword within the ring, of a copy queue bytes since it was made.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Generator
from typing import Literal, TypeAlias

from devrt.amd.packets import BadPacket, generation
from devrt.ioctl.kfd import ResetCause, ResetType
from devrt.ioctl.system import System, view
from devrt.virtual.amd.aql import Aql, Stopped
from devrt.virtual.amd.dispatch import Executor, WaveFault
from devrt.virtual.amd.engine import M64, BadCommand, Hang, HardwareError, Port, QueueFault, Step
from devrt.virtual.amd.ledger import Ledger, VisibilityFault
from devrt.virtual.amd.machine import GpuModel, Notify
from devrt.virtual.amd.pm4 import Pm4
from devrt.virtual.amd.sdma import Sdma
from devrt.virtual.faults import Faults
from devrt.virtual.memory import Access, AddressSpace, MemoryFault
from devrt.virtual.pace import Gate, Pace, turn
from devrt.virtual.pieces import pieces

Kind: TypeAlias = Literal["pm4", "aql", "sdma"]

_UNITS = {"pm4": 4, "sdma": 1, "aql": 64}  # bytes that a write pointer counts


class GpuQueue:
    """One user queue. `faulted` says why it stopped, None while it works."""

    def __init__(self, gpu: Gpu, port: Port, kind: Kind, ring: int, ring_bytes: int, rptr: int, wptr: int,
                 doorbell: memoryview) -> None:
        self.gpu, self.port, self.kind = gpu, port, kind
        self.faulted: QueueFault | None = None
        self.hung = False
        self.percent, self.priority = 100, 0
        self._rptr, self._wptr, self._unit = rptr, wptr, _UNITS[kind]
        self._ring, self._ring_bytes = ring, ring_bytes
        self._bell = doorbell.cast("B").cast("Q")
        self._silent = M64 if kind == "aql" else 0  # what a doorbell holds that nobody rang
        self._bell[0] = self._seen = self._silent
        self._read = self._written = 0  # units, counted from the queue's beginning
        self._idle, self._evicted, self._gone = True, 0, False
        self._gate = Gate()  # held while a packet is carried out
        self._rptr_entry, self._reported = 0, memoryview(bytearray(8)).cast("Q")  # where the read pointer was written last
        self._steps = self._run()

    # --- what the driver asks ---

    def update(self, ring: int, ring_bytes: int, percent: int, priority: int) -> None:
        """Another ring, or another share of the engine; no ring or 0 percent is a pause."""
        with self._gate.first():
            self._ring, self._ring_bytes, self.percent, self.priority = ring, ring_bytes, percent, priority

    def evict(self) -> None:
        """Take the queue off the engine: when this returns it carries nothing out."""
        with self._gate.first():
            self._evicted += 1

    def restore(self) -> None:
        with self._gate.first():
            self._evicted = max(self._evicted - 1, 0)

    def destroy(self) -> None:
        """End the queue, also where it hangs. What the doorbell said and was not carried out is lost."""
        self._gone = True
        with self._gate.first():
            self._steps.close()
            self.gpu.remove(self)
            self._bell.release()

    # --- what the engine does ---

    @property
    def waits(self) -> bool:
        """Whether there is anything to carry out."""
        return not self._idle

    def turn(self) -> bool:
        """Carry out packets for a while. Returns whether there was anything to do."""
        return turn(self.step)

    def step(self) -> bool:
        """One packet, or one look at what the queue waits for."""
        if self._gate.wanted or self._gone or self.faulted or self.hung or self._evicted or not self._ring or not self.percent:
            return False
        step = Step.IDLE
        with self._gate:
            if self._gone or self._evicted or self.faulted:
                return False
            try:
                if self._bell[0] != self._seen:
                    self._rung(self._bell[0])
                if self._idle:
                    return False
                step = next(self._steps)
            except Exception as error:
                self._stop(error)
            self._idle = step is Step.IDLE
            posts, self.port.posts = self.port.posts, []
        for post in posts:
            post()
        return step is Step.DONE

    def _rung(self, bell: int) -> None:
        """Take a new value of the doorbell. Raises BadCommand."""
        port, size = self.port, self._ring_bytes // self._unit
        port.at("doorbell", self._read)
        self._seen = bell
        written = (bell + 1 & M64) if self.kind == "aql" else bell
        if self.kind == "aql" and written < self._written:
            return  # producers of one queue may ring in any order
        if written < self._written:
            raise BadCommand(f"the doorbell went back from {self._written:#x} to {written:#x}")
        if written - self._read > size:
            raise BadCommand(f"the doorbell says {written:#x}, but {self._read:#x} is still unread in a ring of {size:#x}")
        if self.kind == "sdma" and written % 4:
            raise BadCommand(f"the doorbell says {written:#x}, not a multiple of 4")
        stored = port.peek(self._wptr, 8)
        if stored < written:
            raise BadCommand(f"the doorbell says {written:#x} before the write pointer does: it is {stored:#x}")
        self._written = written
        self._idle = False
        port.flight.waited()  # the host may have seen every event so far
        if port.faults.take("hang"):
            raise Hang
        if port.faults.take("reset"):
            raise HardwareError(ResetCause.GPU_HANG, "the GPU was reset (injected)")

    def _run(self) -> Generator[Step, None, None]:
        if self.kind == "pm4":
            pm4 = Pm4(self.port)
            while True:
                while self._read == self._written:
                    yield Step.IDLE
                yield from pm4.ring(self._words(wraps=True), self._read, self._done)
        if self.kind == "sdma":
            sdma = Sdma(self.port)
            while True:
                while self._read == self._written:
                    yield Step.IDLE
                words = self._words(wraps=False)
                wraps = self._read + 4 * len(words) < self._written
                yield from sdma.ring(words, self._read, wraps, self._done)
        aql = Aql(self.port, self._rptr, self._wptr)
        while True:
            while self._read == self._written:
                yield Step.IDLE
            slot = self._ring + self._read * 64 % self._ring_bytes
            yield from aql.packet(slot, self._read)
            self._done(1)
            yield Step.DONE

    def _words(self, wraps: bool) -> tuple[int, ...]:
        """The dwords between the read and the write pointer; up to the ring's end unless it wraps."""
        start = self._read * self._unit % self._ring_bytes
        size = (self._written - self._read) * self._unit
        first = min(size, self._ring_bytes - start)
        data = self.port.space.read(self._ring + start, first)
        if wraps and size > first:
            data += self.port.space.read(self._ring, size - first)
        return struct.unpack(f"<{len(data) // 4}I", data)

    def _done(self, units: int) -> None:
        self._read += units
        value = self._read % (self._ring_bytes // 4) if self.kind == "pm4" else self._read
        space = self.port.space
        entry = space.entry(self._rptr)
        if entry & Access.FOREIGN:
            space.write(self._rptr, value.to_bytes(8, "little"))
            return
        if entry != self._rptr_entry:
            host = pieces(space, self._rptr, 8, "write")[0].host
            self._rptr_entry, self._reported = entry, view(host, 8).cast("Q")
        self._reported[0] = value

    def _stop(self, error: Exception) -> None:
        port = self.port
        if isinstance(error, Hang):
            self.hung = True
        if self.hung or self._gone:
            return
        if not isinstance(error, BadPacket | BadCommand | MemoryFault | VisibilityFault | WaveFault | HardwareError | Stopped):
            error = BadCommand(f"{type(error).__name__}: {error}")
        self.faulted = port.fault(str(error))
        self.faulted.__cause__ = error
        if isinstance(error, MemoryFault):
            fault = error
            port.posts.append(lambda: port.notify.memory_fault(fault))
        elif isinstance(error, HardwareError):
            self.gpu.lost(self.faulted)
            cause = error.cause
            port.posts.append(lambda: port.notify.hardware_exception(ResetType.WHOLE_GPU_RESET, cause, True))
        elif not isinstance(error, Stopped):
            port.posts.append(lambda: port.notify.hardware_exception(ResetType.PER_ENGINE_RESET, ResetCause.GPU_HANG, False))


class Gpu:
    """A GPU of a model. `executor` runs its waves."""

    def __init__(self, model: GpuModel, system: System, faults: Faults, executor: Executor | None = None) -> None:
        self.model, self.system, self.faults = model, system, faults
        self.generation = generation(model.gfx)
        self.executor = executor or Executor(model.gfx, system)
        self.ledger = Ledger(model.gfx)
        self._queues: tuple[GpuQueue, ...] = ()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def create_queue(self, space: AddressSpace, kind: Kind, *, ring: int, ring_bytes: int, rptr: int, wptr: int,
                     doorbell: memoryview, notify: Notify, eop: int = 0, cwsr: int = 0) -> GpuQueue:
        """A queue over a ring of `ring_bytes` at GPU address `ring`. rptr and wptr are addresses of u64; of an AQL queue
        they lie in its amd_queue_t. `doorbell` is its eight bytes, which are reset."""
        name = f"{self.model.gfx} {kind} queue {next(self._numbers)}"
        port = Port(name, self.generation, space, self.ledger, self.executor, self.faults, notify, self.model.counter_khz)
        queue = GpuQueue(self, port, kind, ring, ring_bytes, rptr, wptr, doorbell)
        with self._lock:
            self._queues += (queue,)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=f"virtual {self.model.gfx}", daemon=True)
                self._thread.start()
        self._wake.set()
        return queue

    def remove(self, queue: GpuQueue) -> None:
        with self._lock:
            self._queues = tuple(q for q in self._queues if q is not queue)
        self.ledger.forget_queue(queue.port)

    def lost(self, fault: QueueFault) -> None:
        """The whole GPU was reset: no queue works any more."""
        for queue in self._queues:
            queue.faulted = queue.faulted or QueueFault(queue.port.name, "", 0, (), f"the GPU was reset: {fault}")

    def close(self) -> None:
        """End the GPU's thread. Queues that are left stay as they are."""
        self._closed = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.ledger.close()

    def _loop(self) -> None:
        pace = Pace()
        while not self._closed:
            queues = self._queues
            if not queues:
                self._wake.wait()
                self._wake.clear()
                continue
            worked = False
            self.executor.hurry = sum(queue.waits for queue in queues) > 1
            for queue in queues:
                worked |= queue.turn()
            pace.rest(worked)
