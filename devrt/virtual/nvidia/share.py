"""What a client sees of a GPU: all of it, or the instance that its subdevice is subscribed to (kernel_mig_manager.c)."""

from __future__ import annotations

from dataclasses import dataclass

from devrt.ioctl.nv_alloc import EngineType, copy_engine
from devrt.ioctl.nv_modes import MigMode
from devrt.ioctl.nv_status import Status
from devrt.virtual.nvidia.card import Card
from devrt.virtual.nvidia.mig import SIZES, ComputeInstance, GpuInstance
from devrt.virtual.nvidia.objects import ComputeSubscription, Device, GpuSubscription, Object, Subdevice
from devrt.virtual.nvidia.status import refuse

GRCES = 2  # copy engines that share the graphics engine's runlist: the first of them


@dataclass(frozen=True)
class Share:
    """`engines`: as the client numbers them -> as the GPU does. `tpcs` are by GPC, the first of which is `first_gpc`."""

    tpcs: tuple[int, ...]
    first_gpc: int
    engines: dict[int, int]
    instance: GpuInstance | None = None
    compute: ComputeInstance | None = None

    @property
    def split(self) -> bool:
        return self.instance is not None

    def part(self, nbytes: int) -> int:
        """The client's part of so much memory."""
        return nbytes if self.instance is None else self.instance.part(nbytes)


def share_of(one: Object) -> Share:
    """Raises Refused: OBJECT_NOT_FOUND where the GPU is split and the client has not said which part it wants."""
    device, card = one if isinstance(one, Device) else one.up(Device), one.card
    assert device is not None and card is not None  # only asked of objects below a device
    if not card.node.instances:
        return Share(card.model.tpcs, 0, {engine: engine for engine in card.model.engines})
    subscription = subscribed(device)
    if subscription is None or subscription.instance is None:
        refuse(Status.NV_ERR_OBJECT_NOT_FOUND)
    instance = subscription.instance
    compute = next((below.compute for below in subscription.children.values() if isinstance(below, ComputeSubscription)), None)
    first = GRCES + instance.first_copy
    engines: dict[int, int] = {EngineType.GRAPHICS: EngineType.GRAPHICS}
    engines |= {copy_engine(n): copy_engine(first + n) for n in range(instance.size.copies)}
    return Share(compute.tpcs if compute is not None else instance.size.tpcs, instance.first_gpc, engines, instance, compute)


def subscribed(device: Device) -> GpuSubscription | None:
    """What a device is subscribed to."""
    below = [one for child in device.children.values() if isinstance(child, Subdevice) for one in child.children.values()]
    return next((one for one in below if isinstance(one, GpuSubscription)), None)


def instance_of(one: Object) -> GpuInstance | None:
    """The GPU instance that an object is of."""
    device = one if isinstance(one, Device) else one.up(Device)
    found = subscribed(device) if device is not None else None
    return found.instance if found is not None else None


def usable(card: Card, instance: GpuInstance | None) -> tuple[int, int]:
    """(bytes that may be allocated, bytes that are) of the GPU or of an instance."""
    if instance is None:
        return card.node.vram_usable, card.vram_used
    return instance.part(card.node.vram_usable), card.used_by.get(instance.number, 0)


def mig_mode(card: Card, pending: bool) -> MigMode:
    """GpuInfo.GPU_SMC_MODE."""
    if card.model.key not in SIZES:
        return MigMode.UNSUPPORTED
    if card.node.instances is None:
        return MigMode.ENABLE_PENDING if pending else MigMode.DISABLED
    return MigMode.DISABLE_PENDING if pending else MigMode.ENABLED
