"""Queues, doorbells and PM4: words written by hand as the kernel's headers have them, and packets from the tables."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator

import pytest

from devrt.amd import pm4, sdma
from devrt.amd.registers import pack
from devrt.virtual.amd.dispatch import WaveFault
from devrt.virtual.foreign import ProcessSpace
from devrt.virtual.memory import PAGE, Access
from tests.virtual.amd.rig import SYSTEM, Rig, rig, until


@pytest.fixture
def r() -> Iterator[Rig]:
    with rig() as made:
        yield made


def lo_hi(va: int) -> list[int]:
    return [va & 0xFFFFFFFF, va >> 32]


def write(va: int, *data: int) -> list[int]:
    return pm4.encode("WRITE_DATA", 11, dst_sel=5, wr_confirm=1, address=va, rest=data)


def launch(entry: int, gfx: int = 11, groups: tuple[int, int, int] = (1, 1, 1), threads: tuple[int, ...] = (32, 1, 1),
           user: tuple[int, ...] = (), initiator: dict[str, int] | None = None, rsrc2: dict[str, int] | None = None) -> list[int]:
    wave32 = {"CS_W32_EN": 1} if gfx > 9 else {}
    return [
        *pm4.set_sh("COMPUTE_PGM_LO", gfx, entry >> 8 & 0xFFFFFFFF, entry >> 40),
        *pm4.set_sh("COMPUTE_PGM_RSRC1", gfx, 0, pack("COMPUTE_PGM_RSRC2", gfx, USER_SGPR=len(user), **(rsrc2 or {}))),
        *pm4.set_sh("COMPUTE_NUM_THREAD_X", gfx, *threads),
        *(pm4.set_sh("COMPUTE_USER_DATA_0", gfx, *user) if user else []),
        *pm4.encode("DISPATCH_DIRECT", gfx, dim_x=groups[0], dim_y=groups[1], dim_z=groups[2],
                    dispatch_initiator=pack("COMPUTE_DISPATCH_INITIATOR", gfx, COMPUTE_SHADER_EN=1, FORCE_START_AT_000=1,
                                            **wave32, **(initiator or {})))]


# --- packets ---

def test_words_by_hand(r: Rig) -> None:
    """WRITE_DATA, then RELEASE_MEM with 64 bits of data and an interrupt, as nvd.h lays them out."""
    m, q = r.memory(PAGE), r.queue()
    q.push([0xC0043700, 5 << 8 | 1 << 20, *lo_hi(m), 0x11, 0x22],
           [0xC0064900, 0x28 | 5 << 8 | 1 << 21, 2 << 24 | 2 << 29, *lo_hi(m + 8), 0x55667788, 0x11223344, 77]).drain()
    assert r.space.read(m, 16) == struct.pack("<IIQ", 0x11, 0x22, 0x1122334455667788)
    until(lambda: r.ear.interrupts == [77])
    assert q.rptr == 14


def test_ring_wraps_and_rptr_is_within_it(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue(ring_bytes=1024)  # 256 dwords; five of them a packet, so packets run over the end
    for n in range(100):
        q.push(write(m, n)).drain()
        assert r.u32(m) == n
    assert q.wptr == 500 and q.rptr == 500 % 256


def test_nop_of_one_dword_and_of_many(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue()
    q.push([0xFFFF1000], [0xC0021000, 1, 2, 3], write(m, 9)).drain()
    assert r.u32(m) == 9


def test_write_data_to_one_address(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue()
    q.push(pm4.encode("WRITE_DATA", 11, dst_sel=5, addr_incr=1, address=m, rest=[1, 2, 3])).drain()
    assert r.space.read(m, 12) == struct.pack("<3I", 3, 0, 0)


def test_copy_data(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue()
    r.space.write(m, struct.pack("<Q", 0x1234567890))
    q.push(pm4.encode("COPY_DATA", 11, src_sel=1, dst_sel=5, count_sel=1, src=m, dst=m + 64),
           pm4.encode("COPY_DATA", 11, src_sel=5, dst_sel=5, src=0xABC, dst=m + 72),
           pm4.encode("COPY_DATA", 11, src_sel=9, dst_sel=5, count_sel=1, src=0, dst=m + 80)).drain()
    assert (r.u64(m + 64), r.u32(m + 72)) == (0x1234567890, 0xABC)
    assert abs(r.u64(m + 80) - time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) // 10) < 500_000_000  # 100 MHz, 5 s


@pytest.mark.parametrize("operation, before, source, after", [
    (0x0F, 5, 3, 8), (0x10, 5, 3, 2), (0x07, 5, 3, 3), (0x12, 5, 3, 3), (0x14, 5, 3, 5), (0x15, 6, 3, 2), (0x16, 4, 3, 7),
    (0x17, 5, 3, 6), (0x11, 5, 0xFFFFFFFF, 0xFFFFFFFF), (0x13, 5, 0xFFFFFFFF, 5), (0x18, 3, 3, 0), (0x18, 2, 3, 3),
    (0x19, 0, 3, 3), (0x19, 2, 3, 1), (0x10, 0, 1, 0xFFFFFFFF), (0x4F, 5, 3, 8)])
def test_atomics(r: Rig, operation: int, before: int, source: int, after: int) -> None:
    m, q = r.memory(PAGE), r.queue()
    r.space.write(m, struct.pack("<II", before, 77))
    q.push(pm4.encode("ATOMIC_MEM", 11, atomic=operation, address=m, src_data=source),
           pm4.encode("COPY_DATA", 11, src_sel=6, dst_sel=5, src=0, dst=m + 256)).drain()
    assert (r.u32(m), r.u32(m + 4), r.u32(m + 256)) == (after, 77, before)


def test_atomic_compare_loop_waits(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue()
    q.push(pm4.encode("ATOMIC_MEM", 11, atomic=0x28, command=1, address=m, src_data=9, cmp_data=1 << 40, loop_interval=4))
    time.sleep(0.02)
    assert r.u64(m) == 0 and q.rptr == 0
    r.space.write(m, struct.pack("<Q", 1 << 40))
    q.drain()
    assert r.u64(m) == 9


def test_wait_suspends_its_queue_only(r: Rig) -> None:
    m, slow, fast = r.memory(PAGE), r.queue(), r.queue()
    slow.push(pm4.encode("WAIT_REG_MEM", 11, function=5, mem_space=1, address=m, reference=3, mask=0xFF), write(m + 8, 1))
    fast.push(write(m + 16, 2)).drain()
    assert r.u32(m + 8) == 0 and slow.rptr == 0
    r.space.write(m, b"\x04")
    slow.drain()
    assert r.u32(m + 8) == 1


def test_wait_of_64_bits_and_of_a_register_pair(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue()
    q.push(pm4.encode("WAIT_REG_MEM", 11, operation=1, address=0x1234 | 0x1235 << 32, mask=1),  # an HDP flush
           pm4.encode("WAIT_REG_MEM64", 11, function=3, mem_space=1, address=m, reference=1 << 33, mask=(1 << 64) - 1))
    until(lambda: q.rptr == 7)
    r.space.write(m, struct.pack("<Q", 1 << 33))
    q.drain()


def test_buffers_and_chains(r: Rig) -> None:
    m, first, second, q = r.memory(PAGE), r.memory(PAGE), r.memory(PAGE), r.queue()
    tail = write(m + 4, 2)
    r.space.write(second, struct.pack(f"<{len(tail)}I", *tail))
    head = [*write(m, 1), 0xC0023F00, *lo_hi(second), len(tail) | 1 << 20 | 1 << 23]
    r.space.write(first, struct.pack(f"<{len(head)}I", *head))
    q.push(pm4.encode("INDIRECT_BUFFER", 11, ib_base=first, ib_size=len(head), valid=1), write(m + 8, 3)).drain()
    assert r.space.read(m, 12) == struct.pack("<3I", 1, 2, 3)


def test_conditional_execution(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue()
    skipped, taken = write(m, 1), write(m + 4, 2)
    r.space.write(m + 64, b"\x01")
    q.push(pm4.encode("COND_EXEC", 11, address=m + 60, exec_count=len(skipped)), skipped,
           pm4.encode("COND_EXEC", 11, address=m + 64, exec_count=len(taken)), taken).drain()
    assert (r.u32(m), r.u32(m + 4)) == (0, 2)


def test_pred_exec_counts_for_the_first_xcc(r: Rig) -> None:
    m, ib, q = r.memory(PAGE), r.memory(PAGE), r.queue()
    words = [word for mask in (2, 1) for packet in (pm4.encode("PRED_EXEC", 11, xcc_mask=mask, exec_count=5),
                                                    write(m + 4 * mask, mask)) for word in packet]
    r.space.write(ib, struct.pack(f"<{len(words)}I", *words))
    q.push(pm4.encode("INDIRECT_BUFFER", 11, ib_base=ib, ib_size=len(words), valid=1)).drain()
    assert (r.u32(m + 4), r.u32(m + 8)) == (1, 0)


@pytest.mark.parametrize("gfx", ["gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201"])
def test_dispatch_from_registers(gfx: str) -> None:
    with rig(gfx) as r:
        q, entry = r.queue(), r.kernel()
        q.push(launch(entry, r.gfx, (3, 2, 1), (64, 2, 1), user=(7, 8), rsrc2={"LDS_SIZE": 3}))
        q.push(pm4.encode("EVENT_WRITE", r.gfx, event_type=7, event_index=4)).drain()
        (d,) = r.player.seen
        assert (d.entry, d.groups, d.group_size, d.partial, d.user_sgprs) == (entry, (3, 2, 1), (64, 2, 1), (64, 2, 1), (7, 8))
        assert (d.lds_bytes, d.wave, d.start) == (1536, 64 if r.gfx == 9 else 32, (0, 0, 0))


def test_dispatch_indirect_in_threads_with_scratch_and_start(r: Rig) -> None:
    q, entry, m = r.queue(), r.kernel(), r.memory(PAGE)
    r.space.write(m, struct.pack("<3I", 100, 7, 1))
    initiator = pack("COMPUTE_DISPATCH_INITIATOR", 11, COMPUTE_SHADER_EN=1, USE_THREAD_DIMENSIONS=1, CS_W32_EN=1)
    q.push(launch(entry, threads=(32, 4, 1), rsrc2={"SCRATCH_EN": 1},
                  initiator={})[:-5],  # its state only
           pm4.set_sh("COMPUTE_DISPATCH_SCRATCH_BASE_LO", 11, 0x1234, 1),
           pm4.set_sh("COMPUTE_TMPRING_SIZE", 11, pack("COMPUTE_TMPRING_SIZE", 11, WAVES=4, WAVESIZE=2)),
           pm4.set_sh("COMPUTE_START_X", 11, 1, 0, 0),
           pm4.encode("DISPATCH_INDIRECT", 11, address=m, dispatch_initiator=initiator)).drain()
    (d,) = r.player.seen
    assert (d.groups, d.group_size, d.partial, d.start) == ((3, 2, 1), (32, 4, 1), (4, 3, 1), (1, 0, 0))
    assert (d.scratch_base, d.scratch_bytes_per_wave) == ((1 << 32 | 0x1234) << 8, 512)


def test_last_groups_of_partial_size(r: Rig) -> None:
    q, entry = r.queue(), r.kernel()
    q.push(launch(entry, groups=(2, 1, 1), threads=(32 | 5 << 16, 1, 1), initiator={"PARTIAL_TG_EN": 1}))
    q.push(launch(entry, groups=(2, 0, 1))).drain()
    assert [d.partial for d in r.player.seen] == [(5, 1, 1)]  # a dispatch of no groups does nothing


# --- what is refused ---

@pytest.mark.parametrize("words, why", [
    ([0x80000000], "no type-3 header"),
    ([0xC0008800], "opcode 0x88"),
    ([0xC0033700, 5 << 8, 0, 0], "left"),
    ([0xC0003700, 5 << 8], "WRITE_DATA has 1 dwords"),
    (pm4.encode("WRITE_DATA", 11, dst_sel=0, address=0x1234, rest=[1]), "writes no registers"),
    ([0xC0033700, 5 << 8 | 1 << 12, 0x1000, 0, 0], "reserved bit 12"),
    ([0xC0033700, 5 << 8, 0x1002, 0, 0], "not a multiple of 4"),
    ([0xC0017600, 0x300, 1], "no compute register at SH offset 0x300"),
    ([0xC0017900, 0x10, 1], "no register at UCONFIG"),
    (pm4.encode("WAIT_REG_MEM", 11, function=3, address=0x1000, mask=1), "waits for no register"),
    (pm4.encode("WAIT_REG_MEM", 11, function=3, mem_space=1, address=0x1000), "mask is 0"),
    (pm4.encode("INDIRECT_BUFFER", 11, ib_base=0x1000, ib_size=4), "VALID"),
    (pm4.encode("INDIRECT_BUFFER", 11, ib_base=0x1000, ib_size=4, valid=1, vmid=3), "vmid"),
    (pm4.encode("INDIRECT_BUFFER", 11, ib_base=0x1000, ib_size=4, valid=1, chain=1), "only a buffer can chain"),
    (pm4.encode("PRED_EXEC", 11, xcc_mask=1, exec_count=1), "in a buffer only"),
    (pm4.encode("COND_EXEC", 11, address=0x1000, exec_count=1), "not mapped"),
    ([0xC0004600, 7], "event_index"),
    ([0xC0004600, 0x28], "an event of RELEASE_MEM"),
    ([0xC0064900, 0x28, 0, 0, 0, 0, 0, 0], "event_index"),
    ([0xC0064900, 0x07 | 5 << 8, 0, 0, 0, 0, 0, 0], "no event at the end of the pipe"),
    (pm4.encode("ATOMIC_MEM", 11, atomic=0x1F, address=0x1000), "no atomic operation 0x1f"),
    (pm4.encode("COPY_DATA", 11, src_sel=0, dst_sel=5, src=1, dst=0x1000), "nothing to copy from REGISTER"),
])
def test_bad_packets_stop_the_queue(r: Rig, words: list[int], why: str) -> None:
    q, other = r.queue(), r.queue()
    text = q.push(pm4.encode("NOP", 11), words).fault()
    assert why in text and "at 0x1:" in text and f"{words[0]:08x}" in text, text
    assert q.rptr == 1 and "pm4 queue 0" in text
    until(lambda: r.ear.exceptions or r.ear.faults)
    other.push(pm4.encode("NOP", 11)).drain()  # the others go on


@pytest.mark.parametrize("change, why", [
    ({"initiator": {"COMPUTE_SHADER_EN": 0}}, "COMPUTE_SHADER_EN"),
    ({"threads": (0, 1, 1)}, "NUM_THREAD is 0"),
    ({"threads": (1024, 2, 1)}, "1024 is the most"),
    ({"rsrc2": {"LDS_SIZE": 129}}, "bytes of LDS"),
    ({"rsrc2": {"SCRATCH_EN": 1}}, "SCRATCH_EN without"),
])
def test_bad_dispatches(r: Rig, change: dict[str, dict[str, int]], why: str) -> None:
    entry, q = r.kernel(), r.queue()
    if "COMPUTE_SHADER_EN" in change.get("initiator", {}):
        q.push(pm4.encode("DISPATCH_DIRECT", 11, dim_x=1, dim_y=1, dim_z=1, dispatch_initiator=4))
    else:
        q.push(launch(entry, **change))  # type: ignore[arg-type]
    assert why in q.fault() and not r.player.seen


def test_a_program_that_was_never_set_or_is_no_code(r: Rig) -> None:
    q = r.queue().push(launch(0))
    assert "no program was set" in q.fault()
    data = r.memory(PAGE, Access.SYSTEM | Access.WRITE)
    q = r.queue().push(launch(data))
    assert "not executable" in q.fault()
    until(lambda: r.ear.faults)
    assert r.ear.faults[0].va == data


def test_no_buffer_calls_a_buffer(r: Rig) -> None:
    ib, q = r.memory(PAGE), r.queue()
    r.space.write(ib, struct.pack("<4I", 0xC0023F00, *lo_hi(ib), 4 | 1 << 23))
    text = q.push(pm4.encode("INDIRECT_BUFFER", 11, ib_base=ib, ib_size=4, valid=1)).fault()
    assert "calls no buffer" in text and f"in the buffer {ib:#x}" in text


def test_a_wave_fault_stops_the_queue(r: Rig) -> None:
    def bad(d: object, space: object) -> None:
        raise WaveFault("missing wait", 0x1234, 3, "v3 is read before it is loaded")
    q = r.queue().push(launch(r.kernel(bad)))
    assert "missing wait at 0x1234, lane 3" in q.fault() and "DISPATCH_DIRECT" in q.fault()


@pytest.mark.parametrize("bell, stored, why", [
    (4, 4, "went back"), (300 + 257, 300 + 257, "still unread"), (400, 300, "before the write pointer")])
def test_doorbells(r: Rig, bell: int, stored: int, why: str) -> None:
    m, q = r.memory(PAGE), r.queue(ring_bytes=1024)
    for _ in range(60):
        q.push(write(m, 1)).drain()
    q.ring_bell(bell, stored)
    assert why in q.fault()


# --- queues ---

def test_queues_are_paused_evicted_updated_and_destroyed(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue()
    q.queue.evict()
    q.push(write(m, 1))
    time.sleep(0.02)
    assert r.u32(m) == 0
    q.queue.restore()
    q.drain()
    assert r.u32(m) == 1
    q.queue.update(q.ring, q.ring_bytes, 0, 0)
    q.push(write(m, 2))
    time.sleep(0.02)
    assert r.u32(m) == 1
    q.queue.update(q.ring, q.ring_bytes, 100, 7)
    q.drain()
    assert r.u32(m) == 2
    q.queue.destroy()
    q.queue.destroy()
    q.bell += b"nobody looks"  # the engine let go of the doorbell
    time.sleep(0.01)
    assert r.u32(m) == 2


def test_destroy_ends_a_wait(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue()
    q.push(pm4.encode("WAIT_REG_MEM", 11, function=3, mem_space=1, address=m, reference=1, mask=1))
    time.sleep(0.01)
    q.queue.destroy()
    r.queue().push(write(m, 5)).drain()
    assert r.u32(m) == 5


def test_destroy_and_close_end_a_dispatch(r: Rig) -> None:
    def endless(d: object, space: object) -> Iterator[None]:
        started.set()
        try:
            while True:
                yield
        finally:
            ended.set()
    started, ended, m, entry = threading.Event(), threading.Event(), r.memory(PAGE), r.kernel(endless)
    q, other = r.queue(), r.queue()
    q.push(launch(entry))
    assert started.wait(10)
    other.queue.destroy()  # not this one
    assert not ended.is_set()
    q.queue.destroy()
    assert ended.is_set()
    r.queue().push(write(m, 1)).drain()
    assert r.u32(m) == 1 and not r.ear.exceptions
    started.clear()
    q = r.queue().push(launch(entry))
    assert started.wait(10)
    r.gpu.close()


def test_the_driver_may_evict_from_an_interrupt(r: Rig) -> None:
    """A driver holds its own lock when it hears of an interrupt, and when it evicts."""
    m, q, lock = r.memory(PAGE), r.queue(), threading.Lock()

    def hear(event: int) -> None:
        with lock:
            q.queue.evict()
            q.queue.restore()
    r.ear.on_interrupt = hear
    release = pm4.encode("RELEASE_MEM", 11, event_type=0x28, event_index=5, int_sel=1, int_ctxid=5)
    for _ in range(50):
        q.push(release, write(m, 1))
        with lock:
            q.queue.evict()
            q.queue.restore()
        q.drain()
    assert r.ear.interrupts == [5] * 50


# --- injected faults ---

def test_injected_hang_lasts_until_the_queue_is_destroyed() -> None:
    with rig(faults="hang@2") as r:
        m, q, other = r.memory(PAGE), r.queue(), r.queue()
        q.push(write(m, 1)).drain()
        q.push(write(m, 2))
        until(lambda: q.queue.hung)
        other.push(write(m + 8, 3)).drain()
        assert (r.u32(m), q.queue.faulted, r.ear.exceptions) == (1, None, [])
        q.queue.destroy()
        r.queue().push(write(m, 4)).drain()


def test_injected_page_fault_ecc_and_reset() -> None:
    for spec, told in (("page-fault", "injected"), ("ecc", "uncorrectable"), ("reset", "was reset")):
        with rig(faults=spec) as r:
            q, other = r.queue(), r.queue()
            q.push(launch(r.kernel()))
            assert told in q.fault()
            if spec == "page-fault":
                until(lambda r=r: r.ear.faults)  # type: ignore[misc]
                other.push(pm4.encode("NOP", 11)).drain()
            else:
                until(lambda r=r: r.ear.exceptions)  # type: ignore[misc]
                assert r.ear.exceptions == [(0, 1 if spec == "ecc" else 0, True)]
                assert "the GPU was reset" in other.fault()
                r.queue().push(launch(r.kernel())).drain()  # queues made after a reset work


def test_injected_loss_of_an_interrupt() -> None:
    with rig(faults="lost-interrupt@2") as r:
        q = r.queue()
        for n in range(3):
            q.push(pm4.encode("RELEASE_MEM", 11, event_type=0x28, event_index=5, int_sel=1, int_ctxid=n)).drain()
        until(lambda: r.ear.interrupts == [0, 2])


# --- time ---

def test_latency_of_steady_work(r: Rig) -> None:
    """From the doorbell to the packet's write, work arriving every half millisecond; the best quarter shows the engine
    itself, whatever else the machine is doing."""
    m, q, times = r.memory(PAGE), r.queue(), []
    for n in range(1, 300):
        q.push(write(m, n))
        start = time.perf_counter()
        while r.u32(m) != n:
            time.sleep(0)
        times.append(time.perf_counter() - start)
        time.sleep(5e-4)
    assert sorted(times)[len(times) // 4] < 200e-6


def test_an_idle_gpu_costs_next_to_nothing(r: Rig) -> None:
    queues = [r.queue(), r.queue("sdma"), r.queue("aql")]
    queues[0].push(pm4.encode("NOP", 11)).drain()
    time.sleep(0.3)
    thread = r.gpu._thread
    assert thread is not None and thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    before = time.clock_gettime(clock)
    time.sleep(1.5)
    assert time.clock_gettime(clock) - before < 0.15  # a thread that spins takes all of it


def test_a_gpu_without_queues_sleeps_and_ends() -> None:
    with rig() as r:
        q = r.queue()
        q.queue.destroy()
        time.sleep(0.05)
        thread = r.gpu._thread
        assert thread is not None and thread.is_alive()
    assert not thread.is_alive()


def test_read_only_memory_faults_with_its_address(r: Rig) -> None:
    va = r.memory(PAGE, SYSTEM & ~Access.WRITE)
    assert "mapped read-only" in r.queue().push(write(va + 64, 1)).fault()
    until(lambda: r.ear.faults)
    assert (r.ear.faults[0].va, r.ear.faults[0].access) == (va + 64, "write")


class _Other:
    """Memory of another process, as devrt.virtual.foreign.ForeignMemory."""

    def __init__(self) -> None:
        self.data = bytearray(8 * PAGE)

    def read(self, address: int, nbytes: int) -> bytes:
        return bytes(self.data[address - PAGE:address - PAGE + nbytes])

    def write(self, address: int, data: bytes) -> None:
        self.data[address - PAGE:address - PAGE + len(data)] = data


def test_memory_of_another_process(r: Rig) -> None:
    """FOREIGN pages: the ring, its pointers and the data all lie where only read and write reach."""
    other = _Other()
    r.space.close()
    r.space = ProcessSpace(r.system, other)
    va = 0x5000_0000_0000
    r.space.map(va, PAGE, 8 * PAGE, SYSTEM | Access.FOREIGN)
    here = r.memory(4 * PAGE)
    r.space.map(here + PAGE, PAGE, PAGE, SYSTEM | Access.FOREIGN)
    for kind in ("pm4", "sdma"):
        q = r.queue(kind)
        q.queue._ring, q.queue._rptr, q.ring, q.rptr_va = va, va + 7 * PAGE, va, va + 7 * PAGE
        m = here + PAGE - 4
        if kind == "pm4":
            q.push(write(m, 1, 2, 3), pm4.encode("ATOMIC_MEM", 11, atomic=0x0F, address=m + 4, src_data=40)).drain()
            assert struct.unpack("<3I", r.space.read(m, 12)) == (1, 42, 3) and other.data[:8] == struct.pack("<2I", 42, 3)
        else:
            q.push(sdma.encode("CONST_FILL", 11, fillsize=2, dst=m, src_data=7, count=3 * 4 - 4),
                   sdma.encode("COPY_LINEAR", 11, count=11, src=m, dst=m + 20)).drain()
            assert struct.unpack("<3I", other.data[16:28]) == (7, 7, 7)
        q.queue.destroy()
