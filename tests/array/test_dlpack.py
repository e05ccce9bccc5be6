"""DLPack with NumPy and PyTorch, both ways: types, sharing, lifetimes, read-only, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import devrt
from devrt import registry
from devrt.compiler import dtypes as dt
from devrt.device import InvalidArgument, Unsupported
from tests.array.reference import NP, array, numbers, value
from tests.garbage import collect

TORCH = {dt.bool_: torch.bool, dt.int8: torch.int8, dt.int16: torch.int16, dt.int32: torch.int32, dt.int64: torch.int64,
         dt.uint8: torch.uint8, dt.uint16: torch.uint16, dt.uint32: torch.uint32, dt.uint64: torch.uint64,
         dt.float16: torch.float16, dt.bfloat16: torch.bfloat16, dt.float32: torch.float32, dt.float64: torch.float64,
         dt.float8_e4m3: torch.float8_e4m3fn, dt.float8_e5m2: torch.float8_e5m2}
SHAPES = [(), (1,), (0,), (0, 4), (3, 0, 2), (5,), (3, 5), (2, 3, 4)]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """PyTorch says once that it does not keep read-only memory read-only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def settle() -> None:
    """Let go of everything: garbage, and what finished submissions still hold."""
    collect()
    device = registry.open("cpu")
    device.compute.wait(device.compute.submitted)  # type: ignore[attr-defined]
    device.allocator.usage()  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("d", TORCH, ids=str)
def test_torch_round_trip(d: dt.DType, shape: tuple[int, ...]) -> None:
    x = array(numbers(d, shape), d).realize()
    t = torch.from_dlpack(x)
    assert t.dtype is TORCH[d] and tuple(t.shape) == shape
    assert not x.size or t.data_ptr() == x.storage.buffer.address
    np.testing.assert_array_equal(t.to(torch.float64).numpy(), value(x).astype(np.float64))
    back = devrt.from_dlpack(t)
    assert back.dtype is d and back.shape == shape
    assert not x.size or back.storage.buffer.address == t.data_ptr()
    np.testing.assert_array_equal(value(back), value(x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("d", [d for d in TORCH if d is not dt.bfloat16 and d.bits >= 8 and not d.storage], ids=str)
def test_numpy_round_trip(d: dt.DType, shape: tuple[int, ...]) -> None:
    x = array(numbers(d, shape)).realize()
    a = np.from_dlpack(x)
    assert a.dtype == NP[d] and a.shape == shape and not a.flags.writeable
    assert not x.size or a.ctypes.data == x.storage.buffer.address
    np.testing.assert_array_equal(a, value(x))
    back = devrt.from_dlpack(a)
    assert not x.size or back.storage.buffer.address == x.storage.buffer.address
    np.testing.assert_array_equal(value(back), value(x))


def test_devrt_goes_first() -> None:
    """The consumer's view keeps devrt's memory; it goes back when the view does."""
    allocator = registry.open("cpu").allocator  # type: ignore[attr-defined]
    for take in (torch.from_dlpack, np.from_dlpack, np.asarray):
        settle()
        before = allocator.usage().live
        x = (array(numbers(dt.float32, 100000)) + 1).realize().wait()
        want = x.numpy().copy()
        view = take(x)
        del x
        settle()
        assert allocator.usage().live > before
        churn = [(devrt.zeros(100000) + n).realize() for n in range(4)]  # would take the memory if it were free
        np.testing.assert_array_equal(np.asarray(view), want)
        del view, churn
        settle()
        assert allocator.usage().live == before


class Exporter:
    """Counts how often its memory is let go."""

    gone = 0

    def __init__(self, a: np.ndarray[Any, Any]) -> None:
        class Owned(np.ndarray):  # type: ignore[type-arg]
            def __del__(self) -> None:
                Exporter.gone += 1
        self.inner = a.view(Owned)

    def __dlpack_device__(self) -> tuple[int, int]: return (1, 0)
    def __dlpack__(self, **arguments: Any) -> Any: return self.inner.__dlpack__(**arguments)


def test_producer_goes_first() -> None:
    """Its memory is let go once: after the array and the expressions that read it."""
    Exporter.gone = 0
    e = Exporter(np.arange(1000, dtype=np.float32))
    x = devrt.from_dlpack(e)
    y = x * 2
    del e
    settle()
    assert Exporter.gone == 0
    del x
    settle()
    assert Exporter.gone == 0
    np.testing.assert_array_equal(y.numpy(), np.arange(1000) * 2)
    del y
    settle()
    assert Exporter.gone == 1


def test_capsule_nobody_takes() -> None:
    allocator = registry.open("cpu").allocator  # type: ignore[attr-defined]
    settle()
    before = allocator.usage().live
    x = (devrt.zeros(1000) + 1).realize()
    for versioned in (None, (1, 0)):
        capsule = x.__dlpack__(max_version=versioned)
        assert "dltensor" in repr(capsule)
        del capsule
    del x
    settle()
    assert allocator.usage().live == before


def test_a_capsule_is_taken_once() -> None:
    x = devrt.ones(3).realize()

    class Twice:
        capsule = x.__dlpack__(max_version=(1, 0))
        def __dlpack_device__(self) -> tuple[int, int]: return (1, 0)
        def __dlpack__(self, **_: Any) -> Any: return self.capsule
    devrt.from_dlpack(Twice())
    with pytest.raises(InvalidArgument, match="taken before"):
        devrt.from_dlpack(Twice())


def test_read_only_and_copies() -> None:
    x = devrt.asarray([1.0, 2.0]).realize()
    assert not np.from_dlpack(x).flags.writeable
    own = np.from_dlpack(x, copy=True)
    own[0] = 7
    assert x.tolist() == [1, 2]
    with pytest.raises(BufferError, match="read-only"):
        x.__dlpack__(copy=False)

    class Old:  # a consumer from before versions
        def __dlpack_device__(self) -> tuple[int, int]: return (1, 0)
        def __dlpack__(self, stream: None = None) -> Any: return x.__dlpack__()
    y = devrt.from_dlpack(Old())
    assert y.tolist() == [1, 2] and y.storage.buffer.address != x.storage.buffer.address
    frozen = np.arange(4.0)
    frozen.flags.writeable = False
    assert devrt.from_dlpack(frozen).tolist() == [0, 1, 2, 3]


def test_strided_is_copied_or_refused() -> None:
    t = torch.arange(12.0).reshape(3, 4)
    for view in (t.T, t[:, ::2], t[1:, 1:], t.expand(2, 3, 4), t[1:].mT):
        np.testing.assert_array_equal(devrt.from_dlpack(view).numpy(), view.numpy())
        with pytest.raises(InvalidArgument, match="in place"):
            devrt.from_dlpack(view, copy=False)
    assert devrt.from_dlpack(t[1:], copy=False).storage.buffer.address == t[1:].data_ptr()
    assert devrt.from_dlpack(t, copy=True).storage.buffer.address != t.data_ptr()
    b = torch.arange(12.0).to(torch.bfloat16).reshape(3, 4).T
    np.testing.assert_array_equal(devrt.asarray(b).numpy(), b.float().numpy())


def test_computing_on_adopted_memory() -> None:
    """A view that starts at any element: nothing assumes more alignment than the type's."""
    t = torch.arange(1001, dtype=torch.float32)
    for start in (1, 3, 7):
        np.testing.assert_array_equal((devrt.from_dlpack(t[start:]) * 2 + 1).numpy(), t[start:].numpy() * 2 + 1)
        np.testing.assert_allclose(devrt.from_dlpack(t[start:]).sum().item(), t[start:].sum().item(), rtol=1e-6)


@pytest.mark.parametrize("bad, error", [
    (lambda: torch.zeros(3, dtype=torch.complex64), Unsupported),
    (lambda: torch.zeros(3, requires_grad=True), InvalidArgument),
    (lambda: torch.zeros(3, device="meta"), InvalidArgument), (lambda: torch.eye(3).to_sparse(), InvalidArgument),
    (lambda: object(), InvalidArgument),
    (lambda: Elsewhere((2, 0)), Unsupported), (lambda: Elsewhere((999, 0)), Unsupported),
    (lambda: Elsewhere((1, 0)), InvalidArgument)])
def test_refused(bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        devrt.from_dlpack(bad())


class Elsewhere:
    def __init__(self, where: tuple[int, int]) -> None: self.where = where
    def __dlpack_device__(self) -> tuple[int, int]: return self.where
    def __dlpack__(self, **_: Any) -> Any: return object()


def test_types_that_do_not_travel() -> None:
    with pytest.raises(Unsupported, match="int8"):
        array(np.array([1, 2], np.int8), dt.int4).__dlpack__(max_version=(1, 0))
    with pytest.raises(Unsupported, match="float32"):
        array(numbers(dt.float8_e4m3, 3)).__dlpack__()
    with pytest.raises(BufferError):
        devrt.ones(3).__dlpack__(dl_device=(2, 0))
    assert devrt.ones(3).__dlpack_device__() == (1, 0)
