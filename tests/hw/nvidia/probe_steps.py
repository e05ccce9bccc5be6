"""What the probe runs, from the driver's version up to kernels that depend on each other. A step returns what it saw, and raises
where something is wrong.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from devrt.compiler.dtypes import float32
from devrt.compiler.lir import Builder
from devrt.compiler.sass import backend, reader, target
from devrt.device import URI, Placement, parse_uri
from devrt.ioctl.nv_alloc import EngineType
from devrt.ioctl.nv_controls import FbInfo, GrInfo
from devrt.ioctl.nv_versions import VERSION_FILE
from devrt.ioctl.system import LinuxSystem, System, view
from devrt.nvidia import driver as drivers
from devrt.nvidia import generation
from devrt.nvidia.channel import Channel
from devrt.nvidia.device import NvidiaDevice
from devrt.nvidia.engines import ComputeEngine, CopyEngine
from devrt.nvidia.memory import Kind, Region
from devrt.nvidia.objects import Objects
from devrt.virtual import open_system

GROUPS, LANES = 1056, 32
N = GROUPS * LANES
TIMEOUT_S = 8.0
Facts = dict[str, Any]


class Wrong(Exception):
    """It ran, and the answer is not right."""


def system_of(uri: URI) -> System:
    return open_system(uri) if uri.virtual else LinuxSystem()


@contextmanager
def connected(uri: URI) -> Iterator[tuple[drivers.Driver, Objects]]:
    """The driver and the objects of one GPU, without channels."""
    driver = drivers.connect(system_of(uri))
    try:
        objects = Objects(driver, driver.card(uri.index), str(uri))
        try:
            yield driver, objects
        finally:
            objects.close()
    finally:
        driver.leave()


@contextmanager
def opened(uri: URI) -> Iterator[NvidiaDevice]:
    device = NvidiaDevice.open(uri, system_of(uri))
    try:
        yield device
    finally:
        device.close()


# ---------------------------------------------------------------------------------------------------------------------
# The driver


def nodes(uri: URI) -> Facts:
    system = system_of(uri)
    found: Facts = {"version": drivers.version(system), "kernel": " ".join(os.uname()[i] for i in (0, 2, 3))}
    for path in ("/proc/driver/nvidia", "/dev"):
        names = sorted(system.list_dir(path)) if system.access(path, os.R_OK) else []
        found[path] = [name for name in names if path != "/dev" or "nvidia" in name]
    try:
        found[VERSION_FILE] = system.read_text(VERSION_FILE).partition("\n")[0]
    except OSError as error:
        found[VERSION_FILE] = str(error)
    return found


def objects(uri: URI) -> Facts:
    with connected(uri) as (driver, made):
        names = list(GrInfo)
        engines = driver.rm.control("engines", made.subdevice, "NV2080_CTRL_CMD_GPU_GET_ENGINES_V2")
        return {"cards": [card._asdict() for card in driver.cards], "model": made.model, "uuid": made.uuid.hex(),
                "classes": [f"{one:04x}" for one in made._class_list()], "chosen": repr(made.classes),
                "graphics": {index.name: value for index, value in zip(names, made.graphics_info(*names), strict=True)},
                "memory": {index.name: made.memory_info(index)[0] for index in FbInfo}, "tpcs": made.tpcs(),
                "engines": [int(engines.engineList[n]) for n in range(engines.engineCount)],
                "copy engines": made.copy_engines}


def memory(uri: URI) -> Facts:
    """Every kind in several sizes, written and read where the host sees it."""
    seen = []
    with connected(uri) as (_, made):
        for kind in Kind:
            for nbytes in (4096, 1 << 16, 300 << 10, 2 << 20, 64 << 20):
                if kind is Kind.PINNED or kind in (Kind.RING, Kind.NOTIFIER) and nbytes > 2 << 20:
                    continue
                region = Region(made, nbytes, kind, alignment=min(nbytes, 2 << 20) if nbytes & nbytes - 1 == 0 else 4096)
                seen.append(f"{kind.name} {nbytes:#x} at {region.address:#x}")
                if kind is not Kind.VRAM:
                    data = np.frombuffer(view(region.address, 4096), np.uint32)
                    pattern = np.arange(1024, dtype=np.uint32) * 0x9E3779B1
                    data[:] = pattern
                    if not np.array_equal(data, pattern):
                        raise Wrong(f"{seen[-1]}: what is read is not what was written")
                    del data
                region.release()
    return {"regions": seen}


def host(uri: URI, graphics: bool = False) -> Facts:
    """One channel and nothing but its host: a semaphore released, with the clock."""
    with connected(uri) as (driver, made):
        sm = generation.of_version(made.graphics_info(GrInfo.SM_VERSION)[0], made.model)
        device: Any = SimpleNamespace(objects=made, driver=driver, system=driver.system, sm=sm)
        found = made.copy_engines
        kind = EngineType.GRAPHICS if graphics or not found else found[0]
        engine = ComputeEngine(sm) if graphics else CopyEngine(sm)
        setup = engine.setup(made.classes.compute, driver.shared_window, driver.local_window) \
            if isinstance(engine, ComputeEngine) else engine.setup(made.classes.copy)
        channel = Channel(device, engine, kind, "probe")
        home = Region(made, 4096, Kind.HOST)
        try:
            words = view(home.address, 4096)
            words[:32] = b"\xff" * 32
            parts = [setup.tobytes(), engine.stamp(home.address + 16), engine.fence(home.address, 42)]
            begun = time.monotonic()
            for part in parts:
                channel.write(channel.claim(1, len(part)), part)
            channel.kick()
            while bytes(words[:8]) != struct.pack("<Q", 42):
                if channel.failed or time.monotonic() - begun > TIMEOUT_S:
                    raise Wrong(f"no release: {channel.describe()}, notifier {channel.error}, failed {channel.failed}, "
                                f"token {channel.token:#x}, memory {bytes(words[:32]).hex()}")
            waited = time.monotonic() - begun
            payload, clock = struct.unpack("<QQ", bytes(words[16:32]))
            if payload:
                raise Wrong(f"the release with a clock wrote {payload:#x} instead of 0")
            before = int(made._time[0])
            time.sleep(0.01)
            after = int(made._time[0])
            if before == after:
                raise Wrong(f"the clock of the doorbell page stands still at {before:#x}")
            return {"engine": int(kind), "token": channel.token, "us": round(1e6 * waited), "clock": clock, "GPGet": channel.read,
                    "clock of the page": [before, after]}
        finally:
            channel.close()
            home.release()


# ---------------------------------------------------------------------------------------------------------------------
# Copies and kernels


def copies(uri: URI) -> Facts:
    rates = {}
    with opened(uri) as device:
        for nbytes in (3, 4096, (8 << 20) + 5):
            up, far, down = device.alloc(nbytes, Placement.HOST), device.alloc(nbytes), device.alloc(nbytes, Placement.HOST)
            data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8).tobytes()
            up.host()[:nbytes], down.host()[:nbytes] = data, bytes(nbytes)
            commands = device.command_list()
            commands.copy(far, up, nbytes)
            commands.copy(down, far, nbytes)
            begun = time.perf_counter()
            device.transfer.wait(device.transfer.submit(commands), TIMEOUT_S)
            rates[nbytes] = round(1e6 * (time.perf_counter() - begun))
            if bytes(down.host()[:nbytes]) != data:
                raise Wrong(f"{nbytes} bytes came back altered")
    return {"us": rates}


def stamps(uri: URI) -> Facts:
    """Time stamps count nanoseconds."""
    with opened(uri) as device:
        slots, host_ns = device.alloc(16, Placement.HOST), []
        for offset in (0, 8):
            commands = device.command_list()
            commands.timestamp(slots, offset)
            device.compute.wait(device.compute.submit(commands), TIMEOUT_S)
            host_ns.append(time.perf_counter_ns())
            time.sleep(0.05)
        first, second = struct.unpack("<2Q", bytes(slots.host()[:16]))
        ratio = (second - first) / (host_ns[1] - host_ns[0])
        if not 0.9 < ratio < 1.1:
            raise Wrong(f"the GPU's clock went {ratio:.3f} times as fast as nanoseconds")
        return {"gpu": second - first, "host": host_ns[1] - host_ns[0]}


def _kernel(isa: str, body: Callable[[Builder, Any, Any, Any], None], x_count: int = N) -> bytes:
    b = Builder("probe", lanes=LANES, groups=GROUPS)
    x, y, out = (b.param(name, float32, x_count, name == "out") for name in ("x", "y", "out"))
    body(b, x, y, out)
    image = backend.compile_program(b.finish(), target.target(isa))
    return alter(image, reader.read(image).kernels["probe"].code)


def alter(image: bytes, code: bytes) -> bytes:
    """A change of the code, where the probe tries one."""
    del code
    return image


def _at(b: Builder) -> Any:
    return b.add(b.mul(b.group(), b.idx(LANES)), b.lane())


def _sum(b: Builder, x: Any, y: Any, out: Any) -> None:
    at = _at(b)
    b.store(out, at, b.add(b.load(x, at), b.load(y, at)))


def _exchanged(b: Builder, x: Any, y: Any, out: Any) -> None:
    """Through shared memory: each lane has its neighbour's sum."""
    at, near = _at(b), b.shared("near", float32, 2048)
    b.store(near, b.lane(), b.add(b.load(x, at), b.load(y, at)))
    b.barrier()
    b.store(out, at, b.load(near, b.xor(b.lane(), b.idx(1))))


def _spilled(b: Builder, x: Any, y: Any, out: Any) -> None:
    """More values at once than there are registers."""
    at = _at(b)
    values = [b.load(x, b.add(b.mul(b.lane(), b.idx(n + 1)), b.idx(n))) for n in range(320)]
    total = b.load(y, at)
    for value in values:
        total = b.add(total, value)
    result = total
    for value in values[::-1]:
        result = b.add(b.mul(result, b.const(float32, 0.5)), value)
    b.store(out, at, result)


def _numbers(device: NvidiaDevice, seed: int) -> tuple[Any, np.ndarray[Any, np.dtype[np.float32]]]:
    """A buffer of the GPU's own, filled by the copy engine."""
    values = np.random.default_rng(seed).standard_normal(N).astype(np.float32)
    staged, far = device.alloc(4 * N, Placement.HOST), device.alloc(4 * N)
    staged.host()[:4 * N] = values.tobytes()
    commands = device.command_list()
    commands.copy(far, staged, 4 * N)
    device.transfer.wait(device.transfer.submit(commands), TIMEOUT_S)
    return far, values


def _read(device: NvidiaDevice, buffer: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    staged = device.alloc(4 * N, Placement.HOST)
    commands = device.command_list()
    commands.copy(staged, buffer, 4 * N)
    device.transfer.wait(device.transfer.submit(commands), TIMEOUT_S)
    return np.frombuffer(bytes(staged.host()[:4 * N]), np.float32)


def _same(what: str, got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    wrong = np.flatnonzero(got.view(np.uint32) != expected.view(np.uint32))
    if len(wrong):
        first = int(wrong[0])
        raise Wrong(f"{what}: {len(wrong)} of {len(got)} are wrong, the first at {first}: {got[first]}, not {expected[first]}")


def _one(uri: URI, body: Callable[[Builder, Any, Any, Any], None],
         expected: Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Facts:
    with opened(uri) as device:
        program = device.load(_kernel(device.properties.isa, body), "probe")
        (x, a), (y, b), (out, _) = (_numbers(device, n) for n in range(3))
        commands = device.command_list()
        commands.dispatch(program, [x, y, out], GROUPS)
        begun = time.perf_counter()
        device.compute.wait(device.compute.submit(commands), TIMEOUT_S)
        took = time.perf_counter() - begun
        _same("the kernel", _read(device, out), expected(a, b))
        return {"us": round(1e6 * took), "registers": program.kernel.registers, "local": program.kernel.local_bytes,
                "shared": program.kernel.shared_bytes, "descriptor": str(commands).splitlines()[-1]}


def launch(uri: URI) -> Facts:
    return _one(uri, _sum, lambda a, b: a + b)


def shared(uri: URI) -> Facts:
    return _one(uri, _exchanged, lambda a, b: (a + b).reshape(-1, 2)[:, ::-1].reshape(-1))


def local(uri: URI) -> Facts:
    def expected(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        lanes = np.arange(LANES)
        values = [np.tile(a[lanes * (n + 1) + n], GROUPS) for n in range(320)]
        total = b.copy()
        for value in values:
            total = total + value
        for value in values[::-1]:
            total = total * np.float32(0.5) + value
        return total
    facts = _one(uri, _spilled, expected)
    if not facts["local"]:
        raise Wrong("the kernel was to spill, and has no local memory")
    return facts


def chained(uri: URI) -> Facts:
    """Every launch reads what the one before it wrote, 64 in a list; data changes between lists."""
    with opened(uri) as device:
        program = device.load(_kernel(device.properties.isa, _sum), "probe")
        (x, a), (y, b), (out, _) = (_numbers(device, n) for n in range(3))
        commands = device.command_list()
        for _ in range(32):
            commands.dispatch(program, [x, y, out], GROUPS)
            commands.dispatch(program, [out, y, x], GROUPS)
        begun, rounds, expected = time.perf_counter(), 8, a
        for _ in range(rounds):
            device.compute.wait(device.compute.submit(commands), TIMEOUT_S)
            for _ in range(64):
                expected = expected + b
        took = time.perf_counter() - begun
        _same("the chain of launches", _read(device, x), expected)
        return {"us a launch": round(1e6 * took / 64 / rounds, 2)}


def mixed(uri: URI) -> Facts:
    """Copies in and out between launches, in one list: what engines wrote is seen by the others, code and arguments are fresh."""
    with opened(uri) as device:
        program = device.load(_kernel(device.properties.isa, _sum), "probe")
        (x, a), (y, b), (out, _) = (_numbers(device, n) for n in range(3))
        commands = device.command_list()
        for _ in range(16):
            commands.dispatch(program, [x, y, out], GROUPS)
            commands.copy(x, out, 4 * N)
        device.compute.wait(device.compute.submit(commands), TIMEOUT_S)
        expected = a
        for _ in range(16):
            expected = expected + b
        _same("launches and copies", _read(device, x), expected)
        for n in range(50):  # the same places of arguments, descriptors and code, other contents
            other = device.load(_kernel(device.properties.isa, _sum if n % 2 else _exchanged), "probe")
            once = device.command_list()
            once.dispatch(other, [x, y, out], GROUPS)
            device.compute.wait(device.compute.submit(once), TIMEOUT_S)
            total = expected + b
            _same(f"program {n}", _read(device, out), total if n % 2 else total.reshape(-1, 2)[:, ::-1].reshape(-1))
            other.close()
        return {}


def host_graphics(uri: URI) -> Facts:
    return host(uri, graphics=True)


STEPS: dict[str, Callable[[URI], Facts]] = {
    "nodes": nodes, "objects": objects, "memory": memory, "host": host, "host_graphics": host_graphics, "copies": copies,
    "stamps": stamps, "launch": launch, "shared": shared, "local": local, "chained": chained, "mixed": mixed,
}


def run(step: str, uri: str) -> Facts:
    return STEPS[step](parse_uri(uri))
