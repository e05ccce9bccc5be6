"""What differs between the generations that code is generated for."""

from __future__ import annotations

from dataclasses import dataclass

from devrt.device import Unsupported

# sm -> bytes of shared memory that a group may use (CUDA C programming guide, "Technical specifications per compute capability").
SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
SHARED_A_GROUP = 28 << 10  # of these, what plans give a group of one warp: a multiprocessor has to hold several at once
GROUPS = 8  # that a multiprocessor runs at once if each takes nearly all registers that a lane can have
MATRIX_UNITS = {75: "hmma8"}  # the layout of a product in their registers (lir.LAYOUTS) where it is not "hmma"
BYTE_UNITS = {75: "imma8"}  # the same for products of bytes, where it is not "imma"
PARAMS = {75: 0x160, 80: 0x160, 86: 0x160, 89: 0x160, 90: 0x210, 120: 0x380}  # where parameters start in bank 0
DESCRIPTORS = {80: 0x118, 86: 0x118, 89: 0x118, 90: 0x208, 120: 0x358}  # where bank 0 holds the descriptor of global memory
RESERVED_SHARED = {90: 0x400, 120: 0x400}  # bytes at the start of shared memory that the system keeps
LANES = 32
WAVES = 8  # warps of a group that shares what it brings, at most
REGISTERS = 160  # of a lane, that plans count on
VERSION = 2  # of this compiler: part of the key of a cached object


@dataclass(frozen=True)
class SassTarget:
    """A GPU by its generation, 75 to 120."""

    sm: int

    @property
    def key(self) -> str:
        """What a cached object depends on."""
        return f"sm_{self.sm}/{VERSION}"

    @property
    def params(self) -> int:
        return PARAMS[self.sm]

    @property
    def reserved_shared(self) -> int:
        return RESERVED_SHARED.get(self.sm, 0)

    @property
    def shared_bytes(self) -> int:
        return SHARED_BYTES[self.sm]

    @property
    def groups(self) -> int:
        return GROUPS

    @property
    def matrix_units(self) -> str:
        return MATRIX_UNITS.get(self.sm, "hmma")

    @property
    def byte_units(self) -> str:
        return BYTE_UNITS.get(self.sm, "imma")


def target(isa: str) -> SassTarget:
    """By its name, "sm_90". Raises Unsupported for a GPU that code is not generated for."""
    number = isa.removeprefix("sm_")
    if not number.isdigit() or int(number) not in PARAMS:
        raise Unsupported(f"no code generation for {isa}", evidence=f"supported: {', '.join(f'sm_{sm}' for sm in PARAMS)}",
                          remedy="use one of these GPUs, or open cpu")
    return SassTarget(int(number))
