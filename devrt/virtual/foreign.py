"""GPU address spaces of processes whose own pages are not in this one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from devrt.ioctl.system import System
from devrt.virtual.memory import PAGE, Access, AddressSpace, MemoryFault


class ForeignMemory(Protocol):
    """The memory of the process a space belongs to. Both raise OSError: EFAULT."""

    def read(self, address: int, nbytes: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> None: ...


@contextlib.contextmanager
def _reached(va: int, access: str) -> Iterator[None]:
    """Raises MemoryFault where the process has nothing at that place any more."""
    try:
        yield
    except OSError as error:
        raise MemoryFault(va, access, "its process has unmapped it") from error


class ProcessSpace(AddressSpace):
    """A page table whose FOREIGN entries hold addresses of another process, reached through `foreign`."""

    def __init__(self, system: System, foreign: ForeignMemory) -> None:
        super().__init__(system)
        self.foreign = foreign
        self.any_foreign = False

    def map(self, va: int, host: int, nbytes: int, access: Access) -> None:
        self.any_foreign |= bool(access & Access.FOREIGN)
        super().map(va, host, nbytes, access)

    def read(self, va: int, nbytes: int) -> bytes:
        if not self._has_foreign(va, nbytes):
            return super().read(va, nbytes)
        found = []
        for at, n, entry in self._pages(va, nbytes, "read"):
            if entry & Access.FOREIGN:
                with _reached(at, "read"):
                    found.append(self.foreign.read(entry & ~(PAGE - 1) | at % PAGE, n))
            else:
                found.append(super().read(at, n))
        return b"".join(found)

    def write(self, va: int, data: bytes) -> None:
        if not self._has_foreign(va, len(data)):
            super().write(va, data)
            return
        for at, n, entry in self._pages(va, len(data), "write"):
            piece = data[at - va:at - va + n]
            if entry & Access.FOREIGN:
                with _reached(at, "write"):
                    self.foreign.write(entry & ~(PAGE - 1) | at % PAGE, piece)
            else:
                super().write(at, piece)

    def _has_foreign(self, va: int, nbytes: int) -> bool:
        return self.any_foreign and any(self.entry(at) & Access.FOREIGN for at in range(va // PAGE * PAGE, va + nbytes, PAGE))

    def _pages(self, va: int, nbytes: int, access: str) -> list[tuple[int, int, int]]:
        """(address, bytes, entry) page by page. Raises MemoryFault."""
        found, end = [], va + nbytes
        while va < end:
            size, entry = min(end - va, PAGE - va % PAGE), self.entry(va)
            self.check(va, entry, access)
            found.append((va, size, entry))
            va += size
        return found
