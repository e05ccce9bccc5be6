"""Copies to shared memory that go on by themselves: what waits for them long enough, and what does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from devrt.compiler.sass.instruction import Control, Imm, Operand
from devrt.compiler.sass.isa import assemble, decode, encode
from devrt.compiler.sass.reader import read
from devrt.virtual import pace
from devrt.virtual.nvidia.dispatch import WarpFault
from tests.virtual.nvidia.emulator import Emulator, cubin, module

SMS = (80, 86, 89, 90, 120)
TURNS, THREADS = 6, 128

# A pipeline of three groups: while one tile of 2 KiB is read, the next two are copied.
PIPELINE = """
.visible .entry pipeline(.param .u64 in, .param .u64 out, .param .u32 n) {
 .reg .pred %p<4>; .reg .b32 %r<24>; .reg .b64 %d<8>; .shared .align 16 .b8 room[8192];
 ld.param.u64 %d1, [in]; ld.param.u64 %d2, [out]; ld.param.u32 %r20, [n]; mov.u32 %r1, %tid.x;
 mul.wide.u32 %d3, %r1, 16; add.u64 %d1, %d1, %d3; mul.wide.u32 %d4, %r1, 4; add.u64 %d2, %d2, %d4;
 mov.u32 %r2, room; shl.b32 %r3, %r1, 4; add.u32 %r2, %r2, %r3;
 cp.async.cg.shared.global [%r2], [%d1], 16; cp.async.commit_group;
 cp.async.cg.shared.global [%r2+2048], [%d1+2048], 16; cp.async.commit_group;
 cp.async.cg.shared.global [%r2+4096], [%d1+4096], 16; cp.async.commit_group;
 mov.u32 %r10, 0; mov.u32 %r11, 0; mov.u32 %r15, 6144; xor.b32 %r4, %r3, 2032; mov.u32 %r5, room; add.u32 %r5, %r5, %r4;
again: cp.async.wait_group 2; bar.sync 0; and.b32 %r12, %r11, 8191; add.u32 %r13, %r5, %r12; ld.shared.u32 %r14, [%r13];
 mad.lo.u32 %r10, %r10, 3, %r14; and.b32 %r16, %r15, 8191; add.u32 %r17, %r2, %r16;
 cp.async.cg.shared.global [%r17], [%d1+6144], 16; cp.async.commit_group; add.u64 %d1, %d1, 2048; add.u32 %r15, %r15, 2048;
 add.u32 %r11, %r11, 2048; sub.u32 %r20, %r20, 1; setp.ne.u32 %p1, %r20, 0; @%p1 bra again;
 cp.async.wait_all; st.global.u32 [%d2], %r10; ret; }
"""


def pipeline(sm: int, options: str = "", more: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(what the pipeline wrote, what it should), with `more` added to the counts of DEPBAR that are not 0."""
    gpu = Emulator(sm)
    image = cubin(module(sm, PIPELINE), sm, options)
    code = read(image).kernels["pipeline"].code
    changed = bytearray(code)
    for at in range(0, len(code), 16):
        i = decode(int.from_bytes(code[at:at + 16], "little"), at, sm)
        if i.op == "DEPBAR" and i.srcs[1].value != Imm(0):
            left = Operand(Imm(i.srcs[1].value.value + more))
            changed[at:at + 16] = encode(replace(i, srcs=(i.srcs[0], left, *i.srcs[2:])), sm).to_bytes(16, "little")
    assert (changed == code) == (more == 0)
    image = image.replace(code, bytes(changed))
    data = np.random.default_rng(sm).integers(0, 1 << 32, (TURNS + 3, THREADS, 4), dtype=np.uint64).astype(np.uint32)
    given, out = gpu.alloc(data), gpu.alloc(4 * THREADS)
    gpu.run(image, given.va, out.va, TURNS.to_bytes(4, "little"), block=(THREADS, 1, 1), name="pipeline")
    want = np.zeros(THREADS, np.uint32)
    for turn in range(TURNS):
        want = want * np.uint32(3) + data[turn, ::-1, 0]
    found = out.array(np.uint32).copy()
    gpu.close()
    return found, want


@pytest.mark.parametrize(("sm", "options"), [(80, ""), (90, "-O1"), (120, "-O0")])
def test_groups_that_are_waited_for(sm: int, options: str) -> None:
    found, want = pipeline(sm, options)
    assert (found == want).all()


@pytest.mark.parametrize("sm", [86, 120])
def test_a_group_too_few(sm: int) -> None:
    with pytest.raises(WarpFault, match="LDGSTS may still be writing") as caught:
        pipeline(sm, more=1)
    assert caught.value.kind == "missing wait" and "LDS" in caught.value.detail


@pytest.mark.slow
@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("options", ["", "-O1", "-O0"])
def test_all_pipelines(sm: int, options: str) -> None:
    found, want = pipeline(sm, options)
    assert (found == want).all()
    if options == "-O0":  # there every copy is over before the next instruction
        return
    with pytest.raises(WarpFault, match="LDGSTS may still be writing"):
        pipeline(sm, options, more=1)


# ---------------------------------------------------------------------------------------------------------------------
# One of each. R2: where the lane's 4 bytes come from, R6: where they go to

START = ("S2R R0, SR_TID.X", "ULDC.64 UR4, c[0x0][0x160]", "MOV R8, UR4", "MOV R9, UR5", "IMAD.WIDE.U32 R2, R0, 0x4, R8",
         "SHF.L.U32 R6, R0, 0x2, RZ")
COPY, END, LOAD = "LDGSTS.E [R6], [R2.64]", "LDGDEPBAR", "LDS R4, [R6]"


def line(text: str, **fields: int) -> object:
    return replace(assemble(text, 80), control=Control(**{"stall": 6, "yields": True, **fields}))


LOADED = line(LOAD, write=1)
GOOD = {
    "DEPBAR": [line(COPY), line(END, write=0), line("DEPBAR.LE SB0, 0x0"), LOADED],
    "DEPBAR of the first of two": [line(COPY), line(END, write=0), line(END, write=0), line("DEPBAR.LE SB0, 0x1"), LOADED],
    "DEPBAR of a set": [line(COPY), line(END, write=3), line("DEPBAR.LE SB0, 0x0, {3}"), LOADED],
    "the scoreboard": [line(COPY), line(END, write=2), line("NOP", wait=4), LOADED],
    "copies without a schedule": [line(COPY, stall=0), line(END, stall=0), LOADED],
    "other words": [line(COPY), line(END, write=0), line("LDS R4, [R6+0x100]", write=1), line("STS [R6+0x80], R5")],
    "no lane copies": ["ISETP.NE.U32.AND P0, PT, R0, R0, PT", line("@P0 " + COPY), LOADED],
}
BAD = {
    "no group": [line(COPY), line("DEPBAR.LE SB0, 0x0"), LOADED],
    "a group that may be left": [line(COPY), line(END, write=0), line("DEPBAR.LE SB0, 0x1"), LOADED],
    "another scoreboard": [line(COPY), line(END, write=0), line("DEPBAR.LE SB1, 0x0"), LOADED],
    "behind the group": [line(COPY), line(END, write=0), line(COPY), line("DEPBAR.LE SB0, 0x0"), LOADED],
    "a store over it": [line(COPY), line(END, write=0), line("STS [R6], R4")],
    "an atomic": [line(COPY), line(END, write=0), line("ATOMS.ADD R4, [R6], R5", write=1)],
    "a matrix": ["IMAD.SHL.U32 R7, R0, 0x10, RZ", line(COPY), line(END, write=0), line("LDSM.16.M88 R4, [R7]", write=1)],
    "a part of it": [line(COPY), line(END, write=0), line("LDS.U8 R4, [R6+0x3]", write=1)],
}


def run(lines: list[object]) -> None:
    gpu = Emulator(80)
    data = gpu.alloc(np.arange(64, dtype=np.uint32))
    try:
        gpu.start(gpu.code([*START, *lines, "EXIT"]), data.va, shared=512)
    finally:
        gpu.close()


@pytest.mark.parametrize("name", GOOD)
def test_what_is_waited_for(name: str) -> None:
    run(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_is_not(name: str) -> None:
    with pytest.raises(WarpFault) as caught:
        run(BAD[name])
    assert caught.value.kind == "missing wait"


def test_a_loop_back_to_the_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warp that gave way goes on where warps begin: what it copied is still under way."""
    monkeypatch.setattr(pace, "_FIRST_STEPS", 1)
    gpu = Emulator(80)
    data = gpu.alloc(np.zeros(64, np.uint32))
    lines = [line("@P6 BRA 0xb0"), *START, line(COPY), line(END, write=0),  # predicates of fresh memory are false
             line("ISETP.EQ.U32.AND P6, PT, RZ, RZ, PT", stall=15), line("BRA 0x0"), LOADED, "EXIT"]
    with pytest.raises(WarpFault) as caught:
        gpu.start(gpu.code(lines), data.va, shared=512)
    gpu.close()
    assert caught.value.kind == "missing wait" and "LDS" in caught.value.detail


def test_another_warp() -> None:
    """A barrier of the block does not wait for copies."""
    gpu = Emulator(80)
    data = gpu.alloc(np.arange(64, dtype=np.uint32))
    lines = [*START, line(COPY), line(END, write=0), line("BAR.SYNC.DEFER_BLOCKING 0x0"),
             line("LOP3.LUT R7, R6, 0x80, RZ, 0x3c, !PT"), line("LDS R4, [R7]", write=1), "EXIT"]
    with pytest.raises(WarpFault) as caught:
        gpu.start(gpu.code(lines), data.va, shared=256, block=(64, 1, 1))
    assert caught.value.kind == "missing wait"
    lines[8:8] = [line("DEPBAR.LE SB0, 0x0")]
    gpu.start(gpu.code(lines), data.va, shared=256, block=(64, 1, 1), grid=(3, 1, 1))
    gpu.close()
