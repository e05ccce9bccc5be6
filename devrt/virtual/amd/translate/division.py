"""The three instructions that make a division correctly rounded: scale, fused steps, fix-up.

Source: "RDNA 3 ISA", V_DIV_SCALE, V_DIV_FMAS, V_DIV_FIXUP, whose pseudo-code gives the thresholds.
"""

from __future__ import annotations

from collections.abc import Callable

from devrt.virtual.amd.isa.instruction import Instruction
from devrt.virtual.amd.isa.opcodes import bits
from devrt.virtual.amd.translate import convert
from devrt.virtual.amd.translate.writer import Rule, Writer

NAMED: dict[str, Rule] = {}
# far: exponents so far apart that the quotient nears the largest number; scale: exponent of the scaling; low: a small numerator's
# biased exponent; under: exponents so far apart that the quotient is below every number.
_LIMITS = {"f32": (96, 64, 23, -150, 255, 2.0**-126), "f64": (768, 128, 53, -1075, 2047, 2.0**-1022)}


def _named(*names: str) -> Callable[[Rule], Rule]:
    def put(r: Rule) -> Rule:
        NAMED.update(dict.fromkeys(names, r))
        return r
    return put


class _Lanes:
    """Short names for the masks of one instruction."""

    def __init__(self, w: Writer, type: str) -> None:
        self.w, self.type, self.t, self.i32 = w, type, w.vtype(type), w.vec("i32")

    def exponent(self, value: str) -> str:
        """The biased exponent, i32."""
        w, width = self.w, bits(self.type)
        it = w.vec(f"i{width}")
        fraction, ones = (23, 255) if width == 32 else (52, 2047)
        raw = w.op(f"lshr {it} {w.cast(value, self.t, it)}, splat (i{width} {fraction})")
        field = w.op(f"and {it} {raw}, splat (i{width} {ones})")
        return field if width == 32 else w.op(f"trunc {it} {field} to {self.i32}")

    def zero(self, v: str) -> str: return self.w.op(f"fcmp oeq {self.t} {v}, zeroinitializer")
    def nan(self, v: str) -> str: return self.w.op(f"fcmp uno {self.t} {v}, {v}")
    def same(self, a: str, b: str) -> str: return self.w.op(f"fcmp oeq {self.t} {a}, {b}")
    def either(self, a: str, b: str) -> str: return self.w.op(f"or {self.w.mask} {a}, {b}")
    def both(self, a: str, b: str) -> str: return self.w.op(f"and {self.w.mask} {a}, {b}")
    def pick(self, c: str, yes: str, no: str) -> str: return self.w.op(f"select {self.w.mask} {c}, {self.t} {yes}, {self.t} {no}")

    def infinite(self, v: str) -> str:
        return self.same(self.w.intrinsic("fabs", self.type, v), self.w.const(self.type, float("inf")))

    def denormal(self, v: str) -> str:
        size = self.w.intrinsic("fabs", self.type, v)
        least = self.w.op(f"fcmp olt {self.t} {size}, {self.w.const(self.type, _LIMITS[self.type][5])}")
        return self.both(least, self.w.op(f"fcmp one {self.t} {v}, zeroinitializer"))


@_named("v_div_scale_f32", "v_div_scale_f64")
def div_scale(w: Writer, i: Instruction) -> None:
    out, flag = i.destinations
    x, y, z = (w.value(o) for o in i.sources)
    type = out.type
    k = _Lanes(w, type)
    far, step, low, *_ = _LIMITS[type]
    apart = w.op(f"sub {k.i32} {k.exponent(z)}, {k.exponent(y)}")
    up, down = (convert.scale(w, x, f"splat (i32 {n})", type) for n in (step, -step))
    one = w.const(type, 1.0)
    # The inverse is taken in float64, where that of a float32 is never denormal.
    tiny_inverse = k.denormal(w.op(f"fdiv {k.t} {one}, {y}")) if type == "f64" else "zeroinitializer"
    tiny_quotient = k.denormal(w.op(f"fdiv {k.t} {z}, {y}"))
    of_y = k.pick(k.same(x, y), up, x)
    of_z = k.pick(k.same(x, z), up, x)
    cases = [
        (k.either(k.zero(z), k.zero(y)), w.const(type, float("nan")), False),
        (w.op(f"icmp sge {k.i32} {apart}, splat (i32 {far})"), of_y, True),
        (k.denormal(y), up, False),
        (k.both(tiny_inverse, tiny_quotient), k.pick(k.same(x, y), down, x), True),  # the manual says up, which overflows
        (tiny_inverse, down, False),
        (tiny_quotient, of_z, True),
        (w.op(f"icmp sle {k.i32} {k.exponent(z)}, splat (i32 {low})"), up, False),
    ]
    value, scaled = x, "zeroinitializer"
    for condition, then, raised in reversed(cases):
        value = k.pick(condition, then, value)
        flagged = "splat (i1 true)" if raised else "zeroinitializer"
        scaled = w.op(f"select {w.mask} {condition}, {w.mask} {flagged}, {w.mask} {scaled}")
    w.result(i, out, value)
    w.set_mask(flag, scaled)


@_named("v_div_fmas_f32", "v_div_fmas_f64")
def div_fmas(w: Writer, i: Instruction) -> None:
    out = i.destinations[0]
    a, b, c = (w.value(o) for o in i.sources[:3])
    t = w.vtype(out.type)
    k = _Lanes(w, out.type)
    r = w.intrinsic("fma", out.type, a, b, c)
    step, bias = _LIMITS[out.type][1], 127 if out.type == "f32" else 1023
    # A scaled denominator made the quotient small, though still above 1; a scaled numerator made it large, though below.
    large = w.op(f"icmp sgt {k.i32} {k.exponent(c)}, splat (i32 {bias})")
    factor = k.pick(large, w.const(out.type, 2.0**step), w.const(out.type, 2.0**-step))
    scaled = _scaled_once(w, out.type, (a, b, c), r, factor)
    raised = w.op(f"bitcast {w.iw} {w.vcc()} to {w.mask}")
    w.result(i, out, w.op(f"select {w.mask} {raised}, {t} {scaled}, {t} {r}"))


def _scaled_once(w: Writer, type: str, terms: tuple[str, str, str], r: str, factor: str) -> str:
    """factor * fma(terms), rounded once: r is the rounded fma.

    A float32 sum is taken in float64, which holds what decides a tie: the correction of a quotient is above 2^-48 of it. A
    float64 one whose product is denormal and fell on a tie goes by the error of the sum.
    """
    d = w.vec("double")
    if type == "f32":
        f = w.vec("float")
        x, y, z, by = (w.op(f"fpext {f} {v} to {d}") for v in (*terms, factor))
        total = w.intrinsic("fma", "f64", x, y, z)
        return w.op(f"fptrunc {d} {w.op(f'fmul {d} {total}, {by}')} to {f}")
    a, b, c = terms
    plain = w.op(f"fmul {d} {r}, {factor}")
    error = w.intrinsic("fma", "f64", a, b, w.op(f"fsub {d} {c}, {r}"))
    lost = _lost(w, r, plain)
    tie = w.op(f"fcmp oeq {d} {w.intrinsic('fabs', 'f64', lost)}, {w.const('f64', 2.0**-947)}")
    side = w.intrinsic("copysign", "f64", w.const("f64", 1.0), lost)
    onward = w.op(f"fcmp ogt {d} {w.op(f'fmul {d} {error}, {side}')}, zeroinitializer")
    step = w.intrinsic("copysign", "f64", w.const("f64", 2.0**-1074), lost)
    beyond = w.op(f"fadd {d} {plain}, {step}")
    return w.op(f"select {w.mask} {w.op(f'and {w.mask} {tie}, {onward}')}, {d} {beyond}, {d} {plain}")


def _lost(w: Writer, r: str, plain: str) -> str:
    """What the scaling by 2^-128 rounded away, before it."""
    d = w.vec("double")
    back = w.op(f"fmul {d} {plain}, {w.const('f64', 2.0**128)}")
    return w.op(f"fsub {d} {r}, {back}")


@_named("v_div_fixup_f32", "v_div_fixup_f64", "v_div_fixup_f16")
def div_fixup(w: Writer, i: Instruction) -> None:
    out = i.destinations[0]
    q, y, z = (w.value(o) for o in i.sources)
    type = out.type
    k = _Lanes(w, type)
    width = bits(type)
    it = w.vec(f"i{width}")
    sign_bits = w.op(f"xor {it} {w.cast(y, k.t, it)}, {w.cast(z, k.t, it)}")
    negative = w.op(f"icmp slt {it} {sign_bits}, zeroinitializer")

    def signed(magnitude: str) -> str:
        return k.pick(negative, w.op(f"fneg {k.t} {magnitude}"), magnitude)
    infinity, zero = w.const(type, float("inf")), w.const(type, 0.0)
    nan = w.op(f"fneg {k.t} {w.const(type, float('nan'))}")
    cases = [(k.nan(z), z), (k.nan(y), y), (k.both(k.zero(y), k.zero(z)), nan), (k.both(k.infinite(y), k.infinite(z)), nan),
             (k.either(k.zero(y), k.infinite(z)), signed(infinity)), (k.either(k.infinite(y), k.zero(z)), signed(zero))]
    if type != "f16":
        _, _, _, under, top, _ = _LIMITS[type]
        apart = w.op(f"sub {k.i32} {k.exponent(z)}, {k.exponent(y)}")
        cases.append((w.op(f"icmp slt {k.i32} {apart}, splat (i32 {under})"), signed(zero)))
        # The manual says the denominator's exponent, which cannot be reached; a quotient that overflowed is no number by now.
        cases.append((w.op(f"icmp eq {k.i32} {k.exponent(q)}, splat (i32 {top})"), signed(infinity)))
    value = signed(w.intrinsic("fabs", type, q))
    for condition, then in reversed(cases):
        value = k.pick(condition, then, value)
    w.result(i, out, value)
