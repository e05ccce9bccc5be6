"""Ranges as runs of host memory: what several have together, and what they share."""

from __future__ import annotations

import random

from devrt.virtual.pieces import Piece, apart, overlap, union

FLAGS = 8


def drawn(draw: random.Random) -> list[Piece]:
    """Some pieces of 64 bytes of host memory that is known by two addresses."""
    found = []
    for _ in range(draw.randrange(6)):
        host = draw.randrange(64)
        found.append(Piece(draw.choice((1000, 2000)) + host, host, draw.randint(1, 64 - host), FLAGS))
    return found


def of(pieces: list[Piece]) -> set[tuple[int, int]]:
    """(address, host address) of each byte."""
    return {(p.va + n, p.host + n) for p in pieces for n in range(p.nbytes)}


def hosts(pieces: list[Piece]) -> set[int]:
    return {host for _, host in of(pieces)}


def test_the_union_has_each_byte_once() -> None:
    draw = random.Random(1)
    for _ in range(500):
        a, b = drawn(draw), drawn(draw)
        both = list(union(a, b))
        assert of(both) == of(a) | of(b)
        if a and b:
            assert len(of(both)) == sum(p.nbytes for p in both)
            assert sorted(union(both, b)) == sorted(union(both, a)) == sorted(both)


def test_what_two_share() -> None:
    draw = random.Random(2)
    for _ in range(500):
        a, b = drawn(draw), drawn(draw)
        assert apart(a, b) == [p for p in a if not hosts([p]) & hosts(b)]
        met = next((p for p in a if hosts([p]) & hosts(b)), None)
        assert overlap(a, b) == (None if met is None else met.va + min(hosts([met]) & hosts(b)) - met.host)
