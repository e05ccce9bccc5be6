"""What ptxas makes of PTX, run by the translator. Witness: NumPy on what PTX's manual says of each instruction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.virtual.nvidia.emulator import Emulator, cubin, module
from tests.virtual.nvidia.kernels import BODIES, SINCE, source

SMS = (75, 80, 86, 89, 90, 120)
N = 256
SPARE = 64  # numbers behind the arrays that kernels use together
U32 = np.uint32
Array = np.ndarray
MODELS: dict[str, Callable[[Array], Array]] = {}


def model(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    MODELS[f.__name__] = f
    return f


def u(x: object) -> Array:
    """As 32 bits."""
    return np.asarray(x).astype(object).__and__(0xFFFFFFFF).astype(np.uint64).astype(U32)


def s(x: Array) -> Array:
    """As Python's integers, with the sign."""
    return x.astype(U32).view(np.int32).astype(object)


def o(x: Array) -> Array:
    """As Python's integers."""
    return x.astype(object)


def warps(x: Array, f: Callable[[Array], Array]) -> Array:
    return np.concatenate([f(part) for part in x.reshape(-1, 32)])


@model
def collatz(x: Array) -> Array:
    y = np.zeros(len(x), U32)
    x = x.astype(np.int64) % 1000
    while (x > 1).any():
        y += x > 1
        x = np.where(x > 1, np.where(x % 2 == 0, x // 2, 3 * x + 1), x)
    return y


@model
def nested(x: Array) -> Array:
    def one(v: int) -> int:
        if v & 1:
            y = (v * 7 + 1 if v & 2 else v // 3) + 1000
        elif v & 4:
            y = 0
            for k in range(v & 31):
                y = y * 5 + k & 0xFFFFFFFF
        else:
            y = 77
        return y + 1 & 0xFFFFFFFF
    return np.array([one(int(v)) for v in x], U32)


@model
def shuffle(x: Array) -> Array:
    def one(v: Array) -> Array:
        lane = np.arange(32)
        y = np.full(32, v.sum(dtype=U32), U32)
        y += np.where(lane >= 3, v[np.maximum(lane - 3, 0)], v + U32(100)) * U32(3)
        stays = 7199 >> 8 & 31
        last = lane & stays | 7199 & 31 & ~stays
        there = lane + 5 <= last
        y += np.where(there, v[np.minimum(lane + 5, 31)], v + U32(200)) * U32(5)
        return y + v[v & 31] * U32(7)
    return warps(x, one)


@model
def votes(x: Array) -> Array:
    def one(v: Array) -> Array:
        k = v & 3
        ballot = sum(1 << n for n in range(32) if k[n] == 0)
        y = ballot ^ int((k == 0).any()) ^ 2 * int((k == 0).all())
        match = np.array([sum(1 << m for m in range(32) if k[m] == k[n]) for n in range(32)], np.uint64)
        same = 0xFFFFFFFF if (k == k[0]).all() else 0
        return u(o(match) * 3 + y + same + 0xFFFFFFFF)
    return warps(x, one)


@model
def reduce(x: Array) -> Array:
    return np.repeat(x.reshape(2, 128).sum(1, dtype=U32), 128)


def _truncated(a: Array, b: Array) -> tuple[Array, Array]:
    """Quotient and remainder towards 0."""
    q = abs(a) // abs(b) * np.where((a < 0) != (b < 0), -1, 1)
    return q, a - q * b


@model
def divide(x: Array) -> Array:
    by = np.arange(N).astype(object) + N
    y = o(x) // by ^ o(x) % by
    y = u(y ^ _truncated(s(x), by)[0])
    y = u(o(y) ^ _truncated(s(x), np.full(N, -7, object))[1])
    wide = o(x) << 13 | 77
    return u(o(y) ^ wide // by ^ wide % by)


def _bfind(x: Array) -> Array:
    return np.array([int(v).bit_length() - 1 for v in x], object)


@model
def bits(x: Array) -> Array:
    count = np.array([int(v).bit_count() for v in x], object)
    y = u(count * 41 + np.array([32 - int(v).bit_length() for v in x], object))
    y = u(o(y) ^ np.array([int(f"{int(v):032b}"[::-1], 2) for v in x], object))
    y = u(o(y) + _bfind(x))
    y = u(o(y) * 3 + _bfind(np.where(x >> 31, ~x, x)))
    y = u(o(y) + (o(x) >> 5 & 511))
    field = o(x) >> 3 & 2047
    y = u(o(y) + np.where(field >> 10 & 1, field - 2048, field))
    y = u(o(y) ^ (o(y) & ~(63 << 7) | (o(x) & 63) << 7))
    pair = o(y) << 32 | o(x)
    y = u(o(y) ^ sum((pair >> 8 * k & 255) << 8 * n for n, k in enumerate((5, 7, 1, 3))))
    by = x & 31
    y = u(o(y) + (o(x) << o(by)))
    y = u(o(y) + (s(x) >> o(by)))
    y = u(o(y) ^ ((o(y) << 32 | o(x)) << o(by)) >> 32)
    y = u(o(y) + abs(s(x)))
    y = u(o(y) + (np.minimum(s(x), s(by)) & 0xFFFFFFFF ^ np.maximum(o(x), o(by))))
    a, b, c = o(x), o(y), o(by)
    table = sum(1 << n for n in range(8) if 0x6A >> n & 1)
    lut = sum(np.where(table >> n & 1, (a if n & 4 else ~a) & (b if n & 2 else ~b) & (c if n & 1 else ~c), 0) for n in range(8))
    y = u(o(y) + lut)
    y = u(o(y) + (o(x) * o(y) >> 32))
    y = u(o(y) + (s(x) * s(y) >> 32))
    bytes_x, bytes_y = x.view(np.uint8).reshape(-1, 4).astype(object), y.view(np.int8).reshape(-1, 4).astype(object)
    y = u(o(y) + (bytes_x * bytes_y).sum(1))
    pair, chosen = o(y) << 32 | o(x), o(by)
    spread = 0
    for n in range(4):
        nibble = chosen >> 4 * n & 15
        byte = pair >> 8 * (nibble & 7) & 255
        spread = spread | np.where(nibble & 8, (byte >> 7) * 255, byte) << 8 * n
    y = u(o(y) + spread)

    def second(v: int) -> int:
        found = [n for n in range(32) if v >> n & 1]
        return found[1] if len(found) > 1 else 0xFFFFFFFF
    return u(o(y) + np.array([second(int(v)) for v in x], object))


def _s64(x: Array) -> Array:
    x = x & (1 << 64) - 1
    return np.where(x >> 63, x - (1 << 64), x)


def _u64(x: Array) -> Array:
    return x & (1 << 64) - 1


@model
def wide(x: Array) -> Array:
    d1 = _u64(s(x))
    d2 = _u64(d1 << 19) ^ 0x123456789
    d3 = _u64(d1 * d2 + d2)
    d4 = _u64(d2 - d3)
    by = o(x) & 63
    d5 = _u64(_s64(d3) >> by) ^ _u64(d4 << by) ^ d4 >> by
    d5 = np.where(_s64(d3) < _s64(d4), d5, d3)
    r3, r4 = np.where(d5 <= d2, 5, 9), np.where(d5 == d2, 16, 0)
    d5 = _u64(np.minimum(_s64(d5), _s64(d4))) ^ np.maximum(d5, d2)
    d5 = _u64(d5 + (d5 * d2 >> 64)) ^ _u64(abs(_s64(d4)))
    count = np.array([int(v).bit_count() for v in d5], object)
    zeros = np.array([64 - int(v).bit_length() for v in d5], object)
    return u((d5 & 0xFFFFFFFF ^ d5 >> 32) + r3 + r4 + count * 99 + zeros * 999)


@model
def stack(x: Array) -> Array:
    table = [u(o(x) * k + 3) for k in range(16)]

    def at(k: Array) -> Array:
        return np.choose(k, table)
    k = (x & 15).astype(np.int64)
    half = k & 7
    return u((o(at(k)) ^ o(at(2 * half))) + o(at(2 * half + 1)))


@model
def lock(x: Array) -> Array:
    return np.zeros(len(x), U32)  # see test_lock


@model
def switch(x: Array) -> Array:
    v, k = o(x), (x & 7).astype(np.int64)
    count = np.array([int(n).bit_count() for n in x], object)
    ways = [v * 3 + 1, v ^ 0x55, v >> 3, (~v & 0xFFFFFFFF) + 17, count, 1 + 17 + 0 * v, v // 9, 42 + 0 * v]
    return np.choose(k, [u(w) for w in ways])


def _twice(v: int) -> int:
    return 2 * ((v * 3 & 0xFFFFFFFF) // 5 if v & 4 else v) & 0xFFFFFFFF


@model
def calls(x: Array) -> Array:
    def one(i: int, v: int) -> int:
        y = _twice(v) + 5 & 0xFFFFFFFF if v & 1 else _twice(i)
        r = 1
        for _ in range(y & 7):
            r = y + _twice(r) & 0xFFFFFFFF
        return r
    return np.array([one(i, int(v)) for i, v in enumerate(x)], U32)


@model
def pipe(x: Array) -> Array:
    y = np.zeros((2, 128), U32)
    for block in range(2):
        box = x.reshape(2, 128)[block, :64]
        for k in range(4):
            y[block, 64:] = y[block, 64:] * U32(31) + box * U32(3) + U32(k)
    return y.ravel()


@model
def barred(x: Array) -> Array:
    def one(v: Array) -> Array:
        count = int(((v & 3) != 0).sum())
        y = count + 1000 * int((v > 5).all()) + 5000 * int((v == 7).any())
        half = [int(((v[64 * k:64 * k + 64] & 3) != 0).sum()) for k in range(2)]
        return np.repeat([y + h for h in half], 64).astype(U32)
    return np.concatenate([one(part) for part in x.reshape(2, 128)])


@model
def early(x: Array) -> Array:
    def one(v: Array) -> Array:
        return np.where(v & 1, v[(v & 1) == 1].sum(dtype=U32), U32(9))
    return np.concatenate([one(part) for part in x.reshape(2, 128)])


@model
def atomics(x: Array) -> Array:
    return x & 3


@model
def widths(x: Array) -> Array:
    i = np.arange(N)
    room = np.zeros((N, 16), np.uint8)
    words = room.view(U32)
    words[:, 0], words[:, 1], words[:, 2], words[:, 3] = x, i % 128, i, 5
    room[:, 5] = x & 255
    room[:, 8:10] = (x & 0xFFFF).astype(np.uint16)[:, None].view(np.uint8)
    y = words[:, 0] ^ words[:, 1]
    y = u(o(y) + room[:, 3].view(np.int8).astype(object))
    y = u(o(y) ^ room[:, 2:4].copy().view(np.int16)[:, 0].astype(object))
    y = u(o(y) * 3 + room[:, 6:8].copy().view(np.uint16)[:, 0].astype(object))
    y = u((o(y) ^ o(words[:, 1])) + o(words[:, 2]))
    y = u(o(words[:, 3]) * o(words[:, 0]) + o(y))
    y = u(o(y) ^ x.view(np.int8).reshape(-1, 4)[:, 1].astype(object))
    y = u(o(y) + (o(x) >> 16) + o(x))
    return u((o(y) & 255) * 257 + o(y))


@model
def reduced(x: Array) -> Array:
    def one(v: Array) -> Array:
        y = (int(v.sum(dtype=U32)) ^ int(s(v).min()) & 0xFFFFFFFF) + int(np.bitwise_or.reduce(v)) & 0xFFFFFFFF
        return np.full(32, y ^ int(v.max()), U32)
    return warps(x, one)


@model
def async_(x: Array) -> Array:
    return warps(x, lambda v: v[np.arange(32) ^ 31])


@model
def matrix(x: Array) -> Array:
    def one(v: Array) -> Array:
        tile = np.stack([v + U32(k) for k in range(4)]).reshape(4, 8, 4)  # matrix, row, pair
        halves = tile.view(np.uint16).reshape(4, 8, 8)
        lane = np.arange(32)
        found = [tile[m, lane // 4, lane % 4] for m in range(4)]
        across = [o(halves[m, 2 * (lane % 4), lane // 4]) | o(halves[m, 2 * (lane % 4) + 1, lane // 4]) << 16 for m in range(2)]
        y = o(found[0]) * 3 + o(found[1])
        y = u((y * 5 + o(found[2])) * 7 + o(found[3]))
        return u((o(y) * 11 + across[0]) * 13 + across[1])
    return warps(x, one)


@model
def groups(x: Array) -> Array:
    def one(v: Array) -> Array:
        y, k = v.copy(), v & 3
        for n in range(4):
            lanes = np.flatnonzero(k == n)
            if n < 2:
                y[lanes] += (v[lanes] * U32(n + 1)).sum(dtype=U32)
            elif len(lanes):
                last = v[lanes[-1]]
                above = v[lanes] > last
                y[lanes] = last ^ U32(sum(1 << int(lane) for lane in lanes[above]))
                if n == 2:
                    y[lanes] += U32(3 if above.all() else 5)
        return y
    return warps(x, one)


@model
def cluster(x: Array) -> Array:
    def one(v: Array) -> Array:
        y = v * U32(3) + v[::-1]
        return y ^ y[::-1]
    return np.concatenate([one(part) for part in x.reshape(2, 128)])


MODELS["async"] = MODELS.pop("async_")
# Every kernel runs on one of the generations, in turn; the marker `slow` runs all of them on all.
CASES = [(sm, name) for sm in SMS for n, name in enumerate(BODIES)
         if sm >= SINCE.get(name, 75) and (SMS[n % len(SMS)] == sm or sm == SINCE.get(name))]


def run(sm: int, name: str, x: Array, options: str = "") -> tuple[Array, Array]:
    """(what each thread wrote, the numbers behind it)."""
    gpu = Emulator(sm)
    buffers = [gpu.alloc(np.concatenate([data, np.zeros(SPARE, U32)])) for data in (x, 0 * x)]
    gpu.run(cubin(module(sm, source(name)), sm, options), buffers[0].va, buffers[1].va, len(x).to_bytes(4, "little"),
            grid=(2, 1, 1), block=(len(x) // 2, 1, 1), name=name)
    found = [b.array(U32).copy() for b in buffers]
    gpu.close()
    return found[1][:len(x)], found[0 if name == "lock" else 1][len(x):]


@pytest.mark.parametrize(("sm", "name"), CASES)
def test_kernels(sm: int, name: str) -> None:
    check(sm, name)


@pytest.mark.slow
@pytest.mark.parametrize("sm", SMS)
def test_all_kernels(sm: int) -> None:
    for name in BODIES:
        if sm >= SINCE.get(name, 75) and (sm, name) not in CASES:
            check(sm, name)


@pytest.mark.parametrize(("sm", "name"), [(75, "stack"), (80, "calls"), (86, "early"), (90, "groups"), (120, "switch")])
def test_kernels_without_a_schedule(sm: int, name: str) -> None:
    """ptxas -O0: nothing but stalls of 0, no scoreboards."""
    check(sm, name, "-O0")


@pytest.mark.slow
@pytest.mark.parametrize("sm", SMS)
def test_all_kernels_without_a_schedule(sm: int) -> None:
    for name in BODIES:
        if sm >= SINCE.get(name, 75):
            check(sm, name, "-O0")


def check(sm: int, name: str, options: str = "") -> None:
    x = np.random.default_rng(len(name)).integers(0, 1 << 32, N, dtype=np.uint64).astype(U32)
    x[:8] = 0, 1, 7, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF, 3, 0x80000001
    if name == "collatz":
        x %= 1000
    y, more = run(sm, name, x, options)
    if name == "lock":
        assert sorted(y) == list(range(1, N + 1)) and list(more[:2]) == [0, N]
        return
    want = MODELS[name](x)
    assert (y == want).all(), (np.flatnonzero(y != want)[:8], y[y != want][:8], want[y != want][:8])
    if name == "atomics":
        check_atomics(x, more)


def check_atomics(x: Array, more: Array) -> None:
    """The numbers that all threads changed together."""
    k = (x & 3).astype(object)
    want = np.zeros(20, np.uint64)
    sums = [int(sum(int(v) for v in x[k == n])) for n in range(4)]
    lows = [v & 0xFFFFFFFF for v in sums]
    want[0], want[2], want[4], want[6] = lows
    offsets = sum(4 * n for n in range(N))
    want[8], want[9] = offsets & 0xFFFFFFFF, offsets >> 32
    want[10] = max(0, *(int(v) for v in s(x))) & 0xFFFFFFFF
    want[11] = 0
    want[12] = N % 101
    want[13] = int(np.bitwise_or.reduce(x))
    want[14] = int(np.float32(k.sum()).view(U32))
    want[15] = int(np.bitwise_xor.reduce(x))
    want[16] = 2 * N
    assert (more[:17] == want[:17]).all(), (more[:17], want[:17])
    halves = [x[:N // 2], x[N // 2:]]
    blocks = [(int((h & 3).sum()), int(np.float32((h & 3).sum()).view(U32)), int(h.max())) for h in halves]
    assert tuple(int(v) for v in more[17:20]) in blocks
