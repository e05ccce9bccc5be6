"""The rules of a described machine: links, permissions, refusals. Where it can, the real kernel is the second judge."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from devrt.device import InvalidArgument
from devrt.ioctl import amdgpu
from devrt.ioctl.machine import MachineSystem
from devrt.ioctl.system import LinuxSystem, System

DEVICE = "/sys/devices/pci0000:00/0000:00:01.0/0000:03:00.0"
MACHINE = MachineSystem({
    "files": {f"{DEVICE}/vendor": "0x1002", "/sys/locked/inside": "x", "/sys/number": 7},
    "links": {"/sys/bus/pci/devices/0000:03:00.0": "../../../devices/pci0000:00/0000:00:01.0/0000:03:00.0",
              f"{DEVICE}/driver": "../../../../bus/pci/drivers/amdgpu", "/sys/loop": "loop", "/sys/dangling": "/nothing"},
    "nodes": {"/dev/kfd": {"mode": 0o660, "gid": 105}, "/dev/open": {"mode": 0o666, "open": "EPERM"},
              "/dev/mine": {"mode": 0o600, "uid": 1000}},
    "refused": {"/sys/locked": "EACCES", "/sys/broken": "EIO"},
    "answers": {"/dev/mine": {}}, "log": "EPERM"})


def number_of(call: object, *arguments: object) -> int:
    with pytest.raises(OSError) as raised:
        call(*arguments)  # type: ignore[operator]
    return raised.value.errno or 0


def test_links_are_followed_anywhere_in_a_path() -> None:
    assert MACHINE.read_text("/sys/bus/pci/devices/0000:03:00.0/vendor") == "0x1002"
    assert MACHINE.readlink("/sys/bus/pci/devices/0000:03:00.0/driver").endswith("/amdgpu")
    assert "0000:03:00.0" in MACHINE.list_dir("/sys/bus/pci/devices")
    assert number_of(MACHINE.read_text, "/sys/loop/x") == errno.ELOOP
    assert not MACHINE.stat("/sys/dangling").exists


def test_refused_paths_refuse_what_is_below_them_and_can_be_seen() -> None:
    assert number_of(MACHINE.list_dir, "/sys/locked") == errno.EACCES
    assert number_of(MACHINE.read_text, "/sys/locked/inside") == errno.EACCES
    assert number_of(MACHINE.read_text, "/sys/broken") == errno.EIO
    assert MACHINE.stat("/sys/locked").exists and "locked" in MACHINE.list_dir("/sys")
    assert number_of(MACHINE.kernel_log) == errno.EPERM


def test_permission_bits_count_for_owner_group_and_others() -> None:
    assert not MACHINE.access("/dev/kfd", os.R_OK)
    assert number_of(MACHINE.open, "/dev/kfd", os.O_RDWR) == errno.EACCES
    member = MachineSystem({"host": {"groups": [105]}, "nodes": {"/dev/kfd": {"mode": 0o660, "gid": 105}}})
    assert member.access("/dev/kfd", os.R_OK | os.W_OK)
    assert MachineSystem({"host": {"uid": 0}, "nodes": {"/dev/kfd": {"mode": 0o000}}}).access("/dev/kfd", os.W_OK)
    assert MACHINE.access("/dev/open", os.W_OK)
    assert number_of(MACHINE.open, "/dev/open", os.O_RDWR) == errno.EPERM, "a device cgroup"


def test_nodes_are_devices_and_answer_only_what_they_are_told() -> None:
    assert stat.S_ISCHR(MACHINE.stat("/dev/kfd").mode) and MACHINE.stat("/dev/kfd").is_device
    fd = MACHINE.open("/dev/mine", os.O_RDWR)
    assert number_of(MACHINE.ioctl, fd, 0x80084B01, bytearray(8)) == errno.ENOTTY
    MACHINE.close(fd)
    assert number_of(MACHINE.close, fd) == errno.EBADF
    assert number_of(MACHINE.ioctl, fd, 0x80084B01, bytearray(8)) == errno.EBADF


@pytest.fixture
def both(tmp_path: Path) -> list[tuple[System, str]]:
    """The same small tree on disk and in a description."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("text")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "round").symlink_to("round")
    described = MachineSystem({"files": {"/t/folder/file": "text"}, "links": {"/t/link": "folder", "/t/round": "round"}})
    return [(LinuxSystem(), str(tmp_path)), (described, "/t")]


def test_the_same_as_a_real_file_system(both: list[tuple[System, str]]) -> None:
    def ask(system: System, top: str) -> list[object]:
        answers: list[object] = []
        for path in ("folder", "folder/file", "folder/none", "folder/file/none", "link", "link/file", "link/../link/file",
                     "round/x", "none/none"):
            for method in (system.read_text, system.list_dir, system.readlink):
                try:
                    answers.append((path, method.__name__, method(f"{top}/{path}")))
                except OSError as error:
                    answers.append((path, method.__name__, errno.errorcode[error.errno or 0]))
            if path != "round/x":
                answers.append((path, stat.S_IFMT(system.stat(f"{top}/{path}").mode)))
        return answers

    real, described = (ask(system, top) for system, top in both)
    assert real == described


def test_a_description_with_a_mistake_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no section colour"):
        MachineSystem({"colour": "blue"})
    with pytest.raises(InvalidArgument, match="field"):
        MachineSystem({"host": {"shoe_size": 43}})
    (tmp_path / "bad.yaml").write_text("files: [")
    with pytest.raises(InvalidArgument, match="no YAML"):
        MachineSystem.load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(InvalidArgument, match="describes no machine"):
        MachineSystem.load(tmp_path / "list.yaml")


def test_files_and_answers_of_bytes_and_answers_by_question() -> None:
    rows = [{"when": {"query": 31}, "return_pointer": {"hex": "07000000"}}, {"when": {"query": 5}, "return_pointer": "12345678"}]
    machine = MachineSystem({"files": {"/metrics": {"hex": "7800 0103 ff"}}, "nodes": {"/dev/dri/renderD128": {"mode": 0o666}},
                             "answers": {"/dev/dri/renderD128": {"DRM_IOCTL_AMDGPU_INFO": rows}}})
    assert machine.read_bytes("/metrics") == b"\x78\0\x01\x03\xff"
    fd = machine.open("/dev/dri/renderD128", os.O_RDWR)
    assert amdgpu.info(machine, fd, amdgpu.Query.VRAM_LOST_COUNTER) == 7
    assert amdgpu.info(machine, fd, amdgpu.Query.TIMESTAMP) == int.from_bytes(b"12345678", "little")
    assert number_of(amdgpu.info, machine, fd, amdgpu.Query.HW_IP_COUNT) == errno.EINVAL
