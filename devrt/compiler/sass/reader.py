"""Cubins: kernels with their code, constants and needs, out of devrt's images and out of ptxas's.

An image is laid out per kernel: its own code section first, then the device functions of the image. What holds addresses is
relocated when the loader knows them (Kernel.place). Nothing of an image is trusted: whatever contradicts itself is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from devrt import elf
from devrt.compiler.sass.cubin import (
    ALIGNMENT,
    BARRIERS_SHIFT,
    CALLGRAPH_SECTION,
    ENTRY,
    INFO_SECTION,
    OSABI,
    REGISTERS_SHIFT,
    SM_SHIFT,
    Attribute,
    Format,
)
from devrt.device import InvalidArgument

# What the hardware can give a block or a thread; more in an image is damage.
_MOST_SHARED, _MOST_LOCAL, _MOST_BANK, _MOST_GLOBALS = 256 << 10, 16 << 20, 64 << 10, 1 << 28
_BLOCK_SIZES = Attribute.REQUIRED_THREADS, Attribute.MAX_THREADS  # the first that a kernel has is its block
_RESERVED_SHARED = 1024  # behind the shared memory of the vendor's code on sm_80 to 89; counted in from sm_90 on
_UNKNOWN_STACK, _USUAL_STACK = 0xFFFFFFFF, 1024  # code that calls through pointers: what the vendor's loader gives it
_GENERATIONS = range(75, 130)


class Place(NamedTuple):
    """A region of a kernel and an offset into it: "code", "globals" or the name of a constant bank ("3")."""

    region: str
    offset: int


class Relocation(NamedTuple):
    """At `where`, bits 31+shift:shift of the address of `target`, or all 64 bits (`bits`)."""

    where: Place
    bits: int
    shift: int
    target: Place


# Relocation types: (bits, shift, bytes from the relocation's offset to the field).
_RELOCATIONS = {
    1: (32, 0, 0),      # R_CUDA_32
    2: (64, 0, 0),      # R_CUDA_64
    3: (32, 0, 0),      # R_CUDA_G32
    4: (64, 0, 0),      # R_CUDA_G64
    0x38: (32, 0, 4),   # R_CUDA_ABS32_LO_32: the immediate of an instruction
    0x39: (32, 32, 4),  # R_CUDA_ABS32_HI_32
}


@dataclass(frozen=True)
class Param:
    """An argument: byte offset from the start of the parameters, and bytes."""

    ordinal: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Placed:
    """A kernel's memory as it is loaded."""

    code: bytes
    constants: dict[int, bytes]
    globals: bytes


@dataclass(frozen=True)
class Kernel:
    """A kernel. `code` runs from `entry` on, byte addresses; `registers` a thread needs, those the hardware keeps included;
    `barriers` of the block. `shared_bytes` a block, `local_bytes` a thread, addressed from 0 up; `stack_bytes` a thread, that
    the vendor's code takes downwards from the stack pointer in bank 0. Parameters lie in bank 0 from `params_offset` on;
    `constants` are the banks' initial bytes. `max_threads` is (x, y, z) or empty, `functions` are the addresses in `code`,
    `indirect` the targets of indirect branches by their address."""

    name: str
    sm: int
    code: bytes
    entry: int
    registers: int
    barriers: int
    shared_bytes: int
    local_bytes: int
    stack_bytes: int
    params_offset: int
    params_bytes: int
    params: tuple[Param, ...]
    constants: dict[int, bytes]
    globals: bytes
    relocations: tuple[Relocation, ...]
    max_threads: tuple[int, ...]
    functions: dict[str, int]
    indirect: dict[int, tuple[int, ...]]

    def place(self, code: int, globals_: int) -> Placed:
        """What to load, where the code lies at address `code` and global variables at `globals_`."""
        regions = {"code": bytearray(self.code), "globals": bytearray(self.globals),
                   **{str(bank): bytearray(content) for bank, content in self.constants.items()}}
        bases = {"code": code, "globals": globals_}
        for where, bits, shift, target in self.relocations:
            value = (bases[target.region] + target.offset) >> shift & (1 << bits) - 1
            regions[where.region][where.offset:where.offset + bits // 8] = value.to_bytes(bits // 8, "little")
        return Placed(bytes(regions["code"]), {bank: bytes(regions[str(bank)]) for bank in self.constants},
                      bytes(regions["globals"]))


@dataclass(frozen=True)
class Image:
    """A cubin. Code is for `sm`."""

    sm: int
    kernels: dict[str, Kernel]

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name; InvalidArgument where there is none."""
        if name not in self.kernels:
            raise InvalidArgument(f"the cubin has no kernel {name!r}", evidence=f"kernels: {', '.join(self.kernels) or 'none'}",
                                  remedy="name one of its kernels")
        return self.kernels[name]


def read(image: bytes) -> Image:
    """A cubin's kernels. Raises InvalidArgument for an image that is none, is damaged or asks for more than a GPU has."""
    sections = elf.read_sections(image, "sass", elf.ET_EXEC)
    return _Reader(image, sections, elf.read_symbols(image, sections)).image_of()


@dataclass
class _Info:
    """What the attributes of an image or a kernel say."""

    values: dict[int, list[bytes]] = field(default_factory=dict)  # attribute -> data of each record

    def words(self, attribute: Attribute, layout: str) -> Iterator[tuple[int, ...]]:
        """Each record of an attribute, unpacked."""
        for data in self.values.get(attribute, []):
            if len(data) < struct.calcsize(layout):
                raise elf.corrupt(f"attribute {attribute.name} of {len(data)} bytes")
            yield struct.unpack_from(layout, data)

    def of_symbol(self, attribute: Attribute, symbol: int) -> int | None:
        """The value of an attribute of the image that is given for each function."""
        return next((value for index, value in self.words(attribute, "<II") if index == symbol), None)


class _Reader:
    def __init__(self, image: bytes, sections: list[elf.Section], symbols: list[elf.Symbol]) -> None:
        self.image, self.sections, self.symbols = image, sections, symbols
        identity, _, _, _, _, _, _, flags, *_ = elf.HEADER.unpack_from(image)
        self.sm = flags >> SM_SHIFT & 0xFF if identity[7] >= OSABI else flags & 0xFF
        if self.sm not in _GENERATIONS:
            raise InvalidArgument(f"the cubin holds code for sm_{self.sm}", evidence=f"e_flags {flags:#x}",
                                  remedy=f"compile for sm_{_GENERATIONS[0]} or later")
        self.by_name = {s.name: n for n, s in enumerate(sections)}
        self.common = self._info(".nv.info")
        self.code = [n for n, s in enumerate(sections) if s.name.startswith(".text.") and s.type == elf.PROGBITS]

    def image_of(self) -> Image:
        kernels = {}
        for index, symbol in enumerate(self.symbols):
            if symbol.kind == elf.FUNC and symbol.other & ENTRY and symbol.section in self.code:
                kernels[symbol.name] = self._kernel(index, symbol)
        return Image(self.sm, kernels)

    def _kernel(self, index: int, symbol: elf.Symbol) -> Kernel:
        name, text = symbol.name, self.sections[symbol.section]
        info = self._info(f".nv.info.{name}")
        entries = {s.section for s in self.symbols if s.kind == elf.FUNC and s.other & ENTRY}
        places, code = self._code([symbol.section, *(n for n in self.code if n not in entries)])
        banks = {**self._banks(""), **self._banks(f".{name}")}
        globals_places, globals_ = self._globals()
        params_offset, params_bytes = self._params(info, banks)
        registers = self.common.of_symbol(Attribute.REGCOUNT, index)
        barriers = next(iter(info.words(Attribute.NUM_BARRIERS, "<B")), (text.flags >> BARRIERS_SHIFT & 0x7F,))[0]
        vendor = Attribute.CUDA_API_VERSION in info.values
        stack = self.common.of_symbol(Attribute.MIN_STACK_SIZE, index) or 0
        shared = self._nobits(f".nv.shared.{name}", _MOST_SHARED)
        kernel = Kernel(
            name, self.sm, code, symbol.value, text.info >> REGISTERS_SHIFT if registers is None else registers, barriers,
            shared + (_RESERVED_SHARED if vendor and 80 <= self.sm < 90 else 0),
            self._nobits(f".nv.local.{name}", _MOST_LOCAL), _USUAL_STACK if stack == _UNKNOWN_STACK else stack,
            params_offset, params_bytes, tuple(_param(words) for words in info.words(Attribute.KPARAM_INFO, "<IHHI"))[::-1],
            {bank: self._content(n) for bank, n in banks.items()}, globals_,
            tuple(self._relocations(places, globals_places, banks, code, globals_)),
            next((words for asked in _BLOCK_SIZES for words in info.words(asked, "<III")), ()),
            {s.name: places[s.section] + s.value for s in self.symbols
             if s.kind == elf.FUNC and s.section in places and not s.other & ENTRY},
            _indirect(info))
        _check(kernel)
        return kernel

    def _code(self, sections: list[int]) -> tuple[dict[int, int], bytes]:
        """Where each code section lies, and all of them."""
        places, code = {}, bytearray()
        for n in sections:
            code += bytes(-len(code) % ALIGNMENT)
            places[n] = len(code)
            code += self._content(n)
        return places, bytes(code)

    def _banks(self, suffix: str) -> dict[int, int]:
        """Sections of constant banks, of the image or of a kernel."""
        found = {}
        for bank in range(18):
            n = self.by_name.get(f".nv.constant{bank}{suffix}")
            if n is not None and self.sections[n].type == elf.PROGBITS:
                if self.sections[n].size > _MOST_BANK:
                    raise elf.corrupt(f"{self.sections[n].name} of {self.sections[n].size} bytes")
                found[bank] = n
        return found

    def _globals(self) -> tuple[dict[int, int], bytes]:
        """Variables: with values first, then those that start as 0."""
        places, content = {}, bytearray()
        for name in (".nv.global.init", ".nv.global"):
            n = self.by_name.get(name)
            if n is None:
                continue
            s = self.sections[n]
            if s.size > _MOST_GLOBALS or s.align > 4096 or s.align & (s.align - 1):
                raise elf.corrupt(f"{name}: {s.size} bytes, aligned to {s.align}")
            content += bytes(-len(content) % s.align)
            places[n] = len(content)
            content += bytes(s.size) if s.type == elf.NOBITS else self._content(n)
        return places, bytes(content)

    def _params(self, info: _Info, banks: dict[int, int]) -> tuple[int, int]:
        """Where parameters start in bank 0, and their bytes."""
        for _, offset, nbytes in info.words(Attribute.PARAM_CBANK, "<IHH"):
            size = self.sections[banks[0]].size if 0 in banks else 0
            if offset + nbytes > size:
                raise elf.corrupt(f"parameters at {offset:#x}..{offset + nbytes:#x} of {size:#x} bytes of bank 0")
            return offset, nbytes
        return self.sections[banks[0]].size if 0 in banks else 0, 0

    def _relocations(self, code: dict[int, int], globals_: dict[int, int], banks: dict[int, int], text: bytes,
                     variables: bytes) -> Iterator[Relocation]:
        """Those of what this kernel loads."""
        regions = {**{n: Place("code", at) for n, at in code.items()}, **{n: Place("globals", at) for n, at in globals_.items()},
                   **{n: Place(str(bank), 0) for bank, n in banks.items()}}
        sizes = {"code": len(text), "globals": len(variables),
                 **{str(bank): self.sections[n].size for bank, n in banks.items()}}
        for table in self.sections:
            if table.type not in (elf.RELA, elf.REL) or table.info not in regions:
                continue
            step = elf.RELOCATION.size if table.type == elf.RELA else elf.RELOCATION.size - 8
            if table.size % step:
                raise elf.corrupt(f"{table.name} of {table.size} bytes")
            for at in range(table.offset, table.offset + table.size, step):
                offset, info = struct.unpack_from("<QQ", self.image, at)
                addend = struct.unpack_from("<q", self.image, at + 16)[0] if table.type == elf.RELA else None
                yield self._relocation(table, regions, sizes, offset, info, addend)

    def _relocation(self, table: elf.Section, regions: dict[int, Place], sizes: dict[str, int], offset: int, info: int,
                    addend: int | None) -> Relocation:
        kind, index, here = info & 0xFFFFFFFF, info >> 32, regions[table.info]
        if kind not in _RELOCATIONS or index >= len(self.symbols):
            raise elf.corrupt(f"{table.name} at {offset:#x}: relocation type {kind:#x}, symbol {index} of {len(self.symbols)}")
        bits, shift, skip = _RELOCATIONS[kind]
        symbol, section = self.symbols[index], self.sections[table.info]
        where = Place(here.region, here.offset + offset + skip)
        if offset + skip + bits // 8 > section.size:
            raise elf.corrupt(f"{table.name}: offset {offset:#x} of {section.size:#x} bytes")
        target = regions.get(symbol.section)
        if target is None or target.region not in ("code", "globals"):
            raise elf.corrupt(f"{table.name} at {offset:#x}: {symbol.name!r} lies in no section that has an address")
        if addend is None:  # it lies in the field
            content = self.image[section.offset + offset + skip:section.offset + offset + skip + bits // 8]
            addend = int.from_bytes(content, "little")
        to = target.offset + symbol.value + addend
        if not 0 <= to <= sizes[target.region]:
            raise elf.corrupt(f"{table.name} at {offset:#x}: {symbol.name!r} + {addend:#x} is outside {target.region}")
        return Relocation(where, bits, shift, Place(target.region, to))

    def _info(self, name: str) -> _Info:
        """The attributes in a section, none where it does not exist."""
        found = _Info()
        n = self.by_name.get(name)
        if n is None or self.sections[n].type not in (INFO_SECTION, CALLGRAPH_SECTION):
            return found
        data, at = self._content(n), 0
        while at < len(data):
            if at + 4 > len(data):
                raise elf.corrupt(f"{name}: an attribute ends behind the section")
            style, attribute, value = struct.unpack_from("<BBH", data, at)
            at += 4
            content = value.to_bytes(2, "little")
            if style == Format.SIZED:
                if at + value > len(data):
                    raise elf.corrupt(f"{name}: attribute {attribute:#x} of {value} bytes at {at - 4:#x} of {len(data):#x}")
                content, at = data[at:at + value], at + value
            elif style not in (Format.NONE, Format.BYTE, Format.HALF):
                raise elf.corrupt(f"{name}: attribute {attribute:#x} in format {style}")
            found.values.setdefault(attribute, []).append(content)
        return found

    def _nobits(self, name: str, most: int) -> int:
        n = self.by_name.get(name)
        size = self.sections[n].size if n is not None else 0
        if size > most:
            raise elf.corrupt(f"{name} of {size} bytes")
        return size

    def _content(self, n: int) -> bytes:
        s = self.sections[n]
        return bytes(self.image[s.offset:s.offset + s.size]) if s.type != elf.NOBITS else b""


def _param(words: tuple[int, ...]) -> Param:
    _, ordinal, offset, packed = words
    return Param(ordinal, offset, packed >> 18)


def _indirect(info: _Info) -> dict[int, tuple[int, ...]]:
    found = {}
    for data in info.values.get(Attribute.INDIRECT_BRANCH, []):
        words = struct.unpack_from(f"<{len(data) // 4}I", data)
        at = 0
        while at < len(words):
            if at + 3 > len(words) or at + 3 + words[at + 2] > len(words):
                raise elf.corrupt(f"targets of an indirect branch in {len(data)} bytes")
            found[words[at]] = words[at + 3:at + 3 + words[at + 2]]
            at += 3 + words[at + 2]
    return found


def _check(k: Kernel) -> None:
    if not k.code or len(k.code) % 16 or k.entry % 16 or k.entry >= len(k.code):
        raise elf.corrupt(f"{k.name}: {len(k.code)} bytes of code, entry {k.entry:#x}")
    if not 0 < k.registers <= 256 or k.barriers > 16:
        raise elf.corrupt(f"{k.name}: {k.registers} registers, {k.barriers} barriers")
    if k.stack_bytes > _MOST_LOCAL:
        raise elf.corrupt(f"{k.name}: {k.stack_bytes} bytes of stack")
    outside = [p for p in k.params if p.offset + p.nbytes > k.params_bytes]
    if outside:
        raise elf.corrupt(f"{k.name}: parameter {outside[0].ordinal} at {outside[0].offset:#x} of {k.params_bytes:#x} bytes")
