"""ioctls of /dev/kfd about queues. Linux kfd_chardev.c, kfd_queue.c, kfd_process_queue_manager.c, kfd_doorbell.c."""

from __future__ import annotations

import errno

from devrt.ioctl.errors import ENOTSUPP
from devrt.ioctl.kfd import AllocFlag, MmapType, QueueType, SvmAttribute, SvmFlag, mmap_offset
from devrt.ioctl.system import view
from devrt.virtual.amd.calls import Call, handles
from devrt.virtual.amd.card import QueueKind
from devrt.virtual.amd.machine import EOP_BYTES
from devrt.virtual.amd.process import Bo, Notifier, ProcessDevice, Queue, SvmRange
from devrt.virtual.amd.vm import LIMIT, Mapping, Vm
from devrt.virtual.errors import fail
from devrt.virtual.memory import PAGE

LEAST_RING = 1024            # bytes: a smaller ring is taken for one of this size
MOST_PERCENT, MOST_PRIORITY = 100, 15
MOST_CU_BITS = 1024
QUEUE_IDS = 1024             # of one process
_KINDS: dict[QueueType, QueueKind] = {
    QueueType.COMPUTE: "pm4", QueueType.COMPUTE_AQL: "aql", QueueType.SDMA: "sdma", QueueType.SDMA_XGMI: "sdma",
    QueueType.SDMA_BY_ENG_ID: "sdma"}
# Doorbells of SDMA engines: fixed slots, odd queues in the upper half (kfd_doorbell.c; amdgpu_doorbell.h, layout 1).
_SDMA_SLOTS, _SLOTS_PER_ENGINE, _MIRROR = 0x100, 10, 512
_SDMA_RANGE = range(0xF0, 0x200)


def _check(percent: int, priority: int, ring: int, ring_bytes: int) -> None:
    """What CREATE_QUEUE and UPDATE_QUEUE check alike."""
    if percent > MOST_PERCENT or priority > MOST_PRIORITY or ring_bytes & (ring_bytes - 1):
        fail(errno.EINVAL)
    if ring >= LIMIT:
        fail(errno.EFAULT)


@handles("AMDKFD_IOC_CREATE_QUEUE")
def create_queue(call: Call) -> None:
    args, process = call.args, call.process
    percent = args.queue_percentage & 0xFF  # bits 15:8 name the XCC of a PM4 queue
    _check(percent, args.queue_priority, args.ring_base_address, args.ring_size)
    if max(args.read_pointer_address, args.write_pointer_address, args.eop_buffer_address,
           args.ctx_save_restore_address) >= LIMIT:
        fail(errno.EFAULT)
    if args.queue_type not in _KINDS:
        fail(ENOTSUPP)
    kind = QueueType(args.queue_type)
    device = process.device(args.gpu_id)
    model = device.card.model
    engines = model.sdma_engines + model.sdma_xgmi_engines
    if kind is QueueType.SDMA_BY_ENG_ID and args.sdma_engine_id >= engines:
        fail(errno.EINVAL)
    _, vm = process.bound(args.gpu_id, errno.ESRCH)
    ring_bytes = max(args.ring_size, LEAST_RING)
    buffers = _buffers(call, device, vm, ring_bytes)
    if device.lost:
        fail(errno.EIO)
    if len(process.queues_on(device.card)) >= model.queues_per_process:
        fail(errno.ENOSPC)
    sdma = _sdma_queue(device, kind, args.sdma_engine_id)
    slot = _doorbell(device, sdma)
    doorbells = process.doorbells(device)
    doorbells.bytes()[8 * slot:8 * slot + 8] = bytes(8)  # what an earlier queue left there
    number = next(n for n in range(QUEUE_IDS) if n not in process.queues)
    engine = device.card.engine.create_queue(
        vm.space, _KINDS[kind], ring=args.ring_base_address, ring_bytes=ring_bytes, rptr=args.read_pointer_address,
        wptr=args.write_pointer_address, doorbell=view(doorbells.host + 8 * slot, 8),
        notify=Notifier(process, device.card, call.driver.reset), eop=args.eop_buffer_address,
        cwsr=args.ctx_save_restore_address)
    queue = Queue(number, device, kind, engine, slot, sdma, buffers, args.ring_base_address, ring_bytes, percent,
                  args.queue_priority)
    if not queue.active or queue.priority:
        engine.update(queue.ring, ring_bytes, percent, queue.priority)
    if device.evicted:
        engine.evict()
    process.queues[number] = queue
    device.slots.add(slot)
    if sdma is not None:
        device.card.sdma_taken.add(sdma)
    for mapping in buffers:
        mapping.queues += 1
    args.queue_id = number
    args.doorbell_offset = mmap_offset(MmapType.DOORBELL, args.gpu_id, 8 * slot)


def _buffers(call: Call, device: ProcessDevice, vm: Vm, ring_bytes: int) -> list[Mapping]:
    """The mappings that a new queue needs. Raises OSError: EINVAL where one is missing or has another size."""
    args, model = call.args, device.card.model
    pointers = [_exactly(vm, args.write_pointer_address, PAGE), _exactly(vm, args.read_pointer_address, PAGE)]
    found = [*pointers, _exactly(vm, args.ring_base_address, ring_bytes)]
    wptr = pointers[0].owner
    if model.has_mes and not (isinstance(wptr, Bo) and wptr.flags & AllocFlag.GTT and wptr.card is device.card):
        fail(errno.EINVAL)
    if args.queue_type not in (QueueType.COMPUTE, QueueType.COMPUTE_AQL):
        return found
    if args.eop_buffer_address:
        if args.eop_buffer_size != EOP_BYTES:
            fail(errno.EINVAL)
        found.append(_exactly(vm, args.eop_buffer_address, EOP_BYTES))
    area = model.save_area
    if args.ctl_stack_size != area.control_stack or args.ctx_save_restore_size != area.cwsr:
        fail(errno.EINVAL)
    if not _always_mapped(call, args.gpu_id, args.ctx_save_restore_address, area.allocation):
        found.append(_exactly(vm, args.ctx_save_restore_address, area.allocation))
    return found


def _exactly(vm: Vm, address: int, nbytes: int) -> Mapping:
    """The buffer that begins at the page of an address and is of that size; memory of SVM is no buffer."""
    mapping = vm.at(address)
    whole = nbytes // PAGE * PAGE  # of less than a page only the beginning is checked
    if mapping is None or isinstance(mapping.owner, SvmRange) or mapping.va != address // PAGE * PAGE or (
            whole not in (0, mapping.nbytes)):
        fail(errno.EINVAL)
    return mapping


def _always_mapped(call: Call, gpu_id: int, address: int, nbytes: int) -> bool:
    """Whether SVM ranges that stay mapped cover all of it."""
    end = address + nbytes
    for span in sorted(call.process.ranges, key=lambda s: s.start):
        mapped = span.access.get(gpu_id, SvmAttribute.NO_ACCESS) != SvmAttribute.NO_ACCESS
        if span.start <= address < span.end and mapped and span.flags & SvmFlag.GPU_ALWAYS_MAPPED:
            address = span.end
    return address >= end


def _sdma_queue(device: ProcessDevice, kind: QueueType, engine_id: int) -> tuple[int, int] | None:
    """A free (engine, queue) of the card, engines in turn. Raises OSError: ENOMEM."""
    model, taken = device.card.model, device.card.sdma_taken
    if _KINDS[kind] != "sdma":
        return None
    engines = {QueueType.SDMA: range(model.sdma_engines), QueueType.SDMA_BY_ENG_ID: range(engine_id, engine_id + 1),
               QueueType.SDMA_XGMI: range(model.sdma_engines, model.sdma_engines + model.sdma_xgmi_engines)}[kind]
    for queue in range(model.sdma_queues_per_engine):
        for engine in engines:
            if (engine, queue) not in taken:
                return engine, queue
    fail(errno.ENOMEM)


def _doorbell(device: ProcessDevice, sdma: tuple[int, int] | None) -> int:
    if sdma is not None:
        return _SDMA_SLOTS + _SLOTS_PER_ENGINE * sdma[0] + (sdma[1] >> 1) + _MIRROR * (sdma[1] & 1)
    return next(slot for slot in range(2 * _MIRROR) if slot not in device.slots and slot % _MIRROR not in _SDMA_RANGE)


@handles("AMDKFD_IOC_DESTROY_QUEUE")
def destroy_queue(call: Call) -> None:
    queue = call.process.queues.get(call.args.queue_id)
    if queue is None:
        fail(errno.EINVAL)
    call.process.remove(queue)


def _queue(call: Call) -> Queue:
    found = call.process.queues.get(call.args.queue_id)
    return found if found is not None else fail(errno.EFAULT)


@handles("AMDKFD_IOC_UPDATE_QUEUE")
def update_queue(call: Call) -> None:
    args = call.args
    percent = args.queue_percentage & 0xFF
    _check(percent, args.queue_priority, args.ring_base_address, args.ring_size)
    queue = _queue(call)
    if queue.device.lost:
        fail(errno.EIO)
    ring_bytes = max(args.ring_size, LEAST_RING)
    if args.ring_base_address and (args.ring_base_address, ring_bytes) != (queue.ring, queue.ring_bytes):
        _, vm = call.process.bound(queue.device.card.node.gpu_id, errno.EFAULT)
        try:
            mapping = _exactly(vm, args.ring_base_address, ring_bytes)
        except OSError:
            fail(errno.EFAULT)
        queue.buffers[2].queues -= 1  # the ring: see _buffers
        queue.buffers[2] = mapping
        mapping.queues += 1
    queue.ring, queue.ring_bytes = args.ring_base_address, ring_bytes
    queue.percent, queue.priority = percent, args.queue_priority
    queue.engine.update(queue.ring, ring_bytes, percent, queue.priority)


@handles("AMDKFD_IOC_SET_CU_MASK")
def set_cu_mask(call: Call) -> None:
    count = call.args.num_cu_mask
    if not count or count % 32:
        fail(errno.EINVAL)
    call.words(call.args.cu_mask_ptr, min(count, MOST_CU_BITS) // 32)
    _queue(call)  # which compute units run a workgroup makes no difference here


@handles("AMDKFD_IOC_GET_QUEUE_WAVE_STATE")
def get_queue_wave_state(call: Call) -> None:
    queue = _queue(call)
    if queue.active or _KINDS[queue.type] == "sdma":
        fail(errno.EINVAL)
    call.args.ctl_stack_used_size = call.args.save_area_used_size = 0  # a queue stops between dispatches: no wave is saved


@handles("AMDKFD_IOC_ALLOC_QUEUE_GWS")
def alloc_queue_gws(call: Call) -> None:
    if call.args.queue_id not in call.process.queues:
        fail(errno.EINVAL)
    fail(errno.ENODEV)  # cards without global wave sync
