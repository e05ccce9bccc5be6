"""Whole devices: what they are, faults and how to go on after them, arrays, several processes, fork and exit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from amd_machines import TARGETS

import devrt
from devrt import registry
from devrt.amd.device import AmdDevice
from devrt.compiler.ops import Op, make
from devrt.device import (
    DeviceFault,
    DeviceHang,
    DeviceLost,
    DevrtError,
    InvalidArgument,
    Placement,
    Unsupported,
)
from devrt.ioctl.system import MAP_NORESERVE, MAP_PRIVATE
from devrt.staging import CHUNK
from devrt.virtual.system import VirtualSystem

Opened = Callable[..., AmdDevice]
Machine = Callable[[str], VirtualSystem]
URI = "virtual:amd/gfx1100"
PAIR = "virtual:amd/2xgfx942"


def copy(device: AmdDevice, nbytes: int = 4096) -> tuple[bytes, bytes]:
    """Random bytes to the device and back: (sent, received)."""
    source, far, back = (device.alloc(nbytes, p) for p in (Placement.HOST, Placement.DEVICE, Placement.HOST))
    data = os.urandom(nbytes)
    source.host()[:] = data
    commands = device.command_list()
    commands.copy(far, source, nbytes)
    commands.copy(back, far, nbytes)
    device.transfer.wait(device.transfer.submit(commands), 10)
    return data, bytes(back.host())


@pytest.mark.parametrize("gfx", TARGETS)
def test_every_generation_opens_and_copies(opened: Opened, gfx: str) -> None:
    device = opened(gfx)
    p = device.properties
    assert (p.vendor, p.isa, p.scratch_bytes) == ("amd", gfx, 64 << 10)
    assert p.lanes == (64 if gfx.startswith("gfx9") else 32) and p.compute_units > 30 and p.memory_bytes > 8 << 30
    sent, received = copy(device, 100_001)
    assert sent == received
    assert gfx in repr(device)


# ---------------------------------------------------------------------------------------------------------------------
# Faults


def failing(device: AmdDevice) -> DevrtError:
    """The error that work on a device ends in."""
    with pytest.raises(DevrtError) as caught:
        for _ in range(3):
            copy(device)
    return caught.value


@pytest.mark.parametrize(("fault", "kind"), [("page-fault", DeviceFault), ("ecc", DevrtError), ("reset", DevrtError)])
def test_faults_end_in_their_error_and_the_device_works_when_reopened(machine: Machine, fault: str,
                                                                      kind: type[DevrtError]) -> None:
    system = machine("gfx1100")
    device = AmdDevice("test:0", system)
    copy(device)
    system.faults.inject(fault)
    error = failing(device)
    assert isinstance(error, kind) and error.remedy and "transfer queue" in error.evidence
    for call in (device.signal, lambda: device.alloc(1), lambda: device.compute.submit(device.command_list()),
                 lambda: device.compute.wait(0), device.check):
        with pytest.raises(type(error)) as again:
            call()
        assert again.value is not error and str(again.value) == str(error)
    assert not device.closed
    device.close()
    if fault == "page-fault":
        device = AmdDevice("test:0", system)
        sent, received = copy(device)
        assert sent == received
        device.close()


def test_a_page_fault_names_its_place(opened: Opened) -> None:
    device = opened("gfx1100")
    near = device.alloc(4 << 20)
    address = device.system.mmap(-1, 4096, 0, MAP_PRIVATE | MAP_NORESERVE)  # addresses that no buffer gets
    commands, target = device.command_list(), device.alloc(4096, Placement.HOST)
    commands.copy(target, near, 4096)
    # A copy from where nothing is mapped, as a wrong address would make it.
    from devrt.gpu.commands import Copy
    commands.commands[0] = Copy(target.address, address, 4096)
    value = device.transfer.submit(commands)
    with pytest.raises(DeviceFault) as caught:
        device.transfer.wait(value, 10)
    fault = caught.value
    assert fault.address == address and fault.access == "read" and "bytes" in fault.nearest
    assert f"{address:#x}" in fault.what and fault.nearest in fault.evidence
    device.system.munmap(address, 4096)


def test_a_fault_wakes_whoever_waits_at_once(opened: Opened) -> None:
    device = opened("gfx1100")
    device.system.faults.inject("page-fault")  # type: ignore[attr-defined]
    never, started = device.signal(), time.monotonic()
    waiting = device.compute.submit(device.command_list(), wait=[(never, 1)])
    threading.Timer(0.1, lambda: failing(device)).start()
    with pytest.raises(DeviceFault):
        device.compute.wait(waiting)
    assert time.monotonic() - started < 2


def test_a_hang_is_noticed_by_the_waits_timeout(opened: Opened) -> None:
    device = opened("gfx1100?hang@1")
    value = device.compute.submit(device.command_list())
    with pytest.raises(DeviceHang) as caught:
        device.compute.wait(value, 0.3)
    assert caught.value.completed == 0 and caught.value.expected == 1 and "ring read" in caught.value.evidence


def test_a_fault_is_its_own_devices_only(opened: Opened, machine: Machine) -> None:
    system = machine("2xgfx942")
    first, second = opened(system, 0), opened(system, 1)
    copy(first)
    copy(second)
    system.faults.inject("page-fault")
    failing(first)
    sent, received = copy(second)
    assert sent == received


def test_reopening_beside_others_and_where_the_driver_runs_nothing(opened: Opened, machine: Machine,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    system = machine("2xgfx942")
    first, second = AmdDevice("test:0", system, 0), AmdDevice("test:1", system, 1)
    system.faults.inject("page-fault")
    failing(first)
    first.close()
    with pytest.raises(DeviceLost, match="beside others") as caught:
        AmdDevice("test:0", system, 0)
    assert "close the other" in caught.value.remedy
    second.close()
    monkeypatch.setattr("devrt.amd.device.TRIAL_TIMEOUT_S", 0.2)
    system.faults.inject("hang")
    with pytest.raises(DeviceLost, match="runs nothing"):
        AmdDevice("test:0", system, 0)
    sent, received = copy(opened(system, 1))
    assert sent == received


def test_a_corrupted_copy_is_the_copys_alone(opened: Opened) -> None:
    device = opened("gfx1100?corrupt-copy@2&seed=3")
    sent, received = copy(device)
    different = [a ^ b for a, b in zip(sent, received, strict=True) if a != b]
    assert len(different) == 1 and different[0].bit_count() == 1
    sent, received = copy(device)
    assert sent == received


# ---------------------------------------------------------------------------------------------------------------------
# Arrays


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint64", "bool", "float16"])
def test_arrays_go_there_and_come_back(dtype: str) -> None:
    x = (np.random.default_rng(0).integers(0, 2, (7, 1000)) * 3).astype(dtype)
    there = devrt.asarray(x, device=URI)
    assert there.device == URI and there.shape == (7, 1000)
    np.testing.assert_array_equal(there.numpy(), x)
    np.testing.assert_array_equal(np.from_dlpack(there), x)
    back = there.to_device("cpu")
    assert back.device == "cpu"
    np.testing.assert_array_equal(back.numpy(), x)
    np.testing.assert_array_equal(back.to_device(URI).numpy(), x)
    assert there.to_device(URI) is there


def test_arrays_of_many_chunks_and_of_none() -> None:
    x = np.random.default_rng(1).random(3 * CHUNK // 8 + 5)
    np.testing.assert_array_equal(devrt.asarray(x, device=URI).numpy(), x)
    for shape in ((0,), (3, 0), ()):
        y = np.ones(shape, np.float32)
        np.testing.assert_array_equal(devrt.asarray(y, device=URI).to_device("cpu").numpy(), y)
    strided = np.arange(100.0).reshape(10, 10).T[::2]
    np.testing.assert_array_equal(devrt.asarray(strided, device=URI).numpy(), strided)
    assert devrt.asarray(3.5, device=URI).item() == 3.5
    assert devrt.asarray(devrt.asarray([1, 2], dtype=devrt.bfloat16, device="cpu"), device=URI).numpy().tolist() == [1, 2]


def test_what_needs_shared_memory_says_so() -> None:
    x = np.ones(10, np.float32)
    with pytest.raises(InvalidArgument, match="in place"):
        devrt.asarray(x, device=URI, copy=False)
    with pytest.raises(BufferError, match="only a copy"):
        devrt.asarray(x, device=URI).__dlpack__(max_version=(1, 0), copy=False)
    there = devrt.asarray(x, device=URI)
    x[:] = 2
    assert there.numpy().max() == 1


def test_a_result_on_the_host_is_not_the_devices_memory() -> None:
    there = devrt.asarray(np.zeros(5, np.float32), device=URI)
    first, second = there.numpy(), there.numpy()
    assert not np.shares_memory(first, second)
    assert not there.storage.shared  # so that it may still be donated


@pytest.mark.parametrize(("source", "target"), [
    (PAIR, f"{PAIR}:1"),                  # a link
    (URI, f"{PAIR}:1"),                   # two machines: through the host
    (f"{PAIR}?link-down", f"{PAIR}:1?link-down"),
])
def test_between_devices(source: str, target: str) -> None:
    x = np.random.default_rng(2).random(CHUNK // 8 + 100)
    moved = devrt.asarray(x, device=source).to_device(target)
    assert moved.device == target
    np.testing.assert_array_equal(moved.numpy(), x)


def test_a_copy_in_an_expression() -> None:
    x = np.arange(1000, dtype=np.float32)
    there = devrt.asarray(x, device=URI)
    here = devrt.Array(make(Op.COPY, (there.node,), "cpu"))
    y = here * 2 + devrt.asarray(x)
    assert y.device == "cpu"
    np.testing.assert_array_equal(y.numpy(), x * 3)
    twice = devrt.Array(make(Op.COPY, (make(Op.COPY, (there.node,), "cpu"),), "cpu"))
    np.testing.assert_array_equal((twice + 1).numpy(), x + 1)
    with pytest.raises(InvalidArgument, match="different devices"):
        (there + devrt.asarray(x)).realize()


def test_the_registry_reopens() -> None:
    uri = "virtual:amd/gfx1030"
    device = registry.open(uri)
    assert registry.open(uri) is device and not device.closed
    device.close()
    again = registry.open(uri)
    assert again is not device
    x = devrt.asarray([1.0, 2.0], device=uri)
    again.close()
    with pytest.raises(DeviceLost):
        x.numpy()


def test_nothing_here_shares_the_hosts_pages(opened: Opened) -> None:
    with pytest.raises(Unsupported):
        opened("gfx1100").alloc(10).host()


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def script(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)


def test_exit_with_work_in_flight() -> None:
    run = script(f"""
import devrt, numpy as np
x = devrt.asarray(np.ones(100000), device="{URI}")
device = devrt.open("{URI}")
device.compute.submit(device.command_list(), wait=[(device.signal(), 1)])
print("end")
""")
    assert run.returncode == 0 and run.stdout == "end\n" and not run.stderr


def test_a_forked_child_opens_anew() -> None:
    run = script(f"""
import os, sys, gc
import numpy as np
import devrt
from devrt.device import DeviceLost
device = devrt.open("{URI}")
x = devrt.asarray(np.arange(1000.0), device="{URI}")
child = os.fork()
if not child:
    try:
        device.check()
    except DeviceLost as error:
        lost = "forked" in error.what
    del x
    gc.collect()
    y = devrt.asarray(np.arange(500.0), device="{URI}").numpy()
    os._exit(0 if lost and y.sum() == 124750 else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert x.numpy().sum() == 499500
print("both")
""")
    assert run.stdout == "both\n" and run.returncode == 0, run.stderr
