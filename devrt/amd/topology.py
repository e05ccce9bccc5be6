"""What amdkfd says of the machine: CPUs and GPUs as nodes, their memory, caches and links, from sysfs.

Sources: Linux drivers/gpu/drm/amd/amdkfd/kfd_topology.c (files, property names), kfd_crat.h (link flags), kfd_queue.c (save
areas). Sizes are in bytes, clocks in MHz, bandwidths in MB/s. A node that a device cgroup hides answers EPERM; it is left
out and named in `hidden`. The driver counts changes in generation_id, so a snapshot during one is taken again.
"""

from __future__ import annotations

import enum
import errno
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from devrt.device import DeviceNotFound, DriverMismatch, PermissionDenied
from devrt.ioctl.errors import devrt_error, errno_name
from devrt.ioctl.system import System

BASE = "/sys/class/kfd/kfd/topology"
ATTEMPTS = 8  # snapshots until the generation holds still
PAGE = 4096  # of the GPU

_NEWER = "use a kernel of Linux 6.1 or newer; `devrt doctor` names the one that runs"
_HIDDEN = (errno.EPERM, errno.EACCES)
_DECIMAL = re.compile(r"(\w+) (\d+)")


class HeapType(enum.IntEnum):
    SYSTEM = 0
    VRAM_PUBLIC = 1  # all of it CPU-visible
    VRAM_PRIVATE = 2


class LinkType(enum.IntEnum):
    UNDEFINED = 0
    HYPERTRANSPORT = 1
    PCIE = 2
    QPI = 5
    XGMI = 11


class LinkFlag(enum.IntFlag):
    ENABLED = 1
    NON_COHERENT = 2
    NO_ATOMICS_32_BIT = 4
    NO_ATOMICS_64_BIT = 8
    NO_PEER_TO_PEER_DMA = 16


class CacheType(enum.IntFlag):
    DATA = 1
    INSTRUCTION = 2
    CPU = 4
    SIMD = 8


@dataclass(frozen=True)
class MemoryBank:
    heap_type: int  # of HeapType
    size: int
    width: int  # bits
    clock: int


@dataclass(frozen=True)
class Cache:
    level: int
    size: int
    line: int
    type: CacheType


@dataclass(frozen=True)
class Link:
    type: int  # of LinkType, where that names it
    node_from: int
    node_to: int
    weight: int
    min_bandwidth: int
    max_bandwidth: int
    sdma_engine_mask: int  # engines that the driver recommends for this link; 0: no matter
    flags: LinkFlag

    @property
    def name(self) -> str:
        return LinkType(self.type).name if self.type in LinkType._value2member_map_ else f"link type {self.type}"


@dataclass(frozen=True)
class SaveArea:
    """Sizes of the memory that a compute queue's waves are saved to, as CREATE_QUEUE asks for them, in bytes.

    cwsr: of one XCC, control stack included; debug: of one XCC, behind them all; total: what to allocate.
    """

    control_stack: int
    cwsr: int
    debug: int
    total: int


@dataclass(frozen=True)
class Node:
    """One CPU or GPU. Counts are of the whole node: an SPX partition's XCCs together."""

    number: int
    gpu_id: int  # 0: a CPU
    name: str
    target: int  # gfx_target_version: major * 10000 + minor * 100 + step
    cpu_cores: int
    simds: int
    simds_per_cu: int
    waves_per_simd: int
    wave_size: int
    lds_bytes: int  # of a compute unit
    arrays: int
    arrays_per_engine: int
    cus_per_array: int
    scratch_slots_per_cu: int
    xccs: int
    sdma_engines: int
    sdma_xgmi_engines: int
    sdma_queues_per_engine: int
    compute_queues: int
    max_clock: int
    vendor_id: int
    device_id: int
    location_id: int
    domain: int
    drm_render_minor: int
    hive_id: int
    unique_id: int
    capability: int
    mec_firmware: int
    sdma_firmware: int
    cwsr_size: int  # 0: this kernel does not say
    control_stack_size: int
    banks: tuple[MemoryBank, ...] = ()
    caches: tuple[Cache, ...] = ()
    io_links: tuple[Link, ...] = ()
    p2p_links: tuple[Link, ...] = ()
    properties: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_gpu(self) -> bool:
        return self.gpu_id != 0

    @property
    def gfx(self) -> str:
        """LLVM's name: gfx90a, gfx1100; "" of a CPU."""
        return f"gfx{self.target // 10000}{self.target // 100 % 100:x}{self.target % 100:x}" if self.target else ""

    @property
    def compute_units(self) -> int:
        return self.simds // self.simds_per_cu if self.simds_per_cu else 0

    @property
    def vram(self) -> int:
        return sum(bank.size for bank in self.banks if bank.heap_type in (HeapType.VRAM_PUBLIC, HeapType.VRAM_PRIVATE))

    @property
    def large_bar(self) -> bool:
        """Whether the CPU sees all of the memory."""
        return any(bank.heap_type == HeapType.VRAM_PUBLIC for bank in self.banks)

    @property
    def render_path(self) -> str:
        return f"/dev/dri/renderD{self.drm_render_minor}"

    @property
    def pci_address(self) -> str:
        return f"{self.domain:04x}:{self.location_id >> 8 & 0xFF:02x}:{self.location_id >> 3 & 31:02x}.{self.location_id & 7}"

    @functools.cached_property
    def save_area(self) -> SaveArea:
        """From the node where the kernel says, else by the formula of kfd_queue.c."""
        cus = self.compute_units // self.xccs
        gfx9 = self.target < 100100
        waves = min(cus * 40, self.arrays // self.arrays_per_engine * 512) if gfx9 else cus * 32
        stack = _round_up(40 + waves * (8 if gfx9 else 12) + 8, PAGE)
        if self.target // 10000 == 10:
            stack = min(stack, 0x7000)
        lds = self.lds_bytes if self.target == 90500 else 0x10000
        groups = _round_up(cus * (_VGPR_BYTES.get(self.target, 0x40000) + 0x4000 + lds + 0x1000), PAGE)
        stack = self.control_stack_size or stack
        cwsr = self.cwsr_size or stack + groups
        debug = _round_up(waves * 32, 64)
        return SaveArea(stack, cwsr, debug, _round_up((cwsr + debug) * self.xccs, PAGE))


# Bytes of vector registers of a compute unit, by target; 0x40000 where not listed. kfd_queue.c, kfd_get_vgpr_size_per_cu.
_VGPR_BYTES = {90008: 0x80000, 90010: 0x80000, 90400: 0x80000, 90401: 0x80000, 90402: 0x80000, 90500: 0x80000,
               110000: 0x60000, 110001: 0x60000, 110501: 0x60000, 120000: 0x60000, 120001: 0x60000}


@dataclass(frozen=True)
class Hidden:
    """A node that this process may not see, and how that showed."""

    number: int
    why: str


@dataclass(frozen=True)
class Reach:
    """Whether one GPU may read and write another's memory; `why` says over what, or what forbids it."""

    possible: bool
    why: str
    link: Link | None = None


@dataclass(frozen=True)
class Topology:
    generation: int
    nodes: tuple[Node, ...]
    hidden: tuple[Hidden, ...] = ()

    @property
    def gpus(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.is_gpu)

    def node(self, number: int) -> Node:
        """Raises DeviceNotFound, with the reason where the node is hidden."""
        for node in self.nodes:
            if node.number == number:
                return node
        why = next((hidden.why for hidden in self.hidden if hidden.number == number), "the driver lists no such node")
        raise DeviceNotFound(f"there is no node {number} to use", evidence=why)

    def gpu(self, index: int) -> Node:
        """The GPU of that place among those that can be seen. Raises DeviceNotFound or PermissionDenied."""
        if 0 <= index < len(self.gpus):
            return self.gpus[index]
        seen = f"the compute driver shows {len(self.gpus)} GPU{'' if len(self.gpus) == 1 else 's'}"
        if self.hidden:
            raise PermissionDenied(f"there is no GPU {index} to use", evidence=f"{seen}; node {self.hidden[0].number}: "
                                   f"{self.hidden[0].why}", remedy="in a container, pass the GPU's render node to it: "
                                   "--device /dev/dri/renderD128")
        raise DeviceNotFound(f"there is no GPU {index} to use", evidence=seen)

    def reach(self, source: Node, target: Node) -> Reach:
        """Whether `source` may map the memory of `target`."""
        if not source.is_gpu or not target.is_gpu:
            return Reach(False, f"node {(target if source.is_gpu else source).number} is no GPU")
        if source.number == target.number:
            return Reach(True, "the same GPU")
        links = [link for link in (*source.io_links, *source.p2p_links) if link.node_to == target.number]
        refused = [f"the {link.name} link forbids peer-to-peer DMA" for link in links
                   if link.flags & LinkFlag.NO_PEER_TO_PEER_DMA]
        refused += [f"the {link.name} link is not enabled" for link in links if not link.flags & LinkFlag.ENABLED]
        if refused:
            return Reach(False, refused[0], links[0])
        for link in links:
            if link.type != LinkType.XGMI:
                return Reach(True, f"over {link.name}", link)
            if source.hive_id and source.hive_id == target.hive_id:
                return Reach(True, "over XGMI, in one hive", link)
            return Reach(False, f"an XGMI link, but hives {source.hive_id:#x} and {target.hive_id:#x}", link)
        if not target.large_bar:
            return Reach(False, f"no link, and the CPU does not see all memory of node {target.number} (no large BAR)")
        return Reach(False, f"the driver lists no link from node {source.number} to node {target.number}: it needs "
                            "CONFIG_HSA_AMD_P2P, amdgpu.pcie_p2p=1 and PCIe peer-to-peer between the slots")


def read(system: System, *, caches: bool = True, base: str = BASE) -> Topology:
    """A snapshot. `caches` may be left out: there are hundreds, one file each.

    Raises DeviceNotFound without the driver, PermissionDenied, and DriverMismatch for files that say nothing devrt knows.
    """
    reader = _Reader(system, base)
    for _ in range(ATTEMPTS):
        before = reader.generation()
        try:
            nodes, hidden = _snapshot(reader, caches)
        except (DriverMismatch, DeviceNotFound):
            if reader.generation() == before:
                raise
            continue
        if reader.generation() == before:
            return Topology(before, nodes, hidden)
    raise DriverMismatch("the topology changes while it is read", evidence=f"{base}/generation_id changed {ATTEMPTS} times",
                         remedy="wait until GPUs are no longer added or reset")


class _Reader:
    """Files below one folder, with what is wrong with them said."""

    def __init__(self, system: System, base: str) -> None:
        self.system, self.base = system, base

    def text(self, path: str) -> str:
        try:
            return self.system.read_text(f"{self.base}/{path}")
        except OSError as error:
            if error.errno in _HIDDEN and path.startswith("nodes/"):
                raise
            if error.errno == errno.ENOENT:
                raise DriverMismatch(f"the compute driver has no file {path}", evidence=f"ENOENT on {self.base}/{path}",
                                     remedy=_NEWER) from error
            raise devrt_error(error, f"{path} of the compute driver can't be read") from error

    def number(self, path: str) -> int:
        text = self.text(path).strip()
        if not text.isdecimal():
            raise _garbage(f"{self.base}/{path}", text)
        return int(text)

    def numbers(self, path: str) -> dict[str, int]:
        """Lines of `name value`; a line of another form is refused, but for text values (sibling_map, platform_oem)."""
        found = {}
        for line in self.text(path).splitlines():
            match = _DECIMAL.fullmatch(line.rstrip())
            if match:
                found[match[1]] = int(match[2])
            elif not line.startswith(("sibling_map", "platform_")):
                raise _garbage(f"{self.base}/{path}", line)
        return found

    def generation(self) -> int:
        try:
            text = self.system.read_text(f"{self.base}/generation_id").strip()
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise DeviceNotFound("AMD's compute driver is not there", evidence=f"ENOENT on {self.base}/generation_id",
                                     remedy="sudo modprobe amdgpu, with a kernel of CONFIG_HSA_AMD; then run `devrt doctor`"
                                     ) from error
            raise devrt_error(error, "the topology of AMD's compute driver can't be read") from error
        if not text.isdecimal():
            raise _garbage(f"{self.base}/generation_id", text)
        return int(text)

    def folders(self, path: str) -> list[int]:
        """The numbered entries of a folder, in order; none where it is missing."""
        try:
            names = self.system.list_dir(f"{self.base}/{path}")
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if name.isdecimal())


def _snapshot(reader: _Reader, caches: bool) -> tuple[tuple[Node, ...], tuple[Hidden, ...]]:
    nodes, hidden = [], []
    try:
        numbers = reader.folders("nodes")
    except OSError as error:
        raise devrt_error(error, "the nodes of AMD's compute driver can't be listed") from error
    for number in numbers:
        try:
            nodes.append(_node(reader, number, caches))
        except OSError as error:
            if error.errno not in _HIDDEN:
                raise devrt_error(error, f"node {number} of the compute driver can't be read") from error
            hidden.append(Hidden(number, f"{errno_name(error.errno)} on {error.filename or f'nodes/{number}'}: a device cgroup "
                                         "hides it"))
    return tuple(nodes), tuple(hidden)


# Node's fields that the driver has always had, and the property each is read from.
_NEEDED = {
    "cpu_cores": "cpu_cores_count", "simds": "simd_count", "simds_per_cu": "simd_per_cu", "waves_per_simd": "max_waves_per_simd",
    "wave_size": "wave_front_size", "arrays": "array_count", "arrays_per_engine": "simd_arrays_per_engine",
    "cus_per_array": "cu_per_simd_array", "scratch_slots_per_cu": "max_slots_scratch_cu", "target": "gfx_target_version",
    "vendor_id": "vendor_id", "device_id": "device_id", "location_id": "location_id", "drm_render_minor": "drm_render_minor",
    "sdma_engines": "num_sdma_engines", "compute_queues": "num_cp_queues",
}
# Those that some kernel may lack, or that only GPUs have: property and what stands for it.
_OPTIONAL = {
    "xccs": ("num_xcc", 1), "sdma_xgmi_engines": ("num_sdma_xgmi_engines", 0),
    "sdma_queues_per_engine": ("num_sdma_queues_per_engine", 0), "max_clock": ("max_engine_clk_fcompute", 0),
    "domain": ("domain", 0), "hive_id": ("hive_id", 0), "unique_id": ("unique_id", 0), "capability": ("capability", 0),
    "mec_firmware": ("fw_version", 0), "sdma_firmware": ("sdma_fw_version", 0), "cwsr_size": ("cwsr_size", 0),
    "control_stack_size": ("ctl_stack_size", 0),
}


def _node(reader: _Reader, number: int, caches: bool) -> Node:
    """Raises OSError of EPERM where the node is hidden."""
    path = f"nodes/{number}"
    gpu_id = reader.number(f"{path}/gpu_id")
    name = reader.text(f"{path}/name").strip()
    found = reader.numbers(f"{path}/properties")
    missing = [property for property in _NEEDED.values() if property not in found]
    if missing:
        raise DriverMismatch(f"node {number} of the compute driver lacks {', '.join(missing)}",
                             evidence=f"{reader.base}/{path}/properties", remedy=_NEWER)
    if found["simd_count"] and not gpu_id:
        raise DriverMismatch(f"the compute driver lists a GPU without an id as node {number}",
                             evidence=f"gpu_id 0, simd_count {found['simd_count']} in {reader.base}/{path}",
                             remedy="read why the driver gave it up: sudo dmesg | grep -i kfd")
    for property in ("simd_per_cu", "simd_arrays_per_engine", "gfx_target_version") if gpu_id else ():
        if not found[property]:
            raise _garbage(f"{reader.base}/{path}/properties", f"{property} 0")
    fields = {name: found[property] for name, property in _NEEDED.items()}
    fields |= {name: found.get(property, instead) for name, (property, instead) in _OPTIONAL.items()}
    fields["xccs"] = fields["xccs"] or 1
    return Node(
        number=number, gpu_id=gpu_id, name=name, lds_bytes=found.get("lds_size_in_kb", 0) << 10,
        banks=tuple(MemoryBank(row["heap_type"], row["size_in_bytes"], row.get("width", 0), row.get("mem_clk_max", 0))
                    for row in _rows(reader, path, "mem_banks", found, "heap_type", "size_in_bytes")),
        caches=tuple(Cache(row["level"], row["size"] << 10, row.get("cache_line_size", 0), CacheType(row.get("type", 0) & 15))
                     for row in _rows(reader, path, "caches", found, "level", "size")) if caches else (),
        io_links=tuple(_link(row) for row in _rows(reader, path, "io_links", found, *_LINK)),
        p2p_links=tuple(_link(row) for row in _rows(reader, path, "p2p_links", found, *_LINK)),
        properties=found, **fields)


_LINK = ("type", "node_from", "node_to", "weight", "min_bandwidth", "max_bandwidth", "flags")


def _link(row: Mapping[str, int]) -> Link:
    return Link(row["type"], row["node_from"], row["node_to"], row["weight"], row["min_bandwidth"], row["max_bandwidth"],
                row.get("recommended_sdma_engine_id_mask", 0), LinkFlag(row["flags"] & 31))


def _rows(reader: _Reader, path: str, folder: str, properties: Mapping[str, int], *needed: str) -> list[dict[str, int]]:
    """The property files of one folder, as many as the node's properties count."""
    listed = reader.folders(f"{path}/{folder}")
    count = properties.get(f"{folder}_count", len(listed))
    if len(listed) != count:
        raise DriverMismatch(f"{path} counts {count} {folder}, but lists {len(listed)}",
                             evidence=f"{reader.base}/{path}/{folder}",
                             remedy="read the topology again; if it stays, report it with `devrt doctor --record`")
    rows = [reader.numbers(f"{path}/{folder}/{index}/properties") for index in listed]
    for index, row in zip(listed, rows, strict=True):
        missing = [name for name in needed if name not in row]
        if missing:
            raise DriverMismatch(f"{path}/{folder}/{index} lacks {', '.join(missing)}",
                                 evidence=f"{reader.base}/{path}/{folder}/{index}/properties",
                                 remedy=_NEWER)
    return rows


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _garbage(path: str, line: str) -> DriverMismatch:
    return DriverMismatch("the compute driver's topology says what devrt can't read", evidence=f"{path}: {line[:80]!r}",
                          remedy="report it with `devrt doctor --record`; use a mainline kernel meanwhile")
