"""Submissions that do not go the usual way: full rings, interruptions, counters about to wrap, what is freed meanwhile."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from gpu_machines import Vendor

from devrt.device import DeviceHang, DeviceLost, InvalidArgument, Placement
from devrt.gpu import queue as queues
from devrt.gpu.device import GpuDevice
from devrt.recorder import Recorder, Watched

Opened = Callable[..., GpuDevice]


def copies(device: GpuDevice, count: int = 1) -> tuple[Any, Any, Any]:
    """(list, source, target) of `count` equal copies of 64 bytes."""
    source, target = device.alloc(64, Placement.HOST), device.alloc(64, Placement.HOST)
    target.host()[:] = bytes(64)
    commands = device.command_list()
    for _ in range(count):
        commands.copy(target, source, 64)
    return commands, source, target


def filled(device: GpuDevice, ring: Any, commands: Any) -> None:
    """Submit until nothing more goes into `ring`, whose engine waits."""
    with pytest.raises(DeviceHang, match="stayed full"):
        for _ in range(20_000):
            device.compute.submit(commands)
    assert ring.told in (ring.put, (ring.put, getattr(ring, "method_put", 0)))


def test_a_submission_that_finds_no_room_leaves_nothing_behind(opened: Opened, vendor: Vendor,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever in its packets the ring ended: afterwards all goes on, and what was refused has not run."""
    device = opened(vendor.one)
    monkeypatch.setattr(queues, "FULL_RING_TIMEOUT_S", 0.05)
    go, never, empty = device.signal(), device.signal(), device.command_list()
    device.compute.submit(empty, wait=[(go, 1)])
    filled(device, device.compute._home, empty)
    submitted, flight = device.compute.submitted, len(device.compute._flight)
    for count in range(1, 20):
        with pytest.raises(DeviceHang, match="stayed full"):
            device.compute.submit(empty, signal=[(never, n + 1) for n in range(4 * count)])
    assert device.compute.submitted == submitted and len(device.compute._flight) == flight and device.failure is None
    go.signal(1)
    device.compute.wait(submitted, 30)
    commands, source, target = copies(device)
    source.host()[:] = b"s" * 64
    device.compute.wait(device.compute.submit(commands), 30)
    assert bytes(target.host()) == b"s" * 64 and never.value == 0


def test_an_interrupted_submission_is_forgotten(opened: Opened, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened(vendor.one)
    commands, source, target = copies(device)
    other, _, _ = copies(device)
    empty = device.command_list()
    for queue in (device.compute, device.transfer):
        queue.wait(queue.submit(empty), 20)
        with monkeypatch.context() as patched:
            def interrupted(ring: Any, packets: Any, write: Callable[..., None] = queue._put) -> None:
                write(ring, packets)
                raise KeyboardInterrupt
            patched.setattr(queue, "_put", interrupted)
            with pytest.raises(KeyboardInterrupt):
                queue.submit(commands, signal=[(device.signal(), 1)])
        assert not queue._flight and queue.submitted == queue.completed and device.failure is None
        source.host()[:] = queue.name[:1].encode() * 64
        queue.wait(queue.submit(other), 20)
        assert bytes(target.host()) != bytes(source.host())  # what was interrupted has not run
        queue.wait(queue.submit(commands), 20)
        assert bytes(target.host()) == bytes(source.host())


@pytest.mark.parametrize("rung", [False, True])
def test_a_list_alone_is_interrupted(opened: Opened, vendor: Vendor, monkeypatch: pytest.MonkeyPatch, rung: bool) -> None:
    """One that needs no packets but its own: before the engine is told it is forgotten, afterwards it counts."""
    device = opened(vendor.one)
    queue, memory = device.compute, device.alloc(8, Placement.HOST)
    words, commands, empty = memory.host().cast("Q"), device.command_list(), device.command_list()
    commands.timestamp(memory, 0)
    for _ in range(2):
        queue.wait(queue.submit(commands), 20)
        words[0], before = 0, queue.submitted
        with monkeypatch.context() as patched:
            place, name = (queue._home, "kick") if rung else (queue, "_plain")
            plain = getattr(place, name)

            def interrupted(*given: Any, step: Callable[..., None] = plain) -> None:
                step(*given)
                raise KeyboardInterrupt
            patched.setattr(place, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                queue.submit(commands)
        assert queue.submitted == before + rung
        queue.wait(queue.submit(empty), 20)
        assert bool(words[0]) == rung and not queue._flight and device.failure is None


def test_a_list_goes_to_one_queue_after_the_other(opened: Opened, vendor: Vendor) -> None:
    device = opened(vendor.one)
    for first, second in ((device.transfer, device.compute), (device.compute, device.transfer)):
        commands, source, target = copies(device)
        for queue in (first, second, second, first):
            device.compute.wait(device.compute.submit(device.command_list()), 20)
            source.host()[:] = queue.name[:1].encode() * 64
            target.host()[:] = bytes(64)
            queue.wait(queue.submit(commands), 20)
            assert bytes(target.host()) == bytes(source.host())


@pytest.mark.parametrize("start", [(1 << 32) - 4, (1 << 33) - 3])
def test_a_queue_counts_64_bits(opened: Opened, vendor: Vendor, start: int) -> None:
    """Submissions on both engines in turns, where the lower half of their number starts anew."""
    device = opened(vendor.one)
    queue = device.compute
    queue.submitted = queue._timeline._words[0] = start
    commands, source, target = copies(device)
    empty, done = device.command_list(), device.signal()
    for n in range(8):
        source.host()[:] = bytes([n]) * 64
        value = queue.submit(commands if n % 2 else empty, signal=[(done, n + 1)])
        assert value == start + n + 1
        if n % 4 == 3:
            queue.wait(value, 20)
            assert queue.completed == value and done.value == n + 1 and bytes(target.host()) == bytes([n]) * 64
    for _ in range(6):
        value = queue.submit(commands)
        queue.submit(empty)
    queue.wait(queue.submitted, 20)
    assert not queue._flight


def test_a_time_stamp_whose_buffer_was_freed_touches_nothing(opened: Opened, vendor: Vendor) -> None:
    """The memory may have been given out again by the time the host learns that the stamp was taken."""
    device = opened(vendor.one)
    go, commands = device.signal(), device.command_list()
    buffer = device.alloc(4096, Placement.HOST)
    address = buffer.address
    commands.timestamp(buffer, 0)
    value = device.compute.submit(commands, wait=[(go, 1)])
    device.free(buffer)
    go.signal(1)
    until = time.monotonic() + 20
    while device.compute.completed < value:  # a wait would read the time
        assert time.monotonic() < until
        time.sleep(1e-4)
    again = device.alloc(4096, Placement.HOST)
    assert again.address == address
    again.host()[:8] = b"mine own"
    device.compute.wait(value, 20)
    assert bytes(again.host()[:8]) == b"mine own"


def test_what_a_list_uses_may_go_at_any_time(device: GpuDevice) -> None:
    """Before the first submission, before a later one, and after it was patched in or recorded behind."""
    for submissions in range(4):
        commands, source, _ = copies(device)
        for _ in range(submissions):
            device.compute.wait(device.compute.submit(commands), 20)
        late = device.alloc(64, Placement.HOST)
        if submissions % 2:
            commands.copy(late, source, 64)
        gone = late if submissions % 2 else source
        device.free(gone)
        for _ in range(2):
            with pytest.raises(InvalidArgument, match="after it was freed"):
                device.compute.submit(commands)


def test_lists_come_while_a_buffer_goes() -> None:
    """Threads may use a buffer in ever more lists while another frees it."""
    thing, lists, failures = Watched(), [Recorder(None) for _ in range(3000)], []

    def watch() -> None:
        try:
            for commands in lists:
                thing.watch(commands)
        except RuntimeError as error:
            failures.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread = threading.Thread(target=watch)
        thread.start()
        while thread.is_alive():
            thing._tell()
    finally:
        sys.setswitchinterval(before)
    thread.join()
    assert not failures and len(thing._lists) == 3000
    lists.clear()
    assert not thing._lists


def test_a_fault_is_taken_in_while_another_thread_has_the_device(opened: Opened, vendor: Vendor) -> None:
    """Who finds it may be in the middle of a submission, for which a thread that loads a program waits."""
    device = opened(vendor.one)
    with device._lock:
        thread = threading.Thread(target=device.fail, args=(DeviceLost("gone"),))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    with pytest.raises(DeviceLost, match="gone"):
        device.check()


def test_threads_submit_one_list(device: GpuDevice) -> None:
    """Every submission is done when its number says so, whoever made it."""
    lists = {queue: copies(device, 3) for queue in (device.compute, device.transfer)}
    failures: list[BaseException] = []

    def work(queue: Any) -> None:
        try:
            for n in range(60):
                value = queue.submit(lists[queue][0])
                if n % 10 == 9:
                    queue.wait(value, 30)
        except BaseException as error:
            failures.append(error)

    for queue, (_, source, _) in lists.items():
        source.host()[:] = queue.name[:1].encode() * 64
    threads = [threading.Thread(target=work, args=(queue,)) for queue in lists for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    for queue, (_, source, target) in lists.items():
        queue.wait(queue.submitted, 30)
        assert bytes(target.host()) == bytes(source.host()) and not queue._flight
