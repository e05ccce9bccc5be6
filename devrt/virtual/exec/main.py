"""Runs a program on a virtual machine from its start to its exit code."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from types import FrameType

from devrt.device import parse_uri
from devrt.virtual.exec.files import VirtualFiles
from devrt.virtual.exec.launch import launch, started, supported
from devrt.virtual.exec.supervisor import Supervisor
from devrt.virtual.system import make_system

# For the programs of one vendor: what makes them use the driver in the way that is modelled.
ENVIRONMENT = {"amd": {"HSA_USERPTR_FOR_PAGED_MEM": "0"}}  # libhsakmt: host memory from the driver, not the program's own pages
_SIGNALLED = 128  # what shells add to the number of the signal that ended a program


def execute(topology: str, command: Sequence[str], *, trace: bool = False) -> int:
    """Run `command` on the machine `topology` (as in URIs: amd/2xgfx1100?hang@2) and return its exit code as a shell does.
    Raises DeviceNotFound, Unsupported, and InvalidArgument where the program is no program."""
    uri = parse_uri(f"virtual:{topology}")
    arch = supported()
    system = make_system(uri)
    files = VirtualFiles(system.drivers)
    try:
        environment = {**ENVIRONMENT.get(uri.vendor, {}), **os.environ}
        magics = {table.magic for driver in system.drivers for table in driver.uapis}
        pid, listener, answer = launch(command, tuple(magics), environment)
        with _signals(pid):
            code = os.waitstatus_to_exitcode(Supervisor(pid, listener, arch, files, trace).run())
        started(command, answer)
        return code if code >= 0 else _SIGNALLED - code
    finally:
        files.close()
        system.shut_down()


@contextlib.contextmanager
def _signals(pid: int) -> Iterator[None]:
    """Keys go to the whole foreground, so they are left to the program; what was sent to this process is passed on."""
    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
    before |= {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1,
                                                                    signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
