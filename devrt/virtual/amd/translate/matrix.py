"""Matrix instructions: WMMA and MFMA over the lanes of a wave.

The registers of A, B and C are put in order as matrices, multiplied, and the result goes back: one function in the module for
every shape and set of modifiers, with constant tables of which register and lane holds an element. Products are summed in the
order of k by fused multiply-adds in float32 (float64, int64); hardware's order and internal rounding are not specified. EXEC does
not matter. Source: AMD's matrix instruction calculator; "RDNA 3 ISA", "RDNA 4 ISA", WMMA; "AMD Instinct MI300 ISA", MFMA.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from devrt.virtual.amd.isa.formats import GENS
from devrt.virtual.amd.isa.instruction import Instruction, Operand
from devrt.virtual.amd.isa.opcodes import bits, opcodes
from devrt.virtual.amd.translate import fp8
from devrt.virtual.amd.translate.writer import NotTranslated, Rule, Writer

NAMED: dict[str, Rule] = {}
Place = tuple[int, int]  # element of a lane's registers, lane


@dataclass(frozen=True)
class Shape:
    """D[i][j] = C[i][j] + sum of A[i][k] * B[k][j], in `blocks` that have nothing to do with each other."""

    m: int
    n: int
    k: int
    blocks: int

    def elements(self, rows: int, columns: int) -> list[tuple[int, int, int]]:
        return [(b, r, c) for b in range(self.blocks) for r in range(rows) for c in range(columns)]


# ---------------------------------------------------------------------------------------------------------------------
# Where elements lie


def mfma_factor(s: Shape, held: int) -> Callable[[int, int, int], Place]:
    """(block, row or column, k) of A or B to (element, lane); `held`: elements of a lane."""
    return lambda b, index, k: (k % held, index + s.m * (b + s.blocks * (k // held)))


def mfma_sum(s: Shape, together: int) -> Callable[[int, int, int], Place]:
    """(block, i, j) of C or D; `together`: rows in successive registers, 4, of float64 1."""
    beside = -(-64 // (s.n * s.m // together))  # blocks beside each other in one register
    rows = 64 // beside // s.n
    groups = s.m // (together * rows)

    def place(b: int, i: int, j: int) -> Place:
        element = i % together + together * (i // (together * rows) % groups + groups * (b // beside))
        return element, j + s.n * (b % beside + beside * (i // together % rows))
    return place


def wmma11_factor(b: int, index: int, k: int) -> Place:
    return k, index


def wmma11_sum(b: int, i: int, j: int) -> Place:
    return i // 2, j + 16 * (i % 2)


def wmma12_factor(held: int, type: str) -> Callable[[int, int, int], Place]:
    if bits(type) == 16:
        return lambda b, index, k: (4 * (k // 8) + k % 4, index + 16 * (k // 4 % 2))
    return lambda b, index, k: (k % held, index + 16 * (k // held))


def wmma12_sum(b: int, i: int, j: int) -> Place:
    return i % 8, j + 16 * (i // 8)


def group_of_lanes(pattern: int, lane: int) -> int:
    """BLGP: the lane whose B a lane takes."""
    if pattern < 4:
        return (lane, lane % 32, 32 + lane % 32, (lane + 16) % 64)[pattern]
    return 16 * (pattern - 4) + lane % 16


# ---------------------------------------------------------------------------------------------------------------------
# The function


_RESULT = {"f32": "float", "f64": "double", "i32": "i64", "f16": "float", "bf16": "float"}


def _index(held: int, place: Place, wave: int, width: int) -> int:
    """An element's number in memory where registers, of `wave` lanes each, follow one another."""
    element, lane = place
    per = max(1, 32 // width)
    return (element // per * wave + lane) * per + element % per


def _table(name: str, values: list[int]) -> str:
    return f"@{name} = internal constant [{len(values)} x i32] [" + ", ".join(f"i32 {v}" for v in values) + "]\n"


def _converted(type: str, signed: bool, t: str) -> str:
    """IR that makes %x of type `t` from the element number %at of %raw."""
    width = bits(type)
    if width == 4:
        return f"""  %byte.at = lshr i32 %at, 1
  %p = getelementptr i8, ptr %raw, i32 %byte.at
  %b = load i8, ptr %p
  %odd = and i32 %at, 1
  %by = shl i32 %odd, 2
  %by8 = trunc i32 %by to i8
  %moved = lshr i8 %b, %by8
  %nibble = trunc i8 %moved to i4
  %x = {'sext' if signed else 'zext'} i4 %nibble to {t}
"""
    load = f"  %p = getelementptr i{width}, ptr %raw, i32 %at\n  %r = load i{width}, ptr %p\n"
    if type in ("f16", "f32", "f64"):
        own = {"f16": "half", "f32": "float", "f64": "double"}[type]
        return load + (f"  %x = bitcast i{width} %r to {own}\n" if own == t else
                       f"  %h = bitcast i16 %r to half\n  %x = fpext half %h to {t}\n")
    if type == "bf16":
        return load + "  %wide = zext i16 %r to i32\n  %up = shl i32 %wide, 16\n  %x = bitcast i32 %up to float\n"
    if type in ("fp8", "bf8"):
        return load + f"""  %wide = zext i8 %r to i32
  %q = getelementptr float, ptr @{type}_numbers, i32 %wide
  %x = load float, ptr %q
"""
    return load + f"  %x = {'sext' if signed else 'zext'} i{width} %r to {t}\n"


def _gather(name: str, table: str, count: int, body: str, t: str, after: str = "  %y = freeze $T %x\n") -> str:
    """A function that fills a matrix from registers by a table."""
    return f"""define internal void @{name}(ptr %raw, ptr %out) noinline {{
entry:
  br label %loop
loop:
  %n = phi i32 [ 0, %entry ], [ %n2, %loop ]
  %tp = getelementptr i32, ptr @{table}, i32 %n
  %at = load i32, ptr %tp
{body}{after.replace('$T', t)}  %op = getelementptr {t}, ptr %out, i32 %n
  store {t} %y, ptr %op
  %n2 = add i32 %n, 1
  %more = icmp ult i32 %n2, {count}
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""


def _product(name: str, s: Shape, t: str) -> str:
    """Row by row: %c += %a * %b."""
    v = f"<{s.n} x {t}>"
    if t == "i64":
        step, declared = f"  %m = mul {v} %as, %bv\n  %next = add {v} %acc, %m\n", ""
    else:
        suffix = f"v{s.n}f{'32' if t == 'float' else '64'}"
        step = f"  %next = call {v} @llvm.fma.{suffix}({v} %as, {v} %bv, {v} %acc)\n"
        declared = f"declare {v} @llvm.fma.{suffix}({v}, {v}, {v})\n"
    return f"""{declared}define internal void @{name}(ptr %a, ptr %b, ptr %c) noinline {{
entry:
  br label %row
row:
  %r = phi i32 [ 0, %entry ], [ %r2, %row.end ]
  %block = udiv i32 %r, {s.m}
  %first = mul i32 %block, {s.k}
  %a0 = mul i32 %r, {s.k}
  %cp = getelementptr {v}, ptr %c, i32 %r
  %c0 = load {v}, ptr %cp
  br label %loop
loop:
  %k = phi i32 [ 0, %row ], [ %k2, %loop ]
  %acc = phi {v} [ %c0, %row ], [ %next, %loop ]
  %ai = add i32 %a0, %k
  %ap = getelementptr {t}, ptr %a, i32 %ai
  %ax = load {t}, ptr %ap
  %a1 = insertelement {v} poison, {t} %ax, i32 0
  %as = shufflevector {v} %a1, {v} poison, <{s.n} x i32> zeroinitializer
  %bi = add i32 %first, %k
  %bp = getelementptr {v}, ptr %b, i32 %bi
  %bv = load {v}, ptr %bp
{step}  %k2 = add i32 %k, 1
  %more = icmp ult i32 %k2, {s.k}
  br i1 %more, label %loop, label %row.end
row.end:
  store {v} %next, ptr %cp
  %r2 = add i32 %r, 1
  %rows = icmp ult i32 %r2, {s.m * s.blocks}
  br i1 %rows, label %row, label %done
done:
  ret void
}}
"""


def _back(name: str, table: str, count: int, type: str, t: str, clamp: bool) -> str:
    """A function that puts the result back into registers."""
    if type in ("f32", "f64"):
        body, width = "  %y = bitcast $T %x to i$W\n", bits(type)
    elif type == "i32" and clamp:
        width = 32
        body = ("  %lo = call i64 @llvm.smax.i64(i64 %x, i64 -2147483648)\n"
                "  %hi = call i64 @llvm.smin.i64(i64 %lo, i64 2147483647)\n"
                "  %y = trunc i64 %hi to i32\n")
    elif type == "i32":
        body, width = "  %y = trunc i64 %x to i32\n", 32
    else:
        own = {"f16": "half", "bf16": "bfloat"}[type]
        body, width = f"  %z = fptrunc float %x to {own}\n  %y = bitcast {own} %z to i16\n", 16
    body = body.replace("$T", t).replace("$W", str(width))
    return f"""define internal void @{name}(ptr %c, ptr %raw) noinline {{
entry:
  br label %loop
loop:
  %n = phi i32 [ 0, %entry ], [ %n2, %loop ]
  %tp = getelementptr i32, ptr @{table}, i32 %n
  %at = load i32, ptr %tp
  %p = getelementptr {t}, ptr %c, i32 %n
  %x = load {t}, ptr %p
{body}  %op = getelementptr i{width}, ptr %raw, i32 %at
  store i{width} %y, ptr %op
  %n2 = add i32 %n, 1
  %more = icmp ult i32 %n2, {count}
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""


def _signs(o: Operand, t: str) -> str:
    """Negated even and odd elements of A or B, as %y."""
    if not (o.neg or o.neg_hi):
        return f"  %y = freeze {t} %x\n"
    return (f"  %parity = and i32 %at, 1\n  %isodd = icmp ne i32 %parity, 0\n"
            f"  %flip = select i1 %isodd, i1 {str(o.neg_hi).lower()}, i1 {str(o.neg).lower()}\n"
            f"  %minus = fneg {t} %x\n  %y = select i1 %flip, {t} %minus, {t} %x\n")


# ---------------------------------------------------------------------------------------------------------------------
# The rule


def _split(type: str) -> tuple[str, int]:
    """("f16", 4) of f16x4."""
    single, _, count = type.partition("x")
    return single, int(count or 1)


_SIZES = re.compile(r"_(\d+)x(\d+)x(\d+)")


def multiply(w: Writer, i: Instruction) -> None:
    a, b, c = i.sources
    out = i.destinations[0]
    (ta, held), (tb, _), (tc, sums) = _split(a.type), _split(b.type), _split(out.type)
    sizes = _SIZES.search(i.mnemonic)
    assert sizes is not None
    m, n, k = (int(x) for x in sizes.groups())
    mfma, t = "mfma" in i.mnemonic, _RESULT[tc]
    s = Shape(m, n, k, w.wave * held // (m * k) if mfma else 1)
    cbsz, abid, blgp = i.matrix
    if mfma:
        factor, total = mfma_factor(s, held), mfma_sum(s, 1 if tc == "f64" else 4)
    elif w.gen == "gfx1100" and w.wave == 32:
        factor, total = wmma11_factor, wmma11_sum
    elif w.gen == "gfx1201" and w.wave == 32:
        factor, total = wmma12_factor(held, ta), wmma12_sum
    else:
        raise NotTranslated(f"{i.mnemonic} in waves of {w.wave}")
    negated = (blgp & 1, blgp >> 1 & 1, blgp >> 2) if tc == "f64" else (0, 0, 0)
    group = 1 << min(cbsz, s.blocks.bit_length() - 1)
    integer, alone = tc == "i32", not mfma and w.gen == "gfx1100" and tc in ("f16", "bf16")  # a half of every register
    width = 32 if alone else bits(tc)
    flags = (*i.matrix, i.op_sel >> 2 & 1, i.neg_hi, 0 if mfma else i.fields["neg"], int(i.clamp))
    name = ".".join(("matrix", i.mnemonic, *map(str, flags)))

    def a_place(block: int, row: int, at: int) -> int:
        source = (block & ~(group - 1)) + abid % group
        return _index(held, factor(source, row, at), w.wave, bits(ta))

    def b_place(block: int, at: int, column: int) -> int:
        element, lane = factor(block, column, at)
        lane = group_of_lanes(blgp, lane) if mfma and tc != "f64" else lane
        return _index(held, (element, lane), w.wave, bits(tb))
    for kind in {ta, tb} & {"fp8", "bf8"}:
        fp8.table(w, kind)
    c_read = tc if not alone else f"{tc}.{c.half}"
    text = [_table(f"{name}.ta", [a_place(*e) for e in s.elements(m, k)]),
            _table(f"{name}.tb", [b_place(*e) for e in s.elements(k, n)]),
            _table(f"{name}.tc", [_index(sums, total(*e), w.wave, width) for e in s.elements(m, n)])]
    for letter, o, type, rows, columns, minus in (("a", a, ta, m, k, negated[0]), ("b", b, tb, k, n, negated[1])):
        signs = f"  %y = fneg {t} %x\n" if minus else _signs(o, t) if not integer else f"  %y = freeze {t} %x\n"
        text.append(_gather(f"{name}.{letter}", f"{name}.t{letter}", s.blocks * rows * columns,
                            _converted(type, mfma or o.neg, t), t, signs))
    text += [_gather(f"{name}.c", f"{name}.tc", s.blocks * m * n, _sum_converted(c_read, t), t,
                     _sum_signs(c, t, bool(negated[2]), integer)),
             _product(f"{name}.x", s, t), _back(f"{name}.d", f"{name}.tc", s.blocks * m * n, tc, t, i.clamp) if not alone else
             _back_half(f"{name}.d", f"{name}.tc", s.blocks * m * n, tc)]
    w.helpers[name] = "".join(text)
    _run(w, i, name, width, alone)


def _sum_converted(type: str, t: str) -> str:
    """C's elements; f16.0 and f16.1 are a half of a register."""
    single, _, half = type.partition(".")
    if not half:
        return _converted(single, True, t)
    moved = "  %hb = lshr i32 %r0, 16\n" if half == "1" else "  %hb = or i32 %r0, 0\n"
    load = "  %p = getelementptr i32, ptr %raw, i32 %at\n  %r0 = load i32, ptr %p\n" + moved + "  %r = trunc i32 %hb to i16\n"
    if single == "f16":
        return load + "  %h = bitcast i16 %r to half\n  %x = fpext half %h to float\n"
    return load + "  %wide = zext i16 %r to i32\n  %up = shl i32 %wide, 16\n  %x = bitcast i32 %up to float\n"


def _sum_signs(c: Operand, t: str, minus: bool, integer: bool) -> str:
    """NEG of C negates it, NEG_HI takes its absolute value first."""
    if integer or not (c.neg or c.neg_hi or minus):
        return f"  %y = freeze {t} %x\n"
    suffix = "f64" if t == "double" else "f32"
    size = f"  %size = call {t} @llvm.fabs.{suffix}({t} %x)\n" if c.neg_hi else f"  %size = freeze {t} %x\n"
    return size + (f"  %y = fneg {t} %size\n" if c.neg or minus else f"  %y = freeze {t} %size\n")


def _back_half(name: str, table: str, count: int, type: str) -> str:
    """The result as the low 16 bits of registers."""
    text = _back(name, table, count, type, "float", False)
    return text.replace("  %op = getelementptr i16", "  %y32 = zext i16 %y to i32\n  %op = getelementptr i32") \
        .replace("store i16 %y,", "store i32 %y32,")


def _run(w: Writer, i: Instruction, name: str, width: int, alone: bool) -> None:
    """Registers into memory, the functions, and back."""
    out, t = i.destinations[0], w.vec("i32")
    for letter, o in zip("abc", i.sources, strict=True):
        raw, place = w.local(f"matrix.raw.{letter}", 32 * w.wave * 4), 0
        wide = bits(_split(o.type)[0]) == 64
        for k in range(o.dwords // 2 if wide else o.dwords):
            value = w.qword(o, 2 * k) if wide else w.dword(o, 0 if o.constant else k)
            vector = w.vec("i64") if wide else t
            w.line(f"store {vector} {value}, ptr {w.op(f'getelementptr i8, ptr {raw}, i64 {place}')}, align 4")
            place += w.wave * (8 if wide else 4)
        matrix = w.local(f"matrix.{letter}", 16384)
        w.call("void", f"{name}.{letter}", ("ptr", raw), ("ptr", matrix), declare=False)
    a, b, c = (w.local(f"matrix.{letter}", 16384) for letter in "abc")
    w.call("void", f"{name}.x", ("ptr", a), ("ptr", b), ("ptr", c), declare=False)
    raw = w.local("matrix.raw.c", 32 * w.wave * 4)
    w.call("void", f"{name}.d", ("ptr", c), ("ptr", raw), declare=False)
    count = out.dwords // 2 if width == 64 else out.dwords
    n = w.vcode(out)
    for k in range(count):
        vector = w.vec("i64") if width == 64 else t
        at = w.op(f"getelementptr i8, ptr {raw}, i64 {k * w.wave * (8 if width == 64 else 4)}")
        value = w.op(f"load {vector}, ptr {at}, align 4")
        if width == 64:
            w.set_v(n + 2 * k, w.op(f"trunc {vector} {value} to {t}"), "")
            value = w.op(f"trunc {vector} {w.op(f'lshr {vector} {value}, splat (i64 32)')} to {t}")
            w.set_v(n + 2 * k + 1, value, "")
        elif alone:
            high = i.op_sel >> 2 & 1
            kept = w.op(f"and {t} {w.v(n + k)}, splat (i32 {65535 if high else -65536})")
            moved = w.op(f"shl {t} {value}, splat (i32 16)") if high else value
            w.set_v(n + k, w.op(f"or {t} {kept}, {moved}"), "")
        else:
            w.set_v(n + k, value, "")


for _gen in GENS:
    NAMED |= {op.mnemonic: multiply for op in opcodes(_gen)["VOP3P"].values()
              if op.mnemonic.startswith(("v_mfma_", "v_wmma_")) and "xf32" not in op.mnemonic}
