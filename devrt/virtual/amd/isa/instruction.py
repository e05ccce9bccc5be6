"""A decoded instruction: what the decoder gives, the assembler text prints and the translator reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from devrt.virtual.amd.isa.formats import Gen
from devrt.virtual.amd.isa.opcodes import Effect

Kind = Literal["sgpr", "vgpr", "acc", "ttmp", "vcc", "exec", "flat_scratch", "xnack_mask", "m0", "null", "scc", "vccz", "execz",
               "aperture", "int", "float", "literal", "imm", "off"]
APERTURES = ("src_shared_base", "src_shared_limit", "src_private_base", "src_private_limit")


class IllegalInstruction(Exception):
    """`words` (dwords, as far as they were there) at byte `address` are no instruction of `gen`, because of `reason`."""

    def __init__(self, address: int, words: tuple[int, ...], gen: Gen, reason: str) -> None:
        shown = " ".join(f"{word:08x}" for word in words) or "nothing"
        super().__init__(f"{shown} at 0x{address:x} is no {gen} instruction: {reason}")
        self.address, self.words, self.gen, self.reason = address, words, gen, reason


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand.

    `kind` and `index` name the register: sgpr and vgpr by number, acc by its number among accumulation registers, ttmp 0 to 15;
    vcc, exec, flat_scratch and xnack_mask with index 0 (low or both halves) or 1 (high half); aperture 0 to 3 as in APERTURES.
    int, float, literal, imm and off carry `value`: of a constant the bits in the width of `type`.
    """

    name: str                 # the field's name in the ISA manual: "vdst", "src0", "saddr"
    kind: Kind
    index: int = 0
    dwords: int = 1           # registers it spans
    type: str = "b32"         # "f32", "f16x2", "mask", ..
    dst: bool = False
    src: bool = True          # both: read, then written
    value: int = 0
    neg: bool = False         # packed types: of the low half, float sources only
    neg_hi: bool = False      # packed types: of the high half
    abs: bool = False
    half: int = 0             # 16-bit types: 1 = bits 31:16 of the register; packed types: the half that the low result takes
    half_hi: int = 1          # packed types: the half that the high result takes; mix: 1 = f16 in half `half`, 0 = f32
    sext: bool = False        # SDWA: sign-extended from the selected part
    select: str = ""          # SDWA and 8-bit floats: BYTE_0 to BYTE_3, WORD_0, WORD_1, DWORD

    @property
    def constant(self) -> bool:
        return self.kind in ("int", "float", "literal", "imm")


@dataclass(frozen=True, slots=True)
class Memory:
    """What a memory instruction does, in every lane (space constant: once a wave).

    The address is the sum of the address operands and `offset` bytes. With two accesses `offsets` holds both, in bytes.
    """

    space: Literal["constant", "global", "flat", "scratch", "lds", "buffer"]
    action: Literal["load", "store", "atomic"]
    type: str                          # of one element in memory: "u8" (zero-extended), "i16" (sign-extended), "b96", ..
    atomic: str = ""                   # "add", "cmpswap", ..
    half: Literal["", "lo", "hi"] = ""  # the half of the register that is loaded or stored; the other is kept
    offset: int = 0
    offsets: tuple[int, ...] = ()
    returns: bool = True               # loads, and atomics that give the old value
    addtid: bool = False               # address = M0 + offset + 4 * lane
    to_lds: bool = False               # loaded into LDS at M0, no register
    transpose: bool = False            # global_load_tr, ds_read_tr
    gds: bool = False
    cache: tuple[str, ...] = ()        # "glc", "slc", "dlc", "sc0", "nt", "sc1", "scc"; gfx12: "th:TH_LOAD_NT", "scope:SCOPE_SYS"
    counters: tuple[str, ...] = ()     # counted until done: "vmcnt", "lgkmcnt", "vscnt", "loadcnt", "storecnt", "dscnt", "kmcnt"


@dataclass(frozen=True, slots=True)
class Dpp:
    """Lanes of source 0 rearranged (data parallel primitives)."""

    control: str                # "quad_perm:[1,0,3,2]", "row_shl:1", "row_share:3", "dpp8:[..]", as LLVM writes it
    operation: str              # "quad_perm", "row_shl", .., "dpp8"
    arguments: tuple[int, ...]
    row_mask: int = 15          # a bit per row of 16 lanes
    bank_mask: int = 15         # a bit per 4 lanes of each row
    bound_ctrl: bool = False    # a lane that does not exist reads 0, otherwise the destination keeps its value
    fi: bool = False            # inactive lanes are read as well


@dataclass(frozen=True, slots=True)
class Sdwa:
    """The part of the destination that is written, and what becomes of the rest."""

    dst_sel: str
    dst_unused: str             # "UNUSED_PAD" zeros, "UNUSED_SEXT" sign, "UNUSED_PRESERVE"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction at byte `address`, `size` bytes long. Operands are in the order of the assembler, destinations first."""

    address: int
    size: int
    gen: Gen
    mnemonic: str               # LLVM's, without _e32, _e64, _dpp, _sdwa
    format: str                 # "VOP2", .., as in formats.py; SCRATCH and GLOBAL are apart from FLAT
    suffix: str                 # "", "_e32", "_e64", "_dpp", "_sdwa", "_e64_dpp"
    operands: tuple[Operand, ...]
    effects: Effect
    fields: dict[str, int] = field(repr=False, hash=False)
    clamp: bool = False
    omod: int = 0               # 1: result * 2, 2: * 4, 3: / 2
    op_sel: int = 0             # raw, bit i of source i, bit 3 of the destination
    op_sel_hi: int = 7
    neg_hi: int = 0
    dpp: Dpp | None = None
    sdwa: Sdwa | None = None
    memory: Memory | None = None
    target: int | None = None   # byte address a branch goes to
    matrix: tuple[int, int, int] = (0, 0, 0)            # MFMA: cbsz, abid, blgp
    parts: tuple[Instruction, ...] = ()                 # VOPD: both halves; all sources are read before either result is written

    @property
    def end(self) -> int:
        """The byte address of the next instruction."""
        return self.address + self.size

    @property
    def destinations(self) -> tuple[Operand, ...]:
        return tuple(operand for operand in self.operands if operand.dst)

    @property
    def sources(self) -> tuple[Operand, ...]:
        return tuple(operand for operand in self.operands if operand.src)

    def __str__(self) -> str:
        from devrt.virtual.amd.isa.text import text

        return text(self)
