"""NVIDIA devices: what they are, faults and how to go on after them. Arrays and processes: tests/gpu/test_gpu_device.py."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from nvidia_kernels import LANES, SMS, image

import devrt
from devrt.device import DeviceFault, DeviceHang, DeviceLost, DevrtError, Placement, Unsupported
from devrt.gpu.commands import Copy, Instance
from devrt.ioctl.system import MAP_NORESERVE, MAP_PRIVATE, view
from devrt.nvidia.device import NvidiaDevice
from devrt.virtual.system import VirtualSystem

Opened = Callable[..., NvidiaDevice]
Machine = Callable[[str], VirtualSystem]


def copy(device: NvidiaDevice, nbytes: int = 4096) -> tuple[bytes, bytes]:
    """Random bytes to the device and back: (sent, received)."""
    source, far, back = (device.alloc(nbytes, p) for p in (Placement.HOST, Placement.DEVICE, Placement.HOST))
    data = os.urandom(nbytes)
    source.host()[:] = data
    commands = device.command_list()
    commands.copy(far, source, nbytes)
    commands.copy(back, far, nbytes)
    device.transfer.wait(device.transfer.submit(commands), 10)
    return data, bytes(back.host())


def launch(device: NvidiaDevice, *arguments: object, data: bytes | None = None, groups: int = 1) -> int:
    """Submit the kernel that adds; its value."""
    program = device.load(image(device.sm) if data is None else data, "add")
    commands = device.command_list()
    commands.dispatch(program, arguments, groups)  # type: ignore[arg-type]
    return device.compute.submit(commands)


@pytest.mark.parametrize("sm", SMS)
def test_every_generation_opens_and_copies(opened: Opened, sm: int) -> None:
    device = opened(f"sm_{sm}")
    p = device.properties
    assert (p.vendor, p.isa, p.lanes, device.sm) == ("nvidia", f"sm_{sm}", 32, sm)
    assert p.compute_units >= 40 and p.memory_bytes > 8 << 30 and p.peak_f32_flops_per_s > 1e12
    assert p.scratch_bytes == {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 120: 99}[sm] << 10
    sent, received = copy(device, 100_001)
    assert sent == received
    assert f"sm_{sm}" in repr(device)


def test_copies_of_a_compute_queue_have_an_engine_of_their_own(device: NvidiaDevice) -> None:
    assert device.copy_kind(True) != device.copy_kind(False)
    source, far = device.alloc(4096, Placement.HOST), device.alloc(4096)
    commands = device.command_list()
    commands.copy(far, source, 4096)
    device.compute.wait(device.compute.submit(commands), 10)
    kinds = {channel.name: channel.kind for channel in device.channels}
    assert kinds == {"compute queue's compute": 1, "compute queue's copy": device.copy_kind(True),
                     "transfer queue's copy": device.copy_kind(False)}


def test_copies_larger_than_one_launch_takes(opened: Opened) -> None:
    device = opened("sm_75")
    device.copy_engine.max_bytes = 1 << 20
    sent, received = copy(device, (5 << 20) + 77)
    assert sent == received
    assert len(device.copy_engine.copy(1 << 32, 0, (2 << 20) + 1)) == 3 * 9 * 4 and device.copy_engine.copy(0, 0, 0) == b""


def test_copies_where_no_engine_has_a_runlist(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    from devrt.nvidia.objects import Objects
    monkeypatch.setattr(Objects, "copy_engines", [])
    device = opened("sm_90")
    sent, received = copy(device)
    assert sent == received and {channel.kind for channel in device.channels} == {1}


# ---------------------------------------------------------------------------------------------------------------------
# Faults


def wild(device: NvidiaDevice) -> int:
    """Addresses that no buffer gets, of one page."""
    return device.system.mmap(-1, 4096, 0, MAP_PRIVATE | MAP_NORESERVE)


def test_a_wild_store_names_place_and_kernel(opened: Opened) -> None:
    device = opened("sm_90")
    near, address = device.alloc(4 << 20), wild(device)
    value = launch(device, near, near, address)
    with pytest.raises(DeviceFault) as caught:
        device.compute.wait(value, 10)
    fault = caught.value
    assert fault.address is not None and address <= fault.address < address + 4 * LANES and fault.access == "write"
    assert fault.kernel == "add" and "at +0x" in fault.what and "bytes" in fault.nearest and "Xid 31" in fault.evidence
    for call in (device.signal, lambda: device.alloc(1), lambda: device.compute.submit(device.command_list()), device.check):
        with pytest.raises(DeviceFault) as again:
            call()
        assert again.value is not fault and str(again.value) == str(fault)
    assert not device.closed
    device.system.munmap(address, 4096)


def test_a_wild_load_is_a_read(opened: Opened) -> None:
    device = opened("sm_86")
    near, address = device.alloc(4096), wild(device)
    with pytest.raises(DeviceFault) as caught:
        device.compute.wait(launch(device, near, address, near), 10)
    assert caught.value.access == "read" and caught.value.kernel == "add"
    device.system.munmap(address, 4096)


def test_a_wild_copy_names_its_place(opened: Opened) -> None:
    device = opened("sm_90")
    target, address, commands = device.alloc(4096, Placement.HOST), wild(device), device.command_list()
    commands.copy(target, device.alloc(4096), 4096)
    commands.commands[0] = Copy(target.address, address, 4096)
    value = device.transfer.submit(commands)
    with pytest.raises(DeviceFault) as caught:
        device.transfer.wait(value, 10)
    assert caught.value.address == address and caught.value.access == "read" and f"{address:#x}" in caught.value.what
    device.system.munmap(address, 4096)


def test_an_illegal_instruction_names_its_place(opened: Opened) -> None:
    device = opened("sm_90")
    program = device.load(image(90), "add")
    code = device.alloc(16, Placement.HOST)
    code.host()[:] = b"\xff" * 16
    commands = device.command_list()
    commands.copy(device.code_buffer(program.allocation, program.address, 16), code, 16)
    device.transfer.wait(device.transfer.submit(commands), 10)
    buffer, commands = device.alloc(4096), device.command_list()
    commands.dispatch(program, [buffer] * 3, 1)
    with pytest.raises(DeviceFault, match="illegal instruction") as caught:
        device.compute.wait(device.compute.submit(commands), 10)
    assert caught.value.kernel == "add" and "at +0x0" in caught.value.what and caught.value.access == "execute"


def test_a_misaligned_address_is_named(opened: Opened) -> None:
    device = opened("sm_90")
    near = device.alloc(4096)
    with pytest.raises(DeviceFault, match="misaligned address") as caught:
        device.compute.wait(launch(device, near, near, near.address + 2), 10)
    assert caught.value.kernel == "add"


def failing(device: NvidiaDevice) -> DevrtError:
    """The error that work on a device ends in."""
    with pytest.raises(DevrtError) as caught:
        for _ in range(3):
            copy(device)
    return caught.value


@pytest.mark.parametrize(("topology", "fault", "kind"), [
    ("sm_90", "page-fault", DeviceFault), ("sm_90", "ecc", DevrtError), ("sm_90", "reset", DeviceLost),
    ("sm_86", "ecc", DevrtError)])  # where an error of memory takes the whole GPU
def test_faults_end_in_their_error_and_the_device_works_when_reopened(machine: Machine, topology: str, fault: str,
                                                                      kind: type[DevrtError]) -> None:
    """Also while memory of the device before is there."""
    system = machine(topology)
    device = NvidiaDevice("test:0", system)
    copy(device)
    kept = device.alloc(4096, Placement.HOST)
    kept.host()[:] = b"k" * 4096
    system.faults.inject(fault)
    error = failing(device)
    assert isinstance(error, kind) and error.remedy and "transfer queue" in error.evidence
    device.close()
    assert bytes(kept.host()) == b"k" * 4096
    device = NvidiaDevice("test:0", system)
    sent, received = copy(device)
    assert sent == received
    device.close()
    assert bytes(kept.host()) == b"k" * 4096


def test_a_fault_wakes_whoever_waits_at_once(opened: Opened) -> None:
    device = opened("sm_90")
    device.system.faults.inject("page-fault")  # type: ignore[attr-defined]
    never, started = device.signal(), time.monotonic()
    waiting = device.compute.submit(device.command_list(), wait=[(never, 1)])
    other = threading.Timer(0.1, lambda: failing(device))
    other.start()
    with pytest.raises(DeviceFault):
        device.compute.wait(waiting)
    assert time.monotonic() - started < 2
    other.join(10)


def test_a_hang_is_noticed_by_the_waits_timeout(opened: Opened) -> None:
    device = opened("sm_90")
    device.system.faults.inject("hang")  # type: ignore[attr-defined]
    value = device.compute.submit(device.command_list())
    with pytest.raises(DeviceHang) as caught:
        device.compute.wait(value, 0.3)
    assert caught.value.expected == value and "GPGet" in caught.value.evidence and "GPPut" in caught.value.evidence


def test_a_fault_is_its_own_devices_only(opened: Opened, machine: Machine) -> None:
    system = machine("2xsm_90")
    first, second = opened(system, 0), opened(system, 1)
    copy(first)
    copy(second)
    system.faults.inject("page-fault")
    failing(first)
    sent, received = copy(second)
    assert sent == received
    first.close()
    again = opened(system, 0)  # beside the other
    sent, received = copy(again)
    assert sent == received


def test_a_corrupted_copy_is_the_copys_alone(opened: Opened) -> None:
    device = opened("sm_90")
    device.system.faults.inject("corrupt-copy@2")  # type: ignore[attr-defined]
    sent, received = copy(device)
    different = [a ^ b for a, b in zip(sent, received, strict=True) if a != b]
    assert len(different) == 1 and different[0].bit_count() == 1
    sent, received = copy(device)
    assert sent == received


def test_kernels_reach_a_peers_memory(opened: Opened, machine: Machine) -> None:
    system = machine("2xsm_90")
    here, there = opened(system, 0), opened(system, 1)
    far, source = there.alloc(4 * LANES), there.alloc(4 * LANES, Placement.HOST)
    source.host()[:] = b"\0\0\x80\x3f" * LANES
    commands = there.command_list()
    commands.copy(far, source, 4 * LANES)
    there.transfer.wait(there.transfer.submit(commands), 10)
    near, out = here.peer(far), here.alloc(4 * LANES, Placement.HOST)
    here.compute.wait(launch(here, near, near, out), 10)
    assert bytes(out.host()) == b"\0\0\0\x40" * LANES


def test_gpus_that_do_not_reach_each_other(opened: Opened, machine: Machine) -> None:
    """Signals and host memory are shared all the same; arrays go through the host."""
    system = machine("2xsm_86-nop2p")
    here, there = opened(system, 0), opened(system, 1)
    with pytest.raises(Unsupported, match="does not reach") as caught:
        here.peer(there.alloc(4096))
    assert caught.value.remedy == "copy through the host"
    done, host = there.signal(), there.alloc(4096, Placement.HOST)
    host.host()[:] = b"h" * 4096
    near, out, commands = here.peer(host), here.alloc(4096, Placement.HOST), here.command_list()
    commands.copy(out, near, 4096)
    value = here.transfer.submit(commands, wait=[(done, 1)])
    there.transfer.submit(there.command_list(), signal=[(done, 1)])
    here.transfer.wait(value, 10)
    assert bytes(out.host()) == b"h" * 4096
    x = np.arange(10_000, dtype=np.float32)
    uri = "virtual:nvidia/2xsm_86-nop2p"
    np.testing.assert_array_equal(devrt.asarray(x, device=uri).to_device(f"{uri}:1").numpy(), x)


# ---------------------------------------------------------------------------------------------------------------------
# Rings


def test_many_submissions_wrap_the_rings(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devrt.nvidia.channel.ENTRIES", 64)
    device = opened("sm_90")
    empty = device.command_list()
    source, far, back = (device.alloc(4096, p) for p in (Placement.HOST, Placement.DEVICE, Placement.HOST))
    commands = device.command_list()
    commands.copy(far, source, 4096)
    commands.copy(back, far, 4096)
    for n in range(200):
        source.host()[:] = bytes([n]) * 4096
        device.compute.submit(empty)
        value = device.compute.submit(commands)
        if n % 50 == 0:
            device.compute.wait(value, 20)
            assert bytes(back.host()) == bytes([n]) * 4096
    device.compute.wait(value, 20)
    ring = device.compute.channels[1]
    assert ring.size == 64 and ring.put > 3 * ring.size


def test_a_full_ring_blocks_and_goes_on(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devrt.nvidia.channel.ENTRIES", 64)
    device = opened("sm_90")
    go, empty, blocked = device.signal(), device.command_list(), threading.Event()
    device.compute.submit(empty, wait=[(go, 1)])

    def fill() -> None:
        for _ in range(100):
            device.compute.submit(empty)
        blocked.set()

    thread = threading.Thread(target=fill)
    thread.start()
    assert not blocked.wait(0.3)
    go.signal(1)
    thread.join(30)
    assert blocked.is_set()
    device.compute.wait(device.compute.submitted, 30)


def test_a_ring_that_stays_full_is_a_hang(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devrt.nvidia.channel.ENTRIES", 64)
    monkeypatch.setattr("devrt.gpu.queue.FULL_RING_TIMEOUT_S", 0.2)
    device = opened("sm_90")
    empty = device.command_list()
    device.compute.submit(empty, wait=[(device.signal(), 1)])
    with pytest.raises(DeviceHang, match="stayed full") as caught:
        for _ in range(1000):
            device.compute.submit(empty)
    assert caught.value.expected == device.compute.submitted and "GPGet" in caught.value.evidence


def test_waits_too_far_ahead_are_refused(device: NvidiaDevice) -> None:
    """An acquire compares circularly."""
    with pytest.raises(DevrtError, match="a wait for"):
        device.compute.submit(device.command_list(), wait=[(device.signal(), 1 << 63)])


def test_a_time_is_read_before_its_memory_goes(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lists that nobody holds end at once; each has the GPU's clock in memory of its own."""
    device = opened("sm_90")
    memory, go = device.alloc(16, Placement.HOST), device.signal()
    for at in (0, 8):
        commands = device.command_list()
        commands.timestamp(memory, at)
        value = device.compute.submit(commands, wait=[(go, 1)])
    del commands
    drop = Instance.__del__

    def reused(instance: Instance) -> None:
        if instance.block is not None:
            view(instance.block.address, instance.block.nbytes)[:] = bytes(instance.block.nbytes)
        drop(instance)
    monkeypatch.setattr(Instance, "__del__", reused)
    go.signal(1)
    device.compute.wait(value, 20)
    first, second = memory.host().cast("Q")
    assert 0 < first <= second
