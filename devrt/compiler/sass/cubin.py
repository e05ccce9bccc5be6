"""A kernel as a cubin: the ELF file that the vendor's loader and disassembler read, and reader.py.

Sources of the numbers: what ptxas writes, read with readelf; names of attributes after CuAssembler's CuNVInfo.py.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field

from devrt import elf
from devrt.compiler.sass import mir
from devrt.compiler.sass.target import PARAMS
from devrt.device import CompileError

ALIGNMENT = 128  # of code
RESERVED_REGISTERS = 2  # the count in a cubin includes two that the hardware keeps


class Attribute(enum.IntEnum):
    """Records of .nv.info (of the image) and .nv.info.KERNEL."""

    MAX_THREADS = 0x05       # three words: x, y, z
    PARAM_CBANK = 0x0A       # symbol of the constant bank, offset u16, bytes u16
    REQUIRED_THREADS = 0x10  # three words: a block has exactly that many
    FRAME_SIZE = 0x11        # symbol, bytes
    MIN_STACK_SIZE = 0x12    # symbol, bytes
    KPARAM_INFO = 0x17       # index u32, ordinal u16, offset u16, u32 with the size in 31:18
    CBANK_PARAM_SIZE = 0x19  # bytes
    MAXREG_COUNT = 0x1B
    EXIT_OFFSETS = 0x1C      # a word for each EXIT
    REGCOUNT = 0x2F          # symbol, registers
    INDIRECT_BRANCH = 0x34   # address of the branch, two u16, number of targets, targets
    CUDA_API_VERSION = 0x37  # the vendor's compiler wrote it
    NUM_BARRIERS = 0x4C


class Format(enum.IntEnum):
    """How the value of an attribute is stored."""

    NONE = 1
    BYTE = 2
    HALF = 3
    SIZED = 4


# Section types and symbol flags of the vendor.
INFO_SECTION, CALLGRAPH_SECTION = 0x70000000, 0x70000001
ENTRY = 0x10  # st_other of a kernel
BARRIERS_SHIFT = 20  # of a code section's flags, 7 bits
REGISTERS_SHIFT = 24  # of a code section's sh_info, on sm_75 to 89
_WHOLE_PARAM = 0x1F000  # of KPARAM_INFO: all bytes are passed, in constant memory


OSABI, ABI_VERSION = 0x41, 8  # of CUDA 13; before it 0x33 and 7, with the generation in bits 7:0 of e_flags
SM_SHIFT = 8  # where e_flags has the generation
_FLAGS = {120: 0x6000002}  # the rest of e_flags, as ptxas sets it
_OTHER_FLAGS = 0x6000004


@dataclass
class _Out:
    """A section to be written."""

    name: str
    type: int
    content: bytes = b""
    flags: int = 0
    link: int = 0
    info: int = 0
    align: int = 1
    entry: int = 0
    nbytes: int = field(default=-1)  # where it has no content in the file

    @property
    def size(self) -> int:
        return len(self.content) if self.nbytes < 0 else self.nbytes


def write(f: mir.Function, code: bytes, registers: int, exits: tuple[int, ...] = ()) -> bytes:
    """The cubin of a kernel whose code is laid out. `registers` are those that the code uses, highest index + 1; `exits` are
    the addresses of its EXITs. Local memory is addressed from 0 up. Raises CompileError for an unknown generation."""
    if f.sm not in PARAMS:
        raise CompileError(f"no cubin for sm_{f.sm}", evidence=f"known: {sorted(PARAMS)}")
    if len(code) % 16:
        raise CompileError("SASS comes in words of 16 bytes", evidence=f"{len(code)} bytes of {f.name}")
    barriers = int(any(i.op == "BAR" for block in f.blocks for i in block.instructions))
    count = min(registers + RESERVED_REGISTERS, 255)
    params = max((offset + nbytes for _, offset, nbytes in f.params), default=0)

    # Indexes of the sections below: names and symbols refer to them.
    sections = [
        _Out("", 0),
        _Out(".shstrtab", elf.STRTAB),
        _Out(".strtab", elf.STRTAB),
        _Out(".symtab", elf.SYMTAB, link=2, align=8, entry=elf.SYMBOL.size),
        _Out(".nv.info", INFO_SECTION, link=3, align=4),
        _Out(f".nv.info.{f.name}", INFO_SECTION, flags=elf.INFO_LINK, link=3, align=4),
        _Out(".nv.callgraph", CALLGRAPH_SECTION, struct.pack("<8i", 0, -1, 0, -2, 0, -3, 0, -4),
             link=3, align=4, entry=8),
        _Out(f".text.{f.name}", elf.PROGBITS, code, elf.ALLOC | elf.EXEC | barriers << BARRIERS_SHIFT, 3, align=ALIGNMENT),
        _Out(f".nv.constant0.{f.name}", elf.PROGBITS, bytes(PARAMS[f.sm] + params), elf.ALLOC | elf.INFO_LINK, info=7, align=4),
    ]
    text, bank = sections[7], 8
    if f.constants:
        sections.append(_Out(".nv.constant3", elf.PROGBITS, f.constants, elf.ALLOC, align=16))
    for kind, nbytes in (("shared", f.shared_bytes), ("local", f.local_bytes)):
        if nbytes:
            sections.append(_Out(f".nv.{kind}.{f.name}", elf.NOBITS, b"", elf.ALLOC | elf.WRITE | elf.INFO_LINK, info=7, align=16,
                                 nbytes=nbytes))

    strings = _Strings()
    symbols = [elf.SYMBOL.pack(0, 0, 0, 0, 0, 0),
               *(elf.SYMBOL.pack(strings.add(s.name), elf.SECTION_SYMBOL, 0, n, 0, 0)
                 for n, s in enumerate(sections) if s.flags & elf.ALLOC)]
    bank_symbol = next(n for n, row in enumerate(symbols) if elf.SYMBOL.unpack(row)[3] == bank)
    kernel = len(symbols)
    symbols.append(elf.SYMBOL.pack(strings.add(f.name), 1 << 4 | elf.FUNC, ENTRY, 7, 0, len(code)))
    sections[2].content, sections[3].content, sections[3].info = bytes(strings.table), b"".join(symbols), kernel
    text.info = kernel | (count << REGISTERS_SHIFT if f.sm < 90 else 0)
    sections[4].content = b"".join(_sized(attribute, struct.pack("<II", kernel, value)) for attribute, value in (
        (Attribute.REGCOUNT, count), (Attribute.FRAME_SIZE, 0), (Attribute.MIN_STACK_SIZE, 0)))
    sections[5].content = _kernel_info(f, params, bank_symbol, barriers, exits)
    sections[5].info = 7
    return _assemble(sections, f.sm)


class _Strings:
    """A string table."""

    def __init__(self) -> None:
        self.table = bytearray(1)

    def add(self, text: str) -> int:
        at = len(self.table)
        self.table += text.encode() + b"\0"
        return at


def _sized(attribute: Attribute, data: bytes) -> bytes:
    return struct.pack("<BBH", Format.SIZED, attribute, len(data)) + data


def _kernel_info(f: mir.Function, params: int, bank: int, barriers: int, exits: tuple[int, ...]) -> bytes:
    records = [_sized(Attribute.PARAM_CBANK, struct.pack("<IHH", bank, PARAMS[f.sm], params)),
               struct.pack("<BBH", Format.HALF, Attribute.CBANK_PARAM_SIZE, params)]
    records += [_sized(Attribute.KPARAM_INFO, struct.pack("<IHHI", 0, n, offset, nbytes << 18 | _WHOLE_PARAM))
                for n, (_, offset, nbytes) in reversed(list(enumerate(f.params)))]
    records.append(struct.pack("<BBH", Format.HALF, Attribute.MAXREG_COUNT, 255))
    if barriers:
        records.append(struct.pack("<BBH", Format.BYTE, Attribute.NUM_BARRIERS, barriers))
    if exits:
        records.append(_sized(Attribute.EXIT_OFFSETS, struct.pack(f"<{len(exits)}I", *exits)))
    records.append(_sized(Attribute.MAX_THREADS, struct.pack("<III", f.threads, 1, 1)))
    return b"".join(records)


def _assemble(sections: list[_Out], sm: int) -> bytes:
    names = _Strings()
    name_at = [0] + [names.add(s.name) for s in sections[1:]]
    sections[1].content = bytes(names.table)
    body, rows = bytearray(elf.HEADER.size), []
    for s, name in zip(sections, name_at, strict=True):
        body += bytes(-len(body) % s.align)
        rows.append(elf.SECTION.pack(name, s.type, s.flags, 0, len(body) if s.type else 0, s.size, s.link, s.info,
                                     s.align if s.type else 0, s.entry))
        body += s.content
    body += bytes(-len(body) % 8)
    elf.HEADER.pack_into(body, 0, elf.ELF64_LE + bytes((1, OSABI, ABI_VERSION)), elf.ET_EXEC, elf.MACHINES["sass"], 1, 0, 0,
                         len(body), _FLAGS.get(sm, _OTHER_FLAGS) | sm << SM_SHIFT,
                         elf.HEADER.size, 0, 0, elf.SECTION.size, len(sections), 1)
    return bytes(body) + b"".join(rows)
