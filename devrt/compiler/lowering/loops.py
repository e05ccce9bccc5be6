"""Loop shapes that the lowerings share: sweeping lanes over an axis, and dealing rows to groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from devrt.compiler.index import Axis
from devrt.compiler.lir import Builder, Reg

Body = Callable[[Reg, "Reg | None"], None]


def sweep(b: Builder, start: Reg, count: int, unroll: int, body: Body) -> None:
    """body(start + k, mask) for k in 0..count-1, `lanes` at a time, `unroll` vectors a turn; mask None: all lanes."""
    lanes, lane = b.lanes, b.lane()
    wide = lanes * unroll
    full = count // wide * wide
    vectors = (count - full) // lanes * lanes
    _turns(b, start, lane, 0, full, wide, unroll, body)
    _turns(b, start, lane, full, full + vectors, lanes, 1, body)
    if count > full + vectors:
        at = b.add(b.add(start, b.idx(full + vectors)), lane)
        body(at, b.lt(lane, b.idx(count - full - vectors)))


def _turns(b: Builder, start: Reg, lane: Reg, lo: int, hi: int, step: int, unroll: int, body: Body) -> None:
    def turn(i: Reg) -> None:
        at = b.add(b.add(start, i), lane)
        for u in range(unroll):
            body(b.add(at, b.idx(u * b.lanes)), None)

    def looped(i: Reg, _: list[Reg]) -> Sequence[Reg]:
        turn(i)
        return []
    if hi - lo == step:
        turn(b.idx(lo))
    elif hi > lo:
        b.loop(lo, hi, [], looped, step=step)


def sweep_upto(b: Builder, start: Reg, count: Reg, unroll: int, body: Body) -> None:
    """The same for a count that differs between groups."""
    lanes, lane = b.lanes, b.lane()
    wide = b.idx(lanes * unroll)
    full = b.mul(b.div(count, wide), wide)

    def main(i: Reg, _: list[Reg]) -> Sequence[Reg]:
        at = b.add(b.add(start, i), lane)
        for u in range(unroll):
            body(b.add(at, b.idx(u * lanes)), None)
        return []

    def rest(i: Reg, _: list[Reg]) -> Sequence[Reg]:
        k = b.add(i, lane)
        body(b.add(start, k), b.lt(k, count))
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


def rows_of_group(b: Builder, rows: int, per_group: int, body: Callable[[Reg], None]) -> None:
    """body(row) for the rows that belong to this group."""
    if per_group == 1:
        body(b.group())
        return
    first = b.mul(b.group(), b.idx(per_group))
    count = b.idx(per_group) if rows % per_group == 0 else b.min(b.sub(b.idx(rows), first), b.idx(per_group))

    def one(i: Reg, _: list[Reg]) -> Sequence[Reg]:
        body(b.add(first, i))
        return []
    b.loop(0, count, [], one)
