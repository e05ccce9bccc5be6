"""Packets both ways. Witnesses: words written down by hand from the kernel's headers, register offsets of its asic_reg
headers, and the layout rules of hsa.h; the round trip only says that a table reads what it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devrt.amd import aql, pm4, registers, sdma
from devrt.amd.packets import BadPacket, Compiled, Packet, generation
from devrt.device import InvalidArgument, Unsupported

GENERATIONS = (9, 10, 11, 12)


def values(draw: st.DrawFn, compiled: Compiled, leave_out: tuple[str, ...] = ()) -> dict[str, int]:
    fields = {}
    for name, (_, highest, low) in compiled.slots.items():
        if name in leave_out:
            continue
        known = compiled.kinds.get(name)
        value = draw(st.sampled_from(sorted(known))) if known else draw(st.integers(0, highest)) & ~low
        fields[name] = value
    return fields


@st.composite
def pm4_packets(draw: st.DrawFn) -> tuple[str, int, dict[str, int], tuple[int, ...]]:
    gfx = draw(st.sampled_from(GENERATIONS))
    name, (_, compiled) = draw(st.sampled_from(sorted(pm4._by_name(gfx).items())))
    fields = values(draw, compiled)
    for address in ("address", "src", "dst"):  # whatever the selectors ask for
        if address in fields:
            fields[address] &= ~7
    if "dispatch_initiator" in fields:
        fields["dispatch_initiator"] &= 0x7
    if name == "EVENT_WRITE":
        fields |= {"event_type": pm4.Event.CS_PARTIAL_FLUSH, "event_index": pm4.EventIndex.CS_PARTIAL_FLUSH}
    if name == "RELEASE_MEM":
        fields |= {"event_index": pm4.EventIndex.END_OF_PIPE, "int_sel": pm4.IntSel.INTERRUPT_AFTER_WRITE_CONFIRM}
    words = st.lists(st.integers(0, 0xFFFFFFFF), min_size=max(1, compiled.layout.least), max_size=5)
    return name, gfx, fields, tuple(draw(words)) if compiled.layout.rest else ()


@st.composite
def sdma_packets(draw: st.DrawFn) -> tuple[str, int, dict[str, int], tuple[int, ...]]:
    gfx = draw(st.sampled_from(GENERATIONS))
    name, compiled = draw(st.sampled_from(sorted(sdma._by_name(gfx).items())))
    fields = values(draw, compiled, ("op", "sub_op", *(["count"] if compiled.layout.rest else [])))
    for address in ("address", "src", "dst"):
        if address in fields:
            fields[address] &= ~7
    if "count" in fields:
        fields["count"] %= sdma.MAX_BYTES[gfx] - 4
    words = st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=5)
    return name, gfx, fields, tuple(draw(words)) if compiled.layout.rest else ()


@given(pm4_packets())
def test_pm4_reads_what_it_writes(packet: tuple[str, int, dict[str, int], tuple[int, ...]]) -> None:
    name, gfx, fields, rest = packet
    words = pm4.encode(name, gfx, rest=rest, **fields)
    found = pm4.decode([0, *words, 0], gfx, 1)
    assert (found.name, found.size, found.rest()) == (name, len(words), rest)
    assert {field: found[field] for field in fields} == fields
    assert str(found).startswith(name)


@given(sdma_packets())
def test_sdma_reads_what_it_writes(packet: tuple[str, int, dict[str, int], tuple[int, ...]]) -> None:
    name, gfx, fields, rest = packet
    words = sdma.encode(name, gfx, rest=rest, **fields)
    found = sdma.decode([0, *words, 0], gfx, 1)
    assert (found.name, found.size, found.rest()) == (name, len(words), rest)
    assert {field: found[field] for field in fields} == fields


@given(st.sampled_from(GENERATIONS), st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=12), st.booleans())
def test_any_words_are_a_packet_or_refused_with_a_place(gfx: int, words: list[int], header: bool) -> None:
    if header:
        words[0] = words[0] & 0x0003FF00 | 0xC0000000
    for decode in (pm4.decode, sdma.decode):
        try:
            found = decode(words, gfx)
        except BadPacket as bad:
            assert 0 <= bad.at <= len(words) and "at dword" in bad.what
        else:
            assert 1 <= found.size <= len(words)


def pm4_words(name: str, gfx: int, **fields: Any) -> list[int]:
    return pm4.encode(name, gfx, **fields)


# By hand: PACKET3(op, n) = 3 << 30 | n << 16 | op << 8 of nvd.h, and the fields at the shifts that its macros name.
BY_HAND = [
    (pm4_words("NOP", 11), [0xFFFF1000]),
    (pm4_words("NOP", 11, rest=(1, 2)), [0xC0011000, 1, 2]),
    (pm4_words("DISPATCH_DIRECT", 11, dim_x=4, dim_y=3, dim_z=2, dispatch_initiator=0x8025), [0xC0031500, 4, 3, 2, 0x8025]),
    (pm4_words("DISPATCH_DIRECT", 11, shader_type=1, dim_x=1, dim_y=1, dim_z=1), [0xC0031502, 1, 1, 1, 0]),
    (pm4_words("RELEASE_MEM", 11, event_type=0x14, event_index=5, gl2_wb=1, glm_wb=1, glm_inv=1, glv_inv=1, gl1_inv=1,
               gl2_inv=1, seq=1, data_sel=2, int_sel=2, address=0x7F1234567008, data=0x100000002, int_ctxid=9),
     [0xC0064900, 0x14 | 5 << 8 | 0xF << 12 | 3 << 20 | 1 << 22, 2 << 29 | 2 << 24, 0x34567008, 0x7F12, 2, 1, 9]),
    (pm4_words("RELEASE_MEM", 9, event_type=0x14, event_index=5, tc_wb_action=1, tc_action=1, tcl1_action=1, data_sel=3,
               address=0x1000),
     [0xC0064900, 0x14 | 5 << 8 | 1 << 15 | 1 << 17 | 1 << 16, 3 << 29, 0x1000, 0, 0, 0, 0]),
    (pm4_words("ACQUIRE_MEM", 9, tc_action=1, tcl1_action=1, sh_kcache_action=1, sh_icache_action=1,
               coher_size=pm4.EVERYTHING, poll_interval=10),
     [0xC0055800, 1 << 23 | 1 << 22 | 1 << 27 | 1 << 29, 0xFFFFFFFF, 0xFFFFFF, 0, 0, 10]),
    (pm4_words("ACQUIRE_MEM", 10, gli_inv=1, glk_inv=1, glv_inv=1, gl1_inv=1, gl2_inv=1, gl2_wb=1, glm_wb=1, glm_inv=1,
               coher_size=pm4.EVERYTHING, poll_interval=10),
     [0xC0065800, 0, 0xFFFFFFFF, 0xFFFFFF, 0, 0, 10, 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 14 | 1 << 15 | 3 << 4]),
    (pm4_words("WAIT_REG_MEM", 11, function=5, mem_space=1, address=0x100000004, reference=7, mask=0xFFFFFFFF, poll_interval=4),
     [0xC0053C00, 5 | 1 << 4, 4, 1, 7, 0xFFFFFFFF, 4]),
    (pm4_words("WRITE_DATA", 10, dst_sel=5, wr_confirm=1, address=0x2000, rest=(5, 6)),
     [0xC0043700, 5 << 8 | 1 << 20, 0x2000, 0, 5, 6]),
    (pm4_words("INDIRECT_BUFFER", 11, ib_base=0x200001000, ib_size=64, valid=1), [0xC0023F00, 0x1000, 2, 64 | 1 << 23]),
    (pm4_words("COPY_DATA", 11, src_sel=9, dst_sel=5, count_sel=1, wr_confirm=1, dst=0x3000),
     [0xC0044000, 9 | 5 << 8 | 1 << 16 | 1 << 20, 0, 0, 0x3000, 0]),
    (pm4_words("EVENT_WRITE", 9, event_type=7, event_index=4), [0xC0004600, 0x407]),
    (pm4_words("PRED_EXEC", 9, xcc_mask=4, exec_count=8), [0xC0002300, 4 << 24 | 8]),
    (pm4_words("COND_EXEC", 9, address=0x4000, exec_count=8), [0xC0032200, 0x4000, 0, 0, 8]),
    (pm4.set_sh("COMPUTE_PGM_LO", 11, 0x12345600, 7), [0xC0027600, 0x20C, 0x12345600, 7]),
    (sdma.encode("COPY_LINEAR", 9, count=0xFFF, src=0x100001000, dst=0x2000), [1, 0xFFF, 0, 0x1000, 1, 0x2000, 0]),
    (sdma.encode("FENCE", 10, mtype=3, address=0x1000, data=9), [5 | 3 << 16, 0x1000, 0, 9]),
    (sdma.encode("FENCE", 9, address=0x1000, data=9), [5, 0x1000, 0, 9]),
    (sdma.encode("TRAP", 11, int_context=77), [6, 77]),
    (sdma.encode("POLL_REGMEM", 11, func=5, mem_poll=1, address=0x1000, value=3, mask=0xFFFFFFFF, interval=4,
                 retry_count=sdma.FOREVER), [8 | 5 << 28 | 1 << 31, 0x1000, 0, 3, 0xFFFFFFFF, 4 | 0xFFF << 16]),
    (sdma.encode("TIMESTAMP_GET_GLOBAL", 11, address=0x1008), [0x20D, 0x1008, 0]),
    (sdma.encode("CONST_FILL", 11, fillsize=2, dst=0x1000, src_data=1, count=252), [0xB | 2 << 30, 0x1000, 0, 1, 252]),
    (sdma.encode("WRITE_UNTILED", 11, dst=0x1000, rest=(7, 8)), [2, 0x1000, 0, 1, 7, 8]),
    (sdma.encode("ATOMIC", 11, atomic_op=sdma.Atomic.ADD_RTN_64, address=0x1000, src_data=1),
     [10 | 47 << 25, 0x1000, 0, 1, 0, 0, 0, 0]),
    (sdma.encode("INDIRECT", 11, ib_base=0x1000, ib_size=8), [4, 0x1000, 0, 8, 0, 0]),
    (sdma.encode("NOP", 11), [0]),
    (sdma.encode("GCR_REQ", 11, base_va=0x123456780080, gcr_control=0x5FFFF, limit_va=0x123456780100, vmid=2),
     [0x111, 0x56780080, 0xFFFF1234, 5 | 0x56780100, 0x1234 | 2 << 24]),
]


@pytest.mark.parametrize(("built", "by_hand"), BY_HAND, ids=lambda words: hex(words[0]))
def test_words_written_down_by_hand(built: list[int], by_hand: list[int]) -> None:
    assert [hex(word) for word in built] == [hex(word) for word in by_hand]


@pytest.mark.parametrize(("decode", "words", "gfx", "at", "says"), [
    (pm4.decode, [0xC0004600, 0x407 | 1 << 12], 11, 1, "reserved bit 12"),
    (pm4.decode, [0xC0064900, 0x514 | 1 << 17, 0, 0, 0, 0, 0, 0], 12, 0, ""),
    (pm4.decode, [0xC0064900, 0x514 | 1 << 18, 0, 0, 0, 0, 0, 0], 9, 1, "reserved bit 18"),
    (pm4.decode, [0xC0064900, 0x514 | 1 << 31, 0, 0, 0, 0, 0, 0], 12, 1, "reserved bit 31"),
    (pm4.decode, [0xC0054900, 0x514, 0, 0, 0, 0, 0], 11, 0, "6 dwords after its header, not 7"),
    (pm4.decode, [0xC0064900, 0x514, 2 << 29, 0x1004, 0, 0, 0, 0], 11, 1, "not a multiple of 8"),
    (pm4.decode, [0xC0064900, 0x14, 0, 0, 0, 0, 0, 0], 11, 1, "event_index"),
    (pm4.decode, [0xC0064900, 0x514, 1 << 24 | 2 << 29, 0, 0, 0, 0, 0], 11, 1, "INTERRUPT_ONLY"),
    (pm4.decode, [0xC0053C00, 7 | 1 << 4, 0, 0, 0, 0, 0], 11, 1, "function has no value 7"),
    (pm4.decode, [0xC0053C00, 1 << 4, 2, 0, 0, 0, 0], 11, 1, "not a multiple of 4"),
    (pm4.decode, [0xC0065800, 0, 0, 0, 0, 0, 0, 0], 9, 0, "7 dwords"),
    (pm4.decode, [0xC0065800, 1, 0, 0, 0, 0, 0, 0], 10, 1, "reserved bit 0"),
    (pm4.decode, [0xC0031500, 1, 1, 1, 1 << 15], 9, 1, "reserved bit 15"),
    (pm4.decode, [0xC0012200, 0], 11, 0, "2 dwords"),
    (pm4.decode, [0xC0017600, 0x212], 11, 0, "needs 3 dwords"),
    (pm4.decode, [0xC000FE00, 0], 11, 0, "opcode 0xfe"),
    (pm4.decode, [0x80000000], 11, 0, "no type-3 header"),
    (pm4.decode, [0xC0001080, 0], 11, 0, "no type-3 header"),
    (pm4.decode, [], 11, 0, "no packet is left"),
    (sdma.decode, [1 | 1 << 24, 0, 0, 0, 0, 0, 0], 11, 0, "reserved bit 24"),
    (sdma.decode, [1 | 1 << 25, 0, 0, 0, 0, 0, 0], 9, 0, "reserved bit 25"),
    (sdma.decode, [1, 0, 0], 11, 0, "needs 7 dwords"),
    (sdma.decode, [2, 0, 0, 3, 1], 11, 0, "needs 8 dwords"),
    (sdma.decode, [6, 1 << 28], 11, 1, "reserved bit 28"),
    (sdma.decode, [0x0D, 0, 0], 11, 0, "opcode 13.0"),
    (sdma.decode, [0x111, 0, 0, 0, 0], 9, 0, "opcode 17.1"),
    (sdma.decode, [0xB | 3 << 30, 0, 0, 0, 0], 11, 0, "fillsize has no value 3"),
])
def test_what_the_hardware_would_punish_is_refused(decode: Callable[..., Packet], words: list[int], gfx: int, at: int,
                                                   says: str) -> None:
    if not says:
        decode(words, gfx)
        return
    with pytest.raises(BadPacket, match=says) as raised:
        decode(words, gfx)
    assert raised.value.at == at


@pytest.mark.parametrize("call", [
    lambda: pm4.encode("RELEASE_MEM", 9, gl2_wb=1),
    lambda: pm4.encode("HDP_FLUSH", 9),
    lambda: pm4.encode("DRAW", 11),
    lambda: pm4.encode("PRED_EXEC", 9, xcc_mask=256),
    lambda: pm4.encode("PRED_EXEC", 9, xcc_mask=-1),
    lambda: pm4.encode("COND_EXEC", 9, address=2),
    lambda: pm4.encode("SET_SH_REG", 9, reg_offset=1),
    lambda: pm4.encode("PRED_EXEC", 9, rest=(1,)),
    lambda: pm4.encode("NOP", 9, rest=(1 << 32,)),
    lambda: sdma.encode("COPY_LINEAR", 9, count=1 << 22, src=0, dst=0),
    lambda: sdma.encode("WRITE_UNTILED", 11, dst=0, count=1),
    lambda: registers.pack("COMPUTE_PGM_RSRC1", 9, WGP_MODE=1),
    lambda: registers.offset("COMPUTE_REQ_CTRL", 9),
    lambda: aql.encode(aql.PacketType.KERNEL_DISPATCH, grid=1),
    lambda: aql.encode(aql.PacketType.INVALID),
])
def test_what_a_generation_lacks_cannot_be_written(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgument):
        call()


# gc_10_3_0_offset.h and gc_11_0_0_offset.h count from 0x1260, gc_9_4_3_offset.h from 0x2000.
@pytest.mark.parametrize(("name", "gfx", "in_header"), [
    ("COMPUTE_DISPATCH_INITIATOR", 9, 0xE00), ("COMPUTE_DISPATCH_INITIATOR", 10, 0x1BA0), ("COMPUTE_TMPRING_SIZE", 11, 0x1BB8),
    ("COMPUTE_PGM_RSRC3", 9, 0xE2D), ("COMPUTE_PGM_RSRC3", 10, 0x1BC8), ("COMPUTE_RELAUNCH", 9, 0xE22),
    ("COMPUTE_RELAUNCH", 10, 0x1BCB), ("COMPUTE_RELAUNCH", 11, 0x1BD0), ("COMPUTE_USER_DATA_15", 10, 0x1BEF),
    ("COMPUTE_STATIC_THREAD_MGMT_SE4", 11, 0x1BCB), ("COMPUTE_STATIC_THREAD_MGMT_SE8", 12, 0x1BC3),
    ("COMPUTE_DISPATCH_INTERLEAVE", 12, 0x1BCF), ("COMPUTE_RESTART_Z", 12, 0x1BBD), ("COMPUTE_DISPATCH_TUNNEL", 11, 0x1C1D)])
def test_register_offsets_of_the_kernels_headers(name: str, gfx: int, in_header: int) -> None:
    base = 0x2000 if gfx == 9 else 0x1260
    assert registers.SH_BASE + registers.offset(name, gfx) == base + in_header
    assert registers.names(gfx)[registers.offset(name, gfx)] == name


@pytest.mark.parametrize("gfx", GENERATIONS)
def test_every_register_keeps_its_fields(gfx: int) -> None:
    assert len(registers.names(gfx)) == len(registers.table(gfx)), "two registers at one offset"
    for name, (_, compiled) in registers.table(gfx).items():
        full = {field: highest for field, (_, highest, _) in compiled.slots.items()}
        assert registers.unpack(name, gfx, registers.pack(name, gfx, **full)) == full


def test_registers_of_the_kernels_masks() -> None:
    assert registers.pack("COMPUTE_TMPRING_SIZE", 9, WAVES=0xFFF, WAVESIZE=0x1FFF) == 0x01FFFFFF
    assert registers.pack("COMPUTE_TMPRING_SIZE", 11, WAVESIZE=0x7FFF) == 0x07FFF000
    assert registers.pack("COMPUTE_TMPRING_SIZE", 12, WAVESIZE=0x3FFFF) == 0x3FFFF000
    assert registers.pack("COMPUTE_PGM_RSRC2", 11, USER_SGPR=16, TGID_X_EN=1, LDS_SIZE=128) == 16 << 1 | 1 << 7 | 128 << 15
    with pytest.raises(BadPacket, match="reserved bit 27"):
        registers.unpack("COMPUTE_PGM_RSRC1", 11, 1 << 27)


def test_a_list_of_packets_reads_as_the_manual_does() -> None:
    words = [*pm4.set_sh("COMPUTE_NUM_THREAD_X", 11, 64, 1, 1), *pm4.encode("NOP", 11),
             *pm4.encode("EVENT_WRITE", 11, event_type=pm4.Event.CS_PARTIAL_FLUSH, event_index=pm4.EventIndex.CS_PARTIAL_FLUSH)]
    assert pm4.dump(words, 11).splitlines() == [
        "     0  SET_SH_REG COMPUTE_NUM_THREAD_X=0x40 COMPUTE_NUM_THREAD_Y=0x1 COMPUTE_NUM_THREAD_Z=0x1",
        "     5  NOP", "     6  EVENT_WRITE event_type=CS_PARTIAL_FLUSH event_index=CS_PARTIAL_FLUSH"]
    with pytest.raises(BadPacket, match="no compute register at SH offset 0x2ff") as raised:
        pm4.dump([*words, *pm4.encode("SET_SH_REG", 11, reg_offset=0x2FF, rest=(1,))], 11)
    assert raised.value.at == 10


def test_generations_by_name() -> None:
    assert [generation(name) for name in ("gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201")] == [9, 9, 10, 11, 12]
    for name in ("gfx803", "sm_90", "gfx"):
        with pytest.raises(Unsupported):
            generation(name)


def test_aql_structs_have_the_sizes_of_hsa() -> None:
    assert {kind.itemsize for kind in (aql.KERNEL_DISPATCH, aql.BARRIER, aql.AGENT_DISPATCH, aql.VENDOR_PM4_IB,
                                       aql.VENDOR_BARRIER_VALUE, aql.SIGNAL, aql.KERNEL_DESCRIPTOR)} == {64}
    assert aql.QUEUE.itemsize == 256 and aql.header(aql.PacketType.KERNEL_DISPATCH, barrier=True, acquire=aql.Fence.SYSTEM,
                                                    release=aql.Fence.SYSTEM) == 0x1502


def test_aql_packets_read_what_they_write() -> None:
    data = aql.encode(aql.PacketType.KERNEL_DISPATCH, release=aql.Fence.AGENT, setup=1, workgroup_size_x=64, grid_size_x=1024,
                      kernel_object=0x7F0000001000, kernarg_address=0x1000, completion_signal=0x40)
    kind, fields = aql.decode(data)
    assert kind is aql.PacketType.KERNEL_DISPATCH and fields["grid_size_x"] == 1024 and fields["release"] is aql.Fence.AGENT
    jump = pm4.encode("INDIRECT_BUFFER", 9, ib_base=0x1000, ib_size=16, valid=1)
    kind, fields = aql.decode(aql.encode(aql.PacketType.VENDOR, ib_jump_cmd=jump, dw_cnt_remain=10))
    assert fields["ib_jump_cmd"] == jump and fields["format"] == aql.VendorFormat.PM4_IB
    kind, fields = aql.decode(aql.encode(aql.PacketType.BARRIER_AND, dep_signal=[1, 2, 3, 4, 5]))
    assert fields["dep_signal"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("data", "says"), [
    (bytes(63), "64 bytes"), (bytes([6]) + bytes(63), "no AQL header"), (b"\x02\x20" + bytes(62), "no AQL header"),
    (b"\x02\x00\x01\x00" + bytes(6) + b"\x01" + bytes(53), "reserved byte 10"), (b"\x02" + bytes(63), "dimensions"),
    (b"\x00\x00\x07" + bytes(61), "format 7")])
def test_aql_reserved_bytes_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(BadPacket, match=says):
        aql.decode(data)


def test_descriptor_of_a_kernel_is_read_in_place() -> None:
    raw = np.zeros(1, aql.KERNEL_DESCRIPTOR)
    raw["kernel_code_entry_byte_offset"], raw["kernel_code_properties"] = -256, aql.KernelProperty.WAVEFRONT_SIZE32
    assert raw.tobytes()[16:24] == (-256).to_bytes(8, "little", signed=True) and raw.tobytes()[56:58] == b"\x00\x04"
