"""AMD's own user space as a witness: where it is, and how a program is started with it on a virtual machine.

Debian bookworm's runtime (5.2.3) knows GPUs up to gfx90a and gfx1035. A newer one may be unpacked beside it
(tests/witness/unpack_rocr); its programs are started by its own loader.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(os.environ.get("DEVRT_ROCR", Path(__file__).parents[2] / "build" / "rocr"))
TIMEOUT_S = 30
_LIBRARY = "libhsa-runtime64.so.1"


@dataclass(frozen=True)
class Rocr:
    """A runtime below `root`: the machine's own (/) or an unpacked one."""

    root: Path

    @property
    def libraries(self) -> Path:
        return next(self.root.glob("usr/lib/*-linux-gnu"), self.root / "usr/lib")

    @property
    def library(self) -> Path:
        return self.libraries / _LIBRARY

    @property
    def targets(self) -> set[str]:
        """The GPUs that it knows, by the names in its library."""
        return {name.decode() for name in re.findall(rb"(?<=\0)gfx[0-9a-f]+(?=\0)", self.library.read_bytes())}

    def command(self, program: str | Path, *arguments: str) -> list[str]:
        if self.root == Path("/"):
            return [str(program), *arguments]
        loader = next(self.root.glob("usr/lib*/ld-linux-*.so.*"))
        return [str(loader), "--library-path", str(self.libraries), str(program), *arguments]

    def run(self, topology: str, program: str | Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The program on a virtual machine."""
        names = self.root / "usr/share/libdrm/amdgpu.ids"
        environment = {**os.environ, **({"AMDGPU_ASIC_ID_TABLE_PATH": str(names)} if names.exists() else {})}
        devrt = [sys.executable, "-m", "devrt.cli.main", "virtual", "exec", topology, "--"]
        return subprocess.run([*devrt, *self.command(program, *arguments)], capture_output=True, text=True, timeout=TIMEOUT_S,
                              env=environment, cwd=Path(__file__).parents[2])


def installed() -> list[Rocr]:
    """The machine's own, then the unpacked one."""
    return [rocr for rocr in (Rocr(Path("/")), Rocr(FOLDER)) if rocr.library.exists()]


def runtime_for(gfx: str) -> tuple[Rocr | None, str]:
    """A runtime that knows the GPU, or why there is none."""
    found = installed()
    if not found:
        return None, f"no {_LIBRARY}: apt-get install rocminfo libhsa-runtime-dev"
    rocr = next((rocr for rocr in found if gfx in rocr.targets), None)
    return rocr, f"{' and '.join(str(rocr.library) for rocr in found)} know no {gfx}: tests/witness/unpack_rocr {FOLDER}"


def missing_tool(*tools: str) -> str:
    """Why a test that needs them can't run, "" if it can."""
    lacking = [tool for tool in tools if shutil.which(tool) is None]
    return f"no {', '.join(lacking)}: apt-get install {' '.join(lacking)}" if lacking else ""
