"""The op suite: every operation over the types it takes, as functions of arrays. A device passes when it gives the CPU's bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import devrt
from devrt import nn
from devrt.array import Array
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType

Inputs = dict[str, np.ndarray[Any, Any]]
FLOATS = (dt.float32, dt.float64, dt.float16, dt.bfloat16)
INTEGERS = (dt.int8, dt.int16, dt.int32, dt.int64, dt.uint8, dt.uint16, dt.uint32, dt.uint64)
NARROW = (dt.float8_e4m3, dt.float8_e5m2, dt.int4)
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-45, 3e38, -3e38, 1e-30, 65504.0, 6e-8, 0.5, 1e20,
                    2.5, 3.5], np.float32)


@dataclass(frozen=True)
class Case:
    """`compute` makes an Array, or several, of the `inputs` (NumPy arrays) as Arrays."""

    name: str
    compute: Callable[..., Any]
    inputs: tuple[np.ndarray[Any, Any], ...]


def reals(*shape: int, seed: int = 0, scale: float = 3.0) -> np.ndarray[Any, Any]:
    """Normal numbers."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def pairs() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Every special number with every other, and random ones."""
    a, b = (x.reshape(-1) for x in np.meshgrid(SPECIAL, SPECIAL))
    return np.concatenate([a, reals(100, seed=1)]), np.concatenate([b, reals(100, seed=2)])


def whole(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Integers over all of int64, small ones as well."""
    rng = np.random.default_rng(seed)
    wide = rng.integers(-2**63, 2**63 - 1, shape, dtype=np.int64)
    return np.where(rng.random(shape) < 0.5, wide >> 40, wide)


def _unary() -> Iterator[Case]:
    smooth = ("exp", "exp2", "log", "log2", "sin", "cos", "tan", "tanh", "sqrt", "erf", "sigmoid", "reciprocal", "square",
              "floor", "ceil", "trunc", "round", "abs", "negative", "sign", "isnan", "isinf", "isfinite", "signbit")
    x = np.concatenate([SPECIAL, reals(200), reals(100, seed=3, scale=1e4)])
    for name in smooth:
        for d in FLOATS if name in ("exp", "sqrt", "floor", "round", "tanh") else (dt.float32,):
            yield Case(f"{name} {d}", lambda x, name=name, d=d: getattr(devrt, name)(x.astype(d)), (x,))
    for name in ("gelu", "silu", "squared_relu", "relu"):
        yield Case(f"nn.{name}", lambda x, name=name: getattr(nn, name)(x), (x,))
    n = whole(300)
    for d in INTEGERS:
        def signs(n: Array, d: DType = d) -> list[Array]:
            return [f(n.astype(d)) for f in (devrt.abs, devrt.negative, devrt.bitwise_invert)]
        yield Case(f"integers {d}", signs, (n,))


def _binary() -> Iterator[Case]:
    a, b = pairs()
    for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum", "less", "equal", "greater_equal", "not_equal",
                 "remainder", "floor_divide"):
        for d in FLOATS if name in ("add", "divide", "maximum", "multiply") else (dt.float32,):
            yield Case(f"{name} {d}", lambda a, b, name=name, d=d: getattr(devrt, name)(a.astype(d), b.astype(d)), (a, b))
    yield Case("pow", lambda a, b: devrt.pow(devrt.abs(a), b), (reals(200), reals(200, seed=5)))
    yield Case("fma", lambda a, b: devrt.fma(a, b, a), (a, b))
    m, n = whole(300), whole(300, seed=1)
    for d in INTEGERS:
        def mixed(m: Array, n: Array, d: DType = d) -> list[Array]:
            x, y = m.astype(d), n.astype(d)
            return [x + y, x * y, x - y, devrt.floor_divide(x, y), devrt.remainder(x, y), x & y, x | y, x ^ y,
                    devrt.maximum(x, y), x < y]
        yield Case(f"arithmetic {d}", mixed, (m, n))
        yield Case(f"shifts {d}", lambda m, n, d=d: [m.astype(d) << (n & 70).astype(d), m.astype(d) >> (n & 70).astype(d)],
                   (m, n))
    yield Case("where", lambda a, b: devrt.where(a < b, a, b), (a, b))


def _casts() -> Iterator[Case]:
    x, n = np.concatenate([SPECIAL, reals(300), reals(100, scale=1e6)]), whole(300)
    for d in (*FLOATS, *INTEGERS, *NARROW, dt.bool_):
        yield Case(f"cast to {d}", lambda x, n, d=d: [x.astype(d), x.astype(dt.float64).astype(d), n.astype(d)], (x, n))
    for d in (*NARROW, dt.float16, dt.bfloat16):
        yield Case(f"cast from {d}", lambda x, d=d: [x.astype(d).astype(dt.float32), x.astype(d).astype(dt.int32)], (x,))


def _movement() -> Iterator[Case]:
    x = reals(6, 5, 8)
    i = np.array([3, 0, 5, -1, 9], np.int64)
    moves: dict[str, Callable[..., Any]] = {
        "permute": lambda x: devrt.permute_dims(x, (2, 0, 1)), "reshape": lambda x: x.reshape(8, 30) + 1.0,
        "slice": lambda x: x[1:5, ::-2, 3:], "flip": lambda x: devrt.flip(x, axis=1),
        "pad": lambda x: devrt.pad(x, ((1, 2), (0, 0), (3, 1))),
        "concat": lambda x: devrt.concat([x, x * 2.0], axis=1), "stack": lambda x: devrt.stack([x, x + 1.0], axis=2),
        "tile": lambda x: devrt.tile(x, (2, 1, 3)), "repeat": lambda x: devrt.repeat(x, 3, axis=1),
        "roll": lambda x: devrt.roll(x, 2, axis=0),
        "tril": lambda x: devrt.tril(x), "expand": lambda x: devrt.broadcast_to(x, (3, 6, 5, 8)) + 0.0,
    }
    for name, f in moves.items():
        yield Case(name, f, (x,))
    yield Case("gather", lambda x, i: [devrt.take(x, i, axis=0), devrt.take(x, i, axis=2), x[i]], (x, i))
    yield Case("update rows", lambda x, r: devrt.update_rows(x, r, 2), (reals(20, 6), reals(4, 6, seed=1)))
    yield Case("sources", lambda x: [x[0, 0] * 0.0 + devrt.arange(8), devrt.eye(4) + x[0, 0, 0],
                                     devrt.linspace(0, 1, num=7) + x[0, 0, 0]], (x,))


def _reductions() -> Iterator[Case]:
    x, n = reals(7, 50, 9), whole(7, 50, 9) >> 20
    for name in ("sum", "max", "min", "mean", "prod"):
        f = getattr(devrt, name)
        yield Case(f"{name} along", lambda x, f=f: [f(x), *(f(x, axis=a) for a in (0, 1, 2, (0, 2)))], (x * 0.3,))
    for d in (dt.float16, dt.bfloat16, dt.float64):
        yield Case(f"sum {d}", lambda x, d=d: [x.astype(d).sum(), devrt.max(x.astype(d), axis=1)], (x,))
    yield Case("integer sums", lambda n: [n.sum(), devrt.max(n, axis=1), devrt.min(n.astype(dt.int8), axis=0),
                                          n.astype(dt.int32).sum(axis=2)], (n,))
    yield Case("long sum", lambda x: x.sum(), (reals(300000),))
    yield Case("arg", lambda x: [devrt.argmax(x, axis=1), devrt.argmin(x, axis=2), devrt.argmax(x)], (x,))
    yield Case("any all", lambda x: [devrt.any(x > 5.0, axis=1), devrt.all(x > -20.0, axis=0), devrt.count_nonzero(x > 0.0)],
               (x,))
    yield Case("variance", lambda x: [devrt.var(x, axis=1), devrt.std(x, axis=2)], (x,))
    yield Case("running sum", lambda x: devrt.cumulative_sum(x, axis=1), (x,))


def _products() -> Iterator[Case]:
    a, b = reals(70, 100), reals(100, 90, seed=1)
    yield Case("matmul", lambda a, b: a @ b, (a, b))
    yield Case("matmul transposed", lambda a, b: [a @ a.mT, b.mT @ b], (a, b))
    yield Case("matmul large", lambda a, b: a @ b, (reals(130, 300), reals(300, 200, seed=2)))
    yield Case("matmul batch", lambda a, b: a @ b, (reals(3, 20, 40), reals(3, 40, 33, seed=1)))
    for d in (dt.float16, dt.bfloat16, dt.float64, dt.int32):
        yield Case(f"matmul {d}", lambda a, b, d=d: a.astype(d) @ b.astype(d), (a, b))
    yield Case("vector product", lambda a, b: [a[:1] @ b, a @ b[:, :1], devrt.vecdot(a, a)], (a, b))
    yield Case("epilogue", lambda a, b: nn.gelu(a @ b + 1.0) * 0.5, (a, b))
    for bits, group in ((8, None), (4, None), (4, 20), (8, 50)):
        yield Case(f"int{bits} weights, groups {group}", lambda a, b, bits=bits, group=group:
                   nn.quantised_linear(a[:3], *nn.quantise(b.mT, bits, group=group)), (a, b))


def _networks() -> Iterator[Case]:
    x, w = reals(12, 96), reals(96, seed=1)
    yield Case("softmax", lambda x: [nn.softmax(x), nn.log_softmax(x), nn.softmax(x, axis=0)], (x,))
    yield Case("norms", lambda x, w: [nn.rms_norm(x, w), nn.layer_norm(x, w, w),
                                      nn.rms_norm(x.astype(dt.bfloat16), w, cast="before_weight")], (x, w))
    yield Case("rms_norm backward", lambda x, w: list(nn.rms_norm_backward(x, x * 2.0, w)), (x, w))

    def turned(x: Array) -> Array:
        cos, sin = nn.rope_tables(devrt.arange(12) + 8000, 24)
        return nn.rope(x.reshape(12, 4, 24), devrt.expand_dims(cos, axis=1), devrt.expand_dims(sin, axis=1))
    yield Case("rope", turned, (x,))
    yield Case("swiglu", lambda x: nn.swiglu(x, x * 0.5), (x,))
    yield Case("cross entropy", lambda x, i: [nn.cross_entropy(x, i), nn.cross_entropy(x, i, chunks=5)], (x, np.arange(12)))
    q, k = reals(1, 4, 33, 24), reals(1, 2, 33, 24, seed=1)
    yield Case("attention", lambda q, k: nn.attention(q, k, k * 0.5), (q, k))
    yield Case("attention causal", lambda q, k: [nn.attention(q, k, k, causal=True),
                                                 nn.attention(q, k, k, causal=True, window=9, cap=20.0)], (q, k))
    yield Case("attention of one query", lambda q, k: nn.attention(q[:, :, :1], k, k), (q, k))
    yield Case("sampling", lambda x: [nn.sample(x, seed=3), nn.sample(x, temperature=0.7, top_k=20, top_p=0.9, seed=4)],
               (x,))
    yield Case("random", lambda x: [devrt.random_normal((500,), seed=5) + x[0, 0],
                                    devrt.random_bits((100,), seed=6) ^ (x[0, 0] > 9.0).astype(dt.uint32)], (x,))
    yield Case("embedding", lambda x, i: nn.embedding(x, i), (x, np.array([3, 3, 11, 0])))


CASES = {c.name: c for c in (*_unary(), *_binary(), *_casts(), *_movement(), *_reductions(), *_products(), *_networks())}


def results(case: Case, device: str) -> list[tuple[str, bytes]]:
    """(type and shape, bytes) of what a case computes on a device."""
    made = case.compute(*(devrt.asarray(x, device=device) for x in case.inputs))
    arrays = list(made) if isinstance(made, (list, tuple)) else [made]
    devrt.realize(*arrays)
    return [(f"{a.dtype}{list(a.shape)}", a._raw().tobytes()) for a in arrays]
