"""The AMD instruction tables against LLVM: llvmlite's assembler text and object code of the same module, line by line; where
libLLVM has an AMDGPU disassembler (Debian's libllvm22), that too, on random words."""

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


# What an instruction says


def one(gen: isa.Gen, *words: int) -> isa.Instruction:
    return isa.decode(b"".join(word.to_bytes(4, "little") for word in words), 0, gen)


def of(gen: isa.Gen, mnemonic: str, opt: int = 2) -> isa.Instruction:
    """The first such instruction in the kernels."""
    code = code_of(gen, opt)
    for _, address, size in functions(gen, opt).values():
        at = address
        while at < address + size:
            instruction = isa.decode(code, at, gen)
            if instruction.mnemonic == mnemonic:
                return instruction
            at = instruction.end
    raise KeyError(mnemonic)


def test_operands_have_roles_types_and_values() -> None:
    add = one("gfx1100", 0x06000501)                                            # v_add_f32_e32 v0, v1, v2
    assert [(o.name, o.kind, o.index, o.type, o.dst) for o in add.operands] == [
        ("vdst", "vgpr", 0, "f32", True), ("src0", "vgpr", 1, "f32", False), ("vsrc1", "vgpr", 2, "f32", False)]
    assert add.effects == Effect.READS_EXEC and add.size == 4
    fma = one("gfx1100", 0xD6138100, 0x2BFE04F2, 0x12345678)                    # v_fma_f32 v0, -|1.0|, v2, 0x12345678 clamp mul:2
    assert fma.size == 12 and fma.clamp and fma.operands[1].value == 0x3F800000 and fma.operands[3].value == 0x12345678
    half = of("gfx1100", "v_fma_f16", 0)
    assert {operand.type for operand in half.operands} == {"f16"} and any(operand.half for operand in half.operands)
    carry = of("gfx1100", "v_add_co_ci_u32")
    assert carry.operands[1].type == "mask" and carry.operands[1].dst and carry.operands[-1].type == "mask"
    assert of("gfx90a", "v_fma_f64").operands[0].dwords == 2 and of("gfx942", "v_mfma_f32_32x32x2_f32").operands[0].dwords == 16


def test_masks_are_as_wide_as_the_wave() -> None:
    assert one("gfx1100", 0x7C220501).operands[0].dwords == 1                   # v_cmp_lt_f32_e32 vcc_lo, v1, v2
    assert one("gfx942", 0x7C820501).operands[0].dwords == 2                    # .. vcc, ..


def test_memory_says_space_type_offset_and_counter() -> None:
    load = of("gfx1100", "global_load_b96").memory
    assert load is not None and (load.space, load.action, load.type, load.counters) == ("global", "load", "b96", ("vmcnt",))
    store = of("gfx1201", "flat_store_b128").memory
    assert store is not None and (store.space, store.type, store.counters) == ("flat", "b128", ("storecnt", "dscnt"))
    pair = of("gfx1100", "ds_load_2addr_b32").memory
    assert pair is not None and pair.offsets[1] - pair.offsets[0] == 68 and pair.counters == ("lgkmcnt",)
    far = one("gfx942", 0xD8700400, 0x00000001).memory                          # ds_read2st64_b32 v[0:1], v1 offset1:4
    assert far is not None and far.offsets == (0, 1024)
    high = of("gfx1030", "global_load_ubyte_d16_hi").memory
    assert high is not None and (high.half, high.type) == ("hi", "u8")
    atomic = of("gfx1100", "global_atomic_add_u32")
    assert atomic.memory is not None and (atomic.memory.atomic, atomic.memory.type) == ("add", "u32")
    assert atomic.memory.returns == (atomic.operands[0].name == "vdst")


# Basic blocks


@pytest.mark.parametrize("opt", (0, 2))
@pytest.mark.parametrize("gen", GENS)
def test_blocks_cover_every_function(gen: isa.Gen, opt: int) -> None:
    """Every instruction of a function is in one block, but for padding and what nothing branches to."""
    code = code_of(gen, opt)
    for name, (lines, address, size) in functions(gen, opt).items():
        blocks = isa.walk(code, address, gen)
        inside = [at for at in blocks if address <= at < address + size]
        count = sum(len(blocks[at].instructions) for at in inside)
        real = [line for line in lines if not re.match(r"s_nop|s_code_end|s_endpgm|\.", line)]
        assert count >= len(real) - sum(line.startswith("s_branch") for line in real), name
        for at in inside:
            block = blocks[at]
            assert all(target in blocks for target in block.successors)
            for before, after in zip(block.instructions, block.instructions[1:], strict=False):
                assert before.end == after.address
                assert not before.effects & (Effect.BRANCH | Effect.INDIRECT | Effect.END)


def test_a_loop_is_a_cycle_of_blocks() -> None:
    _, address, _ = functions("gfx1100", 2)["loop"]
    blocks = isa.walk(code_of("gfx1100", 2), address, "gfx1100")
    assert any(target <= at for at, block in blocks.items() for target in block.successors)
    assert sum(block.instructions[-1].effects & Effect.END == Effect.END for block in blocks.values()) >= 1


@pytest.mark.parametrize("gen", ("gfx1100", "gfx1201"))
def test_calls_are_followed_through_constants(gen: isa.Gen) -> None:
    """s_getpc_b64 s[2:3]; s_add_u32 s2, s2, 16; s_addc_u32 s3, s3, 0; s_swappc_b64 s[30:31], s[2:3]; s_endpgm; f: s_setpc_b64."""
    words = (0xBE824700, 0x80029002, 0x82038003, 0xBE9E4902, 0xBFB00000, 0xBE80481E)
    blocks = isa.walk(b"".join(word.to_bytes(4, "little") for word in words), 0, gen)
    assert blocks[0].calls == 20 and blocks[0].successors == [16]
    assert blocks[20].returns and not blocks[20].successors


def test_code_that_runs_off_its_end_is_illegal() -> None:
    with pytest.raises(isa.IllegalInstruction, match="ends here"):
        isa.walk((0x06000501).to_bytes(4, "little"), 0, "gfx1100")
    with pytest.raises(isa.IllegalInstruction, match="leaves the code"):
        isa.walk((0xBFA00100).to_bytes(4, "little"), 0, "gfx1100")               # s_branch 256


@pytest.mark.parametrize(("gen", "words", "reason"), (
    ("gfx1100", (0xBE82FF00,), "unknown SOP1 opcode"),
    ("gfx1100", (0x7E0002D1,), "unknown source code"),                           # v_mov_b32 v0, code 209
    ("gfx1100", (0xBE800103,), "no scalar register of 2 dwords"),                # s_mov_b64 s[0:1], s[3:4]
    ("gfx90a", (0x7E022100,), "no vector register of 2 dwords"),                 # v_cvt_f64_f32 v[1:2], v0
    ("gfx1100", (0x7E000001,), "src0 must be 0"),                                # v_nop with a source
    ("gfx1100", (0xF4008000, 0xF8000000), "reserved bits"),                      # s_load_b32 with bit 15
    ("gfx942", (0xD1CB0000, 0x000000FF, 1), "takes no literal"),                 # VOP3 before gfx10
    ("gfx1100", (0x7E0002FA, 0xFF013001), "unknown DPP control"),                # wave_shl is gone
    ("gfx1201", (0x7E0002F9, 0x00060601), "SDWA"),
    ("gfx942", (0xC8000000, 0), "unknown encoding"),                             # VOPD is RDNA 3's
    ("gfx1100", (0xD6130400, 0x04060501), None),                                 # v_fma_f32 v0, v1, v2, |v1|
    ("gfx1100", (0xD61D0400, 0x04060501), "abs"),                                # v_max3_i32 v0, v1, v2, |v1|
))
def test_reserved_encodings_are_illegal(gen: isa.Gen, words: tuple[int, ...], reason: str | None) -> None:
    if reason is None:
        assert one(gen, *words).size == 4 * len(words)
        return
    with pytest.raises(isa.IllegalInstruction, match=reason):
        one(gen, *words)


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
LOOSE = re.compile(r"s_sendmsg|s_cmp_\w+_f16|v_dot4_f32|buffer_.*(lds|scc)$|s_(get|set)reg|buffer_wbl2|buffer_inv|s_wait_alu"
                   r"|s_waitcnt|s_delay_alu|ds_swizzle|v_\w*(f16|mix)\w* .*0x|s_dcache")


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
        high = any(operand.half for operand in instruction.operands)
        if gen == "gfx1201" and instruction.format in ("VOP1", "VOP2", "VOPC") and high:
            continue            # high halves, which LLVM does not use there
        size, theirs = read(code)
        mine = str(instruction)
        checked += 1
        if (size, spelled_as(theirs, gen)) != (instruction.size, spelled_as(mine, gen)) and not LOOSE.match(mine):
            wrong.append(f"{code[:instruction.size].hex()}: {mine}  |  {theirs} ({size})")
    assert checked > 4000
    assert len(wrong) <= checked // 2000, f"{len(wrong)} of {checked}:\n" + "\n".join(wrong[:40])
