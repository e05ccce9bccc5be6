"""GPUs of every vendor on virtual machines of the test's own. A test runs once a vendor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from gpu_machines import VENDORS, Vendor, leave

from devrt.device import parse_uri
from devrt.gpu.device import GpuDevice
from devrt.virtual.system import VirtualSystem, make_system
from tests.garbage import collect


@pytest.fixture(scope="module", params=VENDORS, ids=lambda vendor: vendor.name)
def vendor(request: pytest.FixtureRequest) -> Vendor:
    made: Vendor = request.param
    return made


@pytest.fixture
def machine(vendor: Vendor) -> Iterator[Callable[[str], VirtualSystem]]:
    """machine(vendor.one + "?vram=64M"): the System of a fresh virtual machine."""
    systems: list[VirtualSystem] = []

    def make(topology: str) -> VirtualSystem:
        systems.append(make_system(parse_uri(f"virtual:{vendor.name}/{topology}")))
        return systems[-1]
    yield make
    collect()
    for system in systems:
        leave(system)
        system.shut_down()


@pytest.fixture
def opened(vendor: Vendor, machine: Callable[[str], VirtualSystem]) -> Iterator[Callable[..., GpuDevice]]:
    """opened(vendor.one): the first GPU of a fresh virtual machine; opened(system, 1): another of one that is there."""
    devices: list[GpuDevice] = []

    def make(where: str | VirtualSystem, index: int = 0) -> GpuDevice:
        system = machine(where) if isinstance(where, str) else where
        devices.append(vendor.open(system, index))
        return devices[-1]
    yield make
    while devices:
        devices.pop().close()


@pytest.fixture(scope="module")
def device(vendor: Vendor) -> Iterator[GpuDevice]:
    system = make_system(parse_uri(f"virtual:{vendor.name}/{vendor.one}"))
    device = vendor.open(system, 0)
    yield device
    device.close()
    del device
    collect()
    leave(system)
    system.shut_down()
