"""Machine code for the CPU: relocatable ELF objects, loaded without a linker.

An object is laid out in one mapping, relocated while it is writable and then made executable: no page is ever both.
It may hold code and constants only. Writable data would be state that outlives a dispatch, and an undefined symbol
would be code that nobody vouches for, so both are refused.

The reader is `struct` and not pyelftools: that takes longer to import than all kernels of a model take to load.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from devrt.device import CompileError, InvalidArgument
from devrt.ioctl.errors import reported_as
from devrt.ioctl.system import MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE, System, view

if TYPE_CHECKING:
    from devrt.cpu.commands import CpuCommandList
    from devrt.cpu.device import CpuDevice

PAGE = 4096

# Numbers of the ELF specification and the x86-64 psABI.
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_ELF64_LE, _ET_REL = b"\x7fELF\x02\x01", 1
_SYMTAB, _RELA, _NOBITS, _UNWIND = 2, 4, 8, 0x70000001
_WRITE, _ALLOC, _EXEC, _TLS = 1, 2, 4, 0x400
_UNDEFINED, _ABSOLUTE, _RESERVED = 0, 0xFFF1, 0xFF00
_MACHINES = {"x86-64": 62, "aarch64": 183}


class _Field(NamedTuple):
    """How one relocation type is stored: struct format, relative to its own place or absolute."""

    name: str
    format: str
    relative: bool


_RELOCATIONS = {  # System V psABI x86-64, table 4.9
    1: _Field("R_X86_64_64", "<Q", False),
    2: _Field("R_X86_64_PC32", "<i", True),
    4: _Field("R_X86_64_PLT32", "<i", True),
    10: _Field("R_X86_64_32", "<I", False),
    11: _Field("R_X86_64_32S", "<i", False),
    24: _Field("R_X86_64_PC64", "<q", True),
}


@dataclass(frozen=True)
class _Section:
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
        return bool(self.flags & _ALLOC) and self.type != _UNWIND and self.name not in (".eh_frame", "") \
            and not self.name.startswith(".note")


@dataclass
class Code:
    """Executable memory: `symbols` maps the object's functions to addresses. `unmap` ends it; not twice."""

    system: System
    address: int
    nbytes: int
    symbols: dict[str, int]

    def unmap(self) -> None:
        self.system.munmap(self.address, self.nbytes)


def load_object(system: System, image: bytes) -> Code:
    """Map, relocate and protect an x86-64 object.

    Raises InvalidArgument for an image that is no such object, CompileError for one that needs what a kernel may not
    have (an external symbol, writable data, a relocation of another code model). Nothing stays mapped after an error.
    """
    sections = _sections(image)
    places, total = _layout(sections)
    symbols, functions = _symbols(image, sections, places)
    nbytes = max(PAGE, -(-total // PAGE) * PAGE)
    content = bytearray(nbytes)
    for index, place in places.items():
        section = sections[index]
        content[place:place + section.size] = image[section.offset:section.offset + section.size]
    with contextlib.ExitStack() as undo, reported_as("can't map memory for machine code"):
        base = system.mmap(-1, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE)
        undo.callback(system.munmap, base, nbytes)
        _relocate(image, sections, places, symbols, content, base)
        view(base, nbytes)[:] = content
        system.mprotect(base, nbytes, PROT_READ | PROT_EXEC)
        undo.pop_all()
    return Code(system, base, nbytes, {name: base + place for name, place in functions.items()})


def _sections(image: bytes) -> list[_Section]:
    if len(image) < _HEADER.size or image[:6] != _ELF64_LE:
        raise InvalidArgument("the image is no 64-bit little-endian ELF object",
                              evidence=f"{len(image)} bytes, starting with {bytes(image[:8]).hex(' ') or 'nothing'}",
                              remedy="compile for x86-64 and pass the object file's bytes")
    _, kind, machine, _, _, _, table, _, _, _, _, entry_size, count, names_index = _HEADER.unpack_from(image)
    if machine != _MACHINES["x86-64"]:
        known = next((isa for isa, number in _MACHINES.items() if number == machine), f"e_machine {machine}")
        raise InvalidArgument(f"the image holds {known} code",
                              evidence=f"e_machine {machine}, this device runs 62 (x86-64)",
                              remedy="compile for the isa in the device's properties")
    if kind != _ET_REL:
        raise InvalidArgument("the image is no relocatable object", evidence=f"e_type {kind}, expected 1 (ET_REL)",
                              remedy="pass the compiler's object, not a linked file")
    if entry_size != _SECTION.size or names_index >= count:
        raise _corrupt(f"section headers of {entry_size} bytes, name table {names_index} of {count}")
    _bounds(image, table, count * entry_size, "section headers")
    raw = [_SECTION.unpack_from(image, table + i * entry_size) for i in range(count)]
    for i, (_, type_, _, _, offset, size, *_) in enumerate(raw):
        if type_ not in (0, _NOBITS):
            _bounds(image, offset, size, f"section {i}")
    strings = _bytes_of(image, raw[names_index][4], raw[names_index][5])
    return [_Section(_string(strings, name), type_, flags, offset, size, link, info, max(1, align))
            for name, type_, flags, _, offset, size, link, info, align, _ in raw]


def _layout(sections: list[_Section]) -> tuple[dict[int, int], int]:
    """Where each loaded section goes, as offsets into one mapping, and the mapping's size in bytes."""
    places: dict[int, int] = {}
    end = 0
    for index, section in enumerate(sections):
        if not section.loaded:
            continue
        if section.align & (section.align - 1) or section.align > PAGE:
            raise _corrupt(f"{section.name} asks for an alignment of {section.align}")
        constant = not section.flags & _WRITE or section.name.startswith(".data.rel.ro")
        if section.size and (section.flags & _TLS or section.type == _NOBITS or not constant):
            raise CompileError("a kernel may hold code and constants only",
                               evidence=f"section {section.name}: {section.size} bytes of writable data",
                               remedy="pass state in buffers")
        end = -(-end // section.align) * section.align
        places[index] = end
        end += section.size
    return places, end


def _symbols(image: bytes, sections: list[_Section],
             places: dict[int, int]) -> tuple[list[tuple[str, int | None, bool]], dict[str, int]]:
    """Every symbol as (name, value or None where it is not loaded, absolute), and the functions by name."""
    table = next((s for s in sections if s.type == _SYMTAB), None)
    if table is None or table.link >= len(sections) or table.size % _SYMBOL.size:
        raise _corrupt("no usable symbol table")
    strings = _bytes_of(image, sections[table.link].offset, sections[table.link].size)
    symbols: list[tuple[str, int | None, bool]] = []
    functions: dict[str, int] = {}
    for offset in range(table.offset, table.offset + table.size, _SYMBOL.size):
        name_at, info, _, where, value, _ = _SYMBOL.unpack_from(image, offset)
        name = _string(strings, name_at)
        if where == _UNDEFINED and name:
            raise CompileError(f"the image needs {name!r}, which it does not define",
                               evidence="undefined symbol", remedy="inline what the kernel calls; nothing is linked in")
        absolute = where == _ABSOLUTE
        if not absolute and where >= len(sections) and where < _RESERVED:
            raise _corrupt(f"symbol {name!r} lies in section {where} of {len(sections)}")
        inside = where in places and value <= sections[where].size
        place = value if absolute else places[where] + value if inside else None
        symbols.append((name, place, absolute))
        if info & 15 == 2 and place is not None and not absolute and sections[where].flags & _EXEC:
            functions[name] = place
    return symbols, functions


def _relocate(image: bytes, sections: list[_Section], places: dict[int, int],
              symbols: list[tuple[str, int | None, bool]], content: bytearray, base: int) -> None:
    for table in sections:
        if table.type != _RELA or table.info not in places:
            continue
        target = sections[table.info]
        if table.size % _RELOCATION.size:
            raise _corrupt(f"{table.name} of {table.size} bytes")
        for at in range(table.offset, table.offset + table.size, _RELOCATION.size):
            offset, info, addend = _RELOCATION.unpack_from(image, at)
            field, index = _RELOCATIONS.get(info & 0xFFFFFFFF), info >> 32
            if field is None:
                raise CompileError(f"relocation type {info & 0xFFFFFFFF} is not one a kernel needs",
                                   evidence=f"{table.name} at {offset:#x}",
                                   remedy="compile with the small code model, position independent, symbols local")
            if index >= len(symbols) or offset + struct.calcsize(field.format) > target.size:
                raise _corrupt(f"{table.name}: offset {offset:#x}, symbol {index}")
            name, place, absolute = symbols[index]
            if place is None:
                raise _corrupt(f"{table.name}: symbol {name!r} lies in no loaded section")
            where = places[table.info] + offset
            value = (place if absolute else base + place) + addend - (base + where if field.relative else 0)
            try:
                struct.pack_into(field.format, content, where, value)
            except struct.error:
                raise CompileError(f"{field.name} at {offset:#x} does not reach {name!r}", evidence=f"value {value:#x}",
                                   remedy="compile position independent code") from None


def _bounds(image: bytes, offset: int, size: int, what: str) -> None:
    if offset + size > len(image):
        raise _corrupt(f"{what} at {offset:#x}..{offset + size:#x} of {len(image)} bytes")


def _bytes_of(image: bytes, offset: int, size: int) -> bytes:
    return bytes(image[offset:offset + size])


def _string(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    if offset > len(table) or end < 0:
        raise _corrupt(f"name at {offset} of {len(table)} bytes")
    return table[offset:end].decode("utf-8", "replace")


def _corrupt(evidence: str) -> InvalidArgument:
    return InvalidArgument("the ELF image is damaged", evidence=evidence,
                           remedy="compile it again; clear the cache it came from")


class CpuProgram:
    """One kernel: `void entry(ptr args, i64 group_begin, i64 group_end, ptr scratch)`.

    `args` points at 64-bit words, one per argument; the function runs all groups in [begin, end) and may use `scratch`
    (properties.scratch_bytes, aligned to 64 bytes, contents undefined).
    """

    def __init__(self, device: CpuDevice, image: bytes, entry: str) -> None:
        code = load_object(device.system, image)
        if entry not in code.symbols:
            code.unmap()
            raise InvalidArgument(f"the image has no function {entry!r}",
                                  evidence=f"it has {', '.join(sorted(code.symbols)) or 'none'}",
                                  remedy="name one of them")
        self.device, self.name, self.code, self.address = device, entry, code, code.symbols[entry]
        self.closed = False
        self.lists: weakref.WeakSet[CpuCommandList] | None = None  # those that use it; told when it is closed

    def check(self) -> None:
        if self.closed:
            raise InvalidArgument(f"program {self.name} is used after it was closed", remedy="load it again")

    def close(self) -> None:
        """Give the code's memory back once the work queued so far is done. Closing twice is harmless."""
        if self.closed:
            return
        self.closed = True
        for commands in self.lists or ():
            commands.stale = True
        self.device.retirement.later(self.code.unmap)
        self.device.retirement.collect()

    def __del__(self, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        # Queued work holds its programs, so the last reference can only go when nothing runs this code any more.
        if not getattr(self, "closed", True) and not exiting():
            self.closed = True
            self.code.unmap()

    def __repr__(self) -> str:
        return f"<cpu program {self.name}{', closed' if self.closed else ''}>"
