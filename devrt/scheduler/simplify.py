"""Graph rewriting before fusion: known values become buffers, empty reductions constants, long reductions two steps.

No rewrite changes a bit of any result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from devrt.compiler.lowering.reduction import CHUNK, LANES, identity
from devrt.compiler.ops import Node, Op, make, topological
from devrt.scheduler import storage

LANE_CONTRACTION = 8  # below so many rows or columns a contraction is reduced like a row, not in order over k


def simplify(roots: Sequence[Node], units: int) -> list[Node]:
    """`roots`, rewritten for a device of `units` compute units."""
    new: dict[Node, Node] = {}
    for n in topological(roots):
        src = tuple(new[s] for s in n.src)
        m = n if src == n.src else make(n.op, src, n.arg)
        rule = _RULES.get(m.op)
        new[n] = rule(m, units) if rule else m
    return [new[r] for r in roots]


def resolve(roots: Sequence[Node]) -> list[Node]:
    """`roots` with every value that is already in memory read from there, except constants: those cost nothing, and an array
    that happens to hold the same is not to be tied to them (it may be donated)."""
    new: dict[Node, Node] = {}
    stack = [(r, False) for r in reversed(roots)]
    while stack:
        n, ready = stack.pop()
        if n in new:
            continue
        if not _constant(n) and (b := storage.known(n)) is not None:
            new[n] = b
        elif not ready:
            stack.append((n, True))
            stack.extend((s, False) for s in reversed(n.src) if s not in new)
        else:
            src = tuple(new[s] for s in n.src)
            new[n] = n if src == n.src else make(n.op, src, n.arg)
    return [new[r] for r in roots]


def _constant(n: Node) -> bool:
    """Whether `n` is one constant, whatever its shape."""
    while n.op in (Op.RESHAPE, Op.EXPAND):
        n = n.src[0]
    return n.op is Op.CONST


def in_order(n: Node) -> bool:
    """Whether a CONTRACT sums k in order (GEMM); otherwise its sums follow the reduction order (GEMV). Shapes decide."""
    return min(n.shape[1], n.shape[2]) >= LANE_CONTRACTION


def full(value: int | float | bool, n: Node) -> Node:
    """A constant of the shape and type of `n`."""
    c = make(Op.RESHAPE, (make(Op.CONST, (), (value, n.dtype)),), (1,) * len(n.shape))
    return make(Op.EXPAND, (c,), n.shape)


def _reduce(n: Node, units: int) -> Node:
    kind, axes = n.arg
    x = n.src[0]
    if not axes or all(x.shape[a] == 1 for a in axes) and kind in ("max", "min"):
        return x
    if x.size == 0:
        return full(identity(kind, n.dtype), n) if n.size else n
    k = math.prod(x.shape[a] for a in axes)
    rows = n.size
    if k < 4 * CHUNK or rows > units * LANES:
        return n
    kept = tuple(a for a in range(len(x.shape)) if a not in axes)
    flat = make(Op.RESHAPE, (make(Op.PERMUTE, (x,), kept + tuple(sorted(axes))),), (rows, k))
    chunks = -(-k // CHUNK)
    if k % CHUNK:
        flat = make(Op.PAD, (flat,), (((0, 0), (0, chunks * CHUNK - k)), identity(kind, n.dtype)))
    parts = make(Op.REDUCE, (make(Op.RESHAPE, (flat,), (rows, chunks, CHUNK)),), (kind, (2,)))
    total = make(Op.REDUCE, (make(Op.RESHAPE, (parts,), (rows, chunks)),), (kind, (1,)))
    return make(Op.RESHAPE, (total,), n.shape)


def _contract(n: Node, units: int) -> Node:
    return full(0, n) if n.src[0].shape[2] == 0 and n.size else n


def _pad(n: Node, units: int) -> Node:
    """Around nothing there is only the filling."""
    return full(n.arg[1], n) if n.src[0].size == 0 and n.size else n


def _reshape(n: Node, units: int) -> Node:
    """Reshapes of reshapes are one; one that changes nothing is none."""
    x = n.src[0]
    while x.op is Op.RESHAPE:
        x = x.src[0]
    return x if x.shape == n.shape else n if x is n.src[0] else make(Op.RESHAPE, (x,), n.shape)


def _expand(n: Node, units: int) -> Node:
    return n.src[0] if n.src[0].shape == n.shape else n


_RULES: dict[Op, Callable[[Node, int], Node]] = {
    Op.REDUCE: _reduce, Op.CONTRACT: _contract, Op.PAD: _pad, Op.RESHAPE: _reshape, Op.EXPAND: _expand,
}
