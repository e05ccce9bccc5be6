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


def decode(x: Array, w: Array, start: Array, cache: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    new = nn.rms_norm(nn.linear(x, w))
    grown = {name: devrt.update_rows(c, new * float(n + 1), start) for n, (name, c) in enumerate(cache.items())}
    return (grown["k"] * grown["v"]).sum(axis=0), grown


def zeros(rows: int = 50) -> dict[str, Array]:
    return {name: devrt.zeros((rows, 32)).realize() for name in "kv"}


@pytest.mark.parametrize("t", [1, 3, 20, 50])
def test_donated_rows_are_written_in_place(t: int) -> None:
    plain, donating = devrt.capture(decode), devrt.capture(decode, donate=("cache",))
    w, kept, given = f32(32, 64), zeros(), zeros()
    places = {name: a.storage.buffer.address for name, a in given.items()}
    expected = np.zeros((50, 32), np.float32)
    for seed, at in enumerate((0, 4, 7, 45, 60, -3)):  # starts outside are clipped
        x, start = f32(t, 64, seed=seed), devrt.asarray(np.array(at))
        a, kept = plain(x, w, start, kept)
        b, given = donating(x, w, start, given)
        assert a.numpy().tobytes() == b.numpy().tobytes()
        row = min(max(at, 0), 50 - t)
        expected[row:row + t] = nn.rms_norm(nn.linear(x, w)).numpy()
    assert {name: a.storage.buffer.address for name, a in given.items()} == places
    assert np.array_equal(given["k"].numpy(), expected) and np.array_equal(given["v"].numpy(), expected * 2)
    assert np.array_equal(kept["k"].numpy(), expected) and np.array_equal(kept["v"].numpy(), expected * 2)


def test_what_was_donated_cannot_be_read() -> None:
    step = devrt.capture(decode, donate=("cache",))
    x, w, start, cache = f32(1, 64), f32(32, 64), devrt.asarray(np.array(3)), zeros()
    step(x, w, start, cache=cache)
    for use in (lambda: cache["k"].numpy(), lambda: (cache["k"] + 1.0).numpy(), lambda: step(x, w, start, cache=cache)):
        with pytest.raises(devrt.InvalidArgument, match="donated to a captured function"):
            use()


def test_memory_that_others_see_is_not_overwritten() -> None:
    step = devrt.capture(decode, donate=("cache",))
    x, w, start = f32(2, 64), f32(32, 64), devrt.asarray(np.array(3))
    mine = np.zeros((50, 32), np.float32)
    one = devrt.zeros((50, 32)).realize()
    view = one.numpy()
    _, out = step(x, w, start, {"k": devrt.asarray(mine), "v": one})
    assert not mine.any() and not view.any() and out["k"].numpy().any()
    same = devrt.zeros((50, 32)).realize()
    _, out = step(x, w, start, {"k": same, "v": same})
    assert np.array_equal(out["v"].numpy(), out["k"].numpy() * 2)


def test_updates_whose_old_value_is_still_read_get_new_memory() -> None:
    def function(x: Array, start: Array, cache: Array) -> tuple[Array, Array]:
        grown = devrt.update_rows(cache, x, start)
        return grown, cache.sum(axis=0)
    step = devrt.capture(function, donate=("cache",))
    cache = f32(10, 8)
    before = cache.numpy().copy()
    grown, total = step(f32(2, 8, seed=1), devrt.asarray(np.array(4)), devrt.asarray(before.copy()))
    assert np.allclose(total.numpy(), before.sum(axis=0), atol=1e-5)
    before[4:6] = f32(2, 8, seed=1).numpy()
    assert np.array_equal(grown.numpy(), before)


def test_donation_of_what_is_returned_or_closed_over() -> None:
    step = devrt.capture(lambda a, b: (a, a + b), donate=("a",))
    a = (f32(4) + 0.0).realize()
    same, total = step(a, f32(4, seed=1))
    assert same.storage is a.storage and np.array_equal(a.numpy(), f32(4).numpy())
    assert np.allclose(total.numpy(), f32(4).numpy() + f32(4, seed=1).numpy())
    fixed = f32(6, 4)
    with pytest.raises(devrt.InvalidArgument, match="closes over"):
        devrt.capture(lambda x: x + fixed, donate=("x",))(fixed)
    with pytest.raises(devrt.InvalidArgument, match="no parameter"):
        devrt.capture(lambda x: x, donate=("cache",))


@pytest.mark.parametrize("dtype", [devrt.int8, devrt.bfloat16, devrt.int4, devrt.float64])
def test_update_rows_of_every_width(dtype: devrt.DType) -> None:
    x, rows = f32(9, 6).astype(dtype), (f32(4, 6, seed=1) * 3.0).astype(dtype)
    step = devrt.capture(lambda x, rows, start: devrt.update_rows(x, rows, start), donate=("x",))
    want = x.numpy().copy()
    want[2:6] = rows.numpy()
    assert np.array_equal(devrt.update_rows(x, rows, 2).numpy(), want)
    assert np.array_equal(step(x, rows, devrt.asarray(np.array(2, np.uint8))).numpy(), want)


def test_update_rows_refuses_what_does_not_fit() -> None:
    x = f32(4, 3)
    for rows, start in ((f32(5, 3), 0), (f32(2, 2), 0), (f32(3), 0), (f32(2, 3), 1.5), (f32(2, 3).astype(devrt.int32), 0),
                        (f32(2, 3), devrt.arange(2))):
        with pytest.raises(devrt.InvalidArgument):
            devrt.update_rows(x, rows, start)  # type: ignore[arg-type]
    assert devrt.update_rows(x, f32(0, 3), 2) is x


def test_what_cannot_be_captured_or_donated_so() -> None:
    with pytest.raises(devrt.InvalidArgument, match="capture takes a function"):
        devrt.capture(3)  # type: ignore[arg-type]
    with pytest.raises(devrt.InvalidArgument, match="sequence of names"):
        devrt.capture(lambda cache: cache, donate="cache")
    with pytest.raises(devrt.InvalidArgument, match="names of its parameters"):
        devrt.capture(max, donate=("x",))


@pytest.mark.parametrize("ask", [lambda x: x.numpy(), lambda x: x.tolist(), lambda x: bool(x.sum() > 0), repr])
def test_a_value_of_an_argument_is_not_there_while_capturing(ask: Any) -> None:
    def function(x: devrt.Array) -> devrt.Array:
        ask(x)
        return x
    with pytest.raises(devrt.InvalidArgument, match="being captured"):
        devrt.capture(function)(devrt.asarray([1.0, 2.0]))


def test_update_rows_takes_numpy_rows() -> None:
    x, rows = np.zeros((4, 2), np.float32), np.ones((1, 2), np.float32)
    assert devrt.update_rows(devrt.asarray(x), rows, 2).tolist() == [[0, 0], [0, 0], [1, 1], [0, 0]]


def test_constants_are_not_read_from_arrays_that_hold_the_same() -> None:
    kept = devrt.zeros((8, 3))  # keeps the expression alive that `cache` is computed from
    cache = devrt.zeros((8, 3)).wait()
    positive = devrt.capture(lambda x: devrt.where(x > 0, x, 0.0))
    x = devrt.asarray(-np.ones((8, 3), np.float32))
    assert positive(x).numpy().sum() == 0
    step = devrt.capture(lambda cache, row: (devrt.update_rows(cache, row, 2), (cache * 0 + row).sum()), donate=("cache",))
    other = devrt.zeros((8, 3)).wait()
    new, total = step(cache, devrt.asarray(np.full((1, 3), 7, np.float32)))
    assert new.numpy().sum() == 21 and total.item() == 8 * 21
    assert positive(x).numpy().sum() == kept.numpy().sum() == other.numpy().sum() == 0


def test_closed_over_and_donated_elsewhere_is_an_error() -> None:
    cache = devrt.asarray(np.ones((8, 3), np.float32), copy=True)
    reads = devrt.capture(lambda x: x + cache)
    x = devrt.ones((8, 3)).wait()
    assert reads(x).numpy().sum() == 48
    devrt.capture(lambda cache, row: devrt.update_rows(cache, row, 2), donate=("cache",))(cache, devrt.ones((1, 3)) * 7)
    with pytest.raises(devrt.InvalidArgument, match="was donated"):
        reads(x)
