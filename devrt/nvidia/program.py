"""Machine code for NVIDIA GPUs: a kernel of a cubin in the GPU's memory, and what each launch of it is made of.

The cubin says what the kernel needs (devrt.compiler.sass.reader); devrt's own and NVIDIA's are loaded alike. Code, constant banks
and global variables lie in one piece. A launch is a descriptor, of which all is known here but the grid and bank 0, and bank 0
itself: sizes and windows in front, the arguments behind them.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from devrt.compiler.sass.reader import Kernel, read
from devrt.device import CompileError, InvalidArgument
from devrt.gpu.program import GpuProgram
from devrt.nvidia import qmd
from devrt.nvidia.generation import (
    GENERATIONS,
    MAX_LOCAL_BYTES,
    MAX_THREADS,
    REGISTER_FILE,
    REGISTER_UNIT,
    STACK_RESERVE,
    STACK_TOP,
    carve_out,
)
from devrt.staging import write

if TYPE_CHECKING:
    from devrt.nvidia.device import NvidiaDevice

CODE_ALIGNMENT = 256
PREFETCH_BYTES = 4096  # the instruction fetch runs ahead of the last instruction: that much after it is mapped
_SHARED_UNIT, _LOCAL_UNIT, _BANK_UNIT = 128, 16, 16
_MAX_PREFETCH = 0x1FF << 8
_MAX_REGISTERS = 255
_MAX_BLOCKS = 32  # of an SM at once
_GROUP = 0x3F  # QMD_GROUP_ID of work that is in no group
_GRID, _BANK = struct.Struct("<I"), struct.Struct("<Q")


class NvidiaProgram(GpuProgram):
    """One kernel, in the GPU's memory. Arguments are 8 bytes each, in order. `block` is (x, y, z) threads."""

    device: NvidiaDevice

    def __init__(self, device: NvidiaDevice, image: bytes, entry: str) -> None:
        super().__init__(device, entry)
        found = read(image)
        if found.sm // 10 != device.sm // 10 or found.sm > device.sm:
            raise InvalidArgument(f"the image holds sm_{found.sm} code", evidence=f"{device.uri} is an sm_{device.sm}",
                                  remedy="compile for the isa in the device's properties")
        self.kernel = kernel = found.kernel(entry)
        self.sm = device.sm
        self.block = (*kernel.max_threads, 1, 1, 1)[:3] if kernel.max_threads else (device.properties.lanes, 1, 1)
        self.argument_bytes = kernel.params_bytes
        self._layout = GENERATIONS[self.sm].bank0
        _check(kernel, device, self.block, self._layout.params)
        places, total = _places(kernel)
        self.nbytes = total
        block = self._take(total + CODE_ALIGNMENT)
        try:
            base = -(-block.address // CODE_ALIGNMENT) * CODE_ALIGNMENT
            placed = kernel.place(base, base + places["globals"])
            content = bytearray(total)
            content[:len(placed.code)] = placed.code
            content[places["globals"]:places["globals"] + len(placed.globals)] = placed.globals
            banks = {}
            for bank, data in placed.constants.items():
                if bank:
                    at = places[str(bank)]
                    content[at:at + len(data)] = data
                    banks[bank] = base + at, len(data)
            self.address = base + kernel.entry
            write(device, device.code_buffer(block, base, total), content)
            low, high = -(-kernel.local_bytes // _LOCAL_UNIT) * _LOCAL_UNIT, 0
            if kernel.stack_bytes:
                high = -(-(kernel.stack_bytes + STACK_RESERVE) // _LOCAL_UNIT) * _LOCAL_UNIT
            device.need_local(low + high)
            self._prefix = self._bank0(placed.constants.get(0, b""))
            self._descriptor = self._make_descriptor(banks, low, high, len(placed.code) - kernel.entry)
        except BaseException:
            self._drop()
            raise
        device.ledger.add(base, total, f"the code of {entry}")
        device.programs_at[block.address] = base, total, entry

    # ----- what a launch is made of

    def prologue(self, groups: int) -> bytearray:
        """Bank 0 up to the arguments: the sizes that the code may ask for."""
        data = bytearray(self._prefix)
        _GRID.pack_into(data, self._layout.grid, groups)
        return data

    def descriptor(self, groups: int, arguments: int) -> bytearray:
        """The launch descriptor of `groups` blocks with arguments at that address, in the engine's `descriptor_bytes`."""
        data = bytearray(self._descriptor)
        _GRID.pack_into(data, self._grid_at, groups)
        _BANK.pack_into(data, self._bank_at, self._bank | arguments - self._layout.params >> self._bank_shift)
        return data

    def _bank0(self, initial: bytes) -> bytearray:
        layout, windows = self._layout, self.device.driver
        data = bytearray(initial[:layout.params].ljust(layout.params, b"\0"))
        struct.pack_into("<3I", data, layout.block, *self.block)
        struct.pack_into("<3I", data, layout.grid, 0, 1, 1)
        if layout.shared_window >= 0:
            struct.pack_into("<Q", data, layout.shared_window, windows.shared_window)
        struct.pack_into("<Q", data, layout.local_window, windows.local_window)
        struct.pack_into("<I", data, layout.stack, STACK_TOP)
        return data

    def _make_descriptor(self, banks: dict[int, tuple[int, int]], low: int, high: int, code_bytes: int) -> bytes:
        sm, kernel = self.sm, self.kernel
        shared = -(-kernel.shared_bytes // _SHARED_UNIT) * _SHARED_UNIT
        most = GENERATIONS[sm].carve_outs[-1]
        # An SM is divided anew for `target`, so that has to hold all blocks that registers and warps have room for. A division
        # without any shared memory is left to those who know that it works everywhere: Mesa never asks for it.
        least = carve_out(sm, max(shared, 1))
        wanted = carve_out(sm, min(max(shared, 1) * self._blocks_at_once(), most << 10))
        table = qmd.table(sm)
        fields = {
            "qmd_group_id": _GROUP, "api_visible_call_limit": qmd.CallLimit.NO_CHECK, "sampler_index": 1,
            "cwd_membar_type": qmd.Membar.L1_SYSMEMBAR, "sass_version": GENERATIONS[sm].sass_version,
            "program_address": self.address, "register_count": kernel.registers, "barrier_count": kernel.barriers,
            "grid_height": 1, "grid_depth": 1, "shared_memory_size": shared, "min_sm_config_shared_mem_size": least,
            "target_sm_config_shared_mem_size": wanted, "max_sm_config_shared_mem_size": most // 4 + 1,
            "shader_local_memory_low_size": low, "shader_local_memory_high_size": high,
            "program_prefetch_addr_lower": self.address >> 8 & 0xFFFFFFFF, "program_prefetch_addr_upper": self.address >> 40,
            "program_prefetch_size": min(code_bytes, _MAX_PREFETCH) // 256 * 256,
        }
        fields |= {f"cta_thread_dimension{n}": size for n, size in enumerate(self.block)}
        fields |= {f"invalidate_{cache}_cache": 1
                   for cache in ("texture_header", "texture_sampler", "texture_data", "shader_data", "shader_constant")}
        if "qmd_type" in table.fields:
            fields["qmd_type"] = qmd.QmdType.GRID_CTA
        if "sm_global_caching_enable" in table.fields:
            fields["sm_global_caching_enable"] = 1
        size = -(-(self._layout.params + self.argument_bytes) // _BANK_UNIT) * _BANK_UNIT
        for bank, (address, nbytes) in {0: (0, size), **banks}.items():
            fields |= {f"constant_buffer_valid_{bank}": 1, f"constant_buffer_addr_{bank}": address,
                       f"constant_buffer_size_{bank}": -(-nbytes // _BANK_UNIT) * _BANK_UNIT,
                       f"constant_buffer_invalidate_{bank}": 1}
        data = qmd.pack(sm, **fields)
        place = table.place("constant_buffer_addr_0")
        self._grid_at, self._bank_at, self._bank_shift = table.place("grid_width").lsb // 8, place.lsb // 8, place.shift
        self._bank, = _BANK.unpack_from(data, self._bank_at)  # what stands around the address
        return data.ljust(self.device.compute_engine.descriptor_bytes, b"\0")

    def _blocks_at_once(self) -> int:
        """That an SM's registers and warps have room for."""
        warps = -(-math.prod(self.block) // 32)
        taken = -(-self.kernel.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT * warps
        return max(1, min(REGISTER_FILE // taken, GENERATIONS[self.sm].warps // warps, _MAX_BLOCKS))


def _places(kernel: Kernel) -> tuple[dict[str, int], int]:
    """Where global variables and constant banks lie behind the code, and the bytes of it all."""
    at = -(-(len(kernel.code) + PREFETCH_BYTES) // CODE_ALIGNMENT) * CODE_ALIGNMENT
    places = {}
    sizes = {"globals": len(kernel.globals), **{str(bank): len(data) for bank, data in kernel.constants.items() if bank}}
    for name, size in sizes.items():
        places[name] = at
        at += -(-size // CODE_ALIGNMENT) * CODE_ALIGNMENT
    return places, at


def _check(kernel: Kernel, device: NvidiaDevice, block: tuple[int, ...], params: int) -> None:
    """Raises CompileError for a kernel that the device can't start."""
    name, threads = kernel.name, math.prod(block)
    if not 0 < threads <= MAX_THREADS:
        raise CompileError(f"{name} wants blocks of {threads} threads", evidence=f"a block has 1 to {MAX_THREADS}",
                           remedy="compile it for smaller blocks")
    warps = -(-threads // 32)
    taken = -(-kernel.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT * warps
    if kernel.registers > _MAX_REGISTERS or taken > REGISTER_FILE:
        raise CompileError(f"{name} needs {kernel.registers} registers a thread, blocks of {threads} threads",
                           evidence=f"an SM has {REGISTER_FILE}, a thread at most {_MAX_REGISTERS}",
                           remedy="compile it for fewer registers or smaller blocks")
    if kernel.shared_bytes > GENERATIONS[device.sm].carve_outs[-1] << 10:  # with what the hardware keeps of it
        raise CompileError(f"{name} needs {kernel.shared_bytes} bytes of shared memory",
                           evidence=f"a block has {device.properties.scratch_bytes}", remedy="use smaller tiles")
    if kernel.local_bytes + kernel.stack_bytes > MAX_LOCAL_BYTES:
        raise CompileError(f"{name} needs {kernel.local_bytes + kernel.stack_bytes} bytes of local memory a thread",
                           evidence=f"a thread has {MAX_LOCAL_BYTES}", remedy="use fewer values at a time")
    if kernel.params_bytes and kernel.params_offset != params:
        raise CompileError(f"{name} takes its arguments at {kernel.params_offset:#x} of bank 0",
                           evidence=f"sm_{device.sm} has them at {params:#x}", remedy="compile it for this generation")
    if any(p.offset % 8 or p.nbytes != 8 for p in kernel.params):
        raise CompileError(f"{name} has arguments that are not 8 bytes each", remedy="give pointers and 64-bit numbers")
    if bad := [bank for bank in kernel.constants if bank >= qmd.CONSTANT_BANKS]:
        raise CompileError(f"{name} uses constant bank {bad[0]}", evidence=f"a launch has {qmd.CONSTANT_BANKS}",
                           remedy="compile it for this generation")
