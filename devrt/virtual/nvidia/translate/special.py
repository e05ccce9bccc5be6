"""MUFU: reciprocals, roots, exponentials, logarithms, sines by the special function unit.

Hardware's results are approximations whose bits are not documented. Here they are computed in float64 and rounded once, then
moved by `Writer.mufu_error` units in the last place, away from zero where it is positive: programs that claim exact results must
come out right for -1, 0 and 1. Denormals count as zero, in and out: ptxas scales operands where a program wants them kept (its
code for rcp.approx.f32, rsqrt.approx.f32, ex2.approx.f32, lg2.approx.f32). TANH and the 16-bit formats keep them (PTX ISA,
tanh.approx, ex2.approx). RCP64H and RSQ64H take and give the high word of a float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from devrt.compiler.sass.instruction import Instruction
from devrt.virtual.nvidia.translate import rounding
from devrt.virtual.nvidia.translate.half import raw_halves
from devrt.virtual.nvidia.translate.writer import Rule, Writer, named

RULES: dict[str, Rule] = {}
Compute = Callable[[Writer, str], str]  # of float64


def _op(w: Writer, name: str, a: str, b: str) -> str:
    return w.op(f"{name} {w.t('double')} {a}, {b}")


def _k(w: Writer, value: float) -> str:
    return w.const("double", value)


def polynomial(w: Writer, x: str, coefficients: Sequence[float]) -> str:
    """c0 + c1 x + c2 x^2 + .."""
    r = _k(w, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        r = w.intrinsic("fma", "double", r, x, _k(w, c))
    return r


def reciprocal(w: Writer, x: str) -> str:
    return _op(w, "fdiv", _k(w, 1.0), x)


def reciprocal_root(w: Writer, x: str) -> str:
    """-0 gives minus infinity."""
    return reciprocal(w, root(w, x))


def root(w: Writer, x: str) -> str:
    return w.intrinsic("sqrt", "double", x)


def exp2(w: Writer, x: str) -> str:
    """2^x for every float32: 2^n times the series of exp."""
    x = w.intrinsic("maximum", "double", w.intrinsic("minimum", "double", x, _k(w, 1000.0)), _k(w, -1000.0))
    n = w.intrinsic("roundeven", "double", x)
    fraction = _op(w, "fmul", _op(w, "fsub", x, n), _k(w, math.log(2)))
    series = polynomial(w, fraction, [1 / math.factorial(k) for k in range(14)])
    whole = w.op(f"freeze {w.t('i64')} {w.op('fptosi ' + w.t('double') + f' {n} to ' + w.t('i64'))}")  # of NaN: anything
    biased = w.op(f"add {w.t('i64')} {whole}, {w.const('i64', 1023)}")
    field = w.op(f"shl {w.t('i64')} {biased}, {w.const('i64', 52)}")
    return _op(w, "fmul", series, w.cast(field, "i64", "double"))


def log2(w: Writer, x: str) -> str:
    """Of a positive number or zero: the exponent, and the series of artanh."""
    t, wide = w.t("double"), w.t("i64")
    raw = w.cast(x, "double", "i64")
    start = w.op(f"sub {wide} {raw}, {w.const('i64', 0x3FE6A09E667F3BCD)}")  # from sqrt(1/2) to sqrt(2)
    exponent = w.op(f"ashr {wide} {start}, {w.const('i64', 52)}")
    mantissa = w.cast(w.op(f"sub {wide} {raw}, {w.op(f'shl {wide} {exponent}, ' + w.const('i64', 52))}"), "i64", "double")
    s = _op(w, "fdiv", _op(w, "fsub", mantissa, _k(w, 1.0)), _op(w, "fadd", mantissa, _k(w, 1.0)))
    series = polynomial(w, _op(w, "fmul", s, s), [2 / math.log(2) / (2 * k + 1) for k in range(12)])
    r = w.intrinsic("fma", "double", s, series, w.op(f"sitofp {wide} {exponent} to {t}"))
    r = w.select(w.op(f"fcmp oeq {t} {x}, {_k(w, 0.0)}"), "double", _k(w, -math.inf), r)
    r = w.select(w.op(f"fcmp oeq {t} {x}, {_k(w, math.inf)}"), "double", x, r)
    return w.select(w.op(f"fcmp ult {t} {x}, {_k(w, 0.0)}"), "double", _k(w, math.nan), r)


def turns(shift: float) -> Compute:
    """The sine of so many turns: angles count from -1/4 to 1/4 of a turn after folding."""
    def run(w: Writer, x: str) -> str:
        t = w.t("double")
        part = _op(w, "fsub", x, w.intrinsic("roundeven", "double", x))  # -1/2 to 1/2, exact
        if shift:  # cosine: even, and falling from 0 to 1/2
            folded = _op(w, "fsub", _k(w, shift), w.intrinsic("fabs", "double", part))
        else:
            size = w.intrinsic("fabs", "double", part)
            other = _op(w, "fsub", _k(w, 0.5), size)
            folded = w.intrinsic("copysign", "double", w.intrinsic("minnum", "double", size, other), part)
        angle = _op(w, "fmul", folded, _k(w, 2 * math.pi))
        squared = _op(w, "fmul", angle, angle)
        series = polynomial(w, squared, [(-1) ** k / math.factorial(2 * k + 1) for k in range(13)])
        r = _op(w, "fmul", angle, series)
        bad = w.op(f"fcmp ueq {t} {w.intrinsic('fabs', 'double', x)}, {_k(w, math.inf)}")
        return w.select(bad, "double", _k(w, math.nan), r)
    return run


def tanh(w: Writer, x: str) -> str:
    """(1 - e) / (1 + e) with e = exp(-2|x|); near zero the series."""
    size = w.intrinsic("fabs", "double", x)
    e = exp2(w, _op(w, "fmul", size, _k(w, -2 / math.log(2))))
    far = _op(w, "fdiv", _op(w, "fsub", _k(w, 1.0), e), _op(w, "fadd", _k(w, 1.0), e))
    squared = _op(w, "fmul", size, size)
    near = _op(w, "fmul", size, polynomial(w, squared, [1, -1 / 3, 2 / 15, -17 / 315, 62 / 2835]))
    small = w.op(f"fcmp olt {w.t('double')} {size}, {_k(w, 2.0**-6)}")
    r = w.intrinsic("copysign", "double", w.select(small, "double", near, far), x)
    nan = w.op(f"fcmp uno {w.t('double')} {x}, {x}")
    return w.select(nan, "double", x, r)


FUNCTIONS: dict[str, Compute] = {
    "RCP": reciprocal, "RSQ": reciprocal_root, "SQRT": root, "EX2": exp2, "LG2": log2, "SIN": turns(0.0), "COS": turns(0.25),
    "TANH": tanh,
}


def moved(w: Writer, raw: str, e: str, infinity: int) -> str:
    """The bits of a float by `mufu_error` units in the last place; zero, infinity and NaN stay."""
    if not w.mufu_error:
        return raw
    t = w.t(e)
    size = w.op(f"and {t} {raw}, {w.const(e, (1 << int(e[1:]) - 1) - 1)}")
    there = w.op(f"icmp ult {t} {w.op(f'sub {t} {size}, ' + w.const(e, 1))}, {w.const(e, infinity - 1)}")
    return w.select(there, e, w.op(f"add {t} {raw}, {w.const(e, w.mufu_error)}"), raw)


@named(RULES, "MUFU")
def mufu(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *FUNCTIONS, "RCP64H", "RSQ64H", "F16", "BF16", "BF16_V2")
    o = i.srcs[0]
    name = i.mods[0]
    if name in ("RCP64H", "RSQ64H"):
        high_word(w, i, name[:3])
        return
    e = "half" if "F16" in i.mods else "bfloat" if "BF16" in i.mods or "BF16_V2" in i.mods else "float"
    if e == "float":
        x = w.f32(o) if name == "TANH" else rounding.flush(w, w.f32(o))
    else:
        part = raw_halves(w, w.word(o))[0 if o.select in ("", "H0", "H0_H0") else 1]
        x = w.signs(o, "float", rounding.as_float(w, part, e))
    r = rounding.function(w, f"mufu.{name}", "double", ("double",), FUNCTIONS[name], rounding.widen(w, x, "float"))
    r = rounding.narrow(w, r, e)
    if e != "float":
        raw = moved(w, rounding.raw16(w, r, e), "i16", 0x7C00 if e == "half" else 0x7F80)
        w.write(i.dsts[0], w.op(f"zext {w.t('i16')} {raw} to {w.t('i32')}"))
        return
    raw = moved(w, w.cast(rounding.raw32(w, r), "float", "i32"), "i32", 0x7F800000)
    single = w.cast(raw, "i32", "float")
    w.write_f32(i.dsts[0], single if name == "TANH" else rounding.flush(w, single))


def high_word(w: Writer, i: Instruction, name: str) -> None:
    """The high word of the result for the high word of a float64, the low ones zero."""
    o = i.srcs[0]
    t = w.t("i64")
    word = w.op(f"zext {w.t('i32')} {w.word(o)} to {t}")
    wide = w.op(f"shl {t} {word}, {w.const('i64', 32)}")
    x = rounding.flush(w, w.signs(o, "double", w.cast(wide, "i64", "double")), "double", -1022)
    r = FUNCTIONS[name](w, x)
    raw = w.cast(r, "double", "i64")
    nearest = w.op(f"lshr {t} {w.op(f'add {t} {raw}, ' + w.const('i64', 1 << 31))}, {w.const('i64', 32)}")
    word = moved(w, w.op(f"trunc {t} {nearest} to {w.t('i32')}"), "i32", 0x7FF00000)
    size = w.op(f"and {w.t('i32')} {word}, {w.const('i32', 0x7FFFFFFF)}")
    small = w.op(f"icmp ult {w.t('i32')} {size}, {w.const('i32', 0x00100000)}")
    zero = w.op(f"and {w.t('i32')} {word}, {w.const('i32', -0x80000000)}")
    nan = w.op(f"fcmp uno {w.t('double')} {r}, {r}")
    w.write(i.dsts[0], w.select(nan, "i32", w.const("i32", 0x7FFFFFFF), w.select(small, "i32", zero, word)))

