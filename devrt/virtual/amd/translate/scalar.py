"""What scalar instructions compute: one value a wave, and SCC. Sources as in vector.py, chapters on scalar operations."""

from __future__ import annotations

from collections.abc import Callable

from devrt.virtual.amd.isa.instruction import Instruction, Operand
from devrt.virtual.amd.translate import hardware, scalar_float
from devrt.virtual.amd.translate.writer import NotTranslated, Rule, Writer

NAMED: dict[str, Rule] = {**scalar_float.NAMED, **hardware.NAMED}
_BITWISE = {"and": "and", "or": "or", "xor": "xor"}


def emit(w: Writer, i: Instruction) -> None:
    """Write one scalar instruction that neither branches nor touches memory."""
    rule = NAMED.get(i.mnemonic)
    if rule is None:
        raise NotTranslated(i.mnemonic)
    rule(w, i)


def _named(*names: str) -> Callable[[Rule], Rule]:
    def put(r: Rule) -> Rule:
        NAMED.update(dict.fromkeys(names, r))
        return r
    return put


def _nonzero(w: Writer, value: str, t: str) -> None:
    w.set_scc(w.op(f"icmp ne {t} {value}, 0"))


def _value(w: Writer, o: Operand, t: str) -> str:
    """An operand as i32 or i64."""
    return w.scalar64(o) if t == "i64" else w.scalar(o)


def _type(i: Instruction) -> str:
    return "i64" if i.destinations[0].dwords == 2 else "i32"


@_named("s_nop", "s_sleep", "s_clause", "s_delay_alu", "s_set_inst_prefetch_distance", "s_inst_prefetch", "s_waitcnt_depctr",
        "s_wait_alu", "s_setprio", "s_code_end", "s_ttracedata", "s_icache_inv", "s_dcache_inv", "s_dcache_wb", "s_gl1_inv",
        "s_wait_idle", "s_sendmsg", "s_incperflevel", "s_decperflevel", "s_version", "s_denorm_mode_none")
def nothing(w: Writer, i: Instruction) -> None:
    """Timing, caches and hints: memory operations here are done when they are issued."""


def _bitwise(name: str, invert_second: bool, invert: bool) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        t = _type(i)
        a, b = (_value(w, o, t) for o in i.sources)
        if invert_second:
            b = w.op(f"xor {t} {b}, -1")
        r = w.op(f"{name} {t} {a}, {b}")
        r = w.op(f"xor {t} {r}, -1") if invert else r
        w.set_scalar_of(i.destinations[0], r)
        _nonzero(w, r, t)
    return run


for _size in ("b32", "b64"):
    for _op in _BITWISE:
        NAMED[f"s_{_op}_{_size}"] = _bitwise(_op, False, False)
    NAMED |= {f"s_nand_{_size}": _bitwise("and", False, True), f"s_nor_{_size}": _bitwise("or", False, True),
              f"s_xnor_{_size}": _bitwise("xor", False, True)}
    for _op, _old in (("and", "andn2"), ("or", "orn2")):
        NAMED |= dict.fromkeys((f"s_{_op}_not1_{_size}", f"s_{_old}_{_size}"), _bitwise(_op, True, False))


def _saveexec(name: str, invert: str, invert_result: bool = False, keep: bool = True) -> Rule:
    """destination = EXEC; EXEC = source op EXEC, one of them inverted."""
    def run(w: Writer, i: Instruction) -> None:
        out = i.destinations[0]
        source = w.lane_bits(next(o for o in i.sources if o.kind != "exec" or not o.dst))
        old = w.exec()
        a, b = source, old
        if invert == "source":
            a = w.op(f"xor {w.iw} {a}, -1")
        elif invert == "exec":
            b = w.op(f"xor {w.iw} {b}, -1")
        r = w.op(f"{name} {w.iw} {a}, {b}")
        r = w.op(f"xor {w.iw} {r}, -1") if invert_result else r
        w.set_lane_bits(out, old if keep else r)
        w.line(f"store {w.iw} {r}, ptr %exec")
        _nonzero(w, r, w.iw)
    return run


for _size in ("b32", "b64"):
    for _op in _BITWISE:
        NAMED[f"s_{_op}_saveexec_{_size}"] = _saveexec(_op, "")
    NAMED |= {f"s_nand_saveexec_{_size}": _saveexec("and", "", True), f"s_nor_saveexec_{_size}": _saveexec("or", "", True),
              f"s_xnor_saveexec_{_size}": _saveexec("xor", "", True)}
    for _op, _new, _old in (("and", "and_not1", "andn2"), ("or", "or_not1", "orn2")):
        NAMED |= dict.fromkeys((f"s_{_new}_saveexec_{_size}", f"s_{_old}_saveexec_{_size}"), _saveexec(_op, "exec"))
    for _op, _new, _old in (("and", "and_not0", "andn1"), ("or", "or_not0", "orn1")):
        NAMED |= dict.fromkeys((f"s_{_new}_saveexec_{_size}", f"s_{_old}_saveexec_{_size}"), _saveexec(_op, "source"))
    NAMED |= dict.fromkeys((f"s_and_not0_wrexec_{_size}", f"s_andn1_wrexec_{_size}"), _saveexec("and", "source", keep=False))
    NAMED |= dict.fromkeys((f"s_and_not1_wrexec_{_size}", f"s_andn2_wrexec_{_size}"), _saveexec("and", "exec", keep=False))


def _unsigned_sum(name: str, carried: bool) -> Rule:
    """SCC is the carry or borrow."""
    def run(w: Writer, i: Instruction) -> None:
        a, b = (w.op(f"zext i32 {w.scalar(o)} to i64") for o in i.sources[:2])
        r = w.op(f"{name} i64 {a}, {b}")
        if carried:
            r = w.op(f"{name} i64 {r}, {w.op(f'zext i1 {w.scc()} to i64')}")
        w.set_scalar(i.destinations[0], w.op(f"trunc i64 {r} to i32"))
        _nonzero(w, w.op(f"lshr i64 {r}, 32"), "i64")
    return run


NAMED |= dict.fromkeys(("s_add_u32", "s_add_co_u32"), _unsigned_sum("add", False))
NAMED |= dict.fromkeys(("s_sub_u32", "s_sub_co_u32"), _unsigned_sum("sub", False))
NAMED |= dict.fromkeys(("s_addc_u32", "s_add_co_ci_u32"), _unsigned_sum("add", True))
NAMED |= dict.fromkeys(("s_subb_u32", "s_sub_co_ci_u32"), _unsigned_sum("sub", True))


def _signed_sum(name: str) -> Rule:
    """SCC is the overflow."""
    def run(w: Writer, i: Instruction) -> None:
        a, b = (w.scalar(o) for o in i.sources[:2])
        pair = w.call("{i32, i1}", f"llvm.s{name}.with.overflow.i32", ("i32", a), ("i32", b))
        w.set_scalar(i.destinations[0], w.op(f"extractvalue {{i32, i1}} {pair}, 0"))
        w.set_scc(w.op(f"extractvalue {{i32, i1}} {pair}, 1"))
    return run


NAMED |= dict.fromkeys(("s_add_i32", "s_add_co_i32", "s_addk_i32", "s_addk_co_i32"), _signed_sum("add"))
NAMED |= dict.fromkeys(("s_sub_i32", "s_sub_co_i32"), _signed_sum("sub"))


def _plain(name: str) -> Rule:
    """No SCC."""
    def run(w: Writer, i: Instruction) -> None:
        t = _type(i)
        a, b = (_value(w, o, t) for o in i.sources[:2])
        w.set_scalar_of(i.destinations[0], w.op(f"{name} {t} {a}, {b}"))
    return run


NAMED |= {"s_mul_i32": _plain("mul"), "s_mulk_i32": _plain("mul"), "s_add_nc_u64": _plain("add"), "s_sub_nc_u64": _plain("sub"),
          "s_mul_u64": _plain("mul")}


def _mulhi(ext: str) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        a, b = (w.op(f"{ext} i32 {w.scalar(o)} to i64") for o in i.sources)
        product = w.op(f"mul i64 {a}, {b}")
        w.set_scalar(i.destinations[0], w.op(f"trunc i64 {w.op(f'lshr i64 {product}, 32')} to i32"))
    return run


NAMED |= {"s_mul_hi_u32": _mulhi("zext"), "s_mul_hi_i32": _mulhi("sext")}


def _shift(name: str) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        t = _type(i)
        a, amount = _value(w, i.sources[0], t), w.scalar(i.sources[1])
        if t == "i64":
            amount = w.op(f"zext i32 {amount} to i64")
        limited = w.op(f"and {t} {amount}, {63 if t == 'i64' else 31}")
        r = w.op(f"{name} {t} {a}, {limited}")
        w.set_scalar_of(i.destinations[0], r)
        _nonzero(w, r, t)
    return run


NAMED |= {"s_lshl_b32": _shift("shl"), "s_lshl_b64": _shift("shl"), "s_lshr_b32": _shift("lshr"), "s_lshr_b64": _shift("lshr"),
          "s_ashr_i32": _shift("ashr"), "s_ashr_i64": _shift("ashr")}


def _shift_add(n: int) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        a, b = (w.op(f"zext i32 {w.scalar(o)} to i64") for o in i.sources)
        r = w.op(f"add i64 {w.op(f'shl i64 {a}, {n}')}, {b}")
        w.set_scalar(i.destinations[0], w.op(f"trunc i64 {r} to i32"))
        _nonzero(w, w.op(f"lshr i64 {r}, 32"), "i64")
    return run


NAMED |= {f"s_lshl{n}_add_u32": _shift_add(n) for n in (1, 2, 3, 4)}


def _extreme(predicate: str) -> Rule:
    """SCC says that the first one was taken."""
    def run(w: Writer, i: Instruction) -> None:
        a, b = (w.scalar(o) for o in i.sources)
        first = w.op(f"icmp {predicate} i32 {a}, {b}")
        w.set_scalar(i.destinations[0], w.op(f"select i1 {first}, i32 {a}, i32 {b}"))
        w.set_scc(first)
    return run


NAMED |= {"s_min_i32": _extreme("slt"), "s_min_u32": _extreme("ult"), "s_max_i32": _extreme("sgt"), "s_max_u32": _extreme("ugt")}


def _bfe(signed: bool) -> Rule:
    """offset and width in one word: [4:0] or [5:0], and [22:16]."""
    def run(w: Writer, i: Instruction) -> None:
        t = _type(i)
        size = 64 if t == "i64" else 32
        a, word = _value(w, i.sources[0], t), w.scalar(i.sources[1])
        offset = w.op(f"and i32 {word}, {size - 1}")
        width = w.op(f"and i32 {w.op(f'lshr i32 {word}, 16')}, 127")
        width = w.call("i32", "llvm.umin.i32", ("i32", width), ("i32", str(size)))
        if t == "i64":
            offset, width = w.op(f"zext i32 {offset} to i64"), w.op(f"zext i32 {width} to i64")
        name = "ashr" if signed else "lshr"
        moved = w.op(f"{name} {t} {a}, {offset}")
        free = w.op(f"and {t} {w.op(f'sub {t} {size}, {width}')}, {size - 1}")
        cut = w.op(f"{name} {t} {w.op(f'shl {t} {moved}, {free}')}, {free}")
        r = w.op(f"select i1 {w.op(f'icmp eq {t} {width}, 0')}, {t} 0, {t} {cut}")
        w.set_scalar_of(i.destinations[0], r)
        _nonzero(w, r, t)
    return run


NAMED |= {"s_bfe_u32": _bfe(False), "s_bfe_i32": _bfe(True), "s_bfe_u64": _bfe(False), "s_bfe_i64": _bfe(True)}


@_named("s_bfm_b32", "s_bfm_b64")
def bfm(w: Writer, i: Instruction) -> None:
    t = _type(i)
    limit = 63 if t == "i64" else 31
    a, b = (w.op(f"and i32 {w.scalar(o)}, {limit}") for o in i.sources)
    if t == "i64":
        a, b = (w.op(f"zext i32 {x} to i64") for x in (a, b))
    power = w.op(f"shl {t} 1, {a}")
    w.set_scalar_of(i.destinations[0], w.op(f"shl {t} {w.op(f'sub {t} {power}, 1')}, {b}"))


@_named("s_mov_b32", "s_mov_b64", "s_movk_i32")
def mov(w: Writer, i: Instruction) -> None:
    o = i.sources[0]
    w.set_scalar_of(i.destinations[0], _value(w, o, _type(i)) if o.kind != "imm" else str(o.value))


@_named("s_cmov_b32", "s_cmov_b64", "s_cmovk_i32")
def cmov(w: Writer, i: Instruction) -> None:
    t, out = _type(i), i.destinations[0]
    new = next(o for o in i.sources if not o.dst)
    value = _value(w, new, t) if new.kind != "imm" else str(new.value)
    w.set_scalar_of(out, w.op(f"select i1 {w.scc()}, {t} {value}, {t} {_value(w, out, t)}"))


@_named("s_cselect_b32", "s_cselect_b64")
def cselect(w: Writer, i: Instruction) -> None:
    t = _type(i)
    a, b = (_value(w, o, t) for o in i.sources[:2])
    w.set_scalar_of(i.destinations[0], w.op(f"select i1 {w.scc()}, {t} {a}, {t} {b}"))


@_named("s_not_b32", "s_not_b64")
def not_(w: Writer, i: Instruction) -> None:
    t = _type(i)
    r = w.op(f"xor {t} {_value(w, i.sources[0], t)}, -1")
    w.set_scalar_of(i.destinations[0], r)
    _nonzero(w, r, t)


def _unary(name: str, scc: bool, flag: bool = False, empty: bool = False) -> Rule:
    """An intrinsic of one operand; `empty`: -1 where the operand is 0."""
    def run(w: Writer, i: Instruction) -> None:
        t = "i64" if i.sources[0].dwords == 2 else "i32"
        a = _value(w, i.sources[0], t)
        more = [("i1 immarg", "false")] if flag else []
        r = w.call(t, f"llvm.{name}.{t}", (t, a), *more)
        if empty:
            r = w.op(f"select i1 {w.op(f'icmp eq {t} {a}, 0')}, {t} -1, {t} {r}")
        if t == "i64" and i.destinations[0].dwords == 1:
            r = w.op(f"trunc i64 {r} to i32")
        w.set_scalar_of(i.destinations[0], r)
        if scc:
            _nonzero(w, r, "i64" if i.destinations[0].dwords == 2 else "i32")
    return run


for _size in ("b32", "b64"):
    NAMED |= {f"s_brev_{_size}": _unary("bitreverse", False), f"s_bcnt1_i32_{_size}": _unary("ctpop", True),
              f"s_ctz_i32_{_size}": _unary("cttz", False, True, True), f"s_ff1_i32_{_size}": _unary("cttz", False, True, True),
              f"s_flbit_i32_{_size}": _unary("ctlz", False, True, True)}
NAMED |= {"s_clz_i32_u32": _unary("ctlz", False, True, True), "s_clz_i32_u64": _unary("ctlz", False, True, True)}


@_named("s_flbit_i32", "s_flbit_i32_i64", "s_cls_i32", "s_cls_i32_i64")
def sign_bits(w: Writer, i: Instruction) -> None:
    """How many of the highest bits are alike; -1 where all are."""
    t = "i64" if i.sources[0].dwords == 2 else "i32"
    a = _value(w, i.sources[0], t)
    last = 63 if t == "i64" else 31
    other = w.op(f"xor {t} {a}, {w.op(f'ashr {t} {a}, {last}')}")
    r = w.call(t, f"llvm.ctlz.{t}", (t, other), ("i1 immarg", "false"))
    r = w.op(f"select i1 {w.op(f'icmp eq {t} {other}, 0')}, {t} -1, {t} {r}")
    w.set_scalar(i.destinations[0], w.op(f"trunc i64 {r} to i32") if t == "i64" else r)


@_named("s_bcnt0_i32_b32", "s_bcnt0_i32_b64")
def bcnt0(w: Writer, i: Instruction) -> None:
    t = "i64" if i.sources[0].dwords == 2 else "i32"
    inverse = w.op(f"xor {t} {_value(w, i.sources[0], t)}, -1")
    r = w.call(t, f"llvm.ctpop.{t}", (t, inverse))
    r = w.op(f"trunc i64 {r} to i32") if t == "i64" else r
    w.set_scalar(i.destinations[0], r)
    _nonzero(w, r, "i32")


@_named("s_abs_i32")
def absolute(w: Writer, i: Instruction) -> None:
    r = w.call("i32", "llvm.abs.i32", ("i32", w.scalar(i.sources[0])), ("i1 immarg", "false"))
    w.set_scalar(i.destinations[0], r)
    _nonzero(w, r, "i32")


@_named("s_absdiff_i32")
def absdiff(w: Writer, i: Instruction) -> None:
    a, b = (w.scalar(o) for o in i.sources)
    r = w.call("i32", "llvm.abs.i32", ("i32", w.op(f"sub i32 {a}, {b}")), ("i1 immarg", "false"))
    w.set_scalar(i.destinations[0], r)
    _nonzero(w, r, "i32")


def _sext(bits: int) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        narrow = w.op(f"trunc i32 {w.scalar(i.sources[0])} to i{bits}")
        w.set_scalar(i.destinations[0], w.op(f"sext i{bits} {narrow} to i32"))
    return run


NAMED |= {"s_sext_i32_i8": _sext(8), "s_sext_i32_i16": _sext(16)}


def _bitset(one: bool) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        t, out = _type(i), i.destinations[0]
        n = w.op(f"and i32 {w.scalar(next(o for o in i.sources if not o.dst))}, {63 if t == 'i64' else 31}")
        n = w.op(f"zext i32 {n} to i64") if t == "i64" else n
        bit, old = w.op(f"shl {t} 1, {n}"), _value(w, out, t)
        r = w.op(f"or {t} {old}, {bit}") if one else w.op(f"and {t} {old}, {w.op(f'xor {t} {bit}, -1')}")
        w.set_scalar_of(out, r)
    return run


NAMED |= {"s_bitset0_b32": _bitset(False), "s_bitset0_b64": _bitset(False), "s_bitset1_b32": _bitset(True),
          "s_bitset1_b64": _bitset(True)}


def _pack(low: int, high: int) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        a, b = (w.scalar(o) for o in i.sources)
        a = w.op(f"lshr i32 {a}, 16") if low else w.op(f"and i32 {a}, 65535")
        b = w.op(f"and i32 {b}, -65536") if high else w.op(f"shl i32 {b}, 16")
        w.set_scalar(i.destinations[0], w.op(f"or i32 {a}, {b}"))
    return run


NAMED |= {f"s_pack_{a}{b}_b32_b16": _pack(x, y) for a, x in (("l", 0), ("h", 1)) for b, y in (("l", 0), ("h", 1))}


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons


_PREDICATES = {"eq": "eq", "lg": "ne", "gt": "gt", "ge": "ge", "lt": "lt", "le": "le"}


def _compare(predicate: str, sign: str, t: str) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        a, b = i.sources
        x = _value(w, a, t)
        y = str(b.value) if b.kind == "imm" else _value(w, b, t)
        w.set_scc(w.op(f"icmp {predicate if predicate in ('eq', 'ne') else sign + predicate} {t} {x}, {y}"))
    return run


for _name, _predicate in _PREDICATES.items():
    for _suffix, _sign in (("i32", "s"), ("u32", "u")):
        NAMED |= dict.fromkeys((f"s_cmp_{_name}_{_suffix}", f"s_cmpk_{_name}_{_suffix}"), _compare(_predicate, _sign, "i32"))
    NAMED[f"s_cmp_{_name}_u64"] = _compare(_predicate, "u", "i64")


def _bitcmp(wanted: int) -> Rule:
    def run(w: Writer, i: Instruction) -> None:
        t = "i64" if i.sources[0].dwords == 2 else "i32"
        n = w.op(f"and i32 {w.scalar(i.sources[1])}, {63 if t == 'i64' else 31}")
        n = w.op(f"zext i32 {n} to i64") if t == "i64" else n
        bit = w.op(f"and {t} {w.op(f'lshr {t} {_value(w, i.sources[0], t)}, {n}')}, 1")
        w.set_scc(w.op(f"icmp eq {t} {bit}, {wanted}"))
    return run


NAMED |= {f"s_bitcmp{n}_{size}": _bitcmp(n) for n in (0, 1) for size in ("b32", "b64")}
