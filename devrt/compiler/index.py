"""Index arithmetic: where an element lies, as a sum of coefficient * atom, simplified by the ranges of the atoms.

An atom is a loop axis, a quotient or remainder of an index by a constant, or a value read at run time (gather). All
movement ops act on indexes alone, so a chain of reshapes, permutes and slices costs nothing once its index simplifies.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Axis:
    """A loop variable 0..size-1. Compared by identity; `name` is for dumps."""

    name: str
    size: int

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Quotient:
    """floor(x / by)"""

    x: Index
    by: int

    def __str__(self) -> str:
        return f"({self.x})//{self.by}"


@dataclass(frozen=True)
class Remainder:
    """x mod by"""

    x: Index
    by: int

    def __str__(self) -> str:
        return f"({self.x})%{self.by}"


@dataclass(frozen=True)
class Dynamic:
    """An index read from memory, known to lie in 0..size-1. `value` is a kernel expression."""

    value: Any
    size: int

    def __str__(self) -> str:
        return f"[{self.value}]"


Atom = Axis | Quotient | Remainder | Dynamic


def _range(a: Atom) -> tuple[int, int]:
    if isinstance(a, Quotient):
        return a.x.lo // a.by, a.x.hi // a.by
    if isinstance(a, Remainder):
        return 0, min(a.by - 1, a.x.hi)
    return 0, max(a.size - 1, 0)


@dataclass(frozen=True)
class Index:
    """sum(coefficient * atom) + constant. `lo` and `hi` bound its value."""

    terms: tuple[tuple[Atom, int], ...]
    constant: int = 0

    def __str__(self) -> str:
        parts = [f"{a}" if c == 1 else f"{a}*{c}" for a, c in self.terms]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return "+".join(parts).replace("+-", "-")

    @functools.cached_property
    def lo(self) -> int:
        return self.constant + sum(c * _range(a)[0 if c > 0 else 1] for a, c in self.terms)

    @functools.cached_property
    def hi(self) -> int:
        return self.constant + sum(c * _range(a)[1 if c > 0 else 0] for a, c in self.terms)

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.terms, self.constant + other)
        sums = dict(self.terms)
        for a, c in other.terms:
            sums[a] = sums.get(a, 0) + c
        return _recombine({a: c for a, c in sums.items() if c}, self.constant + other.constant)

    def __mul__(self, k: int) -> Index:
        return Index(tuple((a, c * k) for a, c in self.terms), self.constant * k) if k else ZERO

    def __sub__(self, other: Index) -> Index:
        return self + other * -1

    def __floordiv__(self, k: int) -> Index:
        return _divide(self, k)[0]

    def __mod__(self, k: int) -> Index:
        return _divide(self, k)[1]

    def coefficient(self, axis: Axis) -> int | None:
        """The coefficient of `axis`; None where the index depends on it in another way than linearly."""
        direct = 0
        for a, c in self.terms:
            if a is axis:
                direct = c
            elif not isinstance(a, Axis) and axis in axes_of(a):
                return None
        return direct


ZERO = Index(())


def axis_index(a: Axis) -> Index:
    return Index(((a, 1),)) if a.size > 1 else ZERO


def constant(k: int) -> Index:
    return Index((), k)


def dynamic(value: Any, size: int) -> Index:
    return Index(((Dynamic(value, size), 1),)) if size > 1 else ZERO


def _recombine(sums: dict[Atom, int], const: int) -> Index:
    """by*(x//by) + x%by is x."""
    for a, c in list(sums.items()):
        if isinstance(a, Remainder) and sums.get(q := Quotient(a.x, a.by)) == c * a.by:
            del sums[a], sums[q]
            return Index(tuple(sums.items()), const) + a.x * c
    return Index(tuple(sums.items()), const)


def _divide(x: Index, k: int) -> tuple[Index, Index]:
    """(x // k, x % k), floor division, k > 0."""
    if k == 1:
        return x, ZERO
    whole = Index(tuple((a, c // k) for a, c in x.terms if c % k == 0), x.constant // k)
    rest = Index(tuple((a, c) for a, c in x.terms if c % k), x.constant % k)
    if rest.lo < 0:  # make the rest non-negative, so that truncating division is floor division
        up = -(rest.lo // k)
        rest, whole = rest + up * k, whole + -up
    if rest.hi < k:
        return whole, rest
    g = math.gcd(k, *(c for _, c in rest.terms))
    if g > 1:  # (g*y + r) // (g*j) = y // j for 0 <= r < g
        y = Index(tuple((a, c // g) for a, c in rest.terms), rest.constant // g)
        q, r = _divide(y, k // g)
        return whole + q, r * g + rest.constant % g
    if not whole.terms and len(rest.terms) == 1 and rest.constant == 0 and rest.terms[0][1] == 1:
        inner = rest.terms[0][0]
        if isinstance(inner, Quotient):  # (y // a) // b = y // (a*b)
            return whole + Index(((Quotient(inner.x, inner.by * k), 1),)), Index(((Remainder(rest, k), 1),))
        if isinstance(inner, Remainder) and inner.by % k == 0:  # (y % ab) % b = y % b
            return whole + Index(((Quotient(rest, k), 1),)), _divide(inner.x, k)[1]
    return whole + Index(((Quotient(rest, k), 1),)), Index(((Remainder(rest, k), 1),))


def axes_of(a: Atom | Index) -> set[Axis]:
    """Every axis that an atom or index depends on, through run-time values too."""
    if isinstance(a, Axis):
        return {a}
    if isinstance(a, (Quotient, Remainder)):
        return axes_of(a.x)
    if isinstance(a, Dynamic):
        return set(a.value.axes)
    found: set[Axis] = set()
    for t, _ in a.terms:
        found |= axes_of(t)
    return found


def flatten(index: Sequence[Index], shape: Sequence[int]) -> Index:
    """The row-major position of `index` in an array of `shape`."""
    total = ZERO
    for i, n in zip(index, shape, strict=True):
        total = total * n + i
    return total


def unflatten(flat: Index, shape: Sequence[int]) -> tuple[Index, ...]:
    """The index in an array of `shape` of the row-major position `flat`."""
    out: list[Index] = []
    for n in reversed(shape):
        if n == 1:
            out.append(ZERO)
        else:
            q, r = _divide(flat, n) if flat.hi >= n or flat.lo < 0 else (ZERO, flat)
            flat = q
            out.append(r)
    return tuple(reversed(out))
