"""What a virtual NVIDIA machine is, as data: models of GPUs, how many, the links between them, the driver that runs.

    sm_90, sm_86, ..  h200, rtx4090, ..   one GPU          2xsm_90          two on NVLink (what models with NVLink do)
    2xsm_86           PCIe peers          2xsm_86-nop2p    GPUs that don't reach each other
    8xsm_90-pcie      PCIe peers though the model has NVLink
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from devrt.device import DeviceNotFound
from devrt.ioctl.nv_alloc import EngineType, copy_engine
from devrt.ioctl.nv_classes import CHIPS, Class, Generation
from devrt.virtual.memory import pages
from devrt.virtual.nvidia import mig

DRIVER = "580.105.08"  # what runs where the URI names no other
USABLE = 2 << 30       # bytes of VRAM that can really be allocated where the URI names no other number
MOST_GPUS = 16


@dataclass(frozen=True)
class GpuModel:
    """One kind of GPU. Units are in the names; `tpcs` are of what is switched on, by GPC, `most_*` of the whole chip."""

    name: str
    key: str              # as a topology names it
    sm: int
    chip: str
    device_id: int
    architecture: int     # NV2080_CTRL_MC_ARCH_INFO_ARCHITECTURE_*
    implementation: int
    sm_version: int       # of GR_GET_INFO
    tpcs: tuple[int, ...]
    most_gpcs: int
    most_tpcs: int        # of one GPC
    warps_per_sm: int
    vram_bytes: int
    bus_bits: int
    l2_kib: int
    bar1_bytes: int
    clock_mhz: int        # highest
    memory_mhz: int
    power_w: int
    pcie_generation: int
    nvlinks: int
    nvlink_version: int   # NV2080_CTRL_NVLINK_STATUS_NVLINK_VERSION_*
    copy_engines: int
    ecc: bool
    display: bool         # class 0300 rather than 0302

    @property
    def generation(self) -> Generation:
        return CHIPS[self.chip]

    @property
    def sms(self) -> int:
        return 2 * sum(self.tpcs)

    @property
    def engines(self) -> tuple[int, ...]:
        """NV2080 engine types, in the order of ENGINES_V2."""
        return (EngineType.GRAPHICS, *(copy_engine(n) for n in range(self.copy_engines)))

    @property
    def classes(self) -> tuple[int, ...]:
        """What the device's class list holds, so far as the driver here makes objects of it."""
        generation = self.generation
        inline = Class.BLACKWELL_INLINE_TO_MEMORY_A if self.sm >= 100 else Class.KEPLER_INLINE_TO_MEMORY_B
        return tuple(int(one) for one in (
            *generation.channel, *generation.usermode, Class.FERMI_CONTEXT_SHARE_A, Class.FERMI_VASPACE_A, generation.compute,
            *generation.copy, Class.KEPLER_CHANNEL_GROUP_A, inline, Class.NV01_MEMORY_LOCAL_USER, Class.NV01_MEMORY_VIRTUAL,
            Class.RM_USER_SHARED_DATA))


_G = 1 << 30

# Sources: nvidia.com product pages and architecture papers (SMs, memory, clocks, power, L2), pci.ids (device ids),
# open-gpu-kernel-modules ctrl2080mc.h (architectures), nvidia-smi -q of public reports (BAR1, ECC, links).
MODELS: Mapping[str, GpuModel] = {model.key: model for model in (
    GpuModel(
        name="Tesla T4", key="t4", sm=75, chip="TU104", device_id=0x1EB8, architecture=0x160, implementation=4, sm_version=0x705,
        tpcs=(4, 4, 4, 4, 4), most_gpcs=6, most_tpcs=4, warps_per_sm=32, vram_bytes=16 * _G, bus_bits=256, l2_kib=4096,
        bar1_bytes=_G // 4, clock_mhz=1590, memory_mhz=5001, power_w=70, pcie_generation=3, nvlinks=0, nvlink_version=0,
        copy_engines=4, ecc=True, display=False),
    GpuModel(
        name="NVIDIA A100-SXM4-80GB", key="a100", sm=80, chip="GA100", device_id=0x20B2, architecture=0x170, implementation=0,
        sm_version=0x802, tpcs=(8, 8, 8, 8, 8, 7, 7), most_gpcs=8, most_tpcs=8, warps_per_sm=64, vram_bytes=80 * _G,
        bus_bits=5120, l2_kib=40960, bar1_bytes=128 * _G, clock_mhz=1410, memory_mhz=1593, power_w=400, pcie_generation=4,
        nvlinks=12, nvlink_version=5, copy_engines=10, ecc=True, display=False),
    GpuModel(
        name="NVIDIA GeForce RTX 3090", key="rtx3090", sm=86, chip="GA102", device_id=0x2204, architecture=0x170,
        implementation=2, sm_version=0x806, tpcs=(6, 6, 6, 6, 6, 6, 5), most_gpcs=7, most_tpcs=6, warps_per_sm=48,
        vram_bytes=24 * _G, bus_bits=384, l2_kib=6144, bar1_bytes=32 * _G, clock_mhz=2100, memory_mhz=9751, power_w=350,
        pcie_generation=4, nvlinks=0, nvlink_version=0, copy_engines=5, ecc=False, display=True),
    GpuModel(
        name="NVIDIA A10", key="a10", sm=86, chip="GA102", device_id=0x2236, architecture=0x170, implementation=2,
        sm_version=0x806, tpcs=(6, 6, 6, 6, 6, 6), most_gpcs=7, most_tpcs=6, warps_per_sm=48, vram_bytes=24 * _G, bus_bits=384,
        l2_kib=6144, bar1_bytes=32 * _G, clock_mhz=1695, memory_mhz=6251, power_w=150, pcie_generation=4, nvlinks=0,
        nvlink_version=0, copy_engines=5, ecc=True, display=False),
    GpuModel(
        name="NVIDIA GeForce RTX 4090", key="rtx4090", sm=89, chip="AD102", device_id=0x2684, architecture=0x190,
        implementation=2, sm_version=0x809, tpcs=(6, 6, 6, 6, 6, 6, 6, 6, 6, 5, 5), most_gpcs=12, most_tpcs=6, warps_per_sm=48,
        vram_bytes=24 * _G, bus_bits=384, l2_kib=73728, bar1_bytes=32 * _G, clock_mhz=3120, memory_mhz=10501, power_w=450,
        pcie_generation=4, nvlinks=0, nvlink_version=0, copy_engines=5, ecc=False, display=True),
    GpuModel(
        name="NVIDIA L4", key="l4", sm=89, chip="AD104", device_id=0x27B8, architecture=0x190, implementation=4,
        sm_version=0x809, tpcs=(6, 6, 6, 6, 5), most_gpcs=5, most_tpcs=6, warps_per_sm=48, vram_bytes=24 * _G, bus_bits=192,
        l2_kib=49152, bar1_bytes=32 * _G, clock_mhz=2040, memory_mhz=6251, power_w=72, pcie_generation=4, nvlinks=0,
        nvlink_version=0, copy_engines=5, ecc=True, display=False),
    GpuModel(
        name="NVIDIA H100 80GB HBM3", key="h100", sm=90, chip="GH100", device_id=0x2330, architecture=0x180, implementation=0,
        sm_version=0x900, tpcs=(9, 9, 8, 8, 8, 8, 8, 8), most_gpcs=8, most_tpcs=9, warps_per_sm=64, vram_bytes=80 * _G,
        bus_bits=5120, l2_kib=51200, bar1_bytes=128 * _G, clock_mhz=1980, memory_mhz=2619, power_w=700, pcie_generation=5,
        nvlinks=18, nvlink_version=7, copy_engines=10, ecc=True, display=False),
    GpuModel(
        name="NVIDIA H200", key="h200", sm=90, chip="GH100", device_id=0x2335, architecture=0x180, implementation=0,
        sm_version=0x900, tpcs=(9, 9, 8, 8, 8, 8, 8, 8), most_gpcs=8, most_tpcs=9, warps_per_sm=64, vram_bytes=141 * _G,
        bus_bits=6144, l2_kib=61440, bar1_bytes=256 * _G, clock_mhz=1980, memory_mhz=3201, power_w=700, pcie_generation=5,
        nvlinks=18, nvlink_version=7, copy_engines=10, ecc=True, display=False),
    GpuModel(
        name="NVIDIA GeForce RTX 5090", key="rtx5090", sm=120, chip="GB202", device_id=0x2B85, architecture=0x1B0,
        implementation=2, sm_version=0xA04, tpcs=(8, 8, 8, 8, 8, 8, 8, 8, 8, 7, 6), most_gpcs=12, most_tpcs=8, warps_per_sm=48,
        vram_bytes=32 * _G, bus_bits=512, l2_kib=98304, bar1_bytes=32 * _G, clock_mhz=3090, memory_mhz=14001, power_w=575,
        pcie_generation=5, nvlinks=0, nvlink_version=0, copy_engines=5, ecc=False, display=True),
)}

# What a generation's name stands for.
OF_SM: Mapping[str, str] = {
    "sm_75": "t4", "sm_80": "a100", "sm_86": "rtx3090", "sm_89": "rtx4090", "sm_90": "h200", "sm_120": "rtx5090"}


@dataclass(frozen=True)
class GpuNode:
    """One GPU in its place. `index` counts GPUs, and is minor number and device instance too."""

    model: GpuModel
    index: int
    vram_usable: int
    bar1_bytes: int
    instances: tuple[mig.GpuInstance, ...] | None = None  # None: MIG mode is off

    @property
    def bus(self) -> int:
        return 1 + 0x20 * (self.index % 7) + self.index // 7

    @property
    def pci(self) -> str:
        return f"0000:{self.bus:02x}:00.0"

    @property
    def gpu_id(self) -> int:
        """RM's number of a GPU: domain, bus and device (gpuGenerate32BitId)."""
        return self.bus << 8

    @property
    def uuid(self) -> bytes:
        return uuid.uuid5(uuid.NAMESPACE_OID, f"devrt {self.model.key} {self.index}").bytes

    @property
    def uuid_text(self) -> str:
        return f"GPU-{uuid.UUID(bytes=self.uuid)}"

    def instance_uuid(self, gpu_instance: int, compute_instance: int | None = None) -> bytes:
        return uuid.uuid5(uuid.UUID(bytes=self.uuid), f"{gpu_instance} {compute_instance}").bytes

    @property
    def registers(self) -> int:
        """Physical address of BAR0."""
        return 0xB0000000 + (self.index << 25)

    @property
    def aperture(self) -> int:
        """Physical address of BAR1."""
        return 0x10_0000_0000_00 + (self.index << 40)


@dataclass(frozen=True)
class Machine:
    """`links`: (index, index) of GPUs that reach each other's memory -> "nvlink" or "pcie"."""

    topology: str
    driver: str
    gpus: tuple[GpuNode, ...]
    links: Mapping[tuple[int, int], str] = field(default_factory=dict)


_TOPOLOGY = re.compile(r"(?:(?P<count>[1-9]\d?)x)?(?P<model>[a-z0-9_]+)(?:-(?P<way>nop2p|pcie))?")


def parse_topology(topology: str, *, driver: str = "", vram: int = USABLE, bar1: int = 0,
                   instances: str | None = None) -> Machine:
    """The machine of a topology's name; `vram` bytes of each GPU can be allocated, `bar1` of them be mapped at once (0: as much
    as the model maps); `instances` is what each is split into (devrt.virtual.nvidia.mig), None for MIG mode off. Raises
    DeviceNotFound."""
    match = _TOPOLOGY.fullmatch(topology)
    count = int(match["count"] or 1) if match else 0
    key = OF_SM.get(match["model"], match["model"]) if match else ""
    if not match or key not in MODELS or count > MOST_GPUS:
        raise DeviceNotFound(f"there is no virtual NVIDIA machine {topology!r}", remedy=(
            f"use [1-{MOST_GPUS}x]MODEL[-nop2p|-pcie] with MODEL one of {', '.join((*OF_SM, *MODELS))}"))
    model = MODELS[key]
    split = None if instances is None else mig.split(key, instances)
    gpus = tuple(GpuNode(model, index, min(pages(vram), model.vram_bytes), bar1 or model.bar1_bytes, split)
                 for index in range(count))
    between = "nvlink" if model.nvlinks and match["way"] is None else "pcie"
    links = {} if match["way"] == "nop2p" else {(a, b): between for a in range(count) for b in range(count) if a != b}
    return Machine(topology, driver or DRIVER, gpus, links)
