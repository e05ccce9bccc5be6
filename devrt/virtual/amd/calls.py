"""How an ioctl finds its handler: by its number alone, with an argument of any size (Linux kfd_chardev.c, drm_ioctl.c)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devrt.virtual.amd.process import Process
from devrt.virtual.client import Client

if TYPE_CHECKING:
    from devrt.virtual.amd.driver import AmdDriver


@dataclass
class Call:
    """One ioctl. `args` is a pointer to its struct, `raw` all bytes of the argument, which may be longer: a cffi buffer."""

    driver: AmdDriver
    client: Client
    file: Any
    args: Any
    raw: Any

    @property
    def process(self) -> Process:
        process: Process = self.file.process
        return process

    def words(self, address: int, count: int) -> list[int]:
        """u32s of the process's memory. Raises OSError: EFAULT."""
        return list(struct.unpack(f"<{count}I", self.client.memory.read(address, 4 * count))) if count else []


Handler = Callable[[Call], None]
HANDLERS: dict[str, Handler] = {}
BLOCKING: set[str] = set()  # handlers that are called without the driver's lock


def handles(name: str, *, blocking: bool = False) -> Callable[[Handler], Handler]:
    """Register a handler for the ioctl of that name."""
    def register(handler: Handler) -> Handler:
        HANDLERS[name] = handler
        if blocking:
            BLOCKING.add(name)
        return handler
    return register
