"""Loads and stores: global memory by 64-bit addresses, shared memory, constant tables; neighbours merged into vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devrt.compiler import dtypes as dt
from devrt.compiler import lir
from devrt.compiler.dtypes import DType
from devrt.compiler.sass import select_index as index
from devrt.compiler.sass import select_integer as integer
from devrt.compiler.sass.instruction import TRUE, Address, Cbuf, Instruction, Operand, Reg
from devrt.compiler.sass.select_emit import ZERO, Bool, Pair
from devrt.compiler.sass.select_index import Int

if TYPE_CHECKING:
    from devrt.compiler.sass.select import Selector

_REACH = 1 << 23  # offsets of an instruction are signed, of 24 bits
_PART = 1 << 22
_CONSTANT_BANK = 3
CONSTANT_BYTES = 1 << 16
_KINDS = {"bool": "U8", "uint8": "U8", "int8": "S8", "uint16": "U16", "int16": "S16", "float16": "U16", "bfloat16": "U16",
          "float8_e4m3": "U8", "float8_e5m2": "U8"}


def bytes_of(d: DType) -> int:
    return max(1, d.bits // 8)


def load(s: Selector, i: lir.Inst) -> None:
    assert i.mem is not None
    mask = s.truth(i.args[1]) if len(i.args) > 1 else None
    at = s.number(i.args[0])
    same = ("load", id(i.mem), at.const, at.terms)  # what nobody writes is loaded once
    r = s.scopes[-1].get(same) if mask is None else None
    if r is None:
        r = read(s, i.mem, at, mask)
        if mask is None and id(i.mem) not in s.written:
            s.scopes[-1][same] = r
    s.define(i.out[0], _value(s, i.mem.dtype, r))


def _value(s: Selector, d: DType, r: Operand) -> Operand | Pair | Bool:
    return s.test(r) if d is dt.bool_ else s.pair(r) if d.bits == 64 else r


def read(s: Selector, mem: lir.Param | lir.Shared | lir.Table, at: Int, mask: Bool | None) -> Operand:
    """The element `at`, 0 where `mask` is false: a register of one or two words."""
    d = mem.dtype
    words = 2 if d.bits == 64 else 1
    kind = (_KINDS[d.name],) if d.bits < 32 else ("64",) if words == 2 else ()
    r = s.new(words)
    guard = TRUE
    place = place_of(s, mem, at)
    if mask is not None and mask.op:
        guard = s.predicate(mask)
        for word in range(words):
            s.put("MOV", (), (s.part(r, word) if words == 2 else r,), (ZERO,))
    elif mask is not None and mask.inv:
        return ZERO if words == 1 else s.whole(Pair(ZERO, ZERO))
    if isinstance(place, Cbuf):
        s.put("LDC", kind, (r,), (Operand(place),), guard)
    elif isinstance(mem, lir.Shared):
        s.put("LDS", kind, (r,), (Operand(place),), guard)
    else:
        constant = () if isinstance(mem, lir.Param) and mem.writable else ("CONSTANT",)
        s.put("LDG", ("E", *kind, *constant, *s.system), (r,), (Operand(place),), guard)
    s.aligned[id(place)] = index.alignment(at, bytes_of(d))
    s.kept.append(place)
    return r


def store(s: Selector, i: lir.Inst) -> None:
    assert isinstance(i.mem, (lir.Param, lir.Shared))
    d, at = i.mem.dtype, s.number(i.args[0])
    mask = s.truth(i.args[2]) if len(i.args) > 2 else None
    if mask is not None and not mask.op and mask.inv:
        return
    if d is dt.bool_:
        value = s.bit(s.truth(i.args[1]))
    elif d.bits == 64:
        value = s.whole(s.wide(i.args[1]))
    else:
        value = s.word(i.args[1])
    value = s.reg(value)
    place = place_of(s, i.mem, at)
    assert isinstance(place, Address)
    guard = s.predicate(mask) if mask is not None else TRUE
    kind = ("64",) if d.bits == 64 else () if d.bits == 32 else ("U16",) if d.bits == 16 else ("U8",)
    s.aligned[id(place)] = index.alignment(at, bytes_of(d))
    s.kept.append(place)
    if isinstance(i.mem, lir.Shared):
        s.fragments.clear()
        s.put("STS", kind, (), (Operand(place), value), guard)
    else:
        s.put("STG", ("E", *kind, *s.system), (), (Operand(place), value), guard)


def place_of(s: Selector, mem: lir.Param | lir.Shared | lir.Table, at: Int) -> Address | Cbuf:
    """Where an element lies."""
    size = bytes_of(mem.dtype)
    if isinstance(mem, lir.Param):
        start = s.params[mem.name]
        offset = (at.const * size + (1 << 63)) % (1 << 64) - (1 << 63)
        if not -_REACH <= offset < _REACH:
            near = offset % _PART
            start, offset = integer.add64(s, start, s.pair_constant(offset - near)), near
        base = s.whole(index.address(s, start, at, size)).value
        assert isinstance(base, Reg)
        return Address(base, offset, descriptor=s.descriptor)
    word = index.word_sum(s, tuple((t, f * size) for t, f in at.terms), 0) if at.terms else ZERO
    offset = at.const * size + s.offsets[mem.name]
    if isinstance(mem, lir.Table):
        register = s.reg(word).value
        assert isinstance(register, Reg)
        low = offset & 0xFFFF if not 0 <= offset < CONSTANT_BYTES else offset
        return Cbuf(_CONSTANT_BANK, low, None if register.zero else register, words=2 if size == 8 else 1)
    if not -_REACH <= offset < _REACH:
        near = offset % _PART
        word, offset = integer.add(s, word, s.imm(offset - near)), near
    register = s.reg(word).value
    assert isinstance(register, Reg)
    return Address(register, offset)


def nibble(s: Selector, i: lir.Inst) -> None:
    """A byte, of which the half that is wanted is shifted up and down again."""
    assert isinstance(i.mem, (lir.Param, lir.Shared))
    at = s.number(i.args[0])
    mask = s.truth(i.args[1]) if len(i.args) > 1 else None
    # without its even constant the index is the same for many loads
    even = at.const & ~1
    rest = index.linear(s, at, 1, index.constant(s, -even, wide=at.wide), 1) if at.terms and even else None
    if rest is None:
        rest, even = at, 0
    if rest.known is not None:
        byte, odd = index.constant(s, rest.known >> 1, wide=at.wide), s.imm(rest.known & 1)
    else:
        byte, odd = s.half(rest), integer.logic(s, "and", index.low(s, rest), s.imm(1))
    moved = index.linear(s, byte, 1, index.constant(s, even // 2, wide=at.wide), 1)
    assert moved is not None
    word = read(s, i.mem, moved, mask)
    up = integer.shift_left(s, word, integer.sub(s, s.imm(28), integer.mul(s, odd, s.imm(4))))
    s.define(i.out[0], integer.shift_right(s, up, s.imm(28), signed=True))


# ---------------------------------------------------------------------------------------------------------------------
# Vectors

_WIDTHS = {4: (), 8: ("64",), 16: ("128",)}
_FENCES = ("BAR", "BRA", "SHFL", "LDSM")  # nothing is merged across
_ALONE = ("S16", "64")  # these are not merged
_PARTS = {"U16": 2, "U8": 1, "S8": 1}  # bytes
# Of PRMT: what takes an element out of a word, the rest from a second one that is 0, or copies of the sign.
_TAKES = {"U16": (0x4410, 0x4432), "U8": (0x4440, 0x4441, 0x4442, 0x4443), "S8": (0x8880, 0x9991, 0xAAA2, 0xBBB3)}
_BYTES, _BOTH = 0x5140, 0x5410  # the low bytes, the low halves of both

_Member = tuple[int, Instruction]


def merge(s: Selector, code: list[Instruction | str]) -> list[Instruction | str]:
    """Words, halves or bytes next to each other, at an address that is aligned for all of them, become one access: loads where
    the first of them stands, stores where the last does. In between there is no store, and for stores no load, that could mean
    the same place."""
    groups: dict[tuple[object, ...], list[_Member]] = {}
    found: list[list[_Member]] = []
    for n, item in enumerate(code):
        if isinstance(item, str) or item.op in _FENCES:
            found += groups.values()
            groups = {}
            continue
        if item.op not in ("LDG", "LDS", "STG", "STS"):
            continue
        stores, space = item.op[0] == "S", item.op[2]
        place = item.srcs[0].value
        assert isinstance(place, Address)
        kind = f"store {space}" if stores else f"constant {space}" if "CONSTANT" in item.mods else f"load {space}"
        key = (kind, place.base, item.mods, item.guard)
        if not kind.startswith("constant"):
            ends = ("load", "store") if stores else ("store",)
            for other in [k for k in groups if k != key and k[0] in [f"{x} {space}" for x in ends]]:
                found.append(groups.pop(other))
        if not any(m in item.mods for m in _ALONE) and (stores or item.guard == TRUE):
            groups.setdefault(key, []).append((n, item))
    found += groups.values()
    out: list[list[Instruction | str]] = [[x] for x in code]
    for group in sorted(found, key=lambda g: not g[0][1].dsts):  # loads first: stores may put back together what they take apart
        if len(group) > 1:
            _merge_group(s, group, out)
    return [x for entry in out for x in entry]


def _offset(item: Instruction) -> int:
    place = item.srcs[0].value
    assert isinstance(place, Address)
    return place.offset


def _merge_group(s: Selector, group: list[_Member], out: list[list[Instruction | str]]) -> None:
    offsets = {_offset(item): (n, item) for n, item in group}
    if len(offsets) < len(group):
        return  # one place twice: keep the order
    each = _part_of(group[0][1]) or 4
    for start in sorted(offsets):
        for size in (16, 8, 4)[:3 if each < 4 else 2]:
            members = [offsets[start + k] for k in range(0, size, each) if start + k in offsets]
            if len(members) == size // each and s.aligned[id(members[0][1].srcs[0].value)] % size == 0:
                _vector(s, members, size, out)
                for k in range(0, size, each):
                    del offsets[start + k]
                break


def _part_of(item: Instruction) -> int:
    """Bytes of an element that is a part of a word, else 0."""
    return next((_PARTS[m] for m in item.mods if m in _PARTS), 0)


def _vector(s: Selector, members: list[_Member], size: int, out: list[list[Instruction | str]]) -> None:
    first = members[0][1]
    whole = s.new(size // 4)
    words = [whole] if size == 4 else [s.part(whole, k) for k in range(size // 4)]
    tail = tuple(m for m in first.mods if m in ("CONSTANT", "SYS"))
    mods = (*(m for m in first.mods if m not in tail and m not in _PARTS), *_WIDTHS[size], *tail)
    place = (min if first.dsts else max)(n for n, _ in members)
    for n, _ in members:
        out[n] = []
    part = _part_of(first)
    if first.dsts:
        taken = _parts_of(s, words, [item for _, item in members]) if part else []
        if not part:
            s.renamed.update((_register(item.dsts[0]), _register(word)) for (_, item), word in zip(members, words, strict=True))
        out[place] = [Instruction(first.op, mods, (whole,), first.srcs, first.guard), *taken]
        return
    values = [item.srcs[1] for _, item in members]
    if part:
        count = 4 // part
        together = [x for k, word in enumerate(words) for x in _together(s, word, values[count * k:count * (k + 1)])]
    else:
        together = [Instruction("MOV", (), (word,), (value,)) for word, value in zip(words, values, strict=True)]
    out[place] = [*together, Instruction(first.op, mods, (), (first.srcs[0], whole), first.guard)]


def _register(o: Operand) -> Reg:
    assert isinstance(o.value, Reg)
    return o.value


def _parts_of(s: Selector, words: list[Operand], loads: list[Instruction]) -> list[Instruction]:
    """What takes each load's element out of the words."""
    takes = next(_TAKES[m] for m in loads[0].mods if m in _TAKES)
    count = len(takes)
    for n, load in enumerate(loads):
        s.parts[_register(load.dsts[0])] = words[n // count], n % count, count
    return [Instruction("PRMT", (), load.dsts, (words[n // count], s.imm(takes[n % count]), ZERO))
            for n, load in enumerate(loads)]


def _together(s: Selector, word: Operand, values: list[Operand]) -> list[Instruction]:
    """Two halves or four bytes in a word, which may be the word that they were taken out of."""
    known = [s.parts.get(_register(x)) for x in values]
    first = known[0]
    if first is not None and all(k is not None and k[0] is first[0] and k[1:] == (n, len(values)) for n, k in enumerate(known)):
        return [Instruction("MOV", (), (word,), (first[0],))]
    if len(values) == 2:
        return [Instruction("PRMT", (), (word,), (values[0], s.imm(_BOTH), values[1]))]
    low, high = s.new(), s.new()
    return [Instruction("PRMT", (), (low,), (values[0], s.imm(_BYTES), values[1])),
            Instruction("PRMT", (), (high,), (values[2], s.imm(_BYTES), values[3])),
            Instruction("PRMT", (), (word,), (low, s.imm(_BOTH), high))]
