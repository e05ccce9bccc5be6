"""Decoding of the vector unit: VOP1, VOP2, VOPC, VOP3, VOP3P, MFMA, VOPD, with literals, DPP and SDWA."""

from __future__ import annotations

from dataclasses import replace

from devrt.virtual.amd.isa import sources
from devrt.virtual.amd.isa.dpp import SELECTS, dpp8, dpp16, sdwa
from devrt.virtual.amd.isa.formats import formats
from devrt.virtual.amd.isa.instruction import Dpp, Instruction, Sdwa
from devrt.virtual.amd.isa.opcodes import DUAL, Op, Slot, bits, opcodes
from devrt.virtual.amd.isa.reader import Reader

_TO_BYTE = ("v_cvt_sr_fp8_f32", "v_cvt_sr_bf8_f32")
_FROM_BYTE = ("v_cvt_f32_fp8", "v_cvt_f32_bf8")
_FROM_HALF = ("v_cvt_pk_f32_fp8", "v_cvt_pk_f32_bf8")
_DUAL_RENAMED = {"v_max_f32": "v_max_num_f32", "v_min_f32": "v_min_num_f32"}


class Vector(Reader):
    """The vector formats."""

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
        if name is None:
            self.fail(f"unknown VOPD operation {code}")
        table = opcodes("gfx1100")
        found = next((op for family in ("VOP2", "VOP1") for op in table[family].values() if op.mnemonic == name), None)
        if found is None:
            self.fail(f"unknown VOPD operation {code}")
        if self.gen == "gfx1201":
            name = _DUAL_RENAMED.get(name, name)
        return name.replace("v_", "v_dual_", 1), found
