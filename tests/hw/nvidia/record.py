"""Record the driver's side of a small run:  python -m tests.hw.nvidia.record nvidia:0 run.jsonl

The run opens the device, copies up, runs a kernel, copies down and closes. The recording is what the virtual GPU's answers are
compared with; of a run that fails, it ends with what failed.
"""

from __future__ import annotations

import sys
from typing import TextIO

from devrt.compiler.dtypes import float32
from devrt.compiler.lir import Builder
from devrt.compiler.sass import backend, target
from devrt.device import URI, Placement, parse_uri
from devrt.ioctl.nv_versions import tables_for
from devrt.ioctl.recording import Call, RecordingSystem
from devrt.ioctl.system import LinuxSystem, System
from devrt.nvidia import driver
from devrt.nvidia.device import NvidiaDevice
from devrt.virtual import open_system
from tests.garbage import collect


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


def recorded(uri: URI, system: System, sink: TextIO | None = None) -> list[Call]:
    """The calls of a small run, to the last that closes the driver; each is written to `sink` as it ends."""
    recording = RecordingSystem(system, sink, tables_for(driver.version(system)).uapis)
    device = NvidiaDevice.open(uri, recording)
    try:
        small_run(device)
    finally:
        device.close()
        del device
        collect()  # what signals hold is freed by finalizers
    return recording.calls


def main(uri: str, path: str) -> int:
    parsed = parse_uri(uri)
    with open(path, "w") as sink:
        calls = recorded(parsed, open_system(parsed) if parsed.virtual else LinuxSystem(), sink)
    print(f"{path}: the {len(calls)} calls of a small run on {uri}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
