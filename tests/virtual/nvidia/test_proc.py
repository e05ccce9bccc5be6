"""The files of a virtual NVIDIA machine, as readers of the real ones find them."""

from __future__ import annotations

import os
import re

import pytest

from devrt.ioctl.nv_versions import running_version
from tests.virtual.nvidia.rm_client import RmClient, machine


def test_the_driver_names_its_version() -> None:
    with machine(query="driver=595.45.04") as system:
        text = system.read_text("/proc/driver/nvidia/version")
        assert running_version(text) == "595.45.04" and "Open Kernel Module" in text
        assert system.read_text("/sys/module/nvidia_uvm/version") == "595.45.04\n"
        assert "EnableGpuFirmware: 18" in system.read_text("/proc/driver/nvidia/params")


def test_nodes_have_the_numbers_that_the_kernel_gave_the_drivers() -> None:
    with machine("2xsm_86") as system:
        majors = dict(reversed(row.split()) for row in system.read_text("/proc/devices").splitlines() if "nvidia" in row)
        for path, name, minor in (("/dev/nvidiactl", "nvidiactl", 255), ("/dev/nvidia1", "nvidia", 1),
                                  ("/dev/nvidia-uvm", "nvidia-uvm", 0), ("/dev/nvidia-uvm-tools", "nvidia-uvm", 1)):
            assert system.stat(path).rdev == (int(majors[name]), minor) and system.access(path, os.R_OK | os.W_OK)
        assert not system.stat("/dev/nvidia2").exists and "nvidia0" in system.list_dir("/dev")
        with pytest.raises(FileNotFoundError):
            system.open("/dev/nvidia2", os.O_RDWR)


def test_the_hosts_own_devices_are_still_listed() -> None:
    with machine() as system:
        assert "mem" in system.read_text("/proc/devices") and "Block devices:" in system.read_text("/proc/devices")


def test_a_card_on_the_bus() -> None:
    with machine("2xh200") as system:
        assert [name for name in system.list_dir("/sys/bus/pci/devices") if not name.startswith("0000:00:")] == [
            "0000:01:00.0", "0000:21:00.0"]
        base = "/sys/bus/pci/devices/0000:21:00.0"
        read = {name: system.read_text(f"{base}/{name}").strip() for name in ("vendor", "device", "class", "current_link_speed",
                                                                            "current_link_width", "numa_node")}
        assert read == {"vendor": "0x10de", "device": "0x2335", "class": "0x030200", "current_link_speed": "32.0 GT/s PCIe",
                        "current_link_width": "16", "numa_node": "0"}
        assert system.readlink(f"{base}/driver").endswith("bus/pci/drivers/nvidia")
        assert system.read_bytes(f"{base}/config")[:4] == bytes.fromhex("de103523")
        start, end, _ = (int(word, 16) for word in system.read_text(f"{base}/resource").splitlines()[1].split())
        assert end - start + 1 == 256 << 30


def test_what_proc_says_of_a_card() -> None:
    with machine("rtx4090") as system:
        folder = "/proc/driver/nvidia/gpus"
        name, = system.list_dir(folder)
        rows = dict(re.split(r":\s+", row, maxsplit=1) for row in system.read_text(f"{folder}/{name}/information").splitlines())
        assert rows["Model"] == "NVIDIA GeForce RTX 4090" and rows["Device Minor"] == "0" and rows["Bus Location"] == name
        assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", rows["GPU UUID"])


def test_link_errors_are_counted_where_linux_counts_them() -> None:
    with machine() as system:
        client = RmClient(system)
        base = "/sys/bus/pci/devices/0000:01:00.0"
        assert "TOTAL_ERR_COR 0" in system.read_text(f"{base}/aer_dev_correctable")
        client.driver.cards[0].health.link_errors = 3
        assert "TOTAL_ERR_COR 3" in system.read_text(f"{base}/aer_dev_correctable")
        client.driver.cards[0].lost = True
        assert set(system.read_bytes(f"{base}/config")) == {0xFF}
