"""What a submission to a GPU costs the host, on a device that stands on a null system: no engine runs anything, and whoever waits
finds everything done. So it is devrt's own time, from the call to the store into the doorbell: that of the processor, so that
what else the machine does meanwhile is not counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from devrt.compiler import lir
from devrt.compiler.dtypes import float32
from devrt.device import Placement
from devrt.gpu.device import GpuDevice

RECORDED_LIMIT_US, UNRECORDED_LIMIT_US = 5.0, 25.0
BATCH = 500


def kernel() -> lir.Program:
    """A kernel of three arguments that adds."""
    b = lir.Builder("add", groups=1, lanes=32)
    out, x, y = (b.param(name, float32, 32, writable=name == "out") for name in ("out", "x", "y"))
    at = b.lane()
    b.store(out, at, b.add(b.load(x, at), b.load(y, at)))
    return b.finish()


def per_call(run: Callable[[], object], device: GpuDevice) -> tuple[float, float]:
    """Fastest and median microseconds of one call, over batches between which everything completes."""
    figures = []
    for _ in range(40):
        start = time.thread_time()
        for _ in range(BATCH):
            run()
        figures.append((time.thread_time() - start) / BATCH * 1e6)
        complete(device)
    return min(figures), statistics.median(figures)


def complete(device: GpuDevice) -> None:
    """What an engine would have done by now."""
    for queue in device._queues:
        queue._timeline._words[0] = queue.submitted
    device.settle()


def report(device: GpuDevice, image: bytes) -> int:
    """Measure and print; 1 where a limit is missed. `image` holds `kernel`."""
    program = device.load(image, "add")
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
