"""NV_ESC_RM_CONTROL: what a runtime asks of clients, devices, GPUs, channels and the debugger (ctrl/*.h)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from devrt.ioctl.nv_alloc import EngineType
from devrt.ioctl.nv_controls import FbInfo, GrInfo, P2pCaps, P2pStatus
from devrt.ioctl.nv_modes import GpuInfo
from devrt.ioctl.nv_status import Status
from devrt.virtual.nvidia.card import Card
from devrt.virtual.nvidia.objects import (
    Device,
    Object,
    RmClient,
    Subdevice,
)
from devrt.virtual.nvidia.rm import Call
from devrt.virtual.nvidia.share import GRCES, instance_of, mig_mode, share_of, usable
from devrt.virtual.nvidia.status import refuse

_NO_GPU = 0xFFFFFFFF
_BINARY = 2       # GET_GID_INFO: NV2080_GPU_CMD_GPU_GET_GID_FLAGS_FORMAT
_GRCE, _SYSMEM_READ_WRITE, _SHARED = 1, 0xC, 0x80  # NV2080_CTRL_CE_CAPS_CE_* of the first byte


@dataclass
class ControlCall:
    """One control on `target`; `params` is its struct."""

    call: Call
    client: RmClient
    target: Any
    params: Any

    @property
    def driver(self) -> Any:
        return self.call.driver

    @property
    def card(self) -> Card:
        card: Card | None = self.target.card
        assert card is not None  # only asked of objects below a device
        return card

    def gpu(self, gpu_id: int) -> Card:
        """Raises Refused: INVALID_ARGUMENT."""
        found: Card | None = next((card for card in self.driver.cards if card.node.gpu_id == gpu_id), None)
        return found if found is not None else refuse(Status.NV_ERR_INVALID_ARGUMENT)


Act = Callable[[ControlCall], None]


@dataclass(frozen=True)
class Row:
    of: tuple[type[Object], ...]
    act: Act
    without_gpu: bool


CONTROLS: dict[str, Row] = {}


def control(name: str, *of: type[Object], without_gpu: bool = False) -> Callable[[Act], Act]:
    """Register a control of objects of those kinds; one that asks nothing of the GPU works on a lost one too."""
    def register(act: Act) -> Act:
        CONTROLS[name] = Row(of, act, without_gpu)
        return act
    return register


# ---------------------------------------------------------------------------------------------------------------------
# The system


@control("NV0000_CTRL_CMD_SYSTEM_GET_BUILD_VERSION_V2", RmClient)
def build_version(call: ControlCall) -> None:
    version = call.driver.machine.driver
    call.params.driverVersionBuffer = call.params.versionBuffer = version.encode()
    call.params.driverBranch = f"r{version.partition('.')[0]}_00".encode()
    call.params.titleBuffer = f"NVIDIA UNIX Open Kernel Module {version}".encode()


def _fill_ids(array: Any, ids: list[int]) -> None:
    for index in range(len(array)):
        array[index] = ids[index] if index < len(ids) else _NO_GPU


@control("NV0000_CTRL_CMD_GPU_GET_ATTACHED_IDS", RmClient)
def attached_ids(call: ControlCall) -> None:
    _fill_ids(call.params.gpuIds, [card.node.gpu_id for card in call.driver.cards if card.ready])


@control("NV0000_CTRL_CMD_GPU_GET_PROBED_IDS", RmClient)
def probed_ids(call: ControlCall) -> None:
    _fill_ids(call.params.gpuIds, [card.node.gpu_id for card in call.driver.cards])
    _fill_ids(call.params.excludedGpuIds, [])


@control("NV0000_CTRL_CMD_GPU_ATTACH_IDS", RmClient)
def attach_ids(call: ControlCall) -> None:
    wanted = [gpu_id for gpu_id in call.params.gpuIds if gpu_id != _NO_GPU]
    cards = call.driver.cards if wanted[:1] == [0x0000FFFF] else [call.gpu(gpu_id) for gpu_id in wanted]  # ATTACH_ALL_PROBED_IDS
    for card in cards:
        if card.lost:
            call.params.failedId = card.node.gpu_id
            refuse(Status.NV_ERR_GPU_IS_LOST)
        card.attached += 1


@control("NV0000_CTRL_CMD_GPU_DETACH_IDS", RmClient)
def detach_ids(call: ControlCall) -> None:
    for gpu_id in [one for one in call.params.gpuIds if one != _NO_GPU]:
        card = call.gpu(gpu_id)
        card.attached = max(0, card.attached - 1)


@control("NV0000_CTRL_CMD_GPU_GET_ID_INFO_V2", RmClient)
def id_info(call: ControlCall) -> None:
    card = call.gpu(call.params.gpuId)
    if not card.ready:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    params = call.params
    params.gpuFlags, params.deviceInstance, params.subDeviceInstance = 1, card.node.index, 0
    params.sliStatus, params.boardId, params.gpuInstance, params.numaId = 0, card.node.bus << 8, card.node.index, -1


@control("NV0000_CTRL_CMD_GPU_GET_PCI_INFO", RmClient)
def pci_info(call: ControlCall) -> None:
    card = call.gpu(call.params.gpuId)
    call.params.domain, call.params.bus, call.params.slot = 0, card.node.bus, 0


@control("NV0000_CTRL_CMD_GPU_GET_UUID_FROM_GPU_ID", RmClient)
def uuid_from_gpu_id(call: ControlCall) -> None:
    _write_uuid(call, call.gpu(call.params.gpuId), call.params.gpuUuid, call.params.flags)
    call.params.uuidStrLen = 16 if call.params.flags & 3 == _BINARY else len(call.gpu(call.params.gpuId).node.uuid_text) + 1


def _write_uuid(call: ControlCall, card: Card, place: Any, flags: int) -> None:
    data = card.node.uuid if flags & 3 == _BINARY else card.node.uuid_text.encode() + b"\0"
    call.driver.tables.nvrm.ffi.buffer(place)[:len(data)] = data


@control("NV0000_CTRL_CMD_SYSTEM_GET_P2P_CAPS_V2", RmClient)
def p2p_caps(call: ControlCall) -> None:
    params = call.params
    count = params.gpuCount
    if not 0 < count <= 32:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    cards = [call.gpu(params.gpuIds[index]) for index in range(count)]
    pairs = [(one, other) for one in cards for other in cards if one is not other]
    kinds = {call.driver.link(one, other) for one, other in pairs} or {None}
    caps = P2pCaps(0)
    if None not in kinds:
        caps = P2pCaps.READS_SUPPORTED | P2pCaps.WRITES_SUPPORTED | P2pCaps.PROP_SUPPORTED
        caps |= P2pCaps.NVLINK_SUPPORTED | P2pCaps.ATOMICS_SUPPORTED if kinds == {"nvlink"} else P2pCaps.PCI_SUPPORTED
    params.p2pCaps = caps
    bits = (P2pCaps.READS_SUPPORTED, P2pCaps.WRITES_SUPPORTED, P2pCaps.NVLINK_SUPPORTED, P2pCaps.ATOMICS_SUPPORTED,
            P2pCaps.PROP_SUPPORTED, P2pCaps.LOOPBACK_SUPPORTED, P2pCaps.PCI_SUPPORTED)
    for index in range(len(params.p2pCapsStatus)):
        allowed = index < len(bits) and bool(caps & bits[index])
        params.p2pCapsStatus[index] = P2pStatus.OK if allowed else P2pStatus.NOT_SUPPORTED
    for row, one in enumerate(cards):
        for column, other in enumerate(cards):
            reached = one is other or call.driver.link(one, other) is not None
            params.busPeerIds[row * count + column] = column if reached else _NO_GPU
            params.busEgmPeerIds[row * count + column] = _NO_GPU


# ---------------------------------------------------------------------------------------------------------------------
# The GPU


@control("NV0080_CTRL_CMD_GPU_GET_CLASSLIST", Device)
def class_list(call: ControlCall) -> None:
    classes, params = call.card.model.classes, call.params
    if params.classList:
        if params.numClasses < len(classes):
            refuse(Status.NV_ERR_INVALID_PARAM_STRUCT)
        call.call.process.memory.write(params.classList, b"".join(one.to_bytes(4, "little") for one in classes))
    params.numClasses = len(classes)


@control("NV0080_CTRL_CMD_GPU_GET_CLASSLIST_V2", Device)
def class_list_v2(call: ControlCall) -> None:
    classes = call.card.model.classes
    call.params.numClasses = len(classes)
    for index, one in enumerate(classes):
        call.params.classList[index] = one


@control("NV0080_CTRL_CMD_GPU_GET_NUM_SUBDEVICES", Device, without_gpu=True)
def num_subdevices(call: ControlCall) -> None:
    call.params.numSubDevices = 1


@control("NV2080_CTRL_CMD_GPU_GET_GID_INFO", Subdevice, without_gpu=True)
def gid_info(call: ControlCall) -> None:
    _write_uuid(call, call.card, call.params.data, call.params.flags)
    call.params.length = 16 if call.params.flags & 3 == _BINARY else len(call.card.node.uuid_text) + 1


@control("NV2080_CTRL_CMD_GPU_GET_NAME_STRING", Subdevice)
def name_string(call: ControlCall) -> None:
    text = call.card.model.name.encode()
    name = call.params.gpuNameString
    if call.params.gpuNameStringFlags:
        if not hasattr(name, "unicode"):  # from 595 on there is no other form than ASCII
            refuse(Status.NV_ERR_INVALID_ARGUMENT)
        for index, letter in enumerate(text):
            name.unicode[index] = letter
    else:
        for index, letter in enumerate(text):
            name.ascii[index] = letter


@control("NV2080_CTRL_CMD_GPU_GET_ENGINES_V2", Subdevice)
def engines(call: ControlCall) -> None:
    found = share_of(call.target).engines
    call.params.engineCount = len(found)
    for index, engine in enumerate(found):
        call.params.engineList[index] = engine


@control("NV2080_CTRL_CMD_GPU_GET_INFO_V2", Subdevice)
def gpu_info(call: ControlCall) -> None:
    if call.params.gpuInfoListSize > len(call.params.gpuInfoList):
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    known: dict[int, int] = {GpuInfo.GPU_SM_VERSION: call.card.model.sm_version,
                             GpuInfo.GPU_SMC_MODE: mig_mode(call.card, call.driver.faults.stands("mig-pending"))}
    for index in range(call.params.gpuInfoListSize):
        row = call.params.gpuInfoList[index]
        row.data = known.get(row.index, 0)


@control("NV2080_CTRL_CMD_MC_GET_ARCH_INFO", Subdevice)
def arch_info(call: ControlCall) -> None:
    model = call.card.model
    call.params.architecture, call.params.implementation = model.architecture, model.implementation
    call.params.revision, call.params.subRevision = 0xA1, 0


def _gr_info(card: Card, index: int) -> int:
    """0 for what this model does not tell, as RM gives for what a chip lacks."""
    model = card.model
    known: dict[int, int] = {
        GrInfo.SM_VERSION: model.sm_version, GrInfo.MAX_WARPS_PER_SM: model.warps_per_sm, GrInfo.MAX_THREADS_PER_WARP: 32,
        GrInfo.LITTER_NUM_GPCS: model.most_gpcs, GrInfo.LITTER_NUM_TPC_PER_GPC: model.most_tpcs,
        GrInfo.GPU_CORE_COUNT: model.sms * (64 if model.sm in (75, 80) else 128), GrInfo.LITTER_NUM_SM_PER_TPC: 2,
        GrInfo.MAX_SUBCONTEXT_COUNT: 64,
    }
    return known.get(index, 0)


@control("NV2080_CTRL_CMD_GR_GET_INFO", Subdevice)
def gr_info(call: ControlCall) -> None:
    params, memory = call.params, call.call.process.memory
    share_of(call.target)  # of a split GPU some part is asked for
    if not params.grInfoListSize or not params.grInfoList:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    if params.grInfoListSize > 0x100:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    words = bytearray(memory.read(params.grInfoList, 8 * params.grInfoListSize))
    for at in range(0, len(words), 8):
        index = int.from_bytes(words[at:at + 4], "little")
        words[at + 4:at + 8] = _gr_info(call.card, index).to_bytes(4, "little")
    memory.write(params.grInfoList, bytes(words))


@control("NV2080_CTRL_CMD_GR_GET_INFO_V2", Subdevice)
def gr_info_v2(call: ControlCall) -> None:
    if call.params.grInfoListSize > len(call.params.grInfoList):
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    share_of(call.target)
    for index in range(call.params.grInfoListSize):
        row = call.params.grInfoList[index]
        row.data = _gr_info(call.card, row.index)


@control("NV2080_CTRL_CMD_GR_GET_GPC_MASK", Subdevice)
def gpc_mask(call: ControlCall) -> None:
    found = share_of(call.target)
    call.params.gpcMask = (1 << len(found.tpcs)) - 1 << found.first_gpc


@control("NV2080_CTRL_CMD_GR_GET_TPC_MASK", Subdevice)
def tpc_mask(call: ControlCall) -> None:
    tpcs = share_of(call.target).tpcs  # of an instance, GPCs are counted from 0 whatever their mask says
    if call.params.gpcId >= len(tpcs):
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    call.params.tpcMask = (1 << tpcs[call.params.gpcId]) - 1


@control("NV2080_CTRL_CMD_GR_GET_GLOBAL_SM_ORDER", Subdevice)
def global_sm_order(call: ControlCall) -> None:
    params, number = call.params, 0
    for gpc, tpcs in enumerate(share_of(call.target).tpcs):
        for tpc in range(tpcs):
            for sm in range(2):
                row = params.globalSmId[number]
                row.gpcId, row.localTpcId, row.localSmId, row.globalTpcId = gpc, tpc, sm, number // 2
                row.virtualGpcId = gpc
                number += 1
    params.numSm, params.numTpc = number, number // 2


@control("NV2080_CTRL_CMD_FB_GET_INFO_V2", Subdevice)
def fb_info(call: ControlCall) -> None:
    card, params = call.card, call.params
    if params.fbInfoListSize > len(params.fbInfoList):
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    node, model = card.node, card.model
    wanted = {params.fbInfoList[index].index for index in range(params.fbInfoListSize)}
    instance = instance_of(call.target)
    if node.instances and instance is None and wanted - {FbInfo.RAM_SIZE, FbInfo.TOTAL_RAM_SIZE}:
        refuse(Status.NV_ERR_INSUFFICIENT_PERMISSIONS)
    limit, used = usable(card, instance)
    total = model.vram_bytes if instance is None else instance.part(model.vram_bytes)
    known = {
        FbInfo.BAR1_SIZE: node.bar1_bytes, FbInfo.BAR1_AVAIL_SIZE: node.bar1_bytes - card.bar1_used,
        FbInfo.RAM_SIZE: total, FbInfo.TOTAL_RAM_SIZE: total, FbInfo.USABLE_RAM_SIZE: limit,
        FbInfo.HEAP_SIZE: limit, FbInfo.HEAP_FREE: limit - used,
    }
    plain = {FbInfo.L2CACHE_SIZE: model.l2_kib << 10, FbInfo.BUS_WIDTH: model.bus_bits}
    for index in range(params.fbInfoListSize):
        row = params.fbInfoList[index]
        row.data = plain[row.index] if row.index in plain else known.get(row.index, 0) >> 10


@control("NV2080_CTRL_CMD_FB_FLUSH_GPU_CACHE", Subdevice)
def flush_gpu_cache(call: ControlCall) -> None:
    if call.params.addressArraySize > len(call.params.addressArray):
        refuse(Status.NV_ERR_INVALID_ARGUMENT)


def _ce_caps(call: ControlCall) -> None:
    model, engine = call.card.model, share_of(call.target).engines.get(call.params.ceEngineType, 0)
    if engine not in model.engines or engine == EngineType.GRAPHICS:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    call.params.capsTbl[0] = _SYSMEM_READ_WRITE | (_GRCE if model.engines.index(engine) <= GRCES else _SHARED)
    call.params.capsTbl[1] = 0


control("NV2080_CTRL_CMD_CE_GET_CAPS_V2", Subdevice)(_ce_caps)
control("NV2080_CTRL_CMD_CE_GET_PHYSICAL_CAPS", Subdevice)(_ce_caps)


@control("NV2080_CTRL_CMD_TIMER_GET_TIME", Subdevice)
def timer_get_time(call: ControlCall) -> None:
    from devrt.virtual.nvidia.engine import now
    call.params.time_nsec = now()


@control("NV2080_CTRL_CMD_TIMER_GET_GPU_CPU_TIME_CORRELATION_INFO", Subdevice)
def time_correlation(call: ControlCall) -> None:
    from devrt.virtual.nvidia.engine import now
    params = call.params
    if params.cpuClkId not in (1, 2, 3) or not 0 < params.sampleCount <= len(params.samples):
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    for index in range(params.sampleCount):
        sample = params.samples[index]
        sample.gpuTime = now()
        sample.cpuTime = time.clock_gettime_ns(time.CLOCK_REALTIME if params.cpuClkId != 2 else time.CLOCK_MONOTONIC_RAW) // (
            1000 if params.cpuClkId == 1 else 1)


@control("NV2080_CTRL_CMD_PERF_BOOST", Subdevice)
def perf_boost(call: ControlCall) -> None:
    if call.params.flags & 3 == 3:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)


@control("NV2080_CTRL_CMD_EVENT_SET_NOTIFICATION", Subdevice)
def set_notification(call: ControlCall) -> None:
    if call.params.event >= 199 or call.params.action > 2:  # NV2080_NOTIFIERS_MAXCOUNT; disable, single, repeat
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
