"""Drivers that are missing, old, closed to us or failing: what the user is told, and that nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from amd_machines import descriptors, mappings

from devrt import registry
from devrt.amd.device import AmdDevice
from devrt.amd.driver import Driver, connect
from devrt.device import (
    DeviceLost,
    DeviceNotFound,
    DevrtError,
    DriverMismatch,
    InvalidArgument,
    OutOfMemory,
    PermissionDenied,
    Unsupported,
)
from devrt.ioctl.machine import MachineSystem
from devrt.ioctl.system import System
from devrt.virtual.system import VirtualSystem
from tests.garbage import collect

Machine = Callable[[str], VirtualSystem]
TOPOLOGY = "/sys/class/kfd/kfd/topology"


def files_of(system: VirtualSystem, changed: Mapping[str, str | None] = {}) -> dict[str, str]:
    """The topology of a virtual machine as the files of a described one; None leaves a file out."""
    found: dict[str, str] = {}

    def walk(path: str) -> None:
        for name in system.list_dir(path):
            below = f"{path}/{name}"
            if system.stat(below).mode & 0o40000:
                walk(below)
            else:
                found[below] = system.read_text(below)
    walk(TOPOLOGY)
    for path, text in changed.items():
        found.pop(f"{TOPOLOGY}/{path}")
        if text is not None:
            found[f"{TOPOLOGY}/{path}"] = text
    return found


def described(system: VirtualSystem, version: tuple[int, int] = (1, 14), node: Mapping[str, Any] = {},
              changed: Mapping[str, str | None] = {}) -> System:
    """A machine whose driver says its version and nothing else."""
    return MachineSystem({
        "files": files_of(system, changed), "nodes": {"/dev/kfd": {"mode": 0o666, "rdev": [235, 0], **node}},
        "answers": {"/dev/kfd": {"AMDKFD_IOC_GET_VERSION": {"major_version": version[0], "minor_version": version[1]}}}})


@pytest.mark.parametrize("version", [(0, 9), (1, 0), (1, 10), (2, 0)])
def test_a_driver_of_another_interface(machine: Machine, version: tuple[int, int]) -> None:
    system = described(machine("gfx1100"), version)
    with pytest.raises(DriverMismatch) as caught:
        Driver(system)
    assert f"{version[0]}.{version[1]}" in caught.value.what and "1.11" in caught.value.what and caught.value.remedy


def test_no_driver() -> None:
    with pytest.raises(DeviceNotFound, match="no AMD compute driver") as caught:
        Driver(MachineSystem({}))
    assert "amdgpu" in caught.value.remedy
    assert AmdDevice.describe_all(MachineSystem({})) == []


@pytest.mark.parametrize(("opening", "error", "says"), [
    ("EACCES", PermissionDenied, "render"), ("EPERM", PermissionDenied, "container"), ("EAGAIN", DeviceLost, "again"),
    ("ENXIO", DeviceNotFound, "")])
def test_a_node_that_does_not_open(machine: Machine, opening: str, error: type[DevrtError], says: str) -> None:
    system = described(machine("gfx1100"), node={"open": opening})
    with pytest.raises(error) as caught:
        Driver(system)
    assert says in caught.value.remedy


def test_a_gpu_without_an_id(machine: Machine) -> None:
    system = described(machine("gfx1100"), changed={"nodes/1/gpu_id": "0"})
    with pytest.raises(DriverMismatch, match="without an id"):
        Driver(system)
    assert AmdDevice.describe_all(system) == []


def test_a_driver_without_topology(machine: Machine) -> None:
    with pytest.raises(DeviceNotFound):
        Driver(described(machine("gfx1100"), changed={"generation_id": None}))


def test_a_number_that_is_no_gpu(machine: Machine) -> None:
    system = machine("gfx1100")
    with pytest.raises(DeviceNotFound, match="no GPU 1"):
        AmdDevice("test:1", system, 1)
    with pytest.raises(DeviceNotFound):
        AmdDevice("test:-1", system, -1)


def test_the_registry_says_what_there_is() -> None:
    for uri, error in (("virtual:amd/gfx9999", DevrtError), ("virtual:amd/gfx1100:7", DeviceNotFound)):
        with pytest.raises(error) as caught:
            registry.open(uri)
        assert caught.value.remedy
    assert all(info.vendor in ("cpu", "amd") for info in registry.devices())


def test_a_gpu_opens_once(machine: Machine) -> None:
    system = machine("gfx1100")
    device = AmdDevice("test:0", system)
    with pytest.raises(InvalidArgument, match="open already"):
        AmdDevice("test:0", system)
    device.close()


CALLS = [("GET_VERSION", 1), ("GET_PROCESS_APERTURES_NEW", 1), ("ACQUIRE_VM", 1), ("RUNTIME_ENABLE", 1),
         *((name, at) for name in ("ALLOC_MEMORY_OF_GPU", "MAP_MEMORY_TO_GPU") for at in range(1, 9)),
         ("CREATE_EVENT", 1), ("CREATE_EVENT", 3), ("CREATE_EVENT", 4), ("CREATE_QUEUE", 1), ("CREATE_QUEUE", 2)]


@pytest.mark.parametrize(("call", "at"), CALLS)
@pytest.mark.parametrize("number", ["ENOMEM", "EINVAL", "EPERM", "EIO"])
def test_any_call_may_fail(machine: Machine, call: str, at: int, number: str) -> None:
    """Opening ends in one of devrt's errors and leaves nothing; then it works."""
    system = machine("gfx1100")
    collect()
    before = descriptors(), mappings()
    system.faults.inject(f"errno={number}:{call}@{at}")
    try:
        device = AmdDevice("test:0", system)
    except DevrtError as error:
        kind = {"ENOMEM": OutOfMemory, "EINVAL": InvalidArgument, "EPERM": PermissionDenied, "EIO": DeviceLost}[number]
        assert isinstance(error, kind) and error.what and error.remedy and number in error.evidence
    else:
        assert not any(call in taken for taken in system.faults.taken) or number == "ENOMEM"
        device.close()
    again = AmdDevice("test:0", system)
    again.compute.wait(again.compute.submit(again.command_list()), 10)
    again.close()
    del again
    collect()
    connect(system).close()
    assert (descriptors(), mappings()) == before


@pytest.mark.parametrize("error", ["EBUSY", "EEXIST"])
def test_another_runtime_of_the_process_started_first(machine: Machine, error: str) -> None:
    system = machine("gfx1100")
    system.faults.inject(f"errno={error}:RUNTIME_ENABLE")
    AmdDevice("test:0", system).close()


def test_another_runtime_has_the_address_space(machine: Machine) -> None:
    system = machine("gfx1100")
    system.faults.inject("errno=EBUSY:ACQUIRE_VM")
    with pytest.raises(DevrtError, match="address space") as caught:
        AmdDevice("test:0", system)
    assert "another runtime" in caught.value.remedy


def test_queues_run_out(machine: Machine) -> None:
    system = machine("gfx1100")
    system.faults.inject("errno=ENOSPC:CREATE_QUEUE")
    with pytest.raises(OutOfMemory, match="COMPUTE queue"):
        AmdDevice("test:0", system)


def test_no_large_bar(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from devrt.device import Placement
    device = AmdDevice("test:0", machine("gfx1100"))
    bank = dataclasses.replace(device.gpu.node.banks[0], heap_type=2)
    monkeypatch.setattr(device.gpu, "node", dataclasses.replace(device.gpu.node, banks=(bank,)))
    with pytest.raises(Unsupported, match="does not see") as caught:
        device.alloc(100, Placement.HOST_VISIBLE)
    assert "Resizable BAR" in caught.value.remedy
    device.close()
