"""Virtual GPUs: models of what stands behind the driver boundary."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devrt.device import URI
    from devrt.virtual.system import VirtualSystem


def open_system(uri: URI) -> VirtualSystem:
    """The virtual machine of a URI, the same one for every caller in this process until it is shut down."""
    from devrt.virtual import system  # a program without virtual devices does not pay for them

    return system.open_system(uri)
