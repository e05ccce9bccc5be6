"""Command lists of NVIDIA GPUs: every segment is methods in video memory, run by one GPFIFO entry. Behind them lie the launch
descriptors, one a dispatch, and the constant banks with the arguments.

    methods of each segment | descriptors | bank 0 of each dispatch | slots of time stamps
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING

from devrt.gpu.commands import Copy, Dispatch, GpuCommandList, Instance, Segment, Stamp
from devrt.ioctl.system import view
from devrt.nvidia import pushbuffer, qmd
from devrt.nvidia.engines import STAMP_BYTES, STAMP_CLOCK
from devrt.nvidia.program import NvidiaProgram
from devrt.nvidia.pushbuffer import MAX_SEGMENT, entry

if TYPE_CHECKING:
    from devrt.nvidia.device import NvidiaDevice

_MAX_GROUPS = 1 << 31  # of a grid's width


class NvidiaCommandList(GpuCommandList):
    """Commands as methods. A segment's packets are GPFIFO entries."""

    programs = NvidiaProgram
    device: NvidiaDevice
    alignment = qmd.ALIGNMENT
    max_groups = _MAX_GROUPS

    def _prologue(self, program: NvidiaProgram, groups: int) -> bytes:
        """Bank 0 up to the arguments: the sizes that the code may ask for."""
        return program.bank0(groups)

    def __str__(self) -> str:
        """The methods and descriptors as text."""
        instance, sm = self.build(compute=True), self.device.sm
        parts = []
        for segment in instance.segments:
            for word in segment.packets:
                fields = pushbuffer.ENTRY.of(sm).unpack(word)
                data = bytes(view(fields["get"], 4 * fields["length"]))
                words = struct.unpack(f"<{fields['length']}I", data)
                parts.append(pushbuffer.dump(words, sm))
                parts += [qmd.text(sm, bytes(view(write.value << 8, qmd.nbytes(sm)))) for write in pushbuffer.writes(words)
                          if write.offset == _PCAS and segment.compute]
        return "\n".join(parts)

    def build(self, compute: bool, stamps: int = 0) -> Instance:
        device, runs = self.device, self._runs(compute)
        made = Instance(device.command_memory)
        launches = [command for command in self.commands if isinstance(command, Dispatch) and command.groups]
        clocks = [command for command in self.commands if isinstance(command, Stamp)]
        dwords = sum(self._dwords(run, kernels, bool(stamps)) for kernels, run in runs)
        step = -(-qmd.nbytes(device.sm) // qmd.ALIGNMENT) * qmd.ALIGNMENT
        descriptors_at = -(-4 * dwords // qmd.ALIGNMENT) * qmd.ALIGNMENT
        banks_at = descriptors_at + step * len(launches)
        slots_at = banks_at + len(self._arguments)
        total = slots_at + STAMP_BYTES * len(clocks)
        if not runs:
            return made
        made.block = device.command_memory.take(total)
        base, memory = made.block.address, view(made.block.address, total)  # of whole pages
        made.arguments = memory[banks_at:slots_at]
        made.arguments[:] = self._arguments
        slots = {id(command): base + slots_at + STAMP_BYTES * n for n, command in enumerate(clocks)}
        if clocks:
            made.stamps = tuple((command.address, slots[id(command)] + STAMP_CLOCK) for command in clocks)
        at, descriptor = 0, descriptors_at
        for kernels, run in runs:
            words: array[int] = array("I")
            cuts = [0]
            engine = device.compute_engine if kernels else device.copy_engine
            words.extend(device.compute_engine.start if kernels else ())
            if stamps and run[0] == 0:
                words.extend(engine.stamp(stamps))
            begun = False
            for index in run:
                command = self.commands[index]
                cuts.append(len(words))
                if isinstance(command, Stamp):
                    words.extend(engine.stamp(slots[id(command)]))
                elif isinstance(command, Copy):
                    words.extend(device.copy_engine.copy(*command))
                elif command.groups:
                    if begun:
                        words.extend(device.compute_engine.between)
                    begun = True
                    data = command.program.descriptor(command.groups, base + banks_at + command.offset)
                    memory[descriptor:descriptor + len(data)] = data
                    words.extend(device.compute_engine.launch(base + descriptor))
                    descriptor += step
                if stamps:
                    words.extend(engine.stamp(stamps + STAMP_BYTES * (index + 1)))
            memory[at:at + 4 * len(words)] = words.tobytes()
            made.segments.append(Segment(kernels, tuple(entry(base + at + 4 * start, end - start)
                                                        for start, end in _pieces(cuts, len(words)))))
            at += 4 * len(words)
        if len(made.segments) == 1 and len(made.segments[0].packets) == 1 and made.segments[0].compute == compute:
            made.head = made.segments[0].packets[0]
        return made

    def _dwords(self, run: list[int], kernels: bool, stamped: bool) -> int:
        """At least as many as the methods of a segment take."""
        count = len(self.device.compute_engine.start) + 6 * (1 + len(run)) * (1 + stamped)
        for index in run:
            command = self.commands[index]
            if isinstance(command, Dispatch):
                count += self.device.launch_dwords
            elif isinstance(command, Copy):
                count += 9 * -(-command.nbytes // self.device.copy_engine.max_bytes)
        return count


_PCAS = 0x2B4


def _pieces(cuts: list[int], end: int) -> list[tuple[int, int]]:
    """(first dword, end) of parts that one entry can name, divided at `cuts`."""
    bounds, start, last = [], 0, 0
    for cut in [*cuts, end]:
        if cut - start > MAX_SEGMENT:
            bounds.append((start, last))
            start = last
        last = cut
    return [*bounds, (start, end)] if end > start else bounds
