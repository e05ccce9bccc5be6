"""A virtual GPU without a driver: memory mapped by hand, doorbells in a bytearray, and an executor that plays kernels."""

from __future__ import annotations

import ctypes
import itertools
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from devrt.ioctl.system import LinuxSystem
from devrt.virtual.amd.dispatch import Dispatch, Executor
from devrt.virtual.amd.gpu import Gpu, GpuQueue, Kind
from devrt.virtual.amd.machine import MODELS
from devrt.virtual.faults import Faults
from devrt.virtual.memory import PAGE, Access, AddressSpace, MemoryFault, PageFile, map_file

SYSTEM, VRAM = Access.SYSTEM | Access.WRITE | Access.EXECUTE, Access.VRAM | Access.WRITE | Access.EXECUTE
WAIT_S = 10.0
_numbers = itertools.cycle(range(60))
Play = Callable[[Dispatch, AddressSpace], Iterator[None] | None]


class Player(Executor):
    """Runs a Python function in the place of waves: the one registered for the dispatch's entry. One that yields gives way."""

    def __init__(self) -> None:
        super().__init__("gfx1100", LinuxSystem())
        self.plays: dict[int, Play] = {}
        self.seen: list[Dispatch] = []

    def run(self, d: Dispatch, space: AddressSpace) -> Iterator[None]:
        self.seen.append(d)
        turns = self.plays[d.entry](d, space) if d.entry in self.plays else None
        yield from turns or ()


@dataclass
class Ear:
    """Notify that remembers."""

    interrupts: list[int] = field(default_factory=list)
    faults: list[MemoryFault] = field(default_factory=list)
    exceptions: list[tuple[int, int, bool]] = field(default_factory=list)
    on_interrupt: Callable[[int], None] | None = None

    def interrupt(self, context_id: int) -> None:
        self.interrupts.append(context_id)
        if self.on_interrupt:
            self.on_interrupt(context_id)

    def memory_fault(self, fault: MemoryFault) -> None:
        self.faults.append(fault)

    def hardware_exception(self, reset_type: int, cause: int, memory_lost: bool) -> None:
        self.exceptions.append((reset_type, cause, memory_lost))


class Rig:
    def __init__(self, gfx: str = "gfx1100", faults: str = "", file: PageFile | None = None,
                 executor: Executor | None = None) -> None:
        self.system, self.faults, self.ear, self.player = LinuxSystem(), Faults(1), Ear(), Player()
        if faults:
            self.faults.inject(faults)
        self.file = file or PageFile("rig", 2 << 30)
        self.space = AddressSpace(self.system)
        self.gpu = Gpu(MODELS[gfx], self.system, self.faults, executor or self.player)
        self.gfx = self.gpu.generation
        self._next = 0x7000_0000_0000 + (next(_numbers) << 38)  # no two rigs have the same addresses
        self._mapped: list[tuple[int, int]] = []

    def close(self) -> None:
        self.gpu.close()
        for host, nbytes in self._mapped:
            self.system.munmap(host, nbytes)
        self.space.close()

    def memory(self, nbytes: int, access: Access = SYSTEM) -> int:
        """The address of fresh zeros."""
        nbytes = -(-nbytes // PAGE) * PAGE
        host = map_file(self.system, self.file, self.file.take(nbytes), nbytes)
        va, self._next = self._next, self._next + nbytes + (1 << 21)
        self.space.map(va, host, nbytes, access)
        self._mapped.append((host, nbytes))
        return va

    def u32(self, va: int) -> int:
        return int.from_bytes(self.space.read(va, 4), "little")

    def u64(self, va: int) -> int:
        return int.from_bytes(self.space.read(va, 8), "little")

    def kernel(self, play: Play | None = None) -> int:
        """The entry of a kernel that plays a function."""
        va = self.memory(PAGE)
        if play:
            self.player.plays[va] = play
        return va

    def queue(self, kind: Kind = "pm4", ring_bytes: int = 4096, rig_space: AddressSpace | None = None) -> Line:
        return Line(self, kind, ring_bytes)


class Line:
    """A queue and how to write to it."""

    def __init__(self, rig: Rig, kind: Kind, ring_bytes: int) -> None:
        self.rig, self.kind, self.ring_bytes = rig, kind, ring_bytes
        self.ring, page = rig.memory(ring_bytes), rig.memory(PAGE)
        self.page = page
        self.wptr_va, self.rptr_va = page + 56, page + 128
        rig.space.write(page + 136, struct.pack("<I", 128))
        self.bell = bytearray(8)
        self.wptr = 0
        self.queue: GpuQueue = rig.gpu.create_queue(rig.space, kind, ring=self.ring, ring_bytes=ring_bytes, rptr=self.rptr_va,
                                                    wptr=self.wptr_va, doorbell=memoryview(self.bell), notify=rig.ear)
        if kind == "aql":
            for n in range(ring_bytes // 64):
                rig.space.write(self.ring + 64 * n, b"\x01")

    @property
    def rptr(self) -> int:
        return self.rig.u64(self.rptr_va)

    def push(self, *packets: list[int]) -> Line:
        """Write packets of dwords and ring."""
        words = [w for p in packets for w in p]
        unit = 4 if self.kind == "pm4" else 1
        for n, word in enumerate(words):
            self.rig.space.write(self.ring + (self.wptr * unit + 4 * n) % self.ring_bytes, struct.pack("<I", word & 0xFFFFFFFF))
        self.wptr += len(words) * 4 // unit
        self.ring_bell(self.wptr)
        return self

    def aql(self, *packets: bytes) -> Line:
        """Write packets and ring once: a bell for each would let the engine end one before it sees the next."""
        for packet in packets:
            slot = self.ring + self.wptr * 64 % self.ring_bytes
            self.rig.space.write(slot + 4, packet[4:])
            self.rig.space.write(slot, packet[:4])
            self.wptr += 1
        self.rig.space.write(self.wptr_va, struct.pack("<Q", self.wptr))
        self.bell[:] = struct.pack("<Q", self.wptr - 1)
        return self

    def ring_bell(self, value: int, stored: int | None = None) -> None:
        self.rig.space.write(self.wptr_va, struct.pack("<Q", value if stored is None else stored))
        memoryview(self.bell).cast("Q")[0] = value

    def drain(self) -> None:
        """Wait until all is carried out; a fault is raised."""
        want = self.wptr % (self.ring_bytes // 4) if self.kind == "pm4" else self.wptr
        until(lambda: self.queue.faulted or self.rptr == want and self.queue._idle)
        if self.queue.faulted:
            raise self.queue.faulted

    def fault(self) -> str:
        until(lambda: self.queue.faulted)
        return str(self.queue.faulted)


def until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError("nothing happened")
        time.sleep(1e-4)


@contextmanager
def rig(gfx: str = "gfx1100", faults: str = "", file: PageFile | None = None, executor: Executor | None = None) -> Iterator[Rig]:
    r = Rig(gfx, faults, file, executor)
    try:
        yield r
    finally:
        r.close()


def poke(space: AddressSpace, va: int, data: bytes) -> None:
    """Write in place without Python's slices: what a wave would store."""
    done = 0
    for host, n in space.runs(va, len(data), "write"):
        ctypes.memmove(host, data[done:done + n], n)
        done += n
