"""What counts as running at once: launches and copies that nothing separates, and what separates them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devrt.nvidia.methods import CopySemaphore, Semaphore, Transfer
from devrt.nvidia.pushbuffer import Push
from devrt.virtual.memory import PAGE, Access, AddressSpace
from devrt.virtual.nvidia.dispatch import Launch
from tests.virtual.nvidia.rig import COPY0, Line, Rig, rig, semaphore, until
from tests.virtual.nvidia.test_compute import methods, upload
from tests.virtual.nvidia.test_copy import copy, release

Touches = dict[str, tuple[int, int]]


@pytest.fixture
def r() -> Iterator[Rig]:
    with rig() as made:
        yield made


def kernel(r: Rig, *, reads: tuple[int, int] | None = None, writes: tuple[int, int] | None = None, **fields: int) -> int:
    """The descriptor of a kernel that touches (address, bytes)."""
    def play(launch: Launch, space: AddressSpace) -> None:
        assert launch.touched is not None
        if reads:
            launch.touched.read(*reads)
        if writes:
            launch.touched.wrote(*writes)
    return r.qmd(r.kernel(play), **fields)


def both(line: Line, first: Push, second: Push, between: Callable[[Push], Any] = lambda push: None) -> Line:
    """Two pushes in one ring, with something between."""
    push = line.pushes()
    push.words.extend(first.words)
    between(push)
    push.words.extend(second.words)
    return line.send(push)


# --- launches of one channel ---

@pytest.mark.parametrize("first, second, what", [
    ({"writes": (0, 64)}, {"reads": (32, 4)}, "reads what it writes"),
    ({"writes": (0, 64)}, {"writes": (60, 64)}, "writes it too"),
    ({"reads": (0, 64)}, {"writes": (60, 64)}, "writes what it reads"),
])
def test_a_race_names_both_kernels(r: Rig, first: Touches, second: Touches, what: str) -> None:
    m, line = r.memory(), r.channel()
    a, b = (kernel(r, **{k: (m + at, n) for k, (at, n) in touches.items()}) for touches in (first, second))
    text = both(line, line.launch(a), line.launch(b)).error()
    assert text.startswith("Xid 13: Graphics Exception: ChID 0001, Class 0000cbc0") and what in text
    assert f"nothing waits for kernel {r.player.seen[0].entry:#x} (QMD at {a:#x}" in text
    assert f"and kernel {r.player.seen[1].entry:#x} (QMD at {b:#x}" in text
    start = m + next(iter(second.values()))[0]
    assert f"race at {max(start, m + next(iter(first.values()))[0]):#x}" in text


@pytest.mark.parametrize("first, second", [
    ({"reads": (0, 64)}, {"reads": (0, 64)}), ({"writes": (0, 64)}, {"reads": (64, 64)}),
    ({"writes": (64, 64)}, {"writes": (0, 64)}),
])
def test_no_race(r: Rig, first: Touches, second: Touches) -> None:
    m, line = r.memory(), r.channel()
    a, b = (kernel(r, **{k: (m + at, n) for k, (at, n) in touches.items()}) for touches in (first, second))
    both(line, line.launch(a), line.launch(b)).drain()


@pytest.mark.parametrize("separates", ["WAIT_FOR_IDLE", "INVALIDATE_SHADER_CACHES", "WFI", "release_wfi", "acquire"])
def test_what_separates_launches(r: Rig, separates: str) -> None:
    m, s, line = r.memory(), r.memory(), r.channel()

    def between(push: Push) -> None:
        if separates == "WFI":
            push.host("WFI", 0)
        elif separates == "release_wfi":
            semaphore(push, s, 1, operation=Semaphore.RELEASE, release_wfi=1)
        elif separates == "acquire":
            push.compute("SET_REPORT_SEMAPHORE_A", s >> 32, s & 0xFFFFFFFF, 1)
            push.compute("SET_REPORT_SEMAPHORE_D", structure_size_one_word=1)
            semaphore(push, s, 1, operation=Semaphore.ACQ_CIRC_GEQ, payload_size_64bit=0)
        else:
            push.compute(separates, 0)
    both(line, line.launch(kernel(r, writes=(m, 64))), line.launch(kernel(r, reads=(m, 64))), between).drain()


@pytest.mark.parametrize("separates", ["nothing", "NO_WFI", "release", "report", "unflushed", "another semaphore"])
def test_what_does_not(r: Rig, separates: str) -> None:
    m, s, line = r.memory(), r.memory(), r.channel()
    r.space.write(s + 8, b"\x01")

    def between(push: Push) -> None:
        if separates == "NO_WFI":
            push.compute("INVALIDATE_SHADER_CACHES_NO_WFI", instruction=1, global_data=1, constant=1)
        elif separates == "release":
            semaphore(push, s, 1, operation=Semaphore.RELEASE)
            semaphore(push, s, 1, operation=Semaphore.ACQUIRE)
        elif separates in ("report", "unflushed"):
            push.compute("SET_REPORT_SEMAPHORE_A", s >> 32, s & 0xFFFFFFFF, 1)
            push.compute("SET_REPORT_SEMAPHORE_D", structure_size_one_word=1, flush_disable=separates == "unflushed")
            if separates == "unflushed":
                semaphore(push, s, 1, operation=Semaphore.ACQUIRE, payload_size_64bit=0)
        elif separates == "another semaphore":
            semaphore(push, s + 8, 1, operation=Semaphore.ACQUIRE)
    text = both(line, line.launch(kernel(r, writes=(m, 64))), line.launch(kernel(r, reads=(m, 64))), between).error()
    assert "race at" in text


def test_memory_of_the_host_is_left_alone(r: Rig) -> None:
    """A launch tells pages, and buffers of the host share pages."""
    m, line = r.memory(access=Access.SYSTEM | Access.WRITE), r.channel()
    both(line, line.launch(kernel(r, writes=(m, 64))), line.launch(kernel(r, reads=(m, 64)))).drain()


def test_a_chain_of_descriptors_is_in_order(r: Rig) -> None:
    m, line = r.memory(), r.channel()
    third = kernel(r, reads=(m, 64))
    second = kernel(r, dependent_qmd0_enable=1, dependent_qmd0_action=1, dependent_qmd0_pointer=third)
    first = kernel(r, writes=(m, 64), dependent_qmd0_enable=1, dependent_qmd0_action=1, dependent_qmd0_pointer=second)
    line.send(line.launch(first)).drain()
    assert len(r.player.seen) == 3


def test_a_chain_races_with_what_was_launched_before(r: Rig) -> None:
    m, line = r.memory(), r.channel()
    second = kernel(r, reads=(m, 64))
    first = kernel(r, dependent_qmd0_enable=1, dependent_qmd0_action=1, dependent_qmd0_pointer=second)
    assert "race at" in both(line, line.launch(kernel(r, writes=(m, 64))), line.launch(first)).error()


def test_the_host_that_waited_for_a_semaphore_separates(r: Rig) -> None:
    m, s, line = r.memory(), r.memory(), r.channel()
    a = kernel(r, writes=(m, 64), release_enable_0=1, release_address_0=s, release_payload_0=1, release_structure_size_0=1)
    b = kernel(r, reads=(m, 64))
    line.send(line.launch(a))
    until(lambda: r.u32(s) == 1)
    line.send(line.launch(b)).drain()


def test_a_release_without_a_membar_tells_nothing(r: Rig) -> None:
    m, s, line = r.memory(), r.memory(), r.channel()
    a = kernel(r, writes=(m, 64), cwd_membar_type=0, release_enable_0=1, release_address_0=s, release_payload_0=1,
               release_structure_size_0=1)
    b = kernel(r, reads=(m, 64))
    acquire = semaphore(line.pushes(), s, 1, operation=Semaphore.ACQUIRE, payload_size_64bit=0)
    text = both(line, line.launch(a), line.launch(b), lambda push: push.words.extend(acquire.words)).error()
    assert "race at" in text


def test_an_upload_into_what_a_launch_reads(r: Rig) -> None:
    m, line = r.memory(), r.channel()
    text = both(line, line.launch(kernel(r, reads=(m, 64))), upload(line, m + 60, bytes(8))).error()
    assert "inline upload" in text and "writes what it reads" in text
    line, other = r.channel(), r.memory()
    both(line, upload(line, other, bytes(8)), line.launch(kernel(r, reads=(other, 64)))).drain()


def test_many_launches_in_order_are_forgotten(r: Rig) -> None:
    m, s, line = r.memory(), r.memory(), r.channel()
    at = kernel(r, writes=(m, 64))
    for n in range(50):
        line.send(semaphore(line.launch(at), s, n, operation=Semaphore.RELEASE, release_wfi=1)).drain()
    track, = r.gpu.order.tracks
    assert len(track.works) <= 2


# --- copies, and several channels ---

def test_pipelined_copies_may_run_at_once(r: Rig) -> None:
    line, a, b, c = r.channel(COPY0), r.memory(), r.memory(), r.memory()
    both(line, copy(line, a, b, 64), copy(line, b, c, 64)).drain()
    both(line, copy(line, a, b, 64), copy(line, c, a + 64, 64, data_transfer_type=Transfer.PIPELINED)).drain()
    text = both(line, copy(line, a, b, 64), copy(line, b, c, 64, data_transfer_type=Transfer.PIPELINED)).error()
    assert text.startswith("Xid 39: CE0") and f"nothing waits for copy of 64 bytes from {a:#x} to {b:#x} in channel 0x1" in text


def handed_over(r: Rig, flush: int, acquire: bool, wait: int) -> tuple[Line, Line]:
    """A kernel writes, a copy in another channel takes that on, and a kernel of the first reads what was copied."""
    compute, engine, m, n, s = r.channel(), r.channel(COPY0), r.memory(), r.memory(), r.memory()
    first = semaphore(compute.launch(kernel(r, writes=(m, 64))), s, 1, operation=Semaphore.RELEASE, release_wfi=wait)
    take = engine.pushes()
    if acquire:
        semaphore(take, s, 1, operation=Semaphore.ACQ_CIRC_GEQ)
    take.words.extend(copy(engine, m, n, 64).words)
    release(take, s, 2, flush_enable=flush)
    last = semaphore(compute.pushes(), s, 2, operation=Semaphore.ACQ_CIRC_GEQ)
    last.words.extend(compute.launch(kernel(r, reads=(n, 64))).words)
    engine.send(take)
    if not acquire:
        engine.drain()
    compute.send(first, last)
    return compute, engine


def test_semaphores_order_channels(r: Rig) -> None:
    for line in handed_over(r, flush=1, acquire=True, wait=1):
        line.drain()


def test_a_copy_that_nobody_flushed(r: Rig) -> None:
    compute, _ = handed_over(r, flush=0, acquire=True, wait=1)
    assert "reads what it writes" in compute.error() and "nothing waits for copy of 64 bytes" in compute.error()


def test_a_launch_that_nobody_waited_for(r: Rig) -> None:
    _, engine = handed_over(r, flush=1, acquire=True, wait=0)
    assert "reads what it writes" in engine.error() and "nothing waits for kernel" in engine.error()


@pytest.mark.parametrize("told", [True, False])
def test_a_gate_of_the_host(r: Rig, told: bool) -> None:
    """What the host opens comes after what a semaphore told it before."""
    a, b, m, gate, s = r.channel(), r.channel(COPY0), r.memory(), r.memory(), r.memory()
    b.send(semaphore(b.pushes(), gate, 1, operation=Semaphore.ACQUIRE), copy(b, m, m + 512, 64))  # rung before the launch
    push = a.launch(kernel(r, writes=(m, 64)))
    a.send(semaphore(push, s, 1, operation=Semaphore.RELEASE, release_wfi=told)).drain()
    r.space.write(gate, b"\x01")
    if told:
        b.drain()
    else:
        assert "nothing waits for kernel" in b.error()


def test_a_gate_of_another_channel_that_did_not_wait(r: Rig) -> None:
    a, b, c, m, gate = r.channel(), r.channel(COPY0), r.channel(), r.memory(), r.memory()
    b.send(*(semaphore(b.pushes(), gate, 1, operation=Semaphore.ACQUIRE), copy(b, m, m + 512, 64)))
    a.send(a.launch(kernel(r, writes=(m, 64)))).drain()
    c.send(semaphore(c.pushes(), gate, 1, operation=Semaphore.RELEASE, release_wfi=1))
    assert "nothing waits for kernel" in b.error()


def test_semaphores_that_count_up(r: Rig) -> None:
    """Two channels add to one semaphore; whoever sees the sum comes after both."""
    a, b, c, s, m, n = r.channel(COPY0), r.channel(COPY0 + 1), r.channel(), r.memory(), r.memory(), r.memory()
    add = {"semaphore_reduction_enable": 1, "semaphore_reduction": 5, "semaphore_reduction_unsigned": 1}
    push = semaphore(c.pushes(), s, 2, operation=Semaphore.ACQUIRE, payload_size_64bit=0)
    push.words.extend(c.launch(kernel(r, reads=(m, 128))).words)
    c.send(push)
    for line, at in ((a, m), (b, m + 64)):
        line.send(release(copy(line, n, at, 64), s, 1, semaphore_type=CopySemaphore.RELEASE_ONE_WORD, **add))
    c.drain()


def test_a_second_gpu(r: Rig) -> None:
    """Order goes through channels of another GPU that shares a semaphore."""
    with rig() as other:
        s, m = r.memory(), r.memory()
        host = r.space.entry(s) & ~(PAGE - 1)
        other.space.map(s, host, PAGE, r.space.entry(s) & (PAGE - 1))  # type: ignore[arg-type]
        a, far, b = r.channel(), other.channel(), r.channel()
        push = semaphore(b.pushes(), s, 2, operation=Semaphore.ACQUIRE)
        push.words.extend(b.launch(kernel(r, reads=(m, 64))).words)
        b.send(push)
        push = semaphore(far.pushes(), s, 1, operation=Semaphore.ACQUIRE)
        far.send(semaphore(push, s, 2, operation=Semaphore.RELEASE))
        a.send(semaphore(a.launch(kernel(r, writes=(m, 64))), s, 1, operation=Semaphore.RELEASE, release_wfi=1))
        b.drain()


def test_an_idle_wait_in_one_channel_says_nothing_of_another(r: Rig) -> None:
    a, b, m, gate = r.channel(), r.channel(), r.memory(), r.memory()
    b.send(semaphore(b.pushes(), gate, 1, operation=Semaphore.ACQUIRE))
    push = methods(b, ("WAIT_FOR_IDLE", 0))
    push.words.extend(b.launch(kernel(r, reads=(m, 64))).words)
    b.send(push)
    push = a.launch(kernel(r, writes=(m, 64)))
    a.send(semaphore(push, gate, 1, operation=Semaphore.RELEASE))
    assert "race at" in b.error()
