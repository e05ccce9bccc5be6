"""The doorbell, the engine thread, and channels that come, go and stop, on a virtual GPU without a driver."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator

import pytest

from devrt.virtual.memory import PAGE
from devrt.virtual.nvidia.channel import GP_PUT
from devrt.virtual.nvidia.dispatch import Launch, WarpFault
from devrt.virtual.nvidia.gpu import DOORBELL, QUIET, TIME_0
from tests.virtual.nvidia.rig import COPY0, GRAPHICS, Line, Rig, rig, semaphore, until

RELEASE, ACQUIRE, GEQ = 1, 0, 3


@pytest.fixture
def r() -> Iterator[Rig]:
    with rig() as made:
        yield made


def released(line: Line, va: int, payload: int = 1) -> Line:
    return line.send(semaphore(line.pushes(), va, payload, operation=RELEASE))


def test_a_token_wakes_the_channel(r: Rig) -> None:
    line, s = r.channel(), r.memory()
    released(line, s, 7).drain()
    assert r.u64(s) == 7
    assert line.get == line.put


def test_without_a_ring_nothing_is_fetched(r: Rig) -> None:
    line, s = r.channel(), r.memory()
    line.send(semaphore(line.pushes(), s, 7, operation=RELEASE), ring=False)
    struct.pack_into("<I", line.userd, GP_PUT, line.put)
    time.sleep(0.03)
    assert (line.get, r.u64(s)) == ((line.put - 1) % line.entries, 0)
    line.bell().drain()
    assert r.u64(s) == 7


def test_a_token_of_no_channel_wakes_nobody(r: Rig) -> None:
    line, s = r.channel(), r.memory()
    line.send(semaphore(line.pushes(), s, 7, operation=RELEASE), ring=False).bell(token=0xBAD)
    until(lambda: struct.unpack_from("<I", r.page, DOORBELL)[0] == QUIET)
    time.sleep(0.01)
    assert r.u64(s) == 0


def test_rings_that_overwrite_each_other_are_not_lost(r: Rig) -> None:
    lines = [r.channel() for _ in range(3)]
    places = [r.memory() for _ in lines]
    for n in range(200):
        for line, s in zip(lines, places, strict=True):
            line.send(semaphore(line.pushes(), s, n + 1, operation=RELEASE))
        until(lambda n=n: all(r.u64(s) == n + 1 for s in places))


def test_several_entries_for_one_ring(r: Rig) -> None:
    line, s = r.channel(entries=8), r.memory()
    for first in range(0, 40, 5):  # the ring wraps
        line.send(*(semaphore(line.pushes(), s, first + n, operation=RELEASE) for n in range(5))).drain()
        assert r.u64(s) == first + 4


def test_the_page_tells_the_time(r: Rig) -> None:
    def nanoseconds() -> int:
        low, high = struct.unpack_from("<II", r.page, TIME_0)
        return int(low | high << 32)
    r.channel()
    first = nanoseconds()
    assert first % 32 == 0
    assert abs(first - time.time_ns()) < 60 * 10**9
    until(lambda: nanoseconds() > first)


def test_an_acquire_blocks_its_channel_only(r: Rig) -> None:
    waits, other, s, t = r.channel(), r.channel(), r.memory(), r.memory()
    push = semaphore(waits.pushes(), s, 5, operation=GEQ)
    waits.send(semaphore(push, t, 1, operation=RELEASE))
    for n in range(20):
        released(other, t + 64, n).drain()
    assert r.u64(t) == 0
    released(other, s, 6).drain()
    waits.drain()
    assert r.u64(t) == 1


def test_two_channels_hand_work_to_each_other(r: Rig) -> None:
    a, b, s = r.channel(), r.channel(), r.memory()
    for n in range(20):
        a.send(semaphore(semaphore(a.pushes(), s, 2 * n, operation=GEQ), s, 2 * n + 1, operation=RELEASE))
        b.send(semaphore(semaphore(b.pushes(), s, 2 * n + 1, operation=GEQ), s, 2 * n + 2, operation=RELEASE))
    a.drain()
    b.drain()
    assert r.u64(s) == 40


def test_a_channel_that_is_not_enabled_waits(r: Rig) -> None:
    line, s = r.channel(), r.memory()
    r.gpu.enable(line.channel, False)
    released(line, s)
    time.sleep(0.02)
    assert r.u64(s) == 0
    r.gpu.enable(line.channel, True)
    line.drain()
    assert r.u64(s) == 1


def test_a_gpput_beyond_the_ring(r: Rig) -> None:
    line = r.channel(entries=16)
    assert "GPPUT" not in line.bell(put=16).error()
    assert "Xid 32" in line.error() and "GPPTR: GPPut is 0x10, the ring has 0x10 entries" in line.error()


def test_an_error_reaches_notifier_driver_and_group(r: Rig) -> None:
    group = object()
    line, fellow, other, s = r.channel(group=group), r.channel(group=group), r.channel(), r.memory()
    push = line.pushes()
    push.host("ILLEGAL", 0)
    before = time.time_ns()
    line.send(push)
    assert "Xid 32: Channel ID 00000001 intr0 00200000 [METHOD: GPFIFO entry 0x1, dword 0x0, ILLEGAL = 0x0" in line.error()
    for stopped in (line, fellow):
        at, info32, info16, status = struct.unpack_from("<QIHH", stopped.notifier)
        assert (info32, info16, status) == (32, GRAPHICS, 0xFFFF)
        assert abs(at - before) < 60 * 10**9
        assert stopped.channel.error
    until(lambda: r.told)
    (channel, xid, message), = r.told
    assert (channel, xid) == (line.channel, 32) and message in line.error()
    released(other, s).drain()
    released(fellow, s, 2)
    time.sleep(0.01)
    assert r.u64(s) == 1


def test_a_channel_without_a_notifier(r: Rig) -> None:
    line = r.channel(notifier=None)
    push = line.pushes()
    push.host("ILLEGAL", 0)
    assert "Xid 32" in line.send(push).error()


def hang(launch: Launch, space: object) -> None:
    raise WarpFault("hang", launch.entry, 0, -1, "BRA")


def test_a_hanging_kernel_leaves_others_alone_and_can_be_killed(r: Rig) -> None:
    line, other, s = r.channel(), r.channel(), r.memory()
    line.send(semaphore(line.launch(r.qmd(r.kernel(hang))), s, 1, operation=RELEASE))
    for n in range(10):
        released(other, s + 64, n).drain()
    assert r.u64(s) == 0 and not line.channel.error and not r.told
    r.gpu.detach(line.channel)
    fresh = r.channel()
    released(fresh, s, 3).drain()
    assert r.u64(s) == 3


def test_settling_waits_for_the_launch_that_runs(r: Rig) -> None:
    began, go = threading.Event(), threading.Event()

    def wait(launch: Launch, space: object) -> None:
        began.set()
        assert go.wait(10)
    line = r.channel()
    line.send(line.launch(r.qmd(r.kernel(wait))))
    assert began.wait(10)
    settled = threading.Thread(target=r.gpu.settle)
    settled.start()
    settled.join(0.02)
    assert settled.is_alive()
    go.set()
    settled.join()
    line.drain()


def test_detaching_ends_a_launch_in_its_midst(r: Rig) -> None:
    began, ended = threading.Event(), threading.Event()

    def long(launch: Launch, space: object) -> Iterator[None]:
        began.set()
        try:
            while True:
                yield
        finally:
            ended.set()
    line = r.channel()
    line.send(line.launch(r.qmd(r.kernel(long))))
    assert began.wait(10)
    r.gpu.detach(line.channel)
    assert ended.is_set() and not r.told and not line.channel.error and not r.gpu.order.tracks
    released(r.channel(), r.memory()).drain()


def test_a_channel_that_is_taken_off_goes_on_later(r: Rig) -> None:
    turns = []

    def counts(launch: Launch, space: object) -> Iterator[None]:
        while len(turns) < 40:
            turns.append(threading.current_thread())
            yield
    line, s = r.channel(), r.memory()
    line.send(semaphore(line.launch(r.qmd(r.kernel(counts))), s, 1, operation=RELEASE))
    until(lambda: turns)
    r.gpu.enable(line.channel, False)
    done = len(turns)
    released(r.channel(), s + 64).drain()
    assert (len(turns), r.u64(s)) == (done, int(done == 40))
    r.gpu.enable(line.channel, True)
    line.drain()
    assert (len(turns), r.u64(s)) == (40, 1)


def test_a_reset_stops_every_channel(r: Rig) -> None:
    lines = [r.channel(), r.channel(COPY0)]
    r.gpu.reset()
    for line in lines:
        assert line.channel.error and struct.unpack_from("<QIHH", line.notifier)[1:] == (45, line.channel.engine, 0xFFFF)
    assert r.told == [(None, 45, "the GPU was reset")]


def test_a_gpu_without_channels_sleeps(r: Rig) -> None:
    line = r.channel()
    r.gpu.detach(line.channel)
    assert not r.gpu.runners
    released(r.channel(), r.memory(PAGE)).drain()
