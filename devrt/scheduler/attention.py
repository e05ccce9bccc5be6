"""Attention in a graph: softmax(score(q k^T)) v, recognised and drafted as one kernel.

The probabilities are recognised by building softmax of the candidate score again and comparing the node: equal nodes are
one object. Anything element-wise may stand between the product and the softmax (scale, soft-cap, masks).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from devrt.compiler import dtypes as dt
from devrt.compiler.composite import softmax
from devrt.compiler.index import Axis, axis_index
from devrt.compiler.kernel import Attend, Ex, Expressions, Name
from devrt.compiler.ops import Node, Op
from devrt.scheduler.build import INLINE, Draft, forward

LEAST_QUERIES = 16  # fewer are a row kernel's work


def draft(root: Node, anchor: Node, stored: Callable[[Node], bool]) -> Draft | None:
    """The attention kernel whose second product is `anchor`, with what follows up to `root`; None if it is none."""
    found = match(anchor, stored)
    if found is None:
        return None
    score, product = found
    batches, queries, values = anchor.shape
    keys, depth = product.shape[2], product.src[0].shape[2]
    d = Draft(root, stored)
    batch, i = d.grid_axis(batches), d.grid_axis(queries)
    j, dd, e = Axis("j", keys), Axis("d", depth), Axis("e", values)
    ib, ii, ij, id_, ie = map(axis_index, (batch, i, j, dd, e))
    out = forward(root, anchor, (ib, ii, ie), stored)
    if out is None:
        return None
    dot, name = Name("dot", (batch, i, j)), Name("att", (batch, i, e))
    q = d.expr(product.src[0], (ib, ii, id_))
    k = d.expr(product.src[1], (ib, id_, ij))
    v = d.expr(anchor.src[1], (ib, ij, ie))
    at = forward(score, product, (ib, ii, ij), stored)
    if at is None or any(x.dtype is not dt.float32 for x in (product, score)):
        return None
    d.value(product, (ib, ii, ij), dot, product.dtype)
    s = d.expr(score, at)
    offset, window, rest = visibility(d.ex, s, i, j)
    in_log2 = d.ex.make(Op.MUL, (rest, d.ex.const(math.log2(math.e), dt.float32)), None, dt.float32)
    d.kernel.stages.append(Attend(name, dot, batch, i, j, dd, e, q, k, v, in_log2, offset, window))
    d.inlined |= {anchor, product}
    d.value(anchor, (ib, ii, ie), name, anchor.dtype)
    d.store(out, d.expr(root, out), (e,))
    return d


def match(anchor: Node, stored: Callable[[Node], bool]) -> tuple[Node, Node] | None:
    """(score, first product) where `anchor` multiplies softmax(score) by something."""
    if anchor.shape[1] < LEAST_QUERIES or anchor.dtype is not dt.float32:
        return None
    p = anchor.src[0]
    while p.op is Op.RESHAPE and not stored(p):
        p = p.src[0]
    for reduce in _above(p, stored, lambda n: n.op is Op.REDUCE and n.arg == ("max", (len(n.shape) - 1,))):
        score = reduce.src[0]
        if softmax(score) is not p:
            continue
        products = [n for n in _above(score, stored, lambda n: n.op is Op.CONTRACT)
                    if n.shape == (anchor.shape[0], anchor.shape[1], anchor.src[0].shape[2])]
        if len(products) == 1:
            return score, products[0]
    return None


def _above(root: Node, stored: Callable[[Node], bool], want: Callable[[Node], bool]) -> list[Node]:
    """The nodes that `root` is computed from and that `want` accepts, not looking past stored ones or contractions."""
    found, seen, stack = [], set(), [root]
    while stack:
        n = stack.pop()
        if n in seen or stored(n):
            continue
        seen.add(n)
        if want(n):
            found.append(n)
        if n.op in INLINE or n.op is Op.REDUCE:
            stack.extend(n.src)
    return found


def visibility(x: Expressions, s: Ex, i: Axis, j: Axis) -> tuple[int | None, int | None, Ex]:
    """(causal offset, window, rest of the score): masks of the form where(i + offset < j, -inf, rest), and
    where(j < i + first, -inf, rest) below it. Any other mask stays in the score."""
    offset = window = None
    for _ in range(2):
        if s.op is not Op.WHERE or s.args[1].op != "const" or s.args[1].arg != -math.inf or s.args[0].op is not Op.LESS:
            break
        a, b = s.args[0].args
        if not all(e.op in ("index", "const") for e in (a, b)):
            break
        ia = a.arg if a.op == "index" else axis_index(i) * 0 + int(a.arg)
        ib = b.arg if b.op == "index" else axis_index(i) * 0 + int(b.arg)
        gap = ib - ia  # masked where gap > 0
        terms = dict(gap.terms)
        if offset is None and terms == {j: 1, i: -1}:
            offset = -gap.constant
        elif offset is not None and window is None and terms == {i: 1, j: -1}:
            window = offset - gap.constant + 1
            if window < 1:
                window = None
                break
        else:
            break
        s = s.args[2]
    return offset, window, s
