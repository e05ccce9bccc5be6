"""Rings, packets and interrupts. What is the same on every GPU: tests/gpu/test_gpu_queue.py."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devrt.amd import commands as lists
from devrt.amd import queue as queues
from devrt.amd.commands import AmdCommandList
from devrt.amd.device import AmdDevice
from devrt.amd.engines import CopyEngine
from devrt.device import DeviceHang, Placement
from devrt.gpu import queue as gpu_queues

Opened = Callable[..., AmdDevice]


def stamps(device: AmdDevice, count: int = 1) -> tuple[AmdCommandList, memoryview]:
    """A list of time stamps alone, and the bytes they go to."""
    buffer = device.alloc(8 * count, Placement.HOST)
    buffer.host()[:] = bytes(8 * count)
    commands = device.command_list()
    for n in range(count):
        commands.timestamp(buffer, 8 * n)
    return commands, buffer.host()


@pytest.mark.parametrize("gfx", ["gfx90a", "gfx1030"])
def test_copies_larger_than_a_packet(opened: Opened, gfx: str) -> None:
    device = opened(gfx)
    device.copy_engine.max_bytes = 1 << 20
    nbytes = (9 << 20) + 77
    source, far, back = device.alloc(nbytes, Placement.HOST), device.alloc(nbytes), device.alloc(nbytes, Placement.HOST)
    pattern = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8)
    source.host()[:] = pattern.data
    commands = device.command_list()
    commands.copy(far, source, nbytes)
    commands.copy(back, far, nbytes)
    device.transfer.wait(device.transfer.submit(commands), 30)
    assert bytes(back.host()) == pattern.tobytes()


def test_a_copy_is_as_few_packets_as_the_limit_allows() -> None:
    engine = CopyEngine(9)
    packets = engine.copy(0x1000, 0x9000_0000, (4 << 20) + 1)
    words = [word for packet in packets for word in struct.unpack("<7I", packet)]
    assert len(words) == 14 and words[1] == (4 << 20) - 1 and words[8] == 0 and words[12] == 0x1000 + (4 << 20)
    assert engine.copy(0, 0, 0) == []


@given(st.lists(st.integers(1, 16), min_size=30, max_size=200))
def test_packets_wrap_as_wholes(counts: list[int]) -> None:
    """Packets of any length, the last of which may end where the ring does; an engine that reads the ring sees them in order."""
    ring = object.__new__(queues.Ring)
    ring.size, ring.memory = 32, memoryview(bytearray(128))
    ring.engine = SimpleNamespace(padding=0xFFFF)  # type: ignore[assignment]
    ring.put = ring.told = ring.tail = 0
    written: list[list[int]] = []
    seen: list[int] = []
    for n, count in enumerate(counts):
        packet = [1 + n] * count
        at = ring.write(struct.pack(f"<{count}I", *packet))
        if at < 0:  # the engine reads all
            memory = struct.unpack("<32I", ring.memory)
            seen += [memory[place % 32] for place in range(ring.tail, ring.put) if memory[place % 32] != 0xFFFF]
            ring.retire(ring.put)
            at = ring.write(struct.pack(f"<{count}I", *packet))
        assert 0 <= at <= 32 - count and ring.put - ring.tail < 32
        written.append(packet)
    memory = struct.unpack("<32I", ring.memory)
    seen += [memory[place % 32] for place in range(ring.tail, ring.put) if memory[place % 32] != 0xFFFF]
    assert seen == [word for packet in written for word in packet]


def test_many_submissions_wrap_the_ring(device: AmdDevice) -> None:
    commands, memory = stamps(device)
    first = device.compute._home.put
    while device.compute._home.put - first < 3 * device.compute._home.size:
        value = device.compute.submit(commands)
    device.compute.wait(value, 30)
    assert device.compute.completed == value and struct.unpack("<Q", memory)[0] > 0
    ring = device.transfer._home
    source, target = device.alloc(64, Placement.HOST), device.alloc(64, Placement.HOST)
    copies = device.command_list()
    for _ in range(1000):
        copies.copy(target, source, 64)
    first = ring.put
    while ring.put - first < 2 * ring.size:
        value = device.transfer.submit(copies)
    source.host()[:] = b"7" * 64
    device.transfer.wait(device.transfer.submit(copies), 60)
    assert bytes(target.host()) == b"7" * 64


def test_more_copies_than_a_ring_holds(device: AmdDevice) -> None:
    source, target = device.alloc(1 << 16, Placement.HOST), device.alloc(1 << 16, Placement.HOST)
    pattern = np.random.default_rng(3).integers(0, 256, 1 << 16, np.uint8)
    source.host()[:] = pattern.data
    commands = device.command_list()
    for at in range(0, 1 << 16, 4):
        commands.copy(target, source, 4, at, at)
    for at in range(0, 1 << 16, 2):
        commands.copy(target, source, 2, at, at)
    assert 28 * len(commands) > queues.COPY_RING_BYTES
    device.transfer.wait(device.transfer.submit(commands), 60)
    assert bytes(target.host()) == pattern.tobytes()


def test_copies_and_stamps_in_groups_are_whole_packets(device: AmdDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (queues, lists):
        monkeypatch.setattr(module, "MAX_WRITE", 1000)
    source, target = device.alloc(4096, Placement.HOST), device.alloc(4096, Placement.HOST)
    source.host()[:] = np.random.default_rng(4).integers(0, 256, 4096, np.uint8).data
    commands = device.command_list()
    for at in range(0, 4096, 64):
        commands.copy(target, source, 64, at, at)
    profile = device.profile(commands)
    device.transfer.wait(device.transfer.submit(commands, profile=profile), 30)
    assert bytes(target.host()) == bytes(source.host())
    assert len(profile.durations_ns) == 64 and min(profile.durations_ns) >= 0


def test_more_signals_than_a_ring_holds(device: AmdDevice) -> None:
    done = device.signal()
    device.compute.wait(device.compute.submit(device.command_list(), signal=[(done, n) for n in range(1, 9001)]), 30)
    assert done.value == 9000


def test_a_full_ring_blocks_and_goes_on(device: AmdDevice) -> None:
    commands, _ = stamps(device)
    go = device.signal()
    ring = device.compute._home
    device.compute.submit(commands, wait=[(go, 1)])
    first, blocked = ring.put, threading.Event()

    def fill() -> None:
        while ring.put - first < ring.size + 1000:
            device.compute.submit(commands)
        blocked.set()

    thread = threading.Thread(target=fill)
    thread.start()
    assert not blocked.wait(0.3) and ring.put - first < ring.size
    go.signal(1)
    thread.join(30)
    assert blocked.is_set()
    device.compute.wait(device.compute.submitted, 30)


def test_a_ring_that_stays_full_is_a_hang(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened("gfx1100")
    monkeypatch.setattr(gpu_queues, "FULL_RING_TIMEOUT_S", 0.2)
    commands, _ = stamps(device)
    device.compute.submit(commands, wait=[(device.signal(), 1)])
    with pytest.raises(DeviceHang, match="stayed full") as caught:
        for _ in range(10_000):
            device.compute.submit(commands)
    assert caught.value.expected == device.compute.submitted and "ring read" in caught.value.evidence


def test_a_lost_interrupt_costs_time_only(opened: Opened) -> None:
    device = opened("gfx1100?lost-interrupt@1")
    go, empty = device.signal(), device.command_list()
    value = device.compute.submit(empty, wait=[(go, 1)])
    threading.Timer(0.1, lambda: go.signal(1)).start()
    device.compute.wait(value, 5)


def test_text_of_a_list(device: AmdDevice) -> None:
    commands, _ = stamps(device)
    assert "ACQUIRE_MEM" in str(commands) and "data_sel=GPU_CLOCK_COUNTER" in str(commands)
