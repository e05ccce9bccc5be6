"""The one seam between devrt and the operating system.

Everything devrt asks of the OS goes through a `System`. `LinuxSystem` is the real one; a recording System wraps another,
a replaying System serves a file, a virtual System routes some paths to virtual drivers. Code above never knows which one
it holds. Failures here are plain OSErrors, as the kernel gave them; `devrt.ioctl.errors` turns them into devrt's.
"""

from __future__ import annotations

import errno
import functools
import os
import pwd
import re
import resource
import stat as stat_bits
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import cffi

# What an ioctl carries: a writable buffer the driver reads and writes in place, or a bare number.
Argument: TypeAlias = "bytearray | memoryview | int"

# Numbers of <sys/mman.h> that Python's mmap module lacks or that differ in name; the same on x86-64 and aarch64.
PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC = 0, 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x01, 0x02, 0x10, 0x20
MAP_NORESERVE, MAP_POPULATE, MAP_FIXED_NOREPLACE = 0x4000, 0x8000, 0x100000
MADV_DONTFORK, MADV_HUGEPAGE = 10, 14

TEXT_LIMIT = 1 << 20  # bytes; sysfs and procfs texts are far smaller, so more than this is a mistake in the path


@dataclass(frozen=True)
class FileStat:
    """What stat(2) says of a path. `rdev` is (major, minor) of a device node, else (0, 0)."""

    exists: bool
    mode: int = 0
    uid: int = 0
    gid: int = 0
    rdev: tuple[int, int] = (0, 0)

    @property
    def is_device(self) -> bool:
        return stat_bits.S_ISCHR(self.mode) or stat_bits.S_ISBLK(self.mode)


@dataclass(frozen=True)
class Host:
    """Who and where this process is. Limits are in the unit of their name; -1 is unlimited."""

    user: str
    uid: int
    groups: tuple[int, ...]
    sysname: str
    release: str
    machine: str
    affinity: tuple[int, ...]
    memlock_bytes: int
    open_files: int


@dataclass(frozen=True)
class LogLine:
    """One line of the kernel log: `level` 0 (emergency) .. 7 (debug), seconds since boot."""

    level: int
    seconds: float
    text: str


class System(Protocol):
    """The operating system as devrt sees it. Every method raises OSError with the kernel's errno."""

    def open(self, path: str, flags: int) -> int: ...
    def close(self, fd: int) -> None: ...
    def ioctl(self, fd: int, request: int, argument: Argument) -> int:
        """The driver's answer; a buffer is written in place. An interrupted call is made again."""
        ...

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int = 0, address: int = 0) -> int:
        """Map `length` bytes of `fd` (-1: anonymous) and return the address; see `view` for the bytes."""
        ...

    def munmap(self, address: int, length: int) -> None: ...
    def mprotect(self, address: int, length: int, prot: int) -> None: ...
    def madvise(self, address: int, length: int, advice: int) -> None: ...
    def read_bytes(self, path: str, limit: int = TEXT_LIMIT) -> bytes:
        """At most `limit` bytes from the start of a file."""
        ...

    def read_text(self, path: str, limit: int = TEXT_LIMIT) -> str: ...
    def list_dir(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        ...

    def stat(self, path: str) -> FileStat:
        """A path that does not exist is an answer (`exists` False), not an error."""
        ...

    def access(self, path: str, mode: int) -> bool:
        """Whether this process may open the path, access lists included; `mode` is of os.R_OK | os.W_OK | os.X_OK."""
        ...

    def readlink(self, path: str) -> str: ...
    def host(self) -> Host: ...
    def kernel_log(self) -> list[LogLine]:
        """The kernel's ring buffer, oldest first. Raises PermissionError where only root may read it."""
        ...


def view(address: int, length: int) -> memoryview:
    """`length` bytes of this process's memory at `address`, writable. The mapping must outlive the view."""
    ffi, _ = _libc()
    return memoryview(ffi.buffer(ffi.cast("char *", address), length)).cast("B")


def peek(address: int, length: int) -> bytes | None:
    """A copy of this process's memory, or None where it is not mapped or not readable; never a fault."""
    try:
        # The kernel checks the range for us; a plain read of a stray pointer would end the process.
        fd = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.pread(fd, length, address)
    except (OSError, OverflowError):
        return None
    finally:
        os.close(fd)
    return data if len(data) == length else None


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give pages of a memory file back to the system; they read as zeros afterwards. Raises OSError."""
    ffi, c = _libc()
    keep_size, hole = 1, 2
    if c.fallocate(fd, keep_size | hole, offset, length) < 0:
        raise _os_error(ffi.errno)


_LIBC = """
int ioctl(int fd, unsigned long request, ...);
void *mmap(void *address, size_t length, int prot, int flags, int fd, int64_t offset);
int munmap(void *address, size_t length);
int mprotect(void *address, size_t length, int prot);
int madvise(void *address, size_t length, int advice);
int klogctl(int type, char *buffer, int length);
int fallocate(int fd, int mode, int64_t offset, int64_t length);
"""


@functools.lru_cache(maxsize=1)
def _libc() -> tuple[cffi.FFI, Any]:
    ffi = cffi.FFI()
    ffi.cdef(_LIBC)
    return ffi, ffi.dlopen(None)


class LinuxSystem:
    """The real kernel of this machine."""

    def __init__(self) -> None:
        self._ffi, self._c = _libc()

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: Argument) -> int:
        if isinstance(argument, int):
            return self._ioctl(fd, request, self._ffi.cast("void *", argument))
        # Given back also when the call fails: nobody can release a view that a failure's traceback holds on to, and before
        # Python 3.11.8 and 3.12.2 the garbage collector may crash on it (python/cpython issue 77894).
        with self._ffi.from_buffer(argument, require_writable=True) as pointer:
            return self._ioctl(fd, request, pointer)

    def _ioctl(self, fd: int, request: int, pointer: Any) -> int:
        while True:
            result = int(self._c.ioctl(fd, request, pointer))
            if result >= 0:
                return result
            if self._ffi.errno != errno.EINTR:
                raise _os_error(self._ffi.errno)

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int = 0, address: int = 0) -> int:
        if fd == -1:
            flags |= MAP_ANONYMOUS
        # An mmap offset is a 64-bit cookie to a GPU driver: the top bit is as good as any other, so it wraps to signed.
        signed = offset - (1 << 64) if offset >> 63 else offset
        pointer = self._c.mmap(self._ffi.cast("void *", address), length, prot, flags, fd, signed)
        mapped = int(self._ffi.cast("uintptr_t", pointer))
        if mapped == (1 << 64) - 1:
            raise _os_error(self._ffi.errno)
        return mapped

    def munmap(self, address: int, length: int) -> None:
        self._check(self._c.munmap(self._ffi.cast("void *", address), length))

    def mprotect(self, address: int, length: int, prot: int) -> None:
        self._check(self._c.mprotect(self._ffi.cast("void *", address), length, prot))

    def madvise(self, address: int, length: int, advice: int) -> None:
        self._check(self._c.madvise(self._ffi.cast("void *", address), length, advice))

    def read_bytes(self, path: str, limit: int = TEXT_LIMIT) -> bytes:
        with open(path, "rb") as file:
            return file.read(limit)

    def read_text(self, path: str, limit: int = TEXT_LIMIT) -> str:
        return self.read_bytes(path, limit).decode("utf-8", "replace")

    def list_dir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def stat(self, path: str) -> FileStat:
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return FileStat(exists=False)
        return FileStat(True, found.st_mode, found.st_uid, found.st_gid,
                        (os.major(found.st_rdev), os.minor(found.st_rdev)))

    def access(self, path: str, mode: int) -> bool:
        return os.access(path, mode, effective_ids=True)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def host(self) -> Host:
        name = os.uname()
        uid = os.geteuid()
        try:
            user = pwd.getpwuid(uid).pw_name
        except KeyError:  # containers run under numbers that no file names
            user = str(uid)
        return Host(user, uid, tuple(sorted({os.getegid(), *os.getgroups()})), name.sysname, name.release, name.machine,
                    tuple(sorted(os.sched_getaffinity(0))), resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
                    resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def kernel_log(self) -> list[LogLine]:
        # /dev/kmsg keeps the records apart, but distributions close it more often than syslog(2).
        try:
            return self._kmsg()
        except OSError:
            return self._klogctl()

    def _kmsg(self) -> list[LogLine]:
        lines: list[LogLine] = []
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while True:
                try:
                    record = os.read(fd, 8192)
                except BlockingIOError:
                    return lines
                except BrokenPipeError:  # this record was overwritten while we read: the next read gives the oldest left
                    continue
                if not record:
                    return lines
                head, _, body = record.decode("utf-8", "replace").partition(";")
                priority, _, microseconds = head.split(",")[:3]
                # Lines after the first hold KEY=value pairs for programs, each behind one space.
                lines.append(LogLine(int(priority) & 7, int(microseconds) / 1e6, body.partition("\n")[0]))
        finally:
            os.close(fd)

    def _klogctl(self) -> list[LogLine]:
        read_all, size_of_buffer = 3, 10
        size = self._check(self._c.klogctl(size_of_buffer, self._ffi.NULL, 0))
        buffer = self._ffi.new("char[]", size)
        length = self._check(self._c.klogctl(read_all, buffer, size))
        return parse_log(self._ffi.buffer(buffer, length)[:].decode("utf-8", "replace"))

    def _check(self, result: int) -> int:
        if result < 0:
            raise _os_error(self._ffi.errno)
        return result


_LOG_LINE = re.compile(r"(?:<(?P<level>\d+)>)?\[\s*(?P<seconds>\d+\.\d+)\](?:\[[^]]*\])? ?(?P<text>.*)")


def parse_log(text: str) -> list[LogLine]:
    """The lines of syslog(2) or of `dmesg --raw`; a line without a time stamp takes that of the line before it."""
    lines: list[LogLine] = []
    seconds, level = 0.0, 6
    for row in text.splitlines():
        match = _LOG_LINE.fullmatch(row)
        if match:
            seconds, level = float(match["seconds"]), int(match["level"] or 6) & 7
        lines.append(LogLine(level, seconds, match["text"] if match else row))
    return lines


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
