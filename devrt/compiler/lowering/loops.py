"""Loop shapes that the lowerings share: sweeping lanes over an axis, and dealing rows to groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from devrt.compiler.index import Axis
from devrt.compiler.lir import Builder, Reg


class Point(NamedTuple):
    """A vector of positions along an axis: `k` in each lane, `first` in lane 0, the `mask` of those that exist (None: all),
    and how many elements after the start of a turn of the loop, `phase`, it begins."""

    k: Reg
    first: Reg
    mask: Reg | None
    phase: int


Body = Callable[[Point], None]


def sweep(b: Builder, start: Reg, count: int, unroll: int, body: Body, run: int = 1) -> None:
    """body at start + k for k in 0..count-1, `lanes` at a time, `unroll` vectors a turn. A turn gives each lane `run` neighbours
    one after another (a divisor of `unroll`), which a GPU reads at once."""
    lanes, lane = b.lanes, b.lane()
    wide = lanes * unroll
    full = count // wide * wide
    vectors = (count - full) // lanes * lanes
    _turns(b, start, lane, 0, full, wide, unroll, body, run)
    _turns(b, start, lane, full, full + vectors, lanes, 1, body, 1)
    if count > full + vectors:
        first = b.add(start, b.idx(full + vectors))
        body(Point(b.add(first, lane), first, b.lt(lane, b.idx(count - full - vectors)), 0))


def _turns(b: Builder, start: Reg, lane: Reg, lo: int, hi: int, step: int, unroll: int, body: Body, run: int) -> None:
    def turn(i: Reg) -> None:
        _unrolled(b, b.add(start, i), lane, unroll, body, run)

    def looped(i: Reg, _: list[Reg]) -> Sequence[Reg]:
        turn(i)
        return []
    if hi - lo == step:
        turn(b.idx(lo))
    elif hi > lo:
        b.loop(lo, hi, [], looped, step=step)


def _unrolled(b: Builder, start: Reg, lane: Reg, unroll: int, body: Body, run: int) -> None:
    mine = b.mul(lane, b.idx(run))
    for u in range(unroll):
        phase = u // run * run * b.lanes + u % run
        first = b.add(start, b.idx(phase))
        body(Point(b.add(b.add(start, mine), b.idx(phase)) if run > 1 else b.add(first, lane), first, None, phase))


def sweep_upto(b: Builder, start: Reg, count: Reg, unroll: int, body: Body, run: int = 1) -> None:
    """The same for a count that differs between groups."""
    lanes, lane = b.lanes, b.lane()
    wide = b.idx(lanes * unroll)
    full = b.mul(b.div(count, wide), wide)

    def main(i: Reg, _: list[Reg]) -> Sequence[Reg]:
        _unrolled(b, b.add(start, i), lane, unroll, body, run)
        return []

    def rest(i: Reg, _: list[Reg]) -> Sequence[Reg]:
        k, first = b.add(i, lane), b.add(start, i)
        body(Point(b.add(first, lane), first, b.lt(k, count), 0))
        return []
    b.loop(0, full, [], main, step=lanes * unroll)
    b.loop(full, count, [], rest, step=lanes)


def spread(b: Builder, flat: Reg, axes: Sequence[Axis]) -> dict[Axis, Reg]:
    """The value of every axis at row-major position `flat`."""
    table: dict[Axis, Reg] = {}
    for n, a in reversed(list(enumerate(axes))):
        if n == 0:
            table[a] = flat
        else:
            table[a] = b.rem(flat, b.idx(a.size))
            flat = b.div(flat, b.idx(a.size))
    return table


def rows_of_group(b: Builder, rows: int, per_group: int, body: Callable[[Reg], None], step: int = 1) -> None:
    """body(row) for every `step`th of the rows that belong to this group; `step` divides both numbers."""
    if per_group == 1:
        body(b.group())
        return
    first = b.mul(b.group(), b.idx(per_group))
    count = b.idx(per_group) if rows % per_group == 0 else b.min(b.sub(b.idx(rows), first), b.idx(per_group))

    def one(i: Reg, _: list[Reg]) -> Sequence[Reg]:
        body(b.add(first, i))
        return []
    b.loop(0, count, [], one, step=step)
