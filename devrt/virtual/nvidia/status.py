"""How the virtual driver says no by a status in the call's struct; where the kernel gives an errno: devrt.virtual.errors."""

from __future__ import annotations

from typing import NoReturn

from devrt.ioctl.nv_status import Status


class Refused(Exception):
    """A call that RM or UVM refuses with `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(Status(status).name)
        self.status = status


def refuse(status: int) -> NoReturn:
    """Raise Refused."""
    raise Refused(status)
