"""The copy engine: carries out SDMA packets, decoded by devrt.amd.sdma. It reads and writes memory past the caches of the
compute units; addresses, limits and boundaries are those of devrt.amd.sdma."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from devrt.amd import sdma
from devrt.amd.packets import BadPacket, Packet
from devrt.ioctl.system import view
from devrt.virtual.amd.engine import COMPARE, BadCommand, Port, Step, atomic_packet
from devrt.virtual.pieces import foreign, mapped, move, pieces

_CHUNK = 64 << 20  # bytes of a copy after which other queues have their turn
_IB_DWORDS = 8  # an INDIRECT packet and the buffer it names end on a multiple of this (Linux sdma_v*.c, emit_ib)
_RANGE = 2  # GL2_RANGE of GCR_CNTL: the addresses of the packet count


class Sdma:
    """The processor of one queue."""

    def __init__(self, port: Port) -> None:
        self.port, self.gfx = port, port.gfx
        self._do: dict[str, Callable[[Packet], Iterator[Step] | None]] = {
            "NOP": lambda p: None,
            "COPY_LINEAR": self._copy, "WRITE_UNTILED": self._write, "CONST_FILL": self._fill, "FENCE": self._fence,
            "TRAP": self._trap, "POLL_REGMEM": self._poll, "ATOMIC": self._atomic, "TIMESTAMP_GET": self._timestamp,
            "TIMESTAMP_GET_GLOBAL": self._timestamp, "GCR_REQ": self._gcr,
        }

    def ring(self, words: Sequence[int], position: int, wraps: bool, done: Callable[[int], None]) -> Iterator[Step]:
        """Carry out what lies in the ring from byte `position` on, up to its end where it `wraps`; `done` hears how many
        bytes each step took."""
        try:
            yield from self._stream(words, position, done, "")
        except BadPacket as bad:
            if wraps and "are left" in str(bad):
                raise BadCommand("the packet runs over the ring's end: fill up with NOP") from bad
            raise

    def _stream(self, words: Sequence[int], position: int, done: Callable[[int], None], ib: str) -> Iterator[Step]:
        at, port = 0, self.port
        while at < len(words):
            place = position if ib else position + 4 * at
            port.at(f"packet at dword {at:#x}{ib}" if ib else "packet", place, words[at:at + 8])
            packet = sdma.decode(words, self.gfx, at)
            port.at(packet.name + (f" at dword {at:#x}{ib}" if ib else ""), place, words[at:at + packet.size])
            took = packet.size
            if packet.name == "INDIRECT":
                if ib:
                    raise BadCommand("a buffer calls no buffer")
                yield from self._call(packet, place)
            elif packet.name == "COND_EXE":
                if port.peek(packet["address"], 4) != packet["reference"]:
                    took += packet["exec_count"]
            else:
                steps = self._do[packet.name](packet)
                if steps is not None:
                    yield from steps
            at += took
            if at > len(words):
                raise BadCommand(f"it skips {at - len(words)} dwords past the end")
            done(4 * took)
            yield Step.DONE

    def _call(self, p: Packet, position: int) -> Iterator[Step]:
        base, dwords = p["ib_base"], p["ib_size"]
        if p["vmid"] or p.fields.get("priv"):
            raise BadCommand("vmid and priv are the driver's")
        if (position // 4 + p.size) % _IB_DWORDS:
            raise BadCommand(f"it ends at dword {position // 4 + p.size:#x} of the ring, not on a multiple of {_IB_DWORDS}")
        if not dwords or dwords % _IB_DWORDS:
            raise BadCommand(f"a buffer of {dwords} dwords, not of a multiple of {_IB_DWORDS}")
        name, words = self.port.packet, self.port.words
        yield from self._stream(struct.unpack(f"<{dwords}I", self.port.read(base, 4 * dwords)), position, lambda n: None,
                                f" in the buffer {base:#x}")
        self.port.at(name, position, words)

    def _copy(self, p: Packet) -> Iterator[Step]:
        if p["encrypt"] or p["tmz"] or p["broadcast"]:
            raise BadCommand("encrypt, tmz and broadcast are not for user queues")
        src, dst, nbytes, port = p["src"], p["dst"], p["count"] + 1, self.port
        if src < dst + nbytes and dst < src + nbytes and dst > src:
            raise BadCommand(f"source {src:#x} and destination {dst:#x} of {nbytes} bytes overlap")
        port.inject(src)
        corrupt = port.faults.take("corrupt-copy")
        for done in range(0, nbytes, _CHUNK):
            size = min(_CHUNK, nbytes - done)
            read, written = pieces(port.space, src + done, size, "read"), pieces(port.space, dst + done, size, "write")
            port.ledger.memory_read(port.who, read)
            if foreign(read) or foreign(written):
                port.space.write(dst + done, port.space.read(src + done, size))
            else:
                move(read, written)
            port.ledger.memory_write(port.who, written)
            if done + size < nbytes:
                yield Step.DONE
        if corrupt:
            bit = port.faults.random.randrange(8 * nbytes)
            byte = port.space.read(dst + bit // 8, 1)[0]
            port.space.write(dst + bit // 8, bytes([byte ^ 1 << bit % 8]))

    def _write(self, p: Packet) -> None:
        if p["encrypt"] or p["tmz"]:
            raise BadCommand("encrypt and tmz are not for user queues")
        data = p.rest()
        self.port.write(p["dst"], struct.pack(f"<{len(data)}I", *data))

    def _fill(self, p: Packet) -> None:
        unit = 1 << p["fillsize"]
        nbytes = p["count"] + unit
        if nbytes % unit:
            raise BadCommand(f"{nbytes} bytes are no multiple of {unit}")
        self.port.inject(p["dst"])
        found = pieces(self.port.space, p["dst"], nbytes, "write")
        value = p["src_data"] & (1 << 8 * unit) - 1
        for piece in found:
            if foreign([piece]):
                self.port.space.write(piece.va, value.to_bytes(unit, "little") * (piece.nbytes // unit))
            else:
                np.frombuffer(view(piece.host, piece.nbytes), f"<u{unit}")[:] = value
        self.port.ledger.memory_write(self.port.who, found)

    def _fence(self, p: Packet) -> None:
        self.port.store(p["address"], p["data"], 4)

    def _trap(self, p: Packet) -> None:
        self.port.interrupt(p["int_context"])

    def _poll(self, p: Packet) -> Iterator[Step]:
        if p["hdp_flush"]:
            return
        if not p["mem_poll"] and not p["func"]:  # waits for nothing: how ROCr flushes HDP on GFX9 (amd_blit_sdma.cpp)
            return
        if not p["mem_poll"]:
            raise BadCommand(f"a user queue waits for no register ({p['address']:#x})")
        if not p["mask"] and p["func"]:
            raise BadCommand("the mask is 0")
        holds = COMPARE[p["func"]]
        while not holds(self.port.peek(p["address"], 4) & p["mask"], p["value"]):
            if p["retry_count"] != sdma.FOREVER:
                raise BadCommand(f"it gives up after {p['retry_count']} retries")
            yield Step.WAIT

    def _atomic(self, p: Packet) -> Iterator[Step]:
        if p["tmz"]:
            raise BadCommand("tmz is not for user queues")
        yield from atomic_packet(self.port, p["atomic_op"], p["address"], p["src_data"], p["cmp_data"], bool(p["loop"]))

    def _timestamp(self, p: Packet) -> None:
        self.port.store(p["address"], self.port.ticks(), 8)

    def _gcr(self, p: Packet) -> None:
        control, ledger = p["gcr_control"], self.port.ledger
        found = None
        if control >> 11 & 3 == _RANGE:
            found = mapped(self.port.space, p["base_va"], p["limit_va"] - p["base_va"])
        if control >> 15 & 1:
            ledger.writeback(found)
        l1 = control >> 7 & 1 and control >> 8 & 1 and (control >> 9 & 1 or self.gfx == 12)
        ledger.acquire(bool(l1), bool(control >> 14 & 1), found)
