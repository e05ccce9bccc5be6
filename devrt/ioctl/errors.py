"""From the kernel's errno to one of devrt's errors: what was asked, what was seen, what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import NamedTuple

from devrt.device import (
    DeviceHang,
    DeviceLost,
    DeviceNotFound,
    DevrtError,
    DriverMismatch,
    InvalidArgument,
    OutOfMemory,
    PermissionDenied,
    Unsupported,
)

ENOTSUPP = 524  # kernel-internal, has no name in user space, and leaks out of some drivers


class _Meaning(NamedTuple):
    errno: int
    error: type[DevrtError]
    remedy: str
    source: str


_ERRNO = "Linux include/uapi/asm-generic/errno*.h"
_DOCTOR = "run `devrt doctor`"

_MEANINGS = {row.errno: row for row in (
    _Meaning(errno.EACCES, PermissionDenied, f"{_DOCTOR}: it prints the command that grants access", _ERRNO),
    _Meaning(errno.EPERM, PermissionDenied, f"{_DOCTOR}; in a container, pass the device node to it", _ERRNO),
    _Meaning(errno.ENOENT, DeviceNotFound, f"{_DOCTOR}: it says which driver or node is missing", _ERRNO),
    _Meaning(errno.ENXIO, DeviceNotFound, f"{_DOCTOR}: the node exists but no driver answers on it", _ERRNO),
    _Meaning(errno.ENODEV, DeviceLost, "read the kernel log (`sudo dmesg`): the driver gave the device up", _ERRNO),
    _Meaning(errno.EIO, DeviceLost, "read the kernel log (`sudo dmesg`); close the device and open it again", _ERRNO),
    _Meaning(errno.ETIME, DeviceHang, "read the kernel log (`sudo dmesg`) for a reset", _ERRNO),
    _Meaning(errno.ETIMEDOUT, DeviceHang, "read the kernel log (`sudo dmesg`) for a reset", _ERRNO),
    _Meaning(errno.ENOMEM, OutOfMemory, "free buffers, or use a smaller batch", _ERRNO),
    _Meaning(errno.ENOSPC, OutOfMemory, "free buffers or queues: a table of the driver is full", _ERRNO),
    _Meaning(errno.EMFILE, OutOfMemory, "raise the limit on open files (`ulimit -n`)", _ERRNO),
    _Meaning(errno.EINVAL, InvalidArgument, "record the calls and compare them with the driver's header", _ERRNO),
    _Meaning(errno.EFAULT, InvalidArgument, "record the calls: a pointer in the argument is not mapped", _ERRNO),
    _Meaning(errno.ENOTTY, DriverMismatch, "use a newer kernel driver: this one does not know the call", _ERRNO),
    _Meaning(errno.EOPNOTSUPP, Unsupported, "the driver or this GPU lacks the feature", _ERRNO),
    _Meaning(errno.ENOSYS, Unsupported, "the kernel was built without the feature", _ERRNO),
    _Meaning(ENOTSUPP, Unsupported, "the driver or this GPU lacks the feature", "Linux include/linux/errno.h"),
)}


def errno_name(number: int) -> str:
    return "ENOTSUPP" if number == ENOTSUPP else errno.errorcode.get(number, f"errno {number}")


def devrt_error(error: OSError, what: str, *, remedy: str = "") -> DevrtError:
    """`error` as the devrt error that its errno means. `what` is one sentence; `remedy` overrides the table's.

    An errno that means nothing in particular (EBUSY, EAGAIN, ...) gives a plain DevrtError.
    """
    number = error.errno or 0
    meaning = _MEANINGS.get(number)
    kind, usual = (meaning.error, meaning.remedy) if meaning else (DevrtError, "read the kernel log (`sudo dmesg`)")
    path = f" on {error.filename}" if error.filename else ""
    return kind(what, evidence=f"{errno_name(number)}{path}: {error.strerror or error}", remedy=remedy or usual)


@contextlib.contextmanager
def reported_as(what: str, *, remedy: str = "") -> Iterator[None]:
    """Turn an OSError raised inside into a devrt error that says `what` was being done."""
    try:
        yield
    except OSError as error:
        raise devrt_error(error, what, remedy=remedy) from error
