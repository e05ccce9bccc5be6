"""A process that uses a virtual driver: its descriptors and its memory, in this process or another."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any, Protocol

from devrt.virtual.errors import fail


class Files(Protocol):
    """The file descriptors of a process, so far as they are the driver's."""

    def find(self, fd: int) -> object | None:
        """What the driver put behind a descriptor of the process, None for anybody else's. Raises OSError: EBADF."""
        ...

    def install(self, fd: int, what: object) -> int:
        """Give the process a descriptor (open here as `fd`, which is taken over) and return its number there."""
        ...

    def stand_for(self, fd: int, file: int) -> None:
        """What the process maps of its descriptor `fd`, which is the driver's, are from now on the pages of the file that is open
        here as `file`."""
        ...


class Memory:
    """The memory of a process, this one or another, through /proc/PID/mem: a wrong address is EFAULT, never a crash."""

    def __init__(self, pid: int | None = None) -> None:
        self._folder = f"/proc/{pid or 'self'}"

    def read(self, address: int, nbytes: int) -> bytes:
        data: bytes = self._at(os.O_RDONLY, lambda fd: os.pread(fd, nbytes, address))
        return data if len(data) == nbytes else fail(errno.EFAULT)

    def write(self, address: int, data: bytes) -> None:
        if self._at(os.O_WRONLY, lambda fd: os.pwrite(fd, data, address)) != len(data):
            fail(errno.EFAULT)

    def _at(self, flags: int, act: Any) -> Any:
        fd = os.open(f"{self._folder}/mem", flags | os.O_CLOEXEC)
        try:
            return act(fd)
        except (OSError, OverflowError):
            fail(errno.EFAULT)
        finally:
            os.close(fd)

    def covers(self, address: int, nbytes: int, write: bool) -> bool:
        """Whether every page of a range is mapped with the rights to read and, if asked, write it."""
        end = address + nbytes
        with open(f"{self._folder}/maps") as maps:
            for line in maps:
                place, rights, _ = line.split(" ", 2)
                start, _, stop = place.partition("-")
                if int(start, 16) <= address < int(stop, 16) and rights[0] == "r" and (rights[1] == "w" or not write):
                    address = int(stop, 16)
                    if address >= end:
                        return True
        return False


@dataclass(frozen=True)
class Client:
    """A process that uses the driver. `key` tells processes apart; `foreign`: its pages are not in this process."""

    key: int
    files: Files
    memory: Memory
    foreign: bool = False


@dataclass(frozen=True)
class Place:
    """Where a mapping of a virtual descriptor really lies: pages of the file `fd` from `offset`."""

    fd: int
    offset: int
