"""The op set: 32 primitives, with their shape and dtype rules in one table.

A Node is one op applied to nodes; equal nodes are one object. Shapes are static tuples of ints. Every operand of an
element-wise op has the same shape and dtype: broadcasting is EXPAND and promotion is CAST, both explicit.
"""

from __future__ import annotations

import enum
import math
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.device import InvalidArgument

Shape = tuple[int, ...]


class Op(enum.Enum):
    """The primitives. The comment gives the argument (`arg`) where there is one."""

    # sources
    BUFFER = "buffer"      # Storage: an array in memory
    CONST = "const"        # (value, dtype)
    IOTA = "iota"          # (n, dtype): 0, 1, .. n-1
    # movement: nothing is computed, only indexes change
    RESHAPE = "reshape"    # shape
    PERMUTE = "permute"    # axes
    EXPAND = "expand"      # shape: axes of size 1 are repeated
    PAD = "pad"            # (((before, after), ..), value)
    SLICE = "slice"        # ((start, count, step), ..), step may be negative
    GATHER = "gather"      # x, i -> x[clip(i)] along axis 0; the only address that depends on data, and it is bounded
    # one operand
    CAST = "cast"          # dtype
    BITCAST = "bitcast"    # dtype of the same width
    SQRT = "sqrt"
    EXP2 = "exp2"
    LOG2 = "log2"
    SIN = "sin"            # quarter turns added to the argument: 0 sine, 1 cosine
    FLOOR = "floor"
    # two operands
    ADD = "add"
    MUL = "mul"
    DIV = "div"            # integers truncate; x/0 = 0
    MAX = "max"
    LESS = "less"
    EQUAL = "equal"
    AND = "and"
    OR = "or"
    XOR = "xor"
    SHL = "shl"
    SHR = "shr"
    # three operands
    WHERE = "where"
    FMA = "fma"            # rounded once
    # many to one
    REDUCE = "reduce"      # (kind, axes): sum, prod, max, min; reduced axes stay with size 1
    CONTRACT = "contract"  # dtype, or (dtype, "fast"): [b,m,k] x [b,k,n] -> [b,m,n], accumulated and returned in dtype; fast: in
    #                        float32, in an order that the device chooses, of float16 or bfloat16
    COPY = "copy"          # device URI: the same values on another device


assert len(Op) == 32

MOVEMENT = frozenset({Op.RESHAPE, Op.PERMUTE, Op.EXPAND, Op.PAD, Op.SLICE, Op.GATHER})
UNARY = frozenset({Op.CAST, Op.BITCAST, Op.SQRT, Op.EXP2, Op.LOG2, Op.SIN, Op.FLOOR})
BINARY = frozenset({Op.ADD, Op.MUL, Op.DIV, Op.MAX, Op.LESS, Op.EQUAL, Op.AND, Op.OR, Op.XOR, Op.SHL, Op.SHR})
ELEMENTWISE = UNARY | BINARY | {Op.WHERE, Op.FMA}
TRANSCENDENTAL = frozenset({Op.EXP2, Op.LOG2, Op.SIN})
REDUCTIONS = ("sum", "prod", "max", "min")


class Node:
    """One op in a graph. Immutable; compare by identity, since equal nodes are the same object."""

    __slots__ = ("__weakref__", "arg", "dtype", "op", "shape", "src")

    def __init__(self, op: Op, src: tuple[Node, ...], arg: Any, shape: Shape, dtype: DType) -> None:
        self.op, self.src, self.arg, self.shape, self.dtype = op, src, arg, shape, dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __repr__(self) -> str:
        return f"<{self.op.value} {self.dtype.short}{list(self.shape)}>"


_nodes: weakref.WeakValueDictionary[Hashable, Node] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def make(op: Op, src: Sequence[Node] = (), arg: Any = None) -> Node:
    """The node `op(src)`. Raises InvalidArgument where the table's rule is broken."""
    src = tuple(src)
    key = (op, tuple(map(id, src)), _hashable(arg))
    with _lock:
        node = _nodes.get(key)
    if node is not None:
        return node
    shape, dtype = TABLE[op].rule(src, arg)
    if math.prod(shape) > 1 << 48:
        raise InvalidArgument(f"an array of shape {list(shape)} is larger than any device")
    node = Node(op, src, arg, shape, dtype)
    with _lock:
        return _nodes.setdefault(key, node)


def _hashable(arg: Any) -> Hashable:
    if isinstance(arg, float):
        return ("f", arg.hex())
    if isinstance(arg, bool):
        return ("b", arg)
    if isinstance(arg, tuple):
        return tuple(map(_hashable, arg))
    return arg if isinstance(arg, Hashable) else id(arg)


# ---------------------------------------------------------------------------------------------------------------------
# Rules: (operands, arg) -> (shape, dtype)


def _need(ok: bool, why: str) -> None:
    if not ok:
        raise InvalidArgument(why)


def _same(src: tuple[Node, ...]) -> None:
    for s in src[1:]:
        _need(s.shape == src[0].shape, f"operands have shapes {list(src[0].shape)} and {list(s.shape)}")
        _need(s.dtype is src[0].dtype, f"operands have types {src[0].dtype} and {s.dtype}")


def _arith(*kinds: str, result: DType | None = None) -> Callable[[tuple[Node, ...], Any], tuple[Shape, DType]]:
    def rule(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
        _same(src)
        _need(not src[0].dtype.storage, f"{src[0].dtype} is a storage type: cast it first")
        _need(src[0].dtype.kind in kinds, f"not defined on {src[0].dtype}")
        return src[0].shape, result or src[0].dtype
    return rule


def _buffer(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    return arg.shape, arg.dtype


def _const(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    value, dtype = arg
    _need(not dtype.is_int or dtype.min <= value <= dtype.max, f"{value} does not fit {dtype}")
    return (), dtype


def _iota(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    n, dtype = arg
    _need(dtype in (dt.int32, dt.int64) and 0 <= n <= dtype.max, f"iota counts in int32 or int64, not {n} in {dtype}")
    return (n,), dtype


def _reshape(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    _need(math.prod(arg) == src[0].size and all(n >= 0 for n in arg),
          f"shape {list(src[0].shape)} does not reshape to {list(arg)}")
    return tuple(arg), src[0].dtype


def _permute(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    _need(sorted(arg) == list(range(len(src[0].shape))), f"{list(arg)} is no permutation of {len(src[0].shape)} axes")
    return tuple(src[0].shape[a] for a in arg), src[0].dtype


def _expand(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    ok = len(arg) == len(src[0].shape) and all(a in (b, 1) for a, b in zip(src[0].shape, arg, strict=False))
    _need(ok, f"shape {list(src[0].shape)} does not expand to {list(arg)}")
    return tuple(arg), src[0].dtype


def _pad(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    pads, _ = arg
    _need(len(pads) == len(src[0].shape) and all(b >= 0 and a >= 0 for b, a in pads), f"bad padding {pads}")
    return tuple(n + b + a for n, (b, a) in zip(src[0].shape, pads, strict=True)), src[0].dtype


def _slice(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    _need(len(arg) == len(src[0].shape), "one slice an axis")
    for n, (start, count, step) in zip(src[0].shape, arg, strict=True):
        last = start + (count - 1) * step
        _need(count >= 0 and step != 0 and (count == 0 or 0 <= start < n and 0 <= last < n),
              f"slice start {start}, count {count}, step {step} leaves an axis of {n}")
    return tuple(count for _, count, _ in arg), src[0].dtype


def _gather(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    x, i = src
    _need(i.dtype.is_int and not i.dtype.storage, f"an index must be an integer, not {i.dtype}")
    _need(len(x.shape) >= 1 and x.shape[0] > 0, "gather needs a non-empty first axis")
    return (*i.shape, *x.shape[1:]), x.dtype


def _cast(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    return src[0].shape, arg


def _bitcast(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    _need(src[0].dtype.bits == arg.bits and "bool" not in (src[0].dtype.kind, arg.kind),
          f"{src[0].dtype} and {arg} differ in width")
    return src[0].shape, arg


def _where(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    _need(src[0].dtype is dt.bool_ and src[0].shape == src[1].shape, "where needs a bool condition of the same shape")
    _same(src[1:])
    return src[1].shape, src[1].dtype


def _fma(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    _same(src)
    _need(src[0].dtype in (dt.float32, dt.float64), f"fma is defined on float32 and float64, not {src[0].dtype}")
    return src[0].shape, src[0].dtype


def _reduce(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    kind, axes = arg
    shape, d = src[0].shape, src[0].dtype
    _need(kind in REDUCTIONS and not d.storage, f"no {kind} of {d}")
    _need(len(set(axes)) == len(axes) and all(0 <= a < len(shape) for a in axes), f"bad axes {list(axes)}")
    _need(kind in ("max", "min") or d.kind != "bool", f"{kind} of bool: cast it first")
    _need(kind in ("sum", "prod") or all(shape[a] for a in axes), f"{kind} of an empty axis has no value")
    return tuple(1 if a in axes else n for a, n in enumerate(shape)), d


def is_fast(arg: Any) -> bool:
    """Whether the argument of a CONTRACT asks for the fast tier."""
    return isinstance(arg, tuple) and len(arg) == 2 and arg[1] == "fast"


def _contract(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    a, b = src
    fast = is_fast(arg)
    if fast:
        arg = arg[0]
        _need(arg is dt.float32 and a.dtype in (dt.float16, dt.bfloat16),
              f"no fast product of {a.dtype} accumulates in {arg}")
    _need(len(a.shape) == 3 and len(b.shape) == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1],
          f"cannot contract {list(a.shape)} with {list(b.shape)}")
    _need(arg in (dt.float32, dt.float64, dt.int32, dt.int64, dt.uint32, dt.uint64), f"contractions do not accumulate in {arg}")
    _need(a.dtype is b.dtype, f"operands have types {a.dtype} and {b.dtype}")
    return (a.shape[0], a.shape[1], b.shape[2]), arg


def _copy(src: tuple[Node, ...], arg: Any) -> tuple[Shape, DType]:
    return src[0].shape, src[0].dtype


@dataclass(frozen=True)
class Info:
    """arity (None: any), the rule, and one line of meaning."""

    arity: int
    rule: Callable[[tuple[Node, ...], Any], tuple[Shape, DType]]
    meaning: str


_any, _num = ("bool", "int", "uint", "float"), ("int", "uint", "float")
TABLE: dict[Op, Info] = {
    Op.BUFFER: Info(0, _buffer, "an array in memory"),
    Op.CONST: Info(0, _const, "one value"),
    Op.IOTA: Info(0, _iota, "0, 1, .. n-1"),
    Op.RESHAPE: Info(1, _reshape, "the same elements in row-major order under another shape"),
    Op.PERMUTE: Info(1, _permute, "axes in another order"),
    Op.EXPAND: Info(1, _expand, "axes of size 1 repeated"),
    Op.PAD: Info(1, _pad, "a constant around"),
    Op.SLICE: Info(1, _slice, "start, count, step of every axis"),
    Op.GATHER: Info(2, _gather, "rows by index, the index clipped to the axis"),
    Op.CAST: Info(1, _cast, "the value in another type"),
    Op.BITCAST: Info(1, _bitcast, "the bits as another type"),
    Op.SQRT: Info(1, _arith("float"), "square root, correctly rounded"),
    Op.EXP2: Info(1, _arith("float"), "2^x"),
    Op.LOG2: Info(1, _arith("float"), "base 2 logarithm"),
    Op.SIN: Info(1, _arith("float"), "sin(x + arg*pi/2)"),
    Op.FLOOR: Info(1, _arith("float"), "largest integer not above"),
    Op.ADD: Info(2, _arith(*_num), "a + b; integers wrap"),
    Op.MUL: Info(2, _arith(*_num), "a * b; integers wrap"),
    Op.DIV: Info(2, _arith(*_num), "a / b; integers truncate, x/0 = 0"),
    Op.MAX: Info(2, _arith(*_any), "maximum: NaN if either is, -0 < +0"),
    Op.LESS: Info(2, _arith(*_num, result=dt.bool_), "a < b"),
    Op.EQUAL: Info(2, _arith(*_any, result=dt.bool_), "a = b"),
    Op.AND: Info(2, _arith("bool", "int", "uint"), "bitwise and"),
    Op.OR: Info(2, _arith("bool", "int", "uint"), "bitwise or"),
    Op.XOR: Info(2, _arith("bool", "int", "uint"), "bitwise exclusive or"),
    Op.SHL: Info(2, _arith("int", "uint"), "shift left; amount >= bits gives 0"),
    Op.SHR: Info(2, _arith("int", "uint"), "shift right, by the sign where signed"),
    Op.WHERE: Info(3, _where, "b where a, else c"),
    Op.FMA: Info(3, _fma, "a*b + c rounded once"),
    Op.REDUCE: Info(1, _reduce, "sum, prod, max or min over axes"),
    Op.CONTRACT: Info(2, _contract, "batched matrix product"),
    Op.COPY: Info(1, _copy, "the same array on another device"),
}


def verify(roots: Sequence[Node]) -> None:
    """Check a whole graph against the table. Raises InvalidArgument."""
    for n in topological(roots):
        _need(len(n.src) == TABLE[n.op].arity, f"{n.op.value} takes {TABLE[n.op].arity} operands")
        _need((n.shape, n.dtype) == TABLE[n.op].rule(n.src, n.arg), f"{n} breaks its rule")


def topological(roots: Sequence[Node]) -> list[Node]:
    """Every node that `roots` depend on, operands before their users."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((s, False) for s in reversed(node.src) if s not in seen)
    return order


def dump(roots: Sequence[Node]) -> str:
    """A graph as text, one node a line."""
    names: dict[Node, str] = {}
    lines = []
    for n in topological(roots):
        names[n] = f"%{len(names)}"
        args = ", ".join(names[s] for s in n.src)
        arg = "" if n.arg is None else f" {_arg_text(n)}"
        lines.append(f"{names[n]}:{n.dtype.short}{list(n.shape)} = {n.op.value} {args}{arg}".replace("  ", " "))
    return "\n".join(lines) + "\n"


def _arg_text(n: Node) -> str:
    if n.op is Op.BUFFER:
        return ""
    if n.op is Op.CONTRACT and is_fast(n.arg):
        return f"{n.arg[0]} fast"
    return str(n.arg[0]) if n.op is Op.CONST else str(n.arg).replace(" ", "")


def users(roots: Sequence[Node]) -> dict[Node, list[Node]]:
    """node -> the nodes that read it, within the graph of `roots`."""
    table: dict[Node, list[Node]] = {}
    for n in topological(roots):
        for s in n.src:
            table.setdefault(s, []).append(n)
    return table
