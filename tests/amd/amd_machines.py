"""What several tests of AMD devices use."""

from __future__ import annotations

import os

TARGETS = ("gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    """Bytes of this process's addresses that a driver gave; other mappings come and go with threads."""
    with open("/proc/self/maps") as file:
        ranges = [line.split()[0].split("-") for line in file if "memfd:" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)
