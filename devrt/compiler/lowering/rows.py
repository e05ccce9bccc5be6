"""Row kernels: stages of reductions and maps that share the same grid (softmax, norms, cross entropy, GEMV).

A group handles some rows. With lanes along the inner axis every reduction ends in a scalar; with lanes across columns
(the inner axis is not the contiguous one) it ends in a vector. What an earlier stage computed at every inner point and a
later one needs again is kept in shared memory if it is costly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from devrt.compiler.dtypes import DType, compute_type
from devrt.compiler.index import Axis
from devrt.compiler.kernel import Ex, Kernel, Name, Reduce, Stage, Store, is_costly, stage_expressions, subexpressions
from devrt.compiler.lir import Builder, Param, Program, Reg, Shared
from devrt.compiler.lowering import expression
from devrt.compiler.lowering.contract_plan import Tuning
from devrt.compiler.lowering.expression import Scope, round_to
from devrt.compiler.lowering.loops import rows_of_group, spread, sweep
from devrt.compiler.lowering.map import length, streams, write
from devrt.compiler.lowering.reduction import Columns, along_lanes

WORK = 16384  # elements a group should at least read
STASH_BYTES = 2 << 20  # shared memory that kept values may take: half of what a device must offer


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


def kept_values(stages: Sequence[Stage]) -> list[tuple[int, Ex]]:
    """(stage, expression): costly inner values that a later stage over the same axes uses again, largest first."""
    kept: list[tuple[int, Ex]] = []
    seen: list[set[int]] = [{id(e) for e in subexpressions(stage_expressions(s))} for s in stages]
    taken: set[int] = set()
    budget = STASH_BYTES
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
        self.per_group = max(1, min(WORK // max(work, 1), self.rows))
        self.b = Builder(name, lanes=t.lanes, groups=max(1, -(-self.rows // self.per_group)))
        self.params: list[Param] = expression.params_of(self.b, k)
        self.stash: dict[int, tuple[int, Shared]] = {}
        self.kept: dict[int, Ex] = {}
        for n, (stage, e) in enumerate(kept_values(k.stages)):
            size = math.prod(a.size for a in _inner(k.stages[stage]))
            self.stash[id(e)] = (stage, self.b.shared(f"keep{n}", compute_type(e.dtype), size))
            self.kept[id(e)] = e
        self.partials: dict[tuple[DType, int], Shared] = {}

    def run(self) -> Program:
        rows_of_group(self.b, self.rows, self.per_group, self.row)
        return self.b.finish()

    def partial(self, d: DType, count: int) -> Shared:
        if (d, count) not in self.partials:
            self.partials[d, count] = self.b.shared(f"partial{len(self.partials)}", d, count)
        return self.partials[d, count]

    def row(self, row: Reg) -> None:
        b = self.b
        scope = Scope(b, self.params, spread(b, row, self.k.grid), {}, stream=True)
        for n, s in enumerate(self.k.stages):
            if isinstance(s, Reduce):
                scope.values[s.name] = self.reduce(n, s, scope)
            else:
                assert isinstance(s, Store)
                self.store(n, s, scope)

    def inner_scope(self, stage: int, scope: Scope, at: Reg, mask: Reg | None) -> Scope:
        inner = _inner(self.k.stages[stage])
        safe = at if mask is None or len(inner) == 1 else self.b.min(at, self.b.idx(math.prod(a.size for a in inner) - 1))
        here = scope.at(spread(self.b, safe, inner), mask)
        for key, (made, array) in self.stash.items():
            if made < stage and inner == _inner(self.k.stages[made]):
                here.known[key] = self.b.load(array, at, mask)
        return here

    def keep(self, stage: int, here: Scope, at: Reg, mask: Reg | None) -> None:
        for key, (made, array) in self.stash.items():
            if made == stage:
                self.b.store(array, at, here.value(self.kept[key]), mask)

    def reduce(self, n: int, s: Reduce, scope: Scope) -> Reg:
        b = self.b

        def terms(at: Reg, mask: Reg | None) -> list[Reg]:
            here = self.inner_scope(n, scope, at, mask)
            values = [b.cast(here.value(e), s.dtype) for e in s.exprs]
            self.keep(n, here, at, mask)
            return values
        count = math.prod(a.size for a in s.inner)
        total = along_lanes(b, s.kind, s.dtype, count, terms, lambda size: self.partial(s.dtype, size),
                            turns=8 if length(s.exprs) <= 8 else 2)
        return round_to(b, total, s.out)

    def store(self, n: int, s: Store, scope: Scope) -> None:
        b = self.b
        if not s.inner:
            write(b, self.params, s, Scope(b, self.params, scope.axes, scope.values))
            return
        stream = streams(self.k, s, s.inner[-1], self.t)

        def element(at: Reg, mask: Reg | None) -> None:
            here = self.inner_scope(n, scope, at, mask)
            self.keep(n, here, at, mask)
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
