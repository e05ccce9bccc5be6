"""Code objects on the translator: laid out in a GPU address space of their own and run through the Executor."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass, field

import llvmlite.binding as llvm
import numpy as np
from elftools.elf.elffile import ELFFile

from devrt.ioctl.system import LinuxSystem, view
from devrt.virtual.amd.dispatch import Dispatch, Executor
from devrt.virtual.amd.isa import WAVE_SIZE, Gen
from devrt.virtual.memory import PAGE, Access, AddressSpace, PageFile, map_file, pages

SCRATCH = 0x7F0000000000  # what descriptors of private memory say; the translator keeps it elsewhere
SWIZZLE = 1 << 31
# kernel_code_properties: bit, name, SGPRs
USER_SGPRS = ((0, "private_segment_buffer", 4), (1, "dispatch_ptr", 2), (2, "queue_ptr", 2), (3, "kernarg_segment_ptr", 2),
              (4, "dispatch_id", 2), (5, "flat_scratch_init", 2), (6, "private_segment_size", 1))


@functools.cache
def compile_ir(text: str, gen: Gen, opt: int = 2) -> bytes:
    """A code object of LLVM IR."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    parsed = llvm.parse_assembly(text)
    machine = llvm.Target.from_triple("amdgcn-amd-amdhsa").create_target_machine(cpu=gen, opt=opt, reloc="pic")
    if opt:
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=opt))
        passes.getModulePassManager().run(parsed, passes)
    return bytes(machine.emit_object(parsed))


@dataclass(frozen=True)
class Kernel:
    """One kernel of a code object, as its descriptor says."""

    entry: int
    rsrc: tuple[int, int, int]
    lds: int
    private: int
    kernarg: int
    properties: int


def lay_out(image: bytes) -> tuple[bytearray, dict[str, Kernel]]:
    """The sections of a relocatable code object one behind another, relocated, and its kernels with offsets as entries."""
    elf = ELFFile(io.BytesIO(image))
    at, placed, out = 0, {}, bytearray()
    for n, section in enumerate(elf.iter_sections()):
        if section["sh_flags"] & 2 and section["sh_size"] and section["sh_type"] != "SHT_NOTE":
            align = max(256, section["sh_addralign"])
            at = placed[n] = -(-at // align) * align
            out = out.ljust(at, b"\0") + (bytes(section["sh_size"]) if section["sh_type"] == "SHT_NOBITS" else section.data())
            at = len(out)
    symbols = list(elf.get_section_by_name(".symtab").iter_symbols())

    def address(symbol) -> int:
        return placed[symbol["st_shndx"]] + symbol["st_value"]
    for section in elf.iter_sections():
        if section["sh_type"] == "SHT_RELA" and section["sh_info"] in placed:
            for r in section.iter_relocations():
                where = placed[section["sh_info"]] + r["r_offset"]
                value = address(symbols[r["r_info_sym"]]) + r["r_addend"] - where
                low, size = {5: (0, 8), 10: (0, 4), 11: (32, 4)}[r["r_info_type"]]  # R_AMDGPU_REL64, REL32_LO, REL32_HI
                out[where:where + size] = (value >> low & (1 << 8 * size) - 1).to_bytes(size, "little")
    kernels = {}
    for symbol in symbols:
        if symbol.name.endswith(".kd"):
            d = bytes(out[address(symbol):][:64])
            lds, private, kernarg = (int(x) for x in np.frombuffer(d[:12], np.uint32))
            rsrc3, rsrc1, rsrc2 = (int(x) for x in np.frombuffer(d[44:56], np.uint32))
            code = next(s for s in symbols if s.name == symbol.name[:-3])
            kernels[code.name] = Kernel(address(code), (rsrc1, rsrc2, rsrc3), lds, private, kernarg,
                                        int.from_bytes(d[56:58], "little"))
    return out, kernels


@dataclass
class Buffer:
    """Memory of the GPU."""

    va: int
    nbytes: int
    host: memoryview = field(repr=False)

    def array(self, dtype: type | str) -> np.ndarray:
        return np.frombuffer(self.host[:self.nbytes], dtype)


class Emulator:
    """One GPU without a driver."""

    def __init__(self, gen: Gen, budget: int = 1 << 24) -> None:
        self.gen, self.wave = gen, WAVE_SIZE[gen]
        self.system = LinuxSystem()
        self.file = PageFile("emulator", 1 << 32)
        self.space = AddressSpace(self.system)
        self.executor = Executor(gen, self.system, budget=budget)
        self.next = 0x200000000
        self.loaded: dict[bytes, tuple[int, dict[str, Kernel]]] = {}

    def close(self) -> None:
        self.space.close()
        self.file.close()

    def alloc(self, data: bytes | np.ndarray | int, access: Access = Access.WRITE) -> Buffer:
        """A buffer with pages that are not mapped behind it."""
        content = bytes(data) if isinstance(data, int) else data.tobytes() if isinstance(data, np.ndarray) else data
        n = max(1, len(content))
        host = map_file(self.system, self.file, self.file.take(n), n)
        place = view(host, pages(n))
        place[:len(content)] = content
        va, self.next = self.next, self.next + pages(n) + PAGE
        self.space.map(va, host, pages(n), access)
        return Buffer(va, n, place)

    def load(self, image: bytes) -> tuple[int, dict[str, Kernel]]:
        found = self.loaded.get(image)
        if found is None:
            out, kernels = lay_out(image)
            found = self.loaded[image] = self.alloc(bytes(out), Access.EXECUTE).va, kernels
        return found

    def words(self, code: list[int]) -> int:
        """The address of instructions given as dwords."""
        return self.alloc(np.array(code, np.uint32), Access.EXECUTE).va

    def start(self, entry: int, *, user: tuple[int, ...] = (), groups: tuple[int, int, int] = (1, 1, 1),
              size: tuple[int, int, int] | None = None, rsrc: tuple[int, int, int] = (0xC0000, 0, 0), lds: int = 0,
              private: int = 0, partial: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Run code at an address. Private memory is given generously, since calls are not counted."""
        count = rsrc[1] >> 1 & 31
        user = (user + (0,) * count)[:max(count, len(user))]
        dispatch = Dispatch(entry, groups, size or (self.wave, 1, 1), user, *rsrc, lds, SCRATCH, private * self.wave, self.wave,
                            partial)
        for _ in self.executor.run(dispatch, self.space):
            pass

    def run(self, image: bytes, name: str, arguments: bytes, groups: tuple[int, int, int] = (1, 1, 1),
            size: tuple[int, int, int] | None = None, partial: tuple[int, int, int] = (0, 0, 0)) -> None:
        va, kernels = self.load(image)
        k = kernels[name]
        kernarg = self.alloc(arguments.ljust(max(k.kernarg, len(arguments)), b"\0"))
        values = {"private_segment_buffer": (SCRATCH & 0xFFFFFFFF, SCRATCH >> 32 | SWIZZLE, 0xFFFFFFFF, 0x20C14000),
                  "kernarg_segment_ptr": (kernarg.va & 0xFFFFFFFF, kernarg.va >> 32)}
        user: tuple[int, ...] = ()
        for bit, field_name, dwords in USER_SGPRS:
            if k.properties >> bit & 1:
                user += values.get(field_name, (0,) * dwords)
        self.start(va + k.entry, user=user, groups=groups, size=size, rsrc=k.rsrc, lds=k.lds, partial=partial,
                   private=k.private + 1024 if k.private else 0)
