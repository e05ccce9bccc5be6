"""Launches, inline uploads, windows, semaphores and caches of the compute engine, with kernels that are Python functions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from devrt.nvidia import qmd
from devrt.nvidia.methods import Pcas
from devrt.nvidia.pushbuffer import Push, Sec, header
from devrt.virtual.memory import PAGE, Access, AddressSpace, MemoryFault
from devrt.virtual.nvidia.dispatch import Launch, WarpFault
from tests.virtual.nvidia.rig import LOCAL_WINDOW, SHARED_WINDOW, VRAM, Line, Rig, rig, semaphore

SMS = [80, 86, 89, 90, 120]


@pytest.fixture
def r() -> Iterator[Rig]:
    with rig() as made:
        yield made


def methods(line: Line, *named: tuple[str, Any]) -> Push:
    """A push of compute methods: (name, value, ..) or (name, fields)."""
    push = line.pushes()
    for name, *values in named:
        if isinstance(values[0], dict):
            push.compute(name, **values[0])
        else:
            push.compute(name, *values)
    return push


# --- launches ---

@pytest.mark.parametrize("sm", SMS)
def test_a_descriptor_becomes_a_launch(sm: int) -> None:
    with rig(sm) as r:
        line, entry, bank = r.channel(), r.kernel(), r.memory()
        at = r.qmd(entry, grid_width=5, grid_height=6, grid_depth=7, cta_thread_dimension0=64, cta_thread_dimension1=2,
                   cta_thread_dimension2=3, register_count=40, barrier_count=2, shared_memory_size=0x2000,
                   constant_buffer_valid_0=1, constant_buffer_addr_0=bank, constant_buffer_size_0=0x400,
                   constant_buffer_valid_3=1, constant_buffer_addr_3=bank + 0x400, constant_buffer_size_3=0x40)
        line.send(line.launch(at)).drain()
        launch, = r.player.seen
        assert launch == Launch(entry=entry, grid=(5, 6, 7), block=(64, 2, 3), registers=40, shared_bytes=0x2000,
                                constants={0: (bank, 0x400), 3: (bank + 0x400, 0x40)}, shared_window=SHARED_WINDOW,
                                local_window=LOCAL_WINDOW)


@pytest.mark.parametrize("action", [Pcas.SCHEDULE, Pcas.INVALIDATE_COPY_SCHEDULE, Pcas.PREFETCH_SCHEDULE,
                                    Pcas.INVALIDATE_PREFETCH_COPY_SCHEDULE])
def test_actions_that_schedule(r: Rig, action: Pcas) -> None:
    line, at = r.channel(), r.qmd(r.kernel())
    line.send(methods(line, ("SEND_PCAS_A", at >> 8), ("SEND_SIGNALING_PCAS2_B", {"pcas_action": action}))).drain()
    assert len(r.player.seen) == 1


def test_actions_that_do_not(r: Rig) -> None:
    line, at = r.channel(), r.qmd(r.kernel())
    for action in (Pcas.NOP, Pcas.INVALIDATE, Pcas.PREFETCH):
        line.send(methods(line, ("SEND_PCAS_A", at >> 8), ("SEND_SIGNALING_PCAS2_B", {"pcas_action": action}))).drain()
    assert not r.player.seen
    text = line.send(methods(line, ("SEND_SIGNALING_PCAS2_B", {"pcas_action": Pcas.INCREMENT_PUT}))).error()
    assert text.startswith("Xid 13: Graphics Exception: ChID 0001, Class 0000cbc0, Offset 000002c0, Data 00000006")
    assert "SEND_SIGNALING_PCAS2_B: INCREMENT_PUT is not modelled" in text


@pytest.mark.parametrize("sm", [75, 80])
def test_the_older_way_to_schedule(sm: int) -> None:
    with rig(sm) as r:
        line, s = r.channel(), r.memory()
        at = r.qmd(r.kernel(), release_enable_0=1, release_address_0=s, release_payload_0=9, release_structure_size_0=1)
        line.send(methods(line, ("SEND_PCAS_A", at >> 8), ("SEND_SIGNALING_PCAS_B", {"invalidate": 1, "schedule": 1}))).drain()
        line.send(methods(line, ("SEND_SIGNALING_PCAS_B", {"invalidate": 1}))).drain()
        assert len(r.player.seen) == 1 and r.u32(s) == 9


@pytest.mark.parametrize("sm", SMS)
def test_release_semaphores_of_a_descriptor(sm: int) -> None:
    with rig(sm) as r:
        line, s, before = r.channel(), r.memory(), time.time_ns()
        r.space.write(s, b"\xff" * 48)
        at = r.qmd(r.kernel(), release_enable_0=1, release_address_0=s, release_payload_0=5 << 32 | 9, release_payload64b_0=1,
                   release_structure_size_0=0, release_enable_1=1, release_address_1=s + 16, release_payload_1=8,
                   release_structure_size_1=1)
        line.send(line.launch(at)).drain()
        assert (r.u64(s), r.u64(s + 16)) == (5 << 32 | 9, 0xFFFFFFFF_00000008)
        assert abs(r.u64(s + 8) - before) < 60 * 10**9


@pytest.mark.parametrize("sm", SMS)
def test_dependent_descriptors(sm: int) -> None:
    with rig(sm) as r:
        line, third, second = r.channel(), r.qmd(r.kernel()), r.memory()
        r.qmd(r.kernel(), at=second, dependent_qmd0_enable=1, dependent_qmd0_action=1, dependent_qmd0_pointer=third)
        first = r.qmd(r.kernel(), dependent_qmd0_enable=1, dependent_qmd0_action=1, dependent_qmd0_prefetch=1,
                      dependent_qmd0_pointer=second)
        line.send(line.launch(first)).drain()
        assert len(r.player.seen) == 3


def test_a_descriptor_that_is_not_mapped(r: Rig) -> None:
    line = r.channel()
    text = line.send(line.launch(0xF0_0000_0000)).error()
    assert "Xid 31" in text and "ENGINE GRAPHICS GPC0 GPCCLIENT_SKED faulted @ 0xf0_00000000" in text
    assert "QMD at 0xf000000000 in channel 0x1" in text


def test_windows_come_before_launches(r: Rig) -> None:
    line = r.channel(classes=(0xCBC0,))
    text = line.send(line.launch(r.qmd(r.kernel()))).error()
    assert "SET_SHADER_SHARED_MEMORY_WINDOW is 0x0: not set" in text
    line = r.channel()
    line.send(methods(line, ("SET_SHADER_SHARED_MEMORY_WINDOW_B", 1 << 24))).drain()
    assert "not a multiple of 0x100000000" in line.send(line.launch(r.qmd(r.kernel()))).error()
    line, mapped = r.channel(), r.memory(1 << 24) >> 24 << 24
    line.send(methods(line, ("SET_SHADER_LOCAL_MEMORY_WINDOW_A", mapped >> 32, mapped & 0xFFFFFFFF))).drain()
    r.space.map(mapped, r.space.entry(r.memory()) & ~(PAGE - 1), PAGE, VRAM)
    assert "where memory is mapped" in line.send(line.launch(r.qmd(r.kernel()))).error()
    line = r.channel()
    line.send(methods(line, ("SET_SHADER_LOCAL_MEMORY_WINDOW_A", SHARED_WINDOW >> 32))).drain()
    assert "are both" in line.send(line.launch(r.qmd(r.kernel()))).error()


# --- local memory ---

def local_memory(line: Line, base: int, tpc_bytes: int) -> Push:
    return methods(line, ("SET_SHADER_LOCAL_MEMORY_A", base >> 32, base & 0xFFFFFFFF),
                   ("SET_SHADER_LOCAL_MEMORY_NON_THROTTLED_A", tpc_bytes >> 32, tpc_bytes & 0xFFFFFFFF, 0xFF))


def test_local_memory(r: Rig) -> None:
    line, base = r.channel(), r.memory(1 << 20)
    need = 64 * 2 * 0x1000  # a warp of 32 x 128 bytes, 64 warps on each SM of two
    line.send(local_memory(line, base, need)).drain()
    line.send(line.launch(r.qmd(r.kernel(), shader_local_memory_high_size=112, shader_local_memory_low_size=16))).drain()
    assert (r.player.seen[0].local_low, r.player.seen[0].local_high) == (16, 112)
    text = line.send(line.launch(r.qmd(r.kernel(), shader_local_memory_high_size=144))).error()
    assert "shader_local_memory_high_size is 0x90: 128 warps of 4608 bytes need more than" in text


@pytest.mark.parametrize("tpc_bytes, sms", [(0x84000, 4), (0x80000, 3)])
def test_local_memory_for_too_few(r: Rig, tpc_bytes: int, sms: int) -> None:
    line, base = r.channel(), r.memory(4 << 20)
    push = local_memory(line, base, tpc_bytes)
    push.compute("SET_SHADER_LOCAL_MEMORY_NON_THROTTLED_C", sms)
    line.send(push).drain()
    text = line.send(line.launch(r.qmd(r.kernel(), shader_local_memory_low_size=16))).error()
    assert f"{tpc_bytes:#x} bytes of a TPC, {sms} SMs: multiples of 0x8000, and this GPU has 4 SMs" in text


def test_local_memory_that_is_not_mapped(r: Rig) -> None:
    line = r.channel()
    line.send(local_memory(line, 0xF0_0000_0000, 1 << 20)).drain()
    text = line.send(line.launch(r.qmd(r.kernel(), shader_local_memory_low_size=16))).error()
    assert "Xid 31" in text and "0xf0_00000000" in text


def test_local_memory_moves_only_while_nothing_runs(r: Rig) -> None:
    line, base = r.channel(), r.memory(1 << 20)
    push = line.launch(r.qmd(r.kernel()), wait=True)
    push.words.extend(local_memory(line, base, 1 << 20).words)
    line.send(push).drain()
    push = line.launch(r.qmd(r.kernel()))
    push.words.extend(local_memory(line, base, 1 << 20).words)
    assert "SET_SHADER_LOCAL_MEMORY_A: local memory is moved while launches may run" in line.send(push).error()


# --- inline uploads ---

def upload(line: Line, va: int, data: bytes, nbytes: int = 0) -> Push:
    push = methods(line, ("LINE_LENGTH_IN", nbytes or len(data), 1), ("OFFSET_OUT_UPPER", va >> 32, va & 0xFFFFFFFF),
                   ("LAUNCH_DMA", {"dst_memory_layout_pitch": 1, "completion_type": 1}))
    data += bytes(-len(data) % 4)
    words = [int.from_bytes(data[n:n + 4], "little") for n in range(0, len(data), 4)]
    push.words.append(header(Sec.NON_INC_METHOD, len(words), 1, 0x1B4))
    push.words.extend(words)
    return push


@pytest.mark.parametrize("nbytes", [1, 4, 7, 8, 300])
def test_inline_uploads(r: Rig, nbytes: int) -> None:
    line, m = r.channel(), r.memory()
    r.space.write(m, b"\xee" * 400)
    data = bytes(range(1, 256)) * 2
    line.send(upload(line, m, data[:nbytes])).drain()
    assert r.space.read(m, 400) == data[:nbytes] + b"\xee" * (400 - nbytes)


def test_inline_uploads_of_the_wrong_length(r: Rig) -> None:
    m = r.memory()
    line = r.channel()
    assert "LOAD_INLINE_DATA without LAUNCH_DMA" in line.send(methods(line, ("LOAD_INLINE_DATA", 1))).error()
    line = r.channel()
    push = upload(line, m, bytes(8), 12)
    push.compute("NO_OPERATION", 0)
    assert "4 bytes of an inline upload are missing" in line.send(push).error()
    line = r.channel()
    assert "16 bytes of inline data, 8 are left" in line.send(upload(line, m, bytes(16), 8)).error()
    line = r.channel()
    text = line.send(methods(line, ("LINE_LENGTH_IN", 4, 2), ("LAUNCH_DMA", {"dst_memory_layout_pitch": 1}))).error()
    assert "one line of some is modelled" in text and text.startswith("Xid 69: Class Error: ChId 0004, Class 0000cbc0")


@pytest.mark.parametrize("sm", SMS)
def test_inline_descriptors(sm: int) -> None:
    with rig(sm) as r:
        line, at, entry = r.channel(), r.memory(), r.kernel()
        data = r.space.read(r.qmd(entry), qmd.nbytes(sm))
        push = line.pushes()
        fields = {"inline_size_384": 1} if qmd.nbytes(sm) == 384 else {}
        push.compute("SET_INLINE_QMD_ADDRESS_A", qmd_address_shifted8_upper=at >> 40, **fields)
        push.compute("SET_INLINE_QMD_ADDRESS_B", at >> 8 & 0xFFFFFFFF)
        push.compute("LOAD_INLINE_QMD_DATA", *(int.from_bytes(data[n:n + 4], "little") for n in range(0, len(data), 4)))
        push.words.extend(line.launch(at).words)
        line.send(push).drain()
        assert r.player.seen[0].entry == entry
        push = line.pushes()
        push.compute("SET_INLINE_QMD_ADDRESS_A", 0)
        push.words.extend([header(Sec.INC_METHOD, 1, 1, 0x320 + 256), 0])
        assert "dword 64 of an inline QMD of 256 bytes" in line.send(push).error()


# --- semaphores of the engine ---

def test_report_semaphores(r: Rig) -> None:
    line, s, before = r.channel(), r.memory(), time.time_ns()
    r.space.write(s, b"\xff" * 96)
    line.send(methods(line, ("SET_REPORT_SEMAPHORE_A", s >> 32, s & 0xFFFFFFFF, 7),
                      ("SET_REPORT_SEMAPHORE_D", {"structure_size_one_word": 1}),
                      ("SET_REPORT_SEMAPHORE_B", s + 16 & 0xFFFFFFFF), ("SET_REPORT_SEMAPHORE_D", {"awaken_enable": 1}),
                      ("SET_REPORT_SEMAPHORE_PAYLOAD_LOWER", 5, 6, s + 32 & 0xFFFFFFFF, s >> 32),
                      ("REPORT_SEMAPHORE_EXECUTE", {"structure_size": 1, "payload_size64": 1}),
                      ("SET_REPORT_SEMAPHORE_ADDRESS_LOWER", s + 48 & 0xFFFFFFFF),
                      ("REPORT_SEMAPHORE_EXECUTE", {"structure_size": 0}),
                      ("REPORT_SEMAPHORE_EXECUTE", {"structure_size": 1, "reduction_enable": 1, "reduction_op": 0}))).drain()
    assert (r.u64(s), r.u64(s + 16), r.u64(s + 32), r.u64(s + 48)) == (0xFFFFFFFF_00000007, 7, 6 << 32 | 5, 10)
    assert abs(r.u64(s + 24) - before) < 60 * 10**9 and abs(r.u64(s + 56) - before) < 60 * 10**9
    assert r.interrupts == [line.channel]


def test_what_reports_cannot(r: Rig) -> None:
    line = r.channel()
    text = line.send(methods(line, ("REPORT_SEMAPHORE_EXECUTE", {"operation": 1}))).error()
    assert "Xid 69" in text and "REPORT_SEMAPHORE_EXECUTE: only releases are modelled" in text
    with rig(80) as old:
        line = old.channel().raw([header(Sec.INC_METHOD, 1, 1, 0x168), 0]).bell()
        assert "0x168: no method 0x168 that this model knows" in line.error()


@pytest.mark.parametrize("offset, data, why", [
    (0x104, 0, "0x104: no method 0x104 that this model knows"),
    (0x1698, 2, "INVALIDATE_SHADER_CACHES_NO_WFI: INVALIDATE_SHADER_CACHES_NO_WFI: reserved bit 1 is set"),
    (0x790, 1 << 25, "SET_SHADER_LOCAL_MEMORY_A: SET_SHADER_LOCAL_MEMORY_A: reserved bit 25"),
])
def test_methods_that_are_refused(r: Rig, offset: int, data: int, why: str) -> None:
    text = r.channel().raw([header(Sec.INC_METHOD, 1, 1, offset), data]).bell().error()
    assert text.startswith(f"Xid 69: Class Error: ChId 0001, Class 0000cbc0, Offset {offset:08x}, Data {data:08x}"), text
    assert why in text


# --- exceptions of warps ---

@pytest.mark.parametrize("kind, error, text", [
    ("illegal instruction", 0x09, "Illegal Instruction Encoding"), ("misaligned", 0x0F, "Misaligned Address"),
    ("bad address", 0x0E, "Out Of Range Address"), ("outside shared memory", 0x0E, "Out Of Range Address"),
    ("register out of range", 0x0D, "Out Of Range Register"), ("missing wait", 0x09, "Illegal Instruction Encoding"),
])
def test_a_warp_fault(r: Rig, kind: str, error: int, text: str) -> None:
    def fail(launch: Launch, space: AddressSpace) -> None:
        raise WarpFault(kind, launch.entry + 32, 3, 7, "LDS R2, [R4], address 0x1003", (1, 0, 0))
    line, entry = r.channel(), r.kernel(fail)
    told = line.send(line.launch(r.qmd(entry))).error().splitlines()
    assert told[0] == f"Xid 13: Graphics SM Warp Exception on (GPC 0, TPC 0, SM 0): {text}"
    assert told[1].startswith(f"Graphics Exception: ESR 0x504730={error | 3 << 16 | 1 << 24:#x} 0x504734=0x0")
    assert f"{kind} at {entry + 32:#x}, block (1, 0, 0), warp 3, lane 7" in told[2]
    state, = r.gpu.sm_errors
    assert (state.warp_esr & 0xFFFF, state.warp_esr >> 16 & 0x3F, state.pc, state.address) == (error, 3, entry + 32, 0x1003)
    r.gpu.clear_errors(line.channel)
    assert not r.gpu.sm_errors


def test_a_wild_store(r: Rig) -> None:
    def store(launch: Launch, space: AddressSpace) -> None:
        fault = MemoryFault(0xF1_3456_7000, "write", "not mapped")
        fault.pc, fault.lane = launch.entry + 16, 4
        raise fault
    line, entry, s = r.channel(), r.kernel(store), r.memory()
    text = line.send(semaphore(line.launch(r.qmd(entry)), s, 1, operation=1)).error()
    assert "Xid 31: channel 0x00000001, intr 00000000. MMU Fault: ENGINE GRAPHICS GPC0 GPCCLIENT_T1_0 faulted @ 0xf1_34567000. " \
           "Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_WRITE" in text
    assert f"kernel {entry:#x}" in text and r.u64(s) == 0
    fault, = r.gpu.mmu_faults
    assert (fault.address, fault.access_type) == (0xF134567000, 1)
    state, = r.gpu.sm_errors
    assert (state.pc, state.address) == (entry + 16, 0xF134567000)


# --- caches ---

def constants(r: Rig, entry: int, bank: int, **fields: int) -> int:
    return r.qmd(entry, constant_buffer_valid_0=1, constant_buffer_addr_0=bank, constant_buffer_size_0=0x100, **fields)


def test_a_constant_bank_that_changed_is_stale_until_it_is_invalidated(r: Rig) -> None:
    line, entry, bank = r.channel(), r.kernel(), r.memory()
    at = constants(r, entry, bank)
    line.send(line.launch(at)).drain()
    line.send(line.launch(at)).drain()
    r.space.write(bank, b"new")
    line.send(methods(line, ("INVALIDATE_SHADER_CACHES_NO_WFI", {"constant": 1}))).send(line.launch(at)).drain()
    r.space.write(bank, b"old")
    line.send(line.launch(constants(r, entry, bank, constant_buffer_invalidate_0=1))).drain()
    r.space.write(bank, b"own")
    line.send(line.launch(constants(r, entry, bank, invalidate_shader_constant_cache=1))).drain()
    r.space.write(bank + 0xFF, b"x")
    text = line.send(line.launch(at)).error()
    assert f"kernel {entry:#x}" in text and f"reads constant bank 0 at {bank:#x}, which changed since a launch before" in text
    assert "Xid 13" in text


def test_what_lies_behind_a_constant_bank_may_change(r: Rig) -> None:
    line, entry, bank = r.channel(), r.kernel(), r.memory()
    at = constants(r, entry, bank)
    line.send(line.launch(at)).drain()
    r.space.write(bank + 0x100, b"new")
    line.send(line.launch(at)).drain()


def test_code_that_changed_is_stale_until_it_is_invalidated(r: Rig) -> None:
    line, entry = r.channel(), r.kernel()
    at = r.qmd(entry)
    line.send(line.launch(at)).drain()
    r.space.write(entry, b"new")
    line.send(methods(line, ("INVALIDATE_SHADER_CACHES", {"instruction": 1}))).send(line.launch(at)).drain()
    r.space.write(entry, b"old")
    line.send(line.launch(r.qmd(entry, invalidate_instruction_cache=1))).drain()
    r.space.write(entry + 64, b"what lies behind it")
    line.send(line.launch(at)).drain()
    r.space.write(entry, b"own")
    assert f"runs code at {entry:#x}, which changed since a launch before" in line.send(line.launch(at)).error()


# --- where it must not work ---

def test_code_that_is_not_executable(r: Rig) -> None:
    line, m = r.channel(), r.memory(access=Access.VRAM | Access.WRITE)
    assert "Xid 31" in line.send(line.launch(r.qmd(m))).error()


def test_a_page_that_ends_before_the_constants(r: Rig) -> None:
    line, entry, m = r.channel(), r.kernel(), r.memory()
    at = r.qmd(entry, constant_buffer_valid_1=1, constant_buffer_addr_1=m + PAGE - 0x40, constant_buffer_size_1=0x80)
    assert f"faulted @ 0x{m + PAGE >> 32:x}_{m + PAGE & 0xFFFFFFFF:08x}" in line.send(line.launch(at)).error()
