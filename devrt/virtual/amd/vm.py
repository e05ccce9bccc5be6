"""A GPU address space with what the driver knows of it: which buffer lies where, and which queues need it there."""

from __future__ import annotations

import bisect
import errno
from dataclasses import dataclass

from devrt.ioctl.system import System
from devrt.virtual.errors import fail
from devrt.virtual.foreign import ForeignMemory, ProcessSpace
from devrt.virtual.memory import PAGE, Access, pages

LIMIT = 1 << 47  # bytes that a process can map: its own half of the canonical addresses


@dataclass(eq=False)
class Mapping:
    """`owner` (a buffer object of KFD or GEM) at `va`; `queues` that were created with it."""

    va: int
    nbytes: int
    owner: object
    queues: int = 0


class Vm:
    """Made by the first open of a render node and kept by it and by the KFD process that acquired it."""

    def __init__(self, system: System, foreign: ForeignMemory) -> None:
        self.space = ProcessSpace(system, foreign)
        self._mappings: list[Mapping] = []  # by address, none overlaps another
        self._owned: dict[int, list[Mapping]] = {}  # by the owner's id
        self._references = 1

    def hold(self) -> Vm:
        self._references += 1
        return self

    def drop(self) -> None:
        self._references -= 1
        if not self._references:
            self.space.close()

    def map(self, va: int, nbytes: int, host: int, access: Access, owner: object) -> Mapping:
        """Raises OSError: EINVAL where something lies already, or for an address that can't be mapped."""
        size = pages(nbytes)
        if va % PAGE or va <= 0 or va + size > LIMIT or self.overlapping(va, size):
            fail(errno.EINVAL)
        mapping = Mapping(va, size, owner)
        self.space.map(va, host, size, access)
        bisect.insort(self._mappings, mapping, key=lambda m: m.va)
        self._owned.setdefault(id(owner), []).append(mapping)
        return mapping

    def unmap(self, mapping: Mapping) -> None:
        self.space.unmap(mapping.va, mapping.nbytes)
        del self._mappings[bisect.bisect_left(self._mappings, mapping.va, key=lambda m: m.va)]
        mine = self._owned[id(mapping.owner)]
        mine.remove(mapping)
        if not mine:
            del self._owned[id(mapping.owner)]

    def overlapping(self, va: int, nbytes: int) -> list[Mapping]:
        first = max(bisect.bisect_right(self._mappings, va, key=lambda m: m.va) - 1, 0)
        last = bisect.bisect_left(self._mappings, va + nbytes, key=lambda m: m.va)
        return [m for m in self._mappings[first:last] if m.va + m.nbytes > va]

    def at(self, va: int) -> Mapping | None:
        """What covers an address."""
        found = self.overlapping(va, 1)
        return found[0] if found else None

    def owned(self, owner: object) -> list[Mapping]:
        return list(self._owned.get(id(owner), ()))
