"""`devrt bench`: measure, print a table, write JSON and a roofline."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

import devrt
from devrt import registry
from devrt.benchmark.cases import Case, cases
from devrt.benchmark.measure import Measurement, duration, measure, rate
from devrt.benchmark.roofline import draw
from devrt.device import CompileError, Device, InvalidArgument, OutOfMemory, Properties, Unsupported
from devrt.ioctl.errors import reported_as

SECONDS, QUICK_SECONDS = 0.5, 0.08


@dataclass(frozen=True)
class Record:
    """One measured case: per piece of work, not per run."""

    group: str
    name: str
    flops: float
    nbytes: float
    measurement: Measurement
    share: float | None  # of what the device's measured limits allow; None where no limit applies or is known
    bound: str  # the limit: "compute", "memory" or ""

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.measurement.median

    @property
    def bytes_per_s(self) -> float:
        return self.nbytes / self.measurement.median


def run_bench(args: argparse.Namespace) -> int:
    """The command line's entry: args.quick, json, plot, device, filter. Returns the exit code."""
    device = registry.open(args.device)
    if args.plot is not None:
        with reported_as(f"{args.plot} can't be written", remedy="name a file in a folder you may write to"):
            Path(args.plot).write_text("")  # before minutes of measuring, not after them
    records, skipped = run_cases(device, args.quick, args.filter or (), _silent if args.json else _progress)
    if args.json:
        print(json.dumps(report(device, records, skipped), indent=1))
    else:
        print(heading(device))
        print(table(records, simulated(device)))
        for name, why in skipped:
            print(f"not measured: {name}: {why}")
    if args.plot is not None:
        with reported_as(f"{args.plot} can't be written", remedy="name a file on a disk with room"):
            Path(args.plot).write_text(plot(device, records))
        print(f"roofline drawn to {args.plot}", file=sys.stderr)
    return 0


def run_cases(device: Device, quick: bool, filters: Sequence[str],
              progress: Callable[[int, int, str], None]) -> tuple[list[Record], list[tuple[str, str]]]:
    """(records, (title, reason) of what the device can't do) for the cases whose title contains one of `filters`."""
    groups = {c.group for c in cases(quick)}  # "op" is a group, and not a part of "copy"
    wanted = [c for c in cases(quick) if not filters or any(f == c.group if f in groups else f in c.title for f in filters)]
    if not wanted:
        raise InvalidArgument(f"no benchmark is called {' or '.join(filters)}",
                              remedy=f"name a part of a title: {', '.join(sorted(groups))}, ..")
    p = device.calibrate(fresh=True)  # the limits of this machine as it is now
    if simulated(device):  # a real GPU's limits say nothing of how fast this host plays it
        p = dataclasses.replace(p, peak_f32_flops_per_s=0.0, memory_bytes_per_s=0.0)
    records: list[Record] = []
    skipped: list[tuple[str, str]] = []
    for n, c in enumerate(wanted):
        progress(n, len(wanted), c.title)
        try:
            run = c.build(device)
            records.append(record(c, measure(run, seconds=QUICK_SECONDS if quick else SECONDS), p))
        except (Unsupported, OutOfMemory, CompileError) as e:
            skipped.append((c.title, str(e).splitlines()[0]))
    progress(len(wanted), len(wanted), "")
    return records, skipped


def simulated(device: Device) -> bool:
    """Whether the device is a model that runs on this host, whose times are not those of a GPU."""
    return device.uri.startswith("virtual:")


def record(c: Case, m: Measurement, p: Properties) -> Record:
    """What was measured, judged by the device's limits."""
    m = dataclasses.replace(m, median=m.median / c.each, fastest=m.fastest / c.each)
    share, bound = judge(c.flops, c.nbytes, m.median, p)
    return Record(c.group, c.name, c.flops, c.nbytes, m, share, bound)


def judge(flops: float, nbytes: float, seconds: float, p: Properties) -> tuple[float | None, str]:
    """(share of the limit, which limit): the roofline's time over the measured one. Work that stays in a cache may
    exceed the memory limit."""
    compute = flops / p.peak_f32_flops_per_s if p.peak_f32_flops_per_s else 0.0
    memory = nbytes / p.memory_bytes_per_s if p.memory_bytes_per_s else 0.0
    if not compute and not memory:
        return None, ""
    return max(compute, memory) / seconds, "compute" if compute > memory else "memory"


# ---------------------------------------------------------------------------------------------------------------------
# Output


def heading(device: Device) -> str:
    p = device.properties
    about = f"{p.name}, {p.compute_units} units"
    if simulated(device):
        return f"SIMULATED: {device.uri}, {about}. Times are of this host playing the GPU, not of a GPU; no limit applies to them"
    limits = f"{rate(p.peak_f32_flops_per_s, 'FLOP/s')} f32, {rate(p.memory_bytes_per_s, 'B/s')}"
    return f"{about}; measured limits: {limits if p.memory_bytes_per_s else 'not known'}"


def table(records: Sequence[Record], simulated: bool = False) -> str:
    rows = []
    for r in records:
        m = r.measurement
        rows.append([r.group, r.name, duration(m.median), duration(m.fastest), f"{m.spread:.0%}{'*' if m.disturbed else ''}",
                     rate(r.flops_per_s, "FLOP/s") if r.flops else "", rate(r.bytes_per_s, "B/s") if r.nbytes else "",
                     "" if r.share is None else f"{r.share:.0%} of {r.bound}"])
    columns = ("work", "median", "fastest", "spread", "FLOP/s", "bytes/s", "of the limit")
    text = tabulate(rows, ["simulated" if simulated else "", *columns], tablefmt="simple", disable_numparse=True,
                    colalign=("left", "left", *["right"] * 6))
    if any(r.measurement.disturbed for r in records):
        text += "\n* too few samples were undisturbed: other programs took cores"
    if any(r.share is not None and r.share > 1.05 for r in records):
        text += "\nabove 100% of memory: the limit is what all cores read, or one copies, of large arrays; caches are faster"
    return text


def report(device: Device, records: Sequence[Record], skipped: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The results as JSON."""
    return {"devrt": devrt.__version__, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "host": platform.node(), "load": list(os.getloadavg()), "device": device.uri, "simulated": simulated(device),
            "properties": {k: sorted(v) if isinstance(v, frozenset) else v
                           for k, v in dataclasses.asdict(device.properties).items()},
            "records": [dataclasses.asdict(r) for r in records],
            "skipped": [{"title": title, "reason": why} for title, why in skipped]}


def plot(device: Device, records: Sequence[Record]) -> str:
    """The roofline of the records that have FLOPs; of a simulated device without a roof."""
    p, points = device.properties, [(f"{r.group} {r.name}", r.flops / r.nbytes, r.flops_per_s) for r in records
                                    if r.flops and r.nbytes]
    if simulated(device):
        return draw(f"{p.name}: simulated by this host, not measured on a GPU", 0.0, 0.0, points)
    return draw(p.name, p.peak_f32_flops_per_s, p.memory_bytes_per_s, points)


def _silent(done: int, total: int, title: str) -> None:
    pass


def _progress(done: int, total: int, title: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{f'{done}/{total} {title}' if title else ''}", end="", file=sys.stderr, flush=True)
