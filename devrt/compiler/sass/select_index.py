"""Integers that may become addresses: what is known of them, and sums kept as sums.

An int32 or int64 of LIR is an Int: its range, and where it is a sum of multiples of others, that sum. Sums meet again in
addresses, where constants become offsets of the instruction and what a loop does not change is added up in front of it. An int64
whose range fits a word is computed in one. The sums of int64 hold modulo 2^64, which is all that an address needs; an int32 is
kept as a sum only where it cannot overflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devrt.compiler.sass import select_integer as integer
from devrt.compiler.sass.instruction import Operand
from devrt.compiler.sass.select_emit import ZERO, Pair

if TYPE_CHECKING:
    from devrt.compiler.sass.select import Selector

_MOST_ALIGNED = 64
_WORD_RANGE = (-(1 << 31), (1 << 31) - 1)
_LONG_RANGE = (-(1 << 63), (1 << 63) - 1)

Terms = tuple[tuple["Int", int], ...]


@dataclass(eq=False, slots=True)
class Int:
    """An integer between lo and hi, a multiple of `aligned` (a power of two up to 64). `wide`: an int64. Its value is const + the
    sum of factor*term; where that is itself, `value` holds it. `order` sorts terms."""

    wide: bool
    lo: int
    hi: int
    aligned: int
    order: int
    const: int = 0
    terms: Terms = ()
    value: Operand | Pair | None = None

    @property
    def small(self) -> bool:
        """Whether it is what the low word says, its sign extended."""
        return self.lo >= -(1 << 31) and self.hi < 1 << 31

    @property
    def known(self) -> int | None:
        return None if self.terms else self.const


def power_of_two(value: int) -> int:
    """The greatest power of two up to 64 that divides it."""
    return min(value & -value, _MOST_ALIGNED) if value else _MOST_ALIGNED


def constant(s: Selector, value: int, *, wide: bool) -> Int:
    return Int(wide, value, value, power_of_two(value), s.count(), value)


def atom(s: Selector, value: Operand | Pair, lo: int, hi: int, *, wide: bool, aligned: int = 1) -> Int:
    """A value that is no sum."""
    found = Int(wide, lo, hi, aligned, s.count(), value=value)
    found.terms = ((found, 1),)
    return found


def linear(s: Selector, a: Int, factor_a: int, b: Int, factor_b: int) -> Int | None:
    """a*factor_a + b*factor_b as a sum; None where it may overflow a word."""
    lo, hi = 0, 0
    for x, factor in ((a, factor_a), (b, factor_b)):
        ends = x.lo * factor, x.hi * factor
        lo, hi = lo + min(ends), hi + max(ends)
    least, most = _LONG_RANGE if a.wide else _WORD_RANGE
    if lo < least or hi > most:
        if not a.wide:
            return None
        lo, hi = least, most
    terms: dict[Int, int] = {}
    for x, factor in ((a, factor_a), (b, factor_b)):
        for term, count in x.terms:
            terms[term] = terms.get(term, 0) + count * factor
    aligned = math.gcd(power_of_two(a.aligned * factor_a), power_of_two(b.aligned * factor_b))
    kept = tuple(sorted(((t, f) for t, f in terms.items() if f), key=lambda x: x[0].order)) if len(terms) > 1 else \
        tuple((t, f) for t, f in terms.items() if f)
    const = a.const * factor_a + b.const * factor_b
    if not kept:
        lo = hi = const = (const + (1 << 63)) % (1 << 64) - (1 << 63)
    return Int(a.wide, lo, hi, aligned, s.count(), const, kept)


def divided(s: Selector, x: Int, divisor: int) -> tuple[Int | None, Int]:
    """(q, r) with x = q*divisor + r, where q takes all summands that divide without a rest; None where there are none."""
    whole = tuple((t, f // divisor) for t, f in x.terms if f % divisor == 0)
    rest = tuple((t, f) for t, f in x.terms if f % divisor)
    const = x.const % divisor
    if not whole and const == x.const:
        return None, x
    return _sum_of(s, x, whole, (x.const - const) // divisor), _sum_of(s, x, rest, const)


def _sum_of(s: Selector, like: Int, terms: Terms, const: int) -> Int:
    """A sum of some of its terms, by their ranges."""
    if len(terms) == 1 and terms[0][1] == 1 and not const:
        return terms[0][0]
    lo, hi, aligned = const, const, power_of_two(const)
    for t, f in terms:
        lo, hi = lo + min(t.lo * f, t.hi * f), hi + max(t.lo * f, t.hi * f)
        aligned = min(aligned, power_of_two(t.aligned * f))
    return Int(like.wide, lo, hi, aligned, s.count(), const, terms)


# ----- values


def low(s: Selector, x: Int) -> Operand:
    """Its low word."""
    if x.value is None:
        if not x.terms:
            return s.imm(x.const)
        with s.unbound():
            value = _pair_sum(s, x) if x.wide and not x.small else word_sum(s, x.terms, x.const)
        x.value = value if isinstance(value, Pair) or not x.wide else Pair(value, ZERO if x.lo >= 0 else None)
    return x.value.lo if isinstance(x.value, Pair) else x.value


def pair(s: Selector, x: Int) -> Pair:
    """Both words of an int64."""
    if not x.terms:
        return s.pair_constant(x.const)
    low(s, x)
    assert isinstance(x.value, Pair)
    if x.value.hi is None and x.lo >= 0:
        x.value.hi = ZERO
    return x.value


def _by_level(s: Selector, terms: Terms) -> list[tuple[int, list[tuple[Int, int]]]]:
    """Terms by the region that they are known from, the outermost first."""
    found: dict[int, list[tuple[Int, int]]] = {}
    for term, factor in terms:
        found.setdefault(s.level(low(s, term)), []).append((term, factor))
    return sorted(found.items())


def word_sum(s: Selector, terms: Terms, const: int) -> Operand:
    """The sum modulo 2^32, what the loops do not change first."""
    ordered = [x for _, level in _by_level(s, terms) for x in sorted(level, key=lambda x: x[1] < 0)]
    total = ZERO
    last = len(ordered) - 1
    for n, (term, factor) in enumerate(ordered):
        word = low(s, term)
        if n == last and abs(factor) == 1 and n:
            return integer.add(s, total, s.neg(word) if factor < 0 else word, s.imm(const))
        total = integer.mul(s, word, s.imm(factor), total)
    return integer.add(s, total, s.imm(const))


def _pair_sum(s: Selector, x: Int) -> Pair:
    total: Pair | None = None
    for _, level in _by_level(s, x.terms):
        for term, factor in level:
            total = _plus(s, total, term, factor)
    assert total is not None
    return integer.add64(s, total, s.pair_constant(x.const)) if x.const else total


def _plus(s: Selector, total: Pair | None, term: Int, factor: int) -> Pair:
    """total + term*factor"""
    if factor == 1 and total is None:
        return pair(s, term)
    if term.small and integer.fits(factor, factor):
        base = integer.NO_PAIR if total is None else s.whole(total)
        return s.pair(integer.wide(s, s.reg(low(s, term)), s.imm(factor), base, signed=True))
    product = pair(s, term) if factor == 1 else integer.mul64(s, pair(s, term), s.pair_constant(factor))
    return product if total is None else integer.add64(s, total, product)


# ----- addresses


def address(s: Selector, base: Pair, x: Int, size: int) -> Pair:
    """The address of element `x`, of `size` bytes each, of what starts at `base`, but for its constant."""
    total = base
    for _, level in _by_level(s, x.terms):
        factors = [factor * size for _, factor in level]
        shared = math.gcd(*factors)
        parts = [(term, factor // shared) for (term, _), factor in zip(level, factors, strict=True)]
        lo = sum(min(t.lo * f, t.hi * f) for t, f in parts)
        hi = sum(max(t.lo * f, t.hi * f) for t, f in parts)
        if integer.fits(lo, hi) and integer.fits(shared, shared):
            word = word_sum(s, tuple(parts), 0)
            total = s.pair(integer.wide(s, s.reg(word), s.imm(shared), s.whole(total), signed=True))
        else:
            for (term, _), factor in zip(level, factors, strict=True):
                total = _plus(s, total, term, factor)
    return total


def alignment(x: Int, size: int) -> int:
    """The power of two, up to 64, that the address of element x lies at."""
    return power_of_two(x.aligned * size)
