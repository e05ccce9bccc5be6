"""The resource manager's calls and unified memory's, typed; a status that is not 0 becomes one of devrt's errors.

Objects form a tree under a client: device, subdevice, memories, channel groups, channels. A call names its object by handle.
"""

from __future__ import annotations

from typing import Any

from devrt.device import (
    DeviceHang,
    DeviceLost,
    DeviceNotFound,
    DevrtError,
    DriverMismatch,
    InvalidArgument,
    OutOfMemory,
    PermissionDenied,
    Unsupported,
)
from devrt.ioctl.errors import devrt_error
from devrt.ioctl.nv_status import Status, status_name
from devrt.ioctl.nv_versions import Tables
from devrt.ioctl.nvrm import PARAMETERS
from devrt.ioctl.system import System
from devrt.ioctl.uapi import Uapi

_LOG = "read the kernel log (`sudo dmesg`) for lines with NVRM"
_LOST = "read the kernel log for Xid lines; the machine, or the GPU's slot, has to be reset"
_TRACE = "record the calls (`devrt trace`) and compare them with the driver's header"
_TAKEN = "another program has the GPU for itself: end it, or set the compute mode to default"
# nvstatuscodes.h -> what it means for the caller. A status that is not here is a plain DevrtError.
_MEANINGS: dict[int, tuple[type[DevrtError], str]] = {
    Status.NV_ERR_GPU_IS_LOST: (DeviceLost, _LOST),
    Status.NV_ERR_GPU_IN_FULLCHIP_RESET: (DeviceLost, _LOST),
    Status.NV_ERR_RESET_REQUIRED: (DeviceLost, _LOST),
    Status.NV_ERR_CARD_NOT_PRESENT: (DeviceNotFound, _LOG),
    Status.NV_ERR_GPU_UUID_NOT_FOUND: (DeviceNotFound, _LOG),
    Status.NV_ERR_NO_MEMORY: (OutOfMemory, "free buffers, or use a smaller batch; other programs use this GPU too"),
    Status.NV_ERR_INSUFFICIENT_RESOURCES: (OutOfMemory, "a table of the driver is full: close other programs on this GPU"),
    Status.NV_ERR_INSUFFICIENT_PERMISSIONS: (PermissionDenied, "run `devrt doctor`; in a container, pass /dev/nvidia* to it"),
    Status.NV_ERR_INVALID_PARAM_STRUCT: (DriverMismatch, "this driver's structs are others than devrt's: report its version"),
    Status.NV_ERR_INVALID_COMMAND: (DriverMismatch, "this driver does not know the call: report its version"),
    Status.NV_ERR_LIB_RM_VERSION_MISMATCH: (DriverMismatch, "load the kernel module of the installed version: reboot"),
    Status.NV_ERR_NOT_SUPPORTED: (Unsupported, "the driver or this GPU lacks the feature"),
    Status.NV_ERR_INVALID_CLASS: (Unsupported, "the driver or this GPU lacks the feature"),
    Status.NV_ERR_TIMEOUT: (DeviceHang, _LOG),
    Status.NV_ERR_INVALID_ARGUMENT: (InvalidArgument, _TRACE),
    Status.NV_ERR_INVALID_ADDRESS: (InvalidArgument, _TRACE),
    Status.NV_ERR_INVALID_POINTER: (InvalidArgument, _TRACE),
    Status.NV_ERR_IN_USE: (DevrtError, _TAKEN),
    Status.NV_ERR_STATE_IN_USE: (DevrtError, _TAKEN),
    Status.NV_ERR_NVLINK_FABRIC_NOT_READY: (DevrtError, "start nvidia-fabricmanager, and wait until it has set up NVSwitch"),
}


class RmError(Exception):
    """A status of RM or UVM, before it is known what was being done."""

    def __init__(self, status: int, call: str) -> None:
        super().__init__(f"{call}: {status_name(status)}")
        self.status, self.call = status, call

    def meaning(self, what: str, *, remedy: str = "") -> DevrtError:
        kind, usual = _MEANINGS.get(self.status, (DevrtError, _LOG))
        return kind(what, evidence=str(self), remedy=remedy or usual)


class ResourceManager:
    """One client of nvidia.ko. `fd` is nvidiactl, `uvm_fd` nvidia-uvm."""

    def __init__(self, system: System, tables: Tables, fd: int, uvm_fd: int) -> None:
        self.system, self.tables, self.fd, self.uvm_fd = system, tables, fd, uvm_fd
        self._nvrm, self._uvm = tables.nvrm, tables.uvm
        self._chosen = 0x1000  # handles that the caller has to choose
        self.client = 0
        self.client = self.alloc("can't make a client of the NVIDIA driver", 0, 0x41)

    # ----- objects

    def alloc(self, what: str, parent: int, cls: int, **fields: Any) -> int:
        """The handle of a new object of class `cls`. Its parameters are `fields`; none are sent where there are none."""
        struct = PARAMETERS[cls] if fields else ""
        params = self._nvrm.new(struct, **fields) if struct else None
        made = self._nvrm.new("NVOS64_PARAMETERS", hRoot=self.client, hObjectParent=parent or self.client, hClass=cls,
                              pAllocParms=_address(self._nvrm, params), paramsSize=self._nvrm.size(struct))
        self._call(what, "NV_ESC_RM_ALLOC", made, f"RM_ALLOC of class {cls:#x}")
        return int(made.hObjectNew)

    def free(self, parent: int, handle: int) -> None:
        """Free an object and all below it. On a GPU that is lost there is nothing left to free."""
        asked = self._nvrm.new("NVOS00_PARAMETERS", hRoot=self.client, hObjectParent=parent or self.client, hObjectOld=handle)
        self._call(f"can't free object {handle:#x}", "NV_ESC_RM_FREE", asked, "RM_FREE", Status.NV_ERR_GPU_IS_LOST)

    def control(self, what: str, handle: int, name: str, **fields: Any) -> Any:
        """Carry out a control of an object; its parameters as the driver left them."""
        row = self.tables.controls[name]
        params = self._nvrm.new(row.struct, **fields) if row.struct else None
        asked = self._nvrm.new("NVOS54_PARAMETERS", hClient=self.client, hObject=handle, cmd=row.number,
                               params=_address(self._nvrm, params), paramsSize=self._nvrm.size(row.struct))
        self._call(what, "NV_ESC_RM_CONTROL", asked, name)
        return params

    # ----- memory

    def pin(self, what: str, device: int, card_fd: int, address: int, nbytes: int, flags: int) -> int:
        """The handle of a memory object of pages of this process."""
        self._chosen += 1
        made = self._nvrm.new("nv_ioctl_nvos02_parameters_with_fd", fd=-1, params={
            "hRoot": self.client, "hObjectParent": device, "hObjectNew": self._chosen, "hClass": 0x71, "flags": flags,
            "pMemory": address, "limit": nbytes - 1})
        self._call(what, "NV_ESC_RM_ALLOC_MEMORY", made, "RM_ALLOC_MEMORY", fd=card_fd, answer=made.params)
        return int(made.params.hObjectNew)

    def map_memory(self, what: str, device: int, handle: int, fd: int, nbytes: int, flags: int = 0) -> None:
        """Have the next mmap of `fd`, at offset 0, show the object."""
        asked = self._nvrm.new("nv_ioctl_nvos33_parameters_with_fd", fd=fd, params={
            "hClient": self.client, "hDevice": device, "hMemory": handle, "length": nbytes, "flags": flags})
        self._call(what, "NV_ESC_RM_MAP_MEMORY", asked, "RM_MAP_MEMORY", answer=asked.params)

    # ----- unified memory

    def uvm(self, what: str, name: str, *, fd: int = -1, allow: tuple[int, ...] = (), **fields: Any) -> Any:
        """Carry out a call of nvidia-uvm; its struct as the driver left it."""
        struct = self._uvm.ioctls[name].struct
        known = dict(self._uvm.ffi.typeof(self._uvm.ctype(struct)).fields)
        params = self._uvm.new(struct, **{key: value for key, value in fields.items() if key in known})
        try:
            with _bytes(self._uvm, params) as data:  # released, as Uapi.call does it
                self.system.ioctl(self.uvm_fd if fd < 0 else fd, self._uvm.request(name), data)
        except OSError as error:
            raise devrt_error(error, what) from error
        if params.rmStatus and params.rmStatus not in allow:
            raise _error(RmError(params.rmStatus, name), what)
        return params

    def _call(self, what: str, name: str, argument: Any, call: str, *allow: int, fd: int = -1, answer: Any = None) -> None:
        try:
            with _bytes(self._nvrm, argument) as data:
                self.system.ioctl(self.fd if fd < 0 else fd, self._nvrm.request(name), data)
        except OSError as error:
            raise devrt_error(error, what) from error
        status = (argument if answer is None else answer).status
        if status and status not in allow:
            raise _error(RmError(status, call), what)


def _error(error: RmError, what: str) -> DevrtError:
    made = error.meaning(what)
    made.__cause__ = error
    return made


def _address(table: Uapi, params: Any) -> int:
    return 0 if params is None else int(table.ffi.cast("uintptr_t", params))


def _bytes(table: Uapi, params: Any) -> memoryview:
    return memoryview(table.ffi.buffer(params)).cast("B")
