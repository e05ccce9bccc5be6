"""Launches that give way at every branch backwards and between blocks: they come to the same, and so do their faults."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from devrt.virtual import pace
from devrt.virtual.memory import AddressSpace, MemoryFault
from devrt.virtual.nvidia import dispatch
from devrt.virtual.nvidia.dispatch import Executor, Launch
from tests.virtual.nvidia.emulator import Emulator
from tests.virtual.nvidia.test_run import EACH
from tests.virtual.nvidia.test_translate_ptx import check

KERNELS = [(75, "collatz"), (80, "lock"), (86, "reduce"), (89, "atomics"), (90, "groups"), (90, "nested"), (120, "calls")]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many turns each launch took."""
    found: list[int] = []

    def counted(self: Executor, launch: Launch, space: AddressSpace) -> Iterator[None]:
        found.append(1)
        for _ in run(self, launch, space):
            found[-1] += 1
            yield
    run = Executor.run
    monkeypatch.setattr(pace, "_FIRST_STEPS", 1)
    monkeypatch.setattr(pace.Share, "took", lambda *told: None)
    monkeypatch.setattr(Executor, "run", counted)
    return found


@pytest.mark.parametrize(("sm", "name"), KERNELS)
def test_kernels_in_many_turns(sm: int, name: str, turns: list[int]) -> None:
    check(sm, name)
    assert turns[0] > 2


def test_the_fault_of_the_lowest_block_is_told(turns: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Block 0 comes to its fault after many turns, that of another thread at once."""
    monkeypatch.setattr(dispatch.os, "sched_getaffinity", lambda pid: {0, 1})
    gpu = Emulator(86)
    room = gpu.alloc(np.zeros(64, np.uint32))
    lines = [*(line.format(params=0x160) for line in EACH), "ISETP.NE.U32.AND P1, PT, R1, RZ, PT", "MOV R4, 0x40",
             "@P1 MOV R4, 0x1", "again:", "IADD3 R4, R4, -0x1, RZ", "ISETP.NE.U32.AND P0, PT, R4, RZ, PT", "@P0 BRA (again)",
             "IMAD R1, R1, 0x1000, RZ", "IADD3 R2, R1, 0x100000, RZ", "MOV R3, RZ", "STG.E [R2.64], R0", "EXIT"]
    with pytest.raises(MemoryFault) as caught:
        gpu.start(gpu.code(lines), room.va, grid=(8, 1, 1))
    gpu.close()
    assert caught.value.va == 0x100000 and turns[0] > 32


def test_a_share_is_learnt() -> None:
    share = pace.Share()
    first = share.steps
    share.took(1e-6, whole=True, hurry=True)
    assert share.steps == 2 * first
    share.took(1e-6, whole=False, hurry=False)
    assert share.steps == 2 * first
    share.took(4e-3, whole=True, hurry=False)
    assert share.steps == 2 * first
    share.took(4e-3, whole=False, hurry=True)
    assert share.steps == first
    for _ in range(40):
        share.took(10, whole=True, hurry=False)
    assert share.steps == 1
