"""Code on the translator: laid out in a GPU address space of its own and run through the Executor.

Code is either lines as nvdisasm prints them, or what ptxas makes of PTX.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from devrt.compiler.sass.instruction import Control, Instruction
from devrt.compiler.sass.isa import assemble, encode
from devrt.compiler.sass.reader import Kernel, read
from devrt.ioctl.system import LinuxSystem, view
from devrt.virtual.memory import PAGE, Access, AddressSpace, PageFile, map_file, pages
from devrt.virtual.nvidia.dispatch import Executor, Launch

SHARED_WINDOW, LOCAL_WINDOW = 0x729400000000, 0x729300000000
STACK = 0xFFFDC0  # where compiled code's stack starts, growing down
# (ntid, nctaid, windows, stack pointer) in bank 0, from what ptxas reads.
_ABI = {90: (0x0, 0xC, 0x18, 0x28), 120: (0x360, 0x370, 0x2F0, 0x37C)}
# What takes a time that nobody knows beforehand, and signals its end by a scoreboard.
LATE = ("LD", "ST", "ATOM", "RED", "S2", "R2UR", "MUFU", "F2", "I2", "FRND", "POPC", "FLO", "BREV", "SHFL", "MATCH", "B2R",
        "BMOV")
Size = tuple[int, int, int]


def ptxas() -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        found = Path(place) / "cu13" / "bin" / "ptxas"
        if found.exists():
            return found
    return None


@functools.cache
def cubin(ptx: str, sm: int, options: str = "") -> bytes:
    """What ptxas makes of a module; skips the test where there is no ptxas."""
    tool = ptxas()
    if tool is None:
        pytest.skip("no ptxas (nvidia-cuda-nvcc)")
    key = hashlib.sha256(f"{ptx}/{sm}/{options}".encode()).hexdigest()[:24]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, f"{key}.ptx"), Path(folder, f"{key}.cubin")
        source.write_text(ptx)
        done = subprocess.run([str(tool), f"-arch=sm_{sm}", *options.split(), "-o", str(target), str(source)],
                              capture_output=True, text=True, env={**os.environ, "TMPDIR": folder}, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return target.read_bytes()


def module(sm: int, body: str) -> str:
    """PTX of some kernels."""
    return f".version {8.7 if sm > 90 else 8.0}\n.target sm_{sm}\n.address_size 64\n{body}"


@dataclass
class Buffer:
    """Memory of the GPU."""

    va: int
    nbytes: int
    host: memoryview = field(repr=False)

    def array(self, dtype: type | str) -> np.ndarray:
        return np.frombuffer(self.host[:self.nbytes], dtype)


class Emulator:
    """One GPU without a driver."""

    def __init__(self, sm: int, budget: int = 1 << 20, mufu_error: int = 0) -> None:
        self.sm = sm
        self.system = LinuxSystem()
        self.file = PageFile("emulator", 1 << 32)
        self.space = AddressSpace(self.system)
        self.executor = Executor(sm, self.system, budget=budget, mufu_error=mufu_error)
        self.next = 0x200000000
        self.loaded: dict[bytes, tuple[int, Kernel, dict[int, bytes]]] = {}

    def close(self) -> None:
        self.space.close()
        self.file.close()

    def alloc(self, data: bytes | np.ndarray | int, access: Access = Access.WRITE) -> Buffer:
        """A buffer with pages that are not mapped behind it."""
        content = bytes(data) if isinstance(data, int) else data.tobytes() if isinstance(data, np.ndarray) else data
        n = max(1, len(content))
        host = map_file(self.system, self.file, self.file.take(n), n)
        place = view(host, pages(n))
        place[:len(content)] = content
        va, self.next = self.next, self.next + pages(n) + PAGE
        self.space.map(va, host, pages(n), access)
        return Buffer(va, n, place)

    # ----- lines of assembly

    def code(self, lines: Sequence[str | Instruction]) -> int:
        """The address of assembled lines; `name:` is a place, `(name)` its address. Every line waits for all that is before it,
        so that it only means what it says."""
        found: list[str | Instruction] = []
        labels = {}
        for line in lines:
            if isinstance(line, str) and line.endswith(":"):
                labels[line[:-1]] = 16 * len(found)
            else:
                found.append(line)
        words = b""
        for n, line in enumerate(found):
            if isinstance(line, str):
                for name, at in labels.items():
                    line = line.replace(f"({name})", f"{at:#x}")
                i = assemble(line, self.sm)
                late = i.op.startswith(LATE)
                i = replace(i, control=Control(15, True, 0 if late else 7, 1 if late else 7, 0x3F))
            else:
                i = line
            words += encode(replace(i, address=16 * n), self.sm).to_bytes(16, "little")
        return self.alloc(words, Access.EXECUTE).va

    def start(self, entry: int, *arguments: int, grid: Size = (1, 1, 1), block: Size = (32, 1, 1), registers: int = 64,
              shared: int = 0, low: int = 0, high: int = 0, more: dict[int, bytes] | None = None) -> None:
        """Run code at an address. Bank 0 holds sizes and windows where ptxas's code expects them, and the arguments, 8 bytes
        each."""
        params = {90: 0x210, 120: 0x380}.get(self.sm, 0x160)
        self.launch(entry, b"".join(a.to_bytes(8, "little") for a in arguments), params, grid, block, registers, shared, low,
                    high, more or {})

    def launch(self, entry: int, arguments: bytes, params: int, grid: Size, block: Size, registers: int, shared: int, low: int,
               high: int, more: dict[int, bytes]) -> None:
        bank = bytearray(max(params + len(arguments), 0x390))
        ntid, nctaid, windows, stack = _ABI.get(self.sm, _ABI[90])
        for at, numbers, dtype in ((ntid, block, np.uint32), (nctaid, grid, np.uint32), (stack, (STACK,), np.uint32),
                                   (windows, (SHARED_WINDOW, LOCAL_WINDOW), np.uint64)):
            raw = np.array(numbers, dtype).tobytes()
            bank[at:at + len(raw)] = raw
        bank[params:params + len(arguments)] = arguments
        banks = {0: bytes(bank), **more}
        places = {n: (self.alloc(content, Access.VALID).va, len(content)) for n, content in banks.items()}
        launch = Launch(entry, grid, block, registers, shared, low, high, places, SHARED_WINDOW, LOCAL_WINDOW)
        for _ in self.executor.run(launch, self.space):
            pass

    # ----- cubins

    def load(self, image: bytes, name: str = "") -> tuple[int, Kernel, dict[int, bytes]]:
        """(address of the code, what its image says, its constants)."""
        key = image + name.encode()
        if key not in self.loaded:
            kernels = read(image).kernels
            kernel = kernels[name] if name else next(iter(kernels.values()))
            room = self.alloc(len(kernel.code), Access.EXECUTE)
            placed = kernel.place(room.va, self.alloc(len(kernel.globals) or 16).va)
            room.host[:len(placed.code)] = placed.code
            self.loaded[key] = room.va, kernel, placed.constants
        return self.loaded[key]

    def run(self, image: bytes, *arguments: int | bytes, grid: Size = (1, 1, 1), block: Size = (32, 1, 1), name: str = "",
            shared: int = 0) -> None:
        """Run a kernel of a cubin; arguments are addresses, or the bytes of other parameters. `shared`: bytes beside its own."""
        va, kernel, constants = self.load(image, name)
        raw = bytearray(kernel.params_bytes)
        for p, a in zip(kernel.params, arguments, strict=True):
            content = a if isinstance(a, bytes) else a.to_bytes(8, "little")
            assert len(content) == p.nbytes, (p, content)
            raw[p.offset:p.offset + p.nbytes] = content
        high = -(-(kernel.stack_bytes + 0x240) // 16) * 16 if kernel.stack_bytes else 0x240
        self.launch(va + kernel.entry, bytes(raw), kernel.params_offset, grid, block, kernel.registers,
                    kernel.shared_bytes + shared, kernel.local_bytes, high, {n: c for n, c in constants.items() if n and c})
