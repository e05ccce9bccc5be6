"""The rule of every operation: one table a file, by subject."""

from __future__ import annotations

from devrt.virtual.nvidia.translate import convert, doubles, floats, half, integer, matrix, special
from devrt.virtual.nvidia.translate.writer import Rule

RULES: dict[str, Rule] = {**integer.RULES, **floats.RULES, **doubles.RULES, **half.RULES, **convert.RULES, **special.RULES,
                          **matrix.RULES}
