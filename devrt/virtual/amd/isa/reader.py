"""One instruction while it is taken apart: its words, fields and operands."""

from __future__ import annotations

from typing import NoReturn

from devrt.virtual.amd.isa import sources
from devrt.virtual.amd.isa.formats import WAVE_SIZE, Format, Gen, families
from devrt.virtual.amd.isa.instruction import IllegalInstruction, Instruction, Kind, Operand
from devrt.virtual.amd.isa.opcodes import Effect, Op, Slot, bits, opcodes

# Operand kinds that are effects as well: read, written.
_IMPLIED = {
    "vcc": (Effect.READS_VCC, Effect.WRITES_VCC), "vccz": (Effect.READS_VCC, Effect.NONE), "scc": (Effect.READS_SCC, Effect.NONE),
    "exec": (Effect.READS_EXEC, Effect.WRITES_EXEC), "execz": (Effect.READS_EXEC, Effect.NONE),
    "m0": (Effect.READS_M0, Effect.NONE),
}


class Reader:
    """Code at an address; every check that fails is an IllegalInstruction."""

    def __init__(self, code: bytes | memoryview, address: int, gen: Gen) -> None:
        self.gen, self.address = gen, address
        self.modern = gen in ("gfx1100", "gfx1201")      # 16-bit operands are halves of registers
        self.available = min(len(code) - address, 20) if address >= 0 else 0
        self.word = int.from_bytes(code[address:address + 20], "little") if address >= 0 else 0
        if address % 4 or self.available < 4:
            self.fail("address not aligned to 4" if address % 4 else "the code ends here")
        for fmt in families(gen):
            if self.word & fmt.mask == fmt.match:
                break
        else:
            self.fail("unknown encoding")
        self.size = 0
        self.operands: list[Operand] = []
        self.literal: int | None = None
        self.op: Op
        self.use(fmt)

    def fail(self, reason: str) -> NoReturn:
        count = min(max(self.available // 4, 0), max(getattr(self, "size", 0) // 4, 2))
        words = tuple(self.word >> 32 * i & 0xFFFFFFFF for i in range(count))
        raise IllegalInstruction(self.address, words, self.gen, reason)

    def use(self, fmt: Format) -> None:
        self.fmt = fmt
        if self.size == 0:
            self.take(fmt.size)
        if self.word & fmt.reserved & ((1 << 8 * fmt.size) - 1):
            self.fail(f"reserved bits of {fmt.name}: 0x{self.word & fmt.reserved:x}")
        self.fields = fmt.unpack(self.word)

    def take(self, count: int) -> int:
        """The next `count` bytes as a number."""
        if self.size + count > self.available:
            self.size += count
            self.fail("the code ends within it")
        value = self.word >> 8 * self.size & (1 << 8 * count) - 1
        self.size += count
        return value

    def zero(self, *names: str) -> None:
        """Fields that this opcode does not have must be 0."""
        for name in names:
            if self.fields.get(name):
                self.fail(f"{name} must be 0")

    def find(self, family: str, code: int) -> Op:
        op = opcodes(self.gen)[family].get(code)
        if op is None:
            self.fail(f"unknown {family} opcode 0x{code:x}")
        return op

    def dwords(self, slot: Slot) -> int:
        return WAVE_SIZE[self.gen] // 32 if slot.type in ("mask", "exec") else slot.dwords

    def add(self, name: str, slot: Slot, kind: Kind, index: int, *, value: int = 0, half: int = 0, type: str = "") -> Operand:
        operand = Operand(name, kind, index, self.dwords(slot), type or slot.type, slot.written, slot.read, value, half=half)
        self.operands.append(operand)
        return operand

    def sgpr(self, name: str, slot: Slot, code: int) -> Operand:
        found = sources.scalar(code, self.dwords(slot), self.gen)
        if found is None:
            self.fail(f"{name} is no scalar register of {self.dwords(slot)} dwords: {code}")
        return self.add(name, slot, *found)

    def vgpr(self, name: str, slot: Slot, index: int, *, short: bool = False, acc: bool = False) -> Operand:
        half = 0
        if short and self.modern and bits(slot.type) == 16:
            index, half = index & 127, index >> 7
        if index + slot.dwords > 256 or self.gen in ("gfx90a", "gfx942") and slot.dwords > 1 and index % 2:
            self.fail(f"{name} is no vector register of {slot.dwords} dwords: v{index}")
        return self.add(name, slot, "acc" if acc else "vgpr", index, half=half)

    def source(self, name: str, slot: Slot, code: int, *, short: bool = False, literals: bool = True,
               acc: bool = False) -> Operand:
        if code >= 256:
            if slot.kinds == "s" or slot.type == "mask":
                self.fail(f"{name} must be scalar")
            return self.vgpr(name, slot, code - 256, short=short, acc=acc)
        if slot.kinds == "v" or acc:
            self.fail(f"{name} must be a vector register")
        if code < 128:
            if slot.kinds == "vc":
                self.fail(f"{name} must be a vector register or a constant")
            return self.sgpr(name, slot, code)
        if slot.type == "mask":
            self.fail(f"{name} must be a mask register")
        if code == sources.LITERAL:
            if not literals or slot.kinds == "vc":
                self.fail(f"{name} takes no literal")
            if self.literal is None:
                self.literal = self.take(4)
            return self.add(name, slot, "literal", 0, value=sources.widen(self.literal, slot.type))
        constant = sources.inline(code, slot.type)
        if constant:
            return self.add(name, slot, constant[0], code, value=constant[1])
        found = sources.special(code)
        if found is None or slot.kinds == "vc":
            self.fail(f"{name} has an unknown source code: {code}")
        return self.add(name, slot, *found)

    def finish(self, suffix: str = "", **more: object) -> Instruction:
        effects = self.op.effects
        for operand in self.operands:
            reads, writes = _IMPLIED.get(operand.kind, (Effect.NONE, Effect.NONE))
            effects |= (reads if operand.src else Effect.NONE) | (writes if operand.dst else Effect.NONE)
        family = self.op.family if self.op.family in ("SCRATCH", "GLOBAL") else self.fmt.name
        return Instruction(self.address, self.size, self.gen, self.op.mnemonic, family, suffix, tuple(self.operands), effects,
                           self.fields, **more)  # type: ignore[arg-type]
