"""Instructions as nvdisasm prints them."""

from __future__ import annotations

import math
import struct
from functools import cache

from devrt.compiler.sass.instruction import PT, TRUE, UPT, Address, Cbuf, File, Imm, Instruction, Label, Operand, Reg, Special
from devrt.compiler.sass.isa.codec import absent, kinds, tables_of
from devrt.compiler.sass.isa.fields import Mods
from devrt.compiler.sass.isa.slots import AddressSlot, CbufSlot, ImmSlot, Slot
from devrt.compiler.sass.isa.special import SPECIAL
from devrt.compiler.sass.isa.tables import GENERATIONS
from devrt.device import CompileError


@cache
def _slots(op: str, mods: Mods, dsts: str, srcs: str, asked: int) -> tuple[Slot | None, ...]:
    """The slots of an instruction's operands, from the generation that is asked for or another; None where none has it."""
    for sm in sorted(GENERATIONS, key=lambda sm: (sm != asked, sm)):
        try:
            writer = tables_of(sm).writer(op, mods, dsts, srcs)
        except CompileError:
            continue
        return (*writer.dsts, *writer.srcs)
    return (None,) * 16


def text(i: Instruction, sm: int = 90) -> str:
    """The instruction without its semicolon, as the disassembler of a generation writes it; a label is an address, or `(name)
    before layout. What no table has is printed all the same (virtual registers, say)."""
    slots = _slots(i.op, i.mods, kinds(i.dsts), kinds(i.srcs), sm)
    dsts = i.dsts
    if i.op in ("IADD3", "UIADD3") and sm >= 100:  # from Blackwell on both carries are printed
        missing = 3 - len(dsts)
        dsts = (*dsts, *[TRUE if i.op == "IADD3" else Operand(UPT)] * missing)
        slots = (slots[0], None, None, *slots[3 - missing:])
    guard = "" if i.guard.value in (PT, UPT) and not i.guard.inv else f"@{_operand(i.guard, None, sm)} "
    operands = [_operand(o, slot, sm) for o, slot in zip((*dsts, *i.srcs), slots, strict=False)
                if not (slot and slot.optional and absent(slot, o))]
    if i.op in ("BRX", "BRXU", "CALL", "RET") and len(operands) > 1:  # a register and what is added to it
        if i.op in ("BRX", "BRXU") and isinstance(i.srcs[-1].value, Label) and not isinstance(i.srcs[-1].value.target, str):
            operands[-1] = f"{i.srcs[-1].value.target - i.address - 16:#x}"
        operands[-2:] = [" ".join(operands[-2:])]
    return f"{guard}{'.'.join((i.op, *i.mods))}{' ' if operands else ''}{', '.join(operands)}".rstrip()


INSIDE = ("H1", "B1", "B2", "B3")  # parts that stand within the bars of an absolute value; of constants all do


def _operand(operand: Operand, slot: Slot | None, sm: int) -> str:
    value = operand.value
    if isinstance(value, Reg):
        body = "PR" if value == Reg(File.P, 0, 7) else str(value)
    elif isinstance(value, Imm):
        return constant(value, slot.style if isinstance(slot, ImmSlot) else "hex")
    elif isinstance(value, Cbuf):
        body = _cbuf(value, slot)
    elif isinstance(value, Address):
        body = _address(value, slot, sm)
    elif isinstance(value, Special):
        return SPECIAL.get(value.number, f"SR{value.number}")
    else:
        return _label(value)
    inside = operand.abs and operand.select in INSIDE or not (isinstance(value, Reg) and value.file is File.R)
    if operand.select and inside:
        body += f".{operand.select}"
    if operand.abs:
        body = f"|{body}|"
    if operand.reuse:
        body += ".reuse"
    if operand.select and not inside:
        body += f".{operand.select}"
    if operand.neg:
        body = f"-{body}"
    if operand.inv:
        body = ("!" if isinstance(value, Reg) and value.file in (File.P, File.UP) else "~") + body
    return body


def _label(label: Label) -> str:
    return f"`({label.target})" if isinstance(label.target, str) else f"{label.target:#x}"


def _cbuf(cbuf: Cbuf, slot: Slot | None) -> str:
    bank = f"c[{cbuf.bank:#x}]" if cbuf.handle is None else f"cx[{cbuf.handle}]"
    if cbuf.index is None:
        where = f"{cbuf.offset:#x}"
        if isinstance(slot, CbufSlot) and slot.index and not cbuf.offset:
            where = str(Reg(slot.index.file, 255))
        return f"{bank}{' ' if slot and slot.select else ''}[{where}]"
    return f"{bank}[{cbuf.index}{f'+{cbuf.offset:#x}' if cbuf.offset else ''}]"


def _address(address: Address, slot: Slot | None, sm: int) -> str:
    parts = []
    base = address.base
    sums = isinstance(slot, AddressSlot) and slot.wide == 90
    if address.uniform:
        hidden = address.scale == 1 and not (sums and base and base.words == 1 and sm >= 90)
    else:
        hidden = bool(address.offset) and address.descriptor is None
    if base is not None and not (base.zero and hidden):
        wide = ".64" if base.words == 2 and (address.uniform or address.descriptor) else \
            ".U32" if sums else ""
        parts.append(f"{base}{wide}{f'.X{address.scale}' if address.scale > 1 else ''}")
    if address.uniform is not None:
        parts.append(str(address.uniform))
    offset = address.offset
    if isinstance(slot, AddressSlot) and parts == {"alone": [], "uniform": [str(address.uniform)]}.get(slot.unsigned):
        offset &= (1 << slot.offset.width) - 1
    if offset or not parts:
        parts.append(f"{offset:#x}")
    body = f"[{'+'.join(parts)}]"
    return body if address.descriptor is None or sm < 90 else f"desc[{address.descriptor}]{body}"


# ---------------------------------------------------------------------------------------------------------------------
# Constants

def constant(imm: Imm, style: str) -> str:
    """Raw bits as "int" (signed), "hex", "f32", "f16" (two halves, the high one first) or "f64" (the high word)."""
    if style == "int":
        return f"{imm.value - (1 << imm.bits) if imm.value >> imm.bits - 1 else imm.value:#x}"
    if style == "set":
        return f"{{{','.join(str(n) for n in reversed(range(imm.bits)) if imm.value >> n & 1)}}}"
    if style == "f32":
        value: float = struct.unpack("<f", struct.pack("<I", imm.value))[0]
        return number(value, imm.value >> 31, not imm.value >> 22 & 1)
    if style == "f64":
        value = struct.unpack("<d", struct.pack("<Q", imm.value << 32))[0]
        return number(value, imm.value >> 31, not imm.value >> 19 & 1)
    if style == "f16":
        halves = (imm.value >> 16, imm.value & 0xFFFF)
        return ", ".join(number(struct.unpack("<e", struct.pack("<H", h))[0], h >> 15, not h >> 9 & 1) for h in halves)
    if style == "bf16":
        halves = (imm.value >> 16, imm.value & 0xFFFF)
        return ", ".join(number(struct.unpack("<f", struct.pack("<I", h << 16))[0], h >> 15, not h >> 6 & 1) for h in halves)
    return f"{imm.value:#x}"


def number(value: float, negative: int, signalling: bool) -> str:
    """A float as nvdisasm writes it."""
    sign = "-" if negative else "+"
    if math.isnan(value):
        return f"{sign}{'SNAN' if signalling else 'QNAN'} "
    if math.isinf(value):
        return f"{sign}INF "
    if value == 0:
        return "-0.0 " if negative else "0"
    return f"{value:.20e}" if abs(value) >= 1e9 else f"{value:.20g}"
