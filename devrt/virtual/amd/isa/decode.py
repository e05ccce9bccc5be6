"""Machine code to Instructions. Strict: a reserved bit, an unknown opcode or register, or code that ends early is an error."""

from __future__ import annotations

from devrt.virtual.amd.isa.decode_memory import VectorMemory
from devrt.virtual.amd.isa.decode_scalar import Scalar
from devrt.virtual.amd.isa.decode_vector import Vector
from devrt.virtual.amd.isa.formats import Gen
from devrt.virtual.amd.isa.instruction import Instruction


def decode(code: bytes | memoryview, offset: int, gen: Gen) -> Instruction:
    """The instruction of `code` at byte `offset`."""
    return _Decoder(code, offset, gen).instruction()


class _Decoder(Scalar, Vector, VectorMemory):
    """All formats."""

    def instruction(self) -> Instruction:
        name = self.fmt.name
        if name == "VOPD":
            return self.dual()
        family = ("FLAT", "SCRATCH", "GLOBAL", "")[self.fields["seg"]] if name == "FLAT" else name
        if not family:
            self.fail("unknown segment")
        self.op = self.find(family, self.fields["op"])
        if name in ("VOP1", "VOP2", "VOPC"):
            return self.short()
        if name == "VOP3":
            return self.long()
        if name == "VOP3P":
            return self.matrix() if self.op.family == "MAI" else self.packed()
        if name == "SMEM":
            return self.scalar_memory()
        if name in ("DS", "FLAT", "MUBUF"):
            return {"DS": self.lds, "FLAT": self.flat, "MUBUF": self.buffer}[name](family)
        return self.scalar()
