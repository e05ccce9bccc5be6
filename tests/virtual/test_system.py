"""VirtualSystem: which paths are whose, descriptors that are real ones, and what the doctor says of such a machine."""

from __future__ import annotations

import errno
import os
import stat
import threading

import pytest

from devrt.device import DeviceNotFound, InvalidArgument, Unsupported, parse_uri
from devrt.doctor import Severity, diagnose
from devrt.ioctl.kfd import QueueType, ResetCause, ResetType
from devrt.ioctl.recording import RecordingSystem
from devrt.ioctl.system import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, LinuxSystem, view
from devrt.virtual import open_system
from devrt.virtual.system import VirtualSystem, make_system
from tests.virtual.amd.kfd_client import FakeEngine, client, machine, refused


@pytest.mark.parametrize(("topology", "gpus"), [("gfx1100", 1), ("2xgfx1100", 2), ("4xgfx942", 4), ("gfx90a", 1), ("gfx1030", 1),
                                                ("gfx1201", 1)])
def test_the_doctor_finds_the_machine_in_order(topology: str, gpus: int) -> None:
    with machine(topology) as system:
        findings = diagnose(system)
    ours = [finding for finding in findings if finding.check in ("gpu", "gpu-driver", "node", "kfd", "pcie-link", "host-window")]
    assert all(finding.severity is Severity.OK for finding in ours), [f.what for f in ours if f.severity is not Severity.OK]
    assert sum(finding.check == "kfd" for finding in ours) == gpus
    assert sum(finding.check == "node" for finding in ours) == gpus + 1
    assert any(topology.rpartition("x")[2] in finding.what for finding in ours if finding.check == "kfd")


def test_the_doctor_reads_the_virtual_log() -> None:
    with machine("gfx1100") as system, client(system) as made:
        made.create_queue(made.queue_fields(QueueType.SDMA))
        FakeEngine.made[0].queues[0].notify.hardware_exception(ResetType.WHOLE_GPU_RESET, ResetCause.ECC, True)
        text = " ".join(finding.what for finding in diagnose(system) if finding.severity is not Severity.OK)
    assert "failed beyond correction" in text and "was reset" in text


def test_paths() -> None:
    with machine("2xgfx1100") as system:
        assert system.list_dir("/dev/dri") == ["card0", "card1", "renderD128", "renderD129"]
        assert {"kfd", "dri", "null"} <= set(system.list_dir("/dev"))
        assert system.list_dir("/sys/class/kfd/kfd/topology/nodes") == ["0", "1", "2"]
        assert {"kfd", "drm"} <= set(system.list_dir("/sys/class"))
        assert system.read_text("/proc/version") == LinuxSystem().read_text("/proc/version")
        assert system.readlink("/sys/class/kfd/kfd") == "../../devices/virtual/kfd/kfd"
        assert system.readlink("/proc/self/exe") == os.readlink("/proc/self/exe")
        node = system.stat("/dev/dri/renderD129")
        assert node.is_device and node.rdev == (226, 129) and system.access("/dev/kfd", os.R_OK | os.W_OK)
        assert system.access("/sys/class/kfd/kfd/topology/generation_id", os.R_OK)
        assert not system.access("/sys/class/kfd/kfd/topology/generation_id", os.W_OK)
        assert stat.S_ISDIR(system.stat("/sys/class/drm/card0/device").mode)
        assert not system.stat("/dev/dri/renderD130").exists and not system.stat("/sys/class/drm/card7").exists
        for path, number in (("/dev/dri/card9", errno.ENOENT), ("/sys/bus/pci/x", errno.ENOENT)):
            with refused(number):
                system.open(path, os.O_RDWR)
        assert system.list_dir("/sys/module/amdgpu/holders") == []
        with refused(errno.ENOENT):
            system.list_dir("/sys/class/drm/nothing")
        with refused(errno.ENOTDIR):
            system.list_dir("/dev/kfd")
        with refused(errno.EINVAL):
            system.readlink("/dev/kfd")


def test_texts_may_be_opened() -> None:
    path = "/sys/class/kfd/kfd/topology/nodes/1/gpu_id"
    with machine("gfx1100") as system:
        fd = system.open(path, os.O_RDONLY)
        assert os.read(fd, 100) == system.read_bytes(path)
        system.close(fd)
        with refused(errno.EACCES):
            system.open(path, os.O_RDWR)
        assert system.read_bytes(path, 2) == system.read_bytes(path)[:2]


def test_the_hosts_files_and_memory_still_work() -> None:
    with machine("gfx1100") as system:
        fd = system.open("/dev/zero", os.O_RDWR)
        assert os.read(fd, 4) == bytes(4)
        with refused(errno.ENOTTY):
            system.ioctl(fd, 0x80084B01, bytearray(8))
        system.close(fd)
        address = system.mmap(-1, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
        view(address, 4096)[:2] = b"ok"
        system.mprotect(address, 4096, PROT_READ)
        system.madvise(address, 4096, 4)
        system.munmap(address, 4096)
        for act in (system.close, lambda fd: system.ioctl(fd, 0, bytearray(8))):
            with refused(errno.EBADF):
                act(9999)


def test_descriptors_are_real_ones() -> None:
    with machine("gfx1100") as system:
        fd = system.open("/dev/kfd", os.O_RDWR)
        assert stat.S_ISREG(os.fstat(fd).st_mode) and not os.get_inheritable(fd)
        os.close(fd)  # behind the system's back: the number may be somebody else's now
        other = os.open("/dev/null", os.O_RDWR)
        assert other == fd
        with refused(errno.ENOTTY):
            system.ioctl(fd, 0x80084B01, bytearray(8))
        os.close(other)


def test_opening_and_closing_from_many_threads() -> None:
    with machine("2xgfx1100") as system:
        before = len(os.listdir("/proc/self/fd"))
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(10):
                    for path in ("/dev/kfd", "/dev/dri/renderD128", "/dev/dri/renderD129"):
                        fd = system.open(path, os.O_RDWR)
                        if path == "/dev/kfd":
                            system.ioctl(fd, 0x80084B01, bytearray(8))
                        system.close(fd)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors and len(os.listdir("/proc/self/fd")) == before


def test_one_system_for_a_topology() -> None:
    first = open_system(parse_uri("virtual:amd/2xgfx1100?seed=91"))
    try:
        assert open_system(parse_uri("virtual:amd/2xgfx1100:1?seed=91")) is first
        assert open_system(parse_uri("virtual:amd/2xgfx1100?seed=92")) is not first
        pid = os.fork()
        if not pid:
            os._exit(open_system(parse_uri("virtual:amd/2xgfx1100?seed=91")) is first)
        assert os.waitpid(pid, 0)[1] == 0  # a child gets its own
    finally:
        first.shut_down()
        open_system(parse_uri("virtual:amd/2xgfx1100?seed=92")).shut_down()
    second = open_system(parse_uri("virtual:amd/2xgfx1100?seed=91"))
    assert second is not first
    second.shut_down()
    with refused(errno.ENODEV):
        second.open("/dev/kfd", os.O_RDWR)


def test_uris_without_a_machine() -> None:
    for text, error in (("virtual:amd/gfx9", DeviceNotFound), ("virtual:qualcomm/a630", Unsupported),
                        ("virtual:amd/gfx1100?boom", InvalidArgument)):
        with pytest.raises(error):
            make_system(parse_uri(text))


def test_recordings_of_a_virtual_machine() -> None:
    with machine("gfx1100") as system:
        recorded = RecordingSystem(system)
        assert diagnose(recorded)
    assert isinstance(system, VirtualSystem) and system.closed
