"""Allocation, reuse, lifetimes and copies. Judges: /proc/self, NumPy's slices."""

from __future__ import annotations

import os
import weakref

import numpy as np
import pytest
from cpu_kernels import STEP, image
from hypothesis import given, settings
from hypothesis import strategies as st

from devrt.cpu.device import CpuDevice
from devrt.device import InvalidArgument, OutOfMemory, Placement
from devrt.memory import size_class
from tests.garbage import collect


def mappings() -> int:
    with open("/proc/self/maps") as file:
        return sum(1 for line in file if "stack" not in line)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@given(st.integers(0, 1 << 40))
def test_size_classes(nbytes: int) -> None:
    size = size_class(nbytes)
    assert size >= nbytes and size % 64 == 0 and size_class(size) == size
    assert size <= max(64, nbytes + max(64, nbytes // 8 + 1)) or size <= nbytes + (2 << 20)
    assert size < 2 << 20 or size % (2 << 20) == 0


@pytest.mark.parametrize("nbytes", [0, 1, 64, 65, 4096, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, 50 << 20])
def test_alignment_and_view(device: CpuDevice, nbytes: int) -> None:
    buffer = device.alloc(nbytes, Placement.HOST)
    assert buffer.address % 64 == 0 and len(buffer.host()) == buffer.nbytes == nbytes
    if nbytes >= 2 << 20:
        assert buffer.address % (2 << 20) == 0
    buffer.host()[:] = bytes(nbytes)
    device.free(buffer)


def test_a_freed_block_is_reused_only_after_the_work_before_the_free(device: CpuDevice) -> None:
    go, nbytes = device.signal(), 6 << 20
    buffer, target = device.alloc(nbytes), device.alloc(nbytes)
    buffer.host()[:] = b"\x05" * nbytes
    commands = device.command_list()
    commands.copy(target, buffer, nbytes)
    value = device.transfer.submit(commands, wait=[(go, 1)])
    address = buffer.address
    device.free(buffer)
    fresh = device.alloc(nbytes)
    assert fresh.address != address
    fresh.host()[:] = bytes(nbytes)
    go.signal(1)
    device.transfer.wait(value, 30)
    assert bytes(target.host()) == b"\x05" * nbytes
    assert device.alloc(nbytes).address == address


def test_use_after_free_and_double_free(device: CpuDevice) -> None:
    buffer = device.alloc(100)
    device.free(buffer)
    with pytest.raises(InvalidArgument, match="after it was freed"):
        buffer.host()
    with pytest.raises(InvalidArgument, match="freed twice"):
        device.free(buffer)


def test_out_of_memory_says_how_much_and_touches_nothing(device: CpuDevice) -> None:
    before = device.allocator.usage()
    with pytest.raises(OutOfMemory, match=r"asked \d+, free") as caught:
        device.alloc(1 << 45)
    assert caught.value.remedy
    with pytest.raises(OutOfMemory):
        device.alloc(device.properties.memory_bytes)
    after = device.allocator.usage()
    assert after.live == before.live and after.mapped <= before.mapped
    for wrong in (-1, 1 << 60, 2.5, "1"):
        with pytest.raises(InvalidArgument):
            device.alloc(wrong)  # type: ignore[arg-type]


def test_accounting(device: CpuDevice) -> None:
    before = device.allocator.usage()
    buffer = device.alloc(10 << 20)
    held = device.allocator.usage()
    assert held.live == before.live + (10 << 20)
    device.free(buffer)
    after = device.allocator.usage()
    assert after.live == before.live and after.pending == 0 and after.cached >= 10 << 20
    device.allocator.trim()
    assert device.allocator.usage().cached < after.cached


def test_dropped_buffers_come_back_but_not_while_a_view_lives(device: CpuDevice) -> None:
    before = device.allocator.usage().live
    buffer = device.alloc(4 << 20)
    view = np.frombuffer(buffer.host(), np.uint8)
    del buffer
    collect()
    assert device.allocator.usage().live == before + (4 << 20)
    del view
    collect()
    assert device.allocator.usage().live == before


def test_wrap_keeps_the_owner_and_does_not_copy(device: CpuDevice) -> None:
    class Owner:
        pass

    memory, owner = np.arange(16, dtype=np.uint64), Owner()
    reference = weakref.ref(owner)
    wrapped = device.wrap(memory.ctypes.data, memory.nbytes, owner)
    del owner
    step = device.load(image(STEP), "step")
    commands = device.command_list()
    commands.dispatch(step, [wrapped], 16)
    go = device.signal()
    value = device.compute.submit(commands, wait=[(go, 1)])
    device.free(wrapped)
    del wrapped, commands
    collect()
    assert reference() is not None
    go.signal(1)
    device.compute.wait(value, 30)
    np.testing.assert_array_equal(memory, np.arange(16) * 3 + 1)
    device.retirement.collect()
    collect()
    assert reference() is None
    with pytest.raises(InvalidArgument):
        device.wrap(0, 8, None)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_copies_with_odd_offsets(device: CpuDevice, data: st.DataObject) -> None:
    total = data.draw(st.sampled_from([200, 5000, 300_000]))
    nbytes = data.draw(st.integers(0, total))
    to, from_ = (data.draw(st.integers(0, total - nbytes)) for _ in range(2))
    check_copy(device, total, nbytes, to, from_)


@pytest.mark.parametrize(("nbytes", "to", "from_"), [
    (4 << 20, 0, 0), ((4 << 20) - 1, 1, 0), ((4 << 20) + 1, 63, 65), (9_000_001, 7, 129), ((256 << 10) + 1, 3, 1)])
def test_large_copies(device: CpuDevice, nbytes: int, to: int, from_: int) -> None:
    check_copy(device, nbytes + 200, nbytes, to, from_)


def check_copy(device: CpuDevice, total: int, nbytes: int, to: int, from_: int) -> None:
    src, dst = device.alloc(total), device.alloc(total)
    source, target = np.frombuffer(src.host(), np.uint8), np.frombuffer(dst.host(), np.uint8)
    source[:] = np.random.default_rng(nbytes).integers(0, 256, total, np.uint8)
    target[:] = 0xEE
    expected = target.copy()
    expected[to:to + nbytes] = source[from_:from_ + nbytes]
    commands = device.command_list()
    commands.copy(dst, src, nbytes, to, from_)
    device.transfer.wait(device.transfer.submit(commands), 30)
    np.testing.assert_array_equal(target, expected)


def test_nothing_leaks_over_open_and_close() -> None:
    code = image(STEP)

    def life() -> None:
        device = CpuDevice()
        program = device.load(code, "step")
        small, large = device.alloc(800), device.alloc(5 << 20)
        commands = device.command_list()
        commands.dispatch(program, [small], 100)
        for _ in range(10):
            value = device.compute.submit(commands, signal=[(device.signal(), 1)])
        device.compute.wait(value, 30)
        device.free(large)
        if value % 2:
            program.close()
        device.close()

    life()
    collect()
    before, fds = mappings(), descriptors()
    for _ in range(10):
        life()
    collect()
    # A thread's stack may join or leave a neighbouring mapping; ten leaks of anything would show.
    assert mappings() <= before + 4 and descriptors() == fds


def test_views_outlive_the_device() -> None:
    device = CpuDevice()
    view = device.alloc(1 << 20).host()
    view[:4] = b"abcd"
    device.close()
    del device
    collect()
    assert bytes(view[:4]) == b"abcd"
