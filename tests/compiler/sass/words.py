"""Words of every form: each modifier once, the other fields drawn, often where something special is (RZ, PT, 0)."""

from __future__ import annotations

import random
from collections.abc import Iterator

from devrt.compiler.sass.instruction import Instruction
from devrt.compiler.sass.isa import Form, IllegalInstruction, decode, forms
from devrt.compiler.sass.isa.slots import AddressSlot, ImmSlot, LabelSlot, RegSlot, Slot

CONTROL = 0x7F4 << 105   # a stall of four, no scoreboards, no yield
REUSE = 7 << 122
TRIES = 40               # of a word that happens to be none: a register that begins no pair, modifiers that exclude one another


def words(sm: int, seed: int) -> Iterator[tuple[Form, int, Instruction]]:
    """For each form and each value of each group of modifiers a word that decodes, and what it decodes to at address 0x100."""
    rng = random.Random(seed)
    for form in forms(sm):
        for rank in range(max([len(group.names) for group in form.groups], default=1)):
            for _ in range(TRIES):
                word = _draw(form, rank, rng)
                try:
                    instruction = decode(word, 0x100, sm)
                except IllegalInstruction:
                    continue
                yield form, word, instruction
                break
            else:
                raise AssertionError(f"{form.op} {form.mods} {form.value:#x}: no word of it decodes")


def _draw(form: Form, rank: int, rng: random.Random) -> int:
    keep = rng.random() < 0.3
    word = form.value & ~form.ignored | CONTROL | rng.getrandbits(128) & form.covered & ((1 << 105) - 1 | (REUSE if keep else 0))
    if rng.random() < 0.6:
        word = word & ~(15 << 12) | 7 << 12
    for slot in (*form.dsts, *form.srcs):
        word = _special(slot, word, rng)
    for group in form.groups:
        values = [value for value, name in enumerate(group.names) if name is not None]
        word = word & ~group.bits.mask | group.bits.put(values[rank % len(values)])
    return word


def _special(slot: Slot, word: int, rng: random.Random) -> int:
    chance = rng.random()
    if isinstance(slot, RegSlot):
        if chance < 0.25 and (slot.optional or slot.width >= 6) and not slot.present:
            return (word | slot.value_mask) & ~(1 << slot.inv if slot.optional and slot.inv >= 0 else 0)
        return word if slot.words == 1 else word & ~(3 << slot.lo)
    if isinstance(slot, ImmSlot) and chance < 0.4:
        value = rng.randrange(2) if chance < 0.2 else 1 << rng.randrange(slot.at.width)
        return word & ~slot.value_mask | slot.at.put(value)
    if isinstance(slot, LabelSlot):
        return word & ~(3 << 34) & ~(15 << 16 if slot.at.pieces[0][0] == 16 else 0) & ~(3 << slot.at.pieces[0][0])
    if isinstance(slot, AddressSlot):
        for register in (slot.base, slot.uniform, slot.descriptor):
            if register:
                word &= ~(3 << register.lo)
        if slot.base and chance < 0.3:
            word |= slot.base.value_mask
    return word
