"""RM's objects: a tree under each client, by handle. Freeing one frees what is below it, and what depends on it, first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from devrt.ioctl.nv_status import Status
from devrt.virtual.memory import AddressSpace
from devrt.virtual.nvidia.card import Card
from devrt.virtual.nvidia.channel import Channel
from devrt.virtual.nvidia.mig import ComputeInstance, GpuInstance
from devrt.virtual.nvidia.status import refuse
from devrt.virtual.pool import Store

if TYPE_CHECKING:
    from devrt.virtual.client import Client as Process
    from devrt.virtual.nvidia.files import NodeFile
    from devrt.virtual.nvidia.uvm import UvmMapping


@dataclass(eq=False)
class Object:
    """`dependants` are objects elsewhere in the tree that cannot outlive this one."""

    client: RmClient
    handle: int
    class_id: int
    parent: Object | None
    children: dict[int, Object] = field(default_factory=dict)
    dependants: list[Object] = field(default_factory=list)
    mappings: dict[int, CpuMapping] = field(default_factory=dict)  # by pLinearAddress

    @property
    def card(self) -> Card | None:
        """The GPU that the object is of; a client has none."""
        return self.parent.card if self.parent is not None else None

    def up(self, kind: type[Found]) -> Found | None:
        """The nearest object of a kind above this one."""
        at = self.parent
        while at is not None and not isinstance(at, kind):
            at = at.parent
        return at

    def release(self) -> None:
        """Called when the object has nothing below it any more."""


Found = TypeVar("Found", bound=Object)


@dataclass(eq=False)
class CpuMapping:
    """Memory or registers that a descriptor may map. `address` is what RM calls pLinearAddress."""

    object: Object
    address: int
    store: Store
    start: int  # in `store`
    nbytes: int
    writable: bool
    bar1: Card | None = None

    def release(self) -> None:
        if self.bar1 is not None:
            self.bar1.bar1_used -= self.nbytes
        self.object.mappings.pop(self.address, None)


@dataclass(eq=False)
class RmClient(Object):
    """The root of a tree. `file` is the control descriptor it was made on: no other may use it."""

    file: NodeFile | None = None
    process: Process | None = None
    objects: dict[int, Object] = field(default_factory=dict)
    next_handle: int = 0xCAF00001

    def find(self, handle: int, status: int = Status.NV_ERR_OBJECT_NOT_FOUND) -> Object:
        """Raises Refused."""
        found = self.objects.get(handle)
        return found if found is not None else refuse(status)

    def typed(self, handle: int, kind: type[Found], status: int = Status.NV_ERR_INVALID_OBJECT) -> Found:
        """As `find`, of a kind of object."""
        found = self.find(handle)
        return found if isinstance(found, kind) else refuse(status)

    def new_handle(self, wanted: int) -> int:
        """The handle of a new object. Raises Refused where the wanted one is taken."""
        if wanted == self.handle:
            refuse(Status.NV_ERR_INVALID_OBJECT_HANDLE)
        if wanted in self.objects:
            refuse(Status.NV_ERR_INSERT_DUPLICATE_NAME)
        if wanted:
            return wanted
        while self.next_handle in self.objects:
            self.next_handle += 1
        self.next_handle += 1
        return self.next_handle - 1

    def add(self, made: Object) -> None:
        self.objects[made.handle] = made
        if made.parent is not None:
            made.parent.children[made.handle] = made

    def free(self, one: Object) -> None:
        """Free an object with all that is below it or depends on it."""
        if self.objects.get(one.handle) is not one:
            return
        for other in [*reversed(one.dependants), *reversed(one.children.values())]:
            other.client.free(other)
        for mapping in list(one.mappings.values()):
            mapping.release()
        one.release()
        self.objects.pop(one.handle, None)
        if one.parent is not None:
            one.parent.children.pop(one.handle, None)

    def all_of(self, kind: type[Found]) -> Iterator[Found]:
        for one in list(self.objects.values()):
            if isinstance(one, kind):
                yield one


@dataclass(eq=False)
class Device(Object):
    of: Card | None = None
    va_mode: int = 0

    @property
    def card(self) -> Card | None:
        return self.of


@dataclass(eq=False)
class Subdevice(Object):
    pass


@dataclass(eq=False)
class GpuSubscription(Object):
    """AMPERE_SMC_PARTITION_REF: its device sees this instance and nothing else."""

    instance: GpuInstance | None = None


@dataclass(eq=False)
class ComputeSubscription(Object):
    """AMPERE_SMC_EXEC_PARTITION_REF."""

    compute: ComputeInstance | None = None


@dataclass(eq=False)
class Confidential(Object):
    """NV_CONFIDENTIAL_COMPUTE: what is asked about confidential computing."""


@dataclass(eq=False)
class VaSpace(Object):
    """FERMI_VASPACE_A. `space` are its page tables; UVM owns them where `external`."""

    space: AddressSpace | None = None
    flags: int = 0
    registered: object = None  # the UVM descriptor that has it

    def release(self) -> None:
        if self.space is not None:
            self.space.close()


@dataclass(eq=False)
class Memory(Object):
    """VRAM or system memory (`store`), or pages of the process (`address`). `host` is where they lie here; `foreign`: there."""

    nbytes: int = 0
    page_bytes: int = 4096
    store: Store | None = None
    address: int = 0
    foreign: bool = False
    vram: bool = False
    cpu_read_only: bool = False
    gpu_read_only: bool = False
    gpu_mappings: list[UvmMapping] = field(default_factory=list)
    dma: list[tuple[VirtualMemory, int]] = field(default_factory=list)  # RM's own mappings, by GPU address

    @property
    def host(self) -> int:
        return self.store.host if self.store is not None else self.address

    def release(self) -> None:
        # UVM holds the pages of what it has mapped: they go with the last of its mappings.
        for virtual, va in self.dma:
            virtual.ranges.pop(va, None)
        if self.store is not None:
            self.store.drop()


@dataclass(eq=False)
class VirtualMemory(Object):
    """NV01_MEMORY_VIRTUAL: addresses of the device's own address space. `ranges`: GPU address -> bytes."""

    limit: int = 0
    ranges: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False)
class Group(Object):
    """KEPLER_CHANNEL_GROUP_A."""

    engine: int = 0
    va_space: VaSpace | None = None

    @property
    def channels(self) -> list[ChannelObject]:
        return [one for one in self.children.values() if isinstance(one, ChannelObject)]


@dataclass(eq=False)
class CtxShare(Object):
    va_space: VaSpace | None = None
    subcontext: int = 0


@dataclass(eq=False)
class ChannelObject(Object):
    """A GPFIFO channel. `uvm` is the descriptor that it is registered with."""

    channel: Channel | None = None
    of: Card | None = None
    va_space: VaSpace | None = None
    registered: object = None
    userd: Memory | None = None
    notifier: Memory | None = None
    scheduled: bool = False

    @property
    def gpu_channel(self) -> Channel:
        assert self.channel is not None  # set when it was made
        return self.channel

    def release(self) -> None:
        if self.channel is not None and self.of is not None:
            self.of.engine.detach(self.channel)
            self.of.channels.pop(self.channel.id, None)
            self.channel.userd.release()


@dataclass(eq=False)
class EngineObject(Object):
    """An object of a compute, copy or inline class on a channel."""

    engine: int = 0

    def release(self) -> None:
        if isinstance(self.parent, ChannelObject) and self.parent.channel is not None:
            channel = self.parent.channel
            channel.classes = tuple(one.class_id for one in self.parent.children.values() if one is not self)


@dataclass(eq=False)
class Debugger(Object):
    target: EngineObject | None = None


@dataclass(eq=False)
class Event(Object):
    notify_index: int = 0
    source: Object | None = None
    count: int = 0


@dataclass(eq=False)
class Usermode(Object):
    pass


@dataclass(eq=False)
class SharedData(Object):
    """RM_USER_SHARED_DATA: a page that `devrt.virtual.nvidia.health` keeps up to date."""

    store: Store | None = None
    polled: int = 0
    closing: Any = None  # ends what keeps it up to date

    def release(self) -> None:
        if self.closing is not None:
            self.closing()
        if self.store is not None:
            self.store.drop()


