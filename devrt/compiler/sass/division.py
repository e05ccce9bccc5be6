"""Exact division. Floats: an approximation of 1/b, a Newton step or two, then remainders, which fma gives without error.

MUFU.RCP may be off by two units in the last place and MUFU.RCP64H by two of its high word: the sequences hold for all of these.
The last fma rounds correctly if y is 1/b to half a unit, or a little above it where b is just below a power of two; there 1/b
lies just above the middle of two floats, so a Newton step that errs upwards by 2^-17 units (2^-28) finds the right one. For
float32, all a were tried with the 200 greatest fractions of b; for others the bound on the error suffices (P. Markstein, "IA-64
and Elementary Functions", 2000). Where the remainder could lose bits or the quotient leave the normal range, a second sequence
runs, which a warp skips if none of its lanes needs it.

Integers, unsigned: the scaled reciprocal never exceeds 2^32/b and is too small by less than 2^-19 of itself; one step squares
that, and the quotient is then short by two at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devrt.compiler.sass import select_integer as integer
from devrt.compiler.sass.instruction import TRUE, File, Operand
from devrt.compiler.sass.select_emit import ZERO, Bool, Pair

if TYPE_CHECKING:
    from devrt.compiler.sass.select_emit import Emitter

_ONE, _UP = 0x3F800000, (127 - 40) << 23
_ONE64, _UP64 = 0x3FF << 52, (1023 - 80) << 52
_BIAS, _BIAS64 = 127, 1023
_SAFE = 60  # both operands within 2^-60 .. 2^60: quotients and remainders are exact where they have to be


def float32(s: Emitter, a: Operand, b: Operand) -> Operand:
    """a / b of registers, rounded once."""
    found: Operand = s.once(("div f32",), (a, b), lambda: _float32(s, a, b))
    return found


def _float32(s: Emitter, a: Operand, b: Operand) -> Operand:
    y = s.emit("MUFU", ("RCP",), b)
    minus = s.neg(b)
    one = s.imm(_ONE)
    e = s.emit("FADD", (), s.emit("FFMA", (), minus, y, one), s.imm(_UP))
    y = s.emit("FFMA", (), y, e, y)
    q = s.emit("FMUL", (), a, y)
    q = s.emit("FFMA", (), s.emit("FFMA", (), minus, q, a), y, q)
    result = s.new()
    s.put("FFMA", (), (result,), (s.emit("FFMA", (), minus, q, a), y, q))
    wild = None
    for x in (a, b):
        exponent = integer.logic(s, "and", x, s.imm(0x7F800000))
        off = integer.add(s, exponent, s.imm(-((_BIAS - _SAFE) << 23)))
        outside = s.compare("ISETP", ("GE", "U32"), off, s.imm(2 * _SAFE << 23))
        wild = outside if wild is None else Bool(outside.op, outside.mods, outside.srcs, "OR", wild, depth=2, level=outside.level)
    assert wild is not None
    s.kept.append(wild)
    s.when(wild, lambda: _any_float32(s, a, b, wild, result))
    return result


def _any_float32(s: Emitter, a: Operand, b: Operand, where: Bool, result: Operand) -> None:
    """As float64, where every float32 is normal and a quotient rounds again to what it would have been rounded to at once. Zeros,
    infinities and NaNs come out of a * (1/b)."""
    wide, by = (s.emit("F2F", ("F64", "F32"), x, words=2) for x in (a, b))
    y = _reciprocal64(s, by)
    first = s.emit("DMUL", (), wide, y[0], words=2)
    q = _quotient64(s, wide, by, y[1])
    exponent = integer.logic(s, "and", s.part(first, 1), s.imm(0x7FF00000))
    special = s.compare("ISETP", ("GE", "U32"), integer.add(s, exponent, s.imm(-(1 << 20))), s.imm(0x7FE00000))
    chosen = s.whole(s.choose_pair(special, s.pair(first), s.pair(q)))
    narrow = s.emit("F2F", ("F32", "F64"), chosen)
    s.put("MOV", (), (result,), (narrow,), s.predicate(where))


def _reciprocal64(s: Emitter, b: Operand) -> tuple[Operand, Operand]:
    """(the approximation of 1/b, 1/b to the last place or so) of a two-word register."""
    one = s.whole(s.pair_constant(_ONE64))
    minus = s.neg(b)
    rough = s.whole(Pair(ZERO, s.emit("MUFU", ("RCP64H",), s.part(b, 1))))
    e = s.emit("DFMA", (), minus, rough, one, words=2)
    e = s.emit("DFMA", (), e, e, e, words=2)
    y = s.emit("DFMA", (), rough, e, rough, words=2)
    e = s.emit("DADD", (), s.emit("DFMA", (), minus, y, one, words=2), s.whole(s.pair_constant(_UP64)), words=2)
    return rough, s.emit("DFMA", (), e, y, y, words=2)


def _quotient64(s: Emitter, a: Operand, b: Operand, y: Operand) -> Operand:
    """a / b of normal numbers far from the ends of the range."""
    minus = s.neg(b)
    q = s.emit("DMUL", (), a, y, words=2)
    for _ in range(2):
        q = s.emit("DFMA", (), s.emit("DFMA", (), minus, q, a, words=2), y, q, words=2)
    return q


def float64(s: Emitter, a: Pair, b: Pair) -> Pair:
    """a / b, rounded once."""
    x, by = s.whole(a), s.whole(b)
    return s.pair(s.once(("div f64",), (x, by), lambda: _float64(s, x, by)))


_SAFE64 = 500


def _float64(s: Emitter, a: Operand, b: Operand) -> Operand:
    result = s.new(2)
    _, y = _reciprocal64(s, b)
    q = s.pair(_quotient64(s, a, b, y))
    s.put("MOV", (), (s.part(result, 0),), (q.lo,))
    s.put("MOV", (), (s.part(result, 1),), (s.hi(q),))
    wild = None
    for x in (a, b):
        exponent = integer.logic(s, "and", s.part(x, 1), s.imm(0x7FF00000))
        off = integer.add(s, exponent, s.imm(-((_BIAS64 - _SAFE64) << 20)))
        outside = s.compare("ISETP", ("GE", "U32"), off, s.imm(2 * _SAFE64 << 20))
        wild = outside if wild is None else Bool(outside.op, outside.mods, outside.srcs, "OR", wild, depth=2, level=outside.level)
    assert wild is not None
    s.kept.append(wild)
    s.when(wild, lambda: _any_float64(s, a, b, wild, result))
    return result


def _fraction(s: Emitter, x: Operand) -> tuple[Operand, Operand]:
    """(|x| as a number in [1, 2), the exponent of two that it lacks) of a finite number other than 0."""
    high = integer.logic(s, "and", s.part(x, 1), s.imm(0x7FFFFFFF))
    tiny = integer.compare(s, "lt", high, s.imm(1 << 20), signed=False)
    up = s.whole(s.pair_constant((_BIAS64 + 54) << 52))
    scaled = s.pair(s.emit("DMUL", (), s.whole(Pair(s.part(x, 0), high)), up, words=2))
    low, high = s.choose(tiny, scaled.lo, s.part(x, 0)), s.choose(tiny, s.hi(scaled), high)
    shifted = integer.shift_right(s, high, s.imm(20), signed=False)
    exponent = integer.sub(s, shifted, s.choose(tiny, s.imm(54), ZERO))
    mantissa = integer.merged(s, high, 0xFFFFF, s.imm(0x3FF00000))
    return s.whole(Pair(low, mantissa)), exponent


def _any_float64(s: Emitter, a: Operand, b: Operand, where: Bool, result: Operand) -> None:
    """The quotient of the fractions as an integer of 55 bits whose last stands for all that follow, shifted to where it
    belongs and rounded there once."""
    (x, ea), (y, eb) = _fraction(s, a), _fraction(s, b)
    q = _quotient64(s, x, y, _reciprocal64(s, y)[1])
    rest = s.pair(s.emit("DFMA", (), s.neg(y), q, x, words=2))
    words = s.pair(q)
    # q is in (1/2, 2): its 53 bits, two more to the right, the last of them set where there is a remainder (one less if negative)
    of_q = integer.shift_right(s, s.hi(words), s.imm(20), signed=False)
    bits = Pair(words.lo, integer.merged(s, s.hi(words), 0xFFFFF, s.imm(0x100000)))
    four = integer.shift64(s, "shl", bits, s.imm(2), signed=False)
    none = integer.compare(s, "eq", integer.merged(s, s.hi(rest), 0x7FFFFFFF, rest.lo),
                           ZERO, signed=False)
    below = integer.compare(s, "lt", s.hi(rest), ZERO, signed=True)
    step = s.choose(none, ZERO, s.choose(below, s.imm(-1), s.imm(1)))
    exact = integer.add64(s, four, Pair(step, None))
    # the quotient's exponent field; below 1 its bits go right
    field = integer.add(s, integer.sub(s, ea, eb), of_q)
    drop = integer.extreme(s, "max", integer.sub(s, s.imm(1), field), ZERO, signed=True)
    drop = integer.add(s, integer.extreme(s, "min", drop, s.imm(61), signed=True), s.imm(2))
    kept = integer.shift64(s, "shr", exact, drop, signed=False)
    odd = integer.logic(s, "and", kept.lo, s.imm(1))
    half = integer.sub64(s, integer.shift64(s, "shl", Pair(s.imm(1), ZERO), integer.sub(s, drop, s.imm(1)), signed=False),
                         s.pair_constant(1))
    rounded = integer.shift64(s, "shr", integer.add64(s, integer.add64(s, exact, half), Pair(odd, ZERO)), drop, signed=False)
    # a normal number: the leading bit of `rounded` counts one in the field
    normal = integer.sub(s, integer.extreme(s, "max", field, s.imm(1), signed=True), s.imm(1))
    high = integer.add(s, s.hi(rounded), integer.shift_left(s, normal, s.imm(20)))
    over = integer.compare(s, "GE", normal, s.imm(0x7FE), signed=True)
    high = s.choose(over, s.imm(0x7FF00000), high)
    low = s.choose(over, ZERO, rounded.lo)
    sign = s.emit("LOP3", ("LUT",), s.part(a, 1), s.part(b, 1), s.reg(s.imm(1 << 31)), s.byte(0x28), s.inv(TRUE))  # (a ^ b) & c
    high = integer.logic(s, "or", high, sign)
    # zeros, infinities and NaNs: what a * (1/b) gives, of numbers like 1 in place of finite ones that are not 0
    tame = [_tame(s, x) for x in (a, b)]
    reciprocal = s.whole(Pair(ZERO, s.emit("MUFU", ("RCP64H",), s.part(tame[1][0], 1))))
    special = s.pair(s.emit("DMUL", (), tame[0][0], reciprocal, words=2))
    either = Bool(tame[0][1].op, tame[0][1].mods, tame[0][1].srcs, "OR", tame[1][1], depth=2, level=s.here)
    s.kept.append(either)
    chosen = s.choose_pair(either, special, Pair(low, high))
    p = s.predicate(where)
    s.put("MOV", (), (s.part(result, 0),), (chosen.lo,), p)
    s.put("MOV", (), (s.part(result, 1),), (s.hi(chosen),), p)


def _tame(s: Emitter, x: Operand) -> tuple[Operand, Bool]:
    """(x where it is 0, infinite or NaN, else 1 with its sign; whether it is one of these)"""
    word = s.part(x, 1)
    magnitude = integer.logic(s, "and", word, s.imm(0x7FFFFFFF))
    zero = integer.compare(s, "eq", integer.logic(s, "or", magnitude, s.part(x, 0)), ZERO, signed=False)
    large = integer.compare(s, "GE", magnitude, s.imm(0x7FF00000), signed=False)
    odd = s.test(s.choose(zero, s.imm(1), s.bit(large)))
    one = integer.merged(s, word, 1 << 31, s.imm(0x3FF00000))
    return s.whole(Pair(s.choose(odd, s.part(x, 0), ZERO), s.choose(odd, word, one))), odd


# ----- integers


def unsigned32(s: Emitter, a: Operand, b: Operand) -> tuple[Operand, Operand]:
    """(a / b, a rem b) of unsigned words in registers; (anything, anything) where b is 0."""
    found: tuple[Operand, Operand] = s.once(("udiv",), (a, b), lambda: _unsigned32(s, a, b))
    return found


def _unsigned32(s: Emitter, a: Operand, b: Operand) -> tuple[Operand, Operand]:
    y = s.emit("MUFU", ("RCP",), to_float(s, b, signed=False))
    z = s.emit("F2I", ("U32", "TRUNC", "NTZ"), s.emit("FMUL", (), y, s.imm(0x4F7FFFE0)))  # 2^32 * (1 - 2^-19)
    minus = integer.sub(s, ZERO, b)
    z = integer.add(s, z, integer.mulhi(s, z, integer.mul(s, minus, z), signed=False))
    q = integer.mulhi(s, a, z, signed=False)
    r = integer.mul(s, q, minus, a)
    for _ in range(2):
        more = integer.compare(s, "GE", r, b, signed=False)
        q, r = s.choose(more, integer.add(s, q, s.imm(1)), q), s.choose(more, integer.sub(s, r, b), r)
    return q, r


def to_float(s: Emitter, a: Operand, *, signed: bool) -> Operand:
    """A word as float32."""
    if s.f.sm >= 86:
        return s.emit("I2FP", ("F32", "S32" if signed else "U32"), a)
    return s.emit("I2F", () if signed else ("U32",), a)


def by_constant(s: Emitter, a: Operand, divisor: int, most: int) -> Operand:
    """a / divisor of an unsigned word that is at most `most`, by a product (Granlund and Montgomery, "Division by invariant
    integers using multiplication", 1994): m = ceil(2^(32+k) / divisor) serves if its excess, times `most`, is below 2^(32+k)."""
    if divisor & (divisor - 1) == 0:
        return integer.shift_right(s, a, s.imm(divisor.bit_length() - 1), signed=False)
    if most < divisor:
        return ZERO
    for k in range(33):
        m = -(-(1 << 32 + k) // divisor)
        if (m * divisor - (1 << 32 + k)) * most < 1 << 32 + k:
            break
    if m < 1 << 32:
        high = integer.mulhi(s, a, s.imm(m), signed=False)
        return integer.shift_right(s, high, s.imm(k), signed=False) if k else high
    # m has 33 bits: a*m / 2^32 is high + a, whose carry is not lost if half of the difference is taken first
    high = integer.mulhi(s, a, s.imm(m - (1 << 32)), signed=False)
    half = integer.add(s, integer.shift_right(s, integer.sub(s, a, high), s.imm(1), signed=False), high)
    return integer.shift_right(s, half, s.imm(k - 1), signed=False)


def unsigned64(s: Emitter, a: Pair, b: Pair) -> tuple[Pair, Pair]:
    """(a / b, a rem b) bit by bit; anything where b is 0."""
    found: tuple[Pair, Pair] = s.once(("udiv64",), (a.lo, s.hi(a), b.lo, s.hi(b)), lambda: _unsigned64(s, a, b))
    return found


def _unsigned64(s: Emitter, a: Pair, b: Pair) -> tuple[Pair, Pair]:
    quotient, rest, count = [s.new(), s.new()], [s.new(), s.new()], s.new()
    words = s.reg(b.lo), s.reg(s.hi(b))
    for dst, src in zip((*quotient, *rest, count), (a.lo, s.hi(a), ZERO, ZERO, s.imm(64)), strict=True):
        s.put("MOV", (), (dst,), (src,))
    head = s.label("divide")
    one = s.imm(1)
    with s.region(fixed=True) as body:
        top, carry, over, below = s.new(), *(s.new(file=File.P) for _ in range(3))
        difference = s.new(), s.new()
        fits = s.new()
        s.put("SHF", ("R", "U32", "HI"), (top,), (ZERO, s.imm(31), rest[1]))  # the bit that leaves the rest
        s.put("SHF", ("L", "U64", "HI"), (rest[1],), (rest[0], one, rest[1]))
        s.put("SHF", ("L", "U64", "HI"), (rest[0],), (quotient[1], one, rest[0]))
        s.put("SHF", ("L", "U64", "HI"), (quotient[1],), (quotient[0], one, quotient[1]))
        s.put("SHF", ("L", "U32"), (quotient[0],), (quotient[0], one, ZERO))
        s.put("IADD3", (), (difference[0], carry), (s.neg(words[0]), rest[0], ZERO))
        s.put("IADD3", ("X",), (difference[1], below), (s.inv(words[1]), rest[1], ZERO, carry, s.inv(TRUE)))
        s.put("SEL", (), (fits,), (ZERO, one, s.inv(below)))
        s.put("LOP3", ("LUT",), (fits,), (fits, top, ZERO, s.byte(0xFC), s.inv(TRUE)))
        s.put("ISETP", ("NE", "AND"), (over, TRUE), (fits, ZERO, TRUE))
        for word in range(2):
            s.put("SEL", (), (rest[word],), (difference[word], rest[word], over))
        s.put("LOP3", ("LUT",), (quotient[0],), (quotient[0], fits, ZERO, s.byte(0xFC), s.inv(TRUE)))
        s.put("IADD3", (), (count,), (count, s.imm(-1), ZERO))
        again = s.new(file=File.P)
        s.put("ISETP", ("NE", "AND"), (again, TRUE), (count, ZERO, TRUE))
        s.branch(head, again)
    s.mark(head)
    s.regions[-1] += body
    s.mark(s.label("divided"))
    return Pair(quotient[0], quotient[1]), Pair(rest[0], rest[1])
