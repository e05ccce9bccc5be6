"""A kernel's machine code as one LLVM function: blocks, branches, barriers and faults."""

from __future__ import annotations

from devrt.virtual import gather
from devrt.virtual.amd.isa import Block, Effect, Instruction, walk
from devrt.virtual.amd.isa.formats import Gen
from devrt.virtual.amd.translate import groups, layout, matrix, memory, near, pages, scalar, vector, waits
from devrt.virtual.amd.translate.writer import EXEC, VCC, NotTranslated, Writer

_SAVE = "  ; save"


class Function:
    """Writes the wave function of one kernel."""

    def __init__(self, code: bytes, entry: int, gen: Gen, wave: int) -> None:
        self.w = Writer(wave, gen)
        self.entry = entry
        self.blocks: dict[int, Block] = walk(code, entry, gen)
        self.missing = waits.missing(self.blocks, entry, gen)
        self.resumes: list[str] = []
        self.returns = waits.returns(self.blocks)
        self.functions = waits.functions(self.blocks)

    @property
    def instructions(self) -> dict[int, Instruction]:
        """Every instruction by its byte offset."""
        return {i.address: i for b in self.blocks.values() for i in b.instructions}

    def text(self) -> str:
        """The LLVM IR of the module: `run`, and what it needs."""
        w = self.w
        for block in self.blocks.values():
            self.block(block)
        if self.resumes:
            self.suspended()
        save = "\n".join(self.saving())
        body = "\n".join(w.lines).replace(_SAVE, save)
        helpers = "".join(w.helpers.values())
        known = pages.TEXT + gather.text(w.wave) + gather.for_lanes(near.TEXT, w.wave) + groups.text(w.wave) + saves(w.wave)
        declared = "\n".join(d for name, d in w.declared.items() if f"@{name}(" not in known + helpers)
        return "\n".join([known, helpers, "define internal i32 @wave(ptr noalias %state, ptr %c) {", "entry:", *self.prologue(),
                          body,
                          "}", declared, ""])

    # ----- registers in and out

    def names(self) -> list[tuple[str, str, int]]:
        """(variable, type, offset in the state) of every register that is used."""
        w = self.w
        found = [(f"%s{n}", "i32", layout.SGPR + 4 * n) for n in sorted(w.sgprs)]
        found += [("%m0", "i32", layout.M0), ("%vcc", w.iw, layout.SGPR + 4 * VCC), ("%exec", w.iw, layout.SGPR + 4 * EXEC)]
        return found + [(f"%v{n}", w.vec("i32"), layout.VGPR + 4 * w.wave * n) for n in sorted(w.vgprs)]

    def prologue(self) -> list[str]:
        w = self.w
        out = [f"  {name} = alloca {t}, align 64" for name, t, _ in self.names()]
        out += [f"  %{name} = alloca [{nbytes} x i8], align 256" for name, nbytes in w.locals.items()]
        out += ["  %scc = alloca i1", "  %ok = alloca i8", "  store i8 1, ptr %ok", "  %place = alloca i32",
                "  %status = alloca i32"]
        for name, t, offset in self.names():
            p, v = f"{name}.in", f"{name}.value"
            out += [f"  {p} = getelementptr i8, ptr %state, i64 {offset}", f"  {v} = load {t}, ptr {p}, align 4",
                    f"  store {t} {v}, ptr {name}"]
        out += [f"  %scc.in = getelementptr i8, ptr %state, i64 {layout.SCC}", "  %scc.word = load i32, ptr %scc.in",
                "  %scc.bit = icmp ne i32 %scc.word, 0", "  store i1 %scc.bit, ptr %scc",
                f"  %resume.in = getelementptr i8, ptr %state, i64 {layout.RESUME}", "  %resume = load i32, ptr %resume.in"]
        cases = " ".join(f"i32 {n + 1}, label %{label}" for n, label in enumerate(self.resumes))
        return [*out, f"  switch i32 %resume, label %b{self.entry} [ {cases} ]"] if w.lines else out

    def saving(self) -> list[str]:
        """The registers back into the state."""
        out = []
        for name, _, offset in self.names():
            kind = "w" if name in ("%vcc", "%exec") else "v" if name.startswith("%v") else "s"
            out.append(f"  call void @save.{kind}(ptr {name}, ptr %state, i64 {offset})")
        out.append(f"  call void @save.scc(ptr %scc, ptr %state, i64 {layout.SCC})")
        return out

    # ----- blocks

    def block(self, block: Block) -> None:
        w = self.w
        w.start(f"b{block.address}")
        for i in block.instructions:
            if i.address in self.missing:
                self.fault(i, str(pages.KIND["missing wait"]))
                return
            try:
                if self.instruction(i, block):
                    return
            except NotTranslated:
                self.fault(i, str(pages.KIND["unsupported"]))
                return
        w.line(f"br label %b{block.successors[0]}")

    def instruction(self, i: Instruction, block: Block) -> bool:
        """Write one; whether it ended the block."""
        w, e = self.w, i.effects
        if Effect.END in e:
            w.line(f"ret i32 {layout.DONE}")
            return True
        if Effect.TRAP in e:
            self.fault(i, str(pages.KIND["trap"]))
            return True
        if e & (Effect.BRANCH | Effect.INDIRECT):
            self.leave(i, block)
            return True
        if Effect.BARRIER in e:
            self.barrier(i)
        elif Effect.WAIT in e or Effect.CACHE in e:
            pass
        elif i.memory is not None:
            memory.emit(w, i)
            self.check(i)
        elif i.format.startswith("S"):
            scalar.emit(w, i)
        elif i.mnemonic in matrix.NAMED:
            matrix.NAMED[i.mnemonic](w, i)
        elif i.mnemonic.startswith("ds_"):
            memory.emit(w, i)
        else:
            vector.emit(w, i)
        return False

    def check(self, i: Instruction) -> None:
        """Go on only if every address was good."""
        w = self.w
        good, bad = w.new_label("good"), w.new_label("bad")
        flag = w.op("load i8, ptr %ok")
        w.line(f"br i1 {w.op(f'icmp ne i8 {flag}, 0')}, label %{good}, label %{bad}")
        w.start(bad)
        self.fault(i, "0")
        w.start(good)

    def fault(self, i: Instruction, kind: str) -> None:
        """End the wave; kind 0: a fault that is noted."""
        end = self.w.call("i32", "leave", ("ptr", "%c"), ("i64", str(i.address)), ("i32", kind), declare=False)
        self.w.line(f"ret i32 {end}")

    def barrier(self, i: Instruction) -> None:
        if i.mnemonic == "s_barrier_signal":
            return
        w = self.w
        label = w.new_label("resume")
        self.suspend(label, layout.BARRIER)
        w.start(label)

    def suspend(self, label: str, status: int) -> None:
        """Put the registers back into the state; the wave goes on at a label."""
        w = self.w
        self.resumes.append(label)
        w.line(f"store i32 {len(self.resumes)}, ptr %place")
        w.line(f"store i32 {status}, ptr %status")
        w.line("br label %suspend")

    def suspended(self) -> None:
        w = self.w
        w.start("suspend")
        w.lines.append(_SAVE)
        place = w.op(f"getelementptr i8, ptr %state, i64 {layout.RESUME}")
        w.line(f"store i32 {w.op('load i32, ptr %place')}, ptr {place}")
        w.line(f"ret i32 {w.op('load i32, ptr %status')}")

    # ----- branches

    def leave(self, i: Instruction, block: Block) -> None:
        w = self.w
        if Effect.INDIRECT in i.effects or Effect.CALL in i.effects:
            self.call(i, block)
            return
        if Effect.CONDITIONAL not in i.effects:
            self.go(i, block.successors[0])
            return
        taken, other = block.successors
        label = w.new_label("taken")
        w.line(f"br i1 {self.condition(i)}, label %{label}, label %b{other}")
        w.start(label)
        self.go(i, taken)

    def go(self, i: Instruction, target: int) -> None:
        """A jump; one backwards counts."""
        if target <= i.address:
            self.spend(i)
        self.w.line(f"br label %b{target}")

    def spend(self, i: Instruction) -> None:
        """Count against the budget, and give way to others now and then."""
        w = self.w
        kind = w.call("i32", "pass", ("ptr", "%c"), ("ptr", "%state"), declare=False)
        on, out, give = w.new_label("on"), w.new_label("out"), w.new_label("give")
        w.line(f"switch i32 {kind}, label %{out} [ i32 0, label %{on} i32 -1, label %{give} ]")
        w.start(out)
        self.fault(i, kind)
        w.start(give)
        self.suspend(on, layout.READY)
        w.start(on)

    def condition(self, i: Instruction) -> str:
        w, name = self.w, i.mnemonic.removeprefix("s_cbranch_")
        if name.startswith("scc"):
            return w.scc() if name == "scc1" else w.op(f"xor i1 {w.scc()}, true")
        whole = w.vcc() if name.startswith("vcc") else w.exec()
        if name not in ("vccz", "vccnz", "execz", "execnz"):
            raise NotTranslated(i.mnemonic)
        return w.op(f"icmp {'ne' if name.endswith('nz') else 'eq'} {w.iw} {whole}, 0")

    def call(self, i: Instruction, block: Block) -> None:
        """s_swappc and s_call go to a function that some call names, s_setpc to a known place or behind a call."""
        w, call = self.w, Effect.CALL in i.effects
        known = block.calls if call else None if block.returns else block.successors[0]
        if known is None:
            self.spend(i)  # before its operand is read: a wave that gave way comes back here
        at = w.scalar64(i.operands[-1]) if known is None else ""
        if call:
            w.set_scalar64(i.destinations[0], w.address(i.end))
        if known is not None:
            self.go(i, known)
            return
        at = w.op(f"sub i64 {at}, {w.address(0)}")
        lost = w.new_label("lost")
        cases = " ".join(f"i64 {n}, label %b{n}" for n in (self.functions if call else self.returns))
        w.line(f"switch i64 {at}, label %{lost} [ {cases} ]")
        w.start(lost)
        self.fault(i, str(pages.KIND["unsupported"]))


def saves(wave: int) -> str:
    """The functions that put a register back into the state."""
    def one(name: str, t: str) -> str:
        return (f"define internal void @save.{name}(ptr %r, ptr %state, i64 %at) alwaysinline {{\n  %v = load {t}, ptr %r\n"
                f"  %p = getelementptr i8, ptr %state, i64 %at\n  store {t} %v, ptr %p, align 4\n  ret void\n}}\n")
    scc = ("define internal void @save.scc(ptr %r, ptr %state, i64 %at) alwaysinline {\n  %b = load i1, ptr %r\n"
           "  %v = zext i1 %b to i32\n  %p = getelementptr i8, ptr %state, i64 %at\n  store i32 %v, ptr %p\n  ret void\n}\n")
    return one("s", "i32") + one("w", f"i{wave}") + one("v", f"<{wave} x i32>") + scc
