"""Integer arithmetic and logic, in the lanes and in the uniform datapath: sums, products, shifts, bit fields, bytes.

Sources: CUDA's binary utilities name the operations; what they do is read off what ptxas makes of PTX, and Mesa's NAK folds.
"""

from __future__ import annotations

from devrt.compiler.sass.instruction import File, Imm, Instruction, Operand, Reg
from devrt.virtual.nvidia.translate.writer import LANES, NotTranslated, Rule, Writer, named

RULES: dict[str, Rule] = {}


def is_predicate(o: Operand) -> bool:
    return isinstance(o.value, Reg) and o.value.file in (File.P, File.UP)


def values(i: Instruction) -> list[Operand]:
    """The sources that are no predicates."""
    return [o for o in i.srcs if not is_predicate(o)]


def predicates(i: Instruction) -> list[Operand]:
    """The predicates among the sources."""
    return [o for o in i.srcs if is_predicate(o)]


def result(i: Instruction) -> Operand:
    """The destination that is no predicate."""
    return next(o for o in i.dsts if not is_predicate(o))


def outcomes(i: Instruction) -> list[Operand]:
    """The destinations that are predicates."""
    return [o for o in i.dsts if is_predicate(o)]


# ---------------------------------------------------------------------------------------------------------------------
# Moves and choices

def element(i: Instruction) -> str:
    """LLVM's type of the integers that it works on."""
    return "i64" if set(i.mods) & {"64", "U64", "S64"} else "i32"


def unsigned(i: Instruction) -> bool:
    return bool(set(i.mods) & {"U32", "U64"})


def integer(w: Writer, o: Operand, e: str) -> str:
    return w.int32(o) if e == "i32" else w.int64(o)


def write(w: Writer, o: Operand, value: str, e: str) -> None:
    if e == "i32":
        w.write(o, value)
    else:
        w.write64(o, value)


@named(RULES, "MOV", "UMOV")
def mov(w: Writer, i: Instruction) -> None:
    e = element(i)
    write(w, i.dsts[0], integer(w, i.srcs[0], e), e)


@named(RULES, "SEL", "USEL")
def sel(w: Writer, i: Instruction) -> None:
    a, b = values(i)
    e = element(i)
    write(w, i.dsts[0], w.select(w.pred(predicates(i)[0]), e, integer(w, a, e), integer(w, b, e)), e)


@named(RULES, "IMNMX", "VIMNMX", "UIMNMX", "UVIMNMX")
def imnmx(w: Writer, i: Instruction) -> None:
    """The smaller where the predicate is true, else the larger."""
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


@named(RULES, "IADD3", "UIADD3", "IADD", "UIADD", "VIADD", "UVIADD")
def iadd3(w: Writer, i: Instruction) -> None:
    """Two carries out: one where the sum reaches 1 << 32, one where it reaches 2 << 32."""
    terms, carries, out = values(i), predicates(i) if "X" in i.mods else [], outcomes(i)
    if "64" in i.mods:
        parts = [w.int64(o) for o in terms]
        if carries or any(not _none(o) for o in out):
            raise NotTranslated(f"{i.op} with a carry")
        total = parts[0]
        for more in parts[1:]:
            total = w.op(f"add {w.t('i64')} {total}, {more}")
        w.write64(result(i), total)
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


@named(RULES, "VIADDMNMX")
def viaddmnmx(w: Writer, i: Instruction) -> None:
    """The smaller of a + b and c where the predicate is true, else the larger."""
    a, b, c = (w.int32(o) for o in values(i))
    if set(i.mods) - {"U32"}:
        raise NotTranslated(str(i))
    total, kind = w.op(f"add {w.t('i32')} {a}, {b}"), "u" if "U32" in i.mods else "s"
    least, most = (w.intrinsic(f"{kind}{which}", "i32", total, c) for which in ("min", "max"))
    w.write(result(i), w.select(w.pred(predicates(i)[-1]), "i32", least, most))


@named(RULES, "VABSDIFF", "VABSDIFF4")
def vabsdiff(w: Writer, i: Instruction) -> None:
    """|a - b| + c, of words or of each byte."""
    t = w.t("i32")
    a, b, c = values(i)
    total = w.int32(c)
    if i.op == "VABSDIFF":
        pairs = [(w.int32(a), w.int32(b))]
        kind = "u" if "U32" in i.mods else "s"
    else:
        signed = "S8" in i.mods
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


# ---------------------------------------------------------------------------------------------------------------------
# Logic and shifts

def lut2(w: Writer, t: str, table: int, a: str, b: str, ones: str) -> str:
    """Any function of two bits: bit 2a + b of the table. Values "0" and "1" stand for constants."""
    if table in (0, 15):
        return str(table & 1)
    simple = {10: b, 12: a}
    if table in simple:
        return simple[table]
    if table in (3, 5):
        return w.op(f"xor {t} {a if table == 3 else b}, {ones}")
    if table in (8, 14, 6):
        return w.op(f"{ {8: 'and', 14: 'or', 6: 'xor'}[table]} {t} {a}, {b}")
    if table in (7, 1, 9):
        inner = w.op(f"{ {7: 'and', 1: 'or', 9: 'xor'}[table]} {t} {a}, {b}")
        return w.op(f"xor {t} {inner}, {ones}")
    first = table in (4, 13)  # a & ~b, a | ~b; else with a inverted
    other = w.op(f"xor {t} {b if first else a}, {ones}")
    return w.op(f"{'and' if table in (4, 2) else 'or'} {t} {a if first else other}, {other if first else b}")


def lut3(w: Writer, t: str, table: int, a: str, b: str, c: str, ones: str, zero: str) -> str:
    """Any function of three bits: bit 4a + 2b + c of the table."""
    yes, no = lut2(w, t, table >> 4, b, c, ones), lut2(w, t, table & 15, b, c, ones)
    if yes == no:
        return {"0": zero, "1": ones}.get(yes, yes)
    if (yes, no) in (("1", "0"), ("0", "1")):
        return a if yes == "1" else w.op(f"xor {t} {a}, {ones}")
    if yes == "1" or no == "0":  # a | no, a & yes
        return w.op(f"or {t} {a}, {no}") if yes == "1" else w.op(f"and {t} {a}, {yes}")
    if table >> 4 == 15 - (table & 15):
        return w.op(f"xor {t} {a}, {no}")
    other = w.op(f"xor {t} {a}, {ones}")
    if yes == "0" or no == "1":
        return w.op(f"and {t} {other}, {no}") if yes == "0" else w.op(f"or {t} {other}, {yes}")
    return w.op(f"or {t} {w.op(f'and {t} {a}, {yes}')}, {w.op(f'and {t} {other}, {no}')}")


@named(RULES, "LOP3", "ULOP3")
def lop3(w: Writer, i: Instruction) -> None:
    """A function of three words; the predicate: any bit of it, or the predicate given (.PAND: and)."""
    t = w.t("i32")
    *words, table = values(i)
    assert isinstance(table.value, Imm)
    a, b, c = (w.int32(o) for o in words)
    value = lut3(w, t, table.value.value & 255, a, b, c, w.const("i32", -1), w.const("i32", 0))
    w.write(result(i), value)
    for o in outcomes(i):
        some = w.op(f"icmp ne {t} {value}, {w.const('i32', 0)}")
        given = predicates(i)
        if given:
            some = w.op(f"{'and' if 'PAND' in i.mods else 'or'} {w.t('i1')} {some}, {w.pred(given[0])}")
        w.write_pred(o, some)


@named(RULES, "PLOP3", "UPLOP3")
def plop3(w: Writer, i: Instruction) -> None:
    """Two functions of three predicates."""
    tables = [o.value.value for o in values(i) if isinstance(o.value, Imm)]
    t = "i1" if w.uniform else "i32"
    sources = [w.pred(o) if w.uniform else w.mask_of(o) for o in predicates(i)]
    a, b, c = sources
    for o, table in zip(outcomes(i), tables, strict=False):
        assert isinstance(o.value, Reg)
        if not o.value.zero:
            w.set_reg(o.value, lut3(w, t, table & 255, a, b, c, "true" if w.uniform else "-1", "false" if w.uniform else "0"))


@named(RULES, "SHF", "USHF")
def shf(w: Writer, i: Instruction) -> None:
    """{c, a} shifted; the low word, or with .HI the high one. Amounts end at the type's width, with .W they wrap."""
    t, wide = w.t("i32"), w.t("i64")
    a, amount, c = values(i)
    width = 64 if "U64" in i.mods or "S64" in i.mods else 32
    signed = "S32" in i.mods or "S64" in i.mods
    right, high = "R" in i.mods, "HI" in i.mods
    if isinstance(amount.value, Imm):
        fixed = amount.value.value & width - 1 if "W" in i.mods else min(amount.value.value, width)
        if fixed < 32 and _simple_shift(w, i, a, c, fixed, right, high, signed):
            return
        number = w.const("i64", fixed)
    else:
        raw = w.word(amount)
        if "W" in i.mods:
            raw = w.op(f"and {t} {raw}, {w.const('i32', width - 1)}")
        else:
            raw = w.intrinsic("umin", "i32", raw, w.const("i32", width))
        number = w.op(f"zext {t} {raw} to {wide}")
    whole = w.pair(w.word(a), w.word(c))
    far = w.op(f"icmp ugt {wide} {number}, {w.const('i64', 63)}")
    near = w.op(f"and {wide} {number}, {w.const('i64', 63)}")
    moved = w.op(f"{('ashr' if signed else 'lshr') if right else 'shl'} {wide} {whole}, {near}")
    beyond = w.op(f"ashr {wide} {whole}, {w.const('i64', 63)}") if right and signed else w.const("i64", 0)
    low, top = w.halves(w.select(far, "i64", beyond, moved))
    w.write(result(i), top if high else low)


def _simple_shift(w: Writer, i: Instruction, a: Operand, c: Operand, amount: int, right: bool, high: bool, signed: bool) -> bool:
    """One word by a known amount: whether it was that."""
    t = w.t("i32")
    if right and high:
        value = w.op(f"{'ashr' if signed else 'lshr'} {t} {w.word(c)}, {w.const('i32', amount)}")
    elif not right and not high:
        value = w.op(f"shl {t} {w.word(a)}, {w.const('i32', amount)}")
    else:
        value = w.intrinsic("fshr" if right else "fshl", "i32", w.word(c), w.word(a), w.const("i32", amount))
    w.write(result(i), value)
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Bits and bytes

@named(RULES, "POPC", "UPOPC")
def popc(w: Writer, i: Instruction) -> None:
    w.write(result(i), w.intrinsic("ctpop", "i32", w.int32(values(i)[0])))


@named(RULES, "BREV", "UBREV")
def brev(w: Writer, i: Instruction) -> None:
    w.write(result(i), w.intrinsic("bitreverse", "i32", w.int32(values(i)[0])))


@named(RULES, "FLO", "UFLO")
def flo(w: Writer, i: Instruction) -> None:
    """The number of the highest bit that is set, or differs from the sign; -1 for none. .SH: how far it is from bit 31."""
    t = w.t("i32")
    x = w.int32(values(i)[0])
    if "U32" not in i.mods:
        x = w.op(f"xor {t} {x}, {w.op(f'ashr {t} {x}, ' + w.const('i32', 31))}")
    name = "llvm.ctlz.i32" if w.uniform else f"llvm.ctlz.v{LANES}i32"
    zeros = w.call(t, name, (t, x), ("i1", "false"), declare=True)
    none = w.op(f"icmp eq {t} {x}, {w.const('i32', 0)}")
    found = zeros if "SH" in i.mods else w.op(f"sub {t} {w.const('i32', 31)}, {zeros}")
    w.write(result(i), w.select(none, "i32", w.const("i32", -1), found))
    for o in outcomes(i):
        w.write_pred(o, w.op(f"xor {w.t('i1')} {none}, {w.const('i1', 1)}"))


@named(RULES, "SGXT", "USGXT")
def sgxt(w: Writer, i: Instruction) -> None:
    """The low b bits of a, extended by their sign or with .U32 by zeros."""
    t = w.t("i32")
    a, b = (w.int32(o) for o in values(i))
    if "W" in i.mods:
        b = w.op(f"and {t} {b}, {w.const('i32', 31)}")
    width = w.intrinsic("umin", "i32", b, w.const("i32", 32))
    none = w.op(f"icmp eq {t} {width}, {w.const('i32', 0)}")
    away = w.op(f"sub {t} {w.const('i32', 32)}, {width}")
    move = w.op(f"and {t} {away}, {w.const('i32', 31)}")
    up = w.op(f"shl {t} {a}, {move}")
    down = w.op(f"{'lshr' if 'U32' in i.mods else 'ashr'} {t} {up}, {move}")
    w.write(result(i), w.select(none, "i32", w.const("i32", 0), down))


@named(RULES, "BMSK", "UBMSK")
def bmsk(w: Writer, i: Instruction) -> None:
    """b ones from bit a on; amounts end at 32, with .W they wrap."""
    t, wide = w.t("i32"), w.t("i64")
    start, count = (w.int32(o) for o in values(i))
    if "W" in i.mods:
        start, count = (w.op(f"and {t} {x}, {w.const('i32', 31)}") for x in (start, count))
    else:
        start, count = (w.intrinsic("umin", "i32", x, w.const("i32", 32)) for x in (start, count))
    s, n = (w.op(f"zext {t} {x} to {wide}") for x in (start, count))
    one = w.const("i64", 1)
    ones = w.op(f"sub {wide} {w.op(f'shl {wide} {one}, {n}')}, {one}")
    w.write(result(i), w.op(f"trunc {wide} {w.op(f'shl {wide} {ones}, {s}')} to {t}"))


@named(RULES, "PRMT", "UPRMT")
def prmt(w: Writer, i: Instruction) -> None:
    """Four bytes chosen from {c, a} by the nibbles of b; bit 3 of a nibble spreads the byte's sign."""
    a, chosen, c = values(i)
    if set(i.mods) & {"F4E", "B4E", "RC8", "ECL", "ECR", "RC16"}:
        raise NotTranslated(str(i))
    if isinstance(chosen.value, Imm) and not w.uniform:
        w.write(result(i), _bytes(w, w.word(a), w.word(c), chosen.value.value))
        return
    t, wide = w.t("i32"), w.t("i64")
    pair, by = w.pair(w.word(a), w.word(c)), w.word(chosen)
    total = w.const("i32", 0)
    for n in range(4):
        nibble = w.op(f"lshr {t} {by}, {w.const('i32', 4 * n)}")
        place = w.op(f"shl {t} {w.op(f'and {t} {nibble}, ' + w.const('i32', 7))}, {w.const('i32', 3)}")
        moved = w.op(f"lshr {wide} {pair}, {w.op(f'zext {t} {place} to {wide}')}")
        up = w.op(f"shl {t} {w.op(f'trunc {wide} {moved} to {t}')}, {w.const('i32', 24)}")
        spread = w.op(f"lshr {t} {w.op(f'ashr {t} {up}, ' + w.const('i32', 31))}, {w.const('i32', 24)}")
        sign = w.op(f"icmp ne {t} {w.op(f'and {t} {nibble}, ' + w.const('i32', 8))}, {w.const('i32', 0)}")
        byte = w.select(sign, "i32", spread, w.op(f"lshr {t} {up}, {w.const('i32', 24)}"))
        total = w.op(f"or {t} {total}, {w.op(f'shl {t} {byte}, ' + w.const('i32', 8 * n))}")
    w.write(result(i), total)


def _bytes(w: Writer, a: str, c: str, chosen: int) -> str:
    """Bytes by known nibbles, as one permutation over all lanes."""
    t = f"<{4 * LANES} x i8>"
    x, y = (w.op(f"bitcast {w.vec('i32')} {v} to {t}") for v in (a, c))
    nibbles = [chosen >> 4 * n & 15 for n in range(4)]

    def pick(first: str, second: str) -> str:
        numbers = ", ".join(f"i32 {4 * lane + (k & 3) + (4 * LANES if k & 4 else 0)}" for lane in range(LANES) for k in nibbles)
        return w.op(f"shufflevector {t} {first}, {t} {second}, <{4 * LANES} x i32> <{numbers}>")
    value = pick(x, y)
    if any(k & 8 for k in nibbles):
        spread = w.op(f"ashr {t} {value}, splat (i8 7)")
        which = ", ".join(f"i1 {k >> 3}" for _ in range(LANES) for k in nibbles)
        value = w.op(f"select <{4 * LANES} x i1> <{which}>, {t} {spread}, {t} {value}")
    return w.op(f"bitcast {t} {value} to {w.vec('i32')}")


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons

_COMPARE = {"LT": "lt", "LE": "le", "GT": "gt", "GE": "ge"}


@named(RULES, "ISETP", "UISETP")
def isetp(w: Writer, i: Instruction) -> None:
    """a cmp b, and what combines it with a predicate; the second result is the same for the opposite. .EX: the words are the high
    ones, and a further predicate is what the low ones gave."""
    e = element(i)
    t, one = w.t(e), w.t("i1")
    a, b = (integer(w, o, e) for o in values(i)[:2])
    name = next(m for m in i.mods if m in ("F", "LT", "EQ", "LE", "GT", "NE", "GE", "T"))
    kind = "u" if unsigned(i) else "s"
    given = predicates(i)
    if name in ("F", "T"):
        found = w.const("i1", int(name == "T"))
    elif name in ("EQ", "NE"):
        found = w.op(f"icmp {name.lower()} {t} {a}, {b}")
    else:
        found = w.op(f"icmp {kind}{_COMPARE[name]} {t} {a}, {b}")
    if "EX" in i.mods and name not in ("F", "T"):
        low = w.pred(given[-1])
        if name in ("EQ", "NE"):
            found = w.op(f"{'and' if name == 'EQ' else 'or'} {one} {found}, {low}")
        else:
            strict = w.op(f"icmp {kind}{_COMPARE[name][0]}t {t} {a}, {b}")
            same = w.op(f"icmp eq {t} {a}, {b}")
            found = w.op(f"or {one} {strict}, {w.op(f'and {one} {same}, {low}')}")
    combine(w, i, found, given[0] if given else None)


def combine(w: Writer, i: Instruction, found: str, given: Operand | None) -> None:
    """Write the two predicates of a comparison: with the result, and with its opposite."""
    how = next((m.lower() for m in i.mods if m in ("AND", "OR", "XOR")), "and")
    if w.uniform:
        t, ones, other = "i1", "true", w.pred(given) if given is not None else "true"
    else:
        t, ones, other, found = "i32", "-1", w.mask_of(given) if given is not None else "-1", w.number(found)
    for n, o in enumerate(outcomes(i)):
        assert isinstance(o.value, Reg)
        if not o.value.zero:
            value = w.op(f"xor {t} {found}, {ones}") if n else found
            w.set_reg(o.value, value if how == "and" and other in ("-1", "true") else w.op(f"{how} {t} {value}, {other}"))


# ---------------------------------------------------------------------------------------------------------------------
# Predicates as bits of a register

@named(RULES, "P2R", "UP2UR")
def p2r(w: Writer, i: Instruction) -> None:
    """Predicates of a mask into the bits of a register, the rest from another one."""
    t = w.t("i32")
    sources = [o for o in values(i) if not (isinstance(o.value, Imm) and o is values(i)[-1])]
    mask = values(i)[-1]
    assert isinstance(mask.value, Imm)
    file = File.UP if w.uniform else File.P
    chosen = mask.value.value & 127
    total = w.const("i32", 0)
    for n in range(7):
        if chosen >> n & 1:
            bit = w.op(f"zext {w.t('i1')} {w.pred(Operand(Reg(file, n)))} to {t}")
            total = w.op(f"or {t} {total}, {w.op(f'shl {t} {bit}, ' + w.const('i32', n))}")
    base = next((o for o in sources if isinstance(o.value, Reg)), None)
    shift = 8 * int(result(i).select[1]) if result(i).select.startswith("B") else 0
    if base is not None and not (isinstance(base.value, Reg) and base.value.zero):
        kept = w.op(f"and {t} {w.word(base)}, {w.const('i32', ~(mask.value.value << shift))}")
        total = w.op(f"or {t} {w.op(f'shl {t} {total}, ' + w.const('i32', shift))}, {kept}")
    elif shift:
        total = w.op(f"shl {t} {total}, {w.const('i32', shift)}")
    w.write(result(i), total)


@named(RULES, "R2P", "UR2UP")
def r2p(w: Writer, i: Instruction) -> None:
    """Predicates of a mask from the bits of a register."""
    t = w.t("i32")
    source, mask = values(i)[-2:]
    assert isinstance(mask.value, Imm)
    shift = 8 * int(source.select[1]) if source.select.startswith("B") else 0
    word = w.word(source)
    for n in range(7):
        if mask.value.value >> n & 1:
            bit = w.op(f"and {t} {word}, {w.const('i32', 1 << n + shift)}")
            w.write_pred(Operand(Reg(File.UP if w.uniform else File.P, n)), w.op(f"icmp ne {t} {bit}, {w.const('i32', 0)}"))
