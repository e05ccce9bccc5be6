"""One card in the driver: its pages and who has how many of them, its engine, its counters."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from devrt.ioctl.system import System, punch_hole
from devrt.virtual.amd.machine import GpuModel, GpuNode, Notify
from devrt.virtual.errors import fail
from devrt.virtual.faults import Faults
from devrt.virtual.memory import AddressSpace, pages
from devrt.virtual.pool import Pool, Store

QueueKind = Literal["pm4", "aql", "sdma"]


class EngineQueue(Protocol):
    """A queue as the driver sees it (devrt.virtual.amd.gpu.GpuQueue)."""

    faulted: object  # why it stopped, nothing while it works

    def update(self, ring: int, ring_bytes: int, percent: int, priority: int) -> None: ...
    def destroy(self) -> None: ...
    def evict(self) -> None: ...
    def restore(self) -> None: ...


class Engine(Protocol):
    """A GPU as the driver sees it (devrt.virtual.amd.gpu.Gpu)."""

    def create_queue(self, space: AddressSpace, kind: QueueKind, *, ring: int, ring_bytes: int, rptr: int, wptr: int,
                     doorbell: memoryview, notify: Notify, eop: int = 0, cwsr: int = 0) -> EngineQueue: ...
    def close(self) -> None: ...


EngineFactory = Callable[[GpuModel, System, Faults], Engine]


def native_engine(model: GpuModel, system: System, faults: Faults) -> Engine:
    """The GPU that runs packets and machine code."""
    from devrt.virtual.amd import gpu  # its compilers are not needed before the first queue
    maker: Any = gpu.Gpu
    engine: Engine = maker(model, system, faults)
    return engine


@dataclass(eq=False)
class CardStore(Store):
    """Pages of a card, which it counts."""

    card: Card | None = None
    vram: bool = False

    def released(self) -> None:
        if self.card is not None:
            self.card.account(self.vram, -self.nbytes)
            del self.card.live[self.offset]


class Card:
    """Methods are called with the driver's lock held."""

    def __init__(self, node: GpuNode, host: System, faults: Faults, make_engine: EngineFactory) -> None:
        self.node, self._host, self._faults, self._make_engine = node, host, faults, make_engine
        # Twice what may be allocated, so that holes between allocations never are what it fails for.
        self.pool = Pool(host, f"renderD{node.render_minor}", 2 * (node.vram_usable + node.gtt_usable))
        self.live: dict[int, CardStore] = {}  # by the offset they are mapped by
        self.vram_used = self.gtt_used = 0
        self.vram_lost = 0          # how often a reset lost what was in VRAM
        self.last_fault = (0, 0)    # address and status of the last page fault
        self.sdma_taken: set[tuple[int, int]] = set()  # (engine, queue) of all processes
        self._engine: Engine | None = None

    @property
    def model(self) -> GpuModel:
        return self.node.model

    @property
    def engine(self) -> Engine:
        """Started by its first queue."""
        if self._engine is None:
            self._engine = self._make_engine(self.model, self._host, self._faults)
        return self._engine

    def allocate(self, nbytes: int, vram: bool) -> CardStore:
        """Pages of VRAM, or of system memory for this card. Raises OSError: ENOMEM."""
        size = pages(nbytes)
        used, most = (self.vram_used, self.node.vram_usable) if vram else (self.gtt_used, self.node.gtt_usable)
        if used + size > most:
            fail(errno.ENOMEM)
        try:
            offset = self.pool.file.take(size, 2 << 20 if size >= 2 << 20 else 4096)
        except MemoryError:
            fail(errno.ENOMEM)
        store = CardStore(self.pool, offset, size, card=self, vram=vram)
        self.account(vram, size)
        self.live[store.offset] = store
        return store

    def account(self, vram: bool, nbytes: int) -> None:
        if vram:
            self.vram_used += nbytes
        else:
            self.gtt_used += nbytes

    def lose_memory(self) -> None:
        """What a reset does to VRAM: nothing of it is left."""
        self.vram_lost += 1
        for store in list(self.live.values()):
            if store.vram:
                punch_hole(self.pool.file.fd, store.offset, store.nbytes)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self.pool.close()
