"""Compare-and-swap on memory that other threads and processes share: what the engines' atomic packets are made of."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm

from devrt.compiler.llvm.backend import llvm_lock
from devrt.ioctl.system import view

_TEXT = """
define i{0} @cas{0}(ptr %at, i{0} %old, i{0} %new) {{
  %pair = cmpxchg ptr %at, i{0} %old, i{0} %new seq_cst seq_cst
  %seen = extractvalue {{ i{0}, i1 }} %pair, 0
  ret i{0} %seen
}}
"""


_made: list[tuple[Any, dict[int, Any]]] = []  # the code and its functions: one for all threads, which must not lose it


def _native() -> dict[int, Any]:
    if not _made:
        with llvm_lock:
            if not _made:
                _made.append(_make())
    return _made[0][1]


def _make() -> tuple[Any, dict[int, Any]]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(_TEXT.format(32) + _TEXT.format(64))
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    types = {4: ctypes.c_uint32, 8: ctypes.c_uint64}
    return engine, {n: ctypes.CFUNCTYPE(t, ctypes.c_void_p, t, t)(engine.get_function_address(f"cas{8 * n}"))
                    for n, t in types.items()}


def update(host: int, nbytes: int, change: Callable[[int], int]) -> int:
    """Replace the unsigned number of 4 or 8 bytes at an address by change(number) in one step; returns what it was."""
    swap = _native()[nbytes]
    mask = (1 << 8 * nbytes) - 1
    old = int.from_bytes(view(host, nbytes), "little")
    while True:
        seen = int(swap(host, old, change(old) & mask))
        if seen == old:
            return old
        old = seen
