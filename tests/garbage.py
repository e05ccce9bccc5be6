"""Collecting garbage to the last of it, for tests that count what is left."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any


def collect() -> None:
    """A full collection, carried out by this thread. gc.collect() alone does nothing at all while another thread collects, and
    the threads of a virtual GPU do."""
    here, done = threading.get_ident(), False

    def note(phase: str, info: dict[str, Any]) -> None:
        nonlocal done
        done = done or phase == "stop" and info["generation"] == 2 and threading.get_ident() == here
    gc.callbacks.append(note)
    try:
        gc.collect()
        while not done:
            time.sleep(1e-4)
            gc.collect()
    finally:
        gc.callbacks.remove(note)
