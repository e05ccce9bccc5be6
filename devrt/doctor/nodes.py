"""The device nodes: do they exist, may this process open them, and does the driver behind them answer?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from devrt.amd.driver import MAJOR, MINOR
from devrt.doctor.amd import Amd, render_nodes
from devrt.doctor.findings import ERROR, NOTE, OK, WARNING, Finding, Reader
from devrt.doctor.gpus import KGSL, Gpu
from devrt.doctor.hardware import KFD_FEATURES
from devrt.ioctl import drm, kfd
from devrt.ioctl.errors import errno_name
from devrt.ioctl.system import FileStat

MSM_DRIVERS = ("msm", "msm_dpu", "adreno")  # names of the platform driver behind a Qualcomm render node


@dataclass(frozen=True)
class Node:
    """A node that must be there, unless it is `withheld`: a container may have the nodes of some GPUs. `create` makes it by hand
    where no udev rule does; `subsystem` is for such a rule."""

    path: str
    owner: str
    create: str
    subsystem: str
    opened: bool = True  # False where opening alone starts the GPU, which takes seconds
    withheld: bool = False


def expected(reader: Reader, gpus: list[Gpu], amd: Amd) -> list[Node]:
    """The nodes that the GPUs bound to their drivers should have, in the order they are opened."""
    nodes: list[Node] = []
    nvidia = [gpu for gpu in gpus if gpu.vendor == 0x10DE and gpu.driven]
    udev = "sudo udevadm trigger, or pass the node to the container"
    if amd.gpus:
        nodes.append(Node("/dev/kfd", "AMD's compute driver", "use a kernel with CONFIG_HSA_AMD; in a container pass the node: "
                          "--device /dev/kfd", "kfd"))
    render = {f"/dev/dri/{name}": str(gpu) for gpu in amd.gpus if amd.used(gpu)
              for name in reader.names(f"{gpu.path}/drm") if name.startswith("renderD")} | dict(render_nodes(amd))
    nodes += [Node(path, owner, udev, "drm") for path, owner in render.items()]
    if nvidia:
        nodes.append(Node("/dev/nvidiactl", "NVIDIA's driver", "sudo mknod -m 666 /dev/nvidiactl c 195 255", "nvidia"))
        ours = [_nvidia_gpu(reader, gpu, index) for index, gpu in enumerate(nvidia)]
        there = {node.path for node in ours if reader.exists(node.path)}
        nodes += [replace(node, withheld=bool(there) and node.path not in there) for node in ours]
        major = re.search(r"^\s*(\d+) nvidia-uvm$", reader.text("/proc/devices") or "", re.MULTILINE)
        create = f"sudo mknod -m 666 /dev/nvidia-uvm c {major[1]} 0" if major else "sudo modprobe nvidia-uvm"
        nodes.append(Node("/dev/nvidia-uvm", "NVIDIA's memory driver", create, "nvidia-uvm"))
    nodes += [Node(f"/dev/{name}", "Qualcomm Adreno (KGSL)", udev, "kgsl")
              for name in reader.names(KGSL) if name.startswith("kgsl-")]
    for name in reader.names("/sys/class/drm"):
        driver = reader.link(f"/sys/class/drm/{name}/device/driver") if name.startswith("renderD") else None
        if driver and driver.rpartition("/")[2] in MSM_DRIVERS:
            nodes.append(Node(f"/dev/dri/{name}", "Qualcomm Adreno (msm)", udev, "drm"))
    return nodes


def check(reader: Reader, nodes: list[Node]) -> Iterator[Finding]:
    for node in nodes:
        yield _check(reader, node)


def _check(reader: Reader, node: Node) -> Finding:
    try:
        found = reader.system.stat(node.path)
    except OSError as error:
        return Finding("node", ERROR, f"{node.path} can't be looked at", errno_name(error.errno or 0),
                       f"open the way to it: sudo chmod a+rx {node.path.rpartition('/')[0]}")
    if not found.exists and node.withheld:
        return Finding("node", NOTE, f"{node.path} is not there, but other GPUs' nodes are: {node.owner} is not for this process",
                       "ENOENT", f"if it is meant to be: {node.create}; in a container, pass the node to it")
    if not found.exists:
        return Finding("node", ERROR, f"{node.path} is missing: {node.owner} can't be reached", "ENOENT", node.create)
    if not found.is_device:
        return Finding("node", ERROR, f"{node.path} is not a device", f"mode {found.mode:o}",
                       f"sudo rm -r {node.path}, then: {node.create}")
    if not reader.system.access(node.path, os.R_OK | os.W_OK):
        return _forbidden(reader, node, found)
    return _answers(reader, node, found) if node.opened else Finding(
        "node", OK, f"{node.path} may be opened: {node.owner}", _rights(reader, found))


def _answers(reader: Reader, node: Node, found: FileStat) -> Finding:
    """Open the node and ask the driver for its version where the interface has such a call."""
    system, evidence = reader.system, _rights(reader, found)
    try:
        fd = system.open(node.path, os.O_RDWR)
    except OSError as error:
        inside = "a device cgroup may forbid it: in a container pass --device " + node.path
        return Finding("node", ERROR, f"{node.path} does not open though its mode allows it: {node.owner}",
                       f"{errno_name(error.errno or 0)}, {evidence}", inside if error.errno in (1, 13) else
                       "read why: sudo dmesg | tail -50")
    try:
        if node.path == "/dev/kfd":
            return _kfd_version(kfd.version(system, fd), evidence)
        if node.path.startswith("/dev/dri/"):
            driver, version = drm.driver_of(system, fd)
            return Finding("node", OK, f"{node.path} answers: {node.owner}",
                           f"{driver} {'.'.join(map(str, version))}, {evidence}")
    except OSError as error:
        return Finding("node", ERROR, f"{node.path} opens, but the driver refuses to name its version",
                       f"{errno_name(error.errno or 0)}, {evidence}", "read why: sudo dmesg | tail -50")
    finally:
        system.close(fd)
    return Finding("node", OK, f"{node.path} opens: {node.owner}", evidence)


def _kfd_version(version: tuple[int, int], rights: str) -> Finding:
    newest = max(kfd.SINCE.values())
    known = f" (devrt's tables end at {MAJOR}.{newest})" if version > (MAJOR, newest) else ""
    evidence = f"interface {version[0]}.{version[1]}{known}, {rights}"
    if version[0] != MAJOR or version < (MAJOR, MINOR):
        return Finding("node", ERROR, f"/dev/kfd speaks interface {version[0]}.{version[1]}, devrt {MAJOR}.{MINOR} and newer of "
                       f"{MAJOR}.x", evidence, "use the amdgpu driver of Linux 6.1 or newer")
    lacks = [what for needed, what in KFD_FEATURES.items() if version < needed]
    if lacks:
        return Finding("node", WARNING, f"/dev/kfd answers, but is too old for {'; '.join(lacks)}", evidence,
                       "use Linux 6.6 or later")
    return Finding("node", OK, "/dev/kfd answers: AMD's compute driver", evidence)


def _forbidden(reader: Reader, node: Node, found: FileStat) -> Finding:
    """The finding that says who may open the node and the one command that lets this user in."""
    host = reader.system.host()
    groups = {int(gid): (name, members.split(",")) for name, gid, members in
              re.findall(r"^([^:\n]+):[^:\n]*:(\d+):(.*)$", reader.text("/etc/group") or "", re.MULTILINE)}
    name, members = groups.get(found.gid, ("", []))
    if found.gid and found.mode & 0o060 == 0o060:
        if host.user in members:
            remedy = f"log out and in again (or run: newgrp {name}): this process started before {host.user} joined {name}"
        elif name:
            remedy = f"sudo usermod -aG {name} {host.user}, then log out and in again"
        else:
            remedy = f"no group here has gid {found.gid}: start the container with --group-add {found.gid}"
    elif node.subsystem.startswith("nvidia"):
        remedy = f"sudo chmod 666 {node.path}"
    else:
        rule = f'SUBSYSTEM=="{node.subsystem}", GROUP="render", MODE="0660"'
        remedy = (f"echo '{rule}' | sudo tee /etc/udev/rules.d/70-devrt.rules && sudo udevadm control --reload && "
                  f"sudo udevadm trigger && sudo usermod -aG render {host.user}, then log out and in again")
    return Finding("node", ERROR, f"{host.user} may not open {node.path}: {node.owner}", _rights(reader, found), remedy)


def _rights(reader: Reader, found: FileStat) -> str:
    return f"mode {found.mode & 0o7777:04o}, uid {found.uid}, gid {found.gid}"


def _nvidia_gpu(reader: Reader, gpu: Gpu, index: int) -> Node:
    """The node of a GPU: numbered as the driver says, else by its place on the bus, which is what the driver goes by."""
    about = reader.text(f"/proc/driver/nvidia/gpus/{gpu.address}/information") or ""
    minor = re.search(r"^Device Minor:\s*(\d+)", about, re.MULTILINE)
    number = int(minor[1]) if minor else index
    return Node(f"/dev/nvidia{number}", str(gpu), f"sudo mknod -m 666 /dev/nvidia{number} c 195 {number}", "nvidia", opened=False)
