"""What the comparisons share: threads for all, what a run's figures depend on, progress, and where results are written.

Import it before NumPy and PyTorch: they read the number of their threads, and where their caches are, when they are imported.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

THREADS = 2
HERE = Path(__file__).parent
RESULTS = HERE / "results"
SCRATCH = tempfile.TemporaryDirectory(prefix="devrt-peers-")  # what peers compile, for this run only
os.environ |= {name: str(THREADS) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUM_CPU_THREADS")}
os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{SCRATCH.name}/inductor", "CACHEDB": f"{SCRATCH.name}/tinygrad.db", "DEV": "CPU"}


def git(*arguments: str) -> str:
    """What git says; nothing on a machine without it."""
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True).stdout.strip()


def load() -> str:
    """How many processes wanted to run: over the last minute, 5 and 15 minutes."""
    return " ".join(f"{x:.2f}" for x in os.getloadavg())


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def environment(packages: Iterable[str]) -> dict[str, Any]:
    """What the figures depend on."""
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    commit, dirty = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain", "--", str(HERE.parent / "devrt"))
    return {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "cpu": cpu,
            "cores": len(os.sched_getaffinity(0)), "threads": THREADS, "commit": commit + ("+changes" if dirty else ""),
            "python": platform.python_version(), **{p: version(p) for p in packages}, "load": load()}


def heading(title: str, env: dict[str, Any], source: str, raw: str) -> str:
    """The first lines of a result in Markdown."""
    facts = ", ".join(f"{k} {v}" for k, v in env.items() if k not in ("date", "cpu"))
    return f"# {title}\n\n{env['date']}, {env['cpu']}: {facts}.\nMade by `{source}`; raw figures in `{raw}`.\n\n"


def record(env: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    return json.dumps({"environment": env, "rows": rows}, indent=1) + "\n"


def destination(text: str) -> Path:
    """A command line's file to write: refused before anything is measured where its folder isn't there."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} can't be written; name a file in a folder that exists")
    return path


def write(name: str, markdown: str, raw: str, folder: Path = RESULTS) -> None:
    """<folder>/<name>.md and .json."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(markdown)
    (folder / f"{name}.json").write_text(raw)


class Progress:
    """One line on a terminal's stderr that says what is being measured; nothing where stderr is no terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.name, self.turns = total, 0, "", 0
        self.shown = sys.stderr.isatty()
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def begin(self, name: str) -> None:
        self.name, self.turns = name, 0
        self.tick(0)

    def tick(self, turns: int = 1) -> None:
        self.turns += turns
        if self.shown:
            print(f"\r\x1b[K{self.done}/{self.total} {self.name}, turn {self.turns}, {self.seconds:.0f} s", end="",
                  file=sys.stderr, flush=True)

    def end(self) -> None:
        """The row is done."""
        self.done += 1

    def clear(self) -> None:
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
