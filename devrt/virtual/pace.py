"""How the thread of a virtual GPU goes: turns for those who have work, and rest for the host where nobody has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TURN_S, _LONE_TURN_S = 1e-3, 5e-3  # how long one queue may keep the GPU while others wait; and where none does
_FIRST_STEPS = 1024
# How the engine waits, by the time since it last did anything: it asks on and on, then after short sleeps, then after sleeps
# that grow with the silence. 6 ms keep an idle GPU well below a hundredth of a core.
_SPIN_S, _EAGER_S, _NAP_S, _LONGEST_S = 100e-6, 20e-3, 20e-6, 6e-3


def turn(step: Callable[[], bool]) -> bool:
    """Step for a while, as long as there is anything to do. Returns whether there was."""
    worked = False
    deadline = 0.0
    while step():
        worked = True
        now = time.monotonic()
        deadline = deadline or now + _TURN_S
        if now > deadline:
            break
    return worked


class Share:
    """How many steps of native code make a turn, learnt from how long they took."""

    def __init__(self) -> None:
        self.steps = _FIRST_STEPS

    def took(self, seconds: float, whole: bool, hurry: bool) -> None:
        """So many steps, the `whole` share or fewer, took that long. `hurry`: others wait for their turn."""
        turn = _TURN_S if hurry else _LONE_TURN_S
        if seconds > 2 * turn:
            self.steps = max(self.steps // 2, 1)
        elif whole and seconds < turn / 2:
            self.steps *= 2


class Gate:
    """A lock that one thread takes again and again, turn by turn, and that others get before its next turn."""

    def __init__(self) -> None:
        self._lock, self._count = threading.RLock(), threading.Lock()
        self._waiting = 0

    @property
    def wanted(self) -> bool:
        return self._waiting > 0

    @contextmanager
    def first(self) -> Iterator[None]:
        """For the others."""
        with self._count:
            self._waiting += 1
        try:
            with self._lock:
                yield
        finally:
            with self._count:
                self._waiting -= 1

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


class Pace:
    """Rests between two looks, the longer the longer there was nothing to do."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def rest(self, worked: bool) -> None:
        now = time.monotonic()
        if worked:
            self._last = now
        quiet = now - self._last
        if quiet < _SPIN_S:
            time.sleep(0)  # lets other threads of the interpreter run
        elif quiet < _EAGER_S:
            time.sleep(_NAP_S)
        else:
            time.sleep(min(quiet / 16, _LONGEST_S))
