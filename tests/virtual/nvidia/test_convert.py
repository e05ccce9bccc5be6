"""Conversions of the emulator against exact fractions, NumPy and ml_dtypes."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np

from tests.virtual.nvidia.numbers import EDGES16, EDGES32, EDGES64, Array, bfloat, rounded, to_bfloat, to_float, to_half
from tests.virtual.nvidia.single import Singles, halves64, joined64

RNG = np.random.default_rng(11)
HALVES = np.concatenate((EDGES16, RNG.integers(0, 1 << 16, 300).astype(np.uint16)))
FLOATS = np.concatenate((EDGES32, RNG.integers(0, 1 << 32, 200).astype(np.uint32),
                         RNG.integers(0x32000000, 0x50000000, 200).astype(np.uint32),
                         RNG.integers(0x32000, 0x50000, 200).astype(np.uint32) << np.uint32(12)))
DOUBLES = np.concatenate((EDGES64, RNG.integers(0, 1 << 64, 100, dtype=np.uint64),
                          RNG.integers(0x36 << 56, 0x48 << 56, 150, dtype=np.uint64),
                          RNG.integers(0x36 << 20, 0x48 << 20, 150).astype(np.uint64) << np.uint64(36)))
_INTEGERS = [0, 1, 127, 128, 255, 32767, 32768, 65535, 65519, 65520, 1 << 24, (1 << 24) + 1, (1 << 25) + 2, (1 << 31) - 1,
             1 << 31, (1 << 32) - 1, (1 << 53) + 1, (1 << 54) + 2, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - (1 << 40),
             (1 << 63) - (1 << 38)]
INTEGERS = np.concatenate((np.array(_INTEGERS, np.uint64), RNG.integers(0, 1 << 64, 100, dtype=np.uint64),
                           RNG.integers(0, 1 << 64, 200, dtype=np.uint64) >> RNG.integers(0, 64, 200).astype(np.uint64)))
FORMATS = {"F16": "half", "BF16": "bfloat", "F32": "float", "F64": "double"}
DIRECTIONS = {"": "RN", ".TRUNC": "RZ", ".FLOOR": "RM", ".CEIL": "RP"}


def exact(raw: Array, kind: str) -> list[float]:
    with np.errstate(invalid="ignore"):
        if kind == "BF16":
            return [float(x) for x in bfloat(raw)]
        return [float(x) for x in raw.view({"F16": np.float16, "F32": np.float32, "F64": np.float64}[kind])]


def columns() -> tuple[dict[str, Array], list[Array]]:
    """Bit patterns by type, and the registers that hold them: R0 halves, R1 floats, R2 doubles, R4 integers."""
    count = len(DOUBLES)
    raw = {"F16": np.resize(HALVES, count), "BF16": np.resize(HALVES, count), "F32": np.resize(FLOATS, count), "F64": DOUBLES,
           "I": np.resize(INTEGERS, count)}
    other = RNG.integers(0, 1 << 16, count).astype(np.uint32)
    registers = [raw["F16"].astype(np.uint32) | other << np.uint32(16), raw["F32"], *halves64(DOUBLES), *halves64(raw["I"])]
    return raw, registers


RAW, REGISTERS = columns()
PLACE = {"F16": "R0", "BF16": "R0", "F32": "R1", "F64": "R2"}


def same(got: Array, want: Array, *inputs: Array) -> None:
    bad = np.flatnonzero(got != want)
    assert not len(bad), [(hex(int(got[n])), hex(int(want[n])), *(hex(int(x[n])) for x in inputs)) for n in bad[:5]]


def bits_of(values: list[float], kind: str) -> Array:
    return {"F16": to_half, "BF16": to_bfloat, "F32": to_float}[kind](values).astype(np.uint32)


def check_float(found: list[Array], want: list[float], kind: str, *inputs: Array) -> None:
    if kind == "F64":
        value, expected = joined64(found[0], found[1]), np.array(want)
        same(np.where(np.isnan(value), np.nan, value).view(np.uint64),
             np.where(np.isnan(expected), np.nan, expected).view(np.uint64), *inputs)
    else:
        same(found[0], bits_of(want, kind), *inputs)


def special(x: float, compute: float) -> float:
    return x if not math.isfinite(x) else compute


def test_floats_to_floats_in_every_mode() -> None:
    singles, cases = Singles(sm=90), []
    for out in FORMATS:
        for source in FORMATS:
            for mode in ("RN", "RZ", "RM", "RP") if out != source else ():
                text = f"F2F.{out}.{source}{'' if mode == 'RN' else '.' + mode} -{PLACE[source]}"
                cases.append((out, source, mode, singles.add(text, 2 if out == "F64" else 1)))
    got = singles.run(*REGISTERS)
    for out, source, mode, first in cases:
        want = [-x if not math.isfinite(x) else rounded(-Fraction(x), FORMATS[out], mode, -x) for x in exact(RAW[source], source)]
        check_float([got[first], got[(first + 1) % len(got)]], want, out, RAW[source])


def integer(x: float, bits: int, signed: bool, mode: str, nan: int) -> int:
    """As the PTX ISA says of cvt: clamped."""
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if math.isnan(x):
        return nan
    if math.isinf(x):
        return high if x > 0 else low
    whole = {"RN": round, "RZ": math.trunc, "RM": math.floor, "RP": math.ceil}[mode](Fraction(x))
    return min(max(whole, low), high)


def test_floats_to_integers() -> None:
    singles, cases = Singles(sm=90), []
    for kind in ("U8", "S8", "U16", "S16", "U32", "S32", "U64", "S64"):
        for source in FORMATS:
            for suffix in DIRECTIONS if source == "F32" else ("", ".TRUNC"):
                zero = source != "F64" and kind[1:] != "64"  # what ptxas asks for: NaN is 0
                names = ("" if kind == "S32" else f".{kind}") + ("" if source == "F32" else f".{source}") + suffix
                text = f"F2I{names}{'.NTZ' * zero} {PLACE[source]}"
                cases.append((kind, source, suffix, zero, singles.add(text, 2 if kind[1:] == "64" else 1)))
    got = singles.run(*REGISTERS)
    for kind, source, suffix, zero, first in cases:
        bits, signed = int(kind[1:]), kind[0] == "S"
        nan = 0 if zero else 1 << bits - 1
        values = [integer(x, bits, signed, DIRECTIONS[suffix], nan) for x in exact(RAW[source], source)]
        if not zero and signed:
            values = [x - (1 << bits) if x == 1 << bits - 1 else x for x in values]
        if bits == 64:
            want = np.array([x & (1 << 64) - 1 for x in values], np.uint64)
            same(joined64(got[first], got[first + 1], np.uint64), want, RAW[source])
        else:
            same(got[first], np.array([x & 0xFFFFFFFF for x in values], np.uint32), RAW[source])


def test_integers_to_floats() -> None:
    singles, cases = Singles(sm=90), []
    for kind in ("U8", "S8", "U16", "S16", "U32", "S32", "U64", "S64"):
        for out in FORMATS:
            for mode in ("RN", "RZ", "RM", "RP") if kind[1:] in ("32", "64") else ("RN", "RP"):
                names = ("" if out == "F32" else f".{out}") + ("" if kind == "S32" else f".{kind}")
                text = f"I2F{names}{'' if mode == 'RN' else '.' + mode} R4"
                cases.append((kind, out, mode, singles.add(text, 2 if out == "F64" else 1)))
    cases.append(("U32", "F32", "RZ", singles.add("I2FP.F32.U32.RZ R4")))
    got = singles.run(*REGISTERS)
    for kind, out, mode, first in cases:
        bits = int(kind[1:])
        values = [int(x) & (1 << bits) - 1 for x in RAW["I"]]
        if kind[0] == "S":
            values = [x - (1 << bits) if x >> bits - 1 else x for x in values]
        want = [rounded(Fraction(x), FORMATS[out], mode) for x in values]
        check_float([got[first], got[(first + 1) % len(got)]], want, out, RAW["I"])


def test_bytes_and_halves_of_a_register() -> None:
    singles = Singles()
    for text in ("I2F.U8 R4.B2", "I2F.S8 R4.B3", "I2F.U16 R4.H1", "F2F.F32.F16 R0.H1"):
        singles.add(text)
    got = singles.run(*REGISTERS)
    raw = REGISTERS[4]
    same(got[0].view(np.float32), (raw >> 16 & 255).astype(np.float32))
    same(got[1].view(np.float32), (raw >> 24).astype(np.int8).astype(np.float32))
    same(got[2].view(np.float32), (raw >> 16).astype(np.float32))
    same(got[3], to_float(exact((REGISTERS[0] >> 16).astype(np.uint16), "F16")))


def test_rounding_to_whole_numbers() -> None:
    singles, cases = Singles(sm=90), []
    for kind in FORMATS:
        for suffix in DIRECTIONS:
            name = "" if kind == "F32" else f".{kind}"
            cases.append((kind, suffix, singles.add(f"FRND{name}{suffix} {PLACE[kind]}", 2 if kind == "F64" else 1)))
    flushed = singles.add("FRND.FTZ.CEIL R1")
    got = singles.run(*REGISTERS)
    round_ = {"": np.rint, ".TRUNC": np.trunc, ".FLOOR": np.floor, ".CEIL": np.ceil}
    for kind, suffix, first in cases:
        with np.errstate(invalid="ignore"):
            want = round_[suffix](np.array(exact(RAW[kind], kind))).tolist()
        check_float([got[first], got[(first + 1) % len(got)]], want, kind, RAW[kind])
    values = np.array(exact(RAW["F32"], "F32"))
    same(got[flushed], to_float(np.ceil(np.where(abs(values) < 2.0**-126, np.copysign(0, values), values)).tolist()), RAW["F32"])


def test_pairs_of_floats_are_packed() -> None:
    singles = Singles(sm=90)
    for text in ("F2FP.F16.F32.PACK_AB R1, R2", "F2FP.BF16.F32.PACK_AB.RZ RZ, R1", "F2FP.RELU.PACK_AB R1, R1",
                 "F2FP.TF32.F32.PACK_B R1", "F2FP.RELU.BF16.F32.MERGE_C R1, RZ",
                 "F2FP.SATFINITE.E4M3.F32.PACK_AB_MERGE_C R1, R2, R0", "F2FP.SATFINITE.E5M2.F32.PACK_AB_MERGE_C R1, R2, RZ",
                 "F2FP.F16.E4M3.UNPACK_B R0", "F2FP.F16.E5M2.UNPACK_B R0.H1", "F2FP.SATFINITE.E4M3.F16.UNPACK_B_MERGE_C R0, R1"):
        singles.add(text)
    second = np.roll(RAW["F32"], 7)
    got = singles.run(REGISTERS[0], RAW["F32"], second)
    a, b = exact(RAW["F32"], "F32"), exact(second, "F32")

    def cut(values: list[float], fmt: str, mode: str = "RN") -> list[float]:
        return [special(x, rounded(Fraction(x), fmt, mode, x) if math.isfinite(x) else x) for x in values]

    positive = [0.0 if x <= 0 else x for x in a]
    same(got[0], bits_of(cut(b, "half"), "F16") | bits_of(cut(a, "half"), "F16") << np.uint32(16), RAW["F32"], second)
    same(got[1], bits_of(cut(a, "bfloat", "RZ"), "BF16"), RAW["F32"])
    same(got[2], bits_of(cut(positive, "half"), "F16") * np.uint32(0x10001), RAW["F32"])
    same(got[3], to_float(cut(a, "tf32")), RAW["F32"])
    same(got[4], bits_of(cut(positive, "bfloat"), "BF16"), RAW["F32"])
    for n, (dtype, largest) in {5: (ml_dtypes.float8_e4m3fn, 448.0), 6: (ml_dtypes.float8_e5m2, 57344.0)}.items():
        low, high = (eighths(x, dtype, largest) for x in (b, a))
        above = (REGISTERS[0] & np.uint32(0xFFFF)) << np.uint32(16) if n == 5 else np.uint32(0)
        same(got[n], low | high << np.uint32(8) | above, RAW["F32"], second)
    for n, dtype, raw in ((7, ml_dtypes.float8_e4m3fn, REGISTERS[0]), (8, ml_dtypes.float8_e5m2, REGISTERS[0] >> np.uint32(16))):
        low, high = ((raw >> np.uint32(s)).astype(np.uint8).view(dtype).astype(np.float64).tolist() for s in (0, 8))
        same(got[n], bits_of(low, "F16") | bits_of(high, "F16") << np.uint32(16), raw)


    low, high = (eighths(exact((REGISTERS[0] >> np.uint32(s)).astype(np.uint16), "F16"), ml_dtypes.float8_e4m3fn, 448.0)
                 for s in (0, 16))
    same(got[9], low | high << np.uint32(8) | (RAW["F32"] & np.uint32(0xFFFF)) << np.uint32(16), REGISTERS[0])


def eighths(values: list[float], dtype: type, largest: float) -> Array:
    """Clamped, rounded by ml_dtypes; NaN is 0x7f."""
    wide = np.array(values)
    with np.errstate(invalid="ignore"):
        raw = np.clip(wide, -largest, largest).astype(np.float32).astype(dtype).view(np.uint8)
    return np.where(np.isnan(wide), np.uint8(0x7F), raw).astype(np.uint32)


def test_integers_are_clamped_and_packed() -> None:
    singles = Singles()
    for text in ("I2I.U8.S32.SAT R4", "I2I.S16.S32.SAT R4", "I2IP.U8.S32.SAT R4, R5, R0", "I2IP.S16.S32.SAT R4, R5, RZ",
                 "F2IP.U8.F32.NTZ R1, R1, R0"):
        singles.add(text)
    got = singles.run(*REGISTERS)
    a, b = (REGISTERS[n].view(np.int32) for n in (4, 5))
    same(got[0], np.clip(a, 0, 255).astype(np.uint32), REGISTERS[4])
    same(got[1], np.clip(a, -32768, 32767).view(np.uint32), REGISTERS[4])
    above = REGISTERS[0] << np.uint32(16)
    low, high = (np.clip(x, 0, 255).astype(np.uint32) for x in (b, a))
    same(got[2], low | high << np.uint32(8) | above, REGISTERS[4])
    low, high = (np.clip(x, -32768, 32767).astype(np.uint16).astype(np.uint32) for x in (b, a))
    same(got[3], low | high << np.uint32(16), REGISTERS[4])
    bytes_ = np.array([integer(x, 8, False, "RN", 0) for x in exact(RAW["F32"], "F32")], np.uint32)
    same(got[4], bytes_ * np.uint32(0x101) | above, RAW["F32"])

