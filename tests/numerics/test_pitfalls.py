"""Figures that models depend on, each checked where devrt could get it wrong."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import devrt
from devrt import doublefloat, nn
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.device import InvalidArgument


def test_rope_positions_collide_in_narrow_types_and_are_refused_there() -> None:
    """bfloat16: 8189, 8190, 8191 -> 8192, first collision 257 -> 256; float16: 2049 -> 2048."""
    positions = devrt.arange(9000, dtype=devrt.int32)
    for d, last in ((dt.bfloat16, 256), (dt.float16, 2048)):
        kept = positions.astype(d).astype(devrt.int32).numpy()
        assert kept[last] == kept[last + 1] == last
        assert (kept[:last + 1] == np.arange(last + 1)).all()
    assert positions[8189:8192].astype(dt.bfloat16).astype(devrt.float32).tolist() == [8192.0] * 3
    with pytest.raises(InvalidArgument, match="integer positions"):
        nn.rope_tables(positions.astype(dt.bfloat16), 64)
    cos, _ = nn.rope_tables(positions, 64)
    assert len({row.tobytes() for row in cos.numpy()}) == 9000


def test_rope_against_float64() -> None:
    positions, d = np.array([0, 1, 255, 257, 8189, 8190, 8191, 131071]), 128
    cos, sin = nn.rope_tables(devrt.asarray(positions), d)
    frequency = (10000.0 ** -(np.arange(0, d, 2) / d)).astype(np.float32)
    angle = (positions.astype(np.float32)[:, None] * frequency).astype(np.float64)
    np.testing.assert_allclose(cos.numpy(), np.cos(angle), atol=1.5e-7)
    np.testing.assert_allclose(sin.numpy(), np.sin(angle), atol=1.5e-7)
    x = np.random.default_rng(0).standard_normal((8, d)).astype(np.float32)
    turned = nn.rope(devrt.asarray(x), cos, sin)
    a, b = x[:, :d // 2], x[:, d // 2:]
    np.testing.assert_allclose(turned.numpy(), np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                                                               b * np.cos(angle) + a * np.sin(angle)], 1), atol=2e-6)
    np.testing.assert_allclose(nn.rope(turned, cos, sin, backward=True).numpy(), x, atol=1e-6)


def test_float16_ends_at_65504() -> None:
    x = devrt.asarray(np.array([65504.0, 65519.0, 65520.0, -65504.0, -65520.0], np.float32)).astype(dt.float16)
    assert x.tolist() == [65504.0, 65504.0, np.inf, -65504.0, -np.inf]
    assert (devrt.asarray(np.array([65504.0], np.float16)) * 2).tolist() == [np.inf]


@pytest.mark.parametrize("d", (dt.float16, dt.bfloat16), ids=str)
def test_norm_cast_order(d: DType) -> None:
    """All in float32 and rounded last, or rounded before the weight: both selectable, and they differ."""
    rng = np.random.default_rng(0)
    x = devrt.asarray(rng.standard_normal((64, 256)).astype(np.float32), dtype=d)
    w = devrt.asarray(rng.standard_normal(256).astype(np.float32), dtype=d)
    last, before = nn.rms_norm(x, w).numpy(), nn.rms_norm(x, w, cast="before_weight").numpy()
    kind = np.dtype(ml_dtypes.bfloat16) if d is dt.bfloat16 else np.dtype(np.float16)
    wide, weight = x.astype(devrt.float32).numpy(), w.astype(devrt.float32).numpy()
    y = wide / np.sqrt((wide.astype(np.float64)**2).mean(1, keepdims=True) + 1e-6).astype(np.float32)
    eps = float(ml_dtypes.finfo(kind).eps)
    np.testing.assert_allclose(last.astype(np.float64), y * weight, rtol=eps,
                               atol=float(ml_dtypes.finfo(kind).smallest_subnormal))
    want = y.astype(kind).astype(np.float32) * weight
    np.testing.assert_allclose(before.astype(np.float64), want.astype(kind).astype(np.float64), rtol=2 * eps)
    assert (last != before).any()


def test_gelu_forms_differ_by_4_73e_4() -> None:
    x = np.linspace(-6, 6, 120001)
    exact, tanh = nn.gelu(devrt.asarray(x)).numpy(), nn.gelu(devrt.asarray(x), approximate="tanh").numpy()
    np.testing.assert_allclose(exact, torch.nn.functional.gelu(torch.tensor(x)).numpy(), rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(tanh, torch.nn.functional.gelu(torch.tensor(x), approximate="tanh").numpy(), rtol=1e-10,
                               atol=1e-15)
    gap = np.abs(exact - tanh)
    assert 4.72e-4 < gap.max() < 4.74e-4
    assert min(abs(x[gap.argmax()] + 2.70), abs(x[gap.argmax()] - 2.70)) < 0.02
    with pytest.raises(InvalidArgument):
        nn.gelu(devrt.asarray(x), approximate="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("through", (dt.float16, dt.bfloat16), ids=str)
def test_all_int8_survive_narrow_floats(through: DType) -> None:
    x = devrt.asarray(np.arange(-128, 128, dtype=np.int8))
    np.testing.assert_array_equal(x.astype(through).astype(dt.int8).numpy(), x.numpy())
    scaled = x.astype(through) * 0.5
    np.testing.assert_array_equal((scaled * 2).astype(dt.int8).numpy(), x.numpy())


def test_all_int4_survive() -> None:
    x = devrt.asarray(np.arange(-8, 8, dtype=np.int8))
    for through in (dt.int4, dt.float16, dt.float8_e4m3):
        np.testing.assert_array_equal(x.astype(dt.int4).astype(through).astype(dt.int8).numpy(), x.numpy())


@pytest.mark.parametrize("v", (65535, 65536, 65537, 128256, 256000))
def test_vocabularies(v: int) -> None:
    """Softmax, cross entropy, sampling and embedding at the sizes of real vocabularies."""
    rng = np.random.default_rng(v)
    logits = rng.standard_normal((3, v)).astype(np.float32) * 4
    labels = np.array([0, v - 1, v // 2])
    x, y = devrt.asarray(logits), devrt.asarray(labels)
    t = torch.tensor(logits, dtype=torch.float64)
    p = nn.softmax(x).numpy()
    np.testing.assert_allclose(p, torch.softmax(t, 1).numpy(), rtol=4e-6)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    want = torch.nn.functional.cross_entropy(t, torch.tensor(labels), reduction="none").numpy()
    np.testing.assert_allclose(nn.cross_entropy(x, y).numpy(), want, rtol=2e-6, atol=1e-5)
    np.testing.assert_allclose(nn.cross_entropy(x, y, chunks=4).numpy(), want, rtol=2e-6, atol=1e-5)
    np.testing.assert_array_equal(nn.sample(x, temperature=0, seed=1).numpy(), logits.argmax(1))
    table = rng.standard_normal((v, 2)).astype(np.float32)
    tokens = np.array([[0, v - 1], [v, -1]])
    np.testing.assert_array_equal(nn.embedding(devrt.asarray(table), devrt.asarray(tokens)).numpy(),
                                  table[[[0, v - 1], [v - 1, v - 1]]])


@pytest.mark.parametrize("n", (31, 32, 33, 63, 64, 65))
def test_ragged_sizes(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((n, n)).astype(np.float32), rng.standard_normal((n, n)).astype(np.float32)
    x, y = devrt.asarray(a), devrt.asarray(b)
    t, u = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    np.testing.assert_allclose((x @ y).numpy(), (t @ u).numpy(), atol=2e-5)
    np.testing.assert_allclose(nn.softmax(x).numpy(), torch.softmax(t, 1).numpy(), rtol=1e-6)
    np.testing.assert_allclose(nn.layer_norm(x).numpy(), torch.nn.functional.layer_norm(t, (n,)).numpy(), atol=1e-5)
    got = nn.attention(x[None], y[None], x[None], causal=True)
    want = torch.nn.functional.scaled_dot_product_attention(t[None], u[None], t[None], is_causal=True)
    np.testing.assert_allclose(got.numpy(), want.numpy(), atol=1e-5)


# ----- float64 as two float32


def operands(seed: int) -> np.ndarray:
    """float64 of many magnitudes whose products stay far from float32's ends."""
    rng = np.random.default_rng(seed)
    return rng.choice([-1.0, 1.0], 20000) * rng.uniform(1, 2, 20000) * 2.0 ** rng.integers(-20, 20, 20000)


def split_value(x: np.ndarray) -> tuple[doublefloat.DoubleFloat, np.ndarray]:
    d = doublefloat.from_float64(devrt.asarray(x))
    return d, d.high.numpy().astype(np.longdouble) + d.low.numpy().astype(np.longdouble)


@pytest.mark.parametrize("name, bound", [("add", 3), ("multiply", 5), ("divide", 10), ("subtract", 3)])
def test_double_float_bounds(name: str, bound: float) -> None:
    """Within the published multiple of 2^-48 of the exact result, and of float64's within 2^-45."""
    a, b = operands(1), operands(2)
    x, va = split_value(a)
    y, vb = split_value(b)
    got = {"add": x + y, "multiply": x * y, "divide": x / y, "subtract": x - y}[name]
    have = got.high.numpy().astype(np.longdouble) + got.low.numpy().astype(np.longdouble)
    function = getattr(np, name)
    exact = function(va, vb)
    error = np.abs((have - exact) / exact)
    assert error.max() <= bound * 1.01 * 2.0**-48, f"{float(error.max() * 2.0**48):.2f} * 2^-48"
    assert (np.abs(got.low.numpy()) <= np.abs(np.spacing(got.high.numpy())) / 2).all()
    np.testing.assert_array_equal(got.float64().numpy(), have.astype(np.float64))
    scale = np.maximum(np.abs(a), np.abs(b)) if name in ("add", "subtract") else np.abs(function(a, b))
    assert (np.abs(have.astype(np.float64) - function(a, b)) <= 2.0**-45 * scale).all()


def test_double_float_split_holds_48_bits() -> None:
    a = operands(3)
    _, v = split_value(a)
    assert (np.abs(v.astype(np.float64) - a) <= 2.0**-48 * np.abs(a)).all()
    whole = (a * 2.0**30).astype(np.int64) & (1 << 40) - 1
    np.testing.assert_array_equal(split_value(whole.astype(np.float64))[1].astype(np.float64), whole)


def test_double_float_sum_where_float32_is_lost() -> None:
    """1 + 2^-40, and what is left after taking 1 away."""
    one, small = (doublefloat.from_float64(devrt.asarray(np.array([v]))) for v in (1.0, 2.0**-40))
    assert ((one + small) - one).float64().item() == 2.0**-40
    with pytest.raises(InvalidArgument):
        doublefloat.from_float64(devrt.ones(3))
