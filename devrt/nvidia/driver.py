"""The kernel driver as one process sees it: nvidiactl, nvidia-uvm, the client, and the cards.

A driver is connected while a device is open, and closed with the last memory of the last device. The version file selects the
tables; the open and the closed flavour of the kernel module answer the same calls.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from devrt.device import DeviceNotFound, DevrtError, InvalidArgument, PermissionDenied
from devrt.gpu.memory import PAGE, reserve
from devrt.ioctl.errors import devrt_error, errno_name, reported_as
from devrt.ioctl.nv_versions import VERSION_FILE, Tables, running_version, tables_for
from devrt.ioctl.nvrm import NVRM, card_info
from devrt.ioctl.system import (
    MADV_DONTFORK,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_NONE,
    System,
)
from devrt.ioctl.uvm import InitFlag
from devrt.nvidia.instances import Instance, instances
from devrt.nvidia.rm import ResourceManager

if TYPE_CHECKING:
    from devrt.nvidia.device import NvidiaDevice

CONTROL_NODE, UVM_NODE = "/dev/nvidiactl", "/dev/nvidia-uvm"
NEAR, NEAR_END = 1 << 36, 1 << 40  # addresses that 40-bit fields reach: pushbuffers, launch descriptors, semaphores
_QUERY = ord("2")  # nv-ioctl.h, NV_RM_API_VERSION_CMD_QUERY
WINDOW = 1 << 32  # bytes of addresses that shared, and local, memory is seen through

_drivers: dict[int, Driver] = {}  # by the identity of their System
_lock = threading.RLock()


class Card(NamedTuple):
    """A row of the driver's list of GPUs, or an instance of one. `pci` is "0000:c1:00.0", `device_id` the PCI id."""

    gpu_id: int
    minor: int
    pci: str
    device_id: int
    instance: Instance | None = None

    @property
    def node(self) -> str:
        return f"/dev/nvidia{self.minor}"


def connect(system: System) -> Driver:
    """The driver context of this process behind `system`; the caller is one of its users, until it leaves. Raises
    DeviceNotFound, PermissionDenied, DriverMismatch."""
    with _lock:
        found = _drivers.get(id(system))
        if found is None:
            found = _drivers[id(system)] = Driver(system)
        found.users += 1
        return found


def cards(system: System, tables: Tables, fd: int) -> list[Card]:
    """The GPUs in the order of their PCI addresses."""
    with reported_as("the NVIDIA driver does not list its GPUs"):
        rows: list[dict[str, Any]] = card_info(system, fd, tables.nvrm)
    found = []
    for row in rows:
        pci = row["pci_info"]
        place = f"{pci['domain']:04x}:{pci['bus']:02x}:{pci['slot']:02x}.{pci['function']:x}"
        found.append(Card(row["gpu_id"], row["minor_number"], place, pci["device_id"]))
    return sorted(found, key=lambda card: card.pci)


def here(system: System, found: list[Card]) -> list[Card]:
    """What of these GPUs is a device of this process: a container that has some of their nodes has those GPUs; a GPU that is
    split (MIG) is as many devices as it has instances that this process can open."""
    there = [card for card in found if system.stat(card.node).exists] or found
    made = []
    for card in there:
        parts = [one for one in instances(system, card.minor) if not one.missing(system)]
        made += [card._replace(instance=one) for one in parts] or [card]
    return made


def version(system: System) -> str:
    """The running driver's: as its file has it, or, in a sandbox that shows no files of the driver (gVisor), as the control node
    answers. Raises DeviceNotFound where none is loaded, DriverMismatch where it names none."""
    try:
        return running_version(system.read_text(VERSION_FILE))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise devrt_error(error, "can't read the version of the NVIDIA driver") from error
        missing = error
    try:
        fd = system.open(CONTROL_NODE, os.O_RDWR)
        try:
            made = NVRM.call(system, fd, "NV_ESC_CHECK_VERSION_STR", cmd=_QUERY)
        finally:
            system.close(fd)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise _cannot_open(error, CONTROL_NODE) from missing
        raise DeviceNotFound("this machine has no NVIDIA kernel driver",
                             evidence=f"{VERSION_FILE} does not exist, and {CONTROL_NODE} says {errno_name(error.errno or 0)}",
                             remedy="load the nvidia and nvidia-uvm modules (sudo modprobe nvidia-uvm); in a container, pass "
                                    "/dev/nvidia* to it") from missing
    answer = bytes(NVRM.ffi.buffer(made.versionString)).partition(b"\0")[0].decode("ascii", "replace")
    return running_version(f"NVRM version: {answer}")


def _flavour(system: System) -> str:
    try:
        return "open" if "Open Kernel Module" in system.read_text(VERSION_FILE) else "closed"
    except OSError:
        return "unknown"


def open_node(system: System, path: str) -> int:
    """A descriptor of one of the driver's nodes. Raises DeviceNotFound, PermissionDenied, with what mends it."""
    try:
        return system.open(path, os.O_RDWR)
    except OSError as error:
        raise _cannot_open(error, path) from error


def register(system: System, tables: Tables, node: str, fd: int, control_fd: int) -> None:
    """Let the client behind `control_fd` use the card behind `fd`."""
    with reported_as(f"the driver does not take {node} for this client"):
        tables.nvrm.call(system, fd, "NV_ESC_REGISTER_FD", ctl_fd=control_fd)


class Driver:
    """One process's context of nvidia.ko and nvidia-uvm.ko. `flavour`: "open", "closed"; "unknown" in a sandbox."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.version = version(system)
        self.flavour = _flavour(system)
        self.tables = tables_for(self.version)
        self.lock = threading.RLock()
        self.closed = False
        self.abandoned = False  # whether its descriptors are not ours any more: nothing is given back then
        self.devices: dict[int, NvidiaDevice] = {}  # by index
        self.users = 0  # devices that are open, and closed ones with memory left
        self._near = NEAR
        self._fds: list[int] = []
        self._windows = 0
        try:
            fd = self._open(CONTROL_NODE)
            uvm = self._open(UVM_NODE)
            self.cards = here(system, cards(system, self.tables, fd))
            if not self.cards:
                raise DeviceNotFound("the NVIDIA driver has no GPU", evidence=f"driver {self.version}, {self.flavour} module",
                                     remedy="read the kernel log (`sudo dmesg`) for lines with NVRM; `lspci -d 10de:` lists the "
                                            "cards in their slots")
            self.rm = ResourceManager(system, self.tables, fd, uvm)
            # Without HMM: a kernel that goes astray is to fault, not to read and migrate whatever the process has there.
            self.rm.uvm("can't initialise nvidia-uvm", "UVM_INITIALIZE", flags=InitFlag.DISABLE_HMM)
            # The second descriptor watches the process's memory map. What it answers differs by kernel and by flags that a
            # sandbox adds to UVM_INITIALIZE, and it is not needed.
            watch = self._open(UVM_NODE)
            undo(lambda: self.rm.uvm("", "UVM_MM_INITIALIZE", fd=watch, uvmFd=uvm))
            # Code reads only the high half of the shared window on some generations, so both are aligned to their size.
            self._windows = reserve(system, 2 * WINDOW, WINDOW)
        except BaseException:
            self._close()
            raise
        self.local_window, self.shared_window = self._windows, self._windows + WINDOW

    def _open(self, path: str) -> int:
        fd = open_node(self.system, path)
        self._fds.append(fd)
        return fd

    def card(self, index: int) -> Card:
        if not 0 <= index < len(self.cards):
            raise DeviceNotFound(f"there is no NVIDIA GPU number {index}", evidence=f"GPUs: {len(self.cards)}",
                                 remedy="`devrt devices` lists them")
        return self.cards[index]

    def card_fd(self, card: Card) -> int:
        """A fresh descriptor of a card's node that this client may use; the caller closes it."""
        fd = open_node(self.system, card.node)
        try:
            register(self.system, self.tables, card.node, fd, self.rm.fd)
        except BaseException:
            self.system.close(fd)
            raise
        return fd

    def control_fd(self) -> int:
        """A fresh descriptor of the control node, to map system memory through; the caller closes it."""
        return open_node(self.system, CONTROL_NODE)

    # ----- addresses

    def near(self, nbytes: int, alignment: int) -> int:
        """Addresses below 2^40 that nothing else in this process gets."""
        with self.lock:
            for _ in range(2):
                at = -(-self._near // alignment) * alignment
                while at + nbytes <= NEAR_END:
                    try:
                        # Kernels before 4.17 take the address for a hint.
                        got = self.system.mmap(-1, nbytes, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED_NOREPLACE, 0, at)
                    except OSError as error:
                        if error.errno != errno.EEXIST:
                            raise devrt_error(error, f"can't reserve {nbytes} bytes of addresses") from error
                        at += max(alignment, nbytes)
                        continue
                    if got == at:
                        self._near = at + nbytes
                        return at
                    self.system.munmap(got, nbytes)
                    at += max(alignment, nbytes)
                self._near = NEAR
        raise InvalidArgument(f"no {nbytes} bytes of addresses below 2^40 are free", remedy="free buffers of Placement.HOST")

    def far(self, nbytes: int, alignment: int) -> int:
        return reserve(self.system, nbytes, max(alignment, PAGE))

    def private(self, address: int, nbytes: int) -> None:
        """Keep a mapping of GPU memory out of child processes."""
        with reported_as("can't keep GPU memory out of child processes"):
            self.system.madvise(address, nbytes, MADV_DONTFORK)

    # ----- the end

    def enter(self) -> None:
        with _lock:
            self.users += 1

    def leave(self) -> None:
        """The last to leave closes the driver."""
        with _lock:
            self.users -= 1
            if self.users or self.abandoned:
                return
            if _drivers.get(id(self.system)) is self:
                del _drivers[id(self.system)]
            self._close()

    def abandon(self) -> None:
        """What is behind it is not this process's any more: after a fork, or where a virtual machine was shut down."""
        self.abandoned = True
        self._fds.clear()
        with _lock:
            if _drivers.get(id(self.system)) is self:
                del _drivers[id(self.system)]

    def _close(self) -> None:
        """Closing the control node frees every object of the client, and closing nvidia-uvm every address range."""
        self.closed = True
        if self._windows:
            self.system.munmap(self._windows, 2 * WINDOW)
            self._windows = 0
        while self._fds:
            self.system.close(self._fds.pop())


def undo(*actions: Callable[[], object]) -> None:
    """Take back what was done, all of it, or do what is not needed: what the driver says to that does not matter."""
    for action in actions:
        try:
            action()
        except (DevrtError, OSError):
            continue


def _cannot_open(error: OSError, path: str) -> DevrtError:
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        module = "nvidia-uvm" if path == UVM_NODE else "nvidia"
        minor = path.removeprefix("/dev/nvidia") if path not in (UVM_NODE, CONTROL_NODE) else ""
        make = f"sudo nvidia-modprobe -c {minor}" if minor else "sudo nvidia-modprobe -u -c 0"
        return DeviceNotFound(f"{path} is not there, or nothing answers on it", evidence=errno.errorcode[error.errno],
                              remedy=f"sudo modprobe {module} loads the module, {make} makes the node; in a container, pass "
                                     f"{path} to it")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"this process may not open {path}", evidence=errno.errorcode[error.errno],
                                remedy=f"sudo chmod a+rw {path}, or add the user to the node's group; in a container, pass the "
                                       "device to it")
    if error.errno == errno.EIO:
        return DeviceNotFound(f"the driver could not start the GPU behind {path}", evidence="EIO",
                              remedy="read the kernel log (`sudo dmesg`) for lines with NVRM: RmInitAdapter failed")
    return devrt_error(error, f"can't open {path}")


def _forked() -> None:
    """The child's descriptors are those of the parent's client, whose memory it does not have."""
    global _lock
    _lock = threading.RLock()
    for driver in list(_drivers.values()):
        driver.abandon()


os.register_at_fork(after_in_child=_forked)
