"""Writing mir: every pure instruction once, as far out of the loops as its operands allow.

Code is written into regions, one for each loop (or `when`) around the place that is being written. What is appended to an outer
region while an inner one is open stands in front of the inner loop. So an instruction goes to the region of its innermost
operand, and hoisting out of loops costs nothing; equal instructions are found in the scope of their region.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from devrt.compiler.sass.instruction import PT, RZ, TRUE, File, Imm, Instruction, Label, Operand, Reg
from devrt.compiler.sass.mir import Block, Function

ZERO = Operand(RZ)
FALSE = Operand(PT, inv=True)
_HELD = 4      # predicates of a region that are kept for a second use; others are computed again, there are only seven
_CONSTANTS = 24  # registers that hold constants over the whole program; further ones are loaded where they are used

Mods = tuple[str, ...]


@dataclass(eq=False, slots=True)
class Pair:
    """64 bits. Without `hi` the low word's sign is extended. `whole`: the two-word register, where it is in one."""

    lo: Operand
    hi: Operand | None
    whole: Operand | None = None


@dataclass(eq=False, slots=True)
class Bool:
    """A predicate as what computes it: a comparison, combined with another predicate; `inv` negates the result.
    Without `op` it is always true. `depth`: comparisons that it takes; `level`: the region that it is known from."""

    op: str = ""
    mods: Mods = ()
    srcs: tuple[Operand, ...] = ()
    how: str = "AND"
    other: Bool | None = None
    inv: bool = False
    low: Bool | None = None  # of a comparison of 64 bits: that of the low words
    depth: int = 0
    level: int = 0


class Emitter:
    def __init__(self, f: Function) -> None:
        self.f = f
        self.regions: list[list[Instruction | str]] = [[]]
        self.scopes: list[dict[Any, Any]] = [{}]
        self.floor = 0  # nothing is moved out of this region
        self.held: list[OrderedDict[int, tuple[Bool, Operand]]] = [OrderedDict()]
        self.levels: dict[int, int] = {}  # id of an operand -> region that it is known from
        self.kept: list[object] = []  # what the ids above belong to
        self.constants = 0
        self._imms: dict[int, Operand] = {}
        self._labels = 0

    # ----- operands

    @property
    def here(self) -> int:
        return len(self.regions) - 1

    def level(self, *operands: Operand) -> int:
        get = self.levels.get
        return max([get(id(o), 0) for o in operands], default=0)

    def at(self, level: int) -> int:
        """Where something that needs `level` is written."""
        return level if level > self.floor else self.floor

    def known(self, operand: Operand, level: int) -> Operand:
        self.levels[id(operand)] = level
        self.kept.append(operand)
        return operand

    def imm(self, value: int) -> Operand:
        """A word."""
        value &= 0xFFFFFFFF
        found = self._imms.get(value)
        if found is None:
            found = self._imms[value] = Operand(Imm(value)) if value else ZERO
        return found

    def byte(self, value: int, bits: int = 8) -> Operand:
        """A constant that is part of the instruction."""
        found = self._imms.get(-1 - value - (bits << 8))
        if found is None:
            found = self._imms[-1 - value - (bits << 8)] = Operand(Imm(value, bits))
        return found

    def constant(self, operand: Operand) -> int | None:
        """The bits of a constant word, else None."""
        if operand is ZERO:
            return 0
        return operand.value.value if isinstance(operand.value, Imm) else None

    def derived(self, operand: Operand, key: str, make: Callable[[], Operand]) -> Operand:
        """`operand` looked at otherwise, the same object each time."""
        scope, tag = self.scopes[0], (key, id(operand))
        found = scope.get(tag)
        if found is None:
            found = scope[tag] = self.known(make(), self.level(operand))
            self.kept.append(operand)
        return found

    def neg(self, o: Operand) -> Operand:
        """-o of an integer, or of a float in a register."""
        value = self.constant(o)
        if value is not None:
            return self.imm(-value)
        return self.derived(o, "neg", lambda: Operand(o.value, neg=not o.neg, abs=o.abs))

    def inv(self, o: Operand) -> Operand:
        """~o or !o."""
        return self.derived(o, "inv", lambda: Operand(o.value, inv=not o.inv))

    def part(self, whole: Operand, word: int, words: int = 1) -> Operand:
        def make() -> Operand:
            assert isinstance(whole.value, Reg)
            return Operand(whole.value.part(word, words))
        return self.derived(whole, f"part{word}:{words}", make)

    def new(self, words: int = 1, file: File = File.R, level: int | None = None) -> Operand:
        return self.known(Operand(self.f.new(file, words)), self.here if level is None else level)

    def reg(self, o: Operand) -> Operand:
        """`o` in a register."""
        if not isinstance(o.value, Imm):
            return o
        outer = self.constants < _CONSTANTS
        level = self.floor if outer else self.here
        for place in {0, level}:
            found: Operand | None = self.scopes[place].get(("MOV", id(o)))
            if found is not None:
                return found
        self.constants += outer
        r = self.scopes[level]["MOV", id(o)] = self.new(level=level)
        self.regions[level].append(Instruction("MOV", (), (r,), (o,)))
        return r

    # ----- instructions

    def put(self, op: str, mods: Mods, dsts: tuple[Operand, ...], srcs: tuple[Operand, ...], guard: Operand = TRUE) -> None:
        """Write an instruction here."""
        self.regions[-1].append(Instruction(op, mods, dsts, srcs, guard))

    def emit(self, op: str, mods: Mods, *srcs: Operand, words: int = 1) -> Operand:
        """The result of a pure instruction with one destination."""
        level = self.level(*srcs)
        key = (op, mods, words, *map(id, srcs))
        found: Operand | None = self.scopes[level].get(key)
        if found is None:
            level = self.at(level)
            found = self.scopes[level].get(key)
            if found is None:
                found = self.new(words, level=level)
                self.scopes[level][key] = found
                self.regions[level].append(Instruction(op, mods, (found,), srcs))
        return found

    def once(self, key: tuple[Any, ...], operands: tuple[Operand, ...], build: Callable[[], Any], least: int = 0) -> Any:
        """build(), or what it gave for the same key and operands. It is called with the region open that the operands, and
        `least`, ask for."""
        level = max(self.level(*operands), least)
        key = (*key, *map(id, operands))
        found = self.scopes[level].get(key)
        if found is None:
            level = self.at(level)
            found = self.scopes[level].get(key)
            if found is None:
                with self.outward(level):
                    found = self.scopes[level][key] = build()
        return found

    @contextmanager
    def unbound(self) -> Iterator[None]:
        """For what is kept with a value: it has to be there wherever the value is."""
        floor, self.floor = self.floor, 0
        yield
        self.floor = floor

    @contextmanager
    def outward(self, level: int) -> Iterator[None]:
        """Write as if `level` were the innermost region."""
        if level == self.here:
            yield
            return
        inner = self.regions, self.scopes, self.held, self.floor
        self.regions, self.scopes, self.held = (x[:level + 1] for x in inner[:3])  # type: ignore[assignment]
        self.floor = min(self.floor, level)
        yield
        self.held[-1].clear()
        self.regions, self.scopes, self.held, self.floor = inner

    def carrying(self, op: str, mods: Mods, dst: Operand, *srcs: Operand) -> Operand:
        """Write `dst` here and give the carry."""
        carry = self.new(file=File.P)
        self.put(op, mods, (dst, carry), srcs)
        return carry

    # ----- pairs

    def hi(self, p: Pair) -> Operand:
        if p.hi is None:
            value = self.constant(p.lo)
            with self.unbound():
                p.hi = self.emit("SHF", ("R", "S32", "HI"), ZERO, self.imm(31), p.lo) if value is None else \
                    self.imm(-(value >> 31))
        return p.hi

    def pair_constant(self, value: int) -> Pair:
        return Pair(self.imm(value), self.imm(value >> 32))

    def whole(self, p: Pair) -> Operand:
        """Both words in one register."""
        if p.whole is None:
            lo, hi = p.lo, self.hi(p)
            with self.unbound():
                p.whole = self.once(("pair",), (lo, hi), lambda: self._joined(lo, hi))
        return p.whole

    def _joined(self, lo: Operand, hi: Operand) -> Operand:
        r = self.new(2)
        self.put("MOV", (), (self.part(r, 0),), (lo,))
        self.put("MOV", (), (self.part(r, 1),), (hi,))
        return r

    def pair(self, whole: Operand) -> Pair:
        """A two-word register as a value."""
        return Pair(self.part(whole, 0), self.part(whole, 1), whole)

    # ----- predicates

    def predicate(self, b: Bool) -> Operand:
        """The predicate register of `b`, as a guard or an operand."""
        if not b.op:
            return FALSE if b.inv else TRUE
        if b.inv:
            return self.inv(self.predicate(self._plain(b)))
        held = self.held[-1]
        found = held.pop(id(b), None)
        if found is None:
            other = self.predicate(b.other) if b.other is not None else TRUE
            p = self.new(file=File.P)
            if b.low is None:
                self.put(b.op, (*b.mods, b.how), (p, TRUE), (*b.srcs, other))
            else:
                self.put(b.op, (*b.mods, b.how, "EX"), (p, TRUE), (*b.srcs, other, self.predicate(b.low)))
            found = b, p
            if len(held) >= _HELD:
                held.popitem(last=False)
        held[id(b)] = found
        return found[1]

    def _plain(self, b: Bool) -> Bool:
        found: Bool | None = self.scopes[0].get(("plain", id(b)))
        if found is None:
            found = Bool(b.op, b.mods, b.srcs, b.how, b.other, False, b.low, b.depth, b.level)
            self.scopes[0]["plain", id(b)] = found
            self.kept += [b, found]
        return found

    def compare(self, op: str, mods: Mods, a: Operand, b: Operand, low: Bool | None = None) -> Bool:
        level = max(self.level(a, b), low.level if low else 0)
        found: Bool = self.once(("compare", op, mods, id(low)), (a, b),
                                lambda: Bool(op, mods, (a, b), low=low, depth=1 + (low is not None), level=level), level)
        self.kept += [low, found]
        return found

    def bit(self, b: Bool) -> Operand:
        """1 or 0 in a register."""
        if not b.op:
            return self.imm(not b.inv)
        self.kept.append(b)
        return self.choose(b, self.imm(1), ZERO)

    def test(self, word: Operand) -> Bool:
        """word != 0"""
        return self.compare("ISETP", ("NE",), self.reg(word), ZERO)

    def choose(self, c: Bool, a: Operand, b: Operand) -> Operand:
        """c ? a : b of words."""
        if a is b or not c.op:
            return b if c.inv and not c.op else a

        def build() -> Operand:
            p, x, y = self.predicate(c), a, b
            if isinstance(x.value, Imm):
                p, x, y = self.inv(p), y, x
            r = self.new()
            self.put("SEL", (), (r,), (self.reg(x), y, p))
            return r
        self.kept.append(c)
        found: Operand = self.once(("choose", id(c)), (a, b), build, c.level)
        return found

    def choose_pair(self, c: Bool, a: Pair, b: Pair) -> Pair:
        return Pair(self.choose(c, a.lo, b.lo), None if a.hi is None and b.hi is None else self.choose(c, self.hi(a), self.hi(b)))

    # ----- structure

    def label(self, name: str) -> str:
        self._labels += 1
        return f".L_{name}_{self._labels}"

    @contextmanager
    def region(self, *, fixed: bool) -> Iterator[list[Instruction | str]]:
        """Write into a new region; nothing that is `fixed` there moves out. The caller appends it where it belongs."""
        region: list[Instruction | str] = []
        floor = self.floor
        self.held[-1].clear()  # what is computed again costs less than a predicate that lives through a loop
        self.regions.append(region)
        self.scopes.append({})
        self.held.append(OrderedDict())
        if fixed:
            self.floor = self.here
        yield region
        self.regions.pop()
        self.scopes.pop()
        self.held.pop()
        self.floor = floor

    def mark(self, label: str) -> None:
        self.regions[-1].append(label)

    def branch(self, target: str, guard: Operand = TRUE) -> None:
        self.put("BRA", (), (), (Operand(Label(target)),), guard)

    def when(self, c: Bool, body: Callable[[], None]) -> None:
        """Run `body` in all lanes if one of them has `c`."""
        done, anyone = self.label("done"), self.new(file=File.P)
        self.put("VOTE", ("ANY",), (anyone,), (self.predicate(c),))
        with self.region(fixed=True) as region:
            body()
        self.branch(done, self.inv(anyone))
        self.regions[-1] += region
        self.mark(done)

    def finish(self, code: list[Instruction | str]) -> Function:
        """The function, its code cut into blocks."""
        block = Block("entry")
        self.f.blocks = [block]
        for item in code:
            if isinstance(item, str):
                block = Block(item)
                self.f.blocks.append(block)
            else:
                block.instructions.append(item)
                if item.op == "BRA":
                    block = Block(self.label("next"))
                    self.f.blocks.append(block)
        self.f.blocks = [b for n, b in enumerate(self.f.blocks) if b.instructions or not b.label.startswith(".L_next") or n == 0]
        return self.f
