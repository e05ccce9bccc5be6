"""A launch on its way: its turns on the machine that runs warps, and its place in the books."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from devrt.virtual.memory import Access
from devrt.virtual.nvidia.dispatch import Launch
from devrt.virtual.nvidia.engine import Port, Refused, Step
from devrt.virtual.nvidia.ledger import Race, Touches
from devrt.virtual.pieces import Piece, mapped

_SYSTEM = int(Access.SYSTEM)


class Running:
    """A launch after the works of its own channel with the numbers `after`."""

    def __init__(self, port: Port, launch: Launch, after: Sequence[int]) -> None:
        self.port, self.launch, self._after = port, launch, frozenset(after)
        self.work = port.track.begin(port.who)
        self._turns = 0
        self._race: Race | None = None

    def turns(self) -> Iterator[Step]:
        """Raises Refused, and what the machine raises."""
        port, track = self.port, self.port.track
        try:
            for _ in port.executor.run(self.launch, port.space):
                self._turns += 1
                track.order.postpone(track, self._enter)
                yield Step.DONE
                track.order.settle(track)
                self._check()
            self._turns += 1
            self._enter()
            self._check()
        except BaseException:
            track.drop(self.work)
            raise
        track.order.forget(track)
        track.end(self.work)

    def _check(self) -> None:
        if self._race is not None:
            raise Refused(str(self._race)) from self._race

    def _enter(self) -> None:
        """Enter in the books what was touched since the last time. A race stops this channel, whoever moves now."""
        launch, space = self.launch, self.port.space
        self.port.executor.collect(launch, space)
        touched = launch.touched

        def found(ranges: Sequence[tuple[int, int]]) -> list[Piece]:
            return [p for va, n in ranges for p in mapped(space, va, n)]
        reads, polls, writes, tells = (found(r) for r in (touched.reads, touched.polls, touched.writes, touched.tells))
        touched.clear()
        try:
            self.port.track.enter(self.work, Touches(_compared(reads), _compared(writes), _compared(tells), polls, reads,
                                                     [*writes, *tells], bool(tells)), self._after, self._turns > 1)
        except Race as race:
            self._race = race


def _compared(found: Sequence[Piece]) -> list[Piece]:
    """What is compared with other works: shaders tell whole pages, and pages of the host hold several buffers."""
    return [p for p in found if not p.flags & _SYSTEM]
