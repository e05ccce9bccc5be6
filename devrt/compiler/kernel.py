"""Kernel IR: one static loop nest, as stages over axes.

A kernel runs `grid` axes in parallel. For every grid point its stages run in order: a Reduce folds an expression over inner
axes into a named value, a Contract or an Attend does the same for a matrix product or attention, a Store writes an
expression over inner axes. Expressions are element-wise ops over loads whose addresses are Index sums, so FLOPs, bytes and
live memory are known before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.index import Axis, Dynamic, Index, Quotient, axes_of
from devrt.compiler.ops import ELEMENTWISE, TRANSCENDENTAL, Op
from devrt.device import CompileError


class Ex:
    """An expression at one point of the loop nest. Equal expressions of one kernel are one object (Expressions).

    op is an element-wise Op, or one of
      const   arg value
      load    arg (slot, Index); args the mask, if any: a load whose mask is false reads 0
      index   arg Index: the number itself
      inside  arg (Index, lo, hi): lo <= index < hi
      value   arg name: what a Reduce, Contract or Attend computed
    """

    __slots__ = ("arg", "args", "axes", "dtype", "op")

    def __init__(self, op: Op | str, args: tuple[Ex, ...], arg: Any, dtype: DType, axes: frozenset[Axis]) -> None:
        self.op, self.args, self.arg, self.dtype, self.axes = op, args, arg, dtype, axes

    def __str__(self) -> str:
        return self.text({})

    def text(self, names: dict[int, str]) -> str:
        """The expression, with the names of shared subexpressions in their place."""
        def inner(e: Ex) -> str:
            return names.get(id(e)) or e.text(names)
        if self.op == "const":
            return f"{float(self.arg).hex() if self.dtype.is_float else self.arg}:{self.dtype.short}"
        if self.op == "load":
            mask = f" if {inner(self.args[0])}" if self.args else ""
            return f"%{self.arg[0]}[{index_text(self.arg[1], inner)}]{mask}"
        if self.op == "index":
            return f"({index_text(self.arg, inner)}):{self.dtype.short}"
        if self.op == "inside":
            return f"({self.arg[1]}<={index_text(self.arg[0], inner)}<{self.arg[2]})"
        if self.op == "value":
            return str(self.arg)
        assert isinstance(self.op, Op)
        extra = f":{self.dtype.short}" if self.op in (Op.CAST, Op.BITCAST) else f"+{self.arg}" if self.arg else ""
        return f"{self.op.value}{extra}({', '.join(map(inner, self.args))})"


def index_text(i: Index, inner: Callable[[Ex], str]) -> str:
    """An index in text, run-time values by `inner`."""
    def atom(a: Any) -> str:
        if isinstance(a, Axis):
            return a.name
        if isinstance(a, Dynamic):
            return f"[{inner(a.value)}]"
        return f"({index_text(a.x, inner)}){'//' if isinstance(a, Quotient) else '%'}{a.by}"
    parts = [atom(a) if c == 1 else f"{atom(a)}*{c}" for a, c in i.terms]
    if i.constant or not parts:
        parts.append(str(i.constant))
    return "+".join(parts).replace("+-", "-")


class Expressions:
    """Makes the expressions of one kernel, each once."""

    def __init__(self) -> None:
        self._known: dict[Any, Ex] = {}

    def make(self, op: Op | str, args: tuple[Ex, ...], arg: Any, dtype: DType) -> Ex:
        key_arg = arg.hex() if isinstance(arg, float) else arg
        key = (op, tuple(map(id, args)), key_arg, type(arg), dtype)
        ex = self._known.get(key)
        if ex is None:
            axes = frozenset().union(*(a.axes for a in args))
            if op == "load":
                axes |= axes_of(arg[1])
            elif op in ("index", "inside"):
                axes |= axes_of(arg if op == "index" else arg[0])
            elif op == "value":
                axes |= frozenset(arg.axes)
            ex = self._known[key] = Ex(op, args, arg, dtype, axes)
        return ex

    def const(self, value: int | float | bool, dtype: DType) -> Ex:
        value = float(value) if dtype.is_float else bool(value) if dtype.kind == "bool" else int(value)
        return self.make("const", (), value, dtype)

    def both(self, a: Ex | None, b: Ex | None) -> Ex | None:
        """a and b, where None is true."""
        if a is None or b is None or a is b:
            return b if a is None else a
        return self.make(Op.AND, (a, b), None, dt.bool_)


@dataclass(frozen=True, eq=False)
class Name:
    """A value computed by a stage, one for every point of `axes`."""

    text: str
    axes: tuple[Axis, ...]

    def __str__(self) -> str:
        return self.text


@dataclass(eq=False)
class Reduce:
    """name = kind of expr over the inner axes; kind dot: sum of exprs[0]*exprs[1] by fma.

    Accumulates in `dtype`; the finished value is rounded to `out`.
    """

    name: Name
    kind: str
    inner: tuple[Axis, ...]
    exprs: tuple[Ex, ...]
    dtype: DType
    out: DType

    def text(self, e: Callable[[Ex], str]) -> str:
        over = " ".join(f"{a}:{a.size}" for a in self.inner)
        return f"{self.name}:{self.out.short} = {self.kind}.{self.dtype.short} {over}  " + " * ".join(map(e, self.exprs))


@dataclass(eq=False)
class Contract:
    """name = sum over k, in order, of a*b by fma, at grid axes batch, m, n; `fast`: in an order that the device chooses."""

    name: Name
    batch: Axis
    m: Axis
    n: Axis
    k: Axis
    a: Ex
    b: Ex
    dtype: DType
    a_contiguous: str
    b_contiguous: str
    fast: bool = False

    def text(self, e: Callable[[Ex], str]) -> str:
        tier = ".fast" if self.fast else ""
        return f"{self.name} = contract.{self.dtype.short}{tier} {self.k}:{self.k.size}  {e(self.a)} * {e(self.b)}"


@dataclass(eq=False)
class Attend:
    """name = attention at grid axes batch, i and value axis e: keys j, depth d; score over the raw product `dot`."""

    name: Name
    dot: Name
    batch: Axis
    i: Axis
    j: Axis
    d: Axis
    e: Axis
    q: Ex
    k: Ex
    v: Ex
    score: Ex
    causal_offset: int | None
    window: int | None

    def text(self, e: Callable[[Ex], str]) -> str:
        bounds = f" causal {self.causal_offset}" if self.causal_offset is not None else ""
        bounds += f" window {self.window}" if self.window is not None else ""
        return (f"{self.name} = attend {self.j}:{self.j.size} {self.d}:{self.d.size} {self.e}:{self.e.size}{bounds}\n"
                f"    q = {e(self.q)}\n    k = {e(self.k)}\n    v = {e(self.v)}\n    score({self.dot}) = {e(self.score)}")


@dataclass(eq=False)
class Store:
    """slot[index] = value for every point of the inner axes."""

    slot: int
    index: Index
    value: Ex
    inner: tuple[Axis, ...]

    def text(self, e: Callable[[Ex], str]) -> str:
        over = " ".join(f"{a}:{a.size}" for a in self.inner)
        return f"%{self.slot}[{index_text(self.index, e)}] = {e(self.value)}" + (f"  over {over}" if over else "")


Stage = Reduce | Contract | Attend | Store


@dataclass(frozen=True)
class Slot:
    """An argument of the kernel: an array of `count` elements."""

    dtype: DType
    count: int
    writable: bool

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(self.count)


@dataclass(eq=False)
class Kernel:
    """One kernel. Slots that are stored to come first."""

    slots: list[Slot] = field(default_factory=list)
    grid: tuple[Axis, ...] = ()
    stages: list[Stage] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """map, rows, contract or attention: which lowering it takes."""
        kinds = {type(s) for s in self.stages}
        return "attention" if Attend in kinds else "contract" if Contract in kinds else "rows" if Reduce in kinds else "map"

    def __str__(self) -> str:
        lines = [f"kernel {self.kind}"]
        lines += [f"  %{n}: {s.dtype.short}[{s.count}]{' out' if s.writable else ''}" for n, s in enumerate(self.slots)]
        lines += ["  grid " + (" ".join(f"{a}:{a.size}" for a in self.grid) or "1")]
        names: dict[int, str] = {}
        for s in self.stages:
            uses: dict[int, int] = {}
            inside = list(subexpressions(stage_expressions(s)))
            for e in inside:
                for a in operands(e):
                    uses[id(a)] = uses.get(id(a), 0) + 1
            for e in inside:  # shared ones get a line of their own: the text stays as long as the graph
                if uses.get(id(e), 0) > 1 and operands(e) and id(e) not in names:
                    line = e.text(names)
                    names[id(e)] = f"t{len(names)}"
                    lines.append(f"  {names[id(e)]}:{e.dtype.short} = {line}")
            lines.append("  " + s.text(lambda e: names.get(id(e)) or e.text(names)))
        return "\n".join(lines) + "\n"

    @property
    def flops(self) -> int:
        """Arithmetic operations: each element-wise op and reduction step 1, fma 2, at every point it is needed for."""
        total = 0
        for s in self.stages:
            total += sum((2 if e.op is Op.FMA else 1) * math.prod(a.size for a in e.axes)
                         for e in subexpressions(stage_expressions(s)) if e.op in ELEMENTWISE and e.op is not Op.CAST)
            points = math.prod(a.size for a in self.grid)
            if isinstance(s, Reduce):
                total += points * math.prod(a.size for a in s.inner) * (2 if s.kind == "dot" else 1)
            elif isinstance(s, Contract):
                total += 2 * points * s.k.size
            elif isinstance(s, Attend):
                total += 2 * s.batch.size * visible_pairs(s) * (s.d.size + s.e.size)
        return total

    @property
    def bytes_moved(self) -> int:
        """Bytes that must cross the memory interface: what is read once, and every element that is stored."""
        stored = sum(self.slots[s.slot].dtype.nbytes(math.prod(a.size for a in {*self.grid, *s.inner}))
                     for s in self.stages if isinstance(s, Store))
        return stored + sum(s.nbytes for s in self.slots if not s.writable)


def visible_pairs(s: Attend) -> int:
    """Query-key pairs that causality and window leave."""
    if s.causal_offset is None:
        return s.i.size * s.j.size
    total = 0
    for i in range(s.i.size):
        last = min(i + s.causal_offset, s.j.size - 1)
        first = 0 if s.window is None else max(0, i + s.causal_offset - s.window + 1)
        total += max(0, last - first + 1)
    return total


def stage_expressions(s: Stage) -> tuple[Ex, ...]:
    if isinstance(s, Reduce):
        return s.exprs
    if isinstance(s, Contract):
        return (s.a, s.b)
    if isinstance(s, Attend):
        return (s.q, s.k, s.v, s.score)
    return (s.value,)


def subexpressions(roots: Iterable[Ex]) -> Iterator[Ex]:
    """Every expression below `roots`, once, operands first; through gathered indexes too."""
    seen: set[int] = set()
    stack = [(r, False) for r in roots]
    while stack:
        e, done = stack.pop()
        if done:
            yield e
        elif id(e) not in seen:
            seen.add(id(e))
            stack.append((e, True))
            stack.extend((a, False) for a in operands(e))


def operands(e: Ex) -> list[Ex]:
    """What `e` is computed from, run-time indexes included."""
    found = list(e.args)
    if e.op in ("load", "index", "inside"):
        found += _dynamic_values(e.arg[1] if e.op == "load" else e.arg[0] if e.op == "inside" else e.arg)
    return found


def _dynamic_values(i: Index) -> Iterator[Ex]:
    for a, _ in i.terms:
        if hasattr(a, "value"):
            yield a.value
        elif hasattr(a, "x"):
            yield from _dynamic_values(a.x)


COSTLY_OPS = 10


def is_costly(e: Ex) -> bool:
    """Worth computing once: it holds a transcendental, a division, a square root or many operations."""
    inside = [s.op for s in subexpressions([e]) if s.op in ELEMENTWISE]
    return len(inside) > COSTLY_OPS or any(op in TRANSCENDENTAL or op in (Op.DIV, Op.SQRT) for op in inside)


def verify(k: Kernel) -> None:
    """Check a kernel: axes bound, values defined before use, slots in range, types. Raises CompileError."""
    defined: set[Name] = set()
    for s in k.stages:
        bound = set(k.grid)
        extra: tuple[Name, ...] = ()
        if isinstance(s, (Reduce, Store)):
            bound |= set(s.inner)
        elif isinstance(s, Contract):
            bound |= {s.k}
        else:
            bound |= {s.j, s.d, s.e}
            extra = (s.dot,)
        for e in subexpressions(stage_expressions(s)):
            if not e.axes <= bound:
                raise CompileError(f"an axis of {e} is not bound in its stage", evidence=s.text(str))
            if e.op == "value" and e.arg not in defined and e.arg not in extra:
                raise CompileError(f"{e} is used before it is computed", evidence=s.text(str))
            if e.op == "load" and not 0 <= e.arg[0] < len(k.slots):
                raise CompileError(f"{e} has no slot", evidence=s.text(str))
            if e.op == "load" and not e.args and (e.arg[1].lo < 0 or e.arg[1].hi >= k.slots[e.arg[0]].count):
                raise CompileError(f"{e} may leave its array of {k.slots[e.arg[0]].count}", evidence=s.text(str))
        if isinstance(s, Store):
            slot = k.slots[s.slot]
            if not slot.writable or slot.dtype is not s.value.dtype or s.index.lo < 0 or s.index.hi >= slot.count:
                raise CompileError("a store must fit its slot", evidence=s.text(str))
        else:
            defined.add(s.name)
