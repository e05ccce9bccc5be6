"""Descriptors of the virtual NVIDIA driver: which calls which node takes, how it says no, what a close frees."""

from __future__ import annotations

import errno
import os
import struct
from typing import Any

import pytest

from devrt.device import DeviceNotFound, DriverMismatch, InvalidArgument, Unsupported, parse_uri
from devrt.ioctl.nv_classes import Class
from devrt.ioctl.nv_status import Status
from devrt.ioctl.nv_versions import BRANCHES
from devrt.ioctl.nvrm import card_info
from devrt.ioctl.system import MAP_SHARED, PROT_READ, PROT_WRITE
from devrt.virtual.system import make_system
from tests.virtual.nvidia.rm_client import Gpu, Refusal, RmClient, machine


def refused(number: int) -> Any:
    return pytest.raises(OSError, match=os.strerror(number))


def test_cards_are_told_to_the_control_node_only() -> None:
    with machine("2xsm_90") as system:
        client = RmClient(system)
        rows = card_info(system, client.control_fd)
        assert [(row["minor_number"], row["gpu_id"]) for row in rows] == [(0, 0x100), (1, 0x2100)]
        assert rows[0]["pci_info"] == {"domain": 0, "bus": 1, "slot": 0, "function": 0, "vendor_id": 0x10DE, "device_id": 0x2335}
        fd = client.open_gpu()
        with refused(errno.EINVAL):
            card_info(system, fd)
        table = client.tables.nvrm
        with refused(errno.EINVAL):  # room for one card of two
            system.ioctl(client.control_fd, table.request("NV_ESC_CARD_INFO"), bytearray(72))


def test_a_size_that_is_not_this_drivers_is_einval() -> None:
    with machine(query="driver=570.133.20") as system:
        client = RmClient(system)
        request = client.tables.nvrm.request("NV_ESC_RM_MAP_MEMORY_DMA")
        assert request >> 16 & 0x3FFF == 56
        with refused(errno.EINVAL):  # as a program made for 580 would call
            system.ioctl(client.control_fd, request & ~(0x3FFF << 16) | 64 << 16, bytearray(64))
        with refused(errno.EINVAL):
            system.ioctl(client.control_fd, 0xC0044699, bytearray(4))
        with refused(errno.EFAULT):
            system.ioctl(client.control_fd, client.tables.nvrm.request("NV_ESC_RM_FREE"), 8)


def test_rm_calls_belong_to_the_control_node_and_pinning_to_the_gpus() -> None:
    with machine() as system:
        client = RmClient(system)
        fd = client.open_gpu()
        for name in ("NV_ESC_RM_CONTROL", "NV_ESC_RM_FREE", "NV_ESC_RM_MAP_MEMORY"):
            with refused(errno.EINVAL):
                client.escape(fd, name)
        with refused(errno.EINVAL):
            client.escape(client.control_fd, "NV_ESC_RM_ALLOC_MEMORY")
        with refused(errno.EINVAL):
            client.escape(fd, "NV_ESC_RM_ALLOC", hClass=Class.NV01_DEVICE_0)


def test_a_descriptor_is_registered_once_with_a_control_descriptor() -> None:
    with machine() as system:
        client = RmClient(system)
        fd = client.open_gpu()
        with refused(errno.EINVAL):
            client.escape(fd, "NV_ESC_REGISTER_FD", ctl_fd=client.control_fd)
        other = system.open("/dev/nvidia0", os.O_RDWR)
        for bad in (fd, other, client.uvm_fd):
            with refused(errno.EINVAL):
                client.escape(other, "NV_ESC_REGISTER_FD", ctl_fd=bad)


def test_a_client_belongs_to_the_descriptor_it_was_made_on() -> None:
    with machine() as system:
        first, second = RmClient(system), RmClient(system)
        with pytest.raises(Refusal, match="INVALID_CLIENT"):
            second.alloc(first.root, Class.NV01_DEVICE_0, "NV0080_ALLOC_PARAMETERS", root=first.root)


def test_closing_the_control_descriptor_frees_its_clients() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        memory = gpu.vram(1 << 20)
        assert memory in client.driver.clients[client.root].objects and gpu.card.vram_used == 1 << 20
        system.close(client.control_fd)
        assert client.driver.clients  # the GPU's descriptor was registered with it and keeps it
        system.close(gpu.fd)
        assert not client.driver.clients and not gpu.card.vram_used and not gpu.card.opens


def test_shutting_down_leaves_no_descriptor_and_no_engine() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with machine("2xsm_86") as system:
        gpu = Gpu(RmClient(system)).register()
        gpu.channel(*gpu.group(), gpu.vram(1 << 20))
        engine = gpu.card.engine
    assert engine.closed  # type: ignore[attr-defined]
    assert set(os.listdir("/proc/self/fd")) == before


def test_nothing_can_be_mapped_that_rm_did_not_put_there() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        fd = client.open_gpu()
        with refused(errno.EINVAL):
            system.mmap(fd, 4096, PROT_READ, MAP_SHARED)
        memory = gpu.vram(1 << 16)
        client.map(gpu.device, memory, 1 << 16, fd)
        with refused(errno.ENXIO):
            system.mmap(fd, 4096, PROT_READ, MAP_SHARED)
        with refused(errno.EINVAL):
            system.mmap(fd, 1 << 16, PROT_READ, MAP_SHARED, 4096)
        client.free(memory)
        with refused(errno.EINVAL):
            system.mmap(fd, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED)


@pytest.mark.parametrize("branch", BRANCHES)
def test_every_branch_opens_a_gpu(branch: int) -> None:
    with machine(query=f"driver={branch}.42.1") as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        version = client.control(client.root, "NV0000_CTRL_CMD_SYSTEM_GET_BUILD_VERSION_V2").driverVersionBuffer
        assert client.tables.nvrm.ffi.string(version) == f"{branch}.42.1".encode()
        group, share = gpu.group()
        channel = gpu.channel(group, share, gpu.vram(1 << 20))
        client.uvm("UVM_REGISTER_CHANNEL", gpuUuid=gpu.uuid, hClient=client.root, hChannel=channel, base=1 << 32, length=1 << 26)
        client.control(group, "NVA06C_CTRL_CMD_GPFIFO_SCHEDULE", bEnable=1)


def test_the_version_is_checked_as_the_vendors_library_checks_it() -> None:
    with machine() as system:
        client = RmClient(system)
        answer = client.escape(client.control_fd, "NV_ESC_CHECK_VERSION_STR", versionString=b"580.105.08")
        assert answer.reply == 1
        with refused(errno.EINVAL):
            client.escape(client.control_fd, "NV_ESC_CHECK_VERSION_STR", versionString=b"555.1")
        assert any("API mismatch" in line.text for line in client.driver.kernel_log())


def test_large_arguments_go_through_the_transfer_call() -> None:
    with machine() as system:
        client = RmClient(system)
        table = client.tables.nvrm
        inner = table.new("NVOS00_PARAMETERS", hRoot=client.root, hObjectOld=0x77)
        outer = table.new("nv_ioctl_xfer_t", cmd=0x29, size=16, ptr=int(table.ffi.cast("uintptr_t", inner)))
        system.ioctl(client.control_fd, table.request("NV_ESC_IOCTL_XFER_CMD"), memoryview(table.ffi.buffer(outer)))
        assert inner.status == Status.NV_ERR_OBJECT_NOT_FOUND


# ---------------------------------------------------------------------------------------------------------------------
# Machines and faults


def test_machines_by_uri() -> None:
    system = make_system(parse_uri("virtual:nvidia/2xh100-pcie?driver=595.45.04&vram=64M"))
    assert system.read_text("/sys/module/nvidia/version") == "595.45.04\n"
    system.shut_down()
    with pytest.raises(DeviceNotFound, match="sm_70"):
        make_system(parse_uri("virtual:nvidia/sm_70"))
    with pytest.raises(DriverMismatch, match="known branches"):
        make_system(parse_uri("virtual:nvidia/sm_90?driver=535.1"))
    with pytest.raises(InvalidArgument):
        make_system(parse_uri("virtual:amd/gfx1100?driver=580.1"))
    with pytest.raises(InvalidArgument):
        make_system(parse_uri("virtual:nvidia/sm_90?gtt=1G"))
    with pytest.raises(Unsupported):
        make_system(parse_uri("virtual:qualcomm/a630"))


def test_injected_statuses_and_errnos() -> None:
    with machine(query="status=NO_MEMORY:RM_ALLOC@3&errno=EIO:RM_FREE&status=TIMEOUT:GPU_GET_GID_INFO@2") as system:
        client = RmClient(system)
        client.open_gpu()
        device = client.alloc(client.root, Class.NV01_DEVICE_0, "NV0080_ALLOC_PARAMETERS")
        with pytest.raises(Refusal, match="NO_MEMORY"):
            client.alloc(device, Class.NV20_SUBDEVICE_0)
        subdevice = client.alloc(device, Class.NV20_SUBDEVICE_0)
        client.control(subdevice, "NV2080_CTRL_CMD_GPU_GET_GID_INFO")
        with pytest.raises(Refusal, match="TIMEOUT"):
            client.control(subdevice, "NV2080_CTRL_CMD_GPU_GET_GID_INFO")
        with refused(errno.EIO):
            client.free(subdevice)
        client.free(subdevice)


def test_a_gpu_that_falls_off_the_bus_answers_nothing_any_more() -> None:
    with machine("2xsm_90") as system:
        client = RmClient(system)
        gpu, other = Gpu(client), Gpu(client, 1)
        system.faults.inject("lost")
        with pytest.raises(Refusal, match="GPU_IS_LOST"):
            client.control(gpu.subdevice, "NV2080_CTRL_CMD_GPU_GET_NAME_STRING")
        assert [line.text for line in client.driver.kernel_log()] == [
            "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."]
        with pytest.raises(Refusal, match="GPU_IS_LOST"):
            gpu.vram(4096)
        with refused(errno.EIO):
            client.open_gpu(0)
        with refused(errno.EINVAL):
            client.escape(gpu.fd, "NV_ESC_RM_ALLOC_MEMORY")
        other.vram(4096)
        assert struct.unpack("<H", system.read_bytes("/sys/bus/pci/devices/0000:21:00.0/config")[:2]) == (0x10DE,)
        client.free(gpu.device)


def test_exclusive_mode_refuses_compute_and_says_so() -> None:
    with machine(query="exclusive") as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        assert client.control(gpu.subdevice, "NV2080_CTRL_CMD_GPU_QUERY_COMPUTE_MODE_RULES").rules == 3
        channel = gpu.channel(*gpu.group(), gpu.vram(1 << 20))
        with pytest.raises(Refusal, match="STATE_IN_USE"):
            client.alloc(channel, Class.HOPPER_COMPUTE_A)
        client.alloc(channel, Class.HOPPER_DMA_COPY_A)


def test_a_gpu_that_an_engine_lost_starts_again_when_its_last_user_is_gone() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        gpu.channel(*gpu.group(), gpu.vram(1 << 20))
        engine: Any = gpu.card.engine
        engine.report(None, 48, "An uncorrectable double bit error (DBE) has been detected on the GPU")
        assert gpu.card.health.dram_uncorrected == 1 and gpu.card.health.remap_pending
        with refused(errno.EIO):
            client.open_gpu()
        system.close(gpu.fd)
        again = RmClient(system)
        Gpu(again).vram(4096)
        system.faults.inject("lost")
        with pytest.raises(Refusal, match="GPU_IS_LOST"):
            Gpu(again)
        assert gpu.card.gone
