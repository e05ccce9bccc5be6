"""Neighbours of float16 or bfloat16 that can be computed as pairs, found in LIR; what machine they are for is not known here.

LIR computes such values in float32 and rounds each result, which gives the bits of one operation in the narrow type (the fma of
floats apart: docs/numerics.md). So where two neighbours are stored, and both are cast from the same operation on operands that
are narrow values again, one instruction on pairs does for both; from its operands the search goes on. What matches no further is
rounded as a pair, or put together from two halves.

`plan` gives a block's instructions in the order in which they are to be written, a Pair in place of the two casts: at the first
of them, what the second needs having moved up. An instruction whose result only a pair took is left out. Where something branches
in the block, which no access to memory is merged across, loads come first and stores last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from devrt.compiler import convert, lir
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Inst, Reg

HALVES = (dt.float16, dt.bfloat16)
OPS = ("add", "sub", "mul", "max", "min")
_FIXED = ("store", "barrier", "loop", "mma")  # these keep their order, and loads of what is written somewhere theirs among them
_BRANCHES = ("when", "div", "sqrt")  # float32's and float64's quotients and roots may have rare cases
Supported = Callable[[DType], bool]


@dataclass(frozen=True)
class Source:
    """An operand: two registers of the narrow type (the same one twice: for both halves), or a constant. `abs`, then `neg`."""

    lo: Reg
    hi: Reg
    value: float | None = None
    neg: bool = False
    abs: bool = False


@dataclass(eq=False)
class Pair:
    """Two values of `dtype` at once. `op`: one of OPS; "same", its source with the source's signs; or "round", of the float32
    registers `singles`. `canon`: a NaN becomes the type's canonical one."""

    op: str
    dtype: DType
    lo: Reg
    hi: Reg
    sources: tuple[Source, ...]
    singles: tuple[Reg, ...]
    canon: bool

    @property
    def reads(self) -> tuple[Reg, ...]:
        return (*self.singles, *(r for s in self.sources if s.value is None for r in (s.lo, s.hi)))


Step = Inst | Pair


def plan(block: list[Inst], writers: dict[Reg, Inst], uses: Counter[Reg], written: set[int], supported: Supported) -> list[Step]:
    """The steps of `block`. `writers` and `uses` of all the program's registers; `written`: ids of the arrays that it stores to;
    `supported`: whether the machine has instructions on pairs of a type."""
    search = _Search(block, writers, supported)
    for a, b in _neighbours(block, writers):
        search.pair(a.args[1], b.args[1])
    pairs, sequence = search.pairs, _apart(block, written)
    if not pairs and sequence is block:
        return list(block)
    while True:
        order = _Order(block, sequence, pairs, written)
        if order.wrong is None:
            return _without_unused(order.steps, block, pairs, uses)
        pairs = {r: p for r, p in pairs.items() if p is not order.wrong}


# ---------------------------------------------------------------------------------------------------------------------
# Neighbours

_Form = tuple[frozenset[tuple[int, int]], int]  # (number of a value, factor).., constant
_PURE = ("div", "rem", "and", "or", "xor", "shl", "shr", "min", "max", "cast", "group", "lane")


def _neighbours(block: list[Inst], writers: dict[Reg, Inst]) -> Iterator[tuple[Inst, Inst]]:
    """Stores of elements 2n and 2n+1 behind something that is the same."""
    indexes = _Indexes(writers)
    rows: dict[object, dict[int, Inst]] = {}
    for i in block:
        if i.op == "store" and i.args[1].dtype in HALVES:
            terms, constant = indexes.form(i.args[0])
            rows.setdefault((id(i.mem), terms, i.args[2:]), {})[constant] = i
    for row in rows.values():
        for constant, first in row.items():
            if constant % 2 == 0 and constant + 1 in row:
                yield first, row[constant + 1]


class _Indexes:
    """Indexes as sums of multiples of values, which have a number each: the same one if they are computed in the same way."""

    def __init__(self, writers: dict[Reg, Inst]) -> None:
        self.writers = writers
        self.known: dict[Reg, _Form] = {}
        self.numbers: dict[object, int] = {}

    def form(self, r: Reg) -> _Form:
        if r not in self.known:
            self.known[r] = self._summed(r)
        return self.known[r]

    def _summed(self, r: Reg) -> _Form:
        i = self.writers.get(r)
        if i is None or i.op not in ("const", "add", "sub", "mul", *_PURE) or r.dtype not in (dt.int32, dt.int64):
            return self._value(r)
        if i.op == "const":
            return frozenset(), int(i.attrs["value"])
        forms = [self.form(x) for x in i.args]
        if i.op == "mul" and not (forms[0][0] and forms[1][0]):
            (terms, constant), (_, factor) = sorted(forms, key=lambda form: not form[0])
            return frozenset((t, f * factor) for t, f in terms if factor), constant * factor
        if i.op in ("add", "sub"):
            (left, a), (right, b) = forms
            sign = 1 if i.op == "add" else -1
            total = Counter(dict(left))
            for term, factor in right:
                total[term] += sign * factor
            return frozenset((t, f) for t, f in total.items() if f), a + sign * b
        return self._value((i.op, r.dtype, *forms))

    def _value(self, key: object) -> _Form:
        return frozenset([(self.numbers.setdefault(key, len(self.numbers)), 1)]), 0


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


class _Search:
    """Finds `pairs`, by each of the two registers that a pair defines."""

    def __init__(self, block: list[Inst], writers: dict[Reg, Inst], supported: Supported) -> None:
        self.here = {r: i for i in block for r in i.out}
        self.writers, self.supported = writers, supported
        self.pairs: dict[Reg, Pair] = {}

    def pair(self, lo: Reg, hi: Reg) -> None:
        """Both as a pair, if they are casts in this block; and what they are made of."""
        first, second, d = self.here.get(lo), self.here.get(hi), lo.dtype
        if first is None or second is None or lo is hi or lo in self.pairs or hi in self.pairs or not self.supported(d):
            return
        if not all(i.op == "cast" and i.args[0].dtype is dt.float32 for i in (first, second)):
            return
        x, y = first.args[0], second.args[0]
        canon = self._op(x) == self._op(y) == "canon"
        if canon:
            x, y = self.here[x].args[0], self.here[y].args[0]
        op, sources = self._computed(d, x, y)
        found = Pair(op, d, lo, hi, sources, (x, y) if op == "round" else (), canon)
        self.pairs |= {lo: found, hi: found}
        for source in sources:
            if source.value is None:
                self.pair(source.lo, source.hi)
        if op == "round":
            self._behind(d, x, y)

    def _behind(self, d: DType, x: Reg, y: Reg) -> None:
        """The pairs that two float32 computations alike start from."""
        open_, seen = [(x, y)], {(x, y)}
        while open_:
            first, second = (self.here.get(r) for r in open_.pop())
            if first is None or second is None or first is second or first.op != second.op:
                continue
            if first.op == "cast" and first.args[0].dtype is second.args[0].dtype is d:
                self.pair(first.args[0], second.args[0])
                continue
            for both in zip(first.args, second.args, strict=False):
                if both not in seen:
                    seen.add(both)
                    open_.append(both)

    def _op(self, r: Reg) -> str:
        return self.here[r].op if r in self.here else ""

    def _computed(self, d: DType, x: Reg, y: Reg) -> tuple[str, tuple[Source, ...]]:
        op = self._op(x)
        if op == self._op(y) and op in OPS:
            sources = [self._source(d, a, b) for a, b in zip(self.here[x].args, self.here[y].args, strict=True)]
            known = tuple(s for s in sources if s is not None)
            if len(known) == len(sources):
                return op, known
        same = self._source(d, x, y)
        return ("same", (same,)) if same is not None else ("round", ())

    def _source(self, d: DType, x: Reg, y: Reg) -> Source | None:
        """Two float32 registers that hold values of the narrow type, as such."""
        neg = absolute = False
        while self._op(x) == self._op(y) and self._op(x) in ("neg", "abs"):
            if self._op(x) == "abs":
                absolute = True
            elif not absolute:
                neg = not neg
            x, y = self.here[x].args[0], self.here[y].args[0]
        first, second = self.writers.get(x), self.writers.get(y)
        if first is None or second is None or first.op != second.op:
            return None
        if first.op == "const" and x.dtype is dt.float32:
            value = float(first.attrs["value"])
            same = value == second.attrs["value"] and math.copysign(1, value) == math.copysign(1, second.attrs["value"])
            return Source(x, y, value, neg, absolute) if same and _holds(d, value) else None
        if first.op == "cast" and first.args[0].dtype is second.args[0].dtype is d:
            return Source(first.args[0], second.args[0], None, neg, absolute)
        return None


def _holds(d: DType, value: float) -> bool:
    """Whether the narrow type has this number."""
    return float(convert.decode(convert.encode(np.array([value], np.float64), d), d, 1)[0]) == value


# ---------------------------------------------------------------------------------------------------------------------
# Order


def _needs(step: Step) -> Iterator[Reg]:
    """What has to be there before it: operands, those of the body's instructions included."""
    if isinstance(step, Pair):
        yield from step.reads
        return
    yield from step.args
    for i in lir.walk(step.body):
        yield from i.args


def _apart(block: list[Inst], written: set[int]) -> list[Inst]:
    """Loads, what is computed, stores; as it is where nothing branches, or not all that is fixed are stores."""
    if not any(i.op in _BRANCHES for i in block) or any(i.op != "store" and _is_fixed(i, written) for i in block):
        return block
    return sorted(block, key=lambda i: {"load": 0, "nibble": 0, "store": 2, "yield": 3}.get(i.op, 1))


class _Order:
    """The instructions in `sequence`, before each what it needs; pairs at the first of their casts. `wrong`: a pair that can't be
    there, because it needs itself or something that must not move."""

    def __init__(self, block: list[Inst], sequence: list[Inst], pairs: dict[Reg, Pair], written: set[int]) -> None:
        self.here = {r: i for i in block for r in i.out}
        self.pairs = pairs
        self.fixed = {id(i): n for n, i in enumerate(i for i in block if _is_fixed(i, written))}
        self.steps: list[Step] = []
        self.wrong: Pair | None = None
        self.done: set[int] = set()
        self.passed = 0
        for i in sequence:
            if self.wrong is None:
                self._reach(i)

    def _reach(self, i: Inst) -> None:
        """Write `i`, behind what it needs."""
        stack: list[tuple[Step, Iterator[Reg]]] = []
        self._enter(stack, i)
        while stack:
            step, needs = stack[-1]
            following = next((self.here[r] for r in needs if r in self.here), None)
            if following is not None:
                if not self._enter(stack, following):
                    break
                continue
            if id(step) in self.fixed:
                if self.fixed[id(step)] != self.passed:
                    break
                self.passed += 1
            stack.pop()
            self.done.add(id(step))
            self.steps.append(step)
        self.wrong = next((step for step, _ in reversed(stack) if isinstance(step, Pair)), None)

    def _enter(self, stack: list[tuple[Step, Iterator[Reg]]], i: Inst) -> bool:
        """False where it waits for itself."""
        step: Step = self.pairs.get(i.out[0], i) if len(i.out) == 1 else i
        if id(step) in self.done:
            return True
        if any(step is waiting for waiting, _ in stack):
            return False
        stack.append((step, _needs(step)))
        return True


def _is_fixed(i: Inst, written: set[int]) -> bool:
    return i.op in _FIXED or any(x.op in ("load", "nibble") and id(x.mem) in written for x in lir.walk([i]))


def _without_unused(steps: list[Step], block: list[Inst], pairs: dict[Reg, Pair], uses: Counter[Reg]) -> list[Step]:
    """Less the instructions that computed what pairs compute."""
    left = Counter(uses)
    for i in block:
        if i.out and i.out[0] in pairs:
            left.subtract(i.args)
    for step in steps:
        if isinstance(step, Pair):
            left.update(step.reads)
    kept: list[Step] = []
    for step in reversed(steps):
        if isinstance(step, Inst) and step.op not in ("loop", "when", "mma") and step.out and not any(left[r] for r in step.out):
            left.subtract(step.args)
        else:
            kept.append(step)
    return kept[::-1]
