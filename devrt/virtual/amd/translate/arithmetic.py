"""What each stem of a vector instruction computes from the values of its sources: one line an operation in the tables below.

Sources as in vector.py.
"""

from __future__ import annotations

from collections.abc import Callable

from devrt.virtual.amd.isa.opcodes import bits
from devrt.virtual.amd.translate.writer import NotTranslated, Writer

Values = Callable[..., str]


def _op(name: str, swap: bool = False) -> Values:
    def run(w: Writer, type: str, a: str, b: str) -> str:
        return w.op(f"{name} {w.vtype(type)} {b if swap else a}, {a if swap else b}")
    return run


def _call(name: str) -> Values:
    return lambda w, type, *a: w.intrinsic(name, type, *a)


def fma(w: Writer, type: str, a: str, b: str, c: str) -> str:
    if type != "f16":
        return w.intrinsic("fma", type, a, b, c)
    wide, narrow = w.vec("double"), w.vec("half")  # exact in float64 wherever the half's rounding could tell
    x, y, z = (w.op(f"fpext {narrow} {v} to {wide}") for v in (a, b, c))
    return w.op(f"fptrunc {wide} {w.intrinsic('fma', 'f64', x, y, z)} to {narrow}")


def _three(name: str, other: str) -> Values:
    def run(w: Writer, type: str, a: str, b: str, c: str) -> str:
        first = w.intrinsic(name, type, a, b)
        return w.intrinsic(other, type, first, c)
    return run


def _median(low: str, high: str) -> Values:
    def run(w: Writer, type: str, a: str, b: str, c: str) -> str:
        return w.intrinsic(high, type, w.intrinsic(low, type, a, b),
                           w.intrinsic(low, type, w.intrinsic(high, type, a, b), c))
    return run


def _by_bits(type: str) -> int:
    return bits(type) - 1


def _shift(name: str, reverse: bool) -> Values:
    """The amount is taken modulo the width."""
    def run(w: Writer, type: str, a: str, b: str) -> str:
        amount, value = (a, b) if reverse else (b, a)
        t = w.vtype(type)
        if bits(type) == 64:  # the amount is 32 bits wide
            amount = w.op(f"zext {w.vec('i32')} {amount} to {t}")
        limited = w.op(f"and {t} {amount}, {w.const(type, _by_bits(type))}")
        return w.op(f"{name} {t} {value}, {limited}")
    return run


def _mul24(signed: bool, high: bool) -> Values:
    def run(w: Writer, type: str, a: str, b: str) -> str:
        t, wide = w.vec("i32"), w.vec("i64")
        parts = []
        for v in (a, b):
            up = w.op(f"shl {t} {v}, splat (i32 8)")
            parts.append(w.op(f"{'ashr' if signed else 'lshr'} {t} {up}, splat (i32 8)"))
        ext = "sext" if signed else "zext"
        x, y = (w.op(f"{ext} {t} {v} to {wide}") for v in parts)
        product = w.op(f"mul {wide} {x}, {y}")
        if high:
            product = w.op(f"lshr {wide} {product}, splat (i64 32)")
        return w.op(f"trunc {wide} {product} to {t}")
    return run


def _mad24(signed: bool) -> Values:
    def run(w: Writer, type: str, a: str, b: str, c: str) -> str:
        return w.op(f"add {w.vec('i32')} {_mul24(signed, False)(w, type, a, b)}, {c}")
    return run


def _mad(w: Writer, type: str, a: str, b: str, c: str) -> str:
    return w.op(f"add {w.vtype(type)} {w.op(f'mul {w.vtype(type)} {a}, {b}')}, {c}")


def mad_wide(signed: bool) -> Values:
    """32 bits of a * b + c with 16-bit factors."""
    def run(w: Writer, type: str, a: str, b: str, c: str) -> str:
        t, ext = w.vec("i32"), "sext" if signed else "zext"
        x, y = (w.op(f"{ext} {w.vec('i16')} {v} to {t}") for v in (a, b))
        return w.op(f"add {t} {w.op(f'mul {t} {x}, {y}')}, {c}")
    return run


def _mulhi(signed: bool) -> Values:
    def run(w: Writer, type: str, a: str, b: str) -> str:
        t, wide, ext = w.vec("i32"), w.vec("i64"), "sext" if signed else "zext"
        product = w.op(f"mul {wide} {w.op(f'{ext} {t} {a} to {wide}')}, {w.op(f'{ext} {t} {b} to {wide}')}")
        return w.op(f"trunc {wide} {w.op(f'lshr {wide} {product}, splat (i64 32)')} to {t}")
    return run


def _chain(first: str, second: str, *, shift_first: bool = False, shift_second: bool = False) -> Values:
    """(a first b) second c, as v_lshl_add, v_add_lshl, v_xad, v_and_or .. name it."""
    def run(w: Writer, type: str, a: str, b: str, c: str) -> str:
        t = w.vec("i32")
        b = w.op(f"and {t} {b}, splat (i32 31)") if shift_first else b
        c = w.op(f"and {t} {c}, splat (i32 31)") if shift_second else c
        return w.op(f"{second} {t} {w.op(f'{first} {t} {a}, {b}')}, {c}")
    return run


def _bfe(signed: bool) -> Values:
    def run(w: Writer, type: str, a: str, b: str, c: str) -> str:
        t = w.vec("i32")
        offset, width = w.op(f"and {t} {b}, splat (i32 31)"), w.op(f"and {t} {c}, splat (i32 31)")
        moved = w.op(f"{'ashr' if signed else 'lshr'} {t} {a}, {offset}")
        free = w.op(f"and {t} {w.op(f'sub {t} splat (i32 32), {width}')}, splat (i32 31)")
        cut = w.op(f"{'ashr' if signed else 'lshr'} {t} {w.op(f'shl {t} {moved}, {free}')}, {free}")
        empty = w.op(f"icmp eq {t} {width}, zeroinitializer")
        return w.op(f"select {w.mask} {empty}, {t} zeroinitializer, {t} {cut}")
    return run


def _bfi(w: Writer, type: str, a: str, b: str, c: str) -> str:
    t = w.vec("i32")
    inverse = w.op(f"xor {t} {a}, splat (i32 -1)")
    return w.op(f"or {t} {w.op(f'and {t} {a}, {b}')}, {w.op(f'and {t} {inverse}, {c}')}")


def _bfm(w: Writer, type: str, a: str, b: str) -> str:
    t = w.vec("i32")
    width, offset = (w.op(f"and {t} {x}, splat (i32 31)") for x in (a, b))
    ones = w.op(f"sub {t} {w.op(f'shl {t} splat (i32 1), {width}')}, splat (i32 1)")
    return w.op(f"shl {t} {ones}, {offset}")


def _joined(w: Writer, high: str, low: str) -> str:
    """Two dwords as 64 bits."""
    t, wide = w.vec("i32"), w.vec("i64")
    top = w.op(f"shl {wide} {w.op(f'zext {t} {high} to {wide}')}, splat (i64 32)")
    return w.op(f"or {wide} {w.op(f'zext {t} {low} to {wide}')}, {top}")


def _moved(w: Writer, both: str, amount: str) -> str:
    """The low dword of 64 bits moved right by i32 amounts."""
    t, wide = w.vec("i32"), w.vec("i64")
    far = w.op(f"zext {t} {amount} to {wide}")
    return w.op(f"trunc {wide} {w.op(f'lshr {wide} {both}, {far}')} to {t}")


def _align(unit: int) -> Values:
    """The low 32 bits of {a, b} moved right by c units."""
    def run(w: Writer, type: str, a: str, b: str, c: str) -> str:
        t = w.vec("i32")
        amount = w.op(f"and {t} {wide16(w, c)}, splat (i32 {31 if unit == 1 else 3})")
        return _moved(w, _joined(w, a, b), w.op(f"mul {t} {amount}, splat (i32 {unit})"))
    return run


def wide16(w: Writer, value: str) -> str:
    return w.op(f"zext {w.vec('i16')} {value} to {w.vec('i32')}")


def _perm(w: Writer, type: str, a: str, b: str, c: str) -> str:
    """v_perm_b32: each byte of c names a byte of {a, b}; 8 to 11 the sign of bytes 1, 3, 5, 7; 12 gives 0, more gives 255."""
    t = w.vec("i32")
    both, total = _joined(w, a, b), "zeroinitializer"
    for n in range(4):
        select = w.op(f"and {t} {w.op(f'lshr {t} {c}, splat (i32 {8 * n})')}, splat (i32 255)")
        place = w.op(f"shl {t} {w.op(f'and {t} {select}, splat (i32 7)')}, splat (i32 3)")
        byte = w.op(f"and {t} {_moved(w, both, place)}, splat (i32 255)")
        quarter = w.op(f"shl {t} {w.op(f'and {t} {select}, splat (i32 3)')}, splat (i32 4)")
        sign = w.op(f"and {t} {_moved(w, both, w.op(f'add {t} {quarter}, splat (i32 15)'))}, splat (i32 1)")
        signs = w.op(f"mul {t} {sign}, splat (i32 255)")
        byte = w.op(f"select {w.mask} {w.op(f'icmp uge {t} {select}, splat (i32 8)')}, {t} {signs}, {t} {byte}")
        byte = w.op(f"select {w.mask} {w.op(f'icmp eq {t} {select}, splat (i32 12)')}, {t} zeroinitializer, {t} {byte}")
        byte = w.op(f"select {w.mask} {w.op(f'icmp ugt {t} {select}, splat (i32 12)')}, {t} splat (i32 255), {t} {byte}")
        total = w.op(f"or {t} {total}, {w.op(f'shl {t} {byte}, splat (i32 {8 * n})')}")
    return total


def _not(w: Writer, type: str, a: str) -> str:
    return w.op(f"xor {w.vtype(type)} {a}, {w.const(type, -1)}")


def _xnor(w: Writer, type: str, a: str, b: str) -> str:
    return _not(w, type, w.op(f"xor {w.vtype(type)} {a}, {b}"))


def count(name: str) -> Values:
    """Leading or trailing zeros; -1 for 0."""
    def run(w: Writer, type: str, a: str) -> str:
        t = w.vec("i32")
        found = w.call(t, f"llvm.{name}.v{w.wave}i32", (t, a), ("i1 immarg", "false"))
        return w.op(f"select {w.mask} {w.op(f'icmp eq {t} {a}, zeroinitializer')}, {t} splat (i32 -1), {t} {found}")
    return run


def _bcnt(w: Writer, type: str, a: str, b: str) -> str:
    return w.op(f"add {w.vec('i32')} {w.intrinsic('ctpop', 'u32', a)}, {b}")


def sign_bits(w: Writer, type: str, a: str) -> str:
    """How many of the highest bits are alike; -1 where all are."""
    t = w.vec("i32")
    return count("ctlz")(w, type, w.op(f"xor {t} {a}, {w.op(f'ashr {t} {a}, splat (i32 31)')}"))


def _saturating(name: str, swap: bool = False) -> Values:
    def run(w: Writer, type: str, a: str, b: str) -> str:
        return w.intrinsic(f"{'s' if type.startswith('i') else 'u'}{name}.sat", type, b if swap else a, a if swap else b)
    return run


def _same(w: Writer, type: str, a: str) -> str: return a


def _inverse(w: Writer, type: str, a: str) -> str: return w.op(f"fdiv {w.vtype(type)} {w.const(type, 1.0)}, {a}")


def _rsq(w: Writer, type: str, a: str) -> str: return _inverse(w, type, w.intrinsic("sqrt", type, a))


def _fract(w: Writer, type: str, a: str) -> str:
    """x - floor(x), below 1."""
    t = w.vtype(type)
    below = {"f16": 0.99951171875, "f32": 0.999999940395355224609375, "f64": 0.99999999999999988897769753748}[type]
    return w.intrinsic("minimumnum", type, w.op(f"fsub {t} {a}, {w.intrinsic('floor', type, a)}"), w.const(type, below))


def _library(index: int, before: float = 1.0) -> Values:
    """A C function lane by lane; hardware's sine and cosine take turns, not radians."""
    def run(w: Writer, type: str, a: str) -> str:
        if type == "f64":
            raise NotTranslated("a float64 logarithm")
        f = w.vec("float")
        x = w.op(f"fpext {w.vec('half')} {a} to {f}") if type == "f16" else a
        x = w.op(f"fmul {f} {x}, {w.const('f32', before)}") if before != 1.0 else x
        r = w.call(f, "library", ("ptr", "%c"), ("i64", str(index)), (f, x), declare=False)
        return w.op(f"fptrunc {f} {r} to {w.vec('half')}") if type == "f16" else r
    return run


def _legacy(compute: Values) -> Values:
    """Zero times anything is zero."""
    def run(w: Writer, type: str, a: str, b: str, *c: str) -> str:
        t = w.vtype(type)
        zero = w.op(f"or {w.mask} {w.op(f'fcmp oeq {t} {a}, zeroinitializer')}, {w.op(f'fcmp oeq {t} {b}, zeroinitializer')}")
        otherwise = c[0] if c else "zeroinitializer"
        return w.op(f"select {w.mask} {zero}, {t} {otherwise}, {t} {compute(w, type, a, b, *c)}")
    return run


FLOAT: dict[str, Values] = {
    "v_add": _op("fadd"), "v_sub": _op("fsub"), "v_subrev": _op("fsub", swap=True), "v_mul": _op("fmul"),
    "v_min": _call("minimumnum"), "v_max": _call("maximumnum"), "v_min_num": _call("minimumnum"),
    "v_max_num": _call("maximumnum"),
    "v_minimum": _call("minimum"), "v_maximum": _call("maximum"), "v_fma": fma,
    "v_min3": _three("minimumnum", "minimumnum"), "v_max3": _three("maximumnum", "maximumnum"),
    "v_min3_num": _three("minimumnum", "minimumnum"), "v_max3_num": _three("maximumnum", "maximumnum"),
    "v_maxmin": _three("maximumnum", "minimumnum"), "v_minmax": _three("minimumnum", "maximumnum"),
    "v_maxmin_num": _three("maximumnum", "minimumnum"), "v_minmax_num": _three("minimumnum", "maximumnum"),
    "v_minimum3": _three("minimum", "minimum"), "v_maximum3": _three("maximum", "maximum"),
    "v_minimummaximum": _three("minimum", "maximum"), "v_maximumminimum": _three("maximum", "minimum"),
    "v_med3": _median("minimumnum", "maximumnum"), "v_med3_num": _median("minimumnum", "maximumnum"),
    "v_rcp": _inverse, "v_rcp_iflag": _inverse, "v_rsq": _rsq, "v_sqrt": _call("sqrt"), "v_fract": _fract,
    "v_trunc": _call("trunc"), "v_ceil": _call("ceil"), "v_floor": _call("floor"), "v_rndne": _call("roundeven"),
    "v_exp": _library(0), "v_log": _library(1), "v_sin": _library(2, 6.283185307179586), "v_cos": _library(3, 6.283185307179586),
    "v_mul_legacy": _legacy(_op("fmul")), "v_mul_dx9_zero": _legacy(_op("fmul")), "v_fma_legacy": _legacy(fma),
    "v_fma_dx9_zero": _legacy(fma),
}
INTEGER: dict[str, Values] = {
    "v_add_nc": _op("add"), "v_add": _op("add"), "v_sub_nc": _op("sub"), "v_sub": _op("sub"),
    "v_subrev_nc": _op("sub", swap=True), "v_subrev": _op("sub", swap=True), "v_mul_lo": _op("mul"),
    "v_mul_i32": _mul24(True, False), "v_mul_u32": _mul24(False, False), "v_mul_hi_i32": _mul24(True, True),
    "v_mul_hi_u32": _mul24(False, True), "v_mad_i32": _mad24(True), "v_mad_u32": _mad24(False), "v_mad": _mad,
    "v_and": _op("and"), "v_or": _op("or"), "v_xor": _op("xor"), "v_xnor": _xnor, "v_not": _not,
    "v_lshlrev": _shift("shl", True), "v_lshrrev": _shift("lshr", True), "v_ashrrev": _shift("ashr", True),
    "v_bfm": _bfm, "v_bfi": _bfi, "v_perm": _perm, "v_alignbit": _align(1), "v_alignbyte": _align(8),
    "v_add3": _chain("add", "add"), "v_or3": _chain("or", "or"), "v_xor3": _chain("xor", "xor"), "v_and_or": _chain("and", "or"),
    "v_xad": _chain("xor", "add"), "v_lshl_add": _chain("shl", "add", shift_first=True),
    "v_lshl_or": _chain("shl", "or", shift_first=True), "v_add_lshl": _chain("add", "shl", shift_second=True),
    "v_bcnt_u32": _bcnt, "v_bfrev": _call("bitreverse"), "v_mov": _same,
}
SATURATING: dict[str, Values] = {
    "v_add": _saturating("add"), "v_add_nc": _saturating("add"), "v_sub": _saturating("sub"), "v_sub_nc": _saturating("sub"),
    "v_subrev": _saturating("sub", swap=True), "v_subrev_nc": _saturating("sub", swap=True),
}
# Where the type at the end of the name decides between signed and unsigned, or the name is irregular.
SIGNED: dict[str, tuple[Values, Values]] = {
    "v_min": (_call("smin"), _call("umin")), "v_max": (_call("smax"), _call("umax")), "v_bfe": (_bfe(True), _bfe(False)),
    "v_mul_hi": (_mulhi(True), _mulhi(False)), "v_min3": (_three("smin", "smin"), _three("umin", "umin")),
    "v_max3": (_three("smax", "smax"), _three("umax", "umax")), "v_med3": (_median("smin", "smax"), _median("umin", "umax")),
    "v_maxmin": (_three("smax", "smin"), _three("umax", "umin")), "v_minmax": (_three("smin", "smax"), _three("umin", "umax")),
}
