"""Which GPUs are in the machine, and does the right kernel driver have them?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from devrt.doctor.findings import ERROR, NOTE, OK, WARNING, Finding, Reader, last_part
from devrt.doctor.hardware import GPU_CLASSES, MODELS, OTHER_VENDORS, VENDORS
from devrt.ioctl.nv_versions import BRANCHES

PCI = "/sys/bus/pci/devices"
KGSL = "/sys/class/kgsl"


@dataclass(frozen=True)
class Gpu:
    """One PCI function that is a GPU. `driver` is the bound kernel driver, "" for none."""

    address: str
    vendor: int
    device: int
    kind: str
    driver: str

    @property
    def path(self) -> str:
        return f"{PCI}/{self.address}"

    @property
    def name(self) -> str:
        vendor = VENDORS[self.vendor].name if self.vendor in VENDORS else OTHER_VENDORS.get(self.vendor, "unknown vendor")
        model = MODELS.get((self.vendor, self.device))
        return f"{vendor} {model.name}" if model else f"{vendor} {self.kind} {self.vendor:04x}:{self.device:04x}"

    @property
    def driven(self) -> bool:
        """The driver that devrt talks to has this GPU."""
        return self.vendor in VENDORS and self.driver == VENDORS[self.vendor].driver

    def __str__(self) -> str:
        return f"{self.name} at {self.address}"


def find(reader: Reader) -> list[Gpu]:
    """Every GPU on PCI, in address order; functions whose ids can't be read are left out."""
    found = []
    for address in reader.names(PCI):
        numbers = [_hex(reader.text(f"{PCI}/{address}/{name}")) for name in ("class", "vendor", "device")]
        class_, vendor, device = numbers
        if class_ is None or vendor is None or device is None or class_ >> 8 not in GPU_CLASSES:
            continue
        driver = last_part(reader.link(f"{PCI}/{address}/driver"))
        found.append(Gpu(address, vendor, device, GPU_CLASSES[class_ >> 8], driver))
    return found


def check(reader: Reader, gpus: list[Gpu]) -> Iterator[Finding]:
    """One finding a GPU, and one for each driver that is loaded."""
    adrenos = [name for name in reader.names(KGSL) if name.startswith("kgsl-")]
    for name in adrenos:
        model = reader.text(f"{KGSL}/{name}/gpu_model") or "Adreno"
        yield Finding("gpu", OK, f"Qualcomm {model}: driven by KGSL", f"{KGSL}/{name}")
    if PCI in reader.unreadable:
        yield Finding("gpu", WARNING, "whether this machine has a GPU is unknown", f"{PCI} could not be read",
                      "run `sudo devrt doctor`")
    elif not adrenos and not any(gpu.vendor in VENDORS for gpu in gpus):
        others = ", ".join(str(gpu) for gpu in gpus)
        yield Finding("gpu", NOTE, "this machine has no GPU that devrt drives; everything runs on the CPU",
                      others or f"no GPU under {PCI}")
    for gpu in gpus:
        if gpu.vendor in VENDORS:
            yield _binding(reader, gpu)
    if any(gpu.vendor == 0x10DE and gpu.driven for gpu in gpus):
        yield from _nvidia(reader)


def _binding(reader: Reader, gpu: Gpu) -> Finding:
    vendor = VENDORS[gpu.vendor]
    model = MODELS.get((gpu.vendor, gpu.device))
    ids = f"{gpu.vendor:04x}:{gpu.device:04x}{f', {model.isa}' if model else ''}"
    load = "sudo modprobe " + " && sudo modprobe ".join(vendor.modules)
    if gpu.driven:
        version = reader.text(f"/sys/module/{vendor.driver}/version")
        by = f"{vendor.driver} {version}" if version else f"the kernel's own {vendor.driver}"
        return Finding("gpu-driver", OK, f"{gpu}: driven by {by}", ids)
    if gpu.driver == "vfio-pci":
        return Finding("gpu-driver", WARNING, f"{gpu}: set aside for a virtual machine, so nothing here can use it",
                       f"{ids}, bound to vfio-pci", f"{load} && echo {vendor.driver} | sudo tee {gpu.path}/driver_override && "
                       f"echo {gpu.address} | sudo tee {gpu.path}/driver/unbind /sys/bus/pci/drivers_probe")
    if gpu.driver:
        return Finding("gpu-driver", ERROR, f"{gpu}: driven by {gpu.driver}, but devrt needs {vendor.driver}",
                       f"{ids}, bound to {gpu.driver}", f"install {vendor.package}, then blacklist {gpu.driver}: "
                       f"echo blacklist {gpu.driver} | sudo tee /etc/modprobe.d/devrt.conf, and reboot")
    if reader.exists(f"/sys/module/{vendor.driver}"):
        return Finding("gpu-driver", ERROR, f"{gpu}: {vendor.driver} is loaded but did not take this GPU",
                       f"{ids}, no driver bound", f"read why: sudo dmesg | grep -iE '{vendor.driver}|{gpu.address}'")
    release = reader.system.host().release
    modules = reader.text(f"/lib/modules/{release}/modules.dep", 8 << 20)
    if modules is not None and f"/{vendor.driver}.ko" not in modules:
        return Finding("gpu-driver", ERROR, f"{gpu}: no driver, and {vendor.driver} is not installed",
                       f"{ids}, not in /lib/modules/{release}/modules.dep",
                       f"install {vendor.package} for {release}, then {load}")
    held = _held_back(reader, vendor.driver)
    if held:
        remedy = f"{load}; so that it also loads at boot, {held.undo}" if held.only_at_boot else f"{held.undo}, then {load}"
        return Finding("gpu-driver", ERROR, f"{gpu}: no driver, because {vendor.driver} is kept from loading",
                       f"{ids}, {held.where}", remedy)
    return Finding("gpu-driver", ERROR, f"{gpu}: no driver, because {vendor.driver} is not loaded",
                   f"{ids}, no /sys/module/{vendor.driver}", load)


@dataclass(frozen=True)
class _Hold:
    """What keeps a module from loading. `only_at_boot`: modprobe still loads it when asked by name."""

    where: str
    undo: str
    only_at_boot: bool


def _held_back(reader: Reader, driver: str) -> _Hold | None:
    """By the kernel's command line, or by modprobe's configuration (kernel-command-line(7), modprobe.d(5))."""
    for word in (reader.text("/proc/cmdline") or "").split():
        name, _, value = word.partition("=")
        listed = name in ("modprobe.blacklist", "module_blacklist") and driver in value.split(",")
        if listed or driver == "amdgpu" and word in ("nomodeset", "amdgpu.modeset=0"):
            return _Hold(f"kernel command line: {word}", f"take {word} out of /etc/default/grub, sudo update-grub, reboot",
                         name == "modprobe.blacklist")
    for folder in ("/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"):
        for name in reader.names(folder):
            for line in (reader.text(f"{folder}/{name}") or "").splitlines() if name.endswith(".conf") else ():
                match = re.fullmatch(rf"\s*(?:(blacklist)\s+{driver}|install\s+{driver}\s+/(?:usr/)?bin/(?:false|true))\s*", line)
                if match:
                    where = f"{folder}/{name}"
                    return _Hold(f"{where}: {line.strip()}", f"take that line out of {where}", bool(match[1]))
    return None


def _nvidia(reader: Reader) -> Iterator[Finding]:
    """The version of NVIDIA's driver, whose structs change between branches, and its memory module."""
    if not reader.exists("/sys/module/nvidia_uvm"):
        yield Finding("nvidia-uvm", ERROR, "NVIDIA's memory driver nvidia-uvm is not loaded",
                      "no /sys/module/nvidia_uvm", "sudo modprobe nvidia-uvm")
    version = reader.text("/sys/module/nvidia/version")
    banner = (reader.text("/proc/driver/nvidia/version") or "").partition("\n")[0]
    match = re.match(r"(\d+)\.", version or "")
    if not match:
        yield Finding("nvidia-version", WARNING, "the version of NVIDIA's driver is unknown, so its structs are a guess",
                      f"/sys/module/nvidia/version: {version!r}", "install NVIDIA's open kernel modules from a release")
        return
    known = ", ".join(map(str, BRANCHES))
    if int(match[1]) not in BRANCHES:
        yield Finding("nvidia-version", WARNING, f"NVIDIA's driver {version} is of a branch devrt has no tables for",
                      banner or f"/sys/module/nvidia/version: {version}", f"install a driver of one of the branches {known}")
    elif banner and "Open Kernel Module" not in banner:
        yield Finding("nvidia-version", NOTE, f"NVIDIA's driver {version} is the proprietary flavour; devrt's tables "
                      "are made from the open one", banner, "prefer NVIDIA's open kernel modules of the same version")
    else:
        yield Finding("nvidia-version", OK, f"NVIDIA's driver {version} is of a branch devrt knows", banner)


def _hex(text: str | None) -> int | None:
    try:
        return int(text or "", 16)
    except ValueError:
        return None
