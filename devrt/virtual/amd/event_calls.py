"""ioctls of /dev/kfd about events. Linux kfd_chardev.c, kfd_events.c."""

from __future__ import annotations

import errno

from devrt.ioctl.kfd import KFD, AllocFlag, EventType, MmapType, WaitResult
from devrt.virtual.amd.calls import Call, handles
from devrt.virtual.amd.events import MOST_WAITED, Waited
from devrt.virtual.errors import fail


@handles("AMDKFD_IOC_CREATE_EVENT")
def create_event(call: Call) -> None:
    process, args = call.process, call.args
    if args.event_page_offset:
        if process.events.has_page:
            fail(errno.EINVAL)
        process.bound(args.event_page_offset >> 32)
        page = process.bo(args.event_page_offset, errno.EINVAL)
        if page.store is None or not page.flags & AllocFlag.GTT:
            fail(errno.EINVAL)
        process.events.set_page(page.store.bytes())
        process.event_page, process.event_handle = page.store.hold(), int(args.event_page_offset)
    signal = args.event_type in (EventType.SIGNAL, EventType.DEBUG_EVENT)
    if signal:
        process.own_event_page()
    event = process.events.create(args.event_type, bool(args.auto_reset))
    args.event_id = args.event_trigger_data = event.number
    args.event_page_offset = MmapType.EVENTS << 62 if signal else 0
    if signal:
        args.event_slot_index = event.number


@handles("AMDKFD_IOC_DESTROY_EVENT")
def destroy_event(call: Call) -> None:
    call.process.events.destroy(call.args.event_id)


@handles("AMDKFD_IOC_SET_EVENT")
def set_event(call: Call) -> None:
    call.process.events.set(call.args.event_id)


@handles("AMDKFD_IOC_RESET_EVENT")
def reset_event(call: Call) -> None:
    call.process.events.reset(call.args.event_id)


@handles("AMDKFD_IOC_WAIT_EVENTS", blocking=True)
def wait_events(call: Call) -> None:
    args, memory, size = call.args, call.client.memory, KFD.size("kfd_event_data")
    args.wait_result = WaitResult.FAIL
    if args.num_events > MOST_WAITED:
        fail(errno.ENOMEM)
    wanted = []
    for n in range(args.num_events):
        data = KFD.new("kfd_event_data")
        KFD.ffi.buffer(data)[:] = memory.read(args.events_ptr + n * size, size)
        wanted.append((data.event_id, data.signal_event_data.last_event_age))
    result, told = call.process.events.wait(wanted, bool(args.wait_for_all), args.timeout)
    for n, one in enumerate(told):
        data = _payload(one) if one is not None else b""
        if data:
            memory.write(args.events_ptr + n * size, data)
    args.wait_result = result


_PAYLOADS = {EventType.MEMORY: "kfd_hsa_memory_exception_data", EventType.HW_EXCEPTION: "kfd_hsa_hw_exception_data"}


def _payload(one: Waited) -> bytes:
    """What goes into the union of kfd_event_data; empty: nothing is written there."""
    if one.age:
        return one.age.to_bytes(8, "little")
    if not one.data or one.type not in _PAYLOADS:
        return b""
    return bytes(KFD.ffi.buffer(KFD.new(_PAYLOADS[EventType(one.type)], **one.data)))
