# Linux include/uapi/drm/drm.h (6.1, as packaged by libdrm 2.4.114)
"""The part of DRM that every GPU driver answers on its render node: who is it, and what can it share."""

from __future__ import annotations

from devrt.ioctl.system import System
from devrt.ioctl.uapi import IOW, IOWR, Pointer, Uapi

DRM = Uapi(
    name="drm",
    header="drm.h",
    nodes=("/dev/dri/renderD*", "/dev/dri/card*"),
    magic=ord("d"),
    structs="""
struct drm_version {
    int version_major, version_minor, version_patchlevel;
    size_t name_len; char *name;
    size_t date_len; char *date;
    size_t desc_len; char *desc;
};
struct drm_gem_close { uint32_t handle, pad; };
struct drm_get_cap { uint64_t capability, value; };
struct drm_prime_handle { uint32_t handle, flags; int32_t fd; };
""",
    ioctls={
        "DRM_IOCTL_VERSION": IOWR(0x00, "drm_version", Pointer("name", "name_len"), Pointer("date", "date_len"),
                                  Pointer("desc", "desc_len")),
        "DRM_IOCTL_GEM_CLOSE": IOW(0x09, "drm_gem_close"),
        "DRM_IOCTL_GET_CAP": IOWR(0x0C, "drm_get_cap"),
        "DRM_IOCTL_PRIME_HANDLE_TO_FD": IOWR(0x2D, "drm_prime_handle"),
        "DRM_IOCTL_PRIME_FD_TO_HANDLE": IOWR(0x2E, "drm_prime_handle"),
    },
)

CAPS = {
    "DRM_CAP_PRIME": 0x5,
    "DRM_CAP_SYNCOBJ": 0x13,
    "DRM_CAP_SYNCOBJ_TIMELINE": 0x14,
}
PRIME_IMPORT, PRIME_EXPORT = 1, 2  # bits of DRM_CAP_PRIME's value
DRM_CLOEXEC, DRM_RDWR = 0o2000000, 0o2  # flags of DRM_IOCTL_PRIME_HANDLE_TO_FD


def driver_of(system: System, fd: int) -> tuple[str, tuple[int, int, int]]:
    """The name and version of the driver behind a DRM node. Raises OSError."""
    name = DRM.ffi.new("char[]", 64)
    answer = DRM.call(system, fd, "DRM_IOCTL_VERSION", name=name, name_len=64)
    text = bytes(DRM.ffi.buffer(name, min(64, answer.name_len))).rstrip(b"\0").decode("ascii", "replace")
    return text, (answer.version_major, answer.version_minor, answer.version_patchlevel)


def capability(system: System, fd: int, name: str) -> int:
    """The value of one of CAPS. Raises OSError."""
    return int(DRM.call(system, fd, "DRM_IOCTL_GET_CAP", capability=CAPS[name]).value)
