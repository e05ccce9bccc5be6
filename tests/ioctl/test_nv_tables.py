"""Choosing a branch's tables and a GPU's classes, and calls of NVIDIA's driver decoded, recorded and replayed."""

from __future__ import annotations

import io
from typing import cast

import pytest

from devrt.device import DriverMismatch, Unsupported
from devrt.ioctl.nv_alloc import ATTR, EngineType, copy_engine, flag, flags
from devrt.ioctl.nv_classes import CHIPS, Class, choose
from devrt.ioctl.nv_status import status_name
from devrt.ioctl.nv_versions import BRANCHES, VERSION_FILE, running_version, tables_for
from devrt.ioctl.nvrm import NVRM, card_info
from devrt.ioctl.recording import RecordingSystem
from devrt.ioctl.replaying import ReplayingSystem
from devrt.ioctl.system import Argument, System, view
from devrt.ioctl.tables import TABLES
from devrt.ioctl.uapi import pointed_ranges, table_for
from devrt.ioctl.uvm import UVM

OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.105.08  Release Build\nGCC version: gcc 12\n"


def test_a_branch_has_one_table() -> None:
    assert tables_for("570.86.10") is tables_for("570.211.01") is not tables_for("580.65.06")
    assert [tables_for(f"{branch}.1").branch for branch in BRANCHES] == list(BRANCHES)


@pytest.mark.parametrize("version", ["550.54.15", "612.1", "garbage", ""])
def test_an_unknown_branch_names_itself_and_the_known_ones(version: str) -> None:
    with pytest.raises(DriverMismatch) as caught:
        tables_for(version)
    assert f"running: {version}; known branches: 570, 580, 590, 595, 610" in str(caught.value)


def test_the_running_version_is_read_from_the_drivers_text() -> None:
    assert running_version(OPEN) == "580.105.08"
    with pytest.raises(DriverMismatch):
        running_version("nothing")


@pytest.mark.parametrize(("chip", "want"), [
    ("TU104", (0xC461, 0xC46F, 0xC5C0, 0xC5B5)), ("GA100", (0xC561, 0xC56F, 0xC6C0, 0xC6B5)),
    ("GA102", (0xC561, 0xC56F, 0xC7C0, 0xC7B5)), ("AD102", (0xC561, 0xC56F, 0xC9C0, 0xC7B5)),
    ("GH100", (0xC661, 0xC86F, 0xCBC0, 0xC8B5)), ("GB100", (0xC661, 0xC96F, 0xCDC0, 0xC9B5)),
    ("GB202", (0xC761, 0xCA6F, 0xCEC0, 0xCAB5))])
def test_the_newest_class_of_each_kind_is_chosen(chip: str, want: tuple[int, ...]) -> None:
    generation = CHIPS[chip]
    listed = {*generation.usermode, *generation.channel, generation.compute, *generation.copy, Class.GT200_DEBUGGER}
    chosen = choose(listed)
    assert (chosen.usermode, chosen.channel, chosen.compute, chosen.copy) == want


def test_a_gpu_without_a_known_class_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="C3C0"):
        choose({0xC361, 0xC36F, 0xC3C0, 0xC3B5})


def test_flag_words_and_engines() -> None:
    word = flags(ATTR, LOCATION="PCI", PAGE_SIZE="4KB", COHERENCY="CACHED")
    assert word == 1 << 25 | 1 << 23 | 1 << 29
    assert flag(ATTR, "LOCATION", word) == 1 and flag(ATTR, "PHYSICALITY", word) == 0
    assert (copy_engine(9), copy_engine(10)) == (0x12, 0x34) and EngineType.COPY19 == 0x3D
    assert status_name(0x1F) == "NV_ERR_INVALID_ARGUMENT" and status_name(0x4242) == "status 0x4242"


def test_nodes_tell_the_two_drivers_apart() -> None:
    assert table_for(TABLES, "/dev/nvidiactl", NVRM.request("NV_ESC_RM_CONTROL")) is NVRM
    assert table_for(TABLES, "/dev/nvidia3", NVRM.request("NV_ESC_REGISTER_FD")) is NVRM
    assert table_for(TABLES, "/dev/nvidia-uvm", 0x30000001) is UVM
    assert NVRM.request("NV_ESC_RM_ALLOC") == 0xC030462B and UVM.request("UVM_MAP_EXTERNAL_ALLOCATION") == 33


# ---------------------------------------------------------------------------------------------------------------------
# Pointers inside pointers


class Rm:
    """A System with one node: class lists of three, and allocations that are given handle 7."""

    def open(self, path: str, flags: int) -> int:
        return 5

    def read_text(self, path: str, limit: int = 0) -> str:
        return OPEN

    def ioctl(self, fd: int, request: int, argument: Argument) -> int:
        assert not isinstance(argument, int)
        name, data = NVRM.find(request), memoryview(argument).cast("B")
        if name == "NV_ESC_CARD_INFO":
            data[72 * 2] = 1
            data[72 * 2 + 56] = 4
            return 0
        fields = NVRM.fields(NVRM.ioctls[str(name)].struct, bytes(data))
        if name == "NV_ESC_RM_CONTROL":
            count, address = NVRM.fields("NV0080_CTRL_GPU_GET_CLASSLIST_PARAMS", bytes(view(fields["params"], 16))).values()
            view(fields["params"], 4)[:] = (3).to_bytes(4, "little")
            if address:
                view(address, 4 * count)[:] = b"".join(one.to_bytes(4, "little") for one in (0xC86F, 0xCBC0, 0xC8B5))[:4 * count]
        else:
            data[8:12] = (7).to_bytes(4, "little")
        return 0


def class_list(system: System, fd: int) -> list[int]:
    words = NVRM.ffi.new("uint32_t[3]")
    params = NVRM.new("NV0080_CTRL_GPU_GET_CLASSLIST_PARAMS", numClasses=3,
                      classList=int(NVRM.ffi.cast("uintptr_t", words)))
    NVRM.call(system, fd, "NV_ESC_RM_CONTROL", hClient=1, hObject=2, cmd=0x800201, paramsSize=16,
              params=int(NVRM.ffi.cast("uintptr_t", params)))
    assert params.classList == int(NVRM.ffi.cast("uintptr_t", words))
    return list(words)


def allocate(system: System, fd: int) -> int:
    params = NVRM.new("NV2080_ALLOC_PARAMETERS", subDeviceId=3)
    answer = NVRM.call(system, fd, "NV_ESC_RM_ALLOC", hRoot=1, hObjectParent=2, hClass=0x2080,
                       pAllocParms=int(NVRM.ffi.cast("uintptr_t", params)))
    return int(answer.hObjectNew)


def test_calls_are_recorded_with_what_their_pointers_lead_to_and_replayed_elsewhere() -> None:
    sink = io.StringIO()
    recorder = RecordingSystem(cast(System, Rm()), sink)
    assert recorder.tables[-2:] == tables_for("580.1").uapis  # those of the driver that runs
    recorder.read_text(VERSION_FILE)
    fd = recorder.open("/dev/nvidiactl", 2)
    assert class_list(recorder, fd) == [0xC86F, 0xCBC0, 0xC8B5]
    assert allocate(recorder, fd) == 7
    control, alloc = recorder.calls[2:]
    assert control.decoded["before"]["cmd"] == "NV0080_CTRL_CMD_GPU_GET_CLASSLIST"
    assert control.decoded["after"]["params.numClasses"] == 3 and control.decoded["after"]["status"] == "NV_OK"
    assert control.out["pointed"]["params.classList"] == "6fc80000c0cb0000b5c80000"
    assert alloc.decoded["before"]["pAllocParms.subDeviceId"] == 3  # as long as the class says, for paramsSize is 0
    assert "NV0080_CTRL_CMD_GPU_GET_CLASSLIST" in str(control)

    replay = ReplayingSystem(recorder.calls)
    assert replay.tables[-2:] == recorder.tables[-2:]
    fd = replay.open("/dev/nvidiactl", 2)
    kept = NVRM.ffi.new("char[4096]")  # so that nothing lies where it lay
    assert class_list(replay, fd) == [0xC86F, 0xCBC0, 0xC8B5]
    assert allocate(replay, fd) == 7 and not replay.left()
    assert kept[0] == b"\0"


def test_pointers_that_lead_nowhere_are_left_for_the_driver_to_refuse() -> None:
    params = NVRM.new("NVOS54_PARAMETERS", cmd=0x800201, params=8, paramsSize=16)
    ranges = pointed_ranges(NVRM, NVRM.request("NV_ESC_RM_CONTROL"), bytes(NVRM.ffi.buffer(params)))
    assert ranges == {"params": (8, 16)}


def test_cards_are_the_valid_entries() -> None:
    assert [row["minor_number"] for row in card_info(cast(System, Rm()), 5)] == [4]
