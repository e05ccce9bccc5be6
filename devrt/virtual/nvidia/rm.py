"""The resource manager's escapes: /dev/nvidiactl and /dev/nvidiaN (arch/nvalloc/unix/src/escape.c, kernel-open/nvidia/nv.c).

Two ways to say no, as in the kernel: what escape.c itself refuses (a size, the wrong node) is EINVAL; what RM refuses is a status
in the struct, and ioctl(2) says 0.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devrt.ioctl.nv_alloc import NVOS33_FLAGS, flag
from devrt.ioctl.nv_classes import Class
from devrt.ioctl.nv_status import Status
from devrt.virtual.client import Client
from devrt.virtual.errors import fail
from devrt.virtual.memory import PAGE, pages
from devrt.virtual.nvidia.card import Card
from devrt.virtual.nvidia.files import NodeFile
from devrt.virtual.nvidia.objects import (
    CpuMapping,
    Device,
    Memory,
    Object,
    RmClient,
    SharedData,
    Subdevice,
    Usermode,
    VirtualMemory,
)
from devrt.virtual.nvidia.status import Refused, refuse

if TYPE_CHECKING:
    from devrt.virtual.nvidia.driver import NvidiaDriver

OLD_ALLOC_BYTES = 32       # NVOS21_PARAMETERS, which NV_ESC_RM_ALLOC takes as well as NVOS64
_ROOTS = (Class.NV01_ROOT, Class.NV01_ROOT_NON_PRIV, Class.NV01_ROOT_CLIENT)
_EVENTS = (Class.NV01_EVENT, Class.NV01_EVENT_OS_EVENT)
_OF_NO_ENGINE = {  # objects of every GPU, which the class list leaves out (g_gpu_class_list.c, genericClassDescriptorList and on)
    Class.NV01_DEVICE_0, Class.NV20_SUBDEVICE_0, *_EVENTS, Class.NV01_MEMORY_SYSTEM, Class.NV01_MEMORY_SYSTEM_OS_DESCRIPTOR,
    Class.GT200_DEBUGGER, Class.AMPERE_SMC_PARTITION_REF, Class.AMPERE_SMC_EXEC_PARTITION_REF}


@dataclass
class Call:
    """One escape. `args` is a pointer to its struct."""

    driver: NvidiaDriver
    process: Client
    file: NodeFile
    args: Any

    @property
    def owner(self) -> NodeFile:
        """The control descriptor that the call counts as made on."""
        return self.file.control or self.file

    def client(self, handle: int) -> RmClient:
        """Raises Refused: INVALID_CLIENT where there is none, or it is of another descriptor."""
        found = self.driver.clients.get(handle)
        return found if found is not None and found.file is self.owner else refuse(Status.NV_ERR_INVALID_CLIENT)


Handler = Callable[[Call], None]
HANDLERS: dict[str, Handler] = {}
CONTROL_ONLY: set[str] = set()   # escapes of /dev/nvidiactl
CARD_ONLY: set[str] = set()      # of /dev/nvidiaN
BY_STATUS: dict[str, str] = {}   # escape -> the field that RM answers in


def handles(name: str, *, status: str = "", control: bool = False, card: bool = False) -> Callable[[Handler], Handler]:
    """Register a handler of the escape of that name."""
    def register(handler: Handler) -> Handler:
        HANDLERS[name] = handler
        if control:
            CONTROL_ONLY.add(name)
        if card:
            CARD_ONLY.add(name)
        if status:
            BY_STATUS[name] = status
        return handler
    return register


def alive(driver: NvidiaDriver, card: Card | None) -> Card | None:
    """The card of a call that reaches the GPU. Raises Refused: GPU_IS_LOST."""
    if card is not None:
        if not card.lost and driver.faults.take("lost"):
            driver.lose(card, "GPU has fallen off the bus.")
        if card.lost:
            refuse(Status.NV_ERR_GPU_IS_LOST)
    return card


# ---------------------------------------------------------------------------------------------------------------------
# Descriptors


@handles("NV_ESC_REGISTER_FD")
def register_fd(call: Call) -> None:
    other = call.process.files.find(call.args.ctl_fd)
    if call.file.control is not None or not isinstance(other, NodeFile) or other.card is not None or other is call.file:
        fail(errno.EINVAL)
    if other.control is not None:
        fail(errno.EINVAL)
    call.file.control = other
    other.references += 1


@handles("NV_ESC_CHECK_VERSION_STR", control=True)
def check_version(call: Call) -> None:
    """cmd 0 strict, '2' query: NV_RM_API_VERSION_CMD_*; reply 1: recognised."""
    text = bytes(call.driver.tables.nvrm.ffi.buffer(call.args.versionString)).rstrip(b"\0").decode("ascii", "replace")
    same = text == call.driver.machine.driver
    call.args.reply = int(same)
    version = call.driver.machine.driver.encode()
    call.args.versionString = version
    if not same and call.args.cmd != ord("2"):
        call.driver.write_log(3, f"NVRM: API mismatch: the client has the version {text}, but\n"
                                 f"NVRM: this kernel module has the version {call.driver.machine.driver}.")
        fail(errno.EINVAL)


@handles("NV_ESC_WAIT_OPEN_COMPLETE")
def wait_open_complete(call: Call) -> None:
    call.args.rc, call.args.adapterStatus = 0, Status.NV_OK


@handles("NV_ESC_STATUS_CODE", control=True)
def status_code(call: Call) -> None:
    card = next((one for one in call.driver.cards if one.node.bus == call.args.bus), None)
    if card is None:
        fail(errno.EINVAL)
    call.args.status = Status.NV_ERR_GPU_IS_LOST if card.lost else Status.NV_OK


@handles("NV_ESC_ALLOC_OS_EVENT", status="Status")
def alloc_os_event(call: Call) -> None:
    if call.process.files.find(call.args.fd) is None:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)


@handles("NV_ESC_FREE_OS_EVENT", status="Status")
def free_os_event(call: Call) -> None:
    if call.process.files.find(call.args.fd) is None:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)


# ---------------------------------------------------------------------------------------------------------------------
# Objects


@handles("NV_ESC_RM_ALLOC", status="status")
def rm_alloc(call: Call) -> None:
    args = call.args
    if call.file.card is not None and args.hClass not in _EVENTS:
        fail(errno.EINVAL)
    if args.hClass in _ROOTS:
        _alloc_client(call)
        return
    allocate(call, args.hRoot, args.hObjectParent, args.hClass, args.pAllocParms)


def _alloc_client(call: Call) -> None:
    args, clients = call.args, call.driver.clients
    if args.hObjectParent not in (0, args.hRoot):
        refuse(Status.NV_ERR_INVALID_OBJECT_PARENT)
    handle = args.hObjectNew or args.hRoot or next(n for n in range(0xC1D00001, 0xC1E00000) if n not in clients)
    if handle in clients:
        refuse(Status.NV_ERR_INSERT_DUPLICATE_NAME)
    made = RmClient(None, handle, Class.NV01_ROOT_CLIENT, None, file=call.owner, process=call.process)  # type: ignore[arg-type]
    made.client = made
    made.objects[handle] = made
    clients[handle] = call.owner.clients[handle] = made
    args.hRoot = args.hObjectNew = handle


def allocate(call: Call, root: int, parent_handle: int, class_id: int, parameters: int) -> None:
    """Make an object of a class under a parent, with the parameters at an address of the process, and answer its handle."""
    from devrt.virtual.nvidia.rm_alloc import CLASSES
    row = CLASSES.get(class_id) or refuse(Status.NV_ERR_INVALID_CLASS)
    client = call.client(root)
    parent = client.find(parent_handle)
    card = alive(call.driver, parent.card)
    if row.parents and not isinstance(parent, row.parents):
        refuse(Status.NV_ERR_INVALID_OBJECT_PARENT)
    tables = call.driver.tables.nvrm
    struct = tables.variants["hClass"].get(class_id, "")
    if row.needs_parameters and not parameters:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    if card is not None and class_id not in card.model.classes and class_id not in _OF_NO_ENGINE:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    handle = client.new_handle(call.args.hObjectNew)
    given = tables.new(struct) if struct and parameters else None
    if given is not None:
        tables.ffi.buffer(given)[:] = call.process.memory.read(parameters, tables.size(struct))
    made = row.make(call, client, parent, handle, class_id, given)
    client.add(made)
    if given is not None:
        call.process.memory.write(parameters, bytes(tables.ffi.buffer(given)))
    call.args.hObjectNew = handle


@handles("NV_ESC_RM_ALLOC_MEMORY", status="params.status", card=True)
def rm_alloc_memory(call: Call) -> None:
    from devrt.virtual.nvidia.rm_alloc import pin_pages
    if call.args.params.hClass != Class.NV01_MEMORY_SYSTEM_OS_DESCRIPTOR:
        refuse(Status.NV_ERR_INVALID_CLASS)
    pin_pages(call)


@handles("NV_ESC_RM_FREE", status="status", control=True)
def rm_free(call: Call) -> None:
    client = call.client(call.args.hRoot)
    if call.args.hObjectOld == client.handle:
        call.driver.free_client(client)
        return
    client.free(client.find(call.args.hObjectOld))


@handles("NV_ESC_RM_DUP_OBJECT", status="status", control=True)
def rm_dup_object(call: Call) -> None:
    """Memory under another parent: both handles hold its pages."""
    args = call.args
    client, source = call.client(args.hClient), call.client(args.hClientSrc)
    parent, one = client.find(args.hParent), source.find(args.hObjectSrc)
    if not isinstance(one, Memory) or one.store is None:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    if not isinstance(parent, (Device, Subdevice)):
        refuse(Status.NV_ERR_INVALID_OBJECT_PARENT)
    if parent.card is not one.card:
        refuse(Status.NV_ERR_INVALID_DEVICE)
    handle = client.new_handle(args.hObject)
    client.add(Memory(client, handle, one.class_id, parent, nbytes=one.nbytes, page_bytes=one.page_bytes, store=one.store.hold(),
                      vram=one.vram, cpu_read_only=one.cpu_read_only, gpu_read_only=one.gpu_read_only))
    args.hObject = handle


# ---------------------------------------------------------------------------------------------------------------------
# Mappings


@handles("NV_ESC_RM_MAP_MEMORY", status="params.status", control=True)
def rm_map_memory(call: Call) -> None:
    params = call.args.params
    client = call.client(params.hClient)
    device = client.find(params.hDevice)
    if not isinstance(device, (Device, Subdevice, RmClient)):
        refuse(Status.NV_ERR_INVALID_OBJECT_PARENT)
    one = client.find(params.hMemory)
    card = alive(call.driver, one.card)
    store, limit, read_only = _mappable(one, card)
    if params.offset >= limit:
        refuse(Status.NV_ERR_INVALID_BASE)
    if not params.length or params.offset + params.length > limit:
        refuse(Status.NV_ERR_INVALID_LIMIT)
    wants_write = flag(NVOS33_FLAGS, "ACCESS", params.flags) != 1
    if read_only and wants_write:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    of_card = card if isinstance(one, Usermode) or isinstance(one, Memory) and one.vram else None
    file = _mapping_file(call, of_card)
    start, end = params.offset // PAGE * PAGE, pages(params.offset + params.length)
    if start and call.process.foreign:  # which maps its descriptor itself, from the start of what stands behind it
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    bar1 = of_card if isinstance(one, Memory) and of_card is not None else None
    if bar1 is not None:
        bar1.take_bar1(end - start)
    address = call.driver.new_address(of_card, end - start) + params.offset % PAGE
    call.process.files.stand_for(call.args.fd, store.pool.file.fd)
    mapping = CpuMapping(one, address, store, start, end - start, wants_write, bar1)
    one.mappings[address] = file.mapping = mapping
    params.pLinearAddress = address


def _mappable(one: Object, card: Card | None) -> tuple[Any, int, bool]:
    """(pages, bytes that may be mapped, whether only for reading)"""
    if isinstance(one, Memory):
        if one.store is None:  # the process has its own pages already
            refuse(Status.NV_ERR_NOT_SUPPORTED)
        return one.store, one.nbytes, one.cpu_read_only
    if isinstance(one, Usermode) and card is not None:
        return card.usermode, card.usermode.nbytes, False
    if isinstance(one, SharedData) and one.store is not None:
        return one.store, one.store.nbytes, True
    refuse(Status.NV_ERR_NOT_SUPPORTED)


def _mapping_file(call: Call, card: Card | None) -> NodeFile:
    """The descriptor that the mapping is put on: of the GPU for its memory and registers, a control descriptor otherwise."""
    try:
        file = call.process.files.find(call.args.fd)
    except OSError:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    if not isinstance(file, NodeFile) or file.card is not card:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    if file.mapping is not None:
        refuse(Status.NV_ERR_STATE_IN_USE)
    return file


@handles("NV_ESC_RM_UNMAP_MEMORY", status="status", control=True)
def rm_unmap_memory(call: Call) -> None:
    one = call.client(call.args.hClient).find(call.args.hMemory)
    mapping = one.mappings.get(call.args.pLinearAddress) or refuse(Status.NV_ERR_OBJECT_NOT_FOUND)
    mapping.release()


@handles("NV_ESC_RM_MAP_MEMORY_DMA", status="status", control=True)
def rm_map_memory_dma(call: Call) -> None:
    """Map memory into the device's own address space, which no channel of an externally owned one uses."""
    args, client = call.args, call.client(call.args.hClient)
    virtual = client.typed(args.hDma, VirtualMemory)
    memory = client.typed(args.hMemory, Memory)
    alive(call.driver, memory.card)
    if not args.length or args.offset + args.length > memory.nbytes:
        refuse(Status.NV_ERR_INVALID_LIMIT)
    fixed = args.flags >> 15 & 1
    va = args.dmaOffset if fixed else max((at + size for at, size in virtual.ranges.items()), default=1 << 32)
    size = pages(args.length)
    if va % PAGE or va + size - 1 > virtual.limit:
        refuse(Status.NV_ERR_INVALID_OFFSET)
    if any(va < at + nbytes and at < va + size for at, nbytes in virtual.ranges.items()):
        refuse(Status.NV_ERR_NO_MEMORY)
    virtual.ranges[va] = size
    memory.dma.append((virtual, va))
    args.dmaOffset = va


@handles("NV_ESC_RM_UNMAP_MEMORY_DMA", status="status", control=True)
def rm_unmap_memory_dma(call: Call) -> None:
    args, client = call.args, call.client(call.args.hClient)
    virtual = client.typed(args.hDma, VirtualMemory)
    memory = client.typed(args.hMemory, Memory)
    if (virtual, args.dmaOffset) not in memory.dma:
        refuse(Status.NV_ERR_OBJECT_NOT_FOUND)
    memory.dma.remove((virtual, args.dmaOffset))
    del virtual.ranges[args.dmaOffset]


# ---------------------------------------------------------------------------------------------------------------------
# Controls


@handles("NV_ESC_RM_CONTROL", status="status", control=True)
def rm_control(call: Call) -> None:
    from devrt.virtual.nvidia.controls import CONTROLS, ControlCall
    args, driver = call.args, call.driver
    tables = driver.tables
    client = call.client(args.hClient)
    name = tables.nvrm.names["cmd"].get(args.cmd, "")
    row = tables.controls.get(name)
    size = tables.nvrm.size(row.struct) if row is not None else args.paramsSize
    if bool(args.params) != bool(args.paramsSize) or args.paramsSize != size:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    target = client.find(args.hObject)
    handler = CONTROLS.get(name)
    if row is None or handler is None or not isinstance(target, handler.of):
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    if not handler.without_gpu:
        alive(driver, target.card)
    planned = driver.faults.status(name)
    if planned:
        refuse(planned)
    given = tables.nvrm.new(row.struct) if row.struct else None
    if given is not None:
        tables.nvrm.ffi.buffer(given)[:] = call.process.memory.read(args.params, size)
    handler.act(ControlCall(call, client, target, given))
    if given is not None:
        call.process.memory.write(args.params, bytes(tables.nvrm.ffi.buffer(given)))


def perform(driver: NvidiaDriver, process: Client, file: NodeFile, name: str, args: Any) -> None:
    """Carry out an escape. Raises OSError for what the kernel itself refuses."""
    call = Call(driver, process, file, args)
    if name in CONTROL_ONLY and file.card is not None or name in CARD_ONLY and file.card is None:
        fail(errno.EINVAL)
    field = BY_STATUS.get(name)
    if field is None:
        HANDLERS[name](call)
        return
    *outer, last = field.split(".")
    place = getattr(args, outer[0]) if outer else args
    try:
        planned = driver.faults.status(name)
        if planned:
            refuse(planned)
        HANDLERS[name](call)
        setattr(place, last, Status.NV_OK)
    except Refused as refused:
        setattr(place, last, refused.status)
