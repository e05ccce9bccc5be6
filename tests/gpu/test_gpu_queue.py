"""Copies, order between queues, waits, rings and time. Judges: NumPy's slices, the host's clock."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from gpu_machines import Vendor
from hypothesis import given, settings
from hypothesis import strategies as st

from devrt.device import DeviceHang, DeviceLost, InvalidArgument, Placement, Unsupported
from devrt.gpu import signal as signals
from devrt.gpu.commands import GpuCommandList
from devrt.gpu.device import GpuDevice

Opened = Callable[..., GpuDevice]


def stamps(device: GpuDevice, count: int = 1) -> tuple[GpuCommandList, memoryview]:
    """A list of time stamps alone, and the bytes they go to."""
    buffer = device.alloc(8 * count, Placement.HOST)
    buffer.host()[:] = bytes(8 * count)
    commands = device.command_list()
    for n in range(count):
        commands.timestamp(buffer, 8 * n)
    return commands, buffer.host()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_copies_with_odd_offsets(device: GpuDevice, data: st.DataObject) -> None:
    total = data.draw(st.sampled_from([200, 5000, 300_000]))
    nbytes = data.draw(st.integers(0, total))
    to, from_ = (data.draw(st.integers(0, total - nbytes)) for _ in range(2))
    rng = np.random.default_rng(total + nbytes)
    source, target = (device.alloc(total, Placement.HOST) for _ in range(2))
    before, after = (rng.integers(0, 256, total, np.uint8) for _ in range(2))
    source.host()[:], target.host()[:] = after.data, before.data
    commands = device.command_list()
    commands.copy(target, source, nbytes, to, from_)
    queue = data.draw(st.sampled_from([device.compute, device.transfer]))
    queue.wait(queue.submit(commands), 20)
    expected = before.copy()
    expected[to:to + nbytes] = after[from_:from_ + nbytes]
    assert bytes(target.host()) == expected.tobytes()


def test_order_between_engines_and_submissions(device: GpuDevice) -> None:
    """Turns between compute and copy engine inside a list, between lists, and between queues by a signal."""
    steps = [device.alloc(4096, Placement.HOST) for _ in range(6)]
    clock = device.alloc(64, Placement.HOST)
    for round in range(20):
        steps[0].host()[:] = bytes([round]) * 4096
        first = device.command_list()
        first.timestamp(clock, 0)
        first.copy(steps[1], steps[0], 4096)
        first.copy(steps[2], steps[1], 4096)
        first.timestamp(clock, 8)
        only, _ = stamps(device)
        second = device.command_list()
        second.copy(steps[3], steps[2], 4096)
        done = device.signal()
        device.compute.submit(first)
        device.compute.submit(only)
        device.compute.submit(second, signal=[(done, 1)])
        third = device.command_list()
        third.copy(steps[4], steps[3], 4096)
        back = device.transfer.submit(third, wait=[(done, 1)])
        device.transfer.wait(back, 20)
        assert bytes(steps[4].host()) == bytes([round]) * 4096
        before, after = struct.unpack("<2Q", bytes(clock.host()[:16]))
        assert 0 < before < after


def test_ping_pong_by_signals(device: GpuDevice) -> None:
    ball = device.signal()
    empty = device.command_list()
    for n in range(0, 50, 2):
        device.compute.submit(empty, wait=[(ball, n)], signal=[(ball, n + 1)])
        device.transfer.submit(empty, wait=[(ball, n + 1)], signal=[(ball, n + 2)])
    ball.wait(50, 20)
    assert ball.value == 50


@pytest.mark.parametrize("start", [0, (1 << 32) - 3, 1 << 32, (1 << 63) - 2])
def test_timelines_count_64_bits(device: GpuDevice, start: int) -> None:
    empty, timeline = device.command_list(), device.signal(start)
    for n in range(1, 6):
        queue = device.transfer if n % 2 else device.compute
        queue.submit(empty, wait=[(timeline, start + n - 1)] if n > 1 else (), signal=[(timeline, start + n)])
    timeline.wait(start + 5, 20)
    assert timeline.value == start + 5


def test_waiting_times_out_with_evidence(device: GpuDevice) -> None:
    go, empty = device.signal(), device.command_list()
    value = device.compute.submit(empty, wait=[(go, 3)])
    start = time.monotonic()
    with pytest.raises(DeviceHang, match="stayed at") as caught:
        device.compute.wait(value, 0.2)
    assert time.monotonic() - start >= 0.2
    assert caught.value.expected == value and "compute queue" in caught.value.evidence and caught.value.remedy
    with pytest.raises(DeviceHang):
        go.wait(2, 0.05)
    go.signal(3)
    device.compute.wait(value, 10)
    with pytest.raises(InvalidArgument, match="will not reach"):
        device.compute.wait(value + 1)


def test_waiting_sleeps(device: GpuDevice) -> None:
    """A host thread that waits long uses next to no processor time."""
    go, empty = device.signal(), device.command_list()
    value = device.compute.submit(empty, wait=[(go, 1)])
    threading.Timer(0.5, lambda: go.signal(1)).start()
    before = time.thread_time()
    device.compute.wait(value, 10)
    assert time.thread_time() - before < 0.1
    assert signals.SPIN_NS <= 200_000


def test_several_threads_wait_for_one_queue(device: GpuDevice) -> None:
    go, empty = device.signal(), device.command_list()
    value = device.compute.submit(empty, wait=[(go, 1)])
    waited: list[int] = []

    def wait() -> None:
        device.compute.wait(value, 10)
        waited.append(device.compute.completed)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert not waited
    go.signal(1)
    for thread in threads:
        thread.join(10)
    assert waited == [value] * 4


def test_signals_only_grow(device: GpuDevice) -> None:
    timeline = device.signal(5)
    timeline.signal(5)
    with pytest.raises(InvalidArgument, match="only grows"):
        timeline.signal(4)
    for wrong in (-1, 1 << 64, 2.5, None):
        with pytest.raises(InvalidArgument):
            device.signal(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument):
            device.compute.submit(device.command_list(), signal=[(timeline, wrong)])  # type: ignore[list-item]


def test_what_is_submitted_wrongly_is_not_queued(device: GpuDevice, opened: Opened, vendor: Vendor) -> None:
    other = opened(vendor.one)
    before = device.compute.submitted, device.transfer.submitted
    a, b = device.alloc(64), device.alloc(64)
    commands = device.command_list()
    for bad in ((a, b, 65), (a, b, 8, 60), (a, b, 8, 0, -1), (a, a, 8, 4, 0), (a, other.alloc(64), 8), (a, object(), 8)):
        with pytest.raises(InvalidArgument):
            commands.copy(*bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="time stamp"):
        commands.timestamp(device.alloc(64, Placement.HOST), 4)
    with pytest.raises(Unsupported, match="host sees"):
        commands.timestamp(a, 0)
    with pytest.raises(InvalidArgument, match="no dispatch"):
        commands.patch(0, 0, a)
    for wrong in (other.command_list(), None):
        with pytest.raises(InvalidArgument, match="no command list"):
            device.compute.submit(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="no signal"):
        device.compute.submit(commands, wait=[(other.signal(), 1)])
    commands.copy(a, b, 64)
    with pytest.raises(InvalidArgument, match="another list"):
        device.compute.submit(commands, profile=device.profile(device.command_list()))
    device.free(b)
    with pytest.raises(InvalidArgument, match="after it was freed"):
        device.compute.submit(commands)
    assert (device.compute.submitted, device.transfer.submitted) == before


def test_a_device_waits_for_its_peers_signal(opened: Opened, machine: Callable[[str], object], vendor: Vendor) -> None:
    system = machine(vendor.two)
    here, there = opened(system, 0), opened(system, 1)
    done, empty = there.signal(), here.command_list()
    value = here.transfer.submit(empty, wait=[(done, 1)])
    there.transfer.submit(there.command_list(), signal=[(done, 1)])
    here.transfer.wait(value, 10)


def test_time(device: GpuDevice) -> None:
    commands, memory = stamps(device, 2)
    device.compute.wait(device.compute.submit(commands), 10)
    first = struct.unpack("<2Q", memory)
    time.sleep(0.05)
    device.transfer.wait(device.transfer.submit(commands), 10)
    second = struct.unpack("<2Q", memory)
    assert first[0] <= first[1] < second[0] <= second[1]
    assert 0.04e9 < second[0] - first[0] < 5e9
    # Stamps of two submissions that the host learns of at once are converted once.
    for _ in range(3):
        value = device.compute.submit(commands)
    device.compute.wait(value, 10)
    assert second[0] < struct.unpack("<2Q", memory)[0] < second[0] + 5e9


def test_profile(device: GpuDevice) -> None:
    a, b, clock = device.alloc(8 << 20), device.alloc(8 << 20), device.alloc(8, Placement.HOST)
    commands = device.command_list()
    commands.copy(b, a, 8 << 20)
    commands.timestamp(clock, 0)
    commands.copy(a, b, 16)
    for queue in (device.compute, device.transfer):
        profile = device.profile(commands)
        with pytest.raises(InvalidArgument, match="not complete"):
            _ = profile.durations_ns
        queue.wait(queue.submit(commands, profile=profile), 10)
        durations = profile.durations_ns
        assert len(durations) == 3 and min(durations) >= 0 and durations[0] > durations[2]


def test_calibrate(device: GpuDevice) -> None:
    assert device.calibrate().memory_bytes_per_s > 1e6 and device.properties.peak_f32_flops_per_s > 1e12


def test_threads_submit_at_once(device: GpuDevice) -> None:
    failures = []

    def work(seed: int) -> None:
        try:
            source, far, back = (device.alloc(10_000, p) for p in (Placement.HOST, Placement.DEVICE, Placement.HOST))
            for n in range(30):
                source.host()[:] = bytes([seed * 31 + n]) * 10_000
                commands = device.command_list()
                commands.copy(far, source, 10_000)
                commands.copy(back, far, 10_000)
                queue = device.compute if (seed + n) % 2 else device.transfer
                queue.wait(queue.submit(commands), 30)
                assert bytes(back.host()) == bytes([seed * 31 + n]) * 10_000
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_close_drops_what_is_queued(opened: Opened, vendor: Vendor) -> None:
    device = opened(vendor.one)
    go, empty = device.signal(), device.command_list()
    value = device.compute.submit(empty, wait=[(go, 1)])
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            device.compute.wait(value)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    device.close()
    thread.join(10)
    assert isinstance(failed[0], DeviceLost)
    for call in (lambda: device.compute.submit(empty), lambda: device.alloc(1), lambda: go.signal(1), device.signal,
                 lambda: go.wait(1)):
        with pytest.raises(DeviceLost, match="was closed"):
            call()
