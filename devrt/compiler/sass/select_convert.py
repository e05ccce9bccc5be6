"""Casts: one rounding to nearest even, saturation, NaN -> 0, canonical NaNs (lir.py).

The storage types are words: float16, bfloat16 and the two of 8 bits as their bits, extended by zeros. fp8, and bfloat16 before
sm_80, are converted by integer arithmetic. float64 goes to them through float32 rounded to odd, so that the second rounding is
the only one that counts (S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.sass import division
from devrt.compiler.sass import select_integer as integer
from devrt.compiler.sass.instruction import Operand
from devrt.compiler.sass.select_emit import ZERO, Bool, Pair
from devrt.compiler.sass.select_float import NAN, bits32

if TYPE_CHECKING:
    from devrt.compiler.sass.select import Selector

_NAN_BITS = {dt.float16: 0x7E00, dt.bfloat16: 0x7FC0, dt.float8_e4m3: 0x7F, dt.float8_e5m2: 0x7E}
Value = Operand | Pair | Bool


def cast(s: Selector, src: DType, dst: DType, a: Value, *, exact_nan: bool) -> Value:
    """`a` of type `src` as `dst`. `exact_nan`: whether anybody sees the bits of a NaN in the result."""
    if src is dst:
        return a
    if isinstance(a, Bool):
        return cast(s, dt.uint8, dst, s.bit(a), exact_nan=exact_nan)
    if dst is dt.bool_:
        return _truth(s, src, a)
    if not src.is_float:
        return _from_integer(s, src, dst, a)
    if src.bits < 32:
        assert isinstance(a, Operand)
        return cast(s, dt.float32, dst, _widen(s, src, a, exact_nan=exact_nan and dst is dt.float32),
                    exact_nan=exact_nan)
    if dst.is_int:
        return _to_integer(s, src, dst, a)
    if dst is dt.float64:
        assert isinstance(a, Operand)
        r = s.pair(s.emit("F2F", ("F64", "F32"), s.reg(a), words=2))
        if not exact_nan:
            return r
        return s.choose_pair(_is_nan(s, s.reg(a)), s.pair_constant(0x7FF8 << 48), r)
    if dst is dt.float32:
        assert isinstance(a, Pair)
        near = s.emit("F2F", ("F32", "F64"), s.whole(a))
        return s.choose(_is_nan(s, near), s.imm(NAN), near) if exact_nan else near
    return _narrow(s, dst, _to_odd(s, a) if isinstance(a, Pair) else s.reg(a), exact_nan=exact_nan)


def _is_nan(s: Selector, a: Operand) -> Bool:
    return s.compare("FSETP", ("NAN",), a, a)


def _truth(s: Selector, src: DType, a: Operand | Pair) -> Bool:
    if src is dt.float64:
        assert isinstance(a, Pair)
        return s.compare("DSETP", ("NEU",), s.whole(a), integer.NO_PAIR)
    if src.is_float:
        assert isinstance(a, Operand)
        wide = a if src is dt.float32 else _widen(s, src, a, exact_nan=False)
        return s.compare("FSETP", ("NEU",), s.reg(wide), ZERO)
    if isinstance(a, Pair):
        return s.test(integer.logic(s, "or", a.lo, s.hi(a)) if a.hi is not None else a.lo)
    return s.test(a)


# ----- integers


def _from_integer(s: Selector, src: DType, dst: DType, a: Operand | Pair) -> Value:
    if dst.is_int:
        low = a.lo if isinstance(a, Pair) else a
        if dst.bits == 64:
            return a if isinstance(a, Pair) else Pair(low, None if src.kind == "int" else ZERO)
        fits = src.bits < dst.bits and (src.kind == "uint" or dst.kind == "int")
        return low if fits else integer.extend(s, dst, low)
    if isinstance(a, Pair):
        kind = "S64" if src.kind == "int" else "U64"
        if dst is dt.float32:
            return s.emit("I2F", (kind,), s.whole(a))
        if dst is dt.float64:
            return s.pair(s.emit("I2F", ("F64", kind), s.whole(a), words=2))
        kept = _sticky64(s, a, signed=src.kind == "int")
        return _narrow(s, dst, _to_odd(s, s.pair(s.emit("I2F", ("F64", kind), s.whole(kept), words=2))), exact_nan=False)
    signed = src.kind == "int"
    a = s.reg(a)
    if dst is dt.float64:
        return s.pair(s.emit("I2F", ("F64",) if signed else ("F64", "U32"), a, words=2))
    if dst is dt.float32:
        return division.to_float(s, a, signed=signed)
    a = a if src.bits < 32 else _sticky(s, a, signed=signed)
    return _narrow(s, dst, division.to_float(s, a, signed=signed), exact_nan=False)


def _sticky(s: Selector, a: Operand, *, signed: bool) -> Operand:
    """A word that float32 holds, and that rounds to fewer bits as `a` does: where it has more than 24, the last 8 become one bit
    above them that stands for all."""
    low = integer.logic(s, "and", a, s.imm(0xFF))
    some = s.choose(s.test(low), s.imm(0x100), ZERO)
    kept = integer.merged(s, a, 0xFFFFFF00, some)
    size = integer.absolute(s, a) if signed else a
    return s.choose(integer.compare(s, "GE", size, s.imm(1 << 24), signed=False), kept, a)


def _sticky64(s: Selector, a: Pair, *, signed: bool) -> Pair:
    """The same for float64: of more than 53 bits, the last 11."""
    some = s.choose(s.test(integer.logic(s, "and", a.lo, s.imm(0x7FF))), s.imm(0x800), ZERO)
    kept = integer.merged(s, a.lo, 0xFFFFF800, some)
    size = s.hi(integer.absolute64(s, a)) if signed else s.hi(a)
    large = integer.compare(s, "GE", size, s.imm(1 << 21), signed=False)
    return Pair(s.choose(large, kept, a.lo), s.hi(a))


def _to_integer(s: Selector, src: DType, dst: DType, a: Operand | Pair) -> Operand | Pair:
    if dst.bits < 32:
        wide = _to_integer(s, src, dt.int32, a)
        assert isinstance(wide, Operand)
        low = integer.extreme(s, "max", wide, s.imm(dst.min), signed=True)
        return integer.extreme(s, "min", low, s.imm(dst.max), signed=True)
    kind = {"int32": (), "uint32": ("U32",), "int64": ("S64",), "uint64": ("U64",)}[dst.name]
    if isinstance(a, Pair):
        whole = s.whole(a)
        nan = s.compare("DSETP", ("NAN",), whole, whole)
        raw = s.emit("F2I", (*kind, "F64", "TRUNC"), whole, words=dst.bits // 32)
    else:
        a = s.reg(a)
        if dst.bits == 32:
            return s.emit("F2I", (*kind, "TRUNC", "NTZ"), a)
        nan = _is_nan(s, a)
        raw = s.emit("F2I", (*kind, "TRUNC"), a, words=2)
    if dst.bits == 64:
        return s.choose_pair(nan, Pair(ZERO, ZERO), s.pair(raw))
    return s.choose(nan, ZERO, raw)


# ----- storage types


def _widen(s: Selector, src: DType, a: Operand, *, exact_nan: bool) -> Operand:
    """float16, bfloat16 or fp8 as float32, exactly."""
    a = s.reg(a)
    if src is dt.bfloat16:
        return integer.shift_left(s, a, s.imm(16))
    if src is not dt.float8_e4m3:
        half = integer.shift_left(s, a, s.imm(8)) if src is dt.float8_e5m2 else a
        r = s.emit("HADD2", ("F32",), s.minus_zero, s.derived(half, "H0_H0", lambda: Operand(half.value, select="H0_H0")))
        return s.choose(_is_nan(s, r), s.imm(NAN), r) if exact_nan else r
    # the 7 low bits at the top of float32's exponent and fraction, scaled by the difference of the biases
    magnitude = integer.logic(s, "and", a, s.imm(0x7F))
    scaled = s.emit("FMUL", (), integer.shift_left(s, magnitude, s.imm(20)), s.imm(bits32(2.0**120)))
    scaled = s.choose(integer.compare(s, "eq", magnitude, s.imm(0x7F), signed=False), s.imm(NAN), scaled)
    return integer.merged(s, integer.shift_left(s, a, s.imm(24)), 1 << 31, scaled)


def _narrow(s: Selector, dst: DType, a: Operand, *, exact_nan: bool) -> Operand:
    """float32 in a register as float16, bfloat16 or fp8, rounded once."""
    sm = s.f.sm
    if dst is dt.float16 or dst is dt.bfloat16 and sm >= 80:
        if sm < 80:
            raw = s.emit("F2F", ("F16", "F32"), a)
        else:
            kind = ("BF16",) if dst is dt.bfloat16 else ("F16",)
            mods = (*kind, "F32", "PACK_AB") if sm >= 89 else (*(() if dst is dt.float16 else kind), "PACK_AB")
            raw = s.emit("F2FP", mods, ZERO, a)
        return s.choose(_is_nan(s, a), s.imm(_NAN_BITS[dst]), raw) if exact_nan else raw
    nan = _is_nan(s, a)
    magnitude = integer.logic(s, "and", a, s.imm(0x7FFFFFFF))
    drop = 23 - dst.mantissa
    odd = integer.logic(s, "and", integer.shift_right(s, magnitude, s.imm(drop), signed=False), s.imm(1))
    code = integer.shift_right(s, integer.add(s, magnitude, odd, s.imm((1 << drop - 1) - 1)), s.imm(drop), signed=False)
    if dst is not dt.bfloat16:
        bias = (1 << dst.exponent - 1) - 1
        code = integer.sub(s, code, s.imm((127 - bias) << dst.mantissa))
        # Below the least normal, adding a power of two whose ulp is the format's quantum rounds and aligns at once.
        quantum = 1 - bias - dst.mantissa
        shifted = s.emit("FADD", (), magnitude, s.imm(bits32(2.0 ** (23 + quantum))))
        tiny = integer.sub(s, shifted, s.imm((23 + quantum + 127) << 23))
        small = integer.compare(s, "lt", magnitude, s.imm((1 - bias + 127) << 23), signed=False)
        code = s.choose(small, tiny, code)
        limit, over = (0x7E, 0x7F) if dst is dt.float8_e4m3 else (0x7B, 0x7C)
        beyond = integer.compare(s, "GT", code, s.imm(limit), signed=True)
        code = s.choose(beyond, s.imm(over), code)
    sign = integer.shift_right(s, a, s.imm(32 - dst.bits), signed=False)
    signed = integer.merged(s, sign, 1 << dst.bits - 1, code)
    if dst is dt.float8_e4m3:  # beyond the greatest number there is NaN
        signed = s.choose(beyond, s.imm(0x7F), signed)
    return s.choose(nan, s.imm(_NAN_BITS[dst]), signed)


def _to_odd(s: Selector, a: Pair) -> Operand:
    """float64 as float32 rounded to odd: truncated, the last bit set if anything was lost."""
    whole = s.whole(a)
    cut = s.emit("F2F", ("F32", "F64", "RZ"), whole)
    lost = s.compare("DSETP", ("NEU",), s.emit("F2F", ("F64", "F32"), cut, words=2), whole)
    return s.choose(lost, integer.logic(s, "or", cut, s.imm(1)), cut)


