"""Copies from global to shared memory that go on by themselves: LDGSTS, in groups that LDGDEPBAR ends and DEPBAR waits for.

A copy is done at once, and its words are marked as being under way: the warp that copies, and the number of its group. A word may
be touched when that warp has waited for the group, by DEPBAR with a count or for the scoreboard that its LDGDEPBARs take; who
touches it before, of whatever warp, misses a wait. What is copied with a stall of 0 is there at once (verify.py), and so is what
takes a scoreboard of its own, which ptxas never lets it do.

Marks lie behind the block's shared memory, a u32 a word: the warp's number + 1 in bits 31:24, its group below.
"""

from __future__ import annotations

from collections.abc import Iterable

from devrt.compiler.sass import verify
from devrt.compiler.sass.instruction import Address, Instruction
from devrt.virtual import gather
from devrt.virtual.nvidia.translate import layout as at
from devrt.virtual.nvidia.translate.layout import KIND
from devrt.virtual.nvidia.translate.memory import address, nbytes
from devrt.virtual.nvidia.translate.operands import predicates
from devrt.virtual.nvidia.translate.writer import LANES, NotTranslated, Rule, Writer, named

RULES: dict[str, Rule] = {}
CLEARED = 64  # bytes of marks at once, so many of which may lie behind them
_NONE = 7  # no scoreboard
_NEAR, _GENERIC = ("LDS", "STS", "LDSM", "STSM", "ATOMS"), ("LD", "ST", "ATOM")


def groups_board(instructions: Iterable[Instruction]) -> int:
    """The scoreboard that tells of groups of copies, 7 where none does; -1 where nothing is copied."""
    code = list(instructions)
    boards = [i.control.write for i in code if i.op == "LDGDEPBAR"]
    return min(boards, default=_NONE) if any(i.op == "LDGSTS" for i in code) else -1


def begin(w: Writer, i: Instruction) -> None:
    """Behind an LDGSTS: what it copied is under way."""
    if i.control.stall and i.control.write == _NONE:
        to = next(o.value for o in (*i.dsts, *i.srcs) if isinstance(o.value, Address))
        lanes = w.lanes()
        for o in predicates(i) if "ZFILL" not in i.mods else ():
            lanes = w.op(f"and i32 {lanes}, {w.mask_of(o)}")
        w.call("void", "copy.begin", ("ptr", "%c"), ("ptr", "%state"), (w.vec("i64"), address(w, to, False)), ("i32", lanes),
               ("i64", str(nbytes(i))))


def settled(w: Writer, i: Instruction) -> None:
    """In front of an access: a fault where it touches what is under way."""
    at = next((o.value for o in (*i.srcs, *i.dsts) if isinstance(o.value, Address)), None)
    if at is None or i.op not in _NEAR and i.op not in _GENERIC:
        return
    lanes, size = w.lanes(), nbytes(i)
    if i.op == "LDSM":
        count = next((int(m) for m in i.mods if m in ("2", "4")), 1)
        lanes, size = w.op(f"and i32 {lanes}, {(1 << 8 * count) - 1}"), 16
    function = "copy.settled" if i.op in _NEAR else "copy.settled.there"
    w.call("void", function, ("ptr", "%c"), (w.vec("i64"), address(w, at, i.op in _GENERIC)), ("i32", lanes), ("i64", str(size)),
           ("ptr", "%ok"))
    w.check()


@named(RULES, "LDGDEPBAR")
def end_group(w: Writer, i: Instruction) -> None:
    """The copies since the last one are a group. All groups take one scoreboard, or what DEPBAR's count leaves is not known."""
    if w.copies >= 0 and i.control.write != w.copies:
        raise NotTranslated(str(i))
    groups = w.op(f"add i32 {w.field(at.GROUPS, 'i32', '%state')}, 1")
    w.set_field(at.GROUPS, "i32", groups)
    if not i.control.stall:
        w.set_field(at.LANDED, "i32", groups)


@named(RULES, "DEPBAR")
def wait(w: Writer, i: Instruction) -> None:
    """All groups have come but the last so many."""
    board, count, others = verify.depbar(i)
    if w.copies >= 0 and others >> w.copies & 1:
        land(w, 0)
    elif w.copies >= 0 and board == w.copies:
        land(w, count)


def land(w: Writer, left: int) -> None:
    """All groups of the warp have come but the last `left`."""
    groups, before = w.field(at.GROUPS, "i32", "%state"), w.field(at.LANDED, "i32", "%state")
    come = w.call("i32", "llvm.usub.sat.i32", ("i32", groups), ("i32", str(left)), declare=True)
    more = w.call("i32", "llvm.umax.i32", ("i32", come), ("i32", before), declare=True)
    w.set_field(at.LANDED, "i32", more)


def fresh(entry: int) -> list[str]:
    """LLVM's block where warps begin: the first of a thread block finds no copy under way. A loop back to the entry comes here,
    too, where it gave way."""
    return ["fresh:", f"  %number.at = getelementptr i8, ptr %state, i64 {at.NUMBER}", "  %number.of = load i32, ptr %number.at",
            "  %later = or i32 %number.of, %saved.word", "  %is.first = icmp eq i32 %later, 0",
            f"  br i1 %is.first, label %clear, label %L{entry}",
            "clear:", "  call void @copy.none(ptr %c)", f"  br label %L{entry}"]


_MARKS = """
  %size = call i64 @get_shared_bytes(ptr %c)
  %base = call i64 @get_shared(ptr %c)
  %up = add i64 %size, 3
  %even = and i64 %up, -4
  %marks = add i64 %base, %even
"""

TEXT = gather.for_lanes(f"""
; no copy is under way in a block that begins; volatile, so that it does not become a call of memset
define internal void @copy.none(ptr %c) noinline {{
entry:{_MARKS}
  br label %head
head:
  %k = phi i64 [ 0, %entry ], [ %k2, %row ]
  %more = icmp ult i64 %k, %even
  br i1 %more, label %row, label %out
row:
  %at = add i64 %marks, %k
  %p = inttoptr i64 %at to ptr
  store volatile <{CLEARED // 4} x i32> zeroinitializer, ptr %p, align 4
  %k2 = add i64 %k, {CLEARED}
  br label %head
out:
  ret void
}}

; marks %n bytes of every lane as under way
define internal void @copy.begin(ptr %c, ptr %state, <$W x i64> %va, i$W %exec, i64 %n) noinline {{
entry:{_MARKS}
  %gp = getelementptr i8, ptr %state, i64 {at.GROUPS}
  %g = load i32, ptr %gp
  %g1 = add i32 %g, 1
  %np = getelementptr i8, ptr %state, i64 {at.NUMBER}
  %warp = load i32, ptr %np
  %w1 = add i32 %warp, 1
  %high = shl i32 %w1, 24
  %mark = or i32 %high, %g1
  %m1 = insertelement <$W x i32> poison, i32 %mark, i32 0
  %mv = shufflevector <$W x i32> %m1, <$W x i32> poison, <$W x i32> zeroinitializer
  br label %words
words:
  %k = phi i64 [ 0, %entry ], [ %k2, %words ]
  %from = add i64 %marks, %k
  %p = call <$W x ptr> @hosts(<$W x i64> %va, i64 %from)
  call void @scatter_size(<$W x ptr> %p, <$W x i32> %mv, i$W %exec, i64 4)
  %k2 = add i64 %k, 4
  %more = icmp ult i64 %k2, %n
  br i1 %more, label %words, label %out
out:
  ret void
}}

; notes a missing wait where a copy may still be writing the %n bytes of a lane
define internal void @copy.settled(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, ptr %ok) noinline {{
entry:{_MARKS}
  %states = call i64 @get_states(ptr %c)
  %out.of = call i$W @outside(<$W x i64> %va, i$W %exec, i64 0, i64 %n, i64 %size)
  %in.it = xor i$W %out.of, -1
  %in = and i$W %exec, %in.it
  %word = and <$W x i64> %va, splat (i64 -4)
  br label %words
words:
  %k = phi i64 [ 0, %entry ], [ %k2, %next ]
  %from = add i64 %marks, %k
  %p = call <$W x ptr> @hosts(<$W x i64> %word, i64 %from)
  %m = call <$W x i32> @gather_size(<$W x ptr> %p, i$W %in, i64 4)
  %some = icmp ne <$W x i32> %m, zeroinitializer
  %sbits = bitcast <$W x i1> %some to i$W
  %marked = and i$W %sbits, %in
  %any = icmp ne i$W %marked, 0
  br i1 %any, label %look, label %next
look:
  %w1 = lshr <$W x i32> %m, splat (i32 24)
  %w0 = sub <$W x i32> %w1, splat (i32 1)
  %w64 = zext <$W x i32> %w0 to <$W x i64>
  %so = mul <$W x i64> %w64, splat (i64 {at.STATE_BYTES})
  %landed.at = add i64 %states, {at.LANDED}
  %lp = call <$W x ptr> @hosts(<$W x i64> %so, i64 %landed.at)
  %landed = call <$W x i32> @gather_size(<$W x ptr> %lp, i$W %marked, i64 4)
  %group = and <$W x i32> %m, splat (i32 16777215)
  %late = icmp ugt <$W x i32> %group, %landed
  %lbits = bitcast <$W x i1> %late to i$W
  %bad = and i$W %lbits, %marked
  %wrong = icmp ne i$W %bad, 0
  br i1 %wrong, label %fault, label %next
next:
  %k2 = add i64 %k, 4
  %more = icmp ult i64 %k2, %n
  br i1 %more, label %words, label %out
fault:
  call void @refuse(ptr %c, <$W x i64> %va, i$W %bad, i32 {KIND["missing wait"]}, ptr %ok)
  ret void
out:
  ret void
}}

; the same of addresses some of which lie in the window of shared memory
define internal void @copy.settled.there(ptr %c, <$W x i64> %va, i$W %exec, i64 %n, ptr %ok) noinline {{
  %window = call i64 @get_shared_window(ptr %c)
  %in = call i$W @in_window(<$W x i64> %va, i$W %exec, i64 %window)
  %low = and <$W x i64> %va, splat (i64 {at.WINDOW - 1})
  call void @copy.settled(ptr %c, <$W x i64> %low, i$W %in, i64 %n, ptr %ok)
  ret void
}}
""", LANES)
