"""Memory as every device manages it: a caching allocator over whatever maps memory, and views of bytes.

Small blocks (below 2 MiB) are cut from 8 MiB slabs; larger ones are mappings of their own. A freed block keeps its pages
and waits, by size class, for the next request of its class, so a large output is mapped once and not at every step.

The rule for memory that is freed while work is queued: a freed block is handed out again only when everything that had
been submitted to any queue before the free is done. So neither another queue nor the host can overwrite what queued
work still reads. When memory runs short, `take` waits for that work.
"""

from __future__ import annotations

import abc
import functools
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import cffi

from devrt.device import InvalidArgument, OutOfMemory, Placement
from devrt.ioctl.system import System
from devrt.recorder import Watched

ALIGNMENT = 64
HUGE = 2 << 20
SLAB = 8 << 20
CACHE_SHARE = 4  # freed memory that is kept: this fraction of all there is


class Block(NamedTuple):
    """Memory of one size class."""

    address: int
    nbytes: int


class Usage(NamedTuple):
    """Bytes: in live buffers, freed but waiting for queued work, kept for reuse, mapped from the system in all."""

    live: int
    pending: int
    cached: int
    mapped: int


class Source(Protocol):
    """Where an allocator's memory comes from. `name` is what has it ("cpu"), for errors; `limit` how many bytes there are;
    `granule` what blocks are a multiple of, so that no two share a line of a cache that is not coherent."""

    name: str
    limit: int
    granule: int

    def map(self, nbytes: int, alignment: int) -> int:
        """The address of fresh memory. Raises OutOfMemory."""
        ...

    def unmap(self, address: int, nbytes: int) -> None: ...
    def available(self) -> int:
        """Bytes that may be mapped as far as the system knows."""
        ...


@functools.lru_cache(maxsize=4096)
def size_class(nbytes: int, granule: int = ALIGNMENT) -> int:
    """`nbytes` rounded up to one of eight sizes per doubling, so at most an eighth is wasted; to multiples of `granule`."""
    step = max(HUGE if nbytes > HUGE else granule, 1 << max(0, (nbytes - 1).bit_length() - 4))
    return max(granule, -(-nbytes // step) * step)


class Retirement:
    """Actions that wait until everything queued before them is done. `stamp` gives what has been submitted per queue,
    `reached` whether all of it is done."""

    def __init__(self, stamp: Callable[[], tuple[int, ...]], reached: Callable[[tuple[int, ...]], bool]) -> None:
        self._stamp, self._reached = stamp, reached
        self._waiting: deque[tuple[tuple[int, ...], Callable[[], None]]] = deque()
        self.lock = threading.RLock()  # the allocator's too: its actions run inside `collect`

    def later(self, action: Callable[[], None]) -> None:
        with self.lock:
            self._waiting.append((self._stamp(), action))

    def collect(self) -> None:
        """Run what has become safe, oldest first."""
        if not self._waiting:
            return
        with self.lock:
            while self._waiting and self._reached(self._waiting[0][0]):
                self._waiting.popleft()[1]()

    def idle(self) -> bool:
        """Whether everything queued so far is done. Takes no lock."""
        return self._reached(self._stamp())


class Allocator:
    """Gives and takes back Blocks of one source's memory. `drain` waits for queued work."""

    def __init__(self, source: Source, retirement: Retirement, drain: Callable[[], None]) -> None:
        self._source, self._limit, self.retirement, self._drain = source, source.limit, retirement, drain
        self._lock, self._granule = retirement.lock, source.granule
        self._free: dict[int, list[Block]] = {}
        self._slabs: dict[int, int] = {}  # address -> blocks that are not free
        self._slab_at = self._slab_end = 0
        self._dropped: deque[Block] = deque()  # appended to by finalizers, which may run inside any of our own lines
        self._idle: deque[Block] = deque()  # likewise: nothing queued uses them
        self._owners: deque[object] = deque()  # of borrowed memory, likewise
        self._closed = False
        self._live = self._pending = self._cached = self._mapped = 0

    def take(self, nbytes: int) -> Block:
        """A block of at least `nbytes`; its contents are undefined. Raises OutOfMemory."""
        size = size_class(nbytes, self._granule)
        with self._lock:
            self._collect()
            block = self._reuse(size) or self._grow(size)
            self._live += size
            return block

    def drop(self, block: Block, idle: bool = False, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        """Free `block` from a finalizer: takes no lock, the work is done at the next call of the allocator. `idle`: nothing
        queued uses it, so it needs not wait.

        A closed allocator gets no such call, so it works at once, except when the interpreter is coming apart.
        """
        (self._idle if idle else self._dropped).append(block)
        if self._closed and not exiting():
            with self._lock:
                self._collect()

    def outlast(self, owner: object) -> None:
        """Keep the owner of borrowed memory until the work queued so far is done. From a finalizer: takes no lock."""
        if isinstance(owner, Lease) or not self.retirement.idle():
            self._owners.append(owner)

    def give(self, block: Block) -> None:
        """Free `block`; it is reused when the work queued so far is done."""
        with self._lock:
            self._live -= block.nbytes
            self._pending += block.nbytes
            self.retirement.later(lambda: self._recycle(block))
            self._collect()

    def usage(self) -> Usage:
        with self._lock:
            self._collect()
            return Usage(self._live, self._pending, self._cached, self._mapped)

    def trim(self, keep: int = 0) -> None:
        """Return cached mappings to the OS, largest first, until at most `keep` bytes are cached."""
        with self._lock:
            for size in sorted((s for s in self._free if s >= HUGE), reverse=True):
                blocks = self._free[size]
                while blocks and self._cached > keep:
                    self._cached -= size
                    self._unmap(blocks.pop().address, size)

    def close(self) -> None:
        """Unmap what is free; the rest follows as its buffers go, so that views of live buffers stay valid."""
        with self._lock:
            self._closed = True
            self._collect()
            self.trim()
            for address, used in list(self._slabs.items()):
                if not used:
                    self._release_slab(address)

    def after_fork(self) -> None:
        """A thread that is not here may have held the lock."""
        self._lock = self.retirement.lock = threading.RLock()

    def _collect(self) -> None:
        while self._idle:
            block = self._idle.popleft()
            self._live -= block.nbytes
            self._pending += block.nbytes
            self._recycle(block)
        while self._dropped:
            block = self._dropped.popleft()
            self._live -= block.nbytes
            self._pending += block.nbytes
            self.retirement.later(lambda block=block: self._recycle(block))  # type: ignore[misc]
        while self._owners:
            owner = self._owners.popleft()
            self.retirement.later(lambda owner=owner: let_go(owner))  # type: ignore[misc]
        self.retirement.collect()

    def _recycle(self, block: Block) -> None:
        with self._lock:
            self._pending -= block.nbytes
            if block.nbytes < HUGE:
                slab = block.address // SLAB * SLAB
                self._slabs[slab] -= 1
                if self._closed and not self._slabs[slab]:
                    self._release_slab(slab)
                    return
            elif self._closed:
                self._unmap(block.address, block.nbytes)
                return
            self._free.setdefault(block.nbytes, []).append(block)
            self._cached += block.nbytes
            if self._cached > self._limit // CACHE_SHARE:
                self.trim(self._limit // CACHE_SHARE)

    def _reuse(self, size: int) -> Block | None:
        blocks = self._free.get(size)
        if not blocks:
            return None
        block = blocks.pop()
        self._cached -= size
        if size < HUGE:
            self._slabs[block.address // SLAB * SLAB] += 1
        return block

    def _grow(self, size: int) -> Block:
        if size >= HUGE:
            return Block(self._map(size, HUGE), size)
        if self._slab_end - self._slab_at < size:
            self._slab_at = self._map(SLAB, SLAB)
            self._slab_end = self._slab_at + SLAB
            self._slabs[self._slab_at] = 0
        address = self._slab_at
        self._slab_at += size
        self._slabs[address // SLAB * SLAB] += 1
        return Block(address, size)

    def _map(self, nbytes: int, alignment: int) -> int:
        if nbytes > self._room():
            self._drain()
            self._collect()
            self.trim()
            room = self._room()
            if nbytes > room:
                raise OutOfMemory(f"the {self._source.name} has no {nbytes} bytes left",
                                  evidence=f"asked {nbytes}, free {room}, in buffers {self._live}, "
                                           f"machine {self._limit}",
                                  remedy="free buffers, or use a smaller batch")
        try:
            address = self._source.map(nbytes, alignment)
        except OutOfMemory:  # others use this memory too; what we keep for later may be what is missing
            self._drain()
            self._collect()
            if not self._cached:
                raise
            self.trim()
            address = self._source.map(nbytes, alignment)
        self._mapped += nbytes
        return address

    def _room(self) -> int:
        """Bytes that may still be mapped. A system may count pages only once they are touched, so our own mappings are held
        against its total as well."""
        return min(self._source.available(), self._limit - self._mapped)

    def _unmap(self, address: int, nbytes: int) -> None:
        self._source.unmap(address, nbytes)
        self._mapped -= nbytes

    def _release_slab(self, address: int) -> None:
        for blocks in self._free.values():
            gone = [block for block in blocks if block.address // SLAB * SLAB == address]
            self._cached -= sum(block.nbytes for block in gone)
            blocks[:] = [block for block in blocks if block not in gone] if gone else blocks
        del self._slabs[address]
        self._unmap(address, SLAB)


class Lease(abc.ABC):
    """Borrowed memory that the device must be told to give back."""

    @abc.abstractmethod
    def end(self) -> None:
        """Called once, when nothing queued uses it any more."""


def let_go(owner: object) -> None:
    """The end of an owner of borrowed memory: the caller's closure was the last to hold it."""
    if isinstance(owner, Lease):
        owner.end()


class MemoryBuffer(Watched):
    """A range of a device's memory, cut from `allocator` (`block`) or borrowed from `owner`. Dropping the last reference
    frees it too; a view of `host()` counts as a reference.

    `borrowed` memory was wrapped: it belongs to someone else (an ndarray, the pages of a file) and may be read-only, so
    results are never put there.
    """

    def __init__(self, device: Any, allocator: Allocator, nbytes: int, address: int, placement: Placement,
                 block: Block | None, owner: object = None) -> None:
        self.device, self.nbytes, self.address, self.placement = device, nbytes, address, placement
        self.freed, self.borrowed = False, block is None
        self._allocator, self._block, self._owner = allocator, block, owner

    def check(self) -> None:
        """Raises InvalidArgument after free."""
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
        self._tell()
        if self._block is not None:
            block, self._block = self._block, None
            self._allocator.give(block)
        elif self._owner is not None:
            owner, self._owner = self._owner, None
            self._allocator.retirement.later(lambda: let_go(owner))

    def __del__(self) -> None:
        block, owner = getattr(self, "_block", None), getattr(self, "_owner", None)
        if block is not None:
            self._allocator.drop(block)
        elif owner is not None:
            self._allocator.outlast(owner)

    def __repr__(self) -> str:
        name = self.device.properties.vendor
        return f"<{name} buffer of {self.nbytes} bytes at {self.address:#x}{', freed' if self.freed else ''}>"


# ---------------------------------------------------------------------------------------------------------------------
# The host's memory


def host_available(system: System) -> int:
    """Bytes that can be taken without swapping."""
    return _meminfo(system, "MemAvailable")


def host_bytes(system: System) -> int:
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


# ---------------------------------------------------------------------------------------------------------------------
# Views


@functools.lru_cache(maxsize=1)
def _ffi() -> cffi.FFI:
    return cffi.FFI()


def words(address: int) -> Any:
    """The 64-bit words at `address`, as a cffi pointer to index."""
    return _ffi().cast("volatile uint64_t *", address)


def byte_view(address: int, nbytes: int, owner: object) -> memoryview:
    """`nbytes` at `address`, writable; the view keeps `owner` alive."""
    ffi = _ffi()
    if not nbytes:
        return memoryview(bytearray())
    pointer = ffi.gc(ffi.cast("char *", address), functools.partial(_release, owner))
    return memoryview(ffi.buffer(pointer, nbytes)).cast("B")


def _release(owner: object, pointer: object) -> None:
    """A view is gone; holding `owner` until now was the point."""
