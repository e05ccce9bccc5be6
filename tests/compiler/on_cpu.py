"""Runs an LIR program as machine code on the cpu device."""

from __future__ import annotations

from collections.abc import Mapping

from devrt import registry
from devrt.compiler.convert import Array
from devrt.compiler.lir import Program
from devrt.compiler.llvm.backend import compile_program
from devrt.compiler.llvm.target import host


def run_on_cpu(program: Program, arrays: Mapping[str, Array]) -> None:
    """Run all groups; what the program stores lands in `arrays`, one array a parameter, by name."""
    device = registry.open("cpu")
    loaded = device.load(compile_program(program, host()), program.name)
    commands = device.command_list()
    buffers = [device.wrap(a.ctypes.data, a.nbytes, a) for a in (arrays[p.name] for p in program.params)]
    commands.dispatch(loaded, buffers, program.groups)
    device.compute.wait(device.compute.submit(commands))
    loaded.close()
