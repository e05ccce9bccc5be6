"""Captured functions: the same bits as the lazy expression, other inputs, nested structures, and what can't be captured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import devrt
from devrt import nn
from devrt.array import Array


def f32(*shape: int, seed: int = 0) -> Array:
    return devrt.asarray(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def test_replay_gives_the_bits_of_the_expression() -> None:
    step = devrt.capture(lambda x, w: nn.softmax(nn.gelu(x @ w) @ w.mT))
    w = f32(40, 24)
    for seed in range(4):
        x = f32(20, 40, seed=seed)
        assert step(x, w).numpy().tobytes() == nn.softmax(nn.gelu(x @ w) @ w.mT).numpy().tobytes()
    assert len(step.recordings) == 1
    step(f32(21, 40), w)
    assert len(step.recordings) == 2


def test_results_of_different_calls_do_not_share_memory() -> None:
    step = devrt.capture(lambda x: x + 1.0)
    outs = [step(f32(1000, seed=s)) for s in range(5)]
    for s, out in enumerate(outs):
        assert np.array_equal(out.numpy(), f32(1000, seed=s).numpy() + np.float32(1))


def test_lazy_arguments_and_results_as_arguments() -> None:
    step = devrt.capture(lambda x: x * 2.0)
    x = f32(10) + 1.0
    for _ in range(5):
        x = step(x)
    assert np.allclose(x.numpy(), (f32(10).numpy() + 1) * 32)


def test_structures_constants_and_passthrough() -> None:
    def function(state: dict[str, Any], scale: float) -> tuple[dict[str, Any], Array, list[Any]]:
        return {"a": state["a"] + scale, "b": state["b"]}, devrt.ones(3), [state["a"], 7]
    step = devrt.capture(function)
    a, b = f32(4), f32(5)
    out, one, rest = step({"a": a, "b": b}, 2.0)
    assert np.array_equal(out["a"].numpy(), a.numpy() + 2) and np.array_equal(out["b"].numpy(), b.numpy())
    assert one.numpy().tolist() == [1, 1, 1] and rest[1] == 7 and np.array_equal(rest[0].numpy(), a.numpy())
    out, _, _ = step({"a": b, "b": a}, 2.0)
    assert np.array_equal(out["a"].numpy(), b.numpy() + 2) and np.array_equal(out["b"].numpy(), a.numpy())
    assert step({"a": a, "b": b}, 3.0)[0]["a"].numpy()[0] == a.numpy()[0] + np.float32(3)


def test_the_same_array_for_two_arguments() -> None:
    step = devrt.capture(lambda x, y: x - y)
    a, b = f32(6), f32(6, seed=1)
    assert not step(a, a).numpy().any()
    assert np.array_equal(step(a, b).numpy(), a.numpy() - b.numpy())


def test_a_value_asked_for_while_capturing() -> None:
    with pytest.raises(devrt.InvalidArgument, match="while its function is being captured"):
        devrt.capture(lambda x: x * x.sum().item())(f32(4))


def test_what_cannot_be_passed() -> None:
    with pytest.raises(devrt.InvalidArgument, match="set"):
        devrt.capture(lambda x: x)({1, 2})  # type: ignore[arg-type]


def test_a_failing_function_leaves_nothing_recorded() -> None:
    step = devrt.capture(lambda x: x.reshape(7))
    with pytest.raises(devrt.InvalidArgument):
        step(f32(4))
    assert not step.recordings


def test_many_kernels_in_one_list() -> None:
    def chain(x: Array) -> Array:
        for _ in range(50):
            x = x / x.sum()
        return x
    step = devrt.capture(chain)
    x = devrt.ones(8)
    assert np.allclose(step(x).numpy(), 1 / 8)
    assert np.allclose(step(x).numpy(), 1 / 8)


def test_copies_are_new_memory_and_are_replayed() -> None:
    host = np.arange(10, dtype=np.float32)
    a = devrt.asarray(host)
    kept = devrt.asarray(a, copy=True).wait()
    host[0] = 99
    assert a.numpy()[0] == 99 and kept.numpy()[0] == 0
    step = devrt.capture(lambda x: devrt.asarray(x * 2.0, copy=True) + devrt.asarray(x, copy=True))
    for seed in range(3):
        x = f32(40, seed=seed)
        assert np.array_equal(step(x).numpy(), x.numpy() * 2 + x.numpy())
    assert [k.kind for k in devrt.explain(step).kernels].count("copy") == 2
