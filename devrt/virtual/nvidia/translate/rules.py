"""The rule of every operation: one table a file, by subject."""

from __future__ import annotations

from devrt.virtual.nvidia.translate import (
    atomics,
    bits,
    convert,
    copies,
    doubles,
    floats,
    half,
    integer,
    lanes,
    matrix,
    memory,
    packed,
    special,
)
from devrt.virtual.nvidia.translate.writer import Rule

_FILES = (integer, packed, bits, memory, copies, atomics, lanes, floats, doubles, half, convert, special, matrix)
RULES: dict[str, Rule] = {op: rule for file in _FILES for op, rule in file.RULES.items()}
