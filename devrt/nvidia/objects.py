"""What the resource manager holds for one open GPU: device, subdevice, address space, doorbell page; and what it says of the GPU.

Memory outlives the device that it was allocated from while somebody looks at it, so these objects are freed with the last of it.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any

import cffi

from devrt.device import DeviceLost, DevrtError, InvalidArgument, Unsupported
from devrt.ioctl.errors import reported_as
from devrt.ioctl.nv_alloc import EngineType, VaSpaceFlag
from devrt.ioctl.nv_classes import Class, Classes, choose
from devrt.ioctl.nv_controls import BoostFlag, ComputeMode, FbInfo, GrInfo
from devrt.ioctl.system import MAP_FIXED, MAP_SHARED, PROT_READ, PROT_WRITE
from devrt.nvidia import modes
from devrt.nvidia.driver import Card, Driver, undo
from devrt.nvidia.instances import Instance, Subscription, instances, subscribe, title

USERMODE_BYTES, TIME_LOW, DOORBELL = 0x10000, 0x80, 0x90  # clc661.h
VA_BASE, VA_BYTES = 0x1000, 0x1FFFFFB000000  # as NVIDIA's programs ask for the address space
_GID_BINARY, UUID_BYTES = 2, 16  # ctrl2080gpu.h: NV2080_GPU_CMD_GPU_GET_GID_FLAGS_FORMAT_BINARY
_BOOST_FOREVER = 0xFFFFFFFF
_GRCE = 1  # ctrl2080ce.h, NV2080_CTRL_CE_CAPS_CE_GRCE: it shares the graphics engine's runlist
_COPY_ENGINES = (*range(EngineType.COPY0, EngineType.COPY9 + 1), *range(EngineType.COPY10, EngineType.COPY19 + 1))


class Objects:
    """`device`, `subdevice` and `space` are handles, `fd` the card's node, `uuid` 16 bytes by which nvidia-uvm knows it,
    `classes` what to make on it; `instance` the part of a split GPU that it is, and `part` that part's name."""

    def __init__(self, driver: Driver, card: Card, name: str) -> None:
        self.driver, self.card, self.name = driver, card, name
        self._undo: list[Callable[[], None]] = []
        self._kept = 0    # of these, that wait for the last memory object
        self._users = 0   # memory objects
        self._open = True
        self._gone = False  # closed when the GPU was lost
        self.subdevice = 0
        self.friends: set[bytes] = set()
        self.modes = modes.Modes()
        self.instance: Instance | None = None
        self.part = ""
        self._subscription: Subscription | None = None
        driver.enter()
        self._undo.append(driver.leave)
        try:
            self._start()
        except DevrtError as error:
            self.close()
            raise modes.explained(error, self.modes) from error.__cause__
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        rm, driver, name = self.driver.rm, self.driver, self.name
        self.fd = driver.card_fd(self.card)
        self._undo.append(lambda: driver.system.close(self.fd))
        about = rm.control(f"can't identify {name}", rm.client, "NV0000_CTRL_CMD_GPU_GET_ID_INFO_V2", gpuId=self.card.gpu_id)
        self.device = rm.alloc(f"can't make a device of {name}", 0, Class.NV01_DEVICE_0, deviceId=about.deviceInstance,
                               hClientShare=rm.client)
        self._undo.append(lambda: rm.free(0, self.device))
        self.subdevice = rm.alloc(f"can't make a subdevice of {name}", self.device, Class.NV20_SUBDEVICE_0,
                                  subDeviceId=about.subDeviceInstance)
        self.modes = modes.ask(rm, self.device, self.subdevice)
        if self.modes.confidential is not None and self.modes.confidential.on:
            raise self.modes.confidential.refusal(self.card.pci).error(name)
        self._check_mode()
        if self.card.instance is not None or self.modes.split:
            self._take_part()
        self.classes: Classes = choose(self._class_list())
        self.uuid = self._uuid()
        self.usermode = rm.alloc(f"can't make the doorbells of {name}", self.subdevice, self.classes.usermode)
        self._doorbells = driver.far(USERMODE_BYTES, USERMODE_BYTES)
        self._undo.append(lambda: driver.system.munmap(self._doorbells, USERMODE_BYTES))
        self.map_cpu(self.usermode, USERMODE_BYTES, self._doorbells)
        driver.private(self._doorbells, USERMODE_BYTES)
        ffi = cffi.FFI()
        self.doorbell: Any = ffi.cast("volatile uint32_t *", self._doorbells + DOORBELL)
        self._time: Any = ffi.cast("volatile uint32_t *", self._doorbells + TIME_LOW)
        self.space = rm.alloc(f"can't make an address space on {name}", self.device, Class.FERMI_VASPACE_A, vaBase=VA_BASE,
                              vaSize=VA_BYTES, flags=VaSpaceFlag.ENABLE_PAGE_FAULTING | VaSpaceFlag.IS_EXTERNALLY_OWNED)
        self._register()

    def _take_part(self) -> None:
        """Become an instance of the GPU, which is split (MIG): the first that can be used where the driver had not said, when it
        listed its GPUs, that there are instances."""
        driver, card, name = self.driver, self.card, self.name
        shown = [card.instance] if card.instance is not None else instances(driver.system, card.minor)
        instance = next((one for one in shown if not one.missing(driver.system)), None)
        if instance is None:
            raise modes.nothing_to_use(self.modes, driver.system, shown, card.pci).error(name)
        for other in [device.objects for device in driver.devices.values()]:
            if other.card.minor == card.minor and other.instance is not None and other.instance.gpu == instance.gpu:
                raise InvalidArgument(f"{other.name} is open here, another compute instance of GPU instance {instance.gpu}",
                                      evidence="nvidia-uvm takes a GPU instance once a process", remedy="use another process")
        try:
            total = self.memory_info(FbInfo.TOTAL_RAM_SIZE)[0]  # of the whole GPU, as long as no part is taken
        except DevrtError:
            total = 0
        self._subscription = subscribe(driver.system, driver.rm, self.subdevice, instance, name)
        self.instance = instance
        self.part = title(driver.rm, self.subdevice, self._subscription, instance, total)

    def _register(self) -> None:
        """Give the GPU and its address space to nvidia-uvm, which from then on keeps its page tables, and calls an instance by a
        UUID of its own."""
        self._kept = len(self._undo)
        rm, part = self.driver.rm, self._subscription
        fd, client, handle = (-1, 0, 0) if part is None else (rm.fd, rm.client, part.gpu)
        made = rm.uvm(f"nvidia-uvm does not take {self.name}", "UVM_REGISTER_GPU", gpu_uuid={"uuid": self.uuid}, rmCtrlFd=fd,
                      hClient=client, hSmcPartRef=handle)
        if part is not None:
            self.uuid = bytes(made.gpu_uuid.uuid[0:UUID_BYTES])
        uuid = {"uuid": self.uuid}
        self._undo.append(lambda: undo(lambda: rm.uvm("", "UVM_UNREGISTER_GPU", gpu_uuid=uuid)))
        rm.uvm(f"nvidia-uvm does not take the address space of {self.name}", "UVM_REGISTER_GPU_VASPACE", gpuUuid=uuid,
               rmCtrlFd=rm.fd, hClient=rm.client, hVaSpace=self.space)
        self._undo.append(lambda: undo(lambda: rm.uvm("", "UVM_UNREGISTER_GPU_VASPACE", gpuUuid=uuid)))

    def _check_mode(self) -> None:
        """Raises Unsupported where the GPU's owner has forbidden what we are about to do."""
        mode = self.driver.rm.control(f"can't ask for the compute mode of {self.name}", self.subdevice,
                                      "NV2080_CTRL_CMD_GPU_QUERY_COMPUTE_MODE_RULES").rules
        if mode == ComputeMode.COMPUTE_PROHIBITED:
            raise Unsupported(f"compute is prohibited on {self.name}", evidence="compute mode: prohibited",
                              remedy=f"sudo nvidia-smi -i {self.card.pci} -c 0 sets it back to default")

    def _class_list(self) -> list[int]:
        rm, what = self.driver.rm, f"can't ask for the classes of {self.name}"
        count = rm.control(what, self.device, "NV0080_CTRL_CMD_GPU_GET_CLASSLIST").numClasses
        data = bytearray(4 * count)
        ffi = self.driver.tables.nvrm.ffi
        rm.control(what, self.device, "NV0080_CTRL_CMD_GPU_GET_CLASSLIST", numClasses=count,
                   classList=int(ffi.cast("uintptr_t", ffi.from_buffer(data))))
        return list(struct.unpack(f"<{count}I", data))

    def _uuid(self) -> bytes:
        made = self.driver.rm.control(f"can't ask for the UUID of {self.name}", self.subdevice,
                                      "NV2080_CTRL_CMD_GPU_GET_GID_INFO", flags=_GID_BINARY, length=UUID_BYTES)
        return bytes(made.data[0:UUID_BYTES])

    # ----- what the GPU is

    @functools.cached_property
    def model(self) -> str:
        made = self.driver.rm.control(f"can't ask for the name of {self.name}", self.subdevice,
                                      "NV2080_CTRL_CMD_GPU_GET_NAME_STRING")
        return bytes(made.gpuNameString.ascii).partition(b"\0")[0].decode("ascii", "replace")

    def graphics_info(self, *wanted: GrInfo) -> list[int]:
        """Values of GR_GET_INFO."""
        ffi = self.driver.tables.nvrm.ffi
        pairs = bytearray(b"".join(struct.pack("<II", index, 0) for index in wanted))
        self.driver.rm.control(f"can't ask for the shape of {self.name}", self.subdevice, "NV2080_CTRL_CMD_GR_GET_INFO",
                               grInfoListSize=len(wanted), grInfoList=int(ffi.cast("uintptr_t", ffi.from_buffer(pairs))))
        return [value for _, value in struct.iter_unpack("<II", pairs)]

    def memory_info(self, *wanted: FbInfo) -> list[int]:
        """Values of FB_GET_INFO_V2, sizes in KiB."""
        made = self.driver.rm.control(f"can't ask for the memory of {self.name}", self.subdevice,
                                      "NV2080_CTRL_CMD_FB_GET_INFO_V2", fbInfoListSize=len(wanted),
                                      fbInfoList=[{"index": index} for index in wanted])
        return [made.fbInfoList[n].data for n in range(len(wanted))]

    def tpcs(self) -> list[int]:
        """How many TPCs each GPC has. GPCs of an instance are asked for from 0 on, whatever their places in the mask."""
        rm, what = self.driver.rm, f"can't ask for the shape of {self.name}"
        mask = rm.control(what, self.subdevice, "NV2080_CTRL_CMD_GR_GET_GPC_MASK").gpcMask
        places = [gpc for gpc in range(mask.bit_length()) if mask >> gpc & 1]
        return [rm.control(what, self.subdevice, "NV2080_CTRL_CMD_GR_GET_TPC_MASK", gpcId=gpc).tpcMask.bit_count()
                for gpc in (places if self.instance is None else range(len(places)))]

    @functools.cached_property
    def copy_engines(self) -> list[int]:
        """The engine types of the copy engines that have a runlist of their own."""
        rm, what = self.driver.rm, f"can't ask for the engines of {self.name}"
        made = rm.control(what, self.subdevice, "NV2080_CTRL_CMD_GPU_GET_ENGINES_V2")
        listed = [int(made.engineList[n]) for n in range(made.engineCount)]
        return [engine for engine in listed if engine in _COPY_ENGINES and not rm.control(
            what, self.subdevice, "NV2080_CTRL_CMD_CE_GET_CAPS_V2", ceEngineType=engine).capsTbl[0] & _GRCE]

    def boost(self) -> None:
        """Ask for full clocks while the client lives; a driver that does not grant it runs as it likes."""
        undo(lambda: self.driver.rm.control(
            "", self.subdevice, "NV2080_CTRL_CMD_PERF_BOOST", duration=_BOOST_FOREVER,
            flags=BoostFlag.CMD_BOOST_TO_MAX | BoostFlag.CUDA_YES | BoostFlag.CUDA_PRIORITY_HIGH))

    @property
    def lost(self) -> bool:
        """Whether the GPU has fallen off the bus: its registers read as ones, where the clock has five zeros."""
        return bool(self._time[0] == 0xFFFFFFFF)

    # ----- memory and peers

    def map_cpu(self, handle: int, nbytes: int, address: int, *, system: bool = False) -> None:
        """Show an object to the process at reserved addresses. A descriptor carries one mapping."""
        driver, what = self.driver, f"can't map {nbytes} bytes of {self.name}"
        fd = driver.control_fd() if system else driver.card_fd(self.card)
        try:
            driver.rm.map_memory(what, self.device, handle, fd, nbytes)
            with reported_as(what):
                driver.system.mmap(fd, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, 0, address)
        finally:
            driver.system.close(fd)

    def out_of_reach(self, other: Objects) -> str:
        """Why this GPU can't reach another's memory; "" where it can."""
        try:
            self.befriend(other)
        except (Unsupported, InvalidArgument) as error:
            return error.evidence
        except DevrtError as error:
            return str(error)
        return ""

    def befriend(self, other: Objects) -> None:
        """Let two GPUs reach each other's memory."""
        if other.uuid in self.friends:
            return
        self.driver.rm.uvm(f"{self.name} and {other.name} do not reach each other", "UVM_ENABLE_PEER_ACCESS",
                           gpuUuidA={"uuid": self.uuid}, gpuUuidB={"uuid": other.uuid})
        self.friends.add(other.uuid)
        other.friends.add(self.uuid)
        self._undo.append(lambda: self._part(other))

    def _part(self, other: Objects) -> None:
        if other.uuid in self.friends:
            self.friends.discard(other.uuid)
            other.friends.discard(self.uuid)
            undo(lambda: self.driver.rm.uvm("", "UVM_DISABLE_PEER_ACCESS", gpuUuidA={"uuid": self.uuid},
                                            gpuUuidB={"uuid": other.uuid}))

    # ----- the end

    def enter(self) -> None:
        with self.driver.lock:
            self._users += 1

    def leave(self) -> None:
        with self.driver.lock:
            self._users -= 1
        self._finish()

    def close(self) -> None:
        """Take the GPU's address space back from nvidia-uvm, so that it can be opened anew; free the objects once no memory is
        left. Those of a lost GPU are freed at once: the driver starts it anew only when nobody has it open any more."""
        self._open = False
        if not self.driver.abandoned:
            self._gone = self._is_lost()
            while len(self._undo) > self._kept:
                undo(self._undo.pop())
        self._finish()

    def _is_lost(self) -> bool:
        """Whether the driver has given the GPU up."""
        try:
            self.memory_info(FbInfo.HEAP_FREE)
        except DeviceLost:
            return True
        except DevrtError:
            return False
        return False

    def _finish(self) -> None:
        with self.driver.lock:
            if self._open or self._users and not self._gone or self.driver.abandoned:
                return
            actions, self._undo = self._undo[::-1], []
        for action in actions:
            undo(action)

