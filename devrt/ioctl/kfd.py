# Linux include/uapi/linux/kfd_ioctl.h (6.1)
"""AMD's compute driver, as far as asking which interface it speaks."""

from __future__ import annotations

from devrt.ioctl.system import System
from devrt.ioctl.uapi import IOR, Uapi

KFD = Uapi(
    name="kfd",
    header="linux/kfd_ioctl.h",
    nodes=("/dev/kfd",),
    magic=ord("K"),
    structs="""
struct kfd_ioctl_get_version_args { uint32_t major_version, minor_version; };
""",
    ioctls={
        "AMDKFD_IOC_GET_VERSION": IOR(0x01, "kfd_ioctl_get_version_args"),
    },
)


def version(system: System, fd: int) -> tuple[int, int]:
    """(major, minor) of the interface. Raises OSError."""
    answer = KFD.call(system, fd, "AMDKFD_IOC_GET_VERSION")
    return answer.major_version, answer.minor_version
