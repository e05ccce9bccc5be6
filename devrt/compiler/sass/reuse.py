"""Reuse flags: operands that stay at the operand collector for the next instruction, so that the register banks are read less."""

from __future__ import annotations

from devrt.compiler.sass import mir
from devrt.compiler.sass.control import HINT
from devrt.compiler.sass.instruction import File, Instruction, Operand, Reg
from devrt.compiler.sass.isa.codec import kinds, tables_of


def reuse(f: mir.Function) -> mir.Function:
    """The function with the flags set where the next instruction reads the same register in the same place. The code is in its
    last order. Raises CompileError for an instruction that the generation has not."""
    blocks = [mir.Block(block.label, _marked(block.instructions, f.sm)) for block in f.blocks]
    return mir.Function(f.name, f.sm, f.threads, blocks, f.shared_bytes, f.local_bytes, f.params, f.constants, f.words)


def _marked(row: list[Instruction], sm: int) -> list[Instruction]:
    places = [_collected(i, sm) for i in row]
    out = list(row)
    for n, (i, here, there) in enumerate(zip(row, places, places[1:], strict=False)):
        if not here or not there or i.control.stall >= HINT:
            continue
        written = {r.index + k for r in i.writes() if r.file is File.R for k in range(r.words)}
        kept = [k for k, place in here.items() if place in there.values() and place[1] not in written]
        if kept:
            srcs = tuple([Operand(o.value, o.neg, o.abs, o.inv, True, o.select) if k in kept else o
                          for k, o in enumerate(i.srcs)])
            out[n] = Instruction(i.op, i.mods, i.dsts, srcs, i.guard, i.control, i.address)
    return out


def _collected(i: Instruction, sm: int) -> dict[int, tuple[int, int, int]]:
    """Of the sources that can be kept: (slot of the operand collector, register, words)."""
    slots = tables_of(sm).writer(i.op, i.mods, kinds(i.dsts), kinds(i.srcs)).srcs
    return {k: (slot.reuse, o.value.index, o.value.words) for k, (slot, o) in enumerate(zip(slots, i.srcs, strict=False))
            if slot.reuse >= 0 and isinstance(o.value, Reg) and not o.value.zero}
