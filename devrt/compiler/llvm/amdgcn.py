"""LIR to AMD code objects: LLVM's AMDGPU backend, an ELF relocatable object a kernel."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import llvmlite.binding as llvm

from devrt.compiler import lir
from devrt.compiler.llvm.backend import initialized, llvm_lock, optimise
from devrt.compiler.llvm.simt import SimtEmitter
from devrt.device import CompileError, Unsupported

TRIPLE = "amdgcn-amd-amdhsa"
LDS_BYTES = 64 << 10  # of a workgroup
# gfx name -> lanes of a wave as code is generated for it, and vector registers of a lane that leave enough waves in flight.
TARGETS = {"gfx90a": (64, 128), "gfx942": (64, 128), "gfx1030": (32, 128), "gfx1100": (32, 192), "gfx1201": (32, 192)}
# gfx name -> the layout of a product in the registers of its matrix units (lir.LAYOUTS), where code is generated for them.
MATRIX_UNITS = {"gfx90a": "mfma", "gfx942": "mfma", "gfx1100": "wmma"}


@dataclass(frozen=True)
class GcnTarget:
    """A GPU by its gfx name, and how its waves are."""

    gfx: str
    wave: int
    vector_registers: int

    @property
    def matrix_units(self) -> str:
        """Their layout, "" without."""
        return MATRIX_UNITS.get(self.gfx, "")

    @property
    def key(self) -> str:
        """What a cached object depends on."""
        return f"{TRIPLE}/{self.gfx}/{self.wave}/llvm{'.'.join(map(str, llvm.llvm_version_info))}"


def target(gfx: str) -> GcnTarget:
    """Raises Unsupported for a GPU that code is not generated for."""
    if gfx not in TARGETS:
        raise Unsupported(f"no code generation for {gfx}", evidence=f"supported: {', '.join(TARGETS)}",
                          remedy="use one of these GPUs, or open cpu")
    return GcnTarget(gfx, *TARGETS[gfx])


@functools.cache
def _machine(t: GcnTarget) -> llvm.TargetMachine:
    initialized()
    features = "" if t.gfx.startswith("gfx9") else f"+wavefrontsize{t.wave}"
    return llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=t.gfx, features=features, opt=2, reloc="pic")


def llvm_ir(program: lir.Program, t: GcnTarget) -> str:
    """The LLVM IR text of `program`, not optimised."""
    return f'target triple = "{TRIPLE}"\n' + SimtEmitter(program, t.gfx, t.wave).run()


def _module(program: lir.Program, t: GcnTarget) -> llvm.ModuleRef:
    try:
        module = llvm.parse_assembly(llvm_ir(program, t))
        module.verify()
    except RuntimeError as e:
        raise CompileError(f"LLVM refuses the code of {program.name}", evidence=str(e).strip().splitlines()[0],
                           remedy="this is a defect of devrt: please report it with the LIR dump") from e
    optimise(module, _machine(t))
    return module


def compile_program(program: lir.Program, t: GcnTarget) -> bytes:
    """An ELF relocatable object with the kernel `NAME` and its descriptor `NAME.kd`: one workgroup of one wave a group, the
    parameters' addresses in order as kernel arguments. Raises CompileError."""
    lir.verify(program)
    if program.shared_bytes > LDS_BYTES:  # LLVM would end the process
        raise CompileError(f"{program.name} needs {program.shared_bytes} bytes of LDS", evidence=f"a group has {LDS_BYTES}",
                           remedy="this is a defect of devrt: please report it")
    with llvm_lock:
        return bytes(_machine(t).emit_object(_module(program, t)))


def assembly(program: lir.Program, t: GcnTarget) -> str:
    """The machine code as assembly text."""
    with llvm_lock:
        return str(_machine(t).emit_assembly(_module(program, t)))
