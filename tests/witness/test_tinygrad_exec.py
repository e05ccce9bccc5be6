"""tinygrad as it comes from PyPI, in a process of its own on virtual NVIDIA machines, with three compilers of others."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.virtual.test_exec import needs_seccomp

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "tinygrad_program.py"
RESULTS = ["chain [3.0, 5.0, 7.0]", "product True", "sum True", "softmax True", "integers True", "copies True"]
# tinygrad's name of a compiler -> the package that has it, and where in it
PACKAGES = {"CUDA": ("nvidia-cuda-nvrtc", "nvidia/cu*/lib/libnvrtc.so.*"),
            "PTX": ("nvidia-nvjitlink", "nvidia/cu*/lib/libnvJitLink.so.*"),
            "NAK": ("tinymesa==25.2.7.2", "tinymesa/libtinymesa.so")}

pytestmark = needs_seccomp


def library(compiler: str) -> Path:
    """The compiler's library. Skips without it."""
    package, place = PACKAGES[compiler]
    found = [path for folder in map(Path, sys.path) for path in folder.glob(place)]
    if not found:
        pytest.skip(f"not yet: {package} is not installed (a witness: make test WITNESSES=..)")
    return found[0]


def run(compiler: str, topology: str, *arguments: str) -> list[str]:
    """The lines that the program prints on a virtual machine. Skips where something is missing."""
    if importlib.util.find_spec("tinygrad") is None:
        pytest.skip("not yet: tinygrad is not installed (a witness: make test WITNESSES=tinygrad)")
    folder = str(library(compiler).parent)
    environment = {**os.environ, "DEV": f"NV:{compiler}", "NVRTC_PATH": folder, "NVJITLINK_PATH": folder, "CACHELEVEL": "0"}
    devrt = [sys.executable, "-m", "devrt.cli.main", "virtual", "exec", topology, "--"]
    done = subprocess.run([*devrt, sys.executable, str(PROGRAM), *arguments], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


# tinygrad chooses the kernel's structs by the driver's version: a machine for each set of them.
@pytest.mark.parametrize(("compiler", "machine", "arch"), [
    ("CUDA", "rtx3090?driver=570.133.20", "sm_86"), ("PTX", "rtx4090", "sm_89"), ("NAK", "rtx5090?driver=610.43.03", "sm_120")])
def test_programs(compiler: str, machine: str, arch: str) -> None:
    assert run(compiler, f"nvidia/{machine}") == [f"NV {arch}", *RESULTS]


def test_two_gpus() -> None:
    assert run("PTX", "nvidia/2xsm_86", "2") == ["NV sm_86", *RESULTS, "peer True"]
