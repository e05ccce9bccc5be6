"""Queues of GPUs: commands in order, on a compute engine, a copy engine, or both in turns; then the end of one segment raises
a timeline that the next one's engine waits for.

A vendor's ring takes packets; submitting is writing them, and a doorbell: no system call. Progress is read from timelines
alone. What a ring holds is over when the submission is, so its room is counted by them too.
"""

from __future__ import annotations

import abc
import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from devrt.device import CommandList, DeviceHang, DeviceLost, InvalidArgument, Signal, Unsupported
from devrt.gpu.commands import GpuCommandList, Instance, Profile
from devrt.gpu.signal import GpuSignal
from devrt.memory import words

if TYPE_CHECKING:
    from devrt.gpu.device import GpuDevice

FULL_RING_TIMEOUT_S = 30.0


class Ring(Protocol):
    """What one engine reads. `engine` makes the packets that wait and raise. What is written is read once the engine was told."""

    @property
    def engine(self) -> Any: ...
    @property
    def read(self) -> int:
        """Up to where the engine says it has read, as it counts."""
        ...

    @property
    def told(self) -> Any:
        """The end of what the engine was told of."""
        ...

    def kick(self) -> None:
        """Tell the engine of everything written."""
        ...

    def rewind(self) -> None:
        """Forget what it was not told of."""
        ...

    def retire(self, mark: Any) -> None:
        """Everything it was told of up to `mark` was read."""
        ...

    def describe(self) -> str: ...
    def close(self) -> None:
        """Stop the engine there, whatever it does, and free the memory."""
        ...


class GpuQueue(abc.ABC):
    """Runs command lists in order. `compute`: its own engine runs kernels; the other kind of ring is made when it is needed."""

    step_limit: ClassVar[int] = 1 << 62  # of what an engine compares when it waits for another

    def __init__(self, device: GpuDevice, name: str, compute: bool) -> None:
        self.device, self.name, self._compute = device, name, compute
        self.submitted = 0  # value the timeline reaches when all submitted work is done
        self._lock = threading.Lock()
        # What queued work uses, until it is done: value, (ring, its end) of each ring, list, instance, profile and signals.
        self._flight: deque[tuple[int, list[tuple[Any, Any]], GpuCommandList, Instance, tuple[object, ...]]] = deque()
        self._timeline = GpuSignal(device)
        self._timeline.raiser = self
        self._semaphore = GpuSignal(device)  # between segments
        self._steps = 0  # of the semaphore
        self._rings: dict[bool, Any] = {}
        self._home = self._last = self._ring(compute)

    @property
    def completed(self) -> int:
        """The timeline's value: the last submission that is done."""
        return self._timeline.peek()

    def submit(self, commands: CommandList, *, wait: Sequence[tuple[Signal, int]] = (),
               signal: Sequence[tuple[Signal, int]] = (), profile: Profile | None = None) -> int:
        """Queue `commands` behind the waits; returns the value the queue's own timeline reaches when they are done.

        `profile` receives the time of every command. Blocks while the ring is full; DeviceHang when it stays full
        for 30 s without progress. Nothing is queued when an argument is wrong (InvalidArgument).
        """
        device = self.device
        if not isinstance(commands, device.lists) or commands.device is not device:
            raise InvalidArgument(f"{commands!r} is no command list of this device", remedy="use this device's command_list()")
        if commands.stale:
            commands.check()
        if profile is not None and not profile.fits(commands):
            raise InvalidArgument("the profile was made for another list", evidence=f"the list has {len(commands)} commands")
        if wait or signal:
            for awaited, value in (*wait, *signal):
                self._check_signal(awaited, value)
        instance = commands.instance(self._compute) if profile is None else commands.build(self._compute, profile.address)
        if not self._compute and any(segment.compute for segment in instance.segments):
            raise Unsupported("the transfer queue runs no kernels", remedy="submit the list to the compute queue")
        with self._lock:
            if device.failure is not None:
                device.check()
            value, ring = self.submitted + 1, self._home
            if device.host_visible:
                device.flush_host_writes()
            ends: list[tuple[Any, Any]] = []
            told = ring.told
            self._flight.append((value, ends, commands, instance, (profile, *wait, *signal)))
            try:
                if instance.head is not None and instance.segments[0].compute is self._compute and not wait and not signal \
                        and self._last is ring:
                    self._plain(ring, instance.head, value)
                    ring.kick()
                    ends.append((ring, ring.told))
                else:
                    self._write(instance, value, wait, signal, ends)
            finally:  # Ctrl-C may come between any two lines
                if ends or ring.told != told:
                    self.submitted = instance.flight[self] = value
                else:  # no engine knows of it
                    ring.rewind()
                    self._flight.pop()
            if self._flight[0][0] <= self._timeline.peek():
                self._retire()
        return value

    def wait(self, value: int, timeout_s: float | None = None) -> None:
        """Block until the queue's own timeline reaches `value`; see Signal.wait for the timeout and Ctrl-C."""
        if value > self.submitted:
            raise InvalidArgument(f"the {self.name} queue will not reach {value}",
                                  evidence=f"{self.submitted} submissions so far",
                                  remedy="wait for what submit() returned")
        self._timeline.wait(value, timeout_s)

    @abc.abstractmethod
    def doze(self, signal: GpuSignal, value: int, milliseconds: int) -> None:
        """Sleep until `signal` may have reached `value`, at most that long."""

    def settle(self) -> None:
        """Let go of what is done, unless another thread is submitting, which does the same."""
        if self._flight and self._lock.acquire(blocking=False):
            try:
                self._retire()
            finally:
                self._lock.release()

    def progress(self) -> tuple[int, ...]:
        return self.completed, *(ring.read for ring in self._rings.values())

    def running(self) -> str:
        """The kernels of the oldest list that is not done."""
        completed = self.completed
        for value, _, commands, _, _ in list(self._flight):
            if value > completed:
                return commands.describe()
        return ""

    def describe(self) -> str:
        """The queue's state in one line, for errors."""
        rings = ", ".join(ring.describe() for ring in list(self._rings.values()))
        return f"{self.name} queue: {self.completed} of {self.submitted} submissions done, {rings}"

    @abc.abstractmethod
    def wake(self) -> None:
        """End the sleep of those who wait for it."""

    def close(self) -> None:
        """Stop it where it is; what is queued is dropped."""
        with self._lock, contextlib.ExitStack() as last:
            last.callback(self._flight.clear)
            while self._rings:
                last.callback(self._rings.popitem()[1].close)

    def after_fork(self) -> None:
        """In a forked child: whoever held the lock is not here."""
        self._lock = threading.Lock()

    # ----- writing

    @abc.abstractmethod
    def _make_ring(self, compute: bool) -> Any: ...

    @abc.abstractmethod
    def _plain(self, ring: Any, head: Any, value: int) -> None:
        """Write a submission that is one segment alone, and its end. The caller holds the lock."""

    @abc.abstractmethod
    def _put(self, ring: Any, packets: Sequence[Any]) -> None:
        """Write packets of one engine: all or, where room is waited for in vain, none, unless they fill a good part of the ring.
        The caller holds the lock."""

    def _write(self, instance: Instance, value: int, wait: Sequence[tuple[Signal, int]], signal: Sequence[tuple[Signal, int]],
               ends: list[tuple[Any, Any]]) -> None:
        """The packets of a submission that is not one segment alone: segments in turns, waits before the first, signals after
        the last. `ends` receives how far each ring was filled, also where it is cut short, which the device does not survive."""
        parts: list[tuple[Any, list[Any]]] = []
        for segment in instance.segments:
            ring = self._ring(segment.compute)
            if parts and parts[-1][0] is ring:
                parts[-1][1].extend(segment.packets)
            else:
                parts.append((ring, [*segment.packets]))
        if not parts:
            parts.append((self._last, []))
        if self._steps + len(parts) > self.step_limit:
            self._restart_semaphore()
        first, last = parts[0][0], parts[-1]
        before = [first.engine.wait(self._timeline.address, value - 1)] if first is not self._last and self.submitted else []
        before += [first.engine.wait(s.address, v) for s, v in wait if isinstance(s, GpuSignal) and s.peek() < v]
        parts[0][1][:0] = before
        for (ring, packets), (next_ring, next_packets) in itertools.pairwise(parts):
            self._steps += 1
            packets.append(ring.engine.fence(self._semaphore.address, self._steps))
            next_packets.insert(0, next_ring.engine.wait(self._semaphore.address, self._steps))
        for s, v in signal:
            assert isinstance(s, GpuSignal)
            s.raiser = self
            last[1].append(last[0].engine.fence(s.address, v))
        # The timeline comes last: whoever sees it takes the submission's place in the ring for free.
        last[1].append(last[0].engine.fence(self._timeline.address, value))
        told = {ring: ring.told for ring, _ in parts}
        try:
            for ring, packets in parts:
                self._put(ring, packets)
                ring.kick()
        except BaseException as error:
            for ring in told:
                ring.rewind()
            if any(ring.told != mark for ring, mark in told.items()):
                self.device.fail(DeviceLost(f"a submission to the {self.name} queue was cut short", evidence=f"{error!r}; "
                                            f"{self.describe()}", remedy="close the device and open it again"))
            raise
        finally:
            ends += [(ring, ring.told) for ring, mark in told.items() if ring.told != mark]
        self._last = last[0]

    def _room(self, ring: Any, attempt: Callable[[], int]) -> int:
        """What `attempt` gives once that is not negative, as the ring has room. The caller holds the lock."""
        seen, started = (-1, 0), time.monotonic()
        while True:
            self._retire()
            at = attempt()
            if at >= 0:
                return at
            self.device.check()
            now = (self.completed, ring.read)
            if now != seen:
                seen, started = now, time.monotonic()
            elif time.monotonic() - started > FULL_RING_TIMEOUT_S:
                raise DeviceHang(f"the {self.name} queue's ring stayed full", completed=self.completed, expected=self.submitted,
                                 evidence=self.describe(),
                                 remedy="submit what raises the signal the queue waits for from another thread")
            self._pause()

    def _pause(self) -> None:
        """A millisecond without the lock's owner doing anything."""
        time.sleep(1e-3)

    def _restart_semaphore(self) -> None:
        """Start it at 0 again, with nothing in flight that looks at it."""
        self._timeline.wait(self.submitted)
        self._semaphore = GpuSignal(self.device)
        self._steps = 0

    def _retire(self) -> None:
        completed = self.completed
        stamped: list[Instance] = []  # kept until their clocks were read, which may lie in their memory
        while self._flight and self._flight[0][0] <= completed:
            _, ends, _, instance, _ = self._flight.popleft()
            if instance.stamps:
                stamped.append(instance)
            for ring, mark in ends:
                ring.retire(mark)
        if stamped:
            stamps = {one for instance in stamped for one in instance.stamps}
            # A list in flight again will write its stamps anew.
            for _, _, _, instance, _ in self._flight:
                stamps.difference_update(instance.stamps)
            for stamp, clock in stamps:
                if not stamp.buffer.freed:  # its memory may be somebody else's by now
                    words(stamp.address)[0] = self.device.nanoseconds(int(words(clock)[0]))

    def _ring(self, compute: bool) -> Any:
        ring = self._rings.get(compute)
        if ring is None:
            ring = self._rings[compute] = self._make_ring(compute)
        return ring

    def _check_signal(self, signal: Signal, value: int) -> None:
        if not isinstance(signal, GpuSignal) or signal.device.driver is not self.device.driver:
            raise InvalidArgument(f"{signal!r} is no signal of this device", remedy="use this device's signal()")
        if not isinstance(value, int) or not 0 <= value < 1 << 64:
            raise InvalidArgument(f"a signal's value is an int from 0 to 2^64 - 1, not {value!r}")
        if signal.device is not self.device:
            signal.device.show(signal.address, self.device)
