"""Conversions between number types, and the numbers' parts. Sources as in vector.py."""

from __future__ import annotations

from collections.abc import Callable

from devrt.virtual.amd.isa.instruction import Instruction
from devrt.virtual.amd.isa.opcodes import bits
from devrt.virtual.amd.translate.writer import Rule, Writer

NAMED: dict[str, Rule] = {}


def _named(*names: str) -> Callable[[Rule], Rule]:
    def put(r: Rule) -> Rule:
        NAMED.update(dict.fromkeys(names, r))
        return r
    return put


def to_float(w: Writer, value: str, source: str, target: str) -> str:
    """A number of any type as f16, f32 or f64, rounded once."""
    s, t = w.vtype(source), w.vtype(target)
    if source.startswith("f"):
        return value if source == target else w.op(f"{'fpext' if bits(target) > bits(source) else 'fptrunc'} {s} {value} to {t}")
    return w.op(f"{'si' if source.startswith('i') else 'ui'}tofp {s} {value} to {t}")


def to_int(w: Writer, value: str, source: str, target: str) -> str:
    """A float as an integer: towards zero, clamped to the type, 0 for NaN."""
    name = f"llvm.fpto{'si' if target.startswith('i') else 'ui'}.sat"
    suffix = {"f16": "f16", "f32": "f32", "f64": "f64"}[source]
    t = w.vtype(target)
    return w.call(t, f"{name}.v{w.wave}i{bits(target)}.v{w.wave}{suffix}", (w.vtype(source), value))


def _convert(w: Writer, i: Instruction) -> None:
    out, o = i.destinations[0], i.sources[0]
    value = w.value(o)
    if out.type.startswith("f"):
        w.result(i, out, to_float(w, value, o.type, out.type))
    else:
        w.result(i, out, to_int(w, value, o.type, out.type))


for _target in ("f16", "f32", "f64", "i16", "u16", "i32", "u32"):
    for _source in ("f16", "f32", "f64", "i16", "u16", "i32", "u32"):
        if _target != _source:
            NAMED[f"v_cvt_{_target}_{_source}"] = _convert


def _integer_of(rounding: str) -> Rule:
    """v_cvt_nearest, v_cvt_flr: a float rounded first."""
    def run(w: Writer, i: Instruction) -> None:
        out, o = i.destinations[0], i.sources[0]
        value = w.value(o)
        if rounding == "nearest":  # floor(x + 0.5)
            half = w.op(f"fadd {w.vtype(o.type)} {value}, {w.const(o.type, 0.5)}")
            value = w.intrinsic("floor", o.type, half)
        else:
            value = w.intrinsic("floor", o.type, value)
        w.result(i, out, to_int(w, value, o.type, out.type))
    return run


NAMED |= dict.fromkeys(("v_cvt_nearest_i32_f32", "v_cvt_rpi_i32_f32"), _integer_of("nearest"))
NAMED |= dict.fromkeys(("v_cvt_floor_i32_f32", "v_cvt_flr_i32_f32"), _integer_of("floor"))


def _ubyte(n: int) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        t = w.vec("i32")
        byte = w.op(f"and {t} {w.op(f'lshr {t} {w.dword(i.sources[0])}, splat (i32 {8 * n})')}, splat (i32 255)")
        w.result(i, i.destinations[0], w.op(f"uitofp {t} {byte} to {w.vec('float')}"))
    return run


NAMED |= {f"v_cvt_f32_ubyte{n}": _ubyte(n) for n in range(4)}


@_named("v_cvt_i32_i16", "v_cvt_u32_u16")
def widen(w: Writer, i: Instruction) -> None:
    out, o = i.destinations[0], i.sources[0]
    w.result(i, out, w.op(f"{'sext' if o.type == 'i16' else 'zext'} {w.vec('i16')} {w.value(o)} to {w.vec('i32')}"))


@_named("v_sat_pk_u8_i16")
def saturate_bytes(w: Writer, i: Instruction) -> None:
    t = w.vec("i16")
    low, high = w.halves(i.sources[0])
    parts = []
    for x in (low, high):
        up = w.call(t, f"llvm.smax.v{w.wave}i16", (t, x), (t, "zeroinitializer"))
        parts.append(w.call(t, f"llvm.smin.v{w.wave}i16", (t, up), (t, "splat (i16 255)")))
    both = w.op(f"or {t} {parts[0]}, {w.op(f'shl {t} {parts[1]}, splat (i16 8)')}")
    w.result(i, i.destinations[0], both, "b16")


def toward_zero(w: Writer, value: str) -> str:
    """An f32 as f16 bits, rounded towards zero: the nearest one, a step back where it went past."""
    f, h, t16 = w.vec("float"), w.vec("half"), w.vec("i16")
    near = w.op(f"fptrunc {f} {value} to {h}")
    back = w.op(f"fpext {h} {near} to {f}")
    past = w.op(f"fcmp ogt {f} {w.intrinsic('fabs', 'f32', back)}, {w.intrinsic('fabs', 'f32', value)}")
    raw = w.op(f"bitcast {h} {near} to {t16}")
    less = w.op(f"sub {t16} {raw}, splat (i16 1)")
    r = w.op(f"select {w.mask} {past}, {t16} {less}, {t16} {raw}")
    infinite = w.op(f"fcmp oeq {f} {w.intrinsic('fabs', 'f32', value)}, {w.const('f32', float('inf'))}")
    return w.op(f"select {w.mask} {infinite}, {t16} {raw}, {t16} {r}")


@_named("v_cvt_pk_rtz_f16_f32", "v_cvt_pkrtz_f16_f32")
def pack_toward_zero(w: Writer, i: Instruction) -> None:
    a, b = (toward_zero(w, w.value(o)) for o in i.sources)
    w.set_packed(i.destinations[0], a, b, "b16")


@_named("v_cvt_pk_f16_f32")
def pack_nearest(w: Writer, i: Instruction) -> None:
    a, b = (to_float(w, w.value(o), "f32", "f16") for o in i.sources)
    w.set_packed(i.destinations[0], a, b, "f16")


def _pack(wide: str, narrow: str) -> Rule:
    """Two integers clamped to 16 bits."""
    def run(w: Writer, i: Instruction) -> None:
        t, sign = w.vec("i32"), narrow[0] == "i"
        low, high = (-32768, 32767) if sign else (0, 65535)
        parts = []
        for o in i.sources:
            v = w.value(o)
            if wide == "f32":
                v = to_int(w, w.op(f"fmul {w.vec('float')} {v}, {w.const('f32', float(high))}"), "f32", "i32")
            prefix = "s" if wide != "u32" else "u"
            if prefix == "s":
                v = w.call(t, f"llvm.smax.v{w.wave}i32", (t, v), (t, f"splat (i32 {low})"))
            v = w.call(t, f"llvm.{prefix}min.v{w.wave}i32", (t, v), (t, f"splat (i32 {high})"))
            parts.append(w.op(f"trunc {t} {v} to {w.vec('i16')}"))
        w.set_packed(i.destinations[0], parts[0], parts[1], "b16")
    return run


NAMED |= {"v_cvt_pk_i16_i32": _pack("i32", "i16"), "v_cvt_pk_u16_u32": _pack("u32", "u16")}


@_named("v_pack_b32_f16")
def pack(w: Writer, i: Instruction) -> None:
    a, b = (w.value(o) for o in i.sources)
    w.set_packed(i.destinations[0], a, b, i.sources[0].type)


# ---------------------------------------------------------------------------------------------------------------------
# Exponent and fraction


def power_of_two(w: Writer, exponent: str) -> str:
    """2^exponent as f64, for i32 exponents of -1022 to 1023."""
    wide = w.vec("i64")
    extended = w.op(f"sext {w.vec('i32')} {exponent} to {wide}")
    biased = w.op(f"add {wide} {extended}, splat (i64 1023)")
    return w.op(f"bitcast {wide} {w.op(f'shl {wide} {biased}, splat (i64 52)')} to {w.vec('double')}")


def clamped(w: Writer, value: str, low: int, high: int) -> str:
    t = w.vec("i32")
    up = w.call(t, f"llvm.smax.v{w.wave}i32", (t, value), (t, f"splat (i32 {low})"))
    return w.call(t, f"llvm.smin.v{w.wave}i32", (t, up), (t, f"splat (i32 {high})"))


def scale(w: Writer, value: str, exponent: str, type: str) -> str:
    """value * 2^exponent rounded once, for any i32 exponent."""
    d, t = w.vec("double"), w.vec("i32")
    if type != "f64":  # exact in float64
        x = w.op(f"fpext {w.vtype(type)} {value} to {d}")
        r = w.op(f"fmul {d} {x}, {power_of_two(w, clamped(w, exponent, -900, 900))}")
        return w.op(f"fptrunc {d} {r} to {w.vtype(type)}")
    # In steps that stay normal until the last: down by 969, so that 53 bits are left above the denormals.
    e = clamped(w, exponent, -3100, 3100)
    for _ in range(2):
        up = clamped(w, e, 0, 1023)
        down = clamped(w, e, -969, 0)
        step = w.op(f"add {t} {up}, {down}")
        above = w.op(f"icmp sgt {t} {e}, splat (i32 1023)")
        beyond = w.op(f"or {w.mask} {above}, {w.op(f'icmp slt {t} {e}, splat (i32 -1022)')}")
        step = w.op(f"select {w.mask} {beyond}, {t} {step}, {t} zeroinitializer")
        value = w.op(f"fmul {d} {value}, {power_of_two(w, step)}")
        e = w.op(f"sub {t} {e}, {step}")
    return w.op(f"fmul {d} {value}, {power_of_two(w, clamped(w, e, -1022, 1023))}")


@_named("v_ldexp_f32", "v_ldexp_f16", "v_ldexp_f64")
def ldexp(w: Writer, i: Instruction) -> None:
    a, b = i.sources
    exponent = w.value(b)
    if bits(b.type) == 16:
        exponent = w.op(f"sext {w.vec('i16')} {exponent} to {w.vec('i32')}")
    w.result(i, i.destinations[0], scale(w, w.value(a), exponent, a.type))


def _parts(w: Writer, value: str, type: str) -> tuple[str, str, str]:
    """(exponent as frexp has it, i32; the fraction of 0.5 to 1; lanes where the value is 0, infinite or NaN)"""
    d, wide, t = w.vec("double"), w.vec("i64"), w.vec("i32")
    x = value if type == "f64" else w.op(f"fpext {w.vtype(type)} {value} to {d}")
    small = w.op(f"fcmp olt {d} {w.intrinsic('fabs', 'f64', x)}, {w.const('f64', 2.0**-1022)}")
    larger = w.op(f"fmul {d} {x}, {w.const('f64', 2.0**64)}")
    x = w.op(f"select {w.mask} {small}, {d} {larger}, {d} {x}")
    raw = w.op(f"bitcast {d} {x} to {wide}")
    field = w.op(f"and {wide} {w.op(f'lshr {wide} {raw}, splat (i64 52)')}, splat (i64 2047)")
    exponent = w.op(f"sub {t} {w.op(f'trunc {wide} {field} to {t}')}, splat (i32 1022)")
    exponent = w.op(f"sub {t} {exponent}, {w.op(f'select {w.mask} {small}, {t} splat (i32 64), {t} zeroinitializer')}")
    kept = w.op(f"and {wide} {raw}, splat (i64 {(1 << 63 | (1 << 52) - 1) - (1 << 64)})")
    rest = w.op(f"or {wide} {kept}, splat (i64 {1022 << 52})")
    fraction = w.op(f"bitcast {wide} {rest} to {d}")
    odd = w.op(f"or {w.mask} {w.op(f'icmp eq {wide} {field}, splat (i64 2047)')}, {w.op(f'fcmp oeq {d} {x}, zeroinitializer')}")
    fraction = w.op(f"select {w.mask} {odd}, {d} {x}, {d} {fraction}")
    return exponent, fraction if type == "f64" else w.op(f"fptrunc {d} {fraction} to {w.vtype(type)}"), odd


@_named("v_frexp_exp_i32_f32", "v_frexp_exp_i32_f64", "v_frexp_exp_i16_f16")
def frexp_exponent(w: Writer, i: Instruction) -> None:
    o, out = i.sources[0], i.destinations[0]
    exponent, _, odd = _parts(w, w.value(o), o.type)
    r = w.op(f"select {w.mask} {odd}, {w.vec('i32')} zeroinitializer, {w.vec('i32')} {exponent}")
    w.result(i, out, r if bits(out.type) == 32 else w.op(f"trunc {w.vec('i32')} {r} to {w.vec('i16')}"))


@_named("v_frexp_mant_f32", "v_frexp_mant_f64", "v_frexp_mant_f16")
def frexp_fraction(w: Writer, i: Instruction) -> None:
    o = i.sources[0]
    w.result(i, i.destinations[0], _parts(w, w.value(o), o.type)[1])
