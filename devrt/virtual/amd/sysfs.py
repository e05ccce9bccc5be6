"""The files of a virtual AMD machine: KFD's topology, each card's device folder, the PCI bus, the amdgpu module.

    tree = build(machine, host_processors=16, host_memory=64 << 30)
    tree.text("/sys/class/kfd/kfd/topology/generation_id")
    devrt.virtual.tree.write_tree(tree, folder)        for programs that open files themselves

Formats: Linux kfd_topology.c (topology), pm/amdgpu_pm.c and amdgpu_ras.c (device folder), pci-sysfs.c (bus).
"""

from __future__ import annotations

import posixpath
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from devrt.virtual.amd.machine import HOST_WEIGHT, GpuModel, GpuNode, Link, Machine
from devrt.virtual.tree import Tree

TOPOLOGY = "/sys/devices/virtual/kfd/kfd/topology"
# What a virtual machine answers for; below these the host is not asked.
OWNED = ("/dev/kfd", "/dev/dri", "/sys/class/kfd", "/sys/devices/virtual/kfd", "/sys/class/drm", "/sys/bus/pci",
         "/sys/devices/pci0000:00", "/sys/module/amdgpu")
DRM_MAJOR, KFD_MAJOR = 226, 235  # KFD's is given out when the module loads
_AMD = 0x1002



class Live(Protocol):
    """What changes while the machine runs: bytes of GPU `index`."""

    def vram_used(self, index: int) -> int: ...
    def gtt_used(self, index: int) -> int: ...


class Idle:
    """A machine on which nothing runs."""

    def vram_used(self, index: int) -> int: return 0
    def gtt_used(self, index: int) -> int: return 0


def build(machine: Machine, *, host_processors: int = 1, host_memory: int = 16 << 30, live: Live | None = None) -> Tree:
    """Every file of the machine. Sizes in bytes."""
    tree, now = Tree(), live or Idle()
    _topology(tree, machine, host_processors, host_memory, now)
    for gpu in machine.gpus:
        _card(tree, gpu, now)
        _drm(tree, gpu)
    tree.nodes["/dev/kfd"] = KFD_MAJOR, 0
    tree.files |= {
        "/sys/devices/virtual/kfd/kfd/dev": f"{KFD_MAJOR}:0\n",
        "/sys/devices/virtual/kfd/kfd/uevent": f"MAJOR={KFD_MAJOR}\nMINOR=0\nDEVNAME=kfd\n",
        "/sys/module/amdgpu/initstate": "live\n",
        "/sys/module/amdgpu/refcnt": "0\n",
        "/sys/module/amdgpu/parameters/ppfeaturemask": "0xfff7bfff\n",
        "/sys/module/amdgpu/parameters/vm_fragment_size": "-1\n",
        "/sys/module/amdgpu/parameters/noretry": "-1\n",
        "/sys/module/amdgpu/parameters/send_sigterm": "0\n",
        "/sys/module/amdgpu/parameters/pcie_p2p": "N\n" if machine.topology.endswith("-nop2p") else "Y\n",
        "/sys/class/drm/version": "drm 1.1.0 20060810\n",
    }
    tree.links |= {"/sys/class/kfd/kfd": "../../devices/virtual/kfd/kfd",
                   f"/sys/dev/char/{KFD_MAJOR}:0": "../../devices/virtual/kfd/kfd",
                   "/sys/devices/virtual/kfd/kfd/subsystem": "../../../../class/kfd"}
    tree.empty.add("/sys/module/amdgpu/holders")
    tree.index()
    return tree


def device_folder(gpu: GpuNode) -> str:
    """A card's own folder: behind a root port of its own."""
    return f"{_port(gpu)}/{gpu.pci}"


def _port(gpu: GpuNode) -> str:
    return f"/sys/devices/pci0000:00/0000:00:{gpu.index + 1:02x}.1"


# ---------------------------------------------------------------------------------------------------------------------
# Topology


def _topology(tree: Tree, machine: Machine, processors: int, memory: int, live: Live) -> None:
    tree.files[f"{TOPOLOGY}/generation_id"] = "1\n"
    tree.files[f"{TOPOLOGY}/system_properties"] = _properties({"platform_oem": 0, "platform_id": 0, "platform_rev": 0})
    host_links = [_link(Link(2, HOST_WEIGHT, gpu.host_bandwidth), 0, gpu.node) for gpu in machine.gpus]
    _node(tree, 0, 0, "", _host_properties(processors, len(host_links)), [_bank(0, memory, 64, 2400)], [], host_links, [])
    for gpu in machine.gpus:
        model = gpu.model
        io_links: _Rows = [_link(Link(2, HOST_WEIGHT, gpu.host_bandwidth), gpu.node, 0)]
        p2p_links: _Rows = []
        for peer in machine.gpus:
            link = machine.link(gpu.index, peer.index)
            if link is not None:
                (io_links if link.xgmi else p2p_links).append(_link(link, gpu.node, peer.node))
        caches = list(_caches(model))
        properties = _gpu_properties(gpu, len(caches), len(io_links), len(p2p_links))
        bank = _bank(1, model.vram_bytes, model.vram_bits, model.memory_khz // 1000)
        _node(tree, gpu.node, gpu.gpu_id, model.asic, properties, [bank], caches, io_links, p2p_links)
        tree.files[f"{TOPOLOGY}/nodes/{gpu.node}/mem_banks/0/used_memory"] = _number(live.vram_used, gpu.index)


_Rows = list[dict[str, "int | str"]]


def _node(tree: Tree, number: int, gpu_id: int, name: str, properties: Mapping[str, int], *lists: _Rows) -> None:
    base = f"{TOPOLOGY}/nodes/{number}"
    tree.files[f"{base}/gpu_id"] = f"{gpu_id}\n"
    tree.files[f"{base}/name"] = f"{name}\n"
    tree.files[f"{base}/properties"] = _properties(properties)
    for kind, rows in zip(("mem_banks", "caches", "io_links", "p2p_links"), lists, strict=True):
        for n, row in enumerate(rows):
            tree.files[f"{base}/{kind}/{n}/properties"] = _properties(row)


# In the order that node_show prints them.
_COMMON = ("cpu_cores_count", "simd_count", "mem_banks_count", "caches_count", "io_links_count", "p2p_links_count",
           "cpu_core_id_base", "simd_id_base", "max_waves_per_simd", "lds_size_in_kb", "gds_size_in_kb", "num_gws",
           "wave_front_size", "array_count", "simd_arrays_per_engine", "cu_per_simd_array", "simd_per_cu",
           "max_slots_scratch_cu", "gfx_target_version", "vendor_id", "device_id", "location_id", "domain",
           "drm_render_minor", "hive_id", "num_sdma_engines", "num_sdma_xgmi_engines", "num_sdma_queues_per_engine",
           "num_cp_queues", "cwsr_size", "ctl_stack_size")


def _host_properties(processors: int, links: int) -> dict[str, int]:
    known = {"cpu_cores_count": processors, "mem_banks_count": 1, "io_links_count": links}
    return {**{name: known.get(name, 0) for name in _COMMON}, "max_engine_clk_ccompute": 3000}


def _gpu_properties(gpu: GpuNode, caches: int, io_links: int, p2p_links: int) -> dict[str, int]:
    model = gpu.model
    known = {
        "simd_count": model.simds, "mem_banks_count": 1, "caches_count": caches, "io_links_count": io_links,
        "p2p_links_count": p2p_links, "simd_id_base": _simd_base(gpu), "max_waves_per_simd": model.waves_per_simd,
        "lds_size_in_kb": model.lds_kib, "num_gws": 64, "wave_front_size": model.wave, "array_count": model.arrays,
        "simd_arrays_per_engine": model.arrays_per_engine, "cu_per_simd_array": model.cus_per_array,
        "simd_per_cu": model.simd_per_cu, "max_slots_scratch_cu": model.scratch_slots_per_cu,
        "gfx_target_version": model.target, "vendor_id": _AMD, "device_id": model.device_id, "location_id": gpu.location_id,
        "drm_render_minor": gpu.render_minor, "hive_id": gpu.hive_id, "num_sdma_engines": model.sdma_engines,
        "num_sdma_xgmi_engines": model.sdma_xgmi_engines, "num_sdma_queues_per_engine": model.sdma_queues_per_engine,
        "num_cp_queues": model.cp_queues, "cwsr_size": model.save_area.cwsr, "ctl_stack_size": model.save_area.control_stack,
    }
    return {**{name: known.get(name, 0) for name in _COMMON}, "max_engine_clk_fcompute": model.clock_khz // 1000,
            "local_mem_size": 0, "fw_version": model.mec_firmware, "capability": model.capability, "debug_prop": model.debug_prop,
            "sdma_fw_version": model.sdma_firmware, "unique_id": gpu.unique_id, "num_xcc": model.xccs,
            "max_engine_clk_ccompute": 3000}


def _simd_base(gpu: GpuNode) -> int:
    return 0x80001000 + gpu.index * 0x1000


def _bank(heap: int, size: int, width: int, clock: int) -> dict[str, int | str]:
    return {"heap_type": heap, "size_in_bytes": size, "flags": 0, "width": width, "mem_clk_max": clock}


def _link(link: Link, source: int, target: int) -> dict[str, int | str]:
    return {"type": link.type, "version_major": 0, "version_minor": 0, "node_from": source, "node_to": target,
            "weight": link.weight, "min_latency": 0, "max_latency": 0, "min_bandwidth": link.bandwidth if link.xgmi else 312,
            "max_bandwidth": link.bandwidth, "recommended_transfer_size": 0, "recommended_sdma_engine_id_mask": 0, "flags": 1}


def _caches(model: GpuModel) -> Iterator[dict[str, int | str]]:
    """Vector L1 of each compute unit; instruction and scalar L1 of two; GL1 of each array; L2 of each XCC; L3."""
    data, code, units = 1 | 8, 2 | 8, model.compute_units
    per_array, per_xcc = units // model.arrays, units // model.xccs
    rows = [(1, model.l1_kib, data, 1), (1, 32 if model.major > 9 else 64, code, 2), (1, 16, data, 2),
            (1, model.gl1_kib, data, per_array), (2, model.l2_kib, data, per_xcc), (3, model.l3_kib, data, units)]
    for level, kib, kind, shared in rows:
        for first in range(0, units, shared) if kib else ():
            owned = ",".join("1" if first <= unit < first + shared else "0" for unit in range(first, min(units, first + shared)))
            yield {"processor_id_low": 0x80001000 + first, "level": level, "size": kib, "cache_line_size": 128,
                   "cache_lines_per_tag": 1, "association": 16, "latency": 0, "type": kind, "sibling_map": owned}


def _properties(values: Mapping[str, int | str]) -> str:
    return "".join(f"{name} {value}\n" for name, value in values.items())


def _number(ask: Callable[[int], int], index: int) -> Callable[[], str]:
    return lambda: f"{ask(index)}\n"


# ---------------------------------------------------------------------------------------------------------------------
# The card on the bus and at DRM


# IP versions of NBIF and base addresses of GC and SDMA in dwords, as in Linux drivers/gpu/drm/amd/include/*_ip_offset.h.
_NBIF = {"gfx1100": (4, 3, 0), "gfx1201": (6, 3, 1), "gfx1030": (3, 3, 0), "gfx90a": (7, 4, 4), "gfx942": (7, 9, 0)}
_BASES = {9: (0x2000, 0xA000), 10: (0x1260, 0xA000, 0x2402C00), 11: (0x1260, 0xA000, 0x1C000, 0x2402C00),
          12: (0x1260, 0xA000, 0x1C000, 0x2402C00)}
_HWID = {"gc": 11, "sdma": 42, "nbif": 108}


def _card(tree: Tree, gpu: GpuNode, live: Live) -> None:
    model, port, base = gpu.model, _port(gpu), device_folder(gpu)
    instinct = model.major == 9
    link = {"current_link_speed": f"{model.pcie_gts:.1f} GT/s PCIe\n", "max_link_speed": f"{model.pcie_gts:.1f} GT/s PCIe\n",
            "current_link_width": "16\n", "max_link_width": "16\n"}
    errors = {kind: "".join(f"{row} 0\n" for row in ("Undefined", "DLP", "TLP")) + f"TOTAL_ERR_{total} 0\n"
              for kind, total in (("correctable", "COR"), ("nonfatal", "NONFATAL"), ("fatal", "FATAL"))}
    files: dict[str, str | bytes | Callable[[], str]] = {
        "class": "0x120000\n" if instinct else "0x030000\n", "vendor": f"{_AMD:#06x}\n", "device": f"{model.device_id:#06x}\n",
        "revision": f"{model.revision:#04x}\n", "subsystem_vendor": f"{_AMD:#06x}\n", "subsystem_device": "0x0e3b\n",
        "uevent": f"DRIVER=amdgpu\nPCI_CLASS={'120000' if instinct else '30000'}\nPCI_ID=1002:{model.device_id:04X}\n"
                  f"PCI_SUBSYS_ID=1002:0E3B\nPCI_SLOT_NAME={gpu.pci}\n",
        "unique_id": f"{gpu.unique_id:016x}\n", "product_name": f"{model.name}\n", "vbios_version": "113-VIRTUAL-001\n",
        "enable": "1\n", "numa_node": "0\n", "local_cpulist": "0\n", **link,
        **{f"aer_dev_{kind}": text for kind, text in errors.items()},
        "pcie_replay_count": "0\n",
        "power_dpm_force_performance_level": "auto\n", "power_dpm_state": "performance\n",
        "pp_dpm_sclk": f"0: 500Mhz *\n1: {model.clock_khz // 1000}Mhz\n",
        "pp_dpm_mclk": f"0: 96Mhz *\n1: {model.memory_khz // 1000}Mhz\n",
        "pp_dpm_pcie": f"0: {model.pcie_gts:.1f}GT/s, x16 *\n",
        "gpu_busy_percent": "0\n", "mem_busy_percent": "0\n",
        "mem_info_vram_total": f"{model.vram_bytes}\n", "mem_info_vis_vram_total": f"{model.vram_bytes}\n",
        "mem_info_gtt_total": f"{gpu.gtt_usable}\n", "mem_info_vram_vendor": "samsung\n",
        "mem_info_vram_used": _number(live.vram_used, gpu.index), "mem_info_vis_vram_used": _number(live.vram_used, gpu.index),
        "mem_info_gtt_used": _number(live.gtt_used, gpu.index), "thermal_throttling_logging": f"{gpu.pci}: thermal throttling "
        "logging enabled, with interval 60 seconds\n",
        **{f"fw_version/{name}_fw_version": f"{version:#010x}\n" for name, version in firmware(model).items()},
        **{f"hwmon/hwmon{gpu.index}/{name}": f"{value}\n" for name, value in _sensors(model).items()},
    }
    if model.gfx != "gfx942":  # which has a later format
        files["gpu_metrics"] = _metrics(model)
    if instinct:
        files |= {f"ras/{block}_err_count": "ue: 0\nce: 0\n" for block in ("umc", "gfx", "sdma", "mmhub", "pcie_bif", "hdp")}
        files["ras/features"] = "feature mask: 0x00000fff\n"
        files["ras/gpu_vram_bad_pages"] = "\n"
        files["current_compute_partition"], files["available_compute_partition"] = "SPX\n", "SPX\n"
        files["current_memory_partition"] = "NPS1\n"
    if gpu.hive_id:
        files |= {"xgmi_device_id": f"{gpu.unique_id}\n", "xgmi_error": "0\n", "xgmi_hive_info/xgmi_hive_id": f"{gpu.hive_id}\n"}
    blocks = (("gc", model.gc), ("sdma", model.sdma), ("nbif", _NBIF[model.gfx]))
    for name, version in blocks:
        for part, value in zip(("major", "minor", "revision"), version, strict=True):
            files[f"ip_discovery/die/0/{_HWID[name]}/0/{part}"] = f"{value}\n"
        bases = "".join(f"0x{address:08X}\n" for address in (*_BASES[model.major], 0, 0, 0, 0)[:5])
        files[f"ip_discovery/die/0/{_HWID[name]}/0/base_addr"] = bases
    tree.files |= {f"{base}/{name}": text for name, text in files.items()}
    tree.files |= {f"{port}/{name}": text for name, text in
                   {"class": "0x060400\n", "vendor": "0x1022\n", "device": "0x14db\n", **link}.items()}
    up = "../../.."
    tree.links |= {
        f"{base}/driver": f"{up}/../bus/pci/drivers/amdgpu", f"{base}/subsystem": f"{up}/../bus/pci",
        f"{port}/subsystem": f"{up}/bus/pci",
        f"/sys/bus/pci/devices/{posixpath.basename(port)}": f"{up}{port.removeprefix('/sys')}",
        f"/sys/bus/pci/devices/{gpu.pci}": f"{up}{base.removeprefix('/sys')}",
        f"/sys/bus/pci/drivers/amdgpu/{gpu.pci}": f"{up}/..{base.removeprefix('/sys')}",
    }


def _drm(tree: Tree, gpu: GpuNode) -> None:
    base = device_folder(gpu)
    for name, minor in ((f"card{gpu.index}", gpu.index), (f"renderD{gpu.render_minor}", gpu.render_minor)):
        place = f"{base}/drm/{name}"
        tree.nodes[f"/dev/dri/{name}"] = DRM_MAJOR, minor
        tree.files[f"{place}/dev"] = f"{DRM_MAJOR}:{minor}\n"
        tree.files[f"{place}/uevent"] = f"MAJOR={DRM_MAJOR}\nMINOR={minor}\nDEVNAME=dri/{name}\nDEVTYPE=drm_minor\n"
        tree.links |= {f"{place}/device": f"../../../{gpu.pci}", f"{place}/subsystem": "../../../../../../class/drm",
                       f"/sys/class/drm/{name}": f"../..{place.removeprefix('/sys')}",
                       f"/sys/dev/char/{DRM_MAJOR}:{minor}": f"../..{place.removeprefix('/sys')}"}


def firmware(model: GpuModel) -> dict[str, int]:
    """Versions of firmware by the name of its file in fw_version/."""
    mes = {"mes": 0x52, "mes_kiq": 0x6C, "imu": 0x0B1F4200} if model.has_mes else {}
    return {"mec": model.mec_firmware, "sdma": model.sdma_firmware, "rlc": 0x76, "smc": 0x004E5500, "sos": 0x00310039, **mes}


# At rest: mV, mW of hwmon's µW, °C.
IDLE = {"vddgfx_mv": 706, "temperature_c": 41, "sclk_mhz": 500, "mclk_mhz": 96, "fan_rpm": 0}


def idle_power_w(model: GpuModel) -> int:
    return model.power_w // 10


def _sensors(model: GpuModel) -> dict[str, int | str]:
    temperature = {f"temp{n}_{what}": value for n, label in ((1, "edge"), (2, "junction"), (3, "mem"))
                   for what, value in (("label", label), ("input", IDLE["temperature_c"] * 1000), ("crit", 100_000),
                                       ("emergency", 105_000))}
    return {"name": "amdgpu", **temperature, "power1_average": idle_power_w(model) * 1_000_000,
            "power1_cap": model.power_w * 1_000_000, "power1_cap_min": 0, "power1_cap_max": model.power_w * 1_150_000,
            "fan1_input": IDLE["fan_rpm"], "in0_label": "vddgfx", "in0_input": IDLE["vddgfx_mv"], "freq1_label": "sclk",
            "freq1_input": IDLE["sclk_mhz"] * 1_000_000, "freq2_label": "mclk", "freq2_input": IDLE["mclk_mhz"] * 1_000_000}


def _metrics(model: GpuModel) -> bytes:
    """gpu_metrics v1.3 (kgd_pp_interface.h, gpu_metrics_v1_3); all ones: not available."""
    buffer = bytearray(b"\xff" * 120)
    struct.pack_into("<HBB", buffer, 0, 120, 1, 3)
    struct.pack_into("<3H", buffer, 4, *[IDLE["temperature_c"]] * 3)
    struct.pack_into("<4H", buffer, 16, 0, 0, 0, idle_power_w(model))
    struct.pack_into("<QQ", buffer, 24, 0, 0)
    struct.pack_into("<H", buffer, 54, IDLE["sclk_mhz"])
    struct.pack_into("<H", buffer, 58, IDLE["mclk_mhz"])
    struct.pack_into("<IHHH", buffer, 68, 0, IDLE["fan_rpm"], 16, int(model.pcie_gts * 10))
    return bytes(buffer)
