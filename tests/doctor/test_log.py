"""Every pattern of the log table finds the line it is meant for, and only that pattern does."""

from __future__ import annotations

import re

import pytest

from devrt.doctor.findings import Reader, Severity
from devrt.doctor.log import COPY_ENGINE_XIDS, PATTERNS, XIDS, check
from devrt.ioctl.machine import MachineSystem

# Lines as the kernel prints them, by the name of the pattern.
LINES = {
    "nvidia-xid": ["NVRM: Xid (PCI:0000:19:00): 31, pid=4242, name=python3"],
    "nvidia-init": ["NVRM: GPU 0000:19:00.0: RmInitAdapter failed! (0x62:0x40:2477)",
                    "NVRM: GPU 0000:19:00.0: rm_init_adapter failed, device minor number 0"],
    "nvidia-version": ["NVRM: API mismatch: the client has the version 570.133.20, but"],
    "amdgpu-ring": ["amdgpu 0000:03:00.0: amdgpu: ring gfx_0.0.0 timeout, signaled seq=2, emitted seq=4"],
    "amdgpu-recovered": ["amdgpu 0000:03:00.0: amdgpu: ring gfx_0.0.0 timeout, but soft recovered"],
    "amdgpu-queue": ["amdgpu 0000:03:00.0: amdgpu: Queues reset on process python3 pid 812"],
    "amdgpu-fault": ["amdgpu 0000:03:00.0: amdgpu: [gfxhub0] page fault (src_id:0 ring:24 vmid:8 pasid:32771)",
                     "amdgpu 0000:03:00.0: amdgpu: [mmhub] no-retry page fault (src_id:0 ring:24 vmid:8 pasid:32771)"],
    "amdgpu-lost": ["amdgpu 0000:03:00.0: amdgpu: device lost from bus!", "amdgpu 0000:03:00.0: amdgpu: GPU Recovery Failed: -5",
                    "amdgpu 0000:03:00.0: amdgpu: GPU reset end with ret = -110"],
    "amdgpu-reset": ["amdgpu 0000:03:00.0: amdgpu: GPU reset begin!",
                     "amdgpu 0000:03:00.0: amdgpu: VRAM is lost due to GPU reset!"],
    "amdgpu-mes": ["amdgpu 0000:03:00.0: amdgpu: MES failed to respond to msg=REMOVE_QUEUE",
                   "amdgpu 0000:03:00.0: amdgpu: MES ring buffer is full.",
                   "amdgpu 0000:03:00.0: amdgpu: failed to add hardware queue to MES, doorbell=0x1000"],
    "amdgpu-ras": ["amdgpu 0000:03:00.0: amdgpu: 1 uncorrectable hardware errors detected in umc block",
                   "amdgpu 0000:03:00.0: amdgpu: RAS poison consumption, fall back to gpu reset flow",
                   "amdgpu 0000:03:00.0: amdgpu: RAS controller interrupt triggered by NBIF error",
                   "amdgpu 0000:03:00.0: amdgpu: RAS records:261 exceed threshold:256"],
    "amdgpu-pages": ["amdgpu 0000:03:00.0: amdgpu: Saved bad pages 8, reserved 1"],
    "amdgpu-psp": ["amdgpu 0000:03:00.0: amdgpu: PSP create ring failed!",
                   "amdgpu 0000:03:00.0: amdgpu: psp gfx command LOAD_TA(0x1) failed and response status is (0x7)",
                   "amdgpu 0000:03:00.0: amdgpu: memory training failed"],
    "amdgpu-ecc": ["amdgpu 0000:03:00.0: amdgpu: 1 correctable hardware errors detected in umc block"],
    "amdgpu-firmware": ["amdgpu 0000:03:00.0: amdgpu: PSP firmware loading failed",
                        "amdgpu 0000:03:00.0: Direct firmware load for amdgpu/gc_11_0_0_pfp.bin failed with error -2"],
    "kgsl-fault": ["kgsl kgsl-3d0: python3[812]: gpu fault ctx 2 ctx_type CL ts 9 status 00800005 rb 02a5/02a5",
                   "kgsl kgsl-3d0: GPU PAGE FAULT: addr = 500000000 pid= 812 name=python3"],
    "kgsl-timeout": ["kgsl kgsl-3d0: python3[812]: gpu timeout ctx 2 ts 9"],
    "msm-hang": ["msm_dpu ae01000.mdss: [drm:hangcheck_handler] *ERROR* 6.3.0.1: hangcheck detected gpu lockup rb 0!"],
    "aer-fatal": ["pcieport 0000:00:01.1: AER: Uncorrectable (Fatal) error message received from 0000:01:00.0"],
    "aer-corrected": ["pcieport 0000:00:01.1: AER: Corrected error received: 0000:01:00.0",
                      "pcieport 0000:00:01.1: AER: Correctable error message received from 0000:01:00.0"],
    "iommu-fault": ["AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:03:00.0 domain=0x001a address=0x0 flags=0x0000]",
                    "DMAR: [DMA Read NO_PASID] Request device [19:00.0] fault addr 0x0"],
    "kfd-atomics": ["kfd kfd: amdgpu: skipped device 1002:744c, PCI rejects atomics 730<0"],
    "amdgpu-bar": ["amdgpu 0000:03:00.0: amdgpu: Not enough PCI address space for a large BAR."],
    "amdgpu-atomics": ["amdgpu 0000:03:00.0: amdgpu: PCIE atomic ops is not supported"],
    "amdgpu-peer": ["amdgpu: Failed to map peer:0000:06:00.0 mem_domain:4"],
    "machine-check": ["mce: [Hardware Error]: Machine check events logged",
                      "EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0_Chan#0_DIMM#0"],
    "out-of-memory": ["Out of memory: Killed process 4242 (python3) total-vm:98304kB, anon-rss:65536kB",
                      "Memory cgroup out of memory: Killed process 4242 (python3) total-vm:98304kB"],
}
HARMLESS = [
    "amdgpu 0000:03:00.0: amdgpu: GPU reset end with ret = 0",
    "amdgpu 0000:03:00.0: amdgpu: GPU reset(1) succeeded!",
    "NVRM: loading NVIDIA UNIX Open Kernel Module",
    "pcieport 0000:00:01.1: AER: enabled with IRQ 27",
    "DMAR: IOMMU enabled",
    "EDAC MC0: Giving out device to module skx_edac controller Skylake Socket#0 IMC#0",
    "kfd kfd: amdgpu: added device 1002:744c",
    "usb 1-1: new high-speed USB device",
]


def test_every_pattern_has_lines() -> None:
    assert set(LINES) == {pattern.name for pattern in PATTERNS}


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in LINES.items() for line in lines])
def test_line_is_found_by_its_pattern(name: str, line: str) -> None:
    assert [pattern.name for pattern in PATTERNS if re.search(pattern.regex, line)] == [name]


@pytest.mark.parametrize("line", HARMLESS)
def test_harmless_line_is_left_alone(line: str) -> None:
    assert not [pattern.name for pattern in PATTERNS if re.search(pattern.regex, line)]


@pytest.mark.parametrize("code", sorted(set(XIDS) | COPY_ENGINE_XIDS | {9999}))
def test_every_xid_has_a_meaning_and_a_remedy(code: int) -> None:
    log = f"<3>[    1.000000] NVRM: Xid (PCI:0000:19:00): {code}, pid=1"
    (finding,) = check(Reader(MachineSystem({"log": log})))
    assert finding.what.startswith(f"nvidia-xid {code} on 0000:19:00: ") and finding.remedy and "ADDRESS" not in finding.remedy
    assert finding.severity > Severity.OK


def test_tables_name_their_sources() -> None:
    assert all(pattern.source for pattern in PATTERNS) and all(xid.source for xid in XIDS.values())
