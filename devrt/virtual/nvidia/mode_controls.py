"""Modes of a GPU: classes and controls of MIG, vGPU and confidential computing (gpu_instance_subscription.c,
compute_instance_subscription.c, kernel_mig_manager.c, conf_compute_api.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devrt.ioctl.nv_modes import WHOLE_GPU, Feature, MultiGpu, Virtualization, capability_number
from devrt.ioctl.nv_status import Status
from devrt.virtual.nvidia.controls import ControlCall, control
from devrt.virtual.nvidia.files import CapabilityFile
from devrt.virtual.nvidia.mig import SIZES, GpuInstance
from devrt.virtual.nvidia.objects import (
    ComputeSubscription,
    Confidential,
    Device,
    GpuSubscription,
    Object,
    RmClient,
    Subdevice,
)
from devrt.virtual.nvidia.share import share_of, subscribed
from devrt.virtual.nvidia.status import refuse

if TYPE_CHECKING:
    from devrt.virtual.nvidia.card import Card
    from devrt.virtual.nvidia.rm import Call

_SEV_SNP, _HCC, _PRODUCTION = 3, 2, 2  # NV_CONF_COMPUTE_SYSTEM_{CPU,GPUS}_CAPABILITY_*, _ENVIRONMENT_PROD


# ---------------------------------------------------------------------------------------------------------------------
# Subscriptions


def _has(call: Call, descriptor: int, number: int) -> None:
    """osRmCapAcquire. Raises Refused: INSUFFICIENT_PERMISSIONS."""
    try:
        file = call.process.files.find(descriptor & 0xFFFFFFFF)
    except OSError:
        file = None
    if not isinstance(file, CapabilityFile) or file.number != number:
        refuse(Status.NV_ERR_INSUFFICIENT_PERMISSIONS)


def subscribe_gpu(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    card = parent.card
    assert card is not None and isinstance(parent, Subdevice)  # by the row
    if any(isinstance(one, GpuSubscription) for one in parent.children.values()):
        refuse(Status.NV_ERR_STATE_IN_USE)
    if not card.node.instances:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    if given.swizzId == WHOLE_GPU:  # for tools, and needs privileges
        refuse(Status.NV_ERR_INSUFFICIENT_PERMISSIONS)
    instance = next((one for one in card.node.instances if one.number == given.swizzId), None)
    if instance is None:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    _has(call, given.capDescriptor, capability_number(card.node.index, instance.number))
    return GpuSubscription(client, handle, class_id, parent, instance=instance)


def subscribe_compute(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    assert parent.card is not None and isinstance(parent, GpuSubscription) and parent.instance is not None  # by the row
    if parent.children:
        refuse(Status.NV_ERR_STATE_IN_USE)
    compute = next((one for one in parent.instance.computes if one.number == given.execPartitionId), None)
    if compute is None:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    _has(call, given.capDescriptor, capability_number(parent.card.node.index, parent.instance.number, compute.number))
    return ComputeSubscription(client, handle, class_id, parent, compute=compute)


def confidential(call: Call, client: RmClient, parent: Object, handle: int, class_id: int, given: Any) -> Object:
    return Confidential(client, handle, class_id, parent)


# ---------------------------------------------------------------------------------------------------------------------
# Instances


@control("NV2080_CTRL_CMD_GPU_GET_ACTIVE_PARTITION_IDS", Subdevice)
def active_instances(call: ControlCall) -> None:
    instances = call.card.node.instances
    if instances is None:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    found = [WHOLE_GPU, *sorted(one.number for one in instances)]
    call.params.partitionCount = len(found)
    for index, number in enumerate(found):
        call.params.swizzId[index] = number


@control("NV2080_CTRL_CMD_GPU_GET_PARTITIONS", Subdevice)
def own_instances(call: ControlCall) -> None:
    """All of them are shown to administrators only, others see the one that they are subscribed to."""
    card, params = call.card, call.params
    if card.model.key not in SIZES:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    params.validPartitionCount = 0
    if not card.node.instances:
        return
    if params.bGetAllPartitionInfo:
        refuse(Status.NV_ERR_INSUFFICIENT_PERMISSIONS)
    found = subscribed(call.target.parent)
    if found is not None and found.instance is not None:
        params.validPartitionCount = 1
        _describe(params.queryPartitionInfo[0], found.instance, card)


def _describe(row: Any, one: GpuInstance, card: Card) -> None:
    row.swizzId, row.partitionFlag, row.bValid = one.number, one.flag, 1
    row.grEngCount, row.gpcCount, row.smCount = len(one.computes), len(one.size.tpcs), 2 * sum(one.size.tpcs)
    row.ceCount, row.memSize = one.size.copies, one.part(card.model.vram_bytes)


@control("NVC637_CTRL_CMD_EXEC_PARTITIONS_GET", GpuSubscription)
def own_compute_instances(call: ControlCall) -> None:
    compute = share_of(call.target).compute
    if compute is None:
        refuse(Status.NV_ERR_INSUFFICIENT_PERMISSIONS)
    call.params.execPartCount, call.params.execPartId[0] = 1, compute.number
    row = call.params.execPartInfo[0]
    row.gpcCount, row.smCount, row.computeSize = len(compute.tpcs), 2 * sum(compute.tpcs), compute.compute
    row.ceCount = call.target.instance.size.copies


@control("NVC638_CTRL_CMD_GET_UUID", ComputeSubscription)
def compute_instance_uuid(call: ControlCall) -> None:
    data = call.card.node.instance_uuid(call.target.parent.instance.number, call.target.compute.number)
    call.params.uuid = data
    text = data.hex()
    call.params.uuidStr = f"MIG-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".encode()


# ---------------------------------------------------------------------------------------------------------------------
# Virtual machines


@control("NV0080_CTRL_CMD_GPU_GET_VIRTUALIZATION_MODE", Device)
def virtualization_mode(call: ControlCall) -> None:
    faults = call.driver.faults
    call.params.virtualizationMode = Virtualization.VGX if faults.stands("vgpu") else (
        Virtualization.HOST_VGPU if faults.stands("vgpu-host") else Virtualization.NONE)


@control("NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_CAPABILITIES", Confidential)
def confidential_capabilities(call: ControlCall) -> None:
    params, faults = call.params, call.driver.faults
    capable = any(card.model.sm >= 90 and not card.model.display for card in call.driver.cards)
    params.gpusCapability = _HCC if capable else 0
    if faults.stands("cc"):
        params.cpuCapability, params.environment, params.ccFeature = _SEV_SNP, _PRODUCTION, Feature.HCC_ENABLED
    elif faults.stands("ppcie"):  # which hides the feature
        params.cpuCapability, params.environment, params.multiGpuMode = _SEV_SNP, _PRODUCTION, MultiGpu.PROTECTED_PCIE


@control("NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_GPUS_STATE", Confidential)
def confidential_state(call: ControlCall) -> None:
    """What gpumgrUpdateConfidentialCapabilities leaves it at until somebody attests the GPUs: not ready, feature or not."""
    call.params.bAcceptClientRequest = 0
