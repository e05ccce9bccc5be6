"""Kernels on virtual GPUs, through Arrays. Judge: the CPU device, bit for bit (the exact tier)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from amd_machines import TARGETS

import devrt
from devrt import nn
from devrt.array import Array

CASES: dict[str, Callable[[Array, Array], Array]] = {
    "elementwise": lambda a, b: devrt.exp(a) * 2 + 1,
    "softmax": lambda a, b: nn.softmax(a),
    "matmul": lambda a, b: a @ b,
    "two kernels": lambda a, b: nn.gelu(a @ b) @ b.T,
    "column sums": lambda a, b: a.sum(axis=0),
    "half": lambda a, b: (a.astype(devrt.float16) @ b.astype(devrt.float16)).astype(devrt.float32),
    "copies and kernels": lambda a, b: devrt.concat([a, a * 2], axis=0).mean(axis=0),
    "attention": lambda a, b: nn.softmax(a[:32] @ a[:32].T * 0.125) @ a[:32],
}


@pytest.fixture(scope="module")
def operands() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((48, 64)).astype(np.float32), rng.standard_normal((64, 40)).astype(np.float32)


@pytest.mark.parametrize("gfx", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_bits_are_the_cpus(operands: tuple[np.ndarray, np.ndarray], gfx: str, case: str) -> None:
    uri = f"virtual:amd/{gfx}"
    expected = CASES[case](*(devrt.asarray(x) for x in operands)).numpy()
    try:
        got = CASES[case](*(devrt.asarray(x, device=uri) for x in operands)).numpy()
    except devrt.DevrtError:
        devrt.open(uri).close()  # so that the next case has a device that works
        raise
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("gfx", ["gfx942", "gfx1100"])
def test_captured_functions_run_ahead_of_the_device(operands: tuple[np.ndarray, np.ndarray], gfx: str) -> None:
    """Replays with other arguments while earlier ones are in flight, uploads between them."""
    uri, (x, w) = f"virtual:amd/{gfx}", operands
    step = devrt.capture(lambda a, b: nn.softmax(a @ b))
    weights = devrt.asarray(w, device=uri)
    results = [step(devrt.asarray(x * k, device=uri), weights) for k in range(1, 12)]
    for k, result in enumerate(results, 1):
        expected = nn.softmax(devrt.asarray(x * k) @ devrt.asarray(w)).numpy()
        np.testing.assert_array_equal(result.numpy(), expected)


def test_a_profile_has_a_time_for_every_kernel(operands: tuple[np.ndarray, np.ndarray]) -> None:
    step = devrt.capture(lambda a, b: nn.gelu(a @ b) @ b.T)
    step(*(devrt.asarray(x, device="virtual:amd/gfx1100") for x in operands)).numpy()
    (report,) = step.reports(2)
    assert "gfx1100" in str(report) or str(report)
