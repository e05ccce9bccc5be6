"""Machine code as basic blocks: what can run from an entry on, decoded, with every way from block to block.

A call goes to its target and a RET to behind every call that may have led there, so a path through the blocks is a path through
the program, and some more. Indirect branches go where the image's attributes say.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from devrt.compiler.sass.instruction import Instruction, Label, Reg
from devrt.compiler.sass.isa.codec import IllegalInstruction, decode

WORD = 16  # bytes of an instruction


class End(enum.Enum):
    """What a block's last instruction does."""

    FALL = "fall"          # nothing: the next block is another's target
    BRANCH = "branch"      # BRA, JMP
    INDIRECT = "indirect"  # BRX, JMX, and their like
    CALL = "call"
    RETURN = "return"
    EXIT = "exit"          # EXIT, KILL


_ENDS = {"BRA": End.BRANCH, "JMP": End.BRANCH, "BRX": End.INDIRECT, "BRXU": End.INDIRECT, "JMX": End.INDIRECT,
         "JMXU": End.INDIRECT, "CALL": End.CALL, "RET": End.RETURN, "EXIT": End.EXIT, "KILL": End.EXIT, "BPT": End.EXIT}
_MARKS = ("BSSY", "WARPSYNC")  # their label, if any, begins a block


@dataclass(eq=False)
class FlowBlock:
    """Straight-line code from `address` on. `successors` are the addresses of the blocks that may follow; `falls` is that behind
    the block where it may go on there (of a CALL: where it returns to), else -1. `target`: of a branch or call, else -1;
    `reconverges`: targets of its BSSYs."""

    address: int
    instructions: list[Instruction] = field(default_factory=list)
    end: End = End.FALL
    target: int = -1
    falls: int = -1
    successors: tuple[int, ...] = ()
    reconverges: tuple[int, ...] = ()


def walk(code: bytes, entry: int, sm: int, base: int = 0,
         indirect: Mapping[int, tuple[int, ...]] | None = None) -> dict[int, FlowBlock]:
    """The blocks that can run from `entry` on, by address. `code` lies at `base`; all addresses count from where `base` does.
    `indirect`: targets by the address of an indirect branch. Raises IllegalInstruction for code that is none, or ends."""
    return _explore(lambda address: _decode(code, address - base, address, sm), entry, indirect or {})


def blocks_of(instructions: Sequence[Instruction]) -> dict[int, FlowBlock]:
    """The same of code that is not encoded yet: instructions with addresses, of which the first is the entry."""
    known = {i.address: i for i in instructions}

    def fetch(address: int) -> Instruction:
        if address not in known:
            raise IllegalInstruction(address, f"code of {len(known)} instructions goes on outside itself")
        return known[address]

    return _explore(fetch, instructions[0].address, {})


def _explore(fetch: Callable[[int], Instruction], entry: int, indirect: Mapping[int, tuple[int, ...]]) -> dict[int, FlowBlock]:
    known: dict[int, Instruction] = {}
    leaders, work = {entry}, [entry]
    while work:
        address = work.pop()
        while address not in known:
            i = known[address] = fetch(address)
            found = [*_targets(i, indirect), *((address + WORD,) if i.op in _ENDS and _goes_on(i) else ())]
            for target in found:
                leaders.add(target)
                if target not in known:
                    work.append(target)
            if i.op in _ENDS:
                break
            address += WORD
    blocks = {address: _block(address, known, leaders, indirect) for address in sorted(leaders)}
    _return(blocks)
    return blocks


def _decode(code: bytes, offset: int, address: int, sm: int) -> Instruction:
    if offset % WORD or not 0 <= offset <= len(code) - WORD:
        raise IllegalInstruction(address, f"code of {len(code)} bytes goes on outside itself")
    return decode(int.from_bytes(code[offset:offset + WORD], "little"), address, sm)


def label(i: Instruction) -> int:
    """The address that an instruction names, else -1."""
    return next((o.value.target for o in i.srcs if isinstance(o.value, Label) and isinstance(o.value.target, int)), -1)


def _targets(i: Instruction, indirect: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    end, target = _ENDS.get(i.op), label(i)
    if end is End.INDIRECT or target < 0:
        return indirect.get(i.address, ())
    return (target,) if end in (End.BRANCH, End.CALL) or i.op in _MARKS else ()


def _always(i: Instruction) -> bool:
    return isinstance(i.guard.value, Reg) and i.guard.value.zero and not i.guard.inv


def _goes_on(i: Instruction) -> bool:
    """True where the instruction behind a block's end may run next, or after a call."""
    end = _ENDS[i.op]
    if end is End.BRANCH:  # BRA has predicates of its own, and forms that only some lanes take
        conditions = [o for o in i.srcs if isinstance(o.value, Reg) and not (o.value.zero and not o.inv)]
        return not _always(i) or bool(conditions) or any(m in ("DIV", "CONV") for m in i.mods)
    return not _always(i) or end is End.CALL or (end is End.EXIT and any(isinstance(o.value, Reg) for o in i.srcs))


def _block(address: int, known: Mapping[int, Instruction], leaders: set[int],
           indirect: Mapping[int, tuple[int, ...]]) -> FlowBlock:
    block = FlowBlock(address)
    while True:
        i = known[address]
        block.instructions.append(i)
        address += WORD
        if i.op in _MARKS and label(i) >= 0:
            block.reconverges += (label(i),)
        if i.op in _ENDS:
            block.end = _ENDS[i.op]
            block.target = label(i) if block.end in (End.BRANCH, End.CALL) else -1
            block.falls = address if _goes_on(i) else -1
            behind = (block.falls,) if block.falls >= 0 and (block.end is not End.CALL or not _always(i)) else ()
            block.successors = tuple(dict.fromkeys((*_targets(i, indirect), *behind)))
            return block
        if address in leaders:
            block.falls, block.successors = address, (address,)
            return block


def _return(blocks: dict[int, FlowBlock]) -> None:
    """Gives each RET its ways back: behind the calls of the functions that it is in."""
    behind: dict[int, list[int]] = {}  # function -> where its calls return to
    for block in blocks.values():
        if block.end is End.CALL and block.target >= 0:
            behind.setdefault(block.target, []).append(block.falls)
    for function, places in behind.items():
        seen, work = {function}, [function]
        while work:
            block = blocks[work.pop()]
            if block.end is End.RETURN:
                block.successors = tuple(dict.fromkeys((*block.successors, *places)))
                continue
            ways = (block.falls,) if block.end is End.CALL else block.successors
            for way in ways:
                if way >= 0 and way not in seen:
                    seen.add(way)
                    work.append(way)
