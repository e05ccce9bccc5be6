"""Where devrt keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$DEVRT_CACHE, else $XDG_CACHE_HOME/devrt, else ~/.cache/devrt; an empty one counts as unset. It may not exist, or not be
    writable."""
    if own := os.environ.get("DEVRT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "devrt"
