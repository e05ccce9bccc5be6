"""Repeating a piece of work until its time is known: medians, minima, spread, and which samples do not count.

A sample during which the process lost a core to somebody else (an involuntary context switch of any of its threads) is
discarded, as long as enough others remain; where too few do, all are kept and the measurement says it was disturbed.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LEAST = 5  # samples a median is taken of
SETTLE_S = 0.03  # idle threads of OpenMP and OpenBLAS spin for up to 25 ms before they leave their core to others
TURN_S = 0.02  # what one turn of an interleaved run should at least measure
SLOW_S = 0.5  # a call that takes longer needs no warming and is its turn's sample
SLOW_ROUNDS = 3  # the rounds it takes part in

Run = Callable[[], object]


@dataclass(frozen=True)
class Sample:
    """Seconds of one call, and whether the process was preempted meanwhile."""

    seconds: float
    preempted: bool


@dataclass(frozen=True)
class Measurement:
    """Seconds of one call over `samples` that count. `discarded` were preempted; `disturbed` says that too few were not,
    so that preempted ones count as well."""

    median: float
    fastest: float
    spread: float  # interquartile range / median
    samples: int
    discarded: int
    disturbed: bool

    def __str__(self) -> str:
        return f"{duration(self.median)} ±{self.spread * 50:.0f} %{' disturbed' if self.disturbed else ''}"


def summarise(samples: Sequence[Sample]) -> Measurement:
    """The measurement that samples amount to. Needs at least one."""
    clean = [s.seconds for s in samples if not s.preempted]
    disturbed = len(clean) < min(LEAST, len(samples))
    times = sorted(s.seconds for s in samples) if disturbed else sorted(clean)
    median = statistics.median(times)
    quarter, three_quarters = times[(len(times) - 1) // 4], times[3 * (len(times) - 1) // 4]
    return Measurement(median, times[0], (three_quarters - quarter) / median if median else 0.0, len(times),
                       len(samples) - len(times), disturbed)


def preemptions() -> int:
    """How often a thread of this process has lost its core while it wanted to run on."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def sample(run: Run, calls: int = 1) -> Sample:
    """Time `calls` calls as one; the sample is per call."""
    before = preemptions()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    seconds = time.perf_counter() - start
    return Sample(seconds / calls, preemptions() != before)


def calls_for(seconds: float, least_s: float = 2e-4) -> int:
    """Calls to time as one, so that reading clocks does not count."""
    return max(1, math.ceil(least_s / max(seconds, 1e-9)))


def measure(run: Run, *, seconds: float = 0.3, warm: int = 2, most: int = 200) -> Measurement:
    """Call `run` for about `seconds` after `warm` calls that do not count."""
    for _ in range(max(warm, 1)):
        first = sample(run)
    calls = calls_for(first.seconds)
    samples: list[Sample] = []
    end = time.perf_counter() + seconds
    while len(samples) < LEAST or time.perf_counter() < end and len(samples) < most:
        samples.append(sample(run, calls))
    return summarise(samples)


def interleave(runs: Mapping[str, Run], *, rounds: int, pause: float = SETTLE_S,
               progress: Callable[[], object] = lambda: None) -> dict[str, Measurement]:
    """Measure several pieces of work side by side: in every round each has one turn, so that noise hits all alike.

    A turn waits for the threads of the one before to leave, makes one call that does not count, then times about 20 ms.
    The order turns round by one from round to round. Calls of more than half a second count from the first on, in three
    rounds.
    """
    names = list(runs)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    slow: set[str] = set()
    for turn in range(rounds):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            if name in slow and turn >= SLOW_ROUNDS:
                continue
            time.sleep(pause)
            samples[name] += _turn(runs[name])
            if samples[name][-1].seconds > SLOW_S:
                slow.add(name)
            progress()
    return {name: summarise(found) for name, found in samples.items()}


def _turn(run: Run) -> list[Sample]:
    warm = sample(run)
    if warm.seconds > SLOW_S:
        return [warm]
    calls = calls_for(warm.seconds)
    return [sample(run, calls) for _ in range(max(1, min(20, int(TURN_S / max(warm.seconds * calls, 1e-9)))))]


def duration(seconds: float) -> str:
    """Three digits and a unit that fits."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def rate(amount: float, unit: str) -> str:
    """An amount a second with a prefix: rate(2.1e11, "FLOP/s") is "210 GFLOP/s"."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if amount >= scale:
            digits = max(0, 2 - int(math.log10(amount / scale)))
            return f"{amount / scale:.{digits}f} {prefix}{unit}"
    return f"{amount:.3g} {unit}"
