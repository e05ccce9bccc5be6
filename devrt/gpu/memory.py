"""Buffers of GPUs, memory that is borrowed, and the ledger that faults are explained by."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from devrt.device import Placement, Unsupported
from devrt.ioctl.errors import reported_as
from devrt.ioctl.system import MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, System
from devrt.memory import Lease, MemoryBuffer, byte_view

if TYPE_CHECKING:
    from devrt.gpu.device import GpuDevice

PAGE = 4096
LINES = 256  # bytes: two lines of an L2. In VRAM no two buffers share a page, which is what faults are told by


def reserve(system: System, nbytes: int, alignment: int) -> int:
    """Addresses that nothing else in this process gets, so that a GPU's address can be the same."""
    with reported_as(f"can't reserve {nbytes} bytes of addresses"):
        extra = alignment - PAGE
        address = system.mmap(-1, nbytes + extra, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE)
        start = -(-address // alignment) * alignment
        if start > address:
            system.munmap(address, start - address)
        if start < address + extra:
            system.munmap(start + nbytes, address + extra - start)
    return start


class Region(Protocol):
    """Memory that a driver gave, at one address for the process and its GPUs."""

    nbytes: int
    address: int

    def release(self) -> None: ...


class GpuBuffer(MemoryBuffer):
    """A range of memory that one GPU reaches."""

    device: GpuDevice

    def host(self) -> memoryview:
        """The bytes, where the host sees them; settled once the work that writes them was waited for through a queue or a
        signal of the device. Raises Unsupported for memory of the GPU alone."""
        self.check()
        if self.placement is Placement.DEVICE:
            raise Unsupported(f"{self!r} is memory that only the GPU sees", remedy="copy it to a buffer of Placement.HOST")
        return byte_view(self.address, self.nbytes, self)

    def release(self) -> None:
        super().release()
        self.device.ledger.remove(self.address)

    def __del__(self) -> None:
        super().__del__()
        if not getattr(self, "freed", True):
            self.device.ledger.remove(self.address)


class UserMemory(Lease):
    """Pages of the process, which belong to `owner`, mapped to a GPU at an address of its own: `region` holds whole pages, the
    memory begins `offset` bytes into it."""

    def __init__(self, region: Region, offset: int, owner: object) -> None:
        self._region, self.owner = region, owner
        self.address = region.address + offset

    def end(self) -> None:
        self._region.release()
        self.owner = None


class PeerMemory(Lease):
    """Another GPU's buffer, mapped here as well: kept alive with the buffer that shows it."""

    def __init__(self, buffer: MemoryBuffer) -> None:
        self.buffer: MemoryBuffer | None = buffer

    def end(self) -> None:
        self.buffer = None


class Ledger:
    """What lies where: the live buffers of a device and those freed last, for the report of a fault. Its methods may be
    called from finalizers, so they take no lock."""

    def __init__(self) -> None:
        self._live: dict[int, tuple[int, str]] = {}
        self._freed: deque[tuple[int, tuple[int, str]]] = deque(maxlen=256)

    def add(self, address: int, nbytes: int, what: str) -> None:
        self._live[address] = nbytes, what

    def remove(self, address: int) -> None:
        entry = self._live.pop(address, None)
        if entry is not None:
            self._freed.appendleft((address, entry))

    def nearest(self, address: int) -> str:
        """The allocation that holds `address`, else one freed that did, else the closest: what, where, how far."""
        live, freed = dict(self._live), list(self._freed)
        for found, when in ((list(live.items()), ""), (freed, ", freed before")):
            for start, (nbytes, what) in found:
                if start <= address < start + nbytes:
                    return f"inside {what} of {nbytes} bytes at {start:#x}, byte {address - start}{when}"
        if not live:
            return "no buffer is live"
        start, (nbytes, what) = min(live.items(), key=lambda item: max(item[0] - address, address - item[0] - item[1][0]))
        far = address - start - nbytes
        place = f"{far + 1} bytes past the end of" if far >= 0 else f"{start - address} bytes before"
        return f"{place} {what} of {nbytes} bytes at {start:#x}"
