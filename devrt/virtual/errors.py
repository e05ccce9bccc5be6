"""How the virtual driver says no: an OSError with the errno that the kernel gives."""

from __future__ import annotations

import os
from typing import NoReturn


def fail(number: int, path: str | None = None) -> NoReturn:
    """Raise OSError."""
    raise OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))
