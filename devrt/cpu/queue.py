"""Queues of the CPU device: a ring of packets, a doorbell, and the threads that serve it.

The threads are Python's only until they enter the command processor; they stay in machine code until the queue closes.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from devrt.cpu import packets
from devrt.cpu.commands import CpuCommandList, Profile
from devrt.cpu.memory import map_aligned
from devrt.cpu.packets import QUEUE
from devrt.cpu.signal import CpuSignal
from devrt.device import CommandList, DeviceHang, InvalidArgument, OutOfMemory, Signal
from devrt.ioctl.errors import reported_as
from devrt.ioctl.system import view
from devrt.memory import HUGE, words

if TYPE_CHECKING:
    from devrt.cpu.device import CpuDevice

RING_SLOTS = 1024  # packets; a plain submission takes two
SCRATCH_BYTES = 4 << 20  # per worker
FULL_RING_TIMEOUT_S = 30.0
JOIN_TIMEOUT_S = 10.0


class CpuQueue:
    """Runs command lists in order. `cores` has one entry per worker: the core it is pinned to, or None."""

    def __init__(self, device: CpuDevice, name: str, cores: Sequence[int | None], slots: int = RING_SLOTS) -> None:
        self.device, self.name, self.slots = device, name, slots
        self.submitted = 0  # value the timeline reaches when all submitted work is done
        self._timeline = CpuSignal(device)
        self._lock = threading.Lock()
        # What queued work uses, until it is done: value, list, its words as submitted, profile and signals.
        self._flight: deque[tuple[int, CpuCommandList, array[int], tuple[object, ...]]] = deque()
        self._written = 0
        self._processor = device.processor
        nbytes = packets.QUEUE_BYTES + slots * packets.RING_WORDS * 8
        self._scratch_bytes = len(cores) * SCRATCH_BYTES
        # The ring outlives the workers, for a thread that asks for the queue's state while another closes it.
        self._block = device.allocator.take(nbytes)
        self._control = self._block.address
        view(self._control, nbytes)[:] = bytes(nbytes)
        with reported_as(f"can't map scratch memory for the {name} queue"):
            self._scratch = map_aligned(device.system, self._scratch_bytes, HUGE)
        self._state = words(self._control)
        self._set("os", self._processor.os)
        self._set("ring", self._control + packets.QUEUE_BYTES)
        self._set("mask", slots - 1)
        self._set("workers", len(cores))
        self._threads: list[threading.Thread] = []
        self._start(cores)

    @property
    def completed(self) -> int:
        """The timeline's value: the last submission that is done."""
        return self._timeline.value

    @property
    def workers(self) -> int:
        return len(self._threads)

    def submit(self, commands: CommandList, *, wait: Sequence[tuple[Signal, int]] = (),
               signal: Sequence[tuple[Signal, int]] = (), profile: Profile | None = None) -> int:
        """Queue `commands` behind the waits; returns the value the queue's own timeline reaches when they are done.

        `profile` receives the time of every command. Blocks while the ring is full; DeviceHang when it stays full
        for 30 s without progress. Nothing is queued when an argument is wrong (InvalidArgument).
        """
        if not isinstance(commands, CpuCommandList) or commands.device is not self.device:
            raise InvalidArgument(f"{commands!r} is no command list of this device",
                                  remedy="use this device's command_list()")
        if commands.stale:
            commands.check()
        if profile is not None and len(profile.stamps) != len(commands) + 1:
            raise InvalidArgument("the profile was made for another list",
                                  evidence=f"{len(profile.stamps) - 1} commands, the list has {len(commands)}")
        ring: list[int] = []
        for awaited, value in wait:
            ring += packets.wait(self._signal_address(awaited, value), value)
        stamps = profile.stamps.buffer_info()[0] if profile is not None else 0
        raised = [packets.signal(self._signal_address(s, value), value) for s, value in signal]
        with self._lock:
            self.device.check()
            value = self.submitted + 1
            ring += packets.indirect(commands.address(), len(commands), stamps)
            ring += packets.signal(self._timeline.address, value)
            for packet in raised:
                ring += packet
            staged = array("Q", ring)
            count = len(staged) // packets.RING_WORDS
            self._retire()
            self._reserve(count)
            self._flight.append((value, commands, commands.words, (profile, *wait, *signal)))
            commands.flight[self] = value
            self.submitted = value
            self._written += count
            self._processor.ring_push(self._control, staged.buffer_info()[0], count)
        return value

    def wait(self, value: int, timeout_s: float | None = None) -> None:
        """Block until the queue's own timeline reaches `value`; see Signal.wait for the timeout and Ctrl-C."""
        if value > self.submitted:
            raise InvalidArgument(f"the {self.name} queue will not reach {value}",
                                  evidence=f"{self.submitted} submissions so far",
                                  remedy="wait for what submit() returned")
        self._timeline.wait(value, timeout_s)
        # Releasing references can wait for the next submission when another thread is just submitting.
        if self._lock.acquire(blocking=False):
            try:
                self._retire()
            finally:
                self._lock.release()

    def progress(self) -> int:
        """Commands executed so far."""
        return self._get("executed")

    def describe(self) -> str:
        """The queue's state in one line, for errors."""
        text = (f"{self.name} queue: {self.completed} of {self.submitted} submissions done, ring read "
                f"{self._get('read')} of {self._written}, {self._get('executed')} commands executed")
        if self._get("read") == self._written:
            return text
        current = self._get("current")
        slot = (current - self._control - packets.QUEUE_BYTES) // 8
        if 0 <= slot < self.slots * packets.RING_WORDS:
            at = packets.QUEUE_BYTES // 8 + slot
            packet = packets.dump([int(self._state[at + i]) for i in range(packets.RING_WORDS)])
            return f"{text}, at {' '.join(packet.split()[1:])}"
        for _, commands, submitted, _ in list(self._flight):
            if name := commands.name_of((current - submitted.buffer_info()[0]) // 8):
                return f"{text}, at {name}"
        return text

    def stop(self) -> None:
        """Ask the workers to leave after their current command; what is queued behind it is dropped."""
        self._processor.ring_stop(self._control)

    def join(self) -> bool:
        """Wait for the workers (10 s at most each) and unmap their scratch; False, leaving it, if a kernel runs on."""
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)
        if any(thread.is_alive() for thread in self._threads):
            return False
        self._flight.clear()
        self.device.system.munmap(self._scratch, self._scratch_bytes)
        return True

    def __del__(self) -> None:
        block = getattr(self, "_block", None)
        if block is not None:
            self.device.allocator.drop(block)

    def after_fork(self) -> None:
        """In a forked child: the workers and whoever held the lock are not here."""
        self._lock = threading.Lock()
        self._threads = []

    def _start(self, cores: Sequence[int | None]) -> None:
        for index, core in enumerate(cores):
            scratch = self._scratch + index * SCRATCH_BYTES
            thread = threading.Thread(target=_serve, name=f"devrt-cpu-{self.name}-{index}", daemon=True,
                                      args=(self._processor.worker_main, self._control, index, scratch, core))
            try:
                thread.start()
            except RuntimeError as error:
                self.stop()
                self.join()
                raise OutOfMemory(f"can't start worker {index} of the {self.name} queue", evidence=str(error),
                                  remedy="raise the limit on threads (`ulimit -u`)") from error
            self._threads.append(thread)

    def _signal_address(self, signal: Signal, value: int) -> int:
        if not isinstance(signal, CpuSignal) or signal.device is not self.device:
            raise InvalidArgument(f"{signal!r} is no signal of this device", remedy="use this device's signal()")
        if not isinstance(value, int) or not 0 <= value < 1 << 64:
            raise InvalidArgument(f"a signal's value is an int from 0 to 2^64 - 1, not {value!r}")
        return signal.address

    def _reserve(self, count: int) -> None:
        """Wait until the ring has room for `count` packets. The caller holds the lock."""
        if count > self.slots:
            raise InvalidArgument(f"{count} packets do not fit the ring of {self.slots}",
                                  remedy="wait for fewer signals per submission")
        read, started = -1, time.monotonic()
        while self._written + count - self._get("read") > self.slots:
            self.device.check()
            now = self._get("read")
            if now != read:
                read, started = now, time.monotonic()
            elif time.monotonic() - started > FULL_RING_TIMEOUT_S:
                raise DeviceHang(f"the {self.name} queue's ring stayed full", completed=self.completed,
                                 expected=self.submitted, evidence=self.describe(),
                                 remedy="submit what raises the signal the queue waits for from another thread")
            processor = self._processor
            processor.signal_wait(processor.os, self._timeline.address, self.completed + 1, 0, 10_000_000, -1)

    def _retire(self) -> None:
        completed = self.completed
        while self._flight and self._flight[0][0] <= completed:
            self._flight.popleft()

    def _set(self, field: str, value: int) -> None:
        self._state[QUEUE[field] // 8] = value

    def _get(self, field: str) -> int:
        return int(self._state[QUEUE[field] // 8])


def _serve(worker_main: Any, control: int, index: int, scratch: int, core: int | None) -> None:
    if core is not None:
        try:
            os.sched_setaffinity(0, {core})
        except OSError:
            core = None  # the core left our cpuset since the device was opened: run wherever the kernel says
    worker_main(control, index, scratch)
