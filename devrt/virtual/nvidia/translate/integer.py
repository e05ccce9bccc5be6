"""Integer arithmetic and logic, in the lanes and in the uniform datapath: moves, sums, products.

Sources: CUDA's binary utilities name the operations; what they do is read off what ptxas makes of PTX, and Mesa's NAK folds.
"""

from __future__ import annotations

from dataclasses import replace

from devrt.compiler.sass.instruction import Imm, Instruction, Operand, Reg
from devrt.virtual.nvidia.translate.operands import element, integer, outcomes, predicates, result, unsigned, values, write
from devrt.virtual.nvidia.translate.writer import NotTranslated, Rule, Writer, named

RULES: dict[str, Rule] = {}


# ---------------------------------------------------------------------------------------------------------------------
# Moves and choices

@named(RULES, "MOV", "UMOV")
def mov(w: Writer, i: Instruction) -> None:
    e = element(i)
    write(w, i.dsts[0], integer(w, i.srcs[0], e), e)


@named(RULES, "SEL", "USEL")
def sel(w: Writer, i: Instruction) -> None:
    a, b = values(i)
    e = element(i)
    write(w, i.dsts[0], w.select(w.pred(predicates(i)[0]), e, integer(w, a, e), integer(w, b, e)), e)


@named(RULES, "IMNMX", "UIMNMX")
def imnmx(w: Writer, i: Instruction) -> None:
    """The smaller where the predicate is true, else the larger."""
    if any(not _none(o) for o in outcomes(i)):
        raise NotTranslated(f"{i.op} that says which it took")
    e = element(i)
    a, b = (integer(w, o, e) for o in values(i)[:2])
    kind = "u" if unsigned(i) else "s"
    least, most = (w.intrinsic(f"{kind}{which}", e, a, b) for which in ("min", "max"))
    write(w, result(i), w.select(w.pred(predicates(i)[0]), e, least, most), e)


@named(RULES, "IABS", "UIABS")
def iabs(w: Writer, i: Instruction) -> None:
    t = w.t("i32")
    a, zero = w.int32(i.srcs[0]), w.const("i32", 0)
    low = w.op(f"icmp slt {t} {a}, {zero}")
    w.write(i.dsts[0], w.select(low, "i32", w.op(f"sub {t} {zero}, {a}"), a))


# ---------------------------------------------------------------------------------------------------------------------
# Sums

def wide_term(w: Writer, o: Operand) -> str:
    """A summand in 64 bits, so that carries can be seen: -x is ~x + 1, which carries for 0."""
    t, word = w.t("i64"), w.word(o)
    if o.neg or o.inv:
        word = w.op(f"xor {w.t('i32')} {word}, {w.const('i32', -1)}")
    wide = w.op(f"zext {w.t('i32')} {word} to {t}")
    return w.op(f"add {t} {wide}, {w.const('i64', 1)}") if o.neg else wide


def _none(o: Operand) -> bool:
    return isinstance(o.value, Reg) and o.value.zero


def carry_in(w: Writer, o: Operand, e: str) -> str:
    return w.op(f"zext {w.t('i1')} {w.pred(o)} to {w.t(e)}")


@named(RULES, "IADD3", "UIADD3", "IADD", "UIADD")
def iadd3(w: Writer, i: Instruction) -> None:
    """Two carries out: one where the sum reaches 1 << 32, one where it reaches 2 << 32."""
    terms, carries, out = values(i), predicates(i) if "X" in i.mods else [], outcomes(i)
    if "64" in i.mods:
        _iadd64(w, i, terms, carries, out)
        return
    carries = [o for o in carries if not (isinstance(o.value, Reg) and o.value.zero and o.inv)]
    if all(_none(o) for o in out):
        t = w.t("i32")
        given = [w.int32(o) for o in terms if not (isinstance(o.value, Reg) and o.value.zero and not o.inv)]
        total = given[0] if given else w.const("i32", 0)
        for more in (*given[1:], *(carry_in(w, o, "i32") for o in carries)):
            total = w.op(f"add {t} {total}, {more}")
        w.write(result(i), total)
        return
    t = w.t("i64")
    parts = [wide_term(w, o) for o in terms] + [carry_in(w, o, "i64") for o in carries]
    total = parts[0]
    for more in parts[1:]:
        total = w.op(f"add {t} {total}, {more}")
    w.write(result(i), w.op(f"trunc {t} {total} to {w.t('i32')}"))
    for n, o in enumerate(out):
        w.write_pred(o, w.op(f"icmp uge {t} {total}, {w.const('i64', n + 1 << 32)}"))


def _iadd64(w: Writer, i: Instruction, terms: list[Operand], carries: list[Operand], out: list[Operand]) -> None:
    """A sum of 64 bits, -x as ~x + 1; the carry out of its steps, of which at most two can matter."""
    t = w.t("i64")
    parts = [w.int64(replace(o, neg=False, inv=o.inv != o.neg)) for o in terms if not (_none(o) and not o.neg and not o.inv)]
    ones = sum(o.neg for o in terms)
    carried = not all(_none(o) for o in out)
    if carried and (len(parts) > 2 or ones + len(carries) > 1):
        raise NotTranslated(str(i))
    total, over = parts[0] if parts else w.const("i64", 0), []
    for more in (*parts[1:], *[w.const("i64", 1)] * ones, *(carry_in(w, o, "i64") for o in carries)):
        total = w.op(f"add {t} {total}, {more}")
        if carried:
            over.append(w.op(f"icmp ult {t} {total}, {more}"))
    w.write64(result(i), total)
    if carried:
        any_ = over[0] if over else w.const("i1", 0)
        for more in over[1:]:
            any_ = w.op(f"or {w.t('i1')} {any_}, {more}")
        w.write_pred(out[0], any_)


@named(RULES, "VABSDIFF", "VABSDIFF4")
def vabsdiff(w: Writer, i: Instruction) -> None:
    """|a - b| + c, of words or the sum of each byte's."""
    if i.op == "VABSDIFF4" and "ACC" not in i.mods or outcomes(i):
        raise NotTranslated(str(i))
    t = w.t("i32")
    a, b, c = values(i)
    total = w.int32(c)
    if i.op == "VABSDIFF":
        pairs = [(w.int32(a), w.int32(b))]
        kind = "u" if "U32" in i.mods else "s"
    else:
        signed = "U8" not in i.mods
        pairs = [(_field(w, w.word(a), 8 * n, 8, signed), _field(w, w.word(b), 8 * n, 8, signed)) for n in range(4)]
        kind = "s"
    for x, y in pairs:
        most, least = (w.intrinsic(f"{kind}{which}", "i32", x, y) for which in ("max", "min"))
        total = w.op(f"add {t} {total}, {w.op(f'sub {t} {most}, {least}')}")
    w.write(result(i), total)


@named(RULES, "LEA", "ULEA")
def lea(w: Writer, i: Instruction) -> None:
    """(a << shift) + b; .HI: the high word of {c, a} << shift, .SX32 of a with its sign."""
    t, wide = w.t("i32"), w.t("i64")
    sources = values(i)
    a, b, shift = sources[0], sources[1], sources[-1]
    assert isinstance(shift.value, Imm)
    amount = shift.value.value & 31
    if "HI" in i.mods:
        if "SX32" in i.mods:
            whole = w.op(f"sext {t} {w.word(a)} to {wide}")
        else:
            whole = w.pair(w.word(a), w.word(sources[2]) if len(sources) > 3 else w.const("i32", 0))
        moved = w.op(f"lshr {wide} {w.op(f'shl {wide} {whole}, ' + w.const('i64', amount))}, {w.const('i64', 32)}")
        first = w.op(f"trunc {wide} {moved} to {t}")
    else:
        first = w.op(f"shl {t} {w.word(a)}, {w.const('i32', amount)}")
    bits = wide_of(w, first, a)
    total = w.op(f"add {wide} {bits}, {wide_term(w, b)}")
    if "X" in i.mods:
        total = w.op(f"add {wide} {total}, {carry_in(w, predicates(i)[-1], 'i64')}")
    w.write(result(i), w.op(f"trunc {wide} {total} to {t}"))
    for n, o in enumerate(outcomes(i)):
        w.write_pred(o, w.op(f"icmp uge {wide} {total}, {w.const('i64', n + 1 << 32)}"))


def wide_of(w: Writer, word: str, o: Operand) -> str:
    """A word in 64 bits with the sign of an operand."""
    t, wide = w.t("i32"), w.t("i64")
    if o.neg or o.inv:
        word = w.op(f"xor {t} {word}, {w.const('i32', -1)}")
    value = w.op(f"zext {t} {word} to {wide}")
    return w.op(f"add {wide} {value}, {w.const('i64', 1)}") if o.neg else value


# ---------------------------------------------------------------------------------------------------------------------
# Products

@named(RULES, "IMAD", "UIMAD", "IMUL")
def imad(w: Writer, i: Instruction) -> None:
    """a * b + c: 32 bits, .WIDE 64 bits with c, .HI the upper ones of these."""
    t, wide = w.t("i32"), w.t("i64")
    sources = values(i)
    a, b = sources[:2]
    c = sources[2] if len(sources) > 2 else None
    carries = predicates(i) if "X" in i.mods else []
    if "WIDE" not in i.mods and "HI" not in i.mods:
        total = _product(w, a, b)
        for more in ([] if c is None or _nothing(c) else [w.int32(c)]) + [carry_in(w, o, "i32") for o in carries]:
            total = more if total == "" else w.op(f"add {t} {total}, {more}")
        w.write(result(i), total or w.const("i32", 0))
        if any(not _none(o) for o in outcomes(i)):
            raise NotTranslated(f"{i.op} with a carry")
        return
    extend = "zext" if "U32" in i.mods else "sext"
    x, y = (w.op(f"{extend} {t} {w.int32(o)} to {wide}") for o in (a, b))
    total = w.op(f"mul {wide} {x}, {y}")
    out = [o for o in outcomes(i) if not _none(o)]
    added = [] if c is None or _nothing(c) else [w.int64(c)]
    first = total
    for more in added + [carry_in(w, o, "i64") for o in carries]:
        total = w.op(f"add {wide} {total}, {more}")
    for o in out:
        if extend == "sext" or carries:
            raise NotTranslated(f"{i.op} with a carry")
        w.write_pred(o, w.op(f"icmp ult {wide} {total}, {first}"))
    if "HI" in i.mods:
        w.write(result(i), w.halves(total)[1])
    else:
        w.write64(result(i), total)


def _product(w: Writer, a: Operand, b: Operand) -> str:
    """a * b, "" for 0; products with 1 and powers of two, which stand for moves and shifts, are none."""
    t = w.t("i32")
    if _nothing(a) or _nothing(b):
        return ""
    if isinstance(b.value, Imm) and b.value.value.bit_count() == 1:
        amount = b.value.value.bit_length() - 1
        return w.op(f"shl {t} {w.int32(a)}, {w.const('i32', amount)}") if amount else w.int32(a)
    return w.op(f"mul {t} {w.int32(a)}, {w.int32(b)}")


def _nothing(o: Operand) -> bool:
    return isinstance(o.value, Reg) and o.value.zero and not o.inv


@named(RULES, "IDP", "UIDP")
def idp(w: Writer, i: Instruction) -> None:
    """c + the sum of products of four bytes, or of two words and two bytes (.2A, .LO or .HI)."""
    t = w.t("i32")
    signs = [m for m in i.mods if m in ("U8", "S8", "U16", "S16")]
    a, b, c = values(i)
    total = w.int32(c)
    for n in range(4 if "4A" in i.mods else 2):
        if "4A" in i.mods:
            x = _field(w, w.word(a), 8 * n, 8, signs[0] == "S8")
            y = _field(w, w.word(b), 8 * n, 8, signs[1] == "S8")
        else:
            x = _field(w, w.word(a), 16 * n, 16, signs[0] == "S16")
            y = _field(w, w.word(b), 8 * n + (16 if "HI" in i.mods else 0), 8, signs[1] == "S8")
        total = w.op(f"add {t} {total}, {w.op(f'mul {t} {x}, {y}')}")
    w.write(result(i), total)


def _field(w: Writer, word: str, start: int, width: int, signed: bool) -> str:
    """Some bits of a word, extended."""
    t = w.t("i32")
    up = w.op(f"shl {t} {word}, {w.const('i32', 32 - width - start)}")
    return w.op(f"{'ashr' if signed else 'lshr'} {t} {up}, {w.const('i32', 32 - width)}")
