"""The system calls that a supervisor answers, by machine: their numbers, and what struct stat looks like there.

Sources: asm/unistd_64.h and asm/stat.h of x86-64; asm-generic/unistd.h and asm-generic/stat.h for aarch64; linux/stat.h for
statx; linux/audit.h for the architectures' numbers.
"""

from __future__ import annotations

import os
import platform
import stat as stat_bits
import struct
from collections.abc import Mapping
from dataclasses import dataclass

AT_FDCWD = -100
AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW = 0x1000, 0x100  # linux/fcntl.h
_BASIC_STATS = 0x7FF  # STATX_BASIC_STATS


@dataclass(frozen=True)
class Arch:
    """`audit` is what seccomp calls the machine; `numbers` name -> number of the calls that it has."""

    name: str
    audit: int
    seccomp: int
    numbers: Mapping[str, int]


ARCHS = {
    "x86_64": Arch("x86_64", 0xC000003E, 317, {
        "open": 2, "stat": 4, "fstat": 5, "lstat": 6, "ioctl": 16, "access": 21, "readlink": 89, "getxattr": 191,
        "lgetxattr": 192, "listxattr": 194, "llistxattr": 195, "openat": 257, "newfstatat": 262, "readlinkat": 267,
        "faccessat": 269, "statx": 332, "openat2": 437, "faccessat2": 439}),
    "aarch64": Arch("aarch64", 0xC00000B7, 277, {
        "getxattr": 8, "lgetxattr": 9, "listxattr": 11, "llistxattr": 12, "ioctl": 29, "faccessat": 48,
        "openat": 56, "readlinkat": 78, "newfstatat": 79, "fstat": 80, "statx": 291, "openat2": 437, "faccessat2": 439}),
}


def machine() -> Arch | None:
    """This machine, None where its numbers are not known here."""
    return ARCHS.get(platform.machine())


@dataclass(frozen=True)
class Status:
    """What stat tells of a file: times in whole seconds, `size` in bytes."""

    mode: int
    ino: int
    nlink: int = 1
    size: int = 0
    rdev: tuple[int, int] = (0, 0)
    time: int = 0

    @classmethod
    def of(cls, found: os.stat_result) -> Status:
        return cls(found.st_mode, found.st_ino, found.st_nlink, found.st_size, time=int(found.st_mtime))

    def as_node(self, rdev: tuple[int, int]) -> Status:
        """The same place as a character device that everybody may read and write."""
        return Status(stat_bits.S_IFCHR | 0o666, self.ino, rdev=rdev, time=self.time)


_DEV = 0, 21  # the file system's device number, as sysfs has one without a disk
_BLOCK = 4096


def pack_stat(arch: Arch, status: Status) -> bytes:
    """struct stat of the machine; everything belongs to root."""
    dev, rdev, times = os.makedev(*_DEV), os.makedev(*status.rdev), (status.time, 0) * 3
    if arch.name == "x86_64":  # dev ino nlink mode uid gid - rdev size blksize blocks times -
        return struct.pack("<QQQIIIIQqqq6Q24x", dev, status.ino, status.nlink, status.mode, 0, 0, 0, rdev, status.size, _BLOCK,
                           0, *times)
    # dev ino mode nlink uid gid rdev - size blksize - blocks times -
    return struct.pack("<QQIIIIQ8xqi4xq6Q8x", dev, status.ino, status.mode, status.nlink, 0, 0, rdev, status.size, _BLOCK, 0,
                       *times)


def pack_statx(status: Status) -> bytes:
    """struct statx, the same on every machine."""
    # mask blksize attributes nlink uid gid mode - ino size blocks attributes_mask
    head = struct.pack("<IIQIIIH2xQQQQ", _BASIC_STATS, _BLOCK, 0, status.nlink, 0, 0, status.mode, status.ino, status.size, 0, 0)
    times = b"".join(struct.pack("<qI4x", seconds, 0) for seconds in (status.time, 0, status.time, status.time))  # a b c m
    return (head + times + struct.pack("<IIII", *status.rdev, *_DEV)).ljust(256, b"\0")
