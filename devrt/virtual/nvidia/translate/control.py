"""Branches, calls, convergence, and the end of lanes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from devrt.compiler.sass.flow import FlowBlock, label
from devrt.compiler.sass.instruction import File, Instruction, Operand, Reg
from devrt.virtual.nvidia.translate import barriers, layout
from devrt.virtual.nvidia.translate.layout import KIND
from devrt.virtual.nvidia.translate.writer import NotTranslated

if TYPE_CHECKING:
    from devrt.virtual.nvidia.translate.kernel import Function

Steer = Callable[["Function", Instruction, FlowBlock], bool]  # whether the block goes on behind the instruction
NAMED: dict[str, Steer] = {"BAR": barriers.bar, "UCGABAR_ARV": barriers.arrive_at_cluster,
                           "UCGABAR_WAIT": barriers.wait_for_cluster}


def _named(*ops: str) -> Callable[[Steer], Steer]:
    def put(r: Steer) -> Steer:
        NAMED.update(dict.fromkeys(ops, r))
        return r
    return put


# ---------------------------------------------------------------------------------------------------------------------
# Ways from block to block

def spend(f: Function, place: str = "") -> None:
    """Count a branch backwards, and look whether the launch is to stop. `place` is where all active lanes go; none: each lane's
    is noted. The warp gives way to others now and then: they may wait for each other without a barrier."""
    w = f.w
    kind = w.call("i32", "pass", ("ptr", "%c"), ("ptr", "%state"))
    on, out, give = w.new_label("on"), w.new_label("out"), w.new_label("give")
    w.line(f"switch i32 {kind}, label %{out} [ i32 0, label %{on} i32 -1, label %{give} ]")
    w.start(out)
    w.fault(kind)
    w.start(give)
    if place and w.masked:
        places(f, w.active(), place)
    w.put("resume", "i32", "-1" if w.masked or not place else place)
    w.line("br label %suspend")
    w.start(on)


def places(f: Function, lanes: str, at: str) -> None:
    """Note where lanes go on: an i32 or a vector of byte offsets."""
    w = f.w
    v = at if at.startswith("%v") else w.splat("i32", at)
    noted = w.op(f"select {w.vec('i1')} {w.bits(lanes)}, {w.vec('i32')} {v}, {w.vec('i32')} {w.get('next', w.vec('i32'))}")
    w.put("next", w.vec("i32"), noted)


def go(f: Function, target: int) -> None:
    """All active lanes go on at a block."""
    w = f.w
    if target <= w.at:
        f.resumes.setdefault(target, f"L{target}")
        spend(f, str(target))
    if not w.masked:
        w.line(f"br label %L{target}")
        return
    part = w.new_label("part")
    others = w.get("others", "i32")
    w.line(f"br i1 {w.op(f'icmp eq i32 {others}, 0')}, label %L{target}, label %{part}")
    w.start(part)
    places(f, w.active(), str(target))
    w.line("br label %schedule")


def split(f: Function, taken: str, target: int, falls: int) -> None:
    """Lanes of a mask go to a block, the other active ones to another."""
    w = f.w
    parting = w.masked or target in f.masked or falls in f.masked
    other = w.op(f"and i32 {w.active()}, {w.op(f'xor i32 {taken}, -1')}")
    none, some = w.new_label("none"), w.new_label("some")
    w.line(f"br i1 {w.op(f'icmp eq i32 {taken}, 0')}, label %{none}, label %{some}")
    w.start(none)
    go(f, falls)
    w.start(some)
    if parting:
        whole, both = w.new_label("whole"), w.new_label("both")
        w.line(f"br i1 {w.op(f'icmp eq i32 {other}, 0')}, label %{whole}, label %{both}")
        w.start(both)
        places(f, taken, str(target))
        places(f, other, str(falls))
        if min(target, falls) <= w.at:
            spend(f)
        w.line("br label %schedule")
        w.start(whole)
    go(f, target)


def conditions(i: Instruction) -> list[Operand]:
    """The predicates among an instruction's sources."""
    return [o for o in i.srcs if isinstance(o.value, Reg) and o.value.file in (File.P, File.UP)]


def taken(f: Function, i: Instruction) -> str:
    """The active lanes whose guard and predicates are all true."""
    w = f.w
    lanes = w.lanes()
    for o in conditions(i):
        lanes = w.op(f"and i32 {lanes}, {w.mask_of(o)}")
    return lanes


def always(f: Function, i: Instruction) -> bool:
    return not f.w.guard and not conditions(i)


@_named("BRA", "JMP")
def branch(f: Function, i: Instruction, block: FlowBlock) -> bool:
    if block.target < 0:
        raise NotTranslated(f"{i.op} to an address that is not in the code")
    if "DIV" in i.mods or "CONV" in i.mods:
        _diverged(f, i, block)
    elif always(f, i):
        go(f, block.target)
    else:
        split(f, taken(f, i), block.target, block.falls)
    return False


def _diverged(f: Function, i: Instruction, block: FlowBlock) -> None:
    """All active lanes go to the target where they are not just the live ones of a mask with their guard true (BRA.DIV), or where
    they are (BRA.CONV)."""
    w = f.w
    there, not_there = (block.target, block.falls) if "DIV" in i.mods else (block.falls, block.target)
    mask = ""
    for o in i.srcs:
        if isinstance(o.value, Reg) and o.value.file is File.UR and not (o.value.zero and o.inv):
            mask = w.reg(o.value)
    wanted = w.op(f"and i32 {w.get('live', 'i32')}, {mask}") if mask else w.get("live", "i32")
    yes, no = w.new_label("div"), w.new_label("conv")
    w.line(f"br i1 {w.op(f'icmp ne i32 {taken(f, i)}, {wanted}')}, label %{yes}, label %{no}")
    w.start(yes)
    go(f, there)
    w.start(no)
    go(f, not_there)


@_named("CALL")
def call(f: Function, i: Instruction, block: FlowBlock) -> bool:
    """The return address is in registers already: compiled code puts it there."""
    if block.target < 0:
        return indirect(f, i, block)
    if f.w.guard:
        split(f, f.w.lanes(), block.target, block.falls)
    else:
        go(f, block.target)
    return False


@_named("RET", "BRX", "JMX", "BRXU", "JMXU")
def indirect(f: Function, i: Instruction, block: FlowBlock) -> bool:
    """To an address in registers, plus that of a label; absolute ones are virtual addresses."""
    w = f.w
    if w.guard or conditions(i):
        raise NotTranslated(f"{i.op} of some lanes")
    o = next(o for o in i.srcs if isinstance(o.value, Reg) and o.value.file in (File.R, File.UR))
    assert isinstance(o.value, Reg)
    at = w.word(o)
    if i.op in ("JMX", "JMXU") or "ABS" in i.mods:
        low = w.op(f"trunc i64 {w.address(0)} to i32")
        at = w.op(f"sub {w.vec('i32')} {at}, {w.splat('i32', low)}")
    elif (start := label(i)) > 0:
        at = w.op(f"add {w.vec('i32')} {at}, splat (i32 {start})")
    if w.masked or any(s in f.masked for s in block.successors):
        every = w.op(f"select {w.vec('i1')} {w.bits(w.active())}, {w.vec('i32')} {at}, "
                     f"{w.vec('i32')} {w.get('next', w.vec('i32'))}")
        w.put("next", w.vec("i32"), every)
        spend(f)
        w.line("br label %schedule")
        return False
    place = w.of_first(at)
    for target in block.successors:
        f.resumes.setdefault(target, f"L{target}")
    spend(f, place)
    lost = w.new_label("lost")
    cases = " ".join(f"i32 {n}, label %L{n}" for n in block.successors)
    w.line(f"switch i32 {place}, label %{lost} [ {cases} ]")
    w.start(lost)
    w.line(f"ret i32 {w.call('i32', 'lost', ('ptr', '%c'), ('i32', place))}")
    return False


# ---------------------------------------------------------------------------------------------------------------------
# The end of lanes

@_named("EXIT", "KILL")
def exit_(f: Function, i: Instruction, block: FlowBlock) -> bool:
    w = f.w
    lanes = taken(f, i)
    rest = w.op(f"and i32 {w.active()}, {w.op(f'xor i32 {lanes}, -1')}")
    w.put("live", "i32", w.op(f"and i32 {w.get('live', 'i32')}, {w.op(f'xor i32 {lanes}, -1')}"))
    w.put("active", "i32", rest)
    if not always(f, i):
        some, none = w.new_label("some"), w.new_label("none")
        w.line(f"br i1 {w.op(f'icmp eq i32 {rest}, 0')}, label %{none}, label %{some}")
        w.start(some)
        go(f, block.falls)
        w.start(none)
    if w.masked:
        w.line("br label %schedule")
    else:
        w.set_field(layout.LIVE, "i32", "0")
        w.line(f"ret i32 {layout.DONE}")
    return False


@_named("BPT")
def trap(f: Function, i: Instruction, block: FlowBlock) -> bool:
    w = f.w
    if not w.guard:
        w.fault(KIND["trap"])
        return False
    w.go_if(w.op(f"icmp eq i32 {w.lanes()}, 0"), KIND["trap"])
    go(f, block.falls)
    return False


@_named("NOP", "NANOSLEEP", "PMTRIG", "ENDCOLLECTIVE")
def nothing(f: Function, i: Instruction, block: FlowBlock) -> bool:
    return True


@_named("YIELD")
def yield_(f: Function, i: Instruction, block: FlowBlock) -> bool:
    """Lanes that wait for these at a convergence barrier need not."""
    w = f.w
    if not w.masked:
        return True
    on, wait = f"r{w.at + 16}", w.new_label("yield")
    w.line(f"br i1 {w.op('icmp eq i32 ' + w.active() + ', ' + w.get('live', 'i32'))}, label %{on}, label %{wait}")
    w.start(wait)
    places(f, w.active(), str(w.at + 16))
    w.line(f"store i32 {w.active()}, ptr %yielded")
    w.line("br label %schedule")
    w.start(on)
    f.resumes.setdefault(w.at + 16, on)
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Convergence

def _barrier(i: Instruction) -> Reg:
    return next(o.value for o in (*i.dsts, *i.srcs) if isinstance(o.value, Reg) and o.value.file is File.B)


@_named("BSSY")
def bssy(f: Function, i: Instruction, block: FlowBlock) -> bool:
    """The lanes that are here will meet again. None of them may still have somebody to meet under that barrier."""
    w, b, lanes = f.w, _barrier(i), taken(f, i)
    if w.masked:
        _only(f, lanes, w.op(f"icmp eq {w.vec('i32')} {w.reg(b)}, zeroinitializer"))
    w.set_reg(b, w.splat("i32", lanes))
    return True


@_named("BREAK")
def break_(f: Function, i: Instruction, block: FlowBlock) -> bool:
    """Lanes that will not come: nobody waits for them, nor they for anybody."""
    w, b = f.w, _barrier(i)
    gone = taken(f, i)
    left = w.op(f"and {w.vec('i32')} {w.reg(b)}, {w.splat('i32', w.op(f'xor i32 {gone}, -1'))}")
    w.put(f"b{b.index}", w.vec("i32"), _none_of(f, gone, left))
    return True


def _none_of(f: Function, lanes: str, masks: str) -> str:
    """Masks of what each lane meets, of these lanes nobody."""
    w = f.w
    return w.op(f"select {w.vec('i1')} {w.bits(lanes)}, {w.vec('i32')} zeroinitializer, {w.vec('i32')} {masks}")


def _only(f: Function, lanes: str, good: str) -> None:
    """A fault where a lane of these is not a good one, of a bit a lane."""
    w = f.w
    bad = w.op(f"and i32 {lanes}, {w.op('xor i32 ' + w.number(good) + ', -1')}")
    fine, wrong = w.new_label("fine"), w.new_label("wrong")
    w.line(f"br i1 {w.op(f'icmp eq i32 {bad}, 0')}, label %{fine}, label %{wrong}")
    w.start(wrong)
    w.call("void", "refuse", ("ptr", "%c"), (w.vec("i64"), "zeroinitializer"), ("i32", bad), ("i32", str(KIND["bad barrier"])),
           ("ptr", "%ok"))
    w.fault(0)
    w.start(fine)


def _members(f: Function, b: Reg) -> str:
    """A bit a lane: whether a lane is one of those that it meets."""
    w = f.w
    own = w.op(f"and {w.vec('i32')} {w.reg(b)}, {w.lanes_of('i32', [1 << n for n in range(32)])}")
    return w.op(f"icmp ne {w.vec('i32')} {own}, zeroinitializer")


@_named("BSYNC")
def bsync(f: Function, i: Instruction, block: FlowBlock) -> bool:
    """Lanes wait for those that they meet, of which each must be one itself. Then they meet nobody any more."""
    b, lanes = _barrier(i), taken(f, i)
    if f.w.masked:
        _only(f, lanes, _members(f, b))
        meet(f, b.index, lanes)
    else:
        f.w.set_reg(b, "zeroinitializer")
    return True


@_named("WARPSYNC")
def warpsync(f: Function, i: Instruction, block: FlowBlock) -> bool:
    """Lanes of a mask meet; .EXCLUSIVE and .COLLECTIVE: and go on without the others that are here."""
    w = f.w
    masks = [o for o in i.srcs if o not in conditions(i) and label(i) != getattr(o.value, "target", -2)]
    if w.masked and masks and set(i.mods) & {"EXCLUSIVE", "COLLECTIVE"}:
        _alone(f, i, masks[0])
    elif w.masked:
        b = Reg(File.B, layout.WARPSYNC)
        w.set_reg(b, w.word(masks[0]) if masks and "ALL" not in i.mods else "splat (i32 -1)")
        lanes = taken(f, i)
        _only(f, lanes, _members(f, b))
        meet(f, b.index, lanes)
    return True


def _alone(f: Function, i: Instruction, mask: Operand) -> None:
    """The lanes with the mask of the lowest one go on if all of it are here, else they wait; the others come here again."""
    w, b, n = f.w, Reg(File.B, layout.WARPSYNC), layout.WARPSYNC
    if w.guard:
        raise NotTranslated(f"{i} of some lanes")
    here, on, wait = f"r{w.at}", w.new_label("alone"), w.new_label("wait")
    f.alone.append(w.at)
    w.line(f"br label %{here}")
    w.start(here)
    f.resumes.setdefault(w.at, here)
    t = w.vec("i32")
    every = w.word(mask)
    one = w.of_first(every)
    group = w.op(f"and i32 {w.active()}, {w.number(w.op(f'icmp eq {t} {every}, ' + w.splat('i32', one)))}")
    rest = w.op(f"and i32 {w.active()}, {w.op(f'xor i32 {group}, -1')}")
    places(f, w.active(), str(w.at))
    absent = w.op(f"and i32 {w.op('and i32 ' + one + ', ' + w.get('live', 'i32'))}, {w.op('xor i32 ' + w.active() + ', -1')}")
    others = w.op(f"or i32 {w.get('others', 'i32')}, {rest}")
    w.line(f"br i1 {w.op(f'icmp eq i32 {absent}, 0')}, label %{on}, label %{wait}")
    w.start(wait)
    met = w.op(f"select {w.vec('i1')} {w.bits(group)}, {t} {every}, {t} {w.reg(b)}")
    w.put(f"b{n}", t, met)
    for name in (f"wait{n}", "blocked"):
        w.put(name, "i32", w.op(f"or i32 {w.get(name, 'i32')}, {group}"))
    w.line("br label %schedule")
    w.start(on)
    w.put("active", "i32", group)
    w.put("others", "i32", others)


def meet(f: Function, n: int, lanes: str) -> None:
    """Lanes wait for those that they meet at a convergence barrier; nobody does where all that live are here."""
    w, b = f.w, Reg(File.B, n)
    every = w.reg(b)
    wait, met, on = w.new_label("wait"), w.new_label("met"), f"r{w.at + 16}"
    w.line(f"br i1 {w.op('icmp eq i32 ' + w.active() + ', ' + w.get('live', 'i32'))}, label %{met}, label %{wait}")
    w.start(wait)
    places(f, w.active(), str(w.at + 16))
    for name in (f"wait{n}", "blocked"):
        w.put(name, "i32", w.op(f"or i32 {w.get(name, 'i32')}, {lanes}"))
    w.line("br label %schedule")
    w.start(met)
    w.put(f"b{n}", w.vec("i32"), _none_of(f, lanes, every))
    w.line(f"br label %{on}")
    w.start(on)
    f.resumes.setdefault(w.at + 16, on)


@_named("BMOV")
def bmov(f: Function, i: Instruction, block: FlowBlock) -> bool:
    """A convergence barrier to a register or back; .CLEAR empties it."""
    w = f.w
    to, source = i.dsts[0].value, i.srcs[0]
    if not isinstance(to, Reg) or "32" not in i.mods:
        raise NotTranslated(str(i))
    if isinstance(source.value, Reg) and source.value.file is File.B:
        value = w.reg(source.value)
        if "CLEAR" in i.mods:
            w.set_reg(source.value, "zeroinitializer")
    else:
        value = w.word(source)
    w.set_reg(to, value)
    return True
