"""Control words: stalls, scoreboards and waits for code in its last order.

State runs over the edges of the control flow until nothing changes: for each register how long ago it was written with a
fixed latency, and for each scoreboard which registers are still to be written or read under it. So a load at the end of a
loop is waited for where the next round uses it, and nowhere else.
"""

from __future__ import annotations

import functools
import operator
from bisect import bisect_left
from dataclasses import dataclass, field

from devrt.compiler.sass import latency, mir
from devrt.compiler.sass.instruction import Control, Instruction
from devrt.compiler.sass.liveness import unconditional

SCOREBOARDS = 6
NONE = 7
LONGEST = 15          # stall; more takes a NOP
HINT = 12             # stalls from here on need the yield hint
_HORIZON = 32         # cycles after which every fixed latency is over
BRANCHES = ("BRA", "EXIT", "RET", "CALL", "BRX", "JMP")
_AHEAD = 2            # least stall of what releases a scoreboard that the next instruction waits for


@dataclass(eq=False)
class _Step:
    """An instruction with its accesses as bit masks over words that occur, and what is decided for it."""

    instruction: Instruction
    reads: list[latency.Access]
    writes: list[latency.Access]
    read_mask: int
    write_mask: int
    decoupled: bool
    late: int  # the words that it reads late
    queue: str    # in which it reads them
    results: str  # and in which its results come
    passed_on: bool = False  # a later instruction of its queue says that it has read, too
    write_board: int = NONE
    read_board: int = NONE
    wait: int = 0
    stall: int = 1


@dataclass
class _Times:
    """What was written and read a short while ago: word -> (role, whether it was guarded) -> the cycle, and role -> the cycle.
    Cycles count from the block's first issue, in front of it they are negative."""

    writes: dict[int, dict[tuple[str, bool], int]] = field(default_factory=dict)
    reads: dict[int, dict[str, int]] = field(default_factory=dict)

    def shifted(self, by: int) -> _Times:
        """The same seen from `by` cycles later, without what is over."""
        old = by - _HORIZON
        return _Times({w: kept for w, row in self.writes.items() if (kept := {k: c - by for k, c in row.items() if c > old})},
                      {w: last for w, seen in self.reads.items() if (last := {r: c - by for r, c in seen.items() if c > old})})

    def merge(self, other: _Times) -> None:
        """Takes in what came another way: of the same kind the latest counts."""
        for word, row in other.writes.items():
            here = self.writes.setdefault(word, {})
            for key, cycle in row.items():
                here[key] = max(here.get(key, cycle), cycle)
        for word, seen in other.reads.items():
            last = self.reads.setdefault(word, {})
            for role, cycle in seen.items():
                last[role] = max(last.get(role, cycle), cycle)


_Boards = tuple[tuple[int, int], ...]  # of each scoreboard: words to be written, words to be read under it
_NOTHING: dict[tuple[str, bool], int] = {}
_UNREAD: dict[str, int] = {}
_IDLE: _Boards = ((0, 0),) * SCOREBOARDS


def control(f: mir.Function) -> mir.Function:
    """The function with a Control in every instruction, and NOPs where a stall is too long for one."""
    t = latency.tables(f.sm)
    words: dict[int, int] = {}
    rows = [[_step(i, f.sm, t, words) for i in block.instructions] for block in f.blocks]
    after = [[k for k in f.successors(n) if k < len(rows)] for n in range(len(rows))]
    later = _overwritten(rows, after)
    _boards(rows, after, later)
    _waits(rows, after)
    _stalls(rows, after, t)
    return mir.Function(f.name, f.sm, f.threads, [mir.Block(b.label, _emit(row)) for b, row in zip(f.blocks, rows, strict=True)],
                        f.shared_bytes, f.local_bytes, f.params, f.constants, f.words)


def _step(i: Instruction, sm: int, t: latency.Tables, words: dict[int, int]) -> _Step:
    reads, writes = latency.accesses(i, sm)
    read_mask = write_mask = 0
    late_mask = 0
    for word, _ in reads:
        bit = 1 << words.setdefault(word, len(words))
        read_mask |= bit
        late_mask |= bit if word < latency.R_END else 0
    for word, _ in writes:
        write_mask |= 1 << words.setdefault(word, len(words))
    late = latency.reads_late(i, sm)
    return _Step(i, reads, writes, read_mask, write_mask, any(role in t.decoupled and role != "b" for _, role in writes),
                 late_mask if late else 0, latency.reading_queue(i, sm), latency.writing_queue(i, sm))


# ---------------------------------------------------------------------------------------------------------------------
# Scoreboards

def _overwritten(rows: list[list[_Step]], after: list[list[int]]) -> list[tuple[int, int]]:
    """Words that are written, and that are read or written, on some way behind each block."""
    writes = [0] * len(rows)
    touches = [0] * len(rows)
    for n, row in enumerate(rows):
        for step in row:
            writes[n] |= step.write_mask
            touches[n] |= step.write_mask | step.read_mask
    found, changed = [(0, 0)] * len(rows), True
    while changed:
        changed = False
        for n in reversed(range(len(rows))):
            w = t = 0
            for k in after[n]:
                w |= writes[k] | found[k][0]
                t |= touches[k] | found[k][1]
            if (w, t) != found[n]:
                found[n], changed = (w, t), True
    return found


@dataclass
class _Open:
    """What a scoreboard stands for while they are given out: words to be written and to be read, when the last is done, and the
    cycle of the first need, as reckoned."""

    writes: int = 0
    reads: int = 0
    done: int = 0
    need: int = 1 << 30


def _boards(rows: list[list[_Step]], after: list[list[int]], later: list[tuple[int, int]]) -> None:
    """Gives scoreboards out. Twice over all blocks, so that what a loop leaves open is known at its head."""
    ends: list[_Boards] = [_IDLE] * len(rows)
    before: list[list[int]] = [[] for _ in rows]
    for n, ways in enumerate(after):
        for k in ways:
            before[k].append(n)
    for _ in range(2):
        for n, row in enumerate(rows):
            boards = [_Open() for _ in range(SCOREBOARDS)]
            for k in before[n]:
                for board, (w, r) in zip(boards, ends[k], strict=True):
                    board.writes |= w
                    board.reads |= r
            _give_out(row, boards, later[n])
            ends[n] = tuple((board.writes, board.reads) for board in boards)


def _give_out(row: list[_Step], boards: list[_Open], later: tuple[int, int]) -> None:
    """Scoreboards for a block: a free one, or else one with which neither side waits longer than it would."""
    needs = _needs(row, later)
    _pass_on(row, needs)
    carried: dict[str, int] = {}  # words that are still to be read, by queue
    for cycle, (step, (need, war)) in enumerate(zip(row, needs, strict=True)):
        touched = step.read_mask | step.write_mask
        for board in boards:
            if board.writes & touched or board.reads & step.write_mask:
                board.writes = board.reads = 0
                board.need = 1 << 30
        step.write_board = step.read_board = NONE
        done = cycle + latency.expected(step.instruction)
        if step.decoupled and need >= 0:
            step.write_board = _pick(boards, cycle, need, done)
            _add(boards[step.write_board], step.write_mask, 0, need, done)
        if step.passed_on:
            carried[step.queue] = carried.get(step.queue, 0) | step.late
        elif step.late and war >= 0 and not (step.write_board != NONE and need <= war):
            place = _pick(boards, cycle, war, cycle + 16)
            if place != step.write_board:
                step.read_board = place
            _add(boards[place], 0, step.late | carried.pop(step.queue, 0), war, cycle + 16)
        elif step.late and step.write_board != NONE:
            boards[step.write_board].reads |= step.late | carried.pop(step.queue, 0)


def _needs(row: list[_Step], later: tuple[int, int]) -> list[tuple[int, int]]:
    """Of each step the position of the first that touches what it writes, and of the first that writes what it reads; behind the
    block: its length; never: -1."""
    needs = []
    writes, touches = later
    end = len(row)
    next_touch: dict[int, int] = {}
    next_write: dict[int, int] = {}
    for n in reversed(range(end)):
        step = row[n]
        need = war = -1
        if step.decoupled:
            places = [next_touch[word] for word, _ in step.writes if word in next_touch]
            need = min(places) if places else end if touches & step.write_mask else -1
        if step.late:
            places = [next_write[word] for word, _ in step.reads if word in next_write and word < latency.R_END]
            war = min(places) if places else end if writes & step.late else -1
        needs.append((need, war))
        for word, _ in step.reads:
            next_touch[word] = n
        for word, _ in step.writes:
            next_touch[word] = next_write[word] = n
    return needs[::-1]


def _pass_on(row: list[_Step], needs: list[tuple[int, int]]) -> None:
    """Where a queue reads in order, the last reader in front of a write says of all that they have read."""
    queues: dict[str, list[int]] = {}
    for n, step in enumerate(row):
        if step.late and step.queue:
            queues.setdefault(step.queue, []).append(n)
    for places in queues.values():
        for k, n in enumerate(places):
            war = needs[n][1]
            last = bisect_left(places, war) - 1 if war >= 0 else k
            row[n].passed_on = last > k
            if last > k:
                m = places[last]
                needs[m] = needs[m][0], war if needs[m][1] < 0 else min(war, needs[m][1])


def _pick(boards: list[_Open], cycle: int, need: int, done: int) -> int:
    costs = []
    for n, board in enumerate(boards):
        if not board.writes and not board.reads:
            return n
        theirs = max(0, done - max(board.need, cycle)) if board.need < need else 0
        ours = max(0, board.done - max(need, cycle)) if board.done > done else 0
        costs.append((theirs + ours, abs(board.need - need), n))
    return min(costs)[2]


def _add(board: _Open, writes: int, reads: int, need: int, done: int) -> None:
    board.writes |= writes
    board.reads |= reads
    board.need = min(board.need, need)
    board.done = max(board.done, done)


def _waits(rows: list[list[_Step]], after: list[list[int]]) -> None:
    """The scoreboards that each instruction waits for, with what is open on any way to it."""
    entry: list[_Boards | None] = [None] * len(rows)
    entry[0] = _IDLE
    work = [0]
    while work:
        n = work.pop()
        state = entry[n]
        assert state is not None
        end = _run_boards(rows[n], state)
        for k in after[n]:
            old = entry[k]
            new = end if old is None else tuple((a | c, b | d) for (a, b), (c, d) in zip(old, end, strict=True))
            if new != old:
                entry[k] = new
                work.append(k)
    for row, state in zip(rows, entry, strict=True):
        _run_boards(row, state or _IDLE)


def _run_boards(row: list[_Step], state: _Boards) -> _Boards:
    boards = list(state)
    carried: dict[str, int] = {}
    results: dict[str, list[tuple[int, int]]] = {}  # by queue: (scoreboard, words to be written), in order
    for step in row:
        step.wait = _wait(boards, results, step.read_mask | step.write_mask, step.write_mask)
        if step.write_board != NONE:
            writes, reads = boards[step.write_board]
            boards[step.write_board] = (writes | step.write_mask, reads)
            if step.results:
                results.setdefault(step.results, []).append((step.write_board, step.write_mask))
        if step.passed_on:
            carried[step.queue] = carried.get(step.queue, 0) | step.late
        elif step.late and (step.read_board if step.read_board != NONE else step.write_board) != NONE:
            board = step.read_board if step.read_board != NONE else step.write_board
            writes, reads = boards[board]
            boards[board] = (writes, reads | step.late | carried.pop(step.queue, 0))
    return tuple(boards)


def _wait(boards: list[tuple[int, int]], results: dict[str, list[tuple[int, int]]], touched: int, written: int) -> int:
    """The scoreboards that an instruction waits for. Of results that come in order the last one that it waits for says that those
    before it are there."""

    def needed() -> list[int]:
        return [n for n, (writes, reads) in enumerate(boards) if writes & touched or reads & written]

    def free(n: int) -> None:
        boards[n] = (0, 0)
        for rows in results.values():
            rows[:] = [row for row in rows if row[0] != n]

    wait, missing = 0, needed()
    for rows in results.values() if missing else ():
        last = max((k for k, (board, _) in enumerate(rows) if board in missing), default=-1)
        if last >= 0:
            waited, there = rows[last][0], rows[:last]
            wait |= 1 << waited
            del rows[:last + 1]
            for board, words in there:  # unless a later one under the same scoreboard writes them again
                still = functools.reduce(operator.or_, (w for b, w in rows if b == board), 0)
                boards[board] = (boards[board][0] & ~words | still, boards[board][1])
            free(waited)
            missing = needed()
    for n in missing:
        wait |= 1 << n
        free(n)
    return wait


# ---------------------------------------------------------------------------------------------------------------------
# Stalls

def _stalls(rows: list[list[_Step]], after: list[list[int]], t: latency.Tables) -> None:
    """The least stalls that keep all fixed latencies, on every way. What the first instruction of a block lacks is added to
    the last ones in front of it. Stalls only grow, so this ends."""
    before: list[list[int]] = [[] for _ in rows]
    for n, ways in enumerate(after):
        for k in ways:
            before[k].append(n)
    ends: list[_Times] = [_Times() for _ in rows]
    work = list(range(len(rows)))
    while work:
        n = work.pop(0)
        entry = _Times()
        for k in before[n]:
            entry.merge(ends[k])
        lead, end = _run_times(rows[n], entry, t)
        if lead:
            for k in before[n]:
                rows[k][-1].stall += lead
            again = [k for k in before[n] if k != n]  # before the block itself, which sees their new ends
            work = again + [k for k in work if k not in again and k != n] + [n]
        if end != ends[n]:
            ends[n] = end
            work += [k for k in after[n] if k not in work]


def _run_times(row: list[_Step], times: _Times, t: latency.Tables) -> tuple[int, _Times]:
    """Raises a block's stalls to what it needs. Returns the cycles that its first instruction lacks, and what was written and
    read, as its successors see it. Changes `times`."""
    writes, reads = times.writes, times.reads
    lead = cycle = 0
    last: _Step | None = None
    for step in row:
        need = 0
        for word, role in step.reads:
            for (made, _), at in writes.get(word, _NOTHING).items():
                need = max(need, at + latency.read_after_write(t, made, role))
        for word, role in step.writes:
            for (made, guarded), at in writes.get(word, _NOTHING).items():
                need = max(need, at + latency.write_after_write(t, made, role, guarded))
            for seen, at in reads.get(word, _UNREAD).items():
                need = max(need, at + latency.write_after_read(t, seen, role))
        if last is None:
            lead = need
        else:
            boards = sum(1 << b for b in (last.write_board, last.read_board) if b != NONE)
            last.stall = max(last.stall, latency.least_stall(last.instruction), _AHEAD if boards & step.wait else 1, need - cycle)
            cycle += last.stall
        whole = unconditional(step.instruction)
        for word, role in step.reads:
            reads.setdefault(word, {})[role] = cycle
        for word, role in step.writes:
            if whole:
                writes[word], reads[word] = {}, {}
            if role not in t.decoupled:
                writes.setdefault(word, {})[role, not whole] = cycle
        last = step
    if last is not None:
        released = last.write_board != NONE or last.read_board != NONE
        last.stall = max(last.stall, latency.least_stall(last.instruction), _AHEAD if released else 1)
        cycle += last.stall
    return lead, times.shifted(cycle)


def _emit(row: list[_Step]) -> list[Instruction]:
    """The instructions. What is more than the longest stall goes to NOPs behind, or in front of a branch."""
    out: list[Instruction] = []
    for step in row:
        i = step.instruction
        first, more = min(step.stall, LONGEST), []
        for rest in range(step.stall - first, 0, -LONGEST):
            more.append(Instruction("NOP", control=_pause(min(rest, LONGEST))))
        branch = i.op in BRANCHES
        done = Instruction(i.op, i.mods, i.dsts, i.srcs, i.guard,
                           Control(first, first >= HINT, step.write_board, step.read_board, step.wait), i.address)
        out += [*more, done] if branch else [done, *more]
    return out


def _pause(cycles: int) -> Control:
    return Control(cycles, cycles >= HINT)
