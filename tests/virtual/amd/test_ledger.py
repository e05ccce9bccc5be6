"""The visibility ledger: every rule fires where hardware would punish, and the sequence that is right passes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devrt.amd import aql, pm4, sdma
from devrt.amd.aql import Fence, PacketType
from devrt.virtual.amd.dispatch import Dispatch
from devrt.virtual.amd.ledger import DIRTY, Flight, Ledger, VisibilityFault, forget
from devrt.virtual.memory import PAGE, Access, AddressSpace
from devrt.virtual.pieces import Piece
from tests.virtual.amd.rig import VRAM, Line, Rig, rig, until
from tests.virtual.amd.test_aql import descriptor, dispatch, signal
from tests.virtual.amd.test_engines import launch

EVERYTHING = pm4.EVERYTHING
Play = Callable[[Dispatch, AddressSpace], None]


@pytest.fixture
def r() -> Iterator[Rig]:
    with rig() as made:
        yield made


def acquire(**bits: Any) -> list[int]:
    whole: dict[str, Any] = dict.fromkeys(("glv_inv", "gl1_inv", "glk_inv", "gl2_inv", "gli_inv"), 1)
    return pm4.encode("ACQUIRE_MEM", 11, coher_size=EVERYTHING, **(bits or whole))


def release(event: int = 0, wb: int = 1, **more: Any) -> list[int]:
    return pm4.encode("RELEASE_MEM", 11, event_type=0x14, event_index=5, gl2_wb=wb, int_sel=1 if event else 0, int_ctxid=event,
                      **more)


FLUSH = pm4.encode("EVENT_WRITE", 11, event_type=7, event_index=4)


def touch(reads: tuple[int, int] | None = None, writes: tuple[int, int] | None = None) -> Play:
    def play(d: Dispatch, space: AddressSpace) -> None:
        assert d.touched is not None
        if reads:
            d.touched.read(*reads)
        if writes:
            d.touched.wrote(*writes)
    return play


def reader(r: Rig, va: int, nbytes: int = 128) -> list[int]:
    return launch(r.kernel(touch(reads=(va, nbytes))))


def writer(r: Rig, va: int, nbytes: int = 128) -> list[int]:
    return launch(r.kernel(touch(writes=(va, nbytes))))


def copy(src: int, dst: int, nbytes: int = 128) -> list[int]:
    return sdma.encode("COPY_LINEAR", 11, count=nbytes - 1, src=src, dst=dst)


# --- dirty in L2 ---

def test_a_copy_reads_what_a_shader_wrote(r: Rig) -> None:
    m, out, q = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue()
    q.push(writer(r, m + 256), FLUSH).drain()
    text = r.queue("sdma").push(copy(m + 300, out)).fault()
    assert f"reads {m + 300:#x}" in text and "DISPATCH_DIRECT at" in text and "of gfx1100 pm4 queue 0" in text
    assert "COPY_LINEAR at 0x0 of gfx1100 sdma queue 1" in text and "no release" in text
    r.queue("sdma").push(copy(m + 384, out)).drain()  # the line beside it


@pytest.mark.parametrize("clean", [release(), acquire(gl2_wb=1), pm4.encode("RELEASE_MEM", 11, event_type=0x28, event_index=5,
                                                                             gl2_wb=1)])
def test_a_copy_after_a_writeback(r: Rig, clean: list[int]) -> None:
    m, out, q = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue()
    q.push(writer(r, m), FLUSH, clean).drain()
    r.queue("sdma").push(copy(m, out)).drain()


def test_a_copy_engine_may_write_back_itself(r: Rig) -> None:
    m, out, q = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue()
    q.push(writer(r, m), FLUSH).drain()
    r.queue("sdma").push(sdma.encode("GCR_REQ", 11, gcr_control=1 << 15), copy(m, out)).drain()


def test_invalidation_is_no_writeback(r: Rig) -> None:
    m, out, q = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue()
    q.push(writer(r, m), FLUSH, acquire()).drain()
    assert "no release" in r.queue("sdma").push(copy(m, out)).fault()


def test_a_writeback_of_other_addresses(r: Rig) -> None:
    m, out, q = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue()
    part = pm4.encode("ACQUIRE_MEM", 11, coher_base=m >> 8, coher_size=1, gl2_wb=1)
    q.push(writer(r, m, 512), FLUSH, part).drain()
    r.queue("sdma").push(copy(m, out, 256)).drain()
    assert f"reads {m + 256:#x}" in r.queue("sdma").push(copy(m, out, 512)).fault()


def test_the_command_processor_reads_past_l2_or_through_it(r: Rig) -> None:
    m, out, q = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue()
    q.push(writer(r, m), FLUSH, pm4.encode("COPY_DATA", 11, src_sel=2, dst_sel=5, src=m, dst=out)).drain()
    q.push(pm4.encode("COPY_DATA", 11, src_sel=1, dst_sel=5, src=m, dst=out))
    assert "COPY_DATA" in q.fault() and "no release" in q.fault()


def test_what_the_command_processor_writes_into_l2_is_dirty_too(r: Rig) -> None:
    m, out, q = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue()
    q.push(pm4.encode("WRITE_DATA", 11, dst_sel=2, address=m, rest=[1])).drain()
    assert "written by WRITE_DATA" in r.queue("sdma").push(copy(m, out)).fault()
    q.push(pm4.encode("WRITE_DATA", 11, dst_sel=5, address=m + 128, rest=[1])).drain()
    r.queue("sdma").push(copy(m + 128, out)).drain()


def test_another_gpu_reads_what_a_shader_wrote() -> None:
    with rig() as a, rig() as b:
        m = a.memory(PAGE, VRAM)
        b.space.map(m, a.space.entry(m) & ~(PAGE - 1), PAGE, Access.PEER | Access.WRITE)
        a.queue().push(writer(a, m), FLUSH).drain()
        assert "dirty in L2 of gfx1100" in b.queue().push(reader(b, m)).fault()
        a.queue().push(release()).drain()
        b.queue().push(reader(b, m)).drain()


# --- stale in the caches ---

def test_a_shader_reads_again_what_a_copy_changed(r: Rig) -> None:
    m, src, q, s = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue(), r.queue("sdma")
    q.push(reader(r, m), FLUSH).drain()
    s.push(copy(src, m)).drain()
    text = q.push(reader(r, m)).fault()
    assert f"reads {m:#x}, written by COPY_LINEAR at 0x0 of gfx1100 sdma queue 1" in text and "no acquire invalidated L2" in text


@pytest.mark.parametrize("again, bits, why", [
    (True, {}, ""), (True, {"glv_inv": 1, "gl1_inv": 1, "glk_inv": 1}, "L2"), (True, {"gl2_inv": 1}, "L1"),
    (True, {"glv_inv": 1, "gl1_inv": 1, "gl2_inv": 1}, "L1"), (False, {}, "")])
def test_acquires(r: Rig, again: bool, bits: dict[str, int], why: str) -> None:
    """Without reading it first the line was never cached; with it, all caches must be invalidated."""
    m, src, q, s = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue(), r.queue("sdma")
    if again:
        q.push(reader(r, m), FLUSH).drain()
    s.push(copy(src, m)).drain()
    q.push(*([acquire(**bits)] if again else []), reader(r, m))
    if why:
        assert f"no acquire invalidated {why}" in q.fault()
    else:
        q.drain()


def test_an_acquire_of_other_addresses(r: Rig) -> None:
    m, src, q, s = r.memory(2 * PAGE, VRAM), r.memory(2 * PAGE), r.queue(), r.queue("sdma")
    q.push(reader(r, m, 2 * PAGE), FLUSH).drain()
    s.push(copy(src, m, 2 * PAGE)).drain()
    bits: dict[str, Any] = dict.fromkeys(("glv_inv", "gl1_inv", "glk_inv", "gl2_inv"), 1)
    q.push(pm4.encode("ACQUIRE_MEM", 11, coher_base=m >> 8, coher_size=PAGE >> 8, **bits), reader(r, m, PAGE), FLUSH).drain()
    assert f"reads {m + PAGE:#x}" in q.push(reader(r, m, 2 * PAGE)).fault()


def test_a_range_over_holes_of_the_address_space(r: Rig) -> None:
    m, q = r.memory(PAGE, VRAM), r.queue()
    q.push(writer(r, m), FLUSH).drain()
    q.push(pm4.encode("ACQUIRE_MEM", 11, coher_base=1, coher_size=(1 << 40) - 2, gl2_wb=1)).drain()
    assert not any((lines & DIRTY).any() for lines in r.gpu.ledger._blocks.values())


def test_a_kernel_reads_again_what_the_next_kernel_wrote(r: Rig) -> None:
    """On one GPU L2 is shared; what is old is the line in L1."""
    m, q = r.memory(PAGE, VRAM), r.queue()
    q.push(reader(r, m), FLUSH, writer(r, m), FLUSH)
    text = q.push(reader(r, m)).fault()
    assert "no acquire invalidated L1" in text
    q = r.queue().push(acquire(glv_inv=1, gl1_inv=1, glk_inv=1), reader(r, m), FLUSH)
    q.drain()


def test_another_queue_reads_through_the_same_l2(r: Rig) -> None:
    m, q = r.memory(PAGE, VRAM), r.queue()
    q.push(writer(r, m), FLUSH).drain()
    r.queue().push(reader(r, m), FLUSH).drain()


def test_gfx9_has_its_own_bits() -> None:
    with rig("gfx90a") as r:
        m, src, q, s = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue(), r.queue("sdma")
        again = launch(r.kernel(touch(reads=(m, 64))), 9)
        flush = pm4.encode("EVENT_WRITE", 9, event_type=7, event_index=4)
        q.push(again, flush, launch(r.kernel(touch(writes=(m, 64))), 9), flush,
               pm4.encode("RELEASE_MEM", 9, event_type=0x14, event_index=5, tc_wb_action=1)).drain()
        s.push(copy(m, src), copy(src, m)).drain()
        whole = pm4.encode("ACQUIRE_MEM", 9, coher_size=EVERYTHING, tcl1_action=1, tc_action=1, sh_kcache_action=1)
        q.push(whole, again, flush).drain()
        s.push(copy(src, m)).drain()
        part = pm4.encode("ACQUIRE_MEM", 9, coher_size=EVERYTHING, tc_action=1)
        assert "no acquire invalidated L1" in q.push(part, again).fault()


# --- telling the host ---

def test_an_interrupt_with_results_left_in_l2(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue()
    text = q.push(writer(r, m), release(event=5, wb=0)).fault()
    assert f"the host reads {m:#x}, written by DISPATCH_DIRECT" in text and "RELEASE_MEM at" in text
    assert r.ear.interrupts == []


def test_an_interrupt_with_results_in_memory(r: Rig) -> None:
    system, vram, q = r.memory(PAGE), r.memory(PAGE, VRAM), r.queue()
    q.push(writer(r, system), release(event=5), writer(r, vram), FLUSH, release(event=6, wb=0)).drain()
    until(lambda: r.ear.interrupts == [5, 6])


def test_an_interrupt_of_another_queue_tells_nothing_of_this_one(r: Rig) -> None:
    m, q, other = r.memory(PAGE), r.queue(), r.queue()
    q.push(writer(r, m), FLUSH).drain()
    other.push(release(event=5, wb=0)).drain()
    until(lambda: r.ear.interrupts == [5])


# --- dispatches that overlap ---

@pytest.mark.parametrize("between, fine", [
    ([], False), ([acquire()], False), ([release()], False), ([FLUSH], True)])
def test_dispatches_of_one_queue_run_at_once(r: Rig, between: list[list[int]], fine: bool) -> None:
    m, q = r.memory(PAGE, VRAM), r.queue()
    q.push(writer(r, m), *between, reader(r, m))
    if fine:
        q.drain()
    else:
        assert "nothing waited for the first to end" in q.fault()


def test_the_host_may_wait_for_the_release(r: Rig) -> None:
    """What it rings for after the event began after it; before the event, at the same time."""
    m, flag, q = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue()
    q.push(writer(r, m), release(data_sel=1, address=flag, data=1))
    until(lambda: r.u32(flag) == 1)
    q.push(reader(r, m)).drain()
    assert "writes what it reads" in q.push(writer(r, m)).fault()


def test_a_wait_for_the_release_waits_for_the_dispatch(r: Rig) -> None:
    m, flag, q = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue()
    wait = pm4.encode("WAIT_REG_MEM", 11, function=3, mem_space=1, address=flag, reference=1, mask=255)
    q.push(writer(r, m), release(data_sel=1, address=flag, data=1), wait, reader(r, m)).drain()
    q.push(wait, writer(r, m))  # the wait is of nothing that came since
    assert "writes what it reads" in q.fault()


def test_independent_dispatches_need_no_wait(r: Rig) -> None:
    m, q = r.memory(PAGE, VRAM), r.queue()
    q.push(writer(r, m, 64), writer(r, m + 64, 64), reader(r, m + 128), reader(r, m + 128)).drain()
    assert "writes it too" in q.push(writer(r, m + 32, 64)).fault()


def test_what_another_gpu_writes_as_a_dispatch_ends(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that told a dispatch something may come into the books later than the dispatch ends."""
    m, q, other = r.memory(PAGE, VRAM), r.queue(), Ledger("gfx942")
    flight = q.queue.port.flight
    add = flight.add

    def late(who: str, reads: list[Piece], writes: list[Piece]) -> None:
        add(who, reads, writes)
        other.shader("teller", "queue", [], reads)
    monkeypatch.setattr(flight, "add", late)
    q.push(reader(r, m)).drain()
    other.close()


def test_flight_finds_the_first_byte() -> None:
    flight = Flight()
    flight.add("one", [], [Piece(0x1000, 0x51000, 16, 0), Piece(0x3000, 0x53000, 4096, 0)])
    with pytest.raises(VisibilityFault) as error:
        flight.add("two", [Piece(0x2FF0, 0x52FF0, 64, 0)], [])
    assert error.value.va == 0x3000
    flight.add("three", [Piece(0x1010, 0x51010, 16, 0)], [])


# --- AQL ---

def aql_kernel(r: Rig, q: Line, **touched: Any) -> Callable[..., bytes]:
    kernel = descriptor(r, touch(**touched))

    def packet(barrier: bool = True, acquire: Fence = Fence.SYSTEM, release: Fence = Fence.SYSTEM, done: int = 0) -> bytes:
        return dispatch(kernel, done=done, head=aql.header(PacketType.KERNEL_DISPATCH, barrier=barrier, acquire=acquire,
                                                           release=release))
    return packet


@pytest.mark.parametrize("scope, why", [(Fence.SYSTEM, ""), (Fence.AGENT, "L2"), (Fence.NONE, "L2")])
def test_acquire_scopes(r: Rig, scope: Fence, why: str) -> None:
    m, src, q, s = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue("aql"), r.queue("sdma")
    packet = aql_kernel(r, q, reads=(m, 64))
    q.aql(packet()).drain()
    s.push(copy(src, m)).drain()
    q.aql(packet(acquire=scope))
    if why:
        assert f"no acquire invalidated {why}" in q.fault()
    else:
        q.drain()


@pytest.mark.parametrize("scope, fine", [(Fence.SYSTEM, True), (Fence.AGENT, False)])
def test_release_scopes(r: Rig, scope: Fence, fine: bool) -> None:
    m, out, q, s = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue("aql"), r.queue("sdma")
    q.aql(aql_kernel(r, q, writes=(m, 64))(release=scope)).drain()
    s.push(copy(m, out))
    if fine:
        s.drain()
    else:
        assert "no release" in s.fault()


@pytest.mark.parametrize("scope, fine", [(Fence.SYSTEM, True), (Fence.AGENT, False)])
def test_signals_tell_the_host(r: Rig, scope: Fence, fine: bool) -> None:
    m, q, done = r.memory(PAGE), r.queue("aql"), signal(r, event=3)
    q.aql(aql_kernel(r, q, writes=(m, 64))(release=scope, done=done))
    if fine:
        q.drain()
        until(lambda: r.ear.interrupts == [3])
    else:
        assert "the host reads" in q.fault()


@pytest.mark.parametrize("barrier, fine", [(True, True), (False, False)])
def test_the_barrier_bit_waits(r: Rig, barrier: bool, fine: bool) -> None:
    m, q = r.memory(PAGE, VRAM), r.queue("aql")
    q.aql(aql_kernel(r, q, writes=(m, 64))(), aql_kernel(r, q, reads=(m, 64))(barrier))
    if fine:
        q.drain()
    else:
        assert "nothing waited for the first to end" in q.fault()


def test_a_barrier_packet_on_the_signal_waits(r: Rig) -> None:
    m, q, done = r.memory(PAGE, VRAM), r.queue("aql"), signal(r)
    q.aql(aql_kernel(r, q, writes=(m, 64))(done=done))
    q.aql(aql.encode(PacketType.BARRIER_AND, dep_signal=[done, 0, 0, 0, 0]))
    q.aql(aql_kernel(r, q, reads=(m, 64))(barrier=False)).drain()


# --- the books themselves ---

def test_freed_pages_are_forgotten(r: Rig) -> None:
    m, out, q = r.memory(PAGE, VRAM), r.memory(PAGE), r.queue()
    q.push(writer(r, m), FLUSH).drain()
    forget(r.space.entry(m) & ~(PAGE - 1), PAGE)
    r.queue("sdma").push(copy(m, out)).drain()


def test_a_clean_ledger_is_empty_and_takes_large_ranges() -> None:
    ledger = Ledger("test")
    try:
        big = [Piece(0, 1 << 40, 1 << 30, Access.VRAM)]
        ledger.shader("kernel", "queue", big, big)
        with pytest.raises(VisibilityFault):
            ledger.memory_read("copy", [Piece(0, (1 << 40) + (1 << 29), 4, 0)])
        ledger.writeback()
        ledger.memory_read("copy", big)
        ledger.acquire(True, True)
        assert ledger.clean
        for _ in range(1000):
            ledger.memory_write("copy", big[:1])
    finally:
        ledger.close()


def test_block_edges() -> None:
    ledger = Ledger("test")
    try:
        edge = 1 << 41
        ledger.shader("kernel", "queue", [], [Piece(0x1000, edge - 1, 2, 0)])
        for va, fine in ((edge - 129, True), (edge - 128, False), (edge + 127, False), (edge + 128, True)):
            piece = [Piece(va - edge + 0x1001, va, 1, 0)]
            if fine:
                ledger.memory_read("copy", piece)
            else:
                with pytest.raises(VisibilityFault) as error:
                    ledger.memory_read("copy", piece)
                assert error.value.va == va - edge + 0x1001 and error.value.writer == "kernel"
    finally:
        ledger.close()


def test_a_program_as_it_should_be(r: Rig) -> None:
    """Upload, two dependent kernels, release with an interrupt, download; twice, over the same buffers."""
    host, vram, back, q, s = r.memory(PAGE), r.memory(2 * PAGE, VRAM), r.memory(PAGE), r.queue(), r.queue("sdma")
    first = launch(r.kernel(touch((vram, PAGE), (vram + PAGE, PAGE))))
    second = launch(r.kernel(touch((vram + PAGE, PAGE), (vram, PAGE))))
    for n in (1, 2):
        r.space.write(host, struct.pack("<I", n))
        s.push(copy(host, vram, PAGE)).drain()
        q.push(acquire(), first, FLUSH, acquire(glv_inv=1, gl1_inv=1, glk_inv=1), second, FLUSH, release(event=n)).drain()
        s.push(copy(vram, back, PAGE)).drain()
        assert r.u32(back) == n
    until(lambda: r.ear.interrupts == [1, 2])


def test_signals_and_time_stamps_are_not_cached(r: Rig) -> None:
    """Fences, time stamps and atomics beside what a kernel reads or writes: programs map such memory uncached."""
    m, q, s = r.memory(PAGE), r.queue(), r.queue("sdma")
    kernel = launch(r.kernel(touch(reads=(m, PAGE))))
    stamp = pm4.encode("COPY_DATA", 11, src_sel=9, dst_sel=5, count_sel=1, src=0, dst=m + 64)
    for _ in range(2):
        q.push(kernel, FLUSH, release(data_sel=1, address=m + 8, data=1), stamp,
               pm4.encode("ATOMIC_MEM", 11, atomic=0x2F, address=m + 16, src_data=1)).drain()
        s.push(sdma.encode("FENCE", 11, address=m + 24, data=1), sdma.encode("TIMESTAMP_GET_GLOBAL", 11, address=m + 32),
               sdma.encode("ATOMIC", 11, atomic_op=47, address=m + 16, src_data=1)).drain()
    assert r.u64(m + 16) == 4
