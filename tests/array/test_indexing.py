"""Indexing and item assignment against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import devrt
from devrt.compiler import dtypes as dt
from devrt.device import InvalidArgument, Unsupported
from tests.array.reference import array, numbers, same

KEYS: list[Any] = [
    0, -1, 4, slice(1, 3), slice(None, None, -1), slice(4, 0, -2), slice(10, 20), slice(3, 1), None, ..., (0, 1, 2),
    (..., 0), (0, ...),
    (slice(None), 1), (None, 0, None, slice(1, 3)), (..., None), (slice(1, 4, 2), slice(None), slice(-2, None)),
    (-1, -1, -1), (),
    (slice(None), slice(None), 3), np.int64(2), (np.int32(1), slice(None)), (1, ..., 2)]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_basic(key: Any) -> None:
    a = numbers(dt.float32, (5, 6, 7))
    same(array(a)[key], a[key])


@pytest.mark.parametrize("index", [[0, 4, 2], [-1, -5, 0], [[1, 2], [3, 0]], [], 3], ids=str)
@pytest.mark.parametrize("where", [lambda i: i, lambda i: (slice(None), i), lambda i: (..., i),
                                   lambda i: (slice(1, 4), i, slice(None, None, 2)),
                                   lambda i: (0, i), lambda i: (None, i)])
def test_one_index_array(index: Any, where: Any) -> None:
    a = numbers(dt.float32, (5, 6, 7))
    i = np.array(index, np.int64)
    key = where(i)
    want = a[key]
    if isinstance(key, tuple) and key[0] == 0 and i.ndim:
        want = a[0][i]
    same(array(a)[where(array(i))], want)


@pytest.mark.parametrize("d", [d for d in dt.ALL if d.is_int and not d.storage], ids=str)
def test_index_types(d: dt.DType) -> None:
    a = numbers(dt.float32, (100, 3))
    i = numbers(d, 50) % 100
    same(array(a)[array(i)], a[i.astype(np.int64)])


def test_indexes_are_clipped() -> None:
    """Too large takes the last, too small the first; negative ones count from the end before that."""
    a = np.arange(10, dtype=np.float32)
    i = np.array([0, 9, 10, 1000, -1, -10, -11, -1000, np.iinfo(np.int64).max, np.iinfo(np.int64).min])
    want = a[[0, 9, 9, 9, 9, 0, 0, 0, 9, 0]]
    same(array(a)[array(i)], want)
    same(devrt.take(array(a), array(i.clip(-2**31, 2**31 - 1).astype(np.int32))), want)
    same(devrt.take(array(a), array(np.array([3, 250], np.uint8))), a[[3, 9]])
    same(devrt.take(array(a), array(np.array([2**64 - 1], np.uint64))), a[[9]])


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_take(axis: int) -> None:
    a, i = numbers(dt.float32, (5, 6, 7)), np.array([[0, 3], [4, 1]])
    same(devrt.take(array(a), array(i), axis=axis), np.take(a, i, axis))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_take_along_axis(axis: int) -> None:
    a = numbers(dt.float32, (5, 6, 7))
    i = np.argsort(a, axis)
    same(devrt.take_along_axis(array(a), array(i), axis=axis), np.take_along_axis(a, i, axis))


def test_index_is_computed() -> None:
    """The index may be an expression, and so may the source."""
    a, i = numbers(dt.float32, (20, 5)), np.arange(20)
    same((array(a) * 2)[(array(i) * 7 + 3) % 20] + 1, (a * np.float32(2))[(i * 7 + 3) % 20] + np.float32(1))
    same(array(a)[array(i)][array(i[::-1].copy())], a[::-1])
    same(devrt.sum(array(a)[array(i % 4)], axis=0), a[i % 4].sum(0), rtol=1e-5)


@pytest.mark.parametrize("key", [0, -1, slice(1, 3), ..., (slice(None), 2), (slice(1, 4), slice(2, 5)), (0, 1, 2),
                                 slice(3, 3), (..., slice(1, None))],
                         ids=str)
def test_assignment(key: Any) -> None:
    a = numbers(dt.float32, (5, 6, 7))
    x = array(a.copy())
    before = x + 0
    x[key] = 9
    want = a.copy()
    want[key] = 9
    same(x, want)
    same(before, a)  # what was built before sees the old values
    x[key] = array(np.asarray(a[key] * 2))
    want[key] = a[key] * 2
    same(x, want)


def test_assignment_broadcasts_and_casts() -> None:
    a = np.zeros((4, 5), np.int32)
    x = array(a)
    x[1:3] = array(np.arange(5).astype(np.float32) + np.float32(0.5))
    want = a.copy()
    want[1:3] = np.arange(5)
    same(x, want)


@given(st.data())
@settings(max_examples=40)
def test_random_keys(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    a = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    key: list[Any] = []
    for n in shape[:data.draw(st.integers(0, len(shape)))]:
        key.append(data.draw(st.one_of(st.integers(-n, n - 1), st.slices(n))))
        if data.draw(st.integers(0, 3)) == 0:
            key.append(None)
    if data.draw(st.booleans()):
        key.append(...)
    np.testing.assert_array_equal(array(a)[tuple(key)].numpy(), a[tuple(key)])
    if all(k is None or not isinstance(k, slice) or k.step in (None, 1) for k in key):
        x, b = array(a), a.copy()
        x[tuple(key)] = -5
        b[tuple(key)] = -5
        np.testing.assert_array_equal(x.numpy(), b)


@pytest.mark.parametrize("key, error", [
    (5, InvalidArgument), (-6, InvalidArgument), ((0, 0, 0, 0), InvalidArgument), ((..., ...), InvalidArgument),
    (np.array([True] * 5), Unsupported), ((np.array([0]), np.array([1])), Unsupported), ("text", InvalidArgument),
    (1.5, InvalidArgument)], ids=str)
def test_bad_keys(key: Any, error: type[Exception]) -> None:
    with pytest.raises((error, Unsupported, InvalidArgument)):
        array(numbers(dt.float32, (5, 6, 7)))[key]
