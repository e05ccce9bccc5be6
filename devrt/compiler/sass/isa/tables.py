"""Every row of the instruction set, in the order in which forms are tried."""

from __future__ import annotations

from devrt.compiler.sass.isa import atomic, control, convert, floats, half, integer, lanes, matrix, memory, uniform
from devrt.compiler.sass.isa.form import ALL as GENERATIONS
from devrt.compiler.sass.isa.form import Alu, Form, Row

ROWS: tuple[Row | Alu, ...] = (
    *integer.ROWS, *floats.ROWS, *half.ROWS, *convert.ROWS, *lanes.ROWS, *memory.ROWS, *atomic.ROWS, *matrix.ROWS,
    *control.ROWS, *uniform.ROWS)


BY_OP: dict[str, list[Row | Alu]] = {}
BY_OPCODE: dict[int, list[Row | Alu]] = {}
for _row in ROWS:
    BY_OP.setdefault(_row.op, []).append(_row)
    for _opcode in _row.opcodes:
        BY_OPCODE.setdefault(_opcode, []).append(_row)


def forms(sm: int) -> list[Form]:
    """All forms of a generation."""
    return [form for row in ROWS for form in row.forms(sm)]


def forms_of(op: str, sm: int) -> list[Form]:
    """Those of an operation."""
    return [form for row in BY_OP.get(op, ()) for form in row.forms(sm)]


def forms_with(opcode: int, sm: int) -> list[Form]:
    """Those with these low 12 bits."""
    return [form for row in BY_OPCODE.get(opcode, ()) for form in row.forms(sm) if form.value & 0xFFF == opcode]


__all__ = ["GENERATIONS", "ROWS", "forms", "forms_of", "forms_with"]
