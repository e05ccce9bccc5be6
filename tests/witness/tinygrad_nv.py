"""tinygrad's NVIDIA runtime on a virtual machine: `python -m tests.witness.tinygrad_nv URI [CUBIN]`, for a process of its own.

tinygrad speaks to NVIDIA's kernel driver by ioctl, from code that is nobody's here. Only its file descriptors are exchanged: what
it opens is opened on the virtual machine. It opens a GPU, sends data there and back by its copy engine, and with CUBIN launches
the kernel `fma` of it (c = a * b + a, 1024 floats).
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import numpy as np

from devrt.device import parse_uri
from devrt.virtual.nvidia.driver import NvidiaDriver
from devrt.virtual.system import VirtualSystem, make_system

N = 1024


def files_of(system: VirtualSystem) -> Any:
    """tinygrad's FileIOInterface, with the virtual machine for an operating system."""
    from tinygrad.runtime.support import hcq

    class Files(hcq.FileIOInterface):
        def __init__(self, path: str = "", flags: int = 0, fd: int | None = None) -> None:
            self.path, self.fd = path, system.open(path, os.O_RDWR)

        def __del__(self) -> None:
            if not system.closed:
                system.close(self.fd)

        def ioctl(self, request: int, arg: Any) -> int:
            return system.ioctl(self.fd, request, memoryview(arg).cast("B"))

        def mmap(self, start: int | None, sz: int, prot: int, flags: int, offset: int) -> int:
            return system.mmap(self.fd, sz, prot, flags, offset, start or 0)

        @staticmethod
        def anon_mmap(start: int | None, sz: int, prot: int, flags: int, offset: int) -> int:
            return system.mmap(-1, sz, prot, flags, offset, start or 0)

        @staticmethod
        def munmap(buf: int, sz: int) -> None:
            system.munmap(buf, sz)

    return Files


def main(uri: str, cubin: str = "") -> None:
    gc.disable()  # finalizers of tinygrad's wait for the GPU, whose thread here may be the one that collects
    system = make_system(parse_uri(uri))
    driver = system.drivers[0]
    assert isinstance(driver, NvidiaDriver)
    from tinygrad.device import BufferSpec, TinyELF
    from tinygrad.runtime import ops_nv
    ops_nv.FileIOInterface = files_of(system)
    ops_nv.NVDevice.ifaces = [ops_nv.NVKIface]
    device: Any = ops_nv.NVDevice("NV")
    print("open", device.arch)
    rng = np.random.default_rng(1)
    a, b = (rng.random(N, np.float32) for _ in range(2))
    buffers = [device.allocator.alloc(4 * N, BufferSpec()) for _ in range(3)]
    for buffer, data in zip(buffers[1:], (a, b), strict=True):
        device.allocator._copyin(buffer, memoryview(bytearray(data.tobytes())))
    back = bytearray(4 * N)
    device.allocator._copyout(memoryview(back), buffers[1])
    print("copies", bytes(back) == a.tobytes())
    if cubin:
        with open(cubin, "rb") as file:
            image = TinyELF(lib=file.read(), name="fma", target=None, signature=())  # type: ignore[arg-type]
        ops_nv.NVProgram(device, image)(*buffers, global_size=(N // 256, 1, 1), local_size=(256, 1, 1))
        device.allocator._copyout(memoryview(back), buffers[0])
        print("kernel", bytes(back) == np.float32(a.astype(np.float64) * b + a).tobytes())
    for line in driver.kernel_log():
        print(line.text)
    sys.stdout.flush()
    os._exit(0)  # tinygrad's own end of a process is not asked about


if __name__ == "__main__":
    main(*sys.argv[1:])
