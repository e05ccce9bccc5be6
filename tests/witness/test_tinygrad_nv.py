"""tinygrad's NVIDIA runtime in this process, where no supervisor is allowed: it opens a virtual GPU, copies, and launches what
ptxas made. Whole programs in a process of their own: test_tinygrad_exec.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# d = a * b + a, one thread an element. tinygrad's kernels know their block's size, so it does not put it where %ntid is read.
PTX = """
.version 7.8
.target {target}
.address_size 64
.visible .entry fma(.param .u64 d, .param .u64 a, .param .u64 b)
{{
    .reg .u32 %n<5>;
    .reg .u64 %p<8>;
    .reg .f32 %v<4>;
    ld.param.u64 %p1, [d];
    ld.param.u64 %p2, [a];
    ld.param.u64 %p3, [b];
    mov.u32 %n1, %ctaid.x;
    mov.u32 %n3, %tid.x;
    mad.lo.u32 %n4, %n1, 256, %n3;
    mul.wide.u32 %p4, %n4, 4;
    add.u64 %p5, %p1, %p4;
    add.u64 %p6, %p2, %p4;
    add.u64 %p7, %p3, %p4;
    ld.global.f32 %v1, [%p6];
    ld.global.f32 %v2, [%p7];
    fma.rn.f32 %v3, %v1, %v2, %v1;
    st.global.f32 [%p5], %v3;
    ret;
}}
"""


def run(*arguments: str) -> list[str]:
    """The lines that tinygrad_nv prints. Skips without tinygrad."""
    if importlib.util.find_spec("tinygrad") is None:
        pytest.skip("not yet: tinygrad is not installed (a witness: make test WITNESSES=tinygrad)")
    command = [sys.executable, "-m", "tests.witness.tinygrad_nv", *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120,
                           env={**os.environ, "DEV": "NV", "HCQDEV_WAIT_TIMEOUT_MS": "20000"})
    return found.stdout.splitlines() or found.stderr.splitlines()[-20:]


def ptxas() -> str | None:
    """ptxas of PyPI's nvidia-cuda-nvcc."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations or [] if spec else []
    return next((str(path) for place in places for path in Path(place).glob("cu*/bin/ptxas")), None)


def test_a_kernel_of_ptxas_runs(tmp_path: Path) -> None:
    assembler = ptxas()
    if assembler is None:
        pytest.skip("not yet: no ptxas here (nvidia-cuda-nvcc is a test extra)")
    (tmp_path / "fma.ptx").write_text(PTX.format(target="sm_86"))
    subprocess.run([assembler, "-arch=sm_86", tmp_path / "fma.ptx", "-o", tmp_path / "fma.cubin"], check=True)
    assert run("virtual:nvidia/sm_86", str(tmp_path / "fma.cubin")) == ["open sm_86", "copies True", "kernel True"]
