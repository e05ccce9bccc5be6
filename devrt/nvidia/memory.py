"""Memory of an NVIDIA GPU: objects of the resource manager at one address for the process and its GPUs.

    DEVICE         video memory that only the GPU sees
    HOST_VISIBLE   video memory seen through the PCIe window (BAR1): rings, packets, launch descriptors, arguments
    HOST           pages of this process, pinned, not cached by the GPU: timelines, what is staged

Every object becomes an external range of nvidia-uvm, mapped to its GPU and to those it is shared with. What the CPU sees lies
below 2^40, which is all that the host's methods reach until Ada.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING

from devrt.device import DevrtError, InvalidArgument, OutOfMemory, Placement
from devrt.gpu.memory import LINES, PAGE
from devrt.ioctl.errors import reported_as
from devrt.ioctl.nv_alloc import ATTR, ATTR2, NVOS02_FLAGS, AllocFlag, MemoryType, flags
from devrt.ioctl.nv_controls import FbInfo
from devrt.ioctl.system import MAP_ANONYMOUS, MAP_FIXED, MAP_SHARED, PROT_READ, PROT_WRITE
from devrt.ioctl.uvm import Mapping_
from devrt.memory import HUGE, host_available
from devrt.nvidia.driver import undo

if TYPE_CHECKING:
    from devrt.nvidia.objects import Objects

FORMAT = 6  # of plain memory, as NVIDIA's own programs ask for it
_VIDEO, _SYSTEM = 0x40, 0x3E


class Kind(enum.Enum):
    """What an object is made of, and who sees it."""

    VRAM = "video memory"
    WINDOW = "video memory seen by the host"
    RING = "contiguous video memory seen by the host"
    HOST = "host memory"
    NOTIFIER = "uncached system memory that only driver and host see"
    PINNED = "pages of the process"


KINDS = {Placement.DEVICE: Kind.VRAM, Placement.HOST_VISIBLE: Kind.WINDOW, Placement.HOST: Kind.HOST}
_ON_GPU = (Kind.VRAM, Kind.WINDOW, Kind.RING)


class Region:
    """One memory object: `nbytes` at `address`. PINNED memory is that at `pointer`; `owners` are the GPUs that reach it."""

    def __init__(self, objects: Objects, nbytes: int, kind: Kind, *, alignment: int = PAGE, pointer: int = 0) -> None:
        self.objects, self.kind = objects, kind
        self.driver = driver = objects.driver
        self.nbytes = -(-nbytes // PAGE) * PAGE
        self.owners: list[Objects] = []
        self.handle = 0
        far = kind in (Kind.VRAM, Kind.PINNED)
        self.address = (driver.far if far else driver.near)(self.nbytes, alignment)
        self._range = False
        objects.enter()
        try:
            self._make(pointer)
            if kind is not Kind.NOTIFIER:
                driver.rm.uvm(f"can't make a range of {self.nbytes} bytes", "UVM_CREATE_EXTERNAL_RANGE", base=self.address,
                              length=self.nbytes)
                self._range = True
                self.share(objects)
        except BaseException:
            undo(self._give_back)
            raise

    def _make(self, pointer: int) -> None:
        objects, driver, kind = self.objects, self.driver, self.kind
        what = f"can't allocate {self.nbytes} bytes of {kind.value} for {objects.name}"
        if kind is Kind.HOST:
            with reported_as(what):
                driver.system.mmap(-1, self.nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, 0,
                                   self.address)
            driver.private(self.address, self.nbytes)
        if kind in (Kind.HOST, Kind.PINNED):
            self.handle = driver.rm.pin(what, objects.device, objects.fd, pointer or self.address, self.nbytes, flags(
                NVOS02_FLAGS, PHYSICALITY="NONCONTIGUOUS", COHERENCY="CACHED", MAPPING="NO_MAP"))
            return
        on_gpu, huge = kind in _ON_GPU, self.nbytes % HUGE == 0 and self.address % HUGE == 0 and kind in _ON_GPU
        attr = flags(ATTR, LOCATION="VIDMEM" if on_gpu else "PCI", PAGE_SIZE="HUGE" if huge else "DEFAULT",
                     PHYSICALITY="CONTIGUOUS" if kind is Kind.RING else "ALLOW_NONCONTIGUOUS")
        attr2 = flags(ATTR2, ZBC="PREFER_NO_ZBC", GPU_CACHEABLE="YES" if on_gpu else "NO",
                      PAGE_SIZE_HUGE="2MB" if huge else "DEFAULT")
        options = AllocFlag.IGNORE_BANK_PLACEMENT | AllocFlag.ALIGNMENT_FORCE | AllocFlag.MEMORY_HANDLE_PROVIDED \
            | AllocFlag.MAP_NOT_REQUIRED | (AllocFlag.PERSISTENT_VIDMEM if on_gpu else 0)
        self.handle = driver.rm.alloc(
            what, objects.device, _VIDEO if on_gpu else _SYSTEM, owner=driver.rm.client,
            type=MemoryType.IMAGE if on_gpu else MemoryType.NOTIFIER, flags=options, attr=attr, attr2=attr2, format=FORMAT,
            size=self.nbytes, limit=self.nbytes - 1, alignment=HUGE if huge else PAGE)
        if kind is not Kind.VRAM:
            objects.map_cpu(self.handle, self.nbytes, self.address, system=not on_gpu)
            driver.private(self.address, self.nbytes)

    def share(self, objects: Objects) -> None:
        """Let a GPU reach it too, at the same address."""
        if objects in self.owners:
            return
        if objects is not self.objects and self.kind in _ON_GPU:
            objects.befriend(self.objects)
        rm, attributes = self.driver.rm, {"gpuUuid": {"uuid": objects.uuid}, "gpuMappingType": Mapping_.ReadWriteAtomic}
        rm.uvm(f"can't map {self.nbytes} bytes to {objects.name}", "UVM_MAP_EXTERNAL_ALLOCATION", base=self.address,
               length=self.nbytes, rmCtrlFd=rm.fd, hClient=rm.client, hMemory=self.handle, gpuAttributesCount=1,
               perGpuAttributes=[attributes])
        self.owners.append(objects)

    def release(self) -> None:
        """Unmap and free it. Raises InvalidArgument where it was released before."""
        if not self.handle:
            raise InvalidArgument(f"{self.nbytes} bytes at {self.address:#x} can't be unmapped",
                                  evidence="they were unmapped before")
        self._give_back()

    def _give_back(self) -> None:
        driver = self.driver
        handle, self.handle = self.handle, 0
        if driver.abandoned:  # nothing of it is in this process, and something else may be at that address
            return
        actions: list[Callable[[], object]] = []
        if self._range and not driver.closed:
            actions.append(lambda: driver.rm.uvm("can't free a range", "UVM_FREE", base=self.address, length=self.nbytes))
        self._range = False
        actions.append(lambda: driver.system.munmap(self.address, self.nbytes))
        if handle and not driver.closed:
            actions.append(lambda: driver.rm.free(self.objects.device, handle))
        undo(*actions, self.objects.leave)

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.address + self.nbytes


class GpuMemory:
    """Memory of one kind as an allocator's source."""

    def __init__(self, objects: Objects, name: str, kind: Kind, limit: int) -> None:
        self.objects, self.name, self.kind, self.limit = objects, name, kind, limit
        self.granule = PAGE if kind in _ON_GPU else LINES
        self._regions: dict[int, Region] = {}

    def map(self, nbytes: int, alignment: int) -> int:
        try:
            region = Region(self.objects, nbytes, self.kind, alignment=alignment)
        except OutOfMemory as error:
            raise OutOfMemory(f"the {self.name} has no {nbytes} bytes left",
                              evidence=f"asked {nbytes}, free {self.available()} of {self.limit} as the driver says; "
                                       f"{error.evidence}") from error
        self._regions[region.address] = region
        return region.address

    def unmap(self, address: int, nbytes: int) -> None:
        self._regions.pop(address).release()

    def available(self) -> int:
        if self.kind is Kind.HOST:
            return host_available(self.objects.driver.system)
        try:
            return self.objects.memory_info(FbInfo.HEAP_FREE)[0] << 10
        except DevrtError:  # an allocation will say what is wrong
            return self.limit

    def region(self, address: int) -> Region | None:
        """The memory object an address lies in."""
        return next((region for region in list(self._regions.values()) if address in region), None)
