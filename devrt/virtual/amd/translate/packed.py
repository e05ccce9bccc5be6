"""Packed 16-bit arithmetic, mixed precision and dot products. Sources as in vector.py."""

from __future__ import annotations

from collections.abc import Callable

from devrt.virtual.amd.isa.instruction import Instruction, Operand
from devrt.virtual.amd.translate import convert
from devrt.virtual.amd.translate.writer import NotTranslated, Rule, Writer

NAMED: dict[str, Rule] = {}
Single = Callable[..., str]


def _fma16(w: Writer, type: str, a: str, b: str, c: str) -> str:
    wide, narrow = w.vec("double"), w.vec("half")
    x, y, z = (w.op(f"fpext {narrow} {v} to {wide}") for v in (a, b, c))
    return w.op(f"fptrunc {wide} {w.intrinsic('fma', 'f64', x, y, z)} to {narrow}")


def _op(name: str) -> Single:
    return lambda w, type, a, b: w.op(f"{name} {w.vtype(type)} {a}, {b}")


def _call(name: str) -> Single:
    return lambda w, type, *a: w.intrinsic(name, type, *a)


def _shift(name: str) -> Single:
    def run(w: Writer, type: str, a: str, b: str) -> str:
        t = w.vtype(type)
        return w.op(f"{name} {t} {b}, {w.op(f'and {t} {a}, splat (i16 15)')}")
    return run


def _mad(w: Writer, type: str, a: str, b: str, c: str) -> str:
    t = w.vtype(type)
    return w.op(f"add {t} {w.op(f'mul {t} {a}, {b}')}, {c}")


_PAIRS: dict[str, Single] = {
    "v_pk_add_f16": _op("fadd"), "v_pk_mul_f16": _op("fmul"), "v_pk_fma_f16": _fma16,
    "v_pk_min_f16": _call("minimumnum"), "v_pk_max_f16": _call("maximumnum"), "v_pk_min_num_f16": _call("minimumnum"),
    "v_pk_max_num_f16": _call("maximumnum"), "v_pk_minimum_f16": _call("minimum"), "v_pk_maximum_f16": _call("maximum"),
    "v_pk_add_u16": _op("add"), "v_pk_add_i16": _op("add"), "v_pk_sub_u16": _op("sub"), "v_pk_sub_i16": _op("sub"),
    "v_pk_mul_lo_u16": _op("mul"), "v_pk_mad_u16": _mad, "v_pk_mad_i16": _mad, "v_pk_min_i16": _call("smin"),
    "v_pk_max_i16": _call("smax"), "v_pk_min_u16": _call("umin"), "v_pk_max_u16": _call("umax"),
    "v_pk_lshlrev_b16": _shift("shl"), "v_pk_lshrrev_b16": _shift("lshr"), "v_pk_ashrrev_i16": _shift("ashr"),
}


def _packed(compute: Single) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        out = i.destinations[0]
        type = out.type[:-2]
        pairs = [w.halves(o) for o in i.sources]
        if i.clamp and type != "f16":
            raise NotTranslated(f"{i.mnemonic} with clamp")
        low, high = (compute(w, type, *(p[n] for p in pairs)) for n in (0, 1))
        if type == "f16":
            low, high = w.scaled(i, low, type), w.scaled(i, high, type)
        w.set_packed(out, low, high, type)
    return run


NAMED |= {name: _packed(compute) for name, compute in _PAIRS.items()}


def _pair32(name: str) -> Rule:
    """CDNA's pairs of float32: op_sel picks the register of each half."""
    def run(w: Writer, i: Instruction) -> None:
        out = i.destinations[0]
        results = []
        for half in (0, 1):
            values = []
            for o in i.sources:
                which, neg = (o.half, o.neg) if half == 0 else (o.half_hi, o.neg_hi)
                raw = w.dword(o, which if o.kind in ("vgpr", "acc") or o.dwords == 2 and not o.constant else 0)
                values.append(w.modified(w.cast(raw, w.vec("i32"), w.vec("float")), "f32", neg, False))
            if name == "mov":
                results.append(values[half])
            else:
                results.append(w.intrinsic("fma", "f32", *values) if name == "fma" else
                               w.op(f"{name} {w.vec('float')} {values[0]}, {values[1]}"))
        for half, value in enumerate(results):
            w.set_v(w.vcode(out) + half, w.cast(w.scaled(i, value, "f32"), w.vec("float"), w.vec("i32")))
    return run


NAMED |= {"v_pk_fma_f32": _pair32("fma"), "v_pk_mul_f32": _pair32("fmul"), "v_pk_add_f32": _pair32("fadd"),
          "v_pk_mov_b32": _pair32("mov")}


def _mix(target: str) -> Rule:
    """v_fma_mix: each operand an f32 or a half; the result an f32, or a half of the destination."""
    def run(w: Writer, i: Instruction) -> None:
        out = i.destinations[0]
        a, b, c = (w.mixed(o) for o in [o for o in i.sources if not o.dst][:3])
        r = w.intrinsic("fma", "f32", a, b, c)
        if target == "f32":
            w.result(i, out, r, "f32")
            return
        half = w.scaled(i, convert.to_float(w, r, "f32", "f16"), "f16")
        raw = w.cast(half, w.vec("half"), w.vec("i16"))
        t = w.vec("i32")
        wide = w.op(f"zext {w.vec('i16')} {raw} to {t}")
        n, high = w.vcode(out), target == "hi"
        kept = w.op(f"and {t} {w.v(n)}, splat (i32 {65535 if high else -65536})")
        w.set_v(n, w.op(f"or {t} {kept}, {w.op(f'shl {t} {wide}, splat (i32 16)') if high else wide}"))
    return run


NAMED |= dict.fromkeys(("v_fma_mix_f32", "v_mad_mix_f32"), _mix("f32"))
NAMED |= dict.fromkeys(("v_fma_mixlo_f16", "v_mad_mixlo_f16"), _mix("lo"))
NAMED |= dict.fromkeys(("v_fma_mixhi_f16", "v_mad_mixhi_f16"), _mix("hi"))


def _wide(w: Writer, value: str, type: str) -> str:
    """A half or bfloat16 as float32."""
    if type == "f16":
        return w.op(f"fpext {w.vec('half')} {value} to {w.vec('float')}")
    t = w.vec("i32")
    extended = w.op(f"zext {w.vec('i16')} {value} to {t}")
    return w.op(f"bitcast {t} {w.op(f'shl {t} {extended}, splat (i32 16)')} to {w.vec('float')}")


def _with_sum(i: Instruction) -> tuple[Operand, Operand, Operand]:
    """The factors and what is added: the third source, or the destination."""
    a, b, *rest = (o for o in i.sources if not o.dst)
    return a, b, rest[0] if rest else i.destinations[0]


def _dot2(w: Writer, i: Instruction) -> None:
    """c + a.lo * b.lo + a.hi * b.hi in float32."""
    out = i.destinations[0]
    a, b, add = _with_sum(i)
    type = a.type[:-2]
    f = w.vec("float")
    pairs = list(zip(w.halves(a), w.halves(b), strict=True))
    total = w.cast(w.dword(add), w.vec("i32"), f)
    if add.neg or add.abs:
        total = w.modified(total, "f32", add.neg, add.abs)
    for x, y in pairs:
        total = w.intrinsic("fma", "f32", _wide(w, x, type), _wide(w, y, type), total)
    w.result(i, out, total, "f32")


NAMED |= dict.fromkeys(("v_dot2_f32_f16", "v_dot2_f32_bf16", "v_dot2acc_f32_f16", "v_dot2c_f32_f16"), _dot2)


def _saturated(w: Writer, total: str, signed: bool) -> str:
    """64 bits as the nearest 32-bit integer."""
    low, high = (-(1 << 31), (1 << 31) - 1) if signed else (0, (1 << 32) - 1)
    total = w.intrinsic("smin", "i64", w.intrinsic("smax", "i64", total, f"splat (i64 {low})"), f"splat (i64 {high})")
    return w.op(f"trunc {w.vec('i64')} {total} to {w.vec('i32')}")


def _dot_bytes(count: int) -> Rule:
    """c + the products of bytes or nibbles; neg on RDNA says that an operand is signed."""
    def run(w: Writer, i: Instruction) -> None:
        a, b, add = _with_sum(i)
        t, size = w.vec("i32"), 32 // count
        signs = [o.neg if "iu" in i.mnemonic else not i.mnemonic.endswith(f"u{size}") for o in (a, b)]
        wide = w.vec("i64")
        total, ext = w.dword(add), "sext" if i.destinations[0].type == "i32" else "zext"
        if i.clamp:
            total = w.op(f"{ext} {t} {total} to {wide}")
        x, y = w.dword(a), w.dword(b)
        for n in range(count):
            parts = []
            for value, signed in ((x, signs[0]), (y, signs[1])):
                up = w.op(f"shl {t} {value}, splat (i32 {32 - size * (n + 1)})")
                parts.append(w.op(f"{'ashr' if signed else 'lshr'} {t} {up}, splat (i32 {32 - size})"))
            product = w.op(f"mul {t} {parts[0]}, {parts[1]}")
            if i.clamp:
                total = w.op(f"add {wide} {total}, {w.op(f'{ext} {t} {product} to {wide}')}")
            else:
                total = w.op(f"add {t} {total}, {product}")
        if i.clamp:
            total = _saturated(w, total, ext == "sext")
        w.set_v(w.vcode(i.destinations[0]), total)
    return run


NAMED |= dict.fromkeys(("v_dot4_i32_i8", "v_dot4_u32_u8", "v_dot4_i32_iu8", "v_dot4c_i32_i8"), _dot_bytes(4))
NAMED |= dict.fromkeys(("v_dot8_i32_i4", "v_dot8_u32_u4", "v_dot8_i32_iu4", "v_dot8c_i32_i4"), _dot_bytes(8))
