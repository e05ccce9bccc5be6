"""Text as nvdisasm prints it -> instructions, by the same tables. For tests and for reading, not for speed."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from devrt.compiler.sass.instruction import (
    PT,
    TRUE,
    UPT,
    Address,
    Cbuf,
    File,
    Imm,
    Instruction,
    Label,
    Operand,
    Reg,
    Special,
    Value,
)
from devrt.compiler.sass.isa.codec import tables_of
from devrt.compiler.sass.isa.fields import Misfit, Mods
from devrt.compiler.sass.isa.form import Form
from devrt.compiler.sass.isa.modifiers import write_groups
from devrt.compiler.sass.isa.naming import underived
from devrt.compiler.sass.isa.slots import (
    AddressSlot,
    CbufSlot,
    ImmSlot,
    LabelSlot,
    PredicatesSlot,
    RegSlot,
    Slot,
    SpecialSlot,
    words_of,
)
from devrt.device import CompileError

LINE = re.compile(r"(?:@(?P<inv>!?)(?P<guard>U?P\w)\s+)?(?P<op>[A-Z0-9_]+)(?P<mods>[\w.]*)(?:\s+(?P<operands>.*?))?\s*;?$")
MARKED = re.compile(r"(?P<neg>-?)(?P<inv>[~!]?)(?P<bar>\|?)(?P<body>[^|]+?)(?P<rest>(?:\.[A-Z]\w*)*)(?P=bar)(?P<reuse>\.reuse)?"
                    r"(?P<select>(?:\.\w+)?)$")
REGISTER = re.compile(r"(UR|UP|R|P|SB|B)(\d+|Z|T)$")
CONSTANT = re.compile(r"c(?P<handle>x?)\[(?P<bank>\w+)\] ?\[(?:(?P<index>U?R\w+)\+?)?(?P<offset>-?0x\w+)?\]$")
PLACE = re.compile(r"(?:desc\[(?P<descriptor>UR\w+)\])?\[(?P<sum>[^\]]*)\]$")
NAMED = {"+INF": float("inf"), "-INF": float("-inf"), "+QNAN": float("nan"), "-QNAN": -float("nan")}


def assemble(line: str, sm: int, address: int = 0) -> Instruction:
    """One instruction. `address`: where it lies, which BRX needs. Raises CompileError where the generation has no such form."""
    match = LINE.match(line.strip())
    if not match:
        raise CompileError(f"{line!r} is no instruction")
    op, mods = match["op"], tuple(match["mods"].split(".")[1:])
    guard = Operand(_register(match["guard"]), inv=bool(match["inv"])) if match["guard"] else TRUE
    operands = match["operands"] or ""
    if op in ("CALL", "RET", "BRX", "BRXU"):
        operands = re.sub(r"(R\w+) (-?0x)", r"\1, \2", operands)
    tokens = [token.strip() for token in re.split(r",(?![^{]*\})", operands)] if operands else []
    for form in tables_of(sm).by_op(op):
        for asked in (mods, underived(op, mods)):
            if asked[:len(form.mods)] == form.mods and write_groups(form.groups, asked[len(form.mods):]) is not None:
                for found in _match((*form.dsts, *form.srcs), tokens, mods):
                    return _instruction(form, mods, found, guard, address)
    raise CompileError(f"sm_{sm} has no {line.strip()!r}")


def _instruction(form: Form, mods: Mods, found: list[tuple[int, Operand]], guard: Operand, address: int) -> Instruction:
    count = len(form.dsts)
    dsts = tuple(operand for place, operand in found if place < count)
    srcs = tuple(operand for place, operand in found if place >= count)
    if form.op in ("BRX", "BRXU") and isinstance(srcs[-1].value, Label) and isinstance(srcs[-1].value.target, int):
        srcs = (*srcs[:-1], Operand(Label(srcs[-1].value.target + address + 16)))
    return Instruction(form.op, mods, dsts, srcs, guard, address=address)


def _match(slots: tuple[Slot, ...], tokens: list[str], mods: Mods, place: int = 0) -> Iterator[list[tuple[int, Operand]]]:
    """The ways in which tokens stand in slots, optional ones left out."""
    if place == len(slots):
        if not tokens:
            yield []
        return
    slot = slots[place]
    taken = 2 if isinstance(slot, ImmSlot) and slot.style in ("f16", "bf16") else 1
    if len(tokens) >= taken:
        operand = _operand(slot, tokens[:taken], mods)
        if operand is not None and not (slot.optional and operand in (Operand(PT), Operand(UPT))):
            for rest in _match(slots, tokens[taken:], mods, place + 1):
                yield [(place, operand), *rest]
        if operand is not None and slot.optional and operand in (Operand(PT), Operand(UPT)):  # printed though it is not there
            following = slots[place + 1:place + 2]
            if following and following[0].optional and following[0].kind == slot.kind and len(tokens) > 1 \
                    and _operand(following[0], tokens[1:2], mods) not in (None, Operand(PT), Operand(UPT)):
                for rest in _match(slots, tokens[taken:], mods, place + 1):
                    yield [(place, operand), *rest]
            yield from _match(slots, tokens[taken:], mods, place + 1)
    if slot.optional:
        yield from _match(slots, tokens, mods, place + 1)


def _operand(slot: Slot, tokens: list[str], mods: Mods) -> Operand | None:
    """The tokens as what stands in this slot; None where they cannot."""
    if isinstance(slot, ImmSlot):
        value = _constant(slot, tokens)
        return None if value is None else Operand(value)
    token = tokens[0]
    if isinstance(slot, LabelSlot):
        name = re.match(r"`\((.+)\)$", token)
        return Operand(Label(name[1])) if name else Operand(Label(int(token, 16))) if re.match(r"-?0x[0-9a-f]+$", token) else None
    if isinstance(slot, SpecialSlot):
        numbers = [number for number, name in slot.names.items() if name == token]
        return Operand(Special(numbers[0])) if numbers else None
    if isinstance(slot, PredicatesSlot):
        return Operand(Reg(File.P, 0, 7)) if token == "PR" else None
    if isinstance(slot, AddressSlot):
        place = _place(slot, token, mods)
        return None if place is None else Operand(place)
    match = MARKED.match(token)
    if not match:
        return None
    body = _body(slot, match["body"], mods)
    if body is None:
        return None
    select = (match["rest"] or match["select"])[1:]
    operand = Operand(body, bool(match["neg"]), bool(match["bar"]), bool(match["inv"]), bool(match["reuse"]), select)
    try:
        slot.encode(operand, mods, 0)
    except Misfit:
        return None
    return operand


def _body(slot: Slot, text: str, mods: Mods) -> Value | None:
    if isinstance(slot, RegSlot):
        match = REGISTER.match(text)
        return _register(text, words_of(slot.words, mods)) if match and match[1] == slot.file.value else None
    match = CONSTANT.match(text)
    if not match or not isinstance(slot, CbufSlot) or bool(match["handle"]) != bool(slot.handle):
        return None
    index = _register(match["index"]) if match["index"] else None
    return Cbuf(0 if slot.handle else int(match["bank"], 16), int(match["offset"] or "0", 16),
                None if index is None or index.zero else index, _register(match["bank"]) if slot.handle else None,
                words_of(slot.words, mods))


def _register(text: str, words: int = 1) -> Reg:
    match = REGISTER.match(text)
    if not match:
        raise CompileError(f"{text!r} is no register")
    file = File(match[1])
    return Reg(file, {"Z": 255, "T": 7}[match[2]] if match[2] in "ZT" else int(match[2]), words)


def _place(slot: AddressSlot, token: str, mods: Mods) -> Address | None:
    match = PLACE.match(token)
    if not match:
        return None
    base = uniform = None
    offset, scale, wide = 0, 1, False
    for part in match["sum"].replace("+-", "+!").split("+"):
        name, *marks = part.split(".")
        if name.startswith("UR"):
            uniform = _register(name)
        elif name.startswith("R"):
            base, wide = _register(name), "64" in marks
            scale = next((int(mark[1:]) for mark in marks if mark[0] == "X"), 1)
        else:
            offset = int(part.replace("!", "-"), 16)
    descriptor = _register(match["descriptor"], 2) if match["descriptor"] else None
    if descriptor is None and wide and uniform is None:  # there is one that is not printed before sm_90
        if slot.descriptor is None:
            return None
        descriptor = Reg(File.UR, 255, 2)
    if base is None and slot.base is not None:
        base = Reg(File.R, 255)
        wide = not isinstance(slot.wide, bool | str)
    if slot.offset.pieces and offset >= 1 << slot.offset.width - 1:  # printed without its sign
        offset -= 1 << slot.offset.width
    if base is not None:
        fixed = slot.wide in mods if isinstance(slot.wide, str) else slot.wide if isinstance(slot.wide, bool) else wide
        base = Reg(base.file, base.index, 2 if fixed else 1)
    address = Address(base, offset, uniform, descriptor, scale)
    parts = (base, slot.base), (uniform, slot.uniform), (descriptor, slot.descriptor)
    if any((given is None) != (asked is None) for given, asked in parts):
        return None
    return address


def _constant(slot: ImmSlot, tokens: list[str]) -> Imm | None:
    width = slot.at.width
    if slot.style == "set":
        return Imm(sum(1 << int(n) for n in tokens[0][1:-1].split(",")), width) if tokens[0][0] == "{" else None
    try:
        if slot.style in ("int", "hex"):
            value = int(tokens[0], 0)
            return Imm(value & (1 << width) - 1, width) if -(1 << width - 1) <= value < 1 << width else None
        numbers = [NAMED[token] if token in NAMED else float(token) for token in tokens]
    except ValueError:
        return None
    if slot.style == "f32":
        return Imm(struct.unpack("<I", struct.pack("<f", numbers[0]))[0], 32)
    if slot.style == "f64":
        return Imm(struct.unpack("<Q", struct.pack("<d", numbers[0]))[0] >> 32, 32)
    if slot.style == "f16":
        high, low = (struct.unpack("<H", struct.pack("<e", number))[0] for number in numbers)
    else:
        high, low = (struct.unpack("<I", struct.pack("<f", number))[0] >> 16 for number in numbers)
    return Imm(high << 16 | low, 32)
