"""The kernel log: lines that tell of GPU trouble, what they mean, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from devrt.doctor.amd_tables import fault_status
from devrt.doctor.findings import ERROR, NOTE, OK, WARNING, Finding, Reader, Severity
from devrt.ioctl.errors import errno_name
from devrt.ioctl.system import LogLine


class Pattern(NamedTuple):
    """A regular expression over one line. A group named `device` keeps devices apart; `xid` looks the meaning up."""

    name: str
    severity: Severity
    regex: str
    what: str
    remedy: str
    source: str


_RERUN = "find the kernel: run the program again under DEVRT_DEBUG=1"
_RESEAT = "reseat the card and its riser, check its power cables"
_COOL = "check cooling and power; if it comes back, the card is failing"
_PCI = r"(?P<device>[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])"

PATTERNS = tuple(Pattern(*row) for row in (
    ("nvidia-xid", ERROR, r"NVRM: Xid \(PCI:(?P<device>[0-9a-fA-F:.]+)\): (?P<xid>\d+)", "", "",
     "open-gpu-kernel-modules src/common/sdk/nvidia/inc/nverror.h"),
    ("nvidia-init", ERROR, rf"NVRM: (?:GPU {_PCI}: )?(?:RmInitAdapter|rm_init_adapter) failed",
     "the driver could not start the GPU", "power off fully and on again; " + _RESEAT,
     "open-gpu-kernel-modules src/nvidia/arch/nvalloc/unix/src/osinit.c"),
    ("nvidia-version", ERROR, r"NVRM: API mismatch", "a program of another driver version spoke to the kernel driver",
     "reboot, or unload and load the nvidia modules", "open-gpu-kernel-modules kernel-open/nvidia/nv.c"),
    ("amdgpu-ring", ERROR, rf"amdgpu {_PCI}:.*ring \S+ timeout, signaled seq", "a queue stopped making progress", _RERUN,
     "Linux drivers/gpu/drm/amd/amdgpu/amdgpu_job.c"),
    ("amdgpu-recovered", NOTE, rf"amdgpu {_PCI}:.*ring \S+ timeout, but soft recovered", "a queue stopped and went on after "
     "its kernel was ended", _RERUN, "Linux drivers/gpu/drm/amd/amdgpu/amdgpu_job.c"),
    ("amdgpu-queue", WARNING, rf"amdgpu {_PCI}:.*Queues reset on process", "the queues of one program were reset; others went on",
     _RERUN, "Linux drivers/gpu/drm/amd/amdkfd/kfd_device_queue_manager.c"),
    ("amdgpu-fault", ERROR, rf"amdgpu {_PCI}:.*\[\w*hub\d?\] (?:no-retry |retry )?page fault",
     "a kernel touched memory that is not mapped", _RERUN, "Linux drivers/gpu/drm/amd/amdgpu/gmc_v*_0.c"),
    ("amdgpu-lost", ERROR, rf"amdgpu {_PCI}:.*(?:device lost from bus|GPU Recovery Failed|GPU reset end with ret = -)",
     "the GPU fell off the bus or could not be reset", "reboot; " + _RESEAT, "Linux drivers/gpu/drm/amd/amdgpu/amdgpu_device.c"),
    ("amdgpu-reset", WARNING, rf"amdgpu {_PCI}:.*(?:GPU reset begin|VRAM is lost due to GPU reset)",
     "the GPU was reset, and every program on it lost its work", "look at the lines before it for the cause",
     "Linux drivers/gpu/drm/amd/amdgpu/amdgpu_device.c"),
    ("amdgpu-mes", ERROR, rf"amdgpu {_PCI}:.*(?:MES failed to respond to msg|MES ring buffer is full|"
     r"failed to \w+ hardware queue (?:to|from) MES)", "the scheduler firmware hangs", "reboot; update linux-firmware",
     "Linux drivers/gpu/drm/amd/amdgpu/mes_v11_0.c, mes_v12_0.c"),
    ("amdgpu-ras", ERROR, rf"amdgpu {_PCI}:.*(?:uncorrectable hardware errors|RAS poison consumption|in BAD status|"
     r"RAS controller interrupt triggered|RAS records:\s*\d+ exceed threshold)",
     "memory or logic failed beyond correction", _COOL, "Linux drivers/gpu/drm/amd/amdgpu/amdgpu_ras.c"),
    ("amdgpu-ecc", NOTE, rf"amdgpu {_PCI}:.*[^n]correctable hardware errors", "memory errors were corrected", _COOL,
     "Linux drivers/gpu/drm/amd/amdgpu/amdgpu_ras.c"),
    ("amdgpu-pages", WARNING, rf"amdgpu {_PCI}:.*Saved bad pages", "pages of memory were given up as bad",
     "reboot, so that they are kept out of use; replace the card when their number grows",
     "Linux drivers/gpu/drm/amd/amdgpu/amdgpu_ras.c"),
    ("amdgpu-psp", WARNING, rf"amdgpu {_PCI}:.*(?:PSP create ring failed|psp gfx command \S+ failed|PSP resume failed|"
     r"memory training failed)", "the security processor failed, which starts and wakes the other parts",
     "power off fully and on again; update linux-firmware", "Linux drivers/gpu/drm/amd/amdgpu/amdgpu_psp.c"),
    ("amdgpu-firmware", ERROR, r"amdgpu.*(?:failed to load ucode|PSP firmware loading failed|PSP load \w+ failed)|"
     r"Direct firmware load for amdgpu/\S+ failed", "the GPU's firmware could not be loaded", "install firmware-amd-graphics "
     "(or linux-firmware), then sudo update-initramfs -u and reboot", "Linux drivers/gpu/drm/amd/amdgpu/amdgpu_psp.c"),
    ("kgsl-fault", ERROR, r"kgsl-3d0: .*(?:gpu fault ctx|GPU PAGE FAULT)", "a kernel hung or touched unmapped memory", _RERUN,
     "msm-kernel drivers/gpu/msm/adreno_dispatch.c, kgsl_iommu.c"),
    ("kgsl-timeout", ERROR, r"kgsl-3d0: .*(?:gpu timeout ctx|gpu failed ctx|gpu fault threshold)", "a kernel ran too long and "
     "its context was killed", "split the work: the driver stops what runs for seconds",
     "msm-kernel drivers/gpu/msm/adreno_dispatch.c"),
    ("msm-hang", ERROR, r"msm.*(?:hangcheck detected gpu lockup|offending task)", "a kernel hung", _RERUN,
     "Linux drivers/gpu/drm/msm/msm_gpu.c"),
    ("aer-fatal", ERROR, rf"pcieport .*AER: .*Uncorrect\w+ \((?:Non-)?Fatal\) error.* (?:from |received: ){_PCI}",
     "the PCIe link failed", _RESEAT, "Linux drivers/pci/pcie/aer.c"),
    ("aer-corrected", NOTE, rf"pcieport .*AER: .*Correct(?:ed|able) error.* (?:from |received: ){_PCI}",
     "the PCIe link repeats packets", _RESEAT, "Linux drivers/pci/pcie/aer.c"),
    ("iommu-fault", ERROR, rf"(?:AMD-Vi: Event logged \[IO_PAGE_FAULT device={_PCI}|DMAR: \[DMA \w+)",
     "a device used a DMA address the IOMMU does not know", "boot with iommu=pt; update the firmware",
     "Linux drivers/iommu/amd/iommu.c, intel/dmar.c"),
    ("kfd-atomics", ERROR, r"kfd kfd: .*skipped device [0-9a-f]{4}:[0-9a-f]{4}, PCI rejects atomics",
     "the compute driver left a GPU out, because its slot does not pass PCIe atomics", "use a slot that is wired to the "
     "processor, not to the chip set", "Linux drivers/gpu/drm/amd/amdkfd/kfd_device.c"),
    ("amdgpu-bar", NOTE, rf"amdgpu {_PCI}:.*Not enough PCI address space for a large BAR", "the firmware left no room to show "
     "the host all of the GPU's memory", "turn on above-4G decoding in the firmware set-up",
     "Linux drivers/gpu/drm/amd/amdgpu/amdgpu_device.c"),
    ("amdgpu-atomics", WARNING, rf"amdgpu {_PCI}:.*PCIE atomic ops is not supported", "the slot does not pass PCIe atomics, so "
     "kernels and the host can't count together", "use a slot that is wired to the processor, not to the chip set",
     "Linux drivers/gpu/drm/amd/amdgpu/amdgpu_device.c"),
    ("amdgpu-peer", WARNING, rf"amdgpu(?: {_PCI})?:.*Failed to map peer", "one GPU could not be shown another's memory",
     "turn on resizable BAR, and boot with iommu=pt", "Linux drivers/gpu/drm/amd/amdgpu/amdgpu_amdkfd_gpuvm.c"),
    ("machine-check", WARNING, r"mce: \[Hardware Error\]|EDAC .*(?:CE|UE) ", "the processor or its memory reported an error",
     "test the memory; if errors come back, replace the module", "Linux arch/x86/kernel/cpu/mce/core.c, drivers/edac/edac_mc.c"),
    ("out-of-memory", WARNING, r"(?:Out of memory|Memory cgroup out of memory): Killed process", "the kernel killed a program "
     "for want of memory", "use smaller batches, or give the machine (or container) more memory", "Linux mm/oom_kill.c"),
))


_NVERROR = "open-gpu-kernel-modules src/common/sdk/nvidia/inc/nverror.h"  # the ROBUST_CHANNEL_* codes


class Xid(NamedTuple):
    code: int
    severity: Severity
    meaning: str
    remedy: str
    source: str = _NVERROR


_RESET = "close every program on the GPU and reset it: echo 1 | sudo tee /sys/bus/pci/devices/ADDRESS/reset"
_BUG = "report it with the log: devrt wrote a bad command"

XIDS = {row.code: row for row in (
    Xid(13, ERROR, "a kernel raised an exception on the GPU", _RERUN),
    Xid(31, ERROR, "a kernel touched memory that is not mapped", _RERUN),
    Xid(32, ERROR, "the GPU read a bad command buffer", _BUG),
    Xid(43, ERROR, "the GPU stopped one program's channel", _RERUN),
    Xid(44, ERROR, "a fault while switching contexts", _RESET),
    Xid(45, NOTE, "channels were removed after an earlier error", "look at the first Xid before it"),
    Xid(48, ERROR, "an ECC error in two bits, which can't be corrected", "reset the GPU; if it comes back, replace it"),
    Xid(63, WARNING, "a failing memory row was recorded for remapping", "reset the GPU so that the row is replaced"),
    Xid(64, ERROR, "a failing memory row could not be recorded", "reset the GPU; if it comes back, replace it"),
    Xid(69, ERROR, "the GPU refused a command of a class", _BUG),
    Xid(74, ERROR, "an NVLink error", "reseat the bridge; look at the peer's log"),
    Xid(79, ERROR, "the GPU fell off the bus", "reboot; " + _RESEAT),
    Xid(92, WARNING, "many single-bit memory errors were corrected", _COOL),
    Xid(94, ERROR, "an uncorrectable memory error, contained in one program", "restart that program; reset the GPU soon"),
    Xid(95, ERROR, "an uncorrectable memory error that other programs may have seen", "stop every program and reset the GPU"),
    Xid(119, ERROR, "the GPU's system processor did not answer", "reset the GPU, else reboot"),
    Xid(120, ERROR, "the GPU's system processor failed", "reset the GPU, else reboot"),
    Xid(140, ERROR, "an ECC error was not recovered from", "reset the GPU; if it comes back, replace it"),
    Xid(143, ERROR, "the GPU could not be started", "power off fully and on again"),
    Xid(154, WARNING, "the driver says that the GPU needs another recovery action", "read the line: it names the action"),
    Xid(171, ERROR, "an uncorrectable error in DRAM", "reset the GPU; if it comes back, replace it"),
    Xid(172, ERROR, "an uncorrectable error in SRAM", "reset the GPU; if it comes back, replace it"),
)}
COPY_ENGINE_XIDS = {*range(39, 42), *range(70, 73), *range(75, 78), 85, *range(126, 136)}


def check(reader: Reader) -> Iterator[Finding]:
    """One finding for each kind of trouble and device, worst evidence last seen."""
    try:
        lines = reader.system.kernel_log()
    except OSError as error:
        yield Finding("kernel-log", NOTE, "the kernel log could not be read, so past GPU errors are unknown",
                      errno_name(error.errno or 0), "run `sudo devrt doctor`, or allow it: sudo sysctl kernel.dmesg_restrict=0")
        return
    seen: dict[tuple[str, str, str], list[int]] = {}
    for number, line in enumerate(lines):
        for pattern in PATTERNS:
            match = re.search(pattern.regex, line.text)
            if match:
                groups = match.groupdict()
                seen.setdefault((pattern.name, groups.get("xid") or "", groups.get("device") or ""), []).append(number)
                break
    if not seen:
        yield Finding("kernel-log", OK, "the kernel log tells of no GPU trouble", f"lines read: {len(lines)}")
    rows = {pattern.name: pattern for pattern in PATTERNS}
    for (name, xid, device), found in seen.items():
        severity, what, remedy = _xid(int(xid)) if xid else (rows[name].severity, rows[name].what, rows[name].remedy)
        times = f"{len(found)} times, last" if len(found) > 1 else "once,"
        last, remedy = lines[found[-1]], remedy.replace("ADDRESS", _pci(device))
        more = _page_fault(lines[found[-1] + 1:], device) if name == "amdgpu-fault" else ""
        yield Finding("kernel-log", severity, f"{name}{f' {xid}' if xid else ''}{f' on {device}' if device else ''}: {what}",
                      f"{times} {last.seconds:.1f} s after boot: {last.text[:160]}{more}", remedy)


_AFTER_FAULT = 10  # lines the driver writes about one page fault
_FAULT_PARTS = {"page": r"in page starting at address (0x[0-9a-f]{1,16})", "client": r"Faulty UTCL2 client ID: (\w+)",
                "status": r"L2_PROTECTION_FAULT_STATUS(?:_LO32)?:(0x[0-9A-Fa-f]{1,8})\b"}


def _page_fault(lines: Sequence[LogLine], device: str) -> str:
    """The lines after a page fault's first: address, status in words, and the block of the GPU that asked."""
    said: dict[str, str] = {}
    for line in lines[:_AFTER_FAULT]:
        for name, regex in _FAULT_PARTS.items():
            match = re.search(regex, line.text) if device in line.text else None
            if match:
                said.setdefault(name, match[1])
        if "client" in said:
            break
    parts = [f"page {said['page']}"] if "page" in said else []
    parts += [fault_status(int(said["status"], 16))] if "status" in said else []
    parts += [f"asked by {said['client']}"] if "client" in said else []
    return "".join(f"; {part}" for part in parts)


def _xid(code: int) -> tuple[Severity, str, str]:
    if code in XIDS:
        return XIDS[code].severity, XIDS[code].meaning, XIDS[code].remedy
    if code in COPY_ENGINE_XIDS:
        return ERROR, "a copy engine raised an error", _RERUN
    return WARNING, "an error devrt has no entry for", "look the number up in the driver's nverror.h"


def _pci(device: str) -> str:
    """`0000:3b:00` or `3b:00.0`, as logs write it, in the form that sysfs uses."""
    text = device.lower() if "." in device else f"{device.lower()}.0"
    return text if text.count(":") == 2 else f"0000:{text}"
