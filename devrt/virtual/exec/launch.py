"""Starts a program under the filter and hands its listener to the supervisor."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import NoReturn

from devrt.device import InvalidArgument, Unsupported
from devrt.virtual.exec.seccomp import die_with_parent, filter_program, install
from devrt.virtual.exec.syscalls import Arch, machine

_REMEDY = ("use Linux 5.9 or newer with CONFIG_SECCOMP_FILTER; in a container, let its seccomp profile allow seccomp and prctl, "
           "and start devrt outside of other supervisors")


def supported() -> Arch:
    """This machine's calls. Raises Unsupported."""
    arch = machine()
    if arch is None:
        raise Unsupported(f"devrt can't supervise programs on {platform.machine()}", remedy="use x86-64 or aarch64")
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail") as file:
            actions = file.read().split()
    except OSError:
        actions = []
    if "user_notif" not in actions:
        raise Unsupported("this kernel has no seccomp notifications", evidence=f"actions: {' '.join(actions) or 'none'}",
                          remedy=_REMEDY)
    return arch


def launch(command: Sequence[str], magics: tuple[int, ...], environment: Mapping[str, str]) -> tuple[int, int, socket.socket]:
    """(pid, listener, socket that says what came of exec: see `started`). Raises Unsupported."""
    arch = supported()
    program = filter_program(arch, magics)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if not pid:
        ours.close()
        _become(command, arch, program, environment, theirs)
    theirs.close()
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        number = int.from_bytes(ours.recv(4), "little")
        os.waitpid(pid, 0)
        raise Unsupported("the kernel refused a seccomp filter with notifications", remedy=_REMEDY,
                          evidence=f"{errno.errorcode.get(number, number)}: {os.strerror(number)}")
    return pid, fds[0], ours


def started(command: Sequence[str], answer: socket.socket) -> None:
    """Raises InvalidArgument where the program could not be run. Asked once it is over, or it would be waited for."""
    with answer:
        said = answer.recv(4)
    if said:
        raise InvalidArgument(f"{command[0]} can't be run", evidence=os.strerror(int.from_bytes(said, "little")),
                              remedy="name a program in $PATH, or its path")


def _become(command: Sequence[str], arch: Arch, program: bytes, environment: Mapping[str, str],
            answer: socket.socket) -> NoReturn:
    """In the child. Calls that the filter catches block until the supervisor has the listener: none may come before that."""
    try:
        die_with_parent(signal.SIGKILL)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(number, signal.SIG_DFL)
        try:
            listener = install(arch, program)
        except OSError as error:
            answer.sendall(b"E" + (error.errno or 0).to_bytes(4, "little"))
            os._exit(1)
        socket.send_fds(answer, [b"L"], [listener])
        os.close(listener)
        try:
            os.execvpe(command[0], list(command), dict(environment))
        except OSError as error:
            answer.sendall((error.errno or 0).to_bytes(4, "little"))
    finally:
        with contextlib.suppress(OSError):
            answer.close()
        os._exit(127)
