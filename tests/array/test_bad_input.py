"""Bad input gives one clear devrt error (or a right result), and leaves nothing behind: no memory, no file, no map."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import devrt
from devrt import registry
from devrt.compiler import cache
from devrt.compiler import dtypes as dt
from devrt.device import DeviceNotFound, DevrtError, InvalidArgument, OutOfMemory, Unsupported
from devrt.scheduler import plan
from tests.array.reference import array, numbers
from tests.garbage import collect

X = devrt.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))
I = devrt.asarray(np.arange(12).reshape(3, 4))
B = X > 3


def state() -> tuple[int, int, int]:
    """Open files, live bytes on the device, and memory maps of files."""
    collect()
    live: int = registry.open("cpu").allocator.usage().live  # type: ignore[attr-defined]
    maps = sum("/" in line for line in Path("/proc/self/maps").read_text().splitlines())
    return len(os.listdir("/proc/self/fd")), live, maps


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    devrt.realize(X, I, B)
    before = state()
    yield
    after = state()
    assert after[0] <= before[0] and after[1] <= before[1], f"files and bytes before {before}, after {after}"


REFUSED: dict[str, Callable[[], Any]] = {
    "broadcast": lambda: X + devrt.ones((3, 5)),
    "broadcast to": lambda: devrt.broadcast_to(X, (4, 3)),
    "broadcast to fewer axes": lambda: devrt.broadcast_to(X, (4,)),
    "reshape": lambda: X.reshape(5, 5),
    "reshape -1": lambda: X.reshape(-1, 5),
    "reshape -1 twice": lambda: X.reshape(-1, -1),
    "reshape to a negative": lambda: X.reshape(-3, -4),
    "reshape of nothing to -1": lambda: X[:0].reshape(-1, 0),
    "permutation": lambda: devrt.permute_dims(X, (0, 0)),
    "permutation of three": lambda: devrt.permute_dims(X, (0, 1, 2)),
    "axis": lambda: X.sum(axis=2),
    "axis twice": lambda: X.sum(axis=(0, -2)),
    "axis of text": lambda: X.sum(axis="rows"),  # type: ignore[arg-type]
    "squeeze": lambda: devrt.squeeze(X, 0),
    "concat of nothing": lambda: devrt.concat([]),
    "concat of shapes": lambda: devrt.concat([X, devrt.ones((3, 5))]),
    "stack of shapes": lambda: devrt.stack([X, devrt.ones((3, 5))]),
    "pad": lambda: devrt.pad(X, [(1, 1)]),
    "negative pad": lambda: devrt.pad(X, [(-1, 0), (0, 0)]),
    "T of three axes": lambda: X[None].T,
    "mT of one axis": lambda: X[0].mT,
    "matmul": lambda: X @ X,
    "matmul of a scalar": lambda: X @ devrt.asarray(2.0),
    "maximum of nothing": lambda: devrt.max(X[:0], axis=0),
    "argmax of nothing": lambda: devrt.argmax(X[:, :0], axis=1),
    "cumulative sum of two axes": lambda: devrt.cumulative_sum(X),
    "bits of floats": lambda: X & 1,
    "shift of floats": lambda: X << 1,
    "shift of bools": lambda: B << B,
    "bitcast of another width": lambda: devrt.bitcast(X, dt.float64),
    "negative bool": lambda: -B,
    "fma of integers": lambda: devrt.fma(I, I, I),
    "a constant that does not fit": lambda: devrt.full(3, 300, dtype=dt.int8),
    "a scalar that does not fit": lambda: I.astype(dt.uint8) + 256,
    "a negative scalar to unsigned": lambda: I.astype(dt.uint8) + -1,
    "negative shape": lambda: devrt.zeros((2, -1)),
    "fractional shape": lambda: devrt.zeros((2.5,)),  # type: ignore[arg-type]
    "huge shape": lambda: devrt.zeros((1 << 30, 1 << 30)),
    "step 0": lambda: devrt.arange(0, 5, 0),
    "linspace of -1": lambda: devrt.linspace(0, 1, -1),
    "item of twelve": lambda: X.item(),
    "truth of twelve": lambda: bool(X),
    "index outside": lambda: X[3],
    "too many indexes": lambda: X[0, 0, 0],
    "bool index": lambda: X[B],
    "two index arrays": lambda: X[devrt.asarray([0]), devrt.asarray([1])],
    "index by floats": lambda: X[devrt.asarray([0.5])],
    "object array": lambda: devrt.asarray(np.array([1, "a", None], dtype=object)),
    "text": lambda: devrt.asarray("text"),
    "array of text": lambda: devrt.asarray(np.array(["a", "b"])),
    "complex": lambda: devrt.asarray(np.zeros(3, np.complex64)),
    "dates": lambda: devrt.asarray(np.zeros(3, "datetime64[s]")),
    "records": lambda: devrt.asarray(np.zeros(3, [("a", "f4")])),
    "long double": lambda: devrt.asarray(np.zeros(3, np.longdouble)),
    "ragged list": lambda: devrt.asarray([[1, 2], [3]]),
    "None": lambda: devrt.asarray(None),
    "dictionary": lambda: devrt.asarray({"a": 1}),
    "integer too large": lambda: devrt.asarray(1 << 70),
    "list of integers too large": lambda: devrt.asarray([1 << 70]),
    "strided without copy": lambda: devrt.asarray(np.zeros((4, 4))[:, ::2], copy=False),
    "byte-swapped without copy": lambda: devrt.asarray(np.zeros(4, ">f8"), copy=False),
    "no DLPack": lambda: devrt.from_dlpack([1, 2]),
    "device that is none": lambda: X.to_device("gpu"),
    "device that is not here": lambda: X.to_device("amd:0"),
    "device of asarray": lambda: devrt.asarray([1.0], device="tpu:0"),
    "virtual device that is none": lambda: devrt.open("virtual:amd/nothing-of-this-name"),
    "cpu:1": lambda: devrt.open("cpu:1"),
    "URI that is no text": lambda: devrt.open(3),  # type: ignore[arg-type]
    "random bits without end": lambda: devrt.random_bits(1 << 33, seed=0),
    "attention of two axes": lambda: devrt.nn.attention(X, X, X),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises((InvalidArgument, Unsupported, DeviceNotFound)) as caught:
        REFUSED[name]()
    assert len(caught.value.what) > 8 and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("other", [None, "text", object(), [1], {}], ids=lambda x: type(x).__name__)
def test_operands_that_are_none(other: Any) -> None:
    """Python's own TypeError, as for any two types that do not meet."""
    for operation in (lambda: X + other, lambda: other * X, lambda: X @ other, lambda: other > X):
        with pytest.raises((TypeError, DevrtError)):
            operation()


def test_right_results_of_odd_arrays() -> None:
    a = np.arange(24, dtype=np.float32).reshape(4, 6)
    frozen = a.copy()
    frozen.flags.writeable = False
    class Mine(np.ndarray):  # type: ignore[type-arg]
        pass
    for odd in (a[:, ::-2], a.T, a.astype(">f4"), frozen, np.asfortranarray(a), np.broadcast_to(a[0], (3, 6)), a[:0],
                a.view(Mine), np.ma.masked_array(a)):
        np.testing.assert_array_equal((devrt.asarray(odd) * 2).numpy(), np.asarray(odd, np.float32) * 2)
    with pytest.raises(ValueError):
        devrt.asarray(a).numpy()[0, 0] = 1


# ----- memory


@pytest.mark.parametrize("build", [
    lambda: devrt.zeros((1 << 20, 1 << 20)), lambda: devrt.ones((1 << 20, 1 << 20)) * 2.0,
    lambda: devrt.arange(1 << 43),
    lambda: (devrt.ones((1 << 20, 1)) @ devrt.ones((1, 1 << 20))),
    lambda: devrt.broadcast_to(X[0, 0], (1 << 42,)) + 1.0,
    lambda: devrt.sum(devrt.exp(devrt.broadcast_to(X[0], (1 << 38, 4)) @ X.T), axis=1)])
def test_out_of_memory(build: Callable[[], devrt.Array]) -> None:
    """Lazily such an array costs nothing; asking for it fails at once, again and again, and the device goes on."""
    a = build()
    for _ in range(2):
        with pytest.raises(OutOfMemory) as caught:
            a.realize()
        assert caught.value.evidence and caught.value.remedy
    np.testing.assert_array_equal((X + 1).numpy(), np.arange(12).reshape(3, 4) + 1)


def test_a_part_of_what_does_not_fit_can_be_had() -> None:
    big = devrt.arange(1 << 44)
    assert big[(1 << 43) + 5:(1 << 43) + 8].tolist() == [(1 << 43) + n for n in (5, 6, 7)]
    assert devrt.zeros((1 << 20, 1 << 20))[7, :3].tolist() == [0, 0, 0]


# ----- the compile cache on a bad disk


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no kernel known from memory."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DEVRT_CACHE", str(folder))
    monkeypatch.setattr(plan, "_compiled", {})
    monkeypatch.setattr(plan, "_schedules", type(plan._schedules)())
    return folder


def compute(scale: float) -> None:
    want = np.arange(12, dtype=np.float32).reshape(3, 4) * np.float32(scale) + 1
    np.testing.assert_array_equal((X * scale + 1).numpy(), want)


def forget() -> None:
    plan._compiled.clear()
    plan._schedules.clear()


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_entries_are_whole_and_reused(own_cache: Path) -> None:
    compute(3.5)
    (entry,) = files(own_cache)
    assert cache.load(entry.name) is not None and not entry.name.startswith(".")
    when = entry.stat().st_mtime_ns
    forget()
    compute(3.5)
    assert files(own_cache) == [entry] and entry.stat().st_mtime_ns == when


@pytest.mark.parametrize("damage", [
    lambda b: b"", lambda b: b[:3], lambda b: b[:20], lambda b: b[:-1],
    lambda b: b[:100] + bytes([b[100] ^ 1]) + b[101:], lambda b: b[:-1] + bytes([b[-1] ^ 1]),
    lambda b: b + b"x", lambda b: bytes(len(b)), lambda b: b"devrt1\n" + bytes(40), lambda b: os.urandom(5000)])
def test_damaged_entries_count_as_absent(own_cache: Path, damage: Callable[[bytes], bytes]) -> None:
    compute(4.5)
    (entry,) = files(own_cache)
    good = entry.read_bytes()
    entry.write_bytes(damage(good))
    assert cache.load(entry.name) is None
    forget()
    compute(4.5)
    assert cache.load(entry.name) is not None and files(own_cache) == [entry]


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["mkstemp", "write", "replace", "mkdir"])
def test_full_disk(own_cache: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Wherever the disk turns out to be full: the result is right and no part of a file stays."""
    import io
    import tempfile
    if where == "mkstemp":
        monkeypatch.setattr(tempfile, "mkstemp", no_space)
    elif where == "write":
        class Full(io.FileIO):
            write = no_space  # type: ignore[assignment]
        monkeypatch.setattr(cache.os, "fdopen", lambda fd, mode: Full(fd, mode))  # type: ignore[attr-defined]
    elif where == "replace":
        monkeypatch.setattr(cache.os, "replace", no_space)  # type: ignore[attr-defined]
    else:
        monkeypatch.setattr(Path, "mkdir", no_space)
    compute(5.5)
    assert cache.store("ab" * 20, {}, b"payload") is False
    assert files(own_cache) == []


def test_full_disk_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system of 16 KiB, where the tests may mount one."""
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", tmp_path],
                                           capture_output=True, check=False).returncode:
        pytest.skip("never: mounting needs root")
    try:
        monkeypatch.setenv("DEVRT_CACHE", str(tmp_path))
        kept = sum(cache.store(f"{n:02x}" * 20, {}, os.urandom(3000)) for n in range(20))
        assert 0 < kept < 20
        whole = [cache.load(p.name) is not None for p in files(tmp_path)]
        assert len(whole) == kept and all(whole)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("kind", ["file", "read-only", "missing", "dangling link", "empty name"])
def test_folder_that_cannot_be_written(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       kind: str) -> None:
    if kind == "file":
        own_cache.write_text("not a folder")
    elif kind == "read-only":
        own_cache.mkdir(mode=0o500)
        if os.geteuid() == 0:  # root may write anywhere but in /proc
            monkeypatch.setenv("DEVRT_CACHE", "/proc/self/devrt")
    elif kind == "missing":
        monkeypatch.setenv("DEVRT_CACHE", "/dev/null/devrt")
    elif kind == "dangling link":
        own_cache.symlink_to(tmp_path / "nowhere" / "deep")
    else:
        monkeypatch.setenv("DEVRT_CACHE", "")
        monkeypatch.chdir(tmp_path)
    compute(6.5)


CHILD = """
import numpy as np, devrt
a = devrt.asarray(np.arange(100, dtype=np.float32))
for n in range(6):
    assert ((a * float(n + 2) + 1).numpy() == np.arange(100) * (n + 2) + 1).all()
    assert devrt.sum(a * float(n)).item() == 4950 * n
print(open('/proc/self/stat').read().split()[0])
"""


def test_processes_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four at once on an empty folder: all are right, and what they leave is whole."""
    monkeypatch.setenv("DEVRT_CACHE", str(tmp_path))
    running = [subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for _ in range(4)]
    for child in running:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors.decode()
    left = [p for p in files(tmp_path) if p.parent != tmp_path]  # the device keeps its own code at the top
    assert left and all(cache.load(p.name) is not None for p in left)
    assert not [p for p in files(tmp_path) if p.name.startswith(".new-")]


def test_array_of_every_type_survives_refusals() -> None:
    """A refused operation changes nothing for the operands."""
    for d in dt.ALL:
        x = array(numbers(d, (2, 3)), d)
        before = x.numpy().tobytes()
        with pytest.raises(DevrtError):
            x.reshape(7)
        assert x.numpy().tobytes() == before
