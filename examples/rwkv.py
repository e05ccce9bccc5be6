"""RWKV-4 on random weights of the 169M model's shapes: a language model whose state is five vectors a layer, whatever the length.

    python examples/rwkv.py [--layers 12] [--dim 768] [--tokens 64] [--prompt 64]

Peng et al., "RWKV: Reinventing RNNs for the Transformer Era" (2023): section 3 for the blocks, appendix D for the stable form
of the WKV recurrence. Weights have the names of Hugging Face's RWKV checkpoints. One token costs the same at any position.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import devrt
from devrt import Array, nn
from devrt.cli.exit_codes import OK
from devrt.cli.main import Parser, guarded

EMPTY = -1e30  # the exponent of an empty sum: exp(EMPTY - x) is 0, and EMPTY - EMPTY is not NaN as with -inf
MAX_LAYERS = 10_000
CHUNK = 64  # tokens of a prompt that go through the layers together
PIECE = 16  # tokens whose WKV sums are written out: PIECE exponentials a token and channel, so no more than pays


@dataclass(frozen=True)
class Config:
    """Shapes of the model; the defaults are those of rwkv-4-169m-pile."""

    layers: int = 12
    dim: int = 768
    hidden: int = 3072
    vocab: int = 50277
    eps: float = 1e-5


class LayerState(NamedTuple):
    """What a layer keeps of the past, each float32 [dim].

    channel, time: what the channel mix and the time mix were given for the last token. The weighted sums of all values and of
    all weights so far are numerator * exp(exponent) and denominator * exp(exponent); papers call the three aa, bb, pp.
    """

    channel: Array
    time: Array
    numerator: Array
    denominator: Array
    exponent: Array


Weights = dict[str, Array]
State = tuple[LayerState, ...]


def empty_state(c: Config) -> State:
    """The state before the first token."""
    zero, empty = devrt.zeros(c.dim).realize(), devrt.full(c.dim, EMPTY).realize()
    return (LayerState(zero, zero, zero, zero, empty),) * c.layers


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """Every weight's name and shape, as in a Hugging Face checkpoint."""
    norm, out = ("weight", "bias"), {"rwkv.embeddings.weight": (c.vocab, c.dim)}
    out |= {f"rwkv.blocks.0.pre_ln.{n}": (c.dim,) for n in norm}
    for layer in range(c.layers):
        at = f"rwkv.blocks.{layer}"
        out |= {f"{at}.{ln}.{n}": (c.dim,) for ln in ("ln1", "ln2") for n in norm}
        out |= {f"{at}.attention.{n}": (c.dim,) for n in ("time_decay", "time_first")}
        out |= {f"{at}.attention.time_mix_{n}": (1, 1, c.dim) for n in ("key", "value", "receptance")}
        out |= {f"{at}.attention.{n}.weight": (c.dim, c.dim) for n in ("key", "value", "receptance", "output")}
        out |= {f"{at}.feed_forward.time_mix_{n}": (1, 1, c.dim) for n in ("key", "receptance")}
        out |= {f"{at}.feed_forward.key.weight": (c.hidden, c.dim), f"{at}.feed_forward.receptance.weight": (c.dim, c.dim),
                f"{at}.feed_forward.value.weight": (c.dim, c.hidden)}
    return out | {f"rwkv.ln_out.{n}": (c.dim,) for n in norm} | {"head.weight": (c.vocab, c.dim)}


def random_weights(c: Config, seed: int = 0) -> Weights:
    """Matrices of variance 1/fan_in, mixes in [0, 1], time_decay and time_first over the ranges they are initialised to
    (the paper's appendix E): memories of one token up to about 150."""
    if (need := 4 * sum(map(math.prod, shapes(c).values()))) > devrt.devices()[0].memory_bytes:
        raise devrt.OutOfMemory(f"weights of {need / 1e9:.0f} GB don't fit in memory", remedy="use fewer layers or a smaller dim")
    rng = np.random.default_rng(seed)

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        kind = name.rsplit(".", 1)[-1]
        if kind == "time_decay":
            return np.linspace(-5, 3, c.dim)
        if kind.startswith("time_mix"):
            return rng.random(shape)
        if len(shape) == 1 and kind == "weight":
            return np.ones(shape)
        spread = {"time_first": 0.5, "bias": 0.1}.get(kind, 1 if "embeddings" in name else shape[-1] ** -0.5)
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(spread)
    return {name: devrt.asarray(value(name, shape).astype(np.float32)) for name, shape in shapes(c).items()}


def wkv_step(w: Array, u: Array, k: Array, v: Array, s: LayerState) -> tuple[Array, LayerState]:
    """The weighted mean of all values for one token, and the sums with it added; every array is [dim].

    Weights are exp(k) of the token times exp(w), w < 0, for each step since; the newest has exp(u + k) instead. All sums are
    kept relative to their greatest exponent, so that no exponential exceeds 1.
    """
    top = devrt.maximum(s.exponent, u + k)
    old, new = devrt.exp(s.exponent - top), devrt.exp(u + k - top)
    mean = (old * s.numerator + new * v) / (old * s.denominator + new)
    top = devrt.maximum(s.exponent + w, k)
    old, new = devrt.exp(s.exponent + w - top), devrt.exp(k - top)
    return mean, s._replace(numerator=old * s.numerator + new * v, denominator=old * s.denominator + new, exponent=top)


def wkv_chunk(w: Array, u: Array, k: Array, v: Array, s: LayerState) -> tuple[Array, LayerState]:
    """What t calls of wkv_step give for k, v [t, dim], each sum written out over the chunk: no step waits for another."""
    t = k.shape[0]
    rows = devrt.arange(t)
    since = devrt.expand_dims(rows, axis=1) - rows  # [t, t]: tokens from key j to query i
    decayed = devrt.expand_dims(since - 1, axis=2) * w + k
    weight = devrt.where(devrt.expand_dims(since == 0, axis=2), u + k, decayed)
    weight = devrt.where(devrt.expand_dims(since < 0, axis=2), -devrt.inf, weight)  # [t, t, dim], exponents
    past = devrt.expand_dims(rows, axis=1) * w + s.exponent
    top = devrt.maximum(past, weight.max(axis=1))
    old, new = devrt.exp(past - top), devrt.exp(weight - devrt.expand_dims(top, axis=1))
    mean = (old * s.numerator + (new * v).sum(axis=1)) / (old * s.denominator + new.sum(axis=1))
    weight, past = devrt.expand_dims(t - 1 - rows, axis=1) * w + k, s.exponent + t * w
    last = devrt.maximum(past, weight.max(axis=0))
    old, new = devrt.exp(past - last), devrt.exp(weight - last)
    return mean, s._replace(numerator=old * s.numerator + (new * v).sum(axis=0),
                            denominator=old * s.denominator + new.sum(axis=0), exponent=last)


def wkv(w: Array, u: Array, k: Array, v: Array, s: LayerState) -> tuple[Array, LayerState]:
    """Means [t, dim] for k, v [t, dim], and the sums after them."""
    if k.shape[0] == 1:
        mean, s = wkv_step(w, u, k[0], v[0], s)
        return devrt.expand_dims(mean, axis=0), s
    means = []
    for at in range(0, k.shape[0], PIECE):
        mean, s = wkv_chunk(w, u, k[at:at + PIECE], v[at:at + PIECE], s)
        means.append(mean)
    return devrt.concat(means, axis=0), s


def forward(c: Config, w: Weights, tokens: Array, state: State) -> tuple[Array, State]:
    """Logits [vocab] for what follows tokens [t], t >= 1, and the state after them: float32, whatever the weights are stored as.
    A long text goes in by chunks, since the graph grows with t."""
    t = tokens.shape[0]

    def norm(name: str, x: Array) -> Array:
        return nn.layer_norm(x, w[f"rwkv.{name}.weight"], w[f"rwkv.{name}.bias"], eps=c.eps)

    def vector(name: str) -> Array:
        return w[f"rwkv.{name}"].astype(devrt.float32).reshape(c.dim)

    def shifted(x: Array, last: Array) -> Array:
        """x [t, dim] one token late, `last` before it."""
        first = devrt.expand_dims(last, axis=0)
        return first if t == 1 else devrt.concat([first, x[:-1]], axis=0)

    x = norm("blocks.0.pre_ln", nn.embedding(w["rwkv.embeddings.weight"], tokens).astype(devrt.float32))
    after = []
    for layer, s in enumerate(state):
        at = f"blocks.{layer}"

        def mixed(name: str, h: Array, before: Array, at: str = at) -> Array:
            """The projection `name` of h and what was before it, mixed channel by channel."""
            part, _, kind = name.partition(".")
            mix = vector(f"{at}.{part}.time_mix_{kind}")
            return nn.linear(h * mix + before * (1 - mix), w[f"rwkv.{at}.{name}.weight"])
        h = norm(f"{at}.ln1", x)
        before = shifted(h, s.time)
        r, k, v = (mixed(f"attention.{n}", h, before) for n in ("receptance", "key", "value"))
        s = s._replace(time=h[t - 1])
        decay, first = -devrt.exp(vector(f"{at}.attention.time_decay")), vector(f"{at}.attention.time_first")
        mean, s = wkv(decay, first, k, v, s)
        x = x + nn.linear(devrt.sigmoid(r) * mean, w[f"rwkv.{at}.attention.output.weight"])

        h = norm(f"{at}.ln2", x)
        before = shifted(h, s.channel)
        r, k = (mixed(f"feed_forward.{n}", h, before) for n in ("receptance", "key"))
        after.append(s._replace(channel=h[t - 1]))
        x = x + devrt.sigmoid(r) * nn.linear(nn.squared_relu(k), w[f"rwkv.{at}.feed_forward.value.weight"])
    return nn.linear(norm("ln_out", x[t - 1]), w["head.weight"]), tuple(after)


def step(c: Config, w: Weights, token: Array, state: State) -> tuple[Array, State]:
    """Logits [vocab] for what follows `token` [] (an integer), and the state after it."""
    return forward(c, w, token.reshape(1), state)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer; give 1 or more")
    return int(text)


def main() -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    for name, value in (("layers", 12), ("dim", 768), ("tokens", 64), ("prompt", 64)):
        parser.add_argument(f"--{name}", type=positive, default=value, help=f"{value} by default")
    args = parser.parse_args()
    return guarded(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Make the model, read a prompt, generate, print figures."""
    if args.layers > MAX_LAYERS:
        raise devrt.InvalidArgument(f"{args.layers} layers are more than {MAX_LAYERS}", remedy="use fewer")
    c = Config(layers=args.layers, dim=args.dim, hidden=4 * args.dim)
    w = random_weights(c)
    print(f"RWKV-4: {sum(a.size for a in w.values()) / 1e6:.0f}M float32 parameters, {c.layers} x {c.dim}, random, exact tier")

    def chosen(tokens: Array, state: State) -> tuple[Array, State]:
        logits, state = forward(c, w, tokens, state)
        return devrt.argmax(logits).reshape(1), state
    step = devrt.capture(chosen)
    prompt = (7 * np.arange(args.prompt) + 1) % c.vocab
    whole = len(prompt) // CHUNK * CHUNK
    pieces = [prompt[n:n + CHUNK] for n in range(0, whole, CHUNK)] + [prompt[n:n + 1] for n in range(whole, len(prompt))]

    def read_prompt() -> tuple[Array, State]:
        state, token = empty_state(c), devrt.asarray(prompt[:1])
        for piece in pieces:
            token, state = step(devrt.asarray(piece), state)
        return token.wait(), state
    begin = time.perf_counter()
    token, state = read_prompt()
    step(token, state)[0].wait()  # the one-token step
    print(f"compile  {time.perf_counter() - begin:.2f} s with the first prompt")
    begin = time.perf_counter()
    token, state = read_prompt()
    print(f"prompt   {len(prompt)} tokens: {len(prompt) / (time.perf_counter() - begin):.0f} tokens/s")
    out, stamps = [], [time.perf_counter()]
    for _ in range(args.tokens):
        # The next step is queued before this one's token is looked at: the device does not wait for Python.
        read_now, (token, state) = token, step(token, state)
        out.append(int(read_now.numpy()[0]))
        stamps.append(time.perf_counter())
    times = np.diff(stamps)
    read = sum(a.nbytes for name, a in w.items() if "embeddings" not in name)
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    print(f"decode   {len(times)} tokens: {len(times) / sum(times):.1f} tokens/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms a token, "
          f"weights read at {read * len(times) / sum(times) / 1e9:.1f} GB/s")
    print(f"state    {sum(a.nbytes for s in state for a in s) / 1024:.0f} KiB, at every position")
    print("tokens   " + " ".join(map(str, out[:12])))
    return OK


if __name__ == "__main__":
    sys.exit(main())
