"""Products on matrix units, and constants as bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from devrt.compiler import convert, lir
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.sass import select_index as index
from devrt.compiler.sass import select_integer as integer
from devrt.compiler.sass.instruction import ZERO as ZEROS
from devrt.compiler.sass.instruction import Address, File, Operand, Reg
from devrt.compiler.sass.select_emit import ZERO
from devrt.compiler.sass.select_float import bits32
from devrt.compiler.sass.select_memory import bytes_of
from devrt.compiler.sass.target import LANES

if TYPE_CHECKING:
    from devrt.compiler.sass.select import Selector

_ZEROS = Reg(File.R, ZEROS[File.R], 4)


def element_bits(d: DType, value: float) -> int:
    """The bits of a float constant of up to 32 bits."""
    if d is dt.float32 and value == value:
        return bits32(value)
    raw = convert.cast(np.array([value], np.float64), dt.float64, d)
    return int(raw.view(f"u{d.bits // 8}")[0])


def table_bytes(t: lir.Table) -> bytes:
    """A table as it lies in memory."""
    d = t.dtype
    if d.is_float:
        return convert.cast(np.array(t.values, np.float64), dt.float64, d).tobytes()
    return np.array(t.values, convert.element_numpy(d)).tobytes()


def multiply(s: Selector, i: lir.Inst) -> None:
    """HMMA: two products of 16x8 beside each other, each 16 deep (Turing: two of 8 deep). IMMA: the same with two bytes for each
    half (Turing: four products of 8x8, half as deep). LDSM.4 brings four blocks of 8x8 halves: of A from top left to bottom right
    by columns, of B (whose rows are columns of the product) by rows."""
    assert isinstance(i.mem, lir.Shared)
    turned = i.attrs["turned"]
    a = _fragment(s, i.mem, i.args[0], i.attrs["lda"], down=True, turned="a" in turned)
    b = _fragment(s, i.mem, i.args[1], i.attrs["ldb"], down=False, turned="b" in turned)
    d, deep = i.mem.dtype, i.attrs["layout"] in ("hmma", "imma")
    if bytes_of(d) == 1:
        op, kind = "IMMA", ("16832" if deep else "8816", *2 * ("S8" if d is dt.int8 else "U8",))
        a, b = replace(a, select="ROW"), replace(b, select="COL")
    else:
        op, kind = "HMMA", ("16816" if deep else "1688", "F32", *(("BF16",) if d is dt.bfloat16 else ()))

    def part(x: Operand, word: int, words: int = 1) -> Operand:
        assert isinstance(x.value, Reg)
        return replace(x, value=x.value.part(word, words))
    for half in range(2):
        sums = i.args[2 + 4 * half:6 + 4 * half]
        before = _four(s, [s.word(r) for r in sums], all(s.uses[r] == 1 for r in sums))
        total = s.new(4) if before.value == _ZEROS else before
        if deep:
            s.put(op, kind, (total,), (a, part(b, 2 * half, 2), before))
        else:
            for k in range(2):
                added, right = total if k else before, part(b, 2 * half + k)
                if op == "HMMA":
                    s.put(op, kind, (total,), (part(a, 2 * k, 2), right, added))
                else:
                    for row in range(2):
                        s.put(op, kind, (part(total, 2 * row, 2),), (part(a, 2 * k + row), right, part(added, 2 * row, 2)))
        for k in range(4):
            s.define(i.out[4 * half + k], s.part(total, k))


def _fragment(s: Selector, mem: lir.Shared, start: lir.Reg, stride: int, *, down: bool, turned: bool) -> Operand:
    """Four registers of a tile whose first element is `start`: its 8x8 blocks, `down` or across first. Lanes 0 to 7, 8 to 15, ..
    name the rows of one block each as they lie in memory; of a turned tile these are columns, and LDSM.T turns the blocks."""
    lane = index.low(s, s.lane)
    if s.p.lanes > LANES:
        lane = integer.logic(s, "and", lane, s.imm(LANES - 1))
    right = integer.logic(s, "and", lane, s.imm(16))  # of 16 bytes
    if down != turned:
        row = integer.logic(s, "and", lane, s.imm(15))
    else:
        row = integer.add(s, integer.logic(s, "and", lane, s.imm(7)), integer.shift_right(s, right, s.imm(1), signed=False))
        right = integer.shift_left(s, integer.logic(s, "and", lane, s.imm(8)), s.imm(1))
    at = s.number(start)
    size = bytes_of(mem.dtype)
    mine = integer.mul(s, row, s.imm(size * stride), right)
    if at.terms:
        mine = integer.add(s, mine, index.word_sum(s, tuple((t, size * f) for t, f in at.terms), 0))
    key = id(mine), s.offsets[mem.name] + size * at.const
    found = s.fragments.get(key)
    if found is None:
        found = s.fragments[key] = s.new(4)
        assert isinstance(mine.value, Reg)
        s.put("LDSM", ("16", "MT88" if turned else "M88", "4"), (found,), (Operand(Address(mine.value, key[1])),))
    return found


def _four(s: Selector, words: list[Operand], last: bool) -> Operand:
    """Four words in one register that may be overwritten; that which they are in if this is their `last` use."""
    if all(w is ZERO for w in words):
        return Operand(_ZEROS)
    first = words[0].value
    if last and isinstance(first, Reg) and first.virtual and s.f.words[first.file, first.index] == 4 and first.sub == 0 and all(
            w.value == replace(first, sub=k) for k, w in enumerate(words)):
        return s.known(Operand(replace(first, words=4)), s.level(words[0]))
    r = s.new(4)
    for k, w in enumerate(words):
        s.put("MOV", (), (s.part(r, k),), (w,))
    return r
