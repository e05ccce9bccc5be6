"""One SASS instruction: what the compiler writes, the tables encode and decode, the emulator runs.

An instruction is what nvdisasm prints, taken apart: `FFMA.FTZ R0, R1.reuse, -R2, c[0x0][0x160]` has op FFMA, mods ("FTZ",), one
destination and three sources. Operands stand in nvdisasm's order, mods as it prints them: what is the default is not there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

VIRTUAL = 1 << 16  # registers from this index on are virtual: before register allocation


class File(enum.Enum):
    """A register file of a warp (UR, UP: one for all lanes) or of a lane."""

    R = "R"
    UR = "UR"
    P = "P"
    UP = "UP"
    B = "B"    # convergence barriers
    SB = "SB"  # scoreboards

    __hash__ = object.__hash__  # Enum's own takes the hash of the name, each time


# Reads 0 (predicates: true), ignores writes. URZ is coded 63 before sm_100.
ZERO = {File.R: 255, File.UR: 255, File.P: 7, File.UP: 7}


@dataclass(frozen=True, slots=True)
class Reg:
    """`words` consecutive registers from `index` on. A virtual register has its own number of words (mir.Function.words);
    `sub` is the word that this operand starts at."""

    file: File
    index: int
    words: int = 1
    sub: int = 0

    @property
    def zero(self) -> bool:
        return ZERO.get(self.file) == self.index

    @property
    def virtual(self) -> bool:
        return self.index >= VIRTUAL

    def part(self, word: int, words: int = 1) -> Reg:
        """Some words of it."""
        if self.zero:
            return Reg(self.file, self.index, words)
        return Reg(self.file, self.index, words, self.sub + word) if self.virtual else Reg(self.file, self.index + word, words)

    def __str__(self) -> str:
        if self.zero:
            return {File.R: "RZ", File.UR: "URZ", File.P: "PT", File.UP: "UPT"}[self.file]
        if self.virtual:
            part = f".{self.sub}" if self.sub else ""
            return f"%{self.file.value.lower()}{self.index - VIRTUAL}{part}" + (f":{self.words}" if self.words > 1 else "")
        return f"{self.file.value}{self.index}"


RZ, URZ = Reg(File.R, 255), Reg(File.UR, 255)
PT, UPT = Reg(File.P, 7), Reg(File.UP, 7)


@dataclass(frozen=True, slots=True)
class Imm:
    """The raw bits of a constant, `bits` of them, unsigned. The table of the form knows how to print them."""

    value: int
    bits: int = 32


@dataclass(frozen=True, slots=True)
class Cbuf:
    """c[bank][offset], c[bank][index + offset], or with `handle` (a uniform register) cx[handle][offset]. Bytes."""

    bank: int
    offset: int
    index: Reg | None = None
    handle: Reg | None = None
    words: int = 1


@dataclass(frozen=True, slots=True)
class Address:
    """[base * scale + uniform + offset], desc[descriptor][..] where there is one. `base` covers two words where it is 64 bits."""

    base: Reg | None
    offset: int = 0
    uniform: Reg | None = None
    descriptor: Reg | None = None
    scale: int = 1


@dataclass(frozen=True, slots=True)
class Special:
    """A special register by its number (S2R, CS2R)."""

    number: int


@dataclass(frozen=True, slots=True)
class Label:
    """A place in the code: a byte address from the start of the function, or before layout the name of a block."""

    target: int | str


Value = Reg | Imm | Cbuf | Address | Special | Label


@dataclass(frozen=True, slots=True)
class Operand:
    """A value with what stands around it. `neg` -x, `abs` |x|, `inv` ~x or !p; `select` is the suffix that picks a part or reads
    it otherwise ("H0_H0", "H1_H1", "B1", "F32", "COL", ..)."""

    value: Value
    neg: bool = False
    abs: bool = False
    inv: bool = False
    reuse: bool = False
    select: str = ""


@dataclass(frozen=True, slots=True)
class Control:
    """Bits 121:105. `stall`: cycles until the warp issues again. `write`: the scoreboard that is released when the results are
    there, `read`: when the operands have been read (7: none). `wait`: a bit for each scoreboard that must be free first.
    `yields`: the scheduler may take another warp."""

    stall: int = 1
    yields: bool = False
    write: int = 7
    read: int = 7
    wait: int = 0


TRUE = Operand(PT)


@dataclass(frozen=True, slots=True)
class Instruction:
    """`guard` is a predicate register; `address` the byte offset from the start of the function, -1 before layout."""

    op: str
    mods: tuple[str, ...] = ()
    dsts: tuple[Operand, ...] = ()
    srcs: tuple[Operand, ...] = ()
    guard: Operand = TRUE
    control: Control = field(default=Control())
    address: int = -1

    def reads(self) -> Iterator[Reg]:
        """Every register that it reads, guard, addresses and constant indexes included; RZ and PT are left out."""
        for operand in (self.guard, *self.srcs):
            if isinstance(operand.value, Reg) and not operand.value.zero:
                yield operand.value
        for operand in (*self.srcs, *self.dsts):
            value = operand.value
            inner = (value.base, value.uniform, value.descriptor) if isinstance(value, Address) else \
                (value.index, value.handle) if isinstance(value, Cbuf) else ()
            yield from (r for r in inner if r is not None and not r.zero)

    def writes(self) -> Iterator[Reg]:
        """Every register that it writes; RZ and PT are left out."""
        yield from (o.value for o in self.dsts if isinstance(o.value, Reg) and not o.value.zero)
