"""Engines and channels beside each other: kernels that wait for what copies, the host, other kernels and other GPUs write."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from devrt.ioctl.system import LinuxSystem
from devrt.nvidia.methods import Semaphore, Transfer
from devrt.virtual.memory import PAGE, Access
from devrt.virtual.nvidia.dispatch import Executor
from tests.virtual.nvidia.rig import COPY0, Line, Rig, rig, semaphore, until
from tests.virtual.nvidia.test_copy import copy, release
from tests.virtual.nvidia.test_run import EACH, SPIN, STORE, code, descriptor, machine, words

# The pages of a waiting kernel's memory: what it makes, whether it has begun, what it waits for, what it reads then.
OUT, BEGUN, FLAG, DATA = 0, PAGE, 2 * PAGE, 3 * PAGE
SEVENS = [7 * n for n in range(32)]
NUMBERS = list(range(32))
VOLATILE, PLAIN = "LDG.E.STRONG.SYS R4,", "LDG.E R4,"


def waiting(load: str) -> tuple[str, ...]:
    """Says that it has begun, waits until its flag is not 0, and takes data on."""
    more = ", RZ" if load.startswith("ATOM") else ""
    return (*EACH, "MOV R10, 0x1", f"STG.E.STRONG.SYS [R8.64+{BEGUN:#x}], R10", f"{load} [R8.64+{FLAG:#x}]{more}",
            "ISETP.EQ.U32.AND P0, PT, R4, RZ, PT", "@P0 BRA 0x90", f"LDG.E R5, [R2.64+{DATA:#x}]", "STG.E [R2.64], R5", "EXIT")


TELLING = (*EACH, f"STG.E [R2.64+{DATA:#x}], R0", "MEMBAR.SC.SYS", "MOV R10, 0x1", f"STG.E.STRONG.SYS [R8.64+{FLAG:#x}], R10",
           "EXIT")


@pytest.fixture
def r() -> Iterator[Rig]:
    with machine(86) as made:
        yield made


class Waiter:
    """A channel whose kernel waits, and has begun."""

    def __init__(self, r: Rig, load: str = VOLATILE) -> None:
        self.r, self.line, self.m, self.done = r, r.channel(), r.memory(4 * PAGE), r.memory()
        at = descriptor(r, code(r, waiting(load)), self.m, 1)
        self.line.send(semaphore(self.line.launch(at), self.done, 1, operation=Semaphore.RELEASE, release_wfi=1))
        until(lambda: self.line.channel.error or r.u32(self.m + BEGUN))
        assert not self.line.channel.error and not r.u64(self.done)

    def made(self) -> list[int]:
        self.line.drain()
        assert self.r.u64(self.done) == 1
        return words(self.r, self.m, 32)


def source(r: Rig) -> int:
    """Data to copy, with a flag behind it."""
    m = r.memory(2 * PAGE)
    r.space.write(m, b"".join(n.to_bytes(4, "little") for n in SEVENS))
    r.space.write(m + PAGE, b"\x01")
    return m


@pytest.mark.parametrize("how", ["copied", "released"])
@pytest.mark.parametrize("load", [VOLATILE, PLAIN, "LD.E.STRONG.GPU R4,", "ATOMG.E.OR.STRONG.GPU PT, R4,"])
def test_a_copy_frees_a_kernel(r: Rig, how: str, load: str) -> None:
    m, waiter, line = source(r), Waiter(r, load), r.channel(COPY0)
    push = copy(line, m, waiter.m + DATA, 128)
    if how == "released":
        release(push, waiter.m + FLAG, 1)
    else:
        push.words.extend(copy(line, m + PAGE, waiter.m + FLAG, 4).words)
    line.send(push).drain()
    assert waiter.made() == SEVENS


@pytest.mark.parametrize("load", [VOLATILE, PLAIN])
def test_the_host_frees_a_kernel(r: Rig, load: str) -> None:
    m, waiter, line, s = source(r), Waiter(r, load), r.channel(COPY0), r.memory()
    line.send(release(copy(line, m, waiter.m + DATA, 128), s, 1)).drain()
    r.space.write(waiter.m + FLAG, b"\x01")
    assert waiter.made() == SEVENS


@pytest.mark.parametrize("how", ["semaphore", "upload"])
def test_another_channel_frees_a_kernel(r: Rig, how: str) -> None:
    m, waiter, line = source(r), Waiter(r), r.channel()
    push = copy(line, m, waiter.m + DATA, 128)
    push.host("WFI", 0)
    if how == "semaphore":
        semaphore(push, waiter.m + FLAG, 1, operation=Semaphore.RELEASE)
    else:
        push.compute("LINE_LENGTH_IN", 4, 1)
        push.compute("OFFSET_OUT_UPPER", waiter.m + FLAG >> 32, waiter.m + FLAG & 0xFFFFFFFF)
        push.compute("LAUNCH_DMA", dst_memory_layout_pitch=1, completion_type=1)
        push.compute("LOAD_INLINE_DATA", 1)
    line.send(push).drain()
    assert waiter.made() == SEVENS


@pytest.mark.parametrize("load", [VOLATILE, PLAIN])
def test_another_kernel_frees_a_kernel(r: Rig, load: str) -> None:
    waiter, line = Waiter(r, load), r.channel()
    line.send(line.launch(descriptor(r, code(r, TELLING), waiter.m, 1))).drain()
    assert waiter.made() == NUMBERS


def test_what_was_told_before_a_kernel_waits(r: Rig) -> None:
    """Whether it began before or after is an accident: a volatile load acquires."""
    line, other, m = r.channel(), r.channel(), r.memory(4 * PAGE)
    other.send(other.launch(descriptor(r, code(r, TELLING), m, 1))).drain()
    line.send(line.launch(descriptor(r, code(r, waiting(VOLATILE)), m, 1))).drain()
    assert words(r, m, 32) == NUMBERS


def shared(r: Rig, other: Rig, va: int, nbytes: int) -> None:
    """Map memory of one GPU at the same addresses of another."""
    for at in range(va, va + nbytes, PAGE):
        entry = r.space.entry(at)
        other.space.map(at, entry & ~(PAGE - 1), PAGE, Access.PEER | Access.WRITE)


def test_another_gpu_frees_a_kernel(r: Rig) -> None:
    with machine(86) as other:
        waiter, line = Waiter(r), other.channel()
        shared(r, other, waiter.m, 4 * PAGE)
        line.send(line.launch(descriptor(other, code(other, TELLING), waiter.m, 1))).drain()
        assert waiter.made() == NUMBERS


def test_kernels_of_two_gpus_in_turns(r: Rig) -> None:
    """Each waits for the number that the other one writes, and writes the next."""
    lines = (*EACH, "MOV R10, {start}", "LDG.E.STRONG.SYS R4, [R8.64]", "ISETP.NE.U32.AND P0, PT, R4, R10, PT", "@P0 BRA 0x80",
             "IADD3 R11, R10, 0x1, RZ", "STG.E.STRONG.SYS [R8.64], R11", "IADD3 R10, R10, 0x2, RZ",
             "ISETP.LT.U32.AND P1, PT, R10, 0x28, PT", "@P1 BRA 0x80", "EXIT")
    with machine(86) as other:
        m = r.memory()
        shared(r, other, m, PAGE)
        both = [(one, one.channel()) for one in (r, other)]
        for start, (one, line) in enumerate(both):
            entry = code(one, [text.replace("{start}", hex(start)) for text in lines])
            line.send(line.launch(descriptor(one, entry, m, 1)))
        for _, line in both:
            line.drain()
        assert r.u32(m) == 40


def test_a_channel_waits_for_a_running_kernel(r: Rig) -> None:
    """A copy takes what a kernel told, by a semaphore or by the host, while it still runs."""
    lines = (*EACH, f"STG.E [R2.64+{DATA:#x}], R0", "MEMBAR.SC.SYS", "MOV R10, 0x1", f"STG.E.STRONG.SYS [R8.64+{BEGUN:#x}], R10",
             f"LDG.E.STRONG.SYS R4, [R8.64+{FLAG:#x}]", "ISETP.EQ.U32.AND P0, PT, R4, RZ, PT", "@P0 BRA 0xb0", "EXIT")
    m, n, line = r.memory(4 * PAGE), r.memory(), r.channel()
    waits, rung = r.channel(COPY0), r.channel(COPY0 + 1)
    waits.send(semaphore(waits.pushes(), m + BEGUN, 1, operation=Semaphore.ACQUIRE, payload_size_64bit=0),
               copy(waits, m + DATA, n, 128))
    line.send(line.launch(descriptor(r, code(r, lines), m, 1)))
    waits.drain()
    rung.send(copy(rung, m + DATA, n + 128, 128)).drain()
    assert words(r, n, 64) == 2 * NUMBERS and not line.quiet
    r.space.write(m + FLAG, b"\x01")
    line.drain()


def test_a_kernel_that_nobody_frees_hangs() -> None:
    with machine(86, budget=100_000) as r:
        waiter, line, s = Waiter(r), r.channel(), r.memory()
        runner = next(runner for runner in r.gpu.runners if runner.channel is waiter.line.channel)
        until(lambda: runner.hung)
        line.send(semaphore(line.launch(descriptor(r, code(r, STORE), waiter.m)), s, 1, operation=1)).drain()
        assert r.u64(s) == 1 and not r.u64(waiter.done) and not r.told and not waiter.line.channel.error
        r.gpu.detach(waiter.line.channel)


@pytest.mark.parametrize("runs", [True, False])
def test_kernels_of_two_channels_that_race(r: Rig, runs: bool) -> None:
    """Whether the first one still runs or not."""
    first = (*STORE[:-1], "MOV R10, 0x1", f"STG.E [R8.64+{BEGUN:#x}], R10", "BRA 0xa0") if runs else STORE
    a, b, m = r.channel(), r.channel(), r.memory(4 * PAGE)
    a.send(a.launch(descriptor(r, code(r, first), m, 1)))
    until(lambda: r.u32(m + BEGUN) if runs else a.quiet)
    text = b.send(b.launch(descriptor(r, code(r, STORE), m, 1))).error()
    assert f"race at {m:#x}: nothing waits for kernel" in text and "writes it too" in text
    assert not a.channel.error


def test_a_copy_of_what_a_running_kernel_writes(r: Rig) -> None:
    lines = (*STORE[:-1], "MOV R10, 0x1", f"STG.E [R8.64+{BEGUN:#x}], R10", "BRA 0xa0")
    a, b, m = r.channel(), r.channel(COPY0), r.memory(4 * PAGE)
    a.send(a.launch(descriptor(r, code(r, lines), m, 1)))
    until(lambda: r.u32(m + BEGUN))
    assert "reads what it writes" in b.send(copy(b, m, m + DATA, 64)).error()


def test_a_race_of_a_kernel_that_goes_on_is_its_own(r: Rig) -> None:
    """What it wrote in its turn is found when the other channel moves, which goes on."""
    spins = (*EACH, f"LDG.E.STRONG.SYS R4, [R8.64+{FLAG:#x}]", "ISETP.EQ.U32.AND P0, PT, R4, RZ, PT", "@P0 BRA 0x70",
             "STG.E [R2.64], R0", "MOV R10, 0x1", f"STG.E.STRONG.SYS [R8.64+{BEGUN:#x}], R10", "BRA 0xd0")
    a, b, m, s = r.channel(), r.channel(), r.memory(4 * PAGE), r.memory()
    b.send(b.launch(descriptor(r, code(r, STORE), m, 1))).drain()
    a.send(a.launch(descriptor(r, code(r, spins), m, 1)))
    r.space.write(m + FLAG, b"\x01")
    until(lambda: r.u32(m + BEGUN))
    b.send(semaphore(b.pushes(), s, 1, operation=Semaphore.RELEASE, release_wfi=1)).drain()
    assert "writes it too" in a.error() and not b.channel.error


def test_a_copy_that_nobody_waits_for_is_no_flag(r: Rig) -> None:
    """Plain loads of what an earlier copy wrote are a race, whatever else the kernel polls."""
    m, line, other = r.memory(4 * PAGE), r.channel(), r.channel(COPY0)
    other.send(copy(other, source(r), m + DATA, 128)).drain()
    r.space.write(m + FLAG, b"\x01")
    assert "reads what it writes" in line.send(line.launch(descriptor(r, code(r, waiting(VOLATILE)), m, 1))).error()


def test_sixteen_channels(r: Rig) -> None:
    """Launches and copies on all of them, each behind others that were drawn: they add up the numbers of what they wait for."""
    draw = random.Random(16)
    lines = [r.channel() if n % 2 else r.channel(COPY0 + n // 2 % 4) for n in range(16)]
    counts, done = r.memory(16 * PAGE), [0] * 16
    entry = code(r, STORE)
    for _ in range(96):
        n = draw.randrange(16)
        line, push = lines[n], lines[n].pushes()
        for other in draw.sample([k for k in range(16) if k != n], 2):
            if done[other]:
                semaphore(push, counts + PAGE * other, draw.randint(1, done[other]), operation=Semaphore.ACQ_STRICT_GEQ)
        m = r.memory(2 * PAGE)
        if n % 2:
            push.words.extend(line.launch(descriptor(r, entry, m), wait=True).words)
        else:
            push.words.extend(copy(line, m, m + PAGE, 64, data_transfer_type=Transfer.PIPELINED).words)
        done[n] += 1
        line.send(semaphore(push, counts + PAGE * n, done[n], operation=Semaphore.RELEASE, release_wfi=1))
    for n in draw.sample(range(16), 16):
        lines[n].drain()
        assert r.u64(counts + PAGE * n) == done[n]


def test_waiting_kernels_on_sixteen_channels(r: Rig) -> None:
    """A ring: each kernel waits for the one before it, and the first for the host."""
    m = r.memory(17 * 4 * PAGE)
    lines = [r.channel() for _ in range(16)]
    text = (*EACH, f"LDG.E.STRONG.SYS R4, [R8.64+{FLAG:#x}]", "ISETP.EQ.U32.AND P0, PT, R4, RZ, PT", "@P0 BRA 0x70",
            f"LDG.E R5, [R2.64+{DATA:#x}]", "IADD3 R5, R5, 0x1, RZ", f"STG.E [R2.64+{DATA + 4 * PAGE:#x}], R5", "MEMBAR.SC.SYS",
            "MOV R10, 0x1", f"STG.E.STRONG.SYS [R8.64+{FLAG + 4 * PAGE:#x}], R10", "EXIT")
    entry = code(r, text)
    for n, line in enumerate(lines):
        line.send(line.launch(descriptor(r, entry, m + 4 * PAGE * n, 1)))
    r.space.write(m + FLAG, b"\x01")
    for line in lines:
        line.drain()
    assert words(r, m + 4 * PAGE * 16 + DATA, 32) == [16] * 32


def test_threads_end_with_their_gpu() -> None:
    with rig(86, executor=Executor(86, LinuxSystem())) as r:
        line: Line = r.channel()
        line.send(line.launch(descriptor(r, code(r, SPIN), r.memory())))
        thread = r.gpu._thread
    assert thread is not None and not thread.is_alive()
