"""What the driver reports when a GPU fails, as devrt's errors.

kfd_event_data of a MEMORY event holds kfd_hsa_memory_exception_data, that of a HW_EXCEPTION event kfd_hsa_hw_exception_data
(Linux include/uapi/linux/kfd_ioctl.h; filled by amdkfd/kfd_events.c).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from devrt.device import DeviceFault, DeviceHang, DeviceLost, DevrtError
from devrt.ioctl.kfd import EventType, MemoryError_, ResetCause, ResetType

if TYPE_CHECKING:
    from devrt.amd.device import AmdDevice

_MEMORY = struct.Struct("<IIIIQII")
_HARDWARE = struct.Struct("<IIII")


class MemoryException(NamedTuple):
    """`va` is the address of the page where `imprecise` or the GPU reports no more."""

    not_present: int
    read_only: int
    no_execute: int
    imprecise: int
    va: int
    gpu_id: int
    error_type: int


class HardwareException(NamedTuple):
    reset_type: int
    reset_cause: int
    memory_lost: int
    gpu_id: int


def memory_exception(data: bytes) -> MemoryException:
    return MemoryException(*_MEMORY.unpack_from(data))


def hardware_exception(data: bytes) -> HardwareException:
    return HardwareException(*_HARDWARE.unpack_from(data))


def gpu_of(kind: EventType, data: bytes) -> int:
    """The gpu_id an exception is about; 0 where the event was not set."""
    return memory_exception(data).gpu_id if kind is EventType.MEMORY else hardware_exception(data).gpu_id


def error_of(kind: EventType, data: bytes, device: AmdDevice) -> DevrtError:
    """The exception as an error, with what the device was doing."""
    if kind is EventType.MEMORY:
        return _of_memory(memory_exception(data), device)
    return _of_hardware(hardware_exception(data), device)


def _of_memory(e: MemoryException, device: AmdDevice) -> DevrtError:
    doing = device.describe_queues()
    if e.error_type == MemoryError_.GPU_HANG:
        return _hang(device, f"MEMORY event: GPU_HANG; {doing}")
    if e.error_type in (MemoryError_.SRAM_ECC, MemoryError_.POISON_CONSUMED):
        return DeviceFault(f"{device.uri} read memory that an uncorrectable error had spoilt", address=e.va or None,
                           access="read", nearest=device.ledger.nearest(e.va), kernel=device.running(),
                           evidence=f"MEMORY event: {MemoryError_(e.error_type).name}; {doing}",
                           remedy="close and open the device; `devrt doctor` reads the GPU's error counters")
    access = "execute" if e.no_execute else "write" if e.read_only else "read"
    why = "not mapped" if e.not_present else "may not be executed" if e.no_execute else "may only be read" \
        if e.read_only else "refused the access"
    kernel, nearest = device.running(), device.ledger.nearest(e.va)
    place = f"the page of {e.va:#x}" if e.imprecise or e.va % 4096 == 0 else f"{e.va:#x}"
    return DeviceFault(f"{device.uri} touched what it may not: {place} {'is ' if e.not_present else ''}{why}"
                       f"{f', while it ran {kernel}' if kernel else ''}", address=e.va, access=access, nearest=nearest,
                       kernel=kernel, evidence=f"{nearest}; {doing}")


def _of_hardware(e: HardwareException, device: AmdDevice) -> DevrtError:
    scope = "the whole GPU" if e.reset_type == ResetType.WHOLE_GPU_RESET else "an engine of the GPU"
    lost = ", its memory is lost" if e.memory_lost else ""
    evidence = f"HW_EXCEPTION event: {scope} was reset{lost}; {device.describe_queues()}"
    if e.reset_cause == ResetCause.GPU_HANG:
        return _hang(device, evidence)
    return DeviceLost(f"{device.uri} was reset after an uncorrectable memory error", evidence=evidence)


def _hang(device: AmdDevice, evidence: str) -> DeviceHang:
    kernel = device.running()
    return DeviceHang(f"{device.uri} stopped making progress{f' while it ran {kernel}' if kernel else ''}",
                      completed=device.compute.completed, expected=device.compute.submitted, evidence=evidence)
