"""The filter that sends a program's calls about devices to another process, and the descriptor they arrive on.

Linux 5.0 has the notification, 5.5 lets a call go on as if nothing had happened, 5.9 puts descriptors into the program. With
5.19 a call that was taken up is interrupted by nothing but the end of its process. Source: linux/seccomp.h, seccomp(2).
"""

from __future__ import annotations

import errno
import functools
import os
from typing import Any

import cffi

from devrt.ioctl.system import System
from devrt.ioctl.uapi import IOW, IOWR, Uapi
from devrt.virtual.exec.bpf import assemble, at, equal, load, mask, result, shift
from devrt.virtual.exec.syscalls import Arch

SECCOMP = Uapi(
    name="seccomp",
    header="linux/seccomp.h",
    nodes=(),
    magic=ord("!"),
    structs="""
struct seccomp_data { int32_t nr; uint32_t arch; uint64_t instruction_pointer, args[6]; };
struct seccomp_notif { uint64_t id; uint32_t pid, flags; struct seccomp_data data; };
struct seccomp_notif_resp { uint64_t id; int64_t val; int32_t error; uint32_t flags; };
struct seccomp_notif_addfd { uint64_t id; uint32_t flags, srcfd, newfd, newfd_flags; };
struct seccomp_notif_id { uint64_t id; };
""",
    ioctls={
        "SECCOMP_IOCTL_NOTIF_RECV": IOWR(0, "seccomp_notif"),
        "SECCOMP_IOCTL_NOTIF_SEND": IOWR(1, "seccomp_notif_resp"),
        "SECCOMP_IOCTL_NOTIF_ID_VALID": IOW(2, "seccomp_notif_id"),
        "SECCOMP_IOCTL_NOTIF_ADDFD": IOW(3, "seccomp_notif_addfd"),
    },
)
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_SET_MODE_FILTER, _FLAG_NEW_LISTENER, _FLAG_WAIT_KILLABLE_RECV = 1, 8, 32
_NOTIF_FLAG_CONTINUE = 1
_ADDFD_FLAG_SETFD = 1
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_NR, _ARCH = SECCOMP.offset("seccomp_data", "nr"), SECCOMP.offset("seccomp_data", "arch")
_SECOND = SECCOMP.offset("seccomp_data", "args") + 8  # its low dword, on machines that begin with it


def filter_program(arch: Arch, magics: tuple[int, ...]) -> bytes:
    """Notifies of every call of `arch`; of ioctl only where the request's type byte is one of `magics`. Everything else, and
    what a program of another architecture does, the kernel answers itself."""
    calls = [equal(number, yes="notify") for name, number in arch.numbers.items() if name != "ioctl"]
    types = [equal(magic, yes="notify") for magic in magics]
    return assemble([
        load(_ARCH), equal(arch.audit, no="allow"),
        load(_NR), *calls, equal(arch.numbers["ioctl"], no="allow"),
        load(_SECOND), shift(8), mask(0xFF), *types,
        at("allow", result(_RET_ALLOW)),
        at("notify", result(_RET_USER_NOTIF)),
    ])


@functools.lru_cache(maxsize=1)
def _libc() -> tuple[cffi.FFI, Any]:
    ffi = cffi.FFI()
    ffi.cdef("""
struct sock_fprog { unsigned short len; void *filter; };
long syscall(long number, ...);
int prctl(int option, ...);
""")
    return ffi, ffi.dlopen(None)


def install(arch: Arch, program: bytes) -> int:
    """Put this process and all that come from it under the filter. Returns the listener. Raises OSError: EBUSY under another
    supervisor, EINVAL and ENOSYS without seccomp or its notifications."""
    ffi, c = _libc()
    kept = ffi.from_buffer(program)
    fprog = ffi.new("struct sock_fprog *", {"len": len(program) // 8, "filter": ffi.cast("void *", kept)})

    def number(value: int) -> Any:
        return ffi.cast("unsigned long", value)
    if c.prctl(_PR_SET_NO_NEW_PRIVS, number(1), number(0), number(0), number(0)) < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    for flags in (_FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE_RECV, _FLAG_NEW_LISTENER):
        listener = int(c.syscall(arch.seccomp, number(_SET_MODE_FILTER), number(flags), fprog))
        if listener >= 0:
            return listener
        if ffi.errno != errno.EINVAL:
            break
    raise OSError(ffi.errno, os.strerror(ffi.errno))


def die_with_parent(signal: int) -> None:
    """Get `signal` when the thread that forked this process ends."""
    ffi, c = _libc()
    c.prctl(_PR_SET_PDEATHSIG, ffi.cast("unsigned long", signal))


class Listener:
    """The supervisor's end. Calls about a notification whose thread is gone raise OSError: ENOENT."""

    def __init__(self, system: System, fd: int) -> None:
        self._system, self.fd = system, fd

    def receive(self) -> Any:
        """The next struct seccomp_notif. Raises OSError: ENOENT where its thread ended meanwhile."""
        return SECCOMP.call(self._system, self.fd, "SECCOMP_IOCTL_NOTIF_RECV")

    def answer(self, number: int, value: int) -> None:
        self._send(number, val=value)

    def refuse(self, number: int, error: int) -> None:
        self._send(number, error=-error)

    def let_go_on(self, number: int) -> None:
        """The kernel carries the call out itself."""
        self._send(number, flags=_NOTIF_FLAG_CONTINUE)

    def _send(self, number: int, **fields: int) -> None:
        SECCOMP.call(self._system, self.fd, "SECCOMP_IOCTL_NOTIF_SEND", id=number, **fields)

    def add_fd(self, number: int, fd: int, flags: int, there: int | None = None) -> int:
        """Put a duplicate of `fd` into the process, in the place of its descriptor `there` where that is given; `flags`:
        O_CLOEXEC or 0. Returns its number there."""
        place = {} if there is None else {"flags": _ADDFD_FLAG_SETFD, "newfd": there}
        argument = SECCOMP.new("seccomp_notif_addfd", id=number, srcfd=fd, newfd_flags=flags & os.O_CLOEXEC, **place)
        return self._system.ioctl(self.fd, SECCOMP.request("SECCOMP_IOCTL_NOTIF_ADDFD"),
                                  memoryview(SECCOMP.ffi.buffer(argument)))

    def valid(self, number: int) -> bool:
        """Whether the thread still waits for an answer."""
        try:
            SECCOMP.call(self._system, self.fd, "SECCOMP_IOCTL_NOTIF_ID_VALID", id=number)
        except OSError:
            return False
        return True

    def close(self) -> None:
        fd, self.fd = self.fd, -1  # a thread that still waits must not answer on what gets the number next
        os.close(fd)
