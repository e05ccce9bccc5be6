"""Where registers are live, by word, as bit sets of points: dataflow over blocks, for allocation.

Points count on through the function: a block begins at one, and an instruction at point p reads at p and writes at p + 1. Two
registers may share a place where their points have none in common, so a result may take the place of what the same
instruction reads for the last time. A guarded write ends what was there before only where everything that reads it has the same
guard; what no write can reach is undefined and not live.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from devrt.compiler.sass import mir
from devrt.compiler.sass.instruction import File, Instruction, Operand, Reg

# Read A and B after they have begun to write: their result takes no place of these.
LATE_READERS = ("HMMA", "IMMA", "DMMA", "BMMA", "QMMA")


@dataclass(frozen=True)
class Liveness:
    """`names` gives a word its register and its place in it. `ranges` are the points of each word, `intervals` the same as
    (word, first point, last point), `first` the point of each block, `depth` its loops, `outs` the words that are
    live behind it."""

    names: list[tuple[File, int, int]]
    numbers: dict[tuple[File, int], int]  # a register's first word
    ranges: list[int]
    intervals: list[tuple[int, int, int]]
    first: list[int]
    points: int
    depth: list[int]
    outs: list[int]


def unconditional(i: Instruction) -> bool:
    """True where the guard is PT."""
    return isinstance(i.guard.value, Reg) and i.guard.value.zero and not i.guard.inv


def loop_depth(f: mir.Function) -> list[int]:
    """How many loops each block is in: a loop is what lies between the target of a branch back and the branch."""
    depth = [0] * len(f.blocks)
    for n in range(len(f.blocks)):
        for to in f.successors(n):
            if to <= n:
                for k in range(to, n + 1):
                    depth[k] += 1
    return depth


class _Words:
    """Numbers for the words of registers. A real register of several words is several registers."""

    def __init__(self, f: mir.Function) -> None:
        self.sizes = f.words
        self.numbers: dict[tuple[File, int], int] = {}
        self.names: list[tuple[File, int, int]] = []
        self.masks: dict[Reg, int] = {}

    def mask(self, r: Reg) -> int:
        known = self.masks.get(r)
        if known is None:
            if r.virtual:
                known = ((1 << r.words) - 1) << self._number(r.file, r.index, self.sizes[r.file, r.index]) + r.sub
            else:
                known = 0
                for k in range(r.words):
                    known |= 1 << self._number(r.file, r.index + k, 1)
            self.masks[r] = known
        return known

    def _number(self, file: File, index: int, words: int) -> int:
        at = self.numbers.get((file, index))
        if at is None:
            at = self.numbers[file, index] = len(self.names)
            self.names += [(file, index, k) for k in range(words)]
        return at


def bits(mask: int) -> Iterator[int]:
    """The numbers of the bits that are set, from the lowest on."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class _Row(NamedTuple):
    """Words that an instruction reads, reads late, writes, and whose values it ends."""

    reads: int
    late: int
    writes: int
    kills: int


def analyse(f: mir.Function) -> Liveness:
    """The liveness of every register of a function, virtual or real."""
    words = _Words(f)
    rows: list[list[_Row]] = []
    for block in f.blocks:
        row = []
        for i in block.instructions:
            reads = writes = late = 0
            for r in i.reads():
                reads |= words.mask(r)
            for r in i.writes():
                writes |= words.mask(r)
            if i.op in LATE_READERS:
                for o in i.srcs[:2]:
                    if isinstance(o.value, Reg) and not o.value.zero:
                        late |= words.mask(o.value)
            row.append(_Row(reads, late, writes, writes if unconditional(i) else 0))
        rows.append(row)
    _guarded(f, rows, words)
    outs, defined = _solve(f, rows)
    first, point = [], 0
    for row in rows:
        first.append(point)
        point += 2 * len(row) + 2
    intervals: list[tuple[int, int, int]] = []
    for n, row in enumerate(rows):
        _walk(row, first[n], outs[n], defined[n], intervals)
    ranges = [0] * len(words.names)
    for word, start, end in intervals:
        ranges[word] |= (1 << end + 1) - (1 << start)
    return Liveness(words.names, words.numbers, ranges, intervals, first, point, loop_depth(f), outs)


def _guarded(f: mir.Function, rows: list[list[_Row]], words: _Words) -> None:
    """Adds to what guarded writes end: words that are only read under the same guard, until they are written again."""
    seen = shared = 0  # words of more than one block
    for row in rows:
        here = 0
        for r in row:
            here |= r.reads | r.writes
        shared |= seen & here
        seen |= here
    for block, row in zip(f.blocks, rows, strict=True):
        exposed = written = 0
        open_: dict[int, tuple[list[int], Operand]] = {}  # word -> guarded writes, and their guard
        ended: dict[int, int] = {}
        for n, (i, r) in enumerate(zip(block.instructions, row, strict=True)):
            exposed |= r.reads & ~written
            written |= r.writes
            if open_:
                for w in bits(r.reads):
                    if w in open_ and open_[w][1] != i.guard:
                        del open_[w]
                for w, (_, guard) in list(open_.items()):
                    if isinstance(guard.value, Reg) and words.mask(guard.value) & r.writes:
                        del open_[w]
            own = words.mask(i.guard.value) if isinstance(i.guard.value, Reg) and not i.guard.value.zero else 0
            for w in bits(r.writes):
                if own & r.writes:
                    open_.pop(w, None)
                    continue
                places, guard = open_.pop(w, ([], i.guard))
                if r.kills >> w & 1:
                    for at in places:
                        ended[at] = ended.get(at, 0) | 1 << w
                else:
                    open_[w] = [*places, n] if guard == i.guard else [n], i.guard
        for w, (places, _) in open_.items():
            if not (shared | exposed) >> w & 1:
                for at in places:
                    ended[at] = ended.get(at, 0) | 1 << w
        for at, kills in ended.items():
            row[at] = row[at]._replace(kills=row[at].kills | kills)


def _solve(f: mir.Function, rows: list[list[_Row]]) -> tuple[list[int], list[int]]:
    """What is live behind each block, and what may have been written in front of it."""
    count = len(rows)
    after = [[k for k in f.successors(n) if k < count] for n in range(count)]
    uses, kills, makes = [0] * count, [0] * count, [0] * count
    for n, row in enumerate(rows):
        for reads, _, writes, ends in reversed(row):
            uses[n] = uses[n] & ~ends | reads
            kills[n] |= ends
            makes[n] |= writes
    live, outs, changed = [0] * count, [0] * count, True
    while changed:
        changed = False
        for n in reversed(range(count)):
            out = 0
            for k in after[n]:
                out |= live[k]
            into = uses[n] | out & ~kills[n]
            if into != live[n] or out != outs[n]:
                live[n], outs[n], changed = into, out, True
    defined, changed = [0] * count, True
    while changed:
        changed = False
        for n in range(count):
            out = defined[n] | makes[n]
            for k in after[n]:
                if out & ~defined[k]:
                    defined[k] |= out
                    changed = True
    return [out & (defined[n] | makes[n]) for n, out in enumerate(outs)], defined


def _walk(row: list[_Row], first: int, out: int, defined: int,
          intervals: list[tuple[int, int, int]]) -> None:
    """Adds the intervals of a block, from its end to its beginning."""
    point = first + 2 * len(row) + 1
    ends = dict.fromkeys(bits(out), point)
    live = out
    for reads, late, writes, kills in reversed(row):
        point -= 2
        for w in bits(writes):
            intervals.append((w, point + 1, ends.get(w, point + 1)))
            if kills >> w & 1:
                ends.pop(w, None)
            elif w in ends:
                ends[w] = point
        live &= ~kills
        for w in bits(late & ~live):
            ends[w] = point + 1
        new = reads & ~live
        for w in bits(new & ~late):
            ends[w] = point
        live |= reads
    for w, end in ends.items():
        if defined >> w & 1:
            intervals.append((w, first, end))
