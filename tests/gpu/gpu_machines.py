"""What tests of GPUs use: the vendors, and what a process holds of a driver."""

from __future__ import annotations

import os
from dataclasses import dataclass

from devrt.amd import driver as amd
from devrt.amd.device import AmdDevice
from devrt.gpu.device import GpuDevice
from devrt.ioctl.system import System
from devrt.nvidia import driver as nvidia
from devrt.nvidia.device import NvidiaDevice


@dataclass(frozen=True)
class Vendor:
    """`one` and `two` are topologies of one GPU, and of two that reach each other; `other` is of another generation. `no_memory`
    fails the next allocation."""

    name: str
    kind: type[GpuDevice]
    one: str
    two: str
    other: str
    no_memory: str

    @property
    def uri(self) -> str:
        return f"virtual:{self.name}/{self.one}"

    @property
    def pair(self) -> str:
        return f"virtual:{self.name}/{self.two}"

    def open(self, system: System, index: int = 0) -> GpuDevice:
        made: GpuDevice = self.kind(f"test:{index}", system, index)  # type: ignore[call-arg, arg-type]
        return made


VENDORS = (Vendor("amd", AmdDevice, "gfx1100", "2xgfx942", "gfx1030", "errno=ENOMEM:ALLOC_MEMORY_OF_GPU"),
           Vendor("nvidia", NvidiaDevice, "sm_90", "2xsm_90", "sm_86", "status=NV_ERR_NO_MEMORY:NV_ESC_RM_ALLOC"))


def leave(system: System) -> None:
    """Give back what a process keeps of a driver when no device is open."""
    if id(system) in amd._drivers:
        amd.connect(system).close()
    if id(system) in nvidia._drivers:
        nvidia._drivers[id(system)].abandon()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    """Bytes of this process's addresses that a driver gave; other mappings come and go with threads."""
    with open("/proc/self/maps") as file:
        ranges = [line.split()[0].split("-") for line in file if "memfd:" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)
