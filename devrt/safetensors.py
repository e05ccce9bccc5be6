"""Safetensors files: read by mmap without copying, and written.

The format (https://github.com/huggingface/safetensors): eight bytes of header length, little-endian; a JSON header
{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}; then the data, dense and row-major, one
tensor behind another without holes.

    from devrt import safetensors
    weights = safetensors.load("model.safetensors")             # name -> Array
    file = safetensors.open_file("model.safetensors")           # the same lazily, with file.metadata and file.info(name)
    weights = safetensors.load_checkpoint("folder")             # one file, or the shards of model.safetensors.index.json

An array on a device that shares the host's memory *is* the file's pages: mapped read-only, fetched from the disk when first
read, unmapped when the last array of the file is gone. Only a tensor that does not lie at a multiple of its element size is
copied. As with every mapped file, cutting it short while arrays of it are alive ends the process (SIGBUS); replacing it, as
`save` does, is safe.

A file is not trusted: everything its header says is checked before anything is handed out.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from devrt import registry, staging
from devrt.array import Array, asarray
from devrt.compiler import dtypes as dt
from devrt.compiler.dtypes import DType
from devrt.compiler.ops import Shape
from devrt.device import Device, InvalidArgument, PermissionDenied, Unsupported
from devrt.ioctl.errors import devrt_error
from devrt.ioctl.system import MAP_SHARED, PROT_READ, LinuxSystem, System, view
from devrt.scheduler.storage import Storage, buffer_node

DTYPES: dict[str, DType] = {
    "F64": dt.float64, "F32": dt.float32, "F16": dt.float16, "BF16": dt.bfloat16, "F8_E4M3": dt.float8_e4m3,
    "F8_E5M2": dt.float8_e5m2, "I64": dt.int64, "I32": dt.int32, "I16": dt.int16, "I8": dt.int8, "U64": dt.uint64,
    "U32": dt.uint32, "U16": dt.uint16, "U8": dt.uint8, "BOOL": dt.bool_}
_NAMES = {d: name for name, d in DTYPES.items()}

MAX_HEADER = 100_000_000  # bytes, as the format's own reader has it
MAX_AXES = 32
_ALIGNMENT = 64  # of the data in files written here: whole vectors and cache lines
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_AGAIN = "download or write the file again"


@dataclass(frozen=True)
class Info:
    """What the header says of one tensor; `offset` in bytes from the start of the file."""

    dtype: DType
    shape: Shape
    offset: int

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(math.prod(self.shape))


class _Mapping:
    """A file's pages, read-only, until the last array of them is gone."""

    def __init__(self, system: System, fd: int, nbytes: int) -> None:
        self.nbytes, self._system = nbytes, system
        self.address = system.mmap(fd, nbytes, PROT_READ, MAP_SHARED)

    def bytes(self, begin: int, end: int) -> memoryview:
        """A view of the pages, valid while this mapping is held."""
        return view(self.address + begin, end - begin).toreadonly()

    def __del__(self, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        address = getattr(self, "address", None)
        if address is not None and not exiting():
            self._system.munmap(address, self.nbytes)


class File(Mapping[str, Array]):
    """An open safetensors file: a mapping of names to Arrays, which are made when they are asked for.

    `path`; `metadata`: the header's own text entries; `names`: in the order of the header. Closing is dropping it: its
    arrays keep the pages they need.
    """

    def __init__(self, path: str, mapping: _Mapping, device: Device) -> None:
        self.path, self._mapping, self._device = path, mapping, device
        self._tensors, self.metadata = _parse(path, mapping)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def info(self, name: str) -> Info:
        """Type, shape and place of a tensor; its data is not touched. Raises InvalidArgument for an unknown name."""
        found = self._tensors.get(name)
        if found is None:
            raise InvalidArgument(f"{self.path} has no tensor {name!r}", evidence=f"it has {_listed(list(self._tensors))}",
                                  remedy="use one of its names")
        return found

    def __getitem__(self, name: str) -> Array:
        """The tensor. Raises InvalidArgument for an unknown name, and for a BOOL tensor with bytes other than 0 and 1."""
        info = self.info(name)
        if info.dtype is dt.bool_:
            self._check_bool(name, info)
        return Array(buffer_node(self._storage(info)))

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"<safetensors file {self.path}: {len(self)} tensors, {self._mapping.nbytes} bytes>"

    def _storage(self, info: Info) -> Storage:
        address, device = self._mapping.address + info.offset, self._device
        if info.nbytes and address % (info.dtype.bits // 8) == 0 and staging.shared(device):
            return Storage(info.shape, info.dtype, device, device.wrap(address, info.nbytes, self._mapping))
        made = Storage.alloc(info.shape, info.dtype, device)
        data = self._mapping.bytes(info.offset, info.offset + info.nbytes)
        if staging.shared(device):
            made.buffer.host()[:info.nbytes] = data
        else:
            staging.write(device, made.buffer, data)
        return made

    def _check_bool(self, name: str, info: Info) -> None:
        import numpy as np
        values = np.frombuffer(self._mapping.bytes(info.offset, info.offset + info.nbytes), np.uint8)
        if values.size and values.max() > 1:
            at = int((values > 1).argmax())
            raise InvalidArgument(f"{self.path}: the BOOL tensor {name!r} has bytes other than 0 and 1",
                                  evidence=f"{values[at]} at element {at}", remedy=_AGAIN)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def open_file(path: str | os.PathLike[str], *, device: str | None = None) -> File:
    """Open a file and check its whole header. Nothing of the data is read.

    Raises InvalidArgument (missing, no file, damaged, each with what was expected and found), PermissionDenied,
    Unsupported (a type devrt has not).
    """
    name, system = _path(path), LinuxSystem()
    with _file_errors(name, "read"):
        fd = system.open(name, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
                raise InvalidArgument(f"{name} is no file", evidence=kind,
                                      remedy="name the .safetensors file; load_checkpoint() takes a folder")
            if status.st_size < 8:
                raise InvalidArgument(f"{name} is no safetensors file: it is shorter than the 8 bytes of a header length",
                                      evidence=f"{status.st_size} bytes", remedy=_AGAIN)
            mapping = _Mapping(system, fd, status.st_size)
        finally:
            system.close(fd)
    return File(name, mapping, registry.open(device))


def load(path: str | os.PathLike[str], *, device: str | None = None) -> dict[str, Array]:
    """Every tensor of a file by name. Raises what open_file and File[name] raise."""
    return dict(open_file(path, device=device))


def load_checkpoint(folder: str | os.PathLike[str], *, device: str | None = None) -> dict[str, Array]:
    """Every tensor of a checkpoint: of `model.safetensors` where it is there, else of the shards that
    `model.safetensors.index.json` names. Every shard is opened and every name checked before any array is made.

    Raises what `load` raises; InvalidArgument where neither file is there, or the index and the shards disagree.
    """
    root = _path(folder)
    single, index = os.path.join(root, "model.safetensors"), os.path.join(root, "model.safetensors.index.json")
    with _file_errors(root, "read"):
        is_single, is_sharded = (LinuxSystem().stat(path).exists for path in (single, index))
    if is_single:
        return load(single, device=device)
    if not is_sharded:
        raise InvalidArgument(f"{root} is no checkpoint", evidence="neither model.safetensors nor model.safetensors.index.json",
                              remedy="name a folder that has one, or use load() for a file of another name")
    weight_map = _weight_map(index)
    shards = {shard: open_file(os.path.join(root, shard), device=device) for shard in dict.fromkeys(weight_map.values())}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise InvalidArgument(f"{index} places tensor {name!r} in {shard}, which has no such tensor",
                                  evidence=f"it has {_listed(list(shards[shard].names))}",
                                  remedy="download the index and the shards again, all of one revision")
    for shard, file in shards.items():
        stray = [name for name in file if weight_map.get(name) != shard]
        if stray:
            raise InvalidArgument(f"{os.path.join(root, shard)} has tensors that the index does not place there",
                                  evidence=_listed(stray),
                                  remedy="download the index and the shards again, all of one revision")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def _weight_map(index: str) -> dict[str, str]:
    """Tensor name -> shard, as the index has it. Shards lie beside the index."""
    with _file_errors(index, "read"):
        text = LinuxSystem().read_bytes(index, MAX_HEADER + 1)
    found = _json(index, text, "the index")
    weight_map = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InvalidArgument(f"{index} has no weight_map of names to file names", remedy=_AGAIN)
    for name, shard in weight_map.items():
        if shard in ("", ".", "..") or set(shard) & set("/\\\0"):
            raise InvalidArgument(f"{index} places tensor {name!r} outside its folder", evidence=repr(shard),
                                  remedy="shards are named without folders; do not use checkpoints you do not trust")
    return weight_map


def _parse(path: str, mapping: _Mapping) -> tuple[dict[str, Info], dict[str, str]]:
    """(tensors in the header's order, metadata), everything checked."""
    length = int.from_bytes(mapping.bytes(0, 8), "little")
    if length > MAX_HEADER:
        raise InvalidArgument(f"{path} is no safetensors file: its header would be longer than {MAX_HEADER} bytes",
                              evidence=f"the first 8 bytes say {length}", remedy=_AGAIN)
    data = 8 + length
    if data > mapping.nbytes:
        raise InvalidArgument(f"{path} ends inside its header", evidence=f"{data} bytes expected, the file has "
                              f"{mapping.nbytes}", remedy=_AGAIN)
    header = _json(path, bytes(mapping.bytes(8, data)), "the header")
    if not isinstance(header, dict):
        raise InvalidArgument(f"{path}: the header is no JSON object", evidence=f"a {type(header).__name__}", remedy=_AGAIN)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidArgument(f"{path}: {_METADATA} is no JSON object of texts", remedy=_AGAIN)
    tensors = {name: _info(f"{path}: tensor {name!r}", entry, data) for name, entry in header.items()}
    _check_dense(path, tensors, data, mapping.nbytes)
    return tensors, metadata


def _info(where: str, entry: Any, data: int) -> Info:
    """One tensor's entry; `data` is where the data begins."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        found = f"the fields {_listed(list(entry))}" if isinstance(entry, dict) else f"a {type(entry).__name__}"
        raise InvalidArgument(f"{where} is not described by dtype, shape and data_offsets", evidence=found, remedy=_AGAIN)
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str):
        raise InvalidArgument(f"{where} has no dtype", evidence=_short(kind), remedy=_AGAIN)
    if kind not in DTYPES:
        raise Unsupported(f"{where} has dtype {_short(kind)}, which devrt does not have", evidence=f"it has {', '.join(DTYPES)}",
                          remedy="convert the file to one of those")
    if not isinstance(shape, list) or not all(_is_size(n) for n in shape):
        raise InvalidArgument(f"{where}: a shape is a list of integers from 0 to 2^63 - 1", evidence=_short(shape), remedy=_AGAIN)
    if len(shape) > MAX_AXES:
        raise Unsupported(f"{where} has {len(shape)} axes", evidence=f"at most {MAX_AXES}", remedy="reshape it")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets) or offsets[0] > offsets[1]:
        raise InvalidArgument(f"{where}: data_offsets are two integers, begin and end", evidence=_short(offsets), remedy=_AGAIN)
    info = Info(DTYPES[kind], tuple(shape), data + offsets[0])
    if info.nbytes != offsets[1] - offsets[0]:
        raise InvalidArgument(f"{where}: {kind} {_short(shape)} takes {info.nbytes} bytes, its data_offsets span "
                              f"{offsets[1] - offsets[0]}", evidence=f"data_offsets {offsets}", remedy=_AGAIN)
    return info


def _check_dense(path: str, tensors: dict[str, Info], data: int, size: int) -> None:
    """The tensors fill the data one behind another: no hole, no overlap, nothing behind the file's end."""
    end, before = data, ""
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != end:
            what = f"overlaps {before!r}" if info.offset < end else "begins behind a hole"
            raise InvalidArgument(f"{path}: tensor {name!r} {what}", remedy=_AGAIN,
                                  evidence=f"it begins at byte {info.offset - data} of the data, expected {end - data}")
        end, before = info.offset + info.nbytes, name
        if end > size:
            raise InvalidArgument(f"{path} ends inside tensor {name!r}", evidence=f"{end} bytes expected, the file has {size}",
                                  remedy=_AGAIN)
    if end != size:
        raise InvalidArgument(f"{path} has bytes behind its last tensor", evidence=f"{end} bytes expected, the file has {size}",
                              remedy=_AGAIN)


def _json(path: str, text: bytes, what: str) -> Any:
    """The JSON value in `text`. Raises InvalidArgument, for a key given twice too."""
    try:
        found = json.loads(text.decode(), object_pairs_hook=_unique)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair decodes as JSON but is no Unicode
    except (ValueError, RecursionError) as e:
        raise InvalidArgument(f"{path}: {what} is no valid JSON in UTF-8", evidence=_short(str(e)), remedy=_AGAIN) from e
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {_short(name)} is there twice")
        found[name] = value
    return found


def _is_size(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def save(path: str | os.PathLike[str], arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write `arrays` (Arrays, or what asarray() takes) as a safetensors file, which replaces what is there in one step: arrays
    mapped from the old file stay as they are. Wide element types come first, so that every tensor is aligned to its own.

    Raises InvalidArgument for names and metadata that are no text, Unsupported for int4, and where the file can't be written
    what its errno means.
    """
    name = _path(path)
    if not all(isinstance(text, str) for pair in (metadata or {}).items() for text in pair):
        raise InvalidArgument("metadata maps text to text", evidence=_short(metadata))
    made: dict[str, Array] = {}
    for key, value in arrays.items():
        if not isinstance(key, str) or key == _METADATA:
            raise InvalidArgument(f"{_short(key)} is no name of a tensor", remedy=f"use text other than {_METADATA}")
        made[key] = asarray(value)
        if made[key].dtype not in _NAMES:
            raise Unsupported(f"safetensors has no {made[key].dtype}, which {key!r} is", remedy="save astype(int8)")
    ordered = sorted(made.items(), key=lambda item: -item[1].dtype.bits)
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for key, value in ordered:
        header[key] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [end, end + value.nbytes]}
        end += value.nbytes
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as e:
        raise InvalidArgument("a name or metadata is no valid Unicode", evidence=_short(str(e))) from e
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    part = f"{name}.{os.getpid()}.{threading.get_ident()}.part"
    with _file_errors(name, "written"):
        try:
            with open(part, "wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for _, value in ordered:
                    file.write(value._raw().data)
            os.replace(part, name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise


# ---------------------------------------------------------------------------------------------------------------------


def _path(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidArgument(f"{_short(path)} is no path", remedy="pass a str or a pathlib.Path")
    return name


@contextlib.contextmanager
def _file_errors(path: str, done: str) -> Iterator[None]:
    """OSErrors inside as devrt's, in the words of files."""
    try:
        yield
    except OSError as e:
        what, evidence = f"{path} can't be {done}", e.strerror or str(e)
        if isinstance(e, PermissionError):
            raise PermissionDenied(what, evidence=evidence, remedy="ask its owner, or `chmod u+rw` it") from e
        if isinstance(e, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
            raise InvalidArgument(what, evidence=evidence, remedy="check the path") from e
        raise devrt_error(e, what, remedy="check the disk and the file system it is on") from e


def _short(value: object) -> str:
    """`value` for an error: a damaged file may hold anything of any length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _listed(names: list[str]) -> str:
    """The first names, and how many more."""
    shown = ", ".join(_short(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "none"


__all__ = ["DTYPES", "File", "Info", "load", "load_checkpoint", "open_file", "save"]
