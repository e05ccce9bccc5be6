"""Programs of KFD on virtual machines with fake engines: one GPU, or two."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.virtual.amd.kfd_client import Client, client, machine

SIZES = "vram=64M&gtt=256M"


@pytest.fixture
def one() -> Iterator[Client]:
    with machine("gfx1100", SIZES) as system, client(system) as made:
        yield made


@pytest.fixture
def two() -> Iterator[Client]:
    with machine("2xgfx1100", SIZES) as system, client(system) as made:
        yield made
