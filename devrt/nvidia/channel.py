"""A GPFIFO channel: the ring of entries, the page where it is told of them (USERD), its doorbell, and the words that say how it
ended.

Ring, USERD and a ring of methods lie in one piece of video memory that the host sees. Order of a submission: methods, entries,
GPPut, a fence for the write-combining buffers in front of that memory, the doorbell.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cffi

from devrt.gpu.memory import PAGE
from devrt.ioctl.nv_alloc import CtxShareFlag, EngineType
from devrt.ioctl.nv_classes import Class
from devrt.ioctl.system import view
from devrt.nvidia.driver import undo
from devrt.nvidia.engines import ComputeEngine, Engine
from devrt.nvidia.memory import Kind, Region
from devrt.nvidia.pushbuffer import entry

if TYPE_CHECKING:
    from devrt.nvidia.device import NvidiaDevice

ENTRIES = 4096
METHOD_BYTES = 256 << 10
USERD_BYTES, GP_GET, GP_PUT = 512, 0x88, 0x8C  # clc86f.h, Nvc86fControl
NOTIFIER_BYTES, ERROR_SLOT = 48, 0  # nvos.h: three NvNotification, the first of them the channel's error
CONTEXT_BYTES = 512 << 20  # of addresses for what nvidia-uvm saves of a channel of the graphics engine; others save nothing
_TOKEN_UNSET = 0xFFFFFFFF
_ONE, _TWO = struct.Struct("<Q"), struct.Struct("<2Q")


class Group:
    """Channels that the driver schedules together, on one engine."""

    def __init__(self, device: NvidiaDevice, engine: int) -> None:
        objects = device.objects
        rm, self.objects, self.engine = objects.driver.rm, objects, engine
        self.handle = rm.alloc(f"can't make a channel group on {objects.name}", objects.device, Class.KEPLER_CHANNEL_GROUP_A,
                               engineType=engine, hVASpace=objects.space)
        self.share = 0
        try:
            if engine == EngineType.GRAPHICS:  # other engines have no subcontexts
                self.share = rm.alloc(f"can't share a context on {objects.name}", self.handle, Class.FERMI_CONTEXT_SHARE_A,
                                      hVASpace=objects.space, flags=CtxShareFlag.SUBCONTEXT_ASYNC)
        except BaseException:
            undo(self.close)
            raise

    def schedule(self) -> None:
        self.objects.driver.rm.control(f"can't start channels on {self.objects.name}", self.handle,
                                       "NVA06C_CTRL_CMD_GPFIFO_SCHEDULE", bEnable=1)

    def close(self) -> None:
        handle, self.handle = self.handle, 0
        if handle:
            self.objects.driver.rm.free(self.objects.device, handle)


class Channel:
    """One channel with the object of its engine, ready for methods. Positions count since its creation: entries, and bytes of
    methods; `put` where the next goes, `told` up to where the GPU was told of them, `tail` up to where they were read."""

    def __init__(self, device: NvidiaDevice, engine: Engine, kind: int, name: str) -> None:
        self.device, self.engine, self.kind, self.name = device, engine, kind, name
        self.size = ENTRIES
        self.put = self.tail = self.method_put = self.method_tail = 0
        self.told = 0, 0
        userd = -(-8 * self.size // PAGE) * PAGE
        methods = userd + PAGE
        self.handle = self.object = self._context = 0
        self._registered = False
        self._regions: list[Region] = []
        self._group: Group | None = None
        self._fence = threading.Lock()
        objects, driver = device.objects, device.driver
        rm = driver.rm
        try:
            memory = self._region(methods + METHOD_BYTES, Kind.RING)
            notifier = self._region(NOTIFIER_BYTES, Kind.NOTIFIER)
            for address, nbytes in ((memory.address + userd, USERD_BYTES), (notifier.address, NOTIFIER_BYTES)):
                view(address, nbytes)[:] = bytes(nbytes)  # video memory holds what others left
            self._group = group = Group(device, kind)
            self.handle = rm.alloc(
                f"can't make the {name} channel of {objects.name}", group.handle, objects.classes.channel,
                hObjectError=notifier.handle, hObjectBuffer=memory.handle, gpFifoOffset=memory.address, gpFifoEntries=self.size,
                hContextShare=group.share, hUserdMemory=[memory.handle], userdOffset=[userd], engineType=kind)
            self.object = self._make_object()
            self.token = rm.control(f"can't ask for the doorbell of the {name} channel", self.handle,
                                    "NVC36F_CTRL_CMD_GPFIFO_GET_WORK_SUBMIT_TOKEN", workSubmitToken=_TOKEN_UNSET).workSubmitToken
            if kind == EngineType.GRAPHICS:
                self._context = driver.near(CONTEXT_BYTES, 2 << 20)
            rm.uvm(f"nvidia-uvm does not take the {name} channel", "UVM_REGISTER_CHANNEL", gpuUuid={"uuid": objects.uuid},
                   rmCtrlFd=rm.fd, hClient=rm.client, hChannel=self.handle, base=self._context,
                   length=CONTEXT_BYTES if self._context else 0)
            self._registered = True
            group.schedule()
        except BaseException:
            undo(self.close)
            raise
        self.entries = view(memory.address, 8 * self.size)
        self.methods, self.methods_at = view(memory.address + methods, METHOD_BYTES), memory.address + methods
        ffi = cffi.FFI()
        self._gp_get: Any = ffi.cast("volatile uint32_t *", memory.address + userd + GP_GET)
        self._gp_put: Any = ffi.cast("volatile uint32_t *", memory.address + userd + GP_PUT)
        self._notifier: Any = ffi.cast("volatile uint32_t *", notifier.address + 16 * ERROR_SLOT)
        self._doorbell = objects.doorbell

    def _make_object(self) -> int:
        """The compute object, or the copy object of this channel's engine; a graphics channel's copies go to the engine that
        shares its runlist."""
        objects, rm = self.device.objects, self.device.driver.rm
        if isinstance(self.engine, ComputeEngine):
            return rm.alloc(f"can't make a compute object on {objects.name}", self.handle, objects.classes.compute)
        named = {} if self.kind == EngineType.GRAPHICS else {"version": 1, "engineType": self.kind}
        return rm.alloc(f"can't make a copy object on {objects.name}", self.handle, objects.classes.copy, **named)

    # ----- writing

    def claim(self, entries: int, nbytes: int) -> int:
        """The byte where `nbytes` of methods go, with room for as many entries; -1 while there is none. They do not wrap."""
        at = self.method_put % METHOD_BYTES
        skipped = METHOD_BYTES - at if at + nbytes > METHOD_BYTES else 0
        if self.put + entries - self.tail >= self.size or self.method_put + skipped + nbytes - self.method_tail > METHOD_BYTES:
            return -1
        if skipped:
            at = 0
        self.method_put += skipped + nbytes
        return at

    def write(self, at: int, methods: bytes) -> None:
        """Methods, at a place that was claimed, and their entry."""
        self.methods[at:at + len(methods)] = methods
        self.push(entry(self.methods_at + at, len(methods) // 4))

    def push(self, word: int) -> None:
        """One entry, room for which was claimed."""
        _ONE.pack_into(self.entries, 8 * (self.put % self.size), word)
        self.put += 1

    def push_two(self, first: int, second: int) -> None:
        at = self.put % self.size
        if at + 2 <= self.size:
            _TWO.pack_into(self.entries, 8 * at, first, second)
            self.put += 2
        else:
            self.push(first)
            self.push(second)

    def retire(self, mark: tuple[int, int]) -> None:
        self.tail, self.method_tail = mark

    def rewind(self) -> None:
        self.put, self.method_put = self.told

    def kick(self) -> None:
        """Tell the GPU of everything written. The lock's instruction drains the write-combining buffers, so that entries and
        GPPut are in memory before the doorbell rings."""
        self._gp_put[0] = self.put % self.size
        self.told = self.put, self.method_put  # who is interrupted behind this may have rung
        with self._fence:
            self._doorbell[0] = self.token

    # ----- how it does

    @property
    def read(self) -> int:
        """Up to where the GPU says it has fetched, an index into the ring."""
        return int(self._gp_get[0])

    @property
    def failed(self) -> bool:
        """Whether the driver has written an error."""
        return bool(self._notifier[3] >> 16)

    @property
    def error(self) -> tuple[int, int]:
        """(the error's code, the engine it is of), where it failed."""
        return int(self._notifier[2]), int(self._notifier[3] & 0xFFFF)

    def describe(self) -> str:
        return f"{self.name} channel GPGet {self.read:#x} of GPPut {self.put % self.size:#x}"

    def close(self) -> None:
        """Stop it, whatever it does, and free its memory."""
        rm, objects, handle = self.device.driver.rm, self.device.objects, self.handle
        actions: list[Callable[[], object]] = []
        if self._registered:
            self._registered = False
            actions.append(lambda: rm.uvm("", "UVM_UNREGISTER_CHANNEL", gpuUuid={"uuid": objects.uuid}, hClient=rm.client,
                                          hChannel=handle))
        if self._group is not None:  # and with it the channel
            actions.append(self._group.close)
            self.handle = 0
        actions += [region.release for region in self._regions[::-1]]
        self._regions.clear()
        if self._context:
            context, self._context = self._context, 0
            actions.append(lambda: self.device.system.munmap(context, CONTEXT_BYTES))
        undo(*actions)

    def _region(self, nbytes: int, kind: Kind) -> Region:
        region = Region(self.device.objects, nbytes, kind)
        self._regions.append(region)
        return region
