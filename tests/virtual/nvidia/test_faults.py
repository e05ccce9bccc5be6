"""Faults that were asked for, and how the driver's words come out."""

from __future__ import annotations

import re
import struct
import time

import pytest

from devrt.ioctl.nv_controls import FaultType
from devrt.virtual.context import KINDS, MEMORY
from devrt.virtual.memory import PAGE, Access, MemoryFault
from devrt.virtual.nvidia.faults import HANGS, WARP_ERRORS, copy_number, fault_type
from tests.virtual.nvidia.rig import COPY0, GRAPHICS, Line, Rig, rig, semaphore, until
from tests.virtual.nvidia.test_copy import copy

MMU_KINDS = {*MEMORY, "not executable"}          # these are MemoryFaults
AMD_KINDS = {"outside LDS", "outside scratch"}


def launched(r: Rig, line: Line, payload: int = 1) -> tuple[Line, int]:
    s = r.memory()
    return line.send(semaphore(line.launch(r.qmd(r.kernel())), s, payload, operation=1, release_wfi=1)), s


def test_a_hang_is_of_one_channel() -> None:
    with rig() as r:
        line, other = r.channel(), r.channel()
        r.faults.inject("hang")
        _, s = launched(r, line)
        time.sleep(0.01)
        assert r.u64(s) == 0 and not line.channel.error and not r.told
        _, t = launched(r, other)
        other.drain()
        assert r.u64(t) == 1
        r.gpu.detach(line.channel)


def test_a_page_fault_of_a_launch() -> None:
    with rig(faults="page-fault@2") as r:
        line = r.channel()
        launched(r, line)[0].drain()
        text = launched(r, line)[0].error()
        assert re.match(r"Xid 31: channel 0x00000001, intr 00000000\. MMU Fault: ENGINE GRAPHICS GPC0 GPCCLIENT_T1_0 faulted @ "
                        r"0x[0-9a-f]+_[0-9a-f]{8}\. Fault is of type FAULT_PTE ACCESS_TYPE_VIRT_READ", text), text
        assert "not present (injected)" in text
        assert r.gpu.mmu_faults[0].address == r.player.seen[0].entry or r.gpu.mmu_faults


@pytest.mark.parametrize("sm", [80, 90])
def test_an_ecc_error_is_contained(sm: int) -> None:
    with rig(sm, faults="ecc") as r:
        line, other = r.channel(), r.channel()
        assert launched(r, line)[0].error() == "Xid 94: Contained: SM (0x1). RST: No, D-RST: No"
        launched(r, other)[0].drain()
        r.faults.inject("ecc")
        engine, src, dst = r.channel(COPY0), r.memory(), r.memory()
        assert engine.send(copy(engine, src, dst, 64)).error() == "Xid 94: Contained: CE User Channel (0x9). RST: No, D-RST: No"


@pytest.mark.parametrize("sm", [86, 89])
def test_an_ecc_error_takes_the_whole_gpu(sm: int) -> None:
    with rig(sm, faults="ecc") as r:
        line, other = r.channel(), r.channel(COPY0)
        assert "Xid 48" in launched(r, line)[0].error() and "Xid 48" in other.error()
        until(lambda: r.told)
        assert [(channel, xid) for channel, xid, _ in r.told] == [(None, 48)]
        assert struct.unpack_from("<QIHH", other.notifier)[1:] == (48, COPY0, 0xFFFF)


def test_a_reset_loses_every_channel() -> None:
    with rig() as r:
        line, other = r.channel(), r.channel(COPY0 + 3)
        r.faults.inject("reset")
        assert "Xid 154: GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)" in launched(r, line)[0].error()
        assert "Xid 154" in other.error()
        until(lambda: r.told)
        assert [(channel, xid) for channel, xid, _ in r.told] == [(None, 154)]
        for stopped, engine in ((line, GRAPHICS), (other, COPY0 + 3)):
            assert struct.unpack_from("<QIHH", stopped.notifier)[1:] == (154, engine, 0xFFFF)


def test_faults_that_were_taken_are_remembered() -> None:
    with rig(faults="lost-interrupt") as r:
        line = r.channel()
        push = line.pushes()
        push.host("NON_STALL_INTERRUPT", 0)
        line.send(push).drain()
        assert r.faults.taken == ["lost-interrupt"] and not r.interrupts


# --- the words ---

def test_every_kind_of_warp_fault_has_its_code() -> None:
    kinds = set(KINDS.values()) - MMU_KINDS - AMD_KINDS
    assert kinds == set(WARP_ERRORS) | set(HANGS)


@pytest.mark.parametrize("engine, number", [(1, -1), (9, 0), (0x12, 9), (0x13, -1), (0x34, 10), (0x3D, 19)])
def test_numbers_of_copy_engines(engine: int, number: int) -> None:
    assert copy_number(engine) == number


def test_fault_types() -> None:
    with rig() as r:
        m, fixed = r.memory(), r.memory(access=Access.VRAM)
        assert fault_type(r.space, MemoryFault(m + PAGE, "read", "")) == FaultType.PTE
        assert fault_type(r.space, MemoryFault(0xF0_0000_0000, "read", "")) == FaultType.PDE
        assert fault_type(r.space, MemoryFault(fixed, "write", "")) == FaultType.RO_VIOLATION
        assert fault_type(r.space, MemoryFault(1 << 57, "read", "")) == FaultType.VA_LIMIT_VIOLATION
