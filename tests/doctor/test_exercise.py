"""The functional check, on the CPU device and on devices that misbehave in the ways a device can."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import devrt
from devrt.device import Device, DeviceHang, DeviceNotFound, OutOfMemory, Unsupported
from devrt.doctor import Finding, diagnose
from devrt.doctor.exercise import COPY_BYTES, check
from devrt.ioctl.machine import MachineSystem


class Fake:
    """A device that copies memory and counts time, with one thing that can be made to go wrong."""

    def __init__(self, *, wrong_byte: int | None = None, clock: tuple[int, int] = (100, 200),
                 fails: Exception | None = None) -> None:
        self.wrong_byte, self.clock, self.fails = wrong_byte, list(clock), fails
        self.properties = SimpleNamespace(name="fake")
        self.live = 0
        self.compute = self.transfer = self

    def alloc(self, nbytes: int, placement: object) -> Any:
        self.live += 1
        memory = memoryview(bytearray(nbytes))
        return SimpleNamespace(memory=memory, host=lambda: memory)

    def free(self, buffer: object) -> None:
        self.live -= 1

    def command_list(self) -> Any:
        jobs: list[Callable[[], None]] = []

        def copy(dst: Any, src: Any, nbytes: int) -> None:
            def run() -> None:
                dst.memory[:nbytes] = src.memory[:nbytes]
                if self.wrong_byte is not None:
                    dst.memory[self.wrong_byte] ^= 1
                    self.wrong_byte = None  # once: flipped on the way back too, it would be right again
            jobs.append(run)

        def timestamp(dst: Any, offset: int) -> None:
            jobs.append(lambda: struct.pack_into("<Q", dst.memory, offset, self.clock.pop(0)))
        return SimpleNamespace(jobs=jobs, copy=copy, timestamp=timestamp)

    def submit(self, commands: Any) -> int:
        if self.fails is not None:
            raise self.fails
        for job in commands.jobs:
            job()
        return 1

    def wait(self, value: int, timeout_s: float) -> None: ...


def findings(device: object, compute: Callable[[Device], str] | None = None) -> list[Finding]:
    return list(check(lambda: ["fake:0"], lambda uri: cast(Device, device), compute))


def test_a_healthy_device() -> None:
    device = Fake()
    found = findings(device, lambda device: "1 + 1 is 2")
    assert [str(finding.severity) for finding in found] == ["ok", "ok", "ok"]
    assert [finding.check for finding in found] == ["device-copy", "device-timestamp", "device-compute"]
    assert device.live == 0


def test_a_wrong_bit_in_a_copy_is_found_and_placed() -> None:
    copy, _ = findings(Fake(wrong_byte=4711))
    assert str(copy.severity) == "error" and copy.evidence.startswith(f"byte 4711 of {COPY_BYTES}") and copy.remedy


def test_a_clock_that_stands_still() -> None:
    _, timestamp = findings(Fake(clock=(100, 100)))
    assert str(timestamp.severity) == "error" and "100 ns, then 100 ns" in timestamp.evidence


def test_a_hang_is_reported_and_memory_given_back() -> None:
    device = Fake(fails=DeviceHang("the queue stopped", evidence="signal 0 of 1", remedy="read the log"))
    found = findings(device)
    assert all(str(finding.severity) == "error" for finding in found) and device.live == 0
    assert found[0].evidence == "the queue stopped [signal 0 of 1]" and found[0].remedy == "read the log"


def test_what_a_device_lacks_is_a_note() -> None:
    def compute(device: Device) -> str:
        raise Unsupported("no matrix units", remedy="use another")
    assert str(findings(Fake(), compute)[-1].severity) == "note"


def test_a_device_that_does_not_open_and_devices_that_cannot_be_listed() -> None:
    def opener(uri: str) -> Device:
        raise DeviceNotFound(f"no {uri}", remedy="plug it in")

    def uris() -> list[str]:
        raise OutOfMemory("no memory", remedy="free some")
    (found,) = check(lambda: ["fake:0"], opener, None)
    assert (found.check, str(found.severity), found.remedy) == ("device", "error", "plug it in")
    (found,) = check(uris, opener, None)
    assert (found.what, found.remedy) == ("the devices can't be listed", "free some")


def test_the_cpu_passes() -> None:
    found = diagnose(MachineSystem({}), uris=lambda: ["cpu"], opener=devrt.open)
    assert [str(finding.severity) for finding in found if finding.check.startswith("device")] == ["ok", "ok"]


def test_a_bug_in_a_backend_is_one_finding() -> None:
    broken = findings(Fake(fails=ZeroDivisionError("by zero")))
    assert [finding.check for finding in broken] == ["device-copy", "device-timestamp"]
    assert {finding.what.partition(": ")[2] for finding in broken} == {"a bug in devrt showed"}
    assert {finding.evidence for finding in broken} == {"ZeroDivisionError: by zero"}

    def opener(uri: str) -> Device:
        raise KeyError(uri)
    [finding] = check(lambda: ["amd:0"], opener, None)
    assert (finding.check, finding.evidence) == ("device", "KeyError: 'amd:0'")
