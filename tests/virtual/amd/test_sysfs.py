"""The files of a virtual machine: as devrt's doctor and other readers take them, and against recorded facts of real cards."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest

from devrt.amd import topology
from devrt.device import DeviceNotFound
from devrt.virtual.amd import sysfs
from devrt.virtual.amd.machine import MODELS, parse_topology
from devrt.virtual.amd.sysfs import TOPOLOGY, build
from devrt.virtual.tree import Tree, write_tree
from tests.virtual.amd.kfd_client import ALL_GFX, machine

NODES = f"{TOPOLOGY}/nodes"


def properties(tree: Tree, path: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", tree.text(path), re.MULTILINE)}


def links(tree: Tree, node: int, kind: str) -> list[dict[str, int]]:
    base = f"{NODES}/{node}/{kind}"
    return [properties(tree, f"{base}/{name}/properties") for name in sorted(tree.children.get(base, ()), key=int)]


@pytest.mark.parametrize("gfx", ALL_GFX)
def test_counts_are_those_of_the_folders(gfx: str) -> None:
    for count in (1, 3):
        tree = build(parse_topology(f"{count}x{gfx}"), host_processors=8)
        assert sorted(tree.children[NODES]) == [str(n) for n in range(count + 1)]
        for node in range(count + 1):
            about = properties(tree, f"{NODES}/{node}/properties")
            for kind, name in (("mem_banks", "mem_banks_count"), ("caches", "caches_count"), ("io_links", "io_links_count"),
                               ("p2p_links", "p2p_links_count")):
                assert len(tree.children.get(f"{NODES}/{node}/{kind}", ())) == about[name], (node, kind)
        assert properties(tree, f"{NODES}/0/properties")["cpu_cores_count"] == 8


def test_gfx1100_is_the_recorded_card() -> None:
    """Values of a Radeon RX 7900 XTX as public topology dumps have them."""
    tree = build(parse_topology("gfx1100"))
    about = properties(tree, f"{NODES}/1/properties")
    expected = {"simd_count": 192, "caches_count": 206, "wave_front_size": 32, "array_count": 12, "gfx_target_version": 110000,
                "device_id": 29772, "capability": 671588992, "fw_version": 2140, "num_sdma_queues_per_engine": 6,
                "max_engine_clk_fcompute": 2482, "local_mem_size": 0, "drm_render_minor": 128, "location_id": 768}
    assert {name: about[name] for name in expected} == expected
    names = [line.split()[0] for line in tree.text(f"{NODES}/1/properties").splitlines()]
    assert names[:6] == ["cpu_cores_count", "simd_count", "mem_banks_count", "caches_count", "io_links_count", "p2p_links_count"]
    assert len(names) == len(set(names))
    bank = properties(tree, f"{NODES}/1/mem_banks/0/properties")
    assert (bank["heap_type"], bank["size_in_bytes"]) == (1, 25753026560)


# Of ROCm's formula for real cards; gfx1100 and gfx1201 agree with recorded drivers.
@pytest.mark.parametrize(("gfx", "control", "cwsr", "allocation"), [
    ("gfx90a", 0x9000, 0x400F000, 0x402F000), ("gfx942", 0x3000, 0x1621000, 0xB167000), ("gfx1030", 0x7000, 0x1A97000, 0x1AAB000),
    ("gfx1100", 0xA000, 0x2BEA000, 0x2C02000), ("gfx1201", 0x7000, 0x1D47000, 0x1D57000)])
def test_save_areas(gfx: str, control: int, cwsr: int, allocation: int) -> None:
    area = MODELS[gfx].save_area
    assert (area.control_stack, area.cwsr, area.allocation) == (control, cwsr, allocation)


def test_links() -> None:
    hive = build(parse_topology("4xgfx942"))
    for node in range(1, 5):
        found = links(hive, node, "io_links")
        assert [(link["type"], link["node_to"]) for link in found] == [(2, 0), *((11, n) for n in range(1, 5) if n != node)]
        assert not links(hive, node, "p2p_links")
    assert len({properties(hive, f"{NODES}/{n}/properties")["hive_id"] for n in range(1, 5)} - {0}) == 1
    assert len(links(hive, 0, "io_links")) == 4
    pcie = build(parse_topology("2xgfx1100"))
    assert [(link["type"], link["node_to"], link["weight"]) for link in links(pcie, 1, "p2p_links")] == [(2, 2, 40)]
    alone = build(parse_topology("2xgfx1100-nop2p"))
    assert not links(alone, 1, "p2p_links") and len(links(alone, 1, "io_links")) == 1
    assert properties(alone, f"{NODES}/1/properties")["hive_id"] == 0


def test_topologies_that_do_not_exist() -> None:
    for name in ("gfx1", "0xgfx1100", "17xgfx1100", "gfx1100-x", "", "2x", "gfx1100x2"):
        with pytest.raises(DeviceNotFound, match="no virtual AMD machine"):
            parse_topology(name)
    assert len({gpu.gpu_id for gpu in parse_topology("16xgfx942").gpus}) == 16


@pytest.mark.parametrize("topology", ["gfx1100", "8xgfx942", "2xgfx90a"])
def test_every_link_leads_somewhere(topology: str) -> None:
    tree = build(parse_topology(topology))
    for link in tree.links:
        place = tree.resolve(link)
        assert place in tree.children or place in tree.files, link
    gpu = parse_topology(topology).gpus[0]
    by_driver = tree.resolve(f"/sys/bus/pci/drivers/amdgpu/{gpu.pci}")
    assert by_driver == tree.resolve(f"/sys/class/drm/renderD{gpu.render_minor}/device") == sysfs.device_folder(gpu)
    assert tree.resolve(f"/sys/dev/char/226:{gpu.render_minor}/device/driver") == "/sys/bus/pci/drivers/amdgpu"


@pytest.mark.parametrize("gfx", ALL_GFX)
def test_device_files(gfx: str) -> None:
    tree = build(parse_topology(gfx))
    device = "/sys/class/drm/card0/device"
    assert int(tree.text(f"{device}/device"), 16) == MODELS[gfx].device_id
    assert int(tree.text(f"{device}/mem_info_vram_total")) == MODELS[gfx].vram_bytes
    assert re.fullmatch(r"\d+\.\d GT/s PCIe\n", tree.text(f"{device}/current_link_speed"))
    block = f"{device}/ip_discovery/die/0/11/0"
    assert tuple(int(tree.text(f"{block}/{part}")) for part in ("major", "minor", "revision")) == MODELS[gfx].gc
    assert tree.text(f"{device}/hwmon/hwmon0/temp1_input") == "41000\n"
    if gfx != "gfx942":
        size, kind, content = struct.unpack_from("<HBB", tree.read(f"{device}/gpu_metrics"))
        assert (size, kind, content, len(tree.read(f"{device}/gpu_metrics"))) == (120, 1, 3, 120)


def test_written_to_a_folder(tmp_path: Path) -> None:
    tree = build(parse_topology("2xgfx1100"))
    write_tree(tree, tmp_path)
    write_tree(tree, tmp_path)  # again over what is there
    for path in tree.files:
        assert (tmp_path / path[1:]).read_bytes() == tree.read(path)
    assert list((tmp_path / "sys/module/amdgpu/holders").iterdir()) == []
    through = tmp_path / "sys/class/kfd/kfd/topology/nodes/2/gpu_id"
    assert through.read_text() == tree.text("/sys/class/kfd/kfd/topology/nodes/2/gpu_id")
    assert os.path.realpath(tmp_path / "sys/class/drm/renderD129/device").startswith(str(tmp_path))


@pytest.mark.parametrize("gfx", ALL_GFX)
def test_the_backend_reads_the_same(gfx: str) -> None:
    with machine(f"2x{gfx}") as system:
        found = topology.read(system)
    gpus = [node for node in found.nodes if node.is_gpu]
    assert len(gpus) == 2 and len(found.nodes) == 3
    for gpu, expected in zip(gpus, parse_topology(f"2x{gfx}").gpus, strict=True):
        model = expected.model
        area = model.save_area
        assert (gpu.gfx, gpu.gpu_id, gpu.compute_units, gpu.wave_size, gpu.vram, gpu.pci_address, gpu.drm_render_minor) == (
            gfx, expected.gpu_id, model.compute_units, model.wave, model.vram_bytes, expected.pci, expected.render_minor)
        assert (gpu.save_area.control_stack, gpu.save_area.cwsr, gpu.save_area.debug, gpu.save_area.total) == (
            area.control_stack, area.cwsr, area.debug, area.allocation)
        assert gpu.large_bar and {link.type for link in gpu.io_links + gpu.p2p_links} == {2, 11 if model.sdma_xgmi_engines else 2}
