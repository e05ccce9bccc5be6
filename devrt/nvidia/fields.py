"""The kit that methods, entries and launch descriptors are made of: bit fields as rows, written and read by the same row.

A layout is one little-endian number of `bits` bits; a field is a range of them, (msb, lsb) as the class headers write it. What
no field names is reserved and must be zero. `sm` is the generation everywhere: 75, 80, 86, 89, 90, 100, 120.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from devrt.device import InvalidArgument

TURING, AMPERE, HOPPER, BLACKWELL = 75, 80, 90, 100
LAST = 999


class BadField(InvalidArgument):
    """A number that no row of a table describes."""

    code = "bad-field"
    advice = "`devrt trace` prints the methods before it"


class Field(NamedTuple):
    """Bits msb..lsb; the value counts units of 1 << shift, so an address of 2^8 units is given whole and must be aligned."""

    name: str
    msb: int
    lsb: int
    kind: type[enum.IntEnum] | None = None
    shift: int = 0
    since: int = TURING
    until: int = LAST


def F(name: str, msb: int, lsb: int, kind: type[enum.IntEnum] | None = None, *, shift: int = 0, since: int = TURING,
      until: int = LAST) -> Field:
    return Field(name, msb, lsb, kind, shift, since, until)


def array(name: str, msb: int, lsb: int, count: int, stride: int, *, shift: int = 0) -> Iterable[Field]:
    """NAME_0, NAME_1, ..: the same field `count` times, `stride` bits apart."""
    for n in range(count):
        yield Field(f"{name}_{n}", msb + n * stride, lsb + n * stride, None, shift)


@dataclass(frozen=True)
class Layout:
    """Named ranges of `bits` bits."""

    name: str
    bits: int
    fields: tuple[Field, ...]

    def of(self, sm: int) -> Compiled:
        return _compiled(self, sm)

    def __hash__(self) -> int:
        return hash((self.name, self.bits))


@dataclass(frozen=True)
class Compiled:
    """A layout in one generation."""

    layout: Layout
    sm: int
    fields: Mapping[str, Field]
    reserved: int
    kinds: Mapping[str, frozenset[int]] = field(repr=False)

    def place(self, name: str) -> Field:
        """The row of a field. Raises InvalidArgument where this generation has none."""
        row = self.fields.get(name)
        if row is None:
            raise InvalidArgument(f"{self.layout.name} has no field {name} on sm_{self.sm}",
                                  remedy=f"fields: {', '.join(self.fields) or 'none'}")
        return row

    def pack(self, **values: int) -> int:
        """The number that holds the fields; those left out are 0."""
        number = 0
        for name, value in values.items():
            row = self.place(name)
            highest = (1 << row.msb - row.lsb + 1) - 1
            if not 0 <= value >> row.shift <= highest or value & (1 << row.shift) - 1:
                unit = f"multiples of {1 << row.shift} from " if row.shift else ""
                raise InvalidArgument(f"{self.layout.name}.{name} cannot be {value:#x}",
                                      remedy=f"it takes {unit}0..{highest << row.shift:#x}")
            if name in self.kinds and value not in self.kinds[name]:
                raise InvalidArgument(f"{self.layout.name}.{name} has no value {value}",
                                      remedy=f"values: {', '.join(map(str, sorted(self.kinds[name])))}")
            number |= value >> row.shift << row.lsb
        return number

    def unpack(self, number: int) -> dict[str, int]:
        """The fields of a number. Raises BadField for reserved bits and for values that a field does not have."""
        if number & self.reserved:
            extra = number & self.reserved
            raise BadField(f"{self.layout.name}: reserved bit {(extra & -extra).bit_length() - 1} is set",
                           evidence=f"sm_{self.sm}, the reserved bits hold {extra:#x}")
        values = {name: (number >> row.lsb & (1 << row.msb - row.lsb + 1) - 1) << row.shift
                  for name, row in self.fields.items()}
        for name, known in self.kinds.items():
            if values[name] not in known:
                raise BadField(f"{self.layout.name}.{name} has no value {values[name]}", evidence=f"sm_{self.sm}")
        return values

    def text(self, number: int) -> str:
        """`NAME field=VALUE ..`; zeros are left out."""
        parts = [self.layout.name]
        for name, value in self.unpack(number).items():
            kind = self.fields[name].kind
            if kind is not None and value:
                parts.append(f"{name}={kind(value).name}")
            elif value:
                parts.append(f"{name}={value:#x}" if value > 9 else f"{name}={value}")
        return " ".join(parts)


@functools.cache
def _compiled(layout: Layout, sm: int) -> Compiled:
    rows: dict[str, Field] = {}
    used = 0
    for row in layout.fields:
        if row.since <= sm <= row.until:
            bits = (1 << row.msb + 1) - (1 << row.lsb)
            if bits & used or row.msb >= layout.bits or row.name in rows:
                raise AssertionError(f"{layout.name}.{row.name} overlaps another field or the end on sm_{sm}")
            used |= bits
            rows[row.name] = row
    kinds = {name: frozenset(int(value) for value in row.kind) for name, row in rows.items() if row.kind is not None}
    return Compiled(layout, sm, rows, (1 << layout.bits) - 1 & ~used, kinds)
