"""What a schedule does, kernel by kernel: work, traffic, predicted and measured time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from devrt.compiler.compile import backend_for
from devrt.compiler.kernel import Kernel
from devrt.device import Device, Properties
from devrt.scheduler.plan import Launch, Place, Schedule
from devrt.scheduler.run import Bound

LAUNCH_S = 5e-8  # what a kernel costs inside a command list, for predicted times (bench/launch.py measures it)


@dataclass(frozen=True)
class KernelReport:
    """One kernel of a run. Times in seconds; flops and bytes as the kernel IR counts them."""

    name: str
    kind: str
    ops: str
    shape: tuple[int, ...]
    tiling: str
    flops: int
    bytes: int
    predicted_s: float
    measured_s: float
    limit: float
    reads: tuple[Place, ...]
    writes: Place

    @property
    def gflops(self) -> float:
        return self.flops / self.measured_s / 1e9 if self.measured_s else 0.0

    @property
    def gbytes(self) -> float:
        return self.bytes / self.measured_s / 1e9 if self.measured_s else 0.0


@dataclass(frozen=True)
class Report:
    """All kernels of a schedule, and the memory its temporaries take."""

    device: str
    kernels: tuple[KernelReport, ...]
    arena_bytes: int
    temporary_bytes: int
    dumps: tuple[str, ...]

    def __str__(self) -> str:
        from tabulate import tabulate
        rows = [(k.name, k.ops, "x".join(map(str, k.shape)) or "1", k.tiling, quantity(k.flops), quantity(k.bytes) + "B",
                 duration(k.predicted_s), duration(k.measured_s), f"{k.gflops:.1f}", f"{k.gbytes:.1f}", f"{k.limit:.0%}")
                for k in self.kernels]
        table = tabulate(rows, headers=("kernel", "ops", "shape", "tiling", "FLOPs", "bytes", "predicted", "measured", "GFLOP/s",
                                        "GB/s", "of limit"), disable_numparse=True,
                         colalign=("left", "left", "right", "left", *["right"] * 7))
        total = sum(k.measured_s for k in self.kernels)
        apart = f"(apart: {quantity(self.temporary_bytes)}B)"
        saved = f", temporaries {quantity(self.arena_bytes)}B {apart}" if self.temporary_bytes else ""
        plural = "s" * (len(self.kernels) != 1)
        return f"{table}\n{len(self.kernels)} kernel{plural} on {self.device}, {duration(total)} measured{saved}"

    def json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {"device": self.device, "arena_bytes": self.arena_bytes, "temporary_bytes": self.temporary_bytes,
                "kernels": [{"name": k.name, "kind": k.kind, "ops": k.ops, "shape": list(k.shape), "tiling": k.tiling,
                             "flops": k.flops, "bytes": k.bytes, "predicted_s": k.predicted_s, "measured_s": k.measured_s,
                             "gflops": k.gflops, "gbytes": k.gbytes, "of_limit": k.limit} for k in self.kernels]}


def quantity(n: float) -> str:
    """1234567 as 1.23M."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(n) < 1000 or unit == "T":
            return f"{n:.3g}{unit}"
        n /= 1000
    return ""


def duration(s: float) -> str:
    """Seconds as text with a fitting unit."""
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if s >= scale:
            return f"{s / scale:.3g} {unit}"
    return f"{s * 1e9:.0f} ns"


def predicted(flops: int, nbytes: int, p: Properties) -> float:
    """The roofline's time: the slower of arithmetic at its peak and traffic at the memory's, plus the launch."""
    compute = flops / p.peak_f32_flops_per_s if p.peak_f32_flops_per_s else 0.0
    memory = nbytes / p.memory_bytes_per_s if p.memory_bytes_per_s else 0.0
    return max(compute, memory) + LAUNCH_S


def summary(k: Kernel) -> str:
    """The kernel's ops in a few words, what computes first."""
    counts: dict[str, int] = {}
    from devrt.compiler.kernel import Attend, Contract, Reduce, stage_expressions, subexpressions
    from devrt.compiler.ops import Op
    for s in k.stages:
        for e in subexpressions(stage_expressions(s)):
            if isinstance(e.op, Op) and e.op is not Op.CAST:
                counts[e.op.value] = counts.get(e.op.value, 0) + 1
        if isinstance(s, (Reduce, Contract, Attend)):
            name = s.kind if isinstance(s, Reduce) else "contract" if isinstance(s, Contract) else "attention"
            counts[name] = counts.get(name, 0) + 1
    first = ("attention", "contract", "dot", "sum", "max", "min", "prod")
    words = sorted(counts.items(), key=lambda c: (c[0] not in first, -c[1]))
    text = " ".join(f"{n}x{name}" if n > 1 else name for name, n in words[:5])
    return text + (" .." if len(words) > 5 else "") or "copy"


def tiling(k: Kernel, launch: Launch, device: Device) -> str:
    """How the kernel is cut, in a few words."""
    assert launch.compiled is not None
    groups = launch.compiled.groups
    text = f"{groups} group{'s' * (groups != 1)}"
    if k.kind == "contract":
        from devrt.compiler.lowering import contract
        from devrt.compiler.lowering.product import contraction_of
        text = str(contract.plan(contraction_of(k), backend_for(device.properties).tuning))
    return text


def measure(s: Schedule, bound: Bound, device: Device, repeats: int) -> Report:
    """Run the recorded schedule `repeats` times and report medians."""
    p = device.calibrate()
    samples: list[list[int]] = []
    for _ in range(repeats):
        profile = device.profile(bound.commands)
        device.compute.wait(bound.submit(profile))
        samples.append(profile.durations_ns)
    kernels = []
    for n, launch in enumerate(s.launches):
        seconds = statistics.median(x[bound.indexes[n]] for x in samples) * 1e-9
        if launch.kernel is None or launch.compiled is None:
            kernels.append(KernelReport("copy", "copy", "copy", launch.shape, "", 0, 2 * launch.nbytes,
                                        predicted(0, 2 * launch.nbytes, p), seconds, 0.0, launch.places[1:], launch.places[0]))
            continue
        k = launch.kernel
        flops, nbytes = k.flops, k.bytes_moved
        guess = predicted(flops, nbytes, p)
        kernels.append(KernelReport(launch.compiled.entry, k.kind, summary(k), launch.shape, tiling(k, launch, device),
                                    flops, nbytes, guess, seconds, (guess - LAUNCH_S) / seconds if seconds else 0.0,
                                    launch.places[1:], launch.places[0]))
    dumps = tuple(str(launch.kernel) for launch in s.launches if launch.kernel is not None)
    return Report(device.uri, tuple(kernels), s.arena_bytes, s.temporary_bytes, dumps)


def graph_edges(kernels: Sequence[KernelReport]) -> list[tuple[int | None, int]]:
    """(producer, consumer) kernel numbers; producer None for an input."""
    writer: dict[Place, int] = {}
    edges: list[tuple[int | None, int]] = []
    for n, k in enumerate(kernels):
        edges += [(writer.get(place), n) for place in k.reads]
        writer[k.writes] = n
    return edges
