"""Bytes to and from devices whose memory the host does not see: through host buffers, by the copy engine.

Where the host sees the memory (a CPU), there is nothing to do; `shared` tells.
"""

from __future__ import annotations

import weakref

from devrt.device import Buffer, Device, InvalidArgument, Placement, Unsupported

CHUNK = 8 << 20  # bytes of a staging buffer; two are in use, so that the host copies while the engine does

_shared: weakref.WeakKeyDictionary[Device, bool] = weakref.WeakKeyDictionary()


def shared(device: Device) -> bool:
    """Whether the host sees the device's own memory as it lies."""
    found = _shared.get(device)
    if found is None:
        try:
            found = len(device.alloc(64).host()) == 64
        except Unsupported:
            found = False
        _shared[device] = found
    return found


def write(device: Device, dst: Buffer, data: bytes | bytearray | memoryview, offset: int = 0) -> None:
    """Copy `data` to `dst` + offset; done when it returns."""
    source = memoryview(data).cast("B") if not isinstance(data, memoryview) or data.format != "B" or data.ndim != 1 else data
    stage: list[tuple[Buffer, int]] = []  # buffer, value at which it is free again
    for at in range(0, len(source), CHUNK):
        n = min(CHUNK, len(source) - at)
        if len(stage) < 2:
            buffer = device.alloc(min(CHUNK, len(source)), Placement.HOST)
        else:
            buffer, value = stage.pop(0)
            device.transfer.wait(value)
        buffer.host()[:n] = source[at:at + n]
        commands = device.command_list()
        commands.copy(dst, buffer, n, offset + at)
        stage.append((buffer, device.transfer.submit(commands)))
    if stage:
        device.transfer.wait(stage[-1][1])


def read(device: Device, src: Buffer, into: memoryview, offset: int = 0) -> None:
    """Copy len(into) bytes of `src` + offset, contents settled, to host memory; done when it returns."""
    waiting: list[tuple[int, int, Buffer, int]] = []  # place, bytes, buffer, value at which it is full
    spare: list[Buffer] = []

    def drain() -> None:
        at, n, buffer, value = waiting.pop(0)
        device.transfer.wait(value)
        into[at:at + n] = buffer.host()[:n]
        spare.append(buffer)

    for at in range(0, len(into), CHUNK):
        n = min(CHUNK, len(into) - at)
        if len(waiting) == 2:
            drain()
        buffer = spare.pop() if spare else device.alloc(min(CHUNK, len(into)), Placement.HOST)
        commands = device.command_list()
        commands.copy(buffer, src, n, 0, offset + at)
        waiting.append((at, n, buffer, device.transfer.submit(commands)))
    while waiting:
        drain()


def move(device: Device, dst: Buffer, src: Buffer, nbytes: int) -> None:
    """Copy the first `nbytes`, contents settled, of another device's buffer to one of `device`; done when it returns.

    Straight from device to device where they reach each other, else through the host.
    """
    source = src.device
    if shared(source):
        if shared(device):
            dst.host()[:nbytes] = src.host()[:nbytes]
        else:
            write(device, dst, src.host()[:nbytes])
        return
    if shared(device):
        read(source, src, dst.host()[:nbytes])
        return
    show = getattr(device, "peer", None)  # devices of one driver may reach each other
    if show is not None:
        try:
            near = show(src)
        except (Unsupported, InvalidArgument):
            near = None
        if near is not None:
            commands = device.command_list()
            commands.copy(dst, near, nbytes)
            device.transfer.wait(device.transfer.submit(commands))
            return
    chunk = memoryview(bytearray(min(CHUNK, nbytes)))
    for at in range(0, nbytes, CHUNK):
        part = chunk[:min(CHUNK, nbytes - at)]
        read(source, src, part, at)
        write(device, dst, part, at)
