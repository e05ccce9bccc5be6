"""What the engines of one channel share: how they reach memory, the clock, the books of order, and how they say no."""

from __future__ import annotations

import abc
import enum
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from devrt.ioctl.system import view
from devrt.nvidia.fields import BadField, Compiled
from devrt.nvidia.methods import Methods
from devrt.virtual import atomics
from devrt.virtual.faults import Faults
from devrt.virtual.memory import AddressSpace, MemoryFault
from devrt.virtual.nvidia.channel import Channel, ChannelError
from devrt.virtual.nvidia.dispatch import Launch
from devrt.virtual.nvidia.faults import memory_error
from devrt.virtual.nvidia.ledger import Cache, Race, Track
from devrt.virtual.pieces import Piece, foreign, pieces

M32, M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_EPOCH = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
_CONTAINS = 80, 90, 100  # generations that stop one channel for an error of memory (kern_gpu_error_cont_ga100.c and on)
_TICK = 32  # ns: the low five bits of PTIMER's TIME_0 are not there (clc361.h)


class Step(enum.Enum):
    """What a channel reports when it lets go of the engine."""

    DONE = "methods were carried out"
    WAIT = "it waits for a semaphore"
    IDLE = "its ring is empty"


class Refused(Exception):
    """A method that an engine does not take."""


class Lost(Exception):
    """The whole GPU fails with one channel."""

    def __init__(self, error: ChannelError) -> None:
        super().__init__(str(error))
        self.error = error


class Runs(Protocol):
    """What runs launches: dispatch.Executor. `code`: (address, bytes) of the instructions of a launch, before it runs. `run`:
    each step is a turn of it. `collect`: enter in the launch's book what it touched since the last time. `hurry`: others wait for
    their turn."""

    hurry: bool

    def code(self, launch: Launch, space: AddressSpace) -> Sequence[tuple[int, bytes]]: ...
    def run(self, launch: Launch, space: AddressSpace) -> Iterator[None]: ...
    def collect(self, launch: Launch, space: AddressSpace) -> None: ...


def now() -> int:
    """PTIMER: nanoseconds since 1970."""
    return (time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) + _EPOCH) & -_TICK


# (memory, payload) -> new memory, both signed or not (dev_pbdma.ref, SEM_EXECUTE).
REDUCTIONS: Mapping[str, Callable[[int, int], int]] = {
    "IMIN": min, "IMAX": max,
    "IXOR": lambda v, p: v ^ p, "IAND": lambda v, p: v & p, "IOR": lambda v, p: v | p, "IADD": lambda v, p: v + p,
    "INC": lambda v, p: 0 if v >= p else v + 1,
    "DEC": lambda v, p: p if v == 0 or v > p else v - 1,
}
_foreign_lock = threading.Lock()


class Port:
    """What the engines of one channel reach. `client` is the unit that the MMU names in a fault, `who` what works now."""

    def __init__(self, channel: Channel, sm: int, faults: Faults, executor: Runs, track: Track, constants: Cache, code: Cache,
                 interrupt: Callable[[Channel], None], tpcs: int) -> None:
        self.channel, self.space, self.sm, self.faults, self.executor = channel, channel.space, sm, faults, executor
        self.tpcs = tpcs
        self.track, self.constants, self.code = track, constants, code
        self.client, self.who = "HUBCLIENT_HOST", ""
        self.posts: list[Callable[[], None]] = []  # what to tell the driver once the engine holds no lock
        self._interrupt = interrupt

    def read(self, va: int, nbytes: int) -> bytes:
        found = pieces(self.space, va, nbytes, "read")
        if foreign(found):
            return self.space.read(va, nbytes)
        return b"".join(bytes(view(p.host, p.nbytes)) for p in found)

    def write(self, va: int, data: bytes) -> None:
        self.space.write(va, data)

    def peek(self, va: int, nbytes: int) -> int:
        return int.from_bytes(self.space.read(va, nbytes), "little")

    def semaphore(self, va: int, payload: int, *, wide: bool, timestamp: bool, up_to: int) -> None:
        """Release: 4 or 8 bytes, or 16 with the time behind the payload, which is written last. `up_to` is the number of the
        channel's last work that has ended by then. Raises Refused."""
        nbytes = 16 if timestamp else 8 if wide else 4
        if va % nbytes:
            raise Refused(f"the semaphore at {va:#x} is not a multiple of {nbytes}")
        value = payload & (M64 if wide else M32)
        if timestamp:
            self.space.write(va + 8, now().to_bytes(8, "little"))
        self.track.released(up_to, pieces(self.space, va, nbytes, "write"))
        self.space.write(va, value.to_bytes(8 if wide or timestamp else 4, "little"))

    def reduce(self, va: int, operation: str, payload: int, *, wide: bool, signed: bool, timestamp: bool, up_to: int) -> None:
        """Change a semaphore in one step. Raises Refused."""
        nbytes, change = 8 if wide else 4, REDUCTIONS[operation]
        if va % (16 if timestamp else nbytes):
            raise Refused(f"the semaphore at {va:#x} is not a multiple of {16 if timestamp else nbytes}")
        if timestamp:
            self.space.write(va + 8, now().to_bytes(8, "little"))
        mask = (1 << 8 * nbytes) - 1

        def number(value: int) -> int:
            value &= mask
            return value - mask - 1 if signed and value >> 8 * nbytes - 1 else value

        def replace(old: int) -> int:
            return change(number(old), number(payload)) & mask

        found = pieces(self.space, va, nbytes, "write")
        self.track.released(up_to, found)
        if foreign(found):
            with _foreign_lock:
                self.space.write(va, replace(self.peek(va, nbytes)).to_bytes(nbytes, "little"))
        else:
            atomics.update(found[0].host, nbytes, replace)

    def copy(self, who: str, reads: Sequence[Piece], writes: Sequence[Piece]) -> None:
        """Enter a copy in the books. Raises Refused."""
        try:
            self.track.copy(who, reads, writes)
        except Race as race:
            raise Refused(str(race)) from race

    def put(self, who: str, va: int, data: bytes) -> None:
        """Write in the channel's own order: that has ended before the next work begins, and the host or a launch may look at it.
        Raises Refused."""
        found = pieces(self.space, va, len(data), "write")
        try:
            self.track.look(who, (), found)
        except Race as race:
            raise Refused(str(race)) from race
        self.track.released(self.track.known.get(self.track.key, 0), found)
        self.write(va, data)

    def interrupt(self) -> None:
        """Interrupt the host: the channel's work so far is done."""
        if not self.faults.take("lost-interrupt"):
            self.posts.append(lambda: self._interrupt(self.channel))

    def inject(self, va: int, unit: str) -> None:
        """Before a launch or a copy at `va`: the faults that were asked for."""
        if self.faults.take("page-fault"):
            raise MemoryFault(va, "read", "not present (injected)")
        if self.faults.take("ecc"):
            contained = self.sm in _CONTAINS
            error = memory_error(self.channel, contained, unit)
            raise error if contained else Lost(error)


class Row(NamedTuple):
    """A method of one generation; `plain` where any dword is a value."""

    name: str
    compiled: Compiled
    plain: bool


@functools.cache
def method_rows(methods: Methods, sm: int) -> Mapping[int, Row]:
    found = {}
    for method in methods.rows:
        if method.since <= sm <= method.until:
            compiled = method.of(sm)
            for n in range(method.count):
                found[method.offset + 4 * n] = Row(method.name, compiled, not compiled.reserved and not compiled.kinds)
    return found


Action = Callable[[Mapping[str, int]], Iterator[Step] | None]


class Engine(abc.ABC):
    """An engine behind a subchannel: registers by name, and methods that do something."""

    def __init__(self, port: Port, methods: Methods, class_id: int) -> None:
        self.port, self.class_id = port, class_id
        self.rows = method_rows(methods, port.sm)
        self.state: dict[str, int] = {}
        self.actions: dict[str, Action] = {}

    def method(self, offset: int, data: int) -> Iterator[Step] | None:
        """Raises Refused."""
        row = self.rows.get(offset)
        if row is None:
            raise Refused(f"no method {offset:#x} that this model knows")
        try:
            action = self.actions.get(row.name)
            if action is not None:
                return action(row.compiled.unpack(data))
            if not row.plain:
                row.compiled.unpack(data)
        except BadField as error:
            raise Refused(error.what) from error
        self.state[row.name] = data
        return None

    def block(self, offset: int, words: Sequence[int], increment: bool) -> bool:
        """Take many dwords for one method, or for the ones that follow it, at once; False where they go one by one."""
        return False

    @abc.abstractmethod
    def refused(self, offset: int, data: int, why: str) -> ChannelError:
        """The error of a method that was refused."""

    def get(self, name: str) -> int:
        """A register, 0 where nothing was written."""
        return self.state.get(name, 0)

    def wide(self, upper: str, lower: str) -> int:
        return self.state.get(upper, 0) << 32 | self.state.get(lower, 0)

    def name(self, offset: int) -> str:
        row = self.rows.get(offset)
        return row.name if row is not None else f"{offset:#x}"
