"""What an NVIDIA channel understands: methods of the host, the compute engine and the copy engines, as tables.

A method is a register at `offset` of a class; its fields are (msb, lsb) as in the class headers, whose names are kept without
the class. The host answers offsets below 0x100 on every subchannel, the object of the subchannel the rest.
Sources: open-gpu-doc classes/host/clc46f.h .. clc76f.h, classes/compute/clc5c0.h .. clcec0.h, classes/dma-copy/clc5b5.h ..
clcab5.h; open-gpu-kernel-modules kernel-open/nvidia-uvm/clc86f.h, clc96f.h.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass

from devrt.nvidia.fields import AMPERE, HOPPER, LAST, TURING, Compiled, F, Field, Layout

HOST_END = 0x100
COMPUTE_SUBCHANNEL, COPY_SUBCHANNEL = 1, 4  # 0 is 3D, 2 inline-to-memory, 3 2D


class Semaphore(enum.IntEnum):
    """SEM_EXECUTE.operation."""

    ACQUIRE = 0
    RELEASE = 1
    ACQ_STRICT_GEQ = 2
    ACQ_CIRC_GEQ = 3
    ACQ_AND = 4
    ACQ_NOR = 5
    REDUCTION = 6


class Reduction(enum.IntEnum):
    """SEM_EXECUTE.reduction and the copy engines' semaphore_reduction."""

    IMIN = 0
    IMAX = 1
    IXOR = 2
    IAND = 3
    IOR = 4
    IADD = 5
    INC = 6
    DEC = 7


class MemOp(enum.IntEnum):
    """MEM_OP_D.operation."""

    MEMBAR = 0x05
    MMU_TLB_INVALIDATE = 0x09
    MMU_TLB_INVALIDATE_TARGETED = 0x0A
    L2_PEERMEM_INVALIDATE = 0x0D
    L2_SYSMEM_INVALIDATE = 0x0E
    L2_FLUSH_DIRTY = 0x10


class Pcas(enum.IntEnum):
    """SEND_SIGNALING_PCAS2_B.pcas_action: what the scheduler does with a launch descriptor."""

    NOP = 0
    INVALIDATE = 1
    SCHEDULE = 2
    INVALIDATE_COPY_SCHEDULE = 3
    INCREMENT_PUT = 6
    DECREMENT_DEPENDENCE = 7
    PREFETCH = 8
    PREFETCH_SCHEDULE = 9
    INVALIDATE_PREFETCH_COPY_SCHEDULE = 10


class Transfer(enum.IntEnum):
    """LAUNCH_DMA.data_transfer_type. A pipelined copy may run beside the one before it."""

    NONE = 0
    PIPELINED = 1
    NON_PIPELINED = 2


class CopySemaphore(enum.IntEnum):
    """LAUNCH_DMA.semaphore_type."""

    NONE = 0
    RELEASE_ONE_WORD = 1
    RELEASE_FOUR_WORDS = 2


class Component(enum.IntEnum):
    """SET_REMAP_COMPONENTS.dst_*: where a written component comes from."""

    SRC_X = 0
    SRC_Y = 1
    SRC_Z = 2
    SRC_W = 3
    CONST_A = 4
    CONST_B = 5
    NO_WRITE = 6


@dataclass(frozen=True)
class Method:
    """One register. `count` of them lie one after another where the header has NAME(i)."""

    offset: int
    name: str
    layout: Layout
    count: int = 1
    since: int = TURING
    until: int = LAST

    def of(self, sm: int) -> Compiled:
        return self.layout.of(sm)


def M(offset: int, name: str, *fields: Field, count: int = 1, since: int = TURING, until: int = LAST) -> Method:
    return Method(offset, name, Layout(name, 32, fields), count, since, until)


@dataclass(frozen=True)
class Methods:
    """The methods of one kind of engine."""

    name: str
    rows: tuple[Method, ...]

    def __hash__(self) -> int:
        return hash(self.name)

    @functools.cached_property
    def by_name(self) -> Mapping[str, Method]:
        return {row.name: row for row in self.rows}

    @functools.cached_property
    def _by_offset(self) -> Mapping[int, Method]:
        return {row.offset + 4 * n: row for row in self.rows for n in range(row.count)}

    def find(self, offset: int, sm: int) -> Method | None:
        """The method at an offset of the class, None where this generation has none that devrt knows."""
        row = self._by_offset.get(offset)
        return row if row is not None and row.since <= sm <= row.until else None

    def __getitem__(self, name: str) -> Method:
        return self.by_name[name]


_V = F("v", 31, 0)


def _upper(name: str) -> tuple[Field, Field]:
    """The high word of an address: 49 bits until Ada, 57 from Hopper."""
    return F(name, 16, 0, until=HOPPER - 1), F(name, 24, 0, since=HOPPER)


HOST = Methods("host", (
    M(0x00, "SET_OBJECT", F("nvclass", 15, 0), F("engine", 20, 16)),
    M(0x04, "ILLEGAL", F("handle", 31, 0)),
    M(0x08, "NOP", F("handle", 31, 0)),
    M(0x20, "NON_STALL_INTERRUPT", F("handle", 31, 0)),
    M(0x28, "MEM_OP_A", _V),
    M(0x2C, "MEM_OP_B", _V),
    M(0x30, "MEM_OP_C", _V),
    M(0x34, "MEM_OP_D", F("operand", 26, 0), F("operation", 31, 27, MemOp)),
    M(0x5C, "SEM_ADDR_LO", F("offset", 31, 2, shift=2)),
    M(0x60, "SEM_ADDR_HI", F("offset", 7, 0, until=HOPPER - 1), F("offset", 24, 0, since=HOPPER)),
    M(0x64, "SEM_PAYLOAD_LO", F("payload", 31, 0)),
    M(0x68, "SEM_PAYLOAD_HI", F("payload", 31, 0)),
    M(0x6C, "SEM_EXECUTE", F("operation", 2, 0, Semaphore),
      F("acquire_switch_tsg", 12, 12),
      F("release_wfi", 20, 20),
      F("payload_size_64bit", 24, 24),
      F("release_timestamp", 25, 25),
      F("reduction", 30, 27, Reduction),
      F("reduction_unsigned", 31, 31)),
    M(0x78, "WFI", F("scope_all", 0, 0)),
    M(0x80, "YIELD", F("op", 1, 0)),
))

COMPUTE = Methods("compute", (
    M(0x0100, "NO_OPERATION", _V),
    M(0x0110, "WAIT_FOR_IDLE", _V),
    M(0x0140, "PM_TRIGGER", _V),
    M(0x0158, "SET_REPORT_SEMAPHORE_PAYLOAD_LOWER", F("payload_lower", 31, 0), since=86),
    M(0x015C, "SET_REPORT_SEMAPHORE_PAYLOAD_UPPER", F("payload_upper", 31, 0), since=86),
    M(0x0160, "SET_REPORT_SEMAPHORE_ADDRESS_LOWER", F("lower", 31, 0), since=86),
    M(0x0164, "SET_REPORT_SEMAPHORE_ADDRESS_UPPER", F("upper", 7, 0, until=HOPPER - 1), F("upper", 24, 0, since=HOPPER),
      since=86),
    M(0x0168, "REPORT_SEMAPHORE_EXECUTE", F("operation", 1, 0), F("awaken_enable", 2, 2), F("structure_size", 4, 3),
      F("flush_disable", 5, 5), F("reduction_enable", 6, 6), F("reduction_op", 9, 7), F("reduction_format", 11, 10),
      F("payload_size64", 12, 12), F("trap_type", 14, 13), since=86),
    M(0x0180, "LINE_LENGTH_IN", F("value", 31, 0)),
    M(0x0184, "LINE_COUNT", F("value", 31, 0)),
    M(0x0188, "OFFSET_OUT_UPPER", *_upper("value")),
    M(0x018C, "OFFSET_OUT", F("value", 31, 0)),
    M(0x01B0, "LAUNCH_DMA", F("dst_memory_layout_pitch", 0, 0), F("reduction_enable", 1, 1), F("reduction_format", 3, 2),
      F("completion_type", 5, 4), F("sysmembar_disable", 6, 6), F("interrupt_type", 9, 8),
      F("semaphore_struct_one_word", 12, 12), F("reduction_op", 15, 13)),
    M(0x01B4, "LOAD_INLINE_DATA", _V),
    M(0x021C, "INVALIDATE_SHADER_CACHES", F("instruction", 0, 0), F("locks", 1, 1), F("flush_data", 2, 2), F("data", 4, 4),
      F("constant", 12, 12)),
    M(0x0298, "INVALIDATE_SKED_CACHES", F("v", 0, 0)),
    M(0x02A0, "SET_SHADER_SHARED_MEMORY_WINDOW_A", F("base_address_upper", 16, 0)),
    M(0x02A4, "SET_SHADER_SHARED_MEMORY_WINDOW_B", F("base_address", 31, 0)),
    M(0x02B4, "SEND_PCAS_A", F("qmd_address_shifted8", 31, 0)),
    M(0x02BC, "SEND_SIGNALING_PCAS_B", F("invalidate", 0, 0), F("schedule", 1, 1)),
    M(0x02C0, "SEND_SIGNALING_PCAS2_B", F("pcas_action", 3, 0, Pcas), F("select", 13, 8, since=86),
      F("offset_minus_one", 23, 14, since=86), since=AMPERE),
    M(0x02E4, "SET_SHADER_LOCAL_MEMORY_NON_THROTTLED_A", F("size_upper", 7, 0)),
    M(0x02E8, "SET_SHADER_LOCAL_MEMORY_NON_THROTTLED_B", F("size_lower", 31, 0)),
    M(0x02EC, "SET_SHADER_LOCAL_MEMORY_NON_THROTTLED_C", F("max_sm_count", 8, 0),
      F("max_plural_tpc_gpc_count", 23, 16, since=HOPPER), F("max_singleton_tpc_gpc_count", 31, 24, since=HOPPER)),
    M(0x0310, "SET_SPA_VERSION", F("minor", 7, 0), F("major", 15, 8)),
    M(0x0318, "SET_INLINE_QMD_ADDRESS_A", F("qmd_address_shifted8_upper", 31, 0, until=HOPPER - 1),
      F("qmd_address_shifted8_upper", 8, 0, since=HOPPER), F("inline_size_384", 30, 30, since=HOPPER)),
    M(0x031C, "SET_INLINE_QMD_ADDRESS_B", F("qmd_address_shifted8_lower", 31, 0)),
    M(0x0320, "LOAD_INLINE_QMD_DATA", _V, count=96),
    M(0x0790, "SET_SHADER_LOCAL_MEMORY_A", *_upper("address_upper")),
    M(0x0794, "SET_SHADER_LOCAL_MEMORY_B", F("address_lower", 31, 0)),
    M(0x07B0, "SET_SHADER_LOCAL_MEMORY_WINDOW_A", F("base_address_upper", 16, 0)),
    M(0x07B4, "SET_SHADER_LOCAL_MEMORY_WINDOW_B", F("base_address", 31, 0)),
    M(0x1528, "SET_SHADER_EXCEPTIONS", F("enable", 0, 0)),
    M(0x1698, "INVALIDATE_SHADER_CACHES_NO_WFI", F("instruction", 0, 0), F("global_data", 4, 4), F("constant", 12, 12)),
    M(0x1B00, "SET_REPORT_SEMAPHORE_A", F("offset_upper", 7, 0, until=HOPPER - 1), F("offset_upper", 24, 0, since=HOPPER)),
    M(0x1B04, "SET_REPORT_SEMAPHORE_B", F("offset_lower", 31, 0)),
    M(0x1B08, "SET_REPORT_SEMAPHORE_C", F("payload", 31, 0)),
    M(0x1B0C, "SET_REPORT_SEMAPHORE_D", F("operation", 1, 0), F("flush_disable", 2, 2), F("reduction_enable", 3, 3),
      F("reduction_op", 11, 9), F("reduction_format", 18, 17), F("conditional_trap", 19, 19), F("awaken_enable", 20, 20),
      F("structure_size_one_word", 28, 28)),
))

COPY = Methods("copy", (
    M(0x0100, "NOP", F("parameter", 31, 0)),
    M(0x0240, "SET_SEMAPHORE_A", *_upper("upper")),
    M(0x0244, "SET_SEMAPHORE_B", F("lower", 31, 0)),
    M(0x0248, "SET_SEMAPHORE_PAYLOAD", F("payload", 31, 0)),
    M(0x024C, "SET_SEMAPHORE_PAYLOAD_UPPER", F("payload", 31, 0), since=86),
    M(0x0300, "LAUNCH_DMA", F("data_transfer_type", 1, 0, Transfer),
      F("flush_enable", 2, 2),
      F("semaphore_type", 4, 3, CopySemaphore),
      F("interrupt_type", 6, 5),
      F("src_memory_layout_pitch", 7, 7),
      F("dst_memory_layout_pitch", 8, 8),
      F("multi_line_enable", 9, 9),
      F("remap_enable", 10, 10),
      F("src_type_physical", 12, 12),
      F("dst_type_physical", 13, 13),
      F("semaphore_reduction", 17, 14, Reduction),
      F("semaphore_reduction_unsigned", 18, 18),
      F("semaphore_reduction_enable", 19, 19),
      F("flush_type_gl", 25, 25),
      F("disable_plc", 26, 26),
      F("semaphore_payload_two_words", 27, 27, since=86)),
    M(0x0400, "OFFSET_IN_UPPER", *_upper("upper")),
    M(0x0404, "OFFSET_IN_LOWER", F("value", 31, 0)),
    M(0x0408, "OFFSET_OUT_UPPER", *_upper("upper")),
    M(0x040C, "OFFSET_OUT_LOWER", F("value", 31, 0)),
    M(0x0410, "PITCH_IN", F("value", 31, 0)),
    M(0x0414, "PITCH_OUT", F("value", 31, 0)),
    M(0x0418, "LINE_LENGTH_IN", F("value", 31, 0)),
    M(0x041C, "LINE_COUNT", F("value", 31, 0)),
    M(0x0700, "SET_REMAP_CONST_A", _V),
    M(0x0704, "SET_REMAP_CONST_B", _V),
    M(0x0708, "SET_REMAP_COMPONENTS", F("dst_x", 2, 0, Component), F("dst_y", 6, 4, Component), F("dst_z", 10, 8, Component),
      F("dst_w", 14, 12, Component), F("component_size_minus_one", 17, 16), F("num_src_components_minus_one", 21, 20),
      F("num_dst_components_minus_one", 25, 24)),
))
