"""The debug switches: DEVRT_DEBUG prints every kernel that runs, DEVRT_GRAPH draws it.

    DEVRT_DEBUG=1   a report of every schedule: ops, shape, tiling, FLOPs, bytes, predicted and measured time
    DEVRT_DEBUG=2   and each kernel's IR        3   and its LIR        4   and its machine code
    DEVRT_GRAPH=F   draw the last schedule that ran to the SVG file F
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from devrt.compiler.compile import backend_for, lower
from devrt.device import Device, InvalidArgument
from devrt.scheduler import draw
from devrt.scheduler.plan import Schedule
from devrt.scheduler.report import measure
from devrt.scheduler.run import Bound


def level() -> int:
    """DEVRT_DEBUG as a number, 0 where it is not set. Raises InvalidArgument for anything but 0 to 4."""
    text = os.environ.get("DEVRT_DEBUG") or "0"
    if text not in ("0", "1", "2", "3", "4"):
        raise InvalidArgument(f"DEVRT_DEBUG is 0 to 4, not {text!r}")
    return int(text)


def wanted() -> bool:
    return level() > 0 or bool(os.environ.get("DEVRT_GRAPH"))


def run(s: Schedule, bound: Bound, device: Device) -> None:
    """Submit once, measured, and show what the switches ask for."""
    report = measure(s, bound, device, 1)
    if graph := os.environ.get("DEVRT_GRAPH"):
        Path(graph).write_text(draw.svg(report))
    if level() >= 1:
        print(report, file=sys.stderr)
    for launch in s.launches:
        if launch.kernel is None or launch.compiled is None:
            continue
        if level() >= 2:
            print(f"\n{launch.compiled.entry}\n{launch.kernel}", file=sys.stderr)
        if level() >= 3:
            program = lower(launch.kernel, launch.compiled.entry, backend_for(device.properties).tuning)
            print(program, file=sys.stderr)
            if level() >= 4:
                print(backend_for(device.properties).assembly(program), file=sys.stderr)
