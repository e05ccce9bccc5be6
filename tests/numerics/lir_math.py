"""derived.Math on LIR registers, so that the functions of derived.py can be compiled without the rest of the stack."""

from __future__ import annotations

from devrt.compiler import dtypes as dt
from devrt.compiler import transcendental
from devrt.compiler.dtypes import DType
from devrt.compiler.lir import Builder, Reg


class LirMath:
    """derived.Math[Reg]."""

    def __init__(self, b: Builder) -> None:
        self.b = b
        self.add, self.mul, self.div, self.fma, self.max = b.add, b.mul, b.div, b.fma, b.max
        self.floor, self.sqrt, self.less, self.equal, self.where = b.floor, b.sqrt, b.lt, b.eq, b.select
        self.bitand, self.bitor, self.bitxor, self.shl, self.shr = b.and_, b.or_, b.xor, b.shl, b.shr
        self.cast, self.bitcast = b.cast, b.bitcast

    def dtype(self, x: Reg) -> DType:
        return x.dtype

    def const(self, like: Reg, value: int | float) -> Reg:
        return self.b.const(like.dtype, value)

    def exp2(self, a: Reg) -> Reg:
        return self._wide(a, lambda x: transcendental.exp2(self.b, x))

    def log2(self, a: Reg) -> Reg:
        return self._wide(a, lambda x: transcendental.log2(self.b, x))

    def sin(self, a: Reg, quarter: int = 0) -> Reg:
        return self._wide(a, lambda x: transcendental.sin(self.b, x, quarter))

    def _wide(self, a: Reg, f):  # type: ignore[no-untyped-def]
        return self.b.cast(f(self.b.cast(a, dt.compute_type(a.dtype))), a.dtype)
