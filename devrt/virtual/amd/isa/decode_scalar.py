"""Decoding of the scalar unit: SOP2, SOP1, SOPC, SOPK, SOPP, and of scalar memory: SMEM."""

from __future__ import annotations

from dataclasses import replace

from devrt.virtual.amd.isa import sources
from devrt.virtual.amd.isa.instruction import Instruction
from devrt.virtual.amd.isa.memory import describe
from devrt.virtual.amd.isa.opcodes import Effect, Slot
from devrt.virtual.amd.isa.reader import Reader

_IMMEDIATES = frozenset(
    ("simm16", "uimm16", "imm16", "hex16", "opt16", "rel", "waitcnt", "depctr", "delay", "hwreg", "msg", "bar"))
_ADDRESSES = Effect.INDIRECT | Effect.READS_M0     # jumps and s_movrel name registers


class Scalar(Reader):
    """The scalar formats."""

    def scalar(self) -> Instruction:
        fields, slots = self.fields, list(self.op.slots)
        target = None
        registers = [name for name in ("ssrc0", "ssrc1") if name in fields]
        immediate = fields.get("simm16", 0)
        used = set()
        for slot in slots:
            if slot.type in _IMMEDIATES and not registers:
                used.add("simm16")
                value = immediate
                if slot.type in ("simm16", "rel", "bar"):
                    value = (immediate ^ 0x8000) - 0x8000
                if slot.type == "rel":
                    target = self.address + 4 + 4 * value
                self.add("simm16", slot, "imm", 0, value=value)
            elif slot.type == "null":
                if fields["sdst"] != sources.NULL[self.gen]:
                    self.fail("sdst must be null")
                used.add("sdst")
                self.add("sdst", slot, "null", 0)
            elif slot.kinds == "K":
                self.literal = self.take(4) if self.literal is None else self.literal
                self.add("literal", slot, "literal", 0, value=self.literal)
            elif slot.written or not registers:
                used.add("sdst")
                self.sgpr("sdst", slot, fields["sdst"])
            else:
                name = registers.pop(0)
                used.add(name)
                if slot.type == "msg":
                    self.add(name, slot, "imm", 0, value=fields[name])
                elif self.source(name, slot, fields[name]).constant and self.op.effects & _ADDRESSES:
                    self.fail(f"{name} must be a register")
        self.zero(*({"sdst", "ssrc0", "ssrc1", "simm16"} - used))
        return self.finish(target=target)

    def scalar_memory(self) -> Instruction:
        fields, gen = self.fields, self.gen
        used = {"op", "th", "scope", "glc", "dlc"}
        offset = 0
        for slot in self.op.slots:
            if slot.type == "off":
                used |= {"offset", "soffset", "imm", "soffset_en"}
                offset = self.scalar_offset(slot)
            elif slot.written:
                used.add("sdata")
                if self.sgpr("sdata", slot, fields["sdata"]).kind in ("exec", "m0"):
                    self.fail("sdata must not be exec or m0")
            else:
                used.add("sbase")
                self.sgpr("sbase", slot, fields["sbase"] * 2)
                if slot.type == "rsrc" and gen == "gfx1201" and fields["offset"] >> 23:
                    self.fail("negative offset")
        if gen != "gfx90a" and gen != "gfx942" and self.op.slots == ():
            self.fields = {**fields, "soffset": 0} if fields["soffset"] == sources.NULL[gen] else fields
        self.zero(*(set(fields) - used))
        return self.finish(memory=describe(self.op, self.fields, gen, "constant", offset) if self.op.memory else None)

    def scalar_offset(self, slot: Slot) -> int:
        """Adds the register of the offset, if there is one, and gives the constant."""
        fields, old = self.fields, self.gen in ("gfx90a", "gfx942")
        width = 24 if self.gen == "gfx1201" else 21
        offset = (fields["offset"] ^ 1 << width - 1) - (1 << width - 1)
        register = replace(slot, type="u32")
        if old and not fields["imm"]:
            if fields["offset"] >> 7 or fields["soffset_en"] or fields["soffset"]:
                self.fail("a scalar memory offset that is neither a register nor a constant")
            self.sgpr("soffset", register, fields["offset"])
            return 0
        if fields["soffset_en"] if old else fields["soffset"] != sources.NULL[self.gen]:
            self.sgpr("soffset", register, fields["soffset"])
        elif old and fields["soffset"]:
            self.fail("soffset must be 0")
        return offset
