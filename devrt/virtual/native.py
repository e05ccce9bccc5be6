"""LLVM IR to a function of this process, through the compile cache."""

from __future__ import annotations

import _thread
import functools
from collections.abc import Callable, Sequence

import cffi
import llvmlite.binding as llvm

from devrt.compiler import cache
from devrt.compiler.llvm import target
from devrt.compiler.llvm.backend import initialized, llvm_lock
from devrt.cpu.program import Code, load_object
from devrt.device import CompileError
from devrt.ioctl.system import LinuxSystem

Run = Callable[[int, int, int], int]
_loaded: list[Code] = []  # called for as long as the process lives


@functools.cache
def _ffi() -> cffi.FFI:
    return cffi.FFI()


def function(text: str) -> Run:
    """`run(context, begin, end)` of a module. Raises CompileError."""
    host = target.host()
    key = cache.key("virtual", text, host.key)
    found = cache.load(key)
    image = found[1] if found is not None else _compile(text, host)
    if found is None:
        cache.store(key, {}, image)
    code = load_object(LinuxSystem(), image)
    _loaded.append(code)
    address = code.symbols["run"]
    call = _ffi().cast("int (*)(uintptr_t, int64_t, int64_t)", address)
    return lambda context, begin, end: int(call(context, begin, end))


def _machine(host: target.Target) -> llvm.TargetMachine:
    initialized()
    return llvm.Target.from_triple(host.triple).create_target_machine(cpu=host.cpu, features=host.features, opt=0, reloc="pic",
                                                                      codemodel="small", jit=True)


def _compile(text: str, host: target.Target) -> bytes:
    with llvm_lock:
        machine = _machine(host)
        try:
            module = llvm.parse_assembly(f'target triple = "{host.triple}"\n{text}')
            module.verify()
        except RuntimeError as e:
            raise CompileError("LLVM refuses the translation of a kernel", evidence=" ".join(str(e).split())[:300],
                               remedy="this is a defect of devrt's virtual GPU: please report it") from e
        builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1))
        passes = llvm.create_new_module_pass_manager()
        passes.add_always_inliner_pass()
        passes.add_global_dead_code_eliminate_pass()
        passes.add_simplify_cfg_pass()
        passes.run(module, builder)
        return bytes(machine.emit_object(module))


def spread(run: Run, parts: Sequence[tuple[int, int, int]]) -> list[int]:
    """What `run` gives for each (context, begin, end), in a thread each."""
    results = [0] * len(parts)
    ended = [_thread.allocate_lock() for _ in parts[1:]]

    def work(n: int) -> None:
        try:
            results[n] = run(*parts[n])
        finally:
            ended[n - 1].release()
    for n, lock in enumerate(ended, 1):
        lock.acquire()
        _thread.start_new_thread(work, (n,))  # threading's threads take twice the time of a short launch
    results[0] = run(*parts[0])
    for lock in ended:
        lock.acquire()
    return results


@functools.cache
def library(functions: tuple[str, ...]) -> int:
    """The address of a table of functions of the C library for numbers."""
    import ctypes
    import ctypes.util

    import numpy as np
    found = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
    table = np.array([ctypes.cast(getattr(found, name), ctypes.c_void_p).value for name in functions], np.uint64)
    _tables.append((found, table))
    return int(table.ctypes.data)


_tables: list[object] = []
