"""Pushbuffers: the dwords a channel fetches, and the GPFIFO entries that name them.

A header says which method of which subchannel the dwords after it are for. `Push` writes them, checked by the tables of
methods.py; `writes` reads them back, one method at a time; `dump` prints them.
Sources: open-gpu-doc classes/host/clc76f.h (DMA_*, GP_ENTRY*); clc86f.h for the opcodes from Hopper.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from devrt.device import InvalidArgument
from devrt.nvidia.fields import HOPPER, BadField, F, Layout
from devrt.nvidia.methods import COMPUTE, COMPUTE_SUBCHANNEL, COPY, COPY_SUBCHANNEL, HOST, HOST_END, Methods

MAX_SEGMENT = (1 << 21) - 1  # dwords of one GPFIFO entry
ADDRESS_BITS = 40  # of a pushbuffer, where no SET_PB_SEGMENT_EXTENDED_BASE says more


class Sec(enum.IntEnum):
    """SEC_OP: how the dwords behind a header are meant."""

    USE_TERT = 0  # 0 as a whole word: a NOP
    INC_METHOD = 1
    NON_INC_METHOD = 3
    IMMD_DATA_METHOD = 4
    ONE_INC = 5
    END_PB_SEGMENT = 7


class GpOpcode(enum.IntEnum):
    """Of an entry of length 0."""

    NOP = 0
    ILLEGAL = 1
    GP_CRC = 2
    PB_CRC = 3
    SET_PB_SEGMENT_EXTENDED_BASE = 4


HEADER = Layout("header", 32, (
    F("method_address", 11, 0),  # in dwords
    F("subchannel", 15, 13),
    F("count", 28, 16),          # of dwords; of an immediate its value
    F("sec_op", 31, 29, Sec),
))
ENTRY = Layout("gp_entry", 64, (
    F("fetch_conditional", 0, 0),
    F("get", 39, 2, shift=2),    # address
    F("level_subroutine", 41, 41),
    F("length", 62, 42),         # dwords
    F("sync_wait", 63, 63),
))
_LENGTH, _SUBROUTINE = (ENTRY.of(HOPPER).place(name).lsb for name in ("length", "level_subroutine"))
CONTROL_ENTRY = Layout("gp_control_entry", 64, (
    F("operand", 31, 0),
    F("opcode", 39, 32, GpOpcode),
    F("length", 62, 42),
))


def header(op: Sec, count: int, subchannel: int, offset: int) -> int:
    """The dword before `count` dwords for the method at byte `offset`."""
    return HEADER.of(HOPPER).pack(sec_op=op, count=count, subchannel=subchannel, method_address=offset >> 2)


def entry(address: int, dwords: int) -> int:
    """The GPFIFO entry that runs `dwords` at `address`. It is fetched as a subroutine: the next entry needs no jump back."""
    if not 0 < dwords <= MAX_SEGMENT or address & 3 or address >> ADDRESS_BITS:
        raise InvalidArgument(f"no entry names {dwords} dwords at {address:#x}",
                              remedy=f"a segment has 1 to {MAX_SEGMENT} dwords, below 2^{ADDRESS_BITS}")
    return address | dwords << _LENGTH | 1 << _SUBROUTINE


class Push:
    """Writes methods. Names are those of methods.py; values are fields by name, or a whole dword as `value`."""

    def __init__(self, sm: int) -> None:
        self.sm = sm
        self.words: array[int] = array("I")

    def compute(self, name: str, *values: int, **fields: int) -> int:
        return self._put(COMPUTE, COMPUTE_SUBCHANNEL, name, values, fields)

    def copy(self, name: str, *values: int, **fields: int) -> int:
        return self._put(COPY, COPY_SUBCHANNEL, name, values, fields)

    def host(self, name: str, *values: int, subchannel: int = 0, **fields: int) -> int:
        return self._put(HOST, subchannel, name, values, fields)

    def _put(self, table: Methods, subchannel: int, name: str, values: Sequence[int], fields: dict[str, int]) -> int:
        """Write `values` to the method and those after it, or one dword made of `fields`. Returns the index of the first dword
        of data."""
        method = table[name]
        data = list(values)
        if fields:
            data = [method.of(self.sm).pack(**fields)]
        for n, value in enumerate(data):
            row = table.find(method.offset + 4 * n, self.sm)
            if row is None:
                raise InvalidArgument(f"sm_{self.sm} has no {table.name} method at {method.offset + 4 * n:#x}",
                                      evidence=f"{n} after {name}")
            try:
                row.of(self.sm).unpack(value)
            except BadField as error:
                raise InvalidArgument(f"{name}: {value:#x} is no value", evidence=error.what) from error
        self.words.append(header(Sec.INC_METHOD, len(data), subchannel, method.offset))
        self.words.extend(data)
        return len(self.words) - len(data)


class Write(NamedTuple):
    """One dword for one method: `at` is its index, `offset` the method's byte offset."""

    at: int
    subchannel: int
    offset: int
    value: int


def writes(words: Sequence[int]) -> Iterator[Write]:
    """What the dwords write, in order. Raises BadField for a header that is none or runs past the end."""
    table = HEADER.of(HOPPER)
    at, end = 0, len(words)
    while at < end:
        if not words[at]:  # a NOP
            at += 1
            continue
        try:
            fields = table.unpack(words[at])
        except BadField as error:
            raise BadField(f"{error.what}, at dword {at:#x}", evidence=f"{words[at]:#010x}") from error
        op, count, offset = fields["sec_op"], fields["count"], 4 * fields["method_address"]
        if op == Sec.END_PB_SEGMENT:
            return
        if op == Sec.USE_TERT:
            raise BadField(f"header: no operation {words[at]:#x}, at dword {at:#x}")
        if op == Sec.IMMD_DATA_METHOD:
            yield Write(at, fields["subchannel"], offset, count)
            at += 1
            continue
        if at + 1 + count > end:
            raise BadField(f"header: {count} dwords are announced, {end - at - 1} are left, at dword {at:#x}")
        for n in range(count):
            step = 4 * n if op == Sec.INC_METHOD else 4 * min(n, 1) if op == Sec.ONE_INC else 0
            yield Write(at + 1 + n, fields["subchannel"], offset + step, words[at + 1 + n])
        at += 1 + count


def table_of(write: Write) -> Methods:
    """The table that a write's method stands in, by devrt's use of subchannels."""
    return HOST if write.offset < HOST_END else COPY if write.subchannel == COPY_SUBCHANNEL else COMPUTE


def dump(words: Sequence[int], sm: int) -> str:
    """The methods as text, one a line."""
    lines = []
    for write in writes(words):
        table = table_of(write)
        method = table.find(write.offset, sm)
        text = f"{table.name} {write.offset:#x} = {write.value:#x}" if method is None else method.of(sm).text(write.value)
        lines.append(f"{write.at:6}  {text}")
    return "\n".join(lines)
