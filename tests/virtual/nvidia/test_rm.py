"""RM's objects: parents, handles, parameters, mappings and channels, and the status of what is refused."""

from __future__ import annotations

import os
from typing import Any

import pytest

from devrt.ioctl.nv_alloc import ATTR, EngineType, flags
from devrt.ioctl.nv_classes import Class
from devrt.ioctl.system import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, view
from devrt.virtual.nvidia.objects import ChannelObject
from tests.virtual.nvidia.rm_client import Gpu, Refusal, RmClient, machine

MIB = 1 << 20


def refused(status: str) -> Any:
    return pytest.raises(Refusal, match=f"^NV_ERR_{status}$")


def test_handles() -> None:
    with machine() as system:
        client = RmClient(system)
        client.open_gpu()
        device = client.alloc(client.root, Class.NV01_DEVICE_0, "NV0080_ALLOC_PARAMETERS", handle=0x55)
        assert device == 0x55
        with refused("INSERT_DUPLICATE_NAME"):
            client.alloc(client.root, Class.NV01_DEVICE_0, "NV0080_ALLOC_PARAMETERS", handle=0x55)
        with refused("INVALID_OBJECT_HANDLE"):
            client.alloc(device, Class.NV20_SUBDEVICE_0, handle=client.root)
        with refused("OBJECT_NOT_FOUND"):
            client.alloc(0x99, Class.NV20_SUBDEVICE_0)
        with refused("OBJECT_NOT_FOUND"):
            client.free(0x99)
        with refused("INVALID_CLIENT"):
            client.alloc(device, Class.NV20_SUBDEVICE_0, root=0x1234)
        with refused("INVALID_CLASS"):
            client.alloc(device, 0x4242)


def test_parents_and_parameters() -> None:
    with machine() as system:
        client = RmClient(system)
        with refused("INVALID_STATE"):  # nobody has the GPU's node open
            client.alloc(client.root, Class.NV01_DEVICE_0, "NV0080_ALLOC_PARAMETERS")
        gpu = Gpu(client)
        with refused("INVALID_ARGUMENT"):
            client.alloc(client.root, Class.NV01_DEVICE_0)  # without parameters
        with refused("INVALID_OBJECT_PARENT"):
            client.alloc(client.root, Class.NV20_SUBDEVICE_0)
        with refused("INVALID_OBJECT_PARENT"):
            client.alloc(gpu.device, Class.HOPPER_USERMODE_A)
        with refused("INVALID_OBJECT_PARENT"):
            client.alloc(gpu.device, Class.HOPPER_COMPUTE_A)
        with refused("INVALID_ARGUMENT"):
            client.alloc(gpu.device, Class.FERMI_VASPACE_A)
        with refused("NOT_SUPPORTED"):
            client.alloc(gpu.subdevice, Class.BLACKWELL_USERMODE_A)
        with refused("INSUFFICIENT_PERMISSIONS"):
            client.alloc(gpu.subdevice, Class.HOPPER_USERMODE_A, "NV_HOPPER_USERMODE_A_PARAMS", bPriv=1)


def test_freeing_an_object_frees_what_is_below_it_and_what_depends_on_it() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        userd = gpu.vram(2 * MIB)
        group, share = gpu.group()
        channel = gpu.channel(group, share, userd)
        engine: Any = gpu.card.engine
        assert len(engine.channels) == 1
        client.free(userd)  # the channel can't be without
        assert not engine.channels and not gpu.card.channels
        with refused("OBJECT_NOT_FOUND"):
            client.free(channel)
        gpu.vram(4 * MIB)
        client.free(gpu.device)
        assert not gpu.card.vram_used and list(client.driver.clients[client.root].objects) == [client.root]


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def test_vram_is_counted_and_runs_out() -> None:
    with machine(query="vram=8M") as system:
        gpu = Gpu(RmClient(system))
        first = gpu.vram(5 * MIB)
        assert gpu.card.vram_used == 6 * MIB  # in pages of 2 MiB
        with refused("NO_MEMORY"):
            gpu.vram(4 * MIB)
        gpu.client.free(first)
        assert gpu.vram(8 * MIB)
        with refused("INVALID_ARGUMENT"):
            gpu.vram(0)


@pytest.mark.parametrize(("status", "fields"), [
    ("INVALID_OWNER", {"owner": 0}), ("INVALID_ARGUMENT", {"internalflags": 1}), ("INVALID_ARGUMENT", {"type": 99}),
    ("INVALID_ARGUMENT", {"flags": 0x80000}), ("INVALID_ARGUMENT", {"attr": flags(ATTR, LOCATION="ANY")}),
    ("INVALID_ARGUMENT", {"attr": flags(ATTR, LOCATION="PCI")})])
def test_memory_that_is_refused(status: str, fields: dict[str, Any]) -> None:
    with machine() as system:
        gpu = Gpu(RmClient(system))
        with refused(status):
            gpu.client.alloc(gpu.device, Class.NV01_MEMORY_LOCAL_USER, "NV_MEMORY_ALLOCATION_PARAMS",
                             **{"owner": gpu.client.root, "size": 4096, **fields})
        assert not gpu.card.vram_used


def test_fresh_memory_is_zero_and_mappings_share_it() -> None:
    with machine() as system:
        gpu = Gpu(RmClient(system))
        memory = gpu.vram(64 << 10, PAGE_SIZE="4KB")
        one, other = gpu.map_vram(memory, 64 << 10), gpu.map_vram(memory, 8192, offset=4096)
        assert not any(one)
        one[4096:4100] = b"abcd"
        assert bytes(other[:4]) == b"abcd"
        gpu.client.free(memory)
        again = gpu.map_vram(gpu.vram(64 << 10, PAGE_SIZE="4KB"), 64 << 10)
        assert not any(again)


def test_mapping_for_the_cpu_says_what_is_wrong() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        memory, host = gpu.vram(64 << 10), gpu.system_memory(8192)
        fd, control = client.open_gpu(), system.open("/dev/nvidiactl", os.O_RDWR)
        for status, arguments in (
                ("INVALID_BASE", (memory, 4096, fd, 64 << 10)), ("INVALID_LIMIT", (memory, 0, fd)),
                ("INVALID_LIMIT", (memory, 4096 + (64 << 10), fd)), ("OBJECT_NOT_FOUND", (0x99, 4096, fd)),
                ("INVALID_ARGUMENT", (memory, 4096, control)), ("INVALID_ARGUMENT", (host, 4096, fd)),
                ("INVALID_ARGUMENT", (memory, 4096, client.uvm_fd)), ("NOT_SUPPORTED", (gpu.va_space, 4096, fd))):
            with refused(status):
                client.map(gpu.device, *arguments)
        client.map(gpu.device, memory, 4096, fd)
        with refused("STATE_IN_USE"):  # one mapping a descriptor
            client.map(gpu.device, memory, 4096, fd)
        client.map(gpu.device, host, 8192, control)
        with refused("INVALID_OBJECT_PARENT"):
            client.map(memory, memory, 4096, client.open_gpu())


def test_a_mapping_on_the_descriptor_of_another_gpu_is_refused() -> None:
    with machine("2xsm_90") as system:
        client = RmClient(system)
        gpu = Gpu(client)
        Gpu(client, 1)
        with refused("INVALID_ARGUMENT"):
            client.map(gpu.device, gpu.vram(4096), 4096, client.open_gpu(1))


def test_read_only_memory_is_mapped_for_reading_only() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        memory = gpu.system_memory(4096, PROTECTION_USER="READ_ONLY")
        control = system.open("/dev/nvidiactl", os.O_RDWR)
        with refused("INVALID_ARGUMENT"):
            client.map(gpu.device, memory, 4096, control)
        client.map(gpu.device, memory, 4096, control, flags=1)


def test_the_aperture_is_finite_and_is_given_back() -> None:
    with machine(query="bar1=4M") as system:
        client = RmClient(system)
        gpu = Gpu(client)
        memory = gpu.vram(4 * MIB)
        fd = client.open_gpu()
        address, _ = client.map(gpu.device, memory, 4 * MIB, fd)
        with refused("NO_MEMORY"):
            gpu.map_vram(memory, 4096)
        def unmap() -> int:
            answer = client.escape(client.control_fd, "NV_ESC_RM_UNMAP_MEMORY", hClient=client.root, hDevice=gpu.device,
                                   hMemory=memory, pLinearAddress=address)
            return int(answer.status)

        assert unmap() == 0 and not gpu.card.bar1_used
        with refused("STATE_IN_USE"):  # what was on the descriptor stays until it is closed
            client.map(gpu.device, memory, 4096, fd)
        other = client.open_gpu()
        address, _ = client.map(gpu.device, memory, 4 * MIB, other)
        system.close(other)  # which unmaps nothing
        assert gpu.card.bar1_used == 4 * MIB and unmap() == 0 and unmap() == 0x57
        assert gpu.map_vram(memory, 4 * MIB)
        client.free(memory)
        assert not gpu.card.bar1_used


def test_pages_of_the_process_are_pinned_where_they_are() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        address = system.mmap(-1, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
        handle = gpu.pin(address, 8192)
        assert handle == 0x1001
        for status, arguments in (
                ("INSERT_DUPLICATE_NAME", (address, 4096, 0x1001)), ("NOT_SUPPORTED", (address + 8, 4096, 0x1002)),
                ("INVALID_LIMIT", (address, 100, 0x1002)), ("INVALID_ADDRESS", (0x1000, 4096, 0x1002))):
            with refused(status):
                gpu.pin(*arguments)
        with refused("NOT_SUPPORTED"):  # the process has them already
            client.map(gpu.device, handle, 4096, system.open("/dev/nvidiactl", os.O_RDWR))
        client.free(handle)
        system.munmap(address, 8192)


def test_dup_holds_the_pages() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        memory = gpu.vram(4096, PAGE_SIZE="4KB")
        gpu.map_vram(memory, 4096)[:4] = b"kept"
        answer = client.escape(client.control_fd, "NV_ESC_RM_DUP_OBJECT", hClient=client.root, hParent=gpu.device,
                               hClientSrc=client.root, hObjectSrc=memory)
        client.free(memory)
        assert not answer.status and bytes(gpu.map_vram(answer.hObject, 4096)[:4]) == b"kept"
        client.free(answer.hObject)
        assert not gpu.card.vram_used


def test_rms_own_address_space_gives_each_address_once() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        virtual = client.alloc(gpu.device, Class.NV01_MEMORY_VIRTUAL, "NV_MEMORY_VIRTUAL_ALLOCATION_PARAMS",
                               limit=0x1FFFFFFFFFFFF)
        memory = gpu.vram(8192)

        def map_dma(va: int, length: int = 8192) -> int:
            answer = client.escape(client.control_fd, "NV_ESC_RM_MAP_MEMORY_DMA", hClient=client.root, hDevice=gpu.device,
                                   hDma=virtual, hMemory=memory, length=length, flags=1 << 15, dmaOffset=va)
            return int(answer.status)

        assert map_dma(1 << 36) == 0 and map_dma((1 << 36) + 4096) == 0x51
        assert map_dma(1 << 37, 1 << 30) == 0x2E
        client.free(memory)
        memory = gpu.vram(8192)
        assert map_dma(1 << 36) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Channels


def test_a_channel_is_what_the_engine_gets() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        ring = gpu.vram(2 * MIB)
        notifier = gpu.system_memory(4096)
        group, share = gpu.group()
        handle = gpu.channel(group, share, ring, userdOffset=[4096], hObjectError=notifier)
        compute = client.alloc(handle, Class.HOPPER_COMPUTE_A)
        one: Any = client.driver.clients[client.root].objects[handle]
        channel = one.gpu_channel
        assert (channel.engine, channel.gpfifo_va, channel.gpfifo_entries) == (EngineType.GRAPHICS, 0x10000000, 512)
        assert channel.classes == (Class.HOPPER_COMPUTE_A,) and channel.space is gpu.space
        gpu.map_vram(ring, 8192)[4096 + 0x8C] = 7
        assert channel.userd[0x8C] == 7 and len(channel.userd) == 512 and len(channel.notifier) == 48
        token = client.control(handle, "NVC36F_CTRL_CMD_GPFIFO_GET_WORK_SUBMIT_TOKEN", workSubmitToken=0xFFFFFFFF).workSubmitToken
        assert token == channel.token
        with refused("STATE_IN_USE"):
            client.alloc(handle, Class.HOPPER_COMPUTE_A)
        client.free(compute)
        assert channel.classes == ()


@pytest.mark.parametrize(("status", "fields"), [
    ("INVALID_ARGUMENT", {"gpFifoEntries": 500}), ("INVALID_ARGUMENT", {"gpFifoEntries": 1 << 17}),
    ("INVALID_OFFSET", {"gpFifoOffset": 0x10000004}), ("INVALID_ADDRESS", {"userdOffset": [100]}),
    ("INVALID_OFFSET", {"userdOffset": [64 << 20]}), ("OBJECT_NOT_FOUND", {"hUserdMemory": [0x99]}),
    ("NOT_SUPPORTED", {"hUserdMemory": [0]}), ("OBJECT_NOT_FOUND", {"hObjectError": 0x99}),
    ("INVALID_ARGUMENT", {"engineType": EngineType.COPY0}), ("NOT_SUPPORTED", {"class_id": Class.BLACKWELL_CHANNEL_GPFIFO_A})])
def test_channels_that_are_refused(status: str, fields: dict[str, Any]) -> None:
    with machine() as system:
        gpu = Gpu(RmClient(system)).register()
        with refused(status):
            gpu.channel(*gpu.group(), gpu.vram(2 * MIB), **fields)
        assert not gpu.card.channels and not list(gpu.client.driver.clients[gpu.client.root].all_of(ChannelObject))


def test_a_context_share_waits_for_the_page_tables() -> None:
    with machine() as system:
        gpu = Gpu(RmClient(system))
        with refused("INVALID_STATE"):
            gpu.group()
        gpu.register().group()


def test_a_context_share_and_an_address_space_exclude_each_other() -> None:
    with machine() as system:
        gpu = Gpu(RmClient(system)).register()
        group, share = gpu.group()
        userd = gpu.vram(2 * MIB)
        with refused("INVALID_ARGUMENT"):
            gpu.channel(group, share, userd, hVASpace=gpu.va_space)
        other, _ = gpu.group()
        with refused("INVALID_OBJECT_PARENT"):
            gpu.channel(other, share, userd)
        with refused("INVALID_OBJECT"):  # neither of them
            gpu.channel(group, 0, userd)


def test_hopper_wants_userd_where_the_ring_is() -> None:
    with machine() as system:
        gpu = Gpu(RmClient(system)).register()
        ring = gpu.vram(2 * MIB)
        gpu.map_gpu(0x10000000, 2 * MIB, ring)
        userd = gpu.system_memory(4096)
        group, share = gpu.group()
        with refused("NOT_SUPPORTED"):
            gpu.channel(group, share, userd)
        assert gpu.channel(group, share, userd, gpFifoOffset=0x20000000)  # a ring that is not in VRAM


def test_engines_and_their_objects() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        with refused("INVALID_ARGUMENT"):
            gpu.group(EngineType.NVDEC0)
        channel = gpu.channel(*gpu.group(EngineType.COPY2), gpu.vram(2 * MIB))
        with refused("INVALID_ARGUMENT"):
            client.alloc(channel, Class.HOPPER_COMPUTE_A)
        with refused("INVALID_ARGUMENT"):
            client.alloc(channel, Class.HOPPER_DMA_COPY_A, "NVB0B5_ALLOCATION_PARAMETERS", version=1, engineType=EngineType.COPY3)
        client.alloc(channel, Class.HOPPER_DMA_COPY_A, "NVB0B5_ALLOCATION_PARAMETERS", version=1, engineType=EngineType.COPY2)


def test_a_group_is_scheduled_when_its_channels_have_their_buffers() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        group, share = gpu.group()
        with refused("INVALID_STATE"):  # empty
            client.control(group, "NVA06C_CTRL_CMD_GPFIFO_SCHEDULE", bEnable=1)
        channel = gpu.channel(group, share, gpu.vram(2 * MIB))
        with refused("INVALID_STATE"):  # REGISTER_CHANNEL gives the context-switch buffers their addresses
            client.control(group, "NVA06C_CTRL_CMD_GPFIFO_SCHEDULE", bEnable=1)
        client.uvm("UVM_REGISTER_CHANNEL", gpuUuid=gpu.uuid, hClient=client.root, hChannel=channel, base=1 << 32, length=4 * MIB)
        with refused("INVALID_STATE"):  # it is scheduled with its group
            client.control(channel, "NVA06F_CTRL_CMD_GPFIFO_SCHEDULE", bEnable=1)
        client.control(group, "NVA06C_CTRL_CMD_GPFIFO_SCHEDULE", bEnable=1)
        engine: Any = gpu.card.engine
        assert list(engine.channels.values()) == [True]
        client.control(group, "NVA06C_CTRL_CMD_GPFIFO_SCHEDULE", bEnable=0)
        assert list(engine.channels.values()) == [False]


def test_a_channel_without_a_group() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        channel = gpu.channel(gpu.device, 0, gpu.vram(2 * MIB), hVASpace=gpu.va_space, engineType=EngineType.COPY0)
        with refused("INVALID_ARGUMENT"):
            client.control(channel, "NVA06F_CTRL_CMD_BIND", engineType=EngineType.COPY1)
        client.control(channel, "NVA06F_CTRL_CMD_BIND", engineType=EngineType.COPY0)
        client.control(channel, "NVA06F_CTRL_CMD_GPFIFO_SCHEDULE", bEnable=1)


def test_the_doorbell_page_is_the_engines() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        engine: Any = gpu.card.engine
        usermode = client.alloc(gpu.subdevice, Class.HOPPER_USERMODE_A, "NV_HOPPER_USERMODE_A_PARAMS", bBar1Mapping=1)
        _, at = client.map(gpu.subdevice, usermode, 0x10000, client.open_gpu())
        view(at, 0x10000)[0x90] = 9
        assert engine.doorbell[0x90] == 9
