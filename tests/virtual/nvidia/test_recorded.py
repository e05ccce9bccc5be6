"""The virtual driver against a recording of a real one: the same program makes the same calls and gets the same statuses.

A recording is made by `python -m tests.hw.nvidia.record nvidia:0 run.jsonl` and kept in `recordings/`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from devrt.device import parse_uri
from devrt.ioctl.recording import Call, load
from devrt.virtual.system import make_system
from tests.hw.nvidia.record import recorded
from tests.virtual.nvidia.recorded import acts, difference, driver_of, facts, model_of

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("*.jsonl"))


def run(machine: str) -> list[Call]:
    """The calls of the same small run on a virtual machine."""
    uri = parse_uri(f"virtual:nvidia/{machine}")
    system = make_system(uri)
    try:
        return recorded(uri, system)
    finally:
        system.shut_down()


@pytest.mark.parametrize("path", RECORDINGS or [pytest.param(None, id="none", marks=pytest.mark.skip(
    reason="not yet: no run on a real GPU has been recorded"))], ids=lambda path: path.stem)
def test_the_virtual_driver_answers_as_the_recorded_one(path: Path) -> None:
    calls = load(path)
    made = run(f"{model_of(calls)}?driver={driver_of(calls)}")
    assert not difference(acts(calls), acts(made))
    real, virtual = facts(calls), facts(made)
    assert virtual.pop("classes") <= real.pop("classes")
    assert virtual == real


def test_a_difference_is_seen() -> None:
    calls = run("sm_90")
    assert model_of(calls) == "h200" and driver_of(calls) == "580.105.08"
    lines = acts(calls)
    assert not difference(lines, acts(run("h200")))
    assert any("NV_ESC_RM_ALLOC HOPPER_COMPUTE_A -> NV_OK" in line for line in lines)
    assert any("UVM_MAP_EXTERNAL_ALLOCATION -> NV_OK" in line for line in lines)
    found = facts(calls)
    assert 0xCBC0 in found["classes"] and found["tpcs"] == 66 and found["name"] == "NVIDIA H200"
    at = next(n for n, call in enumerate(calls) if call.decoded.get("name") == "UVM_REGISTER_CHANNEL")
    refused = dataclasses.replace(calls[at], decoded={**calls[at].decoded, "after": {
        **calls[at].decoded["after"], "rmStatus": "NV_ERR_INVALID_ADDRESS"}})
    assert "-/dev/nvidia-uvm UVM_REGISTER_CHANNEL -> NV_OK" in difference(lines, acts([*calls[:at], refused, *calls[at + 1:]]))
