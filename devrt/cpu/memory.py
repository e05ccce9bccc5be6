"""Memory of the CPU device: anonymous mappings on 2 MiB pages where the kernel has them, and buffers."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from devrt.device import InvalidArgument, Placement
from devrt.ioctl.errors import reported_as
from devrt.ioctl.system import MADV_HUGEPAGE, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, System
from devrt.memory import Block, byte_view, let_go

if TYPE_CHECKING:
    from devrt.cpu.commands import CpuCommandList
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

    name = "cpu"

    def __init__(self, system: System) -> None:
        self._system, self.limit = system, limit_bytes(system)

    def map(self, nbytes: int, alignment: int) -> int:
        with reported_as(f"can't map {nbytes} bytes of host memory"):
            return map_aligned(self._system, nbytes, alignment)

    def unmap(self, address: int, nbytes: int) -> None:
        self._system.munmap(address, nbytes)

    def available(self) -> int:
        return _meminfo(self._system, "MemAvailable")


def limit_bytes(system: System) -> int:
    """The machine's memory, or its container's share of it."""
    limit = _meminfo(system, "MemTotal")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if system.stat(path).exists:
            text = system.read_text(path).strip()
            limit = min(limit, int(text)) if text.isdigit() else limit
    return limit


def _meminfo(system: System, key: str) -> int:
    for line in system.read_text("/proc/meminfo").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) << 10
    raise InvalidArgument(f"/proc/meminfo has no {key}", remedy="use Linux 3.14 or newer")


class CpuBuffer:
    """A range of host memory. Dropping the last reference frees it too; a view of `host()` counts as a reference.

    `borrowed` memory was wrapped: it belongs to someone else (an ndarray, the pages of a file) and may be read-only, so
    results are never put there.
    """

    def __init__(self, device: CpuDevice, nbytes: int, address: int, placement: Placement, block: Block | None,
                 owner: object = None) -> None:
        self.device, self.nbytes, self.address, self.placement = device, nbytes, address, placement
        self.freed, self.borrowed = False, block is None
        self.lists: weakref.WeakSet[CpuCommandList] | None = None  # those that use it; told when it is freed
        self._block, self._owner = block, owner

    def host(self) -> memoryview:
        """The bytes, writable unless borrowed. Contents are settled once the work that writes them has been waited for.
        Raises InvalidArgument after free."""
        self.check()
        bytes_ = byte_view(self.address, self.nbytes, self)
        return bytes_.toreadonly() if self.borrowed else bytes_

    def check(self) -> None:
        if self.freed:
            raise InvalidArgument(f"a buffer of {self.nbytes} bytes is used after it was freed",
                                  evidence=f"address {self.address:#x}",
                                  remedy="keep it until its last use is submitted")

    def release(self) -> None:
        """Free it; see Device.free."""
        if self.freed:
            raise InvalidArgument(f"a buffer of {self.nbytes} bytes is freed twice",
                                  evidence=f"address {self.address:#x}")
        self.freed = True
        for commands in self.lists or ():
            commands.stale = True
        if self._block is not None:
            block, self._block = self._block, None
            self.device.allocator.give(block)
        elif self._owner is not None:
            owner, self._owner = self._owner, None
            self.device.retirement.later(lambda: let_go(owner))

    def __del__(self) -> None:
        block, owner = getattr(self, "_block", None), getattr(self, "_owner", None)
        if block is not None:
            self.device.allocator.drop(block)
        elif owner is not None:
            self.device.allocator.outlast(owner)

    def __repr__(self) -> str:
        return f"<cpu buffer of {self.nbytes} bytes at {self.address:#x}{', freed' if self.freed else ''}>"

