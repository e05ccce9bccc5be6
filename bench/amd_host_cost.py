"""What a submission to an AMD GPU costs the host, with nothing behind the driver boundary. Run: python bench/amd_host_cost.py

NullSystem grants every call, gives ordinary memory for every buffer, and has no engine: whoever waits finds everything done. So
what is measured is devrt's own time, from the call to the store into the doorbell.
"""

from __future__ import annotations

import errno
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from devrt.amd.device import AmdDevice
from devrt.compiler import lir
from devrt.compiler.dtypes import float32
from devrt.compiler.llvm import amdgcn
from devrt.device import Placement, parse_uri
from devrt.ioctl.amdgpu import AMDGPU
from devrt.ioctl.kfd import KFD
from devrt.ioctl.system import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, Argument, System, view
from devrt.virtual.system import make_system

RECORDED_LIMIT_US, UNRECORDED_LIMIT_US = 5.0, 25.0
BATCH = 500
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


def kernel() -> tuple[bytes, str]:
    """A kernel of three arguments that adds."""
    b = lir.Builder("add", groups=1, lanes=32)
    out, x, y = (b.param(name, float32, 32, writable=name == "out") for name in ("out", "x", "y"))
    at = b.lane()
    b.store(out, at, b.add(b.load(x, at), b.load(y, at)))
    return amdgcn.compile_program(b.finish(), amdgcn.target("gfx1100")), "add"


def per_call(run: Callable[[], object], device: AmdDevice) -> tuple[float, float]:
    """Fastest and median microseconds of one call, over batches between which everything completes."""
    figures = []
    for _ in range(40):
        start = time.perf_counter()
        for _ in range(BATCH):
            run()
        figures.append((time.perf_counter() - start) / BATCH * 1e6)
        complete(device)
    return min(figures), statistics.median(figures)


def complete(device: AmdDevice) -> None:
    """What an engine would have done by now."""
    for queue in (device.compute, device.transfer):
        queue._timeline.signal(queue.submitted)
    device.settle()


def main() -> int:
    system: Any = NullSystem()
    real: System = system
    device = AmdDevice(URI, real)
    system.waited = lambda: complete(device)
    program = device.load(*kernel())
    buffers = [device.alloc(4096) for _ in range(3)]
    host = device.alloc(4096, Placement.HOST)
    lists = {}
    for count in (1, 300):
        lists[count] = device.command_list()
        for _ in range(count):
            lists[count].dispatch(program, buffers, 64)
    copies = device.command_list()
    copies.copy(host, buffers[0], 4096)

    def unrecorded() -> None:
        commands = device.command_list()
        commands.dispatch(program, buffers, 64)
        device.compute.submit(commands)

    def patched() -> None:
        lists[300].patch(0, 1, buffers[1])
        device.compute.submit(lists[300])
        complete(device)

    rows = [("recorded list of 1 kernel", lambda: device.compute.submit(lists[1]), RECORDED_LIMIT_US),
            ("recorded list of 300 kernels", lambda: device.compute.submit(lists[300]), RECORDED_LIMIT_US),
            ("the same, one argument patched, waited for", patched, 0.0),
            ("recorded copy", lambda: device.transfer.submit(copies), 0.0),
            ("launch, not recorded", unrecorded, UNRECORDED_LIMIT_US)]
    failed = False
    for name, run, limit in rows:
        fastest, median = per_call(run, device)
        failed |= bool(limit) and fastest > limit
        print(f"{name:<46} best {fastest:7.2f}   median {median:7.2f} us" + (f"   (limit {limit:g})" if limit else ""))
    device.close()
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
