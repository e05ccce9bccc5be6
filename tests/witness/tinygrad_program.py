"""An ordinary tinygrad program, `python tinygrad_program.py [DEVICES]`, which knows nothing of devrt. It says of each result
whether NumPy has the same."""

from __future__ import annotations

import sys

import numpy as np
from tinygrad import Device, Tensor, dtypes


def main(devices: int = 1) -> None:
    rng = np.random.default_rng(1)
    print(Device.DEFAULT, Device[Device.DEFAULT].arch)
    print("chain", (Tensor([1.0, 2.0, 3.0]) * 2 + 1).tolist())
    a, b = (rng.random((24, 24), np.float32) for _ in range(2))
    print("product", np.allclose((Tensor(a) @ Tensor(b)).numpy(), a @ b, rtol=1e-5))
    print("sum", np.allclose(Tensor(a).sum(axis=0).numpy(), a.sum(axis=0), rtol=1e-5))
    e = np.exp(a - a.max(axis=1, keepdims=True))
    print("softmax", np.allclose(Tensor(a).softmax().numpy(), e / e.sum(axis=1, keepdims=True), rtol=1e-4))
    whole = rng.integers(-1000, 1000, 300, np.int32)
    print("integers", np.array_equal((Tensor(whole) // 7 * 3).cast(dtypes.int16).numpy(), (whole // 7 * 3).astype(np.int16)))
    large = rng.integers(0, 255, 9 << 20, np.uint8)  # of pages of 2 MiB, in several pieces
    print("copies", np.array_equal(Tensor(large).realize().numpy(), large))
    for index in range(1, devices):
        other = Tensor(a).realize().to(f"{Device.DEFAULT}:{index}")
        print("peer", np.array_equal((other * 2).numpy(), a * 2))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
