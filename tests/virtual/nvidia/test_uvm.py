"""UVM: registration, external ranges, what is mapped in them with which rights, peers, and the status of what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from devrt.ioctl.nv_classes import Class
from devrt.ioctl.system import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, view
from devrt.virtual.memory import Access, MemoryFault
from tests.virtual.nvidia.rm_client import Gpu, Refusal, RmClient, machine

MIB, VA = 1 << 20, 1 << 36


def refused(status: str) -> Any:
    return pytest.raises(Refusal, match=f"^NV_ERR_{status}$")


def test_initialize_comes_first() -> None:
    with machine() as system:
        client = RmClient(system)
        with refused("ILLEGAL_ACTION"):
            client.uvm("UVM_REGISTER_GPU")
        with refused("INVALID_ARGUMENT"):
            client.uvm("UVM_INITIALIZE", flags=8)
        client.uvm("UVM_INITIALIZE", flags=1)
        client.uvm("UVM_INITIALIZE", flags=1)
        with refused("INVALID_ARGUMENT"):
            client.uvm("UVM_INITIALIZE", flags=0)
        assert client.uvm("UVM_PAGEABLE_MEM_ACCESS").pageableMemAccess == 0


def test_a_second_descriptor_keeps_the_memory_alive() -> None:
    with machine() as system:
        client = RmClient(system)
        second = system.open("/dev/nvidia-uvm", 2)
        with refused("INVALID_ARGUMENT"):
            client.uvm("UVM_MM_INITIALIZE", on=second, uvmFd=client.uvm_fd)  # which is not initialised
        client.uvm("UVM_INITIALIZE")
        client.uvm("UVM_MM_INITIALIZE", on=second, uvmFd=client.uvm_fd)
        with refused("INVALID_ARGUMENT"):
            client.uvm("UVM_INITIALIZE", on=second)
        with refused("ILLEGAL_ACTION"):
            client.uvm("UVM_CREATE_EXTERNAL_RANGE", on=second, base=VA, length=4096)
        with refused("INVALID_STATE"):
            client.uvm("UVM_MM_INITIALIZE", on=system.open("/dev/nvidia-uvm", 2), uvmFd=client.uvm_fd)


def test_gpus_and_their_page_tables_are_registered_once() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client)
        client.uvm("UVM_INITIALIZE")
        space = {"gpuUuid": gpu.uuid, "hClient": client.root, "hVaSpace": gpu.va_space}
        with refused("GPU_UUID_NOT_FOUND"):
            client.uvm("UVM_REGISTER_GPU", gpu_uuid={"uuid": bytes(16)})
        with refused("INVALID_DEVICE"):
            client.uvm("UVM_REGISTER_GPU_VASPACE", **space)
        client.uvm("UVM_REGISTER_GPU", gpu_uuid=gpu.uuid)
        with refused("INVALID_DEVICE"):
            client.uvm("UVM_REGISTER_GPU", gpu_uuid=gpu.uuid)
        with refused("INVALID_CLIENT"):
            client.uvm("UVM_REGISTER_GPU_VASPACE", **{**space, "hClient": 1})
        own = client.alloc(gpu.device, Class.FERMI_VASPACE_A, "NV_VASPACE_ALLOCATION_PARAMETERS")
        with refused("INVALID_FLAGS"):  # RM's own
            client.uvm("UVM_REGISTER_GPU_VASPACE", **{**space, "hVaSpace": own})
        client.uvm("UVM_REGISTER_GPU_VASPACE", **space)
        with refused("INVALID_DEVICE"):
            client.uvm("UVM_REGISTER_GPU_VASPACE", **space)
        client.uvm("UVM_UNREGISTER_GPU_VASPACE", gpuUuid=gpu.uuid)
        client.uvm("UVM_REGISTER_GPU_VASPACE", **space)
        client.uvm("UVM_UNREGISTER_GPU", gpu_uuid=gpu.uuid)
        with refused("INVALID_DEVICE"):
            client.uvm("UVM_UNREGISTER_GPU", gpu_uuid=gpu.uuid)


@pytest.mark.parametrize("driver", ["580.1", "595.1"])  # UVM_FREE lost its length in 590
def test_ranges(driver: str) -> None:
    with machine(query=f"driver={driver}") as system:
        client = RmClient(system)
        client.uvm("UVM_INITIALIZE")
        for base, length in ((0, 4096), (VA, 0), (VA + 8, 4096), (VA, 100)):
            with refused("INVALID_ADDRESS"):
                client.uvm("UVM_CREATE_EXTERNAL_RANGE", base=base, length=length)
        client.uvm("UVM_CREATE_EXTERNAL_RANGE", base=VA, length=MIB)
        for base in (VA, VA + MIB - 4096, VA - MIB + 4096):
            with refused("UVM_ADDRESS_IN_USE"):
                client.uvm("UVM_CREATE_EXTERNAL_RANGE", base=base, length=MIB)
        client.uvm("UVM_VALIDATE_VA_RANGE", base=VA, length=MIB)
        with refused("INVALID_ADDRESS"):
            client.uvm("UVM_FREE", base=VA + 4096)
        if client.tables.branch < 590:
            with refused("INVALID_ADDRESS"):
                client.uvm("UVM_FREE", base=VA, length=4096)
            client.uvm("UVM_FREE", base=VA, length=MIB)
        else:
            client.uvm("UVM_FREE", base=VA)
        client.uvm("UVM_CREATE_EXTERNAL_RANGE", base=VA, length=MIB)


def test_what_is_mapped_is_the_memory_with_its_rights() -> None:
    with machine() as system:
        gpu = Gpu(RmClient(system)).register()
        memory = gpu.vram(2 * MIB)
        cpu = gpu.map_vram(memory, 2 * MIB)
        gpu.map_gpu(VA, MIB, memory, offset=MIB)
        gpu.space.write(VA + 16, b"gpu")
        assert bytes(cpu[MIB + 16:MIB + 19]) == b"gpu"
        assert gpu.space.entry(VA) & 0xFFF == Access.VALID | Access.WRITE | Access.EXECUTE | Access.VRAM
        with refused("INVALID_ADDRESS"):  # that would cut a page of 64 KiB
            gpu.map_gpu(VA, 4096, memory, create=False, kind=3)
        gpu.map_gpu(VA, 64 << 10, memory, create=False, kind=3)  # over what is there, read-only
        assert not any(gpu.space.read(VA, 64 << 10))
        with pytest.raises(MemoryFault):
            gpu.space.write(VA, b"x")
        gpu.space.write(VA + (64 << 10), b"x")
        with pytest.raises(MemoryFault):
            gpu.space.read(VA + MIB, 1)


def test_mapping_says_what_is_wrong() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        memory = gpu.vram(2 * MIB)
        client.uvm("UVM_CREATE_EXTERNAL_RANGE", base=VA, length=4 * MIB)
        for status, arguments in (
                ("INVALID_ADDRESS", {"va": VA + (4 << 20), "nbytes": 4096}), ("INVALID_ADDRESS", {"va": VA, "nbytes": 8 * MIB}),
                ("INVALID_ADDRESS", {"va": VA + 100, "nbytes": 4096}), ("INVALID_OFFSET", {"va": VA, "nbytes": 4 * MIB}),
                ("INVALID_OFFSET", {"va": VA, "nbytes": MIB, "offset": 2 * MIB}),
                ("INVALID_ADDRESS", {"va": VA, "nbytes": MIB, "offset": 100}),
                ("INVALID_ARGUMENT", {"va": VA, "nbytes": MIB, "kind": 9}),
                ("INVALID_ARGUMENT", {"va": VA, "nbytes": MIB, "count": 0}),
                ("INVALID_ARGUMENT", {"va": VA, "nbytes": MIB, "count": 257}),
                ("INVALID_DEVICE", {"va": VA, "nbytes": MIB, "count": 2})):  # the second entry names no GPU
            with refused(status):
                gpu.map_gpu(memory=memory, create=False, **arguments)  # type: ignore[arg-type]
        with refused("OBJECT_NOT_FOUND"):
            gpu.map_gpu(VA, 4096, 0x99, create=False)
        with refused("INVALID_OBJECT"):
            gpu.map_gpu(VA, 4096, gpu.subdevice, create=False)


def test_memory_outlives_its_handle_until_the_range_goes() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        memory = gpu.vram(2 * MIB)
        gpu.map_gpu(VA, 2 * MIB, memory)
        gpu.space.write(VA, b"still here")
        client.free(memory)
        assert gpu.space.read(VA, 10) == b"still here" and gpu.card.vram_used == 2 * MIB
        client.uvm("UVM_FREE", base=VA, length=2 * MIB)
        assert not gpu.card.vram_used and not gpu.space.entry(VA)


def test_unmapping_a_part_leaves_the_rest() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        memory = gpu.vram(MIB, PAGE_SIZE="4KB")
        gpu.map_gpu(VA, MIB, memory)
        client.uvm("UVM_UNMAP_EXTERNAL", base=VA + 8192, length=4096, gpuUuid=gpu.uuid)
        assert gpu.space.entry(VA + 4096) and not gpu.space.entry(VA + 8192) and gpu.space.entry(VA + 12288)
        client.free(memory)
        client.uvm("UVM_FREE", base=VA, length=MIB)
        assert not gpu.card.vram_used
        big = gpu.vram(4 * MIB)
        gpu.map_gpu(VA, 4 * MIB, big)
        with refused("INVALID_ADDRESS"):  # that would cut a page of 2 MiB
            client.uvm("UVM_UNMAP_EXTERNAL", base=VA, length=4096, gpuUuid=gpu.uuid)


def test_pages_of_the_process_and_what_happens_when_they_go() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        address = system.mmap(-1, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
        view(address, 5)[:] = b"hello"
        gpu.map_gpu(address, 16384, gpu.pin(address, 16384))
        assert gpu.space.read(address, 5) == b"hello"
        assert gpu.space.entry(address) & Access.SYSTEM
        system.munmap(address + 8192, 8192)
        with pytest.raises(MemoryFault):
            gpu.space.read(address + 8192, 1)
        assert gpu.space.read(address, 5) == b"hello"
        system.munmap(address, 8192)


# ---------------------------------------------------------------------------------------------------------------------
# Peers


def two(system: Any) -> tuple[RmClient, Gpu, Gpu]:
    client = RmClient(system)
    return client, Gpu(client).register(), Gpu(client, 1).register()


@pytest.mark.parametrize("topology", ["2xsm_90", "2xsm_86", "2xsm_90-pcie"])
def test_peers_reach_each_others_memory(topology: str) -> None:
    with machine(topology) as system:
        client, one, other = two(system)
        memory = one.vram(2 * MIB)
        one.map_gpu(VA, 2 * MIB, memory)
        with refused("INVALID_DEVICE"):
            other.map_gpu(VA, 2 * MIB, memory, create=False)
        pair = {"gpuUuidA": one.uuid, "gpuUuidB": other.uuid}
        client.uvm("UVM_ENABLE_PEER_ACCESS", **pair)
        with refused("INVALID_DEVICE"):
            client.uvm("UVM_ENABLE_PEER_ACCESS", **pair)
        other.map_gpu(VA, 2 * MIB, memory, create=False)
        other.space.write(VA, b"peer")
        assert one.space.read(VA, 4) == b"peer"
        assert other.space.entry(VA) & Access.PEER and not one.space.entry(VA) & Access.PEER
        client.uvm("UVM_DISABLE_PEER_ACCESS", **pair)
        assert not other.space.entry(VA) and one.space.entry(VA)


def test_gpus_that_do_not_reach_each_other() -> None:
    for topology, query in (("2xsm_86-nop2p", ""), ("2xsm_90", "link-down")):
        with machine(topology, query) as system:
            client, one, other = two(system)
            with refused("NOT_SUPPORTED"):
                client.uvm("UVM_ENABLE_PEER_ACCESS", gpuUuidA=one.uuid, gpuUuidB=other.uuid)
            gpu_ids = [one.card.node.gpu_id, other.card.node.gpu_id]
            caps = client.control(client.root, "NV0000_CTRL_CMD_SYSTEM_GET_P2P_CAPS_V2", gpuCount=2, gpuIds=gpu_ids)
            assert caps.p2pCaps == 0 and caps.p2pCapsStatus[0] == 5


@pytest.mark.parametrize(("topology", "caps"), [("2xsm_90", 0x1F), ("2xsm_86", 0x47)])
def test_what_rm_says_of_the_links(topology: str, caps: int) -> None:
    with machine(topology) as system:
        client = RmClient(system)
        ids = [card.node.gpu_id for card in client.driver.cards]
        answer = client.control(client.root, "NV0000_CTRL_CMD_SYSTEM_GET_P2P_CAPS_V2", gpuCount=2, gpuIds=ids)
        assert answer.p2pCaps == caps and list(answer.busPeerIds)[:4] == [0, 1, 0, 1]
        with refused("INVALID_ARGUMENT"):
            client.control(client.root, "NV0000_CTRL_CMD_SYSTEM_GET_P2P_CAPS_V2", gpuCount=1, gpuIds=[7])


# ---------------------------------------------------------------------------------------------------------------------
# Channels


def test_channels_are_registered_with_room_for_their_buffers() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        channel = gpu.channel(*gpu.group(), gpu.vram(2 * MIB))
        where = {"gpuUuid": gpu.uuid, "hClient": client.root, "hChannel": channel, "base": VA, "length": 64 * MIB}
        with refused("INVALID_ADDRESS"):
            client.uvm("UVM_REGISTER_CHANNEL", **{**where, "base": 0})
        with refused("OBJECT_NOT_FOUND"):
            client.uvm("UVM_REGISTER_CHANNEL", **{**where, "hChannel": 0x99})
        with refused("INVALID_CHANNEL"):
            client.uvm("UVM_REGISTER_CHANNEL", **{**where, "hChannel": gpu.subdevice})
        client.uvm("UVM_REGISTER_CHANNEL", **where)
        with refused("INVALID_CHANNEL"):
            client.uvm("UVM_REGISTER_CHANNEL", **where)
        with refused("UVM_ADDRESS_IN_USE"):
            client.uvm("UVM_CREATE_EXTERNAL_RANGE", base=VA, length=4096)
        client.uvm("UVM_UNREGISTER_CHANNEL", gpuUuid=gpu.uuid, hClient=client.root, hChannel=channel)
        client.uvm("UVM_CREATE_EXTERNAL_RANGE", base=VA, length=4096)
        with refused("INVALID_CHANNEL"):
            client.uvm("UVM_UNREGISTER_CHANNEL", gpuUuid=gpu.uuid, hClient=client.root, hChannel=channel)


def test_closing_the_descriptor_gives_everything_back() -> None:
    with machine() as system:
        client = RmClient(system)
        gpu = Gpu(client).register()
        memory = gpu.vram(2 * MIB)
        gpu.map_gpu(VA, 2 * MIB, memory)
        client.free(memory)
        system.close(client.uvm_fd)
        assert not gpu.card.vram_used and not gpu.space.entry(VA)
