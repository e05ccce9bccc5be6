"""A machine with virtual devices as a System: paths of theirs are answered by their drivers, everything else by the host.

    system = open_system(parse_uri("virtual:amd/gfx1100"))

Descriptors are real ones, duplicates of the file of pages behind a node, so they are counted, closed and inherited as any.
A child of fork may not use its parent's: every call says EBADF there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat as stat_bits
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from devrt.device import URI, InvalidArgument, Unsupported
from devrt.ioctl.system import MAP_FIXED, TEXT_LIMIT, Argument, FileStat, Host, LinuxSystem, LogLine, System
from devrt.ioctl.uapi import Uapi
from devrt.virtual.client import Client, Memory, Place
from devrt.virtual.errors import fail
from devrt.virtual.faults import Faults, driver_version, instances, parse_query
from devrt.virtual.tree import Tree

_NODE_MODE, _FILE_MODE, _FOLDER_MODE = stat_bits.S_IFCHR | 0o666, stat_bits.S_IFREG | 0o444, stat_bits.S_IFDIR | 0o755


class Driver(Protocol):
    """A virtual driver. `tree` are its files and nodes; below the folders of `owned` the host is not asked. `uapis`: what its
    nodes answer."""

    tree: Tree
    owned: tuple[str, ...]
    uapis: tuple[Uapi, ...]

    def open(self, client: Client, path: str) -> tuple[object, int]:
        """(what a descriptor of the node is from now on, the file that it must be a duplicate of)"""
        ...

    def release(self, what: object) -> None: ...
    def mmap(self, what: object, length: int, offset: int, prot: int) -> Place: ...
    def ioctl(self, client: Client, what: object, request: int, argument: Argument) -> int: ...
    def invalidate(self, client: Client, address: int, nbytes: int) -> None:
        """These pages of the client are about to go away."""
        ...

    def kernel_log(self) -> list[LogLine]: ...
    def close(self) -> None: ...


class OpenFiles:
    """The descriptors of this process that a driver gave out. One that was closed behind our back, so that its number is free or
    something else now, is told by its inode, and released."""

    def __init__(self, release: Callable[[object], None]) -> None:
        self._release = release
        self._known: dict[int, tuple[object, tuple[int, int]]] = {}
        self._lock = threading.RLock()  # never held while a driver is called, but a finalizer may run at any time

    def find(self, fd: int) -> object | None:
        here = _inode(fd)
        with self._lock:
            what, inode = self._known.get(fd, (None, here))
            if inode == here:
                return what if here is not None else fail(errno.EBADF)
            stale = self._known.pop(fd, None)
        if stale is not None:
            self._release(stale[0])
        return None if here is not None else fail(errno.EBADF)

    def knows(self, fd: int) -> bool:
        """As `find`, of a number only, and without waiting for anybody."""
        known = self._known.get(fd)
        return known is not None and known[1] == _inode(fd)

    def install(self, fd: int, what: object) -> int:
        with self._lock:
            before = self._known.pop(fd, None)
            self._known[fd] = what, _inode(fd) or fail(errno.EBADF)
        if before is not None:
            self._release(before[0])
        return fd

    def stand_for(self, fd: int, file: int) -> None:
        """Nothing is to be done: VirtualSystem.mmap asks the driver."""

    def close(self, fd: int) -> bool:
        """Close one of these; False where it is none."""
        if self.find(fd) is None:
            return False
        with self._lock:
            what, _ = self._known.pop(fd, (None, None))
            if what is None:  # another thread was faster
                return False
            os.close(fd)
        self._release(what)
        return True

    def close_all(self) -> None:
        for fd in list(self._known):
            with contextlib.suppress(OSError):
                self.close(fd)


def _inode(fd: int) -> tuple[int, int] | None:
    """What tells one file from another; None where the number is no descriptor."""
    try:
        found = os.fstat(fd)
    except (OSError, OverflowError):
        return None
    return found.st_dev, found.st_ino


class VirtualSystem:
    """A System. `faults` of the machine may be added to while it runs (devrt.virtual.faults.inject)."""

    def __init__(self, host: System, drivers: Iterable[Driver], faults: Faults | None = None) -> None:
        self._host, self._drivers, self.faults = host, tuple(drivers), faults or Faults()
        self._pid = os.getpid()
        self._files = {driver: OpenFiles(driver.release) for driver in self._drivers}
        self._clients = {driver: Client(self._pid, files, Memory()) for driver, files in self._files.items()}
        self._on_close: list[Callable[[], None]] = []
        self.closed = False

    @property
    def drivers(self) -> tuple[Driver, ...]:
        return self._drivers

    def shut_down(self) -> None:
        """Close every descriptor that is left, and the drivers. Mappings stay with whoever made them."""
        if self.closed:
            return
        self.closed = True
        for files in self._files.values():
            files.close_all()
        for driver in self._drivers:
            driver.close()
        for act in self._on_close:
            act()

    def when_closed(self, act: Callable[[], None]) -> None:
        self._on_close.append(act)

    # -----------------------------------------------------------------------------------------------------------------
    # Descriptors and memory

    def open(self, path: str, flags: int) -> int:
        driver, real = self._route(path)
        if driver is None:
            return self._host.open(path, flags)
        if os.getpid() != self._pid or self.closed:
            fail(errno.ENODEV, path)
        if not self.stat(path).exists:
            fail(errno.ENOENT, path)
        if real in driver.tree.nodes:
            what, file = driver.open(self._clients[driver], real)
            return self._files[driver].install(os.dup(file), what)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            fail(errno.EACCES, path)
        return _text_file(driver.tree.read(real))

    def close(self, fd: int) -> None:
        if os.getpid() != self._pid or not any(files.close(fd) for files in self._files.values()):
            self._host.close(fd)

    def ioctl(self, fd: int, request: int, argument: Argument) -> int:
        driver, what = self._find(fd)
        if driver is None:
            return self._host.ioctl(fd, request, argument)
        return driver.ioctl(self._clients[driver], what, request, argument)

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int = 0, address: int = 0) -> int:
        driver, what = self._find(fd) if fd >= 0 else (None, None)
        place = Place(fd, offset)
        if driver is not None:
            place = driver.mmap(what, length, offset, prot)
        if flags & MAP_FIXED:
            self._invalidate(address, length)
        return self._host.mmap(place.fd, length, prot, flags, place.offset, address)

    def munmap(self, address: int, length: int) -> None:
        self._invalidate(address, length)
        self._host.munmap(address, length)

    def mprotect(self, address: int, length: int, prot: int) -> None:
        self._host.mprotect(address, length, prot)

    def madvise(self, address: int, length: int, advice: int) -> None:
        self._host.madvise(address, length, advice)

    def _find(self, fd: int) -> tuple[Driver | None, object | None]:
        """Whose descriptor it is, and what it stands for there; (None, None) for the host's. Raises OSError: EBADF."""
        if os.getpid() != self._pid:
            if any(files.knows(fd) for files in self._files.values()):  # only the parent may use it
                fail(errno.EBADF)
            return None, None
        for driver, files in self._files.items():
            what = files.find(fd)
            if what is not None:
                return driver, what
        return None, None

    def _invalidate(self, address: int, length: int) -> None:
        if os.getpid() == self._pid and not self.closed:
            for driver in self._drivers:
                driver.invalidate(self._clients[driver], address, length)

    # -----------------------------------------------------------------------------------------------------------------
    # Files

    def _route(self, path: str) -> tuple[Driver | None, str]:
        """The driver that a path belongs to, and the path with the driver's links followed; None for the host's."""
        if path.startswith("/"):
            for driver in self._drivers:
                real = driver.tree.resolve(path)
                owned = any(real == folder or real.startswith(f"{folder}/") for folder in driver.owned)
                if owned or real in driver.tree.files or real in driver.tree.nodes:
                    return driver, real
        return None, path

    def read_bytes(self, path: str, limit: int = TEXT_LIMIT) -> bytes:
        driver, real = self._route(path)
        return self._host.read_bytes(path, limit) if driver is None else driver.tree.read(real)[:limit]

    def read_text(self, path: str, limit: int = TEXT_LIMIT) -> str:
        return self.read_bytes(path, limit).decode("utf-8", "replace")

    def list_dir(self, path: str) -> list[str]:
        driver, real = self._route(path)
        if driver is not None:
            names = driver.tree.children.get(real)
            if names is None:
                fail(errno.ENOTDIR if real in driver.tree.files or real in driver.tree.nodes else errno.ENOENT, path)
            return sorted(names)
        ours: set[str] = set()  # a folder above one of ours, as /sys/class
        for one in self._drivers:
            ours |= one.tree.children.get(posixpath.normpath(path), set())
        try:
            return sorted({*self._host.list_dir(path), *ours})
        except FileNotFoundError:
            if not ours:
                raise
            return sorted(ours)

    def stat(self, path: str) -> FileStat:
        driver, real = self._route(path)
        if driver is None:
            found = self._host.stat(path)
            folder = any(posixpath.normpath(path) in one.tree.children for one in self._drivers)
            return FileStat(True, _FOLDER_MODE) if folder and not found.exists else found
        if real in driver.tree.nodes:
            return FileStat(True, _NODE_MODE, rdev=driver.tree.nodes[real])
        if real in driver.tree.files:
            return FileStat(True, _FILE_MODE)
        return FileStat(True, _FOLDER_MODE) if real in driver.tree.children else FileStat(False)

    def access(self, path: str, mode: int) -> bool:
        driver, _ = self._route(path)
        if driver is None:
            return self._host.access(path, mode)
        found = self.stat(path)
        writable = stat_bits.S_ISCHR(found.mode)
        return found.exists and not (mode & os.W_OK and not writable)

    def readlink(self, path: str) -> str:
        folder, name = posixpath.split(posixpath.normpath(path))
        for driver in self._drivers:
            link = posixpath.join(driver.tree.resolve(folder), name)
            if link in driver.tree.links:
                return driver.tree.links[link]
        if self._route(path)[0] is not None:
            fail(errno.EINVAL if self.stat(path).exists else errno.ENOENT, path)
        return self._host.readlink(path)

    def host(self) -> Host:
        return self._host.host()

    def kernel_log(self) -> list[LogLine]:
        """The host's lines, where they may be read, and those of the virtual drivers."""
        try:
            lines = self._host.kernel_log()
        except OSError:
            lines = []
        lines += [line for driver in self._drivers for line in driver.kernel_log()]
        return sorted(lines, key=lambda line: line.seconds)


def _text_file(data: bytes) -> int:
    """A descriptor that reads as `data`."""
    fd = os.memfd_create("sysfs", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


# ---------------------------------------------------------------------------------------------------------------------
# The virtual systems of this process

_open: dict[tuple[str, str, str], VirtualSystem] = {}
_lock = threading.RLock()


def open_system(uri: URI) -> VirtualSystem:
    """The virtual machine of a URI, the same one for every caller until it is shut down. Raises DeviceNotFound for a topology
    that does not exist, InvalidArgument for a query that says nothing, Unsupported for a vendor without virtual devices."""
    key = uri.vendor, uri.topology, uri.query
    with _lock:
        found = _open.get(key)
        if found is None or found.closed:
            found = _open[key] = make_system(uri)
            found.when_closed(lambda: _forget(key))
        return found


def make_system(uri: URI, host: System | None = None) -> VirtualSystem:
    """A new virtual machine that nobody shares. Raises as `open_system`."""
    if uri.vendor not in ("amd", "nvidia"):
        raise Unsupported(f"{uri}: this version of devrt has no virtual {uri.vendor} devices",
                          remedy="use virtual:amd/gfx1100 or virtual:nvidia/sm_90")
    faults, sizes = parse_query(uri.query)
    version, split = driver_version(uri.query), instances(uri.query)
    known = ("vram", "gtt") if uri.vendor == "amd" else ("vram", "bar1")
    other = [name for name in sizes if name not in known]
    if other or uri.vendor == "amd" and (version or split is not None):
        lacks = ", ".join(other) or ("another driver" if version else "MIG mode")
        raise InvalidArgument(f"{uri}: no virtual {uri.vendor} device has {lacks}",
                              remedy=f"sizes it has: {', '.join(known)}")
    real = host or LinuxSystem()
    driver: Driver
    if uri.vendor == "amd":
        from devrt.virtual.amd import driver as amd
        from devrt.virtual.amd.machine import parse_topology as amd_machine
        driver = amd.AmdDriver(amd_machine(uri.topology, **sizes), real, faults)
    else:
        from devrt.virtual.nvidia import driver as nvidia
        from devrt.virtual.nvidia.machine import parse_topology as nvidia_machine
        driver = nvidia.NvidiaDriver(nvidia_machine(uri.topology, driver=version, instances=split, **sizes), real, faults)
    return VirtualSystem(real, [driver], faults)


def _forget(key: tuple[str, str, str]) -> None:
    with _lock:
        _open.pop(key, None)


def _forked() -> None:
    global _lock
    _lock = threading.RLock()
    _open.clear()


os.register_at_fork(after_in_child=_forked)
