"""Element-wise kernels: every point of the stores' axes, lanes along the last one."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from devrt.compiler import dtypes as dt
from devrt.compiler.index import Axis
from devrt.compiler.kernel import Ex, Kernel, Store, subexpressions
from devrt.compiler.lir import Builder, Param, Program, Reg
from devrt.compiler.lowering import expression
from devrt.compiler.lowering.contract_plan import Tuning
from devrt.compiler.lowering.expression import Scope, Stream, storable
from devrt.compiler.lowering.loops import Point, rows_of_group, spread, sweep, sweep_upto
from devrt.compiler.ops import TRANSCENDENTAL, Op

STREAM_BYTES = 16 << 20  # larger outputs bypass the caches


def lower(k: Kernel, name: str, t: Tuning) -> Program:
    """The LIR of a map kernel: one Store."""
    (store,) = k.stages
    assert isinstance(store, Store)
    axes = list(store.inner)
    if store.value.dtype is dt.int4:
        return _lower_int4(k, store, name, t)
    if len(axes) > 1 and axes[-1].size < t.lanes:  # lanes would idle along so short an axis
        return _lower_flat(k, store, name, t)
    last = axes[-1] if axes else Axis("one", 1)
    outer = axes[:-1]
    rows = math.prod(a.size for a in outer)
    chunks = -(-last.size // t.chunk)
    per_group = max(1, t.chunk // max(last.size, 1)) if chunks == 1 else 1
    groups = max(1, -(-rows // per_group) * chunks)
    b = Builder(name, lanes=t.lanes, groups=groups)
    params = expression.params_of(b, k)
    unroll = _unroll(store)
    stream = streams(k, store, last, t)
    run = _run(k, store, last, unroll) if t.gathers else 1

    def point(row: Reg) -> Scope:
        return Scope(b, params, spread(b, row, outer), {}, stream=Stream())

    def element(scope: Scope, at: Point) -> None:
        write(b, params, store, scope.at({last: at.k}, at.mask, at.phase), stream)

    if chunks == 1:
        def whole(row: Reg) -> None:
            scope = point(row)
            sweep(b, b.idx(0), last.size, unroll, functools.partial(element, scope), run)
        rows_of_group(b, rows, per_group, whole)
        return b.finish()
    g = b.group()
    scope = point(b.div(g, b.idx(chunks)) if outer else b.idx(0))
    start = b.mul(b.rem(g, b.idx(chunks)) if outer else g, b.idx(t.chunk))
    if last.size % t.chunk == 0:
        sweep(b, start, t.chunk, unroll, functools.partial(element, scope), run)
    else:
        count = b.min(b.sub(b.idx(last.size), start), b.idx(t.chunk))
        sweep_upto(b, start, count, unroll, functools.partial(element, scope), run)
    return b.finish()


def _run(k: Kernel, s: Store, last: Axis, unroll: int) -> int:
    """Neighbours that a lane of a GPU handles one after another: 16 bytes of the widest array, where the output lies so."""
    if s.index.coefficient(last) != 1:
        return 1
    return min(unroll, max(1, 128 // max(slot.dtype.bits for slot in k.slots)))


def _unroll(s: Store) -> int:
    """Vectors a turn. Their loads start together, which is what keeps memory busy: a long chain of operations fills the
    core's scheduler before the next vector's load is even seen. Code that is long already is not multiplied."""
    ops = length([s.value])
    return 8 if ops <= 100 else 4 if ops <= 250 else 1


def length(values: Sequence[Ex]) -> int:
    """About how many instructions a vector of `values` takes."""
    return sum(200 if e.op is Op.SIN else 40 if e.op in TRANSCENDENTAL else 1 for e in subexpressions(values))


def streams(k: Kernel, s: Store, last: Axis, t: Tuning) -> bool:
    """Whether the output is large and every vector of it aligned, so that non-temporal stores pay."""
    slot = k.slots[s.slot]
    vector = t.lanes * slot.dtype.bits // 8
    steps = [last.size, *(c for a, c in s.index.terms if a is not last)]
    return (slot.nbytes >= STREAM_BYTES and s.index.coefficient(last) == 1 and vector % 16 == 0
            and all(c * slot.dtype.bits // 8 % vector == 0 for c in steps))


def write(b: Builder, params: list[Param], s: Store, scope: Scope, stream: bool = False) -> None:
    """Evaluate and store one point."""
    value = storable(b, s.value, scope.value(s.value))
    b.store(params[s.slot], scope.index(s.index), value, scope.mask, stream and scope.mask is None)


def _lower_flat(k: Kernel, s: Store, name: str, t: Tuning) -> Program:
    """Lanes over the row-major position: indexes differ from lane to lane, loads become gathers."""
    total = math.prod(a.size for a in s.inner)
    groups = max(1, -(-total // t.chunk))
    b = Builder(name, lanes=t.lanes, groups=groups)
    params = expression.params_of(b, k)

    def element(at: Point) -> None:
        safe = at.k if at.mask is None else b.min(at.k, b.idx(total - 1))
        write(b, params, s, Scope(b, params, spread(b, safe, s.inner), {}, at.mask))

    start = b.mul(b.group(), b.idx(t.chunk))
    sweep_upto(b, start, b.min(b.sub(b.idx(total), start), b.idx(t.chunk)), 1, element)
    return b.finish()


def _lower_int4(k: Kernel, s: Store, name: str, t: Tuning) -> Program:
    """Lanes over bytes: each evaluates two neighbours and stores both nibbles."""
    total = math.prod(a.size for a in s.inner)
    octets = -(-total // 2)
    groups = max(1, -(-octets // t.chunk))
    b = Builder(name, lanes=t.lanes, groups=groups)
    params = expression.params_of(b, k)

    def nibble(at: Reg, mask: Reg) -> Reg:
        safe = b.min(at, b.idx(total - 1))
        r = Scope(b, params, spread(b, safe, s.inner), {}, mask).value(s.value)
        return b.and_(b.bitcast(b.select(mask, r, b.const(dt.int8, 0)), dt.uint8), b.const(dt.uint8, 15))

    def element(at: Point) -> None:
        first = b.mul(at.k, b.idx(2))
        second = b.add(first, b.idx(1))
        low = nibble(first, b.lt(first, b.idx(total)))
        high = nibble(second, b.lt(second, b.idx(total)))
        b.store(params[s.slot], at.k, b.or_(low, b.shl(high, b.const(dt.uint8, 4))), at.mask)

    start = b.mul(b.group(), b.idx(t.chunk))
    sweep_upto(b, start, b.min(b.sub(b.idx(octets), start), b.idx(t.chunk)), 1, element)
    return b.finish()
