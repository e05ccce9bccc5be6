"""LIR's `nibble` as LLVM IR: int4 elements, two to a byte, as int8.

Shifting left and right again in 32-bit lanes takes a nibble out and extends its sign in two instructions; x86 has no
shift of bytes. Of pairs, which start with a byte, eight lanes share a word: half a vector of bytes is loaded, its words are
spread by one shuffle, and each lane shifts by a constant. Other neighbours take their byte from one of two loads, for even
lanes and for odd ones, which start half an element later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devrt.compiler import dtypes as dt
from devrt.compiler.lir import Inst

if TYPE_CHECKING:
    from devrt.compiler.llvm.emit import Emitter


def load(e: Emitter, i: Inst) -> None:
    """Emit one nibble instruction."""
    out = i.out[0]
    index = e.values[i.args[0]]
    mask = i.args[1] if len(i.args) > 1 else None
    t = e.type(i.args[0].dtype, True)
    if out not in e.varying:
        at = e.scalar(i.args[0])
        byte = e.load_one(i, "i8", e.op(f"ashr {t} {at}, 1"), mask)
        low = e.op(f"trunc {t} {e.op(f'and {t} {at}, 1')} to i8")
        left = e.op(f"sub i8 4, {e.op(f'shl i8 {low}, 2')}")
        e.define(out, e.op(f"ashr i8 {e.op(f'shl i8 {byte}, {left}')}, 4"), True)
        return
    lanes = e.vector(mask) if mask is not None else ""
    wide = e.type(dt.int32, False)
    if index.stride == 1 and index.base and i.attrs["pairs"] and not lanes:
        first = e.op(f"ashr exact {t} {index.base}, 1")
        e.prefetch(i, e.element(i, first))
        word, left = _spread(e, i, first)
    elif index.stride == 1 and index.base:
        first = _parity(e, t, index.base)
        turn = e.splat("i32", e.op(f"shl i32 {first}, 2"))
        signs = _alternate(e.n, "i32 -1", "i32 1")
        left = e.op(f"add {wide} {_alternate(e.n, 'i32 28', 'i32 24')}, {e.op(f'mul {wide} {turn}, {signs}')}")
        word = e.op(f"zext {e.vec('i8')} {_neighbours(e, i, t, index.base, lanes)} to {wide}")
    else:
        v = e.type(i.args[0].dtype, False)
        at = e.vector(i.args[0])
        byte = e.gather(i, "i8", e.op(f"ashr {v} {at}, {e.const(i.args[0].dtype, False, 1)}"), lanes)
        word = e.op(f"zext {e.vec('i8')} {byte} to {wide}")
        odd = e.op(f"and {v} {at}, {e.const(i.args[0].dtype, False, 1)}")
        odd = odd if v == wide else e.op(f"trunc {v} {odd} to {wide}")
        left = e.op(f"sub {wide} {e.const(dt.int32, False, 28)}, {e.op(f'shl {wide} {odd}, {e.const(dt.int32, False, 2)}')}")
    value = e.op(f"ashr {wide} {e.op(f'shl {wide} {word}, {left}')}, {e.const(dt.int32, False, 28)}")
    e.define(out, e.op(f"trunc {wide} {value} to {e.vec('i8')}"), False)


def _spread(e: Emitter, i: Inst, first: str) -> tuple[str, str]:
    """For each lane a 32-bit word, from byte `first` on, that holds its nibble, and how far left that must go."""
    bits = min(32, 4 * e.n)
    count, each = 4 * e.n // bits, bits // 4
    words = e.load_vector(i, f"i{bits}", count, first, "")
    if bits < 32:
        words = e.op(f"zext <{count} x i{bits}> {words} to <{count} x i32>")
    order = ", ".join(f"i32 {k // each}" for k in range(e.n))
    spread = e.op(f"shufflevector <{count} x i32> {words}, <{count} x i32> poison, <{e.n} x i32> <{order}>")
    return spread, "<" + ", ".join(f"i32 {28 - 4 * (k % each)}" for k in range(e.n)) + ">"


def _parity(e: Emitter, t: str, base: str) -> str:
    """base modulo 2 as i32."""
    low = e.op(f"and {t} {base}, 1")
    return low if t == "i32" else e.op(f"trunc {t} {low} to i32")


def _alternate(n: int, even: str, odd: str) -> str:
    return "<" + ", ".join(odd if k % 2 else even for k in range(n)) + ">"


def _neighbours(e: Emitter, i: Inst, t: str, base: str, lanes: str) -> str:
    """The byte of each of the elements base, base + 1, .."""
    half = e.n // 2
    parts = []
    for parity in (0, 1):
        where = ""
        if lanes:
            places = ", ".join(f"i32 {k}" for k in range(parity, e.n, 2))
            where = e.op(f"shufflevector {e.vec('i1')} {lanes}, {e.vec('i1')} poison, <{half} x i32> <{places}>")
        first = e.op(f"ashr {t} {e.op(f'add {t} {base}, {parity}')}, 1")
        if not lanes and not parity:
            e.prefetch(i, e.element(i, first))
        parts.append(e.load_vector(i, "i8", half, first, where))
    order = ", ".join(f"i32 {k // 2 + k % 2 * half}" for k in range(e.n))
    return e.op(f"shufflevector <{half} x i8> {parts[0]}, <{half} x i8> {parts[1]}, <{e.n} x i32> <{order}>")
