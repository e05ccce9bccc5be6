"""What the command processors of a virtual GPU share: how they reach memory, the ledger, the waves and the driver."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from devrt.ioctl.system import view
from devrt.virtual import atomics
from devrt.virtual.amd.dispatch import Dispatch, Executor
from devrt.virtual.amd.ledger import Flight, Ledger
from devrt.virtual.amd.machine import Notify
from devrt.virtual.faults import Faults
from devrt.virtual.memory import AddressSpace, MemoryFault
from devrt.virtual.pieces import foreign, mapped, pieces

M32, M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


class Step(enum.Enum):
    """What a command processor reports when it lets go of the engine."""

    DONE = "a packet was processed"
    WAIT = "a packet waits for memory"
    IDLE = "the ring is empty"


class BadCommand(Exception):
    """A packet that decodes but that hardware would not carry out."""


class Hang(Exception):
    """The queue makes no progress any more, and nobody is told."""


class HardwareError(Exception):
    """The GPU as a whole failed: cause 0 hang, 1 ECC, as in kfd_hsa_hw_exception_data."""

    def __init__(self, cause: int, what: str) -> None:
        super().__init__(what)
        self.cause = cause


class QueueFault(Exception):
    """Why a queue stopped: the packet, where it stood in the ring (dwords of PM4, bytes of SDMA, packets of AQL), its words."""

    def __init__(self, queue: str, packet: str, position: int, words: Sequence[int], why: str) -> None:
        shown = " ".join(f"{w:08x}" for w in words[:16]) + (" .." if len(words) > 16 else "")
        super().__init__(f"{queue}: {packet or 'ring'} at {position:#x}: {why}" + (f" [{shown}]" if words else ""))
        self.queue, self.packet, self.position, self.words, self.why = queue, packet, position, tuple(words), why


def ticks(clock_khz: int) -> int:
    """The GPU's counter: it runs at clock_khz from the host's raw monotonic clock, so that both can be compared."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) * clock_khz // 1_000_000


_foreign_lock = threading.Lock()


class Port:
    """What the command processor of one queue reaches. `l2` says that an access goes through L2, else past it.

    A processor sets `packet`, `position` and `words` before it carries a packet out, so that a fault can name it.
    """

    def __init__(self, name: str, gfx: int, space: AddressSpace, ledger: Ledger, executor: Executor, faults: Faults,
                 notify: Notify, clock_khz: int) -> None:
        self.name, self.gfx, self.space, self.ledger = name, gfx, space, ledger
        self.executor, self.faults, self.notify, self.clock_khz = executor, faults, notify, clock_khz
        self.flight = Flight()
        self.packet, self.position = "", 0
        self.words: Sequence[int] = ()
        self.returned = 0  # what the last atomic packet found
        self.posts: list[Callable[[], None]] = []  # what to tell the driver once the engine holds no lock

    @property
    def who(self) -> str:
        return f"{self.packet} at {self.position:#x} of {self.name}"

    def at(self, packet: str, position: int, words: Sequence[int] = ()) -> None:
        self.packet, self.position, self.words = packet, position, words

    def fault(self, why: str) -> QueueFault:
        return QueueFault(self.name, self.packet, self.position, self.words, why)

    def read(self, va: int, nbytes: int, l2: bool = False) -> bytes:
        found = pieces(self.space, va, nbytes, "read")
        if l2:
            self.ledger.cp_read(self.who, found)
        else:
            self.ledger.memory_read(self.who, found)
        if foreign(found):
            return self.space.read(va, nbytes)
        return b"".join(bytes(view(p.host, p.nbytes)) for p in found)

    def peek(self, va: int, nbytes: int) -> int:
        """The number at an address now: a signal's, which no cache holds."""
        if va % nbytes:
            raise BadCommand(f"{va:#x} is not a multiple of {nbytes}")
        return int.from_bytes(self.space.read(va, nbytes), "little")

    def write(self, va: int, data: bytes, l2: bool = False) -> None:
        found = pieces(self.space, va, len(data), "write")
        if l2:
            self.ledger.cp_write(self.who, self, found)
        else:
            self.ledger.memory_write(self.who, found)
        if foreign(found):
            self.space.write(va, data)
            return
        done = 0
        for p in found:
            view(p.host, p.nbytes)[:] = data[done:done + p.nbytes]
            done += p.nbytes

    def store(self, va: int, value: int, nbytes: int) -> None:
        """Write a number in one piece where no cache holds it: a fence, a signal, a time stamp. The ledger leaves these
        alone, whose memory programs map uncached."""
        if va % nbytes:
            raise BadCommand(f"{va:#x} is not a multiple of {nbytes}")
        self.space.write(va, (value & (1 << 8 * nbytes) - 1).to_bytes(nbytes, "little"))

    def atomic(self, va: int, nbytes: int, change: Callable[[int], int]) -> int:
        """Replace the number at an address in one step, as store does; returns what it was."""
        if va % nbytes:
            raise BadCommand(f"{va:#x} is not a multiple of {nbytes}")
        found = pieces(self.space, va, nbytes, "write")
        if foreign(found):
            return self._foreign_atomic(va, nbytes, change)
        return atomics.update(found[0].host, nbytes, change)

    def _foreign_atomic(self, va: int, nbytes: int, change: Callable[[int], int]) -> int:
        """In one step as far as engines go: no other process lets its memory be locked."""
        with _foreign_lock:
            old = int.from_bytes(self.space.read(va, nbytes), "little")
            self.space.write(va, (change(old) & (1 << 8 * nbytes) - 1).to_bytes(nbytes, "little"))
        return old

    def ticks(self) -> int:
        return ticks(self.clock_khz)

    def interrupt(self, context_id: int, done: bool = True) -> None:
        """Interrupt the host; `done` tells it that the queue's work so far is."""
        if done:
            self.ledger.tell_host(self.who, self)
        if not self.faults.take("lost-interrupt"):
            self.posts.append(lambda: self.notify.interrupt(context_id))

    def inject(self, va: int) -> None:
        """Before a dispatch or a copy at `va`: the faults that were asked for."""
        if self.faults.take("page-fault"):
            raise MemoryFault(va, "read", "not present (injected)")
        if self.faults.take("ecc"):
            raise HardwareError(1, "uncorrectable memory error (injected)")

    def dispatch(self, d: Dispatch) -> Iterator[Step]:
        """Run a dispatch, in turns, and enter in the ledger what it touched."""
        self.inject(d.entry)
        pieces(self.space, d.entry, 4, "execute")
        if 0 in d.groups:
            return
        meanwhile = self.ledger.begin()
        try:
            for _ in self.executor.run(d, self.space):
                yield Step.DONE
            reads = [p for va, n in d.touched.reads for p in mapped(self.space, va, n)]
            writes = [p for va, n in d.touched.writes for p in mapped(self.space, va, n)]
            self.flight.add(self.who, reads, writes)
            self.ledger.shader(self.who, self, reads, writes, meanwhile)
        finally:
            self.ledger.end(meanwhile)


COMPARE: Mapping[int, Callable[[int, int], bool]] = {  # devrt.amd.pm4.Function
    0: lambda value, reference: True,
    1: lambda value, reference: value < reference,
    2: lambda value, reference: value <= reference,
    3: lambda value, reference: value == reference,
    4: lambda value, reference: value != reference,
    5: lambda value, reference: value >= reference,
    6: lambda value, reference: value > reference,
}


def _signed(value: int, nbytes: int) -> int:
    return value - (1 << 8 * nbytes) if value >> 8 * nbytes - 1 else value


# What TC_OP's low five bits do: (memory, source, compare, bytes) -> new memory. Bit 5 makes it 64 bits wide, bit 6 drops
# the return value. Source: enum TC_OP of AMD's gfx9 chip headers.
_ATOMICS: Mapping[int, Callable[[int, int, int, int], int]] = {
    0x07: lambda m, s, c, n: s,
    0x08: lambda m, s, c, n: s if m == c else m,
    0x0F: lambda m, s, c, n: m + s,
    0x10: lambda m, s, c, n: m - s,
    0x11: lambda m, s, c, n: min(m, s, key=lambda v: _signed(v, n)),
    0x12: lambda m, s, c, n: min(m, s),
    0x13: lambda m, s, c, n: max(m, s, key=lambda v: _signed(v, n)),
    0x14: lambda m, s, c, n: max(m, s),
    0x15: lambda m, s, c, n: m & s,
    0x16: lambda m, s, c, n: m | s,
    0x17: lambda m, s, c, n: m ^ s,
    0x18: lambda m, s, c, n: 0 if m >= s else m + 1,
    0x19: lambda m, s, c, n: s if m == 0 or m > s else m - 1,
}
_SWAP_IF_EQUAL = 0x08


def atomic_packet(port: Port, operation: int, va: int, source: int, compare: int, loop: bool) -> Iterator[Step]:
    """An ATOMIC packet of either kind of engine. A compare-and-swap that loops waits until the memory is `compare`."""
    nbytes = 8 if operation & 0x20 else 4
    change = _ATOMICS.get(operation & 0x1F)
    if change is None:
        raise BadCommand(f"no atomic operation {operation:#x}")
    mask = (1 << 8 * nbytes) - 1
    while loop and operation & 0x1F == _SWAP_IF_EQUAL and port.peek(va, nbytes) != compare & mask:
        yield Step.WAIT
    port.returned = port.atomic(va, nbytes, lambda m: change(m, source & mask, compare & mask, nbytes))
