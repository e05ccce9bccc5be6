"""Reductions against NumPy: every subset of axes, ragged sizes, every type, and a result that depends on shapes alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import devrt
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.device import InvalidArgument
from tests.array.reference import ARITHMETIC, FLOATS, INTS, SIZES, array, numbers, same, tolerance, value

AXES = [None, *(axes for k in range(4) for axes in itertools.combinations(range(3), k))]


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_subsets_of_axes(axes: tuple[int, ...] | None) -> None:
    a = numbers(dt.float32, (5, 33, 7))
    keep = {} if axes is None else {"axis": axes}
    for name in ("sum", "max", "min", "mean", "any", "all", "count_nonzero"):
        want = getattr(np, name)(np.asarray(a), **keep) if name != "count_nonzero" else np.count_nonzero(a, axis=axes)
        got = getattr(devrt, name)(array(a), axis=axes)
        np.testing.assert_allclose(value(got), np.asarray(want), rtol=2e-5, atol=1e-5)
        kept = getattr(devrt, name)(array(a), axis=axes, keepdims=True)
        assert kept.shape == tuple(1 if axes is None or k in axes else n for k, n in enumerate(a.shape))
        np.testing.assert_array_equal(kept.numpy().reshape(got.shape), got.numpy())


@pytest.mark.parametrize("n", SIZES)
def test_sizes(n: int) -> None:
    a = numbers(dt.float64, (3, n))
    same(devrt.sum(array(a), axis=1), a.sum(1), rtol=1e-13, atol=1e-13)
    same(devrt.sum(array(a), axis=0), a.sum(0), rtol=1e-13, atol=1e-13)
    same(devrt.sum(array(a)), np.asarray(a.sum()), rtol=1e-13, atol=1e-12)
    i = numbers(dt.int64, (n, 3))
    same(devrt.sum(array(i), axis=0), i.sum(0))
    same(devrt.sum(array(i)), np.asarray(i.sum()))
    if n:
        same(devrt.max(array(a), axis=1), a.max(1))
        same(devrt.min(array(i), axis=0), i.min(0))
        same(devrt.argmax(array(a), axis=1), a.argmax(1))
        same(devrt.argmin(array(a)), np.asarray(a.argmin()))


@pytest.mark.parametrize("shape, axes", [((1 << 18,), (0,)), ((3, 100001), (1,)), ((100001, 3), (0,)),
                                         ((2, 65537), (0, 1))], ids=str)
def test_long(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """Long enough that the reduction runs in two steps."""
    a = numbers(dt.int32, shape)
    same(devrt.sum(array(a), axis=axes), a.sum(axes, dtype=np.int64))
    same(devrt.max(array(a), axis=axes), a.max(axes))
    f = numbers(dt.float32, shape)
    same(devrt.sum(array(f), axis=axes), f.astype(np.float64).sum(axes).astype(np.float32), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("d", ARITHMETIC, ids=str)
def test_types(d: DType) -> None:
    a = numbers(d, (4, 65))
    x = array(a)
    wide = np.bool_ if d.kind == "bool" else np.uint64 if d.kind == "uint" else np.int64
    if d.is_float:
        np.testing.assert_allclose(value(x.sum(axis=1)).astype(np.float64), a.astype(np.float64).sum(1),
                                   rtol=tolerance(d) * 2, atol=tolerance(d) * 4)
        np.testing.assert_allclose(value(devrt.prod(x[:, :9], axis=1)).astype(np.float64),
                                   a[:, :9].astype(np.float64).prod(1), rtol=9 * tolerance(d))
    else:
        same(x.sum(axis=1), a.sum(1, dtype=np.int64 if wide is np.bool_ else wide))
        same(devrt.prod(x[:, :5], axis=1), a[:, :5].prod(1, dtype=np.int64 if wide is np.bool_ else wide))
    same(x.max(axis=1), a.max(1))
    same(x.min(axis=0), a.min(0))
    same(devrt.any(x, axis=0), np.any(a != 0, 0))
    same(devrt.all(x, axis=1), np.all(a != 0, 1))
    same(devrt.argmax(x, axis=1), a.astype(np.float64).argmax(1))
    same(devrt.argmin(x, axis=0, keepdims=True), a.astype(np.float64).argmin(0, keepdims=True))


@pytest.mark.parametrize("d", [dt.int4, dt.float8_e4m3, dt.float8_e5m2], ids=str)
def test_storage_types(d: DType) -> None:
    x = array(numbers(d, (4, 65)), d)
    a = x.numpy()
    assert x.sum(axis=1).dtype is (dt.int64 if d is dt.int4 else dt.float32)
    np.testing.assert_allclose(x.sum(axis=1).numpy(), a.astype(np.float64).sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(x.max(axis=0).numpy(), a.max(0))


@pytest.mark.parametrize("d", INTS, ids=str)
def test_explicit_accumulator(d: DType) -> None:
    a = numbers(d, 1000)
    same(devrt.sum(array(a), dtype=dt.int32), np.asarray(a.sum(dtype=np.int32)))
    same(devrt.sum(array(a), dtype=d), np.asarray(a.sum(dtype=a.dtype)))


@pytest.mark.parametrize("d", FLOATS, ids=str)
def test_nan_and_infinity(d: DType) -> None:
    a = numbers(d, (4, 40))
    a[0, 17], a[1, 3], a[2, 5], a[2, 6], a[3, 7] = np.nan, np.inf, np.inf, -np.inf, -np.inf
    x = array(a)
    with np.errstate(invalid="ignore"):
        same(x.max(axis=1), a.max(1))
        same(x.min(axis=1), a.min(1))
        assert np.isnan(value(x.sum(axis=1)).astype(float)).tolist() == [True, False, True, False]
    assert devrt.argmax(x, axis=1).tolist()[:1] == [17]


def test_maximum_of_zeros_and_of_nothing() -> None:
    zeros = array(np.array([-0.0, 0.0, -0.0] * 20, np.float32))
    assert not np.signbit(zeros.max().numpy()) and np.signbit(zeros.min().numpy())
    assert np.signbit(devrt.sum(array(np.full(5, -0.0, np.float32))).numpy()) in (True, False)
    empty = array(np.zeros((3, 0), np.float32))
    same(empty.sum(axis=1), np.zeros(3, np.float32))
    same(devrt.prod(empty, axis=1), np.ones(3, np.float32))
    same(devrt.any(empty, axis=1), np.zeros(3, bool))
    same(devrt.all(empty, axis=1), np.ones(3, bool))
    same(empty.sum(axis=0), np.zeros(0, np.float32))
    assert np.isnan(empty.mean(axis=1).numpy()).all()
    with pytest.raises(InvalidArgument):
        empty.max(axis=1)


@pytest.mark.parametrize("d", FLOATS, ids=str)
@pytest.mark.parametrize("axes", [None, 0, 1, (0, 2)], ids=str)
def test_mean_var_std(d: DType, axes: Any) -> None:
    a = numbers(d, (5, 6, 7))
    wide, t = a.astype(np.float64), tolerance(d) * 4
    np.testing.assert_allclose(value(devrt.mean(array(a), axis=axes)).astype(float), wide.mean(axes), rtol=t, atol=t)
    np.testing.assert_allclose(value(devrt.var(array(a), axis=axes)).astype(float), wide.var(axes), rtol=t, atol=t)
    np.testing.assert_allclose(value(devrt.std(array(a), axis=axes, correction=1)).astype(float),
                               wide.std(axes, ddof=1), rtol=t, atol=t)


@pytest.mark.parametrize("n", (1, 2, 31, 33, 127, 1000))
def test_cumulative_sum(n: int) -> None:
    a = numbers(dt.int32, (3, n))
    same(devrt.cumulative_sum(array(a), axis=1), np.cumsum(a, 1, dtype=np.int64))
    same(devrt.cumulative_sum(array(a.reshape(-1))), np.cumsum(a, dtype=np.int64))


@given(st.data())
@settings(max_examples=40)
def test_random_shapes(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from((1, 2, 3, 5, 8, 31, 33)), min_size=1, max_size=4)))
    axes = tuple(k for k in range(len(shape)) if data.draw(st.booleans()))
    kind = data.draw(st.sampled_from(("sum", "max", "min", "prod")))
    a = numbers(dt.int32, shape)
    got = getattr(devrt, kind)(devrt.permute_dims(array(a), range(len(shape))[::-1]), axis=axes)
    want = getattr(np, kind)(a.T, axis=axes, **({"dtype": np.int64} if kind in ("sum", "prod") else {}))
    same(got, np.asarray(want))


def test_the_order_is_a_matter_of_shape_alone() -> None:
    """Same bits from memory, from an expression, and from a strided view."""
    a = numbers(dt.float32, (7, 1000))
    want = value(devrt.sum(array(a), axis=1)).tobytes()
    assert value(devrt.sum(array(a * 2) * 0.5, axis=1)).tobytes() == want
    assert value(devrt.sum(array(np.ascontiguousarray(a.T)).T, axis=1)).tobytes() == want
    assert value(devrt.sum(array(np.pad(a, 3))[3:-3, 3:-3], axis=1)).tobytes() == want
    assert value(devrt.sum(devrt.concat([array(a), array(a)]), axis=1)).tobytes() == want * 2
