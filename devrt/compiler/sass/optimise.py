"""What selection leaves behind: instructions whose results nobody reads, and registers that became parts of others."""

from __future__ import annotations

from dataclasses import replace

from devrt.compiler.sass.instruction import TRUE, Address, Cbuf, File, Instruction, Label, Operand, Reg

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


# ---------------------------------------------------------------------------------------------------------------------
# Sums in place

_SUMS = {"FFMA": 2, "IMAD": 2, "FADD": 0, "FMNMX": 0}  # the operand that a chain of them goes through


def in_place(code: Code, words: dict[tuple[File, int], int]) -> Code:
    """A chain of sums in one register, that of the loop where it is carried round one: allocation has then nothing to find out.
    The result may take the operand's register if nobody reads the operand later, and the register is not written before the
    result's last reader."""
    writes: dict[Reg, int] = {}
    reads: dict[Reg, int] = {}
    for item in code:
        if not isinstance(item, str):
            for r in item.writes():
                writes[r] = writes.get(r, 0) + 1
            for r in item.reads():
                reads[r] = reads.get(r, 0) + 1
    out: Code = []
    start = 0
    for n, item in enumerate(code):
        if isinstance(item, str) or item.op == "BRA" or n == len(code) - 1:
            block = [x for x in code[start:n + 1] if not isinstance(x, str)]
            label = code[start - 1] if start else ""
            loop = not isinstance(item, str) and bool(item.srcs) and isinstance(label, str) and item.srcs[0].value == Label(label)
            out += _sums(block, loop, writes, reads, words)
            if isinstance(item, str):
                out.append(item)
            start = n + 1
    return out


def _sums(block: list[Instruction], loop: bool, writes: dict[Reg, int], reads: dict[Reg, int],
          words: dict[tuple[File, int], int]) -> list[Instruction]:
    """One block of `in_place`. `loop`: it branches to itself. `writes`, `reads`: of all the code."""
    last: dict[Reg, int] = {}
    inside: dict[Reg, int] = {}
    written: dict[Reg, list[int]] = {}
    for n, i in enumerate(block):
        for r in i.reads():
            last[r] = n
            inside[r] = inside.get(r, 0) + 1
        for r in i.writes():
            written.setdefault(r, []).append(n)
    names: dict[Reg, Reg] = {}
    out: list[Instruction] = []
    for n, i in enumerate(block):
        target = None
        if i.op in _SUMS and not {"WIDE", "HI"} & set(i.mods) and i.guard == TRUE and len(i.dsts) == 1:
            c, d = i.srcs[_SUMS[i.op]].value, i.dsts[0].value
            if isinstance(c, Reg) and isinstance(d, Reg) and c.virtual and d.virtual and c != d and inside.get(c) == 1 and \
                    words[c.file, c.index] == words[d.file, d.index] == writes[d] == 1 and inside.get(d) == reads.get(d):
                own = names.get(c, c)
                ends = writes[c] == 1 and reads[c] == 1 and c in written
                following = next((w for w in written.get(own, ()) if w > n), len(block))
                carried = loop and following < len(block) and block[following].guard == TRUE
                if (ends or carried) and last.get(d, n) <= following:
                    target = own
        new = _renamed(i, names) if names else i
        if target is not None:
            names[d] = target  # type: ignore[index]
            new = replace(new, dsts=(replace(new.dsts[0], value=target),))
        if not (new.op == "MOV" and new.dsts[0].value == new.srcs[0].value and new.guard == TRUE):
            out.append(new)
    return out
