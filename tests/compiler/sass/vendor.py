"""The vendor's ptxas and nvdisasm as witnesses (PyPI nvidia-cuda-nvcc, nvidia-cuda-nvdisasm); tests skip without them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from devrt.compiler.sass.flow import FlowBlock, walk
from devrt.compiler.sass.reader import Kernel


@cache
def _tool(name: str) -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    return next((path for root in roots for path in sorted(Path(root).glob(f"*/bin/{name}"))), None)


def _needed(name: str, package: str) -> Path:
    path = _tool(name)
    if path is None:
        pytest.skip(f"needs {name}: pip install {package}")
    return path


def nvdisasm() -> Path:
    """The path of nvdisasm."""
    return _needed("nvdisasm", "nvidia-cuda-nvdisasm")


def since(text: str) -> int:
    """The first generation that PTX is for."""
    target = re.search(r"^\.target\s+sm_(\d+)", text, re.MULTILINE)
    assert target
    return int(target[1])


@cache
def ptxas(text: str, sm: int, level: int = 3) -> bytes:
    """The cubin that ptxas makes of PTX at an optimisation level."""
    tool = _needed("ptxas", "nvidia-cuda-nvcc")
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(text)
        done = subprocess.run([tool, "-arch", f"sm_{sm}", f"-O{level}", source, "-o", out], capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0, done.stderr
        return out.read_bytes()


def walked(k: Kernel) -> dict[int, FlowBlock]:
    """The blocks of a kernel of ptxas."""
    return walk(k.code, k.entry, k.sm, indirect=k.indirect)
