"""The log-L2 report: against the formula in one line of NumPy, on arrays of every kind, and on what cannot be compared."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import devrt
from devrt import compare, safetensors
from devrt.compare import Report, Row
from devrt.compiler import dtypes as dt
from devrt.device import InvalidArgument
from tests.array.reference import NP, array, numbers, value

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 50), dtype=np.float32)


def one(ours: Any, theirs: Any) -> Row:
    [row] = compare.report({"x": ours}, {"x": theirs}).rows
    return row


def noisy(level: float, x: Any = X) -> Any:
    """`x` with a relative L2 error of 10^level."""
    noise = np.random.default_rng(1).standard_normal(x.shape)
    return (x + noise * (np.linalg.norm(x) / np.linalg.norm(noise)) * 10.0**level).astype(x.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Measures


@given(level=st.floats(-6, 3), shape=st.sampled_from([(), (1,), (7,), (3, 4, 5)]), seed=st.integers(0, 99))
def test_the_measures_are_their_formulas(level: float, shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    b = rng.standard_normal(shape)
    a = b + rng.standard_normal(shape) * 10**level
    row = one(a, b)
    assert row.log_l2 == pytest.approx(math.log10(np.linalg.norm(a - b) / np.linalg.norm(b)), abs=1e-6)
    assert row.max_abs == np.abs(a - b).max() == np.abs(a - b)[row.at]
    assert row.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-9)
    assert row.compared and row.shape == shape and row.dtype == "float64" and not row.same_bits and not row.note


def test_blocks_add_up() -> None:
    """More elements than a block, and the largest error in the last one."""
    b = RNG.standard_normal((3, compare.BLOCK // 2 + 5))
    a = b.copy()
    a[2, -2] += 7
    a[0, 3] -= 2
    row = one(a, b)
    assert row.log_l2 == pytest.approx(math.log10(math.sqrt(53) / np.linalg.norm(b)))
    assert row.at == (2, compare.BLOCK // 2 + 3) and row.max_abs == pytest.approx(7) and row.ulps == 0


def test_equal() -> None:
    row = one(X, X.copy())
    assert (row.log_l2, row.same_bits, row.max_abs, row.ulps) == (-math.inf, True, 0.0, 0.0) and row.cosine == pytest.approx(1)
    row = one(np.float32([0.0, 1.0]), np.float32([-0.0, 1.0]))
    assert row.log_l2 == -math.inf and not row.same_bits
    row = one(X.astype(np.float64), X)
    assert row.log_l2 == -math.inf and not row.same_bits and row.dtype == "float64, float32" and row.ulps is None
    assert one(np.zeros((0, 3)), np.zeros((0, 3))).same_bits and one(np.zeros(3), np.zeros(3)).same_bits


def test_a_reference_of_zeros() -> None:
    row = one(np.float32([0, 1e-30]), np.zeros(2, np.float32))
    assert row.log_l2 == math.inf and row.note == "the reference is zero" and math.isnan(row.cosine) and not row.passed(100)
    assert one(np.zeros(3), np.ones(3)).log_l2 == 0


def test_nan_and_infinity() -> None:
    b = np.float32([1, np.nan, np.inf, -np.inf, 2])
    row = one(b, b.copy())
    assert row.log_l2 == -math.inf and row.nonfinite == (3, 3) and row.same_bits
    row = one(np.float32([1.5, np.nan, np.inf, -np.inf, 2]), b)
    assert row.log_l2 == pytest.approx(math.log10(0.5 / math.sqrt(5))) and row.max_abs == 0.5 and row.at == (0,)
    for wrong in ([1, 3, np.inf, -np.inf, 2], [1, np.nan, -np.inf, -np.inf, 2], [np.nan, np.nan, np.inf, -np.inf, 2],
                  [1, np.inf, np.inf, -np.inf, 2]):
        row = one(np.float32(wrong), b)
        assert row.log_l2 == math.inf and row.note == "NaN and infinities differ in 1 element" and not row.passed(1000)
    assert one(np.float32([9, np.nan, np.inf, 0, 2]), b).at == (3,)
    row = one(np.full(3, np.nan), np.full(3, np.nan))
    assert row.log_l2 == -math.inf and row.ulps is None


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e-170, 1e170, 1.7e308])
def test_extreme_values_neither_overflow_nor_vanish(scale: float) -> None:
    row = one(np.array([1.0, -1.0, 0.5]) * scale, np.array([1.0, 1.0, 0.5]) * scale)
    assert row.log_l2 == pytest.approx(math.log10(2 / 1.5), abs=1e-3) and row.cosine == pytest.approx(0.25 / 2.25, abs=1e-2)
    assert row.max_abs == (2 * scale if scale < 1e308 else math.inf)


def test_units_in_the_last_place() -> None:
    b = RNG.standard_normal(1001).astype(np.float32)
    assert one(np.nextafter(b, np.float32(np.inf)), b).ulps == 1
    assert one(-np.float32([1e-45, 1e-45]), np.float32([1e-45, 1e-45])).ulps == 2, "zeros are one place"
    for kind in (ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn, np.float64):
        x = np.array([1, 1.5, 2, 3], kind)
        bits = x.view(f"u{x.itemsize}")
        assert one((bits + 3).astype(bits.dtype).view(kind), x).ulps == 3
    assert one(np.array([1, 2]), np.array([1, 2])).ulps is None


def test_memory_stays_bounded() -> None:
    """float64 copies of both would be eight times the bfloat16 tensors."""
    a, b = (np.ones(16 << 20, np.uint16).view(ml_dtypes.bfloat16) for _ in range(2))
    tracemalloc.start()
    assert one(a, b).same_bits
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * a.nbytes


# ---------------------------------------------------------------------------------------------------------------------
# Kinds of arrays


@pytest.mark.parametrize("d", [d for d in dt.ALL if d is not dt.int4], ids=str)
def test_every_type_of_devrt_and_numpy(d: dt.DType) -> None:
    x = numbers(d, (5, 7), 2)
    assert one(array(x), x).same_bits and one(x, array(x)).same_bits
    wide = x.astype(np.float64)
    y = wide + (np.arange(35).reshape(5, 7) == 9)
    want = math.log10(1 / np.linalg.norm(wide))
    assert one(y, x).log_l2 == pytest.approx(want) and one(array(x), y).at == (1, 2)


def test_int4_and_lazy_arrays() -> None:
    x = array(np.int8([1, -8, 7]), dt.int4)
    assert one(x, np.int8([1, -8, 7])).log_l2 == -math.inf and one(x, x).same_bits
    assert one(devrt.asarray(X) * 2, X * 2).same_bits


@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16", "float16", "int64", "bool", "float8_e5m2"])
def test_torch_tensors(kind: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch tensors are compared")
    t = torch.randn(6, 8).to(getattr(torch, kind))
    ours = devrt.from_dlpack(t)
    assert one(ours, t).same_bits and one(t, t.to(torch.float64)).log_l2 == -math.inf
    assert one(ours, t.to(torch.float64).numpy()).log_l2 == -math.inf
    assert one(value(ours).T, t.T).log_l2 == -math.inf, "strided"
    if t.is_floating_point() and kind != "float8_e5m2":
        assert one(t.clone().requires_grad_(), t).same_bits


def test_other_kinds() -> None:
    class Exporter:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return X.astype(np.float64) * 2

    assert one(Exporter(), X * 2).log_l2 == -math.inf
    assert one([[1.0, 2.0]], np.array([[1.0, 2.0]])).same_bits and one(3, np.int64(3)).log_l2 == -math.inf
    assert one(X[::2, ::-3], X[::2, ::-3].copy()).same_bits
    assert one(X.astype(">f4"), X).log_l2 == -math.inf


def test_tensors_of_a_file(tmp_path: Any) -> None:
    safetensors.save(tmp_path / "a", {"x": X, "y": X[0]})
    made = compare.report(safetensors.open_file(tmp_path / "a"), {"x": X, "y": X[0]})
    assert made.passed(-100) and [row.same_bits for row in made.rows] == [True, True]


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be compared


def test_what_is_missing_or_of_another_shape_is_a_row() -> None:
    made = compare.report({"extra": X, "b": X.T, "a": X}, {"a": X, "b": X, "gone": X})
    assert [(row.name, row.note, row.compared) for row in made.rows] == [
        ("a", "", True), ("b", "shape [50, 40] against [40, 50]", False), ("gone", "missing in ours", False),
        ("extra", "missing in theirs", False)]
    assert [row.shape for row in made.rows] == [(40, 50)] * 4
    assert not made.passed(100) and made.worst is made.rows[0] and made.first_divergence is made.rows[1]


@pytest.mark.parametrize("bad", [np.array(["text"]), np.array([1j]), object(), None, [[1], [1, 2]], np.array([X, None], object)])
def test_what_is_no_array_is_a_row(bad: Any) -> None:
    for row in (one(bad, X), one(X, bad)):
        assert row.note.startswith(("ours: ", "theirs: ")) and not row.compared and not row.passed(100)


def test_torch_tensors_without_memory() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch tensors are compared")
    for bad in (torch.zeros(3, dtype=torch.complex64), torch.zeros(3, device="meta"), torch.eye(3).to_sparse()):
        assert not one(bad, np.zeros(3)).compared


@pytest.mark.parametrize("sides", [([1], {}), ({}, 3), (None, {})])
def test_no_mapping(sides: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidArgument, match="mappings of names to arrays"):
        compare.report(*sides)
    with pytest.raises(InvalidArgument, match="NaN"):
        compare.report({}, {}, tolerance=math.nan)


def test_nothing_does_not_pass() -> None:
    made = compare.report({}, {})
    assert not made.passed() and made.worst is None and made.first_divergence is None and "no tensors" in str(made)


# ---------------------------------------------------------------------------------------------------------------------
# Divergence


def levels(*logs: float | None, kind: Any = np.float32, tolerance: float = -1.0) -> Report:
    """A report whose rows t0, t1, .. have these errors; None is the same bits."""
    x = X.astype(kind)
    ours = {f"t{n}": x if log is None else noisy(log, x.astype(np.float64)).astype(kind) for n, log in enumerate(logs)}
    return compare.report(ours, dict.fromkeys(ours, x), tolerance=tolerance)


@pytest.mark.parametrize(("logs", "first"), [
    ((None, None), None), ((None, -6.8, -6.5, -5.8, -5.0), None), ((None, -6.8, -6.6, -4.4, -4.3), "t3"),
    ((-6.5, -6.4, -0.5), "t2"), ((-6.0, -4.6, -3.2, -1.8), None), ((-3.0, -6.0), "t0"), ((None, None, -5.5), "t2")])
def test_where_the_error_jumps(logs: tuple[float | None, ...], first: str | None) -> None:
    made = levels(*logs)
    assert (made.first_divergence and made.first_divergence.name) == first
    assert not first or f"first divergence: {first} (log-L2 -" in str(made)


def test_a_coarse_type_may_round() -> None:
    assert levels(None, -2.5, -2.3, kind=ml_dtypes.bfloat16).first_divergence is None
    assert levels(None, -2.5, kind=np.float32).first_divergence is not None


def test_the_tolerance() -> None:
    made = levels(-6.5, -4.5, -3.0)
    assert made.passed(-2.9) and not made.passed(-3.1) and not made.passed(-4)
    assert made.worst is made.rows[2]
    assert levels(-6.5, -5.5, tolerance=-6).first_divergence.name == "t1"  # type: ignore[union-attr]
    assert levels(-3.0, tolerance=-4).passed() is False and levels(-3.0, tolerance=-2).passed()


def test_as_text_and_as_json() -> None:
    made = compare.report({"a": X, "b": noisy(-3), "c": np.float32([np.nan, 0]), "d": X[0]},
                          {"a": X, "b": X, "c": np.float32([np.nan, 0]), "d": X})
    text = str(made).splitlines()
    assert text[0].split()[:4] == ["tensor", "shape", "type", "log-L2"]
    assert text[2].split() == ["a", "40x50", "float32", "same", "bits", "0"]
    assert text[3].split()[:4] == ["b", "40x50", "float32", "-3.00"]
    assert text[4].split()[-2:] == ["1,", "1"] and text[5].endswith("shape [50] against [40, 50]")
    assert text[6:] == ["4 tensors, 2 not within 10^-4", "first divergence: b (log-L2 -3.00)", "largest error: b (log-L2 -3.00)"]
    data = json.loads(json.dumps(made.json(), allow_nan=False))
    assert (data["passed"], data["tolerance"], data["first_divergence"], data["worst"]) == (False, -4.0, "b", "b")
    assert [t["equal"] for t in data["tensors"]] == [True, False, True, False]
    assert data["tensors"][0]["log_l2"] is None and data["tensors"][1]["log_l2"] == pytest.approx(-3, abs=1e-3)
    assert data["tensors"][2]["nonfinite"] == [1, 1] and data["tensors"][1]["shape"] == [40, 50]
    assert str(compare.report({"a": X}, {"a": X})).splitlines()[3:] == ["1 tensor, all within 10^-4"]


def test_a_report_compares_what_numpy_says_of_the_types() -> None:
    """Every pair of types: the reference's values in one, ours in the other."""
    check: Callable[[dt.DType], Any] = lambda d: numbers(d, (64,), 3)
    for d in NP:
        if d is dt.int4:
            continue
        row = one(check(d), check(dt.float32))
        a, b = check(d).astype(np.float64), check(dt.float32).astype(np.float64)
        assert row.log_l2 == (-math.inf if (a == b).all() else pytest.approx(
            math.log10(np.linalg.norm(a - b) / np.linalg.norm(b))))


def test_names_do_not_reach_the_terminal_as_commands() -> None:
    name = "a\x1b[31m"
    text = str(compare.report({name: np.ones(3)}, {name: np.zeros(3)}))
    assert "a?[31m" in text and "\x1b" not in text


def test_progress_is_told_of_every_tensor() -> None:
    told: list[tuple[int, int, str]] = []
    sides = {"a": np.ones(2), "b": np.ones(3)}
    compare.report(sides, sides, progress=lambda *now: told.append(now))
    assert told == [(0, 2, "a"), (1, 2, "b"), (2, 2, "")]
