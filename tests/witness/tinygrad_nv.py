"""tinygrad's NVIDIA backend on a virtual machine: a program of its own, since tinygrad keeps its devices for good.

    python -m tests.witness.tinygrad_nv sm_86        copies of several sizes, there and back, by its own use of driver and GPU
    python -m tests.witness.tinygrad_nv sm_86 x*2+1  and an expression of a random x, compiled by whatever compiler it finds
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

os.environ["DEV"] = "NV"
os.environ["CACHELEVEL"] = "0"

import numpy as np
import tinygrad.runtime.ops_nv as ops_nv
import tinygrad.runtime.support.hcq as hcq
from tinygrad import Device, Tensor

from devrt.device import parse_uri
from devrt.virtual.system import VirtualSystem, make_system

SIZES = (1, 300, 5000, 3_000_000)  # elements: inline, one page, several, more than a staging buffer


def route(system: VirtualSystem) -> None:
    """Everything that tinygrad asks of the operating system goes to a virtual machine."""
    class Files(hcq.FileIOInterface):  # type: ignore[misc]
        def __init__(self, path: str = "", flags: int = os.O_RDONLY, fd: int | None = None) -> None:
            self.path, self.fd = path, system.open(path, flags) if fd is None else fd

        def __del__(self) -> None:
            if not system.closed:
                system.close(self.fd)

        def ioctl(self, request: int, arg: Any) -> int:
            return system.ioctl(self.fd, request & 0xFFFFFFFF, ctypes.addressof(arg))

        def mmap(self, start: int | None, sz: int, prot: int, flags: int, offset: int) -> int:
            return system.mmap(self.fd, sz, prot, flags, offset, start or 0)

        @staticmethod
        def anon_mmap(start: int, sz: int, prot: int, flags: int, offset: int) -> int:
            return system.mmap(-1, sz, prot, flags, offset, start)

        @staticmethod
        def munmap(buf: int, sz: int) -> None:
            system.munmap(buf, sz)
    hcq.FileIOInterface = ops_nv.FileIOInterface = Files


def main(topology: str, expression: str = "") -> None:
    system = make_system(parse_uri(f"virtual:nvidia/{topology}"))
    route(system)
    print(Device["NV"].arch)
    for n in SIZES:
        x = np.random.default_rng(n).random(n, np.float32)
        there = Tensor(x, device="NV").realize()
        print("copy", n, bool((there.numpy() == x).all()))
    if expression:
        got = eval(expression, {"x": Tensor(x, device="NV")}).numpy()
        print("kernel", float(np.abs(got - eval(expression, {"x": x})).max()))
    Device["NV"].synchronize()
    for line in system.kernel_log():
        if line.text.startswith("NVRM: Xid"):
            print(line.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
