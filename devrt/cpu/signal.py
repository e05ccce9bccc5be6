"""Timelines: 64-bit counters in memory that host threads and workers raise and wait for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from devrt.device import DeviceHang, InvalidArgument
from devrt.memory import Block, words

if TYPE_CHECKING:
    from devrt.cpu.device import CpuDevice

SLICE_S = 0.1  # the longest sleep of a waiting host thread, so that Ctrl-C and a lost device are noticed
LIMIT = 1 << 64


class CpuSignal:
    """A timeline. Its memory belongs to the signal and goes back to the device when the signal is dropped."""

    def __init__(self, device: CpuDevice, value: int = 0) -> None:
        if not isinstance(value, int) or not 0 <= value < LIMIT:
            raise InvalidArgument(f"a signal starts at a value from 0 to 2^64 - 1, not {value!r}")
        self.device = device
        self._block: Block = device.allocator.take(64)
        self.address = self._block.address
        self._words = words(self.address)
        self._words[0], self._words[1] = value, 0

    @property
    def value(self) -> int:
        return int(self._words[0])

    def signal(self, value: int) -> None:
        """Raise the timeline to `value` from the host. Raises InvalidArgument if it would fall, DeviceLost."""
        self.device.check()
        if not isinstance(value, int) or not self.value <= value < LIMIT:
            raise InvalidArgument("a signal only grows", evidence=f"at {self.value}, asked for {value!r}")
        self.device.processor.signal_raise(self.device.processor.os, self.address, value)

    def wait(self, value: int, timeout_s: float | None = None) -> None:
        """Block until the timeline reaches `value`.

        The timeout (None: no limit) restarts whenever this timeline or any queue of the device gets on; DeviceHang when
        it runs out, DeviceLost when the device is closed meanwhile. Ctrl-C works.
        """
        device, processor = self.device, self.device.processor
        progress: tuple[int, ...] = () if timeout_s is None else (self.value, *device.progress())
        started = time.monotonic()
        while True:
            device.check()
            slice_s = SLICE_S if timeout_s is None else min(SLICE_S, max(timeout_s, 1e-6))
            seen = processor.signal_wait(processor.os, self.address, value, processor.spins, int(slice_s * 1e9),
                                         device.leader_core)
            if seen >= value:
                return
            now, progress_now = time.monotonic(), (seen, *device.progress())
            if progress_now != progress:
                progress, started = progress_now, now
            elif timeout_s is not None and now - started >= timeout_s:
                raise DeviceHang(f"a signal stayed at {seen}, waited for {value}", completed=seen, expected=value,
                                 evidence=f"no progress for {now - started:.3g} s; {device.describe_queues()}",
                                 remedy="look for a wait whose signal nobody raises, or a kernel that does not end")

    def __del__(self) -> None:
        block = getattr(self, "_block", None)
        if block is not None:
            self.device.allocator.drop(block)
