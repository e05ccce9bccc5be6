"""An assembler for classic BPF, as seccomp filters are written in it: lines with labels become struct sock_filter.

    assemble([load(0), equal(257, "notify"), result(ALLOW), at("notify", result(NOTIFY))])

Source: linux/bpf_common.h and linux/filter.h (codes, struct), seccomp(2) (what a program may load).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

CODES = {
    "load": 0x20,   # BPF_LD | BPF_W | BPF_ABS: a = the dword at byte k of struct seccomp_data
    "and": 0x54,    # BPF_ALU | BPF_AND | BPF_K: a &= k
    "shift": 0x74,  # BPF_ALU | BPF_RSH | BPF_K: a >>= k
    "equal": 0x15,  # BPF_JMP | BPF_JEQ | BPF_K: to `yes` where a == k, else to `no`
    "result": 0x06,  # BPF_RET | BPF_K
}
_FILTER = struct.Struct("<HBBI")  # struct sock_filter: code, jt, jf, k
FARTHEST = 255  # instructions that a jump skips


@dataclass(frozen=True)
class Line:
    """`yes` and `no` are labels, "" is the next line."""

    code: str
    k: int
    yes: str = ""
    no: str = ""
    label: str = ""


def load(offset: int) -> Line:
    return Line("load", offset)


def mask(bits: int) -> Line:
    return Line("and", bits)


def shift(bits: int) -> Line:
    return Line("shift", bits)


def equal(value: int, yes: str = "", no: str = "") -> Line:
    return Line("equal", value, yes, no)


def result(value: int) -> Line:
    return Line("result", value)


def at(label: str, line: Line) -> Line:
    """`line` under a name."""
    return replace(line, label=label)


def assemble(lines: Sequence[Line]) -> bytes:
    """The program's bytes. Raises ValueError for a label that is missing, behind, or too far ahead."""
    places = {line.label: n for n, line in enumerate(lines) if line.label}

    def distance(label: str, here: int) -> int:
        if not label:
            return 0
        if not here < places.get(label, -1) <= here + 1 + FARTHEST:
            raise ValueError(f"line {here} can't jump to {label!r}")
        return places[label] - here - 1
    return b"".join(_FILTER.pack(CODES[line.code], distance(line.yes, n), distance(line.no, n), line.k)
                    for n, line in enumerate(lines))
