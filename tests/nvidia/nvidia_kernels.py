"""Kernels that tests of NVIDIA devices load."""

from __future__ import annotations

import functools

from devrt.compiler import lir
from devrt.compiler.dtypes import float32
from devrt.compiler.sass import backend
from devrt.compiler.sass.target import target

SMS = (75, 80, 86, 89, 90, 120)
LANES = 32


@functools.cache
def image(sm: int, name: str = "add", shared: int = 0) -> bytes:
    """z = x + y, a warp a group; through `shared` floats of shared memory where that is not 0."""
    b = lir.Builder(name, groups=4, lanes=LANES)
    x, y = (b.param(p, float32, 4 * LANES) for p in "xy")
    z = b.param("z", float32, 4 * LANES, writable=True)
    at = b.add(b.mul(b.group(), b.idx(LANES)), b.lane())
    value = b.add(b.load(x, at), b.load(y, at))
    if shared:
        near = b.shared("near", float32, shared)
        b.store(near, b.lane(), value)
        b.barrier()
        value = b.load(near, b.xor(b.lane(), b.idx(1)))
    b.store(z, at, value)
    return backend.compile_program(b.finish(), target(f"sm_{sm}"))
