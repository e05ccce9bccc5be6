"""Movement against NumPy: single functions, and random chains of them, which is where index arithmetic is decided."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import devrt
from devrt.compiler import dtypes as dt
from tests.array.reference import SIZES, array, numbers, same

Pair = tuple[NDArray[Any], devrt.Array]
SMALL = st.integers(1, 9) | st.sampled_from((16, 31, 32, 33))


@st.composite
def shapes(draw: st.DrawFn, most: int = 4000) -> tuple[int, ...]:
    """Up to five axes, ragged, sometimes empty."""
    shape: list[int] = []
    for _ in range(draw(st.integers(0, 5))):
        n = draw(SMALL)
        shape.append(n if math.prod(shape) * n <= most else 1)
    if draw(st.integers(0, 15)) == 0 and shape:
        shape[draw(st.integers(0, len(shape) - 1))] = 0
    return tuple(shape)


def _reshape(draw: st.DrawFn, a: NDArray[Any], x: devrt.Array) -> Pair:
    """Split an axis by a divisor, merge two neighbours, or flatten."""
    shape = list(a.shape)
    choice = draw(st.integers(0, 3))
    if choice == 0 or not shape:
        shape = [-1] if a.size else [0]
    elif choice == 1 and len(shape) > 1:
        at = draw(st.integers(0, len(shape) - 2))
        shape[at:at + 2] = [shape[at] * shape[at + 1]]
    else:
        at = draw(st.integers(0, len(shape) - 1))
        d = draw(st.sampled_from([d for d in range(1, shape[at] + 1) if shape[at] % d == 0] or [1]))
        shape[at:at + 1] = [shape[at] // d, d]
    return a.reshape(shape), devrt.reshape(x, shape)


def _permute(draw: st.DrawFn, a: NDArray[Any], x: devrt.Array) -> Pair:
    axes = draw(st.permutations(range(a.ndim)))
    return a.transpose(axes), devrt.permute_dims(x, axes)


def _slice(draw: st.DrawFn, a: NDArray[Any], x: devrt.Array) -> Pair:
    key = []
    for n in a.shape:
        lo, hi = sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))
        step = draw(st.sampled_from((1, 1, 2, 3, -1, -2)))
        key.append(slice(lo, hi, step) if step > 0 else slice(hi, lo - 1 if lo else None, step))
    return a[tuple(key)], x[tuple(key)]


def _flip(draw: st.DrawFn, a: NDArray[Any], x: devrt.Array) -> Pair:
    axes = tuple(k for k in range(a.ndim) if draw(st.booleans()))
    return np.flip(a, axes), devrt.flip(x, axis=axes)


def _pad(draw: st.DrawFn, a: NDArray[Any], x: devrt.Array) -> Pair:
    widths = [(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in a.shape]
    fill = draw(st.integers(-3, 3))
    return (np.pad(a, widths, constant_values=fill) if a.ndim else a), devrt.pad(x, widths, value=fill)


def _expand(draw: st.DrawFn, a: NDArray[Any], x: devrt.Array) -> Pair:
    at = draw(st.integers(0, a.ndim))
    n = draw(st.integers(1, 5))
    a, x = np.expand_dims(a, at), devrt.expand_dims(x, axis=at)
    shape = (*a.shape[:at], n, *a.shape[at + 1:])
    return np.broadcast_to(a, shape), devrt.broadcast_to(x, shape)


def _concat(draw: st.DrawFn, a: NDArray[Any], x: devrt.Array) -> Pair:
    if not a.ndim:
        return a, x
    at = draw(st.integers(0, a.ndim - 1))
    return np.concatenate([a, np.flip(a, at), a + 1], at), devrt.concat([x, devrt.flip(x, axis=at), x + 1], axis=at)


def _roll(draw: st.DrawFn, a: NDArray[Any], x: devrt.Array) -> Pair:
    axis = draw(st.integers(0, a.ndim - 1)) if a.ndim and draw(st.booleans()) else None
    shift = draw(st.integers(-9, 9))
    return np.roll(a, shift, axis), devrt.roll(x, shift, axis=axis)


def _compute(draw: st.DrawFn, a: NDArray[Any], x: devrt.Array) -> Pair:
    """Arithmetic between movements, so that they are not one."""
    return a * 3 + 1, x * 3 + 1


STEPS: list[Callable[..., Pair]] = [_reshape, _permute, _slice, _flip, _pad, _expand, _concat, _roll, _compute]


@given(st.data())
@settings(max_examples=150)
def test_chains(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    a = np.arange(math.prod(shape), dtype=np.int32).reshape(shape) - 7
    x = array(a)
    trail = []
    for _ in range(data.draw(st.integers(1, 7))):
        step = data.draw(st.sampled_from(STEPS))
        after = step(data.draw, a, x)
        if after[0].size > 20000 or after[0].ndim > 6:
            continue
        a, x = after
        trail.append(f"{step.__name__} {a.shape}")
        assert x.shape == a.shape, trail
    np.testing.assert_array_equal(x.numpy(), a, str(trail))


@given(st.data())
@settings(max_examples=40)
def test_chains_into_reductions(data: st.DataObject) -> None:
    shape = data.draw(shapes(1000))
    a = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    x = array(a)
    for _ in range(data.draw(st.integers(0, 3))):
        after = data.draw(st.sampled_from(STEPS))(data.draw, a, x)
        if after[0].size <= 20000 and after[0].ndim <= 5:
            a, x = after
    axes = tuple(k for k in range(a.ndim) if data.draw(st.booleans()))
    np.testing.assert_array_equal((x.sum(axis=axes) * 2 + 1).numpy(), a.sum(axis=axes) * 2 + 1)


@given(shapes(2000), st.data())
@settings(max_examples=40)
def test_broadcasting(shape: tuple[int, ...], data: st.DataObject) -> None:
    """One operand has axes of size 1, or lacks leading axes."""
    other = tuple(1 if data.draw(st.booleans()) else n for n in shape)[data.draw(st.integers(0, len(shape))):]
    a, b = numbers(dt.float32, shape), numbers(dt.float32, other, 1)
    same(array(a) + array(b), a + b)
    same(array(b) * array(a), b * a)
    assert devrt.Array.__add__(array(b), array(a)).shape == np.broadcast_shapes(a.shape, b.shape)


@pytest.mark.parametrize("n", SIZES)
def test_each_function(n: int) -> None:
    a = numbers(dt.float32, (3, n))
    x = array(a)
    pairs: list[tuple[devrt.Array, Any]] = [
        (x.T, a.T), (x.mT, a.T), (devrt.matrix_transpose(x), a.T), (devrt.moveaxis(x, 0, 1), np.moveaxis(a, 0, 1)),
        (devrt.expand_dims(x, axis=1), a[:, None]), (devrt.squeeze(devrt.expand_dims(x, axis=0), 0), a),
        (devrt.flip(x), np.flip(a)), (devrt.flip(x, axis=-1), a[:, ::-1]), (devrt.roll(x, 5, axis=1), np.roll(a, 5, 1)),
        (devrt.roll(x, -3), np.roll(a, -3)), (devrt.repeat(x, 3, axis=1), np.repeat(a, 3, 1)),
        (devrt.repeat(x, 2), np.repeat(a, 2)),
        (devrt.tile(x, (2, 3)), np.tile(a, (2, 3))), (devrt.stack([x, x + 1], axis=1), np.stack([a, a + 1], 1)),
        (devrt.concat([x, x, x], axis=0), np.concatenate([a, a, a])),
        (devrt.concat([x, x[:, :0], x], axis=1), np.concatenate([a, a], 1)),
        (devrt.concat([x, x], axis=None), np.concatenate([a, a], None)), (x.reshape(n, 3), a.reshape(n, 3)),
        (x.reshape((3 * n,)), a.reshape(3 * n)),
        (devrt.tril(x), np.tril(a)), (devrt.triu(x, k=2), np.triu(a, 2)), (devrt.tril(x, k=-1), np.tril(a, -1)),
        (devrt.broadcast_to(x, (2, 3, n)), np.broadcast_to(a, (2, 3, n)))]
    devrt.realize(*(got for got, _ in pairs))
    for got, want in pairs:
        same(got, want)


@pytest.mark.parametrize("d", dt.ALL, ids=str)
def test_movement_of_every_type(d: dt.DType) -> None:
    """Values go through unchanged, the storage types too."""
    a = numbers(d, (5, 7))
    x = array(a, d)
    a = x.numpy()
    for got, want in [(devrt.permute_dims(x, (1, 0)), a.T), (x[1:4, ::-2], a[1:4, ::-2]),
                      (devrt.pad(x, [(1, 0), (0, 2)]), np.pad(a, [(1, 0), (0, 2)])),
                      (devrt.concat([x, devrt.flip(x)], axis=1), np.concatenate([a, np.flip(a)], 1)),
                      (x.reshape(35)[3], a.reshape(35)[3])]:
        assert got.dtype is d
        np.testing.assert_array_equal(got.numpy(), want)


def test_padding_around_nothing() -> None:
    x = array(numbers(dt.float32, (2, 3)))[1:1]
    same(devrt.pad(devrt.reshape(x, (3, 0)), [(1, 0), (0, 2)], value=5), np.full((4, 2), 5, np.float32))
    same(devrt.pad(devrt.exp(x), [(2, 0), (0, 1)]).sum(axis=1), np.zeros(2, np.float32))


def test_array_queries() -> None:
    x = array(numbers(dt.float16, (2, 3, 4)))
    assert (x.ndim, x.size, x.nbytes, len(x), x.device) == (3, 24, 48, 2, "cpu")
    assert x.mT.shape == (2, 4, 3)
    assert [r.shape for r in x] == [(3, 4), (3, 4)]
    assert "lazy" in repr(devrt.zeros(2000) + 1) and "in memory" in repr((devrt.zeros(2000) + 1).realize())
    assert repr(array(np.array([1, 2], np.int32))) == "Array([1 2], int32)"
    assert x.__array_namespace__() is devrt
    assert x.to_device("cpu") is x
    one = array(np.array([[3]], np.int64))
    assert (bool(one), int(one), float(one), one.item(), [10, 20, 30, 40][one], one.tolist()) == (True, 3, 3.0, 3, 40,
                                                                                                  [[3]])
    with pytest.raises(TypeError):
        hash(x)
