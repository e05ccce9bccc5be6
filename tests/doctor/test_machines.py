"""Every recorded machine gets exactly the findings written beside it; `pytest --bless` rewrites them for review."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from devrt.doctor import Severity, diagnose
from devrt.ioctl.machine import MachineSystem
from devrt.ioctl.recording import RecordingSystem
from devrt.ioctl.replaying import ReplayingSystem

MACHINES = sorted(path.stem for path in (Path(__file__).parent / "machines").glob("*.yaml"))


def description(name: str) -> dict[str, Any]:
    """A machine, laid over its base if it has one; null takes an entry away."""
    text = yaml.safe_load(_path(name).read_text())
    base = description(text["base"]) if "base" in text else {}
    return _merged(base, text["machine"])


@pytest.mark.parametrize("name", MACHINES)
def test_findings(name: str, request: pytest.FixtureRequest) -> None:
    found = [{key: value for key, value in finding.as_dict().items() if value}
             for finding in diagnose(MachineSystem(description(name)))]
    if request.config.getoption("--bless"):
        text = _path(name).read_text().partition("\nfindings:\n")[0].rstrip("\n")
        rows = yaml.safe_dump(found, sort_keys=False, width=1000, allow_unicode=True)
        _path(name).write_text(f"{text}\nfindings:\n{rows}")
    assert yaml.safe_load(_path(name).read_text()).get("findings") == found


@pytest.mark.parametrize("name", MACHINES)
def test_a_recording_of_the_machine_gives_the_same_findings(name: str, tmp_path: Path) -> None:
    system = RecordingSystem(MachineSystem(description(name)))
    found = diagnose(system)
    system.save(tmp_path / "calls.jsonl")
    assert diagnose(ReplayingSystem(tmp_path / "calls.jsonl")) == found


@pytest.mark.parametrize("name", MACHINES)
def test_what_needs_mending_says_how(name: str) -> None:
    for finding in diagnose(MachineSystem(description(name))):
        assert finding.remedy or finding.severity <= Severity.NOTE, finding
        assert "\n" not in finding.what + finding.evidence + finding.remedy


def _path(name: str) -> Path:
    return Path(__file__).parent / "machines" / f"{name}.yaml"


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result
