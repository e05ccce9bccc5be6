"""Assembler text of an Instruction as LLVM writes it."""

from __future__ import annotations

import re

from devrt.virtual.amd.isa.immediates import immediate
from devrt.virtual.amd.isa.instruction import APERTURES, Instruction, Operand
from devrt.virtual.amd.isa.memory import cache
from devrt.virtual.amd.isa.opcodes import Op, bits, opcodes
from devrt.virtual.amd.isa.sources import INLINE_FLOATS

_PAIRS = ("vcc", "exec", "flat_scratch", "xnack_mask")
_LETTERS = {"sgpr": "s", "vgpr": "v", "acc": "a", "ttmp": "ttmp"}
_OMOD = ("", " mul:2", " mul:4", " div:2")


def text(instruction: Instruction) -> str:
    """One line of assembler without its label or comment."""
    if instruction.parts:
        return " :: ".join(f"{part.mnemonic} {_list(part, part.operands)}" for part in instruction.parts)
    line = f"{instruction.mnemonic}{instruction.suffix} {_list(instruction, instruction.operands)}".strip()
    return line + _modifiers(instruction)


def _list(instruction: Instruction, operands: tuple[Operand, ...]) -> str:
    named: dict[str, str] = {}
    for operand in operands:
        if operand.name == "exec" or instruction.format == "VOPD" and operand.type == "mask":
            continue
        name = operand.name
        while name in named:
            name += "'"
        named[name] = _operand(instruction, operand)
    if instruction.memory is not None and instruction.memory.space == "constant":
        return _scalar_memory(instruction, named)
    return ", ".join(shown for shown in named.values() if shown)


def _scalar_memory(instruction: Instruction, named: dict[str, str]) -> str:
    assert instruction.memory is not None
    register, offset = named.pop("soffset", ""), instruction.memory.offset
    shown = [*named.values(), register or _hex(offset)]
    fixed = instruction.gen not in ("gfx90a", "gfx942") or instruction.fields["imm"]
    return ", ".join(shown) + (f" offset:{_hex(offset)}" if register and fixed and offset else "")


def _hex(value: int) -> str:
    return f"-0x{-value:x}" if value < 0 else f"0x{value:x}"


def register(operand: Operand) -> str:
    """The name of a register (tuple) without halves and modifiers."""
    if operand.kind in _PAIRS:
        return operand.kind if operand.dwords == 2 else f"{operand.kind}_{('lo', 'hi')[operand.index]}"
    if letter := _LETTERS.get(operand.kind):
        last = operand.index + operand.dwords - 1
        return f"{letter}[{operand.index}:{last}]" if operand.dwords > 1 else f"{letter}{operand.index}"
    if operand.kind == "aperture":
        return APERTURES[operand.index]
    return operand.kind if operand.kind in ("m0", "null", "off") else f"src_{operand.kind}"


def _constant(operand: Operand) -> str:
    if operand.kind == "int":
        return str(operand.index - 128 if operand.index <= 192 else 192 - operand.index)
    if operand.kind == "float" and operand.type in ("b16", "i16", "u16"):
        return f"0x{operand.value:x}"
    if operand.kind == "float":
        short = operand.index == 248 and bits(operand.type) != 64
        return "0.15915494" if short else str(INLINE_FLOATS[operand.index])
    return f"0x{operand.value >> 32 if operand.type == 'f64' else operand.value & 0xFFFFFFFF:x}"


def _operand(instruction: Instruction, operand: Operand) -> str:
    if operand.kind == "imm":
        return immediate(instruction, operand)
    packed = instruction.format == "VOP3P" and operand.type != "mix"
    if operand.kind in ("int", "float", "literal"):
        shown = _constant(operand)
        if operand.neg and not packed and not operand.abs:
            return f"neg({shown})"
    else:
        shown = register(operand)
        if operand.kind == "vgpr" and bits(operand.type) == 16 and instruction.gen == "gfx1100" and instruction.format != "VOP3P":
            shown += ".h" if operand.half else ".l"
        elif operand.half and instruction.format in ("VOP1", "VOP2", "VOPC"):
            shown += ".h"
    if operand.sext:
        shown = f"sext({shown})"
    if operand.abs:
        shown = f"|{shown}|"
    return f"-{shown}" if operand.neg and not packed else shown


def _bits(name: str, value: int, count: int) -> str:
    return f" {name}:[{','.join(str(value >> i & 1) for i in range(count))}]"


def _modifiers(instruction: Instruction) -> str:
    line = ""
    if instruction.format == "VOP3P":
        line = _packed(instruction)
    elif instruction.format == "MAI":
        cbsz, abid, blgp = instruction.matrix
        line = "".join(f" {name}:{value}" for name, value in (("cbsz", cbsz), ("abid", abid)) if value)
        if blgp:
            line += _bits("neg", blgp, 3) if instruction.mnemonic.endswith("_f64") else f" blgp:{blgp}"
    elif instruction.format in ("VOP3", "VOP3SD"):
        line = _selected(instruction, opcodes(instruction.gen)["VOP3"][instruction.fields["op"]])
    line += " clamp" * instruction.clamp + _OMOD[instruction.omod]
    if lanes := instruction.dpp:
        line += f" {lanes.control}"
        if lanes.operation != "dpp8":
            line += f" row_mask:0x{lanes.row_mask:x} bank_mask:0x{lanes.bank_mask:x}" + " bound_ctrl:1" * lanes.bound_ctrl
        line += " fi:1" * lanes.fi
    if part := instruction.sdwa:
        whole = re.match(r"v_cvt_(pk_)?f32_(fp8|bf8)", instruction.mnemonic)  # nothing smaller is ever written
        line += f" dst_sel:{part.dst_sel} dst_unused:{part.dst_unused}" if part.dst_sel and not whole else ""
        chosen = [operand.select for operand in instruction.operands if operand.select]
        line += "".join(f" src{i}_sel:{select}" for i, select in enumerate(chosen))
    return line + _memory(instruction)


def _selected(instruction: Instruction, op: Op) -> str:
    """op_sel of a VOP3: an entry per source and one for the destination; not of halves that have names."""
    value = instruction.op_sel
    sources = [operand for operand in instruction.operands if operand.name.startswith("src")]
    if instruction.gen == "gfx1100":
        named = sum(1 << i for i, operand in enumerate(sources) if operand.kind == "vgpr" and bits(operand.type) == 16)
        value &= ~(named | (8 if bits(instruction.operands[0].type) == 16 else 0)) if instruction.operands else value
    if not value:
        return ""
    chosen = [operand.select for operand in instruction.operands if operand.select.startswith("BYTE")]
    if chosen and instruction.gen == "gfx1201":
        return f" byte_sel:{chosen[0][-1]}"
    if value & 4 and len(sources) == 2:
        return _bits("op_sel", value, 4)
    if not op.op_sel & 8:
        return _bits("op_sel", value, (op.op_sel & (1 << len(sources)) - 1).bit_length())
    return _bits("op_sel", value & (1 << len(sources)) - 1 | value >> 3 << len(sources), len(sources) + 1)


def _packed(instruction: Instruction) -> str:
    sources = [operand for operand in instruction.operands if operand.name.startswith("src")]
    op = opcodes(instruction.gen)["VOP3P"][instruction.fields["op"]]
    count, full = len(sources), (1 << len(sources)) - 1
    mixed = sources[0].type == "mix"
    line = ""
    if instruction.op_sel:
        line += _bits("op_sel", instruction.op_sel, count)
    high = instruction.op_sel_hi & full
    if op.op_sel_hi and high != (0 if mixed else full):
        line += _bits("op_sel_hi", high, count)
    if not mixed:
        low = sum(operand.neg << i for i, operand in enumerate(sources))
        line += _bits("neg_lo", low, count) if low else ""
        line += _bits("neg_hi", instruction.neg_hi, count) if instruction.neg_hi else ""
    return line


def _memory(instruction: Instruction) -> str:
    fields, memory = instruction.fields, instruction.memory
    line = ""
    if instruction.format == "MUBUF":
        line += " idxen" * fields["idxen"] + " offen" * fields["offen"]
    if instruction.format == "DS" and instruction.operands:
        if memory is not None and memory.offsets:
            line += "".join(f" {name}:{fields[name]}" for name in ("offset0", "offset1") if fields[name])
        elif value := fields["offset0"] | fields["offset1"] << 8:
            line += f" offset:{immediate(instruction, instruction.operands[0], swizzle=value)}"
        line += " gds" * fields.get("gds", 0)
    elif memory is not None:
        if memory.offset and memory.space != "constant":
            line += f" offset:{memory.offset}"
        line += "".join(f" {name}" for name in memory.cache)
        line += " lds" * (memory.to_lds and instruction.format == "MUBUF" and "_lds" not in instruction.mnemonic)
    elif ("th" in fields or "glc" in fields or "sc0" in fields) and instruction.gen != "gfx90a":
        line += "".join(f" {name}" for name in cache(fields, "load"))
    return line + " tfe" * fields.get("tfe", 0)
