"""What a virtual AMD machine is, as data: models of GPUs, how many, and the links between them; and what an engine may
ask of the driver.

    gfx1100, gfx942, ..     one GPU          4xgfx942          four in an XGMI hive (what models with XGMI do)
    2xgfx1100               PCIe peers       2xgfx1100-nop2p   GPUs that don't reach each other
    4xgfx942-pcie           PCIe peers though the model has XGMI
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from devrt.device import DeviceNotFound
from devrt.ioctl.amdgpu import Family, VramType
from devrt.virtual.memory import PAGE, MemoryFault, pages

KFD_VERSION = 1, 18     # Linux 6.17
DRM_VERSION = 3, 64, 0  # Linux 6.17: amdgpu_drv.c, KMS_DRIVER_MAJOR and on
USABLE = 2 << 30        # bytes of VRAM and of GTT that can really be allocated, each, where the URI names no other number
FIRST_RENDER_MINOR = 128
DOORBELL_BYTES = 8192   # the slice of one process on one GPU: 1024 doorbells (kfd_doorbell.c)
EOP_BYTES = 4096        # kfd_queue.c


@dataclass(frozen=True)
class GpuModel:
    """One kind of GPU. Units are in the names; counts are of the whole GPU unless said."""

    gfx: str
    name: str
    asic: str             # the `name` file of its topology node
    target: int           # gfx_target_version
    device_id: int
    revision: int
    family: Family
    wave: int             # lanes of the wave that the driver names
    compute_units: int
    xccs: int
    simd_per_cu: int
    waves_per_simd: int
    scratch_slots_per_cu: int
    arrays: int           # array_count
    arrays_per_engine: int
    cus_per_array: int
    clock_khz: int        # highest engine clock
    memory_khz: int
    vram_bytes: int       # of the real one; what a machine lets be allocated is GpuNode.vram_usable
    vram_type: VramType
    vram_bits: int
    gc: tuple[int, int, int]
    sdma: tuple[int, int, int]
    sdma_engines: int
    sdma_xgmi_engines: int
    sdma_queues_per_engine: int
    cp_queues: int
    mec_firmware: int
    sdma_firmware: int
    capability: int
    debug_prop: int
    l1_kib: int
    gl1_kib: int          # per shader array, 0: none
    l2_kib: int           # per XCC
    l3_kib: int
    power_w: int
    pcie_gts: float
    vgpr_bytes_per_cu: int  # what a context save holds of one compute unit (kfd_queue.c)
    control_bytes_per_wave: int
    queues_per_process: int
    lds_kib: int = 64
    counter_khz: int = 100_000  # GPU clock counter

    @property
    def major(self) -> int:
        return self.target // 10000

    @property
    def simds(self) -> int:
        return self.compute_units * self.simd_per_cu

    @property
    def has_mes(self) -> bool:
        """The scheduler is firmware that user queues' pointers are mapped for in GTT."""
        return self.major >= 11

    @functools.cached_property
    def save_area(self) -> SaveArea:
        return SaveArea.of(self)


@dataclass(frozen=True)
class SaveArea:
    """Sizes in bytes of what a compute queue's waves are saved into (Linux kfd_queue.c, kfd_queue_ctx_save_restore_size)."""

    control_stack: int
    cwsr: int        # control stack and workgroup data of one XCC: ctx_save_restore_size
    debug: int
    allocation: int  # of all XCCs, debug memory included: what the buffer must have

    @classmethod
    def of(cls, model: GpuModel) -> SaveArea:
        cus = model.compute_units // model.xccs
        waves = cus * 32 if model.target >= 100100 else min(cus * 40, model.arrays // model.arrays_per_engine * 512)
        control = pages(40 + waves * model.control_bytes_per_wave + 8)
        if model.major == 10:
            control = min(control, 0x7000)
        groups = pages(cus * (model.vgpr_bytes_per_cu + 0x4000 + 0x10000 + 0x1000))
        debug = -(-waves * 32 // 64) * 64
        return cls(control, control + groups, debug, pages((control + groups + debug) * model.xccs))


# Sources: public KFD topology dumps of real cards (counts, clocks, firmware, capability of gfx1100, gfx942, gfx1201), Linux
# kfd_device.c (SDMA engines and queues), kfd_queue.c (save area), amdgpu_discovery.c (IP versions), amd.com product pages
# (memory, caches, power). Capability and firmware of gfx90a, gfx1030 and gfx1201 are made from the bits they must have.
MODELS: Mapping[str, GpuModel] = {model.gfx: model for model in (
    GpuModel(
        gfx="gfx1100", name="AMD Radeon RX 7900 XTX", asic="ip discovery", target=110000, device_id=0x744C, revision=0xC8,
        family=Family.GC_11_0_0, wave=32, compute_units=96, xccs=1, simd_per_cu=2, waves_per_simd=16, scratch_slots_per_cu=32,
        arrays=12, arrays_per_engine=2, cus_per_array=8, clock_khz=2_482_000, memory_khz=1_249_000, vram_bytes=25753026560,
        vram_type=VramType.GDDR6, vram_bits=384, gc=(11, 0, 0), sdma=(6, 0, 0), sdma_engines=2, sdma_xgmi_engines=0,
        sdma_queues_per_engine=6, cp_queues=8, mec_firmware=2140, sdma_firmware=20, capability=0x2807A280, debug_prop=1495,
        l1_kib=32, gl1_kib=256, l2_kib=6144, l3_kib=98304, power_w=339, pcie_gts=16.0, vgpr_bytes_per_cu=0x60000,
        control_bytes_per_wave=12, queues_per_process=127),
    GpuModel(
        gfx="gfx1201", name="AMD Radeon AI PRO R9700", asic="ip discovery", target=120001, device_id=0x7551, revision=0xC0,
        family=Family.GC_12_0_0, wave=32, compute_units=64, xccs=1, simd_per_cu=2, waves_per_simd=16, scratch_slots_per_cu=32,
        arrays=8, arrays_per_engine=2, cus_per_array=8, clock_khz=2_920_000, memory_khz=1_258_000, vram_bytes=34208743424,
        vram_type=VramType.GDDR6, vram_bits=256, gc=(12, 0, 1), sdma=(7, 0, 1), sdma_engines=2, sdma_xgmi_engines=0,
        sdma_queues_per_engine=8, cp_queues=8, mec_firmware=3010, sdma_firmware=20, capability=0x2807A280, debug_prop=1495,
        l1_kib=32, gl1_kib=0, l2_kib=8192, l3_kib=65536, power_w=300, pcie_gts=32.0, vgpr_bytes_per_cu=0x60000,
        control_bytes_per_wave=12, queues_per_process=127),
    GpuModel(
        gfx="gfx1030", name="AMD Radeon RX 6900 XT", asic="sienna_cichlid", target=100300, device_id=0x73AF, revision=0xC0,
        family=Family.NV, wave=32, compute_units=80, xccs=1, simd_per_cu=2, waves_per_simd=16, scratch_slots_per_cu=32,
        arrays=8, arrays_per_engine=2, cus_per_array=10, clock_khz=2_660_000, memory_khz=1_000_000, vram_bytes=17163091968,
        vram_type=VramType.GDDR6, vram_bits=256, gc=(10, 3, 0), sdma=(5, 2, 0), sdma_engines=4, sdma_xgmi_engines=0,
        sdma_queues_per_engine=8, cp_queues=8, mec_firmware=115, sdma_firmware=83, capability=0x2807A280, debug_prop=1495,
        l1_kib=16, gl1_kib=128, l2_kib=4096, l3_kib=131072, power_w=255, pcie_gts=16.0, vgpr_bytes_per_cu=0x40000,
        control_bytes_per_wave=12, queues_per_process=127),
    GpuModel(
        gfx="gfx90a", name="AMD Instinct MI250X", asic="aldebaran", target=90010, device_id=0x7408, revision=0x00,
        family=Family.AI, wave=64, compute_units=110, xccs=1, simd_per_cu=4, waves_per_simd=8, scratch_slots_per_cu=32,
        arrays=8, arrays_per_engine=1, cus_per_array=14, clock_khz=1_700_000, memory_khz=1_600_000, vram_bytes=68702699520,
        vram_type=VramType.HBM, vram_bits=4096, gc=(9, 4, 2), sdma=(4, 4, 0), sdma_engines=2, sdma_xgmi_engines=3,
        sdma_queues_per_engine=8, cp_queues=24, mec_firmware=78, sdma_firmware=8, capability=0x2C77A280, debug_prop=1511,
        l1_kib=16, gl1_kib=0, l2_kib=8192, l3_kib=0, power_w=560, pcie_gts=16.0, vgpr_bytes_per_cu=0x80000,
        control_bytes_per_wave=8, queues_per_process=127),
    GpuModel(
        gfx="gfx942", name="AMD Instinct MI300X", asic="ip discovery", target=90402, device_id=0x74A1, revision=0x00,
        family=Family.AI, wave=64, compute_units=304, xccs=8, simd_per_cu=4, waves_per_simd=8, scratch_slots_per_cu=32,
        arrays=32, arrays_per_engine=1, cus_per_array=10, clock_khz=2_100_000, memory_khz=1_300_000, vram_bytes=206141652992,
        vram_type=VramType.HBM, vram_bits=8192, gc=(9, 4, 3), sdma=(4, 4, 2), sdma_engines=2, sdma_xgmi_engines=14,
        sdma_queues_per_engine=8, cp_queues=24, mec_firmware=192, sdma_firmware=25, capability=0xAC77A280, debug_prop=1511,
        l1_kib=32, gl1_kib=0, l2_kib=4096, l3_kib=262144, power_w=750, pcie_gts=32.0, vgpr_bytes_per_cu=0x80000,
        control_bytes_per_wave=8, queues_per_process=255),
)}


@dataclass(frozen=True)
class Link:
    """A way from one node to another. Types as in topology: 2 PCIe, 11 XGMI; bandwidth in MB/s."""

    type: int
    weight: int
    bandwidth: int

    @property
    def xgmi(self) -> bool:
        return self.type == 11


HOST_WEIGHT = 20  # of PCIe between a GPU and its CPU
XGMI = Link(11, 15, 50_000)


@dataclass(frozen=True)
class GpuNode:
    """One GPU in its place. `index` counts GPUs, `node` is its topology node, `bus` its PCI bus."""

    model: GpuModel
    index: int
    gpu_id: int
    vram_usable: int
    gtt_usable: int
    hive_id: int = 0

    @property
    def node(self) -> int:
        return self.index + 1

    @property
    def bus(self) -> int:
        return 3 + 3 * self.index

    @property
    def location_id(self) -> int:
        return self.bus << 8

    @property
    def pci(self) -> str:
        return f"0000:{self.bus:02x}:00.0"

    @property
    def render_minor(self) -> int:
        return FIRST_RENDER_MINOR + self.index

    @property
    def unique_id(self) -> int:
        return 0x5EED_0000_0000_0000 | zlib.crc32(f"{self.model.gfx} {self.index} unique".encode())

    @property
    def host_bandwidth(self) -> int:
        """MB/s over sixteen lanes of PCIe."""
        return int(self.model.pcie_gts * 2000)


@dataclass(frozen=True)
class Machine:
    topology: str
    gpus: tuple[GpuNode, ...]
    links: Mapping[tuple[int, int], Link] = field(default_factory=dict)  # (index, index) of GPUs

    def link(self, first: int, second: int) -> Link | None:
        """How GPU `first` reaches the memory of GPU `second`; None where it can't."""
        return self.links.get((first, second))


_TOPOLOGY = re.compile(r"(?:(?P<count>[1-9]\d?)x)?(?P<gfx>gfx[0-9a-f]+)(?:-(?P<way>nop2p|pcie))?")
MOST_GPUS = 16


def parse_topology(topology: str, *, vram: int = USABLE, gtt: int = USABLE) -> Machine:
    """The machine of a topology's name; `vram` and `gtt` bytes of it can be allocated. Raises DeviceNotFound."""
    match = _TOPOLOGY.fullmatch(topology)
    count = int(match["count"] or 1) if match else 0
    if not match or match["gfx"] not in MODELS or count > MOST_GPUS:
        raise DeviceNotFound(f"there is no virtual AMD machine {topology!r}",
                             remedy=f"use [1-{MOST_GPUS}x]GFX[-nop2p|-pcie] with GFX one of {', '.join(MODELS)}")
    model, way = MODELS[match["gfx"]], match["way"]
    hive = model.sdma_xgmi_engines > 0 and count > 1 and way is None
    gpus = tuple(GpuNode(model, index, _gpu_id(model, index), min(pages(vram), model.vram_bytes // PAGE * PAGE), pages(gtt),
                         0x1337_0000_0000_0001 if hive else 0) for index in range(count))
    between = XGMI if hive else Link(2, 40, gpus[0].host_bandwidth)
    links = {} if way == "nop2p" else {(a, b): between for a in range(count) for b in range(count) if a != b}
    return Machine(topology, gpus, links)


def _gpu_id(model: GpuModel, index: int) -> int:
    """A number of 16 bits other than 0, as the driver hashes one of each card's properties; the low bits keep it unique."""
    return (zlib.crc32(model.gfx.encode()) & 0xFFF0 | 0x1000) + index


class Notify(Protocol):
    """What an engine tells the driver about one process on one GPU. May be called from any thread, the driver locks nothing
    that it holds while it calls an engine."""

    def interrupt(self, context_id: int) -> None:
        """A CP end of pipe or SDMA trap with its context id: an event's number, after its slot was written."""
        ...

    def memory_fault(self, fault: MemoryFault) -> None:
        """Evicts the process's queues on the GPU and sets its MEMORY events."""
        ...

    def hardware_exception(self, reset_type: int, cause: int, memory_lost: bool) -> None:
        """The GPU was reset (numbers of devrt.ioctl.kfd.ResetType and ResetCause): every process's queues on it are dead."""
        ...
