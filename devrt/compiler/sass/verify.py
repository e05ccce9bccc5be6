"""A proof that machine code waits for everything: on every path, each read and write comes late enough or behind its scoreboard.

A state says what is under way: when registers were written and read by what takes a fixed time, and under which scoreboards
they are to be written or read. It runs through the blocks until it changes no more; where paths meet, the worse of both
counts. The tables of latencies are the only thing that this shares with what schedules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from devrt.compiler.sass import latency
from devrt.compiler.sass.flow import FlowBlock
from devrt.compiler.sass.instruction import File, Imm, Instruction, Reg

_FORGET = 40     # cycles after which what takes a fixed time is over
_NEVER = 1 << 7  # in the place of a scoreboard: nothing tells when it is done
_QUEUED = 1 << 8
_BOARDS = 6
_Key = TypeVar("_Key")


@dataclass
class _State:
    """What is under way in front of an instruction. Times count from a block's beginning; what lies before it is negative.

    written: word -> (role, guarded) -> (cycle, address of the writer)
    read:    word -> role -> (cycle, address of the reader)
    coming:  word -> address of the writer -> scoreboards, all of which must be waited for
    used:    word -> address of the reader -> scoreboards, any of which says that it has read; bit 8 where it is one of those
             that read in order, so that a scoreboard of a later one will do
    taken:   scoreboard -> (cycle in which it was last taken, by what)
    """

    written: dict[int, dict[tuple[str, bool], tuple[int, int]]] = field(default_factory=dict)
    read: dict[int, dict[str, tuple[int, int]]] = field(default_factory=dict)
    coming: dict[int, dict[int, int]] = field(default_factory=dict)
    used: dict[int, dict[int, int]] = field(default_factory=dict)
    taken: dict[int, tuple[int, int]] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State({w: dict(x) for w, x in self.written.items()}, {w: dict(x) for w, x in self.read.items()},
                      {w: dict(x) for w, x in self.coming.items()}, {w: dict(x) for w, x in self.used.items()}, dict(self.taken))

    def later(self, cycles: int) -> _State:
        """The same seen from so many cycles later."""
        old = cycles - _FORGET
        written = {word: kinds for word, row in self.written.items() if (kinds := _shifted(row, cycles, old))}
        read = {word: roles for word, seen in self.read.items() if (roles := _shifted(seen, cycles, old))}
        return _State(written, read, self.coming, self.used, _shifted(self.taken, cycles, old))

    def meet(self, other: _State) -> bool:
        """Takes in what is under way on another path; True where that is anything new."""
        changed = False
        for word, kinds in other.written.items():
            changed |= _latest(self.written.setdefault(word, {}), kinds)
        for word, roles in other.read.items():
            changed |= _latest(self.read.setdefault(word, {}), roles)
        changed |= _latest(self.taken, other.taken)
        for word, writers in other.coming.items():
            mine = self.coming.setdefault(word, {})
            for address, boards in writers.items():
                if boards & ~mine.get(address, 0):
                    mine[address] = mine.get(address, 0) | boards
                    changed = True
        for word, readers in other.used.items():
            mine = self.used.setdefault(word, {})
            for address, boards in readers.items():
                both = boards if address not in mine else mine[address] & boards
                if mine.get(address) != both:
                    mine[address] = both
                    changed = True
        return changed


def _shifted(times: Mapping[_Key, tuple[int, int]], cycles: int, old: int) -> dict[_Key, tuple[int, int]]:
    return {key: (cycle - cycles, address) for key, (cycle, address) in times.items() if cycle > old}


def _latest(mine: dict[_Key, tuple[int, int]], theirs: Mapping[_Key, tuple[int, int]]) -> bool:
    changed = False
    for key, row in theirs.items():
        if key not in mine or mine[key][0] < row[0]:
            mine[key] = row
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
        self.late = latency.reads_late(i, sm)
        self.queued = _QUEUED if latency.in_order(i, sm) else 0
        control = i.control
        self.released = sum({1 << board for board in (control.write, control.read) if board < _BOARDS})
        self.written_under = 1 << control.write if control.write < _BOARDS else _NEVER
        self.fixed = [(word, role) for word, role in self.writes if role not in t.decoupled]
        self.variable = [word for word, role in self.writes if role in t.decoupled]


def hazards(blocks: Mapping[int, FlowBlock], entry: int, sm: int) -> dict[int, str]:
    """What is missing in front of instructions, by address; nothing for code that waits for all it must."""
    code = {address: [_Row(i, sm) for i in block.instructions] for address, block in blocks.items()}
    states: dict[int, _State] = {entry: _State()}
    work = [entry]
    while work:
        address = work.pop()
        end = _run(code[address], states[address].copy(), latency.tables(sm), None)
        for way in blocks[address].successors:
            if way not in states:
                states[way] = end.copy()
            elif not states[way].meet(end):
                continue
            if way not in work:
                work.append(way)
    found: dict[int, str] = {}
    for address, state in states.items():
        _run(code[address], state.copy(), latency.tables(sm), found)
    return found


def _run(rows: list[_Row], state: _State, t: latency.Tables, found: dict[int, str] | None) -> _State:
    """A block. Notes what is missing in `found`; returns the state behind it."""
    cycle = 0
    for row in rows:
        i = row.instruction
        wait = i.control.wait | _emptied(i)
        if found is not None:
            missing = _missing(row, state, t, cycle, wait)
            if missing:
                found[i.address] = missing
        if wait:
            _waited(state, wait)
        if row.queued and row.released:
            for readers in state.used.values():
                for address, boards in readers.items():
                    readers[address] = boards | row.released if boards & _QUEUED else boards
        for word, role in row.reads:
            if row.late:
                state.used.setdefault(word, {})[i.address] = row.released | row.queued
            else:
                state.read.setdefault(word, {})[role] = (cycle, i.address)
        if not row.guarded:
            for word, _ in row.writes:
                for kinds in (state.written, state.read, state.coming, state.used):
                    kinds.pop(word, None)
        for word, role in row.fixed:
            state.written.setdefault(word, {})[role, row.guarded] = (cycle, i.address)
        for word in row.variable:
            state.coming.setdefault(word, {})[i.address] = row.written_under
        for board in range(_BOARDS):
            if row.released >> board & 1:
                state.taken[board] = (cycle, i.address)
        cycle += max(1, i.control.stall)
    return state.later(cycle)


def _emptied(i: Instruction) -> int:
    """The scoreboards that DEPBAR waits for until nothing is left under them. (With a count it lets the last so many go on, and
    no register is sure.)"""
    if i.op != "DEPBAR":
        return 0
    boards = [o.value.index for o in i.srcs if isinstance(o.value, Reg) and o.value.file is File.SB]
    counts = [o.value.value for o in i.srcs if isinstance(o.value, Imm)]
    return sum(1 << board for board in boards) if not any(counts) else 0


def _waited(state: _State, wait: int) -> None:
    for word, writers in list(state.coming.items()):
        left = {address: boards & ~wait for address, boards in writers.items() if boards & ~wait}
        if left:
            state.coming[word] = left
        else:
            del state.coming[word]
    for word, readers in list(state.used.items()):
        left = {address: boards for address, boards in readers.items() if not boards & wait}
        if left:
            state.used[word] = left
        else:
            del state.used[word]


def _missing(row: _Row, state: _State, t: latency.Tables, cycle: int, wait: int) -> str:
    """The first thing that an instruction does not wait for, in words, or ""."""
    for board, (at, address) in state.taken.items():
        if wait >> board & 1 and cycle - at < 2:
            return f"scoreboard {board} is waited for in the cycle after {address:#x} took it"
    for word, role in row.reads:
        for address, boards in state.coming.get(word, {}).items():
            if boards & ~wait:
                return f"reads {_name(word)}, which {address:#x} writes{_under(boards)}"
        for (made, _), (at, address) in state.written.get(word, {}).items():
            need = latency.read_after_write(t, made, role)
            if cycle - at < need:
                return f"reads {_name(word)} {cycle - at} cycles after {address:#x}, whose result takes {need}"
    for word, role in row.writes:
        for address, boards in state.coming.get(word, {}).items():
            if boards & ~wait:
                return f"writes {_name(word)}, which {address:#x} writes{_under(boards)}"
        for address, boards in state.used.get(word, {}).items():
            if not boards & wait and address != row.instruction.address:
                return f"writes {_name(word)}, which {address:#x} reads{_under(boards)}"
        for (made, guarded), (at, address) in state.written.get(word, {}).items():
            need = latency.write_after_write(t, made, role, guarded)
            if cycle - at < need:
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
