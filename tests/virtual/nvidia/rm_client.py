"""A small client of NVIDIA's driver for tests: calls by name, their status, and the objects of one GPU in the usual order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from devrt.ioctl.nv_alloc import ATTR, ATTR2, AllocFlag, EngineType, VaSpaceFlag, flags
from devrt.ioctl.nv_classes import Class
from devrt.ioctl.nv_status import Status
from devrt.ioctl.system import MAP_SHARED, PROT_READ, PROT_WRITE, LinuxSystem, System, view
from devrt.virtual.faults import Faults, driver_version, instances, parse_query
from devrt.virtual.nvidia.channel import Channel
from devrt.virtual.nvidia.driver import NvidiaDriver
from devrt.virtual.nvidia.faults import MmuFault, SmError
from devrt.virtual.nvidia.machine import GpuModel, parse_topology
from devrt.virtual.system import VirtualSystem


class Engine:
    """A GPU that does nothing but remember."""

    def __init__(self, model: GpuModel, system: System, faults: Faults, report: Any, doorbell: memoryview) -> None:
        self.report, self.doorbell = report, doorbell
        self.sm_errors: list[SmError] = []
        self.mmu_faults: list[MmuFault] = []
        self.channels: dict[Channel, bool] = {}
        self.closed = False

    def attach(self, channel: Channel) -> None:
        self.channels[channel] = False

    def settle(self) -> None:
        pass

    def detach(self, channel: Channel) -> None:
        del self.channels[channel]

    def enable(self, channel: Channel, on: bool) -> None:
        self.channels[channel] = on

    def clear_errors(self, channel: Channel) -> None:
        self.sm_errors.clear()
        self.mmu_faults.clear()

    def close(self) -> None:
        self.closed = True


class Refusal(Exception):
    """A status other than NV_OK."""

    def __init__(self, status: int) -> None:
        super().__init__(Status(status).name)
        self.status = Status(status)


class RmClient:
    """One process's view: a control descriptor, a UVM descriptor, and calls on them. Statuses become Refusal."""

    def __init__(self, system: VirtualSystem) -> None:
        self.system = system
        driver = system.drivers[0]
        assert isinstance(driver, NvidiaDriver)
        self.driver, self.tables = driver, driver.tables
        self.control_fd = system.open("/dev/nvidiactl", os.O_RDWR)
        self.uvm_fd = system.open("/dev/nvidia-uvm", os.O_RDWR)
        self.keep: list[Any] = []
        self.root = self.alloc(0, Class.NV01_ROOT_CLIENT, root=0)

    # --- calls ---

    def escape(self, fd: int, name: str, /, **fields: Any) -> Any:
        return self.tables.nvrm.call(self.system, fd, name, **fields)

    def alloc(self, parent: int, class_id: int, struct: str = "", *, root: int | None = None, handle: int = 0,
              **fields: Any) -> int:
        table = self.tables.nvrm
        params = table.new(struct, **fields) if struct else None
        self.params = params
        address = int(table.ffi.cast("uintptr_t", params)) if struct else 0
        answer = self.escape(self.control_fd, "NV_ESC_RM_ALLOC", hRoot=self.root if root is None else root, hObjectParent=parent,
                             hObjectNew=handle, hClass=class_id, pAllocParms=address, paramsSize=table.size(struct))
        if answer.status:
            raise Refusal(answer.status)
        return int(answer.hObjectNew)

    def control(self, target: int, name: str, **fields: Any) -> Any:
        table, row = self.tables.nvrm, self.tables.controls[name]
        params = table.new(row.struct, **fields) if row.struct else None
        address = int(table.ffi.cast("uintptr_t", params)) if row.struct else 0
        answer = self.escape(self.control_fd, "NV_ESC_RM_CONTROL", hClient=self.root, hObject=target, cmd=row.number,
                             params=address, paramsSize=table.size(row.struct))
        if answer.status:
            raise Refusal(answer.status)
        return params

    def free(self, handle: int) -> None:
        answer = self.escape(self.control_fd, "NV_ESC_RM_FREE", hRoot=self.root, hObjectOld=handle)
        if answer.status:
            raise Refusal(answer.status)

    def uvm(self, name: str, /, *, on: int | None = None, **fields: Any) -> Any:
        answer = self.tables.uvm.call(self.system, self.uvm_fd if on is None else on, name, **fields)
        if answer.rmStatus:
            raise Refusal(answer.rmStatus)
        return answer

    # --- objects ---

    def open_gpu(self, index: int = 0, register: bool = True) -> int:
        fd = self.system.open(f"/dev/nvidia{index}", os.O_RDWR)
        if register:
            self.escape(fd, "NV_ESC_REGISTER_FD", ctl_fd=self.control_fd)
        return fd

    def map(self, device: int, memory: int, nbytes: int, fd: int, offset: int = 0, **fields: Any) -> tuple[int, int]:
        """(linear address, where it lies here)"""
        params = {"hClient": self.root, "hDevice": device, "hMemory": memory, "length": nbytes, "offset": offset, **fields}
        answer = self.escape(self.control_fd, "NV_ESC_RM_MAP_MEMORY", params=params, fd=fd)
        if answer.params.status:
            raise Refusal(answer.params.status)
        prot = PROT_READ if fields.get("flags", 0) & 3 == 1 else PROT_READ | PROT_WRITE
        return answer.params.pLinearAddress, self.system.mmap(fd, nbytes, prot, MAP_SHARED)


class Gpu:
    """One GPU opened as a runtime does it: device, subdevice, address space, UVM registration."""

    def __init__(self, client: RmClient, index: int = 0) -> None:
        self.client, self.index = client, index
        self.card = client.driver.cards[index]
        self.fd = client.open_gpu(index)
        self.device = client.alloc(client.root, Class.NV01_DEVICE_0, "NV0080_ALLOC_PARAMETERS", deviceId=index,
                                   hClientShare=client.root)
        self.subdevice = client.alloc(self.device, Class.NV20_SUBDEVICE_0, "NV2080_ALLOC_PARAMETERS")
        self.va_space = client.alloc(
            self.device, Class.FERMI_VASPACE_A, "NV_VASPACE_ALLOCATION_PARAMETERS", vaBase=0x1000, vaSize=0x1FFFFFB000000,
            flags=VaSpaceFlag.ENABLE_PAGE_FAULTING | VaSpaceFlag.IS_EXTERNALLY_OWNED)
        self.uuid = {"uuid": bytes(client.control(self.subdevice, "NV2080_CTRL_CMD_GPU_GET_GID_INFO", flags=2,
                                                  length=16).data)[:16]}

    def register(self) -> Gpu:
        client = self.client
        client.uvm("UVM_INITIALIZE")
        client.uvm("UVM_REGISTER_GPU", gpu_uuid=self.uuid, rmCtrlFd=-1)
        client.uvm("UVM_REGISTER_GPU_VASPACE", gpuUuid=self.uuid, rmCtrlFd=client.control_fd, hClient=client.root,
                   hVaSpace=self.va_space)
        return self

    def vram(self, nbytes: int, **attr: str) -> int:
        word = flags(ATTR, LOCATION="VIDMEM", PHYSICALITY="CONTIGUOUS", **attr)
        return self.client.alloc(self.device, Class.NV01_MEMORY_LOCAL_USER, "NV_MEMORY_ALLOCATION_PARAMS",
                                 owner=self.client.root, size=nbytes, attr=word, attr2=flags(ATTR2, GPU_CACHEABLE="YES"),
                                 flags=AllocFlag.MAP_NOT_REQUIRED)

    def system_memory(self, nbytes: int, **attr2: str) -> int:
        return self.client.alloc(self.device, Class.NV01_MEMORY_SYSTEM, "NV_MEMORY_ALLOCATION_PARAMS", owner=self.client.root,
                                 size=nbytes, attr=flags(ATTR, LOCATION="PCI"), attr2=flags(ATTR2, **attr2))

    def pin(self, address: int, nbytes: int, handle: int = 0x1001) -> int:
        params = {"hRoot": self.client.root, "hObjectParent": self.device, "hObjectNew": handle, "pMemory": address,
                  "limit": nbytes - 1, "hClass": Class.NV01_MEMORY_SYSTEM_OS_DESCRIPTOR, "flags": 1 << 4 | 1 << 12 | 1 << 30}
        answer = self.client.escape(self.fd, "NV_ESC_RM_ALLOC_MEMORY", params=params, fd=-1)
        if answer.params.status:
            raise Refusal(answer.params.status)
        return int(answer.params.hObjectNew)

    def map_vram(self, memory: int, nbytes: int, offset: int = 0) -> memoryview:
        _, at = self.client.map(self.device, memory, nbytes, self.client.open_gpu(self.index), offset)
        return view(at, nbytes)

    def attributes(self, kind: int = 1) -> list[dict[str, Any]]:
        return [{"gpuUuid": self.uuid, "gpuMappingType": kind}]

    def map_gpu(self, va: int, nbytes: int, memory: int, *, offset: int = 0, create: bool = True, kind: int = 1,
                count: int = 1) -> None:
        client = self.client
        if create:
            client.uvm("UVM_CREATE_EXTERNAL_RANGE", base=va, length=nbytes)
        client.uvm("UVM_MAP_EXTERNAL_ALLOCATION", base=va, length=nbytes, offset=offset, hClient=client.root, hMemory=memory,
                   rmCtrlFd=client.control_fd, gpuAttributesCount=count, perGpuAttributes=self.attributes(kind))

    @property
    def space(self) -> Any:
        return self.client.driver.clients[self.client.root].objects[self.va_space].space  # type: ignore[attr-defined]

    def group(self, engine: int = EngineType.GRAPHICS) -> tuple[int, int]:
        """(channel group, context share)"""
        group = self.client.alloc(self.device, Class.KEPLER_CHANNEL_GROUP_A, "NV_CHANNEL_GROUP_ALLOCATION_PARAMETERS",
                                  engineType=engine)
        share = self.client.alloc(group, Class.FERMI_CONTEXT_SHARE_A, "NV_CTXSHARE_ALLOCATION_PARAMETERS",
                                  hVASpace=self.va_space, flags=1)
        return group, share

    def channel(self, group: int, share: int, userd: int, **fields: Any) -> int:
        wanted = {"gpFifoOffset": 0x10000000, "gpFifoEntries": 512, "hContextShare": share, "hUserdMemory": [userd], **fields}
        class_id = wanted.pop("class_id", int(self.card.model.generation.channel[0]))
        return self.client.alloc(group, class_id, "NV_CHANNEL_ALLOC_PARAMS", **wanted)


@contextmanager
def machine(topology: str = "sm_90", query: str = "") -> Iterator[VirtualSystem]:
    """A virtual machine whose GPUs do nothing."""
    faults, sizes = parse_query(query)
    host = LinuxSystem()
    made = parse_topology(topology, driver=driver_version(query), instances=instances(query), **sizes)
    driver = NvidiaDriver(made, host, faults, Engine)
    system = VirtualSystem(host, [driver], faults)
    try:
        yield system
    finally:
        system.shut_down()
