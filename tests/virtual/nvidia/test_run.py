"""Machine code behind the doorbell: launches that the executor really runs, their faults as channel errors, their order."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from devrt.compiler.sass.instruction import Control
from devrt.compiler.sass.isa import assemble, encode
from devrt.ioctl.system import LinuxSystem
from devrt.virtual.memory import PAGE
from devrt.virtual.nvidia.dispatch import Executor
from tests.virtual.nvidia.emulator import LATE
from tests.virtual.nvidia.rig import Line, Rig, rig, semaphore, until
from tests.virtual.nvidia.test_ledger import both

SMS = [80, 86, 89, 90]
PARAMS = {90: 0x210}  # where arguments lie in bank 0; 0x160 before Hopper
BANK = 0x240
FOREVER = 1 << 62
# R2: the address of the thread's word in the buffer that is the first argument; R0: its number.
EACH = ("S2R R0, SR_TID.X", "S2R R1, SR_CTAID.X", "IMAD R0, R1, 0x20, R0", "ULDC.64 UR4, c[0x0][{params:#x}]", "MOV R8, UR4",
        "MOV R9, UR5", "IMAD.WIDE.U32 R2, R0, 0x4, R8")
STORE = (*EACH, "STG.E [R2.64], R0", "EXIT")
DOUBLE = (*EACH, "LDG.E R4, [R2.64]", "IADD3 R4, R4, R4, RZ", "STG.E [R2.64], R4", "EXIT")
SPIN = (*EACH, "BRA 0x70")


@contextmanager
def machine(sm: int, budget: int = FOREVER) -> Iterator[Rig]:
    with rig(sm, executor=Executor(sm, LinuxSystem(), budget)) as made:
        yield made


def code(r: Rig, lines: Sequence[str], at: int = 0) -> int:
    """The address of assembled lines, each of which waits for all before it."""
    words = b""
    for n, line in enumerate(lines):
        i = assemble(line.format(params=PARAMS.get(r.sm, 0x160)), r.sm)
        late = i.op.startswith(LATE)
        control = Control(15, True, 0 if late else 7, 1 if late else 7, 0x3F)
        words += encode(replace(i, address=16 * n, control=control), r.sm).to_bytes(16, "little")
    at = at or r.memory()
    r.space.write(at, words)
    return at


def descriptor(r: Rig, entry: int, buffer: int, blocks: int = 2, **fields: int) -> int:
    """A QMD of blocks of one warp, with a bank 0 of its own."""
    bank = r.memory()
    r.space.write(bank + PARAMS.get(r.sm, 0x160), struct.pack("<Q", buffer))
    return r.qmd(entry, grid_width=blocks, constant_buffer_valid_0=1, constant_buffer_addr_0=bank, constant_buffer_size_0=BANK,
                 **fields)


def words(r: Rig, va: int, count: int) -> list[int]:
    return list(np.frombuffer(r.space.read(va, 4 * count), np.uint32))


@pytest.mark.parametrize("sm", SMS)
def test_a_kernel_runs_before_its_semaphore(sm: int) -> None:
    with machine(sm) as r:
        line, m, s = r.channel(), r.memory(), r.memory()
        first, second = descriptor(r, code(r, STORE), m), descriptor(r, code(r, DOUBLE), m)
        push = line.launch(first, wait=True)
        push.words.extend(line.launch(second).words)
        line.send(semaphore(push, s, 1, operation=1, release_wfi=1))
        until(lambda: line.channel.error or r.u64(s) == 1)
        assert not line.channel.error, line.channel.error
        assert words(r, m, 64) == [2 * n for n in range(64)]


@pytest.fixture
def r() -> Iterator[Rig]:
    with machine(86) as made:
        yield made


def test_launches_that_race(r: Rig) -> None:
    line, m = r.channel(), r.memory()
    first, second = descriptor(r, code(r, STORE), m), descriptor(r, code(r, DOUBLE), m)
    text = both(line, line.launch(first), line.launch(second)).error()
    assert f"race at {m:#x}: nothing waits for kernel" in text and "reads what it writes" in text or "writes it too" in text


def test_launches_on_different_pages_do_not(r: Rig) -> None:
    line, m, n = r.channel(), r.memory(), r.memory()
    entry = code(r, STORE)
    both(line, line.launch(descriptor(r, entry, m)), line.launch(descriptor(r, entry, n))).drain()
    assert words(r, m, 64) == words(r, n, 64) == list(range(64))


def test_a_wild_store(r: Rig) -> None:
    line, entry = r.channel(), code(r, STORE)
    text = line.send(line.launch(descriptor(r, entry, 0xF0_0000_0000))).error()
    assert "GPCCLIENT_T1_0 faulted @ 0xf0_00000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_WRITE" in text
    state, = r.gpu.sm_errors
    assert (state.warp_esr & 0xFFFF, state.pc) == (0x20, entry + 16 * (len(STORE) - 2))
    line = r.channel()
    line.send(line.launch(descriptor(r, entry, r.memory()))).drain()


@pytest.mark.parametrize("lines, text", [
    (("STS [RZ+0x10000], R0", "EXIT"), "Out Of Range Address"),
    ((*EACH, "IADD3 R2, R2, 0x2, RZ", "LDG.E R4, [R2.64]", "EXIT"), "Misaligned Address"),
    (("LDC R0, c[0x0][0x1000]", "EXIT"), "Invalid Constant Buffer Address"),
    (("MOV R40, RZ", "EXIT"), "Out Of Range Register"),
])
def test_exceptions(r: Rig, lines: Sequence[str], text: str) -> None:
    line, entry = r.channel(), code(r, lines)
    found = line.send(line.launch(descriptor(r, entry, r.memory()))).error()
    assert found.startswith(f"Xid 13: Graphics SM Warp Exception on (GPC 0, TPC 0, SM 0): {text}"), found


def test_code_that_is_none(r: Rig) -> None:
    line, entry = r.channel(), r.memory()
    r.space.write(entry, b"\xff" * 16)
    assert "Illegal Instruction Encoding" in line.send(line.launch(descriptor(r, entry, r.memory()))).error()


def test_a_kernel_that_never_ends_can_be_killed(r: Rig) -> None:
    line, other, s = r.channel(), r.channel(), r.memory()
    line.send(line.launch(descriptor(r, code(r, SPIN), r.memory())))
    time.sleep(0.02)
    r.gpu.detach(line.channel)
    other.send(semaphore(other.pushes(), s, 1, operation=1)).drain()
    assert r.u64(s) == 1 and not r.told


def test_a_kernel_that_hangs_lets_others_go_on() -> None:
    with machine(86, budget=1000) as r:
        line, other, m, s = r.channel(), r.channel(), r.memory(), r.memory()
        line.send(semaphore(line.launch(descriptor(r, code(r, SPIN), r.memory())), s, 1, operation=1))
        other.send(other.launch(descriptor(r, code(r, STORE), m))).drain()
        assert words(r, m, 64) == list(range(64))
        assert r.u64(s) == 0 and not line.channel.error and not r.told


def rewritten(r: Rig, between: Callable[[Line], object]) -> Line:
    """A kernel runs, its code is replaced, and it runs again."""
    line, m, entry = r.channel(), r.memory(), code(r, STORE)
    at = descriptor(r, entry, m)
    line.send(line.launch(at, wait=True)).drain()
    code(r, DOUBLE, entry)
    between(line)
    return line.send(line.launch(at))


def test_code_that_was_replaced(r: Rig) -> None:
    def invalidate(line: Line) -> None:
        push = line.pushes()
        push.compute("INVALIDATE_SHADER_CACHES", instruction=1)
        line.send(push)
    rewritten(r, invalidate).drain()
    assert "which changed since a launch before: nothing invalidated the instruction cache" in \
        rewritten(r, lambda line: None).error()


def test_a_page_beyond_the_buffer(r: Rig) -> None:
    line, m = r.channel(), r.memory()
    text = line.send(line.launch(descriptor(r, code(r, STORE), m + PAGE - 128))).error()
    assert f"faulted @ 0x{m + PAGE >> 32:x}_{m + PAGE & 0xFFFFFFFF:08x}" in text
