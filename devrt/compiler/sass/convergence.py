"""Convergence barriers, B0 to B15, as paths use them: what no path through a program may do.

BSSY notes which lanes will meet under a barrier, BSYNC waits for them, BREAK takes lanes out, BMOV puts a barrier into a register
and back. Here it is a matter of paths alone; what lanes do is seen when they do it (devrt/virtual/nvidia/translate/control.py).

A function finds the barriers of its callers and must put back those that it uses, so what is behind a call goes on with what was
there in front of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from devrt.compiler.sass.flow import End, FlowBlock
from devrt.compiler.sass.instruction import TRUE, File, Instruction, Reg

# What a barrier may be on the paths that lead to an instruction.
_FREE, _SET, _MOVED = 1, 2, 4  # nobody meets under it; BSSY set it; a register was put into it, of which nothing is known
_BARRIERS = 16
# The same of single lanes, which only running them tells.
LANES = {"BSSY": "the lane still meets others under that barrier", "BSYNC": "the lane is none of those that meet there",
         "WARPSYNC": "the lane is not in its mask"}
_State = tuple[int, ...]


def misuse(blocks: Mapping[int, FlowBlock], entry: int) -> dict[int, str]:
    """What is wrong with instructions, by address. Nothing is said of code whose indirect branches are not all known."""
    if any(b.end is End.INDIRECT and not b.successors for b in blocks.values()):
        return {}
    states: dict[int, _State] = {entry: (_FREE,) * _BARRIERS}
    work = [entry]
    while work:
        block = blocks[work.pop()]
        end = _through(block, states[block.address], None)
        for way in _ways(block):
            both = tuple(a | b for a, b in zip(end, states.get(way, end), strict=True))
            if states.get(way) != both:
                states[way] = both
                work.append(way)
    found: dict[int, str] = {}
    for address, state in states.items():
        _through(blocks[address], state, found)
    return found


def barrier(i: Instruction) -> int:
    """The convergence barrier that an instruction names, else -1."""
    return next((o.value.index for o in (*i.dsts, *i.srcs) if isinstance(o.value, Reg) and o.value.file is File.B), -1)


def _ways(block: FlowBlock) -> tuple[int, ...]:
    if block.end is End.RETURN:
        return ()
    return (*block.successors, block.falls) if block.end is End.CALL and block.falls >= 0 else block.successors


def _through(block: FlowBlock, state: _State, found: dict[int, str] | None) -> _State:
    """The state behind a block. Notes what is wrong in `found`."""
    now = list(state)
    for i in block.instructions:
        n = barrier(i)
        if n < 0:
            continue
        if found is not None and (wrong := _wrong(i, n, now[n])):
            found[i.address] = wrong
        after = _after(i, now[n])
        now[n] = after if i.guard == TRUE else now[n] | after
    return tuple(now)


def _wrong(i: Instruction, n: int, state: int) -> str:
    if i.op in ("BSYNC", "BREAK") and state & _FREE:
        return f"B{n} is not set by a BSSY on {'every' if state & ~_FREE else 'any'} way here"
    if i.op == "BSSY" and state == _SET:
        return f"lanes still meet under B{n}: no BSYNC since it was set"
    return ""


def _after(i: Instruction, state: int) -> int:
    if i.op == "BSSY":
        return _SET
    if i.op == "BSYNC":
        return _FREE
    if i.op == "BMOV":
        into = isinstance(i.dsts[0].value, Reg) and i.dsts[0].value.file is File.B
        return _MOVED if into else _FREE if "CLEAR" in i.mods else state
    return state
