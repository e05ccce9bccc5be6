"""MIG: the parts that a GPU is split into, and how a client takes one.

A GPU instance has memory and engines of its own, a compute instance in it SMs. Each has a file in /proc that names a node of
/dev/nvidia-caps; who can open both nodes may use the compute instance, and sees nothing else of the GPU from then on.
"""

from __future__ import annotations

import errno
import os
import re
from typing import Any, NamedTuple

from devrt.device import DeviceNotFound, DevrtError, InvalidArgument, PermissionDenied, Unsupported
from devrt.ioctl.errors import errno_name
from devrt.ioctl.nv_classes import Class
from devrt.ioctl.nv_modes import CAPABILITIES, ComputeSize, MemorySize, compute_instance_file, gpu_instance_file, node_of
from devrt.ioctl.system import System
from devrt.nvidia.rm import ResourceManager

_SLICES = {ComputeSize.FULL: 7, ComputeSize.HALF: 4, ComputeSize.MINI_HALF: 3, ComputeSize.QUARTER: 2,
           ComputeSize.MINI_QUARTER: 1, ComputeSize.EIGHTH: 1}
_FRACTION = {MemorySize.FULL: 1, MemorySize.HALF: 2, MemorySize.QUARTER: 4, MemorySize.EIGHTH: 8}


class Instance(NamedTuple):
    """A compute instance, by the numbers of it and of the GPU instance that it is in; the nodes of both, and the files that name
    them."""

    gpu: int
    compute: int
    nodes: tuple[str, str]
    files: tuple[str, str]

    def __str__(self) -> str:
        return f"MIG gi {self.gpu} ci {self.compute}"

    def missing(self, system: System) -> str:
        """The first of its nodes that this process can't open; "" where it can open both."""
        return next((node for node in self.nodes if not system.access(node, os.R_OK)), "")


class Refusal(NamedTuple):
    """Why a GPU, or its instance, can't be used; `what` follows its name."""

    kind: type[DevrtError]
    what: str
    evidence: str
    remedy: str

    def error(self, name: str) -> DevrtError:
        return self.kind(f"{name} {self.what}", evidence=self.evidence, remedy=self.remedy)


def instances(system: System, minor: int) -> list[Instance]:
    """The compute instances of a card that /proc shows, whoever may use them. A sandbox or a container may show none."""
    folder, found = f"{CAPABILITIES}/gpu{minor}/mig", []
    for gpu in _numbers(system, folder, "gi"):
        for compute in _numbers(system, f"{folder}/gi{gpu}", "ci"):
            files = gpu_instance_file(minor, gpu), compute_instance_file(minor, gpu, compute)
            first, second = (_minor(system, path) for path in files)
            if first is not None and second is not None:
                found.append(Instance(gpu, compute, (node_of(first), node_of(second)), files))
    return found


def _numbers(system: System, folder: str, prefix: str) -> list[int]:
    try:
        names = system.list_dir(folder)
    except OSError:
        return []
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(rf"{prefix}(\d{{1,3}})", name)))


def _minor(system: System, path: str) -> int | None:
    """DeviceFileMinor of a capability's file (nv-caps.c, nv_cap_procfs_read)."""
    try:
        match = re.search(r"^DeviceFileMinor:\s*(\d{1,6})$", system.read_text(path), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None


# ---------------------------------------------------------------------------------------------------------------------
# Taking one


class Subscription(NamedTuple):
    """Handles: of the GPU instance, which nvidia-uvm wants to see, and of the compute instance in it."""

    gpu: int
    compute: int


def subscribe(system: System, rm: ResourceManager, subdevice: int, instance: Instance, name: str) -> Subscription:
    """Make a subdevice see an instance and nothing else. Its device must have no channels or memory yet. Raises PermissionDenied,
    DeviceNotFound."""
    gpu = _take(system, rm, subdevice, instance, 0, name, Class.AMPERE_SMC_PARTITION_REF, swizzId=instance.gpu)
    try:
        return Subscription(gpu, _take(system, rm, gpu, instance, 1, name, Class.AMPERE_SMC_EXEC_PARTITION_REF,
                                       execPartitionId=instance.compute))
    except BaseException:
        rm.free(subdevice, gpu)
        raise


def _take(system: System, rm: ResourceManager, parent: int, instance: Instance, which: int, name: str, cls: int,
          **fields: Any) -> int:
    node, what = instance.nodes[which], f"{name} can't be used: {instance}"
    try:
        fd = system.open(node, os.O_RDONLY)
    except OSError as error:
        forbidden = error.errno in (errno.EACCES, errno.EPERM)
        raise no_node(instance, node, errno_name(error.errno or 0), forbidden).error(name) from error
    try:
        return rm.alloc(what, parent, cls, capDescriptor=fd, **fields)
    except PermissionDenied as error:
        raise no_node(instance, node, error.evidence, True).error(name) from error
    except (InvalidArgument, Unsupported) as error:
        raise DeviceNotFound(f"{what} is not there any more", evidence=error.evidence,
                             remedy="`devrt devices` lists the instances there are now") from error
    finally:
        system.close(fd)  # the driver keeps a descriptor of its own


def no_node(instance: Instance, node: str, evidence: str, forbidden: bool) -> Refusal:
    """What is said to who wants an instance and can't open one of its nodes."""
    file = instance.files[instance.nodes.index(node)]
    mend = f"sudo chmod a+r {node}" if forbidden else f"sudo nvidia-modprobe -f {file} makes it"
    return Refusal(PermissionDenied if forbidden else DeviceNotFound,
                   f"is split into instances (MIG), and this process can't open {node}, which {instance} needs",
                   f"{node}: {evidence}", f"{mend}; in a container, pass the instance to it: NVIDIA_VISIBLE_DEVICES=MIG-.. "
                   f"(`nvidia-smi -L` has the UUIDs), or --device for {' and '.join(instance.nodes)}")


# ---------------------------------------------------------------------------------------------------------------------
# What it is


def title(rm: ResourceManager, subdevice: int, subscription: Subscription, instance: Instance, total_kib: int) -> str:
    """As NVIDIA names it, "MIG 1g.18gb gi 9 ci 0", or "MIG 1c.3g.71gb .." where it is a part of its GPU instance; without sizes
    where the driver does not say them. `total_kib`: the whole GPU's memory."""
    what = f"can't ask for the size of {instance}"
    try:
        gpus = rm.control(what, subdevice, "NV2080_CTRL_CMD_GPU_GET_PARTITIONS")
        computes = rm.control(what, subscription.gpu, "NVC637_CTRL_CMD_EXEC_PARTITIONS_GET")
    except DevrtError:
        return str(instance)
    gpu, compute = gpus.queryPartitionInfo[0], computes.execPartInfo[0]
    flag = int(gpu.partitionFlag)
    of_gpu, of_compute = _slices(flag >> 2 & 7, gpu.gpcCount), _slices(compute.computeSize, compute.gpcCount)
    part = f"{of_compute}c." if of_compute != of_gpu else ""
    gigabytes = total_kib / (1 << 20) / _FRACTION[MemorySize(flag & 3)]
    return f"MIG {part}{of_gpu}g.{int(gigabytes + 0.5)}gb gi {instance.gpu} ci {instance.compute}"


def _slices(size: int, gpcs: int) -> int:
    """Of a smaller GPU a size is fewer slices than on one that has seven."""
    return min(_SLICES.get(ComputeSize(size), 1) if size in set(ComputeSize) else 1, int(gpcs) or 1)
