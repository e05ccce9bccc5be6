"""Missing waits: registers that are used while a memory operation may still be at work on them."""

from __future__ import annotations

from devrt.virtual.amd.isa import Block
from devrt.virtual.amd.isa.formats import Gen


def missing(blocks: dict[int, Block], entry: int, gen: Gen) -> set[int]:
    """Byte offsets of instructions that need an s_waitcnt before them."""
    return set()
