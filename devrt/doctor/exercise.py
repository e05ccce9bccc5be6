"""Use each device that opens: copy there and back, run a computation, and see its clock advance."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence

from devrt.device import Device, DevrtError, Placement, Unsupported
from devrt.doctor.findings import ERROR, NOTE, OK, Finding, Severity

COPY_BYTES = 1 << 20
TIMEOUT_S = 10.0

Opener = Callable[[str], Device]
Compute = Callable[[Device], str]  # runs something on the device, checks it, and says what ran; raises DevrtError


def check(uris: Callable[[], Sequence[str]], opener: Opener, compute: Compute | None) -> Iterator[Finding]:
    """Three findings a device: copy, timestamp and, where the caller gives one, a computation."""
    try:
        listed = uris()
    except DevrtError as error:
        yield _failed("device", "the devices can't be listed", error)
        return
    for uri in listed:
        try:
            device = opener(uri)
        except DevrtError as error:
            yield _failed("device", f"{uri} does not open", error)
            continue
        except Exception as error:  # as in _one
            yield _bug("device", uri, error)
            continue
        yield _one("device-copy", uri, _copy, device)
        yield _one("device-timestamp", uri, _timestamp, device)
        if compute is not None:
            yield _one("device-compute", uri, compute, device)


def _one(name: str, uri: str, job: Compute, device: Device) -> Finding:
    verb = name.partition("-")[2]
    try:
        return Finding(name, OK, f"{uri}: {job(device)}", device.properties.name)
    except Unsupported as error:
        return _failed(name, f"{uri} has no {verb}", error, NOTE)
    except _Wrong as error:
        return Finding(name, ERROR, f"{uri}: {verb} gave a wrong answer", str(error),
                       "run it again; if it comes back, the device or its link is failing")
    except DevrtError as error:
        return _failed(name, f"{uri}: {verb} failed", error)
    except Exception as error:  # a bug in one device's backend must not cost the report on everything else
        return _bug(name, uri, error)


class _Wrong(Exception):
    """The device did what was asked and the answer is not right."""


def _copy(device: Device) -> str:
    """Random bytes from the host to device memory and back through the copy queue."""
    data = os.urandom(COPY_BYTES)
    source, far, back = (device.alloc(COPY_BYTES, place) for place in (Placement.HOST, Placement.DEVICE, Placement.HOST))
    try:
        source.host()[:] = data
        commands = device.command_list()
        commands.copy(far, source, COPY_BYTES)
        commands.copy(back, far, COPY_BYTES)
        device.transfer.wait(device.transfer.submit(commands), TIMEOUT_S)
        got = bytes(back.host()[:COPY_BYTES])
    finally:
        for buffer in (source, far, back):
            device.free(buffer)
    if got != data:
        first = next(index for index in range(COPY_BYTES) if got[index] != data[index])
        raise _Wrong(f"byte {first} of {COPY_BYTES}: sent {data[first]:#04x}, got {got[first]:#04x}")
    return f"{COPY_BYTES >> 10} KiB went to device memory and came back unchanged"


def _timestamp(device: Device) -> str:
    """Two time stamps of two submissions, so that the clock has moved between them."""
    stamps = device.alloc(16, Placement.HOST)
    try:
        for offset in (0, 8):
            commands = device.command_list()
            commands.timestamp(stamps, offset)
            device.compute.wait(device.compute.submit(commands), TIMEOUT_S)
        first, second = struct.unpack("<QQ", bytes(stamps.host()[:16]))
    finally:
        device.free(stamps)
    if second <= first:
        raise _Wrong(f"time stamps {first} ns, then {second} ns")
    return "its clock advances"


def _failed(name: str, what: str, error: DevrtError, severity: Severity = ERROR) -> Finding:
    evidence = f"{error.what} [{error.evidence}]" if error.evidence else error.what
    return Finding(name, severity, what, evidence, error.remedy)


def _bug(name: str, uri: str, error: Exception) -> Finding:
    return Finding(name, ERROR, f"{uri}: a bug in devrt showed", f"{type(error).__name__}: {error}",
                   "report this line, with the file that `devrt doctor --record` writes")
