"""What neural networks are made of, composed of the primitives: each function is a graph that the scheduler fuses.

Shapes are written [..]; `float` types are computed in float32 (float64) and rounded where the docstring says.
"""

from __future__ import annotations

import math
from typing import Literal

from devrt.array import Array, broadcast
from devrt.compiler import composite, derived
from devrt.compiler import dtypes as dt
from devrt.device import InvalidArgument
from devrt.functions import (
    arange,
    cos,
    exp,
    exp2,
    expand_dims,
    flip,
    log,
    matmul,
    max,
    maximum,
    mean,
    moveaxis,
    pad,
    reshape,
    round,
    sigmoid,
    sin,
    sqrt,
    sum,
    take,
    take_along_axis,
    tanh,
    where,
)
from devrt.functions.basic import _derived
from devrt.sampling import sample


def _wide(x: Array) -> Array:
    return x.astype(dt.compute_type(x.dtype)) if x.dtype.is_float else x.astype(dt.float32)


# ----- activations


def relu(x: Array, /) -> Array: return maximum(x, 0)


def squared_relu(x: Array, /) -> Array:
    y = relu(x)
    return y * y


def silu(x: Array, /) -> Array:
    """x * sigmoid(x)"""
    w = _wide(x)
    return (w * sigmoid(w)).astype(x.dtype)


def gelu(x: Array, /, *, approximate: Literal["none", "tanh"] = "none") -> Array:
    """x * Phi(x): exact through erf, or the tanh approximation. They differ by up to 4.73e-4 near x = -2.70."""
    if approximate not in ("none", "tanh"):
        raise InvalidArgument(f"gelu is 'none' (exact) or 'tanh', not {approximate!r}")
    return _derived(derived.gelu if approximate == "none" else derived.gelu_tanh, x)


def swiglu(gate: Array, up: Array, /) -> Array:
    """silu(gate) * up"""
    return silu(gate) * up


def soft_cap(x: Array, cap: float = 30.0, /) -> Array:
    """cap * tanh(x / cap)"""
    return tanh(x / cap) * cap


# ----- softmax and losses


def softmax(x: Array, /, *, axis: int = -1) -> Array:
    """exp(x - max) * (1 / sum), the maximum always subtracted."""
    if axis % x.ndim != x.ndim - 1:
        return moveaxis(softmax(moveaxis(x, axis, x.ndim - 1)), x.ndim - 1, axis)
    return Array(composite.softmax(x.node))


def log_softmax(x: Array, /, *, axis: int = -1) -> Array:
    w = _wide(x)
    return (w - logsumexp(w, axis=axis, keepdims=True)).astype(x.dtype)


def logsumexp(x: Array, /, *, axis: int = -1, keepdims: bool = False) -> Array:
    """log(sum(exp(x))) without overflow; -inf where every element is."""
    w = _wide(x)
    top = max(w, axis=axis, keepdims=True)
    safe = where(abs(top) == math.inf, 0, top)
    total = log(sum(exp(w - safe), axis=axis, keepdims=True)) + safe
    out = total if keepdims else reshape(total, [n for a, n in enumerate(x.shape) if a != axis % x.ndim])
    return out.astype(x.dtype)


def cross_entropy(logits: Array, labels: Array, /, *, chunks: int = 1) -> Array:
    """logsumexp(logits) - logits[label], one value a row: logits [.., v], labels [..] of integers.

    chunks > 1 takes the logsumexp of the logsumexps of so many pieces of the vocabulary.
    """
    v = logits.shape[-1]
    if labels.shape != logits.shape[:-1] or not labels.dtype.is_int:
        raise InvalidArgument(f"labels must be integers of shape {list(logits.shape[:-1])}",
                              evidence=f"{labels.dtype}{list(labels.shape)}")
    if not 1 <= chunks <= v:
        raise InvalidArgument(f"a vocabulary of {v} has no {chunks} chunks")
    w = _wide(logits)
    size = -(-v // chunks)
    full = pad(w, [(0, 0)] * (w.ndim - 1) + [(0, chunks * size - v)], value=-math.inf)
    whole = logsumexp(w) if chunks == 1 else logsumexp(logsumexp(reshape(full, (*logits.shape[:-1], chunks, size))))
    picked = take_along_axis(w, expand_dims(labels, axis=labels.ndim), axis=-1)
    return whole - reshape(picked, labels.shape)


# ----- norms


def rms_norm(x: Array, weight: Array | None = None, /, *, eps: float = 1e-6,
             cast: Literal["last", "before_weight"] = "last") -> Array:
    """x * (1 / sqrt(mean(x^2) + eps)) * weight over the last axis, in float32.

    cast "last" rounds to x's type after the weight; "before_weight" rounds first and multiplies in x's type: models differ
    in this, and so do the results.
    """
    w = _wide(x)
    y = w * (1.0 / sqrt(mean(w * w, axis=-1, keepdims=True) + eps))
    if cast not in ("last", "before_weight"):
        raise InvalidArgument(f"rms_norm casts 'last' or 'before_weight', not {cast!r}")
    if cast == "before_weight":
        y = y.astype(x.dtype)
    if weight is not None:
        y = y * weight.astype(y.dtype)
    return y.astype(x.dtype)


def rms_norm_backward(dy: Array, x: Array, weight: Array, /, *, eps: float = 1e-6) -> tuple[Array, Array]:
    """(dx, dweight) of rms_norm(x, weight) for the gradient dy."""
    w, g = _wide(x), _wide(dy)
    n = x.shape[-1]
    r = 1.0 / sqrt(mean(w * w, axis=-1, keepdims=True) + eps)
    gw = g * weight.astype(w.dtype)
    dx = r * gw - w * (r * r * r * (sum(gw * w, axis=-1, keepdims=True) / float(n)))
    dweight = sum(reshape(g * w * r, (-1, n)), axis=0)
    return dx.astype(x.dtype), dweight.astype(weight.dtype)


def layer_norm(x: Array, weight: Array | None = None, bias: Array | None = None, /, *, eps: float = 1e-5) -> Array:
    """(x - mean) * (1 / sqrt(var + eps)) * weight + bias over the last axis, in float32, rounded last."""
    w = _wide(x)
    centred = w - mean(w, axis=-1, keepdims=True)
    y = centred * (1.0 / sqrt(mean(centred * centred, axis=-1, keepdims=True) + eps))
    y = y if weight is None else y * weight.astype(y.dtype)
    y = y if bias is None else y + bias.astype(y.dtype)
    return y.astype(x.dtype)


# ----- positions


def rope_tables(positions: Array, depth: int, /, *, theta: float = 10000.0,
                frequencies: Array | None = None) -> tuple[Array, Array]:
    """(cos, sin) float32 [.., depth/2] for integer positions [..]. Positions stay integer, angles float32: in bfloat16
    positions 8189, 8190 and 8191 would all be 8192.

    frequencies [depth/2], radians a position, are theta^(-2n/depth) unless given (models stretch them for long contexts).
    """
    if not positions.dtype.is_int or depth % 2 or frequencies is not None and frequencies.shape != (depth // 2,):
        raise InvalidArgument("RoPE takes integer positions, an even depth and a frequency for every pair",
                              evidence=f"{positions.dtype}, depth {depth}")
    inverse = frequencies
    if inverse is None:  # in float64, so that the float32 is theta^(-2n/depth) rounded
        inverse = exp2(arange(depth // 2).astype(dt.float64) * (-2 * math.log2(theta) / depth)).astype(dt.float32)
    angle = expand_dims(positions.astype(dt.float32), axis=positions.ndim) * inverse
    return cos(angle), sin(angle)


def rope(x: Array, cos: Array, sin: Array, /, *, backward: bool = False) -> Array:
    """Rotate the halves of the last axis: x [.., d], tables [.., d/2]. Backward is the same with the sine negated."""
    half = x.shape[-1] // 2
    w = reshape(_wide(x), (*x.shape[:-1], 2, half))
    sign = reshape(arange(2) * 2 - 1, (2, 1)).astype(w.dtype)  # (a, b) to (a cos - b sin, b cos + a sin)
    turned = flip(w, axis=-2) * (expand_dims(-sin if backward else sin, axis=-2) * sign)
    return reshape(w * expand_dims(cos, axis=-2) + turned, x.shape).astype(x.dtype)


# ----- attention and linear layers


def attention(q: Array, k: Array, v: Array, /, *, causal: bool = False, window: int | None = None,
              scale: float | None = None, cap: float | None = None) -> Array:
    """softmax(scale * q k^T) v. q [.., h, t, d], k [.., g, s, d], v [.., g, s, e] with h a multiple of g (grouped heads).

    causal: query i sees keys up to i + s - t. window: at most the last `window` of those (inclusive bound). cap: soft-cap
    of the scores. From 16 queries on it is one kernel and the score matrix never exists.
    """
    if q.ndim != k.ndim or k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1] or q.ndim < 3:
        raise InvalidArgument("attention takes q [.., h, t, d], k [.., g, s, d], v [.., g, s, e]",
                              evidence=f"shapes {list(q.shape)}, {list(k.shape)}, {list(v.shape)}")
    h, g, t, s, d = q.shape[-3], k.shape[-3], q.shape[-2], k.shape[-2], q.shape[-1]
    if g == 0 or h % g:
        raise InvalidArgument(f"{h} query heads are no multiple of {g} key heads")
    lead = q.shape[:-3]
    n = math.prod(lead) * h

    def heads(x: Array) -> Array:
        grouped = broadcast(expand_dims(x, axis=-3), (*lead, g, h // g, *x.shape[-2:]))
        return _wide(reshape(grouped, (n, *x.shape[-2:])))
    wide = _wide(reshape(q, (n, t, d)))
    scores = matmul(wide, heads(k).mT) * (1.0 / math.sqrt(d) if scale is None else scale)
    scores = scores if cap is None else soft_cap(scores, cap)
    rows, columns = expand_dims(arange(t), axis=1) + (s - t), arange(s)
    if window is not None:
        if not causal or window < 1:
            raise InvalidArgument("a window needs causal attention and at least one key")
        scores = where(columns < rows - (window - 1), -math.inf, scores)
    if causal:
        scores = where(rows < columns, -math.inf, scores)
    out = matmul(softmax(scores), heads(v))
    return reshape(out, (*lead, h, t, v.shape[-1])).astype(q.dtype)


def linear(x: Array, weight: Array, bias: Array | None = None, /) -> Array:
    """x @ weight^T + bias: x [.., k], weight [n, k]."""
    y = matmul(x, weight.mT)
    return y if bias is None else y + bias


def quantise(weight: Array, bits: Literal[8, 4] = 8, /, *, group: int | None = None) -> tuple[Array, Array]:
    """(codes, scales): symmetric weight-only quantisation of [n, k] by rows, or by groups of `group` along k.

    codes int8 or int4 [n, k], scales float32 [n, k/group]; weight is about codes * scale.
    """
    n, k = weight.shape
    size = k if group is None else group
    if bits not in (8, 4) or k % size:
        raise InvalidArgument(f"quantise to 8 or 4 bits in groups that divide {k}",
                              evidence=f"bits {bits}, group {group}")
    top = float((1 << (bits - 1)) - 1)
    blocks = reshape(_wide(weight), (n, k // size, size))
    scale = max(abs(blocks), axis=-1, keepdims=True) / top
    codes = round(blocks / where(scale == 0, 1, scale)).astype(dt.int8 if bits == 8 else dt.int4)
    return reshape(codes, (n, k)), reshape(scale, (n, k // size))


def quantised_linear(x: Array, codes: Array, scales: Array, /) -> Array:
    """x @ (codes * scale)^T with the codes widened in registers: x [.., k], codes [n, k], scales [n, k/group]."""
    n, k = codes.shape
    groups = scales.shape[1]
    w = _wide(x)
    if groups == 1:
        return (matmul(w, codes.astype(dt.float32).mT) * reshape(scales, (n,))).astype(x.dtype)
    weight = reshape(reshape(codes.astype(dt.float32), (n, groups, k // groups)) * expand_dims(scales, axis=2), (n, k))
    return matmul(w, weight.mT).astype(x.dtype)


def embedding(table: Array, tokens: Array, /) -> Array:
    """Rows of table [v, d] by tokens [..]; tokens outside are clipped."""
    return take(table, tokens, axis=0)


__all__ = ["attention", "cross_entropy", "embedding", "gelu", "layer_norm", "linear", "log_softmax", "logsumexp",
           "quantise", "quantised_linear", "relu", "rms_norm", "rms_norm_backward", "rope", "rope_tables", "sample",
           "silu",
           "soft_cap", "softmax", "squared_relu", "swiglu"]
