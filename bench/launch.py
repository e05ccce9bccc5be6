"""Launch latency, replay cost per kernel and copy bandwidth of the cpu device. Run: python bench/launch.py"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from devrt.cpu.commands import Profile
from devrt.cpu.device import CpuDevice
from devrt.cpu.processor import compile_image

KERNEL = """
define dso_local void @nop(ptr %args, i64 %begin, i64 %end, ptr %scratch) {
  ret void
}
"""


def best(run: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Fastest and median seconds of `repeat` runs after two that do not count."""
    times = []
    for _ in range(repeat + 2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    times = sorted(times[2:])
    return times[0], times[len(times) // 2]


def row(name: str, figures: tuple[float, float], scale: float, unit: str) -> None:
    fastest, median = (scale / f if unit == "GB/s" else f * scale for f in figures)
    print(f"{name:<46} best {fastest:9.3f}   median {median:9.3f} {unit}")


def main() -> None:
    device = CpuDevice()
    queue, program = device.compute, device.load(compile_image(KERNEL).object, "nop")
    buffer = device.alloc(4096)
    print(device.properties.name, "with", device.properties.compute_units, "cores")

    for groups in (1, 2):
        def launch(groups: int = groups) -> None:
            commands = device.command_list()
            commands.dispatch(program, [buffer, buffer, 1], groups)
            queue.wait(queue.submit(commands))
        row(f"launch and wait, not recorded, {groups} group(s)", best(launch, 2000), 1e6, "us")
    for count in (1, 1000):
        for groups in (1, 2, 64):
            commands = device.command_list()
            for _ in range(count):
                commands.dispatch(program, [buffer, buffer, 1], groups)

            def replay(commands: object = commands) -> None:
                queue.wait(queue.submit(commands))  # type: ignore[arg-type]
            row(f"replay of {count} kernel(s), {groups} group(s), each", best(replay, 300), 1e6 / count, "us")
    profile = Profile(commands)
    queue.wait(queue.submit(commands, profile=profile))
    print(f"{'profiled replay, median kernel':<46} {sorted(profile.durations_ns)[500]} ns")

    for megabytes in (1, 16, 256):
        nbytes = megabytes << 20
        src, dst = device.alloc(nbytes), device.alloc(nbytes)
        source, target = np.frombuffer(src.host(), np.uint8), np.frombuffer(dst.host(), np.uint8)
        source[:] = 1
        target[:] = 2
        copy = device.command_list()
        copy.copy(dst, src, nbytes)

        def transfer(copy: object = copy) -> None:
            device.transfer.wait(device.transfer.submit(copy))  # type: ignore[arg-type]
        row(f"copy of {megabytes} MiB, transfer queue", best(transfer, 30), nbytes / 1e9, "GB/s")
        row(f"copy of {megabytes} MiB, numpy copyto",
            best(lambda target=target, source=source: np.copyto(target, source), 30), nbytes / 1e9, "GB/s")
    device.close()


if __name__ == "__main__":
    main()
