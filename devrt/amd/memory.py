"""Memory of an AMD GPU: buffer objects at the same address for the process and its GPUs, and buffers cut from them.

    DEVICE         VRAM that only the GPU sees
    HOST_VISIBLE   VRAM in the window the CPU can reach; all of it where the machine has a large BAR
    HOST           pages of the host, coherent and not cached by the GPU: rings, signals, arguments, what is staged

`devrt.memory.Allocator` cuts and keeps them as on every device. What is freed stays mapped until queued work is done.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from devrt.amd.driver import PAGE, Gpu
from devrt.device import InvalidArgument, OutOfMemory, Placement, Unsupported
from devrt.ioctl.kfd import AllocFlag
from devrt.memory import Lease, MemoryBuffer, byte_view, host_available

if TYPE_CHECKING:
    from devrt.amd.device import AmdDevice

_VRAM = AllocFlag.VRAM | AllocFlag.WRITABLE | AllocFlag.NO_SUBSTITUTE
_COHERENT = AllocFlag.COHERENT | AllocFlag.UNCACHED
FLAGS = {
    Placement.DEVICE: _VRAM,
    Placement.HOST_VISIBLE: _VRAM | AllocFlag.PUBLIC,
    Placement.HOST: AllocFlag.GTT | AllocFlag.WRITABLE | AllocFlag.NO_SUBSTITUTE | _COHERENT,
}
LINES = 256  # bytes: two lines of the L2. In VRAM no two buffers share a page, which is what faults are told by
CODE = _VRAM | AllocFlag.EXECUTABLE
USER = AllocFlag.USERPTR | AllocFlag.WRITABLE | _COHERENT


class Region:
    """One buffer object: `nbytes` at `address`, mapped to the GPUs in `gpus`. `user` names the queue that needs it."""

    def __init__(self, gpu: Gpu, nbytes: int, flags: int, *, alignment: int = PAGE, host: bool = True, pointer: int = 0,
                 user: str = "") -> None:
        self.driver, self.nbytes, self.user = gpu.driver, -(-nbytes // PAGE) * PAGE, user
        self.address, self._handle = self.driver.allocate(gpu, self.nbytes, flags, alignment=alignment, host=host,
                                                          address=pointer)
        self.gpus: list[int] = []
        try:
            self.share(gpu)
        except BaseException:
            self.user = ""
            self.release()
            raise

    def share(self, gpu: Gpu) -> None:
        """Let `gpu` reach it too, at the same address."""
        if gpu.id not in self.gpus:
            self.driver.map(self._handle, [*self.gpus, gpu.id])
            self.gpus.append(gpu.id)

    def release(self) -> None:
        """Unmap and free it. Raises InvalidArgument where a queue uses it, or where it was released before."""
        if self.user or not self._handle:
            raise InvalidArgument(f"{self.nbytes} bytes at {self.address:#x} can't be unmapped",
                                  evidence=f"in use by {self.user}" if self.user else "they were unmapped before",
                                  remedy="close what uses the memory first")
        self.driver.release(self.address, self.nbytes, self._handle, self.gpus)
        self._handle = 0

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.address + self.nbytes


class GpuMemory:
    """Memory of one kind as an allocator's source."""

    def __init__(self, gpu: Gpu, name: str, flags: int, limit: int) -> None:
        self.gpu, self.name, self.flags, self.limit = gpu, name, flags, limit
        self.granule = PAGE if flags & AllocFlag.VRAM else LINES
        self._regions: dict[int, Region] = {}

    def map(self, nbytes: int, alignment: int) -> int:
        visible = not self.flags & AllocFlag.VRAM or bool(self.flags & AllocFlag.PUBLIC)
        try:
            region = Region(self.gpu, nbytes, self.flags, alignment=alignment, host=visible)
        except OutOfMemory as error:
            raise OutOfMemory(f"the {self.name} has no {nbytes} bytes left",
                              evidence=f"asked {nbytes}, free {self.available()} as the driver says; {error.evidence}") from error
        self._regions[region.address] = region
        return region.address

    def unmap(self, address: int, nbytes: int) -> None:
        self._regions.pop(address).release()

    def available(self) -> int:
        if not self.flags & AllocFlag.VRAM:
            return host_available(self.gpu.driver.system)
        free = self.gpu.driver.available(self.gpu)
        return self.limit if free is None else free

    def region(self, address: int) -> Region | None:
        """The buffer object an address lies in."""
        return next((region for region in list(self._regions.values()) if address in region), None)


class AmdBuffer(MemoryBuffer):
    """A range of memory that one GPU reaches."""

    device: AmdDevice

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
    """Pages of the process, which belong to `owner`, mapped to the GPU at an address of its own."""

    def __init__(self, gpu: Gpu, address: int, nbytes: int, owner: object) -> None:
        self.owner: object = owner
        start = address // PAGE * PAGE
        end = -(-(address + nbytes) // PAGE) * PAGE
        self._region = Region(gpu, max(end - start, PAGE), USER, host=False, pointer=start)
        self.address = self._region.address + address - start

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
