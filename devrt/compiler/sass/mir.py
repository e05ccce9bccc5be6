"""Machine code before layout: blocks of instructions over virtual or real registers.

What selection writes, allocation rewrites and scheduling orders. Not SSA: a register may be written in several places.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from devrt.compiler.sass.instruction import VIRTUAL, File, Instruction, Label, Reg


@dataclass(eq=False)
class Block:
    """Straight-line code. A branch stands only at its end; where the last instruction may go on, the next block follows."""

    label: str
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(eq=False)
class Function:
    """A kernel. `blocks` in the order they are laid out, the first is the entry. Bytes of shared memory a group, of local memory
    a lane; `params` are (name, byte offset from the start of the parameters, bytes). `threads` of a group."""

    name: str
    sm: int
    threads: int
    blocks: list[Block] = field(default_factory=list)
    shared_bytes: int = 0
    local_bytes: int = 0
    params: list[tuple[str, int, int]] = field(default_factory=list)
    constants: bytes = b""  # bank 3: tables of the program
    words: dict[tuple[File, int], int] = field(default_factory=dict)  # of every virtual register

    def new(self, file: File, words: int = 1) -> Reg:
        """A fresh virtual register."""
        index = VIRTUAL + len(self.words)
        self.words[file, index] = words
        return Reg(file, index, words)

    def successors(self, n: int) -> list[int]:
        """Numbers of the blocks that may run after block `n`."""
        last = self.blocks[n].instructions[-1] if self.blocks[n].instructions else None
        found = []
        if last is not None and last.op == "BRA":
            target = last.srcs[-1].value
            assert isinstance(target, Label)
            found.append(next(k for k, block in enumerate(self.blocks) if block.label == target.target))
        ends = last is not None and last.op in ("BRA", "EXIT") and last.guard.value == Reg(File.P, 7) and not last.guard.inv
        return found if ends else [*found, n + 1]
