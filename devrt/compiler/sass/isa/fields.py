"""What a word is made of: bit fields and groups of modifiers. What operands lie in is in slots.py."""

from __future__ import annotations

from dataclasses import dataclass

Mods = tuple[str, ...]


class Misfit(Exception):
    """An operand or modifier that this field cannot hold."""


def ones(lo: int, width: int) -> int:
    """A mask of `width` bits from `lo` on."""
    return ((1 << width) - 1) << lo


@dataclass(frozen=True)
class Bits:
    """A field of pieces (lo, width), the least significant first: an offset of sm_90's branches lies in two places."""

    pieces: tuple[tuple[int, int], ...]

    @property
    def mask(self) -> int:
        return sum(ones(lo, width) for lo, width in self.pieces)

    @property
    def width(self) -> int:
        return sum(width for _, width in self.pieces)

    def get(self, word: int) -> int:
        value = shift = 0
        for lo, width in self.pieces:
            value |= (word >> lo & (1 << width) - 1) << shift
            shift += width
        return value

    def put(self, value: int, what: str = "value") -> int:
        if value < 0 or value >> self.width:
            raise Misfit(f"{what} {value:#x} does not fit {self.width} bits")
        word = 0
        for lo, width in self.pieces:
            word |= (value & (1 << width) - 1) << lo
            value >>= width
        return word

    def put_signed(self, value: int, what: str = "value") -> int:
        half = 1 << self.width - 1
        if not -half <= value < half:
            raise Misfit(f"{what} {value:#x} does not fit {self.width} bits with a sign")
        return self.put(value & 2 * half - 1)

    def get_signed(self, word: int) -> int:
        value = self.get(word)
        return value - (1 << self.width) if value >> self.width - 1 else value


def bits(lo: int, width: int = 1) -> Bits:
    return Bits(((lo, width),))


@dataclass(frozen=True)
class Group:
    """Modifiers of which one holds: `names[value of the bits]`, "" is not printed, None does not exist. A name may hold dots."""

    bits: Bits
    names: tuple[str | None, ...]

    def get(self, word: int) -> str:
        name = self.names[self.bits.get(word)]
        if name is None:
            raise Misfit(f"bits {self.bits.pieces} hold {self.bits.get(word)}, which has no meaning")
        return name


def flag(name: str, lo: int) -> Group:
    """A bit that adds a modifier."""
    return Group(bits(lo), ("", name))


def unset(name: str, lo: int) -> Group:
    """A bit that takes a modifier away."""
    return Group(bits(lo), (name, ""))


def choice(lo: int, width: int, *names: str | None) -> Group:
    """Names by value from 0 on; what is not named does not exist."""
    return Group(bits(lo, width), (*names, *(None,) * ((1 << width) - len(names))))


def always(name: str) -> Group:
    """Modifiers without bits, printed among the others."""
    return Group(Bits(()), (name,))
