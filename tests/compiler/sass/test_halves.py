"""Pairs are found where neighbours are alike, and computed in an order that keeps what must not move. Random programs of
neighbours that are more or less alike, against the interpreter."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from devrt.compiler import convert, lir
from devrt.compiler import dtypes as dt
from devrt.compiler.lir import Builder, Reg
from devrt.compiler.sass import halves
from devrt.compiler.sass.halves import Pair
from tests.compiler import random_programs as programs
from tests.compiler.sass.test_select import SMS, difference
from tests.compiler.sass.test_select_half import HARD


class Neighbours:
    """Two halves a lane, of as many arrays as a test asks for."""

    def __init__(self, d: dt.DType = dt.float16, lanes: int = 32) -> None:
        self.d, self.b = d, Builder("neighbours", lanes=lanes, groups=2)
        self.at = self.b.mul(self.b.add(self.b.mul(self.b.group(), self.b.idx(lanes)), self.b.lane()), self.b.idx(2))
        self.out = self.b.param("out", d, 4 * lanes, writable=True)
        self.x = self.b.param("x", d, 4 * lanes)

    def place(self, n: int) -> Reg:
        return self.b.add(self.at, self.b.idx(n))

    def load(self, n: int, mem: lir.Param | None = None) -> Reg:
        return self.b.cast(self.b.load(mem or self.x, self.place(n)), dt.float32)

    def rounded(self, r: Reg) -> Reg:
        return self.b.cast(self.b.cast(r, self.d), dt.float32)

    def store(self, n: int, r: Reg, mem: lir.Param | None = None) -> None:
        self.b.store(mem or self.out, self.place(n), self.b.cast(self.b.canon(r), self.d))


def steps(program: lir.Program, supported: bool = True) -> list[halves.Step]:
    """Those of the program's outer block."""
    every = list(lir.walk(program.body))
    return halves.plan(program.body, {r: i for i in every for r in i.out}, Counter(r for i in every for r in i.args),
                       {id(i.mem) for i in every if i.op == "store"}, lambda d: supported)


def found(program: lir.Program) -> list[str]:
    return [s.op for s in steps(program) if isinstance(s, Pair)]


def test_neighbours_alike_are_pairs_and_nothing_else_is_left() -> None:
    n = Neighbours()
    for k in range(2):
        x = n.load(k)
        n.store(k, n.rounded(n.b.mul(n.rounded(n.b.add(x, n.b.const(dt.float32, 0.5))), n.b.neg(x))))
    program = n.b.finish()
    assert found(program) == ["add", "mul", "same"] and steps(program, supported=False) == program.body
    left = [s.op for s in steps(program) if not isinstance(s, Pair)]
    assert Counter(left)["load"] == Counter(left)["store"] == 2 and not {"cast", "canon", "neg"} & set(left)
    (mul,) = (s for s in steps(program) if isinstance(s, Pair) and s.op == "mul")
    assert [source.neg for source in mul.sources] == [False, True]


@pytest.mark.parametrize("why", ["not neighbours", "an odd first", "masks", "another type"])
def test_what_is_no_pair(why: str) -> None:
    n = Neighbours()
    places = {"not neighbours": (0, 2), "an odd first": (-1, 0)}.get(why, (0, 1))
    for k in places:
        r = n.b.add(n.load(k), n.load(k))
        value, at = n.b.cast(r, dt.float16), n.place(k)
        if why == "masks":
            n.b.store(n.out, at, value, n.b.lt(at, n.b.idx(40)))
        elif why == "another type":
            n.b.store(n.b.param(f"wide{k}", dt.float32, 128, writable=True), at, r)
        else:
            n.b.store(n.out, at, value)
    assert found(n.b.finish()) == []


def test_a_number_that_its_type_has_not_is_no_operand_of_a_pair() -> None:
    n = Neighbours()
    for k in range(2):
        n.store(k, n.rounded(n.b.mul(n.load(k), n.b.const(dt.float32, 0.1))))
    assert found(n.b.finish()) == ["round", "same"]


def test_the_second_needs_the_first() -> None:
    n = Neighbours()
    first = n.rounded(n.b.add(n.load(0), n.load(1)))
    n.store(0, first)
    n.store(1, n.rounded(n.b.add(first, n.load(1))))
    program = n.b.finish()
    assert "add" not in found(program)
    assert not difference(program, data(program, 0), 90, 0)


def test_loads_stay_behind_what_they_may_read() -> None:
    """The second is loaded from where the lane stored before: no pair, and the bits of the interpreter."""
    n = Neighbours()
    kept = n.b.shared("kept", dt.float16, 64)
    spot = n.b.mul(n.b.lane(), n.b.idx(2))
    for k in range(2):
        n.b.store(kept, n.b.add(spot, n.b.idx(k)), n.b.cast(n.load(k), dt.float16))
    for k in range(2):
        n.b.barrier()
        r = n.b.cast(n.b.load(kept, n.b.add(spot, n.b.idx(k))), dt.float32)
        n.store(k, n.rounded(n.b.add(r, r)))
    program = n.b.finish()
    order = [s.op for s in steps(program) if not isinstance(s, Pair) and s.op in ("barrier", "load", "store")]
    assert order.count("barrier") == 2 and order.index("barrier") < order.index("load", 3) and "add" not in found(program)
    assert not difference(program, data(program, 1), 80, 0)


def test_a_pair_that_is_also_read_one_by_one() -> None:
    """In float32, and of a value before it was rounded."""
    n = Neighbours(dt.bfloat16)
    wide = n.b.param("wide", dt.float32, 128, writable=True)
    for k in range(2):
        raw = n.b.mul(n.load(k), n.load(1 - k))
        r = n.rounded(raw)
        n.b.store(wide, n.place(k), n.b.canon(n.b.add(r, raw)))
        n.store(k, n.rounded(n.b.max(r, n.load(k))))
    program = n.b.finish()
    assert found(program) == ["mul", "max", "same"]
    for sm in (75, 80, 90):
        assert not difference(program, data(program, 2), sm, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Random programs


def data(program: lir.Program, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {}
    for p in program.params:
        values = programs.special_data(p.dtype, p.count, rng)
        if p.dtype in HARD:
            hard = np.array(HARD[p.dtype], np.uint16).view(convert.storage_numpy(p.dtype))
            values = np.where(rng.random(p.count) < 0.5, rng.choice(hard, p.count), values)
        arrays[p.name] = programs.aligned(values)
    return arrays


class Chance(Neighbours):
    """A chain of operations for each neighbour, the same ones as a rule."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        super().__init__(self.chance.choice((dt.float16, dt.bfloat16)))
        self.arrays = [self.x, *(self.b.param(f"x{n}", self.d, 128) for n in range(3))]
        self.wide = self.b.param("wide", dt.float32, 128, writable=True)
        plan = [(self.chance.choice(OPS), self.chance.random(), self.chance.random()) for _ in range(self.chance.randrange(2, 9))]
        known: list[list[Reg]] = []
        for k in self.chance.choice(((0, 1), (0, 1), (1, 0))):
            known.append(self.chain(k, plan, known[0] if known else []))

    def chain(self, k: int, plan: list[tuple[str, float, float]], others: list[Reg]) -> list[Reg]:
        b, chance = self.b, self.chance
        values = [self.load(k, mem) for mem in self.arrays] + [b.const(dt.float32, 1.5), self.rounded(b.const(dt.float32, -0.0))]
        for op, first, second in plan:
            if chance.random() < 0.05:
                first = chance.random()
            x, y = (values[int(place * len(values))] for place in (first, second))
            if others and chance.random() < 0.04:
                y = chance.choice(others)
            values.append(self.made("add" if chance.random() < 0.04 else op, x, y))
        last = values[-1]
        if plan[0][1] < 0.3:
            b.store(self.wide, self.place(k), b.canon(values[len(values) // 2]))
        self.store(k, last)
        return values

    def made(self, op: str, x: Reg, y: Reg) -> Reg:
        b = self.b
        if op in ("neg", "abs"):
            return b.unary(op, x)
        if op == "when":
            return self.rounded(b.when(b.lt(x, y), [x], lambda: [b.mul(x, y)])[0])
        if op == "select":
            return b.select(b.lt(x, y), x, y)
        if op == "fma":
            return self.rounded(b.fma(x, y, x))
        return self.rounded(b.binary(op, x, y))


OPS = (*halves.OPS, *halves.OPS, "neg", "abs", "when", "select", "fma", "div")


@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_random_neighbours(count: int) -> None:
    pairs: Counter[str] = Counter()
    for seed in range(count):
        program = Chance(seed).b.finish()
        pairs.update(found(program))
        sm = SMS[seed % len(SMS)]
        why = difference(program, data(program, seed), sm, 0)
        assert not why, f"{why}\nseed {seed}, sm_{sm}\n{program}"
    assert {*halves.OPS, "round", "same"} <= set(pairs)
