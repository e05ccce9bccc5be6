"""A virtual NVIDIA GPU without a driver: memory mapped by hand, a usermode page in a bytearray, and an executor that plays
kernels."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from devrt.ioctl.nv_alloc import EngineType
from devrt.ioctl.system import LinuxSystem
from devrt.nvidia import pushbuffer, qmd
from devrt.nvidia.pushbuffer import Push
from devrt.virtual.faults import Faults
from devrt.virtual.memory import PAGE, Access, AddressSpace, PageFile, map_file
from devrt.virtual.nvidia.channel import GP_GET, GP_PUT, NOTIFIER_BYTES, USERD_BYTES, Channel
from devrt.virtual.nvidia.dispatch import Launch
from devrt.virtual.nvidia.engine import Runs
from devrt.virtual.nvidia.gpu import DOORBELL, QUIET, VirtualGpu
from devrt.virtual.nvidia.qmd_check import LIMITS

VRAM = Access.VRAM | Access.WRITE | Access.EXECUTE
WAIT_S = 10.0
GRAPHICS, COPY0 = int(EngineType.GRAPHICS), int(EngineType.COPY0)
SHARED_WINDOW, LOCAL_WINDOW = 0x7294_0000_0000, 0x7293_0000_0000
COMPUTE = {75: 0xC5C0, 80: 0xC6C0, 86: 0xC7C0, 89: 0xC9C0, 90: 0xCBC0, 120: 0xCEC0}
COPY = {75: 0xC5B5, 80: 0xC6B5, 86: 0xC7B5, 89: 0xC7B5, 90: 0xC8B5, 120: 0xCAB5}
HOST = {75: 0xC46F, 80: 0xC56F, 86: 0xC56F, 89: 0xC56F, 90: 0xC86F, 120: 0xCA6F}
_numbers = itertools.cycle(range(60))
Play = Callable[[Launch, AddressSpace], Iterator[None] | None]


class Player:
    """Runs a Python function in the place of warps: the one registered for the launch's entry. One that yields gives way."""

    def __init__(self) -> None:
        self.hurry = False
        self.plays: dict[int, Play] = {}
        self.seen: list[Launch] = []

    def run(self, launch: Launch, space: AddressSpace) -> Iterator[None]:
        self.seen.append(launch)
        turns = self.plays[launch.entry](launch, space) if launch.entry in self.plays else None
        yield from turns or ()

    def code(self, launch: Launch, space: AddressSpace) -> Sequence[tuple[int, bytes]]:
        return [(launch.entry, space.read(launch.entry, 64))]

    def collect(self, launch: Launch, space: AddressSpace) -> None:
        """Plays enter what they touch themselves."""


class Rig:
    def __init__(self, sm: int = 90, faults: str = "", executor: Runs | None = None) -> None:
        self.sm, self.system, self.faults, self.player = sm, LinuxSystem(), Faults(1), Player()
        if faults:
            self.faults.inject(faults)
        self.file = PageFile("rig", 2 << 30)
        self.space = AddressSpace(self.system)
        self.page = bytearray(0x1000)
        self.told: list[tuple[Channel | None, int, str]] = []
        self.interrupts: list[Channel] = []
        self.gpu = VirtualGpu(sm, self.faults, lambda *told: self.told.append(told), memoryview(self.page),
                              executor or self.player, 2, self.interrupts.append)
        self._next = 0x10_0000_0000 + (next(_numbers) << 33)  # below 2^40, and no two rigs have the same addresses
        self._mapped: list[tuple[int, int]] = []
        self._channels = 0

    def close(self) -> None:
        self.gpu.close()
        for host, nbytes in self._mapped:
            self.system.munmap(host, nbytes)
        self.space.close()
        self.file.close()

    def memory(self, nbytes: int = PAGE, access: Access = VRAM) -> int:
        """The address of fresh zeros."""
        nbytes = -(-nbytes // PAGE) * PAGE
        host = map_file(self.system, self.file, self.file.take(nbytes), nbytes)
        va, self._next = self._next, self._next + nbytes + (1 << 21)
        self.space.map(va, host, nbytes, access)
        self._mapped.append((host, nbytes))
        return va

    def u32(self, va: int) -> int:
        return int.from_bytes(self.space.read(va, 4), "little")

    def u64(self, va: int) -> int:
        return int.from_bytes(self.space.read(va, 8), "little")

    def kernel(self, play: Play | None = None) -> int:
        """The entry of a kernel that plays a function."""
        va = self.memory()
        if play:
            self.player.plays[va] = play
        return va

    def qmd(self, entry: int, *, at: int = 0, **fields: int) -> int:
        """The address of a descriptor that launches one block of 32 threads; `fields` change it. `at` is where it goes."""
        at = at or self.memory()
        carve_outs, shared = LIMITS[self.sm].carve_outs, fields.get("shared_memory_size", 0)
        smallest = min((kib for kib in carve_outs if kib << 10 >= shared), default=0) // 4 + 1
        largest = carve_outs[-1] // 4 + 1
        values = {
            "program_address": entry, "grid_width": 1, "grid_height": 1, "grid_depth": 1, "cta_thread_dimension0": 32,
            "cta_thread_dimension1": 1, "cta_thread_dimension2": 1, "register_count": 32, "barrier_count": 1,
            "sass_version": LIMITS[self.sm].sass_version, "min_sm_config_shared_mem_size": smallest,
            "target_sm_config_shared_mem_size": smallest, "max_sm_config_shared_mem_size": largest, "api_visible_call_limit": 1,
            "cwd_membar_type": 1}
        if self.sm >= 90:
            values["qmd_type"] = qmd.QmdType.GRID_CTA
        self.space.write(at, qmd.pack(self.sm, **{**values, **fields}))
        return at

    def channel(self, engine: int = GRAPHICS, entries: int = 64, **fields: Any) -> Line:
        self._channels += 1
        return Line(self, engine, entries, self._channels, fields)


class Line:
    """A channel and how to write to it."""

    def __init__(self, rig: Rig, engine: int, entries: int, number: int, fields: dict[str, Any]) -> None:
        self.rig, self.entries, self.put = rig, entries, 0
        self.ring, self._pushes, self._at = rig.memory(8 * entries), rig.memory(1 << 20), 0
        self.userd, self.notifier = bytearray(USERD_BYTES), bytearray(3 * NOTIFIER_BYTES)
        sm = rig.sm
        classes = (COMPUTE[sm], COPY[sm]) if engine == GRAPHICS else (COPY[sm],)
        values = {
            "id": number, "token": 0x10000 + number, "engine": engine, "space": rig.space, "gpfifo_va": self.ring,
            "gpfifo_entries": entries, "userd": memoryview(self.userd), "notifier": memoryview(self.notifier), "classes": classes,
            "host_class": HOST[sm]}
        self.channel = Channel(**{**values, **fields})
        rig.gpu.attach(self.channel)
        rig.gpu.enable(self.channel, True)
        if engine == GRAPHICS and "classes" not in fields:
            push = self.pushes()
            push.host("SET_OBJECT", subchannel=1, nvclass=COMPUTE[sm])
            for kind, window in (("SHARED", SHARED_WINDOW), ("LOCAL", LOCAL_WINDOW)):
                push.compute(f"SET_SHADER_{kind}_MEMORY_WINDOW_A", window >> 32, window & 0xFFFFFFFF)
            self.send(push).drain()

    def pushes(self) -> Push:
        return Push(self.rig.sm)

    @property
    def get(self) -> int:
        return int(struct.unpack_from("<I", self.userd, GP_GET)[0])

    def send(self, *pushes: Push, ring: bool = True) -> Line:
        """Put each push in the ring as an entry, and ring once."""
        for push in pushes:
            self.raw(push.words)
        if ring:
            self.bell()
        return self

    def raw(self, words: Any, entry: int | None = None) -> Line:
        """Words of any kind as an entry, without ringing; `entry` replaces it."""
        data = struct.pack(f"<{len(words)}I", *words)
        if self._at + len(data) > 1 << 20:
            self._at = 0
        va, self._at = self._pushes + self._at, self._at + len(data)
        self.rig.space.write(va, data)
        made = pushbuffer.entry(va, len(words)) if entry is None else entry
        self.rig.space.write(self.ring + 8 * self.put, made.to_bytes(8, "little"))
        self.put = (self.put + 1) % self.entries
        return self

    def bell(self, put: int | None = None, token: int | None = None) -> Line:
        struct.pack_into("<I", self.userd, GP_PUT, self.put if put is None else put)
        # As it lies in memory, which is one store: of a standard size it would be bytes, between which the GPU takes the token.
        struct.pack_into("I", self.rig.page, DOORBELL, self.channel.token if token is None else token)
        return self

    def launch(self, at: int, *, wait: bool = False) -> Push:
        push = self.pushes()
        push.compute("SEND_PCAS_A", at >> 8)
        push.compute("SEND_SIGNALING_PCAS2_B", pcas_action=10)
        if wait:
            push.compute("WAIT_FOR_IDLE", 0)
        return push

    @property
    def quiet(self) -> bool:
        runner = next(r for r in self.rig.gpu.runners if r.channel is self.channel)
        return self.get == self.put and not runner.track.busy and struct.unpack_from("<I", self.rig.page, DOORBELL)[0] == QUIET

    def drain(self) -> Line:
        """Wait until all is carried out; an error is raised."""
        until(lambda: self.channel.error or self.quiet)
        if self.channel.error:
            raise self.channel.error
        return self

    def error(self) -> str:
        until(lambda: self.channel.error)
        return str(self.channel.error)


def until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError("nothing happened")
        time.sleep(1e-4)


@contextmanager
def rig(sm: int = 90, faults: str = "", executor: Runs | None = None) -> Iterator[Rig]:
    made = Rig(sm, faults, executor)
    try:
        yield made
    finally:
        made.close()


def semaphore(push: Push, va: int, payload: int, **fields: int) -> Push:
    """A host semaphore operation on 64 bits."""
    push.host("SEM_ADDR_LO", va & 0xFFFFFFFF, va >> 32, payload & 0xFFFFFFFF, payload >> 32)
    push.host("SEM_EXECUTE", **{"payload_size_64bit": 1, **fields})
    return push


__all__ = ["COPY0", "GRAPHICS", "LOCAL_WINDOW", "SHARED_WINDOW", "Line", "Rig", "rig", "semaphore", "until"]
