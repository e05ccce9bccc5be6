"""How exact products must be: the same bits everywhere (the default), or what the device's matrix units give.

    with devrt.fast():
        y = a @ b
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_fast: ContextVar[bool] = ContextVar("fast", default=False)


@contextmanager
def fast() -> Iterator[None]:
    """Products of float16 and bfloat16 written inside may use matrix units: float32 sums in the device's order.

    It is where a product is written that counts, not where it is computed. docs/numerics.md has the error.
    """
    before = _fast.set(True)
    try:
        yield
    finally:
        _fast.reset(before)


def is_fast() -> bool:
    """Whether a product written now is of the fast tier."""
    return _fast.get()
