"""What controls tell of a virtual GPU. The witness is the model's row where it names a number, and arithmetic over answers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from devrt.ioctl.nv_classes import Class, choose
from devrt.ioctl.nv_controls import AccessType, FaultType, FbInfo, GrInfo
from devrt.ioctl.nv_health import BusInfo, Poll
from devrt.ioctl.nv_versions import SHARED_DATA
from devrt.virtual.nvidia.channel import ChannelError
from devrt.virtual.nvidia.faults import MmuFault, SmError
from devrt.virtual.nvidia.machine import MODELS, OF_SM
from tests.virtual.nvidia.rm_client import Gpu, Refusal, RmClient, machine

MIB = 1 << 20
SMS = {"t4": 40, "a100": 108, "rtx3090": 82, "a10": 72, "rtx4090": 128, "l4": 58, "h100": 132, "h200": 132, "rtx5090": 170}


def refused(status: str) -> Any:
    return pytest.raises(Refusal, match=f"^NV_ERR_{status}$")


def pairs(client: RmClient, target: int, name: str, *indices: int) -> list[int]:
    """The data of {index, data} pairs of a control that takes them in its struct."""
    head = {"NV2080_CTRL_CMD_FB_GET_INFO_V2": "fbInfoList", "NV2080_CTRL_CMD_BUS_GET_INFO_V2": "busInfoList",
            "NV2080_CTRL_CMD_GR_GET_INFO_V2": "grInfoList"}[name]
    rows = [{"index": index} for index in indices]
    answer = client.control(target, name, **{f"{head}Size": len(rows), head: rows})
    return [getattr(answer, head)[n].data for n in range(len(rows))]


@pytest.mark.parametrize("key", SMS)
def test_models(key: str) -> None:
    """SM counts of NVIDIA's product pages; the classes that a runtime chooses are those of the chip."""
    with machine(key) as system:
        client = RmClient(system)
        gpu = Gpu(client)
        gpcs = client.control(gpu.subdevice, "NV2080_CTRL_CMD_GR_GET_GPC_MASK").gpcMask
        masks = [client.control(gpu.subdevice, "NV2080_CTRL_CMD_GR_GET_TPC_MASK", gpcId=gpc).tpcMask
                 for gpc in range(gpcs.bit_length())]
        most_gpcs, most_tpcs, per_tpc, version = pairs(
            client, gpu.subdevice, "NV2080_CTRL_CMD_GR_GET_INFO_V2", GrInfo.LITTER_NUM_GPCS, GrInfo.LITTER_NUM_TPC_PER_GPC,
            GrInfo.LITTER_NUM_SM_PER_TPC, GrInfo.SM_VERSION)
        assert sum(bin(mask).count("1") for mask in masks) * per_tpc == SMS[key]
        assert len(masks) <= most_gpcs and max(mask.bit_length() for mask in masks) <= most_tpcs
        assert (version >> 8) * 10 + (version & 0xFF) in (gpu.card.model.sm, 82, 104)  # sm_80 says 8.2, sm_120 says 10.4
        order = client.control(gpu.subdevice, "NV2080_CTRL_CMD_GR_GET_GLOBAL_SM_ORDER")
        assert (order.numSm, order.numTpc) == (SMS[key], SMS[key] // 2)
        answer = client.control(gpu.device, "NV0080_CTRL_CMD_GPU_GET_CLASSLIST_V2")
        chosen = choose(set(list(answer.classList)[:answer.numClasses]))
        assert chosen.compute == gpu.card.model.generation.compute
        name = client.control(gpu.subdevice, "NV2080_CTRL_CMD_GPU_GET_NAME_STRING").gpuNameString.ascii
        assert bytes(name).rstrip(b"\0").decode() == MODELS[key].name


def test_every_generation_has_a_machine() -> None:
    assert {int(name[3:]) for name in OF_SM} == {model.sm for model in MODELS.values()}
    for name, key in OF_SM.items():
        assert MODELS[key].sm == int(name[3:])


def test_the_class_list_by_pointer() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        name, table = "NV0080_CTRL_CMD_GPU_GET_CLASSLIST", client.tables.nvrm
        count = client.control(gpu.device, name).numClasses
        words = table.ffi.new(f"uint32_t[{count}]")
        client.control(gpu.device, name, numClasses=count, classList=int(table.ffi.cast("uintptr_t", words)))
        assert Class.HOPPER_COMPUTE_A in list(words)
        with refused("INVALID_PARAM_STRUCT"):
            client.control(gpu.device, name, numClasses=count - 1, classList=int(table.ffi.cast("uintptr_t", words)))


def test_a_control_wants_its_own_size_and_its_own_object() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        buffer = client.tables.nvrm.ffi.new("char[4096]")
        where = int(client.tables.nvrm.ffi.cast("uintptr_t", buffer))
        for number, size, params, target, status in (
                (0x2080014A, 264, where, gpu.subdevice, 0x1F), (0x2080014A, 268, 0, gpu.subdevice, 0x1F),
                (0x2080014A, 0, where, gpu.subdevice, 0x1F), (0x2080014A, 268, where, gpu.device, 0x56),
                (0x2080014A, 268, where, 0x99, 0x57), (0x20804242, 8, where, gpu.subdevice, 0x56)):
            answer = client.escape(client.control_fd, "NV_ESC_RM_CONTROL", hClient=client.root, hObject=target, cmd=number,
                                   params=params, paramsSize=size)
            assert answer.status == status
        with pytest.raises(OSError, match="Bad address"):
            client.escape(client.control_fd, "NV_ESC_RM_CONTROL", hClient=client.root, hObject=gpu.subdevice, cmd=0x2080014A,
                          params=8, paramsSize=268)


def test_ids_and_identities() -> None:
    with machine("2xsm_90") as system:
        client = RmClient(system)
        ids = list(client.control(client.root, "NV0000_CTRL_CMD_GPU_GET_PROBED_IDS").gpuIds)
        assert ids[:3] == [0x100, 0x2100, 0xFFFFFFFF]
        with refused("INVALID_ARGUMENT"):  # not attached
            client.control(client.root, "NV0000_CTRL_CMD_GPU_GET_ID_INFO_V2", gpuId=0x2100)
        client.control(client.root, "NV0000_CTRL_CMD_GPU_ATTACH_IDS", gpuIds=[0x2100] + [0xFFFFFFFF] * 31)
        info = client.control(client.root, "NV0000_CTRL_CMD_GPU_GET_ID_INFO_V2", gpuId=0x2100)
        assert (info.deviceInstance, info.subDeviceInstance) == (1, 0)
        assert list(client.control(client.root, "NV0000_CTRL_CMD_GPU_GET_ATTACHED_IDS").gpuIds)[:2] == [0x2100, 0xFFFFFFFF]
        client.control(client.root, "NV0000_CTRL_CMD_GPU_DETACH_IDS", gpuIds=[0x2100] + [0xFFFFFFFF] * 31)
        gpu = Gpu(client)
        text = bytes(client.control(gpu.subdevice, "NV2080_CTRL_CMD_GPU_GET_GID_INFO").data).rstrip(b"\0").decode()
        assert text == gpu.card.node.uuid_text and f"GPU UUID:        {text}" in system.read_text(
            "/proc/driver/nvidia/gpus/0000:01:00.0/information")
        same = client.control(client.root, "NV0000_CTRL_CMD_GPU_GET_UUID_FROM_GPU_ID", gpuId=0x100, flags=2)
        assert bytes(same.gpuUuid)[:16] == gpu.uuid["uuid"]


def test_memory_is_told_in_kib_and_falls_with_use() -> None:
    with machine("h200", "vram=64M") as system:
        client = RmClient(system)
        gpu = Gpu(client)
        wanted = (FbInfo.TOTAL_RAM_SIZE, FbInfo.HEAP_FREE, FbInfo.BAR1_SIZE, FbInfo.BUS_WIDTH)
        assert pairs(client, gpu.subdevice, "NV2080_CTRL_CMD_FB_GET_INFO_V2", *wanted) == [141 * MIB, 64 << 10, 256 * MIB, 6144]
        gpu.vram(16 * MIB)
        assert pairs(client, gpu.subdevice, "NV2080_CTRL_CMD_FB_GET_INFO_V2", FbInfo.HEAP_FREE) == [48 << 10]


def test_engines_and_what_copy_engines_can() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        answer = client.control(gpu.subdevice, "NV2080_CTRL_CMD_GPU_GET_ENGINES_V2")
        engines = list(answer.engineList)[:answer.engineCount]
        assert engines == [1, *range(9, 19)]
        caps = [client.control(gpu.subdevice, "NV2080_CTRL_CMD_CE_GET_CAPS_V2", ceEngineType=one).capsTbl[0]
                for one in engines[1:]]
        assert [bool(one & 1) for one in caps] == [True, True] + [False] * 8
        with refused("NOT_SUPPORTED"):
            client.control(gpu.subdevice, "NV2080_CTRL_CMD_CE_GET_CAPS_V2", ceEngineType=1)


def test_the_timer_runs_with_the_hosts() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        first = client.control(gpu.subdevice, "NV2080_CTRL_CMD_TIMER_GET_TIME").time_nsec
        answer = client.control(gpu.subdevice, "NV2080_CTRL_CMD_TIMER_GET_GPU_CPU_TIME_CORRELATION_INFO", cpuClkId=3,
                                sampleCount=2)
        assert first <= answer.samples[0].gpuTime <= answer.samples[1].gpuTime
        assert abs(answer.samples[0].cpuTime - time.time_ns()) < 60 * 10**9


# ---------------------------------------------------------------------------------------------------------------------
# The debugger


def test_the_debugger_reads_what_the_engine_noted() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        channel = gpu.channel(*gpu.group(), gpu.vram(2 * MIB))
        compute = client.alloc(channel, Class.HOPPER_COMPUTE_A)
        with refused("INVALID_OBJECT"):
            client.alloc(gpu.device, Class.GT200_DEBUGGER, "NV83DE_ALLOC_PARAMETERS", hAppClient=client.root,
                         hClass3dObject=channel)
        debugger = client.alloc(gpu.device, Class.GT200_DEBUGGER, "NV83DE_ALLOC_PARAMETERS", hAppClient=client.root,
                                hClass3dObject=compute)
        engine: Any = gpu.card.engine
        gpu_channel = next(iter(engine.channels))
        engine.sm_errors.append(SmError(gpu_channel, 2, 0, 0x1000E, 0x7F00000120, 0xDEAD0000))
        engine.mmu_faults.append(MmuFault(gpu_channel, 0xDEAD0000, FaultType.PTE, AccessType.VIRT_WRITE))
        read = "NV83DE_CTRL_CMD_DEBUG_READ_ALL_SM_ERROR_STATES"
        answer = client.control(debugger, read, hTargetChannel=channel, numSMsToRead=100)
        row = answer.smErrorStateArray[2]
        assert (row.hwwWarpEsr, row.hwwWarpEsrPc64, row.hwwEsrAddr) == (0x1000E, 0x7F00000120, 0xDEAD0000)
        assert answer.mmuFault.valid == 1 and not answer.smErrorStateArray[1].hwwWarpEsr
        single = client.control(debugger, "NV83DE_CTRL_CMD_DEBUG_READ_SINGLE_SM_ERROR_STATE", hTargetChannel=channel, smID=2)
        assert single.smErrorState.hwwWarpEsr == 0x1000E
        fault = client.control(debugger, "NV83DE_CTRL_CMD_DEBUG_READ_MMU_FAULT_INFO")
        assert fault.count == 1 and fault.mmuFaultInfoList[0].faultAddress == 0xDEAD0000
        assert (fault.mmuFaultInfoList[0].faultType, fault.mmuFaultInfoList[0].accessType) == (2, 1)
        info = client.control(channel, "NV906F_CTRL_CMD_GET_MMU_FAULT_INFO")
        assert info.addrLo == 0xDEAD0000 and client.tables.nvrm.ffi.string(info.faultString) == b"FAULT_PTE"
        for bad in ({"numSMsToRead": 101}, {"numSMsToRead": 0}, {"numSMsToRead": 100, "startingSM": 132}):
            with refused("INVALID_ARGUMENT"):
                client.control(debugger, read, hTargetChannel=channel, **bad)
        client.control(debugger, "NV83DE_CTRL_CMD_DEBUG_CLEAR_ALL_SM_ERROR_STATES", hTargetChannel=channel, numSMsToClear=132)
        assert client.control(debugger, "NV83DE_CTRL_CMD_DEBUG_READ_MMU_FAULT_INFO").count == 0


def test_a_channel_error_is_logged_with_its_process_and_counted() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        gpu.channel(*gpu.group(), gpu.vram(2 * MIB))
        engine: Any = gpu.card.engine
        channel = next(iter(engine.channels))
        engine.report(channel, 31, "channel 0x00000000, intr 00000000. MMU Fault: ENGINE GRAPHICS\nsecond line")
        lines = [line.text for line in client.driver.kernel_log()]
        who = f"pid={os.getpid()}, name={Path('/proc/self/comm').read_text().strip()}"
        assert lines[0] == (f"NVRM: Xid (PCI:0000:01:00): 31, {who}, channel 0x00000000, intr 00000000. "
                            "MMU Fault: ENGINE GRAPHICS")
        assert len(lines) == 2
        assert client.control(gpu.subdevice, "NV2080_CTRL_CMD_RC_GET_ERROR_COUNT").errorCount == 1
        engine.report(None, 79, "GPU has fallen off the bus.")
        with refused("GPU_IS_LOST"):
            client.control(gpu.subdevice, "NV2080_CTRL_CMD_RC_GET_ERROR_COUNT")
        assert ChannelError(79, "").xid == 79


# ---------------------------------------------------------------------------------------------------------------------
# Health


@pytest.mark.parametrize("branch", SHARED_DATA)
def test_shared_data_lives(branch: int) -> None:
    with machine("h200", f"driver={branch}.1") as system:
        client = RmClient(system)
        gpu = Gpu(client)
        mask = Poll.CLOCK | Poll.PERF | Poll.MEMORY | Poll.POWER | Poll.THERMAL | Poll.PCI
        handle = client.alloc(gpu.subdevice, Class.RM_USER_SHARED_DATA, "NV00DE_ALLOC_PARAMETERS", polledDataMask=mask)
        control = system.open("/dev/nvidiactl", 2)
        with refused("INVALID_ARGUMENT"):
            client.map(gpu.subdevice, handle, 4096, control)
        _, at = client.map(gpu.subdevice, handle, 4096, control, flags=1)
        data = client.tables.nvrm.ffi.cast("struct NV00DE_SHARED_DATA *", at)
        assert data.powerLimitGpu.info.enforcedmW == 700_000 and data.temperatures[0].temperature == 41 * 256
        assert data.memRowRemap.info.histogramMax == 512 and data.clkPublicDomainInfos.info[1].targetClkMHz > 0
        gpu.card.health.celsius = 90.5
        until = time.monotonic() + 20
        while data.temperatures[0].temperature != 90 * 256 + 128 and time.monotonic() < until:
            time.sleep(0.01)
        assert data.temperatures[0].temperature == 90 * 256 + 128
        client.free(handle)


def test_errors_of_memory_are_told_in_every_place() -> None:
    with machine("h200") as system:
        client = RmClient(system)
        gpu = Gpu(client)
        health = gpu.card.health
        health.dram_corrected, health.dram_uncorrected, health.remapped_uncorrectable, health.remap_pending = 5, 1, 2, True
        volatile = client.control(gpu.subdevice, "NV2080_CTRL_CMD_ECC_GET_VOLATILE_COUNTS")
        assert (volatile.dramCorTot, volatile.dramUncTot) == (5, 1)
        status = client.control(gpu.subdevice, "NV2080_CTRL_CMD_GPU_QUERY_ECC_STATUS")
        assert status.units[0].enabled and status.units[0].dbe.count == 1 and status.uncorrectableError
        rows = client.control(gpu.subdevice, "NV2080_CTRL_CMD_FB_GET_REMAPPED_ROWS")
        assert rows.entryCount == 2 and rows.flags & 1
        assert client.control(gpu.subdevice, "NV2080_CTRL_CMD_FB_GET_ROW_REMAPPER_HISTOGRAM").histogram[1] == 2


def test_a_gpu_without_ecc_says_so() -> None:
    with machine("rtx3090") as system:
        client = RmClient(system)
        gpu = Gpu(client)
        for name in ("GPU_QUERY_ECC_STATUS", "ECC_GET_VOLATILE_COUNTS", "FB_GET_REMAPPED_ROWS", "NVLINK_GET_NVLINK_STATUS"):
            with refused("NOT_SUPPORTED"):
                client.control(gpu.subdevice, f"NV2080_CTRL_CMD_{name}")


@pytest.mark.parametrize("driver", ["570.1", "580.1", "595.1"])
def test_links(driver: str) -> None:
    with machine("2xsm_90", f"driver={driver}") as system:
        client = RmClient(system)
        gpu = Gpu(client)
        caps = client.control(gpu.subdevice, "NV2080_CTRL_CMD_NVLINK_GET_NVLINK_CAPS")
        status = client.control(gpu.subdevice, "NV2080_CTRL_CMD_NVLINK_GET_NVLINK_STATUS")
        assert caps.enabledLinkMask == status.enabledLinkMask == (1 << 18) - 1
        assert {status.linkInfo[n].linkState for n in range(18)} == {3} and not status.linkInfo[18].linkState
        status_word, = pairs(client, gpu.subdevice, "NV2080_CTRL_CMD_BUS_GET_INFO_V2", BusInfo.PCIE_GPU_LINK_CTRL_STATUS)
        assert (status_word >> 16 & 15, status_word >> 20 & 63) == (5, 16)
        system.faults.inject("link-down")
        status = client.control(gpu.subdevice, "NV2080_CTRL_CMD_NVLINK_GET_NVLINK_STATUS")
        assert {status.linkInfo[n].linkState for n in range(18)} == {0xFFFFFFFF}


def test_temperatures_by_instruction() -> None:
    with machine("h200") as system:
        client = RmClient(system)
        gpu = Gpu(client)
        name = "NV2080_CTRL_CMD_THERMAL_SYSTEM_EXECUTE_V2"
        rows = [{"opcode": 0x500}, {"opcode": 0x1500, "operands": {"space": [0] * 8}}]
        answer = client.control(gpu.subdevice, name, clientAPIVersion=1, clientInstructionSizeOf=44, instructionListSize=2,
                                instructionList=rows)
        assert answer.successfulInstructions == 2
        assert answer.instructionList[1].operands.getStatusSensorReading.value == 41
        with refused("INVALID_PARAM_STRUCT"):
            client.control(gpu.subdevice, name, clientAPIVersion=2)


def test_processes_and_persistence_and_firmware() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        assert client.control(gpu.subdevice, "NV2080_CTRL_CMD_GPU_GET_PIDS").pidTblCount == 1
        with refused("INSUFFICIENT_PERMISSIONS"):
            client.control(gpu.subdevice, "NV2080_CTRL_CMD_GPU_SET_COMPUTE_MODE_RULES", rules=3)
        features = client.control(gpu.subdevice, "NV2080_CTRL_CMD_GSP_GET_FEATURES")
        assert bytes(features.firmwareVersion).rstrip(b"\0") == b"580.105.08"
        client.control(gpu.device, "NV0080_CTRL_CMD_GPU_QUERY_SW_STATE_PERSISTENCE")
