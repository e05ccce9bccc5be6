"""Loading objects: what runs, what is refused, and that nothing stays mapped after a refusal."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from cpu_kernels import BUSY, STEP, TABLE, image

from devrt.cpu.device import CpuDevice
from devrt.cpu.program import load_object
from devrt.device import CompileError, DevrtError, InvalidArgument
from devrt.ioctl.system import LinuxSystem


class CountingSystem(LinuxSystem):
    """The real system, remembering what is mapped and how."""

    def __init__(self) -> None:
        super().__init__()
        self.mapped: dict[int, int] = {}
        self.protections: list[int] = []

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int = 0, address: int = 0) -> int:
        at = super().mmap(fd, length, prot, flags, offset, address)
        self.mapped[at] = length
        self.protections.append(prot)
        return at

    def munmap(self, address: int, length: int) -> None:
        super().munmap(address, length)
        assert self.mapped.pop(address) == length

    def mprotect(self, address: int, length: int, prot: int) -> None:
        super().mprotect(address, length, prot)
        self.protections.append(prot)


def test_constants_are_relocated(device: CpuDevice) -> None:
    program, out = device.load(image(TABLE), "table"), device.alloc(64)
    commands = device.command_list()
    commands.dispatch(program, [out], 8)
    device.compute.wait(device.compute.submit(commands))
    assert np.frombuffer(out.host(), np.uint64).tolist() == [11, 22, 33, 44] * 2


def test_memory_is_never_writable_and_executable() -> None:
    system = CountingSystem()
    code = load_object(system, image(TABLE))
    assert system.protections == [3, 5]  # read-write, then read-execute
    code.unmap()
    assert not system.mapped


def test_missing_entry(device: CpuDevice) -> None:
    with pytest.raises(InvalidArgument, match=r"no function 'nope' \[it has step\]"):
        device.load(image(STEP), "nope")


EXTERNAL = "declare double @sin(double)\n" + """
define dso_local void @calls(ptr %a, i64 %b, i64 %e, ptr %s) {
  %x = call double @sin(double 1.0)
  store double %x, ptr %a
  ret void
}"""
WRITABLE = """
@state = internal global i64 3
define dso_local void @counts(ptr %a, i64 %b, i64 %e, ptr %s) {
  %x = load volatile i64, ptr @state
  store volatile i64 %x, ptr @state
  ret void
}"""


@pytest.mark.parametrize(("text", "what"), [(EXTERNAL, "needs 'sin'"), (WRITABLE, "code and constants only")])
def test_what_a_kernel_may_not_have(text: str, what: str) -> None:
    system = CountingSystem()
    with pytest.raises(CompileError, match=what):
        load_object(system, image(text))
    assert not system.mapped


def test_other_machines_and_other_files() -> None:
    good = image(STEP)
    arm = good[:18] + struct.pack("<H", 183) + good[20:]
    linked = good[:16] + struct.pack("<H", 3) + good[18:]
    for wrong, what in ((arm, "aarch64"), (linked, "no relocatable"), (b"", "no 64-bit"), (b"MZ" * 50, "no 64-bit")):
        with pytest.raises(InvalidArgument, match=what):
            load_object(LinuxSystem(), wrong)


def test_every_truncation_is_refused() -> None:
    good = image(TABLE)
    system = CountingSystem()
    for length in range(0, len(good), 7):
        with pytest.raises(DevrtError):
            load_object(system, good[:length])
    assert not system.mapped


def test_random_damage_raises_or_loads_but_never_leaks() -> None:
    good, dice = image(TABLE), random.Random(5)
    system = CountingSystem()
    refused = 0
    for _ in range(3000):
        bad = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            bad[dice.randrange(len(bad))] = dice.randrange(256)
        try:
            load_object(system, bytes(bad)).unmap()
        except (InvalidArgument, CompileError):
            refused += 1
    assert refused > 300 and not system.mapped


def test_closing_waits_for_queued_use() -> None:
    device = CpuDevice()
    try:
        program, go = device.load(image(BUSY), "busy"), device.signal()
        commands = device.command_list()
        commands.dispatch(program, [1_000_000], 4)
        value = device.compute.submit(commands, wait=[(go, 1)])
        program.close()
        program.close()
        with pytest.raises(InvalidArgument, match="closed"):
            commands.dispatch(program, [1], 1)
        with pytest.raises(InvalidArgument, match="closed"):
            device.compute.submit(commands)
        go.signal(1)
        device.compute.wait(value, 30)
    finally:
        device.close()
