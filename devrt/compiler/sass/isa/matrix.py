"""Products of small matrices by a warp. `words` are what a lane holds of D, A, B and C.

A shape is printed without its signs: 16816 is 16 x 8 x 16 (of bits, 4-bit and 8-bit integers, 16-bit floats, ..).
"""

from __future__ import annotations

from devrt.compiler.sass.isa.fields import Group, always, choice, flag
from devrt.compiler.sass.isa.form import BLACKWELL, TO_90, Alu, Marks, alu

TURING, AMPERE = (75,), (80, 86, 89)
AMPERE_ON = (80, 86, 89, 90, 120)
ROW_COL = {24: Marks(select=always("ROW")), 32: Marks(select=always("COL"))}   # A lies in rows, B in columns
Words = tuple[int, int, int, int]


def _rows(name: str, base: int, words: Words, groups: tuple[Group, ...], fixed: dict[int, int], sms: tuple[int, ...],
          reuse: tuple[str, str, str], places: dict[int, Marks]) -> list[Alu]:
    """Rows of a shape; `reuse`: the sources that may be kept, on sm_75, on sm_80 to 90, on Blackwell."""
    d, a, b, c = words
    found = []
    for generations, letters in zip((TURING, TO_90[1:], BLACKWELL), reuse, strict=True):
        here = tuple(sm for sm in generations if sm in sms)
        if here:
            found.append(alu(name, base, f"Rd*{d}", f"A*{a} B*{b} C*{c}", *groups, kinds="1", fixed=fixed, sms=here,
                             reuse=letters, places=places))
    return found


def _floats(name: str, words: Words, fixed: dict[int, int], sms: tuple[int, ...]) -> list[Alu]:
    return _rows(f"HMMA.{name}", 0x03C, words, (), fixed, sms, ("B", "AB", "B"), {})


def _ints(shape: str, words: Words, fixed: dict[int, int], narrow: bool, sms: tuple[int, ...]) -> list[Alu]:
    """Of 8 bits, or `narrow`: of 4."""
    a, b = (choice(lo, 1, "U4", "S4") if narrow else choice(lo, 1, "U8", "S8") for lo in (76, 78))
    size = {83: 1, 84: 1} if narrow else {}
    groups = (a, b, flag("SAT", 82))
    return _rows(f"IMMA.{shape}", 0x037, words, groups, {**fixed, **size, 74: 1}, sms, ("ABC", "AB", "B"), ROW_COL)


def _doubles(shape: str, words: Words, fixed: dict[int, int], sms: tuple[int, ...]) -> list[Alu]:
    return _rows(f"DMMA.{shape}", 0x03F, words, (), fixed, sms, ("", "AB", ""), {})


def _bits(name: str, words: Words, fixed: dict[int, int], sms: tuple[int, ...]) -> list[Alu]:
    return _rows(f"BMMA.{name}.POPC", 0x03D, words, (), {**fixed, 74: 1, 80: 1}, sms, ("", "", ""), ROW_COL)


EIGHTS = (choice(78, 1, "E4M3", "E5M2"), choice(79, 1, "E4M3", "E5M2"))

ROWS = (
    *_floats("1688.F16", (2, 2, 1, 2), {}, (75, *AMPERE_ON)),
    *_floats("1688.F32", (4, 2, 1, 4), {76: 1}, (75, *AMPERE_ON)),
    *_floats("16816.F16", (2, 4, 2, 2), {75: 1}, AMPERE_ON),
    *_floats("16816.F32", (4, 4, 2, 4), {75: 1, 76: 1}, AMPERE_ON),
    *_floats("1688.F32.BF16", (4, 2, 1, 4), {76: 1, 82: 1}, AMPERE_ON),
    *_floats("16816.F32.BF16", (4, 4, 2, 4), {75: 1, 76: 1, 82: 1}, AMPERE_ON),
    *_floats("1684.F32.TF32", (4, 2, 1, 4), {76: 1, 78: 1, 83: 1}, AMPERE_ON),
    *_floats("1688.F32.TF32", (4, 4, 2, 4), {76: 1, 83: 1}, AMPERE_ON),
    *_ints("8816", (2, 1, 1, 2), {}, False, TO_90),
    *_ints("16816", (4, 2, 1, 4), {86: 1}, False, AMPERE_ON),
    *_ints("16832", (4, 4, 2, 4), {75: 1, 86: 1}, False, AMPERE_ON),
    *_ints("8832", (2, 1, 1, 2), {85: 1}, True, (75, *AMPERE)),
    *_ints("16832", (4, 2, 1, 4), {75: 1, 86: 1}, True, AMPERE),
    *_ints("16864", (4, 4, 2, 4), {85: 3}, True, AMPERE),
    *_doubles("884", (4, 2, 2, 4), {}, AMPERE),
    *_doubles("8x8x4", (4, 2, 2, 4), {}, (90, 120)),
    *_doubles("16x8x4", (8, 4, 2, 8), {76: 1}, (90,)),
    *_doubles("16x8x8", (8, 8, 4, 8), {77: 1}, (90,)),
    *_doubles("16x8x16", (8, 16, 8, 8), {76: 3}, (90,)),
    *_bits("88128.XOR", (2, 1, 1, 2), {}, (75, *AMPERE)),
    *_bits("88128.AND", (2, 1, 1, 2), {78: 1}, (*AMPERE, 90)),
    *_bits("168256.XOR", (4, 4, 2, 4), {76: 1}, AMPERE),
    *_bits("168256.AND", (4, 4, 2, 4), {76: 1, 78: 1}, (*AMPERE, 90)),
    *(row for k, a, b, depth in ((16816, 2, 1, {74: 1}), (16832, 4, 2, {74: 3}))
      for name, c, wide in (("F16", 2, {}), ("F32", 4, {77: 1}))
      for sms, places in (((89,), ROW_COL), (BLACKWELL, {}))
      for row in _rows(f"QMMA.{k}.{name}", 0x07A, (c, a, b, c), EIGHTS, {**depth, **wide}, sms, ("", "", ""), places)),
    alu("MOVM.16.MT88", 0x03A, "Rd", "A", kinds="1", reuse=""),  # 8 x 8 halves, transposed
    alu("MOVM.U4TO8.M832", 0x03A, "Rd", "A", kinds="1", fixed={75: 1, 78: 1}, reuse="", sms=BLACKWELL),  # nibbles become bytes
)
