"""The exact tier's exp2, log2 and sin: LIR that gives the same bits on every device, at most 1 ulp off.

Each function takes a float32 or float64 register and returns one of the same type. It works in that type and in
integers only, so float32 code needs no float64 unit. The common path is straight; what few arguments need (results below
the normal numbers, huge arguments, infinities, NaN) stands in `when` blocks.

Sources: W. Cody, W. Waite, "Software Manual for the Elementary Functions" 1980 (reduction in two or three constants);
M. Payne, R. Hanek, "Radian reduction for trigonometric functions" 1983; J.-M. Muller, "Elementary Functions" 2016.
The polynomials are derived in tests/compiler/coefficients.py; the measured errors stand in docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devrt.compiler import coefficients as co
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Builder, Reg


@dataclass(frozen=True)
class Format:
    """A float type as the functions here see it, and their tables for it."""

    float: DType
    int: DType
    uint: DType
    fraction: int                     # explicit fraction bits
    bias: int
    exp2: tuple[float, ...]
    log2: tuple[float, ...]
    sin: tuple[float, ...]
    cos: tuple[float, ...]
    half_pi: tuple[float, ...]
    two_over_pi: float
    log2e: tuple[float, ...]
    reduce_below: float               # sin: |x| below this is reduced with half_pi, the rest by Payne and Hanek

    @property
    def round(self) -> float:
        """Adding it rounds a float to an integer, found in the low bits of the sum."""
        return 1.5 * 2.0 ** self.fraction

    @property
    def sign(self) -> int:
        return 1 << self.uint.bits - 1


F32 = Format(dt.float32, dt.int32, dt.uint32, 23, 127, co.EXP2_F32, co.LOG2_F32, co.SIN_F32, co.COS_F32,
             co.HALF_PI_F32, co.TWO_OVER_PI_F32[0], co.LOG2E_F32, 2.0 ** 17)


def format_of(x: Reg) -> Format:
    return F32


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
    magic = b.const(f.float, f.round)
    t = b.add(x, magic)
    r = b.sub(x, b.sub(t, magic))
    p = b.bitcast(b.fma(polynomial(b, r, f.exp2), r, b.const(f.float, 1.0)), f.int)
    n = b.bitcast(t, f.int)
    fraction = b.const(f.int, f.fraction)
    y = b.bitcast(b.add(p, b.shl(n, fraction)), f.float)

    def edge() -> list[Reg]:
        # Half of n is added to p's exponent, the other half multiplied in: so the product rounds once where it is
        # denormal, and 2^127.9 is reached though 2^128 is no float.
        k = b.sub(n, b.bitcast(magic, f.int))
        half = b.shr(k, b.const(f.int, 1))
        rest = b.add(b.sub(k, half), b.const(f.int, f.bias))
        v = b.mul(b.bitcast(b.add(p, b.shl(half, fraction)), f.float), b.bitcast(b.shl(rest, fraction), f.float))
        v = b.select(b.lt(x, b.const(f.float, -f.bias - f.fraction - 1.0)), b.const(f.float, 0.0), v)
        v = b.select(b.lt(x, b.const(f.float, f.bias + 1.0)), v, b.const(f.float, float("inf")))
        return [b.select(b.eq(x, x), v, x)]

    normal = b.lt(b.abs(x), b.const(f.float, f.bias - 1.0))
    return b.when(b.not_(normal), [y], edge)[0]


# ---------------------------------------------------------------------------------------------------------------------
# log2


def _split(b: Builder, f: Format, x: Reg) -> tuple[Reg, Reg]:
    """(m, e) with x = m*2^e and 1/sqrt(2) <= m < sqrt(2), for positive normal x; e as a float."""
    bits = b.bitcast(x, f.int)
    above = b.sub(bits, b.const(f.int, _SQRT_HALF[f.float]))
    e = b.shr(above, b.const(f.int, f.fraction))
    m = b.sub(bits, b.shl(e, b.const(f.int, f.fraction)))
    return b.bitcast(m, f.float), b.cast(e, f.float)


_SQRT_HALF = {dt.float32: 0x3f3504f3, dt.float64: 0x3fe6a09e667f3bcd}


def log2(b: Builder, x: Reg) -> Reg:
    """The binary logarithm: -inf at 0, NaN below."""
    f = format_of(x)
    one = b.const(f.float, 1.0)
    bits = b.bitcast(x, f.uint)
    least = b.const(f.uint, 1 << f.fraction)
    span = ((2 * f.bias + 1) << f.fraction) - (1 << f.fraction)
    rare = b.le(b.const(f.uint, span), b.sub(bits, least))  # not a positive normal number
    m, e = _split(b, f, x)

    def denormal() -> list[Reg]:
        up = f.fraction + 1
        m, e = _split(b, f, b.mul(x, b.const(f.float, 2.0 ** up)))
        return [m, b.add(e, b.const(f.float, -float(up)))]

    m, e = b.when(rare, [m, e], denormal)
    y = _log2_of(b, f, m, e)

    def edge() -> list[Reg]:
        zero, inf = b.const(f.float, 0.0), b.const(f.float, float("inf"))
        v = b.select(b.lt(zero, x), y, b.const(f.float, float("nan")))
        v = b.select(b.eq(x, zero), b.const(f.float, -float("inf")), v)
        return [b.select(b.eq(x, inf), inf, v)]

    return b.when(rare, [y], edge)[0]


def _log2_of(b: Builder, f: Format, m: Reg, e: Reg) -> Reg:
    """log2(m) + e."""
    t = b.sub(m, b.const(f.float, 1.0))
    low = b.mul(t, polynomial(b, t, f.log2))
    return b.add(b.fma(t, b.const(f.float, f.log2e[0]), low), e)


# ---------------------------------------------------------------------------------------------------------------------
# sin


def sin(b: Builder, x: Reg, quarter: int = 0) -> Reg:
    """sin(x + quarter*pi/2), the quarter turns added exactly: quarter=1 is cos. Right for every finite x.

    |x| = n*pi/2 + r + low with |r| <= pi/4, low being what r's rounding lost; n's last bits choose sine or cosine of r
    and the sign.
    """
    f = format_of(x)
    ax = b.abs(x)
    magic = b.const(f.float, f.round)
    t = b.fma(ax, b.const(f.float, f.two_over_pi), magic)
    n = b.sub(t, magic)
    p1, p2, p3 = (b.const(f.float, -p) for p in f.half_pi)
    r1 = b.fma(n, p1, ax)  # exact
    r = b.add(r1, b.mul(n, p2))  # no fma: so r1 - r is exact, and low is what the product and the sum have lost
    low = b.fma(n, p3, b.fma(n, p2, b.sub(r1, r)))
    rare = b.not_(b.lt(ax, b.const(f.float, f.reduce_below)))
    q, r, low = b.when(rare, [b.bitcast(t, f.uint), r, low], lambda: _payne_hanek_f32(b, ax))
    if quarter % 4:
        q = b.add(q, b.const(f.uint, quarter % 4))

    z = b.mul(r, r)
    sine = b.add(r, b.fma(b.mul(r, z), polynomial(b, z, f.sin), low))
    # 1 - r^2/2 rounds to h and leaves e; with the other terms, -r*low among them, e is small enough not to round again
    one, half = b.const(f.float, 1.0), b.mul(r, b.const(f.float, -0.5))
    h = b.fma(r, half, one)
    e = b.fma(b.neg(r), low, b.fma(r, half, b.sub(one, h)))
    cosine = b.add(h, b.fma(b.mul(z, z), polynomial(b, z, f.cos), e))
    odd = b.ne(b.and_(q, b.const(f.uint, 1)), b.const(f.uint, 0))
    y = b.bitcast(b.select(odd, cosine, sine), f.uint)
    turn = b.shl(q, b.const(f.uint, f.uint.bits - 2))
    if quarter % 2 == 0:
        turn = b.xor(turn, b.bitcast(x, f.uint))
    return b.bitcast(b.xor(y, b.and_(turn, b.const(f.uint, f.sign))), f.float)


def _payne_hanek_f32(b: Builder, ax: Reg) -> list[Reg]:
    """(quadrant, r, low) of any |x| at least 1; r is NaN where |x| is infinite or NaN.

    |x| = m*2^s with a 24-bit integer m. Bits of 2/pi worth 4 and more after scaling by 2^s only add whole turns, so 96 bits
    from there on suffice: m times them, modulo 2^96, is the quadrant (2 bits) and its fraction, of which 62 bits are kept.
    The nearest that a float32 comes to a multiple of pi/2 leaves 33 of them.
    """
    u32, u64 = dt.uint32, dt.uint64
    bits = b.bitcast(ax, u32)
    exponent = b.bitcast(b.shr(bits, b.const(u32, 23)), dt.int32)
    m = b.cast(b.or_(b.and_(bits, b.const(u32, 0x7fffff)), b.const(u32, 0x800000)), u64)
    first = b.max(b.sub(exponent, b.const(dt.int32, 120)), b.const(dt.int32, 0))
    word, shift = b.shr(first, b.const(dt.int32, 5)), b.bitcast(b.and_(first, b.const(dt.int32, 31)), u32)
    back = b.sub(b.const(u32, 32), shift)
    words = [b.table(u32, co.TWO_OVER_PI_WORDS[:9], b.add(word, b.const(dt.int32, k))) for k in range(4)]
    w0, w1, w2 = (b.cast(b.or_(b.shl(a, shift), b.shr(c, back)), u64) for a, c in zip(words, words[1:], strict=False))
    half = b.const(u64, 32)
    product = b.add(b.add(b.shl(b.mul(m, w0), half), b.mul(m, w1)), b.shr(b.mul(m, w2), half))
    one = b.const(u64, 1)
    quadrant = b.cast(b.shr(b.add(b.shr(product, b.const(u64, 61)), one), one), u32)
    fraction = b.bitcast(b.shl(product, b.const(u64, 2)), dt.int64)  # of a quarter turn, in units of 2^-64
    high = b.cast(fraction, dt.float32)
    rest = b.cast(b.sub(fraction, b.cast(high, dt.int64)), dt.float32)
    c, c_low = (b.const(dt.float32, p * 2.0 ** -64) for p in co.HALF_PI_F32[:2])
    r = b.mul(high, c)
    low = b.fma(high, c_low, b.fma(rest, c, b.fma(high, c, b.neg(r))))
    total = b.add(r, low)
    return [quadrant, b.add(total, b.sub(ax, ax)), b.add(b.sub(r, total), low)]
