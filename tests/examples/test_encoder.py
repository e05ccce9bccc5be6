"""The pre-norm encoder against the most direct NumPy, in float64: loops over the batch, the heads and the queries; and against
torch.nn.TransformerEncoder, where it is installed."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import encoder
import numpy as np
import pytest

import devrt

SMALL = encoder.Config(layers=2, dim=64, heads=4, hidden=160)
CASES = {"small": (SMALL, 2, 20), "one query": (SMALL, 3, 1), "few queries": (SMALL, 1, 7), "ragged": (SMALL, 2, 33),
         "odd shapes": (encoder.Config(layers=1, dim=15, heads=3, hidden=7, eps=1e-3), 2, 18),
         "one head": (encoder.Config(layers=3, dim=24, heads=1, hidden=50), 1, 40)}
every_case = pytest.mark.parametrize(("c", "batch", "length"), CASES.values(), ids=CASES)
Floats = np.ndarray


def inputs(c: encoder.Config, batch: int, length: int) -> Floats:
    return np.random.default_rng(7).standard_normal((batch, length, c.dim), dtype=np.float32)


def direct(c: encoder.Config, weights: encoder.Weights, batch: Floats) -> Floats:
    """The encoder in float64, one sequence, one head and one query at a time."""
    w = {name: a.numpy().astype(np.float64) for name, a in weights.items()}
    erf = np.vectorize(math.erf)

    def norm(x: Floats, at: str) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + c.eps) * w[f"{at}.weight"] + w[f"{at}.bias"]
    size, out = c.dim // c.heads, []
    for x in batch.astype(np.float64):
        for layer in range(c.layers):
            at = f"layers.{layer}"
            h = norm(x, f"{at}.norm1")
            q, k, v = np.split(h @ w[f"{at}.self_attn.in_proj_weight"].T + w[f"{at}.self_attn.in_proj_bias"], 3, axis=1)
            mixed = np.empty_like(h)
            for head in range(c.heads):
                part = slice(head * size, (head + 1) * size)
                for query in range(len(x)):
                    weight = np.exp(k[:, part] @ q[query, part] / math.sqrt(size))
                    mixed[query, part] = weight @ v[:, part] / weight.sum()
            x = x + mixed @ w[f"{at}.self_attn.out_proj.weight"].T + w[f"{at}.self_attn.out_proj.bias"]
            h = norm(x, f"{at}.norm2") @ w[f"{at}.linear1.weight"].T + w[f"{at}.linear1.bias"]
            h = h * (1 + erf(h / math.sqrt(2))) / 2
            x = x + h @ w[f"{at}.linear2.weight"].T + w[f"{at}.linear2.bias"]
        out.append(norm(x, "norm"))
    return np.array(out)


@every_case
def test_equals_the_direct_form(c: encoder.Config, batch: int, length: int) -> None:
    w, x = encoder.random_weights(c), inputs(c, batch, length)
    got = encoder.forward(c, w, devrt.asarray(x)).numpy()
    want = direct(c, w, x)
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_sequences_of_a_batch_do_not_mix() -> None:
    """Every sequence of a batch has the bits it has alone, and a permuted batch is the permuted result."""
    w, x = encoder.random_weights(SMALL), inputs(SMALL, 4, 20)
    run = devrt.capture(lambda x: encoder.forward(SMALL, w, x))
    together = run(devrt.asarray(x)).numpy()
    for n in range(4):
        assert run(devrt.asarray(x[n:n + 1])).numpy().tobytes() == together[n:n + 1].tobytes()
    order = [2, 0, 3, 1]
    assert run(devrt.asarray(np.ascontiguousarray(x[order]))).numpy().tobytes() == together[order].tobytes()


def test_order_of_the_tokens_only_permutes_the_result() -> None:
    """Nothing here encodes positions: an encoder of permuted tokens permutes its result, up to rounding."""
    w, x = encoder.random_weights(SMALL), inputs(SMALL, 1, 24)
    order = np.random.default_rng(0).permutation(24)
    got = encoder.forward(SMALL, w, devrt.asarray(np.ascontiguousarray(x[:, order]))).numpy()
    np.testing.assert_allclose(got, encoder.forward(SMALL, w, devrt.asarray(x)).numpy()[:, order], rtol=1e-5, atol=1e-5)


def test_captured_and_repeated_runs_have_the_same_bits() -> None:
    w, x = encoder.random_weights(SMALL), devrt.asarray(inputs(SMALL, 2, 20))
    run = devrt.capture(lambda x: encoder.forward(SMALL, w, x))
    first = encoder.forward(SMALL, w, x).numpy()
    assert all(run(x).numpy().tobytes() == first.tobytes() for _ in range(3))


@pytest.mark.parametrize("scale", [1e-20, 1e4])
def test_size_of_the_input(scale: float) -> None:
    """Layer norms take out the size of what comes in; an input far below eps is all bias."""
    w, x = encoder.random_weights(SMALL), inputs(SMALL, 1, 20) * np.float32(scale)
    got = encoder.forward(SMALL, w, devrt.asarray(x)).numpy()
    np.testing.assert_allclose(got, direct(SMALL, w, x), rtol=1e-5, atol=1e-5)


@every_case
def test_same_result_as_torch(c: encoder.Config, batch: int, length: int) -> None:
    """Loaded by name, strictly: the example has all of torch's weights and no others."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w, x = encoder.random_weights(c, seed=3), inputs(c, batch, length)
    layer = torch.nn.TransformerEncoderLayer(c.dim, c.heads, c.hidden, activation="gelu", batch_first=True, norm_first=True,
                                             layer_norm_eps=c.eps)
    model = torch.nn.TransformerEncoder(layer, c.layers, torch.nn.LayerNorm(c.dim, eps=c.eps), enable_nested_tensor=False)
    model.load_state_dict({name: torch.from_numpy(a.numpy().copy()) for name, a in w.items()})
    with torch.inference_mode():
        want = model.double().eval()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(encoder.forward(c, w, devrt.asarray(x)).numpy(), want, rtol=1e-5, atol=1e-5)


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(devrt.InvalidArgument, match="heads"):
        encoder.Config(dim=10, heads=3)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(encoder.__file__)
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=300)


def test_command_line() -> None:
    done = run("--layers", "1", "--dim", "32", "--heads", "2", "--hidden", "64", "--batch", "1", "3", "--length", "5", "17")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens/s") == 4


@pytest.mark.parametrize("arguments", [("--layers", "0"), ("--dim", "10"), ("--batch",), ("--length", "x")], ids=str)
def test_command_line_refuses(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and done.stderr.strip()
