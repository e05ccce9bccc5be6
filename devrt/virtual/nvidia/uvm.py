"""The unified memory driver: who may use which GPU's page tables, external ranges, and what is mapped in them
(kernel-open/nvidia-uvm/uvm_va_space.c, uvm_map_external.c, uvm_user_channel.c)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from devrt.ioctl.nv_alloc import EngineType, VaSpaceFlag
from devrt.ioctl.nv_status import Status
from devrt.ioctl.uvm import InitFlag, Mapping_
from devrt.virtual.client import Client
from devrt.virtual.memory import PAGE, SPAN, Access
from devrt.virtual.nvidia.card import Card
from devrt.virtual.nvidia.mig import GpuInstance
from devrt.virtual.nvidia.objects import ChannelObject, GpuSubscription, Memory, RmClient, VaSpace
from devrt.virtual.nvidia.share import instance_of
from devrt.virtual.nvidia.status import Refused, refuse
from devrt.virtual.pool import Store

if TYPE_CHECKING:
    from devrt.virtual.nvidia.driver import NvidiaDriver

_MOST_GPUS = 256               # entries of UVM_MAP_EXTERNAL_ALLOCATION_PARAMS
_CONTEXT_BYTES = 2 << 20       # of a channel's range that context-switch buffers take here
_PAGE_SIZES = (2 << 20, 64 << 10, 4096)


@dataclass(eq=False)
class UvmMapping:
    """Memory at `base` of one GPU's address space. It holds the pages, so they outlive their handle."""

    gpu: UvmGpu
    memory: Memory
    store: Store | None
    base: int
    nbytes: int
    offset: int
    access: Access
    page_bytes: int

    def apply(self) -> None:
        self.gpu.pages().map(self.base, self.memory.host + self.offset, self.nbytes, self.access)

    def cut(self, start: int, end: int) -> list[UvmMapping]:
        """Unmap [start, end) of it, and return what is left. Raises Refused where that splits a page."""
        start, end = max(start, self.base), min(end, self.base + self.nbytes)
        if start % self.page_bytes or end % self.page_bytes:
            refuse(Status.NV_ERR_INVALID_ADDRESS)
        rest = []
        for first, last in ((self.base, start), (end, self.base + self.nbytes)):
            if first < last:
                store = self.store.hold() if self.store is not None else None
                rest.append(UvmMapping(self.gpu, self.memory, store, first, last - first, self.offset + first - self.base,
                                       self.access, self.page_bytes))
        self.gpu.unmap(start, end - start)
        self.drop()
        return rest

    def drop(self) -> None:
        if self in self.memory.gpu_mappings:
            self.memory.gpu_mappings.remove(self)
        if self.store is not None:
            self.store.drop()


@dataclass(eq=False)
class UvmGpu:
    """A GPU, or an instance of one, registered with a descriptor, and the page tables that it gave over."""

    card: Card
    instance: GpuInstance | None = None
    va_space: VaSpace | None = None

    def pages(self) -> Any:
        assert self.va_space is not None and self.va_space.space is not None  # asked for GPUs with page tables only
        return self.va_space.space

    def unmap(self, va: int, nbytes: int) -> None:
        if self.va_space is not None and self.va_space.space is not None and self.va_space.handle in self.va_space.client.objects:
            self.va_space.space.unmap(va, nbytes)
            if self.card.started is not None:
                self.card.started.settle()


@dataclass(eq=False)
class ExternalRange:
    base: int
    nbytes: int
    mappings: list[UvmMapping] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.base + self.nbytes


@dataclass(eq=False)
class UvmFile:
    """/dev/nvidia-uvm. `state`: "" before its first call, then "space", or "mm" for one that keeps another's memory alive."""

    process: Client
    state: str = ""
    flags: int = 0
    mm: UvmFile | None = None
    gpus: dict[bytes, UvmGpu] = field(default_factory=dict)
    peers: set[frozenset[bytes]] = field(default_factory=set)
    ranges: list[ExternalRange] = field(default_factory=list)
    channels: dict[tuple[int, int], tuple[bytes, ChannelObject, int]] = field(default_factory=dict)  # base of its buffers

    def gpu(self, uuid: bytes) -> UvmGpu:
        """Raises Refused: INVALID_DEVICE."""
        return self.gpus.get(uuid) or refuse(Status.NV_ERR_INVALID_DEVICE)

    def mapped_gpu(self, uuid: bytes) -> UvmGpu:
        """One that gave its page tables. Raises Refused: INVALID_DEVICE."""
        gpu = self.gpu(uuid)
        return gpu if gpu.va_space is not None else refuse(Status.NV_ERR_INVALID_DEVICE)

    def range_at(self, base: int, nbytes: int) -> ExternalRange:
        """The external range that holds these addresses. Raises Refused: INVALID_ADDRESS."""
        found = next((one for one in self.ranges if one.base <= base and base + nbytes <= one.end), None)
        return found if found is not None else refuse(Status.NV_ERR_INVALID_ADDRESS)

    def taken(self, base: int, nbytes: int) -> bool:
        """Whether a range or a channel's buffers lie there."""
        return any(base < one.end and one.base < base + nbytes for one in self.ranges) or any(
            base < at + _CONTEXT_BYTES and at < base + nbytes for _, _, at in self.channels.values() if at)

    def unmap_space(self, uuid: bytes) -> None:
        """Give a GPU's page tables back."""
        gpu = self.gpus[uuid]
        for key in [key for key, (of, _, _) in self.channels.items() if of == uuid]:
            self.channels.pop(key)[1].registered = None
        for span in self.ranges:
            for mapping in [one for one in span.mappings if one.gpu is gpu]:
                gpu.unmap(mapping.base, mapping.nbytes)
                mapping.drop()
                span.mappings.remove(mapping)
        if gpu.va_space is not None:
            gpu.va_space.registered = None
        gpu.va_space = None

    def forget(self, uuid: bytes) -> None:
        self.unmap_space(uuid)
        del self.gpus[uuid]
        self.peers = {pair for pair in self.peers if uuid not in pair}

    def free(self, span: ExternalRange) -> None:
        for mapping in span.mappings:
            mapping.gpu.unmap(mapping.base, mapping.nbytes)
            mapping.drop()
        self.ranges.remove(span)

    def close(self) -> None:
        for uuid in list(self.gpus):
            self.forget(uuid)
        for span in list(self.ranges):
            self.free(span)


@dataclass
class Call:
    driver: NvidiaDriver
    process: Client
    file: UvmFile
    args: Any

    def uuid(self, name: str) -> bytes:
        return bytes(self.driver.tables.uvm.ffi.buffer(getattr(self.args, name).uuid))

    def client(self, handle: int) -> RmClient:
        found = self.driver.clients.get(handle)
        if found is None or found.process is None or found.process.key != self.process.key:
            refuse(Status.NV_ERR_INVALID_CLIENT)
        return found


Handler = Callable[[Call], None]
HANDLERS: dict[str, Handler] = {}


def handles(name: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS[name] = handler
        return handler
    return register


def perform(driver: NvidiaDriver, process: Client, file: UvmFile, name: str, args: Any) -> None:
    """Carry out a call; its status goes into the struct."""
    if args is None:  # UVM_DEINITIALIZE
        return
    try:
        if not file.state and name not in ("UVM_INITIALIZE", "UVM_MM_INITIALIZE"):
            refuse(Status.NV_ERR_ILLEGAL_ACTION)
        if file.state == "mm" and name != "UVM_INITIALIZE":
            refuse(Status.NV_ERR_ILLEGAL_ACTION if name != "UVM_MM_INITIALIZE" else Status.NV_ERR_INVALID_ARGUMENT)
        planned = driver.faults.status(name)
        if planned:
            refuse(planned)
        args.rmStatus = Status.NV_OK
        HANDLERS[name](Call(driver, process, file, args))
    except Refused as refused:
        args.rmStatus = refused.status


def _outside_pages(base: int, nbytes: int) -> bool:
    """uvm_api_range_invalid_4k."""
    return not base or not nbytes or base % PAGE != 0 or nbytes % PAGE != 0 or base + nbytes > 1 << 64


# ---------------------------------------------------------------------------------------------------------------------
# Descriptors and GPUs


@handles("UVM_INITIALIZE")
def initialize(call: Call) -> None:
    file, flags = call.file, call.args.flags
    if flags & ~int(InitFlag.DISABLE_HMM | InitFlag.MULTI_PROCESS_SHARING_MODE):
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    if file.state == "mm" or file.state and file.flags != flags:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    file.state, file.flags = "space", flags


@handles("UVM_MM_INITIALIZE")
def mm_initialize(call: Call) -> None:
    try:
        other = call.process.files.find(call.args.uvmFd)
    except OSError:
        other = None
    if not isinstance(other, UvmFile) or other.state != "space":
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    if other.flags & InitFlag.MULTI_PROCESS_SHARING_MODE:
        call.args.rmStatus = Status.NV_WARN_NOTHING_TO_DO
        return
    if other.mm is not None or call.file.state:
        refuse(Status.NV_ERR_INVALID_STATE)
    other.mm, call.file.state = call.file, "mm"


@handles("UVM_PAGEABLE_MEM_ACCESS")
def pageable_mem_access(call: Call) -> None:
    call.args.pageableMemAccess = 0


@handles("UVM_REGISTER_GPU")
def register_gpu(call: Call) -> None:
    uuid = call.uuid("gpu_uuid")
    card = next((one for one in call.driver.cards if one.node.uuid == uuid), None) or refuse(Status.NV_ERR_GPU_UUID_NOT_FOUND)
    if card.lost:
        refuse(Status.NV_ERR_GPU_IS_LOST)
    instance = _instance(call) if card.node.instances else None
    if instance is not None:  # has a UUID of its own, by which it is called from now on
        uuid = card.node.instance_uuid(instance.number)
        call.args.gpu_uuid.uuid = uuid
    if uuid in call.file.gpus:
        refuse(Status.NV_ERR_INVALID_DEVICE)
    call.file.gpus[uuid] = UvmGpu(card, instance)
    call.args.numaEnabled, call.args.numaNodeId = 0, -1


def _instance(call: Call) -> GpuInstance | None:
    """The GPU instance that the caller is subscribed to (nvGpuOpsGetGpuInfo). Raises Refused."""
    return call.client(call.args.hClient).typed(call.args.hSmcPartRef, GpuSubscription).instance


@handles("UVM_UNREGISTER_GPU")
def unregister_gpu(call: Call) -> None:
    uuid = call.uuid("gpu_uuid")
    call.file.gpu(uuid)
    call.file.forget(uuid)


@handles("UVM_REGISTER_GPU_VASPACE")
def register_gpu_vaspace(call: Call) -> None:
    gpu = call.file.gpu(call.uuid("gpuUuid"))
    va_space = call.client(call.args.hClient).typed(call.args.hVaSpace, VaSpace)
    of = va_space.card, instance_of(va_space)
    if gpu.va_space is not None or of != (gpu.card, gpu.instance) or va_space.registered is not None:
        refuse(Status.NV_ERR_INVALID_DEVICE)
    if not va_space.flags & VaSpaceFlag.IS_EXTERNALLY_OWNED:
        refuse(Status.NV_ERR_INVALID_FLAGS)
    gpu.va_space, va_space.registered = va_space, call.file


@handles("UVM_UNREGISTER_GPU_VASPACE")
def unregister_gpu_vaspace(call: Call) -> None:
    uuid = call.uuid("gpuUuid")
    call.file.mapped_gpu(uuid)
    call.file.unmap_space(uuid)


@handles("UVM_ENABLE_PEER_ACCESS")
def enable_peer_access(call: Call) -> None:
    first, second = call.uuid("gpuUuidA"), call.uuid("gpuUuidB")
    one, other = call.file.gpu(first), call.file.gpu(second)
    pair = frozenset((first, second))
    if one.card is other.card or pair in call.file.peers:
        refuse(Status.NV_ERR_INVALID_DEVICE)
    if not call.driver.reaches(one.card, other.card):
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    call.file.peers.add(pair)


@handles("UVM_DISABLE_PEER_ACCESS")
def disable_peer_access(call: Call) -> None:
    file, pair = call.file, frozenset((call.uuid("gpuUuidA"), call.uuid("gpuUuidB")))
    if pair not in file.peers:
        refuse(Status.NV_ERR_INVALID_DEVICE)
    file.peers.remove(pair)
    cards = {file.gpus[uuid].card for uuid in pair}
    for span in file.ranges:
        for mapping in [one for one in span.mappings if {one.gpu.card, one.memory.card} == cards and one.memory.vram]:
            mapping.gpu.unmap(mapping.base, mapping.nbytes)
            mapping.drop()
            span.mappings.remove(mapping)


# ---------------------------------------------------------------------------------------------------------------------
# Ranges


@handles("UVM_CREATE_EXTERNAL_RANGE")
def create_external_range(call: Call) -> None:
    base, nbytes = call.args.base, call.args.length
    if _outside_pages(base, nbytes):
        refuse(Status.NV_ERR_INVALID_ADDRESS)
    if call.file.taken(base, nbytes):
        refuse(Status.NV_ERR_UVM_ADDRESS_IN_USE)
    call.file.ranges.append(ExternalRange(base, nbytes))


@handles("UVM_MAP_EXTERNAL_ALLOCATION")
def map_external_allocation(call: Call) -> None:
    args, file = call.args, call.file
    if _outside_pages(args.base, args.length):
        refuse(Status.NV_ERR_INVALID_ADDRESS)
    if not 0 < args.gpuAttributesCount <= _MOST_GPUS:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    span = file.range_at(args.base, args.length)
    for index in range(args.gpuAttributesCount):
        row = args.perGpuAttributes[index]
        if row.gpuMappingType > Mapping_.ReadOnly or row.gpuCachingType > 2:
            refuse(Status.NV_ERR_INVALID_ARGUMENT)
        gpu = file.mapped_gpu(bytes(call.driver.tables.uvm.ffi.buffer(row.gpuUuid.uuid)))
        _map(call, span, gpu, row.gpuMappingType == Mapping_.ReadOnly)


def _map(call: Call, span: ExternalRange, gpu: UvmGpu, read_only: bool) -> None:
    args, file = call.args, call.file
    if args.base + args.length > SPAN:
        refuse(Status.NV_ERR_OUT_OF_RANGE)
    if gpu.card.lost:
        refuse(Status.NV_ERR_GPU_IS_LOST)
    memory = call.client(args.hClient).typed(args.hMemory, Memory)
    _unmap(span, gpu, args.base, args.length)
    owner = memory.card
    assert owner is not None  # memory is below a device
    instance = instance_of(memory)
    uuids = {(one.card, one.instance): uuid for uuid, one in file.gpus.items()}
    if (owner, instance) not in uuids:
        refuse(Status.NV_ERR_INVALID_DEVICE)
    peer = (owner, instance) != (gpu.card, gpu.instance) and memory.vram
    if peer and frozenset((uuids[owner, instance], uuids[gpu.card, gpu.instance])) not in file.peers:
        refuse(Status.NV_ERR_INVALID_DEVICE)
    smallest = next((size for size in _PAGE_SIZES
                     if not (memory.page_bytes | args.base | args.length | args.offset) & size - 1), 0)
    if not smallest:
        refuse(Status.NV_ERR_INVALID_ADDRESS)
    if args.offset + args.length > memory.nbytes:
        refuse(Status.NV_ERR_INVALID_OFFSET)
    access = Access.EXECUTE | (Access.VRAM if memory.vram else Access.SYSTEM) | (Access.PEER if peer else Access(0))
    access |= Access.FOREIGN if memory.foreign else Access(0)
    if not read_only and not memory.gpu_read_only:
        access |= Access.WRITE
    mapping = UvmMapping(gpu, memory, memory.store.hold() if memory.store is not None else None, args.base, args.length,
                         args.offset, access, smallest)
    mapping.apply()
    memory.gpu_mappings.append(mapping)
    span.mappings.append(mapping)


def _unmap(span: ExternalRange, gpu: UvmGpu, base: int, nbytes: int) -> None:
    for mapping in [one for one in span.mappings if one.gpu is gpu and one.base < base + nbytes and base < one.base + one.nbytes]:
        rest = mapping.cut(base, base + nbytes)
        span.mappings.remove(mapping)
        span.mappings.extend(rest)
        mapping.memory.gpu_mappings.extend(rest)


@handles("UVM_UNMAP_EXTERNAL")
def unmap_external(call: Call) -> None:
    args = call.args
    if _outside_pages(args.base, args.length):
        refuse(Status.NV_ERR_INVALID_ADDRESS)
    span = call.file.range_at(args.base, args.length)
    _unmap(span, call.file.gpu(call.uuid("gpuUuid")), args.base, args.length)


@handles("UVM_FREE")
def free(call: Call) -> None:
    args = call.args
    span = next((one for one in call.file.ranges if one.base == args.base), None)
    if span is None or hasattr(args, "length") and args.length != span.nbytes:
        refuse(Status.NV_ERR_INVALID_ADDRESS)
    call.file.free(span)


@handles("UVM_VALIDATE_VA_RANGE")
def validate_va_range(call: Call) -> None:
    if _outside_pages(call.args.base, call.args.length):
        refuse(Status.NV_ERR_INVALID_ADDRESS)
    call.file.range_at(call.args.base, call.args.length)


# ---------------------------------------------------------------------------------------------------------------------
# Channels


@handles("UVM_REGISTER_CHANNEL")
def register_channel(call: Call) -> None:
    args, file = call.args, call.file
    uuid = call.uuid("gpuUuid")
    gpu = file.mapped_gpu(uuid)
    one = call.client(args.hClient).typed(args.hChannel, ChannelObject, Status.NV_ERR_INVALID_CHANNEL)
    if one.registered is not None:
        refuse(Status.NV_ERR_INVALID_CHANNEL)
    if one.va_space is not gpu.va_space:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    base = 0
    if one.gpu_channel.engine == EngineType.GRAPHICS:  # copy engines have nothing to save
        if _outside_pages(args.base, args.length):
            refuse(Status.NV_ERR_INVALID_ADDRESS)
        places = range(args.base, args.base + args.length - _CONTEXT_BYTES + 1, _CONTEXT_BYTES)
        base = next((at for at in places if not file.taken(at, _CONTEXT_BYTES)), 0)
        if not base:
            refuse(Status.NV_ERR_INVALID_ADDRESS)
    one.registered = file
    file.channels[args.hClient, args.hChannel] = uuid, one, base


@handles("UVM_UNREGISTER_CHANNEL")
def unregister_channel(call: Call) -> None:
    key = call.args.hClient, call.args.hChannel
    if key not in call.file.channels:
        refuse(Status.NV_ERR_INVALID_CHANNEL)
    call.file.channels.pop(key)[1].registered = None


def invalidate(file: UvmFile, address: int, nbytes: int) -> None:
    """Pages of the process go away: GPUs lose what they had of them."""
    for span in file.ranges:
        for mapping in span.mappings:
            if mapping.store is None:
                at = mapping.memory.address + mapping.offset
                first, last = max(at, address), min(at + mapping.nbytes, address + nbytes)
                if first < last:
                    mapping.gpu.unmap(mapping.base + first - at, last - first)

