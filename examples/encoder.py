"""A pre-norm transformer encoder on random weights: layer norms, multi-head attention with biases, an MLP with the exact GELU.

    python examples/encoder.py [--layers 12] [--dim 768] [--heads 12] [--hidden 3072] [--batch 1 8] [--length 128 512]

Weights have the names of torch.nn.TransformerEncoder over TransformerEncoderLayer(norm_first=True, activation="gelu"), so
that the same dict loads there. The batch is of full sequences: there is no padding and no mask.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from dataclasses import dataclass

import numpy as np

import devrt
from devrt import Array, nn
from devrt.cli.exit_codes import OK
from devrt.cli.main import Parser, guarded

MAX_LAYERS = 10_000


@dataclass(frozen=True)
class Config:
    """Shapes of the model; the defaults are BERT-base's."""

    layers: int = 12
    dim: int = 768
    heads: int = 12
    hidden: int = 3072
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise devrt.InvalidArgument(f"{self.heads} heads do not divide a dim of {self.dim}",
                                        remedy="choose a dim that is a multiple of heads")


Weights = dict[str, Array]


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """Every weight's name and shape, as in the state_dict of torch.nn.TransformerEncoder."""
    out: dict[str, tuple[int, ...]] = {}
    matrices = {"self_attn.in_proj_": (3 * c.dim, c.dim), "self_attn.out_proj.": (c.dim, c.dim), "linear1.": (c.hidden, c.dim),
                "linear2.": (c.dim, c.hidden)}
    for layer in range(c.layers):
        for name, (rows, columns) in matrices.items():
            out |= {f"layers.{layer}.{name}weight": (rows, columns), f"layers.{layer}.{name}bias": (rows,)}
        out |= {f"layers.{layer}.{norm}.{n}": (c.dim,) for norm in ("norm1", "norm2") for n in ("weight", "bias")}
    return out | {"norm.weight": (c.dim,), "norm.bias": (c.dim,)}


def random_weights(c: Config, seed: int = 0) -> Weights:
    """Matrices of variance 1/fan_in, small biases, norms that keep the scale."""
    if (need := 4 * sum(map(math.prod, shapes(c).values()))) > devrt.devices()[0].memory_bytes:
        raise devrt.OutOfMemory(f"weights of {need / 1e9:.0f} GB don't fit in memory", remedy="use fewer layers or a smaller dim")
    rng = np.random.default_rng(seed)

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 2:
            return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[1]))
        noise = np.float32(0.1) * rng.standard_normal(shape, dtype=np.float32)
        return noise + np.float32("norm" in name and name.endswith("weight"))
    return {name: devrt.asarray(value(name, shape)) for name, shape in shapes(c).items()}


def forward(c: Config, w: Weights, x: Array) -> Array:
    """The encoded tokens [batch, length, dim] of embedded tokens x [batch, length, dim].

    x + attention(norm1(x)), then x + MLP(norm2(x)), layer by layer, and a last norm: Xiong et al., "On Layer Normalization in
    the Transformer Architecture" (2020), figure 1b.
    """
    batch, length, _ = x.shape

    def norm(x: Array, at: str) -> Array:
        return nn.layer_norm(x, w[f"{at}.weight"], w[f"{at}.bias"], eps=c.eps)

    def linear(x: Array, at: str) -> Array:
        return nn.linear(x, w[f"{at}weight"], w[f"{at}bias"])
    # One matrix of all tokens: products of [tokens, dim], whatever the batch.
    x = x.reshape(batch * length, c.dim)
    for layer in range(c.layers):
        at = f"layers.{layer}"
        qkv = linear(norm(x, f"{at}.norm1"), f"{at}.self_attn.in_proj_")
        q, k, v = devrt.permute_dims(qkv.reshape(batch, length, 3, c.heads, c.dim // c.heads), (2, 0, 3, 1, 4))
        heads = nn.attention(q, k, v)  # [batch, heads, length, dim / heads]
        x = x + linear(devrt.moveaxis(heads, 1, 2).reshape(batch * length, c.dim), f"{at}.self_attn.out_proj.")
        x = x + linear(nn.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.linear1.")), f"{at}.linear2.")
    return norm(x, "norm").reshape(batch, length, c.dim)


def flops(c: Config, batch: int, length: int) -> float:
    """Floating point operations of the products in one forward pass."""
    projections = 2 * (4 * c.dim * c.dim + 2 * c.dim * c.hidden)
    return float(c.layers * batch * length * (projections + 4 * length * c.dim))


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer; give 1 or more")
    return int(text)


def main() -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    for name, value in (("layers", 12), ("dim", 768), ("heads", 12), ("hidden", 3072)):
        parser.add_argument(f"--{name}", type=positive, default=value, help=f"{value} by default")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8], metavar="B", help="sequences in a batch: 1 8")
    parser.add_argument("--length", type=positive, nargs="+", default=[128, 512], metavar="T", help="tokens in each: 128 512")
    args = parser.parse_args()
    return guarded(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Make the model, encode a batch of every size asked for, print figures."""
    if args.layers > MAX_LAYERS:
        raise devrt.InvalidArgument(f"{args.layers} layers are more than {MAX_LAYERS}", remedy="use fewer")
    c = Config(layers=args.layers, dim=args.dim, heads=args.heads, hidden=args.hidden)
    w = random_weights(c)
    print(f"encoder: {sum(a.size for a in w.values()) / 1e6:.0f}M parameters in float32, {c.layers} layers of {c.dim}, "
          f"{c.heads} heads, random weights, exact tier")
    encode = devrt.capture(lambda x: forward(c, w, x))
    rng = np.random.default_rng(1)
    for batch, length in itertools.product(args.batch, args.length):
        x = devrt.asarray(rng.standard_normal((batch, length, c.dim), dtype=np.float32))
        times = []
        for _ in range(4):  # the first compiles
            begin = time.perf_counter()
            encode(x).wait()
            times.append(time.perf_counter() - begin)
        best = min(times[1:])
        print(f"batch {batch:3} x {length:4} tokens: {batch * length / best:7.0f} tokens/s, {best * 1e3:7.1f} ms a batch, "
              f"{flops(c, batch, length) / best / 1e9:5.0f} GFLOP/s, first call {times[0]:.2f} s")
    return OK


if __name__ == "__main__":
    sys.exit(main())
