"""The pipeline: kernel IR -> LIR -> machine code, with the cache around it."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from devrt.compiler import cache, lir
from devrt.compiler import kernel as kir
from devrt.compiler.kernel import Kernel
from devrt.compiler.lowering.contract_plan import Tuning
from devrt.device import CompileError, Properties, Unsupported

# What plans count on in every core of a host; the figures in bench/results were measured with these.
L1_BYTES, L2_BYTES = 32 << 10, 1 << 20
# A GPU hides the latency of memory by having many groups at once: so many on each of its units, of so many elements each.
GROUPS_PER_UNIT, GPU_CHUNK = 8, 2048


@dataclass(frozen=True)
class Compiled:
    """A kernel as machine code: `entry` in the ELF `image`, run by `groups` groups, `scratch_bytes` of shared memory each.

    `seconds` is what producing it took, `cached` whether it came from the disk.
    """

    entry: str
    image: bytes
    groups: int
    scratch_bytes: int
    seconds: float
    cached: bool


@dataclass(frozen=True)
class Backend:
    """Code generation for one device: LIR to an object, and to assembly text."""

    tuning: Tuning
    key: str
    compile: Callable[[lir.Program], bytes]
    assembly: Callable[[lir.Program], str]


@functools.lru_cache(maxsize=16)
def backend_for(p: Properties) -> Backend:
    """The backend that generates code for a device with these properties. Raises Unsupported."""
    if p.isa in ("x86-64", "aarch64"):
        return _host(p)
    if p.isa.startswith("gfx"):
        return _gcn(p)
    if p.isa.startswith("sm_"):
        return _sass(p)
    raise Unsupported(f"no code generation for {p.isa}", remedy="open cpu")


def _host(p: Properties) -> Backend:
    from devrt.compiler.llvm import backend, target
    t = target.host()
    return Backend(Tuning(t.lanes, t.vector_registers, L1_BYTES, L2_BYTES, p.compute_units), t.key,
                   lambda program: backend.compile_program(program, t), lambda program: backend.assembly(program, t))


def _gcn(p: Properties) -> Backend:
    """A GPU's groups share LDS: it plays the part of the caches that panels are packed into."""
    from devrt.compiler.llvm import amdgcn
    t = amdgcn.target(p.isa)
    tuning = Tuning(t.wave, t.vector_registers, p.scratch_bytes // 8, p.scratch_bytes // 2, p.compute_units * GROUPS_PER_UNIT,
                    p.scratch_bytes, t.matrix_units, GPU_CHUNK, gathers=True)
    return Backend(tuning, t.key,
                   lambda program: amdgcn.compile_program(program, t), lambda program: amdgcn.assembly(program, t))


def _sass(p: Properties) -> Backend:
    """Groups of one warp: a multiprocessor needs several at once, so each plans with its part of shared memory."""
    from devrt.compiler.sass import backend
    from devrt.compiler.sass import target as sass
    t = sass.target(p.isa)
    part = min(p.scratch_bytes, sass.SHARED_A_GROUP)
    tuning = Tuning(sass.LANES, sass.REGISTERS, part // 4, part // 2, p.compute_units * t.groups, part, t.matrix_units, GPU_CHUNK,
                    gathers=True, waves=sass.WAVES, group_bytes=p.scratch_bytes, byte_units=t.byte_units)
    return Backend(tuning, t.key,
                   lambda program: backend.compile_program(program, t), lambda program: backend.assembly(program, t))


def lower(k: Kernel, name: str, t: Tuning) -> lir.Program:
    """The LIR of a kernel: one lowering a kind."""
    from devrt.compiler.lowering import map, product, rows
    kir.verify(k)
    with lir.scope(name):
        if k.kind == "map":
            return map.lower(k, name, t)
        if k.kind == "rows":
            return rows.lower(k, name, t)
        if k.kind == "contract":
            return product.lower_contract(k, name, t)
        return product.lower_attention(k, name, t)


def entry_name(k: Kernel) -> str:
    """The kernel's symbol: its kind and a hash of its text."""
    return f"{k.kind}_{hashlib.sha256(str(k).encode()).hexdigest()[:12]}"


def compile_kernel(k: Kernel, p: Properties) -> Compiled:
    """Machine code for `k` on a device with properties `p`, from the cache where it is known. Raises CompileError."""
    start = time.perf_counter()
    backend = backend_for(p)
    entry = entry_name(k)
    key = cache.key(str(k), backend.key, str(backend.tuning), str(p.scratch_bytes))
    found = cache.load(key)
    if found is not None:
        meta, image = found
        return Compiled(entry, image, int(meta["groups"]), int(meta["scratch"]), time.perf_counter() - start, True)
    program = lower(k, entry, backend.tuning)
    if program.shared_bytes > p.scratch_bytes:
        raise CompileError(f"{entry} needs {program.shared_bytes} bytes of shared memory a group",
                           evidence=f"the device has {p.scratch_bytes}", remedy="this is a defect of devrt: please report it")
    image = backend.compile(program)
    cache.store(key, {"groups": program.groups, "scratch": program.shared_bytes, "kernel": str(k)}, image)
    return Compiled(entry, image, program.groups, program.shared_bytes, time.perf_counter() - start, False)
