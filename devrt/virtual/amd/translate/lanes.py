"""Lanes that see each other: DPP, permutations, reading and writing single lanes, counting below one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from devrt.virtual.amd.isa.instruction import Dpp, Instruction
from devrt.virtual.amd.translate.writer import NotTranslated, Rule, Writer

NAMED: dict[str, Rule] = {}


def _named(*names: str) -> Callable[[Rule], Rule]:
    def put(r: Rule) -> Rule:
        NAMED.update(dict.fromkeys(names, r))
        return r
    return put


def source_lanes(d: Dpp, wave: int) -> list[int | None]:
    """The lane that each lane reads; None where there is none. Source: "RDNA 3 ISA", DPP16 and DPP8."""
    found: list[int | None] = []
    for lane in range(wave):
        row, at = lane & ~15, lane & 15
        n = d.arguments[0] if d.arguments else 0
        if d.operation == "quad_perm":
            source: int | None = (lane & ~3) + d.arguments[lane & 3]
        elif d.operation == "dpp8":
            source = (lane & ~7) + d.arguments[lane & 7]
        elif d.operation == "row_shl":
            source = lane + n if at + n < 16 else None
        elif d.operation == "row_shr":
            source = lane - n if at >= n else None
        elif d.operation == "row_ror":
            source = row + (at - n) % 16
        elif d.operation == "row_mirror":
            source = row + 15 - at
        elif d.operation == "row_half_mirror":
            source = (lane & ~7) + 7 - (lane & 7)
        elif d.operation in ("row_share", "row_newbcast"):
            source = row + n
        elif d.operation == "row_xmask":
            source = row + (at ^ n)
        elif d.operation == "row_bcast":  # the last lane of the row before, or lane 31, to the rows after it
            source = (row - 1 if row else None) if n == 15 else (31 if lane >= 32 else None)
        elif d.operation in ("wave_shl", "wave_rol"):
            source = lane + 1 if lane + 1 < wave else 0 if d.operation == "wave_rol" else None
        elif d.operation in ("wave_shr", "wave_ror"):
            source = lane - 1 if lane else wave - 1 if d.operation == "wave_ror" else None
        else:
            raise NotTranslated(f"DPP {d.control}")
        found.append(source)
    return found


@contextmanager
def rearranged(w: Writer, i: Instruction) -> Iterator[None]:
    """While an instruction with DPP is written: source 0 comes from other lanes, and some lanes are not written."""
    if i.dpp is None:
        yield
        return
    d = i.dpp
    sources = source_lanes(d, w.wave)
    exec_ = w.exec()
    active = w.op(f"bitcast {w.iw} {exec_} to {w.mask}")
    numbers = w.lanes("i32", [w.wave if s is None else s for s in sources])  # past the end: zeros
    there = w.lanes("i1", [int(s is not None) for s in sources])
    if not d.fi:  # an inactive lane is none
        moved = w.op(f"shufflevector {w.mask} {active}, {w.mask} zeroinitializer, {w.shuffle_type(numbers)}")
        there = w.op(f"and {w.mask} {moved}, {there}")
    masked = w.lanes("i1", [d.row_mask >> (lane // 16 & 3) & d.bank_mask >> (lane // 4 & 3) & 1 for lane in range(w.wave)])
    writable = w.op(f"and {w.mask} {active}, {masked}")
    if not d.bound_ctrl:
        writable = w.op(f"and {w.mask} {writable}, {there}")
    w.shuffle, w.write_mask, w.there = (w.shuffle_type(numbers), there), writable, there
    try:
        yield
    finally:
        w.shuffle = w.write_mask = None


@_named("v_readfirstlane_b32")
def readfirstlane(w: Writer, i: Instruction) -> None:
    active = w.exec()
    first = w.call(w.iw, f"llvm.cttz.i{w.wave}", (w.iw, active), ("i1 immarg", "false"))
    lane = w.op(f"select i1 {w.op(f'icmp eq {w.iw} {active}, 0')}, {w.iw} 0, {w.iw} {first}")
    w.set_scalar(i.destinations[0], w.op(f"extractelement {w.vec('i32')} {w.dword(i.sources[0])}, {w.iw} {lane}"))


@_named("v_readlane_b32")
def readlane(w: Writer, i: Instruction) -> None:
    a, b = i.sources
    lane = w.op(f"and i32 {w.scalar(b)}, {w.wave - 1}")
    w.set_scalar(i.destinations[0], w.op(f"extractelement {w.vec('i32')} {w.dword(a)}, i32 {lane}"))


@_named("v_writelane_b32")
def writelane(w: Writer, i: Instruction) -> None:
    out = i.destinations[0]
    value, lane = (o for o in i.sources if not o.dst)
    at = w.op(f"and i32 {w.scalar(lane)}, {w.wave - 1}")
    n = w.vcode(out)
    w.set_v(n, w.op(f"insertelement {w.vec('i32')} {w.v(n)}, i32 {w.scalar(value)}, i32 {at}"), "")


def _below(half: int) -> Rule:
    """v_mbcnt: bits of the mask below the own lane, in one half of the wave, added."""
    def run(w: Writer, i: Instruction) -> None:
        t = w.vec("i32")
        mask, add = (w.value(o) for o in i.sources)
        below = []
        for lane in range(w.wave):
            bits_below = max(0, min(32, lane - 32 * half))
            below.append((1 << bits_below) - 1)
        limits = w.lanes("i32", [v - (1 << 32) if v >> 31 else v for v in below])
        count = w.intrinsic("ctpop", "u32", w.op(f"and {t} {mask}, {limits}"))
        w.result(i, i.destinations[0], w.op(f"add {t} {count}, {add}"))
    return run


NAMED |= {"v_mbcnt_lo_u32_b32": _below(0), "v_mbcnt_hi_u32_b32": _below(1)}


def pick_lanes(w: Writer, value: str, lanes: str) -> str:
    """value[lanes[n]] for every lane n: a vector indexed by a vector."""
    return w.call(w.vec("i32"), "pick", (w.vec("i32"), value), (w.vec("i32"), lanes), declare=False)


def _permlane(across: bool) -> Rule:
    """v_permlane16: lane n of each row reads the lane that 4 bits of two scalars name; permlanex16 of the other row."""
    def run(w: Writer, i: Instruction) -> None:
        t = w.vec("i32")
        source, low, high = (o for o in i.sources if not o.dst)
        value = w.dword(source)
        words = [w.scalar(low), w.scalar(high)]
        shifts = w.lanes("i32", [4 * (lane & 7) for lane in range(w.wave)])
        spread = [w.splat("i32", x) for x in words]
        a, b = (w.op(f"and {t} {w.op(f'lshr {t} {x}, {shifts}')}, splat (i32 15)") for x in spread)
        upper = w.lanes("i1", [lane >> 3 & 1 for lane in range(w.wave)])
        chosen = w.op(f"select {w.mask} {upper}, {t} {b}, {t} {a}")
        rows = w.lanes("i32", [(lane ^ 16 if across else lane) & ~15 for lane in range(w.wave)])
        at = w.op(f"or {t} {chosen}, {rows}")
        moved = pick_lanes(w, value, at)
        fetch_inactive, bound = i.op_sel & 1, i.op_sel >> 1 & 1
        if fetch_inactive:
            w.set_v(w.vcode(i.destinations[0]), moved)
            return
        active = w.op(f"sext {w.mask} {w.exec_mask()} to {t}")
        there = w.op(f"icmp ne {t} {pick_lanes(w, active, at)}, zeroinitializer")
        if bound:
            zeroed = w.op(f"select {w.mask} {there}, {t} {moved}, {t} zeroinitializer")
            w.set_v(w.vcode(i.destinations[0]), zeroed)
        else:
            w.set_v(w.vcode(i.destinations[0]), moved, w.op(f"and {w.mask} {there}, {w.exec_mask()}"))
    return run


NAMED |= {"v_permlane16_b32": _permlane(False), "v_permlanex16_b32": _permlane(True)}


@_named("v_permlane64_b32")
def permlane64(w: Writer, i: Instruction) -> None:
    if w.wave == 32:
        return
    t = w.vec("i32")
    numbers = w.lanes("i32", [lane ^ 32 for lane in range(64)])
    moved = w.op(f"shufflevector {t} {w.dword(i.sources[0])}, {t} poison, {w.shuffle_type(numbers)}")
    w.set_v(w.vcode(i.destinations[0]), moved)


def _offset(i: Instruction) -> int:
    return i.fields["offset0"] | i.fields["offset1"] << 8


def bpermute(w: Writer, i: Instruction) -> None:
    """Each lane reads the lane at address / 4; inactive sources give 0, but for the form that fetches them."""
    t = w.vec("i32")
    addr, data = i.sources
    where = w.op(f"add {t} {w.dword(addr)}, splat (i32 {_offset(i)})")
    lane = w.op(f"and {t} {w.op(f'lshr {t} {where}, splat (i32 2)')}, splat (i32 {w.wave - 1})")
    value = w.dword(data)
    if i.mnemonic != "ds_bpermute_fi_b32":
        value = w.op(f"select {w.mask} {w.exec_mask()}, {t} {value}, {t} zeroinitializer")
    w.set_v(w.vcode(i.destinations[0]), pick_lanes(w, value, lane))


def permute(w: Writer, i: Instruction) -> None:
    """Each active lane writes to the lane at address / 4; the highest lane wins."""
    t = w.vec("i32")
    addr, data = i.sources
    where = w.op(f"add {t} {w.dword(addr)}, splat (i32 {_offset(i)})")
    lane = w.op(f"and {t} {w.op(f'lshr {t} {where}, splat (i32 2)')}, splat (i32 {w.wave - 1})")
    r = w.call(t, "push", (t, w.dword(data)), (t, lane), (w.iw, w.exec()), declare=False)
    w.set_v(w.vcode(i.destinations[0]), r)


def swizzle(w: Writer, i: Instruction) -> None:
    """ds_swizzle: quads rearranged, or and, or, xor of the lane's number within 32. Source: "RDNA 3 ISA", DS_SWIZZLE_B32."""
    t, offset = w.vec("i32"), _offset(i)
    numbers = []
    for lane in range(w.wave):
        if offset >> 15:
            numbers.append((lane & ~3) + (offset >> 2 * (lane & 3) & 3))
        else:
            inside = ((lane & 31 & offset & 31) | offset >> 5 & 31) ^ (offset >> 10 & 31)
            numbers.append((lane & 32) | inside)
    masked = w.op(f"select {w.mask} {w.exec_mask()}, {t} {w.dword(i.sources[0])}, {t} zeroinitializer")
    moved = w.op(f"shufflevector {t} {masked}, {t} poison, {w.shuffle_type(w.lanes('i32', numbers))}")
    w.set_v(w.vcode(i.destinations[0]), moved)
