"""Exact square roots: an approximation of 1/sqrt(x), a Newton step, and a remainder, which fma gives without error.

MUFU.RSQ may be off by two units in the last place, MUFU.RSQ64H by two of its high word. Small numbers are scaled by a power of
four first, so that no remainder loses bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devrt.compiler.sass.instruction import Operand
from devrt.compiler.sass.select_emit import ZERO, Bool, Pair
from devrt.compiler.sass.select_integer import NO_PAIR

if TYPE_CHECKING:
    from devrt.compiler.sass.select_emit import Emitter

_HALF, _INFINITY = 0x3F000000, 0x7F800000
_SMALL, _UP, _DOWN = (127 - 96) << 23, (127 + 48) << 23, (127 - 24) << 23  # below 2^-96: times 2^48, the root times 2^-24
_SMALL64, _UP64, _DOWN64 = (1023 - 900) << 20, (1023 + 108) << 20, (1023 - 54) << 20  # high words


def float32(s: Emitter, x: Operand) -> Operand:
    """The root of a register."""
    found: Operand = s.once(("sqrt f32",), (x,), lambda: _float32(s, x))
    return found


def _float32(s: Emitter, x: Operand) -> Operand:
    small = s.compare("FSETP", ("LT",), x, s.imm(_SMALL))
    near = s.choose(small, s.emit("FMUL", (), x, s.imm(_UP)), x)
    y = s.emit("MUFU", ("RSQ",), near)
    g, h = s.emit("FMUL", (), near, y), s.emit("FMUL", (), y, s.imm(_HALF))
    e = s.emit("FFMA", (), s.neg(h), g, s.imm(_HALF))
    g, h = s.emit("FFMA", (), g, e, g), s.emit("FFMA", (), h, e, h)
    root = s.emit("FFMA", (), s.emit("FFMA", (), s.neg(g), g, near), h, g)
    root = s.choose(small, s.emit("FMUL", (), root, s.imm(_DOWN)), root)
    zero = s.compare("FSETP", ("EQ",), x, ZERO)
    itself = Bool("FSETP", ("EQ",), (x, s.imm(_INFINITY)), "OR", zero, depth=2, level=s.here)
    s.kept.append(itself)
    return s.choose(itself, x, root)


def float64(s: Emitter, x: Pair) -> Pair:
    whole = s.whole(x)
    found: Pair = s.once(("sqrt f64",), (whole,), lambda: _float64(s, s.pair(whole)))
    return found


def _float64(s: Emitter, x: Pair) -> Pair:
    def constant(high: int) -> Operand:
        return s.whole(s.pair_constant(high << 32))

    def fma(a: Operand, b: Operand, c: Operand) -> Operand:
        return s.emit("DFMA", (), a, b, c, words=2)

    def mul(a: Operand, b: Operand) -> Operand:
        return s.emit("DMUL", (), a, b, words=2)
    whole = s.whole(x)
    small = s.compare("ISETP", ("LT",), s.hi(x), s.imm(_SMALL64))
    near = s.whole(s.choose_pair(small, s.pair(mul(whole, constant(_UP64))), x))
    y = s.whole(Pair(ZERO, s.emit("MUFU", ("RSQ64H",), s.part(near, 1))))
    # 1/sqrt(near) = y / sqrt(1 - e) = y * (1 + e/2 + 3/8 e^2 + ..)
    e = fma(s.neg(near), mul(y, y), constant(0x3FF00000))
    y = fma(fma(e, constant(0x3FD80000), constant(0x3FE00000)), mul(y, e), y)
    g, h = mul(near, y), mul(y, constant(0x3FE00000))
    for _ in range(2):
        g = fma(fma(s.neg(g), g, near), h, g)
    root = s.pair(g)
    root = s.choose_pair(small, s.pair(mul(g, constant(_DOWN64))), root)
    zero = s.compare("DSETP", ("EQ",), whole, NO_PAIR)
    itself = Bool("DSETP", ("EQ",), (whole, constant(0x7FF00000)), "OR", zero, depth=2, level=s.here)
    s.kept.append(itself)
    return s.choose_pair(itself, x, root)


