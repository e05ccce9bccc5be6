"""Lanes that go different ways.

Where every branch is taken by all lanes or none, lanes never part: blocks are straight code and registers are written whole.
From a branch on that may part them, blocks are masked: a transition between them looks whether other lanes are pending; if so,
every lane's place is noted and the scheduler takes the lanes at the lowest one. Now and then it takes those of another lane
instead, so that lanes that wait for each other get on. Lanes that yield are not waited for at a convergence barrier: compiled
code yields in loops that wait for other lanes.

A convergence barrier is a mask a lane: the lanes that it meets there. BSSY notes the active ones, BSYNC waits until all of them
that live have come, and empties it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from devrt.compiler.sass.flow import End, FlowBlock
from devrt.compiler.sass.instruction import TRUE, Address, File, Instruction, Operand, Reg, Special
from devrt.virtual.nvidia.translate import layout as at

# Results that may differ between lanes whatever the sources are.
_VARYING = ("LDG", "LD", "LDS", "LDSM", "ATOM", "ATOMG", "ATOMS", "SHFL", "MATCH", "HMMA", "IMMA", "DMMA", "BMMA", "P2R",
            "BMOV", "TEX", "TLD")
_SAME = ("VOTE", "B2R", "CS2R", "LEPC")  # one result for all lanes
_ALONE = {"EXCLUSIVE", "COLLECTIVE"}
_MEETINGS = ("BAR", "WARPSYNC", "BSYNC")
_SAME_SPECIAL = {0x25, 0x26, 0x27, 0x2F, 0x32, 0x43, 0x50, 0x51, 0x52, 0x53, 0x88}
_PREDICATES = 256  # tokens of P0 on
_ANYWHERE = 511    # of local memory as a whole
_WORDS = 512       # of its words at known places on


def masked(blocks: Mapping[int, FlowBlock], entry: int) -> set[int]:
    """Blocks that lanes may run while others that live are elsewhere."""
    edges = {a: successors(blocks, b) for a, b in blocks.items()}
    before: dict[int, int] = {entry: 0}
    waiting = {entry}
    parting: set[int] = set()  # blocks whose lanes may part
    inside: set[int] = set()   # those where they do before its end
    while waiting:
        here = min(waiting)
        waiting.remove(here)
        state, parts, within = _through(blocks[here].instructions, before[here])
        if parts or within:
            parting.add(here)
        if within:
            inside.add(here)
        for target in edges[here]:
            known = before.get(target)
            if known is None or known | state != known:
                before[target] = state | (known or 0)
                waiting.add(target)
    found = set(inside)
    more = {t for a in parting for t in edges[a]} - found
    while more:
        found |= more
        more = {t for a in more for t in edges[a]} - found
    return found


def successors(blocks: Mapping[int, FlowBlock], block: FlowBlock) -> list[int]:
    """Where a block may go on; an indirect branch whose targets nobody names goes anywhere."""
    if block.end in (End.INDIRECT, End.RETURN) and not block.successors:
        return sorted(blocks)
    return list(block.successors)


def _tokens(registers: Iterable[Reg]) -> int:
    """Registers of lanes as bits."""
    found = 0
    for r in registers:
        if r.file is File.R:
            found |= ((1 << r.words) - 1) << r.index
        elif r.file is File.P:
            found |= 1 << _PREDICATES + r.index
    return found


def _of(o: Operand) -> int:
    return _tokens([o.value]) if isinstance(o.value, Reg) and not o.value.zero else 0


def _through(instructions: list[Instruction], state: int) -> tuple[int, bool, bool]:
    """(registers that differ between lanes behind a block, whether its lanes may part at its end, or before), from those before
    it."""
    within = False
    for i in instructions:
        if i.op in ("BRA", "BRX", "JMX", "RET", "CALL", "JMP", "BRXU"):
            varying = state & _tokens(i.reads())
            if varying and not set(i.mods) & {"DIV", "CONV"}:
                return state, True, within
            continue
        guard = state & _of(i.guard)
        alone = not _ALONE.isdisjoint(i.mods) and bool(state & _tokens(i.reads()))
        within |= alone or bool(guard) and i.op in _MEETINGS
        written = _tokens(i.writes())
        if i.op == "STL":
            written = _local_words(i) or 1 << _ANYWHERE
        if not written:
            continue
        if i.op in ("S2R", "CS2R"):
            source = i.srcs[0].value
            differs = isinstance(source, Special) and source.number not in _SAME_SPECIAL
        elif i.op in _SAME:
            differs = False
        elif i.op == "LDL":
            words = _local_words(i)
            differs = not words or bool(state & (words | 1 << _ANYWHERE))
        else:
            differs = i.op in _VARYING or bool(state & _tokens(i.reads()))
        if differs or guard:
            state |= written
        elif i.guard == TRUE and not written >> _ANYWHERE & 1:
            state &= ~written
    return state, False, within


def _local_words(i: Instruction) -> int:
    """The words of local memory that an instruction moves, as bits; 0 where they are not known."""
    a = next(o.value for o in (*i.srcs, *i.dsts) if isinstance(o.value, Address))
    if a.uniform is not None or (a.base is not None and not a.base.zero) or a.offset < 0:
        return 0
    data = next(o.value for o in (*i.dsts, *i.srcs) if isinstance(o.value, Reg))
    return ((1 << max(data.words, 1)) - 1) << _WORDS + a.offset // 4


# ---------------------------------------------------------------------------------------------------------------------
# The scheduler

TEXT = f"""
; lets the lanes go on that have met all they wait for; %b: what each meets, %w: who waits
define internal void @settle(ptr %b, ptr %w, i32 %live, ptr %blocked) noinline {{
entry:
  %first = load i32, ptr %w
  br label %head
head:
  %left = phi i32 [ %first, %entry ], [ %left2, %next ]
  %none = icmp eq i32 %left, 0
  br i1 %none, label %out, label %lane
lane:
  %n = call i32 @first(i32 %left)
  %p = getelementptr i32, ptr %b, i32 %n
  %m = load i32, ptr %p
  %own = shl i32 1, %n
  %all = or i32 %m, %own
  %group = and i32 %all, %live
  %waiting = load i32, ptr %w
  %not = xor i32 %waiting, -1
  %missing = and i32 %group, %not
  %met = icmp eq i32 %missing, 0
  br i1 %met, label %go, label %next
go:
  %rest = xor i32 %all, -1
  %w2 = and i32 %waiting, %rest
  store i32 %w2, ptr %w
  %held = load i32, ptr %blocked
  %h2 = and i32 %held, %rest
  store i32 %h2, ptr %blocked
  %gone = and i32 %waiting, %all
  %gone.bits = bitcast i32 %gone to <32 x i1>
  %masks = load <32 x i32>, ptr %b, align 64
  %free = select <32 x i1> %gone.bits, <32 x i32> zeroinitializer, <32 x i32> %masks
  store <32 x i32> %free, ptr %b, align 64
  br label %next
next:
  %away = phi i32 [ %own, %lane ], [ %all, %go ]
  %stay = xor i32 %away, -1
  %left2 = and i32 %left, %stay
  br label %head
out:
  ret void
}}

; the place to go on, its lanes in %active, the other ones that could run in %others; -1: none is left, -2: all wait
define internal i32 @choose(ptr %state, ptr %next, i32 %live, i32 %blocked, ptr %active, ptr %others) noinline {{
entry:
  %hp = getelementptr i8, ptr %state, i64 {at.HELD}
  %held = load i32, ptr %hp
  %wait = or i32 %held, %blocked
  %free = xor i32 %wait, -1
  %able = and i32 %live, %free
  %dead = icmp eq i32 %live, 0
  br i1 %dead, label %done, label %some
some:
  %stuck = icmp eq i32 %able, 0
  br i1 %stuck, label %all, label %look
look:
  %v = load <32 x i32>, ptr %next, align 64
  %tp = getelementptr i8, ptr %state, i64 {at.TURN}
  %turn = load i32, ptr %tp
  %turn2 = add i32 %turn, 1
  store i32 %turn2, ptr %tp
  %low = and i32 %turn, 7
  %bits = bitcast i32 %able to <32 x i1>
  switch i32 %low, label %lowest [ i32 3, label %other i32 7, label %highest ]
lowest:
  %c = select <32 x i1> %bits, <32 x i32> %v, <32 x i32> splat (i32 -1)
  %min = call i32 @llvm.vector.reduce.umin.v32i32(<32 x i32> %c)
  br label %chosen
highest:
  %h = select <32 x i1> %bits, <32 x i32> %v, <32 x i32> zeroinitializer
  %max = call i32 @llvm.vector.reduce.umax.v32i32(<32 x i32> %h)
  br label %chosen
other:
  %t3 = lshr i32 %turn, 3
  %by = and i32 %t3, 31
  %turned = call i32 @llvm.fshr.i32(i32 %able, i32 %able, i32 %by)
  %k = call i32 @first(i32 %turned)
  %l0 = add i32 %k, %by
  %l = and i32 %l0, 31
  %p = getelementptr i32, ptr %next, i32 %l
  %mine = load i32, ptr %p
  br label %chosen
chosen:
  %pc = phi i32 [ %min, %lowest ], [ %max, %highest ], [ %mine, %other ]
  %one = insertelement <32 x i32> poison, i32 %pc, i64 0
  %pcs = shufflevector <32 x i32> %one, <32 x i32> poison, <32 x i32> zeroinitializer
  %same = icmp eq <32 x i32> %v, %pcs
  %s = bitcast <32 x i1> %same to i32
  %now = and i32 %s, %able
  store i32 %now, ptr %active
  %off = xor i32 %now, -1
  %rest = and i32 %able, %off
  store i32 %rest, ptr %others
  ret i32 %pc
done:
  ret i32 -1
all:
  ret i32 -2
}}
declare i32 @llvm.vector.reduce.umin.v32i32(<32 x i32>)
declare i32 @llvm.vector.reduce.umax.v32i32(<32 x i32>)
declare i32 @llvm.fshr.i32(i32, i32, i32)
"""
