"""Sampling: the kept set against a sort in NumPy, frequencies against the probabilities, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import devrt
from devrt import nn


def kept(x: np.ndarray, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None) -> tuple[set[int], Any]:
    """(tokens that may be drawn, their probabilities), by sorting in float64."""
    order = np.argsort(-x, kind="stable")[: top_k or len(x)]
    p = np.exp((x[order] - x[order[0]]).astype(np.float64) / temperature)
    p /= p.sum()
    if top_p is not None:
        n = int((np.cumsum(p) < top_p).sum()) + 1
        order, p = order[:n], p[:n] / p[:n].sum()
    if min_p is not None:
        order, p = order[p >= min_p * p[0]], p[p >= min_p * p[0]]
    full = np.zeros(len(x))
    full[order] = p / p.sum()
    return {int(o) for o in order}, full


CUTS: list[tuple[float, int | None, float | None, float | None]] = [
    (1.0, None, None, None), (0.7, 5, None, None), (1.3, None, 0.8, None), (1.0, None, None, 0.2), (0.9, 12, 0.7, 0.05),
    (2.0, 1, None, None)]


@pytest.mark.parametrize("cut", CUTS)
def test_what_is_drawn_and_how_often(cut: tuple[float, int | None, float | None, float | None]) -> None:
    temperature, top_k, top_p, min_p = cut
    x = (np.random.default_rng(3).standard_normal(40) * 1.5).astype(np.float32)
    allowed, p = kept(x, temperature, top_k, top_p, min_p)
    rows = devrt.asarray(np.tile(x, (20000, 1)))
    drawn = nn.sample(rows, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=7).numpy()
    count = np.bincount(drawn, minlength=40)
    assert set(np.flatnonzero(count)) <= allowed
    expected = p * len(drawn)
    often = expected > 20
    assert np.all(np.abs(count - expected)[often] < 5 * np.sqrt(expected[often]))


def test_thresholds_are_exact() -> None:
    from devrt.sampling import kth_largest, ordered_bits
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal(500), [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, -np.inf]]).astype(np.float32)
    order = ordered_bits(devrt.asarray(x))
    by_value = np.sort(order.numpy())[::-1]
    assert np.array_equal(x[np.argsort(order.numpy())], np.sort(x))
    for k in (1, 2, 100, len(x)):
        assert kth_largest(order, k).numpy()[0] == by_value[k - 1]


def test_another_draw_at_every_call_of_a_captured_function() -> None:
    x = devrt.zeros(1000).realize()
    draw = devrt.capture(lambda x, stream: nn.sample(x, seed=5, stream=stream))
    tokens = [int(draw(x, devrt.asarray(np.array(n)))) for n in range(20)]
    assert len(set(tokens)) > 15
    assert tokens == [int(nn.sample(x, seed=5, stream=n)) for n in range(20)]


def test_the_best_and_the_forbidden() -> None:
    x = np.full((2, 9), -np.inf, np.float32)
    x[0, 4] = x[1, 2] = -5.0
    for extra in ({"temperature": 0}, {}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}):
        assert nn.sample(devrt.asarray(x), seed=1, **extra).numpy().tolist() == [4, 2]


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_k": 0},
                                 {"top_k": 10}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": -0.1}, {"stream": devrt.arange(2)}])
def test_what_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(devrt.InvalidArgument):
        nn.sample(devrt.zeros(9), **bad)


@pytest.mark.parametrize("temperature", [1e-9, 1e-38, 1e-45, 1e-300])
def test_the_coldest_draw_is_the_best(temperature: float) -> None:
    logits = devrt.asarray([[5.0, 10.0, 9.0], [-3.0, -4.0, -2.0]])
    for more in ({}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.5}):
        assert nn.sample(logits, temperature=temperature, **more).tolist() == [1, 2]


@pytest.mark.parametrize("bad", [{"temperature": "hot"}, {"temperature": None}, {"top_k": 1.5}, {"top_k": "2"}, {"top_p": "x"},
                                 {"seed": 1.5}, {"stream": "x"}])
def test_what_is_no_number_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(devrt.InvalidArgument):
        nn.sample(devrt.asarray([[1.0, 2.0, 3.0]]), **bad)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_logits_of_nothing_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(devrt.InvalidArgument, match="v of 1 or more"):
        nn.sample(devrt.zeros(shape))
