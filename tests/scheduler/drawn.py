"""Kernels drawn for an expression on a device that does not exist: eight compute units, nothing compiled."""

from __future__ import annotations

from collections.abc import Callable

from devrt.array import Array
from devrt.compiler.dtypes import DType
from devrt.compiler.kernel import Ex, subexpressions
from devrt.compiler.ops import ELEMENTWISE, Op, make
from devrt.scheduler.fusion import CopyStep, Step, partition
from devrt.scheduler.plan import Placeholder
from devrt.scheduler.simplify import simplify

UNITS = 8


class Inputs:
    """x("f32", 4, 5): the next input array."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, dtype: DType, *shape: int) -> Array:
        self.count += 1
        return Array(make(Op.BUFFER, (), Placeholder(self.count - 1, shape, dtype)))


Build = Callable[[Inputs], "Array | tuple[Array, ...]"]


def steps(build: Build) -> list[Step | CopyStep]:
    """The kernels of what `build` makes of its inputs."""
    out = build(Inputs())
    roots = [a.node for a in (out if isinstance(out, tuple) else (out,))]
    return partition([n for n in simplify(roots, UNITS) if n.op is not Op.BUFFER], UNITS)


MOST_OPS = 12  # a longer expression is shown by what it reads: derived functions change, kernels should not


def text(build: Build) -> str:
    """Kernel after kernel; operands are named by what they are: input numbers, or the kernel that made them."""
    drawn = steps(build)
    number = {s.node: f"kernel {k}" for k, s in enumerate(drawn)}
    lines = []
    for k, s in enumerate(drawn):
        assert isinstance(s, Step)
        reads = ", ".join(number.get(n) or f"input {n.arg.number}" for n in s.operands)
        lines += [f"kernel {k} makes {s.node.dtype.short}{list(s.node.shape)} of {reads}: {s.kernel.kind}"]
        lines += [f"  %{n}: {x.dtype.short}[{x.count}]{' out' if x.writable else ''}" for n,
                  x in enumerate(s.kernel.slots)]
        lines += ["  grid " + (" ".join(f"{a}:{a.size}" for a in s.kernel.grid) or "1")]
        lines += ["  " + stage.text(shortened) for stage in s.kernel.stages]
    return "\n".join(lines) + "\n"


def shortened(e: Ex) -> str:
    inside = list(subexpressions([e]))
    if sum(x.op in ELEMENTWISE for x in inside) <= MOST_OPS:
        return str(e)
    return f"f({', '.join(dict.fromkeys(str(x) for x in inside if x.op in ('load', 'value', 'inside') and len(str(x)) < 100))})"
