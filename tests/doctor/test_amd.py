"""AMD's tables and checks: words of hardware against the kernel's own decoding of them, and virtual machines as patients."""

from __future__ import annotations

import itertools
import struct
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devrt.cli.commands import report
from devrt.device import parse_uri
from devrt.doctor import Finding, Severity, diagnose
from devrt.doctor.amd_tables import METRICS, THROTTLER_BITS, THROTTLERS, fault_status, metrics
from devrt.doctor.findings import Reader
from devrt.ioctl.machine import MachineSystem
from devrt.virtual.system import VirtualSystem, make_system
from tests.doctor.test_machines import description

CARD = "/sys/devices/pci0000:00/0000:00:01.1/0000:01:00.0/0000:02:00.0/0000:03:00.0"
TOPOLOGY = "/sys/class/kfd/kfd/topology/nodes"


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def examined(**files: Any) -> list[Finding]:
    """The workstation with some files of its card changed; None takes one away. `__` is a slash."""
    machine = description("amd")
    for name, text in files.items():
        machine["files"][f"{CARD}/{name.replace('__', '/')}"] = text
    machine["files"] = {path: text for path, text in machine["files"].items() if text is not None}
    return diagnose(MachineSystem(machine))


# Status words with the fields that kernels have printed beside them: Documentation/gpu/amdgpu/debugging.rst and logs of users.
@pytest.mark.parametrize(("word", "client", "vmid", "walker", "permission", "mapping", "more"), [
    (0x00301030, 0x8, 3, 0, 3, 0, 0), (0x00800932, 0x4, 8, 1, 3, 1, 0), (0x0000013B, 0x0, 0, 5, 3, 1, 1),
    (0x00401031, 0x8, 4, 0, 3, 0, 1), (0x00101031, 0x8, 1, 0, 3, 0, 1)])
def test_fault_status(word: int, client: int, vmid: int, walker: int, permission: int, mapping: int, more: int) -> None:
    text = fault_status(word)
    assert text.startswith("a read;") and text.endswith(f"client {client:#x}, vmid {vmid}")
    assert ("page tables" in text, "is not valid" in text, "not mapped" in text, "more faults" in text) == (
        bool(walker), bool(permission & 1), bool(mapping), bool(more))


def test_a_write_is_told_from_a_read() -> None:
    assert fault_status(1 << 18 | 4 << 4).startswith("a write; the page may not be written; ")


def test_metrics_of_a_known_version() -> None:
    data = bytearray(b"\xff" * 120)
    struct.pack_into("<HBB", data, 0, 120, 1, 3)
    struct.pack_into("<HHH", data, 4, 41, 66, 50)
    struct.pack_into("<Q", data, 112, 1 << 36)
    version, found = metrics(bytes(data))
    assert version == (1, 3) and found["hotspot_c"] == 66 and found["indep_throttle_status"] == 1 << 36
    assert "power_w" not in found, "all ones are not available"


@pytest.mark.parametrize("data", [b"", b"\x78", b"\x78\0\x01\x03", b"\x04\0\x01\x03" + b"\0" * 116, b"\xff" * 200])
def test_metrics_that_are_cut_short_or_unknown(data: bytes) -> None:
    assert metrics(data)[1] == {}


def test_the_fields_of_a_version_do_not_overlap_and_every_throttler_has_a_cause() -> None:
    for fields in METRICS.values():
        ends = [(field.offset, field.offset + struct.calcsize("<" + field.format)) for field in fields]
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
    assert all(sum(row.first <= bit <= row.last for row in THROTTLERS) == 1 for bit in THROTTLER_BITS)


@pytest.mark.parametrize(("celsius", "severity"), [(104, "ok"), (105, "note"), (110, "warning"), (115, "error")])
def test_temperatures_against_their_limits(celsius: int, severity: str) -> None:
    [found] = of(examined(hwmon__hwmon4__temp2_input=celsius * 1000), "amd-temperature")
    assert str(found.severity) == severity and f"junction {celsius} of 110" in found.evidence


@pytest.mark.parametrize(("level", "severity"), [("auto", "ok"), ("low", "warning"), ("manual", "warning"), ("high", "note"),
                                                 ("new_level", "note")])
def test_performance_levels(level: str, severity: str) -> None:
    [found] = of(examined(power_dpm_force_performance_level=level), "amd-clocks")
    assert str(found.severity) == severity and (severity == "ok" or found.remedy.startswith("echo auto | sudo tee "))


def test_power_that_only_input_tells_and_a_card_without_sensors() -> None:
    [found] = of(examined(hwmon__hwmon4__power1_average=None, hwmon__hwmon4__power1_input=90_000_000), "amd-power")
    assert found.evidence == "90 of 339 W"
    bare = [finding for finding in examined(hwmon__hwmon4__power1_cap=None) if finding.check == "amd-power"]
    assert not bare


@pytest.mark.parametrize(("pages", "severity"), [("R", "note"), ("RP", "warning"), ("RPF", "error")])
def test_bad_pages(pages: str, severity: str) -> None:
    rows = "".join(f"0x{index:012x} : 0x00001000 : {letter}\n" for index, letter in enumerate(pages))
    [found] = of(examined(ras__gpu_vram_bad_pages=rows), "amd-errors")
    assert str(found.severity) == severity and found.evidence.startswith("1 reserved")


def test_a_card_in_partitions_is_one_card_with_several_render_nodes() -> None:
    machine = description("amd")
    for kind in ("gpu_id", "name", "properties", "mem_banks/0/properties", "io_links/0/properties"):
        machine["files"][f"{TOPOLOGY}/2/{kind}"] = machine["files"][f"{TOPOLOGY}/1/{kind}"]
    machine["files"][f"{TOPOLOGY}/2/gpu_id"] = 17214
    machine["files"][f"{TOPOLOGY}/2/properties"] = machine["files"][f"{TOPOLOGY}/1/properties"].replace(
        "location_id 768", "location_id 769").replace("drm_render_minor 128", "drm_render_minor 129")
    found = diagnose(MachineSystem(machine))
    assert [finding.what.partition(": ")[2] for finding in of(found, "kfd")] == ["gfx1100 with 192 compute units in 2 partitions"]
    [missing] = [finding for finding in of(found, "node") if finding.severity is Severity.ERROR]
    assert missing.what.startswith("/dev/dri/renderD129 is missing")


def test_a_gpu_that_the_driver_gave_up_and_one_that_devrt_can_not_drive() -> None:
    machine = description("amd")
    machine["files"][f"{TOPOLOGY}/1/gpu_id"] = 0
    [gave_up] = of(diagnose(MachineSystem(machine)), "kfd")
    assert gave_up.severity is Severity.ERROR and "without an id" in gave_up.what and gave_up.remedy
    machine = description("amd")
    properties = machine["files"][f"{TOPOLOGY}/1/properties"].replace("gfx_target_version 110000", "gfx_target_version 80003")
    machine["files"][f"{TOPOLOGY}/1/properties"] = properties
    [old] = of(diagnose(MachineSystem(machine)), "kfd")
    assert old.severity is Severity.WARNING and "gfx803" in old.what


def test_an_interface_older_or_newer_than_the_tables() -> None:
    for minor, severity, words in ((10, "error", "1.11 and newer"), (99, "ok", "tables end at 1.")):
        machine = description("amd")
        machine["answers"]["/dev/kfd"] = {"AMDKFD_IOC_GET_VERSION": {"major_version": 1, "minor_version": minor}}
        [found] = [row for row in of(diagnose(MachineSystem(machine)), "node") if "/dev/kfd" in row.what]
        assert str(found.severity) == severity and words in found.what + found.evidence


def test_the_example_in_the_documentation_is_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    said = [row for row in diagnose(MachineSystem(description("amd_hot"))) if row.check.startswith("amd-")
            and row.severity > Severity.OK]
    documented = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    assert textwrap.indent(report(said).rpartition("\n\n")[0], "    ") in documented


def test_bytes_that_may_not_be_read_are_remembered() -> None:
    reader = Reader(MachineSystem({"refused": {"/x": "EACCES"}}))
    assert reader.bytes("/x") is None and reader.bytes("/y") is None and reader.unreadable == {"/x": "EACCES"}


# ---------------------------------------------------------------------------------------------------------------------
# Virtual machines


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[VirtualSystem]:
    system = make_system(parse_uri(f"virtual:amd/{request.param}"))
    yield system
    system.shut_down()


def amd_findings(system: VirtualSystem) -> list[Finding]:
    """Those about the virtual machine; memory limits and the rest are this host's."""
    return [row for row in diagnose(system) if row.check in ("gpu-driver", "node", "kfd", "pcie-link", "host-window")
            or row.check.startswith("amd-") and row.check != "amd-limits"]


@pytest.mark.parametrize("machine", ["gfx1100", "gfx1201", "gfx1030", "gfx90a", "gfx942", "4xgfx942", "2xgfx1100"], indirect=True)
def test_a_healthy_virtual_machine(machine: VirtualSystem) -> None:
    found = amd_findings(machine)
    assert {str(row.severity) for row in found} == {"ok"}
    assert {"kfd", "amd-firmware", "amd-power", "amd-temperature", "amd-clocks", "amd-resets"} <= {row.check for row in found}


@pytest.mark.parametrize(("machine", "way"), [("4xgfx942", "all 12 pairs of GPUs reach each other's memory over XGMI"),
                                              ("2xgfx1100", "all 2 pairs of GPUs reach each other's memory over PCIE"),
                                              ("2xgfx1100-nop2p", "2 of 2 pairs of GPUs do not reach")], indirect=["machine"])
def test_ways_between_virtual_gpus(machine: VirtualSystem, way: str) -> None:
    [found] = of(diagnose(machine), "amd-links")
    assert found.what.startswith(way)
    assert found.severity is Severity.OK or "pcie_p2p=1" in found.remedy


@pytest.mark.parametrize("machine", ["gfx942"], indirect=True)
def test_a_machine_in_the_file_format_and_through_its_driver_are_the_same_patient(machine: VirtualSystem) -> None:
    """The generated files as a described machine: only the host, the log and what ioctls answer may differ."""
    [driver] = machine.drivers
    tree = driver.tree
    described = MachineSystem({
        "files": {path: {"hex": tree.read(path).hex()} for path in tree.files}, "links": tree.links,
        "nodes": {path: {"mode": 0o666, "rdev": list(rdev)} for path, rdev in tree.nodes.items()},
        "answers": {"/dev/kfd": {"AMDKFD_IOC_GET_VERSION": {"major_version": 1, "minor_version": 18}}, "/dev/dri/renderD128": {
            "DRM_IOCTL_VERSION": {"version_major": 3, "version_minor": 64, "name": "amdgpu"},
            "DRM_IOCTL_AMDGPU_INFO": [{"when": {"query": 31}, "return_pointer": {"hex": "00000000"}}]}}})
    checks = {row.check for row in amd_findings(machine)}
    assert [row for row in diagnose(described) if row.check in checks] == amd_findings(machine)
