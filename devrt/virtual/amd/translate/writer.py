"""LLVM IR of one wave function: registers, operands with their modifiers, results under EXEC.

A value of a vector operand is one LLVM vector over all lanes. Types are the tables': f32, u32, b64, f16x2, mask ..; a 16-bit
type is a vector of 16-bit elements, a packed one two of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from devrt.virtual.amd.isa.instruction import Instruction, Operand
from devrt.virtual.amd.isa.opcodes import bits
from devrt.virtual.amd.translate import layout

VCC, TTMP, EXEC = 106, 108, 126
APERTURE_HIGH = {"shared": 0x10000, "private": 0x20000}  # high halves of the LDS and scratch apertures, kfd_flat_memory.c


class NotTranslated(Exception):
    """An instruction that the translator does not know; it becomes a fault where it is executed."""


def element(type: str) -> str:
    """LLVM's type of one lane of a table type."""
    if type in ("f16", "f32", "f64"):
        return {"f16": "half", "f32": "float", "f64": "double"}[type]
    width = bits(type)
    return f"i{width if width else 32}"


class Writer:
    """Collects the text of one function."""

    def __init__(self, wave: int, gen: str) -> None:
        self.wave, self.gen = wave, gen
        self.lines: list[str] = []
        self.serial = 0
        self.sgprs: set[int] = set()
        self.vgprs: set[int] = set()
        self.declared: dict[str, str] = {}
        self.helpers: dict[str, str] = {}  # tables and functions that rules bring along, by name
        self.locals: dict[str, int] = {}   # memory of the function: bytes by name
        self._exec = self._exec_mask = ""  # EXEC as it was read last in this block
        self.shuffle: tuple[str, str] | None = None  # DPP: text of the lanes read, lanes that may be written
        self.write_mask: str | None = None
        self.there = ""  # DPP: lanes whose source is there

    # ----- text

    def tmp(self) -> str:
        self.serial += 1
        return f"%t{self.serial}"

    def line(self, text: str) -> None:
        if text.endswith("ptr %exec"):
            self._exec = self._exec_mask = ""
        self.lines.append("  " + text)

    def op(self, text: str) -> str:
        name = self.tmp()
        self.lines.append(f"  {name} = {text}")
        return name

    def new_label(self, stem: str) -> str:
        self.serial += 1
        return f"{stem}{self.serial}"

    def start(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self._exec = self._exec_mask = ""

    def call(self, result: str, name: str, *args: tuple[str, str], declare: bool = True) -> str:
        if declare:
            self.declared[name] = f"declare {result} @{name}({', '.join(t for t, _ in args)})"
        text = f"call {result} @{name}({', '.join(f'{t} {v}' for t, v in args)})"
        if result == "void":
            self.line(text)
            return ""
        return self.op(text)

    def local(self, name: str, nbytes: int) -> str:
        """Memory that lasts as long as the function runs."""
        self.locals[name] = max(nbytes, self.locals.get(name, 0))
        return f"%{name}"

    def vec(self, t: str) -> str:
        return f"<{self.wave} x {t}>"

    def vtype(self, type: str) -> str:
        return self.vec(element(type))

    @property
    def iw(self) -> str:
        return f"i{self.wave}"

    @property
    def mask(self) -> str:
        return self.vec("i1")

    def splat(self, t: str, name: str) -> str:
        if not name.startswith("%"):
            return f"splat ({t} {name})"
        first = self.op(f"insertelement {self.vec(t)} poison, {t} {name}, i64 0")
        return self.op(f"shufflevector {self.vec(t)} {first}, {self.vec(t)} poison, <{self.wave} x i32> zeroinitializer")

    def const(self, type: str, value: int | float) -> str:
        """A constant in every lane; floats by value."""
        t = element(type)
        if t in ("half", "float", "double"):
            import struct
            if t == "half":
                return f"splat (half 0xH{int.from_bytes(struct.pack('<e', value), 'little'):04X})"
            rounded = struct.unpack("<f", struct.pack("<f", value))[0] if t == "float" else float(value)
            return f"splat ({t} 0x{int.from_bytes(struct.pack('<d', rounded), 'little'):016X})"
        return f"splat ({t} {value})"

    def lanes(self, t: str, values: list[int]) -> str:
        return "<" + ", ".join(f"{t} {v}" for v in values) + ">"

    def shuffle_type(self, numbers: str) -> str:
        """A vector of lane numbers as the third operand of shufflevector; the wave's size picks from the second vector."""
        return f"<{self.wave} x i32> {numbers}"

    def cast(self, name: str, source: str, target: str) -> str:
        return name if source == target else self.op(f"bitcast {source} {name} to {target}")

    def intrinsic(self, name: str, type: str, *args: str) -> str:
        """An intrinsic whose operands and result are vectors of one type."""
        suffix = {"half": "f16", "float": "f32", "double": "f64"}.get(element(type), element(type))
        t = self.vtype(type)
        return self.call(t, f"llvm.{name}.v{self.wave}{suffix}", *((t, a) for a in args))

    def address(self, offset: int) -> str:
        """The virtual address of byte `offset` of the code."""
        place = self.op(f"getelementptr i8, ptr %c, i64 {layout.CODE}")
        return self.op(f"add i64 {self.op(f'load i64, ptr {place}')}, {offset}")

    # ----- scalar registers

    def s(self, n: int) -> str:
        """One SGPR by its code."""
        if n in (VCC, EXEC) or self.wave == 64 and n in (VCC + 1, EXEC + 1):
            whole = self.vcc() if n < EXEC else self.exec()
            if self.wave == 32:
                return whole
            part = self.op(f"lshr i64 {whole}, 32") if n % 2 else whole
            return self.op(f"trunc i64 {part} to i32")
        self.sgprs.add(n)
        return self.op(f"load i32, ptr %s{n}")

    def set_s(self, n: int, value: str) -> None:
        if n in (VCC, EXEC) or self.wave == 64 and n in (VCC + 1, EXEC + 1):  # in wave32 the high halves are plain registers
            if self.wave == 32:
                self.line(f"store i32 {value}, ptr %{'vcc' if n < EXEC else 'exec'}")
                return
            place = "%vcc" if n < EXEC else "%exec"
            old = self.op(f"load i64, ptr {place}")
            wide = self.op(f"zext i32 {value} to i64")
            kept = self.op(f"and i64 {old}, {0xFFFFFFFF if n % 2 else 0xFFFFFFFF << 32}")
            moved = self.op(f"shl i64 {wide}, 32") if n % 2 else wide
            self.line(f"store i64 {self.op(f'or i64 {kept}, {moved}')}, ptr {place}")
            return
        self.sgprs.add(n)
        self.line(f"store i32 {value}, ptr %s{n}")

    def exec(self) -> str:
        if not self._exec:
            self._exec = self.op(f"load {self.iw}, ptr %exec")
        return self._exec

    def exec_mask(self) -> str:
        if not self._exec_mask:
            self._exec_mask = self.op(f"bitcast {self.iw} {self.exec()} to {self.mask}")
        return self._exec_mask

    def vcc(self) -> str:
        return self.op(f"load {self.iw}, ptr %vcc")

    def scc(self) -> str:
        return self.op("load i1, ptr %scc")

    def set_scc(self, value: str) -> None:
        self.line(f"store i1 {value}, ptr %scc")

    def m0(self) -> str:
        return self.op("load i32, ptr %m0")

    def code(self, o: Operand) -> int:
        """The scalar register code of an operand."""
        start = {"sgpr": 0, "ttmp": TTMP, "vcc": VCC, "exec": EXEC, "flat_scratch": 102, "xnack_mask": 104}[o.kind]
        return start + o.index

    def scalar(self, o: Operand, k: int = 0) -> str:
        """Dword `k` of a scalar operand as i32."""
        if o.kind in ("sgpr", "ttmp", "vcc", "exec", "flat_scratch", "xnack_mask"):
            return self.s(self.code(o) + k)
        if o.kind == "m0":
            return self.m0()
        if o.kind == "null":
            return "0"
        if o.kind == "scc":
            return self.op(f"zext i1 {self.scc()} to i32")
        if o.kind in ("vccz", "execz"):
            whole = self.vcc() if o.kind == "vccz" else self.exec()
            return self.op(f"zext i1 {self.op(f'icmp eq {self.iw} {whole}, 0')} to i32")
        if o.kind == "aperture":
            value = APERTURE_HIGH["shared" if o.index < 2 else "private"] << 32 | (0xFFFFFFFF if o.index % 2 else 0)
            return str((value >> 32 if o.dwords == 1 else value >> 32 * k) & 0xFFFFFFFF)
        if o.constant:
            return str(signed32(o.value >> 32 * k & 0xFFFFFFFF))
        raise NotTranslated(f"scalar operand {o.kind}")

    def scalar64(self, o: Operand) -> str:
        if o.constant:
            return str(o.value - (1 << 64) if o.value >> 63 else o.value)
        if o.kind in ("vcc", "exec") and self.wave == 64:
            return self.vcc() if o.kind == "vcc" else self.exec()
        low, high = (self.op(f"zext i32 {self.scalar(o, k)} to i64") for k in (0, 1))
        return self.op(f"or i64 {low}, {self.op(f'shl i64 {high}, 32')}")

    def scalar_of(self, o: Operand) -> tuple[str, str]:
        """(value, type) of a scalar operand in its own width: i32 or i64."""
        wide = o.dwords == 2
        return (self.scalar64(o), "i64") if wide else (self.scalar(o), "i32")

    def set_scalar(self, o: Operand, value: str, k: int = 0) -> None:
        if o.kind == "null":
            return
        if o.kind == "m0":
            self.line(f"store i32 {value}, ptr %m0")
            return
        self.set_s(self.code(o) + k, value)

    def set_scalar64(self, o: Operand, value: str) -> None:
        if o.kind in ("vcc", "exec") and self.wave == 64:
            self.line(f"store i64 {value}, ptr %{o.kind}")
            return
        self.set_scalar(o, self.op(f"trunc i64 {value} to i32"), 0)
        self.set_scalar(o, self.op(f"trunc i64 {self.op(f'lshr i64 {value}, 32')} to i32"), 1)

    def set_scalar_of(self, o: Operand, value: str) -> None:
        if o.dwords == 2:
            self.set_scalar64(o, value)
        else:
            self.set_scalar(o, value)

    def lane_bits(self, o: Operand) -> str:
        """A mask operand as an integer of a bit a lane."""
        return self.scalar64(o) if self.wave == 64 else self.scalar(o)

    def set_lane_bits(self, o: Operand, value: str) -> None:
        if self.wave == 64:
            self.set_scalar64(o, value)
        else:
            self.set_scalar(o, value)

    # ----- vector registers

    def v(self, n: int) -> str:
        self.vgprs.add(n)
        return self.op(f"load {self.vec('i32')}, ptr %v{n}")

    def set_v(self, n: int, value: str, mask: str | None = None) -> None:
        """Write lanes of `mask` (EXEC unless given; "" all)."""
        t = self.vec("i32")
        if mask != "":
            chosen = mask or self.write_mask or self.exec_mask()
            value = self.op(f"select {self.mask} {chosen}, {t} {value}, {t} {self.v(n)}")
        self.vgprs.add(n)
        self.line(f"store {t} {value}, ptr %v{n}")

    def vcode(self, o: Operand) -> int:
        return o.index + (256 if o.kind == "acc" else 0)

    def dword(self, o: Operand, k: int = 0) -> str:
        """Dword `k` of an operand in every lane, raw."""
        if o.kind in ("vgpr", "acc"):
            value = self.v(self.vcode(o) + k)
            if self.shuffle is not None and o.name == "src0":
                t = self.vec("i32")
                value = self.op(f"shufflevector {t} {value}, {t} zeroinitializer, {self.shuffle[0]}")
                value = self.op(f"select {self.mask} {self.there}, {t} {value}, {t} zeroinitializer")
            return value
        return self.splat("i32", self.scalar(o, k))

    def qword(self, o: Operand, k: int = 0) -> str:
        """Dwords `k` and `k` + 1 as 64 bits."""
        t, w = self.vec("i32"), self.vec("i64")
        if o.constant:
            value = o.value
            return f"splat (i64 {value - (1 << 64) if value >> 63 else value})"
        low = self.op(f"zext {t} {self.dword(o, k)} to {w}")
        high = self.op(f"zext {t} {self.dword(o, k + 1)} to {w}")
        return self.op(f"or {w} {low}, {self.op(f'shl {w} {high}, splat (i64 32)')}")

    def half_of(self, dword: str, which: int) -> str:
        """The low (0) or high (1) 16 bits of every lane."""
        t = self.vec("i32")
        moved = self.op(f"lshr {t} {dword}, splat (i32 16)") if which else dword
        return self.op(f"trunc {t} {moved} to {self.vec('i16')}")

    def value(self, o: Operand) -> str:
        """A vector operand in its type, modifiers applied. Packed types: see `halves`."""
        type = o.type
        if type == "mask":
            return self.op(f"bitcast {self.iw} {self.lane_bits(o)} to {self.mask}")
        if type == "mix":
            return self.mixed(o)
        if "x" in type:
            raise NotTranslated(f"operand of type {type}")
        width = bits(type)
        if o.select and o.select != "DWORD":
            raw, t = self.selected(o, width), self.vec(f"i{width}")
        elif width == 64:
            raw, t = self.qword(o), self.vec("i64")
        elif width == 16:
            raw = f"splat (i16 {signed16(o.value & 0xFFFF)})" if o.constant else self.half_of(self.dword(o), o.half)
            t = self.vec("i16")
        elif width == 32:
            raw, t = self.dword(o), self.vec("i32")
        elif width == 8:
            raw, t = self.op(f"trunc {self.vec('i32')} {self.dword(o)} to {self.vec('i8')}"), self.vec("i8")
        else:
            raise NotTranslated(f"operand of type {type}")
        value = self.cast(raw, t, self.vtype(type))
        return self.modified(value, type, o.neg, o.abs)

    def modified(self, value: str, type: str, neg: bool, abs_: bool) -> str:
        if type not in ("f16", "f32", "f64"):
            if neg or abs_:
                raise NotTranslated(f"negated {type}")
            return value
        if abs_:
            value = self.intrinsic("fabs", type, value)
        return self.op(f"fneg {self.vtype(type)} {value}") if neg else value

    def selected(self, o: Operand, width: int) -> str:
        """SDWA: a byte or word of the source, extended to `width`."""
        size, place = (8, int(o.select[-1])) if o.select.startswith("BYTE") else (16, int(o.select[-1]))
        t = self.vec("i32")
        moved = self.op(f"lshr {t} {self.dword(o)}, splat (i32 {size * place})")
        narrow = self.op(f"trunc {t} {moved} to {self.vec(f'i{size}')}")
        if size == width:
            return narrow
        return self.op(f"{'sext' if o.sext else 'zext'} {self.vec(f'i{size}')} {narrow} to {self.vec(f'i{width}')}")

    def mixed(self, o: Operand) -> str:
        """v_fma_mix: an f32, or an f16 half of the register widened."""
        if not o.half_hi:
            return self.modified(self.cast(self.dword(o), self.vec("i32"), self.vec("float")), "f32", o.neg, o.abs)
        half = self.cast(self.half_of(self.dword(o), o.half), self.vec("i16"), self.vec("half"))
        return self.modified(self.op(f"fpext {self.vec('half')} {half} to {self.vec('float')}"), "f32", o.neg, o.abs)

    def halves(self, o: Operand) -> tuple[str, str]:
        """A packed 16-bit operand: what the low and the high result take."""
        single = o.type[:-2]
        raw = self.dword(o)
        out = []
        for which, neg in ((o.half, o.neg), (o.half_hi, o.neg_hi)):
            part = self.cast(self.half_of(raw, which), self.vec("i16"), self.vtype(single))
            if neg:
                part = self.negated16(part, single)
            out.append(part)
        return out[0], out[1]

    def negated16(self, value: str, type: str) -> str:
        if type == "f16":
            return self.op(f"fneg {self.vec('half')} {value}")
        return self.op(f"xor {self.vec('i16')} {value}, splat (i16 -32768)")  # bfloat16

    # ----- results

    def result(self, i: Instruction, o: Operand, value: str, type: str = "") -> None:
        """Write `value` to a destination, clamp and omod applied."""
        type = type or o.type
        if type == "mask":
            self.set_mask(o, value)
            return
        if type in ("f16", "f32", "f64"):
            value = self.scaled(i, value, type)
        elif i.clamp:
            raise NotTranslated(f"{i.mnemonic} with clamp")
        t, width = self.vtype(type), bits(type)
        n = self.vcode(o)
        if i.sdwa is not None:
            self.set_v(n, self.placed(i, self.cast(value, t, self.vec(f"i{width}")), width, n))
        elif width == 32:
            self.set_v(n, self.cast(value, t, self.vec("i32")))
        elif width == 64:
            raw = self.cast(value, t, self.vec("i64"))
            self.set_v(n, self.op(f"trunc {self.vec('i64')} {raw} to {self.vec('i32')}"))
            high = self.op(f"lshr {self.vec('i64')} {raw}, splat (i64 32)")
            self.set_v(n + 1, self.op(f"trunc {self.vec('i64')} {high} to {self.vec('i32')}"))
        elif width == 16:
            self.set_half(n, self.cast(value, t, self.vec("i16")), o.half)
        else:
            raise NotTranslated(f"result of type {type}")

    def set_half(self, n: int, value: str, which: int) -> None:
        """gfx9 clears the other half, later ones keep it."""
        t = self.vec("i32")
        wide = self.op(f"zext {self.vec('i16')} {value} to {t}")
        if self.gen not in ("gfx90a", "gfx942") or which:
            kept = self.op(f"and {t} {self.v(n)}, splat (i32 {65535 if which else -65536})")
            moved = self.op(f"shl {t} {wide}, splat (i32 16)") if which else wide
            wide = self.op(f"or {t} {kept}, {moved}")
        self.set_v(n, wide)

    def set_packed(self, o: Operand, low: str, high: str, type: str) -> None:
        """Two 16-bit results in one register."""
        t = self.vec("i32")
        a, b = (self.op(f"zext {self.vec('i16')} {self.cast(x, self.vtype(type), self.vec('i16'))} to {t}") for x in (low, high))
        self.set_v(self.vcode(o), self.op(f"or {t} {a}, {self.op(f'shl {t} {b}, splat (i32 16)')}"))

    def placed(self, i: Instruction, value: str, width: int, n: int) -> str:
        """SDWA: the result in a part of the destination."""
        assert i.sdwa is not None
        t = self.vec("i32")
        wide = value if width == 32 else self.op(f"zext {self.vec(f'i{width}')} {value} to {t}")
        if i.sdwa.dst_sel == "DWORD":
            return wide
        size, place = (8, int(i.sdwa.dst_sel[-1])) if i.sdwa.dst_sel.startswith("BYTE") else (16, int(i.sdwa.dst_sel[-1]))
        field = (1 << size) - 1
        part = self.op(f"shl {t} {self.op(f'and {t} {wide}, splat (i32 {field})')}, splat (i32 {size * place})")
        if i.sdwa.dst_unused == "UNUSED_SEXT":
            raise NotTranslated("SDWA with sign extension")
        if i.sdwa.dst_unused == "UNUSED_PRESERVE":
            kept = self.op(f"and {t} {self.v(n)}, splat (i32 {signed32(~(field << size * place) & 0xFFFFFFFF)})")
            part = self.op(f"or {t} {kept}, {part}")
        return part

    def set_mask(self, o: Operand, value: str) -> None:
        """A bit a lane; inactive lanes get 0."""
        raw = self.op(f"bitcast {self.mask} {value} to {self.iw}")
        self.set_lane_bits(o, self.op(f"and {self.iw} {raw}, {self.exec()}"))

    def scaled(self, i: Instruction, value: str, type: str) -> str:
        if i.omod:
            value = self.op(f"fmul {self.vtype(type)} {value}, {self.const(type, {1: 2.0, 2: 4.0, 3: 0.5}[i.omod])}")
        if i.clamp:  # NaN becomes 0: DX10_CLAMP is set in every kernel that LLVM makes
            low = self.intrinsic("maximumnum", type, value, self.const(type, 0.0))
            value = self.intrinsic("minimumnum", type, low, self.const(type, 1.0))
        return value


def signed32(value: int) -> int:
    return value - (1 << 32) if value >> 31 & 1 else value


def signed16(value: int) -> int:
    return value - (1 << 16) if value >> 15 & 1 else value


# LLVM's comparison of each of AMD's; "n" says that it is also true without order.
ORDERED = {"lt": "olt", "eq": "oeq", "le": "ole", "gt": "ogt", "lg": "one", "ge": "oge", "o": "ord", "u": "uno", "nge": "ult",
           "nlg": "ueq", "ngt": "ule", "nle": "ugt", "neq": "une", "nlt": "uge", "t": "true", "tru": "true", "f": "false"}
_STEM = re.compile(r"(.+?)_((?:bf|f|u|i|b)(?:8|16|24|32|64))$")


def stem(mnemonic: str) -> tuple[str, str]:
    """("v_add", "f32") of v_add_f32; the type is empty where the name ends otherwise."""
    found = _STEM.match(mnemonic)
    return (found[1], found[2]) if found else (mnemonic, "")


Rule = Callable[[Writer, Instruction], None]
