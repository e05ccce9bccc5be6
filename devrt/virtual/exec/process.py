"""A process under supervision: its paths, its memory, and the descriptors of virtual devices it has."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from devrt.virtual.client import Client, Memory
from devrt.virtual.errors import fail
from devrt.virtual.exec.files import Opened, VirtualFiles
from devrt.virtual.exec.seccomp import Listener
from devrt.virtual.exec.syscalls import AT_FDCWD
from devrt.virtual.system import Driver

PATH_MAX = 4096  # linux/limits.h
_PAGE = 4096


class Supervised:
    """`pid` of a process, not of a thread. Ends when its `pidfd` becomes readable."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.memory = Memory(pid)
        self.positions: set[int] = set()  # of the opens it made (VirtualFiles)

    def close(self) -> None:
        os.close(self.pidfd)

    def string(self, address: int) -> str:
        """The path at an address. Raises OSError: EFAULT, ENAMETOOLONG."""
        data = b""
        while len(data) < PATH_MAX:
            piece = self.memory.read(address + len(data), _PAGE - (address + len(data)) % _PAGE)
            text, end, _ = piece.partition(b"\0")
            data += text
            if end:
                return os.fsdecode(data)
        fail(errno.ENAMETOOLONG)

    def sweep(self, files: VirtualFiles) -> None:
        """Release what it has closed since."""
        held = set()
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                held.add(files.position(self.pid, int(name)))
        for position in self.positions - held:
            self.positions.discard(position)
            files.release(position)

    def release(self, files: VirtualFiles) -> None:
        """It ended."""
        for position in self.positions:
            files.release(position)
        self.positions.clear()


def process_of(thread: int) -> int:
    """The process of a thread. Raises OSError where it is gone."""
    match = re.search(r"^Tgid:\s*(\d+)", Path(f"/proc/{thread}/status").read_text(), re.MULTILINE)
    return int(match[1]) if match else fail(errno.ESRCH)


def signalled(thread: int) -> bool:
    """Whether a signal waits for the thread that it neither blocks nor ignores."""
    try:
        text = Path(f"/proc/{thread}/status").read_text()
    except OSError:
        return True
    masks = {name: int(value, 16) for name, value in re.findall(r"^(\w+):\s*([0-9a-f]{16})$", text, re.MULTILINE)}
    ignored = masks["SigIgn"] | (1 << signal.SIGCHLD - 1) & ~masks["SigCgt"]
    return bool((masks["SigPnd"] | masks["ShdPnd"]) & ~masks["SigBlk"] & ~ignored)


def absolute(thread: int, directory: int, path: str) -> str:
    """`path` of a thread, where it is relative, from its folder `directory`. Raises OSError: EBADF."""
    if path.startswith("/"):
        return path
    try:
        base = os.readlink(f"/proc/{thread}/cwd" if directory == AT_FDCWD else f"/proc/{thread}/fd/{directory}")
    except FileNotFoundError:
        fail(errno.EBADF)
    return f"{base}/{path}"


@dataclass(frozen=True)
class Descriptors:
    """devrt.virtual.client.Files of a process while one of its calls is answered."""

    process: Supervised
    files: VirtualFiles
    listener: Listener
    notification: int
    driver: Driver

    def find(self, fd: int) -> object | None:
        if not 0 <= fd < 1 << 31:
            fail(errno.EBADF)
        opened = self.files.behind(self.process.pid, fd)
        return opened.what if opened is not None else None

    def install(self, fd: int, what: object) -> int:
        try:
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:"):  # a pipe, which no call leads back from
                return self.listener.add_fd(self.notification, fd, os.O_CLOEXEC)
            own, position = self.files.describe(fd, Opened(self.driver, "", what))
            self.process.positions.add(position)
            try:
                return self.listener.add_fd(self.notification, own, os.O_CLOEXEC)
            finally:
                os.close(own)
        finally:
            os.close(fd)

    def stand_for(self, fd: int, file: int) -> None:
        position = self.files.position(self.process.pid, fd)
        assert position is not None  # the driver found it
        text = Path(f"/proc/{self.process.pid}/fdinfo/{fd}").read_text()
        flags = re.search(r"^flags:\s*([0-7]+)", text, re.MULTILINE)
        own = self.files.describe_again(file, position)
        try:
            self.listener.add_fd(self.notification, own, int(flags[1], 8) if flags else 0, fd)
        finally:
            os.close(own)

    def client(self) -> Client:
        return Client(self.process.pid, self, self.process.memory, foreign=True)
