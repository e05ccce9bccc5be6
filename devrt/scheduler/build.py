"""One kernel from one root node: movement becomes index arithmetic, everything inlined becomes an expression.

A Draft walks up from the root. A node that must be in memory becomes a slot; a reduction that shares the kernel's grid
becomes a stage; any other reduction is asked for as an array of its own (`needs`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType, compute_type
from devrt.compiler.index import ZERO, Axis, Index, axis_index, dynamic, flatten, unflatten
from devrt.compiler.kernel import Contract, Ex, Expressions, Kernel, Name, Reduce, Slot, Store, subexpressions
from devrt.compiler.ops import ELEMENTWISE, Node, Op, is_fast, topological
from devrt.device import CompileError

IndexTuple = tuple[Index, ...]
INLINE = ELEMENTWISE | {Op.CONST, Op.IOTA, Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.PAD, Op.SLICE, Op.GATHER}


class Draft:
    """A kernel being written for `root`; `stored` says which nodes are (or will be) arrays in memory."""

    def __init__(self, root: Node, stored: Callable[[Node], bool]) -> None:
        self.root, self.stored = root, stored
        self.ex = Expressions()
        self.kernel = Kernel(slots=[Slot(root.dtype, root.size, True)])
        self.operands: list[Node] = []
        self.inlined: set[Node] = set()
        self.heavy: dict[Node, list[IndexTuple]] = {}
        self.names: dict[Node, tuple[IndexTuple, Ex]] = {}
        self.fusable: Callable[[Node, IndexTuple, Ex | None], bool] = lambda n, i, m: False
        self._memo: dict[tuple[Node, IndexTuple, int], Ex] = {}
        self._inner: dict[int, Axis] = {}

    # ----- axes

    def grid_axis(self, size: int) -> Axis:
        a = Axis(f"g{len(self.kernel.grid)}", size)
        self.kernel.grid += (a,)
        return a

    def inner_axis(self, size: int) -> Axis:
        """The inner axis of `size`: stages of the same extent share it, so that equal values are seen to be equal."""
        if size not in self._inner:
            self._inner[size] = Axis(f"r{len(self._inner)}", size)
        return self._inner[size]

    # ----- expressions

    def slot(self, n: Node) -> int:
        if n not in self.operands:
            self.operands.append(n)
            self.kernel.slots.append(Slot(n.dtype, n.size, False))
        return self.operands.index(n) + 1

    def expr(self, n: Node, index: IndexTuple, mask: Ex | None = None) -> Ex:
        """The value of `n` at `index` where `mask` holds (anything elsewhere)."""
        key = (n, index, id(mask))
        if key not in self._memo:
            self._memo[key] = self._expr(n, index, mask)
        return self._memo[key]

    def load(self, n: Node, index: IndexTuple, mask: Ex | None) -> Ex:
        return self.ex.make("load", () if mask is None else (mask,), (self.slot(n), flatten(index, n.shape)), n.dtype)

    def _expr(self, n: Node, index: IndexTuple, mask: Ex | None) -> Ex:
        if n in self.names:
            at, value = self.names[n]
            if at == index:
                return value
        if n is not self.root and self.stored(n):
            return self.load(n, index, mask)
        if n.op in (Op.REDUCE, Op.CONTRACT):
            self.heavy.setdefault(n, []).append(index)
            if self.fusable(n, index, mask):
                return self.names[n][1]
            return self.load(n, index, mask)
        self.inlined.add(n)
        x = n.src[0] if n.src else n
        if n.op is Op.CONST:
            return self.ex.const(n.arg[0], n.dtype)
        if n.op is Op.IOTA:
            return self.ex.make("index", (), index[0], n.dtype)
        if n.op is Op.RESHAPE:
            return self.expr(x, unflatten(flatten(index, n.shape), x.shape), mask)
        if n.op is Op.PERMUTE:
            back = [ZERO] * len(index)
            for i, a in zip(index, n.arg, strict=True):
                back[a] = i
            return self.expr(x, tuple(back), mask)
        if n.op is Op.EXPAND:
            return self.expr(x, tuple(ZERO if s == 1 else i for i, s in zip(index, x.shape, strict=True)), mask)
        if n.op is Op.SLICE:
            return self.expr(x, tuple(i * step + start for i, (start, _, step) in zip(index, n.arg, strict=True)), mask)
        if n.op is Op.PAD:
            return self._pad(n, index, mask)
        if n.op is Op.GATHER:
            rank = len(n.src[1].shape)
            row = dynamic(self.expr(n.src[1], index[:rank], mask), x.shape[0])
            return self.expr(x, (row, *index[rank:]), mask)
        return self._elementwise(n, index, mask)

    def _pad(self, n: Node, index: IndexTuple, mask: Ex | None) -> Ex:
        pads, fill = n.arg
        x = n.src[0]
        inside: Ex | None = None
        for i, (before, after), size in zip(index, pads, x.shape, strict=True):
            if (before or after) and (i.lo < before or i.hi >= before + size):
                inside = self.ex.both(inside, self.ex.make("inside", (), (i, before, before + size), dt.bool_))
        shifted = tuple(i + -before for i, (before, _) in zip(index, pads, strict=True))
        value = self.expr(x, shifted, self.ex.both(mask, inside))
        return value if inside is None else self.ex.make(Op.WHERE, (inside, value, self.ex.const(fill, n.dtype)), None, n.dtype)

    def _elementwise(self, n: Node, index: IndexTuple, mask: Ex | None) -> Ex:
        args = tuple(self.expr(s, index, mask) for s in n.src)
        if n.dtype in (dt.int32, dt.int64) and n.op in (Op.ADD, Op.MUL, Op.CAST):
            linear = self._linear(n.op, args)
            if linear is not None and n.dtype.min <= linear.lo and linear.hi <= n.dtype.max:
                return self.ex.make("index", (), linear, n.dtype) if linear.terms else self.ex.const(linear.constant, n.dtype)
        return self.ex.make(n.op, args, n.arg if n.op is Op.SIN else None, n.dtype)

    @staticmethod
    def _linear(op: Op, args: tuple[Ex, ...]) -> Index | None:
        """Index arithmetic stays index arithmetic, so that masks from iota can be read."""
        forms = [a.arg if a.op == "index" else Index((), a.arg) if a.op == "const" and a.dtype.is_int else None for a in args]
        if any(f is None for f in forms):
            return None
        if op is Op.CAST:
            return forms[0] if args[0].op == "index" else None
        x, y = forms
        assert x is not None and y is not None
        if op is Op.ADD:
            return x + y
        if not x.terms or not y.terms:
            return y * x.constant if not x.terms else x * y.constant
        return None

    # ----- stages

    def value(self, n: Node, index: IndexTuple, name: Name, dtype: DType) -> Ex:
        e = self.ex.make("value", (), name, dtype)
        self.names[n] = (index, e)
        return e

    def reduce_stage(self, n: Node, index: IndexTuple) -> Ex:
        """Append the stage that computes the REDUCE or lane-wise CONTRACT `n` at the grid point `index`."""
        x = n.src[0]
        if n.op is Op.CONTRACT:
            inner = self.inner_axis(x.shape[2])
            b, m, c = index
            k = axis_index(inner)
            exprs: tuple[Ex, ...] = (self.expr(x, (b, m, k)), self.expr(n.src[1], (b, k, c)))
            kind, acc = "dot", n.dtype
        else:
            kind, axes = n.arg
            order = sorted(axes)
            sizes = [x.shape[a] for a in order]
            inner = self.inner_axis(math.prod(sizes))
            at = list(index)
            for a, i in zip(order, unflatten(axis_index(inner), sizes), strict=True):
                at[a] = i
            exprs, acc = (self.expr(x, tuple(at)),), compute_type(n.dtype)
        name = Name(f"v{sum(isinstance(s, Reduce) for s in self.kernel.stages)}", self.kernel.grid)
        self.kernel.stages.append(Reduce(name, kind, (inner,), exprs, acc, n.dtype))
        self.inlined.add(n)
        return self.value(n, index, name, n.dtype)

    def store(self, index: IndexTuple, value: Ex, inner: tuple[Axis, ...]) -> None:
        self.kernel.stages.append(Store(0, flatten(index, self.root.shape), value, inner))


# ---------------------------------------------------------------------------------------------------------------------
# Maps


def draft_map(root: Node, stored: Callable[[Node], bool]) -> Draft:
    """An element-wise kernel over the shape of `root`, with axes merged where every array allows it."""
    first = Draft(root, stored)
    axes = [Axis(f"i{n}", size) for n, size in enumerate(root.shape)]
    value = first.expr(root, tuple(map(axis_index, axes)))
    own = flatten(tuple(map(axis_index, axes)), root.shape)
    groups = merge_axes(axes, [own, *_indexes(value)])
    if len(groups) == len(axes):
        first.store(tuple(map(axis_index, axes)), value, tuple(axes))
        return first
    d = Draft(root, stored)
    merged = [Axis(f"i{n}", math.prod(a.size for a in g)) for n, g in enumerate(groups)]
    index = tuple(i for m, g in zip(merged, groups, strict=True) for i in unflatten(axis_index(m), [a.size for a in g]))
    d.store(index, d.expr(root, index), tuple(merged))
    return d


def merge_axes(axes: Sequence[Axis], indexes: Sequence[Index]) -> list[list[Axis]]:
    """Neighbouring axes that every index runs through as if they were one."""
    groups: list[list[Axis]] = []
    for a in axes:
        if a.size == 1 and groups or groups and (all(x.size == 1 for x in groups[-1]) or _as_one(groups[-1], a, indexes)):
            groups[-1].append(a)
        else:
            groups.append([a])
    return groups


def _as_one(group: list[Axis], a: Axis, indexes: Sequence[Index]) -> bool:
    outer = next(x for x in reversed(group) if x.size > 1)
    for i in indexes:
        co, ca = i.coefficient(outer), i.coefficient(a)
        if co is None or ca is None or co != ca * a.size:
            return False
    return True


def _indexes(e: Ex) -> list[Index]:
    return [x.arg[1] if x.op == "load" else x.arg[0] if x.op == "inside" else x.arg
            for x in subexpressions([e]) if x.op in ("load", "inside", "index")]


def into_rows(d: Draft, root: Node, start: Node) -> Draft:
    """`d`, which computes rows, storing them into `root` (an array that is there already) from the row `start` on."""
    t, rest = d.root.shape[0], math.prod(root.shape[1:])
    d.kernel.slots[0] = Slot(root.dtype, root.size, True)
    first = dynamic(d.expr(start, ()), root.shape[0] - t + 1) * rest
    for s in d.kernel.stages:
        if isinstance(s, Store):
            s.index = first + s.index
    return d


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def plain_axes(index: IndexTuple) -> tuple[Axis, ...] | None:
    """The axes of an index whose parts are distinct bare axes or 0; None otherwise."""
    found: list[Axis] = []
    for i in index:
        if not i.terms and i.constant == 0:
            continue
        if len(i.terms) != 1 or i.constant or i.terms[0][1] != 1 or not isinstance(i.terms[0][0], Axis):
            return None
        found.append(i.terms[0][0])
    return tuple(found) if len(set(found)) == len(found) else None


def draft_rows(root: Node, stored: Callable[[Node], bool], lanewise: Callable[[Node], bool],
               worth: Callable[[int, int], bool]) -> Draft | None:
    """A row kernel for `root`, or None where no reduction above it shares rows with it.

    lanewise(CONTRACT) says that its sums follow the reduction order; worth(rows, work) whether so few rows may be one
    kernel.
    """
    if root.op in (Op.REDUCE, Op.CONTRACT):
        d = Draft(root, stored)
        index = tuple(axis_index(d.grid_axis(n)) if n > 1 else ZERO for n in root.shape)
        d.fusable = _fuse_into(d, lanewise)
        value = d.reduce_stage(root, index)
        d.store(index, value, ())
        return d
    scout = Draft(root, stored)
    axes = [Axis(f"i{n}", size) for n, size in enumerate(root.shape)]
    scout.expr(root, tuple(map(axis_index, axes)))
    best: dict[frozenset[Axis], int] = {}
    for n, places in scout.heavy.items():
        rows = plain_axes(places[0])
        if rows is None or any(p != places[0] for p in places) or n.op is Op.CONTRACT and not lanewise(n):
            continue
        if _covers(n, places[0]):
            best[frozenset(rows)] = best.get(frozenset(rows), 0) + n.src[0].size
    if not best:
        return None
    chosen = max(best, key=lambda r: best[r])
    if not worth(math.prod(a.size for a in chosen), best[chosen]):
        return None
    d = Draft(root, stored)
    grid = {a: axis_index(d.grid_axis(a.size)) for a in axes if a in chosen}
    inner_axes = [a for a in axes if a not in chosen]
    size = math.prod(a.size for a in inner_axes)
    inner = (d.inner_axis(size),) if inner_axes and size > 1 else ()
    table = dict(zip(inner_axes, unflatten(axis_index(inner[0]), [a.size for a in inner_axes]), strict=True)) if inner else {}
    index = tuple(grid.get(a) or table.get(a, ZERO) for a in axes)
    d.fusable = _fuse_into(d, lanewise)
    value = d.expr(root, index)
    d.store(index, value, inner)
    return d if any(isinstance(s, Reduce) for s in d.kernel.stages) else None


def _covers(n: Node, index: IndexTuple) -> bool:
    """Whether the axes of `index` run over the whole of `n`."""
    return all(i.hi == size - 1 for i, size in zip(index, n.shape, strict=True))


def _fuse_into(d: Draft, lanewise: Callable[[Node], bool]) -> Callable[[Node, IndexTuple, Ex | None], bool]:
    def fusable(n: Node, index: IndexTuple, mask: Ex | None) -> bool:
        if n in d.names:
            return d.names[n][0] == index
        rows = plain_axes(index)
        if mask is not None or rows is None or set(rows) != {a for a in d.kernel.grid if a.size > 1} or not _covers(n, index):
            return False
        if n.op is Op.CONTRACT and not lanewise(n):
            return False
        d.reduce_stage(n, index)
        return True
    return fusable


# ---------------------------------------------------------------------------------------------------------------------
# Contractions


def forward(root: Node, anchor: Node, at: IndexTuple, stored: Callable[[Node], bool]) -> IndexTuple | None:
    """Where the element `at` of `anchor` ends up in `root`, if it is used there once; None otherwise."""
    memo: dict[Node, IndexTuple | bool | None] = {}

    def visit(n: Node) -> IndexTuple | bool | None:
        """The index; False where `n` does not depend on the anchor; None where the way is not one to one."""
        if n is anchor:
            return at
        if n not in memo:
            memo[n] = step(n)
        return memo[n]

    def step(n: Node) -> IndexTuple | bool | None:
        if n is not root and stored(n):
            return False
        if n.op not in INLINE:
            return None if anchor in topological([n]) else False
        found = [f for f in map(visit, n.src) if f is not False]
        if not found:
            return False
        first = found[0]
        if first is None or first is True or any(f != first for f in found):
            return None
        assert isinstance(first, tuple)
        if n.op is Op.RESHAPE:
            return unflatten(flatten(first, n.src[0].shape), n.shape)
        if n.op is Op.PERMUTE:
            return tuple(first[a] for a in n.arg)
        return first if n.op in ELEMENTWISE else None
    result = visit(root)
    return result if isinstance(result, tuple) else None


def draft_contract(root: Node, anchor: Node, stored: Callable[[Node], bool]) -> Draft | None:
    """A matrix product with everything between `anchor` and `root` as its epilogue; None where that is not one to one."""
    d = Draft(root, stored)
    batch, m, n = (d.grid_axis(s) for s in anchor.shape)
    k = Axis("k", anchor.src[0].shape[2])
    at = (axis_index(batch), axis_index(m), axis_index(n))
    out = forward(root, anchor, at, stored)
    if out is None:
        return None
    ka = axis_index(k)
    a = d.expr(anchor.src[0], (at[0], at[1], ka))
    b = d.expr(anchor.src[1], (at[0], ka, at[2]))
    name = Name("acc", d.kernel.grid)
    d.kernel.stages.append(Contract(name, batch, m, n, k, a, b, anchor.dtype, contiguous(a, {"k": k, "m": m}),
                                    contiguous(b, {"k": k, "n": n}), is_fast(anchor.arg)))
    d.value(anchor, at, name, anchor.dtype)
    d.inlined.add(anchor)
    value = d.expr(root, out)
    if not any(e.op == "value" for e in subexpressions([value])):
        raise CompileError("the epilogue of a contraction lost its product")
    d.store(out, value, ())
    return d


def contiguous(e: Ex, axes: dict[str, Axis]) -> str:
    """The axis along which the widest load of `e` touches neighbouring memory, "" if none."""
    best = (0, "")
    for x in subexpressions([e]):
        if x.op == "load":
            for name, a in axes.items():
                if x.arg[1].coefficient(a) == 1 and x.dtype.bits > best[0]:
                    best = (x.dtype.bits, name)
    return best[1]
