"""Single instructions and their ways through a warp. Witness: Python's integers on what the instruction does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from devrt.virtual.memory import PAGE, Access
from tests.virtual.nvidia.emulator import Emulator

SM = 80
M = 0xFFFFFFFF
U32 = np.uint32


@pytest.fixture
def gpu() -> Iterator[Emulator]:
    made = Emulator(SM, budget=100000)
    yield made
    made.close()


def signed(x: int, bits: int = 32) -> int:
    return x - (1 << bits) if x >> bits - 1 & 1 else x


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic: R4, R5, R6 and R7 are a, b, c and d of each lane; a line's results are R10, R11, and P3 and P4 as bits

Model = Callable[[int, int, int, int], tuple[int, ...]]


def sums(*terms: int) -> tuple[int, ...]:
    """(word, carries) of IADD3, whose -x is ~x + 1."""
    total = sum(terms)
    return total & M, 0, total >> 32 >= 1, total >> 32 >= 2


def minus(x: int) -> int:
    return (~x & M) + 1


def shifted(low: int, high: int, amount: int, right: bool, signs: bool) -> int:
    whole = signed(high << 32 | low, 64) if signs else high << 32 | low
    return (whole >> amount if right else whole << amount) & (1 << 64) - 1


LINES: list[tuple[str, Model]] = [
    ("IADD3 R10, P3, P4, R4, R5, R6", lambda a, b, c, d: sums(a, b, c)),
    ("IADD3 R10, P3, R4, -R5, RZ", lambda a, b, c, d: sums(a, minus(b))[:3]),
    ("IADD3 R10, -R4, 0x7, R6", lambda a, b, c, d: (minus(a) + 7 + c & M,)),
    ("IADD3.X R10, P3, R4, R5, RZ, P1, !PT", lambda a, b, c, d: sums(a, b, d & 1)[:3]),
    ("IADD3.X R10, R4, ~R5, R6, P1, P2", lambda a, b, c, d: (a + (~b & M) + c + (d & 1) + (d >> 1 & 1) & M,)),
    ("IMAD R10, R4, R5, -R6", lambda a, b, c, d: (a * b - c & M,)),
    ("IMAD.X R10, R4, R5, R6, P1", lambda a, b, c, d: (a * b + c + (d & 1) & M,)),
    ("IMAD.WIDE R10, R4, R5, R6", lambda a, b, c, d: wide(signed(a) * signed(b) + (d << 32 | c))),
    ("IMAD.WIDE.U32 R10, R4, R5, R6", lambda a, b, c, d: wide(a * b + (d << 32 | c))),
    ("IMAD.HI.U32 R10, R4, R5, R6", lambda a, b, c, d: (a * b + (d << 32 | c) >> 32 & M,)),
    ("IMAD.HI R10, R4, R5, RZ", lambda a, b, c, d: (signed(a) * signed(b) >> 32 & M,)),
    ("LEA R10, P3, R4, R5, 0x4", lambda a, b, c, d: sums((a << 4) & M, b)[:3]),
    ("LEA.HI R10, R4, R5, R6, 0x7", lambda a, b, c, d: (((c << 32 | a) << 7 >> 32) + b & M,)),
    ("LEA.HI.X R10, R4, R5, R6, 0x3, P1", lambda a, b, c, d: (((c << 32 | a) << 3 >> 32) + b + (d & 1) & M,)),
    ("LEA.HI.X.SX32 R10, R4, R5, 0x1, P1", lambda a, b, c, d: ((signed(a) << 1 >> 32) + b + (d & 1) & M,)),
    ("LOP3.LUT P3, R10, R4, R5, R6, 0x96, !PT", lambda a, b, c, d: (a ^ b ^ c, 0, a ^ b ^ c != 0)),
    ("LOP3.LUT R10, R4, R5, R6, 0xca, !PT", lambda a, b, c, d: (a & b | ~a & c & M,)),
    ("LOP3.LUT R10, R4, 0xff00, R6, 0x1d, !PT", lambda a, b, c, d: (lut(0x1D, a, 0xFF00, c),)),
    ("LOP3.LUT R10, R4, R5, R6, 0x47, !PT", lambda a, b, c, d: (lut(0x47, a, b, c),)),
    ("SHF.L.U32 R10, R4, R7, RZ", lambda a, b, c, d: (a << min(d, 32) & M,)),
    ("SHF.L.W.U32 R10, R4, R7, RZ", lambda a, b, c, d: (a << (d & 31) & M,)),
    ("SHF.R.S32.HI R10, RZ, R7, R4", lambda a, b, c, d: (signed(a) >> min(d, 32) & M,)),
    ("SHF.R.U32.HI R10, RZ, 0x5, R4", lambda a, b, c, d: (a >> 5,)),
    ("SHF.L.W.U32.HI R10, R4, 0xb, R4", lambda a, b, c, d: ((a << 11 | a >> 21) & M,)),
    ("SHF.R.U64 R10, R4, R7, R5", lambda a, b, c, d: (shifted(a, b, min(d, 64), True, False) & M,)),
    ("SHF.R.S64 R10, R4, 0x23, R5", lambda a, b, c, d: (shifted(a, b, 35, True, True) & M,)),
    ("SHF.L.U64.HI R10, R4, R7, R5", lambda a, b, c, d: (shifted(a, b, min(d, 64), False, False) >> 32,)),
    ("ISETP.LT.AND P3, P4, R4, R5, P1", lambda a, b, c, d: (0, 0, d & (signed(a) < signed(b)), d & (signed(a) >= signed(b)))),
    ("ISETP.GE.U32.OR P3, P4, R4, R5, !P1", lambda a, b, c, d: (0, 0, a >= b or not d & 1, a < b or not d & 1)),
    ("ISETP.NE.XOR P3, PT, R4, RZ, P1", lambda a, b, c, d: (0, 0, (a != 0) != d & 1)),
    ("ISETP.GT.U32.AND.EX P3, PT, R4, R4, PT, P1", lambda a, b, c, d: (0, 0, d & 1)),
    ("ISETP.LE.AND.EX P3, PT, R4, R5, PT, P1", lambda a, b, c, d: (0, 0, signed(a) < signed(b) or a == b and d & 1)),
    ("SEL R10, R4, R5, !P1", lambda a, b, c, d: (b if d & 1 else a,)),
    ("IMNMX R10, R4, R5, PT", lambda a, b, c, d: (min(signed(a), signed(b)) & M,)),
    ("IMNMX.U32 R10, R4, R5, !PT", lambda a, b, c, d: (max(a, b),)),
    ("PRMT R10, R4, 0x7531, R5", lambda a, b, c, d: (permuted(a, b, 0x7531),)),
    ("PRMT R10, R4, 0xb9a0, R5", lambda a, b, c, d: (permuted(a, b, 0xB9A0),)),
    ("PRMT R10, R4, R7, R5", lambda a, b, c, d: (permuted(a, b, d),)),
    ("POPC R10, R4", lambda a, b, c, d: (a.bit_count(),)),
    ("POPC R10, ~R4", lambda a, b, c, d: (32 - a.bit_count(),)),
    ("FLO.U32 R10, R4", lambda a, b, c, d: (a.bit_length() - 1 & M,)),
    ("FLO R10, R4", lambda a, b, c, d: ((~a & M if a >> 31 else a).bit_length() - 1 & M,)),
    ("FLO.U32.SH R10, R4", lambda a, b, c, d: (32 - a.bit_length() if a else M,)),
    ("BREV R10, R4", lambda a, b, c, d: (int(f"{a:032b}"[::-1], 2),)),
    ("IABS R10, R4", lambda a, b, c, d: (abs(signed(a)) & M,)),
    ("SGXT R10, R4, 0xb", lambda a, b, c, d: (signed(a & 2047, 11) & M,)),
    ("SGXT.U32 R10, R4, R7", lambda a, b, c, d: (a & (1 << min(d, 32)) - 1,)),
    ("BMSK R10, R6, R7", lambda a, b, c, d: (((1 << min(d, 32)) - 1 << min(c, 32)) & M,)),
    ("IDP.4A.U8.S8 R10, R4, R5, R6", lambda a, b, c, d: (c + dot(a, b) & M,)),
    ("VABSDIFF R10, R4, R5, R6", lambda a, b, c, d: (abs(signed(a) - signed(b)) + c & M,)),
    ("PLOP3.LUT P3, P4, P1, P2, PT, 0x60, 0x20", lambda a, b, c, d: (0, 0, 0x60 >> (4 * (d & 1) + 2 * (d >> 1 & 1) + 1) & 1,
                                                                    0x20 >> (4 * (d & 1) + 2 * (d >> 1 & 1) + 1) & 1)),
    ("CS2R R10, SRZ", lambda a, b, c, d: (0, 0)),
    ("@P1 MOV R10, R4", lambda a, b, c, d: (a if d & 1 else 0,)),
    ("R2P PR, R4, 0x18", lambda a, b, c, d: (0, 0, a >> 3 & 1, a >> 4 & 1)),
    ("P2R R10, PR, R4, 0x6", lambda a, b, c, d: (a & ~6 | (d & 3) << 1,)),
]


def dot(a: int, b: int) -> int:
    """The sum of products of unsigned and signed bytes."""
    return sum((a >> 8 * k & 255) * signed(b >> 8 * k & 255, 8) for k in range(4))


def wide(x: int) -> tuple[int, int]:
    return x & M, x >> 32 & M


def lut(table: int, a: int, b: int, c: int) -> int:
    return sum((table >> (4 * (a >> n & 1) + 2 * (b >> n & 1) + (c >> n & 1)) & 1) << n for n in range(32))


def permuted(a: int, c: int, chosen: int) -> int:
    out = 0
    for n in range(4):
        nibble = chosen >> 4 * n & 15
        byte = (c << 32 | a) >> 8 * (nibble & 7) & 255
        out |= ((byte >> 7) * 255 if nibble & 8 else byte) << 8 * n
    return out


def test_arithmetic(gpu: Emulator) -> None:
    """All lines in one kernel; each leaves four words."""
    edges = (0, 1, 31, 32, 33, 63, 64, 0x7FFFFFFF, 0x80000000, M)
    rng = np.random.default_rng(1)
    data = rng.integers(0, 1 << 32, (4, 32), dtype=np.uint64).astype(U32)
    for row in data:
        row[rng.choice(32, 14, replace=False)] = rng.choice(edges, 14)
    data[3, 16:] = rng.integers(0, 70, 16)  # amounts of shifts
    lines = ["S2R R0, SR_TID.X", "ULDC.64 UR4, c[0x0][0x160]", "MOV R8, UR4", "MOV R9, UR5", "IMAD.WIDE.U32 R2, R0, 0x4, R8"]
    lines += [f"LDG.E R{4 + k}, [R2.64+{128 * k:#x}]" for k in range(4)]
    lines += ["LOP3.LUT P1, RZ, R7, 0x1, RZ, 0xc0, !PT", "LOP3.LUT P2, RZ, R7, 0x2, RZ, 0xc0, !PT"]
    for n, (line, _) in enumerate(LINES):
        lines += ["MOV R10, RZ", "MOV R11, RZ", "ISETP.NE.AND P3, P4, RZ, RZ, !PT", line, "SEL R12, RZ, 0x1, !P3",
        "SEL R13, RZ, 0x1, !P4"]
        lines += [f"STG.E [R2.64+{512 * n + 512 + 128 * k:#x}], R{10 + k}" for k in range(4)]
    room = gpu.alloc(np.concatenate([data.ravel(), np.zeros(128 * len(LINES), U32)]))
    gpu.start(gpu.code([*lines, "EXIT"]), room.va)
    found = room.array(U32)[128:].reshape(len(LINES), 4, 32)
    for (line, model), got in zip(LINES, found, strict=True):
        for lane in range(32):
            want = [int(v) for v in model(*(int(v) for v in data[:, lane]))]
            want += [0] * (4 - len(want))
            assert [int(v) for v in got[:, lane]] == want, (line, [hex(v) for v in data[:, lane]], want)


# ---------------------------------------------------------------------------------------------------------------------
# Ways through a warp

START = ("S2R R0, SR_TID.X", "ULDC.64 UR4, c[0x0][0x160]", "MOV R8, UR4", "MOV R9, UR5", "IMAD.WIDE.U32 R2, R0, 0x4, R8")


def outcome(gpu: Emulator, lines: Sequence[str], **more: object) -> np.ndarray:
    """R4 of every lane."""
    room = gpu.alloc(4096)
    gpu.start(gpu.code([*START, *lines, "STG.E [R2.64], R4", "EXIT"]), room.va, **more)
    return room.array(U32)[:32].copy()


LANE = np.arange(32)


def test_barriers_in_barriers(gpu: Emulator) -> None:
    """Lanes part twice and meet twice; the votes show who is there."""
    got = outcome(gpu, [
        "MOV R4, RZ", "ISETP.LT.U32.AND P0, PT, R0, 0x10, PT", "LOP3.LUT P1, RZ, R0, 0x1, RZ, 0xc0, !PT", "BSSY B0, (outer)",
        "@!P0 BRA (high)", "BSSY B1, (inner)", "@P1 BRA (odd)", "VOTE.ANY R5, PT, PT", "IADD3 R4, R4, R5, RZ", "BRA (meet)",
        "odd:", "VOTE.ANY R5, PT, PT", "IADD3 R4, R4, R5, RZ", "meet:", "BSYNC B1", "inner:", "VOTE.ANY R5, PT, PT",
        "IADD3 R4, R4, R5, RZ", "BRA (end)", "high:", "VOTE.ANY R5, PT, PT", "IMAD.SHL.U32 R4, R5, 0x2, RZ", "end:", "BSYNC B0",
        "outer:", "VOTE.ANY R5, PT, PT", "LOP3.LUT R4, R4, R5, RZ, 0x3c, !PT"])
    low = np.where(LANE % 2, 0xAAAA, 0x5555) + 0xFFFF
    want = np.where(LANE < 16, low, 0xFFFF0000 * 2 & M) ^ M
    assert (got == want).all()


def test_lanes_that_break_out(gpu: Emulator) -> None:
    """BREAK takes lanes out of a barrier that the rest then meets at alone; they are there again behind the loop."""
    got = outcome(gpu, [
        "MOV R4, RZ", "MOV R6, RZ", "BSSY B0, (done)", "loop:", "BSSY B1, (joined)", "ISETP.GE.U32.AND P0, PT, R6, R0, PT",
        "@!P0 BRA (stay)", "BREAK B1", "BRA (out)", "stay:", "BSYNC B1", "joined:", "VOTE.ANY R5, PT, PT", "IADD3 R4, R4, R5, RZ",
        "IADD3 R6, R6, 0x1, RZ", "BRA (loop)", "out:", "BSYNC B0", "done:", "VOTE.ANY R5, PT, PT",
        "LOP3.LUT R4, R4, R5, RZ, 0x3c, !PT"])
    want = [sum(M & ~((2 << k) - 1) for k in range(lane)) & M ^ M for lane in range(32)]
    assert list(got) == want


def test_a_barrier_through_a_register(gpu: Emulator) -> None:
    """A convergence barrier that is kept in a register while another takes its place."""
    got = outcome(gpu, [
        "MOV R4, RZ", "LOP3.LUT P0, RZ, R0, 0x3, RZ, 0xc0, !PT", "BSSY B0, (end)", "BMOV.32.CLEAR R6, B0", "BSSY B0, (mid)",
        "@P0 BRA (there)", "IADD3 R4, R4, 0x5, RZ", "there:", "BSYNC B0", "mid:", "VOTE.ANY R4, PT, PT", "BMOV.32 B0, R6",
        "BSYNC B0",
        "end:"])
    assert (got == M).all()


def test_lanes_that_wait_for_each_other(gpu: Emulator) -> None:
    """Lane 0 spins on what lane 31 stores behind it in the code, without a barrier between them."""
    got = outcome(gpu, [
        "ISETP.NE.U32.AND P0, PT, R0, RZ, PT", "@P0 BRA (others)", "spin:", "LDG.E R4, [R8.64+0x200]",
        "ISETP.EQ.U32.AND P1, PT, R4, RZ, PT", "@P1 BRA (spin)", "BRA (end)", "others:", "ISETP.NE.U32.AND P0, PT, R0, 0x1f, PT",
        "MOV R4, 0x7", "@!P0 STG.E [R8.64+0x200], R4", "end:"])
    assert (got == 7).all()


def test_warps_that_wait_for_each_other(gpu: Emulator) -> None:
    """The first warp spins on what the last one stores in shared memory, all its lanes or one of them."""
    for alone in (False, True):
        skip = ["ISETP.NE.U32.AND P3, PT, R0, RZ, PT", "@P3 BRA (end)"] if alone else []
        got = outcome(gpu, [
            "MOV R4, RZ", "STS [0x10], RZ", "BAR.SYNC.DEFER_BLOCKING 0x0", "ISETP.GE.U32.AND P0, PT, R0, 0x40, PT",
            "@P0 BRA (bring)", "ISETP.GE.U32.AND P0, PT, R0, 0x20, PT", "@P0 EXIT", *skip, "spin:", "LDS R4, [0x10]",
            "ISETP.EQ.U32.AND P1, PT, R4, RZ, PT", "@P1 BRA (spin)", "BRA (end)", "bring:", "MOV R5, 0x7", "STS [0x10], R5",
            "EXIT",
            "end:"], block=(96, 1, 1), shared=64)
        assert (got == np.where((LANE > 0) & alone, 0, 7)).all()


def test_warpsync_brings_lanes_together(gpu: Emulator) -> None:
    got = outcome(gpu, [
        "LOP3.LUT P0, RZ, R0, 0x1, RZ, 0xc0, !PT", "@P0 BRA (odd)", "MOV R4, 0x1", "BRA (on)", "odd:", "MOV R4, 0x2", "on:",
        "WARPSYNC 0xffffffff", "SHFL.BFLY PT, R5, R4, 0x1, 0x1f", "VOTE.ANY R6, PT, PT", "IADD3 R4, R5, R6, RZ"])
    assert (got == (np.where(LANE % 2, 1, 2) + M & M)).all()


def test_some_lanes_end(gpu: Emulator) -> None:
    """The others no longer wait for them."""
    room = gpu.alloc(4096)
    gpu.start(gpu.code([*START, "LOP3.LUT P0, RZ, R0, 0x4, RZ, 0xc0, !PT", "BSSY B0, (end)", "@!P0 BRA (on)", "EXIT", "on:",
    "BSYNC B0",
                        "end:", "VOTE.ANY R4, PT, PT", "BAR.SYNC.DEFER_BLOCKING 0x0", "STG.E [R2.64], R4", "EXIT"]), room.va,
              block=(96, 1, 1))
    got = room.array(U32)[:96]
    assert (got == np.where(np.arange(96) & 4, 0, 0x0F0F0F0F)).all()


def test_a_partial_warp_and_shapes(gpu: Emulator) -> None:
    """Blocks of 5 x 3 x 2 threads in a grid of 2 x 3 x 2."""
    room = gpu.alloc(4 * 12 * 32)
    lines = ["S2R R10, SR_CTAID.X", "S2R R11, SR_CTAID.Y", "S2R R12, SR_CTAID.Z", "S2R R13, SR_TID.X", "S2R R14, SR_TID.Y",
             "S2R R15, SR_TID.Z", "IMAD R16, R12, 0x3, R11", "IMAD R16, R16, 0x2, R10", "IMAD R17, R15, 0x3, R14",
             "IMAD R17, R17, 0x5, R13", "IMAD R18, R16, 0x20, R17", "ULDC.64 UR4, c[0x0][0x160]", "MOV R8, UR4", "MOV R9, UR5",
             "IMAD.WIDE.U32 R2, R18, 0x4, R8", "VOTE.ANY R5, PT, PT", "IADD3 R4, R18, R5, RZ", "STG.E [R2.64], R4", "EXIT"]
    gpu.start(gpu.code(lines), room.va, grid=(2, 3, 2), block=(5, 3, 2))
    got = room.array(U32).reshape(12, 32)
    want = np.where(LANE < 30, np.arange(12 * 32).reshape(12, 32) + ((1 << 30) - 1), 0)
    assert (got == want).all()


def test_code_that_changes_is_translated_again(gpu: Emulator) -> None:
    room = gpu.alloc(4096)
    code = gpu.code([*START, "MOV R4, 0x5", "STG.E [R2.64], R4", "EXIT"])
    gpu.start(code, room.va)
    assert (room.array(U32)[:32] == 5).all()
    other = gpu.code([*START, "MOV R4, 0x6", "STG.E [R2.64], R4", "EXIT"])
    gpu.space.map(code, gpu.space.entry(other) & ~(PAGE - 1), PAGE, Access.EXECUTE)
    gpu.start(code, room.va)
    assert (room.array(U32)[:32] == 6).all()


def test_fast_paths_of_memory(gpu: Emulator) -> None:
    """Rows across pages, one address for all, strides, widths: the same numbers."""
    data = np.arange(4096, dtype=U32)
    source = gpu.alloc(data)
    for start, step in ((0, 4), (4096 - 64, 4), (16, 0), (0, 8), (64, -4), (4096 - 16, 16), (32, 36)):
        for width in (1, 2, 4):
            begin = start + 31 * 4 if step < 0 else start
            begin -= begin % (4 * width)
            stride = step if step % (4 * width) == 0 else 4 * width
            room = gpu.alloc(8192)
            gpu.start(gpu.code([
                *START, f"MOV R10, {begin:#x}", f"IMAD R10, R0, {stride & M:#x}, R10", "ULDC.64 UR6, c[0x0][0x168]",
                "MOV R12, UR6",
                "MOV R13, UR7", "IMAD.WIDE.U32 R14, R10, 0x1, R12", f"LDG.E{ {1: '', 2: '.64', 4: '.128'}[width]} R16, [R14.64]",
                *(f"STG.E [R2.64+{128 * k:#x}], R{16 + k}" for k in range(width)), "EXIT"]), room.va, source.va)
            got = room.array(U32)[:32 * width].reshape(width, 32)
            want = np.stack([(begin + stride * LANE) // 4 + k for k in range(width)])
            assert (got == want).all(), (start, step, width)
