"""What the driver reports when a channel ends, as devrt's errors.

A channel's notifier holds the error's code (the Xid of the kernel log). For a compute channel the debugger object has the MMU's
faults and the error registers of every SM; any channel tells of its own MMU fault.
Sources: open-gpu-kernel-modules nverror.h, ctrl83dedebug.h, ctrl906f.h; the errors of a warp: nouveau's gf100.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from devrt.device import DeviceFault, DeviceHang, DeviceLost, DevrtError
from devrt.ioctl.nv_controls import AccessType, FaultType

if TYPE_CHECKING:
    from devrt.nvidia.channel import Channel
    from devrt.nvidia.device import NvidiaDevice

_GRAPHICS_EXCEPTION, _MMU_FAULT = 13, 31
_FIFO_TIMEOUT, _IDLE_TIMEOUT = 8, 109
# Xid -> what happened. Codes of copy engines and others that mean a fault of this channel alone are below.
_XIDS = {
    8: "a channel stopped making progress, and the driver ended it",
    13: "a kernel did what it may not",
    31: "an access to memory that is not mapped so",
    32: "the host could not make sense of a pushbuffer",
    43: "the driver reset the channel after an error",
    44: "a context could not be switched",
    45: "the driver ended the channel, after another one's error or from outside",
    48: "an uncorrectable memory error",
    62: "the GPU's microcontroller halted",
    69: "an engine refused a method",
    79: "the GPU has fallen off the bus",
    94: "an uncorrectable memory error, contained to this program",
    95: "an uncorrectable memory error that is not contained",
    109: "a context switch timed out",
    119: "the GPU's system processor did not answer",
    120: "the GPU's system processor failed",
    140: "an uncorrectable memory error",
    154: "the GPU needs to be reset",
}
_COPY_XIDS = (39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136))
_LOST = (62, 79, 119, 120, 154)
_MEMORY = (48, 94, 95, 140)
_HANGS = (_FIFO_TIMEOUT, _IDLE_TIMEOUT)
# HWW_WARP_ESR.error
_WARP_ERRORS = {
    0x01: "stack error", 0x02: "call stack error", 0x03: "return from an empty stack", 0x04: "program counter wrapped",
    0x05: "misaligned program counter", 0x06: "program counter out of range", 0x07: "misaligned address of a constant",
    0x08: "misaligned register", 0x09: "illegal instruction", 0x0B: "illegal operand of an instruction",
    0x0C: "address outside a constant bank", 0x0D: "register out of range", 0x0E: "address out of range",
    0x0F: "misaligned address", 0x10: "address space that an instruction may not use",
    0x11: "illegal operand of an instruction", 0x12: "address outside a constant bank", 0x20: "MMU fault",
}
_WARP_MMU_FAULT = 0x20
_BREAKPOINT = 0x10  # HWW_GLOBAL_ESR: a trap instruction
_MAX_SMS = 100      # of one READ_ALL_SM_ERROR_STATES


class MmuFault(NamedTuple):
    address: int
    kind: int
    access: int


class SmError(NamedTuple):
    """The error registers of one SM: `error` of a warp, where it was, what it touched."""

    sm: int
    error: int
    pc: int
    address: int
    trap: bool


def error_of(device: NvidiaDevice, channel: Channel) -> DevrtError:
    """Why a channel of the device ended."""
    code, engine = channel.error
    doing = f"Xid {code} on the {channel.name} channel, engine {engine:#x}; {device.describe_queues()}"
    if code in _LOST or device.objects.lost:
        return DeviceLost(f"{device.uri} is lost: {_XIDS.get(code, 'its registers read as ones')}", evidence=doing,
                          remedy="read the kernel log for Xid lines; reset the GPU (nvidia-smi -r) or the machine")
    running = device.running()
    during = f" while it ran {running}" if running else ""
    if code in _HANGS:
        return DeviceHang(f"{device.uri} stopped making progress{during}", completed=device.compute.completed,
                          expected=device.compute.submitted, evidence=doing)
    if code in _MEMORY:
        return DeviceFault(f"{device.uri} met {_XIDS[code]}{during}", access="read", kernel=running, evidence=doing,
                           remedy="close and open the device; `devrt doctor` reads the GPU's error counters")
    faults, errors = mmu_faults(device, channel), sm_errors(device, channel)
    if code == _MMU_FAULT or faults:
        return _of_mmu(device, faults, errors, running, doing)
    if errors:
        return _of_warp(device, errors[0], running, doing)
    what = _XIDS.get(code, "a copy engine's error" if code in _COPY_XIDS else "an error of a channel")
    return DeviceFault(f"{device.uri} stopped: {what}{during}", kernel=running, evidence=doing,
                       remedy="the kernel log (`sudo dmesg`) has an Xid line with more; close and open the device")


def _of_mmu(device: NvidiaDevice, faults: list[MmuFault], errors: list[SmError], running: str, doing: str) -> DevrtError:
    at = next((e for e in errors if e.error == _WARP_MMU_FAULT), None)
    place, kernel = device.place_of(at.pc) if at is not None else ("", "")
    kernel = kernel or running
    during = f", while it ran {kernel}{f' ({place})' if place else ''}" if kernel else ""
    if not faults:
        return DeviceFault(f"{device.uri} touched memory that is not mapped so{during}", kernel=kernel, evidence=doing)
    fault = faults[0]
    access = "write" if fault.access in (AccessType.VIRT_WRITE, AccessType.VIRT_ATOMIC_STRONG, AccessType.VIRT_ATOMIC_WEAK) \
        else "read"
    why = {FaultType.RO_VIOLATION: "may only be read", FaultType.WO_VIOLATION: "may only be written",
           FaultType.ATOMIC_VIOLATION: "takes no atomics", FaultType.POISONED: "held poison",
           FaultType.PRIV_VIOLATION: "is the driver's", FaultType.VA_LIMIT_VIOLATION: "is beyond all addresses"}.get(
        FaultType(fault.kind) if fault.kind in FaultType._value2member_map_ else FaultType.PTE, "is not mapped")
    nearest = device.ledger.nearest(fault.address)
    return DeviceFault(f"{device.uri} touched what it may not: {fault.address:#x} {why}{during}", address=fault.address,
                       access=access, nearest=nearest, kernel=kernel, evidence=f"{nearest}; {_fault_name(fault)}; {doing}")


def _fault_name(fault: MmuFault) -> str:
    kinds, accesses = FaultType._value2member_map_, AccessType._value2member_map_
    kind = FaultType(fault.kind).name if fault.kind in kinds else f"{fault.kind:#x}"
    access = AccessType(fault.access).name if fault.access in accesses else f"{fault.access:#x}"
    return f"MMU fault {kind}, {access}"


def _of_warp(device: NvidiaDevice, error: SmError, running: str, doing: str) -> DevrtError:
    place, kernel = device.place_of(error.pc)
    kernel = kernel or running
    name = "trap" if error.trap else _WARP_ERRORS.get(error.error, f"error {error.error:#x}")
    where = place or f"at {error.pc:#x}"
    return DeviceFault(f"{device.uri} stopped{f' in {kernel}' if kernel else ''} {where}: {name}",
                       address=error.address or None, access="execute" if error.error == 0x09 else "", kernel=kernel,
                       nearest=device.ledger.nearest(error.address) if error.address else "",
                       evidence=f"SM {error.sm}, warp error {error.error:#x}; {doing}",
                       remedy="the kernel is at fault; close and open the device")


def mmu_faults(device: NvidiaDevice, channel: Channel) -> list[MmuFault]:
    """What the MMU refused, as far as the driver remembers."""
    rm = device.driver.rm
    found = []
    if device.debugger and channel.object == device.compute_object:
        try:
            made = rm.control("can't read MMU faults", device.debugger, "NV83DE_CTRL_CMD_DEBUG_READ_MMU_FAULT_INFO")
            found = [MmuFault(e.faultAddress, e.faultType, e.accessType)
                     for e in (made.mmuFaultInfoList[n] for n in range(min(made.count, 4)))]
        except DevrtError:
            found = []
    if not found:
        try:
            one = rm.control("can't read an MMU fault", channel.handle, "NV906F_CTRL_CMD_GET_MMU_FAULT_INFO")
        except DevrtError:
            return []
        text = bytes(device.driver.tables.nvrm.ffi.buffer(one.faultString)).partition(b"\0")[0]
        if text or one.addrLo or one.addrHi:
            access = AccessType.VIRT_WRITE if b"WRITE" in text.upper() else AccessType.VIRT_READ
            found = [MmuFault(one.addrHi << 32 | one.addrLo, one.faultType, access)]
    return found


def sm_errors(device: NvidiaDevice, channel: Channel) -> list[SmError]:
    """The SMs that hold an error, of a compute channel."""
    found: list[SmError] = []
    if not device.debugger or channel.object != device.compute_object:
        return found
    count = device.properties.compute_units
    for first in range(0, count, _MAX_SMS):
        try:
            made = device.driver.rm.control(
                "can't read the SMs' errors", device.debugger, "NV83DE_CTRL_CMD_DEBUG_READ_ALL_SM_ERROR_STATES",
                hTargetChannel=channel.handle, numSMsToRead=min(_MAX_SMS, count - first), startingSM=first)
        except DevrtError:
            return found
        for n in range(min(_MAX_SMS, count - first)):
            state = made.smErrorStateArray[n]
            error, trap = state.hwwWarpEsr & 0xFFFF, bool(state.hwwGlobalEsr & _BREAKPOINT)
            if error or trap:
                found.append(SmError(first + n, error, state.hwwWarpEsrPc64 or state.hwwWarpEsrPc, state.hwwEsrAddr, trap))
    return found
