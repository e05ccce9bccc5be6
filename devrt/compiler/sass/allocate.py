"""Register allocation: real registers for virtual ones.

Every register is a set of points at which it is live (liveness.py), every place a set of points at which it is taken. Copies are
joined where both sides have no point in common; what is left is put at the first free place, the widest first, and beside what it
is copied to. Where that does not fit, the joins are given up, and then registers are spilled (spill.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from devrt.compiler.sass import mir
from devrt.compiler.sass.instruction import VIRTUAL, Address, Cbuf, File, Instruction, Operand, Reg
from devrt.compiler.sass.liveness import Liveness, analyse, unconditional
from devrt.compiler.sass.spill import spill
from devrt.device import CompileError

COPIES = ("MOV", "UMOV")
PREDICATES, BARRIERS = 7, 16
_ATTEMPTS = 24  # rounds of spilling before it is given up


def uniform_registers(sm: int) -> int:
    """URZ is 63 before sm_100; from then on there are 80 (Mesa: nak/sm70.rs)."""
    return 63 if sm < 100 else 80


@dataclass
class _Group:
    """Registers that are joined, or one: a range of points for each word, and the places that suit copies."""

    file: File
    ranges: list[int]
    members: list[tuple[int, int]]  # (index, first word)
    wishes: list[tuple[_Group, int]] = field(default_factory=list)  # its word 0 at that group's word
    triples: list[tuple[tuple[_Group, int], tuple[_Group, int], int]] = field(default_factory=list)
    place: int = -1

    @property
    def align(self) -> int:
        return 1 << (len(self.ranges) - 1).bit_length()


_Owners = dict[tuple[File, int], tuple[_Group, int]]  # a register -> its group, and the word of it where it begins


def allocate(f: mir.Function, limit: int) -> mir.Function:
    """The function with real registers, at most `limit` of R (their indexes are below it). Spills to local memory where they do
    not suffice. Raises CompileError where that does not help, or uniform registers do not suffice."""
    unspillable: set[tuple[File, int]] = set()
    for attempt in range(_ATTEMPTS):
        live = analyse(f)
        owners, failed = _place(f, live, limit, True)
        if failed is not None:
            owners, failed = _place(f, live, limit, False)
        if failed is None:
            return _rewrite(f, owners)
        f = spill(f, live, failed, _counts(f.sm, limit), attempt, unspillable)
    raise CompileError(f"{f.name} needs more registers than there are", evidence=f"{limit} registers, {_ATTEMPTS} rounds",
                       remedy="compile it with a higher limit of registers")


def _counts(sm: int, limit: int) -> dict[File, int]:
    return {File.R: limit, File.UR: uniform_registers(sm), File.P: PREDICATES, File.UP: PREDICATES, File.B: BARRIERS}


def _place(f: mir.Function, live: Liveness, limit: int, joined: bool) -> tuple[_Owners, File | None]:
    """A group and a word of it for each virtual register, the groups with their places; or the file that is too small."""
    owners, taken = _groups(f, live)
    copies = _copies(f, live)
    for d, s in copies:
        _join(owners, d, s, joined)
    _triples(f, live, owners)
    counts = _counts(f.sm, limit)
    groups = {id(group): group for group, _ in owners.values()}.values()
    order = sorted(groups, key=lambda g: (-len(g.ranges), min((r & -r).bit_length() for r in g.ranges)))
    highest: dict[File, int] = dict.fromkeys(counts, 0)
    for group in order:
        place = _choose(group, taken[group.file], counts[group.file], highest[group.file])
        if place < 0:
            return owners, group.file
        group.place = place
        highest[group.file] = max(highest[group.file], place + len(group.ranges))
        for k, points in enumerate(group.ranges):
            taken[group.file][place + k] |= points
    return owners, None


def _groups(f: mir.Function, live: Liveness) -> tuple[_Owners, dict[File, list[int]]]:
    """A group for each virtual register that occurs, and the points at which places are taken by real ones."""
    owners: _Owners = {}
    taken = {file: [0] * 256 for file in File}
    for (file, index), word in live.numbers.items():
        if index < VIRTUAL:
            taken[file][index] |= live.ranges[word]
        else:
            owners[file, index] = (_Group(file, live.ranges[word:word + f.words[file, index]], [(index, 0)]), 0)
    return owners, taken


def _copies(f: mir.Function, live: Liveness) -> list[tuple[Reg, Reg]]:
    """(destination, source) of every copy, those in the innermost loops first."""
    found = []
    for n, block in enumerate(f.blocks):
        for i in block.instructions:
            if i.op in COPIES and not i.mods and len(i.srcs) == 1 and isinstance(i.srcs[0].value, Reg) and \
                    isinstance(i.dsts[0].value, Reg):
                d, s = i.dsts[0].value, i.srcs[0].value
                if d.virtual and s.virtual and d.file is s.file and d.words == s.words:
                    found.append((-live.depth[n], d, s))
    return [(d, s) for _, d, s in sorted(found, key=lambda row: row[0])]


def _join(owners: _Owners, d: Reg, s: Reg, joined: bool) -> None:
    """Makes one group of the two sides of a copy where they do not interfere, else notes that they like the same place."""
    (a, at), (b, bt) = owners[d.file, d.index], owners[s.file, s.index]
    shift = at + d.sub - bt - s.sub  # word 0 of b lies at this word of a
    if a is b:
        return
    if len(b.ranges) > len(a.ranges):
        a, b, shift = b, a, -shift
    fits = 0 <= shift <= len(a.ranges) - len(b.ranges) and shift % b.align == 0
    if not joined or not fits or any(a.ranges[shift + k] & points for k, points in enumerate(b.ranges)):
        a.wishes.append((b, -shift))
        b.wishes.append((a, shift))
        return
    for k, points in enumerate(b.ranges):
        a.ranges[shift + k] |= points
    for index, word in b.members:
        a.members.append((index, word + shift))
        owners[a.file, index] = (a, word + shift)
    a.wishes += [(g, w - shift) for g, w in b.wishes]


def _triples(f: mir.Function, live: Liveness, owners: _Owners) -> None:
    """Notes the arithmetic with three registers as sources: registers lie in two banks, even and odd ones, and three of the same
    bank take a cycle more."""
    for block, depth in zip(f.blocks, live.depth, strict=True):
        if not depth:
            continue
        for i in block.instructions:
            if i.op not in ("FFMA", "IMAD", "HFMA2", "IADD3", "LOP3"):
                continue
            places = []
            for o in i.srcs[:3]:
                if isinstance(o.value, Reg) and o.value.virtual and o.value.file is File.R:
                    group, word = owners[o.value.file, o.value.index]
                    places.append((group, word + o.value.sub))
            if len(places) == 3:
                for k in range(3):
                    group, word = places[k]
                    group.triples.append((places[k - 2], places[k - 1], word))


def _choose(group: _Group, taken: list[int], count: int, highest: int) -> int:
    """The place for a group's word 0: where a copy wants it, else the first free one, of the better bank where that costs
    nothing; -1 where there is none."""
    ranges, align = group.ranges, group.align
    last = count - len(ranges)

    def free(place: int) -> bool:
        return all(not taken[place + k] & points for k, points in enumerate(ranges))

    for other, word in group.wishes:
        place = other.place + word
        if other.place >= 0 and 0 <= place <= last and place % align == 0 and free(place):
            return place
    if len(ranges) == 1:  # what nearly every group is
        points = ranges[0]
        places = (place for place in range(count) if not taken[place] & points)
    else:
        places = (place for place in range(0, last + 1, align) if free(place))
    first = next(places, -1)
    if first >= 0 and align == 1 and group.triples and (clash := _clashes(group, first)):
        other_bank = next((place for place in places if (place ^ first) & 1), -1)
        if 0 <= other_bank < highest and _clashes(group, other_bank) < clash:
            return other_bank
    return first


def _clashes(group: _Group, place: int) -> int:
    """How many instructions would read three registers of one bank."""
    return sum(a.place >= 0 and b.place >= 0 and (a.place + aw ^ place + word) & 1 == 0 and (b.place + bw ^ place + word) & 1 == 0
               for (a, aw), (b, bw), word in group.triples)


# ---------------------------------------------------------------------------------------------------------------------
# Rewriting

def _rewrite(f: mir.Function, owners: _Owners) -> mir.Function:
    """The function with every virtual register replaced, without the copies that lead nowhere."""
    known: dict[Reg, Reg] = {}

    def real(r: Reg) -> Reg:
        if r.index < VIRTUAL:
            return r
        found = known.get(r)
        if found is None:
            group, word = owners[r.file, r.index]
            found = known[r] = Reg(r.file, group.place + word + r.sub, r.words)
        return found

    def operand(o: Operand) -> Operand:
        value = o.value
        if isinstance(value, Reg):
            new = real(value)
            return o if new is value else Operand(new, o.neg, o.abs, o.inv, o.reuse, o.select)
        if isinstance(value, Address):
            return Operand(Address(value.base and real(value.base), value.offset, value.uniform and real(value.uniform),
                                   value.descriptor and real(value.descriptor), value.scale),
                           o.neg, o.abs, o.inv, o.reuse, o.select)
        if isinstance(value, Cbuf) and (value.index or value.handle):
            return Operand(Cbuf(value.bank, value.offset, value.index and real(value.index), value.handle and real(value.handle),
                                value.words), o.neg, o.abs, o.inv, o.reuse, o.select)
        return o

    blocks = []
    for block in f.blocks:
        out = []
        for i in block.instructions:
            new = Instruction(i.op, i.mods, tuple([operand(o) for o in i.dsts]), tuple([operand(o) for o in i.srcs]),
                              operand(i.guard), i.control, i.address)
            if not (i.op in COPIES and not i.mods and unconditional(i) and new.dsts[0] == new.srcs[0]):
                out.append(new)
        blocks.append(mir.Block(block.label, out))
    return mir.Function(f.name, f.sm, f.threads, blocks, f.shared_bytes, f.local_bytes, f.params, f.constants, {})
