"""Machine code for the CPU: relocatable ELF objects in executable memory.

An object is laid out in one mapping, relocated while it is writable and then made executable: no page is ever both.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devrt.device import InvalidArgument
from devrt.elf import PAGE, Field, read
from devrt.ioctl.errors import reported_as
from devrt.ioctl.system import MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE, System, view
from devrt.recorder import Watched

if TYPE_CHECKING:
    from devrt.cpu.device import CpuDevice

_RELOCATIONS = {  # System V psABI x86-64, table 4.9
    1: Field("R_X86_64_64", "<Q", False),
    2: Field("R_X86_64_PC32", "<i", True),
    4: Field("R_X86_64_PLT32", "<i", True),
    10: Field("R_X86_64_32", "<I", False),
    11: Field("R_X86_64_32S", "<i", False),
    24: Field("R_X86_64_PC64", "<q", True),
}


@dataclass
class Code:
    """Executable memory: `symbols` maps the object's functions to addresses. `unmap` ends it; not twice."""

    system: System
    address: int
    nbytes: int
    symbols: dict[str, int]

    def unmap(self) -> None:
        self.system.munmap(self.address, self.nbytes)


def load_object(system: System, image: bytes) -> Code:
    """Map, relocate and protect an x86-64 object.

    Raises InvalidArgument for an image that is no such object, CompileError for one that needs what a kernel may not
    have (an external symbol, writable data, a relocation of another code model). Nothing stays mapped after an error.
    """
    code = read(image, "x86-64")
    nbytes = max(PAGE, -(-code.nbytes // PAGE) * PAGE)
    with contextlib.ExitStack() as undo, reported_as("can't map memory for machine code"):
        base = system.mmap(-1, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE)
        undo.callback(system.munmap, base, nbytes)
        view(base, nbytes)[:code.nbytes] = code.content(base, _RELOCATIONS)
        system.mprotect(base, nbytes, PROT_READ | PROT_EXEC)
        undo.pop_all()
    return Code(system, base, nbytes, {name: base + place for name, place in code.functions.items()})


class CpuProgram(Watched):
    """One kernel: `void entry(ptr args, i64 group_begin, i64 group_end, ptr scratch)`.

    `args` points at 64-bit words, one per argument; the function runs all groups in [begin, end) and may use `scratch`
    (properties.scratch_bytes, aligned to 64 bytes, contents undefined).
    """

    def __init__(self, device: CpuDevice, image: bytes, entry: str) -> None:
        code = load_object(device.system, image)
        if entry not in code.symbols:
            code.unmap()
            raise InvalidArgument(f"the image has no function {entry!r}",
                                  evidence=f"it has {', '.join(sorted(code.symbols)) or 'none'}",
                                  remedy="name one of them")
        self.device, self.name, self.code, self.address = device, entry, code, code.symbols[entry]
        self.closed = False

    def check(self) -> None:
        if self.closed:
            raise InvalidArgument(f"program {self.name} is used after it was closed", remedy="load it again")

    def close(self) -> None:
        """Give the code's memory back once the work queued so far is done. Closing twice is harmless."""
        if self.closed:
            return
        self.closed = True
        self._tell()
        self.device.retirement.later(self.code.unmap)
        self.device.retirement.collect()

    def __del__(self, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        # Queued work holds its programs, so the last reference can only go when nothing runs this code any more.
        if not getattr(self, "closed", True) and not exiting():
            self.closed = True
            self.code.unmap()

    def __repr__(self) -> str:
        return f"<cpu program {self.name}{', closed' if self.closed else ''}>"
