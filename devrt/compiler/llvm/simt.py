"""LIR to LLVM IR text for GPUs: one LIR lane is one lane of a wave, so every register is a scalar.

A group is one workgroup of one wave: its lanes run in lockstep, and a barrier only keeps the compiler from moving memory
operations across. Parameters are global memory, shared arrays LDS, tables constant memory.
"""

from __future__ import annotations

from devrt.compiler import dtypes as dt
from devrt.compiler import lir
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Inst, Reg
from devrt.compiler.llvm.emit import Emitter, literal, llvm_type
from devrt.device import CompileError

GLOBAL, LDS, CONSTANT = 1, 3, 4  # address spaces, AMDGPUUsage "Address Spaces"

# What a kernel of ours does not read, so that no register is filled with it (AMDGPUUsage "LLVM IR Attributes").
_UNUSED = ("dispatch-ptr", "queue-ptr", "dispatch-id", "implicitarg-ptr", "workgroup-id-y", "workgroup-id-z", "workitem-id-y",
           "workitem-id-z", "lds-kernel-id", "hostcall-ptr", "multigrid-sync-arg", "heap-ptr", "default-queue",
           "completion-action", "flat-scratch-init", "cluster-id-x", "cluster-id-y", "cluster-id-z")
_XMASK = 0x160  # DPP row_xmask, gfx10 and later: lane ^ mask within a row of 16


class SimtEmitter(Emitter):
    """Writes one program for `cpu`, a gfx name, whose waves have `wave` lanes."""

    def __init__(self, program: lir.Program, cpu: str, wave: int) -> None:
        super().__init__(program, "")
        if program.lanes != wave:
            raise CompileError(f"{program.name} was lowered for {program.lanes} lanes",
                               evidence=f"a wave of {cpu} has {wave}", remedy="this is a defect of devrt: please report it")
        self.cpu, self.wave = cpu, wave
        self.varying = set()  # to the text every register is a scalar; LLVM finds out which are the same in all lanes
        self.attributes = " ".join(
            ["nounwind", *(f'"amdgpu-no-{name}"' for name in _UNUSED), f'"amdgpu-flat-work-group-size"="{wave},{wave}"',
             '"uniform-work-group-size"="true"', '"amdgpu-ieee"="false"', '"denormal-fp-math"="ieee,ieee"',
             f'"target-cpu"="{cpu}"', *([f'"target-features"="+wavefrontsize{wave}"'] if not self.gfx9 else [])])

    @property
    def gfx9(self) -> bool:
        return self.cpu.startswith("gfx9")

    def run(self) -> str:
        p = self.p
        index = llvm_type(p.index)
        group = self.call("i32", "llvm.amdgcn.workgroup.id.x")
        lane = self.call("i32", "llvm.amdgcn.workitem.id.x")
        self.group_name = self.op(f"zext i32 {group} to {index}")
        self.lane_name = self.op(f"zext i32 {lane} to {index}")
        self.buffers = {prm.name: f"%arg.{prm.name}" for prm in p.params}
        offset = 0
        for s in p.shared:
            self.buffers[s.name] = self.op(f"getelementptr i8, ptr addrspace({LDS}) @{p.name}.lds, i32 {offset}")
            offset += (s.dtype.nbytes(s.count) + 63) // 64 * 64
        self.run_block(p.body)
        self.line("ret void")
        arguments = ", ".join(f"ptr addrspace({GLOBAL}) noalias {'' if prm.writable else 'readonly '}%arg.{prm.name}"
                              for prm in p.params)
        lds = [f"@{p.name}.lds = internal addrspace({LDS}) global [{offset} x i8] poison, align 64"] if offset else []
        tables = [self.table_text(t) for t in p.tables]
        head = [f"define amdgpu_kernel void @{p.name}({arguments}) #0 {{", "entry:"]
        return "\n".join([*lds, *tables, *head, *self.lines, "}", *self.declared.values(),
                          f"attributes #0 = {{ {self.attributes} }}", "!0 = !{}", *self.metadata]) + "\n"

    def table_text(self, t: lir.Table) -> str:
        ty = llvm_type(t.dtype)
        values = ", ".join(f"{ty} {literal(t.dtype, v)}" for v in t.values)
        return f"@{t.name} = internal unnamed_addr addrspace({CONSTANT}) constant [{len(t.values)} x {ty}] [{values}], align 64"

    # ----- sources

    def do_group(self, i: Inst) -> None:
        self.define(i.out[0], self.group_name, True)

    def do_lane(self, i: Inst) -> None:
        self.define(i.out[0], self.lane_name, True)

    # ----- lanes

    def words(self, r: Reg) -> tuple[list[str], str]:
        """(the register as i32 words, its LLVM type)"""
        name, t, bits = self.scalar(r), llvm_type(r.dtype), 1 if r.dtype.kind == "bool" else r.dtype.bits
        if r.dtype.is_float and t in ("float", "double", "half"):
            name = self.op(f"bitcast {t} {name} to i{bits}")
        if bits < 32:
            return [self.op(f"zext i{bits} {name} to i32")], t
        if bits == 32:
            return [name], t
        high = self.op(f"lshr i64 {name}, 32")
        return [self.op(f"trunc i64 {name} to i32"), self.op(f"trunc i64 {high} to i32")], t

    def joined(self, words: list[str], d: DType) -> str:
        """The value of type `d` in i32 words."""
        t, bits = llvm_type(d), 1 if d.kind == "bool" else d.bits
        name = words[0]
        if bits < 32:
            name = self.op(f"trunc i32 {name} to i{bits}")
        elif bits == 64:
            low, high = (self.op(f"zext i32 {w} to i64") for w in words)
            name = self.op(f"or i64 {low}, {self.op(f'shl i64 {high}, 32')}")
        return self.op(f"bitcast i{bits} {name} to {t}") if t in ("float", "double", "half") else name

    def do_lane_xor(self, i: Inst) -> None:
        words, _ = self.words(i.args[0])
        mask = i.attrs["mask"]
        self.define(i.out[0], self.joined([self.exchange(w, mask) for w in words], i.out[0].dtype), True)

    def exchange(self, word: str, mask: int) -> str:
        """The i32 of lane ^ mask."""
        if self.gfx9:
            if mask < 32:  # ds_swizzle in bit mode: xor[14:10] or[9:5] and[4:0]
                return self.call("i32", "llvm.amdgcn.ds.swizzle", ("i32", word), ("i32 immarg", str(mask << 10 | 0x1F)))
            lane = self.op(f"trunc {llvm_type(self.p.index)} {self.lane_name} to i32")
            place = self.op(f"shl i32 {self.op(f'xor i32 {lane}, {mask}')}, 2")
            return self.call("i32", "llvm.amdgcn.ds.bpermute", ("i32", place), ("i32", word))
        if mask & 15:
            word = self.call("i32", "llvm.amdgcn.update.dpp.i32", ("i32", word), ("i32", word),
                             ("i32 immarg", str(_XMASK + (mask & 15))), ("i32 immarg", "15"), ("i32 immarg", "15"),
                             ("i1 immarg", "false"))
        if mask & 16:
            word = self.call("i32", "llvm.amdgcn.permlanex16.i32", ("i32", word), ("i32", word), ("i32", str(0x76543210)),
                             ("i32", str(0xFEDCBA98 - (1 << 32))), ("i1 immarg", "false"), ("i1 immarg", "false"))
        return word

    def do_lane_get(self, i: Inst) -> None:
        words, _ = self.words(i.args[0])
        read = [self.call("i32", "llvm.amdgcn.readlane.i32", ("i32", w), ("i32", str(i.attrs["lane"]))) for w in words]
        self.define(i.out[0], self.joined(read, i.out[0].dtype), True)

    def do_barrier(self, i: Inst) -> None:
        self.line('fence syncscope("wavefront") acq_rel')
        self.call("void", "llvm.amdgcn.wave.barrier")

    # ----- memory

    def place(self, i: Inst, at: str) -> tuple[str, str]:
        """(pointer type, pointer) of the element that a memory instruction touches."""
        assert i.mem is not None
        table, shared = isinstance(i.mem, lir.Table), isinstance(i.mem, lir.Shared)
        pointer = f"ptr addrspace({CONSTANT if table else LDS if shared else GLOBAL})"
        base = f"@{i.mem.name}" if table else self.buffers[i.mem.name]
        t = llvm_type(i.args[0].dtype)
        element = self.memory_type(i.mem.dtype)
        return pointer, self.op(f"getelementptr {element}, {pointer} {base}, {t} {at}")

    def guarded(self, mask: Reg | None) -> tuple[str, str] | None:
        """Open a block that only lanes of `mask` enter; (label before it, label after it)."""
        if mask is None:
            return None
        inside, after, before = self.new_label("lane"), self.new_label("joined"), self.label
        self.line(f"br i1 {self.scalar(mask)}, label %{inside}, label %{after}")
        self.block(inside)
        return before, after

    def do_load(self, i: Inst) -> None:
        assert i.mem is not None
        m = self.memory_type(i.mem.dtype)
        name = self.load_one(i, m, self.scalar(i.args[0]), i.args[1] if len(i.args) > 1 else None)
        if i.mem.dtype.kind == "bool":
            name = self.op(f"icmp ne {m} {name}, 0")
        self.define(i.out[0], name, True)

    def load_one(self, i: Inst, m: str, at: str, mask: Reg | None) -> str:
        assert i.mem is not None
        constant = isinstance(i.mem, lir.Table) or isinstance(i.mem, lir.Param) and not i.mem.writable
        guard = self.guarded(mask)
        pointer, element = self.place(i, at)
        invariant = ", !invariant.load !0" if constant else ""
        name = self.op(f"load {m}, {pointer} {element}, align {max(1, i.mem.dtype.bits // 8)}{invariant}")
        if guard is not None:
            before, after = guard
            inside = self.label
            self.line(f"br label %{after}")
            self.block(after)
            name = self.op(f"phi {m} [ {name}, %{inside} ], [ zeroinitializer, %{before} ]")
        return name

    do_table = do_load

    def do_store(self, i: Inst) -> None:
        assert i.mem is not None
        d, m = i.mem.dtype, self.memory_type(i.mem.dtype)
        value = self.scalar(i.args[1])
        if d.kind == "bool":
            value = self.op(f"zext i1 {value} to i8")
        guard = self.guarded(i.args[2] if len(i.args) > 2 else None)
        pointer, at = self.place(i, self.scalar(i.args[0]))
        self.line(f"store {m} {value}, {pointer} {at}, align {max(1, d.bits // 8)}")
        if guard is not None:
            self.line(f"br label %{guard[1]}")
            self.block(guard[1])

    # ----- matrix units

    def do_mma(self, i: Inst) -> None:
        """Lane l gives row l % 16 of both tiles: all 16 of k to WMMA, 4 from 4*(l // 16) on to MFMA. EXEC is whole here:
        control flow around an mma is the same in all lanes."""
        assert i.mem is not None
        layout, half = i.attrs["layout"], i.mem.dtype is dt.float16
        wmma = layout == "wmma"
        held = 16 if wmma else 4
        factor, total = f"<{held} x {'half' if half else 'i16'}>", f"<{len(i.out)} x float>"
        lane = self.op(f"trunc {self.index} {self.lane_name} to i32")
        row = self.op(f"and i32 {lane}, 15")
        first = "0" if wmma else self.op(f"mul i32 {self.op(f'lshr i32 {lane}, 4')}, {held}")
        operands = []
        for r, stride in ((i.args[0], i.attrs["lda"]), (i.args[1], i.attrs["ldb"])):
            start = self.op(f"trunc {self.index} {self.scalar(r)} to i32")
            mine = self.op(f"add i32 {self.op(f'mul i32 {row}, {stride}')}, {first}")
            place = self.op(f"getelementptr i16, ptr addrspace({LDS}) {self.buffers[i.mem.name]}, "
                            f"i32 {self.op(f'add i32 {start}, {mine}')}")
            operands.append(self.op(f"load {factor}, ptr addrspace({LDS}) {place}, align {min(16, 2 * held)}"))
        sums = "poison"
        for v, r in enumerate(i.args[2:]):
            sums = self.op(f"insertelement {total} {sums}, float {self.scalar(r)}, i32 {v}")
        given = ((factor, operands[0]), (factor, operands[1]), (total, sums))
        if wmma:
            kind = "f16.v8f32.v16f16" if half else "bf16.v8f32.v16i16"
            result = self.call(total, f"llvm.amdgcn.wmma.f32.16x16x16.{kind}", *given)
        else:
            flags = (("i32 immarg", "0"),) * 3  # no broadcast, no permutation of B's lanes
            result = self.call(total, f"llvm.amdgcn.mfma.f32.16x16x16{'f16' if half else 'bf16.1k'}", *given, *flags)
        for v, r in enumerate(i.out):
            self.define(r, self.op(f"extractelement {total} {result}, i32 {v}"), True)

    # ----- structure

    def do_when(self, i: Inst) -> None:
        """All lanes enter where one wants to, so that what the body exchanges between lanes is there."""
        taken, done = self.new_label("when"), self.new_label("done")
        cond = self.scalar(i.args[0])
        others = [self.scalar(r) for r in i.args[1:]]
        ballot = self.call(f"i{self.wave}", f"llvm.amdgcn.ballot.i{self.wave}", ("i1", cond))
        anyone = self.op(f"icmp ne i{self.wave} {ballot}, 0")
        before = self.label
        self.line(f"br i1 {anyone}, label %{taken}, label %{done}")
        self.block(taken)
        self.run_block(i.body)
        results = [self.op(f"select i1 {cond}, {llvm_type(r.dtype)} {self.scalar(r)}, {llvm_type(r.dtype)} {other}")
                   for r, other in zip(i.body[-1].args, others, strict=True)]
        after = self.label
        self.line(f"br label %{done}")
        self.block(done)
        for r, other, v in zip(i.out, others, results, strict=True):
            self.define(r, self.op(f"phi {llvm_type(r.dtype)} [ {other}, %{before} ], [ {v}, %{after} ]"), True)


__all__ = ["SimtEmitter"]
