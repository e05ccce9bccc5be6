"""The copy engine: linear copies, lines, fills, semaphores, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from devrt.nvidia.methods import Component, CopySemaphore, Reduction, Transfer
from devrt.nvidia.pushbuffer import Push, Sec, header
from devrt.virtual.memory import PAGE, Access
from tests.virtual.nvidia.rig import COPY0, VRAM, Line, Rig, rig, until

MIB = 1 << 20
PITCH = {"src_memory_layout_pitch": 1, "dst_memory_layout_pitch": 1}
COPIES = {"data_transfer_type": Transfer.NON_PIPELINED, **PITCH}


@pytest.fixture
def r() -> Iterator[Rig]:
    with rig() as made:
        yield made


def noise(r: Rig, va: int, nbytes: int) -> bytes:
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8).tobytes()
    r.space.write(va, data)
    return data


def copy(line: Line, src: int, dst: int, nbytes: int, **fields: int) -> Push:
    push = line.pushes()
    push.copy("OFFSET_IN_UPPER", src >> 32, src & 0xFFFFFFFF, dst >> 32, dst & 0xFFFFFFFF)
    push.copy("LINE_LENGTH_IN", nbytes)
    push.copy("LAUNCH_DMA", **{**COPIES, **fields})
    return push


def release(push: Push, va: int, payload: int, **fields: int) -> Push:
    push.copy("SET_SEMAPHORE_A", va >> 32, va & 0xFFFFFFFF, payload & 0xFFFFFFFF)
    if payload >> 32:
        push.copy("SET_SEMAPHORE_PAYLOAD_UPPER", payload >> 32)
    push.copy("LAUNCH_DMA", **{"flush_enable": 1, "semaphore_type": CopySemaphore.RELEASE_ONE_WORD, **fields})
    return push


@pytest.mark.parametrize("sm", [80, 86, 90, 120])
def test_linear_copies(sm: int) -> None:
    with rig(sm) as r:
        line, src, dst = r.channel(COPY0 + 1), r.memory(3 * MIB), r.memory(3 * MIB)
        data = noise(r, src, 3 * MIB)
        line.send(copy(line, src + 5, dst + 77, 2 * MIB + 3)).drain()
        assert r.space.read(dst, 3 * MIB) == bytes(77) + data[5:5 + 2 * MIB + 3] + bytes(MIB - 80)


def test_a_copy_on_the_graphics_channel(r: Rig) -> None:
    line, src, dst = r.channel(), r.memory(), r.memory()
    data = noise(r, src, PAGE)
    line.send(copy(line, src, dst, PAGE)).drain()
    assert r.space.read(dst, PAGE) == data


def test_long_copies_leave_room_for_other_channels(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devrt.virtual.nvidia.copy._CHUNK", PAGE)
    line, src, dst = r.channel(COPY0), r.memory(MIB), r.memory(MIB)
    data = noise(r, src, MIB)
    line.send(copy(line, src, dst, MIB)).drain()
    assert r.space.read(dst, MIB) == data


def test_lines_with_pitches(r: Rig) -> None:
    line, src, dst = r.channel(COPY0), r.memory(), r.memory()
    data = np.frombuffer(noise(r, src, PAGE), np.uint8)
    push = line.pushes()
    push.copy("PITCH_IN", 64, 40)
    push.copy("LINE_COUNT", 7)
    push.words.extend(copy(line, src + 3, dst, 33, multi_line_enable=1).words)
    line.send(push).drain()
    want = np.zeros(PAGE, np.uint8)
    for n in range(7):
        want[40 * n:40 * n + 33] = data[3 + 64 * n:36 + 64 * n]
    assert r.space.read(dst, PAGE) == want.tobytes()


def test_columns_of_one_matrix(r: Rig) -> None:
    """The spans of source and destination overlap, their bytes don't."""
    line, at = r.channel(COPY0), r.memory()
    data = np.frombuffer(noise(r, at, PAGE), np.uint8).reshape(64, 64).copy()
    push = line.pushes()
    push.copy("PITCH_IN", 64, 64)
    push.copy("LINE_COUNT", 64)
    push.words.extend(copy(line, at, at + 32, 32, multi_line_enable=1).words)
    line.send(push).drain()
    data[:, 32:] = data[:, :32]
    assert r.space.read(at, PAGE) == data.tobytes()


@pytest.mark.parametrize("size, value", [(1, 0xAB), (2, 0xABCD), (4, 0x12345678)])
def test_fills(r: Rig, size: int, value: int) -> None:
    line, dst = r.channel(COPY0), r.memory(2 * MIB)
    push = line.pushes()
    push.copy("SET_REMAP_CONST_A", value)
    push.copy("SET_REMAP_COMPONENTS", dst_x=Component.CONST_A, component_size_minus_one=size - 1)
    push.words.extend(copy(line, 0, dst + 4, MIB // size, remap_enable=1).words)
    line.send(push).drain()
    assert r.space.read(dst, 2 * MIB) == bytes(4) + value.to_bytes(size, "little") * (MIB // size) + bytes(MIB - 4)


def test_remapping_picks_and_keeps_components(r: Rig) -> None:
    line, src, dst = r.channel(COPY0), r.memory(), r.memory()
    data = np.frombuffer(noise(r, src, PAGE), np.uint16)[:200].reshape(100, 2)
    old = np.frombuffer(noise(r, dst, PAGE - 1)[:800], np.uint16).reshape(100, 4)
    push = line.pushes()
    push.copy("SET_REMAP_CONST_A", 7, 9)
    push.copy("SET_REMAP_COMPONENTS", dst_x=Component.SRC_Y, dst_y=Component.NO_WRITE, dst_z=Component.CONST_B,
              dst_w=Component.SRC_X, component_size_minus_one=1, num_src_components_minus_one=1, num_dst_components_minus_one=3)
    push.words.extend(copy(line, src, dst, 100, remap_enable=1).words)
    line.send(push).drain()
    want = np.stack([data[:, 1], old[:, 1], np.full(100, 9, np.uint16), data[:, 0]], 1)
    assert (np.frombuffer(r.space.read(dst, 800), np.uint16).reshape(100, 4) == want).all()


# --- semaphores ---

def test_semaphores(r: Rig) -> None:
    line, s, now = r.channel(COPY0), r.memory(), time.time_ns()
    r.space.write(s, b"\xff" * 64)
    push = release(line.pushes(), s, 5)
    release(push, s + 16, 6, semaphore_type=CopySemaphore.RELEASE_FOUR_WORDS)
    release(push, s + 32, 1 << 40 | 7, semaphore_payload_two_words=1)
    line.send(push).drain()
    assert (r.u64(s), r.u64(s + 16), r.u64(s + 32)) == (0xFFFFFFFF_00000005, 6, 1 << 40 | 7)
    assert abs(r.u64(s + 24) - now) < 60 * 10**9


def test_reductions(r: Rig) -> None:
    line, s = r.channel(COPY0), r.memory()
    r.space.write(s, (40).to_bytes(8, "little"))
    line.send(release(line.pushes(), s, 2, semaphore_reduction_enable=1, semaphore_reduction=Reduction.IADD,
                      semaphore_reduction_unsigned=1)).drain()
    assert r.u64(s) == 42


def test_a_copy_ends_before_its_semaphore(r: Rig) -> None:
    line, src, dst, s = r.channel(COPY0), r.memory(MIB), r.memory(MIB), r.memory()
    for n in range(10):
        data = noise(r, src, MIB - n)
        push = copy(line, src, dst, MIB - n)
        line.send(release(push, s, n + 1))
        until(lambda n=n: r.u64(s) == n + 1)
        assert r.space.read(dst, MIB - n) == data


def test_interrupts(r: Rig) -> None:
    line, s = r.channel(COPY0), r.memory()
    line.send(release(line.pushes(), s, 1, interrupt_type=2)).drain()
    until(lambda: r.interrupts == [line.channel])


# --- what is refused ---

@pytest.mark.parametrize("fields, why", [
    ({"src_memory_layout_pitch": 0}, "block-linear layouts are not modelled"),
    ({"dst_type_physical": 1}, "physical addresses are the driver's"),
    ({"interrupt_type": 3}, "no interrupt_type 3"),
    ({"multi_line_enable": 1}, "LINE_COUNT 0: nothing to copy"),
    ({"remap_enable": 1}, "SET_REMAP_COMPONENTS was never written"),
    ({"semaphore_reduction_enable": 1}, "semaphore_reduction_enable without a semaphore"),
    ({"data_transfer_type": Transfer.NONE, "remap_enable": 1}, "fields of a transfer without data_transfer_type"),
    ({"semaphore_type": 1, "semaphore_reduction": 5}, "semaphore_reduction without its enable"),
])
def test_launches_that_are_refused(r: Rig, fields: dict[str, Any], why: str) -> None:
    line, src, dst = r.channel(COPY0 + 2), r.memory(), r.memory()
    text = line.send(copy(line, src, dst, 64, **fields)).error()
    assert text.startswith("Xid 41: CE2: ChId 0001, Class 0000c8b5, Offset 00000300, Data 000"), text
    assert why in text


@pytest.mark.parametrize("engine, xid", [(COPY0, 39), (COPY0 + 3, 70), (COPY0 + 9, 85), (0x34, 126), (0x35, 127)])
def test_each_copy_engine_has_its_xid(r: Rig, engine: int, xid: int) -> None:
    line = r.channel(engine).raw([header(Sec.INC_METHOD, 1, 4, 0x104), 0]).bell()
    assert line.error().startswith(f"Xid {xid}: CE") and "no method 0x104" in line.error()


def test_sizes_pitches_and_overlap(r: Rig) -> None:
    src, dst = r.memory(), r.memory()
    assert "LINE_LENGTH_IN is 0" in (line := r.channel(COPY0)).send(copy(line, src, dst, 0)).error()
    assert "overlap" in (line := r.channel(COPY0)).send(copy(line, src, src + 8, 64)).error()
    line = r.channel(COPY0)
    push = line.pushes()
    push.copy("PITCH_IN", 64, 16)
    push.copy("LINE_COUNT", 2)
    push.words.extend(copy(line, src, dst, 33, multi_line_enable=1).words)
    assert "lines of 33 and 33 bytes with a pitch of 64 and 16" in line.send(push).error()


def test_a_semaphore_that_is_not_aligned(r: Rig) -> None:
    line, s = r.channel(COPY0), r.memory()
    text = line.send(release(line.pushes(), s + 8, 1, semaphore_type=CopySemaphore.RELEASE_FOUR_WORDS)).error()
    assert "is not a multiple of 16" in text


def test_memory_that_is_not_there(r: Rig) -> None:
    src, dst, fixed = r.memory(), r.memory(), r.memory(access=Access.VRAM)
    line = r.channel(COPY0 + 1)
    text = line.send(copy(line, src, dst + PAGE - 8, 64)).error()
    assert f"MMU Fault: ENGINE CE1 HUBCLIENT_CE1 faulted @ 0x{dst + PAGE >> 32:x}_{dst + PAGE & 0xFFFFFFFF:08x}. " \
           "Fault is of type FAULT_PTE ACCESS_TYPE_VIRT_WRITE" in text
    assert f"copy of 64 bytes from {src:#x}" in text
    line = r.channel(COPY0)
    assert "FAULT_RO_VIOLATION ACCESS_TYPE_VIRT_WRITE" in line.send(copy(line, src, fixed, 64)).error()
    line = r.channel(COPY0)
    assert "FAULT_PDE ACCESS_TYPE_VIRT_READ" in line.send(copy(line, 0xF0_0000_0000, dst, 64)).error()
    assert [(f.fault_type, f.access_type) for f in r.gpu.mmu_faults] == [(2, 1), (6, 1), (0, 0)]


# --- peers, injected faults ---

def test_a_copy_to_a_peer(r: Rig) -> None:
    with rig() as other:
        line, src, dst = r.channel(COPY0), r.memory(), other.memory()
        r.space.map(dst, other.space.entry(dst) & ~(PAGE - 1), PAGE, VRAM & ~Access.VRAM | Access.PEER)
        data = noise(r, src, PAGE)
        line.send(copy(line, src, dst, PAGE)).drain()
        assert other.space.read(dst, PAGE) == data


def test_injected_corruption_is_one_bit() -> None:
    with rig(faults="corrupt-copy@2") as r:
        line, src, dst = r.channel(COPY0), r.memory(MIB), r.memory(MIB)
        data = np.frombuffer(noise(r, src, MIB), np.uint8)
        for want in (0, 1, 0):
            line.send(copy(line, src, dst, MIB)).drain()
            wrong = np.frombuffer(r.space.read(dst, MIB), np.uint8) ^ data
            assert int(np.unpackbits(wrong).sum()) == want


def test_injected_page_fault() -> None:
    with rig(faults="page-fault@2") as r:
        line, src, dst = r.channel(COPY0), r.memory(), r.memory()
        line.send(copy(line, src, dst, PAGE)).drain()
        text = line.send(copy(line, src, dst, PAGE)).error()
        assert "Xid 31" in text and "not present (injected)" in text
        assert r.gpu.mmu_faults[0].address == src
