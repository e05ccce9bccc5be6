"""Drawing tokens from logits, on the device: temperature, top-k, top-p and min-p without sorting.

Both cuts are thresholds: the order of float32 values is the order of their bits (negative ones inverted), so the k-th largest
value of a row is built from its highest digit down, four bits with every count of the row.
"""

from __future__ import annotations

from collections.abc import Callable

from devrt.array import Array, Scalar
from devrt.compiler import dtypes as dt
from devrt.device import InvalidArgument
from devrt.functions import (
    arange,
    argmax,
    bitcast,
    bitwise_left_shift,
    exp,
    expand_dims,
    full,
    inf,
    log,
    max,
    maximum,
    random_uniform,
    sum,
    where,
)

COLDEST = 1e-30  # below it the best is taken: quotients would overflow, and no draw differs


def sample(logits: Array, /, *, temperature: Scalar = 1.0, top_k: int | None = None, top_p: float | None = None,
           min_p: float | None = None, seed: int = 0, stream: int | Array = 0) -> Array:
    """One int64 index a row of logits [.., v], drawn from softmax(logits / temperature) by the Gumbel trick.

    temperature 0 takes the best. top_k keeps the k largest (and what equals the k-th), then top_p the fewest most probable
    that hold that much probability, then min_p those at least so probable relative to the best. `stream` numbers the draw:
    an integer scalar Array gives another draw at every call of a captured function.
    """
    if not logits.ndim or not logits.shape[-1]:
        raise InvalidArgument("sample draws from logits [.., v] with v of 1 or more", evidence=f"shape {list(logits.shape)}")
    w = logits.astype(dt.float32)
    if not 0 <= _number("temperature", temperature) < inf:
        raise InvalidArgument(f"a temperature is at least 0 and finite, not {temperature}", remedy="0 takes the best")
    for name, value, top in (("top_p", top_p, 1), ("min_p", min_p, 1), ("top_k", top_k, logits.shape[-1])):
        if value is not None and not 0 < _number(name, value) <= top:
            raise InvalidArgument(f"{name} lies above 0 and is at most {top}, not {value}", remedy="leave it out to keep all")
    if top_k is not None and int(top_k) != top_k:
        raise InvalidArgument(f"top_k is an integer, not {top_k}", remedy="pass how many to keep")
    if float(temperature) < COLDEST:
        return argmax(w, axis=-1)
    w = w / float(temperature)
    if top_k is not None and top_k < logits.shape[-1]:
        order = ordered_bits(w)
        w = where(order < kth_largest(order, top_k), -inf, w)
    if top_p is not None and top_p < 1 or min_p is not None:
        e = exp(w - max(w, axis=-1, keepdims=True))
        if top_p is not None and top_p < 1:
            w = where(bitcast(e, dt.uint32) < nucleus(e, top_p), -inf, w)
        if min_p is not None:
            w = where(e < min_p, -inf, w)
    u = maximum(random_uniform(logits.shape, seed=seed, stream=stream), 2.0**-25)
    return argmax(w - log(-log(u)), axis=-1)


def _number(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except InvalidArgument:  # of an Array without a value
        raise
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name} is a number, not {value!r}", remedy="pass a float, or leave it out") from None


def ordered_bits(x: Array) -> Array:
    """uint32 in the order of the float32 values x; -0 below +0, NaN at the ends."""
    bits = bitcast(x, dt.uint32)
    return bits ^ where(bits >= 1 << 31, 0xFFFFFFFF, 1 << 31).astype(dt.uint32)


def kth_largest(order: Array, k: int) -> Array:
    """The k-th largest uint32 of every row [.., v], as [.., 1]."""
    def enough(above: Array) -> Array:
        return sum(above.astype(dt.int32), axis=-1) >= k
    return _largest(order, enough)


def nucleus(weights: Array, share: float) -> Array:
    """The bits of the largest threshold [.., 1] above which weights [.., v] >= 0 hold `share` of their row's sum."""
    wanted = sum(weights, axis=-1, keepdims=True) * share

    def enough(above: Array) -> Array:
        return sum(where(above, expand_dims(weights, axis=-2), 0), axis=-1) >= wanted
    return _largest(bitcast(weights, dt.uint32), enough)


def _largest(order: Array, enough: Callable[[Array], Array]) -> Array:
    """The largest uint32 t for which `enough` [.., 15] of order [.., v] >= t [.., 15, v] still holds, four bits at a time."""
    found = full((*order.shape[:-1], 1), 0, dtype=dt.uint32)
    digits = arange(1, 16, dtype=dt.uint32)
    for shift in range(28, -1, -4):
        candidates = found + bitwise_left_shift(digits, shift)
        held = enough(expand_dims(order, axis=-2) >= expand_dims(candidates, axis=-1))
        found = found + bitwise_left_shift(sum(held.astype(dt.uint32), axis=-1, keepdims=True), shift)
    return found


__all__ = ["sample"]
