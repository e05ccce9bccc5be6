"""PM4: what a compute queue's command processor (MEC) reads. One table; `encode` builds from it, `decode` reads by it.

A packet is a header dword (type 3 in 31:30, dwords that follow - 1 in 29:16, opcode in 15:8, shader type in bit 1,
predicate in bit 0) and its payload. Sources: Linux drivers/gpu/drm/amd/amdgpu/nvd.h and soc15d.h (opcodes, cache bits);
AMD's F32_MEC_PM4_PACKETS headers for gfx9, gfx10-11 and gfx12 (fields of the MEC's forms).

What the MEC's headers reserve is refused, also where the graphics ring's form of the packet has a field there.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Mapping, Sequence

from devrt.amd import registers
from devrt.amd.packets import (
    GFX9,
    GFX10_UP,
    GFX11_UP,
    A,
    BadPacket,
    Compiled,
    F,
    Layout,
    Packet,
    Rule,
    Value,
    from_words,
    to_words,
)
from devrt.device import InvalidArgument

ONE_DWORD_NOP = 0xFFFF1000  # a NOP whose count, all ones, means that nothing follows
EVERYTHING = (1 << 56) - 1  # coher_size of ACQUIRE_MEM: all of memory
MAX_IB_DWORDS = (1 << 20) - 1


class Event(enum.IntEnum):
    """VGT_EVENT_TYPE."""

    CACHE_FLUSH = 0x06
    CS_PARTIAL_FLUSH = 0x07
    CACHE_FLUSH_AND_INV_TS = 0x14
    CACHE_FLUSH_AND_INV = 0x16
    BOTTOM_OF_PIPE_TS = 0x28
    CS_DONE = 0x2F


class EventIndex(enum.IntEnum):
    OTHER = 0
    SAMPLE_PIPELINESTAT = 2
    CS_PARTIAL_FLUSH = 4
    END_OF_PIPE = 5
    SHADER_DONE = 6


class Function(enum.IntEnum):
    """How WAIT_REG_MEM compares (value & mask) with the reference; unsigned."""

    ALWAYS = 0
    LESS = 1
    LESS_EQUAL = 2
    EQUAL = 3
    NOT_EQUAL = 4
    GREATER_EQUAL = 5
    GREATER = 6


class MemSpace(enum.IntEnum):
    REGISTER = 0
    MEMORY = 1


class WaitOperation(enum.IntEnum):
    WAIT_REG_MEM = 0
    WR_WAIT_WR_REG = 1
    WAIT_MEM_PREEMPTABLE = 3


class WriteDst(enum.IntEnum):
    REGISTER = 0
    MEMORY_SYNC = 1
    TC_L2 = 2
    MEMORY = 5


class CopySrc(enum.IntEnum):
    REGISTER = 0
    MEMORY = 1
    TC_L2 = 2
    PERFCOUNTERS = 4
    IMMEDIATE = 5
    ATOMIC_RETURN = 6
    GPU_CLOCK_COUNT = 9
    SYSTEM_CLOCK_COUNT = 10


class CopyDst(enum.IntEnum):
    REGISTER = 0
    TC_L2 = 2
    PERFCOUNTERS = 4
    MEMORY = 5


class ReleaseDst(enum.IntEnum):
    MEMORY_CONTROLLER = 0
    TC_L2 = 1
    QUEUE_WRITE_POINTER_REGISTER = 2
    QUEUE_WRITE_POINTER_POLL_MASK_BIT = 3


class IntSel(enum.IntEnum):
    NONE = 0
    INTERRUPT_ONLY = 1
    INTERRUPT_AFTER_WRITE_CONFIRM = 2
    DATA_AND_WRITE_CONFIRM = 3
    UNCONDITIONALLY_INT_CTXID = 4
    COMPARE_32_INT_CTXID = 5
    COMPARE_64_INT_CTXID = 6


class DataSel(enum.IntEnum):
    NONE = 0
    SEND_32_BIT = 1
    SEND_64_BIT = 2
    GPU_CLOCK_COUNTER = 3
    SYSTEM_CLOCK_COUNTER = 4


class AtomicCommand(enum.IntEnum):
    SINGLE_PASS = 0
    LOOP_UNTIL_COMPARE_SATISFIED = 1
    WAIT_FOR_WRITE_CONFIRMATION = 2
    SEND_AND_CONTINUE = 3


def _aligned(field: str, selector: str, needs: Mapping[int, int]) -> Rule:
    """The address in `field` must be a multiple of what the value of `selector` asks for, in bytes."""
    def check(fields: Mapping[str, int], gfx: int) -> str:
        need = needs.get(fields[selector], 1)
        return f"{field} {fields[field]:#x} is not a multiple of {need}" if fields[field] % need else ""
    return check


def _release_rule(fields: Mapping[str, int], gfx: int) -> str:
    if fields["event_index"] not in (EventIndex.END_OF_PIPE, EventIndex.SHADER_DONE):
        return "event_index is END_OF_PIPE or SHADER_DONE here"
    if fields["int_sel"] == IntSel.INTERRUPT_ONLY and fields["data_sel"] != DataSel.NONE:
        return "int_sel INTERRUPT_ONLY needs data_sel NONE"
    need = 4 if fields["data_sel"] in (DataSel.NONE, DataSel.SEND_32_BIT) else 8
    return f"address {fields['address']:#x} is not a multiple of {need}" if fields["address"] % need else ""


def _event_rule(fields: Mapping[str, int], gfx: int) -> str:
    flush = fields["event_type"] == Event.CS_PARTIAL_FLUSH
    return "" if flush == (fields["event_index"] == EventIndex.CS_PARTIAL_FLUSH) else "event_index does not fit event_type"


def _copy_rule(fields: Mapping[str, int], gfx: int) -> str:
    need = 8 if fields["count_sel"] else 4
    if fields["src_sel"] in (CopySrc.MEMORY, CopySrc.TC_L2) and fields["src"] % need:
        return f"src {fields['src']:#x} is not a multiple of {need}"
    if fields["dst_sel"] in (CopyDst.MEMORY, CopyDst.TC_L2) and fields["dst"] % need:
        return f"dst {fields['dst']:#x} is not a multiple of {need}"
    return ""


def _initiator_rule(fields: Mapping[str, int], gfx: int) -> str:
    try:
        registers.unpack("COMPUTE_DISPATCH_INITIATOR", gfx, fields["dispatch_initiator"])
    except BadPacket as bad:
        return bad.what
    return ""


_COHER_CNTL = (  # CP_COHER_CNTL of gfx9
    F("tc_nc_action", 0, 3, 3),
    F("tc_wc_action", 0, 4, 4),
    F("tc_inv_metadata_action", 0, 5, 5),
    F("tcl1_vol_action", 0, 15, 15),
    F("tc_wb_action", 0, 18, 18),
    F("tcl1_action", 0, 22, 22),
    F("tc_action", 0, 23, 23),
    F("cb_action", 0, 25, 25),
    F("db_action", 0, 26, 26),
    F("sh_kcache_action", 0, 27, 27),
    F("sh_kcache_vol_action", 0, 28, 28),
    F("sh_icache_action", 0, 29, 29),
    F("sh_kcache_wb_action", 0, 30, 30),
)
_RANGE = (  # of ACQUIRE_MEM: size and base in 256 bytes; the kernel writes 24 ones as the high part of the size
    F("coher_size", 1, 55, 0),
    F("coher_base", 3, 55, 0),
    F("poll_interval", 5, 15, 0),
)
_GCR_CNTL = (  # GCR_CNTL of gfx10 and up
    F("gli_inv", 6, 1, 0),  # 0 none, 1 all, 2 range, 3 first and last
    F("gl1_range", 6, 3, 2),
    F("glm_wb", 6, 4, 4),
    F("glm_inv", 6, 5, 5),
    F("glk_wb", 6, 6, 6),
    F("glk_inv", 6, 7, 7),
    F("glv_inv", 6, 8, 8),
    F("gl1_inv", 6, 9, 9),
    F("gl2_us", 6, 10, 10),
    F("gl2_range", 6, 12, 11),  # 0 all, 1 volatile, 2 range, 3 first and last
    F("gl2_discard", 6, 13, 13),
    F("gl2_inv", 6, 14, 14),
    F("gl2_wb", 6, 15, 15),
    F("seq", 6, 17, 16),  # 0 parallel, 1 forward, 2 reverse
    F("range_is_pa", 6, 18, 18),
)
_RELEASE_MEM = (
    F("event_type", 0, 5, 0, Event),
    F("event_index", 0, 11, 8, EventIndex),
    F("tcl1_vol_action", 0, 12, 12, gfx=GFX9),
    F("tc_vol_action", 0, 13, 13, gfx=GFX9),
    F("tc_wb_action", 0, 15, 15, gfx=GFX9),
    F("tcl1_action", 0, 16, 16, gfx=GFX9),
    F("tc_action", 0, 17, 17, gfx=GFX9),
    F("tc_nc_action", 0, 19, 19, gfx=GFX9),
    F("tc_md_action", 0, 21, 21, gfx=GFX9),
    F("glm_wb", 0, 12, 12, gfx=GFX10_UP),
    F("glm_inv", 0, 13, 13, gfx=GFX10_UP),
    F("glv_inv", 0, 14, 14, gfx=GFX10_UP),
    F("gl1_inv", 0, 15, 15, gfx=GFX10_UP),
    F("gl2_us", 0, 16, 16, gfx=GFX10_UP),
    F("gl2_range", 0, 18, 17, gfx=GFX10_UP),
    F("gl2_discard", 0, 19, 19, gfx=GFX10_UP),
    F("gl2_inv", 0, 20, 20, gfx=GFX10_UP),
    F("gl2_wb", 0, 21, 21, gfx=GFX10_UP),
    F("seq", 0, 23, 22, gfx=GFX10_UP),
    F("glk_wb", 0, 24, 24, gfx=GFX11_UP),
    F("cache_policy", 0, 26, 25),  # lru, stream, noa, bypass; on gfx12 the temporal hint
    F("execute", 0, 28, 28),
    F("glk_inv", 0, 30, 30, gfx=GFX11_UP),
    F("pws_enable", 0, 31, 31, gfx=(11, 11)),
    F("dst_sel", 1, 17, 16, ReleaseDst),
    F("mes_intr_pipe", 1, 21, 20, gfx=GFX11_UP),
    F("mes_action_id", 1, 23, 22, gfx=GFX11_UP),
    F("int_sel", 1, 26, 24, IntSel),
    F("data_sel", 1, 31, 29, DataSel),
    A("address", 2, lsb=2),
    F("data", 4, 63, 0),
    F("int_ctxid", 6, 31, 0),
)
_WAIT = (
    F("function", 0, 2, 0, Function),
    F("mem_space", 0, 5, 4, MemSpace),
    F("operation", 0, 7, 6, WaitOperation),
    F("mes_intr_pipe", 0, 23, 22, gfx=GFX11_UP),
    F("mes_action", 0, 24, 24, gfx=GFX11_UP),
    F("cache_policy", 0, 26, 25),
    A("address", 1),  # or, in register space, two register offsets
)
_SET_REG = (F("reg_offset", 0, 15, 0), F("vmid_shift", 0, 27, 23), F("index", 0, 31, 28))

# opcode, then the layout of the payload
_ROWS: tuple[tuple[int, Layout], ...] = (
    (0x10, Layout("NOP", 0, (), rest="data")),
    (0x15, Layout("DISPATCH_DIRECT", 4, (
        F("dim_x", 0, 31, 0),  # groups; threads where the initiator says USE_THREAD_DIMENSIONS
        F("dim_y", 1, 31, 0),
        F("dim_z", 2, 31, 0),
        F("dispatch_initiator", 3, 31, 0)), rule=_initiator_rule)),
    (0x16, Layout("DISPATCH_INDIRECT", 3, (
        A("address", 0, lsb=2),
        F("dispatch_initiator", 2, 31, 0)), rule=_initiator_rule)),
    (0x1E, Layout("ATOMIC_MEM", 8, (
        F("atomic", 0, 6, 0),
        F("command", 0, 11, 8, AtomicCommand),
        F("cache_policy", 0, 26, 25),
        A("address", 1, lsb=2),
        F("src_data", 3, 63, 0),
        F("cmp_data", 5, 63, 0),
        F("loop_interval", 7, 12, 0)))),
    (0x22, Layout("COND_EXEC", 4, (  # runs the next exec_count dwords if the dword at address is not 0
        A("address", 0, lsb=2),
        F("cache_policy", 2, 26, 25),
        F("exec_count", 3, 13, 0)))),
    (0x23, Layout("PRED_EXEC", 1, (  # runs the next exec_count dwords on the XCCs of the mask; in an IB only
        F("exec_count", 0, 13, 0),
        F("xcc_mask", 0, 31, 24)))),
    (0x37, Layout("WRITE_DATA", 3, (
        F("dst_sel", 0, 11, 8, WriteDst),
        F("addr_incr", 0, 16, 16),  # 1: every dword to the same address
        F("wr_confirm", 0, 20, 20),
        F("cache_policy", 0, 26, 25),
        A("address", 1)), rest="data", least=1,
        rule=_aligned("address", "dst_sel", {WriteDst.MEMORY_SYNC: 4, WriteDst.TC_L2: 4, WriteDst.MEMORY: 4}))),
    (0x3C, Layout("WAIT_REG_MEM", 6, (
        *_WAIT,
        F("reference", 3, 31, 0),
        F("mask", 4, 31, 0),
        F("poll_interval", 5, 15, 0),  # in 16 clocks
        F("optimize_ace_offload_mode", 5, 31, 31)), rule=_aligned("address", "mem_space", {MemSpace.MEMORY: 4}))),
    (0x93, Layout("WAIT_REG_MEM64", 8, (
        *_WAIT,
        F("reference", 3, 63, 0),
        F("mask", 5, 63, 0),
        F("poll_interval", 7, 15, 0),
        F("optimize_ace_offload_mode", 7, 31, 31)), rule=_aligned("address", "mem_space", {MemSpace.MEMORY: 8}))),
    (0x3F, Layout("INDIRECT_BUFFER", 3, (
        A("ib_base", 0, lsb=2),
        F("ib_size", 2, 19, 0),  # dwords
        F("chain", 2, 20, 20),
        F("offload_polling", 2, 21, 21),
        F("valid", 2, 23, 23),
        F("vmid", 2, 27, 24),
        F("cache_policy", 2, 29, 28),
        F("priv", 2, 31, 31)))),
    (0x40, Layout("COPY_DATA", 5, (
        F("src_sel", 0, 3, 0, CopySrc),
        F("dst_sel", 0, 11, 8, CopyDst),
        F("src_cache_policy", 0, 14, 13),
        F("count_sel", 0, 16, 16),  # 1: 64 bits
        F("wr_confirm", 0, 20, 20),
        F("dst_cache_policy", 0, 26, 25),
        F("pq_exe_status", 0, 29, 29),
        A("src", 1),  # an address, a register offset, or the immediate
        A("dst", 3)), rule=_copy_rule)),
    (0x46, Layout("EVENT_WRITE", 1, (
        F("event_type", 0, 5, 0, Event),
        F("event_index", 0, 11, 8, EventIndex),
        F("samp_plst_cntr_mode", 0, 30, 29),
        F("offload_enable", 0, 31, 31)), rule=_event_rule)),
    (0x49, Layout("RELEASE_MEM", 7, _RELEASE_MEM, rule=_release_rule)),
    (0x58, Layout("ACQUIRE_MEM", 6, (*_COHER_CNTL, *_RANGE), GFX9)),
    (0x58, Layout("ACQUIRE_MEM", 7, (*_RANGE, *_GCR_CNTL), GFX10_UP)),
    (0x76, Layout("SET_SH_REG", 1, _SET_REG, rest="values", least=1)),
    (0x79, Layout("SET_UCONFIG_REG", 1, (F("reg_offset", 0, 15, 0),), rest="values", least=1)),
    (0x95, Layout("HDP_FLUSH", 1, (F("dummy", 0, 31, 0),), GFX10_UP)),
    (0x9B, Layout("SET_SH_REG_INDEX", 1, _SET_REG, GFX10_UP, rest="values", least=1)),
)
OPCODES: Mapping[str, int] = {layout.name: opcode for opcode, layout in _ROWS}


@functools.cache
def _by_name(gfx: int) -> Mapping[str, tuple[int, Compiled]]:
    return {layout.name: (opcode, layout.of(gfx)) for opcode, layout in _ROWS if layout.gfx[0] <= gfx <= layout.gfx[1]}


@functools.cache
def _by_opcode(gfx: int) -> Mapping[int, Compiled]:
    return dict(_by_name(gfx).values())


def encode(name: str, gfx: int, /, *, rest: Sequence[int] = (), shader_type: int = 0, predicate: int = 0,
           **fields: int) -> list[int]:
    """The dwords of one packet; fields left out are 0, `rest` are the dwords of a packet that takes any number.

    Raises InvalidArgument for a packet, field or value that the generation does not have.
    """
    found = _by_name(gfx).get(name)
    if found is None:
        raise InvalidArgument(f"gfx{gfx} has no packet {name}", remedy=f"packets: {', '.join(_by_name(gfx))}")
    opcode, compiled = found
    layout = compiled.layout
    if name == "NOP" and not rest and not fields:
        return [ONE_DWORD_NOP]
    if (rest and not layout.rest or len(rest) < layout.least or layout.words + len(rest) > 0x3FFF
            or not all(0 <= word <= 0xFFFFFFFF for word in rest)):
        raise InvalidArgument(f"{name} cannot take {len(rest)} dwords of {layout.rest or 'data'}")
    count = layout.words + len(rest) - 1
    head = 3 << 30 | count << 16 | opcode << 8 | (shader_type & 1) << 1 | predicate & 1
    return [head, *to_words(compiled.pack(fields), layout.words), *rest]


def decode(words: Sequence[int], gfx: int, at: int = 0) -> Packet:
    """The packet at dword `at`; `size` says where the next one starts. Raises BadPacket with the place."""
    if at >= len(words):
        raise BadPacket("no packet is left", at)
    head = words[at]
    if head == ONE_DWORD_NOP:
        return Packet("NOP", {}, 1, _by_opcode(gfx)[0x10].layout)
    if head >> 30 != 3 or head & 0xFC:
        raise BadPacket("no type-3 header", at, f"{head:#010x}")
    compiled = _by_opcode(gfx).get(head >> 8 & 0xFF)
    if compiled is None:
        raise BadPacket(f"gfx{gfx} has no packet with opcode {head >> 8 & 0xFF:#x}", at, f"{head:#010x}")
    layout, count = compiled.layout, (head >> 16 & 0x3FFF) + 1
    least = layout.words + layout.least
    if count < least or count > least and not layout.rest:
        raise BadPacket(f"{layout.name} has {count} dwords after its header, not {layout.words + layout.least}"
                        f"{' or more' if layout.rest else ''}", at, f"{head:#010x}")
    if at + 1 + count > len(words):
        raise BadPacket(f"{layout.name} needs {count + 1} dwords, {len(words) - at} are left", at)
    body = at + 1 + layout.words
    fields: dict[str, Value] = dict(compiled.unpack(from_words(words[at + 1:body]), at + 1))
    if layout.rest:
        fields[layout.rest] = tuple(words[body:at + 1 + count])
    if head & 3:
        fields |= {name: 1 for bit, name in ((2, "shader_type"), (1, "predicate")) if head & bit}
    return Packet(layout.name, fields, count + 1, layout)


def decode_all(words: Sequence[int], gfx: int) -> Iterator[tuple[int, Packet]]:
    """Every packet with the dword it starts at. Raises BadPacket."""
    at = 0
    while at < len(words):
        packet = decode(words, gfx, at)
        yield at, packet
        at += packet.size


def set_sh(name: str, gfx: int, /, *values: int) -> list[int]:
    """SET_SH_REG of `values` into the register `name` and those that follow it."""
    return encode("SET_SH_REG", gfx, reg_offset=registers.offset(name, gfx), rest=values)


def dump(words: Sequence[int], gfx: int) -> str:
    """Packets as text, one a line: the dword, the packet, and registers by their names."""
    lines = []
    for at, packet in decode_all(words, gfx):
        text = str(packet)
        if packet.name in ("SET_SH_REG", "SET_SH_REG_INDEX"):
            named = registers.writes(packet["reg_offset"], packet.rest(), gfx, at + 2)
            text = " ".join([packet.name, *(f"{name}={value:#x}" for name, value in named.items())])
        lines.append(f"{at:6d}  {text}")
    return "\n".join(lines)

