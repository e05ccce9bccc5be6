"""ELF images as machine code: sections and symbols of any, and relocatable objects laid out in one piece and relocated,
without a linker.

An object may hold code and constants only. Writable data would be state that outlives a dispatch, and an undefined symbol
would be code that nobody vouches for, so both are refused.

The reader is `struct` and not pyelftools: that takes longer to import than all kernels of a model take to load.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from devrt.device import CompileError, InvalidArgument

PAGE = 4096

# Numbers of the ELF specification.
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
RELOCATION = struct.Struct("<QQq")
ELF64_LE, ET_REL, ET_EXEC = b"\x7fELF\x02\x01", 1, 2
PROGBITS, SYMTAB, STRTAB, RELA, NOBITS, REL, _UNWIND = 1, 2, 3, 4, 8, 9, 0x70000001
WRITE, ALLOC, EXEC, INFO_LINK, _TLS = 1, 2, 4, 0x40, 0x400
UNDEFINED, _ABSOLUTE, _RESERVED = 0, 0xFFF1, 0xFF00
OBJECT, FUNC, SECTION_SYMBOL = 1, 2, 3
MACHINES = {"x86-64": 62, "aarch64": 183, "amdgcn": 224, "sass": 190}
_KINDS = {ET_REL: "relocatable object", ET_EXEC: "linked image"}


class Field(NamedTuple):
    """How one relocation type is stored: struct format, relative to its own place or absolute, and for types that hold
    one half of a 64-bit value the bits to shift it by (None: the value must fit)."""

    name: str
    format: str
    relative: bool
    half: int | None = None


@dataclass(frozen=True)
class Section:
    """A row of the section table. `offset` and `size` lie within the image, except where the type is NOBITS."""

    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int

    @property
    def loaded(self) -> bool:
        return bool(self.flags & ALLOC) and self.type != _UNWIND and self.name not in (".eh_frame", "") \
            and not self.name.startswith(".note")


class Symbol(NamedTuple):
    """A row of the symbol table. `section` is an index, UNDEFINED or reserved; `value` an offset into it."""

    name: str
    kind: int
    binding: int
    other: int
    section: int
    value: int
    size: int


@dataclass(frozen=True)
class Object:
    """An object laid out: `nbytes` in all, `symbols` and (of these) `functions` by name as offsets into it; `flags` are the
    header's e_flags."""

    image: bytes
    sections: list[Section]
    places: dict[int, int]
    nbytes: int
    table: list[tuple[str, int | None, bool]]
    functions: dict[str, int]
    flags: int

    @property
    def symbols(self) -> dict[str, int]:
        return {name: place for name, place, absolute in self.table if place is not None and not absolute and name}

    def content(self, base: int, relocations: Mapping[int, Field]) -> bytearray:
        """The bytes, relocated to lie at `base`. Raises CompileError for a relocation that is not in the table or does not
        reach, InvalidArgument where the image is damaged."""
        content = bytearray(self.nbytes)
        for index, place in self.places.items():
            section = self.sections[index]
            content[place:place + section.size] = self.image[section.offset:section.offset + section.size]
        _relocate(self, content, base, relocations)
        return content


def read(image: bytes, machine: str) -> Object:
    """The object in `image`, of code for `machine` ("x86-64", "amdgcn").

    Raises InvalidArgument for an image that is no such object, CompileError for one that needs what a kernel may not
    have (an external symbol, writable data).
    """
    sections = read_sections(image, machine)
    places, nbytes = _layout(sections)
    table, functions = _symbols(image, sections, places)
    return Object(image, sections, places, nbytes, table, functions, HEADER.unpack_from(image)[7])


def read_sections(image: bytes, machine_name: str, kind: int = ET_REL) -> list[Section]:
    """The section table of an image of code for a machine, of type ET_REL or ET_EXEC. Raises InvalidArgument."""
    if len(image) < HEADER.size or image[:6] != ELF64_LE:
        raise InvalidArgument("the image is no 64-bit little-endian ELF object",
                              evidence=f"{len(image)} bytes, starting with {bytes(image[:8]).hex(' ') or 'nothing'}",
                              remedy=f"compile for {machine_name} and pass the object file's bytes")
    _, found, machine, _, _, _, table, _, _, _, _, entry_size, count, names_index = HEADER.unpack_from(image)
    if machine != MACHINES[machine_name]:
        known = next((isa for isa, number in MACHINES.items() if number == machine), f"e_machine {machine}")
        raise InvalidArgument(f"the image holds {known} code",
                              evidence=f"e_machine {machine}, this device runs {MACHINES[machine_name]} ({machine_name})",
                              remedy="compile for the isa in the device's properties")
    if found != kind:
        raise InvalidArgument(f"the image is no {_KINDS[kind]}", evidence=f"e_type {found}, expected {kind}",
                              remedy="pass the compiler's output as it is")
    if entry_size != SECTION.size or names_index >= count:
        raise corrupt(f"section headers of {entry_size} bytes, name table {names_index} of {count}")
    _bounds(image, table, count * entry_size, "section headers")
    raw = [SECTION.unpack_from(image, table + i * entry_size) for i in range(count)]
    for i, (_, type_, _, _, offset, size, *_) in enumerate(raw):
        if type_ not in (0, NOBITS):
            _bounds(image, offset, size, f"section {i}")
    strings = _bytes_of(image, raw[names_index][4], raw[names_index][5])
    return [Section(_string(strings, name), type_, flags, offset, size, link, info, max(1, align))
            for name, type_, flags, _, offset, size, link, info, align, _ in raw]


def _layout(sections: list[Section]) -> tuple[dict[int, int], int]:
    """Where each loaded section goes, as offsets into one mapping, and the mapping's size in bytes."""
    places: dict[int, int] = {}
    end = 0
    for index, section in enumerate(sections):
        if not section.loaded:
            continue
        if section.align & (section.align - 1) or section.align > PAGE:
            raise corrupt(f"{section.name} asks for an alignment of {section.align}")
        constant = not section.flags & WRITE or section.name.startswith(".data.rel.ro")
        if section.size and (section.flags & _TLS or section.type == NOBITS or not constant):
            raise CompileError("a kernel may hold code and constants only",
                               evidence=f"section {section.name}: {section.size} bytes of writable data",
                               remedy="pass state in buffers")
        end = -(-end // section.align) * section.align
        places[index] = end
        end += section.size
    return places, end


def read_symbols(image: bytes, sections: list[Section]) -> list[Symbol]:
    """The symbol table. Raises InvalidArgument where it is missing or damaged."""
    table = next((s for s in sections if s.type == SYMTAB), None)
    if table is None or table.link >= len(sections) or table.size % SYMBOL.size:
        raise corrupt("no usable symbol table")
    strings = _bytes_of(image, sections[table.link].offset, sections[table.link].size)
    found = []
    for offset in range(table.offset, table.offset + table.size, SYMBOL.size):
        name, info, other, where, value, size = SYMBOL.unpack_from(image, offset)
        if where >= len(sections) and where < _RESERVED:
            raise corrupt(f"symbol {_string(strings, name)!r} lies in section {where} of {len(sections)}")
        found.append(Symbol(_string(strings, name), info & 15, info >> 4, other, where, value, size))
    return found


def _symbols(image: bytes, sections: list[Section],
             places: dict[int, int]) -> tuple[list[tuple[str, int | None, bool]], dict[str, int]]:
    """Every symbol as (name, value or None where it is not loaded, absolute), and the functions by name."""
    symbols: list[tuple[str, int | None, bool]] = []
    functions: dict[str, int] = {}
    for name, kind, _, _, where, value, _ in read_symbols(image, sections):
        if where == UNDEFINED and name:
            raise CompileError(f"the image needs {name!r}, which it does not define",
                               evidence="undefined symbol", remedy="inline what the kernel calls; nothing is linked in")
        absolute = where == _ABSOLUTE
        inside = where in places and value <= sections[where].size
        place = value if absolute else places[where] + value if inside else None
        symbols.append((name, place, absolute))
        if kind == FUNC and place is not None and not absolute and sections[where].flags & EXEC:
            functions[name] = place
    return symbols, functions


def _relocate(o: Object, content: bytearray, base: int, relocations: Mapping[int, Field]) -> None:
    for table in o.sections:
        if table.type != RELA or table.info not in o.places:
            continue
        target = o.sections[table.info]
        if table.size % RELOCATION.size:
            raise corrupt(f"{table.name} of {table.size} bytes")
        for at in range(table.offset, table.offset + table.size, RELOCATION.size):
            offset, info, addend = RELOCATION.unpack_from(o.image, at)
            field, index = relocations.get(info & 0xFFFFFFFF), info >> 32
            if field is None:
                raise CompileError(f"relocation type {info & 0xFFFFFFFF} is not one a kernel needs",
                                   evidence=f"{table.name} at {offset:#x}",
                                   remedy="compile with the small code model, position independent, symbols local")
            if index >= len(o.table) or offset + struct.calcsize(field.format) > target.size:
                raise corrupt(f"{table.name}: offset {offset:#x}, symbol {index}")
            name, place, absolute = o.table[index]
            if place is None:
                raise corrupt(f"{table.name}: symbol {name!r} lies in no loaded section")
            where = o.places[table.info] + offset
            value = (place if absolute else base + place) + addend - (base + where if field.relative else 0)
            if field.half is not None:
                value = value >> field.half & 0xFFFFFFFF
            try:
                struct.pack_into(field.format, content, where, value)
            except struct.error:
                raise CompileError(f"{field.name} at {offset:#x} does not reach {name!r}", evidence=f"value {value:#x}",
                                   remedy="compile position independent code") from None


def _bounds(image: bytes, offset: int, size: int, what: str) -> None:
    if offset + size > len(image):
        raise corrupt(f"{what} at {offset:#x}..{offset + size:#x} of {len(image)} bytes")


def _bytes_of(image: bytes, offset: int, size: int) -> bytes:
    return bytes(image[offset:offset + size])


def _string(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    if offset > len(table) or end < 0:
        raise corrupt(f"name at {offset} of {len(table)} bytes")
    return table[offset:end].decode("utf-8", "replace")


def corrupt(evidence: str) -> InvalidArgument:
    """What is raised for an image that contradicts itself."""
    return InvalidArgument("the ELF image is damaged", evidence=evidence,
                           remedy="compile it again; clear the cache it came from")
