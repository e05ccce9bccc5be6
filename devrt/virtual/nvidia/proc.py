"""The files of a virtual NVIDIA machine: what the driver says of itself in /proc, its nodes, the PCI bus, its modules.

Formats: kernel-open/nvidia/nv-procfs.c and nv.c (/proc/driver/nvidia), Linux pci-sysfs.c (bus).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Protocol

from devrt.ioctl.nv_modes import NODES, capability_number, compute_instance_file, gpu_instance_file, node_of
from devrt.ioctl.system import System
from devrt.virtual.nvidia.machine import MOST_GPUS, GpuNode, Machine
from devrt.virtual.tree import Tree

NVIDIA_MAJOR, CONTROL_MINOR = 195, 255  # Linux Documentation/admin-guide/devices.txt
UVM_MAJOR, CAPABILITY_MAJOR = 511, 510  # given out when the modules load
_NVIDIA = 0x10DE
_MODULES = ("nvidia", "nvidia_uvm")
_GTS = {3: "8.0", 4: "16.0", 5: "32.0"}

# What a virtual machine answers for; below these the host is not asked.
OWNED = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", NODES,
         *(f"/dev/nvidia{index}" for index in range(MOST_GPUS)), "/sys/bus/pci", "/sys/devices/pci0000:00",
         *(f"/sys/module/{name}" for name in _MODULES))

_PARAMS = """ResmanDebugLevel: 4294967295
RmLogonRC: 1
ModifyDeviceFiles: 1
DeviceFileUID: 0
DeviceFileGID: 0
DeviceFileMode: 438
InitializeSystemMemoryAllocations: 1
UsePageAttributeTable: 4294967295
EnableMSI: 1
EnablePCIeGen3: 0
MemoryPoolSize: 0
KMallocHeapMaxSize: 0
VMallocHeapMaxSize: 0
IgnoreMMIOCheck: 0
EnableStreamMemOPs: 0
EnableUserNUMAManagement: 1
NvLinkDisable: 0
RmProfilingAdminOnly: 1
PreserveVideoMemoryAllocations: 0
EnableS0ixPowerManagement: 0
DynamicPowerManagement: 3
RegisterPCIDriver: 1
EnablePCIERelaxedOrderingMode: 0
EnableResizableBar: 0
EnableGpuFirmware: 18
EnableGpuFirmwareLogs: 2
OpenRmEnableUnsupportedGpus: 1
RegistryDwords: ""
RegistryDwordsPerDevice: ""
RmMsg: ""
GpuBlacklist: ""
TemporaryFilePath: ""
ExcludedGpus: ""
"""


class Live(Protocol):
    """What changes while the machine runs, by GPU."""

    def lost(self, index: int) -> bool: ...
    def link_errors(self, index: int) -> int: ...


def build(machine: Machine, host: System, live: Live) -> Tree:
    """Every file of the machine."""
    tree = Tree()
    version = machine.driver
    tree.files |= {
        "/proc/driver/nvidia/version":
            f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (virtual@devrt)\n"
            "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
        "/proc/driver/nvidia/params": _PARAMS,
        "/proc/driver/nvidia/registry": 'Binary: ""\n',
        "/proc/devices": lambda: _devices(host),
    }
    for name in _MODULES:
        tree.files |= {f"/sys/module/{name}/version": f"{version}\n", f"/sys/module/{name}/initstate": "live\n",
                       f"/sys/module/{name}/refcnt": "0\n", f"/sys/module/{name}/srcversion": "0123456789ABCDEF0123456\n"}
        tree.empty.add(f"/sys/module/{name}/holders")
    tree.files["/sys/module/nvidia_uvm/parameters/uvm_disable_hmm"] = "N\n"
    tree.nodes["/dev/nvidiactl"] = NVIDIA_MAJOR, CONTROL_MINOR
    tree.nodes["/dev/nvidia-uvm"] = UVM_MAJOR, 0
    tree.nodes["/dev/nvidia-uvm-tools"] = UVM_MAJOR, 1
    for gpu in machine.gpus:
        tree.nodes[f"/dev/nvidia{gpu.index}"] = NVIDIA_MAJOR, gpu.index
        _gpu(tree, gpu, version)
        _instances(tree, gpu)
        _pci(tree, gpu, live)
    tree.index()
    return tree


def _devices(host: System) -> str:
    """/proc/devices of the host with the driver's lines in it."""
    try:
        text = host.read_text("/proc/devices")
    except OSError:
        text = "Character devices:\n  1 mem\n\nBlock devices:\n"
    rows = [row for row in text.splitlines() if "nvidia" not in row]
    end = rows.index("") if "" in rows else len(rows)
    return "\n".join([*rows[:end], f"{NVIDIA_MAJOR} nvidia", f"{NVIDIA_MAJOR} nvidiactl", f"{CAPABILITY_MAJOR} nvidia-caps",
                      f"{UVM_MAJOR} nvidia-uvm", *rows[end:]]) + "\n"


def _gpu(tree: Tree, gpu: GpuNode, version: str) -> None:
    base = f"/proc/driver/nvidia/gpus/{gpu.pci}"
    rows = {
        "Model": gpu.model.name, "IRQ": str(100 + gpu.index), "GPU UUID": gpu.uuid_text, "Video BIOS": "96.00.89.00.01",
        "Bus Type": "PCIe", "DMA Size": "52 bits" if gpu.model.sm >= 90 else "47 bits",
        "DMA Mask": "0xfffffffffffff" if gpu.model.sm >= 90 else "0x7fffffffffff", "Bus Location": gpu.pci,
        "Device Minor": str(gpu.index), "GPU Firmware": version, "GPU Excluded": "No"}
    tree.files |= {
        f"{base}/information": _table(rows),
        f"{base}/power": "Runtime D3 status:          Disabled by default\nVideo Memory:               Active\n",
        f"{base}/registry": 'Binary: ""\n',
    }


def _instances(tree: Tree, gpu: GpuNode) -> None:
    """The capabilities of a GPU's instances (nv-caps.c, nv_cap_procfs_read): a file that names the node, and the node."""
    tree.empty.add(f"/proc/driver/nvidia/capabilities/gpu{gpu.index}/mig")
    for one in gpu.instances or ():
        found = {gpu_instance_file(gpu.index, one.number): capability_number(gpu.index, one.number)}
        for compute in one.computes:
            found[compute_instance_file(gpu.index, one.number, compute.number)] = capability_number(
                gpu.index, one.number, compute.number)
        for path, number in found.items():
            tree.files[path] = f"DeviceFileMinor: {number}\nDeviceFileMode: 292\nDeviceFileModify: 1\n"
            tree.nodes[node_of(number)] = CAPABILITY_MAJOR, number


def _table(rows: dict[str, str]) -> str:
    return "".join(f"{name + ':':<16} {value}\n" for name, value in rows.items())


def _pci(tree: Tree, gpu: GpuNode, live: Live) -> None:
    model = gpu.model
    port = f"/sys/devices/pci0000:00/0000:00:{gpu.index + 1:02x}.1"
    base = f"{port}/{gpu.pci}"
    speed = f"{_GTS[model.pcie_generation]} GT/s PCIe\n"
    link = {"current_link_speed": speed, "max_link_speed": speed, "current_link_width": "16\n", "max_link_width": "16\n"}
    kind = "030000" if model.display else "030200"
    bars = ((gpu.registers, 16 << 20, 0x40200), (gpu.aperture, gpu.bar1_bytes, 0x14220C), (0, 0, 0),
            (gpu.aperture + gpu.bar1_bytes, 32 << 20, 0x14220C))
    resource = "".join(f"{start:#018x} {start + size - 1 if size else 0:#018x} {flags:#018x}\n" for start, size, flags in bars)

    def config() -> bytes:
        return b"\xff" * 64 if live.lost(gpu.index) else _NVIDIA.to_bytes(2, "little") + model.device_id.to_bytes(
            2, "little") + bytes(60)

    def counters(kind: str, total: str) -> Callable[[], str]:
        def text() -> str:
            count = live.link_errors(gpu.index) if kind == "correctable" else 0
            first = "RxErr" if kind == "correctable" else "Undefined"
            return f"{first} {count}\nDLP 0\nTLP 0\nTOTAL_ERR_{total} {count}\n"
        return text

    files: dict[str, str | bytes | Callable[[], str | bytes]] = {
        "class": f"0x{kind}\n", "vendor": f"{_NVIDIA:#06x}\n", "device": f"{model.device_id:#06x}\n", "revision": "0xa1\n",
        "subsystem_vendor": f"{_NVIDIA:#06x}\n", "subsystem_device": "0x16c1\n", "enable": "1\n", "numa_node": "0\n",
        "local_cpulist": "0\n", "irq": f"{100 + gpu.index}\n", "resource": resource, "power_state": "D0\n",
        "uevent": f"DRIVER=nvidia\nPCI_CLASS={kind.lstrip('0')}\nPCI_ID=10DE:{model.device_id:04X}\n"
                  f"PCI_SUBSYS_ID=10DE:16C1\nPCI_SLOT_NAME={gpu.pci}\n",
        "config": config, **link,
        "aer_dev_correctable": counters("correctable", "COR"), "aer_dev_nonfatal": counters("nonfatal", "NONFATAL"),
        "aer_dev_fatal": counters("fatal", "FATAL"),
    }
    tree.files |= {f"{base}/{name}": content for name, content in files.items()}
    tree.files |= {f"{port}/{name}": content for name, content in
                   {"class": "0x060400\n", "vendor": "0x8086\n", "device": "0x352a\n", **link}.items()}
    up = "../../.."
    tree.links |= {
        f"{base}/driver": f"{up}/../bus/pci/drivers/nvidia", f"{base}/subsystem": f"{up}/../bus/pci",
        f"{port}/subsystem": f"{up}/bus/pci",
        f"/sys/bus/pci/devices/{posixpath.basename(port)}": f"{up}{port.removeprefix('/sys')}",
        f"/sys/bus/pci/devices/{gpu.pci}": f"{up}{base.removeprefix('/sys')}",
        f"/sys/bus/pci/drivers/nvidia/{gpu.pci}": f"{up}/..{base.removeprefix('/sys')}",
        "/sys/bus/pci/drivers/nvidia/module": f"{up}/../module/nvidia",
    }
