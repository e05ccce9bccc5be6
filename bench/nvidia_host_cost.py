"""What a submission to an NVIDIA GPU costs the host, with nothing behind the driver. Run: python bench/nvidia_host_cost.py

NullSystem grants every call, gives ordinary memory for every object, and has no engine: see host_cost.py.
"""

from __future__ import annotations

import errno
from typing import Any

import host_cost

from devrt.compiler.sass import backend, target
from devrt.ioctl.nv_classes import CHIPS
from devrt.ioctl.nv_controls import FbInfo, GrInfo
from devrt.ioctl.nv_versions import VERSION_FILE, tables_for
from devrt.ioctl.system import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, Argument, LinuxSystem, System, view
from devrt.nvidia.device import NvidiaDevice

VERSION, SM = "580.105.08", 90
_SHAPE = {GrInfo.SM_VERSION: 0x900, GrInfo.MAX_WARPS_PER_SM: 64, GrInfo.LITTER_NUM_GPCS: 8, GrInfo.LITTER_NUM_TPC_PER_GPC: 9,
          GrInfo.LITTER_NUM_SM_PER_TPC: 2}


class NullSystem:
    """A System whose driver says yes, with one H200 behind it that runs nothing."""

    def __init__(self) -> None:
        self._real = LinuxSystem()
        self._numbers = iter(range(1, 1 << 30))
        self._tables = tables_for(VERSION)
        about = CHIPS["GH100"]
        self._classes = [about.compute, *about.copy, *about.channel, *about.usermode]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def read_text(self, path: str, limit: int = 1 << 20) -> str:
        if path == VERSION_FILE:
            return f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {VERSION}  Release Build\n"
        return self._real.read_text(path, limit)

    def open(self, path: str, flags: int) -> int:
        return self._real.open("/dev/null", flags)

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int = 0, address: int = 0) -> int:
        if fd >= 0:
            flags = flags & ~MAP_SHARED | MAP_PRIVATE | MAP_ANONYMOUS
        return self._real.mmap(-1, length, prot, flags, 0, address)

    def ioctl(self, fd: int, request: int, argument: Argument) -> int:
        nvrm, uvm = self._tables.nvrm, self._tables.uvm
        name = uvm.find(request) if request < 1 << 16 or request >> 28 == 3 and request & 0xFF00 == 0 else nvrm.find(request)
        if name is None or isinstance(argument, int):
            raise OSError(errno.EINVAL, "no such call")
        if name in uvm.ioctls:
            return 0
        struct = nvrm.ioctls[name].struct
        fields: Any = nvrm.ffi.from_buffer(f"{nvrm.ctype(struct)} *", argument, require_writable=True)
        if name == "NV_ESC_CARD_INFO":
            fields.valid, fields.gpu_id = 1, 0x100
        elif name == "NV_ESC_RM_ALLOC":
            fields.hObjectNew = next(self._numbers)
        elif name == "NV_ESC_RM_CONTROL":
            self._control(fields)
        return 0

    def _control(self, fields: Any) -> None:
        nvrm = self._tables.nvrm
        name = next(name for name, row in self._tables.controls.items() if row.number == fields.cmd)
        struct = self._tables.controls[name].struct
        a = nvrm.ffi.cast(f"{nvrm.ctype(struct)} *", fields.params) if struct else None
        if name.endswith("GET_CLASSLIST"):
            if a.classList:
                view(a.classList, 4 * len(self._classes)).cast("I")[:] = memoryview(
                    b"".join(int(c).to_bytes(4, "little") for c in self._classes)).cast("I")
            a.numClasses = len(self._classes)
        elif name.endswith("GR_GET_INFO"):
            pairs = view(a.grInfoList, 8 * a.grInfoListSize).cast("I")
            for n in range(a.grInfoListSize):
                pairs[2 * n + 1] = _SHAPE[GrInfo(pairs[2 * n])]
        elif name.endswith("GET_GPC_MASK"):
            a.gpcMask = 0xFF
        elif name.endswith("GET_TPC_MASK"):
            a.tpcMask = 0xFF
        elif name.endswith("FB_GET_INFO_V2"):
            for n in range(a.fbInfoListSize):
                a.fbInfoList[n].data = {FbInfo.HEAP_FREE: 1 << 26}.get(a.fbInfoList[n].index, 1 << 27)


class NullDevice(NvidiaDevice):
    """Whoever waits finds everything done."""

    def look(self) -> None:
        host_cost.complete(self)


def main() -> int:
    system: Any = NullSystem()
    real: System = system
    return host_cost.report(NullDevice("nvidia:0", real), backend.compile_program(host_cost.kernel(), target.target(f"sm_{SM}")))


if __name__ == "__main__":
    raise SystemExit(main())
