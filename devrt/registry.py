"""From a URI to an open device. A backend is imported when its device is asked for."""

from __future__ import annotations

import gc
import importlib
import os
import threading
from dataclasses import dataclass
from typing import Any

from devrt.device import URI, Device, DeviceNotFound, Unsupported, parse_uri
from devrt.ioctl.system import LinuxSystem, System

# Vendor -> module and class with an `open(uri, system) -> Device`, and for GPUs a `describe_all(system) -> [Properties]`.
_BACKENDS = {"cpu": ("devrt.cpu.device", "CpuDevice"), "amd": ("devrt.amd.device", "AmdDevice"),
             "nvidia": ("devrt.nvidia.device", "NvidiaDevice")}

_open: dict[str, Any] = {}
_host: list[System] = []  # this machine, once it was asked for: drivers know a process by it
_lock = threading.RLock()


@dataclass(frozen=True)
class DeviceInfo:
    """One row of `devices()`: what `open` takes and what answers there."""

    uri: str
    name: str
    vendor: str
    isa: str
    memory_bytes: int


def default() -> str:
    """The URI of the device that arrays are made on where none is named: $DEVRT_DEVICE, or cpu."""
    return os.environ.get("DEVRT_DEVICE") or "cpu"


def open(uri: str | None = None) -> Device:
    """The device of that URI (`default()` unless given), the same object for every caller in this process until it is closed.

    Raises InvalidArgument for what is no URI, DeviceNotFound or Unsupported where no device stands behind it.
    """
    parsed = parse_uri(default() if uri is None else uri)
    key = str(parsed)
    with _lock:
        if key in _open and _open[key].closed:
            del _open[key]
            gc.collect()  # what is left of a closed device keeps its nodes open, and a lost GPU starts anew without users only
        if key not in _open:
            _open[key] = _backend(parsed).open(parsed, _system(parsed))
        found: Device = _open[key]
        return found


def devices() -> list[DeviceInfo]:
    """Every device that can be opened on this machine. GPUs are described without opening them."""
    about = open("cpu").properties
    found = [DeviceInfo("cpu", about.name, about.vendor, about.isa, about.memory_bytes)]
    for vendor in _BACKENDS:
        if vendor != "cpu":
            here = _backend(URI(vendor)).describe_all(_system(URI(vendor)))
            found += [DeviceInfo(f"{vendor}:{n}", p.name, p.vendor, p.isa, p.memory_bytes) for n, p in enumerate(here)]
    return found


def _backend(uri: URI) -> Any:
    if uri.vendor not in _BACKENDS:
        kind = "virtual " if uri.virtual else ""
        raise (Unsupported if uri.virtual else DeviceNotFound)(
            f"{uri}: this version of devrt has no backend for {kind}{uri.vendor} devices",
            evidence=f"backends: {', '.join(_BACKENDS)}", remedy="open cpu")
    module, name = _BACKENDS[uri.vendor]
    return getattr(importlib.import_module(module), name)


def _system(uri: URI) -> System:
    """What stands behind the driver boundary of a device: this machine, or a virtual one."""
    if uri.virtual:
        from devrt.virtual import open_system
        return open_system(uri)
    if not _host:
        _host.append(LinuxSystem())
    return _host[0]


def _forked() -> None:
    global _lock
    _lock = threading.RLock()
    _open.clear()
    _host.clear()


os.register_at_fork(after_in_child=_forked)
