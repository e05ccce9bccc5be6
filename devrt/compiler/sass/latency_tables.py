"""Latencies as tables: columns are producers (of what is read or written again) or, for writes after reads, readers; rows are
consumers. A set for each generation.

The numbers are cycles from issue to issue. Sources: Mesa's tables, which NVIDIA gave (nak/sm75_instr_latencies.rs,
nak/sm80_instr_latencies.rs, latencies/sm100/*.csv), and what ptxas of CUDA 13 emits: a table here asks for no more than ptxas
keeps to (tests/compiler/sass/test_verify.py), which decides for matrix products and half precision. There is no public table
for sm_90: it is sm_80's, but for what ptxas does otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

_RAW_75 = """
              alu d64 fma wl wh f64 h16 h16a h16f mma1 mma2 imma
alu d64         4   6   5  3  5   9   8    8    8   14   22   10
fma             5   6   4  2  4   9   8    8    8   14   22   10
wab             5   6   4  4  6   9   8    8    8   14   22   10
wc              5   6   4  2  2   9   8    8    8   14   22   10
wch             3   4   2  2  2   7   6    6    6   12   20    8
f64             6   6   6  6  6   8   8    8    8   14   22   10
h16 h16a h16f   6   6   6  6  6   9   6    6    6   14   22   10
mma1 mma2       6   6   6  6  6   9   8    8    8   14   22   10
dec agu cbu     6   6   6  6  6   9   8    8    8   14   22   10
imma            8   8   8  8  8   9   8    8    8   14   22   10
"""
_RAW_80 = """
            alu d64 fma wl wh h16 h16a h16f hmma2 f64 imma mma1 mma2 dmma
alu d64       4   6   5  3  5   5    5    5    10  10   13   16   24   25
fma wc        5   6   4  2  4   5    5    5    10  10   13   16   24   25
wab           5   6   4  4  6   5    5    5    10  10   13   16   24   25
wch           3   4   2  2  2   3    3    3     8   8   11   14   22   23
h16           5   6   5  3  5   4    5    5    10  10   13   16   24   25
h16a          5   6   5  3  5   5    4    5    10  10   13   16   24   25
h16f          5   6   5  3  5   5    5    5    10  10   13   16   24   25
hmma2 f64     6   6   6  6  6   6    6    6     6   6   13   16   24   25
imma mma1     7   7   7  7  7   7    7    7    11  11   14   16   24   26
mma2 dmma     7   7   7  7  7   7    7    7    11  11   14   16   24   26
cbu dec       4   4   4  4  4   4    4    4     6   6   11   14   22   23
agu           5   5   5  5  5   5    5    5     7   7   12   15   23   24
"""
_RAW_120 = """
            alu d64 fma wl wh h16 h16a h16f hmma2 f64 imma mma2
alu d64       4   6   5  3  5   5    5    5    10  10   26   28
fma wc        5   6   4  2  4   5    5    5    10  10   26   28
wab           5   6   4  4  6   5    5    5    10  10   26   28
wch           3   4   2  2  2   3    3    3     8   8   26   28
h16           5   6   5  3  5   4    5    5    10  10   26   28
h16a          5   6   5  3  5   5    4    5    10  10   26   28
h16f          5   6   5  3  5   5    5    5    10  10   26   28
hmma2 f64     6   6   6  6  6   6    6    6     8   8   26   28
imma          7   7   7  7  7   7    7    7    11  11   27   29
mma2 dmma     7   7   7  7  7   7    7    7    11  11   27   29
cbu dec       4   4   4  4  4   4    4    4     6   6   26   28
agu           5   5   5  5  5   5    5    5     7   7   26   28
"""
# Write after write: a + b is b cycles more where the first write has a guard.
_WAW_75 = """
              alu d64 fma  wl  wh f64 h16 h16a h16f mma1 mma2 imma
d64             1   1   1   1   1   4   3    3    3    9   17    5
alu             1   2   1   1   1 1+4 1+3  1+3  1+3  1+9 1+17  1+5
fma             1   2   1   1 1+1 1+4 1+3  1+3  1+3  1+9 1+17  1+5
wl            1+2 2+2 1+1   1   1 3+4 3+3  3+3  3+3  3+9 3+17  3+5
wh              1 1+1   1   1   1 1+4 1+3  1+3  1+3  1+9 1+17  1+5
f64             2   2   2   2   2   1   2    2    2    6   14    2
h16 h16a h16f   2   2   2   2   2 1+1   1    1    1  1+7 1+15  1+3
mma1            2   2   2   2   2   2   2    2    2    1   16    2
mma2            2   2   2   2   2   2   2    2    2    6    1    2
imma          2+2 2+2 2+2 2+2 2+2 3+2 2+2  2+2  2+2  4+6 4+14    1
dec agu cbu     6   6   6   6   6   6   6    6    6    6   14    2
"""
_WAW_80 = """
            alu d64 fma  wl  wh h16 h16a h16f hmma2 f64 imma mma1 mma2 dmma
alu           1 1+1   1   1   1   1    1    1   3+3 3+3  1+8  1+8 1+12 1+20
d64           1   1   1   1   1   1    1    1   1+3 1+3    8    8   12   20
fma           1 1+1   1   1 1+1   1    1    1   3+3 3+3  1+8  1+8 1+12 1+20
wl          2+1 3+1 1+1   1 1+1 2+1  2+1  2+1   3+5 3+5  3+8  3+8 3+12 3+20
wh            1 1+1   1   1   1   1    1    1   1+5 1+5  1+8  1+8 1+12 1+20
h16 h16a      1 1+1   1   1   1   1    1    1   3+3 3+3  1+8  1+8 1+12 1+20
h16f          1   1   1   1   1   1    1    1   2+3 2+3    8    8   12   20
hmma2         1   1   1   1   1   1    1    1     2   3    8    8   12   20
f64           1   1   1   1   1   1    1    1     2   2    7    7   11   19
imma mma1     2   2   2   2   2   2    2    2     2   2    4    4    8   17
mma2 dmma     2   2   2   2   2   2    2    2     2   2    4    4    8   16
cbu dec agu 5+1 5+1 5+1 5+1 5+1 5+1  5+1  5+1   9+1 9+1  6+7  6+7 6+11 6+19
"""
_WAW_120 = """
            alu d64 fma  wl  wh h16 h16a h16f hmma2 f64 imma mma1 mma2
alu           1 1+1   1   1   1   1    1    1   3+3 3+3 2+14 2+14 2+14
d64           1   1   1   1   1   1    1    1   1+3 1+3 1+14 1+14 1+14
fma           1 1+1   1   1 1+1   1    1    1   3+3 3+3 3+14 3+14 3+14
wl          2+1 3+1 1+1   1 1+1 2+1  2+1  2+1   3+5 3+5 3+14 3+14 3+14
wh            1 1+1   1   1   1   1    1    1   1+5 1+5 3+14 3+14 3+14
h16 h16a      1 1+1   1   1   1   1    1    1   3+3 3+3 2+14 2+14 2+14
h16f          1   1   1   1   1   1    1    1   2+3 2+3 2+14 2+14 2+14
hmma2         1   1   1   1   1   1    1    1     1   3   14   14   14
f64           1   1   1   1   1   1    1    1     2   1   13   13   13
imma mma1     2   2   2   2   2   2    2    2     2   2    1    1    1
mma2          2   2   2   2   2   2    2    2     2   2    1    1    1
dmma        4+2 4+2 4+2 4+2 4+2 4+2  4+2  4+2   8+2 8+2 9+10 9+10 9+10
cbu dec agu 5+1 5+1 5+1 5+1 5+1 5+1  5+1  5+1   9+1 9+1 6+13 6+13 6+13
"""
# Write after read: columns are readers.
_WAR_75 = """
                  alu d64 fma wab wc wch f64 h16 h16a h16f mma1 mma2 imma
alu d64 fma wl wh   1   1   1   1  1   1   1   1    1    1    5   13    1
f64                 2   2   2   2  2   2   1   2    2    2    6   14    2
h16 h16a h16f       2   2   2   2  2   2   2   1    1    1    6   14    2
mma1                2   2   2   2  2   2   2   2    2    2    1   14    2
mma2                2   2   2   2  2   2   2   2    2    2    6    1    2
imma                2   2   2   2  2   2   2   2    2    2    6   14    1
dec agu cbu         2   2   2   2  2   2   2   2    2    2    2   14    2
"""
_WAR_80 = """
                                       alu d64 fma wab wc wch h16 h16a h16f hmma2 f64 imma mma1 mma2 dmma
alu d64 fma wl wh h16 h16a h16f          1   1   1   1  1   1   1    1    1     1   1    1    1    1    1
hmma2 f64                                1   1   1   1  1   1   1    1    1     1   1    1    1    1    1
imma mma1 mma2 dmma                      2   2   2   2  2   2   2    2    2     1   1    1    1    1    1
cbu dec agu                              2   2   2   2  2   2   2    2    2     1   1    1    1    1    1
"""
_PREDICATE_RAW_75 = """
              p.disp p.alu p.fma p.h16 p.f64
p.disp            12    12    12    14    15
p.alu              4     4     5     8     9
p.fma              5     5     4     8     9
p.f64             12    12    12    14     8
p.h16             12    12    12     6    15
p.dec p.guard     12    12    12    14    15
"""
_PREDICATE_RAW_80 = """
              p.disp p.alu p.fma p.h16 p.hmma2 p.f64
p.disp            13    13    13    13      14    14
p.alu              4     4     5     5       6     6
p.fma              5     5     4     5       6     6
p.h16             13     5     5     5       6     6
p.hmma2 p.f64     13    13    13    13       6     6
p.dec p.guard     13    13    13    13      14    14
"""
_PREDICATE_WAW_75 = """
              p.disp p.alu p.fma p.h16 p.f64
p.disp p.alu       1     1     1   1+3   1+4
p.fma              1     1     1   1+3   1+4
p.f64            2+2   2+2   2+2   4+2     1
p.h16            4+2   4+2   4+2     1   7+2
p.dec              2     2     2     2     2
"""
_PREDICATE_WAW_80 = """
              p.disp p.alu p.fma p.h16 p.hmma2 p.f64
p.disp p.alu       1     1     1     1       2     2
p.fma              1     1     1     1       2     2
p.h16            7+2   7+2   7+2     1     8+2   8+2
p.hmma2 p.f64    5+2   5+2   5+2   5+2       1     1
p.dec           10+2  10+2  10+2  11+1    12+1  12+1
"""
_UNIFORM_RAW = """
                u.udp u.uldc u.umov u.vote u.r2ur
u.vec               6      2      2      2     13
u.dec               9      2      2      2     13
u.desc              9      2      2      2     13
u.cbu              10      3      3      3     13
u.bind u.uldc      12      5      5      5     14
u.udp               4      2      2      2     13
u.umov u.vote       7      2      2      2     13
u.to               12      5      5      5     13
"""
_UNIFORM_WAW = """
                     u.udp u.uldc u.umov u.vote u.r2ur
u.udp                    1      1      1      1    5+4
u.uldc u.umov u.vote     7      1      1      1   1+10
u.to                   7+4      4      4      4   10+4
u.r2ur                   7      1      1      1      1
"""
_UNIFORM_WAR = """
                     u.vec u.dec u.desc u.cbu u.bind u.udp u.uldc u.umov u.vote
u.udp u.to u.r2ur        1     1      1     1      1     1      1      1      1
u.uldc u.umov u.vote     1     1      1     1      1     3      1      1      1
"""
_UNIFORM_PREDICATE_RAW = """
                  up.udp up.vote
up.vec                 6       1
up.udp                 4       1
up.guard up.uldc      11       5
up.bra                 9       2
"""
_UNIFORM_PREDICATE_WAW = """
          up.udp up.vote
up.udp         1       1
up.vote        7       1
"""
_UNIFORM_PREDICATE_WAR = """
          up.vec up.udp up.guard up.bra up.uldc
up.udp         1      1        1      1       1
up.vote        2      2        1      1       1
"""
_PREDICATE_WAR_75 = """
        p.disp p.alu p.fma p.h16 p.f64
p.f64        1     2     2     2     1
p.h16        1     2     2     1     2
p.dec        1     2     2     2     2
"""


class Cycles(NamedTuple):
    """Cycles from issue to issue, and how many more where the first has a guard."""

    least: int
    guarded: int = 0


_Grid = dict[tuple[str, str], Cycles]


def _grid(*texts: str) -> _Grid:
    """(producer, consumer) -> cycles."""
    found: _Grid = {}
    for text in texts:
        head, *rows = text.strip().splitlines()
        columns = head.split()
        for row in rows:
            words = row.split()
            names, values = words[:-len(columns)], words[-len(columns):]
            for name in names:
                for column, value in zip(columns, values, strict=True):
                    found[column, name] = Cycles(*map(int, value.split("+")))
    return found


@dataclass(frozen=True)
class Tables:
    """A generation's latencies: read after write, write after write (producer, consumer), write after read (reader, writer).
    `decoupled`: roles of what is written under a scoreboard."""

    raw: _Grid
    waw: _Grid
    war: _Grid
    decoupled: frozenset[str]


_PREDICATE_WAW_120 = {("p.alu", "p.h16"): Cycles(6, 2)}  # by ptxas; else as before
_DECOUPLED = frozenset(("dec", "agu", "cbu", "p.dec", "u.to", "b"))


@cache
def tables(sm: int) -> Tables:
    """The latencies of a generation."""
    if sm < 80:
        return Tables(_grid(_RAW_75, _PREDICATE_RAW_75, _UNIFORM_RAW, _UNIFORM_PREDICATE_RAW),
                      _grid(_WAW_75, _PREDICATE_WAW_75, _UNIFORM_WAW, _UNIFORM_PREDICATE_WAW),
                      _grid(_WAR_75, _PREDICATE_WAR_75, _UNIFORM_WAR, _UNIFORM_PREDICATE_WAR),
                      _DECOUPLED | {"f64", "p.f64", "imma", "mma1", "mma2"})
    predicates, waw = (_PREDICATE_RAW_80, _UNIFORM_RAW, _UNIFORM_PREDICATE_RAW), \
        (_PREDICATE_WAW_80, _UNIFORM_WAW, _UNIFORM_PREDICATE_WAW)
    war = _grid(_WAR_80, _UNIFORM_WAR, _UNIFORM_PREDICATE_WAR)
    if sm < 90:
        return Tables(_grid(_RAW_80, *predicates), _grid(_WAW_80, *waw), war, _DECOUPLED | {"f64", "p.f64", "dmma"})
    if sm < 100:
        return Tables(_hopper(_grid(_RAW_80, *predicates)), _like_alu(_grid(_WAW_80, *waw)), _like_alu(war),
                      _DECOUPLED | {"dmma"})
    return Tables(_grid(_RAW_120, *predicates), _grid(_WAW_120, *waw) | _PREDICATE_WAW_120, war,
                  _DECOUPLED | {"f64", "p.f64", "dmma"})


def _like_alu(grid: _Grid) -> _Grid:
    """The same with VIADD, where that is a class of its own."""
    for producer, consumer in list(grid):
        for p in {producer, "vadd" if producer == "alu" else producer}:
            for c in {consumer, "vadd" if consumer == "alu" else consumer}:
                grid[p, c] = grid[producer, consumer]
    return grid


def _hopper(raw: _Grid) -> _Grid:
    """sm_90 is sm_80 but that FP64 has a fixed latency, and that VIADD is as near to the FMA pipe as to the ALU. From ptxas."""
    raw = _like_alu(raw)
    raw["f64", "f64"] = Cycles(8)
    for pair in (("vadd", "fma"), ("vadd", "wab"), ("vadd", "wc"), ("fma", "vadd"), ("wh", "vadd")):
        raw[pair] = Cycles(4)
    return raw


_LEAST = Cycles(1)


def read_after_write(t: Tables, producer: str, consumer: str) -> int:
    """Cycles from a fixed-latency producer to a reader."""
    return t.raw.get((producer, consumer), _LEAST).least


def write_after_write(t: Tables, first: str, second: str, guarded: bool) -> int:
    """Cycles from one writer, with a guard or not, to the next."""
    cycles = t.waw.get((first, second), _LEAST)
    return cycles.least + cycles.guarded if guarded else cycles.least


def write_after_read(t: Tables, reader: str, writer: str) -> int:
    """Cycles from a reader that reads when it is issued to a writer."""
    return t.war.get((reader, writer), _LEAST).least
