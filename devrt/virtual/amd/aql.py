"""The AQL packet processor: carries out 64-byte packets, as devrt.amd.aql lays them out.

What is wrong with a packet goes into the queue's inactive_signal as bits, as ROCr reads them, and stops the queue; only a lack
of scratch memory waits for the runtime to write 0 there and looks again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from devrt.amd import aql, pm4, registers
from devrt.amd.aql import Fence, Inactive, KernelProperty, PacketType, QueueProperty, SignalKind, VendorFormat
from devrt.amd.packets import BadPacket
from devrt.virtual.amd.dispatch import Dispatch, WaveFault
from devrt.virtual.amd.engine import BadCommand, Port, Step
from devrt.virtual.amd.pm4 import MOST_THREADS, Pm4

_VALUE = 8       # byte offset of amd_signal_t.value
_WRITE_ID, _READ_ID = 56, 128  # byte offsets in amd_queue_t of what changes all the time
_OFFSET = 8      # from read_dispatch_id to the field that says where it lies in amd_queue_t
_MOST_LDS = 0x10000
_LDS_UNIT = 512
_LDS_SHIFT = 15  # of RSRC2.LDS_SIZE
_IB_REMAIN = 10  # dw_cnt_remain of a PM4-IB packet
_SGPRS = (  # what a property puts into the first user SGPRs, and how many it takes, in order
    (KernelProperty.PRIVATE_SEGMENT_BUFFER, 4), (KernelProperty.DISPATCH_PTR, 2), (KernelProperty.QUEUE_PTR, 2),
    (KernelProperty.KERNARG_SEGMENT_PTR, 2), (KernelProperty.DISPATCH_ID, 2), (KernelProperty.FLAT_SCRATCH_INIT, 2),
    (KernelProperty.PRIVATE_SEGMENT_SIZE, 1))
_WAVE_FAULTS = {"illegal": Inactive.ILLEGAL_INSTRUCTION, "trap": Inactive.TRAP, "aperture": Inactive.APERTURE_VIOLATION}
_CONDITIONS = {0: lambda value, other: value == other, 1: lambda value, other: value != other,
               2: lambda value, other: value < other, 3: lambda value, other: value >= other}


class Stopped(Exception):
    """The queue stopped and its inactive_signal says why."""

    def __init__(self, bits: Inactive, why: str) -> None:
        super().__init__(f"{bits.name}: {why}")
        self.bits = bits


class _Refused(Exception):
    def __init__(self, bits: Inactive, why: str) -> None:
        super().__init__(why)
        self.bits, self.why = bits, why


class Aql:
    """The processor of one queue. rptr and wptr are addresses of fields of its amd_queue_t."""

    def __init__(self, port: Port, rptr: int, wptr: int) -> None:
        self.port, self._rptr, self._wptr = port, rptr, wptr
        self._pm4 = Pm4(port)  # for buffers that vendor packets call
        self._queue_raw, self._queue_fields = b"", dict[str, Any]()  # the amd_queue_t as it was seen last
        self._kernels: dict[tuple[int, bytes], tuple[dict[str, Any], int]] = {}  # descriptors that were checked

    def packet(self, slot: int, index: int) -> Iterator[Step]:
        """Carry out the packet at `slot`, once its producer has written it."""
        port = self.port
        port.at("packet", index)
        while port.peek(slot, 4) & 0xFF == PacketType.INVALID:
            yield Step.WAIT
        raw = port.space.read(slot, aql.PACKET_BYTES)
        port.at("packet", index, struct.unpack("<16I", raw))
        queue = self._queue()
        try:
            yield from self._carry_out(queue, slot, index, raw)
        except _Refused as refused:
            self._inactive(queue, refused.bits, refused.why)
            raise Stopped(refused.bits, refused.why) from refused
        port.store(slot - slot % 4, PacketType.INVALID | port.peek(slot, 4) & 0xFFFF0000, 4)

    def _queue(self) -> dict[str, Any]:
        """The amd_queue_t, and its address as `base`."""
        offset = int.from_bytes(self.port.space.read(self._rptr + _OFFSET, 4), "little")
        base = self._rptr - offset
        if offset != _READ_ID or self._wptr != base + _WRITE_ID:
            raise BadCommand(f"the pointers {self._rptr:#x} and {self._wptr:#x} are not of an amd_queue_t: its "
                             f"read_dispatch_id_field_base_byte_offset is {offset}, not {_READ_ID}")
        raw = self.port.space.read(base, aql.QUEUE.itemsize)
        still = raw[:_WRITE_ID] + raw[_WRITE_ID + 8:_READ_ID] + raw[_READ_ID + 8:]
        if still != self._queue_raw:
            self._queue_raw, self._queue_fields = still, _fields(raw, aql.QUEUE) | {"base": base}
        return self._queue_fields

    def _carry_out(self, queue: dict[str, Any], slot: int, index: int, raw: bytes) -> Iterator[Step]:
        port = self.port
        if raw[0] == PacketType.KERNEL_DISPATCH and not 1 <= raw[2] & 3 <= 3:
            raise _Refused(Inactive.INVALID_DIM, "a dispatch has 1 to 3 dimensions, not 0")
        try:
            kind, fields = aql.decode(raw, index)
        except BadPacket as bad:
            vendor = raw[0] == PacketType.VENDOR
            raise _Refused(Inactive.INVALID_VENDOR_PACKET if vendor else Inactive.INVALID_PACKET_FORMAT, str(bad)) from bad
        port.at(kind.name if kind is not PacketType.VENDOR else VendorFormat(fields["format"]).name, index, port.words)
        if fields["barrier"]:
            port.flight.drained()
        start = port.ticks()
        if kind is PacketType.KERNEL_DISPATCH:
            self._acquire(fields["acquire"])
            yield from self._dispatch(queue, slot, index, fields)
        elif kind in (PacketType.BARRIER_AND, PacketType.BARRIER_OR):
            yield from self._barrier(kind, fields)
            self._acquire(fields["acquire"])
        elif kind is PacketType.VENDOR and fields["format"] == VendorFormat.BARRIER_VALUE:
            yield from self._barrier_value(fields)
            self._acquire(fields["acquire"])
        elif kind is PacketType.VENDOR:
            self._acquire(fields["acquire"])
            yield from self._ib(fields)
        else:
            raise _Refused(Inactive.INVALID_PACKET_FORMAT, f"a GPU carries out no {kind.name} packet")
        port.flight.signalled()
        if fields["release"] == Fence.SYSTEM:
            port.ledger.writeback()
        if fields["completion_signal"]:
            self._complete(queue, fields["completion_signal"], start)

    def _acquire(self, scope: Fence) -> None:
        if scope != Fence.NONE:
            self.port.ledger.acquire(True, scope == Fence.SYSTEM)

    # --- dispatches ---

    def _dispatch(self, queue: dict[str, Any], slot: int, index: int, p: dict[str, Any]) -> Iterator[Step]:
        size = p["workgroup_size_x"], p["workgroup_size_y"], p["workgroup_size_z"]
        threads = p["grid_size_x"], p["grid_size_y"], p["grid_size_z"]
        if 0 in size or size[0] * size[1] * size[2] > MOST_THREADS:
            raise _Refused(Inactive.INVALID_GROUP_SIZE, f"groups of {size} threads; 1 to {MOST_THREADS} are possible")
        if 0 in threads:
            raise _Refused(Inactive.INVALID_DIM, f"a grid of {threads} threads")
        for n in range(p["setup"] & 3, 3):
            if size[n] != 1 or threads[n] != 1:
                raise _Refused(Inactive.INVALID_DIM, f"{p['setup'] & 3} dimensions, but {threads} threads in groups of {size}")
        kernel, wave = self._kernel(p["kernel_object"])
        lds, need = p["group_segment_size"], kernel["group_segment_fixed_size"]
        if not need <= lds <= _MOST_LDS:
            raise _Refused(Inactive.INVALID_LDS_SIZE, f"{lds} bytes of LDS; it needs {need}, a group can have {_MOST_LDS}")
        scratch = 0
        if p["private_segment_size"]:
            while (scratch := self._scratch(queue)) < p["private_segment_size"] * wave:
                self._inactive(queue, Inactive.SCRATCH_NEEDED, f"{scratch} bytes of scratch a wave are too few")
                while self._inactive_value(queue):
                    yield Step.WAIT
                queue = self._queue()
        base = queue["scratch_backing_memory_location"]
        values = {
            KernelProperty.PRIVATE_SEGMENT_BUFFER: queue["scratch_resource_descriptor"],
            KernelProperty.DISPATCH_PTR: _halves(slot), KernelProperty.QUEUE_PTR: _halves(queue["base"]),
            KernelProperty.KERNARG_SEGMENT_PTR: _halves(p["kernarg_address"]), KernelProperty.DISPATCH_ID: _halves(index),
            KernelProperty.FLAT_SCRATCH_INIT: _halves(base), KernelProperty.PRIVATE_SEGMENT_SIZE: [p["private_segment_size"]]}
        sgprs: list[int] = []
        for prop, _ in _SGPRS:
            if kernel["kernel_code_properties"] & prop:
                sgprs += values[prop]
        sgprs += self._preload(kernel, p["kernarg_address"])
        have = kernel["compute_pgm_rsrc2"] >> 1 & 31
        if len(sgprs) > have:
            raise _Refused(Inactive.INVALID_CODE, f"{len(sgprs)} user SGPRs are asked for, RSRC2 has {have}")
        dispatch = Dispatch(
            entry=p["kernel_object"] + kernel["kernel_code_entry_byte_offset"], wave=wave,
            groups=_each(-(-t // s) for t, s in zip(threads, size, strict=True)), group_size=size,
            partial=_each(t % s or s for t, s in zip(threads, size, strict=True)),
            user_sgprs=(*sgprs, *[0] * (have - len(sgprs))), rsrc1=kernel["compute_pgm_rsrc1"],
            rsrc2=kernel["compute_pgm_rsrc2"] | -(-lds // _LDS_UNIT) << _LDS_SHIFT, rsrc3=kernel["compute_pgm_rsrc3"],
            lds_bytes=lds, scratch_base=base, scratch_bytes_per_wave=scratch)
        try:
            yield from self.port.dispatch(dispatch)
        except WaveFault as fault:
            bits = next((b for word, b in _WAVE_FAULTS.items() if word in fault.kind), None)
            if bits is None:
                raise
            raise _Refused(bits, str(fault)) from fault

    def _kernel(self, va: int) -> tuple[dict[str, Any], int]:
        """(the descriptor, threads of a wave)."""
        if not va or va % 64:
            raise _Refused(Inactive.INVALID_CODE, f"no kernel descriptor is at {va:#x}")
        raw = self.port.read(va, aql.KERNEL_DESCRIPTOR.itemsize, l2=True)
        if (va, raw) not in self._kernels:
            self._kernels[va, raw] = self._checked(va, raw)
        return self._kernels[va, raw]

    def _checked(self, va: int, raw: bytes) -> tuple[dict[str, Any], int]:
        kernel = _fields(raw, aql.KERNEL_DESCRIPTOR)
        clean = np.zeros((), aql.KERNEL_DESCRIPTOR)
        for name, value in kernel.items():
            clean[name] = value
        entry = va + kernel["kernel_code_entry_byte_offset"]
        if clean.tobytes() != raw or not kernel["kernel_code_entry_byte_offset"] or entry % 256:
            raise _Refused(Inactive.INVALID_CODE, f"what is at {va:#x} is no kernel descriptor: its entry would be {entry:#x}")
        wave = 32 if kernel["kernel_code_properties"] & KernelProperty.WAVEFRONT_SIZE32 else 64
        if wave == 32 and self.port.gfx == 9:
            raise _Refused(Inactive.INVALID_CODE, "gfx9 has no waves of 32 threads")
        vgprs = ((kernel["compute_pgm_rsrc1"] & 63) + 1) * (8 if wave == 32 or self.port.gfx == 9 else 4)
        if vgprs > (512 if self.port.gfx == 9 else 256):
            raise _Refused(Inactive.INVALID_VGPR, f"{vgprs} VGPRs")
        return kernel, wave

    def _preload(self, kernel: dict[str, Any], kernarg: int) -> tuple[int, ...]:
        """The dwords of the kernel arguments that start in SGPRs (gfx90a and gfx942)."""
        length, offset = kernel["kernarg_preload"] & 127, kernel["kernarg_preload"] >> 7
        if not length:
            return ()
        return struct.unpack(f"<{length}I", self.port.read(kernarg + 4 * offset, 4 * length, l2=True))

    def _scratch(self, queue: dict[str, Any]) -> int:
        """Bytes of scratch memory that a wave has."""
        size = registers.unpack("COMPUTE_TMPRING_SIZE", self.port.gfx, queue["compute_tmpring_size"])
        return size["WAVESIZE"] * (256 if self.port.gfx >= 11 else 1024) if size["WAVES"] else 0

    # --- packets that wait, and buffers ---

    def _barrier(self, kind: PacketType, p: dict[str, Any]) -> Iterator[Step]:
        signals = [s for s in p["dep_signal"] if s]
        combine = all if kind is PacketType.BARRIER_AND else any
        while signals and not combine(self.port.peek(s + _VALUE, 8) == 0 for s in signals):
            yield Step.WAIT
        if signals:
            self.port.flight.waited()

    def _barrier_value(self, p: dict[str, Any]) -> Iterator[Step]:
        holds = _CONDITIONS.get(p["condition"])
        if holds is None or not p["signal"]:
            raise _Refused(Inactive.INVALID_VENDOR_PACKET, f"condition {p['condition']} of the signal {p['signal']:#x}")
        while not holds(_signed(self.port.peek(p["signal"] + _VALUE, 8) & p["mask"]), p["value"]):
            yield Step.WAIT
        self.port.flight.waited()

    def _ib(self, p: dict[str, Any]) -> Iterator[Step]:
        try:
            jump = pm4.decode(p["ib_jump_cmd"], self.port.gfx)
        except BadPacket as bad:
            raise _Refused(Inactive.INVALID_VENDOR_PACKET, str(bad)) from bad
        if jump.name != "INDIRECT_BUFFER" or not jump["valid"] or p["dw_cnt_remain"] != _IB_REMAIN:
            raise _Refused(Inactive.INVALID_VENDOR_PACKET, f"{jump}, dw_cnt_remain {p['dw_cnt_remain']}, not {_IB_REMAIN}")
        yield from self._pm4.run_ib(jump["ib_base"], jump["ib_size"])

    # --- signals ---

    def _complete(self, queue: dict[str, Any], va: int, start: int) -> None:
        """Subtract 1 from a signal's value and wake who waits for it."""
        signal = self._signal(va)
        if queue["queue_properties"] & QueueProperty.PROFILING:
            self.port.store(va + 32, start, 8)
            self.port.store(va + 40, self.port.ticks(), 8)
        self.port.atomic(va + _VALUE, 8, lambda value: value - 1)
        self._ring(signal, done=True)

    def _signal(self, va: int) -> dict[str, Any]:
        if va % aql.SIGNAL.itemsize:
            raise _Refused(Inactive.INVALID_PACKET_FORMAT, f"no signal is at {va:#x}, not a multiple of 64")
        signal = _fields(self.port.space.read(va, aql.SIGNAL.itemsize), aql.SIGNAL)
        if signal["kind"] != SignalKind.USER:
            raise _Refused(Inactive.INVALID_PACKET_FORMAT, f"what is at {va:#x} is no user signal: its kind is {signal['kind']}")
        return signal

    def _ring(self, signal: dict[str, Any], done: bool) -> None:
        if signal["event_mailbox_ptr"]:
            self.port.store(signal["event_mailbox_ptr"], signal["event_id"], 8)
            self.port.interrupt(signal["event_id"], done)

    def _inactive(self, queue: dict[str, Any], bits: Inactive, why: str) -> None:
        va = queue["queue_inactive_signal"]
        if not va:
            raise BadCommand(f"{bits.name}: {why}; the queue has no inactive_signal")
        self.port.store(va + _VALUE, bits, 8)
        self._ring(_fields(self.port.space.read(va, aql.SIGNAL.itemsize), aql.SIGNAL), done=False)

    def _inactive_value(self, queue: dict[str, Any]) -> int:
        return self.port.peek(queue["queue_inactive_signal"] + _VALUE, 8)


def _fields(raw: bytes, layout: np.dtype[Any]) -> dict[str, Any]:
    row = np.frombuffer(raw, layout, 1)[0]
    assert layout.names is not None
    return {name: row[name].tolist() for name in layout.names}


def _halves(value: int) -> list[int]:
    return [value & 0xFFFFFFFF, value >> 32]


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def _each(values: Iterator[int]) -> tuple[int, int, int]:
    x, y, z = values
    return x, y, z
