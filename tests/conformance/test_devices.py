"""Every device gives the CPU's bits, operation by operation. $DEVRT_CONFORMANCE names other devices, e.g. "amd:0 amd:1"."""

from __future__ import annotations

import os

import numpy as np
import pytest

from .cases import CASES, results

_DEFAULT = "virtual:amd/gfx1100 virtual:amd/gfx942 virtual:nvidia/sm_90 virtual:nvidia/sm_86"
DEVICES = os.environ.get("DEVRT_CONFORMANCE", _DEFAULT).split()


@pytest.mark.parametrize("uri", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_the_bits_of_the_cpu(uri: str, name: str) -> None:
    case = CASES[name]
    for n, (ours, cpu) in enumerate(zip(results(case, uri), results(case, "cpu"), strict=True)):
        assert ours[0] == cpu[0]
        if ours[1] != cpu[1]:
            a, b = (np.frombuffer(x[1], np.uint8) for x in (ours, cpu))
            raise AssertionError(f"result {n}, {ours[0]}: {np.count_nonzero(a != b)} of {len(a)} bytes differ, "
                                 f"the first at {np.flatnonzero(a != b)[0]}")
