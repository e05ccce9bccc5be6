"""What a submission to an AMD GPU costs the host, with nothing behind the driver boundary. Run: python bench/amd_host_cost.py

NullSystem grants every call, gives ordinary memory for every buffer, and has no engine: see host_cost.py.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import host_cost

from devrt.amd.device import AmdDevice
from devrt.compiler.llvm import amdgcn
from devrt.device import parse_uri
from devrt.ioctl.amdgpu import AMDGPU
from devrt.ioctl.kfd import KFD
from devrt.ioctl.system import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, Argument, System, view
from devrt.virtual.system import make_system

URI = "virtual:amd/gfx1100"


class NullSystem:
    """A System whose driver says yes. Files are those of a virtual machine, which runs nothing."""

    def __init__(self) -> None:
        self._files: Any = make_system(parse_uri(URI))
        self._numbers = iter(range(1, 1 << 30))
        self._set = threading.Event()
        self.waited: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def open(self, path: str, flags: int) -> int:
        return int(self._files.open("/dev/null", flags))

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int = 0, address: int = 0) -> int:
        if fd >= 0:
            flags = flags & ~MAP_SHARED | MAP_PRIVATE | MAP_ANONYMOUS
        return int(self._files.mmap(-1, length, prot, flags, 0, address))

    def ioctl(self, fd: int, request: int, argument: Argument) -> int:
        name = KFD.find(request) or AMDGPU.find(request)
        if name is None or isinstance(argument, int):
            raise OSError(errno.EINVAL, "no such call")
        table = KFD if name.startswith("AMDKFD") else AMDGPU
        struct = table.ioctls[name].struct
        fields: Any = table.ffi.from_buffer(f"{table.ctype(struct)} *", argument)
        handler = getattr(self, "_" + name.removeprefix("AMDKFD_IOC_").removeprefix("DRM_IOCTL_AMDGPU_").lower(), None)
        if handler is not None:
            handler(fields)
        return 0

    def _get_version(self, a: Any) -> None:
        a.major_version, a.minor_version = 1, 14

    def _get_process_apertures_new(self, a: Any) -> None:
        entry = KFD.new("kfd_process_device_apertures", gpu_id=self._gpu_id(), gpuvm_limit=(1 << 47) - 1)
        view(a.kfd_process_device_apertures_ptr, KFD.size("kfd_process_device_apertures"))[:] = bytes(KFD.ffi.buffer(entry))

    def _alloc_memory_of_gpu(self, a: Any) -> None:
        a.handle = next(self._numbers)

    def _create_queue(self, a: Any) -> None:
        a.queue_id, a.doorbell_offset = next(self._numbers), 8 * next(self._numbers)

    def _create_event(self, a: Any) -> None:
        a.event_id = next(self._numbers)

    def _available_memory(self, a: Any) -> None:
        a.available = 1 << 34

    def _set_event(self, a: Any) -> None:
        self._set.set()

    def _wait_events(self, a: Any) -> None:
        self.waited()
        a.wait_result = 1
        if a.timeout > 1000:  # the thread that waits for exceptions
            self._set.wait()

    def _gpu_id(self) -> int:
        base = "/sys/class/kfd/kfd/topology/nodes"
        ids = [int(self._files.read_text(f"{base}/{n}/gpu_id")) for n in self._files.list_dir(base)]
        return next(number for number in ids if number)


def main() -> int:
    system: Any = NullSystem()
    real: System = system
    device = AmdDevice(URI, real)
    system.waited = lambda: host_cost.complete(device)
    return host_cost.report(device, amdgcn.compile_program(host_cost.kernel(), amdgcn.target("gfx1100")))


if __name__ == "__main__":
    raise SystemExit(main())
