"""Kernels built around a matrix product or attention: the kernel IR's expressions as the callbacks of their lowerings."""

from __future__ import annotations

from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.index import Axis
from devrt.compiler.kernel import Attend, Contract, Ex, Kernel, Name, Store, subexpressions
from devrt.compiler.lir import LAYOUTS, Builder, Param, Program, Reg
from devrt.compiler.lowering import attention, contract, expression, matrix_units, tiles
from devrt.compiler.lowering.contract_plan import Tuning
from devrt.compiler.lowering.expression import Scope, check
from devrt.compiler.lowering.map import write
from devrt.compiler.ops import ELEMENTWISE, Op


def _stages(k: Kernel) -> tuple[Contract | Attend, Store]:
    check(len(k.stages) == 2 and isinstance(k.stages[1], Store), "a product kernel is one product and one store")
    first, last = k.stages
    assert isinstance(first, (Contract, Attend)) and isinstance(last, Store)
    return first, last


class _Callbacks:
    """Evaluates expressions for a lowering; `params` are declared once its builder exists."""

    def __init__(self) -> None:
        self.params: list[Param] = []

    def operand(self, e: Ex, *axes: Axis):  # type: ignore[no-untyped-def]
        def evaluate(b: Builder, *places: Reg | None) -> Reg:
            *at, mask = places if len(places) == len(axes) + 1 else (*places, None)
            scope = Scope(b, self.params, dict(zip(axes, at, strict=True)), {}, mask)  # type: ignore[arg-type]
            return scope.value(e)
        return evaluate

    def stored(self, e: Ex, *axes: Axis):  # type: ignore[no-untyped-def]
        """As `operand`, in the expression's own type; what is only loaded is not converted."""
        def evaluate(b: Builder, *places: Reg) -> Reg:
            scope = Scope(b, self.params, dict(zip(axes, places, strict=True)), {})
            return scope.loaded(e) if e.op == "load" else b.cast(scope.value(e), e.dtype)
        return evaluate

    def store(self, s: Store, name: Name, *axes: Axis):  # type: ignore[no-untyped-def]
        def put(b: Builder, *places: Reg | None) -> None:
            *at, value, mask = places
            scope = Scope(b, self.params, dict(zip(axes, at, strict=True)), {name: value}, mask)  # type: ignore[arg-type,dict-item]
            write(b, self.params, s, scope)
        return put


def contraction_of(k: Kernel, calls: _Callbacks | None = None) -> contract.Contraction:
    """The kernel's matrix product as its lowering wants it."""
    s, out = _stages(k)
    assert isinstance(s, Contract)
    calls = calls or _Callbacks()

    def widened(e: Ex, *axes: Axis):  # type: ignore[no-untyped-def]
        inner = calls.operand(e, *axes)
        return lambda b, *places: b.cast(inner(b, *places), s.dtype)
    return contract.Contraction(
        batch=s.batch.size, m=s.m.size, n=s.n.size, k=s.k.size, dtype=s.dtype,
        a=widened(s.a, s.batch, s.m, s.k), b=widened(s.b, s.batch, s.k, s.n),
        a_contiguous=s.a_contiguous, b_contiguous=s.b_contiguous,
        store=calls.store(out, s.name, s.batch, s.m, s.n),
        a_work=work(s.a, s.dtype), b_work=work(s.b, s.dtype), store_work=work(out.value, s.dtype))


def work(e: Ex, dtype: DType) -> int:
    """Instructions of an expression beside its loads, conversions from another type than `dtype` included."""
    inside = list(subexpressions([e]))
    return sum(x.op in ELEMENTWISE for x in inside) + sum(x.op == "load" and x.dtype is not dtype for x in inside)


def lower_contract(k: Kernel, name: str, t: Tuning) -> Program:
    """The LIR of a matrix product with its epilogue."""
    for units in (t.matrix_units, t.byte_units):
        if units and _fits_matrix_units(k, units):
            return _lower_on_matrix_units(k, name, t, units)
    calls = _Callbacks()
    c = contraction_of(k, calls)
    tile = tiles.plan(c, t)
    if tile is not None:
        b = Builder(name, lanes=tile.lanes, groups=tile.groups(c))
        calls.params = expression.params_of(b, k)
        tiles.lower(b, c, tile)
        return b.finish()
    plan = contract.plan(c, t)
    b = Builder(name, lanes=t.lanes, groups=plan.groups)
    calls.params = expression.params_of(b, k)
    contract.lower(b, c, plan)
    return b.finish()


def _fits_matrix_units(k: Kernel, units: str) -> bool:
    """Sums of halves are the device's own, which only the fast tier takes; those of bytes are exact where they wrap."""
    s, _ = _stages(k)
    if not isinstance(s, Contract) or min(s.batch.size, s.m.size, s.n.size, s.k.size) == 0:
        return False
    layout, a, b = LAYOUTS[units], _narrow(s.a, s.dtype), _narrow(s.b, s.dtype)
    if a.dtype is not b.dtype or a.dtype.name not in layout.types:
        return False
    if layout.sums.is_float:
        return s.fast and s.dtype is layout.sums
    return s.dtype in (dt.int32, dt.uint32) and s.k.size >= layout.align


def _narrow(e: Ex, dtype: DType) -> Ex:
    """A byte that was only made wider is multiplied as it was."""
    return e.args[0] if e.op is Op.CAST and dtype in (dt.int32, dt.uint32) and e.args[0].dtype in (dt.int8, dt.uint8) else e


def _lower_on_matrix_units(k: Kernel, name: str, t: Tuning, units: str) -> Program:
    s, out = _stages(k)
    assert isinstance(s, Contract)
    calls = _Callbacks()
    left, right, store = _narrow(s.a, s.dtype), _narrow(s.b, s.dtype), calls.store(out, s.name, s.batch, s.m, s.n)
    p = matrix_units.Product(
        batch=s.batch.size, m=s.m.size, n=s.n.size, k=s.k.size, dtype=left.dtype,
        a=calls.stored(left, s.batch, s.m, s.k), b=calls.stored(right, s.batch, s.k, s.n),
        a_along_k=s.a_contiguous == "k", b_along_k=s.b_contiguous == "k",
        store=lambda b, batch, m, n, value, mask: store(b, batch, m, n, b.bitcast(value, s.dtype), mask),
        store_work=work(out.value, s.dtype))
    block = matrix_units.plan(p, t, units)
    b = Builder(name, lanes=t.lanes * block.waves, groups=block.groups(p))
    calls.params = expression.params_of(b, k)
    matrix_units.lower(b, p, block, units)
    return b.finish()


def lower_attention(k: Kernel, name: str, t: Tuning) -> Program:
    """The LIR of fused attention with its epilogue."""
    s, out = _stages(k)
    assert isinstance(s, Attend)
    calls = _Callbacks()

    def score(b: Builder, batch: Reg, i: Reg, j: Reg, value: Reg) -> Reg:
        return Scope(b, calls.params, {s.batch: batch, s.i: i, s.j: j}, {s.dot: value}).value(s.score)
    a = attention.Attention(
        batch=s.batch.size, queries=s.i.size, keys=s.j.size, depth=s.d.size, value_depth=s.e.size,
        q=calls.operand(s.q, s.batch, s.i, s.d), k=calls.operand(s.k, s.batch, s.j, s.d),
        v=calls.operand(s.v, s.batch, s.j, s.e), score=score, causal_offset=s.causal_offset, window=s.window,
        store=calls.store(out, s.name, s.batch, s.i, s.e))
    plan = attention.plan(a, t)
    b = Builder(name, lanes=t.lanes, groups=plan.groups)
    calls.params = expression.params_of(b, k)
    attention.lower(b, a, plan)
    return b.finish()
