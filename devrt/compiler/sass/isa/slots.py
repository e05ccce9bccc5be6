"""Slots of operands: each reads and writes its own bits of a word."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from devrt.compiler.sass.instruction import Address, Cbuf, File, Imm, Label, Operand, Reg, Special, Value
from devrt.compiler.sass.isa.fields import Bits, Group, Misfit, Mods, ones

Words = int | Mapping[str, int]  # registers of an operand: a number, or by the first modifier that is named (default: "")
_CBUF_OFFSET, _CBUF_BANK, _NO_OFFSET = Bits(((40, 14),)), Bits(((54, 5),)), Bits(())


def words_of(words: Words, mods: Mods) -> int:
    if isinstance(words, int):
        return words
    return next((words[m] for m in mods if m in words), words.get("", 1))


@dataclass(frozen=True, kw_only=True)
class Slot(abc.ABC):
    """Where an operand lies. `optional`: not printed where it has the value of an operand that is not there (PT, RZ, 0).
    `neg`, `abs`, `inv`, `reuse`: their bits, -1 where there are none. `select`: suffixes by value, like a group's names."""

    optional: bool = False
    neg: int = -1
    abs: int = -1
    inv: int = -1
    reuse: int = -1
    select: Group | None = None
    kind: str = ""
    sized: bool = field(default=False, init=False)  # its words come from modifiers

    @property
    @abc.abstractmethod
    def value_mask(self) -> int:
        """The bits that hold its value."""

    @property
    def mask(self) -> int:
        mask = self.value_mask | (self.select.bits.mask if self.select else 0)
        for bit in (self.neg, self.abs, self.inv, self.reuse):
            mask |= 1 << bit if bit >= 0 else 0
        return mask

    @property
    def absent(self) -> int:
        """The bits of an optional operand that is not there."""
        return 0

    @abc.abstractmethod
    def read(self, word: int, mods: Mods, address: int) -> Value:
        """The value in a word. Raises Misfit."""

    @abc.abstractmethod
    def write(self, value: Value, mods: Mods, address: int) -> int:
        """The bits of a value. Raises Misfit."""

    def decode(self, word: int, mods: Mods, address: int) -> Operand:
        """Raises Misfit where the word holds what does not exist."""
        select = self.select.get(word) if self.select else ""
        return Operand(self.read(word, mods, address), neg=self.neg >= 0 and bool(word >> self.neg & 1),
                       abs=self.abs >= 0 and bool(word >> self.abs & 1), inv=self.inv >= 0 and bool(word >> self.inv & 1),
                       reuse=self.reuse >= 0 and bool(word >> self.reuse & 1), select=select)

    def encode(self, operand: Operand, mods: Mods, address: int) -> int:
        """Raises Misfit where the operand does not fit."""
        word = self.write(operand.value, mods, address)
        if operand.neg or operand.abs or operand.inv or operand.reuse:
            for name, wanted, bit in (("neg", operand.neg, self.neg), ("abs", operand.abs, self.abs),
                                      ("inv", operand.inv, self.inv), ("reuse", operand.reuse, self.reuse)):
                if wanted and bit < 0:
                    raise Misfit(f"there is no {name} here")
                word |= 1 << bit if wanted else 0
        if self.select:
            if operand.select not in self.select.names:
                raise Misfit(f"there is no .{operand.select} here")
            word |= self.select.bits.put(self.select.names.index(operand.select))
        elif operand.select:
            raise Misfit(f"there is no .{operand.select} here")
        return word


@dataclass(frozen=True, kw_only=True)
class RegSlot(Slot):
    """A register. URZ is all ones of a field of 6 bits before sm_100, of 8 from then on.
    `present`: RZ may not stand there."""

    file: File
    lo: int
    width: int = 8
    words: Words = 1
    present: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.file.value)
        object.__setattr__(self, "sized", not isinstance(self.words, int))

    @property
    def value_mask(self) -> int:
        return ones(self.lo, self.width)

    @property
    def absent(self) -> int:
        return ones(self.lo, self.width)

    def read(self, word: int, mods: Mods, address: int) -> Reg:
        index = word >> self.lo & (1 << self.width) - 1
        words = words_of(self.words, mods)
        if index == (1 << self.width) - 1 and self.width >= 6:
            if self.present:
                raise Misfit("RZ does not stand here")
            return Reg(self.file, 255, words)
        if self.file is File.SB and index > 5:
            raise Misfit(f"there is no scoreboard {index}")
        if words > 1 and index % words and words in (2, 4):
            raise Misfit(f"{self.file.value}{index} begins no {words} words: it must be a multiple of {words}")
        return Reg(self.file, index, words)

    def write(self, value: Value, mods: Mods, address: int) -> int:
        assert isinstance(value, Reg)
        if value.words != words_of(self.words, mods):
            raise Misfit(f"{value} has {value.words} words where {words_of(self.words, mods)} are wanted")
        index, last = value.index, (1 << self.width) - 1
        if self.width >= 6 and index == 255 and not self.present:
            return last << self.lo
        if index > last or (self.file is File.SB and index > 5) or (index == last and self.width >= 6):
            raise Misfit(f"there is no {value}")
        if value.words in (2, 4) and index % value.words:
            raise Misfit(f"{value} begins no {value.words} words: it must be a multiple of {value.words}")
        return index << self.lo


@dataclass(frozen=True, kw_only=True)
class ImmSlot(Slot):
    """A constant's raw bits; `style` says how they are printed: "int" signed, "hex", "f32", "f16" (two halves), "f64" (the high
    word). `default`: what an optional one is where it is not printed."""

    at: Bits
    style: str = "hex"
    default: int = 0
    kind: str = "I"

    @property
    def value_mask(self) -> int:
        return self.at.mask

    @property
    def absent(self) -> int:
        return self.at.put(self.default)

    def read(self, word: int, mods: Mods, address: int) -> Imm:
        return Imm(self.at.get(word), self.at.width)

    def write(self, value: Value, mods: Mods, address: int) -> int:
        assert isinstance(value, Imm)
        return self.at.put(value.value, "constant")


@dataclass(frozen=True, kw_only=True)
class CbufSlot(Slot):
    """c[bank][offset]: bank 58:54, offset with a sign 53:38, a multiple of `unit`. With `index` c[bank][Ra + offset]; with
    `handle` cx[UR][offset], without a sign."""

    words: Words = 1
    index: RegSlot | None = None
    handle: RegSlot | None = None
    offset: Bits = _CBUF_OFFSET
    unit: int = 4
    signed: bool = True
    bank: Bits = _CBUF_BANK

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", "X" if self.handle else "C")
        object.__setattr__(self, "sized", not isinstance(self.words, int))

    @property
    def value_mask(self) -> int:
        return self.offset.mask | (self.handle.mask if self.handle else self.bank.mask) | \
            (self.index.mask if self.index else 0)

    def read(self, word: int, mods: Mods, address: int) -> Cbuf:
        index = self.index.read(word, mods, address) if self.index else None
        handle = self.handle.read(word, mods, address) if self.handle else None
        offset = self.offset.get(word) if handle or not self.signed else self.offset.get_signed(word)
        return Cbuf(0 if handle else self.bank.get(word), offset * self.unit, None if index is None or index.zero else index,
                    handle, words_of(self.words, mods))

    def write(self, value: Value, mods: Mods, address: int) -> int:
        assert isinstance(value, Cbuf)
        if value.words != words_of(self.words, mods):
            raise Misfit(f"a constant of {value.words} words where {words_of(self.words, mods)} are wanted")
        if value.offset % self.unit:
            raise Misfit(f"offset {value.offset:#x} of the constant is no multiple of {self.unit}")
        put = self.offset.put if self.handle or not self.signed else self.offset.put_signed
        word = put(value.offset // self.unit, "offset of the constant")
        if self.handle:
            assert value.handle is not None
            word |= self.handle.write(value.handle, mods, address)
        else:
            word |= self.bank.put(value.bank, "constant bank")
        if self.index:
            word |= self.index.write(value.index or Reg(self.index.file, 255), mods, address)
        elif value.index:
            raise Misfit("a constant with an index needs LDC")
        return word


@dataclass(frozen=True, kw_only=True)
class AddressSlot(Slot):
    """[base * scale + uniform + offset], the offset with a sign. `wide`: the bit that says that the base is 64 bits, or the
    modifier, or True or False where it always or never is. `scale`: the base times one of
    `scales`. `unsigned`: the offset is printed without a sign where it stands "alone", or behind a
    "uniform" register and nothing else, or "never". `descriptor`: desc[UR][..]."""

    base: RegSlot | None = None
    uniform: RegSlot | None = None
    descriptor: RegSlot | None = None
    offset: Bits = _NO_OFFSET
    wide: int | bool | str = False
    scale: Bits | None = None
    scales: tuple[int, ...] = (1, 4, 8, 16)
    unsigned: str = "alone"

    def __post_init__(self) -> None:
        shape = ("r" if self.base else "") + ("u" if self.uniform else "") + ("d" if self.descriptor else "")
        object.__setattr__(self, "kind", f"[{shape}]")
        object.__setattr__(self, "sized", isinstance(self.wide, str))

    @property
    def value_mask(self) -> int:
        mask = self.offset.mask | (self.scale.mask if self.scale else 0)
        mask |= 0 if isinstance(self.wide, bool | str) else 1 << self.wide
        return mask | sum(slot.mask for slot in (self.base, self.uniform, self.descriptor) if slot)

    def _words(self, word: int, mods: Mods) -> int:
        wide = self.wide
        return 2 if (wide in mods if isinstance(wide, str) else wide if isinstance(wide, bool) else word >> wide & 1) else 1

    def read(self, word: int, mods: Mods, address: int) -> Address:
        base = self.base.read(word, mods, address) if self.base else None
        if base is not None:
            base = Reg(base.file, base.index, self._words(word, mods))
        return Address(base, self.offset.get_signed(word) if self.offset.pieces else 0,
                       self.uniform.read(word, mods, address) if self.uniform else None,
                       self.descriptor.read(word, mods, address) if self.descriptor else None,
                       self.scales[self.scale.get(word)] if self.scale else 1)

    def write(self, value: Value, mods: Mods, address: int) -> int:
        assert isinstance(value, Address)
        word = self.offset.put_signed(value.offset, "offset of the address") if self.offset.pieces else 0
        if value.offset and not self.offset.pieces:
            raise Misfit("there is no offset here")
        if self.base and value.base:
            if not isinstance(self.wide, bool | str):
                word |= (value.base.words == 2) << self.wide
            if value.base.words != self._words(word, mods):
                raise Misfit(f"the address {value.base} has {value.base.words} words, not {self._words(word, mods)}")
            word |= self.base.write(Reg(value.base.file, value.base.index), mods, address)
        for slot, register in ((self.uniform, value.uniform), (self.descriptor, value.descriptor)):
            if slot and register:
                word |= slot.write(register, mods, address)
        if value.scale not in (self.scales if self.scale else (1,)):
            raise Misfit(f"there is no scale {value.scale} here")
        if self.scale:
            word |= self.scale.put(self.scales.index(value.scale))
        return word


@dataclass(frozen=True, kw_only=True)
class PredicatesSlot(Slot):
    """PR, all seven predicates: no bits."""

    kind: str = "P"

    @property
    def value_mask(self) -> int:
        return 0

    def read(self, word: int, mods: Mods, address: int) -> Reg:
        return Reg(File.P, 0, 7)

    def write(self, value: Value, mods: Mods, address: int) -> int:
        if value != Reg(File.P, 0, 7):
            raise Misfit("only PR stands here")
        return 0


@dataclass(frozen=True, kw_only=True)
class SpecialSlot(Slot):
    """A special register's number, one of `names`."""

    at: Bits
    names: Mapping[int, str]
    kind: str = "S"

    @property
    def value_mask(self) -> int:
        return self.at.mask

    def read(self, word: int, mods: Mods, address: int) -> Special:
        number = self.at.get(word)
        if number not in self.names:
            raise Misfit(f"there is no special register {number:#x}")
        return Special(number)

    def write(self, value: Value, mods: Mods, address: int) -> int:
        assert isinstance(value, Special)
        if value.number not in self.names:
            raise Misfit(f"there is no special register {value.number:#x}")
        return self.at.put(value.number)


@dataclass(frozen=True, kw_only=True)
class LabelSlot(Slot):
    """A place in the code, as its distance in units of 4 bytes from the next instruction."""

    at: Bits
    kind: str = "L"

    @property
    def value_mask(self) -> int:
        return self.at.mask

    def read(self, word: int, mods: Mods, address: int) -> Label:
        target = address + 16 + 4 * self.at.get_signed(word)
        if target % 16 != address % 16:
            raise Misfit(f"{target:#x} is no place of an instruction")
        return Label(target)

    def write(self, value: Value, mods: Mods, address: int) -> int:
        assert isinstance(value, Label)
        if isinstance(value.target, str) or address < 0:
            raise Misfit(f"the place of {value.target} is not known before layout")
        if (value.target - address) % 16:
            raise Misfit(f"{value.target:#x} is no place of an instruction")
        return self.at.put_signed((value.target - address - 16) // 4, "distance")
