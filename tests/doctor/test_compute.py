"""The doctor's computation: right on a device that works, an error that names the first wrong number on one that does not."""

from __future__ import annotations

import numpy as np
import pytest

import devrt
from devrt.device import DeviceFault
from devrt.doctor.compute import COLUMNS, compute


def test_the_cpu_computes() -> None:
    assert "agree with NumPy" in compute(devrt.open("cpu"))


def test_one_wrong_number_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    array = type(devrt.asarray([1.0]))
    right = array.numpy

    def numpy(self: object) -> object:
        numbers = np.array(right(self))
        if numbers.ndim == 2:
            numbers[3, COLUMNS - 1] += 1
        return numbers
    monkeypatch.setattr(array, "numpy", numpy)
    with pytest.raises(DeviceFault, match=r"x\*2 \+ 1: 1 of 4087 numbers are wrong \[first at \(3, 66\)"):
        compute(devrt.open("cpu"))
