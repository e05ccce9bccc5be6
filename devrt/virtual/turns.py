"""A launch as native code runs it: parts of its grid, a thread of the host each, that give way and go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from devrt.virtual import context, native
from devrt.virtual.memory import AddressSpace, Ranges
from devrt.virtual.pace import Share


class Room:
    """Memory of a launch beside its GPU's. It stays for another launch."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], NDArray[np.uint8]] = {}

    def take(self, name: str, part: int, nbytes: int) -> int:
        """The address of at least `nbytes` of a part's memory of that name."""
        held = self._held.get((name, part))
        if held is None or len(held) < nbytes + 256:
            held = self._held[name, part] = np.zeros(nbytes + 256, np.uint8)
        return -(-held.ctypes.data // 256) * 256


@dataclass(eq=False)
class Part:
    """Blocks `begin` to `end`, and what one thread of the host knows of them."""

    context: NDArray[np.uint8]
    begin: int
    end: int

    def put(self, offset: int, value: int) -> None:
        self.context[offset:offset + 8].view(np.uint64)[0] = value

    def get(self, offset: int) -> int:
        return int(self.context[offset:offset + 8].view(np.uint64)[0])


class Marks:
    """Whose marks are in the entries of address spaces: of launches that take turns in one, the one that ran last."""

    def __init__(self) -> None:
        self._books: WeakKeyDictionary[AddressSpace, Ranges] = WeakKeyDictionary()

    def turn(self, space: AddressSpace, book: Ranges) -> None:
        """The launch with that book is about to run."""
        before = self._books.get(space)
        if before is not book:
            if before is not None:
                self.collect(space, before)
            self._books[space] = book

    def collect(self, space: AddressSpace, book: Ranges) -> None:
        """Enter in its book what a launch touched since the last time."""
        if self._books.get(space) is book:
            for va, nbytes, marks in space.touched():
                book.enter(va, nbytes, marks)


def take_turns(run: native.Run, parts: Sequence[Part], share: Share, block: int,
               hurry: Callable[[], bool], ready: Callable[[], None]) -> Generator[None, None, Part | None]:
    """Run parts until all have ended; each step is a turn, before which `ready` is called. `block` is where a context holds the
    block that goes on; `hurry`: whether others wait for their turn. Returns the part of the lowest blocks that failed."""
    left, failed = list(parts), None
    while True:
        ready()
        for part in left:
            part.put(context.SHARE, share.steps)
            part.put(context.CACHED_PAGE, (1 << 64) - 1)
        began = time.thread_time()  # of this part alone: what other threads and processes take is not the launch's
        results = native.spread(run, [(part.context.ctypes.data, part.begin, part.end) for part in left])
        share.took(time.thread_time() - began, context.PAUSED in results, hurry())
        failed = next((part for part, result in zip(left, results, strict=True) if result == context.BAD), failed)
        left = [part for part, result in zip(left, results, strict=True)
                if result == context.PAUSED and (failed is None or part.end <= failed.begin)]
        if not left:
            return failed
        for part in left:
            part.begin = part.get(block)
        yield
