"""The element types: what they hold, how they are stored, and how they meet (promotion).

Arithmetic runs in bool, the integers, float32 and float64. float16 and bfloat16 operands are widened to float32, the
operation is done there and the result rounded back after every op: for +, *, /, sqrt, max this equals the operation done
directly in the narrow type (24 >= 2*11+2 bits, S. Figueroa 1995). float8_e4m3, float8_e5m2 and int4 are storage types:
they load and store with exact conversion, and promote to float32 / int8 for arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["bool", "int", "uint", "float"]


@dataclass(frozen=True)
class DType:
    """One element type.

    name:     the array API's name (float32), or the field's (bfloat16, float8_e4m3)
    kind:     bool, int, uint or float
    bits:     bits in memory (4 for int4: two elements a byte, the low nibble first)
    exponent: exponent bits of a float, mantissa: explicit fraction bits
    short:    the name in IR dumps
    storage:  True where no arithmetic is done in the type itself
    """

    name: str
    kind: Kind
    bits: int
    short: str
    exponent: int = 0
    mantissa: int = 0
    storage: bool = False

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (named, (self.name,))

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_int(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_signed(self) -> bool:
        return self.kind in ("int", "float")

    @property
    def min(self) -> int:
        """Least value of an integer type."""
        return -(1 << (self.bits - 1)) if self.kind == "int" else 0

    @property
    def max(self) -> int:
        """Greatest value of an integer type."""
        return (1 << (self.bits - 1)) - 1 if self.kind == "int" else (1 << self.bits) - 1 if self.kind == "uint" else 1

    def nbytes(self, count: int) -> int:
        """Bytes that `count` elements take, int4 rounded up to a whole byte."""
        return (count * self.bits + 7) // 8


bool_ = DType("bool", "bool", 8, "b1")
int4 = DType("int4", "int", 4, "i4", storage=True)
int8 = DType("int8", "int", 8, "i8")
int16 = DType("int16", "int", 16, "i16")
int32 = DType("int32", "int", 32, "i32")
int64 = DType("int64", "int", 64, "i64")
uint8 = DType("uint8", "uint", 8, "u8")
uint16 = DType("uint16", "uint", 16, "u16")
uint32 = DType("uint32", "uint", 32, "u32")
uint64 = DType("uint64", "uint", 64, "u64")
float8_e4m3 = DType("float8_e4m3", "float", 8, "e4m3", 4, 3, storage=True)
float8_e5m2 = DType("float8_e5m2", "float", 8, "e5m2", 5, 2, storage=True)
float16 = DType("float16", "float", 16, "f16", 5, 10)
bfloat16 = DType("bfloat16", "float", 16, "bf16", 8, 7)
float32 = DType("float32", "float", 32, "f32", 8, 23)
float64 = DType("float64", "float", 64, "f64", 11, 52)

ALL: tuple[DType, ...] = (bool_, int4, int8, int16, int32, int64, uint8, uint16, uint32, uint64,
                          float8_e4m3, float8_e5m2, float16, bfloat16, float32, float64)
_BY_NAME = {d.name: d for d in ALL} | {d.short: d for d in ALL}


def named(name: str) -> DType:
    """The type called `name` (either spelling). Raises KeyError."""
    return _BY_NAME[name]


def compute_type(d: DType) -> DType:
    """The type that arithmetic on `d` runs in (module docstring)."""
    if d.kind == "float":
        return float64 if d is float64 else float32
    return int8 if d is int4 else d


_SIGNED = {8: int8, 16: int16, 32: int32, 64: int64}
_UNSIGNED = {8: uint8, 16: uint16, 32: uint32, 64: uint64}


def promote(a: DType, b: DType) -> DType:
    """The type of `a op b`: the array API standard's table, extended.

    Storage types first become their arithmetic type; float16 with bfloat16 gives float32; integers with floats give the
    float; uint64 with a signed integer gives float64, as NumPy does.
    """
    if a is b and not a.storage:
        return a
    a, b = (compute_type(a) if a.storage else a), (compute_type(b) if b.storage else b)
    if a is b:
        return a
    if a.kind == "bool":
        return b
    if b.kind == "bool":
        return a
    if a.is_float and b.is_float:
        return float32 if {a, b} == {float16, bfloat16} else max(a, b, key=lambda d: d.bits)
    if a.is_float or b.is_float:
        return a if a.is_float else b
    if a.kind == b.kind:
        return max(a, b, key=lambda d: d.bits)
    signed, unsigned = (a, b) if a.kind == "int" else (b, a)
    if unsigned.bits < signed.bits:
        return signed
    return _SIGNED[unsigned.bits * 2] if unsigned.bits < 64 else float64


def signed_of(bits: int) -> DType:
    return _SIGNED[bits]


def unsigned_of(bits: int) -> DType:
    return _UNSIGNED[bits]
