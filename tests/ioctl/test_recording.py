"""Record a machine, replay it, and get the same answers; anything else is an error that names the nearest call."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from devrt.device import InvalidArgument
from devrt.ioctl.drm import DRM, driver_of
from devrt.ioctl.kfd import KFD, version
from devrt.ioctl.machine import MachineSystem
from devrt.ioctl.recording import RecordingSystem, load
from devrt.ioctl.replaying import ReplayingSystem
from devrt.ioctl.system import MAP_PRIVATE, PROT_READ, PROT_WRITE, LinuxSystem, System, parse_log, view

MACHINE = {
    "host": {"user": "ada", "groups": [1000, 105]},
    "files": {"/proc/cmdline": "quiet", "/sys/a/b": "1", "/proc/empty": ""},
    "links": {"/sys/link": "a"},
    "nodes": {"/dev/kfd": {"mode": 0o660, "gid": 105, "rdev": [235, 0]}, "/dev/dri/renderD128": {"mode": 0o666}},
    "refused": {"/sys/secret": "EACCES"},
    "answers": {"/dev/kfd": {"AMDKFD_IOC_GET_VERSION": {"major_version": 1, "minor_version": 14}},
                "/dev/dri/renderD128": {"DRM_IOCTL_VERSION": {"version_major": 3, "version_minor": 54, "name": "amdgpu"},
                                        "DRM_IOCTL_GET_CAP": "EINVAL"}},
    "log": "<3>[    1.500000] amdgpu: trouble",
}


def visit(system: System) -> list[object]:
    """Ask a machine everything a System can be asked, and keep the answers."""
    answers: list[object] = [
        system.host(), system.kernel_log(), system.read_text("/proc/cmdline"), system.read_bytes("/sys/link/b", 10),
        system.list_dir("/sys"), system.stat("/dev/kfd"), system.stat("/nowhere"), system.access("/dev/kfd", os.R_OK),
        system.access("/dev/none", os.R_OK), system.read_text("/proc/empty"), system.readlink("/sys/link")]
    for refuse in (lambda: system.read_text("/sys/secret"), lambda: system.open("/dev/none", os.O_RDWR)):
        with pytest.raises(OSError) as raised:
            refuse()
        answers.append((raised.value.errno, raised.value.filename))
    kfd, render = system.open("/dev/kfd", os.O_RDWR), system.open("/dev/dri/renderD128", os.O_RDWR)
    answers += [version(system, kfd), driver_of(system, render)]
    with pytest.raises(OSError) as raised:
        DRM.call(system, render, "DRM_IOCTL_GET_CAP", capability=5)
    answers.append(raised.value.errno)
    system.close(kfd)
    system.close(render)
    return answers


def test_a_replay_gives_the_recorded_answers(tmp_path: Path) -> None:
    recorder = RecordingSystem(MachineSystem(MACHINE))
    seen = visit(recorder)
    assert seen == visit(MachineSystem(MACHINE)), "recording changes nothing"
    recorder.save(tmp_path / "machine.jsonl")
    replay = ReplayingSystem(tmp_path / "machine.jsonl")
    assert visit(replay) == seen
    assert replay.left() == []


def test_calls_survive_json(tmp_path: Path) -> None:
    recorder = RecordingSystem(MachineSystem(MACHINE), sink := io.StringIO())
    visit(recorder)
    (tmp_path / "calls").write_text(sink.getvalue())
    assert load(tmp_path / "calls") == recorder.calls


def test_the_sink_has_each_call_when_it_ends(tmp_path: Path) -> None:
    with open(tmp_path / "calls", "w") as sink:
        RecordingSystem(MachineSystem(MACHINE), sink).read_text("/proc/cmdline")
        assert load(tmp_path / "calls")[0].result == "quiet"


def test_ioctls_are_decoded_by_name_and_field() -> None:
    recorder = RecordingSystem(MachineSystem(MACHINE))
    version(recorder, recorder.open("/dev/kfd", os.O_RDWR))
    call = recorder.calls[-1]
    assert call.decoded == {"name": "AMDKFD_IOC_GET_VERSION", "before": {"major_version": 0, "minor_version": 0},
                            "after": {"major_version": 1, "minor_version": 14}}
    assert str(call).startswith("ioctl(/dev/kfd, AMDKFD_IOC_GET_VERSION major_version=0 minor_version=0) = 0 major_version=1 ")


def test_memory_behind_pointers_is_recorded() -> None:
    recorder = RecordingSystem(MachineSystem(MACHINE))
    driver_of(recorder, recorder.open("/dev/dri/renderD128", os.O_RDWR))
    call = recorder.calls[-1]
    assert bytes.fromhex(call.arguments["pointed"]["name"]) == bytes(64)
    assert bytes.fromhex(call.out["pointed"]["name"]).rstrip(b"\0") == b"amdgpu"


def test_a_stray_pointer_is_recorded_not_followed() -> None:
    class Refuses(MachineSystem):
        def ioctl(self, fd: int, request: int, argument: object) -> int:
            raise OSError(14, "Bad address")

    recorder = RecordingSystem(Refuses(MACHINE))
    argument = DRM.new("drm_version", name=DRM.ffi.cast("char *", 0x1000), name_len=64)
    with pytest.raises(OSError, match="Bad address"):
        recorder.ioctl(recorder.open("/dev/dri/renderD128", os.O_RDWR), DRM.request("DRM_IOCTL_VERSION"),
                       memoryview(DRM.ffi.buffer(argument)))
    assert recorder.calls[-1].arguments["pointed"] == {"name": None}
    assert recorder.calls[-1].errno == 14


def test_a_call_that_was_not_recorded_names_the_nearest() -> None:
    recorder = RecordingSystem(MachineSystem(MACHINE))
    recorder.read_text("/proc/cmdline")
    recorder.read_text("/sys/a/b")
    replay = ReplayingSystem(recorder.calls)
    with pytest.raises(InvalidArgument) as raised:
        replay.read_text("/proc/cmdlime")
    assert "asked: read_text(/proc/cmdlime, 1048576); nearest recorded: read_text(/proc/cmdline, 1048576) = 'quiet'" \
        in raised.value.evidence


def test_an_ioctl_that_was_not_recorded_is_named_with_its_fields() -> None:
    recorder = RecordingSystem(MachineSystem(MACHINE))
    fd = recorder.open("/dev/kfd", os.O_RDWR)
    version(recorder, fd)
    replay = ReplayingSystem(recorder.calls)
    fd = replay.open("/dev/kfd", os.O_RDWR)
    with pytest.raises(InvalidArgument, match="AMDKFD_IOC_GET_VERSION major_version=9"):
        KFD.call(replay, fd, "AMDKFD_IOC_GET_VERSION", major_version=9)


def test_acting_more_often_than_recorded_is_an_error_but_asking_is_not() -> None:
    recorder = RecordingSystem(MachineSystem(MACHINE))
    recorder.open("/dev/kfd", os.O_RDWR)
    recorder.host()
    replay = ReplayingSystem(recorder.calls)
    assert replay.host() == replay.host()
    replay.open("/dev/kfd", os.O_RDWR)
    with pytest.raises(InvalidArgument, match="more often"):
        replay.open("/dev/kfd", os.O_RDWR)


def test_two_opens_of_one_node_are_kept_apart() -> None:
    class Counts(MachineSystem):
        answered = 0

        def ioctl(self, fd: int, request: int, argument: object) -> int:
            assert isinstance(argument, memoryview)
            Counts.answered += 1
            argument[:8] = bytes([Counts.answered, 0, 0, 0, 0, 0, 0, 0])
            return 0

    recorder = RecordingSystem(Counts(MACHINE))
    first, second = (recorder.open("/dev/kfd", os.O_RDWR) for _ in range(2))
    assert [version(recorder, first)[0], version(recorder, second)[0]] == [1, 2]
    replay = ReplayingSystem(recorder.calls)
    first, second = (replay.open("/dev/kfd", os.O_RDWR) for _ in range(2))
    assert [version(replay, second)[0], version(replay, first)[0]] == [2, 1], "by what was asked, not by when"


def test_real_memory_recorded_and_replayed() -> None:
    recorder = RecordingSystem(LinuxSystem())
    systems: list[System] = [recorder]
    for system in systems:
        address = system.mmap(-1, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE)
        view(address, 8192)[:3] = b"abc"
        system.mprotect(address, 4096, PROT_READ)
        system.munmap(address, 8192)
        if len(systems) == 1:
            systems.append(ReplayingSystem(recorder.calls))
    assert [call.name for call in recorder.calls] == ["mmap", "mprotect", "munmap"]


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text('{"name": "host", "arguments": {}}\nhello\n')
    with pytest.raises(InvalidArgument, match="line 2"):
        load(tmp_path / "notes")


def test_a_recorded_log_comes_back_as_lines() -> None:
    recorder = RecordingSystem(MachineSystem(MACHINE))
    assert ReplayingSystem([recorder.calls[-1]] if recorder.kernel_log() else []).kernel_log() == parse_log(MACHINE["log"])  # type: ignore[arg-type]
