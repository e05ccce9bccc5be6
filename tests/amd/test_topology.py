"""KFD's topology from generated sysfs trees. Witnesses: property values of public dumps (gfx1100, gfx942, gfx1201), and
save-area sizes of a recorded driver (gfx1100) and of a node that names them (gfx1201); the other sizes follow the formula
that the kernel and libhsakmt share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from devrt.amd.topology import ATTEMPTS, BASE, CacheType, HeapType, LinkFlag, LinkType, Topology, read
from devrt.device import DeviceNotFound, DevrtError, DriverMismatch, PermissionDenied
from devrt.ioctl.machine import MachineSystem
from devrt.ioctl.system import TEXT_LIMIT

# target, device, simds, simds a CU, waves, wave size, arrays, arrays an engine, CUs an array, scratch slots, XCCs, VRAM in GiB
MODELS = {
    "gfx90a": (90010, 0x740C, 440, 4, 8, 64, 8, 1, 14, 32, 1, 64),
    "gfx942": (90402, 0x74A1, 1216, 4, 8, 64, 32, 1, 10, 32, 8, 192),
    "gfx1030": (100300, 0x73AF, 160, 2, 16, 32, 8, 2, 10, 32, 1, 16),
    "gfx1100": (110000, 0x744C, 192, 2, 16, 32, 12, 2, 8, 32, 1, 24),
    "gfx1201": (120001, 0x7551, 128, 2, 16, 32, 8, 2, 8, 32, 1, 32),
}


def lines(values: Mapping[str, Any]) -> str:
    return "".join(f"{name} {value}\n" for name, value in values.items())


def link(kind: int, source: int, target: int, flags: int = 1, weight: int = 20) -> str:
    return lines({"type": kind, "version_major": 0, "version_minor": 0, "node_from": source, "node_to": target, "weight": weight,
                  "min_latency": 0, "max_latency": 0, "min_bandwidth": 50000, "max_bandwidth": 64000,
                  "recommended_transfer_size": 0, "recommended_sdma_engine_id_mask": 6, "flags": flags})


def cpu(number: int, gpus: int) -> dict[str, str]:
    node = f"{BASE}/nodes/{number}"
    names = ("simd_count", "simd_per_cu", "max_waves_per_simd", "wave_front_size", "array_count", "simd_arrays_per_engine",
             "cu_per_simd_array", "max_slots_scratch_cu", "gfx_target_version", "vendor_id", "device_id", "location_id",
             "drm_render_minor", "num_sdma_engines", "num_cp_queues", "caches_count", "p2p_links_count")
    return {f"{node}/gpu_id": "0\n", f"{node}/name": "\n",
            f"{node}/properties": lines({"cpu_cores_count": 32, "mem_banks_count": 1, "io_links_count": gpus,
                                         **dict.fromkeys(names, 0)}),
            f"{node}/mem_banks/0/properties": lines({"heap_type": 0, "size_in_bytes": 1 << 36, "flags": 0, "width": 64,
                                                     "mem_clk_max": 3200}),
            **{f"{node}/io_links/{i}/properties": link(2, number, number + 1 + i) for i in range(gpus)}}


def gpu(model: str, number: int, io: list[str], p2p: list[str] | None = None, *, heap: int = 1, **more: int) -> dict[str, str]:
    target, device, simds, per_cu, waves, wave, arrays, per_engine, cus, slots, xccs, gib = MODELS[model]
    node, p2p = f"{BASE}/nodes/{number}", p2p or []
    properties = {
        "cpu_cores_count": 0, "simd_count": simds, "mem_banks_count": 1, "caches_count": 2, "io_links_count": len(io),
        "p2p_links_count": len(p2p), "max_waves_per_simd": waves, "lds_size_in_kb": 64, "gds_size_in_kb": 0, "num_gws": 64,
        "wave_front_size": wave, "array_count": arrays, "simd_arrays_per_engine": per_engine, "cu_per_simd_array": cus,
        "simd_per_cu": per_cu, "max_slots_scratch_cu": slots, "gfx_target_version": target, "vendor_id": 0x1002,
        "device_id": device, "location_id": (number + 2) << 8, "domain": 0, "drm_render_minor": 127 + number, "hive_id": 0,
        "num_sdma_engines": 2, "num_sdma_xgmi_engines": 0, "num_sdma_queues_per_engine": 8, "num_cp_queues": 24,
        "max_engine_clk_fcompute": 2100, "local_mem_size": 0, "fw_version": 192, "capability": 671588992,
        "sdma_fw_version": 25, "unique_id": 0x1234, "num_xcc": xccs, **more}
    banks = {"heap_type": heap, "size_in_bytes": gib << 30, "flags": 0, "width": 384, "mem_clk_max": 1249}
    cache = {"processor_id_low": 0, "level": 1, "size": 32, "cache_line_size": 128, "cache_lines_per_tag": 1, "association": 0,
             "latency": 0, "type": 9}
    files = {f"{node}/gpu_id": f"{40000 + number}\n", f"{node}/name": "ip discovery\n", f"{node}/properties": lines(properties),
             f"{node}/mem_banks/0/properties": lines(banks), f"{node}/caches/0/properties": lines(cache) + "sibling_map 1,1,0\n",
             f"{node}/caches/1/properties": lines({**cache, "level": 2, "size": 6144})}
    files |= {f"{node}/io_links/{i}/properties": text for i, text in enumerate(io)}
    return files | {f"{node}/p2p_links/{i}/properties": text for i, text in enumerate(p2p)}


def machine(*parts: dict[str, str], **sections: Any) -> MachineSystem:
    files = {f"{BASE}/generation_id": "2\n", f"{BASE}/system_properties": "platform_oem 1\n"}
    for part in parts:
        files |= part
    return MachineSystem({"files": files, **sections})


def one(model: str, **more: Any) -> MachineSystem:
    return machine(cpu(0, 1), gpu(model, 1, [link(2, 1, 0)], **more))


def hive() -> Topology:
    nodes = [gpu("gfx942", n, [link(2, n, 0), *(link(11, n, m, weight=15) for m in range(1, 9) if m != n)], hive_id=0xABC)
             for n in range(1, 9)]
    return read(machine(cpu(0, 8), *nodes))


@pytest.mark.parametrize(("model", "cus"), [("gfx90a", 110), ("gfx942", 304), ("gfx1030", 80), ("gfx1100", 96), ("gfx1201", 64)])
def test_a_machine_of_each_model(model: str, cus: int) -> None:
    found = read(one(model))
    assert found.generation == 2 and [node.is_gpu for node in found.nodes] == [False, True]
    node = found.gpu(0)
    assert (node.gfx, node.compute_units, node.lds_bytes, node.render_path) == (model, cus, 65536, "/dev/dri/renderD128")
    assert node.pci_address == "0000:03:00.0" and node.vram == MODELS[model][-1] << 30 and node.large_bar
    assert node.gpu_id == 40001 and node.name == "ip discovery" and node.xccs == MODELS[model][-2]
    assert [cache.size for cache in node.caches] == [32 << 10, 6144 << 10]
    assert node.caches[0].type == CacheType.DATA | CacheType.SIMD
    assert node.io_links[0].type == LinkType.PCIE and node.io_links[0].sdma_engine_mask == 6
    assert found.nodes[0].banks[0].heap_type == HeapType.SYSTEM and found.nodes[0].cpu_cores == 32 and found.nodes[0].gfx == ""
    assert not read(one(model), caches=False).gpu(0).caches


@pytest.mark.parametrize(("model", "stack", "cwsr", "total"), [
    ("gfx90a", 0x9000, 0x400F000, 0x402F000), ("gfx942", 0x3000, 0x1621000, 0xB167000), ("gfx1030", 0x7000, 0x1A97000, 0x1AAB000),
    ("gfx1100", 0xA000, 0x2BEA000, 0x2C02000), ("gfx1201", 0x7000, 0x1D47000, 0x1D57000)])
def test_save_areas(model: str, stack: int, cwsr: int, total: int) -> None:
    area = read(one(model)).gpu(0).save_area
    assert (area.control_stack, area.cwsr, area.total) == (stack, cwsr, total)


def test_a_kernel_that_names_the_save_area_is_believed() -> None:
    node = read(one("gfx1201", cwsr_size=30699520, ctl_stack_size=28672)).gpu(0)
    assert node.save_area == read(one("gfx1201")).gpu(0).save_area, "a real node and the formula agree"
    assert read(one("gfx1201", cwsr_size=8192, ctl_stack_size=4096)).gpu(0).save_area.cwsr == 8192


def test_eight_gpus_in_a_hive_reach_each_other() -> None:
    found = hive()
    assert len(found.gpus) == 8 and all(len(node.io_links) == 8 for node in found.gpus)
    for source in found.gpus:
        for target in found.gpus:
            reach = found.reach(source, target)
            assert reach.possible and ("XGMI" in reach.why) == (source != target)
    assert not found.reach(found.gpus[0], found.nodes[0]).possible


@pytest.mark.parametrize(("p2p", "heap", "possible", "says"), [
    ([link(2, 1, 2)], 1, True, "over PCIE"),
    ([link(2, 1, 2, LinkFlag.ENABLED | LinkFlag.NO_PEER_TO_PEER_DMA)], 1, False, "forbids peer-to-peer"),
    ([link(2, 1, 2, 0)], 1, False, "not enabled"),
    ([link(11, 1, 2)], 1, False, "hives"),
    ([], 1, False, "pcie_p2p=1"),
    ([], 2, False, "no large BAR")])
def test_two_gpus_reach_each_other_only_where_the_driver_says(p2p: list[str], heap: int, possible: bool, says: str) -> None:
    found = read(machine(cpu(0, 2), gpu("gfx1100", 1, [link(2, 1, 0)], p2p), gpu("gfx1100", 2, [link(2, 2, 0)], heap=heap)))
    reach = found.reach(found.gpu(0), found.gpu(1))
    assert reach.possible is possible and says in reach.why


@pytest.mark.parametrize("file", ["gpu_id", "properties", "name"])
def test_a_node_that_a_cgroup_hides_is_left_out_and_named(file: str) -> None:
    system = machine(cpu(0, 2), gpu("gfx1100", 1, [link(2, 1, 0)]), gpu("gfx1100", 2, [link(2, 2, 0)]),
                     refused={f"{BASE}/nodes/1/{file}": "EPERM"})
    found = read(system)
    assert [node.number for node in found.nodes] == [0, 2] and found.gpu(0).number == 2
    assert found.hidden[0].number == 1 and "EPERM" in found.hidden[0].why
    with pytest.raises(PermissionDenied, match="no GPU 1"):
        found.gpu(1)
    with pytest.raises(DeviceNotFound) as raised:
        found.node(1)
    assert "cgroup" in raised.value.evidence


@pytest.mark.parametrize(("damage", "error", "says"), [
    ({"nodes/1/gpu_id": "0x9c41"}, DriverMismatch, "0x9c41"),
    ({"nodes/1/gpu_id": "0"}, DriverMismatch, "without an id"),
    ({"nodes/1/properties": None}, DriverMismatch, "no file nodes/1/properties"),
    ({"nodes/1/name": None}, DriverMismatch, "no file nodes/1/name"),
    ({"nodes/1/properties": "simd_count many\n"}, DriverMismatch, "simd_count many"),
    ({"nodes/1/properties": "simd_count 192\n"}, DriverMismatch, "lacks cpu_cores_count"),
    ({"nodes/1/mem_banks/0/properties": None}, DriverMismatch, "counts 1 mem_banks"),
    ({"nodes/1/mem_banks/0/properties": "heap_type 1\n"}, DriverMismatch, "lacks size_in_bytes"),
    ({"nodes/1/io_links/0/properties": "type 2\n"}, DriverMismatch, "lacks node_from"),
    ({"generation_id": "?"}, DriverMismatch, "'?'"),
    ({"generation_id": None}, DeviceNotFound, "modprobe amdgpu")])
def test_damage_is_said_with_its_file(damage: dict[str, str | None], error: type[DevrtError], says: str) -> None:
    files = {f"{BASE}/generation_id": "2\n"} | cpu(0, 1) | gpu("gfx1100", 1, [link(2, 1, 0)])
    for name, text in damage.items():
        if text is None:
            del files[f"{BASE}/{name}"]
        else:
            files[f"{BASE}/{name}"] = text
    with pytest.raises(error) as raised:
        read(MachineSystem({"files": files}))
    assert says in str(raised.value) and raised.value.remedy and BASE in raised.value.evidence


@pytest.mark.parametrize(("name", "error"), [("simd_per_cu", "simd_per_cu 0"), ("gfx_target_version", "gfx_target_version 0"),
                                             ("simd_arrays_per_engine", "simd_arrays_per_engine 0")])
def test_a_gpu_of_nothing_is_refused(name: str, error: str) -> None:
    with pytest.raises(DriverMismatch) as raised:
        read(one("gfx1100", **{name: 0}))
    assert error in raised.value.evidence


def test_a_topology_that_may_not_be_read_says_so() -> None:
    with pytest.raises(PermissionDenied):
        read(machine(refused={f"{BASE}/generation_id": "EACCES"}))
    with pytest.raises(PermissionDenied):
        read(machine(cpu(0, 0), refused={f"{BASE}/nodes": "EACCES"}))


def test_no_gpu_is_an_answer() -> None:
    found = read(machine(cpu(0, 0)))
    assert not found.gpus
    with pytest.raises(DeviceNotFound, match="no GPU 0"):
        found.gpu(0)


class Changing:
    """A machine whose generation moves on with every snapshot, until it holds still."""

    def __init__(self, inner: MachineSystem, changes: int) -> None:
        self.inner, self.left, self.reads = inner, changes, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read_text(self, path: str, limit: int = TEXT_LIMIT) -> str:
        if path.endswith("generation_id"):
            self.reads += 1
            self.left -= 1
            return f"{max(self.left, 0)}\n"
        if self.left > 0 and path.endswith("nodes/1/properties"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.inner.read_text(path, limit)


def test_a_snapshot_is_taken_again_while_the_generation_changes() -> None:
    system = Changing(one("gfx1100"), 5)
    assert read(system).gpu(0).gfx == "gfx1100"
    assert system.reads > 2
    with pytest.raises(DriverMismatch, match="changes while it is read"):
        read(Changing(one("gfx1100"), 2 * ATTEMPTS + 3))
