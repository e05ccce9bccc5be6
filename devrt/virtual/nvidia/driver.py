"""The virtual driver: opens, ioctls and mappings of NVIDIA's nodes, for any number of processes.

It answers as the open kernel modules do, of the branch that the machine runs. Where it is simpler: no managed memory; that
confidential computing is on, or a GPU a vGPU, is told and changes nothing; events are made but descriptors do not become
readable. For a process under the supervisor memory lies in files of its own, since its mappings begin at their start; it can't
map a part of one that begins later.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from typing import Any

from devrt.ioctl.nv_health import RecoveryAction
from devrt.ioctl.nv_modes import NODES
from devrt.ioctl.nv_versions import tables_for
from devrt.ioctl.system import PROT_WRITE, Argument, LogLine, System, view
from devrt.ioctl.uapi import Uapi
from devrt.virtual.client import Client, Place
from devrt.virtual.errors import fail
from devrt.virtual.faults import Faults
from devrt.virtual.memory import PAGE, pages
from devrt.virtual.nvidia import channel_controls, health, mode_controls, proc, rm, uvm
from devrt.virtual.nvidia.card import Card, EngineFactory, native_engine
from devrt.virtual.nvidia.channel import Channel
from devrt.virtual.nvidia.faults import Xid
from devrt.virtual.nvidia.files import CapabilityFile, NodeFile
from devrt.virtual.nvidia.machine import GpuNode, Machine
from devrt.virtual.nvidia.objects import ChannelObject, RmClient
from devrt.virtual.nvidia.uvm import UvmFile
from devrt.virtual.pool import KernelLock, Pool

HANDLER_MODULES = (rm, uvm, health, channel_controls, mode_controls)  # whose import registers the handlers

_SYSTEM_POOL = 4 << 30  # bytes of system memory that RM hands out
_LOG_LINES = 1000
_MEMORY_ERRORS = Xid.DOUBLE_BIT_ERROR, Xid.CONTAINED
_MAGIC, _XFER = ord("F"), 211


class NvidiaDriver:
    """`host` is the system that memory comes from. Any thread may call."""

    def __init__(self, machine: Machine, host: System, faults: Faults, make_engine: EngineFactory = native_engine) -> None:
        self.machine, self.host, self.faults = machine, host, faults
        self.tables = tables_for(machine.driver)
        self.lock = KernelLock()
        self.pool = Pool(host, "nvidiactl", _SYSTEM_POOL)
        self.cards = [self._card(node, make_engine) for node in machine.gpus]
        self.clients: dict[int, RmClient] = {}
        self.spaces: list[UvmFile] = []
        self.owned: tuple[str, ...] = proc.OWNED
        self.uapis: tuple[Uapi, ...] = self.tables.uapis
        self.tree = proc.build(machine, host, self)
        self._log: deque[LogLine] = deque(maxlen=_LOG_LINES)
        self._next_address = 1 << 40

    def _card(self, node: GpuNode, make_engine: EngineFactory) -> Card:
        def report(channel: Channel | None, xid: int, message: str) -> None:
            self.report(card, channel, xid, message)

        card = Card(node, self.host, self.faults, make_engine, report)
        return card

    def write_log(self, level: int, text: str) -> None:
        """Lines of the kernel log."""
        for line in text.splitlines():
            self._log.append(LogLine(level, time.clock_gettime(time.CLOCK_BOOTTIME), line))

    def kernel_log(self) -> list[LogLine]:
        return list(self._log)

    def lost(self, index: int) -> bool:
        return self.cards[index].lost

    def link_errors(self, index: int) -> int:
        return self.cards[index].health.link_errors

    def link(self, one: Card, other: Card) -> str | None:
        """How GPUs reach each other's memory: "nvlink", "pcie" or not at all."""
        if self.faults.link_down or one is other:
            return None
        return self.machine.links.get((one.node.index, other.node.index))

    def reaches(self, one: Card, other: Card) -> bool:
        return self.link(one, other) is not None

    def bytes_at(self, address: int, nbytes: int) -> memoryview:
        return view(address, nbytes)

    def new_address(self, card: Card | None, nbytes: int) -> int:
        """What RM calls the linear address of a mapping: a physical one, which no process has anything at."""
        address = self._next_address
        self._next_address += pages(nbytes) + PAGE
        return address

    def close(self) -> None:
        with self.lock:
            for client in list(self.clients.values()):
                self.free_client(client)
            for space in list(self.spaces):
                self._close_space(space)
            for card in self.cards:
                card.close()
            self.pool.close()

    # -----------------------------------------------------------------------------------------------------------------
    # Descriptors

    def open(self, client: Client, path: str) -> tuple[NodeFile | UvmFile | CapabilityFile, int]:
        """What a descriptor of a node is from now on, and the file of pages that it must be a duplicate of. Raises OSError:
        ENOENT, EIO."""
        with self.lock:
            if path not in self.tree.nodes:
                fail(errno.ENOENT, path)
            if path == "/dev/nvidiactl":
                return NodeFile(client), self.pool.file.fd
            if path in ("/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"):
                space = UvmFile(client)
                self.spaces.append(space)
                return space, self.pool.file.fd
            if path.startswith(f"{NODES}/"):
                return CapabilityFile(client, self.tree.nodes[path][1]), self.pool.file.fd
            for card in self.cards:
                if path == f"/dev/nvidia{card.node.index}":
                    if card.lost:
                        fail(errno.EIO, path)
                    card.opens += 1
                    return NodeFile(client, card), card.pool.file.fd
        fail(errno.ENOENT, path)

    def release(self, what: object) -> None:
        """A descriptor was closed."""
        with self.lock:
            if isinstance(what, UvmFile):
                self._close_space(what)
            elif isinstance(what, NodeFile):
                what.closed = True  # RM's mapping stays, and its part of BAR1, until it is unmapped or the memory is freed
                if what.card is not None:
                    what.card.opens -= 1
                    self._idle(what.card)
                if what.control is not None:
                    what.control.references -= 1
                    self._end(what.control)
                self._end(what)

    @staticmethod
    def _idle(card: Card) -> None:
        """Without a user the GPU is shut down; the next open starts it from anew."""
        if not card.opens and not card.gone:
            card.lost, card.health.recovery_action = False, 0

    def _end(self, file: NodeFile) -> None:
        """A control descriptor's clients go when it is closed, and every descriptor that was registered with it."""
        if file.closed and not file.references:
            for client in list(file.clients.values()):
                self.free_client(client)

    def _close_space(self, space: UvmFile) -> None:
        space.close()
        if space in self.spaces:
            self.spaces.remove(space)

    def free_client(self, client: RmClient) -> None:
        client.free(client)
        self.clients.pop(client.handle, None)
        if client.file is not None:
            client.file.clients.pop(client.handle, None)

    def invalidate(self, client: Client, address: int, nbytes: int) -> None:
        """Pages of the client are unmapped: GPUs lose them too."""
        with self.lock:
            for space in self.spaces:
                if space.process.key == client.key:
                    uvm.invalidate(space, address, nbytes)

    def mmap(self, what: object, length: int, offset: int, prot: int) -> Place:
        """Where a mapping of a descriptor lies: what RM_MAP_MEMORY put there. Raises OSError: EINVAL, ENXIO, EACCES, ERANGE."""
        with self.lock:
            mapping = what.mapping if isinstance(what, NodeFile) else None
            if not isinstance(what, NodeFile) or mapping is None or offset:
                fail(errno.EINVAL)
            if mapping.address not in mapping.object.mappings or what.card is not None and what.card.lost:
                fail(errno.EINVAL)  # it was unmapped, or freed
            if what.card is not None and pages(length) != mapping.nbytes:
                fail(errno.ENXIO)
            if pages(length) > mapping.nbytes:
                fail(errno.ERANGE)
            if prot & PROT_WRITE and not mapping.writable:
                fail(errno.EACCES)
            return Place(mapping.store.pool.file.fd, mapping.store.offset + mapping.start)

    # -----------------------------------------------------------------------------------------------------------------
    # ioctls

    def ioctl(self, client: Client, what: object, request: int, argument: Argument) -> int:
        """Answer an ioctl on what `open` gave. An `argument` that is a number is an address of the client. Raises OSError."""
        if isinstance(what, UvmFile):
            self._uvm(client, what, request, argument)
        elif isinstance(what, NodeFile):
            self._rm(client, what, request, argument)
        else:
            fail(errno.ENOTTY)
        return 0

    def _uvm(self, client: Client, file: UvmFile, request: int, argument: Argument) -> None:
        table = self.tables.uvm
        name = table.find(request)
        if name is None:
            fail(errno.EINVAL)
        planned = self.faults.errno(name)
        if planned:
            fail(planned)
        struct = table.ioctls[name].struct
        size = table.size(struct)
        args = self._argument(client, table, struct, size, size, argument)
        with self.lock:
            uvm.perform(self, client, file, name, args)
        if args is not None:
            self._answer(client, argument, bytes(table.ffi.buffer(args)))

    def _rm(self, client: Client, file: NodeFile, request: int, argument: Argument) -> None:
        table, number, size = self.tables.nvrm, request & 0xFF, request >> 16 & 0x3FFF
        if number == _XFER:
            head = self._argument(client, table, "nv_ioctl_xfer_t", table.size("nv_ioctl_xfer_t"), size, argument)
            number, size, argument = head.cmd, head.size, head.ptr
        name = table.find(_MAGIC << 8 | number)
        if name is None or name not in rm.HANDLERS and name != "NV_ESC_CARD_INFO":
            fail(errno.EINVAL)
        planned = self.faults.errno(name)
        if planned:
            fail(planned)
        if file.card is not None and file.card.lost:
            fail(errno.EINVAL)
        struct = table.ioctls[name].struct
        want = table.size(struct)
        if name == "NV_ESC_CARD_INFO":
            with self.lock:
                self._card_info(client, file, size, argument)
            return
        old = name == "NV_ESC_RM_ALLOC" and size == rm.OLD_ALLOC_BYTES
        if size != want and not old:
            fail(errno.EINVAL)
        if old:
            struct, want = "NVOS21_PARAMETERS", rm.OLD_ALLOC_BYTES
        args = self._argument(client, table, struct, want, size, argument)
        with self.lock:
            rm.perform(self, client, file, name, args)
        self._answer(client, argument, bytes(table.ffi.buffer(args)))

    def _argument(self, client: Client, table: Uapi, struct: str, want: int, size: int, argument: Argument) -> Any:
        """A pointer to a copy of the struct, None where there is none. Raises OSError: EINVAL for another size, EFAULT."""
        if size != want:
            fail(errno.EINVAL)
        data = client.memory.read(argument, want) if isinstance(argument, int) else bytes(argument[:want])
        if len(data) < want:
            fail(errno.EFAULT)
        if not struct:
            return None
        pointer = table.new(struct)
        table.ffi.buffer(pointer)[:] = data
        return pointer

    @staticmethod
    def _answer(client: Client, argument: Argument, data: bytes) -> None:
        if isinstance(argument, int):
            client.memory.write(argument, data)
        else:
            memoryview(argument).cast("B")[:len(data)] = data

    def _card_info(self, client: Client, file: NodeFile, size: int, argument: Argument) -> None:
        """An array of as many cards as the argument has room for."""
        table = self.tables.nvrm
        row = table.size("nv_ioctl_card_info_t")
        if file.card is not None or size < row * len(self.cards):
            fail(errno.EINVAL)
        data = bytearray(size // row * row)
        for index, card in enumerate(self.cards):
            node = card.node
            info = table.new("nv_ioctl_card_info_t", valid=1, gpu_id=node.gpu_id, interrupt_line=100 + index,
                             reg_address=node.registers, reg_size=16 << 20, fb_address=node.aperture, fb_size=node.bar1_bytes,
                             minor_number=index, dev_name=b"nvidia%d" % index)
            info.pci_info.bus, info.pci_info.vendor_id, info.pci_info.device_id = node.bus, 0x10DE, card.model.device_id
            data[index * row:(index + 1) * row] = bytes(table.ffi.buffer(info))
        self._answer(client, argument, bytes(data))

    # -----------------------------------------------------------------------------------------------------------------
    # What engines cause. Nothing here takes the driver's lock: who holds it may be waiting for the engine that calls.

    def report(self, card: Card, channel: Channel | None, xid: int, message: str) -> None:
        """A channel stopped, or (no channel) the whole GPU did."""
        who = self._owner(channel) if channel is not None else None
        process = f"pid={who}, name={self._name(who)}, " if who is not None else ""
        card.health.errors.append((xid, message))
        for line in message.splitlines():
            self.write_log(3, f"NVRM: Xid (PCI:{card.node.pci.rpartition('.')[0]}): {xid}, {process}{line}")
        if xid in _MEMORY_ERRORS:
            card.health.dram_uncorrected += 1
            card.health.remapped_uncorrectable += 1
            card.health.remap_pending = True  # until the next reset
        if channel is None:
            card.lost = True
            card.health.recovery_action = RecoveryAction.GPU_RESET
            card.lose_memory()

    def _name(self, pid: int) -> str:
        try:
            return self.host.read_text(f"/proc/{pid}/comm").strip()
        except OSError:
            return "<unknown>"

    def lose(self, card: Card, why: str) -> None:
        """A GPU falls off the bus: nothing on it answers any more."""
        card.gone = True
        self.report(card, None, Xid.OFF_THE_BUS, why)

    def _owner(self, channel: Channel) -> int | None:
        for client in list(self.clients.values()):
            for one in client.all_of(ChannelObject):
                if one.channel is channel and client.process is not None:
                    return client.process.key
        return None
