"""The probe for real cards, rehearsed: its steps work here as devrt does them, and a change is a change."""

from __future__ import annotations

import pytest

from tests.hw.nvidia import probe
from tests.hw.nvidia.probe_changes import CHANGES
from tests.hw.nvidia.probe_steps import STEPS, run

URI = "virtual:nvidia/sm_90"


@pytest.mark.parametrize("step", ["nodes", "host", "shared"])
def test_steps_work(step: str) -> None:
    assert run(step, f"{URI}?seed={1000 + len(step)}")  # a machine that nothing else in this process has open


def test_a_change_is_made_and_told_of() -> None:
    assert set(CHANGES) <= set(STEPS)
    row = probe.ask(URI, "launch", "qmd_type 0")
    assert not row["ok"] and "Xid 13" in row["said"] and row["step"] == "launch"
    assert any("Xid" in line for line in row["log"])
