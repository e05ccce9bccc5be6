"""The host of a channel (PBDMA): fetches GPFIFO entries and pushbuffers, takes methods apart, carries its own out and hands the
rest to the engine of the subchannel. Bits and rules: dev_pbdma.ref, clc56f.h, clc86f.h."""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator, Mapping

from devrt.ioctl.nv_alloc import EngineType
from devrt.nvidia.fields import HOPPER, BadField
from devrt.nvidia.methods import COMPUTE_SUBCHANNEL, COPY_SUBCHANNEL, HOST, HOST_END, MemOp, Reduction, Semaphore
from devrt.nvidia.pushbuffer import CONTROL_ENTRY, ENTRY, HEADER, GpOpcode, Sec
from devrt.virtual.nvidia.channel import GP_GET
from devrt.virtual.nvidia.compute import Compute
from devrt.virtual.nvidia.copy import Copy
from devrt.virtual.nvidia.engine import M32, M64, Engine, Port, Refused, Step, method_rows
from devrt.virtual.nvidia.faults import Pbdma, pbdma_error
from devrt.virtual.pieces import pieces

_GENERATIONS = {0xC46F: 75, 0xC56F: 80, 0xC76F: 89, 0xC86F: 90, 0xC96F: 100, 0xCA6F: 120}  # GPFIFO class -> its methods
_SUBCHANNELS = 5  # 5 to 7 are software's
_COMPUTE, _COPY = 0xC0, 0xB5  # the low byte of a class says what it is
_RESERVED_HEADER = HEADER.of(HOPPER).reserved
_PRIVILEGED = MemOp.MMU_TLB_INVALIDATE, MemOp.MMU_TLB_INVALIDATE_TARGETED

# SEM_EXECUTE.operation -> whether an acquire succeeds: (memory, payload, bits of them).
_ACQUIRE: Mapping[int, Callable[[int, int, int], bool]] = {
    Semaphore.ACQUIRE: lambda v, p, bits: v == p,
    Semaphore.ACQ_STRICT_GEQ: lambda v, p, bits: v >= p,
    Semaphore.ACQ_CIRC_GEQ: lambda v, p, bits: not (v - p) >> bits - 1 & 1,
    Semaphore.ACQ_AND: lambda v, p, bits: bool(v & p),
    Semaphore.ACQ_NOR: lambda v, p, bits: bool(~(v | p) & (1 << bits) - 1),
}


class Host:
    """Carries out what `put` says is there. `get` is the next entry of the ring."""

    def __init__(self, port: Port) -> None:
        self.port, self.channel = port, port.channel
        self.get = self.put = 0
        self.sm = _GENERATIONS[self.channel.host_class]
        self.rows = method_rows(HOST, self.sm)
        self.registers: dict[str, int] = {}
        self.engines: dict[int, Engine] = {}
        self._entry = 0       # what it reads, for errors: entry of the ring, dword of its segment, own method and data
        self._dword = -1
        self._own_method: tuple[str, int] | None = None
        self._base = 0  # address bits 56:40 of later entries
        self._mem_ops: set[str] = set()
        self._do: dict[str, Callable[[int, Mapping[str, int]], Iterator[Step] | None]] = {
            "SET_OBJECT": self._set_object, "ILLEGAL": self._illegal, "NON_STALL_INTERRUPT": self._interrupt,
            "MEM_OP_D": self._mem_op, "SEM_EXECUTE": self._semaphore, "WFI": self._wfi,
        }

    def run(self) -> Generator[Step, None, None]:
        """Raises ChannelError, MemoryFault and what engines raise."""
        channel = self.channel
        report = channel.userd[GP_GET:GP_GET + 4]
        while True:
            while self.get == self.put:
                yield Step.IDLE
            self._entry, self._dword, self._own_method = self.get, -1, None
            self.port.client, self.port.who = "HUBCLIENT_HOST", "the host"
            raw = self.port.peek(channel.gpfifo_va + 8 * self.get, 8)
            words = self._fetch(raw)
            self.get = (self.get + 1) % channel.gpfifo_entries
            report[:] = self.get.to_bytes(4, "little")  # what is fetched may be overwritten only once a semaphore says so
            yield from self._segment(words)
            yield Step.DONE

    @property
    def place(self) -> str:
        """Where it reads, for errors."""
        dword = f", dword {self._dword:#x}" if self._dword >= 0 else ""
        own = f", {self._own_method[0]} = {self._own_method[1]:#x}" if self._own_method else ""
        return f"GPFIFO entry {self._entry:#x}{dword}{own}"

    def _error(self, bit: Pbdma, why: str) -> Exception:
        return pbdma_error(self.channel, bit, f"{self.place}: {why}")

    def _fetch(self, raw: int) -> tuple[int, ...]:
        """The dwords that an entry names."""
        length = raw >> 42 & 0x1FFFFF
        try:
            if not length:
                return self._control(CONTROL_ENTRY.of(self.sm).unpack(raw))
            fields = ENTRY.of(self.sm).unpack(raw)
        except BadField as error:
            raise self._error(Pbdma.GPENTRY, f"{error.what} [{raw:016x}]") from error
        if fields["fetch_conditional"]:
            raise self._error(Pbdma.GPENTRY, "a conditional fetch: no subdevice mask was set")
        return struct.unpack(f"<{length}I", self.port.read(self._base | fields["get"], 4 * length))

    def _control(self, fields: Mapping[str, int]) -> tuple[int, ...]:
        opcode, operand = fields["opcode"], fields["operand"]
        if opcode == GpOpcode.SET_PB_SEGMENT_EXTENDED_BASE and self.sm >= HOPPER:
            if operand & ~0x1FFFF00:
                raise self._error(Pbdma.GPENTRY, f"SET_PB_SEGMENT_EXTENDED_BASE has no operand {operand:#x}")
            self._base = (operand >> 8) << 40
        elif opcode != GpOpcode.NOP:
            raise self._error(Pbdma.GPENTRY, f"opcode {GpOpcode(opcode).name} with operand {operand:#x}")
        return ()

    def _segment(self, words: tuple[int, ...]) -> Iterator[Step]:
        at, end = 0, len(words)
        while at < end:
            word = words[at]
            at += 1
            if not word:  # a NOP
                continue
            self._dword, self._own_method = at - 1, None
            op, count, subchannel, offset = word >> 29, word >> 16 & 0x1FFF, word >> 13 & 7, (word & 0xFFF) << 2
            if word & _RESERVED_HEADER:
                raise self._error(Pbdma.PBENTRY, f"a reserved bit of the header {word:#010x} is set")
            if op == Sec.END_PB_SEGMENT:
                return
            if op == Sec.IMMD_DATA_METHOD:
                steps = self._method(subchannel, offset, count)
                if steps is not None:
                    yield from steps
                continue
            if op not in (Sec.INC_METHOD, Sec.NON_INC_METHOD, Sec.ONE_INC):
                raise self._error(Pbdma.PBENTRY, f"no operation in the header {word:#010x}")
            if at + count > end:
                raise self._error(Pbdma.PBENTRY, f"{count} dwords are announced by {word:#010x}, {end - at} are left")
            many = count > 1 and offset >= HOST_END and op != Sec.ONE_INC
            if many and self._block(subchannel, offset, words[at:at + count], op == Sec.INC_METHOD):
                at += count
                continue
            for n in range(count):
                step = 4 * n if op == Sec.INC_METHOD else 4 * min(n, 1) if op == Sec.ONE_INC else 0
                steps = self._method(subchannel, offset + step, words[at + n])
                if steps is not None:
                    yield from steps
            at += count

    def _engine(self, subchannel: int, offset: int) -> Engine:
        engine = self.engines.get(subchannel)
        if engine is None:
            engine = self.engines[subchannel] = self._attach(subchannel, offset)
        return engine

    def _attach(self, subchannel: int, offset: int) -> Engine:
        """The engine behind a subchannel: fixed by the runlist, but its object must have been made in the channel."""
        graphics = self.channel.engine == EngineType.GRAPHICS
        kind = {COMPUTE_SUBCHANNEL: _COMPUTE if graphics else 0, COPY_SUBCHANNEL: _COPY}.get(subchannel, 0)
        found = [c for c in self.channel.classes if c & 0xFF == kind]
        if not found:
            made = " ".join(f"{c:#06x}" for c in self.channel.classes) or "none"
            raise self._error(Pbdma.DEVICE, f"method {offset:#x}: nothing behind subchannel {subchannel} [objects: {made}]")
        return (Compute if kind == _COMPUTE else Copy)(self.port, found[0])

    def _method(self, subchannel: int, offset: int, data: int) -> Iterator[Step] | None:
        if offset < HOST_END:
            return self._own(subchannel, offset, data)
        engine = self._engine(subchannel, offset)
        try:
            steps = engine.method(offset, data)
        except Refused as refused:
            raise engine.refused(offset, data, f"{self.place}: {engine.name(offset)}: {refused}") from refused
        return None if steps is None else self._guarded(engine, offset, data, steps)

    def _block(self, subchannel: int, offset: int, words: tuple[int, ...], increment: bool) -> bool:
        engine = self._engine(subchannel, offset)
        try:
            return engine.block(offset, words, increment)
        except Refused as refused:
            raise engine.refused(offset, words[0], f"{self.place}: {engine.name(offset)}: {refused}") from refused

    def _guarded(self, engine: Engine, offset: int, data: int, steps: Iterator[Step]) -> Iterator[Step]:
        try:
            yield from steps
        except Refused as refused:
            raise engine.refused(offset, data, f"{self.place}: {engine.name(offset)}: {refused}") from refused

    # --- the host's own methods ---

    def _own(self, subchannel: int, offset: int, data: int) -> Iterator[Step] | None:
        row = self.rows.get(offset)
        if row is None:
            raise self._error(Pbdma.METHOD, f"the host has no method {offset:#x}")
        self._own_method = row.name, data
        try:
            fields = row.compiled.unpack(data)
        except BadField as error:
            raise self._error(Pbdma.SEMAPHORE if row.name.startswith("SEM_") else Pbdma.METHOD, error.what) from error
        action = self._do.get(row.name)
        if action is not None:
            return action(subchannel, fields)
        if row.name.startswith("MEM_OP"):
            self._mem_ops.add(row.name)
        self.registers[row.name] = data
        return None

    def _set_object(self, subchannel: int, fields: Mapping[str, int]) -> None:
        wanted = fields["nvclass"]
        if wanted not in self.channel.classes:
            made = " ".join(f"{c:#06x}" for c in self.channel.classes) or "none"
            raise self._error(Pbdma.DEVICE, f"class {wanted:#06x} was not made in this channel [objects: {made}]")
        if subchannel >= _SUBCHANNELS or fields["engine"]:
            raise self._error(Pbdma.DEVICE, f"class {wanted:#06x} is no software class")
        if self._engine(subchannel, 0).class_id != wanted:
            raise self._error(Pbdma.DEVICE, f"class {wanted:#06x} is not behind subchannel {subchannel}")

    def _illegal(self, subchannel: int, fields: Mapping[str, int]) -> None:
        raise self._error(Pbdma.METHOD, "the illegal method")

    def _interrupt(self, subchannel: int, fields: Mapping[str, int]) -> None:
        self.port.interrupt()

    def _wfi(self, subchannel: int, fields: Mapping[str, int]) -> None:
        self.port.track.idle()

    def _mem_op(self, subchannel: int, fields: Mapping[str, int]) -> None:
        if self._mem_ops != {"MEM_OP_A", "MEM_OP_B", "MEM_OP_C"}:
            raise self._error(Pbdma.METHOD, "MEM_OP_A, B and C come before D")
        self._mem_ops.clear()
        operation = MemOp(fields["operation"])
        if operation in _PRIVILEGED:
            raise self._error(Pbdma.METHOD, f"{operation.name} is the driver's")

    def _semaphore(self, subchannel: int, fields: Mapping[str, int]) -> Iterator[Step] | None:
        port, registers, operation = self.port, self.registers, fields["operation"]
        wide = bool(fields["payload_size_64bit"])
        va = registers.get("SEM_ADDR_HI", 0) << 32 | registers.get("SEM_ADDR_LO", 0)
        payload = registers.get("SEM_PAYLOAD_LO", 0) | (registers.get("SEM_PAYLOAD_HI", 0) << 32 if wide else 0)
        if wide and va % 8:
            raise self._error(Pbdma.SEMAPHORE, f"the semaphore at {va:#x} is not a multiple of 8")
        port.client, port.who = "HUBCLIENT_HOST", "the host"
        if operation in _ACQUIRE:
            if any(fields[name] for name in ("release_wfi", "release_timestamp", "reduction", "reduction_unsigned")):
                raise self._error(Pbdma.SEMAPHORE, "an acquire with fields of a release")
            return self._acquire(va, payload, wide, _ACQUIRE[operation])
        if fields["acquire_switch_tsg"]:
            raise self._error(Pbdma.SEMAPHORE, "a release with acquire_switch_tsg")
        known = port.track.known.get(port.track.key, 0)
        if fields["release_wfi"]:
            port.track.idle()
            known = port.track.count
        try:
            if operation == Semaphore.RELEASE:
                if fields["reduction"] or fields["reduction_unsigned"]:
                    raise Refused("a release with fields of a reduction")
                port.semaphore(va, payload, wide=wide, timestamp=bool(fields["release_timestamp"]), up_to=known)
                return None
            signed, reduction = not fields["reduction_unsigned"], Reduction(fields["reduction"])
            counts = reduction in (Reduction.INC, Reduction.DEC)
            if counts and (wide or signed) or reduction == Reduction.IADD and wide and signed:
                raise Refused(f"no {'signed' if signed else 'unsigned'} {reduction.name} of {64 if wide else 32} bits")
            port.reduce(va, reduction.name, payload, wide=wide, signed=signed, timestamp=bool(fields["release_timestamp"]),
                        up_to=known)
        except Refused as refused:
            raise self._error(Pbdma.SEMAPHORE, str(refused)) from refused
        return None

    def _acquire(self, va: int, payload: int, wide: bool, holds: Callable[[int, int, int], bool]) -> Iterator[Step]:
        nbytes, mask = 8 if wide else 4, M64 if wide else M32
        while not holds(self.port.peek(va, nbytes), payload & mask, 8 * nbytes):
            yield Step.WAIT
        self.port.track.acquired(pieces(self.port.space, va, nbytes, "read"))
