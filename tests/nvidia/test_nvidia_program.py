"""Cubins: loading, refusing, launching; what a list is made of. Judges: NumPy, the tables that decode what was built."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia_kernels import LANES, SMS, image

from devrt.compiler.sass import reader
from devrt.compiler.sass.reader import Kernel
from devrt.device import CompileError, DevrtError, InvalidArgument, Placement, Unsupported
from devrt.gpu.commands import Dispatch
from devrt.ioctl.system import view
from devrt.nvidia import commands as lists
from devrt.nvidia import program as programs
from devrt.nvidia import pushbuffer, qmd
from devrt.nvidia.device import NvidiaDevice
from devrt.nvidia.generation import GENERATIONS, carve_out

Opened = Callable[..., NvidiaDevice]
N = 4 * LANES


def numbers(device: NvidiaDevice, seed: int) -> tuple[object, np.ndarray]:
    buffer = device.alloc(4 * N, Placement.HOST)
    values = np.random.default_rng(seed).standard_normal(N).astype(np.float32)
    buffer.host()[:] = values.tobytes()
    return buffer, values


@pytest.mark.parametrize("sm", SMS)
def test_kernels_run_on_every_generation(opened: Opened, sm: int) -> None:
    device = opened(f"sm_{sm}")
    program = device.load(image(sm, shared=64), "add")
    (x, a), (y, b), (z, _) = (numbers(device, n) for n in range(3))
    commands = device.command_list()
    commands.dispatch(program, [x, y, z], 4)
    commands.dispatch(program, [x, y, z], 0)
    commands.dispatch(program, [z, y, x], 4)
    device.compute.wait(device.compute.submit(commands), 20)
    swapped = (a + b).reshape(-1, 2)[:, ::-1].reshape(-1)
    np.testing.assert_array_equal(np.frombuffer(z.host(), np.float32), swapped)
    np.testing.assert_array_equal(np.frombuffer(x.host(), np.float32), (swapped + b).reshape(-1, 2)[:, ::-1].reshape(-1))


def test_commands_see_what_those_before_wrote(device: NvidiaDevice) -> None:
    """Kernels and copies in turns, in memory of the GPU."""
    program = device.load(image(90), "add")
    (x, a), (y, b), (out, _) = (numbers(device, n) for n in range(3))
    near, far = device.alloc(4 * N), device.alloc(4 * N)
    commands = device.command_list()
    commands.copy(near, x, 4 * N)
    for _ in range(5):
        commands.dispatch(program, [near, y, far], 4)
        commands.dispatch(program, [far, y, near], 4)
    commands.copy(out, near, 4 * N)
    for _ in range(3):
        device.compute.wait(device.compute.submit(commands), 20)
        expected = a
        for _ in range(10):
            expected = expected + b
        np.testing.assert_array_equal(np.frombuffer(out.host(), np.float32), expected)


def test_patches_take_effect_at_the_next_submission(device: NvidiaDevice) -> None:
    program = device.load(image(90), "add")
    (x, a), (y, b), (z, _) = (numbers(device, n) for n in range(3))
    commands = device.command_list()
    first = commands.dispatch(program, [x, x, z], 4)
    go = device.signal()
    device.compute.submit(device.command_list(), wait=[(go, 1)])
    outs = [device.alloc(4 * N, Placement.HOST) for _ in range(12)]
    values = []
    for n, out in enumerate(outs[:8]):
        commands.patch(first, 2, out)
        commands.patch(first, 1, (x, y)[n % 2])
        values.append(device.compute.submit(commands))
    assert len(commands._instances) == 8
    go.signal(1)
    for out in outs[8:]:  # more than may be in flight: waits for one
        commands.patch(first, 2, out)
        values.append(device.compute.submit(commands))
    device.compute.wait(values[-1], 20)
    for n, out in enumerate(outs):
        np.testing.assert_array_equal(np.frombuffer(out.host(), np.float32), a + (b if n % 2 or n >= 8 else a))
    with pytest.raises(InvalidArgument, match="no argument"):
        commands.patch(first, 3, x)


def test_a_list_is_one_entry(device: NvidiaDevice) -> None:
    program, buffer = device.load(image(90), "add"), device.alloc(4 * N)
    commands = device.command_list()
    for groups in (1, 0, 5):
        commands.dispatch(program, [buffer] * 3, groups)
    instance = commands.build(True)
    assert len(instance.segments) == 1 and instance.head == instance.segments[0].packets[0]
    fields = pushbuffer.ENTRY.of(90).unpack(instance.head)
    words = struct.unpack(f"<{fields['length']}I", bytes(view(fields["get"], 4 * fields["length"])))
    names = [pushbuffer.table_of(w).find(w.offset, 90).name for w in pushbuffer.writes(words)]  # type: ignore[union-attr]
    launch = ["SEND_PCAS_A", "SEND_SIGNALING_PCAS2_B"]
    assert names == ["INVALIDATE_SHADER_CACHES_NO_WFI", *launch, "WAIT_FOR_IDLE", *launch]
    launched = [w.value << 8 for w in pushbuffer.writes(words) if w.offset == 0x2B4]
    grids = [qmd.unpack(90, bytes(view(at, qmd.nbytes(90)))) for at in launched]
    assert [f["grid_width"] for f in grids] == [1, 5] and all(f["program_address"] == program.address for f in grids)
    for fields, command in zip(grids, (commands.commands[0], commands.commands[2]), strict=True):
        assert isinstance(command, Dispatch)
        bank = bytes(view(fields["constant_buffer_addr_0"], fields["constant_buffer_size_0"]))
        assert struct.unpack_from("<6I", bank, 0) == (LANES, 1, 1, command.groups, 1, 1)
        assert struct.unpack_from("<3Q", bank, program.kernel.params_offset) == (buffer.address,) * 3
    assert "SEND_PCAS_A" in str(commands) and "grid_width=5" in str(commands)


def test_long_lists_are_several_entries(device: NvidiaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MAX_SEGMENT", 100)
    program = device.load(image(90), "add")
    (x, a), (y, b), (z, _) = (numbers(device, n) for n in range(3))
    commands = device.command_list()
    for _ in range(60):
        commands.dispatch(program, [x, y, z], 4)
    device.compute.wait(device.compute.submit(commands), 30)
    assert len(commands._instances[0].segments[0].packets) > 3 and commands._instances[0].head is None
    np.testing.assert_array_equal(np.frombuffer(z.host(), np.float32), a + b)


def test_profile_of_kernels(device: NvidiaDevice) -> None:
    program, buffer = device.load(image(90), "add"), device.alloc(4 * N)
    commands = device.command_list()
    for _ in range(3):
        commands.dispatch(program, [buffer, buffer, device.alloc(4 * N)], 4)
    profile = device.profile(commands)
    device.compute.wait(device.compute.submit(commands, profile=profile), 20)
    assert len(profile.durations_ns) == 3 and min(profile.durations_ns) > 0


# ---------------------------------------------------------------------------------------------------------------------
# Refusing


def altered(monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    """Have the reader find kernels with other needs."""
    import dataclasses
    real = reader.read

    def read(data: bytes) -> reader.Image:
        found = real(data)
        return reader.Image(found.sm, {n: dataclasses.replace(k, **fields) for n, k in found.kernels.items()})  # type: ignore[arg-type]
    monkeypatch.setattr(programs, "read", read)


@pytest.mark.parametrize(("fields", "message"), [
    ({"registers": 256}, "256 registers"), ({"registers": 200, "max_threads": (512, 1, 1)}, "200 registers a thread"),
    ({"max_threads": (2048, 1, 1)}, "2048 threads"), ({"shared_bytes": 229 << 10}, "bytes of shared memory"),
    ({"local_bytes": 1 << 20}, "bytes of local memory"), ({"params_offset": 0x160}, "arguments at 0x160"),
    ({"params": (reader.Param(0, 0, 4),)}, "not 8 bytes"), ({"constants": {0: b"", 9: b"1"}}, "constant bank 9")])
def test_kernels_that_ask_too_much(device: NvidiaDevice, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object],
                                   message: str) -> None:
    live = device.code_memory.usage().live
    altered(monkeypatch, **fields)
    with pytest.raises(CompileError, match=message) as caught:
        device.load(image(90), "add")
    assert "add" in caught.value.what and caught.value.remedy
    assert device.code_memory.usage().live == live


def test_wrong_isa(device: NvidiaDevice, opened: Opened) -> None:
    with pytest.raises(InvalidArgument, match="sm_86 code") as caught:
        device.load(image(86), "add")
    assert "sm_90" in caught.value.evidence
    assert opened("sm_86").load(image(80), "add").name == "add"  # the same generation's older code runs
    with pytest.raises(InvalidArgument):
        device.load(b"\x7fELF\x02\x01" + bytes(58), "add")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damaged_images_are_refused(device: NvidiaDevice, data: st.DataObject) -> None:
    """Cut anywhere, or with a byte changed: an error of devrt's, or a program."""
    whole = image(90)
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


def test_names_and_lifetimes(device: NvidiaDevice) -> None:
    with pytest.raises(InvalidArgument, match="no kernel 'mul'") as caught:
        device.load(image(90), "mul")
    assert "add" in caught.value.evidence
    program, buffer = device.load(image(90), "add"), device.alloc(4096)
    commands = device.command_list()
    with pytest.raises(InvalidArgument, match="arguments"):
        commands.dispatch(program, [buffer], 1)
    for groups in (-1, 1 << 31, 1.5):
        with pytest.raises(InvalidArgument, match="groups"):
            commands.dispatch(program, [buffer] * 3, groups)  # type: ignore[arg-type]
    commands.dispatch(program, [buffer] * 3, 0)
    device.compute.wait(device.compute.submit(commands), 10)
    with pytest.raises(Unsupported, match="runs no kernels"):
        device.transfer.submit(commands)
    live = device.code_memory.usage().live
    program.close()
    program.close()
    assert device.code_memory.usage().live < live
    with pytest.raises(InvalidArgument, match="after it was closed"):
        device.compute.submit(commands)
    with pytest.raises(InvalidArgument, match="after it was closed"):
        device.command_list().dispatch(program, [buffer] * 3, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Local and shared memory


@pytest.mark.parametrize("sm", SMS)
def test_local_memory_is_there_for_every_thread(opened: Opened, monkeypatch: pytest.MonkeyPatch, sm: int) -> None:
    device = opened(f"sm_{sm}")
    (x, a), (y, b), (z, _) = (numbers(device, n) for n in range(3))
    for nbytes in (40, 2000, 100):
        altered(monkeypatch, local_bytes=nbytes)
        program = device.load(image(sm), "add")
        commands = device.command_list()
        commands.dispatch(program, [x, y, z], 4)
        device.compute.wait(device.compute.submit(commands), 20)
        np.testing.assert_array_equal(np.frombuffer(z.host(), np.float32), a + b)
        assert device._local >= nbytes
    assert len(device._local_memory) == 1
    fields = qmd.unpack(sm, bytes(program._descriptor))
    assert fields["shader_local_memory_low_size"] == 112 and fields["shader_local_memory_high_size"] == 0
    altered(monkeypatch, stack_bytes=64)
    fields = qmd.unpack(sm, bytes(device.load(image(sm), "add")._descriptor))
    assert fields["shader_local_memory_high_size"] == 64 + 0x240


def test_local_memory_grows_behind_what_is_queued(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened("sm_90")
    (x, a), (y, b), (z, _), (w, _) = (numbers(device, n) for n in range(4))
    go, commands = device.signal(), [device.command_list(), device.command_list()]
    for n, out in enumerate((z, w)):
        altered(monkeypatch, local_bytes=32 << 4 * n)
        commands[n].dispatch(device.load(image(90), "add"), [x, y, out], 4)
        value = device.compute.submit(commands[n], wait=[(go, 1)] if not n else ())
    go.signal(1)
    device.compute.wait(value, 20)
    for out in (z, w):
        np.testing.assert_array_equal(np.frombuffer(out.host(), np.float32), a + b)


def test_carve_outs() -> None:
    for sm, about in GENERATIONS.items():
        assert carve_out(sm, 0) == about.carve_outs[0] // 4 + 1
        for small, large in zip(about.carve_outs, about.carve_outs[1:], strict=False):
            assert carve_out(sm, (small << 10) + 1) == large // 4 + 1
        assert about.shared_bytes <= about.carve_outs[-1] << 10


@pytest.mark.parametrize(("floats", "least", "wanted"), [(0, 8, 8), (1024, 8, 164), (14 << 10, 64, 228)])
def test_an_sm_is_divided_for_all_blocks_that_fit(device: NvidiaDevice, floats: int, least: int, wanted: int) -> None:
    fields = qmd.unpack(90, bytes(device.load(image(90, shared=floats), "add")._descriptor))
    asked = [fields[f"{which}_sm_config_shared_mem_size"] for which in ("min", "target", "max")]
    assert [4 * (code - 1) for code in asked] == [least, wanted, 228]


def test_kernels_have_the_types_they_need() -> None:
    kernel: Kernel = reader.read(image(90)).kernel("add")
    assert kernel.params_offset == GENERATIONS[90].bank0.params
