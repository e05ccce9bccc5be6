"""Runs a function on the cpu device and measures its error in ulps.

One ulp is the distance of floats of the type where the exact value lies: 2^(e - p + 1) for 2^e <= |value| < 2^(e+1),
and that of the denormals below. An infinite result counts as 2^(emax + 1), what it would be with one exponent more; so
overflow at the right place is an error of at most half an ulp.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import mpmath as mp
import numpy as np

from devrt import registry
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Builder, Program
from devrt.compiler.llvm.backend import compile_program
from devrt.compiler.llvm.target import host
from tests.numerics.functions import FUNCTIONS, Array, Function

NUMPY: dict[DType, Any] = {dt.float16: np.float16, dt.bfloat16: ml_dtypes.bfloat16, dt.float32: np.float32,
                           dt.float64: np.float64}
LANES = 16
BLOCK = 1 << 20   # points of a program


@dataclass(frozen=True)
class Measured:
    """The largest and the mean error in ulps, where the largest is, over how many points, against what."""

    largest: float
    mean: float
    at: tuple[float, ...]
    points: int
    reference: str


@functools.cache
def program(name: str, d: DType, points: int) -> Program:
    """y = f(x0, ..) over `points` elements; NaN results are canonical."""
    f = FUNCTIONS[name]
    b = Builder(f"{name}_{d.short}", lanes=LANES, groups=points // LANES)
    params = [b.param(f"x{k}", d, points) for k in range(f.arguments)]
    y = b.param("y", d, points, writable=True)
    at = b.add(b.mul(b.group(), b.idx(LANES)), b.lane())
    result = b.cast(f.build(b, [b.load(p, at) for p in params]), dt.compute_type(d))
    b.store(y, at, b.cast(b.canon(result), d))
    return b.finish()


@functools.cache
def _loaded(name: str, d: DType, points: int) -> Any:
    p = program(name, d, points)
    return registry.open("cpu").load(compile_program(p, host()), p.name)


def evaluate(name: str, d: DType, *xs: Array) -> Array:
    """f(x0, ..), computed on the cpu device."""
    device = registry.open("cpu")
    n = xs[0].size
    points = min(BLOCK, -(-n // LANES) * LANES)
    out = np.empty(-(-n // points) * points, NUMPY[d])
    padded = [np.concatenate([x, np.ones(out.size - n, x.dtype)]) for x in xs]
    for first in range(0, out.size, points):
        arrays = [np.ascontiguousarray(x[first:first + points]) for x in padded] + [out[first:first + points]]
        commands = device.command_list()
        commands.dispatch(_loaded(name, d, points), [device.wrap(a.ctypes.data, a.nbytes, a) for a in arrays],
                          points // LANES)
        device.compute.wait(device.compute.submit(commands))
    return out[:n]


def errors(result: Array, exact: Array, d: DType) -> Array:
    """Errors in ulps against references in float64 that are a good deal more precise than `d`."""
    highest = (1 << d.exponent - 1) - 1
    top = 2.0 ** (highest + 1)
    y, r = np.clip(result.astype(np.float64), -top, top), np.clip(exact, -top, top)
    exponent = (r.view(np.int64) >> 52) & 0x7ff
    np.clip(exponent, 1023 + 1 - highest, 1023 + highest, out=exponent)
    with np.errstate(invalid="ignore"):
        e = np.abs(y - r)
    e *= ((2046 + d.mantissa - exponent) << 52).view(np.float64)  # 1/ulp
    odd = np.isnan(e)
    if odd.any():
        e[odd] = np.where(np.isnan(exact[odd]) & np.isnan(y[odd]), 0.0, np.inf)
    return e


def exact_error(y: float, r: Any) -> float:
    """The error of a float64 in ulps, r being a number of mpmath."""
    if mp.isnan(r) or math.isnan(y):
        return 0.0 if mp.isnan(r) and math.isnan(y) else math.inf
    top = mp.mpf(2) ** 1024
    r = min(max(r, -top), top)
    got = mp.mpf(y) if math.isfinite(y) else top if y > 0 else -top
    exponent = max(mp.frexp(r)[1] - 53, -1074) if r else -1074
    return float(abs(got - r) / mp.mpf(2) ** min(exponent, 971))


def points(f: Function, d: DType) -> tuple[Array, ...]:
    """Where f is measured: all values of a 16-bit type, else all magnitudes alike and f's own intervals densely."""
    rng = np.random.default_rng(20)
    kind = NUMPY[d]
    if d.bits == 16:
        every = np.arange(1 << 16, dtype=np.uint16).view(kind)
        if f.arguments == 1:
            return (every,)
        others = np.array([-3, -2, -1, -0.5, 0, 0.25, 0.5, 1, 1.5, 2, 3, 7, 10, np.inf, -np.inf, np.nan], kind)
        return np.tile(every, others.size), np.repeat(others, every.size)
    bits = np.uint32 if d.bits == 32 else np.uint64
    n = 1 << 20 if d.bits == 32 else 700
    any_x = rng.integers(0, 1 << d.bits, n, dtype=bits).view(kind)
    special = np.array([0.0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 3, -3, np.inf, -np.inf, np.nan], kind)
    limits = np.finfo(kind)
    borders = (limits.max, limits.tiny, limits.smallest_subnormal, 1 - limits.epsneg, 1 + limits.eps)
    special = np.concatenate([special, np.array([s * v for v in borders for s in (1, -1)], kind)])
    if f.arguments == 2:
        x = np.concatenate([abs(any_x), 1 + rng.normal(0, 1e-3, n).astype(kind), rng.uniform(0, 10, n).astype(kind)])
        with np.errstate(all="ignore"):
            # exponents that reach from underflow to overflow
            span = 1.01 * (1 << d.exponent - 1)
            y = rng.uniform(-span - d.mantissa, span, x.size) / np.log2(x.astype(np.float64))
            y[::3] = rng.uniform(-3, 3, y[::3].size)
        px, py = np.meshgrid(special, special)
        return np.concatenate([x, px.ravel()]), np.concatenate([y.astype(kind), py.ravel()])
    near = f.near if d.bits == 32 else (*f.near, *f.near64)
    dense = [rng.uniform(lo, hi, n).astype(kind) for lo, hi in near]
    with np.errstate(over="ignore"):
        extra = f.extra().astype(kind)
    return (np.concatenate([any_x, special, *dense, extra, -extra]),)


def measure(name: str, d: DType) -> Measured:
    """The error of one function in one type."""
    f = FUNCTIONS[name]
    xs = points(f, d)
    y = evaluate(name, d, *xs)
    with np.errstate(all="ignore"):
        wide = [x.astype(np.float64) for x in xs]
        if d is dt.float64:
            reference = "mpmath"
            e = np.array([_against_mpmath(f, float(v), *map(float, at)) for v, *at in zip(y, *xs, strict=True)])
        else:
            reference = "float64 (NumPy, C library)"
            e = errors(y, f.double(*wide), d)
    worst = int(np.argmax(e))
    at = tuple(float(x[worst]) for x in xs)
    return Measured(float(e[worst]), float(np.mean(e[np.isfinite(e)])), at, y.size, reference)


def measure_every_float32(name: str) -> Measured:
    """The error over all 2^32 arguments of a function of one argument."""
    f, largest, total, at, n = FUNCTIONS[name], 0.0, 0.0, (0.0,), BLOCK
    for first in range(0, 1 << 32, n):
        x = np.arange(first, first + n, dtype=np.uint32).view(np.float32)
        with np.errstate(all="ignore"):
            e = errors(evaluate(name, dt.float32, x), f.double(x.astype(np.float64)), dt.float32)
        worst = int(np.argmax(e))
        total += float(np.sum(e))
        if e[worst] > largest:
            largest, at = float(e[worst]), (float(x[worst]),)
    return Measured(largest, total / 2 ** 32, at, 1 << 32, "float64 (NumPy, C library)")


def _against_mpmath(f: Function, y: float, *xs: float) -> float:
    """Special cases, which mpmath raises on or takes otherwise, are judged by float64 functions."""
    special = any(not math.isfinite(x) or x == 0 for x in xs) or f.name in ("log", "log2") and xs[0] < 0 \
        or f.name == "pow" and xs[0] < 0
    if special or f.name not in ("sin", "cos", "log", "log2", "pow") and abs(xs[0]) > 1e5:
        want = float(f.double(*(np.array([x]) for x in xs))[0])
        same = y == want or math.isnan(y) and math.isnan(want)
        return 0.0 if same else float(abs(y - want) / np.spacing(abs(want)))
    with mp.workprec(f.digits):
        return exact_error(y, f.exact(*map(mp.mpf, xs)))
