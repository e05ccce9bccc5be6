"""Machine code for AMD GPUs: an amdgcn object in the GPU's memory, and the packets that start its kernel.

Everything a launch needs stands in the kernel descriptor, 64 bytes in .rodata as NAME.kd (LLVM AMDGPUUsage "Kernel
Descriptor"); the metadata note is not read. A group is one workgroup of one wave.
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, NamedTuple

from devrt.amd import pm4, registers
from devrt.device import CompileError, InvalidArgument
from devrt.elf import Field, Object, read
from devrt.gpu.program import GpuProgram
from devrt.staging import write

if TYPE_CHECKING:
    from devrt.amd.device import AmdDevice
    from devrt.gpu.memory import GpuBuffer

LDS_UNIT = 512  # bytes
CODE_ALIGNMENT = 256  # PGM_LO/HI hold the address >> 8

# LLVM AMDGPUUsage "Relocation Records"
RELOCATIONS = {
    1: Field("R_AMDGPU_ABS32_LO", "<I", False, 0),
    2: Field("R_AMDGPU_ABS32_HI", "<I", False, 32),
    3: Field("R_AMDGPU_ABS64", "<Q", False),
    4: Field("R_AMDGPU_REL32", "<i", True),
    5: Field("R_AMDGPU_REL64", "<q", True),
    6: Field("R_AMDGPU_ABS32", "<I", False),
    10: Field("R_AMDGPU_REL32_LO", "<I", True, 0),
    11: Field("R_AMDGPU_REL32_HI", "<I", True, 32),
}

# EF_AMDGPU_MACH, the low byte of e_flags: LLVM llvm/BinaryFormat/ELF.h
_MACHINES = {0x3F: "gfx90a", 0x40: "gfx940", 0x4C: "gfx942", 0x36: "gfx1030", 0x41: "gfx1100", 0x48: "gfx1200", 0x4E: "gfx1201"}

_DESCRIPTOR = struct.Struct("<IIII q 20x III HH 4x")
_WAVE32, _DYNAMIC_STACK = 1 << 10, 1 << 11
# User SGPRs in the order in which they are filled: bit of the properties, name, registers.
_USER_SGPRS = ((0, "private_segment_buffer", 4), (1, "dispatch_ptr", 2), (2, "queue_ptr", 2), (3, "kernarg_segment_ptr", 2),
               (4, "dispatch_id", 2), (5, "flat_scratch_init", 2), (6, "private_segment_size", 1))
_NOT_GIVEN = ("dispatch_ptr", "queue_ptr", "dispatch_id")  # they point into AQL packets and queues
_SWIZZLE, _SRD_FORMAT = 1 << 31, 0x20C14000  # of a scratch buffer's descriptor: words 1 and 3


class Descriptor(NamedTuple):
    """What the kernel needs, in bytes; `entry` is its code's distance from the descriptor."""

    group_bytes: int
    private_bytes: int
    kernarg_bytes: int
    reserved: int
    entry: int
    rsrc3: int
    rsrc1: int
    rsrc2: int
    properties: int
    preload: int

    @property
    def user_sgprs(self) -> list[tuple[str, int]]:
        return [(name, count) for bit, name, count in _USER_SGPRS if self.properties >> bit & 1]


class Launch(NamedTuple):
    """The packets that start a kernel, with two holes: the bytes where the arguments' address (8) and the number of groups (4)
    go."""

    packets: bytes
    arguments_at: int
    groups_at: int


class AmdProgram(GpuProgram):
    """One kernel, in the GPU's memory. Arguments are 8 bytes each, in order."""

    def __init__(self, device: AmdDevice, image: bytes, entry: str) -> None:
        code = read(image, "amdgcn")
        isa = _MACHINES.get(code.flags & 0xFF, f"machine {code.flags & 0xFF:#x}")
        if isa != device.properties.isa:
            raise InvalidArgument(f"the image holds {isa} code", evidence=f"e_flags {code.flags:#x}, {device.uri} is a "
                                  f"{device.properties.isa}", remedy="compile for the isa in the device's properties")
        self.descriptor = _descriptor(code, entry)
        _check(self.descriptor, device, entry)
        super().__init__(device, entry)
        self.nbytes, self.argument_bytes = code.nbytes, self.descriptor.kernarg_bytes
        block = self._take(code.nbytes + CODE_ALIGNMENT)
        try:
            base = -(-block.address // CODE_ALIGNMENT) * CODE_ALIGNMENT
            kernel = code.symbols[f"{entry}.kd"] + self.descriptor.entry
            if kernel % CODE_ALIGNMENT or not 0 <= kernel < code.nbytes:
                raise InvalidArgument(f"the entry of {entry} lies at {kernel:#x}", evidence=f"{code.nbytes} bytes of code",
                                      remedy="compile it again")
            self.address = base + kernel
            write(device, device.code_buffer(block, base, code.nbytes), code.content(base, RELOCATIONS))
            self.scratch: GpuBuffer | None = None
            tmpring = 0
            if self.descriptor.private_bytes:
                self.scratch, tmpring = device.scratch(self.descriptor.private_bytes)
            self.launch = launch(device.gfx, device.properties.lanes, self.descriptor, self.address, tmpring,
                                 self.scratch.address if self.scratch else 0, self.scratch.nbytes if self.scratch else 0)
        except BaseException:
            self._drop()
            raise
        device.ledger.add(base, code.nbytes, f"the code of {entry}")


def _descriptor(code: Object, entry: str) -> Descriptor:
    place = code.symbols.get(f"{entry}.kd")
    if place is None or entry not in code.functions:
        kernels = sorted(name.removesuffix(".kd") for name in code.symbols if name.endswith(".kd"))
        raise InvalidArgument(f"the image has no kernel {entry!r}", evidence=f"it has {', '.join(kernels) or 'none'}",
                              remedy="name one of them")
    if place + _DESCRIPTOR.size > code.nbytes:
        raise InvalidArgument("the ELF image is damaged", evidence=f"{entry}.kd at {place:#x} of {code.nbytes} bytes",
                              remedy="compile it again; clear the cache it came from")
    return Descriptor(*_DESCRIPTOR.unpack_from(code.content(0, RELOCATIONS), place))


def _check(d: Descriptor, device: AmdDevice, entry: str) -> None:
    """Raises CompileError for a kernel that the device can't start."""
    if d.group_bytes > device.properties.scratch_bytes:
        raise CompileError(f"{entry} needs {d.group_bytes} bytes of LDS", evidence=f"a group has "
                           f"{device.properties.scratch_bytes}", remedy="use smaller tiles")
    if d.private_bytes > device.max_private_bytes:
        raise CompileError(f"{entry} needs {d.private_bytes} bytes of scratch a lane",
                           evidence=f"{device.uri} gives {device.max_private_bytes}", remedy="use fewer values at a time")
    if d.properties & _DYNAMIC_STACK:
        raise CompileError(f"{entry} has a stack of unknown size", remedy="compile without recursion and indirect calls")
    if d.preload & 0x7F:
        raise CompileError(f"{entry} wants {d.preload & 0x7F} arguments in registers", remedy="compile without kernarg preload")
    if missing := [name for name, _ in d.user_sgprs if name in _NOT_GIVEN]:
        raise CompileError(f"{entry} asks for {', '.join(missing)}", evidence=f"kernel_code_properties {d.properties:#x}",
                           remedy="compile it with the attributes amdgpu-no-dispatch-ptr, -queue-ptr and -dispatch-id")
    wave = 32 if d.properties & _WAVE32 else 64
    if wave != device.properties.lanes:
        raise CompileError(f"{entry} was compiled for waves of {wave} lanes",
                           evidence=f"{device.uri} runs groups of {device.properties.lanes}", remedy="set its wavefrontsize")


def launch(gfx: int, lanes: int, d: Descriptor, address: int, tmpring: int, scratch: int, scratch_bytes: int) -> Launch:
    """The packets of one kernel: where its code is, its registers, and the dispatch."""
    encode, set_sh = functools.partial(pm4.encode, shader_type=1), pm4.set_sh
    words = set_sh("COMPUTE_PGM_LO", gfx, address >> 8 & 0xFFFFFFFF, address >> 40)
    lds = -(-d.group_bytes // LDS_UNIT)
    words += set_sh("COMPUTE_PGM_RSRC1", gfx, d.rsrc1, d.rsrc2 & ~(0x1FF << 15) | lds << 15)
    words += set_sh("COMPUTE_PGM_RSRC3", gfx, d.rsrc3)
    words += set_sh("COMPUTE_TMPRING_SIZE", gfx, tmpring)
    if scratch:
        words += set_sh("COMPUTE_DISPATCH_SCRATCH_BASE_LO", gfx, scratch >> 8 & 0xFFFFFFFF, scratch >> 40)
    words += set_sh("COMPUTE_RESTART_X", gfx, 0, 0, 0)
    user: list[int] = []
    arguments = -1
    for name, count in d.user_sgprs:
        if name == "kernarg_segment_ptr":
            arguments = len(user)
        user += {"private_segment_buffer": (scratch & 0xFFFFFFFF, scratch >> 32 | _SWIZZLE, scratch_bytes, _SRD_FORMAT),
                 "flat_scratch_init": (scratch & 0xFFFFFFFF, scratch >> 32),
                 "private_segment_size": (d.private_bytes,)}.get(name, (0,) * count)
    if arguments < 0:  # behind what the kernel reads
        arguments = len(user)
        user += (0, 0)
    at = len(words) + 2
    words += set_sh("COMPUTE_USER_DATA_0", gfx, *user)
    words += set_sh("COMPUTE_RESOURCE_LIMITS", gfx, 0)
    words += set_sh("COMPUTE_START_X", gfx, 0, 0, 0, lanes, 1, 1)
    initiator = {"COMPUTE_SHADER_EN": 1, "FORCE_START_AT_000": 1, "ORDER_MODE": 1}
    if gfx >= 10 and d.properties & _WAVE32:
        initiator["CS_W32_EN"] = 1
    words += encode("DISPATCH_DIRECT", gfx, dim_x=0, dim_y=1, dim_z=1,
                    dispatch_initiator=registers.pack("COMPUTE_DISPATCH_INITIATOR", gfx, **initiator))
    return Launch(struct.pack(f"<{len(words)}I", *words), 4 * (at + arguments), 4 * (len(words) - 4))
