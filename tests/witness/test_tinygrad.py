"""tinygrad, which drives NVIDIA GPUs without CUDA, on virtual ones: objects, channels, copies, launches and faults as it makes
them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tinygrad")

ROOT = Path(__file__).parents[2]
SMS = ["sm_86", pytest.param("sm_89", marks=pytest.mark.slow), "sm_120"]  # the classes that it knows
WAIT_S = 100


def tinygrad(*arguments: str) -> tuple[str, ...]:
    """The lines that it prints."""
    command = [sys.executable, "-m", "tests.witness.tinygrad_nv", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return tuple(done.stdout.splitlines())


@pytest.mark.parametrize("topology", SMS)
def test_copies(topology: str) -> None:
    arch, *copies = tinygrad(topology)
    assert arch == topology
    assert copies == ["copy 1 True", "copy 300 True", "copy 5000 True", "copy 3000000 True"]
