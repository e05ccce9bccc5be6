"""A System that wraps another and writes down every call: arguments, decoded ioctls, answer, time.

A recording is JSON lines, one call each, written as it happens, so that one that ends in a crash is still good up to
its last call. Bytes are hexadecimal. `devrt.ioctl.replaying` serves a recording in place of the machine it was made on.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from devrt.device import InvalidArgument
from devrt.ioctl.errors import errno_name
from devrt.ioctl.system import TEXT_LIMIT, Argument, FileStat, Host, LogLine, System, peek
from devrt.ioctl.tables import tables_on
from devrt.ioctl.uapi import Uapi, pointed_ranges, table_for


@dataclass(frozen=True)
class Call:
    """One call of a System.

    arguments: by the names System gives them; an fd comes with `path` and with `open`, the how-manieth open it is from
    result:    what came back (None where the call failed or gives nothing), as `encode` makes it JSON
    errno:     0, or what the kernel refused with
    out:       of an ioctl: `data`, the argument as the driver left it, and `pointed`, the memory its pointers lead to
    decoded:   of an ioctl some table knows: `name`, `before` and `after`, the argument's fields
    """

    name: str
    arguments: dict[str, Any]
    result: Any = None
    errno: int = 0
    ns: int = 0
    out: dict[str, Any] = field(default_factory=dict)
    decoded: dict[str, Any] = field(default_factory=dict)

    def json(self) -> str:
        """One line, without the members that say nothing."""
        return json.dumps({name: value for name, value in vars(self).items()
                           if not (value is None or value == {} and name != "arguments" or name == "errno" and not value)})

    def __str__(self) -> str:
        """One line for people: `ioctl(/dev/kfd, AMDKFD_IOC_GET_VERSION major_version=0) = 0 major_version=1, 1.2 us`."""
        shown = {name: value for name, value in self.arguments.items() if name not in ("data", "pointed", "open")}
        if "path" in shown:
            shown.pop("fd", None)
        words = [f"{value:#x}" if name == "request" else str(value) for name, value in shown.items()]
        if self.decoded:
            words = [str(shown["path"]), f"{self.decoded['name']} {_fields(self.decoded['before'])}".rstrip()]
        answer = errno_name(self.errno) if self.errno else _short(self.result)
        after = _fields({name: value for name, value in self.decoded.get("after", {}).items()
                         if value != self.decoded["before"].get(name)})
        return f"{self.name}({', '.join(words)}) = {answer}{f' {after}' if after else ''}, {self.ns / 1e3:.1f} us"


def load(path: str | Path) -> list[Call]:
    """The calls of a recording. Raises OSError, or InvalidArgument for a file that is none."""
    calls = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            calls.append(Call(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InvalidArgument(f"{path} is no recording of devrt", evidence=f"line {number}: {error}",
                                  remedy="give a file that `devrt doctor --record` wrote") from error
    return calls


class RecordingSystem:
    """`inner`, with every call kept in `calls` and written to `sink` (one JSON line each) as it ends. Thread-safe."""

    def __init__(self, inner: System, sink: TextIO | None = None, tables: Sequence[Uapi] | None = None) -> None:
        self.inner, self.sink, self.tables = inner, sink, tables or getattr(inner, "tables", None) or tables_on(inner)
        self.calls: list[Call] = []
        self._opened: dict[int, tuple[str, int]] = {}  # fd -> path, how-manieth open
        self._opens = 0
        self._lock = threading.Lock()

    def save(self, path: str | Path) -> None:
        Path(path).write_text("".join(call.json() + "\n" for call in self.calls))

    def open(self, path: str, flags: int) -> int:
        fd: int = self._call("open", {"path": path, "flags": flags}, lambda: self.inner.open(path, flags), self._open_result)
        return fd

    def close(self, fd: int) -> None:
        arguments = self._with_fd(fd)
        with self._lock:  # before the kernel can give the number to another thread's open
            self._opened.pop(fd, None)
        self._call("close", arguments, lambda: self.inner.close(fd))

    def ioctl(self, fd: int, request: int, argument: Argument) -> int:
        arguments = {**self._with_fd(fd), "request": request}
        if isinstance(argument, int):
            result: int = self._call("ioctl", {**arguments, "data": argument}, lambda: self.inner.ioctl(fd, request, argument))
            return result
        before = bytes(argument)
        table = table_for(self.tables, str(arguments.get("path", "")), request)
        # Ranges as the caller gave them: a driver may write back the length it would have liked.
        ranges = pointed_ranges(table, request, before) if table else {}
        sent = {name: _hex(peek(*where)) for name, where in ranges.items()}
        value, number, failure = None, 0, None
        start = time.perf_counter_ns()
        try:
            value = self.inner.ioctl(fd, request, argument)
        except OSError as error:
            number, failure = error.errno or 0, error
        ns = time.perf_counter_ns() - start
        after = bytes(argument)
        received = {name: _hex(peek(*where)) for name, where in ranges.items()}
        self._keep(Call("ioctl", {**arguments, "data": before.hex(), "pointed": sent}, value, number, ns,
                        {"data": after.hex(), "pointed": received}, _decoded(table, request, (before, sent), (after, received))))
        if failure is not None:
            raise failure
        assert value is not None  # nothing failed, so the driver answered
        return value

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int = 0, address: int = 0) -> int:
        arguments = {**self._with_fd(fd), "length": length, "prot": prot, "flags": flags, "offset": offset, "address": address}
        mapped: int = self._call("mmap", arguments, lambda: self.inner.mmap(fd, length, prot, flags, offset, address))
        return mapped

    def munmap(self, address: int, length: int) -> None:
        self._call("munmap", {"address": address, "length": length}, lambda: self.inner.munmap(address, length))

    def mprotect(self, address: int, length: int, prot: int) -> None:
        self._call("mprotect", {"address": address, "length": length, "prot": prot},
                   lambda: self.inner.mprotect(address, length, prot))

    def madvise(self, address: int, length: int, advice: int) -> None:
        self._call("madvise", {"address": address, "length": length, "advice": advice},
                   lambda: self.inner.madvise(address, length, advice))

    def read_bytes(self, path: str, limit: int = TEXT_LIMIT) -> bytes:
        data: bytes = self._call("read_bytes", {"path": path, "limit": limit}, lambda: self.inner.read_bytes(path, limit))
        return data

    def read_text(self, path: str, limit: int = TEXT_LIMIT) -> str:
        text: str = self._call("read_text", {"path": path, "limit": limit}, lambda: self.inner.read_text(path, limit))
        return text

    def list_dir(self, path: str) -> list[str]:
        names: list[str] = self._call("list_dir", {"path": path}, lambda: self.inner.list_dir(path))
        return names

    def stat(self, path: str) -> FileStat:
        found: FileStat = self._call("stat", {"path": path}, lambda: self.inner.stat(path))
        return found

    def access(self, path: str, mode: int) -> bool:
        allowed: bool = self._call("access", {"path": path, "mode": mode}, lambda: self.inner.access(path, mode))
        return allowed

    def readlink(self, path: str) -> str:
        target: str = self._call("readlink", {"path": path}, lambda: self.inner.readlink(path))
        return target

    def host(self) -> Host:
        host: Host = self._call("host", {}, self.inner.host)
        return host

    def kernel_log(self) -> list[LogLine]:
        lines: list[LogLine] = self._call("kernel_log", {}, self.inner.kernel_log)
        return lines

    def _call(self, name: str, arguments: dict[str, Any], make: Callable[[], Any],
              done: Callable[[dict[str, Any], Any], None] | None = None) -> Any:
        start = time.perf_counter_ns()
        try:
            result = make()
        except OSError as error:
            self._keep(Call(name, arguments, errno=error.errno or 0, ns=time.perf_counter_ns() - start))
            raise
        ns = time.perf_counter_ns() - start
        if done is not None:
            done(arguments, result)
        self._keep(Call(name, arguments, encode(result), ns=ns))
        return result

    def _open_result(self, arguments: dict[str, Any], fd: int) -> None:
        with self._lock:
            self._opens += 1
            self._opened[fd] = arguments["path"], self._opens
            arguments["open"] = self._opens

    def _with_fd(self, fd: int) -> dict[str, Any]:
        if fd not in self._opened:  # -1 for anonymous memory, or a number that came out of a driver
            return {"fd": fd}
        path, number = self._opened[fd]
        return {"fd": fd, "path": path, "open": number}

    def _keep(self, call: Call) -> None:
        with self._lock:
            self.calls.append(call)
            if self.sink is not None:
                self.sink.write(call.json() + "\n")
                self.sink.flush()


def encode(result: Any) -> Any:
    """A System's answer as JSON can hold it."""
    if isinstance(result, bytes):
        return result.hex()
    if isinstance(result, (FileStat, Host)):
        fields = dataclasses.asdict(result)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    if isinstance(result, list) and result and isinstance(result[0], LogLine):
        return [[line.level, line.seconds, line.text] for line in result]
    return result


def decode(name: str, result: Any) -> Any:
    """What `encode` was given, as the method `name` returns it."""
    if name == "read_bytes":
        return bytes.fromhex(result)
    if name == "stat":
        return FileStat(**{**result, "rdev": tuple(result["rdev"])})
    if name == "host":
        return Host(**{**result, "groups": tuple(result["groups"]), "affinity": tuple(result["affinity"])})
    if name == "kernel_log":
        return [LogLine(*line) for line in result]
    return result


def _decoded(table: Uapi | None, request: int, *states: tuple[bytes, dict[str, str | None]]) -> dict[str, Any]:
    """The name of a request and its fields before and after: of its struct, then of the structs its pointers lead to."""
    name = table.find(request) if table else None
    if table is None or name is None:
        return {}
    shown = []
    for data, pointed in states:
        decoded = table.decode(request, data)
        assert decoded is not None  # the request has a name
        texts = {name: bytes.fromhex(text) for name, text in pointed.items() if text}
        fields = {**decoded.fields, **table.pointed_fields(name, decoded.fields, texts)}
        shown.append({field: table.names.get(field, {}).get(value, value) if isinstance(value, int) else value
                      for field, value in fields.items()})
    return {"name": name, "before": shown[0], "after": shown[1]}


def _hex(data: bytes | None) -> str | None:
    return None if data is None else data.hex()


def _fields(fields: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _short(result: Any) -> str:
    text = repr(result)
    return text if len(text) <= 60 else f"{text[:57]}..."
