"""Every driver interface devrt has a table for."""

from __future__ import annotations

from devrt.ioctl.amdgpu import AMDGPU
from devrt.ioctl.drm import DRM
from devrt.ioctl.kfd import KFD
from devrt.ioctl.uapi import Uapi

TABLES: tuple[Uapi, ...] = (KFD, DRM, AMDGPU)
