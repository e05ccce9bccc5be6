"""Kernels for Triton, a peer of bench/nvidia.py: written plainly, with the block sizes that are usual for a Hopper GPU."""

# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _scaled_sum(x, y, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    tl.store(out + at, tl.load(x + at, inside) * 2 + tl.load(y + at, inside), inside)


def scaled_sum(x, y):
    """x*2 + y."""
    out = torch.empty_like(x)
    count = x.numel()
    _scaled_sum[(triton.cdiv(count, 1024),)](x, y, out, count, BLOCK=1024, num_warps=4)
    return out


@triton.jit
def _softmax(x, out, columns, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    inside = at < columns
    values = tl.load(x + row * columns + at, inside, -float("inf"))
    powers = tl.exp(values - tl.max(values, 0))
    tl.store(out + row * columns + at, powers / tl.sum(powers, 0), inside)


def softmax(x):
    """Along rows."""
    out = torch.empty_like(x)
    rows, columns = x.shape
    _softmax[(rows,)](x, out, columns, BLOCK=triton.next_power_of_2(columns), num_warps=8)
    return out


@triton.jit
def _matmul(a, b, out, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr):
    """One block of BM x BN; blocks of GROUP rows of blocks run together, so that they share columns in the cache."""
    group, rows_of_blocks, columns_of_blocks = tl.program_id(0), tl.cdiv(m, BM), tl.cdiv(n, BN)
    first = group // (GROUP * columns_of_blocks) * GROUP
    height = tl.minimum(rows_of_blocks - first, GROUP)
    row = first + group % (GROUP * columns_of_blocks) % height
    column = group % (GROUP * columns_of_blocks) // height
    i, j, inner = row * BM + tl.arange(0, BM), column * BN + tl.arange(0, BN), tl.arange(0, BK)
    left, right = a + i[:, None] * k + inner[None, :], b + inner[:, None] * n + j[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for _ in range(tl.cdiv(k, BK)):
        acc = tl.dot(tl.load(left), tl.load(right), acc)
        left += BK
        right += BK * n
    tl.store(out + i[:, None] * n + j[None, :], acc.to(out.dtype.element_ty))


def matmul(a, b):
    """a @ b; sides are multiples of 128."""
    (m, k), (_, n) = a.shape, b.shape
    out = torch.empty((m, n), device=a.device, dtype=a.dtype)
    _matmul[(triton.cdiv(m, 128) * triton.cdiv(n, 256),)](a, b, out, m, n, k, BM=128, BN=256, BK=64, GROUP=8, num_warps=8,
                                                          num_stages=3)
    return out
