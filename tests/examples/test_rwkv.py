"""RWKV-4 against the most direct NumPy, in float64: loops over time and channels, and the WKV mean as the sum over history it is
defined by; and against transformers, where it is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rwkv

import devrt

SMALL = rwkv.Config(layers=2, dim=64, hidden=256, vocab=300)
CONFIGS = {"small": SMALL, "narrow": rwkv.Config(layers=1, dim=5, hidden=9, vocab=7, eps=1e-3),
           "deep": rwkv.Config(layers=5, dim=48, hidden=100, vocab=129)}
every_config = pytest.mark.parametrize("c", CONFIGS.values(), ids=CONFIGS)
Floats = np.ndarray


def tokens_of(c: rwkv.Config, count: int) -> list[int]:
    return [(31 * n * n + 7 * n + 3) % c.vocab for n in range(count)]


def direct_wkv(decay: Floats, first: Floats, keys: Floats, values: Floats) -> Floats:
    """The WKV mean at the last of the keys and values [t, dim], equation 16 of the RWKV paper, term by term. `decay` is the
    checkpoint's time_decay: a step weighs exp(-exp(decay))."""
    t, dim = keys.shape
    out = np.empty(dim)
    for c in range(dim):
        exponents = [keys[j, c] - (t - 2 - j) * np.exp(decay[c]) for j in range(t - 1)] + [first[c] + keys[t - 1, c]]
        top = max(exponents)
        weights = [np.exp(e - top) for e in exponents]
        out[c] = sum(weight * values[j, c] for j, weight in enumerate(weights)) / sum(weights)
    return out


def direct_logits(c: rwkv.Config, weights: rwkv.Weights, tokens: list[int]) -> Floats:
    """Logits [t, vocab] after every token, in float64. There is no state: each token looks at all of its history."""
    w = {name: a.numpy().astype(np.float64) for name, a in weights.items()}

    def norm(x: Floats, at: str) -> Floats:
        eps = c.eps
        return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + eps) * w[f"rwkv.{at}.weight"] + w[f"rwkv.{at}.bias"]

    def sigmoid(x: Floats) -> Floats:
        return 1 / (1 + np.exp(-x))
    xs = [norm(w["rwkv.embeddings.weight"][token], "blocks.0.pre_ln") for token in tokens]
    for layer in range(c.layers):
        at = f"rwkv.blocks.{layer}"

        def projected(part: str, kind: str, hs: list[Floats], t: int, at: str = at) -> Floats:
            mix = w[f"{at}.{part}.time_mix_{kind}"].reshape(-1)
            before = hs[t - 1] if t else np.zeros(c.dim)
            return w[f"{at}.{part}.{kind}.weight"] @ (mix * hs[t] + (1 - mix) * before)
        hs = [norm(x, f"blocks.{layer}.ln1") for x in xs]
        keys = np.array([projected("attention", "key", hs, t) for t in range(len(xs))])
        values = np.array([projected("attention", "value", hs, t) for t in range(len(xs))])
        for t in range(len(xs)):
            mean = direct_wkv(w[f"{at}.attention.time_decay"], w[f"{at}.attention.time_first"], keys[:t + 1], values[:t + 1])
            gate = sigmoid(projected("attention", "receptance", hs, t))
            xs[t] = xs[t] + w[f"{at}.attention.output.weight"] @ (gate * mean)
        hs = [norm(x, f"blocks.{layer}.ln2") for x in xs]
        for t in range(len(xs)):
            inner = np.maximum(projected("feed_forward", "key", hs, t), 0) ** 2
            gate = sigmoid(projected("feed_forward", "receptance", hs, t))
            xs[t] = xs[t] + gate * (w[f"{at}.feed_forward.value.weight"] @ inner)
    return np.array([w["head.weight"] @ norm(x, "ln_out") for x in xs])


def stepped(c: rwkv.Config, w: rwkv.Weights, tokens: list[int], state: rwkv.State | None = None) -> tuple[Floats, rwkv.State]:
    """Logits [t, vocab] of one captured step a token, and the last state."""
    step = devrt.capture(lambda token, state: rwkv.step(c, w, token, state))
    state, out = state or rwkv.empty_state(c), []
    for token in tokens:
        logits, state = step(devrt.asarray(np.array(token)), state)
        out.append(logits.numpy())
    return np.array(out), state


def flat(state: rwkv.State) -> list[Floats]:
    return [a.numpy() for layer in state for a in layer]


@every_config
def test_steps_equal_the_sums_over_history(c: rwkv.Config) -> None:
    w, tokens = rwkv.random_weights(c, seed=1), tokens_of(c, 20)
    got, _ = stepped(c, w, tokens)
    want = direct_logits(c, w, tokens)
    assert np.abs(want).max() > 1  # a comparison of numbers that say something
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


@every_config
@pytest.mark.parametrize("cuts", [(20,), (2, 18), (7, 1, 12), (1, 1, 18)], ids=str)
def test_a_text_read_in_pieces_equals_its_steps(c: rwkv.Config, cuts: tuple[int, ...]) -> None:
    """Any cut of a text into chunks gives the last logits and the state that one step a token gives."""
    w, tokens = rwkv.random_weights(c, seed=2), tokens_of(c, 20)
    steps, after = stepped(c, w, tokens)
    read = devrt.capture(lambda tokens, state: rwkv.forward(c, w, tokens, state))
    state, at = rwkv.empty_state(c), 0
    for size in cuts:
        logits, state = read(devrt.asarray(np.array(tokens[at:at + size])), state)
        at += size
        np.testing.assert_allclose(logits.numpy(), steps[at - 1], rtol=1e-5, atol=2e-5)
    for got, want in zip(flat(state), flat(after), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


def test_the_state_carries_everything() -> None:
    """Continued after 30 tokens from a state that left the device and came back, the bits are those of one run."""
    w, tokens = rwkv.random_weights(SMALL), tokens_of(SMALL, 40)
    whole, end = stepped(SMALL, w, tokens)
    _, state = stepped(SMALL, w, tokens[:30])
    state = tuple(rwkv.LayerState(*(devrt.asarray(a.numpy().copy()) for a in layer)) for layer in state)
    rest, state = stepped(SMALL, w, tokens[30:], state)
    assert rest.tobytes() == whole[30:].tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(flat(state), flat(end), strict=True))


def test_the_state_has_one_size() -> None:
    _, state = stepped(SMALL, rwkv.random_weights(SMALL), tokens_of(SMALL, 3))
    assert [a.shape for a in flat(state)] == [(SMALL.dim,)] * 5 * SMALL.layers == [a.shape for a in flat(rwkv.empty_state(SMALL))]


def test_repeated_runs_have_the_same_bits() -> None:
    w, tokens = rwkv.random_weights(SMALL), tokens_of(SMALL, 12)
    (first, s), (second, t) = stepped(SMALL, w, tokens), stepped(SMALL, w, tokens)
    assert first.tobytes() == second.tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(flat(s), flat(t), strict=True))


def wkv_inputs(dim: int, t: int, spread: float) -> tuple[Floats, Floats, Floats, Floats]:
    """time_decay from far below to far above what models have, time_first, keys of order `spread`, values."""
    rng = np.random.default_rng(5)
    return (np.linspace(-12, 6, dim).astype(np.float32), rng.standard_normal(dim, dtype=np.float32),
            rng.standard_normal((t, dim), dtype=np.float32) * np.float32(spread), rng.standard_normal((t, dim), dtype=np.float32))


@pytest.mark.parametrize("spread", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("chunk", [1, 2, 25])
def test_wkv_at_extreme_keys_and_decays(spread: float, chunk: int) -> None:
    """exp(1000) is no float: only sums relative to their greatest exponent survive keys like these. An exponent of size E is
    known to E * 2^-24, and so is the logarithm of every weight."""
    dim, t = 24, 50
    decay, first, k, v = wkv_inputs(dim, t, spread)
    zero = devrt.zeros(dim)
    state = rwkv.LayerState(zero, zero, zero, zero, devrt.full(dim, rwkv.EMPTY))
    w, u = devrt.asarray(-np.exp(decay)), devrt.asarray(first)
    means = []
    for at in range(0, t, chunk):
        a, b = devrt.asarray(k[at:at + chunk]), devrt.asarray(v[at:at + chunk])
        mean, state = rwkv.wkv_step(w, u, a[0], b[0], state) if chunk == 1 else rwkv.wkv_chunk(w, u, a, b, state)
        devrt.realize(mean, *state)
        means.append(mean.numpy().reshape(-1, dim))
    got = np.concatenate(means)
    want = np.array([direct_wkv(np.log(np.exp(decay).astype(np.float64)), first.astype(np.float64), k[:n + 1].astype(np.float64),
                                v[:n + 1].astype(np.float64)) for n in range(t)])
    exponent = np.abs(k).max() + t * np.exp(decay)
    assert np.isfinite(got).all()
    assert (np.abs(got - want) <= 1e-5 + 8 * exponent * 2.0**-24).all()
    assert np.abs(got).max() <= np.abs(v).max() * (1 + 1e-6)  # means of the values


def test_long_runs_stay_finite() -> None:
    """2000 tokens with a memory that hardly decays and keys that grow to hundreds."""
    c = rwkv.Config(layers=1, dim=16, hidden=32, vocab=50)
    w = rwkv.random_weights(c)
    w["rwkv.blocks.0.attention.time_decay"] = devrt.asarray(np.linspace(-20, 5, c.dim).astype(np.float32))
    w["rwkv.blocks.0.attention.key.weight"] = w["rwkv.blocks.0.attention.key.weight"] * 200
    logits, state = stepped(c, w, tokens_of(c, 2000))
    assert np.isfinite(logits).all() and all(np.isfinite(a).all() for a in flat(state))
    assert np.abs(state[0].exponent.numpy()).max() > 100
    assert (state[0].denominator.numpy() > 0).all()


def test_a_memory_without_decay_is_the_mean_of_the_values() -> None:
    """Keys of 0 and w = 0: after n tokens numerator / denominator is the mean of n values, exactly for small integers."""
    zero = devrt.zeros(3)
    state = rwkv.LayerState(zero, zero, zero, zero, devrt.full(3, rwkv.EMPTY))
    for n in range(1, 65):
        mean, state = rwkv.wkv_step(zero, zero, zero, devrt.full(3, float(n)), state)
        devrt.realize(mean, *state)
        assert mean.tolist() == [np.float32((n * (n + 1) // 2) / n)] * 3
    assert state.numerator.tolist() == [64 * 65 / 2] * 3 and state.denominator.tolist() == [64.0] * 3


@pytest.mark.parametrize("dtype", [devrt.bfloat16, devrt.float16], ids=str)
def test_weights_of_half_the_size(dtype: devrt.DType) -> None:
    """Stored types are widened where they are read: the logits are those of the same values in float32, bit for bit."""
    stored = {name: a.astype(dtype) for name, a in rwkv.random_weights(SMALL).items()}
    wide = {name: a.astype(devrt.float32) for name, a in stored.items()}
    devrt.realize(*stored.values(), *wide.values())
    got, want = (stepped(SMALL, w, tokens_of(SMALL, 5))[0] for w in (stored, wide))
    assert got.tobytes() == want.tobytes()


# transformers divides by layers - 1 when it initialises a model: one of a single layer can't be made.
@pytest.mark.parametrize("c", [c for c in CONFIGS.values() if c.layers > 1], ids=[n for n, c in CONFIGS.items() if c.layers > 1])
def test_same_logits_and_state_as_transformers(c: rwkv.Config) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    w, tokens = rwkv.random_weights(c, seed=3), tokens_of(c, 24)
    # Rescaling is for float16: it halves activations every so many layers at inference, and the weights with them.
    config = transformers.RwkvConfig(vocab_size=c.vocab, hidden_size=c.dim, num_hidden_layers=c.layers, rescale_every=0,
                                     intermediate_size=c.hidden, layer_norm_epsilon=c.eps)
    model = transformers.RwkvForCausalLM(config).double().eval()
    model.load_state_dict({name: torch.from_numpy(a.numpy().astype(np.float64)) for name, a in w.items()})
    with torch.inference_mode():
        said = model(torch.tensor([tokens]), use_cache=True)
    logits, state = stepped(c, w, tokens)
    np.testing.assert_allclose(logits, said.logits[0].numpy(), rtol=1e-5, atol=2e-5)
    for n, kept in enumerate(said.state):
        np.testing.assert_allclose(np.array([layer[n].numpy() for layer in state]), kept[0].T.numpy(), rtol=1e-5, atol=2e-5)


SCRIPT = Path(rwkv.__file__)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=300)


def test_command_line() -> None:
    done = run("--layers", "1", "--dim", "32", "--tokens", "3", "--prompt", "35")
    assert done.returncode == 0, done.stderr
    for word in ("tokens/s", "p50", "p99", "GB/s", "prompt   35 tokens"):
        assert word in done.stdout


@pytest.mark.parametrize("arguments", [("--layers", "0"), ("--dim", "some"), ("--dim", "100000000", "--layers", "1")], ids=str)
def test_command_line_refuses(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and done.stderr.strip()
