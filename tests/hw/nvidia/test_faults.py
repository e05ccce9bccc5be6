"""Kernels that go wrong: each is reported as what it is, and the device works again once it is opened anew."""

from __future__ import annotations

import numpy as np
import pytest

import devrt
from devrt.compiler.dtypes import float32
from devrt.compiler.lir import Builder
from devrt.compiler.sass import backend, reader, target
from devrt.device import DeviceFault, DeviceHang, DevrtError
from tests.hw.suite import cards

CARDS = cards("nvidia")
NOWHERE = 0x7FDEAD0000  # no address that devrt gives out: allocations begin at 64 GiB
ENDLESS = 1 << 60


def storing(isa: str, *, endless: bool = False) -> bytes:
    """One lane stores 1.0 to the parameter's first element, before or after as good as for ever."""
    b = Builder("broken", lanes=32, groups=1)
    out = b.param("out", float32, 1, True)
    value = b.const(float32, 1.0)
    if endless:
        (value,) = b.loop(0, ENDLESS, [value], lambda _, carried: [b.add(carried[0], value)])
    b.store(out, b.idx(0), value, b.eq(b.lane(), b.idx(0)))
    return backend.compile_program(b.finish(), target.target(isa))


def run(uri: str, image: bytes, argument: object = None, timeout_s: float | None = None) -> DevrtError:
    """What the kernel's failure is reported as."""
    device = devrt.open(uri)
    program = device.load(image, "broken")
    commands = device.command_list()
    commands.dispatch(program, [device.alloc(64) if argument is None else argument], 1)  # type: ignore[list-item]
    with pytest.raises(DevrtError) as caught:
        device.compute.wait(device.compute.submit(commands), timeout_s)
    device.close()
    return caught.value


def works(uri: str) -> bool:
    x = np.arange(1000, dtype=np.float32)
    return np.array_equal((devrt.asarray(x, device=uri) * 2).numpy(), x * 2)


def test_a_wild_store(uri: str) -> None:
    error = run(uri, storing(devrt.open(uri).properties.isa), NOWHERE)
    assert isinstance(error, DeviceFault) and error.access == "write" and error.address is not None
    assert error.address // 4096 == NOWHERE // 4096
    assert "broken" in str(error) + error.kernel
    assert works(uri)


def test_an_illegal_instruction(uri: str) -> None:
    image = storing(devrt.open(uri).properties.isa)
    code = reader.read(image).kernels["broken"].code
    at = image.index(code)
    error = run(uri, image[:at] + b"\xff" * 16 + image[at + 16:])
    assert isinstance(error, DeviceFault) and "llegal" in str(error)
    assert works(uri)


def test_a_hang(uri: str) -> None:
    error = run(uri, storing(devrt.open(uri).properties.isa, endless=True), timeout_s=2.0)
    assert isinstance(error, DeviceHang) and error.expected is not None
    assert works(uri)


def test_many_faults_one_after_another(uri: str) -> None:
    image = storing(devrt.open(uri).properties.isa)
    for _ in range(5):
        assert isinstance(run(uri, image, NOWHERE), DeviceFault)
    assert works(uri)
