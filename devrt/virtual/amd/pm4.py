"""The compute command processor: carries out PM4 packets, decoded by devrt.amd.pm4.

Registers that no packet set are 0, as the queue's descriptor starts. What the hardware leaves to luck is refused: registers
nobody knows, a buffer without its VALID bit, an event with the wrong index.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

from devrt.amd import pm4, registers
from devrt.amd.packets import Packet
from devrt.amd.pm4 import CopyDst, CopySrc, DataSel, Event, IntSel, MemSpace, ReleaseDst, WaitOperation, WriteDst
from devrt.virtual.amd.dispatch import Dispatch
from devrt.virtual.amd.engine import COMPARE, M32, BadCommand, Port, Step, atomic_packet
from devrt.virtual.memory import SPAN
from devrt.virtual.pieces import mapped

_LDS_UNIT = 512  # bytes of RSRC2.LDS_SIZE
_COHER_UNIT = 256  # bytes that an ACQUIRE_MEM's base and size count
MOST_THREADS = 1024  # of a group
_CLOCKS = CopySrc.GPU_CLOCK_COUNT, CopySrc.SYSTEM_CLOCK_COUNT
_RELEASES = (Event.CACHE_FLUSH_AND_INV_TS, Event.BOTTOM_OF_PIPE_TS, Event.CS_DONE)


class _Chain(Exception):
    """An IB that ends in a jump to another."""

    def __init__(self, base: int, dwords: int) -> None:
        self.base, self.dwords = base, dwords


class Pm4:
    """The command processor of one queue. `gfx` of the port is the generation, 9..12."""

    def __init__(self, port: Port) -> None:
        self.port, self.gfx = port, port.gfx
        self.registers: dict[str, int] = {}
        self._do: dict[str, Callable[[Packet], Iterator[Step] | None]] = {
            "NOP": lambda p: None,
            "HDP_FLUSH": lambda p: None,
            "SET_SH_REG": self._set_sh, "SET_SH_REG_INDEX": self._set_sh, "SET_UCONFIG_REG": self._set_uconfig,
            "DISPATCH_DIRECT": self._direct, "DISPATCH_INDIRECT": self._indirect,
            "WRITE_DATA": self._write_data, "COPY_DATA": self._copy_data, "ATOMIC_MEM": self._atomic,
            "WAIT_REG_MEM": self._wait, "WAIT_REG_MEM64": self._wait,
            "EVENT_WRITE": self._event, "RELEASE_MEM": self._release, "ACQUIRE_MEM": self._acquire,
        }

    def ring(self, words: Sequence[int], position: int, done: Callable[[int], None]) -> Iterator[Step]:
        """Carry out what lies in the ring from dword `position` on; `done` hears how many dwords each step took."""
        return self._stream(words, position, done, "")

    def run_ib(self, base: int, dwords: int) -> Iterator[Step]:
        """Carry out a buffer of packets, and those it is chained to."""
        name, position, ring_words = self.port.packet, self.port.position, self.port.words
        while True:
            if not dwords:
                raise BadCommand("a buffer of 0 dwords")
            words = struct.unpack(f"<{dwords}I", self.port.read(base, 4 * dwords))
            try:
                yield from self._stream(words, position, lambda n: None, f" in the buffer {base:#x}")
            except _Chain as chain:
                base, dwords = chain.base, chain.dwords
                continue
            self.port.at(name, position, ring_words)
            return

    def _stream(self, words: Sequence[int], position: int, done: Callable[[int], None], ib: str) -> Iterator[Step]:
        at, gfx, port = 0, self.gfx, self.port
        while at < len(words):
            if ib:
                port.at(f"packet at dword {at:#x}{ib}", position, words[at:at + 8])
            else:
                port.at("packet", position + at, words[at:at + 8])
            packet = pm4.decode(words, gfx, at)
            port.at(packet.name + (f" at dword {at:#x}{ib}" if ib else ""), position if ib else position + at,
                    words[at:at + packet.size])
            took = packet.size
            if packet.name == "INDIRECT_BUFFER":
                yield from self._call(packet, bool(ib))
            elif packet.name == "COND_EXEC":
                if port.peek(packet["address"], 4) == 0:
                    took += packet["exec_count"]
            elif packet.name == "PRED_EXEC":
                if not ib:
                    raise BadCommand("PRED_EXEC counts in a buffer only")
                if not packet["xcc_mask"] & 1:  # the XCCs work as one: what the first carries out counts
                    took += packet["exec_count"]
            else:
                steps = self._do[packet.name](packet)
                if steps is not None:
                    yield from steps
            at += took
            if at > len(words):
                raise BadCommand(f"it skips {at - len(words)} dwords past the end")
            done(took)
            yield Step.DONE

    def _call(self, p: Packet, nested: bool) -> Iterator[Step]:
        if not p["valid"]:
            raise BadCommand("the VALID bit is not set")
        if p["vmid"] or p["priv"]:
            raise BadCommand("vmid and priv are the driver's")
        if p["chain"]:
            if not nested:
                raise BadCommand("only a buffer can chain")
            raise _Chain(p["ib_base"], p["ib_size"])
        if nested:
            raise BadCommand("a compute queue calls no buffer from a buffer; CHAIN goes on in another")
        yield from self.run_ib(p["ib_base"], p["ib_size"])

    # --- state and dispatches ---

    def _set_sh(self, p: Packet) -> None:
        self.registers |= registers.writes(p["reg_offset"], p.rest(), self.gfx)

    def _set_uconfig(self, p: Packet) -> None:
        raise BadCommand(f"no register at UCONFIG offset {p['reg_offset']:#x}")

    def _direct(self, p: Packet) -> Iterator[Step]:
        return self._dispatch((p["dim_x"], p["dim_y"], p["dim_z"]), p["dispatch_initiator"])

    def _indirect(self, p: Packet) -> Iterator[Step]:
        x, y, z = struct.unpack("<3I", self.port.read(p["address"], 12, l2=True))
        return self._dispatch((x, y, z), p["dispatch_initiator"])

    def _fields(self, name: str) -> dict[str, int]:
        return registers.unpack(name, self.gfx, self.registers.get(name, 0))

    def _wide(self, name: str) -> int:
        return (self.registers.get(f"{name}_LO", 0) | self.registers.get(f"{name}_HI", 0) << 32) << 8

    def _dispatch(self, dims: tuple[int, int, int], initiator: int) -> Iterator[Step]:
        how = registers.unpack("COMPUTE_DISPATCH_INITIATOR", self.gfx, initiator)
        if not how["COMPUTE_SHADER_EN"]:
            raise BadCommand("COMPUTE_SHADER_EN is not set in the initiator")
        wave = 32 if how.get("CS_W32_EN") else 64
        threads = [self._fields(f"COMPUTE_NUM_THREAD_{axis}") for axis in "XYZ"]
        start = (0, 0, 0) if how["FORCE_START_AT_000"] else _three(self.registers.get(f"COMPUTE_START_{a}", 0) for a in "XYZ")
        size, groups, partial = grid(dims, start, threads, bool(how["USE_THREAD_DIMENSIONS"]), bool(how["PARTIAL_TG_EN"]))
        entry = self._wide("COMPUTE_PGM")
        if not entry:
            raise BadCommand("COMPUTE_PGM_LO and _HI are 0: no program was set")
        rsrc2 = self._fields("COMPUTE_PGM_RSRC2")
        if rsrc2["USER_SGPR"] > 16:
            raise BadCommand(f"{rsrc2['USER_SGPR']} user SGPRs, there are 16")
        if rsrc2["LDS_SIZE"] * _LDS_UNIT > 0x10000:
            raise BadCommand(f"{rsrc2['LDS_SIZE'] * _LDS_UNIT} bytes of LDS, a group can have 65536")
        unit = 256 if self.gfx >= 11 else 1024
        scratch = self._fields("COMPUTE_TMPRING_SIZE")
        if rsrc2["SCRATCH_EN"] and not (scratch["WAVESIZE"] and scratch["WAVES"]):
            raise BadCommand("SCRATCH_EN without WAVES and WAVESIZE in COMPUTE_TMPRING_SIZE")
        return self.port.dispatch(Dispatch(
            entry=entry, groups=groups, group_size=size, partial=partial, start=start,
            user_sgprs=tuple(self.registers.get(f"COMPUTE_USER_DATA_{n}", 0) for n in range(rsrc2["USER_SGPR"])),
            rsrc1=self.registers.get("COMPUTE_PGM_RSRC1", 0), rsrc2=self.registers.get("COMPUTE_PGM_RSRC2", 0),
            rsrc3=self.registers.get("COMPUTE_PGM_RSRC3", 0), lds_bytes=rsrc2["LDS_SIZE"] * _LDS_UNIT,
            scratch_base=self._wide("COMPUTE_DISPATCH_SCRATCH_BASE"), scratch_bytes_per_wave=scratch["WAVESIZE"] * unit,
            wave=wave))

    # --- memory ---

    def _write_data(self, p: Packet) -> None:
        if p["dst_sel"] == WriteDst.REGISTER:
            raise BadCommand("a user queue writes no registers")
        data, l2 = p.rest(), p["dst_sel"] == WriteDst.TC_L2
        if p["addr_incr"]:  # every dword to the same address: the last one stays
            data = data[-1:]
        self.port.write(p["address"], struct.pack(f"<{len(data)}I", *data), l2)

    def _copy_data(self, p: Packet) -> None:
        nbytes, source = 8 if p["count_sel"] else 4, p["src_sel"]
        if source in (CopySrc.MEMORY, CopySrc.TC_L2):
            value = int.from_bytes(self.port.read(p["src"], nbytes, l2=source == CopySrc.TC_L2), "little")
        elif source == CopySrc.IMMEDIATE:
            value = p["src"]
        elif source == CopySrc.ATOMIC_RETURN:
            value = self.port.returned
        elif source in _CLOCKS:
            value = self.port.ticks()
        else:
            raise BadCommand(f"nothing to copy from {CopySrc(source).name} {p['src']:#x}")
        if p["dst_sel"] not in (CopyDst.TC_L2, CopyDst.MEMORY):
            raise BadCommand(f"a user queue writes no {CopyDst(p['dst_sel']).name}")
        if source in _CLOCKS:
            self.port.store(p["dst"], value, nbytes)
        else:
            self.port.write(p["dst"], (value & (1 << 8 * nbytes) - 1).to_bytes(nbytes, "little"), p["dst_sel"] == CopyDst.TC_L2)

    def _atomic(self, p: Packet) -> Iterator[Step]:
        loop = p["command"] == pm4.AtomicCommand.LOOP_UNTIL_COMPARE_SATISFIED
        yield from atomic_packet(self.port, p["atomic"], p["address"], p["src_data"], p["cmp_data"], loop)

    def _wait(self, p: Packet) -> Iterator[Step]:
        if p["mem_space"] == MemSpace.REGISTER:
            if p["operation"] == WaitOperation.WR_WAIT_WR_REG:  # a request and its done register: an HDP flush, done at once
                return
            raise BadCommand(f"a user queue waits for no register ({p['address'] & M32:#x})")
        if p["operation"] == WaitOperation.WR_WAIT_WR_REG:
            raise BadCommand("WR_WAIT_WR_REG is of registers")
        nbytes = 8 if p.name == "WAIT_REG_MEM64" else 4
        if not p["mask"] and p["function"]:
            raise BadCommand("the mask is 0")
        holds, mask, reference = COMPARE[p["function"]], p["mask"], p["reference"]
        while not holds(self.port.peek(p["address"], nbytes) & mask, reference):
            yield Step.WAIT
        self.port.flight.waited()

    # --- events and caches ---

    def _event(self, p: Packet) -> None:
        if p["event_type"] in _RELEASES:
            raise BadCommand(f"{Event(p['event_type']).name} is an event of RELEASE_MEM")
        if p["event_type"] == Event.CS_PARTIAL_FLUSH:
            self.port.flight.drained()

    def _release(self, p: Packet) -> None:
        if p["event_type"] not in _RELEASES or p.fields.get("pws_enable"):
            raise BadCommand(f"{Event(p['event_type']).name} is no event at the end of the pipe, or asks for PWS")
        if p["dst_sel"] not in (ReleaseDst.MEMORY_CONTROLLER, ReleaseDst.TC_L2):
            raise BadCommand(f"a user queue releases to memory, not to {ReleaseDst(p['dst_sel']).name}")
        self.port.flight.signalled()
        if p["tc_wb_action" if self.gfx == 9 else "gl2_wb"]:
            self.port.ledger.writeback()
        self._invalidate(p)
        value = {DataSel.SEND_32_BIT: p["data"], DataSel.SEND_64_BIT: p["data"]}.get(DataSel(p["data_sel"]))
        if p["data_sel"]:
            nbytes = 4 if p["data_sel"] == DataSel.SEND_32_BIT else 8
            self.port.store(p["address"], self.port.ticks() if value is None else value, nbytes)
        if p["int_sel"] in (IntSel.INTERRUPT_ONLY, IntSel.INTERRUPT_AFTER_WRITE_CONFIRM, IntSel.UNCONDITIONALLY_INT_CTXID):
            self.port.interrupt(p["int_ctxid"])
        elif p["int_sel"] not in (IntSel.NONE, IntSel.DATA_AND_WRITE_CONFIRM):
            raise BadCommand(f"{IntSel(p['int_sel']).name} is the driver's")

    def _acquire(self, p: Packet) -> None:
        base, size = p["coher_base"] * _COHER_UNIT, p["coher_size"] * _COHER_UNIT
        found = None if base == 0 and size + _COHER_UNIT >= SPAN else mapped(self.port.space, base, size)
        if p["tc_wb_action" if self.gfx == 9 else "gl2_wb"]:
            self.port.ledger.writeback(found)
        ledger = self.port.ledger
        if self.gfx == 9:
            ledger.acquire(bool(p["tcl1_action"] and p["sh_kcache_action"]), bool(p["tc_action"]), found)
        else:
            ledger.acquire(bool(p["glv_inv"] and p["glk_inv"] and (p["gl1_inv"] or self.gfx == 12)), bool(p["gl2_inv"]), found)

    def _invalidate(self, p: Packet) -> None:
        """What a RELEASE_MEM invalidates. Only gfx11 and up has the scalar cache among it, so only there L1 is as new."""
        l1 = self.gfx >= 11 and p["glv_inv"] and p["glk_inv"] and (p["gl1_inv"] or self.gfx == 12)
        self.port.ledger.acquire(bool(l1), bool(p["tc_action" if self.gfx == 9 else "gl2_inv"]))


def _three(values: Iterator[int]) -> tuple[int, int, int]:
    x, y, z = values
    return x, y, z


def grid(dims: tuple[int, int, int], start: tuple[int, int, int], threads: Sequence[dict[str, int]], in_threads: bool,
         partial_groups: bool) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]:
    """(threads of a group, number of groups, threads of the last group) of a dispatch in three dimensions.

    `dims` count groups up to their end, or threads. The last group is smaller where the threads don't divide evenly, or
    where PARTIAL_TG_EN says that NUM_THREAD_PARTIAL counts.
    """
    size, groups, partial = [], [], []
    for dim, first, registered in zip(dims, start, threads, strict=True):
        full, part = registered["NUM_THREAD_FULL"], registered["NUM_THREAD_PARTIAL"]
        if not full:
            raise BadCommand("COMPUTE_NUM_THREAD is 0 in a dimension")
        size.append(full)
        if in_threads:
            groups.append(max(-(-dim // full) - first, 0))
            partial.append(dim % full or full)
        else:
            if part > full:
                raise BadCommand(f"a last group of {part} threads, a group has {full}")
            groups.append(max(dim - first, 0))
            partial.append(part or full if partial_groups else full)
    if size[0] * size[1] * size[2] > MOST_THREADS:
        raise BadCommand(f"{size[0]}x{size[1]}x{size[2]} threads in a group, {MOST_THREADS} is the most")
    return _three(iter(size)), _three(iter(groups)), _three(iter(partial))
