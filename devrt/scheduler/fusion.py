"""Which nodes become kernels: the partition of a graph.

Every root is an array in memory. From each root a kernel is drafted upwards as far as fusion allows; arrays that it needs
and that nothing holds yet become roots in turn. What two kernels would compute twice at a cost is made an array, and the
partition is drawn again. All decisions follow from the graph's shapes, so a given graph always gives the same bits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from devrt.compiler import dtypes as dt
from devrt.compiler import kernel as kir
from devrt.compiler.composite import updated_rows
from devrt.compiler.kernel import Kernel
from devrt.compiler.ops import ELEMENTWISE, TRANSCENDENTAL, Node, Op, make, topological, users
from devrt.scheduler import attention
from devrt.scheduler.build import INLINE, Draft, draft_contract, draft_map, draft_rows, into_rows
from devrt.scheduler.simplify import in_order

SERIAL_WORK = 1 << 17  # elements that one group may handle alone before losing parallelism matters
COPIES = 8  # places of one node that a kernel evaluates; what it needs at more becomes an array
DEPTH = 3  # values that are both reduced and read on, one made from the other, in one kernel: norms need two
LONG = 150  # ops one after another in one kernel
OPERAND_OPS = 6  # element-wise ops evaluated while packing an operand; more are computed beforehand


@dataclass(eq=False)
class Step:
    """One kernel of a schedule: `kernel` computes `node` from `operands` (slot 0 is the result)."""

    node: Node
    kernel: Kernel
    operands: tuple[Node, ...]


@dataclass(eq=False)
class CopyStep:
    """A copy of `source` to the device of `node` (a COPY)."""

    node: Node
    source: Node


Steps = dict[Node, tuple[Step | CopyStep, Draft | None]]


class Partition:
    """Draws the kernels for `roots` on a device of `units` compute units. Roots of `in_place` are update_rows of an array
    that they may overwrite: their kernels store the new rows alone."""

    def __init__(self, roots: Sequence[Node], units: int, in_place: Collection[Node] = ()) -> None:
        self.roots, self.units, self.in_place = list(roots), units, in_place
        self.arrays: set[Node] = set(roots)
        self.users = users(self.roots)

    def stored(self, n: Node) -> bool:
        return n.op in (Op.BUFFER, Op.COPY) or n in self.arrays

    def run(self) -> list[Step | CopyStep]:
        """The kernels, operands before their users."""
        self._store_expensive_shared()
        self._store_copied()
        self._store_deep()
        drafted: dict[Node, Draft] = {}
        while True:
            before = set(self.arrays)
            steps = self._draft_all(drafted)
            self.arrays |= self._computed_twice(steps)
            new = self.arrays - before
            if not new:
                return _ordered(steps)
            # A draft changes only where it computes something that is an array now.
            drafted = {n: d for n, (_, d) in steps.items() if d is not None and d.inlined.isdisjoint(new)}

    def _draft_all(self, drafted: dict[Node, Draft]) -> Steps:
        """A kernel or copy for every array that the roots need; `drafted` holds kernels that are still right."""
        steps: Steps = {}
        work = [r for r in self.roots if r.op is not Op.BUFFER]
        while work:
            n = work.pop()
            if n in steps or n.op is Op.BUFFER:
                continue
            if n.op is Op.COPY:
                steps[n] = (CopyStep(n, n.src[0]), None)
                if n.src[0].op is not Op.BUFFER:
                    self.arrays.add(n.src[0])
                    work.append(n.src[0])
                continue
            d = drafted.get(n)
            if d is None:
                d = self._draft(n)
                kir.verify(d.kernel)
            steps[n] = (Step(n, d.kernel, tuple(d.operands)), d)
            work.extend(d.operands)
        return steps

    def _draft(self, root: Node) -> Draft:
        """The best kernel for one root: attention, then a product with its epilogue, then rows, then a map."""
        if root in self.in_place:
            return self._draft_update(root)
        if root.dtype is dt.int4:
            return draft_map(root, self.stored)  # two elements share a byte: only maps store those
        anchor = self._anchor(root)
        if anchor is not None:
            found = attention.match(anchor, self.stored)
            if found is not None:
                for x in (*found[1].src, anchor.src[1]):
                    self._store_costly(x, 0)  # keys are read again by every block of queries
            d = attention.draft(root, anchor, self.stored)
            if d is None:
                for x in anchor.src:
                    self._store_costly(x)
                d = draft_contract(root, anchor, self.stored)
            if d is not None:
                return d
        for n in (root, *self._region(root)):
            if n.op is Op.REDUCE:
                self._store_row_results(n)
        rows = draft_rows(root, self.stored, lambda n: not in_order(n), self._worth)
        if rows is not None:
            self._store_shared_factors(rows)
            return draft_rows(root, self.stored, lambda n: not in_order(n), self._worth) or rows
        return draft_map(root, self.stored)

    def _draft_update(self, root: Node) -> Draft:
        """The kernel of the new rows, storing into the array that `root` updates."""
        found = updated_rows(root)
        assert found is not None
        _, new, start = found
        inner = make(Op.RESHAPE, (new,), (new.shape[0], 1, *new.shape[1:])) if self.stored(new) else new
        return into_rows(self._draft(inner), root, start)

    def _worth(self, rows: int, work: int) -> bool:
        return rows >= 2 * self.units or work <= SERIAL_WORK

    def _region(self, root: Node) -> list[Node]:
        """The nodes that could be computed in the kernel of `root`: reductions found on the way included, not passed."""
        found: list[Node] = []
        seen: set[Node] = set()
        stack = list(root.src) if root.op in INLINE else []
        while stack:
            n = stack.pop()
            if n in seen or self.stored(n):
                continue
            seen.add(n)
            found.append(n)
            if n.op in INLINE:
                stack.extend(n.src)
        return found

    def _anchor(self, root: Node) -> Node | None:
        """The in-order contraction that the kernel of `root` is built around: the largest one."""
        if root.op is Op.CONTRACT:
            return root if in_order(root) else None
        found = [n for n in self._region(root) if n.op is Op.CONTRACT and in_order(n)]
        return max(found, key=lambda n: n.size * n.src[0].shape[2], default=None)

    def _store_costly(self, operand: Node, limit: int = OPERAND_OPS) -> None:
        """A chain of more than `limit` ops before a product is computed once, not once a tile."""
        base = operand
        while base.op in (Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.SLICE) and not self.stored(base):
            base = base.src[0]
        if self.stored(base) or base.op not in INLINE:
            return
        inside = [base, *self._region(base)]
        ops = sum(n.op in ELEMENTWISE and n.op is not Op.CAST for n in inside)
        costly = any(n.op in TRANSCENDENTAL or n.op in (Op.DIV, Op.SQRT, Op.GATHER) for n in inside)
        if ops > limit or costly:
            self.arrays.add(base)

    def _store_shared_factors(self, d: Draft) -> None:
        """In y[n] = sum w[n,k] * f(x[k]), f(x) does not depend on n: compute it once, not once a row."""
        for n in d.inlined:
            if n.op is not Op.CONTRACT:
                continue
            for x, other in (n.src, n.src[::-1]):
                base = x
                while base.op in (Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.CAST) and not self.stored(base):
                    base = base.src[0]
                if base.size < other.size and base.op in ELEMENTWISE and not self.stored(base):
                    self.arrays.add(base)

    def _store_row_results(self, root: Node) -> None:
        """A reduction of what longer reductions gave (the mean of a loss): those share a kernel that stores their result."""
        base = root.src[0]
        while base.op in (Op.RESHAPE, Op.PERMUTE, Op.CAST) and not self.stored(base):
            base = base.src[0]
        if base.op in ELEMENTWISE and not self.stored(base):
            longer = [n for n in self._region(base) if n.op in (Op.REDUCE, Op.CONTRACT) and n.src[0].size >= 4 * base.size]
            if longer:
                self.arrays.add(base)

    def _store_expensive_shared(self) -> None:
        """Transcendentals with several users that will not share a kernel: only where the users are contractions."""
        for n in topological(self.roots):
            if n.op in TRANSCENDENTAL or n.op is Op.GATHER:
                consumers = {u for u in self.users.get(n, ()) if u.op is Op.CONTRACT}
                if len(consumers) > 1:
                    self.arrays.add(n)

    def _store_deep(self) -> None:
        """In a chain of x = f(x, reduction of x) every kernel would start from the first x: it starts anew every DEPTH-th.
        So does a chain of more than LONG ops, which would be one endless kernel."""
        depth: dict[Node, int] = {}
        length: dict[Node, int] = {}
        for n in topological(self.roots):
            depth[n] = length[n] = 0
            if self.stored(n) or n.op in (Op.REDUCE, Op.CONTRACT):
                continue
            depth[n] = max((depth[s] for s in n.src), default=0)
            length[n] = 1 + max((length[s] for s in n.src), default=0)
            readers = self.users.get(n, ())
            if n.op in ELEMENTWISE and len(readers) > 1 and any(u.op in (Op.REDUCE, Op.CONTRACT) for u in readers):
                depth[n] += 1
            if n.op in ELEMENTWISE and (depth[n] > DEPTH or length[n] > LONG):
                self.arrays.add(n)
                depth[n] = length[n] = 0

    def _store_copied(self) -> None:
        """What one kernel would compute at more than COPIES places: sums of shifted sums double at every step."""
        order = topological(self.roots)
        reads: set[Node] = set()
        for n in order:
            if n.op in (Op.BUFFER, Op.COPY) or not reads.isdisjoint(n.src):
                reads.add(n)
        steps: dict[tuple[int, Node], int] = {}
        places: dict[Node, set[int]] = {}  # the ways from the root on which indexes change, by number
        for n in reversed(order):
            here = places.pop(n, {0})
            if len(here) > COPIES and n.op in ELEMENTWISE and n in reads:
                self.arrays.add(n)
            if self.stored(n) or n.op in (Op.REDUCE, Op.CONTRACT):
                here = {0}
            elif len(here) > COPIES:
                here = set(sorted(here)[:COPIES + 1])
            moved = here if n.op in ELEMENTWISE else {steps.setdefault((w, n), len(steps) + 1) for w in here}
            for s in n.src:
                places.setdefault(s, set()).update(moved)

    def _computed_twice(self, steps: Steps) -> set[Node]:
        """Costly nodes that more than one kernel computes, the ones nearest to the roots."""
        count: dict[Node, int] = {}
        for _, d in steps.values():
            for n in (d.inlined if d else ()):
                count[n] = count.get(n, 0) + 1
        twice = {n for n, c in count.items() if c > 1 and n.op in (Op.REDUCE, Op.CONTRACT, *TRANSCENDENTAL)
                 and n not in self.arrays}
        if not twice:
            return set()
        below = set(topological([x for n in twice for x in n.src]))
        top = twice - below
        # A transcendental is stored as the widest element-wise value that all its kernels share.
        return {self._widen(n, count) for n in top}

    def _widen(self, n: Node, count: dict[Node, int]) -> Node:
        while True:
            above = [u for u in self.users.get(n, ()) if count.get(u, 0) > 1 and u.op in ELEMENTWISE and u.shape == n.shape]
            if len(above) != 1 or len(set(self.users.get(n, ()))) != 1 or above[0] in self.arrays:
                return n
            n = above[0]


def _ordered(steps: Steps) -> list[Step | CopyStep]:
    order: list[Step | CopyStep] = []
    done: set[Node] = set()
    stack = [(n, False) for n in reversed(list(steps))]
    while stack:
        n, ready = stack.pop()
        if n in done or n not in steps:
            continue
        step = steps[n][0]
        reads = (step.source,) if isinstance(step, CopyStep) else step.operands
        if ready:
            done.add(n)
            order.append(step)
        else:
            stack.append((n, True))
            stack.extend((r, False) for r in reads if r not in done)
    return order


def partition(roots: Sequence[Node], units: int, in_place: Collection[Node] = ()) -> list[Step | CopyStep]:
    """The kernels and copies that compute `roots` (simplified), in an order that respects dependencies."""
    return Partition(roots, units, in_place).run()
