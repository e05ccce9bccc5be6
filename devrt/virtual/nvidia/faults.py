"""Errors of the GPU in the driver's terms: Xid numbers, MMU faults, exceptions of an SM, and the kernel log's words for them.

Numbers: nverror.h; ctrl83dedebug.h and dev_fault.ref for MMU faults; dev_pbdma.ref for PBDMA interrupts; the exceptions of a warp
as nouveau's gf100.c lists them. The wording is that of driver 570 and later; what the virtual GPU knows beyond it follows in
brackets.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

from devrt.ioctl.nv_alloc import copy_engine
from devrt.ioctl.nv_controls import AccessType, FaultType
from devrt.virtual.memory import SPAN, Access, AddressSpace, MemoryFault
from devrt.virtual.nvidia.channel import Channel, ChannelError
from devrt.virtual.nvidia.dispatch import WarpFault


class Xid(enum.IntEnum):
    GR_EXCEPTION = 13
    MMU_FAULT = 31
    PBDMA_ERROR = 32
    PREEMPTIVE_REMOVAL = 45
    DOUBLE_BIT_ERROR = 48
    CLASS_ERROR = 69
    OFF_THE_BUS = 79
    CONTAINED = 94
    RECOVERY_ACTION_CHANGED = 154


_COPIES: Mapping[int, int] = {copy_engine(n): n for n in range(20)}
_COPY_XIDS = (39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136))  # ROBUST_CHANNEL_CEn_ERROR


class Pbdma(enum.IntEnum):
    """Bits of NV_PPBDMA_INTR_0."""

    GPPTR = 14
    GPENTRY = 15
    PBENTRY = 18
    METHOD = 21
    DEVICE = 23
    SEMAPHORE = 25


@dataclass(frozen=True)
class MmuFault:
    """One entry of NV83DE_CTRL_CMD_DEBUG_READ_MMU_FAULT_INFO."""

    channel: Channel
    address: int
    fault_type: FaultType
    access_type: AccessType


@dataclass(frozen=True)
class SmError:
    """What an SM's error registers hold. `sm` is its number on the GPU; `pc` and `address` are GPU addresses."""

    channel: Channel
    sm: int
    global_esr: int
    warp_esr: int
    pc: int
    address: int


# WarpFault.kind -> NV_PGRAPH_PRI_GPC0_TPC0_SM_HWW_WARP_ESR_ERROR and what the log calls it. What no hardware tells (a missing
# wait for a scoreboard) is an illegal instruction.
WARP_ERRORS = {
    "illegal instruction": (0x09, "Illegal Instruction Encoding"),
    "unsupported": (0x09, "Illegal Instruction Encoding"),
    "missing wait": (0x09, "Illegal Instruction Encoding"),
    "bad barrier": (0x0B, "Illegal Instruction Parameter"),
    "outside constant bank": (0x0C, "Invalid Constant Buffer Address"),
    "register out of range": (0x0D, "Out Of Range Register"),
    "outside shared memory": (0x0E, "Out Of Range Address"),
    "outside local memory": (0x0E, "Out Of Range Address"),
    "bad address": (0x0E, "Out Of Range Address"),
    "misaligned": (0x0F, "Misaligned Address"),
    "trap": (0x00, "Breakpoint"),
}
HANGS = "hang", "deadlock"  # kinds that hardware tells nobody about
_ADDRESS_VALID = 1 << 24  # WARP_ESR
_ADDRESS = re.compile(r"\baddress (0x[0-9a-f]+)")
_MMU_WARP_ERROR = 0x20    # what a warp's register holds after an MMU fault
_BREAKPOINT = 0x10        # GLOBAL_ESR: BPT_INT


def copy_number(engine: int) -> int:
    """n of COPYn; -1 for another engine."""
    return _COPIES.get(engine, -1)


def pbdma_error(channel: Channel, bit: Pbdma, why: str) -> ChannelError:
    return ChannelError(Xid.PBDMA_ERROR, f"Channel ID {channel.id:08x} intr0 {1 << bit:08x} [{bit.name}: {why}]")


def class_error(channel: Channel, class_id: int, offset: int, data: int, why: str) -> ChannelError:
    """A method that the compute engine refuses."""
    return ChannelError(Xid.CLASS_ERROR, f"Class Error: ChId {channel.id:04x}, Class {class_id:08x}, Offset {offset:08x}, "
                                         f"Data {data:08x}, ErrorCode 0000000c [{why}]")


def copy_error(channel: Channel, class_id: int, offset: int, data: int, why: str) -> ChannelError:
    number = max(copy_number(channel.engine), 0)
    return ChannelError(_COPY_XIDS[number], f"CE{number}: ChId {channel.id:04x}, Class {class_id:08x}, Offset {offset:08x}, "
                                            f"Data {data:08x} [{why}]")


def launch_error(channel: Channel, class_id: int, offset: int, data: int, why: str) -> ChannelError:
    """A launch that the compute engine refuses, or that races with another."""
    return ChannelError(Xid.GR_EXCEPTION, f"Graphics Exception: ChID {channel.id:04x}, Class {class_id:08x}, "
                                          f"Offset {offset:08x}, Data {data:08x} [{why}]")


def warp_error(channel: Channel, fault: WarpFault) -> tuple[ChannelError, SmError]:
    """What an exception of a warp becomes."""
    error, text = WARP_ERRORS[fault.kind]
    found = _ADDRESS.search(fault.detail)
    esr = error | (fault.warp & 0x3F) << 16 | (_ADDRESS_VALID if found else 0)
    state = SmError(channel, 0, _BREAKPOINT if fault.kind == "trap" else 0, esr, fault.pc, int(found[1], 16) if found else 0)
    return ChannelError(Xid.GR_EXCEPTION, (
        f"Graphics SM Warp Exception on (GPC 0, TPC 0, SM 0): {text}\n"
        f"Graphics Exception: ESR 0x504730={esr:#x} 0x504734={state.global_esr:#x} 0x504728=0x4c1eb72 0x50472c=0x174\n"
        f"Graphics Exception: ChID {channel.id:04x} [{fault}]")), state


def mmu_error(channel: Channel, fault: MemoryFault, client: str, who: str) -> tuple[ChannelError, MmuFault]:
    """An access that the page tables refuse. `client` is the unit that made it: GPCCLIENT_T1_0, HUBCLIENT_CE0, HUBCLIENT_HOST."""
    kind, access = fault_type(channel.space, fault), AccessType.VIRT_WRITE if fault.access == "write" else AccessType.VIRT_READ
    number = copy_number(channel.engine)
    engine = "HOST0" if client == "HUBCLIENT_HOST" else f"CE{number}" if number >= 0 else "GRAPHICS"
    unit = f"GPC0 {client}" if client.startswith("GPC") else client
    message = (f"channel 0x{channel.id:08x}, intr 00000000. MMU Fault: ENGINE {engine} {unit} faulted @ "
               f"0x{fault.va >> 32:x}_{fault.va & 0xFFFFFFFF:08x}. Fault is of type FAULT_{kind.name} "
               f"ACCESS_TYPE_{access.name} [{fault.why}; {who}]")
    return ChannelError(Xid.MMU_FAULT, message), MmuFault(channel, fault.va, kind, access)


def fault_type(space: AddressSpace, fault: MemoryFault) -> FaultType:
    """What the MMU says about an access: which level of the page table misses, or what forbids it."""
    if not 0 <= fault.va < SPAN:
        return FaultType.VA_LIMIT_VIOLATION
    if space.entry(fault.va) & Access.VALID and fault.access == "write":
        return FaultType.RO_VIOLATION
    around = fault.va >> 21 << 21  # what one page directory entry of the last level covers
    neighbours = any(space.entry(around + n * 4096) & Access.VALID for n in range(512))
    return FaultType.PTE if neighbours else FaultType.PDE


def warp_state_of_mmu(channel: Channel, fault: MemoryFault) -> SmError:
    """What the SM holds of an MMU fault that one of its warps made."""
    return SmError(channel, 0, 0, _MMU_WARP_ERROR, fault.pc, fault.va)


def reset_error() -> ChannelError:
    """The GPU stopped working and waits to be reset (gpu.c, recovery actions)."""
    return ChannelError(Xid.RECOVERY_ACTION_CHANGED,
                        "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required) [injected]")


def memory_error(channel: Channel, contained: bool, unit: str) -> ChannelError:
    """An uncorrectable error of memory: contained where the generation can stop the channel alone."""
    if contained:
        return ChannelError(Xid.CONTAINED, f"Contained: {unit}. RST: No, D-RST: No")
    return ChannelError(Xid.DOUBLE_BIT_ERROR, "An uncorrectable double bit error (DBE) has been detected on the GPU [injected]")
