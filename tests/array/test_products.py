"""Matrix products against NumPy in float64: shapes, batches, vectors, every type."""

from __future__ import annotations

import numpy as np
import pytest

import devrt
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.device import InvalidArgument
from tests.array.reference import NP, array, numbers, same, tolerance, value

SHAPES = [((3, 4), (4, 5)), ((1, 1), (1, 1)), ((8, 8), (8, 8)), ((31, 33), (33, 32)), ((64, 65), (65, 63)),
          ((127, 1), (1, 127)), ((1, 127), (127, 1)),
          ((1, 1000), (1000, 33)), ((33, 1000), (1000, 1)), ((100, 7), (7, 9)), ((2, 5, 6), (6, 7)),
          ((2, 5, 6), (2, 6, 7)), ((5, 6), (3, 6, 7)),
          ((4, 1, 9, 8), (3, 8, 10)), ((1, 9, 8), (3, 8, 10)), ((2, 3, 16, 17), (2, 1, 17, 16)), ((7,), (7,)),
          ((7,), (7, 3)), ((3, 7), (7,)),
          ((7,), (2, 7, 3)), ((2, 3, 7), (7,)), ((0, 4), (4, 5)), ((3, 0), (0, 5)), ((3, 4), (4, 0)),
          ((0, 3, 4), (4, 5)), ((257, 129), (129, 191))]


def check(got: devrt.Array, a: np.ndarray, b: np.ndarray, rtol: float) -> None:
    want = np.matmul(a.astype(np.float64), b.astype(np.float64))
    bound = np.matmul(np.abs(a.astype(np.float64)), np.abs(b.astype(np.float64)))
    assert got.shape == want.shape
    error = np.abs(value(got).astype(np.float64) - want)
    assert np.all(error <= rtol * (np.abs(want) + 0.05 * bound) + 1e-300)


@pytest.mark.parametrize("left, right", SHAPES, ids=str)
def test_shapes(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = numbers(dt.float32, left), numbers(dt.float32, right, 1)
    got = array(a) @ array(b)
    assert got.dtype is dt.float32
    check(got, a, b, 1e-5)
    i, j = numbers(dt.int32, left), numbers(dt.int32, right, 1)
    same(array(i) @ array(j), np.matmul(i, j))


@pytest.mark.parametrize("m, n", [(8, 8), (33, 17), (3, 40), (40, 1)])
@pytest.mark.parametrize("d", [d for d in dt.ALL if d is not dt.bool_], ids=str)
def test_types(d: DType, m: int, n: int) -> None:
    x, y = array(numbers(d, (m, 65)), d), array(numbers(d, (65, n), 1), d)
    got = devrt.matmul(x, y)
    assert got.dtype is (dt.compute_type(d) if d.storage else d)
    if d.is_float:
        check(got, value(x), value(y), max(2 * tolerance(d), 1e-5) if d is not dt.float64 else 1e-13)
    else:
        want = np.matmul(x.numpy().astype(np.int64), y.numpy().astype(np.int64)).astype(NP[got.dtype])
        np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("d", [dt.int8, dt.uint8, dt.int16, dt.int4], ids=str)
def test_small_integers_into_wider(d: DType) -> None:
    x, y = array(numbers(d, (20, 300)), d), array(numbers(d, (300, 20), 1), d)
    want = x.numpy().astype(np.int64) @ y.numpy().astype(np.int64)
    wide = dt.uint32 if d.kind == "uint" else dt.int32
    np.testing.assert_array_equal(devrt.matmul(x, y, dtype=wide).numpy(), want)
    np.testing.assert_array_equal(devrt.matmul(x, y, dtype=dt.uint64 if d.kind == "uint" else dt.int64).numpy(), want)
    check(devrt.matmul(x.astype(dt.float32), y.astype(dt.float32)), x.numpy(), y.numpy(), 1e-5)


@pytest.mark.parametrize("d", (dt.float16, dt.bfloat16, dt.float8_e4m3), ids=str)
def test_narrow_floats_accumulate_in_float32(d: DType) -> None:
    x, y = array(numbers(d, (16, 500)), d), array(numbers(d, (500, 16), 1), d)
    check(devrt.matmul(x, y, dtype=dt.float32), value(x), value(y), 1e-5)


@pytest.mark.parametrize("weight", (dt.int4, dt.int8, dt.float8_e4m3, dt.float8_e5m2, dt.bfloat16), ids=str)
def test_mixed_operands(weight: DType) -> None:
    """Float activations by narrow weights meet in the promoted type."""
    x, w = array(numbers(dt.float32, (9, 64))), array(numbers(weight, (33, 64), 2), weight)
    check(x @ w.mT, value(x), value(w).T, 1e-5)


def test_views_of_operands() -> None:
    """Transposed, sliced, padded, broadcast and computed operands."""
    a, b = numbers(dt.float32, (40, 33)), numbers(dt.float32, (40, 29), 1)
    x, y = array(a), array(b)
    check(x.T @ y, a.T, b, 1e-5)
    check(x[::2].T @ y[1::2], a[::2].T, b[1::2], 1e-5)
    check((x * 2 + 1).T @ devrt.flip(y, axis=0), (a * 2 + 1).T, b[::-1], 1e-5)
    check(x.T[None] @ devrt.broadcast_to(y, (3, 40, 29)), a.T[None], np.broadcast_to(b, (3, 40, 29)), 1e-5)
    check(devrt.exp(x).T @ y, np.exp(a).T, b, 1e-5)
    p = np.pad(a, [(0, 3), (2, 0)])
    check(devrt.pad(x, [(0, 3), (2, 0)]).T @ devrt.pad(y, [(0, 3), (0, 0)]), p.T, np.pad(b, [(0, 3), (0, 0)]), 1e-5)


def test_order_over_k_is_fma_in_sequence() -> None:
    """The documented order of a matrix product, emulated in float64 (exact products of float32)."""
    a, b = numbers(dt.float32, (9, 50)), numbers(dt.float32, (50, 10), 1)
    acc = np.zeros((9, 10), np.float32)
    for k in range(50):
        product = a[:, k:k + 1].astype(np.longdouble) * b[k:k + 1].astype(np.longdouble)
        acc = (product + acc).astype(np.float32)
    np.testing.assert_array_equal((array(a) @ array(b)).numpy(), acc)


def test_vecdot_tensordot_outer() -> None:
    a, b = numbers(dt.float64, (3, 4, 5)), numbers(dt.float64, (3, 4, 5), 1)
    same(devrt.vecdot(array(a), array(b)), (a * b).sum(-1), rtol=1e-13)
    same(devrt.vecdot(array(a), array(b), axis=0), (a * b).sum(0), rtol=1e-13)
    same(devrt.tensordot(array(a), array(b), axes=3), np.asarray(np.tensordot(a, b, 3)), rtol=1e-13)
    same(devrt.tensordot(array(a), array(b), axes=([0, 2], [0, 2])), np.tensordot(a, b, ([0, 2], [0, 2])), rtol=1e-13)
    same(devrt.tensordot(array(a), array(b[0]), axes=((1,), (0,))), np.tensordot(a, b[0], ((1,), (0,))), rtol=1e-13)
    same(devrt.outer(array(a[0, 0]), array(b[0, 0])), np.outer(a[0, 0], b[0, 0]))


@pytest.mark.parametrize("left, right", [((3, 4), (5, 6)), ((2, 3, 4), (3, 4, 5)), ((), (3,)), ((3,), (4,))], ids=str)
def test_refused(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument):
        array(numbers(dt.float32, left)) @ array(numbers(dt.float32, right))


def test_bool_has_no_product() -> None:
    with pytest.raises(InvalidArgument, match="cast"):
        array(numbers(dt.bool_, (3, 3))) @ array(numbers(dt.bool_, (3, 3)))


