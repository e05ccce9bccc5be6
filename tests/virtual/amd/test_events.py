"""Events of the virtual KFD: auto-reset, ages, waits and who wakes them (Linux kfd_events.c)."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from devrt.ioctl.kfd import KFD, EventType, MmapType, QueueType, ResetCause, ResetType, WaitResult, split_mmap_offset
from devrt.ioctl.system import MAP_SHARED, PROT_READ, PROT_WRITE, view
from devrt.virtual.amd.events import FIRST_OTHER, INFINITE, UNSIGNALLED, Events
from devrt.virtual.amd.machine import Notify
from devrt.virtual.memory import MemoryFault
from tests.virtual.amd.kfd_client import VRAM, Client, FakeEngine, refused


@pytest.fixture
def events() -> Events:
    made = Events()
    made.set_page(memoryview(bytearray(32768)))
    return made


def wait(made: Client, *numbers: int, every: bool = False, timeout: int = 0, ages: tuple[int, ...] = ()) -> tuple[int, Any]:
    data = KFD.ffi.new("struct kfd_event_data[]", len(numbers))
    for n, number in enumerate(numbers):
        data[n].event_id = number
        data[n].signal_event_data.last_event_age = ages[n] if ages else 0
    answer = made.call("WAIT_EVENTS", events_ptr=int(KFD.ffi.cast("uintptr_t", data)), num_events=len(numbers),
                       wait_for_all=every, timeout=timeout)
    return answer.wait_result, data


def create(made: Client, kind: EventType = EventType.SIGNAL, auto_reset: bool = False) -> int:
    return int(made.call("CREATE_EVENT", event_type=kind, auto_reset=auto_reset).event_id)


def paged(made: Client) -> tuple[memoryview, int]:
    """(the slots of the event page, the first event)"""
    page = made.event_page()
    first = made.call("CREATE_EVENT", event_page_offset=page.handle, auto_reset=1)
    assert first.event_slot_index == first.event_id == first.event_trigger_data == 1
    assert split_mmap_offset(first.event_page_offset)[0] is MmapType.EVENTS
    return view(page.va, 32768).cast("Q"), int(first.event_id)


def notifier(made: Client) -> Notify:
    made.create_queue(made.queue_fields(QueueType.SDMA))
    return FakeEngine.made[0].queues[-1].notify


def after(seconds: float, act: Callable[..., object], *arguments: Any, **named: Any) -> threading.Timer:
    timer = threading.Timer(seconds, act, arguments, named)
    timer.start()
    return timer


# ---------------------------------------------------------------------------------------------------------------------
# Through the ioctls


def test_the_event_page(one: Client) -> None:
    for bad in (one.mapped_buffer(4096), one.mapped_buffer(32768, VRAM)):
        with refused(errno.EINVAL):
            one.call("CREATE_EVENT", event_page_offset=bad.handle)
    for handle in (1 << 32, one.gpus[0] << 32 | 999):
        with refused(errno.EINVAL):
            one.call("CREATE_EVENT", event_page_offset=handle)
    page = one.event_page()
    one.call("CREATE_EVENT", event_page_offset=page.handle)
    assert view(page.va, 32768).cast("Q").tolist() == [UNSIGNALLED] * 4096
    with refused(errno.EINVAL):
        one.call("CREATE_EVENT", event_page_offset=one.mapped_buffer(32768).handle)
    one.unmap(page)
    with refused(errno.EPERM):
        one.free(page)


def test_a_process_without_a_page_gets_the_drivers(one: Client) -> None:
    event = create(one)
    address = one.system.mmap(one.kfd, 32768, PROT_READ | PROT_WRITE, MAP_SHARED, MmapType.EVENTS << 62)
    view(address, 32768).cast("Q")[event] = 1
    notifier(one).interrupt(event)
    assert wait(one, event)[0] == WaitResult.COMPLETE
    one.system.munmap(address, 32768)


def test_numbers_of_events(one: Client) -> None:
    paged(one)
    assert [create(one), create(one, EventType.MEMORY), create(one, EventType.HW_EXCEPTION), create(one)] == [
        2, FIRST_OTHER, FIRST_OTHER + 1, 3]
    one.call("DESTROY_EVENT", event_id=2)
    assert create(one) == 2
    with refused(errno.ENOSPC):
        for _ in range(4096):
            create(one)


def test_what_may_not_be_done_to_events(one: Client) -> None:
    _, event = paged(one)
    memory = create(one, EventType.MEMORY)
    for name in ("SET_EVENT", "RESET_EVENT"):
        for number in (memory, 77):
            with refused(errno.EINVAL):
                one.call(name, event_id=number)
    with refused(errno.EINVAL):
        one.call("DESTROY_EVENT", event_id=77)
    with refused(errno.EINVAL):
        wait(one, event, 77)
    with refused(errno.ENOMEM):
        one.call("WAIT_EVENTS", num_events=4097)
    with refused(errno.EFAULT):
        one.call("WAIT_EVENTS", num_events=1, events_ptr=64)


def test_interrupts(one: Client) -> None:
    slots, first = paged(one)
    second, third = create(one), create(one)
    notify = notifier(one)
    slots[first] = 1
    notify.interrupt(first)
    assert slots[first] == UNSIGNALLED  # armed again
    assert wait(one, first)[0] == WaitResult.COMPLETE
    assert wait(one, first)[0] == WaitResult.TIMEOUT  # auto-reset
    slots[second] = slots[third] = 5
    notify.interrupt(0x1234)  # fits nobody: all slots are looked at
    assert wait(one, second, third, every=True)[0] == WaitResult.COMPLETE
    assert wait(one, second)[0] == WaitResult.COMPLETE  # stays set
    one.call("RESET_EVENT", event_id=second)
    assert wait(one, second)[0] == WaitResult.TIMEOUT
    notify.interrupt(second)  # its slot was not written
    assert wait(one, second)[0] == WaitResult.TIMEOUT


def test_a_wait_ends_by_an_interrupt(one: Client) -> None:
    slots, first = paged(one)
    notify = notifier(one)

    def ring() -> None:
        slots[first] = first
        notify.interrupt(first)

    after(0.05, ring)
    started = time.monotonic()
    assert wait(one, first, timeout=5000)[0] == WaitResult.COMPLETE
    assert 0.04 < time.monotonic() - started < 2


def test_page_faults_are_told(one: Client) -> None:
    paged(one)
    memory = create(one, EventType.MEMORY)
    notifier(one).memory_fault(MemoryFault(0x7F0000001234, "write", "not mapped"))
    result, data = wait(one, memory)
    about = data[0].memory_exception_data
    assert result == WaitResult.COMPLETE
    assert (about.va, about.gpu_id, about.ErrorType) == (0x7F0000001000, one.gpus[0], 0)
    assert (about.failure.NotPresent, about.failure.ReadOnly, about.failure.NoExecute) == (1, 1, 0)


def test_resets_are_told(one: Client) -> None:
    paged(one)
    hardware, memory = create(one, EventType.HW_EXCEPTION), create(one, EventType.MEMORY)
    notify = notifier(one)
    notify.hardware_exception(ResetType.WHOLE_GPU_RESET, ResetCause.GPU_HANG, True)
    result, data = wait(one, hardware)
    about = data[0].hw_exception_data
    assert (result, about.reset_type, about.reset_cause, about.memory_lost, about.gpu_id) == (0, 0, 0, 1, one.gpus[0])
    assert wait(one, memory)[0] == WaitResult.TIMEOUT
    notify.hardware_exception(ResetType.WHOLE_GPU_RESET, ResetCause.ECC, True)
    result, data = wait(one, memory)
    assert (result, data[0].memory_exception_data.ErrorType) == (0, 2)


def test_a_fault_that_nobody_listens_to(one: Client) -> None:
    """It is silent but for the kernel's log."""
    notifier(one).memory_fault(MemoryFault(0x1000, "read", "not mapped"))
    assert any("unhandled exception" in line.text for line in one.system.kernel_log())


def test_closing_ends_waits(one: Client) -> None:
    _, first = paged(one)
    results: list[object] = []

    def waiter() -> None:
        try:
            results.append(wait(one, first, timeout=INFINITE))
        except OSError as error:
            results.append(error.errno)

    thread = threading.Thread(target=waiter)
    thread.start()
    time.sleep(0.05)
    one.system.shut_down()
    thread.join(5)
    assert results == [errno.EIO]
    one.close = lambda: None  # type: ignore[method-assign]


# ---------------------------------------------------------------------------------------------------------------------
# The table itself


def test_ages(events: Events) -> None:
    number = events.create(EventType.SIGNAL, True).number
    assert events.wait([(number, 1)], False, 0)[0] == WaitResult.TIMEOUT
    events.set(number)
    assert events.wait([(number, 0)], False, 0)[0] == WaitResult.COMPLETE  # somebody else took the signal
    result, told = events.wait([(number, 1)], False, 0)  # but this waiter has not seen its age
    assert result == WaitResult.COMPLETE and told[0] is not None and told[0].age == 2
    assert events.wait([(number, 2)], False, 0)[0] == WaitResult.TIMEOUT


def test_an_auto_reset_event_wakes_who_waits(events: Events) -> None:
    number = events.create(EventType.SIGNAL, True).number
    results: list[WaitResult] = []
    threads = [threading.Thread(target=lambda: results.append(events.wait([(number, 0)], False, 2000)[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    events.set(number)  # the kernel activates every waiter that is there
    for thread in threads:
        thread.join()
    assert results == [WaitResult.COMPLETE] * 2
    assert events.wait([(number, 0)], False, 0)[0] == WaitResult.TIMEOUT


def test_timeouts(events: Events) -> None:
    number = events.create(EventType.SIGNAL, False).number
    started = time.monotonic()
    assert events.wait([(number, 0)], False, 60)[0] == WaitResult.TIMEOUT
    assert 0.05 < time.monotonic() - started < 1
    assert events.wait([], True, INFINITE)[0] == WaitResult.COMPLETE


def test_one_or_all(events: Events) -> None:
    first, second = (events.create(EventType.SIGNAL, False).number for _ in range(2))
    events.set(first)
    assert events.wait([(first, 0), (second, 0)], False, 0)[0] == WaitResult.COMPLETE
    assert events.wait([(first, 0), (second, 0)], True, 10)[0] == WaitResult.TIMEOUT
    after(0.02, events.set, second)
    assert events.wait([(first, 0), (second, 0)], True, 2000)[0] == WaitResult.COMPLETE


def test_destroying_fails_who_waits(events: Events) -> None:
    number = events.create(EventType.SIGNAL, False).number
    after(0.02, events.destroy, number)
    with refused(errno.EIO):
        events.wait([(number, 0)], False, 2000)


def test_no_signal_is_lost_between_threads(events: Events) -> None:
    """Two threads throw a ball: each wait must see the other's set."""
    here, there = (events.create(EventType.SIGNAL, True).number for _ in range(2))
    rounds = 300

    def partner() -> None:
        for _ in range(rounds):
            assert events.wait([(here, 0)], False, 5000)[0] == WaitResult.COMPLETE
            events.set(there)

    thread = threading.Thread(target=partner)
    thread.start()
    for _ in range(rounds):
        events.set(here)
        assert events.wait([(there, 0)], False, 5000)[0] == WaitResult.COMPLETE
    thread.join()
