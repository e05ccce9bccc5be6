"""Classes that NV_ESC_RM_ALLOC makes objects of: under which parents, with which parameters, and what RM refuses of them
(src/kernel/rmapi/resource_list.h, and the constructor of each class)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from devrt.ioctl.nv_alloc import ATTR, ATTR2, NVOS02_FLAGS, AllocFlag, CtxShareFlag, EngineType, VaSpaceFlag, flag
from devrt.ioctl.nv_classes import GENERATIONS, Class
from devrt.ioctl.nv_status import Status
from devrt.virtual.foreign import ProcessSpace
from devrt.virtual.memory import PAGE, Access, pages
from devrt.virtual.nvidia import health, mode_controls
from devrt.virtual.nvidia.card import Card
from devrt.virtual.nvidia.channel import NOTIFIER_BYTES, USERD_BYTES, Channel
from devrt.virtual.nvidia.objects import (
    ChannelObject,
    CtxShare,
    Debugger,
    Device,
    EngineObject,
    Event,
    GpuSubscription,
    Group,
    Memory,
    Object,
    RmClient,
    SharedData,
    Subdevice,
    Usermode,
    VaSpace,
    VirtualMemory,
)
from devrt.virtual.nvidia.rm import Call
from devrt.virtual.nvidia.share import instance_of, share_of
from devrt.virtual.nvidia.status import refuse
from devrt.virtual.pool import OwnFile, Store, take

Make = Callable[[Call, RmClient, Object, int, int, Any], Object]
_MOST_ENTRIES = 1 << 16     # the width of GPPut's field in a channel's RAM (dev_ram.h: limit2)
_NOTIFIERS = 3              # slots of a channel (nvos.h: NV_CHANNELGPFIFO_NOTIFICATION_TYPE__SIZE_1)
_MEMORY_TYPES = 18          # nvos.h: NVOS32_NUM_MEM_TYPES
_VIRTUAL = 0x80000          # nvos.h: NVOS32_ALLOC_FLAGS_VIRTUAL
_VIDMEM = 0                 # NVOS32_ATTR_LOCATION_VIDMEM
_PAGE_BYTES = {1: 4096, 2: 64 << 10, 3: 2 << 20}
_SYSTEM_POOL_PAGE = 4096
_HOPPER = 90


@dataclass(frozen=True)
class Row:
    parents: tuple[type[Object], ...]
    needs_parameters: bool
    make: Make


def _card(parent: Object) -> Card:
    card = parent.card
    assert card is not None  # every parent below a client has one
    return card


# ---------------------------------------------------------------------------------------------------------------------
# The GPU


def _device(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    if given is None:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    if given.deviceId >= 32:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    cards = call.driver.cards
    card = cards[given.deviceId] if given.deviceId < len(cards) else None
    if card is None or not card.ready:  # nobody has its node open
        refuse(Status.NV_ERR_INVALID_STATE)
    if card.lost:
        refuse(Status.NV_ERR_GPU_IS_LOST)
    if given.hClientShare not in (0, 0xFFFFFFFF, client.handle) and given.hClientShare not in call.driver.clients:
        refuse(Status.NV_ERR_INVALID_CLIENT)
    if given.vaMode > 2:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    return Device(client, handle, class_id, parent, of=card, va_mode=given.vaMode)


def _subdevice(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    if given is not None and given.subDeviceId:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    return Subdevice(client, handle, class_id, parent)


def _va_space(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    if given.index not in (0, 1, 2) or given.vaBase and given.vaBase % PAGE:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    if given.flags & VaSpaceFlag.IS_EXTERNALLY_OWNED and given.flags & VaSpaceFlag.SHARED_MANAGEMENT:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    return VaSpace(client, handle, class_id, parent, space=ProcessSpace(call.driver.host, call.process.memory), flags=given.flags)


def _usermode(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    if given is not None and given.bPriv:
        refuse(Status.NV_ERR_INSUFFICIENT_PERMISSIONS)
    return Usermode(client, handle, class_id, parent)


def _debugger(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    if given.hAppClient not in call.driver.clients:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    target = call.driver.clients[given.hAppClient].objects.get(given.hClass3dObject)
    if not isinstance(target, EngineObject) or target.engine != EngineType.GRAPHICS:
        refuse(Status.NV_ERR_INVALID_OBJECT)
    made = Debugger(client, handle, class_id, parent, target=target)
    target.dependants.append(made)
    return made


def _event(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    source = client.find(given.hSrcResource)
    return Event(client, handle, class_id, parent, notify_index=given.notifyIndex & 0xFFFF, source=source)


def _shared_data(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    tables = call.driver.tables
    nbytes = pages(tables.nvrm.size("NV00DE_SHARED_DATA"))
    store = Store(OwnFile(call.driver.host, "nvidiactl", nbytes), 0, nbytes)
    made = SharedData(client, handle, class_id, parent, store=store, polled=given.polledDataMask)
    made.closing = health.keep_up_to_date(made, _card(parent), tables.nvrm)
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def _memory(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    vram = class_id == Class.NV01_MEMORY_LOCAL_USER
    # standard_mem.c, stdmemValidateParams; then video_mem.c and system_mem.c.
    if given.internalflags or not given.size:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    if given.owner in (0, 0xFFFFFFFF):
        refuse(Status.NV_ERR_INVALID_OWNER)
    if given.type >= _MEMORY_TYPES or given.flags & _VIRTUAL or vram != (flag(ATTR, "LOCATION", given.attr) == _VIDMEM):
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    alignment = given.alignment if given.flags & AllocFlag.ALIGNMENT_FORCE and given.alignment else PAGE
    if alignment & alignment - 1:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    page = _PAGE_BYTES.get(flag(ATTR, "PAGE_SIZE", given.attr), 0) or (2 << 20 if vram and given.size >= 2 << 20 else PAGE)
    nbytes = -(-given.size // page) * page
    card = _card(parent)
    store: Store
    if vram:
        instance = instance_of(parent)
        if card.node.instances and instance is None:  # there is no heap that is nobody's (vidmemGetHeap)
            refuse(Status.NV_ERR_INVALID_STATE)
        store = card.allocate(nbytes, max(alignment, min(page, 2 << 20)), call.process.foreign, instance)
    else:
        try:
            store = Store(OwnFile(call.driver.host, "nvidiactl", nbytes), 0, pages(nbytes)) if call.process.foreign else take(
                call.driver.pool, nbytes, max(alignment, _SYSTEM_POOL_PAGE))
        except OSError:
            refuse(Status.NV_ERR_NO_MEMORY)
    given.size, given.limit = nbytes, nbytes - 1
    given.offset = store.offset if vram else 0
    return Memory(client, handle, class_id, parent, nbytes=nbytes, page_bytes=page, store=store, vram=vram,
                  cpu_read_only=flag(ATTR2, "PROTECTION_USER", given.attr2) == 1,
                  gpu_read_only=flag(ATTR2, "PROTECTION_DEVICE", given.attr2) == 1)


def pin_pages(call: Call) -> None:
    """NV01_MEMORY_SYSTEM_OS_DESCRIPTOR: pages of the process, pinned until they are freed (osmemdesc.c, escape.c)."""
    params = call.args.params
    client = call.client(params.hRoot)
    parent = client.find(params.hObjectParent)
    if not isinstance(parent, Device):
        refuse(Status.NV_ERR_INVALID_OBJECT_PARENT)
    if parent.card is not None and parent.card.lost:
        refuse(Status.NV_ERR_GPU_IS_LOST)
    handle = client.new_handle(params.hObjectNew)
    nbytes = params.limit + 1
    if params.pMemory % PAGE:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    if nbytes % PAGE:
        refuse(Status.NV_ERR_INVALID_LIMIT)
    if not call.process.memory.covers(params.pMemory, nbytes, write=not flag(NVOS02_FLAGS, "ALLOC_USER_READ_ONLY", params.flags)):
        refuse(Status.NV_ERR_INVALID_ADDRESS)
    client.add(Memory(client, handle, params.hClass, parent, nbytes=nbytes, address=params.pMemory, foreign=call.process.foreign,
                      gpu_read_only=flag(NVOS02_FLAGS, "ALLOC_DEVICE_READ_ONLY", params.flags) == 1))
    params.hObjectNew = handle


def _virtual(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    if given.hVASpace not in (0, 0xFFFFFFFF):
        client.typed(given.hVASpace, VaSpace)
    limit = given.limit or (1 << 49) - 1
    return VirtualMemory(client, handle, class_id, parent, limit=limit)


# ---------------------------------------------------------------------------------------------------------------------
# Channels


def _group(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    engine = share_of(parent).engines.get(given.engineType)
    if engine is None:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    va_space = client.typed(given.hVASpace, VaSpace) if given.hVASpace else None
    made = Group(client, handle, class_id, parent, engine=engine, va_space=va_space)
    if va_space is not None:
        va_space.dependants.append(made)
    return made


def _ctx_share(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    assert isinstance(parent, Group)  # by the row
    va_space = client.typed(given.hVASpace, VaSpace) if given.hVASpace else parent.va_space
    if va_space is None or va_space.card is not parent.card:
        refuse(Status.NV_ERR_INVALID_OBJECT)
    _has_tables(va_space)
    taken = {one.subcontext for one in parent.children.values() if isinstance(one, CtxShare)}
    most = 64
    if given.flags == CtxShareFlag.SUBCONTEXT_SPECIFIED:
        number = given.subctxId
        if number >= most or number in taken:
            refuse(Status.NV_ERR_INVALID_ARGUMENT)
    elif given.flags == CtxShareFlag.SUBCONTEXT_SYNC:
        number = 0
    else:  # numbers from the top: low ones are left to graphics
        number = next((n for n in reversed(range(1, most)) if n not in taken), -1)
        if number < 0:
            refuse(Status.NV_ERR_NO_FREE_FIFOS)
    given.subctxId = number
    made = CtxShare(client, handle, class_id, parent, va_space=va_space, subcontext=number)
    va_space.dependants.append(made)
    return made


def _has_tables(va_space: VaSpace) -> None:
    """A space that UVM is to own has page tables from UVM_REGISTER_GPU_VASPACE on (kctxshareInitCommon). Raises Refused."""
    if va_space.flags & VaSpaceFlag.IS_EXTERNALLY_OWNED and va_space.registered is None:
        refuse(Status.NV_ERR_INVALID_STATE)


def _channel(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    card = _card(parent)
    if given.hContextShare and given.hVASpace:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    if card.node.instances == ():  # MIG mode is on, and nobody has made an instance
        refuse(Status.NV_ERR_INVALID_STATE)
    engines = share_of(parent).engines
    group = parent if isinstance(parent, Group) else None
    if group is None and given.hContextShare or group is not None and given.hVASpace:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    wanted = engines.get(given.engineType, 0)
    engine = group.engine if group is not None else wanted
    if engine not in card.model.engines or given.engineType and wanted != engine:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    share = client.typed(given.hContextShare, CtxShare) if given.hContextShare else None
    if share is not None and share.parent is not group:
        refuse(Status.NV_ERR_INVALID_OBJECT_PARENT)
    if share is not None:
        va_space = share.va_space
    elif given.hVASpace:
        va_space = client.typed(given.hVASpace, VaSpace)
    else:
        va_space = group.va_space if group is not None else None
    if va_space is None or va_space.space is None:
        refuse(Status.NV_ERR_INVALID_OBJECT)
    _has_tables(va_space)  # a channel without a context share is given one
    entries = given.gpFifoEntries
    if not 2 <= entries <= _MOST_ENTRIES or entries & entries - 1:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    if given.gpFifoOffset % 8:
        refuse(Status.NV_ERR_INVALID_OFFSET)
    userd = _userd(client, card, given, va_space)
    notifier = _notifier(client, given.hObjectError) if given.hObjectError else None
    number = card.new_channel_id()
    runlist = card.model.engines.index(engine)
    at = userd.host + given.userdOffset[0]
    made = ChannelObject(client, handle, class_id, parent, of=card, va_space=va_space, userd=userd, notifier=notifier)
    made.channel = Channel(
        id=number, token=runlist << 16 | number, engine=engine, space=va_space.space, gpfifo_va=given.gpFifoOffset,
        gpfifo_entries=entries, userd=call.driver.bytes_at(at, USERD_BYTES),
        notifier=call.driver.bytes_at(notifier.host, _NOTIFIERS * NOTIFIER_BYTES) if notifier is not None else None,
        classes=(), host_class=class_id, group=group)
    card.channels[number] = made.channel
    card.engine.attach(made.channel)
    given.cid = number
    for needed in (va_space, userd, notifier, share):
        if needed is not None:
            needed.dependants.append(made)
    return made


def _userd(client: RmClient, card: Card, given: Any, va_space: VaSpace) -> Memory:
    """Where GPGet and GPPut lie. Raises Refused."""
    if not given.hUserdMemory[0]:  # RM's own, which can't be mapped from Volta on without a kernel client
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    memory = client.typed(given.hUserdMemory[0], Memory, Status.NV_ERR_OBJECT_NOT_FOUND)
    offset = given.userdOffset[0]
    if offset % USERD_BYTES:
        refuse(Status.NV_ERR_INVALID_ADDRESS)
    if memory.foreign:  # what the engine polls must lie here
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    if offset + USERD_BYTES > memory.nbytes:
        refuse(Status.NV_ERR_INVALID_OFFSET)
    ring = va_space.space.entry(given.gpFifoOffset) if va_space.space is not None else 0
    if card.model.sm == _HOPPER and not memory.vram and ring & Access.VRAM:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    return memory


def _notifier(client: RmClient, handle: int) -> Memory:
    memory = client.typed(handle, Memory, Status.NV_ERR_OBJECT_NOT_FOUND)
    if memory.foreign:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    if memory.nbytes < _NOTIFIERS * NOTIFIER_BYTES:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    return memory


def _engine_object(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    assert isinstance(parent, ChannelObject)  # by the row
    channel, model = parent.gpu_channel, _card(parent).model
    graphics = channel.engine == EngineType.GRAPHICS
    if class_id == model.generation.compute:
        if not graphics:
            refuse(Status.NV_ERR_INVALID_ARGUMENT)
        faults = call.driver.faults
        if faults.stands("exclusive"):
            refuse(Status.NV_ERR_STATE_IN_USE)
    elif class_id in model.generation.copy:
        named = share_of(parent).engines.get(given.engineType, 0) if given is not None and given.version == 1 else 0
        if named not in (channel.engine, 0) and not graphics:
            refuse(Status.NV_ERR_INVALID_ARGUMENT)
    elif not graphics:  # inline-to-memory
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    if any(one.class_id == class_id for one in parent.children.values()):
        refuse(Status.NV_ERR_STATE_IN_USE)
    channel.classes = (*channel.classes, class_id)
    return EngineObject(client, handle, class_id, parent, engine=channel.engine)


_COMPUTE = {generation.compute for generation in GENERATIONS}
_COPY = {one for generation in GENERATIONS for one in generation.copy}
_INLINE = {Class.KEPLER_INLINE_TO_MEMORY_B, Class.BLACKWELL_INLINE_TO_MEMORY_A}
_USERMODE = {one for generation in GENERATIONS for one in generation.usermode}
_CHANNEL = {one for generation in GENERATIONS for one in generation.channel}

CLASSES: Mapping[int, Row] = {
    Class.NV01_DEVICE_0: Row((RmClient,), False, _device),
    Class.NV20_SUBDEVICE_0: Row((Device,), False, _subdevice),
    Class.FERMI_VASPACE_A: Row((Device, Subdevice), True, _va_space),
    Class.NV01_MEMORY_VIRTUAL: Row((Device,), True, _virtual),
    Class.NV01_MEMORY_LOCAL_USER: Row((Device, Subdevice), True, _memory),
    Class.NV01_MEMORY_SYSTEM: Row((Device,), True, _memory),
    Class.KEPLER_CHANNEL_GROUP_A: Row((Device,), True, _group),
    Class.FERMI_CONTEXT_SHARE_A: Row((Group,), True, _ctx_share),
    Class.GT200_DEBUGGER: Row((Device,), True, _debugger),
    Class.AMPERE_SMC_PARTITION_REF: Row((Subdevice,), True, mode_controls.subscribe_gpu),
    Class.AMPERE_SMC_EXEC_PARTITION_REF: Row((GpuSubscription,), True, mode_controls.subscribe_compute),
    Class.NV_CONFIDENTIAL_COMPUTE: Row((RmClient,), False, mode_controls.confidential),
    Class.RM_USER_SHARED_DATA: Row((Subdevice,), True, _shared_data),
    Class.NV01_EVENT: Row((), True, _event),
    Class.NV01_EVENT_OS_EVENT: Row((), True, _event),
    **dict.fromkeys(_USERMODE, Row((Subdevice,), False, _usermode)),
    **dict.fromkeys(_CHANNEL, Row((Device, Group), True, _channel)),
    **dict.fromkeys(_COMPUTE | _COPY | _INLINE, Row((ChannelObject,), False, _engine_object)),
}
