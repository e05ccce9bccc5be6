"""Address spaces of virtual GPUs: what a driver's threads do to one while its GPU runs."""

from __future__ import annotations

import threading

from devrt.ioctl.system import LinuxSystem
from devrt.virtual.memory import PAGE, Access, AddressSpace, PageFile, map_file

_SPAN = 1 << 24  # bytes that one table of pages holds


def test_memory_is_mapped_while_a_launch_gives_way() -> None:
    """Tables come into being while the GPU looks which pages were touched."""
    system = LinuxSystem()
    file = PageFile("page", PAGE)
    host = map_file(system, file, 0, PAGE)
    for _ in range(6):
        space = AddressSpace(system)

        def mapped(space: AddressSpace = space) -> None:
            for n in range(1, 2000):
                space.map(n * _SPAN, host, PAGE, Access.WRITE | Access.DIRTY)
        driver = threading.Thread(target=mapped)
        driver.start()
        seen = []
        while driver.is_alive():
            seen += space.touched()
        driver.join()
        seen += space.touched()
        assert sorted(va for va, _, _ in seen) == [n * _SPAN for n in range(1, 2000)]
        space.close()
    system.munmap(host, PAGE)
    file.close()
