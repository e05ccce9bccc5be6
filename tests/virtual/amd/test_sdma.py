"""The copy engine: words written by hand as the kernel's headers have them, and packets from the table."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest

from devrt.amd import sdma
from devrt.virtual.memory import PAGE, MemoryFault
from devrt.virtual.pieces import pieces
from tests.virtual.amd.rig import SYSTEM, VRAM, Rig, rig, until

MIB = 1 << 20


@pytest.fixture
def r() -> Iterator[Rig]:
    with rig() as made:
        yield made


def lo_hi(va: int) -> list[int]:
    return [va & 0xFFFFFFFF, va >> 32]


def copy(src: int, dst: int, nbytes: int, gfx: int = 11) -> list[int]:
    return sdma.encode("COPY_LINEAR", gfx, count=nbytes - 1, src=src, dst=dst)


def noise(r: Rig, va: int, nbytes: int) -> bytes:
    data = np.random.default_rng(nbytes).bytes(nbytes)
    r.space.write(va, data)
    return data


def test_words_by_hand(r: Rig) -> None:
    """COPY_LINEAR, FENCE and TRAP as sdma_v6_0_0_pkt_open.h lays them out."""
    m, q = r.memory(2 * PAGE), r.queue("sdma")
    data = noise(r, m, 1001)
    q.push([0x1, 1000, 0, *lo_hi(m), *lo_hi(m + 5000)], [0x5 | 3 << 16, *lo_hi(m + 8000), 0xFEED], [0x6, 321]).drain()
    assert r.space.read(m + 5000, 1001) == data and r.u32(m + 8000) == 0xFEED and r.space.read(m + 6001, 1) == b"\0"
    until(lambda: r.ear.interrupts == [321])
    assert q.rptr == q.wptr == 4 * 13


@pytest.mark.parametrize("gfx", ["gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201"])
def test_copies_of_any_alignment_over_scattered_pages(gfx: str) -> None:
    with rig(gfx) as r:
        q = r.queue("sdma")
        src, dst = r.memory(40 * PAGE), r.memory(40 * PAGE, VRAM)
        for n in range(0, 40, 3):  # swap pages, so that neither side lies together
            page = r.memory(PAGE)
            r.space.map(src + n * PAGE, r.space.entry(page) & ~(PAGE - 1), PAGE, SYSTEM)
        data = noise(r, src, 40 * PAGE)
        for at, to, nbytes in ((0, 0, 1), (4095, 1, 2), (17, 4097, 30 * PAGE + 3), (5, 6, 10 * PAGE), (0, 0, 40 * PAGE)):
            q.push(copy(src + at, dst + to, nbytes, r.gfx)).drain()
            assert r.space.read(dst + to, nbytes) == data[at:at + nbytes]


def test_large_copies(r: Rig) -> None:
    src, dst, q = r.memory(128 * MIB), r.memory(128 * MIB, VRAM), r.queue("sdma")
    data = noise(r, src, 128 * MIB)
    q.push(copy(src, dst, 128 * MIB)).drain()
    assert r.space.read(dst, 128 * MIB) == data


def test_fills_and_writes(r: Rig) -> None:
    m, q = r.memory(4 * PAGE), r.queue("sdma")
    q.push(sdma.encode("CONST_FILL", 11, fillsize=0, dst=m + 1, src_data=0xAB, count=6 - 1),
           sdma.encode("CONST_FILL", 11, fillsize=1, dst=m + 10, src_data=0x1234, count=6 - 2),
           [0x2 << 30 | 0xB, *lo_hi(m + PAGE - 8), 0xDEADBEEF, 16 - 4],
           sdma.encode("WRITE_UNTILED", 11, dst=m + 64, rest=[1, 2, 3]),
           sdma.encode("TIMESTAMP_GET_GLOBAL", 11, address=m + 128)).drain()
    assert r.space.read(m, 18) == b"\0" + b"\xab" * 6 + b"\0\0\0" + b"\x34\x12" * 3 + b"\0\0"
    assert r.space.read(m + PAGE - 8, 20) == struct.pack("<4I", *[0xDEADBEEF] * 4) + b"\0" * 4
    assert r.space.read(m + 64, 12) == struct.pack("<3I", 1, 2, 3)
    assert abs(r.u64(m + 128) - time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) // 10) < 500_000_000


def test_poll_suspends_its_queue_only(r: Rig) -> None:
    m, slow, fast = r.memory(PAGE), r.queue("sdma"), r.queue("sdma")
    poll = [0x8 | 5 << 28 | 1 << 31, *lo_hi(m), 7, 0xFFFFFFFF, 0xFFF << 16 | 4]  # until it is at least 7
    slow.push(poll, sdma.encode("FENCE", 11, address=m + 8, data=1))
    fast.push(sdma.encode("FENCE", 11, address=m + 16, data=2)).drain()
    assert (r.u32(m + 8), slow.rptr) == (0, 0)
    r.space.write(m, b"\x07")
    slow.drain()
    assert r.u32(m + 8) == 1


def test_atomics(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue("sdma")
    r.space.write(m, struct.pack("<Qq", 0xFFFFFFFF, 5))
    q.push([10 | 47 << 25, *lo_hi(m), 1, 0, 0, 0, 0],
           sdma.encode("ATOMIC", 11, atomic_op=47, address=m + 8, src_data=(1 << 64) - 7)).drain()
    assert struct.unpack("<Qq", r.space.read(m, 16)) == (1 << 32, -2)


def test_atomic_compare_loop_waits(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue("sdma")
    q.push(sdma.encode("ATOMIC", 11, atomic_op=40, loop=1, address=m, src_data=5, cmp_data=4, loop_interval=1))
    time.sleep(0.01)
    assert q.rptr == 0
    r.space.write(m, b"\x04")
    q.drain()
    assert r.u64(m) == 5


def test_conditional_execution(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue("sdma")
    fence = sdma.encode("FENCE", 11, address=m + 8, data=1)
    q.push(sdma.encode("COND_EXE", 11, address=m, reference=1, exec_count=len(fence)), fence).drain()
    assert r.u32(m + 8) == 0
    r.space.write(m, b"\x01")
    q.push(sdma.encode("COND_EXE", 11, address=m, reference=1, exec_count=len(fence)), fence).drain()
    assert r.u32(m + 8) == 1


def test_buffers(r: Rig) -> None:
    m, ib, q = r.memory(PAGE), r.memory(PAGE), r.queue("sdma")
    words = [*sdma.encode("FENCE", 11, address=m, data=9), 0, 0, 0, 0]
    r.space.write(ib, struct.pack("<8I", *words))
    q.push([0, 0], sdma.encode("INDIRECT", 11, ib_base=ib, ib_size=8), sdma.encode("FENCE", 11, address=m + 8, data=3)).drain()
    assert (r.u32(m), r.u32(m + 8)) == (9, 3)


def test_ring_is_filled_up_at_its_end(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue("sdma", 1024)
    for n in range(200):
        fence = sdma.encode("FENCE", 11, address=m, data=n)
        left = (1024 - q.wptr % 1024) // 4
        q.push([0] * left if left < len(fence) else [], fence).drain()
        assert r.u32(m) == n
    assert q.rptr == q.wptr == 3200  # bytes since the queue was made


def test_nop_carries_what_it_skips(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue("sdma")
    q.push([3 << 16, 0xFF, 0xFF, 0xFF], sdma.encode("FENCE", 11, address=m, data=1)).drain()
    assert r.u32(m) == 1


# --- what is refused ---

@pytest.mark.parametrize("words, why", [
    ([0xFF], "no packet with opcode 255.0"),
    ([0x1, 100], "COPY_LINEAR needs 7 dwords"),
    ([0x1 | 1 << 20, 0, 0, 0, 0, 0, 0], "reserved bit 20"),
    ([0x1 | 1 << 27, 0, 0, 0x1000, 0, 0x2000, 0], "broadcast"),
    (sdma.encode("COPY_LINEAR", 11, count=PAGE - 1, src=0x10000, dst=0x10800), "overlap"),
    (sdma.encode("COPY_LINEAR", 11, count=PAGE - 1, src=0x10000, dst=0x20000), "read of 0x10000: not mapped"),
    ([0x5, 0x1002, 0, 1], "reserved bit 1"),
    ([0x8 | 3 << 28 | 1 << 31, 0x1002, 0, 0, 1, 0], "not a multiple of 4"),
    (sdma.encode("POLL_REGMEM", 11, func=3, address=0x1000, mask=1), "waits for no register"),
    (sdma.encode("POLL_REGMEM", 11, func=3, mem_poll=1, address=0x1000), "mask is 0"),
    (sdma.encode("CONST_FILL", 11, fillsize=2, dst=0x1000, count=3), "7 bytes are no multiple of 4"),
    ([0x2 << 30 | 0xB, 0x1002, 0, 1, 12], "not a multiple of 4"),
    (sdma.encode("INDIRECT", 11, ib_base=0x1000, ib_size=8), "not on a multiple of 8"),
    ([0x4, 0x1010, 0, 8, 0, 0], "reserved bit 4"),
    (sdma.encode("ATOMIC", 11, atomic_op=0, address=0x1000), "no atomic operation 0x0"),
])
def test_bad_packets_stop_the_queue(r: Rig, words: list[int], why: str) -> None:
    q, other = r.queue("sdma"), r.queue("sdma")
    text = q.push([0], words).fault()
    assert why in text and "at 0x4:" in text and f"{words[0]:08x}" in text, text
    assert q.rptr == 4
    other.push([0]).drain()


@pytest.mark.parametrize("gfx", ["gfx90a", "gfx942", "gfx1030", "gfx1100"])
def test_a_count_has_thirty_bits(gfx: str) -> None:
    """What ROCr sends to the 4.4 engines and later: more than the 22 bits of the 4.0 header."""
    with rig(gfx) as r:
        src, dst, q = r.memory(5 * MIB), r.memory(5 * MIB), r.queue("sdma")
        data = noise(r, src, 5 * MIB)
        q.push([0x1, 5 * MIB - 1, 0, *lo_hi(src), *lo_hi(dst)]).drain()
        assert r.space.read(dst, 5 * MIB) == data
        assert "reserved bit 30" in q.push([0x1, 1 << 30, 0, *lo_hi(src), *lo_hi(dst)]).fault()


@pytest.mark.parametrize("gfx", ["gfx90a", "gfx942"])
def test_gcr_is_not_of_gfx9(gfx: str) -> None:
    with rig(gfx) as r:
        q = r.queue("sdma").push([0x0111, 0, 0, 0, 0])
        assert "no packet with opcode 17.1" in q.fault()


def test_a_packet_must_not_wrap(r: Rig) -> None:
    m, q = r.memory(PAGE), r.queue("sdma", 1024)
    q.push([0] * 254).drain()
    assert "runs over the ring's end" in q.push(sdma.encode("FENCE", 11, address=m, data=1)).fault()


def test_a_buffer_of_odd_length_and_a_nested_one(r: Rig) -> None:
    ib = r.memory(PAGE)
    q = r.queue("sdma").push([0, 0], sdma.encode("INDIRECT", 11, ib_base=ib, ib_size=9))
    assert "of a multiple of 8" in q.fault()
    r.space.write(ib, struct.pack("<8I", 0, 0, *sdma.encode("INDIRECT", 11, ib_base=ib, ib_size=8)))
    q = r.queue("sdma").push([0, 0], sdma.encode("INDIRECT", 11, ib_base=ib, ib_size=8))
    assert "calls no buffer" in q.fault() and f"in the buffer {ib:#x}" in q.fault()


def test_poll_that_gives_up(r: Rig) -> None:
    m = r.memory(PAGE)
    poll = sdma.encode("POLL_REGMEM", 11, func=3, mem_poll=1, address=m, value=1, mask=1, retry_count=5, interval=4)
    assert "gives up after 5" in r.queue("sdma").push(poll).fault()


def test_a_doorbell_counts_bytes_of_dwords(r: Rig) -> None:
    q = r.queue("sdma")
    q.ring_bell(6)
    assert "not a multiple of 4" in q.fault()


def test_injected_corruption_is_one_bit() -> None:
    with rig(faults="corrupt-copy@2") as r:
        src, dst, q = r.memory(MIB), r.memory(MIB), r.queue("sdma")
        data = np.frombuffer(noise(r, src, MIB), np.uint8)
        for want in (0, 1, 0):
            q.push(copy(src, dst, MIB)).drain()
            wrong = np.frombuffer(r.space.read(dst, MIB), np.uint8) ^ data
            assert int(np.unpackbits(wrong).sum()) == want


def test_injected_page_fault_of_a_copy() -> None:
    with rig(faults="page-fault@2") as r:
        src, dst, q = r.memory(PAGE), r.memory(PAGE), r.queue("sdma")
        q.push(copy(src, dst, PAGE)).drain()
        assert "injected" in q.push(copy(src, dst, PAGE)).fault()
        until(lambda: r.ear.faults and r.ear.faults[0].va == src)


# --- pages in one go ---

def test_pieces_agree_with_the_page_walk(r: Rig) -> None:
    """The vectorised walk against AddressSpace.runs, over holes, table edges and pages that lie together or not."""
    base = (1 << 24) * 3 - 40 * PAGE  # a table of 4096 pages ends in between
    host = r.space.entry(r.memory(100 * PAGE)) & ~(PAGE - 1)
    r.space.map(base, host, 90 * PAGE, SYSTEM)
    r.space.map(base + 50 * PAGE, host + 99 * PAGE, PAGE, SYSTEM)
    for va, nbytes in ((base, 90 * PAGE), (base + 5, 60 * PAGE + 7), (base + 39 * PAGE, 40 * PAGE), (base + 3, 100)):
        found = [(p.host, p.nbytes) for p in pieces(r.space, va, nbytes, "write")]
        assert found == list(r.space.runs(va, nbytes, "write"))
    r.space.unmap(base + 70 * PAGE, PAGE)
    for va, nbytes, at in ((base, 90 * PAGE, base + 70 * PAGE), (base + 71 * PAGE, 30 * PAGE, base + 90 * PAGE),
                           (base + 70 * PAGE + 9, 20 * PAGE, base + 70 * PAGE + 9), (1 << 45, 1 << 30, 1 << 45)):
        with pytest.raises(MemoryFault) as error:
            pieces(r.space, va, nbytes, "read")
        assert error.value.va == at
