"""Command lists of AMD GPUs: what a compute segment holds are packets in memory, run as one indirect buffer; copies are put
into the ring.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from devrt.amd import pm4
from devrt.amd.engines import MAX_WRITE, grouped
from devrt.amd.program import AmdProgram
from devrt.gpu.commands import Copy, Dispatch, GpuCommandList, Instance, Run, Segment, Stamp, pieces
from devrt.ioctl.system import view

if TYPE_CHECKING:
    from devrt.amd.device import AmdDevice

_ADDRESS, _GROUPS = struct.Struct("<Q"), struct.Struct("<I")


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
                parts.append(f"copy engine, {sum(map(len, segment.packets))} bytes of packets")
                continue
            for packet in segment.packets:
                _, address, size = struct.unpack("<IQI", packet)
                n = size & pm4.MAX_IB_DWORDS
                data = bytes(view(address, 4 * n))
                parts.append(pm4.dump(struct.unpack(f"<{n}I", data), self.device.gfx))
        return "\n".join(parts)

    def build(self, compute: bool, stamps: int = 0) -> Instance:
        """The packets of the list in GPU memory. `stamps`: the address of len(self) + 1 u64 that receive the clock before
        the first command and after each, for a profile."""
        device, made = self.device, Instance(self.device.host_memory)
        data = bytearray()  # the compute segments
        launches: list[tuple[int, Dispatch]] = []  # where in them launches begin
        parts: list[tuple[bool, Any]] = []  # (whether a compute engine runs it, its pieces or its packets)
        for run in self._runs:
            kernels = compute if run.kernels is None else run.kernels
            parts.append((kernels, self._kernels(run, made, data, launches, stamps) if kernels
                          else self._copies(run, made, stamps)))
        base, packet_bytes = 0, len(data)
        if packet_bytes:
            total = packet_bytes + len(self._arguments)
            made.block = device.host_memory.take(total)
            base = made.block.address
            for at, command in launches:
                launch = command.program.launch
                _ADDRESS.pack_into(data, at + launch.arguments_at, base + packet_bytes + command.offset)
                _GROUPS.pack_into(data, at + launch.groups_at, command.groups)
            memory = view(base, total)
            memory[:] = data + self._arguments
            made.arguments = memory[packet_bytes:]
        for kernels, part in parts:
            if kernels:
                part = tuple([device.compute_engine.indirect(base + start, end - start >> 2) for start, end in part])
            made.segments.append(Segment(kernels, part))
        if len(parts) == 1 and parts[0][0] and len(made.segments[0].packets) == 1:
            made.head, = made.segments[0].packets
        return made

    def _kernels(self, run: Run, made: Instance, data: bytearray, launches: list[tuple[int, Dispatch]],
                 stamps: int) -> list[tuple[int, int]]:
        """Put the packets of a run behind `data`; the pieces that one INDIRECT_BUFFER can name."""
        engine, begun = self.device.compute_engine, False
        first, cuts = len(data), []
        data += engine.start
        if stamps and run.indexes[0] == 0:
            data += engine.stamp(stamps)
        for index in run.indexes:
            command = self.commands[index]
            if isinstance(command, Stamp):
                made.stamps.append((command, command.address))
                data += engine.stamp(command.address)
            elif isinstance(command, Dispatch) and command.groups:
                if begun:
                    data += engine.between
                begun = True
                cuts.append(len(data))
                launches.append((len(data), command))
                data += command.program.launch.packets
            if stamps:
                data += engine.stamp(stamps + 8 * index + 8)
        end = len(data)
        data += bytes(-end % self.alignment)
        return pieces(first, cuts, end, 4 * pm4.MAX_IB_DWORDS)

    def _copies(self, run: Run, made: Instance, stamps: int) -> tuple[bytes, ...]:
        engine = self.device.copy_engine
        packets: list[bytes] = []
        if stamps and run.indexes[0] == 0:
            packets.append(engine.stamp(stamps))
        for index in run.indexes:
            command = self.commands[index]
            if isinstance(command, Stamp):
                made.stamps.append((command, command.address))
                packets.append(engine.stamp(command.address))
            elif isinstance(command, Copy):
                packets += engine.copy(*command)
            if stamps:
                packets.append(engine.stamp(stamps + 8 * index + 8))
        return grouped(packets, MAX_WRITE)
