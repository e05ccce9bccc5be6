"""What the command processor reads: packets, and the layout of queues and signals in memory.

A packet is a run of 64-bit words. Word 0 is its opcode | its length in words << 32. A ring holds packets of exactly
four words; a recorded list holds commands of any length, one after another, found through an INDIRECT packet.

    DISPATCH   kernel, groups, argument...      arguments are passed to the kernel in place
    COPY       destination, source, bytes
    TIMESTAMP  destination of a u64 in ns
    WAIT       signal, value
    SIGNAL     signal, value
    INDIRECT   first command, number of commands, profile or 0
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

RING_WORDS = 4
ARGUMENT_0 = 3  # word of a DISPATCH that holds its first argument
SIGNAL_BYTES = 64

# Byte offsets of the types in command_processor.ll.
QUEUE = {
    "written": 0, "host_core": 8,
    "read": 64, "executed": 72, "current": 80, "leader_asleep": 88,
    "ticket": 128, "kernel": 136, "args": 144, "groups": 152, "chunk": 160,
    "done": 192,
    "helpers_asleep": 256,
    "os": 320, "ring": 328, "mask": 336, "workers": 344, "stop": 352,
}
QUEUE_BYTES = 384


class Opcode(enum.IntEnum):
    DISPATCH = 1
    COPY = 2
    TIMESTAMP = 3
    WAIT = 4
    SIGNAL = 5
    INDIRECT = 6


_LENGTH = 32  # shift of the length in words
_DISPATCH = int(Opcode.DISPATCH)
_COPY = Opcode.COPY | 4 << _LENGTH
_TIMESTAMP = Opcode.TIMESTAMP | 2 << _LENGTH
_WAIT = Opcode.WAIT | RING_WORDS << _LENGTH
_SIGNAL = Opcode.SIGNAL | RING_WORDS << _LENGTH
_INDIRECT = Opcode.INDIRECT | RING_WORDS << _LENGTH


def dispatch(kernel: int, groups: int, arguments: Sequence[int]) -> tuple[int, ...]:
    return (_DISPATCH | (ARGUMENT_0 + len(arguments)) << _LENGTH, kernel, groups, *arguments)


def copy(dst: int, src: int, nbytes: int) -> tuple[int, ...]:
    return _COPY, dst, src, nbytes


def timestamp(dst: int) -> tuple[int, ...]:
    return _TIMESTAMP, dst


def wait(signal: int, value: int) -> tuple[int, ...]:
    return _WAIT, signal, value, 0


def signal(signal: int, value: int) -> tuple[int, ...]:
    return _SIGNAL, signal, value, 0


def indirect(first: int, count: int, profile: int = 0) -> tuple[int, ...]:
    return _INDIRECT, first, count, profile


def dump(words: Sequence[int]) -> str:
    """Packets as text, one per line: word offset, opcode, operands."""
    lines, at = [], 0
    while at < len(words):
        length = max(1, words[at] >> _LENGTH)
        code = words[at] & 0xFF
        name = Opcode(code).name if code in Opcode._value2member_map_ else f"?{code}"
        lines.append(f"{at:6d}  {name:<9} {' '.join(f'{word:#x}' for word in words[at + 1:at + length])}".rstrip())
        at += length
    return "\n".join(lines)
