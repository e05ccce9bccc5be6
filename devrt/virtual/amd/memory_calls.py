"""ioctls of /dev/kfd about memory. Linux kfd_chardev.c, amdgpu_amdkfd_gpuvm.c."""

from __future__ import annotations

import errno
import os

from devrt.ioctl.kfd import AllocFlag, MmapType, mmap_offset
from devrt.virtual.amd.calls import Call, handles
from devrt.virtual.amd.card import Card, CardStore
from devrt.virtual.amd.files import DmaBuf, DrmFile
from devrt.virtual.amd.machine import DOORBELL_BYTES
from devrt.virtual.amd.process import Bo, ProcessDevice
from devrt.virtual.errors import fail
from devrt.virtual.memory import PAGE, Access, pages
from devrt.virtual.pool import Store

_LOCAL = AllocFlag.DOORBELL | AllocFlag.MMIO_REMAP  # pages of the GPU itself, as VRAM is
_DOMAINS = AllocFlag.VRAM | AllocFlag.GTT | AllocFlag.USERPTR | _LOCAL


@handles("AMDKFD_IOC_ALLOC_MEMORY_OF_GPU")
def alloc_memory_of_gpu(call: Call) -> None:
    args, process, flags = call.args, call.process, AllocFlag(call.args.flags)
    if not args.size:
        fail(errno.EINVAL)
    if any(args.va_addr < span.end and span.start < args.va_addr + args.size for span in process.ranges):
        fail(errno.EADDRINUSE)
    device = process.device(args.gpu_id)
    if flags & AllocFlag.DOORBELL and args.size != DOORBELL_BYTES or flags & AllocFlag.MMIO_REMAP and args.size != PAGE:
        fail(errno.EINVAL)
    process.bound(args.gpu_id)
    if not flags & _DOMAINS:
        fail(errno.EINVAL)
    store, host, offset = _pages(call, device, flags)
    number = device.new_handle()
    handle = args.gpu_id << 32 | number
    bo = device.handles[number] = Bo(handle, args.va_addr, args.size, int(flags), host, store.pool.file if store else None,
                                store.offset if store else 0, set(), device.card, store)
    if store is None:
        process.user_buffers.add(bo)
    args.handle, args.mmap_offset = handle, offset


def _pages(call: Call, device: ProcessDevice, flags: AllocFlag) -> tuple[Store | None, int, int]:
    """(pages, their address here, the offset to map them by) of a new buffer. The kernel looks at the domains in this order."""
    args, process = call.args, call.process
    if flags & (AllocFlag.VRAM | AllocFlag.GTT):
        vram = bool(flags & AllocFlag.VRAM)
        # A legacy AQL ring has half the pages, twice in a row.
        store = device.card.allocate(args.size // 2 if flags & AllocFlag.AQL_QUEUE_MEM else args.size, vram)
        if isinstance(device.drm_file, DrmFile):
            device.drm_file.show(store, not vram or bool(flags & AllocFlag.PUBLIC))
        return store, store.host, store.offset
    if flags & AllocFlag.USERPTR:
        address = args.mmap_offset
        if not address or address % PAGE:
            fail(errno.EINVAL)
        if not process.client.memory.covers(address, pages(args.size), bool(flags & AllocFlag.WRITABLE)):
            fail(errno.EFAULT)
        return None, address, address
    if flags & AllocFlag.DOORBELL:
        page = process.doorbells(device).hold()
        return page, page.host, mmap_offset(MmapType.DOORBELL, args.gpu_id)
    page = call.driver.registers.hold()
    return page, page.host, mmap_offset(MmapType.MMIO, args.gpu_id)


@handles("AMDKFD_IOC_FREE_MEMORY_OF_GPU")
def free_memory_of_gpu(call: Call) -> None:
    process, handle = call.process, call.args.handle
    bo = process.bo(handle, errno.EINVAL)
    if handle == process.event_handle:
        fail(errno.EPERM)
    if bo.mapped:
        fail(errno.EBUSY)
    device = process.devices[handle >> 32]
    device.free_handle(handle & 0xFFFFFFFF)
    if isinstance(device.drm_file, DrmFile) and bo.store is not None:
        device.drm_file.hide(bo.store)
    process.forget(bo)


def _devices(call: Call) -> list[int]:
    """The gpu_ids that a map or unmap names, from where it was interrupted."""
    args = call.args
    if not args.n_devices or args.n_success > args.n_devices:
        fail(errno.EINVAL)
    return call.words(args.device_ids_array_ptr, args.n_devices)[args.n_success:]


@handles("AMDKFD_IOC_MAP_MEMORY_TO_GPU")
def map_memory_to_gpu(call: Call) -> None:
    process = call.process
    process.device(call.args.handle >> 32)
    wanted = _devices(call)
    process.bound(call.args.handle >> 32)
    bo = process.bo(call.args.handle, errno.ENOMEM)
    for gpu_id in wanted:
        _, vm = process.bound(gpu_id)
        if gpu_id not in bo.mapped:
            access = access_of(call, bo, process.devices[gpu_id].card)
            twice = bool(bo.flags & AllocFlag.AQL_QUEUE_MEM)
            length = bo.nbytes // 2 if twice else bo.nbytes
            vm.map(bo.va, length, bo.host, access, bo)
            if twice:
                vm.map(bo.va + length, length, bo.host, access, bo)
            bo.mapped.add(gpu_id)
        call.args.n_success += 1


def access_of(call: Call, bo: Bo, card: Card) -> Access:
    """What the page table of `card` says of a buffer. Raises OSError: EINVAL where the card does not reach its pages."""
    flags = AllocFlag(bo.flags)
    access = Access.VRAM if flags & AllocFlag.VRAM else Access.SYSTEM
    if bo.card is not card and flags & (AllocFlag.VRAM | _LOCAL):
        link = call.driver.machine.link(card.node.index, bo.card.node.index)
        if link is None or call.driver.faults.link_down:
            fail(errno.EINVAL)
        access |= Access.PEER
    if bo.store is None and call.client.foreign:
        access |= Access.FOREIGN
    if flags & AllocFlag.WRITABLE:
        access |= Access.WRITE
    if flags & AllocFlag.EXECUTABLE:
        access |= Access.EXECUTE
    return access


@handles("AMDKFD_IOC_UNMAP_MEMORY_FROM_GPU")
def unmap_memory_from_gpu(call: Call) -> None:
    process = call.process
    process.device(call.args.handle >> 32)
    wanted = _devices(call)
    bo = process.bo(call.args.handle, errno.ENOMEM)
    for gpu_id in wanted:
        _, vm = process.bound(gpu_id)
        if not bo.mapped:
            fail(errno.EINVAL)
        mappings = vm.owned(bo)
        if any(mapping.queues for mapping in mappings):
            fail(errno.EBUSY)
        for mapping in mappings:
            vm.unmap(mapping)
        bo.mapped.discard(gpu_id)
        call.args.n_success += 1


# ---------------------------------------------------------------------------------------------------------------------
# Buffers as descriptors


def export(call: Call, store: CardStore, card: Card, nbytes: int, flags: int) -> int:
    """A descriptor of pages in the process."""
    buffer = DmaBuf(store.hold(), card, nbytes, flags)
    return call.client.files.install(os.dup(store.pool.file.fd), buffer)


@handles("AMDKFD_IOC_EXPORT_DMABUF")
def export_dmabuf(call: Call) -> None:
    call.process.bound(call.args.handle >> 32, errno.EINVAL)
    bo = call.process.bo(call.args.handle, errno.EINVAL)
    if not isinstance(bo.store, CardStore) or bo.flags & _LOCAL:
        fail(errno.EINVAL)
    call.args.dmabuf_fd = export(call, bo.store, bo.card, bo.nbytes, bo.flags)


@handles("AMDKFD_IOC_GET_DMABUF_INFO")
def get_dmabuf_info(call: Call) -> None:
    buffer = _dmabuf(call)
    call.args.size, call.args.gpu_id = buffer.nbytes, buffer.card.node.gpu_id
    call.args.flags = buffer.flags & (AllocFlag.VRAM | AllocFlag.GTT | AllocFlag.PUBLIC)
    call.args.metadata_size = 0


@handles("AMDKFD_IOC_IMPORT_DMABUF")
def import_dmabuf(call: Call) -> None:
    args, process = call.args, call.process
    process.device(args.gpu_id)
    buffer = _dmabuf(call)
    device, _ = process.bound(args.gpu_id)
    number = device.new_handle()
    args.handle = args.gpu_id << 32 | number
    flags = buffer.flags | AllocFlag.WRITABLE | AllocFlag.EXECUTABLE  # what an importer gets (kfd_ioctl_import_dmabuf)
    device.handles[number] = Bo(args.handle, args.va_addr, buffer.nbytes, int(flags), buffer.store.host,
                                buffer.store.pool.file, buffer.store.offset, set(), buffer.card, buffer.store.hold())


def _dmabuf(call: Call) -> DmaBuf:
    """Raises OSError: EBADF for what is no descriptor, EINVAL for one of something else."""
    found = call.client.files.find(call.args.dmabuf_fd)
    return found if isinstance(found, DmaBuf) else fail(errno.EINVAL)
