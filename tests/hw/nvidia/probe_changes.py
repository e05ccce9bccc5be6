"""What the probe changes where no source says what the hardware takes. A change is made in a process of its own, before a step.

The comment behind a group says what decides it, and where the default is written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from devrt.compiler.sass import target
from devrt.ioctl.nv_alloc import EngineType
from devrt.nvidia import channel, driver, engines, program, qmd
from devrt.nvidia.device import NvidiaDevice
from devrt.nvidia.pushbuffer import Push
from devrt.nvidia.rm import ResourceManager
from tests.hw.nvidia import probe_steps

Change = Callable[[], None]
_INVALIDATES = tuple(f"invalidate_{name}_cache" for name in ("texture_header", "texture_sampler", "texture_data", "shader_data",
                                                             "instruction", "shader_constant"))
_MESA = ("qmd_group_id", "cwd_membar_type", *_INVALIDATES, "sass_version", "program_prefetch_size", "program_prefetch_addr_lower",
         "program_prefetch_addr_upper", "constant_buffer_invalidate_0", "sampler_index")  # what Mesa leaves 0 in version 4


def fields(**values: int) -> Change:
    """Other values in every launch descriptor."""
    def change() -> None:
        pack = qmd.pack
        program.qmd = SimpleNamespace(**{**vars(qmd), "pack": lambda sm, **had: pack(sm, **{**had, **values})})  # type: ignore
    return change


def version(major: int) -> Change:
    def change() -> None:
        qmd.major_of = lambda sm: major
    return change


def action(value: int) -> Change:
    """SEND_SIGNALING_PCAS2_B.pcas_action."""
    def change() -> None:
        engines.Pcas = SimpleNamespace(INVALIDATE_COPY_SCHEDULE=value)  # type: ignore
    return change


def method(name: str, *values: int | None) -> Change:
    """Other data behind a compute method; None keeps a value, no values leave the method out."""
    def change() -> None:
        put = Push.compute

        def compute(self: Push, called: str, *data: int, **named: int) -> int:
            if called != name:
                return put(self, called, *data, **named)
            if not values:
                return 0
            return put(self, called, *(had if new is None else new for had, new in zip(data, values, strict=True)))
        Push.compute = compute  # type: ignore
    return change


def bar1() -> None:
    """HOPPER_USERMODE_A with bBar1Mapping."""
    alloc = ResourceManager.alloc

    def made(self: ResourceManager, what: str, parent: int, cls: int, **named: Any) -> int:
        return alloc(self, what, parent, cls, **(named | {"bBar1Mapping": 1} if cls in (0xC661, 0xC761) else named))
    ResourceManager.alloc = made  # type: ignore


def word(value: int) -> Change:
    """The descriptor of global memory in bank 0."""
    def change() -> None:
        bank0 = program.NvidiaProgram._bank0

        def made(self: program.NvidiaProgram, initial: bytes) -> bytearray:
            data = bank0(self, initial)
            struct.pack_into("<Q", data, target.DESCRIPTORS[self.sm], value)
            return data
        program.NvidiaProgram._bank0 = made  # type: ignore
    return change


def plain_accesses() -> None:
    """LDG and STG that add a uniform register, 0, instead of naming a descriptor: bit 76 cleared."""
    def alter(image: bytes, code: bytes) -> bytes:
        at, words = image.index(code), bytearray(code)
        for n in range(0, len(words), 16):
            if int.from_bytes(words[n:n + 2], "little") & 0xFFF in (0x981, 0x986):
                words[n + 9] &= ~0x10
        return image[:at] + words + image[at + len(code):]
    probe_steps.alter = alter


def unwaited() -> None:
    init = engines.ComputeEngine.__init__

    def made(self: engines.ComputeEngine, sm: int) -> None:
        init(self, sm)
        self.between = b""
    engines.ComputeEngine.__init__ = made  # type: ignore


def windows() -> None:
    """Mesa's."""
    init = driver.Driver.__init__

    def made(self: driver.Driver, system: Any) -> None:
        init(self, system)
        self.shared_window, self.local_window = 0xFE000000, 0xFF000000
    driver.Driver.__init__ = made  # type: ignore


def managed() -> None:
    driver.InitFlag = SimpleNamespace(DISABLE_HMM=0)  # type: ignore


def small_context() -> None:
    channel.CONTEXT_BYTES = 64 << 20


def shared_runlist() -> None:
    NvidiaDevice.copy_kind = lambda self, compute: EngineType.GRAPHICS  # type: ignore


_LOCAL = "SET_SHADER_LOCAL_MEMORY_NON_THROTTLED_A"
# Step -> change -> how. Each is tried after the step as devrt does it.
CHANGES: dict[str, dict[str, Change]] = {
    "host": {"doorbell through BAR1": bar1},                                         # objects.py
    "host_graphics": {"doorbell through BAR1": bar1, "context area 64 MiB": small_context, "HMM on": managed,
                      "no SET_SHADER_EXCEPTIONS": method("SET_SHADER_EXCEPTIONS")},  # channel.py, driver.py, engines.py
    "copies": {"on the graphics runlist": shared_runlist, "doorbell through BAR1": bar1},  # device.py, copy_kind
    "launch": {                                                                      # program.py, _make_descriptor
        "qmd_type 0": fields(qmd_type=0), "qmd_type 3, clusters of 1": fields(qmd_type=3, gpc_cga_width=1, gpc_cga_height=1,
                                                                            gpc_cga_depth=1),
        "group id 0x1f": fields(qmd_group_id=0x1F), "group id 0": fields(qmd_group_id=0), "QMD 3.0": version(3),
        "as Mesa fills it, qmd_type 2": fields(**dict.fromkeys(_MESA, 0)),
        "as Mesa fills it": fields(qmd_type=0, **dict.fromkeys(_MESA, 0)),
        "SASS version 0": fields(sass_version=0), "no prefetch": fields(program_prefetch_size=0),
        "sampler index 0": fields(sampler_index=0), "instruction cache too": fields(invalidate_instruction_cache=1),
        "shared memory 1 KiB": fields(shared_memory_size=1024), "division 0 KiB": fields(
            min_sm_config_shared_mem_size=1, target_sm_config_shared_mem_size=1),
        "shared_allocation_enable": fields(shared_allocation_enable=1), "barriers 1": fields(barrier_count=1),
        "action schedule": action(2), "action prefetch, schedule": action(9), "action invalidate, prefetch, copy": action(10),
        "memory descriptor 1 << 60": word(1 << 60), "accesses without descriptor": plain_accesses, "Mesa's windows": windows,
        "no SET_SHADER_EXCEPTIONS": method("SET_SHADER_EXCEPTIONS")},
    "local": {"132 SMs": method(_LOCAL, None, None, 132), "0x1ff SMs": method(_LOCAL, None, None, 0x1FF),  # engines.py
              "with counts of GPCs": method(_LOCAL, None, None, 0x01080000 | 144)},
    "chained": {"no wait between launches": unwaited,                                # wrong bits are expected here
                "nothing invalidated by descriptors": fields(**dict.fromkeys(_INVALIDATES, 0))},
}
