"""What several tests of AMD devices use."""

from __future__ import annotations

import os

TARGETS = ("gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    """Mappings of this process that a driver gave; others come and go with threads."""
    with open("/proc/self/maps") as file:
        return sum("memfd:" in line for line in file)
