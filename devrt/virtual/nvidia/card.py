"""One card in the driver: its memory and who has how much of it, what of it is mapped through BAR1, its engine, its counters."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from devrt.ioctl.nv_status import Status
from devrt.ioctl.system import System, punch_hole
from devrt.virtual.faults import Faults
from devrt.virtual.memory import pages
from devrt.virtual.nvidia.channel import Channel
from devrt.virtual.nvidia.faults import MmuFault, SmError
from devrt.virtual.nvidia.machine import GpuModel, GpuNode
from devrt.virtual.nvidia.mig import GpuInstance
from devrt.virtual.nvidia.status import refuse
from devrt.virtual.pool import OwnFile, Pool, Store

USERMODE_BYTES = 0x10000  # the page of doorbells: clc361.h, NVC361_SIZE
_LARGE = 2 << 20
Report = Callable[["Channel | None", int, str], None]


class Engine(Protocol):
    """A GPU as the driver sees it (devrt.virtual.nvidia.gpu.VirtualGpu)."""

    sm_errors: list[SmError]
    mmu_faults: list[MmuFault]

    def attach(self, channel: Channel) -> None: ...
    def detach(self, channel: Channel) -> None: ...
    def enable(self, channel: Channel, on: bool) -> None: ...
    def settle(self) -> None: ...
    def clear_errors(self, channel: Channel) -> None: ...
    def close(self) -> None: ...


EngineFactory = Callable[[GpuModel, System, Faults, Report, memoryview], Engine]


def native_engine(model: GpuModel, system: System, faults: Faults, report: Report, doorbell: memoryview) -> Engine:
    """The GPU that carries methods out and runs machine code."""
    from devrt.virtual.nvidia import dispatch, gpu  # their compilers are not needed before the first channel
    executor = dispatch.Executor(model.sm, system)
    return gpu.VirtualGpu(model.sm, faults, report, doorbell, executor, sum(model.tpcs))


@dataclass(eq=False)
class CardStore(Store):
    """Pages of a card's memory, which it counts."""

    card: Card | None = None
    instance: GpuInstance | None = None

    def released(self) -> None:
        if self.card is not None:
            self.card.vram_used -= self.nbytes
            if self.instance is not None:
                self.card.used_by[self.instance.number] -= self.nbytes
            self.card.live.discard(self)


@dataclass
class Health:
    """What the card counts and measures; injected faults and tests change it."""

    celsius: float = 41.0
    memory_celsius: float = 44.0
    dram_corrected: int = 0
    dram_uncorrected: int = 0
    sram_corrected: int = 0
    sram_uncorrected: int = 0
    remapped_correctable: int = 0
    remapped_uncorrectable: int = 0
    remap_pending: bool = False
    remap_failed: bool = False
    replays: int = 0
    link_errors: int = 0
    throttle: int = 0          # reasonMask of RUSD
    recovery_action: int = 0
    errors: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=64))  # (Xid, message)


class Card:
    """Methods are called with the driver's lock held."""

    def __init__(self, node: GpuNode, host: System, faults: Faults, make_engine: EngineFactory, report: Report) -> None:
        self.node, self._host, self._faults, self._make_engine, self._report = node, host, faults, make_engine, report
        # Twice what may be allocated, so that holes between allocations never are what it fails for.
        self.pool = Pool(host, f"nvidia{node.index}", 2 * node.vram_usable)
        self.usermode = Store(OwnFile(host, "usermode", USERMODE_BYTES), 0, USERMODE_BYTES)
        self.live: set[CardStore] = set()
        self.vram_used = self.bar1_used = 0
        self.used_by: Counter[int] = Counter()  # bytes of VRAM by GPU instance
        self.opens = 0             # of its node
        self.attached = 0          # by clients, without an open node
        self.lost = False          # it answers nothing any more, until its last descriptor is closed and it is opened again
        self.gone = False          # fallen off the bus: not then either
        self.health = Health()
        self.channels: dict[int, Channel] = {}  # by number
        self._engine: Engine | None = None

    @property
    def model(self) -> GpuModel:
        return self.node.model

    @property
    def ready(self) -> bool:
        """Whether RM has attached the GPU: its node is open, or a client asked for it."""
        return self.opens > 0 or self.attached > 0

    @property
    def engine(self) -> Engine:
        """Started by its first channel."""
        if self._engine is None:
            self._engine = self._make_engine(self.model, self._host, self._faults, self._report, self.usermode.bytes())
        return self._engine

    @property
    def started(self) -> Engine | None:
        return self._engine

    def allocate(self, nbytes: int, alignment: int, own: bool, instance: GpuInstance | None = None) -> CardStore:
        """Fresh pages of VRAM, of an `instance` where the GPU is split, in a file of their `own` or with others. Raises Refused:
        NO_MEMORY."""
        size = pages(nbytes)
        if self.vram_used + size > self.node.vram_usable:
            refuse(Status.NV_ERR_NO_MEMORY)
        if instance is not None and self.used_by[instance.number] + size > instance.part(self.node.vram_usable):
            refuse(Status.NV_ERR_NO_MEMORY)
        try:
            pool = OwnFile(self._host, f"nvidia{self.node.index}", size) if own else self.pool
            offset = 0 if own else pool.file.take(size, max(alignment, _LARGE if size >= _LARGE else 4096))
        except (MemoryError, OSError):
            refuse(Status.NV_ERR_NO_MEMORY)
        store = CardStore(pool, offset, size, card=self, instance=instance)
        self.vram_used += size
        if instance is not None:
            self.used_by[instance.number] += size
        self.live.add(store)
        return store

    def take_bar1(self, nbytes: int) -> None:
        """Map so much of VRAM for a CPU. Raises Refused: NO_MEMORY where BAR1 is full."""
        if self.bar1_used + nbytes > self.node.bar1_bytes:
            refuse(Status.NV_ERR_NO_MEMORY)
        self.bar1_used += nbytes

    def new_channel_id(self) -> int:
        """The lowest free number. Raises Refused: NO_FREE_FIFOS."""
        number = next((n for n in range(2048) if n not in self.channels), None)
        return number if number is not None else refuse(Status.NV_ERR_NO_FREE_FIFOS)

    def lose_memory(self) -> None:
        """What a reset does to VRAM: nothing of it is left."""
        for store in list(self.live):
            punch_hole(store.pool.file.fd, store.offset, store.nbytes)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self.usermode.drop()
        self.pool.close()
