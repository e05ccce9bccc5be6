"""A computation on a device whose right answer is known: arrays in, kernels compiled and run, NumPy as the judge."""

from __future__ import annotations

from devrt.device import Device, DeviceFault

ROWS, COLUMNS = 61, 67  # primes, so that no vector width divides them


def compute(device: Device) -> str:
    """x*2 + 1 and the sums of its rows, for whole numbers small enough to be exact in f32 in any order.

    Returns what ran. Raises DeviceFault where a bit is wrong, and whatever compiling and running raise.
    """
    import numpy as np

    import devrt

    x = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS) % 11
    array = devrt.asarray(x, device=device.uri) * 2 + 1
    right = x * 2 + 1
    for what, got, expected in (("x*2 + 1", array.numpy(), right),
                                ("sums of rows", array.sum(axis=1).numpy(), right.sum(axis=1))):
        wrong = np.argwhere(got != expected)
        if len(wrong):
            where = tuple(int(index) for index in wrong[0])
            raise DeviceFault(f"{what}: {len(wrong)} of {got.size} numbers are wrong",
                              evidence=f"first at {where}: {got[where]}, should be {expected[where]}",
                              remedy="run it again; if it comes back, the device is failing")
    return f"x*2 + 1 and sums of rows agree with NumPy on {x.size} numbers"
