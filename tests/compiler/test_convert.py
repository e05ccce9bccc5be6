"""devrt.compiler.convert against ml_dtypes and NumPy (all patterns of the narrow types) and against exact fractions."""

from __future__ import annotations

import warnings
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from devrt.compiler import convert
from devrt.compiler import dtypes as dt
from devrt.device import InvalidArgument

WITNESS = {dt.bfloat16: ml_dtypes.bfloat16, dt.float16: np.float16,
           dt.float8_e4m3: ml_dtypes.float8_e4m3fn, dt.float8_e5m2: ml_dtypes.float8_e5m2}
NARROW = tuple(WITNESS)
INTS = tuple(d for d in dt.ALL if d.is_int and d is not dt.int4)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def codes(dtype):
    """Every bit pattern of a narrow type, as an element array."""
    return np.arange(1 << dtype.bits, dtype=f"u{dtype.bits // 8}").view(convert.element_numpy(dtype))


def bits(array):
    return array.view(f"u{array.dtype.itemsize}")


def witness(values, dtype):
    with np.errstate(all="ignore"):
        return values.astype(WITNESS[dtype]).view(convert.element_numpy(dtype))


def assert_same(got, want):
    np.testing.assert_array_equal(bits(got), bits(want))


def finite(dtype):
    """Code and value (float64) of every finite number of `dtype` that has no sign bit, in order."""
    code = np.arange(1 << dtype.bits - 1)
    value = convert.widen(codes(dtype)[: len(code)], dtype)
    numbers = np.isfinite(value)
    return code[numbers], value[numbers].astype(np.float64)


def boundaries(dtype):
    """float64: every finite value of `dtype`, the midpoints between neighbours, and both float64 neighbours of each."""
    exact = np.unique(np.concatenate((finite(dtype)[1], -finite(dtype)[1])))
    top = exact[-1] + (exact[-1] - exact[-2])
    exact = np.concatenate(([-top], exact, [top]))
    points = np.concatenate((exact, (exact[1:] + exact[:-1]) / 2))
    return np.concatenate((points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf), -points[points == 0]))


def samples(count=200_000):
    """float64 bit patterns: uniform over all, and around the ranges of the narrow types; special values."""
    rng = np.random.default_rng(1)
    anywhere = rng.integers(0, 1 << 64, count, dtype=np.uint64).view(np.float64)
    near = np.ldexp(rng.uniform(-2, 2, count), rng.integers(-160, 140, count))
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -5e-324, 2.2e-308, 1.7e308])
    return np.concatenate((anywhere[~np.isnan(anywhere)], near, special))


@pytest.mark.parametrize("dtype", NARROW)
def test_every_code_widens_exactly(dtype):
    with np.errstate(all="ignore"):  # NumPy warns on signalling NaNs
        want = codes(dtype).view(WITNESS[dtype]).astype(np.float32)
    for wide, np_wide in ((dt.float32, np.float32), (dt.float64, np.float64)):
        got = convert.cast(codes(dtype), dtype, wide)
        numbers = ~np.isnan(want)
        assert_same(got[numbers], want[numbers].astype(np_wide))
        np.testing.assert_array_equal(np.isnan(got), ~numbers)
        np.testing.assert_array_equal(np.signbit(got), np.signbit(want))
        quiet = abs(int(np.array(np.nan, np_wide).view(f"u{wide.bits // 8}")))
        assert set(bits(np.abs(got[~numbers])).tolist()) <= {quiet}


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_there_and_back_is_identity(dtype):
    wide = convert.cast(codes(dtype), dtype, dt.float32)
    back = convert.cast(wide, dt.float32, dtype)
    numbers = ~np.isnan(wide)
    assert_same(back[numbers], codes(dtype)[numbers])
    quiet = {dt.bfloat16: 0x7FC0, dt.float16: 0x7E00, dt.float8_e4m3: 0x7F, dt.float8_e5m2: 0x7E}[dtype]
    assert {int(b) & (1 << dtype.bits - 1) - 1 for b in bits(back[~numbers])} == {quiet}


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("source", [dt.float32, dt.float64])
def test_rounding_agrees_with_ml_dtypes(dtype, source):
    values = np.concatenate((samples(), boundaries(dtype)))
    with np.errstate(all="ignore"):
        values = values.astype(source.name)
    if source is dt.float64 and dtype in (dt.float8_e4m3, dt.float8_e5m2, dt.bfloat16):
        want = single_rounding(values, dtype)  # ml_dtypes goes through float32: two roundings
    else:
        want = witness(values, dtype)
    assert_same(convert.cast(values, source, dtype), want)


def single_rounding(values, dtype):
    """The nearest code, found by searching the exact values of all codes; ties go to the even code."""
    positive, ladder = finite(dtype)
    top = 2 * ladder[-1] - ladder[-2] if dtype is dt.float8_e4m3 else np.ldexp(1.0, 1 << (dtype.exponent - 1))
    overflow = 0x7F if dtype is dt.float8_e4m3 else ((1 << dtype.exponent) - 1) << dtype.mantissa
    ladder, code = np.append(ladder, top), np.append(positive, overflow)
    size = np.abs(values)
    above = np.clip(np.searchsorted(ladder, size), 1, len(ladder) - 1)
    low, high = ladder[above - 1], ladder[above]
    middle = (low + high) / 2  # exact: neighbours differ in one of at most 9 bits
    up = (size > middle) | ((size == middle) & (code[above] % 2 == 0))
    out = np.where(up, code[above], code[above - 1])
    out[np.isnan(values)] = {dt.bfloat16: 0x7FC0, dt.float8_e4m3: 0x7F, dt.float8_e5m2: 0x7E}[dtype]
    out |= np.signbit(values).astype(np.int64) << (dtype.bits - 1)
    return out.astype(convert.element_numpy(dtype))


def test_the_ladder_itself_agrees_with_ml_dtypes():
    for dtype in (dt.bfloat16, dt.float8_e4m3, dt.float8_e5m2):
        with np.errstate(all="ignore"):
            values = np.concatenate((samples(), boundaries(dtype))).astype(np.float32)
        np.testing.assert_array_equal(single_rounding(values.astype(np.float64), dtype), witness(values, dtype))


def test_float64_rounds_once():
    just_above_half = np.array([1 + 2.0**-8 + 2.0**-40])  # bfloat16: through float32 this is a tie and falls to even
    assert convert.cast(just_above_half, dt.float64, dt.bfloat16)[0] == 0x3F81
    just_above_half = np.array([1 + 2.0**-11 + 2.0**-40])
    assert convert.cast(just_above_half, dt.float64, dt.float16)[0] == np.float16(1 + 2**-10)


@pytest.mark.parametrize("dtype", NARROW)
def test_nan_and_overflow(dtype):
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, 3.4e38, -3.4e38], np.float32)
    assert_same(convert.cast(values, dt.float32, dtype), witness(values, dtype))


@pytest.mark.parametrize(("dtype", "values", "want"), [
    (dt.float16, [65504.0, 65519.99, 65520.0], [65504, 65504, np.inf]),
    (dt.float8_e4m3, [448.0, 464.0, 464.1, np.inf], [0x7E, 0x7E, 0x7F, 0x7F]),
    (dt.float8_e5m2, [57344.0, 61439.0, 61440.0], [0x7B, 0x7B, 0x7C]),
])
def test_limits(dtype, values, want):
    assert convert.cast(np.array(values), dt.float64, dtype).tolist() == want


def test_positions_collide_in_narrow_types():
    def through(position, dtype):
        return int(convert.cast(convert.cast(np.array([position], np.int64), dt.int64, dtype), dtype, dt.int64)[0])

    assert [through(p, dt.bfloat16) for p in (8189, 8190, 8191)] == [8192] * 3
    assert next(p for p in range(1 << 14) if through(p, dt.bfloat16) != p) == 257 and through(257, dt.bfloat16) == 256
    assert next(p for p in range(1 << 14) if through(p, dt.float16) != p) == 2049 and through(2049, dt.float16) == 2048


def test_every_int8_survives_float16():
    every = np.arange(-128, 128, dtype=np.int8)
    there = convert.cast(every, dt.int8, dt.float16)
    np.testing.assert_array_equal(there, every.astype(np.float16))
    np.testing.assert_array_equal(convert.cast(there, dt.float16, dt.int8), every)


def wide_integers(dtype):
    rng = np.random.default_rng(2)
    size = rng.integers(0, 1 << 64, 3000, dtype=np.uint64) >> rng.integers(0, 64, 3000, dtype=np.uint64)
    near = [(1 << k) + d for k in range(65) for d in (-2, -1, 0, 1, 2)]
    ties = [(1 << k) + (1 << max(k - s, 0)) + d for k in range(64) for s in (9, 12, 25, 54) for d in (-1, 0, 1)]
    everything = [*map(int, size), *(-int(s) for s in size), *near, *(-n for n in near), *ties, *(-t for t in ties)]
    return np.array(sorted({v for v in everything if dtype.min <= v <= dtype.max}), dtype.name)


def nearest(value, dtype):
    """The integer `value` rounded to `dtype`'s precision, exactly. Range is not looked at."""
    excess = max(abs(value).bit_length() - dtype.mantissa - 1, 0)
    return round(Fraction(value, 1 << excess)) << excess


@pytest.mark.parametrize("source", INTS)
@pytest.mark.parametrize("target", [dt.float64, dt.float32, dt.float16, dt.bfloat16, dt.float8_e5m2])
def test_integers_round_once(source, target):
    values = wide_integers(source)
    got = convert.cast(values, source, target)
    top = int(finite(target)[1].max()) if target.bits < 32 else 1 << 127
    want = [float(n) if abs(n := nearest(int(v), target)) <= top else np.copysign(np.inf, n) for v in values]
    np.testing.assert_array_equal(convert.cast(got, target, dt.float64), want)


@pytest.mark.parametrize("target", [d for d in dt.ALL if d.is_int])
@pytest.mark.parametrize("source", [dt.float32, dt.float64])
def test_floats_truncate_and_saturate(source, target):
    edges = np.array([target.min, target.max, 0, 0.5, 1, -0.5, -1.5, 2.0**31, 2.0**63, -2.0**63, 2.0**64], np.float64)
    values = np.concatenate((samples(2000), edges, np.nextafter(edges, np.inf), np.nextafter(edges, -np.inf)))
    with np.errstate(all="ignore"):
        values = values.astype(source.name)
    want = [0 if np.isnan(v) else (target.max if v > 0 else target.min) if np.isinf(v)
            else min(max(int(v), target.min), target.max) for v in values]
    got = convert.cast(values, source, target)
    assert got.tolist() == want


@pytest.mark.parametrize("target", [d for d in dt.ALL if d.is_int])
@pytest.mark.parametrize("source", [*INTS, dt.int4])
def test_integers_wrap_and_int4_saturates(source, target):
    values = wide_integers(source) if source is not dt.int4 else np.arange(-8, 8, dtype=np.int8)
    if target is dt.int4:
        want = [min(max(int(v), -8), 7) for v in values]
    else:
        want = [(int(v) - target.min) % (1 << target.bits) + target.min for v in values]
    assert convert.cast(values, source, target).tolist() == want


@pytest.mark.parametrize("source", dt.ALL)
def test_bool_is_not_zero(source):
    values = np.array([0.0, -0.0, 1.0, -2.0, 0.5, np.nan])
    have = convert.cast(values, dt.float64, source)
    want = [False, False, True, source.is_signed or source is dt.bool_,
            source.is_float or source is dt.bool_, source.is_float or source is dt.bool_]
    assert convert.cast(have, source, dt.bool_).tolist() == want
    assert convert.widen(convert.cast(np.array([False, True]), dt.bool_, source), source).tolist() == [0, 1]


def test_int4_packs_low_nibble_first():
    raw = convert.encode(np.array([1.9, -8.7, 100.0, -np.inf, np.nan]), dt.int4)
    assert raw.tolist() == [0x81, 0x87, 0x00]
    assert convert.decode(raw, dt.int4, 5).tolist() == [1, -8, 7, -8, 0]
    every = np.arange(-8, 8, dtype=np.int8)
    np.testing.assert_array_equal(convert.unpack(convert.pack(every, dt.int4), dt.int4, 16), every)
    np.testing.assert_array_equal(convert.decode(np.array([0x21], np.uint8), dt.int4, 1), [1])


@pytest.mark.parametrize("dtype", dt.ALL)
def test_storage_has_the_width_of_the_type(dtype):
    raw = convert.encode(np.arange(6, dtype=np.float32), dtype)
    assert raw.dtype == convert.storage_numpy(dtype) and raw.nbytes == dtype.nbytes(6)
    want = [0, 1, 1, 1, 1, 1] if dtype is dt.bool_ else [0, 1, 2, 3, 4, 5]
    assert convert.decode(raw, dtype, 6).tolist() == want


def test_raw_arrays_are_checked():
    with pytest.raises(InvalidArgument, match="3 int4 are held by"):
        convert.decode(np.zeros(1, np.uint8), dt.int4, 3)
    with pytest.raises(InvalidArgument, match="uint16"):
        convert.decode(np.zeros(4, np.float32), dt.bfloat16, 4)
