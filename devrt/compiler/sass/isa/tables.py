"""Every row of the instruction set, in the order in which forms are tried."""

from __future__ import annotations

from devrt.compiler.sass.isa import atomic, control, convert, floats, half, integer, lanes, matrix, memory, uniform
from devrt.compiler.sass.isa.form import ALL as GENERATIONS
from devrt.compiler.sass.isa.form import Alu, Form, Row

ROWS: tuple[Row | Alu, ...] = (
    *integer.ROWS, *floats.ROWS, *half.ROWS, *convert.ROWS, *lanes.ROWS, *memory.ROWS, *atomic.ROWS, *matrix.ROWS,
    *control.ROWS, *uniform.ROWS)


def forms(sm: int) -> list[Form]:
    """All forms of a generation."""
    return [form for row in ROWS for form in row.forms(sm)]


__all__ = ["GENERATIONS", "ROWS", "forms"]
