"""Packed arithmetic of float16 and bfloat16: both halves of a register, each rounded once.

An operand's suffix picks a half for both (H0_H0, H1_H1); F32 reads a float32 cut to a half, which is what ptxas takes for
cvt.rz.f16.f32 on sm_75. Results are computed in float64, where products are exact and sums rounded to odd.
"""

from __future__ import annotations

from devrt.compiler.sass.instruction import File, Imm, Instruction, Operand, Reg
from devrt.virtual.nvidia.translate import rounding
from devrt.virtual.nvidia.translate.writer import NotTranslated, Rule, Writer, named

RULES: dict[str, Rule] = {}
KNOWN = ("MMA", "BF16_V2", "BF16", "F32", "FTZ", "SAT", "RELU")
Pair = tuple[str, str]


def format_of(i: Instruction) -> str:
    return "bfloat" if "BF16_V2" in i.mods or "BF16" in i.mods else "half"


def raw_halves(w: Writer, word: str) -> Pair:
    """The low and the high 16 bits of a word."""
    t, t16 = w.t("i32"), w.t("i16")
    high = w.op(f"lshr {t} {word}, {w.const('i32', 16)}")
    return w.op(f"trunc {t} {word} to {t16}"), w.op(f"trunc {t} {high} to {t16}")


def halves(w: Writer, i: Instruction, o: Operand) -> Pair:
    """What the low and the high result take of an operand, as float64."""
    e = format_of(i)
    if o.select == "F32":
        single = w.cast(w.word(o), "i32", "float")
        cut = signs(w, o, rounding.narrow(w, rounding.widen(w, single, "float"), e, rounding.ZERO))
        return cut, cut
    if isinstance(o.value, Reg) and o.value.zero and o.value.file in (File.R, File.UR):
        zero = w.const("double", -0.0 if o.neg else 0.0)
        return zero, zero
    low, high = raw_halves(w, w.word(o))
    if o.select in ("H0_H0", "H0"):
        high = low
    elif o.select in ("H1_H1", "H1"):
        low = high
    elif o.select not in ("", "H1_H0"):
        raise NotTranslated(f"{i.op} with an operand .{o.select}")
    first = signs(w, o, flushed(w, i, rounding.widen(w, low, e)))
    if low == high:
        return first, first
    return first, signs(w, o, flushed(w, i, rounding.widen(w, high, e)))


def signs(w: Writer, o: Operand, value: str) -> str:
    """|x| and -x. Immediates hold their sign."""
    return value if isinstance(o.value, Imm) else w.signs(o, "double", value)


def flushed(w: Writer, i: Instruction, value: str) -> str:
    return rounding.flush(w, value, "double", rounding.FORMATS[format_of(i)].low) if "FTZ" in i.mods else value


def finished(w: Writer, i: Instruction, value: str) -> str:
    """An exact number (or one rounded to odd) as 16 bits."""
    e = format_of(i)
    value = flushed(w, i, rounding.narrow(w, value, e))
    if "SAT" in i.mods:
        value = rounding.saturate(w, value, "double")
    if "RELU" in i.mods:
        value = w.intrinsic("maximum", "double", value, w.const("double", 0.0))
    return rounding.raw16(w, value, e)


def packed(w: Writer, low: str, high: str) -> str:
    """Two times 16 bits as a word."""
    t, t16 = w.t("i32"), w.t("i16")
    a, b = (w.op(f"zext {t16} {x} to {t}") for x in (low, high))
    return w.op(f"or {t} {a}, {w.op(f'shl {t} {b}, ' + w.const('i32', 16))}")


def total(w: Writer, a: str, b: str | None, c: str) -> str:
    """a * b + c, or a + c."""
    product = a if b is None else w.op(f"fmul {w.t('double')} {a}, {b}")
    return rounding.odd_sum(w, product, c)


def write_pair(w: Writer, i: Instruction, values: list[str]) -> None:
    if "F32" in i.mods:
        single = rounding.raw32(w, rounding.narrow(w, values[0], "float"))
        w.write_f32(i.dsts[0], rounding.saturate(w, single) if "SAT" in i.mods else single)
        return
    low = finished(w, i, values[0])
    high = low if values[1] == values[0] else finished(w, i, values[1])
    w.write(i.dsts[0], packed(w, low, high))


@named(RULES, "HADD2")
def hadd2(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *KNOWN)
    pairs = [halves(w, i, o) for o in i.srcs]
    write_pair(w, i, doubled([total(w, a, None, b) for a, b in distinct(pairs)]))


@named(RULES, "HMUL2")
def hmul2(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *KNOWN)
    pairs = [halves(w, i, o) for o in i.srcs]
    write_pair(w, i, doubled([w.op(f"fmul {w.t('double')} {a}, {b}") for a, b in distinct(pairs)]))


@named(RULES, "HFMA2")
def hfma2(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *KNOWN)
    if is_constant(i):
        w.write(i.dsts[0], w.word(i.srcs[2]))
        return
    pairs = [halves(w, i, o) for o in i.srcs]
    write_pair(w, i, doubled([total(w, a, b, c) for a, b, c in distinct(pairs)]))


def is_constant(i: Instruction) -> bool:
    """0 * 0 + a constant: how ptxas moves one, where its pipe has room. The sum is the constant unless a half is -0 or NaN."""
    a, b, c = (o.value for o in i.srcs)
    zeros = isinstance(a, Reg) and a.zero and isinstance(b, Reg) and b.zero
    if set(i.mods) - {"MMA"} or not zeros or not isinstance(c, Imm):
        return False
    return all(half & 0x7FFF <= 0x7C00 and half != 0x8000 for half in (c.value & 0xFFFF, c.value >> 16 & 0xFFFF))


@named(RULES, "HMNMX2")
def hmnmx2(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, "BF16_V2", "FTZ", "NAN", "XORSIGN")
    pairs = [halves(w, i, o) for o in i.srcs[:2]]
    least = w.pred(i.srcs[2])
    values = doubled([rounding.minmax(w, "double", a, b, least, "NAN" in i.mods) for a, b in distinct(pairs)])
    word = packed(w, *(rounding.raw16(w, x, format_of(i)) for x in values))
    w.write(i.dsts[0], xor_signs(w, i, word) if "XORSIGN" in i.mods else word)


def xor_signs(w: Writer, i: Instruction, word: str) -> str:
    """Signs by those of the operands as they stand in the registers; a NaN keeps its own."""
    t, t16 = w.t("i32"), w.t("i16")
    words = []
    for o in i.srcs[:2]:
        low, high = raw_halves(w, w.word(o))
        words.append(packed(w, low if o.select != "H1_H1" else high, high if o.select != "H0_H0" else low))
    parts = []
    for value, sign in zip(raw_halves(w, word), raw_halves(w, w.op(f"xor {t} {words[0]}, {words[1]}")), strict=True):
        kept = w.op(f"and {t16} {value}, {w.const('i16', 0x7FFF)}")
        signed = w.op(f"or {t16} {kept}, {w.op(f'and {t16} {sign}, ' + w.const('i16', -0x8000))}")
        nan = w.op(f"icmp eq {t16} {value}, {w.const('i16', 0x7FFF)}")
        parts.append(w.select(nan, "i16", value, signed))
    return packed(w, parts[0], parts[1])


@named(RULES, "HSETP2")
def hsetp2(w: Writer, i: Instruction) -> None:
    """A predicate a half; with H_AND whether both hold, and its contrary."""
    rounding.unknown(i, "BF16_V2", "FTZ", "H_AND", *rounding.COMPARE, *rounding.COMBINE)
    low, high = compared(w, i)
    other = w.pred(i.srcs[2])
    if "H_AND" in i.mods:
        low = w.op(f"and {w.t('i1')} {low}, {high}")
        high = rounding.inverse(w, low)
    w.write_pred(i.dsts[0], rounding.combined(w, i, low, other))
    w.write_pred(i.dsts[1], rounding.combined(w, i, high, other))


@named(RULES, "HSET2")
def hset2(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, "BF16_V2", "FTZ", "BF", *rounding.COMPARE, *rounding.COMBINE)
    other = w.pred(i.srcs[2])
    yes = {"half": 0x3C00, "bfloat": 0x3F80}[format_of(i)] if "BF" in i.mods else -1
    low, high = (w.select(rounding.combined(w, i, x, other), "i16", w.const("i16", yes), w.const("i16", 0))
                 for x in compared(w, i))
    w.write(i.dsts[0], packed(w, low, high))


def compared(w: Writer, i: Instruction) -> list[str]:
    pairs = [halves(w, i, o) for o in i.srcs[:2]]
    return doubled([rounding.compare(w, i, "double", a, b) for a, b in distinct(pairs)])


def distinct(pairs: list[Pair]) -> list[tuple[str, ...]]:
    """The operands of the low result and those of the high one; once where they are the same."""
    both = list(zip(*pairs, strict=True))
    return both[:1] if both[0] == both[1] else both


def doubled(values: list[str]) -> list[str]:
    return values * 2 if len(values) == 1 else values
