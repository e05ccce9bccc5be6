"""No file of a machine, however broken, makes the doctor raise: each in turn is emptied, garbled, refused and taken away."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from typing import Any

import pytest

from devrt.doctor import Finding, diagnose
from devrt.ioctl.machine import MachineSystem
from tests.doctor.test_machines import description

# The others differ from these in a few files, and each file costs six diagnoses.
MACHINES = ("amd", "amd_container", "amd_hive", "closed", "laptop", "nvidia", "nvidia_xid", "old_cpu", "qualcomm_kgsl")

GARBAGE = "-1 \x00 0xffffffffffffffffffff [x] : 99999999999999999999\n\nprocessor\nHugePages_Total: x\n:::\n"

Machine = dict[str, Any]


def put(text: Any) -> Callable[[Machine, str], None]:
    def damage(machine: Machine, path: str) -> None:
        machine["files"][path] = text
    return damage


def refuse(number: str) -> Callable[[Machine, str], None]:
    def damage(machine: Machine, path: str) -> None:
        machine.setdefault("refused", {})[path] = number
    return damage


def remove(machine: Machine, path: str) -> None:
    del machine["files"][path]


DAMAGES = {"empty": put(""), "garbage": put(GARBAGE), "huge number": put("9" * 400), "forbidden": refuse("EACCES"),
           "input error": refuse("EIO"), "gone": remove}


machine_of = functools.cache(description)  # read only; reading YAML takes longer than the checks


def sane(findings: list[Finding]) -> bool:
    return bool(findings) and all(finding.what and (finding.what + finding.evidence + finding.remedy).isprintable()
                                  for finding in findings)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_file(name: str, damage: str) -> None:
    whole = machine_of(name)
    for path in whole.get("files") or {}:
        machine = copy.deepcopy(whole)
        DAMAGES[damage](machine, path)
        assert sane(diagnose(MachineSystem(machine))), path


@pytest.mark.parametrize("name", MACHINES)
def test_any_folder_forbidden(name: str) -> None:
    whole = machine_of(name)
    folders = {path[:end] for path in [*(whole.get("files") or {}), *(whole.get("links") or {}), *(whole.get("nodes") or {})]
               for end in range(1, len(path)) if path[end] == "/"}
    for folder in sorted(folders):
        machine = copy.deepcopy(whole)
        machine.setdefault("refused", {})[folder] = "EACCES"
        assert sane(diagnose(MachineSystem(machine))), folder


@pytest.mark.parametrize("name", MACHINES)
def test_any_link_led_astray(name: str) -> None:
    whole = machine_of(name)
    for path in whole.get("links") or {}:
        for target in ("/nowhere", os.path.basename(path), "."):
            machine = copy.deepcopy(whole)
            machine["links"][path] = target
            assert sane(diagnose(MachineSystem(machine))), (path, target)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("number", ["EPERM", "EAGAIN", "EIO", "ENODEV", "ENXIO", "EBUSY"])
def test_any_node_that_does_not_open_or_answer(name: str, number: str) -> None:
    whole = machine_of(name)
    for path in whole.get("nodes") or {}:
        machine = copy.deepcopy(whole)
        machine["nodes"][path]["open"] = number
        assert sane(diagnose(MachineSystem(machine))), path
    for path, answers in (whole.get("answers") or {}).items():
        machine = copy.deepcopy(whole)
        machine["answers"][path] = dict.fromkeys(answers, number)
        assert sane(diagnose(MachineSystem(machine))), path


def test_a_log_line_can_not_steer_the_terminal() -> None:
    log = "<3>[    1.000000] NVRM: Xid (PCI:0000:19:00): 31, pid=1, name=\x1b[2J\x07evil"
    [finding] = [row for row in diagnose(MachineSystem({"log": log})) if row.check == "kernel-log"]
    assert "name=?[2J?evil" in finding.evidence
