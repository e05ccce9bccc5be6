"""Spilling: registers that do not fit live in memory, and come back for each use.

R goes to local memory (STL, LDL), addressed from 0 up; P to a register that holds 0 or 1. What a constant makes is made again
instead. What is spilled is cheap to reach for what it frees: few accesses, weighted by loops, over many points.
"""

from __future__ import annotations

from dataclasses import dataclass

from devrt.compiler.sass import mir
from devrt.compiler.sass.instruction import RZ, TRUE, VIRTUAL, Address, Cbuf, File, Imm, Instruction, Operand, Reg
from devrt.compiler.sass.liveness import Liveness, unconditional
from devrt.device import CompileError

_SIZES = {1: (), 2: ("64",), 4: ("128",)}  # modifiers of LDL and STL by words
_LOOP = 8  # times that a loop is taken to run
_REMADE = ("MOV", "UMOV", "ULDC", "LDC", "LDCU")  # can be done again where they read no register


@dataclass
class _Use:
    """A register's accesses: their weight, and the one instruction that makes it, where that needs no register."""

    weight: float = 0.0
    writes: int = 0
    maker: Instruction | None = None


def spill(f: mir.Function, live: Liveness, file: File, counts: dict[File, int], attempt: int,
          unspillable: set[tuple[File, int]]) -> mir.Function:
    """The function with as many registers of a file in memory as bring its pressure down to what there is. `unspillable` are
    those that spilling made, and more are added. Raises CompileError where nothing is left to spill."""
    uses = _uses(f, live)
    chosen = _choose(f, live, file, counts[file] - attempt, uses, unspillable)
    if not chosen:
        raise CompileError(f"{f.name} needs more registers of {file.value} than there are",
                           evidence=f"{counts[file]} registers, nothing left to spill", remedy="use a smaller tile")
    made = {index: uses[file, index].maker for index in chosen}
    if file in (File.UR, File.UP, File.B) and not all(made.values()):
        raise CompileError(f"{f.name} needs more registers of {file.value} than there are", evidence=f"{counts[file]} registers",
                           remedy="keep less that is the same in all lanes")
    g = mir.Function(f.name, f.sm, f.threads, [], f.shared_bytes, f.local_bytes, f.params, f.constants, dict(f.words))
    slots: dict[int, int] = {}
    for index in chosen:
        if made[index] is None:
            slots[index] = _slot(g, f.words[file, index]) if file is File.R else g.new(File.R).index
    fresh = len(g.words)
    for block in f.blocks:
        g.blocks.append(mir.Block(block.label, [new for i in block.instructions for new in _rewrite(g, i, file, made, slots)]))
    unspillable |= set(list(g.words)[fresh:])
    return g


def _slot(g: mir.Function, words: int) -> int:
    """Bytes of local memory, aligned to their size."""
    size = 4 << (words - 1).bit_length()
    at = -(-g.local_bytes // size) * size
    g.local_bytes = at + size
    return at


def _uses(f: mir.Function, live: Liveness) -> dict[tuple[File, int], _Use]:
    found: dict[tuple[File, int], _Use] = {}
    for block, depth in zip(f.blocks, live.depth, strict=True):
        weight = float(_LOOP ** min(depth, 6))
        for i in block.instructions:
            for r in i.reads():
                found.setdefault((r.file, r.index), _Use()).weight += weight
            for r in i.writes():
                use = found.setdefault((r.file, r.index), _Use())
                use.weight += weight
                use.writes += 1
                use.maker = i if use.writes == 1 and _constant(i) else None
    return found


def _constant(i: Instruction) -> bool:
    """True where an instruction's result can be made anywhere: it reads no register, and nothing that changes."""
    return i.op in _REMADE and unconditional(i) and len(i.dsts) == 1 and not any(True for _ in i.reads()) and \
        all(isinstance(o.value, Imm | Cbuf | Reg) for o in i.srcs)


def _choose(f: mir.Function, live: Liveness, file: File, count: int, uses: dict[tuple[File, int], _Use],
            unspillable: set[tuple[File, int]]) -> list[int]:
    """Registers whose absence leaves at most `count` words live anywhere; at least one."""
    change = [0] * (live.points + 1)
    for word, start, end in live.intervals:
        if live.names[word][0] is file:
            change[start] += 1
            change[end + 1] -= 1
    pressure, now = [], 0
    for step in change[:-1]:
        now += step
        pressure.append(now)
    candidates: dict[int, tuple[int, float]] = {}  # index -> points of all its words, cost
    for (register_file, index), word in live.numbers.items():
        if register_file is file and index >= VIRTUAL and (file, index) not in unspillable:
            points = 0
            for k in range(f.words[file, index]):
                points |= live.ranges[word + k]
            use = uses.get((file, index), _Use())
            cost = use.weight * (0.3 if use.maker else 1.0) / max(1, points.bit_count() * f.words[file, index])
            candidates[index] = (points, cost)
    words_of: dict[int, list[tuple[int, int, int]]] = {}
    for word, start, end in live.intervals:
        name = live.names[word]
        if name[0] is file:
            words_of.setdefault(name[1], []).append((word, start, end))
    chosen: list[int] = []
    while candidates:
        peak = max(range(len(pressure)), key=pressure.__getitem__)
        if pressure[peak] <= count and chosen:
            break
        there = [index for index, (points, _) in candidates.items() if points >> peak & 1]
        if not there:
            if chosen:
                break
            there = list(candidates)
        best = min(there, key=lambda index: candidates[index][1])
        del candidates[best]
        chosen.append(best)
        for _, start, end in words_of.get(best, []):
            for p in range(start, end + 1):
                pressure[p] -= 1
    return chosen


# ---------------------------------------------------------------------------------------------------------------------
# Code

def _rewrite(g: mir.Function, i: Instruction, file: File, made: dict[int, Instruction | None],
             slots: dict[int, int]) -> list[Instruction]:
    """An instruction with what it needs of the spilled registers in fresh ones, filled in front of it and kept behind it."""
    touched = [r for r in (*i.reads(), *i.writes()) if r.file is file and r.index in made]
    if not touched:
        return [i]
    if any(r.index in made and made[r.index] is i for r in i.writes()):
        return []
    fresh = {r.index: g.new(file, g.words[file, r.index]) for r in touched}
    before: list[Instruction] = []
    after: list[Instruction] = []
    for r in dict.fromkeys(r for r in i.reads() if r.file is file and r.index in made):
        new = Reg(file, fresh[r.index].index, r.words, r.sub)
        maker = made[r.index]
        if maker is not None:
            before.append(_with(maker, {r.index: fresh[r.index].index}, file))
        elif file is File.R:
            before.append(Instruction("LDL", _SIZES[r.words], (Operand(new),), (Operand(_place(slots, r)),)))
        else:
            kept = Operand(Reg(File.R, slots[r.index]))
            before.append(Instruction("ISETP", ("NE", "U32", "AND"), (Operand(new), TRUE), (kept, Operand(RZ), TRUE)))
    for r in dict.fromkeys(r for r in i.writes() if r.file is file and r.index in made):
        new = Reg(file, fresh[r.index].index, r.words, r.sub)
        if file is File.R:
            after.append(Instruction("STL", _SIZES[r.words], (), (Operand(_place(slots, r)), Operand(new)), i.guard))
        else:
            kept = Operand(Reg(File.R, slots[r.index]))
            after.append(Instruction("SEL", (), (kept,), (Operand(RZ), Operand(Imm(1)), Operand(new, inv=True)), i.guard))
    guard = i.guard
    if after and isinstance(guard.value, Reg) and guard.value.index in fresh and guard.value.file is file:
        guard = Operand(Reg(file, fresh[guard.value.index].index), inv=guard.inv)
        after = [Instruction(a.op, a.mods, a.dsts, a.srcs, guard) for a in after]
    return [*before, _with(i, {index: new.index for index, new in fresh.items()}, file), *after]


def _place(slots: dict[int, int], r: Reg) -> Address:
    return Address(RZ, slots[r.index] + 4 * r.sub)


def _with(i: Instruction, names: dict[int, int], file: File) -> Instruction:
    """The instruction with registers of a file renamed."""

    def reg(r: Reg) -> Reg:
        return Reg(r.file, names[r.index], r.words, r.sub) if r.file is file and r.index in names else r

    def operand(o: Operand) -> Operand:
        value = o.value
        if isinstance(value, Reg):
            value = reg(value)
        elif isinstance(value, Address):
            value = Address(value.base and reg(value.base), value.offset, value.uniform and reg(value.uniform),
                            value.descriptor and reg(value.descriptor), value.scale)
        elif isinstance(value, Cbuf):
            value = Cbuf(value.bank, value.offset, value.index and reg(value.index), value.handle and reg(value.handle),
                         value.words)
        return Operand(value, o.neg, o.abs, o.inv, o.reuse, o.select)

    return Instruction(i.op, i.mods, tuple(map(operand, i.dsts)), tuple(map(operand, i.srcs)), operand(i.guard), i.control,
                       i.address)


