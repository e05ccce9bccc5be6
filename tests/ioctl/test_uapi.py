"""Request numbers, decoding, and pointers into memory. The witness is asm-generic/ioctl.h's layout, written out here."""

from __future__ import annotations

import struct

import pytest

from devrt.ioctl.drm import DRM, driver_of
from devrt.ioctl.kfd import KFD, version
from devrt.ioctl.machine import MachineSystem
from devrt.ioctl.tables import TABLES
from devrt.ioctl.uapi import BARE, IO, IOR, IOW, IOWR, Pointer, Uapi, pointed_ranges, table_for

TOY = Uapi(name="toy", header="toy.h", nodes=("/dev/toy*",), magic=ord("t"), structs="""
struct toy_point { uint32_t x; uint16_t y[2]; };
struct toy_move { struct toy_point from; uint64_t list; uint32_t count; char name[4]; };
""", ioctls={
    "TOY_RESET": IO(1), "TOY_READ": IOR(2, "toy_point"), "TOY_WRITE": IOW(3, "toy_point"),
    "TOY_MOVE": IOWR(4, "toy_move", Pointer("list", "count", element=8)), "TOY_BARE": BARE(0x30000001, "toy_point")})


@pytest.mark.parametrize(("name", "request_number"), [
    ("TOY_RESET", 0x00007401), ("TOY_READ", 0x80087402), ("TOY_WRITE", 0x40087403), ("TOY_MOVE", 0xC0187404),
    ("TOY_BARE", 0x30000001)])
def test_request_numbers(name: str, request_number: int) -> None:
    assert TOY.request(name) == request_number
    assert TOY.find(request_number) == name


def test_requests_read_from_public_traces() -> None:
    assert KFD.request("AMDKFD_IOC_GET_VERSION") == 0x80084B01
    assert DRM.request("DRM_IOCTL_VERSION") == 0xC0406400
    assert DRM.request("DRM_IOCTL_GET_CAP") == 0xC010640C


def test_decode_nested_arrays_and_text() -> None:
    data = struct.pack("<IHHQI4s", 7, 8, 9, 0x1234, 2, b"ab\0\0")
    decoded = TOY.decode(TOY.request("TOY_MOVE"), data)
    assert decoded is not None and decoded.name == "TOY_MOVE"
    assert decoded.fields["from"] == {"x": 7, "y": [8, 9]}
    assert decoded.fields["list"] == 0x1234 and decoded.fields["count"] == 2


def test_a_struct_that_grew_is_still_that_ioctl_and_missing_bytes_are_zero() -> None:
    smaller = TOY.request("TOY_MOVE") & ~(0x3FFF << 16) | 8 << 16
    decoded = TOY.decode(smaller, struct.pack("<IHH", 1, 2, 3))
    assert decoded is not None and decoded.name == "TOY_MOVE" and decoded.fields["count"] == 0


def test_an_unknown_request_has_no_name() -> None:
    assert TOY.find(0x7455) is None and TOY.decode(0x7455, b"") is None


def test_fields_out_of_range_are_refused() -> None:
    with pytest.raises(OverflowError):
        TOY.new("toy_point", x=1 << 32)


def test_pointed_ranges_count_elements_and_leave_out_null() -> None:
    request = TOY.request("TOY_MOVE")
    assert pointed_ranges(TOY, request, struct.pack("<8xQI4x", 0x5000, 3)) == {"list": (0x5000, 24)}
    assert pointed_ranges(TOY, request, struct.pack("<8xQI4x", 0, 3)) == {}


def test_a_table_is_found_by_node_and_request() -> None:
    assert table_for(TABLES, "/dev/kfd", 0x80084B01) is KFD
    assert table_for(TABLES, "/dev/dri/renderD128", 0xC0406400) is DRM
    assert table_for(TABLES, "/dev/kfd", 0xC0406400) is None


def test_typed_calls_read_what_the_driver_wrote() -> None:
    system = MachineSystem({
        "nodes": {"/dev/kfd": {"mode": 0o666}, "/dev/dri/renderD128": {"mode": 0o666}},
        "answers": {"/dev/kfd": {"AMDKFD_IOC_GET_VERSION": {"major_version": 1, "minor_version": 14}},
                    "/dev/dri/renderD128": {"DRM_IOCTL_VERSION": {"version_major": 3, "version_minor": 54, "name": "amdgpu"}}}})
    assert version(system, system.open("/dev/kfd", 2)) == (1, 14)
    assert driver_of(system, system.open("/dev/dri/renderD128", 2)) == ("amdgpu", (3, 54, 0))
