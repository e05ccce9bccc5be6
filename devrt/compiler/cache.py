"""The on-disk compile cache: one file an entry, named by a hash of everything the machine code depends on.

Entries are written to a temporary name and renamed, so that processes never see half of one; a file whose digest does not
match is treated as absent. A folder that can't be written to costs time, never correctness.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import devrt
from devrt.paths import cache_folder

_MAGIC = b"devrt1\n"


@functools.cache
def version() -> str:
    """devrt's version and a digest of the compiler's sources: a changed compiler never meets old code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{devrt.__version__}-{digest.hexdigest()[:16]}"


def key(*parts: str) -> str:
    """The name of an entry."""
    return hashlib.sha256("\0".join((version(), *parts)).encode()).hexdigest()[:40]


def load(name: str) -> tuple[dict[str, Any], bytes] | None:
    """(metadata, payload), or None if there is no whole entry of that name."""
    try:
        blob = (cache_folder() / name[:2] / name).read_bytes()
    except OSError:
        return None
    head = len(_MAGIC)
    body = blob[head + 32:]
    if blob[:head] != _MAGIC or hashlib.sha256(body).digest() != blob[head:head + 32]:
        return None
    size = int.from_bytes(body[:4], "little")
    return json.loads(body[4:4 + size]), body[4 + size:]


def store(name: str, metadata: dict[str, Any], payload: bytes) -> bool:
    """Keep an entry; False where the folder can't take it (read-only, full), with nothing left behind."""
    text = json.dumps(metadata).encode()
    body = len(text).to_bytes(4, "little") + text + payload
    blob = _MAGIC + hashlib.sha256(body).digest() + body
    target = cache_folder() / name[:2] / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".new-")
    except OSError:
        return False
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(blob)
        os.replace(temporary, target)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        return False
    return True
