"""Row kernels: stages of reductions and maps that share the same grid (softmax, norms, cross entropy, GEMV).

A group handles some rows. With lanes along the inner axis every reduction ends in a scalar; with lanes across columns
(the inner axis is not the contiguous one) it ends in a vector. What an earlier stage computed at every inner point and a
later one needs again is kept in shared memory if it is costly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from devrt.compiler.dtypes import DType, compute_type
from devrt.compiler.index import Axis
from devrt.compiler.kernel import Ex, Kernel, Name, Reduce, Stage, Store, is_costly, stage_expressions, subexpressions
from devrt.compiler.lir import Builder, Param, Program, Reg, Shared
from devrt.compiler.lowering import expression
from devrt.compiler.lowering.contract_plan import Tuning
from devrt.compiler.lowering.expression import Scope, Stream, round_to
from devrt.compiler.lowering.loops import Point, rows_of_group, spread, sweep
from devrt.compiler.lowering.map import length, streams, write
from devrt.compiler.lowering.reduction import CHUNK, LANES, Columns, along_lanes

PRODUCT = Stream(least=64 << 10)  # the caches of a model that uses each matrix once hold others by now
SIDE_BY_SIDE = 8 << 10  # bytes that rows taken at once may have: what is fetched ahead lies beyond them


def lower(k: Kernel, name: str, t: Tuning) -> Program:
    """The LIR of a row kernel: Reduce and Store stages."""
    return _Columns(k, name, t).run() if across(k) else _Rows(k, name, t).run()


def across(k: Kernel) -> bool:
    """Whether lanes run across the last grid axis: more bytes are contiguous along it than along the inner axes."""
    if not k.grid:
        return False
    votes = {True: 0, False: 0}
    for s in k.stages:
        inner = s.inner if isinstance(s, (Reduce, Store)) else ()
        for e in subexpressions(stage_expressions(s)):
            if e.op == "load" and inner and any(a in e.axes for a in inner):
                index = e.arg[1]
                weight = math.prod(a.size for a in e.axes) * e.dtype.bits
                if index.coefficient(inner[-1]) == 1:
                    votes[False] += weight
                elif index.coefficient(k.grid[-1]) == 1:
                    votes[True] += weight
    return votes[True] > votes[False]


def _inner(s: Stage) -> tuple[Axis, ...]:
    assert isinstance(s, (Reduce, Store))
    return s.inner


def kept_values(stages: Sequence[Stage], budget: int) -> list[tuple[int, Ex]]:
    """(stage, expression): costly inner values that a later stage over the same axes uses again, largest first, of at most
    `budget` bytes in all."""
    kept: list[tuple[int, Ex]] = []
    seen: list[set[int]] = [{id(e) for e in subexpressions(stage_expressions(s))} for s in stages]
    taken: set[int] = set()
    for n, s in enumerate(stages):
        for later in range(n + 1, len(stages)):
            if not _inner(s) or _inner(stages[later]) != _inner(s):
                continue
            for e in reversed(list(subexpressions(stage_expressions(stages[later])))):
                wanted = id(e) in seen[n] and id(e) not in taken and set(_inner(s)) & e.axes and e.op != "load"
                if not wanted or any(id(e) in {id(x) for x in subexpressions(c.args)} for _, c in kept) or not is_costly(e):
                    continue
                size = math.prod(a.size for a in _inner(s)) * compute_type(e.dtype).bits // 8
                if size <= budget:
                    budget -= size
                    taken.add(id(e))
                    kept.append((n, e))
    return kept


class _Rows:
    """Lanes along the inner axes."""

    def __init__(self, k: Kernel, name: str, t: Tuning) -> None:
        self.k, self.t = k, t
        self.rows = math.prod(a.size for a in k.grid)
        work = sum(math.prod(a.size for a in _inner(s)) for s in k.stages)
        kept = kept_values(k.stages, t.scratch_bytes // 2)
        self.at_once = 1 if kept else self._rows_at_once()
        self.per_group = max(1, min(t.chunk // max(work, 1), self.rows) // self.at_once) * self.at_once
        self.b = Builder(name, lanes=t.lanes, groups=max(1, -(-self.rows // self.per_group)))
        self.params: list[Param] = expression.params_of(self.b, k)
        self.stash: dict[int, tuple[int, Shared]] = {}
        self.kept: dict[int, Ex] = {}
        for n, (stage, e) in enumerate(kept):
            size = math.prod(a.size for a in _inner(k.stages[stage]))
            self.stash[id(e)] = (stage, self.b.shared(f"keep{n}", compute_type(e.dtype), size))
            self.kept[id(e)] = e
        self.partials: dict[tuple[DType, int], Shared] = {}

    def run(self) -> Program:
        rows_of_group(self.b, self.rows, self.per_group, self.block, step=self.at_once)
        return self.b.finish()

    def _rows_at_once(self) -> int:
        """2 where no stage but reductions, each of a chunk, runs along the rows, and the accumulators take half the registers.

        Two rows share the loads of what is the same in both, and the steps in which lanes are folded.
        """
        reductions = [s for s in self.k.stages if isinstance(s, Reduce)]
        inner = [math.prod(a.size for a in s.inner) for s in reductions]
        plain = all(isinstance(s, Reduce) or not _inner(s) for s in self.k.stages)
        if not plain or self.rows % 2 or self.t.lanes < 2 or max(inner) > CHUNK:
            return 1
        grid = set(self.k.grid)
        bits = max((e.dtype.bits * n for s, n in zip(reductions, inner, strict=True) for e in subexpressions(s.exprs)
                    if e.op == "load" and e.axes & grid), default=0)
        registers = self.t.vector_registers * self.t.lanes * 32 // max(s.dtype.bits for s in reductions)
        short = all(length(s.exprs) <= 16 for s in reductions)
        return 2 if short and 2 * bits <= 8 * SIDE_BY_SIDE and registers >= 4 * LANES else 1

    def partial(self, d: DType, count: int) -> Shared:
        if (d, count) not in self.partials:
            self.partials[d, count] = self.b.shared(f"partial{len(self.partials)}", d, count)
        return self.partials[d, count]

    def block(self, row: Reg) -> None:
        """The rows from `row` on that are taken at once."""
        b = self.b
        scopes = [Scope(b, self.params, spread(b, b.add(row, b.idx(r)), self.k.grid), {}) for r in range(self.at_once)]
        for n, s in enumerate(self.k.stages):
            if isinstance(s, Reduce):
                for scope, value in zip(scopes, self.reduce(n, s, scopes), strict=True):
                    scope.values[s.name] = value
            else:
                assert isinstance(s, Store)
                for scope in scopes:
                    self.store(n, s, scope)

    def inner_scope(self, stage: int, scope: Scope, at: Point) -> Scope:
        inner = _inner(self.k.stages[stage])
        alone = len(inner) == 1
        safe = at.k if at.mask is None or alone else self.b.min(at.k, self.b.idx(math.prod(a.size for a in inner) - 1))
        here = scope.at(spread(self.b, safe, inner), at.mask, at.phase, {inner[0]: at.first} if alone else None)
        for key, (made, array) in self.stash.items():
            if made < stage and inner == _inner(self.k.stages[made]):
                here.known[key] = self.b.load(array, at.k, at.mask)
        return here

    def keep(self, stage: int, here: Scope, at: Point) -> None:
        for key, (made, array) in self.stash.items():
            if made == stage:
                self.b.store(array, at.k, here.value(self.kept[key]), at.mask)

    def reduce(self, n: int, s: Reduce, scopes: list[Scope]) -> list[Reg]:
        b, rows = self.b, len(scopes)
        count = math.prod(a.size for a in s.inner)
        stream = replace(PRODUCT if s.kind == "dot" else Stream(), block=count * rows if rows > 1 else 0)
        same = [e for e in subexpressions(s.exprs) if not e.axes & set(self.k.grid)]

        def terms(at: Point) -> list[list[Reg]]:
            values: list[list[Reg]] = []
            known: dict[int, Reg] = {}
            for scope in scopes:
                here = self.inner_scope(n, scope.streaming(stream), at)
                here.known |= known
                values.append([b.cast(here.value(e), s.dtype) for e in s.exprs])
                known = {id(e): here.known[id(e)] for e in same if id(e) in here.known}
                self.keep(n, here, at)
            return values
        totals = along_lanes(b, s.kind, s.dtype, count, terms, lambda size: self.partial(s.dtype, size),
                             turns=max(1, (8 if length(s.exprs) <= 8 else 2) // rows), rows=rows)
        return [round_to(b, total, s.out) for total in totals]

    def store(self, n: int, s: Store, scope: Scope) -> None:
        b = self.b
        if not s.inner:
            write(b, self.params, s, Scope(b, self.params, scope.axes, scope.values))
            return
        stream = streams(self.k, s, s.inner[-1], self.t)

        def element(at: Point) -> None:
            here = self.inner_scope(n, scope.streaming(Stream()), at)
            self.keep(n, here, at)
            write(b, self.params, s, here, stream)
        sweep(b, b.idx(0), math.prod(a.size for a in s.inner), 2, element)


class _Columns:
    """Lanes across the last grid axis; a group takes a block of neighbouring columns."""

    def __init__(self, k: Kernel, name: str, t: Tuning) -> None:
        self.k, self.t = k, t
        self.axis = k.grid[-1]
        self.outer = k.grid[:-1]
        vectors = -(-self.axis.size // t.lanes)
        outer = math.prod(a.size for a in self.outer)
        self.vectors = max(1, min(8, vectors, vectors * outer // (4 * t.units)))
        self.blocks = -(-vectors // self.vectors)
        self.b = Builder(name, lanes=t.lanes, groups=max(1, outer * self.blocks))
        self.params: list[Param] = expression.params_of(self.b, k)

    def run(self) -> Program:
        b = self.b
        g = b.group()
        row = b.div(g, b.idx(self.blocks))
        first = b.mul(b.rem(g, b.idx(self.blocks)), b.idx(self.vectors * b.lanes))
        ragged = self.axis.size % (self.vectors * b.lanes) != 0
        columns = [b.add(b.add(first, b.idx(v * b.lanes)), b.lane()) for v in range(self.vectors)]
        masks = [b.lt(c, b.idx(self.axis.size)) if ragged else None for c in columns]
        outer = spread(b, row, self.outer)
        scopes = [Scope(b, self.params, outer | {self.axis: c}, {}, m) for c, m in zip(columns, masks, strict=True)]
        reducer = Columns(b, self.vectors)
        results: dict[Name, Shared] = {}

        def here(v: int, inner: tuple[Axis, ...], at: Reg) -> Scope:
            scope = scopes[v].at(spread(b, at, inner))
            scope.values = {n: b.load(a, b.add(b.idx(v * b.lanes), b.lane())) for n, a in results.items()}
            return scope

        for s in self.k.stages:
            if isinstance(s, Reduce):
                def terms(k: Reg, v: int, s: Reduce = s) -> list[Reg]:
                    scope = here(v, s.inner, k)
                    return [b.cast(scope.value(e), s.dtype) for e in s.exprs]
                count = math.prod(a.size for a in s.inner)
                values = reducer.reduce(s.kind, s.dtype, count, terms)
                array = b.shared(str(s.name), compute_type(s.out), self.vectors * b.lanes)
                for v, r in enumerate(values):
                    b.store(array, b.add(b.idx(v * b.lanes), b.lane()), round_to(b, r, s.out))
                b.barrier()
                results[s.name] = array
            else:
                assert isinstance(s, Store)

                def point(k: Reg, _: list[Reg], s: Store = s) -> Sequence[Reg]:
                    for v in range(self.vectors):
                        write(b, self.params, s, here(v, s.inner, k))
                    return []
                b.loop(0, math.prod(a.size for a in s.inner), [], point)
        return b.finish()
