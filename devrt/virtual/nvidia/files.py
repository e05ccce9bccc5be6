"""What lies behind the descriptors that the driver gives out."""

from __future__ import annotations

from dataclasses import dataclass, field

from devrt.virtual.client import Client
from devrt.virtual.nvidia.card import Card
from devrt.virtual.nvidia.objects import CpuMapping, RmClient


@dataclass(eq=False)
class NodeFile:
    """/dev/nvidiactl (no card) or /dev/nvidiaN. `control` is the control descriptor that it was registered with; `mapping`
    what RM_MAP_MEMORY put here to be mapped."""

    process: Client
    card: Card | None = None
    control: NodeFile | None = None
    mapping: CpuMapping | None = None
    clients: dict[int, RmClient] = field(default_factory=dict)
    references: int = 0  # of descriptors that were registered with it
    closed: bool = False


@dataclass(eq=False)
class CapabilityFile:
    """A node of /dev/nvidia-caps, which answers nothing: having it open is what counts."""

    process: Client
    number: int
