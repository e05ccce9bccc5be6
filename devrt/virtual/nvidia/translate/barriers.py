"""Barriers of a block: BAR.SYNC, BAR.ARV, BAR.RED, and the result of the last.

A warp takes part when all of its lanes that live have come; a barrier without a number of threads waits for every warp that
lives. Lanes wait in the state: the warp gives way once none of them can run, and may run again when the barrier is complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devrt.compiler.sass.flow import FlowBlock
from devrt.compiler.sass.instruction import File, Imm, Instruction, Operand, Reg
from devrt.virtual.nvidia.translate import layout as at
from devrt.virtual.nvidia.translate.layout import KIND
from devrt.virtual.nvidia.translate.writer import NotTranslated

if TYPE_CHECKING:
    from devrt.virtual.nvidia.translate.kernel import Function

_COUNT, _AND, _OR = 0, 1, 2
_LAST = 15  # named barriers


def bar(f: Function, i: Instruction, block: FlowBlock) -> bool:
    """Come to a barrier; the lanes go on when it is complete, those of BAR.ARV at once."""
    w = f.w
    if not set(i.mods) & {"SYNC", "ARV", "RED"}:
        raise NotTranslated(str(i))
    numbers = [o for o in i.srcs if not (isinstance(o.value, Reg) and o.value.file in (File.P, File.UP))]
    votes = [o for o in i.srcs if o not in numbers]
    name = _uniform(f, numbers[0])
    threads = _uniform(f, numbers[1]) if len(numbers) > 1 else "0"
    lanes = w.lanes()
    after = w.at + 16
    on, wait, come = f"r{after}", w.new_label("wait"), w.new_label("come")
    if w.guard:
        w.line(f"br i1 {w.op(f'icmp eq i32 {lanes}, 0')}, label %{on}, label %{come}")
        w.start(come)
    vote = w.op(f"and i32 {lanes}, {w.mask_of(votes[0])}") if votes else "0"
    how = _COUNT if "POPC" in i.mods else _AND if "AND" in i.mods else _OR
    live = w.get("live", "i32")
    w.set_field(at.LIVE, "i32", live)
    arrive = "true" if "ARV" in i.mods else "false"
    name = w.op(f"and i32 {name}, {_LAST}")
    complete = w.call("i1", "bar.come", ("ptr", "%c"), ("ptr", "%state"), ("i32", name), ("i32", threads), ("i32", lanes),
                      ("i32", vote), ("i32", str(how)), ("i1", arrive))
    if "ARV" in i.mods:
        w.line(f"br label %{on}")
        w.start(on)
    else:
        _hold(f, complete, on, wait)
    return True


def arrive_at_cluster(f: Function, i: Instruction, block: FlowBlock) -> bool:
    """UCGABAR_ARV: the cluster is this block."""
    w = f.w
    w.set_field(at.LIVE, "i32", w.get("live", "i32"))
    w.call("i1", "bar.come", ("ptr", "%c"), ("ptr", "%state"), ("i32", str(at.CLUSTER)), ("i32", "0"), ("i32", w.active()),
           ("i32", "0"), ("i32", "0"), ("i1", "true"))
    return True


def wait_for_cluster(f: Function, i: Instruction, block: FlowBlock) -> bool:
    """UCGABAR_WAIT: go on when all warps have arrived since this one did."""
    w = f.w
    complete = w.call("i1", "bar.wait", ("ptr", "%state"), ("i32", w.active()))
    _hold(f, complete, f"r{w.at + 16}", w.new_label("wait"))
    return True


def _hold(f: Function, complete: str, on: str, wait: str) -> None:
    """Lanes go on behind the instruction once their barrier is complete; other warps run until then."""
    w, after = f.w, f.w.at + 16
    f.resumes.setdefault(after, on)
    w.line(f"br i1 {complete}, label %{on}, label %{wait}")
    w.start(wait)
    if w.masked:
        note = w.op(f"select {w.vec('i1')} {w.bits(w.active())}, {w.vec('i32')} splat (i32 {after}), "
                    f"{w.vec('i32')} {w.get('next', w.vec('i32'))}")
        w.put("next", w.vec("i32"), note)
        w.line("br label %schedule")
    else:
        w.put("resume", "i32", str(after))
        w.line("br label %suspend")
    w.start(on)


def _uniform(f: Function, o: Operand) -> str:
    """A number that is the same in all lanes."""
    w = f.w
    if isinstance(o.value, Imm):
        return str(o.value.value)
    if isinstance(o.value, Reg) and o.value.file is File.UR:
        return w.reg(o.value)
    return w.of_first(w.word(o))


_STATE = f"""
  %w64 = zext i32 %w to i64
  %so = mul i64 %w64, {at.STATE_BYTES}
  %sa = add i64 %states, %so
  %s = inttoptr i64 %sa to ptr
  %lp = getelementptr i8, ptr %s, i64 {at.LIVE}
  %live = load i32, ptr %lp
  %yp0 = getelementptr i8, ptr %s, i64 {at.SYNC}
  %yp = getelementptr i32, ptr %yp0, i32 %id
  %sync = load i32, ptr %yp
  %ap0 = getelementptr i8, ptr %s, i64 {at.ARRIVED}
  %ap = getelementptr i32, ptr %ap0, i32 %id
  %arrived = load i32, ptr %ap
"""

TEXT = f"""
declare i32 @llvm.ctpop.i32(i32)

; lanes of a warp come to a barrier; whether it is complete. %threads 0: the whole block
define internal i1 @bar.come(ptr %c, ptr %state, i32 %name, i32 %threads, i32 %lanes, i32 %vote, i32 %how, i1 %on) noinline {{
  %id = add i32 %name, 0
  %id64 = zext i32 %id to i64
  %from = select i1 %on, i64 {at.ARRIVED}, i64 {at.SYNC}
  %p0 = getelementptr i8, ptr %state, i64 %from
  %p = getelementptr i32, ptr %p0, i64 %id64
  %old = load i32, ptr %p
  %new = or i32 %old, %lanes
  store i32 %new, ptr %p
  %hp = getelementptr i8, ptr %state, i64 {at.HELD}
  %h = load i32, ptr %hp
  %add = select i1 %on, i32 0, i32 %lanes
  %h2 = or i32 %h, %add
  store i32 %h2, ptr %hp
  %ep0 = getelementptr i8, ptr %c, i64 {at.EXPECTED}
  %ep = getelementptr i32, ptr %ep0, i64 %id64
  store i32 %threads, ptr %ep
  %vp0 = getelementptr i8, ptr %c, i64 {at.VOTES}
  %vp = getelementptr i32, ptr %vp0, i64 %id64
  %v = load i32, ptr %vp
  %n = call i32 @llvm.ctpop.i32(i32 %vote)
  %v2 = add i32 %v, %n
  store i32 %v2, ptr %vp
  %op0 = getelementptr i8, ptr %c, i64 {at.HOW}
  %op = getelementptr i32, ptr %op0, i64 %id64
  store i32 %how, ptr %op
  %r = call i1 @bar.check(ptr %c, i32 %id)
  %sp = getelementptr i8, ptr %state, i64 {at.STATUS}
  store i32 {at.BARRIER}, ptr %sp
  ret i1 %r
}}

; lanes wait for the others of their cluster: whether they need not
define internal i1 @bar.wait(ptr %state, i32 %lanes) noinline {{
  %ap = getelementptr i8, ptr %state, i64 {at.ARRIVED + 4 * at.CLUSTER}
  %arrived = load i32, ptr %ap
  %open = and i32 %arrived, %lanes
  %yp = getelementptr i8, ptr %state, i64 {at.SYNC + 4 * at.CLUSTER}
  %y = load i32, ptr %yp
  %y2 = or i32 %y, %open
  store i32 %y2, ptr %yp
  %hp = getelementptr i8, ptr %state, i64 {at.HELD}
  %h = load i32, ptr %hp
  %h2 = or i32 %h, %open
  store i32 %h2, ptr %hp
  %r = icmp eq i32 %open, 0
  ret i1 %r
}}

; whether a barrier is complete; if so, everybody may go on. The cluster's is when all have arrived, whether they wait or not
define internal i1 @bar.check(ptr %c, i32 %id) noinline {{
entry:
  %states = call i64 @get_states(ptr %c)
  %warps = call i32 @get_warps(ptr %c)
  %ep0 = getelementptr i8, ptr %c, i64 {at.EXPECTED}
  %ep = getelementptr i32, ptr %ep0, i32 %id
  %threads = load i32, ptr %ep
  %arrives = icmp eq i32 %id, {at.CLUSTER}
  br label %head
head:
  %w = phi i32 [ 0, %entry ], [ %w2, %next ]
  %came = phi i32 [ 0, %entry ], [ %came2, %next ]
  %waits = phi i1 [ false, %entry ], [ %waits2, %next ]
  %full = phi i1 [ true, %entry ], [ %full2, %next ]
  %total = phi i32 [ 0, %entry ], [ %total2, %next ]
{_STATE}
  %here = or i32 %sync, %arrived
  %both = and i32 %here, %live
  %covers = icmp eq i32 %both, %live
  %any = icmp ne i32 %here, 0
  %counts = and i1 %covers, %any
  %one = select i1 %counts, i32 32, i32 0
  %came2 = add i32 %came, %one
  %s0 = icmp ne i32 %sync, 0
  %y = or i1 %s0, %arrives
  %waits2 = or i1 %waits, %y
  %full2 = and i1 %full, %covers
  %lanes = call i32 @llvm.ctpop.i32(i32 %here)
  %total2 = add i32 %total, %lanes
  br label %next
next:
  %w2 = add i32 %w, 1
  %more = icmp ult i32 %w2, %warps
  br i1 %more, label %head, label %decide
decide:
  %whole = icmp eq i32 %threads, 0
  %enough = icmp uge i32 %came2, %threads
  %all = and i1 %full2, %waits2
  %some = and i1 %enough, %waits2
  %yes = select i1 %whole, i1 %all, i1 %some
  br i1 %yes, label %release, label %no
release:
  %vp0 = getelementptr i8, ptr %c, i64 {at.VOTES}
  %vp = getelementptr i32, ptr %vp0, i32 %id
  %votes = load i32, ptr %vp
  store i32 0, ptr %vp
  store i32 0, ptr %ep
  %op0 = getelementptr i8, ptr %c, i64 {at.HOW}
  %op = getelementptr i32, ptr %op0, i32 %id
  %how = load i32, ptr %op
  %and = icmp eq i32 %votes, %total2
  %or = icmp ne i32 %votes, 0
  %and32 = sext i1 %and to i32
  %or32 = sext i1 %or to i32
  %isand = icmp eq i32 %how, {_AND}
  %isor = icmp eq i32 %how, {_OR}
  %r1 = select i1 %isand, i32 %and32, i32 %votes
  %r = select i1 %isor, i32 %or32, i32 %r1
  call void @bar.release(ptr %c, i32 %id, i32 %r)
  ret i1 true
no:
  ret i1 false
}}

; nobody can go on: a fault at the barrier where the first warp waits that has not ended. Its number
define internal i32 @bar.stuck(ptr %c) noinline cold {{
entry:
  %states = call i64 @get_states(ptr %c)
  br label %head
head:
  %w = phi i32 [ 0, %entry ], [ %w2, %head ]
  %w64 = zext i32 %w to i64
  %so = mul i64 %w64, {at.STATE_BYTES}
  %sa = add i64 %states, %so
  %s = inttoptr i64 %sa to ptr
  %tp = getelementptr i8, ptr %s, i64 {at.STATUS}
  %status = load i32, ptr %tp
  %over = icmp eq i32 %status, {at.DONE}
  %w2 = add i32 %w, 1
  br i1 %over, label %head, label %found
found:
  %hp = getelementptr i8, ptr %s, i64 {at.HELD}
  %held = load i32, ptr %hp
  %lane = call i32 @first(i32 %held)
  %np = getelementptr i8, ptr %s, i64 {at.NEXT}
  %lp = getelementptr i32, ptr %np, i32 %lane
  %next = load i32, ptr %lp
  %rp = getelementptr i8, ptr %s, i64 {at.RESUME}
  %resume = load i32, ptr %rp
  %apart = icmp eq i32 %resume, {at.SCHEDULE - (1 << 32)}
  %place = select i1 %apart, i32 %next, i32 %resume
  %waits = sub i32 %place, 16
  %at = zext i32 %waits to i64
  %r = call i32 @leave(ptr %c, i64 %at, i32 {KIND["deadlock"]})
  ret i32 %w
}}

define internal void @bar.release(ptr %c, i32 %id, i32 %r) noinline {{
entry:
  %states = call i64 @get_states(ptr %c)
  %warps = call i32 @get_warps(ptr %c)
  br label %head
head:
  %w = phi i32 [ 0, %entry ], [ %w2, %next ]
{_STATE}
  store i32 0, ptr %yp
  store i32 0, ptr %ap
  %waited = icmp ne i32 %sync, 0
  br i1 %waited, label %free, label %next
free:
  %hp = getelementptr i8, ptr %s, i64 {at.HELD}
  %h = load i32, ptr %hp
  %not = xor i32 %sync, -1
  %h2 = and i32 %h, %not
  store i32 %h2, ptr %hp
  %rp = getelementptr i8, ptr %s, i64 {at.RESULT}
  store i32 %r, ptr %rp
  %tp = getelementptr i8, ptr %s, i64 {at.STATUS}
  store i32 {at.READY}, ptr %tp
  br label %next
next:
  %w2 = add i32 %w, 1
  %more = icmp ult i32 %w2, %warps
  br i1 %more, label %head, label %out
out:
  ret void
}}
"""
