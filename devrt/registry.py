"""From a URI to an open device. A backend is imported when its device is asked for."""

from __future__ import annotations

import importlib
import os
import threading
from dataclasses import dataclass
from typing import Any

from devrt.device import URI, Device, DeviceNotFound, Unsupported, parse_uri

# Vendor -> module and class with an `open(uri) -> Device`.
_BACKENDS = {"cpu": ("devrt.cpu.device", "CpuDevice")}

_open: dict[str, Any] = {}
_lock = threading.RLock()


@dataclass(frozen=True)
class DeviceInfo:
    """One row of `devices()`: what `open` takes and what answers there."""

    uri: str
    name: str
    vendor: str
    isa: str
    memory_bytes: int


def open(uri: str = "cpu") -> Device:
    """The device of that URI, the same object for every caller in this process until it is closed.

    Raises InvalidArgument for what is no URI, DeviceNotFound or Unsupported where no device stands behind it.
    """
    parsed = parse_uri(uri)
    key = str(parsed)
    with _lock:
        device = _open.get(key)
        if device is None or device.closed:
            device = _open[key] = _backend(parsed).open(parsed)
        found: Device = device
        return found


def devices() -> list[DeviceInfo]:
    """Every device that can be opened on this machine."""
    found = []
    for vendor in _BACKENDS:
        device = open(vendor)
        about = device.properties
        found.append(DeviceInfo(device.uri, about.name, about.vendor, about.isa, about.memory_bytes))
    return found


def _backend(uri: URI) -> Any:
    if uri.virtual:
        raise Unsupported(f"{uri}: this version of devrt has no virtual {uri.vendor} devices",
                          evidence=f"backends: {', '.join(_BACKENDS)}", remedy="open cpu")
    if uri.vendor not in _BACKENDS:
        raise DeviceNotFound(f"{uri}: this version of devrt has no backend for {uri.vendor} devices",
                             evidence=f"backends: {', '.join(_BACKENDS)}", remedy="open cpu")
    module, name = _BACKENDS[uri.vendor]
    return getattr(importlib.import_module(module), name)


def _forked() -> None:
    global _lock
    _lock = threading.RLock()
    _open.clear()


os.register_at_fork(after_in_child=_forked)
