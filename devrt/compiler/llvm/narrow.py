"""Casts between element types as LLVM IR, with LIR's semantics: one rounding to nearest even, saturation, NaN -> 0.

bfloat16 and the fp8 formats are converted by integer arithmetic: the hardware's own instruction (VCVTNEPS2BF16) flushes
denormals. float64 goes to a narrower float through float32 rounded to odd, which makes the second rounding the only one
that counts (S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType

if TYPE_CHECKING:
    from devrt.compiler.llvm.emit import Emitter

_NAN_BITS = {dt.bfloat16: 0x7FC0, dt.float8_e4m3: 0x7F, dt.float8_e5m2: 0x7E}


def cast(e: Emitter, src: DType, dst: DType, a: str, u: bool) -> str:
    """Emit `a` of `src` converted to `dst`; returns the result's name. `u`: scalar, else a vector."""
    if src is dst:
        return a
    if src.is_float and src not in (dt.float32, dt.float64):
        wide = _widen(e, src, a, u)
        return cast(e, dt.float32, dst, wide, u)
    if dst.is_float and dst not in (dt.float32, dt.float64):
        if src is dt.float64:
            a = _round_to_odd(e, a, u)
        elif src is not dt.float32:
            # Integers of up to 24 bits are exact in float32; wider ones round to odd from float64 or are exact there.
            via = dt.float32 if src.kind == "bool" or src.bits <= 16 else dt.float64
            a = _int_to_float64_odd(e, src, a, u) if via is dt.float64 else cast(e, src, dt.float32, a, u)
            if via is dt.float64:
                a = _round_to_odd(e, a, u)
        return _narrow(e, dst, a, u)
    return _plain(e, src, dst, a, u)


def _plain(e: Emitter, src: DType, dst: DType, a: str, u: bool) -> str:
    """Between bool, the integers, float32 and float64: LLVM has an operation for each."""
    st, t = e.type(src, u), e.type(dst, u)
    if dst.kind == "bool":
        zero = e.const(src, u, 0.0 if src.is_float else 0)
        return e.op(f"fcmp une {st} {a}, {zero}" if src.is_float else f"icmp ne {st} {a}, {zero}")
    if src.kind == "bool":
        return e.op(f"{'uitofp' if dst.is_float else 'zext'} {st} {a} to {t}")
    if src.is_float and dst.is_float:
        return e.op(f"{'fpext' if dst is dt.float64 else 'fptrunc'} {st} {a} to {t}")
    if src.is_float:
        return _saturate(e, src, dst, a, u)
    if dst.is_float:
        if src.bits < 32:  # widened first, so that LLVM sees where the narrow value was cut from a wide one
            return _plain(e, dt.int32, dst, _plain(e, src, dt.int32, a, u), u)
        return e.op(f"{'si' if src.kind == 'int' else 'ui'}tofp {st} {a} to {t}")
    if src.bits == dst.bits:
        return a
    if src.bits > dst.bits:
        return e.op(f"trunc {st} {a} to {t}")
    return e.op(f"{'sext' if src.kind == 'int' else 'zext'} {st} {a} to {t}")


def _saturate(e: Emitter, src: DType, dst: DType, a: str, u: bool) -> str:
    """A float as an integer: truncated, clamped to the type, 0 for NaN.

    LLVM's own saturating conversion takes vectors of 64-bit integers apart; this one stays in vector registers. The plain
    conversion is poison out of range, which a select that does not choose it stops.
    """
    st, c = e.type(src, u), _cond(e, u)
    if dst.bits < 32:
        wide = _saturate(e, src, dt.int32, a, u)
        t = e.type(dt.int32, u)
        low = e.call(t, f"llvm.smax.{e.suffix(dt.int32, u)}", (t, wide), (t, e.const(dt.int32, u, dst.min)))
        clamped = e.call(t, f"llvm.smin.{e.suffix(dt.int32, u)}", (t, low), (t, e.const(dt.int32, u, dst.max)))
        return e.op(f"trunc {t} {clamped} to {e.type(dst, u)}")
    t = e.type(dst, u)
    r = e.op(f"fpto{'si' if dst.kind == 'int' else 'ui'} {st} {a} to {t}")
    above = e.op(f"fcmp oge {st} {a}, {e.const(src, u, float(dst.max + 1))}")
    inside = e.op(f"fcmp ogt {st} {a}, {e.const(src, u, float(dst.min) if dst.kind == 'int' else -1.0)}")
    ordered = e.op(f"fcmp ord {st} {a}, {a}")
    r = e.op(f"select {c} {inside}, {t} {r}, {t} {e.const(dst, u, dst.min)}")
    r = e.op(f"select {c} {above}, {t} {e.const(dst, u, dst.max)}, {t} {r}")
    return e.op(f"select {c} {ordered}, {t} {r}, {t} {e.const(dst, u, 0)}")


def _bits(e: Emitter, a: str, u: bool) -> str:
    return e.op(f"bitcast {e.type(dt.float32, u)} {a} to {e.type(dt.uint32, u)}")


def _float(e: Emitter, a: str, u: bool) -> str:
    return e.op(f"bitcast {e.type(dt.uint32, u)} {a} to {e.type(dt.float32, u)}")


def _cond(e: Emitter, u: bool) -> str:
    return "i1" if u else e.vec("i1")


def _widen(e: Emitter, src: DType, a: str, u: bool) -> str:
    """float16, bfloat16 or fp8 to float32, exactly."""
    t32, t = e.type(dt.uint32, u), e.type(src, u)
    if src is dt.float16:
        return e.op(f"fpext {t} {a} to {e.type(dt.float32, u)}")
    if src is dt.float8_e5m2:  # the upper byte of a float16
        half = e.op(f"shl {e.type(dt.uint16, u)} {e.op(f'zext {t} {a} to {e.type(dt.uint16, u)}')}, {e.const(dt.uint16, u, 8)}")
        half = e.op(f"bitcast {e.type(dt.uint16, u)} {half} to {e.type(dt.float16, u)}")
        return e.op(f"fpext {e.type(dt.float16, u)} {half} to {e.type(dt.float32, u)}")
    w = e.op(f"zext {t} {a} to {t32}")
    if src is dt.bfloat16:
        return _float(e, e.op(f"shl {t32} {w}, {e.const(dt.uint32, u, 16)}"), u)
    # e4m3: the 7 low bits at the top of float32's exponent and fraction, scaled by the difference of the biases
    magnitude = e.op(f"and {t32} {w}, {e.const(dt.uint32, u, 0x7F)}")
    small = _float(e, e.op(f"shl {t32} {magnitude}, {e.const(dt.uint32, u, 20)}"), u)
    f32 = e.type(dt.float32, u)
    value = _bits(e, e.op(f"fmul {f32} {small}, {e.const(dt.float32, u, 2.0**120)}"), u)
    nan = e.op(f"icmp eq {t32} {magnitude}, {e.const(dt.uint32, u, 0x7F)}")
    value = e.op(f"select {_cond(e, u)} {nan}, {t32} {e.const(dt.uint32, u, 0x7FC00000)}, {t32} {value}")
    sign = e.op(f"shl {t32} {e.op(f'and {t32} {w}, {e.const(dt.uint32, u, 0x80)}')}, {e.const(dt.uint32, u, 24)}")
    return _float(e, e.op(f"or {t32} {value}, {sign}"), u)


def _narrow(e: Emitter, dst: DType, a: str, u: bool) -> str:
    """float32 to float16, bfloat16 or fp8, rounded once."""
    t, t32, c = e.type(dst, u), e.type(dt.uint32, u), _cond(e, u)
    if dst is dt.float16:
        return e.op(f"fptrunc {e.type(dt.float32, u)} {a} to {t}")

    def k(value: int) -> str:
        return e.const(dt.uint32, u, value)

    bits = _bits(e, a, u)
    sign = e.op(f"and {t32} {bits}, {k(0x80000000)}")
    magnitude = e.op(f"xor {t32} {bits}, {sign}")
    drop = 23 - dst.mantissa
    odd = e.op(f"and {t32} {e.op(f'lshr {t32} {magnitude}, {k(drop)}')}, {k(1)}")
    half = e.op(f"add {t32} {odd}, {k((1 << (drop - 1)) - 1)}")
    code = e.op(f"lshr {t32} {e.op(f'add {t32} {magnitude}, {half}')}, {k(drop)}")
    nan = e.op(f"icmp ugt {t32} {magnitude}, {k(0x7F800000)}")
    if dst is not dt.bfloat16:
        bias = (1 << (dst.exponent - 1)) - 1
        code = e.op(f"sub {t32} {code}, {k((127 - bias) << dst.mantissa)}")
        # Below the least normal, adding a power of two whose ulp is the format's quantum rounds and aligns at once.
        quantum = 1 - bias - dst.mantissa
        magic = 2.0 ** (23 + quantum)
        f32 = e.type(dt.float32, u)
        shifted = _bits(e, e.op(f"fadd {f32} {_float(e, magnitude, u)}, {e.const(dt.float32, u, magic)}"), u)
        tiny = e.op(f"sub {t32} {shifted}, {k((23 + quantum + 127) << 23)}")
        small = e.op(f"icmp ult {t32} {magnitude}, {k((1 - bias + 127) << 23)}")
        code = e.op(f"select {c} {small}, {t32} {tiny}, {t32} {code}")
        limit, over = (0x7E, 0x7F) if dst is dt.float8_e4m3 else (0x7B, 0x7C)
        beyond = e.op(f"icmp sgt {t32} {code}, {k(limit)}")
        code = e.op(f"select {c} {beyond}, {t32} {k(over)}, {t32} {code}")
        if dst is dt.float8_e4m3:
            nan = e.op(f"or {c} {nan}, {beyond}")
    signed = e.op(f"or {t32} {code}, {e.op(f'lshr {t32} {sign}, {k(32 - dst.bits)}')}")
    result = e.op(f"select {c} {nan}, {t32} {k(_NAN_BITS[dst])}, {t32} {signed}")
    return e.op(f"trunc {t32} {result} to {t}")


def _round_to_odd(e: Emitter, a: str, u: bool) -> str:
    """float64 to float32, rounded to odd: truncated, the last bit set if anything was lost."""
    f64, f32, t32, c = e.type(dt.float64, u), e.type(dt.float32, u), e.type(dt.uint32, u), _cond(e, u)
    near = e.op(f"fptrunc {f64} {a} to {f32}")
    back = e.op(f"fpext {f32} {near} to {f64}")
    bits = _bits(e, near, u)
    exact = e.op(f"fcmp ueq {f64} {back}, {a}")
    above = e.op(f"fcmp ogt {f64} {e.intrinsic('fabs', dt.float64, u, back)}, {e.intrinsic('fabs', dt.float64, u, a)}")
    truncated = e.op(f"sub {t32} {bits}, {e.op(f'zext {c} {above} to {t32}')}")
    odd = e.op(f"or {t32} {truncated}, {e.const(dt.uint32, u, 1)}")
    return _float(e, e.op(f"select {c} {exact}, {t32} {bits}, {t32} {odd}"), u)


def _int_to_float64_odd(e: Emitter, src: DType, a: str, u: bool) -> str:
    """An integer as float64: exact up to 32 bits; 64-bit ones lose only bits that a sticky bit stands for."""
    if src.bits < 64:
        return _plain(e, src, dt.float64, a, u)
    t, c = e.type(src, u), _cond(e, u)
    low = e.op(f"and {t} {a}, {e.const(src, u, 0x7FF)}")
    some = e.op(f"icmp ne {t} {low}, {e.const(src, u, 0)}")
    high = e.op(f"xor {t} {a}, {low}")
    sticky = e.op(f"or {t} {high}, {e.const(src, u, 0x800)}")
    # Only values of 53 bits or more can lose anything, and there 11 bits are below the sticky bit.
    big = e.op(f"icmp ugt {t} {_magnitude(e, src, a, u)}, {e.const(src, u, 1 << 53)}")
    kept = e.op(f"select {c} {some}, {t} {sticky}, {t} {high}")
    return _plain(e, src, dt.float64, e.op(f"select {c} {big}, {t} {kept}, {t} {a}"), u)


def _magnitude(e: Emitter, src: DType, a: str, u: bool) -> str:
    t = e.type(src, u)
    return a if src.kind == "uint" else e.call(t, f"llvm.abs.{e.suffix(src, u)}", (t, a), ("i1 immarg", "false"))
