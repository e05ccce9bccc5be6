"""Each IR's verifier refuses what its table forbids, and names the place."""

from __future__ import annotations

import pytest

import devrt
from devrt.compiler import dtypes as dt
from devrt.compiler import kernel as kir
from devrt.compiler import lir, ops
from devrt.compiler.index import Axis, axis_index
from devrt.compiler.ops import Op, make
from devrt.device import CompileError, InvalidArgument


def const(value: float, dtype: dt.DType = dt.float32) -> ops.Node:
    return make(Op.CONST, (), (value, dtype))


# ----- ops


def test_there_are_at_most_32_primitives() -> None:
    assert len(Op) <= 32 and set(ops.TABLE) == set(Op)


@pytest.mark.parametrize(("op", "src", "arg", "why"), [
    (Op.ADD, [const(1.0), const(1, dt.int32)], None, "types"),
    (Op.ADD, [const(1.0), make(Op.RESHAPE, [const(1.0)], (1,))], None, "shapes"),
    (Op.ADD, [const(True, dt.bool_)] * 2, None, "not defined on bool"),
    (Op.ADD, [const(1.0, dt.float8_e4m3)] * 2, None, "storage type"),
    (Op.SQRT, [const(1, dt.int32)], None, "not defined"),
    (Op.FMA, [const(1.0, dt.float16)] * 3, None, "fma"),
    (Op.RESHAPE, [const(1.0)], (2,), "does not reshape"),
    (Op.PERMUTE, [const(1.0)], (0,), "permutation"),
    (Op.EXPAND, [make(Op.IOTA, (), (3, dt.int32))], (4,), "does not expand"),
    (Op.SLICE, [make(Op.IOTA, (), (3, dt.int32))], ((1, 3, 1),), "leaves an axis"),
    (Op.PAD, [make(Op.IOTA, (), (3, dt.int32))], (((-1, 0),), 0), "padding"),
    (Op.GATHER, [make(Op.IOTA, (), (3, dt.int32)), const(1.0)], None, "integer"),
    (Op.BITCAST, [const(1.0)], dt.int64, "width"),
    (Op.WHERE, [const(1.0), const(1.0), const(1.0)], None, "bool"),
    (Op.REDUCE, [const(1.0)], ("sum", (0,)), "axes"),
    (Op.REDUCE, [make(Op.IOTA, (), (0, dt.int32))], ("max", (0,)), "empty"),
    (Op.CONTRACT, [const(1.0), const(1.0)], dt.float32, "contract"),
    (Op.CONST, [], (300, dt.int8), "does not fit"),
    (Op.IOTA, [], (3, dt.float32), "counts in"),
])
def test_op_rules(op: Op, src: list[ops.Node], arg: object, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        make(op, src, arg)


def test_a_graph_that_breaks_its_rule_is_found() -> None:
    bad = ops.Node(Op.ADD, (const(1.0), const(2.0)), None, (3,), dt.float32)
    with pytest.raises(InvalidArgument, match="breaks its rule"):
        ops.verify([bad])
    ops.verify([(devrt.ones((3, 4)) @ devrt.ones((4, 5))).node])


def test_equal_nodes_are_one() -> None:
    x = const(1.5)
    assert make(Op.ADD, (x, x)) is make(Op.ADD, (x, x))
    assert const(0.0) is not const(-0.0)
    assert const(1, dt.int32) is not const(1, dt.int64)


# ----- kernel IR


def a_kernel() -> tuple[kir.Kernel, Axis, kir.Expressions]:
    axis = Axis("i0", 8)
    return kir.Kernel(slots=[kir.Slot(dt.float32, 8, True), kir.Slot(dt.float32, 8, False)]), axis, kir.Expressions()


def test_kernel_verifier() -> None:
    k, axis, ex = a_kernel()
    load = ex.make("load", (), (1, axis_index(axis)), dt.float32)
    k.stages = [kir.Store(0, axis_index(axis), load, (axis,))]
    kir.verify(k)
    k.stages = [kir.Store(0, axis_index(axis), load, ())]
    with pytest.raises(CompileError, match="not bound"):
        kir.verify(k)
    far = ex.make("load", (), (1, axis_index(axis) + 1), dt.float32)
    k.stages = [kir.Store(0, axis_index(axis), far, (axis,))]
    with pytest.raises(CompileError, match="may leave its array"):
        kir.verify(k)
    k.stages = [kir.Store(1, axis_index(axis), load, (axis,))]
    with pytest.raises(CompileError, match="must fit its slot"):
        kir.verify(k)
    value = ex.make("value", (), kir.Name("v0", ()), dt.float32)
    k.stages = [kir.Store(0, axis_index(axis), value, (axis,))]
    with pytest.raises(CompileError, match="before it is computed"):
        kir.verify(k)


def test_kernel_counts_flops_and_bytes() -> None:
    x = devrt.ones((8, 16)).realize()
    report = devrt.explain((x * x + 1.0).sum(axis=1))
    (k,) = report.kernels
    assert k.flops == 8 * 16 * 3 and k.bytes == 8 * 16 * 4 + 8 * 4
    report = devrt.explain(x @ devrt.ones((16, 32)).realize())
    assert report.kernels[0].flops == 2 * 8 * 16 * 32


# ----- LIR


def builder() -> tuple[lir.Builder, lir.Param, lir.Param]:
    b = lir.Builder("k", lanes=4, groups=1)
    return b, b.param("x", dt.float32, 8), b.param("y", dt.float32, 8, writable=True)


def refuse(b: lir.Builder, why: str) -> None:
    with pytest.raises(CompileError, match=why):
        b.finish()


def test_lir_verifier_types() -> None:
    b, x, _ = builder()
    v = b.load(x, b.lane())
    b.emit("add", dt.float32, v, b.const(dt.int32, 1))
    refuse(b, "operands of one type")
    b, x, _ = builder()
    b.emit("sqrt", dt.int32, b.const(dt.int32, 4))
    refuse(b, "not defined on int32")
    b, x, _ = builder()
    b.select(b.const(dt.int32, 1), b.const(dt.int32, 1), b.const(dt.int32, 2))
    refuse(b, "bool")


def test_lir_verifier_memory() -> None:
    b, x, _ = builder()
    b.store(x, b.lane(), b.const(dt.float32, 1.0))
    refuse(b, "read-only")
    b, _, y = builder()
    b.store(y, b.lane(), b.const(dt.float64, 1.0))
    refuse(b, "array's type")
    b, _, _ = builder()
    b.load(lir.Param("z", dt.float32, 4), b.lane())
    refuse(b, "no array of this program")
    b, _, _ = builder()
    b.param("n", dt.int4, 4)
    b.load(b.params[-1], b.lane())
    refuse(b, "int4 does not exist")


def test_lir_verifier_structure() -> None:
    b, x, y = builder()
    inside: list[lir.Reg] = []

    def body(i: lir.Reg, carried: list[lir.Reg]) -> list[lir.Reg]:
        inside.append(b.load(x, b.lane()))
        return carried
    b.loop(0, 2, [], body)
    b.store(y, b.lane(), inside[0])
    refuse(b, "before it is defined, or outside its block")
    b, _, y = builder()

    def impure() -> list[lir.Reg]:
        b.store(y, b.lane(), b.const(dt.float32, 1.0))
        return [b.const(dt.float32, 1.0)]
    b.when(b.const(dt.bool_, True), [b.const(dt.float32, 0.0)], impure)
    refuse(b, "pure")
    b = lir.Builder("k", lanes=3, groups=1)
    refuse(b, "power of two")
    b, _, _ = builder()
    b.lane_xor(b.const(dt.float32, 1.0), 4)
    refuse(b, "out of range")


def test_lir_text() -> None:
    b, x, y = builder()
    v = b.load(x, b.lane(), b.lt(b.lane(), b.idx(3)))
    b.store(y, b.lane(), b.canon(b.fma(v, v, b.const(dt.float32, 0.5))))
    assert str(b.finish()) == """\
program k groups=1 lanes=4
  param x: f32[8]
  param y: f32[8] out
  %0:i64 = lane
  %1:i64 = lane
  %2:i64 = const 3
  %3:b1 = lt %1, %2
  %4:f32 = load x[%0] if %3
  %5:i64 = lane
  %6:f32 = const 0.5
  %7:f32 = fma %4, %4, %6
  %8:f32 = canon %7
  store y[%5] = %8
"""
