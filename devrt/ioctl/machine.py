"""A System that serves a machine described in a YAML file: its files, links, device nodes, user and kernel log.

    host:    {user: ada, uid: 1000, groups: [1000], release: 6.1.0-18-amd64}     every field of Host has a default
    files:   {/proc/cmdline: "quiet"}                        directories follow from paths; an int or float is its text,
                                                             and {hex: "7800 0103"} is bytes
    links:   {/sys/bus/pci/devices/0000:03:00.0/driver: ../../../bus/pci/drivers/amdgpu}
    nodes:   {/dev/kfd: {mode: 0o660, uid: 0, gid: 105, rdev: [235, 0]}}
    refused: {/sys/kernel/iommu_groups: EACCES}              what may not be read, with everything below it
    answers: {/dev/kfd: {AMDKFD_IOC_GET_VERSION: {major_version: 1, minor_version: 14}}}
             of a list, the first whose `when` holds: [{when: {query: 31}, return_pointer: {hex: "01000000"}}]
    log:     text as `dmesg --raw` prints it, or the name of an errno

A node without an answer for an ioctl says ENOTTY, and one whose answer is an errno's name says that. There is no memory
to map. `nodes` may say `open: EPERM` for one whose mode allows what a device cgroup forbids.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat as stat_bits
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from devrt.device import InvalidArgument
from devrt.ioctl.system import TEXT_LIMIT, Argument, FileStat, Host, LogLine, parse_log, view
from devrt.ioctl.tables import TABLES
from devrt.ioctl.uapi import Uapi, pointed_ranges, table_for

_SECTIONS = {"host", "files", "links", "nodes", "refused", "answers", "log"}
_LINK_LIMIT = 40  # as many as Linux follows in one path before ELOOP
_HOST = Host(user="user", uid=1000, groups=(1000,), sysname="Linux", release="6.1.0-18-amd64", machine="x86_64",
             affinity=(0, 1), memlock_bytes=8 << 20, open_files=1024)


class MachineSystem:
    """Serves the description in a mapping; `load` reads one from a file. Raises InvalidArgument for a section it lacks."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        unknown = set(description) - _SECTIONS
        if unknown:
            raise InvalidArgument(f"a machine has no section {', '.join(sorted(unknown))}",
                                  remedy=f"sections: {', '.join(sorted(_SECTIONS))}")
        host = dict(description.get("host") or {})
        for name in ("groups", "affinity"):
            if name in host:
                host[name] = tuple(host[name])
        try:
            self._host = Host(**{**vars(_HOST), **host})
        except TypeError as error:
            raise InvalidArgument("a machine's host has a field that devrt does not know", evidence=str(error),
                                  remedy=f"fields: {', '.join(vars(_HOST))}") from error
        self._files = {path: _bytes(text) for path, text in (description.get("files") or {}).items()}
        self._links: dict[str, str] = dict(description.get("links") or {})
        self._nodes: dict[str, dict[str, Any]] = dict(description.get("nodes") or {})
        self._refused: dict[str, str] = dict(description.get("refused") or {})
        self._answers: dict[str, dict[str, Any]] = dict(description.get("answers") or {})
        self._log: str = description.get("log") or ""
        self._children: dict[str, set[str]] = {"/": set()}
        for path in (*self._files, *self._links, *self._nodes, *self._refused):
            while path != "/":
                parent = posixpath.dirname(path)
                self._children.setdefault(parent, set()).add(posixpath.basename(path))
                path = parent
        self._opened: dict[int, str] = {}

    @classmethod
    def load(cls, path: str | Path) -> MachineSystem:
        """The machine in a YAML file. Raises OSError, or InvalidArgument where the file describes no machine."""
        import yaml  # not needed by programs that run on the machine they are on

        try:
            description = yaml.safe_load(Path(path).read_text())
        except yaml.YAMLError as error:
            raise InvalidArgument(f"{path} is no YAML", evidence=str(error).replace("\n", " ")) from error
        if not isinstance(description, dict):
            raise InvalidArgument(f"{path} describes no machine", remedy=f"sections: {', '.join(sorted(_SECTIONS))}")
        return cls(description)

    def open(self, path: str, flags: int) -> int:
        real = self._resolve(path)
        found = self.stat(path)
        if not found.exists:
            _fail(errno.ENOENT, path)
        mode = os.R_OK | os.W_OK if flags & os.O_ACCMODE == os.O_RDWR else os.W_OK if flags & os.O_WRONLY else os.R_OK
        if not self._allowed(found, mode):
            _fail(errno.EACCES, path)
        refused = self._nodes.get(real, {}).get("open")
        if refused:
            _fail(getattr(errno, refused), path)
        fd = next(number for number in range(3, 1 << 16) if number not in self._opened)
        self._opened[fd] = real
        return fd

    def close(self, fd: int) -> None:
        if self._opened.pop(fd, None) is None:
            _fail(errno.EBADF)

    def ioctl(self, fd: int, request: int, argument: Argument) -> int:
        path = self._opened.get(fd) or _fail(errno.EBADF)
        table = table_for(TABLES, path, request)
        answers = self._answers.get(path, {})
        name = table.find(request) if table else None
        if table is None or name not in answers or isinstance(argument, int):
            _fail(errno.ENOTTY)
        answer = answers[name]
        if isinstance(answer, list):
            answer = next((row for row in answer if _holds(table, request, argument, row["when"])), "EINVAL")
        if isinstance(answer, str):
            _fail(getattr(errno, answer))
        _fill(table, request, argument, answer)
        return 0

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int = 0, address: int = 0) -> int:
        _fail(errno.ENODEV)

    def munmap(self, address: int, length: int) -> None:
        _fail(errno.EINVAL)

    def mprotect(self, address: int, length: int, prot: int) -> None:
        _fail(errno.ENOMEM)

    def madvise(self, address: int, length: int, advice: int) -> None:
        _fail(errno.ENOMEM)

    def read_bytes(self, path: str, limit: int = TEXT_LIMIT) -> bytes:
        real = self._resolve(path)
        self._check_refused(real, path)
        if real in self._children:
            _fail(errno.EISDIR, path)
        if real not in self._files:
            _fail(errno.ENOENT, path)
        return self._files[real][:limit]

    def read_text(self, path: str, limit: int = TEXT_LIMIT) -> str:
        return self.read_bytes(path, limit).decode("utf-8", "replace")

    def list_dir(self, path: str) -> list[str]:
        real = self._resolve(path)
        self._check_refused(real, path)
        if real not in self._children:
            _fail(errno.ENOTDIR if real in self._files or real in self._nodes else errno.ENOENT, path)
        return sorted(self._children[real])

    def stat(self, path: str) -> FileStat:
        try:
            real = self._resolve(path)
        except NotADirectoryError:
            return FileStat(exists=False)
        if real in self._nodes:
            node = self._nodes[real]
            major, minor = node.get("rdev", (0, 0))
            mode = node.get("mode", 0o660)
            if isinstance(mode, str):  # 0o660 is a number in YAML 1.2 and a text in YAML 1.1, which PyYAML reads
                mode = int(mode, 8)
            return FileStat(True, stat_bits.S_IFCHR | mode, node.get("uid", 0), node.get("gid", 0), (major, minor))
        if real in self._children:
            return FileStat(True, stat_bits.S_IFDIR | 0o755)
        if real in self._files or real in self._refused:
            return FileStat(True, stat_bits.S_IFREG | (0o400 if real in self._refused else 0o444))
        return FileStat(exists=False)

    def access(self, path: str, mode: int) -> bool:
        found = self.stat(path)
        return found.exists and self._allowed(found, mode)

    def readlink(self, path: str) -> str:
        parent = self._resolve(posixpath.dirname(path))
        if parent in self._files or parent in self._nodes:
            _fail(errno.ENOTDIR, path)
        real = posixpath.join(parent, posixpath.basename(path))
        if real not in self._links:
            _fail(errno.EINVAL if self.stat(path).exists else errno.ENOENT, path)
        return self._links[real]

    def host(self) -> Host:
        return self._host

    def kernel_log(self) -> list[LogLine]:
        if self._log in errno.errorcode.values():
            _fail(getattr(errno, self._log))
        return parse_log(self._log)

    def _resolve(self, path: str) -> str:
        """The path without links. Raises OSError where a directory on the way may not be entered."""
        left = [part for part in path.split("/") if part and part != "."]
        real, followed = "/", 0
        while left:
            part = left.pop(0)
            if part == "..":
                real = posixpath.dirname(real)
                continue
            if self._refused.get(real):
                _fail(getattr(errno, self._refused[real]), path)
            if real in self._files or real in self._nodes:
                _fail(errno.ENOTDIR, path)
            step = posixpath.join(real, part)
            if step not in self._links:
                real = step
                continue
            followed += 1
            if followed > _LINK_LIMIT:
                _fail(errno.ELOOP, path)
            target = self._links[step]
            left = [part for part in target.split("/") if part and part != "."] + left
            if target.startswith("/"):
                real = "/"
        return real

    def _check_refused(self, real: str, path: str) -> None:
        if real in self._refused:
            _fail(getattr(errno, self._refused[real]), path)

    def _allowed(self, found: FileStat, mode: int) -> bool:
        """The permission bits that apply to this user, as the kernel picks them: owner, else group, else the rest."""
        if self._host.uid == 0:
            return True
        shift = 6 if found.uid == self._host.uid else 3 if found.gid in self._host.groups else 0
        return found.mode >> shift & mode == mode


def _bytes(content: Any) -> bytes:
    """What a description says of a file or of memory: {hex: TEXT}, or anything else as its text."""
    return bytes.fromhex(str(content["hex"])) if isinstance(content, dict) else str(content).encode()


def _holds(table: Uapi, request: int, argument: bytearray | memoryview, wanted: Mapping[str, int]) -> bool:
    """Whether the argument's fields have these values."""
    decoded = table.decode(request, bytes(argument))
    fields = dict(decoded.fields) if decoded else {}
    return all(fields.get(name) == value for name, value in wanted.items())


def _fill(table: Uapi, request: int, argument: bytearray | memoryview, answer: Mapping[str, Any]) -> None:
    """Write an answer's fields into the argument, and texts to where its pointers lead, with their full length as count."""
    name = table.find(request)
    assert name is not None  # the table was found by this request
    row = table.ioctls[name]
    counts = {pointer.field: pointer.count for pointer in row.pointers}
    values = table.ffi.new(f"struct {row.struct} *")
    before = bytes(argument)
    ranges = pointed_ranges(table, request, before)
    table.ffi.buffer(values)[:len(before)] = before
    for field, value in answer.items():
        if field == "when":
            continue
        if field not in counts:
            setattr(values, field, value)
            continue
        data = _bytes(value)
        if field in ranges:
            address, room = ranges[field]
            view(address, min(room, len(data)))[:] = data[:room]
        setattr(values, counts[field], len(data))
    memoryview(argument).cast("B")[:] = bytes(table.ffi.buffer(values))[:len(before)]


def _fail(number: int, path: str | None = None) -> NoReturn:
    raise OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))
