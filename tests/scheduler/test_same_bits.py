"""Fusion changes no bit: a random expression computed as one graph, and with every intermediate in memory, agree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import devrt
from devrt import nn
from devrt.compiler import dtypes as dt

Step = tuple[Callable[..., devrt.Array], tuple[int, ...]]

UNARY: list[Callable[[devrt.Array], devrt.Array]] = [
    devrt.exp, devrt.sin, devrt.tanh, devrt.abs, devrt.negative, devrt.floor, devrt.sigmoid, devrt.erf,
    lambda x: devrt.sqrt(devrt.abs(x)),
    lambda x: devrt.log(devrt.abs(x) + 0.1), lambda x: x * 0.1 + 1.0, lambda x: 1.0 / (x * x + 1.0),
    lambda x: x.astype(dt.bfloat16).astype(dt.float32),
    lambda x: x.astype(dt.float16).astype(dt.float32), lambda x: devrt.round(x * 3.0),
    lambda x: devrt.where(x > 0, x, x * 0.5), nn.gelu]
MOVES: list[Callable[[devrt.Array], devrt.Array]] = [
    lambda x: x.T, lambda x: devrt.flip(x, axis=0), lambda x: x[:, ::-1], lambda x: devrt.roll(x, 3, axis=1),
    lambda x: devrt.reshape(x.T, x.shape),
    lambda x: devrt.pad(x[1:, :-1], [(1, 0), (0, 1)], value=0.5), lambda x: devrt.concat([x[2:], x[:2]]),
    lambda x: x[devrt.asarray([0, 2, 1])][:1] + x]
ROWS: list[Callable[[devrt.Array], devrt.Array]] = [
    lambda x: devrt.sum(x, axis=1, keepdims=True), lambda x: devrt.sum(x, axis=0, keepdims=True),
    lambda x: devrt.max(x, axis=1, keepdims=True),
    lambda x: devrt.mean(x, axis=0, keepdims=True), lambda x: devrt.var(x, axis=1, keepdims=True),
    lambda x: devrt.sum(x) * 0.01, lambda x: devrt.prod(x, axis=1, keepdims=True),
    nn.softmax, nn.rms_norm, nn.layer_norm, nn.log_softmax, lambda x: devrt.cumulative_sum(x, axis=1),
    lambda x: devrt.argmax(x, axis=0).astype(dt.float32)]
BINARY: list[Callable[[devrt.Array, devrt.Array], devrt.Array]] = [
    devrt.add, devrt.subtract, devrt.multiply, devrt.maximum, devrt.minimum, lambda x,
    y: devrt.where(x < y, x, y + 1.0), lambda x, y: x / (devrt.abs(y) + 0.5)]
PRODUCTS: list[Callable[[devrt.Array, devrt.Array], devrt.Array]] = [
    lambda x, y: (x @ devrt.broadcast_to(y, x.shape).mT) @ x * 0.01, lambda x,
    y: nn.relu(x @ devrt.broadcast_to(y, x.shape).mT) @ devrt.broadcast_to(y, x.shape) * 0.01]


def run(shape: tuple[int, int], steps: list[Step], keep: bool) -> tuple[bytes, bytes]:
    """The last value and one from the middle; `keep` puts every intermediate in memory."""
    rng = np.random.default_rng(len(steps))
    values = [devrt.asarray(rng.standard_normal(shape).astype(np.float32)),
              devrt.asarray(rng.standard_normal((1, shape[1])).astype(np.float32))]
    for function, at in steps:
        new = function(*(devrt.broadcast_to(values[a % len(values)], shape) if k == 0 else values[a % len(values)]
                         for k, a in enumerate(at)))
        new = devrt.broadcast_to(new, shape) if new.shape != shape[::-1] or shape[0] == shape[1] else devrt.reshape(new,
                                                                                                                    shape)
        values.append(new.realize() if keep else new)
    devrt.realize(values[-1], values[len(values) // 2])
    return values[-1].numpy().tobytes(), values[len(values) // 2].numpy().tobytes()


@st.composite
def programs(draw: st.DrawFn, menu: list[list[Callable[..., devrt.Array]]]) -> list[Step]:
    found: list[Step] = []
    for k in range(draw(st.integers(2, 8))):
        functions = draw(st.sampled_from(menu))
        arity = 2 if functions in (BINARY, PRODUCTS) else 1
        newest = k + 1  # mostly chains, so that there is something to fuse
        at = tuple(draw(st.sampled_from((newest, newest, newest - 1, draw(st.integers(0, newest)))))
                   for _ in range(arity))
        found.append((draw(st.sampled_from(functions)), at))
    return found


def agree(shape: tuple[int, int], steps: list[Step]) -> None:
    fused = run(shape, steps, False)
    assert run(shape, steps, True) == fused
    assert run(shape, steps, False) == fused


SHAPES = [(3, 5), (8, 33), (33, 8), (64, 100), (2, 700)]


@given(st.sampled_from(SHAPES), programs([UNARY, UNARY, BINARY, MOVES]))
@settings(max_examples=25)
def test_maps(shape: tuple[int, int], steps: list[Step]) -> None:
    agree(shape, steps)


@given(st.sampled_from(SHAPES), programs([UNARY, BINARY, MOVES, ROWS, ROWS]))
@settings(max_examples=35)
def test_with_reductions(shape: tuple[int, int], steps: list[Step]) -> None:
    agree(shape, steps)


@given(st.sampled_from(SHAPES), programs([UNARY, BINARY, ROWS, PRODUCTS, PRODUCTS]))
@settings(max_examples=20)
def test_with_products(shape: tuple[int, int], steps: list[Step]) -> None:
    agree(shape, steps)


@pytest.mark.parametrize("n", (1 << 14, 100003, 1 << 20))
def test_long_reductions(n: int) -> None:
    """In two steps or one, alone or with work before and after."""
    a = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    x = devrt.asarray(a)
    whole = (devrt.sum(devrt.sin(x) * 2.0) + 1.0).numpy()
    first = (devrt.sin(x) * 2.0).realize()
    np.testing.assert_array_equal((devrt.sum(first).realize() + 1.0).numpy(), whole)
    many = devrt.sum(devrt.sin(devrt.broadcast_to(x, (40, n)) if n < 1 << 17 else x[None]) * 2.0, axis=1) + 1.0
    assert (many.numpy() == whole).all()  # the number of rows does not change a row
