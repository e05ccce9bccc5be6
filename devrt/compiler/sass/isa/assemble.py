"""Text as nvdisasm prints it -> instructions."""

from __future__ import annotations

from devrt.compiler.sass.instruction import Instruction
from devrt.device import CompileError


def assemble(line: str, sm: int) -> Instruction:
    """One instruction. Raises CompileError where the generation has no such form."""
    raise CompileError(f"sm_{sm} cannot read {line!r}")
