"""Cubins: devrt's own are read back and by nvdisasm, ptxas's are read with all that a launch needs, damage is refused."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from devrt import elf
from devrt.compiler.sass import cubin, mir, reader
from devrt.device import InvalidArgument
from tests.compiler.sass.vendor import nvdisasm, ptxas

# EXIT, BRA to itself, NOPs: on every generation the same words but for the place of the branch's offset.
EXIT, NOP = 0x000FEA0003800000_000000000000794D, 0x000FC00000000000_0000000000007918
GENERATIONS = (75, 80, 86, 89, 90, 120)

PTX = """
.version 8.0
.target sm_75
.address_size 64
.global .align 4 .u32 counter = 7;
.global .align 8 .u64 where = counter;
.global .align 4 .b8 room[64];
.const .align 4 .b32 table[4] = {1, 2, 3, 4};
.visible .entry first(.param .u64 p, .param .u32 n, .param .align 8 .b8 more[24])
.maxntid 128, 1, 1
{
  .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>; .reg .pred %p<2>;
  .shared .align 4 .b8 tile[512];
  .local .align 8 .b8 mine[64];
  ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n]; ld.param.u64 %rd4, [more + 16];
  mov.u32 %r2, %tid.x; mul.wide.u32 %rd2, %r2, 4; add.u64 %rd3, %rd1, %rd2;
  and.b32 %r7, %r1, 60; cvt.u64.u32 %rd6, %r7; mov.u64 %rd7, mine; add.u64 %rd7, %rd7, %rd6; st.local.u32 [%rd7], %r2;
  ld.global.f32 %f1, [%rd3]; div.rn.f32 %f2, %f1, %f1;
  mov.u32 %r3, tile; shl.b32 %r4, %r2, 2; add.u32 %r3, %r3, %r4; st.shared.f32 [%r3], %f2;
  bar.sync 0;
  atom.global.add.u32 %r5, [counter], 1; mov.u64 %rd5, where; st.global.u64 [%rd4], %rd5; st.global.u32 [room + 8], %r5;
  ld.const.b32 %r6, [table + 4]; and.b32 %r7, %r5, 60; cvt.u64.u32 %rd6, %r7; mov.u64 %rd7, mine; add.u64 %rd7, %rd7, %rd6;
  ld.local.u32 %r8, [%rd7]; add.u32 %r6, %r6, %r8;
  st.global.u32 [%rd3], %r6;
  ret;
}
.visible .entry second(.param .u32 n, .param .u64 p)
{
  .reg .b32 %r<4>; .reg .b64 %rd<2>; .reg .pred %p<2>;
  ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n];
  setp.gt.u32 %p1, %r1, 4;
  @%p1 bra E;
  cases: .branchtargets A, B, C, D, E;
  brx.idx %r1, cases;
A: st.global.u32 [%rd1], 7; bra E;
B: st.global.u32 [%rd1 + 4], 8; bra E;
C: atom.global.add.u32 %r2, [%rd1], 9; bra E;
D: popc.b32 %r2, %r1; st.global.u32 [%rd1 + 8], %r2;
E: ret;
}
"""


def kernel(sm: int) -> tuple[mir.Function, bytes]:
    """A function that does nothing, with one of everything."""
    f = mir.Function("nothing", sm, 96, shared_bytes=1040, local_bytes=48, params=[("a", 0, 8), ("b", 8, 8), ("n", 16, 4)],
                     constants=bytes(range(32)))
    return f, b"".join(word.to_bytes(16, "little") for word in (EXIT, *[NOP] * 7))


@pytest.mark.parametrize("sm", GENERATIONS)
def test_what_is_written_is_read(sm: int) -> None:
    f, code = kernel(sm)
    k = reader.read(cubin.write(f, code, 30, (0,))).kernel("nothing")
    assert (k.sm, k.code, k.entry, k.registers, k.barriers, k.shared_bytes, k.local_bytes, k.stack_bytes) == \
        (sm, code, 0, 32, 0, 1040, 48, 0)
    assert k.params_offset == {75: 0x160, 80: 0x160, 86: 0x160, 89: 0x160, 90: 0x210, 120: 0x380}[sm] and k.params_bytes == 20
    assert [(p.ordinal, p.offset, p.nbytes) for p in k.params] == [(0, 0, 8), (1, 8, 8), (2, 16, 4)]
    assert {bank: len(content) for bank, content in k.constants.items()} == {0: k.params_offset + 20, 3: 32}
    assert k.constants[3] == f.constants and k.max_threads == (96, 1, 1) and k.place(1 << 32, 0).code == code


@pytest.mark.parametrize("sm", GENERATIONS)
def test_nvdisasm_reads_ours(sm: int, tmp_path: Path) -> None:
    path = tmp_path / "ours.cubin"
    path.write_bytes(cubin.write(*kernel(sm), 30, (0,)))
    out = subprocess.run([nvdisasm(), "-c", path], capture_output=True, text=True, check=True)
    assert "warning" not in out.stderr
    assert f".target\tsm_{sm}" in out.stdout and "STO_CUDA_ENTRY" in out.stdout
    assert sm >= 90 or "SHI_REGISTERS=32" in out.stdout
    assert out.stdout.count("EXIT") == 1 and out.stdout.count("NOP") == 7


@pytest.mark.parametrize("asked, threads", [(".reqntid 64, 2, 1", (64, 2, 1)), (".maxntid 96, 1, 1", (96, 1, 1)), ("", ())])
def test_the_block_that_a_kernel_asks_for(asked: str, threads: tuple[int, ...]) -> None:
    text = f".version 7.8\n.target sm_86\n.address_size 64\n.visible .entry k(.param .u64 a)\n{asked}\n{{ ret; }}\n"
    assert reader.read(ptxas(text, 86)).kernel("k").max_threads == threads


@pytest.mark.parametrize("sm", GENERATIONS)
def test_kernels_of_ptxas(sm: int) -> None:
    image = reader.read(ptxas(PTX, sm))
    assert image.sm == sm and set(image.kernels) == {"first", "second"}
    k = image.kernel("first")
    assert [(p.ordinal, p.offset, p.nbytes) for p in k.params] == [(0, 0, 8), (1, 8, 4), (2, 16, 24)] and k.params_bytes == 40
    assert k.max_threads == (128, 1, 1) and k.barriers == 1 and 8 < k.registers < 64
    assert k.shared_bytes == 512 + (0 if sm == 75 else 1024)
    assert k.stack_bytes == 64 and k.local_bytes == 0
    assert k.constants[3] == struct.pack("<4I", 1, 2, 3, 4)
    assert all("div" in name for name in k.functions) and len(k.functions) == 1
    assert 0 < next(iter(k.functions.values())) < len(k.code)


def test_addresses_are_filled_in() -> None:
    k = reader.read(ptxas(PTX, 86)).kernel("first")
    placed = k.place(0x7000_0000_0000, 0x5000_0000_1000)
    words = struct.unpack(f"<{len(placed.constants[4]) // 8}Q", placed.constants[4])
    assert len(words) == 3 and all(0x5000_0000_1000 <= word < 0x5000_0000_1000 + len(k.globals) for word in words)
    variables = [placed.globals[word - 0x5000_0000_1000:][:8] for word in words]
    counter = next(word for word, value in zip(words, variables, strict=True) if value[:4] == struct.pack("<I", 7))
    assert struct.pack("<Q", counter) in variables  # `where` holds the address of `counter`
    assert len(k.globals) == 8 + 4 + 64


@pytest.mark.parametrize("sm", (75, 90, 120))
def test_targets_of_indirect_branches(sm: int) -> None:
    k = reader.read(ptxas(PTX, sm)).kernel("second")
    (branch, targets), = k.indirect.items()
    assert len(targets) == 5 and all(branch < target < len(k.code) for target in targets)


def test_a_missing_kernel() -> None:
    with pytest.raises(InvalidArgument, match="kernels: nothing"):
        reader.read(cubin.write(*kernel(90), 30)).kernel("something")


def images() -> list[bytes]:
    return [cubin.write(*kernel(90), 30, (0,)), ptxas(PTX, 89), ptxas(PTX, 120)]


def survives(image: bytes) -> None:
    """Reads an image, which works, or fails as it should."""
    try:
        for k in reader.read(image).kernels.values():
            assert k.code and k.place(1 << 40, 1 << 41).code
    except InvalidArgument as e:
        assert e.evidence


def test_truncated_images_are_refused() -> None:
    for image in images():
        for length in [*range(0, len(image), 97), *range(len(image) - 70, len(image))]:
            survives(image[:length])
        with pytest.raises(InvalidArgument):
            reader.read(image[:len(image) // 2])


def places(image: bytes) -> list[int]:
    """Offsets of everything but code: the header, the section table, symbols, relocations, attributes."""
    sections = elf.read_sections(image, "sass", elf.ET_EXEC)
    header = elf.HEADER.unpack_from(image)
    found = [*range(64), *range(header[6], header[6] + header[12] * elf.SECTION.size)]
    for s in sections:
        if s.type in (elf.SYMTAB, elf.RELA, elf.REL) or s.name.startswith(".nv.info"):
            found += range(s.offset, s.offset + s.size)
    return found


def test_flipped_bytes_are_refused_or_harmless() -> None:
    for image in images():
        for n, at in enumerate(places(image)):
            if n % 5 == 0:
                survives(image[:at] + bytes([image[at] ^ (0xFF, 0x80, 0x01)[n // 5 % 3]]) + image[at + 1:])


@pytest.mark.slow
def test_every_flipped_byte_and_every_truncation() -> None:
    for image in images():
        for at in places(image):
            for mask in (0xFF, 0x80, 0x40, 0x10, 0x04, 0x01):
                survives(image[:at] + bytes([image[at] ^ mask]) + image[at + 1:])
        for length in range(len(image)):
            survives(image[:length])


@pytest.mark.parametrize("image, what", [
    (b"", "no 64-bit"), (b"MZ" + bytes(100), "no 64-bit"), (bytes(1000), "no 64-bit"),
])
def test_what_is_no_cubin(image: bytes, what: str) -> None:
    with pytest.raises(InvalidArgument, match=what):
        reader.read(image)


def test_code_for_another_machine() -> None:
    image = bytearray(cubin.write(*kernel(90), 30))
    image[18] = elf.MACHINES["amdgcn"]
    with pytest.raises(InvalidArgument, match="amdgcn"):
        reader.read(bytes(image))


def test_more_shared_memory_than_there_is() -> None:
    f, code = kernel(90)
    f.shared_bytes = 1 << 20
    with pytest.raises(InvalidArgument, match=r"nv\.shared"):
        reader.read(cubin.write(f, code, 30))
