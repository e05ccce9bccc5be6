"""Typed calls on AMD's two drivers, against a System that answers as the kernel does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import cast

from devrt.ioctl import amdgpu, kfd
from devrt.ioctl.amdgpu import AMDGPU, Query
from devrt.ioctl.kfd import KFD, MmapType, SvmAttribute, SvmOp
from devrt.ioctl.system import Argument, System, view
from devrt.ioctl.tables import TABLES
from devrt.ioctl.uapi import pointed_ranges, table_for


class Answering:
    """A System of one ioctl."""

    def __init__(self, answer: Callable[[int, memoryview], None]) -> None:
        self.answer = answer

    def ioctl(self, fd: int, request: int, argument: Argument) -> int:
        assert not isinstance(argument, int)
        self.answer(request, memoryview(argument).cast("B"))
        return 0


def answering(answer: Callable[[int, memoryview], None]) -> System:
    return cast(System, Answering(answer))


def test_mmap_offsets_as_a_recorded_driver_gave_them() -> None:
    assert kfd.mmap_offset(MmapType.DOORBELL, 0x433D, 8) == 0xD0CF400000000008
    assert kfd.split_mmap_offset(0xD0CF400000000008) == (MmapType.DOORBELL, 0x433D, 8)


def test_svm_counts_its_attributes_in_the_request() -> None:
    def answer(request: int, argument: memoryview) -> None:
        assert request == 0xC0184B20 + (16 << 16) and len(argument) == 40
        assert struct.unpack_from("<QQII", argument) == (0x10000, 0x2000, 1, 2)
        struct.pack_into("<I", argument, 28, 7)

    pairs = [(int(SvmAttribute.PREFERRED_LOC), 0), (int(SvmAttribute.ACCESS), 5)]
    assert kfd.svm(answering(answer), 3, SvmOp.GET_ATTR, 0x10000, 0x2000, pairs) == [(0, 7), (2, 5)]


def test_info_reads_structs_and_numbers_and_leaves_what_the_kernel_lacks_zero() -> None:
    def answer(request: int, argument: memoryview) -> None:
        assert request == 0x40206445
        address, size, query = struct.unpack_from("<QII", argument)
        if query == Query.FW_VERSION:
            assert struct.unpack_from("<I", argument, 16) == (amdgpu.Firmware.GFX_MEC,)
            view(address, size)[:4] = struct.pack("<I", 2140)
        elif query == Query.VRAM_USAGE:
            view(address, size)[:] = struct.pack("<Q", 1 << 40)

    system = answering(answer)
    firmware = amdgpu.info(system, 3, Query.FW_VERSION, query_fw={"fw_type": amdgpu.Firmware.GFX_MEC})
    assert (firmware.ver, firmware.feature) == (2140, 0)
    assert amdgpu.info(system, 3, Query.VRAM_USAGE) == 1 << 40
    assert amdgpu.info(system, 3, Query.DEV_INFO).device_id == 0


def test_calls_of_both_drivers_on_one_node_are_told_apart() -> None:
    for name in AMDGPU.ioctls:
        assert table_for(TABLES, "/dev/dri/renderD128", AMDGPU.request(name)) is AMDGPU
    older = 0x40286448  # GEM_VA before it grew
    decoded = AMDGPU.decode(older, struct.pack("<IIIIQQQ", 3, 0, amdgpu.VaOp.MAP, 6, 0x1000, 0, 0x2000))
    assert decoded is not None and decoded.name == "DRM_IOCTL_AMDGPU_GEM_VA"
    assert decoded.fields["map_size"] == 0x2000 and decoded.fields["vm_timeline_point"] == 0


def test_unions_are_decoded_by_every_member() -> None:
    decoded = AMDGPU.decode(AMDGPU.request("DRM_IOCTL_AMDGPU_GEM_CREATE"), struct.pack("<QQQQ", 7, 4096, 4, 0))
    assert decoded is not None and decoded.fields["in"]["domains"] == 4 and decoded.fields["out"]["handle"] == 7


def test_a_mask_of_bits_points_to_whole_words() -> None:
    data = struct.pack("<IIQ", 1, 64, 0x5000)
    assert pointed_ranges(KFD, KFD.request("AMDKFD_IOC_SET_CU_MASK"), data) == {"cu_mask_ptr": (0x5000, 8)}
