"""What the doctor says of GPUs that are split (MIG), confidential or virtual."""

from __future__ import annotations

import pytest

from devrt.device import parse_uri
from devrt.doctor import Finding, diagnose
from devrt.ioctl.nv_modes import CAPABILITIES, capability_number, node_of
from devrt.virtual.nvidia.driver import NvidiaDriver
from devrt.virtual.system import make_system

CHECKS = ("nvidia-mig", "nvidia-confidential", "nvidia-virtual")


def said(query: str, *gone: str) -> list[Finding]:
    """Findings about an H200's modes, on a machine where these files and nodes are missing."""
    system = make_system(parse_uri(f"virtual:nvidia/h200?{query}"))
    (driver,) = system.drivers
    assert isinstance(driver, NvidiaDriver)
    try:
        for place in (driver.tree.nodes, driver.tree.files):
            for path in [one for one in place if one.startswith(gone)] if gone else ():
                del place[path]  # type: ignore[attr-defined]
        driver.tree.index()
        found = [finding for finding in diagnose(system) if finding.check in CHECKS]
        assert not driver.clients  # whatever was looked at was given back
        return found
    finally:
        system.shut_down()


def test_a_container_with_one_of_two_gpus() -> None:
    system = make_system(parse_uri("virtual:nvidia/2xh200"))
    (driver,) = system.drivers
    assert isinstance(driver, NvidiaDriver)
    try:
        del driver.tree.nodes["/dev/nvidia0"]
        driver.tree.index()
        found = diagnose(system)
    finally:
        system.shut_down()
    note = only(found, "note", "node")
    assert "/dev/nvidia0" in note.what and "not for this process" in note.what and "container" in note.remedy
    assert not any(str(finding.severity) == "error" for finding in found if finding.check in ("node", "nvidia-driver"))


def only(found: list[Finding], severity: str, check: str) -> Finding:
    (one,) = (finding for finding in found if str(finding.severity) == severity and finding.check == check)
    return one


def test_a_plain_gpu() -> None:
    found = said("seed=1")
    assert "not split" in only(found, "ok", "nvidia-mig").what and "is off" in only(found, "ok", "nvidia-confidential").what
    assert len(found) == 2


@pytest.mark.parametrize(("query", "what", "evidence"), [
    ("mig-pending", "will be split", "off, pending on"), ("mig=1g&mig-pending", "will be one GPU again", "on, pending off")])
def test_a_change_that_waits_for_a_reset(query: str, what: str, evidence: str) -> None:
    found = only(said(query), "warning", "nvidia-mig")
    assert what in found.what and evidence in found.evidence
    assert "--gpu-reset" in found.remedy and f"-mig {int('mig=' in query)}" in found.remedy


def test_instances_with_their_sizes() -> None:
    found = only(said("mig=3g.1c.2c,1g"), "ok", "nvidia-mig")
    for name in ("1c.3g.71gb gi 1 ci 0 (MIG-", "2c.3g.71gb gi 1 ci 1 (MIG-", "1g.18gb gi 7 ci 0 (MIG-"):
        assert name in found.evidence


def test_mig_without_instances() -> None:
    found = only(said("mig"), "error", "nvidia-mig")
    assert "has not been split" in found.what and "-cgi" in found.remedy


def test_instances_that_are_closed_to_this_process() -> None:
    first, second = (node_of(capability_number(0, gpu, 0)) for gpu in (1, 7))
    found = said("mig=3g,1g", second)
    assert "3g.71gb gi 1 ci 0" in only(found, "ok", "nvidia-mig").evidence
    note = only(found, "note", "nvidia-mig")
    assert note.evidence == f"gi 7 ci 0 needs {second}" and second in note.remedy
    none = only(said("mig=3g,1g", first, second), "error", "nvidia-mig")
    assert f"can't open {first}" in none.what and "nvidia-modprobe -f" in none.remedy


def test_gpu_instances_that_lack_compute_instances() -> None:
    found = said("mig=3g,1g", f"{CAPABILITIES}/gpu0/mig/gi7/ci0")
    note = only(found, "note", "nvidia-mig")
    assert note.evidence == "GPU instances: 7" and "-cci" in note.remedy
    alone = only(said("mig=1g", f"{CAPABILITIES}/gpu0/mig/gi7/ci0"), "error", "nvidia-mig")
    assert "no compute instance" in alone.what and "-cci" in alone.remedy


@pytest.mark.parametrize(("query", "words", "remedy"), [
    ("cc", "confidential computing mode", "--set-cc-mode=off"), ("ppcie", "protected PCIe mode", "--set-ppcie-mode=off")])
def test_confidential_computing(query: str, words: str, remedy: str) -> None:
    found = only(said(query), "error", "nvidia-confidential")
    assert words in found.what and "wait to be attested" in found.evidence and remedy in found.remedy


@pytest.mark.parametrize(("query", "words", "remedy"), [
    ("vgpu", "a vGPU", "enable_uvm"), ("vgpu-host", "lent out", "virtual machines")])
def test_virtual_machines(query: str, words: str, remedy: str) -> None:
    found = only(said(query), "note", "nvidia-virtual")
    assert words in found.what and remedy in found.remedy
