"""A Llama/Mistral decoder: RMSNorm, RoPE, grouped-query attention over a KV cache, gated MLP, sampling.

    model = Decoder(config, weights)
    for token in model.generate([1, 15043, 3186], 100, temperature=0.8, top_p=0.95): ...

A step is captured once a shape and bucket and replayed after that; the cache is donated, so only new rows are written.
Activations are float32; weights are widened in registers, whatever they are stored in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from checkpoint import EMBEDDING, HEAD, LAST_NORM, Config

import devrt
from devrt import Array, nn

Cache = list[tuple[Array, Array]]  # keys and values of each layer, [length, kv_heads, head_dim]
Tap = Callable[[str, Array], None]  # is told the name and value of what a layer computed
SMALLEST_SPAN = 128  # rows of the cache that attention looks at
LARGEST_CHUNK = 512  # tokens of a prompt in one step
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu, "gelu": nn.gelu, "gelu_pytorch_tanh": lambda x: nn.gelu(x, approximate="tanh")}


class Quantised(NamedTuple):
    """A matrix as nn.quantise gives it: codes int8 or int4 [n, k], scales float32 [n, k/group]."""

    codes: Array
    scales: Array


Weight = Array | Quantised


def quantise(weights: Mapping[str, Array], bits: Literal[8, 4], group: int | None = None) -> dict[str, Weight]:
    """`weights` with every matrix quantised, the embedding too; vectors stay as they are."""
    made: dict[str, Weight] = {}
    for name, w in weights.items():
        if w.ndim == 2:
            codes, scales = nn.quantise(w, bits, group=group)
            made[name] = Quantised(codes.realize(), scales.wait())
        else:
            made[name] = w
    return made


def linear(x: Array, w: Weight, bias: Array | None = None) -> Array:
    """x [.., k] times w [n, k] transposed, in float32."""
    y = nn.quantised_linear(x, *w) if isinstance(w, Quantised) else nn.linear(x, w.astype(devrt.float32))
    return y if bias is None else y + bias.astype(devrt.float32)


def embed(w: Weight, tokens: Array) -> Array:
    """Rows of the embedding in float32."""
    if not isinstance(w, Quantised):
        return nn.embedding(w, tokens).astype(devrt.float32)
    codes, scales = nn.embedding(w.codes, tokens), nn.embedding(w.scales, tokens)
    groups = scales.shape[-1]
    rows = codes.astype(devrt.float32).reshape(*tokens.shape, groups, -1) * devrt.expand_dims(scales, axis=-1)
    return rows.reshape(*tokens.shape, -1)


def frequencies(c: Config) -> np.ndarray[Any, np.dtype[np.float32]]:
    """RoPE's radians a position for each pair, float32 [head_dim/2]; see checkpoint.RopeScaling."""
    base = c.rope_theta ** -(np.arange(0, c.head_dim, 2, dtype=np.float64) / c.head_dim)
    s = c.rope_scaling
    if s is None:
        return base.astype(np.float32)
    if s.kind == "linear":
        return (base / s.factor).astype(np.float32)
    turns = s.original_context * base / (2 * math.pi)  # over the context the model was first trained on
    smooth = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)
    return (base * (smooth + (1 - smooth) / s.factor)).astype(np.float32)


class Decoder:
    """A decoder with its weights, named as Hugging Face names them."""

    def __init__(self, config: Config, weights: Mapping[str, Weight]) -> None:
        self.config, self.weights = config, dict(weights)
        first = self.weights[EMBEDDING]
        self.device = (first.codes if isinstance(first, Quantised) else first).device
        self.frequencies = self.array(frequencies(config))
        self._step = devrt.capture(self._traced_step, donate=("cache",))
        self._fill = devrt.capture(self._traced_fill, donate=("cache",))

    def array(self, values: Any) -> Array:
        """Numbers on the device of the weights."""
        return devrt.asarray(np.array(values), device=self.device)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that decoding one token reads: all but the embedding, of which it reads a row, unless it is the
        head too."""
        skipped = () if self.config.tie_embeddings else (EMBEDDING,)
        arrays = [a for name, w in self.weights.items() if name not in skipped for a in (w if isinstance(w, Quantised) else (w,))]
        return sum(a.dtype.nbytes(a.size) for a in arrays)

    @property
    def shapes(self) -> int:
        """How many steps of different shapes have been captured."""
        return len(self._step.recordings) + len(self._fill.recordings)

    def new_cache(self, length: int) -> Cache:
        """An empty cache for `length` positions."""
        shape = (length, self.config.kv_heads, self.config.head_dim)
        def empty() -> Array: return devrt.zeros(shape, device=self.device).realize()
        return [(empty(), empty()) for _ in range(self.config.layers)]

    # ----- running

    def generate(self, prompt: Sequence[int], count: int, *, context: int | None = None, stop: Sequence[int] = (),
                 cache: Cache | None = None, **sampling: Any) -> Iterator[int]:
        """Up to `count` tokens that follow `prompt`, ending with one of `stop`. The cache has room for `context` positions
        (as many as are needed, unless given; a `cache` of one's own is used up). `sampling` goes to nn.sample; without it
        the best token is taken. Raises InvalidArgument for tokens outside the vocabulary and texts longer than the cache.
        """
        wrong = [t for t in prompt if not 0 <= t < self.config.vocab]
        if wrong or not prompt:
            raise devrt.InvalidArgument("a prompt is one token or more of the vocabulary", remedy="use this model's tokenizer",
                                        evidence=f"{wrong[0]} is outside 0..{self.config.vocab - 1}" if wrong else "it is empty")
        end = len(prompt) + count
        cache = cache if cache is not None else self.new_cache(context or max(end, SMALLEST_SPAN))
        check_room(end, cache[0][0].shape[0])
        token, position, cache = self.prefill(prompt, cache, **sampling)
        for n in range(1, count + 1):
            following = None
            if n < count:  # queued before this token is looked at: the device does not wait for the host
                following, position, cache = self.step(token, position, cache, end=len(prompt) + n, **sampling)
            value = int(token.numpy()[0])
            yield value
            if following is None or value in stop:
                return
            token = following

    def prefill(self, prompt: Sequence[int], cache: Cache, **sampling: Any) -> tuple[Array, Array, Cache]:
        """(next token [1], its position, cache) after `prompt`, which goes through in pieces of a power of two."""
        at, pieces = 0, chunks(len(prompt))
        for size in pieces[:-1]:
            here, tokens = self.array(at), self.array(prompt[at:at + size])
            cache = self._fill(tokens, here, cache, span=span(at + size, cache[0][0].shape[0]), first=at == 0)
            at += size
        return self.step(self.array(prompt[at:]), self.array(at), cache, end=len(prompt), first=at == 0, **sampling)

    def step(self, tokens: Array, position: Array, cache: Cache, *, end: int, first: bool = False,
             **sampling: Any) -> tuple[Array, Array, Cache]:
        """(the token that follows [1], its position, cache) after `tokens` [t] at `position` (an integer scalar), queued and
        not waited for. `end` is the position after these tokens; `first` says that they are the first."""
        return self._step(tokens, position, cache, span=span(end, cache[0][0].shape[0]), first=first, **sampling)

    def _traced_step(self, tokens: Array, position: Array, cache: Cache, *, span: int, first: bool,
                     temperature: float = 0.0, **sampling: Any) -> tuple[Array, Array, Cache]:
        hidden, cache = self.forward(tokens, position, cache, span=span, first=first)
        logits = self.logits(hidden[tokens.shape[0] - 1:])
        after = position + tokens.shape[0]
        return nn.sample(logits, temperature=temperature, stream=after, **sampling), after, cache

    def _traced_fill(self, tokens: Array, position: Array, cache: Cache, *, span: int, first: bool) -> Cache:
        return self.forward(tokens, position, cache, span=span, first=first)[1]

    # ----- the model

    def logits(self, hidden: Array) -> Array:
        """float32 [t, vocab] of hidden states [t, dim]."""
        w, c = self.weights, self.config
        return linear(norm(hidden, w[LAST_NORM], c), w[EMBEDDING if c.tie_embeddings else HEAD])

    def forward(self, tokens: Array, position: Array, cache: Cache, *, span: int, first: bool = False,
                tap: Tap | None = None) -> tuple[Array, Cache]:
        """(hidden states float32 [t, dim], cache) of `tokens` [t] from `position` on; attention looks at the cache's first
        `span` rows. `first`: the position is 0, so attention needs the new keys alone."""
        c, w = self.config, self.weights
        positions = devrt.arange(tokens.shape[0]) + position
        tables = nn.rope_tables(positions, c.head_dim, frequencies=self.frequencies)
        x = embed(w[EMBEDDING], tokens)
        grown: Cache = []
        for n, (keys, values) in enumerate(cache):
            layer = Layer(c, w, f"model.layers.{n}.")
            q, k, v = layer.heads(norm(x, layer["input_layernorm.weight"], c), *tables)
            keys, values = devrt.update_rows(keys, k, position), devrt.update_rows(values, v, position)
            grown.append((keys, values))
            mixed = attend_new(c, q, k, v) if first else attend_cache(c, q, keys[:span], values[:span], positions)
            x = x + layer.project("self_attn.o_proj", mixed)
            x = x + layer.mlp(norm(x, layer["post_attention_layernorm.weight"], c))
            if tap is not None:
                tap(f"model.layers.{n}", x)
        return x, grown


class Layer:
    """One layer's weights by their short names."""

    def __init__(self, config: Config, weights: Mapping[str, Weight], prefix: str) -> None:
        self.config, self.weights, self.prefix = config, weights, prefix

    def __getitem__(self, name: str) -> Weight:
        return self.weights[self.prefix + name]

    def project(self, name: str, x: Array) -> Array:
        bias = self.weights.get(f"{self.prefix}{name}.bias")
        return linear(x, self[f"{name}.weight"], bias if isinstance(bias, Array) else None)

    def heads(self, h: Array, cos: Array, sin: Array) -> tuple[Array, Array, Array]:
        """q [t, heads, head_dim], k and v [t, kv_heads, head_dim] of h [t, dim], q and k turned by their positions."""
        c, t = self.config, h.shape[0]
        q = self.project("self_attn.q_proj", h).reshape(t, c.heads, c.head_dim)
        k = self.project("self_attn.k_proj", h).reshape(t, c.kv_heads, c.head_dim)
        v = self.project("self_attn.v_proj", h).reshape(t, c.kv_heads, c.head_dim)
        cos, sin = devrt.expand_dims(cos, axis=1), devrt.expand_dims(sin, axis=1)
        return nn.rope(q, cos, sin), nn.rope(k, cos, sin), v

    def mlp(self, h: Array) -> Array:
        gate = ACTIVATIONS[self.config.act](self.project("mlp.gate_proj", h))
        return self.project("mlp.down_proj", gate * self.project("mlp.up_proj", h))


def norm(x: Array, weight: Weight, c: Config) -> Array:
    assert isinstance(weight, Array)
    return nn.rms_norm(x, weight.astype(devrt.float32), eps=c.norm_eps)


def attend_new(c: Config, q: Array, k: Array, v: Array) -> Array:
    """Causal attention of t positions among themselves, [t, heads * head_dim]."""
    mixed = nn.attention(*(devrt.moveaxis(x, 1, 0) for x in (q, k, v)), causal=True, window=c.window)
    return devrt.moveaxis(mixed, 0, 1).reshape(q.shape[0], -1)


def attend_cache(c: Config, q: Array, keys: Array, values: Array, positions: Array) -> Array:
    """Attention of t positions over the rows [span, kv_heads, head_dim] of a cache, [t, heads * head_dim]: each sees the
    rows up to its own position, and with a window only the last of those."""
    t, group = q.shape[0], c.heads // c.kv_heads
    slots, own = devrt.arange(keys.shape[0]), devrt.expand_dims(positions, axis=1)
    visible = slots <= own
    if c.window is not None:
        visible = devrt.logical_and(visible, slots > own - c.window)
    rows = devrt.moveaxis(q, 1, 0).reshape(c.kv_heads, group * t, c.head_dim)  # heads that share keys are one product
    scores = rows @ devrt.permute_dims(keys, (1, 2, 0)) * c.head_dim**-0.5
    scores = devrt.where(devrt.tile(visible, (group, 1)), scores, -devrt.inf)
    mixed = nn.softmax(scores) @ devrt.moveaxis(values, 1, 0)
    return devrt.moveaxis(mixed.reshape(c.heads, t, c.head_dim), 0, 1).reshape(t, -1)


def check_room(end: int, length: int) -> None:
    if end > length:
        raise devrt.InvalidArgument(f"a cache of {length} positions has no room for {end}",
                                    remedy="make it longer (context), or ask for fewer tokens")


def span(end: int, length: int) -> int:
    """The rows of a cache of `length` that attention up to position `end` looks at: a power of two, to capture few steps."""
    check_room(end, length)
    return min(length, max(SMALLEST_SPAN, 1 << (end - 1).bit_length()))


def chunks(count: int) -> list[int]:
    """Powers of two, at most LARGEST_CHUNK, that add up to `count`: any prompt is made of few shapes."""
    whole, rest = divmod(count, LARGEST_CHUNK)
    return [LARGEST_CHUNK] * whole + [1 << b for b in reversed(range(LARGEST_CHUNK.bit_length())) if rest >> b & 1]
