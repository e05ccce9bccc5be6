"""Every driver interface devrt has a table for."""

from __future__ import annotations

from devrt.device import DriverMismatch
from devrt.ioctl.amdgpu import AMDGPU
from devrt.ioctl.drm import DRM
from devrt.ioctl.kfd import KFD
from devrt.ioctl.nv_versions import VERSION_FILE, running_version, tables_for
from devrt.ioctl.nvrm import NVRM
from devrt.ioctl.system import System
from devrt.ioctl.uapi import Uapi
from devrt.ioctl.uvm import UVM

LINUX = KFD, DRM, AMDGPU  # drivers that come with Linux
TABLES: tuple[Uapi, ...] = (*LINUX, NVRM, UVM)


def tables_on(system: System) -> tuple[Uapi, ...]:
    """The tables of the drivers that run there: NVIDIA's structs change between branches."""
    try:
        return tables_by(system.read_text(VERSION_FILE))
    except OSError:
        return TABLES


def tables_by(text: str) -> tuple[Uapi, ...]:
    """The tables where /proc/driver/nvidia/version reads `text`; of a branch without tables the oldest one's."""
    try:
        return (*LINUX, *tables_for(running_version(text)).uapis)
    except DriverMismatch:
        return TABLES
