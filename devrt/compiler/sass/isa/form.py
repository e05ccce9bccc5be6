"""Forms: a row says how an instruction is printed and where each part lies; `alu` makes the variants of a row by operand kind.

Rows name operands by short tokens, in the order in which nvdisasm prints them:

    Rd Ra Rb Rc      registers at bits 16, 24, 32, 64; R40 one at bit 40; URd.. uniform ones
    P81 UP81         a predicate at bit 81, a uniform one
    Pu Pv            predicates that are results, bits 81 and 84
    Pp Pq Pr         predicates that are inputs, bits 87 (negated by 90), 77 (80) and 68 (71)
    A B C            (rows of `alu`) the sources of an arithmetic instruction: each form of the opcode has its own places for them
    *2, *size        so many registers; `size` is looked up in the row's `words` by modifier
    -Ra |Ra ~Ra      its usual bit negates, takes the absolute value, inverts; 84-Rc: bit 84 does
    [x]              not printed where it is PT, RZ or 0
    name             anything else is a slot of the row's `where`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from devrt.compiler.sass.instruction import File
from devrt.compiler.sass.isa.fields import Group, bits, ones
from devrt.compiler.sass.isa.slots import CbufSlot, ImmSlot, RegSlot, Slot, Words

ALL = (75, 80, 86, 89, 90, 120)
SINCE_80, SINCE_86, SINCE_89, SINCE_90 = ALL[1:], ALL[2:], ALL[3:], ALL[4:]
TO_89, TO_90, BLACKWELL = ALL[:4], ALL[:5], ALL[5:]
CARRIES = 77, 87  # where the predicates of carries lie, which nothing looks at where no carry is read


Slots = Mapping[str, Slot | Callable[[int], Slot]]  # by name; from the generation where that matters


@dataclass(frozen=True)
class Form:
    """One way of writing an instruction, on one generation. `value` are the bits that are always the same: opcode and `fixed`.
    `mods` are printed always, before the groups. `uniform`: the guard is a uniform predicate."""

    op: str
    mods: tuple[str, ...]
    value: int
    groups: tuple[Group, ...]
    dsts: tuple[Slot, ...]
    srcs: tuple[Slot, ...]
    uniform: bool = False
    ignored: int = 0  # bits that may hold anything; written as `value` has them

    @property
    def covered(self) -> int:
        """Bits that some field owns, guard and control included."""
        mask = ones(12, 4) | ones(105, 17) | self.ignored
        for group in self.groups:
            mask |= group.bits.mask
        for slot in (*self.dsts, *self.srcs):
            mask |= slot.mask
        return mask


@dataclass(frozen=True)
class Row:
    """A form on several generations."""

    name: str
    code: int
    dsts: str
    srcs: str
    groups: tuple[Group, ...] = ()
    sms: tuple[int, ...] = ALL
    fixed: Mapping[int, int] = field(default_factory=dict)  # lo -> value
    where: Slots = field(default_factory=dict)
    words: Mapping[str, Words] = field(default_factory=dict)
    uniform: bool = False
    ignored: int = 0

    @property
    def op(self) -> str:
        return self.name.split(".")[0]

    @property
    def opcodes(self) -> tuple[int, ...]:
        """The low 12 bits of its forms."""
        return (self.code,)

    def forms(self, sm: int) -> list[Form]:
        if sm not in self.sms:
            return []
        op, *mods = self.name.split(".")
        value, ignored = self.code, self.ignored
        for lo, part in self.fixed.items():
            value |= part << lo
            if lo in CARRIES and part == 15:  # !PT by ptxas, P0 by NAK
                ignored |= ones(lo, 4)
        slots = [tuple(_slot(token, self, sm) for token in tokens.split()) for tokens in (self.dsts, self.srcs)]
        return [Form(op, tuple(mods), value, self.groups, slots[0], slots[1], self.uniform, ignored)]


def row(name: str, code: int, dsts: str = "", srcs: str = "", *groups: Group, sms: Sequence[int] = ALL,
        fixed: Mapping[int, int] | None = None, where: Slots | None = None, words: Mapping[str, Words] | None = None,
        uniform: bool = False, ignored: int = 0) -> Row:
    return Row(name, code, dsts, srcs, groups, tuple(sms), fixed or {}, where or {}, words or {}, uniform, ignored)


def uniform_width(sm: int) -> int:
    """Bits of a uniform register's number."""
    return 6 if sm < 100 else 8


def uniform_slot(lo: int, sm: int, words: Words = 1) -> RegSlot:
    return RegSlot(file=File.UR, lo=lo, width=uniform_width(sm), words=words)


# ---------------------------------------------------------------------------------------------------------------------
# Tokens

LETTERS = {"d": 16, "a": 24, "b": 32, "c": 64}
PREDICATES = {"u": (81, -1), "v": (84, -1), "p": (87, 90), "q": (77, 80), "r": (68, 71)}
NEG, ABS = {24: 72, 32: 63, 64: 75}, {24: 73, 32: 62, 64: 74}
TOKEN = re.compile(r"(?P<optional>\[)?(?P<marks>(?:\d*[-|~!])*)(?P<name>\w+?)(?:\*(?P<words>\w+))?\]?$")
REGISTER = re.compile(r"(?P<file>UR|UP|R|P|B)(?P<at>[a-d]|[u-v]|[p-r]|\d+)$")


def _slot(token: str, row: Row, sm: int) -> Slot:
    """The slot that a token of a row means."""
    match = TOKEN.match(token)
    assert match, f"{row.name}: {token}"
    name, optional = match["name"], bool(match["optional"])
    if name in row.where:
        slot = row.where[name]
        return replace(slot if isinstance(slot, Slot) else slot(sm), optional=optional)
    register = REGISTER.match(name)
    assert register, f"{row.name}: {token}"
    words: Words = 1
    if match["words"]:
        words = int(match["words"]) if match["words"].isdigit() else row.words[match["words"]]
    file, at = File(register["file"]), register["at"]
    marks = {mark: int(bit) if bit else -1 for bit, mark in re.findall(r"(\d*)([-|~!])", match["marks"])}
    if file in (File.P, File.UP):
        lo, inv = PREDICATES[at] if at in PREDICATES else (int(at), marks.get("!", -1))
        return RegSlot(file=file, lo=lo, width=3, inv=inv, optional=optional)
    lo = LETTERS[at] if at in LETTERS else int(at)
    width = uniform_width(sm) if file is File.UR else 4 if file is File.B else 8
    return RegSlot(file=file, lo=lo, width=width, words=words, optional=optional, neg=_mark(marks, "-", NEG, lo),
                   abs=_mark(marks, "|", ABS, lo), inv=_mark(marks, "~", NEG, lo))


def _mark(marks: Mapping[str, int], mark: str, usual: Mapping[int, int], lo: int) -> int:
    if mark not in marks:
        return -1
    return marks[mark] if marks[mark] >= 0 else usual[lo]


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic forms

@dataclass(frozen=True)
class Marks:
    """Where a place of an arithmetic word keeps its modifiers; -1: nowhere."""

    neg: int = -1
    abs: int = -1
    select: Group | None = None


PLACES = {24: Marks(72, 73), 32: Marks(63, 62), 64: Marks(75, 74)}
LETTER_REUSE = {"A": 122, "B": 123, "C": 124}
ARITHMETIC = re.compile(r"(?P<optional>\[)?(?P<marks>(?:\d*[-|~])*)(?P<letter>[ABC])(?:\*(?P<words>\w+))?\]?$")


@dataclass(frozen=True)
class Alu:
    """Rows of which each source may be a register or, in one of its places, a constant. `base`: the opcode's low 9 bits.
    `kinds`: forms that exist (1 registers; 2 and 4 a constant as C and B, 3 and 5 c[][], 7 and 6 a uniform register).
    `imm`: how constants are printed. `places`: modifiers by the bit where a source begins. `register_c`: where kind 1 has C.
    `reuse`: which sources may be kept for the next instruction; `bindless`: whether cx[UR][..] stands for c[][]."""

    row: Row
    kinds: str
    imm: str
    places: Mapping[int, Marks]
    register_c: int
    reuse: str
    bindless: bool

    @property
    def op(self) -> str:
        return self.row.op

    @property
    def opcodes(self) -> tuple[int, ...]:
        return tuple(self.row.code | int(kind) << 9 for kind in self.kinds)

    def forms(self, sm: int) -> list[Form]:
        return [form for kind in self.kinds for form in self._kind(int(kind), sm)] if sm in self.row.sms else []

    def _kind(self, kind: int, sm: int) -> list[Form]:
        if kind in (3, 5) and sm >= 100:  # arithmetic has no c[][] from Blackwell on
            return []
        forms = []
        for bindless in (False, True) if kind in (3, 5) and self.bindless else (False,):
            where = dict(self.row.where)
            for token in self.row.srcs.split():
                match = ARITHMETIC.match(token)
                if match:
                    where[match["letter"]] = self._source(match, kind, bindless, sm)
            fixed = {**self.row.fixed, 91: 1} if kind in (6, 7) or bindless else self.row.fixed
            forms += replace(self.row, code=self.row.code | kind << 9, fixed=fixed, where=where).forms(sm)
        return forms

    def _source(self, match: re.Match[str], kind: int, bindless: bool, sm: int) -> Slot:
        letter, count = match["letter"], match["words"]
        words: Words = 1 if not count else int(count) if count.isdigit() else self.row.words[count]
        if letter == "C" and kind == 1:
            lo = self.register_c
        elif letter == "A":
            lo = 24
        else:
            lo = 32 if (letter == "C") == (kind in (2, 3, 7)) else 64
        constant = kind != 1 and lo == 32
        place = self.places.get(lo, Marks())
        asked = {mark: int(bit) if bit else -1 for bit, mark in re.findall(r"(\d*)([-|~])", match["marks"])}

        def bit(mark: str, usual: int) -> int:
            return -1 if mark not in asked else asked[mark] if asked[mark] >= 0 else usual

        neg, absolute, inv = bit("-", place.neg), bit("|", place.abs), bit("~", place.neg)
        reuse = LETTER_REUSE[letter] if letter in self.reuse else -1
        if constant and kind in (2, 4):
            return ImmSlot(at=bits(32, 32), style=self.imm)
        if constant and kind in (3, 5):
            handle = uniform_slot(32, sm) if bindless else None
            return CbufSlot(words=words, handle=handle, neg=neg, abs=absolute, inv=inv, select=place.select)
        if constant:
            return RegSlot(file=File.UR, lo=32, width=uniform_width(sm), words=words, neg=neg, abs=absolute, inv=inv,
                           select=place.select)
        return RegSlot(file=File.R, lo=lo, words=words, neg=neg, abs=absolute, inv=inv, reuse=reuse,
                       select=place.select)


def alu(name: str, base: int, dsts: str, srcs: str, *groups: Group, kinds: str = "", imm: str = "hex", sms: Sequence[int] = ALL,
        fixed: Mapping[int, int] | None = None, where: Slots | None = None, words: Mapping[str, Words] | None = None,
        places: Mapping[int, Marks] = PLACES, register_c: int = 64, reuse: str = "ABC", bindless: bool = True,
        ignored: int = 0) -> Alu:
    """A row of `Alu`; without `kinds`, those that its letters allow."""
    letters = set(re.findall(r"[ABC]", re.sub(r"\w*[a-z]\w*", "", srcs)))
    if not kinds:
        kinds = {"ABC": "1234567", "AB": "1456", "B": "1456", "AC": "1237"}["".join(sorted(letters))]
    rows = row(name, base, dsts, srcs, *groups, sms=sms, fixed=fixed, where=where, words=words, ignored=ignored)
    return Alu(rows, kinds, imm, places, register_c, reuse, bindless)
