"""Programs of GPUs: machine code in the GPU's memory, and when that memory goes back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from devrt.device import InvalidArgument
from devrt.recorder import Watched

if TYPE_CHECKING:
    from devrt.gpu.device import GpuDevice
    from devrt.memory import Block


class GpuProgram(Watched):
    """One kernel. A vendor's program takes memory for it with `_take`, and gives it back at once with `_drop` where loading
    fails. `argument_bytes` is what the kernel reads of its arguments, 8 bytes each."""

    argument_bytes: int

    def __init__(self, device: GpuDevice, name: str) -> None:
        self.device: GpuDevice = device
        self.name = name
        self.closed = True

    def _take(self, nbytes: int) -> Block:
        self.allocation: Block = self.device.code_memory.take(nbytes)
        self.closed = False
        return self.allocation

    def _drop(self) -> None:
        self.closed = True
        self.device.code_memory.drop(self.allocation)

    def prologue(self, groups: int) -> bytes | bytearray:
        """What a launch of so many groups has before its arguments."""
        return b""

    def check(self) -> None:
        if self.closed:
            raise InvalidArgument(f"program {self.name} is used after it was closed", remedy="load it again")

    def close(self) -> None:
        """Give the code's memory back once the work queued so far is done. Closing twice is harmless."""
        if self.closed:
            return
        self.closed = True
        self._tell()
        self.device.code_memory.give(self.allocation)

    def __del__(self, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        if not getattr(self, "closed", True) and not exiting():
            self._drop()

    def __repr__(self) -> str:
        return f"<{self.device.properties.vendor} program {self.name}{', closed' if self.closed else ''}>"
