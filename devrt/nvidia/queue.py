"""Queues of NVIDIA GPUs: GPFIFO channels behind one order.

A recorded list is one entry, its end (a semaphore release with the submission's number) another; then GPPut and the doorbell.
A host thread that waits looks at the timeline in memory: on and on at first, then after sleeps that grow to half a millisecond.
It looks at the channels' error words as well, and at whether the GPU is still on the bus.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from devrt.device import InvalidArgument
from devrt.gpu.queue import GpuQueue
from devrt.gpu.signal import GpuSignal
from devrt.ioctl.nv_alloc import EngineType
from devrt.nvidia.channel import Channel
from devrt.nvidia.engines import SEMAPHORE
from devrt.nvidia.pushbuffer import entry

if TYPE_CHECKING:
    from devrt.device import Signal
    from devrt.nvidia.device import NvidiaDevice

FIRST_NAP_S, LAST_NAP_S = 20e-6, 500e-6
MAX_WRITE = 1024  # entries that are put into a ring at once
_CIRCLE = 1 << 63  # what an acquire compares goes round


class NvidiaQueue(GpuQueue):
    """Runs command lists in order, on a compute channel, a copy channel, or both in turns."""

    device: NvidiaDevice

    def __init__(self, device: NvidiaDevice, name: str, compute: bool) -> None:
        super().__init__(device, name, compute)
        head, self._execute = self._home.engine.release
        self._fence = head, self._timeline.address
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
            ring = self._ring(True)
            self._put(ring, [methods])
            ring.kick()

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
        self._put(channel, [methods.tobytes()])
        channel.kick()
        return channel

    def _plain(self, ring: Channel, head: int, value: int) -> None:
        at = self._claim(ring, 2, SEMAPHORE.size)
        SEMAPHORE.pack_into(ring.methods, at, *self._fence, value, self._execute)
        ring.push_two(head, self._fence_entry | ring.methods_at + at)

    def _put(self, ring: Channel, packets: Sequence[bytes | int]) -> None:
        """Methods by value, and entries of methods that lie in memory."""
        for start in range(0, len(packets), MAX_WRITE):
            if start:
                ring.kick()
            part = packets[start:start + MAX_WRITE]
            at = self._claim(ring, len(part), sum([len(packet) for packet in part if isinstance(packet, bytes)]))
            for packet in part:
                if isinstance(packet, bytes):
                    ring.write(at, packet)
                    at += len(packet)
                else:
                    ring.push(packet)

    def _claim(self, ring: Channel, entries: int, nbytes: int) -> int:
        at = ring.claim(entries, nbytes)
        return at if at >= 0 else self._room(ring, lambda: ring.claim(entries, nbytes))

    def _check_signal(self, signal: Signal, value: int) -> None:
        super()._check_signal(signal, value)
        assert isinstance(signal, GpuSignal)
        if value - signal.peek() >= _CIRCLE:
            raise InvalidArgument(f"a wait for {value} of a signal at {signal.peek()}",
                                  remedy="use values that are less than 2^63 ahead")
