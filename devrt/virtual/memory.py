"""Memory of a virtual GPU: files of pages that processes map, and the GPU's page tables.

A page table is read by native code as well, so its layout is fixed. The page number VA >> 12 (36 bits) is looked up in three
levels, 12 bits each; a table is 4096 u64. The upper levels hold the address of the next table or 0, a leaf the host address of
the page or'ed with the bits below.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from devrt.ioctl.system import MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, System, view

PAGE = 4096
LEVEL = 4096  # entries of one table
SPAN = 1 << 48  # bytes of a GPU address space


class Access(enum.IntFlag):
    """Bits of a leaf entry."""

    VALID = 1
    WRITE = 2
    EXECUTE = 4
    VRAM = 8
    SYSTEM = 16
    PEER = 32     # memory of another GPU
    FOREIGN = 64  # pages of another process, reached by a callback
    DIRTY = 256   # set by shaders that write
    ACCESSED = 512  # set by shaders that read or write
    POLLED = 1024   # set by loads and atomics that may see what another launch or engine tells meanwhile
    TOLD = 2048     # set by stores and atomics that tell others


MARKS = Access.DIRTY | Access.ACCESSED | Access.POLLED | Access.TOLD  # what shaders leave in an entry


class MemoryFault(Exception):
    """An access that the page table does not allow."""

    def __init__(self, va: int, access: str, why: str) -> None:
        super().__init__(f"{access} of {va:#x}: {why}")
        self.va, self.access, self.why = va, access, why
        self.pc, self.warp, self.lane = 0, 0, -1  # of the instruction, where a shader did it


class Ranges:
    """The addresses that a launch reads and writes in global memory: (address, bytes) each, in any order. What is polled may be
    written meanwhile, to tell the launch something; what is told may be polled by others."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.polls: list[tuple[int, int]] = []
        self.tells: list[tuple[int, int]] = []

    def enter(self, va: int, nbytes: int, marks: int) -> None:
        """What shaders left in the entries of pages. What is written counts as read as well."""
        if marks & Access.POLLED:
            self.polls.append((va, nbytes))
        if marks & Access.DIRTY:
            (self.tells if marks & Access.TOLD else self.writes).append((va, nbytes))
        elif not marks & Access.POLLED:
            self.reads.append((va, nbytes))

    def clear(self) -> None:
        for ranges in (self.reads, self.writes, self.polls, self.tells):
            ranges.clear()

    def read(self, va: int, nbytes: int) -> None:
        self.enter(va, nbytes, Access.ACCESSED)

    def wrote(self, va: int, nbytes: int) -> None:
        self.enter(va, nbytes, Access.DIRTY)


class PageFile:
    """A file of pages that any process can map: what stands behind a device node. Offsets are given out page by page and
    reused; its size is only an upper bound, memory is taken when it is touched."""

    def __init__(self, name: str, nbytes: int) -> None:
        self.nbytes = nbytes
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(self.fd, nbytes)
        self._end = PAGE  # offset 0 stays free: an mmap offset of 0 is nobody's buffer
        self._free: list[tuple[int, int]] = []

    def take(self, nbytes: int, alignment: int = PAGE) -> int:
        """The offset of `nbytes` fresh zero bytes. Raises MemoryError."""
        size = pages(nbytes)
        for n, (at, length) in enumerate(self._free):
            start = -(-at // alignment) * alignment
            if start + size <= at + length:
                rest = [(at, start - at), (start + size, at + length - start - size)]
                self._free[n:n + 1] = [r for r in rest if r[1]]
                return start
        start = -(-self._end // alignment) * alignment
        if start + size > self.nbytes:
            raise MemoryError(f"no {nbytes} bytes left")
        if start > self._end:
            self._free.append((self._end, start - self._end))
        self._end = start + size
        return start

    def give(self, offset: int, nbytes: int) -> None:
        """Free what `take` gave; its pages go back to the system."""
        size = pages(nbytes)
        _punch_hole(self.fd, offset, size)
        self._free.append((offset, size))
        self._free.sort()
        merged: list[tuple[int, int]] = []
        for at, length in self._free:
            if merged and merged[-1][0] + merged[-1][1] == at:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((at, length))
        self._free = merged

    def close(self) -> None:
        os.close(self.fd)


def pages(nbytes: int) -> int:
    """`nbytes` rounded up to whole pages."""
    return -(-nbytes // PAGE) * PAGE


def _punch_hole(fd: int, offset: int, length: int) -> None:
    """Give pages of a file back; they read as zeros afterwards. Where the kernel can't, they are overwritten."""
    from devrt.ioctl.system import punch_hole
    try:
        punch_hole(fd, offset, length)
    except OSError:
        os.pwrite(fd, bytes(length), offset)


class AddressSpace:
    """The GPU addresses of one process on one GPU."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._tables: dict[int, NDArray[np.uint64]] = {}
        self._lock = threading.Lock()  # held while entries change: the driver maps and unmaps while a GPU takes marks away
        self.root = self._table()

    def close(self) -> None:
        for address in self._tables:
            self._system.munmap(address, 8 * LEVEL)
        self._tables.clear()

    def _table(self) -> int:
        address = self._system.mmap(-1, 8 * LEVEL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE)
        self._tables[address] = np.frombuffer(view(address, 8 * LEVEL), np.uint64)
        return address

    def _leaves(self, va: int, nbytes: int) -> Iterator[tuple[NDArray[np.uint64], int]]:
        """(the entries of a run of pages, their number before it), tables made where there are none."""
        first, count, done = va // PAGE, pages(va % PAGE + nbytes) // PAGE, 0
        while done < count:
            page = first + done
            middle = self._below(self.root, page >> 24)
            leaf = self._below(middle, page >> 12 & 4095)
            run = min(count - done, LEVEL - (page & 4095))
            yield self._tables[leaf][page & 4095:(page & 4095) + run], done
            done += run

    def _below(self, table: int, index: int) -> int:
        entry = int(self._tables[table][index])
        if not entry:
            entry = self._table()
            self._tables[table][index] = entry
        return entry

    def map(self, va: int, host: int, nbytes: int, access: Access) -> None:
        """Let pages from `va` on be those at `host`. All three are multiples of PAGE."""
        if va % PAGE or host % PAGE or va <= 0 or va + nbytes > SPAN:
            raise ValueError(f"{va:#x} and {host:#x} can't be mapped")
        with self._lock:
            for entries, done in self._leaves(va, nbytes):
                start = host + done * PAGE
                hosts = np.arange(start, start + len(entries) * PAGE, PAGE, dtype=np.uint64)
                entries[:] = hosts | np.uint64(access | Access.VALID)

    def unmap(self, va: int, nbytes: int) -> None:
        with self._lock:
            for entries, _ in self._leaves(va, nbytes):
                entries[:] = 0

    def entry(self, va: int) -> int:
        """The leaf entry of an address, 0 where there is none."""
        if not 0 <= va < SPAN:
            return 0
        page = va // PAGE
        middle = int(self._tables[self.root][page >> 24])
        leaf = int(self._tables[middle][page >> 12 & 4095]) if middle else 0
        return int(self._tables[leaf][page & 4095]) if leaf else 0

    def runs(self, va: int, nbytes: int, access: str) -> Iterator[tuple[int, int]]:
        """(host address, bytes) of the pieces of a range that lie together. access: read, write or execute. Raises
        MemoryFault at the first page that does not allow it."""
        end = va + nbytes
        host = length = 0
        while va < end:
            entry = self.entry(va)
            self.check(va, entry, access)
            here, size = (entry & ~(PAGE - 1)) + va % PAGE, min(end - va, PAGE - va % PAGE)
            if length and host + length == here:
                length += size
            else:
                if length:
                    yield host, length
                host, length = here, size
            va += size
        if length:
            yield host, length

    def touched(self) -> Iterator[tuple[int, int, int]]:
        """(address, bytes, marks) of runs of pages that shaders touched since the last call; the marks, of Access, are taken
        away."""
        with self._lock:  # the driver may be making tables
            root = self._tables[self.root]
            middles = [(int(i) << 24, self._tables[int(root[i])]) for i in np.flatnonzero(root)]
            leaves = [(first | int(j) << 12, self._tables[int(middle[j])]) for first, middle in middles
                      for j in np.flatnonzero(middle)]
        for first, leaf in leaves:
            marks = leaf & np.uint64(MARKS)
            used = np.flatnonzero(marks)
            if not len(used):
                continue
            with self._lock:
                leaf[used] &= ~np.uint64(MARKS)
            marks = marks[used]
            cuts = np.flatnonzero((np.diff(used) != 1) | (marks[1:] != marks[:-1])) + 1
            for run in np.split(np.arange(len(used)), cuts):
                yield (first + int(used[run[0]])) * PAGE, len(run) * PAGE, int(marks[run[0]])

    @staticmethod
    def check(va: int, entry: int, access: str) -> None:
        """Raises MemoryFault where `entry` does not allow the access."""
        if not entry & Access.VALID:
            raise MemoryFault(va, access, "not mapped")
        if access == "write" and not entry & Access.WRITE:
            raise MemoryFault(va, access, "mapped read-only")
        if access == "execute" and not entry & Access.EXECUTE:
            raise MemoryFault(va, access, "not executable")

    def read(self, va: int, nbytes: int) -> bytes:
        return b"".join(bytes(view(host, n)) for host, n in self.runs(va, nbytes, "read"))

    def write(self, va: int, data: bytes) -> None:
        done = 0
        for host, n in list(self.runs(va, len(data), "write")):
            view(host, n)[:] = data[done:done + n]
            done += n


def map_file(system: System, file: PageFile, offset: int, nbytes: int) -> int:
    """The address at which pages of a file lie in this process."""
    return system.mmap(file.fd, pages(nbytes), PROT_READ | PROT_WRITE, MAP_SHARED, offset)
