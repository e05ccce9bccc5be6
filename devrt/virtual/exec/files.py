"""The files of virtual drivers as real ones in a folder, and which paths lead there.

A device node is a file of pages: every open of it is a fresh description of that file, whose position is a number of its own.
So a descriptor of any process, duplicated and inherited as it may be, says in /proc which open it comes from.
"""

from __future__ import annotations

import errno
import itertools
import os
import posixpath
import re
import shutil
import stat as stat_bits
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devrt.virtual.errors import fail
from devrt.virtual.exec.syscalls import Status
from devrt.virtual.system import Driver
from devrt.virtual.tree import Tree, write_tree

_FIRST_POSITION = 1 << 40  # bytes: beyond every file of pages
_MODULES = "/proc/modules"


@dataclass(frozen=True)
class Spot:
    """A path that belongs to a driver: as it was named, and with the links it was asked to follow behind it."""

    driver: Driver
    path: str
    real: str


@dataclass(frozen=True)
class Opened:
    """One open of a node: `what` the driver made of it."""

    driver: Driver
    path: str
    what: object


class VirtualFiles:
    def __init__(self, drivers: Sequence[Driver]) -> None:
        self.drivers = tuple(drivers)
        self.root = tempfile.mkdtemp(prefix="devrt-virtual-")
        for driver in self.drivers:
            driver.tree.files[_MODULES] = _modules(driver.tree)
            driver.tree.index()
            write_tree(driver.tree, self.root)
            for node in driver.tree.nodes:  # for whoever lists the folder
                place = Path(self.root + node)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
        self._positions = itertools.count(_FIRST_POSITION)
        self._opened: dict[int, Opened] = {}  # by position
        self._inodes: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    # -----------------------------------------------------------------------------------------------------------------
    # Paths

    def find(self, path: str, follow: bool = True) -> Spot | None:
        """Whose an absolute path is; None: the host's. Raises OSError: ELOOP."""
        if path.startswith(self.root + "/"):  # below a folder that was opened
            path = path[len(self.root):]
        path = posixpath.normpath(path)
        folder, name = posixpath.split(path)
        for driver in self.drivers:
            tree = driver.tree
            real = tree.resolve(path) if follow else posixpath.join(tree.resolve(folder), name)
            if (real in tree.files or real in tree.nodes or real in tree.links
                    or any(real == top or real.startswith(f"{top}/") for top in driver.owned)):
                return Spot(driver, path, real)
        return None

    def place(self, spot: Spot) -> str:
        """Where the file lies, up to date."""
        content = spot.driver.tree.files.get(spot.real)
        if callable(content):
            Path(self.root + spot.real).write_bytes(spot.driver.tree.read(spot.real))
        return self.root + spot.real

    def status(self, spot: Spot) -> Status:
        """Raises OSError: ENOENT, ENOTDIR."""
        status = Status.of(os.lstat(self.place(spot)))
        rdev = spot.driver.tree.nodes.get(spot.real)
        return status.as_node(rdev) if rdev is not None else status

    def access(self, spot: Spot, mode: int) -> None:
        """Raises OSError: what is not there (ENOENT), or not for users to write (EACCES)."""
        kind = self.status(spot).mode
        if (mode & os.W_OK and not stat_bits.S_ISCHR(kind)) or (mode & os.X_OK and not stat_bits.S_ISDIR(kind)):
            fail(errno.EACCES)

    def link(self, spot: Spot) -> str:
        """What a link says. Raises OSError: ENOENT, EINVAL for what is none."""
        return os.readlink(self.root + spot.real)

    def open_file(self, spot: Spot, flags: int) -> int:
        """A descriptor here of a file or folder that is no node. Raises OSError."""
        there = spot.real in spot.driver.tree.files or spot.real in spot.driver.tree.children
        if flags & os.O_ACCMODE != os.O_RDONLY and there:
            fail(errno.EISDIR if spot.real in spot.driver.tree.children else errno.EACCES)
        if flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL and there:
            fail(errno.EEXIST)
        return os.open(self.place(spot), flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC) | os.O_CLOEXEC)

    # -----------------------------------------------------------------------------------------------------------------
    # Descriptors

    def describe(self, file: int, opened: Opened) -> tuple[int, int]:
        """(descriptor, position): a fresh description of the open file `file` that stands for `opened`."""
        with self._lock:
            position = next(self._positions)
            self._opened[position] = opened
        return self.describe_again(file, position), position

    def describe_again(self, file: int, position: int) -> int:
        """A description of another file that stands for what the one at `position` stands for."""
        fd = os.open(f"/proc/self/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
        found = os.fstat(fd)
        os.lseek(fd, position, os.SEEK_SET)
        with self._lock:
            self._inodes.add((found.st_dev, found.st_ino))
        return fd

    def behind(self, process: int, fd: int) -> Opened | None:
        """What a descriptor of a process or thread stands for, None for anything else. Raises OSError: EBADF."""
        position = self.position(process, fd)
        return self._opened.get(position) if position is not None else None

    def position(self, process: int, fd: int) -> int | None:
        try:
            found = os.stat(f"/proc/{process}/fd/{fd}")
            if (found.st_dev, found.st_ino) not in self._inodes:
                return None
            text = Path(f"/proc/{process}/fdinfo/{fd}").read_text()
        except FileNotFoundError:
            fail(errno.EBADF)
        match = re.match(r"pos:\s*(\d+)", text)
        return int(match[1]) if match else None

    def release(self, position: int) -> None:
        """No process has this open any more."""
        with self._lock:
            opened = self._opened.pop(position, None)
        if opened is not None:
            opened.driver.release(opened.what)


def _modules(tree: Tree) -> str:
    """The host's modules and those that the tree says are loaded: name, bytes, users, by whom, state, address (proc(5))."""
    place = Path(_MODULES)
    names = [match[1] for path in tree.files if (match := re.fullmatch(r"/sys/module/(\w+)/initstate", path))]
    lines = "".join(f"{name} {16 << 20} 0 - Live 0x0000000000000000\n" for name in names)
    return (place.read_text() if place.exists() else "") + lines
