"""Float arithmetic: float32 in words, float64 in pairs. A sign that is only turned or dropped becomes part of the operand that
reads it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from devrt.compiler import dtypes as dt
from devrt.compiler.sass import division, roots
from devrt.compiler.sass import select_integer as integer
from devrt.compiler.sass.instruction import TRUE, Imm, Operand
from devrt.compiler.sass.select_emit import FALSE, ZERO, Bool, Pair

if TYPE_CHECKING:
    from devrt.compiler.lir import Inst, Reg
    from devrt.compiler.sass.select import Selector

_COMPARE = {"lt": "LT", "le": "LE", "eq": "EQ", "ne": "NEU"}
_SWAPPED = {"LT": "GT", "LE": "GE", "EQ": "EQ", "NEU": "NEU"}
NAN, NAN64 = 0x7FC00000, 0x7FF80000 << 32
_SIGN = 1 << 31


def bits32(value: float) -> int:
    """The bits of a float32 constant."""
    try:
        return int(struct.unpack("<I", struct.pack("<f", value))[0])
    except OverflowError:
        return 0x7F800000 | (value < 0) << 31


def bits64(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def arithmetic(s: Selector, i: Inst) -> None:
    """add to canon, comparisons and fma of float32 or float64."""
    d = i.args[0].dtype
    if d is dt.float64:
        s.define(i.out[0], _double(s, i.op, i.args))
    else:
        s.define(i.out[0], _single(s, i.op, i.args))


# ----- operands


def _read(s: Selector, r: Reg, *, magnitude: bool = True) -> Operand:
    """A float32 operand; neg and abs of the instruction that made it are read along where the reader can (`magnitude`: abs)."""
    source, marks = s.signed.get(r, (r, ""))
    if "abs" in marks and not magnitude:
        source, marks = r, ""
    o = s.word(source)
    if not marks:
        return o
    if isinstance(o.value, Imm) or o is ZERO:
        return s.word(r)
    return s.derived(o, marks, lambda: Operand(o.value, neg="neg" in marks, abs="abs" in marks))


def _read_pair(s: Selector, r: Reg, *, magnitude: bool = True) -> Operand:
    source, marks = s.signed.get(r, (r, ""))
    if "abs" in marks and not magnitude:
        source, marks = r, ""
    o = s.whole(s.wide(source))
    return s.derived(o, marks, lambda: Operand(o.value, neg="neg" in marks, abs="abs" in marks)) if marks else o


def _minus(s: Selector, o: Operand) -> Operand:
    value = s.constant(o)
    if value is not None:
        return s.imm(value ^ _SIGN)
    return s.derived(o, "turned", lambda: Operand(o.value, neg=not o.neg, abs=o.abs))


def _two(s: Selector, a: Operand, b: Operand) -> tuple[Operand, Operand]:
    """Of operands that may change places: only the second may be a constant."""
    if s.constant(a) is not None:
        a, b = b, a
    return s.reg(a), b


# ----- float32


def _single(s: Selector, op: str, args: tuple[Reg, ...]) -> Operand | Bool:
    if op in ("neg", "abs"):
        x = s.word(args[0])
        return integer.logic(s, "xor" if op == "neg" else "and", x, s.imm(_SIGN if op == "neg" else _SIGN - 1))
    if op == "fma":
        a, b, c = (_read(s, r, magnitude=False) for r in args)
        a, b = _two(s, a, b)
        if s.constant(b) is not None and b is not ZERO:
            c = s.reg(c)
        return s.emit("FFMA", (), a, b, c)
    if op in ("add", "sub"):
        a, b = _read(s, args[0]), _read(s, args[1])
        return s.emit("FADD", (), *_two(s, a, _minus(s, b) if op == "sub" else b))
    if op == "mul":
        return s.emit("FMUL", (), *_two(s, _read(s, args[0]), _read(s, args[1])))
    if op == "div":
        return division.float32(s, s.reg(s.word(args[0])), s.reg(s.word(args[1])))
    x = s.reg(s.word(args[0]))
    if op == "sqrt":
        return roots.float32(s, x)
    if op == "floor":
        return s.emit("FRND", ("FLOOR",), x)
    if op == "canon":
        return canonical(s, x)
    if op in ("max", "min"):
        return _extreme(s, op, args)
    a, b, name = _read(s, args[0]), _read(s, args[1]), _COMPARE[op]
    if s.constant(a) is not None:
        a, b, name = b, a, _SWAPPED[name]
    return s.compare("FSETP", (name,), s.reg(a), b)


def canonical(s: Selector, x: Operand) -> Operand:
    return s.choose(s.compare("FSETP", ("NAN",), x, x), s.imm(NAN), x)


def _extreme(s: Selector, op: str, args: tuple[Reg, ...]) -> Operand:
    a, b = _two(s, _read(s, args[0]), _read(s, args[1]))
    which = TRUE if op == "min" else FALSE
    if s.f.sm >= 80:
        return s.emit("FMNMX", ("NAN",), a, b, which)
    best = s.emit("FMNMX", (), a, b, which)
    return s.choose(s.compare("FSETP", ("NAN",), a, s.reg(b)), s.imm(NAN), best)


# ----- float64


def _double(s: Selector, op: str, args: tuple[Reg, ...]) -> Pair | Bool:
    if op in ("neg", "abs"):
        x = s.wide(args[0])
        return Pair(x.lo, integer.logic(s, "xor" if op == "neg" else "and", s.hi(x), s.imm(_SIGN if op == "neg" else _SIGN - 1)))
    if op == "fma":
        return s.pair(s.emit("DFMA", (), *(_read_pair(s, r, magnitude=False) for r in args), words=2))
    if op in ("add", "sub", "mul"):
        a, b = (_read_pair(s, r) for r in args)
        return s.pair(s.emit("DMUL" if op == "mul" else "DADD", (), a, _minus(s, b) if op == "sub" else b, words=2))
    if op == "div":
        return division.float64(s, s.wide(args[0]), s.wide(args[1]))
    x = s.wide(args[0])
    if op == "sqrt":
        return roots.float64(s, x)
    if op == "floor":
        return s.pair(s.emit("FRND", ("F64", "FLOOR"), s.whole(x), words=2))
    if op == "canon":
        whole = s.whole(x)
        return s.choose_pair(s.compare("DSETP", ("NAN",), whole, whole), s.pair_constant(NAN64), x)
    a, b = (_read_pair(s, r) for r in args)
    if op not in ("max", "min"):
        return s.compare("DSETP", (_COMPARE[op],), a, b)
    y = s.wide(args[1])
    # equal numbers differ in the sign of zero alone; where one is NaN their sum is
    best = s.choose_pair(s.compare("DSETP", ("GT" if op == "max" else "LT",), a, b), x, y)
    same = integer.logic64(s, "and" if op == "max" else "or", x, y)
    best = s.choose_pair(s.compare("DSETP", ("EQ",), a, b), same, best)
    return s.choose_pair(s.compare("DSETP", ("NAN",), a, b), s.pair_constant(NAN64), best)

