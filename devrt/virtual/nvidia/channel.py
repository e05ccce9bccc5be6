"""A GPFIFO channel as the driver hands it to the GPU, and how it ends."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from devrt.virtual.memory import AddressSpace

USERD_BYTES, GP_GET, GP_PUT = 512, 0x88, 0x8C  # clc86f.h, Nvc86fControl
NOTIFIER_BYTES = 16  # of one slot: nvos.h, NvNotification
_ERROR_SLOT = 0      # nvos.h, NV_CHANNELGPFIFO_NOTIFICATION_TYPE_ERROR
_STATUS_ERROR = 0xFFFF


class ChannelError(Exception):
    """Why a channel stopped. `xid` is the RC code of nverror.h; `message` what the kernel log says behind the process's name."""

    def __init__(self, xid: int, message: str) -> None:
        super().__init__(f"Xid {xid}: {message}")
        self.xid, self.message = xid, message


@dataclass(eq=False)
class Channel:
    """`token` rings it, `id` is its number in the kernel log. Its ring of 8-byte entries lies at GPU address `gpfifo_va`.
    `classes` are what SET_OBJECT may name; the driver replaces the tuple when it makes an object."""

    id: int
    token: int
    engine: int                  # NV2080_ENGINE_TYPE
    space: AddressSpace
    gpfifo_va: int
    gpfifo_entries: int
    userd: memoryview            # USERD_BYTES, writable
    notifier: memoryview | None  # slots of NOTIFIER_BYTES, writable
    classes: tuple[int, ...]
    host_class: int
    group: object = None         # channels of one group stop together
    error: ChannelError | None = None

    def stop(self, error: ChannelError, now: int) -> None:
        """Note the error, and write it to the notifier at `now` nanoseconds: the status last, which pollers look at."""
        if self.error is not None:
            return
        self.error = error
        if self.notifier is not None:
            at = _ERROR_SLOT * NOTIFIER_BYTES
            self.notifier[at:at + 14] = struct.pack("<QIH", now, error.xid, self.engine & 0xFFFF)
            self.notifier[at + 14:at + 16] = struct.pack("<H", _STATUS_ERROR)
