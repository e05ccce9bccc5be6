"""Float32 arithmetic, comparisons and selections."""

from __future__ import annotations

from devrt.compiler.sass.instruction import Instruction, Operand, Reg
from devrt.virtual.nvidia.translate import rounding
from devrt.virtual.nvidia.translate.rounding import BELOW, NEAREST
from devrt.virtual.nvidia.translate.writer import NotTranslated, Rule, Writer, named

RULES: dict[str, Rule] = {}
ROUND = ("RM", "RP", "RZ", "FTZ", "SAT")
SCALES = {"D2": -1, "D4": -2, "D8": -3, "M8": 3, "M4": 2, "M2": 1}  # FMUL: the product times 2 to this


def source(w: Writer, i: Instruction, o: Operand) -> str:
    """A float operand; under FTZ and FMZ without denormals."""
    value = w.f32(o)
    return rounding.flush(w, value) if "FTZ" in i.mods or "FMZ" in i.mods else value


def result(w: Writer, i: Instruction, value: str) -> None:
    """Write a float32 result: canonical NaN, flushed, saturated."""
    if "FTZ" in i.mods or "FMZ" in i.mods:
        value = rounding.flush(w, value)
    value = rounding.saturate(w, value) if "SAT" in i.mods else rounding.canonical(w, value)
    w.write_f32(i.dsts[0], value)


def fused(w: Writer, a: str | None, b: str, c: str, how: str) -> str:
    """a * b + c (b + c without an a) of floats in a directed mode."""
    t = w.t("double")
    if how == BELOW:  # the mirror image of rounding up; so is the sign of a sum that is zero
        b, c = (w.op(f"fneg {w.t('float')} {x}") for x in (b, c))
    wide = [rounding.widen(w, x, "float") for x in (b, c)]
    if a is not None:
        wide[0] = w.op(f"fmul {t} {rounding.widen(w, a, 'float')}, {wide[0]}")
    total = rounding.odd_sum(w, wide[0], wide[1])
    rounded = rounding.narrow(w, total, "float", "RP" if how == BELOW else how)
    r = w.op(f"fptrunc {t} {rounded} to {w.t('float')}")
    return w.op(f"fneg {w.t('float')} {r}") if how == BELOW else r


@named(RULES, "FADD", "UFADD")
def fadd(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *ROUND)
    a, b = (source(w, i, o) for o in i.srcs)
    how = rounding.mode(i)
    result(w, i, w.op(f"fadd {w.t('float')} {a}, {b}") if how == NEAREST else fused(w, None, a, b, how))


@named(RULES, "FMUL", "UFMUL")
def fmul(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *ROUND, "FMZ", *SCALES)
    a, b = (source(w, i, o) for o in i.srcs)
    how, t = rounding.mode(i), w.t("double")
    power = next((SCALES[m] for m in i.mods if m in SCALES), 0)
    if how == NEAREST and not power:
        r = w.op(f"fmul {w.t('float')} {a}, {b}")
    else:
        product = w.op(f"fmul {t} {rounding.widen(w, a, 'float')}, {rounding.widen(w, b, 'float')}")
        if power:
            product = w.op(f"fmul {t} {product}, {w.const('double', 2.0**power)}")
        r = w.op(f"fptrunc {t} {rounding.narrow(w, product, 'float', how)} to {w.t('float')}")
    result(w, i, zero_wins(w, a, b, r, w.const("float", 0.0)) if "FMZ" in i.mods else r)


@named(RULES, "FFMA", "UFFMA")
def ffma(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *ROUND, "FMZ")
    a, b, c = (source(w, i, o) for o in i.srcs)
    how = rounding.mode(i)
    r = w.intrinsic("fma", "float", a, b, c) if how == NEAREST else fused(w, a, b, c, how)
    result(w, i, zero_wins(w, a, b, r, c) if "FMZ" in i.mods else r)


def zero_wins(w: Writer, a: str, b: str, value: str, otherwise: str) -> str:
    """FMZ: zero times anything is zero."""
    zeros = [w.op(f"fcmp oeq {w.t('float')} {x}, {w.const('float', 0.0)}") for x in (a, b)]
    return w.select(w.op(f"or {w.t('i1')} {zeros[0]}, {zeros[1]}"), "float", otherwise, value)


@named(RULES, "FMNMX", "UFMNMX")
def fmnmx(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, "FTZ", "NAN", "XORSIGN", "IS_A")
    if any(isinstance(o.value, Reg) and not o.value.zero for o in i.dsts[1:]):  # which of the two it was
        raise NotTranslated(str(i))
    a, b = (source(w, i, o) for o in i.srcs[:2])
    r = rounding.minmax(w, "float", a, b, w.pred(i.srcs[2]), "NAN" in i.mods)
    if "XORSIGN" in i.mods:  # of the numbers as they stand in the registers
        signs = w.op(f"xor {w.t('i32')} {w.word(i.srcs[0])}, {w.word(i.srcs[1])}")
        r = w.intrinsic("copysign", "float", r, w.cast(signs, "i32", "float"))
    w.write_f32(i.dsts[0], rounding.canonical(w, r))


@named(RULES, "FSETP", "UFSETP")
def fsetp(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, "FTZ", *rounding.COMPARE, *rounding.COMBINE)
    a, b = (source(w, i, o) for o in i.srcs[:2])
    set_predicates(w, i, rounding.compare(w, i, "float", a, b))


def set_predicates(w: Writer, i: Instruction, holds: str) -> None:
    """The comparison, and its contrary, each combined with the last operand."""
    other = w.pred(i.srcs[2]) if len(i.srcs) > 2 else w.const("i1", 1)
    first = rounding.combined(w, i, holds, other)
    second = rounding.combined(w, i, rounding.inverse(w, holds), other)
    w.write_pred(i.dsts[0], first)
    if len(i.dsts) > 1:
        w.write_pred(i.dsts[1], second)


@named(RULES, "FSET", "UFSET")
def fset(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, "FTZ", "BF", *rounding.COMPARE, *rounding.COMBINE)
    a, b = (source(w, i, o) for o in i.srcs[:2])
    other = w.pred(i.srcs[2]) if len(i.srcs) > 2 else w.const("i1", 1)
    holds = rounding.combined(w, i, rounding.compare(w, i, "float", a, b), other)
    yes = 0x3F800000 if "BF" in i.mods else -1
    w.write(i.dsts[0], w.select(holds, "i32", w.const("i32", yes), w.const("i32", 0)))


@named(RULES, "FSEL", "UFSEL")
def fsel(w: Writer, i: Instruction) -> None:
    """Moves bits: no NaN is changed."""
    rounding.unknown(i, "FTZ")
    a, b = (source(w, i, o) for o in i.srcs[:2])
    w.write_f32(i.dsts[0], w.select(w.pred(i.srcs[2]), "float", a, b))


@named(RULES, "FCHK")
def fchk(w: Writer, i: Instruction) -> None:
    """True where a / b by the reciprocal, two steps of Newton and a correction could be wrong: a number that is zero, denormal,
    infinite or NaN, a reciprocal, quotient or remainder that is or may come near a denormal, a quotient that may overflow.
    Hardware's exact bounds are not documented; these are at least as wide as the arithmetic needs."""
    rounding.unknown(i, "DIVIDE")
    t = w.t("i32")
    fields = []
    for o in i.srcs:
        raw = w.cast(w.f32(o), "float", "i32")
        fields.append(w.op(f"and {t} {w.op(f'lshr {t} {raw}, ' + w.const('i32', 23))}, {w.const('i32', 255)}"))
    a, b = fields
    difference = w.op(f"sub {t} {a}, {b}")

    def outside(value: str, low: int, high: int) -> str:
        moved = w.op(f"sub {t} {value}, {w.const('i32', low)}")
        return w.op(f"icmp ugt {t} {moved}, {w.const('i32', high - low)}")
    bad = w.op(f"or {w.t('i1')} {outside(a, 25, 254)}, {outside(b, 1, 252)}")
    w.write_pred(i.dsts[0], w.op(f"or {w.t('i1')} {bad}, {outside(difference, -124, 125)}"))

