"""Queues of NVIDIA GPUs: GPFIFO channels behind one order.

A recorded list is one entry, its end (a semaphore release with the submission's number) another; then GPPut and the doorbell.
A host thread that waits looks at the timeline in memory: on and on at first, then after sleeps that grow to half a millisecond.
It looks at the channels' error words as well, and at whether the GPU is still on the bus.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from devrt.device import InvalidArgument
from devrt.gpu.queue import GpuQueue
from devrt.gpu.signal import GpuSignal
from devrt.ioctl.nv_alloc import EngineType
from devrt.nvidia.channel import Channel
from devrt.nvidia.engines import LOW, SEMAPHORE
from devrt.nvidia.pushbuffer import entry

if TYPE_CHECKING:
    from devrt.device import Signal
    from devrt.nvidia.device import NvidiaDevice

FIRST_NAP_S, LAST_NAP_S = 20e-6, 500e-6
_CIRCLE = 1 << 63  # what an acquire compares goes round


class NvidiaQueue(GpuQueue):
    """Runs command lists in order, on a compute channel, a copy channel, or both in turns."""

    device: NvidiaDevice

    def __init__(self, device: NvidiaDevice, name: str, compute: bool) -> None:
        super().__init__(device, name, compute)
        address, (head, self._execute) = self._timeline.address, self._home.engine.release
        self._fence = head, address & LOW, address >> 32
        self._fence_entry = entry(0, SEMAPHORE.size // 4)

    def doze(self, signal: GpuSignal, value: int, milliseconds: int) -> None:
        """Sleep until `signal` may have reached `value`, at most that long."""
        until, nap = time.monotonic() + milliseconds / 1e3, FIRST_NAP_S
        while signal.peek() < value and self.device.failure is None:
            self.device.look()
            time.sleep(nap)
            nap = min(2 * nap, LAST_NAP_S)
            if time.monotonic() > until:
                self.device.look_for_card()
                return

    def wake(self) -> None:
        """Sleeps are short: who waits sees the device's failure soon enough."""

    @property
    def channels(self) -> list[Channel]:
        return list(self._rings.values())

    def configure(self, methods: bytes) -> None:
        """Methods that change the compute engine's state, behind everything queued before."""
        with self._lock:
            self._put(self._ring(True), methods)
            self._ring(True).kick()

    # ----- writing

    def _make_ring(self, compute: bool) -> Channel:
        device = self.device
        if compute:
            channel = Channel(device, device.compute_engine, EngineType.GRAPHICS, f"{self.name} queue's compute")
            methods = device.compute_engine.setup(device.objects.classes.compute, device.driver.shared_window,
                                                  device.driver.local_window)
        else:
            channel = Channel(device, device.copy_engine, device.copy_kind(self._compute), f"{self.name} queue's copy")
            methods = device.copy_engine.setup(device.objects.classes.copy)
        self._put(channel, methods.tobytes())
        return channel

    def _plain(self, ring: Channel, head: int, value: int) -> None:
        at = ring.claim(2, SEMAPHORE.size)
        if at < 0:
            at = self._room(ring, lambda: ring.claim(2, SEMAPHORE.size))
        SEMAPHORE.pack_into(ring.methods, at, *self._fence, value & LOW, value >> 32, self._execute)
        ring.push_two(head, self._fence_entry | ring.methods_at + at)

    def _put(self, ring: Channel, packets: bytes | tuple[int, ...]) -> None:
        """Methods by value, or entries of methods that lie in memory."""
        if isinstance(packets, tuple):
            for word in packets:
                self._room(ring, lambda: ring.claim(1, 0))
                ring.push(word)
        else:
            ring.write(self._room(ring, lambda: ring.claim(1, len(packets))), packets)

    def _check_signal(self, signal: Signal, value: int) -> None:
        super()._check_signal(signal, value)
        assert isinstance(signal, GpuSignal)
        if value - signal.peek() >= _CIRCLE:
            raise InvalidArgument(f"a wait for {value} of a signal at {signal.peek()}",
                                  remedy="use values that are less than 2^63 ahead")
