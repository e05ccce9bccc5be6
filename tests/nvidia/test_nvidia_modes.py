"""Split GPUs (MIG), confidential computing, vGPUs, and containers that have a part of the nodes: what opens, and what is said of
what does not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import numpy as np
import pytest
from nvidia_kernels import LANES, image

from devrt.device import DeviceNotFound, DevrtError, InvalidArgument, OutOfMemory, PermissionDenied, Placement, Unsupported
from devrt.ioctl.nv_modes import CAPABILITIES, capability_number, node_of
from devrt.ioctl.system import Argument
from devrt.nvidia import driver as drivers
from devrt.nvidia.device import NvidiaDevice
from devrt.virtual.nvidia.driver import NvidiaDriver
from devrt.virtual.system import VirtualSystem
from tests.garbage import collect

Machine = Callable[[str], VirtualSystem]
Opened = Callable[..., NvidiaDevice]
SPLIT = "h200?mig=3g.1c.2c,1g"  # GPU instance 1 with compute instances 0 and 1, GPU instance 7 with compute instance 0
SEVENTH = node_of(capability_number(0, 7)), node_of(capability_number(0, 7, 0))


def behind(system: VirtualSystem) -> NvidiaDriver:
    (driver,) = system.drivers
    assert isinstance(driver, NvidiaDriver)
    return driver


def without(system: VirtualSystem, *paths: str) -> None:
    """Take nodes, or folders of files, away."""
    tree = behind(system).tree
    for place in (tree.nodes, tree.files):
        for path in [one for one in place if one.startswith(paths)]:
            del place[path]  # type: ignore[attr-defined]
    tree.index()


def names(system: VirtualSystem) -> list[str]:
    return [properties.name for properties in NvidiaDevice.describe_all(system)]


def adds(device: NvidiaDevice) -> bool:
    """Whether a kernel adds and copies arrive."""
    x, y, z = (device.alloc(4 * LANES, Placement.HOST_VISIBLE) for _ in range(3))
    x.host()[:] = np.arange(LANES, dtype=np.float32).tobytes()
    y.host()[:] = np.full(LANES, 0.5, np.float32).tobytes()
    far, back = device.alloc(4 * LANES), device.alloc(4 * LANES, Placement.HOST)
    commands = device.command_list()
    commands.dispatch(device.load(image(device.sm), "add"), (x, y, z), 1)
    commands.copy(far, z, 4 * LANES)
    commands.copy(back, far, 4 * LANES)
    device.compute.wait(device.compute.submit(commands), 20)
    return bool((np.frombuffer(bytes(back.host()), np.float32) == np.arange(LANES) + 0.5).all())


def refused(system: VirtualSystem, kind: type[DevrtError], *words: str) -> DevrtError:
    with pytest.raises(kind) as caught:
        NvidiaDevice("test:0", system)
    assert all(word in str(caught.value) for word in words), caught.value
    return caught.value


# ---------------------------------------------------------------------------------------------------------------------
# MIG


def test_instances_are_devices(machine: Machine, opened: Opened) -> None:
    system = machine(SPLIT)
    assert names(system) == [f"NVIDIA H200 MIG gi {gpu} ci {compute}" for gpu, compute in ((1, 0), (1, 1), (7, 0))]
    half, eighth = opened(system, 1), opened(system, 2)
    assert half.properties.name == "NVIDIA H200 MIG 2c.3g.71gb gi 1 ci 1 (sm_90, 32 SMs)"
    assert eighth.properties.name == "NVIDIA H200 MIG 1g.18gb gi 7 ci 0 (sm_90, 16 SMs)"
    assert (half.properties.compute_units, eighth.properties.memory_bytes) == (32, 141 << 30 >> 3)
    assert (len(half.objects.copy_engines), len(eighth.objects.copy_engines)) == (3, 1)
    assert half.objects.uuid != eighth.objects.uuid
    assert adds(half) and adds(eighth)
    assert half.objects.out_of_reach(eighth.objects)  # copies between them pass through the host


def test_an_instance_is_the_size_of_its_memory(opened: Opened) -> None:
    device = opened("h200?mig=1g,1g&vram=512M")
    with pytest.raises(OutOfMemory):
        device.alloc(64 << 20)  # 64 MiB, of which rings and such have a part
    assert device.alloc(32 << 20).address


def test_one_compute_instance_of_a_gpu_instance_a_process(machine: Machine, opened: Opened) -> None:
    system = machine(SPLIT)
    first = opened(system, 0)
    with pytest.raises(InvalidArgument, match="another compute instance of GPU instance 1") as caught:
        NvidiaDevice("test:1", system, 1)
    assert "process" in caught.value.remedy
    first.close()
    assert adds(opened(system, 1))


def test_nothing_of_an_instance_is_left_open(machine: Machine) -> None:
    system = machine(SPLIT)
    left = []
    for _ in range(2):
        NvidiaDevice("test:2", system, 2).close()
        collect()
        left.append(len(os.listdir("/proc/self/fd")))
    assert left[0] == left[1] and not behind(system).clients and id(system) not in drivers._drivers


def test_a_gpu_that_nobody_has_split(machine: Machine) -> None:
    system = machine("h200?mig")
    assert names(system) == ["NVIDIA H200"]
    error = refused(system, DeviceNotFound, "has not been split", "GPU instances: none")
    assert "-cgi SIZE -C" in error.remedy and "-mig 0" in error.remedy


def test_a_gpu_instance_without_a_compute_instance(machine: Machine) -> None:
    system = machine("h200?mig=1g")
    without(system, f"{CAPABILITIES}/gpu0/mig/gi7/ci0")
    assert "-cci" in refused(system, DeviceNotFound, "no compute instance", "GPU instances: 7").remedy


def test_a_container_that_is_shown_no_instance(machine: Machine) -> None:
    system = machine("h200?mig=1g")
    without(system, CAPABILITIES)
    behind(system).tree.empty.clear()
    behind(system).tree.index()
    assert "NVIDIA_VISIBLE_DEVICES" in refused(system, DeviceNotFound, "shown none of them").remedy


@pytest.mark.parametrize("which", [0, 1])
def test_an_instance_whose_node_is_missing(machine: Machine, which: int) -> None:
    system = machine("h200?mig=1g")
    without(system, SEVENTH[which])
    assert names(system) == ["NVIDIA H200"]
    error = refused(system, DeviceNotFound, f"can't open {SEVENTH[which]}", "not there", "gi 7 ci 0")
    assert f"nvidia-modprobe -f {CAPABILITIES}/gpu0/mig/gi7/{'ci0/' if which else ''}access" in error.remedy


def test_an_instance_that_is_closed_to_this_process(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    system = machine("h200?mig=1g")
    access = system.access
    monkeypatch.setattr(system, "access", lambda path, mode: path not in SEVENTH and access(path, mode))
    assert f"chmod a+r {SEVENTH[0]}" in refused(system, PermissionDenied, "no permission").remedy


def test_a_node_that_does_not_open_though_its_mode_allows_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    system = machine("h200?mig=1g")
    plain = system.open

    def open_(path: str, flags: int) -> int:
        if path == SEVENTH[1]:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        return plain(path, flags)

    monkeypatch.setattr(system, "open", open_)
    refused(system, PermissionDenied, f"can't open {SEVENTH[1]}", "EPERM")


def test_a_container_with_one_of_the_instances(machine: Machine, opened: Opened) -> None:
    system = machine(SPLIT)
    for compute in (0, 1):
        without(system, node_of(capability_number(0, 1, compute)))
    assert names(system) == ["NVIDIA H200 MIG gi 7 ci 0"]
    assert opened(system).objects.part == "MIG 1g.18gb gi 7 ci 0"


@pytest.mark.parametrize(("status", "at", "kind", "words"), [
    ("INVALID_ARGUMENT", 5, DeviceNotFound, "not there any more"), ("NOT_SUPPORTED", 6, DeviceNotFound, "not there any more"),
    ("INSUFFICIENT_PERMISSIONS", 5, PermissionDenied, SEVENTH[0]), ("INSUFFICIENT_PERMISSIONS", 6, PermissionDenied, SEVENTH[1])])
def test_an_instance_that_the_driver_refuses(machine: Machine, status: str, at: int, kind: type[DevrtError], words: str) -> None:
    refused(machine(f"h200?mig=1g&status={status}:RM_ALLOC@{at}"), kind, words, status)


def test_instances_that_appear_when_the_driver_starts_the_gpu(machine: Machine, opened: Opened,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "here", lambda system, cards: cards)
    assert opened(machine(SPLIT)).objects.part == "MIG 1c.3g.71gb gi 1 ci 0"


@pytest.mark.parametrize("call", ["GPU_GET_PARTITIONS", "EXEC_PARTITIONS_GET"])
def test_an_instance_without_a_known_size_is_a_device_all_the_same(opened: Opened, call: str) -> None:
    device = opened(f"h200?mig=1g&status=NOT_SUPPORTED:{call}")
    assert device.properties.name == "NVIDIA H200 MIG gi 7 ci 0 (sm_90, 16 SMs)"


# ---------------------------------------------------------------------------------------------------------------------
# Confidential computing and virtual machines


@pytest.mark.parametrize(("state", "words", "remedy"), [
    ("cc", "is in confidential computing mode", "--gpu-bdf=0000:01:00.0 --set-cc-mode=off"),
    ("ppcie", "is in protected PCIe mode", "--set-ppcie-mode=off")])
def test_confidential_gpus_are_refused(machine: Machine, state: str, words: str, remedy: str) -> None:
    error = refused(machine(f"h200?{state}"), Unsupported, words, "wait to be attested")
    assert remedy in error.remedy


@pytest.mark.parametrize(("state", "words", "remedy"), [
    ("vgpu", "a vGPU, part of a GPU of the host", "licen"), ("vgpu-host", "lent out as vGPUs", "virtual machines")])
@pytest.mark.parametrize("call", ["UVM_REGISTER_GPU", "RM_ALLOC@10"])
def test_what_a_vgpu_may_lack_is_said(machine: Machine, state: str, words: str, remedy: str, call: str) -> None:
    error = refused(machine(f"h200?{state}&status=NOT_SUPPORTED:{call}"), Unsupported, words)
    assert remedy in error.remedy


def test_a_vgpu_that_computes_is_a_device(opened: Opened) -> None:
    assert adds(opened("h200?vgpu"))


QUESTIONS = ("GPU_GET_INFO_V2", "GPU_GET_VIRTUALIZATION_MODE", "CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_CAPABILITIES",
             "CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_GPUS_STATE")


def test_a_driver_that_answers_no_question_after_modes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a sandbox that passes none of them on: what it refuses, it refuses by errno."""
    system = machine("h200")
    table, plain = behind(system).tables, system.ioctl
    numbers = {row.number for name, row in table.controls.items() if name.endswith(QUESTIONS)}
    assert len(numbers) == len(QUESTIONS)
    asked = []

    def ioctl(fd: int, request: int, argument: Argument) -> int:
        data = bytes(argument) if not isinstance(argument, int) else b""
        if request == table.nvrm.request("NV_ESC_RM_CONTROL") and int.from_bytes(data[8:12], "little") in numbers:
            asked.append(data[8:12])
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return plain(fd, request, argument)

    monkeypatch.setattr(system, "ioctl", ioctl)
    device = NvidiaDevice("test:0", system)
    assert asked and adds(device)
    device.close()


# ---------------------------------------------------------------------------------------------------------------------
# Containers with some of the nodes


def test_a_container_has_the_gpus_whose_nodes_it_has(machine: Machine, opened: Opened) -> None:
    system = machine("2xh200")
    without(system, "/dev/nvidia0")
    assert names(system) == ["NVIDIA H200"]
    device = opened(system)
    assert device.objects.card.node == "/dev/nvidia1" and adds(device)
    with pytest.raises(DeviceNotFound, match="no NVIDIA GPU number 1"):
        NvidiaDevice("test:1", system, 1)


def test_a_container_without_the_nodes_of_any_gpu(machine: Machine) -> None:
    system = machine("2xh200")
    without(system, "/dev/nvidia0", "/dev/nvidia1")
    assert "nvidia-modprobe -c 0 " in refused(system, DeviceNotFound, "/dev/nvidia0 is not there").remedy


def test_a_container_without_unified_memory(machine: Machine) -> None:
    system = machine("h200")
    without(system, "/dev/nvidia-uvm")
    assert "nvidia-modprobe -u -c 0" in refused(system, DeviceNotFound, "/dev/nvidia-uvm is not there").remedy
