"""Comparisons of vectors. Sources as in vector.py."""

from __future__ import annotations

from devrt.virtual.amd.isa.instruction import Instruction
from devrt.virtual.amd.isa.opcodes import bits
from devrt.virtual.amd.translate.arithmetic import wide16
from devrt.virtual.amd.translate.writer import ORDERED, Writer, stem


def compare(w: Writer, i: Instruction) -> None:
    """v_cmp_* writes a mask, v_cmpx_* EXEC."""
    name, type = stem(i.mnemonic)
    _, _, predicate = name.rpartition("_")
    a, b = (o for o in i.sources if o.kind != "exec" or not o.dst)
    if predicate == "class":
        found = _class(w, type, w.value(a), wide16(w, w.value(b)) if bits(b.type) == 16 else w.dword(b))
    elif type.startswith("f"):
        found = w.op(f"fcmp {ORDERED[predicate]} {w.vtype(type)} {w.value(a)}, {w.value(b)}")
    else:
        sign = "s" if type.startswith("i") else "u"
        word = {"lg": "ne", "ne": "ne", "eq": "eq"}.get(predicate) or (sign + predicate)
        if predicate in ("t", "f"):
            found = "splat (i1 true)" if predicate == "t" else "zeroinitializer"
        else:
            found = w.op(f"icmp {word} {w.vtype(type)} {w.value(a)}, {w.value(b)}")
    raw = w.op(f"bitcast {w.mask} {found} to {w.iw}")
    active = w.op(f"and {w.iw} {raw}, {w.exec()}")
    for o in i.destinations:
        if o.kind != "exec" or not name.startswith("v_cmpx"):
            w.set_lane_bits(o, active)
    if name.startswith("v_cmpx"):
        w.line(f"store {w.iw} {active}, ptr %exec")


def _class(w: Writer, type: str, a: str, mask: str) -> str:
    """Which of ten kinds of number a is: a bit of the mask each."""
    width = bits(type)
    exponent, fraction = {16: (5, 10), 32: (8, 23), 64: (11, 52)}[width]
    it, t = w.vec(f"i{width}"), w.vec("i32")
    raw = w.cast(a, w.vtype(type), it)
    infinity, quiet = ((1 << exponent) - 1) << fraction, 1 << (fraction - 1)

    def s(v: int) -> str: return f"splat (i{width} {v})"
    magnitude = w.op(f"and {it} {raw}, {s((1 << (width - 1)) - 1)}")
    negative = w.op(f"icmp slt {it} {raw}, zeroinitializer")
    nan = w.op(f"icmp ugt {it} {magnitude}, {s(infinity)}")
    silent = w.op(f"icmp uge {it} {magnitude}, {s(infinity | quiet)}")
    infinite = w.op(f"icmp eq {it} {magnitude}, {s(infinity)}")
    zero = w.op(f"icmp eq {it} {magnitude}, zeroinitializer")
    tiny = w.op(f"icmp ult {it} {magnitude}, {s(1 << fraction)}")

    def pick(condition: str, yes: str, no: str) -> str: return w.op(f"select {w.mask} {condition}, {t} {yes}, {t} {no}")

    def n(v: int) -> str: return f"splat (i32 {v})"
    plus = pick(infinite, n(512), pick(zero, n(64), pick(tiny, n(128), n(256))))
    minus = pick(infinite, n(4), pick(zero, n(32), pick(tiny, n(16), n(8))))
    kind = pick(nan, pick(silent, n(2), n(1)), pick(negative, minus, plus))
    return w.op(f"icmp ne {t} {w.op(f'and {t} {kind}, {mask}')}, zeroinitializer")
