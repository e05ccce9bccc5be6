"""The kit that packet and register tables are made of: fields with their bits, written and read by the same line.

A layout is a run of 32-bit words taken as one little-endian number. A field is a range of its bits, (msb, lsb) counted
within its word; what no field names is reserved and must be zero. Encoding checks name, width and generation; decoding
checks reserved bits, the values a field may take, and the length. `gfx` is the generation everywhere: 9 (gfx90a, gfx942),
10 (gfx10.3), 11, 12.
"""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from devrt.device import InvalidArgument, Unsupported

ALL = (9, 12)  # generations, first and last
GFX9 = (9, 9)
GFX10_UP = (10, 12)
GFX11_UP = (11, 12)

Value: TypeAlias = "int | tuple[int, ...]"
# What the words must satisfy together: given the fields and the generation, says what is wrong, or "".
Rule: TypeAlias = "Callable[[Mapping[str, int], int], str]"


class BadPacket(InvalidArgument):
    """Words that are no packet: `at` is the place, in dwords from the start of what was decoded."""

    code = "bad-packet"
    advice = "`devrt trace` prints the packets before it"

    def __init__(self, what: str, at: int, evidence: str = "") -> None:
        self.at = at
        super().__init__(f"{what}, at dword {at:#x}", evidence=evidence)


def generation(name: str) -> int:
    """The generation of a GPU by LLVM's name of it: gfx90a -> 9, gfx1100 -> 11. Raises Unsupported."""
    digits = name.removeprefix("gfx")[:-2]
    if name.startswith("gfx") and digits.isdecimal() and ALL[0] <= int(digits) <= ALL[1]:
        return int(digits)
    raise Unsupported(f"devrt knows no command packets of {name!r}", remedy="known: gfx9, gfx10, gfx11, gfx12")


@dataclass(frozen=True)
class Field:
    """Bits msb..lsb of a word. `address`: the value keeps its place, so bits below lsb are those of an alignment."""

    name: str
    word: int
    msb: int
    lsb: int
    kind: type[enum.IntEnum] | None = None
    gfx: tuple[int, int] = ALL
    address: bool = False


def F(name: str, word: int, msb: int, lsb: int, kind: type[enum.IntEnum] | None = None, *,
      gfx: tuple[int, int] = ALL) -> Field:
    return Field(name, word, msb, lsb, kind, gfx)


def A(name: str, word: int, lsb: int = 0, msb: int = 63, *, gfx: tuple[int, int] = ALL) -> Field:
    """An address in two words, a multiple of 1 << lsb."""
    return Field(name, word, msb, lsb, None, gfx, address=True)


@dataclass(frozen=True)
class Layout:
    """`words` dwords with named fields; `rest` names the dwords that may follow, at least `least` of them.

    `fixed` are the values that tell this layout from others: an opcode.
    """

    name: str
    words: int
    fields: tuple[Field, ...]
    gfx: tuple[int, int] = ALL
    rest: str = ""
    least: int = 0
    rule: Rule | None = None

    def of(self, gfx: int) -> Compiled:
        return _compiled(self, gfx)

    def __hash__(self) -> int:
        return hash((self.name, self.gfx))


@dataclass(frozen=True)
class Compiled:
    """A layout in one generation: per field its shift into the number, the mask of its bits, and its possible values."""

    layout: Layout
    gfx: int
    slots: Mapping[str, tuple[int, int, int]]  # name -> shift of the value, highest value, bits that must be zero below
    plain: tuple[tuple[str, int, int], ...]  # name, shift, mask
    kinds: Mapping[str, frozenset[int]]
    reserved: int

    def pack(self, values: Mapping[str, int]) -> int:
        """The number that holds the fields; those left out are 0."""
        number = 0
        for name, value in values.items():
            slot = self.slots.get(name)
            if slot is None:
                raise InvalidArgument(f"{self.layout.name} has no field {name} on gfx{self.gfx}",
                                      remedy=f"fields: {', '.join(self.slots)}")
            shift, highest, low = slot
            if not 0 <= value <= highest or value & low:
                what = f"a multiple of {low + 1}, at most {highest:#x}" if low else f"0..{highest:#x}"
                raise InvalidArgument(f"{self.layout.name}.{name} cannot be {value:#x}", remedy=f"it takes {what}")
            if name in self.kinds and value not in self.kinds[name]:
                raise InvalidArgument(f"{self.layout.name}.{name} has no value {value}",
                                      remedy=f"values: {', '.join(map(str, sorted(self.kinds[name])))}")
            number |= value << shift
        if self.layout.rule is not None and (wrong := self.layout.rule(self._all(values), self.gfx)):
            raise InvalidArgument(f"{self.layout.name}: {wrong}")
        return number

    def unpack(self, number: int, at: int = 0) -> dict[str, int]:
        """The fields of a number. Raises BadPacket for reserved bits and values."""
        if number & self.reserved:
            bit = (number & self.reserved & -(number & self.reserved)).bit_length() - 1
            raise BadPacket(f"{self.layout.name}: reserved bit {bit % 32} is set", at + bit // 32,
                            f"{number >> bit // 32 * 32 & 0xFFFFFFFF:#010x}")
        values = {name: number >> shift & mask for name, shift, mask in self.plain}
        for name, known in self.kinds.items():
            if values[name] not in known:
                raise BadPacket(f"{self.layout.name}.{name} has no value {values[name]}", at)
        if self.layout.rule is not None and (wrong := self.layout.rule(values, self.gfx)):
            raise BadPacket(f"{self.layout.name}: {wrong}", at)
        return values

    def _all(self, values: Mapping[str, int]) -> dict[str, int]:
        return dict.fromkeys(self.slots, 0) | dict(values)


@functools.cache
def _compiled(layout: Layout, gfx: int) -> Compiled:
    slots, plain, kinds, used = {}, [], {}, 0
    for item in layout.fields:
        if not item.gfx[0] <= gfx <= item.gfx[1]:
            continue
        base = 32 * item.word
        bits = (1 << item.msb + 1) - (1 << item.lsb)
        if bits << base & used or base + item.msb >= 32 * layout.words:
            raise AssertionError(f"{layout.name}.{item.name} overlaps another field or the end on gfx{gfx}")
        used |= bits << base
        if item.address:
            slots[item.name] = base, bits, (1 << item.lsb) - 1
            plain.append((item.name, base, bits))
        else:
            slots[item.name] = base + item.lsb, bits >> item.lsb, 0
            plain.append((item.name, base + item.lsb, bits >> item.lsb))
        if item.kind is not None:
            kinds[item.name] = frozenset(int(value) for value in item.kind)
    return Compiled(layout, gfx, slots, tuple(plain), kinds, (1 << 32 * layout.words) - 1 & ~used)


@dataclass(frozen=True)
class Packet:
    """A decoded packet: its fields as numbers (`rest` dwords as a tuple) and its length in dwords, header included."""

    name: str
    fields: Mapping[str, Value]
    size: int
    layout: Layout = field(repr=False, compare=False)

    def __getitem__(self, name: str) -> int:
        value = self.fields[name]
        assert isinstance(value, int)
        return value

    def rest(self) -> tuple[int, ...]:
        """The dwords after the fixed ones."""
        value = self.fields.get(self.layout.rest, ())
        assert isinstance(value, tuple)
        return value

    def __str__(self) -> str:
        """`RELEASE_MEM event_type=CACHE_FLUSH_AND_INV_TS data_sel=SEND_64_BIT address=0x7f00 ..`; zeros are left out."""
        kinds = {item.name: item.kind for item in self.layout.fields}
        words = []
        for name, value in self.fields.items():
            kind = kinds.get(name)
            if isinstance(value, tuple):
                words.append(f"{name}=[{' '.join(f'{word:#x}' for word in value)}]")
            elif value and kind is not None:
                words.append(f"{name}={kind(value).name}")
            elif value:
                words.append(f"{name}={value:#x}" if value > 9 else f"{name}={value}")
        return " ".join([self.name, *words])


def to_words(number: int, count: int) -> list[int]:
    return list(struct.unpack(f"<{count}I", number.to_bytes(4 * count, "little")))


def from_words(words: Sequence[int]) -> int:
    return int.from_bytes(struct.pack(f"<{len(words)}I", *words), "little")
