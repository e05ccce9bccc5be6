"""Engines and queues beside each other: kernels that wait for what copies, the host, other kernels and other GPUs write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from devrt.amd import pm4, sdma
from devrt.amd.registers import pack
from devrt.ioctl.system import LinuxSystem
from devrt.virtual import pace
from devrt.virtual.amd.dispatch import Dispatch, Executor
from devrt.virtual.memory import PAGE, Access, AddressSpace
from tests.virtual.amd.emulator import Emulator, compile_ir, lay_out
from tests.virtual.amd.rig import VRAM, Line, Rig, rig, until
from tests.virtual.amd.test_sdma import copy
from tests.virtual.amd.test_translate import GRID

# The pages of a waiting kernel's memory: what it makes, whether it has begun, what it waits for, what it reads then.
BEGUN, FLAG, DATA = PAGE, 2 * PAGE, 3 * PAGE
SEVENS, NUMBERS = [7 * n for n in range(32)], list(range(32))
_HEAD = """target triple = "amdgcn-amd-amdhsa"
declare i32 @llvm.amdgcn.workitem.id.x()
attributes #0 = { "amdgpu-flat-work-group-size"="1,1024" "amdgpu-no-implicitarg-ptr" "amdgpu-no-dispatch-ptr"
 "amdgpu-no-queue-ptr" "amdgpu-no-dispatch-id" "amdgpu-no-workgroup-id-y" "amdgpu-no-workgroup-id-z" }
"""
_PLACES = "".join(f"""  %{name}.p = getelementptr i8, ptr addrspace(1) %m, i64 {at}
""" for name, at in (("begun", BEGUN), ("flag", FLAG), ("data", DATA))) + """
  %i = call i32 @llvm.amdgcn.workitem.id.x()
  %o = getelementptr i32, ptr addrspace(1) %m, i32 %i
  %d = getelementptr i32, ptr addrspace(1) %data.p, i32 %i
"""
KERNELS = _HEAD + f"""
define amdgpu_kernel void @waits(ptr addrspace(1) %m) #0 {{
entry:
{_PLACES}
  store atomic i32 1, ptr addrspace(1) %begun.p release, align 4
  br label %again
again:
  %v = load atomic i32, ptr addrspace(1) %flag.p acquire, align 4
  %no = icmp eq i32 %v, 0
  br i1 %no, label %again, label %on
on:
  %x = load i32, ptr addrspace(1) %d
  store i32 %x, ptr addrspace(1) %o
  ret void
}}
define amdgpu_kernel void @tells(ptr addrspace(1) %m) #0 {{
{_PLACES}
  store i32 %i, ptr addrspace(1) %d
  store atomic i32 1, ptr addrspace(1) %flag.p release, align 4
  ret void
}}
"""


@contextmanager
def machine(gfx: str = "gfx1100", budget: int = 1 << 62) -> Iterator[Rig]:
    with rig(gfx, executor=Executor(gfx, LinuxSystem(), budget)) as made:
        yield made


@pytest.fixture(params=["gfx942", "gfx1100"])
def r(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with machine(request.param) as made:
        yield made


def start(r: Rig, line: Line, name: str, m: int) -> Line:
    """Launch a kernel of one wave on memory."""
    image, kernels = lay_out(compile_ir(KERNELS, r.gpu.model.gfx))
    code, kernarg, k = r.memory(len(image)), r.memory(PAGE), kernels[name]
    r.space.write(code, bytes(image))
    r.space.write(kernarg, m.to_bytes(8, "little"))
    gfx, entry = r.gfx, code + k.entry
    user = [kernarg & 0xFFFFFFFF, kernarg >> 32, *[0] * ((k.rsrc[1] >> 1 & 31) - 2)]
    assert not entry % 256 and k.properties & 0x7F == 8  # the address of the arguments is all it asks for
    wave32 = {"CS_W32_EN": 1} if gfx > 9 else {}
    return line.push([
        *pm4.set_sh("COMPUTE_PGM_LO", gfx, entry >> 8 & 0xFFFFFFFF, entry >> 40),
        *pm4.set_sh("COMPUTE_PGM_RSRC1", gfx, *k.rsrc[:2]),
        *pm4.set_sh("COMPUTE_NUM_THREAD_X", gfx, 32, 1, 1), *pm4.set_sh("COMPUTE_USER_DATA_0", gfx, *user),
        *pm4.encode("DISPATCH_DIRECT", gfx, dim_x=1, dim_y=1, dim_z=1, dispatch_initiator=pack(
            "COMPUTE_DISPATCH_INITIATOR", gfx, COMPUTE_SHADER_EN=1, FORCE_START_AT_000=1, **wave32))])


class Waiter:
    """A queue whose kernel waits, and has begun."""

    def __init__(self, r: Rig) -> None:
        self.r, self.line, self.m = r, r.queue(), r.memory(4 * PAGE, VRAM)
        start(r, self.line, "waits", self.m)
        until(lambda: self.line.queue.faulted or r.u32(self.m + BEGUN))
        assert not self.line.queue.faulted and self.line.rptr != self.line.wptr

    def made(self) -> list[int]:
        self.line.drain()
        return np.frombuffer(self.r.space.read(self.m, 128), np.uint32).tolist()


def source(r: Rig) -> int:
    m = r.memory(PAGE)
    r.space.write(m, np.array(SEVENS, np.uint32).tobytes())
    return m


def test_a_copy_frees_a_kernel(r: Rig) -> None:
    waiter, line = Waiter(r), r.queue("sdma")
    line.push(copy(source(r), waiter.m + DATA, 128, r.gfx), sdma.encode("FENCE", r.gfx, address=waiter.m + FLAG, data=1)).drain()
    assert waiter.made() == SEVENS


def test_the_host_frees_a_kernel(r: Rig) -> None:
    waiter, line = Waiter(r), r.queue("sdma")
    line.push(copy(source(r), waiter.m + DATA, 128, r.gfx)).drain()
    r.space.write(waiter.m + FLAG, b"\x01")
    assert waiter.made() == SEVENS


def test_another_kernel_frees_a_kernel(r: Rig) -> None:
    waiter = Waiter(r)
    start(r, r.queue(), "tells", waiter.m).drain()
    assert waiter.made() == NUMBERS


def test_another_gpu_frees_a_kernel(r: Rig) -> None:
    with machine(r.gpu.model.gfx) as other:
        waiter = Waiter(r)
        for at in range(waiter.m, waiter.m + 4 * PAGE, PAGE):
            other.space.map(at, r.space.entry(at) & ~(PAGE - 1), PAGE, Access.PEER | Access.WRITE)
        start(other, other.queue(), "tells", waiter.m).drain()
        assert waiter.made() == NUMBERS


def test_what_a_kernel_waited_for_is_not_stale(r: Rig) -> None:
    """A page that an earlier kernel read, and that a copy wrote while this one runs."""
    waiter, line = Waiter(r), r.queue("sdma")
    line.push(copy(source(r), waiter.m + DATA, 128, r.gfx), sdma.encode("FENCE", r.gfx, address=waiter.m + FLAG, data=1)).drain()
    waiter.made()
    r.space.write(waiter.m + BEGUN, bytes(4))
    r.space.write(waiter.m + FLAG, bytes(4))
    waiter.line = start(r, r.queue(), "waits", waiter.m)
    until(lambda: r.u32(waiter.m + BEGUN))
    other = r.memory(PAGE)
    r.space.write(other, b"\x01")
    line.push(copy(other, waiter.m + FLAG, 4, r.gfx)).drain()
    assert waiter.made() == SEVENS


def test_a_kernel_that_nobody_frees_hangs() -> None:
    with machine(budget=100_000) as r:
        line, other = (start(r, r.queue(), name, r.memory(4 * PAGE, VRAM)) for name in ("waits", "tells"))
        other.drain()
        assert "hang at" in line.fault() and not other.queue.faulted


def test_each_group_may_branch_as_often() -> None:
    """What is a hang for one group is none for several together."""
    gpu = Emulator("gfx1100", budget=1000)
    image = compile_ir(_HEAD + """
define amdgpu_kernel void @counts(ptr addrspace(1) %m) #0 {
entry:
  br label %again
again:
  %n = phi i32 [ 0, %entry ], [ %n2, %again ]
  store volatile i32 %n, ptr addrspace(1) %m
  %n2 = add i32 %n, 1
  %more = icmp ult i32 %n2, 600
  br i1 %more, label %again, label %on
on:
  ret void
}
""", "gfx1100")
    m = gpu.alloc(64)
    gpu.run(image, "counts", m.va.to_bytes(8, "little"), (8, 1, 1), (32, 1, 1))
    assert m.array(np.int32)[0] == 599
    gpu.close()


def test_a_wave_waits_for_another_of_its_group() -> None:
    """Without a barrier: the first wave spins until the last has written."""
    gpu = Emulator("gfx1100")
    text = _HEAD + """
define amdgpu_kernel void @group(ptr addrspace(1) %m) #0 {
entry:
  %i = call i32 @llvm.amdgcn.workitem.id.x()
  %last = icmp uge i32 %i, 96
  br i1 %last, label %tell, label %again
tell:
  store atomic i32 5, ptr addrspace(1) %m release, align 4
  br label %again
again:
  %v = load atomic i32, ptr addrspace(1) %m acquire, align 4
  %no = icmp eq i32 %v, 0
  br i1 %no, label %again, label %on
on:
  %n = add i32 %i, 1
  %o = getelementptr i32, ptr addrspace(1) %m, i32 %n
  store i32 %v, ptr addrspace(1) %o
  ret void
}
"""
    m = gpu.alloc(4 * 129)
    gpu.run(compile_ir(text, "gfx1100"), "group", m.va.to_bytes(8, "little"), size=(128, 1, 1))
    assert (m.array(np.int32) == 5).all()
    gpu.close()


@pytest.mark.parametrize("gfx", ["gfx90a", "gfx1201"])
def test_groups_in_many_turns(gfx: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waves that meet at barriers, group after group, where the dispatch gives way after each."""
    turns = []

    def counted(self: Executor, d: Dispatch, space: AddressSpace) -> Iterator[None]:
        for _ in run(self, d, space):
            turns.append(d)
            yield
    run = Executor.run
    monkeypatch.setattr(pace, "_FIRST_STEPS", 1)
    monkeypatch.setattr(pace.Share, "took", lambda *told: None)
    monkeypatch.setattr(Executor, "run", counted)
    gpu = Emulator(gfx)  # type: ignore[arg-type]
    groups, size = (3, 1, 2), (20, 5, 3)
    out = gpu.alloc(4 * 300 * 6)
    gpu.run(compile_ir('target triple = "amdgcn-amd-amdhsa"\n' + GRID, gfx), "grid",  # type: ignore[arg-type]
            out.va.to_bytes(8, "little") + np.array([*size, *groups[:2]], np.int32).tobytes(), groups, size)
    assert np.array_equal(out.array(np.int32), (np.arange(6)[:, None] * 300 + np.arange(300)[::-1]).ravel())
    assert len(turns) == 5  # between six groups
    gpu.close()
