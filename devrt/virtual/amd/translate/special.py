"""Vector instructions with a shape of their own: sums of absolute differences, cube maps, the digits of 2/pi, accumulation
registers, multiply-add that rounds twice. Sources as in vector.py."""

from __future__ import annotations

from collections.abc import Callable

from devrt.virtual.amd.isa.instruction import Instruction
from devrt.virtual.amd.translate import convert
from devrt.virtual.amd.translate.writer import Rule, Writer

NAMED: dict[str, Rule] = {}


def _named(*names: str) -> Callable[[Rule], Rule]:
    def put(r: Rule) -> Rule:
        NAMED.update(dict.fromkeys(names, r))
        return r
    return put


@_named("v_accvgpr_read_b32", "v_accvgpr_write_b32", "v_accvgpr_mov_b32")
def move(w: Writer, i: Instruction) -> None:
    w.set_v(w.vcode(i.destinations[0]), w.dword(i.sources[0]))


# ---------------------------------------------------------------------------------------------------------------------
# Bytes


def _field(w: Writer, value: str, n: int, size: int) -> str:
    t = w.vec("i32")
    return w.op(f"and {t} {w.op(f'lshr {t} {value}, splat (i32 {size * n})')}, splat (i32 {(1 << size) - 1})")


def _difference(w: Writer, a: str, b: str) -> str:
    return w.op(f"sub {w.vec('i32')} {w.intrinsic('umax', 'u32', a, b)}, {w.intrinsic('umin', 'u32', a, b)}")


def _sad(size: int, masked: bool = False, high: bool = False) -> Rule:
    """c + the sum of |a - b| over fields; masked: where b's is not 0; high: the sum 16 bits up."""
    def run(w: Writer, i: Instruction) -> None:
        t = w.vec("i32")
        a, b, total = (w.dword(o) for o in i.sources)
        for n in range(32 // size):
            x, y = (_field(w, v, n, size) if size < 32 else v for v in (a, b))
            apart = _difference(w, x, y)
            if masked:
                empty = w.op(f"icmp eq {t} {y}, zeroinitializer")
                apart = w.op(f"select {w.mask} {empty}, {t} zeroinitializer, {t} {apart}")
            moved = w.op(f"shl {t} {apart}, splat (i32 16)") if high else apart
            total = w.intrinsic("uadd.sat", "u32", total, moved) if i.clamp else w.op(f"add {t} {total}, {moved}")
        w.set_v(w.vcode(i.destinations[0]), total)
    return run


NAMED |= {"v_sad_u8": _sad(8), "v_sad_u16": _sad(16), "v_sad_u32": _sad(32), "v_sad_hi_u8": _sad(8, high=True),
          "v_msad_u8": _sad(8, masked=True)}


@_named("v_lerp_u8")
def lerp(w: Writer, i: Instruction) -> None:
    """The mean of bytes, rounded up where c's lowest bit says so."""
    t = w.vec("i32")
    a, b, c = (w.dword(o) for o in i.sources)
    total = "zeroinitializer"
    for n in range(4):
        x, y, up = (_field(w, v, n, 8) for v in (a, b, c))
        both = w.op(f"add {t} {w.op(f'add {t} {x}, {y}')}, {w.op(f'and {t} {up}, splat (i32 1)')}")
        mean = w.op(f"lshr {t} {both}, splat (i32 1)")
        total = w.op(f"or {t} {total}, {w.op(f'shl {t} {mean}, splat (i32 {8 * n})')}")
    w.set_v(w.vcode(i.destinations[0]), total)


# ---------------------------------------------------------------------------------------------------------------------
# Normalised integers


def _normalised(signed: bool) -> Rule:
    """Two floats of -1 or 0 to 1 as 16-bit integers, rounded to the nearest; NaN gives 0."""
    low, most = (-1.0, 32767.0) if signed else (0.0, 65535.0)

    def run(w: Writer, i: Instruction) -> None:
        parts = []
        for o in i.sources:
            f = w.vtype("f32")
            x = convert.to_float(w, w.value(o), o.type, "f32")
            there = w.op(f"fcmp ord {f} {x}, {x}")
            x = w.intrinsic("maxnum", "f32", x, w.const("f32", low))
            x = w.intrinsic("minnum", "f32", x, w.const("f32", 1.0))
            x = w.intrinsic("roundeven", "f32", w.op(f"fmul {f} {x}, {w.const('f32', most)}"))
            whole = w.op(f"trunc {w.vec('i32')} {convert.to_int(w, x, 'f32', 'i32')} to {w.vec('i16')}")
            parts.append(w.op(f"select {w.mask} {there}, {w.vec('i16')} {whole}, {w.vec('i16')} zeroinitializer"))
        w.set_packed(i.destinations[0], parts[0], parts[1], "b16")
    return run


for _source in ("f16", "f32"):
    NAMED |= dict.fromkeys((f"v_cvt_pknorm_i16_{_source}", f"v_cvt_pk_norm_i16_{_source}"), _normalised(True))
    NAMED |= dict.fromkeys((f"v_cvt_pknorm_u16_{_source}", f"v_cvt_pk_norm_u16_{_source}"), _normalised(False))


# ---------------------------------------------------------------------------------------------------------------------
# Floats


def _flushed(w: Writer, value: str) -> str:
    """A float32 with denormals as zeros of the same sign."""
    f = w.vec("float")
    size = w.intrinsic("fabs", "f32", value)
    tiny = w.op(f"fcmp olt {f} {size}, {w.const('f32', 2.0**-126)}")
    zero = w.intrinsic("copysign", "f32", "zeroinitializer", value)
    return w.op(f"select {w.mask} {tiny}, {f} {zero}, {f} {value}")


@_named("v_mad_f32", "v_mac_f32", "v_madak_f32", "v_madmk_f32")
def mad(w: Writer, i: Instruction) -> None:
    """a * b + c, rounded twice, without denormals."""
    out = i.destinations[0]
    a, b, *more = (_flushed(w, w.value(o)) for o in i.sources if not o.dst)
    add = more[0] if more else _flushed(w, w.value(out))
    f = w.vec("float")
    product = _flushed(w, w.op(f"fmul {f} {a}, {b}"))
    w.result(i, out, _flushed(w, w.op(f"fadd {f} {product}, {add}")))


@_named("v_mad_f16", "v_mac_f16", "v_madak_f16", "v_madmk_f16", "v_mad_legacy_f16")
def mad16(w: Writer, i: Instruction) -> None:
    out = i.destinations[0]
    a, b, *more = (w.value(o) for o in i.sources if not o.dst)
    h = w.vec("half")
    w.result(i, out, w.op(f"fadd {h} {w.op(f'fmul {h} {a}, {b}')}, {more[0] if more else w.value(out)}"))


# The face of a cube that a direction meets, in this order where coordinates are as large as each other: z, y, x.
# (of a positive, of a negative major coordinate): signs and coordinates of s and t, the face's number.
_CUBE = {"z": (("+x", "-y", 4), ("-x", "-y", 5)), "y": (("+x", "+z", 2), ("+x", "-z", 3)),
         "x": (("-z", "-y", 0), ("+z", "-y", 1))}


def _cube(part: str) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        f = w.vec("float")
        values = dict(zip("xyz", (w.value(o) for o in i.sources), strict=True))
        sizes = {name: w.intrinsic("fabs", "f32", v) for name, v in values.items()}

        def of(axis: str, side: int) -> str:
            if part == "id":
                return w.const("f32", float(_CUBE[axis][side][2]))
            if part == "ma":
                return w.op(f"fmul {f} {values[axis]}, {w.const('f32', 2.0)}")
            signed = _CUBE[axis][side][0 if part == "sc" else 1]
            value = values[str(signed)[1]]
            return value if str(signed)[0] == "+" else w.op(f"fneg {f} {value}")

        def face(axis: str) -> str:
            below = w.op(f"fcmp olt {f} {values[axis]}, zeroinitializer")
            return w.op(f"select {w.mask} {below}, {f} {of(axis, 1)}, {f} {of(axis, 0)}")

        def largest(axis: str, *others: str) -> str:
            tests = [w.op(f"fcmp oge {f} {sizes[axis]}, {sizes[o]}") for o in others]
            return tests[0] if len(tests) == 1 else w.op(f"and {w.mask} {tests[0]}, {tests[1]}")
        r = w.op(f"select {w.mask} {largest('y', 'x')}, {f} {face('y')}, {f} {face('x')}")
        r = w.op(f"select {w.mask} {largest('z', 'x', 'y')}, {f} {face('z')}, {f} {r}")
        w.result(i, i.destinations[0], r)
    return run


NAMED |= {f"v_cube{part}_f32": _cube(part) for part in ("id", "sc", "tc", "ma")}


def _two_over_pi() -> int:
    """2/pi with 1201 binary digits behind the point, from Machin's formula."""
    one = 1 << 1300

    def arctan(n: int) -> int:
        total, term, k = 0, one // n, 1
        while term:
            total += term // k if k % 4 == 1 else -(term // k)
            term //= n * n
            k += 2
        return total
    pi = 4 * (4 * arctan(5) - arctan(239))
    return (2 * one * one // pi) >> 99


@_named("v_trig_preop_f64")
def trig_preop(w: Writer, i: Instruction) -> None:
    """53 binary digits of 2/pi for the reduction of large angles: from 53 * b on, more for large exponents of a."""
    t, wide, d = w.vec("i32"), w.vec("i64"), w.vec("double")
    a, b = i.sources
    digits, count = _two_over_pi() << 79, 60  # 1280 bits, and zeros
    words = [digits >> 64 * (19 - n) & (1 << 64) - 1 if n < 20 else 0 for n in range(count)]
    w.helpers["two_over_pi"] = (f"@two_over_pi = internal constant [{count} x i64] ["
                                + ", ".join(f"i64 {v - (1 << 64) if v >> 63 else v}" for v in words) + "]\n")
    exponent = w.op(f"and {wide} {w.op(f'lshr {wide} {w.qword(a)}, splat (i64 52)')}, splat (i64 2047)")
    e = w.op(f"trunc {wide} {exponent} to {t}")
    segment = w.op(f"mul {t} {w.op(f'and {t} {w.dword(b)}, splat (i32 31)')}, splat (i32 53)")
    more = w.intrinsic("usub.sat", "u32", e, "splat (i32 1077)")
    shift = w.op(f"add {t} {segment}, {more}")
    word = w.op(f"lshr {t} {shift}, splat (i32 6)")
    offset = w.op(f"zext {t} {w.op(f'and {t} {shift}, splat (i32 63)')} to {wide}")
    parts = []
    for k in (0, 1):
        place = w.op(f"add {t} {word}, splat (i32 {k})")
        p = w.op(f"getelementptr i64, ptr @two_over_pi, {t} {place}")
        parts.append(w.call(wide, f"llvm.masked.gather.v{w.wave}i64.v{w.wave}p0", (w.vec("ptr"), p), ("i32", "8"),
                            (w.mask, "splat (i1 true)"), (wide, "zeroinitializer")))
    window = w.intrinsic("fshl", "u64", parts[0], parts[1], offset)
    found = w.op(f"uitofp {wide} {w.op(f'lshr {wide} {window}, splat (i64 11)')} to {d}")
    scale = w.op(f"sub {t} splat (i32 -53), {shift}")
    large = w.op(f"icmp uge {t} {e}, splat (i32 1968)")
    scale = w.op(f"add {t} {scale}, {w.op(f'select {w.mask} {large}, {t} splat (i32 128), {t} zeroinitializer')}")
    w.result(i, i.destinations[0], convert.scale(w, found, scale, "f64"))
