"""MUFU of the emulator against NumPy and mpmath, and moved by its error."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
import pytest

from tests.virtual.nvidia.numbers import EDGES16, EDGES32, EDGES64, Array, to_half
from tests.virtual.nvidia.single import Singles, halves64

RNG = np.random.default_rng(21)
NAN = np.uint32(0x7FFFFFFF)
FLOATS = np.concatenate((EDGES32, RNG.integers(0, 1 << 32, 400).astype(np.uint32),
                         RNG.normal(0, 20, 400).astype(np.float32).view(np.uint32),
                         RNG.normal(0, 0.01, 200).astype(np.float32).view(np.uint32)))


def turned(name: str) -> Callable[[Array], Array]:
    """sin and cos of turns, exactly reduced by mpmath."""
    function = {"SIN": mpmath.sinpi, "COS": mpmath.cospi}[name]
    return lambda x: np.array([float(function(2 * mpmath.mpf(float(v)))) if np.isfinite(v) else np.nan for v in x])


REFERENCE: dict[str, Callable[[Array], Array]] = {
    "RCP": lambda x: 1 / x, "RSQ": lambda x: 1 / np.sqrt(x), "SQRT": np.sqrt, "EX2": np.exp2, "LG2": np.log2,
    "SIN": turned("SIN"), "COS": turned("COS"), "TANH": np.tanh,
}


def flushed(raw: Array) -> Array:
    return np.where(raw & 0x7FFFFFFF < 0x800000, raw & np.uint32(1 << 31), raw).astype(np.uint32)


def expected(name: str, raw: Array) -> Array:
    with np.errstate(all="ignore"):
        source = raw if name == "TANH" else flushed(raw)
        value = REFERENCE[name](source.view(np.float32).astype(np.float64)).astype(np.float32)
    bits = np.where(np.isnan(value), NAN, value.view(np.uint32))
    return bits if name == "TANH" else flushed(bits)


def moved(bits: Array, error: int) -> Array:
    size = bits & NAN
    return np.where((size == 0) | (size >= 0x7F800000), bits, bits + np.uint32(error & 0xFFFFFFFF)).astype(np.uint32)


@pytest.mark.parametrize("error", (-1, 0, 1))
def test_float32(error: int) -> None:
    """The nearest float32, off by `error`: NumPy's own last bit of float64 decides ties once in a thousand million."""
    singles = Singles(mufu_error=error)
    for name in REFERENCE:
        singles.add(f"MUFU.{name} R0")
    singles.add("MUFU.RCP -|R0|")
    got = singles.run(FLOATS)
    for name, found in zip(REFERENCE, got, strict=False):
        want = moved(expected(name, FLOATS), error)
        want = want if name == "TANH" else flushed(want)
        if name in ("SIN", "COS"):  # at half turns either zero
            found, want = (np.where(x == np.uint32(1 << 31), np.uint32(0), x) for x in (found, want))
        bad = np.flatnonzero(found != want)
        assert not len(bad), (name, [(hex(int(FLOATS[n])), hex(int(found[n])), hex(int(want[n]))) for n in bad[:5]])
    assert np.array_equal(got[-1], flushed(moved(expected("RCP", FLOATS | np.uint32(1 << 31)), error)))


def test_special_values() -> None:
    """The tables of the PTX ISA: rcp, rsqrt, ex2, lg2, tanh of zeros, infinities and what is flushed to zero."""
    inputs = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, -1.0, 2.0**127], np.float32)
    singles = Singles()
    for name in ("RCP", "RSQ", "SQRT", "EX2", "LG2"):
        singles.add(f"MUFU.{name} R0")
    got = [row.view(np.float32).tolist() for row in singles.run(inputs.view(np.uint32))]
    inf, nan = float("inf"), float("nan")
    want = [[inf, -inf, 0.0, -0.0, nan, inf, -inf, -1.0, 0.0], [inf, -inf, 0.0, nan, nan, inf, -inf, nan, 2.0**-63.5],
            [0.0, -0.0, inf, nan, nan, 0.0, -0.0, nan, 2.0**63.5], [1.0, 1.0, inf, 0.0, nan, 1.0, 1.0, 0.5, inf],
            [-inf, -inf, inf, nan, nan, -inf, -inf, nan, 127.0]]
    assert repr(got) == repr([[float(np.float32(x)) for x in row] for row in want])


def test_16_bits() -> None:
    raw = np.concatenate((EDGES16, RNG.integers(0, 1 << 16, 400).astype(np.uint16)))
    singles = Singles(sm=90)
    for text in ("MUFU.EX2.F16 R0", "MUFU.TANH.F16 R0.H1", "MUFU.TANH.BF16 R0"):
        singles.add(text)
    got = singles.run(raw.astype(np.uint32) | np.roll(raw, 1).astype(np.uint32) << np.uint32(16))
    with np.errstate(all="ignore"):
        x, y = raw.view(np.float16).astype(np.float64), np.roll(raw, 1).view(np.float16).astype(np.float64)
        z = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
        assert np.array_equal(got[0], to_half(np.exp2(x).tolist()))
        assert np.array_equal(got[1], to_half(np.tanh(y).tolist()))
        found = (got[2] << np.uint32(16)).view(np.float32).astype(np.float64)
        assert np.allclose(found, np.tanh(z), rtol=2.0**-8, atol=2.0**-134, equal_nan=True)


@pytest.mark.parametrize("error", (-1, 0, 1))
def test_high_words_of_float64(error: int) -> None:
    raw = np.concatenate((EDGES64, RNG.integers(0, 1 << 64, 300, dtype=np.uint64)))
    high = halves64(raw)[1]
    singles = Singles(mufu_error=error)
    singles.add("MUFU.RCP64H R0")
    singles.add("MUFU.RSQ64H R0")
    got = singles.run(high)
    x = (high.astype(np.uint64) << np.uint64(32)).view(np.float64)
    with np.errstate(all="ignore"):
        x = np.where(abs(x) < 2.0**-1022, np.copysign(0, x), x)
        for found, value in zip(got, (1 / x, 1 / np.sqrt(x)), strict=True):
            bits = value.view(np.uint64)
            word = ((bits + np.uint64(1 << 31)) >> np.uint64(32)).astype(np.uint32)
            size = word & NAN
            word = np.where((size == 0) | (size >= 0x7FF00000), word, word + np.uint32(error & 0xFFFFFFFF)).astype(np.uint32)
            word = np.where(word & NAN < 0x100000, word & np.uint32(1 << 31), word)
            want = np.where(np.isnan(value), NAN, word)
            bad = np.flatnonzero(found != want)
            assert not len(bad), [(hex(int(high[n])), hex(int(found[n])), hex(int(want[n]))) for n in bad[:5]]
