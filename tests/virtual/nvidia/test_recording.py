"""The virtual driver beside recordings of real cards, which tests/hw/nvidia/run.sh makes: recordings/ISA-VERSION.jsonl.gz."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hw.nvidia.record import conversation, differences, read, record

RECORDINGS = sorted(Path(__file__).parent.glob("recordings/*.jsonl.gz"))


@pytest.mark.parametrize("path", RECORDINGS or [pytest.param(None, marks=pytest.mark.skip(
    reason="no recording of a real card yet: tests/hw/nvidia/run.sh makes one"))], ids=lambda path: path.name if path else "none")
def test_a_real_card_and_a_virtual_one_say_the_same(path: Path) -> None:
    isa, version = path.name.removesuffix(".jsonl.gz").split("-")
    assert not differences(read(path), record(f"virtual:nvidia/{isa}?driver={version}"))


def test_two_runs_are_one_conversation_and_branches_are_told_apart() -> None:
    first, second = (record("virtual:nvidia/sm_90?driver=580.105.08") for _ in range(2))
    assert not differences(first, second)
    said = list(conversation(first))
    assert "UVM_REGISTER_GPU: NV_OK" in said and "NV_ESC_RM_ALLOC HOPPER_COMPUTE_A: NV_OK" in said
    assert len(said) > 40 and all(line.endswith((": NV_OK", ": 0")) for line in said if "RM_" in line)
    other = differences(first, record("virtual:nvidia/sm_86?driver=580.105.08"))
    assert any("AMPERE_COMPUTE_B" in line for line in other)
