"""The AMD instruction tables against LLVM: llvmlite's assembler text and object code of the same module, line by line; where libLLVM
has an AMDGPU disassembler (Debian's libllvm22), that too, on random words."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import io
import random
import re
from collections.abc import Callable

import llvmlite.binding as llvm
import pytest
from elftools.elf.elffile import ELFFile

from devrt.virtual.amd import isa
from devrt.virtual.amd.isa.formats import Format, families
from devrt.virtual.amd.isa.opcodes import Effect, opcodes
from tests.virtual.amd.kernels import module

GENS = isa.GENS


@functools.cache
def compiled(gen: isa.Gen, opt: int) -> tuple[str, bytes]:
    """The assembler text and the object of all kernels."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    parsed = llvm.parse_assembly(module(gen))
    machine = llvm.Target.from_triple("amdgcn-amd-amdhsa").create_target_machine(cpu=gen, opt=opt, reloc="pic")
    if opt:
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=opt))
        passes.getModulePassManager().run(parsed, passes)
    again = llvm.parse_bitcode(parsed.as_bitcode())  # code generation changes the module
    return machine.emit_assembly(parsed), machine.emit_object(again)


@functools.cache
def functions(gen: isa.Gen, opt: int) -> dict[str, tuple[list[str], int, int]]:
    """Every function's instructions as text, and where its code begins and ends in .text."""
    text, code = compiled(gen, opt)
    lines: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        if found := re.fullmatch(r"([\w.$]+):(?:\s*;.*)?", line):
            if found[1].startswith(".Lfunc_end"):
                current = None
            elif not found[1].startswith("."):
                current = lines[found[1]] = []
        elif line.startswith("\t.section"):
            current = None
        elif current is not None and re.match(r"\t[a-z]|\t\.p2align", line):
            current.append(re.sub(r"\s+", " ", line.split(";")[0]).strip())
    symbols = ELFFile(io.BytesIO(code)).get_section_by_name(".symtab")
    return {symbol.name: (lines[symbol.name], symbol["st_value"], symbol["st_size"]) for symbol in symbols.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC"}


def code_of(gen: isa.Gen, opt: int) -> bytes:
    data: bytes = ELFFile(io.BytesIO(compiled(gen, opt)[1])).get_section_by_name(".text").data()
    return data


def tokens(line: str) -> list[str]:
    """Mnemonic, operands and modifiers; numbers in one spelling; symbols and labels as `@`."""
    line = re.sub(r"(?<![\w.])[\w.$]+@(?:got)?(?:pc)?rel32@(?:lo|hi)(?:\+\d+)?|\.LBB\w+", "@", line)
    found = re.findall(r"::|-?\|?[\w.@]+(?:\[[^\]]*\])?(?:\([^)]*\))?(?::\[[^\]]*\]|:-?\w+(?:\([^)]*\))?)?\|?", line)
    return [str(int(token, 0)) if re.fullmatch(r"-?(0x[\da-f]+|\d+)", token) else token for token in found]


def same(mine: str, theirs: str) -> bool:
    a, b = tokens(mine), tokens(theirs)
    return len(a) == len(b) and all(x == y or y == "@" for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("opt", (0, 2))
@pytest.mark.parametrize("gen", GENS)
def test_every_instruction_llvm_emits(gen: isa.Gen, opt: int, record_property) -> None:
    code, wrong, mnemonics, count = code_of(gen, opt), [], set(), 0
    for name, (lines, address, size) in functions(gen, opt).items():
        end, at = address + size, address
        for line in lines:
            while line.startswith(".p2align") and at % (1 << int(line.split()[1].strip(","))):
                padding = isa.decode(code, at, gen)
                assert padding.mnemonic in ("s_nop", "s_code_end")
                at = padding.end
            if line.startswith("."):
                continue
            instruction = isa.decode(code, at, gen)
            at, count = instruction.end, count + 1
            mnemonics.add(line.split()[0])
            if not same(str(instruction), line):
                wrong.append(f"{name}: {instruction}  |  {line}  |  {code[instruction.address:at].hex()}")
        assert at == end, f"{name} ends at {at:#x}, not {end:#x}"
    record_property("instructions", count)
    record_property("mnemonics", len(mnemonics))
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:40])
    assert count > 2500 and len(mnemonics) > 250


# Random words

Disassembler = Callable[[bytes], tuple[int, str]]


@functools.cache
def disassembler(gen: isa.Gen) -> Disassembler:
    """LLVM's: bytes -> (length, text), length 0 for what it does not know or warns about."""
    path = ctypes.util.find_library("LLVM-22") or "libLLVM.so.22.1"
    try:
        lib = ctypes.CDLL(path)
        for part in ("TargetInfo", "TargetMC", "Disassembler"):
            getattr(lib, f"LLVMInitializeAMDGPU{part}")()
    except (OSError, AttributeError) as error:
        pytest.skip(f"no LLVM 22 with an AMDGPU disassembler (Debian: libllvm22): {error}")
    lib.LLVMCreateDisasmCPU.restype = ctypes.c_void_p
    lib.LLVMCreateDisasmCPU.argtypes = [ctypes.c_char_p] * 2 + [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    lib.LLVMDisasmInstruction.restype = ctypes.c_size_t
    lib.LLVMDisasmInstruction.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p,
                                          ctypes.c_size_t]
    context = lib.LLVMCreateDisasmCPU(b"amdgcn-amd-amdhsa", gen.encode(), None, 0, None, None)
    buffer = ctypes.create_string_buffer(512)

    def read(code: bytes) -> tuple[int, str]:
        size = lib.LLVMDisasmInstruction(context, code, len(code), 0, buffer, 512)
        text = re.sub(r"\s+", " ", buffer.value.decode()).strip() if size else ""
        return (size, text) if not re.search(r"/\*|Warning|invalid", text) else (0, text)

    return read


def random_word(rng: random.Random, gen: isa.Gen, fmt: Format) -> bytes:
    """20 bytes that begin with `fmt`: known opcodes mostly, fields that are rarely used mostly 0."""
    word = fmt.match
    family = "GLOBAL" if fmt.name == "FLAT" else fmt.name
    for name, (low, mask) in fmt.fields.items():
        value = rng.getrandbits(mask.bit_length())
        if name == "op" and rng.random() < 0.97:
            value = rng.choice(sorted(opcodes(gen)[family]))
        elif name.startswith("src") and mask == 511:
            value = rng.choice((value, 256 + 2 * rng.randrange(128), 2 * rng.randrange(50), rng.randrange(128, 209), 255, 250))
        elif name in ("saddr", "soffset") and rng.random() < 0.6:
            value = {"gfx90a": 127, "gfx942": 127, "gfx1030": 125}.get(gen, 124)
        elif name in ("op_sel_hi", "op_sel_hi2") and rng.random() < 0.8:
            value = mask
        elif name not in ("vdst", "sdst", "ssrc0", "ssrc1", "simm16", "vsrc1", "addr", "offset", "seg") and rng.random() < 0.7:
            value = 0
        word |= value << low
    second = rng.choice((rng.getrandbits(32), rng.randrange(256) | 0xFF00E400, rng.randrange(256) | 0x06060600))
    return (word | second << 8 * fmt.size).to_bytes(20, "little")


@pytest.mark.parametrize("gen", GENS)
def test_random_words_are_instructions_or_illegal(gen: isa.Gen) -> None:
    rng = random.Random(7)
    decoded = 0
    for i in range(6000):
        code = random_word(rng, gen, rng.choice(families(gen))) if i % 2 else rng.randbytes(20)
        try:
            instruction = isa.decode(code, 0, gen)
        except isa.IllegalInstruction as error:
            assert error.address == 0 and error.reason and gen in str(error)
            continue
        decoded += 1
        assert str(instruction) and instruction.size in (4, 8, 12, 16)
        for cut in range(0, instruction.size, 4):
            with pytest.raises(isa.IllegalInstruction):
                isa.decode(code[:cut], 0, gen)
    assert decoded > 1500


def spelled_as(text: str, gen: isa.Gen) -> list[str]:
    """Where LLVM's disassembler and its code generator write different things, the same."""
    text = re.sub(r"lit\((\w+)\)", r"\1", text)
    if gen == "gfx1100" and not text.startswith("v_permlane") and re.search(r"v\d+\.[lh]", text):
        text = re.sub(r" op_sel:\[[01,]*\]", "", text)
    return tokens(text)


# What LLVM's disassembler prints and this decoder takes to be illegal or has no text for, by the first words of the line.
LOOSE = re.compile(r"s_sendmsg|s_(get|set)reg|buffer_wbl2|buffer_inv|s_wait_alu|s_waitcnt_depctr|s_delay_alu|ds_swizzle"
                   r"|v_\w*(f16|bf16|mix)\w* .*0x|s_dcache|s_waitcnt")


@pytest.mark.parametrize("gen", GENS)
def test_random_instructions_read_as_llvm_reads_them(gen: isa.Gen) -> None:
    read = disassembler(gen)
    rng = random.Random(11)
    checked, wrong = 0, []
    for _ in range(12000):
        code = random_word(rng, gen, rng.choice(families(gen)))
        try:
            instruction = isa.decode(code, 0, gen)
        except isa.IllegalInstruction:
            continue            # LLVM's disassembler reads more, and aborts on some of it
        if gen == "gfx1201" and instruction.format in ("VOP1", "VOP2", "VOPC") and any(operand.half for operand in instruction.operands):
            continue            # high halves, which LLVM does not use there
        size, theirs = read(code)
        checked += 1
        if (size, spelled_as(theirs, gen)) != (instruction.size, spelled_as(str(instruction), gen)) and not LOOSE.match(str(instruction)):
            wrong.append(f"{code[:instruction.size].hex()}: {instruction}  |  {theirs} ({size})")
    assert checked > 4000
    assert len(wrong) <= checked // 200, f"{len(wrong)} of {checked}:\n" + "\n".join(wrong[:40])
