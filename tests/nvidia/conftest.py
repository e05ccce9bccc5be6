"""NVIDIA devices on virtual machines of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from devrt.device import parse_uri
from devrt.nvidia import driver
from devrt.nvidia.device import NvidiaDevice
from devrt.virtual.system import VirtualSystem, make_system
from tests.garbage import collect


@pytest.fixture
def machine() -> Iterator[Callable[[str], VirtualSystem]]:
    """machine("sm_90?vram=256M"): the System of a fresh virtual machine."""
    systems: list[VirtualSystem] = []

    def make(topology: str) -> VirtualSystem:
        systems.append(make_system(parse_uri(f"virtual:nvidia/{topology}")))
        return systems[-1]
    yield make
    collect()
    left = [driver._drivers[id(system)] for system in systems if id(system) in driver._drivers]
    for one in left:
        one.abandon()
    for system in systems:
        system.shut_down()
    assert not left


@pytest.fixture
def opened(machine: Callable[[str], VirtualSystem]) -> Iterator[Callable[..., NvidiaDevice]]:
    """opened("sm_90?vram=256M"): the first GPU of a fresh virtual machine; opened(system, 1): another of one that is there."""
    devices: list[NvidiaDevice] = []

    def make(where: str | VirtualSystem, index: int = 0) -> NvidiaDevice:
        system = machine(where) if isinstance(where, str) else where
        devices.append(NvidiaDevice(f"test:{index}", system, index))
        return devices[-1]
    yield make
    while devices:
        devices.pop().close()


@pytest.fixture(scope="module")
def device() -> Iterator[NvidiaDevice]:
    system = make_system(parse_uri("virtual:nvidia/sm_90"))
    device = NvidiaDevice("test:0", system)
    yield device
    device.close()
    if id(system) in driver._drivers:  # pytest holds the device until the fixture's end
        driver._drivers[id(system)].abandon()
    system.shut_down()
