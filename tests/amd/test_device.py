"""AMD devices: what they are, faults and how to go on after them. Arrays and processes: tests/gpu/test_gpu_device.py."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest
from amd_machines import TARGETS

from devrt.amd.device import AmdDevice
from devrt.device import (
    DeviceFault,
    DeviceHang,
    DeviceLost,
    DevrtError,
    Placement,
)
from devrt.ioctl.system import MAP_NORESERVE, MAP_PRIVATE
from devrt.virtual.system import VirtualSystem

Opened = Callable[..., AmdDevice]
Machine = Callable[[str], VirtualSystem]
URI = "virtual:amd/gfx1100"
PAIR = "virtual:amd/2xgfx942"


def copy(device: AmdDevice, nbytes: int = 4096) -> tuple[bytes, bytes]:
    """Random bytes to the device and back: (sent, received)."""
    source, far, back = (device.alloc(nbytes, p) for p in (Placement.HOST, Placement.DEVICE, Placement.HOST))
    data = os.urandom(nbytes)
    source.host()[:] = data
    commands = device.command_list()
    commands.copy(far, source, nbytes)
    commands.copy(back, far, nbytes)
    device.transfer.wait(device.transfer.submit(commands), 10)
    return data, bytes(back.host())


@pytest.mark.parametrize("gfx", TARGETS)
def test_every_generation_opens_and_copies(opened: Opened, gfx: str) -> None:
    device = opened(gfx)
    p = device.properties
    assert (p.vendor, p.isa, p.scratch_bytes) == ("amd", gfx, 64 << 10)
    assert p.lanes == (64 if gfx.startswith("gfx9") else 32) and p.compute_units > 30 and p.memory_bytes > 8 << 30
    sent, received = copy(device, 100_001)
    assert sent == received
    assert gfx in repr(device)


# ---------------------------------------------------------------------------------------------------------------------
# Faults


def failing(device: AmdDevice) -> DevrtError:
    """The error that work on a device ends in."""
    with pytest.raises(DevrtError) as caught:
        for _ in range(3):
            copy(device)
    return caught.value


@pytest.mark.parametrize(("fault", "kind"), [("page-fault", DeviceFault), ("ecc", DevrtError), ("reset", DevrtError)])
def test_faults_end_in_their_error_and_the_device_works_when_reopened(machine: Machine, fault: str,
                                                                      kind: type[DevrtError]) -> None:
    system = machine("gfx1100")
    device = AmdDevice("test:0", system)
    copy(device)
    system.faults.inject(fault)
    error = failing(device)
    assert isinstance(error, kind) and error.remedy and "transfer queue" in error.evidence
    for call in (device.signal, lambda: device.alloc(1), lambda: device.compute.submit(device.command_list()),
                 lambda: device.compute.wait(0), device.check):
        with pytest.raises(type(error)) as again:
            call()
        assert again.value is not error and str(again.value) == str(error)
    assert not device.closed
    device.close()
    if fault == "page-fault":
        device = AmdDevice("test:0", system)
        sent, received = copy(device)
        assert sent == received
        device.close()


def test_a_page_fault_names_its_place(opened: Opened) -> None:
    device = opened("gfx1100")
    near = device.alloc(4 << 20)
    address = device.system.mmap(-1, 4096, 0, MAP_PRIVATE | MAP_NORESERVE)  # addresses that no buffer gets
    commands, target = device.command_list(), device.alloc(4096, Placement.HOST)
    commands.copy(target, near, 4096)
    # A copy from where nothing is mapped, as a wrong address would make it.
    from devrt.gpu.commands import Copy
    commands.commands[0] = Copy(target.address, address, 4096)
    value = device.transfer.submit(commands)
    with pytest.raises(DeviceFault) as caught:
        device.transfer.wait(value, 10)
    fault = caught.value
    assert fault.address == address and fault.access == "read" and "bytes" in fault.nearest
    assert f"{address:#x}" in fault.what and fault.nearest in fault.evidence
    device.system.munmap(address, 4096)


def test_a_fault_wakes_whoever_waits_at_once(opened: Opened) -> None:
    device = opened("gfx1100")
    device.system.faults.inject("page-fault")  # type: ignore[attr-defined]
    never, started = device.signal(), time.monotonic()
    waiting = device.compute.submit(device.command_list(), wait=[(never, 1)])
    threading.Timer(0.1, lambda: failing(device)).start()
    with pytest.raises(DeviceFault):
        device.compute.wait(waiting)
    assert time.monotonic() - started < 2


def test_a_hang_is_noticed_by_the_waits_timeout(opened: Opened) -> None:
    device = opened("gfx1100?hang@1")
    value = device.compute.submit(device.command_list())
    with pytest.raises(DeviceHang) as caught:
        device.compute.wait(value, 0.3)
    assert caught.value.completed == 0 and caught.value.expected == 1 and "ring read" in caught.value.evidence


def test_a_fault_is_its_own_devices_only(opened: Opened, machine: Machine) -> None:
    system = machine("2xgfx942")
    first, second = opened(system, 0), opened(system, 1)
    copy(first)
    copy(second)
    system.faults.inject("page-fault")
    failing(first)
    sent, received = copy(second)
    assert sent == received


def test_reopening_beside_others_and_where_the_driver_runs_nothing(opened: Opened, machine: Machine,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    system = machine("2xgfx942")
    first, second = AmdDevice("test:0", system, 0), AmdDevice("test:1", system, 1)
    system.faults.inject("page-fault")
    failing(first)
    first.close()
    with pytest.raises(DeviceLost, match="beside others") as caught:
        AmdDevice("test:0", system, 0)
    assert "close the other" in caught.value.remedy
    second.close()
    monkeypatch.setattr("devrt.amd.device.TRIAL_TIMEOUT_S", 0.2)
    system.faults.inject("hang")
    with pytest.raises(DeviceLost, match="runs nothing"):
        AmdDevice("test:0", system, 0)
    sent, received = copy(opened(system, 1))
    assert sent == received


def test_a_corrupted_copy_is_the_copys_alone(opened: Opened) -> None:
    device = opened("gfx1100?corrupt-copy@2&seed=3")
    sent, received = copy(device)
    different = [a ^ b for a, b in zip(sent, received, strict=True) if a != b]
    assert len(different) == 1 and different[0].bit_count() == 1
    sent, received = copy(device)
    assert sent == received
