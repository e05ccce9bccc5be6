"""Pages that a virtual driver gives out, in files that lie in this process as a whole; and the driver's own lock."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import re
import threading
from dataclasses import dataclass
from typing import TypeVar

from devrt.ioctl.system import MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE, System, punch_hole, view
from devrt.virtual.errors import fail
from devrt.virtual.memory import PageFile, pages

APART = 4 << 30  # bytes
AnyStore = TypeVar("AnyStore", bound="Store")


class Pool:
    """A file of pages that lies in this process as a whole."""

    def __init__(self, host: System, name: str, nbytes: int) -> None:
        self.file, self._host = PageFile(name, nbytes), host
        # Nothing is taken before it is touched: the size costs addresses only.
        self.base = host.mmap(self.file.fd, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE)
        self.apart: dict[int, int] = {}  # offset -> address: pages beyond `nbytes`, mapped one by one

    def take_apart(self, nbytes: int) -> Store:
        """Fresh zero pages at a multiple of APART in the file: for a program that maps the file itself, and takes the low half
        of what it is told for a place inside its mapping (libhsakmt before 6). Raises OSError: ENOMEM."""
        offset = next(n for n in itertools.count(APART, APART) if n not in self.apart)
        os.ftruncate(self.file.fd, max(os.fstat(self.file.fd).st_size, offset + nbytes))
        self.apart[offset] = self._host.mmap(self.file.fd, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, offset)
        return Store(self, offset, nbytes)

    def give(self, offset: int, nbytes: int) -> None:
        """Take back what a Store held."""
        address = self.apart.pop(offset, 0)
        if not address:
            self.file.give(offset, nbytes)
            return
        self._host.munmap(address, nbytes)
        punch_hole(self.file.fd, offset, nbytes)

    def close(self) -> None:
        self._host.munmap(self.base, self.file.nbytes)
        self.file.close()


class OwnFile(Pool):
    """A file that is one Store and nothing else, from its offset 0: for a program that maps a descriptor which stands for it. It
    goes with that Store."""

    def __init__(self, host: System, name: str, nbytes: int) -> None:
        super().__init__(host, name, pages(nbytes))

    def give(self, offset: int, nbytes: int) -> None:
        punch_hole(self.file.fd, offset, nbytes)  # whoever has it mapped still sees nothing of it any more
        self.close()


@dataclass(eq=False)
class Store:
    """Pages of a pool under however many handles; the last `drop` gives them back."""

    pool: Pool
    offset: int
    nbytes: int
    references: int = 1

    @property
    def host(self) -> int:
        return self.pool.apart.get(self.offset) or self.pool.base + self.offset

    def bytes(self) -> memoryview:
        return view(self.host, self.nbytes)

    def hold(self: AnyStore) -> AnyStore:
        self.references += 1
        return self

    def drop(self) -> None:
        self.references -= 1
        if not self.references:
            self.pool.give(self.offset, self.nbytes)
            self.released()

    def released(self) -> None:
        """Called when the pages are back in the pool."""


def take(pool: Pool, nbytes: int, alignment: int = 4096) -> Store:
    """Fresh zero pages of a pool that nobody accounts for. Raises OSError: ENOMEM."""
    try:
        return Store(pool, pool.file.take(nbytes, alignment), pages(nbytes))
    except MemoryError:
        fail(errno.ENOMEM)


class KernelLock:
    """Held while the driver works. The garbage collector pauses meanwhile: a finalizer that frees a buffer would be a call into
    the driver in the midst of another of the same thread, which no kernel knows."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._collects = False

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1:
            self._collects = gc.isenabled()
            gc.disable()

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if not self._depth and self._collects:
            gc.enable()
        self._lock.release()


def host_memory(host: System) -> int:
    """Bytes of memory of the host."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", host.read_text("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) << 10 if match else 16 << 30
