"""Integer arithmetic of words and of pairs of them. Narrow integers are words, extended as their type says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.sass.instruction import TRUE, File, Operand, Reg
from devrt.compiler.sass.select_emit import FALSE, ZERO, Bool, Pair

if TYPE_CHECKING:
    from devrt.compiler.sass.select_emit import Emitter

NO_PAIR = Operand(Reg(File.R, 255, 2))
_COMPARE = {"lt": "LT", "le": "LE", "eq": "EQ", "ne": "NE"}
_SWAPPED = {"LT": "GT", "LE": "GE", "EQ": "EQ", "NE": "NE", "GE": "LE", "GT": "LT"}
# of LOP3: a is 0xf0, b 0xcc, c 0xaa
_LOGIC = {"and": 0xC0, "or": 0xFC, "xor": 0x3C}


def extend(s: Emitter, d: DType, a: Operand) -> Operand:
    """The low bits of `a` as an integer of type `d`."""
    if d.bits >= 32:
        return a
    value = s.constant(a)
    if value is not None:
        value &= (1 << d.bits) - 1
        return s.imm(value - (1 << d.bits) if d.kind == "int" and value >> d.bits - 1 else value)
    if d.kind == "int":
        return s.emit("SGXT", (), a, s.imm(d.bits))
    return logic(s, "and", a, s.imm((1 << d.bits) - 1))


def logic(s: Emitter, op: str, a: Operand, b: Operand) -> Operand:
    if s.constant(a) is not None:
        a, b = b, a
    return s.emit("LOP3", ("LUT",), s.reg(a), b, ZERO, s.byte(_LOGIC[op]), FALSE)


def merged(s: Emitter, a: Operand, mask: int, c: Operand) -> Operand:
    """a & mask | c"""
    return s.emit("LOP3", ("LUT",), s.reg(a), s.imm(mask), s.reg(c), s.byte(0xEA), FALSE)


def invert(s: Emitter, a: Operand) -> Operand:
    return s.emit("LOP3", ("LUT",), ZERO, s.reg(a), ZERO, s.byte(0x33), FALSE)


def add(s: Emitter, a: Operand, b: Operand, c: Operand = ZERO) -> Operand:
    """a + b + c"""
    if b is ZERO and c is ZERO:
        return a
    operands = sorted((a, b, c), key=lambda o: s.constant(o) is not None)
    known = [s.constant(o) for o in operands]
    if known[0] is not None:
        return s.imm(sum(s.constant(o) or 0 for o in operands))
    x, y, z = operands
    if known[1] is not None:  # both others
        y, z = s.imm((known[1] or 0) + (known[2] or 0)), ZERO
    elif known[2]:
        y, z = z, y
    return s.emit("IADD3", (), x, y, z)


def sub(s: Emitter, a: Operand, b: Operand) -> Operand:
    value = s.constant(b)
    if value is not None:
        return add(s, a, s.imm(-value))
    if s.constant(a) is not None:
        return s.emit("IADD3", (), s.neg(b), a, ZERO)
    return s.emit("IADD3", (), a, s.neg(b), ZERO)


def mul(s: Emitter, a: Operand, b: Operand, c: Operand = ZERO) -> Operand:
    """a*b + c"""
    if s.constant(a) is not None:
        a, b = b, a
    value, other = s.constant(b), s.constant(a)
    if value is not None and other is not None:
        return add(s, s.imm(value * other), c)
    if value in (0, 1):
        return c if value == 0 else add(s, a, c)
    if value == 0xFFFFFFFF:
        return sub(s, c, a)
    if value is not None and value & (value - 1) == 0:
        if c is ZERO:
            return s.emit("SHF", ("L", "U32"), a, s.imm(value.bit_length() - 1), ZERO)
        return s.emit("LEA", (), a, c, s.byte(value.bit_length() - 1, 5))
    if value is not None:
        c = s.reg(c)
    return s.emit("IMAD", (), a, b, c)


def wide(s: Emitter, a: Operand, b: Operand, c: Operand = NO_PAIR, *, signed: bool) -> Operand:
    """a*b + c, c and the result of two words."""
    if s.constant(a) is not None:
        a, b = b, a
    return s.emit("IMAD", ("WIDE",) if signed else ("WIDE", "U32"), s.reg(a), b, c, words=2)


def mulhi(s: Emitter, a: Operand, b: Operand, *, signed: bool) -> Operand:
    if s.constant(a) is not None:
        a, b = b, a
    return s.emit("IMAD", ("HI",) if signed else ("HI", "U32"), s.reg(a), b, ZERO)


def shift_left(s: Emitter, a: Operand, amount: Operand) -> Operand:
    return s.emit("SHF", ("L", "U32"), s.reg(a), amount, ZERO)


def shift_right(s: Emitter, a: Operand, amount: Operand, *, signed: bool) -> Operand:
    return s.emit("SHF", ("R", "S32" if signed else "U32", "HI"), ZERO, amount, s.reg(a))


def extreme(s: Emitter, op: str, a: Operand, b: Operand, *, signed: bool) -> Operand:
    if s.constant(a) is not None:
        a, b = b, a
    name = "IMNMX" if s.f.sm < 90 else "VIMNMX"
    mods = ("U32",) if not signed else ("S32",) if s.f.sm >= 100 else ()
    return s.emit(name, mods, s.reg(a), b, TRUE if op == "min" else FALSE)


def absolute(s: Emitter, a: Operand) -> Operand:
    return s.emit("IABS", (), s.reg(a))


def compare(s: Emitter, op: str, a: Operand, b: Operand, *, signed: bool) -> Bool:
    name = _COMPARE.get(op, op)
    if s.constant(a) is not None:
        a, b, name = b, a, _SWAPPED[name]
    return s.compare("ISETP", (name,) if signed or name in ("EQ", "NE") else (name, "U32"), s.reg(a), b)


# ----- 64 bits


def add64(s: Emitter, a: Pair, b: Pair) -> Pair:
    ah, bh = s.hi(a), s.hi(b)
    if s.constant(a.lo) is not None or s.constant(ah) is not None:
        a, b, ah, bh = b, a, bh, ah

    def build() -> Operand:
        r = s.new(2)
        carry = s.carrying("IADD3", (), s.part(r, 0), s.reg(a.lo), b.lo, ZERO)
        s.put("IADD3", ("X",), (s.part(r, 1),), (s.reg(ah), bh, ZERO, carry, FALSE))
        return r
    return s.pair(s.once(("add64",), (a.lo, ah, b.lo, bh), build))


def sub64(s: Emitter, a: Pair, b: Pair) -> Pair:
    ah, bh = s.hi(a), s.hi(b)
    if (low := s.constant(b.lo)) is not None and (high := s.constant(bh)) is not None:
        return add64(s, a, s.pair_constant(-(low | high << 32)))

    def build() -> Operand:
        r = s.new(2)
        carry = s.carrying("IADD3", (), s.part(r, 0), s.neg(s.reg(b.lo)), a.lo, ZERO)
        s.put("IADD3", ("X",), (s.part(r, 1),), (s.inv(s.reg(bh)), ah, ZERO, carry, FALSE))
        return r
    return s.pair(s.once(("sub64",), (a.lo, ah, b.lo, bh), build))


def neg64(s: Emitter, a: Pair) -> Pair:
    return sub64(s, Pair(ZERO, ZERO), a)


def mul64(s: Emitter, a: Pair, b: Pair) -> Pair:
    ah, bh = s.hi(a), s.hi(b)
    low = wide(s, s.reg(a.lo), b.lo, signed=False)
    cross = mul(s, a.lo, bh, mul(s, ah, b.lo, s.part(low, 1)))
    return Pair(s.part(low, 0), cross)


def mulhi64(s: Emitter, a: Pair, b: Pair, *, signed: bool) -> Pair:
    """The high half of the product of 128 bits: of the unsigned numbers, then what a sign takes off."""
    ah, bh = s.reg(s.hi(a)), s.reg(s.hi(b))
    al, bl = s.reg(a.lo), s.reg(b.lo)

    def only(word: Operand) -> Pair:
        return Pair(word, ZERO)
    first = s.part(wide(s, al, bl, signed=False), 1)
    second = add64(s, s.pair(wide(s, al, bh, signed=False)), only(first))
    third = add64(s, s.pair(wide(s, ah, bl, signed=False)), only(second.lo))
    high = add64(s, add64(s, s.pair(wide(s, ah, bh, signed=False)), only(s.hi(second))), only(s.hi(third)))
    if signed:
        for x, y in ((ah, Pair(bl, bh)), (bh, Pair(al, ah))):
            sign = shift_right(s, x, s.imm(31), signed=True)
            high = sub64(s, high, Pair(logic(s, "and", y.lo, sign), logic(s, "and", s.hi(y), sign)))
    return high


def logic64(s: Emitter, op: str, a: Pair, b: Pair) -> Pair:
    return Pair(logic(s, op, a.lo, b.lo), logic(s, op, s.hi(a), s.hi(b)))


def amount64(s: Emitter, b: Pair) -> Operand:
    """A shift's amount as a word: at least 64 where the number is."""
    high = s.hi(b)
    if s.constant(high) == 0:
        return b.lo
    return s.choose(compare(s, "eq", high, ZERO, signed=False), b.lo, s.imm(64))


def shift64(s: Emitter, op: str, a: Pair, amount: Operand, *, signed: bool) -> Pair:
    """`amount` unsigned, any."""
    lo, hi = s.reg(a.lo), s.reg(s.hi(a))
    if op == "shl":
        return Pair(s.emit("SHF", ("L", "U32"), lo, amount, ZERO), s.emit("SHF", ("L", "U64", "HI"), lo, amount, hi))
    kind = "S" if signed else "U"
    return Pair(s.emit("SHF", ("R", f"{kind}64"), lo, amount, hi), s.emit("SHF", ("R", f"{kind}32", "HI"), ZERO, amount, hi))


def compare64(s: Emitter, op: str, a: Pair, b: Pair, *, signed: bool) -> Bool:
    name = _COMPARE.get(op, op)
    if s.constant(a.lo) is not None or s.constant(s.hi(a)) is not None:
        a, b, name = b, a, _SWAPPED[name]
    low = s.compare("ISETP", (name, "U32"), s.reg(a.lo), b.lo)
    return s.compare("ISETP", (name,) if signed else (name, "U32"), s.reg(s.hi(a)), s.hi(b), low)


def extreme64(s: Emitter, op: str, a: Pair, b: Pair, *, signed: bool) -> Pair:
    less = compare64(s, "lt", a, b, signed=signed)
    return s.choose_pair(less, a, b) if op == "min" else s.choose_pair(less, b, a)


def absolute64(s: Emitter, a: Pair) -> Pair:
    return s.choose_pair(compare(s, "lt", s.hi(a), ZERO, signed=True), neg64(s, a), a)


# ----- ranges


def fits(lo: int, hi: int) -> bool:
    """Whether all of lo..hi are signed words."""
    return lo >= -(1 << 31) and hi < 1 << 31


def type_range(d: DType) -> tuple[int, int]:
    return (0, 1) if d is dt.bool_ else (d.min, d.max)


