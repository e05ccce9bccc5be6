"""LLVM IR of one warp function: registers, operands with their modifiers, results under guard and active lanes.

A register of a lane is one vector over the 32 lanes, a predicate 32 bits, a uniform register one number. A rule writes the same
text for the vector and the uniform form of an instruction: `t` gives LLVM's type of a value, `const` a constant of it, and while
`uniform` is set both are those of one number.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from devrt.compiler.sass.instruction import Cbuf, File, Imm, Instruction, Operand, Reg
from devrt.virtual.nvidia.translate import layout

LANES = 32


class NotTranslated(Exception):
    """An instruction that the translator does not know; it becomes a fault where it is executed."""


Rule = Callable[["Writer", Instruction], None]


def named(table: dict[str, Rule], *ops: str) -> Callable[[Rule], Rule]:
    """Enter a rule in a file's table under the names of its operations."""
    def put(r: Rule) -> Rule:
        table.update(dict.fromkeys(ops, r))
        return r
    return put


class Writer:
    """Collects the text of one function."""

    def __init__(self, sm: int, mufu_error: int = 0) -> None:
        self.sm = sm
        self.mufu_error = mufu_error       # units in the last place that approximations of special.py are off
        self.lines: list[str] = []
        self.serial = 0
        self.used: set[Reg] = set()        # registers that need a place
        self.banks: dict[int, int] = {}    # constant banks that operands name: bytes from the start up to the last one
        self.declared: dict[str, str] = {}
        self.helpers: dict[str, str] = {}  # tables and functions that rules bring along, by name
        self.locals: dict[str, int] = {}   # memory of the function: bytes by name
        self.uniform = False               # the instruction is one of the uniform datapath
        self.masked = False                # live lanes may be elsewhere: writes are under the active lanes
        self.guard = ""                    # the instruction's guard: "", or i32 (uniform: i1)
        self.at = 0                        # the instruction's byte offset
        self.copies = -1                   # the scoreboard of groups of copies to shared memory (copies.py)
        self._known: dict[str, str] = {}   # variable -> its value, in this block

    # ----- text

    def tmp(self) -> str:
        self.serial += 1
        return f"%t{self.serial}"

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def op(self, text: str) -> str:
        name = self.tmp()
        self.lines.append(f"  {name} = {text}")
        return name

    def new_label(self, stem: str) -> str:
        self.serial += 1
        return f"{stem}{self.serial}"

    def start(self, label: str, fresh: bool = True) -> None:
        """Begin a block of LLVM's; not fresh: it is reached from what was written before it alone."""
        self.lines.append(f"{label}:")
        if fresh:
            self._known.clear()

    def call(self, result: str, name: str, *args: tuple[str, str], declare: bool = False) -> str:
        """Call a function of (type, value)s; `declare` where no helper defines it (LLVM's intrinsics)."""
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

    # ----- types and constants

    @staticmethod
    def vec(e: str) -> str:
        return f"<{LANES} x {e}>"

    def t(self, e: str) -> str:
        """LLVM's type of a value with elements `e`: a vector over the lanes, or one number in the uniform datapath."""
        return e if self.uniform else self.vec(e)

    def const(self, e: str, value: float) -> str:
        """A constant in every lane; floats by value."""
        text = constant(e, value)
        return text if self.uniform else self.splat_of(e, text)

    @staticmethod
    def splat_of(e: str, text: str) -> str:
        return f"splat ({e} {text})"

    def splat(self, e: str, name: str) -> str:
        """One number in every lane."""
        if not name.startswith("%"):
            return self.splat_of(e, name)
        t = self.vec(e)
        first = self.op(f"insertelement {t} poison, {e} {name}, i64 0")
        return self.op(f"shufflevector {t} {first}, {t} poison, <{LANES} x i32> zeroinitializer")

    def lanes_of(self, e: str, values: list[int]) -> str:
        """A constant of one number a lane."""
        return "<" + ", ".join(f"{e} {v}" for v in values) + ">"

    def cast(self, name: str, source: str, target: str) -> str:
        """A value with elements `source` as `target`, the same bits."""
        return name if source == target else self.op(f"bitcast {self.t(source)} {name} to {self.t(target)}")

    def intrinsic(self, name: str, e: str, *args: str) -> str:
        """An intrinsic of LLVM whose operands and result are of one type."""
        suffix = {"half": "f16", "float": "f32", "double": "f64", "bfloat": "bf16"}.get(e, e)
        full = f"llvm.{name}.{suffix}" if self.uniform else f"llvm.{name}.v{LANES}{suffix}"
        return self.call(self.t(e), full, *((self.t(e), a) for a in args), declare=True)

    def select(self, condition: str, e: str, yes: str, no: str) -> str:
        return self.op(f"select {self.t('i1')} {condition}, {self.t(e)} {yes}, {self.t(e)} {no}")

    # ----- variables of the function

    def get(self, name: str, t: str) -> str:
        """The value of a variable, from what is known in this block."""
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self.op(f"load {t}, ptr %{name}")
        return found

    def put(self, name: str, t: str, value: str) -> None:
        self._known[name] = value
        self.line(f"store {t} {value}, ptr %{name}")

    def active(self) -> str:
        """The lanes that run here, as i32."""
        return self.get("active", "i32")

    def lanes(self) -> str:
        """The lanes that execute the instruction, as i32: active, and their guard is true."""
        if not self.guard:
            return self.active()
        return self.op(f"and i32 {self.active()}, {self.guard}")

    def bits(self, mask: str) -> str:
        """i32 -> a bit a lane as a vector."""
        return self.op(f"bitcast i32 {mask} to {self.vec('i1')}")

    def number(self, bits: str) -> str:
        """A bit a lane -> i32."""
        return self.op(f"bitcast {self.vec('i1')} {bits} to i32")

    def written(self) -> str:
        """The lanes whose registers the instruction may write, as i32; "" all. Lanes that have ended don't matter."""
        return self.lanes() if self.masked else self.guard

    # ----- registers

    def _place(self, r: Reg) -> tuple[str, str]:
        self.used.add(Reg(r.file, r.index))
        kind = {File.UR: "i32", File.P: "i32", File.UP: "i1"}.get(r.file, self.vec("i32"))
        return f"{r.file.value.lower()}{r.index}", kind

    def reg(self, r: Reg, k: int = 0) -> str:
        """Word `k` of R (a vector), UR (i32), P (i32), UP (i1) or B (a vector)."""
        if r.zero:
            return {File.R: "zeroinitializer", File.UR: "0", File.P: "-1", File.UP: "true"}[r.file]
        return self.get(*self._place(Reg(r.file, r.index + k)))

    def set_reg(self, r: Reg, value: str, k: int = 0) -> None:
        """Write under the guard, and under the active lanes where others live."""
        if r.zero:
            return
        name, kind = self._place(Reg(r.file, r.index + k))
        if r.file in (File.R, File.B):
            if mask := self.written():
                value = self.op(f"select {self.vec('i1')} {self.bits(mask)}, {kind} {value}, {kind} {self.get(name, kind)}")
        elif r.file is File.P:
            if mask := self.written():
                kept = self.op(f"and i32 {self.get(name, kind)}, {self.op(f'xor i32 {mask}, -1')}")
                value = self.op(f"or i32 {kept}, {self.op(f'and i32 {value}, {mask}')}")
        elif self.guard:
            value = self.op(f"select i1 {self.any_guard()}, {kind} {value}, {kind} {self.get(name, kind)}")
        self.put(name, kind, value)

    def any_guard(self) -> str:
        """The guard of an instruction that writes uniform registers, as i1."""
        return self.guard if self.uniform else self.op(f"icmp ne i32 {self.lanes()}, 0")

    # ----- operands

    def constant_word(self, bank: int, offset: int) -> str:
        """i32 at a byte of a constant bank."""
        self.banks[bank] = max(self.banks.get(bank, 0), offset + 4)
        name = f"c{bank}.{offset}"
        if name not in self._known:
            place = self.op(f"getelementptr i8, ptr %bank{bank}, i64 {offset}")
            self._known[name] = self.op(f"load i32, ptr {place}, align 4")
        return self._known[name]

    def word(self, o: Operand, k: int = 0) -> str:
        """Word `k` of an operand, its modifiers left out: a vector, in the uniform datapath an i32."""
        v = o.value
        if isinstance(v, Reg):
            if v.file is File.R:
                if self.uniform:
                    raise NotTranslated(f"{v} in the uniform datapath")
                return self.reg(v, k)
            number = self.reg(v, k)
        elif isinstance(v, Imm):
            number = str(signed32(v.value >> 32 * k & 0xFFFFFFFF))
        elif isinstance(v, Cbuf) and v.index is None and v.handle is None:
            number = self.constant_word(v.bank, v.offset + 4 * k)
        else:
            raise NotTranslated(f"operand {v}")
        if self.uniform:
            return number
        known = f"splat {number}"
        if known not in self._known:
            self._known[known] = self.splat("i32", number)
        return self._known[known]

    def word64(self, o: Operand, k: int = 0) -> str:
        """Words `k` and `k` + 1 as 64 bits, modifiers left out; of a constant of 32 bits with its sign."""
        if isinstance(o.value, Imm):
            return self.const("i64", signed32(o.value.value) if o.value.bits == 32 else signed64(o.value.value))
        if isinstance(o.value, Reg) and o.value.zero:
            return self.const("i64", 0)
        return self.pair(self.word(o, k), self.word(o, k + 1))

    def pair(self, low: str, high: str) -> str:
        """Two words as 64 bits."""
        key = f"{low} {high}"
        if key not in self._known:
            t, w = self.t("i32"), self.t("i64")
            a, b = (self.op(f"zext {t} {x} to {w}") for x in (low, high))
            self._known[key] = self.op(f"or {w} {a}, {self.op(f'shl {w} {b}, ' + self.const('i64', 32))}")
        return self._known[key]

    def halves(self, value: str) -> tuple[str, str]:
        """64 bits as two words."""
        t, w = self.t("i32"), self.t("i64")
        high = self.op(f"lshr {w} {value}, {self.const('i64', 32)}")
        return self.op(f"trunc {w} {value} to {t}"), self.op(f"trunc {w} {high} to {t}")

    def int32(self, o: Operand, k: int = 0) -> str:
        """A word as an integer: |x|, -x, ~x."""
        value, t = self.word(o, k), self.t("i32")
        if o.abs:
            value = self.call(t, "llvm.abs.i32" if self.uniform else f"llvm.abs.v{LANES}i32", (t, value), ("i1", "false"),
                              declare=True)
        if o.neg:
            value = self.op(f"sub {t} {self.const('i32', 0)}, {value}")
        return self.op(f"xor {t} {value}, {self.const('i32', -1)}") if o.inv else value

    def int64(self, o: Operand) -> str:
        """Two words as an integer: -x, ~x."""
        value, t = self.word64(o), self.t("i64")
        if o.neg:
            value = self.op(f"sub {t} {self.const('i64', 0)}, {value}")
        return self.op(f"xor {t} {value}, {self.const('i64', -1)}") if o.inv else value

    def f32(self, o: Operand) -> str:
        """A float: |x|, -x."""
        return self.signs(o, "float", self.cast(self.word(o), "i32", "float"))

    def f64(self, o: Operand) -> str:
        """A double: |x|, -x. An immediate of 32 bits is its high word."""
        if isinstance(o.value, Imm) and o.value.bits == 32:
            raw = self.const("i64", signed64(o.value.value << 32))
        else:
            raw = self.word64(o)
        return self.signs(o, "double", self.cast(raw, "i64", "double"))

    def signs(self, o: Operand, e: str, value: str) -> str:
        """The operand's |x| and -x on a float value."""
        if o.abs:
            value = self.intrinsic("fabs", e, value)
        return self.op(f"fneg {self.t(e)} {value}") if o.neg else value

    def pred(self, o: Operand) -> str:
        """A predicate operand: a bit a lane (uniform: i1), `!` applied."""
        assert isinstance(o.value, Reg)
        r = o.value
        if r.zero:
            return self.const("i1", 0 if o.inv else 1)
        raw = self.reg(r)
        value = self.bits(raw) if r.file is File.P else raw if self.uniform else self.splat("i1", raw)
        return self.op(f"xor {self.t('i1')} {value}, {self.const('i1', 1)}") if o.inv else value

    def mask_of(self, o: Operand) -> str:
        """A predicate operand as i32, a bit a lane, `!` applied."""
        assert isinstance(o.value, Reg)
        r = o.value
        if r.zero:
            return "0" if o.inv else "-1"
        raw = self.reg(r)
        value = self.op(f"sext i1 {raw} to i32") if r.file is File.UP else raw
        return self.op(f"xor i32 {value}, -1") if o.inv else value

    # ----- results

    def write(self, o: Operand, value: str, k: int = 0) -> None:
        """Word `k` of a destination R or UR."""
        assert isinstance(o.value, Reg)
        self.set_reg(o.value, value, k)

    def write64(self, o: Operand, value: str, k: int = 0) -> None:
        low, high = self.halves(value)
        self.write(o, low, k)
        self.write(o, high, k + 1)

    def write_f32(self, o: Operand, value: str) -> None:
        self.write(o, self.cast(value, "float", "i32"))

    def write_f64(self, o: Operand, value: str) -> None:
        self.write64(o, self.cast(value, "double", "i64"))

    def write_pred(self, o: Operand, value: str) -> None:
        """A destination P (from a bit a lane) or UP (from an i1)."""
        assert isinstance(o.value, Reg)
        if not o.value.zero:
            self.set_reg(o.value, value if o.value.file is File.UP else self.number(value))

    # ----- faults and addresses

    def address(self, offset: int) -> str:
        """The virtual address of byte `offset` of the code, i64."""
        place = self.op(f"getelementptr i8, ptr %c, i64 {layout.CODE}")
        return self.op(f"add i64 {self.op(f'load i64, ptr {place}')}, {offset}")

    def field(self, offset: int, t: str, of: str = "%c") -> str:
        """A field of the context (%c) or of the warp's state (%state)."""
        place = self.op(f"getelementptr i8, ptr {of}, i64 {offset}")
        return self.op(f"load {t}, ptr {place}, align 4")

    def set_field(self, offset: int, t: str, value: str, of: str = "%state") -> None:
        place = self.op(f"getelementptr i8, ptr {of}, i64 {offset}")
        self.line(f"store {t} {value}, ptr {place}, align 4")

    def check(self) -> None:
        """Go on only if every address was good."""
        self.go_if(self.op(f"icmp ne i8 {self.op('load i8, ptr %ok')}, 0"), 0)

    def go_if(self, good: str, kind: int) -> None:
        """Go on only if an i1 is true; else a fault of that kind."""
        on, bad = self.new_label("good"), self.new_label("bad")
        self.line(f"br i1 {good}, label %{on}, label %{bad}")
        known = dict(self._known)
        self.start(bad)
        self.fault(kind)
        self.start(on)
        self._known = known

    def fault(self, kind: int | str) -> None:
        """End the warp at this instruction; kind 0: a fault that is noted."""
        end = self.call("i32", "leave", ("ptr", "%c"), ("i64", str(self.at)), ("i32", str(kind)))
        self.line(f"ret i32 {end}")

    def first_lane(self) -> str:
        """The number of the lowest lane that executes the instruction, i32."""
        return self.call("i32", "first", ("i32", self.lanes()))

    def of_first(self, vector: str, e: str = "i32") -> str:
        """The value of the lowest lane that executes the instruction."""
        return self.op(f"extractelement {self.vec(e)} {vector}, i32 {self.first_lane()}")


def constant(e: str, value: float) -> str:
    """LLVM's text of a constant."""
    if e == "half":
        return f"0xH{int.from_bytes(struct.pack('<e', value), 'little'):04X}"
    if e in ("float", "double"):
        rounded = struct.unpack("<f", struct.pack("<f", value))[0] if e == "float" else float(value)
        return f"0x{int.from_bytes(struct.pack('<d', rounded), 'little'):016X}"
    return str(value)


def signed32(value: int) -> int:
    return value - (1 << 32) if value >> 31 & 1 else value


def signed64(value: int) -> int:
    return value - (1 << 64) if value >> 63 & 1 else value
