from __future__ import annotations

from collections.abc import Iterator

import pytest

from devrt.cpu.device import CpuDevice


@pytest.fixture(scope="module")
def device() -> Iterator[CpuDevice]:
    device = CpuDevice()
    yield device
    device.close()
