"""Modes that keep a GPU, or a part of it, from being used as a whole and plainly: MIG, confidential computing, vGPU.

A driver that does not answer one of the questions knows no such mode, or is behind a sandbox that does not pass the question on:
None, and opening goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from devrt.device import DeviceNotFound, DevrtError, PermissionDenied, Unsupported
from devrt.ioctl.nv_classes import Class
from devrt.ioctl.nv_modes import CAPABILITIES, WHOLE_GPU, Feature, GpuInfo, MigMode, MultiGpu, Virtualization
from devrt.ioctl.system import System
from devrt.nvidia.instances import Instance, Refusal, no_node
from devrt.nvidia.rm import ResourceManager

_TOOL = "sudo python3 nvidia_gpu_tools.py --gpu-bdf={pci}"
# Mode -> (as it is called, how it is switched off). The tool is github.com/NVIDIA/gpu-admin-tools, and runs on the host.
_CC = "confidential computing", f"{_TOOL} --set-cc-mode=off --reset-after-cc-mode-switch"
_PPCIE = "protected PCIe", f"{_TOOL} --set-ppcie-mode=off --reset-after-ppcie-mode-switch"
_LENT = "a GPU that its host lends out computes in the virtual machines that have it, not here"
# Virtualization mode -> (what such a GPU is, what it needs to compute); others are whole GPUs of this machine.
VIRTUAL: Mapping[int, tuple[str, str]] = {
    Virtualization.VGX: ("a vGPU, part of a GPU of the host", "a vGPU needs a profile for compute (C or Q series), a licence "
                         "(nvidia-smi -q | grep -i licen), and unified memory that the host has switched on for it (enable_uvm=1 "
                         "in its vgpu_params)"),
    Virtualization.HOST_VGPU: ("a GPU that is lent out as vGPUs", _LENT),
    Virtualization.HOST_VSGA: ("a GPU that is lent out", _LENT),
}


@dataclass(frozen=True)
class Confidential:
    """Of all GPUs of the machine. `ready`: whether they take work, which they do once they were attested."""

    capable: bool
    feature: int
    multi: int
    devtools: bool
    ready: bool

    @property
    def on(self) -> bool:
        return self.feature != Feature.DISABLED or self.multi != MultiGpu.NONE

    def refusal(self, pci: str) -> Refusal:
        """The GPU's memory is closed to the host, devtools or not, and copies have to be encrypted through pages that virtual
        machine and GPU share. devrt does neither."""
        name, off = _PPCIE if self.multi == MultiGpu.PROTECTED_PCIE else _CC
        return Refusal(Unsupported, f"is in {name} mode, in which devrt can't use it", self.evidence(),
                       f"on the host, switch it off: {off.format(pci=pci)} (github.com/NVIDIA/gpu-admin-tools)")

    def evidence(self) -> str:
        more = f", devtools {'on' if self.devtools else 'off'}, GPUs {'take work' if self.ready else 'wait to be attested'}"
        return f"ccFeature {self.feature}, multiGpuMode {self.multi}{more if self.on else ''}"


@dataclass(frozen=True)
class Modes:
    """None: the driver does not say. `gpu_instances` are numbers."""

    mig: int | None = None
    gpu_instances: tuple[int, ...] | None = None
    virtualization: int | None = None
    confidential: Confidential | None = None

    @property
    def split(self) -> bool:
        """Whether MIG mode is on now; a change comes with the next reset."""
        return self.mig in (MigMode.ENABLED, MigMode.DISABLE_PENDING)


def ask(rm: ResourceManager, device: int, subdevice: int) -> Modes:
    """The modes of an attached GPU. Nothing that the driver refuses is an error."""
    found = Modes(_mig(rm, subdevice), None, _virtualization(rm, device), _confidential(rm))
    return replace(found, gpu_instances=_gpu_instances(rm, subdevice)) if found.split else found


def _mig(rm: ResourceManager, subdevice: int) -> int | None:
    try:
        made = rm.control("", subdevice, "NV2080_CTRL_CMD_GPU_GET_INFO_V2", gpuInfoListSize=1,
                          gpuInfoList=[{"index": GpuInfo.GPU_SMC_MODE}])
    except DevrtError:
        return None
    return int(made.gpuInfoList[0].data)


def _gpu_instances(rm: ResourceManager, subdevice: int) -> tuple[int, ...] | None:
    try:
        made = rm.control("", subdevice, "NV2080_CTRL_CMD_GPU_GET_ACTIVE_PARTITION_IDS")
    except DevrtError:
        return None
    found = [int(made.swizzId[n]) for n in range(min(made.partitionCount, len(made.swizzId)))]
    return tuple(number for number in found if number != WHOLE_GPU)


def _virtualization(rm: ResourceManager, device: int) -> int | None:
    try:
        return int(rm.control("", device, "NV0080_CTRL_CMD_GPU_GET_VIRTUALIZATION_MODE").virtualizationMode)
    except DevrtError:
        return None


def _confidential(rm: ResourceManager) -> Confidential | None:
    """The driver knows it once it has attached a GPU. Without the feature it says "not ready", which then means nothing."""
    try:
        handle = rm.alloc("", 0, Class.NV_CONFIDENTIAL_COMPUTE)
        try:
            caps = rm.control("", handle, "NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_CAPABILITIES")
            state = rm.control("", handle, "NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_GPUS_STATE")
        finally:
            rm.free(0, handle)
    except DevrtError:
        return None
    return Confidential(bool(caps.gpusCapability), int(caps.ccFeature), int(caps.multiGpuMode), bool(caps.devToolsMode),
                        bool(state.bAcceptClientRequest))


# ---------------------------------------------------------------------------------------------------------------------
# What they forbid


def nothing_to_use(modes: Modes, system: System, shown: list[Instance], pci: str) -> Refusal:
    """Why no instance of a GPU in MIG mode can be used: there is none, none is shown, or its nodes are closed to this process."""
    evidence = "MIG mode is on" if modes.gpu_instances is None else (
        f"MIG mode is on, GPU instances: {', '.join(map(str, modes.gpu_instances)) or 'none'}")
    if shown:
        node = shown[0].missing(system)
        forbidden = system.stat(node).exists
        return no_node(shown[0], node, f"{'no permission' if forbidden else 'not there'}; {evidence}", forbidden)
    off = f"sudo nvidia-smi -i {pci} -mig 0 switches MIG mode off"
    if modes.gpu_instances == ():
        return Refusal(DeviceNotFound, "is in MIG mode, and has not been split into instances", evidence,
                       f"sudo nvidia-smi mig -i {pci} -cgi SIZE -C makes one (nvidia-smi mig -lgip lists sizes); {off}")
    if not system.stat(CAPABILITIES).exists:
        return Refusal(DeviceNotFound, "is split into instances (MIG), and this process is shown none of them",
                       f"{evidence}; {CAPABILITIES} is not there", "in a container, pass an instance to it: "
                       f"NVIDIA_VISIBLE_DEVICES=MIG-.. (`nvidia-smi -L` on the host has the UUIDs); {off}")
    return Refusal(DeviceNotFound, "is in MIG mode, and its GPU instances have no compute instance that this process can see",
                   evidence, f"sudo nvidia-smi mig -i {pci} -cci makes one in each; {off}")


def explained(error: DevrtError, modes: Modes) -> DevrtError:
    """An error of opening, with what a vGPU may have to do with it."""
    found = VIRTUAL.get(modes.virtualization or 0)
    if found is None or type(error) not in (DevrtError, Unsupported, PermissionDenied):
        return error
    name, needs = found
    return type(error)(error.what, evidence=f"{error.evidence}; this is {name}", remedy=f"{error.remedy}; {needs}")
