"""How a GPU is doing: controls of nv_health, and the page of shared data that RM keeps up to date."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from devrt.ioctl.nv_controls import ComputeMode
from devrt.ioctl.nv_health import BusInfo, Poll
from devrt.ioctl.nv_status import Status
from devrt.ioctl.uapi import Uapi
from devrt.virtual.nvidia.card import Card
from devrt.virtual.nvidia.controls import ControlCall, control
from devrt.virtual.nvidia.objects import Device, SharedData, Subdevice
from devrt.virtual.nvidia.status import refuse

_PERIOD_S = 0.1      # how often the page is written again
_WRITING = (1 << 64) - 1
_P0, _P8 = 1 << 0, 1 << 8  # NV2080_CTRL_PERF_PSTATES_*
_LINK_ACTIVE, _LINK_INVALID = 3, 0xFFFFFFFF  # NV2080_CTRL_NVLINK_STATUS_LINK_STATE_*
_SWITCH, _GPU = 3, 2  # NV2080_CTRL_NVLINK_DEVICE_INFO_DEVICE_TYPE_*
_FABRIC_UNSUPPORTED, _FABRIC_COMPLETE = 0, 3  # NV2080_CTRL_GPU_FABRIC_PROBE_STATE_*
_THERMAL_SENSORS, _THERMAL_TARGET, _THERMAL_RANGE, _THERMAL_READING = 0x500, 0x520, 0x540, 0x1500
_ROW_REMAP_BANKS = 512


def _busy(card: Card) -> bool:
    return bool(card.channels)


def _milliwatts(card: Card) -> int:
    return int(card.model.power_w * (320 if _busy(card) else 110))


# ---------------------------------------------------------------------------------------------------------------------
# Shared data


def keep_up_to_date(made: SharedData, card: Card, table: Uapi) -> Callable[[], None]:
    """Write the page now, and again and again while anything of it is polled. Returns what ends that."""
    assert made.store is not None  # set when it was made
    place = table.ffi.cast("struct NV00DE_SHARED_DATA *", made.store.host)
    done = threading.Event()

    def keep() -> None:
        while not done.wait(_PERIOD_S):
            _write(place, card, made.polled)

    _write(place, card, made.polled)
    thread = threading.Thread(target=keep, name="virtual RUSD", daemon=True)
    thread.start()

    def close() -> None:
        done.set()
        thread.join()

    return close


def _write(place: Any, card: Card, polled: int) -> None:
    """Every block that is polled; a block is all ones while it is written."""
    model, health, node = card.model, card.health, card.node

    def block(name: str, mask: Poll | int, fill: Callable[[Any], None]) -> None:
        one = getattr(place, name, None)
        if one is None or mask and not polled & mask:
            return
        one.lastModifiedTimestamp = _WRITING
        fill(one)
        one.lastModifiedTimestamp = time.time_ns()

    def bar1(one: Any) -> None:
        one.bar1Size, one.bar1AvailSize = node.bar1_bytes >> 10, (node.bar1_bytes - card.bar1_used) >> 10

    def memory(one: Any) -> None:
        one.totalPmaMemory, one.freePmaMemory = node.vram_usable, node.vram_usable - card.vram_used

    def clocks(one: Any) -> None:
        busy = _busy(card)
        for index, mhz in enumerate((model.clock_mhz if busy else 210, model.memory_mhz if busy else 405, 1185,
                                     model.clock_mhz if busy else 210)):
            one.info[index].targetClkMHz = mhz

    def throttle(one: Any) -> None:
        one.reasonMask = health.throttle or (0 if _busy(card) else 1)  # idle

    def use(one: Any) -> None:
        one.info.gpuPercentBusy = one.info.memoryPercentBusy = 0

    def ecc(one: Any) -> None:
        for count, corrected, uncorrected in ((one.count[0], health.dram_corrected, health.dram_uncorrected),
                                              (one.count[1], health.sram_corrected, health.sram_uncorrected)):
            count.correctedVolatile = count.correctedAggregate = corrected
            count.uncorrectedVolatile = count.uncorrectedAggregate = uncorrected

    def pstate(one: Any) -> None:
        one.currentPstate = _P0 if _busy(card) else _P8

    def limits(one: Any) -> None:
        one.info.requestedmW = one.info.enforcedmW = model.power_w * 1000

    def remap(one: Any) -> None:
        one.info.histogramMax = _ROW_REMAP_BANKS - health.remapped_uncorrectable
        one.info.correctableRows, one.info.uncorrectableRows = health.remapped_correctable, health.remapped_uncorrectable
        one.info.isPending, one.info.hasFailureOccurred = int(health.remap_pending), int(health.remap_failed)

    def average(one: Any) -> None:
        one.info.averageGpuPower = one.info.averageModulePower = _milliwatts(card)
        one.info.averageMemoryPower = _milliwatts(card) // 5

    def instant(one: Any) -> None:
        one.info.instGpuPower = one.info.instModulePower = _milliwatts(card)

    def pcie(one: Any) -> None:
        one.info.data[0] = health.replays

    block("bar1MemoryInfo", 0, bar1)
    block("pmaMemoryInfo", 0, memory)
    block("clkPublicDomainInfos", Poll.CLOCK, clocks)
    block("clkThrottleReason", Poll.CLOCK | Poll.PERF, throttle)
    block("clkThrottleInfo", Poll.CLOCK | Poll.PERF, throttle)
    block("perfDevUtil", Poll.PERF, use)
    if model.ecc:
        block("memEcc", Poll.MEMORY, ecc)
        block("memRowRemap", Poll.MEMORY, remap)
    block("perfCurrentPstate", Poll.PERF, pstate)
    block("powerLimitGpu", Poll.POWER, limits)
    block("avgPowerUsage", Poll.POWER, average)
    block("instPowerUsage", Poll.POWER, instant)
    block("pciBusData", Poll.PCI, pcie)
    if polled & Poll.THERMAL:
        readings = (health.celsius, health.memory_celsius)
        for index in range(min(len(place.temperatures), len(readings))):
            one = place.temperatures[index]
            one.lastModifiedTimestamp = _WRITING
            one.temperature = int(readings[index] * 256)
            one.lastModifiedTimestamp = time.time_ns()


# ---------------------------------------------------------------------------------------------------------------------
# Controls


@control("NV00DE_CTRL_CMD_REQUEST_DATA_POLL", SharedData)
def request_data_poll(call: ControlCall) -> None:
    call.target.polled = call.params.polledDataMask


@control("NV0080_CTRL_CMD_GPU_QUERY_SW_STATE_PERSISTENCE", Device)
def persistence(call: ControlCall) -> None:
    call.params.swStatePersistence = 0  # NV0080_CTRL_GPU_SW_STATE_PERSISTENCE_ENABLED


@control("NV2080_CTRL_CMD_GPU_QUERY_COMPUTE_MODE_RULES", Subdevice)
def query_compute_mode(call: ControlCall) -> None:
    exclusive = call.driver.faults.stands("exclusive")
    call.params.rules = ComputeMode.EXCLUSIVE_COMPUTE_PROCESS if exclusive else ComputeMode.NONE


@control("NV2080_CTRL_CMD_GPU_SET_COMPUTE_MODE_RULES", Subdevice)
def set_compute_mode(call: ControlCall) -> None:
    refuse(Status.NV_ERR_INSUFFICIENT_PERMISSIONS)


@control("NV2080_CTRL_CMD_GPU_GET_PIDS", Subdevice)
def pids(call: ControlCall) -> None:
    clients = [one for one in call.driver.clients.values() if one.process is not None]
    found = sorted({one.process.key for one in clients if any(child.card is call.card for child in one.children.values())})
    call.params.pidTblCount = len(found)
    for index, pid in enumerate(found):
        call.params.pidTbl[index] = pid


@control("NV2080_CTRL_CMD_GPU_GET_RECOVERY_ACTION", Subdevice)
def recovery_action(call: ControlCall) -> None:
    call.params.action = call.card.health.recovery_action


@control("NV2080_CTRL_CMD_GET_GPU_FABRIC_PROBE_INFO", Subdevice)
def fabric_probe(call: ControlCall) -> None:
    connected = bool(call.card.model.nvlinks) and len(call.driver.cards) > 2
    call.params.state = _FABRIC_COMPLETE if connected else _FABRIC_UNSUPPORTED
    call.params.status = Status.NV_OK


@control("NV2080_CTRL_CMD_GSP_GET_FEATURES", Subdevice)
def gsp_features(call: ControlCall) -> None:
    call.params.bValid = call.params.bDefaultGspRmGpu = 1
    call.params.gspFeatures = 1
    for index, letter in enumerate(call.driver.machine.driver.encode()):
        call.params.firmwareVersion[index] = letter


@control("NV2080_CTRL_CMD_PERF_GET_CURRENT_PSTATE", Subdevice)
def current_pstate(call: ControlCall) -> None:
    call.params.currPstate = _P0 if _busy(call.card) else _P8


@control("NV2080_CTRL_CMD_GPU_QUERY_ECC_STATUS", Subdevice)
def ecc_status(call: ControlCall) -> None:
    if not call.card.model.ecc:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    health = call.card.health
    dram = call.params.units[0]  # NV2080_CTRL_GPU_ECC_UNIT_FBPA
    dram.enabled = dram.supported = dram.scrubComplete = 1
    dram.sbe.count = dram.sbeNonResettable.count = health.dram_corrected
    dram.dbe.count = dram.dbeNonResettable.count = health.dram_uncorrected
    call.params.uncorrectableError = int(health.dram_uncorrected + health.sram_uncorrected > 0)


@control("NV2080_CTRL_CMD_ECC_GET_VOLATILE_COUNTS", Subdevice)
def ecc_volatile(call: ControlCall) -> None:
    if not call.card.model.ecc:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    health, params = call.card.health, call.params
    params.sramCorUni, params.sramUncSecDedUni = health.sram_corrected, health.sram_uncorrected
    params.dramCorTot, params.dramUncTot = health.dram_corrected, health.dram_uncorrected


@control("NV2080_CTRL_CMD_ECC_GET_CLIENT_EXPOSED_COUNTERS", Subdevice)
def ecc_exposed(call: ControlCall) -> None:
    if not call.card.model.ecc:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    health, params = call.card.health, call.params
    params.sramCorrectedUnique, params.sramSecDedUncorrectedUnique = health.sram_corrected, health.sram_uncorrected
    params.dramCorrectedTotal, params.dramUncorrectedTotal = health.dram_corrected, health.dram_uncorrected


@control("NV2080_CTRL_CMD_FB_GET_REMAPPED_ROWS", Subdevice)
def remapped_rows(call: ControlCall) -> None:
    if not call.card.model.ecc or call.card.model.sm < 80:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    health, params = call.card.health, call.params
    params.entryCount = health.remapped_correctable + health.remapped_uncorrectable
    params.flags = int(health.remap_pending) | int(health.remap_failed) << 1
    for index in range(params.entryCount):
        params.entries[index].source = 2 if index < health.remapped_correctable else 3  # SBE_FIELD, DBE_FIELD


@control("NV2080_CTRL_CMD_FB_GET_ROW_REMAPPER_HISTOGRAM", Subdevice)
def remapper_histogram(call: ControlCall) -> None:
    if not call.card.model.ecc or call.card.model.sm < 80:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    health = call.card.health
    call.params.histogram[0] = _ROW_REMAP_BANKS - health.remapped_uncorrectable
    call.params.histogram[1] = health.remapped_uncorrectable


@control("NV2080_CTRL_CMD_RC_GET_ERROR_COUNT", Subdevice)
def rc_error_count(call: ControlCall) -> None:
    call.params.errorCount = len(call.card.health.errors)


@control("NV2080_CTRL_CMD_RC_GET_ERROR_V2", Subdevice)
def rc_error(call: ControlCall) -> None:
    if call.params.whichBuffer >= len(call.card.health.errors):
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    call.params.outputRecordSize = 0


# ---------------------------------------------------------------------------------------------------------------------
# Links


@control("NV2080_CTRL_CMD_BUS_GET_PCI_INFO", Subdevice, without_gpu=True)
def bus_pci_info(call: ControlCall) -> None:
    call.params.pciDeviceId = call.params.pciExtDeviceId = call.card.model.device_id << 16 | 0x10DE
    call.params.pciSubSystemId, call.params.pciRevisionId = 0x16C110DE, 0xA1


@control("NV2080_CTRL_CMD_BUS_GET_PCI_BAR_INFO", Subdevice)
def bus_bars(call: ControlCall) -> None:
    node = call.card.node
    bars = ((node.registers, 16 << 20), (node.aperture, node.bar1_bytes), (node.aperture + node.bar1_bytes, 32 << 20))
    call.params.pciBarCount = len(bars)
    for index, (offset, nbytes) in enumerate(bars):
        row = call.params.pciBarInfo[index]
        row.barSize, row.barSizeBytes, row.barOffset = min(nbytes >> 20, 0xFFFFFFFF), nbytes, offset


@control("NV2080_CTRL_CMD_BUS_GET_INFO_V2", Subdevice)
def bus_info(call: ControlCall) -> None:
    params, generation, health = call.params, call.card.model.pcie_generation, call.card.health
    if params.busInfoListSize > len(params.busInfoList):
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    # Speed in 3:0 and width in 9:4 of LINK_CAPS; speed in 19:16 and width in 25:20 of CTRL_STATUS; generations less one behind.
    caps = generation | 16 << 4 | (generation - 1) << 12 | (generation - 1) << 16 | (generation - 1) << 20
    known = {BusInfo.PCIE_GPU_LINK_CAPS: caps, BusInfo.PCIE_GEN_INFO: caps,
             BusInfo.PCIE_GPU_LINK_CTRL_STATUS: generation << 16 | 16 << 20,
             BusInfo.PCIE_GPU_LINK_CRC_ERRORS: health.link_errors, BusInfo.PCIE_GPU_LINK_NAKS_RECEIVED: health.replays,
             BusInfo.PCIE_GPU_LINK_CORRECTABLE_ERRORS: health.link_errors}
    for index in range(params.busInfoListSize):
        row = params.busInfoList[index]
        row.data = known.get(row.index, 0)


@control("NV2080_CTRL_CMD_BUS_GET_PEX_COUNTERS", Subdevice)
def pex_counters(call: ControlCall) -> None:
    call.params.pexTotalCorrectableErrors = call.card.health.link_errors


def _mask(place: Any, name: str, bits: int) -> None:
    """A mask of links: a word, or from 580 on a struct of words beside it."""
    rows = getattr(place, name)
    if isinstance(rows, int):
        setattr(place, name, bits)
    else:
        rows.lenMasks, rows.masks[0] = 1, bits


@control("NV2080_CTRL_CMD_NVLINK_GET_NVLINK_CAPS", Subdevice)
def nvlink_caps(call: ControlCall) -> None:
    model, params = call.card.model, call.params
    if not model.nvlinks:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    bits = (1 << model.nvlinks) - 1
    params.capsTbl = 0x1B  # supported, P2P, P2P atomics, valid
    params.lowestNvlinkVersion = params.highestNvlinkVersion = model.nvlink_version
    params.lowestNciVersion = params.highestNciVersion = model.nvlink_version
    params.discoveredLinkMask = params.enabledLinkMask = bits
    _mask(params, "discoveredLinks", bits)
    _mask(params, "enabledLinks", bits)


@control("NV2080_CTRL_CMD_NVLINK_GET_NVLINK_STATUS", Subdevice)
def nvlink_status(call: ControlCall) -> None:
    model, params = call.card.model, call.params
    if not model.nvlinks:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    peers = [card for card in call.driver.cards if call.driver.link(call.card, card) == "nvlink"]
    bits = (1 << model.nvlinks) - 1
    params.enabledLinkMask = bits
    if hasattr(params, "enabledLinks"):
        _mask(params, "enabledLinks", bits)
    rate = 53125 if model.sm >= 90 else 50000  # Mbit/s of a lane
    for index in range(model.nvlinks):
        row = params.linkInfo[index]
        row.capsTbl, row.nvlinkVersion, row.nciVersion = 0x1B, model.nvlink_version, model.nvlink_version
        row.linkState = _LINK_ACTIVE if peers else _LINK_INVALID
        row.connected, row.localDeviceLinkNumber, row.remoteDeviceLinkNumber = int(bool(peers)), index, index
        row.nvlinkLineRateMbps = rate
        row.nvlinkLinkDataRateKiBps = 26_562_500 if model.sm >= 90 else 25_000_000
        row.localDeviceInfo.deviceType = _GPU
        row.localDeviceInfo.bus = call.card.node.bus
        if peers:
            switch = len(call.driver.cards) > 2
            row.remoteDeviceInfo.deviceType = _SWITCH if switch else _GPU
            row.remoteDeviceInfo.bus = 0xF0 + index % 4 if switch else peers[index % len(peers)].node.bus


@control("NV2080_CTRL_CMD_NVLINK_GET_ERR_INFO", Subdevice)
def nvlink_errors(call: ControlCall) -> None:
    if not call.card.model.nvlinks:
        refuse(Status.NV_ERR_NOT_SUPPORTED)
    call.params.linkMask = (1 << call.card.model.nvlinks) - 1


@control("NV2080_CTRL_CMD_THERMAL_SYSTEM_EXECUTE_V2", Subdevice)
def thermal(call: ControlCall) -> None:
    params = call.params
    if params.clientAPIVersion != 1 or params.clientInstructionSizeOf != 44:
        refuse(Status.NV_ERR_INVALID_PARAM_STRUCT)
    if params.instructionListSize > len(params.instructionList):
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    readings = (call.card.health.celsius, call.card.health.memory_celsius)
    params.successfulInstructions = 0
    for index in range(params.instructionListSize):
        row = params.instructionList[index]
        operands = row.operands
        sensor = operands.getStatusSensorReading.sensorIndex
        row.executed, row.result = 1, Status.NV_OK
        if row.opcode == _THERMAL_SENSORS:
            operands.getInfoSensorsAvailable.availableSensors = len(readings)
        elif sensor >= len(readings):
            row.result = Status.NV_ERR_INVALID_ARGUMENT
        elif row.opcode == _THERMAL_TARGET:
            operands.getInfoSensorTarget.targetIndex = sensor
        elif row.opcode == _THERMAL_RANGE:
            operands.getInfoSensorReadingRange.minimum, operands.getInfoSensorReadingRange.maximum = -40, 127
        elif row.opcode == _THERMAL_READING:
            operands.getStatusSensorReading.value = int(readings[sensor])
        else:
            row.result = Status.NV_ERR_NOT_SUPPORTED
        params.successfulInstructions += int(row.result == Status.NV_OK)
