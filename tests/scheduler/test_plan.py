"""The memory plan, the schedule cache, and capacity arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import devrt
from devrt import nn, registry
from devrt.compiler import dtypes as dt
from devrt.compiler.ops import Op, make
from devrt.scheduler.plan import ALIGNMENT, Temporary, assign, schedule, structure
from tests.garbage import collect

NODE = make(Op.CONST, (), (0.0, dt.float32))


@st.composite
def temporaries(draw: st.DrawFn) -> list[Temporary]:
    found = []
    for _ in range(draw(st.integers(0, 40))):
        first = draw(st.integers(0, 30))
        found.append(Temporary(NODE, draw(st.integers(1, 5000)), first, first + draw(st.integers(0, 10))))
    return found


def rounded(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


@given(temporaries())
@settings(max_examples=300)
def test_live_arrays_never_overlap(ts: list[Temporary]) -> None:
    offsets, total = assign(ts)
    assert all(o % ALIGNMENT == 0 and o >= 0 for o in offsets)
    for a, (t, o) in enumerate(zip(ts, offsets, strict=True)):
        assert o + t.nbytes <= total
        for u, p in zip(ts[a + 1:], offsets[a + 1:], strict=True):
            if t.first <= u.last and u.first <= t.last:
                assert o + t.nbytes <= p or p + u.nbytes <= o
    assert total <= sum(rounded(t.nbytes) for t in ts)
    alive = [sum(rounded(t.nbytes) for t in ts if t.first <= k <= t.last) for k in range(45)]
    assert total >= max(alive, default=0)
    assert assign(ts) == (offsets, total)


def test_a_chain_needs_two_arrays() -> None:
    chain = [Temporary(NODE, 1000, k, k + 1) for k in range(50)]
    assert assign(chain)[1] == 2 * rounded(1000)


def properties() -> Any:
    return registry.open("cpu").properties


def plan(*arrays: devrt.Array) -> Any:
    return schedule([a.node for a in arrays], properties())


def test_temporaries_of_a_deep_network_share_memory() -> None:
    x = devrt.asarray(np.ones((64, 128), np.float32))
    w = devrt.asarray(np.eye(128, dtype=np.float32))
    for _ in range(12):
        x = nn.relu(x @ w)
    s, inputs = plan(x)
    assert len(s.launches) == 12 and len(inputs) == 2
    assert s.temporary_bytes == 11 * 64 * 128 * 4 and s.arena_bytes == 2 * 64 * 128 * 4
    np.testing.assert_array_equal(x.numpy(), np.ones((64, 128)))


def test_attention_has_no_temporaries() -> None:
    q = devrt.asarray(np.ones((4, 256, 32), np.float32))
    s, _ = plan(nn.attention(q, q, q, causal=True))
    assert (len(s.launches), s.arena_bytes, s.temporary_bytes) == (1, 0, 0)


# ----- the cache of schedules


def test_equal_structures_share_a_schedule() -> None:
    a, b = (devrt.asarray(np.full((3, 5), v, np.float32)) for v in (1, 2))
    first, inputs = plan(a * 2.0 + b)
    again, other = plan(b * 2.0 + a)
    assert first is again and [n.arg for n in inputs] == [a.storage,
                                                          b.storage] and [n.arg for n in other] == [b.storage,
                                                                                                    a.storage]
    np.testing.assert_array_equal((b * 2.0 + a).numpy(), np.full((3, 5), 5))


def test_anything_that_matters_is_in_the_key() -> None:
    def x(shape: tuple[int, ...] = (4, 4), d: Any = np.float32) -> devrt.Array:
        return devrt.asarray(np.ones(shape, d))
    a = x()
    others = [a * 0.0, a * -0.0, a * 1.0, a + 0.0, x((4, 5)) * 0.0, x((16,)) * 0.0, x(d=np.float64) * 0.0,
              x(d=np.int32) * 0, x(d=np.int64) * 0, x(d=np.int8) * 1,
              devrt.where(a == 1, a, 0.0), devrt.where(a == 1, 0.0, a), a * a, a * x(), a.T * a, a * a.T, a[::-1] * 0.0,
              a.sum(axis=0), a.sum(axis=1), a.max(axis=0),
              devrt.pad(a, [(1, 0), (0, 0)]), devrt.pad(a, [(0, 1), (0, 0)]),
              devrt.pad(a, [(0, 1), (0, 0)], value=-0.0), a * float("nan"), devrt.sin(a), devrt.cos(a),
              a.astype(dt.float16), devrt.bitcast(a, dt.uint32), devrt.zeros(4) == 1,
              devrt.full(4, True) == (devrt.zeros(4) == 1)]
    keys = [structure([o.node])[0] for o in others]
    assert len(set(keys)) == len(others)
    assert structure([a.node, others[0].node])[0] != structure([others[0].node, a.node])[0]


def test_a_schedule_keeps_no_array_alive() -> None:
    allocator = registry.open("cpu").allocator  # type: ignore[attr-defined]
    collect()
    before = allocator.usage().live
    for _ in range(3):
        a = devrt.random_uniform((1000, 100), seed=1).realize()
        b = (devrt.asarray(np.ones((1000, 100), np.float32)) * 3.0 + a).realize()
        np.testing.assert_array_equal((b - a).numpy(), (b.numpy() - a.numpy()))
        del a, b
    collect()
    assert allocator.usage().live <= before + 4096


def test_results_are_remembered_while_they_live() -> None:
    a = devrt.asarray(np.ones(100, np.float32))
    y = devrt.exp(a)
    z = y + 1.0
    y.realize()
    assert [n.arg for n in plan_inputs(z)] == [y.storage]


def plan_inputs(a: devrt.Array) -> Any:
    from devrt.scheduler.simplify import resolve
    return schedule(resolve([a.node]), properties())[1]


# ----- capacity


@pytest.mark.parametrize("parameters, d, devices, each, weights", [
    (405e9, dt.float8_e4m3, 8, 80e9, 405e9), (405e9, dt.int4, 4, 80e9, 202.5e9), (405e9, dt.int4, 16, 24e9, 202.5e9),
    (70e9, dt.int4, 2, 24e9, 35e9)])
def test_capacity(parameters: float, d: dt.DType, devices: int, each: float, weights: float) -> None:
    """Whole models on whole machines: the weights' bytes, and that they fit."""
    assert d.nbytes(int(parameters)) == weights <= devices * each
    per_device = d.nbytes(int(parameters) // devices)
    assert per_device * devices == weights and per_device <= each


def test_bytes_of_every_type() -> None:
    for d in dt.ALL:
        assert d.nbytes(0) == 0 and d.nbytes(1000) == 1000 * d.bits // 8
    assert [dt.int4.nbytes(n) for n in range(5)] == [0, 1, 1, 2, 2]


def test_long_chains_stay_cheap() -> None:
    """Chains far longer than Python's stack, of maps and of norms along alternating axes."""
    x = devrt.zeros(16)
    for _ in range(2000):
        x = x + 1.0
    assert x.numpy().tolist() == [2000.0] * 16
    host = np.random.default_rng(0).random((6, 7), dtype=np.float32) + np.float32(0.5)
    y, want = devrt.asarray(host), host.astype(np.float64)
    for k in range(120):
        y = y / y.sum(axis=k % 2, keepdims=True)
        want = want / want.sum(axis=k % 2, keepdims=True)
    np.testing.assert_allclose(y.numpy(), want, rtol=1e-4)
