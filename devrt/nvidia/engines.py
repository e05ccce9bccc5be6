"""What a submission tells each kind of engine besides its commands: wait, raise, take the time.

The host of the channel does all three, for compute and copy engines alike, with 64-bit timelines: an acquire waits, a release
waits for the engine to be idle and writes the value, or the value and the clock. Methods with constant values are encoded and
checked once, by the tables of methods.py.
"""

from __future__ import annotations

import struct
from array import array

from devrt.nvidia import qmd
from devrt.nvidia.fields import AMPERE
from devrt.nvidia.methods import COMPUTE_SUBCHANNEL, COPY_SUBCHANNEL, Pcas, Semaphore, Transfer
from devrt.nvidia.pushbuffer import Push

LOW = 0xFFFFFFFF
SEMAPHORE = struct.Struct("<IQQI")  # one acquire or release: header, address, value, what to do
SEMAPHORE_ADDRESS, LAUNCH_ADDRESS = 4, 4  # bytes into the methods of a semaphore, and of a launch, where its address goes
_COPY = struct.Struct("<9I")  # source and destination, upper halves first; length; start
MAX_COPY = 1 << 31  # bytes of one LAUNCH_DMA
STAMP_BYTES, STAMP_CLOCK = 16, 8  # of a release with time stamp, and where the nanoseconds are in it


class Engine:
    """A channel's host and the engine behind it, on `subchannel`."""

    subchannel: int

    def __init__(self, sm: int) -> None:
        self.sm = sm
        self._acquire = self._execute(operation=Semaphore.ACQ_CIRC_GEQ, acquire_switch_tsg=1, payload_size_64bit=1)
        self.release = self._execute(operation=Semaphore.RELEASE, release_wfi=1, payload_size_64bit=1)
        self._stamp = self._execute(operation=Semaphore.RELEASE, release_wfi=1, payload_size_64bit=1, release_timestamp=1)

    def _execute(self, **fields: int) -> tuple[int, int]:
        """Header and last word of the five methods that make a semaphore."""
        push = Push(self.sm)
        last = push.host("SEM_EXECUTE", **fields)
        first = push.host("SEM_ADDR_LO", 0, 0, 0, 0, 0, subchannel=self.subchannel)
        return push.words[first - 1], push.words[last]

    def wait(self, address: int, value: int) -> bytes:
        """Go on when the u64 at `address` is at least `value`. The comparison is circular: they are less than 2^63 apart."""
        head, execute = self._acquire
        return SEMAPHORE.pack(head, address, value, execute)

    def fence(self, address: int, value: int) -> bytes:
        """When everything before is done and visible to all: the u64 at `address` becomes `value`."""
        head, execute = self.release
        return SEMAPHORE.pack(head, address, value, execute)

    def stamp(self, slot: int) -> bytes:
        """When everything before is done: 0 at `slot`, and the GPU's clock in nanoseconds behind it."""
        head, execute = self._stamp
        return SEMAPHORE.pack(head, slot, 0, execute)


class ComputeEngine(Engine):
    """Launches and what lies between them.

    Nothing that a launch reads may be stale. Kernels before have written through to the L2 when the engine is idle
    (CWD_MEMBAR), copy engines and the host write there as well; so what needs emptying are the caches of the SMs. A list begins
    with that, as a whole. Between two launches the engine is waited for (WAIT_FOR_IDLE: no memory is involved, unlike with a
    semaphore), and each descriptor has its SMs forget data and constants as it starts. Chaining descriptors would spare the
    wait's round trip of about a microsecond, but no public program does that on Hopper.
    """

    subchannel = COMPUTE_SUBCHANNEL

    def __init__(self, sm: int) -> None:
        super().__init__(sm)
        start, between = Push(sm), Push(sm)
        start.compute("INVALIDATE_SHADER_CACHES_NO_WFI", instruction=1, global_data=1, constant=1)
        between.compute("WAIT_FOR_IDLE", 0)
        self.start, self.between, self.launch = start.words.tobytes(), between.words.tobytes(), self._launch()
        self.descriptor_bytes = -(-qmd.nbytes(sm) // qmd.ALIGNMENT) * qmd.ALIGNMENT

    def _launch(self) -> bytes:
        """The methods that start a descriptor, with a hole where its address >> 8 goes: a multiple of 256 below 2^40. The
        scheduler may hold an older copy of it, which is dropped."""
        push = Push(self.sm)
        push.compute("SEND_PCAS_A", 0)
        if self.sm < AMPERE:
            push.compute("SEND_SIGNALING_PCAS_B", invalidate=1, schedule=1)
        else:
            push.compute("SEND_SIGNALING_PCAS2_B", pcas_action=Pcas.INVALIDATE_COPY_SCHEDULE)
        return push.words.tobytes()

    def setup(self, cls: int, shared_window: int, local_window: int) -> array[int]:
        push = Push(self.sm)
        push.host("SET_OBJECT", nvclass=cls, subchannel=self.subchannel)
        push.compute("SET_SHADER_SHARED_MEMORY_WINDOW_A", shared_window >> 32, shared_window & LOW)
        push.compute("SET_SHADER_LOCAL_MEMORY_WINDOW_A", local_window >> 32, local_window & LOW)
        push.compute("SET_SHADER_EXCEPTIONS", enable=1)
        return push.words

    def local_memory(self, address: int, tpc_bytes: int) -> array[int]:
        """Where threads keep what they spill. The engine must be idle."""
        push = Push(self.sm)
        push.compute("WAIT_FOR_IDLE", 0)
        push.compute("SET_SHADER_LOCAL_MEMORY_A", address >> 32, address & LOW)
        push.compute("SET_SHADER_LOCAL_MEMORY_NON_THROTTLED_A", tpc_bytes >> 32, tpc_bytes & LOW, 0xFF)
        return push.words


class CopyEngine(Engine):
    """Linear copies. Each waits for the one before it, and flushes what it wrote."""

    subchannel = COPY_SUBCHANNEL

    def __init__(self, sm: int) -> None:
        super().__init__(sm)
        self.max_bytes = MAX_COPY
        push = Push(sm)
        at = push.copy("LAUNCH_DMA", data_transfer_type=Transfer.NON_PIPELINED, flush_enable=1, src_memory_layout_pitch=1,
                       dst_memory_layout_pitch=1)
        self._launch = tuple(push.words[at - 1:])
        at = push.copy("OFFSET_IN_UPPER", 0, 0, 0, 0)
        self._offsets = push.words[at - 1]
        at = push.copy("LINE_LENGTH_IN", 1)
        self._length = push.words[at - 1]

    def setup(self, cls: int) -> array[int]:
        push = Push(self.sm)
        push.host("SET_OBJECT", nvclass=cls, subchannel=self.subchannel)
        return push.words

    def copy(self, dst: int, src: int, nbytes: int) -> bytes:
        """The methods that copy `nbytes`, in as many pieces as one launch's limit asks for."""
        return b"".join([_COPY.pack(self._offsets, *divmod(src + at, 1 << 32), *divmod(dst + at, 1 << 32), self._length,
                                    min(nbytes - at, self.max_bytes), *self._launch)
                         for at in range(0, nbytes, self.max_bytes)])
