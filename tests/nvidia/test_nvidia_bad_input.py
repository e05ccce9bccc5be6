"""Drivers that are missing, unknown, closed to us or failing: what the user is told, and that nothing is left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from devrt import registry
from devrt.device import (
    DeviceHang,
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
from devrt.ioctl.nv_versions import VERSION_FILE
from devrt.ioctl.system import System
from devrt.nvidia import driver as drivers
from devrt.nvidia.device import NvidiaDevice
from devrt.nvidia.driver import Driver
from devrt.virtual.system import VirtualSystem
from tests.garbage import collect

Machine = Callable[[str], VirtualSystem]
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@U22-I3-AM14-09-3)\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Mar  4 00:00:00 UTC 2025\n"


def described(version: str = OPEN.format("580.105.08"), **nodes: Mapping[str, Any]) -> System:
    """A machine with the driver's version file and nodes; none of them answers an ioctl."""
    usual = {"nvidiactl": [195, 255], "nvidia-uvm": [510, 0]}
    return MachineSystem({"files": {VERSION_FILE: version}, "nodes": {
        f"/dev/{name}": {"mode": 0o666, "rdev": rdev, **nodes.get(name.replace("-", "_"), {})} for name, rdev in usual.items()}})


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    """Bytes of this process's addresses that a driver gave."""
    with open("/proc/self/maps") as file:
        ranges = [line.split()[0].split("-") for line in file if "memfd:" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)


def test_no_driver() -> None:
    with pytest.raises(DeviceNotFound, match="no NVIDIA kernel driver") as caught:
        Driver(MachineSystem({}))
    assert "modprobe" in caught.value.remedy and VERSION_FILE in caught.value.evidence
    assert NvidiaDevice.describe_all(MachineSystem({})) == []


@pytest.mark.parametrize("version", ["550.54.14", "999.10"])
def test_a_driver_of_an_unknown_branch(version: str) -> None:
    with pytest.raises(DriverMismatch) as caught:
        Driver(described(OPEN.format(version)))
    assert version in str(caught.value) and "580" in caught.value.evidence
    assert NvidiaDevice.describe_all(described(OPEN.format(version))) == []


def test_a_version_file_that_names_none() -> None:
    with pytest.raises(DriverMismatch, match="names no version"):
        Driver(described("NVRM version: unknown\n"))


@pytest.mark.parametrize("node", ["nvidiactl", "nvidia_uvm"])
@pytest.mark.parametrize(("opening", "error", "says"), [
    ("EACCES", PermissionDenied, "sudo chmod a+rw /dev/"), ("EPERM", PermissionDenied, "container"),
    ("ENXIO", DeviceNotFound, "modprobe"), ("EIO", DeviceNotFound, "RmInitAdapter"), ("EMFILE", OutOfMemory, "ulimit")])
def test_a_node_that_does_not_open(node: str, opening: str, error: type[DevrtError], says: str) -> None:
    with pytest.raises(error) as caught:
        Driver(described(**{node: {"open": opening}}))
    assert says in caught.value.remedy


def test_a_driver_without_a_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "card_info", lambda *arguments: [])
    with pytest.raises(DeviceNotFound, match="has no GPU") as caught:
        Driver(machine("sm_90"))
    assert "lspci" in caught.value.remedy and "open module" in caught.value.evidence


def test_both_flavours_of_the_module_are_driven(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    system = machine("sm_90")
    read = system.read_text
    for text, flavour in ((OPEN, "open"), (CLOSED, "closed")):
        version = drivers.version(system)
        monkeypatch.setattr(system, "read_text", lambda path, limit=1 << 20, text=text, version=version:
                            text.format(version) if path == VERSION_FILE else read(path, limit))
        device = NvidiaDevice("test:0", system)
        assert device.driver.flavour == flavour
        device.close()
        del device
        collect()


def test_a_sandbox_without_the_drivers_files(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    system = machine("sm_90?driver=590.44.01")
    read = system.read_text

    def shown(path: str, limit: int = 1 << 20) -> str:
        if path.startswith("/proc/driver/nvidia"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return read(path, limit)

    monkeypatch.setattr(system, "read_text", shown)
    assert drivers.version(system) == "590.44.01"
    assert [found.isa for found in NvidiaDevice.describe_all(system)] == ["sm_90"]
    device = NvidiaDevice("test:0", system)
    assert device.driver.flavour == "unknown"
    device.close()
    del device
    collect()


@pytest.mark.parametrize("driver", ["570.133.20", "580.105.08", "590.44.01", "595.45.04"])
def test_every_branch_opens(machine: Machine, driver: str) -> None:
    system = machine(f"sm_90?driver={driver}")
    assert drivers.version(system) == driver
    opens(system)


def test_a_number_that_is_no_gpu(machine: Machine) -> None:
    system = machine("sm_90")
    for index in (1, -1):
        with pytest.raises(DeviceNotFound, match=f"no NVIDIA GPU number {index}"):
            NvidiaDevice(f"test:{index}", system, index)
    assert id(system) not in drivers._drivers


def test_the_registry_says_what_there_is() -> None:
    for uri, error in (("virtual:nvidia/sm_20", DevrtError), ("virtual:nvidia/sm_90:7", DeviceNotFound)):
        with pytest.raises(error) as caught:
            registry.open(uri)
        assert caught.value.remedy


def test_a_gpu_opens_once(machine: Machine) -> None:
    system = machine("sm_90")
    device = NvidiaDevice("test:0", system)
    with pytest.raises(InvalidArgument, match="open already"):
        NvidiaDevice("test:0", system)
    device.close()


def test_describing_opens_nothing(machine: Machine) -> None:
    before = descriptors()
    found = NvidiaDevice.describe_all(machine("2xsm_86"))
    assert [p.isa for p in found] == ["sm_86"] * 2 and all("RTX 3090" in p.name and p.lanes == 32 for p in found)
    assert descriptors() <= before + 8  # those of the virtual machine itself


# Every call that opening makes, so that each fails once; most are made several times.
CALLS = [*(("NV_ESC_RM_ALLOC", at) for at in range(1, 19)), *(("NV_ESC_RM_MAP_MEMORY", at) for at in range(1, 6)),
         ("NV_ESC_RM_ALLOC_MEMORY", 1), *(("UVM_MAP_EXTERNAL_ALLOCATION", at) for at in range(1, 4)),
         *(("UVM_CREATE_EXTERNAL_RANGE", at) for at in range(1, 4)), *(("UVM_REGISTER_CHANNEL", at) for at in (1, 2)),
         *((name, 1) for name in ("UVM_INITIALIZE", "UVM_MM_INITIALIZE", "UVM_REGISTER_GPU", "UVM_REGISTER_GPU_VASPACE")),
         *((name, 1) for name in (
             "NV0000_CTRL_CMD_GPU_GET_ID_INFO_V2", "NV0080_CTRL_CMD_GPU_GET_CLASSLIST", "NV2080_CTRL_CMD_GPU_GET_GID_INFO",
             "NV2080_CTRL_CMD_GR_GET_INFO", "NV2080_CTRL_CMD_GR_GET_GPC_MASK", "NV2080_CTRL_CMD_GR_GET_TPC_MASK",
             "NV2080_CTRL_CMD_FB_GET_INFO_V2", "NV2080_CTRL_CMD_GPU_GET_ENGINES_V2", "NV2080_CTRL_CMD_CE_GET_CAPS_V2",
             "NV2080_CTRL_CMD_GPU_QUERY_COMPUTE_MODE_RULES", "NV2080_CTRL_CMD_GPU_GET_NAME_STRING",
             "NVC36F_CTRL_CMD_GPFIFO_GET_WORK_SUBMIT_TOKEN", "NVA06C_CTRL_CMD_GPFIFO_SCHEDULE", "NV2080_CTRL_CMD_PERF_BOOST",
             "NV2080_CTRL_CMD_GPU_GET_INFO_V2", "NV0080_CTRL_CMD_GPU_GET_VIRTUALIZATION_MODE",
             "NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_CAPABILITIES", "NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_GPUS_STATE"))]
KINDS = {"NV_ERR_NO_MEMORY": OutOfMemory, "NV_ERR_INSUFFICIENT_PERMISSIONS": PermissionDenied, "NV_ERR_GPU_IS_LOST": DeviceLost,
         "NV_ERR_TIMEOUT": DeviceHang, "NV_ERR_INVALID_PARAM_STRUCT": DriverMismatch, "NV_ERR_NOT_SUPPORTED": Unsupported,
         "NV_ERR_STATE_IN_USE": DevrtError}
# Opening goes on without these: boost, the watch over the process's memory, and the questions after the GPU's modes.
NOT_NEEDED = [("UVM_MM_INITIALIZE", 1), ("NV_ESC_RM_ALLOC", 4), *((name, 1) for name in (
    "NV2080_CTRL_CMD_PERF_BOOST", "NV2080_CTRL_CMD_GPU_GET_INFO_V2", "NV0080_CTRL_CMD_GPU_GET_VIRTUALIZATION_MODE",
    "NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_CAPABILITIES", "NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_GPUS_STATE"))]


def opens(system: VirtualSystem) -> None:
    device = NvidiaDevice("test:0", system)
    device.compute.wait(device.compute.submit(device.command_list()), 10)
    device.close()


@pytest.mark.parametrize(("call", "at"), CALLS)
def test_any_call_may_fail(machine: Machine, call: str, at: int) -> None:
    """Opening ends in one of devrt's errors and leaves nothing; then it works."""
    system = machine("sm_90")
    opens(system)
    collect()
    before = descriptors(), mappings()
    status, kind = list(KINDS.items())[(at + len(call)) % len(KINDS)]
    system.faults.inject(f"status={status}:{call}@{at}")
    try:
        opens(system)
    except DevrtError as error:
        assert isinstance(error, kind) and error.what and error.remedy and status in error.evidence
    else:
        assert (call, at) in NOT_NEEDED
    assert system.faults.taken
    opens(system)
    collect()
    assert (descriptors(), mappings()) == before
    assert id(system) not in drivers._drivers


@pytest.mark.parametrize("number", ["ENOMEM", "EINVAL", "EPERM", "EIO"])
@pytest.mark.parametrize("call", ["NV_ESC_CARD_INFO", "NV_ESC_REGISTER_FD", "NV_ESC_RM_CONTROL", "UVM_REGISTER_GPU"])
def test_any_call_may_fail_in_the_kernel(machine: Machine, call: str, number: str) -> None:
    system = machine("sm_90")
    system.faults.inject(f"errno={number}:{call}")
    kind = {"ENOMEM": OutOfMemory, "EINVAL": InvalidArgument, "EPERM": PermissionDenied, "EIO": DeviceLost}[number]
    with pytest.raises(kind) as caught:
        opens(system)
    assert number in caught.value.evidence and caught.value.remedy
    opens(system)


def test_another_process_has_the_gpu(machine: Machine) -> None:
    system = machine("sm_90?exclusive")
    with pytest.raises(DevrtError) as caught:
        opens(system)
    assert "another program" in caught.value.remedy, caught.value


def test_a_gpu_that_falls_off_the_bus(machine: Machine) -> None:
    system = machine("sm_90")
    device = NvidiaDevice("test:0", system)
    system.faults.inject("lost")
    with pytest.raises(DeviceLost):
        for _ in range(20):
            device.alloc(64 << 20)
    device.close()
