"""Pairs of float16 or bfloat16 (halves.py) as packed instructions, two values to a word.

HADD2, HMUL2 and HMNMX2 round each half once. bfloat16 has sums and products of its own from sm_90 on; before, a sum is a*1 + b
and a product a*b + -0, which HFMA2 computes with the same bits. float16 before sm_80 has only comparisons to take max and min by.
What arithmetic leaves of a NaN is quiet; its sign and payload are not relied on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.sass import optimise, select_matrix
from devrt.compiler.sass import select_integer as integer
from devrt.compiler.sass.halves import Pair, Source
from devrt.compiler.sass.instruction import TRUE, Instruction, Operand, Reg
from devrt.compiler.sass.select_emit import FALSE, ZERO

if TYPE_CHECKING:
    from devrt.compiler.sass.select import Selector

_INFINITY = {dt.float16: 0x7C00, dt.bfloat16: 0x7F80}
_QUIET = {dt.float16: 0x0200, dt.bfloat16: 0x0040}  # of a NaN's fraction; with the bits of infinity the canonical NaN
_ONE = {dt.float16: 0x3C00, dt.bfloat16: 0x3F80}
_SIGNS = 0x80008000
_TAKES = (0x4410, 0x4432)  # of PRMT: a half, zeros above it
_BOTH = 0x5410             # the low halves of two words
_TWICE = 0x1010            # the low half twice
# of LOP3: a where c is 1, else b; a where c is 0, else b; a or b; where c is 1, a and b, or a or b, else b
_WHERE, _UNLESS, _EITHER = 0xE4, 0xD8, 0xFC
_BOTH_ZEROS = {"max": 0xC4, "min": 0xEC}


def supported(sm: int, d: DType) -> bool:
    """Whether a generation has arithmetic on pairs of `d`."""
    return sm >= 80 or d is dt.float16


def pair(s: Selector, p: Pair) -> None:
    """Write a pair, and define its halves."""
    seen = p.lo in s.exposed or p.hi in s.exposed
    if p.op == "round":
        word = _rounded(s, p.dtype, *(s.reg(s.word(r)) for r in p.singles))
    elif p.op == "same":
        word = _same(s, p, seen)
    else:
        word = _arithmetic(s, p)
    if seen and (p.canon or p.op != "same"):
        word = _canonical(s, p.dtype, word)
    s.define(p.lo, _half(s, word, 0))
    s.define(p.hi, _half(s, word, 1))
    s.joined[id(s.values[p.lo]), id(s.values[p.hi])] = word


def _half(s: Selector, word: Operand, which: int) -> Operand:
    found = s.emit("PRMT", (), word, s.imm(_TAKES[which]), ZERO)
    assert isinstance(found.value, Reg)
    s.parts[found.value] = word, which, 2
    return found


# ----- operands


def _word(s: Selector, d: DType, source: Source) -> Operand:
    """Both halves without their signs; a constant, or one half for both, is not in a register of its own."""
    if source.value is not None:
        return s.imm(select_matrix.element_bits(d, source.value) * 0x10001)
    lo, hi = s.word(source.lo), s.word(source.hi)
    found: Operand | None = s.joined.get((id(lo), id(hi)))
    if found is not None:
        return found
    known = s.constant(lo), s.constant(hi)
    if known[0] is not None and known[1] is not None:
        return s.imm(known[0] | known[1] << 16)
    if lo is hi:
        return s.derived(lo, "both", lambda: Operand(lo.value, select="H0_H0"))
    return s.emit("PRMT", (), s.reg(lo), s.imm(_BOTH), s.reg(hi))


def _operand(s: Selector, d: DType, source: Source, *, minus: bool = False) -> Operand:
    word, neg = _word(s, d, source), source.neg != minus
    bits = s.constant(word)
    if bits is not None:
        return s.imm((bits & ~_SIGNS if source.abs else bits) ^ (_SIGNS if neg else 0))
    return s.derived(word, f"half {neg} {source.abs}", lambda: Operand(word.value, neg, source.abs, select=word.select)) \
        if neg or source.abs else word


# ----- instructions


def _arithmetic(s: Selector, p: Pair) -> Operand:
    d, op = p.dtype, p.op
    if op in ("max", "min") and s.f.sm < 80:
        return _extreme(s, op, *(_signed(s, d, source) for source in p.sources))
    a, b = _operand(s, d, p.sources[0]), _operand(s, d, p.sources[1], minus=op == "sub")
    if s.constant(a) is not None:
        a, b = b, a
    a = s.reg(a)
    if op in ("max", "min"):
        return _quiet(s, s.emit("HMNMX2", (*_mark(d), "NAN"), a, b, TRUE if op == "min" else FALSE))
    return _quiet(s, _product(s, d, a, b) if op == "mul" else _sum(s, d, a, b))


def _extreme(s: Selector, op: str, a: Operand, b: Operand) -> Operand:
    """max or min of float16 by comparisons, which give a mask: `a` where it lies beyond `b` or either is NaN, else `b`."""
    if s.constant(a) is not None:
        a, b = b, a
    a, known = s.reg(a), s.constant(b)
    if known is not None:  # of equal zeros the one that is wanted: +0 for max
        or_equal = "E" if bool(known & 0x8000) == (op == "max") else "T"
        beyond = _compared(s, ("G" if op == "max" else "L") + or_equal + "U", a, s.reg(b))
        return _logic(s, _WHERE, a, b, beyond)
    beyond, equal = _compared(s, "GTU" if op == "max" else "LTU", a, b), _compared(s, "EQ", a, b)
    other = _logic(s, _BOTH_ZEROS[op], a, b, equal)
    return _logic(s, _EITHER, _compared(s, "NAN", b, b), _logic(s, _WHERE, a, other, beyond), ZERO)


def _compared(s: Selector, test: str, a: Operand, b: Operand) -> Operand:
    """Ones in the halves for which it holds."""
    return s.emit("HSET2", (test, "AND"), a, b, TRUE)


def _logic(s: Selector, table: int, a: Operand, b: Operand, c: Operand) -> Operand:
    return s.emit("LOP3", ("LUT",), a, b, c, s.byte(table), FALSE)


def _mark(d: DType) -> tuple[str, ...]:
    return ("BF16_V2",) if d is dt.bfloat16 else ()


def _quiet(s: Selector, word: Operand) -> Operand:
    """A result of arithmetic, which is no signalling NaN."""
    s.quiet.add(id(word))
    return word


def _sum(s: Selector, d: DType, a: Operand, b: Operand) -> Operand:
    if d is dt.bfloat16 and s.f.sm < 90:
        return s.emit("HFMA2", _mark(d), a, s.imm(_ONE[d] * 0x10001), s.reg(b))
    return s.emit("HADD2", _mark(d), a, b)


def _product(s: Selector, d: DType, a: Operand, b: Operand) -> Operand:
    if d is dt.bfloat16 and s.f.sm < 90:
        return s.emit("HFMA2", _mark(d), a, b, s.minus_zero)
    return s.emit("HMUL2", _mark(d), a, b)


def _rounded(s: Selector, d: DType, lo: Operand, hi: Operand) -> Operand:
    """Two float32 rounded."""
    if s.f.sm < 80:
        halves = [s.emit("F2F", ("F16", "F32"), x) for x in (lo, hi)]
        return _quiet(s, s.emit("PRMT", (), halves[0], s.imm(_BOTH), halves[1]))
    kind = ("BF16",) if d is dt.bfloat16 else ("F16",) if s.f.sm >= 89 else ()
    return _quiet(s, s.emit("F2FP", (*kind, *(("F32",) if s.f.sm >= 89 else ()), "PACK_AB"), hi, lo))


def _same(s: Selector, p: Pair, seen: bool) -> Operand:
    """A source with its signs; a product with 1 where a signalling NaN could be seen, that canonicalising takes for infinity."""
    (source,) = p.sources
    if p.canon and seen and s.f.sm >= 80 and id(_word(s, p.dtype, source)) not in s.quiet:
        return _quiet(s, _product(s, p.dtype, s.reg(_operand(s, p.dtype, source)), s.imm(_ONE[p.dtype] * 0x10001)))
    return s.reg(_signed(s, p.dtype, source))


def _signed(s: Selector, d: DType, source: Source) -> Operand:
    """Both halves in a word, or a constant, signs and all."""
    word = _word(s, d, source)
    if s.constant(word) is not None:
        return _operand(s, d, source)
    quiet = id(word) in s.quiet
    if word.select:
        word = s.emit("PRMT", (), s.derived(word, "low", lambda: Operand(word.value)), s.imm(_TWICE), ZERO)
    if source.abs:
        word = integer.logic(s, "and", word, s.imm(~_SIGNS))
    if source.neg:
        word = integer.logic(s, "xor", word, s.imm(_SIGNS))
    return _quiet(s, word) if quiet else word


def _canonical(s: Selector, d: DType, word: Operand) -> Operand:
    """NaNs, which from sm_80 on must be quiet, become the canonical one. There the lesser of a NaN and infinity is infinity, and
    the quiet bit is put back."""
    if s.f.sm < 80:
        return _logic(s, _UNLESS, word, s.imm((_INFINITY[d] | _QUIET[d]) * 0x10001), _compared(s, "NAN", word, word))
    least = s.emit("HMNMX2", _mark(d), word, s.imm(_INFINITY[d] * 0x10001), TRUE)
    return integer.merged(s, word, _QUIET[d] * 0x10001, least)


# ---------------------------------------------------------------------------------------------------------------------
# After loads were merged


def resolved(s: Selector, code: optimise.Code) -> optimise.Code:
    """Halves of words that were loaded or computed are read where they are: two of one word together are the word, and of others
    one PRMT takes them; conversions and packed instructions pick their half."""
    names: dict[Reg, Reg] = {}
    out: optimise.Code = []
    for i in code:
        if isinstance(i, str):
            out.append(i)
        elif i.op == "PRMT" and i.srcs[1] is s.imm(_BOTH):
            out += _together(s, i, names)
        elif any(o.select == "H0_H0" for o in i.srcs):
            out.append(_picked(s, i))
        elif i.op == "SHF" and i.mods == ("L", "U32") and i.srcs[1] is s.imm(16):
            out.append(_shifted(s, i))
        else:
            out.append(i)
    for word, target in names.items():
        while target in names:
            target = names[target]
        names[word] = target
    return optimise.renamed(out, names)


def _part(s: Selector, o: Operand) -> tuple[Operand, int]:
    """The word that holds a half, and which it is."""
    found = s.parts.get(o.value) if isinstance(o.value, Reg) else None
    return (found[0], found[1]) if found is not None and found[2] == 2 else (o, 0)


def _together(s: Selector, i: Instruction, names: dict[Reg, Reg]) -> list[Instruction]:
    (a, low), (b, high) = _part(s, i.srcs[0]), _part(s, i.srcs[2])
    to = i.dsts[0].value
    assert isinstance(to, Reg)
    if a is b and (low, high) == (0, 1) and isinstance(a.value, Reg) and to.sub == 0 and s.f.words[to.file, to.index] == 1:
        names[to] = a.value
        return []
    taken = 2 * low | 2 * low + 1 << 4 | 2 * high + 4 << 8 | 2 * high + 5 << 12
    return [Instruction("PRMT", (), i.dsts, (a, s.imm(taken), b), i.guard)]


def _picked(s: Selector, i: Instruction) -> Instruction:
    srcs = []
    for o in i.srcs:
        word, which = _part(s, o) if o.select == "H0_H0" else (o, 0)
        srcs.append(Operand(word.value, o.neg, o.abs, select=f"H{which}_H{which}") if word is not o else o)
    return Instruction(i.op, i.mods, i.dsts, tuple(srcs), i.guard)


def _shifted(s: Selector, i: Instruction) -> Instruction:
    """A half in the upper one: what widens a bfloat16."""
    word, which = _part(s, i.srcs[0])
    if which == 0:
        return Instruction(i.op, i.mods, i.dsts, (word, *i.srcs[1:]), i.guard)
    srcs = (word, s.imm(0xFFFF0000), ZERO, s.byte(0xC0), FALSE)
    return Instruction("LOP3", ("LUT",), i.dsts, srcs, i.guard)
