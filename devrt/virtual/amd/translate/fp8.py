"""Conversions of 8-bit floats. CDNA3 has those without infinities and without a negative zero (bias 8 and 16), RDNA 4 those of
the Open Compute Project. Sources: "AMD Instinct MI300 ISA", "RDNA 4 ISA", FP8 and BF8 conversions."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from devrt.virtual.amd.isa.instruction import Instruction
from devrt.virtual.amd.translate.writer import Rule, Writer

NAMED: dict[str, Rule] = {}


@dataclass(frozen=True)
class Format:
    """fraction bits, exponent bias, the largest code below the sign, what is beyond it, and what NaN becomes."""

    fraction: int
    bias: int
    largest: int
    beyond: int
    nan: int
    unsigned_zero: bool


FORMATS = {
    ("gfx942", "fp8"): Format(3, 8, 0x7F, 0x80, 0x80, True),
    ("gfx942", "bf8"): Format(2, 16, 0x7F, 0x80, 0x80, True),
    ("gfx1201", "fp8"): Format(3, 7, 0x7E, 0x7F, 0x7F, False),
    ("gfx1201", "bf8"): Format(2, 15, 0x7B, 0x7C, 0x7F, False),
}


def number(code: int, form: Format) -> float:
    """The value of one code."""
    if form.unsigned_zero and code == 0x80 or (code & 0x7F) > form.beyond:
        return float("nan")
    sign, size = -1.0 if code >> 7 else 1.0, code & 0x7F
    if not form.unsigned_zero and size == form.beyond:
        return sign * float("inf") if form.fraction == 2 else float("nan")
    exponent, fraction = size >> form.fraction, size & (1 << form.fraction) - 1
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - form.bias - form.fraction)
    return sign * (1 + fraction / (1 << form.fraction)) * 2.0 ** (exponent - form.bias)


def _kind(type: str) -> str:
    return type[:3]


def table(w: Writer, kind: str) -> str:
    """The name of a table of 256 float32."""
    form, name = FORMATS[w.gen, kind], f"{kind}_numbers"
    raw = [int.from_bytes(struct.pack("<f", number(code, form)), "little") for code in range(256)]
    w.helpers[name] = f"@{name} = internal constant [256 x i32] [" + ", ".join(f"i32 {_signed(v)}" for v in raw) + "]\n"
    return name


def widened(w: Writer, codes: str, kind: str) -> str:
    """i32 vectors of codes as float32."""
    f, name = w.vec("float"), table(w, kind)
    p = w.op(f"getelementptr i32, ptr @{name}, {w.vec('i32')} {codes}")
    found = w.call(w.vec("i32"), f"llvm.masked.gather.v{w.wave}i32.v{w.wave}p0", (w.vec("ptr"), p), ("i32", "4"),
                   (w.mask, "splat (i1 true)"), (w.vec("i32"), "zeroinitializer"), declare=False)
    return w.op(f"bitcast {w.vec('i32')} {found} to {f}")


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def narrowed(w: Writer, value: str, kind: str, random: str = "") -> str:
    """float32 as i32 vectors of codes: rounded to nearest even, or by adding `random` below the last digit and cutting off."""
    form = FORMATS[w.gen, kind]
    t, f = w.vec("i32"), w.vec("float")
    cut, least = 23 - form.fraction, 1 - form.bias
    raw = w.op(f"bitcast {f} {value} to {t}")
    size = w.op(f"and {t} {raw}, splat (i32 2147483647)")
    sign = w.op(f"and {t} {w.op(f'lshr {t} {raw}, splat (i32 24)')}, splat (i32 128)")
    if random:
        more = w.op(f"lshr {t} {random}, splat (i32 {32 - cut})")
    else:
        odd = w.op(f"and {t} {w.op(f'lshr {t} {size}, splat (i32 {cut})')}, splat (i32 1)")
        more = w.op(f"add {t} {odd}, splat (i32 {(1 << cut - 1) - 1})")
    rounded = w.op(f"lshr {t} {w.op(f'add {t} {size}, {more}')}, splat (i32 {cut})")
    normal = w.op(f"sub {t} {rounded}, splat (i32 {(127 - form.bias) << form.fraction})")
    magnitude = w.op(f"bitcast {t} {size} to {f}")
    scaled = w.op(f"fmul {f} {magnitude}, {w.const('f32', 2.0 ** (form.fraction - least))}")
    if random:
        d = w.vec("double")
        chance = w.op(f"fmul {d} {w.op(f'uitofp {t} {random} to {d}')}, {w.const('f64', 2.0 ** -32)}")
        total = w.op(f"fadd {d} {w.op(f'fpext {f} {scaled} to {d}')}, {chance}")
        small = w.call(t, f"llvm.fptoui.sat.v{w.wave}i32.v{w.wave}f64", (d, total))
    else:
        small = w.call(t, f"llvm.fptoui.sat.v{w.wave}i32.v{w.wave}f32", (f, w.intrinsic("roundeven", "f32", scaled)))
    tiny = w.op(f"fcmp olt {f} {magnitude}, {w.const('f32', 2.0 ** least)}")
    code = w.op(f"select {w.mask} {tiny}, {t} {small}, {t} {normal}")
    too_large = w.op(f"icmp ugt {t} {code}, splat (i32 {form.largest})")
    code = w.op(f"select {w.mask} {too_large}, {t} splat (i32 {form.beyond}), {t} {code}")
    nan = w.op(f"icmp ugt {t} {size}, splat (i32 {0x7F800000})")
    code = w.op(f"select {w.mask} {nan}, {t} splat (i32 {form.nan}), {t} {code}")
    if form.unsigned_zero:
        zero = w.op(f"icmp eq {t} {code}, zeroinitializer")
        sign = w.op(f"select {w.mask} {zero}, {t} zeroinitializer, {t} {sign}")
    return w.op(f"or {t} {code}, {sign}")


def _placed(w: Writer, n: int, value: str, low: int, width: int) -> None:
    """Put bits into a register and keep the others."""
    t, field = w.vec("i32"), ((1 << width) - 1) << low
    kept = w.op(f"and {t} {w.v(n)}, splat (i32 {_signed(~field & 0xFFFFFFFF)})")
    w.set_v(n, w.op(f"or {t} {kept}, {w.op(f'shl {t} {value}, splat (i32 {low})')}"))


def _pack(w: Writer, i: Instruction) -> None:
    t, out = w.vec("i32"), i.destinations[0]
    low, high = (narrowed(w, w.value(o), _kind(out.type)) for o in i.sources)
    both = w.op(f"or {t} {low}, {w.op(f'shl {t} {high}, splat (i32 8)')}")
    _placed(w, w.vcode(out), both, 16 if i.op_sel & 8 else 0, 16)


def _pack_random(w: Writer, i: Instruction) -> None:
    out, (value, random) = i.destinations[0], i.sources
    code = narrowed(w, w.value(value), _kind(out.type), w.dword(random))
    _placed(w, w.vcode(out), code, 8 * int(out.select[-1]), 8)


def _widen(w: Writer, i: Instruction) -> None:
    o, t = i.sources[0], w.vec("i32")
    low = 8 * int(o.select[-1]) if o.select.startswith("BYTE") else 0
    code = w.op(f"and {t} {w.op(f'lshr {t} {w.dword(o)}, splat (i32 {low})')}, splat (i32 255)")
    w.result(i, i.destinations[0], widened(w, code, _kind(o.type)), "f32")


def _widen_pair(w: Writer, i: Instruction) -> None:
    o, t, out = i.sources[0], w.vec("i32"), i.destinations[0]
    low = 16 if o.select == "WORD_1" else 0
    raw = w.dword(o)
    for half in (0, 1):
        code = w.op(f"and {t} {w.op(f'lshr {t} {raw}, splat (i32 {low + 8 * half})')}, splat (i32 255)")
        value = w.scaled(i, widened(w, code, _kind(o.type)), "f32")
        w.set_v(w.vcode(out) + half, w.cast(value, w.vec("float"), t))


for _name in ("fp8", "bf8"):
    NAMED |= {f"v_cvt_pk_{_name}_f32": _pack, f"v_cvt_sr_{_name}_f32": _pack_random, f"v_cvt_f32_{_name}": _widen,
              f"v_cvt_pk_f32_{_name}": _widen_pair}
