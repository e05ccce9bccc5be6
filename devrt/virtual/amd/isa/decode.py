"""Machine code to Instructions. Strict: a reserved bit, an unknown opcode or register, or code that ends early is an error."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

from devrt.virtual.amd.isa import sources
from devrt.virtual.amd.isa.dpp import SELECTS, dpp8, dpp16, sdwa
from devrt.virtual.amd.isa.formats import WAVE_SIZE, Format, Gen, families, formats
from devrt.virtual.amd.isa.instruction import Dpp, IllegalInstruction, Instruction, Kind, Memory, Operand, Sdwa
from devrt.virtual.amd.isa.memory import Space, describe, returns
from devrt.virtual.amd.isa.opcodes import DUAL, Effect, Op, Slot, bits, opcodes

_IMMEDIATES = frozenset(
    ("simm16", "uimm16", "imm16", "hex16", "opt16", "rel", "waitcnt", "depctr", "delay", "hwreg", "msg", "bar"))
_ADDRESSES = Effect.INDIRECT | Effect.READS_M0     # jumps and s_movrel name registers
_TO_BYTE = ("v_cvt_sr_fp8_f32", "v_cvt_sr_bf8_f32")
_FROM_BYTE = ("v_cvt_f32_fp8", "v_cvt_f32_bf8")
_FROM_HALF = ("v_cvt_pk_f32_fp8", "v_cvt_pk_f32_bf8")
# Operand kinds that are effects as well: read, written.
_IMPLIED = {
    "vcc": (Effect.READS_VCC, Effect.WRITES_VCC), "vccz": (Effect.READS_VCC, Effect.NONE), "scc": (Effect.READS_SCC, Effect.NONE),
    "exec": (Effect.READS_EXEC, Effect.WRITES_EXEC), "execz": (Effect.READS_EXEC, Effect.NONE),
    "m0": (Effect.READS_M0, Effect.NONE),
}
_DUAL_RENAMED = {"v_max_f32": "v_max_num_f32", "v_min_f32": "v_min_num_f32"}


def decode(code: bytes | memoryview, offset: int, gen: Gen) -> Instruction:
    """The instruction of `code` at byte `offset`."""
    return _Decoder(code, offset, gen).instruction()


class _Decoder:
    """One instruction while it is taken apart."""

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

    def instruction(self) -> Instruction:
        name = self.fmt.name
        if name == "VOPD":
            return self.dual()
        family = ("FLAT", "SCRATCH", "GLOBAL", "")[self.fields["seg"]] if name == "FLAT" else name
        if not family:
            self.fail("unknown segment")
        self.op = self.find(family, self.fields["op"])
        if name in ("VOP1", "VOP2", "VOPC"):
            return self.short()
        if name == "VOP3":
            return self.long()
        if name == "VOP3P":
            return self.matrix() if self.op.family == "MAI" else self.packed()
        if name == "SMEM":
            return self.scalar_memory()
        if name in ("DS", "FLAT", "MUBUF"):
            return {"DS": self.lds, "FLAT": self.flat, "MUBUF": self.buffer}[name](family)
        return self.scalar()

    # Operands

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

    # Scalar unit

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

    # Vector unit

    def short(self) -> Instruction:
        """VOP1, VOP2, VOPC: 4 bytes, and a literal, DPP or SDWA dword."""
        fields, op = self.fields, self.op
        code = fields["src0"]
        suffix = "" if "e32" in op.words or not op.slots else "_e32"
        lanes: Dpp | None = None
        part: Sdwa | None = None
        extra: dict[str, int] = {}
        if code in (sources.DPP16, sources.DPP8, sources.DPP8FI):
            suffix, lanes, extra = "" if self.fmt.name == "VOPC" else "_dpp", *self.rearranged(code, op.dpp)
        elif code == sources.SDWA:
            suffix, part, extra = "_sdwa", *self.selected()
        names = ["src0"] if self.fmt.name == "VOP1" else ["src0", "vsrc1"]
        if self.fmt.name != "VOPC":
            names.insert(0, "vdst")
        if self.fmt.name == "VOP1" and not op.destinations:
            self.zero("vdst")
            names.pop(0)
        for slot in op.slots:
            if slot.type == "mask":
                if slot.written and extra.get("sd"):
                    self.sgpr("sdst", slot, extra["sdst"])
                else:
                    self.add("vcc", slot, "vcc", 0)
            elif slot.type == "exec":
                self.add("exec", slot, "exec", 0)
            elif slot.kinds == "K":
                self.literal = self.take(4) if self.literal is None else self.literal
                self.add("literal", slot, "literal", 0, value=sources.widen(self.literal, slot.type))
            elif names[0] == "vdst":
                self.result(slot, fields[names.pop(0)], short=True)
            else:
                self.short_source(names.pop(0), slot, lanes is not None, part is not None, extra)
        self.zero(*names)
        return self.finish(suffix, dpp=lanes, sdwa=part, clamp=bool(extra.get("clamp")), omod=extra.get("omod", 0))

    def result(self, slot: Slot, code: int, *, short: bool = False, acc: bool = False) -> None:
        if slot.kinds == "s" or slot.type == "mask":
            self.sgpr("vdst", slot, code)
        else:
            self.vgpr("vdst", slot, code, short=short, acc=acc or self.op.mnemonic.startswith("v_accvgpr_mov"))

    def short_source(self, name: str, slot: Slot, dpp: bool, part: bool, extra: dict[str, int]) -> None:
        """src0 or vsrc1, from the dword behind the instruction where that has it."""
        code = self.fields[name] if name == "src0" else self.fields[name] + 256
        index = "src0" if name == "src0" else "src1"
        if dpp and name == "src0":
            code = extra["src0"] + 256
        elif part:
            code = extra["src0"] if name == "src0" else self.fields[name]
            code += 0 if extra["s0" if name == "src0" else "s1"] else 256
        acc = self.op.mnemonic.startswith("v_accvgpr_mov")
        operand = self.source(name, slot, code, short=True, literals=not part, acc=acc)
        if extra:
            bit = 1 if name == "src0" else 2
            if self.fmt.name == "VOP1" and any(value for key, value in extra.items() if key.startswith("src1")):
                self.fail("modifiers of a second source")
            neg, absolute, sext = (bool(extra.get(f"{index}_{key}")) for key in ("neg", "abs", "sext"))
            if part and sext and neg or neg and not self.op.neg & bit or absolute and not self.op.abs & bit:
                self.fail(f"{name} takes no such modifier")
            select = SELECTS[extra[f"{index}_sel"]] if part else ""
            self.operands[-1] = replace(operand, neg=neg, abs=absolute, sext=sext, select=select)

    def rearranged(self, code: int, allowed: bool) -> tuple[Dpp, dict[str, int]]:
        """The DPP dword that `code` in src0 announces, and its fields."""
        name = {sources.DPP16: "DPP16", sources.DPP8: "DPP8", sources.DPP8FI: "DPP8FI"}[code]
        if not allowed or name not in formats(self.gen):
            self.fail(f"{self.op.mnemonic} takes no {name}")
        extra = formats(self.gen)[name].unpack(self.take(4))
        found = dpp16(extra, self.gen) if name == "DPP16" else dpp8(extra["sel"], name == "DPP8FI")
        if found is None:
            self.fail(f"unknown DPP control 0x{extra['ctrl']:x}")
        return found, extra

    def selected(self) -> tuple[Sdwa, dict[str, int]]:
        """The SDWA dword and its fields."""
        op, compare = self.op, self.fmt.name == "VOPC"
        if not op.sdwa or "SDWA" not in formats(self.gen):
            self.fail(f"{op.mnemonic} takes no SDWA")
        fmt = formats(self.gen)["SDWAC" if compare else "SDWA"]
        extra_word = self.take(4)
        if extra_word & fmt.reserved:
            self.fail(f"reserved bits of SDWA: 0x{extra_word & fmt.reserved:x}")
        extra = fmt.unpack(extra_word)
        found = sdwa(extra)
        if found is None or extra.get("omod") and not op.omod or compare and not extra["sd"] and extra["sdst"]:
            self.fail("SDWA selects what is not there")
        return found, extra

    def long(self) -> Instruction:
        """VOP3 and VOP3SD: 8 bytes, and a literal or a DPP dword."""
        op = self.op
        second = len(op.destinations) > 1 and op.destinations[1].type == "mask"
        if second:
            self.use(formats(self.gen)["VOP3SD"])
        fields = self.fields
        old = self.gen in ("gfx90a", "gfx942")
        count = sum(not slot.written or slot.read and i > 0 for i, slot in enumerate(op.slots))
        self.check("neg", op.neg, count)
        self.check("abs", op.abs, count)
        high = 0 if op.family == "VOPC" else 12 if op.mnemonic in _TO_BYTE else 8
        self.check("op_sel", op.op_sel, count, extra=op.op_sel & high)
        if fields["clamp"] and not op.clamp or fields["omod"] and not op.omod:
            self.fail("modifiers that the operation does not take")
        lanes: Dpp | None = None
        extra: dict[str, int] = {}
        if fields["src0"] in (sources.DPP16, sources.DPP8, sources.DPP8FI):
            lanes, extra = self.rearranged(fields["src0"], op.dpp64)
            if any(extra.get(f"src{i}_{key}") for i in (0, 1) for key in ("neg", "abs")):
                self.fail("the DPP dword of a long instruction has no neg and abs")
        position = 0
        written = False
        for slot in op.slots:
            if slot.written and not written:
                written = True
                self.destination(slot)
            elif slot.written and slot.type == "mask":
                self.sgpr("sdst", slot, fields["sdst"])
            else:
                code = fields[f"src{position}"]
                if extra and position == 0:
                    code = extra["src0"] + 256
                acc = op.mnemonic.startswith("v_accvgpr_mov")
                operand = self.source(f"src{position}", slot, code, literals=not old, acc=acc)
                self.operands[-1] = replace(
                    operand, neg=bool(fields["neg"] >> position & 1), abs=bool(fields.get("abs", 0) >> position & 1),
                    half=fields.get("op_sel", 0) >> position & 1 if bits(slot.type) == 16 else 0)
                position += 1
        self.zero(*("src0", "src1", "src2")[position:], *(() if written else ("vdst",)))
        self.bytes_selected()
        has_short = op.family != "VOP3" and op.family != "VOP3SD"
        suffix = ("_e64" if has_short and op.slots or lanes else "") + ("_dpp" if lanes else "")
        return self.finish(suffix, dpp=lanes, clamp=bool(fields["clamp"]), omod=fields["omod"], op_sel=fields.get("op_sel", 0))

    def bytes_selected(self) -> None:
        """op_sel of 8-bit float conversions chooses a byte of the destination, or a byte or half of the source."""
        name, chosen = self.op.mnemonic, self.fields.get("op_sel", 0)
        if name in _TO_BYTE:
            self.operands[0] = replace(self.operands[0], select=SELECTS[chosen >> 2])
        elif name in _FROM_BYTE:
            self.operands[1] = replace(self.operands[1], select=SELECTS[(chosen & 1) << 1 | chosen >> 1 & 1])
        elif name in _FROM_HALF:
            self.operands[1] = replace(self.operands[1], select=SELECTS[4 + (chosen & 1)])

    def destination(self, slot: Slot) -> None:
        """The first result of a VOP3: a vector register, or the mask of a compare."""
        code = self.fields["vdst"]
        if slot.type == "exec":
            if code != 126:
                self.fail("v_cmpx must write exec")
            self.add("exec", slot, "exec", 0)
            return
        self.result(slot, code)
        if bits(slot.type) == 16 and self.fields.get("op_sel", 0) & 8:
            self.operands[-1] = replace(self.operands[-1], half=1)

    def check(self, name: str, allowed: int, count: int, extra: int = 0) -> None:
        if self.fields.get(name, 0) & ~(allowed & (1 << count) - 1 | extra):
            self.fail(f"{name} that the operation does not take")

    def packed(self) -> Instruction:
        """VOP3P: packed pairs, dot products, mixed precision, WMMA."""
        op, fields = self.op, self.fields
        count = len(op.slots) - 1
        high = fields["op_sel_hi"] | fields["op_sel_hi2"] << 2
        self.check("neg", op.neg, count)
        self.check("neg_hi", op.neg_hi, count)
        self.check("op_sel", op.op_sel, count, extra=op.op_sel & 4)
        if fields["clamp"] and not op.clamp:
            self.fail("clamp that the operation does not take")
        lanes: Dpp | None = None
        extra: dict[str, int] = {}
        if fields["src0"] in (sources.DPP16, sources.DPP8, sources.DPP8FI):
            lanes, extra = self.rearranged(fields["src0"], op.dpp64)
        self.result(op.slots[0], fields["vdst"])
        mixed = op.slots[1].type == "mix"
        for i, slot in enumerate(op.slots[1:]):
            code = extra["src0"] + 256 if extra and i == 0 else fields[f"src{i}"]
            operand = self.source(f"src{i}", slot, code, literals=self.gen not in ("gfx90a", "gfx942"))
            upper = bool(fields["neg_hi"] >> i & 1)
            self.operands[-1] = replace(
                operand, neg=bool(fields["neg"] >> i & 1), neg_hi=upper and not mixed, abs=upper and mixed,
                half=fields["op_sel"] >> i & 1, half_hi=high >> i & 1)
        self.zero(*("src0", "src1", "src2")[count:])
        return self.finish("_e64_dpp" if lanes else "", dpp=lanes, clamp=bool(fields["clamp"]), op_sel=fields["op_sel"],
                           op_sel_hi=high, neg_hi=fields["neg_hi"])

    def matrix(self) -> Instruction:
        """MFMA and moves to and from the accumulation registers."""
        self.use(formats(self.gen)["MAI"])
        op, fields = self.op, self.fields
        move = op.mnemonic.startswith("v_accvgpr")
        if move and fields["abid"] == 8:        # LLVM writes the default op_sel_hi of VOP3P here
            fields = self.fields = {**fields, "abid": 0}
        if fields["cbsz"] and not op.cbsz or fields["abid"] and not op.abid or fields["blgp"] and not op.blgp:
            self.fail("cbsz, abid or blgp that the operation does not take")
        acc_cd = bool(fields["acc_cd"])
        self.result(op.slots[0], fields["vdst"], acc=op.mnemonic.startswith("v_accvgpr_write") or acc_cd and not move)
        for i, slot in enumerate(op.slots[1:]):
            acc = op.mnemonic.startswith("v_accvgpr_read") if move else bool(fields["acc"] >> i & 1) if i < 2 \
                else acc_cd and fields["src2"] >= 256 and slot.type != "u32"
            self.source(f"src{i}", slot, fields[f"src{i}"], literals=False, acc=acc)
        self.zero(*("src0", "src1", "src2")[len(op.slots) - 1:])
        return self.finish(matrix=(fields["cbsz"], fields["abid"], fields["blgp"]))

    def dual(self) -> Instruction:
        """VOPD: two operations at once, sharing a literal."""
        fields = self.fields
        both = {"x": self.half(fields["opx"]), "y": self.half(fields["opy"])}
        results = {"x": fields["vdstx"], "y": fields["vdsty"] << 1 | ~fields["vdstx"] & 1}
        parts = []
        for side, (name, op) in both.items():
            self.op, self.operands = op, []
            names = [f"src{side}0", f"vsrc{side}1"]
            for slot in op.slots:
                if slot.type == "mask":
                    self.add("vcc", slot, "vcc", 0)
                elif slot.kinds == "K":
                    self.literal = self.take(4) if self.literal is None else self.literal
                    self.add("literal", slot, "literal", 0, value=self.literal)
                elif slot.written:
                    self.vgpr(f"vdst{side}", slot, results[side])
                else:
                    field = names.pop(0)
                    self.source(field, slot, fields[field] + (256 if field.startswith("v") else 0))
            self.zero(*names)
            parts.append(replace(self.finish(), mnemonic=name))
        first, second = (replace(part, size=self.size) for part in parts)
        return replace(first, mnemonic=f"{first.mnemonic} :: {second.mnemonic}", operands=first.operands + second.operands,
                       effects=first.effects | second.effects, parts=(first, second))

    def half(self, code: int) -> tuple[str, Op]:
        """The printed name of a VOPD operation, and the short instruction it is."""
        name = DUAL.get(code)
        if name is None or code > 15 and code == self.fields["opx"] and self.fields["opx"] > 15:
            self.fail(f"unknown VOPD operation {code}")
        table = opcodes("gfx1100")
        found = next((op for family in ("VOP2", "VOP1") for op in table[family].values() if op.mnemonic == name), None)
        if found is None:
            self.fail(f"unknown VOPD operation {code}")
        if self.gen == "gfx1201":
            name = _DUAL_RENAMED.get(name, name)
        return name.replace("v_", "v_dual_", 1), found

    # Vector memory

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
