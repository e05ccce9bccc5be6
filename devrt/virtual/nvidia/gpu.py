"""One virtual GPU: its channels, the doorbell, and the thread that carries their methods out, in turns.

A turn is a few methods, a part of a copy, or a launch for a millisecond or so: engines and channels run beside each other as if
they were many, and what comes between two turns is between two instructions of a kernel.

The doorbell is one dword of the usermode page, which every process that has a channel maps: a token written there wakes the GPU.
Tokens that come faster than the GPU looks overwrite each other, so each ring makes it look at every channel's GPPut. Beside it
the page holds the time, as new as the last look.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence

from devrt.virtual import atomics
from devrt.virtual.faults import Faults
from devrt.virtual.memory import MemoryFault
from devrt.virtual.nvidia.channel import GP_GET, GP_PUT, Channel, ChannelError
from devrt.virtual.nvidia.dispatch import WarpFault
from devrt.virtual.nvidia.engine import Lost, Port, Runs, Step, now
from devrt.virtual.nvidia.faults import (
    HANGS,
    MmuFault,
    Pbdma,
    SmError,
    Xid,
    mmu_error,
    pbdma_error,
    reset_error,
    warp_error,
    warp_state_of_mmu,
)
from devrt.virtual.nvidia.host import Host
from devrt.virtual.nvidia.ledger import Cache, Order
from devrt.virtual.pace import Gate, Pace, turn

TIME_0, DOORBELL = 0x80, 0x90  # clc361.h; TIME_1 behind TIME_0
QUIET = 0xFFFFFFFF             # what the doorbell holds that nobody rang: no channel's token

Report = Callable[[Channel | None, int, str], None]


class _Runner:
    """A channel on the engine."""

    def __init__(self, gpu: VirtualGpu, channel: Channel) -> None:
        self.gpu, self.channel = gpu, channel
        self.track = gpu.order.track()
        self.port = Port(channel, gpu.sm, gpu.faults, gpu.executor, self.track, gpu.constants, gpu.code, gpu.interrupt,
                         gpu.tpcs)
        self.host = Host(self.port)
        self.enabled = self.hung = self.gone = False
        self.gate = Gate()  # held while methods are carried out
        self._put = channel.userd[GP_PUT:GP_PUT + 4].cast("I")
        self._put[0] = 0
        channel.userd[GP_GET:GP_GET + 4] = bytes(4)
        self._steps = self.host.run()

    def look(self) -> None:
        """The doorbell rang: take a new GPPut."""
        channel = self.channel
        with self.gate:
            if not self.enabled or channel.error or self.hung or self.gone or self._put[0] == self.host.put:
                return
            put, faults = self._put[0], self.gpu.faults
            if put >= channel.gpfifo_entries:
                self._end(pbdma_error(channel, Pbdma.GPPTR,
                                      f"GPPut is {put:#x}, the ring has {channel.gpfifo_entries:#x} entries"))
            else:
                self.host.put = put
                self.track.rang()
                if faults.take("hang"):
                    self.hung = True
                elif faults.take("reset"):
                    self.port.posts.append(lambda: self.gpu.lost(reset_error()))
        self._post()

    def turn(self) -> bool:
        """Carry out methods for a while. Returns whether there was anything to do."""
        return turn(self.step)

    def step(self) -> bool:
        """A few methods, or one look at what the channel waits for."""
        if self.gate.wanted or self.gone or self.hung or not self.enabled or self.channel.error or not self.track.busy:
            return False
        step = Step.IDLE
        with self.gate:
            if self.gone or not self.enabled or self.channel.error:
                return False
            try:
                step = next(self._steps)
            except Exception as error:
                self._stopped(error)
            if step is Step.IDLE:
                self.track.busy = False
        self._post()
        return step is Step.DONE

    def _post(self) -> None:
        """Tell the driver, without a lock."""
        with self.gate:
            posts, self.port.posts = self.port.posts, []
        for post in posts:
            post()

    def _stopped(self, error: Exception) -> None:
        """An exception of an engine, in the driver's terms."""
        gpu, channel, port = self.gpu, self.channel, self.port
        if self.gone:
            return
        if isinstance(error, WarpFault) and error.kind in HANGS:
            self.hung = True
            self.track.halt()
        elif isinstance(error, ChannelError):
            self._end(error)
        elif isinstance(error, Lost):
            told = error.error
            port.posts.append(lambda: gpu.lost(told))
            self.hung = True  # it does nothing more until then
        elif isinstance(error, WarpFault):
            told, state = warp_error(channel, error)
            gpu.sm_errors.append(state)
            self._end(told)
        elif isinstance(error, MemoryFault):
            told, fault = mmu_error(channel, error, port.client, f"{port.who}, {self.host.place}")
            gpu.mmu_faults.append(fault)
            if error.pc:
                gpu.sm_errors.append(warp_state_of_mmu(channel, error))
            self._end(told)
        else:
            self._end(ChannelError(Xid.GR_EXCEPTION, f"{type(error).__name__}: {error} [a defect of the virtual GPU]"))

    def _end(self, error: ChannelError) -> None:
        """Stop the channel, and with it those of its group."""
        gpu, channel = self.gpu, self.channel
        for runner in gpu.runners:
            other = runner.channel
            if other is channel or channel.group is not None and other.group is channel.group:
                other.stop(error, now())
                runner.track.halt()
        self.port.posts.append(lambda: gpu.report(channel, error.xid, error.message))

    def close(self) -> None:
        self.gone = True
        with self.gate.first():
            self._steps.close()
            self.track.close()
            self._put.release()


class VirtualGpu:
    """A GPU of generation `sm` with `tpcs` TPCs. `doorbell` is its usermode page. `report(channel, xid, message)` is called when
    a channel stops, by the engine's thread and without a lock; each line of `message` is one of the kernel log; no channel: the
    whole GPU is lost. `interrupt(channel)` is called when a channel asks for one. The GPU itself writes the notifier."""

    def __init__(self, sm: int, faults: Faults, report: Report, doorbell: memoryview, executor: Runs, tpcs: int = 1,
                 interrupt: Callable[[Channel], None] = lambda channel: None) -> None:
        self.sm, self.faults, self.executor = sm, faults, executor
        self.report, self.interrupt, self.tpcs = report, interrupt, tpcs
        self.sm_errors: list[SmError] = []
        self.mmu_faults: list[MmuFault] = []
        self.order, self.constants, self.code = Order(), Cache(), Cache()
        self._bell = doorbell[DOORBELL:DOORBELL + 4].cast("B").cast("I")
        self._time = doorbell[TIME_0:TIME_0 + 8].cast("B").cast("Q")
        self._bell_at = ctypes.addressof(ctypes.c_char.from_buffer(self._bell))
        self._bell[0], self._time[0] = QUIET, now()
        self._runners: tuple[_Runner, ...] = ()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = self._looks = False

    @property
    def runners(self) -> Sequence[_Runner]:
        return self._runners

    # --- what the driver asks ---

    def attach(self, channel: Channel) -> None:
        """Take a channel, with GPGet and GPPut 0. It does nothing before it is enabled."""
        with self._lock:
            self._runners = (*self._runners, _Runner(self, channel))
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=f"virtual sm_{self.sm}", daemon=True)
                self._thread.start()
        self._wake.set()

    def detach(self, channel: Channel) -> None:
        """Give a channel back, also where it hangs. What it was rung for and has not carried out is lost."""
        runner = self._find(channel)
        runner.close()
        with self._lock:
            self._runners = tuple(other for other in self._runners if other is not runner)
        self.clear_errors(channel)

    def enable(self, channel: Channel, on: bool) -> None:
        """Put a channel on the engine or take it off: when that returns, it carries nothing out."""
        runner = self._find(channel)
        with runner.gate.first():
            runner.enabled = on
        self._looks = True  # at what it was rung for meanwhile

    def settle(self) -> None:
        """Wait until every channel's turn has ended: nothing goes on with pages that were unmapped before."""
        for runner in self._runners:
            with runner.gate.first():
                pass

    def clear_errors(self, channel: Channel) -> None:
        """Forget what the debugger reads of a channel."""
        self.sm_errors = [error for error in self.sm_errors if error.channel is not channel]
        self.mmu_faults = [fault for fault in self.mmu_faults if fault.channel is not channel]

    def reset(self) -> None:
        """Reset the GPU: every channel stops."""
        self.lost(ChannelError(Xid.PREEMPTIVE_REMOVAL, "the GPU was reset"))

    def close(self) -> None:
        """End the GPU's thread."""
        self._closed = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        for runner in self._runners:
            runner.close()
        self._runners = ()
        self._bell.release()
        self._time.release()

    # --- what runners ask ---

    def lost(self, error: ChannelError) -> None:
        """The whole GPU fails: no channel works any more."""
        at = now()
        for runner in self._runners:
            runner.channel.stop(error, at)
            runner.track.halt()
        self.report(None, error.xid, error.message)

    def _find(self, channel: Channel) -> _Runner:
        return next(runner for runner in self._runners if runner.channel is channel)

    # --- the GPU's thread ---

    def _rung(self) -> None:
        token = atomics.update(self._bell_at, 4, lambda value: QUIET)
        if any(runner.channel.token == token for runner in self._runners):
            self._looks = True

    def _loop(self) -> None:
        pace = Pace()
        while not self._closed:
            runners = self._runners
            if not runners:
                self._wake.wait()
                self._wake.clear()
                continue
            self._time[0] = now()
            worked = False
            if self._bell[0] != QUIET:
                self._rung()
                worked = True
            if self._looks:
                self._looks = False
                for runner in self._runners:
                    runner.look()
            self.executor.hurry = sum(runner.track.busy for runner in runners) > 1
            for runner in runners:
                worked |= runner.turn()
            pace.rest(worked)
