"""Memory that the driver knows to be in use. What is the same on every GPU: tests/gpu/test_gpu_memory.py."""

from __future__ import annotations

import pytest

from devrt.amd.device import AmdDevice
from devrt.amd.memory import FLAGS, Region
from devrt.device import InvalidArgument, Placement
from devrt.gpu.memory import PAGE


def test_memory_that_a_queue_needs_is_not_unmapped(device: AmdDevice) -> None:
    ring = device.compute._home._regions[0]
    with pytest.raises(InvalidArgument, match="in use by the compute COMPUTE ring") as caught:
        ring.release()
    assert caught.value.remedy
    region = Region(device.gpu, PAGE, FLAGS[Placement.HOST])
    region.release()
    with pytest.raises(InvalidArgument, match="unmapped before"):
        region.release()
    # What we know is known to the driver as well.
    ring.user, user = "", ring.user
    try:
        with pytest.raises(InvalidArgument, match="in use by a queue"):
            ring.release()
    finally:
        ring.user = user
