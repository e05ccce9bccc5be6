"""Creation, random numbers, and asarray against NumPy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import devrt
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from tests.array.reference import ARITHMETIC, SIZES, array, numbers, same, value
from tests.garbage import collect


@pytest.mark.parametrize("d", dt.ALL, ids=str)
def test_filled(d: DType) -> None:
    like = array(numbers(dt.int8, (2, 3)))
    for got, want in [(devrt.zeros((2, 3), dtype=d), 0), (devrt.ones((2, 3), dtype=d), 1),
                      (devrt.full((2, 3), 3, dtype=d), 3),
                      (devrt.zeros_like(like, dtype=d), 0), (devrt.ones_like(like, dtype=d), 1),
                      (devrt.full_like(like, 2, dtype=d), 2)]:
        assert got.shape == (2, 3) and got.dtype is d
        np.testing.assert_array_equal(value(got).astype(float),
                                      np.full((2, 3), bool(want) if d.kind == "bool" else want))
    assert devrt.empty(5, dtype=d).shape == (5,) and devrt.zeros((), dtype=d).item() == 0


def test_default_types() -> None:
    assert [devrt.full(1, v).dtype for v in (True, 1, 1.0)] == [dt.bool_, dt.int64, dt.float32]
    assert [devrt.asarray(v).dtype for v in (True, 1, 1.0)] == [dt.bool_, dt.int64, dt.float32]
    assert [devrt.asarray([v]).dtype for v in (True, 1, 1.0)] == [dt.bool_, dt.int64, dt.float32]
    assert [x.dtype for x in (devrt.arange(3), devrt.arange(3.0), devrt.linspace(0, 1, 3))] == [dt.int64, dt.float32, dt.float32]


@pytest.mark.parametrize("arguments", [(5,), (0,), (2, 9), (9, 2), (9, 2, -2), (0, 10, 3), (0.0, 1.0, 0.25), (5.0,),
                                       (1, 2, 0.1), (-3,)], ids=str)
def test_arange(arguments: tuple[Any, ...]) -> None:
    want = np.arange(*arguments)
    want = want.astype(np.float32) if want.dtype.kind == "f" else want
    same(devrt.arange(*arguments), want, rtol=1e-6)


@pytest.mark.parametrize("d", [d for d in ARITHMETIC if d.kind != "bool"], ids=str)
def test_arange_types(d: DType) -> None:
    np.testing.assert_array_equal(value(devrt.arange(100, dtype=d)).astype(float), np.arange(100))


def test_linspace_and_eye() -> None:
    for arguments in ((0, 1, 5), (0, 1, 1), (0, 1, 0), (-3, 3, 101), (5, -5, 11)):
        same(devrt.linspace(*arguments), np.linspace(*arguments, dtype=np.float32), rtol=1e-6, atol=1e-6)
        same(devrt.linspace(*arguments, endpoint=False), np.linspace(*arguments, endpoint=False, dtype=np.float32),
             rtol=1e-6, atol=1e-6)
    assert devrt.linspace(0, 0.3, 7)[-1].item() == np.float32(0.3)
    same(devrt.eye(4), np.eye(4, dtype=np.float32))
    same(devrt.eye(3, 5, k=1), np.eye(3, 5, 1, dtype=np.float32))
    same(devrt.eye(33, k=-2, dtype=dt.int32), np.eye(33, k=-2, dtype=np.int32))


def test_constants() -> None:
    assert (devrt.pi, devrt.e, devrt.inf, devrt.newaxis) == (np.pi, np.e, np.inf, None) and np.isnan(devrt.nan)
    assert devrt.asarray([1, 2])[devrt.newaxis].shape == (1, 2)


def test_every_name_resolves() -> None:
    from devrt import functions
    for name in functions.__all__:
        assert hasattr(devrt, name) and name in dir(devrt)


# ----- asarray


@pytest.mark.parametrize("d", [d for d in ARITHMETIC if d is not dt.bfloat16], ids=str)
def test_zero_copy(d: DType) -> None:
    a = numbers(d, (4, 5))
    x = devrt.asarray(a)
    assert x.dtype is d and x.storage.buffer.address == a.ctypes.data
    assert devrt.asarray(a, copy=False).storage.buffer.address == a.ctypes.data
    assert devrt.asarray(a, copy=True).storage.buffer.address != a.ctypes.data
    assert not x.numpy().flags.writeable and x.numpy().ctypes.data == a.ctypes.data
    want = a.copy()
    del a
    collect()
    same(x, want)


def test_copied_where_it_must_be() -> None:
    a = np.arange(24, dtype=np.float32).reshape(4, 6)
    bytes_ = np.zeros(4 * 10 + 1, np.uint8)
    odd = bytes_[1:].view(np.float32)
    odd[:] = np.arange(10)
    for view in (a.T, a[::2], a[:, 1:3], a[::-1], a.astype(">f4"), np.broadcast_to(a, (2, 4, 6)), np.asfortranarray(a),
                 odd):
        same(devrt.asarray(view), view.astype(np.float32))
        with pytest.raises(devrt.InvalidArgument, match="in place"):
            devrt.asarray(view, copy=False)
    frozen = a.copy()
    frozen.flags.writeable = False
    assert devrt.asarray(frozen, copy=False).storage.buffer.address == frozen.ctypes.data


def test_types_of_ml_dtypes() -> None:
    for kind, d in ((ml_dtypes.bfloat16, dt.bfloat16), (ml_dtypes.float8_e4m3fn, dt.float8_e4m3),
                    (ml_dtypes.float8_e5m2, dt.float8_e5m2)):
        a = np.arange(-8, 8, dtype=np.float32).astype(kind).reshape(4, 4)
        for view in (a, a.T, a[::2]):
            x = devrt.asarray(view)
            assert x.dtype is d
            np.testing.assert_array_equal(x.numpy(), view.astype(np.float32))


def test_other_sources() -> None:
    x = devrt.asarray([1.5, 2.5])
    assert devrt.asarray(x) is x and devrt.asarray(x, dtype=dt.int32).tolist() == [1, 2]
    assert devrt.asarray(np.float64(2.5)).dtype is dt.float64 and devrt.asarray(np.int8(3)).dtype is dt.int8
    assert devrt.asarray([[1, 2], [3, 4]], dtype=dt.float16).dtype is dt.float16
    assert devrt.asarray([]).shape == (0,) and devrt.asarray([[], []]).shape == (2, 0)
    assert devrt.asarray(range(4)).tolist() == [0, 1, 2, 3] and devrt.asarray(memoryview(b"ab")).tolist() == [97, 98]
    np.testing.assert_array_equal(np.asarray(x), [1.5, 2.5])
    np.testing.assert_array_equal(np.asarray(x, np.float64), [1.5, 2.5])
    np.testing.assert_array_equal(np.array(x, copy=True), [1.5, 2.5])
    assert devrt.astype(x, dt.int32).dtype is dt.int32 and x.astype(dt.float32) is x


# ----- random numbers


def threefry(count: int, seed: int) -> np.ndarray:
    """Threefry 2x32, 20 rounds, written from its paper."""
    mask = 0xFFFFFFFF
    keys = [seed & mask, seed >> 32 & mask]
    keys.append(keys[0] ^ keys[1] ^ 0x1BD11BDA)
    half = (count + 1) // 2
    x = np.arange(half, dtype=np.uint64) + keys[0] & mask
    y = np.full(half, keys[1], np.uint64)
    for n in range(20):
        r = (13, 15, 26, 6, 17, 29, 16, 24)[n % 8]
        x = x + y & mask
        y = (y << np.uint64(r) | y >> np.uint64(32 - r)) & mask ^ x
        if n % 4 == 3:
            k = n // 4 + 1
            x, y = x + keys[k % 3] & mask, y + keys[(k + 1) % 3] + k & mask
    return np.concatenate([x, y])[:count].astype(np.uint32)


@pytest.mark.parametrize("n", SIZES)
def test_random_bits_are_threefry(n: int) -> None:
    for seed in (0, 1, 0xDEADBEEF12345678):
        np.testing.assert_array_equal(devrt.random_bits(n, seed=seed).numpy(), threefry(n, seed))


def test_threefry_known_answer() -> None:
    """Counter (0, 0)... the published vector for key 0, counter 0 is 6b200159 99ba4efe."""
    assert [hex(v) for v in devrt.random_bits(2, seed=0).tolist()] == ["0x6b200159", "0x99ba4efe"]


def test_distributions() -> None:
    u = devrt.random_uniform((100, 1000), seed=3).numpy()
    assert u.dtype == np.float32 and u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 3e-3 and abs(u.var() - 1 / 12) < 1e-3
    assert ((u * 2**24) % 1 == 0).all()
    z = devrt.random_normal(100000, seed=4).numpy()
    assert np.isfinite(z).all() and abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and abs((z**3).mean()) < 0.05
    assert (devrt.random_uniform(9, seed=3).numpy() == devrt.random_uniform(9, seed=3).numpy()).all()
    assert (devrt.random_bits(9, seed=3, stream=1).numpy() != devrt.random_bits(9, seed=3).numpy()).any()
    assert (devrt.random_bits(9, seed=2).numpy() != devrt.random_bits(9, seed=3).numpy()).any()


