"""What every GPU must do, whatever its vendor: imported by the vendors' folders, which name the cards."""

from __future__ import annotations

import os

import numpy as np
import pytest

import devrt
from devrt.device import Placement
from tests.conformance.cases import CASES, results

__all__ = ["test_bytes_come_back", "test_copies_between_cards", "test_queues_wait_for_each_other", "test_the_bits_of_the_cpu"]


def cards(vendor: str) -> list[str]:
    """The vendor's GPUs in this machine, or those that $DEVRT_HW names (virtual ones, to rehearse). Skips the module where there
    is none."""
    found = os.environ.get("DEVRT_HW", "").split() or [d.uri for d in devrt.devices() if d.vendor == vendor]
    if not found:
        pytest.skip(f"this machine has no {vendor} GPU that devrt can open (`devrt doctor` says why)", allow_module_level=True)
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_bits_of_the_cpu(uri: str, name: str) -> None:
    for ours, cpu in zip(results(CASES[name], uri), results(CASES[name], "cpu"), strict=True):
        assert ours == cpu


@pytest.mark.parametrize("nbytes", [1, 4096, 1 << 20, (64 << 20) + 3])
def test_bytes_come_back(uri: str, nbytes: int) -> None:
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
    assert np.array_equal(devrt.asarray(data, device=uri).numpy(), data)


def test_queues_wait_for_each_other(uri: str) -> None:
    device = devrt.open(uri)
    a, b = (device.alloc(1 << 20, Placement.HOST) for _ in range(2))
    c = device.alloc(1 << 20)
    a.host()[:] = bytes(range(256)) * 4096
    up, down = device.command_list(), device.command_list()
    up.copy(c, a, 1 << 20)
    down.copy(b, c, 1 << 20)
    done = device.signal()
    device.transfer.submit(up, signal=[(done, 1)])
    device.transfer.wait(device.transfer.submit(down, wait=[(done, 1)]))
    assert bytes(b.host()) == bytes(a.host())


def test_copies_between_cards(pair: str) -> None:
    first, second = pair.split()
    data = np.random.default_rng(0).standard_normal((1000, 700)).astype(np.float32)
    there = devrt.asarray(data, device=first).to_device(second)
    assert np.array_equal((there + 0.0).numpy(), data)
