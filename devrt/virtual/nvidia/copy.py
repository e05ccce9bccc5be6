"""A copy engine: linear copies, copies of lines with pitches, fills by remapping, and semaphores (clc5b5.h to clcab5.h)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devrt.ioctl.system import view
from devrt.nvidia.methods import COPY, Component, CopySemaphore, Reduction, Transfer
from devrt.virtual.nvidia.channel import ChannelError
from devrt.virtual.nvidia.engine import Engine, Port, Refused, Step
from devrt.virtual.nvidia.faults import copy_error, copy_number
from devrt.virtual.pieces import Piece, foreign, move, overlap, pieces

_CHUNK = 64 << 20  # bytes of a copy after which other channels have their turn
_BLOCKING, _NON_BLOCKING = 1, 2  # LAUNCH_DMA.interrupt_type
_REMAPPED = 1 << 24  # elements of a remapped line that are worked on at once


class Copy(Engine):
    """The copy engine of one channel."""

    def __init__(self, port: Port, class_id: int) -> None:
        super().__init__(port, COPY, class_id)
        self._client = f"HUBCLIENT_CE{max(copy_number(port.channel.engine), 0)}"
        self.actions = {"LAUNCH_DMA": self._launch}

    def refused(self, offset: int, data: int, why: str) -> ChannelError:
        return copy_error(self.port.channel, self.class_id, offset, data, why)

    def _launch(self, f: Mapping[str, int]) -> Iterator[Step]:
        port = self.port
        if f["src_type_physical"] or f["dst_type_physical"]:
            raise Refused("physical addresses are the driver's")
        if f["interrupt_type"] > _NON_BLOCKING:
            raise Refused(f"no interrupt_type {f['interrupt_type']}")
        port.client = self._client
        if f["data_transfer_type"] != Transfer.NONE:
            if f["data_transfer_type"] == Transfer.NON_PIPELINED:
                port.track.idle()
            yield from self._transfer(f)
        elif f["multi_line_enable"] or f["remap_enable"]:
            raise Refused("fields of a transfer without data_transfer_type")
        if f["semaphore_type"]:
            self._release(f)
        elif f["semaphore_reduction_enable"]:
            raise Refused("semaphore_reduction_enable without a semaphore")
        if f["interrupt_type"]:
            port.interrupt()
        yield Step.DONE

    def _release(self, f: Mapping[str, int]) -> None:
        """What has not been flushed is not there yet for whoever waits for the semaphore."""
        port, track = self.port, self.port.track
        wide = bool(f.get("semaphore_payload_two_words", 0))
        va = self.wide("SET_SEMAPHORE_A", "SET_SEMAPHORE_B")
        payload = self.get("SET_SEMAPHORE_PAYLOAD") | (self.get("SET_SEMAPHORE_PAYLOAD_UPPER") << 32 if wide else 0)
        up_to = track.count if f["flush_enable"] else 0
        timestamp = f["semaphore_type"] == CopySemaphore.RELEASE_FOUR_WORDS
        port.who = f"the semaphore at {va:#x}"
        if f["semaphore_reduction_enable"]:
            port.reduce(va, Reduction(f["semaphore_reduction"]).name, payload, wide=wide, timestamp=timestamp,
                        signed=not f["semaphore_reduction_unsigned"], up_to=up_to)
        elif f["semaphore_reduction"] or f["semaphore_reduction_unsigned"]:
            raise Refused("semaphore_reduction without its enable")
        else:
            port.semaphore(va, payload, wide=wide, timestamp=timestamp, up_to=up_to)

    def _transfer(self, f: Mapping[str, int]) -> Iterator[Step]:
        if not f["dst_memory_layout_pitch"] or not f["src_memory_layout_pitch"]:
            raise Refused("block-linear layouts are not modelled")
        remap = _Remap(self) if f["remap_enable"] else None
        length, lines = self.get("LINE_LENGTH_IN"), self.get("LINE_COUNT") if f["multi_line_enable"] else 1
        if not length or not lines:
            raise Refused(f"LINE_LENGTH_IN is {length}, LINE_COUNT {lines}: nothing to copy")
        source, target = self.wide("OFFSET_IN_UPPER", "OFFSET_IN_LOWER"), self.wide("OFFSET_OUT_UPPER", "OFFSET_OUT_LOWER")
        pitch_in, pitch_out = self.get("PITCH_IN"), self.get("PITCH_OUT")
        reads, writes = length, length
        if remap is not None:
            reads, writes = length * remap.source_bytes if remap.reads else 0, length * remap.target_bytes
        if lines > 1 and (pitch_in < reads or pitch_out < writes):
            raise Refused(f"lines of {reads} and {writes} bytes with a pitch of {pitch_in} and {pitch_out}")
        starts = [(source + n * pitch_in, target + n * pitch_out) for n in range(lines)]
        port = self.port
        port.who = f"copy of {lines * writes} bytes from {source:#x} to {target:#x} in channel {port.channel.id:#x}"
        port.inject(source if reads else target, "CE User Channel (0x9)")
        corrupt = port.faults.take("corrupt-copy")
        read = [p for a, _ in starts for p in pieces(port.space, a, reads, "read")] if reads else []
        written = [p for _, b in starts for p in pieces(port.space, b, writes, "write")]
        if overlap(read, written) is not None and source != target:
            raise Refused(f"source {source:#x} and destination {target:#x} overlap")
        port.copy(port.who, read, written)
        if remap is not None:
            for a, b in starts:
                remap.line(a, b, length)
                yield Step.DONE
        elif foreign(read) or foreign(written):
            for a, b in starts:
                port.space.write(b, port.space.read(a, length))
        elif lines * length <= _CHUNK:
            move(read, written)
        else:
            yield from self._chunks(starts, length)
        if corrupt:
            self._flip(target, writes)

    def _chunks(self, starts: Sequence[tuple[int, int]], length: int) -> Iterator[Step]:
        space = self.port.space
        for a, b in starts:
            for done in range(0, length, _CHUNK):
                size = min(_CHUNK, length - done)
                move(pieces(space, a + done, size, "read"), pieces(space, b + done, size, "write"))
                yield Step.DONE

    def _flip(self, va: int, nbytes: int) -> None:
        bit = self.port.faults.random.randrange(8 * nbytes)
        byte = self.port.space.read(va + bit // 8, 1)[0]
        self.port.space.write(va + bit // 8, bytes([byte ^ 1 << bit % 8]))


class _Remap:
    """SET_REMAP_COMPONENTS: what each component of a written element is."""

    def __init__(self, engine: Copy) -> None:
        data = engine.state.get("SET_REMAP_COMPONENTS")
        if data is None:
            raise Refused("remap_enable, but SET_REMAP_COMPONENTS was never written")
        f = COPY["SET_REMAP_COMPONENTS"].of(engine.port.sm).unpack(data)
        self.space = engine.port.space
        self.size = f["component_size_minus_one"] + 1
        self.sources, targets = f["num_src_components_minus_one"] + 1, f["num_dst_components_minus_one"] + 1
        self.targets = [Component(f[f"dst_{axis}"]) for axis in "xyzw"[:targets]]
        self.source_bytes, self.target_bytes = self.size * self.sources, self.size * targets
        used = [int(c) for c in self.targets if c <= Component.SRC_W]
        if used and max(used) >= self.sources:
            raise Refused(f"{Component(max(used)).name} of {self.sources} source components")
        self.reads = bool(used)
        self.constants = {Component.CONST_A: engine.get("SET_REMAP_CONST_A"), Component.CONST_B: engine.get("SET_REMAP_CONST_B")}

    def line(self, source: int, target: int, length: int) -> None:
        """One line of `length` elements."""
        for first in range(0, length, _REMAPPED):
            count = min(_REMAPPED, length - first)
            taken = self._elements(source + first * self.source_bytes, count, self.sources) if self.reads else None
            at = target + first * self.target_bytes
            made = self._elements(at, count, len(self.targets)) if Component.NO_WRITE in self.targets else \
                np.empty((count, len(self.targets), self.size), np.uint8)
            for n, component in enumerate(self.targets):
                if component in self.constants:
                    made[:, n] = np.frombuffer(self.constants[component].to_bytes(4, "little")[:self.size], np.uint8)
                elif component != Component.NO_WRITE and taken is not None:
                    made[:, n] = taken[:, component]
            self._put(at, made)

    def _elements(self, va: int, count: int, components: int) -> NDArray[Any]:
        """(count, components, bytes of one) of what lies at an address."""
        data = bytearray(self.space.read(va, count * components * self.size))
        return np.frombuffer(data, np.uint8).reshape(count, components, self.size)

    def _put(self, va: int, made: NDArray[Any]) -> None:
        found: list[Piece] = pieces(self.space, va, made.nbytes, "write")
        if foreign(found):
            self.space.write(va, made.tobytes())
            return
        flat, done = made.reshape(-1), 0
        for piece in found:
            np.frombuffer(view(piece.host, piece.nbytes), np.uint8)[:] = flat[done:done + piece.nbytes]
            done += piece.nbytes
