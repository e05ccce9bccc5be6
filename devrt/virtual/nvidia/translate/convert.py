"""Conversions between number types.

A float that is too large or NaN becomes an integer as the PTX ISA says of cvt: clamped to the type; NaN is 0 with .NTZ, else the
integer with only its highest bit set. Integers of 8 and 16 bits fill their register, by their sign.
"""

from __future__ import annotations

from devrt.compiler.sass.instruction import Instruction, Operand
from devrt.virtual.nvidia.translate import doubles, rounding
from devrt.virtual.nvidia.translate.half import packed, raw_halves
from devrt.virtual.nvidia.translate.rounding import FORMATS, INTEGRAL, NEAREST, ZERO
from devrt.virtual.nvidia.translate.writer import NotTranslated, Rule, Writer, named

RULES: dict[str, Rule] = {}
FLOATS = {"F16": "half", "BF16": "bfloat", "BF16_V2": "bfloat", "F32": "float", "F64": "double", "TF32": "tf32"}
INTEGERS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "U32": 32, "S32": 32, "U64": 64, "S64": 64}
PARTS = {"": 0, "H0": 0, "H1": 1, "H0_H0": 0, "H1_H1": 1}


def how(i: Instruction) -> str:
    return next((INTEGRAL[m] for m in i.mods if m in INTEGRAL), NEAREST)


def float_source(w: Writer, i: Instruction, o: Operand, e: str) -> str:
    """A float operand of any format as float64."""
    if e == "double":
        return w.f64(o)
    if e in ("half", "bfloat"):
        if o.select not in PARTS:
            raise NotTranslated(f"{i.op} of .{o.select}")
        wide = w.signs(o, "double", rounding.widen(w, raw_halves(w, w.word(o))[PARTS[o.select]], e))
    else:
        wide = rounding.widen(w, w.f32(o), "float")
    return rounding.flush(w, wide, "double", FORMATS[e].low) if "FTZ" in i.mods else wide


def write_float(w: Writer, i: Instruction, value: str, e: str) -> None:
    """A float64 that is a number of the format into the destination."""
    if e == "double":
        w.write_f64(i.dsts[0], value)
        return
    if "FTZ" in i.mods:
        value = rounding.flush(w, value, "double", FORMATS[e].low)
    if "SAT" in i.mods:
        value = rounding.saturate(w, value, "double")
    if e == "float":
        w.write_f32(i.dsts[0], rounding.raw32(w, value))
    else:
        w.write(i.dsts[0], w.op(f"zext {w.t('i16')} {rounding.raw16(w, value, e)} to {w.t('i32')}"))


# ---------------------------------------------------------------------------------------------------------------------
# Floats to floats


@named(RULES, "F2F", "UF2F")
def f2f(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *FLOATS, "FTZ", "SAT", "RM", "RP", "RZ")
    out, source = ([FLOATS[m] for m in i.mods if m in FLOATS] + ["float", "float"])[:2]
    value = float_source(w, i, i.srcs[0], source)
    write_float(w, i, value if out == "double" else rounding.narrow(w, value, out, how(i)), out)


@named(RULES, "FRND", "UFRND")
def frnd(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *FLOATS, *INTEGRAL, "FTZ")
    e = next((FLOATS[m] for m in i.mods if m in FLOATS), "float")
    write_float(w, i, rounding.integral(w, float_source(w, i, i.srcs[0], e), "double", how(i)), e)


# ---------------------------------------------------------------------------------------------------------------------
# Floats and integers


def to_integer(w: Writer, value: str, bits: int, signed: bool, nan: int) -> str:
    """A whole float64 clamped to an integer of so many bits; `nan`: what NaN becomes."""
    e = f"i{bits}"
    name = f"llvm.fpto{'s' if signed else 'u'}i.sat." + (f"{e}.f64" if w.uniform else f"v32{e}.v32f64")
    r = w.call(w.t(e), name, (w.t("double"), value), declare=True)
    bad = w.op(f"fcmp uno {w.t('double')} {value}, {value}")
    return w.select(bad, e, w.const(e, nan), r)


@named(RULES, "F2I", "UF2I")
def f2i(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *FLOATS, *INTEGERS, *INTEGRAL, "FTZ", "NTZ")
    out = next((m for m in i.mods if m in INTEGERS), "S32")
    e = next((FLOATS[m] for m in i.mods if m in FLOATS), "float")
    bits, signed = INTEGERS[out], out.startswith("S")
    value = rounding.integral(w, float_source(w, i, i.srcs[0], e), "double", how(i))
    r = to_integer(w, value, bits, signed, 0 if "NTZ" in i.mods else -(1 << bits - 1))
    if bits == 64:
        w.write64(i.dsts[0], r)
    else:
        w.write(i.dsts[0], extended(w, r, bits, signed))


def extended(w: Writer, value: str, bits: int, signed: bool) -> str:
    """An integer of up to 32 bits as a word."""
    return value if bits == 32 else w.op(f"{'s' if signed else 'z'}ext {w.t(f'i{bits}')} {value} to {w.t('i32')}")


def integer_source(w: Writer, o: Operand, name: str) -> str:
    """An integer operand, in its own type; a suffix picks a byte or a half."""
    bits = INTEGERS[name]
    if bits == 64:
        return w.int64(o)
    value = w.int32(o)
    place = PARTS.get(o.select, 0) * 16 if o.select[:1] in ("", "H") else int(o.select[1]) * 8
    if place:
        value = w.op(f"lshr {w.t('i32')} {value}, {w.const('i32', place)}")
    return value if bits == 32 else w.op(f"trunc {w.t('i32')} {value} to {w.t(f'i{bits}')}")


def from_integer(w: Writer, value: str, bits: int, signed: bool, e: str, mode: str) -> str:
    """An integer rounded once to a format, as float64."""
    t, s = w.t("double"), f"i{bits}"
    convert = "sitofp" if signed else "uitofp"
    if bits < 64:
        wide = w.op(f"{convert} {w.t(s)} {value} to {t}")
        return wide if e == "double" else rounding.narrow(w, wide, e, mode)
    high = w.op(f"{'a' if signed else 'l'}shr {w.t('i64')} {value}, {w.const('i64', 32)}")
    low = w.op(f"and {w.t('i64')} {value}, {w.const('i64', 0xFFFFFFFF)}")
    upper = w.op(f"fmul {t} {w.op(f'{convert} ' + w.t('i64') + f' {high} to {t}')}, {w.const('double', 2.0**32)}")
    lower = w.op(f"uitofp {w.t('i64')} {low} to {t}")
    if e == "double":
        return doubles.arithmetic(w, "fadd", mode, upper, lower)
    return rounding.narrow(w, rounding.odd_sum(w, upper, lower), e, mode)


@named(RULES, "I2F", "UI2F")
def i2f(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *FLOATS, *INTEGERS, "RM", "RP", "RZ")
    e = next((FLOATS[m] for m in i.mods if m in FLOATS), "float")
    name = next((m for m in i.mods if m in INTEGERS), "S32")
    value = integer_source(w, i.srcs[0], name)
    write_float(w, i, from_integer(w, value, INTEGERS[name], name.startswith("S"), e, how(i)), e)


RULES["I2FP"] = RULES["UI2FP"] = i2f


# ---------------------------------------------------------------------------------------------------------------------
# Integers to narrower ones, clamped


def clamped(w: Writer, value: str, out: str) -> str:
    """A signed word clamped to a type of 8 or 16 bits."""
    bits, signed = INTEGERS[out], out.startswith("S")
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return w.intrinsic("smin", "i32", w.intrinsic("smax", "i32", value, w.const("i32", least)), w.const("i32", most))


@named(RULES, "I2I")
def i2i(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *INTEGERS, "SAT")
    out, source = [m for m in i.mods if m in INTEGERS]
    if source != "S32" or "SAT" not in i.mods:
        raise NotTranslated(f"I2I.{'.'.join(i.mods)}")
    w.write(i.dsts[0], clamped(w, w.int32(i.srcs[0]), out))


@named(RULES, "I2IP")
def i2ip(w: Writer, i: Instruction) -> None:
    """Two integers clamped; 8 bits each lie below 16 bits of the third operand."""
    rounding.unknown(i, *INTEGERS, "SAT")
    out, source = [m for m in i.mods if m in INTEGERS]
    if source != "S32" or "SAT" not in i.mods:
        raise NotTranslated(f"I2IP.{'.'.join(i.mods)}")
    write_packed(w, i, out, [clamped(w, w.int32(o), out) for o in i.srcs[:2]])


@named(RULES, "F2IP")
def f2ip(w: Writer, i: Instruction) -> None:
    """Two floats as integers of 8 bits, below 16 bits of the third operand."""
    rounding.unknown(i, "U8", "S8", "F32", *INTEGRAL, "NTZ", "RELU")
    out = next(m for m in i.mods if m in INTEGERS)
    values = [rounding.integral(w, float_source(w, i, o, "float"), "double", how(i)) for o in i.srcs[:2]]
    if "RELU" in i.mods:
        values = [w.intrinsic("maximum", "double", v, w.const("double", 0.0)) for v in values]
    nan = 0 if "NTZ" in i.mods else -(1 << INTEGERS[out] - 1)
    signed = out.startswith("S")
    write_packed(w, i, out, [extended(w, to_integer(w, v, INTEGERS[out], signed, nan), INTEGERS[out], signed) for v in values])


def write_packed(w: Writer, i: Instruction, out: str, values: list[str]) -> None:
    """The first value above the second."""
    t, bits = w.t("i32"), INTEGERS[out]
    high, low = (w.op(f"and {t} {v}, {w.const('i32', (1 << bits) - 1)}") for v in values)
    both = w.op(f"or {t} {low}, {w.op(f'shl {t} {high}, ' + w.const('i32', bits))}")
    if bits == 8 and len(i.srcs) > 2:
        half = w.op(f"zext {w.t('i16')} {raw_halves(w, w.word(i.srcs[2]))[PARTS[i.srcs[2].select]]} to {t}")
        both = w.op(f"or {t} {both}, {w.op(f'shl {t} {half}, ' + w.const('i32', 16))}")
    w.write(i.dsts[0], both)


# ---------------------------------------------------------------------------------------------------------------------
# Pairs of narrow floats


@named(RULES, "F2FP")
def f2fp(w: Writer, i: Instruction) -> None:
    """PACK_AB: two float32 to the halves of a word, the first one above. PACK_B: one to tf32. UNPACK_B: two 8-bit floats to
    float16. With MERGE_C 16 bits result (a half, or two 8-bit floats of PACK_AB or of two float16), below the low 16 bits of the
    last operand. Before sm_90 the types are not printed, float16 is meant."""
    known = ("PACK_AB", "MERGE_C", "PACK_B", "UNPACK_B", "PACK_AB_MERGE_C", "UNPACK_B_MERGE_C")
    rounding.unknown(i, *FLOATS, "E4M3", "E5M2", "SATFINITE", "RELU", "RZ", *known)
    shape = next(m for m in i.mods if m in known)
    types = [m for m in i.mods if m in FLOATS or m in ("E4M3", "E5M2")]
    out = types[0] if types else "F16"
    if shape == "UNPACK_B":
        unpack(w, i, types)
    elif shape == "PACK_B":
        value = one(w, i, i.srcs[0], "tf32")
        single = w.op(f"fptrunc {w.t('double')} {value} to {w.t('float')}")
        w.write_f32(i.dsts[0], rounding.canonical(w, single))
    elif out in ("E4M3", "E5M2"):
        pack8(w, i, out.lower(), shape)
    else:
        e = FLOATS[out]
        parts = [rounding.raw16(w, one(w, i, o, e), e) for o in i.srcs[:1 if shape == "MERGE_C" else 2]]
        if shape == "MERGE_C":
            w.write(i.dsts[0], packed(w, parts[0], raw_halves(w, w.word(i.srcs[1]))[0]))
        else:
            w.write(i.dsts[0], packed(w, parts[1], parts[0]))


def one(w: Writer, i: Instruction, o: Operand, e: str) -> str:
    """A float32 operand rounded to a narrower format."""
    return clipped(w, i, float_source(w, i, o, "float"), e)


def clipped(w: Writer, i: Instruction, value: str, e: str) -> str:
    value = rounding.narrow(w, value, e, ZERO if "RZ" in i.mods else NEAREST, "SATFINITE" in i.mods)
    return w.intrinsic("maximum", "double", value, w.const("double", 0.0)) if "RELU" in i.mods else value


def unpack(w: Writer, i: Instruction, types: list[str]) -> None:
    """Two 8-bit floats of the operand's low half (H1: its high half) as two float16."""
    kind = types[1].lower()
    if types[0] != "F16":
        raise NotTranslated(f"F2FP to {types[0]}")
    half = raw_halves(w, w.word(i.srcs[0]))[PARTS[i.srcs[0].select]]
    t8, t16 = w.t("i8"), w.t("i16")
    low = w.op(f"trunc {t16} {half} to {t8}")
    high = w.op(f"trunc {t16} {w.op(f'lshr {t16} {half}, ' + w.const('i16', 8))} to {t8}")
    w.write(i.dsts[0], packed(w, *(rounding.raw16(w, wide8(w, x, kind), "half") for x in (low, high))))


def wide8(w: Writer, value: str, kind: str) -> str:
    """An 8-bit float as float64: its bits, moved, are those of a half but for the bias of the exponent."""
    t, t16 = w.t("double"), w.t("i16")
    f = FORMATS[kind]
    wide = w.op(f"sext {w.t('i8')} {value} to {t16}")
    moved = w.op(f"shl {t16} {wide}, {w.const('i16', 11 - f.digits)}")
    kept = w.op(f"and {t16} {moved}, {w.const('i16', -0x8000 | 0x7FFF >> (0 if kind == 'e5m2' else 1))}")
    half = rounding.widen(w, kept, "half")
    if kind == "e5m2":
        return half
    number = w.op(f"fmul {t} {half}, {w.const('double', 2.0**8)}")  # biases 15 and 7
    nan = w.op(f"icmp eq {t16} {w.op(f'and {t16} {wide}, ' + w.const('i16', 0x7F))}, {w.const('i16', 0x7F)}")
    return w.select(nan, "double", w.const("double", float("nan")), number)


def pack8(w: Writer, i: Instruction, kind: str, shape: str) -> None:
    t16 = w.t("i16")
    if shape == "PACK_AB_MERGE_C":
        numbers = [one(w, i, o, kind) for o in i.srcs[:2]]
    elif shape == "UNPACK_B_MERGE_C":
        low, high = raw_halves(w, w.word(i.srcs[0]))
        numbers = [clipped(w, i, rounding.widen(w, x, "half"), kind) for x in (high, low)]
    else:
        raise NotTranslated(f"F2FP.{'.'.join(i.mods)}")
    high, low = (raw8(w, x, kind) for x in numbers)
    both = w.op(f"or {t16} {low}, {w.op(f'shl {t16} {high}, ' + w.const('i16', 8))}")
    w.write(i.dsts[0], packed(w, both, raw_halves(w, w.word(i.srcs[-1]))[0]))


def raw8(w: Writer, value: str, kind: str) -> str:
    """A float64 that is an 8-bit float (or NaN) as its bits, in 16."""
    t16, f = w.t("i16"), FORMATS[kind]
    nan = w.op(f"fcmp uno {w.t('double')} {value}, {value}")
    scaled = w.op(f"fmul {w.t('double')} {value}, {w.const('double', 2.0**-8 if kind == 'e4m3' else 1.0)}")
    half = rounding.raw16(w, scaled, "half")
    moved = w.op(f"lshr {t16} {w.op(f'and {t16} {half}, ' + w.const('i16', 0x7FFF))}, {w.const('i16', 11 - f.digits)}")
    sign = w.op(f"and {t16} {w.op(f'lshr {t16} {half}, ' + w.const('i16', 8))}, {w.const('i16', 0x80)}")
    return w.select(nan, "i16", w.const("i16", 0x7F), w.op(f"or {t16} {moved}, {sign}"))
