"""Queues of the virtual KFD: each check and its errno, as in Linux kfd_chardev.c and kfd_queue.c."""

from __future__ import annotations

import errno

import pytest

from devrt.ioctl.errors import ENOTSUPP
from devrt.ioctl.kfd import (
    KFD,
    MmapType,
    QueueType,
    split_mmap_offset,
)
from devrt.ioctl.system import MAP_SHARED, PROT_READ, PROT_WRITE, view
from tests.virtual.amd.kfd_client import ALL_GFX, VRAM, Client, FakeEngine, client, machine, refused

RW = PROT_READ | PROT_WRITE


@pytest.mark.parametrize("gfx", ALL_GFX)
@pytest.mark.parametrize("kind", [QueueType.COMPUTE, QueueType.COMPUTE_AQL, QueueType.SDMA, QueueType.SDMA_BY_ENG_ID])
def test_queues_are_created(gfx: str, kind: QueueType) -> None:
    with machine(gfx, "gtt=1G") as system, client(system) as made:
        fields = made.queue_fields(kind)
        answer = made.create_queue(fields)
        where, gpu_id, slot = split_mmap_offset(answer.doorbell_offset)
        assert (answer.queue_id, where, gpu_id) == (0, MmapType.DOORBELL, made.gpus[0]) and slot % 8 == 0
        told = FakeEngine.made[0].queues[0].arguments
        assert told["kind"] == {0: "pm4", 2: "aql"}.get(kind, "sdma")
        assert (told["ring"], told["ring_bytes"], told["rptr"], told["wptr"]) == (
            fields["ring_base_address"], 65536, fields["read_pointer_address"], fields["write_pointer_address"])
        address = system.mmap(made.kfd, 8192, RW, MAP_SHARED, answer.doorbell_offset & ~0x1FFF)
        view(address + slot, 8).cast("Q")[0] = 0x1122334455667788
        assert told["doorbell"].cast("Q")[0] == 0x1122334455667788
        system.munmap(address, 8192)
        made.call("DESTROY_QUEUE", queue_id=answer.queue_id)
        assert FakeEngine.made[0].queues[0].calls[-1] == "destroy"


@pytest.mark.parametrize(("change", "number"), [
    ({"queue_percentage": 101}, errno.EINVAL), ({"queue_priority": 16}, errno.EINVAL), ({"ring_size": 3000}, errno.EINVAL),
    ({"gpu_id": 1}, errno.EINVAL), ({"queue_type": 5}, ENOTSUPP), ({"ring_base_address": 1 << 48}, errno.EFAULT),
    ({"read_pointer_address": 1 << 48}, errno.EFAULT), ({"write_pointer_address": 1 << 63}, errno.EFAULT),
    ({"queue_type": QueueType.SDMA_BY_ENG_ID, "sdma_engine_id": 2}, errno.EINVAL),
    ({"queue_type": QueueType.SDMA_XGMI}, errno.ENOMEM), ({"ring_size": 32768}, errno.EINVAL),
    ({"eop_buffer_size": 8192}, errno.EINVAL), ({"ctl_stack_size": 4096}, errno.EINVAL),
    ({"ctx_save_restore_size": 4096}, errno.EINVAL),
    ({"ctx_save_restore_address": 0}, errno.EINVAL), ({"read_pointer_address": 0x10000}, errno.EINVAL),
    ({"write_pointer_address": 0}, errno.EINVAL),
])
def test_create_queue_refuses(one: Client, change: dict[str, int], number: int) -> None:
    fields = one.queue_fields()
    with refused(number):
        one.create_queue({**fields, **change})
    one.create_queue({**fields, "queue_percentage": 100 | 3 << 8})  # bits 15:8 name an XCC


def test_queue_buffers_have_exact_sizes(one: Client) -> None:
    fields, big, local = one.queue_fields(), one.mapped_buffer(131072), one.mapped_buffer(4096, VRAM)
    for change in ({"ring_base_address": big.va}, {"ring_base_address": big.va + 65536}, {"read_pointer_address": big.va},
                   {"write_pointer_address": local.va}, {"eop_buffer_address": big.va}, {"ctx_save_restore_address": big.va}):
        with refused(errno.EINVAL):
            one.create_queue({**fields, **change})
    one.create_queue({**fields, "eop_buffer_address": 0, "eop_buffer_size": 0, "read_pointer_address": local.va})


def test_gfx9_takes_pointers_in_vram() -> None:
    with machine("gfx90a", "gtt=512M") as system, client(system) as made:
        local = made.mapped_buffer(4096, VRAM)
        made.create_queue({**made.queue_fields(QueueType.SDMA), "write_pointer_address": local.va + 8})


def test_small_rings_are_clamped(one: Client) -> None:
    one.create_queue({**one.queue_fields(QueueType.SDMA, ring_bytes=4096), "ring_size": 512})
    assert FakeEngine.made[0].queues[0].arguments["ring_bytes"] == 1024


def test_a_live_queues_buffers_stay_mapped(one: Client) -> None:
    pointers, ring = one.mapped_buffer(4096), one.mapped_buffer(65536)
    queue = one.create_queue({"ring_base_address": ring.va, "ring_size": 65536, "write_pointer_address": pointers.va,
                              "read_pointer_address": pointers.va + 8, "gpu_id": one.gpus[0], "queue_type": QueueType.SDMA,
                              "queue_percentage": 100})
    for buffer in (pointers, ring):
        with refused(errno.EBUSY):
            one.unmap(buffer)
    one.call("DESTROY_QUEUE", queue_id=queue.queue_id)
    for buffer in (pointers, ring):
        one.unmap(buffer)
        one.free(buffer)


def test_update_and_destroy(one: Client) -> None:
    fields = one.queue_fields(QueueType.SDMA)
    queue_id = one.create_queue(fields).queue_id
    update = {"queue_id": queue_id, "ring_base_address": fields["ring_base_address"], "ring_size": 65536, "queue_percentage": 50,
              "queue_priority": 3}
    one.call("UPDATE_QUEUE", **update)
    assert FakeEngine.made[0].queues[0].calls[-1] == ("update", fields["ring_base_address"], 65536, 50, 3)
    other = one.mapped_buffer(8192)
    one.call("UPDATE_QUEUE", **{**update, "ring_base_address": other.va, "ring_size": 8192})
    with refused(errno.EBUSY):
        one.unmap(other)
    for change, number in (({"queue_percentage": 101}, errno.EINVAL), ({"queue_priority": 16}, errno.EINVAL),
                           ({"ring_size": 100}, errno.EINVAL), ({"queue_id": 9}, errno.EFAULT),
                           ({"ring_base_address": 0x10000}, errno.EFAULT)):
        with refused(number):
            one.call("UPDATE_QUEUE", **{**update, **change})
    one.call("UPDATE_QUEUE", **{**update, "queue_percentage": 0})
    one.call("DESTROY_QUEUE", queue_id=queue_id)
    with refused(errno.EINVAL):
        one.call("DESTROY_QUEUE", queue_id=queue_id)


def test_cu_masks_and_wave_state(one: Client) -> None:
    queue_id = one.create_queue(one.queue_fields()).queue_id
    mask = KFD.ffi.new("uint32_t[]", [0xFFFFFFFF] * 64)
    pointer = int(KFD.ffi.cast("uintptr_t", mask))
    one.call("SET_CU_MASK", queue_id=queue_id, num_cu_mask=2048, cu_mask_ptr=pointer)
    for fields, number in (({"num_cu_mask": 0}, errno.EINVAL), ({"num_cu_mask": 33}, errno.EINVAL),
                           ({"num_cu_mask": 32, "cu_mask_ptr": 64}, errno.EFAULT),
                           ({"num_cu_mask": 32, "queue_id": 7}, errno.EFAULT)):
        with refused(number):
            one.call("SET_CU_MASK", **{"queue_id": queue_id, "cu_mask_ptr": pointer, **fields})
    with refused(errno.EINVAL):
        one.call("GET_QUEUE_WAVE_STATE", queue_id=queue_id)  # it is active
    with refused(errno.ENODEV):
        one.call("ALLOC_QUEUE_GWS", queue_id=queue_id, num_gws=1)


def test_too_many_queues() -> None:
    with machine("gfx942", "gtt=1G") as system, client(system) as made:
        shared = made.queue_fields(QueueType.COMPUTE_AQL)
        slots = {made.create_queue(shared).doorbell_offset for _ in range(255)}
        assert len(slots) == 255
        with refused(errno.ENOSPC):
            made.create_queue(shared)
        made.call("DESTROY_QUEUE", queue_id=17)
        assert made.create_queue(shared).queue_id == 17
    with machine("gfx1100") as system, client(system) as made:
        shared = made.queue_fields(QueueType.SDMA)
        slots = {made.create_queue(shared).doorbell_offset for _ in range(12)}  # 2 engines of 6
        assert len(slots) == 12
        with refused(errno.ENOMEM):
            made.create_queue(shared)
