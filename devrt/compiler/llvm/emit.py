"""LIR to LLVM IR text: one LIR lane is one element of an LLVM vector.

A register that is the same in all lanes stays a scalar; one that differs is a vector of `lanes` elements. Index registers
of the form base + stride*lane keep that form, so that a load knows whether it is a scalar load, a vector load or a gather.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from devrt.compiler import convert, lir
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Inst, Reg
from devrt.compiler.llvm import narrow, nibble, operations
from devrt.device import CompileError


def llvm_type(d: DType) -> str:
    """The LLVM type of a register of `d`."""
    if d.kind == "bool":
        return "i1"
    if d.is_float:
        return {"float64": "double", "float32": "float", "float16": "half"}.get(d.name, f"i{d.bits}")
    return f"i{d.bits}"


def literal(d: DType, value: int | float | bool) -> str:
    """A constant of type `d` in LLVM's spelling; floats rounded to `d` and as bits, so nothing is lost in decimal."""
    if d.kind == "bool":
        return "true" if value else "false"
    if not d.is_float:
        return str(int(value))
    rounded = convert.cast(np.array([value], np.float64), dt.float64, d)
    if d.bits >= 32:  # LLVM writes a float as the double of its value
        return f"0x{rounded.astype(np.float64).view(np.uint64)[0]:016X}"
    bits = int(rounded.view(f"u{d.bits // 8}")[0])
    return f"0xH{bits:04X}" if d is dt.float16 else str(bits)


@dataclass
class Value:
    """Where a register lives: `name` scalar if uniform, else vector. `base`/`stride`: base + stride*lane, if known."""

    dtype: DType
    name: str
    uniform: bool
    base: str = ""
    stride: int = 0


def varying_registers(program: lir.Program) -> set[Reg]:
    """Registers that may differ between the lanes of a group."""
    varying: set[Reg] = set()

    def visit(block: list[Inst]) -> None:
        for i in block:
            if i.op == "loop":
                for r, init in zip(i.inner[1:], i.args[2:], strict=True):
                    if init in varying:
                        varying.add(r)
                while True:
                    before = len(varying)
                    visit(i.body)
                    for r, y in zip(i.inner[1:], i.body[-1].args, strict=True):
                        if y in varying:
                            varying.add(r)
                    if len(varying) == before:
                        break
                for out, r in zip(i.out, i.inner[1:], strict=True):
                    if r in varying:
                        varying.add(out)
            elif i.op == "when":
                visit(i.body)
                for out, y, other in zip(i.out, i.body[-1].args, i.args[1:], strict=True):
                    if i.args[0] in varying or y in varying or other in varying:
                        varying.add(out)
            elif i.op == "lane":
                if program.lanes > 1:
                    varying.update(i.out)
            elif i.op != "lane_get" and any(r in varying for r in i.args):
                varying.update(i.out)
    visit(program.body)
    return varying


class Emitter:
    """Writes the LLVM IR of one program. `text` is the module when `run()` returns."""

    def __init__(self, program: lir.Program, attributes: str) -> None:
        self.p, self.n, self.attributes = program, program.lanes, attributes
        self.lines: list[str] = []
        self.declared: dict[str, str] = {}
        self.values: dict[Reg, Value] = {}
        self.varying = varying_registers(program)
        self.serial = 0
        self.label = "entry"
        self.index = llvm_type(program.index)
        self.metadata: list[str] = []
        self.depth = 0  # loops around the instruction at hand

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

    def block(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.label = name

    def new_label(self, stem: str) -> str:
        self.serial += 1
        return f"{stem}{self.serial}"

    def call(self, result: str, name: str, *args: tuple[str, str]) -> str:
        """Call intrinsic `name`, declaring it; returns the result's name, "" for void."""
        self.declared[name] = f"declare {result} @{name}({', '.join(t for t, _ in args)})"
        text = f"call {result} @{name}({', '.join(f'{t} {v}' for t, v in args)})"
        if result == "void":
            self.line(text)
            return ""
        return self.op(text)

    def vec(self, t: str) -> str:
        return f"<{self.n} x {t}>"

    def splat(self, t: str, name: str) -> str:
        if not name.startswith("%"):
            return f"splat ({t} {name})"
        first = self.op(f"insertelement {self.vec(t)} poison, {t} {name}, i64 0")
        return self.op(f"shufflevector {self.vec(t)} {first}, {self.vec(t)} poison, <{self.n} x i32> zeroinitializer")

    def lanes_vector(self, t: str) -> str:
        return "<" + ", ".join(f"{t} {k}" for k in range(self.n)) + ">"

    # ----- values

    def scalar(self, r: Reg) -> str:
        v = self.values[r]
        if not v.uniform:
            raise CompileError(f"{self.p.name}: {r} must be the same in all lanes")
        return v.name

    def vector(self, r: Reg) -> str:
        """The register as a vector, splatted or spread from base + stride*lane as needed."""
        v = self.values[r]
        t = llvm_type(r.dtype)
        if v.uniform:
            return self.splat(t, v.name)
        if not v.name:
            lanes = self.lanes_vector(t)
            if v.stride != 1:
                lanes = self.op(f"mul {self.vec(t)} {lanes}, {self.splat(t, str(v.stride))}")
            v.name = self.op(f"add {self.vec(t)} {self.splat(t, v.base)}, {lanes}")
            spread, v.name = v.name, ""  # not kept: it may not dominate a later use
            return spread
        return v.name

    def use(self, r: Reg, uniform: bool) -> str:
        return self.scalar(r) if uniform else self.vector(r)

    def type(self, d: DType, uniform: bool) -> str:
        return llvm_type(d) if uniform else self.vec(llvm_type(d))

    def define(self, r: Reg, name: str, uniform: bool) -> None:
        self.values[r] = Value(r.dtype, name, uniform)

    # ----- program

    def run(self) -> str:
        p = self.p
        self.line_buffers()
        group_head, group_body, group_end = "group.head", "group.body", "group.end"
        self.line(f"br label %{group_head}")
        entry = self.label
        self.block(group_head)
        self.line(f"%group = phi i64 [ %begin, %{entry} ], [ %group.next, %group.latch ]")
        self.line("%group.more = icmp slt i64 %group, %end")
        self.line(f"br i1 %group.more, label %{group_body}, label %{group_end}")
        self.block(group_body)
        self.run_block(p.body)
        self.line("br label %group.latch")
        self.block("group.latch")
        self.line("%group.next = add nsw i64 %group, 1")
        self.line(f"br label %{group_head}")
        self.block(group_end)
        self.line("ret void")
        tables = [self.table_text(t) for t in p.tables]
        head = [f"define void @{p.name}(ptr noalias readonly %args, i64 %begin, i64 %end, ptr noalias align 64 %scratch) #0 {{",
                "entry:"]
        return "\n".join([*tables, *head, *self.lines, "}", *self.declared.values(),
                          f"attributes #0 = {{ {self.attributes} }}", "!0 = !{}", "!1 = !{i32 1}", *self.metadata]) + "\n"

    def line_buffers(self) -> None:
        self.buffers: dict[str, str] = {}
        for n, prm in enumerate(self.p.params):
            slot = self.op(f"getelementptr i64, ptr %args, i64 {n}")
            self.buffers[prm.name] = self.op(f"load ptr, ptr {slot}, align 8, !invariant.load !0")
        offset = 0
        for s in self.p.shared:
            self.buffers[s.name] = self.op(f"getelementptr i8, ptr %scratch, i64 {offset}")
            offset += (s.dtype.nbytes(s.count) + 63) // 64 * 64

    def table_text(self, t: lir.Table) -> str:
        ty = llvm_type(t.dtype)
        values = ", ".join(f"{ty} {literal(t.dtype, v)}" for v in t.values)
        return f"@{t.name} = private unnamed_addr constant [{len(t.values)} x {ty}] [{values}], align 64"

    def run_block(self, block: list[Inst]) -> None:
        for i in block:
            if i.op == "yield":
                continue
            method = getattr(self, f"do_{i.op}", None)
            (method or self.do_arithmetic)(i)

    # ----- sources

    def do_const(self, i: Inst) -> None:
        r = i.out[0]
        self.define(r, literal(r.dtype, i.attrs["value"]), True)

    def do_group(self, i: Inst) -> None:
        name = "%group" if self.index == "i64" else self.op(f"trunc i64 %group to {self.index}")
        self.define(i.out[0], name, True)

    def do_lane(self, i: Inst) -> None:
        if self.n == 1:
            self.define(i.out[0], "0", True)
        else:
            self.values[i.out[0]] = Value(i.out[0].dtype, "", False, "0", 1)

    # ----- arithmetic

    def affine(self, i: Inst) -> bool:
        """Keep base + stride*lane through add, sub and multiplication by a uniform constant. All of it wraps: the index
        type is also a type of data."""
        if i.op not in ("add", "sub", "mul") or i.out[0].dtype is not self.p.index:
            return False
        a, b = (self.values[r] for r in i.args)
        t = self.index
        if (a.uniform and b.uniform) or not all(v.uniform or v.base for v in (a, b)):
            return False
        (ba, sa), (bb, sb) = ((v.name, 0) if v.uniform else (v.base, v.stride) for v in (a, b))
        if i.op == "mul":
            if sb or not bb.lstrip("-").isdigit():
                ba, sa, bb, sb = bb, sb, ba, sa
            if sb or not bb.lstrip("-").isdigit():
                return False
            base, stride = self.op(f"mul {t} {ba}, {bb}"), sa * int(bb)
        else:
            base = self.op(f"{i.op} {t} {ba}, {bb}")
            stride = sa + sb if i.op == "add" else sa - sb
        if stride == 0:
            return False
        self.values[i.out[0]] = Value(i.out[0].dtype, "", False, base, stride)
        return True

    def do_arithmetic(self, i: Inst) -> None:
        if self.affine(i):
            return
        out = i.out[0]
        uniform = out not in self.varying
        d = i.args[0].dtype
        args = [self.use(r, uniform) for r in i.args]
        t = self.type(d, uniform)
        emit = operations.FLOAT.get(i.op) if d.is_float else operations.INT.get(i.op)
        if emit is None:
            raise CompileError(f"{self.p.name}: LLVM backend has no {i.op} on {d}")
        self.define(out, emit(self, d, t, uniform, *args), uniform)

    def const(self, d: DType, uniform: bool, value: int | float | bool) -> str:
        text = literal(d, value)
        return text if uniform else f"splat ({llvm_type(d)} {text})"

    def suffix(self, d: DType, uniform: bool) -> str:
        base = {"float64": "f64", "float32": "f32", "float16": "f16"}.get(d.name, "i1" if d.kind == "bool" else f"i{d.bits}")
        return base if uniform else f"v{self.n}{base}"

    def intrinsic(self, name: str, d: DType, uniform: bool, *args: str) -> str:
        t = self.type(d, uniform)
        return self.call(t, f"llvm.{name}.{self.suffix(d, uniform)}", *((t, a) for a in args))

    def do_select(self, i: Inst) -> None:
        out = i.out[0]
        uniform = out not in self.varying
        t = self.type(out.dtype, uniform)
        a, b = self.use(i.args[1], uniform), self.use(i.args[2], uniform)
        if self.values[i.args[0]].uniform:
            c, ct = self.scalar(i.args[0]), "i1"
        else:
            c, ct = self.vector(i.args[0]), self.vec("i1")
        self.define(out, self.op(f"select {ct} {c}, {t} {a}, {t} {b}"), uniform)

    def do_bitcast(self, i: Inst) -> None:
        out = i.out[0]
        uniform = out not in self.varying
        a = self.use(i.args[0], uniform)
        src, dst = self.type(i.args[0].dtype, uniform), self.type(out.dtype, uniform)
        if i.args[0].dtype.kind == "bool" or out.dtype.kind == "bool":
            name = self.op(f"zext {src} {a} to {dst}") if dst != src and i.args[0].dtype.kind == "bool" else \
                self.op(f"icmp ne {src} {a}, {self.const(i.args[0].dtype, uniform, 0)}") if src != dst else a
        else:
            name = a if src == dst else self.op(f"bitcast {src} {a} to {dst}")
        self.define(out, name, uniform)

    def do_cast(self, i: Inst) -> None:
        out = i.out[0]
        uniform = out not in self.varying
        self.define(out, narrow.cast(self, i.args[0].dtype, out.dtype, self.use(i.args[0], uniform), uniform), uniform)

    # ----- lanes

    def do_lane_xor(self, i: Inst) -> None:
        out = i.out[0]
        if out not in self.varying:
            self.define(out, self.scalar(i.args[0]), True)
            return
        t = self.vec(llvm_type(out.dtype))
        mask = ", ".join(f"i32 {k ^ i.attrs['mask']}" for k in range(self.n))
        self.define(out, self.op(f"shufflevector {t} {self.vector(i.args[0])}, {t} poison, <{self.n} x i32> <{mask}>"), False)

    def do_lane_get(self, i: Inst) -> None:
        v = self.values[i.args[0]]
        t = llvm_type(i.out[0].dtype)
        name = v.name if v.uniform else \
            self.op(f"extractelement {self.vec(t)} {self.vector(i.args[0])}, i64 {i.attrs['lane']}")
        self.define(i.out[0], name, True)

    def do_barrier(self, i: Inst) -> None:
        """The lanes of a group run in lockstep in one vector: program order is the barrier."""

    # ----- memory

    def memory_type(self, d: DType) -> str:
        return "i8" if d.kind == "bool" else llvm_type(d)

    def element(self, i: Inst, index: str) -> str:
        assert i.mem is not None
        base = f"@{i.mem.name}" if isinstance(i.mem, lir.Table) else self.buffers[i.mem.name]
        t = llvm_type(i.args[0].dtype)
        return self.op(f"getelementptr inbounds {self.memory_type(i.mem.dtype)}, ptr {base}, {t} {index}")

    def elements(self, i: Inst, index: str) -> str:
        assert i.mem is not None
        base = f"@{i.mem.name}" if isinstance(i.mem, lir.Table) else self.buffers[i.mem.name]
        t = self.vec(llvm_type(i.args[0].dtype))
        return self.op(f"getelementptr inbounds {self.memory_type(i.mem.dtype)}, ptr {base}, {t} {index}")

    def do_load(self, i: Inst) -> None:
        assert i.mem is not None
        d, out = i.mem.dtype, i.out[0]
        m = self.memory_type(d)
        index = self.values[i.args[0]]
        mask = i.args[1] if len(i.args) > 1 else None
        uniform = out not in self.varying
        if uniform:
            name = self.load_one(i, m, self.scalar(i.args[0]), mask)
        else:
            lanes = self.vector(mask) if mask is not None else ""
            if not index.uniform and index.stride == 1 and index.base:
                if not lanes:
                    self.prefetch(i, self.element(i, index.base))
                name = self.load_vector(i, m, self.n, index.base, lanes)
            else:
                name = self.gather(i, m, self.vector(i.args[0]), lanes)
        if d.kind == "bool":
            t = m if uniform else self.vec(m)
            name = self.op(f"icmp ne {t} {name}, {'0' if uniform else 'zeroinitializer'}")
        self.define(out, name, uniform)

    def load_one(self, i: Inst, m: str, at: str, mask: Reg | None) -> str:
        """The element `at` of i's array, 0 where the uniform `mask` is false."""
        ptr, align = self.element(i, at), _align(i)
        if mask is None:
            return self.op(f"load {m}, ptr {ptr}, align {align}{_invariant(i)}")
        c = self.op(f"insertelement <1 x i1> poison, i1 {self.scalar(mask)}, i64 0")
        v = self.call(f"<1 x {m}>", f"llvm.masked.load.v1{_memory_suffix(m)}.p0", ("ptr", ptr), ("i32 immarg", str(align)),
                      ("<1 x i1>", c), (f"<1 x {m}>", "zeroinitializer"))
        return self.op(f"extractelement <1 x {m}> {v}, i64 0")

    def load_vector(self, i: Inst, m: str, count: int, at: str, lanes: str) -> str:
        """`count` elements of i's array from `at` on, 0 where the vector `lanes`, if not "", is false."""
        ptr, align, vm = self.element(i, at), _align(i), f"<{count} x {m}>"
        if not lanes:
            return self.op(f"load {vm}, ptr {ptr}, align {align}{_invariant(i)}")
        return self.call(vm, f"llvm.masked.load.v{count}{_memory_suffix(m)}.p0", ("ptr", ptr), ("i32 immarg", str(align)),
                         (f"<{count} x i1>", lanes), (vm, "zeroinitializer"))

    def gather(self, i: Inst, m: str, at: str, lanes: str) -> str:
        """The elements of i's array at the vector `at`, 0 where the vector `lanes`, if not "", is false."""
        vm = self.vec(m)
        return self.call(vm, f"llvm.masked.gather.v{self.n}{_memory_suffix(m)}.v{self.n}p0",
                         (self.vec("ptr"), self.elements(i, at)), ("i32 immarg", str(_align(i))),
                         (self.vec("i1"), lanes or "splat (i1 true)"), (vm, "zeroinitializer"))

    def prefetch(self, i: Inst, ptr: str) -> None:
        """Ask for what a loop will read soon: behind a long chain of arithmetic the core itself sees the next load too late.
        A prefetch beyond the array is harmless."""
        if self.depth and i.attrs.get("ahead"):
            ahead = self.op(f"getelementptr i8, ptr {ptr}, i64 {i.attrs['ahead']}")
            self.call("void", "llvm.prefetch.p0", ("ptr", ahead), ("i32 immarg", "0"), ("i32 immarg", "3"), ("i32 immarg", "1"))

    def do_nibble(self, i: Inst) -> None:
        nibble.load(self, i)

    do_table = do_load

    def do_store(self, i: Inst) -> None:
        assert i.mem is not None
        d = i.mem.dtype
        m = self.memory_type(d)
        align = max(1, d.bits // 8)
        index, value = self.values[i.args[0]], self.values[i.args[1]]
        mask = i.args[2] if len(i.args) > 2 else None
        masked = mask is not None
        if index.uniform and value.uniform and (mask is None or self.values[mask].uniform):
            ptr, v = self.element(i, self.scalar(i.args[0])), value.name
            if d.kind == "bool":
                v = self.op(f"zext i1 {v} to i8")
            if mask is None:
                self.line(f"store {m} {v}, ptr {ptr}, align {align}")
            else:
                c = self.op(f"insertelement <1 x i1> poison, i1 {self.scalar(mask)}, i64 0")
                one = self.op(f"insertelement <1 x {m}> poison, {m} {v}, i64 0")
                self.call("void", f"llvm.masked.store.v1{_memory_suffix(m)}.p0", (f"<1 x {m}>", one), ("ptr", ptr),
                          ("i32 immarg", str(align)), ("<1 x i1>", c))
            return
        v = self.vector(i.args[1])
        vm = self.vec(m)
        if d.kind == "bool":
            v = self.op(f"zext {self.vec('i1')} {v} to {vm}")
        lanes = self.vector(mask) if mask is not None else "splat (i1 true)"
        if not index.uniform and index.stride == 1 and index.base:
            ptr = self.element(i, index.base)
            if masked:
                self.call("void", f"llvm.masked.store.v{self.n}{_memory_suffix(m)}.p0", (vm, v), ("ptr", ptr),
                          ("i32 immarg", str(align)), (self.vec("i1"), lanes))
            elif i.attrs.get("stream"):
                self.line(f"store {vm} {v}, ptr {ptr}, align {max(align, self.n * d.bits // 8)}, !nontemporal !1")
            else:
                self.line(f"store {vm} {v}, ptr {ptr}, align {align}")
        else:
            ptrs = self.elements(i, self.vector(i.args[0]))
            self.call("void", f"llvm.masked.scatter.v{self.n}{_memory_suffix(m)}.v{self.n}p0", (vm, v), (self.vec("ptr"), ptrs),
                      ("i32 immarg", str(align)), (self.vec("i1"), lanes))

    # ----- structure

    def do_loop(self, i: Inst) -> None:
        head, body, latch, done = (self.new_label(s) for s in ("head", "body", "latch", "done"))
        t = self.index
        lo, hi = self.scalar(i.args[0]), self.scalar(i.args[1])
        uniform = [r not in self.varying for r in i.inner[1:]]
        inits = [self.use(r, u) for r, u in zip(i.args[2:], uniform, strict=True)]
        before = self.label
        self.line(f"br label %{head}")
        self.block(head)
        counter, following = self.tmp(), self.tmp()
        self.line(f"{counter} = phi {t} [ {lo}, %{before} ], [ {following}, %{latch} ]")
        slots: list[tuple[str, str]] = []
        place = len(self.lines)
        self.values[i.inner[0]] = Value(self.p.index, counter, True)
        for r, u in zip(i.inner[1:], uniform, strict=True):
            name = self.tmp()
            slots.append((name, self.type(r.dtype, u)))
            self.define(r, name, u)
        more = self.op(f"icmp slt {t} {counter}, {hi}")
        self.line(f"br i1 {more}, label %{body}, label %{done}")
        self.block(body)
        self.depth += 1
        self.run_block(i.body)
        self.depth -= 1
        results = [self.use(r, u) for r, u in zip(i.body[-1].args, uniform, strict=True)]
        self.line(f"br label %{latch}")
        self.block(latch)
        self.line(f"{following} = add nsw {t} {counter}, {i.attrs['step']}")
        self.line(f"br label %{head}")
        phis = [f"  {name} = phi {ty} [ {init}, %{before} ], [ {res}, %{latch} ]"
                for (name, ty), init, res in zip(slots, inits, results, strict=True)]
        self.lines[place:place] = phis
        self.block(done)
        for r, (name, _), u in zip(i.out, slots, uniform, strict=True):
            self.define(r, name, u)

    def do_when(self, i: Inst) -> None:
        taken, done = self.new_label("when"), self.new_label("done")
        cond = self.values[i.args[0]]
        uniform = [r not in self.varying for r in i.out]
        others = [self.use(r, u) for r, u in zip(i.args[1:], uniform, strict=True)]
        lanes = cond.name if cond.uniform else self.vector(i.args[0])
        anyone = lanes if cond.uniform else self.call("i1", f"llvm.vector.reduce.or.v{self.n}i1", (self.vec("i1"), lanes))
        before = self.label
        n = len(self.metadata) + 2
        self.metadata.append(f'!{n} = !{{!"branch_weights", i32 1, i32 2000}}')
        self.line(f"br i1 {anyone}, label %{taken}, label %{done}, !prof !{n}")
        self.block(taken)
        self.run_block(i.body)
        results = []
        for r, other, u in zip(i.body[-1].args, others, uniform, strict=True):
            t = self.type(r.dtype, u)
            v = self.use(r, u)
            results.append(v if cond.uniform else self.op(f"select {self.vec('i1')} {lanes}, {t} {v}, {t} {other}"))
        after = self.label
        self.line(f"br label %{done}")
        self.block(done)
        for r, other, v, u in zip(i.out, others, results, uniform, strict=True):
            name = self.op(f"phi {self.type(r.dtype, u)} [ {other}, %{before} ], [ {v}, %{after} ]")
            self.define(r, name, u)


def _memory_suffix(m: str) -> str:
    return {"float": "f32", "double": "f64", "half": "f16"}.get(m, m)


def _align(i: Inst) -> int:
    assert i.mem is not None
    return max(1, i.mem.dtype.bits // 8)


def _invariant(i: Inst) -> str:
    """What tells LLVM that no store changes what `i` loads."""
    constant = isinstance(i.mem, lir.Table) or isinstance(i.mem, lir.Param) and not i.mem.writable
    return ", !invariant.load !0" if constant else ""
