"""Words and instructions: the tables of one generation, indexed both ways."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from devrt.compiler.sass.instruction import TRUE, Address, Cbuf, Control, File, Imm, Instruction, Label, Operand, Reg, Special
from devrt.compiler.sass.isa import tables
from devrt.compiler.sass.isa.fields import Misfit, Mods, ones
from devrt.compiler.sass.isa.form import Form
from devrt.compiler.sass.isa.modifiers import read_groups, write_groups
from devrt.compiler.sass.isa.naming import derived, underived
from devrt.compiler.sass.isa.slots import CbufSlot, ImmSlot, Slot
from devrt.device import CompileError

WORD = ones(0, 128)
ONE_REGISTER = 0x31D  # BAR with its register printed twice
CACHE = 8192  # operands that a slot remembers before it starts again


class IllegalInstruction(Exception):
    """No instruction of this generation has these bits: the byte address, and what is wrong."""

    def __init__(self, address: int, detail: str) -> None:
        self.address, self.detail = address, detail
        super().__init__(f"illegal instruction at {address:#x}: {detail}")


def kinds(operands: tuple[Operand, ...]) -> str:
    """One sign an operand: what tells the forms of an operation apart."""
    return "".join([kind(o) for o in operands])


def kind(operand: Operand) -> str:
    value = operand.value
    if isinstance(value, Reg):
        return value.file.value
    if isinstance(value, Imm):
        return "I"
    if isinstance(value, Address):
        parts = ("r", value.base), ("u", value.uniform), ("d", value.descriptor)
        return f"[{''.join([sign for sign, part in parts if part is not None])}]"
    if isinstance(value, Cbuf):
        return "X" if value.handle is not None else "C" if value.index is None else "c"
    return {Label: "L", Special: "S"}[type(value)]


# ---------------------------------------------------------------------------------------------------------------------
# Tables

class Reader:
    """A form with what decoding needs at hand."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.known = WORD & ~form.covered           # bits that must hold form.value
        self.value = form.value & self.known
        self.mods_mask = sum(g.bits.mask for g in form.groups)
        self.mods: dict[int, Mods] = {}
        # each slot with the bits that decide its operand, and the operands seen so far (no labels: they depend on the address)
        self.slots: list[tuple[Slot, int, dict[int, Operand] | None]] = [
            (slot, slot.mask | (self.mods_mask if slot.sized else 0), None if slot.kind == "L" else {})
            for slot in (*form.dsts, *form.srcs)]
        self.dsts = len(form.dsts)
        self.optional = any(slot.optional for slot, _, _ in self.slots)

    def read(self, word: int, address: int) -> tuple[Mods, list[Operand], list[Operand]]:
        part = word & self.mods_mask
        mods = self.mods.get(part)
        if mods is None:
            mods = self.mods[part] = self.form.mods + read_groups(self.form.groups, word)
        operands: list[Operand] = []
        for slot, mask, known in self.slots:
            if known is None:
                operands.append(slot.decode(word, mods, address))
                continue
            operand = known.get(word & mask)
            if operand is None:
                if len(known) > CACHE:
                    known.clear()
                operand = known[word & mask] = slot.decode(word, mods, address)
            operands.append(operand)
        dsts, srcs = operands[:self.dsts], operands[self.dsts:]
        if self.optional:
            return mods, _drop_absent(self.form.dsts, dsts), _drop_absent(self.form.srcs, srcs)
        return mods, dsts, srcs


def _drop_absent(slots: tuple[Slot, ...], operands: list[Operand]) -> list[Operand]:
    """Without the optional operands that are not there; one stays where the next of its kind would be taken for it."""
    kept: list[Operand] = []
    next_kind = ""
    for slot, operand in zip(reversed(slots), reversed(operands), strict=True):
        if not (slot.optional and absent(slot, operand) and slot.kind != next_kind):
            kept.append(operand)
            next_kind = slot.kind
    return kept[::-1]


def absent(slot: Slot, operand: Operand) -> bool:
    """True where an optional operand is as good as not there."""
    value = operand.value
    if isinstance(slot, ImmSlot):
        return isinstance(value, Imm) and value.value == slot.default
    return isinstance(value, Reg) and value.zero and not operand.inv


class Tables:
    """The forms of a generation, made when an operation or opcode is first asked for: all of them take a while."""

    def __init__(self, sm: int) -> None:
        self.sm = sm
        self._readers: dict[int, list[Reader]] = {}
        self._by_op: dict[str, list[Form]] = {}
        self.writers: dict[tuple[str, Mods, str, str], Writer] = {}
        self.controls: dict[int, Control] = {}
        self.guards = {False: [_guard(bits, False) for bits in range(16)], True: [_guard(bits, True) for bits in range(16)]}

    def readers(self, opcode: int) -> list[Reader]:
        """Of the forms with these low 12 bits."""
        found = self._readers.get(opcode)
        if found is None:
            found = self._readers[opcode] = [Reader(form) for form in tables.forms_with(opcode, self.sm)]
        return found

    def by_op(self, op: str) -> list[Form]:
        """The forms of an operation."""
        found = self._by_op.get(op)
        if found is None:
            found = self._by_op[op] = tables.forms_of(op, self.sm)
        return found

    def writer(self, op: str, mods: Mods, dsts: str, srcs: str) -> Writer:
        """The form for these modifiers and kinds of operands. Raises CompileError."""
        key = (op, mods, dsts, srcs)
        known = self.writers.get(key)
        if known is None:
            known = self.writers[key] = self._find(op, mods, dsts, srcs)
        return known

    def _find(self, op: str, mods: Mods, dsts: str, srcs: str) -> Writer:
        if not self.by_op(op):
            raise CompileError(f"sm_{self.sm} has no {op}")
        reason = f"takes no operands of kinds {dsts or 'none'} <- {srcs or 'none'}"
        asked = underived(op, mods)
        for form in self.by_op(op):
            first, second = _align(form.dsts, dsts), _align(form.srcs, srcs)
            if first is None or second is None:
                continue
            if asked[:len(form.mods)] == form.mods:
                word = write_groups(form.groups, asked[len(form.mods):])
                if word is not None:
                    return Writer(form, form.value | word | first.absent | second.absent, first.slots, second.slots)
            reason = f"with operands {dsts} <- {srcs} has no modifiers .{'.'.join(mods)}"
        raise CompileError(f"{op} of sm_{self.sm} {reason}")


@dataclass(frozen=True)
class Aligned:
    """The slots that operands stand in, and the bits of those that are not there."""

    slots: tuple[Slot, ...]
    absent: int


def _align(slots: tuple[Slot, ...], wanted: str) -> Aligned | None:
    found, missing = [], 0
    for slot in slots:
        if wanted.startswith(slot.kind) or wanted[:1] == "c" and isinstance(slot, CbufSlot) and slot.index:
            wanted = wanted[len(slot.kind):]
            found.append(slot)
        elif slot.optional:
            missing |= slot.absent
        else:
            return None
    return None if wanted else Aligned(tuple(found), missing)


@dataclass(frozen=True)
class Writer:
    """A form with what encoding needs at hand: the bits that do not depend on operands, and the slots of those that are there."""

    form: Form
    word: int
    dsts: tuple[Slot, ...]
    srcs: tuple[Slot, ...]


def _guard(value: int, uniform: bool) -> Operand:
    index, inv = value & 7, value >= 8
    if index == 7 and not inv:
        return TRUE
    return Operand(Reg(File.UP if uniform else File.P, index), inv=inv)


@cache
def tables_of(sm: int) -> Tables:
    """The tables of a generation. Raises CompileError where there are none."""
    if sm not in tables.GENERATIONS:
        raise CompileError(f"no instruction set for sm_{sm}", remedy=f"known are {', '.join(map(str, tables.GENERATIONS))}")
    return Tables(sm)


# ---------------------------------------------------------------------------------------------------------------------
# The two ways

def decode(word: int, address: int, sm: int) -> Instruction:
    """The instruction of a 128-bit word at a byte address. Raises IllegalInstruction where a bit is set that nothing of
    the form owns, or a field has a value without a meaning."""
    table = tables_of(sm)
    readers = table.readers(word & 0xFFF)
    if not readers:
        raise IllegalInstruction(address, f"sm_{sm} has no opcode {word & 0xFFF:#x} (word {word:#034x})")
    detail = ""
    for reader in readers:
        if word & reader.known == reader.value:
            try:
                mods, dsts, srcs = reader.read(word, address)
            except Misfit as e:
                detail = detail or f"{reader.form.op}: {e} (word {word:#034x})"
                continue
            form = reader.form
            control = table.controls.get(word >> 105)
            if control is None:
                control = table.controls[word >> 105] = _control(word, address)
            if form.op in derived:
                mods = derived[form.op](mods, srcs)
            guard = table.guards[form.uniform][word >> 12 & 15]
            return Instruction(form.op, mods, tuple(dsts), tuple(srcs), guard, control, address)
    if not detail:
        reader = min(readers, key=lambda r: ((word ^ r.value) & r.known).bit_count())
        wrong = (word ^ reader.value) & reader.known
        places = [n for n in range(128) if wrong >> n & 1]
        detail = f"{reader.form.op}: bits {places} are wrong (word {word:#034x})"
    raise IllegalInstruction(address, detail)


def _control(word: int, address: int) -> Control:
    stall, yields = word >> 105 & 15, not word >> 109 & 1
    if not yields and not 1 <= stall <= 11:
        raise IllegalInstruction(address, f"a stall of {stall} without the yield hint (word {word:#034x})")
    return Control(stall, yields, word >> 110 & 7, word >> 113 & 7, word >> 116 & 63)


def encode(i: Instruction, sm: int) -> int:
    """The 128-bit word. Raises CompileError where the generation has no such form, or something does not fit its field; a branch
    needs i.address."""
    table = tables_of(sm)
    writer = table.writer(i.op, i.mods, kinds(i.dsts), kinds(i.srcs))
    word, mods = writer.word, i.mods
    if writer.form.value & 0xFFF == ONE_REGISTER and i.srcs[0].value != i.srcs[1].value:
        raise CompileError(f"{i.op} takes one register that holds both the id and the number of threads", evidence=str(i))
    try:
        for slot, operand in zip(writer.dsts, i.dsts, strict=True):
            word |= slot.encode(operand, mods, i.address)
        for slot, operand in zip(writer.srcs, i.srcs, strict=True):
            word |= slot.encode(operand, mods, i.address)
        if i.control.yields and word >> 122:
            raise Misfit("an operand is marked for reuse where the warp yields")
        return word | _guard_bits(i.guard, writer.form) << 12 | _control_bits(i.control) << 105
    except Misfit as e:
        raise CompileError(f"sm_{sm} cannot encode {'.'.join((i.op, *mods))}: {e}", evidence=str(i)) from None


def _guard_bits(guard: Operand, form: Form) -> int:
    register = guard.value
    file = File.UP if form.uniform else File.P
    if not isinstance(register, Reg) or register.index > 7 or not (register.zero or register.file is file):
        raise Misfit(f"{register} is no guard here")
    return register.index | guard.inv << 3


def _control_bits(control: Control) -> int:
    if not 0 <= control.stall <= 15 or (not control.yields and not 1 <= control.stall <= 11):
        raise Misfit(f"a stall of {control.stall}{'' if control.yields else ' without the yield hint'}")
    if not (0 <= control.write <= 7 and 0 <= control.read <= 7 and 0 <= control.wait <= 63):
        raise Misfit(f"{control}")
    return control.stall | (not control.yields) << 4 | control.write << 5 | control.read << 8 | control.wait << 11
