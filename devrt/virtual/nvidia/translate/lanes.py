"""Lanes that see each other, and what a lane knows of its place: shuffles, votes, special registers."""

from __future__ import annotations

from devrt.compiler.sass.instruction import File, Imm, Instruction, Label, Operand, Reg, Special
from devrt.virtual.nvidia.translate import layout
from devrt.virtual.nvidia.translate.operands import outcomes, predicates, result, values
from devrt.virtual.nvidia.translate.writer import LANES, NotTranslated, Rule, Writer, named

RULES: dict[str, Rule] = {}


# ---------------------------------------------------------------------------------------------------------------------
# Shuffles

@named(RULES, "SHFL")
def shfl(w: Writer, i: Instruction) -> None:
    """A register of another lane. The third operand: highest lane in bits 4:0, in bits 12:8 what stays of the lane's own number.
    The predicate says whether there is such a lane; where there is none, a lane reads itself."""
    data, place, clamp = values(i)
    mode = next(m for m in i.mods if m in ("IDX", "UP", "DOWN", "BFLY"))
    t = w.vec("i32")
    if isinstance(place.value, Imm) and isinstance(clamp.value, Imm):
        found = [_source(mode, lane, place.value.value, clamp.value.value) for lane in range(LANES)]
        numbers = ", ".join(f"i32 {n}" for n, _ in found)
        value = w.op(f"shufflevector {t} {w.word(data)}, {t} poison, {t} <{numbers}>")
        there = str(sum(in_range << lane for lane, (_, in_range) in enumerate(found)))
    else:
        numbers, inside = _sources(w, mode, w.word(place), w.word(clamp))
        value = w.call(t, "pick", (t, w.word(data)), (t, numbers))
        there = w.number(inside)
    for o in outcomes(i):
        assert isinstance(o.value, Reg)
        w.set_reg(o.value, there)
    w.write(result(i), value)


def _source(mode: str, lane: int, by: int, clamp: int) -> tuple[int, bool]:
    """(lane that is read, whether it is in range)."""
    by, most, stays = by & 31, clamp & 31, clamp >> 8 & 31
    first = lane & stays
    last = first | most & ~stays
    other = {"IDX": first | by & ~stays, "UP": lane - by, "DOWN": lane + by, "BFLY": lane ^ by}[mode]
    there = other >= last if mode == "UP" else other <= last
    return (other & 31 if there else lane), there


def _sources(w: Writer, mode: str, by: str, clamp: str) -> tuple[str, str]:
    """The same for places that lanes compute."""
    t = w.vec("i32")
    lane = w.lanes_of("i32", list(range(LANES)))
    by, most = (w.op(f"and {t} {x}, splat (i32 31)") for x in (by, clamp))
    stays = w.op(f"and {t} {w.op(f'lshr {t} {clamp}, splat (i32 8)')}, splat (i32 31)")
    moves = w.op(f"xor {t} {stays}, splat (i32 31)")
    first = w.op(f"and {t} {lane}, {stays}")
    last = w.op(f"or {t} {first}, {w.op(f'and {t} {most}, {moves}')}")
    if mode == "IDX":
        other = w.op(f"or {t} {first}, {w.op(f'and {t} {by}, {moves}')}")
    else:
        other = w.op(f"{ {'UP': 'sub', 'DOWN': 'add', 'BFLY': 'xor'}[mode]} {t} {lane}, {by}")
    inside = w.op(f"icmp {'sge' if mode == 'UP' else 'sle'} {t} {other}, {last}")
    chosen = w.op(f"select {w.vec('i1')} {inside}, {t} {other}, {t} {lane}")
    return w.op(f"and {t} {chosen}, splat (i32 31)"), inside


# ---------------------------------------------------------------------------------------------------------------------
# Votes

@named(RULES, "VOTE", "VOTEU")
def vote(w: Writer, i: Instruction) -> None:
    """The lanes whose predicate is true as a mask; whether it is so for all, any, or all alike."""
    lanes = w.lanes()
    given = predicates(i)
    yes = w.op(f"and i32 {lanes}, {w.mask_of(given[-1])}") if given else lanes
    kind = next(m for m in i.mods if m in ("ALL", "ANY", "EQ"))
    every = w.op(f"icmp eq i32 {yes}, {lanes}")
    some = w.op(f"icmp ne i32 {yes}, 0")
    found = {"ALL": every, "ANY": some, "EQ": ""}[kind] or w.op(f"or i1 {every}, {w.op(f'xor i1 {some}, true')}")
    for o in i.dsts:
        assert isinstance(o.value, Reg)
        if o in outcomes(i):
            w.set_reg(o.value, found if o.value.file is File.UP else w.op(f"sext i1 {found} to i32"))
        else:
            _to(w, o, yes)


@named(RULES, "MATCH")
def match(w: Writer, i: Instruction) -> None:
    """The lanes with the same number (.ANY); all of them, and a predicate, where all have the same (.ALL)."""
    t = w.vec("i64" if "U64" in i.mods or "64" in i.mods else "i32")
    o = values(i)[0]
    value = w.word64(o) if t.endswith("i64>") else w.word(o)
    name = "match64" if t.endswith("i64>") else "match32"
    w.helpers[name] = _MATCH.replace("$N", name).replace("$E", t.split()[-1][:-1])
    lanes = w.lanes()
    same = w.call(w.vec("i32"), name, (t, value), ("i32", lanes))
    if "ALL" in i.mods:
        mine = w.splat("i32", lanes)
        all_same = w.op(f"icmp eq {w.vec('i32')} {same}, {mine}")
        same = w.op(f"select {w.vec('i1')} {all_same}, {w.vec('i32')} {same}, {w.vec('i32')} zeroinitializer")
        for p in outcomes(i):
            w.write_pred(p, all_same)
    w.write(result(i), same)


_MATCH = """
define internal <32 x i32> @$N(<32 x $E> %v, i32 %exec) noinline {
entry:
  br label %head
head:
  %left = phi i32 [ %exec, %entry ], [ %left2, %lane ]
  %acc = phi <32 x i32> [ zeroinitializer, %entry ], [ %acc2, %lane ]
  %none = icmp eq i32 %left, 0
  br i1 %none, label %out, label %lane
lane:
  %n = call i32 @first(i32 %left)
  %x = extractelement <32 x $E> %v, i32 %n
  %x1 = insertelement <32 x $E> poison, $E %x, i64 0
  %xs = shufflevector <32 x $E> %x1, <32 x $E> poison, <32 x i32> zeroinitializer
  %eq = icmp eq <32 x $E> %v, %xs
  %e = bitcast <32 x i1> %eq to i32
  %m = and i32 %e, %exec
  %acc2 = insertelement <32 x i32> %acc, i32 %m, i32 %n
  %m1 = sub i32 %left, 1
  %left2 = and i32 %left, %m1
  br label %head
out:
  ret <32 x i32> %acc
}
"""

_REDUCTIONS = {"AND": ("and", -1), "OR": ("or", 0), "XOR": ("xor", 0), "SUM": ("add", 0), "MIN": ("umin", -1), "MAX": ("umax", 0)}
_SIGNED = {"MIN": ("smin", (1 << 31) - 1), "MAX": ("smax", -(1 << 31))}


@named(RULES, "REDUX")
def redux(w: Writer, i: Instruction) -> None:
    """One number of all lanes that are active."""
    kind = next((m for m in i.mods if m in _REDUCTIONS), "AND")
    name, none = (_SIGNED if "S32" in i.mods and kind in _SIGNED else _REDUCTIONS)[kind]
    t = w.vec("i32")
    value = w.op(f"select {w.vec('i1')} {w.bits(w.lanes())}, {t} {w.word(values(i)[0])}, {t} splat (i32 {none})")
    total = w.call("i32", f"llvm.vector.reduce.{name}.v{LANES}i32", (t, value), declare=True)
    _to(w, result(i), total)


@named(RULES, "R2UR")
def r2ur(w: Writer, i: Instruction) -> None:
    """A register of the lowest lane that is active. The predicate: some active lane has another number."""
    value = w.word(values(i)[0])
    one = w.of_first(value)
    _to(w, result(i), one)
    for o in outcomes(i):
        assert isinstance(o.value, Reg)
        other = w.number(w.op(f"icmp ne {w.vec('i32')} {value}, {w.splat('i32', one)}"))
        differ = w.op(f"icmp ne i32 {w.op(f'and i32 {other}, {w.lanes()}')}, 0")
        w.set_reg(o.value, w.op(f"sext i1 {differ} to i32"))


def _to(w: Writer, o: Operand, number: str, k: int = 0) -> None:
    """One number to a uniform register, or to all lanes of one."""
    assert isinstance(o.value, Reg)
    w.set_reg(o.value, number if o.value.file is File.UR else w.splat("i32", number), k)


@named(RULES, "ELECT")
def elect(w: Writer, i: Instruction) -> None:
    """One of the active lanes: the lowest."""
    lanes = w.lanes()
    lowest = w.op(f"and i32 {lanes}, {w.op(f'sub i32 0, {lanes}')}")
    for o in i.dsts:
        assert isinstance(o.value, Reg)
        if o in outcomes(i):
            w.set_reg(o.value, lowest)
        else:
            _to(w, o, w.first_lane())


# ---------------------------------------------------------------------------------------------------------------------
# Special registers

_ID = {0x25: layout.CTA_X, 0x26: layout.CTA_Y, 0x27: layout.CTA_Z, 0x43: layout.SM}
_THREAD = {0x21: 0, 0x22: 1, 0x23: 2}
_MASKS = {0x38: "eq", 0x39: "lt", 0x3A: "le", 0x3B: "gt", 0x3C: "ge"}
_CLOCKS = {0x50: 0, 0x51: 32, 0x52: 0, 0x53: 32}
_ZERO = (0xFF, 0x88, 0x30, 0x34, *range(0x64, 0x6C))  # SRZ; the rank in a cluster of one; low halves of windows; PM counters
_WINDOWS = {0x2E: layout.LOCAL_WINDOW, 0x2F: layout.SHARED_WINDOW}
_WARPS = {75: 32, 80: 64, 90: 64}  # of a multiprocessor, else 48 (CUDA C programming guide, compute capabilities)


def special(w: Writer, number: int) -> tuple[str, bool]:
    """(value, whether it is one for all lanes) of a special register."""
    if number == 0x00:
        return w.lanes_of("i32", list(range(LANES))), False
    if number in _THREAD:
        return w.field(layout.THREADS + 4 * LANES * _THREAD[number], w.vec("i32"), "%state"), False
    if number in _ID:
        return w.field(_ID[number], "i32"), True
    if number in _MASKS:
        masks = {"eq": [1 << n for n in range(LANES)], "lt": [(1 << n) - 1 for n in range(LANES)],
                 "le": [(2 << n) - 1 for n in range(LANES)]}
        masks["gt"] = [0xFFFFFFFF & ~m for m in masks["le"]]
        masks["ge"] = [0xFFFFFFFF & ~m for m in masks["lt"]]
        return w.lanes_of("i32", masks[_MASKS[number]]), False
    if number in _CLOCKS:
        return w.op(f"trunc i64 {w.op(f'lshr i64 {_clock(w)}, {_CLOCKS[number]}')} to i32"), True
    if number == 0x03:  # VIRTID: lane, warp, multiprocessor
        warp = w.splat("i32", w.op(f"shl i32 {w.field(layout.NUMBER, 'i32', '%state')}, 8"))
        return w.op(f"or {w.vec('i32')} {warp}, {w.lanes_of('i32', list(range(LANES)))}"), False
    if number == 0x02:  # VIRTCFG: warps of a multiprocessor
        return str(_WARPS.get(w.sm, 48) << 8), True
    if number in _WINDOWS:
        window = w.op(f"lshr i64 {w.field(_WINDOWS[number], 'i64')}, 32")
        return w.op(f"trunc i64 {window} to i32"), True
    if number == 0x32:
        return w.op(f"trunc i64 {w.field(layout.SHARED_BYTES, 'i64')} to i32"), True
    if number == 0x37:  # LMEMHIOFF: where the upper part of a lane's local memory begins, below which a stack must not grow
        high = w.op(f"sub i64 {w.field(layout.LOCAL_LANE, 'i64')}, {w.field(layout.LOCAL_LOW, 'i64')}")
        return w.op(f"trunc i64 {w.op(f'sub i64 {layout.LOCAL_END}, {high}')} to i32"), True
    if number in _ZERO:
        return "0", True
    raise NotTranslated(f"special register {number:#x}")


def _clock(w: Writer) -> str:
    """The GPU's counter, which goes on with every look."""
    place = w.op(f"inttoptr i64 {w.field(layout.CLOCK, 'i64')} to ptr")
    return w.op(f"atomicrmw add ptr {place}, i64 32 monotonic")


@named(RULES, "S2R", "S2UR")
def s2r(w: Writer, i: Instruction) -> None:
    source = i.srcs[0].value
    assert isinstance(source, Special)
    value, one = special(w, source.number)
    o = result(i)
    if isinstance(o.value, Reg) and o.value.file is File.UR:
        w.set_reg(o.value, value if one else w.of_first(value))
    else:
        w.write(o, w.splat("i32", value) if one else value)


@named(RULES, "CS2R", "CS2UR")
def cs2r(w: Writer, i: Instruction) -> None:
    """Two words unless .32: of a clock its 64 bits."""
    source = i.srcs[0].value
    assert isinstance(source, Special)
    number = source.number
    if "32" not in i.mods and number in (0x50, 0x52):
        whole = _clock(w)
        for k in range(2):
            word = w.op(f"trunc i64 {w.op(f'lshr i64 {whole}, {32 * k}')} to i32")
            _to(w, i.dsts[0], word, k)
        return
    value, one = special(w, number)
    _to(w, i.dsts[0], value if one else w.of_first(value)) if i.op == "CS2UR" or one else w.write(i.dsts[0], value)
    if "32" not in i.mods:
        if number != 0xFF:
            raise NotTranslated(str(i))
        _to(w, i.dsts[0], "0", 1)


@named(RULES, "B2R")
def b2r(w: Writer, i: Instruction) -> None:
    """What the last BAR.RED counted."""
    if "RESULT" not in i.mods:
        raise NotTranslated(str(i))
    number = w.field(layout.RESULT, "i32", "%state")
    for o in outcomes(i):
        assert isinstance(o.value, Reg)
        w.set_reg(o.value, w.op(f"sext i1 {w.op(f'icmp ne i32 {number}, 0')} to i32"))
    w.write(result(i), w.splat("i32", number))


@named(RULES, "LEPC")
def lepc(w: Writer, i: Instruction) -> None:
    """The virtual address of a place in the code, or of the instruction behind this one."""
    places = [o.value for o in i.srcs if isinstance(o.value, Label)]
    target = places[0].target if places else i.address + 16
    assert isinstance(target, int)
    w.write64(i.dsts[0], w.splat("i64", w.address(target)))
