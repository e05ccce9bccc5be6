"""Answers the calls of supervised processes: what concerns virtual devices from their drivers, everything else the kernel.

One thread takes every call; a wait gets a thread of its own. A process's state in the drivers goes with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from devrt.ioctl.errors import errno_name
from devrt.ioctl.system import LinuxSystem
from devrt.virtual.errors import fail
from devrt.virtual.exec.files import Opened, Spot, VirtualFiles
from devrt.virtual.exec.ioctls import WAITS, Request, carry_out, say
from devrt.virtual.exec.process import Descriptors, Supervised, absolute, process_of, signalled
from devrt.virtual.exec.seccomp import Listener
from devrt.virtual.exec.syscalls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    Arch,
    Status,
    pack_stat,
    pack_statx,
)

# What a handler says for "let the kernel do it".
_GO_ON = None


@dataclass(frozen=True)
class Asked:
    """One call: its notification, the thread that made it, its arguments as the kernel has them in registers."""

    number: int
    thread: int
    args: tuple[int, ...]

    def int(self, index: int) -> int:
        """An argument as C's int."""
        value = self.args[index] & 0xFFFFFFFF
        return value - (1 << 32) if value >> 31 else value


@contextlib.contextmanager
def _whoever_asked() -> Iterator[None]:
    """An answer that nobody waits for any more is dropped: the thread is gone (ENOENT), or all are (EBADF)."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EBADF):
            raise


class Supervisor:
    """Of the child `pid` and all that comes from it."""

    def __init__(self, pid: int, listener: int, arch: Arch, files: VirtualFiles, trace: bool = False) -> None:
        self._first, self._status = pid, -1  # no wait status yet
        self._listener = Listener(LinuxSystem(), listener)
        self._arch, self._files, self._trace = arch, files, trace
        self._logged, self._log_lock = 0, threading.Lock()
        self._names = {number: name for name, number in arch.numbers.items()}
        self._processes: dict[int, Supervised] = {}
        self._poll = select.poll()
        self._adopt(pid)
        self._handlers: dict[str, Callable[[Asked], int | None]] = {
            "open": lambda asked: self._open(asked, AT_FDCWD, 0, asked.int(1)),
            "openat": lambda asked: self._open(asked, asked.int(0), 1, asked.int(2)),
            "openat2": self._openat2,
            "stat": lambda asked: self._stat(asked, AT_FDCWD, 0, 0, 1),
            "lstat": lambda asked: self._stat(asked, AT_FDCWD, 0, AT_SYMLINK_NOFOLLOW, 1),
            "newfstatat": lambda asked: self._stat(asked, asked.int(0), 1, asked.int(3), 2),
            "statx": lambda asked: self._stat(asked, asked.int(0), 1, asked.int(2), 4, extended=True),
            "fstat": lambda asked: self._fstat(asked, asked.int(0), asked.args[1], extended=False),
            "access": lambda asked: self._access(asked, AT_FDCWD, 0, asked.int(1), 0),
            "faccessat": lambda asked: self._access(asked, asked.int(0), 1, asked.int(2), 0),
            "faccessat2": lambda asked: self._access(asked, asked.int(0), 1, asked.int(2), asked.int(3)),
            "readlink": lambda asked: self._readlink(asked, AT_FDCWD, 0),
            "readlinkat": lambda asked: self._readlink(asked, asked.int(0), 1),
            "getxattr": lambda asked: self._xattr(asked, True, errno.ENODATA),
            "lgetxattr": lambda asked: self._xattr(asked, False, errno.ENODATA),
            "listxattr": lambda asked: self._xattr(asked, True, 0),
            "llistxattr": lambda asked: self._xattr(asked, False, 0),
            "ioctl": self._ioctl,
        }

    def run(self) -> int:
        """Until all of them have ended; returns the child's wait status."""
        self._poll.register(self._listener.fd, select.POLLIN)
        try:
            while True:
                for fd, event in self._poll.poll():
                    if fd != self._listener.fd:
                        self._ended(fd)
                    elif event & select.POLLIN:
                        self._take()
                    elif self._status < 0:  # nobody is left who could ask
                        return os.waitpid(self._first, 0)[1]
                    else:
                        return self._status
        finally:
            for process in self._processes.values():
                process.release(self._files)
                process.close()
            self._listener.close()

    def _take(self) -> None:
        try:
            notification = self._listener.receive()
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        data = notification.data
        asked = Asked(notification.id, notification.pid, tuple(data.args))
        handler = self._handlers[self._names[data.nr]]
        if data.nr == self._arch.numbers["ioctl"] and asked.args[1] & 0xFFFFFFFF in WAITS:
            threading.Thread(target=self._answer, args=(asked, handler), daemon=True).start()
        else:
            self._answer(asked, handler)

    def _answer(self, asked: Asked, handler: Callable[[Asked], int | None]) -> None:
        with _whoever_asked():
            try:
                value = handler(asked)
            except OSError as error:
                self._listener.refuse(asked.number, error.errno or errno.EIO)
            except Exception:  # a defect here must not leave the program waiting for ever
                self._listener.refuse(asked.number, errno.EIO)
                raise
            else:
                if value is None:
                    self._listener.let_go_on(asked.number)
                else:
                    self._listener.answer(asked.number, value)
            finally:
                self._tell_log()

    def _process(self, asked: Asked) -> Supervised:
        pid = process_of(asked.thread)
        process = self._processes.get(pid)
        if process is None:
            process = self._adopt(pid)
        return process

    def _adopt(self, pid: int) -> Supervised:
        process = self._processes[pid] = Supervised(pid)
        self._poll.register(process.pidfd, select.POLLIN)
        return process

    def _ended(self, pidfd: int) -> None:
        process = next(p for p in self._processes.values() if p.pidfd == pidfd)
        self._poll.unregister(pidfd)
        del self._processes[process.pid]
        process.release(self._files)
        process.close()
        if process.pid == self._first:  # its filter counts as used for as long as nobody asks what became of it
            _, self._status = os.waitpid(process.pid, 0)

    # -----------------------------------------------------------------------------------------------------------------
    # Paths. `index` is the argument that holds the path's address.

    def _spot(self, asked: Asked, directory: int, index: int, follow: bool) -> Spot | None:
        path = self._process(asked).string(asked.args[index])
        return self._files.find(absolute(asked.thread, directory, path), follow) if path else None

    def _open(self, asked: Asked, directory: int, index: int, flags: int) -> int | None:
        spot = self._spot(asked, directory, index, not flags & os.O_NOFOLLOW)
        if spot is None:
            return _GO_ON
        try:
            fd = self._open_spot(asked, spot, flags)
        except OSError as error:
            self._say(asked, f"open({spot.path}) = {errno_name(error.errno or 0)}")
            raise
        if spot.real in spot.driver.tree.nodes:
            self._say(asked, f"open({spot.path}) = {fd}")
        return fd

    def _open_spot(self, asked: Asked, spot: Spot, flags: int) -> int:
        if spot.real not in spot.driver.tree.nodes:
            here = self._files.open_file(spot, flags)
        else:
            process = self._process(asked)
            process.sweep(self._files)
            what, file = spot.driver.open(self._descriptors(process, asked, spot.driver).client(), spot.real)
            here, position = self._files.describe(file, Opened(spot.driver, spot.real, what))
            process.positions.add(position)
        try:
            return self._listener.add_fd(asked.number, here, flags)
        finally:
            os.close(here)

    def _openat2(self, asked: Asked) -> int | None:
        how = self._process(asked).memory.read(asked.args[2], 8)  # struct open_how begins with its flags
        return self._open(asked, asked.int(0), 1, struct.unpack("<Q", how)[0])

    def _stat(self, asked: Asked, directory: int, index: int, flags: int, out: int, extended: bool = False) -> int | None:
        path = self._process(asked).string(asked.args[index]) if asked.args[index] else ""
        if not path:
            return self._fstat(asked, directory, asked.args[out], extended) if flags & AT_EMPTY_PATH else _GO_ON
        spot = self._files.find(absolute(asked.thread, directory, path), not flags & AT_SYMLINK_NOFOLLOW)
        return _GO_ON if spot is None else self._tell(asked, self._files.status(spot), asked.args[out], extended)

    def _fstat(self, asked: Asked, fd: int, out: int, extended: bool) -> int | None:
        opened = self._files.behind(asked.thread, fd) if fd >= 0 else None
        spot = self._files.find(opened.path) if opened is not None and opened.path else None
        return _GO_ON if spot is None else self._tell(asked, self._files.status(spot), out, extended)

    def _tell(self, asked: Asked, status: Status, out: int, extended: bool) -> int:
        self._process(asked).memory.write(out, pack_statx(status) if extended else pack_stat(self._arch, status))
        return 0

    def _access(self, asked: Asked, directory: int, index: int, mode: int, flags: int) -> int | None:
        spot = self._spot(asked, directory, index, not flags & AT_SYMLINK_NOFOLLOW)
        if spot is None:
            return _GO_ON
        self._files.access(spot, mode)
        return 0

    def _readlink(self, asked: Asked, directory: int, index: int) -> int | None:
        spot = self._spot(asked, directory, index, follow=False)
        if spot is None:
            return _GO_ON
        size = asked.int(index + 2)
        if size <= 0:
            fail(errno.EINVAL)
        text = os.fsencode(self._files.link(spot))[:size]
        self._process(asked).memory.write(asked.args[index + 1], text)
        return len(text)

    def _xattr(self, asked: Asked, follow: bool, error: int) -> int | None:
        """Files of devices have no extended attributes."""
        spot = self._spot(asked, AT_FDCWD, 0, follow)
        if spot is None:
            return _GO_ON
        self._files.status(spot)
        return fail(error) if error else 0

    # -----------------------------------------------------------------------------------------------------------------

    def _ioctl(self, asked: Asked) -> int | None:
        fd = asked.int(0)
        opened = self._files.behind(asked.thread, fd) if fd >= 0 else None
        if opened is None:
            return _GO_ON
        client = self._descriptors(self._process(asked), asked, opened.driver).client()
        request = Request(client, opened, asked.args[1] & 0xFFFFFFFF, asked.args[2], lambda: self._wanted(asked))
        return carry_out(request, self._trace)

    def _wanted(self, asked: Asked) -> bool:
        return self._listener.valid(asked.number) and not signalled(asked.thread)

    def _descriptors(self, process: Supervised, asked: Asked, driver: Any) -> Descriptors:
        return Descriptors(process, self._files, self._listener, asked.number, driver)

    def _tell_log(self) -> None:
        """What came to the virtual machine's kernel log since."""
        if self._trace:
            with self._log_lock:
                lines = [line.text for driver in self._files.drivers for line in driver.kernel_log()]
                for text in lines[self._logged:]:
                    say(0, text)
                self._logged = len(lines)

    def _say(self, asked: Asked, text: str) -> None:
        if self._trace:
            say(asked.thread, text)
