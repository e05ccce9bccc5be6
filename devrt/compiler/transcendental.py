"""The exact tier's exp2, log2 and sin: LIR that gives the same bits on every device, at most 1 ulp off.

Each function takes a float32 or float64 register and returns one of the same type. It works in that type and in
integers only, so float32 code needs no float64 unit. The common path is straight; what few arguments need (results
below the normal numbers, huge arguments, infinities, NaN) stands in `when` blocks.

Sources: W. Cody, W. Waite, "Software Manual for the Elementary Functions" 1980 (reduction in two or three constants);
M. Payne, R. Hanek, "Radian reduction for trigonometric functions" 1983; J.-M. Muller, "Elementary Functions" 2016.
The polynomials are derived in tests/compiler/coefficients.py; the measured errors stand in docs/numerics.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from devrt.compiler import coefficients as co
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Builder, Reg


@dataclass(frozen=True)
class Format:
    """A float type as the functions here see it, and their tables for it."""

    real: DType
    signed: DType
    unsigned: DType
    fraction: int                     # explicit fraction bits
    bias: int
    exp2: tuple[float, ...]
    log2: tuple[float, ...]
    sin: tuple[float, ...]
    cos: tuple[float, ...]
    half_pi: tuple[float, ...]
    two_over_pi: float
    log2e: tuple[float, ...]
    sqrt_half: int                    # the bits of sqrt(1/2)
    reduce_below: float               # sin: |x| below this is reduced with half_pi, the rest
    reduce: Callable[[Builder, Format, Reg], list[Reg]]  # by Payne and Hanek

    @property
    def round(self) -> float:
        """Adding it rounds a float to an integer, found in the low bits of the sum."""
        return 1.5 * 2.0 ** self.fraction

    @property
    def sign(self) -> int:
        return 1 << self.unsigned.bits - 1


def polynomial(b: Builder, t: Reg, c: Sequence[float]) -> Reg:
    """c[0] + c[1]*t + ..., by Horner's rule."""
    p = b.const(t.dtype, c[-1])
    for k in reversed(c[:-1]):
        p = b.fma(p, t, b.const(t.dtype, k))
    return p


# ---------------------------------------------------------------------------------------------------------------------
# exp2


def exp2(b: Builder, x: Reg) -> Reg:
    """2^x.

    x = n + r with n = nearest integer: 2^r by a polynomial, 2^n by adding n to the exponent field. Integers give exact
    results.
    """
    f = format_of(x)
    magic = b.const(f.real, f.round)
    t = b.add(x, magic)
    r = b.sub(x, b.sub(t, magic))
    p = b.bitcast(b.fma(polynomial(b, r, f.exp2), r, b.const(f.real, 1.0)), f.signed)
    n = b.bitcast(t, f.signed)
    fraction = b.const(f.signed, f.fraction)
    y = b.bitcast(b.add(p, b.shl(n, fraction)), f.real)

    def edge() -> list[Reg]:
        # Half of n is added to p's exponent, the other half multiplied in: so the product rounds once where it is
        # denormal, and 2^127.9 is reached though 2^128 is no float.
        k = b.sub(n, b.bitcast(magic, f.signed))
        half = b.shr(k, b.const(f.signed, 1))
        rest = b.add(b.sub(k, half), b.const(f.signed, f.bias))
        v = b.mul(b.bitcast(b.add(p, b.shl(half, fraction)), f.real), b.bitcast(b.shl(rest, fraction), f.real))
        v = b.select(b.lt(x, b.const(f.real, -f.bias - f.fraction - 1.0)), b.const(f.real, 0.0), v)
        v = b.select(b.lt(x, b.const(f.real, f.bias + 1.0)), v, b.const(f.real, float("inf")))
        return [b.select(b.eq(x, x), v, x)]

    normal = b.lt(b.abs(x), b.const(f.real, f.bias - 1.0))
    return b.when(b.not_(normal), [y], edge)[0]


# ---------------------------------------------------------------------------------------------------------------------
# log2


def _split(b: Builder, f: Format, x: Reg) -> tuple[Reg, Reg]:
    """(m, e) with x = m*2^e and 1/sqrt(2) <= m < sqrt(2), for positive normal x; e as a float."""
    bits = b.bitcast(x, f.signed)
    above = b.sub(bits, b.const(f.signed, f.sqrt_half))
    e = b.shr(above, b.const(f.signed, f.fraction))
    m = b.sub(bits, b.shl(e, b.const(f.signed, f.fraction)))
    return b.bitcast(m, f.real), b.cast(e, f.real)


def log2(b: Builder, x: Reg) -> Reg:
    """The binary logarithm: -inf at 0, NaN below."""
    f = format_of(x)
    bits = b.bitcast(x, f.unsigned)
    least = b.const(f.unsigned, 1 << f.fraction)
    span = ((2 * f.bias + 1) << f.fraction) - (1 << f.fraction)
    rare = b.le(b.const(f.unsigned, span), b.sub(bits, least))  # not a positive normal number
    m, e = _split(b, f, x)

    def denormal() -> list[Reg]:
        up = f.fraction + 1
        m, e = _split(b, f, b.mul(x, b.const(f.real, 2.0 ** up)))
        return [m, b.add(e, b.const(f.real, -float(up)))]

    m, e = b.when(rare, [m, e], denormal)
    y = _log2_of(b, f, m, e)

    def edge() -> list[Reg]:
        zero, inf = b.const(f.real, 0.0), b.const(f.real, float("inf"))
        v = b.select(b.lt(zero, x), y, b.const(f.real, float("nan")))
        v = b.select(b.eq(x, zero), b.const(f.real, -float("inf")), v)
        return [b.select(b.eq(x, inf), inf, v)]

    return b.when(rare, [y], edge)[0]


def _log2_of(b: Builder, f: Format, m: Reg, e: Reg) -> Reg:
    """log2(m) + e."""
    t = b.sub(m, b.const(f.real, 1.0))
    low = b.mul(t, polynomial(b, t, f.log2))
    return b.add(b.fma(t, b.const(f.real, f.log2e[0]), low), e)


# ---------------------------------------------------------------------------------------------------------------------
# sin


def sin(b: Builder, x: Reg, quarter: int = 0) -> Reg:
    """sin(x + quarter*pi/2), the quarter turns added exactly: quarter=1 is cos. Right for every finite x.

    |x| = n*pi/2 + r + low with |r| <= pi/4, low being what r's rounding lost; n's last bits choose sine or cosine of r
    and the sign.
    """
    f = format_of(x)
    ax = b.abs(x)
    magic = b.const(f.real, f.round)
    t = b.fma(ax, b.const(f.real, f.two_over_pi), magic)
    n = b.sub(t, magic)
    p1, p2, p3 = (b.const(f.real, -p) for p in f.half_pi)
    r1 = b.fma(n, p1, ax)  # exact
    r = b.add(r1, b.mul(n, p2))  # no fma: so r1 - r is exact, and low is what the product and the sum have lost
    low = b.fma(n, p3, b.fma(n, p2, b.sub(r1, r)))
    rare = b.not_(b.lt(ax, b.const(f.real, f.reduce_below)))
    q, r, low = b.when(rare, [b.bitcast(t, f.unsigned), r, low], lambda: f.reduce(b, f, ax))
    if quarter % 4:
        q = b.add(q, b.const(f.unsigned, quarter % 4))

    z = b.mul(r, r)
    sine = b.add(r, b.fma(b.mul(r, z), polynomial(b, z, f.sin), low))
    # 1 - r^2/2 rounds to h and leaves e; with the other terms, -r*low among them, e is small enough not to round again
    one, half = b.const(f.real, 1.0), b.mul(r, b.const(f.real, -0.5))
    h = b.fma(r, half, one)
    e = b.fma(b.neg(r), low, b.fma(r, half, b.sub(one, h)))
    cosine = b.add(h, b.fma(b.mul(z, z), polynomial(b, z, f.cos), e))
    odd = b.ne(b.and_(q, b.const(f.unsigned, 1)), b.const(f.unsigned, 0))
    y = b.bitcast(b.select(odd, cosine, sine), f.unsigned)
    turn = b.shl(q, b.const(f.unsigned, f.unsigned.bits - 2))
    if quarter % 2 == 0:
        turn = b.xor(turn, b.bitcast(x, f.unsigned))
    return b.bitcast(b.xor(y, b.and_(turn, b.const(f.unsigned, f.sign))), f.real)


# Both reductions below take any |x| at least 1 and return (quadrant, r, low); r is NaN where |x| is infinite or NaN.
#
# |x| = m*2^s with an integer m. Those bits of 2/pi that are worth 4 or more after scaling by 2^s add whole turns only,
# so a window of bits from there on suffices: m times it, modulo the window's size, is the quadrant (the first 2 bits)
# and the fraction of a quarter turn. The window is long enough to leave all bits needed in the worst case, the float
# nearest to a multiple of pi/2: 2^-29 (float32) and 2^-62 (float64) of a quarter turn away.


def _window(b: Builder, first: Reg, count: int, total: int) -> list[Reg]:
    """`count` 32-bit words, in uint64, of the bits of 2/pi from bit `first` on; `total` words are in reach."""
    i32, u32 = dt.int32, dt.uint32
    first = b.max(first, b.const(i32, 0))  # lanes that do not need the result compute it all the same
    word, shift = b.shr(first, b.const(i32, 5)), b.bitcast(b.and_(first, b.const(i32, 31)), u32)
    back = b.sub(b.const(u32, 32), shift)
    words = [b.table(u32, co.TWO_OVER_PI_WORDS[:total], b.add(word, b.const(i32, k))) for k in range(count + 1)]
    return [b.cast(b.or_(b.shl(v, shift), b.shr(w, back)), dt.uint64) for v, w in itertools.pairwise(words)]


def _quadrant(b: Builder, product: Reg) -> Reg:
    """The nearest quarter turn, from the top 64 bits of the product."""
    u64 = dt.uint64
    return b.shr(b.add(b.shr(product, b.const(u64, 61)), b.const(u64, 1)), b.const(u64, 1))


def _radians(b: Builder, f: Format, ax: Reg, turn: Reg, rest: Reg) -> list[Reg]:
    """(turn + rest) in units of 2^-64 quarter turns as r + low; NaN where ax is not finite."""
    c, c_low = (b.const(f.real, p * 2.0 ** -64) for p in f.half_pi[:2])
    r = b.mul(turn, c)
    low = b.fma(turn, c_low, b.fma(rest, c, b.fma(turn, c, b.neg(r))))
    total = b.add(r, low)
    return [b.add(total, b.sub(ax, ax)), b.add(b.sub(r, total), low)]


def _rounded_off(b: Builder, f: Format, n: Reg) -> tuple[Reg, Reg]:
    """The int64 n as a float, and what that lost."""
    high = b.cast(n, f.real)
    return high, b.cast(b.sub(n, b.cast(high, dt.int64)), f.real)


def _payne_hanek_f32(b: Builder, f: Format, ax: Reg) -> list[Reg]:
    """24-bit m, 96-bit window, of whose product the top 64 bits are kept."""
    u32, u64 = dt.uint32, dt.uint64
    bits = b.bitcast(ax, u32)
    exponent = b.bitcast(b.shr(bits, b.const(u32, 23)), dt.int32)
    m = b.cast(b.or_(b.and_(bits, b.const(u32, 0x7fffff)), b.const(u32, 0x800000)), u64)
    w0, w1, w2 = _window(b, b.sub(exponent, b.const(dt.int32, 120)), 3, 9)
    half = b.const(u64, 32)
    product = b.add(b.add(b.shl(b.mul(m, w0), half), b.mul(m, w1)), b.shr(b.mul(m, w2), half))
    fraction = b.bitcast(b.shl(product, b.const(u64, 2)), dt.int64)
    return [b.cast(_quadrant(b, product), u32), *_radians(b, f, ax, *_rounded_off(b, f, fraction))]


def _payne_hanek_f64(b: Builder, f: Format, ax: Reg) -> list[Reg]:
    """53-bit m in two words, 192-bit window, of whose product the top 128 bits are kept, but for their last carries."""
    u64 = dt.uint64
    bits = b.bitcast(ax, u64)
    exponent = b.cast(b.shr(bits, b.const(u64, 52)), dt.int32)
    word, half, two = b.const(u64, 0xffffffff), b.const(u64, 32), b.const(u64, 2)
    m0 = b.and_(bits, word)
    m1 = b.or_(b.and_(b.shr(bits, half), b.const(u64, 0xfffff)), b.const(u64, 0x100000))
    w = _window(b, b.sub(exponent, b.const(dt.int32, 1045)), 6, len(co.TWO_OVER_PI_WORDS))
    by0, by1 = [b.mul(m0, v) for v in w[:5]], [b.mul(m1, v) for v in w]
    column = [b.add(b.add(b.and_(by0[k], word), b.shr(by0[k + 1], half)),
                    b.add(b.and_(by1[k + 1], word), b.shr(by1[k + 2], half))) for k in range(4)]
    column[2] = b.add(column[2], b.shr(column[3], half))
    column[1] = b.add(column[1], b.shr(column[2], half))
    high = b.add(b.shl(column[0], half), column[1])
    low = b.or_(b.shl(column[2], half), b.and_(column[3], word))

    fraction = b.bitcast(b.or_(b.shl(high, two), b.shr(low, b.const(u64, 62))), dt.int64)
    tail = b.mul(b.cast(b.shl(low, two), f.real), b.const(f.real, 2.0 ** -64))
    turn, rest = _rounded_off(b, f, fraction)
    rest = b.add(rest, tail)
    total = b.add(turn, rest)
    return [_quadrant(b, high), *_radians(b, f, ax, total, b.add(b.sub(turn, total), rest))]


F32 = Format(dt.float32, dt.int32, dt.uint32, 23, 127, co.EXP2_F32, co.LOG2_F32, co.SIN_F32, co.COS_F32,
             co.HALF_PI_F32, co.TWO_OVER_PI_F32[0], co.LOG2E_F32, 0x3f3504f3, 2.0 ** 17, _payne_hanek_f32)
F64 = Format(dt.float64, dt.int64, dt.uint64, 52, 1023, co.EXP2_F64, co.LOG2_F64, co.SIN_F64, co.COS_F64,
             co.HALF_PI_F64, co.TWO_OVER_PI_F64[0], co.LOG2E_F64, 0x3fe6a09e667f3bcd, 2.0 ** 30, _payne_hanek_f64)
_FORMATS = {dt.float32: F32, dt.float64: F64}


def format_of(x: Reg) -> Format:
    return _FORMATS[x.dtype]
