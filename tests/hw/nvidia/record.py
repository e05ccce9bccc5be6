"""Record the driver's side of a small run:  python -m tests.hw.nvidia.record nvidia:0 run.jsonl.gz

The run opens the device, copies up, runs a kernel, copies down and closes. The recording is what the virtual GPU's answers are
compared with: tests/virtual/nvidia/test_recording.py.
"""

from __future__ import annotations

import difflib
import gzip
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from devrt.compiler.dtypes import float32
from devrt.compiler.lir import Builder
from devrt.compiler.sass import backend, target
from devrt.device import Placement, parse_uri
from devrt.ioctl.nv_versions import tables_for
from devrt.ioctl.recording import RecordingSystem
from devrt.ioctl.system import LinuxSystem
from devrt.nvidia import driver
from devrt.nvidia.device import NvidiaDevice
from devrt.virtual import open_system


def small_run(device: NvidiaDevice) -> bytes:
    """32 floats doubled."""
    b = Builder("double", lanes=32, groups=1)
    x, out = b.param("x", float32, 32), b.param("out", float32, 32, True)
    value = b.load(x, b.lane())
    b.store(out, b.lane(), b.add(value, value))
    program = device.load(backend.compile_program(b.finish(), target.target(device.properties.isa)), "double")
    up, down = device.alloc(128, Placement.HOST), device.alloc(128, Placement.HOST)
    near, far = device.alloc(128), device.alloc(128)
    up.host()[:128] = bytes(128)
    commands = device.command_list()
    commands.copy(near, up, 128)
    commands.dispatch(program, [near, far], 1)
    commands.copy(down, far, 128)
    device.compute.wait(device.compute.submit(commands), 10.0)
    return bytes(down.host()[:128])


def record(uri: str) -> list[str]:
    """The calls of a small run, a JSON line each."""
    parsed = parse_uri(uri)
    system = open_system(parsed) if parsed.virtual else LinuxSystem()
    recording = RecordingSystem(system, tables=tables_for(driver.version(system)).uapis)
    device = NvidiaDevice.open(parsed, recording)
    try:
        small_run(device)
    finally:
        device.close()
    return [call.json() for call in recording.calls]


def conversation(lines: Iterable[str]) -> Iterator[str]:
    """What was asked of the driver and how it answered, without what differs from run to run: a line an ioctl, equal neighbours
    once (how often something is asked depends on how many GPCs or engines there are)."""
    last = ""
    for line in lines:
        call: dict[str, Any] = json.loads(line)
        said = call.get("decoded")
        if not said:
            continue
        after = said["after"]
        what = next((f" {after[name]}" for name in ("cmd", "hClass") if name in after), "")
        inner = after.get("params")
        status = next((after[name] for name in ("status", "rmStatus", "Status") if name in after), None)
        status = inner.get("status") if status is None and isinstance(inner, dict) else status
        text = f"{said['name']}{what}: {status}"
        if text != last:
            yield text
        last = text


def differences(theirs: Iterable[str], ours: Iterable[str]) -> list[str]:
    """Where two conversations part: lines with - are only the first's, with + only the second's."""
    return [line for line in difflib.ndiff(list(conversation(theirs)), list(conversation(ours))) if line[0] in "-+"]


def read(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def main(uri: str, path: str) -> int:
    lines = record(uri)
    Path(path).write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    print(f"{path}: {len(lines)} calls of a small run on {uri}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
