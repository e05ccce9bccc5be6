"""What a warp must not do: each wrong thing is a fault with its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from devrt.compiler.sass.instruction import Control
from devrt.compiler.sass.isa import assemble
from devrt.virtual.memory import PAGE, Access, MemoryFault
from devrt.virtual.nvidia.dispatch import WarpFault
from tests.virtual.nvidia.emulator import LOCAL_WINDOW, SHARED_WINDOW, Emulator

SM = 80
START = ("S2R R0, SR_TID.X", "S2R R1, SR_CTAID.X", "ULDC.64 UR4, c[0x0][0x160]", "MOV R8, UR4", "MOV R9, UR5")
EACH = (*START, "IMAD.WIDE.U32 R2, R0, 0x4, R8")  # R2: address of the lane's word


@pytest.fixture
def gpu() -> Iterator[Emulator]:
    made = Emulator(SM, budget=1000)
    yield made
    made.close()


def fault(gpu: Emulator, lines: Sequence[str], *arguments: int, **more: object) -> tuple[Exception, int]:
    """The fault of lines, and which line it was."""
    code = gpu.code([*lines, "EXIT"])
    with pytest.raises((MemoryFault, WarpFault)) as caught:
        gpu.start(code, *arguments, **more)
    return caught.value, (caught.value.pc - code) // 16


def test_unmapped_and_read_only_memory(gpu: Emulator) -> None:
    buffer = gpu.alloc(PAGE)
    end = buffer.va + PAGE - 4 * 10  # lane 10 is the first outside
    for line, access in (("LDG.E R4, [R2.64]", "read"), ("STG.E [R2.64], R0", "write"), ("LD.E R4, [R2.64]", "read"),
                         ("ST.E [R2.64], R0", "write"), ("RED.E.ADD.STRONG.GPU [R2.64], R0", "write"),
                         ("ATOMG.E.ADD.STRONG.GPU PT, R4, [R2.64], R0", "write")):
        e, at = fault(gpu, [*EACH, line], end, block=(64, 1, 1))
        assert isinstance(e, MemoryFault) and e.why == "not mapped" and e.access == access, line
        assert (at, e.lane, e.warp, e.va) == (len(EACH), 10, 0, buffer.va + PAGE), line
    constant = gpu.alloc(PAGE, Access.VALID)
    for line in ("STG.E [R2.64], R0", "ATOMG.E.ADD.STRONG.GPU PT, R4, [R2.64], R0"):
        e, _ = fault(gpu, [*EACH, line], constant.va)
        assert isinstance(e, MemoryFault) and e.why == "read-only"
    elsewhere = gpu.alloc(PAGE, Access.WRITE | Access.FOREIGN)
    for line in ("LDG.E R4, [R2.64]", "STG.E [R2.64], R0", "RED.E.ADD.STRONG.GPU [R2.64], R0"):
        e, _ = fault(gpu, [*EACH, line], elsewhere.va)
        assert isinstance(e, MemoryFault) and e.why == "of another process"
    e, _ = fault(gpu, [*EACH, "@!P0 STG.E [R2.64], R0"], 0)
    assert isinstance(e, MemoryFault) and e.va == 0
    gpu.start(gpu.code([*EACH, "ISETP.NE.U32.AND P0, PT, R0, R0, PT", "@P0 STG.E [R2.64], R0", "EXIT"]), 0)  # no lane does


def test_the_lowest_lane_and_its_block(gpu: Emulator) -> None:
    buffer = gpu.alloc(PAGE)
    lines = [*EACH, "ISETP.EQ.U32.AND P0, PT, R1, 0x2, PT", "ISETP.GE.U32.AND P0, PT, R0, 0x25, P0",
             "@P0 IADD3 R3, R3, 0x1, RZ", "LDG.E R4, [R2.64]"]
    e, at = fault(gpu, lines, buffer.va, grid=(3, 1, 1), block=(64, 1, 1))
    assert isinstance(e, MemoryFault) and (at, e.warp, e.lane) == (len(lines) - 1, 1, 5)
    e, at = fault(gpu, [*lines[:-1], "@P0 BPT.TRAP 0x1"], buffer.va, grid=(3, 1, 1), block=(64, 1, 1))
    assert isinstance(e, WarpFault) and e.block == (2, 0, 0)


@pytest.mark.parametrize(("line", "size"), [("LDG.E R4, [R2.64+0x2]", 4), ("LDG.E.U16 R4, [R2.64+0x1]",
2), ("STG.E.64 [R2.64], R4", 8),
                                            ("LDG.E.128 R4, [R2.64]", 16), ("LDS R4, [R0+0x1]", 4), ("STS.64 [R0], R4", 8),
                                            ("LDL.U16 R4, [R0]", 2), ("ATOMS.ADD R4, [R0+0x2], R5", 4),
                                            ("RED.E.ADD.64.STRONG.GPU [R2.64], R4", 8)])
def test_addresses_are_multiples_of_their_size(gpu: Emulator, line: str, size: int) -> None:
    buffer = gpu.alloc(PAGE)
    e, at = fault(gpu, [*EACH, line], buffer.va, shared=1024, low=256)
    assert isinstance(e, WarpFault) and e.kind == "misaligned" and at == len(EACH)
    assert e.lane in (0, 1) and line.split()[0] in e.detail


def test_bounds_of_shared_and_local_memory(gpu: Emulator) -> None:
    x4 = "IMAD.SHL.U32 R6, R0, 0x4, RZ"
    for line, kind in (("LDS R4, [R6]", "shared"), ("STS [R6], R4", "shared"), ("ATOMS.ADD R4, [R6], R5", "shared"),
                       ("LDL R4, [R6]", "local"), ("STL [R6], R4", "local")):
        e, _ = fault(gpu, [*START, x4, line], 0, shared=100, low=100)
        assert isinstance(e, WarpFault) and (e.kind, e.lane) == (f"outside {kind} memory", 25), line
        gpu.start(gpu.code([*START, x4, line, "EXIT"]), 0, shared=128, low=128)
    # A stack of 64 bytes below 1 << 24.
    top = "IADD3 R6, -R6, 0xfffffc, RZ"
    gpu.start(gpu.code([*START, x4, top, "ISETP.LT.U32.AND P0, PT, R0, 0x10, PT", "@P0 STL [R6], R4", "EXIT"]), 0, high=64)
    e, _ = fault(gpu, [*START, x4, top, "STL [R6], R4"], 0, high=64, low=32)
    assert isinstance(e, WarpFault) and (e.kind, e.lane) == ("outside local memory", 16)
    # The same through generic addresses.
    for window, kind in ((SHARED_WINDOW, "shared"), (LOCAL_WINDOW, "local")):
        e, _ = fault(gpu, [*EACH, "LD.E R4, [R2.64]"], window, shared=100, low=100)
        assert isinstance(e, WarpFault) and (e.kind, e.lane) == (f"outside {kind} memory", 25)


def test_constants(gpu: Emulator) -> None:
    table = np.arange(8, dtype=np.uint32).tobytes()
    lines = [*START, "IMAD.SHL.U32 R6, R0, 0x4, RZ", "LDC R4, c[0x3][R6]"]
    e, _ = fault(gpu, lines, 0, more={3: table})
    assert isinstance(e, WarpFault) and (e.kind, e.lane) == ("outside constant bank", 8)
    e, _ = fault(gpu, [*START, "MOV R4, c[0x3][0x20]"], 0, more={3: table})
    assert isinstance(e, WarpFault) and e.kind == "outside constant bank"


def test_registers_and_instructions(gpu: Emulator) -> None:
    e, at = fault(gpu, [*START, "MOV R20, RZ"], 0, registers=20)
    assert isinstance(e, WarpFault) and (e.kind, at) == ("register out of range", len(START))
    gpu.start(gpu.code(["MOV R19, RZ", "EXIT"]), 0, registers=20)
    with pytest.raises(WarpFault, match="illegal instruction"):
        gpu.start(gpu.alloc(b"\xff" * 64, Access.EXECUTE).va)
    e, at = fault(gpu, [*START, "BPT.TRAP 0x1"], 0)
    assert isinstance(e, WarpFault) and (e.kind, at) == ("trap", len(START))
    with pytest.raises(MemoryFault):
        gpu.start(0x123450000)


def test_what_never_ends(gpu: Emulator) -> None:
    e, _ = fault(gpu, ["loop:", "IADD3 R0, R0, 0x1, RZ", "BRA (loop)"], 0)
    assert isinstance(e, WarpFault) and e.kind == "hang"
    # The halves of a block wait at barriers that the other half never comes to.
    lines = ["S2R R0, SR_TID.X", "ISETP.LT.U32.AND P0, PT, R0, 0x20, PT", "@P0 BRA (low)", "BAR.SYNC.DEFER_BLOCKING 0x1, 0x40",
             "EXIT", "low:", "BAR.SYNC.DEFER_BLOCKING 0x2, 0x40"]
    e, at = fault(gpu, lines, 0, block=(64, 1, 1))
    assert isinstance(e, WarpFault) and (e.kind, at, e.warp) == ("deadlock", 5, 0)


def test_a_missing_wait(gpu: Emulator) -> None:
    """A load's result that is used without its scoreboard."""
    load = replace(assemble("LDG.E R4, [R2.64]", SM), control=Control(4, False, write=2))
    use = replace(assemble("IADD3 R5, R4, 0x1, RZ", SM), control=Control(4, False))
    buffer = gpu.alloc(PAGE)
    e, at = fault(gpu, [*EACH, load, use], buffer.va)
    assert isinstance(e, WarpFault) and (e.kind, at) == ("missing wait", len(EACH) + 1)
    gpu.start(gpu.code([*EACH, load, replace(use, control=Control(4, False, wait=4)), "EXIT"]), buffer.va)


def test_jumps_to_nowhere(gpu: Emulator) -> None:
    e, _ = fault(gpu, ["MOV R2, 0x8", "MOV R3, RZ", "RET.REL.NODEC R2 0x0"], 0)
    assert isinstance(e, WarpFault) and e.kind == "bad address"


PARTED = ["S2R R0, SR_TID.X", "ISETP.LT.U32.AND P0, PT, R0, 0x10, PT", "@P0 BRA (low)"]


def test_lanes_that_wait_for_each_other(gpu: Emulator) -> None:
    """Each half of a warp waits for the other one, elsewhere."""
    lines = ["BSSY B0, (end)", "BSSY B1, (end)", *PARTED, "BSYNC B0", "EXIT", "low:", "BSYNC B1", "end:"]
    e, at = fault(gpu, lines, 0)
    assert isinstance(e, WarpFault) and (e.kind, at, e.lane) == ("deadlock", 7, 0)


def test_lanes_that_do_not_meet(gpu: Emulator) -> None:
    """BSYNC of lanes that BREAK took out, or whose mask was lost on its way through a register; BSSY of lanes that are to meet"""
    met = ["BSYNC B0", "EXIT"]
    for lines, place, detail in (
            (["BSSY B0, (low)", *PARTED, "BREAK B0", "low:", *met], 5, "is none of those that meet"),
            (["BSSY B0, (low)", *PARTED, "BMOV.32.CLEAR R4, B0", "MOV R4, RZ", "BMOV.32 B0, R4", "low:", *met], 7,
             "is none of those that meet"),
            (["BSSY B0, (end)", *PARTED, "BSSY B0, (end)", "low:", "end:", *met], 4, "no BSYNC since it was set"),
            (["BSSY B0, (end)", *PARTED, "BMOV.32 B0, R0", "BSSY B0, (end)", "low:", "end:", *met], 5, "still meets others"),
            ([*PARTED, "BSSY B0, (low)", "low:", *met], 4, "not set by a BSSY on every way"),
            ([*PARTED, "low:", "BREAK B1", "EXIT"], 3, "not set by a BSSY on any way"),
            ([*PARTED, "MOV R4, 0xf", "low:", "WARPSYNC R4", "EXIT"], 4, "not in its mask")):
        e, at = fault(gpu, lines, 0)
        assert isinstance(e, WarpFault) and (e.kind, at) == ("bad barrier", place) and detail in e.detail, (lines, e)
    # BREAK and then another way, a spill that comes back, a barrier that is set anew
    for lines in (["BSSY B0, (low)", *PARTED, "BREAK B0", "EXIT", "low:", *met],
                  ["BSSY B0, (low)", "MOV R4, RZ", *PARTED, "BMOV.32.CLEAR R4, B0", "BMOV.32 B0, R4", "low:", *met],
                  ["BSSY B0, (low)", *PARTED, "NOP", "low:", "BSYNC B0", "BSSY B0, (end)", "end:", *met]):
        gpu.start(gpu.code([*lines, "EXIT"]), 0)
