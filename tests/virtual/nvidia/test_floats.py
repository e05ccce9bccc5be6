"""Float32 and float64 arithmetic of the emulator against exact fractions and NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.virtual.nvidia import numbers
from tests.virtual.nvidia.numbers import EDGES32, EDGES64, MODES, Array, fma, multiplied, to_float
from tests.virtual.nvidia.single import Singles, halves64, joined64

A, B, C = numbers.triples(EDGES32, 32, 200, 1, 127 << 23, 14 << 23)
D = numbers.triples(EDGES64, 64, 150, 2, 1023 << 52, 30 << 52)


def floats(raw: Array) -> list[float]:
    with np.errstate(invalid="ignore"):
        return [float(x) for x in raw.view(np.float32)]


def flushed(raw: Array) -> Array:
    return np.where(raw & 0x7FFFFFFF < 0x800000, raw & np.uint32(1 << 31), raw).astype(np.uint32)


def suffix(mode: str) -> str:
    return "" if mode == "RN" else f".{mode}"


def same(got: Array, want: Array, *inputs: Array) -> None:
    bad = np.flatnonzero(got != want)
    assert not len(bad), [(hex(int(got[n])), hex(int(want[n])), *(hex(int(x[n])) for x in inputs)) for n in bad[:5]]


def test_sums_and_products_in_every_mode() -> None:
    singles = Singles()
    for mode in MODES:
        for text in ("FADD{} R0, R1", "FADD{} R0, -|R1|", "FMUL{} R0, R1", "FFMA{} R0, R1, R2", "FFMA{} -R0, R1, -R2"):
            singles.add(text.format(suffix(mode)))
    got = iter(singles.run(A, B, C))
    a, b, c = floats(A), floats(B), floats(C)
    for mode in MODES:
        same(next(got), to_float([fma(x, 1.0, y, "float", mode) for x, y in zip(a, b, strict=True)]), A, B)
        same(next(got), to_float([fma(x, 1.0, -abs(y), "float", mode) for x, y in zip(a, b, strict=True)]), A, B)
        same(next(got), to_float([multiplied(x, y, "float", mode) for x, y in zip(a, b, strict=True)]), A, B)
        same(next(got), to_float([fma(x, y, z, "float", mode) for x, y, z in zip(a, b, c, strict=True)]), A, B, C)
        same(next(got), to_float([fma(-x, y, -z, "float", mode) for x, y, z in zip(a, b, c, strict=True)]), A, B, C)


def test_flushed_and_saturated() -> None:
    singles = Singles()
    for mode, text in itertools.product(MODES, ("FADD.FTZ{} R0, R1", "FMUL.FTZ{} R0, R1", "FFMA.FTZ{} R0, R1, R2",
                                                "FFMA.FTZ{}.SAT R0, R1, R2", "FADD{}.SAT R0, R1")):
        singles.add(text.format(suffix(mode)))
    got = iter(singles.run(A, B, C))
    a, b, c = (floats(flushed(x)) for x in (A, B, C))
    for mode in MODES:
        same(next(got), flushed(to_float([fma(x, 1.0, y, "float", mode) for x, y in zip(a, b, strict=True)])), A, B)
        same(next(got), flushed(to_float([multiplied(x, y, "float", mode) for x, y in zip(a, b, strict=True)])), A, B)
        full = flushed(to_float([fma(x, y, z, "float", mode) for x, y, z in zip(a, b, c, strict=True)]))
        same(next(got), full, A, B, C)
        same(next(got), saturated(full), A, B, C)
        sums = to_float([fma(x, 1.0, y, "float", mode) for x, y in zip(floats(A), floats(B), strict=True)])
        same(next(got), saturated(sums), A, B)


def saturated(raw: Array) -> Array:
    value = raw.view(np.float32)
    return np.where(np.isnan(value) | (value <= 0), 0, np.minimum(value, 1)).astype(np.float32).view(np.uint32)


def test_scaled_products_and_zeros_that_win() -> None:
    singles = Singles()
    for text in ("FMUL.D8 R0, R1", "FMUL.M2 R0, R1", "FMUL.FMZ R0, R1", "FFMA.FMZ R0, R1, R2"):
        singles.add(text)
    got = iter(singles.run(A, B, C))
    a, b = floats(A), floats(B)
    same(next(got), to_float([multiplied(x, y / 8, "float") for x, y in zip(a, b, strict=True)]), A, B)
    same(next(got), to_float([multiplied(x, 2 * y, "float") for x, y in zip(a, b, strict=True)]), A, B)
    a, b, c = (floats(flushed(x)) for x in (A, B, C))
    same(next(got), flushed(to_float([multiplied(x, y, "float") if x and y else 0.0 for x, y in zip(a, b, strict=True)])), A, B)
    want = to_float([fma(x, y, z, "float") if x and y else z for x, y, z in zip(a, b, c, strict=True)])
    same(next(got), flushed(want), A, B, C)


def least(a: Array, b: Array, greatest: bool, nan: bool) -> Array:
    """As the PTX ISA says of min and max: -0 is below 0; a NaN loses, with .NaN it wins."""
    x, y = a.view(np.float32), b.view(np.float32)
    key_a, key_b = (np.where(raw >> 31 == 1, ~raw, raw | np.uint32(1 << 31)) for raw in (a, b))
    first = (key_a < key_b) != greatest
    out = np.where(first, a, b)
    out = np.where(np.isnan(x), b, np.where(np.isnan(y), a, out))
    none = np.isnan(x) | np.isnan(y) if nan else np.isnan(x) & np.isnan(y)
    return np.where(none, np.uint32(0x7FFFFFFF), out).astype(np.uint32)


def test_least_and_greatest() -> None:
    singles = Singles()
    for text in ("FMNMX R0, R1, PT", "FMNMX R0, R1, !PT", "FMNMX.NAN R0, R1, PT", "FMNMX.FTZ.NAN R0, R1, !PT",
                 "FMNMX.XORSIGN |R0|, |R1|, !PT"):
        singles.add(text)
    got = singles.run(A, B)
    same(got[0], least(A, B, False, False), A, B)
    same(got[1], least(A, B, True, False), A, B)
    same(got[2], least(A, B, False, True), A, B)
    same(got[3], least(flushed(A), flushed(B), True, True), A, B)
    size = np.uint32(0x7FFFFFFF)
    larger = least(A & size, B & size, True, False)
    same(got[4], np.where(larger == size, size, larger | (A ^ B) & ~size), A, B)


COMPARISONS = {
    "LT": lambda x, y: x < y, "EQ": lambda x, y: x == y, "LE": lambda x, y: x <= y, "GT": lambda x, y: x > y,
    "NE": lambda x, y: (x < y) | (x > y), "GE": lambda x, y: x >= y, "NUM": lambda x, y: ~(np.isnan(x) | np.isnan(y)),
    "NAN": lambda x, y: np.isnan(x) | np.isnan(y), "LTU": lambda x, y: ~(x >= y), "EQU": lambda x, y: ~((x < y) | (x > y)),
    "LEU": lambda x, y: ~(x > y), "GTU": lambda x, y: ~(x <= y), "NEU": lambda x, y: x != y, "GEU": lambda x, y: ~(x < y),
    "F": lambda x, y: np.zeros(len(x), bool), "T": lambda x, y: np.ones(len(x), bool),
}


def test_comparisons() -> None:
    singles = Singles()
    for name in COMPARISONS:
        singles.add(f"FSETP.{name}.AND R0, -R1, PT", 0, 2)
        singles.add(f"FSET.BF.{name}.AND |R0|, R1, PT")
        singles.add(f"FSET.FTZ.{name}.OR R0, R1, !PT")
        singles.add(f"DSETP.{name}.XOR R2, -R4, PT", 0, 2)
    d = [x[:len(A)] for x in np.resize(D, (3, len(A)))]
    wide = [half for x in d[:2] for half in halves64(x)]
    got = iter(singles.run(A, B, *wide))
    x, y = A.view(np.float32), B.view(np.float32)
    fx, fy = flushed(A).view(np.float32), flushed(B).view(np.float32)
    with np.errstate(invalid="ignore"):
        for holds in COMPARISONS.values():
            want = holds(x, -y)
            same(next(got), want.astype(np.uint32), A, B)
            same(next(got), (~want).astype(np.uint32), A, B)
            same(next(got), holds(abs(x), y) * np.uint32(0x3F800000), A, B)
            same(next(got), holds(fx, fy) * np.uint32(0xFFFFFFFF), A, B)
            want = holds(d[0].view(np.float64), -d[1].view(np.float64))
            same(next(got), (~want).astype(np.uint32), *d[:2])
            same(next(got), want.astype(np.uint32), *d[:2])


def test_selection_moves_bits() -> None:
    singles = Singles()
    singles.add("FSETP.LT.AND R0, R1, PT", 0, 1)
    singles.add("FSEL R0, -|R1|, P0")
    singles.add("FSEL.FTZ R0, R1, !P0")
    below, first, second = singles.run(A, B)
    same(first, np.where(below, A, B | np.uint32(1 << 31)), A, B)
    same(second, flushed(np.where(below, B, A)), A, B)


def test_float64_in_every_mode() -> None:
    a, b, c = (np.where(np.isnan(x.view(np.float64)), np.uint64(0x7FF8000000000000), x) for x in D)
    singles = Singles()
    for mode in MODES:
        for text in ("DADD{} R0, -R2", "DMUL{} R0, R2", "DFMA{} R0, R2, R4"):
            singles.add(text.format(suffix(mode)), 2)
    got = singles.run(*(half for x in (a, b, c) for half in halves64(x)))
    found = iter(joined64(got[n], got[n + 1]) for n in range(0, len(got), 2))
    x, y, z = ([float(v) for v in raw.view(np.float64)] for raw in (a, b, c))
    for mode in MODES:
        for want in ([fma(p, 1.0, -q, "double", mode) for p, q in zip(x, y, strict=True)],
                     [multiplied(p, q, "double", mode) for p, q in zip(x, y, strict=True)],
                     [fma(p, q, r, "double", mode) for p, q, r in zip(x, y, z, strict=True)]):
            value, expected = next(found), np.array(want)
            value = np.where(np.isnan(value), np.nan, value)
            same(value.view(np.uint64), np.where(np.isnan(expected), np.nan, expected).view(np.uint64), a, b, c)


def test_constants_of_float64_are_high_words() -> None:
    singles = Singles()
    singles.add("DADD R0, 0x3ff80000", 2)
    got = singles.run(*halves64(np.array([1.0, -1.5, 2.0**-60])))
    assert joined64(got[0], got[1]).tolist() == [2.5, 0.0, 1.5 + 2.0**-60]


@pytest.mark.parametrize("kind", ("MIN", "MAX"))
def test_float64_least_and_greatest_say_which(kind: str) -> None:
    """What ptxas makes of min.f64: the first predicate picks, the second one says that both are NaN."""
    singles = Singles()
    singles.add(f"DSETP.{kind}.AND R0, R2, PT", 0, 2)
    a, b = (x.ravel() for x in np.meshgrid(EDGES64, EDGES64))
    first, none = singles.run(*halves64(a), *halves64(b))
    x, y = a.view(np.float64), b.view(np.float64)
    key = [np.where(raw >> np.uint64(63) == 1, ~raw, raw | np.uint64(1 << 63)) for raw in (a, b)]
    same(none, (np.isnan(x) & np.isnan(y)).astype(np.uint32), a, b)
    better = key[0] < key[1] if kind == "MIN" else key[0] > key[1]
    better = np.where(np.isnan(x), False, np.where(np.isnan(y), True, better))
    different = a != b
    same(first[different], better[different].astype(np.uint32), a[different], b[different])


def test_division_check_lets_only_safe_numbers_pass() -> None:
    """Where FCHK is false, reciprocal, quotient and remainder are normal numbers."""
    rng = np.random.default_rng(7)
    pairs = np.stack(np.meshgrid(EDGES32, EDGES32)).reshape(2, -1)
    a, b = (np.concatenate((x, rng.integers(0, 1 << 32, 4000).astype(np.uint32), y)) for x, y in ((A, pairs[0]), (B, pairs[1])))
    singles = Singles()
    singles.add("FCHK R0, R1", 0, 1)
    slow = singles.run(a, b)[0].astype(bool)
    assert 0.2 < slow.mean() < 0.9
    x, y = (v[~slow].view(np.float32).astype(np.float64) for v in (a, b))
    assert np.isfinite(x / y).all()
    assert (abs(x / y) > 2.0**-126).all() and (abs(x / y) < 2.0**127).all()
    assert (abs(x) >= 2.0**-102).all() and (abs(y) < 2.0**126).all()
