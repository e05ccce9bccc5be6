"""Whole devices on GPUs of every vendor: arrays, several processes, fork and exit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from gpu_machines import Vendor

import devrt
from devrt import registry
from devrt.compiler.ops import Op, make
from devrt.device import DeviceLost, InvalidArgument, Unsupported
from devrt.gpu.device import GpuDevice
from devrt.staging import CHUNK

Opened = Callable[..., GpuDevice]


# ---------------------------------------------------------------------------------------------------------------------
# Arrays


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint64", "bool", "float16"])
def test_arrays_go_there_and_come_back(dtype: str, vendor: Vendor) -> None:
    x = (np.random.default_rng(0).integers(0, 2, (7, 1000)) * 3).astype(dtype)
    there = devrt.asarray(x, device=vendor.uri)
    assert there.device == vendor.uri and there.shape == (7, 1000)
    np.testing.assert_array_equal(there.numpy(), x)
    np.testing.assert_array_equal(np.from_dlpack(there), x)
    back = there.to_device("cpu")
    assert back.device == "cpu"
    np.testing.assert_array_equal(back.numpy(), x)
    np.testing.assert_array_equal(back.to_device(vendor.uri).numpy(), x)
    assert there.to_device(vendor.uri) is there


def test_arrays_of_many_chunks_and_of_none(vendor: Vendor) -> None:
    x = np.random.default_rng(1).random(3 * CHUNK // 8 + 5)
    np.testing.assert_array_equal(devrt.asarray(x, device=vendor.uri).numpy(), x)
    for shape in ((0,), (3, 0), ()):
        y = np.ones(shape, np.float32)
        np.testing.assert_array_equal(devrt.asarray(y, device=vendor.uri).to_device("cpu").numpy(), y)
    strided = np.arange(100.0).reshape(10, 10).T[::2]
    np.testing.assert_array_equal(devrt.asarray(strided, device=vendor.uri).numpy(), strided)
    assert devrt.asarray(3.5, device=vendor.uri).item() == 3.5
    assert devrt.asarray(devrt.asarray([1, 2], dtype=devrt.bfloat16, device="cpu"), device=vendor.uri).numpy().tolist() == [1, 2]


def test_what_needs_shared_memory_says_so(vendor: Vendor) -> None:
    x = np.ones(10, np.float32)
    with pytest.raises(InvalidArgument, match="in place"):
        devrt.asarray(x, device=vendor.uri, copy=False)
    with pytest.raises(BufferError, match="only a copy"):
        devrt.asarray(x, device=vendor.uri).__dlpack__(max_version=(1, 0), copy=False)
    there = devrt.asarray(x, device=vendor.uri)
    x[:] = 2
    assert there.numpy().max() == 1


def test_a_result_on_the_host_is_not_the_devices_memory(vendor: Vendor) -> None:
    there = devrt.asarray(np.zeros(5, np.float32), device=vendor.uri)
    first, second = there.numpy(), there.numpy()
    assert not np.shares_memory(first, second)
    assert not there.storage.shared  # so that it may still be donated


@pytest.mark.parametrize(("source", "target"), [
    ("{pair}", "{pair}:1"),                  # a link
    ("{one}", "{pair}:1"),                   # two machines: through the host
    ("{pair}?link-down", "{pair}:1?link-down"),
])
def test_between_devices(vendor: Vendor, source: str, target: str) -> None:
    source, target = (uri.format(one=vendor.uri, pair=vendor.pair) for uri in (source, target))
    x = np.random.default_rng(2).random(CHUNK // 8 + 100)
    moved = devrt.asarray(x, device=source).to_device(target)
    assert moved.device == target
    np.testing.assert_array_equal(moved.numpy(), x)


def test_a_copy_in_an_expression(vendor: Vendor) -> None:
    x = np.arange(1000, dtype=np.float32)
    there = devrt.asarray(x, device=vendor.uri)
    here = devrt.Array(make(Op.COPY, (there.node,), "cpu"))
    y = here * 2 + devrt.asarray(x)
    assert y.device == "cpu"
    np.testing.assert_array_equal(y.numpy(), x * 3)
    twice = devrt.Array(make(Op.COPY, (make(Op.COPY, (there.node,), "cpu"),), "cpu"))
    np.testing.assert_array_equal((twice + 1).numpy(), x + 1)
    with pytest.raises(InvalidArgument, match="different devices"):
        (there + devrt.asarray(x)).realize()


def test_the_registry_reopens(vendor: Vendor) -> None:
    uri = f"virtual:{vendor.name}/{vendor.other}"
    device = registry.open(uri)
    assert registry.open(uri) is device and not device.closed
    device.close()
    again = registry.open(uri)
    assert again is not device
    x = devrt.asarray([1.0, 2.0], device=uri)
    again.close()
    with pytest.raises(DeviceLost):
        x.numpy()


def test_nothing_here_shares_the_hosts_pages(opened: Opened, vendor: Vendor) -> None:
    with pytest.raises(Unsupported):
        opened(vendor.one).alloc(10).host()


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def script(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)


def test_exit_with_work_in_flight(vendor: Vendor) -> None:
    run = script(f"""
import devrt, numpy as np
x = devrt.asarray(np.ones(100000), device="{vendor.uri}")
device = devrt.open("{vendor.uri}")
device.compute.submit(device.command_list(), wait=[(device.signal(), 1)])
print("end")
""")
    assert run.returncode == 0 and run.stdout == "end\n" and not run.stderr


def test_a_forked_child_opens_anew(vendor: Vendor) -> None:
    run = script(f"""
import os, sys, gc
import numpy as np
import devrt
from devrt.device import DeviceLost
from tests.garbage import collect
device = devrt.open("{vendor.uri}")
x = devrt.asarray(np.arange(1000.0), device="{vendor.uri}")
child = os.fork()
if not child:
    try:
        device.check()
    except DeviceLost as error:
        lost = "forked" in error.what
    del x
    collect()
    y = devrt.asarray(np.arange(500.0), device="{vendor.uri}").numpy()
    os._exit(0 if lost and y.sum() == 124750 else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert x.numpy().sum() == 499500
print("both")
""")
    assert run.stdout == "both\n" and run.returncode == 0, run.stderr
