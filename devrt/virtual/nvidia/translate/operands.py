"""What an instruction names: its values, predicates and results, and the width of its integers."""

from __future__ import annotations

from devrt.compiler.sass.instruction import File, Instruction, Operand, Reg
from devrt.virtual.nvidia.translate.writer import Writer


def is_predicate(o: Operand) -> bool:
    return isinstance(o.value, Reg) and o.value.file in (File.P, File.UP)


def values(i: Instruction) -> list[Operand]:
    """The sources that are no predicates."""
    return [o for o in i.srcs if not is_predicate(o)]


def predicates(i: Instruction) -> list[Operand]:
    """The predicates among the sources."""
    return [o for o in i.srcs if is_predicate(o)]


def result(i: Instruction) -> Operand:
    """The destination that is no predicate."""
    return next(o for o in i.dsts if not is_predicate(o))


def outcomes(i: Instruction) -> list[Operand]:
    """The destinations that are predicates."""
    return [o for o in i.dsts if is_predicate(o)]


def element(i: Instruction) -> str:
    """LLVM's type of the integers that it works on."""
    return "i64" if set(i.mods) & {"64", "U64", "S64"} else "i32"


def unsigned(i: Instruction) -> bool:
    return bool(set(i.mods) & {"U32", "U64"})


def integer(w: Writer, o: Operand, e: str) -> str:
    return w.int32(o) if e == "i32" else w.int64(o)


def write(w: Writer, o: Operand, value: str, e: str) -> None:
    if e == "i32":
        w.write(o, value)
    else:
        w.write64(o, value)
