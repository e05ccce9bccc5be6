"""AQL: 64-byte packets of a compute queue, and what lies in memory beside it: queue, signal, kernel descriptor.

Structs are numpy dtypes, so that a ring is an array of packets and a field is written where it lies. Sources: HSA's hsa.h,
ROCr's amd_hsa_queue.h, amd_hsa_signal.h, amd_hsa_kernel_code.h; LLVM's AMDGPUUsage (kernel descriptor).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import numpy as np

from devrt.amd.packets import BadPacket
from devrt.device import InvalidArgument

PACKET_BYTES = 64


class PacketType(enum.IntEnum):
    VENDOR = 0
    INVALID = 1  # what a free slot holds
    KERNEL_DISPATCH = 2
    BARRIER_AND = 3
    AGENT_DISPATCH = 4
    BARRIER_OR = 5


class VendorFormat(enum.IntEnum):
    PM4_IB = 1
    BARRIER_VALUE = 2


class Fence(enum.IntEnum):
    NONE = 0
    AGENT = 1
    SYSTEM = 2


class SignalKind(enum.IntEnum):
    DOORBELL = -1
    INVALID = 0
    USER = 1


class QueueProperty(enum.IntFlag):
    TRAP_HANDLER = 1 << 0
    PTR64 = 1 << 1
    PROFILING = 1 << 3
    USE_SCRATCH_ONCE = 1 << 4


class Inactive(enum.IntFlag):
    """What the command processor puts into a queue's inactive_signal when it stops."""

    SCRATCH_NEEDED = 0x1
    INVALID_DIM = 0x2
    INVALID_LDS_SIZE = 0x4
    INVALID_CODE = 0x8
    INVALID_PACKET_FORMAT = 0x20
    INVALID_GROUP_SIZE = 0x40
    INVALID_VGPR = 0x80
    INVALID_VENDOR_PACKET = 0x100
    APERTURE_VIOLATION = 0x20000000
    ILLEGAL_INSTRUCTION = 0x40000000
    TRAP = 0x80000000


class KernelProperty(enum.IntFlag):
    """What a kernel wants in its first SGPRs, in this order, and how it runs."""

    PRIVATE_SEGMENT_BUFFER = 1 << 0  # 4 SGPRs
    DISPATCH_PTR = 1 << 1  # 2, as the next four
    QUEUE_PTR = 1 << 2
    KERNARG_SEGMENT_PTR = 1 << 3
    DISPATCH_ID = 1 << 4
    FLAT_SCRATCH_INIT = 1 << 5
    PRIVATE_SEGMENT_SIZE = 1 << 6  # 1
    WAVEFRONT_SIZE32 = 1 << 10
    USES_DYNAMIC_STACK = 1 << 11


def _struct(size: int, *fields: tuple[str, int, str]) -> np.dtype[Any]:
    """Rows of (name, byte offset, type); what no row names is reserved."""
    return np.dtype({"names": [name for name, _, _ in fields], "offsets": [offset for _, offset, _ in fields],
                     "formats": [kind for _, _, kind in fields], "itemsize": size})


KERNEL_DISPATCH = _struct(
    64,
    ("header", 0, "<u2"),
    ("setup", 2, "<u2"),  # dimensions in 1:0
    ("workgroup_size_x", 4, "<u2"),
    ("workgroup_size_y", 6, "<u2"),
    ("workgroup_size_z", 8, "<u2"),
    ("grid_size_x", 12, "<u4"),  # work-items
    ("grid_size_y", 16, "<u4"),
    ("grid_size_z", 20, "<u4"),
    ("private_segment_size", 24, "<u4"),
    ("group_segment_size", 28, "<u4"),
    ("kernel_object", 32, "<u8"),  # address of the descriptor
    ("kernarg_address", 40, "<u8"),
    ("completion_signal", 56, "<u8"),
)
BARRIER = _struct(  # AND waits until every signal is 0, OR until one is
    64,
    ("header", 0, "<u2"),
    ("dep_signal", 8, "(5,)<u8"),
    ("completion_signal", 56, "<u8"),
)
AGENT_DISPATCH = _struct(
    64,
    ("header", 0, "<u2"),
    ("type", 2, "<u2"),
    ("return_address", 8, "<u8"),
    ("arg", 16, "(4,)<u8"),
    ("completion_signal", 56, "<u8"),
)
VENDOR_PM4_IB = _struct(
    64,
    ("header", 0, "<u2"),
    ("format", 2, "<u2"),
    ("ib_jump_cmd", 4, "(4,)<u4"),  # an INDIRECT_BUFFER packet
    ("dw_cnt_remain", 20, "<u4"),  # 10
    ("completion_signal", 56, "<u8"),
)
VENDOR_BARRIER_VALUE = _struct(
    64,
    ("header", 0, "<u2"),
    ("format", 2, "<u2"),
    ("signal", 8, "<u8"),
    ("value", 16, "<i8"),
    ("mask", 24, "<i8"),
    ("condition", 32, "<u4"),  # 0 equal, 1 not equal, 2 less, 3 greater or equal
    ("completion_signal", 56, "<u8"),
)
QUEUE = _struct(  # amd_queue_t
    256,
    ("type", 0, "<u4"),
    ("features", 4, "<u4"),
    ("base_address", 8, "<u8"),
    ("doorbell_signal", 16, "<u8"),
    ("size", 24, "<u4"),  # packets
    ("id", 32, "<u8"),
    ("write_dispatch_id", 56, "<u8"),
    ("group_segment_aperture_base_hi", 64, "<u4"),
    ("private_segment_aperture_base_hi", 68, "<u4"),
    ("max_cu_id", 72, "<u4"),
    ("max_wave_id", 76, "<u4"),
    ("read_dispatch_id", 128, "<u8"),
    ("read_dispatch_id_field_base_byte_offset", 136, "<u4"),
    ("compute_tmpring_size", 140, "<u4"),
    ("scratch_resource_descriptor", 144, "(4,)<u4"),
    ("scratch_backing_memory_location", 160, "<u8"),
    ("scratch_backing_memory_byte_size", 168, "<u8"),
    ("scratch_wave64_lane_byte_size", 176, "<u4"),
    ("queue_properties", 180, "<u4"),
    ("scratch_max_use_index", 184, "<u8"),
    ("queue_inactive_signal", 192, "<u8"),
)
SIGNAL = _struct(  # amd_signal_t
    64,
    ("kind", 0, "<i8"),
    ("value", 8, "<i8"),
    ("event_mailbox_ptr", 16, "<u8"),
    ("event_id", 24, "<u4"),
    ("start_ts", 32, "<u8"),
    ("end_ts", 40, "<u8"),
    ("queue_ptr", 48, "<u8"),
)
KERNEL_DESCRIPTOR = _struct(
    64,
    ("group_segment_fixed_size", 0, "<u4"),
    ("private_segment_fixed_size", 4, "<u4"),
    ("kernarg_size", 8, "<u4"),
    ("kernel_code_entry_byte_offset", 16, "<i8"),  # from the descriptor
    ("compute_pgm_rsrc3", 44, "<u4"),
    ("compute_pgm_rsrc1", 48, "<u4"),
    ("compute_pgm_rsrc2", 52, "<u4"),
    ("kernel_code_properties", 56, "<u2"),
    ("kernarg_preload", 58, "<u2"),  # length in 6:0, offset in 15:7, of dwords; gfx90a and gfx942
)

_BY_TYPE: Mapping[PacketType, np.dtype[Any]] = {
    PacketType.KERNEL_DISPATCH: KERNEL_DISPATCH, PacketType.BARRIER_AND: BARRIER, PacketType.BARRIER_OR: BARRIER,
    PacketType.AGENT_DISPATCH: AGENT_DISPATCH}
_BY_FORMAT: Mapping[VendorFormat, np.dtype[Any]] = {
    VendorFormat.PM4_IB: VENDOR_PM4_IB, VendorFormat.BARRIER_VALUE: VENDOR_BARRIER_VALUE}


def header(kind: PacketType, *, barrier: bool = False, acquire: Fence = Fence.NONE, release: Fence = Fence.NONE) -> int:
    """The first 16 bits: type in 7:0, barrier 8, acquire 10:9, release 12:11. Written last, with the 16 bits after it."""
    return kind | barrier << 8 | acquire << 9 | release << 11


def encode(kind: PacketType, /, *, barrier: bool = False, acquire: Fence = Fence.NONE, release: Fence = Fence.NONE,
           format: VendorFormat = VendorFormat.PM4_IB, **fields: Any) -> bytes:
    """The 64 bytes of one packet; fields left out are 0. Raises InvalidArgument."""
    layout = _BY_FORMAT[format] if kind is PacketType.VENDOR else _BY_TYPE.get(kind)
    if layout is None or layout.names is None:
        raise InvalidArgument(f"an {kind.name} packet has no fields to encode")
    packet = np.zeros((), layout)
    packet["header"] = header(kind, barrier=barrier, acquire=acquire, release=release)
    if kind is PacketType.VENDOR:
        packet["format"] = format
    for name, value in fields.items():
        if name not in layout.names or name == "header":
            raise InvalidArgument(f"an AQL {kind.name} packet has no field {name}", remedy=f"fields: {', '.join(layout.names)}")
        try:
            packet[name] = value
        except (OverflowError, ValueError) as error:
            raise InvalidArgument(f"{kind.name}.{name} cannot be {value}", evidence=str(error)) from error
    return packet.tobytes()


def decode(data: bytes | memoryview, at: int = 0) -> tuple[PacketType, dict[str, Any]]:
    """(type, fields with `barrier`, `acquire` and `release` of the header) of 64 bytes; `at` is the packet's index, for
    messages. Raises BadPacket for reserved bits."""
    raw = bytes(data)
    if len(raw) != PACKET_BYTES:
        raise BadPacket(f"an AQL packet has {PACKET_BYTES} bytes, not {len(raw)}", at * 16)
    head = int.from_bytes(raw[:2], "little")
    if head & 0xFF not in PacketType._value2member_map_ or head >> 13 or 3 in (head >> 9 & 3, head >> 11 & 3):
        raise BadPacket("no AQL header", at * 16, f"{head:#06x}")
    kind = PacketType(head & 0xFF)
    flags = {"barrier": bool(head >> 8 & 1), "acquire": Fence(head >> 9 & 3), "release": Fence(head >> 11 & 3)}
    if kind is PacketType.INVALID:
        return kind, flags
    if kind is PacketType.VENDOR:
        if raw[2] | raw[3] << 8 not in VendorFormat._value2member_map_:
            raise BadPacket(f"no vendor packet has format {raw[2] | raw[3] << 8}", at * 16)
        layout = _BY_FORMAT[VendorFormat(raw[2] | raw[3] << 8)]
    else:
        layout = _BY_TYPE[kind]
    packet = np.frombuffer(raw, layout, 1)[0]
    clean = np.zeros((), layout)
    assert layout.names is not None
    for name in layout.names:
        clean[name] = packet[name]
    if clean.tobytes() != raw:
        place = next(index for index, (mine, given) in enumerate(zip(clean.tobytes(), raw, strict=True)) if mine != given)
        raise BadPacket(f"{kind.name}: reserved byte {place} is set", at * 16 + place // 4)
    fields = {name: packet[name].tolist() for name in layout.names if name != "header"}
    if kind is PacketType.KERNEL_DISPATCH and not 1 <= fields["setup"] <= 3:
        raise BadPacket(f"a dispatch has 1 to 3 dimensions, not {fields['setup']}", at * 16)
    return kind, fields | flags
