"""Packed float16 and bfloat16 arithmetic of the emulator against exact fractions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.virtual.nvidia import numbers
from tests.virtual.nvidia.numbers import EDGES16, EDGES32, Array, bfloat, fma, multiplied, rounded, to_bfloat, to_float, to_half
from tests.virtual.nvidia.single import Singles

LOW = numbers.triples(EDGES16, 16, 150, 3, 15 << 10, 9 << 10)
HIGH = numbers.triples(EDGES16, 16, 150, 4, 127 << 7, 12 << 7)
A, B, C = (low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16) for low, high in zip(LOW, HIGH, strict=True))
WIDE = {"half": lambda raw: raw.view(np.float16).astype(np.float64), "bfloat": lambda raw: bfloat(raw).astype(np.float64)}
BITS: dict[str, Callable[[list[float]], Array]] = {"half": to_half, "bfloat": to_bfloat}
SUFFIX = {"half": "", "bfloat": ".BF16_V2"}


def parts(raw: Array, fmt: str, select: str = "") -> list[list[float]]:
    """The numbers that the low and the high result take."""
    low, high = (raw & 0xFFFF).astype(np.uint16), (raw >> 16).astype(np.uint16)
    low, high = {"": (low, high), "H0_H0": (low, low), "H1_H1": (high, high)}[select]
    with np.errstate(invalid="ignore"):
        return [[float(x) for x in WIDE[fmt](half)] for half in (low, high)]


def joined(values: list[list[float]], fmt: str) -> Array:
    low, high = (BITS[fmt](x).astype(np.uint32) for x in values)
    return low | high << np.uint32(16)


def same(got: Array, want: Array, *inputs: Array) -> None:
    bad = np.flatnonzero(got != want)
    assert not len(bad), [(hex(int(got[n])), hex(int(want[n])), *(hex(int(x[n])) for x in inputs)) for n in bad[:5]]


def each(compute: Callable[..., float], fmt: str, *operands: list[list[float]]) -> Array:
    return joined([[compute(*row) for row in zip(*(o[half] for o in operands), strict=True)] for half in (0, 1)], fmt)


@pytest.mark.parametrize("fmt", SUFFIX)
def test_sums_and_products_round_once(fmt: str) -> None:
    s, singles = SUFFIX[fmt], Singles()
    for text in ("HADD2{} R0, -R1.H1_H1", "HMUL2{} R0.H0_H0, |R1|", "HFMA2.MMA{} R0, -R1, R2", "HFMA2{} R0.H1_H1, R1.H0_H0, -R2",
                 "HFMA2{} R0, R1.H0_H0, RZ", "HFMA2{} -RZ, RZ, 0x3f80c000"):
        singles.add(text.format(s))
    got = singles.run(A, B, C)
    a, b, c = (parts(x, fmt) for x in (A, B, C))
    low, high = (lambda x: parts(x, fmt, "H0_H0")), (lambda x: parts(x, fmt, "H1_H1"))
    same(got[0], each(lambda x, y: fma(x, 1.0, -y, fmt), fmt, a, high(B)), A, B)
    same(got[1], each(lambda x, y: multiplied(x, abs(y), fmt), fmt, low(A), b), A, B)
    same(got[2], each(lambda x, y, z: fma(x, -y, z, fmt), fmt, a, b, c), A, B, C)
    same(got[3], each(lambda x, y, z: fma(x, y, -z, fmt), fmt, high(A), low(B), c), A, B, C)
    same(got[4], each(lambda x, y: fma(x, y, 0.0, fmt), fmt, a, low(B)), A, B)
    assert set(got[5].tolist()) == {0x3F80C000}


def test_bfloat_sums_are_not_rounded_twice() -> None:
    """A product that is halfway between two bfloat16, and an addend that float64 would lose."""
    a = np.array([0x3F81, 0x3F81, 0x3F83], np.uint32)
    b = np.array([0x3FC0, 0x3FC0, 0x3FC0], np.uint32)
    c = np.array([0x0080, 0x8080, 0x0001], np.uint32)
    singles = Singles()
    singles.add("HFMA2.BF16_V2 R0, R1, R2")
    got = singles.run(a, b, c)[0] & 0xFFFF
    rows = zip(*(bfloat(x).tolist() for x in (a, b, c)), strict=True)
    assert got.tolist() == to_bfloat([fma(x, y, z, "bfloat") for x, y, z in rows]).tolist()
    assert len(set(got[:2].tolist())) == 2


def flushed(values: list[list[float]]) -> list[list[float]]:
    return [[np.copysign(0.0, x) if abs(x) < 2.0**-14 else x for x in half] for half in values]


def test_flushed_saturated_and_clamped() -> None:
    singles = Singles()
    for text in ("HFMA2.FTZ R0, R1, R2", "HADD2.SAT R0, R1", "HFMA2.RELU R0, R1, R2", "HFMA2.BF16_V2.RELU R0, R1, R2"):
        singles.add(text)
    got = singles.run(A, B, C)
    a, b, c = (parts(x, "half") for x in (A, B, C))
    full = each(lambda x, y, z: fma(x, y, z, "half"), "half", *(flushed(x) for x in (a, b, c)))
    same(got[0], joined(flushed(parts(full, "half")), "half"), A, B, C)
    sums = parts(each(lambda x, y: fma(x, 1.0, y, "half"), "half", a, b), "half")
    same(got[1], joined([[min(x, 1.0) if x > 0 else 0.0 for x in half] for half in sums], "half"), A, B)
    for n, fmt in ((2, "half"), (3, "bfloat")):
        full = each(lambda x, y, z, fmt=fmt: fma(x, y, z, fmt), fmt, *(parts(x, fmt) for x in (A, B, C)))
        positive = [[0.0 if x <= 0 else x for x in half] for half in parts(full, fmt)]
        same(got[n], joined(positive, fmt), A, B, C)


def test_float32_operands_and_results() -> None:
    raw = np.concatenate((EDGES32, np.random.default_rng(5).integers(0, 1 << 32, 300).astype(np.uint32),
                          np.random.default_rng(6).integers(0x33000000, 0x48000000, 300).astype(np.uint32)))
    halves = np.resize(A, len(raw))
    singles = Singles(sm=75)
    for text in ("HADD2.F32 -RZ, R1.H1_H1", "HADD2 R0.F32, -RZ.H0_H0", "HADD2.F32 R1.H0_H0, R1.H1_H1"):
        singles.add(text)
    got = singles.run(raw, halves)
    low, high = parts(halves, "half")
    same(got[0], to_float(high), halves)
    with np.errstate(invalid="ignore"):
        singles32 = [float(x) for x in raw.view(np.float32)]
    cut = [x if not np.isfinite(x) else rounded(numbers.Fraction(x), "half", "RZ", x) for x in singles32]
    same(got[1], joined([[fma(x, 1.0, -0.0, "half") for x in cut]] * 2, "half"), raw)
    same(got[2], to_float([fma(x, 1.0, y, "float") for x, y in zip(low, high, strict=True)]), halves)


@pytest.mark.parametrize("fmt", SUFFIX)
def test_least_and_greatest(fmt: str) -> None:
    s, singles = SUFFIX[fmt], Singles()
    for text in ("HMNMX2{} R0, R1, PT", "HMNMX2{}.NAN R0.H0_H0, R1, !PT", "HMNMX2{}.XORSIGN |R0|, |R1|, PT"):
        singles.add(text.format(s))
    got = singles.run(A, B)

    def least(x: float, y: float, sign: int, nan: bool) -> float:
        if x != x or y != y:
            return np.nan if nan or (x != x and y != y) else y if x != x else x
        return min((x, y), key=lambda v: (sign * v, sign * np.copysign(1, v)))

    a, b = parts(A, fmt), parts(B, fmt)
    same(got[0], each(lambda x, y: least(x, y, 1, False), fmt, a, b), A, B)
    same(got[1], each(lambda x, y: least(x, y, -1, True), fmt, parts(A, fmt, "H0_H0"), b), A, B)
    same(got[2], each(lambda x, y: np.copysign(least(abs(x), abs(y), 1, False), np.copysign(1, x) * np.copysign(1, y)),
                      fmt, a, b), A, B)


def test_comparisons_of_halves() -> None:
    names = ("LT", "GEU", "EQ", "NEU", "NAN")
    singles = Singles()
    for name in names:
        singles.add(f"HSETP2.{name}.AND R0, R1.H0_H0, PT", 0, 2)
        singles.add(f"HSETP2.BF16_V2.{name}.AND R0, -R1, PT", 0, 2)
        singles.add(f"HSETP2.{name}.H_AND.OR R0, R1, !PT", 0, 2)
        singles.add(f"HSET2.BF.{name}.AND R0, R1, PT")
        singles.add(f"HSET2.BF16_V2.BF.{name}.AND R0, R1, PT")
        singles.add(f"HSET2.{name}.AND R0, R1, PT")
    got = iter(singles.run(A, B))
    compare = {"LT": np.less, "GEU": lambda x, y: ~(x < y), "EQ": np.equal, "NEU": np.not_equal,
               "NAN": lambda x, y: (x != x) | (y != y)}
    for name in names:
        def holds(fmt: str, sign: float = 1.0, select: str = "", name: str = name) -> list[Array]:
            with np.errstate(invalid="ignore"):
                return [compare[name](np.array(x), sign * np.array(y))
                        for x, y in zip(parts(A, fmt), parts(B, fmt, select), strict=True)]
        for want in (holds("half", select="H0_H0"), holds("bfloat", -1.0)):
            for half in want:
                same(next(got), half.astype(np.uint32), A, B)
        both = np.logical_and(*holds("half"))
        same(next(got), both.astype(np.uint32), A, B)
        same(next(got), (~both).astype(np.uint32), A, B)
        for fmt, one in (("half", 0x3C00), ("bfloat", 0x3F80), ("half", 0xFFFF)):
            low, high = holds(fmt)
            same(next(got), low * np.uint32(one) | high * np.uint32(one << 16), A, B)
