"""Command lists of NVIDIA GPUs: every segment is methods in video memory, run by one GPFIFO entry. Behind them lie the launch
descriptors, one a dispatch, and the constant banks with the arguments.

    methods of each segment | descriptors | bank 0 of each dispatch | slots of time stamps
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from devrt.gpu.commands import Copy, Dispatch, GpuCommandList, Instance, Run, Segment, Stamp, pieces
from devrt.ioctl.system import view
from devrt.nvidia import pushbuffer, qmd
from devrt.nvidia.engines import LAUNCH_ADDRESS, SEMAPHORE_ADDRESS, STAMP_BYTES, STAMP_CLOCK, Engine
from devrt.nvidia.program import NvidiaProgram
from devrt.nvidia.pushbuffer import MAX_SEGMENT, entry

if TYPE_CHECKING:
    from devrt.nvidia.device import NvidiaDevice

_MAX_GROUPS = 1 << 31  # of a grid's width
_PCAS = 0x2B4          # SEND_PCAS_A
_LAUNCH, _ADDRESS = struct.Struct("<I"), struct.Struct("<Q")


class NvidiaCommandList(GpuCommandList):
    """Commands as methods. A segment's packets are GPFIFO entries."""

    programs = NvidiaProgram
    device: NvidiaDevice
    alignment = qmd.ALIGNMENT
    max_groups = _MAX_GROUPS

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
        device, made = self.device, Instance(self.device.command_memory)
        if not self._runs:
            return made
        data = bytearray()  # the methods, then the descriptors
        launches: list[tuple[int, Dispatch]] = []  # where methods take a descriptor's address
        clocks: list[tuple[int, Stamp]] = []  # where they take a slot's
        parts = []
        for run in self._runs:
            kernels = compute if run.kernels is None else run.kernels
            parts.append((kernels, self._methods(run, kernels, data, launches, clocks, stamps)))
        data += bytes(-len(data) % qmd.ALIGNMENT)
        banks_at = len(data) + device.compute_engine.descriptor_bytes * len(launches)
        slots_at = banks_at + len(self._arguments)
        made.block = device.command_memory.take(slots_at + STAMP_BYTES * len(clocks))
        base = made.block.address  # of a whole page
        for at, command in launches:
            _LAUNCH.pack_into(data, at, base + len(data) >> 8)
            data += command.program.descriptor(command.groups, base + banks_at + command.offset)
        for n, (at, stamp) in enumerate(clocks):
            slot = base + slots_at + STAMP_BYTES * n
            _ADDRESS.pack_into(data, at, slot)
            made.stamps.append((stamp, slot + STAMP_CLOCK))
        memory = view(base, slots_at)
        memory[:] = data + self._arguments
        made.arguments = memory[banks_at:]
        for kernels, part in parts:
            made.segments.append(Segment(kernels, tuple([entry(base + start, end - start >> 2) for start, end in part])))
        if len(parts) == 1 and len(made.segments[0].packets) == 1:
            made.head, = made.segments[0].packets
        return made

    def _methods(self, run: Run, kernels: bool, data: bytearray, launches: list[tuple[int, Dispatch]],
                 clocks: list[tuple[int, Stamp]], stamps: int) -> list[tuple[int, int]]:
        """Put the methods of a run behind `data`; the pieces that one entry can name."""
        compute, copier = self.device.compute_engine, self.device.copy_engine
        engine: Engine = compute if kernels else copier
        first, cuts, begun = len(data), [], False
        if kernels:
            data += compute.start
        if stamps and run.indexes[0] == 0:
            data += engine.stamp(stamps)
        for index in run.indexes:
            command = self.commands[index]
            cuts.append(len(data))
            if isinstance(command, Stamp):
                clocks.append((len(data) + SEMAPHORE_ADDRESS, command))
                data += engine.stamp(0)
            elif isinstance(command, Copy):
                data += copier.copy(*command)
            elif command.groups:
                if begun:
                    data += compute.between
                begun = True
                launches.append((len(data) + LAUNCH_ADDRESS, command))
                data += compute.launch
            if stamps:
                data += engine.stamp(stamps + STAMP_BYTES * (index + 1))
        return pieces(first, cuts, len(data), 4 * MAX_SEGMENT)
