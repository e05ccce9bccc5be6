"""Loads and stores: global, generic, shared, local, constant; copies from global to shared memory; matrices for HMMA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from devrt.compiler.sass.instruction import Address, Cbuf, Instruction, Operand, Reg
from devrt.virtual.memory import Access
from devrt.virtual.nvidia.translate import layout, rows
from devrt.virtual.nvidia.translate.operands import outcomes, predicates, result
from devrt.virtual.nvidia.translate.writer import LANES, NotTranslated, Rule, Writer, named

RULES: dict[str, Rule] = {}

_C, _OK = ("ptr", "%c"), ("ptr", "%ok")
_MOVED = "moved"  # registers on their way: up to four words of every lane, one word behind another
_SPACES = {"LDG": "global", "STG": "global", "LD": "generic", "ST": "generic", "LDS": "shared", "STS": "shared", "LDL": "local",
           "STL": "local"}
_FAR = ("global", "generic")
_SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


def nbytes(i: Instruction) -> int:
    """Bytes that a lane moves."""
    return next((_SIZES[m] for m in i.mods if m in _SIZES), 4)


def address(w: Writer, a: Address, wide: bool) -> str:
    """The address of every lane, 64 bits; not `wide`: of 32 bits, as shared and local memory have."""
    t = w.vec("i64" if wide else "i32")
    total = ""
    if a.base is not None and not a.base.zero:
        o = Operand(a.base)
        if wide:
            total = w.word64(o) if a.base.words == 2 else w.op(f"zext {w.vec('i32')} {w.word(o)} to {t}")
        else:
            total = w.word(o)
            if a.scale > 1:
                total = w.op(f"shl {t} {total}, splat (i32 {a.scale.bit_length() - 1})")
    if a.uniform is not None and not a.uniform.zero:
        number = w.reg(a.uniform)
        if wide:
            low = w.op(f"zext i32 {number} to i64")
            high = w.op(f"zext i32 {w.reg(a.uniform, 1)} to i64")
            number = w.op(f"or i64 {low}, {w.op(f'shl i64 {high}, 32')}")
        more = w.splat("i64" if wide else "i32", number)
        total = w.op(f"add {t} {total}, {more}") if total else more
    if a.offset:
        shift = f"splat ({'i64' if wide else 'i32'} {a.offset})"
        total = w.op(f"add {t} {total}, {shift}") if total else shift
    total = total or "zeroinitializer"
    return total if wide else w.op(f"zext {t} {total} to {w.vec('i64')}")


def _aligned(w: Writer, at: str, lanes: str, size: int) -> str:
    """The lanes, or none after a fault was noted."""
    if size == 1:
        return lanes
    return w.call("i32", "aligned", _C, (w.vec("i64"), at), ("i32", lanes), ("i64", str(size)), _OK)


def place(w: Writer, k: int = 0) -> str:
    """Where word `k` of the lanes is on its way."""
    start = w.local(_MOVED, 16 * LANES)
    return w.op(f"getelementptr i8, ptr {start}, i64 {4 * LANES * k}") if k else start


def moved(w: Writer, k: int) -> str:
    return w.op(f"load {w.vec('i32')}, ptr {place(w, k)}, align 4")


def _address_of(i: Instruction) -> Address:
    return next(o.value for o in (*i.srcs, *i.dsts) if isinstance(o.value, Address))


def strong(i: Instruction) -> bool:
    """Whether others may be told something by an access, or tell: volatile, relaxed, acquiring, releasing ones."""
    return bool(set(i.mods) & {"STRONG", "MMIO"})


@contextmanager
def marking(w: Writer, marks: int) -> Iterator[None]:
    """Accesses leave these marks in the entries of their pages, beside those that each leaves."""
    if marks:
        w.call("void", "set_marks", _C, ("i64", str(marks)))
    yield
    if marks:
        w.call("void", "set_marks", _C, ("i64", "0"))


def _access(w: Writer, i: Instruction, at: str) -> None:
    """Let lanes load or store bytes, from or to their place on the way."""
    action = "load" if i.op.startswith("LD") else "store"
    space, size = _SPACES[i.op], nbytes(i)
    marks = (Access.POLLED if action == "load" else Access.TOLD) if strong(i) and space in _FAR else 0
    with marking(w, int(marks)):
        if size in rows.SIZES and space != "generic":
            w.call("void", f"{space}_{action}{size}", _C, (w.vec("i64"), at), ("i32", w.lanes()), ("ptr", place(w)), _OK)
        else:
            lanes = _aligned(w, at, w.lanes(), size)
            w.call("void", f"{space}_{action}", _C, (w.vec("i64"), at), ("i32", lanes), ("i64", str(size)), ("ptr", place(w)),
                   _OK)
    w.check()


@named(RULES, "LDG", "LD", "LDS", "LDL")
def load(w: Writer, i: Instruction) -> None:
    _access(w, i, address(w, _address_of(i), _SPACES[i.op] in _FAR))
    _result(w, i, nbytes(i))


def _result(w: Writer, i: Instruction, size: int) -> None:
    """What was loaded into the destination, bytes and words extended."""
    out = result(i)
    for k in range(max(1, size // 4)):
        value, t = moved(w, k), w.t("i32")
        if w.uniform:
            value = w.op(f"extractelement {w.vec('i32')} {value}, i32 0")
        if "S8" in i.mods or "S16" in i.mods:
            up = w.op(f"shl {t} {value}, {w.const('i32', 32 - 8 * size)}")
            value = w.op(f"ashr {t} {up}, {w.const('i32', 32 - 8 * size)}")
        w.write(out, value, k)


@named(RULES, "STG", "ST", "STS", "STL")
def store(w: Writer, i: Instruction) -> None:
    data = next(o for o in i.srcs if isinstance(o.value, Reg) and o.value.file.value == "R")
    for k in range(max(1, nbytes(i) // 4)):
        w.line(f"store {w.vec('i32')} {w.word(data, k)}, ptr {place(w, k)}, align 4")
    _access(w, i, address(w, _address_of(i), _SPACES[i.op] in _FAR))


@named(RULES, "LDC", "ULDC", "LDCU")
def constant(w: Writer, i: Instruction) -> None:
    """From a constant bank, at a place that is known or that lanes compute."""
    source, size = i.srcs[0], nbytes(i)
    c = source.value
    if not isinstance(c, Cbuf) or c.handle is not None or set(i.mods) & {"IS", "ISL"}:
        raise NotTranslated(str(i))
    if c.index is None and size >= 4 and c.offset % size == 0:
        for k in range(size // 4):
            w.write(i.dsts[0], w.word(Operand(c), k), k)
        return
    w.banks.setdefault(c.bank, 0)
    offset = w.const("i32", c.offset)
    total = offset if c.index is None else w.op(f"add {w.t('i32')} {w.word(Operand(c.index))}, {offset}")
    if w.uniform:  # as lane 0 would
        total = w.splat("i32", total)
    at = w.op(f"zext {w.vec('i32')} {total} to {w.vec('i64')}")
    lanes = w.lanes() if not w.uniform else w.op(f"zext i1 {w.guard} to i32") if w.guard else "1"
    lanes = _aligned(w, at, lanes, size)
    w.call("void", "constant_load", _C, ("i64", str(c.bank)), (w.vec("i64"), at), ("i32", lanes), ("i64", str(size)),
           ("ptr", place(w)), _OK)
    w.check()
    _result(w, i, size)


@named(RULES, "LDGSTS")
def copy(w: Writer, i: Instruction) -> None:
    """From global to shared memory, moved at once (copies.py); .ZFILL: zeros where the predicate is false."""
    to, source = (o.value for o in (*i.dsts, *i.srcs) if isinstance(o.value, Address))
    size, lanes = nbytes(i), w.lanes()
    far, near = address(w, source, True), address(w, to, False)
    reading = lanes
    for o in predicates(i):
        reading = w.op(f"and i32 {reading}, {w.mask_of(o)}")
    writing, missing = lanes if "ZFILL" in i.mods else reading, ""
    if "ZFILL" in i.mods:
        missing = w.op(f"and {w.vec('i64')} {far}, splat (i64 {size - 1})")
        far = w.op(f"and {w.vec('i64')} {far}, splat (i64 {-size})")
    reading = _aligned(w, far, reading, size)
    w.call("void", "global_load", _C, (w.vec("i64"), far), ("i32", reading), ("i64", str(size)), ("ptr", place(w)), _OK)
    w.check()
    if missing:
        _cut(w, missing, size)
    writing = _aligned(w, near, writing, size)
    w.call("void", "shared_store", _C, (w.vec("i64"), near), ("i32", writing), ("i64", str(size)), ("ptr", place(w)), _OK)
    w.check()


def _cut(w: Writer, missing: str, size: int) -> None:
    """Zeros for the last bytes of what is on its way, so many a lane. ptxas asks for parts of a copy by an address that is no
    multiple of its size: what it is off are the bytes left out."""
    t = w.vec("i64")
    for k in range(size // 4):
        left = w.op(f"sub {t} splat (i64 {size - 4 * k}), {missing}")
        known = w.call(t, f"llvm.smax.v{LANES}i64", (t, left), (t, "zeroinitializer"), declare=True)
        whole = w.call(t, f"llvm.smin.v{LANES}i64", (t, known), (t, "splat (i64 4)"), declare=True)
        bits = w.op(f"shl {t} {whole}, splat (i64 3)")
        mask = w.op(f"sub {t} {w.op(f'shl {t} splat (i64 1), {bits}')}, splat (i64 1)")
        kept = w.op(f"and {w.vec('i32')} {moved(w, k)}, {w.op(f'trunc {t} {mask} to ' + w.vec('i32'))}")
        w.line(f"store {w.vec('i32')} {kept}, ptr {place(w, k)}, align 4")


@named(RULES, "LDSM")
def matrices(w: Writer, i: Instruction) -> None:
    """1, 2 or 4 matrices of 8 rows of 16 bytes, whose addresses are in lanes 0-7, 8-15, ..: lane n gets numbers 2n and 2n + 1 of
    each, row by row (.M88), or column by column (.MT88)."""
    out = i.dsts[0]
    count = next((int(m) for m in i.mods if m in ("2", "4")), 1)
    if "16" not in i.mods or not set(i.mods) & {"M88", "MT88"}:
        raise NotTranslated(str(i))
    at = address(w, _address_of(i), False)
    lanes = w.op(f"and i32 {w.lanes()}, {(1 << 8 * count) - 1 if count < 4 else -1}")
    lanes = _aligned(w, at, lanes, 16)
    w.call("void", "shared_load", _C, (w.vec("i64"), at), ("i32", lanes), ("i64", "16"), ("ptr", place(w)), _OK)
    w.check()
    every = w.op(f"load <{8 * LANES} x i16>, ptr {place(w)}, align 4")
    for m in range(count):
        numbers = []
        for lane in range(LANES):
            for half in range(2):
                row, column = lane // 4, 2 * (lane % 4) + half
                if "MT88" in i.mods:
                    row, column = column, row
                numbers.append(f"i32 {2 * (column // 2 * LANES + 8 * m + row) + column % 2}")
        t = f"<{8 * LANES} x i16>"
        pair = w.op(f"shufflevector {t} {every}, {t} poison, <{2 * LANES} x i32> <{', '.join(numbers)}>")
        w.write(out, w.op(f"bitcast <{2 * LANES} x i16> {pair} to {w.vec('i32')}"), m)


_WHERE = {"S": layout.SHARED_WINDOW, "L": layout.LOCAL_WINDOW}


@named(RULES, "QSPC")
def qspc(w: Writer, i: Instruction) -> None:
    """Whether a generic address is one of shared (.S), local (.L) or global (.G) memory, or of another block's (.D)."""
    at = address(w, _address_of(i), True)

    def inside(space: str) -> str:
        return w.call("i32", "in_window", (w.vec("i64"), at), ("i32", "-1"), ("i64", w.field(_WHERE[space], "i64")))
    space = next((m for m in i.mods if m in ("S", "L", "G", "D")), "")
    if space in _WHERE:
        found = inside(space)
    elif space == "G":
        windows = w.op(f"or i32 {inside('S')}, {inside('L')}")
        found = w.op(f"xor i32 {windows}, -1")
    elif space == "D":  # a cluster is one block
        found = "0"
    else:
        raise NotTranslated(str(i))
    for o in outcomes(i):
        assert isinstance(o.value, Reg)
        w.set_reg(o.value, found)


@named(RULES, "MEMBAR")
def barrier(w: Writer, i: Instruction) -> None:
    """What is before it comes before what is behind it, for whoever shares the memory."""
    w.line("fence seq_cst")


@named(RULES, "ERRBAR", "CCTL", "CCTLL", "FENCE", "CGAERRBAR", "CCTLT")
def nothing(w: Writer, i: Instruction) -> None:
    """Memory is coherent here."""
