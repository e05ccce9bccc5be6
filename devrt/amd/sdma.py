"""SDMA: what a copy engine's queue reads. One table; `encode` builds from it, `decode` reads by it.

The header dword is part of a layout: opcode in 7:0, sub-opcode in 15:8, more fields above. Everything is counted in bytes
by the engine (ring, pointers, doorbell) and in dwords here; a packet must not wrap, a ring's end is filled with zeros
(NOP). Engines: 4.4 of gfx9, 5.2 of gfx10, 6.0 of gfx11, 7.0 of gfx12, whose packets are taken to be those of 6.0.
Sources: Linux drivers/gpu/drm/amd/amdgpu/{vega10,navi10,sdma_v6_0_0}_sdma_pkt_open.h; limits from sdma_v4_4_2.c,
sdma_v5_2.c, sdma_v6_0.c (copy_max_bytes).
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Mapping, Sequence

from devrt.amd.packets import GFX10_UP, GFX11_UP, A, BadPacket, Compiled, F, Field, Layout, Packet, Value, from_words, to_words
from devrt.amd.pm4 import Function
from devrt.device import InvalidArgument

# Bytes that `encode` puts into one COPY_LINEAR or CONST_FILL at most. The count field has 30 bits also on the 4.4 and 5.2
# engines, though the headers of 4.0 and 5.0 name 22: ROCr uses 30 there, the kernel used 22 for 4.4.2 before it took 30.
MAX_BYTES: Mapping[int, int] = {9: 1 << 22, 10: 1 << 30, 11: 1 << 30, 12: 1 << 30}
MAX_WRITE_DWORDS = 1 << 20
MAX_NOP_DWORDS = 1 << 14
IB_ALIGN = 32  # bytes: base and end of what INDIRECT runs
FOREVER = 0xFFF  # retry_count of POLL_REGMEM


class Mtype(enum.IntEnum):
    """Of a FENCE's write."""

    DEFAULT = 0
    NC = 1
    RW = 2
    UC = 3
    CC = 4


class FillSize(enum.IntEnum):
    BYTE = 0
    SHORT = 1
    DWORD = 2


class Atomic(enum.IntEnum):
    """TC_OP of an ATOMIC packet; the bit 32 makes it 64 bits wide, those that return nothing are 16 higher."""

    CMPSWAP_RTN_32 = 8
    ADD_RTN_32 = 15
    SWAP_RTN_32 = 7
    SWAP_RTN_64 = 39
    CMPSWAP_RTN_64 = 40
    ADD_RTN_64 = 47


def _fill_rule(fields: Mapping[str, int], gfx: int) -> str:
    unit = 1 << fields["fillsize"]
    return f"dst {fields['dst']:#x} is not a multiple of {unit}" if fields["dst"] % unit else ""


def _poll_rule(fields: Mapping[str, int], gfx: int) -> str:
    if fields["mem_poll"] and not fields["hdp_flush"] and fields["address"] % 4:
        return f"address {fields['address']:#x} is not a multiple of 4"
    return ""


def _op(*fields: Field) -> tuple[Field, ...]:
    return F("op", 0, 7, 0), F("sub_op", 0, 15, 8), *fields


# opcode | sub-opcode << 8, then the layout
_ROWS: tuple[tuple[int, Layout], ...] = (
    (0x0000, Layout("NOP", 1, _op(
        F("count", 0, 29, 16)), rest="data")),  # dwords that follow
    (0x0001, Layout("COPY_LINEAR", 7, _op(
        F("encrypt", 0, 16, 16),
        F("tmz", 0, 18, 18),
        F("cpv", 0, 19, 19, gfx=GFX11_UP),  # the cache policy fields count
        F("backwards", 0, 25, 25, gfx=GFX10_UP),
        F("broadcast", 0, 27, 27),
        F("count", 1, 29, 0),  # bytes - 1
        F("dst_sw", 2, 17, 16),
        F("dst_cache_policy", 2, 20, 18, gfx=GFX11_UP),
        F("src_sw", 2, 25, 24),
        F("src_cache_policy", 2, 28, 26, gfx=GFX11_UP),
        A("src", 3),
        A("dst", 5)))),
    (0x0002, Layout("WRITE_UNTILED", 4, _op(
        F("encrypt", 0, 16, 16),
        F("tmz", 0, 18, 18),
        F("cpv", 0, 28, 28, gfx=GFX11_UP),
        A("dst", 1, lsb=2),
        F("count", 3, 19, 0),  # dwords - 1
        F("sw", 3, 25, 24),
        F("cache_policy", 3, 28, 26, gfx=GFX11_UP)), rest="data", least=1)),
    (0x0004, Layout("INDIRECT", 6, _op(
        F("vmid", 0, 19, 16),
        F("priv", 0, 31, 31, gfx=GFX10_UP),
        A("ib_base", 1, lsb=5),
        F("ib_size", 3, 19, 0),  # dwords
        A("csa_addr", 4)))),
    (0x0005, Layout("FENCE", 4, _op(
        F("mtype", 0, 18, 16, Mtype, gfx=GFX10_UP),
        F("gcc", 0, 19, 19, gfx=GFX10_UP),
        F("sys", 0, 20, 20, gfx=GFX10_UP),
        F("snp", 0, 22, 22, gfx=GFX10_UP),
        F("gpa", 0, 23, 23, gfx=GFX10_UP),
        F("l2_policy", 0, 25, 24, gfx=GFX10_UP),
        F("llc_policy", 0, 26, 26, gfx=GFX11_UP),
        F("cpv", 0, 28, 28, gfx=GFX11_UP),
        A("address", 1, lsb=2),
        F("data", 3, 31, 0)))),
    (0x0006, Layout("TRAP", 2, _op(
        F("int_context", 1, 27, 0)))),  # an event's id
    (0x0008, Layout("POLL_REGMEM", 6, _op(
        F("cache_policy", 0, 22, 20, gfx=GFX11_UP),
        F("cpv", 0, 24, 24, gfx=GFX11_UP),
        F("hdp_flush", 0, 26, 26),
        F("func", 0, 30, 28, Function),
        F("mem_poll", 0, 31, 31),  # 1: memory, 0: a register
        A("address", 1),
        F("value", 3, 31, 0),
        F("mask", 4, 31, 0),
        F("interval", 5, 15, 0),
        F("retry_count", 5, 27, 16)), rule=_poll_rule)),
    (0x0009, Layout("COND_EXE", 5, _op(
        F("cache_policy", 0, 26, 24, gfx=GFX11_UP),
        F("cpv", 0, 28, 28, gfx=GFX11_UP),
        A("address", 1, lsb=2),
        F("reference", 3, 31, 0),
        F("exec_count", 4, 13, 0)))),
    (0x000A, Layout("ATOMIC", 8, _op(
        F("loop", 0, 16, 16),
        F("tmz", 0, 18, 18),
        F("cache_policy", 0, 22, 20, gfx=GFX11_UP),
        F("cpv", 0, 24, 24, gfx=GFX11_UP),
        F("atomic_op", 0, 31, 25),
        A("address", 1, lsb=2),
        F("src_data", 3, 63, 0),
        F("cmp_data", 5, 63, 0),
        F("loop_interval", 7, 12, 0)))),
    (0x000B, Layout("CONST_FILL", 5, _op(
        F("sw", 0, 17, 16),
        F("cache_policy", 0, 26, 24, gfx=GFX11_UP),
        F("cpv", 0, 28, 28, gfx=GFX11_UP),
        F("fillsize", 0, 31, 30, FillSize),
        A("dst", 1),
        F("src_data", 3, 31, 0),
        F("count", 4, 29, 0)), rule=_fill_rule)),  # bytes - the unit of fillsize
    (0x010D, Layout("TIMESTAMP_GET", 3, _op(
        F("l2_policy", 0, 25, 24, gfx=GFX11_UP),
        F("llc_policy", 0, 26, 26, gfx=GFX11_UP),
        F("cpv", 0, 28, 28, gfx=GFX11_UP),
        A("address", 1, lsb=3)))),
    (0x020D, Layout("TIMESTAMP_GET_GLOBAL", 3, _op(
        F("l2_policy", 0, 25, 24, gfx=GFX11_UP),
        F("llc_policy", 0, 26, 26, gfx=GFX11_UP),
        F("cpv", 0, 28, 28, gfx=GFX11_UP),
        A("address", 1, lsb=3)))),
    (0x0111, Layout("GCR_REQ", 5, _op(
        A("base_va", 1, lsb=7, msb=47),
        F("gcr_control", 2, 34, 16),  # GCR_CNTL as of ACQUIRE_MEM, across two dwords
        A("limit_va", 3, lsb=7, msb=47),
        F("vmid", 4, 27, 24)), GFX10_UP)),
)
_KEYS: Mapping[str, int] = {layout.name: key for key, layout in _ROWS}


@functools.cache
def _by_name(gfx: int) -> Mapping[str, Compiled]:
    return {layout.name: layout.of(gfx) for _, layout in _ROWS if layout.gfx[0] <= gfx <= layout.gfx[1]}


@functools.cache
def _by_key(gfx: int) -> Mapping[int, Compiled]:
    return {_KEYS[name]: compiled for name, compiled in _by_name(gfx).items()}


def encode(name: str, gfx: int, /, *, rest: Sequence[int] = (), **fields: int) -> list[int]:
    """The dwords of one packet; fields left out are 0, `rest` are the data of NOP and WRITE_UNTILED, which set `count`.

    Raises InvalidArgument for a packet, field or value that the engine does not have.
    """
    compiled = _by_name(gfx).get(name)
    if compiled is None:
        raise InvalidArgument(f"the copy engine of gfx{gfx} has no packet {name}", remedy=f"packets: {', '.join(_by_name(gfx))}")
    layout = compiled.layout
    if rest and not layout.rest or len(rest) < layout.least or not all(0 <= word <= 0xFFFFFFFF for word in rest):
        raise InvalidArgument(f"{name} cannot take {len(rest)} dwords of {layout.rest or 'data'}")
    if "count" in fields and (layout.rest or _bytes(name, fields) > MAX_BYTES[gfx]):
        raise InvalidArgument(f"{name} cannot take count {fields['count']:#x} on gfx{gfx}",
                              remedy="give the data as rest" if layout.rest else f"at most {MAX_BYTES[gfx]} bytes a packet")
    if layout.rest:
        fields["count"] = len(rest) - layout.least
    return [*to_words(compiled.pack(fields) | _KEYS[name], layout.words), *rest]


def decode(words: Sequence[int], gfx: int, at: int = 0) -> Packet:
    """The packet at dword `at`; `size` says where the next one starts. Raises BadPacket with the place."""
    if at >= len(words):
        raise BadPacket("no packet is left", at)
    head = words[at]
    compiled = _by_key(gfx).get(head & 0xFFFF)
    if compiled is None:
        raise BadPacket(f"the copy engine of gfx{gfx} has no packet with opcode {head & 0xFF}.{head >> 8 & 0xFF}", at,
                        f"{head:#010x}")
    layout = compiled.layout
    end = at + layout.words
    if end > len(words):
        raise BadPacket(f"{layout.name} needs {layout.words} dwords, {len(words) - at} are left", at)
    fields: dict[str, Value] = dict(compiled.unpack(from_words(words[at:end]), at))
    del fields["op"], fields["sub_op"]
    if layout.rest:
        count = fields.pop("count")
        assert isinstance(count, int)
        body, end = end, end + count + layout.least
        if end > len(words):
            raise BadPacket(f"{layout.name} needs {end - at} dwords, {len(words) - at} are left", at)
        fields[layout.rest] = tuple(words[body:end])
    return Packet(layout.name, fields, end - at, layout)


def decode_all(words: Sequence[int], gfx: int) -> Iterator[tuple[int, Packet]]:
    """Every packet with the dword it starts at. Raises BadPacket."""
    at = 0
    while at < len(words):
        packet = decode(words, gfx, at)
        yield at, packet
        at += packet.size


def dump(words: Sequence[int], gfx: int) -> str:
    """Packets as text, one a line: the dword, the packet."""
    return "\n".join(f"{at:6d}  {packet}" for at, packet in decode_all(words, gfx))


def _bytes(name: str, fields: Mapping[str, int]) -> int:
    """What a COPY_LINEAR or CONST_FILL moves, in bytes."""
    return fields["count"] + (1 << fields.get("fillsize", 0) if name == "CONST_FILL" else 1)
