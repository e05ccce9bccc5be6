"""A proof that machine code waits for everything: on every path, each read and write comes late enough or behind its scoreboard.

A state says what is under way: when registers were written and read by what takes a fixed time, and under which scoreboards
they are to be written or read. It runs through the blocks until it changes no more; where paths meet, the worse of both
counts. The tables of latencies are the only thing that this shares with what schedules.

What hardware does beyond stalls and waits, and who says so:

- A stall of 0 (with the yield hint, the only way it is encoded) lasts until the instruction has done all it does. ptxas -O0 and
  -G write it on every instruction and take no scoreboard at all, for loads and cp.async neither, and such code runs. basalt
  measured it on an RTX 5070 Ti (its docs/FINDINGS.md, 1): about 37 cycles in a chain of IMADs, and never a wrong result, where 1
  to 3 are wrong. ptxas counts on the time (an ERRBAR of 0 between a predicate and who reads it); beyond that nothing is concluded
  about what was under way before that instruction.
- A scoreboard is a counter. DEPBAR.LE SBx, n goes on when at most n are left of those that took it. Only what comes back in the
  order of issue says which ones these are: what shares a writing queue (latency.py). Loads from global memory do not; ptxas
  counts cp.async's groups alone (LDGDEPBAR), which end in order and write no register. Who reads shared memory too early is
  found when it does (devrt/virtual/nvidia/translate/copies.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from devrt.compiler.sass import latency
from devrt.compiler.sass.flow import FlowBlock
from devrt.compiler.sass.instruction import File, Imm, Instruction, Reg

_FORGET = 40     # cycles after which what takes a fixed time is over
_LONG = 32       # cycles that a stall of 0 takes at least
_BOARDS = 6
_COUNTS = 64     # more than DEPBAR can leave
_HOLDS = 1 << 8  # beside the scoreboards: the guard of that instruction has not changed since
_Key = TypeVar("_Key")


@dataclass
class _State:
    """What is under way in front of an instruction. Times count from a block's beginning; what lies before it is negative.

    written: word -> (role, guarded) -> (cycle, address of the writer)
    read:    word -> role -> (cycle, address of the reader)
    coming:  word -> address of the writer -> scoreboards, any of which says that it has written: its own, and those of later
             instructions whose results come in order behind its
    used:    word -> address of the reader -> scoreboards, any of which says that it has read
    taken:   scoreboard -> (cycle in which it was last taken, by what)
    order:   address of a writer whose results come in order -> how often each scoreboard was taken from it on, itself included,
             by what comes back behind it
    """

    written: dict[int, dict[tuple[str, bool], tuple[int, int]]] = field(default_factory=dict)
    read: dict[int, dict[str, tuple[int, int]]] = field(default_factory=dict)
    coming: dict[int, dict[int, int]] = field(default_factory=dict)
    used: dict[int, dict[int, int]] = field(default_factory=dict)
    taken: dict[int, tuple[int, int]] = field(default_factory=dict)
    order: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State({w: dict(x) for w, x in self.written.items()}, {w: dict(x) for w, x in self.read.items()},
                      {w: dict(x) for w, x in self.coming.items()}, {w: dict(x) for w, x in self.used.items()}, dict(self.taken),
                      dict(self.order))

    def later(self, cycles: int) -> _State:
        """The same seen from so many cycles later."""
        old = cycles - _FORGET
        written = {word: kinds for word, row in self.written.items() if (kinds := _shifted(row, cycles, old))}
        read = {word: roles for word, seen in self.read.items() if (roles := _shifted(seen, cycles, old))}
        return _State(written, read, self.coming, self.used, _shifted(self.taken, cycles, old), self.order)

    def meet(self, other: _State) -> bool:
        """Takes in what is under way on another path; True where that is anything new."""
        changed = False
        for word, kinds in other.written.items():
            changed |= _latest(self.written.setdefault(word, {}), kinds)
        for word, roles in other.read.items():
            changed |= _latest(self.read.setdefault(word, {}), roles)
        changed |= _latest(self.taken, other.taken)
        for address, counts in other.order.items():
            least = tuple(map(min, counts, self.order.get(address, counts)))
            changed |= self.order.get(address) != least
            self.order[address] = least
        return changed | _fewest(self.coming, other.coming) | _fewest(self.used, other.used)


def _shifted(times: Mapping[_Key, tuple[int, int]], cycles: int, old: int) -> dict[_Key, tuple[int, int]]:
    return {key: (cycle - cycles, address) for key, (cycle, address) in times.items() if cycle > old}


def _latest(mine: dict[_Key, tuple[int, int]], theirs: Mapping[_Key, tuple[int, int]]) -> bool:
    changed = False
    for key, row in theirs.items():
        if key not in mine or mine[key][0] < row[0]:
            mine[key] = row
            changed = True
    return changed


def _fewest(mine: dict[int, dict[int, int]], theirs: Mapping[int, Mapping[int, int]]) -> bool:
    changed = False
    for word, row in theirs.items():
        here = mine.setdefault(word, {})
        for address, boards in row.items():
            both = boards & here.get(address, boards)
            if here.get(address) != both:
                here[address] = both
                changed = True
    return changed


class _Row:
    """An instruction with its accesses at hand."""

    def __init__(self, i: Instruction, sm: int) -> None:
        t = latency.tables(sm)
        self.instruction = i
        reads, writes = latency.accesses(i, sm)
        self.reads = [(word, role) for word, role in reads if role != "b"]
        self.writes = [(word, role) for word, role in writes if role != "b"]
        self.guarded = isinstance(i.guard.value, Reg) and not (i.guard.value.zero and not i.guard.inv)
        self.guard = latency.numbers(i.guard.value)[0] if self.guarded and isinstance(i.guard.value, Reg) else -1
        self.late = latency.reads_late(i, sm)
        self.reads_in, self.writes_in = latency.reading_queue(i, sm), latency.writing_queue(i, sm)
        control = i.control
        self.released = sum({1 << board for board in (control.write, control.read) if board < _BOARDS})
        self.written_under = 1 << control.write if control.write < _BOARDS else 0
        self.holds = _HOLDS if self.guarded and all(word != self.guard for word, _ in self.writes) else 0
        self.fixed = [(word, role) for word, role in self.writes if role not in t.decoupled]
        self.variable = [word for word, role in self.writes if role in t.decoupled]
        # ATOM's predicate, whether the address is a global one, is there when the address was read: ptxas waits for that alone.
        self.early = self.released if i.op == "ATOM" else self.written_under


def hazards(blocks: Mapping[int, FlowBlock], entry: int, sm: int) -> dict[int, str]:
    """What is missing in front of instructions, by address; nothing for code that waits for all it must."""
    code = {address: [_Row(i, sm) for i in block.instructions] for address, block in blocks.items()}
    by_address = {row.instruction.address: row for rows in code.values() for row in rows}
    states: dict[int, _State] = {entry: _State()}
    work = [entry]
    while work:
        address = work.pop()
        end = _run(code[address], states[address].copy(), latency.tables(sm), by_address, None)
        for way in blocks[address].successors:
            if way not in states:
                states[way] = end.copy()
            elif not states[way].meet(end):
                continue
            if way not in work:
                work.append(way)
    found: dict[int, str] = {}
    for address, state in states.items():
        _run(code[address], state.copy(), latency.tables(sm), by_address, found)
    return found


def _run(rows: list[_Row], state: _State, t: latency.Tables, by_address: Mapping[int, _Row],
         found: dict[int, str] | None) -> _State:
    """A block. Notes what is missing in `found`; returns the state behind it."""
    cycle = 0
    for row in rows:
        i = row.instruction
        wait = i.control.wait | _emptied(i)
        if found is not None:
            missing = _missing(row, state, t, cycle, wait, by_address)
            if missing:
                found[i.address] = missing
        if wait:
            _waited(state, wait)
        _counted(state, i)
        if i.op == "BAR" and "ARV" not in i.mods:  # it goes the way of memory accesses, and returns
            state.used = {word: left for word, readers in state.used.items() if (left := {
                a: boards for a, boards in readers.items() if by_address[a].reads_in != row.reads_in})}
        if row.released and row.reads_in:
            for readers in state.used.values():
                for address, boards in readers.items():
                    if by_address[address].reads_in == row.reads_in:
                        readers[address] = boards | row.released
        if row.written_under and row.writes_in:
            for writers in state.coming.values():
                for address, boards in writers.items():
                    if by_address[address].writes_in == row.writes_in:
                        writers[address] = boards | row.written_under
        _guards_change(row, state, by_address)
        if i.control.stall:
            _under_way(row, state, cycle)
            _in_order(row, state, by_address)
        else:
            _overwritten(row, state)
        cycle += i.control.stall or _LONG
    return state.later(cycle)


def _under_way(row: _Row, state: _State, cycle: int) -> None:
    """Notes what an instruction is about to read and to write."""
    address = row.instruction.address
    for word, role in row.reads:
        if row.late and word < latency.R_END:
            state.used.setdefault(word, {})[address] = row.released | row.holds
        else:
            state.read.setdefault(word, {})[role] = (cycle, address)
    _overwritten(row, state)
    for word, role in row.fixed:
        state.written.setdefault(word, {})[role, row.guarded] = (cycle, address)
    for word in row.variable:
        under = row.written_under if word < latency.R_END else row.early
        state.coming.setdefault(word, {})[address] = under | row.holds
    for board in range(_BOARDS):
        if row.released >> board & 1:
            state.taken[board] = (cycle, address)


def _overwritten(row: _Row, state: _State) -> None:
    """Forgets what was under way for words that an instruction writes in all lanes: it has been asked for."""
    if not row.guarded:
        for word, _ in row.writes:
            for kinds in (state.written, state.read, state.coming, state.used):
                kinds.pop(word, None)


def _in_order(row: _Row, state: _State, by_address: Mapping[int, _Row]) -> None:
    """Counts a scoreboard that is taken behind what comes back earlier."""
    if not row.written_under or not row.writes_in:
        return
    if not row.guarded:
        for address, counts in state.order.items():
            if by_address[address].writes_in == row.writes_in:
                state.order[address] = _taken_once_more(counts, row)
    state.order[row.instruction.address] = _taken_once_more((0,) * _BOARDS, row)


def _taken_once_more(counts: tuple[int, ...], row: _Row) -> tuple[int, ...]:
    return tuple(min(n + (row.written_under >> board & 1), _COUNTS) for board, n in enumerate(counts))


def _guards_change(row: _Row, state: _State, by_address: Mapping[int, _Row]) -> None:
    """Forgets that guards hold which the instruction writes."""
    written = {word for word, _ in row.writes if word >= latency.R_END}
    if written:
        for pending in (state.coming, state.used):
            for marks in pending.values():
                for address in marks:
                    if by_address[address].guard in written:
                        marks[address] &= ~_HOLDS


def _excluded(row: _Row, other: _Row, boards: int) -> bool:
    """True where only one of two instructions does anything: their guards are each other's opposite."""
    return bool(boards & _HOLDS) and row.guard == other.guard and row.instruction.guard.inv != other.instruction.guard.inv


def _emptied(i: Instruction) -> int:
    """The scoreboards that DEPBAR waits for until nothing is left under them: its own if the count is 0, and those of its set."""
    if i.op != "DEPBAR":
        return 0
    board, count, others = depbar(i)
    return (0 if count or board < 0 else 1 << board) | others


def depbar(i: Instruction) -> tuple[int, int, int]:
    """(scoreboard, or -1; how many may be left under it; the set of scoreboards that are to be empty) of DEPBAR."""
    boards = [o.value.index for o in i.srcs if isinstance(o.value, Reg) and o.value.file is File.SB]
    count, *others = [o.value.value for o in i.srcs if isinstance(o.value, Imm)] or [0]
    return (boards or [-1])[0], count, others[0] if others else 0


def _counted(state: _State, i: Instruction) -> None:
    """Forgets the writers that DEPBAR's count leaves none of: more came back behind them than may be left."""
    if i.op != "DEPBAR":
        return
    board, count, _ = depbar(i)
    done = {address for address, counts in state.order.items() if board >= 0 and counts[board] > count}
    for pending in (state.coming, state.used) if done else ():
        for word, row in list(pending.items()):
            pending[word] = {address: boards for address, boards in row.items() if address not in done}


def _waited(state: _State, wait: int) -> None:
    for pending in (state.coming, state.used):
        for word, row in list(pending.items()):
            left = {address: boards for address, boards in row.items() if not boards & wait}
            if left:
                pending[word] = left
            else:
                del pending[word]


def _missing(row: _Row, state: _State, t: latency.Tables, cycle: int, wait: int, by_address: Mapping[int, _Row]) -> str:
    """The first thing that an instruction does not wait for, in words, or ""."""
    for board, (at, address) in state.taken.items():
        if row.instruction.control.wait >> board & 1 and cycle - at < 2:
            return f"scoreboard {board} is waited for in the cycle after {address:#x} took it"
    for word, role in row.reads:
        for address, boards in state.coming.get(word, {}).items():
            if not boards & wait and not _excluded(row, by_address[address], boards):
                return f"reads {_name(word)}, which {address:#x} writes{_under(boards)}"
        for (made, _), (at, address) in state.written.get(word, {}).items():
            need = latency.read_after_write(t, made, role)
            if cycle - at < need:
                return f"reads {_name(word)} {cycle - at} cycles after {address:#x}, whose result takes {need}"
    for word, role in row.writes:
        for address, boards in state.coming.get(word, {}).items():
            other = by_address[address]
            if not (boards & wait or row.writes_in and other.writes_in == row.writes_in or _excluded(row, other, boards)):
                return f"writes {_name(word)}, which {address:#x} writes{_under(boards)}"
        for address, boards in state.used.get(word, {}).items():
            other = by_address[address]
            if not (boards & wait or row.reads_in and other.reads_in == row.reads_in or _excluded(row, other, boards)):
                return f"writes {_name(word)}, which {address:#x} reads{_under(boards)}"
        for (made, guarded), (at, address) in state.written.get(word, {}).items():
            need = latency.write_after_write(t, made, role, guarded)
            # What it also reads it writes later still: NAK, which real cards run, waits for the read alone.
            if cycle - at < need and all(word != other for other, _ in row.reads):
                return f"writes {_name(word)} {cycle - at} cycles after {address:#x} wrote it, {need} are needed"
        for seen, (at, address) in state.read.get(word, {}).items():
            need = latency.write_after_read(t, seen, role)
            if cycle - at < need:
                return f"writes {_name(word)} {cycle - at} cycles after {address:#x} read it, {need} are needed"
    return ""


def _name(word: int) -> str:
    return next(f"{file.value}{word - latency.number(file, 0)}" for file in File
                if 0 <= word - latency.number(file, 0) < latency.R_END)


def _under(boards: int) -> str:
    numbers = [n for n in range(_BOARDS) if boards >> n & 1]
    return f" under scoreboard {', '.join(map(str, numbers))}" if numbers else " under no scoreboard"
