"""Decoding of vector memory: DS, FLAT, SCRATCH, GLOBAL, MUBUF."""

from __future__ import annotations

from dataclasses import replace

from devrt.virtual.amd.isa import sources
from devrt.virtual.amd.isa.instruction import Instruction, Memory, Operand
from devrt.virtual.amd.isa.memory import Space, describe, returns
from devrt.virtual.amd.isa.opcodes import Effect, Slot
from devrt.virtual.amd.isa.reader import Reader


class VectorMemory(Reader):
    """The memory formats."""

    def access(self, space: Space, offset: int) -> Memory | None:
        return describe(self.op, self.fields, self.gen, space, offset) if self.op.memory else None

    def lds(self, family: str) -> Instruction:
        op, fields = self.op, self.fields
        acc = bool(fields.get("acc"))
        names = ["data0", "data1"]
        used = {"op", "acc", "offset0", "offset1"} if op.slots else {"op"}
        used |= {"gds"} if op.memory and self.gen in ("gfx1030", "gfx1100") else set()
        for slot in op.slots:
            if slot.written:
                name = "vdst"
            elif slot.type == "u32" and "addr" not in used and "addtid" not in op.words or op.mnemonic == "ds_swizzle_b32":
                name = "addr"
            else:
                name = names.pop(0)
            used.add(name)
            self.vgpr(name, slot, fields[name], acc=acc and name != "addr")
        self.zero(*(set(fields) - used))
        return self.finish(memory=self.access("lds", fields["offset0"] | fields["offset1"] << 8))

    def flat(self, family: str) -> Instruction:
        """FLAT, SCRATCH and GLOBAL: a vector address, a scalar base, or both."""
        op, fields, gen = self.op, dict(self.fields), self.gen
        if gen == "gfx1201":
            fields["data"] = fields.pop("vsrc")
        self.fields = fields
        acc = bool(fields.get("acc"))
        used = {"op", "seg", "acc", "offset", "scope", "th", "glc", "slc", "dlc", "sc0", "sc1", "nt", "scc", "saddr"}
        null = fields["saddr"] == sources.NULL[gen]
        vector, base = False, None
        if op.slots:
            vector, base = self.flat_address(family, null)
            vector = vector and "addtid" not in op.words
        for slot in op.slots:
            if slot.optional and not returns(op, fields):
                continue
            name = "vdst" if slot.written or slot.optional else "addr" if slot.type == "addr" else "data"
            used.add(name)
            if name != "addr":
                self.vgpr(name, replace(slot, written=name == "vdst", read=slot.read), fields[name], acc=acc)
            elif vector:
                wide = family == "FLAT" or family == "GLOBAL" and base is None
                self.vgpr("addr", Slot("b64" if wide else "u32", read=True), fields["addr"])
            elif "addtid" in op.words:
                used.discard("addr")
            else:
                used.discard("addr")
                self.operands.append(Operand("addr", "off", type="u32"))
        if base is not None:
            if self.sgpr("saddr", Slot("b64" if family == "GLOBAL" else "u32", read=True), base).kind == "exec":
                self.fail("saddr must not be exec")
        elif op.slots and family != "FLAT":
            self.operands.append(Operand("saddr", "off", type="u32"))
        if family == "SCRATCH" and op.slots:
            used.add("sve")
        self.zero(*(set(fields) - used))
        return self.finish(memory=self.access({"FLAT": "flat", "SCRATCH": "scratch"}.get(family, "global"),  # type: ignore[arg-type]
                                              self.flat_offset(family)))

    def flat_address(self, family: str, null: bool) -> tuple[bool, int | None]:
        """Whether there is a vector address, and the scalar register if there is one."""
        fields, gen = self.fields, self.gen
        if family == "FLAT":
            if fields["saddr"] != (0 if gen in ("gfx90a", "gfx942") else sources.NULL[gen]):
                self.fail("saddr must be null")
            return True, None
        if family == "GLOBAL":
            return True, None if null else fields["saddr"]
        if "sve" in fields:
            return bool(fields["sve"]), None if null else fields["saddr"]
        if gen == "gfx1030" and fields["saddr"] == 127:
            return False, None
        return null, None if null else fields["saddr"]

    def flat_offset(self, family: str) -> int:
        """The constant offset in bytes: signed, in FLAT unsigned and without the sign bit before gfx12."""
        high = self.fmt.fields["offset"][1]
        value = self.fields["offset"]
        if family == "FLAT" and self.gen != "gfx1201":
            if value > high >> 1:
                self.fail("negative offset")
            return value
        return value - (high + 1) if value > high >> 1 else value

    def buffer(self, family: str) -> Instruction:
        """MUBUF: vdata, vaddr, descriptor, scalar offset."""
        op, fields, gen = self.op, self.fields, self.gen
        acc = bool(fields.get("acc"))
        used = {"op"}
        if op.slots or op.mnemonic.startswith(("buffer_wbl2", "buffer_inv")):
            used |= {"acc", "offset", "offen", "idxen", "scope", "th", "glc", "slc", "sc0", "sc1", "nt", "scc"}
        if Effect.ATOMIC not in op.effects or gen != "gfx1030":
            used.add("dlc")
        if op.memory in ("load.u8", "load.i8", "load.u16", "load.i16", "load.b32"):
            used.add("lds")
        if op.slots:
            used |= {"vaddr", "srsrc", "soffset"}
            wide = bool(fields["offen"] and fields["idxen"])
            data = [slot for slot in op.slots if slot.type != "rsrc" and not fields.get("lds")]
            if data:
                used.add("vdata")
                self.buffer_data(data, acc)
            if fields["offen"] or fields["idxen"]:
                self.vgpr("vaddr", Slot("b64" if wide else "u32", read=True), fields["vaddr"])
            else:
                self.zero("vaddr")
                self.operands.append(Operand("vaddr", "off", type="u32"))
            self.sgpr("srsrc", Slot("b128", read=True), fields["srsrc"] * (1 if gen == "gfx1201" else 4))
            self.source("soffset", Slot("u32", read=True), fields["soffset"], literals=False)
        if gen == "gfx1201":
            used.add("format")
        self.zero(*(set(fields) - used))
        return self.finish(memory=self.access("buffer", self.buffer_offset()))

    def buffer_data(self, data: list[Slot], acc: bool) -> None:
        """vdata: loaded, stored, or for an atomic both."""
        stored = next((slot for slot in data if not slot.optional), data[0])
        both = any(slot.optional for slot in data) and returns(self.op, self.fields)
        self.vgpr("vdata", replace(stored, written=stored.written or both), self.fields["vdata"], acc=acc)

    def buffer_offset(self) -> int:
        if self.gen == "gfx1201" and self.fields["offset"] >> 23:
            self.fail("negative offset")
        return self.fields["offset"]
