"""A program against AMD's HSA runtime (hsa_vector_add.c): memory pools, copies by the copy engine, a queue, a kernel."""

from __future__ import annotations

import subprocess
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from tests.witness.rocr import Rocr, missing_tool, runtime_for

GPUS = ("gfx90a", "gfx1030", "gfx1100", "gfx942")
SOURCE = Path(__file__).parent / "hsa_vector_add.c"

# c[i] = a[i] + b[i]. Version 4 of the code object: the newest that ROCm 5.2 loads.
KERNEL = """
target triple = "amdgcn-amd-amdhsa"
declare i32 @llvm.amdgcn.workitem.id.x()
declare i32 @llvm.amdgcn.workgroup.id.x()
define amdgpu_kernel void @add(ptr addrspace(1) %c, ptr addrspace(1) %a, ptr addrspace(1) %b) #0 {
  %group = call i32 @llvm.amdgcn.workgroup.id.x()
  %lane = call i32 @llvm.amdgcn.workitem.id.x()
  %first = mul i32 %group, 64
  %i = add i32 %first, %lane
  %ap = getelementptr float, ptr addrspace(1) %a, i32 %i
  %bp = getelementptr float, ptr addrspace(1) %b, i32 %i
  %cp = getelementptr float, ptr addrspace(1) %c, i32 %i
  %x = load float, ptr addrspace(1) %ap
  %y = load float, ptr addrspace(1) %bp
  %z = fadd float %x, %y
  store float %z, ptr addrspace(1) %cp
  ret void
}
attributes #0 = { "amdgpu-flat-work-group-size"="64,64" "uniform-work-group-size"="true" }
!llvm.module.flags = !{!0}
!0 = !{i32 1, !"amdhsa_code_object_version", i32 400}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if why := missing_tool("gcc"):
        pytest.skip(why)
    if not Path("/usr/include/hsa/hsa.h").exists():
        pytest.skip("no hsa/hsa.h: apt-get install libhsa-runtime-dev")
    built = tmp_path_factory.mktemp("hsa") / "vector_add"
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-o", built, SOURCE, "-lhsa-runtime64"], check=True)
    return built


def code_object(gfx: str, folder: Path) -> Path:
    """The kernel as a shared object that the runtime loads."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(KERNEL)
    machine = llvm.Target.from_triple("amdgcn-amd-amdhsa").create_target_machine(cpu=gfx, opt=2, reloc="pic")
    relocatable, shared = folder / "add.o", folder / "add.so"
    relocatable.write_bytes(machine.emit_object(module))
    subprocess.run(["ld.lld", "-shared", "-o", shared, relocatable], check=True)
    return shared


def steps(rocr: Rocr, gfx: str, *command: str | Path) -> list[str]:
    done = rocr.run(f"amd/{gfx}", *map(str, command))
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return done.stdout.splitlines()


def runtime(gfx: str) -> Rocr:
    rocr, why = runtime_for(gfx)
    if rocr is None:
        pytest.skip(why)
    return rocr


@pytest.mark.parametrize("gfx", GPUS)
def test_copies_and_queue(gfx: str, program: Path) -> None:
    assert steps(runtime(gfx), gfx, program) == [gfx, "allocated", "copy is right", "queue", "done"]


@pytest.mark.parametrize("gfx", GPUS)
def test_dispatch(gfx: str, program: Path, tmp_path: Path) -> None:
    if why := missing_tool("ld.lld"):
        pytest.skip(why.replace("install ld.lld", "install lld"))
    expected = [gfx, "allocated", "copy is right", "queue", "loaded", "dispatched", "sum is right", "done"]
    assert steps(runtime(gfx), gfx, program, code_object(gfx, tmp_path)) == expected
