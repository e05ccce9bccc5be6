"""Code objects: loading, relocating, refusing; the packets of a launch. Judges: LLVM's objects and what the tables decode."""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from amd_machines import TARGETS
from hypothesis import given, settings
from hypothesis import strategies as st

from devrt.amd import commands as lists
from devrt.amd import pm4, registers
from devrt.amd import queue as rings
from devrt.amd.device import AmdDevice
from devrt.amd.program import AmdProgram, Descriptor, launch
from devrt.compiler import lir
from devrt.compiler.dtypes import float32
from devrt.compiler.llvm import amdgcn
from devrt.device import CompileError, DeviceHang, DeviceLost, DevrtError, InvalidArgument, Placement
from devrt.gpu import queue as queues
from devrt.virtual.amd.dispatch import Dispatch, Executor

Opened = Callable[..., AmdDevice]
KD = 0x40  # bytes of a kernel descriptor


@functools.cache
def image(gfx: str, shared: int = 0, name: str = "add") -> bytes:
    """z = x + y, a wave a group, with `shared` floats of LDS and a table (for relocations)."""
    wave = amdgcn.target(gfx).wave
    b = lir.Builder(name, groups=4, lanes=wave)
    x, y = (b.param(p, float32, 4 * wave) for p in "xy")
    z = b.param("z", float32, 4 * wave, writable=True)
    at = b.add(b.mul(b.group(), b.idx(wave)), b.lane())
    value = b.add(b.load(x, at), b.load(y, at))
    value = b.add(value, b.table(float32, [0.0, 1.0, 2.0, 5.0], b.and_(b.lane(), b.idx(3))))
    if shared:
        lds = b.shared("lds", float32, shared)
        b.store(lds, b.lane(), value)
        b.barrier()
        value = b.load(lds, b.xor(b.lane(), b.idx(1)))
    b.store(z, at, value)
    return amdgcn.compile_program(b.finish(), amdgcn.target(gfx))


def descriptor_at(data: bytes) -> int:
    """Where NAME.kd lies in the file: the only 64 bytes of .rodata that begin with what the note says; found by its size."""
    import io

    from elftools.elf.elffile import ELFFile
    elf = ELFFile(io.BytesIO(data))
    symbol = next(s for s in elf.get_section_by_name(".symtab").iter_symbols() if s.name.endswith(".kd"))
    return int(elf.get_section(symbol["st_shndx"])["sh_offset"] + symbol["st_value"])


def edited(data: bytes, offset: int, form: str, value: int) -> bytes:
    """`data` with a field of its descriptor changed."""
    out = bytearray(data)
    struct.pack_into(form, out, descriptor_at(data) + offset, value)
    return bytes(out)


@pytest.fixture
def dispatches(monkeypatch: pytest.MonkeyPatch) -> list[Dispatch]:
    """What the virtual command processor hands to the waves, which are not run."""
    seen: list[Dispatch] = []

    def run(self: Executor, dispatch: Dispatch, space: object) -> Iterator[None]:
        seen.append(dispatch)
        return iter(())
    monkeypatch.setattr(Executor, "run", run)
    return seen


@pytest.mark.parametrize("gfx", TARGETS)
def test_what_reaches_the_waves(opened: Opened, dispatches: list[Dispatch], gfx: str) -> None:
    device = opened(gfx)
    program = device.load(image(gfx, 64), "add")
    x, y, z = (device.alloc(4096) for _ in range(3))
    commands = device.command_list()
    commands.dispatch(program, [x, y, z], 4)
    skipped = commands.dispatch(program, [x, y, z], 0)
    commands.dispatch(program, [z, y, z.address + 64], 2)
    device.compute.wait(device.compute.submit(commands), 10)
    before = [kernargs(program, d) for d in dispatches]
    commands.patch(2, 1, x)
    with pytest.raises(InvalidArgument, match="no argument"):
        commands.patch(skipped, 3, x)
    device.compute.wait(device.compute.submit(commands), 10)
    assert [d.groups for d in dispatches] == [(4, 1, 1), (2, 1, 1)] * 2
    for d in dispatches:
        assert d.entry == program.address and d.group_size == (device.properties.lanes, 1, 1) and d.wave == d.group_size[0]
        assert d.lds_bytes == 512 and d.rsrc1 == program.descriptor.rsrc1 and not d.scratch_bytes_per_wave
    assert before == [(x.address, y.address, z.address), (z.address, y.address, z.address + 64)]
    after = [kernargs(program, d) for d in dispatches[2:]]
    assert after == [(x.address, y.address, z.address), (z.address, x.address, z.address + 64)]


def kernargs(program: AmdProgram, d: Dispatch) -> tuple[int, ...]:
    """The arguments as the kernel would find them: through its user SGPRs."""
    at = 0
    for name, count in program.descriptor.user_sgprs:
        if name == "kernarg_segment_ptr":
            break
        at += count
    address = d.user_sgprs[at] | d.user_sgprs[at + 1] << 32
    from devrt.ioctl.system import view
    return struct.unpack("<3Q", bytes(view(address, 24)))


def test_a_list_in_flight_keeps_its_arguments(opened: Opened, dispatches: list[Dispatch]) -> None:
    device = opened("gfx1100")
    program = device.load(image("gfx1100"), "add")
    buffers = [device.alloc(4096) for _ in range(20)]
    commands = device.command_list()
    commands.dispatch(program, buffers[:3], 1)
    go = device.signal()
    device.compute.submit(device.command_list(), wait=[(go, 1)])
    for buffer in buffers[:8]:
        commands.patch(0, 0, buffer)
        value = device.compute.submit(commands)
        again = device.compute.submit(commands)
    assert len(commands._instances) == 8 and not dispatches
    go.signal(1)
    for buffer in buffers[8:]:  # more than may be in flight: waits for one
        commands.patch(0, 0, buffer)
        again = device.compute.submit(commands)
    device.compute.wait(again, 10)
    assert value < again and len(commands._instances) == 8
    assert len(dispatches) == 8 * 2 + 12


@pytest.mark.parametrize("gfx", TARGETS)
def test_code_lies_relocated_in_executable_memory(opened: Opened, gfx: str) -> None:
    device = opened(gfx)
    program = device.load(image(gfx), "add")
    assert program.address % 256 == 0
    # Read the code back by a copy: the GPU's view of it.
    view, back = device.code_buffer(program.allocation, program.address // 256 * 256, 64), device.alloc(64, Placement.HOST)
    commands = device.command_list()
    commands.copy(back, view, 64)
    device.transfer.wait(device.transfer.submit(commands), 10)
    import io

    from elftools.elf.elffile import ELFFile
    text = ELFFile(io.BytesIO(image(gfx))).get_section_by_name(".text").data()
    assert bytes(back.host())[:32] == text[:32]


def test_relocations_by_hand() -> None:
    from devrt.amd.program import RELOCATIONS
    from devrt.elf import read
    code = read(image("gfx1100"), "amdgcn")
    base = 0x7FFF_1234_5000
    content = code.content(base, RELOCATIONS)
    kd, entry = code.symbols["add.kd"], code.symbols["add"]
    assert struct.unpack_from("<q", content, kd + 16)[0] == entry - kd
    with pytest.raises(CompileError, match="relocation type"):
        code.content(base, {})


def test_what_is_cut_short_between_engines_ends_the_device(opened: Opened, dispatches: list[Dispatch],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel was started, its copies find no room: nobody can take that back."""
    device = opened("gfx1100")
    monkeypatch.setattr(queues, "FULL_RING_TIMEOUT_S", 0.1)
    program, buffer, other, go = device.load(image("gfx1100"), "add"), device.alloc(4096), device.alloc(4096), device.signal()
    many, both = device.command_list(), device.command_list()
    both.dispatch(program, [buffer] * 3, 1)
    for _ in range(2000):
        many.copy(other, buffer, 64)
        both.copy(other, buffer, 64)
    device.compute.submit(many, wait=[(go, 1)])
    with pytest.raises(DeviceHang, match="stayed full"):
        for _ in range(100):
            device.compute.submit(many)
    assert device.failure is None
    with pytest.raises(DeviceHang, match="stayed full"):
        device.compute.submit(both)
    with pytest.raises(DeviceLost, match="cut short") as caught:
        device.compute.submit(many)
    assert "stayed full" in caught.value.evidence and caught.value.remedy
    with pytest.raises(DeviceLost):
        device.compute.wait(1, 1)


def test_copies_in_groups_do_not_hurry_what_comes_behind(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies, a kernel, a copy of what the kernel leaves: the host waits for the groups, and the last copy for the kernel."""
    device = opened("gfx1100")
    for module in (rings, lists):
        monkeypatch.setattr(module, "MAX_WRITE", 1000)
    source, target = device.alloc(4096, Placement.HOST), device.alloc(4096, Placement.HOST)
    target.host()[:] = bytes(4096)
    early: list[bytes] = []

    def run(self: Executor, dispatch: Dispatch, space: object) -> Iterator[None]:
        for _ in range(50):
            time.sleep(1e-3)
            early.append(bytes(target.host()[2048:]))
            yield
        source.host()[:] = b"k" * 4096
    monkeypatch.setattr(Executor, "run", run)
    commands = device.command_list()
    for at in range(0, 2048, 32):
        commands.copy(target, source, 32, at, at)
    commands.dispatch(device.load(image("gfx1100"), "add"), [source] * 3, 1)
    commands.copy(target, source, 2048, 2048, 2048)
    device.compute.wait(device.compute.submit(commands), 30)
    assert set(early) == {bytes(2048)} and bytes(target.host()[2048:]) == b"k" * 2048


@pytest.mark.parametrize("gfx", TARGETS)
def test_launch_packets_decode(gfx: str) -> None:
    generation = {"gfx90a": 9, "gfx942": 9, "gfx1030": 10, "gfx1100": 11, "gfx1201": 12}[gfx]
    d = Descriptor(1000, 0, 24, 0, 0x100, 0, 0xAF0000, 0x80 << 0, 0x408 if generation >= 10 else 8, 0)
    made = launch(generation, 64 if generation == 9 else 32, d, 0x7F00_0000_1200, 0, 0, 0)
    writes: dict[str, int] = {}
    words = struct.unpack(f"<{len(made.packets) // 4}I", made.packets)
    for at, packet in pm4.decode_all(words, generation):
        if packet.name == "SET_SH_REG":
            writes |= registers.writes(packet["reg_offset"], packet.rest(), generation, at)
    assert packet.name == "DISPATCH_DIRECT" and (packet["dim_y"], packet["dim_z"]) == (1, 1)
    assert writes["COMPUTE_PGM_LO"] | writes["COMPUTE_PGM_HI"] << 32 == 0x7F00_0000_1200 >> 8
    assert writes["COMPUTE_PGM_RSRC2"] >> 15 & 0x1FF == 2
    assert words[made.groups_at // 4] == 0 and words[made.arguments_at // 4] == words[made.arguments_at // 4 + 1] == 0


def test_a_kernel_without_arguments_keeps_its_scratch() -> None:
    """What a launch fills in where arguments would be is not what the kernel finds its scratch memory by."""
    made = launch(9, 64, Descriptor(0, 64, 0, 0, 0x100, 0, 0, 0, 1, 0), 0x7F00_0000_1200, 0, 0x7E00_0000_0000, 4096)
    words = struct.unpack(f"<{len(made.packets) // 4}I", made.packets)
    at = made.arguments_at // 4
    assert words[at - 4:at + 2] == (0, 0x7E00 | 1 << 31, 4096, 0x20C14000, 0, 0)


def test_wrong_isa(device: AmdDevice) -> None:
    with pytest.raises(InvalidArgument, match="gfx1201 code") as caught:
        device.load(image("gfx1201"), "add")
    assert "gfx1100" in caught.value.evidence
    from devrt.compiler.llvm import backend, target
    b = lir.Builder("host", groups=1, lanes=8)
    b.param("z", float32, 8, writable=True)
    try:
        code = backend.compile_program(b.finish(), target.named("x86-64-avx2"))
    except DevrtError:
        code = b"\x7fELF\x02\x01" + bytes(58)
    with pytest.raises(InvalidArgument):
        device.load(code, "host")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damaged_images_are_refused(device: AmdDevice, data: st.DataObject) -> None:
    """Cut anywhere, or with a byte changed: an error of devrt's, or a program."""
    whole = image("gfx1100")
    live = device.code_memory.usage().live
    if data.draw(st.booleans()):
        bad = whole[:data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        bad = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1:]
    try:
        device.load(bad, "add").close()
    except DevrtError as error:
        assert error.what and error.remedy
    assert device.code_memory.usage().live == live


@pytest.mark.parametrize(("offset", "form", "value", "message"), [
    (0, "<I", 70_000, "bytes of LDS"), (4, "<I", 1 << 20, "bytes of scratch"), (56, "<H", 0x408 | 1 << 11, "stack of unknown"),
    (58, "<H", 3, "arguments in registers"), (56, "<H", 0x40A, "asks for dispatch_ptr"), (56, "<H", 8, "waves of 64 lanes"),
])
def test_kernels_that_ask_too_much(device: AmdDevice, offset: int, form: str, value: int, message: str) -> None:
    live = device.code_memory.usage().live
    with pytest.raises(CompileError, match=message) as caught:
        device.load(edited(image("gfx1100"), offset, form, value), "add")
    assert "add" in caught.value.what and caught.value.remedy
    assert device.code_memory.usage().live == live


@pytest.mark.parametrize("gfx", TARGETS)
def test_scratch(opened: Opened, dispatches: list[Dispatch], gfx: str) -> None:
    """A kernel that spills gets memory for as many waves as run, and the registers that say so."""
    device = opened(gfx)
    program = device.load(edited(image(gfx), 4, "<I", 100), "add")
    assert program.scratch is not None and device.scratch(100)[0] is program.scratch
    x = device.alloc(4096)
    commands = device.command_list()
    commands.dispatch(program, [x, x, x], 1)
    device.compute.wait(device.compute.submit(commands), 10)
    unit = 1024 if gfx in ("gfx90a", "gfx942", "gfx1030") else 256
    (d,) = dispatches
    assert d.scratch_bytes_per_wave % unit == 0 and d.scratch_bytes_per_wave >= 100 * device.properties.lanes
    assert d.scratch_base == program.scratch.address
    assert program.scratch.nbytes % d.scratch_bytes_per_wave == 0


def test_names_and_lifetimes(device: AmdDevice) -> None:
    with pytest.raises(InvalidArgument, match="no kernel 'mul'") as caught:
        device.load(image("gfx1100"), "mul")
    assert "add" in caught.value.evidence
    program, buffer = device.load(image("gfx1100"), "add"), device.alloc(4096)
    commands = device.command_list()
    with pytest.raises(InvalidArgument, match="arguments"):
        commands.dispatch(program, [buffer], 1)
    for groups in (-1, 1 << 32, 1.5):
        with pytest.raises(InvalidArgument, match="groups"):
            commands.dispatch(program, [buffer] * 3, groups)  # type: ignore[arg-type]
    commands.dispatch(program, [buffer] * 3, 0)
    device.compute.wait(device.compute.submit(commands), 10)
    with pytest.raises(Exception, match="runs no kernels"):
        device.transfer.submit(commands)
    live = device.code_memory.usage().live
    program.close()
    program.close()
    assert device.code_memory.usage().live < live
    with pytest.raises(InvalidArgument, match="after it was closed"):
        device.compute.submit(commands)
    with pytest.raises(InvalidArgument, match="after it was closed"):
        device.command_list().dispatch(program, [buffer] * 3, 1)


def test_long_lists_are_several_indirect_buffers(opened: Opened, dispatches: list[Dispatch],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened("gfx1100")
    monkeypatch.setattr(pm4, "MAX_IB_DWORDS", 400)
    program, buffer = device.load(image("gfx1100"), "add"), device.alloc(4096)
    commands = device.command_list()
    for n in range(50):
        commands.dispatch(program, [buffer] * 3, n + 1)
    device.compute.wait(device.compute.submit(commands), 10)
    assert [d.groups[0] for d in dispatches] == list(range(1, 51))
    assert len(commands._instances[0].segments[0].packets) > 1
