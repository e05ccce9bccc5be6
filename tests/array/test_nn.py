"""Networks' functions against PyTorch in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import devrt
from devrt import nn
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.device import InvalidArgument
from tests.array.reference import FLOATS, SIZES, array, numbers, tolerance, value


def wide(x: devrt.Array) -> torch.Tensor:
    return torch.tensor(value(x).astype(np.float64))


def check(got: devrt.Array, want: torch.Tensor, rtol: float, atol: float = 0.0) -> None:
    np.testing.assert_allclose(value(got).astype(np.float64), want.numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("d", FLOATS, ids=str)
def test_activations(d: DType) -> None:
    x, y = array(numbers(d, (7, 65)) * 3), array(numbers(d, (7, 65), 1))
    t, u = wide(x), wide(y)
    r = 2 * tolerance(d)
    a = 1e-7 if d is not dt.float64 else 1e-15
    for got, want in [(nn.relu(x), F.relu(t)), (nn.silu(x), F.silu(t)), (nn.gelu(x), F.gelu(t)),
                      (nn.gelu(x, approximate="tanh"), F.gelu(t, approximate="tanh")),
                      (nn.squared_relu(x), F.relu(t)**2), (nn.swiglu(x, y), F.silu(t) * u),
                      (nn.soft_cap(x), 30 * torch.tanh(t / 30))]:
        assert got.dtype is d
        check(got, want, 2 * r, a)


@pytest.mark.parametrize("n", [n for n in SIZES if n])
@pytest.mark.parametrize("d", FLOATS, ids=str)
def test_softmax(d: DType, n: int) -> None:
    x = array(numbers(d, (5, n)) * 4)
    a = 6e-8 if d is dt.float16 else 0
    check(nn.softmax(x), torch.softmax(wide(x), 1), 4 * tolerance(d), a)
    check(nn.softmax(x, axis=0), torch.softmax(wide(x), 0), 4 * tolerance(d), a)
    check(nn.log_softmax(x), torch.log_softmax(wide(x), 1), 4 * tolerance(d), 4 * tolerance(d))
    check(nn.logsumexp(x), torch.logsumexp(wide(x), 1), 4 * tolerance(d), 4 * tolerance(d))
    assert nn.logsumexp(x, axis=0, keepdims=True).shape == (1, n)


def test_softmax_never_overflows() -> None:
    x = array(np.array([[1e4, 1e4, -1e4], [-np.inf, 0, 0], [3e38, -3e38, 0]], np.float32))
    np.testing.assert_allclose(nn.softmax(x).numpy(), [[.5, .5, 0], [0, .5, .5], [1, 0, 0]])
    np.testing.assert_allclose(nn.logsumexp(x).numpy(), [1e4 + math.log(2), math.log(2), 3e38], rtol=1e-6)
    assert nn.logsumexp(array(np.full((1, 4), -np.inf, np.float32))).tolist() == [-math.inf]
    h = array(np.array([[60000, 60000]], np.float16))
    assert nn.softmax(h).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("chunks", (1, 2, 5, 7, 33))
def test_cross_entropy(chunks: int) -> None:
    x = array(numbers(dt.float32, (4, 6, 33)))
    labels = np.random.default_rng(0).integers(0, 33, (4, 6))
    want = F.cross_entropy(wide(x).reshape(-1, 33), torch.tensor(labels.reshape(-1)), reduction="none").reshape(4, 6)
    check(nn.cross_entropy(x, array(labels), chunks=chunks), want, 1e-5, 1e-6)


@pytest.mark.parametrize("n", (1, 31, 33, 64, 1000))
def test_norms(n: int) -> None:
    x, w, b = (array(numbers(dt.float32, s, k)) for k, s in enumerate(((3, 5, n), (n,), (n,))))
    check(nn.rms_norm(x, w), F.rms_norm(wide(x), (n,), wide(w), 1e-6), 1e-5, 1e-6)
    check(nn.rms_norm(x), F.rms_norm(wide(x), (n,), None, 1e-6), 1e-5, 1e-6)
    check(nn.layer_norm(x, w, b), F.layer_norm(wide(x), (n,), wide(w), wide(b)), 1e-4, 1e-5)
    check(nn.layer_norm(x), F.layer_norm(wide(x), (n,)), 1e-4, 1e-5)


def test_rms_norm_backward() -> None:
    x, w, g = (array(numbers(dt.float32, s, k)) for k, s in enumerate(((5, 64), (64,), (5, 64))))
    t, u = wide(x).requires_grad_(), wide(w).requires_grad_()
    F.rms_norm(t, (64,), u, 1e-6).backward(wide(g))
    dx, dw = nn.rms_norm_backward(g, x, w)
    assert t.grad is not None and u.grad is not None
    check(dx, t.grad, 1e-4, 1e-5)
    check(dw, u.grad, 1e-4, 1e-5)


def mask(t: int, s: int, causal: bool, window: int | None) -> torch.Tensor:
    i, j = torch.arange(t)[:, None] + s - t, torch.arange(s)
    keep = torch.ones(t, s, dtype=torch.bool)
    if causal:
        keep &= j <= i
    if window is not None:
        keep &= j > i - window
    return keep


@pytest.mark.parametrize("h, g, t, s, d, causal, window", [
    (2, 2, 1, 9, 8, False, None), (4, 2, 16, 16, 32, True, None), (4, 1, 33, 33, 16, True, 8),
    (2, 2, 17, 65, 8, True, None), (1, 1, 64, 31, 24, False, None),
    (6, 3, 5, 40, 16, True, 16), (2, 1, 130, 130, 64, True, None), (2, 2, 16, 16, 5, False, None)])
def test_attention(h: int, g: int, t: int, s: int, d: int, causal: bool, window: int | None) -> None:
    q, k, v = (array(numbers(dt.float32, (2, *shape), n)) for n,
               shape in enumerate(((h, t, d), (g, s, d), (g, s, d + 3))))
    kk, vv = (x.repeat_interleave(h // g, 1) for x in (wide(k), wide(v)))
    scores = wide(q) @ kk.mT / math.sqrt(d)
    want = torch.softmax(scores.masked_fill(~mask(t, s, causal, window), -math.inf), -1) @ vv
    check(nn.attention(q, k, v, causal=causal, window=window), want, 1e-4, 1e-5)
    capped = (20 * torch.tanh(wide(q) @ kk.mT * 0.3 / 20)).masked_fill(~mask(t, s, causal, window), -math.inf)
    check(nn.attention(q, k, v, causal=causal, window=window, scale=0.3, cap=20.0), torch.softmax(capped, -1) @ vv,
          1e-4, 1e-5)


@pytest.mark.parametrize("d", (dt.float16, dt.bfloat16, dt.float64), ids=str)
def test_attention_types(d: DType) -> None:
    q, k, v = (array(numbers(d, (2, 20, 16), n)) for n in range(3))
    got = nn.attention(q, k, v, causal=True)
    assert got.dtype is d
    t = max(tolerance(d) * 2, 1e-13)
    check(got, F.scaled_dot_product_attention(wide(q)[None], wide(k)[None], wide(v)[None], is_causal=True)[0], t, t)


def test_linear_and_quantised() -> None:
    x, w, b = (array(numbers(dt.float32, s, k)) for k, s in enumerate(((3, 5, 64), (48, 64), (48,))))
    check(nn.linear(x, w, b), F.linear(wide(x), wide(w), wide(b)), 1e-4, 1e-5)
    for bits, group in ((8, None), (8, 16), (4, None), (4, 32)):
        codes, scales = nn.quantise(w, bits, group=group)  # type: ignore[arg-type]
        assert codes.dtype is (dt.int8 if bits == 8 else dt.int4)
        groups = scales.shape[1]
        restored = (codes.numpy().astype(np.float64).reshape(48, groups, -1) * scales.numpy()[:, :, None]).reshape(48,
                                                                                                                   64)
        assert np.abs(restored - w.numpy()).max() <= scales.numpy().max() * 0.5001
        for rows in (x, x[0, 0:1], x[0]):
            check(nn.quantised_linear(rows, codes, scales), wide(rows) @ torch.tensor(restored).T, 1e-4, 1e-5)


def test_sampling_follows_the_distribution() -> None:
    p = np.array([0.5, 0.25, 0.125, 0.125], np.float32)
    drawn = nn.sample(array(np.broadcast_to(np.log(p), (20000, 4)).copy()), seed=5).numpy()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20000, p, atol=0.02)
    assert (nn.sample(array(np.tile(np.log(p), (9, 1))), temperature=0, seed=1).numpy() == 0).all()


def test_embedding() -> None:
    table, tokens = numbers(dt.float16, (11, 7)), np.array([[0, 10], [3, 99]], np.int32)
    np.testing.assert_array_equal(nn.embedding(array(table), array(tokens)).numpy(), table[[[0, 10], [3, 10]]])


def test_refused() -> None:
    x = array(numbers(dt.float32, (4, 8)))
    for bad in (lambda: nn.cross_entropy(x, array(np.zeros(3, np.int64))),
                lambda: nn.cross_entropy(x, array(np.zeros(4, np.float32))),
                lambda: nn.cross_entropy(x, array(np.zeros(4, np.int64)), chunks=9), lambda: nn.quantise(x, 8, group=3),
                lambda: nn.attention(x, x, x),
                lambda: nn.attention(x[None], x[None, :, :4], x[None]), lambda: nn.rms_norm(x, cast="never"),
                # type: ignore[arg-type]
                lambda: nn.attention(x[None], x[None], x[None], window=4)):
        with pytest.raises(InvalidArgument):
            bad()
