"""GPFIFO entries, pushbuffer headers and the host's own methods."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from devrt.nvidia.methods import MemOp, Reduction, Semaphore
from devrt.nvidia.pushbuffer import Sec, header
from devrt.virtual.memory import PAGE
from tests.virtual.nvidia.rig import COMPUTE, COPY, COPY0, Line, Rig, rig, semaphore, until


@pytest.fixture
def r() -> Iterator[Rig]:
    with rig() as made:
        yield made


def host(line: Line, name: str, *values: int, **fields: int) -> Line:
    push = line.pushes()
    push.host(name, *values, **fields)
    return line.send(push)


# --- entries ---

@pytest.mark.parametrize("entry, why", [
    (1 << 42 | 1, "GPENTRY: GPFIFO entry 0x1: a conditional fetch"),
    (1 << 42 | 2, "reserved bit 1 is set"),
    (1 << 42 | 1 << 40, "reserved bit 40 is set"),
    (1 << 32, "opcode ILLEGAL"),
    (2 << 32, "opcode GP_CRC"),
    (9 << 32, "opcode has no value 9"),
    (4 << 32 | 1, "SET_PB_SEGMENT_EXTENDED_BASE has no operand 0x1"),
])
def test_entries_that_are_none(r: Rig, entry: int, why: str) -> None:
    line = r.channel().raw([0], entry).bell()
    assert why in line.error() and "Xid 32" in line.error()
    assert not r.gpu.mmu_faults


def test_a_nop_entry_and_empty_words(r: Rig) -> None:
    line = r.channel()
    line.raw([], 0).raw([0, 0, 0]).bell().drain()
    assert line.get == line.put == 3


def test_an_entry_in_memory_that_is_not_mapped(r: Rig) -> None:
    line = r.channel().raw([0], 1 << 42 | 0xF0_0000_1000).bell()
    assert "Xid 31: channel 0x00000001, intr 00000000. MMU Fault: ENGINE HOST0 HUBCLIENT_HOST faulted @ 0xf0_00001000. " \
           "Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ" in line.error()
    fault, = r.gpu.mmu_faults
    assert (fault.address, fault.fault_type, fault.access_type) == (0xF000001000, 0, 0)


def test_the_extended_base_is_of_hopper(r: Rig) -> None:
    line = r.channel()
    line.raw([], 4 << 32 | 1 << 8).raw([0], 1 << 42 | 0x1000).bell()
    assert "faulted @ 0x100_00001000" in line.error()
    with rig(86) as old:
        assert "opcode SET_PB_SEGMENT_EXTENDED_BASE" in old.channel().raw([], 4 << 32 | 1 << 8).bell().error()


# --- headers ---

@pytest.mark.parametrize("words, why", [
    ([1 << 12], "a reserved bit of the header 0x00001000"),
    ([header(Sec.INC_METHOD, 3, 0, 0x64), 1, 2], "3 dwords are announced by 0x20030019, 2 are left"),
    ([1 << 16], "no operation in the header 0x00010000"),
    ([6 << 29], "no operation in the header 0xc0000000"),
    ([2 << 29 | 1 << 16, 0], "no operation"),
])
def test_headers_that_are_none(r: Rig, words: list[int], why: str) -> None:
    assert f"PBENTRY: GPFIFO entry 0x1, dword 0x0: {why}" in r.channel().raw(words).bell().error()


def test_each_kind_of_header(r: Rig) -> None:
    line, s = r.channel(), r.memory()
    address = [s & 0xFFFFFFFF, s >> 32]
    release = 1 | 1 << 24
    words = [0, header(Sec.INC_METHOD, 5, 0, 0x5C), *address, 5, 6, release,
             header(Sec.NON_INC_METHOD, 3, 0, 0x64), 1, 2, 7,
             header(Sec.INC_METHOD, 1, 0, 0x5C), address[0] + 8, header(Sec.INC_METHOD, 1, 0, 0x6C), release,
             header(Sec.IMMD_DATA_METHOD, 9, 0, 0x64),
             header(Sec.INC_METHOD, 1, 0, 0x5C), address[0] + 16, header(Sec.IMMD_DATA_METHOD, 1, 0, 0x6C),
             header(Sec.ONE_INC, 4, 0, 0x64), 3, 11, 12, 13,
             header(Sec.INC_METHOD, 1, 0, 0x5C), address[0] + 24, header(Sec.INC_METHOD, 1, 0, 0x6C), release,
             7 << 29, header(Sec.INC_METHOD, 1, 0, 0x04), 0]
    line.raw(words).bell().drain()
    assert [r.u64(s + 8 * n) for n in range(4)] == [5 | 6 << 32, 7 | 6 << 32, 9, 3 | 13 << 32]


# --- subchannels and objects ---

def test_objects_and_subchannels(r: Rig) -> None:
    line = r.channel()
    for subchannel, nvclass in ((1, COMPUTE[90]), (4, COPY[90])):
        host(line, "SET_OBJECT", subchannel=subchannel, nvclass=nvclass).drain()


@pytest.mark.parametrize("subchannel, nvclass, why", [
    (1, 0xC7C0, "DEVICE: GPFIFO entry 0x1, dword 0x0, SET_OBJECT = 0xc7c0: class 0xc7c0 was not made in this channel"),
    (4, COMPUTE[90], "class 0xcbc0 is not behind subchannel 4"),
    (2, COMPUTE[90], "nothing behind subchannel 2"),
    (6, COMPUTE[90], "is no software class"),
])
def test_objects_that_are_not_there(r: Rig, subchannel: int, nvclass: int, why: str) -> None:
    line = r.channel()
    host(line, "SET_OBJECT", subchannel=subchannel, nvclass=nvclass)
    assert why in line.error()


def test_a_copy_channel_has_no_compute_engine(r: Rig) -> None:
    line = r.channel(COPY0)
    push = line.pushes()
    push.compute("NO_OPERATION", 0)
    assert "method 0x100: nothing behind subchannel 1 [objects: 0xc8b5]" in line.send(push).error()


def test_no_such_host_method(r: Rig) -> None:
    assert "METHOD: GPFIFO entry 0x1, dword 0x0: the host has no method 0x54" in \
        r.channel().raw([header(Sec.INC_METHOD, 1, 0, 0x54), 0]).bell().error()


# --- semaphores ---

def test_release_writes_four_eight_or_sixteen_bytes(r: Rig) -> None:
    line, s = r.channel(), r.memory()
    r.space.write(s, b"\xff" * 64)
    push = semaphore(line.pushes(), s, 0x1_0000_0002, operation=Semaphore.RELEASE, payload_size_64bit=0)
    semaphore(push, s + 16, 0x1_0000_0002, operation=Semaphore.RELEASE)
    semaphore(push, s + 32, 0x1_0000_0002, operation=Semaphore.RELEASE, payload_size_64bit=0, release_timestamp=1)
    semaphore(push, s + 48, 0x1_0000_0002, operation=Semaphore.RELEASE, release_timestamp=1, release_wfi=1)
    before = time.time_ns()
    line.send(push).drain()
    assert [r.u64(s + 16 * n) for n in range(4)] == [0xFFFFFFFF_00000002, 0x1_00000002, 2, 0x1_00000002]
    assert [r.u64(s + 16 * n + 8) for n in range(2)] == [(1 << 64) - 1] * 2
    for n in (2, 3):
        assert abs(r.u64(s + 16 * n + 8) - before) < 60 * 10**9


@pytest.mark.parametrize("operation, wide, memory, payload, holds", [
    (Semaphore.ACQUIRE, 1, 5, 5, True), (Semaphore.ACQUIRE, 1, 6, 5, False), (Semaphore.ACQUIRE, 0, 1 << 32 | 5, 5, True),
    (Semaphore.ACQUIRE, 1, 1 << 32 | 5, 5, False),
    (Semaphore.ACQ_STRICT_GEQ, 1, 6, 5, True), (Semaphore.ACQ_STRICT_GEQ, 1, 4, 5, False),
    (Semaphore.ACQ_STRICT_GEQ, 0, 1, 0xFFFFFFFF, False), (Semaphore.ACQ_CIRC_GEQ, 0, 1, 0xFFFFFFFF, True),
    (Semaphore.ACQ_CIRC_GEQ, 0, 0xFFFFFFFF, 1, False), (Semaphore.ACQ_CIRC_GEQ, 1, 0xFFFFFFFF, 1, True),
    (Semaphore.ACQ_CIRC_GEQ, 1, 3, (1 << 64) - 1, True),
    (Semaphore.ACQ_AND, 1, 6, 2, True), (Semaphore.ACQ_AND, 1, 6, 9, False),
    (Semaphore.ACQ_NOR, 0, 0xFFFFFFF0, 0xF, False), (Semaphore.ACQ_NOR, 0, 0xFFFFFFF0, 0x7, True),
])
def test_acquire(r: Rig, operation: Semaphore, wide: int, memory: int, payload: int, holds: bool) -> None:
    line, s, done = r.channel(), r.memory(), r.memory()
    r.space.write(s, memory.to_bytes(8, "little"))
    push = semaphore(line.pushes(), s, payload, operation=operation, payload_size_64bit=wide)
    line.send(semaphore(push, done, 1, operation=Semaphore.RELEASE))
    if holds:
        line.drain()
    else:
        time.sleep(0.01)
        assert line.get == line.put and not line.quiet
    assert r.u64(done) == holds


@pytest.mark.parametrize("reduction, wide, unsigned, memory, payload, want", [
    (Reduction.IMIN, 1, 0, -5, 3, -5), (Reduction.IMIN, 1, 1, -5, 3, 3), (Reduction.IMIN, 0, 0, 7, -2, -2),
    (Reduction.IMAX, 1, 0, -5, 3, 3), (Reduction.IMAX, 1, 1, -5, 3, -5), (Reduction.IXOR, 1, 0, 6, 3, 5),
    (Reduction.IAND, 0, 1, 6, 3, 2), (Reduction.IOR, 1, 1, 6, 3, 7), (Reduction.IADD, 1, 1, 1 << 40, 3, (1 << 40) + 3),
    (Reduction.IADD, 0, 0, 0x7FFFFFFF, 1, -(1 << 31)), (Reduction.INC, 0, 1, 4, 5, 5), (Reduction.INC, 0, 1, 5, 5, 0),
    (Reduction.DEC, 0, 1, 5, 5, 4), (Reduction.DEC, 0, 1, 0, 5, 5), (Reduction.DEC, 0, 1, 9, 5, 5),
])
def test_reductions(r: Rig, reduction: Reduction, wide: int, unsigned: int, memory: int, payload: int, want: int) -> None:
    line, s, mask = r.channel(), r.memory(), (1 << 64) - 1 if wide else (1 << 32) - 1
    r.space.write(s, (memory & mask).to_bytes(8, "little"))
    line.send(semaphore(line.pushes(), s, payload & mask, operation=Semaphore.REDUCTION, reduction=reduction,
                        reduction_unsigned=unsigned, payload_size_64bit=wide)).drain()
    assert r.u64(s) == want & mask


@pytest.mark.parametrize("at, fields, why", [
    (4, {"operation": 1}, "is not a multiple of 8"),
    (8, {"operation": 1, "release_timestamp": 1}, "is not a multiple of 16"),
    (0, {"operation": 0, "release_wfi": 1}, "an acquire with fields of a release"),
    (0, {"operation": 1, "acquire_switch_tsg": 1}, "a release with acquire_switch_tsg"),
    (0, {"operation": 1, "reduction": 3}, "a release with fields of a reduction"),
    (0, {"operation": 6, "reduction": 6, "reduction_unsigned": 1}, "no unsigned INC of 64 bits"),
    (0, {"operation": 6, "reduction": 5}, "no signed IADD of 64 bits"),
    (0, {"operation": 6, "reduction": 7, "payload_size_64bit": 0}, "no signed DEC of 32 bits"),
])
def test_semaphores_that_are_refused(r: Rig, at: int, fields: dict[str, int], why: str) -> None:
    line, s = r.channel(), r.memory()
    line.send(semaphore(line.pushes(), s + at, 1, **fields))
    assert "[SEMAPHORE: GPFIFO entry 0x1, dword 0x5, SEM_EXECUTE = 0x" in line.error() and why in line.error()


@pytest.mark.parametrize("offset, data, why", [
    (0x5C, 2, "reserved bit 1"), (0x60, 1 << 25, "reserved bit 25"), (0x6C, 7, "operation has no value 7"),
    (0x6C, 1 << 3, "reserved bit 3"), (0x6C, 6 | 8 << 27, "reduction has no value 8"), (0x78, 2, "reserved bit 1"),
])
def test_bits_that_are_reserved(r: Rig, offset: int, data: int, why: str) -> None:
    assert why in r.channel().raw([header(Sec.INC_METHOD, 1, 0, offset), data]).bell().error()


def test_addresses_have_forty_bits_before_hopper() -> None:
    words = [header(Sec.INC_METHOD, 1, 0, 0x60), 0x100]
    with rig(89) as r:
        assert "reserved bit 8" in r.channel().raw(words).bell().error()
    with rig(90) as r:  # which takes older channels too
        r.channel().raw(words).bell().drain()
        assert "reserved bit 8" in r.channel(host_class=0xC56F).raw(words).bell().error()


def test_a_semaphore_that_is_not_mapped(r: Rig) -> None:
    line = r.channel()
    line.send(semaphore(line.pushes(), 0xF0_0000_0000, 1, operation=Semaphore.RELEASE))
    assert "ENGINE HOST0 HUBCLIENT_HOST faulted @ 0xf0_00000000. Fault is of type FAULT_PDE" in line.error()


# --- memory operations, interrupts ---

def test_memory_operations(r: Rig) -> None:
    line = r.channel()
    host(line, "MEM_OP_A", 0, 0, 0, MemOp.MEMBAR << 27).drain()
    host(line, "MEM_OP_A", 0, 0, 0, MemOp.L2_FLUSH_DIRTY << 27).drain()
    host(line, "MEM_OP_D", MemOp.MEMBAR << 27)
    assert "MEM_OP_A, B and C come before D" in line.error()
    other = r.channel()
    host(other, "MEM_OP_A", 0, 0, 0, MemOp.MMU_TLB_INVALIDATE << 27)
    assert "MMU_TLB_INVALIDATE is the driver's" in other.error()


def test_an_interrupt_reaches_the_driver_unless_it_is_lost(r: Rig) -> None:
    line = r.channel()
    host(line, "NON_STALL_INTERRUPT", 0).drain()
    until(lambda: r.interrupts == [line.channel])
    r.faults.inject("lost-interrupt")
    host(line, "NON_STALL_INTERRUPT", 0).drain()
    time.sleep(0.01)
    assert len(r.interrupts) == 1


def test_nothing_after_an_error_is_carried_out(r: Rig) -> None:
    line, s = r.channel(), r.memory(PAGE)
    push = line.pushes()
    push.host("ILLEGAL", 0)
    semaphore(push, s, 1, operation=Semaphore.RELEASE)
    assert "ILLEGAL" in line.send(push).error()
    assert r.u64(s) == 0
