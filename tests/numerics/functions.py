"""What is measured: each function, its references, the points it is measured at and the bound it must keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mpmath as mp
import numpy as np

from devrt.compiler import derived
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Builder, Reg
from tests.numerics.lir_math import LirMath

Array = Any  # numpy.ndarray
F16, BF16, F32, F64 = dt.float16, dt.bfloat16, dt.float32, dt.float64


def _erfc(x: Array) -> Array:
    return np.vectorize(math.erfc, otypes=[float])(x)


def _gelu(x: Array) -> Array:
    return np.where(x < -40, -0.0, x * 0.5 * _erfc(-x / math.sqrt(2)))


def _gelu_tanh(x: Array) -> Array:
    x = np.where(x < -40, -0.0, x)
    return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def _mp_gelu_tanh(x: Any) -> Any:
    return x / (1 + mp.exp(-2 * mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x ** 3)))


@dataclass(frozen=True)
class Function:
    """A function of one argument (pow: two).

    near:    intervals measured densely beside all magnitudes
    bounds:  ulps, per type
    double:  the reference in float64, for the narrower types
    exact:   the reference in mpmath, for float64
    """

    name: str
    build: Callable[[Builder, Any], Reg]
    double: Callable[..., Array]
    exact: Callable[..., Any]
    near: tuple[tuple[float, float], ...]
    bounds: dict[DType, float]
    near64: tuple[tuple[float, float], ...] = ()
    arguments: int = 1
    digits: int = 200                               # bits of the mpmath reference
    extra: Callable[[], Array] = field(default=lambda: np.empty(0))


def _derived(f: Callable[..., Any]) -> Callable[[Builder, Any], Reg]:
    return lambda b, xs: f(LirMath(b), *xs)


def _primitive(name: str, *args: int) -> Callable[[Builder, Any], Reg]:
    return lambda b, xs: getattr(LirMath(b), name)(*xs, *args)


def quarter_turns() -> Array:
    """The float64 nearest to k*pi/2 for small k and for k up to the end of the range."""
    with mp.workprec(1300):
        small = [float(mp.pi / 2 * k) for k in range(1, 2000)]
        large = [float(mp.pi / 2 * k * mp.mpf(2) ** e) for e in range(1, 1020, 7) for k in (1, 3, 5, 7, 11, 13)]
    return np.array([x for x in small + large if math.isfinite(x)])


def _bounds(f32: float, f64: float, narrow: float = 0.501) -> dict[DType, float]:
    """Narrow types are computed in float32, so they miss the nearest value only where two are almost equally near."""
    return {F16: narrow, BF16: narrow, F32: f32, F64: f64}


_turns = ((-4.0, 4.0), (-100.0, 100.0), (-1e5, 1e5), (-1e7, 1e7))
FUNCTIONS = {f.name: f for f in (
    Function("exp2", _primitive("exp2"), np.exp2, lambda x: mp.mpf(2) ** x, ((-1, 1), (-150, 129)), _bounds(0.90, 0.90),
             ((-1, 1), (-1075, 1024))),
    Function("log2", _primitive("log2"), np.log2, lambda x: mp.log(x, 2), ((0.6, 1.6), (0.99, 1.01)), _bounds(0.99, 0.99)),
    Function("sin", _primitive("sin"), np.sin, mp.sin, _turns, _bounds(0.90, 0.90), digits=1300, extra=quarter_turns),
    Function("cos", _derived(derived.cos), np.cos, mp.cos, _turns, _bounds(0.90, 0.90), digits=1300, extra=quarter_turns),
    Function("exp", _derived(derived.exp), np.exp, mp.exp, ((-1, 1), (-104, 89)), _bounds(0.95, 0.95),
             ((-1, 1), (-745, 710))),
    Function("log", _derived(derived.log), np.log, mp.log, ((0.6, 1.6), (0.99, 1.01)), _bounds(0.90, 0.90)),
    Function("tanh", _derived(derived.tanh), np.tanh, mp.tanh, ((-1, 1), (-10, 10)), _bounds(0.80, 0.80), ((-20, 20),)),
    Function("sigmoid", _derived(derived.sigmoid), lambda x: np.where(x < 0, np.exp(-abs(x)), 1) / (1 + np.exp(-abs(x))),
             lambda x: 1 / (1 + mp.exp(-x)), ((-5, 5), (-104, 20)), _bounds(1.60, 1.60), ((-745, 40),)),
    Function("erf", _derived(derived.erf), lambda x: np.vectorize(math.erf, otypes=[float])(x), mp.erf,
             ((-1.5, 1.5), (-5, 5)), _bounds(1.35, 1.35), ((-6, 6),)),
    Function("gelu", _derived(derived.gelu), _gelu, lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2, ((-3, 3), (-15, 15)),
             _bounds(5.0, 5.0), ((-38.7, 8),)),
    Function("gelu_tanh", _derived(derived.gelu_tanh), _gelu_tanh, _mp_gelu_tanh, ((-3, 3), (-15, 15)),
             _bounds(3.5, 3.5), ((-22, 8),)),
    Function("pow", _derived(derived.pow), np.power, lambda x, y: x ** y, (), _bounds(0.98, 0.98), arguments=2),
)}
