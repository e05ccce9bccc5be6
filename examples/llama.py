"""A Llama-style decoder on random weights of the right shapes: RMSNorm, RoPE, grouped-query attention with a KV cache, SwiGLU.

    python examples/llama.py [--layers 8] [--dim 512] [--tokens 32] [--prompt 64]

Every step is a captured function: after the first token no Python runs per kernel.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

import devrt
from devrt import nn


@dataclass(frozen=True)
class Config:
    """Shapes of the model; `context` is the length of the KV cache."""

    layers: int = 8
    dim: int = 512
    heads: int = 8
    kv_heads: int = 4
    hidden: int = 1408
    vocab: int = 32000
    context: int = 256

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


Weights = dict[str, devrt.Array]
Cache = list[tuple[devrt.Array, devrt.Array]]


def random_weights(c: Config, seed: int = 0) -> Weights:
    """Weights of variance 1/fan_in, so that activations stay of order 1."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> devrt.Array:
        return devrt.asarray(rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(columns)))
    w = {"embedding": devrt.asarray(rng.standard_normal((c.vocab, c.dim), dtype=np.float32)), "norm": devrt.ones(c.dim)}
    kv = c.kv_heads * c.head_dim
    for n in range(c.layers):
        w |= {f"{n}.q": matrix(c.dim, c.dim), f"{n}.k": matrix(kv, c.dim), f"{n}.v": matrix(kv, c.dim),
              f"{n}.o": matrix(c.dim, c.dim), f"{n}.gate": matrix(c.hidden, c.dim), f"{n}.up": matrix(c.hidden, c.dim),
              f"{n}.down": matrix(c.dim, c.hidden), f"{n}.norm1": devrt.ones(c.dim), f"{n}.norm2": devrt.ones(c.dim)}
    return w | {"head": matrix(c.vocab, c.dim)}


def forward(c: Config, w: Weights, tokens: devrt.Array, start: devrt.Array, cache: Cache) -> tuple[devrt.Array, Cache]:
    """Logits [vocab] after `tokens` [t] at positions start.., and the caches [kv_heads, context, head_dim] with them added."""
    t = tokens.shape[0]
    positions = devrt.arange(t) + start
    cos, sin = nn.rope_tables(positions, c.head_dim)
    slots = devrt.arange(c.context)
    x = nn.embedding(w["embedding"], tokens)
    grown: Cache = []
    for n, (keys, values) in enumerate(cache):
        h = nn.rms_norm(x, w[f"{n}.norm1"])

        def heads(name: str, count: int, h: devrt.Array = h) -> devrt.Array:
            return devrt.moveaxis(nn.linear(h, w[name]).reshape(t, count, c.head_dim), 1, 0)
        q = nn.rope(heads(f"{n}.q", c.heads), cos, sin)
        k = nn.rope(heads(f"{n}.k", c.kv_heads), cos, sin)
        v = heads(f"{n}.v", c.kv_heads)
        # Slot s of the cache takes row s - start of what is new: a bounded gather, chosen where that row exists.
        row = slots - start
        fresh = devrt.expand_dims(devrt.logical_and(row >= 0, row < t), axis=1)
        clipped = devrt.clip(row, 0, t - 1)
        keys = devrt.where(fresh, devrt.take(k, clipped, axis=1), keys)
        values = devrt.where(fresh, devrt.take(v, clipped, axis=1), values)
        grown.append((keys, values))
        visible = slots <= devrt.expand_dims(positions, axis=1)
        group = c.heads // c.kv_heads
        q = q.reshape(c.kv_heads, group * t, c.head_dim)
        mask = devrt.tile(visible, (group, 1))
        scores = devrt.where(mask, q @ keys.mT * c.head_dim**-0.5, -devrt.inf)
        mixed = (nn.softmax(scores) @ values).reshape(c.heads, t, c.head_dim)
        x = x + nn.linear(devrt.moveaxis(mixed, 0, 1).reshape(t, c.dim), w[f"{n}.o"])
        h = nn.rms_norm(x, w[f"{n}.norm2"])
        x = x + nn.linear(nn.swiglu(nn.linear(h, w[f"{n}.gate"]), nn.linear(h, w[f"{n}.up"])), w[f"{n}.down"])
    last = nn.rms_norm(x[t - 1:], w["norm"])
    return nn.linear(last, w["head"])[0], grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("layers", 8), ("dim", 512), ("tokens", 32), ("prompt", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    c = Config(layers=args.layers, dim=args.dim, context=max(256, args.prompt + args.tokens))
    w = random_weights(c)
    devrt.realize(*w.values())
    size = sum(a.size for a in w.values())
    print(f"llama-style model: {size / 1e6:.0f}M parameters in float32, {c.layers} layers, random weights, exact tier")

    empty = devrt.zeros((c.kv_heads, c.context, c.head_dim)).realize()
    cache: Cache = [(empty, empty)] * c.layers
    step = devrt.capture(lambda tokens, start, cache: forward(c, w, tokens, start, cache))

    def generate(tokens: list[int], at: int, cache: Cache) -> tuple[int, Cache]:
        logits, cache = step(devrt.asarray(np.array(tokens)), devrt.asarray(np.array(at)), cache)
        return int(logits.numpy().argmax()), cache

    prompt = [(7 * n + 1) % c.vocab for n in range(args.prompt)]
    begin = time.perf_counter()
    token, cache = generate(prompt, 0, cache)
    print(f"prefill  {len(prompt)} tokens in {time.perf_counter() - begin:.2f} s, compiling included")
    token, cache = generate([token], len(prompt), cache)  # compiles the one-token step
    times, out = [], [token]
    for n in range(args.tokens):
        begin = time.perf_counter()
        token, cache = generate([token], len(prompt) + 1 + n, cache)
        times.append(time.perf_counter() - begin)
        out.append(token)
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    print(f"decode   {args.tokens} tokens: {len(times) / sum(times):.1f} tokens/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms a token, "
          f"weights read at {4 * (size - w['embedding'].size) * len(times) / sum(times) / 1e9:.1f} GB/s")
    print("tokens   " + " ".join(map(str, out[:12])))


if __name__ == "__main__":
    main()
