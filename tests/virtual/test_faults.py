"""What can be injected, how it is written, and when it happens."""

from __future__ import annotations

import errno

import pytest

from devrt.device import InvalidArgument, parse_uri
from devrt.ioctl.errors import ENOTSUPP
from devrt.virtual import open_system
from devrt.virtual.faults import KINDS, Faults, inject, parse_query


def test_a_fault_happens_once_at_its_occasion() -> None:
    faults, _ = parse_query("hang@3&corrupt-copy")
    assert [faults.take("hang") for _ in range(5)] == [False, False, True, False, False]
    assert faults.take("corrupt-copy") and not faults.take("corrupt-copy")
    assert faults.taken == ["hang", "corrupt-copy"]


def test_faults_of_one_kind_add_up() -> None:
    faults, _ = parse_query("hang@1&hang@3")
    assert [faults.take("hang") for _ in range(4)] == [True, False, True, False]


def test_injected_later_counts_from_then() -> None:
    faults = Faults()
    faults.inject("reset@9")
    assert not any(faults.take("hang") for _ in range(5))
    faults.inject("hang@2")
    assert [faults.take("hang") for _ in range(3)] == [False, True, False]


def test_errnos() -> None:
    faults, _ = parse_query("errno=ENOMEM:ALLOC_MEMORY_OF_GPU@2&errno=ENOTSUPP:AMDKFD_IOC_CREATE_QUEUE")
    assert [faults.errno("AMDKFD_IOC_ALLOC_MEMORY_OF_GPU") for _ in range(3)] == [0, errno.ENOMEM, 0]
    assert faults.errno("AMDKFD_IOC_CREATE_QUEUE") == ENOTSUPP
    assert faults.errno("DRM_IOCTL_AMDGPU_INFO") == 0


def test_a_link_is_down_until_it_is_mended() -> None:
    faults, _ = parse_query("link-down")
    assert faults.link_down and faults.link_down
    faults.mend("link-down")
    assert not faults.link_down


def test_seeds_and_sizes() -> None:
    faults, sizes = parse_query("seed=7&vram=512M&gtt=1G")
    assert sizes == {"vram": 512 << 20, "gtt": 1 << 30}
    assert faults.random.random() == parse_query("seed=7")[0].random.random() != parse_query("seed=8")[0].random.random()
    assert parse_query("") and parse_query("")[1] == {}


@pytest.mark.parametrize("query", ["explode", "hang@0", "hang@", "errno=ENOSUCH:GET_VERSION", "errno=EIO", "seed=x", "vram=0",
                                   "vram=1T", "ram=1G", "hang@-1"])
def test_what_is_no_fault(query: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_query(query)
    assert all(kind in raised.value.remedy for kind in KINDS)


def test_by_uri_and_by_system() -> None:
    uri = "virtual:amd/gfx1030?seed=3"
    system = open_system(parse_uri(uri))
    try:
        inject(uri, "hang")
        inject(system, "ecc")
        assert system.faults.take("hang") and system.faults.take("ecc")
        with pytest.raises(InvalidArgument, match="no virtual device"):
            inject(object(), "hang")
    finally:
        system.shut_down()
