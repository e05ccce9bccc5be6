"""What a submission tells each kind of engine besides its commands: wait, raise, take the time, interrupt.

Both engines say the same things in their own packets. Packets with constant fields are encoded and checked once, by the
tables of pm4.py and sdma.py; what changes between submissions (addresses and values) is put into their words.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Any, ClassVar

from devrt.amd import pm4, sdma
from devrt.gpu.commands import pieces
from devrt.ioctl.kfd import QueueType

LOW = 0xFFFFFFFF
MAX_WRITE = 256 << 10  # bytes that are put into a ring at once
_POLL_INTERVAL = 4
# What follows a packet's constant words.
_RELEASE = struct.Struct("<QQI")     # RELEASE_MEM: address, data, context
_WAIT = struct.Struct("<QQQI")       # WAIT_REG_MEM64: address, reference, mask, interval
_INDIRECT = struct.Struct("<IQI")    # INDIRECT_BUFFER with its header: address, dwords
_FENCE = struct.Struct("<IQI")       # FENCE with its header: address, data
_POLL = struct.Struct("<IQIII")      # POLL_REGMEM with its header: address, reference, mask, interval and retries
_STAMP = struct.Struct("<IQ")        # TIMESTAMP_GET_GLOBAL with its header: address
_COPY = struct.Struct("<IIIQQ")      # COPY_LINEAR with its header: bytes - 1, mode, source, destination


class ComputeEngine:
    """The packets of a compute queue. Its pointers count dwords."""

    kind: ClassVar[QueueType] = QueueType.COMPUTE
    unit: ClassVar[int] = 4
    padding: ClassVar[int] = pm4.ONE_DWORD_NOP

    def __init__(self, gfx: int) -> None:
        self.gfx = gfx
        everything: dict[str, Any] = {"coher_size": pm4.EVERYTHING, "poll_interval": 10}
        all_caches: dict[str, Any]
        near_caches: dict[str, Any]
        flushed: dict[str, Any]
        if gfx == 9:
            all_caches = dict.fromkeys(("sh_icache_action", "sh_kcache_action", "tcl1_action", "tc_action", "tc_wb_action"), 1)
            near_caches = dict.fromkeys(("sh_kcache_action", "tcl1_action"), 1)
            flushed = dict.fromkeys(("tcl1_action", "tc_action", "tc_wb_action"), 1)
        else:
            all_caches = dict.fromkeys(("gli_inv", "glm_wb", "glm_inv", "glk_wb", "glk_inv", "glv_inv", "gl1_inv", "gl2_inv",
                                        "gl2_wb"), 1)
            near_caches = dict.fromkeys(("glk_inv", "glv_inv", "gl1_inv"), 1)
            flushed = {**dict.fromkeys(("glm_wb", "glm_inv", "glv_inv", "gl1_inv", "gl2_inv", "gl2_wb", "seq"), 1),
                       "cache_policy": 3}
        idle = pm4.encode("EVENT_WRITE", gfx, event_type=pm4.Event.CS_PARTIAL_FLUSH,
                          event_index=pm4.EventIndex.CS_PARTIAL_FLUSH)
        # Before the first kernel: those of the submission before have ended (its fence does not hold the queue up), and
        # nothing that others wrote meanwhile is stale, the instructions included.
        self.start = _bytes(idle + pm4.encode("ACQUIRE_MEM", gfx, **everything, **all_caches))
        # Between two kernels: the second begins when the first has ended, and reads what it left in the L2.
        self.between = _bytes(idle + pm4.encode("ACQUIRE_MEM", gfx, **everything, **near_caches))
        end: dict[str, Any] = {"event_type": pm4.Event.CACHE_FLUSH_AND_INV_TS, "event_index": pm4.EventIndex.END_OF_PIPE,
                               "data_sel": pm4.DataSel.SEND_64_BIT, **flushed}
        # Header and the two words of control: after everything before is done and written back, write 64 bits.
        self._fence_head = _bytes(pm4.encode("RELEASE_MEM", gfx, **end)[:3])
        self._interrupt_head = _bytes(pm4.encode("RELEASE_MEM", gfx, **{
            **end, "int_sel": pm4.IntSel.INTERRUPT_AFTER_WRITE_CONFIRM})[:3])
        self._stamp_head = _bytes(pm4.encode("RELEASE_MEM", gfx, **{
            **end, "data_sel": pm4.DataSel.GPU_CLOCK_COUNTER})[:3])
        self._wait_head = _bytes(pm4.encode("WAIT_REG_MEM64", gfx, function=pm4.Function.GREATER_EQUAL,
                                            mem_space=pm4.MemSpace.MEMORY)[:2])
        self._indirect_head, _, _, self._indirect_size = pm4.encode("INDIRECT_BUFFER", gfx, ib_base=0, ib_size=0, valid=1)

    def fence(self, address: int, value: int) -> bytes:
        """When everything before is done and visible to all: the u64 at `address` becomes `value`."""
        return self._fence_head + _RELEASE.pack(address, value, 0)

    def stamp(self, address: int) -> bytes:
        """When everything before is done: the GPU's clock, a u64 in ticks, at `address`."""
        return self._stamp_head + _RELEASE.pack(address, 0, 0)

    def interrupt(self, slot: int, event: int) -> bytes:
        return self._interrupt_head + _RELEASE.pack(slot, event, event)

    def wait(self, address: int, value: int) -> bytes:
        """Go on when the u64 at `address` is at least `value`."""
        return self._wait_head + _WAIT.pack(address, value, (1 << 64) - 1, _POLL_INTERVAL)

    def indirect(self, address: int, dwords: int) -> bytes:
        """The packet that runs `dwords` of packets at `address`."""
        return _INDIRECT.pack(self._indirect_head, address, self._indirect_size | dwords)


class CopyEngine:
    """The packets of a copy engine's queue. Its pointers count bytes.

    It compares and writes 32 bits at a time: a wait looks at the high half of a timeline and then at the low one, so a
    timeline must not be raised past the next multiple of 2^32 while an engine waits for a value below it.
    """

    kind: ClassVar[QueueType] = QueueType.SDMA
    unit: ClassVar[int] = 1
    padding: ClassVar[int] = 0

    def __init__(self, gfx: int) -> None:
        self.gfx = gfx
        self.max_bytes = sdma.MAX_BYTES[gfx]
        uncached: dict[str, Any] = {"mtype": sdma.Mtype.UC} if gfx >= 10 else {}
        self._fence_head = sdma.encode("FENCE", gfx, **uncached)[0]
        self._poll_head = sdma.encode("POLL_REGMEM", gfx, func=pm4.Function.GREATER_EQUAL, mem_poll=1)[0]
        self._poll_tail = sdma.encode("POLL_REGMEM", gfx, interval=_POLL_INTERVAL, retry_count=sdma.FOREVER)[5]
        self._trap_head = sdma.encode("TRAP", gfx)[0]
        self._stamp_head = sdma.encode("TIMESTAMP_GET_GLOBAL", gfx)[0]
        self._copy_head, _, self._copy_mode, *_ = sdma.encode("COPY_LINEAR", gfx)

    def fence(self, address: int, value: int) -> bytes:
        low = _FENCE.pack(self._fence_head, address, value & LOW)
        return low + _FENCE.pack(self._fence_head, address + 4, value >> 32) if value > LOW else low

    def stamp(self, address: int) -> bytes:
        return _STAMP.pack(self._stamp_head, address)

    def interrupt(self, slot: int, event: int) -> bytes:
        return self.fence(slot, event) + struct.pack("<2I", self._trap_head, event)

    def wait(self, address: int, value: int) -> bytes:
        low = self._poll(address, value & LOW)
        return self._poll(address + 4, value >> 32) + low if value > LOW else low

    def _poll(self, address: int, value: int) -> bytes:
        return _POLL.pack(self._poll_head, address, value, LOW, self._poll_tail)

    def copy(self, dst: int, src: int, nbytes: int) -> list[bytes]:
        """The packets that copy `nbytes`, as many as one packet's limit asks for."""
        return [_COPY.pack(self._copy_head, min(nbytes - at, self.max_bytes) - 1, self._copy_mode, src + at, dst + at)
                for at in range(0, nbytes, self.max_bytes)]


Engine = ComputeEngine | CopyEngine


def _bytes(words: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


def grouped(packets: Sequence[bytes], limit: int) -> tuple[bytes, ...]:
    """Packets one after another, in groups of at most `limit` bytes."""
    data = b"".join(packets)
    ends = itertools.accumulate(map(len, packets))
    return tuple([data[start:end] for start, end in pieces(0, ends, len(data), limit)])
