"""Sums and minima of integers of 32 bits and of two or four packed in a word (VIADD, VIMNMX and their like).

Sources: CUDA's binary utilities name the operations; what they do is read off what ptxas makes of PTX's SIMD instructions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from devrt.compiler.sass.instruction import Instruction, Operand
from devrt.virtual.nvidia.translate.operands import outcomes, predicates, result, values
from devrt.virtual.nvidia.translate.writer import LANES, NotTranslated, Rule, Writer, named

RULES: dict[str, Rule] = {}


class Parts(NamedTuple):
    """What a word is made of: so many integers of a type, with a sign or without."""

    e: str
    number: int
    signed: bool

    def vector(self, w: Writer) -> str:
        """LLVM's type of all of them, of every lane."""
        count = self.number if w.uniform else LANES * self.number
        return f"<{count} x {self.e}>"

    def each(self, w: Writer, name: str, *args: str) -> str:
        """An intrinsic of LLVM."""
        suffix = f"v{self.number if w.uniform else LANES * self.number}{self.e}"
        return w.call(self.vector(w), f"llvm.{name}.{suffix}", *((self.vector(w), a) for a in args), declare=True)

    def of(self, w: Writer, o: Operand) -> str:
        """An operand, negated part by part."""
        value = w.op(f"bitcast {w.t('i32')} {w.word(o)} to {self.vector(w)}")
        if o.neg:
            value = w.op(f"sub {self.vector(w)} zeroinitializer, {value}")
        return value

    def word(self, w: Writer, value: str) -> str:
        return w.op(f"bitcast {self.vector(w)} {value} to {w.t('i32')}")


_PARTS = {"U16x2": Parts("i16", 2, False), "S16x2": Parts("i16", 2, True), "16x2": Parts("i16", 2, True),
          "U8x4": Parts("i8", 4, False), "S8x4": Parts("i8", 4, True),
          "U32": Parts("i32", 1, False), "S32": Parts("i32", 1, True), "32": Parts("i32", 1, True)}


def parts_of(i: Instruction) -> Parts:
    """Raises NotTranslated for modifiers that mean anything else."""
    names = [m for m in i.mods if m in _PARTS]
    if len(names) > 1 or set(i.mods) - set(names) - {"RELU", "ISAT"}:
        raise NotTranslated(str(i))
    return _PARTS[names[0]] if names else Parts("i32", 1, True)


@named(RULES, "VIADD", "UVIADD")
def viadd(w: Writer, i: Instruction) -> None:
    """A sum; .ISAT: one that does not leave the type's range."""
    p = parts_of(i)
    first, second = values(i)
    if "ISAT" in i.mods:
        if first.neg:
            raise NotTranslated(str(i))
        how = f"{'s' if p.signed else 'u'}{'sub' if second.neg else 'add'}.sat"
        total = p.each(w, how, p.of(w, first), p.of(w, replace(second, neg=False)))
    else:
        total = w.op(f"add {p.vector(w)} {p.of(w, first)}, {p.of(w, second)}")
    w.write(result(i), p.word(w, total))


@named(RULES, "VIMNMX", "UVIMNMX", "VIMNMX3")
def vimnmx(w: Writer, i: Instruction) -> None:
    """The smallest where the predicate is true, else the largest."""
    if outcomes(i):
        raise NotTranslated(f"{i.op} that says which it took")
    p = parts_of(i)
    write_extreme(w, i, p, [p.of(w, o) for o in values(i)])


@named(RULES, "VIADDMNMX")
def viaddmnmx(w: Writer, i: Instruction) -> None:
    """The smaller of a + b and c where the predicate is true, else the larger."""
    p = parts_of(i)
    a, b, c = (p.of(w, o) for o in values(i))
    write_extreme(w, i, p, [w.op(f"add {p.vector(w)} {a}, {b}"), c])


def write_extreme(w: Writer, i: Instruction, p: Parts, terms: list[str]) -> None:
    """The smallest or largest of terms; with .RELU no less than 0."""
    found = []
    for which in ("min", "max"):
        value = terms[0]
        for more in terms[1:]:
            value = p.each(w, f"{'s' if p.signed else 'u'}{which}", value, more)
        if "RELU" in i.mods:
            value = p.each(w, "smax", value, "zeroinitializer")
        found.append(p.word(w, value))
    w.write(result(i), w.select(w.pred(predicates(i)[-1]), "i32", *found))
