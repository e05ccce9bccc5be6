"""Memory of the CPU device: anonymous mappings on 2 MiB pages where the kernel has them, and buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devrt.ioctl.errors import reported_as
from devrt.ioctl.system import MADV_HUGEPAGE, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, System
from devrt.memory import ALIGNMENT, MemoryBuffer, byte_view, host_available, host_bytes

if TYPE_CHECKING:
    from devrt.cpu.device import CpuDevice


def map_aligned(system: System, nbytes: int, alignment: int) -> int:
    """Anonymous memory at a multiple of `alignment`, huge pages advised. Raises OSError."""
    address = system.mmap(-1, nbytes + alignment, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE)
    start = -(-address // alignment) * alignment
    if start > address:
        system.munmap(address, start - address)
    if start < address + alignment:
        system.munmap(start + nbytes, address + alignment - start)
    # A kernel without huge pages says EINVAL, and small pages do as well.
    try:
        system.madvise(start, nbytes, MADV_HUGEPAGE)
    except OSError:
        return start
    return start


class HostMemory:
    """The machine's memory, or its container's share of it, as an allocator's source."""

    name, granule = "cpu", ALIGNMENT

    def __init__(self, system: System) -> None:
        self._system, self.limit = system, host_bytes(system)

    def map(self, nbytes: int, alignment: int) -> int:
        with reported_as(f"can't map {nbytes} bytes of host memory"):
            return map_aligned(self._system, nbytes, alignment)

    def unmap(self, address: int, nbytes: int) -> None:
        self._system.munmap(address, nbytes)

    def available(self) -> int:
        return host_available(self._system)


class CpuBuffer(MemoryBuffer):
    """A range of host memory."""

    device: CpuDevice

    def host(self) -> memoryview:
        """The bytes, writable unless borrowed. Contents are settled once the work that writes them has been waited for.
        Raises InvalidArgument after free."""
        self.check()
        bytes_ = byte_view(self.address, self.nbytes, self)
        return bytes_.toreadonly() if self.borrowed else bytes_
