"""MIG, vGPU and confidential computing in the virtual kernel driver: what it says of them, and what it refuses, as RM does."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from devrt.device import DeviceNotFound, InvalidArgument, parse_uri
from devrt.ioctl.nv_alloc import EngineType, copy_engine
from devrt.ioctl.nv_classes import Class
from devrt.ioctl.nv_controls import FbInfo
from devrt.ioctl.nv_modes import (
    WHOLE_GPU,
    Feature,
    GpuInfo,
    MigMode,
    MultiGpu,
    Virtualization,
    capability_number,
    compute_instance_file,
    gpu_instance_file,
    node_of,
)
from devrt.ioctl.nv_status import Status
from devrt.virtual.nvidia.machine import parse_topology
from devrt.virtual.nvidia.mig import split
from devrt.virtual.system import make_system
from tests.virtual.nvidia.rm_client import Gpu, Refusal, RmClient, machine

SPLIT = "mig=3g.1c.2c,1g&vram=1G"  # GPU instances 1 and 7
MIB = 1 << 20


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with machine("h200", SPLIT) as system:
        yield Gpu(RmClient(system))


def capability(gpu: Gpu, instance: int, compute: int | None = None) -> int:
    return gpu.client.system.open(node_of(capability_number(gpu.index, instance, compute)), os.O_RDONLY)


def subscribe(gpu: Gpu, instance: int, compute: int | None = None) -> int:
    handle = gpu.client.alloc(gpu.subdevice, Class.AMPERE_SMC_PARTITION_REF, "NVC637_ALLOCATION_PARAMETERS",
                              capDescriptor=capability(gpu, instance), swizzId=instance)
    if compute is not None:
        gpu.client.alloc(handle, Class.AMPERE_SMC_EXEC_PARTITION_REF, "NVC638_ALLOCATION_PARAMETERS",
                         capDescriptor=capability(gpu, instance, compute), execPartitionId=compute)
    return handle


def refused(status: Status, act: object, *arguments: object, **fields: object) -> None:
    with pytest.raises(Refusal) as caught:
        act(*arguments, **fields)  # type: ignore[operator]
    assert caught.value.status is status


def mode(gpu: Gpu) -> int:
    params = gpu.client.control(gpu.subdevice, "NV2080_CTRL_CMD_GPU_GET_INFO_V2", gpuInfoListSize=1,
                                gpuInfoList=[{"index": GpuInfo.GPU_SMC_MODE}])
    return int(params.gpuInfoList[0].data)


def memory(gpu: Gpu, *wanted: FbInfo) -> list[int]:
    params = gpu.client.control(gpu.subdevice, "NV2080_CTRL_CMD_FB_GET_INFO_V2", fbInfoListSize=len(wanted),
                                fbInfoList=[{"index": index} for index in wanted])
    return [params.fbInfoList[n].data for n in range(len(wanted))]


@pytest.mark.parametrize(("topology", "query", "want"), [
    ("rtx4090", "", MigMode.UNSUPPORTED), ("h200", "", MigMode.DISABLED), ("h200", "mig", MigMode.ENABLED),
    ("a100", "mig=7g", MigMode.ENABLED), ("h200", "mig-pending", MigMode.ENABLE_PENDING),
    ("h200", "mig&mig-pending", MigMode.DISABLE_PENDING)])
def test_the_mode(topology: str, query: str, want: MigMode) -> None:
    with machine(topology, query) as system:
        assert mode(Gpu(RmClient(system))) == want


def test_what_is_off_is_not_supported() -> None:
    with machine("h200") as system:
        gpu = Gpu(RmClient(system))
        refused(Status.NV_ERR_NOT_SUPPORTED, gpu.client.control, gpu.subdevice, "NV2080_CTRL_CMD_GPU_GET_ACTIVE_PARTITION_IDS")
        refused(Status.NV_ERR_NOT_SUPPORTED, gpu.client.alloc, gpu.subdevice, Class.AMPERE_SMC_PARTITION_REF,
                "NVC637_ALLOCATION_PARAMETERS", swizzId=0)


def test_who_may_have_which_instance(gpu: Gpu) -> None:
    take = gpu.client.alloc, gpu.subdevice, Class.AMPERE_SMC_PARTITION_REF, "NVC637_ALLOCATION_PARAMETERS"
    refused(Status.NV_ERR_INVALID_ARGUMENT, *take, swizzId=9, capDescriptor=capability(gpu, 1))
    for descriptor in (capability(gpu, 7), capability(gpu, 1, 0), gpu.fd, 0xFFFF):  # another's, of another kind, none
        refused(Status.NV_ERR_INSUFFICIENT_PERMISSIONS, *take, swizzId=1, capDescriptor=descriptor)
    refused(Status.NV_ERR_INSUFFICIENT_PERMISSIONS, *take, swizzId=WHOLE_GPU, capDescriptor=capability(gpu, 1))
    handle = subscribe(gpu, 1)
    refused(Status.NV_ERR_STATE_IN_USE, *take, swizzId=7, capDescriptor=capability(gpu, 7))
    part = gpu.client.alloc, handle, Class.AMPERE_SMC_EXEC_PARTITION_REF, "NVC638_ALLOCATION_PARAMETERS"
    refused(Status.NV_ERR_INVALID_ARGUMENT, *part, execPartitionId=2, capDescriptor=capability(gpu, 1, 0))
    refused(Status.NV_ERR_INSUFFICIENT_PERMISSIONS, *part, execPartitionId=1, capDescriptor=capability(gpu, 1, 0))
    part[0](*part[1:], execPartitionId=1, capDescriptor=capability(gpu, 1, 1))
    refused(Status.NV_ERR_STATE_IN_USE, *part, execPartitionId=0, capDescriptor=capability(gpu, 1, 0))


def test_a_client_without_an_instance_gets_next_to_nothing(gpu: Gpu) -> None:
    control, device, subdevice = gpu.client.control, gpu.device, gpu.subdevice
    for name in ("GR_GET_GPC_MASK", "GPU_GET_ENGINES_V2"):
        refused(Status.NV_ERR_OBJECT_NOT_FOUND, control, subdevice, f"NV2080_CTRL_CMD_{name}")
    refused(Status.NV_ERR_OBJECT_NOT_FOUND, gpu.client.alloc, device, Class.KEPLER_CHANNEL_GROUP_A,
            "NV_CHANNEL_GROUP_ALLOCATION_PARAMETERS", engineType=EngineType.GRAPHICS)
    refused(Status.NV_ERR_INVALID_STATE, gpu.vram, MIB)
    assert memory(gpu, FbInfo.TOTAL_RAM_SIZE) == [141 << 20]
    refused(Status.NV_ERR_INSUFFICIENT_PERMISSIONS, memory, gpu, FbInfo.TOTAL_RAM_SIZE, FbInfo.HEAP_SIZE)
    refused(Status.NV_ERR_INSUFFICIENT_PERMISSIONS, control, subdevice, "NV2080_CTRL_CMD_GPU_GET_PARTITIONS",
            bGetAllPartitionInfo=1)
    assert control(subdevice, "NV2080_CTRL_CMD_GPU_GET_PARTITIONS").validPartitionCount == 0
    ids = control(subdevice, "NV2080_CTRL_CMD_GPU_GET_ACTIVE_PARTITION_IDS")
    assert list(ids.swizzId)[:ids.partitionCount] == [WHOLE_GPU, 1, 7]
    gpu.client.uvm("UVM_INITIALIZE")
    register = gpu.client.uvm, "UVM_REGISTER_GPU"
    refused(Status.NV_ERR_INVALID_CLIENT, *register, gpu_uuid=gpu.uuid, rmCtrlFd=-1)
    refused(Status.NV_ERR_INVALID_OBJECT, *register, gpu_uuid=gpu.uuid, hClient=gpu.client.root, hSmcPartRef=subdevice)


def test_mig_without_instances_has_groups_and_no_channels() -> None:
    with machine("h200", "mig") as system:
        gpu = Gpu(RmClient(system)).register()
        group, share = gpu.group()
        refused(Status.NV_ERR_INVALID_STATE, gpu.channel, group, share, gpu.vram(MIB))


def test_an_instance_has_its_own_sizes_and_engines(gpu: Gpu) -> None:
    handle = subscribe(gpu, 7)
    refused(Status.NV_ERR_INSUFFICIENT_PERMISSIONS, gpu.client.control, handle, "NVC637_CTRL_CMD_EXEC_PARTITIONS_GET")
    engines = gpu.client.control(gpu.subdevice, "NV2080_CTRL_CMD_GPU_GET_ENGINES_V2")
    assert list(engines.engineList)[:engines.engineCount] == [EngineType.GRAPHICS, copy_engine(0)]
    assert not gpu.client.control(gpu.subdevice, "NV2080_CTRL_CMD_CE_GET_CAPS_V2", ceEngineType=copy_engine(0)).capsTbl[0] & 1
    mask = gpu.client.control(gpu.subdevice, "NV2080_CTRL_CMD_GR_GET_GPC_MASK").gpcMask
    assert mask == 1 << 4  # its place; its number is 0
    assert gpu.client.control(gpu.subdevice, "NV2080_CTRL_CMD_GR_GET_TPC_MASK", gpcId=0).tpcMask == 0xFF
    refused(Status.NV_ERR_INVALID_ARGUMENT, gpu.client.control, gpu.subdevice, "NV2080_CTRL_CMD_GR_GET_TPC_MASK", gpcId=4)
    assert memory(gpu, FbInfo.TOTAL_RAM_SIZE, FbInfo.HEAP_SIZE) == [(141 << 20) // 8, (1 << 20) // 8]
    held = gpu.vram(100 * MIB)
    assert memory(gpu, FbInfo.HEAP_FREE) == [28 << 10]
    refused(Status.NV_ERR_NO_MEMORY, gpu.vram, 32 * MIB)  # the GPU itself has 924 MiB left
    gpu.client.free(held)
    assert memory(gpu, FbInfo.HEAP_FREE) == [128 << 10]
    for engine in (copy_engine(1), copy_engine(5)):
        refused(Status.NV_ERR_INVALID_ARGUMENT, gpu.client.alloc, gpu.device, Class.KEPLER_CHANNEL_GROUP_A,
                "NV_CHANNEL_GROUP_ALLOCATION_PARAMETERS", engineType=engine, hVASpace=gpu.va_space)


def test_a_compute_instance_has_a_part_of_the_sms(gpu: Gpu) -> None:
    handle = subscribe(gpu, 1, 1)
    row = gpu.client.control(handle, "NVC637_CTRL_CMD_EXEC_PARTITIONS_GET")
    assert (row.execPartCount, row.execPartId[0], row.execPartInfo[0].smCount) == (1, 1, 32)
    whole = gpu.client.control(gpu.subdevice, "NV2080_CTRL_CMD_GPU_GET_PARTITIONS")
    assert (whole.validPartitionCount, whole.queryPartitionInfo[0].swizzId, whole.queryPartitionInfo[0].smCount) == (1, 1, 60)


def test_unified_memory_calls_an_instance_by_a_uuid_of_its_own(gpu: Gpu) -> None:
    part, other = subscribe(gpu, 1, 0), Gpu(gpu.client)
    client = gpu.client
    client.uvm("UVM_INITIALIZE")
    made = client.uvm("UVM_REGISTER_GPU", gpu_uuid=gpu.uuid, rmCtrlFd=client.control_fd, hClient=client.root, hSmcPartRef=part)
    uuid = {"uuid": bytes(made.gpu_uuid.uuid)}
    assert uuid != gpu.uuid
    caller = {"rmCtrlFd": client.control_fd, "hClient": client.root}
    for named, space in ((gpu.uuid, gpu.va_space), (uuid, other.va_space)):
        refused(Status.NV_ERR_INVALID_DEVICE, client.uvm, "UVM_REGISTER_GPU_VASPACE", gpuUuid=named, hVaSpace=space, **caller)
    client.uvm("UVM_REGISTER_GPU_VASPACE", gpuUuid=uuid, hVaSpace=gpu.va_space, **caller)
    again = subscribe(other, 1, 1)  # the same GPU instance
    refused(Status.NV_ERR_INVALID_DEVICE, client.uvm, "UVM_REGISTER_GPU", gpu_uuid=gpu.uuid, hSmcPartRef=again, **caller)


def test_the_files_of_capabilities(gpu: Gpu) -> None:
    system = gpu.client.system
    assert system.list_dir("/proc/driver/nvidia/capabilities/gpu0/mig") == ["gi1", "gi7"]
    assert system.list_dir("/proc/driver/nvidia/capabilities/gpu0/mig/gi1") == ["access", "ci0", "ci1"]
    for path, number in ((gpu_instance_file(0, 7), 66), (compute_instance_file(0, 1, 1), 14)):
        assert system.read_text(path).splitlines()[0] == f"DeviceFileMinor: {number}"
        assert system.stat(node_of(number)).rdev == (510, number)
    assert (capability_number(1, 0), capability_number(31, 14, 7)) == (138, 4322)  # nv-caps.c: 2 + 32 * 15 * 9 of them


@pytest.mark.parametrize(("query", "want"), [("", Virtualization.NONE), ("vgpu", Virtualization.VGX),
                                             ("vgpu-host", Virtualization.HOST_VGPU)])
def test_virtual_machines(query: str, want: Virtualization) -> None:
    with machine("h200", query) as system:
        gpu = Gpu(RmClient(system))
        assert gpu.client.control(gpu.device, "NV0080_CTRL_CMD_GPU_GET_VIRTUALIZATION_MODE").virtualizationMode == want


@pytest.mark.parametrize(("query", "feature", "multi"), [
    ("", Feature.DISABLED, MultiGpu.NONE), ("cc", Feature.HCC_ENABLED, MultiGpu.NONE),
    ("ppcie", Feature.DISABLED, MultiGpu.PROTECTED_PCIE)])
def test_confidential_computing(query: str, feature: Feature, multi: MultiGpu) -> None:
    with machine("h200", query) as system:
        client = RmClient(system)
        handle = client.alloc(client.root, Class.NV_CONFIDENTIAL_COMPUTE)
        caps = client.control(handle, "NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_CAPABILITIES")
        assert (caps.ccFeature, caps.multiGpuMode) == (feature, multi)
        assert not client.control(handle, "NV_CONF_COMPUTE_CTRL_CMD_SYSTEM_GET_GPUS_STATE").bAcceptClientRequest


@pytest.mark.parametrize("text", ["5g", "4g,4g", "3g.4c", "3g.2c.2c", "g", "1g,", "3g,4g,1g"])
def test_sizes_that_do_not_fit(text: str) -> None:
    with pytest.raises(DeviceNotFound, match="can't be split"):
        split("h200", text)


def test_gpus_that_have_no_mig() -> None:
    with pytest.raises(DeviceNotFound, match="a100, h100, h200"):
        parse_topology("rtx4090", instances="1g")
    with pytest.raises(InvalidArgument, match="MIG mode"):
        make_system(parse_uri("virtual:amd/gfx1100?mig"))


def test_instances_are_numbered_by_size() -> None:
    assert [one.number for one in split("a100", "3g,2g,1g,1g")] == [1, 3, 7, 8]
    assert [one.number for one in split("h200", "1g,1g,1g,1g,1g,1g,1g")] == [7, 8, 9, 10, 11, 12, 13]
    assert [one.number for one in split("h200", "7g")] == [0]
