"""Products of small matrices by a warp. Words of each fragment: what a lane holds of D, A, B and C.

The shape is printed as MxNxK without its signs: 16816 is 16 x 8 x 16. A is stored by rows, B by columns (.ROW, .COL).
"""

from __future__ import annotations

from devrt.compiler.sass.isa.fields import Group, Marks, always, bits, choice, flag
from devrt.compiler.sass.isa.form import ALL, BLACKWELL, SINCE_80, SINCE_89, Alu, Row, alu, row

def _float(shape: str, kind: str, words: tuple[int, int, int, int], fixed: dict[int, int], sms: tuple[int, ...]) -> Alu:
    d, a, b, c = words
    return alu(f"HMMA.{shape}.{kind}", 0x03C, f"Rd*{d}", f"A*{a} B*{b} -C*{c}", kinds="1", fixed=fixed, sms=sms, reuse="AB")


FLOAT = (
    _float("1688", "F16", (2, 2, 1, 2), {}, ALL),
    _float("1688", "F32", (4, 2, 1, 4), {76: 1}, ALL),
    _float("16816", "F16", (2, 4, 2, 2), {75: 1}, SINCE_80),
    _float("16816", "F32", (4, 4, 2, 4), {75: 1, 76: 1}, SINCE_80),
    _float("1688", "F32.BF16", (4, 2, 1, 4), {76: 1, 82: 1}, SINCE_80),
    _float("16816", "F32.BF16", (4, 4, 2, 4), {75: 1, 76: 1, 82: 1}, SINCE_80),
    _float("1684", "F32.TF32", (4, 2, 1, 4), {76: 1, 78: 1, 83: 1}, SINCE_80),
    _float("1688", "F32.TF32", (4, 4, 2, 4), {76: 1, 83: 1}, SINCE_80),
)
