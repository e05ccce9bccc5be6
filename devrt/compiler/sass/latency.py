"""How long results take, and what tells that they are there: tables of producer class x consumer class, a set a generation.

Some instructions take a fixed number of cycles; whoever needs the result is issued so many cycles later ("coupled").
Others take as long as they take, and release a scoreboard that the consumer waits for ("decoupled").

The numbers are cycles from issue to issue. Sources: Mesa's tables, which NVIDIA gave (nak/sm75_instr_latencies.rs,
nak/sm80_instr_latencies.rs, latencies/sm100/*.csv), and what ptxas of CUDA 13 emits: a table here asks for no more than ptxas
keeps to (tests/compiler/sass/test_latency.py). There is no public table for sm_90: it is
sm_80's, but for what ptxas does otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from devrt.compiler.sass.instruction import TRUE, VIRTUAL, Address, Cbuf, File, Imm, Instruction, Operand, Reg

# ---------------------------------------------------------------------------------------------------------------------
# Classes of instructions: the pipe that they run in.

_ALU = """BMSK FMNMX FMNMX3 FSEL FSET FSETP F2FP F2IP I2FP I2I I2IP IABS IADD IADD3 IADD32I IMNMX ISETP LEA LOP LOP3 LOP32I
    MOV MOV32I P2R PLOP3 PRMT PSETP R2P SEL SGXT SHF SHL SHR VABSDIFF VABSDIFF4 VIADD VIADDMNMX VIMNMX VIMNMX3 VHMNMX
    CSMTEST CSEL"""
_FMA = "FADD FADD32I FFMA FFMA32I FMUL FMUL32I FSWZADD IDP IDP4A IMAD IMUL"
_FP16 = "HADD2 HADD2_32I HFMA2 HFMA2_32I HMUL2 HMUL2_32I"
_FP16_ALU = "HMNMX2 HSET2 HSETP2 VHMNMX"
_FP64 = "DADD DFMA DMUL DSETP DMNMX"
_AGU = """ATOM ATOMG ATOMS BAR CCTL CCTLL LD LDG LDGSTS LDL LDS LDSM RED REDG SHFL ST STG STL STS STSM LDTM MATCH B2R ALD AST
    LDGDEPBAR ERRBAR ARRIVES SYNCS UBLKCP UTMALDG UTMASTG"""
_CBU = "BMOV BSSY BSYNC BREAK WARPSYNC YIELD EXIT BRA BRX BRXU JMP CALL RET KILL NANOSLEEP BPT RPCMOV"
_DISP64 = "LEPC NOP"
_UNIFORM_CLASSES = {"ULDC": "u.uldc", "UMOV": "u.umov", "VOTEU": "u.vote", "R2UR": "u.to", "S2UR": "u.to", "REDUX": "u.to",
                    "LDCU": "u.to", "CREDUX": "u.to"}
_PIPES = {op: pipe for pipe, ops in (("alu", _ALU), ("fma", _FMA), ("h16", _FP16), ("h16a", _FP16_ALU), ("f64", _FP64),
                                     ("agu", _AGU), ("cbu", _CBU), ("d64", _DISP64)) for op in ops.split()}
# Class of the predicates that a pipe writes, and reads as operands.
_PREDICATES = {"alu": "p.alu", "vadd": "p.alu", "d64": "p.alu", "fma": "p.fma", "wide": "p.fma", "h16": "p.h16", "h16a": "p.h16",
               "h16f": "p.h16", "hmma2": "p.hmma2", "f64": "p.f64"}


def pipe(i: Instruction, sm: int) -> str:
    """The class of an instruction on vector registers: "alu", "fma", .. ; "dec" for what has none of its own."""
    op = i.op
    if op in ("HMMA", "IMMA", "BMMA", "QMMA"):
        return _matrix(i, sm)
    if op == "DMMA":
        return "dmma"
    if op == "IMAD" and ("WIDE" in i.mods or "HI" in i.mods):
        return "wide"
    if op == "HADD2" and "F32" in i.mods:
        return "h16f"
    if op == "HFMA2" and "MMA" in i.mods:
        return "hmma2"
    if op == "CS2R":
        return "alu" if "32" in i.mods else "d64"
    if op == "VOTE":
        return "vote"
    if op == "VIADD" and sm == 90:
        return "vadd"
    if (op[0] == "U" or op == "VOTEU") and op not in _PIPES:
        return "udp"
    return _PIPES.get(op, "dec")


_ONE_STEP = {"HMMA": ("1684", "1688"), "IMMA": ("16816", "16832"), "BMMA": ("168128",)}
_TWO_STEPS = {"HMMA": ("16816", "TF32"), "IMMA": ("16832", "16864"), "BMMA": ("168256",)}


def _matrix(i: Instruction, sm: int) -> str:
    """Matrix products: small ones of integers, and those that collect their operands in one step, and in two. A product of
    4-bit integers is as one of 8 bits of half the depth."""
    if sm >= 100 or i.op == "QMMA":
        return "imma" if i.op == "IMMA" else "mma2"
    if i.op == "IMMA" and "16832" in i.mods and any("4" in m for m in i.mods if m != "16832"):
        return "mma1"
    if i.op == "HMMA" and "1684" in i.mods:
        return "mma1"
    two = any(m in _TWO_STEPS[i.op] for m in i.mods)
    return "mma2" if two else "mma1" if any(m in _ONE_STEP[i.op] for m in i.mods) else "imma"


class Access(NamedTuple):
    """A word of a register that an instruction reads or writes: a number of the register, and the class of the access."""

    register: int
    role: str


R_END = 1 << 24  # numbers of words of R are below it
_BASE = {file: place * R_END for place, file in enumerate((File.R, File.UR, File.P, File.UP, File.B, File.SB))}


def number(file: File, index: int, word: int = 0) -> int:
    """A number for a word of a register, virtual or real, unique among files."""
    return _BASE[file] + (index * 8 if index >= VIRTUAL else index) + word


def numbers(r: Reg) -> range:
    """The numbers of a register's words."""
    first = number(r.file, r.index, r.sub)
    return range(first, first + r.words)


class Roles(NamedTuple):
    """Classes of an instruction's accesses by kind of register and place."""

    reads: str        # R
    writes: str
    predicate: str    # P, as an operand or a result
    uniform: str      # UR
    uniform_writes: str
    wide: bool


@cache
def _roles(op: str, mods: tuple[str, ...], sm: int) -> Roles:
    i = Instruction(op, mods)
    p = pipe(i, sm)
    if p == "udp" or op in _UNIFORM_CLASSES:
        role = "u.r2ur" if op == "R2UR" and sm >= 90 else _UNIFORM_CLASSES.get(op, "u.udp")
        reader = "u.udp" if role in ("u.to", "u.vote", "u.r2ur") else role
        vector = "alu" if role == "u.r2ur" else "dec"
        return Roles(vector, vector, "p.dec" if role != "u.udp" else "p.disp", reader, role, False)
    if p == "vote" or op == "ELECT":
        return Roles("alu", "alu", "p.disp", "u.vec", "u.vote", False)
    decoupled = p in ("dec", "agu", "cbu")
    uniform = "u.cbu" if p == "cbu" else "u.dec" if decoupled or p in ("f64", "dmma") else "u.vec"
    name = "fma" if p == "wide" else p
    return Roles(name, name, _PREDICATES.get(p, "p.dec"), uniform, "u.to", p == "wide")


def accesses(i: Instruction, sm: int) -> tuple[list[Access], list[Access]]:
    """What it reads and what it writes, word by word, guard and addresses included."""
    roles = _roles(i.op, i.mods, sm)
    reads: list[Access] = []
    if i.guard is not TRUE and isinstance(i.guard.value, Reg) and not i.guard.value.zero:
        role = "p.guard" if i.guard.value.file is File.P else "up.guard"
        reads += [Access(n, role) for n in numbers(i.guard.value)]
    for place, o in enumerate(i.srcs):
        _read(o, place, roles, i.op, reads)
    writes: list[Access] = []
    if i.op in ("P2R", "R2P"):
        return _masked(i, roles, reads)
    for o in i.dsts:
        value = o.value
        if isinstance(value, Reg):
            if not value.zero:
                _write(value, roles, writes)
        else:
            _read(o, 9, roles, i.op, reads)
    return reads, writes


def _masked(i: Instruction, roles: Roles, reads: list[Access]) -> tuple[list[Access], list[Access]]:
    """P2R and R2P touch those predicates that their mask names."""
    mask = next((o.value.value for o in i.srcs if isinstance(o.value, Imm)), 0x7F)
    touched = [Access(number(File.P, n), roles.predicate) for n in range(7) if mask >> n & 1]
    reads = [access for access in reads if access.role != roles.predicate]
    writes: list[Access] = []
    for o in i.dsts:
        if isinstance(o.value, Reg) and o.value.file is File.R and not o.value.zero:
            _write(o.value, roles, writes)
    return (reads + touched, writes) if i.op == "P2R" else (reads, touched)


def _read(o: Operand, place: int, roles: Roles, op: str, reads: list[Access]) -> None:
    value = o.value
    if isinstance(value, Reg):
        if value.zero:
            return
        if value.file is File.R:
            if not roles.wide:
                role = roles.reads
                reads += [Access(n, role) for n in numbers(value)]
            elif place < 2:
                reads += [Access(n, "wab") for n in numbers(value)]
            else:
                reads += [Access(n, "wch" if k else "wc") for k, n in enumerate(numbers(value))]
            return
        role = roles.predicate if value.file is File.P else roles.uniform if value.file is File.UR else "b" \
            if value.file is not File.UP else "up.bra" if op in ("BRA", "JMP") else "up.uldc" if op in ("ULDC", "LDCU") \
            else "up.udp" if op[0] == "U" else "up.vec"
        reads += [Access(n, role) for n in numbers(value)]
    elif isinstance(value, Address):
        for r, role in ((value.base, roles.reads), (value.uniform, roles.uniform), (value.descriptor, "u.desc")):
            if r is not None and not r.zero:
                reads += [Access(n, role if r.file is not File.UR or role[0] == "u" else roles.uniform) for n in numbers(r)]
    elif isinstance(value, Cbuf):
        if value.index is not None and not value.index.zero:
            reads += [Access(n, roles.reads if value.index.file is File.R else "u.uldc") for n in numbers(value.index)]
        if value.handle is not None and not value.handle.zero:
            reads += [Access(n, "u.bind") for n in numbers(value.handle)]


def _write(r: Reg, roles: Roles, writes: list[Access]) -> None:
    if r.file is File.R and roles.wide:
        writes += [Access(n, "wh" if k or r.words == 1 else "wl") for k, n in enumerate(numbers(r))]
        return
    if r.file is File.UP:
        role = "up.vote" if roles.uniform_writes == "u.vote" else "up.udp"
    else:
        role = {File.R: roles.writes, File.P: roles.predicate, File.UR: roles.uniform_writes}.get(r.file, "b")
    writes += [Access(n, role) for n in numbers(r)]


# ---------------------------------------------------------------------------------------------------------------------
# Tables: columns are producers (of what is read or written again) or, for writes after reads, readers.

_RAW_75 = """
              alu d64 fma wl wh f64 h16 h16a h16f mma1 mma2 imma
alu d64         4   6   5  3  5   9   8    8    8   14   22   10
fma             5   6   4  2  4   9   8    8    8   14   22   10
wab             5   6   4  4  6   9   8    8    8   14   22   10
wc              5   6   4  2  2   9   8    8    8   14   22   10
wch             3   4   2  2  2   7   6    6    6   12   20    8
f64             6   6   6  6  6   8   8    8    8   14   22   10
h16 h16a h16f   6   6   6  6  6   9   6    6    6   14   22   10
mma1 mma2       6   6   6  6  6   9   8    8    8   14   22   10
dec agu cbu     6   6   6  6  6   9   8    8    8   14   22   10
imma            8   8   8  8  8   9   8    8    8   14   22   10
"""
_RAW_80 = """
            alu d64 fma wl wh h16 h16a h16f hmma2 f64 imma mma1 mma2 dmma
alu d64       4   6   5  3  5   5    5    5    10  10   13   16   24   25
fma wc        5   6   4  2  4   5    5    5    10  10   13   16   24   25
wab           5   6   4  4  6   5    5    5    10  10   13   16   24   25
wch           3   4   2  2  2   3    3    3     8   8   11   14   22   23
h16           5   6   5  3  5   4    5    5    10  10   13   16   24   25
h16a          5   6   5  3  5   5    4    5    10  10   13   16   24   25
h16f          5   6   5  3  5   5    5    5    10  10   13   16   24   25
hmma2 f64     6   6   6  6  6   6    6    6     6   6   13   16   24   25
imma mma1     7   7   7  7  7   7    7    7    11  11   14   16   24   26
mma2 dmma     7   7   7  7  7   7    7    7    11  11   14   16   24   26
cbu dec       4   4   4  4  4   4    4    4     6   6   11   14   22   23
agu           5   5   5  5  5   5    5    5     7   7   12   15   23   24
"""
_RAW_120 = """
            alu d64 fma wl wh h16 h16a h16f hmma2 f64 imma mma2
alu d64       4   6   5  3  5   5    5    5    10  10   26   28
fma wc        5   6   4  2  4   5    5    5    10  10   26   28
wab           5   6   4  4  6   5    5    5    10  10   26   28
wch           3   4   2  2  2   3    3    3     8   8   26   28
h16           5   6   5  3  5   4    5    5    10  10   26   28
h16a          5   6   5  3  5   5    4    5    10  10   26   28
h16f          5   6   5  3  5   5    5    5    10  10   26   28
hmma2 f64     6   6   6  6  6   6    6    6     8   8   26   28
imma          7   7   7  7  7   7    7    7    11  11   27   29
mma2 dmma     7   7   7  7  7   7    7    7    11  11   27   29
cbu dec       4   4   4  4  4   4    4    4     6   6   26   28
agu           5   5   5  5  5   5    5    5     7   7   26   28
"""
# Write after write: a + b is b cycles more where the first write has a guard.
_WAW_75 = """
              alu d64 fma  wl  wh f64 h16 h16a h16f mma1 mma2 imma
d64             1   1   1   1   1   4   3    3    3    9   17    5
alu             1   2   1   1   1 1+4 1+3  1+3  1+3  1+9 1+17  1+5
fma             1   2   1   1 1+1 1+4 1+3  1+3  1+3  1+9 1+17  1+5
wl            1+2 2+2 1+1   1   1 3+4 3+3  3+3  3+3  3+9 3+17  3+5
wh              1 1+1   1   1   1 1+4 1+3  1+3  1+3  1+9 1+17  1+5
f64             2   2   2   2   2   1   2    2    2    6   14    2
h16 h16a h16f   2   2   2   2   2 1+1   1    1    1  1+7 1+15  1+3
mma1            2   2   2   2   2   2   2    2    2    1   16    2
mma2            2   2   2   2   2   2   2    2    2    6    1    2
imma          2+2 2+2 2+2 2+2 2+2 3+2 2+2  2+2  2+2  4+6 4+14    1
dec agu cbu     6   6   6   6   6   6   6    6    6    6   14    2
"""
_WAW_80 = """
            alu d64 fma  wl  wh h16 h16a h16f hmma2 f64 imma mma1 mma2 dmma
alu           1 1+1   1   1   1   1    1    1   3+3 3+3  1+8  1+8 1+12 1+20
d64           1   1   1   1   1   1    1    1   1+3 1+3    8    8   12   20
fma           1 1+1   1   1 1+1   1    1    1   3+3 3+3  1+8  1+8 1+12 1+20
wl          2+1 3+1 1+1   1 1+1 2+1  2+1  2+1   3+5 3+5  3+8  3+8 3+12 3+20
wh            1 1+1   1   1   1   1    1    1   1+5 1+5  1+8  1+8 1+12 1+20
h16 h16a      1 1+1   1   1   1   1    1    1   3+3 3+3  1+8  1+8 1+12 1+20
h16f          1   1   1   1   1   1    1    1   2+3 2+3    8    8   12   20
hmma2         1   1   1   1   1   1    1    1     2   3    8    8   12   20
f64           1   1   1   1   1   1    1    1     2   2    7    7   11   19
imma mma1     2   2   2   2   2   2    2    2     2   2    4    4    8   17
mma2 dmma     2   2   2   2   2   2    2    2     2   2    4    4    8   16
cbu dec agu 5+1 5+1 5+1 5+1 5+1 5+1  5+1  5+1   9+1 9+1  6+7  6+7 6+11 6+19
"""
_WAW_120 = """
            alu d64 fma  wl  wh h16 h16a h16f hmma2 f64 imma mma1 mma2
alu           1 1+1   1   1   1   1    1    1   3+3 3+3 2+14 2+14 2+14
d64           1   1   1   1   1   1    1    1   1+3 1+3 1+14 1+14 1+14
fma           1 1+1   1   1 1+1   1    1    1   3+3 3+3 3+14 3+14 3+14
wl          2+1 3+1 1+1   1 1+1 2+1  2+1  2+1   3+5 3+5 3+14 3+14 3+14
wh            1 1+1   1   1   1   1    1    1   1+5 1+5 3+14 3+14 3+14
h16 h16a      1 1+1   1   1   1   1    1    1   3+3 3+3 2+14 2+14 2+14
h16f          1   1   1   1   1   1    1    1   2+3 2+3 2+14 2+14 2+14
hmma2         1   1   1   1   1   1    1    1     1   3   14   14   14
f64           1   1   1   1   1   1    1    1     2   1   13   13   13
imma mma1     2   2   2   2   2   2    2    2     2   2    1    1    1
mma2          2   2   2   2   2   2    2    2     2   2    1    1    1
dmma        4+2 4+2 4+2 4+2 4+2 4+2  4+2  4+2   8+2 8+2 9+10 9+10 9+10
cbu dec agu 5+1 5+1 5+1 5+1 5+1 5+1  5+1  5+1   9+1 9+1 6+13 6+13 6+13
"""
# Write after read: columns are readers.
_WAR_75 = """
                  alu d64 fma wab wc wch f64 h16 h16a h16f mma1 mma2 imma
alu d64 fma wl wh   1   1   1   1  1   1   1   1    1    1    5   13    1
f64                 2   2   2   2  2   2   1   2    2    2    6   14    2
h16 h16a h16f       2   2   2   2  2   2   2   1    1    1    6   14    2
mma1                2   2   2   2  2   2   2   2    2    2    1   14    2
mma2                2   2   2   2  2   2   2   2    2    2    6    1    2
imma                2   2   2   2  2   2   2   2    2    2    6   14    1
dec agu cbu         2   2   2   2  2   2   2   2    2    2    2   14    2
"""
_WAR_80 = """
                                       alu d64 fma wab wc wch h16 h16a h16f hmma2 f64 imma mma1 mma2 dmma
alu d64 fma wl wh h16 h16a h16f          1   1   1   1  1   1   1    1    1     1   1    1    1    1    1
hmma2 f64                                1   1   1   1  1   1   1    1    1     1   1    1    1    1    1
imma mma1 mma2 dmma                      2   2   2   2  2   2   2    2    2     1   1    1    1    1    1
cbu dec agu                              2   2   2   2  2   2   2    2    2     1   1    1    1    1    1
"""
_PREDICATE_RAW_75 = """
              p.disp p.alu p.fma p.h16 p.f64
p.disp            12    12    12    14    15
p.alu              4     4     5     8     9
p.fma              5     5     4     8     9
p.f64             12    12    12    14     8
p.h16             12    12    12     6    15
p.dec p.guard     12    12    12    14    15
"""
_PREDICATE_RAW_80 = """
              p.disp p.alu p.fma p.h16 p.hmma2 p.f64
p.disp            13    13    13    13      14    14
p.alu              4     4     5     5       6     6
p.fma              5     5     4     5       6     6
p.h16             13     5     5     5       6     6
p.hmma2 p.f64     13    13    13    13       6     6
p.dec p.guard     13    13    13    13      14    14
"""
_PREDICATE_WAW_75 = """
              p.disp p.alu p.fma p.h16 p.f64
p.disp p.alu       1     1     1   1+3   1+4
p.fma              1     1     1   1+3   1+4
p.f64            2+2   2+2   2+2   4+2     1
p.h16            4+2   4+2   4+2     1   7+2
p.dec              2     2     2     2     2
"""
_PREDICATE_WAW_80 = """
              p.disp p.alu p.fma p.h16 p.hmma2 p.f64
p.disp p.alu       1     1     1     1       2     2
p.fma              1     1     1     1       2     2
p.h16            7+2   7+2   7+2     1     8+2   8+2
p.hmma2 p.f64    5+2   5+2   5+2   5+2       1     1
p.dec           10+2  10+2  10+2  11+1    12+1  12+1
"""
_UNIFORM_RAW = """
                u.udp u.uldc u.umov u.vote u.r2ur
u.vec               6      2      2      2     13
u.dec               9      2      2      2     13
u.desc              9      2      2      2     13
u.cbu              10      3      3      3     13
u.bind u.uldc      12      5      5      5     14
u.udp               4      2      2      2     13
u.umov u.vote       7      2      2      2     13
u.to               12      5      5      5     13
"""
_UNIFORM_WAW = """
                     u.udp u.uldc u.umov u.vote u.r2ur
u.udp                    1      1      1      1     10
u.uldc u.umov u.vote     7      1      1      1     13
u.to                   7+4      4      4      4      8
u.r2ur                 7+4      4      4      4      1
"""
_UNIFORM_WAR = """
                     u.vec u.dec u.desc u.cbu u.bind u.udp u.uldc u.umov u.vote
u.udp u.to u.r2ur        1     1      1     1      1     1      1      1      1
u.uldc u.umov u.vote     1     1      1     1      1     3      1      1      1
"""
_UNIFORM_PREDICATE_RAW = """
                  up.udp up.vote
up.vec                 6       1
up.udp                 4       1
up.guard up.uldc      11       5
up.bra                 9       2
"""
_UNIFORM_PREDICATE_WAW = """
          up.udp up.vote
up.udp         1       1
up.vote        7       1
"""


class Cycles(NamedTuple):
    """Cycles from issue to issue, and how many more where the first has a guard."""

    least: int
    guarded: int = 0


_Grid = dict[tuple[str, str], Cycles]


def _grid(*texts: str) -> _Grid:
    """(producer, consumer) -> cycles."""
    found: _Grid = {}
    for text in texts:
        head, *rows = text.strip().splitlines()
        columns = head.split()
        for row in rows:
            words = row.split()
            names, values = words[:-len(columns)], words[-len(columns):]
            for name in names:
                for column, value in zip(columns, values, strict=True):
                    found[column, name] = Cycles(*map(int, value.split("+")))
    return found


@dataclass(frozen=True)
class Tables:
    """A generation's latencies: read after write, write after write (producer, consumer), write after read (reader, writer).
    `decoupled`: roles of what is written under a scoreboard."""

    raw: _Grid
    waw: _Grid
    war: _Grid
    decoupled: frozenset[str]


_DECOUPLED = frozenset(("dec", "agu", "cbu", "p.dec", "u.to", "b"))


@cache
def tables(sm: int) -> Tables:
    """The latencies of a generation."""
    if sm < 80:
        return Tables(_grid(_RAW_75, _PREDICATE_RAW_75, _UNIFORM_RAW, _UNIFORM_PREDICATE_RAW),
                      _grid(_WAW_75, _PREDICATE_WAW_75, _UNIFORM_WAW, _UNIFORM_PREDICATE_WAW),
                      _grid(_WAR_75, _UNIFORM_WAR), _DECOUPLED | {"f64", "p.f64", "imma", "mma1", "mma2"})
    predicates, waw = (_PREDICATE_RAW_80, _UNIFORM_RAW, _UNIFORM_PREDICATE_RAW), \
        (_PREDICATE_WAW_80, _UNIFORM_WAW, _UNIFORM_PREDICATE_WAW)
    war = _grid(_WAR_80, _UNIFORM_WAR)
    if sm < 90:
        return Tables(_grid(_RAW_80, *predicates), _grid(_WAW_80, *waw), war, _DECOUPLED | {"f64", "p.f64", "dmma"})
    if sm < 100:
        return Tables(_hopper(_grid(_RAW_80, *predicates)), _like_alu(_grid(_WAW_80, *waw)), _like_alu(war),
                      _DECOUPLED | {"dmma"})
    return Tables(_grid(_RAW_120, *predicates), _grid(_WAW_120, *waw), war, _DECOUPLED | {"f64", "p.f64", "dmma"})


def _like_alu(grid: _Grid) -> _Grid:
    """The same with VIADD, where that is a class of its own."""
    for producer, consumer in list(grid):
        for p in {producer, "vadd" if producer == "alu" else producer}:
            for c in {consumer, "vadd" if consumer == "alu" else consumer}:
                grid[p, c] = grid[producer, consumer]
    return grid


def _hopper(raw: _Grid) -> _Grid:
    """sm_90 is sm_80 but that FP64 has a fixed latency, and that VIADD is as near to the FMA pipe as to the ALU. From ptxas."""
    raw = _like_alu(raw)
    raw["f64", "f64"] = Cycles(8)
    for pair in (("vadd", "fma"), ("vadd", "wab"), ("vadd", "wc"), ("fma", "vadd"), ("wh", "vadd")):
        raw[pair] = Cycles(4)
    return raw


_LEAST = Cycles(1)


def read_after_write(t: Tables, producer: str, consumer: str) -> int:
    """Cycles from a fixed-latency producer to a reader."""
    return t.raw.get((producer, consumer), _LEAST).least


def write_after_write(t: Tables, first: str, second: str, guarded: bool) -> int:
    """Cycles from one writer, with a guard or not, to the next."""
    cycles = t.waw.get((first, second), _LEAST)
    return cycles.least + cycles.guarded if guarded else cycles.least


def write_after_read(t: Tables, reader: str, writer: str) -> int:
    """Cycles from a reader that reads when it is issued to a writer."""
    return t.war.get((reader, writer), _LEAST).least


# ---------------------------------------------------------------------------------------------------------------------
# Instructions

# Take their operands some time after they were issued: who overwrites these waits for a scoreboard.
_READS_LATE = frozenset(("dec", "agu", "dmma"))


@cache
def _late(op: str, mods: tuple[str, ...], sm: int) -> bool:
    p = pipe(Instruction(op, mods), sm)
    if op == "R2UR" and sm >= 90:
        return False
    return p in _READS_LATE or (p == "f64" and sm != 90) or (p in ("imma", "mma1", "mma2") and sm < 80)




def reads_late(i: Instruction, sm: int) -> bool:
    """True where overwriting the registers of R that it reads needs a scoreboard. (All others are read when it is issued.)"""
    return _late(i.op, i.mods, sm)


_XU = ("MUFU", "POPC", "FLO", "BREV", "F2F", "F2I", "I2F", "FRND", "I2I")
_SHARED = ("SHFL", "LDS", "LDSM", "ATOMS", "STS")


@cache
def _queues(op: str, mods: tuple[str, ...], sm: int) -> tuple[str, str]:
    p = pipe(Instruction(op, mods), sm)
    queue = "xu" if op in _XU else op if op in ("S2R", "S2UR", "DMMA") else p if p in ("agu", "f64") else ""
    return queue, "shared" if op in _SHARED else "" if queue == "agu" else queue


def reading_queue(i: Instruction, sm: int) -> str:
    """Instructions of the same queue take their operands one after another: where one has taken them, all before it have. ""
    where there is no such order."""
    return _queues(i.op, i.mods, sm)[0]


def writing_queue(i: Instruction, sm: int) -> str:
    """The same for results."""
    return _queues(i.op, i.mods, sm)[1]


# Least stall of an instruction: BAR and the like give up the issue slot for so long.
_STALLS = {"BAR": 6, "MEMBAR": 6, "CCTL": 11, "BRA": 5, "EXIT": 5, "DEPBAR": 4, "BSYNC": 5, "WARPSYNC": 5}


def least_stall(i: Instruction) -> int:
    """Cycles until the next instruction of the warp may be issued, whatever it is."""
    return _STALLS.get(i.op, 1)


# What schedulers reckon with, in cycles: nothing depends on it but the order of instructions.
_EXPECTED = {
    "LDG": 300, "LD": 300, "ATOM": 400, "ATOMG": 400, "LDL": 60, "LDS": 26, "LDSM": 30, "ATOMS": 60, "SHFL": 24, "LDC": 40,
    "LDCU": 40, "S2R": 40, "S2UR": 40, "R2UR": 12, "REDUX": 30, "MUFU": 20, "F2F": 20, "F2I": 20, "I2F": 20, "FRND": 20,
    "POPC": 16, "FLO": 16, "BREV": 16, "DADD": 48, "DMUL": 48, "DFMA": 48, "DSETP": 48, "DMMA": 32, "HMMA": 18, "IMMA": 16,
}


def expected(i: Instruction) -> int:
    """Cycles until a decoupled instruction's results are there, as a guess."""
    return _EXPECTED.get(i.op, 20)


def issue_cycles(i: Instruction, sm: int) -> int:
    """Cycles for which its pipe takes nothing else: 16 lanes a partition and cycle, 32 for FP32 from sm_86 on."""
    p = pipe(i, sm)
    return 1 if p == "fma" and sm >= 86 else 4 if p == "agu" else 2
