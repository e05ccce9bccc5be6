"""Allocation, placement, lifetimes, peers and wrapped memory. Judges: /proc/self, the virtual driver's page tables, slices."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from gpu_machines import Vendor, descriptors, mappings

from devrt.device import Buffer, Device, InvalidArgument, OutOfMemory, Placement, Unsupported
from devrt.gpu.device import GpuDevice
from devrt.gpu.memory import Ledger
from devrt.virtual.system import VirtualSystem
from tests.garbage import collect

Opened = Callable[..., GpuDevice]
Machine = Callable[[str], VirtualSystem]


def transfer(device: GpuDevice, dst: Buffer, src: Buffer, nbytes: int, to: int = 0, from_: int = 0) -> None:
    commands = device.command_list()
    commands.copy(dst, src, nbytes, to, from_)
    device.transfer.wait(device.transfer.submit(commands), 20)


def test_it_is_a_device(device: GpuDevice, vendor: Vendor) -> None:
    as_noun: Device = device
    assert isinstance(device.alloc(1), Buffer) and as_noun.properties.vendor == vendor.name


@pytest.mark.parametrize("nbytes", [0, 1, 64, 65, 4096, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, 50 << 20])
@pytest.mark.parametrize("placement", list(Placement))
def test_alignment_and_view(device: GpuDevice, nbytes: int, placement: Placement) -> None:
    buffer = device.alloc(nbytes, placement)
    assert buffer.address % 64 == 0 and buffer.nbytes == nbytes and not buffer.borrowed
    if nbytes >= 2 << 20:
        assert buffer.address % (2 << 20) == 0
    if placement is Placement.DEVICE:
        with pytest.raises(Unsupported, match="only the GPU sees"):
            buffer.host()
    else:
        assert len(buffer.host()) == nbytes
        buffer.host()[:] = bytes(nbytes)
    device.free(buffer)


def test_what_the_host_writes_the_gpu_reads_and_back(device: GpuDevice) -> None:
    data = os.urandom(3 << 20)
    for placement in (Placement.HOST, Placement.HOST_VISIBLE):
        source, far, back = device.alloc(3 << 20, placement), device.alloc(3 << 20), device.alloc(3 << 20, placement)
        source.host()[:] = data
        transfer(device, far, source, len(data))
        transfer(device, back, far, len(data))
        assert bytes(back.host()) == data


def test_a_freed_block_is_reused_only_after_the_work_before_the_free(device: GpuDevice) -> None:
    go, nbytes = device.signal(), 6 << 20
    buffer, target = device.alloc(nbytes, Placement.HOST), device.alloc(nbytes, Placement.HOST)
    buffer.host()[:] = b"\x05" * nbytes
    commands = device.command_list()
    commands.copy(target, buffer, nbytes)
    value = device.transfer.submit(commands, wait=[(go, 1)])
    address = buffer.address
    device.free(buffer)
    fresh = device.alloc(nbytes, Placement.HOST)
    assert fresh.address != address
    fresh.host()[:] = bytes(nbytes)
    go.signal(1)
    device.transfer.wait(value, 30)
    assert bytes(target.host()) == b"\x05" * nbytes
    assert device.alloc(nbytes, Placement.HOST).address == address


def test_use_after_free_and_double_free(device: GpuDevice) -> None:
    buffer = device.alloc(100, Placement.HOST)
    device.free(buffer)
    with pytest.raises(InvalidArgument, match="after it was freed"):
        buffer.host()
    with pytest.raises(InvalidArgument, match="freed twice"):
        device.free(buffer)
    with pytest.raises(InvalidArgument, match="no buffer of this device"):
        device.free(np.zeros(1))  # type: ignore[arg-type]
    for wrong in (-1, 1 << 60, 2.5, "1"):
        with pytest.raises(InvalidArgument):
            device.alloc(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        device.alloc(1, "device")  # type: ignore[arg-type]


def test_dropped_buffers_come_back_but_not_while_a_view_lives(device: GpuDevice) -> None:
    before = device.host_memory.usage().live
    buffer = device.alloc(4 << 20, Placement.HOST)
    view = np.frombuffer(buffer.host(), np.uint8)
    del buffer
    collect()
    assert device.host_memory.usage().live == before + (4 << 20)
    del view
    collect()
    assert device.host_memory.usage().live == before


def test_out_of_vram_says_how_much_and_leaves_the_rest_usable(opened: Opened, vendor: Vendor) -> None:
    device = opened(f"{vendor.one}?vram=256M")
    with pytest.raises(OutOfMemory, match=r"asked \d+, free \d+") as caught:
        device.alloc(1 << 30)
    assert "test:0" in caught.value.what and caught.value.remedy
    kept = []
    with pytest.raises(OutOfMemory):
        while True:
            kept.append(device.alloc(32 << 20))
    assert len(kept) >= 4
    data = device.alloc(1000, Placement.HOST)
    transfer(device, kept[-1], data, 1000)
    kept.clear()
    collect()
    assert device.alloc(128 << 20).nbytes == 128 << 20  # what was kept for reuse in other sizes is given up


def test_what_the_driver_refuses_is_tried_again_without_the_cache(opened: Opened, vendor: Vendor) -> None:
    device = opened(vendor.one)
    device.free(device.alloc(64 << 20))
    device.system.faults.inject(vendor.no_memory)  # type: ignore[attr-defined]
    assert device.alloc(128 << 20).nbytes == 128 << 20


def test_wrap_does_not_copy_and_keeps_the_owner(device: GpuDevice) -> None:
    class Owner:
        pass

    memory, owner = np.arange(3000, dtype=np.uint64), Owner()
    reference = weakref.ref(owner)
    first = device.wrap(memory.ctypes.data, memory.nbytes, owner)
    second = device.wrap(memory.ctypes.data + 80, 800, memory)  # the same pages once more
    del owner
    assert first.borrowed and first.placement is Placement.HOST
    out = device.alloc(memory.nbytes, Placement.HOST)
    transfer(device, out, first, memory.nbytes)
    assert bytes(out.host()) == memory.tobytes()
    transfer(device, out, second, 800)
    assert bytes(out.host()[:800]) == memory[10:110].tobytes()
    memory[:] = 7
    transfer(device, out, first, memory.nbytes)
    assert bytes(out.host()) == memory.tobytes()
    go = device.signal()
    commands = device.command_list()
    commands.copy(out, first, 8)
    value = device.transfer.submit(commands, wait=[(go, 1)])
    device.free(first)
    del first, commands
    collect()
    assert reference() is not None
    go.signal(1)
    device.transfer.wait(value, 30)
    device.retirement.collect()
    collect()
    assert reference() is None
    with pytest.raises(InvalidArgument):
        device.wrap(0, 8, None)


def test_wrapping_what_is_not_memory(device: GpuDevice) -> None:
    hole = mmap.mmap(-1, 1 << 20)
    address = np.frombuffer(hole, np.uint8).ctypes.data
    collect()
    hole.close()
    before = mappings()
    with pytest.raises((Unsupported, InvalidArgument)):
        buffer = device.wrap(address, 1 << 20, None)
        out = device.alloc(1 << 20, Placement.HOST)
        transfer(device, out, buffer, 1 << 20)
    assert mappings() <= before + (32 << 20)


def test_peers_copy_directly(opened: Opened, machine: Machine, vendor: Vendor) -> None:
    system = machine(vendor.two)
    here, there = opened(system, 0), opened(system, 1)
    data = os.urandom(1 << 20)
    source, far = there.alloc(1 << 20, Placement.HOST), there.alloc(1 << 20)
    source.host()[:] = data
    transfer(there, far, source, len(data))
    near, back = here.peer(far), here.alloc(1 << 20, Placement.HOST)
    assert near.address == far.address and near.device is here and here.peer(back) is back
    with pytest.raises(InvalidArgument, match="another device"):
        here.command_list().copy(back, far, 10)
    transfer(here, back, near, len(data))
    assert bytes(back.host()) == data
    here.free(near)
    with pytest.raises(InvalidArgument, match="after it was freed"):
        there.free(far)
        here.peer(far)


def test_peers_without_a_link(opened: Opened, machine: Machine, vendor: Vendor) -> None:
    system = machine(f"{vendor.two}?link-down")
    here, there = opened(system, 0), opened(system, 1)
    with pytest.raises((Unsupported, OutOfMemory, InvalidArgument)):
        here.peer(there.alloc(1 << 20))


def test_nothing_is_left_after_close(machine: Machine, vendor: Vendor) -> None:
    system = machine(vendor.one)

    def once() -> None:
        device = vendor.open(system)
        source, far = device.alloc(9 << 20, Placement.HOST), device.alloc(9 << 20)
        visible = device.alloc(100, Placement.HOST_VISIBLE)
        visible.host()[:] = bytes(100)
        array = np.zeros(100_000)
        wrapped = device.wrap(array.ctypes.data, array.nbytes, array)
        transfer(device, far, source, 9 << 20)
        transfer(device, far, wrapped, array.nbytes)
        device.close()
        device.close()
        del source, far, visible, wrapped
        collect()

    once()
    collect()
    before = descriptors(), mappings()
    for _ in range(3):
        once()
    collect()
    assert (descriptors(), mappings()) == before


def test_views_outlive_close(machine: Machine, vendor: Vendor) -> None:
    device = vendor.open(machine(vendor.one))
    small, large = device.alloc(100, Placement.HOST), device.alloc(4 << 20, Placement.HOST)
    view = np.frombuffer(large.host(), np.uint8)
    view[:] = 9
    small.host()[:] = b"x" * 100
    device.close()
    del large
    collect()
    assert (view == 9).all() and bytes(small.host()) == b"x" * 100
    del view
    collect()


def test_the_ledger_names_what_is_nearest() -> None:
    ledger = Ledger()
    assert ledger.nearest(5) == "no buffer is live"
    ledger.add(0x1000, 0x100, "a")
    ledger.add(0x3000, 0x100, "b")
    assert ledger.nearest(0x1010) == "inside a of 256 bytes at 0x1000, byte 16"
    assert ledger.nearest(0x1100) == "1 bytes past the end of a of 256 bytes at 0x1000"
    assert ledger.nearest(0x2FF0) == "16 bytes before b of 256 bytes at 0x3000"
    ledger.remove(0x1000)
    assert ledger.nearest(0x1010) == "inside a of 256 bytes at 0x1000, byte 16, freed before"
