"""ioctls of a supervised process on virtual devices: arguments from its memory to the driver and back."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from devrt.ioctl.kfd import KFD, MmapType, WaitResult, split_mmap_offset
from devrt.ioctl.recording import Call
from devrt.ioctl.system import PROT_READ
from devrt.ioctl.uapi import Uapi, table_for
from devrt.virtual.amd.events import INFINITE, PAGE_BYTES
from devrt.virtual.amd.machine import DOORBELL_BYTES
from devrt.virtual.client import Client
from devrt.virtual.errors import fail
from devrt.virtual.exec.files import Opened
from devrt.virtual.memory import PAGE

# Fields that hold an mmap offset of the node. The process maps the file behind the node itself, so it gets the place in it.
_OFFSETS = {"AMDKFD_IOC_CREATE_QUEUE": "doorbell_offset", "AMDKFD_IOC_CREATE_EVENT": "event_page_offset",
            "AMDKFD_IOC_ALLOC_MEMORY_OF_GPU": "mmap_offset"}
_MAPPED = {MmapType.DOORBELL: DOORBELL_BYTES, MmapType.EVENTS: PAGE_BYTES}  # bytes of one mapping; PAGE of any other
_SLICE_MS = 50  # how long a wait goes on before it is asked whether anybody still wants the answer
_WAIT = "kfd_ioctl_wait_events_args"
_TIMEOUT, _RESULT = KFD.offset(_WAIT, "timeout"), KFD.offset(_WAIT, "wait_result")
WAITS = (KFD.request("AMDKFD_IOC_WAIT_EVENTS"),)


@dataclass(frozen=True)
class Request:
    """One ioctl(fd, request, argument) as the process made it. `wanted`: whether it still waits for the answer."""

    client: Client
    opened: Opened
    request: int
    argument: int
    wanted: Callable[[], bool]


def carry_out(asked: Request, trace: bool) -> int:
    """The driver's answer, written back into the process. Raises OSError as the driver does, EINTR for a wait that
    nobody wants any more."""
    opened, memory = asked.opened, asked.client.memory
    table = table_for(opened.driver.uapis, opened.path, asked.request)
    size = table.argument_bytes(asked.request) if table is not None else 0
    data = bytearray(memory.read(asked.argument, size)) if size else bytearray()
    before, start, number = bytes(data), time.perf_counter_ns(), 0
    try:
        if asked.request in WAITS:
            return _wait(asked, data)
        return opened.driver.ioctl(asked.client, opened.what, asked.request, memoryview(data))
    except OSError as error:
        number = error.errno or 0
        raise
    finally:
        if not number:
            _translate(opened, asked.request, data)
        if trace:
            _print(asked, table, before, bytes(data), number, time.perf_counter_ns() - start)
        if bytes(data) != before:
            memory.write(asked.argument, bytes(data))


def _wait(asked: Request, data: bytearray) -> int:
    """WAIT_EVENTS in slices, so that a signal or the end of the process ends it. A wait for all of several events is not cut:
    it would lose those that are set between two slices."""
    fields = KFD.fields(_WAIT, bytes(data))
    timeout = fields["timeout"]
    whole = fields["wait_for_all"] and fields["num_events"] > 1
    deadline = None if timeout == INFINITE else time.monotonic() + timeout / 1000
    while True:
        left = timeout if deadline is None else max(0, math.ceil((deadline - time.monotonic()) * 1000))
        piece = left if whole else min(left, _SLICE_MS)
        struct.pack_into("<I", data, _TIMEOUT, piece)
        try:
            answer = asked.opened.driver.ioctl(asked.client, asked.opened.what, asked.request, memoryview(data))
        finally:
            struct.pack_into("<I", data, _TIMEOUT, timeout)
        if piece == left and deadline is not None or struct.unpack_from("<I", data, _RESULT)[0] != WaitResult.TIMEOUT:
            return answer
        if not asked.wanted():
            fail(errno.EINTR)


def _translate(opened: Opened, request: int, data: bytearray) -> None:
    """Put places in the file into the fields that hold mmap offsets."""
    name = KFD.find(request)
    field = _OFFSETS.get(name or "")
    if field is None or len(data) < KFD.offset(KFD.ioctls[str(name)].struct, field) + 8:
        return
    at = KFD.offset(KFD.ioctls[str(name)].struct, field)
    kind, gpu_id, inside = split_mmap_offset(int.from_bytes(data[at:at + 8], "little"))
    if not kind and not gpu_id:  # of a render node: a place in its file already
        return
    with contextlib.suppress(OSError):  # an event page that the process gave itself has no other place
        mapped = int.from_bytes(data[at:at + 8], "little") - inside
        place = opened.driver.mmap(opened.what, _MAPPED.get(kind, PAGE), mapped, PROT_READ)
        data[at:at + 8] = (place.offset + inside).to_bytes(8, "little")


def _print(asked: Request, table: Uapi | None, before: bytes, after: bytes, number: int, ns: int) -> None:
    decoded = {}
    if table is not None:
        first, second = table.decode(asked.request, before), table.decode(asked.request, after)
        if first is not None and second is not None:
            decoded = {"name": first.name, "before": dict(first.fields), "after": dict(second.fields)}
    call = Call("ioctl", {"path": asked.opened.path, "request": asked.request}, 0, number, ns, decoded=decoded)
    say(asked.client.key, str(call))


def say(process: int, text: str) -> None:
    """One line of the trace, written at once so that lines of several threads stay whole."""
    os.write(sys.stderr.fileno(), f"[{process}] {text}\n".encode())
