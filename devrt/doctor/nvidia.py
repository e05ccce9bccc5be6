"""NVIDIA's GPUs as their kernel driver describes them: what it keeps in /proc, and what its own calls answer. No NVML.

Sources: open-gpu-kernel-modules kernel-open/nvidia/nv-procfs.c (files), src/common/sdk/nvidia/inc/ctrl (calls), class/cl00de.h
(the page of values that the driver keeps up to date).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from devrt.device import DeviceNotFound, DevrtError, DriverMismatch, PermissionDenied
from devrt.doctor import nvidia_tables as tables
from devrt.doctor.findings import ERROR, NOTE, WARNING, Finding, Reader
from devrt.doctor.gpus import Gpu
from devrt.ioctl.nv_alloc import NVOS33_FLAGS, flags
from devrt.ioctl.nv_classes import Class
from devrt.ioctl.nv_controls import FbInfo
from devrt.ioctl.nv_health import Poll
from devrt.ioctl.nv_versions import SHARED_DATA, Tables, tables_for
from devrt.ioctl.system import MAP_SHARED, PROT_READ, view
from devrt.nvidia import driver, modes
from devrt.nvidia.instances import Instance, Refusal, instances, subscribe, title
from devrt.nvidia.rm import ResourceManager

NVIDIA = 0x10DE
PAGE = 4096
POLL_S = 0.3    # how long values of the shared page may take to come
_INVALID, _WRITING = 0, (1 << 64) - 1  # of a block's lastModifiedTimestamp


class Rows(NamedTuple):
    """Memory rows that were replaced: counts by cause, banks without a spare, and what is still to be done."""

    correctable: int
    uncorrectable: int
    exhausted: int
    pending: bool
    failed: bool


class Part(NamedTuple):
    """An instance of a GPU that is split (MIG); `needs` is the node that this process can't open, "" where it may use it."""

    gpu_instance: int
    name: str
    needs: str

    @property
    def usable(self) -> bool:
        return not self.needs


@dataclass
class Card:
    """One GPU; None where the driver does not say."""

    gpu: Gpu
    about: dict[str, str] = field(default_factory=dict)  # /proc/driver/nvidia/gpus/*/information
    persistent: bool | None = None
    compute_mode: int | None = None
    memory_kib: int | None = None
    memory_free_kib: int | None = None
    bar1_kib: int | None = None
    ecc: dict[str, int] | None = None
    poisoned: bool = False
    rows: Rows | None = None
    power_mw: int | None = None
    power_limit_mw: tuple[int, int] | None = None  # requested, enforced
    temperatures_c: dict[str, float] = field(default_factory=dict)
    clocks_mhz: dict[str, int] = field(default_factory=dict)
    pstate: int | None = None
    throttle: int | None = None
    recovery: int | None = None
    links: dict[int, int] = field(default_factory=dict)  # NVLink -> its state
    fabric: tuple[int, int, int] | None = None  # state, status, health mask
    modes: modes.Modes | None = None
    parts: list[Part] = field(default_factory=list)
    closed: Refusal | None = None  # why no part of a split GPU can be used
    there: bool = True  # whether its node is
    failure: DevrtError | None = None


@dataclass
class Nvidia:
    """The GPUs that nvidia has, and p2p: (from, to) by address -> (p2pCaps, status of reads). `failure`: why it says nothing."""

    cards: list[Card] = field(default_factory=list)
    p2p: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    failure: DevrtError | None = None


def find(reader: Reader, gpus: list[Gpu]) -> Nvidia:
    """Every card as it is now. Opening one wakes it."""
    found = Nvidia([Card(gpu, _information(reader, gpu)) for gpu in gpus if gpu.vendor == NVIDIA and gpu.driven])
    if found.cards:
        try:
            _Survey(reader, found).run()
        except DevrtError as error:
            found.failure = error
    return found


def check(nvidia: Nvidia) -> Iterator[Finding]:
    """What kept the driver from answering, where the checks of nodes and of the driver's version do not say it."""
    if nvidia.failure is not None and not isinstance(nvidia.failure, (DeviceNotFound, PermissionDenied, DriverMismatch)):
        yield Finding("nvidia-driver", WARNING, f"how NVIDIA's GPUs are is unknown: {nvidia.failure.what}",
                      nvidia.failure.evidence, nvidia.failure.remedy)
    for card in nvidia.cards:
        if card.failure is not None and card.there:  # the checks of nodes tell of one that is not
            failure = card.failure
            yield Finding("nvidia-driver", ERROR, f"{card.gpu}: {failure.what}", failure.evidence, failure.remedy)
        if card.about.get("GPU Excluded") == "Yes":
            yield Finding("nvidia-driver", NOTE, f"{card.gpu}: the driver leaves it out", "GPU Excluded: Yes",
                          "take it out of NVreg_ExcludedGpus in /etc/modprobe.d, and load nvidia anew")


def _information(reader: Reader, gpu: Gpu) -> dict[str, str]:
    text = reader.text(f"/proc/driver/nvidia/gpus/{gpu.address}/information") or ""
    return {name: value for name, value in re.findall(r"^([^:\n]{1,40}):[ \t]*([^\n]{0,80}?)[ \t]*$", text, re.MULTILINE)
            if "?" not in value}


# ---------------------------------------------------------------------------------------------------------------------
# Asking the driver


class _Survey:
    """A client of the resource manager that looks and touches nothing."""

    def __init__(self, reader: Reader, found: Nvidia) -> None:
        self.system, self.found = reader.system, found
        self.tables: Tables = tables_for(driver.version(self.system))
        self.ids: dict[str, int] = {}

    def run(self) -> None:
        fds: list[int] = []
        try:
            fds.append(driver.open_node(self.system, driver.CONTROL_NODE))
            self.rm = ResourceManager(self.system, self.tables, fds[0], -1)
            rows = {row.pci: row for row in driver.cards(self.system, self.tables, fds[0])}
            for card in self.found.cards:
                row = rows.get(card.gpu.address)
                if row is None:
                    continue
                try:
                    fds.append(driver.open_node(self.system, row.node))
                    driver.register(self.system, self.tables, row.node, fds[-1], fds[0])
                    self._card(card, row)
                    self.ids[card.gpu.address] = row.gpu_id
                except DevrtError as error:
                    card.failure, card.there = error, self.system.stat(row.node).exists
            self._peers()
        finally:
            for fd in reversed(fds):  # closing the control node frees the client's objects
                self.system.close(fd)

    def _objects(self, card: Card, row: driver.Card) -> tuple[int, int]:
        """A device and a subdevice of a card."""
        rm = self.rm
        about = rm.control(f"can't identify {card.gpu}", rm.client, "NV0000_CTRL_CMD_GPU_GET_ID_INFO_V2", gpuId=row.gpu_id)
        device = rm.alloc("the driver gives no access to it", 0, Class.NV01_DEVICE_0, deviceId=about.deviceInstance,
                          hClientShare=rm.client)
        return device, rm.alloc("the driver gives no access to it", device, Class.NV20_SUBDEVICE_0,
                                subDeviceId=about.subDeviceInstance)

    def _card(self, card: Card, row: driver.Card) -> None:
        rm = self.rm
        device, subdevice = self._objects(card, row)

        def ask(name: str, handle: int = subdevice, **fields: Any) -> Any:
            """What a control answers, None where this driver or this GPU does not have it."""
            if name not in self.tables.controls:
                return None
            try:
                return rm.control(f"{name} of {card.gpu}", handle, name, **fields)
            except DevrtError:
                return None

        card.modes = modes.ask(rm, device, subdevice)
        if card.modes.split:
            self._parts(card, row, ask)
        self._modes(card, ask, device)
        self._memory(card, ask)
        self._errors(card, ask)
        self._links(card, ask)
        if self.tables.branch in SHARED_DATA:
            self._live(card, device, subdevice)

    def _parts(self, card: Card, row: driver.Card, ask: Callable[..., Any]) -> None:
        """The instances of a card, by name where they can be used."""
        assert card.modes is not None  # by the caller
        shown = instances(self.system, row.minor)
        memory = ask("NV2080_CTRL_CMD_FB_GET_INFO_V2", fbInfoListSize=1, fbInfoList=[{"index": FbInfo.TOTAL_RAM_SIZE}])
        total = int(memory.fbInfoList[0].data) if memory is not None else 0
        for one in shown:
            needs = one.missing(self.system)
            name = str(one).removeprefix("MIG ") if needs else self._part(card, row, one, total)
            card.parts.append(Part(one.gpu, name, needs))
        if not any(part.usable for part in card.parts):
            card.closed = modes.nothing_to_use(card.modes, self.system, shown, row.pci)

    def _part(self, card: Card, row: driver.Card, one: Instance, total_kib: int) -> str:
        """An instance's name and UUID. What is subscribed to it is freed again."""
        try:
            device, subdevice = self._objects(card, row)
            try:
                taken = subscribe(self.system, self.rm, subdevice, one, str(card.gpu))
                uuid = self.rm.control("", taken.compute, "NVC638_CTRL_CMD_GET_UUID")
                name = title(self.rm, subdevice, taken, one, total_kib).removeprefix("MIG ")
            finally:
                self.rm.free(0, device)
        except DevrtError as error:
            return f"{one} ({error.evidence})"
        text = bytes(self.tables.nvrm.ffi.buffer(uuid.uuidStr)).partition(b"\0")[0].decode("ascii", "replace")
        return f"{name} ({text})"

    def _modes(self, card: Card, ask: Callable[..., Any], device: int) -> None:
        if (kept := ask("NV0080_CTRL_CMD_GPU_QUERY_SW_STATE_PERSISTENCE", device)) is not None:
            card.persistent = kept.swStatePersistence == 0  # ctrl0080gpu.h: 0 is enabled
        if (mode := ask("NV2080_CTRL_CMD_GPU_QUERY_COMPUTE_MODE_RULES")) is not None:
            card.compute_mode = int(mode.rules)
        if (state := ask("NV2080_CTRL_CMD_PERF_GET_CURRENT_PSTATE")) is not None and state.currPstate:
            card.pstate = int(state.currPstate).bit_length() - 1  # NV2080_CTRL_PERF_PSTATES_P0 is bit 0
        if (action := ask("NV2080_CTRL_CMD_GPU_GET_RECOVERY_ACTION")) is not None:
            card.recovery = int(action.action)

    def _memory(self, card: Card, ask: Callable[..., Any]) -> None:
        wanted = (FbInfo.HEAP_SIZE, FbInfo.HEAP_FREE, FbInfo.BAR1_SIZE)
        made = ask("NV2080_CTRL_CMD_FB_GET_INFO_V2", fbInfoListSize=len(wanted),
                   fbInfoList=[{"index": index} for index in wanted])
        if made is not None:
            card.memory_kib, card.memory_free_kib, card.bar1_kib = (int(made.fbInfoList[n].data) for n in range(len(wanted)))

    def _errors(self, card: Card, ask: Callable[..., Any]) -> None:
        counts = ask("NV2080_CTRL_CMD_ECC_GET_VOLATILE_COUNTS")
        if counts is not None:
            card.ecc = {"DRAM corrected": int(counts.dramCorTot), "SRAM corrected": int(counts.sramCorUni),
                        "DRAM uncorrectable": int(counts.dramUncTot),
                        "SRAM uncorrectable": int(counts.sramUncParityUni + counts.sramUncSecDedUni)}
        if (status := ask("NV2080_CTRL_CMD_GPU_QUERY_ECC_STATUS")) is not None:
            card.poisoned = bool(status.bFatalPoisonError)
        rows, banks = ask("NV2080_CTRL_CMD_FB_GET_REMAPPED_ROWS"), ask("NV2080_CTRL_CMD_FB_GET_ROW_REMAPPER_HISTOGRAM")
        if rows is not None:
            sources = [int(rows.entries[n].source) for n in range(rows.entryCount)]
            card.rows = Rows(sources.count(tables.ROW_SBE), sources.count(tables.ROW_DBE),
                             int(banks.histogram[tables.ROWS_EXHAUSTED]) if banks is not None else 0,
                             bool(rows.flags & tables.ROWS_PENDING), bool(rows.flags & tables.ROWS_FAILED))

    def _links(self, card: Card, ask: Callable[..., Any]) -> None:
        status = ask("NV2080_CTRL_CMD_NVLINK_GET_NVLINK_STATUS")
        if status is not None:
            mask = int(status.enabledLinkMask)
            rows = {n: status.linkInfo[n] for n in range(mask.bit_length()) if mask >> n & 1}
            card.links = {n: int(row.linkState) for n, row in rows.items() if row.connected}
        if (fabric := ask("NV2080_CTRL_CMD_GET_GPU_FABRIC_PROBE_INFO")) is not None:
            card.fabric = int(fabric.state), int(fabric.status), int(fabric.fabricHealthMask)

    # ----- the page that the driver keeps up to date

    def _live(self, card: Card, device: int, subdevice: int) -> None:
        """Clocks, power and temperatures: polled by the driver once somebody asked, so the first values take a moment."""
        polled = Poll.CLOCK | Poll.PERF | Poll.POWER | Poll.THERMAL
        try:
            handle = self.rm.alloc("the driver shares no values", subdevice, Class.RM_USER_SHARED_DATA, polledDataMask=polled)
            fd = driver.open_node(self.system, driver.CONTROL_NODE)
            try:
                self.rm.map_memory("the driver does not show its values", device, handle, fd,
                                   self.tables.nvrm.size("NV00DE_SHARED_DATA"), flags(NVOS33_FLAGS, ACCESS="READ_ONLY"))
                address = self.system.mmap(fd, PAGE, PROT_READ, MAP_SHARED)
            finally:
                self.system.close(fd)
        except (DevrtError, OSError):
            return  # not every GPU has it, and every other check goes on without
        try:
            self._read(card, address)
        finally:
            self.system.munmap(address, PAGE)

    def _read(self, card: Card, address: int) -> None:
        uapi = self.tables.nvrm
        until = time.monotonic() + POLL_S
        while True:
            page = uapi.fields("NV00DE_SHARED_DATA", bytes(view(address, uapi.size("NV00DE_SHARED_DATA"))))
            if _said(page["clkPublicDomainInfos"]) or time.monotonic() > until:
                break
            time.sleep(0.01)
        if _said(clocks := page["clkPublicDomainInfos"]):
            card.clocks_mhz = {name: row["targetClkMHz"] for name, row in zip(tables.RUSD_CLOCKS, clocks["info"], strict=False)
                               if row["targetClkMHz"]}
        if _said(reason := page.get("clkThrottleReason") or page.get("clkThrottleInfo") or {}):
            card.throttle = reason["reasonMask"]
        if _said(limit := page["powerLimitGpu"]):
            card.power_limit_mw = limit["info"]["requestedmW"], limit["info"]["enforcedmW"]
        for block, name in (("instPowerUsage", "instGpuPower"), ("avgPowerUsage", "averageGpuPower")):
            if card.power_mw is None and _said(page[block]) and page[block]["info"][name]:
                card.power_mw = page[block]["info"][name]
        for sensor, row in zip(tables.SENSORS, page["temperatures"], strict=False):
            if _said(row) and row["temperature"]:
                card.temperatures_c[sensor] = row["temperature"] / 256  # NvTemp: signed 24.8

    # ----- peers

    def _peers(self) -> None:
        """Who reaches whom, pair by pair: asked for several GPUs at once, the driver answers for the worst pair."""
        for a, first in self.ids.items():
            for b, second in self.ids.items():
                if a == b:
                    continue
                try:
                    caps = self.rm.control("can't ask for the ways between GPUs", self.rm.client,
                                           "NV0000_CTRL_CMD_SYSTEM_GET_P2P_CAPS_V2", gpuIds=[first, second], gpuCount=2)
                except DevrtError:
                    continue  # the matrix shows it as unknown
                self.found.p2p[a, b] = int(caps.p2pCaps), int(caps.p2pCapsStatus[tables.P2P_READ_INDEX])


def _said(block: dict[str, Any]) -> bool:
    """Whether a block holds values: it was written, and is not being written."""
    return block.get("lastModifiedTimestamp", _INVALID) not in (_INVALID, _WRITING)
