"""The pipeline from LIR to a cubin: select, arrange, allocate, schedule, encode."""

from __future__ import annotations

from devrt.compiler import lir
from devrt.compiler.sass import cubin, mir
from devrt.compiler.sass.allocate import allocate
from devrt.compiler.sass.instruction import File
from devrt.compiler.sass.isa import encode, text
from devrt.compiler.sass.layout import WORD, layout
from devrt.compiler.sass.schedule import arrange, schedule
from devrt.compiler.sass.select import select
from devrt.compiler.sass.target import SassTarget
from devrt.device import CompileError

REGISTERS = 253  # that code may use: a lane has 255, of which the hardware keeps two
_SPREAD = 12  # of them that arranging leaves free: registers of several words do not fill every gap
LOCAL_BYTES = 512 << 10  # of a lane (CUDA C programming guide, "Technical specifications per compute capability")
CONSTANT_BYTES = 64 << 10  # of a bank


def machine_code(program: lir.Program, target: SassTarget) -> mir.Function:
    """The program in real registers, in its last order. Raises CompileError."""
    lir.verify(program)
    f = select(program, target)
    for what, needed, limit in (("shared memory", f.shared_bytes, target.shared_bytes + target.reserved_shared),
                                ("constants", len(f.constants), CONSTANT_BYTES)):
        if needed > limit:
            raise CompileError(f"{program.name} needs {needed} bytes of {what}",
                               evidence=f"a group on sm_{target.sm} has {limit}", remedy="make the kernel's arrays smaller")
    f = _allocated(f)
    if f.local_bytes > LOCAL_BYTES:
        raise CompileError(f"{program.name} needs {f.local_bytes} bytes of local memory beside {REGISTERS} registers",
                           evidence=f"a lane has {LOCAL_BYTES}", remedy="split the kernel")
    return schedule(f)


def _allocated(f: mir.Function) -> mir.Function:
    """With real registers: arranged first, unless that alone is why some had to be spilled."""
    arranged = allocate(arrange(f, REGISTERS - _SPREAD), REGISTERS)
    if not arranged.local_bytes:
        return arranged
    plain = allocate(f, REGISTERS)
    return plain if plain.local_bytes < arranged.local_bytes else arranged


def compile_program(program: lir.Program, target: SassTarget) -> bytes:
    """A cubin with the kernel `program.name`: one block of `lanes` threads a group, the addresses of the parameters in order as
    its parameters. Raises CompileError."""
    f = machine_code(program, target)
    placed = layout(f)
    code = b"".join(encode(i, f.sm).to_bytes(WORD, "little") for i in placed)
    return cubin.write(f, code, registers(f), tuple(i.address for i in placed if i.op == "EXIT"))


def registers(f: mir.Function) -> int:
    """The registers that code uses: the highest index of R, and one."""
    return max((r.index + r.words for block in f.blocks for i in block.instructions for r in (*i.reads(), *i.writes())
                if r.file is File.R), default=0)


def assembly(program: lir.Program, target: SassTarget) -> str:
    """The machine code as text, blocks by their labels."""
    lines = []
    for block in machine_code(program, target).blocks:
        lines.append(f"{block.label}:")
        lines += [f"    {text(i)} ;" for i in block.instructions]
    return "\n".join(lines) + "\n"
