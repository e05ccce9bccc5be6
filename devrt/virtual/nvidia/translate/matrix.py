"""Tensor cores: products of matrices that lie spread over the lanes of a warp.

The lanes that hold what a result needs are the same in every run, so each step over k is a shuffle of A, one of B and a fused
multiply-add over 32 lanes. Where elements lie is drawn in the PTX ISA, "Matrix fragments for mma". Products are exact; they are
summed in the order of k, in float32 with a rounding each (float16 results are rounded once more at the end), in float64, or in
int32 (which holds all products together; .SAT clamps what they and C make). Hardware's order and internal rounding of float sums
are not documented.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from devrt.compiler.sass.instruction import Instruction, Operand
from devrt.virtual.nvidia.translate import convert, rounding
from devrt.virtual.nvidia.translate.half import packed, raw_halves
from devrt.virtual.nvidia.translate.writer import LANES, NotTranslated, Rule, Writer, named

RULES: dict[str, Rule] = {}


@dataclass(frozen=True)
class Shape:
    """A is m x k, B k x 8; a lane holds `held` elements of A or B that follow one another in k, in a word (float64: two)."""

    m: int
    k: int
    held: int

    @property
    def a_words(self) -> int:
        return self.m * self.k // LANES // self.held

    @property
    def b_words(self) -> int:
        return 8 * self.k // LANES // self.held

    def a(self, row: int, k: int) -> tuple[int, int, int]:
        """(lane, word, element in the word) of A[row][k]: rows 8 to 15 lie in the odd words."""
        chunk, k = divmod(k, 4 * self.held)
        lane, element = divmod(k, self.held)
        return row % 8 * 4 + lane, chunk * (self.m // 8) + row // 8, element

    def b(self, k: int, column: int) -> tuple[int, int, int]:
        chunk, k = divmod(k, 4 * self.held)
        lane, element = divmod(k, self.held)
        return column * 4 + lane, chunk, element

    def c(self, lane: int, n: int) -> tuple[int, int]:
        """(row, column) of element n of C in a lane: two columns in rows 0 to 7, then in rows 8 to 15."""
        return lane // 4 + 8 * (n // 2), lane % 4 * 2 + n % 2


def shuffled(w: Writer, e: str, value: str, lanes: list[int]) -> str:
    t = w.vec(e)
    return w.op(f"shufflevector {t} {value}, {t} poison, <{LANES} x i32> {w.lanes_of('i32', lanes)}")


def product(w: Writer, s: Shape, e: str, a: list[list[str]], b: list[list[str]], c: list[str]) -> list[str]:
    """The elements of D in every lane; a[word][element], b likewise, c[element] are vectors with elements `e`."""
    taken: dict[tuple[str, tuple[int, ...]], str] = {}

    def take(value: str, lanes: list[int]) -> str:
        key = value, tuple(lanes)
        if key not in taken:
            taken[key] = shuffled(w, e, value, lanes)
        return taken[key]
    out = []
    for n, total in enumerate(c):
        for k in range(s.k):
            places = [s.c(lane, n) for lane in range(LANES)]
            _, word, element = s.a(places[0][0], k)
            x = take(a[word][element], [s.a(row, k)[0] for row, _ in places])
            _, word, element = s.b(k, places[0][1])
            y = take(b[word][element], [s.b(k, column)[0] for _, column in places])
            if e.startswith("i"):
                total = w.op(f"add {w.vec(e)} {total}, {w.op(f'mul {w.vec(e)} {x}, {y}')}")
            else:
                total = w.intrinsic("fma", e, x, y, total)
        out.append(total)
    return out


Unpack = Callable[[Writer, str], list[str]]


def multiply(w: Writer, name: str, s: Shape, e: str, unpack: tuple[Unpack, Unpack], a: list[str], b: list[str],
             c: list[str]) -> list[str]:
    """The sums, by a function of the module whose arguments are the raw words; its results come back through memory."""
    full = f"mma.{name}"
    words, sums = w.vec("i64" if e == "double" else "i32"), w.vec(e)
    if full not in w.helpers:
        inner = Writer(w.sm)
        x = [unpack[0](inner, f"%a{n}") for n in range(len(a))]
        y = [unpack[1](inner, f"%b{n}") for n in range(len(b))]
        for n, value in enumerate(product(inner, s, e, x, y, [f"%c{n}" for n in range(len(c))])):
            inner.line(f"store {sums} {value}, ptr {inner.op(f'getelementptr {sums}, ptr %out, i64 {n}')}, align 64")
        arguments = [f"{words} %a{n}" for n in range(len(a))] + [f"{words} %b{n}" for n in range(len(b))]
        arguments += [f"{sums} %c{n}" for n in range(len(c))] + ["ptr %out"]
        w.declared.update(inner.declared)
        w.helpers[full] = "\n".join((f"define internal void @{full}({', '.join(arguments)}) noinline {{", *inner.lines,
                                     "  ret void", "}", ""))
    out = w.local("mma.out", 4 * LANES * 8)
    w.call("void", full, *((words, v) for v in (*a, *b)), *((sums, v) for v in c), ("ptr", out))
    return [w.op(f"load {sums}, ptr {w.op(f'getelementptr {sums}, ptr {out}, i64 {n}')}, align 64") for n in range(len(c))]


# ---------------------------------------------------------------------------------------------------------------------
# Floats

SIZES = {"1684": (16, 4), "1688": (16, 8), "16816": (16, 16), "8816": (8, 16), "16832": (16, 32), "8832": (8, 32),
         "16864": (16, 64), "884": (8, 4), "8x8x4": (8, 4), "16x8x4": (16, 4), "16x8x8": (16, 8), "16x8x16": (16, 16)}


def size(i: Instruction) -> tuple[int, int]:
    found = next((SIZES[m] for m in i.mods if m in SIZES), None)
    if found is None:
        raise NotTranslated(f"{i.op}.{'.'.join(i.mods)}")
    return found


def words_of(w: Writer, o: Operand, count: int) -> list[str]:
    return [w.word(o, n) for n in range(count)]


def _pairs(e: str) -> Unpack:
    return lambda w, word: [rounding.as_float(w, x, e) for x in raw_halves(w, word)]


def _tf32(w: Writer, word: str) -> list[str]:
    """The low 13 bits of a float32 don't count."""
    return [w.cast(w.op(f"and {w.vec('i32')} {word}, {w.const('i32', -1 << 13)}"), "i32", "float")]


def _double(w: Writer, word: str) -> list[str]:
    return [w.cast(word, "i64", "double")]


def _eighths(kind: str) -> Unpack:
    """Four floats of 8 bits, E4M3 or E5M2."""
    def run(w: Writer, word: str) -> list[str]:
        t, out = w.vec("i32"), []
        for n in range(4):
            byte = w.op(f"trunc {t} {w.op(f'lshr {t} {word}, ' + w.const('i32', 8 * n))} to {w.vec('i8')}")
            out.append(w.op(f"fptrunc {w.vec('double')} {convert.wide8(w, byte, kind.lower())} to {w.vec('float')}"))
        return out
    return run


@named(RULES, "HMMA")
def hmma(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *SIZES, "F16", "F32", "BF16", "TF32")
    kind = next((m for m in i.mods if m in ("BF16", "TF32")), "F16")
    unpack = _tf32 if kind == "TF32" else _pairs({"BF16": "bfloat", "F16": "half"}[kind])
    _floats(w, i, f"h.{kind}", 1 if kind == "TF32" else 2, (unpack, unpack))


@named(RULES, "QMMA")
def qmma(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *SIZES, "F16", "F32", "E4M3", "E5M2")
    kinds = [m for m in i.mods if m in ("E4M3", "E5M2")]
    first, second = kinds if len(kinds) == 2 else (kinds[0], kinds[0])
    _floats(w, i, f"q.{first}.{second}", 4, (_eighths(first), _eighths(second)))


def _floats(w: Writer, i: Instruction, name: str, held: int, unpack: tuple[Unpack, Unpack]) -> None:
    """Sums of float32 or float16."""
    wide = "F32" in i.mods
    m, k = size(i)
    s = Shape(m, k, held)
    a, b, c = i.srcs[:3]
    if wide:
        sums = [w.cast(x, "i32", "float") for x in words_of(w, c, 4)]
    else:
        sums = [x for word in words_of(w, c, 2) for x in _pairs("half")(w, word)]
    found = multiply(w, f"{name}.{m}.{k}", s, "float", unpack, words_of(w, a, s.a_words), words_of(w, b, s.b_words), sums)
    if wide:
        for n, value in enumerate(found):
            w.write(i.dsts[0], w.cast(rounding.canonical(w, value), "float", "i32"), n)
        return
    halves = [rounding.raw16(w, rounding.narrow(w, rounding.widen(w, x, "float"), "half"), "half") for x in found]
    for n in range(2):
        w.write(i.dsts[0], packed(w, halves[2 * n], halves[2 * n + 1]), n)


@named(RULES, "DMMA")
def dmma(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *SIZES)
    m, k = size(i)
    s = Shape(m, k, 1)
    a, b, c = i.srcs[:3]

    def pairs(o: Operand, count: int) -> list[str]:
        return [w.word64(o, 2 * n) for n in range(count)]
    sums = [w.cast(x, "i64", "double") for x in pairs(c, m // 4)]
    found = multiply(w, f"d.{m}.{k}", s, "double", (_double, _double), pairs(a, s.a_words), pairs(b, s.b_words), sums)
    for n, value in enumerate(found):
        w.write64(i.dsts[0], w.cast(value, "double", "i64"), 2 * n)


# ---------------------------------------------------------------------------------------------------------------------
# Integers


def _integers(kind: str) -> Unpack:
    """U8, S8, U4 or S4 of a word, as int32."""
    bits, signed = int(kind[1]), kind[0] == "S"

    def run(w: Writer, word: str) -> list[str]:
        t, out = w.vec("i32"), []
        for n in range(32 // bits):
            up = w.op(f"shl {t} {word}, {w.const('i32', 32 - bits * (n + 1))}")
            out.append(w.op(f"{'a' if signed else 'l'}shr {t} {up}, {w.const('i32', 32 - bits)}"))
        return out
    return run


@named(RULES, "IMMA")
def imma(w: Writer, i: Instruction) -> None:
    rounding.unknown(i, *SIZES, "U8", "S8", "U4", "S4", "SAT")
    kinds = [m for m in i.mods if m in ("U8", "S8", "U4", "S4")]
    first, second = kinds if len(kinds) == 2 else (kinds[0], kinds[0])
    m, k = size(i)
    s = Shape(m, k, 32 // int(first[1]))
    a, b, c = i.srcs[:3]
    zeros = [w.const("i32", 0)] * (m // 4)
    found = multiply(w, f"i.{m}.{k}.{first}.{second}", s, "i32", (_integers(first), _integers(second)),
                     words_of(w, a, s.a_words), words_of(w, b, s.b_words), zeros)
    for n, (value, sum_) in enumerate(zip(found, words_of(w, c, m // 4), strict=True)):
        both = w.intrinsic("sadd.sat", "i32", value, sum_) if "SAT" in i.mods else w.op(f"add {w.vec('i32')} {value}, {sum_}")
        w.write(i.dsts[0], both, n)


# ---------------------------------------------------------------------------------------------------------------------
# Transposition


@named(RULES, "MOVM")
def movm(w: Writer, i: Instruction) -> None:
    """8 x 8 numbers of 16 bits, a row in four lanes, transposed."""
    rounding.unknown(i, "16", "MT88")
    halves = raw_halves(w, w.word(i.srcs[0]))
    parts = []
    for n in range(2):
        rows = [2 * (lane % 4) + n for lane in range(LANES)]
        low, high = (shuffled(w, "i16", x, [4 * row + lane // 8 for lane, row in enumerate(rows)]) for x in halves)
        odd = "<" + ", ".join(f"i1 {lane // 4 % 2}" for lane in range(LANES)) + ">"
        parts.append(w.select(odd, "i16", high, low))
    w.write(i.dsts[0], packed(w, parts[0], parts[1]))
