"""The descriptor that SMI_EVENTS gives: a process writes the mask of events it wants and reads lines. Linux
kfd_smi_events.c."""

from __future__ import annotations

import contextlib
import socket
import struct

from devrt.ioctl.kfd import SmiEvent
from devrt.virtual.amd.card import Card

LINE_BYTES = 96


class SmiClient:
    """The driver's end. Any thread may `tell`."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._mask = 0
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ours.setblocking(False)
        theirs.setblocking(False)
        self.fd = theirs.detach()  # for the process, which closes it

    def tell(self, card: Card, event: SmiEvent, text: str) -> None:
        """One line for whoever asked for this event; dropped where nobody reads."""
        if card is not self._card:
            return
        try:
            masks = self._ours.recv(4096)
            if len(masks) >= 8:
                self._mask = struct.unpack("<Q", masks[len(masks) // 8 * 8 - 8:len(masks) // 8 * 8])[0]
        except OSError:  # nothing new was written
            pass
        if self._mask >> (event - 1) & 1:
            line = f"{event:x} {text}\n".encode()[:LINE_BYTES]
            with contextlib.suppress(OSError):  # full, or the process closed its end
                self._ours.send(line, socket.MSG_NOSIGNAL)

    def close(self) -> None:
        self._ours.close()

