"""The uniform datapath and rare instructions: kernels of the compiler's tests whose code differs from generation to generation
compute the same on all of them."""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.virtual.nvidia.emulator import Emulator, cubin

SMS = (75, 80, 86, 89, 90, 120)
PTX = Path(__file__).parents[2] / "compiler" / "sass" / "ptx"
INPUT = np.random.default_rng(1).integers(0, 1 << 32, 4096, dtype=np.uint64).astype(np.uint32)
TIMES = [7, 8, 9, 10, 22, 23, 28, 29, 30, 31, 32]  # words of `rare`: counters, numbers of warps, of SMs, of the grid


def words(*numbers: int) -> list[bytes]:
    return [(n & 0xFFFFFFFF).to_bytes(4, "little") for n in numbers]


def longs(*numbers: int) -> list[bytes]:
    return [n.to_bytes(8, "little") for n in numbers]


# arguments behind the output (and, for `rare`, the input); blocks, threads of a block
KERNELS = {
    "floats": ("uniform", [*[struct.pack("f", x) for x in (1.5, -2.25, 3.0)], *words(7, -5)], 1, 32),
    "words": ("uniform", [*longs(0x123456789ABCDEF0, 0xFEDCBA9876543210), *words(77, -13, 5)], 1, 32),
    "predicates": ("uniform", words(6, 9), 10, 32),
    "constants": ("uniform", [*words(20), bytes(range(256)) * 2], 1, 32),
    "rare": ("rare", words(3, 9, -7), 1, 32),
    "jumps": ("rare", words(1), 4, 1),
}


@functools.cache
def run(sm: int, name: str) -> np.ndarray:
    file, arguments, blocks, threads = KERNELS[name]
    gpu = Emulator(sm)
    try:
        out, data = gpu.alloc(bytes(1 << 14)), gpu.alloc(INPUT)
        behind = [data.va] if name == "jumps" else []
        between = [data.va] if name == "rare" else []
        gpu.run(cubin((PTX / f"{file}.ptx").read_text(), sm), out.va, *between, *arguments, *behind, name=name,
                grid=(blocks, 1, 1), block=(threads, 1, 1))
        return out.array(np.uint32).reshape(-1, 64).copy()
    finally:
        gpu.close()


@pytest.mark.parametrize("name", KERNELS)
def test_generations_agree(name: str) -> None:
    for sm in SMS[1:]:
        old, new = run(SMS[0], name).copy(), run(sm, name).copy()
        if name == "rare":
            old[:, TIMES] = new[:, TIMES] = 0
        assert old.any() and (old == new).all(), (sm, np.argwhere(old != new)[:8])


def test_sums_of_bytes() -> None:
    """vabsdiff4.add: one instruction on old generations, packed minima and sums on new ones."""
    a, b, c = (INPUT[:128].reshape(32, 4)[:, n] for n in range(3))
    x, y = (v.copy().view(np.uint8).reshape(32, 4).astype(np.int64) for v in (a, b))
    want = (c + np.abs(x - y).sum(axis=1)).astype(np.uint32)
    for sm in (75, 90, 120):
        assert (run(sm, "rare")[:32, 0] == want).all()


def test_predicates() -> None:
    """What is the same for all threads of a block lies in uniform predicates."""
    n, m = 6, 9
    found = run(90, "predicates").reshape(-1, 8)
    for block in range(10):
        for thread in range(32):
            p0, p1, p2, p3 = n < 5, thread > 7, block == 9, thread != m
            p5 = p0 and p1 or p2
            p6 = p5 != p3
            p8 = not p6 and p2
            p10 = (p0 or p3) != p8
            want = [1 if p0 and p1 else 2, 3 if p5 else 4, thread if p6 else block, n if p8 else thread]
            want += [9 if p10 else 0, 5 if p0 or p3 else 0]
            assert list(found[32 * block + thread][:6]) == want, (block, thread)
