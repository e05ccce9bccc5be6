"""What the doctor says of NVIDIA's GPUs, asked through a virtual kernel driver whose cards are made ill."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from devrt.device import parse_uri
from devrt.doctor import Finding, diagnose
from devrt.virtual.faults import inject
from devrt.virtual.system import VirtualSystem, make_system


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[VirtualSystem]:
    system = make_system(parse_uri(getattr(request, "param", "virtual:nvidia/sm_90")))
    yield system
    system.shut_down()


def ill(system: VirtualSystem, **health: Any) -> None:
    (driver,) = system.drivers
    for name, value in health.items():
        setattr(driver.cards[0].health, name, value)  # type: ignore[attr-defined]


def said(system: VirtualSystem, check: str) -> list[Finding]:
    return [finding for finding in diagnose(system) if finding.check == check]


@pytest.mark.parametrize("version", ["570.133.20", "580.105.08", "590.44.01", "595.45.04"])
def test_a_healthy_card_of_every_branch_has_a_finding_a_check(version: str) -> None:
    system = make_system(parse_uri(f"virtual:nvidia/2xsm_90?driver={version}"))
    try:
        found = {finding.check: str(finding.severity) for finding in diagnose(system) if finding.check.startswith("nvidia-")}
    finally:
        system.shut_down()
    assert found == dict.fromkeys(
        ("nvidia-version", "nvidia-firmware", "nvidia-persistence", "nvidia-mode", "nvidia-mig", "nvidia-confidential",
         "nvidia-memory", "nvidia-ecc", "nvidia-rows", "nvidia-power", "nvidia-temperature", "nvidia-clocks", "nvidia-throttling",
         "nvidia-nvlink", "nvidia-links"), "ok")


def test_nothing_is_left_open(machine: VirtualSystem) -> None:
    diagnose(machine)
    (driver,) = machine.drivers
    assert not driver.clients  # type: ignore[attr-defined]


@pytest.mark.parametrize("health, check, severity, words", [
    ({"dram_uncorrected": 2}, "nvidia-ecc", "error", "results may be wrong"),
    ({"sram_corrected": 7}, "nvidia-ecc", "note", "were corrected"),
    ({"remap_pending": True, "remapped_uncorrectable": 1}, "nvidia-rows", "warning", "waits to be replaced"),
    ({"remap_failed": True}, "nvidia-rows", "error", "could not be replaced"),
    ({"remapped_correctable": 3}, "nvidia-rows", "note", "were replaced"),
    ({"celsius": 93.0}, "nvidia-temperature", "warning", "GPU so hot"),
    ({"throttle": 1 << 6}, "nvidia-throttling", "warning", "too hot"),
    ({"throttle": 1 << 2}, "nvidia-throttling", "note", "power limit"),
    ({"recovery_action": 1}, "nvidia-recovery", "error", "must be reset"),
    ({"recovery_action": 77}, "nvidia-recovery", "error", "does not know"),
])
def test_what_ails_a_card(machine: VirtualSystem, health: dict[str, Any], check: str, severity: str, words: str) -> None:
    ill(machine, **health)
    found = said(machine, check)
    assert any(str(finding.severity) == severity and words in finding.what for finding in found), found


@pytest.mark.parametrize("machine", ["virtual:nvidia/2xsm_86-nop2p"], indirect=True)
def test_cards_that_do_not_reach_each_other(machine: VirtualSystem) -> None:
    (found,) = said(machine, "nvidia-links")
    assert str(found.severity) == "note" and "-. .-" in found.evidence and found.remedy


def test_a_lost_card_is_a_finding(machine: VirtualSystem) -> None:
    (driver,) = machine.drivers
    driver.cards[0].lost = True  # type: ignore[attr-defined]
    (found,) = said(machine, "nvidia-driver")
    assert str(found.severity) == "error" and found.evidence == "EIO" and found.remedy


@pytest.mark.parametrize("call", ["RM_ALLOC", "RM_CONTROL", "RM_MAP_MEMORY", "CARD_INFO", "REGISTER_FD"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_refused_call_costs_some_findings_and_no_more(machine: VirtualSystem, call: str, at: int) -> None:
    inject(machine, f"errno={errno.errorcode[errno.EIO]}:{call}@{at}")
    assert any(finding.check == "kernel" for finding in diagnose(machine))
    (driver,) = machine.drivers
    assert not driver.clients  # type: ignore[attr-defined]
