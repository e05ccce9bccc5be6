"""Rounding to every float format in every mode, exactly; flushed denormals, canonical NaNs, comparisons.

What an operation computes is first made exact enough in float64: products of two numbers of at most 24 bits fit, and a sum that
does not is rounded to odd (its last bit says that something was lost), so that a second rounding to fewer bits gives what one
rounding of the exact number gives (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008). NaNs that
arithmetic makes have all bits but the sign set, as the CUDA programming guide and the PTX ISA say of float32, float16 and
bfloat16; those of float64 are the host's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from devrt.compiler.sass.instruction import Instruction
from devrt.virtual.nvidia.translate.writer import NotTranslated, Writer

BELOW, ABOVE, ZERO, NEAREST = "RM", "RP", "RZ", "RN"
INTEGRAL = {"TRUNC": ZERO, "FLOOR": BELOW, "CEIL": ABOVE, "RZ": ZERO, "RM": BELOW, "RP": ABOVE}


@dataclass(frozen=True)
class Format:
    """Numbers of `digits` binary digits, the first one included; 2^low is the least normal one; `finite`: no infinity."""

    digits: int
    low: int
    largest: float
    bits: int


FORMATS = {
    "half": Format(11, -14, 65504.0, 16), "bfloat": Format(8, -126, 255 / 256 * 2.0**128, 16),
    "float": Format(24, -126, (1 - 2.0**-24) * 2.0**128, 32), "tf32": Format(11, -126, (1 - 2.0**-11) * 2.0**128, 32),
    "e4m3": Format(4, -6, 448.0, 8), "e5m2": Format(3, -14, 57344.0, 8),
}


def mode(i: Instruction) -> str:
    """How an arithmetic instruction rounds."""
    return next((m for m in i.mods if m in (BELOW, ABOVE, ZERO)), NEAREST)


def unknown(i: Instruction, *known: str) -> None:
    """Refuse modifiers that a rule does not know."""
    for m in i.mods:
        if m not in known:
            raise NotTranslated(f"{i.op} with .{m}")


# ---------------------------------------------------------------------------------------------------------------------
# Functions of a module

Build = Callable[..., str]


def function(w: Writer, name: str, result: str, types: tuple[str, ...], build: Build, *values: str) -> str:
    """Call a function of the module, which `build(writer, *arguments)` writes the first time. Types are elements'."""
    full = f"{name}.one" if w.uniform else name
    if full not in w.helpers:
        inner = Writer(w.sm)
        inner.uniform = w.uniform
        names = [f"%a{n}" for n in range(len(types))]
        r = build(inner, *names)
        w.declared.update(inner.declared)
        w.helpers.update(inner.helpers)
        parameters = ", ".join(f"{w.t(e)} {n}" for e, n in zip(types, names, strict=True))
        attributes = "noinline strictfp" if "llvm.set.rounding" in inner.declared else "noinline"
        w.helpers[full] = "\n".join((f"define internal {w.t(result)} @{full}({parameters}) {attributes} {{", *inner.lines,
                                     f"  ret {w.t(result)} {r}", "}", ""))
    return w.call(w.t(result), full, *((w.t(e), v) for e, v in zip(types, values, strict=True)))


# ---------------------------------------------------------------------------------------------------------------------
# Sums and roundings in float64


def odd_sum(w: Writer, a: str, b: str) -> str:
    """a + b of float64, rounded to odd."""
    return function(w, "odd_sum", "double", ("double", "double"), _odd_sum, a, b)


def _odd_sum(w: Writer, a: str, b: str) -> str:
    t, wide = w.t("double"), w.t("i64")
    s = w.op(f"fadd {t} {a}, {b}")
    b1 = w.op(f"fsub {t} {s}, {a}")
    a1 = w.op(f"fsub {t} {s}, {b1}")
    lost = w.op(f"fadd {t} {w.op(f'fsub {t} {a}, {a1}')}, {w.op(f'fsub {t} {b}, {b1}')}")
    inexact = w.op(f"fcmp one {t} {lost}, {w.const('double', 0.0)}")  # false for NaN: of infinities nothing is lost
    raw, error = w.cast(s, "double", "i64"), w.cast(lost, "double", "i64")
    even = w.op(f"icmp eq {wide} {w.op(f'and {wide} {raw}, ' + w.const('i64', 1))}, {w.const('i64', 0)}")
    apart = w.op(f"icmp slt {wide} {w.op(f'xor {wide} {raw}, {error}')}, {w.const('i64', 0)}")
    step = w.select(apart, "i64", w.const("i64", -1), w.const("i64", 1))
    moves = w.op(f"and {w.t('i1')} {inexact}, {even}")
    moved = w.op(f"add {wide} {raw}, {w.select(moves, 'i64', step, w.const('i64', 0))}")
    return w.cast(moved, "i64", "double")


def narrow(w: Writer, x: str, target: str, how: str = NEAREST, finite: bool = False) -> str:
    """A float64 rounded to the numbers of a format, as float64; `finite`: what is too large becomes the largest number."""
    if target == "float" and how == NEAREST:
        return w.op(f"fpext {w.t('float')} {w.op('fptrunc ' + w.t('double') + f' {x} to ' + w.t('float'))} to {w.t('double')}")
    return function(w, f"narrow.{target}.{how}" + ".finite" * finite, "double", ("double",),
                    lambda inner, a: _narrow(inner, a, FORMATS[target], how, finite), x)


def _narrow(w: Writer, x: str, f: Format, how: str, finite: bool) -> str:
    t, wide = w.t("double"), w.t("i64")
    raw = w.cast(x, "double", "i64")
    field = w.op(f"and {wide} {w.op(f'lshr {wide} {raw}, ' + w.const('i64', 52))}, {w.const('i64', 2047)}")
    field = w.intrinsic("umax", "i64", field, w.const("i64", f.low + 1023))
    up = w.op(f"sub {wide} {w.const('i64', 2045 + f.digits)}, {field}")
    down = w.op(f"sub {wide} {field}, {w.const('i64', f.digits - 1)}")
    scales = [w.cast(w.op(f"shl {wide} {s}, {w.const('i64', 52)}"), "i64", "double") for s in (up, down)]
    whole = integral(w, w.op(f"fmul {t} {x}, {scales[0]}"), "double", how)
    r = w.op(f"fmul {t} {whole}, {scales[1]}")
    # Beyond the format: infinity, or the largest number where the mode rounds back.
    over = w.op(f"fcmp ogt {t} {w.intrinsic('fabs', 'double', r)}, {w.const('double', f.largest)}")
    positive = w.op(f"fcmp ogt {t} {x}, {w.const('double', 0.0)}")
    back_above, back_below = finite or how in (ZERO, BELOW), finite or how in (ZERO, ABOVE)
    ends = [w.const("double", s * (f.largest if back else float("inf"))) for s, back in ((1, back_above), (-1, back_below))]
    r = w.select(over, "double", w.select(positive, "double", *ends), r)
    special = w.op(f"fcmp ueq {t} {w.intrinsic('fabs', 'double', x)}, {w.const('double', float('inf'))}")
    if finite:
        special = w.op(f"fcmp uno {t} {x}, {x}")
    return w.select(special, "double", x, r)


def integral(w: Writer, value: str, e: str, how: str) -> str:
    """A float rounded to a whole number."""
    return w.intrinsic({NEAREST: "roundeven", ZERO: "trunc", BELOW: "floor", ABOVE: "ceil"}[how], e, value)


# ---------------------------------------------------------------------------------------------------------------------
# Formats to and from float64


def widen(w: Writer, value: str, e: str) -> str:
    """A half, bfloat (as i16), float or double as float64."""
    if e == "double":
        return value
    return w.op(f"fpext {w.t('float')} {as_float(w, value, e)} to {w.t('double')}")


def as_float(w: Writer, value: str, e: str) -> str:
    """A half or bfloat (raw i16) or float as float32, exactly."""
    if e == "float":
        return value
    if e == "half":
        return w.op(f"fpext {w.t('half')} {w.cast(value, 'i16', 'half')} to {w.t('float')}")
    wide = w.op(f"zext {w.t('i16')} {value} to {w.t('i32')}")
    return w.cast(w.op(f"shl {w.t('i32')} {wide}, {w.const('i32', 16)}"), "i32", "float")


def raw16(w: Writer, x: str, e: str) -> str:
    """A float64 that is a number of the format (or a NaN) as the 16 bits of a half or bfloat, NaNs canonical."""
    single = w.op(f"fptrunc {w.t('double')} {x} to {w.t('float')}")
    if e == "half":
        raw = w.cast(w.op(f"fptrunc {w.t('float')} {single} to {w.t('half')}"), "half", "i16")
    else:
        raw32 = w.op(f"lshr {w.t('i32')} {w.cast(single, 'float', 'i32')}, {w.const('i32', 16)}")
        raw = w.op(f"trunc {w.t('i32')} {raw32} to {w.t('i16')}")
    nan = w.op(f"fcmp uno {w.t('double')} {x}, {x}")
    return w.select(nan, "i16", w.const("i16", 0x7FFF), raw)


def raw32(w: Writer, x: str) -> str:
    """A float64 that is a float32 (or a NaN) as float, NaNs canonical."""
    return canonical(w, w.op(f"fptrunc {w.t('double')} {x} to {w.t('float')}"))


# ---------------------------------------------------------------------------------------------------------------------
# Parts of many float32 operations


def nan32(w: Writer) -> str:
    """The NaN that float32 arithmetic makes, 0x7fffffff."""
    text = "0x7FFFFFFFE0000000"
    return text if w.uniform else w.splat_of("float", text)


def canonical(w: Writer, value: str) -> str:
    """A float with any NaN made the canonical one."""
    bad = w.op(f"fcmp uno {w.t('float')} {value}, {value}")
    return w.select(bad, "float", nan32(w), value)


def flush(w: Writer, value: str, e: str = "float", low: int = -126) -> str:
    """Denormals become zero, of the same sign; 2^low is the least number of the format that is none."""
    small = w.op(f"fcmp olt {w.t(e)} {w.intrinsic('fabs', e, value)}, {w.const(e, 2.0**low)}")
    return w.select(small, e, w.intrinsic("copysign", e, w.const(e, 0.0), value), value)


def saturate(w: Writer, value: str, e: str = "float") -> str:
    """Between 0 and 1; NaN becomes 0."""
    low = w.intrinsic("maximumnum", e, value, w.const(e, 0.0))
    return w.intrinsic("minimumnum", e, low, w.const(e, 1.0))


def minmax(w: Writer, e: str, a: str, b: str, least: str, nan: bool) -> str:
    """The lesser of two where `least`, else the greater; -0 is below 0. A NaN loses, with `nan` it wins."""
    name = "imum" if nan else "imumnum"
    return w.select(least, e, w.intrinsic(f"min{name}", e, a, b), w.intrinsic(f"max{name}", e, a, b))


# Comparisons by SASS's names; U: also true where either is a NaN.
COMPARE = {"LT": "olt", "EQ": "oeq", "LE": "ole", "GT": "ogt", "NE": "one", "GE": "oge", "NUM": "ord", "NAN": "uno", "LTU": "ult",
           "EQU": "ueq", "LEU": "ule", "GTU": "ugt", "NEU": "une", "GEU": "uge", "F": "false", "T": "true"}
COMBINE = {"AND": "and", "OR": "or", "XOR": "xor"}


def compare(w: Writer, i: Instruction, e: str, a: str, b: str) -> str:
    name = next((m for m in i.mods if m in COMPARE), None)
    if name is None:
        raise NotTranslated(f"{i.op} without a comparison")
    return w.op(f"fcmp {COMPARE[name]} {w.t(e)} {a}, {b}")


def combined(w: Writer, i: Instruction, value: str, other: str) -> str:
    """A comparison's result with the predicate that comes last."""
    name = next((COMBINE[m] for m in i.mods if m in COMBINE), "and")
    return w.op(f"{name} {w.t('i1')} {value}, {other}")


def inverse(w: Writer, value: str) -> str:
    return w.op(f"xor {w.t('i1')} {value}, {w.const('i1', 1)}")
