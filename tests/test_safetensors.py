"""Safetensors files beside the format's own package: round trips, damaged files, the mapping and its end, shards."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import devrt
from devrt import registry, safetensors
from devrt.compiler import dtypes as dt
from devrt.device import DevrtError, InvalidArgument, PermissionDenied, Unsupported
from devrt.ioctl.system import LinuxSystem
from tests.array.reference import array, numbers, value
from tests.garbage import collect

DTYPES = tuple(safetensors.DTYPES.values())
Entry = dict[str, Any]


def build(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of any header; bytes go in as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> Entry:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def settle() -> None:
    """Let go of what finished work and dropped arrays still hold."""
    device: Any = registry.open("cpu")
    device.compute.wait(device.compute.submitted)
    collect()
    device.allocator.usage()


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@settings(max_examples=150)
@given(drawn=st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=6),
       metadata=st.dictionaries(NAMES, NAMES, max_size=3))
def test_what_is_saved_is_what_the_package_reads(tmp_path: Path, drawn: dict[str, Any], metadata: dict[str, str]) -> None:
    witness = pytest.importorskip("safetensors", reason="the safetensors package is the witness")
    values = {name: numbers(d, shape, seed) for seed, (name, (d, shape)) in enumerate(drawn.items())}
    path = tmp_path / "a.safetensors"
    safetensors.save(path, {name: array(v) for name, v in values.items()}, metadata)
    theirs = dict(witness.deserialize(path.read_bytes()))
    assert theirs.keys() == values.keys()
    file = safetensors.open_file(path)
    assert file.metadata == metadata and set(file.names) == values.keys()
    for name, (d, shape) in drawn.items():
        assert safetensors.DTYPES[theirs[name]["dtype"]] is d and tuple(theirs[name]["shape"]) == shape
        assert bytes(theirs[name]["data"]) == values[name].tobytes()
        ours = file[name]
        assert (ours.dtype, ours.shape) == (d, shape) == (file.info(name).dtype, file.info(name).shape)
        np.testing.assert_array_equal(value(ours), values[name])
        assert file.info(name).offset % (d.bits // 8) == 0, "saved tensors are aligned to their elements"


@settings(max_examples=50)
@given(drawn=st.dictionaries(NAMES, st.tuples(st.sampled_from([d for d in DTYPES if not d.storage and d is not dt.bfloat16]),
                                              SHAPES), max_size=6), metadata=st.dictionaries(NAMES, NAMES, max_size=3))
def test_what_the_package_saves_is_what_is_read(tmp_path: Path, drawn: dict[str, Any], metadata: dict[str, str]) -> None:
    witness = pytest.importorskip("safetensors.numpy", reason="the safetensors package is the witness")
    values = {name: numbers(d, shape, seed) for seed, (name, (d, shape)) in enumerate(drawn.items())}
    path = tmp_path / "a.safetensors"
    witness.save_file(values, path, metadata or None)
    loaded = safetensors.load(path)
    assert loaded.keys() == values.keys() and safetensors.open_file(path).metadata == metadata
    for name, (d, _) in drawn.items():
        assert loaded[name].dtype is d
        np.testing.assert_array_equal(value(loaded[name]), values[name])


def test_torch_files_with_its_narrow_types(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch writes the file")
    witness = pytest.importorskip("safetensors.torch", reason="the safetensors package is the witness")
    given_ = {"a": torch.randn(3, 5).bfloat16(), "b": torch.randn(7).to(torch.float8_e4m3fn),
              "c": torch.randn(7).to(torch.float8_e5m2), "d": torch.randn(2, 2).half(), "e": torch.tensor(3.0)}
    path = tmp_path / "a.safetensors"
    witness.save_file(given_, path)
    for name, ours in safetensors.load(path).items():
        np.testing.assert_array_equal(value(ours).astype(np.float32), given_[name].float().numpy())
    safetensors.save(path, given_)
    for name, theirs in witness.load_file(path).items():
        assert theirs.dtype is given_[name].dtype and torch.equal(theirs.float(), given_[name].float())


def test_saving_over_a_file_that_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.save(path, {"x": np.arange(5000.0)})
    old = safetensors.load(path)
    safetensors.save(path, {"x": old["x"] + 1})
    np.testing.assert_array_equal(old["x"].numpy(), np.arange(5000.0))
    np.testing.assert_array_equal(safetensors.load(path)["x"].numpy(), np.arange(5000.0) + 1)
    assert os.listdir(tmp_path) == ["a.safetensors"]
    (tmp_path / "b").touch()
    assert path.stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(("arrays", "metadata", "error"), [
    ({"x": devrt.asarray([1]).astype(devrt.int4)}, None, Unsupported), ({3: [1.0]}, None, InvalidArgument),
    ({"__metadata__": [1.0]}, None, InvalidArgument), ({"\ud800": [1.0]}, None, InvalidArgument),
    ({"x": [1.0]}, {"a": 1}, InvalidArgument), ({"x": [1.0]}, {"a": "\udfff"}, InvalidArgument),
    ({"x": object()}, None, InvalidArgument)])
def test_what_cannot_be_saved(tmp_path: Path, arrays: Any, metadata: Any, error: type[DevrtError]) -> None:
    with pytest.raises(error):
        safetensors.save(tmp_path / "a.safetensors", arrays, metadata)
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_saved(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "folder", tmp_path, "/proc/none/x"):
        with pytest.raises(DevrtError, match="can't be written"):
            safetensors.save(path, {"x": [1.0]})
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------------
# Mapping


def test_an_array_is_the_pages_of_its_file(tmp_path: Path) -> None:
    """From /proc/self/maps: the address of the array lies in the mapping of the file, at the tensor's offset."""
    path = tmp_path / "a.safetensors"
    x = np.arange(4096, dtype=np.float32)
    safetensors.save(path, {"first": np.zeros(16), "x": x})
    file = safetensors.open_file(path)
    [row] = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    start, permissions = int(row.split("-")[0], 16), row.split()[1]
    assert permissions.startswith("r-")
    buffer = file["x"].storage.buffer
    assert buffer.address == start + file.info("x").offset and buffer.borrowed and buffer.host().readonly
    assert not file["x"].numpy().flags.writeable
    assert not devrt.zeros(3).realize().storage.buffer.borrowed


def test_a_donated_array_of_a_file_is_not_written(tmp_path: Path) -> None:
    """Its pages are read-only, so the step makes a copy to update."""
    path = tmp_path / "a.safetensors"
    safetensors.save(path, {"x": np.zeros((4, 8), np.float32)})
    step = devrt.capture(lambda cache, new: devrt.update_rows(cache, new, 2), donate=("cache",))
    made = step(safetensors.load(path)["x"], devrt.ones((1, 8)))
    assert made.numpy().sum(axis=1).tolist() == [0, 0, 8, 0] and not made.storage.buffer.borrowed
    assert safetensors.load(path)["x"].numpy().sum() == 0


@pytest.mark.parametrize("last", ["array", "numpy", "dlpack", "lazy"])
def test_the_mapping_ends_with_the_last_array(tmp_path: Path, last: str) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.save(path, {"x": np.arange(64, dtype=np.float32), "y": np.ones(3, np.float32)})
    keep: dict[str, Callable[[devrt.Array], Any]] = {
        "array": lambda x: x, "numpy": lambda x: x.numpy(), "dlpack": np.from_dlpack, "lazy": lambda x: x + 0}
    held = keep[last](safetensors.load(path)["x"])
    settle()
    assert mapped(path)
    got = held.numpy() if isinstance(held, devrt.Array) else held
    np.testing.assert_array_equal(got, np.arange(64))
    del held, got
    settle()
    assert not mapped(path)


def test_queued_work_keeps_the_mapping(tmp_path: Path) -> None:
    """A captured step forgets an argument as soon as the next one takes its place, while the kernel may still read it."""
    path = tmp_path / "a.safetensors"
    x = np.random.default_rng(0).standard_normal((256, 1024), dtype=np.float32)
    step = devrt.capture(lambda a: (a @ a.mT).sum(axis=1))
    want = step(devrt.asarray(x)).numpy()
    results = []
    for n in range(8):
        safetensors.save(path, {"x": x * 2**n})
        results.append(step(safetensors.load(path)["x"]))
    for n, got in enumerate(results):
        np.testing.assert_array_equal(got.numpy(), want * 4**n)
    del step, results, got
    settle()
    assert not mapped(path)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    """Opening a file of a terabyte takes no time, and neither do type and shape."""
    path = tmp_path / "a.safetensors"
    size = 1 << 40
    with open(path, "wb") as file:
        file.write(build({"x": entry("U8", [size], 0, size)}))
        file.truncate(file.tell() + size)
    opened = safetensors.open_file(path)
    assert opened.info("x").shape == (size,) == opened["x"].shape
    assert opened["x"][:3].numpy().tolist() == [0, 0, 0]


def test_a_tensor_off_its_elements_alignment_is_copied(tmp_path: Path) -> None:
    x, path = np.arange(5, dtype=np.float64), tmp_path / "a.safetensors"
    for pad in range(8):
        path.write_bytes(build(b'{"x":{"dtype":"F64","shape":[5],"data_offsets":[0,40]}}' + b" " * (64 - 55 + pad), x.tobytes()))
        read = safetensors.load(path)["x"]
        np.testing.assert_array_equal(read.numpy(), x)
        assert read.storage.buffer.borrowed == (pad == 0)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


F8 = bytes(8)
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "shorter than the 8 bytes"),
    "seven bytes": (bytes(7), "shorter than the 8 bytes"),
    "header beyond the file": (build({}, length=100), "ends inside its header .108 bytes expected, the file has 10"),
    "header too long": (build({}, length=100_000_001), "longer than 100000000 bytes"),
    "header absurdly long": (b"\xff" * 16, "longer than"),
    "empty header": (build(b""), "no valid JSON"),
    "no UTF-8": (build(b'{"\xff": 1}'), "no valid JSON"),
    "no JSON": (build(b"{'x': 1}"), "no valid JSON"),
    "half a surrogate": (build(b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', F8), "no valid JSON"),
    "nested deep": (build(b"[" * 200_000), "no valid JSON"),
    "a number of many digits": (build(b'{"x": ' + b"9" * 5000 + b"}"), "no valid JSON"),
    "a list": (build([]), "no JSON object"),
    "a key twice": (build(b'{"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "x": {}}'), "'x' is there twice"),
    "a field twice": (build(b'{"x": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' is there twice"),
    "metadata of numbers": (build({"__metadata__": {"a": 1}}), "no JSON object of texts"),
    "metadata a list": (build({"__metadata__": []}), "no JSON object of texts"),
    "entry no object": (build({"x": 3}), "'x' is not described .* .a int"),
    "a field missing": (build({"x": {"dtype": "F32", "shape": [2]}}), "'x' is not described .*'dtype', 'shape'"),
    "a field too many": (build({"x": entry() | {"strides": [4]}}, F8), "'x' is not described .*'strides'"),
    "dtype a number": (build({"x": entry(32)}, F8), "'x' has no dtype"),  # type: ignore[arg-type]
    "shape a number": (build({"x": entry(shape=2)}, F8), "'x': a shape is a list"),
    "shape negative": (build({"x": entry(shape=[-2])}, F8), r"a shape is a list .*\[-2\]"),
    "shape of fractions": (build({"x": entry(shape=[2.0])}, F8), r"a shape is a list .*\[2.0\]"),
    "shape of truth": (build({"x": entry(shape=[True, 2])}, F8), "a shape is a list"),
    "shape of texts": (build({"x": entry(shape=["2"])}, F8), "a shape is a list"),
    "shape beyond 2^63": (build({"x": entry(shape=[1 << 63, 0], end=0)}), "a shape is a list"),
    "shape whose product overflows": (build({"x": entry(shape=[1 << 62, 1 << 62])}, F8), "takes .* bytes"),
    "one offset": (build({"x": entry() | {"data_offsets": [0]}}, F8), "two integers"),
    "offset negative": (build({"x": entry(begin=-8, end=0)}, F8), "two integers"),
    "offsets swapped": (build({"x": entry(begin=8, end=0)}, F8), "two integers"),
    "offset a fraction": (build({"x": entry(end=8.0)}, F8), "two integers"),
    "offset null": (build({"x": entry(end=None)}, F8), "two integers"),
    "too few bytes for the shape": (build({"x": entry(end=4)}, F8), r"F32 \[2\] takes 8 bytes, its data_offsets span 4"),
    "too many bytes for the shape": (build({"x": entry(end=12)}, bytes(12)), "takes 8 bytes, its data_offsets span 12"),
    "data cut short": (build({"x": entry()}, bytes(7)), "ends inside tensor 'x' .* bytes expected"),
    "no data": (build({"x": entry()}), "ends inside tensor 'x'"),
    "bytes behind the data": (build({"x": entry()}, bytes(9)), "bytes behind its last tensor"),
    "only bytes": (build({}, b"1"), "bytes behind its last tensor"),
    "overlap": (build({"x": entry(), "y": entry(begin=4, end=12)}, bytes(12)), "'y' overlaps 'x' .it begins at byte 4 "),
    "the same place twice": (build({"x": entry(), "y": entry()}, F8), "'y' overlaps 'x'"),
    "hole": (build({"x": entry(), "y": entry(begin=12, end=20)}, bytes(20)), "'y' begins behind a hole"),
    "hole at the start": (build({"x": entry(begin=8, end=16)}, bytes(16)), "'x' begins behind a hole"),
    "empty tensor outside": (build({"x": entry(), "y": entry(shape=[0], begin=16, end=16)}, F8), "'y' begins behind a hole"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(tmp_path: Path, case: str) -> None:
    content, message = DAMAGED[case]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=message) as caught:
        safetensors.open_file(path)
    assert str(path) in caught.value.what and "again" in caught.value.remedy and len(str(caught.value)) < 1000
    settle()
    del caught
    assert not mapped(path)


@pytest.mark.parametrize(("kind", "bits"), [("F4", 4), ("F8_E8M0", 8), ("C64", 64), ("f32", 32), ("", 8), ("x" * 10_000, 8)])
def test_types_devrt_has_not(tmp_path: Path, kind: str, bits: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(build({"the one": entry(kind, [2], 0, 2 * bits // 8)}, bytes(2 * bits // 8)))
    with pytest.raises(Unsupported, match="'the one' has dtype") as caught:
        safetensors.open_file(path)
    assert len(str(caught.value)) < 500


def test_more_axes_than_devrt_has(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(build({"x": entry("U8", [1] * 33, 0, 1)}, b"0"))
    with pytest.raises(Unsupported, match="33 axes"):
        safetensors.open_file(path)


def test_bool_is_0_or_1(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(build({"ok": entry("BOOL", [2], 0, 2), "bad": entry("BOOL", [3], 2, 5)}, b"\0\1\1\0\2"))
    file = safetensors.open_file(path)
    assert file["ok"].numpy().tolist() == [False, True]
    for read in (lambda: file["bad"], lambda: safetensors.load(path)):
        with pytest.raises(InvalidArgument, match=r"'bad' has bytes other than 0 and 1 .2 at element 2"):
            read()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path, message in ((tmp_path / "none", "can't be read .No such file"), (tmp_path, "is no file .a folder"),
                          (tmp_path / "pipe", "is no file"), ("/dev/null", "is no file"), ("", "is no path"),
                          (None, "is no path"), (b"x", "is no path"), ("a\0b", "is no path"),
                          (tmp_path / "file" / "x", "can't be read")):
        with pytest.raises(InvalidArgument, match=message):
            safetensors.open_file(path)  # type: ignore[arg-type]


def test_permission_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: LinuxSystem, path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(LinuxSystem, "open", refuse)
    with pytest.raises(PermissionDenied, match=r"can't be read .Permission denied. -> .*chmod"):
        safetensors.open_file(tmp_path / "x")


def test_unknown_names_are_said(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.save(path, {f"t{n}": [1.0] for n in range(9)})
    file = safetensors.open_file(path)
    with pytest.raises(InvalidArgument, match=r"no tensor 'x' .it has 't0', .* and 4 more"):
        file["x"]
    assert "t3" in file and "x" not in file and len(file) == 9 and list(file) == list(file.names) and "9 tensors" in repr(file)


def test_random_damage_gives_nothing_but_devrt_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    good = {"a": numbers(dt.float32, (3, 5)), "b": numbers(dt.bool_, (9,)), "c": numbers(dt.bfloat16, (2, 1, 4)),
            "d": numbers(dt.int64, ())}
    safetensors.save(path, {name: array(v) for name, v in good.items()}, {"format": "pt"})
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(2000):
        damaged = bytearray(whole)
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)):]
        for _ in range(rng.randrange(1, 4)):
            if damaged:
                where = rng.randrange(min(len(damaged), rng.choice((8, 300, len(whole)))))
                damaged[where] = rng.choice((damaged[where] ^ 1 << rng.randrange(8), rng.randrange(256), *b'0123456789"{}[],:-.'))
        path.write_bytes(damaged)
        try:
            for x in safetensors.load(path).values():
                x.numpy()
        except DevrtError:
            refused += 1
    assert 500 < refused < 2000


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints of several files


def sharded(folder: Path) -> None:
    safetensors.save(folder / "one.safetensors", {"a": [1.0], "b": [2.0]})
    safetensors.save(folder / "two.safetensors", {"c": [3.0]})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 12}, "weight_map": {
        "c": "two.safetensors", "a": "one.safetensors", "b": "one.safetensors"}}))


def test_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    loaded = safetensors.load_checkpoint(tmp_path)
    assert {name: x.item() for name, x in loaded.items()} == {"c": 3.0, "a": 1.0, "b": 2.0} and list(loaded) == ["c", "a", "b"]
    safetensors.save(tmp_path / "model.safetensors", {"whole": [4.0]})
    assert list(safetensors.load_checkpoint(str(tmp_path))) == ["whole"]


@pytest.mark.parametrize(("index", "message"), [
    (b"", "no valid JSON"), (b"[]", "no weight_map"), (b"{}", "no weight_map"), (b'{"weight_map": {"a": 1}}', "no weight_map"),
    (b'{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', "'a' is there twice"),
    *((json.dumps({"weight_map": {"a": name}}).encode(), "outside its folder")
      for name in ("../one.safetensors", "/etc/passwd", "..", ".", "", "sub/one.safetensors", "sub\\one", "a\0")),
    (b'{"weight_map": {"a": "three.safetensors"}}', "three.safetensors can't be read"),
    (b'{"weight_map": {"d": "one.safetensors"}}', "'d' in one.safetensors, which has no such tensor .it has 'a', 'b'"),
    (b'{"weight_map": {"a": "one.safetensors"}}', "tensors that the index does not place there .'b'")])
def test_an_index_that_does_not_fit(tmp_path: Path, index: bytes, message: str) -> None:
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(InvalidArgument, match=message):
        safetensors.load_checkpoint(tmp_path)


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InvalidArgument, match="is no checkpoint"):
            safetensors.load_checkpoint(folder)
