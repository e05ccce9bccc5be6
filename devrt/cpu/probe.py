"""Measured peaks of the host: memory bandwidth (of all cores reading, or of the copy engine, whichever is more) and f32 FMA rate.

Takes about half a second, on request; the result is kept beside the compiled command processor and read when the device
is opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from devrt.cpu.processor import compile_image
from devrt.ioctl.system import System
from devrt.paths import cache_folder

if TYPE_CHECKING:
    from devrt.cpu.device import CpuDevice

COPY_BYTES = 256 << 20
READ_PART = 1 << 20  # bytes that one group reads
FMA_TURNS = 2_000_000
_CHAINS = 12  # enough independent accumulators to hide a latency of 4 to 5 cycles on two units


class Peaks(NamedTuple):
    """0.0 where not measured. Bandwidth counts the bytes read and the bytes written."""

    f32_flops_per_s: float = 0.0
    memory_bytes_per_s: float = 0.0


def load(system: System) -> Peaks:
    """What an earlier measurement on this cpu, with this many cores, found."""
    try:
        record = json.loads(_path(system).read_text())
        return Peaks(float(record["f32_flops_per_s"]), float(record["memory_bytes_per_s"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Peaks()


def measure(device: CpuDevice) -> Peaks:
    """Measure (best of several), keep the result, and update the device's properties."""
    peaks = Peaks(_fma_rate(device), max(_copy_rate(device), _read_rate(device)))
    device.properties = dataclasses.replace(device.properties, peak_f32_flops_per_s=peaks.f32_flops_per_s,
                                            memory_bytes_per_s=peaks.memory_bytes_per_s)
    path = _path(device.system)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(json.dumps(peaks._asdict()))
    except OSError:
        return peaks  # a read-only home: the next process measures again
    return peaks


def _path(system: System) -> Path:
    cpu = system.read_text("/proc/cpuinfo").split("\n\n")[0]
    identity = [line for line in cpu.splitlines() if line.startswith(("model", "flags", "cpu family"))]
    key = hashlib.sha256("\n".join([*identity, str(system.host().affinity)]).encode()).hexdigest()[:16]
    return cache_folder() / f"peaks-2-{key}.json"


def _copy_rate(device: CpuDevice) -> float:
    src, dst = device.alloc(COPY_BYTES), device.alloc(COPY_BYTES)
    src.host()[:] = bytes(COPY_BYTES)
    commands = device.command_list()
    commands.copy(dst, src, COPY_BYTES)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        device.transfer.wait(device.transfer.submit(commands))
        best = min(best, time.perf_counter() - start)
    return 2 * COPY_BYTES / best


def _read_rate(device: CpuDevice) -> float:
    """Every core reads its part of an array larger than the caches."""
    program = device.load(compile_image(_read_kernel(device.properties.lanes)).object, "read")
    groups = COPY_BYTES // READ_PART
    array, out = device.alloc(COPY_BYTES), device.alloc(64 * groups)
    array.host()[:] = bytes(COPY_BYTES)
    commands = device.command_list()
    commands.dispatch(program, [array, out], groups)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        device.compute.wait(device.compute.submit(commands))
        best = min(best, time.perf_counter() - start)
    program.close()
    return COPY_BYTES / best


def _read_kernel(lanes: int) -> str:
    vector, chains = f"<{lanes} x float>", 8
    phis = "\n".join(f"  %a{i} = phi {vector} [ zeroinitializer, %group ], [ %b{i}, %turn ]" for i in range(chains))
    loads = "\n".join(f"  %p{i} = getelementptr i8, ptr %at, i64 {i * lanes * 4}\n  %v{i} = load {vector}, ptr %p{i}, align 4\n"
                      f"  %b{i} = fadd {vector} %a{i}, %v{i}" for i in range(chains))
    sums = "\n".join(f"  %s{i + 1} = fadd {vector} %s{i}, %b{i}" for i in range(1, chains)).replace("%s1,", "%b0,")
    return f"""
define dso_local void @read(ptr %args, i64 %begin, i64 %end, ptr %scratch) #0 {{
entry:
  %out.at = getelementptr i64, ptr %args, i64 1
  %array = load ptr, ptr %args
  %out = load ptr, ptr %out.at
  br label %group
group:
  %g = phi i64 [ %begin, %entry ], [ %g.next, %store ]
  %offset = mul i64 %g, {READ_PART}
  %first = getelementptr i8, ptr %array, i64 %offset
  br label %turn
turn:
  %done.bytes = phi i64 [ 0, %group ], [ %next.bytes, %turn ]
{phis}
  %at = getelementptr i8, ptr %first, i64 %done.bytes
  %ahead = getelementptr i8, ptr %at, i64 4096
  call void @llvm.prefetch.p0(ptr %ahead, i32 0, i32 3, i32 1)
{loads}
  %next.bytes = add i64 %done.bytes, {chains * lanes * 4}
  %more = icmp ult i64 %next.bytes, {READ_PART}
  br i1 %more, label %turn, label %store
store:
{sums}
  %to = getelementptr [64 x i8], ptr %out, i64 %g
  store {vector} %s{chains}, ptr %to, align 4
  %g.next = add i64 %g, 1
  %again = icmp ult i64 %g.next, %end
  br i1 %again, label %group, label %done
done:
  ret void
}}
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
attributes #0 = {{ nounwind "min-legal-vector-width"="512" }}
"""


def _fma_rate(device: CpuDevice) -> float:
    lanes, units = device.properties.lanes, device.properties.compute_units
    program = device.load(compile_image(_fma_kernel(lanes)).object, "fma")
    out = device.alloc(64 * units)
    commands = device.command_list()
    commands.dispatch(program, [out, FMA_TURNS], units)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        device.compute.wait(device.compute.submit(commands))
        best = min(best, time.perf_counter() - start)
    program.close()
    return units * FMA_TURNS * _CHAINS * lanes * 2 / best


def _fma_kernel(lanes: int) -> str:
    vector = f"<{lanes} x float>"
    phis = "\n".join(f"  %a{i} = phi {vector} [ splat (float {i}.0), %group ], [ %b{i}, %turn ]"
                     for i in range(_CHAINS))
    fmas = "\n".join(f"  %b{i} = call {vector} @llvm.fma({vector} %a{i}, {vector} splat (float 0.5), "
                     f"{vector} splat (float 1.0))" for i in range(_CHAINS))
    fmas = fmas.replace("@llvm.fma(", f"@llvm.fma.v{lanes}f32(")
    sums = "\n".join(f"  %s{i + 1} = fadd {vector} %s{i}, %b{i}" for i in range(1, _CHAINS)).replace("%s1,", "%b0,")
    return f"""
declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})
define dso_local void @fma(ptr %args, i64 %begin, i64 %end, ptr %scratch) #0 {{
entry:
  %turns.at = getelementptr i64, ptr %args, i64 1
  %out = load ptr, ptr %args
  %turns = load i64, ptr %turns.at
  br label %group
group:
  %g = phi i64 [ %begin, %entry ], [ %g.next, %store ]
  br label %turn
turn:
  %left = phi i64 [ %turns, %group ], [ %left.next, %turn ]
{phis}
{fmas}
  %left.next = sub i64 %left, 1
  %more = icmp ne i64 %left.next, 0
  br i1 %more, label %turn, label %store
store:
{sums}
  %to = getelementptr [64 x i8], ptr %out, i64 %g
  store {vector} %s{_CHAINS}, ptr %to, align 4
  %g.next = add i64 %g, 1
  %again = icmp ult i64 %g.next, %end
  br i1 %again, label %group, label %done
done:
  ret void
}}
attributes #0 = {{ nounwind "min-legal-vector-width"="512" }}
"""
