"""Single instructions through the translator's rules, 32 lanes at a time, without a kernel around them.

Every instruction reads the registers as they were at the start and writes registers of its own, so one compiled function answers
for many instructions.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devrt.compiler.sass.instruction import File, Imm, Instruction, Operand, Reg
from devrt.virtual import native
from devrt.virtual.nvidia.translate.rules import RULES
from devrt.virtual.nvidia.translate.writer import LANES, Writer

Array = NDArray[Any]
INPUTS = 16  # registers that instructions may read
OUT = 64     # registers from here on are results
TEXT = re.compile(r"(?P<minus>[-!])?(?P<bar>\|)?(?P<file>RZ|PT|R|P)(?P<index>\d+)?\|?(?:\.(?P<select>\w+))?$")


def operand(text: str) -> Operand:
    """R1, -R2, |R3|, R4.H0_H0, P0, !PT, RZ; 0x.. is an immediate of 32 bits."""
    if text.startswith("0x"):
        return Operand(Imm(int(text, 16)))
    m = TEXT.match(text)
    assert m, text
    file = File.P if m["file"].startswith("P") else File.R
    index = (7 if file is File.P else 255) if m["index"] is None else int(m["index"])
    return Operand(Reg(file, index), neg=m["minus"] == "-", inv=m["minus"] == "!", abs=bool(m["bar"]), select=m["select"] or "")


class Singles:
    """Instructions by their text, "FFMA.RZ R0, R1, R2": the sources alone, from R0 to R15."""

    def __init__(self, sm: int = 86, mufu_error: int = 0) -> None:
        self.w = Writer(sm, mufu_error)
        self.results = 0

    def add(self, text: str, words: int = 1, predicates: int = 0) -> int:
        """The number of its first result; a predicate is a word of 0 or 1, behind the words."""
        name, _, rest = text.partition(" ")
        op, *mods = name.split(".")
        first = OUT + self.results
        dsts = [Operand(Reg(File.R, first, words))] if words else []
        dsts += [Operand(Reg(File.P, n)) for n in range(predicates)]
        RULES[op](self.w, Instruction(op, tuple(mods), tuple(dsts), tuple(operand(part) for part in rest.split(", "))))
        for n in range(predicates):
            value = self.w.bits(self.w.reg(Reg(File.P, n)))
            one = self.w.op(f"zext {self.w.vec('i1')} {value} to {self.w.vec('i32')}")
            self.w.set_reg(Reg(File.R, first + words + n), one)
        self.results += words + predicates
        return first - OUT

    def text(self) -> str:
        """run(memory, begin, end): rows of registers and results."""
        w, v = self.w, self.w.vec("i32")
        used = sorted(r.index for r in w.used if r.file is File.R)
        places = [f"  %r{n} = alloca {v}, align 128" for n in used]
        places += [f"  %p{n} = alloca i32" for n in sorted({r.index for r in w.used if r.file is File.P})]
        places += [f"  %{name} = alloca [{nbytes} x i8], align 256" for name, nbytes in w.locals.items()]
        loads, stores = [], []
        for n in (n for n in used if n < OUT):
            loads += [f"  %in{n}.p = getelementptr {v}, ptr %row, i64 {n}", f"  %in{n} = load {v}, ptr %in{n}.p, align 4",
                      f"  store {v} %in{n}, ptr %r{n}"]
        for n in range(self.results):
            stores += [f"  %out{n} = load {v}, ptr %r{OUT + n}", f"  %out{n}.p = getelementptr {v}, ptr %row, i64 {INPUTS + n}",
                       f"  store {v} %out{n}, ptr %out{n}.p, align 4"]
        size = (INPUTS + self.results) * LANES * 4
        return "\n".join((*w.declared.values(), *w.helpers.values(), "define i32 @run(i64 %c, i64 %begin, i64 %end) {", "entry:",
                          *places, "  br label %loop", "loop:", "  %n = phi i64 [ %begin, %entry ], [ %next, %loop ]",
                          f"  %offset = mul i64 %n, {size}", "  %at = add i64 %c, %offset", "  %row = inttoptr i64 %at to ptr",
                          *loads, *w.lines, *stores, "  %next = add i64 %n, 1", "  %more = icmp slt i64 %next, %end",
                          "  br i1 %more, label %loop, label %done", "done:", "  ret i32 0", "}", ""))

    def run(self, *registers: Array) -> Array:
        """R0, R1 .. with a word a lane -> (results, lanes), uint32. Lanes that fill up the last warp hold zeros."""
        count = len(registers[0])
        rows = -(-count // LANES)
        memory = np.zeros((rows, INPUTS + self.results, LANES), np.uint32)
        for n, values in enumerate(registers):
            padded = np.zeros(rows * LANES, np.uint32)
            padded[:count] = np.ascontiguousarray(values).view(np.uint32)
            memory[:, n] = padded.reshape(rows, LANES)
        native.function(self.text())(memory.ctypes.data, 0, rows)
        return np.ascontiguousarray(memory[:, INPUTS:].transpose(1, 0, 2)).reshape(self.results, -1)[:, :count]


def halves64(values: Array) -> tuple[Array, Array]:
    """The low and high words of 64-bit numbers."""
    raw = np.ascontiguousarray(values).view(np.uint64)
    return (raw & np.uint64(0xFFFFFFFF)).astype(np.uint32), (raw >> np.uint64(32)).astype(np.uint32)


def joined64(low: Array, high: Array, dtype: Any = np.float64) -> Array:
    return (low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)).view(dtype)
