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

_lock = threading.Lock()  # LLVM's global context is not thread-safe

# LLVM 22 turns vpmov*2m and kmov into vmovmsk even where the vector is in a register (16 to 31) that vmovmsk cannot
# name, and encodes another one: https://github.com/llvm/llvm-project/issues/191304
_MISENCODED = re.compile(r"\bvp?movmsk\w+\s+%[xy]mm(1[6-9]|2\d|3[01])\b")


@functools.cache
def _initialized() -> bool:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return True


@functools.cache
def _machine(target: Target) -> llvm.TargetMachine:
    _initialized()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="small")


def llvm_ir(program: lir.Program, target: Target) -> str:
    """The LLVM IR text of `program`, not optimised."""
    width = 512 if target.lanes >= 16 else 256 if target.lanes >= 8 else 128
    attributes = f'nounwind "no-builtins" "prefer-vector-width"="{width}" "min-legal-vector-width"="{width}"'
    return f'target triple = "{target.triple}"\n' + Emitter(program, attributes).run()


def _optimise(module: llvm.ModuleRef, machine: llvm.TargetMachine) -> None:
    """LLVM's function passes of level 1: the code is vectorised and unrolled already, what is left is folding and hoisting.
    The module passes would double the time and add copies of loop bodies."""
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.loop_vectorization = options.slp_vectorization = options.loop_interleaving = False
    builder = llvm.create_pass_builder(machine, options)
    manager = builder.getFunctionPassManager()
    for function in module.functions:
        if not function.is_declaration:
            manager.run(function, builder)


def _compile(program: lir.Program, target: Target) -> tuple[llvm.ModuleRef, llvm.TargetMachine]:
    machine = _machine(target)
    try:
        module = llvm.parse_assembly(llvm_ir(program, target))
        module.verify()
    except RuntimeError as e:
        raise CompileError(f"LLVM refuses the code of {program.name}", evidence=str(e).strip().splitlines()[0],
                           remedy="this is a defect of devrt: please report it with the LIR dump") from e
    _optimise(module, machine)
    moves_masks = any(i.op == "when" or (i.op == "lane_get" and i.out[0].dtype.kind == "bool") for i in lir.walk(program.body))
    if moves_masks and target.has("avx512vl") and _MISENCODED.search(str(machine.emit_assembly(module.clone()))):
        return _compile(program, named("x86-64-avx2"))  # which has no such registers
    return module, machine


def compile_program(program: lir.Program, target: Target) -> bytes:
    """An ELF relocatable object with `void NAME(ptr args, i64 group_begin, i64 group_end, ptr scratch)`.

    args is an array of u64, the addresses of the parameters in order. Raises CompileError.
    """
    lir.verify(program)
    with _lock:
        module, machine = _compile(program, target)
        return bytes(machine.emit_object(module))


def assembly(program: lir.Program, target: Target) -> str:
    """The machine code as assembly text."""
    with _lock:
        module, machine = _compile(program, target)
        return str(machine.emit_assembly(module))
