"""What the driver keeps of one process that opened /dev/kfd: its GPUs, buffers, queues and events."""

from __future__ import annotations

import errno
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from devrt.ioctl.kfd import EventType, QueueType, SmiEvent
from devrt.virtual.amd.card import Card, EngineQueue
from devrt.virtual.amd.events import Events
from devrt.virtual.amd.machine import DOORBELL_BYTES
from devrt.virtual.amd.smi import SmiClient
from devrt.virtual.amd.vm import Mapping, Vm
from devrt.virtual.client import Client
from devrt.virtual.errors import fail
from devrt.virtual.memory import PAGE, MemoryFault, PageFile
from devrt.virtual.pool import Pool, Store, take

_VMID = 8  # the first that KFD has (kfd_device.c)


@dataclass(eq=False)
class Bo:
    """A buffer under its handle: a range of pages at `host` in this process. `flags` are of KFD's alloc flags, `offset` is where
    it lies in its PageFile (None: a process's own pages, registered by it). `store` are its pages; None: the process's own, at
    `host` there if it is foreign."""

    handle: int
    va: int
    nbytes: int
    flags: int
    host: int
    file: PageFile | None
    offset: int
    mapped: set[int]  # gpu_ids
    card: Card
    store: Store | None


@dataclass(eq=False)
class Queue:
    number: int
    device: ProcessDevice
    type: QueueType
    engine: EngineQueue
    slot: int                      # doorbell
    sdma: tuple[int, int] | None   # (engine, queue)
    buffers: list[Mapping]         # which must stay mapped
    ring: int
    ring_bytes: int
    percent: int
    priority: int

    @property
    def active(self) -> bool:
        return self.percent > 0 and self.ring > 0


@dataclass(eq=False)
class ProcessDevice:
    """A process on one card. `vm` comes with ACQUIRE_VM."""

    card: Card
    vm: Vm | None = None
    drm_file: object | None = None
    doorbells: Store | None = None
    slots: set[int] = field(default_factory=set)
    handles: dict[int, Bo] = field(default_factory=dict)
    lost: bool = False             # a reset took its queues: only a new process context gets others
    evicted: bool = False          # a page fault did: new ones don't run either
    trap: tuple[int, int] = (0, 0)
    scratch: int = 0
    policy: tuple[int, int] = (0, 0)
    free_numbers: list[int] = field(default_factory=list)  # a heap

    def new_handle(self) -> int:
        """The lowest free number, as the kernel's idr gives it."""
        return heapq.heappop(self.free_numbers) if self.free_numbers else len(self.handles)

    def free_handle(self, number: int) -> None:
        del self.handles[number]
        heapq.heappush(self.free_numbers, number)


@dataclass
class SvmRange:
    """Attributes of the pages of a process in [start, end)."""

    start: int
    end: int
    values: dict[int, int]         # PREFERRED_LOC, PREFETCH_LOC, GRANULARITY
    flags: int
    access: dict[int, int]         # gpu_id -> SvmAttribute of access
    mappings: list[tuple[Vm, Mapping]] = field(default_factory=list)


Reset = Callable[["Process", Card, int, int, bool], None]  # process, card, type, cause, whether memory was lost


class Process:
    """Methods are called with the driver's lock held, except those of `events` and of Notifier."""

    def __init__(self, client: Client, cards: list[Card], pool: Pool, log: Callable[[int, str], None]) -> None:
        self.client, self._pool, self.log = client, pool, log
        self.devices = {card.node.gpu_id: ProcessDevice(card) for card in cards}
        self.queues: dict[int, Queue] = {}
        self.user_buffers: set[Bo] = set()     # whose pages are the process's own
        self.events = Events()
        self.event_page: Store | None = None   # the driver's own, or that of the buffer below
        self.event_handle: int | None = None   # None where the page is no buffer of the process
        self.ranges: list[SvmRange] = []
        self.smi: list[SmiClient] = []
        self.opens = 0
        self.runtime = False
        self.xnack = False

    def device(self, gpu_id: int, number: int = errno.EINVAL) -> ProcessDevice:
        """Raises OSError `number` for a GPU that does not exist."""
        found = self.devices.get(gpu_id)
        return found if found is not None else fail(number)

    def bound(self, gpu_id: int, number: int = errno.ENODEV) -> tuple[ProcessDevice, Vm]:
        """A GPU whose VM was acquired. Raises OSError: EINVAL for an unknown GPU, `number` for one not acquired."""
        device = self.device(gpu_id)
        return (device, device.vm) if device.vm is not None else fail(number)

    def bo(self, handle: int, number: int) -> Bo:
        """Raises OSError: EINVAL where the handle's GPU does not exist, `number` where the buffer does not."""
        found = self.device(handle >> 32).handles.get(handle & 0xFFFFFFFF)
        return found if found is not None else fail(number)

    def doorbells(self, device: ProcessDevice) -> Store:
        """The slice of doorbells on a GPU, made when it is first asked for."""
        if device.doorbells is None:
            device.doorbells = self._pool.take_apart(DOORBELL_BYTES)
        return device.doorbells

    def own_event_page(self) -> Store:
        """The page of a process that gave none, as old programs do."""
        if self.event_page is None:
            self.event_page = take(self._pool, 32768)
            self.events.set_page(self.event_page.bytes())
        return self.event_page

    def close(self) -> None:
        """Give everything back: what the process left behind, and what it may not free itself."""
        for queue in list(self.queues.values()):
            self.remove(queue)
        self.events.close()
        for span in self.ranges:
            unmap_range(span)
        if self.event_page is not None:
            self.event_page.drop()
        for client in self.smi:
            client.close()
        for device in self.devices.values():
            for bo in device.handles.values():
                self.forget(bo)
            if device.doorbells is not None:
                device.doorbells.drop()
            if device.vm is not None:
                device.vm.drop()

    def forget(self, bo: Bo) -> None:
        """Unmap a buffer everywhere and give its pages back."""
        for gpu_id in list(bo.mapped):
            vm = self.devices[gpu_id].vm
            if vm is not None:
                for mapping in vm.owned(bo):
                    vm.unmap(mapping)
        bo.mapped.clear()
        self.user_buffers.discard(bo)
        if bo.store is not None:
            bo.store.drop()

    def remove(self, queue: Queue) -> None:
        """Stop a queue and let go of its buffers."""
        del self.queues[queue.number]
        queue.engine.destroy()
        queue.device.slots.discard(queue.slot)
        if queue.sdma is not None:
            queue.device.card.sdma_taken.discard(queue.sdma)
        for mapping in queue.buffers:
            mapping.queues -= 1

    def queues_on(self, card: Card) -> list[Queue]:
        return [queue for queue in list(self.queues.values()) if queue.device.card is card]

    def invalidate(self, address: int, nbytes: int) -> None:
        """The process's own pages go away (munmap): GPUs that had them lose them, as the kernel's notifier does it."""
        for bo in self.user_buffers:
            if bo.host < address + nbytes and address < bo.host + bo.nbytes:
                for gpu_id in bo.mapped:
                    vm = self.devices[gpu_id].vm
                    if vm is not None:
                        first, last = max(bo.host, address), min(bo.host + bo.nbytes, address + nbytes)
                        vm.space.unmap(bo.va + first - bo.host, last - first)
        for span in [s for s in self.ranges if s.start < address + nbytes and address < s.end]:
            unmap_range(span)
            self.ranges.remove(span)


def unmap_range(span: SvmRange) -> None:
    for vm, mapping in span.mappings:
        vm.unmap(mapping)
    span.mappings.clear()


class Notifier:
    """devrt.virtual.amd.machine.Notify of one process on one card. Locks nothing that the driver holds while it calls an
    engine, so an engine may be told to stop while it tells of a fault."""

    def __init__(self, process: Process, card: Card, reset: Reset) -> None:
        self._process, self._card, self._reset = process, card, reset

    def interrupt(self, context_id: int) -> None:
        self._process.events.interrupt(context_id)

    def memory_fault(self, fault: MemoryFault) -> None:
        process, card = self._process, self._card
        page = fault.va // PAGE * PAGE
        kinds = {"NotPresent": "not mapped" in fault.why or "not present" in fault.why, "ReadOnly": fault.access == "write",
                 "NoExecute": fault.access == "execute"}
        # Bits of VM_L2_PROTECTION_FAULT_STATUS: 4 not valid, 5 no read, 6 no write, 7 no execute, 18 a write, 23:20 the vmid.
        refused = 1 << 18 | 1 << 6 if kinds["ReadOnly"] else 1 << 7 if kinds["NoExecute"] else 1 << 5
        status = _VMID << 20 | refused | kinds["NotPresent"] << 4
        card.last_fault = page, status
        process.devices[card.node.gpu_id].evicted = True
        for queue in process.queues_on(card):
            queue.engine.evict()
        pid = process.client.key
        process.log(4, f"amdgpu {card.node.pci}: amdgpu: [gfxhub] page fault (src_id:0 ring:24 vmid:{_VMID} "
                    f"pasid:{pid & 0xFFFF})")
        process.log(4, f"amdgpu {card.node.pci}: amdgpu:   in page starting at address {page:#018x} from client 10")
        process.log(4, f"amdgpu {card.node.pci}: amdgpu: GCVM_L2_PROTECTION_FAULT_STATUS:{status:#010x}")
        for client in process.smi:
            client.tell(card, SmiEvent.VMFAULT, f"{pid:x}:devrt")
        heard = process.events.broadcast(EventType.MEMORY, {
            "failure": {name: int(value) for name, value in kinds.items()}, "va": page, "gpu_id": card.node.gpu_id})
        if not heard:
            process.log(3, f"kfd kfd: amdgpu: Process {pid} got unhandled exception")

    def hardware_exception(self, reset_type: int, cause: int, memory_lost: bool) -> None:
        self._reset(self._process, self._card, reset_type, cause, memory_lost)
