"""The rule of every operation: one table a file, by subject."""

from __future__ import annotations

from devrt.virtual.nvidia.translate import integer
from devrt.virtual.nvidia.translate.writer import Rule

RULES: dict[str, Rule] = integer.RULES
