"""Memory of an AMD GPU: buffer objects at the same address for the process and its GPUs, and buffers cut from them.

    DEVICE         VRAM that only the GPU sees
    HOST_VISIBLE   VRAM in the window the CPU can reach; all of it where the machine has a large BAR
    HOST           pages of the host, coherent and not cached by the GPU: rings, signals, arguments, what is staged

`devrt.memory.Allocator` cuts and keeps them as on every device. What is freed stays mapped until queued work is done.
"""

from __future__ import annotations

from devrt.amd.driver import Gpu
from devrt.device import InvalidArgument, OutOfMemory, Placement
from devrt.gpu.memory import LINES, PAGE
from devrt.ioctl.kfd import AllocFlag
from devrt.memory import host_available

_VRAM = AllocFlag.VRAM | AllocFlag.WRITABLE | AllocFlag.NO_SUBSTITUTE
_COHERENT = AllocFlag.COHERENT | AllocFlag.UNCACHED
FLAGS = {
    Placement.DEVICE: _VRAM,
    Placement.HOST_VISIBLE: _VRAM | AllocFlag.PUBLIC,
    Placement.HOST: AllocFlag.GTT | AllocFlag.WRITABLE | AllocFlag.NO_SUBSTITUTE | _COHERENT,
}
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
