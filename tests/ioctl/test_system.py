"""The real System: what it says of this machine, and what its errors are."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from devrt.device import DeviceNotFound, DevrtError, DriverMismatch, PermissionDenied
from devrt.ioctl.errors import devrt_error, errno_name, reported_as
from devrt.ioctl.system import MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, LinuxSystem, LogLine, parse_log, peek, view
from tests.garbage import collect


@pytest.fixture
def system() -> LinuxSystem:
    return LinuxSystem()


def test_host_is_this_process(system: LinuxSystem) -> None:
    host = system.host()
    assert (host.uid, host.release, host.machine) == (os.geteuid(), os.uname().release, os.uname().machine)
    assert set(host.affinity) == os.sched_getaffinity(0)


def test_files(system: LinuxSystem, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"\xff12345")
    (tmp_path / "a").symlink_to("b")
    assert system.list_dir(str(tmp_path)) == ["a", "b"]
    assert system.read_bytes(str(tmp_path / "a"), 3) == b"\xff12"
    assert system.read_text(str(tmp_path / "b")) == "\ufffd12345"
    assert system.readlink(str(tmp_path / "a")) == "b"
    assert not system.stat(str(tmp_path / "b" / "c")).exists


def test_nodes(system: LinuxSystem) -> None:
    null = system.stat("/dev/null")
    assert null.is_device and null.rdev == (1, 3)
    assert system.access("/dev/null", os.R_OK | os.W_OK)
    fd = system.open("/dev/null", os.O_RDWR)
    try:
        assert not os.get_inheritable(fd)
        with pytest.raises(OSError) as raised:
            system.ioctl(fd, 0x80084B01, bytearray(8))
        assert raised.value.errno == errno.ENOTTY
    finally:
        system.close(fd)


def test_a_failed_ioctl_lets_go_of_its_argument(system: LinuxSystem) -> None:
    """Its owner can release it while the failure is handled, and the failure may be part of a cycle."""
    argument, fd = bytearray(8), system.open("/dev/null", os.O_RDWR)
    try:
        for _ in range(4):
            with memoryview(argument) as data, pytest.raises(OSError) as raised:
                system.ioctl(fd, 0x80084B01, data)
            raised.value.again = raised.value  # type: ignore[attr-defined]
            del raised
            argument.append(0)  # BufferError while anything exports it
            collect()
    finally:
        system.close(fd)
    assert len(argument) == 12


def test_an_ioctl_writes_into_the_buffer(system: LinuxSystem) -> None:
    """FIONREAD of a pipe (asm-generic/ioctls.h) is how many bytes wait in it."""
    reader, writer = os.pipe()
    try:
        os.write(writer, b"12345")
        argument = bytearray(4)
        system.ioctl(reader, 0x541B, argument)
        assert int.from_bytes(argument, "little") == 5
    finally:
        os.close(reader)
        os.close(writer)


def test_memory(system: LinuxSystem) -> None:
    address = system.mmap(-1, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE)
    view(address, 8192)[4000:4003] = b"abc"
    assert peek(address + 4000, 3) == b"abc"
    system.mprotect(address, 4096, PROT_NONE)
    system.munmap(address, 8192)
    assert peek(address, 16) is None
    with pytest.raises(OSError):
        system.mmap(-1, 0, PROT_READ, MAP_PRIVATE)


def test_peek_at_nothing() -> None:
    assert peek(0, 8) is None
    assert peek((1 << 64) - 8, 8) is None


def test_log_lines_with_and_without_level_and_caller() -> None:
    text = "<3>[    1.250000] amdgpu: ring gfx timeout\n more of it\n[  12.5] plain\n<6>[    2.000000][  T1] with caller"
    assert parse_log(text) == [LogLine(3, 1.25, "amdgpu: ring gfx timeout"), LogLine(3, 1.25, " more of it"),
                               LogLine(6, 12.5, "plain"), LogLine(6, 2.0, "with caller")]


@pytest.mark.parametrize(("number", "kind"), [(errno.EACCES, PermissionDenied), (errno.ENOENT, DeviceNotFound),
                                               (errno.ENOTTY, DriverMismatch), (errno.EBUSY, DevrtError)])
def test_an_errno_becomes_the_error_it_means(number: int, kind: type[DevrtError]) -> None:
    error = devrt_error(OSError(number, os.strerror(number), "/dev/kfd"), "the device could not be opened")
    assert type(error) is kind and error.remedy
    assert error.evidence == f"{errno_name(number)} on /dev/kfd: {os.strerror(number)}"


def test_reported_as_says_what_was_being_done() -> None:
    with pytest.raises(PermissionDenied, match="opening the GPU") as raised, reported_as("opening the GPU", remedy="ask"):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert raised.value.remedy == "ask"
    assert errno_name(524) == "ENOTSUPP" and errno_name(9999) == "errno 9999"
