"""Order, barriers, signals, lists and the ring. The judge is arithmetic that comes out wrong under any other order."""

from __future__ import annotations

import os
import signal as unix
import threading
import time

import numpy as np
import pytest
from cpu_kernels import BUSY, NOP, SHIFT, STEP, image

from devrt.cpu import packets
from devrt.cpu.commands import CpuCommandList, Profile
from devrt.cpu.device import CpuDevice
from devrt.cpu.memory import CpuBuffer
from devrt.cpu.processor import source
from devrt.cpu.program import CpuProgram
from devrt.cpu.queue import CpuQueue
from devrt.device import DeviceHang, DeviceLost, InvalidArgument


def array_of(buffer: CpuBuffer) -> np.ndarray:
    return np.frombuffer(buffer.host(), np.uint64)


@pytest.fixture(scope="module")
def step(device: CpuDevice) -> CpuProgram:
    return device.load(image(STEP), "step")


@pytest.fixture(scope="module")
def shift(device: CpuDevice) -> CpuProgram:
    return device.load(image(SHIFT), "shift")


def steps(x: int, times: int) -> int:
    for _ in range(times):
        x = (3 * x + 1) % 2**64
    return x


def test_layout_matches_the_machine_code() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    module = llvm.parse_assembly(source())
    data = llvm.create_target_data(module.data_layout or "e-m:e-i64:64-n8:16:32:64-S128")
    parts = {"%doorbell": ["written", "host_core"], "%progress": ["read", "executed", "current", "leader_asleep"],
             "%job": ["ticket", "kernel", "args", "groups", "chunk"], "%done": ["done"],
             "%helpers": ["helpers_asleep"], "%fixed": ["os", "ring", "mask", "workers", "stop"]}
    bodies = dict(line.split(";")[0].strip().split(" = type ") for line in source().splitlines() if " = type " in line)
    named = "\n".join(f"{name} = type {body}" for name, body in bodies.items())
    fields = [part.strip() for part in bodies["%queue"].strip("{ }").split(",")]
    assert fields == list(parts)
    probe = llvm.parse_assembly(named + "\n@q = external global %queue\n" +
                                "\n".join(f"@p{i} = external global {part}" for i, part in enumerate(parts)))
    queue = probe.get_global_variable("q").global_value_type
    found = {}
    for i, names in enumerate(parts.values()):
        base = data.get_element_offset(queue, i)
        part = probe.get_global_variable(f"p{i}").global_value_type
        found.update({name: base + data.get_element_offset(part, j) for j, name in enumerate(names)})
    assert found == packets.QUEUE
    assert data.get_abi_size(queue) == packets.QUEUE_BYTES


@pytest.mark.parametrize("groups", [0, 1, 2, 3, 15, 16, 17, 1000, 100_003])
def test_every_group_runs_once(device: CpuDevice, step: CpuProgram, groups: int) -> None:
    buffer = device.alloc(8 * (groups + 1))
    values = array_of(buffer)
    values[:] = np.arange(groups + 1, dtype=np.uint64)
    commands = device.command_list()
    commands.dispatch(step, [buffer], groups)
    device.compute.wait(device.compute.submit(commands))
    expected = np.arange(groups + 1, dtype=np.uint64) * 3 + 1
    expected[groups] = groups
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("groups", [1, 2, 37, 512])
def test_dispatches_of_a_list_are_separated_by_barriers(device: CpuDevice, shift: CpuProgram, groups: int) -> None:
    a, b = device.alloc(8 * groups), device.alloc(8 * groups)
    array_of(a)[:] = np.arange(groups)
    commands = device.command_list()
    rounds = 400
    for i in range(rounds):
        out, in_ = (b, a) if i % 2 == 0 else (a, b)
        commands.dispatch(shift, [out, in_, groups, i], groups)
    for _ in range(5):
        array_of(a)[:] = np.arange(groups)
        device.compute.wait(device.compute.submit(commands))
        expected = np.roll(np.arange(groups, dtype=np.uint64), -rounds) + np.uint64(sum(range(rounds)))
        np.testing.assert_array_equal(array_of(a), expected)


def test_submissions_run_in_order(device: CpuDevice, step: CpuProgram) -> None:
    buffer = device.alloc(8)
    array_of(buffer)[:] = 1
    lists = []
    for i in range(200):
        commands = device.command_list()
        commands.dispatch(step, [buffer], 1)
        if i % 3 == 0:
            commands.dispatch(step, [buffer], 1)
        lists.append(commands)
        last = device.compute.submit(commands)
    device.compute.wait(last)
    assert array_of(buffer)[0] == steps(1, 267)


def test_signals_order_two_queues(device: CpuDevice, step: CpuProgram) -> None:
    a, b = device.alloc(1 << 20), device.alloc(1 << 20)
    array_of(a)[:] = 1
    n = (1 << 20) // 8
    compute, copy = device.command_list(), device.command_list()
    compute.dispatch(step, [a], n)
    copy.copy(b, a, 1 << 20)
    back = device.command_list()
    back.copy(a, b, 1 << 20)
    made, copied = device.signal(), device.signal()
    for i in range(1, 51):
        device.compute.submit(compute, wait=[(copied, i - 1)], signal=[(made, i)])
        device.transfer.submit(copy, wait=[(made, i)], signal=[(copied, i)])
    copied.wait(50, 30)
    assert made.value == copied.value == 50
    np.testing.assert_array_equal(array_of(b), np.full(n, steps(1, 50), np.uint64))


def test_host_signal_starts_queued_work_and_many_threads_wait(device: CpuDevice, step: CpuProgram) -> None:
    buffer, go, done = device.alloc(8), device.signal(), device.signal(7)
    array_of(buffer)[:] = 5
    commands = device.command_list()
    commands.dispatch(step, [buffer], 1)
    value = device.compute.submit(commands, wait=[(go, 3)], signal=[(done, 8)])
    seen: list[int] = []

    def waiter() -> None:
        done.wait(8, 30)
        seen.append(int(array_of(buffer)[0]))

    threads = [threading.Thread(target=waiter) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    assert not seen and device.compute.completed < value
    go.signal(2)
    time.sleep(0.01)
    assert not seen
    go.signal(3)
    for thread in threads:
        thread.join(30)
    assert seen == [16] * 6


def test_threads_submit_at_once(device: CpuDevice, step: CpuProgram) -> None:
    buffers = [device.alloc(8 * 64) for _ in range(4)]

    def work(buffer: CpuBuffer) -> None:
        commands = device.command_list()
        commands.dispatch(step, [buffer], 64)
        for i in range(300):
            value = device.compute.submit(commands)
            if i % 7 == 0:
                device.compute.wait(value, 30)
        device.compute.wait(value, 30)

    for buffer in buffers:
        array_of(buffer)[:] = 2
    threads = [threading.Thread(target=work, args=(buffer,)) for buffer in buffers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for buffer in buffers:
        assert set(array_of(buffer).tolist()) == {steps(2, 300)}


def test_signals_only_grow(device: CpuDevice) -> None:
    signal = device.signal(10)
    signal.signal(10)
    signal.signal(12)
    with pytest.raises(InvalidArgument, match="only grows"):
        signal.signal(11)
    assert signal.value == 12
    signal.wait(12, 0)


def test_waiting_for_a_signal_nobody_raises_is_a_hang(device: CpuDevice) -> None:
    signal = device.signal(4)
    with pytest.raises(DeviceHang) as caught:
        signal.wait(5, 0.05)
    assert (caught.value.completed, caught.value.expected) == (4, 5)
    assert "compute queue" in caught.value.evidence and "transfer queue" in caught.value.evidence


def test_a_hang_names_the_command(device: CpuDevice, step: CpuProgram) -> None:
    buffer, go = device.alloc(8), device.signal()
    commands = device.command_list()
    commands.dispatch(step, [buffer], 1)
    value = device.compute.submit(commands, wait=[(go, 1)])
    with pytest.raises(DeviceHang, match=f"at WAIT {go.address:#x} 0x1"):
        device.compute.wait(value, 0.05)
    go.signal(1)
    device.compute.wait(value, 30)
    slow = device.command_list()
    slow.timestamp(buffer, 0)
    slow.dispatch(device.load(image(BUSY), "busy"), [1_000_000_000], 1)
    value = device.compute.submit(slow)
    with pytest.raises(DeviceHang, match="command 1 of 2, busy"):
        device.compute.wait(value, 0.03)
    device.compute.wait(value, 30)


def test_the_timeout_restarts_on_progress(device: CpuDevice) -> None:
    busy = device.load(image(BUSY), "busy")
    commands = device.command_list()
    for _ in range(12):
        commands.dispatch(busy, [30_000_000], 1)
    profile = Profile(commands)
    value = device.compute.submit(commands, profile=profile)
    device.compute.wait(value, 0.25)  # each kernel is far shorter, all together may be longer
    assert len(profile.durations_ns) == 12 and min(profile.durations_ns) > 0


def test_a_full_ring_blocks_the_submitter_and_loses_nothing(step: CpuProgram, device: CpuDevice) -> None:
    queue = CpuQueue(device, "small", [None], slots=8)
    try:
        buffer, go = device.alloc(8), device.signal()
        array_of(buffer)[:] = 0
        commands = device.command_list()
        commands.dispatch(step, [buffer], 1)
        queue.submit(commands, wait=[(go, 1)])
        submitted = []

        def flood() -> None:
            for _ in range(100):
                submitted.append(queue.submit(commands))

        thread = threading.Thread(target=flood)
        thread.start()
        time.sleep(0.05)
        assert len(submitted) < 4
        go.signal(1)
        thread.join(30)
        queue.wait(101, 30)
        assert array_of(buffer)[0] == steps(0, 101)
        with pytest.raises(InvalidArgument, match="do not fit the ring"):
            queue.submit(commands, wait=[(go, 1)] * 8)
    finally:
        queue.stop()
        assert queue.join()


def test_patching_never_touches_a_list_in_flight(device: CpuDevice, step: CpuProgram) -> None:
    first, second, go = device.alloc(8), device.alloc(8), device.signal()
    array_of(first)[:], array_of(second)[:] = 1, 1
    commands = device.command_list()
    index = commands.dispatch(step, [first], 1)
    before = device.compute.submit(commands, wait=[(go, 1)])
    commands.patch(index, 0, second)
    commands.dispatch(step, [second], 1)
    after = device.compute.submit(commands)
    go.signal(1)
    device.compute.wait(after, 30)
    assert before < after
    assert (array_of(first)[0], array_of(second)[0]) == (4, 13)
    with pytest.raises(InvalidArgument, match="no argument"):
        commands.patch(index, 1, second)
    with pytest.raises(InvalidArgument, match="no dispatch"):
        commands.patch(9, 0, second)


def test_patched_replays_of_many_positions(device: CpuDevice, shift: CpuProgram) -> None:
    """A decode loop: the same list, one argument changed per step, several steps queued at once."""
    a, b = device.alloc(8), device.alloc(8)
    array_of(a)[:] = 0
    commands = device.command_list()
    index = commands.dispatch(shift, [b, a, 1, 0], 1)
    commands.copy(a, b, 8)
    for k in range(100):
        commands.patch(index, 3, k)
        value = device.compute.submit(commands)
    device.compute.wait(value, 30)
    assert array_of(a)[0] == sum(range(100))


def test_timestamps_grow_and_profile_counts_commands(device: CpuDevice, step: CpuProgram) -> None:
    buffer, stamps = device.alloc(8), device.alloc(24)
    commands = device.command_list()
    for i in range(3):
        commands.dispatch(step, [buffer], 1)
        commands.timestamp(stamps, 8 * i)
    profile = Profile(commands)
    low = time.monotonic_ns()
    device.compute.wait(device.compute.submit(commands, profile=profile))
    high = time.monotonic_ns()
    times = array_of(stamps).tolist()
    assert low <= times[0] <= times[1] <= times[2] <= high
    assert len(profile.durations_ns) == 6
    with pytest.raises(InvalidArgument, match="another list"):
        device.compute.submit(device.command_list(), profile=profile)
    with pytest.raises(InvalidArgument, match="not complete"):
        _ = Profile(commands).durations_ns


def test_wrong_arguments_queue_nothing(device: CpuDevice, step: CpuProgram) -> None:
    other = CpuDevice()
    try:
        mine, foreign, freed = device.alloc(64), other.alloc(64), device.alloc(64)
        device.free(freed)
        commands = device.command_list()
        cases = [
            lambda: commands.dispatch(step, [foreign], 1),
            lambda: commands.dispatch(step, [freed], 1),
            lambda: commands.dispatch(step, ["x"], 1),  # type: ignore[list-item]
            lambda: commands.dispatch(step, [1 << 64], 1),
            lambda: commands.dispatch(step, [mine], -1),
            lambda: commands.dispatch(step, [mine], 1.5),  # type: ignore[arg-type]
            lambda: commands.dispatch(other.load(image(NOP), "nop"), [mine], 1),
            lambda: commands.copy(mine, mine, 8),
            lambda: commands.copy(mine, mine, 8, 0, 4),
            lambda: commands.copy(mine, foreign, 8),
            lambda: commands.copy(mine, device.alloc(8), 9),
            lambda: commands.copy(mine, device.alloc(8), 8, 57),
            lambda: commands.copy(mine, device.alloc(8), -1),
            lambda: commands.timestamp(mine, 57),
            lambda: device.compute.submit(other.command_list()),
            lambda: device.compute.submit(commands, wait=[(other.signal(), 1)]),
            lambda: device.compute.submit(commands, signal=[(device.signal(), -1)]),
            lambda: device.compute.wait(device.compute.submitted + 1),
            lambda: device.free(foreign),
        ]
        before = device.compute.submitted
        for case in cases:
            with pytest.raises(InvalidArgument):
                case()
        assert len(commands) == 0 and device.compute.submitted == before
        assert commands.copy(mine, mine, 8, 0, 8) == 0
    finally:
        other.close()


def test_a_list_whose_buffer_is_gone_is_refused(device: CpuDevice, step: CpuProgram) -> None:
    gone, kept = device.alloc(8), device.alloc(8)
    commands = device.command_list()
    index = commands.dispatch(step, [gone], 1)
    device.compute.wait(device.compute.submit(commands))
    device.free(gone)
    with pytest.raises(InvalidArgument, match="after it was freed"):
        device.compute.submit(commands)
    commands.patch(index, 0, kept)
    device.compute.wait(device.compute.submit(commands))


def test_a_list_is_looked_through_only_until_its_buffers_tell_it(device: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, commands = device.alloc(8), device.alloc(8), device.command_list()
    commands.copy(target, source, 8)
    check, seen = CpuBuffer.check, []

    def noted(buffer: CpuBuffer) -> None:
        seen.append(buffer)
        check(buffer)
    monkeypatch.setattr(CpuBuffer, "check", noted)
    for _ in range(5):
        device.compute.wait(device.compute.submit(commands))
    assert len(seen) == 4
    device.free(source)
    with pytest.raises(InvalidArgument, match="after it was freed"):
        device.compute.submit(commands)


def test_text_of_a_list(device: CpuDevice, step: CpuProgram) -> None:
    a, b = device.alloc(64), device.alloc(64)
    commands = device.command_list()
    commands.dispatch(step, [a, 7], 3)
    commands.copy(b, a, 16)
    commands.timestamp(b, 8)
    assert str(commands).splitlines() == [
        f"     0  DISPATCH  {step.address:#x} 0x3 {a.address:#x} 0x7",
        f"     5  COPY      {b.address:#x} {a.address:#x} 0x10",
        f"     9  TIMESTAMP {b.address + 8:#x}"]


def test_ctrl_c_interrupts_a_wait(device: CpuDevice) -> None:
    before = unix.signal(unix.SIGINT, unix.default_int_handler)  # what runs in a shell's background ignores it
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), unix.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            device.signal().wait(1, 20)
        timer.join()
    finally:
        unix.signal(unix.SIGINT, before)


def test_close_drops_what_is_queued_and_wakes_waiters() -> None:
    device = CpuDevice()
    never = device.signal()
    value = device.compute.submit(device.command_list(), wait=[(never, 1)])
    failures: list[Exception] = []

    def waiter() -> None:
        try:
            device.compute.wait(value)
        except DeviceLost as error:
            failures.append(error)

    thread = threading.Thread(target=waiter)
    thread.start()
    time.sleep(0.02)
    device.close()
    thread.join(10)
    assert len(failures) == 1 and "closed" in str(failures[0])
    for use in (lambda: device.alloc(8), lambda: device.compute.submit(CpuCommandList(device)),
                lambda: device.load(b"", "x"), device.signal):
        with pytest.raises(DeviceLost):
            use()
    device.close()


@pytest.mark.parametrize("spins", [0, 3, 2000])
def test_more_workers_than_cores_lose_no_group(device: CpuDevice, shift: CpuProgram, spins: int) -> None:
    """Helpers that come late, sleep at once or are preempted mid-chunk: every path of claiming a chunk."""
    usual, device.processor._os[4] = device.processor._os[4], spins
    queue = CpuQueue(device, "crowd", [None] * 5)
    try:
        sizes = [1, 2, 3, 5, 40, 41, 500, 2, 1]
        top = max(sizes)
        a, b = device.alloc(8 * top), device.alloc(8 * top)
        commands = device.command_list()
        for i in range(200):
            size = sizes[i % len(sizes)]
            commands.dispatch(shift, [b, a, size, i], size)
            commands.dispatch(shift, [a, b, size, 1], size)
        for _ in range(3):
            expected = np.arange(top, dtype=np.uint64)
            array_of(a)[:] = expected
            queue.wait(queue.submit(commands), 60)
            for i in range(200):
                size = sizes[i % len(sizes)]
                expected[:size] = np.roll(expected[:size], -2) + np.uint64(i + 1)
            np.testing.assert_array_equal(array_of(a), expected)
    finally:
        device.processor._os[4] = usual
        queue.stop()
        assert queue.join()
