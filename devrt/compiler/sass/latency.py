"""How long results take, and what tells that they are there: the classes of instructions and of their accesses.

Some instructions take a fixed number of cycles; whoever needs the result is issued so many cycles later ("coupled").
Others take as long as they take, and release a scoreboard that the consumer waits for ("decoupled"). The cycles are in
latency_tables.py, by the classes (roles) of producer and consumer.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from devrt.compiler.sass.instruction import TRUE, VIRTUAL, Address, Cbuf, File, Imm, Instruction, Operand, Reg
from devrt.compiler.sass.latency_tables import Tables, read_after_write, tables, write_after_read, write_after_write

# ---------------------------------------------------------------------------------------------------------------------
# Classes of instructions: the pipe that they run in.

_ALU = """BMSK FMNMX FMNMX3 FSEL FSET FSETP F2FP F2IP I2FP I2I I2IP IABS IADD IADD3 IADD32I IMNMX ISETP LEA LOP LOP3 LOP32I
    MOV MOV32I P2R PLOP3 PRMT PSETP R2P SEL SGXT SHF SHL SHR VABSDIFF VABSDIFF4 VIADD VIADDMNMX VIMNMX VIMNMX3 VHMNMX
    CSMTEST CSEL"""
_FMA = "FADD FADD32I FFMA FFMA32I FMUL FMUL32I FSWZADD IDP IDP4A IMAD IMUL"
_FP16 = "HADD2 HADD2_32I HFMA2 HFMA2_32I HMUL2 HMUL2_32I"
_FP16_ALU = "HMNMX2 HSET2 HSETP2"
_FP64 = "DADD DFMA DMUL DSETP DMNMX"
_AGU = """ATOM ATOMG ATOMS BAR CCTL CCTLL LD LDG LDGSTS LDL LDS LDSM RED REDG SHFL ST STG STL STS STSM LDTM B2R ALD AST
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
    if (op[0] == "U" or op in ("VOTEU", "CS2UR")) and op not in _PIPES:
        return "udp"
    return _PIPES.get(op, "dec")


_ONE_STEP = {"HMMA": ("1684", "1688"), "IMMA": ("16816", "16832"), "BMMA": ("168128",)}
_TWO_STEPS = {"HMMA": ("16816", "TF32"), "IMMA": ("16832", "16864"), "BMMA": ("168256",)}


def _matrix(i: Instruction, sm: int) -> str:
    """Matrix products: small ones of integers, and those that collect their operands in one step, and in two. A product of
    4-bit integers is as one of 8 bits of half the depth."""
    if i.op == "QMMA" and sm < 100:
        return "mma1" if "16816" in i.mods else "mma2"
    if sm >= 100:
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
    uniform = "u.cbu" if p == "cbu" and op != "BRXU" else "u.dec" if decoupled or p in ("f64", "dmma") else "u.vec"
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
    queue = "xu" if op in _XU else op if op in ("S2R", "S2UR", "DMMA", "REDUX", "MOVM") else p if p in ("agu", "f64") else ""
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
    "LDG": 300, "LD": 300, "ATOM": 400, "ATOMG": 400, "LDL": 60, "LDS": 26, "LDSM": 60, "ATOMS": 60, "SHFL": 24, "LDC": 40,
    "LDCU": 40, "S2R": 40, "S2UR": 40, "R2UR": 12, "REDUX": 30, "MUFU": 20, "F2F": 20, "F2I": 20, "I2F": 20, "FRND": 20,
    "POPC": 16, "FLO": 16, "BREV": 16, "DADD": 48, "DMUL": 48, "DFMA": 48, "DSETP": 48, "DMMA": 32, "HMMA": 18, "IMMA": 16,
}


def expected(i: Instruction) -> int:
    """Cycles until a decoupled instruction's results are there, as a guess."""
    return _EXPECTED.get(i.op, 20)


_MATRIX = {"mma1": 3, "mma2": 6}


def issue_cycles(i: Instruction, sm: int) -> int:
    """Cycles for which its pipe takes nothing else: 16 lanes a partition and cycle, 32 for FP32 from sm_86 on. Products of
    matrices take 4 to 16 by generation; with 6, loads and stores stand among them, early enough for their latency."""
    p = pipe(i, sm)
    return 1 if p == "fma" and sm >= 86 else _MATRIX.get(p, 4 if p == "agu" else 2)


__all__ = [
    "R_END", "Access", "Tables", "accesses", "expected", "issue_cycles", "least_stall", "number", "numbers", "pipe",
    "read_after_write",
    "reading_queue", "reads_late", "tables", "write_after_read", "write_after_write", "writing_queue",
]
