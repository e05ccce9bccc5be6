"""Timelines: 64-bit counters in host memory that GPUs and host threads raise and wait for."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from devrt.device import DeviceHang, InvalidArgument
from devrt.memory import Block, words

if TYPE_CHECKING:
    from devrt.gpu.device import GpuDevice
    from devrt.gpu.queue import GpuQueue

LIMIT = 1 << 64
SPIN_NS = 200_000  # a waiting host thread polls this long: what wakes it later takes longer
FIRST_SLEEP_MS, LAST_SLEEP_MS = 1, 20  # then it sleeps in slices: an interrupt may be lost, or be another waiter's


class GpuSignal:
    """A timeline. Its memory belongs to the signal and goes back to the device when the signal is dropped."""

    def __init__(self, device: GpuDevice, value: int = 0) -> None:
        if not isinstance(value, int) or not 0 <= value < LIMIT:
            raise InvalidArgument(f"a signal starts at a value from 0 to 2^64 - 1, not {value!r}")
        self.device = device
        self.raiser: GpuQueue | None = None  # the queue that was last asked to raise it
        self._block: Block = device.host_memory.take(64)
        self.address = self._block.address
        self._words = words(self.address)
        self._words[0] = value
        self._raised = threading.Condition()

    @property
    def value(self) -> int:
        """What it stands at. Raises what failed the device."""
        self.device.check()
        value = int(self._words[0])
        self.device.settle()
        return value

    def peek(self) -> int:
        """What it stands at, whatever happened to the device."""
        return int(self._words[0])

    def signal(self, value: int) -> None:
        """Raise the timeline to `value` from the host. Raises InvalidArgument if it would fall, DeviceLost."""
        self.device.check()
        if not isinstance(value, int) or not self.peek() <= value < LIMIT:
            raise InvalidArgument("a signal only grows", evidence=f"at {self.peek()}, asked for {value!r}")
        with self._raised:
            self._words[0] = value
            self._raised.notify_all()

    def wait(self, value: int, timeout_s: float | None = None) -> None:
        """Block until the timeline reaches `value`.

        The timeout (None: no limit) restarts whenever this timeline or any queue of the device gets on; DeviceHang when
        it runs out, what failed the device when it does meanwhile. Ctrl-C works.
        """
        self.device.check()
        state = self._words
        if state[0] < value:
            until = time.perf_counter_ns() + SPIN_NS
            while state[0] < value and time.perf_counter_ns() < until:
                time.sleep(0)  # other threads, and a virtual GPU among them, get their turn
            if state[0] < value:
                self._sleep(value, timeout_s)
        self.device.settle()

    def _sleep(self, value: int, timeout_s: float | None) -> None:
        device, slice_ms = self.device, FIRST_SLEEP_MS
        progress, started = (self.peek(), *device.progress()), time.monotonic()
        while True:
            if self.raiser is not None:
                self.raiser.doze(self, value, slice_ms)
            else:  # only the host can raise it
                with self._raised:
                    if self._words[0] < value:
                        self._raised.wait(slice_ms / 1e3)
            slice_ms = min(2 * slice_ms, LAST_SLEEP_MS)
            seen = self.peek()
            if seen >= value:
                return
            device.check()
            now, progress_now = time.monotonic(), (seen, *device.progress())
            if progress_now != progress:
                progress, started = progress_now, now
            elif timeout_s is not None and now - started >= timeout_s:
                raise DeviceHang(f"a signal of {device.uri} stayed at {seen}, waited for {value}", completed=seen,
                                 expected=value, evidence=f"no progress for {now - started:.3g} s; {device.describe_queues()}",
                                 remedy="look for a wait whose signal nobody raises, or a kernel that does not end")

    def __del__(self) -> None:
        block = getattr(self, "_block", None)
        if block is not None:
            self.device.host_memory.drop(block)
