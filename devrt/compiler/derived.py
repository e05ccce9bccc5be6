"""Functions composed of the primitives: exp, log, cos, tanh, sigmoid, erf, gelu, pow.

They are written against `Math`, the element-wise primitives of the op set, so the same text builds graphs of Arrays and
LIR. Nothing here branches; results are right in the last bit or nearly so at all special values (docs/numerics.md holds
the measured errors). float16 and bfloat16 are computed in float32 and rounded once at the end.

Sources: J.-M. Muller, "Elementary Functions" 2016 (reductions, compensated steps); T. Dekker 1971, "A floating-point
technique for extending the available precision" (pairs of floats); M. Shepherd, J. Laframboise 1981, "Chebyshev
approximation of (1 + 2x)exp(x^2)erfc x"; C99 annex F.9.4.4 (pow).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from devrt.compiler import coefficients as co
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType

T = TypeVar("T")
Pair = tuple[T, T]  # an unevaluated sum, the second at most half an ulp of the first

INF, NAN = float("inf"), float("nan")


class Math(Protocol[T]):
    """The primitives on values of some representation T. Operands of one call have the same type."""

    def dtype(self, x: T) -> DType: ...
    def const(self, like: T, value: int | float) -> T: ...
    def add(self, a: T, b: T) -> T: ...
    def mul(self, a: T, b: T) -> T: ...
    def div(self, a: T, b: T) -> T: ...
    def fma(self, a: T, b: T, c: T) -> T: ...
    def max(self, a: T, b: T) -> T: ...
    def floor(self, a: T) -> T: ...
    def sqrt(self, a: T) -> T: ...
    def exp2(self, a: T) -> T: ...
    def log2(self, a: T) -> T: ...
    def sin(self, a: T, quarter: int = 0) -> T: ...
    def less(self, a: T, b: T) -> T: ...
    def equal(self, a: T, b: T) -> T: ...
    def where(self, c: T, a: T, b: T) -> T: ...
    def bitand(self, a: T, b: T) -> T: ...
    def bitor(self, a: T, b: T) -> T: ...
    def bitxor(self, a: T, b: T) -> T: ...
    def shl(self, a: T, b: T) -> T: ...
    def shr(self, a: T, b: T) -> T: ...
    def cast(self, a: T, dtype: DType) -> T: ...
    def bitcast(self, a: T, dtype: DType) -> T: ...


@dataclass(frozen=True)
class Tables:
    """A float type and what the functions need to know of it."""

    real: DType
    signed: DType
    fraction: int                 # explicit fraction bits
    bias: int
    exp2: tuple[float, ...]
    exp: tuple[float, ...]
    expm1: tuple[float, ...]
    log: tuple[float, ...]
    ln2: tuple[float, ...]
    log2e: tuple[float, ...]
    sqrt_half: int                # the bits of sqrt(1/2)
    atanh_head: tuple[tuple[float, ...], ...]  # 1/3, .. as pairs
    atanh: tuple[float, ...]
    two_log2e: tuple[float, ...]
    erf_slope: tuple[float, ...]
    erf: tuple[float, ...]
    tail: tuple[float, ...]
    tail_middle: float            # where the tail's variable is 0
    tail_end: float               # beyond it exp(-a^2/2) is 0
    sqrt2: float
    gelu: tuple[tuple[float, ...], tuple[float, ...]]
    exp_range: tuple[float, float]  # below it e^x is 0, above it infinite
    tanh_end: float               # beyond it tanh is 1

    @property
    def round(self) -> float:
        return 1.5 * 2.0 ** self.fraction


F32 = Tables(dt.float32, dt.int32, 23, 127, co.EXP2_F32, co.EXP_F32, co.EXPM1_F32, co.LOG_F32, co.LN2_F32,
             co.LOG2E_F32, 0x3f3504f3, (co.THIRD_F32,), co.ATANH_F32, co.TWO_LOG2E_F32, co.ERF_SLOPE_F32, co.ERF_F32,
             co.TAIL_F32, co.TAIL_MIDDLE_F32[0], 15.0, co.SQRT2_F32[0], (co.GELU_LINEAR_F32, co.GELU_CUBIC_F32),
             (-104.0, 89.0), 10.0)
F64 = Tables(dt.float64, dt.int64, 52, 1023, co.EXP2_F64, co.EXP_F64, co.EXPM1_F64, co.LOG_F64, co.LN2_F64,
             co.LOG2E_F64, 0x3fe6a09e667f3bcd, (co.THIRD_F64, co.FIFTH_F64), co.ATANH_F64, co.TWO_LOG2E_F64,
             co.ERF_SLOPE_F64, co.ERF_F64, co.TAIL_F64, co.TAIL_MIDDLE_F64[0], 39.0, co.SQRT2_F64[0],
             (co.GELU_LINEAR_F64, co.GELU_CUBIC_F64), (-746.0, 710.0), 20.0)


class _Ops(Generic[T]):
    """Math with Python numbers as operands, and a few words more. `like` gives the float type of constants."""

    def __init__(self, m: Math[T], like: T) -> None:
        self.m, self.like = m, like
        self.t = F64 if m.dtype(like) is dt.float64 else F32
        self.zero_bits = m.bitcast(like, self.t.signed)

    def number(self, v: T | float) -> T:
        return self.m.const(self.like, float(v)) if isinstance(v, (int, float)) else v

    def integer(self, v: int) -> T:
        return self.m.const(self.zero_bits, v)

    def add(self, a: T, b: T | float) -> T: return self.m.add(a, self.number(b))
    def sub(self, a: T | float, b: T) -> T: return self.m.fma(b, self.number(-1.0), self.number(a))
    def mul(self, a: T, b: T | float) -> T: return self.m.mul(a, self.number(b))
    def div(self, a: T | float, b: T) -> T: return self.m.div(self.number(a), b)
    def fma(self, a: T, b: T | float, c: T | float) -> T: return self.m.fma(a, self.number(b), self.number(c))
    def neg(self, a: T) -> T: return self.m.mul(a, self.number(-1.0))
    def less(self, a: T | float, b: T | float) -> T: return self.m.less(self.number(a), self.number(b))
    def equal(self, a: T, b: T | float) -> T: return self.m.equal(a, self.number(b))
    def where(self, c: T, a: T | float, b: T | float) -> T: return self.m.where(c, self.number(a), self.number(b))
    def bits(self, a: T) -> T: return self.m.bitcast(a, self.t.signed)
    def real(self, a: T) -> T: return self.m.bitcast(a, self.t.real)

    def abs(self, a: T) -> T:
        return self.real(self.m.bitand(self.bits(a), self.integer(self.t.signed.max)))

    def sign_bit(self, a: T) -> T:
        return self.m.bitand(self.bits(a), self.integer(self.t.signed.min))

    def polynomial(self, x: T, c: Sequence[float]) -> T:
        """c[0] + c[1]*x + .., by Horner's rule."""
        p = self.number(c[-1])
        for k in reversed(c[:-1]):
            p = self.fma(p, x, k)
        return p

    # ----- pairs (Dekker 1971); the products need fma

    def sum_ordered(self, a: T, b: T) -> Pair[T]:
        """a + b exactly, where |a| >= |b| or a = 0."""
        s = self.add(a, b)
        return s, self.add(self.sub(a, s), b)

    def sum(self, a: T, b: T) -> Pair[T]:
        """a + b exactly (D. Knuth 1969)."""
        s = self.add(a, b)
        v = self.sub(s, a)
        return s, self.add(self.sub(a, self.sub(s, v)), self.sub(b, v))

    def product(self, a: T, b: T | float) -> Pair[T]:
        p = self.mul(a, b)
        return p, self.fma(a, b, self.neg(p))

    def times(self, x: Pair[T], y: Pair[T]) -> Pair[T]:
        p, low = self.product(x[0], y[0])
        return self.sum_ordered(p, self.fma(x[0], y[1], self.fma(x[1], y[0], low)))

    def quotient(self, x: tuple[T, T | None], y: Pair[T]) -> T:
        """x/y, nearly rounded once: the error of the first quotient is found by fma and added."""
        inverse = self.div(1.0, y[0])
        q = self.mul(x[0], inverse)
        minus = self.neg(q)
        left = self.fma(minus, y[0], x[0])
        left = left if x[1] is None else self.add(left, x[1])
        return self.fma(self.fma(minus, y[1], left), inverse, q)

    # ----- exponents

    def scales(self, n: T) -> Pair[T]:
        """Two powers of 2 with the product 2^k, n being the bits of k + 2*bias + `round` as a float.

        Half of k each: so that a product with both rounds once where it is below the normal numbers, and reaches up to
        the greatest float though 2^(bias + 1) is no float.
        """
        one = self.integer(1)
        fraction = self.integer(self.t.fraction)
        half, rest = self.m.shr(n, one), self.m.shr(self.m.add(n, one), one)
        return self.real(self.m.shl(half, fraction)), self.real(self.m.shl(rest, fraction))

    def scaled(self, y: T, n: T) -> T:
        """y*2^k with n as `scales` takes it."""
        a, b = self.scales(n)
        return self.m.mul(self.m.mul(y, a), b)

    def rounded(self, x: T, factor: float, offset: int) -> Pair[T]:
        """(k, n): the integer nearest to factor*x as a float, and the bits of k + offset + `round`."""
        t = self.fma(x, factor, self.t.round + offset)
        return self.add(t, -(self.t.round + offset)), self.bits(t)

    def exp(self, x: T, low: T | None = None) -> Pair[T]:
        """(p, n): e^(x + low) = p*2^k, n as `scales` takes it."""
        k, n = self.rounded(x, self.t.log2e[0], 2 * self.t.bias)
        r = self.fma(k, -self.t.ln2[1], self.fma(k, -self.t.ln2[0], x))  # the inner step is exact
        r = r if low is None else self.add(r, low)
        return self.fma(self.polynomial(r, self.t.exp), r, 1.0), n

    def clamped(self, x: T, lo: float, hi: float) -> T:
        """x within [lo, hi]; NaN stays."""
        x = self.where(self.less(x, lo), lo, x)
        return self.where(self.less(hi, x), hi, x)

    def logarithm_split(self, x: T) -> Pair[T]:
        """(m, e): x = m*2^e with 1/sqrt(2) <= m < sqrt(2), for x > 0; e as a float."""
        m, t = self.m, self.t
        up = t.fraction + 1
        small = self.less(x, 2.0 ** (1 - t.bias))
        bits = self.bits(self.where(small, self.mul(x, 2.0 ** up), x))
        above = m.add(bits, self.integer(-t.sqrt_half))
        e = m.cast(m.shr(above, self.integer(t.fraction)), t.real)
        mantissa = m.add(m.bitand(above, self.integer((1 << t.fraction) - 1)), self.integer(t.sqrt_half))
        return self.real(mantissa), self.add(e, self.where(small, -float(up), 0.0))

    def tail(self, a: T) -> T:
        """exp(a^2/2)*Phi(-a) for 0 <= a <= tail_end, Phi the normal distribution."""
        w = self.div(1.0, self.add(a, self.t.tail_middle))
        return self.mul(self.polynomial(self.mul(self.add(a, -self.t.tail_middle), w), self.t.tail), w)


def _wide(m: Math[T], x: T, f: Callable[[_Ops[T], T], T]) -> T:
    """f in the type that x is computed in, rounded back at the end."""
    d = m.dtype(x)
    wide = dt.compute_type(d)
    x = x if wide is d else m.cast(x, wide)
    y = f(_Ops(m, x), x)
    return y if wide is d else m.cast(y, d)


def exp(m: Math[T], x: T) -> T:
    """e^x."""
    return _wide(m, x, _exp)


def _exp(o: _Ops[T], x: T) -> T:
    return o.scaled(*o.exp(o.clamped(x, *o.t.exp_range)))


def log(m: Math[T], x: T) -> T:
    """The natural logarithm: -inf at 0, NaN below."""
    return _wide(m, x, _log)


def _log(o: _Ops[T], x: T) -> T:
    mantissa, e = o.logarithm_split(x)
    f = o.add(mantissa, -1.0)
    # e*ln2 + f rounds to h; what that lost is found exactly and added to the small terms
    h = o.fma(e, o.t.ln2[0], f)
    lost = o.add(f, o.fma(e, o.t.ln2[0], o.neg(h)))
    small = o.fma(o.mul(f, f), o.polynomial(f, o.t.log), o.fma(e, o.t.ln2[1], lost))
    y = o.where(o.equal(x, INF), INF, o.add(h, small))
    return o.where(o.less(0.0, x), y, o.where(o.equal(x, 0.0), -INF, NAN))


def cos(m: Math[T], x: T) -> T:
    """cos x, right for every finite x."""
    return _wide(m, x, lambda o, x: o.m.sin(x, 1))


def sigmoid(m: Math[T], x: T) -> T:
    """1/(1 + e^-x)."""
    return _wide(m, x, _sigmoid)


def _sigmoid(o: _Ops[T], x: T) -> T:
    a = o.neg(o.abs(x))
    return _sigmoid_of(o, x, o.scaled(*o.exp(o.where(o.less(a, o.t.exp_range[0]), o.t.exp_range[0], a))))


def _sigmoid_of(o: _Ops[T], x: T, e: T) -> T:
    """sigmoid(x) from e = e^-|x|."""
    return o.quotient((o.where(o.less(x, 0.0), e, 1.0), None), o.sum_ordered(o.number(1.0), e))


def tanh(m: Math[T], x: T) -> T:
    """The hyperbolic tangent: u/(u + 2) with u = e^(2x) - 1, for |x|."""
    return _wide(m, x, _tanh)


def _tanh(o: _Ops[T], x: T) -> T:
    t = o.t
    a = o.abs(x)
    y = o.mul(o.where(o.less(t.tanh_end, a), t.tanh_end, a), 2.0)
    k, n = o.rounded(y, t.log2e[0], t.bias)
    r0 = o.fma(k, -t.ln2[0], y)
    r = o.fma(k, -t.ln2[1], r0)
    r_low = o.fma(k, -t.ln2[1], o.sub(r0, r))
    p, p_low = o.sum_ordered(r, o.fma(o.mul(r, r), o.polynomial(r, t.expm1), r_low))
    scale = o.real(o.m.shl(n, o.integer(t.fraction)))
    less_one = o.add(scale, -1.0)
    u = o.fma(scale, p, less_one)
    u_low = o.fma(scale, p_low, o.fma(scale, p, o.sub(less_one, u)))
    d, d_low = o.sum(u, o.number(2.0))
    y = o.quotient((u, u_low), (d, o.add(d_low, u_low)))
    return o.real(o.m.bitor(o.bits(y), o.sign_bit(x)))


def erf(m: Math[T], x: T) -> T:
    """The error function: a polynomial up to 1, 1 - 2*Phi(-sqrt(2)*|x|) beyond."""
    return _wide(m, x, _erf)


def _erf(o: _Ops[T], x: T) -> T:
    a = o.abs(x)
    near = o.fma(a, o.t.erf_slope[0], o.mul(a, o.polynomial(o.mul(a, a), o.t.erf)))
    end = o.t.tail_end / 2
    far = o.where(o.less(end, a), end, a)
    p, n = o.exp(o.neg(o.mul(far, far)))
    tail = o.scaled(o.mul(p, o.tail(o.mul(far, o.t.sqrt2))), n)
    y = o.where(o.less(a, 1.0), near, o.fma(tail, -2.0, 1.0))
    return o.real(o.m.bitor(o.bits(y), o.sign_bit(x)))


def gelu(m: Math[T], x: T) -> T:
    """x*Phi(x), Phi the normal distribution: max(x, 0) - |x|*Phi(-|x|), which cancels on neither side of 0."""
    return _wide(m, x, _gelu)


def _gelu(o: _Ops[T], x: T) -> T:
    a = o.abs(x)
    a = o.where(o.less(o.t.tail_end, a), o.t.tail_end, a)
    half, low = o.product(o.mul(a, -0.5), a)
    p, n = o.exp(half, low)
    below = o.scaled(o.mul(o.mul(p, o.tail(a)), a), n)  # |x|*Phi(-|x|)
    return o.sub(o.where(o.less(x, 0.0), -0.0, x), below)


def gelu_tanh(m: Math[T], x: T) -> T:
    """x/2*(1 + tanh(sqrt(2/pi)*(x + 0.044715*x^3))), an approximation of gelu: x*sigmoid of twice that argument."""
    return _wide(m, x, _gelu_tanh)


def _gelu_tanh(o: _Ops[T], x: T) -> T:
    end = o.t.tail_end
    x = o.where(o.less(x, -end), -end, x)
    a = o.abs(x)
    a = o.where(o.less(end, a), end, a)
    linear, cubic = (tuple(map(o.number, c)) for c in o.t.gelu)
    # the argument as a pair: its error is multiplied by its size in the exponential
    slope = o.times(o.product(a, a), (cubic[0], cubic[1]))
    high, low = o.sum(linear[0], slope[0])
    v, v_low = o.times((a, o.number(0.0)), (high, o.add(low, o.add(slope[1], linear[1]))))
    v, v_low = o.neg(v), o.neg(v_low)
    lo = 1.25 * o.t.exp_range[0]  # there x*e^v is 0, too
    p, n = o.exp(o.where(o.less(v, lo), lo, v), v_low)
    scales = o.scales(n)
    negative = o.less(x, 0.0)
    e = o.mul(o.mul(p, scales[0]), scales[1])
    y = o.m.div(o.where(negative, o.mul(p, x), x), o.add(e, 1.0))
    return o.where(negative, o.mul(o.mul(y, scales[0]), scales[1]), y)


def pow(m: Math[T], x: T, y: T) -> T:
    """x^y, special values as in C99: x^0 = 1^y = 1; a negative x needs an integer y."""
    d = m.dtype(x)
    wide = dt.compute_type(d)
    if wide is not d:
        return m.cast(pow(m, m.cast(x, wide), m.cast(y, wide)), d)
    return _pow(_Ops(m, x), x, y)


def _pow(o: _Ops[T], x: T, y: T) -> T:
    m, t = o.m, o.t
    a = o.abs(x)
    high, low = _log2_pair(o, a)
    # y*log2|x| as a pair; beyond the range of the exponent the second part says nothing
    p, p_low = o.product(y, high)
    p_low = o.fma(y, low, p_low)
    inside = o.clamped(p, -float(t.bias + t.fraction + 4), float(t.bias + 3))
    p_low = o.where(m.equal(p, inside), p_low, 0.0)
    k, n = o.rounded(inside, 1.0, 2 * t.bias)
    r = o.add(o.sub(inside, k), p_low)
    z = o.scaled(o.fma(o.polynomial(r, t.exp2), r, 1.0), n)

    whole = m.equal(y, m.floor(y))
    half = o.mul(y, 0.5)
    even = m.equal(half, m.floor(half))
    odd_sign = m.where(even, o.integer(0), m.where(whole, o.sign_bit(x), o.integer(0)))
    z = o.where(o.equal(a, 1.0), 1.0, z)
    z = o.real(m.bitor(o.bits(z), odd_sign))
    finite_negative = m.bitand(o.less(x, 0.0), o.less(-INF, x))
    z = m.where(finite_negative, m.where(whole, z, o.number(NAN)), z)
    nan_in = o.add(o.mul(x, 0.0), y)
    z = m.where(m.equal(x, x), m.where(m.equal(y, y), z, nan_in), nan_in)
    return o.where(m.bitor(o.equal(y, 0.0), o.equal(x, 1.0)), 1.0, z)


def _log2_pair(o: _Ops[T], a: T) -> Pair[T]:
    """log2(a) to nearly twice the precision, a >= 0: e + 2*log2(e)*atanh(s), s = (m - 1)/(m + 1)."""
    t = o.t
    mantissa, e = o.logarithm_split(a)
    f = o.add(mantissa, -1.0)
    d = o.add(mantissa, 1.0)
    d_low = o.sub(mantissa, o.add(d, -1.0))
    s = o.m.div(f, d)
    s_low = o.m.div(o.fma(o.neg(s), d_low, o.fma(o.neg(s), d, f)), d)
    z, z_low = o.product(s, s)
    z_low = o.fma(s, o.mul(s_low, 2.0), z_low)
    tail = o.mul(z, o.polynomial(z, t.atanh))
    head = t.atanh_head[-1]
    pair = o.sum_ordered(o.number(head[0]), o.add(tail, head[1]))
    for c in reversed(t.atanh_head[:-1]):
        p = o.times((z, z_low), pair)
        high, low = o.sum_ordered(o.number(c[0]), p[0])
        pair = high, o.add(low, o.add(p[1], c[1]))
    p = o.times((z, z_low), pair)
    high, low = o.sum_ordered(o.number(1.0), p[0])
    pair = o.times((s, s_low), (high, o.add(low, p[1])))
    pair = o.times(pair, (o.number(t.two_log2e[0]), o.number(t.two_log2e[1])))
    high, low = o.sum_ordered(e, pair[0])
    high, low = o.sum_ordered(high, o.add(low, pair[1]))
    infinite = o.equal(a, INF)
    high = o.where(o.equal(a, 0.0), -INF, o.where(infinite, INF, high))
    return high, o.where(o.equal(o.sub(high, high), 0.0), low, 0.0)
