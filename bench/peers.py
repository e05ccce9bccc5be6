"""devrt beside NumPy, PyTorch, torch.compile and tinygrad on the host's cores, in one run.

    python bench/peers.py                     all rows
    python bench/peers.py --only softmax      rows whose name contains it (may be given several times)
    python bench/peers.py --quick             fewer rounds, no 4096 GEMM
    python bench/peers.py --write             bench/results/cpu-peers.md and .json

Every peer has two threads. In each round every peer has one turn, so that noise hits all alike; a row's results are
compared before it is timed. devrt runs a captured function, "devrt lazy" builds the expression anew each time; torch
allocates its outputs as devrt does, "torch out=" writes into memory that exists, tinygrad replays a TinyJit.
tinygrad needs clang (in PATH, or named by $CC); where it does not run, the report says why.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from report import HERE, SCRATCH, THREADS, Progress, destination, environment, heading, load, record, write

# isort: split
import numpy as np
import torch
from peer_cases import CASES, PEERS, Builder, Case, Target
from tabulate import tabulate

import devrt
from devrt.benchmark.measure import Measurement, duration, interleave

Row = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# Rows that several peers share


def shared_row(c: Case, rounds: int, progress: Callable[[], object]) -> Row:
    """Check, measure and judge one case."""
    differs = c.agree()
    found = interleave(c.runs | c.references, rounds=rounds, progress=progress)
    return {"name": c.name, "differs": differs, "missing": c.missing, "flops": c.flops, "nbytes": c.nbytes,
            "found": {name: asdict(m) for name, m in found.items()},
            "targets": [judge(t, found) for t in c.targets]}


def judge(t: Target, found: dict[str, Measurement]) -> Row:
    """Medians decide; the ratio of the minima stands beside it."""
    value = t.value(found)
    least = t.value({name: replace(m, median=m.fastest) for name, m in found.items()})
    return {"text": t.text, "bound": t.bound, "value": value, "by_minima": least,
            "ok": None if value is None else value >= t.bound}


def tinygrad_missing() -> str:
    """Why tinygrad can't run here, or "" where it does."""
    code = "from tinygrad import Tensor; print((Tensor([1.0, 2.0]) + 1).tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


# ---------------------------------------------------------------------------------------------------------------------
# Rows of devrt alone


def own_row(name: str, measurement: Measurement, text: str, bound: float) -> Row:
    """A row with an upper bound in seconds."""
    return {"name": name, "differs": "", "missing": {}, "flops": 0.0, "nbytes": 0.0, "found": {"devrt": asdict(measurement)},
            "targets": [{"text": text, "bound": bound, "value": measurement.median,
                         "by_minima": measurement.fastest, "ok": measurement.median <= bound}]}


def replayed(rounds: int) -> Row:
    """Seconds a kernel of a captured chain of 1000 products of 8x8, which can't be fused."""
    def chain(x: devrt.Array, w: devrt.Array) -> devrt.Array:
        for _ in range(1000):
            x = x @ w
        return x
    step, x, w = devrt.capture(chain), devrt.asarray(np.ones((8, 8), np.float32)), devrt.asarray(np.eye(8, dtype=np.float32))
    step(x, w).wait()
    (schedule,) = step.schedules()
    kernels = len(schedule.launches)
    m = interleave({"devrt": lambda: step(x, w).wait()}, rounds=rounds)["devrt"]
    each = replace(m, median=m.median / kernels, fastest=m.fastest / kernels)
    return own_row(f"replay of {kernels} kernels, each", each, "<= 1 us", 1e-6)


def compiled(_: int) -> list[Row]:
    """Compile times in fresh processes: with an empty disk cache, then with a warm one."""
    rows = []
    with tempfile.TemporaryDirectory(dir=SCRATCH.name) as cache:
        env = {**os.environ, "DEVRT_CACHE": cache}
        for state, bound in (("cold", 60e-3), ("warm disk cache", 2e-3)):
            command = [sys.executable, str(HERE / "compile_times.py")]
            *each, nvidia = json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
            times = [seconds for _, _, seconds, _ in each]
            m = Measurement(statistics.median(times), min(times), 0.0, len(times), 0, False)
            row = own_row(f"compile a kernel, {state}", m, f"<= {duration(bound)}", bound)
            row["each"] = each
            rows.append(row)
    name, _, seconds, _ = nvidia  # not from the cache in either process
    rows.append(own_row(f"compile {name}", Measurement(seconds, seconds, 0.0, 1, 0, False), "<= 100 ms", 100e-3))
    return rows


def imported(rounds: int) -> Row:
    """`import devrt` in a fresh interpreter, less the interpreter's own start."""
    code = "import time; a = time.perf_counter(); import devrt; print(time.perf_counter() - a)"
    times = [float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
             for _ in range(max(rounds, 5))]
    m = Measurement(statistics.median(times), min(times), 0.0, len(times), 0, False)
    return own_row("import devrt", m, "<= 150 ms", 150e-3)


OWN: dict[str, Callable[[int], Row | list[Row]]] = {"replay": replayed, "compile": compiled, "import": imported}


# ---------------------------------------------------------------------------------------------------------------------
# Report


def time_cell(row: Row, peer: str) -> str:
    if peer in row["missing"]:
        return "n/a"
    m = row["found"].get(peer)
    return "" if m is None else f"{duration(m['median'])} ({duration(m['fastest'])}){'*' if m['disturbed'] else ''}"


def verdict(row: Row) -> list[str]:
    """Target, what was reached (in brackets by minima), ok or short."""
    if row["differs"]:
        return ["", "", f"WRONG: {row['differs']}"]
    texts, values, marks = [], [], []
    for t in row["targets"]:
        show = duration if t["text"].startswith("<=") else "{:.2f}".format
        texts.append(t["text"])
        values.append("" if t["value"] is None else f"{show(t['value'])} ({show(t['by_minima'])})")
        marks.append("no peer" if t["ok"] is None else "ok" if t["ok"] else "short")
    return ["\n".join(texts), "\n".join(values), "\n".join(marks)]


def table(rows: list[Row], style: str) -> str:
    """The rows as a table: medians, minima in brackets."""
    shown = [p for p in PEERS if any(p in r["found"] or p in r["missing"] for r in rows)]
    join = (lambda s: s.replace("\n", "<br>")) if style == "pipe" else (lambda s: s)
    body = [[r["name"], *(time_cell(r, p) for p in shown), *map(join, verdict(r))] for r in rows]
    return tabulate(body, ["", *shown, "target", "reached", ""], tablefmt=style, disable_numparse=True)


def notes(rows: list[Row]) -> list[str]:
    out = ["Medians, minima in brackets; * marks medians that include samples during which the process was preempted."]
    reasons = {(peer, why) for r in rows for peer, why in r["missing"].items()}
    out += [f"{peer} n/a: {why}" for peer, why in sorted(reasons)]
    for r in rows:
        if copies := {n: m for n, m in r["found"].items() if n.startswith("copy ")}:
            nbytes = r["nbytes"] / 3 * 2
            rates = ", ".join(f"{n[5:]} {nbytes / m['median'] / 1e9:.1f}" for n, m in copies.items())
            out.append(f"{r['name']}: copies of one array, GB/s read and written: {rates}; "
                       f"devrt's kernel {r['nbytes'] / r['found']['devrt']['median'] / 1e9:.1f}")
    return out


def markdown(env: dict[str, Any], rows: list[Row]) -> str:
    return (heading("devrt beside its peers on the CPU", env, "python bench/peers.py --write", "cpu-peers.json")
            + f"{table(rows, 'pipe')}\n\n" + "\n".join(f"- {n}" for n in notes(rows)) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated; devrt is always measured")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=destination, metavar="FILE")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    rounds = args.rounds or (5 if args.quick else 15)
    wanted = [n for n in [*CASES, *OWN] if not args.only or any(o in n for o in args.only)]
    if args.quick and not args.only:
        wanted.remove("gemm 4096")
    peers = frozenset(args.peers.split(","))
    env = environment(("numpy", "torch", "tinygrad", "llvmlite"))
    builder = Builder(peers, tinygrad_missing() if "tinygrad" in peers else "")
    rows: list[Row] = []
    progress = Progress(len(wanted))
    for name in wanted:
        progress.begin(name)
        if name in OWN:
            made = OWN[name](rounds)
            rows += made if isinstance(made, list) else [made]
        else:
            fewer = max(3, rounds // 3) if name == "gemm 4096" else rounds
            rows.append(shared_row(CASES[name](builder), fewer, progress.tick))
            torch._dynamo.reset()
        progress.end()
        if not progress.shown:
            print(f"{progress.seconds:5.0f} s  {name}", file=sys.stderr, flush=True)
    progress.clear()
    env["load at the end"] = load()
    print(", ".join(f"{k} {v}" for k, v in env.items()))
    print(table(rows, "simple"))
    print("\n".join(notes(rows)))
    raw = record(env, rows)
    if args.json:
        args.json.write_text(raw)
    if args.write:
        write("cpu-peers", markdown(env, rows), raw)
    return 1 if any(r["differs"] for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
