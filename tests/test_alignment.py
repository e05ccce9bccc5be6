"""Kernels on read-only memory that is aligned to its elements and to nothing more, as tensors in a file are: the bits of an
aligned copy, and close to NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import devrt
from devrt import nn, registry
from devrt.compiler import dtypes as dt
from devrt.ioctl.system import MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, LinuxSystem, view
from devrt.scheduler.storage import Storage, buffer_node
from tests.array.reference import array, numbers, value


def placed(values: NDArray[Any], offset: int) -> devrt.Array:
    """`values` at `offset` bytes into a page, the byte behind them being unmapped where the offset allows: what reads a
    byte too many ends the process. The memory stays mapped."""
    system, page = LinuxSystem(), 4096
    room = -(-(values.nbytes + offset) // page) * page
    start = system.mmap(-1, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE)
    system.mprotect(start + room, page, PROT_NONE)
    at = start + offset if offset else start + room - values.nbytes
    view(at, values.nbytes)[:] = np.ascontiguousarray(values).view(np.uint8).reshape(-1).data
    system.mprotect(start, room, PROT_READ)
    device = registry.open("cpu")
    d = array(values[:0]).dtype
    return devrt.Array(buffer_node(Storage(values.shape, d, device, device.wrap(at, values.nbytes, system))))


WIDE = {dt.bfloat16: np.float32, dt.float16: np.float32}
SHAPE = (67, 130)  # full vectors and a rest on both axes
KERNELS: dict[str, tuple[Callable[[devrt.Array], devrt.Array], Callable[[NDArray[Any]], NDArray[Any]]]] = {
    "map": (lambda a: a * 2 + 1, lambda a: a * 2 + 1),
    "transposed": (lambda a: a.mT * 2, lambda a: a.T * 2),
    "rows": (lambda a: a.sum(axis=1), lambda a: a.sum(1)),
    "columns": (lambda a: a.max(axis=0), lambda a: a.max(0)),
    "gemm": (lambda a: a @ a.mT, lambda a: a @ a.T),
    "gemm-right": (lambda a: a.mT @ a, lambda a: a.T @ a),
    "gemv": (lambda a: nn.linear(devrt.ones(130, dtype=a.dtype), a), lambda a: a.sum(1)),
    "gather": (lambda a: devrt.take(a, devrt.asarray([66, 0, 5, 66]), axis=0), lambda a: a[[66, 0, 5, 66]]),
    "softmax": (lambda a: nn.softmax(a), lambda a: (w := np.exp(a - a.max(1, keepdims=True))) / w.sum(1, keepdims=True)),
}


@pytest.mark.parametrize("d", [dt.float32, dt.float64, dt.bfloat16, dt.float16], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_at_every_element_offset(kernel: str, d: dt.DType) -> None:
    x = numbers(d, SHAPE, 5)
    ours, theirs = KERNELS[kernel]
    want = ours(array(x))
    wide = x.astype(WIDE.get(d, x.dtype))
    np.testing.assert_allclose(value(want).astype(np.float64), theirs(wide.astype(np.float64)), rtol=0.02, atol=0.2)
    for offset in range(0, 65, d.bits // 8):
        np.testing.assert_array_equal(value(ours(placed(x, offset))), value(want), err_msg=f"at {offset} bytes into a line")


@pytest.mark.parametrize("d", [dt.float32, dt.bfloat16], ids=str)
@pytest.mark.parametrize("queries", [1, 33])
def test_attention_at_every_element_offset(queries: int, d: dt.DType) -> None:
    q, k, v = numbers(d, (4, queries, 40), 1), numbers(d, (2, 50, 40), 2), numbers(d, (2, 50, 40), 3)
    want = nn.attention(array(q), array(k), array(v), causal=True)
    wide = [a.astype(np.float64) for a in (q, k, v)]
    scores = np.einsum("gitd,gsd->gits", wide[0].reshape(2, 2, queries, 40), wide[1]) / np.sqrt(40)
    scores = np.where(np.arange(50) <= np.arange(queries)[:, None] + 50 - queries, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    direct = np.einsum("gits,gsd->gitd", weights / weights.sum(-1, keepdims=True), wide[2]).reshape(4, queries, 40)
    np.testing.assert_allclose(value(want).astype(np.float64), direct, atol=2e-2)
    for offset in range(0, 65, d.bits // 8):
        got = nn.attention(placed(q, offset), placed(k, offset), placed(v, offset), causal=True)
        np.testing.assert_array_equal(value(got), value(want), err_msg=f"at {offset} bytes into a line")


def test_a_large_output_of_an_odd_input() -> None:
    """Outputs of this size bypass the caches with aligned stores; the inputs are as they are."""
    x = numbers(dt.float32, (5 << 20,), 1)
    for offset in (0, 4, 60):
        np.testing.assert_array_equal((placed(x, offset) * 3 - 1).numpy(), x * np.float32(3) - np.float32(1))
