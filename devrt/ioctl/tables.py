"""Every driver interface devrt has a table for."""

from __future__ import annotations

from devrt.ioctl.amdgpu import AMDGPU
from devrt.ioctl.drm import DRM
from devrt.ioctl.kfd import KFD
from devrt.ioctl.nvrm import NVRM
from devrt.ioctl.uapi import Uapi
from devrt.ioctl.uvm import UVM

TABLES: tuple[Uapi, ...] = (KFD, DRM, AMDGPU, NVRM, UVM)
