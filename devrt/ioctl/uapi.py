"""A driver's UAPI as data: request numbers, structs by cffi in ABI mode, one decoder.

A driver's table names its header, its device nodes, its structs as C text and its ioctls as rows. C text is parsed on
first use, so importing a table costs nothing. Struct fields use <stdint.h> types; the tests compile the kernel's own
headers and compare every size, offset and request number with what is declared here.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cffi

from devrt.ioctl.system import System, peek

# asm-generic/ioctl.h: direction 31:30, size 29:16, type 15:8, number 7:0. The same on x86-64 and aarch64.
_NONE, _WRITE, _READ = 0, 1, 2


@dataclass(frozen=True)
class Pointer:
    """A field that holds the address of memory the driver reads or writes: the field `count` names, over `per`, times
    `element` bytes. Which struct lies there is told by the value of the field `by`, in the table's `variants`; it is as long as
    that struct where the count is 0."""

    field: str
    count: str
    element: int = 1
    per: int = 1
    by: str = ""


@dataclass(frozen=True)
class Ioctl:
    """One row: how the request number is made, the struct it carries ("" for none), and where that struct points.

    `addresses` are fields that hold an address in this process or the GPU's view of one: they differ from run to run. One of a
    struct inside is named with a dot.
    """

    number: int
    direction: int
    struct: str = ""
    pointers: tuple[Pointer, ...] = ()
    addresses: tuple[str, ...] = ()
    bare: bool = False  # the number is the whole request, as in nvidia-uvm


def IO(number: int) -> Ioctl:
    return Ioctl(number, _NONE)


def IOR(number: int, struct: str, *pointers: Pointer, addresses: tuple[str, ...] = ()) -> Ioctl:
    return Ioctl(number, _READ, struct, pointers, addresses)


def IOW(number: int, struct: str, *pointers: Pointer, addresses: tuple[str, ...] = ()) -> Ioctl:
    return Ioctl(number, _WRITE, struct, pointers, addresses)


def IOWR(number: int, struct: str, *pointers: Pointer, addresses: tuple[str, ...] = ()) -> Ioctl:
    return Ioctl(number, _READ | _WRITE, struct, pointers, addresses)


def BARE(number: int, struct: str, *pointers: Pointer, addresses: tuple[str, ...] = ()) -> Ioctl:
    return Ioctl(number, _NONE, struct, pointers, addresses, bare=True)


@dataclass(frozen=True)
class Decoded:
    """A request as its header names it, and its argument's fields by name (nested structs as dicts, arrays as lists)."""

    name: str
    fields: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in self.fields.items())})"


@dataclass(frozen=True, eq=False)
class Uapi:
    """The interface of one driver. `nodes` are shell patterns of the device nodes it answers on.

    variants: field of a Pointer's `by` -> its value -> the struct that the pointer leads to
    inner:    struct of a variant -> the pointers in it
    names:    field -> its value -> what the header calls that
    """

    name: str
    header: str
    nodes: tuple[str, ...]
    magic: int
    structs: str
    ioctls: Mapping[str, Ioctl]
    variants: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    inner: Mapping[str, tuple[Pointer, ...]] = field(default_factory=dict)
    names: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    @functools.cached_property
    def ffi(self) -> cffi.FFI:
        ffi = cffi.FFI()
        ffi.cdef(self.structs)
        return ffi

    def size(self, struct: str) -> int:
        """sizeof the struct or union in bytes; 0 for the empty name."""
        return self.ffi.sizeof(self.ctype(struct)) if struct else 0

    def ctype(self, struct: str) -> str:
        """The C type of a declared name: `struct NAME` or `union NAME`."""
        return f"{self._keywords.get(struct, 'struct')} {struct}"

    def request(self, name: str) -> int:
        """The request number that ioctl(2) takes."""
        row = self.ioctls[name]
        if row.bare:
            return row.number
        return row.direction << 30 | self.size(row.struct) << 16 | self.magic << 8 | row.number

    def new(self, struct: str, **fields: Any) -> Any:
        """A zeroed struct with `fields` set; assigning out of a field's range raises OverflowError."""
        return self.ffi.new(f"{self.ctype(struct)} *", fields)

    def call(self, system: System, fd: int, name: str, /, **fields: Any) -> Any:
        """Make the call and return its struct as the driver left it. Raises OSError."""
        argument = self.new(self.ioctls[name].struct, **fields)
        # Released when the call fails, too; see LinuxSystem.ioctl.
        with memoryview(self.ffi.buffer(argument)) as data:
            system.ioctl(fd, self.request(name), data)
        return argument

    def find(self, request: int) -> str | None:
        """The name of a request. Drivers grow structs, so a number with another size is still that ioctl."""
        return self._by_request.get(request) or self._by_number.get((request >> 8 & 0xFF, request & 0xFF))

    def argument_bytes(self, request: int) -> int:
        """How much of the caller's memory a request that `find` knows is about: as its number says, or, where that is bare, its
        struct."""
        row = self.ioctls[str(self.find(request))]
        return self.size(row.struct) if row.bare else request >> 16 & 0x3FFF

    def decode(self, request: int, data: bytes) -> Decoded | None:
        """`data` as the fields of the request's struct, or None when this driver has no such request.

        Data shorter than the struct is extended by zeros, as the kernel does for callers built with an older header.
        """
        name = self.find(request)
        if name is None:
            return None
        struct = self.ioctls[name].struct
        return Decoded(name, self.fields(struct, data) if struct else {})

    def fields(self, struct: str, data: bytes) -> dict[str, Any]:
        """`data` as a dict of the struct's fields; pointers and integers as int."""
        pointer = self.new(struct)
        size = min(self.size(struct), len(data))
        self.ffi.buffer(pointer)[:size] = data[:size]
        return dict(self._plain(self.ffi.typeof(pointer).item, pointer[0]))

    def variant(self, pointer: Pointer, fields: Mapping[str, Any]) -> str:
        """The struct that a pointer leads to, "" where no row says it."""
        return self.variants.get(pointer.by, {}).get(fields[pointer.by], "") if pointer.by else ""

    def pointed_fields(self, name: str, fields: Mapping[str, Any], pointed: Mapping[str, bytes | None]) -> dict[str, Any]:
        """The fields of the structs that an ioctl's pointers lead to, as `pointer.field`; `pointed` are their bytes."""
        found = {}
        for pointer in self.ioctls[name].pointers:
            struct, data = self.variant(pointer, fields), pointed.get(pointer.field)
            if struct and data:
                found.update({f"{pointer.field}.{inner}": value for inner, value in self.fields(struct, data).items()})
        return found

    def offset(self, struct: str, member: str) -> int:
        return self.ffi.offsetof(self.ctype(struct), member)

    def span(self, struct: str, member: str) -> tuple[int, int]:
        """(offset, size) in bytes of a member; that of a struct inside is named with a dot."""
        outer, _, rest = member.partition(".")
        offset, size = self.layout(struct)[outer]
        if not rest:
            return offset, size
        kind = dict(self.ffi.typeof(self.ctype(struct)).fields)[outer].type
        inner, size = self.span(kind.cname.partition(" ")[2], rest)
        return offset + inner, size

    @functools.cached_property
    def struct_names(self) -> tuple[str, ...]:
        """Every struct and union declared, in the order of the C text."""
        return tuple(self._keywords)

    def layout(self, struct: str) -> dict[str, tuple[int, int]]:
        """Field name -> (offset, size), in bytes."""
        kind = self.ffi.typeof(self.ctype(struct))
        return {name: (field.offset, self.ffi.sizeof(field.type)) for name, field in kind.fields}

    @functools.cached_property
    def _keywords(self) -> dict[str, str]:
        return {name: keyword for keyword, name in re.findall(r"^\s*(struct|union) (\w+) \{", self.structs, re.MULTILINE)}

    @functools.cached_property
    def _by_request(self) -> dict[int, str]:
        return {self.request(name): name for name in self.ioctls}

    @functools.cached_property
    def _by_number(self) -> dict[tuple[int, int], str]:
        return {(self.magic, row.number): name for name, row in self.ioctls.items() if not row.bare}

    def _plain(self, kind: Any, value: Any) -> Any:
        if kind.kind in ("struct", "union"):
            return {name: self._plain(field.type, getattr(value, name)) for name, field in kind.fields}
        if kind.kind == "array":
            return [self._plain(kind.item, value[index]) for index in range(kind.length)]
        if kind.kind == "pointer":
            return int(self.ffi.cast("uintptr_t", value))
        return value[0] if isinstance(value, bytes) else value


def table_for(tables: Sequence[Uapi], path: str, request: int) -> Uapi | None:
    """The driver interface that `request` on the node `path` belongs to; several drivers may share a node's name."""
    for table in tables:
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in table.nodes) and table.find(request) is not None:
            return table
    return None


def pointed_ranges(table: Uapi, request: int, data: bytes) -> dict[str, tuple[int, int]]:
    """(address, bytes) of the memory that the argument's pointers lead to, by field, as the caller gave them; null
    pointers and empty ranges are left out, and nobody has checked the others. What a struct there points to in turn is under
    both fields' names with a dot between."""
    decoded = table.decode(request, data)
    return {} if decoded is None else dict(_ranges(table, table.ioctls[decoded.name].pointers, decoded.fields, ""))


def _ranges(table: Uapi, pointers: Sequence[Pointer], fields: Mapping[str, Any],
            prefix: str) -> Iterator[tuple[str, tuple[int, int]]]:
    for pointer in pointers:
        struct, address = table.variant(pointer, fields), fields[pointer.field]
        length = fields[pointer.count] // pointer.per * pointer.element or (table.size(struct) if struct else 0)
        if not address or not length:
            continue
        yield f"{prefix}{pointer.field}", (address, length)
        inside = table.inner.get(struct, ())
        content = peek(address, length) if inside else None
        if content is not None:
            yield from _ranges(table, inside, table.fields(struct, content), f"{prefix}{pointer.field}.")
