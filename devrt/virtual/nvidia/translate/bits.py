"""Logic, shifts, bits and bytes of integers, comparisons, predicates. Sources as in integer.py."""

from __future__ import annotations

from devrt.compiler.sass.instruction import File, Imm, Instruction, Operand, Reg
from devrt.virtual.nvidia.translate.operands import element, integer, is_predicate, outcomes, predicates, result, unsigned, values
from devrt.virtual.nvidia.translate.writer import LANES, NotTranslated, Rule, Writer, named

RULES: dict[str, Rule] = {}


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
    """Two functions of three predicates, or signs of registers."""
    tables = [o.value.value for o in i.srcs if isinstance(o.value, Imm)]
    t = "i1" if w.uniform else "i32"
    a, b, c = (_truth(w, o) for o in i.srcs if not isinstance(o.value, Imm))
    for o, table in zip(outcomes(i), tables, strict=False):
        assert isinstance(o.value, Reg)
        if not o.value.zero:
            w.set_reg(o.value, lut3(w, t, table & 255, a, b, c, "true" if w.uniform else "-1", "false" if w.uniform else "0"))


def _truth(w: Writer, o: Operand) -> str:
    """A predicate, or whether a register is negative: a bit a lane as i32, in the uniform datapath i1."""
    if is_predicate(o):
        return w.pred(o) if w.uniform else w.mask_of(o)
    if w.uniform or o.select != "SIGN":
        raise NotTranslated(f"a function of {o}")
    negative = w.number(w.op(f"icmp slt {w.vec('i32')} {w.word(o)}, zeroinitializer"))
    return w.op(f"xor i32 {negative}, -1") if o.inv else negative


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


# PTX ISA, prmt: the nibbles, the lowest byte's last, by mode and bits 1:0 of the selector.
_MODES = {"F4E": (0x3210, 0x4321, 0x5432, 0x6543), "B4E": (0x5670, 0x6701, 0x7012, 0x0123),
          "RC8": (0x0000, 0x1111, 0x2222, 0x3333), "ECL": (0x3210, 0x3211, 0x3222, 0x3333),
          "ECR": (0x0000, 0x1110, 0x2210, 0x3210), "RC16": (0x1010, 0x3232, 0x1010, 0x3232)}


@named(RULES, "PRMT", "UPRMT")
def prmt(w: Writer, i: Instruction) -> None:
    """Four bytes chosen from {c, a} by the nibbles of b; bit 3 of a nibble spreads the byte's sign. With a mode, bits 1:0 of b
    say which nibbles."""
    a, chosen, c = values(i)
    table = next((nibbles for mode, nibbles in _MODES.items() if mode in i.mods), ())
    if isinstance(chosen.value, Imm) and not w.uniform:
        fixed = chosen.value.value
        w.write(result(i), _bytes(w, w.word(a), w.word(c), table[fixed & 3] if table else fixed))
        return
    t, wide = w.t("i32"), w.t("i64")
    pair, by = w.pair(w.word(a), w.word(c)), w.word(chosen)
    if table:
        low = w.op(f"and {t} {by}, {w.const('i32', 3)}")
        by = w.const("i32", table[3])
        for n in range(3):
            by = w.select(w.op(f"icmp eq {t} {low}, {w.const('i32', n)}"), "i32", w.const("i32", table[n]), by)
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
