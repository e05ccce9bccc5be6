"""Summaries of samples, against figures worked out by hand."""

import pytest

from devrt.benchmark.measure import (
    SLOW_ROUNDS,
    Sample,
    calls_for,
    duration,
    interleave,
    measure,
    rate,
    summarise,
)


def test_median_fastest_and_spread_of_clean_samples():
    m = summarise([Sample(t, False) for t in (5.0, 1.0, 3.0, 2.0, 4.0)])
    assert (m.median, m.fastest, m.samples, m.discarded, m.disturbed) == (3.0, 1.0, 5, 0, False)
    assert m.spread == pytest.approx((4.0 - 2.0) / 3.0)


def test_preempted_samples_do_not_count_where_enough_others_remain():
    m = summarise([Sample(1.0, False)] * 5 + [Sample(100.0, True)] * 20)
    assert (m.median, m.samples, m.discarded, m.disturbed) == (1.0, 5, 20, False)


def test_they_count_and_it_is_said_where_too_few_remain():
    m = summarise([Sample(1.0, False)] * 4 + [Sample(100.0, True)] * 20)
    assert (m.median, m.samples, m.discarded, m.disturbed) == (100.0, 24, 0, True)
    assert str(m).endswith("disturbed")


def test_a_single_sample_is_a_measurement():
    assert summarise([Sample(2.0, False)]).median == 2.0


def test_measure_warms_and_repeats():
    calls = []
    m = measure(lambda: calls.append(0), seconds=0.001, warm=3, most=10)
    assert m.samples + m.discarded >= 5 and len(calls) > 3
    assert 0 < m.fastest <= m.median


def test_interleave_gives_everybody_a_turn_in_every_round():
    order: list[str] = []
    ticks = []
    found = interleave({n: lambda n=n: order.append(n) for n in "abc"}, rounds=3, pause=0.0, progress=lambda: ticks.append(0))
    assert set(found) == {"a", "b", "c"} and len(ticks) == 9
    first = {name: order.index(name) for name in "abc"}
    assert first["a"] < first["b"] < first["c"]
    assert order[-1] == "b"  # the order turns round: the third round goes c, a, b


def test_slow_work_leaves_after_a_few_rounds(monkeypatch):
    monkeypatch.setattr("devrt.benchmark.measure.SLOW_S", -1.0)
    calls = []
    m = interleave({"a": lambda: calls.append(0)}, rounds=SLOW_ROUNDS + 5, pause=0.0)["a"]
    assert len(calls) == SLOW_ROUNDS == m.samples + m.discarded


@pytest.mark.parametrize(("seconds", "text"), [(2.5, "2.5 s"), (0.00315, "3.15 ms"), (4.2e-6, "4.2 us"), (8.1e-9, "8.1 ns")])
def test_durations_have_three_digits(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("amount", "text"), [
    (2.1e11, "210 GB/s"), (36.24e9, "36.2 GB/s"), (1.5e12, "1.50 TB/s"), (7.0, "7 B/s"),
])
def test_rates_have_three_digits(amount, text):
    assert rate(amount, "B/s") == text


def test_short_calls_are_timed_in_batches():
    assert calls_for(1.0) == 1 and calls_for(2e-6) in (100, 101)
