"""devrt itself under the supervisor, as on a card of this machine: what the real System does with answers and with failures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from devrt.ioctl.recording import load
from tests.virtual.nvidia.recorded import acts, difference
from tests.virtual.nvidia.test_recorded import run as recorded_here
from tests.virtual.test_exec import needs_seccomp, run

pytestmark = needs_seccomp

# Opens, computes and closes again and again, whatever happens; prints what it saw and how many descriptors were left. The reset
# comes while the GPU is opened, when all that has its node open besides is a device that was closed.
PROGRAM = """
import os, sys
import numpy as np
import devrt
from tests.garbage import collect

def compute(uri):
    x, y = (devrt.asarray(np.sin(np.arange(n, dtype=np.float32)).reshape(-1, 40), device=uri) for n in (320, 1600))
    return devrt.nn.softmax(x @ y, axis=-1).numpy().tobytes()

right = compute("cpu")
for _ in range(7):
    try:
        seen = "right" if compute(sys.argv[1]) == right else "wrong"
    except devrt.device.DevrtError as error:
        seen = type(error).__name__ if error.evidence and error.remedy else f"bare {error!r}"
        error.__traceback__ = None
    devrt.open(sys.argv[1]).close()
    collect()
    print(seen, len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.parametrize(("topology", "uri", "faults"), [
    ("nvidia/sm_90", "nvidia:0", "errno=ENOMEM:RM_ALLOC@5&errno=EINTR:RM_ALLOC@40&page-fault@14&reset@35"),
    ("amd/gfx1100", "amd:0", "errno=ENOMEM:CREATE_QUEUE@2&errno=EINTR:MAP_MEMORY_TO_GPU@20&page-fault@14")])
def test_it_computes_fails_and_is_opened_anew(topology: str, uri: str, faults: str) -> None:
    done = run(sys.executable, "-c", PROGRAM, uri, topology=f"{topology}?{faults}")
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    seen, left = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    wanted = {"OutOfMemory", "right", "DeviceFault"} | ({"DeviceLost"} if "reset" in faults else set())
    assert set(seen) == wanted and seen[0] == "OutOfMemory" and seen[-1] == "right", seen
    assert max(map(int, left)) == int(left[0]), left  # a lost GPU leaves fewer


def test_a_recording_made_there_is_what_the_virtual_driver_answers_here(tmp_path: Path) -> None:
    """The day when a real card is recorded, rehearsed."""
    path = tmp_path / "run.jsonl"
    done = run(sys.executable, "-m", "tests.hw.nvidia.record", "nvidia:0", path, topology="nvidia/a100")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not difference(acts(load(path)), acts(recorded_here("a100")))
