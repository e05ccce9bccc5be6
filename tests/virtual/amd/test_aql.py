"""AQL: packets as bytes by hand and from the tables, signals, and what stops a queue."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from devrt.amd import aql, pm4
from devrt.amd.aql import Fence, Inactive, PacketType, VendorFormat
from devrt.virtual.amd.dispatch import WaveFault
from devrt.virtual.memory import PAGE
from tests.virtual.amd.rig import Line, Rig, rig, until


@pytest.fixture
def r() -> Iterator[Rig]:
    with rig() as made:
        yield made


def signal(r: Rig, value: int = 1, event: int = 0, kind: int = 1) -> int:
    """A signal, and behind it the mailbox that it rings where it has an event."""
    va = r.memory(PAGE)
    r.space.write(va, struct.pack("<qqQI", kind, value, va + 256 if event else 0, event))
    return va


def value(r: Rig, va: int) -> int:
    return int(struct.unpack("<q", r.space.read(va + 8, 8))[0])


def descriptor(r: Rig, play: Any = None, **fields: int) -> int:
    """A kernel descriptor whose code plays a function."""
    entry, va = r.kernel(play), r.memory(PAGE)
    row = {"kernel_code_entry_byte_offset": entry - va, "kernel_code_properties": 1 << 10 | 1 << 3, "compute_pgm_rsrc2": 2 << 1,
           **fields}
    data = bytearray(64)
    kinds = aql.KERNEL_DESCRIPTOR.fields
    assert kinds is not None
    for name, number in row.items():
        kind, at = kinds[name][:2]
        data[at:at + kind.itemsize] = number.to_bytes(kind.itemsize, "little", signed=number < 0)
    r.space.write(va, bytes(data))
    return va


def dispatch(kernel: int, threads: tuple[int, int, int] = (64, 1, 1), size: tuple[int, int, int] = (32, 1, 1), dims: int = 1,
             done: int = 0, lds: int = 0, private: int = 0, kernarg: int = 0x1234567890, head: int = 0x1502) -> bytes:
    """A dispatch by hand: type 2, barrier, acquire system, release system."""
    return struct.pack("<HHHHHHIIIIIQQQQ", head, dims, *size, 0, *threads, private, lds, kernel, kernarg, 0, done)


# --- dispatches ---

def test_dispatch(r: Rig) -> None:
    q, done = r.queue("aql"), signal(r, event=9)
    r.space.write(q.page + 180, struct.pack("<I", 1 << 3))  # profiling
    kernel = descriptor(r, compute_pgm_rsrc1=0xF0000, compute_pgm_rsrc3=0x10, group_segment_fixed_size=100)
    q.aql(dispatch(kernel, (100, 5, 1), (32, 4, 1), 2, done, lds=1000)).drain()
    (d,) = r.player.seen
    assert (d.groups, d.group_size, d.partial, d.wave) == ((4, 2, 1), (32, 4, 1), (4, 1, 1), 32)
    assert (d.user_sgprs, d.lds_bytes, d.rsrc2) == ((0x34567890, 0x12), 1000, 2 << 1 | 2 << 15)
    assert (d.rsrc1, d.rsrc3) == (0xF0000, 0x10)
    assert value(r, done) == 0 and r.u64(done + 256) == 9 and q.rptr == 1
    until(lambda: r.ear.interrupts == [9])
    start, end = struct.unpack("<QQ", r.space.read(done + 32, 16))
    assert 0 < start <= end
    assert r.space.read(q.ring, 2) == b"\x01\x00"  # the slot is free again


def test_every_property_in_its_sgprs() -> None:
    with rig("gfx90a") as r:
        q, kernarg = r.queue("aql"), r.memory(PAGE)
        r.space.write(kernarg, struct.pack("<4I", 10, 11, 12, 13))
        r.space.write(q.page + 140, struct.pack("<I4IQQ", 8 | 1 << 12, 1, 2, 3, 4, 0xABC000, 1 << 20))
        kernel = descriptor(r, kernel_code_properties=0x7F, compute_pgm_rsrc2=16 << 1 | 1, kernarg_preload=1 | 2 << 7)
        q.aql(dispatch(kernel, private=16, kernarg=kernarg)).drain()
        (d,) = r.player.seen
        assert d.user_sgprs == (1, 2, 3, 4, q.ring & 0xFFFFFFFF, q.ring >> 32, q.page & 0xFFFFFFFF, q.page >> 32,
                                kernarg & 0xFFFFFFFF, kernarg >> 32, 0, 0, 0xABC000, 0, 16, 12)
        assert (d.wave, d.scratch_base, d.scratch_bytes_per_wave) == (64, 0xABC000, 1024)


def test_scratch_is_asked_for_and_awaited(r: Rig) -> None:
    q, inactive = r.queue("aql"), signal(r, 0, event=4)
    r.space.write(q.page + 192, struct.pack("<Q", inactive))
    q.aql(dispatch(descriptor(r, compute_pgm_rsrc2=2 << 1 | 1), private=100))
    until(lambda: r.ear.interrupts == [4])
    assert value(r, inactive) == Inactive.SCRATCH_NEEDED and not r.player.seen
    r.space.write(q.page + 140, struct.pack("<I", 32 | 13 << 12))  # 13 x 256 bytes a wave: 100 of 32 threads fit
    r.space.write(inactive + 8, bytes(8))
    q.drain()
    assert r.player.seen[0].scratch_bytes_per_wave == 13 * 256


@pytest.mark.parametrize("change, packet, bits", [
    ({}, {"threads": (0, 1, 1)}, Inactive.INVALID_DIM),
    ({}, {"dims": 0}, Inactive.INVALID_DIM),
    ({}, {"threads": (64, 2, 1)}, Inactive.INVALID_DIM),
    ({}, {"size": (0, 1, 1)}, Inactive.INVALID_GROUP_SIZE),
    ({}, {"size": (1025, 1, 1)}, Inactive.INVALID_GROUP_SIZE),
    ({}, {"lds": 65537}, Inactive.INVALID_LDS_SIZE),
    ({"group_segment_fixed_size": 64}, {"lds": 32}, Inactive.INVALID_LDS_SIZE),
    ({"kernel_code_entry_byte_offset": 0}, {}, Inactive.INVALID_CODE),
    ({"kernel_code_entry_byte_offset": 0x104}, {}, Inactive.INVALID_CODE),
    ({"compute_pgm_rsrc2": 1 << 1}, {}, Inactive.INVALID_CODE),
    ({"compute_pgm_rsrc1": 63}, {}, Inactive.INVALID_VGPR),
    ({}, {"head": 0x1504}, Inactive.INVALID_PACKET_FORMAT),
    ({}, {"head": 0xF502}, Inactive.INVALID_PACKET_FORMAT),
    ({}, {"head": 0x0006}, Inactive.INVALID_PACKET_FORMAT),
    ({}, {"head": 0x0000, "dims": 7}, Inactive.INVALID_VENDOR_PACKET),
    ({}, {"dims": 5}, Inactive.INVALID_PACKET_FORMAT),
])
def test_bad_dispatches_say_so_in_inactive_signal(r: Rig, change: dict[str, int], packet: dict[str, Any], bits: Inactive) -> None:
    q, other, inactive = r.queue("aql"), r.queue("aql"), signal(r, 0, event=4)
    r.space.write(q.page + 192, struct.pack("<Q", inactive))
    text = q.aql(dispatch(descriptor(r, **change), **packet)).fault()
    assert str(bits.name) in text and "at 0x0:" in text
    assert value(r, inactive) == bits and r.u64(inactive + 256) == 4 and not r.player.seen and q.rptr == 0
    until(lambda: r.ear.interrupts == [4])
    assert not r.ear.exceptions
    other.aql(dispatch(descriptor(r))).drain()


def test_wave_faults(r: Rig) -> None:
    for kind, bits in (("illegal instruction", Inactive.ILLEGAL_INSTRUCTION), ("trap", Inactive.TRAP)):
        def bad(d: object, space: object, kind: str = kind) -> None:
            raise WaveFault(kind, 0x40, 0, "")
        q, inactive = r.queue("aql"), signal(r, 0)
        r.space.write(q.page + 192, struct.pack("<Q", inactive))
        assert kind in q.aql(dispatch(descriptor(r, bad))).fault()
        assert r.u64(inactive + 8) == bits


def test_a_queue_without_inactive_signal_tells_the_driver(r: Rig) -> None:
    assert "no inactive_signal" in r.queue("aql").aql(dispatch(descriptor(r), threads=(0, 1, 1))).fault()
    until(lambda: r.ear.exceptions)


def test_a_descriptor_that_is_not_there_is_a_page_fault(r: Rig) -> None:
    assert "0xdead0000: not mapped" in r.queue("aql").aql(dispatch(0xDEAD0000)).fault()
    until(lambda: r.ear.faults and r.ear.faults[0].va == 0xDEAD0000)


def test_pointers_must_be_of_an_amd_queue(r: Rig) -> None:
    q = r.queue("aql")
    r.space.write(q.page + 136, bytes(4))
    assert "read_dispatch_id_field_base_byte_offset is 0" in q.aql(dispatch(descriptor(r))).fault()


# --- order, signals, waiting ---

def test_first_packet_rings_with_zero(r: Rig) -> None:
    """The doorbell of the first packet is 0: what a queue's doorbell holds before that is something else."""
    q = r.queue("aql")
    time.sleep(0.01)
    assert q.bell != bytes(8) and not r.player.seen
    q.aql(dispatch(descriptor(r))).drain()
    assert q.bell == bytes(8) and len(r.player.seen) == 1


def test_packets_of_many_producers(r: Rig) -> None:
    """A slot that is not written yet is awaited; a producer may ring with an older index."""
    q, kernel = r.queue("aql"), descriptor(r)
    second = dispatch(kernel, (7, 1, 1), (1, 1, 1))
    r.space.write(q.ring + 64, second)
    q.ring_bell(1, stored=2)
    time.sleep(0.02)
    assert q.rptr == 0 and not r.player.seen
    first = dispatch(kernel, (5, 1, 1), (1, 1, 1))
    r.space.write(q.ring + 4, first[4:])
    r.space.write(q.ring, first[:4])
    q.ring_bell(0, stored=2)
    until(lambda: q.rptr == 2)
    assert [d.groups[0] for d in r.player.seen] == [5, 7] and not q.queue.faulted


def test_ring_wraps(r: Rig) -> None:
    q, kernel, done = r.queue("aql", 1024), descriptor(r), signal(r, 50)
    for n in range(50):
        q.aql(dispatch(kernel, (n + 1, 1, 1), (1, 1, 1), done=done)).drain()
    assert [d.groups[0] for d in r.player.seen] == list(range(1, 51)) and q.rptr == 50 and value(r, done) == 0


def test_overrun(r: Rig) -> None:
    q = r.queue("aql", 1024)
    q.ring_bell(16, stored=17)
    assert "still unread in a ring of 0x10" in q.fault()


@pytest.mark.parametrize("kind, first, then", [(PacketType.BARRIER_AND, (1, 0), (0, 0)), (PacketType.BARRIER_OR, (1, 1), (1, 0))])
def test_barriers(r: Rig, kind: PacketType, first: tuple[int, int], then: tuple[int, int]) -> None:
    q, other = r.queue("aql"), r.queue("aql")
    deps, done = [signal(r, v) for v in first], signal(r, 3)
    q.aql(aql.encode(kind, dep_signal=[*deps, 0, 0, 0], completion_signal=done))
    other.aql(dispatch(descriptor(r))).drain()
    time.sleep(0.01)
    assert value(r, done) == 3 and q.rptr == 0
    for va, v in zip(deps, then, strict=True):
        r.space.write(va + 8, struct.pack("<q", v))
    q.drain()
    assert value(r, done) == 2


def test_barrier_without_signals(r: Rig) -> None:
    q, done = r.queue("aql"), signal(r)
    q.aql(struct.pack("<H54xQ", 0x1503, done)).drain()
    assert value(r, done) == 0


@pytest.mark.parametrize("condition, wrong, right", [(0, 4, 5), (1, 5, 6), (2, 5, -1), (3, -1, 5)])
def test_barrier_value(r: Rig, condition: int, wrong: int, right: int) -> None:
    q, on = r.queue("aql"), signal(r, wrong)
    q.aql(aql.encode(PacketType.VENDOR, format=VendorFormat.BARRIER_VALUE, signal=on, value=5, mask=-1, condition=condition))
    time.sleep(0.01)
    assert q.rptr == 0
    r.space.write(on + 8, struct.pack("<q", right))
    q.drain()


def test_pm4_buffers(r: Rig) -> None:
    q, m, ib, done = r.queue("aql"), r.memory(PAGE), r.memory(PAGE), signal(r)
    words = pm4.encode("WRITE_DATA", 11, dst_sel=5, address=m, rest=[77])
    r.space.write(ib, struct.pack(f"<{len(words)}I", *words))
    jump = pm4.encode("INDIRECT_BUFFER", 11, ib_base=ib, ib_size=len(words), valid=1)
    q.aql(aql.encode(PacketType.VENDOR, format=VendorFormat.PM4_IB, ib_jump_cmd=jump, dw_cnt_remain=10, completion_signal=done))
    q.drain()
    assert r.u32(m) == 77 and value(r, done) == 0


@pytest.mark.parametrize("jump, remain", [([0xC0012600, 0, 0, 0], 10), ([0xC0023F00, 0x1000, 0, 4], 10),
                                          ([0xC0023F00, 0x1000, 0, 4 | 1 << 23], 9)])
def test_bad_pm4_buffers(r: Rig, jump: list[int], remain: int) -> None:
    q, inactive = r.queue("aql"), signal(r, 0)
    r.space.write(q.page + 192, struct.pack("<Q", inactive))
    text = q.aql(aql.encode(PacketType.VENDOR, format=VendorFormat.PM4_IB, ib_jump_cmd=jump, dw_cnt_remain=remain)).fault()
    assert "INVALID_VENDOR_PACKET" in text and value(r, inactive) == Inactive.INVALID_VENDOR_PACKET


def test_signals_are_checked(r: Rig) -> None:
    for va, why in ((signal(r) + 32, "not a multiple of 64"), (signal(r, kind=0), "its kind is 0")):
        q: Line = r.queue("aql")
        r.space.write(q.page + 192, struct.pack("<Q", signal(r, 0)))
        assert why in q.aql(dispatch(descriptor(r), done=va)).fault()


def test_signals_count_down_from_two_gpus_at_once() -> None:
    """The decrement is one step, also beside another engine that does the same."""
    with rig() as a, rig() as b:
        done = signal(a, 2000)
        page = a.space.entry(done) & ~(PAGE - 1)
        b.space.map(done, page, PAGE, a.space.entry(done) & PAGE - 1)  # type: ignore[arg-type]
        lines = [a.queue("aql", 65536), b.queue("aql", 65536)]
        packet = aql.encode(PacketType.BARRIER_AND, completion_signal=done, release=Fence.NONE)
        for _ in range(1000):
            for line in lines:
                line.aql(packet)
        for line in lines:
            line.drain()
        assert value(a, done) == 0
