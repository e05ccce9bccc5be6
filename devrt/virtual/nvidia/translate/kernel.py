"""A kernel's machine code as one LLVM function: blocks, registers in and out, the scheduler of lanes that parted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from devrt.compiler.sass import convergence, verify
from devrt.compiler.sass.flow import End, FlowBlock, label, walk
from devrt.compiler.sass.instruction import TRUE, Cbuf, File, Instruction, Reg
from devrt.virtual import gather, walker
from devrt.virtual.nvidia.translate import barriers, control, copies, divergence, groups, layout, rows, spaces
from devrt.virtual.nvidia.translate.layout import KIND
from devrt.virtual.nvidia.translate.rules import RULES
from devrt.virtual.nvidia.translate.writer import LANES, NotTranslated, Writer

_SAVE = "  ; save"


class Function:
    """Writes the warp function of one kernel. `entry` and all addresses are byte offsets into `code`."""

    def __init__(self, code: bytes, entry: int, sm: int, registers: int, constants: Mapping[int, bytes],
                 mufu_error: int = 0) -> None:
        self.w = Writer(sm, mufu_error)
        self.entry, self.registers = entry, registers
        self.tables: dict[tuple[int, int], bytes] = {}  # (bank, offset) -> content that decided where branches go
        self.blocks = self._blocks(code, sm, constants)
        self.hazards = verify.hazards(self.blocks, entry, sm)
        self.misuse = convergence.misuse(self.blocks, entry)
        self.masked = divergence.masked(self.blocks, entry)
        self.resumes: dict[int, str] = {}  # byte offset -> label: where a warp or its lanes may go on
        self.alone: list[int] = []         # addresses of WARPSYNCs to which lanes that wait come again
        self.scheduled = bool(self.masked)
        self.w.copies = copies.groups_board(self.instructions.values())

    def _blocks(self, code: bytes, sm: int, constants: Mapping[int, bytes]) -> dict[int, FlowBlock]:
        """The blocks, indirect branches followed to where tables in constant banks send them. A table ends where another one
        begins: each that is found may shorten those that are known."""
        ways: dict[int, tuple[int, ...]] = {}
        starts: set[tuple[int, int]] = set()
        while True:
            blocks = walk(code, self.entry, sm, indirect=ways)
            branches = [block for block in blocks.values() if block.end is End.INDIRECT]
            found = {block.instructions[-1].address: _table(block, constants) for block in branches}
            new = {table for table in found.values() if table} - starts
            starts |= new
            if new and ways:
                ways = {}
                continue
            more = {block.instructions[-1].address for block in branches} - set(ways)
            if not more:
                return blocks
            for block in branches:
                last = block.instructions[-1]
                if last.address in more:
                    table = found[last.address]
                    ways[last.address] = tuple(self._targets(last, table, starts, len(code), constants)) if table else ()

    def _targets(self, last: Instruction, table: tuple[int, int], others: set[tuple[int, int]], size: int,
                 constants: Mapping[int, bytes]) -> Iterator[int]:
        """Where a table sends an indirect branch."""
        bank, offset = table
        end = min((start for other, start in others if other == bank and start > offset), default=None)
        content = self.tables[table] = constants[bank][offset:end]
        start = max(label(last), 0)
        for at in range(0, len(content) - 3, 4):
            target = int.from_bytes(content[at:at + 4], "little", signed=True) + start
            if target % 16 or not 0 <= target < size:
                return
            yield target

    @property
    def instructions(self) -> dict[int, Instruction]:
        """Every instruction by its byte offset."""
        return {i.address: i for b in self.blocks.values() for i in b.instructions}

    def text(self) -> str:
        """The LLVM IR of the module: `run`, and what it needs."""
        w = self.w
        for block in self.blocks.values():
            self.block(block)
        if self.scheduled:
            self.schedule()
        self.suspend()
        body = "\n".join(w.lines).replace(_SAVE, "\n".join(self.saving()))
        known = (walker.TEXT + spaces.FIELDS + gather.text(LANES) + spaces.TEXT + rows.TEXT + divergence.TEXT + barriers.TEXT
                 + copies.TEXT + groups.TEXT + _SAVES + "".join(w.helpers.values()))
        present = set(re.findall(r"^(?:declare|define) .*?@([\w.]+)\(", known, re.MULTILINE))
        declared = "\n".join(d for name, d in w.declared.items() if name not in present)
        return "\n".join([known, "define internal i32 @warp(ptr noalias %state, ptr %c) {", "entry:", *self.prologue(), body, "}",
                          declared, ""])

    # ----- registers in and out

    def names(self) -> Iterator[tuple[str, str, int]]:
        """(variable, type, offset in the state) of all that outlasts a suspension."""
        starts = {File.R: (layout.REGISTERS, 128, self.w.vec("i32")), File.UR: (layout.UNIFORM, 4, "i32"),
                  File.P: (layout.PREDICATES, 4, "i32"), File.UP: (layout.UPREDICATES, 1, "i1"),
                  File.B: (layout.BARRIERS, 128, self.w.vec("i32"))}
        for r in sorted(self.w.used, key=lambda r: (r.file.value, r.index)):
            start, size, t = starts[r.file]
            yield f"{r.file.value.lower()}{r.index}", t, start + size * r.index
        yield "live", "i32", layout.LIVE
        if self.scheduled:
            yield "blocked", "i32", layout.BLOCKED
            yield "next", self.w.vec("i32"), layout.NEXT
            for n in self.meetings():
                yield f"wait{n}", "i32", layout.WAITS + 4 * n

    def meetings(self) -> list[int]:
        """Convergence barriers that are used."""
        return sorted(r.index for r in self.w.used if r.file is File.B)

    def prologue(self) -> list[str]:
        w = self.w
        out = [f"  %{name} = alloca {t}, align 64" for name, t, _ in self.names()]
        out += [f"  %{name} = alloca [{nbytes} x i8], align 256" for name, nbytes in w.locals.items()]
        out += ["  %active = alloca i32", "  %others = alloca i32", "  %resume = alloca i32", "  %ok = alloca i8",
                "  %yielded = alloca i32", "  store i8 1, ptr %ok", "  store i32 0, ptr %others", "  store i32 0, ptr %yielded"]
        out += [f"  %saved.at = getelementptr i8, ptr %state, i64 {layout.SAVED}", "  %saved.word = load i32, ptr %saved.at",
                "  %saved = icmp ne i32 %saved.word, 0"]
        for name, t, offset in self.names():
            kind = "i8" if t == "i1" else t
            out += [f"  %{name}.in = getelementptr i8, ptr %state, i64 {offset}",
                    f"  %{name}.value = load {kind}, ptr %{name}.in, align {1 if t == 'i1' else 4}"]
            if layout.BARRIERS <= offset < layout.REGISTERS:  # a new warp meets nobody; other registers hold anything
                out += [f"  %{name}.old = select i1 %saved, {kind} %{name}.value, {kind} zeroinitializer",
                        f"  store {kind} %{name}.old, ptr %{name}"]
            else:
                out.append(f"  store {kind} %{name}.value, ptr %{name}")
        out.append("  store i32 %live.value, ptr %active")
        for bank in sorted(w.banks):
            out += [f"  %bank{bank}.at = getelementptr i8, ptr %c, i64 {layout.BANKS + 8 * bank}",
                    f"  %bank{bank} = load ptr, ptr %bank{bank}.at"]
        out += [f"  %resume.in = getelementptr i8, ptr %state, i64 {layout.RESUME}", "  %place = load i32, ptr %resume.in"]
        places = {self.entry: f"L{self.entry}", **self.resumes}
        if w.copies >= 0:
            places[self.entry] = "fresh"
        cases = " ".join(f"i32 {place}, label %{label}" for place, label in places.items())
        other = "schedule" if self.scheduled else f"L{self.entry}"
        out.append(f"  switch i32 %place, label %{other} [ {cases} ]")
        return [*out, *(copies.fresh(self.entry) if w.copies >= 0 else ())]

    def saving(self) -> list[str]:
        """The registers back into the state."""
        kinds = {"i32": "w", "i1": "b", self.w.vec("i32"): "v"}
        return [f"  call void @save.{kinds[t]}(ptr %{name}, ptr %state, i64 {offset})" for name, t, offset in self.names()]

    # ----- blocks

    def block(self, block: FlowBlock) -> None:
        w = self.w
        w.start(f"L{block.address}")
        w.masked = block.address in self.masked
        if w.masked:
            self.resumes[block.address] = f"L{block.address}"
        for i in block.instructions:
            w.at = i.address
            if not self.instruction(i, block):
                return
        control.go(self, block.falls)

    def instruction(self, i: Instruction, block: FlowBlock) -> bool:
        """Write one; whether the block goes on behind it."""
        w = self.w
        if i.address in self.hazards:
            w.fault(KIND["missing wait"])
            return False
        if i.address in self.misuse:
            w.fault(KIND["bad barrier"])
            return False
        if w.copies >= 0 and i.control.wait >> w.copies & 1:
            copies.land(w, 0)
        if any(r.file is File.R and r.index + r.words > self.registers for r in (*i.reads(), *i.writes())):
            w.fault(KIND["register out of range"])
            return False
        if isinstance(i.guard.value, Reg) and i.guard.value.zero and i.guard.inv and i.op not in control.NAMED:
            return True  # @!PT
        w.uniform = i.op.startswith("U") or i.op == "LDCU"
        w.guard = self.guard(i)
        try:
            if i.op in control.NAMED:
                return control.NAMED[i.op](self, i, block)
            if i.op not in RULES:
                raise NotTranslated(i.op)
            if w.copies >= 0:
                copies.settled(w, i)
            RULES[i.op](w, i)
            if i.op == "LDGSTS":
                copies.begin(w, i)
        except NotTranslated:
            w.fault(KIND["unsupported"])
            return False
        finally:
            w.uniform, w.guard = False, ""
        return True

    def guard(self, i: Instruction) -> str:
        """The guard as i32, a bit a lane; in the uniform datapath i1."""
        if i.guard == TRUE:
            return ""
        if not self.w.uniform:
            return self.w.mask_of(i.guard)
        assert isinstance(i.guard.value, Reg)
        value = self.w.reg(i.guard.value)
        return self.w.op(f"xor i1 {value}, true") if i.guard.inv else value

    # ----- lanes that wait

    def schedule(self) -> None:
        """Let the lanes at one place go on."""
        w = self.w
        w.start("schedule")
        live = w.get("live", "i32")
        come = w.op(f"and i32 {live}, {w.op('xor i32 ' + w.op('load i32, ptr %yielded') + ', -1')}")
        w.line("store i32 0, ptr %yielded")
        for n in self.meetings():
            w.call("void", "settle", ("ptr", f"%b{n}"), ("ptr", f"%wait{n}"), ("i32", come), ("ptr", "%blocked"))
        blocked = w.op("load i32, ptr %blocked")
        place = w.call("i32", "choose", ("ptr", "%state"), ("ptr", "%next"), ("i32", live), ("i32", blocked), ("ptr", "%active"),
                       ("ptr", "%others"))
        cases = " ".join(f"i32 {at}, label %{label}" for at, label in sorted(self.resumes.items()))
        w.line(f"switch i32 {place}, label %lost [ i32 -1, label %ended i32 -2, label %stuck {cases} ]")
        w.start("stuck")
        w.put("resume", "i32", str(layout.SCHEDULE - (1 << 32)))
        held = w.field(layout.HELD, "i32", "%state")
        w.line(f"br i1 {w.op(f'icmp ne i32 {held}, 0')}, label %suspend, label %deadlock")
        w.start("deadlock")
        self.deadlock(blocked)
        w.start("lost")
        far = w.call("i32", "lost", ("ptr", "%c"), ("i32", place))
        w.line(f"ret i32 {far}")
        w.start("ended")
        w.set_field(layout.LIVE, "i32", "0")
        w.line(f"ret i32 {layout.DONE}")

    def deadlock(self, blocked: str) -> None:
        """All lanes that live wait for each other: a fault at what the lowest one waits at, before where it would go on."""
        w = self.w
        lane = w.call("i32", "first", ("i32", blocked))
        place = w.op(f"load i32, ptr {w.op(f'getelementptr i32, ptr %next, i32 {lane}')}")
        again = "false"
        for own in self.alone:
            again = w.op(f"or i1 {again}, {w.op(f'icmp eq i32 {place}, {own}')}")
        at = w.op(f"sub i32 {place}, {w.op(f'select i1 {again}, i32 0, i32 16')}")
        w.call("i32", "leave", ("ptr", "%c"), ("i64", w.op(f"zext i32 {at} to i64")), ("i32", str(KIND["deadlock"])))
        w.call("void", "set_lane", ("ptr", "%c"), ("i32", lane))
        w.line(f"ret i32 {layout.FAULT}")

    def suspend(self) -> None:
        """Put everything back into the state and let other warps run."""
        w = self.w
        w.start("suspend")
        w.lines.append(_SAVE)
        w.set_field(layout.RESUME, "i32", w.op("load i32, ptr %resume"))
        w.set_field(layout.SAVED, "i32", "1")
        w.line(f"ret i32 {layout.BARRIER}")


def _table(block: FlowBlock, constants: Mapping[int, bytes]) -> tuple[int, int] | None:
    """(bank, offset) of the table that the block's indirect branch takes its target from."""
    *before, last = block.instructions
    registers = {(r.file, r.index) for r in last.reads()}
    load = None
    for i in reversed(before):
        written = {(r.file, r.index) for r in i.writes()}
        if not registers & written:
            continue
        if i.op in ("LDC", "ULDC", "LDCU"):
            load = i
            break
        registers = registers - written | {(r.file, r.index) for r in i.reads()}  # a copy, or the upper half that follows from it
    table = load.srcs[0].value if load is not None else None
    return (table.bank, table.offset) if isinstance(table, Cbuf) and table.bank in constants else None


def _saves() -> str:
    """The functions that put a variable back into the state."""
    def one(name: str, t: str, align: int) -> str:
        return (f"define internal void @save.{name}(ptr %r, ptr %state, i64 %at) alwaysinline {{\n  %v = load {t}, ptr %r\n"
                f"  %p = getelementptr i8, ptr %state, i64 %at\n  store {t} %v, ptr %p, align {align}\n  ret void\n}}\n")
    return one("w", "i32", 4) + one("b", "i8", 1) + one("v", f"<{LANES} x i32>", 4)


_SAVES = _saves()
