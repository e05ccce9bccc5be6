"""Address spaces with pages of another process: reads and writes across both kinds, and pages that went away."""

from __future__ import annotations

import errno

import pytest

from devrt.ioctl.system import LinuxSystem
from devrt.virtual.errors import fail
from devrt.virtual.foreign import ProcessSpace
from devrt.virtual.memory import PAGE, Access, MemoryFault, PageFile, map_file

VA, THERE = 0x5000_0000_0000, 0x7000_0000_0000


class Other:
    """Memory of another process: one page, at THERE."""

    def __init__(self) -> None:
        self.page = bytearray(PAGE)

    def read(self, address: int, nbytes: int) -> bytes:
        return bytes(self.page[address - THERE:address - THERE + nbytes]) if self.page else fail(errno.EFAULT)

    def write(self, address: int, data: bytes) -> None:
        if not self.page:
            fail(errno.EFAULT)
        self.page[address - THERE:address - THERE + len(data)] = data


def test_pages_here_and_there() -> None:
    system, other, file = LinuxSystem(), Other(), PageFile("test", 4 * PAGE)
    space = ProcessSpace(system, other)
    space.map(VA, map_file(system, file, file.take(PAGE), PAGE), PAGE, Access.WRITE)
    space.map(VA + PAGE, THERE, PAGE, Access.WRITE | Access.FOREIGN)
    space.write(VA + PAGE - 4, b"12345678")
    assert space.read(VA + PAGE - 4, 8) == b"12345678" and other.page[:4] == b"5678"
    other.page.clear()
    for act, access in ((lambda: space.read(VA + PAGE, 4), "read"), (lambda: space.write(VA + PAGE, b"1"), "write")):
        with pytest.raises(MemoryFault, match="unmapped") as caught:
            act()
        assert (caught.value.va, caught.value.access) == (VA + PAGE, access)
    assert space.read(VA + PAGE - 4, 4) == b"1234"
    space.close()
    file.close()
