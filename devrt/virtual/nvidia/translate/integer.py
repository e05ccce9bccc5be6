"""Integer arithmetic and logic, in the lanes and in the uniform datapath."""

from __future__ import annotations

from devrt.compiler.sass.instruction import Instruction
from devrt.virtual.nvidia.translate.writer import Rule, Writer, named

RULES: dict[str, Rule] = {}


@named(RULES, "MOV", "UMOV")
def mov(w: Writer, i: Instruction) -> None:
    w.write(i.dsts[0], w.word(i.srcs[0]))
