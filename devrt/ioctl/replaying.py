"""A System that answers from a recording: the same call gets the same answer, and a call that was not recorded is an error.

Calls are matched by what was asked, not by when: among equal calls the answers come in the recorded order. Questions
about the machine may be asked more often than they were recorded and get the last answer; a call that acts may not.
Addresses differ from run to run, so they take no part in the match. Mapped device memory is not in a recording: a replayed
mmap gives zeroed memory.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections import deque
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from devrt.device import InvalidArgument
from devrt.ioctl.nv_versions import VERSION_FILE
from devrt.ioctl.recording import Call, decode, load
from devrt.ioctl.system import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_PRIVATE,
    TEXT_LIMIT,
    Argument,
    FileStat,
    Host,
    LinuxSystem,
    LogLine,
    peek,
    view,
)
from devrt.ioctl.tables import TABLES, tables_by
from devrt.ioctl.uapi import Uapi, pointed_ranges, table_for

_QUESTIONS = {"read_bytes", "read_text", "list_dir", "stat", "access", "readlink", "host", "kernel_log"}
_NEAREST_OF = 200  # recorded calls compared to name the nearest one; comparing is slow and the error is for a person


class ReplayingSystem:
    """Serves `recording`: a file, or the calls themselves. Thread-safe.

    A call that was not recorded raises InvalidArgument that names the nearest one.
    """

    def __init__(self, recording: str | Path | Sequence[Call], tables: Sequence[Uapi] | None = None) -> None:
        self.calls = load(recording) if isinstance(recording, (str, Path)) else list(recording)
        self.tables = tables or _tables_of(self.calls)
        self._memory = LinuxSystem()  # for mappings only
        self._answers: dict[str, deque[Call]] = {}
        for call in self.calls:
            self._answers.setdefault(self._key(call.name, call.arguments), deque()).append(call)
        self._opened: dict[int, tuple[str, int]] = {}  # our fd -> path, how-manieth open of the recording
        self._lock = threading.Lock()

    def open(self, path: str, flags: int) -> int:
        with self._lock:
            call = self._take("open", {"path": path, "flags": flags})
            # The recorded number where it is free: drivers are told fds inside arguments too.
            fd: int = call.result
            while fd in self._opened:
                fd += 1
            self._opened[fd] = path, call.arguments["open"]
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            call = self._match("close", self._with_fd(fd))
            self._opened.pop(fd, None)
        _raise(call)

    def ioctl(self, fd: int, request: int, argument: Argument) -> int:
        with self._lock:
            arguments = {**self._with_fd(fd), "request": request}
            if isinstance(argument, int):
                value: int = self._take("ioctl", {**arguments, "data": argument}).result
                return value
            before = bytes(argument)
            table = table_for(self.tables, str(arguments.get("path", "")), request)
            ranges = pointed_ranges(table, request, before) if table else {}
            contents = {name: peek(*where) for name, where in ranges.items()}
            if any(data is None for data in contents.values()):
                raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
            sent = {name: data.hex() for name, data in contents.items() if data is not None}
            call = self._match("ioctl", {**arguments, "data": before.hex(), "pointed": sent})
        memoryview(argument).cast("B")[:] = _merged(
            bytes.fromhex(call.out["data"]), bytes.fromhex(call.arguments["data"]), before,
            _address_bytes(table, request) if table else [])
        for name, (address, length) in ranges.items():
            data = bytes.fromhex(call.out["pointed"].get(name) or "")[:length]
            recorded = bytes.fromhex(call.arguments["pointed"].get(name) or "")
            mine = contents[name] or b""
            inside = _inner_address_bytes(table, request, before, name) if table else []
            view(address, len(data))[:] = _merged(data, recorded, mine, inside)
        _raise(call)
        result: int = call.result
        return result

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int = 0, address: int = 0) -> int:
        with self._lock:
            self._take("mmap", {**self._with_fd(fd), "length": length, "prot": prot, "flags": flags, "offset": offset,
                                "address": address})
        keep = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_NORESERVE)
        return self._memory.mmap(-1, length, prot, MAP_PRIVATE | MAP_ANONYMOUS | keep, 0, address)

    def munmap(self, address: int, length: int) -> None:
        self._locked("munmap", {"address": address, "length": length})
        self._memory.munmap(address, length)

    def mprotect(self, address: int, length: int, prot: int) -> None:
        self._locked("mprotect", {"address": address, "length": length, "prot": prot})
        self._memory.mprotect(address, length, prot)

    def madvise(self, address: int, length: int, advice: int) -> None:
        self._locked("madvise", {"address": address, "length": length, "advice": advice})
        self._memory.madvise(address, length, advice)

    def read_bytes(self, path: str, limit: int = TEXT_LIMIT) -> bytes:
        data: bytes = self._locked("read_bytes", {"path": path, "limit": limit})
        return data

    def read_text(self, path: str, limit: int = TEXT_LIMIT) -> str:
        text: str = self._locked("read_text", {"path": path, "limit": limit})
        return text

    def list_dir(self, path: str) -> list[str]:
        names: list[str] = self._locked("list_dir", {"path": path})
        return names

    def stat(self, path: str) -> FileStat:
        found: FileStat = self._locked("stat", {"path": path})
        return found

    def access(self, path: str, mode: int) -> bool:
        allowed: bool = self._locked("access", {"path": path, "mode": mode})
        return allowed

    def readlink(self, path: str) -> str:
        target: str = self._locked("readlink", {"path": path})
        return target

    def host(self) -> Host:
        host: Host = self._locked("host", {})
        return host

    def kernel_log(self) -> list[LogLine]:
        lines: list[LogLine] = self._locked("kernel_log", {})
        return lines

    def left(self) -> list[Call]:
        """The recorded calls that act and were not made, in the order of the recording."""
        waiting = {id(call) for calls in self._answers.values() for call in calls}
        return [call for call in self.calls if id(call) in waiting and call.name not in _QUESTIONS]

    def _locked(self, name: str, arguments: dict[str, Any]) -> Any:
        with self._lock:
            call = self._take(name, arguments)
        return decode(name, call.result)

    def _take(self, name: str, arguments: dict[str, Any]) -> Call:
        """The recorded call that answers this one; raises what it raised."""
        call = self._match(name, arguments)
        _raise(call)
        return call

    def _match(self, name: str, arguments: dict[str, Any]) -> Call:
        key = self._key(name, arguments)
        answers = self._answers.get(key)
        if not answers:
            raise self._unknown(name, arguments, key, made_before=answers is not None)
        return answers[0] if name in _QUESTIONS and len(answers) == 1 else answers.popleft()

    def _key(self, name: str, arguments: dict[str, Any]) -> str:
        """What has to be equal for two calls to be the same, as one text."""
        same = dict(arguments)
        if "path" in same:  # else the number is all there is: -1, or one that a driver gave out
            same.pop("fd", None)
        if name == "open":
            same.pop("open", None)
        if name in ("munmap", "mprotect", "madvise") or name == "mmap" and not same["flags"] & MAP_FIXED:
            same.pop("address")
        if name == "ioctl" and isinstance(same["data"], str):
            table = table_for(self.tables, str(same.get("path", "")), same["request"])
            if table is not None:
                data = bytes.fromhex(same["data"])
                same["data"] = _masked(data, _address_bytes(table, same["request"])).hex()
                same["pointed"] = {
                    name: text and _masked(bytes.fromhex(text), _inner_address_bytes(table, same["request"], data, name)).hex()
                    for name, text in same["pointed"].items()}
        return json.dumps([name, same], sort_keys=True)

    def _with_fd(self, fd: int) -> dict[str, Any]:
        if fd not in self._opened:
            return {"fd": fd}
        path, number = self._opened[fd]
        return {"fd": fd, "path": path, "open": number}

    def _unknown(self, name: str, arguments: dict[str, Any], key: str, made_before: bool) -> InvalidArgument:
        asked = str(Call(name, arguments, decoded=self._named(name, arguments)))
        asked = asked[:asked.rindex(") = ") + 1]
        if made_before:
            return InvalidArgument("the replayed program makes a call more often than the recorded one did", evidence=asked,
                                   remedy="record the program as it is now")
        alike = [call for call in self.calls if call.name == name][:_NEAREST_OF]
        nearest = max(alike, key=lambda call: SequenceMatcher(None, key, self._key(name, call.arguments)).ratio(), default=None)
        return InvalidArgument("the replayed program makes a call that is not in the recording",
                               evidence=f"asked: {asked}; nearest recorded: {nearest or f'no {name} at all'}",
                               remedy="record the program as it is now")

    def _named(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if name != "ioctl" or isinstance(arguments["data"], int):
            return {}
        table = table_for(self.tables, str(arguments.get("path", "")), arguments["request"])
        found = table.decode(arguments["request"], bytes.fromhex(arguments["data"])) if table else None
        return {"name": found.name, "before": dict(found.fields), "after": dict(found.fields)} if found else {}


def _tables_of(calls: Sequence[Call]) -> Sequence[Uapi]:
    """The tables of the machine that was recorded, so far as it was asked which driver runs."""
    for call in calls:
        if call.name == "read_text" and call.arguments["path"] == VERSION_FILE and call.result is not None:
            return tables_by(call.result)
    return TABLES


def _raise(call: Call) -> None:
    if call.errno:
        path = None if "fd" in call.arguments else call.arguments.get("path")  # as Python reports it: calls on an fd name none
        raise OSError(call.errno, os.strerror(call.errno), path)


def _address_bytes(table: Uapi, request: int) -> list[tuple[int, int]]:
    """(start, end) of the fields of an argument that hold addresses."""
    name = table.find(request)
    if name is None:
        return []
    row = table.ioctls[name]
    spans = [table.span(row.struct, field) for field in (*(pointer.field for pointer in row.pointers), *row.addresses)]
    return [(offset, offset + size) for offset, size in spans]


def _inner_address_bytes(table: Uapi, request: int, data: bytes, pointed: str) -> list[tuple[int, int]]:
    """As `_address_bytes`, of the memory that the pointer `pointed` of the argument `data` leads to."""
    decoded = table.decode(request, data)
    pointers = {pointer.field: pointer for pointer in table.ioctls[decoded.name].pointers} if decoded else {}
    if decoded is None or pointed not in pointers:
        return []
    struct = table.variant(pointers[pointed], decoded.fields)
    spans = [table.span(struct, pointer.field) for pointer in table.inner.get(struct, ())]
    return [(offset, offset + size) for offset, size in spans]


def _masked(data: bytes, addresses: list[tuple[int, int]]) -> bytes:
    """`data` with its addresses as 0 (null) or 1."""
    masked = bytearray(data)
    for start, end in addresses:
        if start < len(masked):
            masked[start:end] = int(any(masked[start:end])).to_bytes(min(end, len(masked)) - start, "little")
    return bytes(masked)


def _merged(outcome: bytes, recorded: bytes, mine: bytes, addresses: list[tuple[int, int]]) -> bytes:
    """The recorded outcome, with this process's addresses where the driver left the recorded ones alone."""
    merged = bytearray(outcome)
    for start, end in addresses:
        if merged[start:end] == recorded[start:end]:
            merged[start:end] = mine[start:end]
    return bytes(merged)
