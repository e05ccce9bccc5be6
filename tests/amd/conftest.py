"""AMD devices on virtual machines of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from devrt.amd import driver
from devrt.amd.device import AmdDevice
from devrt.amd.driver import connect
from devrt.device import parse_uri
from devrt.virtual.system import VirtualSystem, make_system
from tests.garbage import collect


@pytest.fixture
def machine() -> Iterator[Callable[[str], VirtualSystem]]:
    """machine("gfx1100?vram=64M"): the System of a fresh virtual machine."""
    systems: list[VirtualSystem] = []

    def make(topology: str) -> VirtualSystem:
        systems.append(make_system(parse_uri(f"virtual:amd/{topology}")))
        return systems[-1]
    yield make
    collect()
    for system in systems:
        if id(system) in driver._drivers:
            connect(system).close()
        system.shut_down()


@pytest.fixture
def opened(machine: Callable[[str], VirtualSystem]) -> Iterator[Callable[..., AmdDevice]]:
    """opened("gfx1100?vram=64M"): the first GPU of a fresh virtual machine; opened(system, 1): another of one that is there."""
    devices: list[AmdDevice] = []

    def make(where: str | VirtualSystem, index: int = 0) -> AmdDevice:
        system = machine(where) if isinstance(where, str) else where
        devices.append(AmdDevice(f"test:{index}", system, index))
        return devices[-1]
    yield make
    while devices:
        devices.pop().close()


@pytest.fixture(scope="module")
def device() -> Iterator[AmdDevice]:
    system = make_system(parse_uri("virtual:amd/gfx1100"))
    device = AmdDevice("test:0", system)
    yield device
    device.close()
    connect(system).close()
    system.shut_down()
