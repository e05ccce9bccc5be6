"""Command lists of AMD GPUs: what a compute segment holds are packets in memory, run as one indirect buffer; copies are put
into the ring.
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING

from devrt.amd import pm4
from devrt.amd.engines import LOW, ComputeEngine, CopyEngine
from devrt.amd.program import AmdProgram
from devrt.gpu.commands import Copy, Dispatch, GpuCommandList, Instance, Segment, Stamp
from devrt.ioctl.system import view

if TYPE_CHECKING:
    from devrt.amd.device import AmdDevice


class AmdCommandList(GpuCommandList):
    """Commands as PM4 and SDMA packets. A compute segment's are INDIRECT_BUFFER packets; time stamps are ticks where the GPU
    writes them."""

    programs = AmdProgram
    device: AmdDevice
    alignment = 64

    def __str__(self) -> str:
        """The packets of the compute segments as text."""
        instance = self.build(compute=True)
        parts = []
        for segment in instance.segments:
            if not segment.compute:
                parts.append(f"copy engine, {len(segment.packets)} bytes of packets")
                continue
            for _, address_low, address_high, size in struct.iter_unpack("<4I", segment.packets):
                n = size & pm4.MAX_IB_DWORDS
                data = bytes(view(address_high << 32 | address_low, 4 * n))
                parts.append(pm4.dump(struct.unpack(f"<{n}I", data), self.device.gfx))
        return "\n".join(parts)

    def build(self, compute: bool, stamps: int = 0) -> Instance:
        """The packets of the list in GPU memory. `stamps`: the address of len(self) + 1 u64 that receive the clock before
        the first command and after each, for a profile."""
        runs = self._runs(compute)
        engine, copier = self.device.compute_engine, self.device.copy_engine
        made = Instance(self.device.host_memory)
        made.stamps = tuple((command.address, command.address) for command in self.commands if isinstance(command, Stamp))
        bodies = [self._compute_words(run, engine, stamps) if kernels else self._copy_words(run, copier, stamps)
                  for kernels, run in runs]
        packet_bytes = sum(-(-4 * len(body.words) // self.alignment) * self.alignment
                           for (kernels, _), body in zip(runs, bodies, strict=True) if kernels)
        if packet_bytes:
            total = packet_bytes + len(self._arguments)
            made.block = self.device.host_memory.take(total)
            memory, base = view(made.block.address, total), made.block.address
            made.arguments = memory[packet_bytes:]
            made.arguments[:] = self._arguments
        at = 0
        for (kernels, _), body in zip(runs, bodies, strict=True):
            if not kernels:
                made.segments.append(Segment(False, body.words.tobytes()))
                continue
            for place, offset in body.holes:
                address = base + packet_bytes + offset
                body.words[place], body.words[place + 1] = address & LOW, address >> 32
            data = body.words.tobytes()
            memory[at:at + len(data)] = data
            heads = [engine.indirect(base + at + 4 * start, end - start) for start, end in body.pieces()]
            made.segments.append(Segment(True, b"".join(struct.pack("<4I", *head) for head in heads)))
            if len(runs) == len(heads) == 1:
                made.head = heads[0]
            at += -(-len(data) // self.alignment) * self.alignment
        return made

    def _compute_words(self, run: list[int], engine: ComputeEngine, stamps: int) -> _Body:
        body = _Body()
        words = body.words
        words.extend(engine.start)
        if stamps and run[0] == 0:
            words.extend(engine.stamp(stamps))
        begun = False
        for index in run:
            command = self.commands[index]
            if isinstance(command, Stamp):
                words.extend(engine.stamp(command.address))
            elif isinstance(command, Dispatch) and command.groups:
                if begun:
                    words.extend(engine.between)
                body.cuts.append(len(words))
                begun = True
                launch = command.program.launch
                body.holes.append((len(words) + launch.arguments_at, command.offset))
                groups_at = len(words) + launch.groups_at
                words.extend(launch.words)
                words[groups_at] = command.groups
            if stamps:
                words.extend(engine.stamp(stamps + 8 * index + 8))
        return body

    def _copy_words(self, run: list[int], engine: CopyEngine, stamps: int) -> _Body:
        body = _Body()
        if stamps and run[0] == 0:
            body.words.extend(engine.stamp(stamps))
        for index in run:
            command = self.commands[index]
            if isinstance(command, Stamp):
                body.words.extend(engine.stamp(command.address))
            elif isinstance(command, Copy):
                body.words.extend(engine.copy(*command))
            if stamps:
                body.words.extend(engine.stamp(stamps + 8 * index + 8))
        return body


class _Body:
    """The packets of one segment: `holes` are the words that take the address of arguments (offsets of them beside), `cuts`
    are places where it may be divided."""

    def __init__(self) -> None:
        self.words: array[int] = array("I")
        self.holes: list[tuple[int, int]] = []
        self.cuts: list[int] = []

    def pieces(self) -> list[tuple[int, int]]:
        """(first word, end) of parts that one INDIRECT_BUFFER can name."""
        bounds, start, last = [], 0, 0
        for cut in [*self.cuts, len(self.words)]:
            if cut - start > pm4.MAX_IB_DWORDS:
                bounds.append((start, last))
                start = last
            last = cut
        return [*bounds, (start, len(self.words))]
