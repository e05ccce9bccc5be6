"""Products on matrix units, and constants as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from devrt.compiler import convert, lir
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.sass.select_float import bits32

if TYPE_CHECKING:
    from devrt.compiler.sass.select import Selector


def element_bits(d: DType, value: float) -> int:
    """The bits of a float constant of up to 32 bits."""
    if d is dt.float32 and value == value:
        return bits32(value)
    raw = convert.cast(np.array([value], np.float64), dt.float64, d)
    return int(raw.view(f"u{d.bits // 8}")[0])


def table_bytes(t: lir.Table) -> bytes:
    """A table as it lies in memory."""
    d = t.dtype
    if d.is_float:
        return convert.cast(np.array(t.values, np.float64), dt.float64, d).tobytes()
    return np.array(t.values, convert.element_numpy(d)).tobytes()


def multiply(s: Selector, i: lir.Inst) -> None:
    raise NotImplementedError
