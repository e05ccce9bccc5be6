"""The last step to machine code: addresses for blocks and branches, the padding that the hardware's fetch wants, encoding."""

from __future__ import annotations

from devrt.compiler.sass import mir
from devrt.compiler.sass.cubin import ALIGNMENT
from devrt.compiler.sass.instruction import Control, Instruction, Label, Operand
from devrt.compiler.sass.isa.codec import encode
from devrt.device import CompileError

WORD = 16  # bytes of an instruction


def layout(f: mir.Function) -> list[Instruction]:
    """The instructions with addresses, in order, branches to addresses; then a branch to itself, which catches what runs on, and
    NOPs to a multiple of 128 bytes. Raises CompileError for an unknown label."""
    places: dict[str, int] = {}
    address = 0
    for block in f.blocks:
        places[block.label] = address
        address += WORD * len(block.instructions)
    out: list[Instruction] = []
    for block in f.blocks:
        for i in block.instructions:
            out.append(Instruction(i.op, i.mods, i.dsts, tuple([_resolved(o, places, f.name) for o in i.srcs]), i.guard,
                                   i.control, WORD * len(out)))
    here = WORD * len(out)
    out.append(Instruction("BRA", srcs=(Operand(Label(here)),), control=Control(0, True), address=here))
    while len(out) * WORD % ALIGNMENT:
        out.append(Instruction("NOP", control=Control(0, True), address=WORD * len(out)))
    return out


def assemble(f: mir.Function) -> bytes:
    """The machine code of a function that is scheduled."""
    return b"".join(encode(i, f.sm).to_bytes(WORD, "little") for i in layout(f))


def _resolved(o: Operand, places: dict[str, int], name: str) -> Operand:
    if not isinstance(o.value, Label) or isinstance(o.value.target, int):
        return o
    if o.value.target not in places:
        raise CompileError(f"{name} branches to {o.value.target}, which it has not")
    return Operand(Label(places[o.value.target]))
