"""AMD's compute driver: the nodes it lists, those it hides, the ways between GPUs, and the limits of this process it needs.

Sources: Linux drivers/gpu/drm/amd/amdkfd/kfd_topology.c (nodes, links), Documentation/admin-guide/sysctl/vm.rst (limits).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from devrt.amd import packets, topology
from devrt.amd.topology import BASE, HeapType, LinkType, Node, Topology
from devrt.device import DevrtError, Unsupported
from devrt.doctor.findings import ERROR, NOTE, OK, WARNING, Finding, Reader
from devrt.doctor.gpus import Gpu

AMD = 0x1002
FIRMWARE_SETUP = "turn on resizable BAR and above-4G decoding in the firmware set-up"


@dataclass(frozen=True)
class Amd:
    """AMD's GPUs that amdgpu has, and what the compute driver says of them. `failure`: why it says nothing."""

    gpus: tuple[Gpu, ...]
    topology: Topology | None = None
    failure: DevrtError | None = None
    nodes: dict[str, tuple[Node, ...]] = field(default_factory=dict)  # by the GPU's address; several where it is partitioned

    @property
    def hidden(self) -> bool:
        """A device cgroup keeps some GPUs from this process, and not all of them."""
        return bool(self.topology and self.topology.hidden and self.topology.gpus)

    def used(self, gpu: Gpu) -> bool:
        """Whether this process is meant to have the GPU."""
        return bool(self.nodes.get(gpu.address)) or not self.hidden


def find(reader: Reader, gpus: list[Gpu]) -> Amd:
    ours = tuple(gpu for gpu in gpus if gpu.vendor == AMD and gpu.driven)
    if not ours:
        return Amd(())
    try:
        found = topology.read(reader.system, caches=False)
    except DevrtError as error:
        return Amd(ours, failure=error)
    # A partition has a function number of its own (location_id), but is part of function 0.
    nodes = {gpu.address: tuple(node for node in found.gpus if _slot(node.pci_address) == _slot(gpu.address)) for gpu in ours}
    return Amd(ours, found, None, nodes)


def render_nodes(amd: Amd) -> list[tuple[str, str]]:
    """(path, owner) of every render node that the compute driver names."""
    return [(node.render_path, str(gpu)) for gpu in amd.gpus for node in amd.nodes.get(gpu.address, ())]


def check(reader: Reader, amd: Amd) -> Iterator[Finding]:
    if not amd.gpus:
        return
    yield from _nodes(amd)
    yield from _links(reader, amd)
    yield _limits(reader)


# ---------------------------------------------------------------------------------------------------------------------
# Nodes


def _nodes(amd: Amd) -> Iterator[Finding]:
    """Whether the compute driver lists each GPU that amdgpu has, and as what."""
    if amd.failure is not None:
        yield Finding("kfd", ERROR, amd.failure.what, amd.failure.evidence, amd.failure.remedy)
        return
    assert amd.topology is not None  # nothing failed
    hidden = amd.topology.hidden
    seen = ", ".join(node.pci_address for node in amd.topology.gpus) or "no GPU"
    for gpu in amd.gpus:
        nodes = amd.nodes[gpu.address]
        if nodes:
            yield from _described(gpu, nodes)
        elif amd.hidden:
            yield Finding("kfd", NOTE, f"{gpu}: not for this process, its node is hidden", f"{BASE} shows {seen}; node "
                          f"{hidden[0].number}: {hidden[0].why}", "to use it in a container, pass its render node: --device "
                          "/dev/dri/renderD...")
        elif hidden:
            yield Finding("kfd", ERROR, f"{gpu}: hidden from this process", f"node {hidden[0].number}: {hidden[0].why}",
                          "in a container, pass the GPU's render node to it, beside /dev/kfd: --device /dev/dri/renderD128")
        else:
            yield Finding("kfd", ERROR, f"{gpu}: amdgpu has it, but the compute driver does not list it",
                          f"{BASE} lists {seen}", "read why: sudo dmesg | grep -i kfd")


def _described(gpu: Gpu, nodes: tuple[Node, ...]) -> Iterator[Finding]:
    node = nodes[0]
    units = sum(one.compute_units for one in nodes)
    parts = f" in {len(nodes)} partitions" if len(nodes) > 1 else ""
    banks = ", ".join(f"{bank.size >> 20} MiB {'' if bank.heap_type == HeapType.VRAM_PUBLIC else 'not '}all seen by the host"
                      for bank in node.banks)
    evidence = (f"node {node.number}, waves of {node.wave_size}, {node.waves_per_simd} a SIMD, {node.xccs} XCC"
                f"{'s' if node.xccs > 1 else ''}, {banks or 'no memory bank'}, {node.render_path}")
    try:
        packets.generation(node.gfx)
    except Unsupported as error:
        yield Finding("kfd", WARNING, f"{gpu}: {node.gfx} is a kind of GPU that devrt can't drive", evidence, error.remedy)
        return
    if not node.banks:
        yield Finding("kfd", ERROR, f"{gpu}: {node.gfx} without memory: the driver lists no bank of it", evidence,
                      "read why: sudo dmesg | grep -iE 'amdgpu|kfd'")
        return
    yield Finding("kfd", OK, f"{gpu}: {node.gfx} with {units} compute units{parts}", evidence)


def _slot(address: str) -> str:
    return address.partition(".")[0]


# ---------------------------------------------------------------------------------------------------------------------
# Ways between GPUs


_LETTERS = {LinkType.XGMI: "X", LinkType.PCIE: "P"}


def _links(reader: Reader, amd: Amd) -> Iterator[Finding]:
    """Which GPU reaches whose memory: a finding for each reason why not, and the whole as a matrix."""
    gpus = amd.topology.gpus if amd.topology else ()
    if len(gpus) < 2:
        return
    assert amd.topology is not None  # it lists GPUs
    reach = {(a, b): amd.topology.reach(a, b) for a in gpus for b in gpus if a is not b}
    rows = ["".join("-" if a is b else _letter(reach[a, b]) for b in gpus) for a in gpus]
    matrix = f"{' '.join(rows)} (X XGMI, P PCIe, . not; nodes {gpus[0].number}-{gpus[-1].number})"
    missing: dict[str, list[str]] = {}
    for (a, b), found in reach.items():
        if not found.possible:
            reason = re.sub(r"node \d+", "a node", found.why)
            missing.setdefault(reason, []).append(f"{a.number}->{b.number}")
    for reason, pairs in missing.items():
        yield Finding("amd-links", WARNING, f"{len(pairs)} of {len(reach)} pairs of GPUs do not reach each other's memory, so "
                      f"copies pass through the host: {reason}", f"{', '.join(pairs[:6])}{', ..' if len(pairs) > 6 else ''}; "
                      f"{matrix}", _mend_link(reader, reason))
    if not missing:
        ways = sorted({found.why for found in reach.values()})
        yield Finding("amd-links", OK, f"all {len(reach)} pairs of GPUs reach each other's memory {' and '.join(ways)}", matrix)


def _letter(found: topology.Reach) -> str:
    if not found.possible or found.link is None:
        return "."
    return _LETTERS.get(LinkType(found.link.type), "L") if found.link.type in LinkType._value2member_map_ else "L"


def _mend_link(reader: Reader, reason: str) -> str:
    if "large BAR" in reason:
        return FIRMWARE_SETUP
    if "hives" in reason or "XGMI" in reason:
        return "reset the GPUs or reboot; if it stays, a bridge is loose: sudo dmesg | grep -i xgmi"
    if reader.text("/sys/module/amdgpu/parameters/pcie_p2p") == "N":
        return ("echo 'options amdgpu pcie_p2p=1' | sudo tee /etc/modprobe.d/devrt.conf, then take amdgpu.pcie_p2p=0 off the "
                "kernel's command line and reboot")
    config = reader.text(f"/boot/config-{reader.system.host().release}") or ""
    if config and "CONFIG_HSA_AMD_P2P=y" not in config:
        return "use a kernel with CONFIG_HSA_AMD_P2P=y"
    return "use slots below one root complex; turn off ACS for them, or boot with iommu=pt"


# ---------------------------------------------------------------------------------------------------------------------
# Limits of the process


class Limit(NamedTuple):
    """A setting and the numbers that are fine. `least` is also what to set it to."""

    path: str
    least: int
    most: int
    what: str
    source: str


LIMITS = (
    Limit("/proc/sys/vm/overcommit_memory", 0, 1, "the kernel refuses memory beyond a fixed limit, and address ranges are "
          "reserved before they are used", "Documentation/admin-guide/sysctl/vm.rst"),
    Limit("/proc/sys/vm/max_map_count", 65530, 1 << 31, "each buffer of a GPU is a mapping of this process",
          "Documentation/admin-guide/sysctl/vm.rst"),
)
OPEN_FILES = 256  # an open file for each GPU and for each buffer that is shared between processes


def _limits(reader: Reader) -> Finding:
    """The first limit that is in the way; memory that may be locked is the host's check."""
    seen = []
    for limit in LIMITS:
        text = reader.text(limit.path) or ""
        number = int(text) if re.fullmatch(r"\d{1,12}", text) else None
        name = limit.path.removeprefix("/proc/sys/").replace("/", ".")
        if number is not None and not limit.least <= number <= limit.most:
            return Finding("amd-limits", NOTE, f"large programs may fail to start: {limit.what}", f"{name} is {number}",
                           f"sudo sysctl {name}={limit.least}")
        seen.append(f"{name} {'unknown' if number is None else number}")
    files = reader.system.host().open_files
    if 0 <= files < OPEN_FILES:
        return Finding("amd-limits", NOTE, f"this process may have {files} files open; GPUs and shared buffers are files",
                       "RLIMIT_NOFILE", f"ulimit -n {4 * OPEN_FILES}")
    return Finding("amd-limits", OK, "this process's limits leave room for the compute driver",
                   f"{', '.join(seen)}, open files {'unlimited' if files < 0 else files}")

