"""Integer instructions of LIR: by what is known of their operands where that is cheaper, else by their type."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import COMPARE, Inst
from devrt.compiler.sass import division
from devrt.compiler.sass import select_index as index
from devrt.compiler.sass import select_integer as integer
from devrt.compiler.sass.instruction import Operand
from devrt.compiler.sass.select_emit import ZERO, Bool, Pair
from devrt.compiler.sass.select_index import Int

if TYPE_CHECKING:
    from devrt.compiler.sass.select import Selector


def arithmetic(s: Selector, i: Inst) -> None:
    """Any instruction on integers."""
    d = i.args[0].dtype
    if d in (dt.int32, dt.int64):
        numbers = [s.number(r) for r in i.args]
        if i.op in COMPARE:
            s.define(i.out[0], compare(s, i.op, *numbers))
            return
        found = _sum(s, i.op, numbers) or (_small(s, i.op, numbers) if all(x.small for x in numbers) else None)
        if found is not None:
            s.ints[i.out[0]] = found
            return
    if d.bits == 64:
        s.define(i.out[0], _long(s, i.op, d, [s.wide(r) for r in i.args]))
    else:
        s.define(i.out[0], _word(s, i.op, d, [s.word(r) for r in i.args]))


def _sum(s: Selector, op: str, numbers: list[Int]) -> Int | None:
    """The result as a sum of multiples, where it is one."""
    a = numbers[0]
    if op == "neg":
        return index.linear(s, a, -1, a, 0)
    if len(numbers) < 2:
        return None
    b = numbers[1]
    if op in ("add", "sub"):
        return index.linear(s, a, 1, b, 1 if op == "add" else -1)
    if op == "mul":
        if a.known is not None:
            a, b = b, a
        return index.linear(s, a, b.known, b, 0) if b.known is not None else None
    if op == "shl" and b.known is not None and 0 <= b.known < (64 if a.wide else 32):
        return index.linear(s, a, 1 << b.known, b, 0)
    return None


def _small(s: Selector, op: str, numbers: list[Int]) -> Int | None:
    """Of operands that fit a word: by one word's arithmetic, if the result is known to fit, too."""
    if len(numbers) != 2:
        return None
    a, b = numbers
    if op in ("min", "max"):
        if a.hi <= b.lo or b.hi <= a.lo:
            return a if (a.hi <= b.lo) == (op == "min") else b
        ends = (min(a.lo, b.lo), min(a.hi, b.hi)) if op == "min" else (max(a.lo, b.lo), max(a.hi, b.hi))
        found = _from_word(s, a, integer.extreme(s, op, index.low(s, a), index.low(s, b), signed=True), *ends)
        found.aligned = min(a.aligned, b.aligned)
        return found
    if op == "mul":
        products = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
        if not integer.fits(min(products), max(products)):
            return None
        return _from_word(s, a, integer.mul(s, index.low(s, a), index.low(s, b)), min(products), max(products))
    if op in ("div", "rem"):
        return _divide(s, op, a, b)
    if op in ("and", "or", "xor"):
        if a.lo >= 0 and b.lo >= 0 and op == "and":
            ends = 0, min(a.hi, b.hi)
        elif op == "and" and max(a.lo, b.lo) >= 0:
            ends = 0, a.hi if a.lo >= 0 else b.hi
        elif a.lo >= 0 and b.lo >= 0:
            ends = 0, (1 << max(a.hi, b.hi).bit_length()) - 1
        else:
            ends = -(1 << 31), (1 << 31) - 1
        return _from_word(s, a, integer.logic(s, op, index.low(s, a), index.low(s, b)), *ends)
    if op == "shr" and b.known is not None and 0 <= b.known < 32:
        word = integer.shift_right(s, index.low(s, a), s.imm(b.known), signed=True)
        return _from_word(s, a, word, a.lo >> b.known, a.hi >> b.known)
    return None


def _from_word(s: Selector, like: Int, word: Operand, lo: int, hi: int) -> Int:
    value = Pair(word, ZERO if lo >= 0 else None) if like.wide else word
    return index.atom(s, value, lo, hi, wide=like.wide)


def _divide(s: Selector, op: str, a: Int, b: Int) -> Int | None:
    """By a positive constant, of what is not negative; or by any word."""
    divisor = b.known
    if divisor == 0 or a.lo < 0 or b.lo <= 0:
        if not a.wide:
            return None
        q, r = signed_words(s, s.reg(index.low(s, a)), s.reg(index.low(s, b)))
        least, most = (-(1 << 31), 1 << 31) if op == "div" else (-(1 << 31), (1 << 31) - 1)
        if op == "div" and a.lo == least:  # whose negation is no word
            return None
        return _from_word(s, a, q if op == "div" else r, least, min(most, (1 << 31) - 1))
    if a.known is not None and divisor is not None:
        return index.constant(s, a.known // divisor if op == "div" else a.known % divisor, wide=a.wide)
    if a.hi < b.lo:
        return index.constant(s, 0, wide=a.wide) if op == "div" else a
    if divisor is None:
        q, r = division.unsigned32(s, s.reg(index.low(s, a)), s.reg(index.low(s, b)))
        return _from_word(s, a, q, 0, a.hi // b.lo) if op == "div" else _from_word(s, a, r, 0, min(a.hi, b.hi - 1))
    part, rest = index.divided(s, a, divisor)
    if part is not None and rest.lo >= 0 and part.small and rest.small:
        below = _divide(s, op, rest, b)
        return below if op == "rem" or below is None else index.linear(s, part, 1, below, 1)
    if op == "rem" and divisor & (divisor - 1) == 0:
        return _from_word(s, a, integer.logic(s, "and", index.low(s, a), s.imm(divisor - 1)), 0, divisor - 1)
    q = division.by_constant(s, s.reg(index.low(s, a)), divisor, a.hi)
    quotient = _from_word(s, a, q, 0, a.hi // divisor)
    if op == "div":
        return quotient
    remainder = index.linear(s, a, 1, quotient, -divisor)
    if remainder is not None:
        remainder.lo, remainder.hi = 0, divisor - 1
    return remainder


def compare(s: Selector, op: str, a: Int, b: Int) -> Bool:
    if op in ("lt", "le"):
        always = a.hi < b.lo if op == "lt" else a.hi <= b.lo
        never = a.lo >= b.hi if op == "lt" else a.lo > b.hi
        if always or never:
            return Bool(inv=never)
    if a.small and b.small:
        return integer.compare(s, op, index.low(s, a), index.low(s, b), signed=True)
    return integer.compare64(s, op, index.pair(s, a), index.pair(s, b), signed=True)


# ----- by type

_WORDS: dict[str, Callable[[Selector, Operand, Operand], Operand]] = {
    "add": integer.add, "sub": integer.sub, "mul": integer.mul, "shl": integer.shift_left,
    "neg": lambda s, a, b: integer.sub(s, b, a), "not": lambda s, a, b: integer.invert(s, a)}


def _word(s: Selector, op: str, d: DType, args: list[Operand]) -> Operand | Bool:
    """Of up to 32 bits; operands and result are extended as the type says."""
    signed = d.kind == "int"
    a, *rest = args
    b = rest[0] if rest else ZERO
    if op in COMPARE:
        return integer.compare(s, op, a, b, signed=signed)
    if op in ("and", "or", "xor"):
        return integer.logic(s, op, a, b)
    if op in ("max", "min"):
        return integer.extreme(s, op, a, b, signed=signed)
    if op == "shr":
        return integer.shift_right(s, a, b, signed=signed)
    if op == "rem" or op == "div":
        found = _divide_words(s, op, d, a, b)
    elif op == "mulhi":
        found = integer.mulhi(s, a, b, signed=signed) if d.bits == 32 else \
            integer.shift_right(s, integer.mul(s, a, b), s.imm(d.bits), signed=signed)
    elif op == "abs":
        found = integer.absolute(s, a) if signed else a
    else:
        found = _WORDS[op](s, a, b)
    return integer.extend(s, d, found)


def signed_words(s: Selector, a: Operand, b: Operand) -> tuple[Operand, Operand]:
    """(a div b, a rem b) of signed words in registers, by LIR's rules."""
    q, r = division.unsigned32(s, integer.absolute(s, a), integer.absolute(s, b))
    minus = integer.compare(s, "lt", s.reg(integer.logic(s, "xor", a, b)), ZERO, signed=True)
    q = s.choose(minus, integer.sub(s, ZERO, q), q)
    r = s.choose(integer.compare(s, "lt", a, ZERO, signed=True), integer.sub(s, ZERO, r), r)
    nought = integer.compare(s, "eq", b, ZERO, signed=False)
    return s.choose(nought, ZERO, q), s.choose(nought, a, r)


def _divide_words(s: Selector, op: str, d: DType, a: Operand, b: Operand) -> Operand:
    divisor = s.constant(b)
    if divisor == 0:
        return ZERO if op == "div" else a
    a = s.reg(a)
    if divisor is not None:
        signed = d.kind == "int"
        size = abs(divisor - (1 << 32)) if signed and divisor >> 31 else divisor
        magnitude = integer.absolute(s, a) if signed else a
        q = division.by_constant(s, magnitude, size, (1 << d.bits - 1) if signed else d.max)
        if signed:
            flips = integer.logic(s, "xor", a, b)
            q = s.choose(integer.compare(s, "lt", s.reg(flips), ZERO, signed=True), integer.sub(s, ZERO, q), q)
        return q if op == "div" else integer.sub(s, a, integer.mul(s, q, b))
    if d.kind == "int":
        return signed_words(s, a, s.reg(b))[op == "rem"]
    q, r = division.unsigned32(s, a, s.reg(b))
    nought = integer.compare(s, "eq", b, ZERO, signed=False)
    return s.choose(nought, ZERO, q) if op == "div" else s.choose(nought, a, r)


def _long(s: Selector, op: str, d: DType, args: list[Pair]) -> Pair | Bool:
    signed = d.kind == "int"
    a, *rest = args
    b = rest[0] if rest else Pair(ZERO, ZERO)
    if op in COMPARE:
        return integer.compare64(s, op, a, b, signed=signed)
    if op in ("and", "or", "xor"):
        return integer.logic64(s, op, a, b)
    if op in ("max", "min"):
        return integer.extreme64(s, op, a, b, signed=signed)
    if op in ("shl", "shr"):
        return integer.shift64(s, op, a, integer.amount64(s, b), signed=signed)
    if op == "mulhi":
        return integer.mulhi64(s, a, b, signed=signed)
    if op in ("div", "rem"):
        return _divide_pairs(s, op, a, b, signed=signed)
    if op == "abs":
        return integer.absolute64(s, a) if signed else a
    if op == "not":
        return Pair(integer.invert(s, a.lo), integer.invert(s, s.hi(a)))
    if op == "neg":
        return integer.neg64(s, a)
    return {"add": integer.add64, "sub": integer.sub64, "mul": integer.mul64}[op](s, a, b)


def _divide_pairs(s: Selector, op: str, a: Pair, b: Pair, *, signed: bool) -> Pair:
    nought = s.compare("ISETP", ("EQ",), s.reg(integer.logic(s, "or", b.lo, s.hi(b))), ZERO)
    if signed:
        q, r = division.unsigned64(s, integer.absolute64(s, a), integer.absolute64(s, b))
        flips = integer.logic(s, "xor", s.hi(a), s.hi(b))
        if op == "div":
            q = s.choose_pair(integer.compare(s, "lt", s.reg(flips), ZERO, signed=True), integer.neg64(s, q), q)
        else:
            r = s.choose_pair(integer.compare(s, "lt", s.reg(s.hi(a)), ZERO, signed=True), integer.neg64(s, r), r)
    else:
        q, r = division.unsigned64(s, a, b)
    return s.choose_pair(nought, Pair(ZERO, ZERO), q) if op == "div" else s.choose_pair(nought, a, r)
