"""What selection leaves behind: instructions whose results nobody reads, and registers that became parts of others."""

from __future__ import annotations

from dataclasses import replace

from devrt.compiler.sass.instruction import Address, Cbuf, File, Instruction, Operand, Reg

EFFECTS = ("STG", "STS", "STL", "BRA", "EXIT", "BAR", "WARPSYNC")
Code = list[Instruction | str]


def without_dead(code: Code) -> Code:
    """The instructions that a store or a branch depends on."""
    writers: dict[tuple[File, int], list[Instruction]] = {}
    wanted: list[Instruction] = []
    for item in code:
        if isinstance(item, str):
            continue
        if item.op in EFFECTS:
            wanted.append(item)
        for operand in item.dsts:
            value = operand.value
            if isinstance(value, Reg) and not value.zero:
                writers.setdefault((value.file, value.index), []).append(item)
    alive = set(map(id, wanted))
    while wanted:
        for r in wanted.pop().reads():
            for item in writers.pop((r.file, r.index), ()):
                if id(item) not in alive:
                    alive.add(id(item))
                    wanted.append(item)
    return [x for x in code if isinstance(x, str) or id(x) in alive]


def renamed(code: Code, names: dict[Reg, Reg]) -> Code:
    """`code` with other registers."""
    return [x if isinstance(x, str) else _renamed(x, names) for x in code] if names else code


def _renamed(i: Instruction, names: dict[Reg, Reg]) -> Instruction:
    if not any(r in names for r in (*i.reads(), *i.writes())):
        return i

    def operand(o: Operand) -> Operand:
        value = o.value
        if isinstance(value, Reg):
            return replace(o, value=names[value]) if value in names else o
        if isinstance(value, Address) and value.base in names:
            return replace(o, value=replace(value, base=names[value.base]))
        if isinstance(value, Cbuf) and value.index in names:
            return replace(o, value=replace(value, index=names[value.index]))
        return o
    return replace(i, dsts=tuple(map(operand, i.dsts)), srcs=tuple(map(operand, i.srcs)), guard=operand(i.guard))
