"""Tensor cores of the emulator against NumPy, by the fragments that the PTX ISA draws ("Matrix fragments for mma")."""

from __future__ import annotations

import numpy as np
import pytest

from tests.virtual.nvidia.numbers import Array, bfloat, to_bfloat
from tests.virtual.nvidia.single import Singles, halves64, joined64

RNG = np.random.default_rng(31)
LANE = np.arange(32)
GROUP, THREAD = LANE // 4, LANE % 4  # groupID and threadID_in_group


def fragment_a(m: int, k: int, held: int) -> list[tuple[Array, Array]]:
    """(row, column) of every element of A in a lane's registers, element by element."""
    out = []
    for i in range(m * k // 32):
        word, element = divmod(i, held)
        row = GROUP + (8 if m == 16 and word % 2 else 0)
        column = THREAD * held + element + (word // (2 if m == 16 else 1)) * 4 * held
        out.append((row, column))
    return out


def fragment_b(k: int, held: int) -> list[tuple[Array, Array]]:
    return [(THREAD * held + i % held + i // held * 4 * held, GROUP) for i in range(k * 8 // 32)]


def fragment_c(m: int) -> list[tuple[Array, Array]]:
    return [(GROUP + (8 if i > 1 else 0), THREAD * 2 + i % 2) for i in range(m * 8 // 32)]


def packed(matrix: Array, places: list[tuple[Array, Array]], bits: int) -> list[Array]:
    """Raw elements (uint32) into registers of 32 lanes."""
    per = 32 // bits
    words = []
    for first in range(0, len(places), per):
        word = np.zeros(32, np.uint32)
        for n, (row, column) in enumerate(places[first:first + per]):
            word |= matrix[row, column].astype(np.uint32) << np.uint32(bits * n)
        words.append(word)
    return words


def multiply(names: list[str], a: list[Array], b: list[Array], c: list[Array], words: int) -> Array:
    """Instructions of A at R0, B at R4, C at R8."""
    registers = [np.zeros(32, np.uint32)] * 16
    for start, values in ((0, a), (4, b), (8, c)):
        registers[start:start + len(values)] = values
    singles = Singles(90)
    for name in names:
        singles.add(f"{name} R0, R4, R8", words)
    return singles.run(*registers)


def numbers_of(kind: str, *shape: int) -> tuple[Array, Array]:
    """Random numbers of a kind: (float64, raw bits)."""
    values = RNG.normal(0, 1, shape)
    if kind == "F16":
        half = values.astype(np.float16)
        return half.astype(np.float64), half.view(np.uint16).astype(np.uint32)
    if kind == "BF16":
        raw = to_bfloat((values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).ravel().tolist())
        raw = raw.reshape(shape)
        return bfloat(raw).astype(np.float64), raw.astype(np.uint32)
    raw = values.astype(np.float32).view(np.uint32)  # TF32: the low bits are ignored
    return (raw & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64), raw


FLOAT_SHAPES = (("1688", 8, "F16"), ("16816", 16, "F16"), ("1688", 8, "BF16"), ("16816", 16, "BF16"), ("1684", 4, "TF32"),
                ("1688", 8, "TF32"))


@pytest.mark.parametrize(("name", "k", "kind"), FLOAT_SHAPES)
def test_floats_summed_in_float32(name: str, k: int, kind: str) -> None:
    (a, raw_a), (b, raw_b) = numbers_of(kind, 16, k), numbers_of(kind, k, 8)
    c = RNG.normal(0, 1, (16, 8)).astype(np.float32)
    held, bits = (1, 32) if kind == "TF32" else (2, 16)
    mods = "" if kind == "F16" else f".{kind}"
    got = multiply([f"HMMA.{name}.F32{mods}"], packed(raw_a, fragment_a(16, k, held), bits),
                   packed(raw_b, fragment_b(k, held), bits), packed(c.view(np.uint32), fragment_c(16), 32), 4).view(np.float32)
    want = c.astype(np.float64) + a @ b
    found = np.zeros((16, 8))
    for n, (row, column) in enumerate(fragment_c(16)):
        found[row, column] = got[n]
    assert np.allclose(found, want, rtol=1e-5, atol=1e-5)
    exact = c.copy()
    for step in range(k):  # in the order of k, one rounding each
        exact = (exact.astype(np.float64) + a[:, step:step + 1] * b[step]).astype(np.float32)
    assert np.array_equal(found.astype(np.float32), exact)


@pytest.mark.parametrize(("name", "k"), (("1688", 8), ("16816", 16)))
def test_float16_sums(name: str, k: int) -> None:
    (a, raw_a), (b, raw_b), (c, raw_c) = numbers_of("F16", 16, k), numbers_of("F16", k, 8), numbers_of("F16", 16, 8)
    got = multiply([f"HMMA.{name}.F16"], packed(raw_a, fragment_a(16, k, 2), 16), packed(raw_b, fragment_b(k, 2), 16),
                   packed(raw_c, fragment_c(16), 16), 2)
    want = c + a @ b
    for n, (row, column) in enumerate(fragment_c(16)):
        half = (got[n // 2] >> np.uint32(16 * (n % 2))).astype(np.uint16).view(np.float16)
        assert np.allclose(half, want[row, column], rtol=2.0**-10, atol=2.0**-10)


INTEGER_SHAPES = (("8816", 8, 16, "SU"), ("8816", 8, 16, "US"), ("16816", 16, 16, "SS"), ("16832", 16, 32, "US"),
                  ("8832", 8, 32, "SU"), ("16864", 16, 64, "US"))


@pytest.mark.parametrize(("name", "m", "k", "kinds"), INTEGER_SHAPES)
def test_integers(name: str, m: int, k: int, kinds: str) -> None:
    bits = 4 if name in ("8832", "16864") else 8
    a, b = (RNG.integers(0, 1 << bits, shape) if kind == "U" else RNG.integers(-(1 << bits - 1), 1 << bits - 1, shape)
            for kind, shape in zip(kinds, ((m, k), (k, 8)), strict=True))
    c = RNG.integers(-(1 << 31), 1 << 31, (m, 8))
    c[::2] = np.where(c[::2] > 0, (1 << 31) - 1 - c[::2] % 64, -(1 << 31) + c[::2] % 64)
    held, mask = 32 // bits, (1 << bits) - 1
    text = f"IMMA.{name}.{kinds[0]}{bits}.{kinds[1]}{bits}"
    registers = [packed(a & mask, fragment_a(m, k, held), bits), packed(b & mask, fragment_b(k, held), bits),
                 packed(c & 0xFFFFFFFF, fragment_c(m), 32)]
    got = multiply([text, text + ".SAT"], *registers, m // 4)
    want = c + a @ b
    assert (abs(want) >= 1 << 31).any()
    for found, total in ((got[:m // 4], want), (got[m // 4:], np.clip(want, -(1 << 31), (1 << 31) - 1))):
        for n, place in enumerate(fragment_c(m)):
            assert np.array_equal(found[n], (total[place] & 0xFFFFFFFF).astype(np.uint32))


def test_float64() -> None:
    a, b, c = RNG.normal(0, 1, (8, 4)), RNG.normal(0, 1, (4, 8)), RNG.normal(0, 1, (8, 8))
    places = fragment_c(8)
    words = [*halves64(a[GROUP, THREAD]), np.zeros(32, np.uint32), np.zeros(32, np.uint32), *halves64(b[THREAD, GROUP]),
             np.zeros(32, np.uint32), np.zeros(32, np.uint32), *(half for place in places for half in halves64(c[place]))]
    singles = Singles()
    singles.add("DMMA.884 R0, R4, R8", 4)
    got = singles.run(*words)
    want = c + a @ b
    for n, place in enumerate(places):
        assert np.allclose(joined64(got[2 * n], got[2 * n + 1]), want[place], rtol=1e-14)


def test_transposition_of_8_by_8() -> None:
    matrix = RNG.integers(0, 1 << 16, (8, 8)).astype(np.uint32)
    places = [(GROUP, 2 * THREAD + n) for n in (0, 1)]
    singles = Singles()
    singles.add("MOVM.16.MT88 R0")
    got = singles.run(*packed(matrix, places, 16))
    assert np.array_equal(got[0], packed(matrix.T, places, 16)[0])
