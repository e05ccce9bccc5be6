"""The pipeline from LIR to an object file: verify, emit, optimise, assemble."""

from __future__ import annotations

import functools
import re
import threading

import llvmlite.binding as llvm

from devrt.compiler import lir
from devrt.compiler.llvm.emit import Emitter
from devrt.compiler.llvm.target import Target, named
from devrt.device import CompileError

llvm_lock = threading.Lock()  # LLVM's global context is not thread-safe

# LLVM 22 turns vpmov*2m and kmov into vmovmsk even where the vector is in a register (16 to 31) that vmovmsk cannot
# name, and encodes another one: https://github.com/llvm/llvm-project/issues/191304
_MISENCODED = re.compile(r"\bvp?movmsk\w+\s+%[xy]mm(1[6-9]|2\d|3[01])\b")
_MOVMSK = re.compile(rb"\xc5.[\x50\xd7]|\xc4..[\x50\xd7]", re.DOTALL)  # VEX prefix, then MOVMSKPS/PD or PMOVMSKB


@functools.cache
def initialized() -> bool:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return True


@functools.cache
def _machine(target: Target) -> llvm.TargetMachine:
    initialized()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="small")


def llvm_ir(program: lir.Program, target: Target) -> str:
    """The LLVM IR text of `program`, not optimised."""
    width = 512 if target.lanes >= 16 else 256 if target.lanes >= 8 else 128
    attributes = f'nounwind "no-builtins" "prefer-vector-width"="{width}" "min-legal-vector-width"="{width}"'
    return f'target triple = "{target.triple}"\n' + Emitter(program, attributes).run()


def optimise(module: llvm.ModuleRef, machine: llvm.TargetMachine) -> None:
    """LLVM's function passes of level 1: the code is vectorised and unrolled already, what is left is folding and hoisting.
    The module passes would double the time and add copies of loop bodies."""
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.loop_vectorization = options.slp_vectorization = options.loop_interleaving = False
    builder = llvm.create_pass_builder(machine, options)
    manager = builder.getFunctionPassManager()
    for function in module.functions:
        if not function.is_declaration:
            manager.run(function, builder)


def _module(program: lir.Program, target: Target) -> llvm.ModuleRef:
    """The optimised module."""
    try:
        module = llvm.parse_assembly(llvm_ir(program, target))
        module.verify()
    except RuntimeError as e:
        raise CompileError(f"LLVM refuses the code of {program.name}", evidence=str(e).strip().splitlines()[0],
                           remedy="this is a defect of devrt: please report it with the LIR dump") from e
    optimise(module, _machine(target))
    return module


def _settled(program: lir.Program, target: Target) -> tuple[Target, bytes]:
    """(target, object): `target`, or AVX2 where LLVM would encode the code for `target` wrongly.

    Only an object that holds a movmsk at all is worth the second pass through the code generator that its text costs.
    """
    image = bytes(_machine(target).emit_object(_module(program, target)))
    suspect = target.has("avx512vl") and _MOVMSK.search(image)
    if suspect and _MISENCODED.search(str(_machine(target).emit_assembly(_module(program, target)))):
        return _settled(program, named("x86-64-avx2"))  # which has no such registers
    return target, image


def compile_program(program: lir.Program, target: Target) -> bytes:
    """An ELF relocatable object with `void NAME(ptr args, i64 group_begin, i64 group_end, ptr scratch)`.

    args is an array of u64, the addresses of the parameters in order. Raises CompileError.
    """
    lir.verify(program)
    with llvm_lock:
        return _settled(program, target)[1]


def assembly(program: lir.Program, target: Target) -> str:
    """The machine code as assembly text."""
    with llvm_lock:
        used, _ = _settled(program, target)
        return str(_machine(used).emit_assembly(_module(program, used)))
