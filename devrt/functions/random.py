"""Random numbers from a counter, bit casts and type queries."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Sequence

from devrt.array import Array, broadcast
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.ops import Op, make
from devrt.device import InvalidArgument, Unsupported
from devrt.functions.basic import _shape, arange, full
from devrt.functions.elementwise import cos, log, sqrt
from devrt.functions.logic import bitwise_and, bitwise_left_shift, bitwise_or, bitwise_right_shift
from devrt.functions.movement import concat, reshape


def astype(x: Array, dtype: DType, /, *, copy: builtins.bool = True) -> Array: return x.astype(dtype, copy=copy)


def result_type(*xs: Array | DType) -> DType:
    types = [x.dtype if isinstance(x, Array) else x for x in xs]
    out = types[0]
    for d in types[1:]:
        out = dt.promote(out, d)
    return out


def bitcast(x: Array, dtype: DType, /) -> Array:
    """The bits of x as another type of the same width."""
    return Array(make(Op.BITCAST, (x.node,), dtype))


def random_bits(shape: int | Sequence[int], *, seed: int, stream: int | Array = 0) -> Array:
    """uint32 from a counter: Threefry 2x32, 20 rounds (Salmon et al., SC 2011). The same on every device.

    `stream` may be an integer scalar Array: a captured function then draws other numbers at every call.
    """
    shape = _shape(shape)
    count = math.prod(shape)
    if count >= 1 << 32:
        raise Unsupported("one random stream gives at most 2^32 numbers", remedy="use several streams")
    keys: list[Array] = [_word(seed), _word(seed >> 32) ^ _word(stream) * _word(0x9E3779B9)]
    keys.append(keys[0] ^ keys[1] ^ _word(0x1BD11BDA))
    half = (count + 1) // 2
    x0 = arange(half, dtype=dt.uint32) + keys[0]
    x1 = broadcast(keys[1], (half,))
    for block in range(5):
        for r in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            x0 = x0 + x1
            x1 = bitwise_or(bitwise_left_shift(x1, r), bitwise_right_shift(x1, 32 - r)) ^ x0
        x0 = x0 + keys[(block + 1) % 3]
        x1 = x1 + (keys[(block + 2) % 3] + _word(block + 1))
    return reshape(concat([x0, x1])[:count], shape)


def _word(x: int | Array) -> Array:
    """The low 32 bits of an integer, as uint32."""
    if not isinstance(x, Array):
        try:
            word = operator.index(x) & 0xFFFFFFFF
        except TypeError:
            raise InvalidArgument(f"a seed is an integer, and so is a stream, not {x!r}", remedy="pass an int") from None
        return full((), word, dtype=dt.uint32)
    if x.shape != () or not x.dtype.is_int:
        raise InvalidArgument("a random stream is an integer or an integer scalar", evidence=f"{x.dtype}{list(x.shape)}")
    return bitwise_and(x.astype(dt.int64), 0xFFFFFFFF).astype(dt.uint32)


def random_uniform(shape: int | Sequence[int], *, seed: int, stream: int | Array = 0) -> Array:
    """float32 in [0, 1), multiples of 2^-24."""
    return bitwise_right_shift(random_bits(shape, seed=seed, stream=stream), 8).astype(dt.float32) * 2.0**-24


def random_normal(shape: int | Sequence[int], *, seed: int, stream: int | Array = 0) -> Array:
    """float32 of the standard normal distribution (Box-Muller)."""
    u = 1.0 - random_uniform(shape, seed=seed, stream=2 * stream)
    v = random_uniform(shape, seed=seed, stream=2 * stream + 1)
    return sqrt(log(u) * -2.0) * cos(v * (2 * math.pi))
