"""What vector instructions compute: one rule a mnemonic or stem, over all lanes.

Sources: "RDNA 3 ISA" and "AMD Instinct MI300 ISA", chapters on vector ALU operations. Reciprocals, roots and logarithms, which
hardware gives within about an ulp, are the rounded results here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from devrt.virtual.amd.isa.instruction import Instruction, Operand
from devrt.virtual.amd.isa.opcodes import bits
from devrt.virtual.amd.translate import arithmetic, compare, convert, division, fp8, lanes, packed, special
from devrt.virtual.amd.translate.writer import NotTranslated, Rule, Writer, stem

_TABLES = (packed.NAMED, convert.NAMED, division.NAMED, lanes.NAMED, special.NAMED, fp8.NAMED)


def emit(w: Writer, i: Instruction) -> None:
    """Write one vector instruction."""
    if i.parts:
        pair(w, i)
        return
    with lanes.rearranged(w, i):
        rule(i)(w, i)


def pair(w: Writer, i: Instruction) -> None:
    """VOPD: both halves read before either writes."""
    results = []
    for part in i.parts:
        collected: list[tuple[int, str]] = []
        capture = _Capture(w, collected)
        rule(part)(capture, part)
        results += collected
        w.serial = capture.serial
    for n, value in results:
        Writer.set_v(w, n, value)


class _Capture(Writer):
    """A Writer that keeps vector results instead of writing them."""

    def __init__(self, w: Writer, collected: list[tuple[int, str]]) -> None:
        self.__dict__.update(w.__dict__)
        self.collected = collected

    def set_v(self, n: int, value: str, mask: str | None = None) -> None:
        self.collected.append((n, value))


def rule(i: Instruction) -> Rule:
    """The rule for an instruction. Raises NotTranslated."""
    mnemonic = i.mnemonic.replace("v_dual_", "v_")
    name, type = stem(mnemonic)
    if name.startswith("v_cmp"):
        return compare.compare
    found = next((t[mnemonic] for t in (NAMED, *_TABLES) if mnemonic in t), None)
    if found is not None:
        return found
    if name.startswith("v_s_") and name.replace("v_s_", "v_") in arithmetic.FLOAT:
        return once(arithmetic.FLOAT[name.replace("v_s_", "v_")])
    if i.clamp and name in arithmetic.SATURATING and not type.startswith("f"):
        return plain(arithmetic.SATURATING[name], saturated=True)
    table = arithmetic.FLOAT if type.startswith("f") else arithmetic.INTEGER
    if name in table:
        return plain(table[name])
    raise NotTranslated(i.mnemonic)


def plain(compute: arithmetic.Values, saturated: bool = False) -> Rule:
    """A rule of one result from the values of all sources; saturated: clamped already."""
    def run(w: Writer, i: Instruction) -> None:
        out = i.destinations[0]
        values = [w.value(o) for o in i.sources]
        w.result(replace(i, clamp=False) if saturated else i, out, compute(w, out.type, *values))
    return run


def once(compute: arithmetic.Values) -> Rule:
    """gfx12's v_s_: one number a wave, from and to scalar registers, whatever EXEC is."""
    def run(w: Writer, i: Instruction) -> None:
        out = i.destinations[0]
        if bits(out.type) != 32:
            raise NotTranslated(i.mnemonic)
        value = w.scaled(i, compute(w, out.type, *(w.value(o) for o in i.sources)), out.type)
        first = w.op(f"extractelement {w.vtype(out.type)} {value}, i32 0")
        w.set_scalar(out, w.op(f"bitcast float {first} to i32"))
    return run


NAMED: dict[str, Rule] = {
    "v_mad_i32_i16": plain(arithmetic.mad_wide(True)), "v_mad_u32_u16": plain(arithmetic.mad_wide(False)),
    "v_nop": lambda w, i: None,
    "v_clz_i32_u32": plain(arithmetic.count("ctlz")), "v_ffbh_u32": plain(arithmetic.count("ctlz")),
    "v_cls_i32": plain(arithmetic.sign_bits), "v_ffbh_i32": plain(arithmetic.sign_bits),
    "v_ctz_i32_b32": plain(arithmetic.count("cttz")),
    "v_ffbl_b32": plain(arithmetic.count("cttz")),
}
for _name, (_signed_rule, _unsigned_rule) in arithmetic.SIGNED.items():
    NAMED |= {f"{_name}_i{n}": plain(_signed_rule) for n in (16, 32)} | {f"{_name}_u{n}": plain(_unsigned_rule) for n in (16, 32)}


def _named(*names: str) -> Callable[[Rule], Rule]:
    def put(r: Rule) -> Rule:
        NAMED.update(dict.fromkeys(names, r))
        return r
    return put


@_named("v_fmac_f32", "v_fmac_f16", "v_fmac_f64", "v_fmac_dx9_zero_f32", "v_fmac_legacy_f32")
def fmac(w: Writer, i: Instruction) -> None:
    """destination += a * b"""
    out = i.destinations[0]
    a, b = (w.value(o) for o in i.sources if not o.dst)
    w.result(i, out, arithmetic.fma(w, out.type, a, b, w.value(out)))


@_named("v_fmamk_f32", "v_fmaak_f32", "v_fmamk_f16", "v_fmaak_f16")
def fma_literal(w: Writer, i: Instruction) -> None:
    """In the assembler's order: a * K + b, or a * b + K."""
    a, b, c = (w.value(o) for o in i.sources)
    w.result(i, i.destinations[0], arithmetic.fma(w, i.destinations[0].type, a, b, c))


@_named("v_cndmask_b32", "v_cndmask_b16")
def cndmask(w: Writer, i: Instruction) -> None:
    a, b, mask = i.sources
    out = i.destinations[0]
    x, y = (_raw(w, o) for o in (a, b))
    t = w.vtype(out.type)
    w.result(i, out, w.op(f"select {w.mask} {w.value(mask)}, {t} {y}, {t} {x}"))


def _raw(w: Writer, o: Operand) -> str:
    """A b32 or b16 operand, whose sign modifiers work on its highest bit."""
    if not (o.neg or o.abs):
        return w.value(o)
    t, width = w.vtype(o.type), bits(o.type)
    value = w.value(replace(o, neg=False, abs=False))
    top = 1 << (width - 1)
    if o.abs:
        value = w.op(f"and {t} {value}, {w.const(o.type, top - 1)}")
    return w.op(f"xor {t} {value}, {w.const(o.type, -top)}") if o.neg else value


def _carry(name: str, swap: bool, carried: bool) -> Rule:
    """Sum or difference with a carry out, and in."""
    def run(w: Writer, i: Instruction) -> None:
        out, carry = i.destinations
        a, b = (w.value(o) for o in i.sources[:2])
        a, b = (b, a) if swap else (a, b)
        t, wide = w.vec("i32"), w.vec("i64")
        x, y = (w.op(f"zext {t} {v} to {wide}") for v in (a, b))
        r = w.op(f"{name} {wide} {x}, {y}")
        if carried:
            r = w.op(f"{name} {wide} {r}, {w.op(f'zext {w.mask} {w.value(i.sources[2])} to {wide}')}")
        over = w.op(f"icmp ne {wide} {w.op(f'lshr {wide} {r}, splat (i64 32)')}, zeroinitializer")
        low = w.op(f"trunc {wide} {r} to {t}")
        w.set_mask(carry, over)
        w.set_v(w.vcode(out), low)
    return run


for _base, _name, _swap in (("add", "add", False), ("sub", "sub", False), ("sub", "subrev", True)):
    NAMED |= dict.fromkeys((f"v_{_name}_co_u32", ), _carry(_base, _swap, False))
    NAMED |= dict.fromkeys((f"v_{_name}_co_ci_u32",
                            {"add": "v_addc_co_u32", "sub": "v_subb_co_u32", "subrev": "v_subbrev_co_u32"}[_name]),
                           _carry(_base, _swap, True))


def _mad64(signed: bool) -> Rule:
    """64 bits of a * b + c, and its carry."""
    def run(w: Writer, i: Instruction) -> None:
        out, carry = i.destinations
        a, b, c = (w.value(o) for o in i.sources)
        t, wide, ext = w.vec("i32"), w.vec("i64"), "sext" if signed else "zext"
        product = w.op(f"mul {wide} {w.op(f'{ext} {t} {a} to {wide}')}, {w.op(f'{ext} {t} {b} to {wide}')}")
        total = w.op(f"add {wide} {product}, {c}")
        over = w.op(f"icmp ult {wide} {total}, {product}")
        w.result(i, out, total)
        w.set_mask(carry, over)
    return run


NAMED |= dict.fromkeys(("v_mad_u64_u32", "v_mad_co_u64_u32"), _mad64(False))
NAMED |= dict.fromkeys(("v_mad_i64_i32", "v_mad_co_i64_i32"), _mad64(True))


@_named("v_lshl_add_u64")
def lshl_add_u64(w: Writer, i: Instruction) -> None:
    a, b, c = (w.value(o) for o in i.sources)
    wide = w.vec("i64")
    amount = w.op(f"zext {w.vec('i32')} {b} to {wide}")
    moved = w.op(f"shl {wide} {a}, {w.op(f'and {wide} {amount}, splat (i64 7)')}")
    w.result(i, i.destinations[0], w.op(f"add {wide} {moved}, {c}"))


@_named("v_swap_b32", "v_swap_b16")
def swap(w: Writer, i: Instruction) -> None:
    a, b = i.destinations[0], i.destinations[1]
    x, y = w.value(a), w.value(b)
    w.result(i, a, y)
    w.result(i, b, x)


@_named("v_mov_b64")
def mov64(w: Writer, i: Instruction) -> None:
    w.result(i, i.destinations[0], w.value(i.sources[0]))
