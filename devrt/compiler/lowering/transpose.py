"""A square of registers turned: row i, lane j becomes row j, lane i."""

from __future__ import annotations

from devrt.compiler.lir import Builder, Reg


def transpose(b: Builder, rows: list[Reg], lane: Reg) -> list[Reg]:
    """The transposed square of `lanes` registers, by log2(lanes) rounds of exchanges (J. Eklundh, 1972).

    Round d swaps, between rows i and i+d, the lanes whose bit d differs from the row's: the off-diagonal quarters.
    """
    rows = list(rows)
    d = 1
    while d < len(rows):
        low = b.eq(b.and_(lane, b.idx(d)), b.idx(0))
        for i in range(len(rows)):
            if not i & d:
                upper, lower = rows[i], rows[i + d]
                rows[i] = b.select(low, upper, b.lane_xor(lower, d))
                rows[i + d] = b.select(low, b.lane_xor(upper, d), lower)
        d *= 2
    return rows
